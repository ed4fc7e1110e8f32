//! Stories made up from a seed, and the shortest one that still breaks what was broken.

use std::sync::Mutex;

use quorate::operator::cluster::plan::plan;
use quorate::operator::context::Planner;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::operator::{Fault, lock};
use super::story::{Act, Report, STRATEGIES, VOLUMES, tell};
use crate::seeds;

/// Stories that `cargo verify` tells.
const SCHEDULES: u64 = 30_000;
/// Acts of a story before it settles.
const LENGTH: usize = 30;

/// The story of a seed.
pub(crate) fn story(seed: u64) -> Vec<Act> {
    let random = &mut StdRng::seed_from_u64(seed);
    let version = if random.random_bool(0.25) { "3.5" } else { "3.6" };
    let mut acts = vec![Act::Create(*[1, 3, 3, 5].choose(random).unwrap(), version)];
    // Most of what can go wrong needs a cluster that has formed.
    if random.random_bool(0.85) {
        acts.extend([Act::Settle, Act::Put]);
    }
    for _ in 0..random.random_range(5..LENGTH) {
        acts.push(any_act(random, version));
    }
    acts.push(Act::Settle);
    acts
}

fn any_act(random: &mut StdRng, version: &'static str) -> Act {
    let member = |random: &mut StdRng| format!("main-{}", random.random_range(0..7));
    let node = |random: &mut StdRng| format!("n{}", random.random_range(1..5));
    match random.random_range(0..100) {
        0..10 => Act::Replicas(*[1, 3, 3, 5, 5, 7].choose(random).unwrap()),
        10..42 => any_pass(random),
        42..48 => Act::GoOn(random.random_range(0..2)),
        48..50 => Act::KillOperator(random.random_range(0..2)),
        50..66 => Act::Wait(*[500, 500, 1000, 2000, 6000].choose(random).unwrap()),
        66..76 => Act::Put,
        76..79 => Act::Kill(member(random)),
        79 => Act::Stop(member(random)),
        80 => Act::Continue(member(random)),
        81..83 => Act::DeletePod(member(random)),
        83..85 => Act::Evict(member(random)),
        85 => Act::NodeDies(node(random)),
        86 => Act::NodeReturns(node(random)),
        87 => Act::Cut(member(random), member(random)),
        88 => Act::Heal(member(random), member(random)),
        89 => Act::Blind(member(random)),
        90 => Act::See(member(random)),
        91 => Act::Impossible(random.random_bool(0.5)),
        92 => Act::NoImage(random.random_bool(0.5)),
        93 => Act::Size(["16Gi", "32Gi"].choose(random).unwrap()),
        94 => Act::Expandable(random.random_bool(0.5)),
        95 => Act::Delete,
        96..100 => any_harm(random),
        _ => Act::Create(*[1, 3, 5].choose(random).unwrap(), version),
    }
}

/// What happens to a volume, or is asked for about a member or a node.
fn any_harm(random: &mut StdRng) -> Act {
    let member = format!("main-{}", random.random_range(0..5));
    let node = format!("n{}", random.random_range(1..5));
    match random.random_range(0..26) {
        0 => Act::Wipe(member),
        1 => Act::LoseData(member),
        2 => Act::Damage(member),
        3..5 => Act::Copy(member),
        5..7 => Act::RollBack(member),
        7 => Act::DeleteVolume(member),
        8 => Act::TakeBack,
        9 => Act::Forge(member),
        10 => Act::Cordon(node, true),
        11 => Act::Cordon(node, random.random_bool(0.5)),
        13 => Act::Full(member, true),
        14 => Act::Full(member, random.random_bool(0.5)),
        15 => Act::Clock(random.random_range(0..2), random.random_range(-4_000_000..4_000_000)),
        12 => Act::Surge(random.random_bool(0.8)),
        16 => Act::BadFlag(random.random_bool(0.5)),
        17 => Act::Unanswered(*[0, 3000].choose(random).unwrap()),
        _ => Act::Replace(member, STRATEGIES.choose(random).unwrap(), VOLUMES.choose(random).unwrap()),
    }
}

fn any_pass(random: &mut StdRng) -> Act {
    let at = random.random_range(1..14);
    let fault = match random.random_range(0..10) {
        0 | 1 => Some(Fault::Hold(random.random_range(1..40))),
        2 | 3 => Some(Fault::Crash(at)),
        4 => Some(Fault::Lose(at)),
        5 => Some(Fault::Fail(random.random_range(1..30), *[404, 409, 429, 500].choose(random).unwrap())),
        _ => None,
    };
    Act::Pass(usize::from(random.random_bool(0.2)), fault)
}

