//! `cargo faults` and `cargo chaos`: things go wrong on a cluster of its own. What goes wrong, and what is expected of
//! it, is in `tests/e2e/faults`; the same stories are in `cargo verify`, where they take what is over soon.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::full::{MATRIX, commit};
use crate::verify::{Options, Setting, Tally, on_a_cluster};

/// The whole matrix, and then some.
const LONGEST: Duration = Duration::from_hours(3);
/// A whole run of `cargo chaos` takes so much longer than its faults.
const BESIDES: Duration = Duration::from_mins(15);
/// Seconds that a cell waits for anything: three clusters share two cores, at times with operators that live for a second.
const PATIENCE: &str = "600";

/// What `cargo faults` may be told.
#[derive(clap::Args)]
pub(crate) struct Matrix {
    /// Only cells whose "COLUMN: FAULT", as in docs/fault-matrix.md, contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Also what stands in docs/fault-matrix.md already.
    #[arg(long)]
    again: bool,
    /// Keep the cluster, to look at it after a failure.
    #[arg(long)]
    keep: bool,
}

/// What `cargo chaos` may be told.
#[derive(clap::Args)]
pub(crate) struct Chaos {
    /// How long.
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// Of the run that is to be run again; default: a fresh one.
    #[arg(long)]
    seed: Option<u64>,
    /// Keep the cluster, to look at it after a failure.
    #[arg(long)]
    keep: bool,
}

/// Every fault on every kind of cluster.
pub(crate) fn matrix(options: &Matrix) -> Result<()> {
    let variables = [
        ("QUORATE_FAULTS", options.only.clone()),
        ("QUORATE_FAULTS_AGAIN", u8::from(options.again).to_string()),
        ("QUORATE_COMMIT", commit(MATRIX)?),
    ];
    one_story("faults", "faults::matrix::the_fault_matrix", options.keep, LONGEST, &variables)
}

/// Faults drawn by lot.
pub(crate) fn chaos(options: &Chaos) -> Result<()> {
    let fresh = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos().into();
    let seed = options.seed.unwrap_or(fresh);
    let variables =
        [("QUORATE_CHAOS_MINUTES", options.minutes.to_string()), ("QUORATE_CHAOS_SEED", seed.to_string())];
    let deadline = Duration::from_mins(options.minutes) + BESIDES;
    let outcome = one_story("chaos", "faults::chaos::faults_by_lot", options.keep, deadline, &variables);
    println!("again: cargo chaos --minutes {} --seed {seed}", options.minutes);
    outcome
}

fn one_story(
    name: &str,
    story: &str,
    keep: bool,
    deadline: Duration,
    variables: &[(&str, String)],
) -> Result<()> {
    let mut tally = Tally::default();
    let setting = Setting::prepare(&mut tally)?;
    let cluster = format!("{name}-{}", std::process::id());
    on_a_cluster(&cluster, &Options::keeping(keep), &mut tally, |cluster, tally| {
        let mut command = setting.stories(cluster, 1);
        command.args(["--exact", story, "--nocapture"]).env("QUORATE_PATIENCE", PATIENCE);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        tally.step_within(name, deadline, &setting.stop, &mut command)
    })?;
    tally.report()
}
