//! History read through several watchers at once, told as if one had sent it.
//!
//! etcd gives a watcher that is behind a thousand revisions, then waits 100 ms before it looks again
//! (`watchBatchMaxRevs` and `syncWatchersLoop` in etcd's watchable_store.go): one watcher reads some 6,500 revisions a
//! second, however fast the line and both stores are. But each of several watchers gets its thousand in the same round,
//! for one read of the store. So what lies far behind is cut into windows, a watcher each, on one stream:
//!
//! ```text
//! done │ window │ window │ window │ the last one has no end ─►
//!        handed on            kept until those before it are whole
//! ```
//!
//! - **Invariant (I4):** what is handed on is in order, once, and whole: a window is over when its watcher has sent
//!   something at or behind its end. How much etcd sends at once is a matter of speed only.
//! - An empty answer is no progress while several are open: it may be older than a watcher that was opened since. Nor is
//!   progress asked for; so no such answer is under way when the last one is alone. Hence windows begin on a new stream,
//!   never on one that was asked.
//! - What is kept is bounded: above [`Sizes::most_bytes`], and where nothing more comes (there are no more changes
//!   of ours up to the head), one watcher alone begins again where the oldest window is not whole.

use std::collections::VecDeque;

use super::assembler::{Response, STREAM};

/// Revisions that one watcher gets in a round; a window is never shorter.
const ROUND: i64 = 1000;
/// What there is to gain is worth a new stream if so many windows lie ahead.
const AHEAD: i64 = 4;
/// A window is at most so many times longer than one of a history in which every revision is ours.
const LONGEST: i64 = 64;
/// Wishes for progress without a word in between, after which nothing more is expected; a second each.
const PATIENCE: u32 = 3;

/// How much is read at once.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Revisions of a window, at least.
    pub shortest: i64,
    /// Windows at once.
    pub most: usize,
    /// Bytes of so many windows as are opened, by the size of what was seen last.
    pub bytes: usize,
    /// Bytes that are kept at most, but for one answer.
    pub most_bytes: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { shortest: ROUND, most: 16, bytes: 16 << 20, most_bytes: 32 << 20 }
    }
}

/// A watcher's part.
#[derive(Debug)]
struct Window {
    /// Its number; not known before it is created.
    watcher: Option<i64>,
    from: i64,
    /// The last revision of it.
    end: i64,
    /// Everything up to this revision has come.
    whole: i64,
    /// Something of this revision has come.
    begun: i64,
    /// etcd has not sent all of its first batch.
    fresh: bool,
    kept: Vec<Response>,
}

/// The end of the last window.
const ENDLESS: i64 = i64::MAX;

impl Window {
    fn from(from: i64) -> Self {
        let (whole, begun) = (from - 1, from - 1);
        Self { watcher: None, from, end: ENDLESS, whole, begun, fresh: true, kept: Vec::new() }
    }

    /// Half a revision has come.
    fn is_amid(&self) -> bool {
        self.begun > self.whole
    }

    /// Notes how far it has come, and takes away what lies behind its end. Returns how many revisions its first batch has
    /// covered, once that is over.
    fn trim(&mut self, response: &mut Response) -> Option<i64> {
        let last = response.events.last()?.revision;
        self.begun = self.begun.max(last);
        self.whole = self.whole.max(if response.fragment { last - 1 } else { last });
        let is_first = !response.fragment && std::mem::take(&mut self.fresh);
        if last > self.end {
            response.events.retain(|event| event.revision <= self.end);
            response.fragment = false;
        }
        is_first.then(|| last + 1 - self.from)
    }
}

/// What an answer leads to.
#[derive(Debug, Default)]
pub struct Taken {
    /// For the machine, in this order.
    pub ready: Vec<Response>,
    /// First revisions of further watchers.
    pub open: Vec<i64>,
    /// Watchers that are not needed any more.
    pub close: Vec<i64>,
}

/// The watchers of one stream.
#[derive(Debug)]
pub struct Windows {
    sizes: Sizes,
    /// In order.
    open: VecDeque<Window>,
    /// There are several; once there is one, there is one for as long as the stream lives.
    several: bool,
    /// Revisions of the next window.
    length: i64,
    /// Windows at once.
    most: usize,
    /// The newest revision of the source that was spoken of.
    head: i64,
    /// In all windows.
    kept_bytes: usize,
    /// What the last batch of a watcher that is alone began after, and its bytes.
    batch: (i64, usize),
    /// The machine knows that there is a watcher.
    told: bool,
    /// For progress, since the last answer.
    wishes: u32,
}

