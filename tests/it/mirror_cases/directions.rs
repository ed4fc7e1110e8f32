//! Case 31: several mirrors between the same clusters, in both directions, in a chain and in a circle.

use std::process::{Command, Output};
use std::time::Duration;

use quorate::mirror::config::claims_key;
use quorate_pair::programs::until;
use quorate_pair::{Etcd, Pair, Recorder, Settings, Side};

use super::judge::{judge, needless, only};
use super::{Mirror, alike, ended, held, pass};

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

async fn three() -> [Side; 3] {
    let start = || Side::start(Settings::of("3.6"));
    let (first, second, third) = tokio::join!(start(), start(), start());
    [first, second, third]
}

/// One that copies /k/.
fn of_k(id: &str, source: &Side, target: &Side) -> Mirror {
    Mirror::start(source, target, &["--id", id, "--prefix", "/k/"])
}

/// What needs a target only.
fn at(target: &Side, verb: &str, id: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(["mirror", verb, "--target", &target.endpoints(), "--id", id]).output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mirror_that_would_close_a_circle_is_refused_until_another_one_is_no_more() {
    let [a, b, c] = three().await;
    a.etcd.fill("/k/", 20, 10).await;
    let (one, _two) = (of_k("one", &a, &b), of_k("two", &b, &c));
    alike(&a, "/k/", &c, "/k/").await;
    let before = held(&a, "").await;
    // What the second one brings comes from where the first one reads it, too.
    until("the second one has handed that on", async || {
        let claims = c.client().await.get(claims_key(), None).await.unwrap();
        claims.kvs().first().is_some_and(|kv| kv.value_str().unwrap().contains("one"))
    })
    .await;
    let mut three = of_k("three", &c, &a);
    three.says("MirrorLoop").await;
    let said = three.said();
    for words in [r#"one\" from"#, r#"two\" from"#, r#"three\" from"#, "quorate mirror release"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    three.kill();
    let refused = ended(&c, &a, &["--id", "three", "--prefix", "/k/", "--once"]).await;
    assert_eq!(refused.code, Some(15), "{}", refused.said);
    assert_eq!(held(&a, "").await, before, "it was written to in a circle");
    // Those that ran go on.
    a.etcd.put("/k/later", "1").await;
    alike(&a, "/k/", &c, "/k/").await;

    one.kill();
    let mut three = of_k("three", &c, &a);
    three.says("MirrorLoop").await;
    assert!(at(&b, "release", "one").status.success());
    b.etcd.put("/k/of b", "1").await;
    alike(&b, "/k/", &a, "/k/").await;
    let refused = ended(&a, &b, &["--id", "one", "--prefix", "/k/", "--once"]).await;
    assert_eq!(refused.code, Some(15), "{}", refused.said);
}

/// Nobody sees it at the beginning; it ends all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circle_that_begins_everywhere_at_once_stops() {
    let [a, b, c] = three().await;
    let sides = [&a, &b, &c];
    let mirrors = [of_k("one", &a, &b), of_k("two", &b, &c), of_k("three", &c, &a)];
    for number in 0..20 {
        a.etcd.put("/k/contended", number.to_string()).await;
    }
    let stopped = || mirrors.iter().any(|mirror| mirror.said().contains("MirrorLoop"));
    until("one of them stops", async || stopped()).await;
    until("nothing goes round", async || {
        let before = heads(sides).await;
        pass(Duration::from_secs(3)).await;
        heads(sides).await == before
    })
    .await;
}

/// The newest revision of each side.
async fn heads(sides: [&Side; 3]) -> [i64; 3] {
    let [a, b, c] = sides;
    [a.etcd.head().await, b.etcd.head().await, c.etcd.head().await]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_way_back_is_refused_until_the_way_there_was_promoted() {
    let Pair { source: here, target: there } = Pair::of("3.6").await;
    here.etcd.fill("/k/", 20, 10).await;
    let mut forth = of_k("forth", &here, &there);
    alike(&here, "/k/", &there, "/k/").await;
    for id in ["back", "forth"] {
        let refused = ended(&there, &here, &["--id", id, "--prefix", "/k/", "--once"]).await;
        assert_eq!(refused.code, Some(15), "{id}: {}", refused.said);
    }
    assert!(at(&there, "promote", "forth").status.success());
    forth.says("was promoted").await;
    there.etcd.put("/k/there", "1").await;
    let back = ended(&there, &here, &["--id", "back", "--prefix", "/k/", "--once"]).await;
    assert_eq!(back.code, Some(0), "{}", back.said);
    alike(&there, "/k/", &here, "/k/").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_of_which_none_leads_back_are_no_circle() {
    let [a, b, c] = three().await;
    let sides = [&a, &b, &c];
    let start = |from: usize, maps: &[&str]| {
        let id = format!("from-{from}");
        let flags = [&["--id", id.as_str()], maps].concat();
        Mirror::start(sides[from], sides[(from + 1) % 3], &flags)
    };
    // What comes from a goes on to c, and no further.
    let mirrors =
        [start(0, &["--map=/x/"]), start(1, &["--map=/x/", "--map=/y/"]), start(2, &["--map=/y/=/z/y/"])];
    for number in 0..30 {
        for (side, prefix) in [(&a, "/x/"), (&b, "/y/")] {
            side.etcd.put(format!("{prefix}{:02}", number % 7), number.to_string()).await;
        }
        pass(Duration::from_millis(100)).await;
    }
    alike(&a, "/x/", &c, "/x/").await;
    alike(&b, "/y/", &a, "/z/y/").await;
    for mirror in &mirrors {
        assert!(!mirror.said().contains("MirrorLoop"), "{}", mirror.said());
    }
}
