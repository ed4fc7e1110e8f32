//! What an abandoned first start left behind. After the cluster is on record nothing here applies.

use super::super::desired::Desired;
use super::super::observed::Observed;
use super::{Plan, Step, owns};

pub(super) fn rule(desired: &Desired, observed: &Observed) -> Option<Plan> {
    if observed.record.cluster_id.is_some() {
        return None;
    }
    let wanted = observed.record.member_names(&desired.name);
    let pod = observed
        .pods
        .iter()
        .find(|(name, pod)| !wanted.contains(name) && owns(desired, pod) && !pod.deleting);
    if let Some((name, pod)) = pod {
        let why = "it belongs to a first start that was begun anew".to_owned();
        return Some(step(Step::DeletePod(pod.premise(name, why))));
    }
    // One that carries an identity stays: whoever looks for the cause of a failed first start will want it.
    let (name, volume) = observed.volumes.iter().find(|(name, volume)| {
        !wanted.contains(name)
            && volume.cluster_uid.as_deref() == Some(desired.uid.as_str())
            && volume.identity.is_none()
            && !volume.deleting
    })?;
    let why = "it belongs to a first start that was begun anew and never held a member".to_owned();
    Some(step(Step::DeleteVolume(volume.premise(name, why), None)))
}

fn step(step: Step) -> Plan {
    Plan { step: Some(step), ..Plan::default() }
}
