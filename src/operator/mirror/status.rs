//! Desired + Observed + Plan → status. Pure: the time is an argument.

use jiff::{SignedDuration, Timestamp};

use super::desired::Desired;
use super::observed::Observed;
use super::plan::{Finding, Plan, active};
use crate::api::condition::{
    self, HISTORY_RISK, IN_SYNC, INITIAL_SYNC_COMPLETE, PAUSED, READY, RECONCILING, SOURCE_REACHABLE,
    STALLED, Statement, TARGET_REACHABLE, VERIFIED,
};
use crate::api::mirror::{
    EtcdMirror, EtcdMirrorStatus, LagStatus, MirrorState, PlanStatus, ResyncStatus, SiteStatus, SwitchStatus,
    SwitchStepStatus, VerificationStatus,
};
use crate::api::reason::Reason;
use crate::mirror::agent::status::{
    AgentPhase, AgentStatus, ProblemReason, Switch, SwitchResult, Verification,
};

/// Numbers that move by themselves are written at most so often.
const NUMBERS_PAUSE: SignedDuration = SignedDuration::from_secs(10);
/// Below it a lag is none: the source is looked at once a second.
const NO_LAG_SECONDS: f64 = 2.0;
/// Steps of agents that died in the middle of a switch: so many are kept.
const EARLIER_STEPS: usize = 20;
/// With less of the source's history left than this, a compaction may come too early.
pub const SAFE_HISTORY: f64 = 0.5;

/// The whole status after a look and a plan.
pub fn status(
    before: &EtcdMirrorStatus,
    desired: &Desired,
    observed: &Observed,
    plan: &Plan,
    now: Timestamp,
) -> EtcdMirrorStatus {
    let picture = Picture { desired, observed, plan, agent: answer(observed, plan) };
    let mut status = before.clone();
    status.observed_generation = Some(desired.generation);
    let source = active(desired, observed, before);
    status.target = Some(desired.other(&source).name.clone());
    status.source = Some(source);
    status.agent = observed.pods.iter().find(|(_, pod)| pod.running).map(|(name, _)| name.clone());
    status.phase = Some(picture.phase().to_owned());
    if let Some(agent) = answered(observed) {
        numbers(&mut status, agent, now);
    }
    let agreed = picture.agent.and_then(|agent| agent.agreed_term(&desired.spec.active));
    status.agreed_term = agreed.and_then(|term| i64::try_from(term).ok()).or(status.agreed_term);
    let statements = statements(before, &picture);
    status.conditions = condition::set(&before.conditions, &statements, desired.generation, now);
    status.summary = Some(summary(&statements));
    status
}

/// The status of an EtcdMirror whose spec cannot be used: what runs goes on by the spec before.
pub fn invalid(
    before: &EtcdMirrorStatus,
    object: &EtcdMirror,
    error: &dyn std::fmt::Display,
    now: Timestamp,
) -> EtcdMirrorStatus {
    let generation = object.metadata.generation.unwrap_or_default();
    let message = format!("{error} An agent that runs goes on by the spec before.");
    let statements = [
        say(STALLED, true, Reason::InvalidSpec, message.clone()),
        say(READY, false, Reason::InvalidSpec, message),
    ];
    let mut status = before.clone();
    status.observed_generation = Some(generation);
    status.phase = Some("Stalled".to_owned());
    status.summary = Some(summary(&statements));
    status.conditions = condition::set(&before.conditions, &statements, generation, now);
    status
}

/// Whether `after` is worth a write: at once if it says something new, and every ten seconds if only numbers moved.
pub fn differs(before: &EtcdMirrorStatus, after: &EtcdMirrorStatus, now: Timestamp) -> bool {
    let still = |status: &EtcdMirrorStatus| {
        let mut status = status.clone();
        (status.checkpoint, status.lag, status.measured_at) = (None, None, None);
        // How much of a scan is done moves by itself; that it is done shows in the conditions.
        status.synced = None;
        status
    };
    if still(before) != still(after) {
        return true;
    }
    let moved =
        (&before.checkpoint, &before.lag, &before.synced) != (&after.checkpoint, &after.lag, &after.synced);
    let last = before.measured_at.as_ref().and_then(|time| time.parse::<Timestamp>().ok());
    moved && last.is_none_or(|last| now.duration_since(last) >= NUMBERS_PAUSE)
}

