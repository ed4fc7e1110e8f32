//! Ways to end an etcd, and to damage what it has on its disk.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use quorate_guard::config::OwnName;
use quorate_guard::lines::{Lines, pump};
use quorate_guard::refusal::REFUSED;
use quorate_guard::report::Report;
use quorate_guard::resolve::{self, Patience, look_up};
use tempfile::TempDir;

use super::cluster::{Guard, Member};
use super::programs::wait_until;

/// The size of a page of the database, which is that of the machine's memory.
const PAGE: usize = 4096;

/// The guard's message at its end.
pub(super) fn message(member: &Member, guard: Guard) -> String {
    drop(guard.wait());
    fs::read_to_string(member.message()).unwrap()
}

/// The guard's message when it runs on what is there.
pub(super) fn run(member: &Member) -> String {
    message(member, member.start())
}

/// The guard's message when a first boot fails: it would try again, so it is stopped in between. On a busy machine
/// that may come too late, and end the next try instead.
pub(super) fn run_first_boot(member: &Member) -> String {
    let mut message = String::new();
    wait_until("the guard is stopped between two boots", || {
        let guard = member.start();
        wait_until("the first boot fails", || guard.log().contains("is tried again in a second"));
        let ended = guard.stop();
        message = fs::read_to_string(member.message()).unwrap();
        ended.signal.is_none()
    });
    message
}

/// What the guard would report of an etcd that it would not have started: its own reading of the log, its own
/// message, but none of its checks.
pub(super) fn run_unguarded(member: &Member) -> String {
    let mut command = member.etcd_command();
    let etcd = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut etcd = Ending(etcd);
    let lines = Arc::new(Mutex::new(Lines::default()));
    let (stdout, stderr) = (etcd.0.stdout.take().unwrap(), etcd.0.stderr.take().unwrap());
    let noted = Arc::clone(&lines);
    let reader = thread::spawn(move || pump(stdout, io::sink(), &noted));
    let noted = Arc::clone(&lines);
    let other = thread::spawn(move || pump(stderr, io::sink(), &noted));
    let mut status = None;
    wait_until("etcd ends by itself", || {
        status = etcd.0.try_wait().unwrap();
        status.is_some()
    });
    reader.join().unwrap();
    other.join().unwrap();
    let (status, lines) = (status.unwrap(), lines.lock().unwrap().kept());
    let report =
        Report { exit: status.code(), signal: status.signal(), lines, etcd_ran: true, ..Report::default() };
    report.render()
}

/// The guard's message for a name that nobody publishes, without the minute that the guard would wait for it.
pub(super) fn unresolved() -> String {
    let patience = Patience { limit: Duration::from_millis(500), interval: Duration::from_millis(100) };
    let name = OwnName { address: "main-0.invalid".to_owned(), pod_ip: "127.0.0.1".parse().unwrap() };
    let (sender, events) = mpsc::channel();
    let refusal = resolve::wait(&name, patience, &events, &sender, look_up).unwrap_err();
    Report { exit: Some(i32::from(REFUSED)), ..Report::default() }.with_refusal(&refusal).render()
}

/// The only segment of a member's log.
pub(super) fn segment(member: &Member) -> PathBuf {
    member.data().join("wal/0000000000000000-0000000000000000.wal")
}

/// A member's database.
pub(super) fn database(member: &Member) -> PathBuf {
    member.data().join("snap/db")
}

/// Changes a file's bytes.
pub(super) fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Overwrites whole pages of a database with what was never written there.
pub(super) fn scribble(bytes: &mut [u8], pages: std::ops::Range<usize>) {
    bytes[pages.start * PAGE..pages.end * PAGE].fill(0xa5);
}

/// How many pages of a database are used, as the newer one of its two heads says.
pub(super) fn used_pages(bytes: &[u8]) -> usize {
    // A page's header is 16 bytes; then magic, version, page size, flags (4 each), root (16), freelist, pages (8 each).
    let pages = |page: usize| {
        let at = page * PAGE + 16 + 16 + 16 + 8;
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    };
    usize::try_from(pages(0).max(pages(1))).unwrap()
}

/// Replaces a value wherever it is in a database, whose pages have no checksums.
pub(super) fn replace_value(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    assert_eq!(old.len(), new.len());
    let places: Vec<_> =
        bytes.windows(old.len()).enumerate().filter(|(_, window)| *window == old).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "the value is not there");
    for at in places {
        bytes[at..at + new.len()].copy_from_slice(new);
    }
}

/// The index of the newest snapshot of a member.
pub(super) fn snapshot_index(member: &Member) -> Option<String> {
    let names = fs::read_dir(member.data().join("snap")).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.to_str().unwrap().to_owned());
    names.filter_map(|name| Some(name.strip_suffix(".snap")?.split_once('-')?.1.to_owned())).max()
}

/// A process that does not outlive its test.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A small disk in memory, in a mount namespace of its own: nobody else sees it, and it goes with its process.
pub(super) struct Disk {
    keeper: Ending,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    _folder: TempDir,
}

impl Disk {
    /// Mounts it; in a user namespace, so that no rights are needed.
    pub(super) fn mount(megabytes: u32) -> Self {
        const SCRIPT: &str = r#"
            mount -t tmpfs -o "size=$1m,mode=777" tmpfs "$0" && cd "$0" && echo mounted
            read order && mount -o remount,ro "$0" && echo read-only
            read order
        "#;
        let folder = TempDir::new().unwrap();
        let mut keeper = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", SCRIPT])
            .arg(folder.path())
            .arg(megabytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (orders, answers) = (keeper.stdin.take().unwrap(), keeper.stdout.take().unwrap());
        let mut disk =
            Self { keeper: Ending(keeper), orders, answers: BufReader::new(answers), _folder: folder };
        disk.expect("mounted");
        disk
    }

    /// Where it is for everybody else: where its keeper stands.
    pub(super) fn path(&self) -> PathBuf {
        Path::new("/proc").join(self.keeper.0.id().to_string()).join("cwd")
    }

    /// Writes until there is no room.
    pub(super) fn fill(&self) {
        let mut filler = fs::File::create(self.path().join("filler")).unwrap();
        let full =
            std::iter::repeat_with(|| filler.write_all(&[1; 4096])).take(1 << 20).find_map(Result::err);
        assert_eq!(full.unwrap().raw_os_error(), Some(28), "no space left on device");
    }

    /// Takes the right to write away.
    pub(super) fn make_read_only(&mut self) {
        writeln!(self.orders).unwrap();
        self.expect("read-only");
    }

    fn expect(&mut self, answer: &str) {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), answer, "unshare(1) and user namespaces are needed");
    }
}
