//! Desired + Observed → Plan. Pure and total: no clock, no I/O, no failure.
//!
//! Rules in order, the first that has something to say wins; the last ones look at every member:
//!
//! 1. being deleted, paused: nothing
//! 2. [`records`]: what must be on record before anything else happens (adoption, first start, its restart, the
//!    identity of the formed cluster). A pass that stores a record does nothing else.
//! 3. [`leftovers`]: Pods and empty volumes of an abandoned first start
//! 4. [`surroundings`]: certificates, Services, PodDisruptionBudget, ConfigMap
//! 5. [`exchange`]: volumes that begin anew, [`replacement`]: what becomes of EtcdMemberReplacements
//! 6. [`members`]: volumes and Pods. Missing Pods are made all at once, also without quorum: a Pod on an
//!    existing volume can only help. At most one Pod or volume is deleted in a pass, and none that serves.
//! 7. [`retire`]: Pods and volumes of those who have left
//! 8. [`membership`]: who joins, who leaves; its states and invariants stand there
//! 9. [`restart`]: members that must start anew to trust the right authorities
//! 10. [`health`]: what is left to tell
//! 11. [`repair`]: which member the operator replaces by itself; [`surge`]: because of its node
//!
//! One [`Step`] at most comes out of it, the first that a rule asks for.

pub(super) mod exchange;
mod health;
mod leftovers;
mod members;
pub(super) mod membership;
mod records;
mod repair;
pub(super) mod replacement;
mod restart;
mod retire;
pub(super) mod roster;
mod surge;
mod surroundings;

use jiff::SignedDuration;
use serde_json::Value;

use super::credentials::Leaf;
use super::desired::Desired;
use super::observed::{MemberPod, Observed, Record, Volume};
use super::rotation;
use crate::api::duration::parse_duration;
use crate::api::reason::Reason;
use crate::api::replacement::EtcdMemberReplacementStatus;
use crate::etcd::membership::Call;
use crate::etcd::survey::ListedMember;
use crate::etcd::{ClusterId, MemberId};

/// What to do, and what there is to tell.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// To be stored before anything else; then look again.
    pub record: Option<Record>,
    /// What should exist and does not: idempotent, harmless, in this order.
    pub ensure: Vec<Ensure>,
    /// The one act that takes something away.
    pub step: Option<Step>,
    /// What there is to tell of EtcdMemberReplacements.
    pub requests: Vec<Told>,
    /// Repairs that are over and need not be kept.
    pub forgotten: Vec<String>,
    /// What was found, worst first.
    pub findings: Vec<Finding>,
}

/// The status of an EtcdMemberReplacement, to be written under the resourceVersion that it was made of.
#[derive(Debug, PartialEq)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// Its resourceVersion.
    pub resource_version: String,
    /// The status.
    pub status: EtcdMemberReplacementStatus,
    /// An event.
    pub note: Option<(Reason, String)>,
}

/// Something that should exist.
#[derive(Debug, PartialEq)]
pub enum Ensure {
    /// The Secret of the authorities; created, never overwritten.
    Authority,
    /// The Secret of a leaf.
    Leaf(Leaf),
    /// The next stage of the authorities' replacement.
    ChangeAuthority(rotation::Change),
    /// Makes a kubelet look at a Pod whose Secret holds new certificates.
    Touch {
        /// Name of the Pod.
        pod: String,
        /// Its UID.
        uid: String,
        /// What its Secret holds.
        certificates: String,
    },
    /// Turns etcd's auth on or off.
    Auth(bool),
    /// Server-side apply of a part of an object that is ours.
    Apply {
        /// Kind of the object.
        kind: &'static str,
        /// The part.
        manifest: Value,
    },
    /// Creation of a Pod, a volume or a repair; one of that name is left as it is.
    Create {
        /// `Pod`, `PersistentVolumeClaim` or `EtcdMemberReplacement`.
        kind: &'static str,
        /// All of it.
        manifest: Value,
    },
}

/// An act that takes something away or changes who votes, with the premise under which it is right.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Deletes a Pod.
    DeletePod(Premise),
    /// Deletes a volume that has never held a member's data, or whose member is provably none any more.
    DeleteVolume(Premise, Option<Unlisted>),
    /// Changes etcd's member list, or moves leadership.
    Change(Change),
}

