//! Quorate: a Kubernetes operator for etcd.
pub mod api;
pub mod cli;
