//! Leases of the target under [`Leases::Recreate`]: which it must have, and for how long they are kept alive.
//!
//! ```text
//!          a key is to be written with it: Grant ──────────┐
//! unknown ─┤                                               ├─► kept ─► gone in the source, as of revision P
//!    ▲     └ a scan finds a key alike on both sides ───────┘    │                                │
//!    ├───────── the target has it no more: a scan follows ◄─────┘                                │
//!    └───────────────────────────── the target is at P: no key has it any more ◄─────────────────┘
//! ```
//!
//! - **Invariant (E1), known leases only:** a transaction goes out only with leases that were granted, or seen at a key of the
//!   target, in this run.
//! - **Invariant (E2), kept as long as needed:** a known lease is kept alive, whether the source answers or not, until the
//!   target has what the source had at a revision at which the source did not have the lease. So keys go by the source's own
//!   deletes, in their order, and not because a lease ends here.
//! - **Invariant (E3), a loss is repaired:** a lease that is gone in the target has taken keys along, and once it is granted
//!   again nothing shows that any more. So both sides are compared from the beginning. Nobody kept leases alive before a
//!   run began, so each run does that once, too, and nothing about leases need be stored. It has caught up before: then
//!   only what was lost differs, and deletes that came by the watch are no surprise to a scan.

use std::collections::{BTreeMap, BTreeSet};

use super::{Command, Flight, Link, Machine, Stage, Stop};
use crate::mirror::checkpoint::Position;
use crate::mirror::config::Leases;
use crate::mirror::keyspace::Side;
use crate::mirror::transaction::{Lease, Node, Op};

/// Leases of one request. With a tenth of a second between two of them that is more than etcd renews.
const AT_ONCE: usize = 256;
/// Leases that one mirror keeps alive: 500 requests a second to the target where they live for a minute.
const MOST: usize = 10_000;
/// Ticks of a second.
const SECOND: u64 = 10;
/// Ticks between two looks whether the source still has a lease. Nothing waits for it: a lease that it does not have any
/// more is kept alive a little longer, and no key has it.
const LOOK_TICKS: u64 = 30 * SECOND;
/// Ticks after a request that was not wholly answered, before the next one.
const AGAIN_TICKS: u64 = SECOND;
/// So often it is tried to keep a lease alive before it ends.
const TRIES: u64 = 3;
/// The longest time to live that counts, an hour, in seconds.
const LONGEST: u64 = 3600;

/// What is asked about leases: one request of each kind of `Keep` and the others at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseRequest {
    /// See to it that the target has these, each to live as long as the source's: [`LeaseAnswer::Granted`].
    Grant(Vec<i64>),
    /// Keep these alive in the target; with the seconds that each lives, 0 if that is not known: [`LeaseAnswer::Kept`].
    Keep(Vec<(i64, i64)>),
    /// Which of these the source has no more: [`LeaseAnswer::Looked`].
    Look(Vec<i64>),
}

/// What was answered. Leases that are not in it were not answered for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseAnswer {
    /// The target has these, and for how many seconds each lives.
    Granted(Vec<(i64, i64)>),
    /// For how many seconds from then on each lives; 0: the target does not have it.
    Kept(Vec<(i64, i64)>),
    /// The source does not have these, and was at this revision, or later, when that was so.
    Looked(Vec<i64>, i64),
}

/// All that is known of leases.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    known: BTreeMap<i64, Known>,
    /// To be granted before anything can be written.
    wanted: BTreeSet<i64>,
    ticks: u64,
    /// Keeping them alive is for itself: it must not wait for a source that does not answer.
    keeping: Lane,
    asking: Lane,
    /// Once the target has what the source had at this revision both sides are compared: keys may have gone with a lease.
    compare_at: Option<i64>,
}

/// A lease of the target.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// So long it lives when it is kept alive; 0: not known yet.
    seconds: i64,
    /// When it is to be kept alive next.
    due: u64,
    /// When the source is to be asked for it next.
    look: u64,
    /// The source did not have it at this revision.
    gone: Option<i64>,
    /// A key was written with it since the source was last asked for it.
    used: bool,
}

