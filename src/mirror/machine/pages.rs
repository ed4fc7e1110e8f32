//! A scan of both sides, page by page, while changes go on.
//!
//! Of keys before the cursor the target holds what the source held at the scan's revision. A page of the source is
//! read, at its revision P. Changes up to P of keys before the cursor are done first; those of later keys are dropped,
//! for the page has them, or a later page will. Then the page's differences are done. So nothing is pinned in the
//! source, nothing is kept in memory but two pages, and the end is exact: it is P of the last page.
//!
//! While a page is written the next one is read on both sides. What the target has of it cannot change by that: no two
//! pages share a key, and nobody else may write there.
//!
//! Keys that the target lacks, and that no mirror has written, are added only if they are still missing. Whether they
//! were is known by the answer. Until then the cursor stays.
//!
//! Where the target has nothing at all, as in most first syncs, one condition on the range takes the place of one for
//! each key: that there is still nothing between the first and the last of them. So the cursor moves in the same
//! transaction, and etcd compares once. If somebody made a key there meanwhile, all of it is refused, which is a
//! definite answer: the page is read once more on both sides, and from then on keys are added one by one.

use std::collections::VecDeque;

use super::{Asked, Command, Effect, Link, Machine, Stage, Stop, Why};
use crate::mirror::batch::{Revision, fitting, gather};
use crate::mirror::checkpoint::{Position, Scan};
use crate::mirror::config::allowed_deletes;
use crate::mirror::keyspace::{Side, Span, next_key};
use crate::mirror::resync::{Difference, Differing, Entry, Nameless, Owned, Page, behind, compare, remedy};
use crate::mirror::transaction::Op;

/// Keys of the first page: with the largest values that etcd takes by default it is still below [`PAGE_BYTES`] times
/// a hundred, and pages soon grow or shrink to the sizes that they find.
const FIRST_PAGE_KEYS: usize = 256;
/// What a page should have: a few tens of milliseconds of a gigabit link.
const PAGE_BYTES: usize = 4 << 20;
/// How many times as large as a page the next one may be.
const GROWTH: usize = 16;
/// Changes before the cursor that are looked at in one go.
const BEHIND_CHANGES: usize = 8192;
/// Target revisions of a scan's own transactions that are remembered: one for each time it was interrupted.
const WRITTEN: usize = 64;

/// What a scan has in hand.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages {
    page: Option<Held>,
    /// Read ahead.
    next: Option<Held>,
    /// The source was asked for a page of this number.
    pub(super) asked: Option<(u64, usize, Span)>,
    number: u64,
    keys: usize,
    /// The page waits for the watch to have said everything up to its revision.
    pub(super) waits_for_progress: bool,
    /// Changes of keys before the cursor, not newer than the page.
    behind: VecDeque<Revision>,
    behind_offset: usize,
    /// What is to be done about the page, in the order of source keys.
    pending: VecDeque<(Vec<u8>, Op, bool)>,
    /// Where the cursor is when that is done.
    bound: Option<Bound>,
    /// The target had nothing where the page is: what is to be done are puts, on the condition that it still is so.
    vacant: bool,
    /// That condition did not hold once: it is not tried again.
    shared: bool,
    /// The target's revision in which the last of them were added.
    added: Option<i64>,
    pub(super) target_keys: Option<u64>,
    seen: u64,
}

/// How far a comparison went.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Bound {
    /// Not including this source key.
    Key(Vec<u8>),
    /// Everything.
    End,
}

/// A page of the source.
#[derive(Clone, Debug)]
struct Held {
    /// As it was asked for: what the target has is compared with this page, or with none.
    number: u64,
    /// Of the mapping.
    place: usize,
    /// From the cursor to where the page ends; in names of the source.
    span: Span,
    entries: VecDeque<Entry>,
    revision: i64,
    /// Nothing comes after it.
    last: bool,
    there: There,
}

