//! `cargo bench --bench mirror [-- small]`: `quorate mirror` against `etcdctl make-mirror` of the same etcd and against
//! a bare writer of the same transactions, at several distances to the target.
//!
//! Two real etcds of one member each on loopback, on the disk and synced; a proxy is the distance to the target. Who
//! copies stands at the source, the worse place. Both copies end with a comparison of both sides. Writes its tables to
//! docs/benchmarks.md; `small` is for a look at the bench itself, and writes nothing.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a bench that cannot go on panics, and tells what it does"
)]

mod bare;
mod contender;
mod copy;
mod live;
#[path = "../shared/results.rs"]
mod results;
mod table;

use std::time::Duration;

use self::copy::Copied;
use self::live::Lived;

/// The minor of both etcds and of etcdctl.
const MINOR: &str = "3.6";

/// What is measured.
struct Plan {
    /// Round trips to the target.
    distances: Vec<Duration>,
    /// Keys of the initial copy, and revisions to catch up with.
    keys: usize,
    /// Runs of each contender; of make-mirror, one.
    runs: usize,
    /// make-mirror is ended after so long.
    patience: Duration,
    /// Puts a second, and for how long.
    rates: Vec<(u32, Duration)>,
}

impl Plan {
    fn whole() -> Self {
        let seconds = Duration::from_secs;
        Self {
            distances: [0, 1, 30, 100].map(Duration::from_millis).to_vec(),
            keys: 100_000,
            runs: 3,
            patience: seconds(60),
            rates: [(1, 30), (10, 15), (100, 15), (700, 15), (2000, 15)]
                .map(|(rate, length)| (rate, seconds(length)))
                .to_vec(),
        }
    }

    fn small() -> Self {
        let seconds = Duration::from_secs;
        Self {
            distances: [0, 30].map(Duration::from_millis).to_vec(),
            keys: 20_000,
            runs: 1,
            patience: seconds(10),
            rates: vec![(10, seconds(5)), (700, seconds(5))],
        }
    }
}

/// What was measured.
#[derive(Default)]
struct Samples {
    copied: Vec<Copied>,
    lived: Vec<Lived>,
}

#[tokio::main]
async fn main() {
    let small = std::env::args().any(|argument| argument == "small");
    let plan = if small { Plan::small() } else { Plan::whole() };
    let load = results::load();
    let mut samples = Samples::default();
    copy::measure(&plan, &mut samples.copied).await;
    live::measure(&plan, &mut samples.lived).await;
    let table = table::write(&plan, &samples, &load);
    println!("{table}");
    if !small {
        results::write_section("mirror", &table);
    }
}
