//! The guard as process 1, as in a container. Needs `unshare` of util-linux.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::programs::wait_until;

/// Stands for etcd: leaves orphans behind, then lives on.
const PROGRAM: &str = "#!/bin/sh
for orphan in 1 2 3 4 5 6 7 8 9 10; do (sleep 0.1 &); done
echo 'panic: ten orphans' >&2
exec sleep 1000
";

/// The guard in a process namespace of its own; whoever is not root gets a user namespace for that.
fn start_as_init(folder: &TempDir) -> Child {
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("volume")).unwrap();
    fs::create_dir(path("state")).unwrap();
    fs::write(path("program"), PROGRAM).unwrap();
    fs::set_permissions(path("program"), Permissions::from_mode(0o755)).unwrap();
    let user: &[&str] =
        if rustix::process::geteuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
    Command::new("unshare")
        .args(user)
        .args(["--pid", "--fork", "--kill-child", env!("CARGO_BIN_EXE_quorate-guard"), "--"])
        .arg(path("program"))
        .arg(format!("--data-dir={}", path("volume/data").display()))
        .env("QUORATE_CLUSTER_UID", "uid")
        .env("QUORATE_MEMBER", "main-0")
        .env("QUORATE_INCARNATION", "0")
        .env("QUORATE_EXPECT_STAMP", "false")
        .env("QUORATE_VOLUME", path("volume"))
        .env("QUORATE_STATE", path("state"))
        .env("QUORATE_TERMINATION_LOG", path("message"))
        .stdin(Stdio::null())
        .stderr(File::create(path("log")).unwrap())
        .spawn()
        .unwrap()
}

/// The children of a process, with their state letters.
fn children(process: u32) -> Vec<(i32, char)> {
    let list = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    let ids = list.split_whitespace().filter_map(|id| id.parse().ok());
    ids.map(|id: i32| (id, state(id))).collect()
}

fn state(process: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('-')
}

#[test]
fn as_process_1_it_reaps_orphans_and_still_sees_the_end_of_etcd() {
    let folder = TempDir::new().unwrap();
    let mut unshare = start_as_init(&folder);
    let mut guard = 0;
    wait_until("the orphans are the guard's", || {
        guard = children(unshare.id()).first().map_or(0, |(id, _)| *id);
        let of_guard = u32::try_from(guard).map(children).unwrap_or_default();
        of_guard.len() == 11
    });
    wait_until("they are reaped", || {
        let left = u32::try_from(guard).map(children).unwrap();
        assert!(!left.is_empty(), "etcd is left");
        left.len() == 1
    });
    kill_process(Pid::from_raw(guard).unwrap(), Signal::TERM).unwrap();
    assert_eq!(unshare.wait().unwrap().code(), Some(128 + 15), "process 1 cannot end by a signal of its own");
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.path().join("message")).unwrap()).unwrap();
    assert_eq!(
        (&report["signal"], &report["lines"][0]),
        (&15.into(), &"panic: ten orphans".into()),
        "{report}"
    );
}
