//! Members that must start anew, because etcd reads the authorities that it trusts only when it starts.
//!
//! Nothing is in a hurry: their certificates are accepted by everybody meanwhile (`rotation.rs`). So a member is
//! stopped only while every member serves, no other Pod is ending, nothing else is to be done, and nobody waits for
//! a person; the leader comes last, and hands leadership over when it is told to end.

use super::super::credentials::SecretState;
use super::super::desired::Desired;
use super::super::observed::{MemberPod, Observed};
use super::super::rotation::Stage;
use super::{Plan, Premise, Step};

pub(super) fn rule(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let retiring = matches!(
        &observed.credentials.authority,
        SecretState::Usable(authority) if authority.stage == Stage::Retiring
    );
    let busy =
        plan.step.is_some() || !plan.ensure.is_empty() || plan.findings.iter().any(|found| found.stalled);
    if !retiring || busy || !all_serve(desired, observed) {
        return;
    }
    // It serves what is in its Secret, so the kubelet has brought the new trust too, for its next start to read.
    let outdated = |name: &&String| {
        let seen = observed.credentials.presented.get(*name);
        seen.is_some_and(|seen| seen.current && seen.accepts_old == Some(true))
    };
    let names: Vec<&String> = observed.record.members.keys().filter(outdated).collect();
    let next = names.iter().find(|name| !leads(observed, name)).or(names.first());
    let Some((name, pod)) = next.and_then(|name| Some((*name, observed.pods.get(*name)?))) else { return };
    plan.step = Some(Step::DeletePod(Premise {
        name: name.clone(),
        uid: pod.uid.clone(),
        resource_version: pod.resource_version.clone(),
        why: "etcd trusts the old certificate authorities until it starts anew; a new Pod is made on its volume"
            .to_owned(),
    }));
}

/// Whether each member on record, and nobody else, is in etcd's list, answers a linearizable read and lets clients
/// in.
fn all_serve(desired: &Desired, observed: &Observed) -> bool {
    let members = &observed.record.members;
    let Some(listed) = observed.listed() else { return false };
    let known = listed.len() == members.len()
        && listed.iter().all(|listed| !listed.learner && members.values().any(|id| *id == listed.id));
    let ours = |pod: &MemberPod| pod.owner_uid.as_deref() == Some(desired.uid.as_str());
    let serves = |name: &String| {
        let answer = observed.survey.get(name).and_then(|answer| answer.as_ref().ok());
        let pod = observed.pods.get(name);
        answer.is_some_and(|answer| answer.quorum.is_some() && Some(&answer.member_id) == members.get(name))
            && pod.is_some_and(|pod| ours(pod) && pod.ready && pod.voter_label && !pod.deleting)
    };
    known
        && observed.alarms().is_empty()
        && observed.pods.len() == members.len()
        && members.keys().all(serves)
}

fn leads(observed: &Observed, name: &str) -> bool {
    let answer = observed.survey.get(name).and_then(|answer| answer.as_ref().ok());
    answer.is_some_and(|answer| answer.leader == Some(answer.member_id))
}
