//! The cluster as its living voters know it, member by member, beside what Kubernetes has of each.
//!
//! **Invariant:** quorum is counted from this list, never from the spec or from Pods (`reliability.md` I-1).

use std::collections::BTreeSet;

use super::super::desired::Desired;
use super::super::observed::{GuardReport, Intent, MemberPod, Observed, Volume, VolumeState};
use super::is_ours;
use crate::etcd::failure::Remedy;
use crate::etcd::quorum::quorum;
use crate::etcd::survey::{Answer, ListedMember};
use crate::etcd::{ClusterId, MemberId};
use crate::operator::names;

/// A learner that lacks fewer entries than this is level: what is left comes in milliseconds. (etcd itself promotes
/// at 90 % of the leader's log, which may be a million entries short.)
const LEVEL: u64 = 1_000;

/// Everyone in the member list.
pub(in super::super) struct Roster<'a> {
    /// The list, as it was read.
    pub(in super::super) listed: &'a [ListedMember],
    /// The cluster.
    pub(in super::super) cluster_id: ClusterId,
    /// Whom the healthy voters follow.
    pub(in super::super) leader: Option<MemberId>,
    /// Members that vote, by serial.
    pub(in super::super) voters: Vec<Seat<'a>>,
    /// Members that do not vote yet, by serial.
    pub(in super::super) learners: Vec<Seat<'a>>,
    /// IDs in the list that no peer URL of ours explains.
    pub(in super::super) strangers: Vec<MemberId>,
}

/// One of the list.
pub(in super::super) struct Seat<'a> {
    pub(in super::super) name: String,
    pub(in super::super) serial: i32,
    pub(in super::super) id: MemberId,
    pub(in super::super) answer: Option<&'a Answer>,
    /// It has answered a linearizable read just now, and its Pod is not on its way out.
    pub(in super::super) healthy: bool,
    pub(in super::super) volume: Option<&'a Volume>,
    pub(in super::super) pod: Option<&'a MemberPod>,
}

impl<'a> Roster<'a> {
    /// `None`: nobody on record could read the list with quorum, so nothing is known of it.
    pub(in super::super) fn of(desired: &Desired, observed: &'a Observed) -> Option<Self> {
        let listed = observed.listed()?;
        let mut roster = Self {
            listed,
            cluster_id: observed.record.cluster_id?,
            leader: leader(observed),
            voters: Vec::new(),
            learners: Vec::new(),
            strangers: Vec::new(),
        };
        for member in listed {
            match Seat::of(desired, observed, roster.cluster_id, member) {
                None => roster.strangers.push(member.id),
                Some(seat) if member.learner => roster.learners.push(seat),
                Some(seat) => roster.voters.push(seat),
            }
        }
        roster.voters.sort_by_key(|seat| seat.serial);
        roster.learners.sort_by_key(|seat| seat.serial);
        Some(roster)
    }

    /// Voters that have answered a linearizable read just now.
    pub(in super::super) fn healthy(&self) -> usize {
        self.voters.iter().filter(|seat| seat.healthy).count()
    }

    /// Voters but this one that have.
    pub(in super::super) fn healthy_beside(&self, seat: &Seat) -> usize {
        self.voters.iter().filter(|other| other.healthy && other.id != seat.id).count()
    }

    /// Whether every voter has.
    pub(in super::super) fn all_healthy(&self) -> bool {
        self.healthy() == self.voters.len()
    }

    /// Whether the voters that are healthy can decide.
    pub(in super::super) fn has_quorum(&self) -> bool {
        self.healthy() >= quorum(self.voters.len())
    }

