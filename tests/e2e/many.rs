//! Many clusters at once, and bad ones among them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ResourceQuota};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use quorate::api::EtcdCluster;
use serde_json::json;

use crate::operator::{Operator, writes};
use crate::support::{Story, eventually, full, kubectl, measured, story_alone};

#[tokio::test]
async fn clusters_applied_at_once_are_all_ready_soon() {
    story_alone("many", async |story| {
        let clusters = if full() { 20 } else { 6 };
        let operator = Operator::find(&story.client).await;
        let (metrics, cpu) = (operator.metrics(), operator.cpu_seconds());
        let begun = Instant::now();
        let members = apply(story, clusters).await;
        let mut times = ready_times(story, clusters, begun).await;
        let wall = begun.elapsed().as_secs_f64();
        let (after, cpu) = (operator.metrics(), operator.cpu_seconds() - cpu);
        let grown = |name: &str| after.get(name).unwrap_or(&0.0) - metrics.get(name).unwrap_or(&0.0);
        let busy = grown("quorate_reconcile_duration_seconds_sum");
        let count = grown("quorate_reconcile_duration_seconds_count");
        times.sort_by(f64::total_cmp);
        let waited: f64 = times.iter().sum();
        measured(&format!(
            "{clusters} clusters of {members} members at once: Ready after {:.1} / {:.1} / {:.1} s (min / median / max); operator: {cpu:.1} s of processor = {:.0} % of a core; {count} reconciles that took {busy:.1} s in all, waiting for answers included = {:.0} % of the clusters' {waited:.0} s",
            times[0],
            times[clusters / 2],
            times[clusters - 1],
            cpu / wall * 100.0,
            busy / waited * 100.0,
        ));
        series_follow(story, &operator).await;
    })
    .await;
}

/// Makes the clusters, each third of three members; returns how many members there are.
async fn apply(story: &Story, clusters: usize) -> usize {
    let sizes: Vec<usize> = (0..clusters).map(|number| if number % 3 == 0 { 3 } else { 1 }).collect();
    let made = sizes.iter().enumerate().map(async |(number, size)| {
        story.create_named(&format!("many-{number}"), json!({"replicas": size})).await;
    });
    futures::future::join_all(made).await;
    sizes.iter().sum()
}

/// Seconds from `begun` until each was Ready first.
async fn ready_times(story: &Story, clusters: usize, begun: Instant) -> Vec<f64> {
    let mut times = BTreeMap::new();
    let all = async || {
        let list = story.api::<EtcdCluster>().list(&ListParams::default()).await.unwrap();
        for cluster in list.items.iter().filter(|cluster| is_ready(cluster)) {
            times.entry(cluster.name_any()).or_insert_with(|| begun.elapsed().as_secs_f64());
        }
        (times.len() == clusters).then_some(())
    };
    eventually("all clusters are Ready", all).await;
    times.into_values().collect()
}

