//! What happens, one line each: for people to read and write, and for the search to make up.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use quorate::operator::cluster::plan::plan;
use quorate::operator::context::Planner;
use serde_json::{Value, json};

use super::apiserver::{Key, identity, text};
use super::invariants::{self, Truth};
use super::kubelet::Disk;
use super::operator::{Fault, Operator, Shared, lock};
use super::{CLUSTER, NAMESPACE, World, etcd, kubelet};

/// Rounds of passes and seconds until a world without faults must be at rest.
const PATIENCE: usize = 240;

/// Keys that nobody ever wrote.
pub(crate) const FORGED: u64 = 1 << 60;

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Act {
    /// Creates the EtcdCluster, if there is none: replicas and version.
    Create(usize, &'static str),
    /// Deletes it.
    Delete,
    /// Edits `replicas`.
    Replicas(usize),
    /// Asks for nodes that do not exist, or no longer.
    Impossible(bool),
    /// Asks for an image that does not exist, or no longer.
    NoImage(bool),
    /// Asks for a flag that etcd does not know, or no longer: it ends at each start.
    BadFlag(bool),
    /// Edits the size of volumes.
    Size(&'static str),
    /// Lets the storage class expand volumes, or not.
    Expandable(bool),
    /// Operator 0 or 1 has a pass.
    Pass(usize, Option<Fault>),
    /// A pass that was held goes on.
    GoOn(usize),
    /// kill -9 of an operator.
    KillOperator(usize),
    /// Asks for a member's replacement: strategy and volume.
    Replace(String, &'static str, &'static str),
    /// Takes back what was asked for last.
    TakeBack,
    Wait(u64),
    Put,
    Kill(String),
    Stop(String),
    Continue(String),
    DeletePod(String),
    Evict(String),
    NodeDies(String),
    NodeReturns(String),
    /// A node takes no new Pods, or takes them again.
    Cordon(String, bool),
    /// Whether the operator moves members off such nodes.
    Surge(bool),
    /// So many rounds of a pass and a second, with all faults as they are.
    Work(u64),
    /// `rm -rf` on a member's volume.
    Wipe(String),
    /// The same, but for what is not etcd's.
    LoseData(String),
    /// The log cannot be read any more.
    Damage(String),
    /// Copies a member's volume.
    Copy(String),
    /// Puts the copy back.
    RollBack(String),
    DeleteVolume(String),
    /// A member's disk is full: etcd ends, and cannot start; or there is space again.
    Full(String, bool),
    /// An operator's clock is wrong by so many milliseconds.
    Clock(usize, i64),
    /// One member's store gets what the others never had.
    Forge(String),
    Cut(String, String),
    Heal(String, String),
    /// The operator cannot reach a member, or can again.
    Blind(String),
    See(String),
    /// How long each look waits for a member that runs and has no quorum; what the others said is as old by then.
    Unanswered(u64),
    /// All faults are cured; the operators work until nothing is left to do.
    Settle,
    /// What must be so now.
    Expect(String, String),
}

const OPERATORS: [&str; 2] = ["A", "B"];
const VERSIONS: [&str; 2] = ["3.5", "3.6"];
pub(crate) const STRATEGIES: [&str; 3] = ["Auto", "AddFirst", "RemoveFirst"];
pub(crate) const VOLUMES: [&str; 3] = ["Auto", "Keep", "New"];
const SIZES: [&str; 3] = ["8Gi", "16Gi", "32Gi"];

impl fmt::Display for Act {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(replicas, version) => write!(formatter, "create {replicas} {version}"),
            Self::Delete => formatter.write_str("delete"),
            Self::Replicas(replicas) => write!(formatter, "replicas {replicas}"),
            Self::Impossible(on) => formatter.write_str(if *on { "impossible" } else { "possible" }),
            Self::NoImage(on) => formatter.write_str(if *on { "bad-image" } else { "good-image" }),
            Self::BadFlag(on) => formatter.write_str(if *on { "bad-flag" } else { "good-flags" }),
            Self::Size(size) => write!(formatter, "size {size}"),
            Self::Expandable(on) => formatter.write_str(if *on { "expandable" } else { "fixed" }),
            Self::Pass(operator, fault) => {
                write!(formatter, "pass {}", OPERATORS[*operator])?;
                match fault {
                    None => Ok(()),
                    Some(Fault::Hold(at)) => write!(formatter, " held before request {at}"),
                    Some(Fault::Crash(at)) => write!(formatter, " crashes after write {at}"),
                    Some(Fault::Lose(at)) => write!(formatter, " loses reply {at}"),
                    Some(Fault::Fail(at, code)) => write!(formatter, " fails at request {at} with {code}"),
                }
            }
            Self::GoOn(operator) => write!(formatter, "go-on {}", OPERATORS[*operator]),
            Self::KillOperator(operator) => write!(formatter, "kill-operator {}", OPERATORS[*operator]),
            Self::Replace(member, strategy, volume) => {
                write!(formatter, "replace {member} {strategy} {volume}")
            }
            Self::TakeBack => formatter.write_str("take-back"),
            Self::Wipe(member) => write!(formatter, "wipe {member}"),
            Self::LoseData(member) => write!(formatter, "lose-data {member}"),
            Self::Damage(member) => write!(formatter, "damage {member}"),
            Self::Copy(member) => write!(formatter, "copy {member}"),
            Self::RollBack(member) => write!(formatter, "roll-back {member}"),
            Self::DeleteVolume(member) => write!(formatter, "delete-volume {member}"),
            Self::Full(member, on) => {
                write!(formatter, "{} {member}", if *on { "fill-disk" } else { "free-disk" })
            }
            Self::Clock(operator, skew) => write!(formatter, "clock {} {skew}ms", OPERATORS[*operator]),
            Self::Forge(member) => write!(formatter, "forge {member}"),
            Self::Wait(millis) => write!(formatter, "wait {millis}ms"),
            Self::Put => formatter.write_str("put"),
            Self::Kill(member) => write!(formatter, "kill {member}"),
            Self::Stop(member) => write!(formatter, "stop {member}"),
            Self::Continue(member) => write!(formatter, "continue {member}"),
            Self::DeletePod(member) => write!(formatter, "delete-pod {member}"),
            Self::Evict(member) => write!(formatter, "evict {member}"),
            Self::NodeDies(node) => write!(formatter, "node-dies {node}"),
            Self::NodeReturns(node) => write!(formatter, "node-returns {node}"),
            Self::Cordon(node, on) => write!(formatter, "{} {node}", if *on { "cordon" } else { "uncordon" }),
            Self::Surge(on) => formatter.write_str(if *on { "surge" } else { "no-surge" }),
            Self::Work(rounds) => write!(formatter, "work {rounds}"),
            Self::Cut(from, to) => write!(formatter, "cut {from} {to}"),
            Self::Heal(from, to) => write!(formatter, "heal {from} {to}"),
            Self::Blind(member) => write!(formatter, "blind {member}"),
            Self::See(member) => write!(formatter, "see {member}"),
            Self::Unanswered(millis) => write!(formatter, "unanswered {millis}ms"),
            Self::Settle => formatter.write_str("settle"),
            Self::Expect(what, value) => write!(formatter, "expect {what} {value}"),
        }
    }
}