/// Evidence that a volume's member is none: asked for once more before the volume is deleted.
#[derive(Clone, Debug, PartialEq)]
pub struct Unlisted {
    /// The member to ask.
    pub via: String,
    /// The URL that nobody may have.
    pub peer_url: String,
    /// The ID that nobody may have.
    pub id: Option<MemberId>,
}

/// Calls to etcd, with the member list and the leader for which they are right. They are made one right after the
/// other: between two promotions or two removals the number of voters is even.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The member to ask: the leader, when it is known.
    pub via: String,
    /// What to ask for.
    pub calls: Vec<Call>,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Its member list.
    pub members: Vec<ListedMember>,
    /// Its leader.
    pub leader: Option<MemberId>,
    /// Why, for the event.
    pub why: String,
}

/// The object that a step is about, as it was when the step was decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Premise {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its resourceVersion.
    pub resource_version: String,
    /// Why, for the event.
    pub why: String,
}

/// Something to tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The stable word.
    pub reason: Reason,
    /// The member that it is about.
    pub member: Option<String>,
    /// What was seen, what the operator does next, what a person can do.
    pub message: String,
    /// Whether nothing goes on without a person.
    pub stalled: bool,
}

impl Finding {
    /// The apiserver refused a write.
    pub fn refused(why: &str) -> Self {
        let message = format!(
            "The Kubernetes API refused a write: {why}. It is tried again, later and later. Remove what stands in the way (a quota, an admission policy, a missing right)."
        );
        Self::waiting(Reason::ReconcileError, None, message)
    }

    fn waiting(reason: Reason, member: Option<&str>, message: String) -> Self {
        Self { reason, member: member.map(str::to_owned), message, stalled: false }
    }

    fn stalled(reason: Reason, member: Option<&str>, message: String) -> Self {
        Self { reason, member: member.map(str::to_owned), message, stalled: true }
    }
}

/// Decides.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    if desired.deleting || desired.spec.paused {
        let mut plan = Plan::default();
        replacement::rule(desired, observed, &mut plan);
        return Plan { findings: Vec::new(), ..plan };
    }
    if let Some(plan) = records::rule(desired, observed).or_else(|| leftovers::rule(desired, observed)) {
        return plan;
    }
    let mut plan = Plan::default();
    surroundings::rule(desired, observed, &mut plan);
    exchange::rule(desired, observed, &mut plan);
    replacement::rule(desired, observed, &mut plan);
    members::rule(desired, observed, &mut plan);
    retire::rule(desired, observed, &mut plan);
    membership::rule(desired, observed, &mut plan);
    restart::rule(desired, observed, &mut plan);
    health::rule(desired, observed, &mut plan);
    surge::rule(observed, &mut plan);
    repair::rule(desired, observed, &mut plan);
    plan.findings.sort_by_key(|finding| !finding.stalled);
    plan
}

impl MemberPod {
    /// This very Pod, as it is now.
    fn premise(&self, name: &str, why: String) -> Premise {
        let (uid, resource_version) = (self.uid.clone(), self.resource_version.clone());
        Premise { name: name.to_owned(), uid, resource_version, why }
    }
}

impl Volume {
    /// This very volume, as it is now.
    fn premise(&self, name: &str, why: String) -> Premise {
        let (uid, resource_version) = (self.uid.clone(), self.resource_version.clone());
        Premise { name: name.to_owned(), uid, resource_version, why }
    }
}

/// Whether a Pod is this EtcdCluster's; one of its member's name may be another's.
fn owns(desired: &Desired, pod: &MemberPod) -> bool {
    pod.owner_uid.as_deref() == Some(desired.uid.as_str())
}

/// Whether a member may be put on a volume, now and later.
fn is_usable(desired: &Desired, volume: &Volume) -> bool {
    is_ours(desired, volume) && !volume.deleting
}

/// A duration of a spec; `otherwise` where it cannot be read, which the schema does not let through.
fn duration_or(text: &str, otherwise: SignedDuration) -> SignedDuration {
    let given = parse_duration(text).ok().and_then(|given| SignedDuration::try_from(given).ok());
    given.unwrap_or(otherwise)
}

/// Whether a volume may be used: it is this EtcdCluster's, or was taken over by it.
fn is_ours(desired: &Desired, volume: &Volume) -> bool {
    let owner = volume.cluster_uid.as_deref();
    owner == Some(desired.uid.as_str()) || (owner.is_some() && owner == desired.adopt.as_deref())
}
