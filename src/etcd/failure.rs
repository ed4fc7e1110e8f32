//! Why a member's etcd ended, read off how its container ended; and what that allows to be done about it.
//!
//! Separate because the words are etcd's, and alike wherever etcd runs. Every rule names its source: a row of
//! `reliability.md` 4.2, the place in etcd that prints the words, or the guard's cause. The words themselves were
//! captured from real etcds of every minor (`tests/fixtures/failures`).
//!
//! **Invariant:** what is not recognised is `Unknown` with its last line, never the nearest guess; and nothing is
//! `Wipe` that does not prove by itself that the data of *this* member are useless.
//!
//! Deliberately absent: what etcd never ends with. A member whose peers are of another cluster (row 11) or that is
//! turned away by them (row 12) logs so and runs on; the survey sees it by the cluster ID in every answer, the guard
//! by the IDs in the log.

use std::ops::RangeInclusive;

/// How a container ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit<'a> {
    /// The exit code.
    pub exit: Option<i32>,
    /// The signal, if that was the end.
    pub signal: Option<i32>,
    /// The guard's own cause, if it refused.
    pub cause: Option<&'a str>,
    /// The guard's sentence to it.
    pub sentence: Option<&'a str>,
    /// etcd's last fatal lines, oldest first.
    pub lines: &'a [String],
    /// Whether the kubelet says that memory ran out.
    pub out_of_memory: bool,
}

/// Why etcd ended, or was not started. All numbers of rows are those of `reliability.md` 4.2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The log is damaged elsewhere than at its torn end (row 1; the guard reads the log as etcd does).
    WalDamaged,
    /// Pages of the database are not what was written (row 3; bbolt).
    DatabaseDamaged,
    /// Reading the mapped database faults: it was cut off, its pages point beyond its end, or the disk fails (row 3;
    /// nothing else of etcd's can fault so, and the signal tells no more).
    DatabaseUnreadable,
    /// The log is there, but no database (row 4; etcdserver/bootstrap.go).
    DatabaseMissing,
    /// The database is older than the snapshot that the log begins with (row 5; etcdserver/bootstrap.go).
    DatabaseBehind,
    /// The log begins with a snapshot, but there is no database that is as new (row 5; storage/backend.go).
    SnapshotMissing,
    /// The log has less than this member had acknowledged, as the leader or its own hard state say (row 6; raft
    /// log.go and raft.go). Entries may have been acknowledged on its word: an event for the whole cluster.
    LogLost,
    /// The member leads, but a follower has more than its log and there is no snapshot (raft.go). A majority may
    /// have lost its log; whose data are right nobody can tell from this end.
    NoSnapshotToSend,
    /// The volume is empty, but the peers know a member of this ID that has run (row 8; etcdserver/bootstrap.go).
    AlreadyBootstrapped,
    /// The guard: data that must be there are not (rows 4 and 7).
    DataLost,
    /// The guard: the data are older than what this member is known to have had (row 6).
    RolledBack,
    /// The guard: the volume, or the data on it, is somebody else's.
    ForeignVolume,
    /// The guard: another process holds the volume (row 20).
    VolumeInUse,
    /// The guard: the member's own name does not resolve to its Pod (row 27).
    NameUnresolved,
    /// The volume cannot be used, for a reason that is none of the disk's own: rights, or it is not there (the
    /// guard; etcdserver/bootstrap.go).
    VolumeUnwritable,
    /// The guard: the Pod's environment or command makes no sense.
    BadConfiguration,
    /// The member was removed from its cluster; etcd ends with 0 (row 10; etcdserver/server.go).
    MemberRemoved,
    /// Somebody's data differ, not necessarily this member's (row 14; etcdserver/corrupt.go).
    PeersDiffer,
    /// `--initial-cluster` is not the member list (row 9; membership/cluster.go).
    JoinStale,
    /// No peer tells the joining member who is in the cluster (row 9; etcdserver/cluster_util.go).
    PeersUnreachable,
    /// The disk is full (row 15).
    DiskFull,
    /// The disk fails, or is read-only (row 15).
    DiskBroken,
    /// etcd does not take its command line (row 21; Go's package flag, embed/config.go, config/config.go).
    BadFlags,
    /// The data, or the cluster, are of a newer minor (row 21; etcdserver/version, storage/schema). Also said to a
    /// joining member when no peer tells its version.
    VersionRefused,
    /// Memory ran out (row 25).
    OutOfMemory,
    /// A signal that nobody asked for through the kubelet.
    Killed {
        /// Its number.
        signal: i32,
    },
    /// None of the above.
    Unknown {
        /// The last thing that etcd said, if it said anything.
        line: Option<String>,
    },
}

