//! Members that move because of their node: it is being emptied, or it no longer fits `spec.placement`.
//!
//! Only with `spec.disruption.surge`: then the PodDisruptionBudget lets nobody be evicted, so that `kubectl drain` waits
//! until the operator has exchanged the member, the new one first. The exchange is a repair like others (`repair`): one at
//! a time, and only while all voters are healthy.
//!
//! **No circle:** what is a reason to leave a node here keeps the scheduler from choosing that node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::super::desired::Desired;
use super::super::observed::{NodeState, Observed};
use super::roster::Seat;
use super::{Finding, Plan};
use crate::api::reason::Reason;

/// Taints that Kubernetes sets and takes away by itself, such as `not-ready` and `disk-pressure`: they pass.
const OF_KUBERNETES: &str = "node.kubernetes.io/";

/// Why a healthy member should be on another node.
pub(super) fn must_move(desired: &Desired, observed: &Observed, seat: &Seat) -> Option<String> {
    if !desired.spec.disruption.surge {
        return None;
    }
    let name = seat.pod?.node.as_ref()?;
    let node = observed.nodes.as_ref().ok()?.get(name)?;
    if node.cordoned {
        return Some(format!("its node {name} is cordoned"));
    }
    let own = seat.volume.map(|volume| volume.node_selector.clone()).unwrap_or_default();
    let why = unfit(node, &desired.spec.placement.node_selector, own, &desired.spec.placement.tolerations)?;
    Some(format!("its node {name} {why}"))
}

/// Why a node would not be chosen today.
fn unfit(
    node: &NodeState,
    selector: &BTreeMap<String, String>,
    own: BTreeMap<String, String>,
    tolerations: &[Toleration],
) -> Option<String> {
    let mut wanted = selector.clone();
    wanted.extend(own);
    if let Some((key, value)) = wanted.iter().find(|(key, value)| node.labels.get(*key) != Some(value)) {
        return Some(format!("does not have the label {key}={value}"));
    }
    let repels = |taint: &&Taint| {
        let lasts = !taint.key.starts_with(OF_KUBERNETES);
        let forbids = taint.effect == "NoSchedule" || taint.effect == "NoExecute";
        lasts && forbids && !tolerations.iter().any(|toleration| tolerates(toleration, taint))
    };
    let taint = node.taints.iter().find(repels)?;
    Some(format!("has the taint {}:{}, which is not tolerated", taint.key, taint.effect))
}

/// As the scheduler sees it (k8s.io/api/core/v1/toleration.go, `ToleratesTaint`).
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let is = |wanted: &Option<String>, found: &str| {
        wanted.as_deref().is_none_or(|wanted| wanted.is_empty() || wanted == found)
    };
    let value = match toleration.operator.as_deref() {
        Some("Exists") => true,
        _ => toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
    };
    is(&toleration.effect, &taint.effect) && is(&toleration.key, &taint.key) && value
}

/// What keeps it from being done at all.
pub(super) fn rule(observed: &Observed, plan: &mut Plan) {
    if let Err(why) = &observed.nodes {
        plan.findings.push(Finding::stalled(
            Reason::RepairRefused,
            None,
            format!("spec.disruption.surge is true, but nodes cannot be read ({why}), so nobody is moved off a cordoned node, and nobody can be evicted. Give the operator the right to get nodes, or set it to false."),
        ));
    }
}
