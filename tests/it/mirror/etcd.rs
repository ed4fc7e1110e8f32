//! A model of one etcd as a mirror sees it: revisions, history, compaction, and transactions with etcd's own rules.
//!
//! Its rules are those of `research` on etcd 3.5 to 3.7: the operations of a level (checkTxnRequest), a key twice in
//! one transaction (checkIntervals), conditions on keys that do not exist (applyCompare), a delete of nothing that makes
//! no revision; a lease that must exist before a key is written with it, and takes its keys along in one revision.

use std::collections::{BTreeMap, BTreeSet};

use quorate::etcd::ClusterId;
use quorate::mirror::checkpoint::Identity;
use quorate::mirror::config::MirrorId;
use quorate::mirror::keyspace::Span;
use quorate::mirror::machine::Refusal;
use quorate::mirror::resync::{Entry, Page};
use quorate::mirror::transaction::{Answer, Guard, Lease, Node, Outcome, Stored, Transaction};

/// Ticks of a second.
const SECOND: u32 = 10;

/// A key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) bytes: Vec<u8>,
    /// 0: none.
    pub(super) lease: i64,
    pub(super) created: i64,
    pub(super) modified: i64,
}

/// One change in the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Happened {
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
    /// 0: none.
    pub(super) lease: i64,
}

/// A lease.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    /// How long it lives from its last renewal on.
    pub(super) seconds: u32,
    /// Ticks until it ends.
    left: u32,
}

pub(super) type Keys = BTreeMap<Vec<u8>, Value>;

#[derive(Clone, Debug)]
pub(super) struct Etcd {
    pub(super) identity: Identity,
    pub(super) revision: i64,
    pub(super) compacted: i64,
    pub(super) keys: Keys,
    pub(super) leases: BTreeMap<i64, Granted>,
    /// Keys that went with a lease, and were not written since.
    pub(super) lapsed: BTreeSet<Vec<u8>>,
    /// Changes of each revision, also of compacted ones: for the judge.
    pub(super) history: Vec<Vec<Happened>>,
    /// Whether the lease exists on which a mirror parks keys.
    pub(super) parking: bool,
    pub(super) max_operations: usize,
    pub(super) max_bytes: usize,
}

impl Etcd {
    pub(super) fn new(cluster: u64) -> Self {
        Self {
            identity: Identity { cluster: ClusterId(cluster), term: 2, applied: 4 },
            revision: 1,
            compacted: 0,
            keys: Keys::new(),
            leases: BTreeMap::new(),
            lapsed: BTreeSet::new(),
            history: vec![Vec::new(); 2],
            parking: false,
            max_operations: 128,
            max_bytes: 1 << 20,
        }
    }

    /// Writes and deletes in one revision; deletes of nothing make none.
    pub(super) fn write(&mut self, changes: Vec<Happened>) -> i64 {
        self.identity.applied += 1;
        let next = self.revision + 1;
        let mut happened = Vec::new();
        for change in changes {
            match &change.value {
                Some(value) => {
                    let created = self.keys.get(&change.key).map_or(next, |old| old.created);
                    let value = Value { bytes: value.clone(), lease: change.lease, created, modified: next };
                    self.lapsed.remove(&change.key);
                    self.keys.insert(change.key.clone(), value);
                    happened.push(change);
                }
                None if self.keys.remove(&change.key).is_some() => happened.push(change),
                None => {}
            }
        }
        if !happened.is_empty() {
            self.revision = next;
            self.history.push(happened);
        }
        self.revision
    }

    pub(super) fn compact(&mut self, revision: i64) {
        self.compacted = self.compacted.max(revision.min(self.revision));
    }

    pub(super) fn range(&self, span: &Span, limit: usize) -> Page {
        let inside = self.keys.range(span.start.clone()..).take_while(|(key, _)| span.contains(key));
        let mut entries: Vec<Entry> = inside
            .take(limit + 1)
            .map(|(key, value)| Entry {
                key: key.clone(),
                value: value.bytes.clone(),
                lease: value.lease,
                modified: value.modified,
            })
            .collect();
        let more = entries.len() > limit;
        entries.truncate(limit);
        Page { entries, revision: self.revision, more }
    }

