//! The lock on the volume's root directory.
//!
//! On the directory, since `rm -rf` of its content cannot unlink it; without close-on-exec, since etcd must inherit
//! it: the lock then lasts as long as guard *or* etcd does.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;

use crate::refusal::{Cause, Refusal};

/// The volume is ours for as long as this, or a child that inherited it, lives.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, never used")] OwnedFd);

/// Takes the lock, or says why not. It does not wait: whoever holds it may hold it for ever.
pub fn take(volume: &Path) -> Result<Lock, Refusal> {
    let directory = open(volume, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
        .map_err(|error| unusable(volume, error))?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock(directory)),
        Err(Errno::WOULDBLOCK) => Err(Refusal::new(
            Cause::VolumeInUse,
            format!(
                "another process has the volume at {} locked; two etcds on one volume would destroy it",
                volume.display()
            ),
        )),
        Err(error) => Err(unusable(volume, error)),
    }
}

fn unusable(volume: &Path, error: Errno) -> Refusal {
    Refusal::new(
        Cause::VolumeUnwritable,
        format!("could not lock the volume at {}: {error}", volume.display()),
    )
}
