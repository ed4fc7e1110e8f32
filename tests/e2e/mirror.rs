//! EtcdMirrors: two EtcdClusters, and an agent between them.

use std::collections::BTreeMap;

use etcd_client::GetOptions;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use quorate::api::EtcdMirror;
use quorate::api::mirror::EtcdMirrorStatus;
use quorate::etcd::connect::{Address, ClientIdentity, connect};
use serde_json::{Value, json};

use crate::support::{Story, eventually, measured, quorate, story};

type Keys = BTreeMap<Vec<u8>, Vec<u8>>;

/// Waits until the newest spec was observed and it is so.
async fn until(story: &Story, what: &str, is_so: impl Fn(&EtcdMirrorStatus) -> bool) -> EtcdMirrorStatus {
    let found = async || {
        let mirror = story.api::<EtcdMirror>().get("pair").await.ok()?;
        let observed = mirror.status.as_ref()?.observed_generation == mirror.metadata.generation;
        mirror.status.filter(|status| observed && is_so(status))
    };
    eventually(&format!("the mirror {what}"), found).await
}

fn says(words: &'static str) -> impl Fn(&EtcdMirrorStatus) -> bool {
    move |status| status.summary.as_ref().is_some_and(|summary| summary.starts_with(words))
}

async fn change(story: &Story, spec: Value) {
    let patch = Patch::Merge(json!({"spec": spec}));
    story.api::<EtcdMirror>().patch("pair", &PatchParams::default(), &patch).await.unwrap();
}

async fn kill_agents(story: &Story) -> usize {
    let pods = story.api::<Pod>();
    let agents = pods.list(&ListParams::default().labels("quorate.dev/mirror=pair")).await.unwrap().items;
    for pod in &agents {
        drop(pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await);
    }
    agents.len()
}

/// All keys of a cluster of one member but the mirrors' own, by a linearizable read; `None`: it does not answer.
async fn held(story: &Story, cluster: &str) -> Option<Keys> {
    let secret: Secret = story.api().get(&format!("{cluster}-client")).await.ok()?;
    let data = secret.data?;
    let field = |name: &str| data.get(name).map(|field| field.0.clone());
    let identity = ClientIdentity {
        authority: field("ca.crt")?,
        certificate: field("tls.crt")?,
        key: field("tls.key")?,
    };
    let labels = ListParams::default().labels(&format!("quorate.dev/cluster={cluster}"));
    let pod = story.api::<Pod>().list(&labels).await.ok()?.items.into_iter().next()?;
    let name = format!("{}.{cluster}-peers.{}.svc", pod.name_any(), story.namespace);
    let address = Address { dial: format!("{}:2379", pod.status?.pod_ip?), name };
    let mut etcd = connect(&address, Some(&identity)).await.ok()?;
    let mut answer = etcd.get("", Some(GetOptions::new().with_all_keys())).await.ok()?;
    let keys = answer.take_kvs().into_iter().map(etcd_client::KeyValue::into_key_value);
    Some(keys.filter(|(key, _)| !key.starts_with(b"/__quorate/")).collect())
}

/// Waits until both sides hold the same below a prefix; how many keys.
async fn alike(story: &Story, prefix: &str) -> usize {
    let below = |mut keys: Keys| {
        keys.retain(|key, _| key.starts_with(prefix.as_bytes()));
        keys
    };
    let same = async || {
        let (here, there) = (held(story, "main").await?, held(story, "second").await?);
        let (here, there) = (below(here), below(there));
        (here == there && !here.is_empty()).then_some(here.len())
    };
    eventually(&format!("both sides are alike below {prefix}"), same).await
}

#[tokio::test]
async fn a_pair_of_clusters_is_mirrored_whatever_becomes_of_the_agent() {
    story("mirror", async |story| {
        story.create(json!({"replicas": 1})).await;
        story.create_named("second", json!({"replicas": 1})).await;
        story.healthy().await;
        story.write("k/before-", 100).await;
        let (a, b) = (json!({"name": "main"}), json!({"name": "second"}));
        let mirror = json!({
            "apiVersion": "quorate.dev/v1alpha1", "kind": "EtcdMirror", "metadata": {"name": "pair"},
            "spec": {
                "sites": [{"name": "a", "clusterRef": a}, {"name": "b", "clusterRef": b}],
                "active": "a",
                "ignore": ["locks/.*"],
            },
        });
        let mirror = serde_json::from_value(mirror).unwrap();
        story.api::<EtcdMirror>().create(&PostParams::default(), &mirror).await.unwrap();
        until(story, "follows", says("Healthy")).await;
        assert_eq!(alike(story, "k/").await, 100);

        let (mut killed, writes) = (0, story.write("k/while-agents-die-", 300));
        let mut writes = std::pin::pin!(writes);
        loop {
            tokio::select! {
                () = &mut writes => break,
                () = tokio::time::sleep(std::time::Duration::from_millis(500)) => killed += kill_agents(story).await,
            }
        }
        killed += kill_agents(story).await;
        story.write("locks/", 10).await;
        assert_eq!(alike(story, "k/").await, 400);
        let ignored = held(story, "second").await.unwrap().keys().filter(|key| key.starts_with(b"locks/")).count();
        assert_eq!(ignored, 0, "ignored keys were copied");
        measured(&format!("a mirror whose agent was killed {killed} times: 400 keys alike, none of 10 ignored ones copied"));
        told_and_stopped(story).await;
    })
    .await;
}

/// To the other side and back, with nobody writing.
async fn switched(story: &Story) {
    change(story, json!({"active": "a"})).await;
    until(story, "follows", says("Healthy")).await;
    let switch = ["mirror", "switch", "pair", "--writers-stopped", "--wait=3m", "-n", &story.namespace];
    let (code, said, wrong) = quorate(&switch);
    assert_eq!(code, Some(0), "{said}{wrong}");
    let status = until(story, "follows the other site", says("Healthy")).await;
    assert_eq!((status.source.as_deref(), status.term), (Some("b"), Some(2)));
    change(story, json!({"active": "a"})).await;
    let back = |status: &EtcdMirrorStatus| status.term == Some(3) && says("Healthy")(status);
    until(story, "is switched back", back).await;
    story.write("k/after-", 10).await;
    assert_eq!(alike(story, "k/").await, 420);
    measured(&format!(
        "a mirror was switched and switched back: {}",
        said.lines().last().unwrap_or_default()
    ));
}

async fn told_and_stopped(story: &Story) {
    let (code, _, wrong) = quorate(&["mirror", "verify", "pair", "-n", &story.namespace]);
    assert_eq!(code, Some(0), "{wrong}");
    let compared = |status: &EtcdMirrorStatus| status.verification.is_some();
    let compared = until(story, "was compared", compared).await.verification.unwrap();
    assert_eq!((compared.keys, compared.missing, compared.extra, compared.different), (400, 0, 0, 0));

    // A word in a spec alone exchanges no source and target.
    change(story, json!({"active": "b"})).await;
    let status = until(story, "knows better", says("FenceMissing")).await;
    assert_eq!(status.source.as_deref(), Some("a"));
    story.write("k/as-before-", 10).await;
    assert_eq!(alike(story, "k/").await, 410);

    switched(story).await;
    change(story, json!({"state": "Stopped"})).await;
    until(story, "is stopped", says("StoppedByUser")).await;
    let gone = async || {
        let agent = story.api::<Deployment>().get("pair-agent").await.ok()?;
        (agent.status.and_then(|status| status.replicas).unwrap_or_default() == 0).then_some(())
    };
    eventually("the agent is gone", gone).await;
}
