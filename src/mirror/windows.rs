//! History read through several watches at once, told as if one had sent it.
//!
//! etcd gives a watcher that is behind a thousand revisions, then waits 100 ms before it looks again
//! (`watchBatchMaxRevs` and `syncWatchersLoop` in etcd's watchable_store.go): one watcher reads some 6,500 revisions a
//! second, however fast the line and both stores are. But each of several gets its thousand in the same round, for one
//! read of the store. So what lies far behind is cut into windows:
//!
//! ```text
//! done │ window │ window │ window │ the last one has no end ─►
//!        handed on            kept until those before it are whole
//! ```
//!
//! Each has a stream of its own. On a shared one, a large answer would hold up the word that the next watcher is
//! `created`, and until then etcd does not divide what it sends. And a stream's progress speaks of one window only.
//!
//! - **Invariant (I4):** what is handed on is in order, once, and whole: a window is over when its watcher has sent
//!   something at or behind its end, or a progress that is. How much etcd sends at once is a matter of speed only.
//! - Progress is handed on while one watch is open only: it says nothing of what other windows lack.
//! - What is kept is bounded: but for the first few, windows are opened when those before have shown how large they are,
//!   and above [`Sizes::most_bytes`] all but the first are given up; that one then has no end.

use std::collections::VecDeque;

use super::assembler::Response;

/// Revisions that one watcher gets in a round; a window is never shorter.
const ROUND: i64 = 1000;
/// Windows begin when so many of them lie ahead.
const AHEAD: i64 = 4;
/// A window is at most so many times longer than one of a history in which every revision is ours.
const LONGEST: i64 = 64;
/// The end of the last window.
const ENDLESS: i64 = i64::MAX;

/// How much is read at once.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Revisions of a window, at least.
    pub shortest: i64,
    /// Windows to begin with, while it is not known how much they have.
    pub first: usize,
    /// Windows at once.
    pub most: usize,
    /// Bytes of so many windows as are open at once, by the size of what was seen last.
    pub bytes: usize,
    /// Bytes that are kept at most, but for one answer.
    pub most_bytes: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { shortest: ROUND, first: 16, most: 32, bytes: 8 << 20, most_bytes: 8 << 20 }
    }
}

/// A watch, and its part of history.
#[derive(Debug)]
struct Window {
    number: u64,
    from: i64,
    /// The last revision of it.
    end: i64,
    created: bool,
    /// Everything up to this revision has come.
    whole: i64,
    /// Something of this revision has come.
    begun: i64,
    /// It has not said yet how much there is.
    fresh: bool,
    /// What the batch in hand began after, and its bytes until now.
    batch: (i64, usize),
    kept: Vec<Response>,
}

impl Window {
    fn new(number: u64, from: i64) -> Self {
        let (whole, begun, batch) = (from - 1, from - 1, (from - 1, 0));
        let (created, fresh, kept) = (false, true, Vec::new());
        Self { number, from, end: ENDLESS, created, whole, begun, fresh, batch, kept }
    }

    /// There is nothing more up to this revision.
    fn pass(&mut self, head: i64) {
        self.whole = self.whole.max(head);
        self.begun = self.begun.max(head);
        self.fresh = false;
    }

    fn is_whole(&self) -> bool {
        self.whole >= self.end
    }

    /// Notes how far it has come, and takes away what lies behind its end. Returns how many revisions and bytes a batch
    /// had that is over now.
    fn trim(&mut self, response: &mut Response) -> Option<(i64, usize)> {
        let last = response.events.last()?.revision;
        if self.begun == self.whole {
            self.batch = (self.whole, 0);
        }
        self.batch.1 += bytes(response);
        self.begun = self.begun.max(last);
        self.whole = self.whole.max(if response.fragment { last - 1 } else { last });
        let is_over = !response.fragment;
        self.fresh &= !is_over && !self.is_whole();
        if last > self.end {
            response.events.retain(|event| event.revision <= self.end);
            response.fragment = false;
        }
        let (before, bytes) = self.batch;
        is_over.then_some((last - before, bytes))
    }
}

/// What an answer leads to.
#[derive(Debug, Default)]
pub struct Taken {
    /// For the machine, in this order.
    pub ready: Vec<Response>,
    /// Further watches: their numbers, and their first revisions.
    pub open: Vec<(u64, i64)>,
    /// Watches that are not needed any more.
    pub close: Vec<u64>,
}

