//! Case 31: several mirrors between the same clusters, in both directions and in a chain.

use quorate_pair::{Etcd, Pair, Recorder, Settings, Side};

use super::judge::{judge, needless, only};
use super::{Mirror, alike, held, level_of};

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
        here.etcd.put(format!("/here/{:05}", number * 7), format!("here {number}")).await;
        there.etcd.put(format!("/there/{:05}", number * 7), format!("there {number}")).await;
        here.etcd.delete(format!("/here/{:05}", number * 5)).await;
        if number % 20 == 0 {
            level_of("forth", &here, &there).await;
            level_of("back", &there, &here).await;
        }
    }
    level_of("forth", &here, &there).await;
    level_of("back", &there, &here).await;
    alike(&here, "", &there, "").await;
    for mirror in mirrors {
        assert!(mirror.metric("resyncs_total").await == 0.0, "{}", mirror.said());
    }
    let (here, there) = ((&here.etcd, &recorded[0]), (&there.etcd, &recorded[1]));
    judged("forth", "/here/", here, there).await;
    judged("back", "/there/", there, here).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_copied_goes_round_when_mirrors_make_a_circle() {
    let start = || Side::start(Settings::of("3.6"));
    let (a, b, c) = tokio::join!(start(), start(), start());
    a.etcd.put("/x/k", "0").await;
    let mut mirrors = Vec::new();
    for (id, source, target) in [("ab", &a, &b), ("bc", &b, &c), ("ca", &c, &a)] {
        let mut mirror = Mirror::start(source, target, &["--id", id, "--prefix", "/x/"]);
        super::pass(std::time::Duration::from_millis(1500)).await;
        println!("measured: {id} runs: {}: {}", mirror.is_running(), mirror.said());
        mirrors.push(mirror);
    }
    let before = a.etcd.head().await;
    a.etcd.put("/x/k", "1").await;
    a.etcd.put("/x/k", "2").await;
    super::pass(std::time::Duration::from_secs(3)).await;
    println!("measured: {} revisions of one put", a.etcd.head().await - before);
    for side in [&a, &b, &c] {
        println!("measured: {:?}", held(side, "/x/").await);
    }
    panic!("look");
}
