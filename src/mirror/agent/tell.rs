//! What an agent says of itself: the engine's report in the words of [`AgentStatus`]. Pure: the time is an argument.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::config::{AgentConfig, ForeignWrites, RunState};
use super::order::sites;
use super::status::{
    AgentPhase, AgentStatus, Counters, Problem, ProblemReason, Resync, Scan, SiteSeen, Switch, Verification,
    WaitingPlan,
};
use crate::mirror::checkpoint::SiteRole;
use crate::mirror::machine::{Resynced, View};
use crate::mirror::resync::Counts;
use crate::mirror::run::{Report, Trouble};
use crate::mirror::stop::Stop;
use crate::mirror::text::shown;

/// So long a side may be silent before it is a problem: a leader is elected, a member is restarted.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known beside the engine's report.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// When the agent was started.
    pub started_at: Option<Timestamp>,
    /// Why the file cannot be carried out.
    pub problem: Option<Problem>,
    /// What of the file is not carried out, while the rest is.
    pub notice: Option<Problem>,
    /// The site that is copied from, where etcd's records name another one than the file.
    pub recorded: Option<String>,
    /// The last comparison of both sides.
    pub verification: Option<Verification>,
    /// The last resync, as the engine told it and as it is told.
    pub resync: Option<(Resynced, Resync)>,
    /// The target was equal to the source once.
    pub synced: bool,
    /// The sites are being switched.
    pub switching: bool,
    /// The switch that is under way, or the last one.
    pub switch: Option<Switch>,
    /// What would be written to a site that is back.
    pub plan: Option<WaitingPlan>,
}

impl Known {
    /// Takes what the engine says of its last resync, which it tells again and again.
    pub fn resynced(&mut self, resynced: Option<Resynced>, now: Timestamp) {
        let Some(resynced) = resynced else { return };
        if self.resync.as_ref().is_none_or(|(known, _)| *known != resynced) {
            let Resynced { why, operations, deletes, .. } = resynced;
            let puts = operations.saturating_sub(deletes);
            self.resync = Some((resynced, Resync { reason: why.to_owned(), puts, deletes, time: now }));
        }
    }

    /// The file as it is carried out: from the site that etcd's records call active.
    pub fn carried_out(&self, config: &AgentConfig) -> AgentConfig {
        let active = self.recorded.clone().unwrap_or_else(|| config.active.clone());
        AgentConfig { active, ..config.clone() }
    }
}

/// The whole status.
pub fn status(config: &AgentConfig, report: &Report, known: &Known, now: Instant) -> AgentStatus {
    let config = &known.carried_out(config);
    let problem = known.problem.clone().or_else(|| standing(config, report, now));
    let mut status = AgentStatus {
        fingerprint: config.fingerprint.clone(),
        started_at: known.started_at,
        // One that does not come to its end is no switch for which alerts have to be silent.
        phase: phase(config, report, known.switching && known.problem.is_none(), problem.is_some()),
        problem: problem.or_else(|| known.notice.clone()).or_else(|| foreign(config, report)),
        active: known.recorded.clone(),
        switch: known.switch.clone(),
        initial_sync_done: known.synced,
        verification: known.verification.clone(),
        last_resync: known.resync.as_ref().map(|(_, resync)| resync.clone()),
        plan: known.plan.clone().or_else(|| report.stopped.as_ref().and_then(plan)),
        // While a site waits for a person nobody asks them again and again.
        sites: if known.plan.is_some() { Vec::new() } else { seen(config, report) },
        keys: known.verification.as_ref().map(|verification| verification.keys).or(report.source_keys),
        ..AgentStatus::default()
    };
    if let Some(view) = &report.view {
        numbers(&mut status, config, report, view);
    }
    status
}

fn phase(config: &AgentConfig, report: &Report, switching: bool, problem: bool) -> AgentPhase {
    if config.state == RunState::Paused {
        return AgentPhase::Paused;
    }
    if switching {
        return AgentPhase::Switching;
    }
    if problem {
        return AgentPhase::Stopped;
    }
    match report.view.as_ref().map_or("", |view| view.phase) {
        "first" => AgentPhase::InitialSync,
        "resync" => AgentPhase::Resyncing,
        "stream" => AgentPhase::Streaming,
        _ => AgentPhase::Starting,
    }
}

