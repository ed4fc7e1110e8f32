//! Members whose data are harmed heal under load; what cannot be known is refused. Each is a cell of the fault matrix.

use serde_json::json;

use crate::faults::Fault;
use crate::faults::cell::cell;
use crate::support::{measured, story};

/// Does it to one of three members.
async fn heals(version: &str, fault: Fault) {
    story(&format!("heal{}", (fault as u8)), async |story| {
        story.create(json!({"version": version})).await;
        let told = cell(story, fault).await;
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

#[tokio::test]
async fn two_of_three_wiped_are_refused() {
    story("two", async |story| {
        story.create(json!({})).await;
        let told = cell(story, Fault::MostWiped).await;
        measured(&format!(
            "two of three wiped: refused after {:.1} s, and all is there when they are put back",
            told.took.as_secs_f64()
        ));
    })
    .await;
}
