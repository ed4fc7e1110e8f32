//! Faults drawn by lot, for minutes, while one history is written: `cargo chaos`. `cargo verify` runs a short one.

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures::FutureExt;
use quorate_history::record::Settings;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::sync::RwLock;

use super::cell::happens;
use super::matrix::{lock, runtime};
use super::{Expected, FAULTS, Fault};
use crate::operator::kill_operators_once;
use crate::support::{Story, measured, story};

/// The clusters: a number that tells them apart, the version, the size.
const CLUSTERS: [(u64, &str, usize); 2] = [(0, "3.6", 3), (1, "3.7", 5)];
/// The load's own pause in a run of that length: a longer one writes no longer history.
const FULL_LOAD_MINUTES: u64 = 30;
/// Longest time between two deaths of the operators.
const LONGEST_LIFE_S: u64 = 30;

/// One run.
struct Run {
    begun: Instant,
    seed: u64,
    minutes: u64,
    /// Faults of nodes, which are everybody's, are drawn too.
    nodes: bool,
    /// Held by every fault; alone by one that takes members of both clusters away.
    kubernetes: RwLock<()>,
    /// What was done, as it was told.
    done: Mutex<Vec<String>>,
    failed: Mutex<Vec<String>>,
    faults: AtomicUsize,
    acknowledged: AtomicUsize,
    stop: AtomicBool,
}

#[test]
fn faults_by_lot() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let minutes = number("QUORATE_CHAOS_MINUTES");
    // `cargo verify` does the same at every run: other seeds are for those who look for something.
    let lot = || if minutes.is_some() { rand::random::<u32>().into() } else { 1 };
    let seed = number("QUORATE_CHAOS_SEED").unwrap_or_else(lot);
    let run = &Run {
        begun: Instant::now(),
        seed,
        minutes: minutes.unwrap_or(1),
        // Other stories run beside it otherwise.
        nodes: minutes.is_some(),
        kubernetes: RwLock::new(()),
        done: Mutex::default(),
        failed: Mutex::default(),
        faults: AtomicUsize::new(0),
        acknowledged: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
    };
    println!("seed {seed}, {} minutes", run.minutes);
    thread::scope(|scope| {
        let clusters = CLUSTERS.map(|cluster| scope.spawn(move || run.on_a_thread(run.disturb(cluster))));
        let killer = run.nodes.then(|| scope.spawn(|| run.on_a_thread(run.kill_operators())));
        for cluster in clusters {
            cluster.join().expect("a cluster's thread ends");
        }
        run.stop.store(true, Ordering::Relaxed);
        if let Some(killer) = killer {
            killer.join().expect("the killer of operators ends");
        }
    });
    run.end();
}

impl Run {
    fn on_a_thread(&self, work: impl Future<Output = ()>) {
        if runtime().block_on(AssertUnwindSafe(work).catch_unwind()).is_err() {
            lock(&self.failed).push("see above".to_owned());
        }
    }

    fn say(&self, words: &str) {
        let line = format!("{:>7.1} s  {words}", self.begun.elapsed().as_secs_f64());
        println!("{line}");
        lock(&self.done).push(line);
    }

    fn is_over(&self) -> bool {
        self.begun.elapsed() > Duration::from_mins(self.minutes)
    }

    /// One cluster under one load, and one fault after the other. Each is healed before the next.
    async fn disturb(&self, (number, version, size): (u64, &str, usize)) {
        story(&format!("chaos{size}"), async |story: &Story| {
            let spec = json!({"version": version, "replicas": size, "repair": {"maxPerHour": 100}});
            story.create(spec).await;
            story.healthy().await;
            let settings = Settings::default();
            let pause_ms = settings.pause_ms * self.minutes.max(FULL_LOAD_MINUTES) / FULL_LOAD_MINUTES;
            let faults = self.faults_of(story, size, StdRng::seed_from_u64(self.seed * 2 + number));
            let ((), verdict) = story.under_load_of(Settings { pause_ms, ..settings }, faults).await;
            self.acknowledged.fetch_add(verdict.acknowledged, Ordering::Relaxed);
            self.say(&format!("{size} members in the end: {}", verdict.summary()));
        })
        .await;
    }

    async fn faults_of(&self, story: &Story, size: usize, mut random: StdRng) {
        let heals = |fault: &&Fault| {
            let expected = fault.expected(size);
            let heals = matches!(expected, Some(Expected::Stays | Expected::Replaced | Expected::Whole));
            heals && !fault.ends_clients() && (self.nodes || !fault.is_long())
        };
        let faults: Vec<Fault> = FAULTS.iter().filter(heals).copied().collect();
        while !self.is_over() {
            let fault = *faults.choose(&mut random).expect("some faults heal");
            let turn = random.random_range(0..size);
            let (_shared, _alone) = if fault.is_alone() {
                (None, Some(self.kubernetes.write().await))
            } else {
                (Some(self.kubernetes.read().await), None)
            };
            self.say(&format!("{size} members, number {turn}: {}", fault.words()));
            let took = happens(story, fault, turn, false).await;
            self.faults.fetch_add(1, Ordering::Relaxed);
            self.say(&format!("{size} members: well after {:.1} s", took.as_secs_f64()));
        }
    }

    async fn kill_operators(&self) {
        let mut random = StdRng::seed_from_u64(self.seed * 2 + 2);
        while !self.stop.load(Ordering::Relaxed) && !self.is_over() {
            tokio::time::sleep(Duration::from_secs(random.random_range(1..LONGEST_LIFE_S))).await;
            let killed = kill_operators_once().await;
            self.faults.fetch_add(1, Ordering::Relaxed);
            self.say(&format!("{killed} operators killed -9"));
        }
    }

    fn end(&self) {
        let failed = lock(&self.failed);
        let done = lock(&self.done);
        println!("seed {}; in their order:\n{}", self.seed, done.join("\n"));
        assert!(failed.is_empty(), "seed {}: {} clusters are not as they must be", self.seed, failed.len());
        let (faults, acknowledged) =
            (self.faults.load(Ordering::Relaxed), self.acknowledged.load(Ordering::Relaxed));
        assert!(faults >= CLUSTERS.len(), "only {faults} faults");
        measured(&format!(
            "chaos for {} minutes, seed {}: {faults} faults, {acknowledged} writes, 0 violations",
            self.minutes, self.seed
        ));
    }
}
