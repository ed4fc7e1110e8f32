//! Desired + Observed + findings → status. Pure: the time is an argument.

use jiff::Timestamp;

use super::credentials::{LeafState, SecretState};
use super::desired::Desired;
use super::manifests::pod::template_hash;
use super::observed::{Observed, Record};
use super::plan::Finding;
use super::rotation::Stage;
use crate::api::cluster::{AuthorityStatus, EtcdCluster, EtcdClusterStatus, MemberStatus, VersionStatus};
use crate::api::condition::{
    self, ALL_MEMBERS_HEALTHY, CERTIFICATES_VALID, FOREIGN_VOLUMES, PAUSED, QUORUM_SAFE, READY, RECONCILING,
    STALLED, Statement, UP_TO_DATE,
};
use crate::api::quantity::format_bytes;
use crate::api::reason::Reason;
use crate::etcd::quorum::{margin, quorum};
use crate::etcd::survey::{Alarm, Answer};
use crate::operator::names;

/// The whole status after a look and a plan.
pub fn status(
    before: &EtcdClusterStatus,
    desired: &Desired,
    observed: &Observed,
    findings: &[Finding],
    now: Timestamp,
) -> EtcdClusterStatus {
    let picture = Picture::of(desired, observed, findings);
    let mut status = recorded(before, desired, &observed.record);
    status.observed_generation = Some(desired.generation);
    let members = members(observed, &picture);
    let leader = members.iter().find(|member| member.role == "leader");
    status.leader = leader.map(|member| member.name.clone());
    status.raft_term = leader.and_then(|member| member.raft_term);
    status.revision = picture.answers().map(|answer| answer.revision).max().or(before.revision);
    status.db = db(desired, &members).or_else(|| before.db.clone());
    status.alarms = observed
        .alarms()
        .into_iter()
        .map(|(member, alarm)| format!("{} {member}", alarm_word(alarm)))
        .collect();
    status.ready_replicas = i32::try_from(picture.healthy.len()).unwrap_or_default();
    status.replicas = i32::try_from(picture.names.len()).unwrap_or_default();
    status.ready = Some(format!("{}/{}", picture.healthy.len(), picture.voters.max(desired.replicas)));
    status.members = members;
    status.authority = authority(before, observed);
    let auth = observed.credentials.auth.map(|on| if on { "Enabled" } else { "Disabled" });
    status.auth = auth.map(str::to_owned).or_else(|| before.auth.clone());
    let statements = statements(before, desired, observed, &picture, now);
    status.conditions = condition::set(&before.conditions, &statements, desired.generation, now);
    status.summary = Some(summary(&statements));
    status
}

/// The status before anything of it is known but the record: what is written ahead of an act. It says nothing yet of
/// the generation, so it does not count as observed: with the conditions of before, or none, it would look finished.
pub fn recorded(before: &EtcdClusterStatus, desired: &Desired, record: &Record) -> EtcdClusterStatus {
    let mut status = before.clone();
    status.observed_generation = before.observed_generation.or(Some(-1));
    status.bootstrap.clone_from(&record.bootstrap);
    status.cluster_id = record.cluster_id.map(|id| id.to_string());
    status.selector = Some(format!("{}={}", names::CLUSTER, desired.name));
    status.version = Some(VersionStatus {
        requested: desired.spec.version.clone(),
        resolved: desired.version.to_string(),
    });
    status.next_serial = record.cluster_id.map(|_| record.next_serial);
    if !record.members.is_empty() {
        status.members = record
            .members
            .iter()
            .map(|(name, id)| {
                let known = before.members.iter().find(|member| member.name == *name).cloned();
                MemberStatus {
                    name: name.clone(),
                    member_id: Some(id.to_string()),
                    joining: record.joining.contains(name),
                    ..known.unwrap_or_default()
                }
            })
            .collect();
    }
    status
}

