//! Certificates, Services, PodDisruptionBudget and ConfigMap.

use super::super::credentials::{Authority, LeafState, SecretState, holders, wanted};
use super::super::desired::Desired;
use super::super::manifests::{network, says_all};
use super::super::observed::Observed;
use super::membership::{is_promotion_next, next_size};
use super::roster::Roster;
use super::{Ensure, Finding, Plan};
use crate::api::reason::Reason;
use crate::operator::names;

pub(super) fn rule(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let authority = if desired.tls() { certificates(desired, observed, plan) } else { None };
    let voters = voters_to_protect(desired, observed);
    let serving = observed.pods.iter().filter(|(_, pod)| pod.voter_label && !pod.deleting);
    let serving: Vec<&str> = serving.map(|(name, _)| name.as_str()).collect();
    for (kind, manifest) in
        network::all(desired, voters, &serving, authority.map(|pem| pem.client.certificate.as_str()))
    {
        let name = manifest.pointer("/metadata/name").and_then(serde_json::Value::as_str).unwrap_or_default();
        let found = observed.children.get(&(kind, name.to_owned()));
        if !found.is_some_and(|found| says_all(&manifest, found)) {
            plan.ensure.push(Ensure::Apply { kind, manifest });
        }
    }
}

/// As many as vote now or after the step that is next, whichever is more; from the record while nobody can tell.
fn voters_to_protect(desired: &Desired, observed: &Observed) -> usize {
    let Some(roster) = Roster::of(desired, observed) else { return observed.record.voters(&desired.name) };
    let now = roster.voters.len();
    let next =
        if is_promotion_next(desired, observed, &roster) { next_size(now, desired.replicas) } else { now };
    now.max(next)
}

/// Authorities are made once, before anything trusts them; leafs as often as needed.
fn certificates<'a>(desired: &Desired, observed: &'a Observed, plan: &mut Plan) -> Option<&'a Authority> {
    let secret = names::authority(&desired.name);
    let damaged = |why: &str| {
        Finding::stalled(
            Reason::SecretDamaged,
            None,
            format!(
                "The Secret {secret} with the cluster's certificate authorities {why}. Members keep the certificates that they have; none is made or renewed. Restore the Secret from a backup."
            ),
        )
    };
    match &observed.credentials.authority {
        SecretState::Usable(authority) => {
            leafs(desired, observed, plan);
            Some(authority)
        }
        SecretState::Damaged(why) => {
            plan.findings.push(damaged(&format!("cannot be used: {why}")));
            None
        }
        SecretState::Missing if observed.credentials.leafs.is_empty() && observed.pods.is_empty() => {
            plan.ensure.push(Ensure::Authority);
            None
        }
        SecretState::Missing => {
            plan.findings.push(damaged("is gone, but certificates signed by it exist"));
            None
        }
    }
}

fn leafs(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    for leaf in wanted(desired, &holders(desired, &observed.record, &observed.volumes)) {
        match observed.credentials.leafs.get(&leaf.secret) {
            Some(LeafState::Good(_) | LeafState::Unjudged) => {}
            Some(LeafState::Renew(_)) | None => plan.ensure.push(Ensure::Leaf(leaf)),
        }
    }
}
