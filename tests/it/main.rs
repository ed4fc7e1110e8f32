//! Everything that needs no cluster and no network.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics; clippy exempts only the test functions themselves"
)]

/// The world makes and drops millions of small JSON objects.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod alerts;
mod bad_input;
mod bad_input_files;
mod chart;
mod crds;
mod examples;
mod failures;
mod gitops;
#[path = "../e2e/judges.rs"]
mod judges;
mod metrics;
mod mirror;
mod mirror_cases;
mod mirror_plan;
mod mirror_reconcile;
mod offline;
mod plan;
mod rotation;
mod seeds;
mod tidy;
mod world;
