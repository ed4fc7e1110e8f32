//! Stories that disturb the whole Kubernetes, so that no other may run beside them. Tests run in the order of their
//! names: these come first, when nothing has to wait for others to end.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;

use crate::support::{cluster_tool, eventually, identities, story_alone};

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
    })
    .await;
}
