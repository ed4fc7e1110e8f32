//! Drives the machine: its commands go to both sides, what comes of them goes back, and a clock ticks.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;

use super::connect::{Access, Connection};
use super::follow::{Came, Source};
use super::inspect::discarded;
use super::keyspace::{InvalidKeyspace, Keyspace, Side};
use super::lag::Lag;
use super::lease::Lessor;
use super::machine::{Command, Event, Look, Machine, Mode, Settings, View, progress_is_exact};
use super::pace::{Pace, Pacer};
use super::stop::Stop;
use super::text::shown;
use super::write::Target;

/// The machine's clock.
const TICK: Duration = Duration::from_millis(100);
/// The first pause after a failure, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long a mirror that stopped by itself waits until it looks whether the cause was cured.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How often the source is asked how much of its history is gone.
const HISTORY_AGAIN: Duration = Duration::from_secs(30);
/// Answers on their way to the machine: it has at most six requests under way.
const ANSWERS: usize = 16;

/// What a mirror is run with.
#[derive(Clone, Debug)]
pub struct Order {
    /// What the machine is told. Its epoch is chosen here, one for each run.
    pub settings: Settings,
    /// Where to copy from.
    pub source: Access,
    /// Where to copy to.
    pub target: Access,
    /// How fast it may write.
    pub pace: Pace,
}

/// How it is, for whoever looks.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What the machine says of itself.
    pub view: Option<View>,
    /// Age of what the target has.
    pub lag: Option<Duration>,
    /// The same, or how long it has been unknown.
    pub lag_seconds: f64,
    /// Why the source does not answer.
    pub source_problem: Option<Trouble>,
    /// Why the target does not answer.
    pub target_problem: Option<Trouble>,
    /// Keys of the source's mapped part when the scan began.
    pub source_keys: Option<u64>,
    /// Why it stopped, if it did.
    pub stopped: Option<Stop>,
    /// The revision up to which the source's history is gone; 0: nothing is. Absent: it is not known.
    pub discarded: Option<i64>,
}

impl Report {
    /// Part of the source's history that is left behind the checkpoint: 1 is all of it, at 0 a scan is needed. Absent:
    /// it is not known, or a scan is under way.
    #[expect(clippy::cast_precision_loss, reason = "revisions are far below 2^53")]
    pub fn history_margin(&self) -> Option<f64> {
        let view = self.view.as_ref().filter(|view| view.phase == "stream")?;
        let discarded = self.discarded?;
        let (left, kept) = ((view.revision - discarded).max(0), view.head - discarded);
        let all = view.revision >= view.head;
        Some(if all { 1.0 } else { (left as f64 / kept.max(1) as f64).min(1.0) })
    }
}

/// What goes wrong on one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// In words.
    pub text: String,
    /// When it began.
    pub since: Instant,
}

/// A report that is written in one place and read in others.
#[derive(Clone, Default)]
pub struct Board(Arc<Mutex<Report>>);

impl Board {
    /// The report as it is now. A panic elsewhere leaves it whole: each change is one step.
    pub fn read(&self) -> MutexGuard<'_, Report> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Told,
    /// By itself.
    Stopped(Stop),
}

/// Mirrors until `told` resolves, or it is over by itself.
pub async fn run(
    order: Order,
    board: Board,
    told: impl Future<Output = ()>,
) -> Result<Ended, InvalidKeyspace> {
    let keyspace = order.settings.config.keyspace()?;
    let mut told = std::pin::pin!(told);
    let mut settings = order.settings.clone();
    let begun = Instant::now();
    loop {
        settings.epoch = format!("{:032x}", rand::random::<u128>());
        let turn = Turn::new(settings.clone(), &keyspace, &order, &board, begun);
        let (stop, ran) = tokio::select! {
            ended = turn.go() => ended,
            never = look_at_history(&order.source, &keyspace, &board) => match never {},
            () = &mut told => return Ok(Ended::Told),
        };
        board.read().stopped = Some(stop.clone());
        if stop.is_final() || settings.mode != Mode::Follow {
            return Ok(Ended::Stopped(stop));
        }
        tracing::warn!(reason = stop.reason(), "stopped: {stop}");
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = &mut told => return Ok(Ended::Told),
        }
        settings.resync = false;
        settings.ran |= ran;
    }
}

/// Reports how much of the source's history is gone, again and again; a side that does not answer is told by others.
async fn look_at_history(source: &Access, keyspace: &Keyspace, board: &Board) -> Infallible {
    let mut clock = tokio::time::interval(HISTORY_AGAIN);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut connection, mut turn) = (Connection::default(), 0);
    loop {
        clock.tick().await;
        match discarded(source, (&connection, turn), keyspace).await {
            Ok(revision) => board.read().discarded = Some(revision),
            Err(error) => {
                tracing::debug!("how much history the source has is not known: {error}");
                (connection, turn) = (Connection::default(), turn + 1);
            }
        }
    }
}

