//! Writes logs as etcd does, for states that a real etcd reaches too seldom; and finds the frames of any log.

use std::fs;
use std::path::Path;

use quorate_guard::identity::{HexId, Identity};
use quorate_guard::wal::{HardState, Position};

/// The member that all written logs are of.
pub(crate) const IDENTITY: Identity = Identity { cluster: HexId(0xc1), member: HexId(0xa1) };

/// A log under construction.
#[derive(Clone, Default)]
pub(crate) struct Writer {
    segments: Vec<Vec<u8>>,
    checksum: u32,
}

impl Writer {
    /// A log as etcd makes it: one segment with an empty snapshot.
    pub(crate) fn new() -> Self {
        Self::default().cut(IDENTITY).snapshot(0, 0)
    }

    /// Begins a segment.
    pub(crate) fn cut(mut self, identity: Identity) -> Self {
        self.segments.push(Vec::new());
        let repeated = self.checksum;
        self.frame(&record(4, repeated, &[]));
        self.record(1, &message(&[(1, identity.member.0), (2, identity.cluster.0)]))
    }

    /// Drops the oldest segment, as etcd does when a snapshot covers it.
    pub(crate) fn purge(mut self) -> Self {
        self.segments[0].clear();
        self
    }

    pub(crate) fn entry(self, term: u64, index: u64) -> Self {
        self.large_entry(term, index, b"an entry")
    }

    pub(crate) fn large_entry(self, term: u64, index: u64, data: &[u8]) -> Self {
        let mut entry = message(&[(1, 0), (2, term), (3, index)]);
        entry.push(0x22);
        entry.extend(varint(data.len() as u64));
        entry.extend(data);
        self.record(2, &entry)
    }

    pub(crate) fn entries(self, term: u64, indices: impl IntoIterator<Item = u64>) -> Self {
        indices.into_iter().fold(self, |log, index| log.entry(term, index))
    }

    pub(crate) fn state(self, hard: HardState) -> Self {
        let HardState { term, vote, commit } = hard;
        self.record(3, &message(&[(1, term), (2, vote), (3, commit)]))
    }

    pub(crate) fn snapshot(self, term: u64, index: u64) -> Self {
        self.record(5, &message(&[(1, index), (2, term)]))
    }

    /// A record of any kind, with a right checksum.
    pub(crate) fn record(mut self, kind: u64, data: &[u8]) -> Self {
        self.checksum = crc32c::crc32c_append(self.checksum, data);
        let record = record(kind, self.checksum, data);
        self.frame(&record);
        self
    }

    fn frame(&mut self, record: &[u8]) {
        let padding = (8 - record.len() % 8) % 8;
        let flag = if padding == 0 { 0 } else { (0x80 | padding as u64) << 56 };
        let segment = self.segments.last_mut().unwrap();
        segment.extend((record.len() as u64 | flag).to_le_bytes());
        segment.extend(record);
        segment.extend(&[0; 8][..padding]);
    }

    /// The bytes of the last segment.
    pub(crate) fn last(&self) -> &[u8] {
        self.segments.last().unwrap()
    }

    /// Writes all segments that are not purged into a directory, the last one with preallocated zeros.
    pub(crate) fn write(&self, directory: &Path) {
        fs::create_dir_all(directory).unwrap();
        for (sequence, bytes) in self.segments.iter().enumerate().filter(|(_, bytes)| !bytes.is_empty()) {
            let mut bytes = bytes.clone();
            if sequence + 1 == self.segments.len() {
                bytes.extend([0; 4096]);
            }
            fs::write(directory.join(format!("{sequence:016x}-{:016x}.wal", sequence * 100)), bytes).unwrap();
        }
    }
}

/// A hard state without a vote.
pub(crate) fn hard(term: u64, commit: u64) -> HardState {
    HardState { term, vote: 0, commit }
}

pub(crate) fn position(term: u64, index: u64) -> Position {
    Position { term, index }
}

/// The offsets where frames begin, and behind the last one where it ends.
pub(crate) fn frames(segment: &[u8]) -> Vec<usize> {
    let mut offsets = vec![0];
    while let Some(length) =
        segment.get(offsets[offsets.len() - 1]..).and_then(|rest| rest.first_chunk::<8>())
    {
        let length = u64::from_le_bytes(*length);
        if length == 0 {
            break;
        }
        let padding = if length >> 63 == 1 { length >> 56 & 7 } else { 0 };
        let size = usize::try_from((length & 0xff_ffff_ffff_ffff) + padding).unwrap();
        offsets.push(offsets[offsets.len() - 1] + 8 + size);
    }
    offsets
}

fn record(kind: u64, checksum: u32, data: &[u8]) -> Vec<u8> {
    let mut record = message(&[(1, kind), (2, u64::from(checksum))]);
    if !data.is_empty() {
        record.push(0x1a);
        record.extend(varint(data.len() as u64));
        record.extend(data);
    }
    record
}

fn message(fields: &[(u8, u64)]) -> Vec<u8> {
    fields.iter().flat_map(|(field, value)| [vec![field << 3], varint(*value)].concat()).collect()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).unwrap();
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}
