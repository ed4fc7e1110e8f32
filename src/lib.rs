//! Quorate: a Kubernetes operator for etcd.
//!
//! Rooms, and who may use whom (a tidy test checks both):
//!
//! | room | holds | may use | never |
//! |---|---|---|---|
//! | [`api`] | the custom resources | serde, kube's derives | a client, etcd |
//! | [`etcd`] | all we know of etcd | etcd-client | Kubernetes |
//! | [`mirror`] | one keyspace in two places | `etcd` | Kubernetes |
//! | [`operator`] | the Kubernetes side | all of these | `cli` |
//! | [`cli`] | what was typed → what it means | everything | decisions |
//!
//! A file named by a noun is pure; a file named by a verb does I/O.

pub mod api;
pub mod cli;
pub mod etcd;
pub mod mirror;
pub mod operator;
