//! Members whose data are harmed heal under load; what cannot be known is refused. Each is a cell of the fault matrix.

use std::time::Instant;

use quorate::api::cluster::MemberStatus;
use serde_json::json;

use crate::faults::Fault;
use crate::faults::cell::cell;
use crate::faults::harm::change_value_unnoticed;
use crate::support::{eventually, measured, story};

/// Does it to one of three members.
async fn heals(version: &str, fault: Fault) {
    story(&format!("heal{}", (fault as u8)), async |story| {
        story.create(json!({"version": version})).await;
        story.healthy().await;
        let told = cell(story, fault, false).await;
        let verdict = told.verdict.expect("it was under load");
        measured(&format!(
            "{fault:?} on {version}: three voters again after {:.1} s; {}",
            told.took.as_secs_f64(),
            verdict.summary()
        ));
    })
    .await;
}

#[tokio::test]
async fn a_wiped_volume_is_wiped_in_place() {
    heals("3.6", Fault::VolumeWiped).await;
}

#[tokio::test]
async fn a_lost_log_heals() {
    heals("3.7", Fault::WalGone).await;
}

#[tokio::test]
async fn a_lost_database_heals() {
    heals("3.5", Fault::DatabaseGone).await;
}

#[tokio::test]
async fn rolled_back_data_heal() {
    heals("3.6", Fault::RolledBack).await;
}

#[tokio::test]
async fn a_damaged_log_heals() {
    heals("3.6", Fault::WalDamaged).await;
}

#[tokio::test]
async fn a_damaged_database_heals() {
    heals("3.6", Fault::DatabaseBegun).await;
}

#[tokio::test]
async fn a_deleted_claim_is_exchanged_before_it_is_missed() {
    heals("3.6", Fault::ClaimDeleted).await;
}

#[tokio::test]
async fn a_pod_and_its_claim_deleted_together_are_replaced() {
    heals("3.6", Fault::PodAndClaimDeleted).await;
}

#[tokio::test]
async fn a_value_changed_in_one_member_is_found_and_the_others_are_believed() {
    heals("3.7", Fault::ValueChanged).await;
}

/// Nobody is restarted: the leader compares what each holds after a compaction, and raises CORRUPT, which refuses writes.
#[tokio::test]
async fn a_corrupt_alarm_is_answered_by_a_comparison_and_disarmed() {
    story("corrupt", async |story| {
        story.create(json!({"extraArgs": {"compact-hash-check-time": "5s"}})).await;
        let before = story.healthy().await;
        let leads = |member: &&MemberStatus| member.role == "leader";
        let follower = before.members.iter().find(|member| !leads(member)).unwrap().clone();
        story.write("key-", 200).await;
        change_value_unnoticed(story, &follower.name).await;
        let mut etcd = story.etcd(&before.leader.clone().unwrap()).await;
        let revision = etcd.status().await.unwrap().header().unwrap().revision();
        etcd.compact(revision - 1, None).await.unwrap();
        let begun = Instant::now();
        let alarmed = async || (!story.status().await.alarms.is_empty()).then_some(());
        eventually("CORRUPT is told", alarmed).await;
        let told = begun.elapsed();
        let writes = async || etcd.put("after", "acknowledged", None).await.ok();
        eventually("writes go on", writes).await;
        let served = begun.elapsed();
        let replaced = async || {
            let status = story.status().await;
            let gone = status.members.iter().all(|member| member.member_id != follower.member_id);
            (gone && status.ready.as_deref() == Some("3/3") && status.alarms.is_empty()).then_some(status)
        };
        let after = eventually("whoever differed has joined anew", replaced).await;
        for member in before.members.iter().filter(|member| member.name != follower.name) {
            assert!(after.members.iter().any(|other| other.member_id == member.member_id), "{after:?}");
        }
        assert_eq!(story.count(&follower.name, "key-").await, 200);
        measured(&format!(
            "CORRUPT: told {:.1} s after the compaction, writes again after {:.1} s, three voters after {:.1} s",
            told.as_secs_f64(),
            served.as_secs_f64(),
            begun.elapsed().as_secs_f64()
        ));
    })
    .await;
}

#[tokio::test]
async fn two_of_three_wiped_are_refused() {
    story("two", async |story| {
        story.create(json!({})).await;
        story.healthy().await;
        let told = cell(story, Fault::MostWiped, false).await;
        measured(&format!(
            "two of three wiped: refused after {:.1} s, and all is there when they are put back",
            told.took.as_secs_f64()
        ));
    })
    .await;
}
