//! The picture that [`super::plan`] decides on: Kubernetes and etcd, each as it answered.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    ContainerStateTerminated, ContainerStatus, Node, PersistentVolumeClaim, Pod, Taint,
};
use kube::ResourceExt;
use serde::Deserialize;
use serde_json::Value;

use super::credentials::Credentials;
use super::desired::Desired;
use crate::api::cluster::{BootstrapStatus, EtcdClusterStatus};
use crate::api::quantity::parse_bytes;
use crate::api::replacement::{
    EtcdMemberReplacement, EtcdMemberReplacementSpec, EtcdMemberReplacementStatus, Phase,
};
use crate::etcd::connect::Address;
use crate::etcd::failure::{Exit, Failure, telling};
use crate::etcd::flags::is_checked;
use crate::etcd::hash::Hashes;
use crate::etcd::survey::{Answer, ListedMember, Survey};
use crate::etcd::{ClusterId, MemberId};
use crate::operator::names;

/// A Pod that was made together with its volume is called unschedulable for a moment: that is not worth a word.
const SCHEDULING: jiff::SignedDuration = jiff::SignedDuration::from_secs(4);

/// A container that ended within this time may be restarting in a circle: the kubelet pauses 5 min at most.
const RECENTLY: jiff::SignedDuration = jiff::SignedDuration::from_mins(6);

/// Everything that was seen in one look.
#[derive(Clone, Debug)]
pub struct Observed {
    /// What the status has on record.
    pub record: Record,
    /// Volumes whose names are those of members, by name.
    pub volumes: BTreeMap<String, Volume>,
    /// Pods whose names are those of members, by name.
    pub pods: BTreeMap<String, MemberPod>,
    /// Secrets with certificates.
    pub credentials: Credentials,
    /// Services, PodDisruptionBudget and ConfigMap as they are now, by kind and name.
    pub children: BTreeMap<(&'static str, String), Value>,
    /// A storage class that is asked for and does not exist.
    pub missing_storage_class: Option<String>,
    /// Storage classes that EtcdMemberReplacements ask for and that do not exist.
    pub missing_classes: BTreeSet<String>,
    /// Storage classes that let a volume grow, of those of volumes that should.
    pub expandable_classes: BTreeSet<String>,
    /// Where each running member is.
    pub addresses: BTreeMap<String, Address>,
    /// What each running member answered.
    pub survey: Survey,
    /// What all voters of today held when they were last compared.
    pub hashes: Option<Hashes>,
    /// EtcdMemberReplacements of this cluster, the oldest first.
    pub requests: Vec<Request>,
    /// The nodes of its Pods, where `spec.disruption.surge` wants them to be looked at.
    pub nodes: Nodes,
    /// When this look was taken.
    pub now: jiff::Timestamp,
}

/// Nodes by name, or why they cannot be read.
pub type Nodes = Result<BTreeMap<String, NodeState>, String>;

/// What of a node says whether a member may stay on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeState {
    /// Whether it takes no new Pods (`kubectl cordon`).
    pub cordoned: bool,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl NodeState {
    /// Reads a node.
    pub fn of(node: &Node) -> Self {
        let spec = node.spec.clone().unwrap_or_default();
        Self {
            cordoned: spec.unschedulable.unwrap_or_default(),
            taints: spec.taints.unwrap_or_default(),
            labels: node.labels().clone(),
        }
    }
}

/// An EtcdMemberReplacement.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Its name.
    pub name: String,
    /// Its resourceVersion.
    pub resource_version: String,
    /// Its generation.
    pub generation: i64,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether the operator made it, to repair.
    pub repair: bool,
    /// Whether `spec.repair.maxPerHour` counts it.
    pub counted: bool,
    /// Why the operator made it.
    pub why: Option<String>,
    /// What is asked for.
    pub spec: EtcdMemberReplacementSpec,
    /// What was done.
    pub status: EtcdMemberReplacementStatus,
}

/// The part of the status that is a record, not a report: it decides what may be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// The first start.
    pub bootstrap: Option<BootstrapStatus>,
    /// The cluster, once all first volumes carry its ID.
    pub cluster_id: Option<ClusterId>,
    /// The members and their IDs, from the same moment on.
    pub members: BTreeMap<String, MemberId>,
    /// Those of them that do not vote yet.
    pub joining: BTreeSet<String>,
    /// The next number for a member: above every one that was ever used.
    pub next_serial: i32,
    /// Marks last surveyed: (term, applied index) by member.
    pub high_water: BTreeMap<String, (u64, u64)>,
    /// Since when members have not been healthy.
    pub unhealthy_since: BTreeMap<String, jiff::Timestamp>,
}

