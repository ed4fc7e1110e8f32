//! A reader of etcd's write-ahead log: bytes → what they say. It opens nothing and changes nothing.
//!
//! A segment is a row of frames. A frame is a 64-bit little-endian length (its lower 56 bits are the record's size;
//! with the sign bit set, bits 56–58 are the padding to 8 bytes), the record, and the padding. A record is a
//! protobuf `{type, crc, data}`; its crc is CRC-32C over the data of *all* records so far, so it chains records and
//! segments: every segment starts with a record that repeats the chain's value, then the metadata. A length of zero
//! is the preallocated rest of a segment. (etcd `server/storage/wal`: the same format in 3.5, 3.6 and 3.7.)
//!
//! The verdicts are etcd's own but for one thing. etcd takes a record that is longer than the rest of the last
//! segment, or that has a whole sector of zeros, for a torn write, and cuts the log there. One flipped bit in a
//! length does that too, with everything acknowledged after it. Here a write counts as torn only if the beginning
//! of the record is a beginning, or is itself a sector of zeros; all else is damage.

use std::io::{self, Read};

use crate::identity::{HexId, Identity};

/// Bytes of a frame before its record.
const LENGTH_BYTES: u64 = 8;

/// A disk writes sectors whole: a torn write lacks whole ones. etcd's `minSectorSize`.
const SECTOR_BYTES: u64 = 512;

/// A record's header: two tags and two or three numbers come before the data; longer is no header of etcd's.
const HEADER_BYTES: usize = 24;

/// Enough of a record that runs beyond its segment to judge its header by.
const JUDGED_BYTES: u64 = 2 * SECTOR_BYTES;

/// The largest record that is read into memory. etcd advises against requests above 10 MiB, and bounds a record
/// only by its file.
pub const MAX_RECORD_BYTES: u64 = 128 * 1024 * 1024;

/// A place in a raft log, in raft's order of being up to date: by term, then by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// The term of an entry.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

/// What a raft member must remember besides its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HardState {
    /// The highest term seen.
    pub term: u64,
    /// Whom it voted for in that term, or 0.
    pub vote: u64,
    /// Up to where the log was known to be committed.
    pub commit: u64,
}

/// What is wrong with a segment.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The disk did not give the bytes.
    #[error("it cannot be read")]
    Io(#[source] io::Error),
    /// The data are not what was written.
    #[error("the record's checksum does not match its data")]
    Checksum,
    /// The bytes are no record.
    #[error("there is no valid record")]
    Undecodable,
    /// A record longer than any that etcd writes.
    #[error("the record claims to be {0} bytes long")]
    Length(u64),
    /// The chain over all records is broken.
    #[error("the checksum chain is broken: what came before is incomplete or was changed")]
    Chain,
    /// The log of two members in one.
    #[error("its metadata differ from those before")]
    Metadata,
    /// A segment without metadata; etcd syncs them before it gives a segment its name.
    #[error("it has no metadata")]
    Headless,
    /// A record type that etcd does not have.
    #[error("the record is of the unknown type {0}")]
    UnknownType(u64),
    /// Entries are missing.
    #[error("entry {found} follows entry {last}")]
    Gap {
        /// The last index before.
        last: u64,
        /// The index found.
        found: u64,
    },
    /// More is committed than is there.
    #[error("entries are committed up to {commit}, but the last one is {last}")]
    Commit {
        /// Committed up to here.
        commit: u64,
        /// The last index.
        last: u64,
    },
    /// Segments before and after it exist.
    #[error("segment {0} is missing")]
    Missing(u64),
}

/// Which part of a segment is to be read.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Where the source stands.
    pub offset: u64,
    /// The size of the segment's file.
    pub size: u64,
    /// Whether no segment follows: only there can a write be torn.
    pub last: bool,
}

/// How a segment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With its file, or with preallocated zeros.
    Clean,
    /// In a write that a crash cut off; etcd removes it.
    Torn,
}

/// What a log amounts to, record by record. The same value goes on when more is written.
#[derive(Debug, Clone, Default)]
pub struct Log {
    checksum: u32,
    begun: bool,
    headed: bool,
    identity: Option<Identity>,
    entry: Option<Position>,
    snapshot: Position,
    unconfirmed: Option<Position>,
    hard: HardState,
}