impl Act {
    /// Reads a line; the inverse of `Display`.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at)?.trim_end_matches("ms").parse::<usize>().ok();
        let operator = |at: usize| OPERATORS.iter().position(|name| words.get(at) == Some(name));
        let own = |at: usize| words.get(at).map(|word| (*word).to_owned());
        let one_of =
            |at: usize, all: &[&'static str]| all.iter().find(|known| words.get(at) == Some(known)).copied();
        Some(match *words.first()? {
            "create" => Self::Create(number(1)?, one_of(2, &VERSIONS)?),
            "delete" => Self::Delete,
            "replicas" => Self::Replicas(number(1)?),
            "impossible" => Self::Impossible(true),
            "possible" => Self::Impossible(false),
            "bad-image" => Self::NoImage(true),
            "good-image" => Self::NoImage(false),
            "bad-flag" => Self::BadFlag(true),
            "good-flags" => Self::BadFlag(false),
            "size" => Self::Size(one_of(1, &SIZES)?),
            "expandable" => Self::Expandable(true),
            "fixed" => Self::Expandable(false),
            "pass" => Self::Pass(
                operator(1)?,
                match words.get(2).copied() {
                    None => None,
                    Some("held") => Some(Fault::Hold(number(5)?)),
                    Some("crashes") => Some(Fault::Crash(number(5)?)),
                    Some("loses") => Some(Fault::Lose(number(4)?)),
                    Some("fails") => Some(Fault::Fail(number(5)?, u16::try_from(number(7)?).ok()?)),
                    Some(_) => return None,
                },
            ),
            "go-on" => Self::GoOn(operator(1)?),
            "kill-operator" => Self::KillOperator(operator(1)?),
            "replace" => Self::Replace(own(1)?, one_of(2, &STRATEGIES)?, one_of(3, &VOLUMES)?),
            "take-back" => Self::TakeBack,
            "wipe" => Self::Wipe(own(1)?),
            "lose-data" => Self::LoseData(own(1)?),
            "damage" => Self::Damage(own(1)?),
            "copy" => Self::Copy(own(1)?),
            "roll-back" => Self::RollBack(own(1)?),
            "delete-volume" => Self::DeleteVolume(own(1)?),
            "fill-disk" => Self::Full(own(1)?, true),
            "free-disk" => Self::Full(own(1)?, false),
            "clock" => Self::Clock(operator(1)?, words.get(2)?.trim_end_matches("ms").parse().ok()?),
            "forge" => Self::Forge(own(1)?),
            "wait" => Self::Wait(number(1)? as u64),
            "put" => Self::Put,
            "kill" => Self::Kill(own(1)?),
            "stop" => Self::Stop(own(1)?),
            "continue" => Self::Continue(own(1)?),
            "delete-pod" => Self::DeletePod(own(1)?),
            "evict" => Self::Evict(own(1)?),
            "node-dies" => Self::NodeDies(own(1)?),
            "node-returns" => Self::NodeReturns(own(1)?),
            "cordon" => Self::Cordon(own(1)?, true),
            "uncordon" => Self::Cordon(own(1)?, false),
            "surge" => Self::Surge(true),
            "no-surge" => Self::Surge(false),
            "work" => Self::Work(number(1)? as u64),
            "cut" => Self::Cut(own(1)?, own(2)?),
            "heal" => Self::Heal(own(1)?, own(2)?),
            "blind" => Self::Blind(own(1)?),
            "see" => Self::See(own(1)?),
            "unanswered" => Self::Unanswered(number(1)? as u64),
            "settle" => Self::Settle,
            "expect" => Self::Expect(own(1)?, words.get(2..)?.join(" ")),
            _ => return None,
        })
    }
}

