//! Clusters of real etcds, each member under its guard.
//!
//! Every member has a loopback address of its own, derived from this process's ID, and ports that the kernel gave:
//! nothing else listens or dials from there, so tests can run beside each other and beside other etcds.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File, Permissions};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use quorate_guard::lock;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;

use super::http;
use super::programs::{PATIENCE, guard, program, wait_until};

/// A cluster and its folder, which goes with it.
pub(crate) struct Cluster {
    pub(crate) minor: &'static str,
    pub(crate) members: Vec<Member>,
    folder: TempDir,
}

/// A member: its volume, its emptyDir, and what its Pod would say.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) client: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) volume: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) minor: &'static str,
    folder: PathBuf,
    /// What is started in its place.
    script: Option<PathBuf>,
    variables: BTreeMap<&'static str, String>,
    flags: BTreeMap<&'static str, String>,
}

/// A running guard. Dropped, it and its etcd are killed.
pub(crate) struct Guard {
    child: Child,
    ended: bool,
    volume: PathBuf,
    folder: PathBuf,
}

/// How a guard ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    /// The termination message.
    pub(crate) report: Value,
    /// The log of this container only.
    pub(crate) log: String,
}

impl Cluster {
    /// Members that are not started yet, set up for a static bootstrap.
    pub(crate) fn new(minor: &'static str, size: usize) -> Self {
        let folder = TempDir::new().unwrap();
        let mut members: Vec<_> = (0..size).map(|number| Member::new(minor, folder.path(), number)).collect();
        let all: Vec<_> = members.iter().map(Member::initial).collect();
        for member in &mut members {
            member.flags.insert("initial-cluster", all.join(","));
        }
        Self { minor, members, folder }
    }

    /// One more member, which is not in anybody's flags.
    pub(crate) fn spare(&self, number: usize) -> Member {
        Member::new(self.minor, self.folder.path(), number)
    }

    /// Starts all members and waits until the cluster answers.
    pub(crate) fn start(&self) -> Vec<Guard> {
        let guards: Vec<_> = self.members.iter().map(Member::start).collect();
        for member in &self.members {
            member.wait_until_serving();
        }
        guards
    }

    /// Asks one member through etcdctl.
    pub(crate) fn ctl(&self, member: usize, arguments: &[&str]) -> Result<Value, String> {
        let Output { status, stdout, stderr } = Command::new(program(self.minor, "etcdctl"))
            .args([
                "--endpoints",
                &self.members[member].client.to_string(),
                "--command-timeout=10s",
                "-w",
                "json",
            ])
            .args(arguments)
            .output()
            .unwrap();
        if status.success() {
            serde_json::from_slice(&stdout).map_err(|error| error.to_string())
        } else {
            Err(String::from_utf8_lossy(&stderr).into_owned())
        }
    }

    /// A membership change is refused until enough members have been connected for five seconds.
    pub(crate) fn ctl_until_accepted(&self, member: usize, arguments: &[&str]) -> Value {
        let mut accepted = None;
        wait_until("etcd accepts the membership change", || {
            accepted = self.ctl(member, arguments).ok();
            accepted.is_some()
        });
        accepted.unwrap()
    }
}

impl Member {
    fn new(minor: &'static str, folder: &Path, number: usize) -> Self {
        let name = format!("main-{number}");
        let folder = folder.join(&name);
        let (volume, state) = (folder.join("volume"), folder.join("state"));
        fs::create_dir_all(&volume).unwrap();
        fs::create_dir_all(&state).unwrap();
        let address = own_address();
        let (client, peer) = free_ports(address);
        let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
        let flags = BTreeMap::from([
            ("advertise-client-urls", client_url.clone()),
            ("election-timeout", "500".to_owned()),
            ("heartbeat-interval", "50".to_owned()),
            ("initial-advertise-peer-urls", peer_url.clone()),
            ("initial-cluster", format!("{name}={peer_url}")),
            ("initial-cluster-state", "new".to_owned()),
            ("initial-cluster-token", "tests/main/uid".to_owned()),
            ("listen-client-urls", client_url),
            ("listen-peer-urls", peer_url),
            ("name", name.clone()),
        ]);
        let variables = BTreeMap::from([
            ("QUORATE_CLUSTER_UID", "uid".to_owned()),
            ("QUORATE_EXPECT_STAMP", "false".to_owned()),
            ("QUORATE_INCARNATION", "0".to_owned()),
            ("QUORATE_MEMBER", name.clone()),
        ]);
        Self { name, client, peer, volume, state, minor, folder, script: None, variables, flags }
    }

    /// As `--initial-cluster` has it.
    pub(crate) fn initial(&self) -> String {
        format!("{}=http://{}", self.name, self.peer)
    }

