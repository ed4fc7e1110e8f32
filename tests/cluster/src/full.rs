//! `cargo verify --full`: the short form, then everything that takes hours.
//!
//! A part is one entry of [`PARTS`]: long stories are the functions of the short form, which take larger numbers when
//! they find QUORATE_FULL=1. A part that passed is remembered in the cache under a hash of the checkout's content and is not run again for the
//! same content, so an interrupted run goes on where it was. The result of each part is written into `docs/full.md`
//! as soon as it is there.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::process::{command, finish};
use crate::programs::{cache, checkout, hex, short};
use crate::verify::{Options, Setting, Tally, on_a_cluster, short_form};

/// What takes long, from cheap to dear.
const PARTS: &[Part] = &[
    Part {
        name: "quiet clusters",
        shows: "10 clusters for 5 minutes: no write to the apiserver but the lease; the operator below 64 MiB",
        run: Run::Stories("quiet::"),
        variables: &[],
        minutes: 30,
    },
    Part {
        name: "many at once",
        shows: "20 clusters applied at once are Ready; one bad object never stops the others",
        run: Run::Stories("many::"),
        variables: &[],
        minutes: 45,
    },
    Part {
        name: "scaling",
        shows: "1→3→5→3→1 and 3→7→3 under a writer, operators killed every 2 s: every acknowledged key is there",
        run: Run::Stories("scaling::"),
        variables: &[],
        minutes: 30,
    },
    Part {
        name: "certificates",
        shows: "certificates that live for minutes are renewed, and authorities replaced, under load",
        run: Run::Stories("certificates::"),
        variables: &[],
        minutes: 60,
    },
    Part {
        name: "schedules",
        shows: "200,000 seeded schedules of the simulated world break no invariant",
        run: Run::Cargo(&["test", "--locked", "--test", "it", "world::search"]),
        variables: &[("QUORATE_SCHEDULES", "200000")],
        minutes: 90,
    },
    Part {
        name: "arbitrary pictures",
        shows: "the planner breaks no invariant on any of them, and each planted bug is found",
        run: Run::Cargo(&["test", "--locked", "--test", "it", "plan::"]),
        variables: &[],
        minutes: 60,
    },
    Part {
        name: "mirror cases",
        shows: "a mirror between real etcds, killed 1,000 times, silent for an hour, behind a slow target for ten minutes, \
                with a million keys: nothing is lost, repeated or written without need",
        run: Run::Cargo(&[
            "test",
            "--locked",
            "--test",
            "it",
            "--",
            "mirror_cases::kills::",
            "mirror_cases::links::connections_on_which_nothing_is_said",
            "mirror_cases::scans::",
            "--show-output",
        ]),
        variables: &[],
        minutes: 100,
    },
];

/// The first part of all.
const SHORT_FORM: &str = "the short form";
const DOCUMENT: &str = "docs/full.md";
/// What `cargo faults` writes.
pub(crate) const MATRIX: &str = "docs/fault-matrix.md";

struct Part {
    name: &'static str,
    /// For the table.
    shows: &'static str,
    run: Run,
    /// Variables besides QUORATE_FULL=1.
    variables: &'static [(&'static str, &'static str)],
    /// How long it may take.
    minutes: u64,
}

enum Run {
    /// Stories whose names contain this, one at a time, on a cluster of their own.
    Stories(&'static str),
    /// cargo with these words, without a cluster.
    Cargo(&'static [&'static str]),
}

/// How a part ended.
#[derive(Serialize, Deserialize)]
struct Outcome {
    passed: u64,
    failed: u64,
    seconds: u64,
    numbers: Vec<String>,
    commit: String,
}

