//! The hands that do harm: to processes, to volumes, to links. What they can undo they hand back as it was.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use crate::support::{Story, copy, eventually, kill_in_pod, processes};

/// The guard's and etcd's command lines both have it; that of the Pod's pause does not.
const ETCD: &str = "/usr/local/bin/etcd";
/// So much is damaged at once.
const PIECE: usize = 65536;
/// What [`Story::write`] writes, and what it becomes: pages carry no checksum.
const VALUE: (&[u8], &[u8]) = (b"acknowledged", b"acknowledgeD");

/// A record's length, and its header as etcd writes it: an entry, its checksum, 4085 bytes of data, of which a few came.
const TORN_LENGTH: u64 = 4096;
const TORN_HEADER: [u8; 14] =
    [0x08, 0x02, 0x10, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x1a, 0xf5, 0x1f, 0xa5, 0xa5, 0xa5];

/// What is done to a member's volume while nothing of it runs.
#[derive(Clone, Debug)]
pub(crate) enum Damage {
    /// Everything is gone.
    Wiped,
    WalGone,
    DatabaseGone,
    /// `member/` becomes this older copy of itself.
    RolledBack(PathBuf),
    /// Everything becomes this copy of another cluster's volume.
    Foreign(PathBuf),
    /// In the middle of the used part of the log.
    WalDamaged,
    /// A record that a crash cut off: its length and its first bytes, then nothing.
    WalTorn,
    /// In the middle of the values.
    DatabaseDamaged,
    /// In its first page.
    DatabaseBegun,
    /// Behind the used part.
    DatabaseUnused,
    ValueChanged,
}

/// The container ends as by kill -9, and the kubelet starts it again.
pub(crate) async fn kill(story: &Story, member: &str) {
    assert!(kill_in_pod(&uid(story, member).await, ETCD) > 0, "no process of {member} was found");
}

/// Stops the guard and etcd in the middle of whatever they do.
pub(crate) async fn freeze(story: &Story, member: &str) {
    assert!(signal(&uid(story, member).await, "-STOP") > 0, "no process of {member} was found");
}

/// Lets them go on, unless the kubelet has ended them meanwhile.
pub(crate) async fn thaw(story: &Story, member: &str) {
    signal(&uid(story, member).await, "-CONT");
}

fn signal(pod: &str, signal: &str) -> usize {
    let sent = processes(pod, ETCD).into_iter().filter(|process| {
        let pid = process.file_name().expect("a process has a number");
        Command::new("kill").arg(signal).arg(pid).status().unwrap().success()
    });
    sent.count()
}

/// How often the member's containers were started again.
pub(crate) async fn restarts(story: &Story, member: &str) -> Option<(Option<String>, i32)> {
    let pod = story.pod(member).await?;
    let (uid, status) = (pod.uid(), pod.status?);
    Some((uid, status.container_statuses?.first()?.restart_count))
}

async fn uid(story: &Story, member: &str) -> String {
    story.pod(member).await.and_then(|pod| pod.uid()).expect("the member has a Pod")
}

/// What was on a volume before.
pub(crate) struct Kept {
    volume: PathBuf,
    /// Beside the volume, so that it can be moved.
    folder: PathBuf,
}

impl Kept {
    fn of(volume: &Path) -> Self {
        let folder = volume.with_extension(format!("kept-{:08x}", rand::random::<u32>()));
        fs::create_dir(&folder).unwrap();
        Self { volume: volume.to_owned(), folder }
    }

