//! A real etcd under load, killed and started again.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quorate::etcd::connect::{Address, connect};
use tempfile::TempDir;

use crate::check::{Violation, check};
use crate::history::{Effect, History, Revision, Watched};
use crate::record::{Settings, finish, keep, kept, run};

/// Longer than anything takes on a busy machine with two cores.
const PATIENCE: Duration = Duration::from_secs(60);

/// One member; its process ends with this value.
struct Etcd {
    folder: TempDir,
    client: SocketAddr,
    peer: SocketAddr,
    child: Option<Child>,
}

impl Etcd {
    fn new() -> Self {
        // In memory, since a member preallocates 128 MB of log.
        let memory = Path::new("/dev/shm");
        let folder = if memory.exists() { TempDir::new_in(memory) } else { TempDir::new() };
        // A loopback address of its own, and ports that the kernel gave; both at once, so that they differ.
        let octet = |number: u32| u8::try_from(number % 250 + 2).unwrap();
        let process = std::process::id();
        let address = IpAddr::V4(Ipv4Addr::new(127, octet(process), octet(process / 250), 1));
        let listeners = [(); 2].map(|()| TcpListener::bind((address, 0)).unwrap());
        let [client, peer] = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        Self { folder: folder.unwrap(), client, peer, child: None }
    }

    fn start(&mut self) {
        let (client, peer) = (format!("http://{}", self.client), format!("http://{}", self.peer));
        let data = self.folder.path().join("data");
        let flags = [
            ("advertise-client-urls", client.as_str()),
            ("data-dir", data.to_str().unwrap()),
            ("initial-advertise-peer-urls", &peer),
            ("initial-cluster", &format!("m0={peer}")),
            ("listen-client-urls", &client),
            ("listen-peer-urls", &peer),
            ("name", "m0"),
        ];
        let log = File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut command = Command::new(program());
        // A killed process leaves what it wrote to the kernel.
        command.args(flags.map(|(flag, value)| format!("--{flag}={value}"))).arg("--unsafe-no-fsync");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    fn addresses(&self) -> BTreeMap<String, Address> {
        let address = Address { dial: self.client.to_string(), name: "localhost".to_owned() };
        BTreeMap::from([("m0".to_owned(), address)])
    }

    /// Waits until the store is there.
    async fn reaches(&self, revision: Revision) {
        let address = self.addresses().remove("m0").unwrap();
        let begun = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        loop {
            tick.tick().await;
            if let Ok(mut client) = connect(&address, None).await
                && let Ok(status) = client.status().await
                && status.header().is_some_and(|header| header.revision() >= revision)
            {
                return;
            }
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < PATIENCE, "revision {revision} is not reached: {}", log());
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_is_killed_and_started_again_keeps_its_promises() {
    let mut etcd = Etcd::new();
    let addresses = etcd.addresses();
    let addresses = move || std::future::ready(addresses.clone());
    etcd.start();
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (stop, addresses) = (stop.clone(), addresses.clone());
        async move { run(addresses, None, Settings::default(), &stop).await }
    });
    etcd.reaches(75).await;
    etcd.kill();
    etcd.start();
    etcd.reaches(150).await;
    stop.store(true, Ordering::Relaxed);
    let history = load.await.unwrap();
    let history = finish(history, addresses, None, PATIENCE).await;

    let verdict = check(&history);
    println!("measured: {}; longest stall {:?}", verdict.summary(), history.longest_stall);
    assert!(verdict.violations.is_empty(), "{verdict}");
    assert!(verdict.acknowledged > 50, "{verdict}");
    let resumed = |watched: &&Watched| matches!(watched, Watched::Resumed { .. });
    assert!(history.watchers["m0"].iter().filter(resumed).count() > 1, "the watch never broke");
    let file = etcd.folder.path().join("history.json");
    keep(&history, &file).unwrap();
    assert_eq!(kept(&file).unwrap(), history);

    let mut made = history.operations.iter().map(|operation| operation.call.effect()).enumerate();
    let (victim, lost_at) = made
        .find_map(|(index, effect)| match effect {
            Effect::At(revision) => Some((index, revision)),
            Effect::None | Effect::Unknown => None,
        })
        .unwrap();
    let found = check(&without(&history, lost_at)).violations;
    let is_lost = |violation: &Violation| {
        matches!(violation, Violation::Lost { which, revision }
            if which.operation == victim && *revision == lost_at)
    };
    assert!(found.iter().any(is_lost), "{found:?}");
    let is_missed = |violation: &Violation| matches!(violation, Violation::Missed { from, to, .. } if *from == lost_at && *to == lost_at);
    assert!(found.iter().any(is_missed), "{found:?}");
}