/// What an agent answered, whichever file it runs by.
fn answered(observed: &Observed) -> Option<&AgentStatus> {
    observed.answer.as_ref()?.as_ref().ok()
}

/// What the agent of today's file answered.
fn answer<'a>(observed: &'a Observed, plan: &Plan) -> Option<&'a AgentStatus> {
    answered(observed).filter(|agent| plan.fingerprint.as_ref() == Some(&agent.fingerprint))
}

fn numbers(status: &mut EtcdMirrorStatus, agent: &AgentStatus, now: Timestamp) {
    status.term = agent.term.and_then(|term| i64::try_from(term).ok()).or(status.term);
    status.checkpoint = agent.checkpoint_revision.or(status.checkpoint);
    status.lag = Some(LagStatus { revisions: agent.lag_revisions, time: agent.lag_seconds.map(age) });
    status.synced = synced(agent).or_else(|| status.synced.take());
    if let Some(resync) = &agent.last_resync {
        status.last_resync = Some(ResyncStatus {
            reason: resync.reason.clone(),
            puts: count(resync.puts),
            deletes: count(resync.deletes),
            time: resync.time.to_string(),
        });
    }
    status.plan = agent.plan.as_ref().map(|plan| PlanStatus {
        hash: plan.hash.clone(),
        adds: count(plan.adds),
        overwrites: count(plan.overwrites),
        deletes: count(plan.deletes),
    });
    if let Some(verification) = &agent.verification {
        status.verification = Some(verified(verification));
    }
    if let Some(switch) = &agent.switch {
        status.switch = Some(switched(status.switch.take(), switch, agent.started_at));
    }
    if !agent.sites.is_empty() {
        let site = |seen: &crate::mirror::agent::status::SiteSeen| SiteStatus {
            name: seen.name.clone(),
            cluster_id: seen.cluster_id.clone(),
            reachable: seen.reachable,
            message: seen.message.clone(),
        };
        status.sites = agent.sites.iter().map(site).collect();
    }
    status.measured_at = Some(now.to_string());
}

fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Seconds as Go writes durations; what is no lag is `0s`, so that a quiet mirror costs no writes.
fn age(seconds: f64) -> String {
    if seconds < NO_LAG_SECONDS {
        return "0s".to_owned();
    }
    let whole = SignedDuration::try_from_secs_f64(seconds).unwrap_or(SignedDuration::MAX).as_secs();
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        (_, _) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

fn synced(agent: &AgentStatus) -> Option<String> {
    if let Some(scan) = agent.scan {
        let done = scan.done.min(scan.total).saturating_mul(100).checked_div(scan.total).unwrap_or(0);
        return Some(format!("{done} %"));
    }
    agent.keys.map(|keys| format!("{} keys", thousands(keys)))
}

/// 1204331 → 1,204,331.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let comma = |index: usize| index > 0 && (digits.len() - index).is_multiple_of(3);
    digits.char_indices().fold(String::new(), |text, (index, digit)| {
        if comma(index) { format!("{text},{digit}") } else { format!("{text}{digit}") }
    })
}

fn verified(verification: &Verification) -> VerificationStatus {
    VerificationStatus {
        time: verification.time.to_string(),
        revision: verification.revision,
        keys: count(verification.keys),
        missing: count(verification.missing),
        extra: count(verification.extra),
        different: count(verification.different),
    }
}

/// Behind the steps of an agent that died in the middle of the same switch come those of the one that ends it, which was
/// started later.
fn switched(before: Option<SwitchStatus>, switch: &Switch, started: Option<Timestamp>) -> SwitchStatus {
    let same = |before: &SwitchStatus| {
        before.finished_at.is_none() && before.from == switch.from && before.to == switch.to
    };
    let is_earlier = |step: &SwitchStepStatus| {
        let time = step.started_at.parse::<Timestamp>();
        time.is_ok_and(|time| started.is_some_and(|started| time < started))
    };
    let earlier: Vec<_> =
        before.filter(same).into_iter().flat_map(|before| before.steps).filter(is_earlier).collect();
    let earlier = earlier.iter().skip(earlier.len().saturating_sub(EARLIER_STEPS)).cloned();
    let now = switch.steps.iter().map(|step| SwitchStepStatus {
        name: step.name.clone(),
        started_at: step.started_at.to_string(),
        finished_at: step.finished_at.map(|time| time.to_string()),
    });
    let steps = earlier.chain(now);
    let step = match switch.result {
        Some(SwitchResult::Done) => "Done".to_owned(),
        Some(SwitchResult::Aborted) => "Aborted".to_owned(),
        None => switch.steps.last().map(|step| step.name.clone()).unwrap_or_default(),
    };
    SwitchStatus {
        from: switch.from.clone(),
        to: switch.to.clone(),
        step,
        steps: steps.collect(),
        finished_at: switch.finished_at.map(|time| time.to_string()),
        lost: switch.lost.clone(),
    }
}

