//! Starts that must succeed: first boots, also failed and interrupted ones, and restarts.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

use crate::cluster::{Cluster, Ended, write_sparse};
use crate::http;
use crate::programs::{on_every_minor, wait_until};
use crate::writer::frames;

#[test]
fn a_member_boots_and_restarts_as_the_same_and_its_end_is_reported() {
    on_every_minor(|minor| {
        let cluster = Cluster::new(minor, 1);
        let member = &cluster.members[0];
        let guard = member.serve();
        let first = http::status(member.client).unwrap();
        wait_until("the stamp says started", || member.stamp()["phase"] == "started");
        member.put_many('a', 20);
        let Ended { code, signal, report, log } = guard.stop();
        assert_eq!((code, signal), (None, Some(15)), "etcd raises the signal on itself, so does the guard");
        assert_eq!(
            (&report["signal"], &report["exit"], &report["cause"]),
            (&15.into(), &().into(), &().into()),
            "{report}"
        );
        assert_eq!(report["etcdRan"], true);
        assert_eq!(report["memberID"], format!("{:x}", first.member_id));
        assert_eq!(report["clusterID"], format!("{:x}", first.cluster_id));
        assert!(report["index"].as_u64().unwrap() >= first.raft_index + 20, "{report}");
        assert!(report["ranFor"].as_f64().unwrap() > 0.0);
        assert!(log.contains("etcd-version"), "etcd's log is passed through: {log}");
        assert_eq!(member.stamp()["memberID"], report["memberID"]);

        // The next Pod knows more, and expects it.
        let next = member.clone().in_new_pod().variable("QUORATE_EXPECT_STAMP", true);
        let next = next.variable("QUORATE_MEMBER_ID", report["memberID"].as_str().unwrap());
        let next = next.variable("QUORATE_CLUSTER_ID", report["clusterID"].as_str().unwrap());
        let high_water = format!("{}:{}", report["term"], report["index"]);
        let next = next.variable("QUORATE_HIGH_WATER", high_water);
        let guard = next.serve();
        let second = http::status(member.client).unwrap();
        assert_eq!((second.member_id, second.cluster_id), (first.member_id, first.cluster_id));
        assert_eq!(http::count(member.client, 'a'), Ok(20));
        let killed = guard.kill_etcd();
        assert_eq!((killed.signal, killed.report["signal"].as_i64()), (Some(9), Some(9)), "{killed:#?}");
    });
}

#[test]
fn a_join_that_finds_no_peer_is_tried_again_until_one_answers() {
    let mut cluster = Cluster::new("3.6", 1);
    let (first, joiner) = (cluster.members[0].clone(), cluster.spare(1));
    let guard = first.serve();
    let url = format!("http://{}", joiner.peer);
    cluster.ctl_until_accepted(0, &["member", "add", &joiner.name, "--learner", "--peer-urls", &url]);
    drop(guard.stop());

    let both = format!("{},{}", first.initial(), joiner.initial());
    let joiner = joiner.flag("initial-cluster", both).flag("initial-cluster-state", "existing");
    let waiting = joiner.start();
    wait_until("the join fails once", || waiting.log().contains("is tried again in a second"));
    assert_eq!(joiner.stamp()["phase"], "starting");

    // The container ends in the middle of it, and another one starts: still a first boot.
    let Ended { report, .. } = waiting.stop();
    assert_eq!((&report["etcdRan"], &report["cause"]), (&false.into(), &().into()), "{report}");
    let waiting = joiner.start();
    wait_until("the join fails again", || waiting.log().contains("is tried again in a second"));
    assert!(!waiting.log().contains("DataLost"));

    let _first = first.serve();
    wait_until("the member has joined", || joiner.stamp()["phase"] == "started");
    cluster.members.push(joiner);
    let listed = cluster.ctl(0, &["member", "list"]).unwrap();
    assert_eq!(listed["members"].as_array().map(Vec::len), Some(2), "{listed}");
    let Ended { report, .. } = waiting.stop();
    assert_eq!(report["lines"], json!([]), "why earlier tries failed is no news at the end: {report}");
}

/// etcd loses its publication only when a snapshot comes at the very moment; here its log is held back, so that it looks
/// so at every first start.
#[test]
fn a_new_member_that_got_a_snapshot_and_does_not_publish_itself_is_started_once_more() {
    on_every_minor(|minor| {
        let cluster = Cluster::new(minor, 1);
        let kept =
            if minor == "3.5" { "experimental-snapshot-catchup-entries" } else { "snapshot-catchup-entries" };
        let first = cluster.members[0].clone().flag("snapshot-count", 20).flag(kept, 5);
        let _first = first.serve();
        first.put_many('a', 100);
        let joiner = cluster.spare(1);
        let url = format!("http://{}", joiner.peer);
        cluster.ctl_until_accepted(0, &["member", "add", &joiner.name, "--learner", "--peer-urls", &url]);
        let both = format!("{},{}", first.initial(), joiner.initial());
        let joiner = joiner.flag("initial-cluster", both).flag("initial-cluster-state", "existing");
        let held_back = r#"exec "$ETCD" "$@" 2> >(grep --line-buffered -v 'published local member' >&2)"#;
        let joiner = joiner.through(held_back);
        let guard = joiner.start();
        let again = || guard.log().matches("it is started once more").count();
        let starts = || guard.log().matches("starting an etcd server").count();
        wait_until("etcd is started twice", || starts() == 2);
        wait_until("it serves", || http::status(joiner.client).is_ok());
        assert_eq!((again(), joiner.stamp()["phase"].as_str()), (1, Some("started")));
        drop(guard.stop());
    });
}

