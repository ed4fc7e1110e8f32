//! Did etcd keep its promises while the operator acted and things broke?
//!
//! [`record::run`] writes, reads and watches through members that come and go; [`record::finish`] waits until all is
//! calm and asks every member what it holds; [`check::check`] judges the [`history::History`] of both. Every write of
//! the load has a value of its own, and one watcher at each member sees the whole keyspace from before the first
//! write on. So etcd itself tells the total order, each answer can be compared with that order played back, and
//! nothing has to be searched for: general checkers of linearizability are exponential in calls of unknown end.
//!
//! In a story of `tests/e2e` (`quorate-history` is then a dev-dependency of `quorate`):
//!
//! ```no_run
//! # use std::collections::BTreeMap;
//! # use std::path::Path;
//! # use std::sync::atomic::{AtomicBool, Ordering};
//! # use std::time::Duration;
//! # use quorate::etcd::connect::{Address, ClientIdentity};
//! # struct Story;
//! # impl Story {
//! #     async fn addresses(&self) -> BTreeMap<String, Address> { BTreeMap::new() }
//! #     async fn break_things(&self) {}
//! # }
//! # async fn tell(story: &Story, identity: Option<ClientIdentity>) {
//! use quorate_history::{check, record};
//!
//! let stop = AtomicBool::new(false);
//! let addresses = async || story.addresses().await;
//! let faults = async {
//!     story.break_things().await;
//!     stop.store(true, Ordering::Relaxed);
//! };
//! let load = record::run(addresses, identity.clone(), record::Settings::default(), &stop);
//! let (history, ()) = tokio::join!(load, faults);
//! let history = record::finish(history, addresses, identity, Duration::from_mins(1)).await;
//! let verdict = check::check(&history);
//! println!("measured: {}", verdict.summary());
//! record::keep(&history, Path::new("target/dead-member.json")).unwrap();
//! assert!(verdict.violations.is_empty() && verdict.acknowledged > 1000, "{verdict}");
//! # }
//! ```
//!
//! The load runs inside the future that `run` returns. Faults that block their thread (`Command::output`) block it
//! too when both share one: spawn one of them on a multi-threaded runtime, or read
//! [`longest_stall`](history::History::longest_stall) beside the longest gap.

pub mod check;
pub mod history;
pub mod record;

#[cfg(test)]
mod tests;
