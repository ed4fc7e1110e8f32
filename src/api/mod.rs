//! The custom resources: what a person writes and what the operator answers.
//!
//! Separate because it is the users' contract: any tool may import it.
//! **Invariant:** no client, no clock, no etcd in this room.

pub mod cluster;
pub mod condition;
pub mod duration;
pub mod mirror;
mod mirror_rules;
pub mod quantity;
pub mod reason;
pub mod replacement;
mod rules;
pub mod schema;

pub use cluster::{EtcdCluster, EtcdClusterSpec, EtcdClusterStatus};
pub use mirror::EtcdMirror;
pub use replacement::EtcdMemberReplacement;

/// The API group of every kind.
pub const GROUP: &str = "quorate.dev";
