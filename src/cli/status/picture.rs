//! Clusters as text: the picture of one, the overview of many, the line of a change. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;

use super::look::{Cell, Ink, Look, bytes, grouped, harmless, table};
use super::verdict::{HEALTHY, LEARNER, State, Verdict, Voters, find, judge};
use crate::api::cluster::MemberStatus;
use crate::api::quantity::format_bytes;
use crate::api::reason::Reason;
use crate::api::{EtcdCluster, EtcdClusterStatus, condition};

/// Columns of a line's label.
const LABEL: usize = 10;

/// One cluster, with everything that its status knows. Lines without data are absent.
pub(super) fn picture(cluster: &EtcdCluster, look: &Look) -> String {
    let verdict = judge(cluster);
    let mut text = header(cluster, &verdict, look);
    text.push('\n');
    let unknown = EtcdClusterStatus::default();
    let status = cluster.status.as_ref().unwrap_or(&unknown);
    let lines =
        [quorum(status, look), leader(status), db(status, look), alarms(status, look), spec(cluster, status)];
    for (label, line) in ["Quorum", "Leader", "DB", "Alarms", "Spec"].iter().zip(lines) {
        if let Some(line) = line {
            text.push_str(&labelled(label, &line));
        }
    }
    if !status.members.is_empty() {
        text.push('\n');
        text.push_str(&members(status, look));
    }
    text.push('\n');
    text.push_str(&advice(cluster, status, &verdict, look));
    text
}

/// One row a cluster, worst first.
pub(super) fn overview(clusters: &[EtcdCluster], with_namespace: bool, look: &Look) -> String {
    let mut judged: Vec<(Verdict, &EtcdCluster)> =
        clusters.iter().map(|cluster| (judge(cluster), cluster)).collect();
    judged.sort_by_key(|(verdict, cluster)| (verdict.state, cluster.namespace(), cluster.name_any()));
    let mut titles = vec!["NAMESPACE", "NAME", "STATE", "MEMBERS", "LEADER", "VERSION", "DB", "AGE", "WHAT"];
    if !with_namespace {
        titles.remove(0);
    }
    let mut rows: Vec<Vec<Cell>> = vec![headings(&titles, look)];
    for (verdict, cluster) in judged {
        let mut row = overview_row(cluster, &verdict, look);
        if with_namespace {
            row.insert(0, (cluster.namespace().unwrap_or_default(), Ink::Plain));
        }
        rows.push(row);
    }
    table(&rows, look)
}

/// One line that says what a change came to; without a time, so that equal ones can be recognised.
pub(super) fn line(cluster: &EtcdCluster) -> String {
    let verdict = judge(cluster);
    let mut text = format!(
        "{}/{} {} - {}",
        cluster.namespace().unwrap_or_default(),
        cluster.name_any(),
        verdict.state.word(),
        verdict.phrase
    );
    if let Some(worst) = cluster.status.as_ref().and_then(|status| abnormal(status).into_iter().next()) {
        text.push_str(&format!(". {}", sentence(worst)));
    }
    text
}

fn ink(state: State) -> Ink {
    match state {
        State::Stalled | State::Unavailable => Ink::Bad,
        State::Deleting | State::Starting | State::Pending | State::Degraded | State::Paused => Ink::Warning,
        State::Healthy => Ink::Good,
    }
}

fn headings(titles: &[&str], look: &Look) -> Vec<Cell> {
    let ink = if look.color { Ink::Faint } else { Ink::Plain };
    titles.iter().map(|title| ((*title).to_owned(), ink)).collect()
}

fn labelled(label: &str, line: &str) -> String {
    format!("{label:LABEL$}{line}\n")
}

fn version(cluster: &EtcdCluster) -> String {
    let resolved = cluster.status.as_ref().and_then(|status| status.version.as_ref());
    resolved.map_or_else(|| cluster.spec.version.clone(), |version| version.resolved.clone())
}

fn age(cluster: &EtcdCluster, look: &Look) -> Option<String> {
    cluster.metadata.creation_timestamp.as_ref().map(|created| look.since(created.0))
}

fn header(cluster: &EtcdCluster, verdict: &Verdict, look: &Look) -> String {
    let name = look.paint(&cluster.name_any(), Ink::Heading);
    let mut parts = vec![format!("{name} ({})", cluster.namespace().unwrap_or_default()), version(cluster)];
    if let Some(id) = cluster.status.as_ref().and_then(|status| status.cluster_id.as_ref()) {
        parts.push(format!("cluster {id}"));
    }
    parts.extend(age(cluster, look));
    let state = format!("{} {}", look.symbol("●", "*"), verdict.state.word());
    parts.push(format!("{} - {}", look.paint(&state, ink(verdict.state)), verdict.phrase));
    parts.join("  ")
}

