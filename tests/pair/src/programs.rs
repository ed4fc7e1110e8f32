//! Where real etcd is, folders, addresses of our own, and how to wait.

use std::env;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::statvfs;
use tempfile::TempDir;

/// Longer than anything takes on a busy machine with two cores.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// How often to look.
const LOOK: Duration = Duration::from_millis(10);
/// What tests and benches may take of the memory's file system.
const ROOM: u64 = 4 << 30;

/// The minors that are supported.
pub const MINORS: [&str; 3] = ["3.5", "3.6", "3.7"];

/// The path of a program of one minor.
pub fn program(minor: &str, name: &str) -> PathBuf {
    let Some(folder) = env::var_os("QUORATE_BIN") else {
        panic!(
            "QUORATE_BIN is not set: run `export QUORATE_BIN=$(cargo cluster programs)`, then this test again"
        );
    };
    let path = PathBuf::from(folder).join(format!("etcd-{minor}")).join(name);
    assert!(path.exists(), "QUORATE_BIN has no {}; `cargo cluster programs` builds it", path.display());
    path
}

/// Waits for a condition, with a deadline.
pub async fn until(what: &str, condition: impl AsyncFnMut() -> bool) {
    until_within(PATIENCE, what, condition).await;
}

/// Waits for a condition, with another deadline.
pub async fn until_within(patience: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    let mut tick = tokio::time::interval(LOOK);
    while !condition().await {
        assert!(begun.elapsed() < patience, "waited {} s in vain until {what}", patience.as_secs());
        tick.tick().await;
    }
}

/// A folder in memory where there is room: a member preallocates 64 MB of log, and tests sync all the time.
pub(crate) fn quick_folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let roomy = statvfs(memory).is_ok_and(|numbers| numbers.f_bavail * numbers.f_frsize > ROOM);
    if roomy { TempDir::new_in(memory).unwrap() } else { TempDir::new().unwrap() }
}

/// Client and peer address of a new member: a loopback address of this process, and ports that the kernel gave.
/// Nothing else listens or dials from there.
pub fn own_addresses() -> [SocketAddr; 2] {
    static USED: AtomicU32 = AtomicU32::new(0);
    let used = USED.fetch_add(1, Ordering::Relaxed);
    let octet = |number: u32| u8::try_from(number % 250 + 2).unwrap();
    let process = std::process::id();
    // Beside the addresses of other tests that share this process.
    let third = octet(process / 250 + 60 + 13 * (used / 250));
    let address = Ipv4Addr::new(127, octet(process), third, octet(used));
    // Both at once, so that they differ.
    let listeners = [(); 2].map(|()| TcpListener::bind((address, 0)).unwrap());
    listeners.each_ref().map(|listener| listener.local_addr().unwrap())
}
