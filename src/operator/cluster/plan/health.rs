//! What is left to tell: why Pods do not run, what etcd says, what the spec asks for that is not done.

use super::super::desired::Desired;
use super::super::manifests::pod::template_hash;
use super::super::observed::{MemberPod, Observed};
use super::roster::Roster;
use super::{Finding, Plan};
use crate::api::reason::Reason;
use crate::etcd::survey::Alarm;

pub(super) fn rule(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    plan.findings.extend(storage_class(observed));
    for name in observed.record.member_names(&desired.name) {
        if let Some(pod) = observed.pods.get(&name) {
            plan.findings.extend(pod_finding(observed, &name, pod));
        }
        plan.findings.extend(identity_finding(observed, &name));
    }
    plan.findings.extend(alarms(observed));
    plan.findings.extend(unknown_members(desired, observed));
    plan.findings.extend(roll_out(desired, observed));
}

fn pod_finding(observed: &Observed, name: &str, pod: &MemberPod) -> Option<Finding> {
    if pod.ready || pod.deleting {
        return None;
    }
    if let Some(report) = pod.refusal() {
        return Some(refused(name, report));
    }
    if let Some(why) = &pod.unschedulable {
        return Some(Finding::stalled(
            Reason::Unschedulable,
            Some(name),
            format!(
                "{name} finds no node: {why}. The scheduler goes on trying. Free or add a node, or change spec.placement or spec.resources."
            ),
        ));
    }
    if let Some(waiting) = pod.waiting.as_deref().filter(|waiting| is_image_trouble(waiting)) {
        return Some(Finding::stalled(
            Reason::ImagePullFailed,
            Some(name),
            format!(
                "The image of {name} cannot be pulled ({waiting}). The kubelet goes on trying. Correct spec.version or spec.image, or load the image."
            ),
        ));
    }
    let first_start = observed.record.cluster_id.is_none() || observed.record.joining.contains(name);
    if first_start && pod.last_exit.is_none() {
        return None; // It starts for the first time: nothing is wrong yet.
    }
    // Nobody is asked whose container does not run: how it ended is known all the same.
    let silence = match observed.survey.get(name) {
        Some(Err(silence)) => silence.as_str(),
        None if pod.last_exit.is_some() => "its container does not run",
        Some(Ok(_)) | None => return None,
    };
    let (reason, message) = match &pod.last_exit {
        // While the container restarts in a circle it is mostly running: the sentence must not change with it.
        Some(report) if pod.ended_recently || !pod.running => (
            Reason::EtcdFailed,
            format!(
                "{name}: {}. The kubelet starts it again; its data stay as they are.",
                report.sentence().trim_end_matches('.')
            ),
        ),
        Some(_) | None => (
            Reason::MemberDown,
            format!(
                "{name} does not answer: {silence}. An etcd that has just started answers nobody before a majority of the members runs; if the others do, look at its log and its node."
            ),
        ),
    };
    Some(Finding::waiting(reason, Some(name), message))
}

/// The guard's causes are reasons of ours; one that we do not know is reported as it is.
fn refused(name: &str, report: &super::super::observed::GuardReport) -> Finding {
    let cause = report.cause.as_deref().unwrap_or_default();
    let reason = match cause {
        "VolumeInUse" => Reason::VolumeInUse,
        "ForeignVolume" => Reason::ForeignVolume,
        "DataLost" => Reason::DataLost,
        "RolledBack" => Reason::RolledBack,
        "WalDamaged" => Reason::WalDamaged,
        "NameUnresolved" => Reason::NameUnresolved,
        "VolumeUnwritable" => Reason::VolumeUnwritable,
        _ => Reason::BadConfiguration,
    };
    // These two pass by themselves when the other process ends or DNS answers.
    let stalled = !matches!(reason, Reason::VolumeInUse | Reason::NameUnresolved);
    let message = format!(
        "The guard does not start etcd of {name}: {}. See `kubectl quorate explain {reason}`.",
        report.sentence().trim_end_matches('.')
    );
    Finding { reason, member: Some(name.to_owned()), message, stalled }
}

fn is_image_trouble(waiting: &str) -> bool {
    ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"]
        .iter()
        .any(|reason| waiting.starts_with(reason))
}

/// A member on record that speaks for another cluster or under another ID.
fn identity_finding(observed: &Observed, name: &str) -> Option<Finding> {
    let answer = observed.survey.get(name)?.as_ref().ok()?;
    let cluster = observed.record.cluster_id?;
    let member = *observed.record.members.get(name)?;
    ((answer.cluster_id, answer.member_id) != (cluster, member)).then(|| {
        Finding::stalled(
            Reason::ClusterIDMismatch,
            Some(name),
            format!("{name} answers as member {} of cluster {}; on record it is {member} of {cluster}. Nothing is changed. Find out which of them holds the data that count.", answer.member_id, answer.cluster_id),
        )
    })
}

fn storage_class(observed: &Observed) -> Option<Finding> {
    let class = observed.missing_storage_class.as_ref()?;
    Some(Finding::stalled(
        Reason::StorageClassMissing,
        None,
        format!(
            "The storage class {class} does not exist, so volumes stay unbound. They are bound as soon as it does. Create it, or change spec.storage.storageClassName."
        ),
    ))
}

fn alarms(observed: &Observed) -> Vec<Finding> {
    let mut found: Vec<_> = observed.alarms();
    found.dedup();
    found
        .into_iter()
        .map(|(member, alarm)| match alarm {
            Alarm::NoSpace => Finding::stalled(
                Reason::NoSpaceAlarm,
                Some(&member),
                format!("{member} raised NOSPACE: the database has reached spec.quotaBackend and writes are refused. Delete keys, compact, defragment (kubectl quorate ctl), then disarm the alarm."),
            ),
            Alarm::Corrupt => Finding::stalled(
                Reason::CorruptAlarm,
                Some(&member),
                format!("{member} raised CORRUPT: its data differ from the others', and etcd refuses all writes. Quorate compares what all voters hold (HashKV at one revision): if a strict majority holds the same, whoever differs is removed and joins anew, and the alarm is disarmed; else nothing is changed."),
            ),
        })
        .collect()
}

/// Members that etcd lists and that nobody of ours can have made.
fn unknown_members(desired: &Desired, observed: &Observed) -> Option<Finding> {
    let roster = Roster::of(desired, observed)?;
    let strangers: Vec<String> = roster.strangers.iter().map(ToString::to_string).collect();
    (!strangers.is_empty()).then(|| {
        Finding::stalled(
            Reason::UnknownMember,
            None,
            format!("etcd's member list has members that Quorate did not add: {}. Nobody is added, promoted or removed while they are there. Whoever added them must remove them: kubectl quorate ctl {} -- member remove ID.", strangers.join(", "), desired.name),
        )
    })
}

fn roll_out(desired: &Desired, observed: &Observed) -> Option<Finding> {
    let wanted = template_hash(desired);
    let outdated: Vec<&str> = observed
        .pods
        .iter()
        .filter(|(name, pod)| {
            observed.record.members.contains_key(*name) && pod.template.as_deref() != Some(&wanted)
        })
        .map(|(name, _)| name.as_str())
        .collect();
    (!outdated.is_empty()).then(|| {
        Finding::waiting(
            Reason::RollOutPending,
            None,
            format!("{} run an older spec. This version applies a changed spec to new Pods only: delete the Pods one at a time, each after the one before is Ready.", outdated.join(", ")),
        )
    })
}
