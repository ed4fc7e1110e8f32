//! `cargo verify`: every check, from cheap to dear, on a cluster of its own.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::programs::checkout;
use crate::state::Cluster;
use crate::{demo, full, lifecycle, process, programs, rights, setup};

/// What `cargo verify` may be told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Keep the cluster, to look at it after a failure.
    #[arg(long)]
    keep: bool,
    /// Then run what takes hours, too; what has passed before on the same content is not run again.
    #[arg(long)]
    full: bool,
    /// With --full: only the part of that name, whether it has passed before or not.
    #[arg(long, requires = "full")]
    pub(crate) part: Option<String>,
}

/// Longest time that one step may take.
const DEADLINE: Duration = Duration::from_mins(40);
/// A test's line that begins like this is worth telling even when the test passes.
const MEASURED: &str = "measured: ";

/// The steps so far.
#[derive(Default)]
pub(crate) struct Tally {
    steps: Vec<(String, Duration, u64, u64)>,
    /// What tests have measured.
    pub(crate) measured: Vec<String>,
}

/// What every step needs.
pub(crate) struct Setting {
    /// Becomes true when a person wants it to end.
    pub(crate) stop: Arc<AtomicBool>,
    /// This program.
    tool: PathBuf,
    /// Kubernetes and the rest.
    programs: PathBuf,
}

/// Runs everything. A step that fails does not keep the later ones from running, unless they need it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut tally = Tally::default();
    let setting = Setting::prepare(&mut tally)?;
    if options.full {
        return full::run(options, &setting);
    }
    short_form(options, &setting, &mut tally)?;
    tally.report()
}

/// All checks but the long ones.
pub(crate) fn short_form(options: &Options, setting: &Setting, tally: &mut Tally) -> Result<()> {
    let stop = &setting.stop;
    tally.step("format", stop, &mut setting.cargo(&["fmt", "--all", "--check"]))?;
    let lints = ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    tally.step("lints", stop, &mut setting.cargo(&lints))?;
    // No part of "all targets": `cargo test` would run it without a cluster.
    let lints = ["clippy", "--locked", "--workspace", "--test", "e2e", "--", "-D", "warnings"];
    tally.step("lints of the stories", stop, &mut setting.cargo(&lints))?;
    tally.step("tests", stop, &mut setting.cargo(&["test", "--locked", "--workspace"]))?;
    if tally.failed() > 0 {
        return Ok(());
    }
    let name = format!("verify-{}", std::process::id());
    on_a_cluster(&name, options, tally, |cluster, tally| {
        tally.step("stories on it", stop, &mut setting.stories(cluster, 3))?;
        tally.rights(cluster, &setting.programs)?;
        let begun = Instant::now();
        let shown = demo::show(cluster, &setting.programs);
        let (passed, failed) = if shown.is_ok() { (1, 0) } else { (0, 1) };
        if let Err(error) = shown {
            println!("demo: {error:#}");
        }
        tally.done("demo, warm", begun, passed, failed);
        Ok(())
    })
}

impl Options {
    /// What other commands than `cargo verify` need of it.
    pub(crate) fn keeping(keep: bool) -> Self {
        Self { keep, full: false, part: None }
    }
}