/// Left to itself, etcd finds no members in such a log and waits for a leader for ever.
#[test]
fn a_boot_that_crashed_before_the_first_entry_is_tried_again() {
    on_every_minor(|minor| {
        let cluster = Cluster::new(minor, 1);
        let member = cluster.members[0].clone();
        drop(member.serve().stop());
        let segment = member.data().join("wal/0000000000000000-0000000000000000.wal");
        let mut bytes = fs::read(&segment).unwrap();
        let head = frames(&bytes)[3];
        bytes[head..].fill(0);
        write_sparse(&segment, &bytes);
        member.assert_refused("DataLost");

        let mut stamp = member.stamp();
        stamp["phase"] = "starting".into();
        fs::write(member.volume.join("quorate.json"), stamp.to_string()).unwrap();
        let member = member.in_new_pod();
        drop(member.serve().stop());
        assert_eq!(member.stamp()["phase"], "started");
    });
}

#[test]
fn etcd_is_not_started_before_its_own_name_resolves() {
    let cluster = Cluster::new("3.6", 1);
    let member = &cluster.members[0];
    let unknown =
        member.clone().variable("QUORATE_ADDRESS", "main-0.invalid").variable("QUORATE_POD_IP", "127.0.0.1");
    let waiting = unknown.start();
    wait_until("the volume is claimed", || member.stamp()["phase"] == "fresh");
    let ended = waiting.stop();
    assert_eq!((ended.signal, &ended.report["etcdRan"]), (Some(15), &false.into()), "{ended:#?}");
    assert_eq!(member.stamp()["phase"], "fresh");

    let known =
        member.clone().variable("QUORATE_ADDRESS", "localhost").variable("QUORATE_POD_IP", "127.0.0.1");
    let _guard = known.serve();
    wait_until("the stamp says started", || member.stamp()["phase"] == "started");
}

#[test]
fn a_node_that_crashes_at_any_moment_of_a_first_boot_boots_in_the_end() {
    thread::scope(|scope| {
        // Two rows of moments at once: a boot takes about 300 ms.
        for offset in [0, 25] {
            scope.spawn(move || crash_at_moments((offset..300).step_by(50)));
        }
    });
}

fn crash_at_moments(moments: impl Iterator<Item = u64>) {
    for moment in moments {
        let cluster = Cluster::new("3.6", 1);
        let member = &cluster.members[0];
        let guard = member.start();
        // Not to wait for anything: the moment itself is what is tried.
        thread::sleep(Duration::from_millis(moment));
        guard.crash();
        let guard = member.serve();
        member.put_many('a', 1);
        drop(guard.stop());
        assert_eq!(member.stamp()["phase"], "started", "crashed after {moment} ms");
    }
}

#[test]
fn etcd_is_killed_before_the_grace_period_ends() {
    let cluster = Cluster::new("3.6", 1);
    // 5 s less than this are left for etcd, but at least one.
    let member = cluster.members[0].clone().variable("QUORATE_GRACE_SECONDS", 6);
    let guard = member.serve();
    let etcd = guard.etcd();
    kill_process(etcd, Signal::STOP).unwrap();
    let ended = guard.stop();
    assert_eq!((ended.signal, ended.report["signal"].as_i64()), (Some(9), Some(9)), "{ended:#?}");
}

#[test]
fn an_etcd_that_cannot_run_says_why_in_the_report() {
    let cluster = Cluster::new("3.6", 1);
    let member = &cluster.members[0];
    drop(member.serve().stop());
    let ended = member.clone().flag("snapshot-count", "many").run();
    assert_eq!((ended.code, ended.report["exit"].as_i64()), (Some(2), Some(2)), "{ended:#?}");
    assert_eq!(ended.report["lines"][0], r#"invalid value "many" for flag -snapshot-count: parse error"#);

    let database = member.data().join("snap/db");
    fs::write(&database, b"no database at all").unwrap();
    let ended = member.run();
    assert_ne!(ended.code, Some(0), "{ended:#?}");
    let lines = ended.report["lines"].to_string();
    assert!(lines.contains("failed to open database"), "{lines}");
}

#[test]
fn a_command_line_that_etcd_refuses_is_not_tried_again() {
    on_every_minor(|minor| {
        for (flag, value, word) in [
            ("no-such-flag", "1", "flag provided but not defined: -no-such-flag"),
            ("auto-compaction-mode", "never", "failed to verify flags"),
        ] {
            let cluster = Cluster::new(minor, 1);
            let ended = cluster.members[0].clone().flag(flag, value).run();
            assert_ne!(ended.code, Some(0), "{ended:#?}");
            assert!(!ended.log.contains("is tried again"), "{ended:#?}");
            assert!(ended.report["lines"].to_string().contains(word), "{}", ended.report);
        }
    });
}

#[test]
fn a_bad_environment_is_named_in_the_report() {
    let cluster = Cluster::new("3.6", 1);
    let ended = cluster.members[0].clone().variable("QUORATE_INCARNATION", "first").run();
    assert_eq!(ended.code, Some(78));
    assert_eq!(ended.report["cause"], "BadConfiguration");
    assert_eq!(ended.report["message"], "QUORATE_INCARNATION is `first`: invalid digit found in string");
    assert!(fs::read_dir(&cluster.members[0].volume).unwrap().next().is_none(), "nothing was written");
}

#[test]
fn the_program_installs_itself() {
    let folder = TempDir::new().unwrap();
    for _again in 0..2 {
        let mut install = Command::new(env!("CARGO_BIN_EXE_quorate-guard"));
        assert!(install.arg("install").arg(folder.path()).status().unwrap().success());
    }
    let installed = folder.path().join("quorate-guard");
    let usage = Command::new(&installed).output().unwrap();
    assert_eq!(usage.status.code(), Some(64));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
}
