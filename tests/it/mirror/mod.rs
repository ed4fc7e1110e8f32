//! The mirror's machine in a simulated pair of etcds (`etcd`), with everything late, lost or repeated (`pair`), judged
//! after every transaction (`judge`). Histories are made up from seeds; mirrors with a planted bug (`bugs`) must be
//! found out.
//!
//! One seed again, with its journal: `QUORATE_MIRROR_SEED=17 cargo test --test it mirror::no_history`.

mod bugs;
mod cases;
mod etcd;
mod judge;
mod pair;
mod proxy;
mod real;
mod server;

use std::sync::Mutex;

use quorate::etcd::ClusterId;
use quorate::mirror::checkpoint::{Claim, Claims, parse_claims};
use quorate::mirror::circle::{Hop, Origin};
use quorate::mirror::config::{Config, Leases, Limits, Policy, claims_key};
use quorate::mirror::keyspace::{Fate, Mapping, Side};
use quorate::mirror::machine::Mode;
use quorate::mirror::stop::Stop;
use rand::RngExt;

use bugs::Bug;
use pair::Pair;

use crate::seeds::each;

/// Histories of `cargo test`.
const HISTORIES: u64 = 5_000;
/// Seeds among which each bug must be found.
const BUG_SEEDS: u64 = 2_000;
/// Acts of a history before it settles.
const ACTS: usize = 260;
/// Rounds in which a small first sync is done.
const WARM_UP: usize = 150;
/// Rounds in which it must settle: several times what the longest one needed.
const ROUNDS: usize = 4_000;
/// Rounds after that in which leases of the target have to be kept alive: ten times as long as they live, and longer than it takes
/// until the source is asked for them.
const LEASE_ROUNDS: usize = 2_000;
/// How many configurations there are.
const CONFIGS: usize = 9;

/// A history's end.
struct Report {
    violation: Option<String>,
    journal: Vec<String>,
    seen: Seen,
}

/// What happened in histories, so that nobody believes in a search that does not search.
#[derive(Default, Debug)]
struct Seen {
    crashes: u64,
    late: u64,
    lost: u64,
    compactions: u64,
    set_back: u64,
    scans: u64,
    streams: u64,
    splits: u64,
    meddled: u64,
    leases: u64,
    taken: u64,
    refused: u64,
    touched: u64,
    stops: std::collections::BTreeMap<&'static str, u64>,
}

fn config(choice: usize) -> Config {
    let mapping =
        |source: &str, target: &str| Mapping { source: source.to_owned(), target: target.to_owned() };
    let ignoring = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
    let locks = ignoring(&["(/b)?/a/locks(/.*)?"]);
    match choice {
        0 => Config::whole(),
        1 => Config { ignore: locks, ..Config::whole() },
        2 => Config { mappings: vec![mapping("/a/", "/a/")], ..Config::whole() },
        3 => Config { mappings: vec![mapping("/a/", "/b/a/")], ignore: locks, ..Config::whole() },
        4 => Config { mappings: vec![mapping("/a/", "/z/"), mapping("/c/", "/b/")], ..Config::whole() },
        5 => Config { leases: Leases::Skip, ..Config::whole() },
        6 => Config { leases: Leases::Recreate, ..Config::whole() },
        7 => Config { mappings: vec![mapping("/a/", "/b/a/")], leases: Leases::Recreate, ..Config::whole() },
        _ => Config {
            mappings: vec![mapping("/a/", "/a/")],
            ignore: ignoring(&["/a/k[0-3]"]),
            ignore_at: Side::Target,
            ..Config::whole()
        },
    }
}