/// The status of a cluster whose spec cannot be used: nothing of what is on record is lost.
pub fn invalid(
    before: &EtcdClusterStatus,
    object: &EtcdCluster,
    error: &dyn std::fmt::Display,
    now: Timestamp,
) -> EtcdClusterStatus {
    let generation = object.metadata.generation.unwrap_or_default();
    let message = format!("{error}. The running members stay as they are.");
    let mut statements: Vec<Statement> = vec![say(STALLED, true, Reason::InvalidSpec, message.clone())];
    statements.push(say(READY, false, Reason::InvalidSpec, message));
    let mut status = before.clone();
    status.observed_generation = Some(generation);
    status.summary = Some(summary(&statements));
    status.conditions = condition::set(&before.conditions, &statements, generation, now);
    status
}

/// Whether `after` says something new. Numbers that move by themselves count only when they moved by a tenth, so
/// that a quiet cluster costs no writes.
pub fn differs(before: &EtcdClusterStatus, after: &EtcdClusterStatus) -> bool {
    let still = |status: &EtcdClusterStatus| {
        let mut status = status.clone();
        (status.revision, status.db) = (None, None);
        for member in &mut status.members {
            (member.db_size, member.raft_index) = (None, None);
        }
        status
    };
    still(before) != still(after)
        || moved(before.revision, after.revision)
        || before.members.iter().zip(&after.members).any(|(before, after)| {
            moved(before.raft_index, after.raft_index) || moved(before.db_size, after.db_size)
        })
}

fn moved(before: Option<i64>, after: Option<i64>) -> bool {
    match (before, after) {
        (Some(before), Some(after)) => before.abs_diff(after) * 10 > before.unsigned_abs().max(100),
        (before, after) => before != after,
    }
}

/// What the statements are made of.
struct Picture<'a> {
    names: Vec<String>,
    /// How many of them vote.
    voters: usize,
    /// Members that answered a linearizable read just now, under the identity on record.
    healthy: Vec<(&'a str, &'a Answer)>,
    /// Members that answered at all.
    answering: usize,
    /// Pods that the kubelet calls ready.
    ready_pods: usize,
    /// Whether clients reach anybody through the Service.
    served: bool,
    findings: &'a [Finding],
}

impl<'a> Picture<'a> {
    fn of(desired: &Desired, observed: &'a Observed, findings: &'a [Finding]) -> Self {
        let names = observed.record.member_names(&desired.name);
        let known = |name: &String, answer: &Answer| {
            observed.record.members.get(name) == Some(&answer.member_id)
                && observed.record.cluster_id == Some(answer.cluster_id)
        };
        let answered =
            observed.survey.iter().filter_map(|(name, answer)| Some((name, answer.as_ref().ok()?)));
        let answered: Vec<(&String, &Answer)> =
            answered.filter(|(name, answer)| known(name, answer)).collect();
        let pods = || names.iter().filter_map(|name| observed.pods.get(name));
        Self {
            healthy: answered
                .iter()
                .filter(|(_, answer)| answer.quorum.is_some() && !answer.learner)
                .map(|(name, answer)| (name.as_str(), *answer))
                .collect(),
            answering: answered.iter().filter(|(_, answer)| !answer.learner).count(),
            ready_pods: pods().filter(|pod| pod.ready).count(),
            served: pods().any(|pod| pod.ready && pod.voter_label),
            voters: observed.record.voters(&desired.name),
            names,
            findings,
        }
    }