/// What a failure by itself allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// A proven fault of this member's data on a volume that works: wiped and added anew in place.
    Wipe,
    /// The volume itself is unusable, or another's: replaced by a new one, and left as it is.
    Replace,
    /// It passes by itself, or is no fault of the data.
    Wait,
    /// A person decides.
    Ask,
}

const SIGTERM: i32 = 15;
const SIGINT: i32 = 2;
/// A shell's, and the guard's, exit code for an end by signal n is this much above n.
const SIGNALLED: i32 = 128;
const SIGNALS: RangeInclusive<i32> = 1..=64;

/// What etcd says when it ends because it was removed, by its own log or by a peer's word (etcdserver/server.go).
const REMOVED: &str = "data-dir used by this member must be removed";

/// Words of the disk, in etcd's lines as Go prints them and in the guard's sentences as Rust does. They come first:
/// a log that cannot be read is no damaged log.
const DISK: [(&str, Failure); 8] = [
    ("no space left on device", Failure::DiskFull),
    ("disk quota exceeded", Failure::DiskFull),
    ("(os error 28)", Failure::DiskFull),
    ("(os error 122)", Failure::DiskFull),
    ("input/output error", Failure::DiskBroken),
    ("read-only file system", Failure::DiskBroken),
    ("(os error 5)", Failure::DiskBroken),
    ("(os error 30)", Failure::DiskBroken),
];