/// What the guard wants to know of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Whose it is.
    pub identity: Identity,
    /// The last hard state.
    pub hard: HardState,
    /// The last entry, or the snapshot that stands for all entries before it.
    pub last: Position,
}

impl Summary {
    /// Whether no hard state was ever written. etcd syncs the first one together with the first entries, before it
    /// votes or acknowledges anything; so a blank log has promised nothing to anybody.
    pub fn is_blank(&self) -> bool {
        self.hard == HardState::default()
    }
}

/// The segments' record types.
const METADATA: u64 = 1;
const ENTRY: u64 = 2;
const STATE: u64 = 3;
const CHECKSUM: u64 = 4;
const SNAPSHOT: u64 = 5;

impl Log {
    /// A segment is about to be read from its beginning.
    pub fn begin_segment(&mut self) {
        self.headed = false;
    }

    /// What must hold at the end of every segment that nobody writes.
    pub fn check_segment(&self) -> Result<(), Problem> {
        if self.headed { Ok(()) } else { Err(Problem::Headless) }
    }

    /// What is known so far; `None` before the first metadata record.
    pub fn summary(&self) -> Option<Summary> {
        let last = self.entry.unwrap_or_default().max(self.snapshot);
        self.identity.map(|identity| Summary { identity, hard: self.hard, last })
    }

    /// What must hold at the end of a log that nobody writes.
    pub fn check_end(&self) -> Result<(), Problem> {
        let last = self.entry.unwrap_or_default().index.max(self.snapshot.index);
        self.check_segment()?;
        if self.hard.commit > last {
            return Err(Problem::Commit { commit: self.hard.commit, last });
        }
        Ok(())
    }

    /// Takes one record in. On an error nothing has changed.
    fn fold(&mut self, record: &[u8]) -> Result<(), Problem> {
        let record = Record::decode(record)?;
        if record.kind == CHECKSUM {
            return self.fold_checksum(record.checksum);
        }
        let checksum = crc32c::crc32c_append(self.checksum, record.data);
        if checksum != record.checksum {
            return Err(Problem::Checksum);
        }
        match record.kind {
            METADATA => self.fold_metadata(record.data)?,
            ENTRY => self.fold_entry(record.data)?,
            STATE => self.fold_state(record.data)?,
            SNAPSHOT => self.fold_snapshot(record.data)?,
            unknown => return Err(Problem::UnknownType(unknown)),
        }
        self.checksum = checksum;
        Ok(())
    }

    /// The first segment that is left (older ones are purged) starts the chain; every other one continues it.
    fn fold_checksum(&mut self, checksum: u32) -> Result<(), Problem> {
        if self.begun && checksum != self.checksum {
            return Err(Problem::Chain);
        }
        self.begun = true;
        self.checksum = checksum;
        Ok(())
    }

    fn fold_metadata(&mut self, data: &[u8]) -> Result<(), Problem> {
        let [member, cluster] = numbers(data, [1, 2])?;
        let identity = Identity { cluster: HexId(cluster), member: HexId(member) };
        if self.identity.is_some_and(|known| known != identity) {
            return Err(Problem::Metadata);
        }
        self.identity = Some(identity);
        self.begun = true;
        self.headed = true;
        Ok(())
    }

    /// A later entry with the same or a lower index replaces all from there on: so a new leader corrects a log.
    fn fold_entry(&mut self, data: &[u8]) -> Result<(), Problem> {
        let [term, index] = numbers(data, [2, 3])?;
        if let Some(entry) = self.entry {
            let last = [Some(entry), Some(self.snapshot), self.unconfirmed]
                .into_iter()
                .flatten()
                .map(|position| position.index)
                .max()
                .unwrap_or_default();
            if index > last.saturating_add(1) {
                return Err(Problem::Gap { last, found: index });
            }
        }
        self.entry = Some(Position { term, index });
        Ok(())
    }

    fn fold_state(&mut self, data: &[u8]) -> Result<(), Problem> {
        let [term, vote, commit] = numbers(data, [1, 2, 3])?;
        self.hard = HardState { term, vote, commit };
        self.confirm_snapshot();
        Ok(())
    }

    fn fold_snapshot(&mut self, data: &[u8]) -> Result<(), Problem> {
        let [index, term] = numbers(data, [1, 2])?;
        self.unconfirmed = Some(Position { term, index });
        self.confirm_snapshot();
        Ok(())
    }