    /// Puts all back. The stamp comes last: without it the guard starts nothing.
    pub(crate) fn put_back(&self) {
        empty(&self.volume);
        for part in ["data", "quorate.json"] {
            fs::rename(self.folder.join(part), self.volume.join(part)).unwrap();
        }
        for entry in fs::read_dir(&self.folder).unwrap().flatten() {
            fs::rename(entry.path(), self.volume.join(entry.file_name())).unwrap();
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// Harms a member's volume while its processes stand still, then kills them: no write is in between. Told to keep, it
/// hands back what was there.
pub(crate) async fn damage(story: &Story, member: &str, damage: &Damage, keep: bool) -> Option<Kept> {
    let volume = story.volume(member).await;
    freeze(story, member).await;
    let kept = keep.then(|| {
        let kept = Kept::of(&volume);
        for entry in fs::read_dir(&volume).unwrap().flatten() {
            copy(&entry.path(), &kept.folder.join(entry.file_name()));
        }
        kept
    });
    apply(damage, &volume);
    kill(story, member).await;
    kept
}

fn apply(damage: &Damage, volume: &Path) {
    let data = volume.join("data/member");
    match damage {
        Damage::Wiped => empty(volume),
        Damage::WalGone => fs::remove_dir_all(data.join("wal")).unwrap(),
        Damage::DatabaseGone => fs::remove_file(data.join("snap/db")).unwrap(),
        Damage::RolledBack(older) => {
            fs::remove_dir_all(&data).unwrap();
            copy(older, &data);
        }
        Damage::Foreign(other) => {
            empty(volume);
            for entry in fs::read_dir(other).unwrap().flatten() {
                copy(&entry.path(), &volume.join(entry.file_name()));
            }
        }
        Damage::WalDamaged => {
            let log = segments(volume).pop().expect("there is a log");
            let (_, end) = records(&log);
            spoil(&log, end / 2, usize::try_from(end / 4).unwrap().min(PIECE));
        }
        Damage::WalTorn => {
            let log = segments(volume).pop().expect("there is a log");
            let (_, end) = records(&log);
            let file = fs::File::options().write(true).open(&log).unwrap();
            file.write_all_at(&TORN_LENGTH.to_le_bytes(), end).unwrap();
            file.write_all_at(&TORN_HEADER, end + 8).unwrap();
        }
        Damage::DatabaseDamaged => {
            let database = data.join("snap/db");
            let places = places(&database);
            let middle = *places.get(places.len() / 2).expect("the values are in the database");
            spoil(&database, middle.saturating_sub(PIECE as u64 / 2), PIECE);
        }
        Damage::DatabaseBegun => spoil(&data.join("snap/db"), 0, PIECE),
        Damage::DatabaseUnused => {
            // etcd's bbolt grows the file ahead of need; what it has never reached is a hole.
            let database = data.join("snap/db");
            let length = fs::metadata(&database).unwrap().len();
            spoil(&database, length.max(used(&database) + PIECE as u64) - PIECE as u64, PIECE);
        }
        Damage::ValueChanged => change_value(&data.join("snap/db")),
    }
}

/// Takes everything out of a folder; the folder itself stays, since it may be a mount.
fn empty(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
}

fn spoil(file: &Path, at: u64, length: usize) {
    let bytes: Vec<u8> = (0..length).map(|_| rand::random()).collect();
    fs::File::options().write(true).open(file).unwrap().write_all_at(&bytes, at).unwrap();
}

/// Segments of the log, in their order.
fn segments(volume: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(volume.join("data/member/wal")).unwrap().flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "wal"))
        .collect();
    found.sort();
    found
}

/// How many records a segment has, and where the last of them ends. A record is its length (the highest byte tells the
/// padding), itself, and the padding.
fn records(segment: &Path) -> (usize, u64) {
    let mut file = std::io::BufReader::new(fs::File::open(segment).unwrap());
    let (mut count, mut end) = (0, 0);
    let mut head = [0; 8];
    while file.read_exact(&mut head).is_ok() {
        let field = u64::from_le_bytes(head);
        if field == 0 {
            break;
        }
        let padding = if field >> 63 == 1 { (field >> 56) & 0x7 } else { 0 };
        let length = (field & 0x00ff_ffff_ffff_ffff) + padding;
        std::io::copy(&mut file.by_ref().take(length), &mut std::io::sink()).unwrap();
        (count, end) = (count + 1, end + 8 + length);
    }
    (count, end)
}

/// Where values of [`Story::write`] are in a database, old copies of pages included.
fn places(database: &Path) -> Vec<u64> {
    let bytes = fs::read(database).unwrap();
    let (value, _) = VALUE;
    (0_u64..).zip(bytes.windows(value.len())).filter(|(_, part)| *part == value).map(|(at, _)| at).collect()
}

/// Where the used part of a database ends: the higher of both meta pages' high-water marks, in bytes.
fn used(database: &Path) -> u64 {
    let file = fs::File::open(database).unwrap();
    let number = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_le_bytes(bytes)
    };
    // A page begins with 16 bytes about itself; a meta page then has magic, version, page size, flags, root (16
    // bytes), freelist and the high-water mark.
    let page = number(16 + 8) & 0xffff_ffff;
    number(16 + 40).max(number(page + 16 + 40)) * page
}

/// Changes what is in the database and leaves its form as it is. Old copies of a page are changed along, so nothing
/// but the value differs.
pub(crate) fn change_value(database: &Path) {
    let places = places(database);
    assert!(!places.is_empty(), "the value is not in the database");
    let file = fs::File::options().write(true).open(database).unwrap();
    let (_, changed) = VALUE;
    for at in places {
        file.write_all_at(changed, at).unwrap();
    }
}