/// How a story ended.
#[derive(Debug)]
pub(crate) struct Report {
    /// The invariant that was broken, if one was.
    pub(crate) violation: Option<String>,
    pub(crate) journal: Vec<String>,
}

/// Tells a story from an empty world, with that planner in both operators.
pub(crate) fn tell(acts: &[Act], planner: Planner) -> Report {
    match acts {
        [Act::Create(replicas, version), Act::Settle, rest @ ..] => {
            tell_from(formed(*replicas, version), rest, planner).0
        }
        acts => tell_from(World::new(), acts, planner).0,
    }
}

/// A cluster that has formed and is at rest: most stories begin there, and all in the same way.
fn formed(replicas: usize, version: &'static str) -> World {
    static FORMED: Mutex<BTreeMap<(usize, &str), World>> = Mutex::new(BTreeMap::new());
    let known = lock(&FORMED).get(&(replicas, version)).cloned();
    known.unwrap_or_else(|| {
        let begin = [Act::Create(replicas, version), Act::Settle];
        let (report, world) = tell_from(World::new(), &begin, plan);
        assert_eq!(report.violation, None, "{}", report.journal.join("\n"));
        lock(&FORMED).insert((replicas, version), world.clone());
        world
    })
}

fn tell_from(world: World, acts: &[Act], planner: Planner) -> (Report, World) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let world: Shared = Arc::new(Mutex::new(world));
        let mut operators = OPERATORS.map(|name| Operator::new(name, &world, planner));
        for act in acts {
            lock(&world).note(&format!("> {act}"));
            perform(&world, &mut operators, act).await;
            if lock(&world).violation.is_some() {
                break;
            }
        }
        drop(operators);
        let mut world = lock(&world).clone();
        let report =
            Report { violation: world.violation.take(), journal: std::mem::take(&mut world.journal) };
        (report, world)
    })
}

