//! Certificates, Services, PodDisruptionBudget, ConfigMap and etcd's auth.

use super::super::credentials::{LeafState, Problem, SecretState, holders, wanted};
use super::super::desired::Desired;
use super::super::manifests::{network, says_all};
use super::super::observed::Observed;
use super::super::rotation;
use super::exchange::wanted as wanted_voters;
use super::membership::{is_promotion_next, next_size};
use super::roster::Roster;
use super::{Ensure, Finding, Plan, owns};
use crate::api::reason::Reason;
use crate::operator::names;

pub(super) fn rule(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let trust = if desired.secrets().is_some() {
        plan.findings.extend(observed.credentials.problems.iter().map(|problem| tell(observed, problem)));
        observed.credentials.trust.clone()
    } else if desired.tls() {
        certificates(desired, observed, plan)
    } else {
        None
    };
    let voters = voters_to_protect(desired, observed);
    let serving = observed.pods.iter().filter(|(_, pod)| pod.voter_label && !pod.deleting);
    let serving: Vec<&str> = serving.map(|(name, _)| name.as_str()).collect();
    for (kind, manifest) in network::all(desired, voters, &serving, trust.as_deref()) {
        let name = manifest.pointer("/metadata/name").and_then(serde_json::Value::as_str).unwrap_or_default();
        let found = observed.children.get(&(kind, name.to_owned()));
        if !found.is_some_and(|found| says_all(&manifest, found)) {
            plan.ensure.push(Ensure::Apply { kind, manifest });
        }
    }
    touches(desired, observed, plan);
    auth(desired, observed, plan);
}

/// As many as vote now or after the step that is next, whichever is more; from the record while nobody can tell.
fn voters_to_protect(desired: &Desired, observed: &Observed) -> usize {
    let Some(roster) = Roster::of(desired, observed) else { return observed.record.voters(&desired.name) };
    let now = roster.voters.len();
    let next = if is_promotion_next(desired, observed, &roster) {
        next_size(now, wanted_voters(desired, observed, &roster))
    } else {
        now
    };
    now.max(next)
}

/// Authorities are made once, before anything trusts them, and replaced step by step; leafs as often as needed.
/// Returns the certificates that clients must trust.
fn certificates(desired: &Desired, observed: &Observed, plan: &mut Plan) -> Option<String> {
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
            let members = holders(desired, &observed.record, &observed.volumes);
            // Before the cluster is on record there is nobody to ask what it trusts.
            let formed = observed.record.cluster_id.is_some();
            let change = rotation::due(desired, &observed.credentials, &members).filter(|_| formed);
            plan.ensure.extend(change.map(Ensure::ChangeAuthority));
            Some(authority.client.trust(authority.stage))
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

/// Hastens what nodes do by themselves within two minutes. A Pod that is younger than its certificates has mounted
/// them.
fn touches(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    for name in &holders(desired, &observed.record, &observed.volumes) {
        let (Some(stored), Some(pod)) = (observed.credentials.stored.get(name), observed.pods.get(name))
        else {
            continue;
        };
        let ours = owns(desired, pod) && !pod.deleting;
        let told = pod.certificates.as_ref() == Some(&stored.version);
        let older = pod.created.is_some_and(|created| created < stored.issued);
        if ours && !told && older {
            plan.ensure.push(Ensure::Touch {
                pod: name.clone(),
                uid: pod.uid.clone(),
                certificates: stored.version.clone(),
            });
        }
    }
}

/// A Secret that the user brings is never written, so only they can put it right.
fn tell(observed: &Observed, problem: &Problem) -> Finding {
    let Problem { secret, what, ends } = problem;
    match ends {
        None => Finding::stalled(
            Reason::SecretDamaged,
            None,
            format!(
                "The Secret {secret} of spec.tls.secrets cannot be used: {what}. Connections that exist stay; new ones are refused as soon as the nodes have handed it to their Pods, within two minutes. Correct the Secret: it is looked at again within seconds."
            ),
        ),
        Some(end) if *end <= observed.credentials.looked_at => Finding::stalled(
            Reason::CertificateExpired,
            None,
            format!(
                "The Secret {secret} of spec.tls.secrets is too old: {what}. Connections with it are refused. Renew it: members take it without a restart."
            ),
        ),
        Some(_) => Finding::waiting(
            Reason::CertificateExpiring,
            None,
            format!(
                "The Secret {secret} of spec.tls.secrets must be renewed: {what}. Renew it: members take it without a restart."
            ),
        ),
    }
}

/// Turned on and off as asked, once the cluster serves; nobody can be locked out by a certificate that is not root's.
fn auth(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let wanted = desired.spec.auth.enabled;
    let serves = observed.record.cluster_id.is_some() && observed.listed().is_some();
    if !desired.tls() || observed.credentials.auth.is_none_or(|seen| seen == wanted) {
        return;
    }
    let (is, to) = if wanted { ("off", "on") } else { ("on", "off") };
    plan.findings.push(Finding::waiting(
        Reason::AuthPending,
        None,
        format!("spec.auth.enabled is {wanted}, etcd's auth is still {is}. It is turned {to} while the cluster serves and no Secret of spec.tls.secrets is damaged."),
    ));
    if serves && observed.credentials.problems.is_empty() {
        plan.ensure.push(Ensure::Auth(wanted));
    }
}
