//! Case 31: several mirrors between the same clusters, in both directions and in a chain.

use quorate_pair::{Etcd, Pair, Recorder, Settings, Side};

use super::judge::{judge, needless, only};
use super::{Mirror, alike};

/// Judges one of several mirrors of a side.
async fn judged(id: &str, prefix: &str, source: (&Etcd, &Recorder), target: (&Etcd, &Recorder)) {
    let source = only(&source.1.all(source.0).await, id, prefix);
    let target = only(&target.1.all(target.0).await, id, prefix);
    let mine = |key: &[u8]| key.starts_with(prefix.as_bytes());
    let verdict = judge(&source, &target, |key| mine(key).then(|| key.to_vec()), mine);
    println!("measured: {id}: {verdict:?}");
    assert!(verdict.exact > 5 && needless(&target) == 0, "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_in_both_directions_of_disjoint_prefixes_leave_each_other_alone() {
    let Pair { source: here, target: there } = Pair::of("3.6").await;
    let recorded = [here.etcd.record().await, there.etcd.record().await];
    here.etcd.fill("/here/", 300, 10).await;
    there.etcd.fill("/there/", 300, 10).await;
    let mirrors = [
        Mirror::start(&here, &there, &["--id", "forth", "--prefix", "/here/"]),
        Mirror::start(&there, &here, &["--id", "back", "--prefix", "/there/"]),
    ];
    for number in 0..60 {
        here.etcd.put(format!("/here/{:05}", number * 7 % 300), format!("here {number}")).await;
        there.etcd.put(format!("/there/{:05}", number * 7 % 300), format!("there {number}")).await;
        here.etcd.delete(format!("/here/{:05}", number * 5)).await;
        if number % 5 == 0 {
            alike(&here, "/there/", &there, "/there/").await;
            alike(&here, "/here/", &there, "/here/").await;
        }
    }
    alike(&here, "", &there, "").await;
    for mirror in mirrors {
        assert!(mirror.metric("resyncs_total").await == 0.0, "{}", mirror.said());
    }
    let (here, there) = ((&here.etcd, &recorded[0]), (&there.etcd, &recorded[1]));
    judged("forth", "/here/", here, there).await;
    judged("back", "/there/", there, here).await;
}

/// What is copied into one is copied on from there, and each copy is exact.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_in_a_chain_copy_to_its_end() {
    let start = || Side::start(Settings::of("3.6"));
    let (first, second, third) = tokio::join!(start(), start(), start());
    let sides = [&first, &second, &third];
    let recorded = [first.etcd.record().await, second.etcd.record().await, third.etcd.record().await];
    first.etcd.fill("/k/", 300, 10).await;
    let start = |id, source, target| Mirror::start(source, target, &["--id", id, "--prefix", "/k/"]);
    let _near = start("near", &first, &second);
    let far = start("far", &second, &third);
    for number in 0..60 {
        first.etcd.put(format!("/k/{:05}", number * 7 % 300), number.to_string()).await;
        first.etcd.delete(format!("/k/{:05}", number * 5)).await;
        if number == 30 {
            alike(&first, "/k/", &third, "/k/").await;
            // The last one misses what comes next, and the history of it.
            far.pause();
        }
    }
    alike(&first, "/k/", &second, "/k/").await;
    // A recorder that lags would lose what is discarded.
    drop(recorded[1].all(&second.etcd).await);
    second.etcd.compact().await;
    far.kill();
    let far = start("far", &second, &third);
    for number in 0..10 {
        alike(&first, "/k/", &third, "/k/").await;
        first.etcd.put("/k/00000", format!("again {number}")).await;
    }
    alike(&first, "/k/", &third, "/k/").await;
    assert!(far.metric("resyncs_total").await > 0.0, "it had missed nothing: {}", far.said());
    for (id, source, target) in [("near", 0, 1), ("far", 1, 2)] {
        let [source, target] = [source, target].map(|side| (&sides[side].etcd, &recorded[side]));
        judged(id, "/k/", source, target).await;
    }
}