fn history(seed: u64, bug: Bug) -> Report {
    let mut pair = Pair::new(seed, config(0), bug);
    let choice = pair.below(CONFIGS);
    pair.config = config(choice);
    if pair.chance(0.15) {
        // A revision may then be more than a transaction holds.
        pair.target.max_operations = 4;
        pair.limits = Limits { level: 4, ..pair.limits };
    }
    if pair.chance(0.1) {
        pair.target.max_operations = 8;
    }
    pair.repair = pair.chance(0.15);
    furnish(&mut pair);
    if pair.chance(0.5) {
        // What goes wrong with a stream needs one.
        pair.start(Mode::Follow, None);
        for round in 0..WARM_UP {
            calm(&mut pair, round);
        }
    }
    let mut seen = Seen::default();
    for _ in 0..ACTS {
        act(&mut pair, &mut seen);
        if pair.violation.is_some() {
            break;
        }
    }
    if pair.violation.is_none() {
        meddle(&mut pair, &mut seen);
        pair.violation = settle(&mut pair, &mut seen).err();
    }
    (seen.lost, seen.splits, seen.leases) = (pair.lost, pair.divided, pair.ended);
    (seen.taken, seen.refused, seen.touched) = (pair.taken, pair.refused, pair.touched);
    Report { violation: pair.violation.take(), journal: pair.journal, seen }
}

/// What is there before the first agent runs.
fn furnish(pair: &mut Pair) {
    for _ in 0..pair.below(14) {
        write(pair);
    }
    // What only the target has, in a place that no mirror of these may touch.
    for key in ["/a/locks/own", "/b/a/locks/own"] {
        if !pair.config.ignore.is_empty() && pair.config.ignore_at == Side::Source {
            put_in_target(pair, key);
        }
    }
    if pair.chance(0.12) {
        foreign(pair);
        pair.policy = match pair.below(3) {
            0 => Policy { overwrite: true, prune: true },
            _ => Policy::default(),
        };
    }
}

fn put_in_target(pair: &mut Pair, key: &str) {
    let change = etcd::Happened { key: key.into(), value: Some(b"own".to_vec()), lease: 0 };
    pair.target.write(vec![change]);
}

/// Somebody writes a key of the target that is not there, where no mirror has been yet.
fn foreign(pair: &mut Pair) {
    let number = pair.below(10);
    let Some(first) = pair.config.mappings.first() else { return };
    let key =
        if first.target.is_empty() { format!("/a/k{number}") } else { format!("{}k{number}", first.target) };
    make_foreign(pair, &key);
}

/// Somebody makes a key that is about to be added: it was not there when the target was read.
fn foreign_between(pair: &mut Pair) {
    let adding = pair.adding();
    if !adding.is_empty() {
        let at = pair.below(adding.len());
        make_foreign(pair, &adding[at]);
    }
}

fn make_foreign(pair: &mut Pair, key: &str) {
    if judge::untouched(pair, key.as_bytes()) {
        pair.foreign.insert(key.as_bytes().to_vec());
        pair.note(format!("foreign {key}"));
        put_in_target(pair, key);
    }
}

/// Somebody changes a mirrored key of the target, or makes or deletes one, where a scan makes it good.
fn meddle(pair: &mut Pair, seen: &mut Seen) {
    let (number, is_put) = (pair.below(10), pair.chance(0.5));
    let Some(first) = pair.config.mappings.first() else { return };
    let prefix = if first.target.is_empty() { "/a/" } else { &first.target };
    let key = format!("{prefix}k{number}").into_bytes();
    let mirrored = matches!(pair.config.keyspace().unwrap().of_target(&key), Fate::Mirrored(_));
    if !pair.repair || !mirrored || !judge::follows(pair) {
        return;
    }
    pair.note(format!("meddled {}", key.escape_ascii()));
    pair.meddled.insert(key.clone());
    let value = is_put.then(|| b"meddled".to_vec());
    pair.target.write(vec![etcd::Happened { key, value, lease: 0 }]);
    seen.meddled += 1;
}

/// Whether the source may change now.
fn may_change(pair: &Pair) -> bool {
    // A source that was set back is known by its applied index. Whoever looks only after that has been made up for sees
    // no difference, and nobody could; so here it is not made up for unseen.
    let unseen = judge::applied(pair).is_some_and(|stored| {
        stored > pair.source.identity.applied && stored <= pair.source.identity.applied + 1
    });
    !pair.frozen && !unseen
}

fn recreates(pair: &Pair) -> bool {
    pair.config.leases == Leases::Recreate
}

