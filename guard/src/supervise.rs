//! Runs etcd: signals to it, its log through, its position marked, its end reported.
//!
//! One thread decides, on a queue of events; two copy etcd's log and one hears signals. **Invariant:** as process 1
//! of the container this reaps every orphan, and etcd's own end is never lost among them.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};

use crate::config::{Config, DATA};
use crate::decide::check_new_log;
use crate::durable;
use crate::identity::Identity;
use crate::lines::{self, Lines, refuses_flags};
use crate::log;
use crate::mark::{MARK, Mark};
use crate::refusal::{Cause, Refusal};
use crate::stamp::{Phase, Stamp};
use crate::steps::{discard, finish_discarding, perform, stamping};
use crate::tail::{Tail, TailError};
use crate::volume;

/// How often to look for the log of a first boot: how long a member can vote before its stamp says so.
const FIRST_LOOK: Duration = Duration::from_millis(50);

/// How often to mark; the most that a mark lags behind.
const MARK_INTERVAL: Duration = Duration::from_secs(2);

/// Old data go only after etcd has run on the new ones for so long, or for as long as they are kept, if that is shorter.
const PROVEN: Duration = Duration::from_mins(10);

/// How often to look for old data afterwards.
const PRUNE_INTERVAL: Duration = Duration::from_mins(10);

/// etcd is killed this long before the kubelet would kill the guard with it, so that the end can be reported.
const REPORT_TIME: Duration = Duration::from_secs(5);

/// However short the grace period, etcd gets this long.
const SHORTEST_GRACE: Duration = Duration::from_secs(1);

/// The pause before a failed first boot is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// First boots are tried this often in one container. Then it ends, since the operator reads causes only from
/// containers that have ended, and the kubelet starts it again.
const FIRST_BOOTS: u32 = 10;

/// How long after a snapshot a new member publishes itself, if it does at all: ten times the way to the leader and back
/// that etcd's default election timeout is meant for.
const PUBLICATION_TIME: Duration = Duration::from_secs(1);

/// How often that is looked for.
const PUBLICATION_LOOK: Duration = Duration::from_millis(200);

/// How long a process that inherited etcd's log may keep it open after etcd's end.
const LOG_TIME: Duration = Duration::from_secs(1);

/// Orphans reaped at once; more wait for the next round.
const MAX_REAPED: usize = 1000;

/// What can happen.
#[derive(Debug)]
pub enum Event {
    /// A signal came.
    Signal(i32),
    /// One of etcd's two logs is closed.
    LogClosed,
    /// The resolver answered: the own address, or what else.
    Answer(Result<(), String>),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// With this exit code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// How etcd ended.
#[derive(Debug)]
pub struct Ended {
    /// Code or signal.
    pub status: Status,
    /// How long the last try ran.
    pub ran_for: Duration,
    /// etcd's last fatal lines.
    pub lines: Vec<String>,
    /// Why the guard ended it, if it did.
    pub refusal: Option<Refusal>,
}

/// etcd and everything that is watched about it.
#[derive(Debug)]
pub struct Supervisor<'a> {
    config: &'a Config,
    events: &'a Receiver<Event>,
    sender: &'a Sender<Event>,
    tail: Tail,
    stamp: Stamp,
    mark: Option<Mark>,
    lines: Arc<Mutex<Lines>>,
    open_logs: u32,
    kill_at: Option<Instant>,
    refusal: Option<Refusal>,
    publication: Publication,
}

/// Whether a new member has told its name to the others.
///
/// etcd proposes it once it has started, and serves clients only when it has seen it committed. A snapshot that comes
/// just then may hold that very entry: etcd never sees it by itself, and proposes it again only after 5 s and two
/// elections (`publishV3` in server/etcdserver/server.go). Started anew it holds the data already and is heard at once. A
/// learner has no vote that could be missed meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Publication {
    /// Not the first start on this volume, or it has published itself: nothing is waited for.
    Done,
    /// The first start.
    Awaited,
    /// etcd was told to end, to be started once more.
    Lost,
}

impl<'a> Supervisor<'a> {
    /// Ready to start etcd on a volume that was found good: with this stamp, this log and this mark.
    pub fn new(
        config: &'a Config,
        (events, sender): (&'a Receiver<Event>, &'a Sender<Event>),
        (stamp, tail, mark): (Stamp, Tail, Option<Mark>),
    ) -> Self {
        let lines = Arc::new(Mutex::new(Lines::default()));
        let publication =
            if stamp.phase == Phase::Started { Publication::Done } else { Publication::Awaited };
        Self {
            config,
            events,
            sender,
            tail,
            stamp,
            mark,
            lines,
            open_logs: 0,
            kill_at: None,
            refusal: None,
            publication,
        }
    }

    /// Whether a log was ever seen.
    pub fn has_started(&self) -> bool {
        self.stamp.phase == Phase::Started
    }

    /// What was read of the log.
    pub fn tail(&self) -> &Tail {
        &self.tail
    }