fn key(kind: &'static str, name: &str) -> Key {
    (kind, NAMESPACE.to_owned(), name.to_owned())
}

fn spec(world: &mut World, field: &str, value: Value) {
    world.api.change(&key("EtcdCluster", CLUSTER), |object| object["spec"][field] = value);
}

fn process(world: &World, member: &str) -> Option<String> {
    world.pod(member).map(|(_, uid)| uid)
}

async fn perform(world: &Shared, operators: &mut [Operator; 2], act: &Act) {
    if let Act::Pass(operator, fault) = act {
        return operators[*operator].passes(*fault).await;
    }
    if let Act::GoOn(operator) = act {
        return operators[*operator].goes_on().await;
    }
    if let Act::KillOperator(operator) = act {
        return operators[*operator].dies();
    }
    if *act == Act::Settle {
        return settle(world, operators).await;
    }
    if let Act::Work(rounds) = act {
        for _ in 0..*rounds {
            operators[0].passes(None).await;
            kubelet::wait(&mut lock(world), 1000);
        }
        return;
    }
    let world = &mut *lock(world);
    let now = world.clock();
    match act {
        Act::Create(replicas, version) => {
            if world.cluster().is_none() {
                invariants::new_object(world);
                // Members are given up as soon as the schema allows, so that short stories have it.
                let repair = json!({"unhealthyAfter": "10s"});
                let spec = json!({"replicas": replicas, "version": version, "tls": {"mode": "Disabled"}, "repair": repair});
                world.api.create(key("EtcdCluster", CLUSTER), json!({"spec": spec, "metadata": {}}), &now);
            }
        }
        Act::Delete => world.api.remove(&key("EtcdCluster", CLUSTER)),
        Act::Replicas(replicas) => spec(world, "replicas", json!(replicas)),
        Act::Impossible(on) => {
            let selector = if *on { json!({"node": "nowhere"}) } else { json!({}) };
            spec(world, "placement", json!({"nodeSelector": selector}));
        }
        Act::NoImage(on) => {
            let repository = if *on { json!({"repository": "nowhere.example/etcd"}) } else { Value::Null };
            spec(world, "image", repository);
        }
        Act::BadFlag(on) => {
            let flags = if *on { json!({kubelet::BAD_FLAG: "1"}) } else { json!({}) };
            spec(world, "extraArgs", flags);
        }
        Act::Size(size) => {
            let has = world.cluster().and_then(|cluster| text(cluster, "/spec/storage/size"));
            // The CRD lets it grow only.
            if SIZES.iter().position(|known| Some(*known) == has.as_deref())
                < SIZES.iter().position(|known| known == size)
            {
                spec(world, "storage", json!({"size": size}));
            }
        }
        Act::Expandable(on) => {
            let class = ("StorageClass", String::new(), "standard".to_owned());
            world.api.change(&class, |class| class["allowVolumeExpansion"] = json!(on));
        }
        Act::Replace(member, strategy, volume) => {
            world.asked += 1;
            let name = format!("ask-{}", world.asked);
            let spec = json!({"clusterRef": {"name": CLUSTER}, "member": member, "strategy": strategy, "volume": volume});
            world.api.create(
                key("EtcdMemberReplacement", &name),
                json!({"spec": spec, "metadata": {}}),
                &now,
            );
        }
        Act::TakeBack => {
            let name = format!("ask-{}", world.asked);
            world.api.remove(&key("EtcdMemberReplacement", &name));
        }
        Act::Wipe(member) => {
            harm(world, member, |disk, _| (disk.data, disk.stamp) = (etcd::Disk::default(), None));
        }
        Act::LoseData(member) => harm(world, member, |disk, _| disk.data = etcd::Disk::default()),
        Act::Damage(member) => harm(world, member, |disk, _| disk.damaged = disk.data.data.is_some()),
        Act::RollBack(member) => harm(world, member, |disk, saved| {
            if let Some(saved) = saved {
                disk.data = saved.data.clone();
            }
        }),
        Act::Full(member, on) => fill(world, member, *on),
        Act::Clock(operator, skew) => drop(world.skews.insert(OPERATORS[*operator], *skew)),
        Act::Copy(member) => copy(world, member),
        Act::DeleteVolume(member) => world.api.mark_deleted(&key("PersistentVolumeClaim", member), &now),
        Act::Forge(member) => {
            if let Some(process) = process(world, member) {
                world.etcd.forge(&process, FORGED + u64::from(world.next_address));
                world.next_address += 1;
            }
        }
        Act::Wait(millis) => kubelet::wait(world, *millis),
        Act::Put => drop(world.put()),
        Act::Kill(member) => {
            if let Some(process) = process(world, member)
                && let Some(disk) = world.etcd.stop(&process)
            {
                kubelet::ended(world, &process, disk, json!({"signal": 9}));
            }
        }
        Act::Stop(member) => {
            if let Some(process) = process(world, member) {
                world.etcd.pause(&process);
            }
        }
        Act::Continue(member) => {
            if let Some(process) = process(world, member) {
                world.etcd.resume(&process);
            }
        }
        Act::DeletePod(member) => {
            if world.pod(member).is_some() {
                world.api.mark_deleted(&key("Pod", member), &now);
            }
        }
        Act::Evict(member) => {
            if !kubelet::evict(world, member) {
                world.note("the eviction is refused");
            }
        }
        Act::NodeDies(node) => node_dies(world, node),
        Act::NodeReturns(node) => drop(world.nodes.insert(node.clone(), true)),
        Act::Cordon(node, on) => cordon(world, node, *on),
        Act::Surge(on) => spec(world, "disruption", json!({"surge": on})),
        Act::Cut(from, to) => cut(world, from, to, true),
        Act::Heal(from, to) => cut(world, from, to, false),
        Act::Blind(member) => drop(world.unreachable.insert(member.clone())),
        Act::See(member) => drop(world.unreachable.remove(member)),
        Act::Unanswered(millis) => world.unanswered = *millis,
        Act::Expect(what, value) => expect(world, what, value),
        Act::Pass(..) | Act::GoOn(_) | Act::KillOperator(_) | Act::Work(_) | Act::Settle => {}
    }
    invariants::note_silence(world);
}

