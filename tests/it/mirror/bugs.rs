//! Mirrors that break an invariant, made out of the good one: wrappers around what the machine hears and what it says.
//! The search must find each, or its judge guards nothing. Each is one that a mirror has had, or was designed to have
//! (`mirror-review.md`).

use quorate::mirror::assembler::{Response, STREAM};
use quorate::mirror::checkpoint::Identity;
use quorate::mirror::config::{Config, Leases, MirrorId};
use quorate::mirror::keyspace::Fate;
use quorate::mirror::machine::{Command, Event, Look, Sample};
use quorate::mirror::resync::Page;
use quorate::mirror::transaction::{Answer, Guard, Node, Transaction};

use super::etcd::Etcd;
use super::pair::put_of;

/// A way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    None,
    HeaderIsProgress,
    CheckpointAlone,
    WithinARevision,
    OldPage,
    NoCompareOnRetry,
    IgnoredKeys,
    SilenceIsSuccess,
    OneLate,
    NeverRewound,
    AddUnasked,
    VacantUnasked,
    CompactionUnseen,
    ForeignUnseen,
    GrantSkipped,
    NotKept,
    LossUnseen,
    ForgottenEarly,
    LeaseOrNone,
}

pub(super) const ALL: [(Bug, &str); 18] = [
    (Bug::HeaderIsProgress, "the header of an answer with events is believed as progress"),
    (Bug::CheckpointAlone, "the checkpoint is a transaction of its own"),
    (Bug::WithinARevision, "fragments are taken for whole answers, so a batch ends within a revision"),
    (Bug::OldPage, "changes that a page holds already are applied after it"),
    (Bug::NoCompareOnRetry, "a transaction is repeated without its conditions"),
    (Bug::IgnoredKeys, "a scan knows no ignore patterns"),
    (Bug::SilenceIsSuccess, "no answer is taken for a good one"),
    (Bug::OneLate, "a watch begins one revision too late"),
    (Bug::NeverRewound, "a source that was set back is taken for the same"),
    (Bug::AddUnasked, "keys are added whether they are there or not"),
    (Bug::VacantUnasked, "where there was nothing it is believed that there is still nothing"),
    (Bug::CompactionUnseen, "after a compaction the watch goes on at the oldest revision that is left"),
    (Bug::ForeignUnseen, "others' writes are looked for and not found"),
    (Bug::GrantSkipped, "a lease is believed to be granted, and is not"),
    (Bug::NotKept, "leases are not kept alive in the target"),
    (Bug::LossUnseen, "a lease that has ended in the target is believed to live"),
    (Bug::ForgottenEarly, "leases are forgotten although the source has them"),
    (Bug::LeaseOrNone, "of a key's lease it is compared only whether it has one"),
];

impl Bug {
    /// Which keys the machine believes are where.
    pub(super) fn keyspace(self, config: &Config) -> Config {
        if self == Self::IgnoredKeys {
            return Config { ignore: Vec::new(), ..config.clone() };
        }
        config.clone()
    }

    /// What the machine hears.
    pub(super) fn events(self, event: Event) -> Vec<Event> {
        match (self, event) {
            (Self::HeaderIsProgress, Event::Watched(number, response)) if !response.events.is_empty() => {
                let progress = Response { watcher: STREAM, events: Vec::new(), ..response.clone() };
                vec![Event::Watched(number, response), Event::Watched(number, progress)]
            }
            (Self::WithinARevision, Event::Watched(number, response)) => {
                vec![Event::Watched(number, Response { fragment: false, ..response })]
            }
            (Self::OldPage, Event::SourcePage(number, mut page)) => {
                page.revision = (page.revision - 2).max(1);
                vec![Event::SourcePage(number, page)]
            }
            (Self::NeverRewound, Event::Sample(sample)) => {
                let identity = Identity { term: 9, applied: 1 << 40, ..sample.identity };
                vec![Event::Sample(Sample { identity, head: i64::MAX / 2, ..sample })]
            }
            (Self::CompactionUnseen, Event::Watched(number, mut response)) => {
                // The machine believes that all before is known.
                match response.canceled.take() {
                    Some(canceled) => {
                        let head = canceled.compacted - 1;
                        let progress = Response { created: false, watcher: STREAM, head, ..response.clone() };
                        let created = Response { created: true, ..response };
                        let heard = [created, progress].map(|response| Event::Watched(number, response));
                        heard.into_iter().chain([Event::WatchEnded(number)]).collect()
                    }
                    None => vec![Event::Watched(number, response)],
                }
            }
            (Self::ForeignUnseen, Event::Looked(number, _)) => vec![Event::Looked(number, Look::default())],
            (_, event) => vec![event],
        }
    }

    /// What it sees of leases in the target.
    pub(super) fn leases_of(self, page: &mut Page, source: &Etcd, config: &Config) {
        if self != Self::LeaseOrNone || config.leases != Leases::Recreate {
            return;
        }
        let keyspace = config.keyspace().unwrap();
        for entry in page.entries.iter_mut().filter(|entry| entry.lease != 0) {
            if let Fate::Mirrored(key) = keyspace.of_target(&entry.key)
                && let Some(value) = source.keys.get(&key).filter(|value| value.lease != 0)
            {
                entry.lease = value.lease;
            }
        }
    }

    /// How often an answer or a request is lost: more often where only the one that adds keys shows the bug.
    pub(super) fn loses(self) -> f64 {
        if self == Self::SilenceIsSuccess { 0.2 } else { 0.03 }
    }

    /// What it hears when an answer is lost.
    pub(super) fn silence(self, command: &Command, silent: Event) -> Event {
        match (self, command) {
            (Self::SilenceIsSuccess, Command::Commit(_)) => {
                Event::Committed(Answer { revision: 0, succeeded: true, results: Vec::new() })
            }
            _ => silent,
        }
    }

    /// Where its watches begin.
    pub(super) fn watch_from(self, from: i64) -> i64 {
        from + i64::from(self == Self::OneLate)
    }

    /// What of a transaction reaches the target.
    pub(super) fn transactions(self, transaction: Transaction, again: bool) -> Vec<Transaction> {
        let key = MirrorId::new("default").unwrap().key("checkpoint");
        if self == Self::CheckpointAlone && put_of(&transaction.then, &key).is_some() {
            let (last, data) = (transaction.then.len() - 1, transaction.when.clone());
            let mut nodes = transaction.then.clone();
            let checkpoint = nodes.split_off(last);
            let first = Transaction { when: data, then: nodes, otherwise: Vec::new() };
            return vec![first, Transaction { then: checkpoint, ..transaction }];
        }
        if self == Self::NoCompareOnRetry && again {
            return vec![Transaction { when: Vec::new(), ..transaction }];
        }
        if self == Self::VacantUnasked {
            let when = transaction.when.into_iter().filter(|guard| !matches!(guard, Guard::Vacant(..)));
            return vec![Transaction { when: when.collect(), ..transaction }];
        }
        if self == Self::AddUnasked {
            return vec![Transaction { then: unconditional(transaction.then), ..transaction }];
        }
        vec![transaction]
    }
}

fn unconditional(nodes: Vec<Node>) -> Vec<Node> {
    let nested = nodes.into_iter().map(|node| match node {
        Node::Nested(nested) => {
            let then = unconditional(nested.then);
            Node::Nested(Transaction { when: Vec::new(), then, ..nested })
        }
        other @ (Node::Put { .. } | Node::Delete(_) | Node::Get(_)) => other,
    });
    nested.collect()
}
