//! How fast a mirror may write, so that it leaves room for others on a thin line or a slow disk.

use std::time::{Duration, Instant};

use super::transaction::{Node, Transaction};

/// Keys and bytes a second; absent: as fast as both sides can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Keys that are put or deleted.
    pub keys: Option<u64>,
    /// Bytes of them.
    pub bytes: Option<u64>,
}

/// Says how long a transaction has to wait for those before it.
#[derive(Clone, Debug)]
pub(super) struct Pacer {
    pace: Pace,
    free_at: Option<Instant>,
}

impl Pacer {
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, free_at: None }
    }

    /// The wait of a transaction that is ready at `now`.
    pub(super) fn wait(&mut self, transaction: &Transaction, now: Instant) -> Duration {
        let (keys, bytes) = size(&transaction.then);
        let share = |amount: u64, rate: Option<u64>| {
            let rate = rate.filter(|rate| *rate > 0);
            rate.map_or(Duration::ZERO, |rate| Duration::from_millis(amount.saturating_mul(1000) / rate))
        };
        let begin = self.free_at.map_or(now, |free| free.max(now));
        self.free_at = Some(begin + share(keys, self.pace.keys).max(share(bytes, self.pace.bytes)));
        begin.duration_since(now)
    }
}

fn size(nodes: &[Node]) -> (u64, u64) {
    nodes.iter().fold((0, 0), |(keys, bytes), node| {
        let (more, larger) = match node {
            Node::Put { key, value, .. } => (1, (key.len() + value.len()) as u64),
            Node::Delete(key) => (1, key.len() as u64),
            Node::Get(_) => (0, 0),
            Node::Nested(nested) => size(&nested.then),
        };
        (keys + more, bytes + larger)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::transaction::Lease;

    fn puts(keys: usize) -> Transaction {
        let put = |number| Node::Put { key: vec![number], value: vec![0; 9], lease: Lease::None };
        let puts = (0..u8::try_from(keys).unwrap()).map(put).collect();
        let nested = Transaction { then: puts, ..Transaction::default() };
        Transaction { then: vec![Node::Nested(nested)], ..Transaction::default() }
    }

    #[test]
    fn what_was_sent_sets_when_the_next_may_be() {
        let now = Instant::now();
        let mut pacer = Pacer::new(Pace { keys: Some(100), bytes: None });
        assert_eq!(pacer.wait(&puts(50), now), Duration::ZERO);
        assert_eq!(pacer.wait(&puts(10), now), Duration::from_millis(500));
        assert_eq!(pacer.wait(&puts(10), now + Duration::from_secs(9)), Duration::ZERO);
        let mut bytes = Pacer::new(Pace { keys: Some(1_000_000), bytes: Some(100) });
        assert_eq!(bytes.wait(&puts(20), now), Duration::ZERO);
        assert_eq!(bytes.wait(&puts(1), now), Duration::from_secs(2), "the tighter limit counts");
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let now = Instant::now();
        let mut pacer = Pacer::new(Pace::default());
        for _ in 0..3 {
            assert_eq!(pacer.wait(&puts(200), now), Duration::ZERO);
        }
    }
}