fn numbers(status: &mut AgentStatus, config: &AgentConfig, report: &Report, view: &View) {
    let some = |revision: i64| (revision > 0).then_some(revision);
    status.checkpoint_revision = some(view.revision);
    status.source_revision = some(view.head);
    status.lag_revisions = some(view.revision).map(|revision| (view.head - revision).max(0));
    status.lag_seconds = Some(report.lag_seconds);
    status.history_margin = report.history_margin();
    let Counts { equal, missing, differing, .. } = view.counts;
    let done = equal + missing + differing;
    if matches!(view.phase, "first" | "resync") {
        status.scan = report.source_keys.map(|total| Scan { done, total: total.max(done) });
    }
    status.counters = Counters {
        puts: view.stats.operations.saturating_sub(view.stats.deletes),
        deletes: view.stats.deletes,
        ignored: view.stats.ignored,
        bytes: view.stats.bytes,
        resyncs: view.stats.scans,
        foreign_writes: view.stats.foreign,
    };
    if let (Some(site), Ok((source, target))) = (&view.site, sites(config)) {
        status.term = Some(site.term);
        let active = if site.role == SiteRole::Active { target } else { source };
        status.active.get_or_insert_with(|| active.name.clone());
    }
}

/// Both sides, in the order of the file; while it is paused it asks neither of them.
fn seen(config: &AgentConfig, report: &Report) -> Vec<SiteSeen> {
    if config.state == RunState::Paused {
        return Vec::new();
    }
    let (here, there) = report.view.as_ref().map_or((None, None), |view| view.clusters);
    let site = |name: &String| {
        let is_source = *name == config.active;
        let (cluster, trouble) =
            if is_source { (here, &report.source_problem) } else { (there, &report.target_problem) };
        SiteSeen {
            name: name.clone(),
            cluster_id: cluster.map(|id| id.to_string()),
            reachable: cluster.is_some() && trouble.is_none(),
            message: trouble.as_ref().map(|trouble| trouble.text.clone()),
        }
    };
    config.sites.iter().map(|each| site(&each.name)).collect()
}

/// Why it cannot go on.
fn standing(config: &AgentConfig, report: &Report, now: Instant) -> Option<Problem> {
    if config.state == RunState::Paused {
        return None;
    }
    if let Some(stop) = &report.stopped {
        return Some(Problem { reason: reason(stop), message: sentence(config, stop) });
    }
    let lasting = |trouble: &Option<Trouble>, unreachable| {
        let trouble = trouble.as_ref().filter(|trouble| now.duration_since(trouble.since) >= PATIENCE)?;
        Some(Problem { reason: refused(&trouble.text).unwrap_or(unreachable), message: trouble.text.clone() })
    };
    lasting(&report.source_problem, ProblemReason::SourceUnreachable)
        .or_else(|| lasting(&report.target_problem, ProblemReason::TargetUnreachable))
}

/// Somebody else writes where only the mirror may. It copies on.
fn foreign(config: &AgentConfig, report: &Report) -> Option<Problem> {
    let standing = &report.view.as_ref()?.foreign;
    if standing.writes == 0 {
        return None;
    }
    let (_, target) = sites(config).ok()?;
    let keys: Vec<String> = standing.keys.iter().map(|key| shown(key)).collect();
    let next = match config.foreign_writes {
        ForeignWrites::Report => {
            "They stay until the source changes the same keys. Find the writer, then let it be made as the source is, by a resync, or set foreignWrites: Repair"
        }
        ForeignWrites::Repair => {
            "A scan makes them as the source has them, at most one a minute. Find the writer"
        }
    };
    Some(Problem {
        reason: ProblemReason::ForeignWrites,
        message: format!(
            "Somebody else has written to mirrored keys of {}, which only this mirror may write, among them {}. {next}.",
            target.name,
            keys.join(", ")
        ),
    })
}