/// A lease ends in the source: its owner is gone.
fn end_lease(pair: &mut Pair) {
    if !pair.source.leases.is_empty() && may_change(pair) {
        let at = pair.below(pair.source.leases.len());
        let id = *pair.source.leases.keys().nth(at).unwrap();
        pair.source.revoke(id);
        let revision = pair.source.revision;
        pair.note(format!("{revision}: lease {id} ends"));
    }
}

/// A lease ends in the target: somebody revokes it, or nobody has kept it alive.
fn lose_lease(pair: &mut Pair) {
    if !pair.target.leases.is_empty() {
        let at = pair.below(pair.target.leases.len());
        let id = *pair.target.leases.keys().nth(at).unwrap();
        pair.target.revoke(id);
        pair.ended += 1;
        pair.note(format!("lease {id} is revoked in the target"));
    }
}

fn write(pair: &mut Pair) {
    if !may_change(pair) {
        return;
    }
    let (often, same) = if recreates(pair) { (0.35, 0.15) } else { (0.1, 0.0) };
    let prefix = ["/a/k", "/a/k", "/a/k", "/a/locks/", "/c/", "/d/"];
    let mut changes: Vec<(String, Option<String>, i64)> = Vec::new();
    for _ in 0..*[1, 1, 1, 2, 3, 7].get(pair.below(6)).unwrap() {
        let key = format!("{}{}", prefix[pair.below(prefix.len())], pair.below(10));
        if changes.iter().all(|(other, ..)| *other != key) {
            let mut value = pair.chance(0.7).then(|| pair.below(1000).to_string());
            if let Some(old) = pair.source.keys.get(key.as_bytes()).map(|value| value.bytes.clone())
                && pair.chance(same)
            {
                // Only the lease is another one.
                value = Some(String::from_utf8(old).unwrap());
            }
            let lease = if value.is_some() && pair.chance(often) { 1 + pair.below(4) } else { 0 };
            let lease = i64::try_from(lease).unwrap();
            if lease != 0 {
                let seconds = [2, 3, 4][pair.below(3)];
                pair.source.grant(lease, seconds);
            }
            changes.push((key, value, lease));
        }
    }
    let shown = changes
        .iter()
        .map(|(key, value, lease)| format!("{key}={}*{lease}", value.as_deref().unwrap_or("-")));
    let shown = shown.collect::<Vec<_>>().join(" ");
    pair.write(changes);
    let revision = pair.source.revision;
    pair.note(format!("{revision}: {shown}"));
}

fn act(pair: &mut Pair, seen: &mut Seen) {
    let running = pair.agents.len();
    pair.frozen &= pair.agents.iter().any(|agent| agent.over.is_none());
    let agent = if running == 0 { 0 } else { pair.below(running) };
    let acts = if recreates(pair) { 104 } else { 100 };
    match pair.below(acts) {
        _ if running == 0 => drop(pair.start(Mode::Follow, None)),
        0..34 => {
            if pair.chance(0.05) {
                foreign_between(pair);
            }
            pair.advance(agent, true);
        }
        34..50 => pair.serve_watch(agent),
        50..64 => pair.hear(agent),
        64..84 => write(pair),
        84..88 => pair.tick(agent),
        88 => pair.cut(agent),
        89..91 => {
            let back = i64::try_from(pair.below(4)).unwrap();
            let revision = pair.source.revision - back;
            pair.source.compact(revision);
            pair.note(format!("compact {revision}"));
            seen.compactions += 1;
        }
        91..93 => {
            seen.late += 1;
            pair.haunt();
        }
        93 => {
            seen.crashes += 1;
            pair.crash(agent);
        }
        94 if running < 2 => drop(pair.start(Mode::Follow, None)),
        95 if pair.chance(0.3) => pair.deny(agent),
        96 if pair.chance(0.15) => set_back(pair, seen),
        97 if pair.chance(0.2) => reconfigure(pair),
        98 if pair.chance(0.1) => restore_target(pair),
        99 if pair.chance(0.15) => foreign(pair),
        99 if pair.chance(0.5) => meddle(pair, seen),
        100..102 => end_lease(pair),
        102 if pair.chance(0.3) => lose_lease(pair),
        _ => {
            if let Some(stop) = pair.agents[agent].over.clone() {
                *seen.stops.entry(stop.reason()).or_default() += 1;
                pair.crash(agent);
            }
        }
    }
}