/// What the target has where a page of the source is.
#[derive(Clone, Debug)]
enum There {
    Unknown,
    Asked,
    Known(Page),
    /// It was compared with the page, to its end.
    Compared,
}

impl Pages {
    /// Begins anew at the cursor.
    pub(super) fn forget(&mut self) {
        *self = Self { number: self.number, keys: self.keys, shared: self.shared, ..Self::default() };
    }

    /// Somebody has made a key where the page was being written: begins anew, key by key.
    pub(super) fn not_vacant(&mut self) {
        self.shared = true;
        self.forget();
    }

    /// As many keys as fit a page of the usual size.
    fn adapt(&mut self, page: &Page, most: usize) {
        let bytes: usize = page.entries.iter().map(|entry| entry.key.len() + entry.value.len()).sum();
        let each = (bytes / page.entries.len().max(1)).max(1);
        // Not many times as many at once, since the next keys may be larger.
        self.keys = (PAGE_BYTES / each).clamp(1, self.keys.saturating_mul(GROWTH)).min(most);
    }
}

impl Machine {
    /// Asks the source for the page that is needed next, or for the one after it.
    pub(super) fn ask_source_page(&mut self) {
        let (Some(scan), None, None) = (self.position.scan(), &self.scan.asked, &self.scan.next) else {
            return;
        };
        let cursor = match &self.scan.page {
            None => scan.cursor.clone(),
            Some(page) if page.last => return,
            Some(page) => page.span.end.clone(),
        };
        let Some(place) = self.keyspace.next(cursor.as_deref()) else { return };
        let Some(span) = self.keyspace.spans(Side::Source).into_iter().nth(place) else { return };
        let span = span.from(cursor.as_deref());
        if self.scan.keys == 0 {
            self.scan.keys = FIRST_PAGE_KEYS.min(self.limits.page_keys);
        }
        self.scan.number += 1;
        self.scan.asked = Some((self.scan.number, place, span.clone()));
        self.commands.push(Command::ReadSource(self.scan.number, span, self.scan.keys));
    }

    pub(super) fn on_source_page(&mut self, number: u64, page: Page) {
        let Some((number, place, span)) = self.scan.asked.take_if(|(asked, ..)| *asked == number) else {
            return;
        };
        self.scan.adapt(&page, self.limits.page_keys);
        self.scan.seen += page.entries.len() as u64;
        let end = match page.entries.last() {
            Some(entry) if page.more => Some(next_key(&entry.key)),
            Some(_) | None => span.end.clone(),
        };
        let last = !page.more && self.keyspace.next(end.as_deref()).is_none_or(|_| end.is_none());
        let span = Span { start: span.start, end };
        let held = Held {
            number,
            place,
            span,
            entries: page.entries.into(),
            revision: page.revision,
            last,
            there: There::Unknown,
        };
        if self.scan.page.is_none() { self.scan.page = Some(held) } else { self.scan.next = Some(held) }
    }

    pub(super) fn on_source_page_too_large(&mut self, number: u64) {
        if self.scan.asked.take_if(|(asked, ..)| *asked == number).is_some() {
            self.scan.keys = (self.scan.keys / 4).max(1);
        }
    }

    pub(super) fn go_on_with_pages(&mut self) {
        let Some(scan) = self.position.scan().cloned() else { return };
        if self.scan.bound.is_some() {
            return self.write_page(&scan);
        }
        if self.scan.page.is_none() {
            self.scan.page = self.scan.next.take();
            if self.link != Link::Down {
                self.ask_source_page();
            }
        }
        let Some(page) = &self.scan.page else {
            // The cursor is behind the last mapping: only the end is missing.
            if self.keyspace.next(scan.cursor.as_deref()).is_none() && self.stage == Stage::Running {
                self.finish(Vec::new(), scan.revision, Effect::Moved);
            }
            return;
        };
        let revision = page.revision;
        if self.stage == Stage::Running {
            if self.scan.target_keys.is_none() {
                return self.ask(Asked::Count, Command::CountTarget);
            }
            if !self.catch_up(&scan, revision) {
                return;
            }
        }
        self.compare_page();
    }

