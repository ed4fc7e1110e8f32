//! What is too much: revisions larger than a transaction, answers larger than a message, a target that takes less than
//! the source, or nothing any more.

use std::time::Duration;

use etcd_client::{DeleteOptions, Txn, TxnOp};
use quorate_pair::programs::until;
use quorate_pair::{Pair, Recorder, Settings, Side};

use super::judge::{Verdict, judge};
use super::{MEMORY, Mirror, alike, checkpoint, differences, ended, held, level, pass};

/// Both sides' histories.
struct Recorded([Recorder; 2]);

impl Recorded {
    async fn start(pair: &Pair) -> Self {
        Self([pair.source.etcd.record().await, pair.target.etcd.record().await])
    }

    /// Judges a mirror of the whole keyspace.
    async fn judge(&self, pair: &Pair) -> Verdict {
        let [source, target] = &self.0;
        let (source, target) = (source.all(&pair.source.etcd).await, target.all(&pair.target.etcd).await);
        let verdict = judge(&source, &target, |key| Some(key.to_vec()), |_| true);
        println!("measured: {verdict:?}");
        verdict
    }
}

/// What etcd sends in one answer.
const REVISIONS: u32 = 1_000;

fn puts(prefix: &str, count: usize, value: &str) -> Vec<TxnOp> {
    (0..count).map(|number| TxnOp::put(format!("{prefix}{number:05}"), value, None)).collect()
}

/// Case 8.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_of_any_size_arrives_whole_or_says_how_far_it_is() {
    let settings = Settings::of("3.6").flag("max-txn-ops", 10_000);
    let pair = Pair::start(settings, Settings::of("3.6")).await;
    let recorded = Recorded::start(&pair).await;
    let mirror = Mirror::start(&pair.source, &pair.target, &[]);
    let sizes = [1, 127, 128, 129, 1_025, 4_031, 4_032, 4_033, 9_000];
    for size in sizes {
        let transaction = Txn::new().and_then(puts(&format!("/{size}/"), size, "v"));
        pair.source.client().await.txn(transaction).await.unwrap();
        level(&pair.source, &pair.target).await;
    }
    recorded.judge(&pair).await;
    for size in sizes {
        let keys = held(&pair.target, &format!("/{size}/")).await;
        assert_eq!(keys.len(), size);
        let mut revisions: Vec<i64> = keys.values().map(|held| held.modified).collect();
        revisions.dedup();
        // 63 × 64 operations fit in one transaction of a target with etcd's defaults.
        assert_eq!(
            revisions.len() == 1,
            size <= 4_032,
            "{size} changes came in {} revisions",
            revisions.len()
        );
    }
    assert!(mirror.metric("split_revisions_total").await > 0.0);
}

/// Cases 7 and 13: the answer that has such a revision comes in several fragments, and is cut in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_deleted_in_one_revision_survives_cuts_in_the_middle_of_it() {
    let pair = Pair::of("3.6").await;
    let recorded = Recorded::start(&pair).await;
    // Names so long that 30,000 deletes are more than 2 MiB, from which on etcd makes fragments.
    let prefix = format!("/{}/", "n".repeat(120));
    pair.source.etcd.fill(&prefix, 30_000, 1).await;
    pair.source.etcd.put("/kept", "1").await;
    let mirror = Mirror::start(&pair.source, &pair.target, &[]);
    level(&pair.source, &pair.target).await;
    let watches = mirror.metric("watches_total").await;
    pair.source.proxies[0].cut_after(3_000_000);
    let mut client = pair.source.client().await;
    client.delete(prefix.clone(), Some(DeleteOptions::new().with_prefix())).await.unwrap();
    level(&pair.source, &pair.target).await;
    assert!(mirror.metric("watches_total").await > watches, "nothing was cut");
    assert_eq!(held(&pair.target, "").await.len(), 1);
    recorded.judge(&pair).await;
}

/// Case 11, and crashes on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_to_catch_up_with_is_taken_up_where_it_was_left() {
    let pair = Pair::of("3.6").await;
    let recorded = Recorded::start(&pair).await;
    pair.source.etcd.put("/first", "1").await;
    let mirror = Mirror::start(&pair.source, &pair.target, &[]);
    let mut reached = level(&pair.source, &pair.target).await.position.revision();
    mirror.kill();
    let mut client = pair.source.client().await;
    for number in 0..2_500 {
        client.put(format!("/k{number}"), vec![b'v'; 1_000], None).await.unwrap();
    }
    // So slow that there is a middle, in which it is killed.
    pair.target.change(|link| link.to_server.bytes_per_second = Some(2_000_000));
    let head = pair.source.etcd.head().await;
    for _ in 0..2 {
        let mirror = Mirror::start(&pair.source, &pair.target, &[]);
        let before = reached;
        until("it has moved", async || {
            reached = checkpoint(&pair.target).await.unwrap().position.revision();
            reached > before
        })
        .await;
        mirror.kill();
        println!("measured: killed at revision {reached} of {head}");
    }
    assert!(reached < head, "there was no middle");
    pair.target.distance(Duration::ZERO);
    let mirror = Mirror::start(&pair.source, &pair.target, &[]);
    level(&pair.source, &pair.target).await;
    assert!(mirror.metric("resyncs_total").await == 0.0);
    alike(&pair.source, "", &pair.target, "").await;
    recorded.judge(&pair).await;
}