/// The source is restored: the same IDs, the same term, an older state, and a log that begins again.
fn set_back(pair: &mut Pair, seen: &mut Seen) {
    if judge::applied(pair).is_none_or(|applied| applied <= 4) {
        return;
    }
    let back = pair.below(6);
    let old = pair.source.clone();
    let revision = (old.revision - i64::try_from(back).unwrap()).max(1);
    let mut restored = etcd::Etcd::new(old.identity.cluster.0);
    for happened in old.history.iter().take(usize::try_from(revision).unwrap() + 1).skip(2) {
        restored.write(happened.clone());
    }
    for value in restored.keys.clone().into_values().filter(|value| value.lease != 0) {
        restored.grant(value.lease, 3);
    }
    restored.identity.applied = 4;
    pair.note(format!("set back from {} to {}", old.revision, restored.revision));
    pair.before.push(old);
    pair.source = restored;
    // What was sent before is long lost; every connection is gone with the process, and every answer.
    pair.bury();
    pair.frozen = true;
    for agent in 0..pair.agents.len() {
        pair.cut_all(agent);
    }
    seen.set_back += 1;
}

fn reconfigure(pair: &mut Pair) {
    // What is nobody's business under one configuration is in the way under another.
    let own = pair.target.keys.values().any(|value| value.bytes == b"own");
    let others = !pair.foreign.is_empty() || !pair.meddled.is_empty();
    if own || others || !judge::streams(pair) || pair.bug == Bug::IgnoredKeys {
        return;
    }
    let choice = pair.below(CONFIGS);
    pair.note(format!("configuration {choice}"));
    pair.config = config(choice);
    pair.reconfigured += 1;
    while !pair.agents.is_empty() {
        pair.crash(0);
    }
}

/// The target goes back to what it was at its start: empty, or with what was its own.
fn restore_target(pair: &mut Pair) {
    if let Some(backup) = pair.backup.take() {
        pair.note("target restored");
        pair.foreign.retain(|key| backup.keys.contains_key(key));
        pair.target = backup;
        pair.restored += 1;
    } else {
        pair.backup = Some(pair.target.clone());
        pair.note("target saved");
    }
}

/// No more faults: one agent must bring both sides together.
fn settle(pair: &mut Pair, seen: &mut Seen) -> Result<(), String> {
    pair.note("settle");
    pair.frozen = false;
    while !pair.agents.is_empty() {
        pair.crash(0);
    }
    pair.bury();
    let (mut approved, mut starts) = (None, 0);
    pair.start(Mode::Follow, None);
    for round in 0..ROUNDS {
        calm(pair, round);
        if let Some(violation) = pair.violation.take() {
            return Err(violation);
        }
        let view = pair.agents[0].machine.view();
        if let Some(stop) = pair.agents[0].over.clone() {
            starts += 1;
            *seen.stops.entry(stop.reason()).or_default() += 1;
            approved = cured(pair, &stop, approved)?;
            if starts > 8 {
                return Err(format!("stuck: stops again and again, {}", stop.reason()));
            }
            pair.crash(0);
            pair.start(Mode::Follow, approved.clone());
        } else if view.exact
            && view.revision >= pair.source.revision - 1
            && pair.idle(0)
            && judge::end(pair).is_ok()
        {
            seen.scans += view.stats.scans;
            seen.streams += u64::from(view.stats.scans == 0);
            if pair.repair {
                made_good(pair, seen)?;
            }
            return if recreates(pair) { keep(pair) } else { Ok(()) };
        }
    }
    let view = pair.agents[0].machine.view();
    judge::end(pair)?;
    Err(format!("stuck: {} at {} of {}", view.phase, view.revision, pair.source.revision))
}

