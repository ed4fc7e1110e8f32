//! The source: samples, the watch, and what comes of it.
//!
//! Before every watch the source is asked what it is, on the connection that the watch will use: only a linearizable
//! read and then the applied index tell a source that was restored from one that lags.

use super::{
    Asked, Assembler, Canceled, Command, Event, Floor, Link, Machine, Response, Revision, Sample, Stage,
    Stop, Watchers, Why,
};
use crate::mirror::batch::Change;
use crate::mirror::checkpoint::Checkpoint;
use crate::mirror::keyspace::{Fate, Side};

/// Ticks between two samples: a second.
const SAMPLE_TICKS: u32 = 10;
/// Ticks between two looks at the mirror's keys in the target, if nothing is written there: ten seconds.
const CONFIRM_TICKS: u32 = 100;
/// Ticks without a word from a watch that has something to say, after which it is given up: 15 seconds, three times
/// what etcd takes to elect a leader at worst.
const SILENT_TICKS: u32 = 150;

impl Machine {
    pub(super) fn go_on_at_source(&mut self) {
        if self.link == Link::Down && self.probing.is_none() && self.has_looked() {
            let elsewhere = std::mem::take(&mut self.elsewhere);
            self.probe(elsewhere);
        }
        if self.link == Link::Up && self.stage == Stage::Running && !self.compacted {
            self.open();
        }
        let scans = matches!(self.stage, Stage::Counting(_)) || self.position.scan().is_some();
        if self.link != Link::Down && scans && matches!(self.stage, Stage::Running | Stage::Counting(_)) {
            self.ask_source_page();
        }
    }

    /// Whether the target's own keys are known as they are now.
    fn has_looked(&self) -> bool {
        self.stage != Stage::Looking || self.own.cluster != 0
    }

    fn probe(&mut self, elsewhere: bool) {
        // As of now: a sample that is on its way may be older than what the watch will have said by then.
        self.base =
            self.base.max(self.assembler.known()).max(self.sample.as_ref().map_or(0, |sample| sample.head));
        let identity = self.sample.as_ref().map(|sample| sample.identity);
        self.probing = Some(Floor { head: self.base, identity });
        self.commands.push(Command::Probe { elsewhere });
    }

    pub(super) fn on_sample(&mut self, sample: Sample) {
        let Some(floor) = self.probing.take() else { return };
        if self.stage == Stage::Looking {
            // It may have been asked for before the target was looked at again.
            if self.has_looked() {
                self.begin(sample);
            }
            return;
        }
        if self.stage == Stage::Running {
            if let Some(why) = undercut(floor, &sample) {
                self.count(why);
            } else if let Some(problem) = self.site_problem(&sample) {
                return self.stop(Stop::Site(problem));
            }
            let known = self.sample.as_ref().and_then(|sample| sample.claims.as_ref());
            if known != sample.claims.as_ref() {
                self.claim_due = true;
                if let Some(stop) = self.circle(&sample) {
                    return self.stop(stop);
                }
            }
        }
        self.sample = Some(sample);
        match self.link {
            Link::Down => self.link = Link::Up,
            Link::Up => {}
            Link::Watching => {
                if self.assembler.ready() && self.believes_progress() {
                    self.commands.push(Command::Progress);
                }
                self.tell_quiet = self.others;
            }
        }
    }

    pub(super) fn open(&mut self) {
        let fresh = self.position.scan().is_some_and(|scan| scan.cursor.is_none());
        let mut known = self.assembler.known();
        if fresh && self.flight.is_some() {
            // What is under way belongs to the pages in hand.
            return;
        }
        if fresh {
            // A page that was read before this watch begins would miss what came between.
            self.scan.forget();
            known = self.sample.as_ref().map_or(0, |sample| sample.head);
            self.drop_waiting();
        }
        let count = if self.ranges { self.keyspace.spans(Side::Source).len() } else { 1 };
        let stale = self.assembler.stale;
        self.assembler = Assembler::new(count, known);
        self.assembler.stale = stale;
        self.watch += 1;
        self.silent_ticks = 0;
        self.link = Link::Watching;
        self.stats.watches += 1;
        let watchers = self.watchers();
        self.commands.push(Command::Watch { number: self.watch, from: known + 1, watchers });
    }

    /// Windows end by a progress that is exact, where no change of ours ends them; what comes beside a scan is near.
    fn watchers(&self) -> Watchers {
        match (self.ranges, self.position.scan().is_none() && self.believes_progress()) {
            (true, _) => Watchers::Ranges,
            (false, true) => Watchers::Windows,
            (false, false) => Watchers::One,
        }
    }

    /// Whether a checkpoint may move by what the source answers when it is asked for the watch's progress.
    pub(super) fn believes_progress(&self) -> bool {
        self.position.scan().is_some()
            || self.sample.as_ref().is_some_and(|sample| progress_is_exact(&sample.version))
    }

    pub(super) fn drop_waiting(&mut self) {
        self.waiting.clear();
        self.waiting_bytes = 0;
    }

    pub(super) fn on_source_silent(&mut self) {
        self.link = Link::Down;
        self.elsewhere = true;
        self.probing = None;
        // Answers of the old watch count no more, and half a revision with them.
        self.watch += 1;
        self.scan.asked = None;
    }

