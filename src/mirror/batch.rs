//! Changes of the source as changes of the target, as many whole revisions as one transaction may hold.
//!
//! Within a batch only the last change of a key is kept: etcd refuses a transaction that puts a key twice, and takes
//! one that puts and deletes it, in an order of its own. So each revision of the target shows one of the source.

use std::collections::VecDeque;

use super::config::{Leases, Limits};
use super::keyspace::{Fate, Keyspace};
use super::transaction::{Op, capacity};

/// A change of a mirrored key of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name in the source.
    pub key: Vec<u8>,
    /// Its new value; absent: it was deleted.
    pub value: Option<Vec<u8>>,
    /// Its lease there; 0: none.
    pub lease: i64,
}

/// A whole revision of the source, with the changes of mirrored keys in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// Its number.
    pub revision: i64,
    /// In their order.
    pub changes: Vec<Change>,
}

/// What one transaction carries, and where the target stands after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// One a key.
    pub ops: Vec<Op>,
    /// How many of the waiting revisions are done with it, wholly.
    pub done: usize,
    /// The last revision that it touches.
    pub revision: i64,
    /// How many changes of that revision are done, if not all.
    pub offset: usize,
}

/// What carries a change in memory: a tag, lengths, three allocations.
const CHANGE_BYTES: usize = 96;

impl Change {
    /// About how much memory it takes.
    pub fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Vec::len) + CHANGE_BYTES
    }

    /// The change of the target.
    pub fn op(&self, keyspace: &Keyspace, leases: Leases) -> Option<Op> {
        let Fate::Mirrored(key) = keyspace.of_source(&self.key) else { return None };
        let kept = self.value.as_ref().filter(|_| self.lease == 0 || leases != Leases::Skip);
        Some(match kept {
            Some(value) => Op::Put { key, value: value.clone(), lease: leases.of(self.lease) },
            None => Op::Delete(key),
        })
    }
}

impl Revision {
    fn ops(&self, keyspace: &Keyspace, leases: Leases) -> Vec<Op> {
        self.changes.iter().filter_map(|change| change.op(keyspace, leases)).collect()
    }
}

/// The last change of each key, in the order of target keys.
fn last_of_each(mut ops: Vec<Op>) -> Vec<Op> {
    // It leaves those of one key as they came.
    ops.sort_by(|one, other| one.key().cmp(other.key()));
    ops.dedup_by(|later, kept| {
        let same = later.key() == kept.key();
        if same {
            std::mem::swap(later, kept);
        }
        same
    });
    ops
}

/// The next batch. `offset` is that of the checkpoint: so many changes of the first revision are done.
pub fn gather(
    waiting: &VecDeque<Revision>,
    offset: usize,
    keyspace: &Keyspace,
    leases: Leases,
    limits: &Limits,
) -> Batch {
    let Some(first) = waiting.front() else { return Batch::default() };
    let ops = last_of_each(first.ops(keyspace, leases));
    let whole = capacity(limits.level, false);
    let mut size = bytes(&ops);
    if offset > 0 || ops.len() > whole || size > limits.hard_bytes {
        return part(first.revision, ops, offset, limits);
    }
    // Who has more than that to write is behind, and nobody waits for a change that has just been made.
    let behind = waiting.len() > limits.stream_operations;
    let most = if behind { limits.scan_operations } else { limits.stream_operations }.min(whole);
    let mut batch = Batch { ops, done: 1, revision: first.revision, offset: 0 };
    for revision in waiting.iter().skip(1) {
        let next = revision.ops(keyspace, leases);
        // What is changed again and again is counted each time: rather too few than too many.
        size += bytes(&next);
        if size > limits.bytes || !has_room(&mut batch.ops, next.len(), most) {
            break;
        }
        batch.ops.extend(next);
        batch.done += 1;
        batch.revision = revision.revision;
    }
    batch.ops = last_of_each(batch.ops);
    batch
}

/// Whether so many more fit in. What is full of changes of few keys is not full, and to find that out pays if it makes
/// room for as many again.
fn has_room(ops: &mut Vec<Op>, more: usize, most: usize) -> bool {
    if ops.len() + more <= most {
        return true;
    }
    *ops = last_of_each(std::mem::take(ops));
    ops.len() <= most / 2 && ops.len() + more <= most
}

/// A piece of a revision that no transaction can hold. Sorted by key, so that the count alone says what is done.
fn part(revision: i64, ops: Vec<Op>, offset: usize, limits: &Limits) -> Batch {
    let most = limits.stream_operations.min(capacity(limits.level, false));
    let mut size = 0;
    let mut rest = ops.into_iter().skip(offset).peekable();
    let mut ops = Vec::new();
    while let Some(op) = rest.peek() {
        size += op.bytes();
        if !ops.is_empty() && (ops.len() == most || size > limits.bytes) {
            break;
        }
        ops.extend(rest.next());
    }
    let (done, offset) = if rest.peek().is_some() { (0, offset + ops.len()) } else { (1, 0) };
    Batch { ops, done, revision, offset }
}

/// How many of these one transaction of a scan takes.
pub fn fitting<'a>(ops: impl Iterator<Item = &'a Op>, limits: &Limits) -> usize {
    let (mut count, mut size, mut adding) = (0, 0, false);
    for op in ops {
        size += op.bytes();
        adding |= matches!(op, Op::Add { .. });
        let most = limits.scan_operations.min(capacity(limits.level, adding));
        if count > 0 && (count + 1 > most || size > limits.bytes) {
            break;
        }
        count += 1;
    }
    count
}