fn cordon(world: &mut World, node: &str, on: bool) {
    let key = ("Node", String::new(), node.to_owned());
    world.api.change(&key, |node| node["spec"]["unschedulable"] = on.into());
}

fn node_dies(world: &mut World, node: &str) {
    if world.nodes.insert(node.to_owned(), false) != Some(true) {
        return;
    }
    let pods: Vec<String> = world
        .api
        .all("Pod")
        .filter(|pod| pod["spec"]["nodeName"] == node)
        .map(|pod| identity(pod).1)
        .collect();
    for pod in pods {
        kubelet::stop(world, &pod);
    }
}

/// What lies on a member's volume now.
fn copy(world: &mut World, member: &str) {
    let Some(claim) = world.api.get("PersistentVolumeClaim", member).map(|claim| identity(claim).1) else {
        return;
    };
    let Some(mut disk) = world.disks.get(&claim).cloned() else { return };
    if let Some(running) = process(world, member).and_then(|process| world.etcd.disk(&process)) {
        disk.data = running;
    }
    world.saved.insert(claim, disk);
}

/// Kills a member and does something to its volume.
fn harm(world: &mut World, member: &str, harm: impl FnOnce(&mut Disk, Option<&Disk>)) {
    let Some(claim) = world.api.get("PersistentVolumeClaim", member).map(|claim| identity(claim).1) else {
        return;
    };
    if let Some(process) = process(world, member)
        && let Some(disk) = world.etcd.stop(&process)
    {
        kubelet::ended(world, &process, disk, json!({"signal": 9}));
    }
    let saved = world.saved.get(&claim);
    if let Some(disk) = world.disks.get_mut(&claim) {
        harm(disk, saved);
    }
}

