//! Failures of a member among others.

use std::fs;

use tempfile::TempDir;

use super::Reports;
use super::cluster::{Cluster, Guard, Member, copy, replace};
use super::http;
use super::programs::wait_until;
use super::provoke::{change, database, message, replace_value, run, run_first_boot};

/// So often a leader may change at the wrong moment.
const TRIES: usize = 5;

pub(super) fn provoke(reports: &Reports) {
    let mut cluster = Cluster::new(reports.minor, 3);
    for member in &mut cluster.members {
        *member = member.clone().flag("unsafe-no-fsync", true);
    }
    let mut guards = cluster.start();
    http::put(cluster.members[0].client, "secret", "value-that-is-right").unwrap();
    fail_to_join(reports, &cluster);
    let last = guards.pop().unwrap();
    let last = lose_log(reports, &cluster, last);
    let last = differ(reports, &cluster, last);
    remove_member(reports, &cluster, last);
    forget_member(reports, &cluster, guards.pop().unwrap());
    drop(guards);
    if reports.minor != "3.5" {
        lead_without_log(reports);
    }
}

/// Joins that etcd gives up by itself.
fn fail_to_join(reports: &Reports, cluster: &Cluster) {
    let joiner = cluster.spare(3).flag("initial-cluster-state", "existing");
    let all: Vec<_> = cluster.members.iter().chain([&joiner]).map(Member::initial).collect();
    reports.take("JoinStale", &run_first_boot(&joiner.clone().flag("initial-cluster", all.join(","))));
    let nobody = format!("{},{}", cluster.spare(4).initial(), joiner.initial());
    reports.take("PeersUnreachable", &run_first_boot(&joiner.flag("initial-cluster", nobody)));
}

/// Takes the last member back in time. Its guard has no mark any more, as after a loss of the whole node.
fn lose_log(reports: &Reports, cluster: &Cluster, guard: Guard) -> Guard {
    let last = &cluster.members[2];
    drop(guard.stop());
    // A leader that was elected in between would not know how far the member had come, and bring it up.
    let report = (0..TRIES).find_map(|_| lose_log_once(cluster)).unwrap();
    reports.take("LogLost-heartbeat", &report);
    last.serve()
}

fn lose_log_once(cluster: &Cluster) -> Option<String> {
    let [first, _, last] = &cluster.members[..] else { unreachable!() };
    let (old, new) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    copy(&last.data(), old.path());
    let guard = last.serve();
    first.put_many('l', 20);
    last.wait_until_serving();
    drop(guard.stop());
    copy(&last.data(), new.path());
    replace(&last.data(), old.path());
    let forgetful = last.clone().in_new_pod();
    let guard = forgetful.start();
    let (mut lost, mut serves) = (false, false);
    wait_until("the member ends or serves", || {
        lost = guard.log().contains("panic: ");
        serves = http::count(last.client, 'x').is_ok();
        lost || serves
    });
    if !lost {
        drop(guard.stop());
        return None;
    }
    let report = message(&forgetful, guard);
    replace(&last.data(), new.path());
    Some(report)
}

/// Changes one value in the last member's database.
fn differ(reports: &Reports, cluster: &Cluster, guard: Guard) -> Guard {
    let last = &cluster.members[2];
    drop(guard.stop());
    let (right, wrong) = ("value-that-is-right", "value-that-is-wrong");
    change(&database(last), |bytes| replace_value(bytes, right.as_bytes(), wrong.as_bytes()));
    let checking = match reports.minor {
        "3.5" => last.clone().flag("experimental-initial-corrupt-check", true),
        _ => last.clone().flag("feature-gates", "InitialCorruptCheck=true"),
    };
    if reports.minor == "3.5" {
        // It starts, and says nothing: here only the operator's own comparison helps.
        drop(checking.serve().stop());
    } else {
        reports.take("PeersDiffer", &run(&checking));
    }
    change(&database(last), |bytes| replace_value(bytes, wrong.as_bytes(), right.as_bytes()));
    last.serve()
}

fn remove_member(reports: &Reports, cluster: &Cluster, guard: Guard) {
    let removed = &cluster.members[2];
    let id = removed.stamp()["memberID"].as_str().unwrap().to_owned();
    cluster.ctl_until_accepted(0, &["member", "remove", &id]);
    reports.take("MemberRemoved", &message(removed, guard));
}

/// A member loses everything, and nobody remembers it but the first one.
fn forget_member(reports: &Reports, cluster: &Cluster, guard: Guard) {
    drop(guard.stop());
    let forgotten = &cluster.members[1];
    fs::remove_dir_all(&forgotten.volume).unwrap();
    fs::create_dir_all(&forgotten.volume).unwrap();
    reports.take("AlreadyBootstrapped", &run_first_boot(&forgotten.clone().in_new_pod()));
}

/// A member that was taken back and one that lagged elect a leader; the third has what both have lost.
fn lead_without_log(reports: &Reports) {
    let cluster = Cluster::new(reports.minor, 3);
    let [back, lagging, third] = &cluster.members[..] else { unreachable!() };
    let mut guards = cluster.start().into_iter();
    let mut guard = || guards.next().unwrap();
    let (first, second, other) = (guard(), guard(), guard());
    drop(first.stop());
    let old = TempDir::new().unwrap();
    copy(&back.data(), old.path());
    let first = back.serve();
    drop(second.stop());
    third.wait_until_serving();
    third.put_many('k', 50);
    drop(first.stop());
    other.crash();
    replace(&back.data(), old.path());
    let forgetful = back.clone().in_new_pod();
    let (first, second) = (forgetful.start(), lagging.start());
    forgetful.wait_until_serving();
    let _third = third.start();
    let mut ended = None;
    wait_until("a leader ends", || {
        ended = [(&forgetful, &first), (lagging, &second)]
            .into_iter()
            .find(|(_, guard)| guard.log().contains("panic: "))
            .map(|(member, _)| member.name.clone());
        ended.is_some()
    });
    let (member, guard) =
        if ended == Some(forgetful.name.clone()) { (&forgetful, first) } else { (lagging, second) };
    reports.take("NoSnapshotToSend", &message(member, guard));
}
