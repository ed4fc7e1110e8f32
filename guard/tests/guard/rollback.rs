//! The experiment behind the guard: one lagging and one rolled-back member elect a leader, and everything that was
//! acknowledged in between is gone, without a line of warning.

use std::fs;

use serde_json::json;
use tempfile::TempDir;

use crate::cluster::{Cluster, Guard, copy, replace};
use crate::http;
use crate::programs::wait_until;

const ACKNOWLEDGED: u32 = 200;

/// A cluster whose member 0 was rolled back and whose member 1 lagged behind, all of it stopped; and what member 0
/// reported at its end, as the operator would hand it to the next Pod.
fn roll_back(minor: &'static str) -> (Cluster, String) {
    let cluster = Cluster::new(minor, 3);
    let [rolled_back, lagging, _] = &cluster.members[..] else { unreachable!() };
    let mut guards = cluster.start().into_iter();
    let mut guard = || guards.next().unwrap();
    let (first, second, third) = (guard(), guard(), guard());
    rolled_back.put_many('b', 10);
    drop(first.stop());
    let old = TempDir::new().unwrap();
    copy(&rolled_back.data(), old.path());
    let first = rolled_back.serve();
    second.crash();
    put_acknowledged(&cluster);
    let report = first.kill_etcd().report;
    third.crash();
    replace(&rolled_back.data(), old.path());
    assert!(fs::exists(lagging.data()).unwrap());
    (cluster, format!("{}:{}", report["term"], report["index"]))
}

/// The two members may be between two leaders; only what is acknowledged counts.
fn put_acknowledged(cluster: &Cluster) {
    for number in 0..ACKNOWLEDGED {
        wait_until("the put is acknowledged", || {
            http::put(cluster.members[2].client, &format!("a{number}"), "v").is_ok()
        });
    }
}

/// What a member has, without asking others.
fn local_count(cluster: &Cluster, member: usize) -> Option<u64> {
    let body = json!({"key": "YQ==", "range_end": "Yg==", "count_only": true, "serializable": true});
    let answer = http::post(cluster.members[member].client, "/v3/kv/range", &body).ok()?;
    Some(answer["count"].as_str().map_or(0, |count| count.parse().unwrap()))
}

/// Starts the lagging member, and later the third one; all that was acknowledged must be there.
fn assert_nothing_is_lost(cluster: &Cluster) {
    let [_, lagging, third] = &cluster.members[..] else { unreachable!() };
    let alone = lagging.start();
    wait_until("the lagging member stands for election", || {
        alone.log().matches("is starting a new election").count() > 2
    });
    assert!(http::put(lagging.client, "x", "alone").is_err(), "one of three has no quorum");
    let _third = third.serve();
    assert_eq!(http::count(third.client, 'a'), Ok(u64::from(ACKNOWLEDGED)));
    wait_until("the lagging member has caught up", || {
        local_count(cluster, 1) == Some(u64::from(ACKNOWLEDGED))
    });
}

#[test]
fn nothing_acknowledged_is_lost_since_the_rolled_back_member_is_refused() {
    let (cluster, _) = roll_back("3.6");
    cluster.members[0].assert_refused("RolledBack");
    assert_nothing_is_lost(&cluster);
}

#[test]
fn nothing_acknowledged_is_lost_if_only_the_operator_remembers() {
    let (cluster, high_water) = roll_back("3.7");
    let member = cluster.members[0].clone().in_new_pod();
    member.variable("QUORATE_HIGH_WATER", high_water).assert_refused("RolledBack");
    assert_nothing_is_lost(&cluster);
}

/// The experiment itself: it must be able to show the loss, or the two tests above show nothing.
#[test]
fn without_a_mark_all_that_was_acknowledged_is_lost() {
    let (cluster, _) = roll_back("3.6");
    let forgetful = cluster.members[0].clone().in_new_pod();
    let _guards: [Guard; 2] = [forgetful.start(), cluster.members[1].start()];
    cluster.members[1].wait_until_serving();
    assert_eq!(http::count(cluster.members[1].client, 'a'), Ok(0));
}
