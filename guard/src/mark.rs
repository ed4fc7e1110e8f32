//! The high-water mark in the Pod's emptyDir: the furthest position of the log known to be on disk.
//!
//! It is kept off the volume, since whatever takes the volume back in time would take a mark on it back as well.

use serde::{Deserialize, Serialize};

use crate::identity::{HexId, Identity};
use crate::wal::Summary;

/// The mark's name in the state directory.
pub const MARK: &str = "mark.json";

/// How far the log of one member has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The cluster's ID.
    #[serde(rename = "clusterID")]
    pub cluster_id: HexId,
    /// The member's ID.
    #[serde(rename = "memberID")]
    pub member_id: HexId,
    /// The term of the hard state: never falls.
    #[serde(rename = "hardTerm")]
    pub hard_term: u64,
    /// The term of the last entry.
    pub term: u64,
    /// The index of the last entry.
    pub index: u64,
}

impl Mark {
    /// The mark of a log.
    pub fn of(summary: &Summary) -> Self {
        Self {
            cluster_id: summary.identity.cluster,
            member_id: summary.identity.member,
            hard_term: summary.hard.term,
            term: summary.last.term,
            index: summary.last.index,
        }
    }

    /// The member that it is of.
    pub fn identity(&self) -> Identity {
        Identity { cluster: self.cluster_id, member: self.member_id }
    }

    /// Its place in time. The hard term comes first: a leader of a higher term may rightly cut a follower's
    /// unacknowledged end off, and a copy from before the mark never has a higher hard term than the mark.
    pub fn order(&self) -> (u64, u64, u64) {
        (self.hard_term, self.term, self.index)
    }
}