/// Requests of which one at a time is under way.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    busy: bool,
    /// When the last one was asked.
    asked: u64,
    /// No other one before that.
    again: u64,
}

impl Lane {
    fn is_free(&self, now: u64) -> bool {
        !self.busy && now >= self.again
    }

    fn begin(&mut self, now: u64) {
        (self.busy, self.asked) = (true, now);
    }

    fn end(&mut self, now: u64, whole: bool) {
        (self.busy, self.again) = (false, if whole { now } else { now + AGAIN_TICKS });
    }
}

impl Ledger {
    /// How many are kept alive.
    pub(super) fn count(&self) -> usize {
        self.known.len()
    }

    /// Whether changes wait for a lease.
    pub(super) fn is_awaited(&self) -> bool {
        self.asking.busy && !self.wanted.is_empty()
    }

    fn learn(&mut self, id: i64, seconds: i64, due: u64) {
        let look = self.ticks + LOOK_TICKS;
        self.known.insert(id, Known { seconds, due, look, gone: None, used: true });
    }

    /// Notes that a key is written with it; `false`: it is not known.
    fn uses(&mut self, id: i64) -> bool {
        self.known.get_mut(&id).is_some_and(|known| {
            (known.used, known.gone) = (true, None);
            true
        })
    }

    /// The next to be kept alive.
    fn due_to_keep(&mut self) -> Vec<(i64, i64)> {
        if !self.keeping.is_free(self.ticks) {
            return Vec::new();
        }
        let due = self.known.iter().filter(|(_, known)| known.due <= self.ticks);
        let due: Vec<(i64, i64)> = due.map(|(id, known)| (*id, known.seconds)).take(AT_ONCE).collect();
        if !due.is_empty() {
            self.keeping.begin(self.ticks);
        }
        due
    }

    /// The next for which the source is asked.
    fn due_to_look(&mut self) -> Vec<i64> {
        if !self.asking.is_free(self.ticks) || !self.wanted.is_empty() {
            return Vec::new();
        }
        let (now, mut ids) = (self.ticks, Vec::new());
        for (id, known) in self.known.iter_mut().filter(|(_, known)| known.look <= now).take(AT_ONCE) {
            (known.look, known.used) = (now + LOOK_TICKS, false);
            ids.push(*id);
        }
        if !ids.is_empty() {
            self.asking.begin(now);
        }
        ids
    }

    /// What was kept alive; `true`: a lease that keys may have had is gone.
    fn kept(&mut self, answered: Vec<(i64, i64)>) -> bool {
        let mut lost = false;
        for (id, seconds) in answered {
            if seconds > 0 {
                if let Some(known) = self.known.get_mut(&id) {
                    (known.seconds, known.due) = (seconds, self.keeping.asked + interval(seconds));
                }
            } else if let Some(known) = self.known.remove(&id) {
                // If the source has it no more, its keys' deletes are on their way.
                lost |= known.gone.is_none();
            }
        }
        lost
    }

    /// What the source does not have. A key that was written with it meanwhile speaks against that: it was granted again.
    fn looked(&mut self, gone: &[i64], revision: i64) {
        for id in gone {
            if let Some(known) = self.known.get_mut(id).filter(|known| !known.used) {
                known.gone.get_or_insert(revision);
            }
        }
    }

    /// Forgets what no key has any more once the target is at this revision of the source.
    fn forget(&mut self, reached: i64) {
        self.known.retain(|_, known| known.gone.is_none_or(|gone| gone > reached));
    }
}

/// Ticks until a lease is to be kept alive again.
fn interval(seconds: i64) -> u64 {
    let seconds = u64::try_from(seconds).unwrap_or(0).min(LONGEST);
    (seconds * SECOND / TRIES).max(1)
}

impl Machine {
    fn recreates(&self) -> bool {
        self.settings.config.leases == Leases::Recreate
    }