/// What the statements are made of.
struct Picture<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    plan: &'a Plan,
    /// What the agent of today's file says.
    agent: Option<&'a AgentStatus>,
}

impl Picture<'_> {
    /// What keeps it from going on until a person does something.
    fn stalled(&self) -> Option<(Reason, String)> {
        let finding = self.plan.findings.iter().find(|finding| finding.stalled);
        finding
            .map(told)
            .or_else(|| self.problem().filter(|(may_pass, ..)| !may_pass).map(|(_, word, text)| (word, text)))
    }

    /// What the agent says stands in the way.
    fn problem(&self) -> Option<(bool, Reason, String)> {
        let problem = self.agent?.problem.as_ref()?;
        Some((problem.reason.may_pass(), word(problem.reason), problem.message.clone()))
    }

    /// What keeps it from copying.
    fn standing(&self) -> Option<(Reason, String)> {
        let finding = self.plan.findings.first().map(told);
        let problem = || self.problem().filter(|_| !self.copies()).map(|(_, word, text)| (word, text));
        finding.or_else(problem).or_else(|| self.silent())
    }

    /// Whether the agent copies: it may while a person is needed for something else, such as a switch of sites.
    fn copies(&self) -> bool {
        self.agent.is_some_and(|agent| agent.phase.copies())
    }

    /// Why nobody answers for today's file.
    fn silent(&self) -> Option<(Reason, String)> {
        if self.agent.is_some() {
            return None;
        }
        let runs = self.observed.pods.values().any(|pod| pod.running);
        Some(match &self.observed.answer {
            Some(Err(why)) if runs => (
                Reason::AgentDown,
                format!(
                    "The agent does not answer the operator: {why}. It may copy all the same; it is asked again every \
                     few seconds. Look at its log, and at NetworkPolicies between the operator and its port 8080."
                ),
            ),
            Some(Ok(_)) => (Reason::AgentStarting, "The agent is told of the changed spec.".to_owned()),
            Some(Err(_)) | None => (Reason::AgentStarting, "The agent is being started.".to_owned()),
        })
    }

    fn phase(&self) -> &'static str {
        match self.desired.spec.state {
            MirrorState::Stopped => return "Stopped",
            MirrorState::Paused if self.stalled().is_none() => return "Paused",
            MirrorState::Running | MirrorState::Paused => {}
        }
        if self.stalled().is_some() && !self.copies() {
            return "Stalled";
        }
        match self.agent.map_or(AgentPhase::Starting, |agent| agent.phase) {
            AgentPhase::Starting => "Starting",
            AgentPhase::InitialSync => "InitialSync",
            AgentPhase::Streaming => "Streaming",
            AgentPhase::Resyncing => "Resyncing",
            AgentPhase::Paused => "Paused",
            AgentPhase::Switching => "Switching",
            // What stopped it may pass, or it would be Stalled above.
            AgentPhase::Stopped => "Waiting",
        }
    }

    /// Whether the lag is within its objective; `None`: there is nothing to judge.
    fn in_time(&self) -> Option<bool> {
        let agent = self.agent?;
        let objective = &self.desired.spec.lag_objective;
        let in_time = agent.lag_seconds? <= self.desired.lag_objective.as_secs_f64();
        let in_revisions =
            objective.revisions.is_none_or(|most| agent.lag_revisions.is_none_or(|lag| lag <= most));
        Some(in_time && in_revisions)
    }

    fn objective(&self) -> String {
        let objective = &self.desired.spec.lag_objective;
        match objective.revisions {
            Some(revisions) => format!("{} or {revisions} revisions", objective.time),
            None => objective.time.clone(),
        }
    }
}

fn told(finding: &Finding) -> (Reason, String) {
    (finding.reason, finding.message.clone())
}

