//! From the start of the container to its end, in five lines: lock, look, decide, do, run.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::thread;

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::{self, Config, Lookup};
use crate::decide::{Decision, decide};
use crate::durable::Found;
use crate::lock;
use crate::log;
use crate::refusal::{Cause, REFUSED, Refusal};
use crate::report::Report;
use crate::resolve::{self, PATIENCE, Waited};
use crate::stamp::{Phase, Stamp};
use crate::steps::{perform, steps};
use crate::supervise::{Ended, Event, Status, Supervisor};
use crate::tail::Tail;
use crate::volume::{self, LogFound, Volume};

/// How the guard itself ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With an exit code.
    Exit(u8),
    /// By a signal, like etcd.
    Signal(i32),
}

/// Guards one run of etcd, and reports how it ended.
pub fn run(lookup: Lookup<'_>, command: &[OsString]) -> Ending {
    let (report, ending) = match Config::read(lookup, command) {
        Ok(config) => guard(&config),
        Err(error) => refused(Report::default(), &Refusal::new(Cause::BadConfiguration, error.to_string())),
    };
    write_report(&report, &config::termination_log(lookup));
    ending
}

fn guard(config: &Config) -> (Report, Ending) {
    let (sender, events) = mpsc::channel();
    if let Err(error) = listen(sender.clone()) {
        let refusal = Refusal::new(Cause::BadConfiguration, format!("could not listen to signals: {error}"));
        return refused(Report::default(), &refusal);
    }
    // Held to the end of this function; etcd holds it as well.
    let _lock = match lock::take(&config.volume) {
        Ok(lock) => lock,
        Err(refusal) => return refused(Report::default(), &refusal),
    };
    let (volume, tail) = match volume::inspect(config) {
        Ok(found) => found,
        Err(error) => {
            let refusal = Refusal::new(Cause::VolumeUnwritable, log::chain(&error));
            return refused(Report::default(), &refusal);
        }
    };
    let report = before_etcd(&volume, &tail);
    let stamp = match prepare(config, &volume) {
        Ok(stamp) => stamp,
        Err(refusal) => return refused(report, &refusal),
    };
    let (report, tail, mark) = match volume.mark {
        _ if stamp.phase != Phase::Started => {
            (Report::default(), Tail::new(volume::log_directory(config)), None)
        }
        Found::Value(mark) => (report, tail, Some(mark)),
        Found::Nothing | Found::Unreadable(_) => (report, tail, None),
    };
    match config.name.as_ref().map(|name| resolve::wait(name, PATIENCE, &events, &sender, resolve::look_up)) {
        None | Some(Ok(Waited::Resolved)) => (),
        Some(Ok(Waited::Stopped(signal))) => {
            return (Report { signal: Some(signal), ..report }, Ending::Signal(signal));
        }
        Some(Err(refusal)) => return refused(report, &refusal),
    }
    let mut supervisor = Supervisor::new(config, (&events, &sender), (stamp, tail, mark));
    let result = supervisor.run();
    after_etcd(report, &supervisor, result)
}

/// Decides, and does what must be done before etcd may start. Returns the stamp that the volume now has.
fn prepare(config: &Config, volume: &Volume) -> Result<Stamp, Refusal> {
    let decision = decide(config, volume);
    let steps = steps(&decision, config, volume);
    match decision {
        Decision::Refuse(refusal) => return Err(refusal),
        Decision::Start(_) => (),
        Decision::StartAfterCleaning(_) if steps.is_empty() => (),
        Decision::StartAfterCleaning(_) => log::info("what a failed first boot left is removed"),
        Decision::Wipe(_) => log::info("the data of the removed member are put aside, a new one starts here"),
    }
    steps.iter().try_for_each(|step| perform(step, config))?;
    match decision {
        Decision::Start(stamp) | Decision::StartAfterCleaning(stamp) | Decision::Wipe(stamp) => Ok(stamp),
        Decision::Refuse(refusal) => Err(refusal),
    }
}

/// What is known if etcd is never started.
fn before_etcd(volume: &Volume, tail: &Tail) -> Report {
    let started = |stamp: &Stamp| stamp.phase == Phase::Started;
    let stamped = matches!(&volume.stamp, Found::Value(stamp) if started(stamp));
    let logged = match &volume.log {
        LogFound::Whole(summary) => !summary.is_blank(),
        LogFound::Absent => false,
        LogFound::Empty | LogFound::Damaged(_) => true,
    };
    let ran = stamped || logged || volume.mark != Found::Nothing;
    Report { etcd_ran: ran, ..Report::default() }.with_log(tail.log().summary())
}

fn after_etcd(
    report: Report,
    supervisor: &Supervisor<'_>,
    result: Result<Ended, Refusal>,
) -> (Report, Ending) {
    let report =
        Report { etcd_ran: supervisor.has_started(), ..report }.with_log(supervisor.tail().log().summary());
    let Ended { status, ran_for, lines, refusal } = match result {
        Ok(ended) => ended,
        Err(refusal) => return refused(report, &refusal),
    };
    let report = Report { lines, ..report }.with_time(ran_for);
    if let Some(refusal) = refusal {
        return refused(report, &refusal);
    }
    match status {
        Status::Exit(code) => {
            let message = format!("etcd ended with exit code {code}");
            (
                Report { exit: Some(code), message, ..report },
                Ending::Exit(u8::try_from(code).unwrap_or(u8::MAX)),
            )
        }
        Status::Signal(signal) => {
            let message = format!("etcd was ended by signal {signal}");
            (Report { signal: Some(signal), message, ..report }, Ending::Signal(signal))
        }
    }
}

fn refused(report: Report, refusal: &Refusal) -> (Report, Ending) {
    log::error(&format!("{}: {}", refusal.cause, refusal.sentence));
    (Report { exit: Some(i32::from(REFUSED)), ..report }.with_refusal(refusal), Ending::Exit(REFUSED))
}

fn write_report(report: &Report, path: &Path) {
    if let Err(error) = report.write(path) {
        log::warn(&format!(
            "could not write {}: {error}; it would have said {}",
            path.display(),
            report.render()
        ));
    }
}

/// Hears every signal that a kubelet or a person sends; the thread ends with the process.
fn listen(sender: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGCHLD])?;
    thread::spawn(move || {
        for signal in signals.forever() {
            if sender.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    });
    Ok(())
}