    fn answers(&self) -> impl Iterator<Item = &&'a Answer> {
        self.healthy.iter().map(|(_, answer)| answer)
    }

    fn stalled(&self) -> Option<&'a Finding> {
        self.findings.iter().find(|finding| finding.stalled)
    }

    fn finding(&self, member: &str) -> Option<&'a Finding> {
        self.findings.iter().find(|finding| finding.member.as_deref() == Some(member))
    }

    /// How far the change of the number of members is, and what it waits for.
    fn scaling(&self, desired: &Desired) -> String {
        let found = |reason: Reason| self.findings.iter().find(|finding| finding.reason == reason);
        let state = found(Reason::Scaling).map_or_else(
            || format!("{} of {} voters.", self.voters, desired.replicas),
            |finding| finding.message.clone(),
        );
        match found(Reason::MembershipRefused) {
            Some(refused) => format!("{state} {}", refused.message),
            None => state,
        }
    }

    /// A word for each member that is not healthy.
    fn trouble(&self) -> String {
        let silent =
            self.names.iter().filter(|name| !self.healthy.iter().any(|(healthy, _)| healthy == name));
        let words = silent.map(|name| {
            self.finding(name)
                .map_or_else(|| format!("{name} does not answer."), |finding| finding.message.clone())
        });
        words.collect::<Vec<_>>().join(" ")
    }
}

fn say(type_: &'static str, status: bool, reason: Reason, message: String) -> Statement {
    Statement { type_, status, reason, message }
}

fn statements(
    before: &EtcdClusterStatus,
    desired: &Desired,
    observed: &Observed,
    picture: &Picture,
    now: Timestamp,
) -> Vec<Statement> {
    let ready = ready(desired, observed, picture);
    let members = all_members(desired, picture);
    let mut statements = vec![ready.clone(), members.clone(), up_to_date(desired, observed, picture)];
    statements.push(quorum_safe(picture));
    statements.extend(certificates(desired, observed, picture));
    statements.extend(foreign_volumes(desired, observed));
    statements.extend(progress(before, desired, picture, &ready, &members, now));
    statements
}

fn ready(desired: &Desired, observed: &Observed, picture: &Picture) -> Statement {
    if desired.deleting {
        return say(
            READY,
            false,
            Reason::Deleting,
            "The EtcdCluster is being deleted. Its volumes stay unless spec.storage.onDelete is Delete."
                .to_owned(),
        );
    }
    let refused = |finding: &&Finding| finding.reason == Reason::ReconcileError;
    let worst = || {
        let findings = || picture.findings.iter();
        let stalled_or_refused = picture.stalled().or_else(|| findings().find(refused));
        stalled_or_refused.or_else(|| findings().find(|finding| finding.member.is_some()))
    };
    if observed.record.cluster_id.is_none() {
        return match worst() {
            Some(finding) => say(READY, false, finding.reason, finding.message.clone()),
            None => say(
                READY,
                false,
                Reason::Bootstrapping,
                format!("The first start of {} members is under way.", picture.names.len().max(1)),
            ),
        };
    }
    let (healthy, voters) = (picture.healthy.len(), picture.voters);
    if healthy == 0 {
        return no_service(picture);
    }
    if let Some(alarm) = picture
        .findings
        .iter()
        .find(|finding| matches!(finding.reason, Reason::NoSpaceAlarm | Reason::CorruptAlarm))
    {
        return say(READY, false, alarm.reason, alarm.message.clone());
    }
    if !picture.served {
        return say(
            READY,
            false,
            Reason::Recovering,
            format!("{healthy} of {voters} members are healthy; no Pod of theirs is ready yet."),
        );
    }
    let rest = if healthy == voters { String::new() } else { format!(" {}", picture.trouble()) };
    say(
        READY,
        true,
        Reason::Healthy,
        format!("{healthy} of {voters} members are healthy; quorum is {}.{rest}", quorum(voters)),
    )
}

/// Nobody could read with quorum.
fn no_service(picture: &Picture) -> Statement {
    let (answering, voters) = (picture.answering, picture.voters);
    let needed = quorum(voters);
    if let Some(lost) = picture.findings.iter().find(|finding| finding.reason == Reason::AllMembersLost) {
        return say(READY, false, lost.reason, lost.message.clone());
    }
    if answering >= needed {
        return say(
            READY,
            false,
            Reason::NoLeader,
            format!(
                "{answering} of {voters} members answer, but none of them sees a leader that serves. An election is under way; the operator changes nothing."
            ),
        );
    }
    if picture.ready_pods >= needed {
        return say(
            READY,
            false,
            Reason::Unreachable,
            format!(
                "{} Pods are ready, but the operator reaches no member. Nothing is changed. Look at NetworkPolicies between the operator and port 2379.",
                picture.ready_pods
            ),
        );
    }
    say(
        READY,
        false,
        Reason::QuorumLost,
        format!(
            "{answering} of {voters} members answer; quorum is {needed}. Missing Pods are made again on their volumes; nothing is deleted, added or started empty. {}",
            picture.trouble()
        ),
    )
}