    /// The role may not read what lies between the mapped ranges.
    pub(super) fn on_watch_denied(&mut self) {
        let several = self.keyspace.spans(Side::Source).len() > 1;
        if several && !self.ranges {
            self.ranges = true;
            self.watch += 1;
            self.link = Link::Up;
        } else {
            self.on_source_silent();
        }
    }

    pub(super) fn on_watched(&mut self, response: Response) {
        self.silent_ticks = 0;
        let known = self.sample.as_ref().map_or(0, |sample| sample.identity.cluster.0);
        if response.cluster != known {
            return self.on_source_silent();
        }
        if let Some(Canceled { compacted, reason }) = &response.canceled {
            let gone = *compacted > 0 || reason.contains("compacted");
            self.on_source_silent();
            if gone {
                self.compacted = true;
                self.elsewhere = false;
            }
            return;
        }
        let was_ready = self.assembler.ready();
        for revision in self.assembler.take(response) {
            self.keep(revision);
        }
        if !was_ready && self.assembler.ready() && self.believes_progress() {
            self.commands.push(Command::Progress);
        }
    }

    /// Keeps of a revision what is mirrored.
    fn keep(&mut self, revision: Revision) {
        if revision.revision <= self.position.known() {
            return;
        }
        let mut changes = Vec::with_capacity(revision.changes.len());
        for change in revision.changes {
            match self.keyspace.of_source(&change.key) {
                Fate::Mirrored(_) => changes.push(change),
                Fate::Ignored => {
                    self.stats.ignored += 1;
                    self.others = true;
                }
                Fate::Outside => self.others = true,
                Fate::Nameless if change.value.is_some() => return self.stop(Stop::Nameless(change.key)),
                Fate::Own | Fate::Nameless => {}
            }
        }
        if !changes.is_empty() {
            self.waiting_bytes += changes.iter().map(Change::bytes).sum::<usize>();
            self.waiting.push_back(Revision { revision: revision.revision, changes });
        }
    }

    /// Takes the oldest waiting revision away.
    pub(super) fn done_with_first(&mut self) -> Option<Revision> {
        let first = self.waiting.pop_front()?;
        self.waiting_bytes -= first.changes.iter().map(Change::bytes).sum::<usize>();
        Some(first)
    }

    pub(super) fn on_tick(&mut self) {
        self.ticks = self.ticks.wrapping_add(1);
        self.keep_leases();
        let idle = self.stage == Stage::Running && self.asked.is_none() && self.flight.is_none();
        if idle && self.ticks.is_multiple_of(CONFIRM_TICKS) {
            self.ask(Asked::Own, Command::ReadOwn);
        }
        if self.link == Link::Down {
            return;
        }
        if self.link == Link::Watching {
            self.silent_ticks += 1;
            let behind = self.sample.as_ref().is_some_and(|sample| sample.head > self.assembler.known());
            if self.silent_ticks > SILENT_TICKS && behind {
                return self.on_source_silent();
            }
            if self.scan.waits_for_progress && self.assembler.ready() {
                self.commands.push(Command::Progress);
            }
        }
        if self.ticks.is_multiple_of(SAMPLE_TICKS) && self.probing.is_none() && self.stage == Stage::Running {
            self.probe(false);
        }
    }
}

/// Whether an etcd sends no answer to a question for progress before the events that it speaks of: from 3.4.31, 3.5.13
/// and 3.6.2 on (etcd issues 15220 and 17507). A release that cannot be read is believed to be newer.
pub fn progress_is_exact(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok);
    match (next(), next(), next()) {
        (Some(3), Some(minor), Some(patch)) => match minor {
            0..=3 => false,
            4 => patch >= 31,
            5 => patch >= 13,
            6 => patch >= 2,
            _ => true,
        },
        (Some(0..=2), ..) => false,
        _ => true,
    }
}

/// Whether a source is another one than before, or its history is shorter.
pub(super) fn undercut(floor: Floor, sample: &Sample) -> Option<Why> {
    let seen = sample.identity;
    let stored = floor.identity?;
    if stored.cluster != seen.cluster {
        return Some(Why::SourceChanged(stored.cluster, seen.cluster));
    }
    let fallen = [
        ("its revision", floor.head, sample.head),
        ("its applied index", signed(stored.applied), signed(seen.applied)),
        ("its term", signed(stored.term), signed(seen.term)),
    ];
    let fallen = fallen.into_iter().find(|(_, before, now)| now < before);
    fallen.map(|(what, before, now)| Why::SourceRewound(format!("{what} was {before} and is {now}")))
}

/// The floor that a checkpoint gives.
pub(super) fn floor(checkpoint: &Checkpoint) -> Floor {
    Floor { head: checkpoint.position.revision(), identity: Some(checkpoint.source) }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Event {
    /// Whether it is about the source.
    pub fn is_of_source(&self) -> bool {
        matches!(
            self,
            Self::Sample(_)
                | Self::Sited
                | Self::SourcePage(..)
                | Self::SourcePageTooLarge(_)
                | Self::SourceSilent
                | Self::Watched(..)
                | Self::WatchEnded(_)
                | Self::WatchDenied(_)
        )
    }
}
