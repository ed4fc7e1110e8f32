//! A first start goes to its one end whatever happens to the operator and the spec in between.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::support::{Story, eventually, kill_in_pod, story};

/// Kills -9 every operator process that runs now.
async fn kill_operators(story: &Story) -> usize {
    let api: Api<Pod> = Api::namespaced(story.client.clone(), "quorate-system");
    let pods = api.list(&ListParams::default().labels("app.kubernetes.io/component=operator")).await.unwrap();
    pods.items.iter().filter_map(ResourceExt::uid).map(|uid| kill_in_pod(&uid, "quorate operator")).sum()
}

/// Cluster IDs that any member of any Pod reports, and those on record.
async fn cluster_ids(story: &Story) -> BTreeSet<String> {
    if story.api::<Secret>().get_opt("main-client").await.unwrap().is_none() {
        return BTreeSet::new();
    }
    let survey = quorate::etcd::survey::survey(story.addresses().await, Some(&story.identity().await)).await;
    let mut ids: BTreeSet<String> =
        survey.values().flatten().map(|answer| answer.cluster_id.to_string()).collect();
    ids.extend(story.status().await.cluster_id);
    ids
}

#[tokio::test]
async fn an_operator_killed_twenty_times_during_the_first_start_forms_one_cluster() {
    story("killed", async |story| {
        story.create(json!({})).await;
        let mut seen = BTreeSet::new();
        let mut killed = 0;
        let twenty = async || {
            killed += usize::from(kill_operators(story).await > 0);
            seen.extend(cluster_ids(story).await);
            (killed >= 20).then_some(())
        };
        eventually("operators were killed twenty times", twenty).await;
        let status = story.healthy().await;
        seen.extend(cluster_ids(story).await);
        assert_eq!(seen.len(), 1, "more than one cluster was formed: {seen:?}");
        assert_eq!(status.members.len(), 3);
    })
    .await;
}

#[tokio::test]
async fn replicas_edited_during_the_first_start_never_make_a_second_cluster() {
    story("edited", async |story| {
        story.create(json!({"replicas": 3})).await;
        let begun = async || story.status().await.bootstrap;
        let bootstrap = eventually("the first start is on record", begun).await;
        let mut seen = BTreeSet::new();
        for replicas in [1, 5] {
            story.patch(json!({"replicas": replicas})).await;
            seen.extend(cluster_ids(story).await);
        }
        let status = story.healthy().await;
        seen.extend(cluster_ids(story).await);
        assert_eq!(seen.len(), 1, "more than one cluster was formed: {seen:?}");
        assert_eq!(status.bootstrap, Some(bootstrap), "the first start was of three");
        assert_eq!(status.members.len(), 5, "and then two joined");
    })
    .await;
}
