//! Wiping in place: the old member is removed from its cluster, and a new one starts on the same volume.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::cluster::{Cluster, Member};
use crate::http;
use crate::programs::wait_until;

/// MemberRemove and MemberAdd as the operator does it; returns the Pod of the new member.
fn readd(cluster: &Cluster, member: &Member, incarnation: u32) -> Member {
    let old = member.stamp()["memberID"].as_str().unwrap().to_owned();
    cluster.ctl_until_accepted(0, &["member", "remove", &old]);
    let url = format!("http://{}", member.peer);
    let added =
        cluster.ctl_until_accepted(0, &["member", "add", &member.name, "--learner", "--peer-urls", &url]);
    let new = added["member"]["ID"].as_u64().unwrap();
    let all: Vec<_> = cluster.members.iter().map(Member::initial).collect();
    let pod = member.clone().flag("initial-cluster", all.join(",")).flag("initial-cluster-state", "existing");
    let pod =
        pod.variable("QUORATE_INCARNATION", incarnation).variable("QUORATE_MEMBER_ID", format!("{new:x}"));
    pod.variable("QUORATE_EXPECT_STAMP", true).in_new_pod()
}

fn promote(cluster: &Cluster, member: &Member) {
    let id = member.stamp()["memberID"].as_str().unwrap().to_owned();
    cluster.ctl_until_accepted(0, &["member", "promote", &id]);
}

fn backups(member: &Member) -> Vec<PathBuf> {
    let entries = fs::read_dir(&member.volume).unwrap().map(|entry| entry.unwrap().path());
    let mut backups: Vec<_> = entries.filter(|path| path.to_string_lossy().contains("bak-")).collect();
    backups.sort();
    backups
}

fn started_as(incarnation: u32) -> impl Fn(&Value) -> bool {
    move |stamp| stamp["phase"] == "started" && stamp["incarnation"] == incarnation
}

#[test]
fn a_removed_member_is_wiped_and_comes_back_as_a_new_one() {
    let cluster = Cluster::new("3.6", 3);
    let mut guards = cluster.start();
    cluster.members[0].put_many('a', 20);
    let member = &cluster.members[2];
    let guard = guards.pop().unwrap();
    let first = http::status(member.client).unwrap().member_id;

    // Removed while it runs: etcd ends with 0, and the report must say why all the same.
    let pod = readd(&cluster, member, 1);
    let ended = guard.wait();
    assert_eq!((ended.code, ended.report["exit"].as_i64()), (Some(0), Some(0)), "{ended:#?}");
    let lines = ended.report["lines"].to_string();
    assert!(lines.contains("the member has been permanently removed from the cluster"), "{lines}");

    let guard = pod.start();
    wait_until("the new member has started", || started_as(1)(&pod.stamp()));
    assert_eq!(backups(&pod), [pod.volume.join("bak-1")]);
    assert!(pod.volume.join("bak-1/member/snap/db").exists());
    // Crashes as a learner, again and again: never wiped twice, never refused.
    guard.crash();
    pod.start().crash();
    let guard = pod.serve_as_learner();
    promote(&cluster, &pod);
    pod.wait_until_serving();
    let second = http::status(pod.client).unwrap().member_id;
    assert_ne!(first, second);
    assert_eq!(http::count(pod.client, 'a'), Ok(20));
    assert_eq!(backups(&pod).len(), 1);

    // A second repair, of a damaged log, with no space for a second copy.
    guard.crash();
    let segment = pod.data().join("wal/0000000000000000-0000000000000000.wal");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[100] ^= 1;
    fs::write(&segment, bytes).unwrap();
    pod.assert_refused("WalDamaged");
    let pod = readd(&cluster, &pod, 2).variable("QUORATE_LEADER_DB_BYTES", u64::MAX);
    let _guard = pod.start();
    wait_until("the third member has started", || started_as(2)(&pod.stamp()));
    assert_eq!(backups(&pod).len(), 1, "deleted, not kept");
    promote(&cluster, &pod);
    pod.wait_until_serving();
    assert_eq!(http::count(pod.client, 'a'), Ok(20));
}

#[test]
fn old_data_go_when_their_time_is_over() {
    let cluster = Cluster::new("3.6", 1);
    let member = &cluster.members[0];
    drop(member.serve().stop());
    let new = id_by_token("other", member);
    let pod = member.clone().in_new_pod().flag("initial-cluster-token", "other");
    let pod = pod.variable("QUORATE_INCARNATION", 1).variable("QUORATE_MEMBER_ID", &new);
    let pod = pod.variable("QUORATE_EXPECT_STAMP", true);
    // What an earlier wipe left, and what looks like it but is none.
    let old = member.volume.join("bak-7");
    fs::create_dir(&old).unwrap();
    let yesterday = SystemTime::now() - Duration::from_hours(24);
    fs::File::open(&old).unwrap().set_modified(yesterday).unwrap();
    let kept = member.volume.join("bak-of-a-person");
    fs::create_dir(&kept).unwrap();
    fs::File::open(&kept).unwrap().set_modified(yesterday).unwrap();

    drop(pod.clone().variable("QUORATE_KEEP_OLD_DATA_SECONDS", 3600).serve().stop());
    let aside = pod.volume.join("bak-8");
    assert_eq!(backups(&pod), [old.clone(), aside.clone(), kept.clone()], "too early");
    let guard = pod.variable("QUORATE_KEEP_OLD_DATA_SECONDS", 1).serve();
    wait_until("old data are deleted", || !old.exists() && !aside.exists());
    drop(guard.stop());
    assert_eq!(backups(member), [kept]);
    assert!(!member.volume.join("discarded").exists());
}

/// The ID that a member gets by a token, tried elsewhere.
fn id_by_token(token: &'static str, member: &Member) -> String {
    let trial = member.clone().flag("initial-cluster-token", token).on_another_volume();
    drop(trial.serve().stop());
    trial.stamp()["memberID"].as_str().unwrap().to_owned()
}

/// A bootstrap that starts over with another token: wiped on a volume with data, and killed at many moments.
#[test]
fn a_node_that_crashes_at_any_moment_of_a_wipe_wipes_once() {
    let cluster = Cluster::new("3.6", 1);
    let member = &cluster.members[0];
    drop(member.serve().stop());
    let whole = tempfile::TempDir::new().unwrap();
    crate::cluster::copy(&member.volume, whole.path());
    let new = id_by_token("other", member);
    for moment in (0..200).step_by(25) {
        crate::cluster::replace(&member.volume, whole.path());
        let pod = member.clone().in_new_pod().flag("initial-cluster-token", "other");
        let pod = pod.variable("QUORATE_INCARNATION", 1).variable("QUORATE_MEMBER_ID", &new);
        let pod = pod.variable("QUORATE_EXPECT_STAMP", true).variable("QUORATE_HIGH_WATER", "2:4");
        let guard = pod.start();
        // Not to wait for anything: the moment itself is what is tried.
        thread::sleep(Duration::from_millis(moment));
        guard.crash();
        drop(pod.serve().stop());
        assert!(started_as(1)(&pod.stamp()), "crashed after {moment} ms: {}", pod.stamp());
        assert_eq!(backups(&pod), [pod.volume.join("bak-1")], "crashed after {moment} ms");
    }
}