fn bytes(ops: &[Op]) -> usize {
    ops.iter().map(Op::bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::config::Config;
    use crate::mirror::transaction::Lease;

    fn put(key: &str, value: &str) -> Change {
        Change { key: key.into(), value: Some(value.into()), lease: 0 }
    }

    fn delete(key: &str) -> Change {
        Change { key: key.into(), value: None, lease: 0 }
    }

    fn waiting(revisions: &[(i64, Vec<Change>)]) -> VecDeque<Revision> {
        let revision = |(revision, changes): &(i64, Vec<Change>)| Revision {
            revision: *revision,
            changes: changes.clone(),
        };
        revisions.iter().map(revision).collect()
    }

    fn gathered(
        waiting: &VecDeque<Revision>,
        offset: usize,
        limits: Limits,
    ) -> (Vec<String>, usize, i64, usize) {
        let keyspace = Config::whole().keyspace().unwrap();
        let batch = gather(waiting, offset, &keyspace, Leases::Strip, &limits);
        let shown = batch.ops.iter().map(|op| match op {
            Op::Put { key, value, .. } => {
                format!("{}={}", String::from_utf8_lossy(key), String::from_utf8_lossy(value))
            }
            Op::Delete(key) => format!("-{}", String::from_utf8_lossy(key)),
            Op::Add { key, .. } => format!("+{}", String::from_utf8_lossy(key)),
        });
        (shown.collect(), batch.done, batch.revision, batch.offset)
    }

    #[test]
    fn only_the_last_change_of_a_key_is_sent() {
        let waiting = waiting(&[
            (5, vec![put("a", "1"), put("b", "1"), delete("b")]),
            (7, vec![delete("a")]),
            (9, vec![put("a", "2")]),
        ]);
        let (ops, done, revision, offset) = gathered(&waiting, 0, Limits::default());
        assert_eq!((ops.join(" ").as_str(), done, revision, offset), ("a=2 -b", 3, 9, 0));
    }

    #[test]
    fn a_key_that_is_changed_all_the_time_takes_the_room_of_one() {
        let limits = Limits { stream_operations: 4, scan_operations: 4, ..Limits::default() };
        let many: Vec<_> = (0..100).map(|number| (number, vec![put("a", &number.to_string())])).collect();
        let (ops, done, revision, _) = gathered(&waiting(&many), 0, limits);
        assert_eq!((ops.join(" ").as_str(), done, revision), ("a=99", 100, 99));
        let mut others = many[..7].to_vec();
        others.extend(["c", "b", "d", "e"].map(|key| (100, vec![put(key, "1")])));
        let (ops, done, ..) = gathered(&waiting(&others), 0, limits);
        assert_eq!((ops.join(" ").as_str(), done), ("a=6 b=1 c=1 d=1", 10));
    }

    #[test]
    fn a_batch_ends_with_a_revision() {
        let waiting = waiting(&[
            (5, vec![put("a", "1"), put("b", "1")]),
            (6, vec![put("c", "1"), put("d", "1")]),
            (7, vec![put("e", "1")]),
        ]);
        let limits = Limits { stream_operations: 3, ..Limits::default() };
        let (ops, done, revision, _) = gathered(&waiting, 0, limits);
        assert_eq!((ops.join(" ").as_str(), done, revision), ("a=1 b=1", 1, 5));
        let limits = Limits { stream_operations: 1, scan_operations: 1, ..Limits::default() };
        let whole = gathered(&waiting, 0, limits).0.len();
        assert_eq!(whole, 2, "a revision that fits one transaction is not divided");
    }

    #[test]
    fn who_is_behind_writes_as_much_at_once_as_a_scan() {
        let waiting = waiting(&[
            (5, vec![put("a", "1")]),
            (6, vec![put("b", "1")]),
            (7, vec![put("c", "1")]),
            (8, vec![put("d", "1")]),
        ]);
        let done = |stream_operations| {
            let limits = Limits { stream_operations, scan_operations: 3, ..Limits::default() };
            gathered(&waiting, 0, limits).1
        };
        assert_eq!([2, 4].map(done), [3, 4], "four wait");
    }

    #[test]
    fn a_revision_that_no_transaction_holds_is_sent_in_counted_parts() {
        let changes: Vec<Change> = (0..9).map(|number| put(&number.to_string(), "x")).collect();
        let waiting = waiting(&[(5, changes), (6, vec![put("z", "1")])]);
        let limits = Limits { level: 4, stream_operations: 1024, ..Limits::default() };
        let (mut offset, mut sent) = (0, Vec::new());
        loop {
            let (ops, done, revision, next) = gathered(&waiting, offset, limits);
            assert_eq!(revision, 5);
            sent.extend(ops);
            if done == 1 {
                assert_eq!(next, 0);
                break;
            }
            assert!(next > offset);
            offset = next;
        }
        assert_eq!(sent, (0..9).map(|number| format!("{number}=x")).collect::<Vec<_>>());
    }

    #[test]
    fn a_key_with_a_lease_is_parked_or_left_out_or_gets_the_same_one() {
        let change = Change { lease: 7, ..put("a", "1") };
        let keyspace = Config::whole().keyspace().unwrap();
        let lease = |leases| change.op(&keyspace, leases).unwrap().lease();
        assert_eq!((lease(Leases::Strip), lease(Leases::Recreate)), (Lease::Parking, Lease::Same(7)));
        assert_eq!(put("a", "1").op(&keyspace, Leases::Recreate).unwrap().lease(), Lease::None);
        assert_eq!(change.op(&keyspace, Leases::Skip), Some(Op::Delete(b"a".to_vec())));
    }
}
