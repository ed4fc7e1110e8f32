//! Changes of the member list, and what etcd says to them.
//!
//! **Rule** (etcd, server/etcdserver/server.go; tried on 3.5.35, 3.6.16, 3.7.3): add, remove and promote are refused
//! while too few voters are started or connected for five seconds. That is "wait", not an error. A call without an
//! answer may have been done: only the member list tells.

use std::collections::BTreeMap;
use std::pin::Pin;

use super::connect::{Address, ClientIdentity};
use super::hash::KeyHash;
use super::survey::{Alarm, ListedMember, Silence, Survey};
use super::{ClusterId, MemberId};

/// One change, as etcd's API has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Adds a member that does not vote; it becomes one with that peer URL.
    AddLearner(String),
    /// Makes a learner a voter.
    Promote(MemberId),
    /// Takes a member out of the list, for ever: its ID never comes back.
    Remove(MemberId),
    /// Hands leadership to a voter. Only the leader can be asked.
    MoveLeader(MemberId),
    /// Disarms an alarm of a member.
    Disarm(MemberId, Alarm),
    /// Commits an entry that changes nothing. A learner whose data came as a snapshot counts as far behind until it
    /// applies one more entry, and then only publishes itself and serves: where nobody writes, never
    /// (`processInternalRaftRequestOnce` in server/etcdserver/v3_server.go; seen on 3.6.16).
    Nudge,
}

/// The member list after a linearizable read, and whom the member that was asked follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Roll {
    /// The cluster that answered.
    pub cluster_id: ClusterId,
    /// Its leader.
    pub leader: Option<MemberId>,
    /// Its members.
    pub members: Vec<ListedMember>,
}

/// A change was not made, or nobody knows whether it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// etcd refuses for now: it is asked again later.
    #[error("etcd refuses for now: {0}")]
    Wait(String),
    /// etcd refuses.
    #[error("etcd refuses: {0}")]
    Refused(String),
    /// No answer: it may have been done.
    #[error("no answer: {0}")]
    Unknown(String),
}

/// A future that can be a value of a trait.
pub type Asked<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The way to the members: gRPC in the operator, a model in its tests.
pub trait Members: Send + Sync {
    /// Asks all of them what they are and what they see.
    fn survey(
        &self,
        members: BTreeMap<String, Address>,
        identity: Option<ClientIdentity>,
    ) -> Asked<'_, Survey>;
    /// Asks one of them, with a linearizable read, who is a member now.
    fn roll(&self, member: Address, identity: Option<ClientIdentity>)
    -> Asked<'_, Result<Roll, ChangeError>>;
    /// Asks all of them for the hash of what they hold at a revision.
    fn hashes(
        &self,
        members: BTreeMap<String, Address>,
        identity: Option<ClientIdentity>,
        revision: i64,
    ) -> Asked<'_, BTreeMap<String, Result<KeyHash, Silence>>>;
    /// Asks one of them for a change.
    fn change(
        &self,
        member: Address,
        identity: Option<ClientIdentity>,
        call: Call,
    ) -> Asked<'_, Result<(), ChangeError>>;
}

/// Words of etcd's refusals that pass by themselves (api/v3rpc/rpctypes/error.go).
const PASSING: [&str; 7] = [
    "unhealthy cluster",
    "not enough started members",
    "in sync with leader",
    "too many learner members",
    "no leader",
    "leader changed",
    "not leader",
];

impl ChangeError {
    /// Sorts what was said. Only what begins like a word of etcd's and is no passed deadline is a "no".
    pub fn of(words: String) -> Self {
        let answered = words.starts_with("etcdserver: ") && !words.contains("timed out");
        if PASSING.iter().any(|passing| words.contains(passing)) {
            Self::Wait(words)
        } else if answered {
            Self::Refused(words)
        } else {
            Self::Unknown(words)
        }
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AddLearner(url) => write!(formatter, "add the learner {url}"),
            Self::Promote(id) => write!(formatter, "promote {id}"),
            Self::Remove(id) => write!(formatter, "remove {id}"),
            Self::MoveLeader(id) => write!(formatter, "move leadership to {id}"),
            Self::Disarm(id, _) => write!(formatter, "disarm the alarm of {id}"),
            Self::Nudge => formatter.write_str("commit an entry that changes nothing"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ChangeError;

    /// As etcd 3.5.35, 3.6.16 and 3.7.3 put it.
    #[test]
    fn refusals_that_pass_are_told_from_those_that_do_not() {
        let of = |words: &str| ChangeError::of(words.to_owned());
        let wait = "etcdserver: can only promote a learner member which is in sync with leader";
        assert_eq!(of(wait), ChangeError::Wait(wait.to_owned()));
        let refused = "etcdserver: member not found";
        assert_eq!(of(refused), ChangeError::Refused(refused.to_owned()));
        let unknown = "etcdserver: request timed out";
        assert_eq!(of(unknown), ChangeError::Unknown(unknown.to_owned()));
    }
}