    /// etcd ignores a snapshot beyond what is committed: it crashed before it had taken the snapshot over.
    fn confirm_snapshot(&mut self) {
        if let Some(snapshot) = self.unconfirmed.take_if(|snapshot| snapshot.index <= self.hard.commit) {
            self.snapshot = self.snapshot.max(snapshot);
        }
    }
}

/// Reads records until the segment ends. Returns the offset after the last good record, and how it ended; the log
/// then holds exactly the records before that offset, whatever happened.
pub fn read_records(
    source: &mut impl Read,
    extent: Extent,
    log: &mut Log,
    buffer: &mut Vec<u8>,
) -> (u64, Result<End, Problem>) {
    let mut offset = extent.offset;
    loop {
        match read_record(source, Extent { offset, ..extent }, log, buffer) {
            Ok(Step::Record { bytes }) => offset += bytes,
            Ok(Step::End(end)) => return (offset, Ok(end)),
            Err(problem) => return (offset, Err(problem)),
        }
    }
}

/// What one read gave.
enum Step {
    Record { bytes: u64 },
    End(End),
}

fn read_record(
    source: &mut impl Read,
    extent: Extent,
    log: &mut Log,
    buffer: &mut Vec<u8>,
) -> Result<Step, Problem> {
    let mut length = [0; 8];
    match fill(source, &mut length)? {
        0 => return Ok(Step::End(End::Clean)),
        8 => (),
        _ if extent.last => return Ok(Step::End(End::Torn)),
        _ => return Err(Problem::Undecodable),
    }
    let length = u64::from_le_bytes(length);
    if length == 0 {
        return Ok(Step::End(End::Clean));
    }
    let (record, padding) = sizes(length);
    let rest = extent.size.saturating_sub(extent.offset + LENGTH_BYTES);
    let cut = record + padding > rest;
    if record > MAX_RECORD_BYTES && !cut {
        return Err(Problem::Length(record));
    }
    let wanted = if cut { rest.min(JUDGED_BYTES) } else { record + padding };
    let body = read_body(source, wanted, buffer)?;
    let cut = cut || (body.len() as u64) < wanted;
    let problem = match usize::try_from(record).ok().and_then(|record| body.get(..record)).filter(|_| !cut) {
        Some(bytes) => match log.fold(bytes) {
            Ok(()) => return Ok(Step::Record { bytes: LENGTH_BYTES + record + padding }),
            Err(problem) => problem,
        },
        None => Problem::Length(record),
    };
    if extent.last && is_torn(body, record, extent.offset + LENGTH_BYTES, cut, &problem) {
        return Ok(Step::End(End::Torn));
    }
    Err(problem)
}

/// The sizes of record and padding in a frame's length.
fn sizes(length: u64) -> (u64, u64) {
    let padding = if length >> 63 == 1 { (length >> 56) & 0x7 } else { 0 };
    (length & 0x00ff_ffff_ffff_ffff, padding)
}

/// Reads `wanted` bytes, fewer at the end of the file, into the buffer that all records share.
fn read_body<'a>(source: &mut impl Read, wanted: u64, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], Problem> {
    let wanted = usize::try_from(wanted).map_err(|_| Problem::Length(wanted))?;
    if buffer.len() < wanted {
        buffer.resize(wanted, 0);
    }
    let body = buffer.get_mut(..wanted).unwrap_or_default();
    let filled = fill(source, body)?;
    Ok(body.get(..filled).unwrap_or_default())
}

