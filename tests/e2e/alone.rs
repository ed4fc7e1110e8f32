//! Stories that disturb the whole Kubernetes, so that no other may run beside them. Tests run in the order of their
//! names: these come first, when nothing has to wait for others to end.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::support::{cluster_tool, eventually, identities, measured, story_alone};

/// Longest time until an edit is seen after a restart of the apiserver.
const SEEN_WITHIN: Duration = Duration::from_secs(30);
/// Who takes the lease, and never renews it.
const THIEF: &str = "somebody-else";

#[tokio::test]
async fn a_restart_of_the_apiserver_changes_nothing() {
    story_alone("apiserver", async |story| {
        story.create(json!({})).await;
        let before = identities(&story.healthy().await);
        story.write("key-", 50).await;
        let uids = async || {
            let pods = story
                .api::<Pod>()
                .list(&ListParams::default().labels("quorate.dev/cluster=main"))
                .await
                .ok()?;
            Some(pods.items.iter().filter_map(ResourceExt::uid).collect::<Vec<_>>())
        };
        let pods = uids().await.unwrap();
        cluster_tool(&["restart-apiserver"]);
        story.write("after-", 50).await;
        assert_eq!(identities(&story.healthy().await), before);
        assert_eq!(eventually("the apiserver answers", uids).await, pods, "Pods were made anew");
        assert_eq!((story.count("main-0", "key-").await, story.count("main-0", "after-").await), (50, 50));

        // Every watch has ended, some more than once. What is new is seen all the same, and soon.
        let begun = Instant::now();
        story.patch(json!({"paused": true})).await;
        story.condition("Paused", "PausedByUser").await;
        let took = begun.elapsed();
        measured(&format!(
            "an edit after a restart of the apiserver: seen after {:.1} s",
            took.as_secs_f64()
        ));
        assert!(took < SEEN_WITHIN, "an edit was seen after {took:?}");
    })
    .await;
}

#[tokio::test]
async fn an_operator_whose_lease_is_taken_writes_nothing_more_and_starts_again() {
    story_alone("lease-taken", async |story| {
        let leases: Api<Lease> = Api::namespaced(story.client.clone(), "quorate-system");
        let holder = async || leases.get("quorate-operator").await.unwrap().spec?.holder_identity;
        let operators: Api<Pod> = Api::namespaced(story.client.clone(), "quorate-system");
        let first = eventually("somebody holds the lease", holder).await;
        let restarts = async || {
            let status = operators.get(&first).await.unwrap().status?;
            Some(status.container_statuses?.first()?.restart_count)
        };
        let before = eventually("the holder is an operator", restarts).await;
        let taken = Patch::Merge(json!({"spec": {"holderIdentity": THIEF, "leaseDurationSeconds": 15}}));
        leases.patch("quorate-operator", &PatchParams::default(), &taken).await.unwrap();
        let again = async || restarts().await.filter(|count| *count > before);
        eventually("the operator that lost the lease has ended", again).await;

        story.create(json!({"replicas": 1})).await;
        let mut looks = 0;
        let free = async || {
            let bootstrap = story.status().await.bootstrap;
            // Asked after the status: while it is still the thief's, nobody else may have written that.
            let free = holder().await.as_deref() != Some(THIEF);
            looks += 1;
            assert!(free || bootstrap.is_none(), "written without the lease: {bootstrap:?}");
            free.then_some(())
        };
        eventually("the lease has run out and an operator holds it", free).await;
        assert!(looks > 5, "the lease was looked at only {looks} times");
        story.healthy().await;
    })
    .await;
}