/// A PersistentVolumeClaim of a member's name.
#[expect(clippy::struct_excessive_bools, reason = "four facts that the apiserver tells one by one")]
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    /// Its UID.
    pub uid: String,
    /// Its resourceVersion.
    pub resource_version: String,
    /// The EtcdCluster that it belongs to; `None`: nobody of ours made it.
    pub cluster_uid: Option<String>,
    /// Whether it goes with its EtcdCluster.
    pub owned: bool,
    /// Whether it is bound.
    pub bound: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Its storage class.
    pub storage_class: Option<String>,
    /// The size that it was asked for.
    pub requested: String,
    /// Whether its member joins, is one, or has left.
    pub state: VolumeState,
    /// Cluster and member on record.
    pub identity: Option<(ClusterId, MemberId)>,
    /// Whether etcd has run on it, so that its data must be there.
    pub started: bool,
    /// Incarnation of its data.
    pub incarnation: u32,
    /// What is meant to become of it.
    pub intent: Option<Intent>,
    /// The member that its member is to replace.
    pub replaces: Option<MemberId>,
    /// Whether its size is its own, and not the spec's.
    pub own_size: bool,
    /// Further labels that its member's node must have.
    pub node_selector: BTreeMap<String, String>,
    /// When it is deleted, since its member was replaced.
    pub delete_after: Option<jiff::Timestamp>,
}

/// What is meant to become of a volume whose member makes way for another. It names the member's ID, so it means nothing
/// for whoever uses the volume next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// The member is removed, its data are put aside, and another begins on the volume.
    Wipe(MemberId),
    /// The member is removed as soon as another votes in its place.
    Leave(MemberId),
    /// The member is started without etcd's own comparison, and serves nobody until its data have been compared.
    Compare(MemberId),
}

/// Where a volume's member is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum VolumeState {
    /// It has not voted yet.
    #[default]
    Joining,
    /// It votes.
    Member,
    /// It has left the cluster; the volume is kept for its data.
    Retired,
}

/// A Pod of a member's name.
#[expect(clippy::struct_excessive_bools, reason = "five facts that the kubelet tells one by one")]
#[derive(Clone, Debug, PartialEq, Default)]
pub struct MemberPod {
    /// Its UID.
    pub uid: String,
    /// Its resourceVersion.
    pub resource_version: String,
    /// The EtcdCluster that owns it.
    pub owner_uid: Option<String>,
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: String,
    /// Its address.
    pub ip: Option<String>,
    /// Its node.
    pub node: Option<String>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// When its kubelet should have ended it, while it is being deleted.
    pub ends_by: Option<jiff::Timestamp>,
    /// Whether the kubelet calls it ready.
    pub ready: bool,
    /// Hash of the template that it was made from.
    pub template: Option<String>,
    /// When it was made.
    pub created: Option<jiff::Timestamp>,
    /// Which certificates it was told to take.
    pub certificates: Option<String>,
    /// Whether its etcd compares its data with its peers' when it starts.
    pub checked: bool,
    /// The members that its etcd is told to join.
    pub initial: BTreeSet<String>,
    /// Whether clients reach it through the Service.
    pub voter_label: bool,
    /// Whether the etcd container runs now.
    pub running: bool,
    /// Since when.
    pub running_since: Option<jiff::Timestamp>,
    /// Whether the etcd container ever ran.
    pub ran: bool,
    /// Why the scheduler finds no node.
    pub unschedulable: Option<String>,
    /// Why a container waits (`ImagePullBackOff: …`).
    pub waiting: Option<String>,
    /// Whether the etcd container ended within [`RECENTLY`].
    pub ended_recently: bool,
    /// The guard's last words.
    pub last_exit: Option<GuardReport>,
    /// Whether the kubelet says that the etcd container last ended for want of memory.
    pub out_of_memory: bool,
}

