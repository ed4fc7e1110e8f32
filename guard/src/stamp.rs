//! The stamp `quorate.json` on the volume: whose it is, and how far its first boot came.

use serde::{Deserialize, Serialize};

use crate::identity::HexId;

/// The stamp's name in the volume's root.
pub const STAMP: &str = "quorate.json";

/// How far the member's first boot came; see the crate's page for what each allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Claimed; etcd was never started here at this incarnation.
    Fresh,
    /// etcd was started or is about to be; no log was seen.
    Starting,
    /// A log was seen: the member may have voted.
    Started,
}

/// What the volume says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// UID of the EtcdCluster.
    #[serde(rename = "clusterUID")]
    pub cluster_uid: String,
    /// The member's name.
    pub member: String,
    /// Rises when the member is wiped in place, or a bootstrap starts over.
    pub incarnation: u32,
    /// How far the first boot came.
    pub phase: Phase,
    /// From the log, once there is one.
    #[serde(rename = "clusterID")]
    pub cluster_id: Option<HexId>,
    /// From the log, once there is one.
    #[serde(rename = "memberID")]
    pub member_id: Option<HexId>,
}