impl Setting {
    /// Installs what the machine lacks.
    pub(crate) fn prepare(tally: &mut Tally) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, stop.clone())?;
        }
        // Before the tests' build puts another file in its place.
        let tool = std::env::current_exe()?;
        let begun = Instant::now();
        setup::ensure()?;
        tally.done("set-up", begun, 1, 0);
        let begun = Instant::now();
        let programs = programs::ensure()?;
        tally.done("programs of the test cluster", begun, 1, 0);
        Ok(Self { stop, tool, programs })
    }

    /// A command of cargo's.
    pub(crate) fn cargo(&self, words: &[&str]) -> Command {
        let mut command = process::cargo();
        command.args(words).env("QUORATE_BIN", &self.programs);
        command
    }

    /// The stories, on that cluster.
    pub(crate) fn stories(&self, cluster: &Cluster, threads: u8) -> Command {
        let mut command =
            self.cargo(&["test", "--locked", "--workspace", "--test", "e2e", "--", "--show-output"]);
        let path = std::env::var("PATH").unwrap_or_default();
        let (programs, etcd) = (self.programs.display(), self.programs.join("etcd-3.6"));
        command
            .args(["--test-threads", &threads.to_string()])
            .env("KUBECONFIG", cluster.kubeconfig())
            .env("QUORATE_CLUSTER", &cluster.name)
            .env("QUORATE_CLUSTER_TOOL", &self.tool)
            .env("PATH", format!("{programs}:{}:{path}", etcd.display()));
        command
    }
}

/// A member more than nodes are needed: one that a node takes along must find another.
const NODES: u8 = 4;

/// Brings a cluster up, does what is to be done on it, and takes it down.
pub(crate) fn on_a_cluster(
    name: &str,
    options: &Options,
    tally: &mut Tally,
    work: impl FnOnce(&Cluster, &mut Tally) -> Result<()>,
) -> Result<()> {
    let before = lifecycle::traces();
    let outcome = on(name, tally, work);
    if options.keep && (outcome.is_err() || tally.failed() > 0) {
        println!("kept: the cluster {name}; `cargo cluster down --name {name}` takes it away");
    } else {
        let begun = Instant::now();
        lifecycle::down(name)?;
        tally.cleanliness(name, begun, &before);
    }
    outcome
}

fn on(name: &str, tally: &mut Tally, work: impl FnOnce(&Cluster, &mut Tally) -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    let cluster = lifecycle::up(name, NODES, false)?;
    lifecycle::load(&cluster)?;
    tally.done(&format!("a Kubernetes of {NODES} nodes"), begun, 1, 0);
    work(&cluster, tally)
}

impl Tally {
    fn done(&mut self, name: &str, begun: Instant, passed: u64, failed: u64) {
        self.count(name, begun.elapsed(), (passed, failed));
    }

    /// A step that took that time.
    pub(crate) fn count(&mut self, name: &str, time: Duration, (passed, failed): (u64, u64)) {
        self.steps.push((name.to_owned(), time, passed, failed));
    }

    fn failed(&self) -> u64 {
        self.sums().1
    }

    /// How many checks passed, and how many failed.
    pub(crate) fn sums(&self) -> (u64, u64) {
        let add = |(passed, failed), (_, _, more, worse): &(String, Duration, u64, u64)| {
            (passed + more, failed + worse)
        };
        self.steps.iter().fold((0, 0), add)
    }

    /// After all stories the operator must have used every right that it has.
    fn rights(&mut self, cluster: &Cluster, programs: &Path) -> Result<()> {
        let begun = Instant::now();
        let (given, unused) = rights::unused(cluster, programs)?;
        for right in &unused {
            println!("never used: {right}");
        }
        let (used, unused) = (u64::try_from(given - unused.len())?, u64::try_from(unused.len())?);
        self.measured.push(format!("{given} rights of the operator, {unused} of them never used"));
        self.done("rights are used", begun, u64::from(used > 0), unused);
        Ok(())
    }

    /// After `down` there must be nothing that was not there before `up`.
    fn cleanliness(&mut self, name: &str, begun: Instant, before: &BTreeSet<String>) {
        // Sockets and processes carry no cluster's name. What is left of this cluster itself is found all the same.
        let clusters = Cluster::all().unwrap_or_default();
        if let Some(other) = clusters.iter().find(|cluster| cluster.name != name) {
            println!("what is left behind is not looked for: the cluster {} is up, too", other.name);
            return;
        }
        let after = lifecycle::traces();
        let left: Vec<_> = after.difference(before).collect();
        for trace in &left {
            println!("left behind: {trace}");
        }
        self.done(
            "down, nothing left behind",
            begun,
            u64::from(left.is_empty()),
            u64::from(!left.is_empty()),
        );
    }

