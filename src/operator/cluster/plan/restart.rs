//! Members that must start anew, because etcd reads the authorities that it trusts only when it starts.
//!
//! Nothing is in a hurry: their certificates are accepted by everybody meanwhile (`rotation.rs`). So a member is
//! stopped only while every member serves, no other Pod is ending, nothing else is to be done, and nobody waits for
//! a person; the leader comes last, after it has handed leadership to a member that has started anew.

use super::super::credentials::SecretState;
use super::super::desired::Desired;
use super::super::observed::Observed;
use super::super::rotation::Stage;
use super::roster::{Roster, Seat};
use super::{Change, Plan, Step, owns};
use crate::etcd::membership::Call;

pub(super) fn rule(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let retiring = matches!(
        &observed.credentials.authority,
        SecretState::Usable(authority) if authority.stage == Stage::Retiring
    );
    let busy =
        plan.step.is_some() || !plan.ensure.is_empty() || plan.findings.iter().any(|found| found.stalled);
    let Some(roster) = Roster::of(desired, observed).filter(|_| retiring && !busy) else { return };
    if !all_serve(desired, observed, &roster) {
        return;
    }
    // It serves what is in its Secret, so the kubelet has brought the new trust too, for its next start to read.
    let outdated = |seat: &&Seat| {
        let seen = observed.credentials.presented.get(&seat.name);
        seen.is_some_and(|seen| seen.current && seen.accepts_old == Some(true))
    };
    let leads = |seat: &Seat| Some(seat.id) == roster.leader;
    let outdated: Vec<&Seat> = roster.voters.iter().filter(outdated).collect();
    let follower = outdated.iter().find(|seat| !leads(seat));
    let Some(next) = follower.or(outdated.first()).copied() else { return };
    let heir = roster.voters.iter().find(|seat| seat.id != next.id);
    plan.step = match (heir, next.pod) {
        (Some(heir), _) if leads(next) => Some(Step::Change(Change {
            via: next.name.clone(),
            calls: vec![Call::MoveLeader(heir.id)],
            cluster_id: roster.cluster_id,
            members: roster.listed.to_vec(),
            leader: roster.leader,
            why: format!("{} leads from now on: {} is restarted", heir.name, next.name),
        })),
        (_, Some(pod)) => {
            let why = "etcd trusts the old certificate authorities until it starts anew; a new Pod is made on its volume";
            Some(Step::DeletePod(pod.premise(&next.name, why.to_owned())))
        }
        (_, None) => None,
    };
}

/// Whether those on record, and nobody else, are in etcd's list, vote, have answered a linearizable read, agree who
/// leads, and let clients in.
fn all_serve(desired: &Desired, observed: &Observed, roster: &Roster) -> bool {
    let recorded = |seat: &Seat| observed.record.members.get(&seat.name) == Some(&seat.id);
    let serves = |seat: &Seat| seat.pod.is_some_and(|pod| owns(desired, pod) && pod.ready && pod.voter_label);
    let voters = &roster.voters;
    let nobody_else = roster.learners.is_empty()
        && roster.strangers.is_empty()
        && voters.len() == observed.record.members.len()
        && voters.len() == observed.pods.len();
    nobody_else
        && roster.leader.is_some()
        && roster.all_healthy()
        && observed.alarms().is_empty()
        && voters.iter().all(|seat| recorded(seat) && serves(seat))
}
