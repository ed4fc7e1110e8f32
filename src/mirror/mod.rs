//! The mirror: one keyspace of an etcd, exactly, in another.
//!
//! Separate because it runs on any host, without Kubernetes. What decides is plain code over plain data
//! ([`machine`]: events in, commands out); `follow`, `listen`, `write` and `run` do what it says.
//!
//! The target holds the checkpoint: how far it has come, written in the transaction that writes the data. So a crash at
//! any point loses nothing and repeats nothing, two agents cannot interleave, and a target that is restored from a backup
//! brings the checkpoint of its data back with it.
//!
//! - **Invariant (I1), exact:** where the checkpoint says `stream` without an offset, the mirrored keys of the target
//!   are those of the source at its revision, and no others. Where it says `first` or `resync`, that holds of keys before
//!   its cursor. (Where leases are recreated, one that ends in the target against the mirror's will takes keys along, until
//!   both sides have been compared: see `machine/leases.rs`.)
//! - **Invariant (I2), one step:** no transaction has data without a checkpoint, and each compares the checkpoint that
//!   it replaces.
//! - **Invariant (I3), one writer:** each compares `owner`, too. Taking over and promoting change `owner` only.
//! - **Invariant (I4), whole revisions:** a batch ends with a revision of the source. A revision that no transaction
//!   can hold is divided, and the checkpoint says how far.
//! - **Invariant (I5), forward:** the revision does not fall, but by a scan that begins anew.
//! - **Invariant (I6), once in effect:** a transaction whose answer was lost is repeated as it was, or not at all.
//! - **Invariant (I7), its own keys only:** nothing is written or deleted but mirrored keys and the mirror's own; never
//!   an ignored key, and never a key that was in the target before, without leave.
//!
//! A source that was restored, or is another cluster, is never copied unasked: the target may hold the only copy.

pub mod agent;
pub mod assembler;
pub mod authorize;
pub mod batch;
pub mod checkpoint;
pub mod circle;
pub mod config;
pub mod connect;
pub mod fence;
mod follow;
pub mod inspect;
pub mod keyspace;
pub mod lag;
mod lease;
mod listen;
mod look;
pub mod machine;
pub mod metrics;
pub mod pace;
pub mod promote;
pub mod release;
pub mod resync;
pub mod run;
pub mod serve;
pub mod stop;
pub mod text;
pub mod transaction;
pub mod verify;
pub mod windows;
pub mod write;