    /// Everyone of ours in the list.
    pub(in super::super) fn seats(&self) -> impl Iterator<Item = &Seat<'a>> {
        self.voters.iter().chain(&self.learners)
    }

    /// The member of that name.
    pub(in super::super) fn seat(&self, name: &str) -> Option<&Seat<'a>> {
        self.seats().find(|seat| seat.name == name)
    }

    /// Whether the list has that ID.
    pub(in super::super) fn lists(&self, id: MemberId) -> bool {
        self.listed.iter().any(|member| member.id == id)
    }

    /// The healthy voter that leads, or else any: whom to ask for a change.
    pub(in super::super) fn speaker(&self) -> Option<&Seat<'a>> {
        let healthy = || self.voters.iter().filter(|seat| seat.healthy);
        healthy().find(|seat| Some(seat.id) == self.leader).or_else(|| healthy().next())
    }

    /// How many entries the learner lacks; `None` while it does not answer.
    pub(in super::super) fn lag(&self, learner: &Seat) -> Option<u64> {
        let newest = self.voters.iter().filter_map(|seat| Some(seat.answer?.applied_index)).max()?;
        Some(newest.saturating_sub(learner.answer?.applied_index))
    }

    /// Whether a learner may vote: its volume says that it does, so that whoever finds it will take it for a voter's.
    pub(in super::super) fn is_level(&self, observed: &Observed, learner: &Seat) -> bool {
        let noted = learner.volume.is_some_and(|volume| volume.state == VolumeState::Member);
        noted && self.has_caught_up(observed, learner)
    }

    /// Whether a learner has the data and stays, and volume and status say who it is, so that the guard would never let
    /// it start on less (I-4).
    pub(in super::super) fn has_caught_up(&self, observed: &Observed, learner: &Seat) -> bool {
        let noted = learner
            .volume
            .is_some_and(|volume| volume.started && volume.identity == Some((self.cluster_id, learner.id)));
        let recorded = observed.record.members.get(&learner.name) == Some(&learner.id);
        let stays = learner.pod.is_some_and(|pod| !pod.deleting);
        stays && noted && recorded && self.lag(learner).is_some_and(|lag| lag < LEVEL)
    }

    /// Names of everyone of ours in the list.
    pub(in super::super) fn names(&self) -> BTreeSet<String> {
        self.seats().map(|seat| seat.name.clone()).collect()
    }
}

impl<'a> Seat<'a> {
    fn of(
        desired: &Desired,
        observed: &'a Observed,
        cluster: ClusterId,
        member: &ListedMember,
    ) -> Option<Self> {
        let name = desired.member_of(&member.peer_urls)?;
        let serial = names::serial(&desired.name, &name)?;
        let answer = observed
            .survey
            .get(&name)
            .and_then(|answer| answer.as_ref().ok())
            .filter(|answer| (answer.cluster_id, answer.member_id) == (cluster, member.id));
        Some(Self {
            serial,
            id: member.id,
            healthy: answer.is_some_and(|answer| answer.quorum.is_some())
                && observed.pods.get(&name).is_some_and(|pod| !pod.deleting),
            answer,
            volume: observed.volumes.get(&name).filter(|volume| is_ours(desired, volume)),
            pod: observed.pods.get(&name),
            name,
        })
    }

    /// What is meant to become of its volume.
    pub(in super::super) fn intent(&self) -> Option<Intent> {
        self.volume.and_then(|volume| volume.intent)
    }

    /// Whether it is down by the kubelet's word too: the operator alone may just not reach it.
    pub(in super::super) fn is_down(&self) -> bool {
        !self.healthy && self.pod.is_none_or(|pod| !pod.ready || pod.deleting)
    }

    /// Why this learner will never vote, if so: what it copied is gone, or it may not be started on it.
    pub(in super::super) fn ruin(&self) -> Option<String> {
        let Some(volume) = self.volume else { return Some("its volume is gone".to_owned()) };
        if volume.deleting {
            return Some("its volume is being deleted".to_owned());
        }
        if volume.identity.is_some_and(|(_, id)| id != self.id) {
            return Some("its volume is another member's".to_owned());
        }
        let hopeless = matches!(self.pod?.failure()?.remedy(), Remedy::Wipe | Remedy::Replace);
        hopeless.then(|| self.pod.and_then(|pod| pod.last_exit.as_ref()).map(GuardReport::sentence)).flatten()
    }
}

/// The leader that most of the healthy voters name; `None` while they do not agree.
fn leader(observed: &Observed) -> Option<MemberId> {
    let healthy = || observed.known_answers().filter(|(_, answer)| answer.quorum.is_some());
    let leader = healthy().find_map(|(_, answer)| answer.leader)?;
    healthy().all(|(_, answer)| answer.leader == Some(leader)).then_some(leader)
}
