//! Real etcd processes on loopback as a subject.
//!
//! Every member has a loopback address of its own, derived from this process's ID, and ports that the kernel gave.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use quorate::etcd::MemberId;
use quorate::etcd::version::Minor;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{self, base64, number};
use super::{Call, PATIENCE, Reply, Row, STUCK, Subject, TOKEN, minor_text};
use crate::world::etcd::Millis;

/// The folder with `etcd-3.5/etcd`, `etcd-3.6/etcd` and `etcd-3.7/etcd`.
pub(crate) fn programs() -> PathBuf {
    let Some(folder) = env::var_os("QUORATE_BIN") else {
        panic!(
            "QUORATE_BIN is not set: run `export QUORATE_BIN=$(cargo cluster programs)`, then this test again"
        );
    };
    let folder = PathBuf::from(folder);
    for minor in ["3.5", "3.6", "3.7"] {
        let path = folder.join(format!("etcd-{minor}")).join("etcd");
        assert!(path.exists(), "QUORATE_BIN has no {}; `cargo cluster programs` builds it", path.display());
    }
    folder
}

pub(super) struct Real {
    minor: Minor,
    program: PathBuf,
    folder: TempDir,
    members: BTreeMap<String, Process>,
}

/// A member's process; killed with this value.
struct Process {
    client: SocketAddr,
    peer: SocketAddr,
    data: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    /// What the last process said when it ended by itself.
    last_line: Option<String>,
}

impl Real {
    pub(super) fn new(programs: &Path, minor: Minor) -> Self {
        let program = programs.join(format!("etcd-{}", minor_text(minor))).join("etcd");
        // In memory, since every member preallocates 128 MB of log.
        let memory = Path::new("/dev/shm");
        let folder = if memory.exists() { TempDir::new_in(memory) } else { TempDir::new() };
        Self { minor, program, folder: folder.unwrap(), members: BTreeMap::new() }
    }

    fn member(&mut self, name: &str) -> &mut Process {
        let folder = self.folder.path();
        self.members.entry(name.to_owned()).or_insert_with(|| {
            let (client, peer) = own_addresses();
            let (data, log) = (folder.join(name), folder.join(format!("{name}.log")));
            Process { client, peer, data, log, child: None, last_line: None }
        })
    }

    fn signal(&mut self, name: &str, signal: Signal) {
        let child = self.member(name).child.as_ref().unwrap();
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    fn saved(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.saved"))
    }
}

impl Subject for Real {
    fn now(&self) -> Millis {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        Millis::try_from(since.as_millis()).unwrap()
    }

    fn pass(&mut self) {
        thread::sleep(Duration::from_millis(50));
    }

    fn peer_url(&mut self, name: &str) -> String {
        format!("http://{}", self.member(name).peer)
    }

