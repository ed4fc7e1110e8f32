//! What the apiserver refuses, and what ends in a condition and is cured by taking the edit back.

#[path = "../it/bad_input_files.rs"]
mod files;

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::support::{Story, eventually, identities, story};

#[tokio::test]
async fn the_apiserver_refuses_every_bad_input_with_the_fix() {
    story("bad", async |story| {
        for case in files::cases() {
            let kind = case.documents.last().and_then(|document| document["kind"].as_str()).unwrap();
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("quorate.dev", "v1alpha1", kind));
            let api: Api<DynamicObject> =
                Api::namespaced_with(story.client.clone(), &story.namespace, &resource);
            let refusal = refusal(&api, &case.documents).await;
            assert!(
                refusal.contains(&case.expect),
                "{}: expected {:?} in: {refusal}",
                case.file,
                case.expect
            );
        }
    })
    .await;
}

/// What the apiserver says of the last document; one before it is what exists already.
async fn refusal(api: &Api<DynamicObject>, documents: &[Value]) -> String {
    let (bad, before) = documents.split_last().expect("a case has a document");
    let parameters = PatchParams::apply("e2e").force();
    for document in before {
        // Nothing is started for a case.
        let mut idle = document.clone();
        let (field, value): (&str, Value) = if document["kind"] == "EtcdMirror" {
            ("state", "Stopped".into())
        } else {
            ("paused", true.into())
        };
        idle["spec"][field] = value;
        api.patch(name(document), &parameters, &Patch::Apply(&idle))
            .await
            .expect("what exists before is valid");
    }
    let dry = PatchParams { dry_run: true, ..parameters };
    let refused = api.patch(name(bad), &dry, &Patch::Apply(bad)).await;
    for document in before {
        api.delete(name(document), &DeleteParams::default()).await.unwrap();
    }
    match refused {
        Ok(_) => "it was accepted".to_owned(),
        Err(kube::Error::Api(status)) => status.message.clone(),
        Err(error) => error.to_string(),
    }
}

fn name(document: &Value) -> &str {
    document.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("main")
}

/// Breaks a first start by a spec that cannot be met, sees the condition, takes the edit back.
async fn cured(story: &Story, bad: Value, reason: &str, good: Value) {
    story.create(bad).await;
    let said = story.condition("Stalled", reason).await;
    story.condition("Ready", reason).await;
    let pods = async || {
        let pods = story.api::<Pod>().list(&ListParams::default()).await.unwrap().items;
        pods.into_iter().filter_map(|pod| pod.uid()).collect::<Vec<_>>()
    };
    let first =
        eventually("all Pods are made", async || Some(pods().await).filter(|pods| pods.len() == 3)).await;
    for _ in 0..30 {
        assert_eq!(pods().await, first, "Pods are made again and again: {said}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    story.patch(good).await;
    story.healthy().await;
}

#[tokio::test]
async fn a_cluster_that_finds_no_node_says_so_and_is_cured_by_the_revert() {
    let bad = json!({"placement": {"nodeSelector": {"disk": "nowhere"}}});
    story("unschedulable", async |story| {
        cured(story, bad, "Unschedulable", json!({"placement": {"nodeSelector": null}})).await;
    })
    .await;
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_is_said_and_cured_by_the_revert() {
    let bad = json!({"image": {"repository": "registry.invalid/etcd"}});
    story("image", async |story| cured(story, bad, "ImagePullFailed", json!({"image": null})).await).await;
}

#[tokio::test]
async fn a_missing_storage_class_is_said_and_cured_by_the_revert() {
    let bad = json!({"storage": {"storageClassName": "missing"}});
    story("class", async |story| {
        cured(story, bad, "StorageClassMissing", json!({"storage": {"storageClassName": "standard"}})).await;
    })
    .await;
}

#[tokio::test]
async fn damaged_secrets_are_said_healed_where_they_can_be_and_never_trusted() {
    story("secret", async |story| {
        story.create(json!({})).await;
        let before = identities(&story.healthy().await);
        let secrets: Api<Secret> = story.api();
        // The authorities: nobody but a person can bring them back.
        let whole = secrets.get("main-ca").await.unwrap();
        let mut damaged = whole.clone();
        damaged.data.get_or_insert_default().insert("client-ca.crt".to_owned(), ByteString(b"junk".to_vec()));
        secrets.replace("main-ca", &PostParams::default(), &damaged).await.unwrap();
        let said = story.condition("Stalled", "SecretDamaged").await;
        assert!(said.contains("main-ca") && said.contains("client-ca.crt"), "{said}");
        let mut restored = whole.clone();
        restored.metadata.resource_version = None;
        secrets.replace("main-ca", &PostParams::default(), &restored).await.unwrap();
        story.healthy().await;
        // A leaf is made anew.
        let patch = Patch::Merge(json!({"stringData": {"server.crt": "junk"}}));
        secrets.patch("main-1-tls", &PatchParams::default(), &patch).await.unwrap();
        let healed = async || {
            let secret = secrets.get("main-1-tls").await.ok()?;
            let certificate = secret.data?.remove("server.crt")?;
            certificate.0.starts_with(b"-----BEGIN CERTIFICATE").then_some(())
        };
        eventually("the leaf was made anew", healed).await;
        assert_eq!(identities(&story.healthy().await), before);
    })
    .await;
}

#[tokio::test]
async fn flags_that_etcd_does_not_know_are_cured_by_the_revert() {
    story("flags", async |story| {
        story.create(json!({"extraArgs": {"no-such-flag": "1"}})).await;
        let down = async || {
            let status = story.status().await;
            status
                .members
                .iter()
                .any(|member| member.message.as_deref().unwrap_or_default().contains("no-such-flag"))
                .then_some(())
        };
        eventually("the status tells etcd's last words", down).await;
        story.patch(json!({"extraArgs": null})).await;
        story.healthy().await;
    })
    .await;
}