    /// Runs etcd to its end. One that fails before it has a log is tried again, without the kubelet's back-off.
    pub fn run(&mut self) -> Result<Ended, Refusal> {
        if self.stamp.phase == Phase::Fresh {
            self.restamp(Stamp { phase: Phase::Starting, ..self.stamp.clone() })?;
        }
        self.look();
        let mut boots_left = FIRST_BOOTS;
        loop {
            let ended = self.run_once()?;
            if self.publication == Publication::Lost && self.kill_at.is_none() && ended.refusal.is_none() {
                self.publication = Publication::Done;
                continue;
            }
            boots_left -= 1;
            let in_vain =
                ended.status == Status::Exit(0) || ended.lines.last().is_some_and(|line| refuses_flags(line));
            if in_vain || self.has_started() || self.kill_at.is_some() || boots_left == 0 {
                return Ok(ended);
            }
            log::warn("etcd ended before it wrote an entry; it is tried again in a second");
            if self.pause() {
                return Ok(ended);
            }
            self.clean()?;
        }
    }

    fn run_once(&mut self) -> Result<Ended, Refusal> {
        let begun = Instant::now();
        let mut child = self.spawn().map_err(|error| {
            let program =
                self.config.command.first().map(|program| program.to_string_lossy()).unwrap_or_default();
            Refusal::new(Cause::BadConfiguration, format!("could not start {program}: {error}"))
        })?;
        let pid = Pid::from_child(&child);
        self.open_logs = 2;
        // What an earlier try said is no reason for the end of this one.
        self.lines = Arc::default();
        self.copy_log(&mut child);
        let status = self.watch(pid);
        let ran_for = begun.elapsed();
        self.wait_for_log();
        self.look();
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner).kept();
        Ok(Ended { status, ran_for, lines, refusal: self.refusal.take() })
    }

    fn spawn(&self) -> io::Result<Child> {
        let (program, arguments) =
            self.config.command.split_first().unwrap_or((const { &OsString::new() }, &[]));
        Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    }

    fn copy_log(&self, child: &mut Child) {
        if let Some(source) = child.stdout.take() {
            let (lines, sender) = (Arc::clone(&self.lines), self.sender.clone());
            thread::spawn(move || {
                lines::pump(source, io::stdout(), &lines);
                drop(sender.send(Event::LogClosed));
            });
        }
        if let Some(source) = child.stderr.take() {
            let (lines, sender) = (Arc::clone(&self.lines), self.sender.clone());
            thread::spawn(move || {
                lines::pump(source, io::stderr(), &lines);
                drop(sender.send(Event::LogClosed));
            });
        }
    }

    /// Until etcd ends. Every way leads through `reap` at least every [`MARK_INTERVAL`].
    fn watch(&mut self, etcd: Pid) -> Status {
        let mut look_at = Instant::now() + self.look_interval();
        let mut prune_at = self.config.keep_old_data.map(|kept| Instant::now() + kept.min(PROVEN));
        loop {
            if let Some(status) = reap(etcd) {
                return status;
            }
            let now = Instant::now();
            if now >= look_at {
                self.look();
                look_at = Instant::now() + self.look_interval();
            }
            if prune_at.is_some_and(|prune_at| now >= prune_at) {
                self.prune();
                prune_at = Some(Instant::now() + PRUNE_INTERVAL);
            }
            self.look_for_publication(etcd);
            if self.refusal.is_some() || self.kill_at.is_some_and(|kill_at| now >= kill_at) {
                send(etcd, Signal::KILL);
            }
            let kill_at = self.kill_at.filter(|kill_at| *kill_at > now);
            let publication = (self.publication == Publication::Awaited).then(|| now + PUBLICATION_LOOK);
            let next = [kill_at, publication].into_iter().flatten().fold(look_at, Instant::min);
            match self.events.recv_timeout(next.saturating_duration_since(now)) {
                Ok(Event::Signal(signal)) => self.forward(signal, etcd),
                Ok(Event::LogClosed) => self.open_logs = self.open_logs.saturating_sub(1),
                Ok(Event::Answer(_)) | Err(_) => (),
            }
        }
    }

    /// Ends an etcd that has lost its publication, once.
    fn look_for_publication(&mut self, etcd: Pid) {
        if self.publication != Publication::Awaited {
            return;
        }
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = lines.unpublished_since().is_some_and(|since| since.elapsed() >= PUBLICATION_TIME);
        if lines.has_published() {
            self.publication = Publication::Done;
        } else if lost {
            self.publication = Publication::Lost;
            log::info(
                "etcd has the data and does not serve: it lost its publication to the snapshot; it is started once more",
            );
            send(etcd, Signal::TERM);
        }
    }

    fn look_interval(&self) -> Duration {
        if self.has_started() { MARK_INTERVAL } else { FIRST_LOOK }
    }

    fn forward(&mut self, signal: i32, etcd: Pid) {
        if signal == SIGCHLD {
            return;
        }
        if let Some(signal) = Signal::from_named_raw(signal) {
            send(etcd, signal);
        }
        if matches!(signal, SIGTERM | SIGINT) && self.kill_at.is_none() {
            let grace = self.config.grace.saturating_sub(REPORT_TIME).max(SHORTEST_GRACE);
            self.kill_at = Some(Instant::now() + grace);
        }
    }

    /// Waits a second between two first boots; true if a signal asks to end.
    fn pause(&self) -> bool {
        let end = Instant::now() + RETRY_PAUSE;
        loop {
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Event::Signal(signal)) if signal != SIGCHLD => return true,
                Ok(_) => (),
                Err(_) => return false,
            }
        }
    }

    /// Removes what a failed first boot left; the last look has found no log, or a blank one.
    fn clean(&mut self) -> Result<(), Refusal> {
        let data = self.config.data();
        let unusable = |error| {
            Refusal::new(Cause::VolumeUnwritable, format!("could not look at {}: {error}", data.display()))
        };
        if fs::exists(&data).map_err(unusable)? {
            discard(DATA).iter().try_for_each(|step| perform(step, self.config))?;
        }
        self.tail = Tail::new(volume::log_directory(self.config));
        Ok(())
    }

    fn wait_for_log(&mut self) {
        let end = Instant::now() + LOG_TIME;
        while self.open_logs > 0 {
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Event::LogClosed) => self.open_logs -= 1,
                Ok(Event::Signal(_) | Event::Answer(_)) => (),
                Err(_) => return,
            }
        }
    }

    /// Looks at the log: stamps `started` as soon as it is more than blank, and raises the mark. What fails here is
    /// tried again at the next look; it is no reason to stop a database.
    fn look(&mut self) {
        let unreadable = match self.tail.advance() {
            Err(TailError::Absent(_)) => return,
            Err(_) => true,
            Ok(()) => false,
        };
        let summary = self.tail.log().summary();
        if !self.has_started() {
            self.refusal = summary.and_then(|summary| check_new_log(self.config, summary.identity));
            let blank = summary.is_none_or(|summary| summary.is_blank()) && !unreadable;
            if blank || !self.stamp_started(summary.map(|summary| summary.identity)) {
                return;
            }
        }
        if let Some(mark) = summary.as_ref().map(Mark::of) {
            self.raise_mark(mark);
        }
    }

    /// Deletes old data whose time is over. What fails is tried again: it is no reason to stop a database.
    fn prune(&self) {
        let (Some(kept_for), true) = (self.config.keep_old_data, self.has_started()) else { return };
        let volume = self.config.volume.as_path();
        let steps = volume::is_discarding(volume).and_then(|discarding| {
            let rest = if discarding { finish_discarding().to_vec() } else { Vec::new() };
            let old = volume::old_backups(volume, kept_for, SystemTime::now())?;
            Ok(rest.into_iter().chain(old.iter().flat_map(|name| discard(name))).collect::<Vec<_>>())
        });
        match steps {
            Err(error) => log::warn(&log::chain(&error)),
            Ok(steps) if steps.is_empty() => (),
            Ok(steps) => match steps.iter().try_for_each(|step| perform(step, self.config)) {
                Err(refusal) => log::warn(&refusal.sentence),
                Ok(()) => log::info("old data that were put aside are deleted: their time is over"),
            },
        }
    }

    fn stamp_started(&mut self, identity: Option<Identity>) -> bool {
        let stamp = Stamp {
            phase: Phase::Started,
            cluster_id: identity.map(|identity| identity.cluster),
            member_id: identity.map(|identity| identity.member),
            ..self.stamp.clone()
        };
        if let Err(refusal) = self.restamp(stamp) {
            log::warn(&refusal.sentence);
            return false;
        }
        if let Some(identity) = identity {
            log::info(&format!("etcd has written its first entries, as {identity}"));
        }
        true
    }

    fn raise_mark(&mut self, mark: Mark) {
        let higher = |old: &Mark| old.identity() == mark.identity() && old.order() < mark.order();
        if self.mark.as_ref().is_some_and(|old| !higher(old)) {
            return;
        }
        match durable::replace(&self.config.state, MARK, &mark) {
            Ok(()) => self.mark = Some(mark),
            Err(error) => log::warn(&format!("could not write the mark: {error}")),
        }
    }

    fn restamp(&mut self, stamp: Stamp) -> Result<(), Refusal> {
        stamping(&stamp).iter().try_for_each(|step| perform(step, self.config))?;
        self.stamp = stamp;
        Ok(())
    }
}

/// Takes the ends of all children that have ended, etcd's and those of orphans.
fn reap(etcd: Pid) -> Option<Status> {
    let mut found = None;
    for _ in 0..MAX_REAPED {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == etcd => {
                let code = status.exit_status().map(Status::Exit);
                found = code.or(status.terminating_signal().map(Status::Signal));
            }
            Ok(Some(_)) => (),
            Ok(None) | Err(_) => break,
        }
    }
    found
}

fn send(etcd: Pid, signal: Signal) {
    if let Err(error) = kill_process(etcd, signal) {
        log::warn(&format!("could not send {signal:?} to etcd: {error}"));
    }
}
