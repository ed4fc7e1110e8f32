//! Pods and volumes of those who have left the cluster, or never came to join it.
//!
//! **Invariant** (I-3): a volume is deleted only while a linearizable member list shows that nobody of its name or its
//! ID is a member, and only if it never voted or the spec says `onDelete: Delete`. The list is read once more just
//! before.

use super::super::desired::Desired;
use super::super::manifests::volume as volumes;
use super::super::observed::{Observed, Volume, VolumeState};
use super::exchange::is_given_up;
use super::membership::Joiners;
use super::roster::Roster;
use super::{Ensure, Finding, Plan, Step, Unlisted, is_ours};
use crate::api::reason::Reason;

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
        if pod.owner_uid.as_deref() == Some(desired.uid.as_str()) && !pod.deleting {
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
    let goes = !voted || volumes::is_owned(desired);
    let marked = volume.state == VolumeState::Retired && volume.owned == volumes::is_owned(desired);
    if voted && !marked {
        let known =
            volumes::Known { state: VolumeState::Retired, intent: None, ..volumes::Known::of(volume) };
        let manifest = volumes::record(desired, name, volume, &known);
        plan.ensure.push(Ensure::Apply { kind: "PersistentVolumeClaim", manifest });
        plan.findings.push(Finding {
            reason: Reason::VolumeRetired,
            member: None,
            message: format!("{name} has left the cluster; its volume is kept with its data and used by nobody. Delete it when nothing of it is needed."),
            stalled: false,
        });
    } else if let (true, None, Some(speaker)) = (goes, observed.pods.get(name), roster.speaker()) {
        let why = if voted { "its member has left the cluster" } else { "its member never voted" };
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