fn fill(world: &mut World, member: &str, on: bool) {
    let claim = world.api.get("PersistentVolumeClaim", member).map(|claim| identity(claim).1);
    let Some(disk) = claim.and_then(|claim| world.disks.get_mut(&claim)) else { return };
    disk.full = on;
    if let Some(process) = process(world, member).filter(|_| on)
        && let Some(disk) = world.etcd.stop(&process)
    {
        kubelet::ended(world, &process, disk, json!({"exit": 1, "lines": [kubelet::NO_SPACE]}));
    }
}

fn cut(world: &mut World, from: &str, to: &str, on: bool) {
    let (Some(from), Some(to)) = (process(world, from), process(world, to)) else { return };
    if on { world.etcd.cut(&from, &to) } else { world.etcd.heal(&from, &to) }
}

/// What a story claims.
fn expect(world: &mut World, what: &str, value: &str) {
    let truth = Truth::of(world);
    let conditions = |type_: &str| {
        let all = world
            .cluster()
            .and_then(|cluster| cluster["status"]["conditions"].as_array().cloned())
            .unwrap_or_default();
        all.into_iter()
            .find(|one| one["type"] == type_)
            .and_then(|one| text(&one, "/reason"))
            .unwrap_or_default()
    };
    let is = match what {
        "voters" => truth.map_or(0, |truth| truth.voters.len()).to_string(),
        "learners" => truth.map_or(0, |truth| truth.learners.len()).to_string(),
        "members" => {
            truth.map(|truth| truth.names().into_iter().collect::<Vec<_>>().join(" ")).unwrap_or_default()
        }
        "volumes" => world
            .api
            .all("PersistentVolumeClaim")
            .map(|claim| identity(claim).0)
            .collect::<Vec<_>>()
            .join(" "),
        "replaced" => {
            let one = |request: &Value| {
                let phase = text(request, "/status/phase").unwrap_or_default();
                format!("{} {phase}", identity(request).0)
            };
            world.api.all("EtcdMemberReplacement").map(one).collect::<Vec<_>>().join(" ")
        }
        "sizes" => {
            let sizes = world
                .api
                .all("PersistentVolumeClaim")
                .filter_map(|claim| text(claim, "/spec/resources/requests/storage"));
            sizes.collect::<Vec<_>>().join(" ")
        }
        "budget" => world.api.get("PodDisruptionBudget", CLUSTER).map(Value::to_string).unwrap_or_default(),
        "conditions" => {
            world.cluster().map(|cluster| cluster["status"]["conditions"].to_string()).unwrap_or_default()
        }
        "summary" => world.cluster().and_then(|cluster| text(cluster, "/status/summary")).unwrap_or_default(),
        condition => conditions(condition),
    };
    let holds =
        if matches!(what, "summary" | "budget" | "conditions") { is.contains(value) } else { is == value };
    if !holds {
        world.violate("story", &format!("{what} is {is:?}, not {value:?}"));
    }
}

