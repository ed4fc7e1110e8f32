//! Each member's volume and Pod.

use super::super::credentials::LeafState;
use super::super::desired::Desired;
use super::super::manifests::{pod as pods, volume as volumes};
use super::super::observed::{MemberPod, Observed, Volume};
use super::{Ensure, Finding, Plan, Premise, Step, is_ours};
use crate::api::reason::Reason;
use crate::etcd::flags::{InitialState, PEER_PORT, url};
use crate::etcd::identity::bootstrap_member_id;
use crate::operator::names;

pub(super) fn rule(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let names = observed.record.member_names(&desired.name);
    let missing = names.iter().filter(|name| !observed.volumes.contains_key(*name)).count();
    if observed.record.cluster_id.is_some() && missing == names.len() {
        plan.findings.push(Finding::stalled(
            Reason::AllMembersLost,
            None,
            format!("All {missing} volumes of the cluster are gone, and its data with them. Nothing is started empty. Restore a backup into a new EtcdCluster; delete this one when nothing of it is needed."),
        ));
        return;
    }
    for name in &names {
        member(desired, observed, name, &names, plan);
    }
}

fn member(desired: &Desired, observed: &Observed, name: &str, all: &[String], plan: &mut Plan) {
    let pod = observed.pods.get(name);
    // A Pod that waits for a volume that is not to be had waits in vain, but harms nobody.
    let Some(volume) = usable_volume(desired, observed, name, plan) else { return };
    record_identity(desired, observed, name, volume, plan);
    match pod {
        None => create(desired, observed, name, all, volume, plan),
        Some(pod) => existing(desired, observed, name, pod, volume, plan),
    }
}

/// The member's volume, if a Pod may be put on it; makes one where none was ever recorded.
fn usable_volume<'a>(
    desired: &Desired,
    observed: &'a Observed,
    name: &str,
    plan: &mut Plan,
) -> Option<&'a Volume> {
    let Some(volume) = observed.volumes.get(name) else {
        if observed.record.cluster_id.is_some() {
            plan.findings.push(Finding::stalled(
                Reason::VolumeMissing,
                Some(name),
                format!("The volume {name} is gone, and this member's data with it. The member is not started empty: its ID has voted. The other members serve while they have quorum; restore the volume, or wait for a release that replaces members."),
            ));
        } else {
            let incarnation = observed.record.bootstrap.as_ref().map_or(0, |bootstrap| bootstrap.incarnation);
            plan.ensure.push(Ensure::Create {
                kind: "PersistentVolumeClaim",
                manifest: volumes::volume(desired, name, incarnation),
            });
        }
        return None;
    };
    if !is_ours(desired, volume) {
        let owner = volume.cluster_uid.as_deref().unwrap_or("nobody that Quorate knows");
        plan.findings.push(Finding::stalled(
            Reason::ForeignVolume,
            Some(name),
            format!("The volume {name} belongs to {owner}, not to this EtcdCluster ({}). It is not mounted, changed or deleted. Delete it if nothing of it is needed.", desired.uid),
        ));
        return None;
    }
    if volume.deleting && volume.identity.is_none() {
        plan.findings.push(Finding::waiting(
            Reason::VolumeTerminating,
            Some(name),
            format!("The volume {name}, which never held data, is being deleted; a new one is made when it is gone."),
        ));
        return None;
    }
    if volume.deleting {
        plan.findings.push(Finding::stalled(
            Reason::VolumeTerminating,
            Some(name),
            format!("The volume {name} is being deleted; it stays as long as its Pod runs. The Pod is not deleted by the operator, and no new one is put on the volume. Take a backup now."),
        ));
        return None;
    }
    Some(volume)
}

/// Takes over the volume of an adopted member, and notes a member's identity as soon as it has reported it.
fn record_identity(desired: &Desired, observed: &Observed, name: &str, volume: &Volume, plan: &mut Plan) {
    let mut apply = |identity| {
        let manifest = volumes::record(desired, name, &volume.uid, identity);
        plan.ensure.push(Ensure::Apply { kind: "PersistentVolumeClaim", manifest });
    };
    if let Some(identity) = volume.identity {
        let taken_over = volume.cluster_uid.as_deref() != Some(desired.uid.as_str());
        if taken_over || volume.owned != volumes::is_owned(desired) {
            apply(Some(identity));
        }
        return;
    }
    if volume.owned != volumes::is_owned(desired) {
        apply(None);
    }
    let (Some(Ok(answer)), Some(bootstrap)) = (observed.survey.get(name), &observed.record.bootstrap) else {
        return;
    };
    let peer_url = url(desired.tls(), &desired.address(name), PEER_PORT);
    let expected = bootstrap_member_id(&peer_url, &bootstrap.token);
    if answer.member_id == expected {
        apply(Some((answer.cluster_id, answer.member_id)));
    } else {
        plan.findings.push(Finding::stalled(
            Reason::ClusterIDMismatch,
            Some(name),
            format!("{name} says that it is member {} of cluster {}, but its first start makes it {expected}. It is not put on record and serves nobody. Look at how it was started.", answer.member_id, answer.cluster_id),
        ));
    }
}

