//! The engine as a state machine: events in, commands out. It knows no clock, no connection and no randomness, so the
//! tests run this very code against a model of etcd, with every answer late, lost or repeated.
//!
//! One request to the target is under way at a time ([`Asked`]), beside reads of the pages that a scan needs next. A
//! write whose answer was lost is never repeated blindly: the keys of the mirror are read, and say whether it was done.
//!
//! ```text
//! own keys ─► sample of the source ─► take over ─► scan ──► stream
//!                 │                                 ▲          │ compacted, another configuration
//!                 └─► another source: count, stop   └──────────┘
//! ```

mod begin;
mod claim;
mod foreign;
mod leases;
mod pages;
mod source;
mod stream;
mod target;

use std::collections::VecDeque;

pub use foreign::{KEYS, Look, Standing};
pub use leases::{LeaseAnswer, LeaseRequest};
pub use source::progress_is_exact;

use super::assembler::{Assembler, Canceled, Response};
use super::batch::Revision;
use super::checkpoint::{Checkpoint, Claims, Identity, Owner, Position, Role, Site};
use super::config::{Config, Limits, MirrorId, Policy};
use super::keyspace::{Keyspace, Side, Span};
use super::resync::{Counts, Page};
use super::stop::Stop;
use super::transaction::{Answer, Stored, Transaction};
use crate::etcd::ClusterId;

/// What a run of a mirror is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The mirror's name.
    pub id: MirrorId,
    /// Which keys are where.
    pub config: Config,
    /// What the first sync may do; absent: what was said before.
    pub policy: Option<Policy>,
    /// How much goes into a transaction.
    pub limits: Limits,
    /// A word that no other run has ever had.
    pub epoch: String,
    /// Scan both sides, whatever the checkpoint says.
    pub resync: bool,
    /// The plan that a person has seen and permits.
    pub approved: Option<String>,
    /// How far to go.
    pub mode: Mode,
    /// An earlier turn of this run has seen the checkpoint: without one the target was emptied.
    pub ran: bool,
    /// The name of the source among the sites of a pair; absent: a mirror that knows no sites.
    pub active: Option<String>,
    /// Others' writes to the mirrored part of the target are made good.
    pub repair: bool,
}

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// On and on.
    Follow,
    /// Until the target has what the source had at the start.
    Once,
    /// Only count what a scan would do.
    DryRun,
}

/// What the machine wants done. Each but `Watch`, `Progress` and `Stop` is answered by one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read the mirror's own keys in the target: [`Event::Own`].
    ReadOwn,
    /// Send a transaction to the target: [`Event::Committed`].
    Commit(Transaction),
    /// Read part of the target, linearizably: [`Event::TargetPage`] of this number, or that there is none.
    ReadTarget(u64, Span, usize),
    /// Count the keys of the mapped part of the target: [`Event::TargetCount`].
    CountTarget,
    /// Find others' writes in these revisions of the target: [`Event::Looked`] of this number, or that nobody knows.
    Look {
        /// Tells its answer from that of an older one.
        number: u64,
        /// First revision.
        from: i64,
        /// Last revision.
        through: i64,
    },
    /// See to it that the parking lease exists: [`Event::Parked`].
    Park,
    /// A linearizable read of the source and then its status, on one connection: [`Event::Sample`].
    Probe {
        /// On another endpoint, and on a new connection.
        elsewhere: bool,
    },
    /// Read part of the source, linearizably: [`Event::SourcePage`] of this number.
    ReadSource(u64, Span, usize),
    /// Watch on the connection of the last sample, in place of any other: [`Event::Watched`] of this number.
    Watch {
        /// Tells its answers from those of an older one.
        number: u64,
        /// First revision.
        from: i64,
        /// How it is divided.
        watchers: Watchers,
    },
    /// Ask the watch for its progress.
    Progress,
    /// Write the key `site` of the source, unless there is one: [`Event::Sited`].
    WriteSite(Vec<u8>),
    /// Something about leases of both sides, beside everything else: [`Event::Lease`].
    Lease(LeaseRequest),
    /// It is over.
    Stop(Box<Stop>),
}

