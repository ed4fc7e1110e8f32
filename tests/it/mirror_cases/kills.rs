//! Case 4: killed at every point at which an agent waits for an answer, or has just got one.
//!
//! From outside an agent is what it sends and what it gets. So everything between it and both sides stands still after
//! the first chunk, after the second and so on, and there it is killed: what it sent last is lost, or was done and the
//! answer is lost, or the answer has come. Another agent then ends the work. Each round has a prefix and a mirror of its
//! own, in a pair that goes on; all rounds are judged against the history of both sides.

use std::sync::atomic::{AtomicU32, Ordering};

use quorate_pair::programs::{PATIENCE, until};
use quorate_pair::{Pair, Trap};
use tokio::task::JoinSet;

use super::judge::{judge, needless, only};
use super::{Mirror, checkpoint_of, differences, full, level_of};

/// Keys of a round.
const KEYS: usize = 40;
/// Others' revisions after which a mirror whose keys nobody changes writes down how far it is.
const OTHERS: u32 = 520;
/// A number of chunks that nobody sends.
const NEVER: u64 = u64::MAX;

/// What an agent does until it is killed.
#[derive(Clone, Copy, Debug)]
enum Life {
    /// A first sync, then it follows changes.
    First,
    /// Nothing changes but keys of others.
    Progress,
    /// It finds that the history since its checkpoint is gone.
    Resync,
}

/// One prefix, copied by one mirror.
struct Round<'a> {
    pair: &'a Pair,
    id: String,
    prefix: String,
    /// No two values are alike, so whatever is written again is seen.
    values: &'a AtomicU32,
}

/// What came of the rounds of one life.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    /// Chunks that pass while nobody is killed.
    points: u64,
    /// Killed before they had done everything; the others a little later. How many chunks a second brings by itself
    /// depends on the machine.
    early: u32,
    /// Checkpoints at which both sides were compared.
    exact: usize,
    changes: usize,
}

impl Life {
    /// What there is before.
    async fn prepare(self, round: &Round<'_>) {
        let source = &round.pair.source;
        source.etcd.fill(&round.prefix, KEYS, 20).await;
        if matches!(self, Self::First) {
            return;
        }
        let mirror = round.start();
        level_of(&round.id, source, &round.pair.target).await;
        mirror.kill();
        match self {
            Self::Progress => others(round.pair).await,
            Self::First | Self::Resync => {
                round.change().await;
                source.etcd.compact().await;
            }
        }
    }

    /// Until the target has everything; as often as agents are killed.
    async fn live(self, round: &Round<'_>) {
        let Pair { source, target } = round.pair;
        match self {
            Self::First => {
                for _ in 0..3 {
                    round.change().await;
                    level_of(&round.id, source, target).await;
                }
            }
            Self::Progress => {
                let head = source.etcd.head().await;
                until("progress is written down", async || {
                    let checkpoint = checkpoint_of(&round.id, target).await;
                    checkpoint.is_some_and(|checkpoint| checkpoint.position.revision() >= head)
                })
                .await;
            }
            Self::Resync => {
                level_of(&round.id, source, target).await;
                round.change().await;
                level_of(&round.id, source, target).await;
            }
        }
    }
}

impl Round<'_> {
    fn start(&self) -> Mirror {
        let flags = ["--id", &self.id, "--prefix", &self.prefix];
        Mirror::start(&self.pair.source, &self.pair.target, &flags)
    }

    /// Two keys change, and one is deleted that may be gone already.
    async fn change(&self) {
        let etcd = &self.pair.source.etcd;
        for _ in 0..2 {
            let value = self.values.fetch_add(1, Ordering::Relaxed);
            etcd.put(format!("{}{:05}", self.prefix, value % 7), value.to_string()).await;
        }
        let value = self.values.fetch_add(1, Ordering::Relaxed);
        etcd.delete(format!("{}{:05}", self.prefix, 7 + value % 20)).await;
    }
}