/// Words of one line that settle the matter.
const WORDS: [(&str, Failure); 61] = [
    // Go's runtime, and mmap.
    ("fatal error: out of memory", Failure::OutOfMemory),
    ("fatal error: runtime: out of memory", Failure::OutOfMemory),
    ("fatal error: runtime: cannot allocate memory", Failure::OutOfMemory),
    ("cannot allocate memory", Failure::OutOfMemory),
    ("fatal error: fault", Failure::DatabaseUnreadable),
    ("[signal SIGBUS", Failure::DatabaseUnreadable),
    // raft/log.go, raft/raft.go.
    ("Was the raft log corrupted, truncated, or lost?", Failure::LogLost),
    ("state.commit ", Failure::LogLost),
    ("need non-empty snapshot", Failure::NoSnapshotToSend),
    // server/storage/wal: wal.go, decoder.go, walpb/record.go; read by etcdserver/bootstrap.go (3.5: storage.go).
    ("walpb: crc mismatch", Failure::WalDamaged),
    ("wal: crc mismatch", Failure::WalDamaged),
    ("wal: slice bounds out of range", Failure::WalDamaged),
    ("wal: conflicting metadata found", Failure::WalDamaged),
    ("wal: file not found", Failure::WalDamaged),
    ("wal: file sequence numbers", Failure::WalDamaged),
    ("wal: snapshot mismatch", Failure::WalDamaged),
    ("wal: snapshot not found", Failure::WalDamaged),
    ("unexpected block type", Failure::WalDamaged),
    ("max entry size limit exceeded", Failure::WalDamaged),
    (r#""error":"proto: "#, Failure::WalDamaged),
    ("failed to read WAL, cannot be repaired", Failure::WalDamaged),
    ("failed to repair WAL", Failure::WalDamaged),
    // bbolt: errors of Open, and panics of db.go, page.go, freelist.go, bucket.go, cursor.go, node.go.
    (r#""error":"invalid database""#, Failure::DatabaseDamaged),
    (r#""error":"version mismatch""#, Failure::DatabaseDamaged),
    (r#""error":"checksum error""#, Failure::DatabaseDamaged),
    (r#""error":"file size too small""#, Failure::DatabaseDamaged),
    ("freepages: failed to get all reachable pages", Failure::DatabaseDamaged),
    ("assertion failed: Page expected to be: ", Failure::DatabaseDamaged),
    ("has unexpected type/flags: ", Failure::DatabaseDamaged),
    ("invalid page type: ", Failure::DatabaseDamaged),
    ("invalid freelist page: ", Failure::DatabaseDamaged),
    (" already freed", Failure::DatabaseDamaged),
    (") above high water mark (", Failure::DatabaseDamaged),
    ("invalid meta pages", Failure::DatabaseDamaged),
    // etcdserver/bootstrap.go (3.5: server.go), storage/backend.go.
    (" of the backend is missing", Failure::DatabaseMissing),
    (" does not match with snapshot (index ", Failure::DatabaseBehind),
    ("failed to find database snapshot file", Failure::SnapshotMissing),
    (" has already been bootstrapped", Failure::AlreadyBootstrapped),
    ("cannot access data directory: ", Failure::VolumeUnwritable),
    ("cannot access member directory: ", Failure::VolumeUnwritable),
    ("cannot write to member directory: ", Failure::VolumeUnwritable),
    ("cannot write to WAL directory: ", Failure::VolumeUnwritable),
    // etcdserver/corrupt.go.
    (" found data inconsistency with peers", Failure::PeersDiffer),
    // etcdserver/bootstrap.go, api/membership/cluster.go; longer than the guard keeps, so by their beginning.
    ("error validating peerURLs ", Failure::JoinStale),
    ("cannot fetch cluster info from peer urls: ", Failure::PeersUnreachable),
    // Go's package flag, embed/config.go, config/config.go.
    ("flag provided but not defined: ", Failure::BadFlags),
    (r#"" for flag -"#, Failure::BadFlags),
    ("invalid boolean value ", Failure::BadFlags),
    ("flag needs an argument: ", Failure::BadFlags),
    ("bad flag syntax: ", Failure::BadFlags),
    (r#""msg":"failed to verify flags""#, Failure::BadFlags),
    (" but missing from --initial-", Failure::BadFlags),
    ("couldn't find local name ", Failure::BadFlags),
    (" has duplicate url", Failure::BadFlags),
    // etcdserver/version/downgrade.go, storage/schema/schema.go (which names a newer version), etcdserver/bootstrap.go.
    (r#""error":"version \""#, Failure::VersionRefused),
    ("invalid downgrade; ", Failure::VersionRefused),
    ("cannot downgrade storage, ", Failure::VersionRefused),
    ("cannot detect storage schema version: ", Failure::VersionRefused),
    ("cannot create migration plan: ", Failure::VersionRefused),
    ("incompatible with current running cluster", Failure::VersionRefused),
    // storage/mvcc/kvstore.go.
    ("failed to unmarshal mvccpb.KeyValue", Failure::DatabaseDamaged),
];

impl Failure {
    /// Sorts an end; `None`: it ended as it was told to.
    pub fn of(exit: &Exit<'_>) -> Option<Self> {
        let Exit { exit: code, signal, cause, sentence, lines, out_of_memory } = *exit;
        if let Some(cause) = cause {
            return Some(Self::of_cause(cause, sentence.unwrap_or_default()));
        }
        let signal = signal
            .or(code.map(|code| code.saturating_sub(SIGNALLED)).filter(|signal| SIGNALS.contains(signal)));
        let asked_to_end = matches!((signal, code), (Some(SIGTERM | SIGINT), _) | (None, Some(0)));
        if asked_to_end {
            return lines.iter().any(|line| line.contains(REMOVED)).then_some(Self::MemberRemoved);
        }
        if out_of_memory {
            return Some(Self::OutOfMemory);
        }
        let unsaid = || match (signal, code, lines) {
            (Some(signal), _, _) => Some(Self::Killed { signal }),
            (None, None, []) => None,
            (None, _, lines) => Some(Self::Unknown { line: last_word(lines) }),
        };
        Self::of_lines(lines).or_else(unsaid)
    }

    /// What the guard says, under its own names (guard/src/refusal.rs). A log that the disk does not give is damaged
    /// to the guard too, but another volume is what helps.
    fn of_cause(cause: &str, sentence: &str) -> Self {
        match cause {
            "WalDamaged" => find(&DISK, sentence).unwrap_or(Self::WalDamaged),
            "VolumeUnwritable" => find(&DISK, sentence).unwrap_or(Self::VolumeUnwritable),
            "DataLost" => Self::DataLost,
            "RolledBack" => Self::RolledBack,
            "ForeignVolume" => Self::ForeignVolume,
            "VolumeInUse" => Self::VolumeInUse,
            "NameUnresolved" => Self::NameUnresolved,
            "BadConfiguration" => Self::BadConfiguration,
            _ => Self::Unknown { line: Some(format!("{cause}: {sentence}")) },
        }
    }

    /// The newest line that is known decides: a Go panic repeats zap's line without its error.
    fn of_lines(lines: &[String]) -> Option<Self> {
        lines.iter().rev().find_map(|line| find(&DISK, line).or_else(|| find(&WORDS, line)))
    }

    /// One word for it, which stays the same for ever.
    pub fn name(&self) -> &'static str {
        match self {
            Self::WalDamaged => "WalDamaged",
            Self::DatabaseDamaged => "DatabaseDamaged",
            Self::DatabaseUnreadable => "DatabaseUnreadable",
            Self::DatabaseMissing => "DatabaseMissing",
            Self::DatabaseBehind => "DatabaseBehind",
            Self::SnapshotMissing => "SnapshotMissing",
            Self::LogLost => "LogLost",
            Self::NoSnapshotToSend => "NoSnapshotToSend",
            Self::AlreadyBootstrapped => "AlreadyBootstrapped",
            Self::DataLost => "DataLost",
            Self::RolledBack => "RolledBack",
            Self::ForeignVolume => "ForeignVolume",
            Self::VolumeInUse => "VolumeInUse",
            Self::NameUnresolved => "NameUnresolved",
            Self::VolumeUnwritable => "VolumeUnwritable",
            Self::BadConfiguration => "BadConfiguration",
            Self::MemberRemoved => "MemberRemoved",
            Self::PeersDiffer => "PeersDiffer",
            Self::JoinStale => "JoinStale",
            Self::PeersUnreachable => "PeersUnreachable",
            Self::DiskFull => "DiskFull",
            Self::DiskBroken => "DiskBroken",
            Self::BadFlags => "BadFlags",
            Self::VersionRefused => "VersionRefused",
            Self::OutOfMemory => "OutOfMemory",
            Self::Killed { .. } => "Killed",
            Self::Unknown { .. } => "Unknown",
        }
    }

    /// What it allows (design.md section 4). What else must hold before anything is done, a quorum without this
    /// member first of all, is the planner's to prove.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::WalDamaged
            | Self::DatabaseDamaged
            | Self::DatabaseMissing
            | Self::DatabaseBehind
            | Self::SnapshotMissing
            | Self::LogLost
            | Self::AlreadyBootstrapped
            | Self::DataLost
            | Self::RolledBack => Remedy::Wipe,
            // Whether the disk failed, a SIGBUS does not say; on a new volume both are healed.
            Self::DatabaseUnreadable | Self::DiskBroken | Self::ForeignVolume => Remedy::Replace,
            // The process that holds the volume ends, the name is published, the member list decides about a
            // removed member, a join is tried again with a new list, and memory is no matter of the data.
            Self::VolumeInUse
            | Self::NameUnresolved
            | Self::MemberRemoved
            | Self::JoinStale
            | Self::PeersUnreachable
            | Self::OutOfMemory
            | Self::Killed { .. } => Remedy::Wait,
            // "Somebody differs" does not say who (tried: one changed value in one member stopped a healthy one);
            // a full disk, flags and versions are the user's to choose.
            Self::PeersDiffer
            | Self::NoSnapshotToSend
            | Self::VolumeUnwritable
            | Self::BadConfiguration
            | Self::DiskFull
            | Self::BadFlags
            | Self::VersionRefused
            | Self::Unknown { .. } => Remedy::Ask,
        }
    }
}

fn find(table: &[(&str, Failure)], text: &str) -> Option<Failure> {
    table.iter().find(|(words, _)| text.contains(words)).map(|(_, failure)| failure.clone())
}

/// What etcd said that tells most: the newest line that is known, else the last.
pub fn telling(lines: &[String]) -> Option<String> {
    let known = |line: &&String| find(&DISK, line).or_else(|| find(&WORDS, line)).is_some();
    let line = lines.iter().rev().find(known).cloned().or_else(|| last_word(lines))?;
    Some(plain(&line).unwrap_or(line))
}

/// Message and error of a line of etcd's log, whose end the guard may have cut off.
fn plain(line: &str) -> Option<String> {
    let field = |name: &str| {
        let (_, rest) = line.split_once(&format!(r#""{name}":""#))?;
        let ends = |(at, _): &(usize, &str)| !rest.get(..*at).unwrap_or_default().ends_with('\\');
        let (end, _) = rest.match_indices('"').find(ends)?;
        Some(rest.get(..end)?.replace(r#"\""#, r#"""#))
    };
    let message = line.starts_with('{').then(|| field("msg")).flatten()?;
    Some(field("error").map_or(message.clone(), |error| format!("{message}: {error}")))
}

/// The last line; where a signal's numbers follow what was said, the line before them.
fn last_word(lines: &[String]) -> Option<String> {
    let spoken = |line: &&String| !line.starts_with("[signal ");
    lines.iter().rev().find(spoken).or(lines.last()).cloned()
}

#[cfg(test)]
mod tests {
    use super::telling;

    #[test]
    fn what_is_told_is_the_line_that_says_why() {
        // As a full disk ends etcd 3.6: what it says last does not name the disk.
        let lines = [
            r#"{"level":"panic","msg":"failed to save snapshot","error":"write \"x.snap\": no space left on device","stacktrace":"go.etcd"#,
            r#"{"level":"panic","msg":"execute job failed","job":"server_applyAll","panic":"failed to save snapshot","stacktr"#,
            "panic: failed to save snapshot [recovered]",
        ]
        .map(str::to_owned);
        let wanted = r#"failed to save snapshot: write "x.snap": no space left on device"#;
        assert_eq!(telling(&lines).as_deref(), Some(wanted));
        assert_eq!(telling(&lines[2..]).as_deref(), Some("panic: failed to save snapshot [recovered]"));
        assert_eq!(telling(&[]), None);
    }
}