/// How a watch is divided among watchers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watchers {
    /// One over all mappings.
    One,
    /// The same; history that lies far behind may be read by several, if it comes as from one.
    Windows,
    /// One a mapping.
    Ranges,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The mirror's own keys.
    Own(Own),
    /// A transaction was answered.
    Committed(Answer),
    /// The target refused a request; nothing was done.
    Refused(Refusal),
    /// A request to the target has no answer; it may have been done, or may yet be.
    TargetSilent,
    /// Part of the target.
    TargetPage(u64, Page),
    /// A page of the target was larger than a message may be.
    TargetPageTooLarge(u64),
    /// A page of the target does not come.
    TargetPageLost(u64),
    /// How many keys the target has in the mapped part.
    TargetCount(u64),
    /// What others have written there.
    Looked(u64, Look),
    /// What others have written there is not known yet.
    LookLost(u64),
    /// The parking lease exists.
    Parked,
    /// What the source is now.
    Sample(Sample),
    /// Part of the source.
    SourcePage(u64, Page),
    /// A page of the source was larger than a message may be.
    SourcePageTooLarge(u64),
    /// The source has a key `site`, ours or another.
    Sited,
    /// The connection to the source is of no use any more; whatever was asked there has no answer.
    SourceSilent,
    /// An answer of a watch.
    Watched(u64, Response),
    /// A watch has ended.
    WatchEnded(u64),
    /// The user may not watch what was to be watched.
    WatchDenied(u64),
    /// What is known of leases now, as far as was answered, and the side that did not answer all.
    Lease(LeaseAnswer, Option<Side>),
    /// A tenth of a second has passed.
    Tick,
}

/// Why the target refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// More operations than its `--max-txn-ops`.
    TooManyOperations,
    /// More bytes than its `--max-request-bytes`.
    TooLarge,
    /// A lease of the transaction does not exist.
    NoLease,
}

/// The mirror's own keys in the target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Which cluster the target is.
    pub cluster: u64,
    /// Its revision as they were read.
    pub revision: i64,
    /// Who may write.
    pub owner: Option<Stored>,
    /// How far it has come.
    pub checkpoint: Option<Stored>,
    /// What the target is in a pair.
    pub site: Option<Stored>,
    /// Of all mirrors into it.
    pub claims: Option<Stored>,
}

/// What the source is at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Which cluster, and how far its raft is.
    pub identity: Identity,
    /// Its store's revision.
    pub head: i64,
    /// What it is in a pair.
    pub site: SeenSite,
    /// Of mirrors that copy into it; absent: the user's role has no right to read them.
    pub claims: Option<Claims>,
    /// Release of the etcd that answered.
    pub version: String,
}

/// The key `site` of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeenSite {
    /// There is none.
    Absent,
    /// The user's role has no right to read it.
    Unreadable,
    /// Its value.
    Value(Vec<u8>),
}

/// A request to the target that is under way, beside those for pages.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Own,
    Take,
    Claim,
    Data,
    Count,
    Park,
}

/// Where the machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// Reads what is known.
    Looking,
    /// Becomes the owner.
    Taking,
    /// Copies.
    Running,
    /// Reads both sides and writes nothing; in the end it stops for this reason.
    Counting(Why),
    /// Has stopped.
    Over,
}

/// Why it only counts.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    DryRun,
    TargetDiffers,
    PruneGuard,
    SourceChanged(ClusterId, ClusterId),
    SourceRewound(String),
}

/// The connection to the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// None that could be used.
    Down,
    /// A sample came over it.
    Up,
    /// A watch runs on it.
    Watching,
}

/// What must not be undercut by a sample that was asked for when this held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Floor {
    head: i64,
    identity: Option<Identity>,
}

/// A transaction with data that is under way.
#[derive(Clone, Debug)]
struct Flight {
    next: Checkpoint,
    /// That of `next`.
    value: Vec<u8>,
    transaction: Transaction,
    /// How many changes it has, and their bytes.
    size: (usize, usize),
    /// How many of them are deletes.
    deletes: usize,
    /// Key and size of the largest change.
    largest: (Vec<u8>, usize),
    effect: Effect,
}

/// What is true once it has been done.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Effect {
    /// So many waiting revisions are done.
    Stream(usize),
    /// So many of the revisions that came before the page are done; of the next one so many changes.
    Behind(usize, usize),
    /// So many of the page's differences are done.
    Page(usize),
    /// So many keys were put where there was none at all, on that condition.
    Settled(usize),
    /// So many keys were added, if nobody else has made them meanwhile.
    Added(usize),
    /// The revision moved, or the scan is over.
    Moved,
}