/// Runs what is left to run.
pub(crate) fn run(options: &Options, setting: &Setting) -> Result<()> {
    let memory = cache()?.join("full").join(content()?);
    println!("what passes is remembered in {}", memory.display());
    let commit = commit(DOCUMENT)?;
    let mut whole = Tally::default();
    let begun = Instant::now();
    let mut ended = |name: &str, shows: &str, run: &mut dyn FnMut(&mut Tally) -> Result<()>| -> Result<u64> {
        let memory = memory.join(name.replace(' ', "-"));
        if let Some(outcome) = remembered(&memory).filter(|_| options.part.is_none()) {
            println!("== {name}: passed before, on the same content");
            whole.count(&format!("{name} (before)"), outcome.time(), outcome.counts());
            return Ok(0);
        }
        println!("== {name}");
        let mut tally = Tally::default();
        let begun = Instant::now();
        let result = run(&mut tally);
        if setting.stop.load(Ordering::Relaxed) {
            return result.and(Err(anyhow::anyhow!("{name} was stopped; what has passed is remembered")));
        }
        if let Err(error) = result {
            println!("{name}: {error:#}");
            tally.count("it could not be run", begun.elapsed(), (0, 1));
        }
        let (passed, failed) = tally.sums();
        let seconds = begun.elapsed().as_secs();
        let outcome = Outcome { passed, failed, seconds, numbers: tally.measured, commit: commit.clone() };
        record(name, shows, &outcome)?;
        if failed == 0 {
            remember(&memory, &outcome)?;
        }
        whole.count(name, outcome.time(), outcome.counts());
        Ok(failed)
    };
    let shows = "everything that `cargo verify` runs";
    if let Some(name) = &options.part {
        let part = PARTS.iter().find(|part| part.name == *name);
        let names = || PARTS.iter().map(|part| part.name).collect::<Vec<_>>().join(", ");
        let part = part.with_context(|| format!("there is no part {name}; there are: {}", names()))?;
        let cluster = format!("full-{}", std::process::id());
        ended(part.name, part.shows, &mut |tally| part.run(&cluster, options, setting, tally))?;
    } else if ended(SHORT_FORM, shows, &mut |tally| short_form(options, setting, tally))? == 0 {
        for (number, part) in PARTS.iter().enumerate() {
            let name = format!("full-{}-{number}", std::process::id());
            ended(part.name, part.shows, &mut |tally| part.run(&name, options, setting, tally))?;
        }
    } else {
        println!("the long parts wait until the short form passes");
    }
    println!("\n{:.0} minutes; the results are in {DOCUMENT}", begun.elapsed().as_secs_f64() / 60.0);
    whole.report()
}

impl Outcome {
    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    fn counts(&self) -> (u64, u64) {
        (self.passed, self.failed)
    }
}

impl Part {
    fn run(&self, cluster: &str, options: &Options, setting: &Setting, tally: &mut Tally) -> Result<()> {
        match self.run {
            Run::Cargo(words) => self.step(setting, tally, &mut setting.cargo(words)),
            Run::Stories(filter) => on_a_cluster(cluster, options, tally, |cluster, tally| {
                self.step(setting, tally, setting.stories(cluster, 1).arg(filter))
            }),
        }
    }

    fn step(&self, setting: &Setting, tally: &mut Tally, command: &mut Command) -> Result<()> {
        command.env("QUORATE_FULL", "1").envs(self.variables.iter().copied());
        tally.step_within(self.name, Duration::from_mins(self.minutes), &setting.stop, command)
    }
}