impl Windows {
    /// One watcher, from this revision on.
    pub fn one(from: i64, sizes: Sizes) -> Self {
        Self {
            sizes,
            open: VecDeque::from([Window::from(from)]),
            several: false,
            length: sizes.shortest,
            most: 1,
            head: 0,
            kept_bytes: 0,
            batch: (from - 1, 0),
            told: false,
            wishes: 0,
        }
    }

    /// First revisions of the watchers with which the stream begins.
    pub fn starts(&self) -> impl Iterator<Item = i64> {
        self.open.iter().map(|window| window.from)
    }

    /// Somebody wishes to know the stream's progress: whether etcd may be asked.
    pub fn may_ask(&mut self) -> bool {
        self.wishes += 1;
        !self.several && self.open.iter().all(|window| window.watcher.is_some())
    }

    /// Takes an answer of the stream.
    pub fn take(&mut self, response: Response) -> Taken {
        self.wishes = 0;
        self.head = self.head.max(response.head);
        let mut taken = Taken::default();
        if response.created && response.canceled.is_none() {
            self.created(response, &mut taken);
        } else if response.canceled.is_some() {
            self.canceled(response, &mut taken);
        } else if response.events.is_empty() {
            self.progress(response, &mut taken);
        } else if let Some(place) = self.place(response.watcher) {
            self.receive(place, response, &mut taken);
        }
        if self.several {
            self.extend(&mut taken.open);
            self.finish(&mut taken);
            self.several = self.open.len() > 1;
        }
        taken
    }

    /// What to go on with on a new stream, if that is better than this one.
    pub fn successor(&self) -> Option<Self> {
        let first = self.open.front().filter(|first| !first.is_amid())?;
        let mut next = Self::one(first.whole + 1, self.sizes);
        (next.head, next.told) = (self.head, self.told);
        if self.several {
            let enough = self.kept_bytes > self.sizes.most_bytes || self.wishes >= PATIENCE;
            return enough.then_some(next);
        }
        let (before, bytes) = self.batch;
        next.length = self.length_like(first.whole - before);
        next.most = (self.sizes.bytes / bytes.max(1)).min(self.sizes.most);
        if bytes == 0 || self.head - first.whole < AHEAD * next.length {
            return None;
        }
        next.extend(&mut Vec::new());
        next.several = next.open.len() > 1;
        next.several.then_some(next)
    }

    /// As long as what one batch has just covered.
    fn length_like(&self, covered: i64) -> i64 {
        covered.clamp(self.sizes.shortest, LONGEST * self.sizes.shortest)
    }

    fn place(&self, watcher: i64) -> Option<usize> {
        self.open.iter().position(|window| window.watcher == Some(watcher))
    }

    /// They are created in the order in which they were asked for.
    fn created(&mut self, response: Response, taken: &mut Taken) {
        if let Some(window) = self.open.iter_mut().find(|window| window.watcher.is_none()) {
            window.watcher = Some(response.watcher);
        }
        if !std::mem::replace(&mut self.told, true) {
            taken.ready.push(response);
        }
    }

    /// One of them is as bad as all: what it would have sent does not come. That we closed others is no news.
    fn canceled(&self, response: Response, taken: &mut Taken) {
        if response.created || self.place(response.watcher).is_some() {
            taken.ready.push(response);
        }
    }

    fn progress(&self, response: Response, taken: &mut Taken) {
        let of_all = response.watcher == STREAM || self.place(response.watcher).is_some();
        if of_all && !self.several {
            taken.ready.push(response);
        }
    }

    /// Changes, of a window that is open.
    fn receive(&mut self, place: usize, mut response: Response, taken: &mut Taken) {
        let Some(window) = self.open.get_mut(place) else { return };
        if !self.several {
            let (before, size) = if window.is_amid() { self.batch } else { (window.whole, 0) };
            self.batch = (before, size + bytes(&response));
        }
        let covered = window.trim(&mut response);
        // Without changes it would be progress.
        if !response.events.is_empty() {
            if place == 0 {
                taken.ready.push(response);
            } else {
                self.kept_bytes += bytes(&response);
                window.kept.push(response);
            }
        }
        if let Some(covered) = covered {
            self.length = self.length_like(covered);
        }
    }

    /// Gives the last window an end, and puts another behind it, as far as that is worth a watcher.
    fn extend(&mut self, opened: &mut Vec<i64>) {
        while self.open.len() < self.most
            && let Some(last) = self.open.back_mut()
        {
            let end = (last.from + self.length - 1).max(last.begun);
            if self.head - end < self.length {
                return;
            }
            last.end = end;
            self.open.push_back(Window::from(end + 1));
            opened.push(end + 1);
        }
    }

