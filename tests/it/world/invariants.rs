//! What must hold, whatever happens: the invariants of `reliability.md` 3.1, on what *is*, not on what the operator
//! believes.

use std::collections::{BTreeMap, BTreeSet};

use quorate::etcd::identity::bootstrap_member_id;
use quorate::etcd::membership::Call;
use quorate::etcd::quorum::quorum;
use quorate::etcd::{ClusterId, MemberId};
use serde_json::Value;

use super::World;
use super::apiserver::{Request, has_voter_label, identity, text};
use super::etcd::{self, Millis, Start};

/// Evidence may be so old when it is acted on: the deadline of a request and of the survey before it.
const FRESH: Millis = 15_000;

/// What was seen so far.
#[derive(Clone, Default)]
pub(crate) struct Witness {
    /// The last (term, index) of each member's log when its process last ended.
    high: BTreeMap<MemberId, (u64, u64)>,
    /// Clusters that clients have written to, by the EtcdCluster's UID.
    served: BTreeMap<String, BTreeSet<ClusterId>>,
    /// When a member last failed to answer.
    silent: BTreeMap<MemberId, Millis>,
    /// Names that were members once.
    former: BTreeSet<String>,
    /// Peer URLs of today's members.
    present: BTreeSet<String>,
}

/// The cluster on record as it really is.
#[derive(Clone, Debug)]
pub(crate) struct Truth {
    pub(crate) cluster: ClusterId,
    pub(crate) voters: BTreeMap<MemberId, String>,
    pub(crate) learners: BTreeMap<MemberId, String>,
    /// Voters whose process runs and is not about to be stopped.
    pub(crate) alive: BTreeSet<MemberId>,
    pub(crate) leader: Option<MemberId>,
}

impl Truth {
    /// By the newest applied member list of the cluster in the status; `None` before it is on record.
    pub(crate) fn of(world: &World) -> Option<Self> {
        let cluster: ClusterId = text(world.cluster()?, "/status/clusterID")?.parse().ok()?;
        let running =
            || world.etcd.running().filter_map(|process| Some((process, world.etcd.data(process)?)));
        let lying = world.disks.values().filter_map(|disk| disk.data.data.as_deref());
        let all = running().map(|(_, data)| data).chain(lying).filter(|data| data.cluster == cluster);
        let store = &all.max_by_key(|data| data.store.applied)?.store;
        let stays = |process: &str| {
            world.api.all("Pod").any(|pod| {
                pod["metadata"]["uid"] == *process && pod["metadata"]["deletionTimestamp"].is_null()
            })
        };
        let (mut alive, mut leader) = (BTreeSet::new(), None);
        for (process, data) in running().filter(|(process, data)| data.cluster == cluster && stays(process)) {
            let Ok(status) = world.etcd.status(process) else { continue };
            alive.insert(data.member);
            if status.leader == Some(status.member) {
                leader = Some(status.member);
            }
        }
        let name = |member: &etcd::Member| {
            member
                .peer_url
                .split("://")
                .nth(1)
                .and_then(|host| host.split('.').next())
                .unwrap_or_default()
                .to_owned()
        };
        let (learners, voters): (Vec<_>, Vec<_>) = store.members.values().partition(|member| member.learner);
        let voters: BTreeMap<MemberId, String> =
            voters.into_iter().map(|member| (member.id, name(member))).collect();
        alive.retain(|id| voters.contains_key(id));
        let learners = learners.into_iter().map(|member| (member.id, name(member))).collect();
        Some(Self { cluster, voters, learners, alive, leader })
    }

    fn has_quorum(&self) -> bool {
        self.alive.len() >= quorum(self.voters.len())
    }

    pub(crate) fn names(&self) -> BTreeSet<String> {
        self.voters.values().chain(self.learners.values()).cloned().collect()
    }
}

/// After a write of the operator's: it may not have cost the quorum.
pub(crate) fn after_effect(world: &mut World, before: Option<&Truth>) {
    // What etcd has taken is applied within moments.
    let after = Truth::of(world);
    if let (Some(before), Some(after)) = (before, &after)
        && before.cluster == after.cluster
        && before.has_quorum()
        && !after.has_quorum()
    {
        let sum = format!(
            "{} of {} voters alive before, {} of {} after",
            before.alive.len(),
            before.voters.len(),
            after.alive.len(),
            after.voters.len()
        );
        world.violate("I-1 quorum", &sum);
    }
}

