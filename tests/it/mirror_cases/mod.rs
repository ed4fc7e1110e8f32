//! What went wrong with mirrors elsewhere, done to `quorate mirror` between two real etcds, through proxies.
//!
//! Where nothing hinders it, both sides are recorded, and [`judge`] holds the target's history against the source's at
//! every revision that carries a checkpoint.
//!
//! Which case is where; those of the simulated pair and of the operator are in `mirror`, `agent` and `mirror_reconcile`.
//!
//! | case | what is done to it | tests |
//! |---|---|---|
//! | 1, 2, 3 | the incident: others write, history is discarded, with and without a running agent | `incident` |
//! | 4 | killed at every point | `kills`; at any moment: `mirror::real` |
//! | 5, 9, 10, 20, 21, 27 | two agents; changes of one key; patterns, mappings, leases | `keys` |
//! | 6 | lost answers, dead leaders, a transaction that comes after its repetition | `links` |
//! | 7, 8, 11, 12, 13, 14, 18, 26 | revisions, answers, histories and targets of any size; no space | `limits` |
//! | 15, 16, 17, 32, 33, 34 | sides that were set back, restored, emptied, edited, upgraded | `restored` |
//! | 19, 35, 36 | scans beside heavy writes, a slow target, a million keys | `scans` |
//! | 22, 23 | tokens, passwords, certificates | `access` |
//! | 24, 25 | half-open connections, long silence, members that are gone | `links` |
//! | 27 | leases that are the same on both sides | `leases` |
//! | 28, 29 | switches and promotions | `agent` |
//! | 31 | both directions, a chain, a circle | `directions`; of EtcdMirrors: `mirror_plan` |
//! | 37 | seeded schedules against a model | `mirror` |
//! | 38 | a clock that jumps: no code that decides reads one | `tidy` |
//!
//! `cargo verify --full` gives the cases 4, 24, 35 and 36 their full lengths.

#![expect(clippy::print_stdout, reason = "what a case measured is told with its result")]

mod access;
mod agent;
mod directions;
mod foreign;
mod history;
mod incident;
mod judge;
mod keys;
mod kills;
mod leases;
mod limits;
mod links;
mod restored;
mod scans;
mod switch;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use quorate::mirror::checkpoint::{Checkpoint, Position};
use quorate::mirror::config::MirrorId;
use quorate_pair::programs::{PATIENCE, own_addresses, until, until_within};
use quorate_pair::{Held, Side};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// MiB that an agent may need, whatever it copies.
const MEMORY: u64 = 128;

/// Whether a case takes the length that it has in `cargo verify --full`.
fn full() -> bool {
    std::env::var("QUORATE_FULL").is_ok_and(|full| full == "1")
}

/// A running `quorate mirror` through the proxies of both sides; killed with this value.
struct Mirror {
    child: Child,
    log: NamedTempFile,
    listen: SocketAddr,
}

/// How one ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    said: String,
}

impl Mirror {
    fn start(source: &Side, target: &Side, flags: &[&str]) -> Self {
        let listen = own_addresses()[0];
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(["mirror", "--source", &source.endpoints(), "--target", &target.endpoints()]);
        for (name, side) in [("source", source), ("target", target)] {
            if let Some(certificates) = side.etcd.certificates() {
                for (flag, file) in ["ca", "cert", "key"].iter().zip(certificates.client()) {
                    command.arg(format!("--{name}-{flag}={}", file.display()));
                }
            }
        }
        command.args(flags);
        if !flags.contains(&"--verify") {
            command.args(["--listen", &listen.to_string()]);
        }
        Self::spawn(command, listen)
    }

    /// An agent, as in Kubernetes.
    fn by_file(file: &Path) -> Self {
        let listen = own_addresses()[0];
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.arg("mirror").arg("--config").arg(file).args(["--listen", &listen.to_string()]);
        Self::spawn(command, listen)
    }

    fn spawn(mut command: Command, listen: SocketAddr) -> Self {
        let log = NamedTempFile::new().unwrap();
        command.env("RUST_LOG", "info,quorate::mirror::listen=debug").stdin(Stdio::null());
        command.stdout(log.reopen().unwrap()).stderr(log.reopen().unwrap());
        Self { child: command.spawn().unwrap(), log, listen }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.log.path()).unwrap()
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// As `kill -9` does.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// As systemd and Kubernetes do.
    async fn terminate(self) -> Ended {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.ended().await
    }

