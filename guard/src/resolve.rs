//! Waits until the member's own name resolves to its Pod's address.
//!
//! Peers look a dialler's address up against the names in its certificate; an etcd started before its name is known
//! is turned away, and logs errors that look like a broken certificate.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::OwnName;
use crate::refusal::{Cause, Refusal};
use crate::supervise::Event;

/// How long and how often to ask.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Give up after this time.
    pub limit: Duration,
    /// Ask this often.
    pub interval: Duration,
}

/// A name is published a second or two after the Pod has its address; after a minute something is wrong.
pub const PATIENCE: Patience =
    Patience { limit: Duration::from_mins(1), interval: Duration::from_millis(200) };

/// How the wait ended, if not in a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The name resolves.
    Resolved,
    /// This signal asks to end.
    Stopped(i32),
}

/// Asks the system's resolver.
pub fn look_up(address: &str) -> io::Result<Vec<IpAddr>> {
    (address, 0).to_socket_addrs().map(|found| found.map(|socket| socket.ip()).collect())
}

/// Waits. A look-up can block for long and cannot be interrupted, so it runs in a thread of its own, which ends
/// with its last look-up when nobody listens any more.
pub fn wait<F>(
    name: &OwnName,
    patience: Patience,
    events: &Receiver<Event>,
    sender: &Sender<Event>,
    look_up: F,
) -> Result<Waited, Refusal>
where
    F: Fn(&str) -> io::Result<Vec<IpAddr>> + Send + 'static,
{
    let end = Instant::now() + patience.limit;
    let (asked, answers) = (name.clone(), sender.clone());
    thread::spawn(move || ask_until(&asked, end, patience.interval, &answers, look_up));
    let mut last = "no answer yet".to_owned();
    loop {
        match events.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Event::Answer(Ok(()))) => return Ok(Waited::Resolved),
            Ok(Event::Answer(Err(answer))) => last = answer,
            Ok(Event::Signal(signal)) if signal != signal_hook::consts::SIGCHLD => {
                return Ok(Waited::Stopped(signal));
            }
            Ok(Event::Signal(_) | Event::LogClosed) => (),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let OwnName { address, pod_ip } = name;
                let seconds = patience.limit.as_secs_f64();
                let sentence = format!(
                    "{address} did not resolve to {pod_ip} within {seconds} s; the last answer: {last}"
                );
                return Err(Refusal::new(Cause::NameUnresolved, sentence));
            }
        }
    }
}

fn ask_until<F>(name: &OwnName, end: Instant, interval: Duration, answers: &Sender<Event>, look_up: F)
where
    F: Fn(&str) -> io::Result<Vec<IpAddr>>,
{
    while Instant::now() < end {
        let answer = match look_up(&name.address) {
            Ok(found) if found.contains(&name.pod_ip) => Ok(()),
            Ok(found) => Err(format!("{found:?}")),
            Err(error) => Err(error.to_string()),
        };
        let done = answer.is_ok();
        if answers.send(Event::Answer(answer)).is_err() || done {
            return;
        }
        thread::sleep(interval);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Patience =
        Patience { limit: Duration::from_millis(300), interval: Duration::from_millis(5) };

    fn name() -> OwnName {
        OwnName { address: "main-0.main-peers".to_owned(), pod_ip: IpAddr::from([10, 0, 0, 7]) }
    }

    #[test]
    fn it_waits_until_the_pods_address_is_among_the_answers() {
        let (sender, events) = mpsc::channel();
        let asked = AtomicUsize::new(0);
        let answers = move |_: &str| match asked.fetch_add(1, Ordering::Relaxed) {
            0 => Err(io::Error::other("no such name")),
            1 => Ok(vec![IpAddr::from([10, 0, 0, 6])]),
            _ => Ok(vec![IpAddr::from([10, 0, 0, 6]), IpAddr::from([10, 0, 0, 7])]),
        };
        let patience = Patience { limit: Duration::from_mins(1), ..PATIENCE };
        assert_eq!(wait(&name(), patience, &events, &sender, answers), Ok(Waited::Resolved));
    }

    #[test]
    fn a_name_that_never_resolves_is_refused_with_the_last_answer() {
        let (sender, events) = mpsc::channel();
        let answers = |_: &str| Ok(vec![IpAddr::from([10, 0, 0, 6])]);
        let refusal = wait(&name(), PATIENCE, &events, &sender, answers).unwrap_err();
        assert_eq!(refusal.cause, Cause::NameUnresolved);
        assert_eq!(
            refusal.sentence,
            "main-0.main-peers did not resolve to 10.0.0.7 within 0.3 s; the last answer: [10.0.0.6]"
        );
    }

    #[test]
    fn a_resolver_that_hangs_does_not_outlast_the_limit_nor_a_signal() {
        let (sender, events) = mpsc::channel();
        let (release, hang) = mpsc::channel::<()>();
        let answers = move |_: &str| Err(io::Error::other(format!("{:?}", hang.recv())));
        sender.send(Event::Signal(15)).unwrap();
        let patience = Patience { limit: Duration::from_mins(1), ..PATIENCE };
        assert_eq!(wait(&name(), patience, &events, &sender, answers), Ok(Waited::Stopped(15)));
        drop(release);
    }
}
