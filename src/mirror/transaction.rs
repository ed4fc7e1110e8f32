//! Transactions as plain data, and how many operations fit into one.
//!
//! etcd checks `--max-txn-ops` level by level: what is nested in a level of `n` operations may have `max - n`. So a
//! transaction of transactions holds thousands of operations under the default limit of 128, and is one revision.

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The key has this value; false if there is no such key.
    Value(Vec<u8>, Vec<u8>),
    /// The key was created at this revision; 0: there is none.
    Created(Vec<u8>, i64),
    /// The key was last changed at this revision; 0: there is none.
    Modified(Vec<u8>, i64),
    /// There is no key from the first one to the second, which is not included. etcd compares each key of a range, and
    /// one that is all zero if there is none (server/etcdserver/apply, `applyCompare`).
    Vacant(Vec<u8>, Vec<u8>),
}

/// The lease of a key that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// It has none.
    None,
    /// The mirror's parking lease.
    Parking,
    /// The one with the same ID as in the source.
    Same(i64),
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// Writes a key.
    Put {
        /// Its name.
        key: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
        /// With which lease.
        lease: Lease,
    },
    /// Deletes a key; nothing happens if there is none.
    Delete(Vec<u8>),
    /// Reads a key.
    Get(Vec<u8>),
    /// A transaction in the transaction.
    Nested(Transaction),
}

/// What is sent to the target as one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub when: Vec<Guard>,
    /// Done if they do.
    pub then: Vec<Node>,
    /// Done if not.
    pub otherwise: Vec<Node>,
}

/// What the target answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The target's revision afterwards.
    pub revision: i64,
    /// Whether the conditions held.
    pub succeeded: bool,
    /// One for each operation that was done.
    pub results: Vec<Outcome>,
}

/// Of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Of a put or a delete.
    Written,
    /// Of a read.
    Read(Option<Stored>),
    /// Of a transaction in it.
    Nested(Answer),
}

/// A key of ours, as it is in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its value.
    pub value: Vec<u8>,
    /// When it was last changed.
    pub modified: i64,
}

/// A change of one key of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Whatever was there.
    Put {
        /// Name in the target.
        key: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
        /// With which lease.
        lease: Lease,
    },
    /// Only if there is no such key.
    Add {
        /// Name in the target.
        key: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
        /// With which lease.
        lease: Lease,
    },
    /// Whether it was there or not.
    Delete(Vec<u8>),
}

/// What carries a key and a value in a request: tags and lengths of at most four messages around them.
const CARRIER_BYTES: usize = 32;

impl Op {
    /// Its key.
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Put { key, .. } | Self::Add { key, .. } | Self::Delete(key) => key,
        }
    }

    /// At least as many bytes as it has in a request.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.len() + value.len() + CARRIER_BYTES,
            // Its key stands in the condition, too.
            Self::Add { key, value, .. } => 2 * (key.len() + CARRIER_BYTES) + value.len(),
            Self::Delete(key) => key.len() + CARRIER_BYTES,
        }
    }

    /// The lease that it needs.
    pub fn lease(&self) -> Lease {
        match self {
            Self::Put { lease, .. } | Self::Add { lease, .. } => *lease,
            Self::Delete(_) => Lease::None,
        }
    }

    /// The same without a condition of its own.
    #[must_use]
    pub fn unconditional(self) -> Self {
        match self {
            Self::Add { key, value, lease } => Self::Put { key, value, lease },
            Self::Put { .. } | Self::Delete(_) => self,
        }
    }

    fn node(self) -> Node {
        match self {
            Self::Put { key, value, lease } => Node::Put { key, value, lease },
            Self::Delete(key) => Node::Delete(key),
            Self::Add { key, value, lease } => Node::Nested(Transaction {
                when: vec![Guard::Created(key.clone(), 0)],
                then: vec![Node::Put { key, value, lease }],
                otherwise: Vec::new(),
            }),
        }
    }
}

/// Operations beside the data on the top level: the checkpoint.
const RESERVED: usize = 1;

/// The least `--max-txn-ops` that leaves room for three conditions. To begin takes more.
pub const LEAST_LEVEL: usize = 3;

