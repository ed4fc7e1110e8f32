//! The exchange under way, if one is: which member makes way for another, and how.
//!
//! # States
//!
//! An EtcdMemberReplacement that was accepted (`replacement`) names a member by its ID. What is done about it follows
//! from the member list and the volumes alone, so a crash between any two acts, or a second operator, finds its way:
//!
//! | how | old member in the list | old member gone |
//! |---|---|---|
//! | wipe | intent on its volume; labels off; leadership away; Pod stopped and gone; removed | the volume begins a new incarnation and joins again like a new one |
//! | replace | labels off; leadership away; Pod stopped, or at least told to; removed | one voter is missing: a new volume joins (`membership`); the old one is retired |
//! | add first | one voter more is wanted; when it votes, the old one leaves as in a shrink | done |
//!
//! # What must hold (numbers of `reliability.md`)
//!
//! - I-1: nobody makes way unless the healthy voters beside it are a quorum, with it counted.
//! - I-2: one exchange at a time.
//! - I-4: data are given up only after the member's ID has left the list; until then the exchange can be taken back by
//!   deleting the request, and the volume is as it was. The guard wipes only for a new member ID *and* a higher
//!   incarnation, and keeps the old data aside.

use super::super::desired::Desired;
use super::super::manifests::volume as volumes;
use super::super::observed::{Intent, Observed, Request, Volume, VolumeState};
use super::repair::has_bad_data;
use super::roster::{Roster, Seat};
use super::{Ensure, Plan, Step, is_usable, owns};
use crate::api::replacement::{Phase, ReplacementStrategy, ReplacementVolume};
use crate::etcd::MemberId;
use crate::etcd::failure::Failure;
use crate::etcd::hash::{Comparison, compare};
use crate::etcd::quorum::quorum;

/// A replacement that was accepted and is not over.
pub(in super::super) struct Exchange<'a> {
    pub(in super::super) request: &'a Request,
    /// The member that makes way.
    pub(in super::super) name: &'a str,
    /// Its ID.
    pub(in super::super) id: MemberId,
    pub(in super::super) how: How,
}

/// How a member makes way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum How {
    /// Its data are put aside, and its volume and name are used again.
    Wipe,
    /// It leaves, then another joins with a volume of its own.
    Replace,
    /// Another joins, then it leaves.
    AddFirst,
}

impl<'a> Exchange<'a> {
    pub(in super::super) fn of(observed: &'a Observed) -> Option<Self> {
        observed.requests.iter().find_map(Self::accepted)
    }

    fn accepted(request: &'a Request) -> Option<Self> {
        if request.phase() != Phase::Running || request.deleting {
            return None;
        }
        let status = &request.status;
        let how = match (status.strategy?, status.volume?) {
            (ReplacementStrategy::AddFirst, _) => How::AddFirst,
            (_, ReplacementVolume::Keep) => How::Wipe,
            _ => How::Replace,
        };
        Some(Self {
            request,
            name: status.member.as_deref()?,
            id: status.member_id.as_deref()?.parse().ok()?,
            how,
        })
    }

    /// The old member, while it is in the list.
    pub(in super::super) fn seat<'r>(&self, roster: &'r Roster<'r>) -> Option<&'r Seat<'r>> {
        roster.voters.iter().find(|seat| seat.id == self.id)
    }

    /// What its volume is to be marked with, so that the exchange goes on without the request where it must.
    pub(in super::super) fn intent(&self) -> Option<Intent> {
        match self.how {
            How::Wipe => Some(Intent::Wipe(self.id)),
            How::AddFirst => Some(Intent::Leave(self.id)),
            How::Replace => None,
        }
    }

    /// Whether a volume was made for the new member.
    pub(in super::super) fn has_volume(&self, observed: &Observed) -> bool {
        observed.volumes.values().any(|volume| volume.replaces == Some(self.id) && !volume.deleting)
    }
}

/// Voters wanted now: one more than the spec says while another is to vote before the old one leaves.
pub(in super::super) fn wanted(desired: &Desired, observed: &Observed, roster: &Roster) -> usize {
    let adds = Exchange::of(observed)
        .is_some_and(|exchange| exchange.how == How::AddFirst && exchange.seat(roster).is_some());
    let voters = roster.voters.len();
    if adds && voters == desired.replicas { voters + 1 } else { desired.replicas }
}

/// The voter that makes way now, if the others can do without it.
pub(in super::super) fn makes_way<'r>(
    desired: &Desired,
    observed: &Observed,
    roster: &'r Roster<'r>,
) -> Option<&'r Seat<'r>> {
    let voters = roster.voters.len();
    let asked = Exchange::of(observed).and_then(|exchange| Some((exchange.how, exchange.seat(roster)?)));
    if let Some((How::Wipe | How::Replace, seat)) = asked {
        let waits = is_one_of_several(observed, roster);
        return Some(seat).filter(|seat| !waits && can_do_without(roster, seat, voters));
    }
    let marked = || roster.voters.iter().find(|seat| seat.intent() == Some(Intent::Leave(seat.id)));
    let replaced = asked.map(|(_, seat)| seat).or_else(marked)?;
    (voters > desired.replicas && can_do_without(roster, replaced, voters - 1)).then_some(replaced)
}

/// Whether the exchange under way is a repair of bad data that stops before its member is removed: another member's data
/// have turned out to be bad, too, and what they have in common a machine does not know (`repair`).
pub(in super::super) fn is_one_of_several(observed: &Observed, roster: &Roster) -> bool {
    let Some(exchange) = Exchange::of(observed) else { return false };
    let proven = exchange.request.repair && !exchange.request.counted && exchange.how != How::AddFirst;
    proven && exchange.seat(roster).is_some_and(|old| is_another_bad(roster, old))
}

