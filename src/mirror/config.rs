//! What a mirror is told to do: which keys, what becomes of leases, what a first sync may do, how large a batch is.
//!
//! [`Config`] is what decides which keys are where: it stands in the checkpoint as text, and a mirror that finds
//! another one there than it was started with scans both sides again.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::keyspace::{InvalidKeyspace, Keyspace, Mapping, OWN_KEYS, Side};
use super::transaction::Lease;

/// A mirror's name inside etcd: never a UID or a hash, so a re-created object is the same mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorId(String);

/// Longest name of a mirror: that of a Kubernetes label's value.
const MAX_ID_BYTES: usize = 63;

/// A name that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the mirror's id {0:?} cannot be used: 1 to 63 of the characters a-z, 0-9 and - are taken; choose another --id"
)]
pub struct InvalidId(String);

impl MirrorId {
    /// Checks a name.
    pub fn new(name: &str) -> Result<Self, InvalidId> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        // `claims` stands beside the mirrors' folders.
        let good = (1..=MAX_ID_BYTES).contains(&name.len()) && name.bytes().all(fits) && name != "claims";
        if good { Ok(Self(name.to_owned())) } else { Err(InvalidId(name.to_owned())) }
    }

    /// The key of that name among this mirror's own.
    pub fn key(&self, name: &str) -> Vec<u8> {
        [OWN_KEYS, self.0.as_bytes(), b"/", name.as_bytes()].concat()
    }

    /// The lease on which this mirror parks keys that have one in the source: the same for the same name.
    pub fn parking_lease(&self) -> i64 {
        let hash = Sha256::digest([b"quorate parking lease ", self.0.as_bytes()].concat());
        let id = hash.iter().take(8).fold(0_i64, |id, byte| id << 8 | i64::from(*byte));
        // etcd's own have the sign bit clear, too; 0 is none.
        (id & i64::MAX).max(1)
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The one key of all mirrors into a target.
pub fn claims_key() -> Vec<u8> {
    [OWN_KEYS, b"claims"].concat()
}

/// What becomes of keys with a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Leases {
    /// Copied without their lease, on one parking lease that does not end, so that a promotion finds them.
    #[default]
    Strip,
    /// Not copied.
    Skip,
    /// Copied with a lease of the same ID, which is kept alive for as long as the source has it.
    Recreate,
}

impl Leases {
    /// What becomes of the lease of a key that is copied; 0: it has none.
    pub fn of(self, id: i64) -> Lease {
        match (self, id) {
            (_, 0) => Lease::None,
            (Self::Recreate, id) => Lease::Same(id),
            (Self::Strip | Self::Skip, _) => Lease::Parking,
        }
    }

    /// The lease that a copy of a key has, by that of the key; 0: none.
    pub fn of_copy(self, id: i64, parking: i64) -> i64 {
        match self.of(id) {
            Lease::None => 0,
            Lease::Parking => parking,
            Lease::Same(id) => id,
        }
    }
}

/// Which keys are where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// Disjoint on both sides.
    pub mappings: Vec<Mapping>,
    /// Patterns of keys that are left alone.
    pub ignore: Vec<String>,
    /// By which name they are matched.
    pub ignore_at: Side,
    /// What becomes of keys with a lease.
    pub leases: Leases,
}

impl Config {
    /// The whole keyspace under the same names.
    pub fn whole() -> Self {
        let all = Mapping { source: String::new(), target: String::new() };
        Self { mappings: vec![all], ignore: Vec::new(), ignore_at: Side::Source, leases: Leases::Strip }
    }

    /// The same for the same meaning: mappings and patterns in order, each once.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.mappings.sort();
        self.mappings.dedup();
        self.ignore.sort();
        self.ignore.dedup();
        self
    }

    /// Mappings and patterns, ready to be asked.
    pub fn keyspace(&self) -> Result<Keyspace, InvalidKeyspace> {
        Keyspace::new(&self.mappings, &self.ignore, self.ignore_at)
    }

    /// Prefixes that it writes in the target.
    pub fn target_prefixes(&self) -> Vec<String> {
        self.mappings.iter().map(|mapping| mapping.target.clone()).collect()
    }
}

/// What may happen to keys of the target that no mirror has written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Those that differ from the source may be overwritten.
    pub overwrite: bool,
    /// Those that the source does not have may be deleted.
    pub prune: bool,
}

/// How much goes into one transaction. They shrink when the target refuses one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The target's `--max-txn-ops`, as far as is known: operations of one level.
    pub level: usize,
    /// Operations of a transaction of changes. 1,024 take 30 ms of etcd's apply loop, which serves nobody meanwhile.
    pub stream_operations: usize,
    /// Operations of a transaction of a scan, or of who is far behind: nobody waits for a change there.
    pub scan_operations: usize,
    /// Bytes of a transaction, keys and values and what carries them.
    pub bytes: usize,
    /// Bytes of one revision that is sent whole although it is above `bytes`: etcd's default limit is 1.5 MiB.
    pub hard_bytes: usize,
    /// Bytes of changes that wait; above them the source is not read.
    pub queue_bytes: usize,
    /// Keys of a page: as many as one transaction adds.
    pub page_keys: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            level: 128,
            stream_operations: 1024,
            scan_operations: 4032,
            bytes: 1 << 20,
            hard_bytes: 1_400_000,
            queue_bytes: 32 << 20,
            page_keys: 3969,
        }
    }
}

impl Limits {
    /// No transaction is larger than what may be written in a second.
    #[must_use]
    pub fn paced(self, keys: Option<u64>) -> Self {
        let most = keys.and_then(|keys| usize::try_from(keys.max(1)).ok()).unwrap_or(usize::MAX);
        Self {
            stream_operations: self.stream_operations.min(most),
            scan_operations: self.scan_operations.min(most),
            ..self
        }
    }
}

/// Revisions that pass without a change of mirrored keys before the checkpoint is moved for their sake alone: two
/// mirrors in opposite directions would else answer each other's checkpoints for ever.
pub const QUIET_REVISIONS: i64 = 500;

/// Deletes of a scan that need nobody's leave.
pub const FREE_DELETES: u64 = 1000;

/// A scan may delete so many of the target's keys unasked: a fifth, and a few in any case.
pub fn allowed_deletes(target_keys: u64) -> u64 {
    FREE_DELETES.max(target_keys / 5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::transaction::capacity;

    #[test]
    fn an_id_is_a_label() {
        assert_eq!(MirrorId::new("default").unwrap().key("owner"), b"/__quorate/mirror/default/owner");
        for bad in ["", "claims", "a/b", "A", &"a".repeat(64)] {
            assert!(MirrorId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_page_is_one_transaction() {
        let limits = Limits::default();
        assert_eq!(limits.page_keys, capacity(limits.level, true));
    }

    #[test]
    fn the_order_of_flags_does_not_matter() {
        let pattern = |text: &str| text.to_owned();
        let one = Config { ignore: vec![pattern("b"), pattern("a"), pattern("b")], ..Config::whole() };
        let other = Config { ignore: vec![pattern("a"), pattern("b")], ..Config::whole() };
        assert_eq!(one.in_order(), other.in_order());
    }
}