/// Before a request that writes to Kubernetes.
pub(crate) fn before_write(world: &mut World, request: &Request) {
    let Some(truth) = Truth::of(world) else {
        return before_record(world, request);
    };
    match (request.method.as_str(), request.kind) {
        ("DELETE", "Pod") => deletes_pod(world, request, &truth),
        ("DELETE", "PersistentVolumeClaim") => deletes_volume(world, request, &truth),
        ("DELETE", "Secret" | "Service" | "ConfigMap") => {
            world.violate("I-11 belongings", "deletes what members need");
        }
        ("POST", "Pod") => makes_pod(world, request),
        ("PATCH", "Pod") => labels_pod(world, request, &truth),
        ("PATCH", "EtcdCluster") if request.status => tells(world, request, &truth),
        _ => {}
    }
}

fn before_record(world: &mut World, request: &Request) {
    // Without an EtcdCluster, a pass that was held acts on what is nobody's any more.
    if world.cluster().is_some()
        && request.kind == "Pod"
        && request.body["metadata"]["labels"]["quorate.dev/role"] == "voter"
    {
        world.violate("I-12 record first", "lets clients in before the cluster is on record");
    }
    if (request.method.as_str(), request.kind) == ("DELETE", "PersistentVolumeClaim") {
        foreign(world, request);
    }
}

fn existing<'a>(world: &'a World, request: &Request) -> Option<&'a Value> {
    world.api.get(request.kind, request.name.as_deref()?)
}

/// Whether the preconditions let the request through at all.
fn applies(object: &Value, request: &Request) -> bool {
    let named = &request.body["preconditions"];
    ["uid", "resourceVersion"].iter().all(|field| {
        named[field].is_null() || named[field] == "" || named[field] == object["metadata"][field]
    })
}

fn foreign(world: &mut World, request: &Request) {
    let uid = world.cluster().map(|cluster| identity(cluster).1);
    let Some(claim) = existing(world, request).filter(|claim| applies(claim, request)) else { return };
    if claim["metadata"]["labels"]["quorate.dev/cluster-uid"].as_str() != uid.as_deref() {
        world.violate("I-3 volumes", "deletes a volume of another EtcdCluster");
    }
}

fn deletes_pod(world: &mut World, request: &Request, truth: &Truth) {
    let Some(pod) = existing(world, request).filter(|pod| applies(pod, request)) else { return };
    let (name, process) = identity(pod);
    let Ok(status) = world.etcd.status(&process) else { return };
    if world.etcd.read(&process).is_err() {
        return;
    }
    let votes = truth.voters.contains_key(&status.member) && status.cluster == truth.cluster;
    let late =
        world.stale && world.witness.silent.get(&status.member).is_some_and(|at| world.now - at < FRESH);
    let silent = late || world.unreachable.contains(&name);
    if votes && !silent && truth.has_quorum() && truth.alive.len() - 1 < quorum(truth.voters.len()) {
        world.violate("I-1 quorum", &format!("deletes the Pod of {name}, without which there is none"));
    } else if votes && Some(status.member) == truth.leader && !silent {
        world.violate("I-8 leader", &format!("deletes the Pod of the leader {name}"));
    } else if votes
        && !silent
        && !(asked_for(world, status.member) && truth.alive.len() == truth.voters.len())
    {
        world.violate("I-2 restraint", &format!("deletes the Pod of {name}, which serves"));
    }
}

/// Whether a person, or a repair, wants this member to make way and its volume to be used again.
fn asked_for(world: &World, id: MemberId) -> bool {
    world.api.all("EtcdMemberReplacement").any(|request| {
        request["status"]["memberID"] == id.to_string() && request["status"]["volume"] == "Keep"
    })
}

fn deletes_volume(world: &mut World, request: &Request, truth: &Truth) {
    foreign(world, request);
    let Some(claim) = existing(world, request).filter(|claim| applies(claim, request)) else { return };
    let (name, uid) = identity(claim);
    let on_disk = world.disks.get(&uid).and_then(|disk| disk.data.data.as_ref()).map(|data| data.member);
    let running = world.containers.iter().find_map(|(process, _)| {
        let pod = world.api.all("Pod").find(|pod| identity(pod).1 == *process)?;
        (identity(pod).0 == name).then(|| world.etcd.status(process).ok()).flatten()
    });
    let holds = on_disk.or(running.map(|status| status.member));
    let member = holds.is_some_and(|id| truth.voters.contains_key(&id) || truth.learners.contains_key(&id));
    if member {
        world.violate("I-3 volumes", &format!("deletes the volume of {name}, which is a member"));
    } else if holds.is_some() && !truth.has_quorum() {
        world.violate("I-3 volumes", &format!("deletes the volume {name} while quorum is lost"));
    }
}