/// Puts a Pod on the volume, once its certificates are there.
fn create(
    desired: &Desired,
    observed: &Observed,
    name: &str,
    all: &[String],
    volume: &Volume,
    plan: &mut Plan,
) {
    if desired.tls() && !certificates_exist(observed, name) {
        return;
    }
    let Some(bootstrap) = &observed.record.bootstrap else { return };
    let anyone_on_record = observed.record.cluster_id.is_some()
        || all.iter().any(|name| observed.volumes.get(name).is_some_and(|volume| volume.identity.is_some()));
    let manifest = pods::pod(
        desired,
        &pods::Member {
            name,
            initial: all,
            state: if anyone_on_record { InitialState::Existing } else { InitialState::New },
            token: &bootstrap.token,
            incarnation: volume.incarnation,
            identity: volume.identity,
            high_water: volume.identity.and(observed.record.high_water.get(name).copied()),
        },
    );
    plan.ensure.push(Ensure::Create { kind: "Pod", manifest });
    if observed.record.cluster_id.is_some() {
        plan.findings.push(Finding::waiting(
            Reason::Recovering,
            Some(name),
            format!("The Pod {name} was gone; it is made again on its volume."),
        ));
    }
}

fn certificates_exist(observed: &Observed, member: &str) -> bool {
    let leaf = observed.credentials.leafs.get(&names::member_certificate(member));
    matches!(leaf, Some(LeafState::Good(_) | LeafState::Unjudged))
}

fn existing(
    desired: &Desired,
    observed: &Observed,
    name: &str,
    pod: &MemberPod,
    volume: &Volume,
    plan: &mut Plan,
) {
    if pod.owner_uid.as_deref() != Some(desired.uid.as_str()) {
        plan.findings.push(Finding::waiting(
            Reason::Deleting,
            Some(name),
            format!("A Pod {name} of another owner exists. The operator waits until it is gone. Delete it if nobody else will."),
        ));
        return;
    }
    if pod.deleting {
        plan.findings.push(Finding::waiting(
            Reason::Recovering,
            Some(name),
            format!("The Pod {name} is ending; a new one is made on its volume when it is gone."),
        ));
        return;
    }
    if observed.record.cluster_id.is_some() && volume.identity.is_some() && !pod.voter_label {
        let manifest = pods::voter_label(desired, name, &pod.uid);
        plan.ensure.push(Ensure::Apply { kind: "Pod", manifest });
    }
    if let Some(why) = replaceable(desired, observed, name, pod, volume) {
        plan.step.get_or_insert(why);
    }
}

/// A volume that was never bound, of a class that the spec does not name (any more).
fn has_wrong_class(desired: &Desired, observed: &Observed, volume: &Volume) -> bool {
    let wanted = desired.spec.storage.storage_class_name.as_ref();
    let missing =
        observed.missing_storage_class.is_some() && observed.missing_storage_class == volume.storage_class;
    let differs = volume.storage_class.as_ref() != wanted && (wanted.is_some() || missing);
    !volume.bound && volume.identity.is_none() && differs
}

/// A Pod that serves nobody and would do better if it were made anew.
fn replaceable(
    desired: &Desired,
    observed: &Observed,
    name: &str,
    pod: &MemberPod,
    volume: &Volume,
) -> Option<Step> {
    let premise = |why: String| Premise {
        name: name.to_owned(),
        uid: pod.uid.clone(),
        resource_version: pod.resource_version.clone(),
        why,
    };
    if pod.ended() {
        return Some(Step::DeletePod(premise(format!(
            "it has ended ({}); a new one is made on its volume",
            pod.phase
        ))));
    }
    let answers = observed.survey.get(name).is_some_and(Result::is_ok);
    if pod.ready || answers {
        return None;
    }
    let cannot_start = !pod.running || observed.record.cluster_id.is_none();
    let outdated = pod.template.as_deref() != Some(pods::template_hash(desired).as_str());
    if has_wrong_class(desired, observed, volume) {
        return Some(Step::DeleteVolume(Premise {
            name: name.to_owned(),
            uid: volume.uid.clone(),
            resource_version: volume.resource_version.clone(),
            why: "it was never bound, and the spec names another storage class now".to_owned(),
        }));
    }
    (outdated && cannot_start).then(|| {
        Step::DeletePod(premise("it cannot start, and the spec has changed since it was made".to_owned()))
    })
}
