//! A decision as a list of steps on the disk, and their execution.
//!
//! The list is computed purely and each step is atomic or safe to repeat, so that the tests can stop after every
//! one of them. **Invariant:** a stamp is published only after a sync of what was moved or deleted before it.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use crate::config::{Config, DATA};
use crate::decide::Decision;
use crate::durable::{self, Found};
use crate::mark::MARK;
use crate::refusal::{Cause, Refusal};
use crate::stamp::{STAMP, Stamp};
use crate::volume::{BACKUP, DISCARDED, NOTE, Note, Volume};

/// Old data are kept only if this many times the leader's db stay free: the member will receive one db as a
/// snapshot beside the one that it replaces, and grows.
const FREE_DBS: u64 = 3;

/// … and this much, for segments of the log (64 MB each, two made ahead).
const FREE_BYTES: u64 = 256 * 1024 * 1024;

/// One change to a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write into the emptyDir that this Pod wipes.
    Note(Note),
    /// Remove the emptyDir's mark: it is of the member that is wiped.
    RemoveMark,
    /// Make the data directory's age tell when it was put aside.
    TouchData,
    /// Give data another name.
    Move {
        /// The old name.
        from: String,
        /// The new name.
        to: String,
    },
    /// Delete what was moved away to be deleted.
    DeleteDiscarded,
    /// Make names in the volume's root durable.
    SyncVolume,
    /// Write a stamp beside its name.
    DraftStamp(Stamp),
    /// Give it its name.
    PublishStamp,
}

/// All steps before etcd may be started; none for a refusal.
pub fn steps(decision: &Decision, config: &Config, volume: &Volume) -> Vec<Step> {
    let mut steps = Vec::new();
    let stamp = match decision {
        Decision::Refuse(_) => return steps,
        Decision::Start(stamp) | Decision::StartAfterCleaning(stamp) | Decision::Wipe(stamp) => stamp,
    };
    if volume.discarded {
        steps.extend(finish_discarding());
    }
    match decision {
        Decision::StartAfterCleaning(_) if volume.data => steps.extend(discard(DATA)),
        Decision::Wipe(stamp) => {
            steps.extend([Step::Note(Note { incarnation: stamp.incarnation }), Step::RemoveMark]);
            if volume.data && keeps_old_data(config, volume) {
                let to = format!("{BACKUP}{}", volume.last_backup.saturating_add(1));
                steps.extend([Step::TouchData, Step::Move { from: DATA.to_owned(), to }, Step::SyncVolume]);
            } else if volume.data {
                steps.extend(discard(DATA));
            }
        }
        Decision::Start(_) | Decision::StartAfterCleaning(_) | Decision::Refuse(_) => (),
    }
    if volume.stamp != Found::Value(stamp.clone()) {
        steps.extend(stamping(stamp));
    }
    steps
}

/// The steps of writing a stamp.
pub fn stamping(stamp: &Stamp) -> [Step; 3] {
    [Step::DraftStamp(stamp.clone()), Step::PublishStamp, Step::SyncVolume]
}

/// The steps of deleting data; in two, so that half of them are never found under their name.
pub fn discard(name: &str) -> [Step; 4] {
    let moved = Step::Move { from: name.to_owned(), to: DISCARDED.to_owned() };
    let [delete, sync] = finish_discarding();
    [moved, Step::SyncVolume, delete, sync]
}

/// The second half of it, which is also what is left to do where it was interrupted.
pub fn finish_discarding() -> [Step; 2] {
    [Step::DeleteDiscarded, Step::SyncVolume]
}

/// The rule on free space. If the leader's db is unknown, the member's own was about as large.
fn keeps_old_data(config: &Config, volume: &Volume) -> bool {
    let database = config.leader_db_bytes.unwrap_or(volume.database_bytes);
    volume.free_bytes >= database.saturating_mul(FREE_DBS).saturating_add(FREE_BYTES)
}

/// Does one step.
pub fn perform(step: &Step, config: &Config) -> Result<(), Refusal> {
    let (volume, state) = (config.volume.as_path(), config.state.as_path());
    let result = match step {
        Step::Note(note) => durable::replace(state, NOTE, note),
        Step::RemoveMark => remove_mark(state),
        Step::TouchData => fs::File::open(volume.join(DATA)).and_then(|data| {
            data.set_modified(SystemTime::now())?;
            data.sync_all()
        }),
        Step::Move { from, to } => fs::rename(volume.join(from), volume.join(to)),
        Step::DeleteDiscarded => fs::remove_dir_all(volume.join(DISCARDED)),
        Step::SyncVolume => durable::sync_directory(volume),
        Step::DraftStamp(stamp) => durable::draft(&volume.join(STAMP), stamp),
        Step::PublishStamp => durable::publish(&volume.join(STAMP)),
    };
    result
        .map_err(|error| Refusal::new(Cause::VolumeUnwritable, format!("{}: {error}", step.attempt(config))))
}

impl Step {
    fn attempt(&self, config: &Config) -> String {
        let volume = config.volume.display();
        match self {
            Self::Note(_) | Self::RemoveMark => format!("could not write to {}", config.state.display()),
            Self::TouchData => format!("could not note the time on {volume}/{DATA}"),
            Self::Move { from, to } => format!("could not move {volume}/{from} to {to}"),
            Self::DeleteDiscarded => format!("could not delete {volume}/{DISCARDED}"),
            Self::SyncVolume => format!("could not sync {volume}"),
            Self::DraftStamp(_) | Self::PublishStamp => format!("could not write {volume}/{STAMP}"),
        }
    }
}

fn remove_mark(state: &Path) -> io::Result<()> {
    match fs::remove_file(state.join(MARK)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => durable::sync_directory(state),
    }
}
