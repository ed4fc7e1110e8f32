//! What an agent answers at `/status`, as JSON.
//!
//! Separate because it is the other half of the seam: the operator, `--once` and a person with `curl` read it. Fields
//! that an agent does not know yet are absent, and whoever reads an unknown field leaves it alone, so that operator
//! and agent may be of different releases.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How a mirror is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// That of the file which the agent runs by.
    #[serde(default)]
    pub fingerprint: String,
    /// What it does.
    #[serde(default)]
    pub phase: AgentPhase,
    /// Why it cannot go on, while it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// Name of the site that etcd's own records call active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// It rises with every switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<u64>,
    /// What is known of both sides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<SiteSeen>,
    /// Revision of the source that the target holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_revision: Option<i64>,
    /// Newest revision of the source that was read with quorum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_revision: Option<i64>,
    /// Revisions by which the target is behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_revisions: Option<i64>,
    /// Age of the newest state of the source that the target is known to hold, in seconds: it grows during an outage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_seconds: Option<f64>,
    /// Part of the source's history that is still there between the checkpoint and the next compaction: 1 is all of
    /// it, 0 means that a resync is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history_margin: Option<f64>,
    /// Whether the target was ever equal to the source.
    #[serde(default)]
    pub initial_sync_done: bool,
    /// The scan that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scan: Option<Scan>,
    /// Mirrored keys, as of the last scan or comparison.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<u64>,
    /// Since the agent was started.
    #[serde(default)]
    pub counters: Counters,
    /// The last scan that wrote differences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_resync: Option<Resync>,
    /// What waits for a person's approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<WaitingPlan>,
    /// The last comparison of both sides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
    /// When the agent was started: of what was done before it knows nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// The switch of sites that is under way, or the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<Switch>,
}

impl AgentStatus {
    /// The term, if etcd's records name this site as the active one and it is copied from.
    pub fn agreed_term(&self, wished: &str) -> Option<u64> {
        self.term.filter(|_| self.phase.copies() && self.active.as_deref() == Some(wished))
    }
}

/// What an agent does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentPhase {
    /// It has not read its records in etcd yet.
    #[default]
    Starting,
    /// The first copy.
    InitialSync,
    /// It follows the source.
    Streaming,
    /// It scans both sides and writes the differences.
    Resyncing,
    /// It was told to write nothing.
    Paused,
    /// Sites are being switched.
    Switching,
    /// It cannot go on; the problem says why.
    Stopped,
}

impl AgentPhase {
    /// Whether changes of the source reach the target.
    pub fn copies(self) -> bool {
        match self {
            Self::InitialSync | Self::Streaming | Self::Resyncing => true,
            Self::Starting | Self::Paused | Self::Switching | Self::Stopped => false,
        }
    }
}

/// Why it cannot go on, or, while its phase is one that copies, what else waits for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The stable word.
    pub reason: ProblemReason,
    /// What was seen, and what a person can do. Numbers that move by themselves are no part of it.
    pub message: String,
}

/// One word for each thing that can keep a mirror from going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProblemReason {
    /// Both sides are the same cluster.
    SameCluster,
    /// Mappings overlap.
    MappingInvalid,
    /// An ignore pattern is no regular expression, or too large.
    PatternInvalid,
    /// `active` names no site.
    UnknownSite,
    /// No endpoint of the source answers with quorum.
    SourceUnreachable,
    /// No endpoint of the target answers with quorum.
    TargetUnreachable,
    /// A certificate is not accepted, by us or by them.
    CertificateRefused,
    /// etcd does not accept user and password.
    CredentialsRefused,
    /// The user's roles do not allow what is needed.
    PermissionDenied,
    /// Keys of the target differ, or only the target has them, at a first sync.
    TargetDiffers,
    /// The source has no key where the target has many.
    SourceEmpty,
    /// The source is another cluster than before.
    SourceChanged,
    /// The source is older than it was.
    SourceRewound,
    /// Another mirror writes part of the same range.
    ClaimOverlaps,
    /// Mirrors copy in a circle.
    MirrorLoop,
    /// etcd's own records name another active site, and nobody asked for a switch.
    ActiveMismatch,
    /// The target does not take a value of this size.
    ValueTooLarge,
    /// The target's database is full.
    TargetNoSpace,
    /// The target takes too few operations in a transaction.
    TooFewOperations,
    /// More leases than one mirror keeps alive.
    TooManyLeases,
    /// The checkpoint cannot be read, or was edited.
    CheckpointDamaged,
    /// A resync would delete more than it may unasked.
    PruneRefused,
    /// A switch was asked for, and nothing says how writers are stopped.
    FenceMissing,
    /// Writers cannot be stopped as asked.
    FenceRefused,
    /// The sites cannot be switched now.
    SwitchRefused,
    /// A site was made active, and the one that was does not follow it yet.
    SwitchUnfinished,
    /// Writers of the active site are still kept out.
    WritersKeptOut,
    /// A site is back after the other one was promoted without it.
    SiteReturned,
    /// Another agent has taken over.
    AnotherAgent,
    /// Somebody else writes to the mirrored range of the target.
    ForeignWrites,
}