fn all_members(desired: &Desired, picture: &Picture) -> Statement {
    let (healthy, wanted) = (picture.healthy.len(), picture.names.len().max(desired.replicas));
    if healthy == wanted && picture.voters == desired.replicas {
        return say(ALL_MEMBERS_HEALTHY, true, Reason::Healthy, format!("All {wanted} members are healthy."));
    }
    if healthy == picture.voters && picture.voters != desired.replicas && healthy > 0 {
        return say(ALL_MEMBERS_HEALTHY, false, Reason::Scaling, picture.scaling(desired));
    }
    let of = |reason: Reason| picture.findings.iter().find(|finding| finding.reason == reason);
    if let Some(replacing) = of(Reason::Replacing).filter(|_| picture.stalled().is_none()) {
        let rest =
            of(Reason::MembershipRefused).map(|refused| format!(" {}", refused.message)).unwrap_or_default();
        return say(ALL_MEMBERS_HEALTHY, false, Reason::Replacing, format!("{}{rest}", replacing.message));
    }
    let worst = picture.findings.iter().find(|finding| finding.member.is_some());
    let reason = worst.map_or(Reason::MemberDown, |finding| finding.reason);
    say(
        ALL_MEMBERS_HEALTHY,
        false,
        reason,
        format!("{healthy} of {wanted} members are healthy. {}", picture.trouble()),
    )
}

fn up_to_date(desired: &Desired, observed: &Observed, picture: &Picture) -> Statement {
    let pending = picture
        .findings
        .iter()
        .find(|finding| matches!(finding.reason, Reason::RollOutPending | Reason::AuthPending));
    if observed.record.cluster_id.is_some() && picture.voters != desired.replicas {
        return say(UP_TO_DATE, false, Reason::Scaling, picture.scaling(desired));
    }
    if let Some(finding) = pending {
        return say(UP_TO_DATE, false, finding.reason, finding.message.clone());
    }
    let hash = template_hash(desired);
    let updated = observed.pods.values().filter(|pod| pod.template.as_deref() == Some(&hash)).count();
    if updated >= picture.names.len() && !picture.names.is_empty() {
        say(UP_TO_DATE, true, Reason::Healthy, "All members run the observed spec.".to_owned())
    } else {
        say(
            UP_TO_DATE,
            false,
            Reason::Bootstrapping,
            format!("{updated} of {} Pods exist.", picture.names.len()),
        )
    }
}

fn quorum_safe(picture: &Picture) -> Statement {
    let (healthy, voters) = (picture.healthy.len(), picture.voters);
    match margin(voters, healthy) {
        Some(margin) if margin > 0 => {
            say(QUORUM_SAFE, true, Reason::Healthy, format!("{margin} more of {voters} members may fail."))
        }
        Some(_) if voters == 1 => say(
            QUORUM_SAFE,
            false,
            Reason::OneFailureFromOutage,
            "A cluster of one member stops with it. Take backups, or use three members.".to_owned(),
        ),
        Some(_) => say(
            QUORUM_SAFE,
            false,
            Reason::OneFailureFromOutage,
            format!("{healthy} of {voters} members are healthy; one more failure stops writes."),
        ),
        None => say(
            QUORUM_SAFE,
            false,
            Reason::QuorumLost,
            format!("{healthy} of {voters} members are healthy; quorum is {}.", quorum(voters)),
        ),
    }
}