/// What etcd, or TLS, says when it is there and does not want us.
fn refused(text: &str) -> Option<ProblemReason> {
    const TABLE: [(&str, ProblemReason); 6] = [
        ("database space exceeded", ProblemReason::TargetNoSpace),
        ("permission denied", ProblemReason::PermissionDenied),
        ("authentication failed", ProblemReason::CredentialsRefused),
        ("user name is empty", ProblemReason::CredentialsRefused),
        ("invalid auth token", ProblemReason::CredentialsRefused),
        ("certificate", ProblemReason::CertificateRefused),
    ];
    TABLE.iter().find(|(words, _)| text.contains(words)).map(|(_, reason)| *reason)
}

/// The engine's word in the API's.
pub fn reason(stop: &Stop) -> ProblemReason {
    match stop {
        Stop::Fenced | Stop::Done | Stop::Counted { .. } => ProblemReason::AnotherAgent,
        Stop::Promoted | Stop::Site(_) => ProblemReason::ActiveMismatch,
        Stop::SameCluster(_) => ProblemReason::SameCluster,
        Stop::Claimed { .. } => ProblemReason::ClaimOverlaps,
        Stop::Circle(_) => ProblemReason::MirrorLoop,
        Stop::Unreadable { .. } | Stop::CheckpointLost | Stop::CheckpointChanged => {
            ProblemReason::CheckpointDamaged
        }
        Stop::TargetDiffers(_) => ProblemReason::TargetDiffers,
        Stop::SourceChanged { .. } => ProblemReason::SourceChanged,
        Stop::SourceRewound { .. } => ProblemReason::SourceRewound,
        Stop::PruneGuard { .. } => ProblemReason::PruneRefused,
        Stop::ValueTooLarge { .. } => ProblemReason::ValueTooLarge,
        Stop::Nameless(_) => ProblemReason::MappingInvalid,
        Stop::TooFewOperations => ProblemReason::TooFewOperations,
        Stop::TooManyLeases(_) => ProblemReason::TooManyLeases,
    }
}

/// What was seen and what to do, in the words of a file: the engine's own sentences speak of flags.
fn sentence(config: &AgentConfig, stop: &Stop) -> String {
    let follows = config.sites.iter().find(|site| site.name != config.active);
    let follows = follows.map_or("", |site| site.name.as_str());
    match stop {
        Stop::TargetDiffers(Counts { missing, differing, extra, .. }) => format!(
            "{follows} has keys of its own: {differing} differ from {}, {extra} are not there ({missing} are missing). \
             Nothing of them was changed. Look whether active names the right site; then permit it with initialSync: \
             Overwrite (for those that differ) and prune: true (for those that {} lacks).",
            config.active, config.active
        ),
        Stop::Site(why) => format!(
            "{why}. The file says that {} is active; what etcd's own records say counts. Nothing is copied.",
            config.active
        ),
        Stop::Promoted => format!(
            "{follows} was promoted: it is written to directly, and nothing is copied into it. The file says that {} is \
             active.",
            config.active
        ),
        Stop::SourceChanged { .. } | Stop::SourceRewound { .. } | Stop::PruneGuard { .. } => {
            let text = stop.to_string();
            let text =
                text.split("; if that is meant").next().and_then(|text| text.split("; then permit").next());
            format!(
                "{}. If that is meant: kubectl quorate mirror resync --approve with the hash of status.plan.",
                text.unwrap_or_default()
            )
        }
        Stop::Done
        | Stop::Counted { .. }
        | Stop::Fenced
        | Stop::SameCluster(_)
        | Stop::Claimed { .. }
        | Stop::Circle(_)
        | Stop::Unreadable { .. }
        | Stop::CheckpointLost
        | Stop::CheckpointChanged
        | Stop::ValueTooLarge { .. }
        | Stop::Nameless(_)
        | Stop::TooFewOperations
        | Stop::TooManyLeases(_) => stop.to_string(),
    }
}