    /// The member with another variable in its Pod.
    pub(crate) fn variable(mut self, name: &'static str, value: impl Display) -> Self {
        self.variables.insert(name, value.to_string());
        self
    }

    /// The member with another flag.
    pub(crate) fn flag(mut self, name: &'static str, value: impl Display) -> Self {
        self.flags.insert(name, value.to_string());
        self
    }

    /// The member with this script in etcd's place; the script finds etcd in `$ETCD`.
    pub(crate) fn through(mut self, script: &str) -> Self {
        let (path, etcd) = (self.folder.join("etcd"), program(self.minor, "etcd"));
        fs::write(&path, format!("#!/bin/bash\nETCD={}\n{script}\n", etcd.display())).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        self.script = Some(path);
        self
    }

    /// The member in a Pod made anew: its emptyDir is empty.
    pub(crate) fn in_new_pod(self) -> Self {
        fs::remove_dir_all(&self.state).unwrap();
        fs::create_dir_all(&self.state).unwrap();
        self
    }

    /// The member with an empty volume beside its own.
    pub(crate) fn on_another_volume(mut self) -> Self {
        self.volume = self.folder.join("another-volume");
        fs::create_dir_all(&self.volume).unwrap();
        self.in_new_pod()
    }

    /// etcd's own directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.volume.join("data/member")
    }

    /// The stamp on the volume.
    pub(crate) fn stamp(&self) -> Value {
        read_json(&self.volume.join("quorate.json"))
    }

    /// The mark in the emptyDir.
    pub(crate) fn mark(&self) -> Value {
        read_json(&self.state.join("mark.json"))
    }

    /// Starts the guard, which starts etcd.
    pub(crate) fn start(&self) -> Guard {
        let (log, message) = (self.folder.join("log"), self.message());
        drop(fs::remove_file(&message));
        let log = File::create(log).unwrap();
        let etcd = self.etcd_command();
        let child = Command::new(guard())
            .arg("--")
            .arg(etcd.get_program())
            .args(etcd.get_args())
            .env_clear()
            .envs(&self.variables)
            .env("QUORATE_VOLUME", &self.volume)
            .env("QUORATE_STATE", &self.state)
            .env("QUORATE_TERMINATION_LOG", message)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Guard { child, ended: false, volume: self.volume.clone(), folder: self.folder.clone() }
    }

    /// Where the guard writes its termination message.
    pub(crate) fn message(&self) -> PathBuf {
        self.folder.join("message")
    }

    /// etcd as the guard starts it.
    pub(crate) fn etcd_command(&self) -> Command {
        let etcd = self.script.clone().unwrap_or_else(|| program(self.minor, "etcd"));
        let mut command = Command::new(etcd);
        command.arg(format!("--data-dir={}", self.volume.join("data").display()));
        command.args(self.flags.iter().map(|(flag, value)| format!("--{flag}={value}")));
        command
    }

    /// Starts the guard and waits for its end.
    pub(crate) fn run(&self) -> Ended {
        self.start().wait()
    }

    /// The guard must refuse for this cause, and etcd must not have been started.
    pub(crate) fn assert_refused(&self, cause: &str) {
        let before = self.data_listing();
        let ended = self.run();
        assert_eq!(ended.report["cause"], cause, "{ended:#?}");
        assert_eq!((ended.code, ended.report["exit"].as_i64()), (Some(78), Some(78)), "{ended:#?}");
        assert!(!ended.log.contains("etcd-version"), "etcd was started: {}", ended.log);
        assert_eq!(self.data_listing(), before, "a refused volume was changed");
    }

    fn data_listing(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.volume)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Whether etcd starts without a guard.
    pub(crate) fn etcd_starts_alone(&self) -> bool {
        let mut etcd = self.etcd_command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let (mut ended, mut serves) = (false, false);
        wait_until("etcd starts or ends", || {
            ended = etcd.try_wait().unwrap().is_some();
            serves = http::count(self.client, 'x').is_ok();
            ended || serves
        });
        if !ended {
            etcd.kill().unwrap();
            etcd.wait().unwrap();
        }
        serves
    }

    /// Waits until a linearizable read succeeds.
    pub(crate) fn wait_until_serving(&self) {
        wait_until(&format!("{} serves", self.name), || http::count(self.client, 'x').is_ok());
    }

    /// Starts and waits until it serves.
    pub(crate) fn serve(&self) -> Guard {
        let guard = self.start();
        wait_until(&format!("{} serves", self.name), || {
            assert!(guard.is_running(), "the guard ended: {}", guard.log());
            http::count(self.client, 'x').is_ok()
        });
        guard
    }

    /// Starts and waits until it answers for itself, which a learner does.
    pub(crate) fn serve_as_learner(&self) -> Guard {
        let guard = self.start();
        wait_until(&format!("{} answers", self.name), || http::status(self.client).is_ok());
        guard
    }

    /// Writes keys `<prefix>0…`, each acknowledged.
    pub(crate) fn put_many(&self, prefix: char, count: u32) {
        for number in 0..count {
            http::put(self.client, &format!("{prefix}{number}"), "value").unwrap();
        }
    }
}

