//! EtcdMirrors: two EtcdClusters, and an agent between them.

mod leases;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use etcd_client::{Client as Etcd, Error, GetOptions, Permission};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Pod, Secret};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use quorate::api::mirror::EtcdMirrorStatus;
use quorate::api::replacement::Phase;
use quorate::api::{EtcdCluster, EtcdMirror};
use quorate::etcd::connect::{ClientIdentity, connect};
use serde_json::{Value, json};

use crate::replace;
use crate::support::{Story, eventually, measured, processes, quorate, story};

type Keys = BTreeMap<Vec<u8>, Vec<u8>>;

/// After it another member is asked.
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// An agent lives so long.
const LIFE: Duration = Duration::from_secs(3);

/// Waits until the newest spec was observed and it is so.
async fn until(story: &Story, what: &str, is_so: impl Fn(&EtcdMirrorStatus) -> bool) -> EtcdMirrorStatus {
    until_of(story, "pair", what, is_so).await
}

/// The same of another mirror.
async fn until_of(
    story: &Story,
    name: &str,
    what: &str,
    is_so: impl Fn(&EtcdMirrorStatus) -> bool,
) -> EtcdMirrorStatus {
    let found = async || {
        let mirror = story.api::<EtcdMirror>().get(name).await.ok()?;
        let observed = mirror.status.as_ref()?.observed_generation == mirror.metadata.generation;
        mirror.status.filter(|status| observed && is_so(status))
    };
    eventually(&format!("the mirror {name} {what}"), found).await
}

/// Waits until there is an event of this reason.
async fn event(story: &Story, reason: &str) {
    let told = async || {
        let events = story.api::<Event>().list(&ListParams::default()).await.ok()?.items;
        events.iter().any(|event| event.reason.as_deref() == Some(reason)).then_some(())
    };
    eventually(&format!("there is an event {reason}"), told).await;
}

fn says(words: &'static str) -> impl Fn(&EtcdMirrorStatus) -> bool {
    move |status| status.summary.as_ref().is_some_and(|summary| summary.starts_with(words))
}

/// Two clusters of one member each, `main` and `second`.
async fn clusters(story: &Story) {
    story.create(json!({"replicas": 1})).await;
    story.create_named("second", json!({"replicas": 1})).await;
    story.healthy().await;
}

/// Creates the mirror of `main` into `second`, with more fields in its spec, and waits until it follows.
async fn mirror(story: &Story, mut spec: Value) {
    spec["active"] = json!("a");
    create(story, "pair", spec).await;
    until(story, "follows", says("Healthy")).await;
}

/// Creates a mirror between the two clusters.
async fn create(story: &Story, name: &str, mut spec: Value) {
    let (a, b) = (json!({"name": "main"}), json!({"name": "second"}));
    spec["sites"] = json!([{"name": "a", "clusterRef": a}, {"name": "b", "clusterRef": b}]);
    let metadata = json!({"name": name});
    let mirror = json!({"apiVersion": "quorate.dev/v1alpha1", "kind": "EtcdMirror", "metadata": metadata, "spec": spec});
    let mirror = serde_json::from_value(mirror).unwrap();
    story.api::<EtcdMirror>().create(&PostParams::default(), &mirror).await.unwrap();
}

async fn change(story: &Story, spec: Value) {
    change_of(story, "pair", spec).await;
}

async fn change_of(story: &Story, name: &str, spec: Value) {
    let patch = Patch::Merge(json!({"spec": spec}));
    story.api::<EtcdMirror>().patch(name, &PatchParams::default(), &patch).await.unwrap();
}

async fn agents(story: &Story) -> Vec<Pod> {
    let labels = ListParams::default().labels("quorate.dev/mirror=pair");
    story.api::<Pod>().list(&labels).await.unwrap().items
}

