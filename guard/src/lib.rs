//! `quorate-guard` starts etcd inside a member's container, after proving that the volume is this member's.
//!
//! etcd trusts its data directory. It starts happily on an empty one under an ID that has already voted, on
//! another member's, and on a copy of its own from last week; each of these can cost acknowledged writes without
//! one line of warning. The guard therefore runs at every start of the container, and for as long as etcd does.
//!
//! # What is kept where
//!
//! | what | where | says |
//! |---|---|---|
//! | stamp | volume, `quorate.json` | whose the volume is, and how far its first boot came |
//! | etcd's data | volume, `data/` | |
//! | old data | volume, `bak-<n>/` | what members wiped in place left; `discarded/` is being deleted |
//! | mark | the Pod's emptyDir, `mark.json` | the highest position seen *on disk* in the log by this Pod |
//! | note | the Pod's emptyDir, `wipe.json` | this Pod was told to wipe: what it then finds missing is its own doing |
//!
//! # Phases of the stamp
//!
//! | phase | means | may be missing |
//! |---|---|---|
//! | `fresh` | the volume is claimed, etcd was never started on it at this incarnation | everything |
//! | `starting` | etcd was or is about to be started; its log was blank when last seen | all; what is in `data/` is the rest of a failed boot |
//! | `started` | the log was more than blank: others may count on what it says | nothing, for ever |
//!
//! A member votes and acknowledges only what is synced in its log (WAL), and the first sync brings a hard state with
//! it. A log without one is *blank*. So "the log was never more than blank" is the exact condition under which an
//! empty volume is harmless. etcd makes `member/wal` by one rename, with a synced segment in it, after
//! `member/snap/db` (3.5, 3.6 and 3.7 alike), so a log without a db is always a loss.
//!
//! A blank log is the rest of a failed boot like no log at all: the entries that name a new cluster's members come
//! a moment after the segment's head, and an etcd that crashed in between finds no members at its next start and
//! waits for a leader for ever (tried).
//!
//! # Invariants
//!
//! - **G-1** etcd runs only while this process tree holds the lock on the volume's root directory. etcd inherits
//!   the descriptor, so the lock outlives a killed guard, and no file that can be unlinked carries it.
//! - **G-2** the phase never falls within an incarnation, and `started` is durable before the mark is written.
//! - **G-3** once `started` (or a mark exists, or the Pod says that data must be there), etcd is started only on a
//!   log that is whole, of the expected IDs, and not below the mark nor the Pod's high-water mark.
//! - **G-4** data with a log leaves `data/` only if the Pod's incarnation is above the stamp's *and* its member ID
//!   is another one than the volume's: then the old ID was removed from the cluster and can never vote again.
//! - **G-5** the mark is never above what a crash of the node leaves: the log is synced first, then the mark written.
//! - **G-6** a volume that is not provably this member's is only read.
//!
//! # Crash points
//!
//! Everything that changes the volume is a list of [`steps::Step`]s, computed purely, each of which is atomic or
//! safe to repeat. A crash after any of them, and inside any of them, is followed by a start that decides anew:
//!
//! | order of steps | crash after it leaves | the next start |
//! |---|---|---|
//! | first boot: draft, publish, sync | no stamp or a whole one (rename) | claims the volume again, or goes on |
//! | `starting`, then etcd, then its log, then `started` | `starting`, a log | takes the log for its own after checking its IDs, and stamps `started` |
//! | | `starting`, no log or a blank one | removes what is left in `data/`, tries again |
//! | cleaning: `data` → `discarded`, sync, delete | `starting`, a part of `discarded` | deletes it, tries again |
//! | wiping: note | old stamp, old data | wipes |
//! | … mark removed | old stamp, old data, no mark | wipes; the stamp still says that it is due |
//! | … `data` touched | old stamp, old data | wipes; their age begins anew |
//! | … `data` → `bak-<n>` (or `discarded`), sync | old stamp, no data | nothing is left to move: stamps |
//! | … (`discarded` deleted) | old stamp, a part of `discarded` | deletes it, stamps |
//! | … draft, publish, sync | `fresh` at the new incarnation | a first boot; it cannot wipe again, the incarnation is equal |
//! | old data whose time is over: `bak-<n>` → `discarded`, sync, delete | a part of `discarded` | deletes it |
//!
//! What cannot be seen from inside one node: a node rolled back whole, its emptyDirs included.

pub mod config;
pub mod decide;
pub mod durable;
pub mod guard;
pub mod identity;
pub mod install;
pub mod lines;
pub mod lock;
pub mod log;
pub mod mark;
pub mod refusal;
pub mod report;
pub mod resolve;
pub mod stamp;
pub mod steps;
pub mod supervise;
pub mod tail;
pub mod volume;
pub mod wal;
