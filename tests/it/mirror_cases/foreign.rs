//! Somebody else writes to the mirrored part of the target, which nothing in etcd forbids.

use std::collections::BTreeSet;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, Txn, TxnOp, WatchOptions};
use quorate_pair::programs::until;
use quorate_pair::{Pair, Side};

use super::{Ended, Mirror, alike, differences, ended, held, level};

/// Keys of a first sync that somebody meets.
const KEYS: usize = 30_000;
/// What they write.
const STRANGER: &[u8] = b"a stranger's";

async fn counts(mirror: &Mirror, writes: f64) {
    until(&format!("{writes} writes of others are counted"), async || {
        mirror.metric("foreign_writes_total").await >= writes
    })
    .await;
    assert!(mirror.metric("foreign_writes_total").await <= writes, "its own are none: {}", mirror.said());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_others_are_counted_and_what_is_not_mirrored_is_none() {
    for version in ["3.5", "3.6", "3.7"] {
        let Pair { source, target } = Pair::of(version).await;
        source.etcd.fill("/a/", 300, 10).await;
        let flags = ["--prefix", "/a/", "--ignore", "/a/own(/.*)?"];
        let mirror = Mirror::start(&source, &target, &flags);
        level(&source, &target).await;
        // While changes come and while none does.
        for number in 0..20 {
            source.etcd.put(format!("/a/{number:05}"), "changed").await;
            target.etcd.put("/b/beside", number.to_string()).await;
            target.etcd.put("/a/own/key", number.to_string()).await;
        }
        target.etcd.put("/a/00100", "meddled").await;
        target.etcd.delete("/a/00200").await;
        level(&source, &target).await;
        target.etcd.put("/a/more", "meddled").await;
        counts(&mirror, 3.0).await;
        let differ = differences(&source, "/a/", &target, "/a/").await;
        assert_eq!(differ, 5, "they are told and left alone, and so is what is ignored");
        // Whoever goes on from the checkpoint finds them again.
        source.etcd.put("/a/00001", "again").await;
        level(&source, &target).await;
        mirror.kill();
        let mirror = Mirror::start(&source, &target, &flags);
        counts(&mirror, 3.0).await;
        assert!(mirror.metric("resyncs_total").await == 0.0, "{}", mirror.said());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_others_are_made_good_where_that_is_asked_for() {
    let Pair { source, target } = Pair::of("3.6").await;
    source.etcd.fill("/a/", 300, 10).await;
    let flags = ["--foreign-writes", "repair"];
    let mirror = Mirror::start(&source, &target, &flags);
    level(&source, &target).await;
    target.etcd.put("/a/00100", "meddled").await;
    target.etcd.delete("/a/00200").await;
    target.etcd.put("/b/more", "meddled").await;
    alike(&source, "", &target, "").await;
    let resyncs = mirror.metric("resyncs_total").await;
    assert!(resyncs > 0.0 && resyncs < 2.0, "{}", mirror.said());
    level(&source, &target).await;
    // Nobody sees this one, and the target forgets who it was.
    mirror.kill();
    target.etcd.put("/a/00100", "meddled again").await;
    target.etcd.put("/a/00101", "meddled again").await;
    target.etcd.compact().await;
    assert!(held(&target, "/a/00100").await.values().any(|held| held.value == b"meddled again"));
    let _mirror = Mirror::start(&source, &target, &flags);
    alike(&source, "", &target, "").await;
}

/// Makes the key that the mirror is about to make, or one beside it, whenever it has made others: its own way to the
/// target is longer. Adds what it made to `made`.
async fn makes_keys(target: &Side, end: &str, made: &mut BTreeSet<String>) {
    let mut client = target.etcd.client().await;
    let below = WatchOptions::new().with_prefix();
    let mut seen = client.watch("/a/", Some(below)).await.unwrap();
    while let Some(message) = seen.message().await.unwrap() {
        let keys = message.events().iter().filter_map(|event| event.kv()).filter(|kv| kv.value() != STRANGER);
        let number = keys.map(|kv| kv.key_str().unwrap()[3..8].parse::<u32>().unwrap()).max();
        let Some(number) = number else { continue };
        let key = format!("/a/{:05}{end}", number + 1);
        let absent = Compare::create_revision(key.as_str(), CompareOp::Equal, 0);
        let put = TxnOp::put(key.as_str(), STRANGER, None);
        if client.txn(Txn::new().when([absent]).and_then([put])).await.unwrap().succeeded() {
            made.insert(key);
        }
    }
}

/// The first sync of a target that is empty when it begins, and is somebody's place, too: `end` makes other keys of
/// those that they make.
async fn met(version: &'static str, end: &str, flags: &[&str]) -> Ended {
    let Pair { source, target } = Pair::of(version).await;
    source.etcd.fill("/a/", KEYS, 10).await;
    target.distance(Duration::from_millis(10));
    let mut made = BTreeSet::new();
    let ended = tokio::select! {
        ended = ended(&source, &target, flags) => ended,
        () = makes_keys(&target, end, &mut made) => unreachable!(),
    };
    let held = held(&target, "/a/").await;
    let kept = made.iter().filter(|key| held[key.as_bytes()].value == STRANGER).count();
    println!("measured: {kept} keys of a stranger among {} on {version}", held.len());
    assert!(!made.is_empty());
    assert_eq!(kept, made.len());
    if ended.code == Some(0) {
        // Of the stranger's last one, which the end came upon, the answer is not known.
        let own = held.len() - KEYS;
        assert!(own == made.len() || own == made.len() + 1, "{own} of {}", made.len());
    }
    ended
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_sync_overwrites_nothing_that_comes_while_it_runs() {
    for version in ["3.5", "3.6", "3.7"] {
        let said = met(version, "", &["--once"]).await;
        assert!(said.code != Some(0) && said.said.contains("TargetDiffers"), "{}", said.said);
        let said = met(version, "-own", &["--once", "--ignore", "/a/.*-own"]).await;
        assert_eq!(said.code, Some(0), "{}", said.said);
    }
}
