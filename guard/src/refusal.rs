//! Why etcd is not started.

use std::fmt;

use serde::Serialize;

/// `EX_CONFIG` of sysexits: the guard refused. etcd itself ends with 0, 1, 2 or a signal.
pub const REFUSED: u8 = 78;

/// The closed list of causes that the guard itself gives; the operator matches on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Cause {
    /// Another process holds the volume.
    VolumeInUse,
    /// The volume, or the data on it, belongs to somebody else.
    ForeignVolume,
    /// Data that must be there is not.
    DataLost,
    /// The data is older than what this member is known to have had.
    RolledBack,
    /// The log is damaged elsewhere than at its torn end.
    WalDamaged,
    /// The member's own name does not resolve to its Pod's address.
    NameUnresolved,
    /// The volume cannot be read or written.
    VolumeUnwritable,
    /// The Pod's environment or command makes no sense.
    BadConfiguration,
}

/// A cause, and a sentence for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What the operator matches on.
    pub cause: Cause,
    /// What was seen.
    pub sentence: String,
}

impl Refusal {
    /// A refusal with a sentence.
    pub fn new(cause: Cause, sentence: impl Into<String>) -> Self {
        Self { cause, sentence: sentence.into() }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}
