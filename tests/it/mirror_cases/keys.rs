//! Which keys, and whose: changes that meet in one transaction, patterns, mappings, leases, a second agent.

use etcd_client::PutOptions;
use quorate_pair::programs::until;
use quorate_pair::{Pair, Settings};

use super::judge::judge;
use super::{Mirror, alike, ended, held, level};

/// Case 5: one that stood still for a while wakes up beside its successor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_wakes_up_beside_its_successor_writes_nothing() {
    let pair = Pair::of("3.6").await;
    let recorded = [pair.source.etcd.record().await, pair.target.etcd.record().await];
    pair.source.etcd.fill("/k", 500, 10).await;
    let old = Mirror::start(&pair.source, &pair.target, &[]);
    level(&pair.source, &pair.target).await;
    for number in 0..200 {
        pair.source.etcd.put("/k00001", number.to_string()).await;
        if number == 20 {
            old.pause();
        }
    }
    let mut new = Mirror::start(&pair.source, &pair.target, &[]);
    level(&pair.source, &pair.target).await;
    old.resume();
    for number in 0..100 {
        pair.source.etcd.put("/k00002", number.to_string()).await;
    }
    let ended = old.ended().await;
    assert_eq!(ended.code, Some(13), "{}", ended.said);
    level(&pair.source, &pair.target).await;
    alike(&pair.source, "", &pair.target, "").await;
    assert!(new.is_running());
    let histories = (recorded[0].all(&pair.source.etcd).await, recorded[1].all(&pair.target.etcd).await);
    judge(&histories.0, &histories.1, |key| Some(key.to_vec()), |_| true);
}

/// Cases 9 and 10: what etcd refuses in one transaction, and what it takes and then does in another order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_one_key_that_meet_in_one_transaction_end_as_the_last_of_them() {
    let pair = Pair::of("3.6").await;
    let recorded = [pair.source.etcd.record().await, pair.target.etcd.record().await];
    pair.source.etcd.fill("/k", 20, 10).await;
    let mirror = Mirror::start(&pair.source, &pair.target, &[]);
    level(&pair.source, &pair.target).await;
    mirror.kill();
    let etcd = &pair.source.etcd;
    for number in 0..50 {
        etcd.put("/k00000", number.to_string()).await;
    }
    for last in [None, Some("end")] {
        let key = if last.is_some() { "/k00001" } else { "/k00002" };
        etcd.put(key, "1").await;
        etcd.delete(key).await;
        etcd.put(key, "2").await;
        etcd.delete(key).await;
        if let Some(last) = last {
            etcd.put(key, last).await;
        }
    }
    // Made and deleted in between: the target never had it.
    etcd.put("/brief", "1").await;
    etcd.delete("/brief").await;
    let _mirror = Mirror::start(&pair.source, &pair.target, &[]);
    level(&pair.source, &pair.target).await;
    // One that the target lost meanwhile is deleted there once more.
    pair.target.etcd.delete("/k00003").await;
    etcd.delete("/k00003").await;
    level(&pair.source, &pair.target).await;
    alike(&pair.source, "", &pair.target, "").await;
    drop(recorded);
}

