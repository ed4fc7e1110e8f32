//! EtcdMirrors with `leases: Recreate`, and what somebody else writes to the site that follows.

use std::time::Duration;

use etcd_client::{Client as Etcd, GetOptions, PutOptions};
use serde_json::json;

use super::{
    READ_DEADLINE, agents, agents_die, alike, application, change, clusters, event, mirror, says, until,
};
use crate::support::{Story, eventually, measured, story};

/// Of a lease whose owner lives, in seconds. An agent that is killed is there again much earlier.
const LIFE: i64 = 30;
/// Of a lease whose owner has died.
const SHORT: i64 = 5;
const KEY: &str = "locks/owner";

/// The lease that the owner's key has; 0: there is no such key, or it has none; `None`: nobody answers.
async fn lease_of(etcd: &mut Etcd, key: &str) -> Option<i64> {
    let read = tokio::time::timeout(READ_DEADLINE, etcd.get(key, None::<GetOptions>)).await.ok()?.ok()?;
    Some(read.kvs().first().map_or(0, etcd_client::KeyValue::lease))
}

async fn put_with_lease(etcd: &mut Etcd, key: &str, seconds: i64) -> i64 {
    let lease = etcd.lease_grant(seconds, None).await.unwrap().id();
    etcd.put(key, "held", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    lease
}

/// Waits until a key has that lease at both sites; 0: until it is at neither.
async fn everywhere(story: &Story, key: &str, lease: i64) {
    for cluster in ["main", "second"] {
        let mut etcd = application(story, cluster).await;
        let so = async || (lease_of(&mut etcd, key).await? == lease).then_some(());
        eventually(&format!("{key} of {cluster} has the lease {lease}"), so).await;
    }
}

/// Owns a lease at one site: keeps it alive, and looks at sites whether its key is there with it.
async fn own(story: &Story, cluster: &str, lease: i64, clusters: &[&str]) -> ! {
    let mut owner = application(story, cluster).await;
    let mut sites = Vec::new();
    for cluster in clusters {
        sites.push(application(story, cluster).await);
    }
    let mut clock = tokio::time::interval(Duration::from_millis(500));
    loop {
        clock.tick().await;
        let kept = tokio::time::timeout(READ_DEADLINE, owner.lease_keep_alive(lease)).await;
        assert!(kept.unwrap().is_ok(), "{cluster} does not keep the lease alive");
        for site in &mut sites {
            assert_eq!(
                lease_of(site, KEY).await.unwrap_or(lease),
                lease,
                "the key of an owner that lives is gone"
            );
        }
    }
}

/// What happens while the owner lives.
async fn while_owned<T>(
    story: &Story,
    (cluster, lease): (&str, i64),
    clusters: &[&str],
    happens: impl Future<Output = T>,
) -> T {
    tokio::select! {
        never = own(story, cluster, lease, clusters) => never,
        done = happens => done,
    }
}

#[tokio::test]
async fn a_lease_lives_as_long_as_its_owner_at_whichever_site_that_is() {
    story("leases", async |story| {
        story.create(json!({"replicas": 1})).await;
        story.create_named("second", json!({"replicas": 1, "version": "3.7"})).await;
        story.healthy().await;
        let mut source = application(story, "main").await;
        let lease = put_with_lease(&mut source, KEY, LIFE).await;
        while_owned(story, ("main", lease), &["main"], async {
            mirror(story, json!({"leases": "Recreate", "fence": {"mode": "Manual"}})).await;
            everywhere(story, KEY, lease).await;
        })
        .await;
        let both = ["main", "second"];
        let switched = while_owned(story, ("main", lease), &both, async {
            let short = put_with_lease(&mut source, "locks/died", SHORT).await;
            everywhere(story, "locks/died", short).await;
            everywhere(story, "locks/died", 0).await;
            let never = std::sync::atomic::AtomicBool::new(false);
            let killed = agents_die(story, &never, 5).await;
            until(story, "follows again", says("Healthy")).await;
            change(story, json!({"active": "b"})).await;
            until(story, "is switched", |status| status.term == Some(2)).await;
            killed
        });
        let killed = switched.await;

        // The owner goes on at the site that is active now, for longer than the lease would live without it.
        while_owned(story, ("second", lease), &both, async {
            until(story, "follows the other site", says("Healthy")).await;
            tokio::time::sleep(Duration::from_secs(LIFE.unsigned_abs() + 5)).await;
        })
        .await;
        everywhere(story, KEY, 0).await;
        measured(&format!(
            "a lease of {LIFE} s was at both sites while its agent died {killed} times and the sites were switched, and at \
             neither once its owner had died"
        ));
    })
    .await;
}

#[tokio::test]
async fn what_somebody_else_writes_is_told_and_undone_if_that_is_wanted() {
    story("foreign", async |story| {
        clusters(story).await;
        story.write("k/", 50).await;
        mirror(story, json!({})).await;
        story.write_to("second", "k/stray-", 2).await;
        let told = until(story, "tells of it", says("ForeignWrites")).await.summary.unwrap();
        assert!(told.contains("k/stray-0"), "{told}");
        event(story, "ForeignWrites").await;
        // Copied on, and not touched.
        story.write("k/later-", 10).await;
        let held = async |cluster: &str| super::held(story, cluster).await.map(|keys| keys.len());
        eventually("it goes on", async || (held("second").await? == 62).then_some(())).await;

        let agent = agents(story).await.remove(0);
        change(story, json!({"foreignWrites": "Repair"})).await;
        assert_eq!(alike(story, "").await, 60);
        story.write_to("second", "k/stray-", 1).await;
        assert_eq!(alike(story, "").await, 60);
        let status = until(story, "is well", says("Healthy")).await;
        let resync = status.last_resync.unwrap();
        assert!(resync.deletes > 0, "{resync:?}");
        assert_eq!(agents(story).await.remove(0).metadata.uid, agent.metadata.uid, "by a new agent");
        measured(&format!("what somebody else wrote was told, and undone when asked for: {}", resync.reason));
    })
    .await;
}
