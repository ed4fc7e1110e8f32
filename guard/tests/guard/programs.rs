//! Where real etcd is, and how to wait.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::statvfs;
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything takes on a busy machine with two cores.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// The minors that are supported.
pub(crate) const MINORS: [&str; 3] = ["3.5", "3.6", "3.7"];

/// The path of a program of one minor.
pub(crate) fn program(minor: &str, name: &str) -> PathBuf {
    let Some(folder) = env::var_os("QUORATE_BIN") else {
        panic!(
            "QUORATE_BIN is not set: run `export QUORATE_BIN=$(cargo cluster programs)`, then this test again"
        );
    };
    let path = PathBuf::from(folder).join(format!("etcd-{minor}")).join(name);
    assert!(path.exists(), "QUORATE_BIN has no {}; `cargo cluster programs` builds it", path.display());
    path
}

/// The guard's program. cargo names it only to the tests of its own package; others ask for it to be built.
pub(crate) fn guard() -> &'static Path {
    static GUARD: OnceLock<PathBuf> = OnceLock::new();
    GUARD.get_or_init(|| option_env!("CARGO_BIN_EXE_quorate-guard").map_or_else(build_guard, PathBuf::from))
}

fn build_guard() -> PathBuf {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--package=quorate-guard", "--message-format=json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(built.status.success(), "the guard could not be built");
    let messages = String::from_utf8(built.stdout).unwrap();
    let program = messages.lines().find_map(|message| {
        let message: Value = serde_json::from_str(message).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    program.unwrap()
}

/// A folder in memory where there is room, for tests that sync thousands of times.
pub(crate) fn quick_folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let roomy = statvfs(memory).is_ok_and(|numbers| numbers.f_bavail * numbers.f_frsize > 1 << 30);
    if roomy { TempDir::new_in(memory).unwrap() } else { TempDir::new().unwrap() }
}

/// Runs a test on every minor at once.
pub(crate) fn on_every_minor(test: impl Fn(&'static str) + Sync) {
    thread::scope(|scope| {
        let runs = MINORS.map(|minor| {
            let test = &test;
            scope.spawn(move || test(minor))
        });
        for (minor, run) in MINORS.iter().zip(runs) {
            assert!(run.join().is_ok(), "failed on etcd {minor}; its panic is above");
        }
    });
}

/// Waits for a condition, with a deadline.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