/// A hash of all files that git does not ignore, as they are now, but for the documents that long runs write.
fn content() -> Result<String> {
    let checkout = checkout()?;
    let mut list = command(&["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let list = finish(list.current_dir(&checkout)).context("the long form needs a git checkout")?;
    let mut files: Vec<&str> =
        list.split('\0').filter(|file| !["", DOCUMENT, MATRIX].contains(file)).collect();
    files.sort_unstable();
    files.dedup();
    let mut hash = Sha256::new();
    for file in files {
        // One that was deleted since is content, too.
        let bytes = fs::read(checkout.join(file)).unwrap_or_default();
        hash.update(format!("{file}\0{}\n", hex(&Sha256::digest(bytes))));
    }
    Ok(short(hash))
}

/// The commit, with a `+` if the checkout differs from it, but for a page that is being written.
pub(crate) fn commit(page: &str) -> Result<String> {
    let checkout = checkout()?;
    let git = |words: &[&str]| finish(command(&[&["git"], words].concat()).current_dir(&checkout));
    let commit = git(&["rev-parse", "--short=10", "HEAD"])?;
    let exception = format!(":(exclude){page}");
    let changes = git(&["status", "--porcelain", "--", ".", &exception])?;
    Ok(format!("{}{}", commit.trim(), if changes.trim().is_empty() { "" } else { "+" }))
}

fn remembered(memory: &Path) -> Option<Outcome> {
    serde_json::from_str(&fs::read_to_string(memory).ok()?).ok()
}

fn remember(memory: &Path, outcome: &Outcome) -> Result<()> {
    fs::create_dir_all(memory.parent().context("a memory has a folder")?)?;
    write(memory, &serde_json::to_string(outcome)?)
}

/// Puts a part's row into the document; the rows of the others stay.
fn record(name: &str, shows: &str, outcome: &Outcome) -> Result<()> {
    let path = checkout()?.join(DOCUMENT);
    let before = fs::read_to_string(&path).unwrap_or_default();
    write(&path, &document(&before, name, &row(name, shows, outcome)))
}

fn document(before: &str, name: &str, row: &str) -> String {
    let mut text = HEAD.to_owned();
    for part in std::iter::once(SHORT_FORM).chain(PARTS.iter().map(|part| part.name)) {
        let old = before.lines().find(|line| line.starts_with(&format!("| {part} |")));
        let line = if part == name { Some(row) } else { old };
        if let Some(line) = line {
            text += line;
            text.push('\n');
        }
    }
    text
}

const HEAD: &str = "\
# The long form

Written by `cargo verify --full`, a row as soon as its part has ended; do not edit. A `+` behind a commit: the checkout differed
from it. All on 2 cores.

| part | what it showed | numbers | seconds | commit |
|---|---|---|---|---|
";

fn row(name: &str, shows: &str, outcome: &Outcome) -> String {
    let Outcome { passed, failed, seconds, numbers, commit } = outcome;
    let mut told = format!("{passed} passed, {failed} failed");
    for number in numbers {
        write!(told, "; {}", number.replace('|', "\\|")).unwrap_or_default();
    }
    let shows = if *failed == 0 { shows.to_owned() } else { format!("**failed**: {shows}") };
    format!("| {name} | {shows} | {told} | {seconds} | {commit} |")
}

fn write(path: &Path, text: &str) -> Result<()> {
    let draft: PathBuf = path.with_extension("draft");
    fs::write(&draft, text).with_context(|| format!("cannot write {}", draft.display()))?;
    fs::rename(&draft, path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            PARTS.iter().map(|part| part.name).chain([SHORT_FORM]).collect();
        assert_eq!(names.len(), PARTS.len() + 1);
    }

    #[test]
    fn a_row_takes_the_place_of_the_former_one_and_the_others_stay() {
        let outcome = |failed| Outcome {
            passed: 3,
            failed,
            seconds: 40,
            numbers: vec!["a | b".to_owned()],
            commit: "0123456789+".to_owned(),
        };
        let first = document("", "many at once", &row("many at once", "shown", &outcome(0)));
        assert!(
            first.ends_with("| many at once | shown | 3 passed, 0 failed; a \\| b | 40 | 0123456789+ |\n"),
            "{first}"
        );
        let second = document(&first, SHORT_FORM, &row(SHORT_FORM, "all", &outcome(1)));
        let rows: Vec<&str> = second.lines().skip_while(|line| !line.starts_with("|---")).skip(1).collect();
        assert_eq!(rows.len(), 2);
        assert!(rows[0].starts_with("| the short form | **failed**: all | 3 passed, 1 failed"), "{second}");
        assert!(rows[1].starts_with("| many at once | shown |"), "{second}");
        let third = document(&second, SHORT_FORM, &row(SHORT_FORM, "all", &outcome(0)));
        assert_eq!(third.lines().count(), second.lines().count());
    }
}
