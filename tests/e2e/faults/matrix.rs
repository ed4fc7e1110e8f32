//! Every fault, done to clusters of every kind: `cargo faults`. `cargo verify` runs a choice.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use futures::FutureExt;
use serde_json::json;

use super::cell::{Told, cell};
use super::page::Page;
use super::{Expected, FAULTS, Fault};
use crate::operator::kill_operators;
use crate::support::{Story, story};

/// A kind of cluster.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) words: &'static str,
    pub(super) version: &'static str,
    pub(super) size: usize,
    /// Whether all operators are killed -9 every second meanwhile.
    pub(super) operators_die: bool,
}

pub(super) const COLUMNS: &[Column] = &[
    Column { words: "3.6, 1 member", version: "3.6", size: 1, operators_die: false },
    Column { words: "3.6, 3 members", version: "3.6", size: 3, operators_die: false },
    Column { words: "3.6, 5 members", version: "3.6", size: 5, operators_die: false },
    Column { words: "3.5, 3 members", version: "3.5", size: 3, operators_die: false },
    Column { words: "3.7, 3 members", version: "3.7", size: 3, operators_die: false },
    Column {
        words: "3.6, 3 members, operators killed -9 every second",
        version: "3.6",
        size: 3,
        operators_die: true,
    },
];

/// So many clusters are harmed at once.
const AT_ONCE: usize = 3;
/// An operator lives so long.
const LIFE: Duration = Duration::from_secs(1);
/// So many cells that are run one after the other share a cluster for as long as it is well.
const SHARE: usize = 6;

/// What `cargo verify` runs of it: what no other story does, and is over soon.
const CHOICE: &[(usize, &[Fault])] = &[
    (0, &[Fault::MemberKilled, Fault::VolumeWiped, Fault::RolledBack]),
    (1, &[Fault::LeaderKilled, Fault::WalTorn, Fault::ForeignVolume, Fault::DatabaseUnused]),
    (4, &[Fault::RolledBackBesideOneThatLags, Fault::FrozenWhileTheOthersWrote]),
];

/// Some cells of one kind of cluster.
struct Lane {
    column: &'static Column,
    faults: VecDeque<Fault>,
}

/// What the lanes share.
struct Matrix {
    lanes: Mutex<VecDeque<Lane>>,
    /// `None`: a choice leaves no trace.
    page: Mutex<Option<Page>>,
    failed: Mutex<Vec<String>>,
}

