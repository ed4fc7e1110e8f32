//! Members whose data are harmed heal under load; what cannot be known is refused.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use quorate::api::EtcdMemberReplacement;
use quorate::api::replacement::Phase;
use serde_json::json;

use crate::support::{Story, copy, eventually, kill_in_pod, measured, story};

/// What is done to a member's volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Wiped,
    WalGone,
    DatabaseGone,
    RolledBack,
    WalDamaged,
    DatabaseDamaged,
    ClaimDeleted,
    PodAndClaimDeleted,
    ValueChanged,
}

/// Segments of the log, in their order.
fn segments(volume: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(volume.join("data/member/wal")).unwrap().flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "wal"))
        .collect();
    found.sort();
    found
}

/// Changes what is in the database and leaves its form as it is: pages carry no checksum. Old copies of a page are
/// changed along, so nothing but the value differs.
fn change_value(database: &Path) {
    let bytes = fs::read(database).unwrap();
    let (from, to) = (b"acknowledged", b"acknowledgeD");
    let places: Vec<u64> =
        (0_u64..).zip(bytes.windows(from.len())).filter(|(_, part)| part == from).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "the value is not in the database");
    let file = fs::File::options().write(true).open(database).unwrap();
    for at in places {
        file.write_all_at(to, at).unwrap();
    }
}

/// Kills the guard, so that it cannot start etcd again meanwhile, then etcd, then does it; the kubelet starts both anew.
async fn harm(story: &Story, member: &str, kind: Harm, older: &Path) {
    let volume = story.volume(member).await;
    let pod = story.pod(member).await.unwrap().uid().unwrap();
    let damage = |path: &Path, at: u64| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(vec![0xa5; 65536].as_slice(), at).unwrap();
    };
    let data = volume.join("data/member");
    let claims = || story.api::<PersistentVolumeClaim>();
    match kind {
        Harm::ClaimDeleted => drop(claims().delete(member, &DeleteParams::default()).await.unwrap()),
        Harm::PodAndClaimDeleted => {
            claims().delete(member, &DeleteParams::default()).await.unwrap();
            story.delete_pod(member).await;
        }
        Harm::Wiped => {
            for entry in fs::read_dir(&volume).unwrap().flatten() {
                let path = entry.path();
                if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
            }
        }
        Harm::WalGone => fs::remove_dir_all(data.join("wal")).unwrap(),
        Harm::DatabaseGone => fs::remove_file(data.join("snap/db")).unwrap(),
        Harm::RolledBack => {
            fs::remove_dir_all(&data).unwrap();
            copy(older, &data);
        }
        Harm::WalDamaged => damage(segments(&volume).first().unwrap(), 4096),
        Harm::DatabaseDamaged => damage(&data.join("snap/db"), 0),
        Harm::ValueChanged => change_value(&data.join("snap/db")),
    }
    kill_in_pod(&pod, "");
}

/// Harms main-1 under load, and waits until three members vote and nothing is left to do.
async fn heals(version: &str, kind: Harm) {
    story(&format!("heal{}", (kind as u8)), async |story| {
        story.create(json!({"version": version})).await;
        let before = story.healthy().await;
        let older = tempfile();
        let faults = async {
            story.write("before-", 100).await;
            copy(&story.volume("main-1").await.join("data/member"), &older);
            story.write("after-", 200).await;
            let begun = Instant::now();
            harm(story, "main-1", kind, &older).await;
            let old = before.members[1].member_id.clone();
            let healed = async || {
                let status = story.status().await;
                let gone = status.members.iter().all(|member| member.member_id != old);
                let whole = status.ready.as_deref() == Some("3/3");
                (gone && whole && status.members.len() == 3 && status.summary.as_deref() == Some("Healthy"))
                    .then_some(status)
            };
            (eventually(&format!("{kind:?} on {version} is healed"), healed).await, begun.elapsed())
        };
        let ((status, took), verdict) = story.under_load(faults).await;
        fs::remove_dir_all(&older).unwrap();
        let again = status.members.iter().any(|member| member.name == "main-1");
        let kept = !matches!(kind, Harm::ClaimDeleted | Harm::PodAndClaimDeleted);
        assert_eq!(again, kept, "{:?}", status.members);
        assert_eq!(story.count(&status.members[0].name, "after-").await, 200);
        let requests = story.api::<EtcdMemberReplacement>().list(&ListParams::default()).await.unwrap().items;
        let phases: Vec<_> =
            requests.iter().map(|request| request.status.clone().unwrap_or_default().phase).collect();
        assert_eq!(phases, [Some(Phase::Complete)], "{requests:?}");
        let seconds = took.as_secs_f64();
        measured(&format!(
            "{kind:?} on {version}: three voters again after {seconds:.1} s; {}",
            verdict.summary()
        ));
    })
    .await;
}

fn tempfile() -> PathBuf {
    std::env::temp_dir().join(format!("quorate-older-{:08x}", rand::random::<u32>()))
}

#[tokio::test]
async fn a_wiped_volume_is_wiped_in_place() {
    heals("3.6", Harm::Wiped).await;
}

#[tokio::test]
async fn a_lost_log_heals() {
    heals("3.7", Harm::WalGone).await;
}

#[tokio::test]
async fn a_lost_database_heals() {
    heals("3.5", Harm::DatabaseGone).await;
}

#[tokio::test]
async fn rolled_back_data_heal() {
    heals("3.6", Harm::RolledBack).await;
}

#[tokio::test]
async fn a_damaged_log_heals() {
    heals("3.6", Harm::WalDamaged).await;
}

#[tokio::test]
async fn a_damaged_database_heals() {
    heals("3.6", Harm::DatabaseDamaged).await;
}

#[tokio::test]
async fn a_deleted_claim_is_exchanged_before_it_is_missed() {
    heals("3.6", Harm::ClaimDeleted).await;
}

#[tokio::test]
async fn a_pod_and_its_claim_deleted_together_are_replaced() {
    heals("3.6", Harm::PodAndClaimDeleted).await;
}

#[tokio::test]
async fn a_value_changed_in_one_member_is_found_and_the_others_are_believed() {
    heals("3.7", Harm::ValueChanged).await;
}

#[tokio::test]
async fn two_of_three_wiped_are_refused() {
    story("two", async |story| {
        story.create(json!({})).await;
        let before = story.healthy().await;
        story.write("key-", 50).await;
        let older = tempfile();
        harm(story, "main-0", Harm::Wiped, &older).await;
        harm(story, "main-1", Harm::Wiped, &older).await;
        let said = story.condition("Ready", "QuorumLost").await;
        assert!(said.contains("main-0") && said.contains("main-1"), "{said}");
        story.member_health("main-0", "DataLost").await;
        story.member_health("main-1", "DataLost").await;
        // Nothing was given up, nobody was removed, and the survivor's data are as they were.
        let after = story.status().await;
        assert_eq!(crate::support::identities(&after), crate::support::identities(&before));
        let requests = story.api::<EtcdMemberReplacement>().list(&ListParams::default()).await.unwrap().items;
        assert!(requests.is_empty(), "{requests:?}");
        assert!(story.volume("main-2").await.join("data/member/snap/db").exists());
    })
    .await;
}