fn certificates(desired: &Desired, observed: &Observed, picture: &Picture) -> Option<Statement> {
    if !desired.tls() {
        return None;
    }
    let bad = [Reason::SecretDamaged, Reason::CertificateExpired, Reason::CertificateExpiring];
    if let Some(found) = picture.findings.iter().find(|finding| bad.contains(&finding.reason)) {
        return Some(say(CERTIFICATES_VALID, false, found.reason, found.message.clone()));
    }
    let before = &desired.spec.tls.rotation.renew_before;
    if desired.secrets().is_some() {
        let message = format!("The certificates of spec.tls.secrets are valid for more than {before}.");
        return Some(say(CERTIFICATES_VALID, true, Reason::Healthy, message));
    }
    let good = observed.credentials.leafs.values().filter(|leaf| matches!(leaf, LeafState::Good(_))).count();
    let wanted = picture.names.len() + 2;
    if good < wanted {
        let message = format!(
            "{good} of {wanted} certificates are valid for more than {before}; the others are being made."
        );
        return Some(say(CERTIFICATES_VALID, false, Reason::CertificateExpiring, message));
    }
    let SecretState::Usable(authority) = &observed.credentials.authority else { return None };
    let (reason, message) = match authority.stage {
        Stage::Settled => {
            (Reason::Healthy, format!("All {good} certificates are valid for more than {before}."))
        }
        Stage::Overlap(since) => (
            Reason::AuthorityRotating,
            format!("The certificate authorities were replaced at {since}. All certificates are of the new ones; the old ones are trusted for {before} more, and until every member serves its new certificate."),
        ),
        Stage::Retiring => (
            Reason::AuthorityRotating,
            "The old certificate authorities are no longer handed out. Members that still trust them are restarted one at a time, while all members are healthy.".to_owned(),
        ),
    };
    Some(say(CERTIFICATES_VALID, true, reason, message))
}

/// What of the authorities is worth a field; as it was, where they cannot be read.
fn authority(before: &EtcdClusterStatus, observed: &Observed) -> Option<AuthorityStatus> {
    let SecretState::Usable(authority) = &observed.credentials.authority else {
        return before.authority.clone();
    };
    let rotation = match authority.stage {
        Stage::Settled => None,
        Stage::Overlap(_) => Some("Overlap"),
        Stage::Retiring => Some("Retiring"),
    };
    Some(AuthorityStatus {
        ends: authority.ends.to_string(),
        rotation: rotation.map(str::to_owned),
        handled_request: authority.handled_request.clone(),
    })
}

fn foreign_volumes(desired: &Desired, observed: &Observed) -> Option<Statement> {
    let foreign: Vec<String> = observed
        .volumes
        .iter()
        .filter(|(_, volume)| volume.cluster_uid.as_deref() != Some(desired.uid.as_str()))
        .map(|(name, volume)| {
            format!("{name} (of {})", volume.cluster_uid.as_deref().unwrap_or("unknown origin"))
        })
        .collect();
    (!foreign.is_empty()).then(|| {
        say(FOREIGN_VOLUMES, true, Reason::ForeignVolume, format!("Volumes of an earlier EtcdCluster {} exist: {}. They are left alone. Delete them, or delete this EtcdCluster and make it anew with the annotation quorate.dev/adopt: <their UID> to go on with their data.", desired.name, foreign.join(", ")))
    })
}