/// Others write, each a revision.
async fn others(pair: &Pair) {
    let client = pair.source.client().await;
    let writes = (0..OTHERS).map(|number| {
        let mut client = client.clone();
        async move { drop(client.put("/others", number.to_string(), None).await.unwrap()) }
    });
    drop(writes.collect::<JoinSet<()>>().join_all().await);
}

/// A life, and its end after so many chunks; whether that came before the life was over.
async fn killed_after(life: Life, round: &Round<'_>, trap: &Trap, chunks: u64) -> bool {
    life.prepare(round).await;
    trap.set(chunks);
    let mirror = round.start();
    let sprung = tokio::select! {
        () = life.live(round) => false,
        () = trap.sprung() => true,
    };
    // Its samples go on.
    tokio::time::timeout(PATIENCE, trap.sprung()).await.unwrap();
    mirror.kill();
    // What stood still is lost, at both ends.
    round.pair.source.cut();
    round.pair.target.cut();
    trap.open();
    let mirror = round.start();
    tokio::time::timeout(PATIENCE * 2, life.live(round)).await.unwrap();
    mirror.kill();
    let Pair { source, target } = round.pair;
    let differing = differences(source, &round.prefix, target, &round.prefix).await;
    assert_eq!(differing, 0, "{life:?}, killed after {chunks} chunks");
    sprung
}

/// So many lives, each killed at another point.
async fn rounds(life: Life, count: u64) -> Sum {
    let pair = Pair::of("3.6").await;
    let recorded = [pair.source.etcd.record().await, pair.target.etcd.record().await];
    let (trap, values, mut sum) = (pair.trap(), AtomicU32::new(0), Sum::default());
    let round = |number: u64| Round {
        pair: &pair,
        id: format!("m{number}"),
        prefix: format!("/{number}/"),
        values: &values,
    };
    // To the end, to know how many points there are.
    life.prepare(&round(0)).await;
    trap.set(NEVER);
    let mirror = round(0).start();
    life.live(&round(0)).await;
    sum.points = trap.passed();
    mirror.kill();
    for number in 1..=count {
        let chunks = (number - 1) * sum.points / count.min(sum.points) % sum.points;
        sum.early += u32::from(killed_after(life, &round(number), &trap, chunks).await);
    }
    let histories = [recorded[0].all(&pair.source.etcd).await, recorded[1].all(&pair.target.etcd).await];
    for number in 0..=count {
        let Round { id, prefix, .. } = round(number);
        let [source, target] = histories.each_ref().map(|history| only(history, &id, &prefix));
        let mine = |key: &[u8]| key.starts_with(prefix.as_bytes());
        let verdict = judge(&source, &target, |key| mine(key).then(|| key.to_vec()), mine);
        assert_eq!(needless(&target), 0, "{life:?}, round {number}: something was written again");
        sum.exact += verdict.exact;
        sum.changes += verdict.changes;
    }
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_at_any_point_loses_and_repeats_nothing() {
    let times = if full() { 10 } else { 1 };
    // At once: most of it is waiting.
    let (first, progress, resync) = tokio::join!(
        rounds(Life::First, 40 * times),
        rounds(Life::Progress, 20 * times),
        rounds(Life::Resync, 40 * times),
    );
    for (life, sum, count) in [
        (Life::First, first, 40 * times),
        (Life::Progress, progress, 20 * times),
        (Life::Resync, resync, 40 * times),
    ] {
        let Sum { points, early, exact, changes } = sum;
        println!(
            "measured: {life:?}: {count} agents killed at {points} points, {early} before they had done everything; \
             compared at {exact} checkpoints, {changes} changes, none of them needless"
        );
        assert!(
            u64::from(early) * 4 >= count * 3,
            "{early} of {count} were killed before they had done everything"
        );
        assert!(sum.exact > 0 && points > 20, "{sum:?}");
    }
}