/// What the guard wrote as the termination message.
#[derive(Clone, Debug, PartialEq, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct GuardReport {
    /// etcd's exit code.
    pub exit: Option<i32>,
    /// The signal that ended etcd.
    pub signal: Option<i32>,
    /// Why the guard refused, as one of our reasons.
    pub cause: Option<String>,
    /// The guard's sentence.
    pub message: Option<String>,
    /// etcd's last fatal or panic lines.
    pub lines: Vec<String>,
    /// Term of the last entry in the log.
    pub term: Option<u64>,
    /// Index of the last entry in the log.
    pub index: Option<u64>,
}

impl Record {
    /// Reads the record out of a status. IDs that do not parse are as good as none.
    pub fn of(status: Option<&EtcdClusterStatus>) -> Self {
        let Some(status) = status else { return Self::default() };
        let named = |member: &crate::api::cluster::MemberStatus| {
            let id = member.member_id.as_deref()?.parse().ok()?;
            Some((member.name.clone(), id))
        };
        let mark = |member: &crate::api::cluster::MemberStatus| {
            let term = u64::try_from(member.raft_term?).ok()?;
            Some((member.name.clone(), (term, u64::try_from(member.raft_index?).ok()?)))
        };
        let since = |member: &crate::api::cluster::MemberStatus| {
            Some((member.name.clone(), member.unhealthy_since.as_deref()?.parse().ok()?))
        };
        Self {
            bootstrap: status.bootstrap.clone(),
            cluster_id: status.cluster_id.as_deref().and_then(|id| id.parse().ok()),
            members: status.members.iter().filter_map(named).collect(),
            joining: status
                .members
                .iter()
                .filter(|member| member.joining)
                .map(|member| member.name.clone())
                .collect(),
            next_serial: status.next_serial.unwrap_or_default(),
            high_water: status.members.iter().filter_map(mark).collect(),
            unhealthy_since: status.members.iter().filter_map(since).collect(),
        }
    }

    /// How many members on record vote; before there is a record, how many will.
    pub fn voters(&self, cluster: &str) -> usize {
        self.member_names(cluster).iter().filter(|name| !self.joining.contains(*name)).count()
    }

    /// Names of the members that should exist: those on record, before that those of the first start.
    pub fn member_names(&self, cluster: &str) -> Vec<String> {
        if self.cluster_id.is_some() {
            return self.members.keys().cloned().collect();
        }
        let serials = self.bootstrap.as_ref().map(|bootstrap| bootstrap.serials.clone()).unwrap_or_default();
        serials.into_iter().map(|serial| names::member(cluster, serial)).collect()
    }
}

impl VolumeState {
    /// The word on the volume.
    pub fn word(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Member => "member",
            Self::Retired => "retired",
        }
    }
}

impl Volume {
    /// Reads a claim.
    pub fn of(claim: &PersistentVolumeClaim) -> Self {
        let annotation = |name: &str| claim.annotations().get(name).map(String::as_str);
        let identity = annotation(names::CLUSTER_ID)
            .and_then(|id| id.parse().ok())
            .zip(annotation(names::MEMBER_ID).and_then(|id| id.parse().ok()));
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        Self {
            uid: claim.uid().unwrap_or_default(),
            resource_version: claim.resource_version().unwrap_or_default(),
            cluster_uid: claim.labels().get(names::CLUSTER_UID).cloned(),
            owned: !claim.owner_references().is_empty(),
            bound: phase == Some("Bound"),
            deleting: claim.metadata.deletion_timestamp.is_some(),
            storage_class: claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone()),
            requested: claim
                .spec
                .as_ref()
                .and_then(|spec| Some(spec.resources.as_ref()?.requests.as_ref()?.get("storage")?.0.clone()))
                .unwrap_or_default(),
            state: match annotation(names::STATE) {
                Some("retired") => VolumeState::Retired,
                Some("member") => VolumeState::Member,
                _ => VolumeState::Joining,
            },
            identity,
            started: annotation(names::STARTED).map_or(identity.is_some(), |text| text == "true"),
            incarnation: annotation(names::INCARNATION)
                .and_then(|text| text.parse().ok())
                .unwrap_or_default(),
            intent: annotation(names::INTENT).and_then(Intent::parse),
            replaces: annotation(names::REPLACES).and_then(|id| id.parse().ok()),
            own_size: annotation(names::SIZE).is_some(),
            node_selector: annotation(names::NODE_SELECTOR)
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_default(),
            delete_after: annotation(names::DELETE_AFTER).and_then(|text| text.parse().ok()),
        }
    }
}