/// At most one of Paused, Stalled and Reconciling, and only while it is true (kstatus).
fn progress(
    before: &EtcdClusterStatus,
    desired: &Desired,
    picture: &Picture,
    ready: &Statement,
    members: &Statement,
    now: Timestamp,
) -> Option<Statement> {
    if desired.spec.paused {
        return Some(say(
            PAUSED,
            true,
            Reason::PausedByUser,
            "spec.paused is true: nothing of this cluster is changed. Set it to false to go on.".to_owned(),
        ));
    }
    if let Some(finding) = picture.stalled() {
        return Some(say(STALLED, true, finding.reason, finding.message.clone()));
    }
    if ready.status && members.status {
        return None;
    }
    let since = before
        .conditions
        .iter()
        .find(|condition| condition.type_ == RECONCILING)
        .map(|condition| condition.last_transition_time.0);
    let already = before.conditions.iter().any(|condition| {
        condition.type_ == STALLED && condition.reason == Reason::ProgressDeadlineExceeded.to_string()
    });
    let overdue =
        since.is_some_and(|since| now.duration_since(since).unsigned_abs() > desired.progress_deadline);
    let cause = if ready.status { members } else { ready };
    Some(if overdue || already {
        say(
            STALLED,
            true,
            Reason::ProgressDeadlineExceeded,
            format!("No progress for more than {}. {}", desired.spec.progress_deadline, cause.message),
        )
    } else {
        say(RECONCILING, true, cause.reason, cause.message.clone())
    })
}

/// One sentence for the STATUS column: the worst that there is to say.
fn summary(statements: &[Statement]) -> String {
    let of = |type_: &str| statements.iter().find(|statement| statement.type_ == type_);
    let worst = of(PAUSED)
        .or_else(|| of(STALLED))
        .or_else(|| of(READY).filter(|ready| !ready.status))
        .or_else(|| of(RECONCILING));
    match worst {
        None => "Healthy".to_owned(),
        Some(statement) => {
            let sentence = statement.message.split_inclusive(". ").next().unwrap_or_default().trim_end();
            format!("{}: {sentence}", statement.reason)
        }
    }
}

fn members(observed: &Observed, picture: &Picture) -> Vec<MemberStatus> {
    picture.names.iter().map(|name| member(observed, picture, name)).collect()
}

fn member(observed: &Observed, picture: &Picture, name: &str) -> MemberStatus {
    let answer = observed.survey.get(name).and_then(|answer| answer.as_ref().ok());
    let healthy = picture.healthy.iter().any(|(healthy, _)| *healthy == name);
    let finding = picture.finding(name);
    let role = match answer {
        None => "unknown",
        Some(answer) if answer.learner => "learner",
        Some(answer) if answer.leader == Some(answer.member_id) => "leader",
        Some(_) => "follower",
    };
    let mark = observed.record.high_water.get(name);
    let since = observed.record.unhealthy_since.get(name).unwrap_or(&observed.now);
    let health = match finding {
        _ if healthy => Reason::Healthy,
        Some(finding) => finding.reason,
        None if observed.record.cluster_id.is_none() => Reason::Bootstrapping,
        None if observed.record.joining.contains(name) => Reason::Scaling,
        None => Reason::MemberDown,
    };
    MemberStatus {
        name: name.to_owned(),
        member_id: observed.record.members.get(name).map(ToString::to_string),
        role: role.to_owned(),
        joining: observed.record.joining.contains(name),
        health: health.to_string(),
        unhealthy_since: (!healthy && observed.record.cluster_id.is_some()).then(|| since.to_string()),
        message: finding.filter(|_| !healthy).map(|finding| finding.message.clone()),
        node: observed.pods.get(name).and_then(|pod| pod.node.clone()),
        version: answer.map(|answer| answer.version.clone()),
        db_size: answer.map(|answer| answer.db_size_bytes),
        raft_term: mark.and_then(|(term, _)| i64::try_from(*term).ok()),
        raft_index: mark.and_then(|(_, index)| i64::try_from(*index).ok()),
    }
}

fn db(desired: &Desired, members: &[MemberStatus]) -> Option<String> {
    let largest = members.iter().filter_map(|member| member.db_size).max()?;
    let bytes = u64::try_from(largest).unwrap_or_default();
    Some(format!("{}/{}", format_bytes(bytes), desired.spec.quota_backend))
}

fn alarm_word(alarm: Alarm) -> &'static str {
    match alarm {
        Alarm::NoSpace => "NOSPACE",
        Alarm::Corrupt => "CORRUPT",
    }
}