/// Cures everything, lets the operator work and time pass until it writes nothing, and looks whether all is as it
/// should be (ESR: eventually stable reconciliation), and stays so.
async fn settle(shared: &Shared, operators: &mut [Operator; 2]) {
    cure(&mut lock(shared));
    for operator in operators.iter_mut() {
        operator.goes_on().await;
    }
    let mut quiet = 0;
    for _ in 0..PATIENCE {
        operators[0].passes(None).await;
        let wrote = operators[0].writes();
        let world = &mut *lock(shared);
        if world.violation.is_some() {
            return;
        }
        // Where nobody can help, those who were removed start and end again and again, and that is told.
        let calm = wrote == 0 || invariants::is_beyond_repair(world);
        quiet = if calm && at_rest(world).is_none() { quiet + 1 } else { 0 };
        if quiet >= 3 {
            return at_last(world);
        }
        kubelet::wait(world, 1000);
        if world.violation.is_some() {
            return;
        }
    }
    let world = &mut *lock(shared);
    let why = at_rest(world).unwrap_or_else(|| "it goes on writing".to_owned());
    world.violate("ESR", &format!("not at rest after {PATIENCE} rounds: {why}"));
}

fn cure(world: &mut World) {
    for up in world.nodes.values_mut() {
        *up = true;
    }
    let nodes: Vec<String> = world.nodes.keys().cloned().collect();
    for node in nodes {
        cordon(world, &node, false);
    }
    world.unreachable.clear();
    world.skews.clear();
    for disk in world.disks.values_mut() {
        disk.full = false;
    }
    let processes: Vec<String> = world.etcd.running().map(str::to_owned).collect();
    for process in &processes {
        world.etcd.resume(process);
    }
    world.etcd.heal_all();
    let class = ("StorageClass", String::new(), "standard".to_owned());
    world.api.change(&class, |class| class["allowVolumeExpansion"] = json!(true));
    if world.cluster().is_some() {
        spec(world, "placement", json!({}));
        spec(world, "image", Value::Null);
        spec(world, "extraArgs", json!({}));
    }
}

/// What is not yet as the spec asks for.
fn at_rest(world: &World) -> Option<String> {
    let cluster = world.cluster()?;
    if invariants::is_beyond_repair(world) {
        let told = cluster["status"]["conditions"].to_string();
        let blocked =
            ["QuorumLost", "AllMembersLost", "RepairRefused"].iter().any(|word| told.contains(word));
        let unnoticed = text(cluster, "/status/summary").as_deref() == Some("Healthy");
        return (!blocked && !unnoticed).then(|| "it is beyond repair, and nobody is told".to_owned());
    }
    let wanted =
        cluster["spec"]["replicas"].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(3);
    let Some(truth) = Truth::of(world) else { return Some("the cluster is not on record".to_owned()) };
    if (truth.voters.len(), truth.learners.len()) != (wanted, 0) {
        return Some(format!(
            "{} voters and {} learners, wanted {wanted}",
            truth.voters.len(),
            truth.learners.len()
        ));
    }
    let summary = text(cluster, "/status/summary").unwrap_or_default();
    if summary != "Healthy" && !summary.starts_with("RollOutPending") {
        return Some(summary);
    }
    let pods = world.api.all("Pod").count();
    if pods != wanted {
        return Some(format!("{pods} Pods, wanted {wanted}"));
    }
    let labelled = world.api.all("Pod").filter(|pod| super::apiserver::has_voter_label(pod)).count();
    if labelled != wanted {
        return Some(format!("{labelled} Pods serve, wanted {wanted}"));
    }
    let size = text(cluster, "/spec/storage/size");
    let small = world.api.all("PersistentVolumeClaim").any(|claim| {
        let member = truth.names().contains(&identity(claim).0);
        member && size.is_some() && text(claim, "/spec/resources/requests/storage") != size
    });
    small.then(|| "a volume has not grown".to_owned())
}

/// At rest: nothing acknowledged is lost, and nobody is there who should not be.
fn at_last(world: &mut World) {
    invariants::after_time(world);
    if world.cluster().is_some() && !invariants::is_beyond_repair(world) && !world.put() {
        world.violate("ESR", "clients cannot write");
    }
}