    /// Asks the target for what it has where the pages in hand are.
    pub(super) fn ask_target_pages(&mut self) {
        if !matches!(self.stage, Stage::Running | Stage::Counting(_)) {
            return;
        }
        let keys = self.scan.keys.max(1);
        for page in [&mut self.scan.page, &mut self.scan.next].into_iter().flatten() {
            if matches!(page.there, There::Unknown)
                && let Some(there) = self.keyspace.opposite(page.place, &page.span, Side::Source)
            {
                page.there = There::Asked;
                self.commands.push(Command::ReadTarget(page.number, there, keys));
            }
        }
    }

    /// The page that waits for what the target has there.
    fn asking(&mut self, number: u64) -> Option<&mut Held> {
        let pages = [&mut self.scan.page, &mut self.scan.next];
        pages.into_iter().flatten().find(|page| page.number == number && matches!(page.there, There::Asked))
    }

    pub(super) fn on_target_page(&mut self, number: u64, page: Page) {
        if let Some(held) = self.asking(number) {
            held.there = There::Known(page);
        }
    }

    pub(super) fn on_target_page_lost(&mut self, number: u64) {
        if let Some(held) = self.asking(number) {
            held.there = There::Unknown;
        }
    }

    /// It is asked for again, in smaller parts.
    pub(super) fn on_target_page_too_large(&mut self, number: u64) {
        if let Some(held) = self.asking(number) {
            held.there = There::Unknown;
            self.scan.keys = (self.scan.keys / 4).max(1);
        }
    }

    /// Does what happened up to the page's revision to keys before the cursor; `false`: it is not done yet.
    fn catch_up(&mut self, scan: &Scan, revision: i64) -> bool {
        while let Some(first) = self.waiting.front().filter(|first| first.revision <= revision) {
            let held: usize = self.scan.behind.iter().map(|revision| revision.changes.len()).sum();
            if held >= BEHIND_CHANGES {
                break;
            }
            let changes = behind(&first.changes, scan.cursor.as_deref());
            let number = first.revision;
            self.done_with_first();
            if !changes.is_empty() {
                self.scan.behind.push_back(Revision { revision: number, changes });
            }
        }
        if !self.scan.behind.is_empty() {
            self.commit_behind(scan);
            return false;
        }
        if scan.cursor.is_some() && self.assembler.known() < revision {
            // Once now, and then with every tick.
            let waited = std::mem::replace(&mut self.scan.waits_for_progress, true);
            if !waited && self.link == Link::Watching && self.assembler.ready() {
                self.commands.push(Command::Progress);
            }
            return false;
        }
        self.scan.waits_for_progress = false;
        if let Position::First(scan) | Position::Resync(scan) = &mut self.position {
            scan.revision = revision;
        }
        true
    }

    fn commit_behind(&mut self, scan: &Scan) {
        let leases = self.settings.config.leases;
        let offset = self.scan.behind_offset;
        let batch = gather(&self.scan.behind, offset, &self.keyspace, leases, &self.limits);
        // In the middle of a revision the one before stays: after a crash all of it comes again, and does no harm.
        let revision = if batch.done > 0 { batch.revision } else { scan.revision };
        let position = self.at(Scan { revision, ..scan.clone() });
        self.commit(batch.ops, position, Effect::Behind(batch.done, batch.offset));
    }

    pub(super) fn done_behind(&mut self, done: usize, offset: usize) {
        self.scan.behind.drain(..done.min(self.scan.behind.len()));
        self.scan.behind_offset = offset;
    }

