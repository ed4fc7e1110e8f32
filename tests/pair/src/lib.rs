//! Two real etcds and the distance between them: for the tests and benches of the mirror.
//!
//! A package of its own, since tests and benches share it. [`Etcd`] is a cluster of real processes of one minor on
//! loopback, under addresses that nobody else has. [`Proxy`] stands before one member: it delays, throttles, holds,
//! cuts and forgets connections while they are used. [`Side`] is a cluster with a proxy before each member, and [`Pair`]
//! is two of them. All of it ends with its value; processes are ended by their id.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on panics; clippy exempts only the test functions themselves"
)]

mod certificates;
pub mod etcd;
pub mod pair;
pub mod programs;
pub mod proxy;
pub mod record;
mod timer;

pub use certificates::Certificates;
pub use etcd::{Etcd, Settings};
pub use pair::{Pair, Side};
pub use proxy::{Link, Proxy, Traffic, Trap, Way};
pub use record::{Change, Held, Recorder};

#[cfg(test)]
mod tests;
