//! Who copies: a process beside the source.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use quorate_pair::Pair;
use quorate_pair::programs::{program, until};
use rustix::process::{Pid, Signal, kill_process};

use crate::MINOR;

/// Who copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// `etcdctl make-mirror`.
    MakeMirror,
    /// The transactions alone, without a source: see `bare`.
    Bare,
    /// A watch of the history alone, without a target: see `bare`.
    Watch,
    /// `quorate mirror`.
    Quorate,
}

/// A process that copies. It ends with this value.
pub(crate) struct Agent {
    child: Child,
}

impl Agent {
    /// Starts to copy what the source has, or, make-mirror alone, what comes after a revision: it has no memory.
    pub(crate) fn start(contender: Contender, pair: &Pair, after: Option<i64>) -> Self {
        let source = pair.source.etcd.url(pair.source.etcd.address(0));
        let mut command = match contender {
            Contender::MakeMirror => {
                make_mirror(&source, &pair.target.proxies[0].address().to_string(), after)
            }
            Contender::Quorate => quorate(&source, &pair.target.endpoints()),
            Contender::Bare | Contender::Watch => unreachable!("it is no process"),
        };
        let log = File::create(std::env::temp_dir().join(format!("bench-{contender:?}.log"))).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self { child: command.spawn().unwrap() }
    }

    /// Fails if it has ended: what is measured then would be nothing.
    pub(crate) fn check(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(
            ended.is_none(),
            "it has ended: {ended:?}; its log is bench-….log in the folder for temporary files"
        );
    }

    /// Ends it; the most memory that it has had, in MiB.
    pub(crate) async fn end(mut self) -> f64 {
        self.check();
        let peak = self.peak();
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        until("the agent has ended", async || self.child.try_wait().unwrap().is_some()).await;
        peak
    }

    fn peak(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kibibytes / 1024.0
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn make_mirror(source: &str, target: &str, after: Option<i64>) -> Command {
    let mut command = Command::new(program(MINOR, "etcdctl"));
    command.args(["--endpoints", source, "make-mirror"]);
    if let Some(revision) = after {
        command.arg(format!("--rev={}", revision + 1));
    }
    command.arg(target);
    command
}

fn quorate(source: &str, target: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(["mirror", "--source", source, "--target", target]);
    command
}