/// Nothing else happens than that somebody meddles: it must be noticed for its own sake.
fn made_good(pair: &mut Pair, seen: &mut Seen) -> Result<(), String> {
    meddle(pair, seen);
    for round in 0..ROUNDS {
        let asks = matches!(pair.agents[0].over, Some(Stop::PruneGuard { .. }));
        if asks || judge::end(pair).is_ok() {
            return Ok(());
        }
        calm(pair, round);
        if let Some(violation) = pair.violation.take() {
            return Err(violation);
        }
    }
    judge::end(pair)
}

/// Nobody changes anything but a lease of the target: its keys come back, those of the others stay, and leases that the source does
/// not have end.
fn keep(pair: &mut Pair) -> Result<(), String> {
    for round in 0..LEASE_ROUNDS {
        if round == LEASE_ROUNDS / 4 {
            lose_lease(pair);
        }
        calm(pair, round);
    }
    if let Some(violation) = pair.violation.take() {
        return Err(violation);
    }
    judge::end(pair)?;
    match pair.target.leases.keys().find(|id| !pair.source.leases.contains_key(id)) {
        Some(id) => {
            Err(format!("end: lease {id} is kept alive in the target, and the source does not have it"))
        }
        None => Ok(()),
    }
}

/// Everything goes its way.
fn calm(pair: &mut Pair, round: usize) {
    pair.advance(0, false);
    pair.serve_watch(0);
    pair.hear(0);
    pair.hear(0);
    if round.is_multiple_of(5) {
        pair.tick(0);
    }
}

/// What a person does about a stop; the plan that they permit.
fn cured(pair: &mut Pair, stop: &Stop, approved: Option<String>) -> Result<Option<String>, String> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "whatever else stops a mirror here is a defect")]
    match stop {
        Stop::SourceRewound { plan, .. } if !pair.before.is_empty() => Ok(Some(plan.clone())),
        Stop::PruneGuard { plan, .. } => Ok(Some(plan.clone())),
        // What one configuration copied and the next one left alone is nobody's under the third.
        Stop::TargetDiffers(_) if !pair.foreign.is_empty() || pair.reconfigured > 1 => {
            pair.policy = Policy { overwrite: true, prune: true };
            Ok(approved)
        }
        other => Err(format!("stop {}: {other}", other.reason())),
    }
}

/// Tells seeds on all cores until one is what was looked for; the seed and its report.
fn search(seeds: std::ops::Range<u64>, bug: Bug, total: &Mutex<Seen>) -> Option<(u64, Report)> {
    let found = Mutex::new(None::<(u64, Report)>);
    each(seeds, |seed| {
        let report = history(seed, bug);
        add(&mut total.lock().unwrap(), &report.seen);
        let breaks = report.violation.is_some();
        if breaks {
            found.lock().unwrap().get_or_insert((seed, report));
        }
        breaks
    });
    found.into_inner().unwrap()
}

fn add(total: &mut Seen, seen: &Seen) {
    let Seen {
        crashes,
        late,
        lost,
        compactions,
        set_back,
        scans,
        streams,
        splits,
        meddled,
        leases,
        taken,
        refused,
        touched,
        stops,
    } = seen;
    total.leases += leases;
    total.taken += taken;
    total.refused += refused;
    total.touched += touched;
    total.crashes += crashes;
    total.late += late;
    total.lost += lost;
    total.compactions += compactions;
    total.set_back += set_back;
    total.scans += scans;
    total.streams += streams;
    total.splits += splits;
    total.meddled += meddled;
    for (reason, count) in stops {
        *total.stops.entry(reason).or_default() += count;
    }
}

/// `QUORATE_MIRROR_SEED` tells one seed only, `QUORATE_MIRROR_HISTORIES` so many.
fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    match number("QUORATE_MIRROR_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("QUORATE_MIRROR_HISTORIES").unwrap_or(HISTORIES),
    }
}