/// Whether anybody else has bad data.
pub(in super::super) fn is_another_bad(roster: &Roster, one: &Seat) -> bool {
    roster.voters.iter().any(|seat| seat.id != one.id && has_bad_data(seat))
}

/// Whether the others are a quorum of that many. Nobody who is well leaves while anybody else is not, nor whom only the
/// operator does not reach.
fn can_do_without(roster: &Roster, seat: &Seat, voters: usize) -> bool {
    let beside = roster.healthy_beside(seat);
    if !seat.healthy && !seat.is_down() {
        return false;
    }
    let others_are_well = beside + 1 == roster.voters.len();
    beside >= quorum(voters) && (others_are_well || !seat.healthy)
}

/// What a member's volume is to be marked with: by the exchange under way, or, where that was taken back too late, by
/// what is on it already.
pub(in super::super) fn intent(
    desired: &Desired,
    observed: &Observed,
    roster: Option<&Roster>,
    name: &str,
    volume: &Volume,
) -> Option<Intent> {
    let Some(roster) = roster else { return volume.intent };
    let exchange = Exchange::of(observed).and_then(|exchange| exchange.intent());
    let of_it = |intent: &Intent| match intent {
        Intent::Wipe(id) | Intent::Leave(id) | Intent::Compare(id) => {
            volume.identity.is_some_and(|(_, own)| own == *id)
        }
    };
    let stays = |intent: &Intent| match intent {
        Intent::Wipe(_) => false,
        Intent::Leave(_) => roster.voters.len() > desired.replicas,
        Intent::Compare(_) => !are_known_equal(observed, roster),
    };
    let kept = || volume.intent.filter(of_it).filter(stays);
    exchange.filter(of_it).or_else(kept).or_else(|| to_be_compared(roster, name))
}

/// Whether all voters were compared, and hold the same.
fn are_known_equal(observed: &Observed, roster: &Roster) -> bool {
    let hashes = observed.hashes.as_ref();
    hashes.is_some_and(|hashes| roster.all_healthy() && compare(hashes) == Comparison::Equal)
}

/// etcd ended because somebody's data differ; who it is, only hashes tell, and for these it must run. One at a time:
/// nothing is known of the data of those who wait.
fn to_be_compared(roster: &Roster, name: &str) -> Option<Intent> {
    let seat = roster.voters.iter().find(|seat| seat.name == name)?;
    let stopped = seat.pod?.failure() == Some(Failure::PeersDiffer);
    let compares = |seat: &Seat| matches!(seat.intent(), Some(Intent::Compare(_)));
    let alone =
        roster.healthy_beside(seat) >= quorum(roster.voters.len()) && !roster.voters.iter().any(compares);
    (stopped && alone).then_some(Intent::Compare(seat.id))
}

/// Whether a volume waits for its next incarnation: its member is none any more, by the list.
pub(in super::super) fn is_given_up(desired: &Desired, roster: &Roster, volume: &Volume) -> bool {
    let wiped = matches!(volume.intent, Some(Intent::Wipe(id)) if !roster.lists(id));
    wiped && is_usable(desired, volume)
}

/// A volume that is being deleted is marked too; all others are in `members`.
fn mark_what_ends(desired: &Desired, observed: &Observed, roster: &Roster, plan: &mut Plan) {
    let Some(exchange) = Exchange::of(observed) else { return };
    let Some(seat) = exchange.seat(roster) else { return };
    let Some(volume) = seat.volume.filter(|volume| volume.deleting && volume.identity.is_some()) else {
        return;
    };
    let intent = intent(desired, observed, Some(roster), &seat.name, volume);
    if volume.intent != intent {
        let known = volumes::Known { intent, ..volumes::Known::of(volume) };
        let manifest = volumes::record(desired, &seat.name, volume, &known);
        plan.ensure.push(Ensure::Apply { kind: "PersistentVolumeClaim", manifest });
    }
}

/// Whether it is on record who leaves once another votes.
pub(in super::super) fn is_marked(observed: &Observed, roster: &Roster) -> bool {
    let exchange = Exchange::of(observed).filter(|exchange| exchange.how == How::AddFirst);
    let Some(seat) = exchange.as_ref().and_then(|exchange| exchange.seat(roster)) else { return true };
    seat.volume.is_none_or(|volume| volume.intent == Some(Intent::Leave(seat.id)))
}

/// Volumes whose member was removed to be wiped begin their next incarnation: from then on they are like new ones.
pub(super) fn rule(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let Some(roster) = Roster::of(desired, observed) else { return };
    if !roster.strangers.is_empty() || !roster.has_quorum() {
        return;
    }
    mark_what_ends(desired, observed, &roster, plan);
    for (name, volume) in &observed.volumes {
        if !is_given_up(desired, &roster, volume) || roster.seat(name).is_some() {
            continue;
        }
        match observed.pods.get(name) {
            None => {
                let known = volumes::Known {
                    identity: None,
                    started: false,
                    state: VolumeState::Joining,
                    incarnation: volume.incarnation + 1,
                    intent: None,
                    ..volumes::Known::of(volume)
                };
                let manifest = volumes::record(desired, name, volume, &known);
                plan.ensure.push(Ensure::Apply { kind: "PersistentVolumeClaim", manifest });
            }
            Some(pod) if !pod.deleting && owns(desired, pod) => {
                let why = "its member was removed, and its volume begins anew".to_owned();
                plan.step.get_or_insert(Step::DeletePod(pod.premise(name, why)));
            }
            Some(_) => {}
        }
    }
}
