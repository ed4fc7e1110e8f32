//! The mirror: one keyspace of an etcd kept exactly in another.
//!
//! Separate because it runs where there is no Kubernetes.
//! **Invariant:** neither kube nor k8s-openapi in this room.

pub mod agent_config;
pub mod agent_status;