    /// A run begins: nobody may have kept leases alive before. A scan that is at its beginning sees what they took along.
    pub(super) fn begin_with_leases(&mut self) {
        let fresh = self.position.scan().is_some_and(|scan| scan.cursor.is_none());
        if self.recreates() && !fresh {
            self.lost_keys();
        }
    }

    /// Compares both sides for the sake of lost leases, if that is due.
    pub(super) fn compare_if_due(&mut self) -> bool {
        let Some(revision) = self.leases.compare_at else { return false };
        let due = match &self.position {
            // A source that does not say how far its watch is would be waited for until something is changed.
            Position::Stream { revision: reached, offset: 0 } => {
                *reached >= revision || !self.believes_progress()
            }
            Position::Stream { .. } => false,
            Position::First(_) | Position::Resync(_) => true,
        };
        if due || self.compacted {
            self.leases.compare_at = None;
            self.compacted = true;
            self.link = Link::Down;
        }
        due
    }

    /// Whether these changes can be sent. Leases that are not known are asked for.
    pub(super) fn has_leases(&mut self, ops: &[Op]) -> bool {
        let mut wanted = BTreeSet::new();
        for op in ops {
            if let Lease::Same(id) = op.lease()
                && !self.leases.uses(id)
            {
                wanted.insert(id);
            }
        }
        self.leases.wanted = wanted;
        let count = self.leases.known.len() + self.leases.wanted.len();
        if count > MOST {
            self.leases.wanted.clear();
            self.stop(Stop::TooManyLeases(count));
            return false;
        }
        self.leases.wanted.is_empty()
    }

    /// Leases that keys of the target have, as in the source: from now on they are kept alive.
    pub(super) fn learn_leases(&mut self, ids: impl IntoIterator<Item = i64>) {
        for id in ids {
            if !self.leases.uses(id) {
                self.leases.learn(id, 0, self.leases.ticks);
            }
        }
        if self.leases.known.len() > MOST {
            self.stop(Stop::TooManyLeases(self.leases.known.len()));
        }
    }

    /// Asks for what changes wait for.
    pub(super) fn go_on_with_leases(&mut self) {
        let now = self.leases.ticks;
        if !self.leases.wanted.is_empty() && self.leases.asking.is_free(now) {
            self.leases.asking.begin(now);
            let ids = self.leases.wanted.iter().copied().take(AT_ONCE).collect();
            self.commands.push(Command::Lease(LeaseRequest::Grant(ids)));
        }
    }

    /// A tick: keeps alive what is due.
    pub(super) fn keep_leases(&mut self) {
        self.leases.ticks += 1;
        if self.stage == Stage::Running {
            self.leases.forget(self.position.whole());
        }
        let due = self.leases.due_to_keep();
        if !due.is_empty() {
            self.commands.push(Command::Lease(LeaseRequest::Keep(due)));
        }
        let ids = self.leases.due_to_look();
        if !ids.is_empty() {
            self.commands.push(Command::Lease(LeaseRequest::Look(ids)));
        }
    }

    pub(super) fn on_leases(&mut self, answer: LeaseAnswer, silent: Option<Side>) {
        let (now, whole) = (self.leases.ticks, silent.is_none());
        match answer {
            LeaseAnswer::Kept(answered) => {
                self.leases.keeping.end(now, whole);
                if self.leases.kept(answered) {
                    self.lost_keys();
                }
            }
            LeaseAnswer::Granted(granted) => {
                let asked = self.leases.asking.asked;
                self.leases.asking.end(now, whole);
                // Whoever waits for more asks for it again.
                self.leases.wanted.clear();
                for (id, seconds) in granted {
                    self.leases.learn(id, seconds, asked + interval(seconds));
                }
            }
            LeaseAnswer::Looked(gone, revision) => {
                self.leases.asking.end(now, whole);
                self.leases.looked(&gone, revision);
            }
        }
    }

