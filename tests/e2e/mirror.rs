//! EtcdMirrors: two EtcdClusters, and an agent between them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use etcd_client::GetOptions;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use quorate::api::mirror::EtcdMirrorStatus;
use quorate::api::replacement::Phase;
use quorate::api::{EtcdCluster, EtcdMirror};
use quorate::etcd::connect::connect;
use serde_json::{Value, json};

use crate::replace;
use crate::support::{Story, eventually, measured, quorate, story};

type Keys = BTreeMap<Vec<u8>, Vec<u8>>;

/// After it another member is asked.
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// An agent lives so long.
const LIFE: Duration = Duration::from_secs(3);

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

/// All keys of a cluster but the mirrors' own, by a linearizable read, each with the revision of its last write; `None`:
/// nobody answers.
async fn read(story: &Story, cluster: &str) -> Option<BTreeMap<Vec<u8>, (Vec<u8>, i64)>> {
    let identity = story.identity_of(cluster).await;
    for address in story.addresses_of(cluster).await.values() {
        let Ok(mut etcd) = connect(address, Some(&identity)).await else { continue };
        let read = etcd.get("", Some(GetOptions::new().with_all_keys()));
        let Ok(Ok(mut answer)) = tokio::time::timeout(READ_DEADLINE, read).await else { continue };
        let keys = answer.take_kvs().into_iter().map(|kv| {
            let written = kv.mod_revision();
            let (key, value) = kv.into_key_value();
            (key, (value, written))
        });
        return Some(keys.filter(|(key, _)| !key.starts_with(b"/__quorate/")).collect());
    }
    None
}

async fn held(story: &Story, cluster: &str) -> Option<Keys> {
    let keys = read(story, cluster).await?;
    Some(keys.into_iter().map(|(key, (value, _))| (key, value)).collect())
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
                () = tokio::time::sleep(Duration::from_millis(500)) => killed += kill_agents(story).await,
            }
        }
        killed += kill_agents(story).await;
        story.write("locks/", 10).await;
        assert_eq!(alike(story, "k/").await, 400);
        let ignored =
            held(story, "second").await.unwrap().keys().filter(|key| key.starts_with(b"locks/")).count();
        assert_eq!(ignored, 0, "ignored keys were copied");
        measured(&format!(
            "a mirror whose agent was killed {killed} times: 400 keys alike, none of 10 ignored ones copied"
        ));
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

/// A pair of three members each, with a person as its fence.
async fn pair(story: &Story) {
    story.create(json!({})).await;
    story.create_named("second", json!({"version": "3.7"})).await;
    let (a, b) = (json!({"name": "main"}), json!({"name": "second"}));
    let mirror = json!({
        "apiVersion": "quorate.dev/v1alpha1", "kind": "EtcdMirror", "metadata": {"name": "pair"},
        "spec": {
            "sites": [{"name": "a", "clusterRef": a}, {"name": "b", "clusterRef": b}],
            "active": "a",
            "fence": {"mode": "Manual"},
        },
    });
    let mirror = serde_json::from_value(mirror).unwrap();
    story.api::<EtcdMirror>().create(&PostParams::default(), &mirror).await.unwrap();
    until(story, "follows", says("Healthy")).await;
}

/// The source's leader moves, one of its members is exchanged for a new one, and the target grows.
async fn both_sides_change(story: &Story) {
    let status = story.status().await;
    let voter = status.members.iter().find(|member| Some(&member.name) != status.leader.as_ref()).unwrap();
    let id = u64::from_str_radix(voter.member_id.as_ref().unwrap(), 16).unwrap();
    let leader = story.etcd(status.leader.as_ref().unwrap()).await;
    leader.maintenance_client().move_leader(id).await.unwrap();
    let grown = Patch::Merge(json!({"spec": {"replicas": 5}}));
    story.api::<EtcdCluster>().patch("second", &PatchParams::default(), &grown).await.unwrap();
    replace::ask(story, "new", json!({"member": "main-1"})).await.unwrap();
    replace::becomes(story, "new", Phase::Complete).await;
    let five = async || {
        let second = story.api::<EtcdCluster>().get("second").await.unwrap().status.unwrap_or_default();
        let voters = second.members.iter().filter(|member| !member.joining).count();
        (voters == 5 && second.summary.as_deref() == Some("Healthy")).then_some(())
    };
    eventually("the target has five voters", five).await;
}

/// Kills the agent again and again until told to stop, or so often; how often.
async fn agents_die(story: &Story, stop: &AtomicBool, most: usize) -> usize {
    let (mut killed, mut tick) = (0, tokio::time::interval(LIFE));
    tick.tick().await;
    while killed < most && !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        killed += kill_agents(story).await;
    }
    killed
}

/// Waits until both sides hold the same; how many keys.
async fn equal(story: &Story) -> usize {
    alike(story, "").await
}

#[tokio::test]
async fn a_pair_under_load_is_kept_alike_and_switched_while_agents_die_and_members_change() {
    story("pair", async |story| {
        pair(story).await;
        let stop = AtomicBool::new(false);
        let changes = async {
            both_sides_change(story).await;
            stop.store(true, Ordering::Relaxed);
        };
        let happens = async { tokio::join!(changes, agents_die(story, &stop, usize::MAX)).1 };
        let (killed, verdict) = story.under_load(happens).await;
        let keys = equal(story).await;
        measured(&format!(
            "a pair whose agent died {killed} times while leader, members and size changed: {keys} keys alike; {}",
            verdict.summary()
        ));

        // Nobody writes; the agent dies in the middle of it.
        let stop = AtomicBool::new(false);
        change(story, json!({"active": "b"})).await;
        let switched = async {
            let done = |status: &EtcdMirrorStatus| status.term == Some(2) && says("Healthy")(status);
            let status = until(story, "follows the other site", done).await;
            stop.store(true, Ordering::Relaxed);
            status
        };
        let (status, killed) = tokio::join!(switched, agents_die(story, &stop, 3));
        assert_eq!(status.source.as_deref(), Some("b"));
        story.write_to("second", "k/at-b-", 100).await;
        assert_eq!(equal(story).await, keys + 100);

        let before = read(story, "second").await.unwrap();
        change(story, json!({"active": "a"})).await;
        let back = |status: &EtcdMirrorStatus| status.term == Some(3) && says("Healthy")(status);
        let status = until(story, "is switched back", back).await;
        let steps: Vec<_> = status.switch.iter().flat_map(|switch| &switch.steps).collect();
        assert!(steps.iter().any(|step| step.name == "Promote"), "{steps:?}");
        assert_eq!(equal(story).await, keys + 100);
        assert!(read(story, "second").await.unwrap() == before, "the way back wrote what was there");
        story.write("k/at-a-", 100).await;
        assert_eq!(equal(story).await, keys + 200);
        measured(&format!("a pair was switched while its agent died {killed} times, and back with no key copied"));
    })
    .await;
}