/// One life of a machine.
struct Turn<'a> {
    machine: Machine,
    first: Vec<Command>,
    source: Source,
    target: Target,
    lessor: Lessor,
    came: mpsc::Receiver<Came>,
    heard: mpsc::Receiver<Came>,
    source_failures: u32,
    target_failures: u32,
    lease_problem: Option<String>,
    pacer: Pacer,
    told_version: bool,
    scans: bool,
    counting: Option<AbortHandle>,
    lag: Lag,
    begun: Instant,
    board: &'a Board,
}

impl<'a> Turn<'a> {
    fn new(settings: Settings, keyspace: &Keyspace, order: &Order, board: &'a Board, begun: Instant) -> Self {
        let (send, came) = mpsc::channel(ANSWERS);
        let id = settings.id.clone();
        let (source, heard) = Source::new(order.source.clone(), keyspace.clone(), &id, send.clone());
        let lessor = Lessor::new(order.source.clone(), order.target.clone(), keyspace, send.clone());
        let target = Target::new(order.target.clone(), keyspace.clone(), id, send);
        let (machine, first) = Machine::start(settings, keyspace.clone());
        let lag = Lag::default();
        let (source_failures, target_failures) = (0, 0);
        let pacer = Pacer::new(order.pace);
        Self {
            machine,
            first,
            source,
            target,
            lessor,
            came,
            heard,
            source_failures,
            target_failures,
            lease_problem: None,
            pacer,
            told_version: false,
            scans: false,
            counting: None,
            lag,
            begun,
            board,
        }
    }

