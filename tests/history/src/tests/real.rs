//! A real etcd under load, killed and started again.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::ready;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorate::etcd::connect::{Address, connect};
use tempfile::TempDir;

use crate::check::{Violation, check};
use crate::history::{Effect, History, Revision, Watched};
use crate::record::{Settings, finish, keep, kept, run};

/// Longer than anything takes on a busy machine with two cores.
const PATIENCE: Duration = Duration::from_mins(1);

/// Members of one cluster; their processes end with this value.
struct Cluster {
    folder: TempDir,
    members: Vec<Member>,
    /// Where clients find those that run.
    addresses: Addresses,
}

type Addresses = Arc<Mutex<BTreeMap<String, Address>>>;

struct Member {
    peer: SocketAddr,
    child: Option<Child>,
}

impl Cluster {
    fn start(size: u8) -> Self {
        // In memory, since a member preallocates 128 MB of log.
        let memory = Path::new("/dev/shm");
        let folder = if memory.exists() { TempDir::new_in(memory) } else { TempDir::new() };
        let members: Vec<Member> = (0..size).map(|_| Member { peer: new_address(), child: None }).collect();
        let mut cluster = Self { folder: folder.unwrap(), members, addresses: Addresses::default() };
        for place in 0..cluster.members.len() {
            cluster.start_member(place);
        }
        cluster
    }

    /// As a Pod that comes back, it has another address.
    fn start_member(&mut self, place: usize) {
        let all = self.members.iter().enumerate();
        let initial: Vec<String> =
            all.map(|(place, member)| format!("m{place}=http://{}", member.peer)).collect();
        let member = &mut self.members[place];
        let dial = new_address().to_string();
        let (client, peer) = (format!("http://{dial}"), format!("http://{}", member.peer));
        let data = self.folder.path().join(format!("m{place}"));
        let flags = [
            ("advertise-client-urls", client.as_str()),
            ("data-dir", data.to_str().unwrap()),
            ("initial-advertise-peer-urls", &peer),
            ("initial-cluster", &initial.join(",")),
            ("listen-client-urls", &client),
            ("listen-peer-urls", &peer),
            ("name", &format!("m{place}")),
        ];
        let log = self.folder.path().join(format!("m{place}.log"));
        let log = File::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(program());
        // A killed process leaves what it wrote to the kernel.
        command.args(flags.map(|(flag, value)| format!("--{flag}={value}"))).arg("--unsafe-no-fsync");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        member.child = Some(command.spawn().unwrap());
        let address = Address { dial, name: "localhost".to_owned() };
        self.addresses.lock().unwrap().insert(format!("m{place}"), address);
    }

    fn kill(&mut self, place: usize) {
        self.members[place].kill();
        self.addresses.lock().unwrap().remove(&format!("m{place}"));
    }

    fn address(&self, place: usize) -> Address {
        self.addresses.lock().unwrap()[&format!("m{place}")].clone()
    }

    /// Waits until this member's store has so many revisions more than when it was asked first.
    async fn goes_on(&self, place: usize, revisions: Revision) -> Revision {
        let address = self.address(place);
        let begun = Instant::now();
        let mut first = None;
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        loop {
            tick.tick().await;
            if let Ok(mut client) = connect(&address, None).await
                && let Ok(status) = client.status().await
                && let Some(header) = status.header()
                && header.revision() >= *first.get_or_insert(header.revision()) + revisions
            {
                return header.revision();
            }
            let log = self.folder.path().join(format!("m{place}.log"));
            let log = || std::fs::read_to_string(log).unwrap_or_default();
            assert!(begun.elapsed() < PATIENCE, "m{place} does not go on: {}", log());
        }
    }

    fn copy(&self, from: &str, to: &str) {
        let to = self.folder.path().join(to);
        drop(std::fs::remove_dir_all(&to));
        let mut command = Command::new("cp");
        command.args(["--archive", "--sparse=always"]).arg(self.folder.path().join(from)).arg(to);
        assert!(command.status().unwrap().success());
    }

    async fn compact(&self, place: usize, revision: Revision) {
        connect(&self.address(place), None).await.unwrap().compact(revision, None).await.unwrap();
    }
}