/// The same word in the API.
fn word(reason: ProblemReason) -> Reason {
    // A test holds every word of the agent against the API's.
    Reason::parse(&reason.to_string()).unwrap_or(Reason::InvariantViolated)
}

fn say(type_: &'static str, status: bool, reason: Reason, message: String) -> Statement {
    Statement { type_, status, reason, message }
}

fn statements(before: &EtcdMirrorStatus, picture: &Picture) -> Vec<Statement> {
    let mut statements = Vec::new();
    match picture.desired.spec.state {
        // Told to do nothing it is neither ready nor not: a tool that waits for Ready must not wait for ever.
        MirrorState::Paused | MirrorState::Stopped => {}
        MirrorState::Running => statements.push(ready(picture)),
    }
    statements.extend(initial_sync(before, picture));
    statements.extend(in_sync(picture));
    statements.extend(reachable(before, picture));
    statements.extend(comparison(before, picture));
    statements.extend(history(picture));
    statements.extend(progress(picture, &statements));
    statements
}

fn ready(picture: &Picture) -> Statement {
    if let Some((reason, message)) = picture.standing() {
        return say(READY, false, reason, message);
    }
    let Some(agent) = picture.agent else {
        return say(READY, false, Reason::AgentStarting, "The agent is being started.".to_owned());
    };
    let (reason, message) = match agent.phase {
        AgentPhase::Starting | AgentPhase::Stopped => {
            (Reason::AgentStarting, "The agent reads its records in etcd.")
        }
        AgentPhase::InitialSync => (Reason::InitialSync, "The target is being filled for the first time."),
        AgentPhase::Resyncing => (Reason::Resyncing, "Both sides are scanned, and differences are written."),
        AgentPhase::Switching => {
            (Reason::Switching, "The sites are being switched; status.switch has the steps.")
        }
        AgentPhase::Paused => (Reason::AgentStarting, "The agent goes on after a pause."),
        AgentPhase::Streaming => return streaming(picture),
    };
    say(READY, false, reason, message.to_owned())
}

/// No number that moves by itself is in it: the message would be written again and again.
fn streaming(picture: &Picture) -> Statement {
    let objective = picture.objective();
    if picture.in_time() == Some(false) {
        let message = format!(
            "The target follows, further behind than spec.lagObjective ({objective}). The agent goes on. See status.lag, \
             and how busy both sides and the network between them are."
        );
        return say(READY, false, Reason::LagHigh, message);
    }
    say(READY, true, Reason::Healthy, format!("The target follows within spec.lagObjective ({objective})."))
}

fn initial_sync(before: &EtcdMirrorStatus, picture: &Picture) -> Option<Statement> {
    match picture.agent {
        Some(agent) if agent.initial_sync_done => {
            let message = "The target was equal to the source once; what is copied since are changes.";
            Some(say(INITIAL_SYNC_COMPLETE, true, Reason::InitialSyncDone, message.to_owned()))
        }
        Some(agent) => {
            let message = "The target has not been equal to the source yet.";
            // Before an agent has read its records, what was said before holds.
            let reads = matches!(
                agent.phase,
                AgentPhase::InitialSync | AgentPhase::Streaming | AgentPhase::Resyncing
            );
            kept(before, INITIAL_SYNC_COMPLETE)
                .filter(|_| !reads)
                .or_else(|| Some(say(INITIAL_SYNC_COMPLETE, false, Reason::InitialSync, message.to_owned())))
        }
        None => kept(before, INITIAL_SYNC_COMPLETE),
    }
}

fn in_sync(picture: &Picture) -> Option<Statement> {
    let objective = picture.objective();
    Some(if picture.in_time()? {
        say(IN_SYNC, true, Reason::Healthy, format!("The lag is within {objective}."))
    } else {
        say(IN_SYNC, false, Reason::LagHigh, format!("The lag is above {objective}."))
    })
}

