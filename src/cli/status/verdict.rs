//! How a cluster is, in one word and a short phrase, read from its conditions.
//!
//! Pure: an EtcdCluster in, a value out.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::api::{EtcdCluster, EtcdClusterStatus, condition, reason::Reason};
use crate::cli::Exit;

/// How a cluster is, worst first: the order of the overview.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// Not serving, and nothing will change until a person acts.
    Stalled,
    /// Not serving.
    Unavailable,
    /// On its way out.
    Deleting,
    /// Not serving yet.
    Starting,
    /// The operator has said nothing yet.
    Pending,
    /// Serving, with something wrong.
    Degraded,
    /// The operator keeps its hands off.
    Paused,
    /// As wanted.
    Healthy,
}

impl State {
    /// As it is printed.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Stalled => "STALLED",
            Self::Unavailable => "UNAVAILABLE",
            Self::Deleting => "DELETING",
            Self::Starting => "STARTING",
            Self::Pending => "PENDING",
            Self::Degraded => "DEGRADED",
            Self::Paused => "PAUSED",
            Self::Healthy => "HEALTHY",
        }
    }
}

/// The answer to "how is it?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// In one word.
    pub(super) state: State,
    /// Whether it serves reads and writes.
    pub(super) serving: bool,
    /// In a few words.
    pub(super) phrase: String,
}

impl Verdict {
    /// The exit code of a command that shows this cluster.
    pub(super) fn exit(&self) -> Exit {
        match (self.state, self.serving) {
            (State::Healthy | State::Paused, true) => Exit::Done,
            (_, true) => Exit::Degraded,
            (_, false) => Exit::Unavailable,
        }
    }
}

/// The arithmetic of quorum, over the members that the status names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Voters {
    pub(super) total: usize,
    pub(super) healthy: usize,
}

impl Voters {
    /// `None` while no member is known.
    pub(super) fn of(status: &EtcdClusterStatus) -> Option<Self> {
        let voters = status.members.iter().filter(|member| member.role != LEARNER);
        let healthy = voters.clone().filter(|member| member.health == HEALTHY).count();
        let total = voters.count();
        (total > 0).then_some(Self { total, healthy })
    }

    pub(super) fn quorum(self) -> usize {
        self.total / 2 + 1
    }

    /// How many more may fail; `None` when there is no quorum already.
    pub(super) fn tolerance(self) -> Option<usize> {
        self.healthy.checked_sub(self.quorum())
    }
}

/// `members[].health` of a member that is well.
pub(super) const HEALTHY: &str = "Healthy";
/// `members[].role` of a member without a vote.
pub(super) const LEARNER: &str = "learner";

/// Finds a condition.
pub(super) fn find<'a>(status: &'a EtcdClusterStatus, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == type_)
}

fn is(status: &EtcdClusterStatus, type_: &str, value: &str) -> bool {
    find(status, type_).is_some_and(|condition| condition.status == value)
}

/// Says how a cluster is.
pub(super) fn judge(cluster: &EtcdCluster) -> Verdict {
    let unknown = EtcdClusterStatus::default();
    let status = cluster.status.as_ref().unwrap_or(&unknown);
    let serving = is(status, condition::READY, "True");
    let verdict = |state, phrase: &str| Verdict { state, serving, phrase: phrase.to_owned() };

    if cluster.metadata.deletion_timestamp.is_some() {
        return verdict(State::Deleting, "being deleted");
    }
    if serving {
        return running(status);
    }
    if let Some(stalled) = find(status, condition::STALLED).filter(|condition| condition.status == "True") {
        return verdict(State::Stalled, &format!("{}; a person is needed", not_serving(&stalled.reason)));
    }
    match find(status, condition::READY) {
        None if is(status, condition::PAUSED, "True") => {
            verdict(State::Paused, "not started; the operator changes nothing")
        }
        None => verdict(State::Pending, "the operator has not looked at it yet"),
        Some(ready) if ready.reason == Reason::Bootstrapping.to_string() => {
            verdict(State::Starting, &format!("first start, {}", progress(cluster, status)))
        }
        Some(ready) if ready.reason == Reason::Recovering.to_string() => {
            verdict(State::Starting, &format!("starting again, {}", progress(cluster, status)))
        }
        Some(ready) => verdict(State::Unavailable, &not_serving(&ready.reason)),
    }
}

/// Of a cluster that serves.
fn running(status: &EtcdClusterStatus) -> Verdict {
    let voters = Voters::of(status);
    let single = voters.is_some_and(|voters| voters.total == 1);
    // A single member is one failure from outage by choice: that is no news.
    let unsafe_quorum = is(status, condition::QUORUM_SAFE, "False") && !single
        || voters.is_some_and(|voters| voters.total > 1 && voters.tolerance() == Some(0));
    let member_down = is(status, condition::ALL_MEMBERS_HEALTHY, "False")
        || voters.is_some_and(|voters| voters.healthy < voters.total);

    let (state, what) = if is(status, condition::STALLED, "True") {
        (State::Degraded, "a person is needed".to_owned())
    } else if let Some(alarm) = status.alarms.first() {
        (State::Degraded, format!("alarm {alarm}"))
    } else if unsafe_quorum {
        (State::Degraded, "one failure from outage".to_owned())
    } else if is(status, condition::CERTIFICATES_VALID, "False") {
        (State::Degraded, "certificates need renewal".to_owned())
    } else if member_down {
        (State::Degraded, capacity(voters))
    } else if is(status, condition::PAUSED, "True") {
        (State::Paused, "the operator changes nothing".to_owned())
    } else {
        (State::Healthy, capacity(voters))
    };
    let phrase = if what.is_empty() { "serving".to_owned() } else { format!("serving, {what}") };
    Verdict { state, serving: true, phrase }
}

fn capacity(voters: Option<Voters>) -> String {
    match voters {
        None => String::new(),
        Some(Voters { total: 1, .. }) => "a single member".to_owned(),
        Some(voters) => match voters.tolerance().unwrap_or(0) {
            1 => "can lose 1 member".to_owned(),
            count => format!("can lose {count} members"),
        },
    }
}

fn progress(cluster: &EtcdCluster, status: &EtcdClusterStatus) -> String {
    let total = Voters::of(status)
        .map_or_else(|| cluster.spec.replicas.to_string(), |voters| voters.total.to_string());
    format!("{} of {total} members healthy", status.ready_replicas)
}

/// Reasons of this version in words; one that a newer operator gives is shown as it is.
fn not_serving(reason: &str) -> String {
    const WORDS: [(Reason, &str); 9] = [
        (Reason::QuorumLost, "quorum lost"),
        (Reason::NoLeader, "no leader"),
        (Reason::Unreachable, "no member answers the operator"),
        (Reason::AllMembersLost, "all volumes are gone"),
        (Reason::DataLost, "a member's data is gone"),
        (Reason::NoSpaceAlarm, "database full, writes are refused"),
        (Reason::CorruptAlarm, "data differ between members"),
        (Reason::InvalidSpec, "the spec cannot be used"),
        (Reason::CertificateExpired, "certificates have ended"),
    ];
    match WORDS.iter().find(|(known, _)| known.to_string() == reason) {
        Some((_, words)) => (*words).to_owned(),
        None => format!("not serving ({reason})"),
    }
}
