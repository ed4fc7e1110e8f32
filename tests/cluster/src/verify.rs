//! `cargo verify`: every check, from cheap to dear, on a cluster of its own.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::programs::checkout;
use crate::{demo, lifecycle, programs, setup};

/// What `cargo verify` may be told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Keep the cluster, to look at it after a failure.
    #[arg(long)]
    keep: bool,
}

/// Longest time that one step may take.
const DEADLINE: Duration = Duration::from_mins(40);

/// The steps so far.
#[derive(Default)]
struct Tally {
    steps: Vec<(String, Duration, u64, u64)>,
}

/// Runs everything. A step that fails does not keep the later ones from running, unless they need it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone())?;
    }
    // Before the tests' build puts another file in its place.
    let tool = std::env::current_exe()?;
    let mut tally = Tally::default();
    let begun = Instant::now();
    setup::ensure()?;
    tally.done("set-up", begun, 1, 0);
    let begun = Instant::now();
    let programs = programs::ensure()?;
    tally.done("programs of the test cluster", begun, 1, 0);

    let cargo = |words: &[&str]| {
        let mut command = Command::new("cargo");
        command.args(words).env("QUORATE_BIN", &programs);
        command
    };
    tally.step("format", &stop, &mut cargo(&["fmt", "--all", "--check"]))?;
    let lints = ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    tally.step("lints", &stop, &mut cargo(&lints))?;
    // No part of "all targets": `cargo test` would run it without a cluster.
    let lints = ["clippy", "--locked", "--workspace", "--test", "e2e", "--", "-D", "warnings"];
    tally.step("lints of the stories", &stop, &mut cargo(&lints))?;
    tally.step("tests", &stop, &mut cargo(&["test", "--locked", "--workspace"]))?;
    if tally.failed() == 0 {
        let name = format!("verify-{}", std::process::id());
        let before = lifecycle::traces();
        let outcome = on_a_cluster(&name, &mut tally, &stop, &programs, &tool, &cargo);
        if options.keep && tally.failed() > 0 {
            println!("kept: the cluster {name}; `cargo cluster down --name {name}` takes it away");
        } else {
            let begun = Instant::now();
            lifecycle::down(&name)?;
            tally.cleanliness(begun, &before);
        }
        outcome?;
    }
    tally.report()
}

fn on_a_cluster(
    name: &str,
    tally: &mut Tally,
    stop: &Arc<AtomicBool>,
    programs: &Path,
    tool: &Path,
    cargo: &dyn Fn(&[&str]) -> Command,
) -> Result<()> {
    let begun = Instant::now();
    let cluster = lifecycle::up(name, 3, false)?;
    lifecycle::load(&cluster)?;
    tally.done("a Kubernetes of three nodes", begun, 1, 0);
    let path = format!(
        "{}:{}:{}",
        programs.display(),
        programs.join("etcd-3.6").display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let mut stories =
        cargo(&["test", "--locked", "--workspace", "--test", "e2e", "--", "--test-threads", "6"]);
    stories
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("QUORATE_CLUSTER", name)
        .env("QUORATE_CLUSTER_TOOL", tool)
        .env("PATH", path);
    tally.step("stories on it", stop, &mut stories)?;
    let begun = Instant::now();
    let shown = demo::show(&cluster, programs);
    let (passed, failed) = if shown.is_ok() { (1, 0) } else { (0, 1) };
    if let Err(error) = shown {
        println!("demo: {error:#}");
    }
    tally.done("demo, warm", begun, passed, failed);
    Ok(())
}

impl Tally {
    fn done(&mut self, name: &str, begun: Instant, passed: u64, failed: u64) {
        self.steps.push((name.to_owned(), begun.elapsed(), passed, failed));
    }

    fn failed(&self) -> u64 {
        self.steps.iter().map(|(.., failed)| failed).sum()
    }

    /// After `down` there must be nothing that was not there before `up`.
    fn cleanliness(&mut self, begun: Instant, before: &BTreeSet<String>) {
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

    /// Runs a command, passes its output on, and counts the tests that it tells of.
    fn step(&mut self, name: &str, stop: &Arc<AtomicBool>, command: &mut Command) -> Result<()> {
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
            if stop.load(Ordering::Relaxed) || begun.elapsed() > DEADLINE {
                child.kill()?;
                child.wait()?;
                self.done(name, begun, 0, 1);
                bail!("{name} was stopped after {:.0} s", begun.elapsed().as_secs_f64());
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        let (passed, failed) = reader.join().map_err(|_| anyhow::anyhow!("reading the output panicked"))?;
        // Commands that count no tests are one check; one that failed without a failed test has failed all the same.
        let (passed, failed) = match (status.success(), passed, failed) {
            (true, 0, 0) => (1, 0),
            (false, passed, 0) => (passed, 1),
            (_, passed, failed) => (passed, failed),
        };
        self.done(name, begun, passed, failed);
        Ok(())
    }

    fn report(&self) -> Result<()> {
        println!();
        for (name, time, passed, failed) in &self.steps {
            println!("{name:<32} {:>5.0} s  {passed:>4} passed  {failed} failed", time.as_secs_f64());
        }
        let passed: u64 = self.steps.iter().map(|(_, _, passed, _)| passed).sum();
        let failed = self.failed();
        println!("{passed} passed, {failed} failed");
        std::io::stdout().flush()?;
        if failed > 0 {
            bail!("{failed} checks failed")
        }
        Ok(())
    }
}

/// Prints what a command says, and sums up its `test result:` lines.
fn pass_on(output: impl std::io::Read) -> (u64, u64) {
    let lines = BufReader::new(output).lines().map_while(Result::ok);
    lines.fold((0, 0), |(passed, failed), line| {
        println!("{line}");
        let (more_passed, more_failed) = test_result(&line).unwrap_or_default();
        (passed + more_passed, failed + more_failed)
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
    use super::{pass_on, test_result};

    #[test]
    fn results_are_summed_up_and_other_lines_are_not() {
        assert_eq!(
            test_result("test result: FAILED. 8 passed; 2 failed; 0 ignored; 0 measured"),
            Some((8, 2))
        );
        assert_eq!(test_result("test a_test ... ok"), None);
        let output = "x\ntest result: ok. 3 passed; 0 failed; 0 ignored\ntest result: ok. 4 passed; 1 failed; 0 ignored\n";
        assert_eq!(pass_on(output.as_bytes()), (7, 1));
    }
}