fn quorum(status: &EtcdClusterStatus, look: &Look) -> Option<String> {
    let voters = Voters::of(status)?;
    let boxes: Vec<String> = status.members.iter().map(|member| member_box(member, look)).collect();
    let can_lose = match voters.tolerance() {
        Some(count) => format!("can lose {count}"),
        None => format!("{} short", voters.quorum() - voters.healthy),
    };
    let learners = match status.members.iter().filter(|member| member.role == LEARNER).count() {
        0 => String::new(),
        1 => ", 1 learner".to_owned(),
        count => format!(", {count} learners"),
    };
    let Voters { total, healthy } = voters;
    let boxes = boxes.join(" ");
    Some(format!(
        "{boxes}  {healthy}/{total} voters healthy, quorum {}, {can_lose}{learners}",
        voters.quorum()
    ))
}

fn member_box(member: &MemberStatus, look: &Look) -> String {
    let healthy = member.health == HEALTHY;
    let ink = if is_on_its_way(member) { Ink::Warning } else { Ink::Bad };
    match (member.role == LEARNER, healthy) {
        (true, _) => look.paint(look.symbol("◇", "+"), Ink::Warning),
        (false, true) => look.paint(look.symbol("■", "#"), Ink::Good),
        (false, false) => look.paint(look.symbol("□", "."), ink),
    }
}

fn leader(status: &EtcdClusterStatus) -> Option<String> {
    let EtcdClusterStatus { leader, raft_term, revision, .. } = status;
    let mut parts = Vec::new();
    match (leader, raft_term) {
        (Some(leader), Some(term)) => parts.push(format!("{leader} (term {term})")),
        (Some(leader), None) => parts.push(leader.clone()),
        (None, Some(term)) => parts.push(format!("none (term {term})")),
        (None, None) => {}
    }
    if let Some(revision) = revision {
        parts.push(format!("Revision {}", grouped(*revision)));
    }
    (!parts.is_empty()).then(|| parts.join("      "))
}

fn db(status: &EtcdClusterStatus, look: &Look) -> Option<String> {
    let text = status.db.as_ref()?;
    let Some((used, quota, percent)) = text.split_once('/').and_then(|(used, quota)| {
        let (used_bytes, quota_bytes) = (bytes(used)?, bytes(quota).filter(|quota| *quota > 0.0)?);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a float to int cast saturates"
        )]
        let percent = (used_bytes * 100.0 / quota_bytes).round() as u64;
        Some((used, quota, percent))
    }) else {
        return Some(harmless(text));
    };
    let ink = match percent {
        0..80 => Ink::Good,
        80..95 => Ink::Warning,
        95.. => Ink::Bad,
    };
    Some(format!("{}  {used} of {quota} quota ({percent} %)", look.bar(percent, ink)))
}

fn alarms(status: &EtcdClusterStatus, look: &Look) -> Option<String> {
    let text = harmless(&status.alarms.join(", "));
    (!text.is_empty()).then(|| look.paint(&text, Ink::Bad))
}

fn spec(cluster: &EtcdCluster, status: &EtcdClusterStatus) -> Option<String> {
    let observed = status.observed_generation.filter(|generation| *generation >= 0)?;
    let mut parts = Vec::new();
    let newest = cluster.metadata.generation.unwrap_or(observed);
    match find(status, condition::UP_TO_DATE) {
        _ if observed < newest => parts.push("changed, not seen by the operator yet".to_owned()),
        Some(condition) if condition.status == "True" => parts.push("up to date".to_owned()),
        Some(condition) => parts.push(format!("not everywhere yet ({})", harmless(&condition.reason))),
        None => {}
    }
    match find(status, condition::CERTIFICATES_VALID) {
        Some(condition) if condition.status == "True" => parts.push("Certificates ok".to_owned()),
        Some(condition) => parts.push(format!("Certificates: {}", harmless(&condition.reason))),
        None => {}
    }
    (!parts.is_empty()).then(|| parts.join("      "))
}

fn members(status: &EtcdClusterStatus, look: &Look) -> String {
    let mut rows = vec![headings(&["MEMBER", "ROLE", "HEALTH", "NODE", "VERSION", "DB"], look)];
    let told = status.members.iter().any(|member| member.message.is_some());
    for member in &status.members {
        let mut row = member_row(member);
        if told {
            row.push((member.message.as_deref().map(harmless).unwrap_or_default(), Ink::Plain));
        }
        rows.push(row);
    }
    table(&rows, look)
}

fn member_row(member: &MemberStatus) -> Vec<Cell> {
    let or_dash = |text: Option<&str>| match text.map(harmless).filter(|text| !text.is_empty()) {
        Some(text) => (text, Ink::Plain),
        None => ("-".to_owned(), Ink::Faint),
    };
    let health = match member.health.as_str() {
        HEALTHY => ("ok".to_owned(), Ink::Good),
        "" => ("-".to_owned(), Ink::Faint),
        reason => (harmless(reason), if is_on_its_way(member) { Ink::Warning } else { Ink::Bad }),
    };
    let db = member.db_size.and_then(|bytes| u64::try_from(bytes).ok()).map(format_bytes);
    vec![
        (member.name.clone(), Ink::Plain),
        or_dash(Some(member.role.as_str()).filter(|role| *role != "unknown")),
        health,
        or_dash(member.node.as_deref()),
        or_dash(member.version.as_deref()),
        or_dash(db.as_deref()),
    ]
}