impl ProblemReason {
    /// Every one, for whoever must know them all.
    pub const ALL: &[Self] = &[
        Self::SameCluster,
        Self::MappingInvalid,
        Self::PatternInvalid,
        Self::UnknownSite,
        Self::SourceUnreachable,
        Self::TargetUnreachable,
        Self::CertificateRefused,
        Self::CredentialsRefused,
        Self::PermissionDenied,
        Self::TargetDiffers,
        Self::SourceEmpty,
        Self::SourceChanged,
        Self::SourceRewound,
        Self::ClaimOverlaps,
        Self::MirrorLoop,
        Self::ActiveMismatch,
        Self::ValueTooLarge,
        Self::TargetNoSpace,
        Self::TooFewOperations,
        Self::TooManyLeases,
        Self::CheckpointDamaged,
        Self::PruneRefused,
        Self::FenceMissing,
        Self::FenceRefused,
        Self::SwitchRefused,
        Self::SwitchUnfinished,
        Self::WritersKeptOut,
        Self::SiteReturned,
        Self::AnotherAgent,
        Self::ForeignWrites,
    ];

    /// Whether it ends by itself when the network or the other side is well again.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::SourceUnreachable | Self::TargetUnreachable | Self::AnotherAgent)
    }
}

impl std::fmt::Display for ProblemReason {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The variant's name is the word: the same in conditions, metrics and the manual.
        write!(formatter, "{self:?}")
    }
}

/// One side, as last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteSeen {
    /// Its name.
    pub name: String,
    /// etcd's cluster ID in hexadecimal digits.
    #[serde(default, rename = "clusterID", skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Whether it answers with quorum.
    #[serde(default)]
    pub reachable: bool,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A scan that is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scan {
    /// Keys that are done.
    pub done: u64,
    /// Keys in all, as far as is known.
    pub total: u64,
}

/// Counts since the agent was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Counters {
    /// Keys put.
    pub puts: u64,
    /// Keys deleted.
    pub deletes: u64,
    /// Events of keys that are left alone.
    pub ignored: u64,
    /// Bytes of keys and values written.
    pub bytes: u64,
    /// Resyncs begun.
    pub resyncs: u64,
    /// Writes of others in the mirrored range of the target.
    pub foreign_writes: u64,
}

/// A scan that wrote differences.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resync {
    /// Why, in a sentence.
    pub reason: String,
    /// Keys put.
    pub puts: u64,
    /// Keys deleted.
    pub deletes: u64,
    /// When it ended.
    pub time: Timestamp,
}

/// What would be written, and waits for approval.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingPlan {
    /// Whoever gives it back approves this plan and no other.
    pub hash: String,
    /// Keys that the target lacks.
    pub adds: u64,
    /// Keys that differ.
    pub overwrites: u64,
    /// Keys that only the target has.
    pub deletes: u64,
}

/// A comparison of both sides at one revision of each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// When it ended.
    pub time: Timestamp,
    /// Of the source.
    pub revision: i64,
    /// Keys compared.
    pub keys: u64,
    /// Keys that the target lacks.
    pub missing: u64,
    /// Keys that only the target has.
    pub extra: u64,
    /// Keys that differ.
    pub different: u64,
}

impl Verification {
    /// Keys that are not as they should be.
    pub fn mismatched(&self) -> u64 {
        self.missing.saturating_add(self.extra).saturating_add(self.different)
    }
}

/// A switch of sites.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Switch {
    /// The site that was active.
    pub from: String,
    /// The site that becomes active.
    pub to: String,
    /// Steps so far; the last one is under way unless the switch has ended.
    #[serde(default)]
    pub steps: Vec<SwitchStep>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<SwitchResult>,
    /// Writes of the old side that the new one may lack, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
}

impl Switch {
    /// Whether all that is left is to let the old side follow the new one, which is active.
    pub fn is_promoted(&self) -> bool {
        self.result.is_none() && self.steps.last().is_some_and(|step| step.name == "Reverse")
    }

    /// Ends the step that is under way.
    pub fn end_step(&mut self, now: Timestamp) {
        if let Some(last) = self.steps.last_mut() {
            last.finished_at.get_or_insert(now);
        }
    }

    /// It is over.
    pub fn end(&mut self, now: Timestamp, result: SwitchResult) {
        self.end_step(now);
        (self.finished_at, self.result) = (Some(now), Some(result));
    }
}

/// One step of a switch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SwitchStep {
    /// Verify, Fence, Drain, Compare, Promote, Reverse, or Abort; List where a site is back.
    pub name: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When the next one began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

/// How a switch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SwitchResult {
    /// The new side is active.
    Done,
    /// It was taken back before the promotion.
    Aborted,
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn an_agent_that_knows_nothing_yet_says_little() {
        let text = serde_json::to_string(&AgentStatus::default()).unwrap();
        expect![[r#"{"fingerprint":"","phase":"Starting","initialSyncDone":false,"counters":{"puts":0,"deletes":0,"ignored":0,"bytes":0,"resyncs":0,"foreignWrites":0}}"#]].assert_eq(&text);
        assert_eq!(serde_json::from_str::<AgentStatus>("{}").unwrap(), AgentStatus::default());
    }

    #[test]
    fn what_a_newer_agent_says_besides_is_left_alone() {
        let status: AgentStatus =
            serde_json::from_str(r#"{"phase": "Streaming", "lagSeconds": 0.5, "news": [1]}"#).unwrap();
        assert_eq!((status.phase, status.lag_seconds), (AgentPhase::Streaming, Some(0.5)));
    }

    #[test]
    fn every_reason_is_listed_under_its_own_name() {
        for reason in ProblemReason::ALL {
            let json = serde_json::to_string(reason).unwrap();
            assert_eq!(json, format!("\"{reason}\""));
        }
    }
}