impl Guard {
    /// Sends a signal to the guard.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// The guard's log so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.join("log")).unwrap()).into_owned()
    }

    /// etcd's process; waits until there is one.
    pub(crate) fn etcd(&self) -> Pid {
        let id = self.child.id();
        let mut etcd = None;
        wait_until("the guard has started etcd", || {
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
            etcd = children
                .split_whitespace()
                .next()
                .and_then(|child| child.parse().ok())
                .and_then(Pid::from_raw);
            etcd.is_some()
        });
        etcd.unwrap()
    }

    /// Kills etcd; the guard sees it and reports.
    pub(crate) fn kill_etcd(self) -> Ended {
        kill_process(self.etcd(), Signal::KILL).unwrap();
        self.wait()
    }

    /// Stops etcd as the kubelet would.
    pub(crate) fn stop(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// The crash of a node: both at once, nothing is reported.
    pub(crate) fn crash(self) {
        drop(self);
    }

    /// Kills the guard alone.
    pub(crate) fn kill_guard_only(&self) {
        self.signal(Signal::KILL);
        wait_until("the guard is gone", || !self.is_running());
    }

    /// Waits for the guard's end.
    pub(crate) fn wait(mut self) -> Ended {
        let mut status = None;
        let end = Instant::now() + PATIENCE;
        wait_until("the guard ends", || {
            status = self.child.try_wait().unwrap();
            let late = Instant::now() + Duration::from_secs(1) > end;
            assert!(
                status.is_some() || !late,
                "the guard in {} does not end: {}",
                self.folder.display(),
                self.log()
            );
            status.is_some()
        });
        self.ended = true;
        let status = status.unwrap();
        let report = read_json(&self.folder.join("message"));
        Ended { code: status.code(), signal: status.signal(), report, log: self.log() }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.stat().is_some_and(|state| state != 'Z')
    }

    /// The state letter of the guard's process.
    fn stat(&self) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        stat.rsplit(") ").next()?.chars().next()
    }
}

impl Drop for Guard {
    /// Kills the guard's process group, so also an etcd that it is just starting, or that outlived it. The guard
    /// itself is reaped only after that: until then the group's number cannot be another's.
    fn drop(&mut self) {
        if !self.ended {
            let killed = kill_process_group(self.pid(), Signal::KILL);
            assert!(killed.is_ok() || thread::panicking(), "{killed:?}");
            drop(self.child.wait());
            wait_until("etcd is gone", || lock::take(&self.volume).is_ok());
        }
    }
}

/// Null if there is no such file.
fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap_or_default()).unwrap_or_default()
}

/// Copies a directory, without the zeros that etcd preallocates.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy(&source, &target);
        } else if source.extension().is_some_and(|extension| extension == "wal") {
            write_sparse(&target, &fs::read(&source).unwrap());
        } else if source.extension().is_none_or(|extension| extension != "tmp") {
            fs::copy(source, target).unwrap();
        }
    }
}

/// Writes a file whose zeros at the end take no space.
pub(crate) fn write_sparse(path: &Path, bytes: &[u8]) {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    fs::write(path, &bytes[..end]).unwrap();
    File::options().write(true).open(path).unwrap().set_len(bytes.len() as u64).unwrap();
}

/// Replaces a directory by another.
pub(crate) fn replace(directory: &Path, by: &Path) {
    fs::remove_dir_all(directory).unwrap();
    copy(by, directory);
}

/// Swaps two directories.
pub(crate) fn swap(one: &Path, other: &Path) {
    let aside = one.with_extension("aside");
    fs::rename(one, &aside).unwrap();
    fs::rename(other, one).unwrap();
    fs::rename(&aside, other).unwrap();
}

fn own_address() -> IpAddr {
    static USED: AtomicU32 = AtomicU32::new(0);
    let octet = |number: u32| u8::try_from(number % 250 + 2).unwrap();
    let process = std::process::id();
    IpAddr::V4(Ipv4Addr::new(
        127,
        octet(process),
        // Beside the addresses of other tests that share this process.
        octet(process / 250 + 125),
        octet(USED.fetch_add(1, Ordering::Relaxed)),
    ))
}

/// Both at once, so that they differ.
fn free_ports(address: IpAddr) -> (SocketAddr, SocketAddr) {
    let listeners = [(); 2].map(|()| TcpListener::bind((address, 0)).unwrap());
    let [client, peer] = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
    (client, peer)
}