/// Case 12: etcd sends a thousand revisions in one answer, whatever their size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_of_large_values_is_caught_up_with_in_bounded_memory() {
    let pair = Pair::of("3.6").await;
    pair.source.etcd.put("/first", "1").await;
    let mirror = Mirror::start(&pair.source, &pair.target, &[]);
    level(&pair.source, &pair.target).await;
    mirror.kill();
    let mut client = pair.source.client().await;
    for number in 0..REVISIONS {
        client.put(format!("/k{}", number % 100), vec![b'v'; 200_000], None).await.unwrap();
    }
    let mirror = Mirror::start(&pair.source, &pair.target, &[]);
    level(&pair.source, &pair.target).await;
    let peak = mirror.peak();
    println!("measured: 200 MB of history in one answer, {peak} MiB at most");
    alike(&pair.source, "", &pair.target, "").await;
    assert!(mirror.metric("resyncs_total").await == 0.0);
    assert!(peak < MEMORY, "{peak} MiB");
}

/// Case 14.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_takes_less_than_the_source_gets_less_at_once() {
    let target = Settings::of("3.6").flag("max-txn-ops", 16).flag("max-request-bytes", 64 << 10);
    let pair = Pair::start(Settings::of("3.6"), target).await;
    let recorded = Recorded::start(&pair).await;
    pair.source.etcd.fill("/small/", 3_000, 100).await;
    pair.source.etcd.fill("/large/", 50, 30_000).await;
    let mut mirror = Mirror::start(&pair.source, &pair.target, &[]);
    level(&pair.source, &pair.target).await;
    let mut client = pair.source.client().await;
    client.txn(Txn::new().and_then(puts("/one/", 100, &"v".repeat(1_000)))).await.unwrap();
    level(&pair.source, &pair.target).await;
    recorded.judge(&pair).await;
    // What cannot fit at all is named, and not left out in silence; without it, it goes on by itself.
    pair.source.etcd.put("/too-large", vec![b'v'; 200_000]).await;
    pair.source.etcd.put("/after", "1").await;
    mirror.says("/too-large").await;
    assert!(mirror.said().contains("ValueTooLarge"), "{}", mirror.said());
    assert!(held(&pair.target, "/after").await.is_empty(), "it went on without it");
    pair.source.etcd.delete("/too-large").await;
    alike(&pair.source, "", &pair.target, "").await;
}

/// Case 18: the source discards history all the time while a first sync takes long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_sync_ends_although_history_is_discarded_all_the_time() {
    let pair = Pair::of("3.6").await;
    let recorded = Recorded::start(&pair).await;
    pair.source.etcd.fill("/k", 20_000, 200).await;
    pair.target.change(|link| link.to_server.bytes_per_second = Some(800_000));
    let _mirror = Mirror::start(&pair.source, &pair.target, &[]);
    let mut compactions = 0;
    until("the first sync has ended", async || {
        pass(Duration::from_millis(300)).await;
        pair.source.etcd.put(format!("/k{:05}", compactions * 37 % 20_000), "changed").await;
        pair.source.etcd.delete(format!("/k{:05}", compactions * 91 % 20_000)).await;
        pair.source.etcd.compact().await;
        compactions += 1;
        checkpoint(&pair.target).await.is_some_and(|checkpoint| checkpoint.position.scan().is_none())
    })
    .await;
    println!("measured: {compactions} compactions during the first sync");
    assert!(compactions > 5, "it was not slow enough");
    level(&pair.source, &pair.target).await;
    alike(&pair.source, "", &pair.target, "").await;
    recorded.judge(&pair).await;
}

/// Case 26.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_without_space_is_waited_for() {
    let target = Settings::of("3.6").flag("quota-backend-bytes", 16 << 20);
    let mut pair = Pair::start(Settings::of("3.6"), target).await;
    let recorded = Recorded::start(&pair).await;
    pair.source.etcd.put("/first", "1").await;
    let mut mirror = Mirror::start(&pair.source, &pair.target, &[]);
    level(&pair.source, &pair.target).await;
    pair.source.etcd.fill("/k", 300, 100_000).await;
    mirror.says("database space exceeded").await;
    let before = differences(&pair.source, "", &pair.target, "").await;
    assert!(before > 0 && mirror.is_running());
    recorded.judge(&pair).await;
    pair.target.etcd.restart_with("quota-backend-bytes", 1_u64 << 30).await;
    pair.target.etcd.ctl(&["alarm", "disarm"]).unwrap();
    level(&pair.source, &pair.target).await;
    alike(&pair.source, "", &pair.target, "").await;
}

/// Case 26: a source that takes no more puts is read like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_without_space_is_copied_all_the_same() {
    let source = Settings::of("3.6").flag("quota-backend-bytes", 16 << 20);
    let pair = Pair::start(source, Settings::of("3.6")).await;
    let recorded = Recorded::start(&pair).await;
    let mut mirror = Mirror::start(&pair.source, &pair.target, &[]);
    let mut client = pair.source.client().await;
    let mut puts = 0;
    let refused = loop {
        assert!(puts < 1_000, "its space has no end");
        match client.put(format!("/k{puts:05}"), vec![b'v'; 100_000], None).await {
            Ok(_) => puts += 1,
            Err(error) => break error.to_string(),
        }
    };
    assert!(refused.contains("database space exceeded"), "{refused}");
    level(&pair.source, &pair.target).await;
    client.delete("/k00001", None).await.unwrap();
    level(&pair.source, &pair.target).await;
    assert!(mirror.is_running(), "{}", mirror.said());
    mirror.kill();
    client.delete("/k00002", None).await.unwrap();
    pair.source.etcd.compact().await;
    // One goes on after a gap, another one begins.
    assert_eq!(ended(&pair.source, &pair.target, &["--once"]).await.code, Some(0));
    alike(&pair.source, "", &pair.target, "").await;
    recorded.judge(&pair).await;
    let other = Side::start(Settings::of("3.6")).await;
    assert_eq!(ended(&pair.source, &other, &["--once"]).await.code, Some(0));
    alike(&pair.source, "", &other, "").await;
}