/// Changes a value under a member that runs on and does not notice.
pub(crate) async fn change_value_unnoticed(story: &Story, member: &str) {
    let database = story.volume(member).await.join("data/member/snap/db");
    // What was acknowledged is in the log; it comes into the database a moment later.
    eventually("the value is in the database", async || (!places(&database).is_empty()).then_some(())).await;
    freeze(story, member).await;
    change_value(&database);
    thaw(story, member).await;
}

/// Exchanges what is on two members' volumes, and ends their processes.
pub(crate) async fn swap(story: &Story, one: &str, other: &str) {
    let (first, second) = (story.volume(one).await, story.volume(other).await);
    freeze(story, one).await;
    freeze(story, other).await;
    exchange(&first, &second);
    kill(story, one).await;
    kill(story, other).await;
}

/// Exchanges what is in two folders; the folders themselves stay, since one is a mount.
pub(crate) fn exchange(first: &Path, second: &Path) {
    let aside = first.with_extension("aside");
    fs::create_dir(&aside).unwrap();
    let shift = |from: &Path, to: &Path| {
        for entry in fs::read_dir(from).unwrap().flatten() {
            fs::rename(entry.path(), to.join(entry.file_name())).unwrap();
        }
    };
    shift(first, &aside);
    shift(second, first);
    shift(&aside, second);
    fs::remove_dir(&aside).unwrap();
}

/// A member's volume on a disk of its own that is full. Nodes have mount namespaces of their own, so it is mounted in
/// that of the member's, and gone with it.
pub(crate) struct FullDisk {
    node: String,
    volume: String,
    /// Beside the volume: what was on it, and what is to be on it.
    kept: PathBuf,
}

impl FullDisk {
    /// Puts a small file system in the volume's place, fills it, and ends the member's processes, since a container
    /// keeps the mounts that it was started with.
    pub(crate) async fn under(story: &Story, member: &str) -> Self {
        let volume = story.volume(member).await;
        let pod = story.pod(member).await.and_then(|pod| pod.spec?.node_name).expect("the Pod has a node");
        freeze(story, member).await;
        let kept = volume.with_extension("under");
        copy(&volume, &kept);
        let disk = Self { node: mounts_of(&pod), volume: volume.display().to_string(), kept };
        disk.inside(&["mount", "-t", "tmpfs", "-o", "size=2g,mode=0777", "quorate-disk", &disk.volume]);
        // What etcd has set apart for its log, and never written, takes no space: it is what runs out.
        let (from, to) = (format!("{}/.", disk.kept.display()), format!("{}/", disk.volume));
        disk.inside(&["cp", "-a", "--sparse=always", &from, &to]);
        let used = disk.inside(&["du", "-sk", &disk.volume]);
        let used: u64 = used.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap();
        disk.resize(&format!("{}k", used + 64));
        kill(story, member).await;
        disk
    }

    /// Space is freed.
    pub(crate) fn free(&self) {
        self.resize("2g");
    }

    /// The volume is its own folder again, with what is on it now.
    pub(crate) async fn take_away(self, story: &Story, member: &str) {
        freeze(story, member).await;
        empty(&self.kept);
        let to = format!("{}/", self.kept.display());
        self.inside(&["cp", "-a", &format!("{}/.", self.volume), &to]);
        self.inside(&["umount", "-l", &self.volume]);
        empty(Path::new(&self.volume));
        run(&["cp", "-a", &format!("{to}."), &format!("{}/", self.volume)]);
        kill(story, member).await;
    }

    fn resize(&self, size: &str) {
        self.inside(&["mount", "-o", &format!("remount,size={size}"), &self.volume]);
    }

    fn inside(&self, words: &[&str]) -> String {
        run(&[&["nsenter", self.node.as_str()], words].concat())
    }
}

impl Drop for FullDisk {
    /// Whatever happened meanwhile, the folder can be deleted.
    fn drop(&mut self) {
        let is_mounted = self.inside(&["cat", "/proc/mounts"]).contains(&format!(" {} ", self.volume));
        if is_mounted {
            self.inside(&["umount", "-l", &self.volume]);
        }
        drop(fs::remove_dir_all(&self.kept));
    }
}

/// What nsenter is told to see a node's mounts: those of its containerd.
fn mounts_of(node: &str) -> String {
    let name = std::env::var("QUORATE_CLUSTER").expect("QUORATE_CLUSTER is set by `cargo verify`");
    let wanted = format!("/var/lib/quorate/{name}/{node}/containerd.toml");
    let is_it = |process: &PathBuf| {
        let command = fs::read_to_string(process.join("cmdline")).unwrap_or_default();
        command.split('\0').any(|word| word == wanted)
    };
    let process = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).find(is_it);
    format!("--mount={}/ns/mnt", process.expect("the node's containerd runs").display())
}