/// Not healthy yet, which is no fault.
fn is_on_its_way(member: &MemberStatus) -> bool {
    let starting =
        [Reason::Bootstrapping, Reason::Recovering].iter().any(|reason| reason.to_string() == member.health);
    starting || member.role == LEARNER
}

/// Conditions that say something is wrong or under way, worst first.
fn abnormal(status: &EtcdClusterStatus) -> Vec<&Condition> {
    /// Types by weight, with the status that is the normal one.
    const WEIGHT: [(&str, &str); 9] = [
        (condition::STALLED, "False"),
        (condition::READY, "True"),
        (condition::ALL_MEMBERS_HEALTHY, "True"),
        (condition::QUORUM_SAFE, "True"),
        (condition::CERTIFICATES_VALID, "True"),
        (condition::FOREIGN_VOLUMES, "False"),
        (condition::UP_TO_DATE, "True"),
        (condition::PAUSED, "False"),
        (condition::RECONCILING, "False"),
    ];
    let single = Voters::of(status).is_some_and(|voters| voters.total == 1);
    let known = WEIGHT
        .iter()
        .filter_map(|(type_, normal)| find(status, type_).filter(|condition| condition.status != *normal));
    // A newer operator may state more; its own "False" is the only thing we can understand as a complaint.
    let unknown = status.conditions.iter().filter(|condition| {
        condition.status == "False" && WEIGHT.iter().all(|(type_, _)| *type_ != condition.type_)
    });
    let mut found: Vec<&Condition> = Vec::new();
    for condition in known.chain(unknown) {
        let by_choice = single && condition.type_ == condition::QUORUM_SAFE;
        // Several conditions often tell the same story: once is enough.
        let told = found.iter().any(|earlier| {
            earlier.message == condition.message
                || (earlier.reason == condition.reason && condition.message.is_empty())
        });
        if !by_choice && !told {
            found.push(condition);
        }
    }
    found
}

fn sentence(condition: &Condition) -> String {
    let message = harmless(&condition.message);
    let stop = if message.is_empty() || message.ends_with(['.', '!', '?']) { "" } else { "." };
    match message.as_str() {
        "" => format!("{}: {} is {}.", harmless(&condition.reason), condition.type_, condition.status),
        message => format!("{}: {message}{stop}", harmless(&condition.reason)),
    }
}

/// What else is abnormal, and what to do about the worst of it.
fn advice(cluster: &EtcdCluster, status: &EtcdClusterStatus, verdict: &Verdict, look: &Look) -> String {
    let found = abnormal(status);
    let Some((worst, others)) = found.split_first() else {
        return labelled("What now", &look.wrap(nothing_wrong(cluster, verdict), LABEL));
    };
    let mut text = String::new();
    for (place, condition) in others.iter().enumerate() {
        let label = if place == 0 { "Also" } else { "" };
        let told = format!("{} ({})", sentence(condition), look.since(condition.last_transition_time.0));
        text.push_str(&labelled(label, &look.wrap(&told, LABEL)));
    }
    let told = format!("{} ({})", sentence(worst), look.since(worst.last_transition_time.0));
    text.push_str(&labelled("What now", &look.wrap(&told, LABEL)));
    let more = format!("More: kubectl quorate explain {}", harmless(&worst.reason));
    text.push_str(&labelled("", &look.paint(&more, Ink::Faint)));
    text
}

fn nothing_wrong(cluster: &EtcdCluster, verdict: &Verdict) -> &'static str {
    match verdict.state {
        State::Pending if cluster.status.as_ref().is_none_or(|status| status.conditions.is_empty()) => {
            "Wait a few seconds. If it stays like this, the operator is not running: \
             kubectl get deployments -A -l app.kubernetes.io/name=quorate"
        }
        State::Deleting => "Nothing: it is being deleted.",
        State::Degraded => {
            "Nothing yet: the operator has not said what it will do. Look again in a few seconds."
        }
        State::Stalled | State::Unavailable | State::Starting | State::Pending => {
            "Look again in a few seconds."
        }
        State::Healthy | State::Paused => "Nothing to do.",
    }
}

fn overview_row(cluster: &EtcdCluster, verdict: &Verdict, look: &Look) -> Vec<Cell> {
    let status = cluster.status.as_ref();
    let or_dash = |text: Option<String>| match text {
        Some(text) => (harmless(&text), Ink::Plain),
        None => ("-".to_owned(), Ink::Faint),
    };
    vec![
        (cluster.name_any(), Ink::Plain),
        (verdict.state.word().to_owned(), ink(verdict.state)),
        or_dash(status.and_then(|status| status.ready.clone())),
        or_dash(status.and_then(|status| status.leader.clone())),
        (version(cluster), Ink::Plain),
        or_dash(status.and_then(|status| status.db.clone())),
        or_dash(age(cluster, look)),
        (verdict.phrase.clone(), Ink::Plain),
    ]
}

#[cfg(test)]
mod tests;
