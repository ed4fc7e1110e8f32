//! Everything we know of etcd itself.
//!
//! Separate because mirrors and backups run where there is no Kubernetes.
//! **Invariant:** neither kube nor k8s-openapi in this room.

pub mod authorize;
pub mod change;
pub mod connect;
pub mod failure;
pub mod flags;
pub mod hash;
pub mod identity;
pub mod membership;
pub mod probe;
pub mod quorum;
pub mod survey;
pub mod version;

pub use identity::{ClusterId, MemberId};
