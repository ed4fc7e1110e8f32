//! Everything that needs no cluster and no network.

#[expect(unreachable_pub, reason = "the end-to-end suite includes the same file")]
mod bad_files;
mod bad_input;
mod crds;
mod examples;
mod install;
mod offline;