#[test]
fn no_history_breaks_an_invariant() {
    let (seeds, total, begun) = (seeds(), Mutex::new(Seen::default()), std::time::Instant::now());
    if let Some((seed, report)) = search(seeds.clone(), Bug::None, &total) {
        panic!("seed {seed}: {}\n{}", report.violation.unwrap(), report.journal.join("\n"));
    }
    let total = total.into_inner().unwrap();
    println!(
        "{} histories, 0 violations, {:.0} s: {total:?}",
        seeds.end - seeds.start,
        begun.elapsed().as_secs_f64()
    );
    if seeds.end - seeds.start >= 1_000 {
        for count in [
            total.crashes,
            total.late,
            total.compactions,
            total.set_back,
            total.scans,
            total.streams,
            total.splits,
            total.meddled,
            total.leases,
            total.taken,
            total.refused,
            total.touched,
        ] {
            assert!(count > 50, "something hardly happens: {total:?}");
        }
    }
}

#[test]
fn every_planted_bug_is_found() {
    let mut table = String::new();
    for (bug, what) in bugs::ALL {
        let found = search(0..BUG_SEEDS, bug, &Mutex::new(Seen::default()));
        let (seed, report) = found.unwrap_or_else(|| panic!("{bug:?} was not found among {BUG_SEEDS} seeds"));
        let violation = report.violation.unwrap();
        let rule = violation.split(':').next().unwrap_or_default();
        table.push_str(&format!("{bug:<17} seed {seed:<5} {rule:<16} {what}\n", bug = format!("{bug:?}")));
    }
    println!("{table}");
    assert_eq!(table.lines().count(), bugs::ALL.len());
}

/// So many mirrors into the source, each from an etcd of its own.
fn upstream(mirrors: usize) -> Claims {
    let claim = |number: usize| {
        let (mirror, source) = (format!("up-{number}"), ClusterId(0xc0 + number as u64));
        let path = vec![Hop { mirror: mirror.clone(), source }];
        let origins = vec![Origin { path, from: "/a/".to_owned(), to: "/a/".to_owned() }];
        (mirror, Claim { prefixes: vec!["/a/".to_owned()], source, origins })
    };
    (0..mirrors).map(claim).collect()
}

#[test]
fn where_keys_come_from_is_handed_on_whatever_gets_lost() {
    for seed in 0..100 {
        let mut pair = Pair::new(seed, config(2), Bug::None);
        pair.start(Mode::Follow, None);
        for round in 0..2_000 {
            let faults = round < 1_500;
            if faults && round % 60 == 0 {
                pair.upstream = upstream(round / 60 % 4);
                pair.haunt();
                write(&mut pair);
            }
            pair.advance(0, faults);
            calm(&mut pair, round);
        }
        let claims = parse_claims(&pair.target.stored(&claims_key()).unwrap().value).unwrap();
        let expected = pair.upstream.len() + 1;
        assert_eq!(claims["default"].origins.len(), expected, "{seed}: {}", pair.journal.join("\n"));
        assert_eq!(pair.violation, None, "{seed}");
    }
}

/// It has taken over and has written nothing yet, so the checkpoint is the same in the older state: only the owner of
/// before tells.
#[test]
fn a_target_that_is_set_back_to_before_a_run_is_no_takeover() {
    let reason = |set_back: bool| {
        let mut pair = Pair::new(1, config(0), Bug::None);
        write(&mut pair);
        pair.start(Mode::Follow, None);
        (0..WARM_UP).for_each(|round| calm(&mut pair, round));
        pair.crash(0);
        let before = pair.target.clone();
        pair.start(Mode::Follow, None);
        (0..WARM_UP).for_each(|round| calm(&mut pair, round));
        if set_back {
            pair.target = before;
        } else {
            pair.start(Mode::Follow, None);
            (0..WARM_UP).for_each(|_| pair.advance(1, false));
        }
        write(&mut pair);
        (0..WARM_UP).for_each(|round| calm(&mut pair, round));
        pair.agents[0].over.as_ref().map(Stop::reason)
    };
    assert_eq!((reason(true), reason(false)), (Some("CheckpointChanged"), Some("Fenced")));
}

/// Used nowhere else: the random generator of a history belongs to it.
#[test]
fn a_history_is_the_same_every_time() {
    let told = |seed| history(seed, Bug::None).journal;
    let seed = rand::rng().random_range(0..1_000);
    assert_eq!(told(seed), told(seed), "seed {seed}");
}
