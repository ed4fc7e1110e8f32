//! Nodes: scheduling, volumes, containers under the real guard's real decision, and the counts of the
//! PodDisruptionBudget.

use std::collections::BTreeMap;
use std::ffi::OsString;

use quorate::etcd::version::Minor;
use quorate_guard::config::Config;
use quorate_guard::decide::{Decision, decide};
use quorate_guard::durable::Found;
use quorate_guard::identity::{HexId, Identity};
use quorate_guard::mark::Mark;
use quorate_guard::refusal::Refusal;
use quorate_guard::stamp::{Phase, Stamp};
use quorate_guard::volume::{LogFound, Volume};
use quorate_guard::wal::{HardState, Position, Summary};
use serde_json::{Value, json};

use super::apiserver::{Key, has_voter_label, identity, text};
use super::etcd::{self, Millis, Start};
use super::{NAMESPACE, World, invariants};

/// How often kubelets look.
const TICK: Millis = 500;
/// A container that ended is started again after this.
const BACK_OFF: Millis = 1000;

/// etcd's last word on a full disk (`tests/fixtures/failures`).
pub(crate) const NO_SPACE: &str = r#"{"level":"fatal","msg":"failed to save Raft hard state and entries","error":"write: no space left on device"}"#;

/// A flag that etcd does not know.
pub(crate) const BAD_FLAG: &str = "no-such-flag";

/// What lies on a volume.
#[derive(Clone, Default, Debug)]
pub(crate) struct Disk {
    pub(crate) stamp: Option<Stamp>,
    pub(crate) data: etcd::Disk,
    /// Whether the log cannot be read.
    pub(crate) damaged: bool,
    /// Whether nothing more can be written: etcd ends, again and again.
    pub(crate) full: bool,
    /// The node that the volume lives on.
    pub(crate) node: Option<String>,
}

/// A Pod's etcd container, and its emptyDir.
#[derive(Clone, Default, Debug)]
pub(crate) struct Container {
    pub(crate) runs: bool,
    started: bool,
    since: String,
    restarts: u32,
    not_before: Millis,
    last_words: Option<(Value, String)>,
    mark: Option<Mark>,
    /// Incarnation for which this Pod has put data aside.
    wiped: Option<u32>,
    address: String,
    claim: String,
}