/// The watches that are open.
#[derive(Debug)]
pub struct Windows {
    sizes: Sizes,
    /// In order.
    open: VecDeque<Window>,
    /// How many there have been.
    opened: u64,
    /// Revisions of the next window: as many as the last batch has covered.
    length: i64,
    /// Windows at once, of the size of the last batch.
    most: usize,
    /// The newest revision of the source that was spoken of.
    head: i64,
    /// In all windows.
    kept_bytes: usize,
    /// The machine knows that there is a watch.
    told: bool,
}

impl Windows {
    /// One watch, of number 0, from this revision on.
    pub fn new(from: i64, sizes: Sizes) -> Self {
        Self {
            sizes,
            open: VecDeque::from([Window::new(0, from)]),
            opened: 1,
            length: sizes.shortest,
            most: sizes.first,
            head: 0,
            kept_bytes: 0,
            told: false,
        }
    }

    /// Those that may be asked for their progress. It would overtake what etcd keeps back of one that is not created.
    pub fn created(&self) -> impl Iterator<Item = u64> {
        let open = self.open.iter().filter(|window| window.created && !window.is_whole());
        open.map(|window| window.number)
    }

    /// Takes an answer of this watch.
    pub fn take(&mut self, number: u64, response: Response) -> Taken {
        self.head = self.head.max(response.head);
        let mut taken = Taken::default();
        // One that was closed may have said something before.
        let Some(place) = self.open.iter().position(|window| window.number == number) else { return taken };
        self.receive(place, response, &mut taken);
        self.finish(&mut taken);
        if self.kept_bytes > self.sizes.most_bytes {
            self.give_up(&mut taken);
        } else if self.is_worth_more() {
            self.extend(&mut taken);
        }
        taken
    }

    fn receive(&mut self, place: usize, mut response: Response, taken: &mut Taken) {
        let several = self.open.len() > 1;
        let Some(window) = self.open.get_mut(place) else { return };
        // One that is whole has nothing more to say.
        if window.is_whole() {
            return;
        }
        if response.canceled.is_some() {
            // One of them is as bad as all: what it would have sent does not come.
            taken.ready.push(response);
            return;
        }
        if response.created {
            window.created = true;
            if !std::mem::replace(&mut self.told, true) {
                taken.ready.push(response);
            }
            return;
        }
        if response.events.is_empty() {
            window.pass(response.head);
            if !several {
                taken.ready.push(response);
            }
            return;
        }
        if let Some((revisions, bytes)) = window.trim(&mut response) {
            self.length = revisions.clamp(self.sizes.shortest, LONGEST * self.sizes.shortest);
            self.most = (self.sizes.bytes / bytes.max(1)).clamp(1, self.sizes.most);
        }
        if window.is_whole() {
            taken.close.push(window.number);
        }
        // Without changes it would be progress.
        if response.events.is_empty() {
            return;
        }
        if place == 0 {
            taken.ready.push(response);
        } else {
            self.kept_bytes += bytes(&response);
            window.kept.push(response);
        }
    }

    /// Takes away what is whole; what was kept for the next one goes on.
    fn finish(&mut self, taken: &mut Taken) {
        while self.open.front().is_some_and(Window::is_whole) {
            taken.close.extend(self.open.pop_front().map(|first| first.number));
            let kept = self.open.front_mut().map(|next| std::mem::take(&mut next.kept)).unwrap_or_default();
            self.kept_bytes -= kept.iter().map(bytes).sum::<usize>();
            taken.ready.extend(kept);
        }
    }

    /// All but the first, which goes on alone.
    fn give_up(&mut self, taken: &mut Taken) {
        taken.close.extend(self.open.drain(1..).map(|window| window.number));
        if let Some(first) = self.open.front_mut() {
            first.end = ENDLESS;
        }
        (self.kept_bytes, self.most) = (0, 1);
    }

    /// Whether others are opened: one alone must be far behind, and all must have said how much there is. The very first
    /// one need not: what it has comes a tenth of a second later, and that of others with it.
    fn is_worth_more(&self) -> bool {
        let far = |window: &Window| self.head - window.whole >= AHEAD * self.length;
        let several = self.open.len() > 1;
        let begins = self.opened == 1 && self.told;
        (several || self.open.iter().all(far)) && (begins || self.open.iter().all(|window| !window.fresh))
    }

