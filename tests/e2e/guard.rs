//! What the guard refuses, on real volumes: a member that cannot prove its data never votes.

use std::fs;
use std::path::Path;
use std::time::Duration;

use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use quorate::api::EtcdCluster;
use serde_json::json;

use crate::faults::harm::exchange;
use crate::support::{Story, copy, eventually, identities, kill_in_pod, story};

/// Ends the container's processes at once, so that the kubelet starts the container again in the same Pod.
async fn restart_container(story: &Story, member: &str) {
    let pod = story.pod(member).await.unwrap();
    assert!(kill_in_pod(&pod.uid().unwrap(), "") > 0, "no process of {member} was found");
}

async fn pause(story: &Story, paused: bool) {
    let patch = Patch::Merge(json!({"spec": {"paused": paused}}));
    story.api::<EtcdCluster>().patch("main", &PatchParams::default(), &patch).await.unwrap();
    let observed = async || {
        let cluster = story.cluster().await;
        let status = cluster.status.unwrap_or_default();
        let now = status.conditions.iter().any(|condition| condition.type_ == "Paused");
        (status.observed_generation == cluster.metadata.generation && now == paused).then_some(())
    };
    eventually("the pause is observed", observed).await;
}

/// A copy of the member's data as they are now, made while no process has them open.
async fn copy_of_data(story: &Story, member: &str, to: &Path) {
    pause(story, true).await;
    story.delete_pod(member).await;
    copy(&story.volume(member).await.join("data/member"), to);
    pause(story, false).await;
    story.healthy().await;
}

fn replace(data: &Path, with: &Path) {
    fs::remove_dir_all(data).unwrap();
    copy(with, data);
}

#[tokio::test]
async fn a_volume_wiped_under_a_running_pod_is_data_lost_and_never_votes() {
    story("wiped", async |story| {
        story.create(json!({"repair": {"mode": "Manual"}})).await;
        let before = identities(&story.healthy().await);
        story.write("key-", 50).await;
        let volume = story.volume("main-1").await;
        for entry in fs::read_dir(&volume).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }
        restart_container(story, "main-1").await;
        let said = story.condition("Stalled", "DataLost").await;
        assert!(said.contains("main-1"), "{said}");
        story.member_health("main-1", "DataLost").await;
        // A new Pod on the same empty volume is no way around it.
        story.delete_pod("main-1").await;
        let refused_again = async || {
            let pod = story.pod("main-1").await?;
            let container = pod.status?.container_statuses?.first()?.clone();
            let message = container.state?.terminated.or(container.last_state?.terminated)?.message?;
            message.contains("DataLost").then_some(())
        };
        eventually("the new Pod's guard refuses too", refused_again).await;
        assert!(!volume.join("data/member").exists(), "etcd was started on a wiped volume");
        assert_eq!(story.count("main-0", "key-").await, 50);
        story.write("after-", 20).await;
        let status = story.status().await;
        assert_eq!(identities(&status), before);
        assert_eq!(status.ready.as_deref(), Some("2/3"));
    })
    .await;
}

#[tokio::test]
async fn a_second_process_on_a_volume_is_refused() {
    story("second", async |story| {
        story.create(json!({"replicas": 1})).await;
        story.healthy().await;
        let volume = story.volume("main-0").await;
        let lock = fs::File::open(&volume).unwrap();
        assert!(lock.try_lock().is_err(), "the volume of a running member can be locked by another process");
        // The other way round: while somebody else holds the volume, etcd is not started.
        pause(story, true).await;
        story.delete_pod("main-0").await;
        lock.lock().unwrap();
        pause(story, false).await;
        story.member_health("main-0", "VolumeInUse").await;
        lock.unlock().unwrap();
        story.healthy().await;
    })
    .await;
}

async fn swapped(story: &Story, part: &str) {
    story.create(json!({"repair": {"mode": "Manual"}})).await;
    let before = identities(&story.healthy().await);
    story.write("key-", 20).await;
    let (first, second) = (story.volume("main-0").await.join(part), story.volume("main-1").await.join(part));
    pause(story, true).await;
    story.delete_pod("main-0").await;
    story.delete_pod("main-1").await;
    exchange(&first, &second);
    pause(story, false).await;
    story.member_health("main-0", "ForeignVolume").await;
    story.member_health("main-1", "ForeignVolume").await;
    story.condition("Ready", "QuorumLost").await;
    // Put back, everything goes on as if nothing had been.
    pause(story, true).await;
    story.delete_pod("main-0").await;
    story.delete_pod("main-1").await;
    exchange(&first, &second);
    pause(story, false).await;
    assert_eq!(identities(&story.healthy().await), before);
    assert_eq!(story.count("main-0", "key-").await, 20);
}

