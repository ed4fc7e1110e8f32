//! Follows a log through its segments: once from the beginning, then only what was added.
//!
//! **Invariant:** what it has taken in is on disk: every segment that gave records was synced after they were read.

use std::fs::{self, File};
use std::io::{self, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::durable;
use crate::wal::{End, Extent, Log, Problem, read_records};

/// One read of the disk. Segments are 64 MB; larger reads gain nothing.
const BUFFER_BYTES: usize = 256 * 1024;

/// Segments are kept until a snapshot covers them, normally five; a directory with more files is not a log.
const MAX_SEGMENTS: usize = 100_000;

/// A segment's file name: `<sequence>-<index of its first entry>.wal`, both 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    sequence: u64,
    index: u64,
}

/// A log that does not say what it should.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// There is no directory.
    #[error("there is no log at {0}")]
    Absent(PathBuf),
    /// There is a directory without segments.
    #[error("the log at {0} has no segments")]
    Empty(PathBuf),
    /// The directory cannot be read.
    #[error("could not list {path}")]
    List {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A segment cannot be used.
    #[error("segment {segment} is damaged at byte {offset}")]
    Damaged {
        /// The file's name.
        segment: String,
        /// Where the first bad record begins.
        offset: u64,
        /// What is wrong.
        #[source]
        problem: Problem,
    },
}

/// A place in a log's directory, and what was read up to there.
#[derive(Debug)]
pub struct Tail {
    directory: PathBuf,
    at: Option<(Segment, u64)>,
    log: Log,
    buffer: Vec<u8>,
}

impl Tail {
    /// The beginning of the log in a directory, which need not exist yet.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, at: None, log: Log::default(), buffer: Vec::new() }
    }

    /// What was read.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Reads to the end of a log that nobody writes, and judges it whole.
    pub fn read_all(&mut self) -> Result<(), TailError> {
        self.advance()?;
        let (segment, offset) = self.at.unwrap_or((Segment { sequence: 0, index: 0 }, 0));
        self.log.check_end().map_err(|problem| segment.damaged(offset, problem))
    }

    /// Reads what is new. While etcd writes, an error only means that the end is not whole yet: what was read
    /// before it stays, and the next call goes on from there.
    pub fn advance(&mut self) -> Result<(), TailError> {
        let segments = list(&self.directory)?;
        let known = self.at.and_then(|(segment, _)| segments.iter().position(|other| *other == segment));
        if known.is_none() {
            // The first call, or etcd has purged the segment where this stood.
            self.at = None;
            self.log = Log::default();
        }
        let mut rest = segments.into_iter().skip(known.unwrap_or_default()).peekable();
        while let Some(segment) = rest.next() {
            self.read_segment(segment, rest.peek().is_none())?;
        }
        Ok(())
    }

    fn read_segment(&mut self, segment: Segment, last: bool) -> Result<(), TailError> {
        let offset = match self.at {
            Some((current, offset)) if current == segment => offset,
            Some(_) | None => {
                self.log.begin_segment();
                0
            }
        };
        let path = self.directory.join(segment.to_string());
        let at_offset = |problem| segment.damaged(offset, problem);
        let (file, size) = open_at(&path, offset).map_err(Problem::Io).map_err(at_offset)?;
        let mut source = BufReader::with_capacity(BUFFER_BYTES, &file);
        let extent = Extent { offset, size, last };
        let (reached, end) = read_records(&mut source, extent, &mut self.log, &mut self.buffer);
        self.at = Some((segment, reached));
        if reached > offset {
            self.sync(&file, offset == 0)
                .map_err(Problem::Io)
                .map_err(|problem| segment.damaged(reached, problem))?;
        }
        match end {
            Ok(End::Clean) if !last => self.log.check_segment(),
            Ok(End::Clean | End::Torn) => Ok(()),
            Err(problem) => Err(problem),
        }
        .map_err(|problem| segment.damaged(reached, problem))
    }

    /// A new segment's name must be durable as well.
    fn sync(&self, file: &File, new: bool) -> io::Result<()> {
        rustix::fs::fdatasync(file)?;
        if new { durable::sync_directory(&self.directory) } else { Ok(()) }
    }
}

impl Segment {
    /// Reads a file's name; `None` if etcd did not write it.
    fn parse(name: &str) -> Option<Self> {
        let (sequence, index) = name.strip_suffix(".wal")?.split_once('-')?;
        let number = |digits: &str| u64::from_str_radix(digits, 16).ok();
        let segment = Self { sequence: number(sequence)?, index: number(index)? };
        (segment.to_string() == name).then_some(segment)
    }

    fn damaged(self, offset: u64, problem: Problem) -> TailError {
        TailError::Damaged { segment: self.to_string(), offset, problem }
    }
}

impl std::fmt::Display for Segment {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:016x}-{:016x}.wal", self.sequence, self.index)
    }
}

/// The segments in order, none missing between two.
fn list(directory: &Path) -> Result<Vec<Segment>, TailError> {
    let failed = |source: io::Error| {
        let path = directory.to_owned();
        if source.kind() == io::ErrorKind::NotFound {
            TailError::Absent(path)
        } else {
            TailError::List { path, source }
        }
    };
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)?.take(MAX_SEGMENTS) {
        let name = entry.map_err(failed)?.file_name();
        segments.extend(name.to_str().and_then(Segment::parse));
    }
    segments.sort_unstable();
    let next = |segment: &Segment| segment.sequence.saturating_add(1);
    match segments.iter().zip(segments.iter().skip(1)).find(|(one, other)| next(one) != other.sequence) {
        Some((one, other)) => Err(other.damaged(0, Problem::Missing(next(one)))),
        None if segments.is_empty() => Err(TailError::Empty(directory.to_owned())),
        None => Ok(segments),
    }
}

fn open_at(path: &Path, offset: u64) -> io::Result<(File, u64)> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(offset))?;
    Ok((file, size))
}

#[cfg(test)]
mod tests {
    use super::Segment;

    #[test]
    fn only_names_that_etcd_writes_are_segments() {
        let name = "000000000000000a-0000000000000f00.wal";
        assert_eq!(Segment::parse(name).map(|segment| segment.to_string()).as_deref(), Some(name));
        for other in
            ["0.tmp", "0-0.wal", "000000000000000A-0000000000000f00.wal", "x.wal", "a-b.wal.broken", ".wal"]
        {
            assert_eq!(Segment::parse(other), None, "{other}");
        }
    }
}