    /// The same phase, with this scan.
    fn at(&self, scan: Scan) -> Position {
        match self.position {
            Position::First(_) => Position::First(scan),
            Position::Resync(_) | Position::Stream { .. } => Position::Resync(scan),
        }
    }

    /// Compares the page with the target's part of it, once that has come.
    fn compare_page(&mut self) {
        let Some(scan) = self.position.scan().cloned() else { return };
        let Some(mut page) = self.scan.page.take_if(|page| matches!(page.there, There::Known(_))) else {
            return;
        };
        let There::Known(there) = std::mem::replace(&mut page.there, There::Compared) else { return };
        let bound = match there.entries.last().filter(|_| there.more) {
            Some(last) => {
                let part = Span { start: vec![0], end: Some(next_key(&last.key)) };
                self.keyspace.opposite(page.place, &part, Side::Target).and_then(|span| span.end)
            }
            None => page.span.end.clone(),
        };
        let before = |entry: &Entry| bound.as_ref().is_none_or(|bound| entry.key < *bound);
        let upto = page.entries.iter().take_while(|entry| before(entry)).count();
        let here: Vec<Entry> = page.entries.drain(..upto).collect();
        let leases = (self.settings.config.leases, self.settings.id.parking_lease());
        self.scan.vacant = there.entries.is_empty() && !self.scan.shared;
        let compared = match compare(&self.keyspace, leases, &here, &there.entries) {
            Ok(compared) => compared,
            Err(Nameless(key)) => return self.stop(Stop::Nameless(key)),
        };
        self.counts.equal += compared.equal;
        self.learn_leases(compared.leases);
        self.counts.add(&compared.differing);
        let end = page.last && !there.more;
        let bound_after = if end { Bound::End } else { Bound::Key(bound.clone().unwrap_or_default()) };
        if there.more {
            page.there = There::Unknown;
            page.span.start = bound.unwrap_or_default();
        }
        self.scan.page = Some(page);
        if self.stage == Stage::Running {
            match self.remedies(&scan, compared.differing, end) {
                Ok(pending) => {
                    self.scan.pending = pending;
                    self.scan.bound = Some(bound_after);
                    return self.write_page(&scan);
                }
                Err(why) => self.count(why),
            }
        }
        self.counted_through(bound_after);
    }

    /// What to do about each difference, or why nothing may be done any more.
    fn remedies(
        &self,
        scan: &Scan,
        differing: Vec<Differing>,
        end: bool,
    ) -> Result<VecDeque<(Vec<u8>, Op, bool)>, Why> {
        // Its patterns were compiled when it was written.
        let owned = Owned::new(scan).map_err(|_| Why::TargetDiffers)?;
        let mut pending = VecDeque::with_capacity(differing.len());
        let (mut deletes, leases) = (scan.deleted, self.settings.config.leases);
        for key in differing {
            let op = remedy(&key, &owned, self.policy, leases).ok_or(Why::TargetDiffers)?;
            let counts = key.difference == Difference::Extra && owned.has(&key.target, key.modified);
            deletes += u64::from(counts);
            let nothing = self.scan.seen == 0 && end && scan.cursor.is_none();
            let too_many = deletes > allowed_deletes(self.scan.target_keys.unwrap_or(0));
            let deleting = key.difference == Difference::Extra;
            if deleting && !scan.approved && (nothing || too_many) {
                return Err(Why::PruneGuard);
            }
            let op = if self.scan.vacant { op.unconditional() } else { op };
            pending.push_back((key.key, op, counts));
        }
        Ok(pending)
    }

