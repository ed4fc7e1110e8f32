//! Volumes on which etcd must never be started.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Cluster, Member, copy, replace, swap};
use crate::http;
use crate::programs::{on_every_minor, wait_until};

#[test]
fn a_volume_wiped_under_the_running_process_is_lost_data() {
    on_every_minor(|minor| {
        let cluster = Cluster::new(minor, 1);
        let member = &cluster.members[0];
        let guard = member.serve();
        wait_until("the mark is written", || member.state.join("mark.json").exists());
        empty(&member.volume);
        let killed = guard.kill_etcd();
        assert_eq!(killed.report["etcdRan"], true, "{killed:#?}");
        member.assert_refused("DataLost");
        // Again and again: a refusal leaves no trace that would make the next start different.
        member.assert_refused("DataLost");
        let expecting = member.clone().in_new_pod().variable("QUORATE_EXPECT_STAMP", true);
        expecting.assert_refused("DataLost");
        let high_water = member.clone().in_new_pod().variable("QUORATE_HIGH_WATER", "2:4");
        high_water.assert_refused("DataLost");
    });
}

#[test]
fn every_part_of_the_data_that_is_missing_is_lost_data() {
    on_every_minor(|minor| {
        let cluster = Cluster::new(minor, 1);
        let member = cluster.members[0].clone();
        drop(member.serve().stop());
        let whole = TempDir::new().unwrap();
        copy(&member.volume, whole.path());
        let member = member.in_new_pod();
        let lose = |path: &Path| {
            let lost = path.with_extension("lost");
            fs::rename(path, &lost).unwrap();
            member.assert_refused("DataLost");
            fs::rename(&lost, path).unwrap();
        };
        lose(&member.volume.join("data"));
        lose(&member.data());
        lose(&member.data().join("wal"));
        lose(&member.data().join("snap"));
        lose(&member.data().join("snap/db"));
        let wal = member.data().join("wal");
        empty(&wal);
        member.assert_refused("DataLost");
        replace(&member.volume, whole.path());
        fs::write(member.volume.join("quorate.json"), "{").unwrap();
        member.assert_refused("DataLost");
        replace(&member.volume, whole.path());
        drop(member.serve());
    });
}

#[test]
fn a_second_guard_is_refused_while_guard_or_etcd_lives() {
    let cluster = Cluster::new("3.6", 1);
    // Its log goes past the guard, or its next line would kill it once nobody reads it.
    let log = cluster.members[0].state.join("etcd.log");
    let member = cluster.members[0].clone().flag("log-outputs", log.display());
    let second = member.clone().variable("QUORATE_EXPECT_STAMP", true);
    let guard = member.serve();
    let refused = second.run();
    assert_eq!(refused.report["cause"], "VolumeInUse", "{refused:#?}");
    assert_eq!(http::count(member.client, 'x'), Ok(0), "the first one still serves");

    guard.kill_guard_only();
    let refused = second.run();
    assert_eq!(refused.report["cause"], "VolumeInUse", "{refused:#?}");
    assert_eq!(http::count(member.client, 'x'), Ok(0), "etcd still serves");
    drop(guard);
    drop(second.serve());
}

#[test]
fn data_of_another_member_are_foreign() {
    let cluster = Cluster::new("3.6", 3);
    let guards = cluster.start();
    for guard in guards {
        drop(guard.stop());
    }
    let [one, other, _] = &cluster.members[..] else { unreachable!() };
    swap(&one.volume, &other.volume);
    one.assert_refused("ForeignVolume");
    other.assert_refused("ForeignVolume");
    swap(&one.volume, &other.volume);

    // Only the data: the stamps are right. In this Pod, in the next, and in one that knows the IDs.
    swap(&one.data(), &other.data());
    let id = |member: &Member| member.stamp()["memberID"].as_str().unwrap().to_owned();
    for member in [one, other] {
        member.assert_refused("ForeignVolume");
        let member = member.clone().in_new_pod();
        member.assert_refused("ForeignVolume");
        member
            .variable("QUORATE_MEMBER_ID", id(member_of(&cluster, &one.name)))
            .assert_refused("ForeignVolume");
    }
    swap(&one.data(), &other.data());
    drop(cluster.start());
}

