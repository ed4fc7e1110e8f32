//! Small files that survive a crash whole: temp file, fsync, rename, fsync of the directory.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// None of the guard's own files comes near; what does is no file of ours and is not read into memory.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// What was found where one of the guard's own files should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<T> {
    /// There is none.
    Nothing,
    /// There is one, but it cannot be understood.
    Unreadable(String),
    /// It was read.
    Value(T),
}

/// Reads a file. Only "there is none" counts as none; every other failure to read is an error.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Found<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(match serde_json::from_slice(&bytes) {
        Ok(value) => Found::Value(value),
        Err(error) => Found::Unreadable(error.to_string()),
    })
}

/// Writes the file beside its final name, synced.
pub fn draft(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut file = File::create(path.with_extension("tmp"))?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_all()
}

/// Gives the draft its name.
pub fn publish(path: &Path) -> io::Result<()> {
    fs::rename(path.with_extension("tmp"), path)
}

/// Makes the names in a directory durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// All three, for files whose steps need not be told apart.
pub fn replace(directory: &Path, name: &str, value: &impl Serialize) -> io::Result<()> {
    let path = directory.join(name);
    draft(&path, value)?;
    publish(&path)?;
    sync_directory(directory)
}