/// The machine.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a thing of its own to remember")]
pub struct Machine {
    settings: Settings,
    keyspace: Keyspace,
    owner: Vec<u8>,
    limits: Limits,
    stage: Stage,
    asked: Option<Asked>,
    own: Own,
    /// As it is in the target, and its value there.
    stored: Option<(Checkpoint, Vec<u8>)>,
    /// Where the target is; at times ahead of `stored`, when nothing had to be written.
    position: Position,
    policy: Policy,
    flight: Option<Flight>,
    parked: bool,
    leases: leases::Ledger,
    link: Link,
    probing: Option<Floor>,
    sample: Option<Sample>,
    /// Mirrors into the source have other claims than when ours was last looked at.
    claim_due: bool,
    watch: u64,
    assembler: Assembler,
    waiting: VecDeque<Revision>,
    waiting_bytes: usize,
    /// History that is needed is gone, or keys of the target are.
    compacted: bool,
    /// Others' keys have moved the source's revision since the checkpoint was written.
    others: bool,
    /// The checkpoint is moved for their sake.
    tell_quiet: bool,
    /// The source has had this revision; a newer sample cannot have less.
    base: i64,
    /// The next probe goes to another endpoint.
    elsewhere: bool,
    /// One watcher a mapping.
    ranges: bool,
    /// Since the watch last said something.
    silent_ticks: u32,
    /// With this head the target has caught up; for [`Mode::Once`].
    goal: Option<i64>,
    ticks: u32,
    scan: pages::Pages,
    foreign: foreign::Foreign,
    /// Why the scan began; what had been done by then.
    scanning: (&'static str, Stats),
    resynced: Option<Resynced>,
    counts: Counts,
    commands: Vec<Command>,
    stats: Stats,
}

/// What has been done, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Transactions with data or a checkpoint.
    pub transactions: u64,
    /// Changes in them.
    pub operations: u64,
    /// Of these, deletes.
    pub deletes: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Events of keys that a pattern matches.
    pub ignored: u64,
    /// Events that came again.
    pub stale: u64,
    /// Transactions that held part of a revision only.
    pub split: u64,
    /// Scans that began.
    pub scans: u64,
    /// Watches that were opened.
    pub watches: u64,
    /// Others' changes of mirrored keys in the target.
    pub foreign: u64,
}

/// A resync, from its beginning in this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resynced {
    /// Tells it from the one before.
    pub number: u64,
    /// Why, in words.
    pub why: &'static str,
    /// Changes that it wrote.
    pub operations: u64,
    /// Of these, deletes.
    pub deletes: u64,
}

/// What can be seen from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// `looking`, `first`, `resync`, `stream`, `counting`, `over`.
    pub phase: &'static str,
    /// The revision that the target holds.
    pub revision: i64,
    /// The newest revision of the source that was seen.
    pub head: i64,
    /// Whether the target is what the source was at `revision`.
    pub exact: bool,
    /// Keys compared in this scan.
    pub counts: Counts,
    /// What has been done.
    pub stats: Stats,
    /// The clusters of source and target.
    pub clusters: (Option<ClusterId>, Option<ClusterId>),
    /// What the target is in a pair.
    pub site: Option<Site>,
    /// By the checkpoint the target was equal to the source once.
    pub synced: bool,
    /// Others' writes to the mirrored part of the target that stand.
    pub foreign: Standing,
    /// Leases of the target that are kept alive.
    pub leases: usize,
    /// The last resync that has ended.
    pub resynced: Option<Resynced>,
}

impl Machine {
    /// A machine, and its first commands.
    pub fn start(settings: Settings, keyspace: Keyspace) -> (Self, Vec<Command>) {
        let owner = Owner { epoch: settings.epoch.clone(), role: Role::Agent };
        let mut machine = Self {
            owner: owner.text(),
            limits: settings.limits,
            policy: settings.policy.unwrap_or_default(),
            settings,
            keyspace,
            stage: Stage::Looking,
            asked: None,
            own: Own::default(),
            stored: None,
            position: Position::Stream { revision: 0, offset: 0 },
            flight: None,
            parked: false,
            leases: leases::Ledger::default(),
            link: Link::Down,
            probing: None,
            sample: None,
            claim_due: false,
            watch: 0,
            assembler: Assembler::new(1, 0),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            compacted: false,
            others: false,
            tell_quiet: false,
            base: 0,
            elsewhere: false,
            ranges: false,
            silent_ticks: 0,
            goal: None,
            ticks: 0,
            scan: pages::Pages::default(),
            foreign: foreign::Foreign::default(),
            scanning: ("an earlier run had begun it", Stats::default()),
            resynced: None,
            counts: Counts::default(),
            commands: Vec::new(),
            stats: Stats::default(),
        };
        machine.ask(Asked::Own, Command::ReadOwn);
        let commands = std::mem::take(&mut machine.commands);
        (machine, commands)
    }