#[tokio::test]
async fn two_members_volumes_exchanged_are_foreign() {
    story("swapped", async |story| swapped(story, "").await).await;
}

#[tokio::test]
async fn two_members_data_exchanged_are_foreign() {
    story("swapped-data", async |story| swapped(story, "data/member").await).await;
}

#[tokio::test]
async fn an_older_copy_of_the_data_is_rolled_back_in_the_same_pod_and_in_a_new_one() {
    story("rolled", async |story| {
        story.create(json!({"repair": {"mode": "Manual"}})).await;
        story.healthy().await;
        let keep = tempfile::tempdir().unwrap();
        let (old, new) = (keep.path().join("old"), keep.path().join("new"));
        copy_of_data(story, "main-2", &old).await;
        story.write("later-", 300).await;
        let data = story.volume("main-2").await.join("data/member");

        // In the same Pod: the mark lies beside the guard.
        let marked = async || fs::read_dir(&data).is_ok().then_some(());
        eventually("the member has data", marked).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        fs::rename(&data, &new).unwrap();
        copy(&old, &data);
        restart_container(story, "main-2").await;
        story.condition("Stalled", "RolledBack").await;
        // In a new Pod: the mark comes from the operator.
        story.delete_pod("main-2").await;
        let refused = async || {
            let pod = story.pod("main-2").await?;
            let container = pod.status?.container_statuses?.first()?.clone();
            container
                .state?
                .terminated
                .or(container.last_state?.terminated)?
                .message?
                .contains("RolledBack")
                .then_some(())
        };
        eventually("the new Pod's guard refuses too", refused).await;
        // The newest data are taken back.
        replace(&data, &new);
        story.healthy().await;
        assert_eq!(story.count("main-2", "later-").await, 300);
    })
    .await;
}

/// The experiment behind the guard: one member lags, one is rolled back, and the two would elect a leader that has
/// never heard of 200 acknowledged writes.
#[tokio::test]
async fn a_lagging_and_a_rolled_back_member_never_lose_acknowledged_writes() {
    story("amnesia", async |story| {
        story.create(json!({"repair": {"mode": "Manual"}})).await;
        story.healthy().await;
        let keep = tempfile::tempdir().unwrap();
        let old = keep.path().join("old");
        copy_of_data(story, "main-0", &old).await;
        // main-1 lags: it is away while 200 writes are acknowledged by the other two.
        pause(story, true).await;
        story.delete_pod("main-1").await;
        story.write("acknowledged-", 200).await;
        story.member_health("main-0", "Healthy").await;
        story.delete_pod("main-0").await;
        story.delete_pod("main-2").await;
        replace(&story.volume("main-0").await.join("data/member"), &old);
        // main-2, which has them all, is kept away: another process holds its volume.
        let lock = fs::File::open(story.volume("main-2").await).unwrap();
        lock.lock().unwrap();
        pause(story, false).await;
        story.member_health("main-0", "RolledBack").await;
        story.member_health("main-2", "VolumeInUse").await;
        // Whether main-1 answers at all depends on whether it still serves from before: an etcd that starts without a
        // majority does not.
        story.condition("Ready", "QuorumLost").await;
        // main-1 alone must not lead: a linearizable read is not answered.
        let read = async {
            let mut etcd = story.etcd("main-1").await;
            etcd.get("acknowledged-0", None).await
        };
        let answer = tokio::time::timeout(Duration::from_secs(8), read).await;
        assert!(!matches!(answer, Ok(Ok(_))), "a member that lags served a linearizable read");
        lock.unlock().unwrap();
        let two = async || (story.status().await.ready.as_deref() == Some("2/3")).then_some(());
        eventually("main-1 and main-2 serve", two).await;
        assert_eq!(story.count("main-1", "acknowledged-").await, 200);
    })
    .await;
}
