//! What clients and watchers of one cluster saw. Pure data: a history that is wrong is kept as a file.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A revision of etcd's store.
pub type Revision = i64;

/// One run of the load. Every instant is a time since its start, on one monotonic clock.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Every key of the load begins so, and nobody else's does: below it the store was empty at the start.
    pub prefix: String,
    /// The store's revision before the first operation.
    pub start: Revision,
    /// What clients asked. Values of writes are unique.
    pub operations: Vec<Operation>,
    /// What each member's watcher saw of all keys, by the member's name, in the order of arrival.
    pub watchers: BTreeMap<String, Vec<Watched>>,
    /// When the load was told to stop.
    pub ended: Duration,
    /// The longest time for which the recorder itself did not run: a gap of that length is its own fault.
    pub longest_stall: Duration,
    /// What each member held when all was calm.
    pub end: Option<End>,
}

/// One call of a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Who asked.
    pub client: String,
    /// Which member.
    pub member: String,
    /// When it was sent.
    pub invoked: Duration,
    /// When it was answered or given up.
    pub returned: Duration,
    /// What was asked, and what was answered.
    pub call: Call,
}

/// A request with its outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Call {
    /// Puts a value that nobody else puts.
    Put {
        /// Where.
        key: String,
        /// What.
        value: String,
        /// How it went.
        outcome: Outcome<()>,
    },
    /// Deletes one key.
    Delete {
        /// Which.
        key: String,
        /// Acknowledged: whether there was one.
        outcome: Outcome<bool>,
    },
    /// Where `key` holds `expected`, puts `value` at `key` and at `witness`, in one revision.
    Swap {
        /// The key that is compared.
        key: String,
        /// The other key that is put.
        witness: String,
        /// `None`: there must be no such key.
        expected: Option<String>,
        /// What is put.
        value: String,
        /// How it went.
        outcome: Outcome<Swapped>,
    },
    /// Reads all keys below the prefix.
    Read {
        /// Through the quorum; else what the member has.
        linearizable: bool,
        /// Acknowledged: what was there, by key.
        outcome: Outcome<BTreeMap<String, Stored>>,
    },
}

/// How a call went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome<A> {
    /// Answered.
    Acknowledged {
        /// Of the answer's header: the write's own, or the one that was read.
        revision: Revision,
        /// The rest of the answer.
        answer: A,
    },
    /// Refused, and certainly not done.
    Failed(String),
    /// No answer, or one that does not tell: done or not, now or later.
    Unknown(String),
}

/// What a compare-and-swap found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Swapped {
    /// What it expected.
    Done,
    /// Something else.
    Held(Option<String>),
}

/// A value with the revision that put it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The value.
    pub value: String,
    /// etcd's `mod_revision`.
    pub revision: Revision,
}

/// What a watcher saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Watched {
    /// It began, or began again after a break, at this revision.
    Resumed {
        /// When.
        at: Duration,
        /// The first revision that it asked for.
        from: Revision,
    },
    /// One response with events.
    Response {
        /// When it came.
        at: Duration,
        /// In their order.
        events: Vec<Event>,
    },
    /// What came before is gone: it goes on after this revision.
    Compacted {
        /// When it was told so.
        at: Duration,
        /// The compact revision.
        revision: Revision,
    },
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The revision that changed it.
    pub revision: Revision,
    /// The key.
    pub key: String,
    /// The new value; `None`: it was deleted.
    pub value: Option<String>,
}

/// The state after all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// The revision at which all members were compared.
    pub revision: Revision,
    /// By name: what the member has, or why it did not tell.
    pub members: BTreeMap<String, Result<MemberEnd, String>>,
}

/// What one member has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberEnd {
    /// The cluster that it is in.
    pub cluster_id: u64,
    /// HashKV at the end's revision.
    pub hash: u32,
    /// Hashes are comparable at one compact revision only.
    pub compact_revision: Revision,
    /// Its member list, by member ID.
    pub listed: BTreeMap<u64, Listed>,
}

/// A row of a member list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The member's name.
    pub name: String,
    /// Its peer URLs.
    pub peer_urls: Vec<String>,
    /// Its client URLs.
    pub client_urls: Vec<String>,
    /// Whether it is a learner.
    pub learner: bool,
}

impl History {
    /// The revision that a member's watcher must see next.
    pub fn next_revision(&self, member: &str) -> Revision {
        let seen = self.watchers.get(member).into_iter().flatten();
        let last = seen.filter_map(|watched| match watched {
            Watched::Resumed { .. } => None,
            Watched::Response { events, .. } => events.iter().map(|event| event.revision).max(),
            Watched::Compacted { revision, .. } => Some(*revision),
        });
        last.fold(self.start, Revision::max) + 1
    }

    /// The newest instant in it.
    pub fn latest(&self) -> Duration {
        let returned = self.operations.iter().map(|operation| operation.returned);
        let seen = self.watchers.values().flatten().map(Watched::at);
        returned.chain(seen).fold(self.ended, Duration::max)
    }
}

impl Watched {
    /// When it was seen.
    pub fn at(&self) -> Duration {
        match self {
            Self::Resumed { at, .. } | Self::Response { at, .. } | Self::Compacted { at, .. } => *at,
        }
    }
}

impl Call {
    /// The revision of the answer, if there is one.
    pub fn revision(&self) -> Option<Revision> {
        match self {
            Self::Put { outcome, .. } => outcome.revision(),
            Self::Delete { outcome, .. } => outcome.revision(),
            Self::Swap { outcome, .. } => outcome.revision(),
            Self::Read { outcome, .. } => outcome.revision(),
        }
    }

    /// What became of the write; a read changes nothing.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Put { outcome, .. } => outcome.effect(|()| true),
            Self::Delete { outcome, .. } => outcome.effect(|deleted| *deleted),
            Self::Swap { outcome, .. } => outcome.effect(|swapped| *swapped == Swapped::Done),
            Self::Read { .. } => Effect::None,
        }
    }
}

/// What a call did to the store, as far as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It made this revision.
    At(Revision),
    /// Nothing.
    None,
    /// Nobody told.
    Unknown,
}

impl<A> Outcome<A> {
    /// The revision of the answer, if there is one.
    pub fn revision(&self) -> Option<Revision> {
        match self {
            Self::Acknowledged { revision, .. } => Some(*revision),
            Self::Failed(_) | Self::Unknown(_) => None,
        }
    }

    fn effect(&self, changed: impl Fn(&A) -> bool) -> Effect {
        match self {
            Self::Acknowledged { revision, answer } if changed(answer) => Effect::At(*revision),
            Self::Acknowledged { .. } | Self::Failed(_) => Effect::None,
            Self::Unknown(_) => Effect::Unknown,
        }
    }
}