    fn step(&mut self, name: &str, stop: &AtomicBool, command: &mut Command) -> Result<()> {
        self.step_within(name, DEADLINE, stop, command)
    }

    /// Runs a command, passes its output on, and counts the tests that it tells of.
    pub(crate) fn step_within(
        &mut self,
        name: &str,
        deadline: Duration,
        stop: &AtomicBool,
        command: &mut Command,
    ) -> Result<()> {
        println!("== {name}");
        let begun = Instant::now();
        let mut child = command
            .current_dir(checkout()?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        let output = child.stdout.take().context("a piped child has an output")?;
        let reader = std::thread::spawn(move || pass_on(output));
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if stop.load(Ordering::Relaxed) || begun.elapsed() > deadline {
                child.kill()?;
                child.wait()?;
                self.done(name, begun, 0, 1);
                bail!("{name} was stopped after {:.0} s", begun.elapsed().as_secs_f64());
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        let told = reader.join().map_err(|_| anyhow::anyhow!("reading the output panicked"))?;
        // Commands that count no tests are one check; one that failed without a failed test has failed all the same.
        let (passed, failed) = match (status.success(), told.passed, told.failed) {
            (true, 0, 0) => (1, 0),
            (false, passed, 0) => (passed, 1),
            (_, passed, failed) => (passed, failed),
        };
        self.done(name, begun, passed, failed);
        self.measured.extend(told.measured);
        Ok(())
    }

    /// Tells of all steps; an error if one has failed.
    pub(crate) fn report(&self) -> Result<()> {
        println!();
        for (name, time, passed, failed) in &self.steps {
            println!("{name:<32} {:>5.0} s  {passed:>4} passed  {failed} failed", time.as_secs_f64());
        }
        for line in &self.measured {
            println!("{line}");
        }
        let (passed, failed) = self.sums();
        println!("{passed} passed, {failed} failed");
        std::io::stdout().flush()?;
        if failed > 0 {
            bail!("{failed} checks failed")
        }
        Ok(())
    }
}

/// What a command said of its tests.
#[derive(Debug, Default, PartialEq)]
struct Told {
    passed: u64,
    failed: u64,
    measured: Vec<String>,
}

/// Prints what a command says, sums up its `test result:` lines, and keeps what was measured.
fn pass_on(output: impl std::io::Read) -> Told {
    let lines = BufReader::new(output).lines().map_while(Result::ok);
    lines.fold(Told::default(), |mut told, line| {
        println!("{line}");
        let (passed, failed) = test_result(&line).unwrap_or_default();
        told.passed += passed;
        told.failed += failed;
        told.measured.extend(line.strip_prefix(MEASURED).map(str::to_owned));
        told
    })
}

/// The numbers in `test result: ok. 9 passed; 0 failed; 0 ignored; …`.
fn test_result(line: &str) -> Option<(u64, u64)> {
    let (_, counts) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
    let number =
        |word: &str| counts.split("; ").find_map(|count| count.strip_suffix(word)?.trim().parse().ok());
    Some((number(" passed")?, number(" failed")?))
}

#[cfg(test)]
mod tests {
    use super::{Told, pass_on, test_result};

    #[test]
    fn results_are_summed_up_and_other_lines_are_not() {
        assert_eq!(
            test_result("test result: FAILED. 8 passed; 2 failed; 0 ignored; 0 measured"),
            Some((8, 2))
        );
        assert_eq!(test_result("test a_test ... ok"), None);
        let output = "x\nmeasured: 3 s\ntest result: ok. 3 passed; 0 failed; 0 ignored\ntest result: ok. 4 passed; 1 failed; 0 ignored\n";
        let told = Told { passed: 7, failed: 1, measured: vec!["3 s".to_owned()] };
        assert_eq!(pass_on(output.as_bytes()), told);
    }
}
