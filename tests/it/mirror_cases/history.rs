//! What lies far behind is read through several watches at once. Whoever looks at the target must not see that.

use std::time::Duration;

use etcd_client::{Client, DeleteOptions, Txn, TxnOp};
use quorate_pair::programs::{until, until_within};
use quorate_pair::{Pair, Side};
use tokio::task::JoinSet;

use super::judge::judge;
use super::{MEMORY, Mirror, alike, checkpoint, level, patience};

/// Writers at once.
const WRITERS: usize = 50;
/// To the target, where an agent must not be done too soon.
const DISTANCE: Duration = Duration::from_millis(100);
/// Parts of a history; after each an agent dies.
const PARTS: i64 = 8;
/// What an agent says when it opens windows.
const WINDOWS: &str = "is read through further windows";

/// Writes so many revisions with one change each.
async fn write(side: &Side, prefix: &'static str, revisions: usize, size: usize) {
    let client = side.etcd.client().await;
    let shares = (0..WRITERS).map(|writer| {
        let mut client = client.clone();
        async move {
            for number in (writer..revisions).step_by(WRITERS) {
                let (key, value) = (format!("{prefix}{:05}", number % 3000), format!("{number:size$}"));
                drop(client.put(key, value, None).await.unwrap());
            }
        }
    });
    drop(shares.collect::<JoinSet<()>>().join_all().await);
}

/// Revisions with many changes, and deletes.
async fn mix(mut client: Client, rounds: usize) {
    for round in 0..rounds {
        let put =
            |number: usize| TxnOp::put(format!("/k/{:05}", round * 7 + number), format!("{round}"), None);
        client.txn(Txn::new().and_then((0..60).map(put).collect::<Vec<_>>())).await.unwrap();
        let (from, to) = (format!("/k/{:05}", round * 5), format!("/k/{:05}", round * 5 + 3));
        client.delete(from, Some(DeleteOptions::new().with_range(to))).await.unwrap();
    }
}

/// A mirror has everything, and its agent dies; the revision at which that was.
async fn leave(Pair { source, target }: &Pair, flags: &[&str]) -> i64 {
    source.etcd.fill("/k/", 100, 20).await;
    let mirror = Mirror::start(source, target, flags);
    let reached = level(source, target).await.position.revision();
    mirror.kill();
    reached
}

/// How often agents have opened windows.
fn windows(said: &str) -> usize {
    said.matches(WINDOWS).count()
}

/// A mixed history is caught up with by agents that are killed on the way: it comes in order, whole, and once.
async fn is_caught_up_with(minor: &'static str) {
    let pair = Pair::of(minor).await;
    let Pair { source, target } = &pair;
    let recorded = [source.etcd.record().await, target.etcd.record().await];
    let flags = ["--prefix", "/k/", "--ignore", "/k/ignored.*"];
    let begun = leave(&pair, &flags).await;

    tokio::join!(
        write(source, "/k/", 4_000, 30),
        write(source, "/k/more/", 4_000, 30),
        write(source, "/k/most/", 4_000, 30),
        write(source, "/others/", 4_000, 30),
        write(source, "/k/ignored", 2_000, 30),
        mix(source.etcd.client().await, 150),
    );
    let written = source.etcd.head().await - begun;
    let mut said = String::new();
    // So agents die amid it.
    pair.target.distance(DISTANCE);
    for part in 1..PARTS {
        let mirror = Mirror::start(source, target, &flags);
        until("the agent has come so far", async || {
            let checkpoint = checkpoint(target).await.unwrap();
            assert!(checkpoint.position.scan().is_none(), "{}", mirror.said());
            checkpoint.position.revision() - begun >= written * part / PARTS
        })
        .await;
        said += &mirror.said();
        mirror.kill();
    }
    let mirror = Mirror::start(source, target, &flags);
    write(source, "/k/", 3_000, 30).await;
    level(source, target).await;
    said += &mirror.said();
    assert!(windows(&said) > 0, "{said}");

    let [source, target] = [recorded[0].all(&source.etcd).await, recorded[1].all(&target.etcd).await];
    let mine = |key: &[u8]| key.starts_with(b"/k/") && !key.starts_with(b"/k/ignored");
    let verdict = judge(&source, &target, |key| mine(key).then(|| key.to_vec()), mine);
    println!("measured: {minor}: {written} revisions, windows {} times, {verdict:?}", windows(&said));
    assert!(verdict.exact > 4 && verdict.changes > 10_000, "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_far_behind_comes_in_order_and_whole_from_every_release() {
    for minor in ["3.5", "3.6", "3.7"] {
        is_caught_up_with(minor).await;
    }
}

/// A window ends by what comes behind it. Here nothing does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_whose_end_is_others_is_caught_up_with() {
    let pair = Pair::of("3.6").await;
    let Pair { source, target } = &pair;
    leave(&pair, &["--prefix", "/k/"]).await;
    write(source, "/k/", 2_500, 30).await;
    write(source, "/others/", 9_000, 30).await;
    let mirror = Mirror::start(source, target, &["--prefix", "/k/"]);
    level(source, target).await;
    assert!(windows(&mirror.said()) > 0, "{}", mirror.said());
    assert!(!mirror.said().contains("resync"), "{}", mirror.said());
    alike(source, "/k/", target, "/k/").await;
}

/// History that is discarded while it is read: a scan, as always.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_that_goes_away_while_it_is_read_costs_a_scan() {
    let pair = Pair::of("3.6").await;
    let Pair { source, target } = &pair;
    let begun = leave(&pair, &[]).await;
    write(source, "/k/", 20_000, 30).await;
    // So the agent is amid it for long enough.
    target.distance(DISTANCE);
    let mirror = Mirror::start(source, target, &[]);
    until("it has begun", async || checkpoint(target).await.unwrap().position.revision() > begun).await;
    source.etcd.compact().await;
    level(source, target).await;
    assert!(windows(&mirror.said()) > 0, "{}", mirror.said());
    alike(source, "", target, "").await;
}

/// Values grow: what waits its turn is bounded all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_its_turn_is_bounded_by_bytes_too() {
    let pair = Pair::of("3.6").await;
    let Pair { source, target } = &pair;
    leave(&pair, &[]).await;
    write(source, "/k/", 3_000, 30).await;
    write(source, "/k/", 5_000, 50_000).await;
    let mirror = Mirror::start(source, target, &[]);
    let head = source.etcd.head().await;
    until_within(patience() * 4, "the target has it all", async || {
        checkpoint(target).await.is_some_and(|checkpoint| checkpoint.position.revision() >= head)
    })
    .await;
    println!("measured: {} MiB at most, windows {} times", mirror.peak(), windows(&mirror.said()));
    assert!(windows(&mirror.said()) > 0, "{}", mirror.said());
    assert!(mirror.peak() < MEMORY, "{} MiB", mirror.peak());
    alike(source, "", target, "").await;
}