/// Fills as much as there is.
fn fill(source: &mut impl Read, mut target: &mut [u8]) -> Result<usize, Problem> {
    let wanted = target.len();
    while !target.is_empty() {
        match source.read(target) {
            Ok(0) => break,
            Ok(count) => target = target.get_mut(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(Problem::Io(error)),
        }
    }
    Ok(wanted - target.len())
}

/// Whether a crash in the middle of writing a record explains what is there instead of it: some of its sectors
/// were never written. Records that were read but say something impossible are not explained by that.
fn is_torn(body: &[u8], record: u64, at: u64, cut: bool, problem: &Problem) -> bool {
    let torn_kind = match problem {
        Problem::Checksum | Problem::Undecodable | Problem::Length(_) => true,
        Problem::Io(_)
        | Problem::Chain
        | Problem::Metadata
        | Problem::Headless
        | Problem::UnknownType(_)
        | Problem::Gap { .. }
        | Problem::Commit { .. }
        | Problem::Missing(_) => false,
    };
    let header = begins_record(body, record) || has_zero_sector(body, at, HEADER_BYTES);
    torn_kind && header && (cut || has_zero_sector(body, at, body.len()))
}

/// Whether the bytes are, as far as they go, the header of a record of that size.
fn begins_record(body: &[u8], record: u64) -> bool {
    let ends_in_header = body.len() < HEADER_BYTES && (body.len() as u64) < record;
    let mut rest = body;
    ends_in_header
        || take_header(&mut rest).is_some_and(|data| (body.len() - rest.len()) as u64 + data == record)
}

/// Takes what comes before a record's data, as etcd writes it, and returns how many bytes of data follow.
fn take_header(rest: &mut &[u8]) -> Option<u64> {
    take_byte(rest).filter(|tag| *tag == 0x08)?;
    take_number(rest).filter(|kind| (METADATA..=SNAPSHOT).contains(kind))?;
    take_byte(rest).filter(|tag| *tag == 0x10)?;
    take_number(rest).filter(|checksum| u32::try_from(*checksum).is_ok())?;
    match rest.first() {
        Some(0x1a) => take_byte(rest).and_then(|_| take_number(rest)),
        Some(_) | None => Some(0),
    }
}

/// Whether one of the sectors, as far as the record lies in them, that touch the first `within` bytes is all zeros.
fn has_zero_sector(body: &[u8], at: u64, within: usize) -> bool {
    let first = usize::try_from(SECTOR_BYTES - at % SECTOR_BYTES).unwrap_or(usize::MAX);
    let (head, tail) = body.split_at_checked(first).unwrap_or((body, &[]));
    let zero = |sector: &[u8]| !sector.is_empty() && sector.iter().all(|byte| *byte == 0);
    let reached = within.saturating_sub(first).div_ceil(512);
    zero(head) || tail.chunks(512).take(reached).any(zero)
}

/// A record of a segment; the data stay where they were read.
struct Record<'a> {
    kind: u64,
    checksum: u32,
    data: &'a [u8],
}

impl<'a> Record<'a> {
    fn decode(mut rest: &'a [u8]) -> Result<Self, Problem> {
        let mut record = Self { kind: 0, checksum: 0, data: &[] };
        while !rest.is_empty() {
            match take_field(&mut rest).ok_or(Problem::Undecodable)? {
                (1, Value::Number(kind)) => record.kind = kind,
                (2, Value::Number(checksum)) => {
                    record.checksum = u32::try_from(checksum).map_err(|_| Problem::Undecodable)?;
                }
                (3, Value::Bytes(data)) => record.data = data,
                (1..=3, _) => return Err(Problem::Undecodable),
                _ => (),
            }
        }
        Ok(record)
    }
}

/// A protobuf field's value; fixed-size numbers occur nowhere here and are only skipped.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The numbers in the given fields of a message; absent means 0.
fn numbers<const COUNT: usize>(mut rest: &[u8], fields: [u64; COUNT]) -> Result<[u64; COUNT], Problem> {
    let mut found = [0; COUNT];
    while !rest.is_empty() {
        if let (field, Value::Number(value)) = take_field(&mut rest).ok_or(Problem::Undecodable)? {
            let wanted = fields.iter().zip(&mut found).find(|(wanted, _)| **wanted == field);
            if let Some((_, place)) = wanted {
                *place = value;
            }
        }
    }
    Ok(found)
}

fn take_field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let tag = take_number(rest)?;
    let value = match tag & 7 {
        0 => Value::Number(take_number(rest)?),
        1 => Value::Bytes(take_bytes(rest, 8)?),
        2 => {
            let length = take_number(rest)?;
            Value::Bytes(take_bytes(rest, usize::try_from(length).ok()?)?)
        }
        5 => Value::Bytes(take_bytes(rest, 4)?),
        _ => return None,
    };
    Some((tag >> 3, value))
}

/// A varint: seven bits a byte, lowest first, at most ten bytes.
fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let byte = take_byte(rest)?;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or_default();
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take_byte(rest: &mut &[u8]) -> Option<u8> {
    let (&first, after) = rest.split_first()?;
    *rest = after;
    Some(first)
}

fn take_bytes<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(count)?;
    *rest = after;
    Some(taken)
}