impl Intent {
    fn parse(text: &str) -> Option<Self> {
        let (word, id) = text.split_once(' ')?;
        let id = id.parse().ok()?;
        match word {
            "wipe" => Some(Self::Wipe(id)),
            "leave" => Some(Self::Leave(id)),
            "compare" => Some(Self::Compare(id)),
            _ => None,
        }
    }
}

impl std::fmt::Display for Intent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wipe(id) => write!(formatter, "wipe {id}"),
            Self::Leave(id) => write!(formatter, "leave {id}"),
            Self::Compare(id) => write!(formatter, "compare {id}"),
        }
    }
}

impl Request {
    /// Reads an EtcdMemberReplacement.
    pub fn of(object: &EtcdMemberReplacement) -> Self {
        let marked = |name: &str| object.annotations().get(name).cloned();
        Self {
            name: object.name_any(),
            resource_version: object.resource_version().unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or_default(),
            created: object.creation_timestamp().map(|at| at.0).unwrap_or_default(),
            deleting: object.metadata.deletion_timestamp.is_some(),
            repair: object.labels().get(names::CREATED_BY).is_some_and(|by| by == names::REPAIR),
            counted: marked(names::COUNTED).is_some_and(|text| text == "true"),
            why: marked(names::WHY),
            spec: object.spec.clone(),
            status: object.status.clone().unwrap_or_default(),
        }
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        self.status.phase.unwrap_or_default()
    }
}

impl Volume {
    /// Whether it was asked for with less than the spec wants now. A size that cannot be read is left alone.
    pub fn is_smaller_than(&self, desired: &Desired) -> bool {
        if self.own_size {
            return false;
        }
        let bytes =
            parse_bytes(&self.requested).and_then(|has| Ok((has, parse_bytes(&desired.spec.storage.size)?)));
        bytes.is_ok_and(|(has, wanted)| has < wanted)
    }
}

impl MemberPod {
    /// Reads a Pod.
    pub fn of(pod: &Pod, now: jiff::Timestamp) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let containers = status.container_statuses.clone().unwrap_or_default();
        let etcd = containers.iter().find(|container| container.name == "etcd");
        let condition = |type_: &str| {
            status.conditions.iter().flatten().find(|condition| condition.type_ == type_).cloned()
        };
        let unschedulable = condition("PodScheduled")
            .filter(|condition| condition.status == "False")
            .filter(|condition| {
                condition.last_transition_time.as_ref().is_some_and(|since| since.0 + SCHEDULING < now)
            })
            .map(|condition| condition.message.unwrap_or_default());
        Self {
            uid: pod.uid().unwrap_or_default(),
            resource_version: pod.resource_version().unwrap_or_default(),
            owner_uid: pod
                .owner_references()
                .iter()
                .find(|owner| owner.controller == Some(true))
                .map(|owner| owner.uid.clone()),
            phase: status.phase.clone().unwrap_or_default(),
            ip: status.pod_ip.clone(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            ends_by: pod.metadata.deletion_timestamp.as_ref().map(|at| at.0),
            ready: condition("Ready").is_some_and(|condition| condition.status == "True"),
            template: pod.annotations().get(names::TEMPLATE).cloned(),
            created: pod.creation_timestamp().map(|at| at.0),
            certificates: pod.annotations().get(names::CERTIFICATES).cloned(),
            checked: is_checked(&command(pod)),
            initial: initial_cluster(pod),
            voter_label: pod.labels().get(names::ROLE).is_some_and(|role| role == names::VOTER),
            running: etcd.is_some_and(is_running),
            running_since: etcd
                .and_then(|container| container.state.as_ref()?.running.as_ref()?.started_at.clone())
                .map(|since| since.0),
            ran: etcd.is_some_and(|container| {
                is_running(container) || container.restart_count > 0 || last_message(container).is_some()
            }),
            unschedulable,
            waiting: waiting(&status.init_container_statuses.clone().unwrap_or_default())
                .or_else(|| waiting(&containers)),
            ended_recently: etcd
                .and_then(last_end)
                .is_some_and(|end| end.finished_at.as_ref().is_some_and(|at| now < at.0 + RECENTLY)),
            last_exit: etcd.and_then(last_message).map(|message| GuardReport::parse(&message)),
            out_of_memory: etcd
                .and_then(last_end)
                .is_some_and(|end| end.reason.as_deref() == Some("OOMKilled")),
        }
    }