fn plan(stop: &Stop) -> Option<WaitingPlan> {
    match stop {
        Stop::SourceChanged { counts, plan, .. }
        | Stop::SourceRewound { counts, plan, .. }
        | Stop::PruneGuard { counts, plan, .. } => Some(WaitingPlan {
            hash: plan.clone(),
            adds: counts.missing,
            overwrites: counts.differing,
            deletes: counts.extra,
        }),
        Stop::Done
        | Stop::Counted { .. }
        | Stop::Fenced
        | Stop::Promoted
        | Stop::Site(_)
        | Stop::SameCluster(_)
        | Stop::Claimed { .. }
        | Stop::Circle(_)
        | Stop::Unreadable { .. }
        | Stop::CheckpointLost
        | Stop::CheckpointChanged
        | Stop::TargetDiffers(_)
        | Stop::ValueTooLarge { .. }
        | Stop::Nameless(_)
        | Stop::TooFewOperations
        | Stop::TooManyLeases(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::ClusterId;

    fn config() -> AgentConfig {
        let text = r#"{"fingerprint": "f", "id": "default", "active": "a", "sites": [
            {"name": "a", "endpoints": ["http://a:1"]}, {"name": "b", "endpoints": ["http://b:1"]}]}"#;
        serde_json::from_str(text).unwrap()
    }

    fn said(report: &Report, now: Instant) -> (AgentPhase, Option<ProblemReason>) {
        let status = status(&config(), report, &Known::default(), now);
        (status.phase, status.problem.map(|problem| problem.reason))
    }

    #[test]
    fn a_side_that_is_silent_for_a_moment_is_no_problem() {
        let since = Instant::now();
        let silent = |text: &str| Some(Trouble { text: text.to_owned(), since });
        let report = Report { source_problem: silent("a:1: connection refused"), ..Report::default() };
        assert_eq!(said(&report, since), (AgentPhase::Starting, None));
        let later = since + PATIENCE;
        assert_eq!(said(&report, later), (AgentPhase::Stopped, Some(ProblemReason::SourceUnreachable)));
        for (text, reason) in [
            ("b:1: etcdserver: permission denied", ProblemReason::PermissionDenied),
            ("b:1: etcdserver: mvcc: database space exceeded", ProblemReason::TargetNoSpace),
            ("b:1: invalid peer certificate: UnknownIssuer", ProblemReason::CertificateRefused),
            ("b:1: no answer within 5s", ProblemReason::TargetUnreachable),
        ] {
            let report = Report { target_problem: silent(text), ..Report::default() };
            assert_eq!(said(&report, later), (AgentPhase::Stopped, Some(reason)), "{text}");
        }
    }

    #[test]
    fn what_waits_for_a_person_has_its_plan_and_no_flags() {
        let counts = Counts { equal: 1, missing: 2, differing: 3, extra: 4 };
        let stop = Stop::SourceChanged {
            stored: ClusterId(1),
            seen: ClusterId(2),
            counts,
            plan: "0123456789ab".to_owned(),
        };
        let report = Report { stopped: Some(stop), ..Report::default() };
        let status = status(&config(), &report, &Known::default(), Instant::now());
        let plan = WaitingPlan { hash: "0123456789ab".to_owned(), adds: 2, overwrites: 3, deletes: 4 };
        assert_eq!(status.plan, Some(plan));
        let problem = status.problem.unwrap();
        assert_eq!(problem.reason, ProblemReason::SourceChanged);
        assert!(
            !problem.message.contains("--resync") && problem.message.contains("--approve"),
            "{}",
            problem.message
        );
    }

    #[test]
    fn a_switch_in_which_something_is_in_the_way_is_told_as_stopped() {
        let switching = Known { switching: true, ..Known::default() };
        let problem =
            Problem { reason: ProblemReason::SwitchUnfinished, message: "a does not answer".to_owned() };
        let waits = Known { problem: Some(problem), ..switching.clone() };
        let phase = |known: &Known| status(&config(), &Report::default(), known, Instant::now()).phase;
        assert_eq!((phase(&switching), phase(&waits)), (AgentPhase::Switching, AgentPhase::Stopped));
    }

    #[test]
    fn a_paused_agent_is_no_problem() {
        let paused = AgentConfig { state: RunState::Paused, ..config() };
        let status = status(&paused, &Report::default(), &Known::default(), Instant::now());
        assert_eq!((status.phase, status.problem), (AgentPhase::Paused, None));
        assert!(status.sites.is_empty(), "nobody was asked");
    }
}
