//! The Kubernetes side: observe → plan → apply → status, for every kind.
//!
//! **Invariant:** a kind never reaches into another kind's folder; kinds meet in the apiserver only.

pub mod cluster;
pub mod context;
pub mod failure;
pub mod lead;
pub mod manifest;
pub mod metrics;
pub mod mirror;
pub mod names;
pub mod read;
pub mod run;
pub mod serve;
pub mod write;
