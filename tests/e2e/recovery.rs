//! Pods come and go; members, their IDs and every acknowledged write stay.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::support::{eventually, identities, kill_in_pod, story};

#[tokio::test]
async fn pods_that_are_deleted_one_by_one_and_all_at_once_come_back_as_the_same_members() {
    story("pods", async |story| {
        story.create(json!({})).await;
        let before = identities(&story.healthy().await);
        story.write("first-", 50).await;
        for member in ["main-0", "main-1", "main-2"] {
            story.delete_pod(member).await;
            let back =
                async || story.pod(member).await.filter(|pod| pod.labels().contains_key("quorate.dev/role"));
            eventually("the Pod is back and lets clients in", back).await;
            assert_eq!(identities(&story.healthy().await), before);
        }
        story.write("second-", 50).await;
        let selector = ListParams::default().labels("quorate.dev/cluster=main");
        story.api::<Pod>().delete_collection(&DeleteParams::default(), &selector).await.unwrap();
        let gone = async || story.status().await.ready_replicas.lt(&3).then_some(());
        eventually("the operator has seen that Pods are gone", gone).await;
        assert_eq!(identities(&story.healthy().await), before);
        assert_eq!((story.count("main-0", "first-").await, story.count("main-2", "second-").await), (50, 50));
    })
    .await;
}

#[tokio::test]
async fn a_killed_etcd_and_a_killed_guard_are_started_again_in_place() {
    story("kill", async |story| {
        story.create(json!({})).await;
        let before = identities(&story.healthy().await);
        story.write("key-", 50).await;
        for (member, what) in [("main-0", "/usr/local/bin/etcd"), ("main-1", "quorate-guard")] {
            let pod = story.pod(member).await.unwrap();
            assert!(kill_in_pod(&pod.uid().unwrap(), what) > 0);
            let restarted = async || {
                let pod = story.pod(member).await?;
                let container = pod.status?.container_statuses?.first()?.clone();
                (container.restart_count > 0 && container.ready).then_some(())
            };
            eventually("the container was started again", restarted).await;
        }
        assert_eq!(identities(&story.healthy().await), before);
        assert_eq!(story.count("main-1", "key-").await, 50);
    })
    .await;
}

/// As a node leaves its Pods when it is shut down in an orderly way.
#[tokio::test]
async fn a_pod_that_has_ended_is_made_again_as_the_same_member() {
    story("ended", async |story| {
        story.create(json!({})).await;
        let before = identities(&story.healthy().await);
        story.write("key-", 50).await;
        let old = story.pod("main-1").await.unwrap().uid();
        let ended = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
        let pods = story.api::<Pod>();
        pods.patch_status("main-1", &PatchParams::default(), &ended).await.unwrap();
        let again = async || story.pod("main-1").await.filter(|pod| pod.uid() != old);
        eventually("the Pod is made again", again).await;
        assert_eq!(identities(&story.healthy().await), before);
        assert_eq!(story.count("main-1", "key-").await, 50);
    })
    .await;
}

#[tokio::test]
async fn a_paused_cluster_is_left_alone() {
    story("paused", async |story| {
        story.create(json!({})).await;
        story.healthy().await;
        story.patch(json!({"paused": true})).await;
        story.condition("Paused", "PausedByUser").await;
        story.delete_pod("main-2").await;
        story.member_health("main-2", "MemberDown").await;
        assert!(story.pod("main-2").await.is_none(), "a Pod was made although the cluster is paused");
        story.patch(json!({"paused": false})).await;
        story.healthy().await;
    })
    .await;
}

#[tokio::test]
async fn a_deleted_cluster_keeps_its_volumes_and_goes_on_with_them_when_told_to() {
    story("again", async |story| {
        let first = story.create(json!({})).await;
        let before = identities(&story.healthy().await);
        story.write("kept-", 100).await;
        delete(story).await;

        // Made anew without a word about the volumes: an empty cluster of new names beside them.
        story.create(json!({})).await;
        let beside = story.healthy().await;
        assert_eq!(
            beside.members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>(),
            ["main-3", "main-4", "main-5"]
        );
        assert_eq!(story.count("main-3", "kept-").await, 0);
        let said = story.condition("ForeignVolumes", "ForeignVolume").await;
        assert!(said.contains("main-0") && said.contains(&first.uid().unwrap()), "{said}");
        delete(story).await;

        // Made anew with the old UID: the same members, the same data.
        story.create_annotated(json!({}), json!({"quorate.dev/adopt": first.uid().unwrap()})).await;
        assert_eq!(identities(&story.healthy().await), before);
        assert_eq!(story.count("main-1", "kept-").await, 100);
    })
    .await;
}

async fn delete(story: &crate::support::Story) {
    story.api::<quorate::api::EtcdCluster>().delete("main", &DeleteParams::default()).await.unwrap();
    let gone = async || {
        let pods =
            story.api::<Pod>().list(&ListParams::default().labels("quorate.dev/cluster=main")).await.unwrap();
        pods.items.is_empty().then_some(())
    };
    eventually("the cluster's Pods are gone", gone).await;
}
