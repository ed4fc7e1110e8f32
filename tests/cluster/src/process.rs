//! Programs: run to the end, or started and left running under a mark by which they are found again.
//!
//! Every process of a cluster carries the cluster's name in its environment. `down` finds processes by that mark,
//! so no list of pids can be lost in a crash, and no reused pid is ever killed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Name of the mark.
const MARK: &str = "QUORATE_TEST_CLUSTER_MARK";

/// A command, for `run` and `output`.
pub(crate) fn command<S: AsRef<OsStr>>(words: &[S]) -> Command {
    let mut words = words.iter();
    let mut command = Command::new(words.next().map_or(OsStr::new("true"), AsRef::as_ref));
    command.args(words);
    command
}

/// Runs to the end; a failure carries what was said.
pub(crate) fn run<S: AsRef<OsStr>>(words: &[S]) -> Result<String> {
    finish(&mut command(words))
}

/// Runs a command to the end; a failure carries what was said.
pub(crate) fn finish(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?} failed ({}): {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(said)
}

/// cargo, as if it had been called by hand. This tool runs under `cargo run`, whose variables about this package make
/// build scripts that read variables of these names run again, and with them half of the build (ring, and all above it).
pub(crate) fn cargo() -> Command {
    let mut command = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|ours| name.to_string_lossy().starts_with(ours)) {
            command.env_remove(name);
        }
    }
    command
}

/// Starts a program that outlives this one: own process group, output into a log, marked.
pub(crate) fn start(cluster: &str, log: &Path, command: &mut Command) -> Result<()> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    let child = command
        .env(MARK, cluster)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    drop(child);
    Ok(())
}

/// Pids of a cluster's processes whose program has that name; all of them for "".
pub(crate) fn find(cluster: &str, program: &str) -> Vec<u32> {
    pids(|process| {
        let command = fs::read_to_string(process.join("cmdline")).unwrap_or_default();
        let name = command.split('\0').next().unwrap_or_default();
        mark(process).as_deref() == Some(cluster)
            && (program.is_empty() || name.rsplit('/').next() == Some(program))
    })
}

/// Pids of the processes of all clusters.
pub(crate) fn marked() -> Vec<u32> {
    pids(|process| mark(process).is_some())
}

/// The cluster that a process belongs to.
fn mark(process: &Path) -> Option<String> {
    let environment = fs::read(process.join("environ")).ok()?;
    let mut variables = environment.split(|byte| *byte == 0);
    let value = variables.find_map(|variable| variable.strip_prefix(format!("{MARK}=").as_bytes()))?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// Pids of processes in a control group whose path contains `part`.
pub(crate) fn in_control_group(part: &str) -> Vec<u32> {
    pids(|process| fs::read_to_string(process.join("cgroup")).unwrap_or_default().contains(part))
}

fn pids(is_wanted: impl Fn(&Path) -> bool) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .filter(|(pid, path)| *pid != std::process::id() && is_wanted(path))
        .map(|(pid, _)| pid)
        .collect()
}

/// Kills -9, and waits until they are gone.
pub(crate) fn kill(find: impl Fn() -> Vec<u32>) -> Result<()> {
    wait("processes end", Duration::from_secs(20), || {
        let left = find();
        for pid in &left {
            // One that has just ended is what we want.
            drop(run(&["kill", "-9", &pid.to_string()]));
        }
        Ok(left.is_empty().then_some(()))
    })
}

/// Asks again and again until there is an answer or the time is over.
pub(crate) fn wait<T>(
    what: &str,
    deadline: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if begun.elapsed() > deadline {
            bail!("waited {}s in vain until {what}", deadline.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The last lines of a log, for an error.
pub(crate) fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.get(lines.len().saturating_sub(8)..).unwrap_or_default().join("\n");
    format!("{}:\n{last}", log.display())
}