    /// The target refused a transaction since it has not a lease of it: it is not said which.
    pub(super) fn on_no_lease(&mut self, flight: Option<&Flight>) {
        self.parked = false;
        let mut ids = BTreeSet::new();
        if let Some(flight) = flight {
            leases_of(&flight.transaction.then, &mut ids);
        }
        if !ids.is_empty() {
            self.leases.known.retain(|id, _| !ids.contains(id));
            self.lost_keys();
        }
    }

    /// Keys may have gone with a lease of the target: as after a compaction, only both sides say which.
    fn lost_keys(&mut self) {
        if self.stage == Stage::Running {
            let head = self.sample.as_ref().map_or(0, |sample| sample.head);
            self.leases.compare_at = Some(head.max(self.assembler.known()));
        }
    }
}

fn leases_of(nodes: &[Node], ids: &mut BTreeSet<i64>) {
    for node in nodes {
        match node {
            Node::Put { lease: Lease::Same(id), .. } => {
                ids.insert(*id);
            }
            Node::Nested(nested) => leases_of(&nested.then, ids),
            Node::Put { .. } | Node::Delete(_) | Node::Get(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One with a lease of 60 s that was granted at its first tick.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.learn(7, 60, interval(60));
        ledger
    }

    fn pass(ledger: &mut Ledger, ticks: u64) {
        ledger.ticks += ticks;
    }

    #[test]
    fn a_lease_is_kept_alive_three_times_before_it_ends() {
        assert_eq!((interval(60), interval(2), interval(0), interval(i64::MAX)), (200, 6, 1, 12_000));
        let mut ledger = ledger();
        pass(&mut ledger, 199);
        assert_eq!(ledger.due_to_keep(), []);
        pass(&mut ledger, 1);
        assert_eq!(ledger.due_to_keep(), [(7, 60)]);
        pass(&mut ledger, 50);
        assert_eq!(ledger.due_to_keep(), [], "one request at a time");
        ledger.keeping.end(ledger.ticks, true);
        assert!(!ledger.kept(vec![(7, 30)]), "it lives shorter than was thought");
        pass(&mut ledger, 49);
        assert_eq!(ledger.due_to_keep(), [], "counted from when it was asked");
        pass(&mut ledger, 1);
        assert_eq!(ledger.due_to_keep(), [(7, 30)]);
        ledger.keeping.end(ledger.ticks, false);
        assert_eq!(ledger.due_to_keep(), [], "not at once after a failure");
        pass(&mut ledger, AGAIN_TICKS);
        assert_eq!(ledger.due_to_keep(), [(7, 30)]);
    }

    #[test]
    fn a_lease_is_kept_until_the_target_is_where_the_source_had_it_no_more() {
        let mut ledger = ledger();
        pass(&mut ledger, LOOK_TICKS);
        assert_eq!(ledger.due_to_look(), [7]);
        ledger.looked(&[7], 40);
        ledger.forget(39);
        assert!(ledger.known.contains_key(&7));
        ledger.forget(40);
        assert!(ledger.known.is_empty());
    }

    #[test]
    fn a_lease_with_which_a_key_was_written_meanwhile_is_not_gone() {
        let mut ledger = ledger();
        pass(&mut ledger, LOOK_TICKS);
        assert_eq!(ledger.due_to_look(), [7]);
        assert!(ledger.uses(7) && !ledger.uses(8));
        ledger.looked(&[7, 8], 40);
        ledger.forget(50);
        assert!(ledger.known.contains_key(&7));
    }

    #[test]
    fn a_lease_that_the_target_lost_matters_unless_the_source_has_it_no_more() {
        assert!(ledger().kept(vec![(7, 0)]));
        let mut ledger = ledger();
        pass(&mut ledger, LOOK_TICKS);
        ledger.due_to_look();
        ledger.looked(&[7], 40);
        assert!(!ledger.kept(vec![(7, 0)]));
        assert!(ledger.known.is_empty());
        assert!(!ledger.kept(vec![(7, 0)]), "nor if it was forgotten");
    }
}