/// A member's link: the network namespace of its Pod. What is done in there goes with the Pod.
pub(crate) struct Link {
    inside: String,
    node: String,
    address: String,
}

impl Link {
    pub(crate) async fn of(story: &Story, member: &str) -> Self {
        let pod = story.pod(member).await.expect("the member has a Pod");
        let process = processes(&pod.uid().unwrap(), "").pop().expect("the Pod runs");
        let status = pod.status.unwrap();
        let node = pod.spec.and_then(|spec| spec.node_name).expect("the Pod has a node");
        let node = format!("/run/netns/quorate{}{node}", slot());
        let address = status.pod_ip.expect("the Pod has an address");
        Self { inside: process.join("ns/net").display().to_string(), node, address }
    }

    /// Nothing comes from these addresses, and nothing reaches them.
    pub(crate) fn cut(&self, from: &[String]) {
        for address in from {
            self.drop_packets(["-s", address], &[]);
            self.drop_packets(["-d", address], &[]);
        }
    }

    /// One of five packets is lost, both ways.
    pub(crate) fn lose(&self) {
        for side in ["-s", "-d"] {
            let random = ["-m", "statistic", "--mode", "random", "--probability", "0.2"];
            self.drop_packets([side, "0.0.0.0/0"], &random);
        }
    }

    fn drop_packets(&self, [side, address]: [&str; 2], matches: &[&str]) {
        let chain = if side == "-s" { "INPUT" } else { "OUTPUT" };
        let rule = ["iptables", "-w", "-A", chain, side, address];
        in_network(&self.inside, &[&rule, matches, &["-j", "DROP"]].concat());
    }

    /// 1 Mbit/s, both ways.
    pub(crate) fn slow(&self) {
        let limit = ["root", "tbf", "rate", "1mbit", "burst", "32kbit", "latency", "400ms"];
        in_network(&self.inside, &[&["tc", "qdisc", "add", "dev", "eth0"], limit.as_slice()].concat());
        let device = self.device();
        in_network(&self.node, &[&["tc", "qdisc", "add", "dev", device.as_str()], limit.as_slice()].concat());
    }

    /// The node's end of it.
    fn device(&self) -> String {
        let said = in_network(&self.node, &["ip", "route", "get", &self.address]);
        let (_, rest) = said.split_once(" dev ").expect("the Pod has a route");
        rest.split(' ').next().unwrap_or_default().to_owned()
    }

    /// As new.
    pub(crate) fn heal(&self) {
        for chain in ["INPUT", "OUTPUT"] {
            in_network(&self.inside, &["iptables", "-w", "-F", chain]);
        }
        if in_network(&self.inside, &["tc", "qdisc", "show", "dev", "eth0"]).contains("tbf") {
            in_network(&self.inside, &["tc", "qdisc", "del", "dev", "eth0", "root"]);
            in_network(&self.node, &["tc", "qdisc", "del", "dev", &self.device(), "root"]);
        }
    }
}

fn in_network(network: &str, words: &[&str]) -> String {
    let network = format!("--net={network}");
    run(&[&["nsenter", &network], words].concat())
}

/// Which of its numbers the cluster under test has: its nodes' networks are called so.
fn slot() -> u64 {
    let name = std::env::var("QUORATE_CLUSTER").expect("QUORATE_CLUSTER is set by `cargo verify`");
    let text = fs::read_to_string(format!("/var/lib/quorate/{name}/state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&text).unwrap();
    state["slot"].as_u64().unwrap()
}

/// Addresses of the other members' Pods.
pub(crate) async fn peers_of(story: &Story, member: &str) -> Vec<String> {
    let all = story.addresses().await.into_iter().filter(|(name, _)| name != member);
    all.filter_map(|(_, address)| Some(address.dial.rsplit_once(':')?.0.to_owned())).collect()
}

/// Addresses of the operators' Pods.
pub(crate) async fn operators(story: &Story) -> Vec<String> {
    let pods: Api<Pod> = Api::namespaced(story.client.clone(), "quorate-system");
    let selector = ListParams::default().labels("app.kubernetes.io/component=operator");
    let pods = pods.list(&selector).await.unwrap().items;
    pods.into_iter().filter_map(|pod| pod.status?.pod_ip).collect()
}

fn run(words: &[&str]) -> String {
    let (program, arguments) = words.split_first().expect("a command has a name");
    let output = Command::new(program).args(arguments).output().unwrap();
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {wrong}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