    fn start(&mut self, name: &str, cluster: &[&str], new: bool) -> Result<(), String> {
        let initial: Vec<String> =
            cluster.iter().map(|name| format!("{name}={}", self.peer_url(name))).collect();
        let minor = self.minor;
        let mut command = Command::new(&self.program);
        let member = self.member(name);
        let (client_url, peer_url) = (format!("http://{}", member.client), format!("http://{}", member.peer));
        let flags = [
            ("advertise-client-urls", client_url.as_str()),
            ("data-dir", member.data.to_str().unwrap()),
            ("initial-advertise-peer-urls", &peer_url),
            ("initial-cluster", &initial.join(",")),
            ("initial-cluster-state", if new { "new" } else { "existing" }),
            ("initial-cluster-token", TOKEN),
            ("listen-client-urls", &client_url),
            ("listen-peer-urls", &peer_url),
            ("name", name),
        ];
        command.args(flags.map(|(flag, value)| format!("--{flag}={value}")));
        // A killed process leaves what it wrote to the kernel.
        command.arg("--unsafe-no-fsync");
        // 3.5 allows one, and has no flag for it.
        if minor > Minor::V3_5 {
            command.arg("--max-learners=2");
        }
        let log = File::create(&member.log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        (member.child, member.last_line) = (Some(command.spawn().unwrap()), None);
        member.wait_until_it_runs()
    }

    fn kill(&mut self, name: &str) {
        self.member(name).kill();
    }

    fn pause(&mut self, name: &str) {
        self.signal(name, Signal::STOP);
        let id = self.member(name).child.as_ref().unwrap().id();
        let stands = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('T') || rest.is_empty())
        };
        let end = Instant::now() + Duration::from_millis(PATIENCE);
        while !fs::read_dir(format!("/proc/{id}/task")).unwrap().map(Result::unwrap).all(stands) {
            assert!(Instant::now() < end, "{name} does not stop");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn resume(&mut self, name: &str) {
        self.signal(name, Signal::CONT);
    }

    fn save(&mut self, name: &str) {
        let saved = self.saved(name);
        copy(&self.member(name).data, &saved);
    }

    fn roll_back(&mut self, name: &str) {
        let saved = self.saved(name);
        let data = &self.member(name).data;
        fs::remove_dir_all(data).unwrap();
        copy(&saved, data);
    }

    fn wipe(&mut self, name: &str) {
        drop(fs::remove_dir_all(&self.member(name).data));
    }

    fn is_connected(&mut self, name: &str, member: MemberId) -> bool {
        let Some(metrics) = http::get(self.member(name).client, "/metrics") else { return true };
        let peer = format!("Remote=\"{member}\"}} ");
        let mut active = metrics.lines().filter(|line| line.starts_with("etcd_network_active_peers"));
        active.any(|line| line.split_once(&peer).is_some_and(|(_, count)| count != "0"))
    }

    fn ended(&mut self, name: &str) -> Option<String> {
        self.member(name).ended()
    }

    fn call(&mut self, name: &str, call: &Call<'_>) -> Result<Reply, String> {
        let member = self.member(name);
        if member.child.is_none() {
            return Err("connection refused".to_owned());
        }
        ask(member.client, call)
    }
}

impl Process {
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    fn wait_until_it_runs(&mut self) -> Result<(), String> {
        let end = Instant::now() + Duration::from_millis(PATIENCE);
        loop {
            if let Some(line) = self.ended() {
                // A panic comes later than a refusal: such a process ran, if only for a moment.
                return if line.contains("\"level\":\"fatal\"") { Err(line) } else { Ok(()) };
            }
            if http::get(self.peer, "/members").is_some() {
                return Ok(());
            }
            let log = || String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned();
            if Instant::now() > end {
                return Err(format!("{STUCK}: {}", log()));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The first line of its log that says why it ended, if it did by itself.
    fn ended(&mut self) -> Option<String> {
        if let Some(child) = &mut self.child
            && child.try_wait().unwrap().is_some()
        {
            self.child = None;
            let log = String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned();
            let tells = |line: &&str| {
                line.contains("\"level\":\"fatal\"")
                    || line.contains("\"level\":\"panic\"")
                    || line.contains("\"msg\":\"server error\"")
            };
            let line = log.lines().find(tells).or_else(|| log.lines().last());
            self.last_line = Some(line.unwrap_or_default().to_owned());
        }
        self.last_line.clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn ask(client: SocketAddr, call: &Call<'_>) -> Result<Reply, String> {
    let post = |path: &str, body: Value| http::post(client, path, &body, call.deadline());
    match call {
        Call::Status => {
            let answer = post("/v3/maintenance/status", json!({}))?;
            let leader = number(&answer["leader"]);
            Ok(Reply::Status {
                cluster: number(&answer["header"]["cluster_id"]),
                member: MemberId(number(&answer["header"]["member_id"])),
                leader: (leader != 0).then_some(MemberId(leader)),
                learner: answer["isLearner"] == json!(true),
            })
        }
        Call::Read => post("/v3/kv/range", range(false)).map(|_| Reply::Done),
        Call::Keys => post("/v3/kv/range", range(true)).map(|answer| Reply::Count(number(&answer["count"]))),
        Call::List { linearizable } => {
            post("/v3/cluster/member/list", json!({"linearizable": linearizable})).map(|answer| rows(&answer))
        }
        Call::Put(key) => {
            let body = json!({"key": base64(format!("k{key}").as_bytes()), "value": base64(b"value")});
            post("/v3/kv/put", body).map(|_| Reply::Done)
        }
        Call::Add { peer_url, learner } => {
            let answer =
                post("/v3/cluster/member/add", json!({"peerURLs": [peer_url], "isLearner": learner}))?;
            Ok(Reply::Added(MemberId(number(&answer["member"]["ID"]))))
        }
        Call::Promote(id) => {
            post("/v3/cluster/member/promote", json!({"ID": id.0.to_string()})).map(|answer| rows(&answer))
        }
        Call::Remove(id) => {
            post("/v3/cluster/member/remove", json!({"ID": id.0.to_string()})).map(|answer| rows(&answer))
        }
        Call::Move(id) => post("/v3/maintenance/transfer-leadership", json!({"targetID": id.0.to_string()}))
            .map(|_| Reply::Done),
        Call::Alarms => post("/v3/maintenance/alarm", json!({"action": "GET"})).map(|answer| alarms(&answer)),
        Call::Raise(id, alarm) => {
            post("/v3/maintenance/alarm", alarm_body("ACTIVATE", *id, alarm)).map(|_| Reply::Done)
        }
        Call::Disarm(id, alarm) => {
            post("/v3/maintenance/alarm", alarm_body("DEACTIVATE", *id, alarm)).map(|_| Reply::Done)
        }
    }
}

fn alarm_body(action: &str, id: MemberId, alarm: &str) -> Value {
    json!({"action": action, "memberID": id.0.to_string(), "alarm": alarm})
}

fn range(serializable: bool) -> Value {
    json!({"key": base64(b"k"), "range_end": base64(b"l"), "count_only": true, "serializable": serializable})
}

fn rows(answer: &Value) -> Reply {
    let row = |member: &Value| Row {
        id: MemberId(number(&member["ID"])),
        name: member["name"].as_str().unwrap_or_default().to_owned(),
        peer_url: member["peerURLs"][0].as_str().unwrap_or_default().to_owned(),
        learner: member["isLearner"] == json!(true),
    };
    Reply::Members(answer["members"].as_array().into_iter().flatten().map(row).collect())
}

fn alarms(answer: &Value) -> Reply {
    let alarm = |alarm: &Value| {
        (MemberId(number(&alarm["memberID"])), alarm["alarm"].as_str().unwrap_or_default().to_owned())
    };
    Reply::Alarms(answer["alarms"].as_array().into_iter().flatten().map(alarm).collect())
}

/// Copies a directory, without the zeros that etcd preallocates.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy(&source, &target);
        } else {
            let bytes = fs::read(&source).unwrap();
            let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            fs::write(&target, &bytes[..end]).unwrap();
            File::options().write(true).open(&target).unwrap().set_len(bytes.len() as u64).unwrap();
        }
    }
}

/// Client and peer address of a new member.
pub(crate) fn own_addresses() -> (SocketAddr, SocketAddr) {
    static USED: AtomicU32 = AtomicU32::new(0);
    let used = USED.fetch_add(1, Ordering::Relaxed);
    let octet = |number: u32| u8::try_from(number % 250 + 2).unwrap();
    let process = std::process::id();
    let address =
        IpAddr::V4(Ipv4Addr::new(127, octet(process), octet(process / 250 + 7 * (used / 250)), octet(used)));
    // Both at once, so that they differ.
    let listeners = [(); 2].map(|()| TcpListener::bind((address, 0)).unwrap());
    let [client, peer] = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
    (client, peer)
}
