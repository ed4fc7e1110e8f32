//! Looks at the volume and at the Pod's emptyDir; changes nothing.
//!
//! **Invariant:** "not there" is only ever said when the kernel said so. A disk that fails, or a directory that may
//! not be read, is an error and never an empty volume.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::config::{Config, DATA};
use crate::durable::{self, Found};
use crate::mark::{MARK, Mark};
use crate::stamp::{STAMP, Stamp};
use crate::tail::{Tail, TailError};
use crate::wal::Summary;

/// What a wiped member left is kept under this name and a number.
pub const BACKUP: &str = "bak-";

/// What is about to be deleted; under a name of its own, so that half of it is never taken for data.
pub const DISCARDED: &str = "discarded";

/// The note in the state directory that this Pod was told to wipe.
pub const NOTE: &str = "wipe.json";

/// A volume has a handful of entries in its root.
const MAX_ENTRIES: usize = 10_000;

/// Says that this Pod wiped the volume, or was about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// For this incarnation.
    pub incarnation: u32,
}

/// The state of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogFound {
    /// There is no `member/wal`: no log was ever made, or somebody removed it.
    Absent,
    /// There is a directory without one segment. etcd never makes that.
    Empty,
    /// It is damaged, and where.
    Damaged(String),
    /// It is whole.
    Whole(Summary),
}

/// All that a decision needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The stamp.
    pub stamp: Found<Stamp>,
    /// The mark of this Pod.
    pub mark: Found<Mark>,
    /// The note of this Pod.
    pub note: Found<Note>,
    /// The log.
    pub log: LogFound,
    /// Whether etcd's db is there.
    pub database: bool,
    /// The db's size.
    pub database_bytes: u64,
    /// Whether there is anything in `data/`.
    pub data: bool,
    /// Whether a deletion was interrupted.
    pub discarded: bool,
    /// The highest number of a `bak-<n>/`.
    pub last_backup: u32,
    /// Free space.
    pub free_bytes: u64,
}

/// The volume could not be looked at.
#[derive(Debug, thiserror::Error)]
#[error("could not look at {path}")]
pub struct VolumeError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Where etcd keeps the log of its data directory.
pub fn log_directory(config: &Config) -> PathBuf {
    config.data().join("member/wal")
}

/// Looks at everything. The returned tail stands at the end of the log, and goes on from there.
pub fn inspect(config: &Config) -> Result<(Volume, Tail), VolumeError> {
    let volume = config.volume.as_path();
    let database = config.data().join("member/snap/db");
    let database_bytes = size(&database)?;
    let entries = entries(volume)?;
    let mut tail = Tail::new(log_directory(config));
    let found = Volume {
        stamp: read(volume, STAMP)?,
        mark: read(&config.state, MARK)?,
        note: read(&config.state, NOTE)?,
        log: judge(&mut tail)?,
        database: database_bytes.is_some(),
        database_bytes: database_bytes.unwrap_or_default(),
        data: entries.iter().any(|name| name == DATA) && has_entries(&config.data())?,
        discarded: entries.iter().any(|name| name == DISCARDED),
        last_backup: entries.iter().filter_map(|name| backup_number(name)).max().unwrap_or_default(),
        free_bytes: free(volume)?,
    };
    Ok((found, tail))
}

fn judge(tail: &mut Tail) -> Result<LogFound, VolumeError> {
    match tail.read_all() {
        Ok(()) => Ok(tail.log().summary().map_or(LogFound::Empty, LogFound::Whole)),
        Err(TailError::Absent(_)) => Ok(LogFound::Absent),
        Err(TailError::Empty(_)) => Ok(LogFound::Empty),
        Err(TailError::List { path, source }) => Err(VolumeError { path, source }),
        Err(damage @ TailError::Damaged { .. }) => Ok(LogFound::Damaged(crate::log::chain(&damage))),
    }
}

fn read<T: serde::de::DeserializeOwned>(directory: &Path, name: &str) -> Result<Found<T>, VolumeError> {
    let path = directory.join(name);
    durable::read(&path).map_err(at(&path))
}

fn size(path: &Path) -> Result<Option<u64>, VolumeError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

fn entries(directory: &Path) -> Result<Vec<String>, VolumeError> {
    let listing = fs::read_dir(directory).map_err(at(directory))?;
    let name = |entry: io::Result<fs::DirEntry>| {
        entry.map(|entry| OsStr::to_string_lossy(&entry.file_name()).into_owned()).map_err(at(directory))
    };
    listing.take(MAX_ENTRIES).map(name).collect()
}

/// Names of old data that were put aside longer ago than that.
pub fn old_backups(volume: &Path, kept_for: Duration, now: SystemTime) -> Result<Vec<String>, VolumeError> {
    let mut old = Vec::new();
    for name in entries(volume)?.into_iter().filter(|name| backup_number(name).is_some()) {
        let path = volume.join(&name);
        let aside = fs::metadata(&path).and_then(|metadata| metadata.modified()).map_err(at(&path))?;
        if now.duration_since(aside).is_ok_and(|age| age >= kept_for) {
            old.push(name);
        }
    }
    Ok(old)
}

/// Whether a deletion was interrupted.
pub fn is_discarding(volume: &Path) -> Result<bool, VolumeError> {
    let path = volume.join(DISCARDED);
    fs::exists(&path).map_err(at(&path))
}

fn has_entries(directory: &Path) -> Result<bool, VolumeError> {
    fs::read_dir(directory).map(|mut listing| listing.next().is_some()).map_err(at(directory))
}

fn backup_number(name: &str) -> Option<u32> {
    name.strip_prefix(BACKUP)?.parse().ok()
}

fn free(volume: &Path) -> Result<u64, VolumeError> {
    let numbers = rustix::fs::statvfs(volume).map_err(|error| at(volume)(error.into()))?;
    Ok(numbers.f_bavail.saturating_mul(numbers.f_frsize))
}

fn at(path: &Path) -> impl Fn(io::Error) -> VolumeError {
    move |source| VolumeError { path: path.to_owned(), source }
}