    /// Until it stops by itself; also whether it has come so far as to have a checkpoint.
    async fn go(mut self) -> (Stop, bool) {
        let mut clock = tokio::time::interval(TICK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut commands = std::mem::take(&mut self.first);
        loop {
            for command in commands.drain(..) {
                if let Some(stop) = self.obey(command) {
                    return (stop, self.machine.has_checkpoint());
                }
            }
            let (event, problem) = tokio::select! {
                biased;
                // First, so that a stream without an end does not stop the clock.
                _ = clock.tick() => (Event::Tick, None),
                Some(came) = self.came.recv() => came,
                Some(heard) = self.heard.recv(), if self.machine.wants_events() => heard,
            };
            self.note(&event, problem);
            commands = self.machine.handle(event);
            self.report();
        }
    }

    fn obey(&mut self, command: Command) -> Option<Stop> {
        match command {
            Command::Stop(stop) => return Some(*stop),
            Command::Probe { elsewhere } => self.source.probe(elsewhere, pause(self.source_failures)),
            Command::ReadSource(number, span, keys) => self.source.read(number, span, keys),
            Command::Watch { number, from, watchers } => self.source.watch(number, from, watchers),
            Command::Progress => self.source.ask_for_progress(),
            Command::WriteSite(value) => self.source.write_site(value),
            Command::Lease(request) => self.lessor.ask(request),
            Command::Commit(transaction) => {
                let wait = pause(self.target_failures).max(self.pacer.wait(&transaction, Instant::now()));
                self.target.ask(Command::Commit(transaction), wait);
            }
            command @ (Command::ReadOwn
            | Command::ReadTarget(..)
            | Command::Look { .. }
            | Command::CountTarget
            | Command::Park) => {
                self.target.ask(command, pause(self.target_failures));
            }
        }
        None
    }

    /// Remembers what fails, to try again later each time.
    fn note(&mut self, event: &Event, problem: Option<String>) {
        match event {
            Event::SourceSilent | Event::WatchEnded(_) | Event::WatchDenied(_) => {
                self.source_failures += 1;
                self.tell_source(problem);
            }
            Event::TargetSilent | Event::TargetPageLost(_) => {
                self.target_failures += 1;
                self.target.go_elsewhere();
                self.tell_target(problem);
            }
            Event::Watched(..) | Event::SourcePage(..) => {
                self.source_failures = 0;
                self.tell_source(None);
            }
            Event::Own(_)
            | Event::Committed(_)
            | Event::TargetPage(..)
            | Event::TargetCount(_)
            | Event::Parked => {
                self.target_failures = 0;
                self.tell_target(None);
            }
            Event::Sample(sample) => {
                self.lag.look(self.begun.elapsed(), sample.head);
                self.tell_version(&sample.version);
            }
            Event::Looked(_, look) => {
                self.target_failures = 0;
                self.tell_target(None);
                tell_look(look);
            }
            Event::LookLost(_) => {
                let problem = problem.unwrap_or_default();
                tracing::warn!(
                    "whether others write to the target is not known, it is looked at again: {problem}"
                );
            }
            Event::Refused(refusal) => {
                tracing::info!(?refusal, "the target refused a request, and gets another one");
            }
            Event::Lease(_, silent) => self.note_leases(*silent, problem),
            Event::SourcePageTooLarge(_) | Event::TargetPageTooLarge(_) | Event::Sited | Event::Tick => {}
        }
    }

    /// Says once what a release of the source cannot do.
    fn tell_version(&mut self, version: &str) {
        if !progress_is_exact(version) && !std::mem::replace(&mut self.told_version, true) {
            tracing::warn!(
                "the source is etcd {version}, whose answers about the progress of a watch may be ahead of its events: the \
                 checkpoint moves with changes only, and history that is compacted meanwhile costs a scan. Upgrade it to \
                 3.4.31, 3.5.13, 3.6.2 or newer"
            );
        }
    }

    fn tell_source(&mut self, problem: Option<String>) {
        let mut report = self.board.read();
        tell("source", &mut report.source_problem, problem);
    }

    /// A source that does not answer is told by whatever else is asked of it.
    fn note_leases(&mut self, silent: Option<Side>, problem: Option<String>) {
        if let (Some(side), Some(problem)) = (silent, &problem) {
            tracing::debug!(?side, "leases: {problem}");
            self.lessor.go_elsewhere(side);
        }
        let problem = problem.filter(|_| silent == Some(Side::Target));
        if problem != self.lease_problem {
            self.lease_problem = problem;
            self.tell_target(None);
        }
    }

    fn tell_target(&mut self, problem: Option<String>) {
        let problem = problem.or_else(|| self.lease_problem.clone());
        let mut report = self.board.read();
        tell("target", &mut report.target_problem, problem);
    }

    /// For whoever looks only: a scan goes on without it.
    fn count_source(&mut self) {
        let (count, board) = (self.source.count(), self.board.clone());
        let task = tokio::spawn(async move {
            let counted = count.await;
            board.read().source_keys = counted;
        });
        self.counting = Some(task.abort_handle());
    }

    fn report(&mut self) {
        let view = self.machine.view();
        let reached = if view.exact { view.revision } else { 0 };
        self.lag.reached(reached);
        let now = self.begun.elapsed();
        let scans = matches!(view.phase, "first" | "resync" | "counting");
        if scans && !std::mem::replace(&mut self.scans, scans) {
            self.count_source();
        }
        self.scans = scans;
        let mut report = self.board.read();
        report.lag = self.lag.age(now, reached);
        report.lag_seconds = self.lag.seconds(now, reached);
        // Not before it has got further than where it stopped: it looks again every few seconds.
        if view.exact || view.stats.transactions > 0 {
            report.stopped = None;
        }
        report.view = Some(view);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.source.hang_up();
        self.target.hang_up();
        self.lessor.hang_up();
        if let Some(task) = self.counting.take() {
            task.abort();
        }
    }
}

/// Logs what changed, once.
fn tell(side: &'static str, known: &mut Option<Trouble>, problem: Option<String>) {
    if known.as_ref().map(|trouble| &trouble.text) == problem.as_ref() {
        return;
    }
    if let Some(problem) = &problem {
        tracing::warn!(side, "no answer: {problem}");
    } else {
        tracing::info!(side, "answers");
    }
    let since = known.as_ref().map_or_else(Instant::now, |trouble| trouble.since);
    *known = problem.map(|text| Trouble { text, since });
}

fn tell_look(look: &Look) {
    if look.writes > 0 {
        let keys: Vec<String> = look.keys.iter().map(|key| shown(key)).collect();
        let (writes, keys) = (look.writes, keys.join(", "));
        tracing::warn!(writes, "somebody else has written to mirrored keys of the target, among them {keys}");
    } else if look.unknown {
        tracing::info!(
            "whether others wrote to the target cannot be known: its history is gone, or its etcd too old"
        );
    }
}

/// Longer each time, and never the same for two agents.
fn pause(failures: u32) -> Duration {
    let Some(doubled) = failures.checked_sub(1) else { return Duration::ZERO };
    let (first, longest) = PAUSES;
    let full = first.saturating_mul(1 << doubled.min(16)).min(longest);
    full.mul_f64(0.5 + 0.5 * rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_left_as_long_as_the_checkpoint_is_not_overtaken() {
        let margin = |phase, (discarded, revision, head): (i64, i64, i64)| {
            let view = Some(View { phase, revision, head, ..View::default() });
            Report { view, discarded: Some(discarded), ..Report::default() }.history_margin()
        };
        for (revisions, expected) in [
            ((0, 100, 100), 1.0),
            ((100, 100, 100), 1.0),
            ((0, 75, 100), 0.75),
            ((90, 92, 100), 0.2),
            ((80, 70, 100), 0.0),
            // The head is of a moment before.
            ((120, 110, 115), 0.0),
        ] {
            assert_eq!(margin("stream", revisions), Some(expected), "{revisions:?}");
        }
        assert_eq!(margin("resync", (0, 75, 100)), None, "a scan needs no history");
        assert_eq!(Report::default().history_margin(), None, "unknown is not all");
    }
}