    /// Takes an event; returns what is to be done.
    pub fn handle(&mut self, event: Event) -> Vec<Command> {
        if self.stage != Stage::Over {
            self.take(event);
            self.go_on();
        }
        std::mem::take(&mut self.commands)
    }

    /// Whether more of the watch may be read: what waits for the target is bounded.
    pub fn wants_events(&self) -> bool {
        self.waiting_bytes < self.limits.queue_bytes
    }

    /// Whether it has seen or written a checkpoint.
    pub fn has_checkpoint(&self) -> bool {
        self.stored.is_some()
    }

    /// What can be seen from outside.
    pub fn view(&self) -> View {
        let phase = match &self.stage {
            Stage::Looking | Stage::Taking => "looking",
            Stage::Counting(_) => "counting",
            Stage::Over => "over",
            Stage::Running => self.position.phase(),
        };
        View {
            phase,
            revision: self.position.revision(),
            head: self.sample.as_ref().map_or(0, |sample| sample.head).max(self.assembler.known()),
            exact: matches!(self.position, Position::Stream { offset: 0, .. })
                && self.stage == Stage::Running,
            counts: self.counts,
            stats: Stats { stale: self.assembler.stale, ..self.stats },
            clusters: (
                self.sample.as_ref().map(|sample| sample.identity.cluster),
                (self.own.cluster != 0).then_some(ClusterId(self.own.cluster)),
            ),
            site: self.own.site.as_ref().and_then(|stored| Site::parse(&stored.value).ok()),
            synced: self
                .stored
                .as_ref()
                .is_some_and(|(checkpoint, _)| !matches!(checkpoint.position, Position::First(_))),
            foreign: self.foreign.standing(),
            leases: self.leases.count(),
            resynced: self.resynced,
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Own(own) => self.on_own(own),
            Event::Committed(answer) => self.on_committed(&answer),
            Event::Refused(refusal) => self.on_refused(refusal),
            Event::TargetSilent => self.on_target_silent(),
            Event::TargetPage(number, page) => self.on_target_page(number, page),
            Event::TargetPageTooLarge(number) => self.on_target_page_too_large(number),
            Event::TargetPageLost(number) => self.on_target_page_lost(number),
            Event::TargetCount(count) => self.on_target_count(count),
            Event::Looked(number, look) => self.on_looked(number, look),
            Event::LookLost(number) => self.on_look_lost(number),
            Event::Parked => self.on_parked(),
            Event::Sample(sample) => self.on_sample(sample),
            Event::SourcePage(number, page) => self.on_source_page(number, page),
            Event::SourcePageTooLarge(number) => self.on_source_page_too_large(number),
            Event::Sited => self.on_sited(),
            Event::SourceSilent => self.on_source_silent(),
            Event::Watched(number, response) if number == self.watch => self.on_watched(response),
            Event::WatchEnded(number) if number == self.watch => self.on_source_silent(),
            Event::WatchDenied(number) if number == self.watch => self.on_watch_denied(),
            Event::Watched(..) | Event::WatchEnded(_) | Event::WatchDenied(_) => {}
            Event::Lease(answer, silent) => self.on_leases(answer, silent),
            Event::Tick => self.on_tick(),
        }
    }

    /// Asks for whatever comes next on either side.
    fn go_on(&mut self) {
        if self.stage == Stage::Over {
            return;
        }
        self.go_on_at_source();
        if self.asked.is_none() && !self.leases.is_awaited() {
            self.go_on_at_target();
        }
        self.ask_target_pages();
        if self.stage == Stage::Running {
            self.look_at_gap();
        }
        self.go_on_with_leases();
    }

    fn ask(&mut self, asked: Asked, command: Command) {
        self.asked = Some(asked);
        self.commands.push(command);
    }

    fn stop(&mut self, stop: Stop) {
        self.stage = Stage::Over;
        self.commands.push(Command::Stop(Box::new(stop)));
    }
}