fn reachable(before: &EtcdMirrorStatus, picture: &Picture) -> Vec<Statement> {
    let Some(agent) = picture.agent.filter(|agent| !agent.sites.is_empty()) else {
        return [SOURCE_REACHABLE, TARGET_REACHABLE]
            .into_iter()
            .filter_map(|type_| kept(before, type_))
            .collect();
    };
    let source = agent.active.as_ref().unwrap_or(&picture.desired.spec.active);
    let side = |seen: &crate::mirror::agent::status::SiteSeen| {
        let (type_, bad) = if seen.name == *source {
            (SOURCE_REACHABLE, Reason::SourceUnreachable)
        } else {
            (TARGET_REACHABLE, Reason::TargetUnreachable)
        };
        if seen.reachable {
            return say(type_, true, Reason::Healthy, format!("{} answers with quorum.", seen.name));
        }
        let why = seen.message.clone().unwrap_or_else(|| "it does not answer".to_owned());
        say(type_, false, bad, format!("{} does not answer with quorum: {why}.", seen.name))
    };
    let mut sides: Vec<Statement> = agent.sites.iter().map(side).collect();
    sides.sort_by_key(|side| side.type_);
    sides.dedup_by_key(|side| side.type_);
    sides
}

fn comparison(before: &EtcdMirrorStatus, picture: &Picture) -> Option<Statement> {
    let Some(agent) = picture.agent else { return kept(before, VERIFIED) };
    let Some(last) = &agent.verification else {
        return kept(before, VERIFIED).or_else(|| {
            let message = "Both sides were not compared yet. Ask with: kubectl quorate mirror verify.";
            Some(say(VERIFIED, false, Reason::NeverVerified, message.to_owned()))
        });
    };
    Some(if last.mismatched() == 0 {
        say(VERIFIED, true, Reason::Healthy, "Both sides were equal when they were last compared.".to_owned())
    } else {
        let message = format!(
            "When both sides were last compared the target lacked {} keys, had {} of its own, and {} differed. Nothing \
             is repaired by itself. Find out who writes to the target; then: kubectl quorate mirror resync.",
            last.missing, last.extra, last.different
        );
        say(VERIFIED, false, Reason::MismatchFound, message)
    })
}

fn history(picture: &Picture) -> Option<Statement> {
    let margin = picture.agent?.history_margin?;
    (margin < SAFE_HISTORY).then(|| {
        let message = "More than half of the source's history behind the checkpoint is gone: after the next compactions \
                       a scan of both sides will be needed. Let the source keep more (spec.compaction of an \
                       EtcdCluster), or cure the lag.";
        say(HISTORY_RISK, true, Reason::HistoryAtRisk, message.to_owned())
    })
}

/// At most one of Paused, Stalled and Reconciling, and only while it is true (kstatus).
fn progress(picture: &Picture, statements: &[Statement]) -> Option<Statement> {
    if let Some((reason, message)) = picture.stalled() {
        return Some(say(STALLED, true, reason, message));
    }
    match picture.desired.spec.state {
        MirrorState::Paused => {
            let message = "spec.state is Paused: nothing is copied. Set it to Running to go on where it was.";
            return Some(say(PAUSED, true, Reason::PausedByUser, message.to_owned()));
        }
        MirrorState::Stopped => {
            let message =
                "spec.state is Stopped: there is no agent. Set it to Running to go on where it was.";
            return Some(say(PAUSED, true, Reason::StoppedByUser, message.to_owned()));
        }
        MirrorState::Running => {}
    }
    let ready = statements.iter().find(|statement| statement.type_ == READY).filter(|ready| !ready.status)?;
    Some(say(RECONCILING, true, ready.reason, ready.message.clone()))
}

/// What was said before, while nobody knows better.
fn kept(before: &EtcdMirrorStatus, type_: &'static str) -> Option<Statement> {
    let condition = before.conditions.iter().find(|condition| condition.type_ == type_)?;
    Some(say(type_, condition.status == "True", Reason::parse(&condition.reason)?, condition.message.clone()))
}

/// One sentence for the STATUS column: the worst that there is to say.
fn summary(statements: &[Statement]) -> String {
    let of = |type_: &str| statements.iter().find(|statement| statement.type_ == type_);
    let worst = of(STALLED)
        .or_else(|| of(PAUSED))
        .or_else(|| of(READY).filter(|ready| !ready.status))
        .or_else(|| of(VERIFIED).filter(|verified| verified.reason == Reason::MismatchFound))
        .or_else(|| of(HISTORY_RISK));
    match worst {
        None => "Healthy".to_owned(),
        Some(statement) => {
            let sentence = statement.message.split_inclusive(". ").next().unwrap_or_default().trim_end();
            format!("{}: {sentence}", statement.reason)
        }
    }
}