/// Lets so much time pass, in ticks.
pub(crate) fn wait(world: &mut World, millis: Millis) {
    for _ in 0..millis.div_ceil(TICK) {
        world.now += TICK;
        tick(world);
        if world.violation.is_some() {
            return;
        }
    }
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

fn key(kind: &'static str, name: &str) -> Key {
    (kind, NAMESPACE.to_owned(), name.to_owned())
}

fn tick(world: &mut World) {
    world.etcd.advance(world.now);
    for (process, line, disk) in world.etcd.ended() {
        ended(world, &process, disk, json!({"exit": 1, "lines": [line]}));
    }
    for orphan in world.api.orphans() {
        let now = world.clock();
        world.api.mark_deleted(&orphan, &now);
    }
    let pods: Vec<(String, String)> = world.api.all("Pod").map(identity).collect();
    for (name, uid) in &pods {
        pod(world, name, uid);
    }
    volumes(world);
    budget(world);
    invariants::after_time(world);
}

fn node_of(world: &World, name: &str) -> Option<(String, bool)> {
    let node = text(world.api.get("Pod", name)?, "/spec/nodeName")?;
    let up = world.nodes.get(&node).copied().unwrap_or(false);
    Some((node, up))
}

fn pod(world: &mut World, name: &str, uid: &str) {
    let Some(object) = world.api.get("Pod", name).cloned() else { return };
    let deleting = !object["metadata"]["deletionTimestamp"].is_null();
    let node = node_of(world, name);
    if deleting && node.as_ref().is_none_or(|(_, up)| *up) {
        stop(world, uid);
        world.containers.remove(uid);
        world.api.remove(&key("Pod", name));
        return;
    }
    match node {
        None => schedule(world, name, &object),
        Some((_, true)) if !deleting => run(world, name, uid, &object),
        Some(_) => {}
    }
    tell(world, name, uid);
}

/// etcd is killed; what it had on disk stays there.
pub(crate) fn stop(world: &mut World, uid: &str) {
    if let Some(data) = world.etcd.stop(uid) {
        keep(world, uid, data);
    }
    if let Some(container) = world.containers.get_mut(uid) {
        container.runs = false;
    }
}

fn keep(world: &mut World, uid: &str, data: etcd::Disk) {
    let Some(container) = world.containers.get_mut(uid) else { return };
    invariants::process_ended(&mut world.witness, &data);
    // The guard outlives etcd and notes where its log ended. (On a node that dies at once it cannot: what came within
    // the seconds since its last note, and is rolled back before the Pod runs again, nobody can know.)
    container.mark = data.data.as_deref().map(|data| Mark::of(&summary(data))).or(container.mark);
    if let Some(disk) = world.disks.get_mut(&container.claim) {
        disk.data = data;
    }
}

/// A container ends by itself, or is killed; the kubelet starts it again.
pub(crate) fn ended(world: &mut World, uid: &str, data: etcd::Disk, words: Value) {
    keep(world, uid, data);
    let (now, clock) = (world.now, world.clock());
    if let Some(container) = world.containers.get_mut(uid) {
        container.runs = false;
        container.restarts += 1;
        container.not_before = now + BACK_OFF;
        container.last_words = Some((words, clock));
    }
}

/// A volume lives on the node where its first Pod ran; others go where fewest Pods are.
fn schedule(world: &mut World, name: &str, pod: &Value) {
    let Some(claim) = world.api.get("PersistentVolumeClaim", name) else { return };
    if !claim["metadata"]["deletionTimestamp"].is_null() {
        return;
    }
    let (_, claim_uid) = identity(claim);
    let impossible = pod["spec"]["nodeSelector"].as_object().is_some_and(|wanted| !wanted.is_empty());
    let tied = world.disks.get(&claim_uid).and_then(|disk| disk.node.clone());
    let load = |node: &String| world.api.all("Pod").filter(|pod| pod["spec"]["nodeName"] == **node).count();
    let takes = |node: &str| {
        let cordoned = world.api.get("Node", node).is_some_and(|node| node["spec"]["unschedulable"] == true);
        world.nodes.get(node).copied().unwrap_or(false) && !cordoned
    };
    let free = world.nodes.keys().filter(|node| takes(node)).min_by_key(|node| load(node)).cloned();
    let chosen = match tied {
        Some(node) => takes(&node).then_some(node),
        None => free,
    };
    let Some(node) = chosen.filter(|_| !impossible) else { return };
    world.disks.entry(claim_uid).or_default().node = Some(node.clone());
    world.api.change(&key("Pod", name), |pod| pod["spec"]["nodeName"] = node.into());
    world.api.change(&key("PersistentVolumeClaim", name), |claim| claim["status"]["phase"] = "Bound".into());
}

fn run(world: &mut World, name: &str, uid: &str, pod: &Value) {
    let Some(claim) = world.api.get("PersistentVolumeClaim", name).map(|claim| identity(claim).1) else {
        return;
    };
    let (now, address) = (world.now, world.next_address);
    let container = world.containers.entry(uid.to_owned()).or_insert_with(|| Container {
        address: format!("10.0.{}.{}", address / 250, address % 250 + 1),
        claim,
        ..Container::default()
    });
    if container.address.ends_with(&format!(".{}", address % 250 + 1)) {
        world.next_address += 1;
    }
    let bad_image = text(pod, "/spec/containers/0/image").is_some_and(|image| image.contains("nowhere"));
    if container.runs {
        if let Some(data) = world.etcd.disk(uid).and_then(|disk| disk.data) {
            let mark = Mark::of(&summary(&data));
            container.mark = Some(mark);
        }
    } else if now >= container.not_before && !bad_image {
        start(world, uid, pod);
    }
}

fn summary(data: &etcd::Data) -> Summary {
    Summary {
        identity: Identity { cluster: HexId(data.cluster.0), member: HexId(data.member.0) },
        hard: HardState { term: data.term, vote: data.vote.map_or(0, |id| id.0), commit: data.commit },
        last: Position { term: data.log.last_term(), index: data.log.last() },
    }
}

/// What the guard would find, and what it does about it.
fn start(world: &mut World, uid: &str, pod: &Value) {
    let etcd = &pod["spec"]["containers"][0];
    let config = configuration(etcd);
    let claim = world.containers[uid].claim.clone();
    let disk = world.disks.entry(claim.clone()).or_default().clone();
    let found = |stamp: &Option<Stamp>| stamp.clone().map_or(Found::Nothing, Found::Value);
    let log = disk.data.data.as_deref().map(summary);
    let volume = Volume {
        stamp: found(&disk.stamp),
        mark: world.containers[uid].mark.map_or(Found::Nothing, Found::Value),
        note: world.containers[uid]
            .wiped
            .map_or(Found::Nothing, |incarnation| Found::Value(quorate_guard::volume::Note { incarnation })),
        log: match log {
            Some(_) if disk.damaged => LogFound::Damaged("crc mismatch".to_owned()),
            log => log.map_or(LogFound::Absent, LogFound::Whole),
        },
        database: log.is_some(),
        database_bytes: 0,
        data: log.is_some(),
        discarded: false,
        last_backup: 0,
        free_bytes: u64::MAX,
    };
    let stamp = match decide(&config, &volume) {
        Decision::Start(stamp) => stamp,
        Decision::StartAfterCleaning(stamp) => {
            world.disks.entry(claim.clone()).or_default().data = etcd::Disk::default();
            stamp
        }
        Decision::Wipe(stamp) => {
            let disk = world.disks.entry(claim.clone()).or_default();
            (disk.data, disk.damaged) = (etcd::Disk::default(), false);
            if let Some(container) = world.containers.get_mut(uid) {
                (container.wiped, container.mark) = (Some(stamp.incarnation), None);
            }
            stamp
        }
        Decision::Refuse(refusal) => return refuse(world, uid, &refusal),
    };
    if disk.full {
        return ended(world, uid, disk.data, json!({"exit": 1, "lines": [NO_SPACE]}));
    }
    let unknown_flag = etcd["command"].to_string().contains(BAD_FLAG);
    if unknown_flag {
        let line = format!("flag provided but not defined: -{BAD_FLAG}");
        return ended(world, uid, disk.data, json!({"exit": 2, "lines": [line]}));
    }
    let arguments: Vec<&str> = etcd["command"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let start = flags(&arguments);
    let data = world.disks[&claim].data.clone();
    invariants::process_starts(world, uid, &start, &data);
    if let Err((line, data)) = world.etcd.start(world.now, uid.to_owned(), &start, data) {
        return ended(world, uid, data, json!({"exit": 1, "lines": [line]}));
    }
    let ids = world.etcd.data(uid).map(|data| (HexId(data.cluster.0), HexId(data.member.0)));
    let (cluster_id, member_id) = (ids.map(|ids| ids.0), ids.map(|ids| ids.1));
    let stamp = Stamp { phase: Phase::Started, cluster_id, member_id, ..stamp };
    world.disks.entry(claim).or_default().stamp = Some(stamp);
    let now = world.clock();
    if let Some(container) = world.containers.get_mut(uid) {
        container.runs = true;
        container.started = true;
        container.since = now;
    }
}

fn refuse(world: &mut World, uid: &str, refusal: &Refusal) {
    let words = json!({"cause": format!("{:?}", refusal.cause), "message": refusal.sentence});
    let (now, clock) = (world.now, world.clock());
    if let Some(container) = world.containers.get_mut(uid) {
        container.restarts += 1;
        container.not_before = now + BACK_OFF;
        container.last_words = Some((words, clock));
    }
}

fn configuration(container: &Value) -> Config {
    let variable = |name: &str| {
        let all = container["env"].as_array()?;
        let value = all.iter().find(|one| one["name"] == name)?;
        Some(OsString::from(value["value"].as_str().unwrap_or("10.0.0.1")))
    };
    let command: Vec<OsString> = container["command"]
        .as_array()
        .unwrap()
        .iter()
        .skip(2)
        .filter_map(Value::as_str)
        .map(OsString::from)
        .collect();
    Config::read(&variable, &command).expect("the operator gives the guard what it needs")
}

fn flags(arguments: &[&str]) -> Start {
    let value = |name: &str| {
        let prefix = format!("--{name}=");
        arguments.iter().find_map(|argument| argument.strip_prefix(&prefix)).unwrap_or_default()
    };
    let initial = value("initial-cluster").split(',').filter_map(|member| member.split_once('='));
    let learners = value("max-learners").parse().unwrap_or(1);
    Start {
        name: value("name").to_owned(),
        peer_url: value("initial-advertise-peer-urls").to_owned(),
        initial_cluster: initial.map(|(name, url)| (name.to_owned(), url.to_owned())).collect(),
        new: value("initial-cluster-state") == "new",
        token: value("initial-cluster-token").to_owned(),
        max_learners: learners,
        minor: if learners == 1 { Minor::V3_5 } else { Minor::V3_6 },
    }
}

/// The Pod's status, as its kubelet tells it. A dead node tells nothing; after a while its Pods are called not ready.
fn tell(world: &mut World, name: &str, uid: &str) {
    let Some((_, up)) = node_of(world, name) else { return unscheduled(world, name) };
    let Some(container) = world.containers.get(uid).cloned() else { return };
    let ready = up && container.runs && world.etcd.status(uid).is_ok_and(|status| status.leader.is_some());
    let state = if container.runs {
        json!({"running": {"startedAt": container.since}})
    } else if container.last_words.is_some() || container.started {
        json!({"waiting": {"reason": "CrashLoopBackOff"}})
    } else {
        json!({"waiting": {"reason": "ImagePullBackOff", "message": "there is no such image"}})
    };
    let last = container.last_words.map_or(
        json!({}),
        |(words, at)| json!({"terminated": {"exitCode": 1, "message": words.to_string(), "finishedAt": at}}),
    );
    let word = |yes: bool| if yes { "True" } else { "False" };
    let now = world.clock();
    world.api.change(&key("Pod", name), |pod| {
        let since = |type_: &str, status: &str| {
            let before = pod["status"]["conditions"].as_array().and_then(|all| {
                all.iter().find(|one| one["type"] == type_ && one["status"] == status)
            });
            before.map_or_else(|| now.clone().into(), |one| one["lastTransitionTime"].clone())
        };
        let conditions = json!([
            {"type": "Ready", "status": word(ready), "lastTransitionTime": since("Ready", word(ready))},
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": since("PodScheduled", "True")},
        ]);
        pod["status"] = json!({
            "phase": "Running",
            "podIP": container.address,
            "conditions": conditions,
            "containerStatuses": [{
                "name": "etcd", "ready": ready, "restartCount": container.restarts, "image": "", "imageID": "",
                "state": state, "lastState": last,
            }],
        });
    });
}

fn unscheduled(world: &mut World, name: &str) {
    let now = world.clock();
    world.api.change(&key("Pod", name), |pod| {
        if pod["status"]["phase"].is_null() {
            let condition = json!({"type": "PodScheduled", "status": "False", "message": "0/4 nodes are available", "lastTransitionTime": now});
            pod["status"] = json!({"phase": "Pending", "conditions": [condition]});
        }
    });
}

/// A volume goes when it is deleted and no Pod uses it. One without a node does not count (`podUsesPVC` in
/// pkg/controller/volume/pvcprotection).
fn volumes(world: &mut World) {
    let deleting: Vec<(String, String)> = world
        .api
        .all("PersistentVolumeClaim")
        .filter(|claim| !claim["metadata"]["deletionTimestamp"].is_null())
        .map(identity)
        .collect();
    for (name, uid) in deleting {
        if world.api.get("Pod", &name).is_none_or(|pod| pod["spec"]["nodeName"].is_null()) {
            world.api.remove(&key("PersistentVolumeClaim", &name));
            world.disks.remove(&uid);
        }
    }
}

/// The budget's resourceVersion, and the labelled Pods with their readiness, when they were counted.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Counted {
    budget: Value,
    pods: BTreeMap<String, bool>,
}

/// Counts again when the budget changes, or a Pod that has the label now, or had it when it was deleted. A Pod that
/// loses its label is not noticed: `updatePod` in pkg/controller/disruption looks for budgets by the new labels.
fn budget(world: &mut World) {
    let Some(budget) = world.api.get("PodDisruptionBudget", super::CLUSTER) else { return };
    let pods = world.api.all("Pod").filter(|pod| has_voter_label(pod));
    let now = Counted {
        budget: budget["metadata"]["resourceVersion"].clone(),
        pods: pods.map(|pod| (identity(pod).1, is_ready(pod))).collect(),
    };
    let exists = |uid: &String| world.api.all("Pod").any(|pod| pod["metadata"]["uid"] == **uid);
    let before = &world.counted;
    let unnoticed = now.budget == before.budget
        && now.pods.iter().all(|pod| before.pods.get(pod.0) == Some(pod.1))
        && before.pods.keys().all(|uid| now.pods.contains_key(uid) || exists(uid));
    if unnoticed {
        return;
    }
    let (expected, healthy) = (now.pods.len(), now.pods.values().filter(|ready| **ready).count());
    world.counted = now;
    world.api.change(&key("PodDisruptionBudget", super::CLUSTER), |budget| {
        let wanted = budget["spec"]["minAvailable"]
            .as_u64()
            .and_then(|count| usize::try_from(count).ok())
            .unwrap_or_default();
        let generation = budget["metadata"]["generation"].clone();
        budget["status"] = json!({
            "observedGeneration": generation, "expectedPods": expected, "currentHealthy": healthy,
            "desiredHealthy": wanted, "disruptionsAllowed": healthy.saturating_sub(wanted),
        });
    });
    let version = world
        .api
        .get("PodDisruptionBudget", super::CLUSTER)
        .map(|budget| budget["metadata"]["resourceVersion"].clone());
    world.counted.budget = version.unwrap_or_default();
}

/// Asks for a Pod's eviction, as a drain does.
pub(crate) fn evict(world: &mut World, name: &str) -> bool {
    let Some((pod, _)) = world.pod(name) else { return false };
    let guarded = has_voter_label(pod);
    let allowed = world.api.get("PodDisruptionBudget", super::CLUSTER).map(|budget| {
        budget["status"]["disruptionsAllowed"].as_u64().unwrap_or_default() > 0
            && budget["status"]["observedGeneration"] == budget["metadata"]["generation"]
    });
    if guarded && allowed == Some(false) {
        return false;
    }
    let now = world.clock();
    world.api.mark_deleted(&key("Pod", name), &now);
    // The eviction API counts the Pod as gone at once (`disruptedPods`).
    world.api.change(&key("PodDisruptionBudget", super::CLUSTER), |budget| {
        let left = budget["status"]["disruptionsAllowed"].as_u64().unwrap_or_default().saturating_sub(1);
        budget["status"]["disruptionsAllowed"] = left.into();
    });
    true
}
