//! The guard against real etcd of every supported minor, on loopback.
//!
//! `QUORATE_BIN` names the folder with `etcd-3.5/{etcd,etcdctl}`, `etcd-3.6/…` and `etcd-3.7/…`;
//! `cargo cluster programs` prints it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on panics; clippy exempts only the test functions themselves"
)]

mod boots;
mod cluster;
mod crashes;
mod damage;
mod fuzz;
mod http;
mod init;
mod logs;
mod planted;
mod programs;
mod refusals;
mod rollback;
mod wipes;
mod writer;
