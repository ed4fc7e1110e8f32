//! An agent: a mirror between two sites by a file, which says at `/status` how it is.
//!
//! Separate from the engine because a file may change under it: whatever changes, the engine is begun anew by the new
//! file, and goes on from the checkpoint in the target. A file that cannot be carried out is a problem that `/status`
//! tells, not an end, so whoever wrote it sees why.

mod change;
pub mod config;
pub mod heed;
pub mod lost;
pub mod order;
pub mod run;
pub mod status;
pub mod survey;
pub mod switch;
pub mod tell;
