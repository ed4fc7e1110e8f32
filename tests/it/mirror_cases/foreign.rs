//! Somebody else writes to the mirrored part of the target, which nothing in etcd forbids.

use quorate_pair::Pair;
use quorate_pair::programs::until;

use super::{Mirror, alike, differences, held, level};

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