async fn kill_agents(story: &Story) -> usize {
    let agents = agents(story).await;
    for pod in &agents {
        drop(story.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await);
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
        clusters(story).await;
        story.write("k/before-", 100).await;
        mirror(story, json!({"ignore": ["locks/.*"]})).await;
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

#[tokio::test]
async fn a_mirror_that_would_close_a_circle_waits_for_keys_of_its_own() {
    story("circle", async |story| {
        clusters(story).await;
        story.write("k/", 50).await;
        mirror(story, json!({})).await;
        create(story, "back", json!({"active": "b", "id": "back"})).await;
        let told = until_of(story, "back", "is told apart", says("MirrorLoop")).await.summary.unwrap();
        assert!(told.contains(&format!("{}/pair", story.namespace)), "{told}");
        event(story, "MirrorLoop").await;

        change_of(story, "back", json!({"mappings": [{"prefixes": {"a": "from-b/", "b": "k/"}}]})).await;
        until_of(story, "back", "follows", says("Healthy")).await;
        // There, and by the first one back again: below a prefix that nobody copies from.
        assert_eq!(alike(story, "from-b/").await, 50);
        assert_eq!(alike(story, "").await, 100);
        until(story, "follows as before", says("Healthy")).await;
        measured(
            "a mirror that would have closed a circle was refused, and followed with a prefix of its own",
        );
    })
    .await;
}

/// A pair of so many members each, with a person as its fence.
async fn pair_of(story: &Story, members: usize) {
    story.create(json!({"replicas": members})).await;
    story.create_named("second", json!({"replicas": members, "version": "3.7"})).await;
    mirror(story, json!({"fence": {"mode": "Manual"}})).await;
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

#[tokio::test]
async fn a_pair_under_load_is_kept_alike_and_switched_while_agents_die_and_members_change() {
    story("pair", async |story| {
        pair_of(story, 3).await;
        let stop = AtomicBool::new(false);
        let changes = async {
            both_sides_change(story).await;
            stop.store(true, Ordering::Relaxed);
        };
        let happens = async { tokio::join!(changes, agents_die(story, &stop, usize::MAX)).1 };
        let (killed, verdict) = story.under_load(happens).await;
        let keys = alike(story, "").await;
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
        assert_eq!(alike(story, "").await, keys + 100);

        let before = read(story, "second").await.unwrap();
        change(story, json!({"active": "a"})).await;
        let back = |status: &EtcdMirrorStatus| status.term == Some(3) && says("Healthy")(status);
        let status = until(story, "is switched back", back).await;
        let steps: Vec<_> = status.switch.iter().flat_map(|switch| &switch.steps).collect();
        assert!(steps.iter().any(|step| step.name == "Promote"), "{steps:?}");
        assert_eq!(alike(story, "").await, keys + 100);
        assert!(read(story, "second").await.unwrap() == before, "the way back wrote what was there");
        story.write("k/at-a-", 100).await;
        assert_eq!(alike(story, "").await, keys + 200);
        measured(&format!("a pair was switched while its agent died {killed} times, and back with no key copied"));
    })
    .await;
}

/// In a Pod's own network: packets to this address go nowhere, or go again.
fn route(pod: &Pod, program: &str, verb: &str, address: &str) {
    let process = processes(&pod.uid().unwrap(), program).remove(0);
    let pid = process.file_name().unwrap().to_str().unwrap();
    let route = ["-n", "-t", pid, "ip", "route", verb, "blackhole", address];
    assert!(Command::new("nsenter").args(route).status().unwrap().success(), "{verb} {address}");
}

/// Takes away, or gives back, the ways between the agent and a source of one member. Both: what a watch sends comes
/// in although no answer goes out.
async fn ways_to_source(story: &Story, verb: &str) {
    let agent = agents(story).await.remove(0);
    let member = story.pod("main-0").await.unwrap();
    let address = |pod: &Pod| pod.status.as_ref().unwrap().pod_ip.clone().unwrap();
    route(&agent, "mirror --config", verb, &address(&member));
    route(&member, "/usr/local/bin/etcd", verb, &address(&agent));
}

/// `quorate mirror VERB` of the agent's image, against the target.
async fn at_target(story: &Story, verb: &str) -> String {
    let agent = story.api::<Deployment>().get("pair-agent").await.unwrap();
    let image = agent.spec.unwrap().template.spec.unwrap().containers.remove(0).image.unwrap();
    let target = format!("--target=https://second.{}.svc:2379", story.namespace);
    let tls = ["--target-ca=/tls/ca.crt", "--target-cert=/tls/tls.crt", "--target-key=/tls/tls.key"];
    let command = [&["/usr/local/bin/quorate", "mirror", verb, &target][..], &tls].concat();
    let (code, said) = story.run_in_pod_of(&image, "second", &command).await;
    assert_eq!(code, 0, "{said}");
    said
}

#[tokio::test]
async fn a_lost_site_that_returns_has_its_own_writes_listed_before_it_follows() {
    story("lost", async |story| {
        pair_of(story, 1).await;
        story.write("k/before-", 50).await;
        alike(story, "").await;

        ways_to_source(story, "add").await;
        story.write("k/lost-", 20).await;
        let mut source = story.etcd("main-0").await;
        for number in 0..5 {
            source.delete(format!("k/before-{number}"), None).await.unwrap();
        }
        at_target(story, "promote").await;
        until(story, "tells that the other site was promoted", says("ActiveMismatch")).await;
        event(story, "ActiveMismatch").await;
        story.write_to("second", "k/at-b-", 10).await;
        let promoted = held(story, "second").await.unwrap();
        change(story, json!({"active": "b"})).await;
        ways_to_source(story, "del").await;

        let status = until(story, "tells of the site that is back", says("SiteReturned")).await;
        let plan = status.plan.unwrap();
        assert_eq!((plan.adds, plan.overwrites, plan.deletes), (15, 0, 20));
        let list = at_target(story, "lost").await;
        let named = |word: &str| -> BTreeSet<String> {
            let lines = list.lines().filter_map(|line| line.strip_prefix(word)?.split(' ').next());
            lines.map(|key| key.trim_matches('"').to_owned()).collect()
        };
        let expected = |prefix: &str, keys: usize| (0..keys).map(|number| format!("{prefix}{number}")).collect();
        let lost: [BTreeSet<String>; 2] = [expected("k/lost-", 20), expected("k/before-", 5)];
        assert_eq!([named("put "), named("deleted ")], lost, "{list}");
        assert!(held(story, "main").await.unwrap().contains_key(&b"k/lost-0"[..]), "written to unasked");

        let approve = ["mirror", "resync", "pair", "--approve", &plan.hash, "-n", &story.namespace];
        let (code, said, wrong) = quorate(&approve);
        assert_eq!(code, Some(0), "{said}{wrong}");
        let follows = |status: &EtcdMirrorStatus| status.source.as_deref() == Some("b") && says("Healthy")(status);
        until(story, "follows the promoted site", follows).await;
        assert_eq!(alike(story, "").await, promoted.len());
        assert!(held(story, "second").await.unwrap() == promoted, "the promoted site was written to");
        measured("a site that was cut off and lost: 20 puts and 5 deletes of its own listed, all of them, then it followed");
    })
    .await;
}

/// The role of the applications.
const WRITERS: &str = "writers";

/// etcd's user root, as whom the operator comes.
async fn root(story: &Story, cluster: &str) -> Etcd {
    let secret = story.api::<Secret>().get(&format!("{cluster}-operator")).await.unwrap();
    let data = secret.data.unwrap();
    let field = |name: &str| data[name].0.clone();
    let identity =
        ClientIdentity { authority: field("ca.crt"), certificate: field("tls.crt"), key: field("tls.key") };
    dial(story, cluster, &identity).await
}

/// An application of a cluster.
async fn application(story: &Story, cluster: &str) -> Etcd {
    dial(story, cluster, &story.identity_of(cluster).await).await
}

async fn dial(story: &Story, cluster: &str, identity: &ClientIdentity) -> Etcd {
    let address = story.addresses_of(cluster).await.into_values().next().unwrap();
    connect(&address, Some(identity)).await.unwrap()
}

/// Waits until auth is on; then applications may write below k/ only, by a role that a fence can name at both sites.
async fn guard(story: &Story, cluster: &str) {
    let enabled = async || {
        let status = story.api::<EtcdCluster>().get(cluster).await.ok()?.status?;
        (status.auth.as_deref() == Some("Enabled")).then_some(())
    };
    eventually(&format!("auth of {cluster} is on"), enabled).await;
    let (mut root, user) = (root(story, cluster).await, format!("{cluster}-client"));
    root.role_add(WRITERS).await.unwrap();
    let permissions = [Permission::read("").with_all_keys(), Permission::read_write("k/").with_prefix()];
    for permission in permissions {
        root.role_grant_permission(WRITERS, permission).await.unwrap();
    }
    root.user_grant_role(&user, WRITERS).await.unwrap();
    root.user_revoke_role(&user, &user).await.unwrap();
}

/// Whether an application may write a key; `None`: etcd has neither taken nor denied it, so it is to be asked again.
async fn written(application: &mut Etcd, key: &str) -> Option<bool> {
    match tokio::time::timeout(READ_DEADLINE, application.put(key, "acknowledged", None)).await {
        Ok(Ok(_)) => Some(true),
        Ok(Err(Error::GRpcStatus(status))) if status.message().contains("permission denied") => Some(false),
        Ok(Err(_)) | Err(_) => None,
    }
}

async fn may_write(story: &Story, cluster: &str) -> bool {
    let mut application = application(story, cluster).await;
    eventually("a write is done or denied", async || written(&mut application, "k/asked").await).await
}

/// An application at the active site writes one key after the other until it is denied; what was acknowledged.
async fn written_until_denied(story: &Story) -> BTreeSet<Vec<u8>> {
    let (mut application, mut acknowledged) = (application(story, "main").await, BTreeSet::new());
    let denied = async || {
        for _ in 0..20 {
            let key = format!("k/by-the-application-{}", acknowledged.len());
            if !written(&mut application, &key).await? {
                return Some(());
            }
            acknowledged.insert(key.into_bytes());
        }
        None
    };
    eventually("the application is denied", denied).await;
    acknowledged
}

/// A switch that drains is taken back: what was taken from the writers is theirs again.
async fn taken_back(story: &Story) {
    change(story, json!({"limits": {"keysPerSecond": 1}})).await;
    until(story, "follows slowly", says("Healthy")).await;
    let permissions = async || {
        let role = root(story, "main").await.role_get(WRITERS).await.unwrap();
        let permissions = role.permissions().into_iter().map(|one| format!("{one:?}"));
        permissions.collect::<BTreeSet<String>>()
    };
    let before = permissions().await;
    story.write("k/slow-", 40).await;
    change(story, json!({"active": "b"})).await;
    let at = |step: &'static str| {
        move |status: &EtcdMirrorStatus| status.switch.as_ref().is_some_and(|switch| switch.step == step)
    };
    until(story, "drains", at("Drain")).await;
    assert!(!may_write(story, "main").await, "it drains without a fence");
    assert_ne!(permissions().await, before);
    change(story, json!({"active": "a", "limits": null})).await;
    let back = |status: &EtcdMirrorStatus| at("Aborted")(status) && says("Healthy")(status);
    let status = until(story, "follows as before", back).await;
    assert_eq!((status.source.as_deref(), status.term), (Some("a"), Some(1)));
    assert_eq!(permissions().await, before, "not all came back");
    assert!(may_write(story, "main").await, "writers are still kept out");
}

#[tokio::test]
async fn writers_are_kept_out_by_their_role_while_sites_are_switched_and_lose_nothing() {
    story("fence", async |story| {
        let spec = json!({"replicas": 1, "auth": {"enabled": true}});
        story.create(spec.clone()).await;
        story.create_named("second", spec).await;
        tokio::join!(guard(story, "main"), guard(story, "second"));
        story.write("k/before-", 50).await;
        let root = |site: &str, secret: &str| json!({"site": site, "tlsSecretRef": {"name": secret}});
        let roots = [root("a", "main-operator"), root("b", "second-operator")];
        mirror(story, json!({"fence": {"roles": [WRITERS], "root": roots}})).await;
        taken_back(story).await;

        let namespace = story.namespace.clone();
        let switch = tokio::task::spawn_blocking(move || {
            quorate(&["mirror", "switch", "pair", "--wait=3m", "-n", &namespace])
        });
        let (acknowledged, switched) = tokio::join!(written_until_denied(story), switch);
        let (code, said, wrong) = switched.unwrap();
        assert_eq!(code, Some(0), "{said}{wrong}");
        let done = |status: &EtcdMirrorStatus| status.term == Some(2) && says("Healthy")(status);
        let status = until(story, "follows the other site", done).await;
        assert_eq!(status.source.as_deref(), Some("b"));
        let there = held(story, "second").await.unwrap();
        let lost = acknowledged.iter().filter(|key| !there.contains_key(*key)).count();
        assert_eq!(lost, 0, "of {} acknowledged writes", acknowledged.len());
        assert!(!may_write(story, "main").await, "both sites can be written to");
        assert!(may_write(story, "second").await, "no site can be written to");
        let keys = alike(story, "k/").await;
        measured(&format!(
            "a switch with a fence of roles: {} writes acknowledged until it, all of {keys} keys alike; one before was taken \
             back",
            acknowledged.len()
        ));
    })
    .await;
}