impl Member {
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One that nobody else has: a loopback address of this process, and a port that the kernel gave.
fn new_address() -> SocketAddr {
    static USED: AtomicU8 = AtomicU8::new(2);
    let octet = |number: u32| u8::try_from(number % 250 + 2).unwrap();
    let process = std::process::id();
    let last = USED.fetch_add(1, Ordering::Relaxed);
    let address = Ipv4Addr::new(127, octet(process), octet(process / 250), last);
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap()
}

fn program() -> PathBuf {
    let Some(folder) = std::env::var_os("QUORATE_BIN") else {
        panic!(
            "QUORATE_BIN is not set: run `export QUORATE_BIN=$(cargo cluster programs)`, then this test again"
        );
    };
    PathBuf::from(folder).join("etcd-3.6").join("etcd")
}

/// The history without the events of one revision.
fn without(history: &History, revision: Revision) -> History {
    let mut history = history.clone();
    for watched in history.watchers.values_mut().flatten() {
        if let Watched::Response { events, .. } = watched {
            events.retain(|event| event.revision != revision);
        }
    }
    history
}

/// Load on a cluster while something is done to it, then the end.
async fn under_load(cluster: &mut Cluster, faults: impl AsyncFnOnce(&mut Cluster)) -> History {
    let addresses = cluster.addresses.clone();
    let addresses = move || ready(addresses.lock().unwrap().clone());
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (stop, addresses) = (stop.clone(), addresses.clone());
        async move { run(addresses, None, Settings::default(), &stop).await }
    });
    faults(cluster).await;
    stop.store(true, Ordering::Relaxed);
    finish(load.await.unwrap(), addresses, None, PATIENCE).await
}

fn is_good(history: &History) {
    let verdict = check(history);
    println!("measured: {}; longest stall {:?}", verdict.summary(), history.longest_stall);
    assert!(verdict.violations.is_empty(), "{verdict}");
    assert!(verdict.acknowledged > 50, "{verdict}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_is_killed_and_started_again_keeps_its_promises() {
    let faults = async |cluster: &mut Cluster| {
        cluster.goes_on(0, 60).await;
        cluster.kill(0);
        cluster.start_member(0);
        cluster.goes_on(0, 60).await;
    };
    let history = under_load(&mut Cluster::start(1), faults).await;
    is_good(&history);
    let resumed = |watched: &&Watched| matches!(watched, Watched::Resumed { .. });
    assert!(history.watchers["m0"].iter().filter(resumed).count() > 1, "the watch never broke");

    let folder = TempDir::new().unwrap();
    let file = folder.path().join("history.json");
    keep(&history, &file).unwrap();
    assert_eq!(kept(&file).unwrap(), history);

    let mut made = history.operations.iter().map(|operation| operation.call.effect()).enumerate();
    let acknowledged = made.find_map(|(index, effect)| match effect {
        Effect::At(revision) => Some((index, revision)),
        Effect::None | Effect::Unknown => None,
    });
    let (victim, at) = acknowledged.unwrap();
    let found = check(&without(&history, at)).violations;
    let is_lost = |violation: &Violation| matches!(violation, Violation::Lost { which, revision } if which.operation == victim && *revision == at);
    assert!(found.iter().any(is_lost), "{found:?}");
    let is_missed = |violation: &Violation| matches!(violation, Violation::Missed { from, to, .. } if *from == at && *to == at);
    assert!(found.iter().any(is_missed), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_members_that_are_killed_in_turn_keep_their_promises() {
    let faults = async |cluster: &mut Cluster| {
        for (place, next) in [(0, 1), (1, 2), (2, 0)] {
            cluster.goes_on(place, 30).await;
            cluster.kill(place);
            // Its watcher may go on only after what it missed.
            let reached = cluster.goes_on(next, 30).await;
            cluster.compact(next, reached).await;
            cluster.start_member(place);
        }
        cluster.goes_on(2, 30).await;
    };
    let mut cluster = Cluster::start(3);
    let history = under_load(&mut cluster, faults).await;
    is_good(&history);

    let mut forked = history.clone();
    let end = forked.end.as_mut().unwrap().members.get_mut("m1").unwrap().as_mut().unwrap();
    end.hash ^= 1;
    let found = check(&forked).violations;
    let differs = |violation: &Violation| matches!(violation, Violation::HashesDiffer { .. });
    assert!(!found.is_empty() && found.iter().all(differs), "{found:?}");

    // A member that joined late cannot show what was compacted before; the others' watchers did.
    let mut late = history;
    late.watchers.remove("m1");
    let addresses = || ready(cluster.addresses.lock().unwrap().clone());
    let late = finish(late, addresses, None, PATIENCE).await;
    let compacted = |watched: &Watched| matches!(watched, Watched::Compacted { .. });
    assert!(late.watchers["m1"].iter().any(compacted), "{:?}", late.watchers["m1"]);
    assert_eq!(check(&late).violations, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_whose_volume_is_rolled_back_is_found() {
    let faults = async |cluster: &mut Cluster| {
        cluster.goes_on(0, 30).await;
        cluster.kill(0);
        cluster.copy("m0", "older");
        cluster.start_member(0);
        cluster.goes_on(0, 30).await;
        cluster.kill(0);
        cluster.copy("older", "m0");
        cluster.start_member(0);
        cluster.goes_on(0, 60).await;
    };
    let history = under_load(&mut Cluster::start(1), faults).await;
    let found = check(&history).violations;
    let back = |violation: &Violation| matches!(violation, Violation::BackInTime { .. });
    let shared = |violation: &Violation| matches!(violation, Violation::Shared { .. });
    let lost = |violation: &Violation| matches!(violation, Violation::Lost { .. });
    assert!(found.iter().any(back) && found.iter().any(shared) && found.iter().any(lost), "{found:?}");
}
