//! Answers of a watch put together to whole revisions.
//!
//! What is known of etcd's watch, and easily taken for granted: an answer that catches up holds up to a thousand
//! revisions, and its header has the head of the store, so a header is progress only where there are no events. A
//! large answer comes in fragments. Of several watchers on one stream each gets its part of a revision in an answer of
//! its own, in any order, so a revision is whole only when the stream's progress, watcher -1, has passed it. And
//! that progress overtakes what a watcher keeps back until it is `created`.
//! **Invariant:** (I4) a revision leaves here once, whole, and after all that are older.

use std::collections::BTreeMap;

use super::batch::{Change, Revision};

/// The watcher of an answer that speaks for the whole stream.
pub const STREAM: i64 = -1;

/// An answer of a watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// Whose it is.
    pub watcher: i64,
    /// The store's revision as it was sent.
    pub head: i64,
    /// Which cluster says so.
    pub cluster: u64,
    /// The watcher exists now.
    pub created: bool,
    /// It exists no more.
    pub canceled: Option<Canceled>,
    /// More of it follows.
    pub fragment: bool,
    /// In order.
    pub events: Vec<Event>,
}

/// Why a watcher ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Canceled {
    /// Above 0: where the history now begins.
    pub compacted: i64,
    /// etcd's words.
    pub reason: String,
}

/// An event of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Whose revision it is part of.
    pub revision: i64,
    /// The change.
    pub change: Change,
}

/// Puts answers together.
#[derive(Clone, Debug)]
pub struct Assembler {
    /// How many watchers the stream has.
    watchers: usize,
    /// How many of them exist.
    created: usize,
    /// All of it has been handed out.
    known: i64,
    /// Revisions of which more may come.
    open: BTreeMap<i64, Vec<Change>>,
    /// Events that came again, or of a time that was over.
    pub stale: u64,
}

impl Assembler {
    /// For a stream that begins after `known`.
    pub fn new(watchers: usize, known: i64) -> Self {
        Self { watchers, created: 0, known, open: BTreeMap::new(), stale: 0 }
    }

    /// Everything up to this revision has come.
    pub fn known(&self) -> i64 {
        self.known
    }

    /// Whether every watcher exists: before that no progress may be asked for.
    pub fn ready(&self) -> bool {
        self.created >= self.watchers
    }

    /// Takes an answer; returns what it made whole. That it was `canceled` is the caller's to see.
    pub fn take(&mut self, response: Response) -> Vec<Revision> {
        if response.created {
            self.created += 1;
            return Vec::new();
        }
        if response.events.is_empty() {
            return if response.canceled.is_none() { self.progress(&response) } else { Vec::new() };
        }
        for event in response.events {
            if event.revision <= self.known {
                self.stale += 1;
            } else {
                self.open.entry(event.revision).or_default().push(event.change);
            }
        }
        let last = self.open.keys().next_back().copied();
        match last {
            // One watcher's answer holds whole revisions, but for a fragment's last. The older ones go on at once: all
            // fragments together are as large as a thousand revisions are.
            Some(last) if self.watchers == 1 => self.flush(if response.fragment { last - 1 } else { last }),
            Some(_) | None => Vec::new(),
        }
    }

    fn progress(&mut self, response: &Response) -> Vec<Revision> {
        let of_all = response.watcher == STREAM || self.watchers == 1;
        if of_all && self.ready() && response.head > self.known {
            self.flush(response.head)
        } else {
            Vec::new()
        }
    }

    /// Hands out all revisions up to this one.
    fn flush(&mut self, through: i64) -> Vec<Revision> {
        self.known = through;
        let later = self.open.split_off(&(through + 1));
        let whole = std::mem::replace(&mut self.open, later);
        whole.into_iter().map(|(revision, changes)| Revision { revision, changes }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(revision: i64, key: &str) -> Event {
        Event { revision, change: Change { key: key.into(), value: None, lease: 0 } }
    }

    fn events(watcher: i64, head: i64, events: &[(i64, &str)]) -> Response {
        let events = events.iter().map(|(revision, key)| event(*revision, key)).collect();
        Response { watcher, head, events, ..Response::default() }
    }

    fn created(watcher: i64) -> Response {
        Response { watcher, created: true, head: 50, ..Response::default() }
    }

    fn revisions(whole: &[Revision]) -> Vec<i64> {
        whole.iter().map(|revision| revision.revision).collect()
    }

    #[test]
    fn the_header_of_an_answer_with_events_is_no_progress() {
        let mut assembler = Assembler::new(1, 3);
        assembler.take(created(0));
        assert_eq!(assembler.known(), 3, "nor is that of `created`");
        assert_eq!(revisions(&assembler.take(events(0, 50, &[(4, "a"), (4, "b"), (9, "a")]))), [4, 9]);
        assert_eq!(assembler.known(), 9);
        assert_eq!(revisions(&assembler.take(events(0, 50, &[]))), [0; 0]);
        assert_eq!(assembler.known(), 50);
    }

    #[test]
    fn fragments_become_one_revision() {
        let mut assembler = Assembler::new(1, 3);
        assembler.take(created(0));
        let fragment = Response { fragment: true, ..events(0, 50, &[(4, "a"), (5, "b")]) };
        assert_eq!(revisions(&assembler.take(fragment)), [4], "what is whole does not wait for the rest");
        assert_eq!(assembler.known(), 4, "a watch that begins anew begins with the revision that was cut");
        let more = Response { fragment: true, ..events(0, 50, &[(5, "c")]) };
        assert!(assembler.take(more).is_empty());
        let whole = assembler.take(events(0, 50, &[(5, "d")]));
        assert_eq!(revisions(&whole), [5]);
        assert_eq!(whole[0].changes.len(), 3);
    }

    #[test]
    fn what_came_already_does_not_come_again() {
        let mut assembler = Assembler::new(1, 3);
        assembler.take(created(0));
        assembler.take(events(0, 5, &[(5, "a")]));
        assert!(assembler.take(events(0, 6, &[(4, "x"), (5, "a")])).is_empty());
        assert_eq!(assembler.stale, 2);
    }

    #[test]
    fn of_several_watchers_a_revision_is_whole_when_the_stream_has_passed_it() {
        let mut assembler = Assembler::new(2, 3);
        assembler.take(created(0));
        assert!(assembler.take(events(STREAM, 50, &[])).is_empty(), "not before all of them are created");
        assert_eq!(assembler.known(), 3);
        assembler.take(created(1));
        assert!(assembler.take(events(1, 4, &[(4, "b")])).is_empty());
        assert!(
            assembler.take(events(1, 9, &[])).is_empty(),
            "a watcher's own progress says nothing of the others"
        );
        assert!(assembler.take(events(0, 4, &[(4, "a")])).is_empty());
        let whole = assembler.take(events(STREAM, 4, &[]));
        assert_eq!((revisions(&whole), whole[0].changes.len()), (vec![4], 2));
    }
}
