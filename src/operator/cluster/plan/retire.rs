//! Pods and volumes of those who have left the cluster, or never came to join it.
//!
//! **Invariant** (I-3): a volume is deleted only while a linearizable member list shows that nobody of its name or its
//! ID is a member, and only if it never voted, or the spec says `onDelete: Delete`, or its member was replaced, the time
//! of `spec.repair.keepOldData` has passed, and all members are well. The list is read once more just before.

use jiff::{SignedDuration, Timestamp};

use super::super::desired::Desired;
use super::super::manifests::volume as volumes;
use super::super::observed::{Observed, Volume, VolumeState};
use super::exchange::{Exchange, is_given_up};
use super::membership::Joiners;
use super::roster::Roster;
use super::{Ensure, Finding, Plan, Step, Unlisted, duration_or, is_ours, owns};
use crate::api::reason::Reason;
use crate::operator::names;

/// Where the spec's own cannot be read.
const KEPT_FOR: SignedDuration = SignedDuration::from_hours(24);

pub(super) fn rule(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let Some(roster) = Roster::of(desired, observed) else { return };
    // Whoever is unknown to us may be using anything.
    if !roster.strangers.is_empty() || !roster.has_quorum() {
        return;
    }
    let joiners = Joiners::of(desired, observed, &roster);
    let stays = |name: &String| {
        roster.seat(name).is_some()
            || observed.record.members.contains_key(name)
            || joiners.names.contains(name)
            || observed.volumes.get(name).is_some_and(|volume| is_given_up(desired, &roster, volume))
    };
    let leftover_pods = observed.pods.iter().filter(|(name, _)| !stays(name));
    for (name, pod) in leftover_pods {
        if owns(desired, pod) && !pod.deleting {
            let why = "its member has left the cluster".to_owned();
            plan.step.get_or_insert(Step::DeletePod(pod.premise(name, why)));
        }
    }
    for (name, volume) in
        observed.volumes.iter().filter(|(name, volume)| !stays(name) && is_ours(desired, volume))
    {
        let listed = volume.identity.is_some_and(|(_, id)| roster.lists(id));
        if !listed && !volume.deleting {
            retire(desired, observed, &roster, name, volume, plan);
        }
    }
}

fn retire(
    desired: &Desired,
    observed: &Observed,
    roster: &Roster,
    name: &str,
    volume: &Volume,
    plan: &mut Plan,
) {
    // One that was wiped has the data of its former member aside.
    let voted = volume.state != VolumeState::Joining || volume.incarnation > 0;
    let goes = match volume.delete_after {
        _ if !voted => true,
        Some(at) => at <= observed.now && is_whole(desired, roster),
        None => volumes::is_owned(desired),
    };
    let marked = volume.state == VolumeState::Retired && volume.owned == volumes::is_owned(desired);
    if voted && !marked {
        let known = volumes::Known {
            state: VolumeState::Retired,
            intent: None,
            delete_after: delete_after(desired, observed, volume),
            ..volumes::Known::of(volume)
        };
        let manifest = volumes::record(desired, name, volume, &known);
        plan.ensure.push(Ensure::Apply { kind: "PersistentVolumeClaim", manifest });
        plan.findings.push(Finding {
            reason: Reason::VolumeRetired,
            member: None,
            message: match known.delete_after {
                Some(at) => format!("{name} was replaced; its volume is kept with its data, used by nobody, until {at}. Remove its annotation {} to keep it for good.", names::DELETE_AFTER),
                None => format!("{name} has left the cluster; its volume is kept with its data and used by nobody. Delete it when nothing of it is needed."),
            },
            stalled: false,
        });
    } else if let (true, None, Some(speaker)) = (goes, observed.pods.get(name), roster.speaker()) {
        let why = match volume.delete_after {
            _ if !voted => "its member never voted",
            Some(_) => "its member was replaced, and the time of spec.repair.keepOldData has passed",
            None => "its member has left the cluster",
        };
        plan.step.get_or_insert(Step::DeleteVolume(
            volume.premise(name, why.to_owned()),
            Some(Unlisted {
                via: speaker.name.clone(),
                peer_url: desired.peer_url(name),
                id: volume.identity.map(|(_, id)| id),
            }),
        ));
    }
}

/// When the volume of a member that was replaced goes; `None` for one that left in a shrink: its data are kept until a
/// person deletes them.
fn delete_after(desired: &Desired, observed: &Observed, volume: &Volume) -> Option<Timestamp> {
    let (_, id) = volume.identity?;
    let replaced = observed.volumes.values().any(|other| other.replaces == Some(id))
        || Exchange::of(observed).is_some_and(|exchange| exchange.id == id);
    let kept_for = duration_or(&desired.spec.repair.keep_old_data, KEPT_FOR);
    replaced.then(|| observed.now.checked_add(kept_for).ok()).flatten()
}

/// Whether nobody can need what a replaced member left.
fn is_whole(desired: &Desired, roster: &Roster) -> bool {
    roster.all_healthy() && roster.voters.len() >= desired.replicas
}
