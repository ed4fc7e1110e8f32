//! Stories on a real Kubernetes: `cargo verify` starts one, or set KUBECONFIG (and, for the stories that damage
//! disks or kill processes, QUORATE_CLUSTER and QUORATE_CLUSTER_TOOL as `cargo verify` does).

#![expect(clippy::print_stderr, clippy::print_stdout, reason = "stories tell what they saw and measured")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a story that cannot go on panics; clippy exempts only the test functions themselves"
)]

mod judges;
mod operator;
mod support;

mod alone;
mod alone_chart;
mod bad_input;
mod bootstrap;
mod certificates;
mod faults;
mod gitops;
mod guard;
mod heal;
mod install;
mod many;
mod mirror;
mod nodes;
mod quiet;
mod readme;
mod recovery;
mod replace;
mod scaling;
mod sizes;