fn member_of<'a>(cluster: &'a Cluster, name: &str) -> &'a Member {
    cluster.members.iter().find(|member| member.name == name).unwrap()
}

#[test]
fn a_volume_of_somebody_else_is_foreign_unless_it_is_adopted() {
    let cluster = Cluster::new("3.6", 1);
    let member = cluster.members[0].clone();
    drop(member.serve().stop());
    member.clone().variable("QUORATE_CLUSTER_UID", "other").assert_refused("ForeignVolume");
    member.clone().variable("QUORATE_MEMBER", "main-9").assert_refused("ForeignVolume");
    member.clone().variable("QUORATE_CLUSTER_ID", "1").assert_refused("ForeignVolume");
    member.clone().variable("QUORATE_INCARNATION", 1).assert_refused("ForeignVolume");
    let same = member.stamp()["memberID"].as_str().unwrap().to_owned();
    let raised = member.clone().variable("QUORATE_INCARNATION", 1);
    raised.variable("QUORATE_MEMBER_ID", same).assert_refused("ForeignVolume");

    let adopting = member.variable("QUORATE_CLUSTER_UID", "other").variable("QUORATE_ADOPT_UID", "uid");
    drop(adopting.serve().stop());
    assert_eq!(adopting.stamp()["clusterUID"], "other");

    fs::remove_file(adopting.volume.join("quorate.json")).unwrap();
    let unstamped = adopting.in_new_pod();
    unstamped.assert_refused("ForeignVolume");
    fs::remove_dir_all(&unstamped.volume).unwrap();
    assert_eq!(unstamped.run().report["cause"], "VolumeUnwritable", "it is not there");
    fs::create_dir_all(unstamped.volume.join("quorate.tmp")).unwrap();
    assert_eq!(unstamped.run().report["cause"], "VolumeUnwritable", "the stamp cannot be written");
}

#[test]
fn an_etcd_that_takes_another_identity_than_expected_is_stopped() {
    let cluster = Cluster::new("3.6", 1);
    let member = cluster.members[0].clone().variable("QUORATE_MEMBER_ID", "1");
    let ended = member.run();
    assert_eq!((ended.code, &ended.report["cause"]), (Some(78), &"ForeignVolume".into()), "{ended:#?}");
    member.assert_refused("ForeignVolume");
}

#[test]
fn an_older_copy_of_the_data_is_rolled_back() {
    on_every_minor(|minor| {
        let cluster = Cluster::new(minor, 1);
        let member = cluster.members[0].clone();
        let guard = member.serve();
        member.put_many('a', 5);
        drop(guard.stop());
        let old = TempDir::new().unwrap();
        copy(&member.data(), old.path());
        // The node crashes, so nothing is reported; the mark had followed the log.
        let guard = member.serve();
        member.put_many('b', 1);
        let said = http::status(member.client).unwrap();
        wait_until("the mark follows", || member.mark()["index"].as_u64() >= Some(said.raft_index));
        guard.crash();
        let mark = member.mark();
        replace(&member.data(), old.path());
        member.assert_refused("RolledBack");

        // A Pod made anew has no mark; the operator tells it what it has seen.
        let member = member.in_new_pod();
        let knowing =
            |term: &Value| member.clone().variable("QUORATE_HIGH_WATER", format!("{term}:{}", mark["index"]));
        knowing(&mark["term"]).assert_refused("RolledBack");
        knowing(&mark["hardTerm"]).assert_refused("RolledBack");
        // Without either nothing can be seen: this is what the two marks are for.
        drop(member.serve());
    });
}

fn empty(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            fs::remove_dir_all(entry.path()).unwrap();
        } else {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}