    /// Writes as many of the page's differences as fit.
    fn write_page(&mut self, scan: &Scan) {
        let Some(bound) = self.scan.bound.clone() else { return };
        if self.scan.pending.is_empty() {
            return self.passed(&bound, scan);
        }
        let count = fitting(self.scan.pending.iter().map(|(_, op, _)| op), &self.limits);
        let ops: Vec<Op> = self.scan.pending.iter().take(count).map(|(_, op, _)| op.clone()).collect();
        let deleted = self.scan.pending.iter().take(count).filter(|(.., counts)| *counts).count() as u64;
        let scan = Scan { deleted: scan.deleted + deleted, ..scan.clone() };
        if ops.iter().any(|op| matches!(op, Op::Add { .. })) {
            let position = self.at(scan);
            return self.commit(ops, position, Effect::Added(count));
        }
        let effect = if self.scan.vacant { Effect::Settled(count) } else { Effect::Page(count) };
        match (self.scan.pending.get(count), bound) {
            (None, Bound::End) => self.finish(ops, scan.revision, effect),
            (None, Bound::Key(key)) => {
                let position = self.at(Scan { cursor: Some(key), ..scan });
                self.commit(ops, position, effect);
            }
            (Some((key, ..)), _) => {
                let position = self.at(Scan { cursor: Some(key.clone()), ..scan });
                self.commit(ops, position, effect);
            }
        }
    }

    pub(super) fn done_with_page(&mut self, done: usize) {
        self.scan.pending.drain(..done.min(self.scan.pending.len()));
    }

    /// Keys were added. Was one of them there already, or is it not known, then the page is read once more.
    pub(super) fn done_adding(&mut self, done: usize, revision: i64, all: bool) {
        let (Position::First(scan) | Position::Resync(scan)) = &mut self.position else { return };
        scan.written.push(revision);
        let surplus = scan.written.len().saturating_sub(WRITTEN);
        scan.written.drain(..surplus);
        if !all {
            return self.scan.forget();
        }
        self.scan.pending.drain(..done.min(self.scan.pending.len()));
        if let Some((next, ..)) = self.scan.pending.front() {
            scan.cursor = Some(next.clone());
            scan.written.pop();
        } else {
            self.scan.added = Some(revision);
        }
    }

    /// All differences before `bound` are done.
    fn passed(&mut self, bound: &Bound, scan: &Scan) {
        match bound {
            Bound::End => self.finish(Vec::new(), scan.revision, Effect::Moved),
            Bound::Key(key) => {
                self.scan.bound = None;
                self.drop_compared();
                if let Position::First(scan) | Position::Resync(scan) = &mut self.position {
                    scan.cursor = Some(key.clone());
                    // Now the cursor says so.
                    let added = self.scan.added.take();
                    scan.written.retain(|revision| Some(*revision) != added);
                }
                self.go_on_with_pages();
            }
        }
    }

    fn drop_compared(&mut self) {
        self.scan.page.take_if(|page| matches!(page.there, There::Compared));
    }

    fn finish(&mut self, ops: Vec<Op>, revision: i64, effect: Effect) {
        self.commit(ops, Position::Stream { revision, offset: 0 }, effect);
    }

    /// Goes on counting, or stops with what was counted.
    fn counted_through(&mut self, bound: Bound) {
        self.drop_compared();
        match bound {
            Bound::Key(key) => {
                if let Position::First(scan) | Position::Resync(scan) = &mut self.position {
                    scan.cursor = Some(key);
                }
                self.go_on_with_pages();
            }
            Bound::End => {
                let Stage::Counting(why) = self.stage.clone() else { return };
                let (counts, plan) = (self.counts, self.plan());
                let deleted = self.stored.as_ref().and_then(|(stored, _)| stored.position.scan());
                let deleted = deleted.map_or(0, |scan| scan.deleted);
                self.stop(match why {
                    Why::DryRun => Stop::Counted { counts, plan },
                    Why::TargetDiffers => Stop::TargetDiffers(counts),
                    Why::PruneGuard => Stop::PruneGuard { counts, deleted, plan },
                    Why::SourceChanged(stored, seen) => Stop::SourceChanged { stored, seen, counts, plan },
                    Why::SourceRewound(what) => Stop::SourceRewound { what, counts, plan },
                });
            }
        }
    }
}
