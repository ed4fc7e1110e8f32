//! Others' writes to the mirrored part of the target.
//!
//! Nobody but the mirror may write there, and nothing in etcd keeps others from it. Each transaction of the mirror is one
//! revision of the target, so a revision that is none of ours leaves a gap. While there is none, nothing is read for
//! this. A gap is looked at by a watch from its first revision to its last, which also shows our own transactions: they
//! are those that write the checkpoint.
//!
//! States: all revisions up to `looked` are known, those up to `newest` exist; what was found stands until a scan that
//! began after it has ended.
//!
//! - **Invariant (F1), nothing is forgotten:** the checkpoint has a revision before the first of others' writes that
//!   stand, so whoever goes on from it finds them again.
//! - **Invariant (F2), nothing is made up:** a revision that writes the checkpoint is ours, whichever agent wrote it.
//! - What cannot be known, since the target's history is gone, is as if somebody had written, where it is repaired.

use super::{Command, Machine};
use crate::mirror::checkpoint::Position;

/// Ticks between two looks: a second.
const LOOK_TICKS: u32 = 10;
/// Ticks between two repairs: a minute. Somebody who writes again and again must not keep the mirror scanning.
const REPAIR_TICKS: u32 = 600;
/// Revisions of one look: what it remembers of them is some megabytes.
const LOOK_REVISIONS: i64 = 100_000;
/// Names of keys that are told.
pub const KEYS: usize = 3;

/// What a look at a gap has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Others' changes of mirrored keys.
    pub writes: u64,
    /// The revision of the first.
    pub first: Option<i64>,
    /// Names of some of them, in the target.
    pub keys: Vec<Vec<u8>>,
    /// The target could not say, and never will.
    pub unknown: bool,
}

/// Others' writes that no scan has made good yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// How many changes.
    pub writes: u64,
    /// Names of the first of them, in the target: what a person reads stays the same while more come.
    pub keys: Vec<Vec<u8>>,
    /// Revision of the first, or of what could not be known.
    first: Option<i64>,
}

impl Standing {
    fn add(&mut self, later: Self) {
        self.writes += later.writes;
        self.keys.extend(later.keys);
        self.keys.truncate(KEYS);
        self.first = self.first.into_iter().chain(later.first).min();
    }
}

/// What is known of others.
#[derive(Clone, Debug, Default)]
pub(super) struct Foreign {
    looked: i64,
    newest: i64,
    /// The look that is under way, and where it ends.
    looking: Option<(u64, i64)>,
    number: u64,
    /// Not before this tick.
    look_at: u32,
    repair_at: u32,
    standing: Standing,
    /// Found while a scan is under way, so it may have been too late for it.
    during: Standing,
}

impl Foreign {
    /// Goes on after a revision that a checkpoint has, or begins where the mirror has just become the owner.
    pub(super) fn begin(&mut self, looked: i64, newest: i64) {
        *self = Self { looked, newest: newest.max(looked), number: self.number + 1, ..Self::default() };
    }

    /// The target has had this revision.
    pub(super) fn saw(&mut self, revision: i64) {
        self.newest = self.newest.max(revision);
    }

    /// This revision is ours.
    pub(super) fn wrote(&mut self, revision: i64) {
        if revision == self.looked + 1 {
            self.looked = revision;
        }
        self.saw(revision);
    }

    /// The revision up to which nothing stands.
    pub(super) fn clean(&self) -> i64 {
        let first = self.standing.first.into_iter().chain(self.during.first).min();
        first.map_or(self.looked, |first| self.looked.min(first - 1))
    }

    pub(super) fn standing(&self) -> Standing {
        let mut all = self.standing.clone();
        all.add(self.during.clone());
        all
    }

    /// What was found until now is before all that the scan will read.
    pub(super) fn scan_begins(&mut self) {
        let during = std::mem::take(&mut self.during);
        self.standing.add(during);
    }

    pub(super) fn scan_ends(&mut self) {
        self.standing = std::mem::take(&mut self.during);
    }
}

impl Machine {
    /// Asks about a gap, at most once a second.
    pub(super) fn look_at_gap(&mut self) {
        let foreign = &mut self.foreign;
        if foreign.looked == foreign.newest || foreign.looking.is_some() || self.ticks < foreign.look_at {
            return;
        }
        let (from, through) = (foreign.looked + 1, foreign.newest.min(foreign.looked + LOOK_REVISIONS));
        foreign.number += 1;
        foreign.look_at = self.ticks + LOOK_TICKS;
        foreign.looking = Some((foreign.number, through));
        self.commands.push(Command::Look { number: foreign.number, from, through });
    }

    pub(super) fn on_looked(&mut self, number: u64, look: Look) {
        let foreign = &mut self.foreign;
        let Some((_, through)) = foreign.looking.take_if(|(asked, _)| *asked == number) else { return };
        self.stats.foreign += look.writes;
        let unknown = (look.unknown && self.settings.repair).then_some(foreign.looked + 1);
        let first = look.first.or(unknown);
        let found = Standing { writes: look.writes, keys: look.keys, first };
        let scans = self.position.scan().is_some();
        if scans { &mut foreign.during } else { &mut foreign.standing }.add(found);
        foreign.looked = through.max(foreign.looked);
    }

    pub(super) fn on_look_lost(&mut self, number: u64) {
        self.foreign.looking.take_if(|(asked, _)| *asked == number);
    }

    /// Whether others' writes are to be made good now.
    pub(super) fn repairs(&mut self) -> bool {
        let streams = matches!(self.position, Position::Stream { .. });
        let wanted = self.settings.repair && streams && self.foreign.standing.first.is_some();
        let repairs = wanted && self.ticks >= self.foreign.repair_at;
        if repairs {
            self.foreign.repair_at = self.ticks + REPAIR_TICKS;
        }
        repairs
    }
}