fn is_ready(cluster: &EtcdCluster) -> bool {
    let conditions = cluster.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The operator's metrics tell of every cluster; one that is deleted leaves no series.
async fn series_follow(story: &Story, operator: &Operator) {
    let series = |name: &str| {
        let labels = format!("{{namespace=\"{}\",name=\"{name}\"", story.namespace);
        operator.metrics().into_keys().filter(|series| series.contains(&labels)).collect::<Vec<_>>()
    };
    for metric in ["cluster_ready", "cluster_db_bytes", "cluster_cert_expiry_timestamp_seconds"] {
        let told = series("many-0");
        assert!(
            told.iter().any(|series| series.contains(&format!("quorate_{metric}"))),
            "{metric}: {told:?}"
        );
    }
    story.api::<EtcdCluster>().delete("many-0", &DeleteParams::default()).await.unwrap();
    let gone = async || series("many-0").is_empty().then_some(());
    eventually("a deleted cluster leaves no series", gone).await;
    assert!(!series("many-1").is_empty());
}

#[tokio::test]
async fn one_bad_object_never_stops_the_others() {
    story_alone("good", async |good| {
        let bad = Story { client: good.client.clone(), namespace: format!("{}-bad", good.namespace) };
        make_bad_namespace(&bad).await;
        store_what_cannot_be_read(&bad).await;
        bad.create(json!({})).await;
        good.create(json!({})).await;
        good.create_named("single", json!({"replicas": 1})).await;
        good.healthy().await;

        // The bad ones say why.
        let refused = bad.condition("Ready", "ReconcileError").await;
        assert!(refused.contains("exceeded quota") && !refused.contains("Status {"), "{refused}");
        let unreadable = condition(&bad, "unreadable", "Stalled").await;
        assert!(unreadable.contains("spec.logLevel: unknown variant `Loud`"), "{unreadable}");

        // Nor do they stop an operator that starts.
        let operator = Operator::find(&good.client).await.replace().await;
        good.delete_pod("main-1").await;
        good.healthy().await;

        back_off_is_kept(&bad).await;
        assert!(operator.metrics().keys().any(|series| series.contains("result=\"apply\"")));

        // And each is cured by taking away what was wrong.
        let quotas: Api<ResourceQuota> = bad.api();
        quotas.delete("none", &DeleteParams::default()).await.unwrap();
        let cure = r#"{"spec":{"logLevel":"Info"}}"#;
        kubectl(&["-n", &bad.namespace, "patch", "ec", "unreadable", "--type=merge", "-p", cure]);
        bad.healthy().await;
        let list = async || {
            let list = bad.api::<EtcdCluster>().list(&ListParams::default()).await.unwrap();
            (list.items.len() == 2 && list.items.iter().all(is_ready)).then_some(())
        };
        eventually("both bad ones are Ready", list).await;
        let namespaces: Api<Namespace> = Api::all(bad.client.clone());
        namespaces.delete(&bad.namespace, &DeleteParams::default()).await.unwrap();
    })
    .await;
}

/// A namespace in which no volume may be made.
async fn make_bad_namespace(bad: &Story) {
    let namespaces: Api<Namespace> = Api::all(bad.client.clone());
    let namespace = json!({"metadata": {"name": bad.namespace}});
    namespaces.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap();
    let quota = json!({
        "metadata": {"name": "none"},
        "spec": {"hard": {"persistentvolumeclaims": "0"}},
    });
    let quotas: Api<ResourceQuota> = bad.api();
    quotas.create(&PostParams::default(), &serde_json::from_value(quota).unwrap()).await.unwrap();
}

/// An EtcdCluster with a word that the operator does not know, as one that was stored by a newer version.
async fn store_what_cannot_be_read(bad: &Story) {
    let word = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/logLevel/enum/-";
    let patch = json!([{"op": "add", "path": word, "value": "Loud"}]).to_string();
    kubectl(&["patch", "crd", "etcdclusters.quorate.dev", "--type=json", "-p", &patch]);
    let resource = kube::core::ApiResource::erase::<EtcdCluster>(&());
    let api: Api<kube::api::DynamicObject> =
        Api::namespaced_with(bad.client.clone(), &bad.namespace, &resource);
    let object = json!({
        "apiVersion": "quorate.dev/v1alpha1",
        "kind": "EtcdCluster",
        "metadata": {"name": "unreadable"},
        "spec": {"replicas": 1, "logLevel": "Loud"},
    });
    let object: kube::api::DynamicObject = serde_json::from_value(object).unwrap();
    let stored = async || api.create(&PostParams::default(), &object).await.ok();
    eventually("the apiserver takes the new word", stored).await;
    let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/etcdclusters.yaml");
    kubectl(&["apply", "--server-side", "--force-conflicts", "-f", crds]);
    let mut dry = PostParams { dry_run: true, ..PostParams::default() };
    dry.field_manager = Some("e2e".to_owned());
    let mut another = object.clone();
    another.metadata.name = Some("another".to_owned());
    let refused = async || api.create(&dry, &another).await.is_err().then_some(());
    eventually("the apiserver knows the new word no more", refused).await;
}

/// The message of a condition of a cluster.
async fn condition(story: &Story, name: &str, type_: &str) -> String {
    let message = async || {
        let cluster = kubectl(&["-n", &story.namespace, "get", "ec", name, "-o", "json"]);
        let cluster: serde_json::Value = serde_json::from_str(&cluster).unwrap();
        let conditions = cluster["status"]["conditions"].as_array()?.clone();
        let found = conditions.iter().find(|condition| condition["type"] == type_)?;
        Some(found["message"].as_str()?.to_owned())
    };
    eventually(&format!("{name} has the condition {type_}"), message).await
}

/// What is refused is tried again later and later: pauses grow to between 15 and 30 s, so in the end there are at most
/// three tries in any 30 s.
async fn back_off_is_kept(bad: &Story) {
    let mut since = Timestamp::now();
    let tries =
        |since| writes(since).into_iter().filter(|write| write.object.starts_with(&bad.namespace)).count();
    let window = Duration::from_secs(30);
    let rare = async || {
        let begun = Instant::now();
        since = Timestamp::now();
        tokio::time::sleep(window).await;
        let (tries, time) = (tries(since), begun.elapsed().as_secs());
        measured(&format!("a cluster whose volumes are refused: {tries} writes in {time} s"));
        (tries <= 3).then_some(())
    };
    eventually("back-off has grown", rare).await;
}