/// Leaves out whatever is not needed to break the same rule.
pub(crate) fn shortest(acts: &[Act], planner: Planner, rule: &str) -> Vec<Act> {
    let breaks = |acts: &[Act]| tell(acts, planner).violation.is_some_and(|found| rule_of(&found) == rule);
    let mut short = acts.to_vec();
    let mut size = short.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < short.len() {
            let mut candidate = short.clone();
            candidate.drain(at..(at + size).min(short.len()));
            if breaks(&candidate) {
                short = candidate;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    short
}

/// "I-1 quorum" of "I-1 quorum: 2 of 3 …".
pub(crate) fn rule_of(violation: &str) -> &str {
    violation.split(':').next().unwrap_or_default()
}

/// What a person needs to see what went wrong.
fn picture(seed: u64, acts: &[Act], report: &Report, planner: Planner) -> String {
    let violation = report.violation.clone().unwrap_or_default();
    let short = shortest(acts, planner, rule_of(&violation));
    let lines: Vec<String> = short.iter().map(ToString::to_string).collect();
    let journal = tell(&short, planner).journal;
    format!(
        "seed {seed}: {violation}\n\nthe shortest story:\n{}\n\nwhat happened in it:\n{}",
        lines.join("\n"),
        journal.join("\n")
    )
}

/// Tells the stories of these seeds on all cores until `stop` says that one is what was looked for, or all are told.
fn each(
    seeds: std::ops::Range<u64>,
    planner: Planner,
    stop: impl Fn(u64, &[Act], &Report) -> bool + Sync,
) -> u64 {
    seeds::each(seeds, |seed| {
        let acts = story(seed);
        let report = tell(&acts, planner);
        stop(seed, &acts, &report)
    })
}

/// How many stories were told, or the picture of the first that breaks something.
fn search(
    seeds: std::ops::Range<u64>,
    planner: Planner,
    over: impl Fn() -> bool + Sync,
) -> Result<u64, String> {
    let found = Mutex::new(None::<String>);
    let told = each(seeds, planner, |seed, acts, report| {
        if report.violation.is_some() {
            lock(&found).get_or_insert_with(|| picture(seed, acts, report, planner));
        }
        report.violation.is_some() || over()
    });
    let found = lock(&found).take();
    found.map_or(Ok(told), Err)
}

/// A seed whose story breaks that rule.
pub(crate) fn first(seeds: std::ops::Range<u64>, planner: Planner, rule: &str) -> Option<u64> {
    let found = Mutex::new(None);
    each(seeds, planner, |seed, _, report| {
        let breaks = report.violation.as_deref().is_some_and(|violation| rule_of(violation) == rule);
        if breaks {
            lock(&found).get_or_insert(seed);
        }
        breaks
    });
    found.into_inner().unwrap_or_default()
}

/// QUORATE_FIRST_SEED begins elsewhere, to look at some seeds once more.
fn first_seed() -> u64 {
    std::env::var("QUORATE_FIRST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// `QUORATE_EXPLORE_MINUTES` (`cargo explore --minutes N`) makes it go on with new seeds for so long.
#[test]
fn no_schedule_breaks_an_invariant() {
    let minutes: Option<u64> =
        std::env::var("QUORATE_EXPLORE_MINUTES").ok().and_then(|text| text.parse().ok());
    let schedules: u64 =
        std::env::var("QUORATE_SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(SCHEDULES);
    let begun = std::time::Instant::now();
    let (seeds, end) = match minutes {
        Some(minutes) => {
            let first = rand::random::<u32>().into();
            (first..u64::MAX, std::time::Duration::from_mins(minutes))
        }
        None => (first_seed()..first_seed() + schedules, std::time::Duration::MAX),
    };
    let told = search(seeds, plan, || begun.elapsed() > end).unwrap_or_else(|picture| panic!("{picture}"));
    println!("{told} schedules, 0 violations, {:.0} s", begun.elapsed().as_secs_f64());
    assert!(told >= if minutes.is_some() { 1 } else { schedules });
}

#[test]
fn a_line_of_a_story_says_what_it_does() {
    for seed in 0..200 {
        for act in story(seed) {
            assert_eq!(Act::parse(&act.to_string()), Some(act));
        }
    }
}

/// The stories that people wrote.
#[test]
fn every_scenario_ends_as_it_says() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios");
    let mut told = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        let acts: Vec<Act> = lines
            .map(|line| Act::parse(line).unwrap_or_else(|| panic!("{}: {line:?} is no act", path.display())))
            .collect();
        let report = tell(&acts, plan);
        assert_eq!(report.violation, None, "{}:\n{}", path.display(), report.journal.join("\n"));
        told += 1;
    }
    assert!(told >= 5, "only {told} scenarios");
}