    /// Whether it has ended for good: the kubelet will not start it again.
    pub fn ended(&self) -> bool {
        self.phase == "Succeeded" || self.phase == "Failed"
    }

    /// Why etcd ended the last time, if it ended by itself and is not ready again.
    pub fn failure(&self) -> Option<Failure> {
        let report = self.last_exit.as_ref().filter(|_| !self.ready)?;
        Failure::of(&Exit {
            exit: report.exit,
            signal: report.signal,
            cause: report.cause.as_deref(),
            sentence: report.message.as_deref(),
            lines: &report.lines,
            out_of_memory: self.out_of_memory,
        })
    }

    /// Why the guard refuses to start etcd on this volume, while it does.
    pub fn refusal(&self) -> Option<&GuardReport> {
        let refused = self.last_exit.as_ref().filter(|report| report.cause.is_some());
        if self.ready { None } else { refused }
    }
}

impl GuardReport {
    /// Reads a termination message. One that the guard did not write is kept as a line of text.
    fn parse(message: &str) -> Self {
        serde_json::from_str(message)
            .unwrap_or_else(|_| Self { lines: vec![message.to_owned()], ..Self::default() })
    }

    /// How it ended, for a person.
    pub fn sentence(&self) -> String {
        if let (Some(_), Some(message)) = (&self.cause, &self.message) {
            return message.clone();
        }
        let how = match (self.signal, self.exit) {
            (Some(signal), _) => format!("etcd ended by signal {signal}"),
            (None, Some(code)) => format!("etcd ended with exit code {code}"),
            (None, None) => "etcd ended".to_owned(),
        };
        match telling(&self.lines) {
            Some(line) => format!("{how}: {line}"),
            None => how,
        }
    }
}

/// What its etcd container runs.
fn command(pod: &Pod) -> Vec<String> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let commands =
        containers.filter(|container| container.name == "etcd").filter_map(|etcd| etcd.command.clone());
    commands.flatten().collect()
}

/// The names in `--initial-cluster=a=https://…,b=https://…`.
fn initial_cluster(pod: &Pod) -> BTreeSet<String> {
    command(pod)
        .iter()
        .find_map(|argument| argument.strip_prefix("--initial-cluster="))
        .into_iter()
        .flat_map(|members| members.split(','))
        .filter_map(|member| Some(member.split_once('=')?.0.to_owned()))
        .collect()
}

fn is_running(container: &ContainerStatus) -> bool {
    container.state.as_ref().is_some_and(|state| state.running.is_some())
}

fn waiting(containers: &[ContainerStatus]) -> Option<String> {
    containers.iter().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.clone()?;
        Some(format!("{reason}: {}", waiting.message.clone().unwrap_or_default()))
    })
}

/// The newest end: of the present state if the container has just ended, else of the last one.
fn last_end(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    [&container.state, &container.last_state]
        .into_iter()
        .flatten()
        .find_map(|state| state.terminated.as_ref())
}

fn last_message(container: &ContainerStatus) -> Option<String> {
    last_end(container)?.message.clone()
}

impl Observed {
    /// What members on record answered, under the identities on record. Nobody else is believed.
    pub fn known_answers(&self) -> impl Iterator<Item = (&String, &Answer)> {
        self.survey.iter().filter_map(|(name, answer)| {
            let answer = answer.as_ref().ok()?;
            let known = self.record.members.get(name) == Some(&answer.member_id);
            (known && self.record.cluster_id == Some(answer.cluster_id)).then_some((name, answer))
        })
    }

    /// The member list of any voter on record that could read it with quorum.
    pub fn listed(&self) -> Option<&[ListedMember]> {
        self.known_answers().find_map(|(_, answer)| Some(answer.quorum.as_ref()?.members.as_slice()))
    }

    /// Alarms as etcd knows them, by the names of members.
    pub fn alarms(&self) -> Vec<(String, crate::etcd::survey::Alarm)> {
        let quorum = self.known_answers().find_map(|(_, answer)| answer.quorum.as_ref());
        let name = |id: &MemberId| {
            let known = self.record.members.iter().find(|(_, member)| *member == id);
            known.map_or_else(|| id.to_string(), |(name, _)| name.clone())
        };
        quorum
            .map(|quorum| quorum.alarms.iter().map(|(id, alarm)| (name(id), *alarm)).collect())
            .unwrap_or_default()
    }
}
