//! The checker against histories made by hand, and the whole against a real etcd.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics; clippy exempts only the test functions themselves"
)]

mod made;
mod real;
