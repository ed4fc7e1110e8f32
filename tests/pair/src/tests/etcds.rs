//! Real etcds: that they are what was asked for, and that the proxies are really between.

use std::time::{Duration, Instant};

use etcd_client::{Permission, PutOptions, Txn, TxnOp};

use crate::etcd::{Etcd, Settings};
use crate::pair::{Pair, Side};
use crate::programs::{MINORS, until};

/// A value of a key, if it is there.
async fn value(etcd: &Etcd, key: &str) -> Option<String> {
    let answer = etcd.client().await.get(key, None).await.unwrap();
    answer.kvs().first().map(|kv| kv.value_str().unwrap().to_owned())
}

async fn put(etcd: &Etcd, key: &str, value: &str) {
    etcd.client().await.put(key, value, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_of_every_minor_is_two_clusters_at_a_distance() {
    for minor in MINORS {
        let pair = Pair::of(minor).await;
        let mut identities = Vec::new();
        for side in [&pair.source, &pair.target] {
            side.distance(Duration::from_millis(40));
            let mut far = side.etcd.dial(side.proxies[0].address(), None).await.unwrap();
            let status = far.status().await.unwrap();
            assert!(status.version().starts_with(&format!("{minor}.")), "{}", status.version());
            identities.push(status.header().unwrap().cluster_id());
            let begun = Instant::now();
            far.put("a", "b", None).await.unwrap();
            assert!(begun.elapsed() >= Duration::from_millis(40), "{:?}", begun.elapsed());
            assert_eq!(value(&side.etcd, "a").await.as_deref(), Some("b"));
            assert_eq!(side.traffic().connections, 1);
        }
        assert_ne!(identities[0], identities[1], "both sides are the same cluster");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_three_lives_through_the_end_of_one() {
    let mut side = Side::start(Settings::of("3.6").members(3)).await;
    assert_eq!(side.endpoints().split(',').count(), 3);
    put(&side.etcd, "a", "1").await;
    side.etcd.kill(2);
    // It may have led.
    until("two of three take a write", async || side.etcd.client().await.put("a", "2", None).await.is_ok())
        .await;
    side.etcd.spawn(2);
    side.etcd.serves().await;
    let answer = side.etcd.client_of(2).await.get("a", None).await.unwrap();
    assert_eq!(answer.kvs()[0].value(), b"2");
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_reach_the_etcd() {
    let etcd = Etcd::start(Settings::of("3.6").flag("max-txn-ops", 16)).await;
    let puts = |count: u32| {
        Txn::new().and_then((0..count).map(|key| TxnOp::put(key.to_string(), "", None)).collect::<Vec<_>>())
    };
    let mut client = etcd.client().await;
    client.txn(puts(16)).await.unwrap();
    let refused = client.txn(puts(17)).await.unwrap_err().to_string();
    assert!(refused.contains("too many operations"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_only_its_clients_get_in_also_through_the_proxy() {
    let side = Side::start(Settings::of("3.6").tls()).await;
    assert!(side.endpoints().starts_with("https://"), "{}", side.endpoints());
    put(&side.etcd, "a", "1").await;
    let mut far = side.etcd.dial(side.proxies[0].address(), None).await.unwrap();
    assert_eq!(far.get("a", None).await.unwrap().kvs()[0].value(), b"1");
    let other = Etcd::start(Settings::of("3.6").tls()).await;
    let mut stranger = other.dial(side.etcd.address(0), None).await.unwrap();
    assert!(stranger.get("a", None).await.is_err(), "anybody's certificate is taken");
    side.etcd.certificates().unwrap().renew();
    assert_eq!(value(&side.etcd, "a").await.as_deref(), Some("1"), "after the certificates were renewed");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_auth_a_user_gets_what_its_role_permits() {
    let mut etcd = Etcd::start(Settings::of("3.6")).await;
    etcd.user("reader", "word", vec![Permission::read("a")]).await;
    etcd.enable_auth().await;
    put(&etcd, "a", "1").await;
    let login = Some(("reader".to_owned(), "word".to_owned()));
    let mut reader = etcd.dial(etcd.address(0), login).await.unwrap();
    assert_eq!(reader.get("a", None).await.unwrap().kvs()[0].value(), b"1");
    let refused = reader.put("a", "2", None).await.unwrap_err().to_string();
    assert!(refused.contains("permission denied"), "{refused}");
    etcd.restart().await;
    assert_eq!(value(&etcd, "a").await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn data_can_be_set_back_restored_and_emptied_under_the_same_identity() {
    for minor in MINORS {
        let mut etcd = Etcd::start(Settings::of(minor)).await;
        let identity = async |etcd: &Etcd| {
            let status = etcd.client().await.status().await.unwrap();
            (status.header().unwrap().cluster_id(), status.raft_applied_index())
        };
        put(&etcd, "a", "old").await;
        etcd.keep("copy").await;
        etcd.snapshot("snapshot");
        for number in 0..50 {
            put(&etcd, "a", &number.to_string()).await;
        }
        let before = identity(&etcd).await;
        etcd.put_back("copy").await;
        assert_eq!(value(&etcd, "a").await.as_deref(), Some("old"), "{minor}: set back");
        put(&etcd, "a", "new").await;
        etcd.restore("snapshot", &[]).await;
        assert_eq!(value(&etcd, "a").await.as_deref(), Some("old"), "{minor}: restored");
        let after = identity(&etcd).await;
        assert_eq!(before.0, after.0, "{minor}: a restore under the same names keeps the cluster's ID");
        assert!(after.1 < before.1, "{minor}: the applied index falls: {before:?} {after:?}");
        etcd.empty().await;
        assert_eq!(value(&etcd, "a").await, None, "{minor}: emptied");
        assert_eq!(identity(&etcd).await.0, before.0, "{minor}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_becomes_another_minor_with_its_data() {
    let mut etcd = Etcd::start(Settings::of("3.5").flag("snapshot-count", 10)).await;
    put(&etcd, "a", "1").await;
    for minor in ["3.6", "3.7"] {
        etcd.upgrade(0, minor).await;
        let mut client = etcd.client().await;
        assert!(client.status().await.unwrap().version().starts_with(minor));
        assert_eq!(value(&etcd, "a").await.as_deref(), Some("1"));
        etcd.is_all(minor).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_member_answers_when_it_goes_on() {
    let etcd = Etcd::start(Settings::of("3.6")).await;
    let mut client = etcd.client().await;
    client.put("a", "1", None).await.unwrap();
    etcd.pause(0);
    let put =
        tokio::spawn(async move { client.put("a", "2", Some(PutOptions::new().with_prev_key())).await });
    assert!(tokio::time::timeout(Duration::from_millis(300), std::future::pending::<()>()).await.is_err());
    assert!(!put.is_finished(), "it was not paused");
    etcd.resume(0);
    put.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_that_a_source_reports_can_be_an_old_one() {
    let side = Side::start(Settings::of("3.6")).await;
    let mut client = side.client().await;
    let real: &'static str = client.status().await.unwrap().version().to_owned().leak();
    assert_eq!(real.len(), 6, "{real}");
    side.proxies[0].rewrite(real, "3.4.24");
    let mut far = side.etcd.dial(side.proxies[0].address(), None).await.unwrap();
    assert_eq!(far.status().await.unwrap().version(), "3.4.24");
}
