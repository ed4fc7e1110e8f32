//! What can be in the way of a mirror, one after the other, between real etcds.

use std::process::Command;
use std::time::{Duration, Instant};

use quorate::mirror::checkpoint::Position;
use quorate::mirror::config::MirrorId;

use super::proxy::Proxy;
use super::real::{Mirror, alike, checkpoint, command, ended, pair, said, streams, until};
use super::server::Server;

/// Half-open connections are noticed by a look at the source each second, with its deadline and a new connection.
const NOTICED: Duration = Duration::from_secs(25);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_with_small_limits_gets_smaller_transactions() {
    let (source, target) = tokio::join!(
        Server::start("3.6", &[]),
        Server::start("3.6", &["--max-txn-ops=16", "--max-request-bytes=65536"])
    );
    source.fill("/k", 2_000, 100).await;
    source.fill("/large", 30, 20_000).await;
    let _mirror = Mirror::start(&source.url, &target.url, &[]);
    alike(&source, "", &target, "").await;
    // One revision, more than a transaction of that target holds.
    source.delete("/k").await;
    alike(&source, "", &target, "").await;
    until(&target, "whole again", |checkpoint| {
        matches!(checkpoint.position, Position::Stream { offset: 0, .. })
    })
    .await;
    source.put("/huge", &"x".repeat(100_000)).await;
    let refused = ended(&source, &target, &["--once"]);
    assert_eq!(refused.status.code(), Some(17), "{}", said(&refused));
    assert!(
        said(&refused).contains("/huge") && said(&refused).contains("--max-request-bytes"),
        "{}",
        said(&refused)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_of_ten_thousand_keys_is_one_revision_and_arrives() {
    let (source, target) = pair().await;
    source.fill("/k", 10_000, 20).await;
    source.put("/other", "1").await;
    let _mirror = Mirror::start(&source.url, &target.url, &[]);
    alike(&source, "", &target, "").await;
    source.delete("/k").await;
    alike(&source, "", &target, "").await;
    assert_eq!(target.values("").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_was_set_back_is_not_copied_unasked() {
    let (mut source, target) = pair().await;
    source.fill("/k", 100, 10).await;
    source.save().await;
    source.put("/only-copy", "1").await;
    assert_eq!(ended(&source, &target, &["--once"]).status.code(), Some(0));
    source.roll_back().await;
    let refused = ended(&source, &target, &["--once"]);
    assert_eq!(refused.status.code(), Some(11), "{}", said(&refused));
    assert!(said(&refused).contains("put 0 keys, overwrite 0 and delete 1"), "{}", said(&refused));
    assert!(target.values("").await.contains_key(b"/only-copy".as_slice()));
    let text = said(&refused);
    let plan = text.split("--resync=").nth(1).unwrap().trim();
    let wrong = ended(&source, &target, &["--once", "--resync=000000000000"]);
    assert_eq!(wrong.status.code(), Some(11), "another plan permits nothing");
    let done = ended(&source, &target, &["--once", &format!("--resync={plan}")]);
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    assert_eq!(source.values("").await, target.values("").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_source_deletes_nothing() {
    let (source, target) = pair().await;
    source.fill("/k", 50, 10).await;
    assert_eq!(ended(&source, &target, &["--once"]).status.code(), Some(0));
    source.delete("/").await;
    // The oldest revision that is left could still be watched from.
    source.put("/k", "1").await;
    source.delete("/").await;
    source.compact().await;
    let refused = ended(&source, &target, &["--once"]);
    assert_eq!(refused.status.code(), Some(12), "{}", said(&refused));
    assert_eq!(target.values("").await.len(), 50);
    let other = Server::start("3.6", &["--initial-cluster-token=other"]).await;
    let refused = ended(&other, &target, &["--once"]);
    assert_eq!(refused.status.code(), Some(11), "{}", said(&refused));
    assert_eq!(target.values("").await.len(), 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_others_touched_is_nothing_to_go_on_from() {
    let (source, target) = pair().await;
    source.put("/a", "1").await;
    assert_eq!(ended(&source, &target, &["--once"]).status.code(), Some(0));
    let key = MirrorId::new("default").unwrap().key("checkpoint");
    let good = target.client().await.get(key.clone(), None).await.unwrap().kvs()[0].value().to_vec();
    let edited = String::from_utf8(good.clone()).unwrap().replace("\"counter\":", "\"counter\":1");
    for bad in [edited.as_str(), "nonsense"] {
        target.client().await.put(key.clone(), bad, None).await.unwrap();
        let refused = ended(&source, &target, &["--once"]);
        assert_eq!(refused.status.code(), Some(16), "{}", said(&refused));
    }
    target.client().await.delete(key.clone(), None).await.unwrap();
    let refused = ended(&source, &target, &["--once"]);
    assert!(refused.status.code() == Some(16) && said(&refused).contains("gone"), "{}", said(&refused));
    target.client().await.put(key.clone(), good, None).await.unwrap();
    assert_eq!(ended(&source, &target, &["--once"]).status.code(), Some(0), "cured");
    // While it runs, too.
    let mut mirror = Mirror::start(&source.url, &target.url, &[]);
    source.put("/b", "1").await;
    alike(&source, "", &target, "").await;
    target.client().await.delete(key, None).await.unwrap();
    source.put("/c", "1").await;
    // Its answer is the last thing that it does.
    assert_eq!(mirror.terminate().0, Some(0));
    assert!(
        !target.values("").await.contains_key(b"/c".as_slice()),
        "nothing is written without a checkpoint"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wider_prefix_is_one_edit() {
    let (source, target) = pair().await;
    source.fill("/conftool/k", 200, 10).await;
    source.fill("/spicerack/locks/etcd/", 10, 10).await;
    source.fill("/other/k", 200, 10).await;
    assert_eq!(ended(&source, &target, &["--once", "--prefix", "/conftool/"]).status.code(), Some(0));
    let before = target.held("/conftool/").await;
    let flags = ["--once", "--ignore", "/spicerack/locks/etcd(/.*)?"];
    let done = ended(&source, &target, &flags);
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    assert_eq!(target.held("/conftool/").await, before, "what was there is not written again");
    assert_eq!(target.values("/other/").await.len(), 200);
    assert!(target.values("/spicerack/").await.is_empty());
    // Un-ignoring copies them; keys of the target's own there would have been in the way.
    target.put("/spicerack/locks/etcd/own", "1").await;
    let refused = ended(&source, &target, &["--once"]);
    assert_eq!(refused.status.code(), Some(10), "{}", said(&refused));
    assert!(target.values("/spicerack/").await.contains_key(b"/spicerack/locks/etcd/own".as_slice()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_that_overlap_and_sides_that_are_one_are_refused() {
    let (source, target) = pair().await;
    source.put("/a/b", "1").await;
    assert_eq!(ended(&source, &target, &["--once", "--prefix", "/a/", "--id", "one"]).status.code(), Some(0));
    let refused = ended(&source, &target, &["--once", "--id", "two"]);
    assert_eq!(refused.status.code(), Some(15), "{}", said(&refused));
    assert!(said(&refused).contains("\"one\""), "{}", said(&refused));
    let same = ended(&source, &source, &["--once"]);
    assert_eq!(same.status.code(), Some(3), "{}", said(&same));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newer_of_two_agents_goes_on_and_the_older_ends() {
    let (source, target) = pair().await;
    source.put("/a", "1").await;
    let mut first = Mirror::start(&source.url, &target.url, &[]);
    alike(&source, "", &target, "").await;
    let _second = Mirror::start(&source.url, &target.url, &[]);
    let end = Instant::now() + super::server::PATIENCE;
    let code = loop {
        source.put("/a", &format!("{end:?}")).await;
        if let Some(code) = first.over() {
            break code;
        }
        assert!(Instant::now() < end, "the first goes on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(code, 13);
    alike(&source, "", &target, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ways_that_break_or_fall_silent_are_left_for_new_ones() {
    let (source, target) = pair().await;
    let (to_source, to_target) = tokio::join!(Proxy::to(source.address), Proxy::to(target.address));
    let _mirror = Mirror::start(&to_source.url, &to_target.url, &[]);
    source.put("/a", "0").await;
    alike(&source, "", &target, "").await;
    for round in 0..10 {
        to_source.cut();
        source.put("/a", &format!("source {round}")).await;
        to_target.cut();
        source.put("/b", &format!("target {round}")).await;
        alike(&source, "", &target, "").await;
    }
    for proxy in [&to_source, &to_target] {
        proxy.silent(true);
        source.put("/a", "in the dark").await;
        source.put("/c", "x").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        // What was open stays silent for ever; a new connection is answered.
        proxy.forget();
        let begun = Instant::now();
        alike(&source, "", &target, "").await;
        println!("noticed after {:.1} s", begun.elapsed().as_secs_f64());
        assert!(begun.elapsed() < NOTICED);
    }
    until(&target, "streaming", streams).await;
    assert!(checkpoint(&target).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn distance_to_the_target_does_not_set_the_rate() {
    let (source, target) = pair().await;
    let far = Proxy::to(target.address).await;
    far.slow(Duration::from_millis(30));
    source.fill("/k", 20_000, 100).await;
    let begun = Instant::now();
    let output = command(&source.url, &far.url, &["--once"]).output().unwrap();
    let rate = 20_000.0 / begun.elapsed().as_secs_f64();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    println!("{rate:.0} keys a second over 30 ms");
    assert!(rate > 3_000.0, "one key a round trip would be 33; {rate:.0}");
    assert_eq!(source.values("").await, target.values("").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_does_can_be_seen() {
    let (source, target) = pair().await;
    source.fill("/k", 10, 10).await;
    let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let _mirror = Mirror::start(&source.url, &target.url, &["--listen", &listen]);
    alike(&source, "", &target, "").await;
    until(&target, "streaming", streams).await;
    let read = |path: &str| {
        let address = listen.parse().unwrap();
        crate::world::conformance::http::get(address, path)
    };
    let metrics = read("/metrics").unwrap();
    assert!(metrics.contains("quorate_mirror_exact 1"), "{metrics}");
    assert!(read("/lag").unwrap().trim().parse::<f64>().unwrap() < 30.0);
    assert!(read("/livez").is_some() && read("/readyz").is_some());
    let shown = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .args(["mirror", "checkpoint", "--target", &target.url])
        .output()
        .unwrap();
    assert!(said(&shown).contains("\"phase\": \"stream\""), "{}", said(&shown));
}