/// Case 20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patterns_match_whole_names_in_bytes_and_can_be_changed() {
    let pair = Pair::of("3.6").await;
    let etcd = &pair.source.etcd;
    let raw = b"/raw/\xff\xfe".to_vec();
    for key in [&b"/locks"[..], b"/locks/1", b"/locks2", b"/keep", &raw] {
        etcd.put(key, "source").await;
    }
    pair.target.etcd.put("/locks/own", "target").await;
    let names = async || held(&pair.target, "").await.into_keys().collect::<Vec<_>>();
    let once = async |flags: &[&str]| {
        let ended = ended(&pair.source, &pair.target, &[&["--once"], flags].concat()).await;
        assert_eq!(ended.code, Some(0), "{}", ended.said);
    };
    once(&["--ignore", "/locks(/.*)?"]).await;
    assert_eq!(names().await, [&b"/keep"[..], b"/locks/own", b"/locks2", &raw]);
    // One more: what was copied of it stays, and follows no more.
    once(&["--ignore", "/locks(/.*)?", "--ignore", r"/raw/(?s-u:.)*"]).await;
    etcd.put(raw.clone(), "changed").await;
    once(&["--ignore", "/locks(/.*)?", "--ignore", r"/raw/(?s-u:.)*"]).await;
    assert_eq!(held(&pair.target, "/raw/").await[&raw].value, b"source");
    // None: what was never the mirror's is not pruned unasked.
    let refused = ended(&pair.source, &pair.target, &["--once"]).await;
    assert_eq!(refused.code, Some(10), "{}", refused.said);
    assert!(names().await.contains(&b"/locks/own".to_vec()));
}

/// Case 21.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mappings_that_cannot_be_are_refused_and_a_nameless_key_is_named() {
    let pair = Pair::of("3.6").await;
    pair.source.etcd.put("/a/", "nameless").await;
    pair.source.etcd.put("/a/b", "1").await;
    for flags in [["--map", "/a/=/x/", "--map", "/b/=/x/"], ["--map", "/a/=/x/", "--map", "/a/b=/y/"]] {
        let refused = ended(&pair.source, &pair.target, &flags).await;
        assert_eq!(refused.code, Some(3), "{}", refused.said);
    }
    let mut mirror = Mirror::start(&pair.source, &pair.target, &["--prefix=/a/", "--target-prefix="]);
    mirror.says("EmptyKey").await;
    pair.source.etcd.delete("/a/").await;
    until("it goes on", async || held(&pair.target, "b").await.len() == 1).await;
    // The mirror's own keys are never taken for mirrored ones.
    pair.source.etcd.put("/a//__quorate/mirror/default/owner", "not ours").await;
    pair.source.etcd.put("/a/c", "1").await;
    until("it goes on", async || held(&pair.target, "c").await.len() == 1).await;
    assert!(mirror.is_running(), "{}", mirror.said());
}

/// Part of case 27.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_with_leases_are_parked_or_left_out_and_go_when_their_lease_ends() {
    let pair = Pair::start(Settings::of("3.6"), Settings::of("3.6").members(1)).await;
    let mut source = pair.source.client().await;
    let short = source.lease_grant(2, None).await.unwrap().id();
    let long = source.lease_grant(600, None).await.unwrap().id();
    for (key, lease) in [("/short", short), ("/long", long)] {
        source.put(key, "1", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    }
    source.put("/none", "1", None).await.unwrap();
    let mirror = Mirror::start(&pair.source, &pair.target, &[]);
    until("the lease has ended on both sides", async || {
        let there = held(&pair.target, "").await;
        there.contains_key(b"/long".as_slice())
            && !there.contains_key(b"/short".as_slice())
            && held(&pair.source, "/short").await.is_empty()
    })
    .await;
    let there = held(&pair.target, "").await;
    assert_ne!(there[b"/long".as_slice()].lease, 0, "parked");
    assert_eq!(there[b"/none".as_slice()].lease, 0);
    // It ends while nobody mirrors, and its history is gone.
    mirror.kill();
    source.lease_revoke(long).await.unwrap();
    pair.source.etcd.compact().await;
    let mirror = Mirror::start(&pair.source, &pair.target, &[]);
    alike(&pair.source, "", &pair.target, "").await;
    mirror.kill();
    // Another policy is another configuration: nothing of what it leaves out stays.
    let lease = source.lease_grant(600, None).await.unwrap().id();
    source.put("/lock", "1", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    let _mirror = Mirror::start(&pair.source, &pair.target, &["--leases=skip"]);
    source.put("/none", "2", None).await.unwrap();
    level(&pair.source, &pair.target).await;
    assert_eq!(held(&pair.target, "").await.into_keys().collect::<Vec<_>>(), [b"/none"]);
}