    /// Changes of one revision inside of a span.
    pub(super) fn changes(&self, revision: i64, span: &Span) -> Vec<Happened> {
        let at = usize::try_from(revision).unwrap();
        let changes = self.history.get(at).into_iter().flatten();
        changes.filter(|change| span.contains(&change.key)).cloned().collect()
    }

    pub(super) fn stored(&self, key: &[u8]) -> Option<Stored> {
        self.keys.get(key).map(|value| Stored { value: value.bytes.clone(), modified: value.modified })
    }

    /// One that is there already stays as it is.
    pub(super) fn grant(&mut self, id: i64, seconds: u32) {
        self.leases.entry(id).or_insert(Granted { seconds, left: seconds * SECOND });
    }

    /// Begins a lease's life anew; its length, 0: there is none.
    pub(super) fn renew(&mut self, id: i64) -> u32 {
        self.leases.get_mut(&id).map_or(0, |lease| {
            lease.left = lease.seconds * SECOND;
            lease.seconds
        })
    }

    /// A lease ends, and its keys with it, in one revision.
    pub(super) fn revoke(&mut self, id: i64) {
        self.leases.remove(&id);
        let keys: Vec<Vec<u8>> =
            self.keys.iter().filter(|(_, value)| value.lease == id).map(|(key, _)| key.clone()).collect();
        let delete = |key: &Vec<u8>| Happened { key: key.clone(), value: None, lease: 0 };
        self.write(keys.iter().map(delete).collect());
        self.lapsed.extend(keys);
    }

    /// A tick passes; leases that have ended by it.
    pub(super) fn age(&mut self) -> Vec<i64> {
        self.leases.values_mut().for_each(|lease| lease.left = lease.left.saturating_sub(1));
        let ended: Vec<i64> =
            self.leases.iter().filter(|(_, lease)| lease.left == 0).map(|(id, _)| *id).collect();
        for id in &ended {
            self.revoke(*id);
        }
        ended
    }

    /// What the keys were at a revision, also a compacted one.
    pub(super) fn state_at(&self, revision: i64) -> BTreeMap<Vec<u8>, (Vec<u8>, i64)> {
        let mut state = BTreeMap::new();
        for change in self.history.iter().take(usize::try_from(revision).unwrap() + 1).flatten() {
            match &change.value {
                Some(value) => drop(state.insert(change.key.clone(), (value.clone(), change.lease))),
                None => drop(state.remove(&change.key)),
            }
        }
        state
    }

    pub(super) fn transact(&mut self, transaction: &Transaction) -> Result<Answer, Refusal> {
        if !fits(transaction, self.max_operations) {
            return Err(Refusal::TooManyOperations);
        }
        if bytes(transaction) > self.max_bytes {
            return Err(Refusal::TooLarge);
        }
        let (mut puts, mut deletes) = (BTreeSet::new(), BTreeSet::new());
        collect(&transaction.then, &mut puts, &mut deletes);
        if !self.has_leases(&transaction.then) {
            return Err(Refusal::NoLease);
        }
        let mut changes = Vec::new();
        let mut answer = self.run(transaction, &mut changes);
        answer.revision = self.write(changes);
        // Reads in a transaction see what it has written before them.
        fill(&mut answer, transaction, self);
        Ok(answer)
    }

    fn run(&self, transaction: &Transaction, changes: &mut Vec<Happened>) -> Answer {
        let succeeded = transaction.when.iter().all(|guard| self.holds(guard));
        let nodes = if succeeded { &transaction.then } else { &transaction.otherwise };
        let mut results = Vec::new();
        for node in nodes {
            results.push(match node {
                Node::Put { key, value, lease } => {
                    let lease = match lease {
                        Lease::None => 0,
                        Lease::Parking => parking(),
                        Lease::Same(id) => *id,
                    };
                    changes.push(Happened { key: key.clone(), value: Some(value.clone()), lease });
                    Outcome::Written
                }
                Node::Delete(key) => {
                    changes.push(Happened { key: key.clone(), value: None, lease: 0 });
                    Outcome::Written
                }
                Node::Get(_) => Outcome::Read(None),
                Node::Nested(nested) => Outcome::Nested(self.run(nested, changes)),
            });
        }
        Answer { revision: 0, succeeded, results }
    }