    /// Stands still.
    fn pause(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap();
    }

    /// Goes on.
    fn resume(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }

    /// Waits until it has ended.
    async fn ended(mut self) -> Ended {
        until_within(patience(), "the mirror ends", async || !self.is_running()).await;
        let code = self.child.wait().unwrap().code();
        Ended { code, said: self.said() }
    }

    /// Waits until it says so in its log.
    async fn says(&mut self, words: &str) {
        until(&format!("the mirror says {words:?}"), async || {
            assert!(self.is_running(), "it has ended: {}", self.said());
            self.said().contains(words)
        })
        .await;
    }

    /// A number of its `/metrics`; waits until it is known.
    async fn metric(&self, name: &str) -> f64 {
        let name = format!("quorate_mirror_{name} ");
        let mut number = None;
        until(&format!("{name}is known"), async || {
            let text = self.ask("/metrics").await.unwrap_or_default();
            let value = text.lines().find_map(|line| line.strip_prefix(&name));
            number = value.map(|value| value.parse().unwrap());
            number.is_some()
        })
        .await;
        number.unwrap()
    }

    async fn ask(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.listen).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    /// The most memory that it has had, in MiB.
    fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// The memory that it has now, in MiB.
    fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            println!("the mirror said: {}", self.said());
        }
    }
}

/// Runs it to its end.
async fn ended(source: &Side, target: &Side, flags: &[&str]) -> Ended {
    Mirror::start(source, target, flags).ended().await
}

/// What a side holds below a prefix, but for the mirror's own keys.
async fn held(side: &Side, prefix: &str) -> std::collections::BTreeMap<Vec<u8>, Held> {
    let mut held = side.etcd.held(prefix).await;
    held.retain(|key, _| !key.starts_with(b"/__quorate/"));
    held
}

/// How many keys differ, for prefixes of the same meaning.
async fn differences(source: &Side, prefix: &str, target: &Side, other: &str) -> usize {
    let (here, there) = (held(source, prefix).await, held(target, other).await);
    let renamed = |key: &[u8]| [other.as_bytes(), &key[prefix.len()..]].concat();
    let lacking = here
        .iter()
        .filter(|(key, held)| there.get(&renamed(key)).is_none_or(|other| other.value != held.value));
    let alike = here.len() - lacking.clone().count();
    lacking.count() + there.len() - alike.min(there.len())
}

/// Waits until both sides hold the same.
async fn alike(source: &Side, prefix: &str, target: &Side, other: &str) {
    until("both sides are alike", async || differences(source, prefix, target, other).await == 0).await;
}

/// The checkpoint, if there is one that can be read.
async fn checkpoint(target: &Side) -> Option<Checkpoint> {
    checkpoint_of("default", target).await
}

/// That of the mirror with this name.
async fn checkpoint_of(id: &str, target: &Side) -> Option<Checkpoint> {
    let key = MirrorId::new(id).unwrap().key("checkpoint");
    // While a leader is elected nobody answers.
    let answer = target.client().await.get(key, None).await.ok()?;
    answer.kvs().first().and_then(|kv| Checkpoint::parse(kv.value()).ok())
}

/// Waits until the target has, exactly, what the source has at this moment, and the checkpoint says so.
async fn level(source: &Side, target: &Side) -> Checkpoint {
    level_of("default", source, target).await
}

/// The same of the mirror with this name.
async fn level_of(id: &str, source: &Side, target: &Side) -> Checkpoint {
    let head = source.etcd.head().await;
    let mut found = None;
    until_within(patience(), &format!("the checkpoint is at revision {head}"), async || {
        found = checkpoint_of(id, target).await.filter(|checkpoint| {
            matches!(checkpoint.position, Position::Stream { revision, offset: 0 } if revision >= head)
        });
        found.is_some()
    })
    .await;
    found.unwrap()
}

/// How long to wait for what a mirror does; lengths of the long form take longer.
fn patience() -> Duration {
    if full() { PATIENCE * 10 } else { PATIENCE }
}

/// Lets so much time pass: where a test wants something to go on for a while.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}