    /// Gives the last window an end, and puts another behind it, as often as that is worth a watch.
    fn extend(&mut self, taken: &mut Taken) {
        while self.open.len() < self.most
            && let Some(last) = self.open.back_mut()
        {
            let end = (last.from + self.length - 1).max(last.begun);
            if self.head - end < self.length {
                return;
            }
            last.end = end;
            self.open.push_back(Window::new(self.opened, end + 1));
            taken.open.push((self.opened, end + 1));
            self.opened += 1;
        }
    }
}

fn bytes(response: &Response) -> usize {
    response.events.iter().map(|event| event.change.bytes()).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::mirror::assembler::{Assembler, Canceled, Event, STREAM};
    use crate::mirror::batch::{Change, Revision};

    /// A stream of etcd's with one watcher.
    struct Stream {
        from: i64,
        /// The first revision that it has not sent; none: it is not created.
        next: Option<i64>,
        asked: bool,
        sent: VecDeque<Response>,
    }

    /// An etcd with its history, and a machine that hears of it through windows.
    struct World {
        random: StdRng,
        /// Changes of ours, of each revision.
        history: Vec<usize>,
        streams: BTreeMap<u64, Stream>,
        windows: Windows,
        assembler: Assembler,
        heard: i64,
        most_open: usize,
        given_up: bool,
    }

    const SIZES: Sizes = Sizes { shortest: 5, first: 3, most: 4, bytes: 6000, most_bytes: 3000 };

    fn change(revision: i64, number: usize, bytes: usize) -> Change {
        Change { key: format!("{revision}/{number}").into(), value: Some(vec![0; bytes]), lease: 0 }
    }

    impl World {
        fn new(seed: u64) -> Self {
            let mut world = Self {
                random: StdRng::seed_from_u64(seed),
                history: vec![0],
                streams: BTreeMap::new(),
                windows: Windows::new(1, SIZES),
                assembler: Assembler::new(1, 0),
                heard: 0,
                most_open: 0,
                given_up: false,
            };
            let (revisions, ours) = (world.random.random_range(0..300), world.random.random_range(1..=100));
            world.write(revisions, ours);
            world.open(0, 1);
            world
        }

        fn head(&self) -> i64 {
            i64::try_from(self.history.len()).unwrap() - 1
        }

        fn open(&mut self, number: u64, from: i64) {
            self.streams.insert(number, Stream { from, next: None, asked: false, sent: VecDeque::new() });
        }

        /// So many revisions, of which so many in a hundred are ours. Who has everything hears of them at once.
        fn write(&mut self, revisions: usize, ours: u32) {
            for _ in 0..revisions {
                let is_ours = self.random.random_ratio(ours, 100);
                self.history.push(if is_ours { self.random.random_range(1..4) } else { 0 });
                let head = self.head();
                let whole = |stream: &Stream| stream.next == Some(head);
                let numbers =
                    self.streams.iter().filter(|(_, stream)| whole(stream)).map(|(number, _)| *number);
                for number in numbers.collect::<Vec<_>>() {
                    self.send(number, 1);
                }
            }
        }

        /// The next revisions of a watcher that are ours, in pieces.
        fn send(&mut self, number: u64, most: usize) {
            let head = self.head();
            let stream = self.streams.get_mut(&number).unwrap();
            let Some(next) = &mut stream.next else { return };
            let (mut events, mut revisions) = (Vec::new(), 0);
            while *next <= head {
                let changes = self.history[usize::try_from(*next).unwrap()];
                revisions += usize::from(changes > 0);
                if revisions > most {
                    break;
                }
                let bytes = if *next % 97 < 5 { 600 } else { 1 };
                let changes = (0..changes).map(|number| change(*next, number, bytes));
                events.extend(changes.map(|change| Event { revision: *next, change }));
                *next += 1;
            }
            while !events.is_empty() {
                let all = events.len();
                let size = if self.random.random() { all } else { self.random.random_range(1..=all) };
                let later = events.split_off(size);
                let fragment = !later.is_empty();
                stream.sent.push_back(Response { head, fragment, events, ..Response::default() });
                events = later;
            }
        }

        /// A round of those that do not have everything.
        fn sync(&mut self) {
            for number in self.streams.keys().copied().collect::<Vec<_>>() {
                self.send(number, 5);
            }
        }

        fn any(&mut self) -> Option<u64> {
            let numbers: Vec<u64> = self.streams.keys().copied().collect();
            numbers.get(self.random.random_range(0..numbers.len())).copied()
        }

        /// etcd looks at what was asked of a stream.
        fn serve(&mut self) {
            let (head, Some(number)) = (self.head(), self.any()) else { return };
            let stream = self.streams.get_mut(&number).unwrap();
            let empty = Response { head, ..Response::default() };
            if stream.next.is_none() {
                stream.next = Some(stream.from);
                stream.sent.push_back(Response { created: true, ..empty });
            } else if std::mem::take(&mut stream.asked) && stream.next == Some(head + 1) {
                stream.sent.push_back(Response { watcher: STREAM, ..empty });
            }
        }

        /// Somebody wants to know the progress; and who has everything says so now and then by itself.
        fn ask(&mut self) {
            for number in self.windows.created().collect::<Vec<_>>() {
                self.streams.get_mut(&number).unwrap().asked = true;
            }
        }

        fn hear(&mut self) {
            let Some(number) = self.any() else { return };
            let Some(response) = self.streams.get_mut(&number).unwrap().sent.pop_front() else { return };
            let before = self.windows.open.len();
            let taken = self.windows.take(number, response);
            assert!(self.windows.kept_bytes <= SIZES.most_bytes, "{}", self.windows.kept_bytes);
            self.given_up |= before > 1 && taken.close.len() == before - 1 && self.windows.most == 1;
            for number in taken.close {
                self.streams.remove(&number);
            }
            for (number, from) in taken.open {
                self.open(number, from);
            }
            self.most_open = self.most_open.max(self.windows.open.len());
            for response in taken.ready {
                assert_eq!(response.canceled, None);
                for revision in self.assembler.take(response) {
                    self.judge(&revision);
                }
                self.check(self.assembler.known());
            }
            assert_eq!(self.assembler.stale, 0);
        }

        /// A revision comes in its turn, with all its changes in their order.
        fn judge(&mut self, seen: &Revision) {
            let Revision { revision, changes } = seen;
            assert!(*revision > self.heard);
            self.check(revision - 1);
            let keys = (0..self.history[usize::try_from(*revision).unwrap()])
                .map(|number| format!("{revision}/{number}"));
            let seen = changes.iter().map(|change| String::from_utf8(change.key.clone()).unwrap());
            assert!(keys.eq(seen), "{changes:?}");
            self.heard = *revision;
        }

        /// Nothing of ours is missing up to this revision.
        fn check(&mut self, through: i64) {
            let between = usize::try_from(self.heard + 1).unwrap()..usize::try_from(through + 1).unwrap();
            if !between.is_empty() {
                assert!(self.history[between].iter().all(|changes| *changes == 0), "lost before {through}");
            }
            self.heard = self.heard.max(through);
        }

        fn step(&mut self) {
            match self.random.random_range(0..16) {
                0 => self.sync(),
                1 => self.ask(),
                2..=6 => self.serve(),
                _ => self.hear(),
            }
        }
    }

    #[test]
    fn what_leaves_the_windows_is_as_if_one_watcher_had_sent_it() {
        let (mut several, mut given_up) = (0, 0);
        for seed in 0..3000 {
            let mut world = World::new(seed);
            for _ in 0..400 {
                world.step();
                if world.random.random_ratio(1, 40) {
                    let revisions = world.random.random_range(0..40);
                    let ours = world.random.random_range(0..=100);
                    world.write(revisions, ours);
                }
            }
            let mut steps = 0;
            while world.assembler.known() < world.head() {
                world.step();
                steps += 1;
                let (known, head) = (world.assembler.known(), world.head());
                assert!(steps < 100_000, "seed {seed}: stuck at {known} of {head}");
            }
            several += usize::from(world.most_open > 1);
            given_up += usize::from(world.given_up);
        }
        assert!(several > 1000 && given_up > 100, "{several} with windows, {given_up} with too large ones");
    }

    #[test]
    fn history_that_is_gone_is_told_of_whichever_window_lacks_it() {
        let mut world = World::new(1);
        world.history = vec![1; 200];
        for _ in 0..1000 {
            if world.windows.open.len() < 3 {
                world.step();
            }
        }
        let canceled = Some(Canceled { compacted: 150, reason: String::new() });
        let gone = Response { canceled, ..Response::default() };
        let number = world.windows.open[2].number;
        assert_eq!(world.windows.take(number, gone.clone()).ready.len(), 1);
        assert!(world.windows.take(99, gone).ready.is_empty(), "that one was closed");
    }
}
