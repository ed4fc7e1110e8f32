//! Condition types and the one pure way to set them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::reason::Reason;

/// A cluster serves with quorum, a leader is known, writes are accepted; a mirror's target follows its source.
pub const READY: &str = "Ready";
/// Every wanted voter is healthy.
pub const ALL_MEMBERS_HEALTHY: &str = "AllMembersHealthy";
/// All members run the observed spec.
pub const UP_TO_DATE: &str = "UpToDate";
/// Losing one more member keeps quorum.
pub const QUORUM_SAFE: &str = "QuorumSafe";
/// All certificates are valid for longer than their renewal time.
pub const CERTIFICATES_VALID: &str = "CertificatesValid";
/// The target of a mirror was equal to its source at least once.
pub const INITIAL_SYNC_COMPLETE: &str = "InitialSyncComplete";
/// A mirror's lag is within its objective.
pub const IN_SYNC: &str = "InSync";
/// The source of a mirror answers with quorum.
pub const SOURCE_REACHABLE: &str = "SourceReachable";
/// The target of a mirror answers with quorum.
pub const TARGET_REACHABLE: &str = "TargetReachable";
/// Both sides of a mirror were compared and are equal.
pub const VERIFIED: &str = "Verified";
/// The source may compact what a mirror still needs (present only while true).
pub const HISTORY_RISK: &str = "HistoryRisk";
/// Work is in progress (present only while true).
pub const RECONCILING: &str = "Reconciling";
/// No progress without a person (present only while true).
pub const STALLED: &str = "Stalled";
/// `spec.paused` of a cluster, `spec.state` of a mirror (present only while true).
pub const PAUSED: &str = "Paused";
/// Volumes of another EtcdCluster of this name exist (present only while true).
pub const FOREIGN_VOLUMES: &str = "ForeignVolumes";

/// What a condition should say; the time of its last change is worked out by [`set`].
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// One of the types above.
    pub type_: &'static str,
    /// True or False.
    pub status: bool,
    /// The stable word.
    pub reason: Reason,
    /// What was seen, what the operator does next, what a person can do.
    pub message: String,
}

/// The conditions that `statements` make of `before`: a type that is not stated is absent, and a time changes
/// only with its status.
pub fn set(
    before: &[Condition],
    statements: &[Statement],
    generation: i64,
    now: jiff::Timestamp,
) -> Vec<Condition> {
    statements
        .iter()
        .map(|statement| {
            let status = if statement.status { "True" } else { "False" };
            let since = before
                .iter()
                .find(|condition| condition.type_ == statement.type_ && condition.status == status)
                .map_or(Time(now), |condition| condition.last_transition_time.clone());
            Condition {
                type_: statement.type_.to_owned(),
                status: status.to_owned(),
                reason: statement.reason.to_string(),
                message: statement.message.clone(),
                observed_generation: Some(generation),
                last_transition_time: since,
            }
        })
        .collect()
}