#[test]
fn the_fault_matrix() {
    let Ok(wanted) = std::env::var("QUORATE_FAULTS") else {
        let lanes = CHOICE.iter().map(|(column, faults)| {
            let faults = faults.iter().copied().collect();
            Lane { column: &COLUMNS[*column], faults }
        });
        let matrix = Matrix::new(None);
        matrix.run(lanes.collect());
        return matrix.end();
    };
    let page = Page::read();
    let again = std::env::var("QUORATE_FAULTS_AGAIN").is_ok_and(|again| again == "1");
    let open = |column: &'static Column, is_alone: bool| {
        let wanted = |fault: &&Fault| {
            let named = format!("{}: {}", column.words, fault.words()).contains(&wanted);
            let sensible = fault.expected(column.size).is_some() && fault.is_alone() == is_alone;
            named && sensible && (again || !page.is_done(**fault, column))
        };
        FAULTS.iter().filter(wanted).copied().collect::<Vec<_>>()
    };
    let lanes = |operators_die: bool, is_alone: bool| {
        let columns = COLUMNS.iter().filter(|column| column.operators_die == operators_die);
        let lanes = columns.flat_map(|column| {
            let share = |faults: &[Fault]| Lane { column, faults: faults.iter().copied().collect() };
            open(column, is_alone).chunks(SHARE).map(share).collect::<Vec<_>>()
        });
        lanes.collect::<VecDeque<_>>()
    };
    let (beside, alone) =
        ([lanes(false, false), lanes(true, false)], [lanes(false, true), lanes(true, true)]);
    let all = || beside.iter().chain(&alone).flatten();
    let count: usize = all().map(|lane| lane.faults.len()).sum();
    println!("{count} cells to do");
    assert!(
        count > 0 || !FAULTS.iter().all(|fault| !fault.words().contains(&wanted)),
        "no fault is called {wanted}"
    );
    let matrix = Matrix::new(Some(page));
    let [calm, dying] = beside;
    let [calm_alone, dying_alone] = alone;
    matrix.run(calm);
    // What takes a node away takes from every cluster: one at a time.
    matrix.run_alone(calm_alone);
    if dying.len() + dying_alone.len() > 0 {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let killer = scope.spawn(|| runtime().block_on(kill_operators(LIFE, &stop)));
            matrix.run(dying);
            matrix.run_alone(dying_alone);
            stop.store(true, Ordering::Relaxed);
            let killed = killer.join().expect("the killer of operators ends");
            println!("operators were killed {killed} times");
            assert!(killed > 5, "operators were killed {killed} times only");
        });
    }
    matrix.end();
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Matrix {
    fn new(page: Option<Page>) -> Self {
        Self { lanes: Mutex::default(), page: Mutex::new(page), failed: Mutex::default() }
    }

    fn run(&self, lanes: VecDeque<Lane>) {
        self.run_with(lanes, AT_ONCE);
    }

    fn run_alone(&self, lanes: VecDeque<Lane>) {
        self.run_with(lanes, 1);
    }

    fn run_with(&self, lanes: VecDeque<Lane>, at_once: usize) {
        *lock(&self.lanes) = lanes;
        thread::scope(|scope| {
            for _ in 0..at_once {
                scope.spawn(|| {
                    let next = || lock(&self.lanes).pop_front();
                    while let Some(lane) = next() {
                        runtime().block_on(self.lane(lane));
                    }
                });
            }
        });
    }

    /// Does a lane's faults to one cluster, and goes on with a new one where that is not as it was.
    async fn lane(&self, mut lane: Lane) {
        while let Some(first) = lane.faults.front().copied() {
            let spoilt = AssertUnwindSafe(story("faults", async |story| self.on_one(story, &mut lane).await));
            if spoilt.catch_unwind().await.is_err() && lane.faults.front() == Some(&first) {
                // Not even the cluster came up.
                lane.faults.pop_front();
                self.told(first, lane.column, Err("the cluster was not Healthy before the fault".to_owned()));
            }
        }
    }

    async fn on_one(&self, story: &Story, lane: &mut Lane) {
        let Column { version, size, .. } = lane.column;
        story.create(json!({"version": version, "replicas": size, "repair": {"maxPerHour": 100}})).await;
        story.healthy().await;
        while let Some(fault) = lane.faults.front().copied() {
            let outcome =
                AssertUnwindSafe(cell(story, fault, lane.column.operators_die)).catch_unwind().await;
            lane.faults.pop_front();
            match outcome {
                Ok(told) => self.told(fault, lane.column, Ok(in_words(fault, lane.column, &told))),
                Err(panic) => {
                    let why = panic.downcast_ref::<String>().map(String::as_str);
                    let why = why.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
                    self.told(fault, lane.column, Err(why.to_owned()));
                    // Tells what was there.
                    std::panic::resume_unwind(panic);
                }
            }
            if fault.ends_clients() {
                return;
            }
        }
    }

    fn told(&self, fault: Fault, column: &'static Column, outcome: Result<String, String>) {
        let name = format!("{}: {}", column.words, fault.words());
        match &outcome {
            Ok(said) => println!("{name}: {said}"),
            Err(why) => {
                println!("{name}: FAILED: {why}");
                lock(&self.failed).push(format!("{name}: {why}"));
            }
        }
        if outcome.is_err() && !kubernetes_answers() {
            return;
        }
        if let Some(page) = lock(&self.page).as_mut() {
            page.write(fault, column, outcome);
        }
    }

    fn end(self) {
        let failed = self.failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        assert!(failed.is_empty(), "{} cells failed:\n{}", failed.len(), failed.join("\n"));
    }
}

/// A run that somebody ends takes its Kubernetes along: what fails then says nothing of the fault.
fn kubernetes_answers() -> bool {
    let asked = Command::new("kubectl").args(["get", "--raw", "/readyz", "--request-timeout=10s"]).output();
    asked.is_ok_and(|output| output.status.success())
}

fn in_words(fault: Fault, column: &Column, told: &Told) -> String {
    let came = match fault.expected(column.size) {
        Some(Expected::Stays) => "healthy again",
        Some(Expected::Replaced) => "replaced",
        Some(Expected::Whole) => "healthy again or replaced",
        Some(Expected::Refused { condition: (_, reason), .. }) => &format!("refused ({reason})"),
        None => "–",
    };
    let clients = told.verdict.as_ref().map_or("no load".to_owned(), |verdict| {
        let gap = verdict.longest_gap.length().as_secs_f64();
        format!("gap {gap:.1} s; lost {} of {}", verdict.violations.len(), verdict.acknowledged)
    });
    let commit = std::env::var("QUORATE_COMMIT").unwrap_or_default();
    format!("{came}; {:.1} s; {clients}; {commit}", told.took.as_secs_f64()).trim_end_matches("; ").to_owned()
}

#[test]
fn the_table_of_faults_is_whole() {
    let words: std::collections::BTreeSet<_> = FAULTS.iter().map(|fault| fault.words()).collect();
    assert_eq!(words.len(), FAULTS.len(), "two faults have the same words");
    assert!(FAULTS.is_sorted(), "the page has another order than the table");
    for fault in FAULTS {
        assert!(fault.expected(3).is_some() || *fault == Fault::TwoOfFiveWiped, "{fault:?} is never done");
    }
}