    fn has_leases(&self, nodes: &[Node]) -> bool {
        nodes.iter().all(|node| match node {
            Node::Put { lease: Lease::Parking, .. } => self.parking,
            Node::Put { lease: Lease::Same(id), .. } => self.leases.contains_key(id),
            Node::Nested(nested) => self.has_leases(&nested.then),
            Node::Put { lease: Lease::None, .. } | Node::Delete(_) | Node::Get(_) => true,
        })
    }

    pub(super) fn holds(&self, guard: &Guard) -> bool {
        match guard {
            Guard::Value(key, value) => self.keys.get(key).is_some_and(|stored| stored.bytes == *value),
            Guard::Created(key, revision) => {
                self.keys.get(key).map_or(0, |stored| stored.created) == *revision
            }
            Guard::Modified(key, revision) => {
                self.keys.get(key).map_or(0, |stored| stored.modified) == *revision
            }
            Guard::Vacant(start, end) => self.keys.range(start.clone()..end.clone()).next().is_none(),
        }
    }
}

/// The lease on which the mirror parks keys.
pub(super) fn parking() -> i64 {
    MirrorId::new("default").unwrap().parking_lease()
}

fn fill(answer: &mut Answer, transaction: &Transaction, etcd: &Etcd) {
    let nodes = if answer.succeeded { &transaction.then } else { &transaction.otherwise };
    for (result, node) in answer.results.iter_mut().zip(nodes) {
        if let Node::Get(key) = node {
            *result = Outcome::Read(etcd.stored(key));
        }
    }
}

fn fits(transaction: &Transaction, most: usize) -> bool {
    let own = transaction.when.len().max(transaction.then.len()).max(transaction.otherwise.len());
    let nested = transaction.then.iter().chain(&transaction.otherwise).all(|node| match node {
        Node::Nested(nested) => own <= most && fits(nested, most - own),
        Node::Put { .. } | Node::Delete(_) | Node::Get(_) => true,
    });
    own <= most && nested
}

fn bytes(transaction: &Transaction) -> usize {
    let node = |node: &Node| match node {
        Node::Put { key, value, .. } => key.len() + value.len() + 12,
        Node::Delete(key) | Node::Get(key) => key.len() + 8,
        Node::Nested(nested) => bytes(nested) + 8,
    };
    let guard = |guard: &Guard| match guard {
        Guard::Value(key, value) => key.len() + value.len() + 8,
        Guard::Created(key, _) | Guard::Modified(key, _) => key.len() + 12,
        Guard::Vacant(start, end) => start.len() + end.len() + 12,
    };
    let nodes = transaction.then.iter().chain(&transaction.otherwise);
    transaction.when.iter().map(guard).sum::<usize>() + nodes.map(node).sum::<usize>()
}

/// etcd refuses a transaction that puts a key twice, or puts and deletes it. Ours never have one: it is a defect.
fn collect(nodes: &[Node], puts: &mut BTreeSet<Vec<u8>>, deletes: &mut BTreeSet<Vec<u8>>) {
    for node in nodes {
        match node {
            Node::Put { key, .. } => {
                let new = puts.insert(key.clone());
                assert!(new && !deletes.contains(key), "duplicate key given in txn request");
            }
            Node::Delete(key) => {
                assert!(!puts.contains(key), "duplicate key given in txn request");
                deletes.insert(key.clone());
            }
            Node::Nested(nested) => collect(&nested.then, puts, deletes),
            Node::Get(_) => {}
        }
    }
}