    /// Closes what is whole; what was kept for the next one goes on.
    fn finish(&mut self, taken: &mut Taken) {
        while self.open.front().is_some_and(|first| first.whole >= first.end) {
            taken.close.extend(self.open.pop_front().and_then(|first| first.watcher));
            let kept = self.open.front_mut().map(|next| std::mem::take(&mut next.kept)).unwrap_or_default();
            self.kept_bytes -= kept.iter().map(bytes).sum::<usize>();
            taken.ready.extend(kept);
        }
    }
}

fn bytes(response: &Response) -> usize {
    response.events.iter().map(|event| event.change.bytes()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::assembler::{Assembler, Canceled, Event};
    use crate::mirror::batch::Change;
    use rand::rngs::StdRng;
    use rand::seq::SliceRandom;
    use rand::{RngExt, SeedableRng};

    /// What is asked of the stream.
    enum Request {
        Open(i64),
        Close(i64),
        Progress,
    }

    struct Watcher {
        id: i64,
        next: i64,
    }

    /// A stream of etcd: what it was asked and has not looked at, its watchers, and what it has sent.
    #[derive(Default)]
    struct Stream {
        requests: VecDeque<Request>,
        watchers: Vec<Watcher>,
        sent: VecDeque<Response>,
        opened: i64,
    }

    /// An etcd with its history, one stream, and a machine that hears what it sends through windows.
    struct World {
        random: StdRng,
        /// Changes of ours, of each revision.
        history: Vec<usize>,
        stream: Stream,
        windows: Windows,
        assembler: Assembler,
        heard: i64,
        streams: usize,
        most_open: usize,
    }

    const SIZES: Sizes = Sizes { shortest: 5, most: 4, bytes: 6000, most_bytes: 3000 };

    fn change(revision: i64, number: usize, bytes: usize) -> Change {
        Change { key: format!("{revision}/{number}").into(), value: Some(vec![0; bytes]), lease: 0 }
    }

    impl World {
        fn new(seed: u64) -> Self {
            let windows = Windows::one(1, SIZES);
            let mut world = Self {
                random: StdRng::seed_from_u64(seed),
                history: vec![0],
                stream: Stream::default(),
                windows,
                assembler: Assembler::new(1, 0),
                heard: 0,
                streams: 0,
                most_open: 0,
            };
            let (revisions, ours) = (world.random.random_range(0..300), world.random.random_range(1..=100));
            world.write(revisions, ours);
            world.begin();
            world
        }

        fn head(&self) -> i64 {
            i64::try_from(self.history.len()).unwrap() - 1
        }

        /// So many revisions, of which so many in a hundred are ours. Who has everything hears of them at once.
        fn write(&mut self, revisions: usize, ours: u32) {
            for _ in 0..revisions {
                let is_ours = self.random.random_ratio(ours, 100);
                self.history.push(if is_ours { self.random.random_range(1..4) } else { 0 });
                let head = self.head();
                for place in 0..self.stream.watchers.len() {
                    if self.stream.watchers[place].next == head {
                        self.send(place, 1);
                    }
                }
            }
        }

        /// The next of a watcher's revisions that are ours, in pieces.
        fn send(&mut self, place: usize, most: usize) {
            let head = self.head();
            let watcher = &mut self.stream.watchers[place];
            let (mut events, mut revisions) = (Vec::new(), 0);
            while watcher.next <= head {
                let changes = self.history[usize::try_from(watcher.next).unwrap()];
                revisions += usize::from(changes > 0);
                if revisions > most {
                    break;
                }
                let bytes = if watcher.next % 97 < 5 { 600 } else { 1 };
                let changes = (0..changes).map(|number| change(watcher.next, number, bytes));
                events.extend(changes.map(|change| Event { revision: watcher.next, change }));
                watcher.next += 1;
            }
            let whole = Response { watcher: watcher.id, head, ..Response::default() };
            while !events.is_empty() {
                let size = if self.random.random() {
                    events.len()
                } else {
                    self.random.random_range(1..=events.len())
                };
                let later = events.split_off(size);
                let fragment = !later.is_empty();
                self.stream.sent.push_back(Response { fragment, events, ..whole.clone() });
                events = later;
            }
        }

        /// A round of those that do not have everything.
        fn sync(&mut self) {
            let mut places: Vec<usize> = (0..self.stream.watchers.len()).collect();
            places.shuffle(&mut self.random);
            for place in places {
                self.send(place, 5);
            }
        }

        /// Who has everything says so now and then.
        fn notify(&mut self) {
            let head = self.head();
            let Stream { watchers, sent, .. } = &mut self.stream;
            let whole = watchers.iter().filter(|watcher| watcher.next == head + 1);
            sent.extend(whole.map(|watcher| Response { watcher: watcher.id, head, ..Response::default() }));
        }

        fn begin(&mut self) {
            self.stream = Stream::default();
            self.streams += 1;
            self.stream.requests.extend(self.windows.starts().map(Request::Open));
        }

        fn serve(&mut self) {
            let head = self.head();
            let stream = &mut self.stream;
            match stream.requests.pop_front() {
                Some(Request::Open(from)) => {
                    let id = stream.opened;
                    stream.opened += 1;
                    stream.watchers.push(Watcher { id, next: from });
                    stream.sent.push_back(Response {
                        watcher: id,
                        created: true,
                        head,
                        ..Response::default()
                    });
                }
                Some(Request::Close(id)) => {
                    stream.watchers.retain(|watcher| watcher.id != id);
                    let canceled = Some(Canceled::default());
                    stream.sent.push_back(Response { watcher: id, canceled, head, ..Response::default() });
                }
                // etcd answers only if all watchers have everything.
                Some(Request::Progress) if stream.watchers.iter().all(|watcher| watcher.next == head + 1) => {
                    stream.sent.push_back(Response { watcher: STREAM, head, ..Response::default() });
                }
                Some(Request::Progress) | None => {}
            }
        }

        fn hear(&mut self) {
            let Some(response) = self.stream.sent.pop_front() else { return };
            let largest = SIZES.most_bytes + 5 * 3 * 800;
            let taken = self.windows.take(response);
            assert!(self.windows.kept_bytes <= largest, "{}", self.windows.kept_bytes);
            self.stream.requests.extend(taken.open.into_iter().map(Request::Open));
            self.stream.requests.extend(taken.close.into_iter().map(Request::Close));
            self.most_open = self.most_open.max(self.windows.open.len());
            for response in taken.ready {
                assert_eq!(response.canceled, None);
                for revision in self.assembler.take(response) {
                    assert!(revision.revision > self.heard);
                    let numbers =
                        (0..revision.changes.len()).map(|number| format!("{}/{number}", revision.revision));
                    let keys =
                        revision.changes.iter().map(|change| String::from_utf8(change.key.clone()).unwrap());
                    assert!(numbers.eq(keys), "{revision:?}");
                    self.check(revision.revision - 1);
                    assert_eq!(
                        revision.changes.len(),
                        self.history[usize::try_from(revision.revision).unwrap()]
                    );
                    self.heard = revision.revision;
                }
                self.check(self.assembler.known());
            }
            assert_eq!(self.assembler.stale, 0);
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
                1 if self.windows.may_ask() && self.assembler.ready() => {
                    self.stream.requests.push_back(Request::Progress);
                }
                2 => self.notify(),
                3..=6 => self.serve(),
                _ => self.hear(),
            }
            if let Some(next) = self.windows.successor() {
                self.windows = next;
                self.begin();
            }
        }
    }

    #[test]
    fn what_leaves_the_windows_is_as_if_one_watcher_had_sent_it() {
        let (mut several, mut streams) = (0, 0);
        for seed in 0..3000 {
            let mut world = World::new(seed);
            for _ in 0..400 {
                world.step();
                if world.random.random_ratio(1, 40) {
                    let (revisions, ours) =
                        (world.random.random_range(0..40), world.random.random_range(0..=100));
                    world.write(revisions, ours);
                }
            }
            let mut steps = 0;
            while world.assembler.known() < world.head() {
                world.step();
                steps += 1;
                assert!(
                    steps < 100_000,
                    "seed {seed}: stuck at {} of {}",
                    world.assembler.known(),
                    world.head()
                );
            }
            several += usize::from(world.most_open > 1);
            streams += world.streams;
        }
        assert!(several > 1000 && streams > 6000, "{several} with windows, {streams} streams");
    }

    #[test]
    fn history_that_is_gone_is_told_of_whichever_window_lacks_it() {
        let mut world = World::new(1);
        world.history = vec![1; 200];
        let third = |world: &World| world.windows.open.get(2).and_then(|window| window.watcher);
        for _ in 0..1000 {
            if third(&world).is_none() {
                world.step();
            }
        }
        let watcher = third(&world).unwrap();
        let canceled = Some(Canceled { compacted: 150, reason: String::new() });
        let gone = Response { watcher, canceled, ..Response::default() };
        let closed = Response { watcher: 99, ..gone.clone() };
        assert_eq!(world.windows.take(gone).ready.len(), 1);
        assert!(world.windows.take(closed).ready.is_empty());
    }
}