/// How many changes fit into one transaction under a target's `--max-txn-ops`. Adding takes one level more.
pub fn capacity(level: usize, adding: bool) -> usize {
    let (groups, size) = shape(level, adding);
    (groups * size).max(flat(level, adding)).max(1)
}

/// How many fit without groups.
fn flat(level: usize, adding: bool) -> usize {
    level.saturating_sub(RESERVED + usize::from(adding))
}

/// How many groups, and how many operations in each.
fn shape(level: usize, adding: bool) -> (usize, usize) {
    let both = flat(level, adding);
    (both / 2, both - both / 2)
}

/// Changes as operations of a transaction that has one more on its top level.
pub fn nest(ops: Vec<Op>, level: usize) -> Vec<Node> {
    let adding = ops.iter().any(|op| matches!(op, Op::Add { .. }));
    let mut nodes = ops.into_iter().map(Op::node);
    if nodes.len() <= flat(level, adding) {
        return nodes.collect();
    }
    let (_, size) = shape(level, adding);
    let mut groups = Vec::new();
    while nodes.len() > 0 {
        let then = nodes.by_ref().take(size.max(1)).collect();
        groups.push(Node::Nested(Transaction { then, ..Transaction::default() }));
    }
    groups
}

impl Answer {
    /// How many conditional puts found that somebody else had made the key.
    pub fn refused_adds(&self) -> usize {
        let nested = self.results.iter().map(|result| match result {
            Outcome::Nested(answer) if answer.succeeded => answer.refused_adds(),
            Outcome::Nested(_) => 1,
            Outcome::Written | Outcome::Read(_) => 0,
        });
        nested.sum()
    }

    /// The keys that it read, in their order.
    pub fn read(&self) -> Vec<Option<Stored>> {
        let read = self.results.iter().filter_map(|result| match result {
            Outcome::Read(stored) => Some(stored.clone()),
            Outcome::Written | Outcome::Nested(_) => None,
        });
        read.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// etcd's own check (server/etcdserver/api/v3rpc/key.go, checkTxnRequest), with the conditions of ours.
    fn accepted(nodes: &[Node], limit: usize) -> bool {
        let own = nodes.len();
        own <= limit
            && nodes.iter().all(|node| match node {
                Node::Nested(nested) => accepted(&nested.then, limit - own),
                Node::Put { .. } | Node::Delete(_) | Node::Get(_) => true,
            })
    }

    fn ops(count: usize, adding: bool) -> Vec<Op> {
        let op = |number: usize| {
            let key = number.to_string().into_bytes();
            if adding { Op::Add { key, value: Vec::new(), lease: Lease::None } } else { Op::Delete(key) }
        };
        (0..count).map(op).collect()
    }

    #[test]
    fn as_many_as_fit_are_taken_by_etcd_and_not_one_more() {
        assert_eq!((capacity(128, false), capacity(128, true), capacity(16, false)), (4032, 3969, 56));
        for (level, adding) in
            [3_usize, 4, 5, 16, 127, 128, 500].into_iter().flat_map(|level| [(level, false), (level, true)])
        {
            for count in [1, flat(level, adding).max(1), capacity(level, adding)] {
                let mut nodes = nest(ops(count, adding), level);
                nodes.push(Node::Delete(b"checkpoint".to_vec()));
                assert!(accepted(&nodes, level), "{count} under {level}, adding: {adding}");
            }
            let mut nodes = nest(ops(capacity(level, adding) + 1, adding), level);
            nodes.push(Node::Delete(b"checkpoint".to_vec()));
            assert!(!accepted(&nodes, level), "{level}, adding: {adding}");
        }
    }

    #[test]
    fn an_answer_tells_how_many_keys_were_there_already() {
        let leaf =
            |succeeded| Outcome::Nested(Answer { revision: 1, succeeded, results: vec![Outcome::Written] });
        let group =
            Answer { revision: 1, succeeded: true, results: vec![leaf(true), leaf(false), leaf(false)] };
        let answer = Answer {
            revision: 1,
            succeeded: true,
            results: vec![Outcome::Nested(group), Outcome::Read(None), Outcome::Written],
        };
        assert_eq!((answer.refused_adds(), answer.read()), (2, vec![None]));
    }
}