fn makes_pod(world: &mut World, request: &Request) {
    // One that was decided before the record was made finds data on its volume, which etcd minds more than the flag.
    let name = text(&request.body, "/metadata/name").unwrap_or_default();
    let is_new = !world.stale && world.api.get("Pod", &name).is_none();
    if is_new && request.body.to_string().contains("--initial-cluster-state=new") {
        world.violate("I-5 one bootstrap", "founds a cluster that is on record");
    }
}

fn labels_pod(world: &mut World, request: &Request, truth: &Truth) {
    let voter = request.body["metadata"]["labels"]["quorate.dev/role"] == "voter";
    let name = request.name.clone().unwrap_or_default();
    // One that is ending gets no clients, whatever an operator that was held believes of it.
    let ends = world.pod(&name).is_some_and(|(pod, _)| !pod["metadata"]["deletionTimestamp"].is_null());
    if voter && !ends && !truth.voters.values().any(|member| *member == name) {
        world.violate("I-12 truth", &format!("lets clients in to {name}, which does not vote"));
    }
}

/// `Ready=True` only while somebody can read with quorum.
fn tells(world: &mut World, request: &Request, truth: &Truth) {
    let current = world.cluster().map(|cluster| cluster["metadata"]["resourceVersion"].clone());
    if current.as_ref() != Some(&request.body["metadata"]["resourceVersion"]) {
        return;
    }
    let conditions = request.body["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
    let processes: Vec<String> = world.etcd.running().map(str::to_owned).collect();
    let serves = processes.iter().any(|process| {
        world.etcd.status(process).is_ok_and(|status| status.cluster == truth.cluster)
            && world.etcd.read(process).is_ok()
    });
    let just_now =
        truth.voters.keys().all(|id| world.witness.silent.get(id).is_none_or(|at| world.now - at > FRESH));
    if ready && !serves && just_now {
        world.violate("I-12 truth", "says Ready while nobody can read with quorum");
    }
}

/// Before a call to etcd.
pub(crate) fn before_call(world: &mut World, truth: Option<&Truth>, call: &Call) {
    // A pass that was held acts on what an EtcdCluster left that is deleted by now: nobody's any more.
    let Some(truth) = truth else { return };
    match call {
        Call::Remove(id) if truth.voters.contains_key(id) => {
            if truth.leader == Some(*id) {
                world.violate("I-8 leader", "removes the leader");
            }
            if is_only_full(world, truth, *id) {
                world.violate("I-2 patience", "gives up a member whose disk is only full");
            }
            if truth.alive.contains(id)
                && truth.alive.len() < truth.voters.len()
                && !recently_silent(world, truth)
            {
                world.violate("I-2 restraint", "removes a voter while another is down");
            }
        }
        Call::Promote(id) => promotes(world, truth, *id),
        Call::AddLearner(url) => {
            let name = url
                .split("://")
                .nth(1)
                .and_then(|host| host.split('.').next())
                .unwrap_or_default()
                .to_owned();
            // One that was wiped in place keeps its name: its volume's incarnation tells the two apart.
            let claim = world.api.get("PersistentVolumeClaim", &name);
            let again =
                claim.is_some_and(|claim| claim["metadata"]["annotations"]["quorate.dev/incarnation"] != "0");
            // A call that another operator's add and removal have overtaken finds the list as it was: nobody can know.
            // Its learner never gets the volume, which carries the ID of the one before.
            if world.witness.former.contains(&name) && !again && !world.stale {
                world.violate("I-10 names", &format!("{name} is used for a second member"));
            }
            // A call that was under way for long is etcd's to refuse (`--max-learners`).
            if truth.learners.len() >= 2 && !world.stale {
                world.violate("I-2 restraint", "adds a third learner");
            }
            if truth.alive.len() < truth.voters.len()
                && truth.voters.len() % 2 == 1
                && !recently_silent(world, truth)
            {
                world.violate("I-2 restraint", "grows while a voter is down");
            }
        }
        Call::Remove(_) | Call::MoveLeader(_) | Call::Disarm(..) | Call::Nudge => {}
    }
}

/// Whether nothing is wrong with a member but that it cannot write, and nobody wants it away.
fn is_only_full(world: &World, truth: &Truth, id: MemberId) -> bool {
    let wanted = world.cluster().and_then(|cluster| cluster["spec"]["replicas"].as_u64()).unwrap_or_default();
    let asked = world.api.all("EtcdMemberReplacement").any(|request| {
        let repair = request["metadata"]["labels"]["quorate.dev/created-by"] == "repair";
        !repair && request["status"]["memberID"] == id.to_string()
    });
    let Some(name) = truth.voters.get(&id).filter(|_| truth.voters.len() as u64 <= wanted && !asked) else {
        return false;
    };
    let Some(claim) = world.api.get("PersistentVolumeClaim", name) else { return false };
    let Some(disk) = world.disks.get(&identity(claim).1) else { return false };
    let Some(data) = disk.data.data.as_deref() else { return false };
    let known =
        world.witness.high.get(&id).is_none_or(|high| (data.log.last_term(), data.log.last()) >= *high);
    let forged = data.store.keys.range(super::story::FORGED..).next().is_some();
    // Whose node is dead may be gone for good.
    let node_is_up = disk.node.as_ref().is_some_and(|node| world.nodes.get(node) == Some(&true));
    let goes = !claim["metadata"]["deletionTimestamp"].is_null();
    let trusted = disk.stamp.is_some() && !disk.damaged && known && !forged && data.member == id;
    disk.full && trusted && node_is_up && !goes && !world.stale
}

/// Whether somebody fell silent so late that the operator may not have seen it yet.
fn recently_silent(world: &World, truth: &Truth) -> bool {
    let late = |id| world.witness.silent.get(id).is_some_and(|at| world.now - at < FRESH);
    world.stale && truth.voters.keys().any(late)
}

/// Before a learner votes, its volume and the status must say who it is.
fn promotes(world: &mut World, truth: &Truth, id: MemberId) {
    let Some(name) = truth.learners.get(&id).cloned() else { return };
    let hex = id.to_string();
    let claim = world.api.get("PersistentVolumeClaim", &name);
    let noted = claim.is_some_and(|claim| claim["metadata"]["annotations"]["quorate.dev/member-id"] == hex);
    let recorded =
        world.cluster().and_then(|cluster| cluster["status"]["members"].as_array()).is_some_and(|members| {
            members.iter().any(|member| member["name"] == name && member["memberID"] == hex)
        });
    if !noted || !recorded {
        world.violate("I-4 no amnesia", &format!("promotes {name}, which is not on record"));
    }
}

/// A process is about to start.
pub(crate) fn process_starts(world: &mut World, uid: &str, start: &Start, disk: &etcd::Disk) {
    let truth = Truth::of(world);
    let claim_is_shared = {
        let mine = world.api.all("Pod").find(|pod| identity(pod).1 == uid).map(|pod| identity(pod).0);
        world.etcd.running().filter(|other| *other != uid).any(|other| {
            world.api.all("Pod").any(|pod| identity(pod).1 == other && Some(identity(pod).0) == mine)
        })
    };
    if claim_is_shared {
        world.violate("I-7 one process", "two processes on one volume");
    }
    // Before there is a record no client was let in: what a founder forgets, nobody was promised.
    if truth.is_none() && disk.data.is_none() {
        world.witness.high.remove(&bootstrap_member_id(&start.peer_url, &start.token));
    }
    match &disk.data {
        Some(data) => {
            let now = (data.log.last_term(), data.log.last());
            if world.witness.high.get(&data.member).is_some_and(|high| now < *high) {
                world.violate("I-4 no amnesia", &format!("{} starts on an older log", data.member));
            }
        }
        None if start.new => {
            let id = bootstrap_member_id(&start.peer_url, &start.token);
            if world.witness.high.contains_key(&id) {
                world.violate("I-4 no amnesia", &format!("{id} starts on an empty volume"));
            }
            if truth.is_some() {
                world.violate(
                    "I-5 one bootstrap",
                    &format!("{} founds a cluster beside the one on record", start.name),
                );
            }
        }
        None => {
            let voter = truth.as_ref().and_then(|truth| {
                truth.voters.iter().find(|(_, name)| **name == start.name).map(|(id, _)| *id)
            });
            if voter.is_some_and(|id| world.witness.high.contains_key(&id)) {
                world.violate("I-4 no amnesia", &format!("{} starts on an empty volume", start.name));
            }
        }
    }
}

/// What a process had on disk when it ended.
pub(crate) fn process_ended(witness: &mut Witness, disk: &etcd::Disk) {
    if let Some(data) = &disk.data {
        let high = witness.high.entry(data.member).or_default();
        *high = (*high).max((data.log.last_term(), data.log.last()));
    }
}

/// A write was acknowledged by that process.
pub(crate) fn acknowledged(world: &mut World, process: &str) {
    let Some(cluster) = world.cluster().cloned() else { return };
    let recorded = text(&cluster, "/status/clusterID");
    let Ok(status) = world.etcd.status(process) else { return };
    let (_, uid) = identity(&cluster);
    let served = world.witness.served.entry(uid).or_default();
    served.insert(status.cluster);
    if served.len() > 1 {
        world.violate("I-5 one bootstrap", "clients have written to two clusters");
    }
    if recorded != Some(status.cluster.to_string()) {
        world.violate("I-12 record first", "a write was acknowledged by a cluster that is not on record");
    }
}

/// Whether a machine cannot know what is right: two voters or more have lost what they knew, or too few have not.
pub(crate) fn is_beyond_repair(world: &World) -> bool {
    let recorded = world.cluster().is_some_and(|cluster| text(cluster, "/status/clusterID").is_some());
    let Some(truth) = Truth::of(world) else { return recorded };
    let keeps = |(id, name): &(&MemberId, &String)| {
        let Some(claim) = world.api.get("PersistentVolumeClaim", name) else { return false };
        let Some(disk) = world.disks.get(&identity(claim).1) else { return false };
        let running = world.pod(name).and_then(|(_, process)| world.etcd.data(&process));
        // A volume that is being deleted goes with the Pod that it waits for; one that cannot run only a person can mend.
        if running.is_none() && !claim["metadata"]["deletionTimestamp"].is_null() {
            return false;
        }
        let Some(data) = running.or(disk.data.data.as_deref()) else { return false };
        let now = (data.log.last_term(), data.log.last());
        let forged = data.store.keys.range(super::story::FORGED..).next().is_some();
        let whole = (running.is_some() || !disk.damaged) && !forged;
        whole && data.member == **id && world.witness.high.get(id).is_none_or(|high| now >= *high)
    };
    let good = truth.voters.iter().filter(keeps).count();
    good + 1 < truth.voters.len() || good < quorum(truth.voters.len())
}

/// After every step of time.
pub(crate) fn after_time(world: &mut World) {
    let processes: Vec<String> = world.etcd.running().map(str::to_owned).collect();
    for process in &processes {
        let complete = world.etcd.read(process).is_err()
            || world.etcd.data(process).is_none_or(|data| world.acknowledged.is_subset(&data.store.keys));
        if !complete {
            world.violate("I-6 acknowledged writes", &format!("{process} reads with quorum and lacks one"));
        }
    }
    let Some(truth) = note_silence(world) else { return };
    let now = truth.names();
    let gone: Vec<String> = world.witness.present.difference(&now).cloned().collect();
    world.witness.former.extend(gone);
    world.witness.present = now;
    let served: Vec<String> =
        world.api.all("Pod").filter(|pod| has_voter_label(pod)).map(|pod| identity(pod).0).collect();
    if let Some(name) = served.iter().find(|name| truth.learners.values().any(|learner| learner == *name)) {
        let name = name.clone();
        world.violate("I-12 truth", &format!("clients reach the learner {name}"));
    }
}

/// Who does not answer the operator now.
pub(crate) fn note_silence(world: &mut World) -> Option<Truth> {
    let truth = Truth::of(world)?;
    let lost = truth.leader.is_none() || !truth.has_quorum();
    for (id, name) in &truth.voters {
        if lost || !truth.alive.contains(id) || world.unreachable.contains(name) {
            world.witness.silent.insert(*id, world.now);
        }
    }
    Some(truth)
}

/// Another EtcdCluster of the name begins: what was written to the one before is its own matter.
pub(crate) fn new_object(world: &mut World) {
    world.acknowledged.clear();
    world.witness.former.clear();
    world.witness.present.clear();
}
