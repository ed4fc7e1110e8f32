//! Leases that are the same on both sides, and what can come between.

use std::process::Command;
use std::time::{Duration, Instant};

use etcd_client::{Permission, PutOptions};
use quorate_pair::programs::until;
use quorate_pair::{Pair, Side};
use tokio::task::JoinHandle;

use super::access::{flags, user};
use super::{Mirror, alike, held, level, pass};

const RECREATE: &[&str] = &["--leases=recreate"];
/// As short as a lease can be with some room.
const SHORT: i64 = 4;
/// Such a lease has ended by then, if nobody has kept it alive.
const LONGER: Duration = Duration::from_secs(9);

/// Keeps a lease of the source alive for as long as it is there.
struct Owner {
    lease: i64,
    task: JoinHandle<()>,
}

impl Owner {
    async fn of(side: &Side, seconds: i64) -> Self {
        let mut client = side.client().await;
        let lease = client.lease_grant(seconds, None).await.unwrap().id();
        let task = tokio::spawn(async move {
            let mut clock = tokio::time::interval(Duration::from_millis(500));
            loop {
                clock.tick().await;
                if client.lease_keep_alive(lease).await.is_err() {
                    return;
                }
            }
        });
        Self { lease, task }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn put(side: &Side, key: &str, lease: i64) {
    side.client().await.put(key, "1", Some(PutOptions::new().with_lease(lease))).await.unwrap();
}

/// The lease of a key; `None`: there is no such key.
async fn lease_of(side: &Side, key: &str) -> Option<i64> {
    held(side, key).await.get(key.as_bytes()).map(|held| held.lease)
}

/// How long a lease lives; 0: there is none.
async fn life(side: &Side, lease: i64) -> i64 {
    side.client().await.lease_time_to_live(lease, None).await.unwrap().granted_ttl()
}

async fn has_lease(side: &Side, key: &str, lease: i64) {
    until(&format!("{key} has the lease {lease}"), async || lease_of(side, key).await == Some(lease)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_the_same_on_both_sides_and_takes_its_keys_along_on_both() {
    for minor in ["3.5", "3.6", "3.7"] {
        let pair = Pair::of(minor).await;
        let mut source = pair.source.client().await;
        let long = source.lease_grant(600, None).await.unwrap().id();
        put(&pair.source, "/before", long).await;
        put(&pair.source, "/changes", long).await;
        let mut mirror = Mirror::start(&pair.source, &pair.target, RECREATE);
        has_lease(&pair.target, "/before", long).await;
        assert_eq!(life(&pair.target, long).await, 600);
        let other = source.lease_grant(300, None).await.unwrap().id();
        put(&pair.source, "/after", other).await;
        put(&pair.source, "/changes", other).await;
        level(&pair.source, &pair.target).await;
        assert_eq!(lease_of(&pair.target, "/after").await, Some(other));
        assert_eq!(lease_of(&pair.target, "/changes").await, Some(other));
        pair.source.etcd.put("/changes", "1").await;
        source.lease_revoke(other).await.unwrap();
        level(&pair.source, &pair.target).await;
        assert_eq!(lease_of(&pair.target, "/changes").await, Some(0));
        assert_eq!(lease_of(&pair.target, "/after").await, None);
        source.lease_revoke(long).await.unwrap();
        level(&pair.source, &pair.target).await;
        alike(&pair.source, "", &pair.target, "").await;
        assert!(mirror.is_running(), "{}", mirror.said());
    }
}

/// Another policy is another configuration: what was parked gets the lease that it has in the source.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_were_parked_get_their_leases_and_are_parked_again() {
    let pair = Pair::of("3.6").await;
    let lease = pair.source.client().await.lease_grant(600, None).await.unwrap().id();
    put(&pair.source, "/lock", lease).await;
    for flags in [&[], RECREATE, &[], &["--leases=skip"], RECREATE] {
        let mirror = Mirror::start(&pair.source, &pair.target, flags);
        let expected = match flags {
            ["--leases=skip"] => None,
            [_] => Some(true),
            _ => Some(false),
        };
        until(&format!("it is as {flags:?} says"), async || {
            lease_of(&pair.target, "/lock").await.map(|found| found == lease) == expected
        })
        .await;
        mirror.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_somebody_revokes_in_the_target_comes_back_with_its_keys() {
    let pair = Pair::of("3.6").await;
    let owner = Owner::of(&pair.source, SHORT).await;
    for key in ["/a", "/b"] {
        put(&pair.source, key, owner.lease).await;
    }
    pair.source.etcd.fill("/k", 100, 10).await;
    let mut mirror = Mirror::start(&pair.source, &pair.target, RECREATE);
    level(&pair.source, &pair.target).await;
    let begun = Instant::now();
    pair.target.client().await.lease_revoke(owner.lease).await.unwrap();
    // By itself, and at once by whoever writes with it.
    has_lease(&pair.target, "/a", owner.lease).await;
    has_lease(&pair.target, "/b", owner.lease).await;
    println!("measured: back after {:?}", begun.elapsed());
    level(&pair.source, &pair.target).await;
    pair.target.client().await.lease_revoke(owner.lease).await.unwrap();
    put(&pair.source, "/a", owner.lease).await;
    has_lease(&pair.target, "/b", owner.lease).await;
    level(&pair.source, &pair.target).await;
    alike(&pair.source, "", &pair.target, "").await;
    assert!(mirror.is_running(), "{}", mirror.said());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_ended_while_nobody_mirrored_come_back() {
    let pair = Pair::of("3.6").await;
    let owner = Owner::of(&pair.source, SHORT).await;
    put(&pair.source, "/lock", owner.lease).await;
    pair.source.etcd.put("/none", "1").await;
    let mirror = Mirror::start(&pair.source, &pair.target, RECREATE);
    has_lease(&pair.target, "/lock", owner.lease).await;
    level(&pair.source, &pair.target).await;
    mirror.kill();
    until("it ends in the target", async || lease_of(&pair.target, "/lock").await.is_none()).await;
    assert_eq!(life(&pair.target, owner.lease).await, 0);
    let mut mirror = Mirror::start(&pair.source, &pair.target, RECREATE);
    has_lease(&pair.target, "/lock", owner.lease).await;
    level(&pair.source, &pair.target).await;
    alike(&pair.source, "", &pair.target, "").await;
    // The source's ends while nobody mirrors: its key does not come back.
    mirror.pause();
    drop(owner);
    until("it ends in the source", async || lease_of(&pair.source, "/lock").await.is_none()).await;
    until("it ends in the target", async || lease_of(&pair.target, "/lock").await.is_none()).await;
    mirror.resume();
    level(&pair.source, &pair.target).await;
    alike(&pair.source, "", &pair.target, "").await;
    assert!(mirror.is_running(), "{}", mirror.said());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_of_the_target_outlive_a_cut_from_the_source() {
    let pair = Pair::of("3.6").await;
    let owner = Owner::of(&pair.source, SHORT).await;
    put(&pair.source, "/lock", owner.lease).await;
    let mut mirror = Mirror::start(&pair.source, &pair.target, RECREATE);
    has_lease(&pair.target, "/lock", owner.lease).await;
    level(&pair.source, &pair.target).await;
    let recorded = pair.target.etcd.record().await;
    pair.source.hold(true);
    pass(LONGER).await;
    pair.source.hold(false);
    pair.source.etcd.put("/after", "1").await;
    level(&pair.source, &pair.target).await;
    alike(&pair.source, "", &pair.target, "").await;
    let deletes: Vec<_> = recorded.all(&pair.target.etcd).await;
    let deletes: Vec<_> = deletes.iter().filter(|change| change.value.is_none()).collect();
    assert!(deletes.is_empty(), "{deletes:?}");
    assert!(mirror.is_running(), "{}", mirror.said());
}

/// Where others have leases that the mirror's user may not look into.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_that_may_write_mirrored_keys_can_do_all_that_leases_need() {
    let mut pair = Pair::of("3.6").await;
    for side in [&pair.source, &pair.target] {
        let foreign = side.client().await.lease_grant(600, None).await.unwrap().id();
        put(side, "/others", foreign).await;
    }
    let read = |prefix: &str| Permission::read(prefix).with_prefix();
    let write = |prefix: &str| Permission::read_write(prefix).with_prefix();
    let source_password = user(&mut pair.source.etcd, vec![read("/a/"), read("/__quorate/mirror/")]).await;
    let target_password = user(&mut pair.target.etcd, vec![write("/a/"), write("/__quorate/mirror/")]).await;
    let owner = Owner::of(&pair.source, SHORT).await;
    let lease = owner.lease;
    put(&pair.source, "/a/lock", lease).await;
    let flags = flags(&source_password, &target_password);
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(RECREATE.iter().copied()).collect();
    let mut mirror = Mirror::start(&pair.source, &pair.target, &flags);
    has_lease(&pair.target, "/a/lock", lease).await;
    let recorded = pair.target.etcd.record().await;
    pass(LONGER).await;
    assert_eq!(lease_of(&pair.target, "/a/lock").await, Some(lease));
    let changes = recorded.all(&pair.target.etcd).await;
    assert!(changes.iter().all(|change| change.key != b"/a/lock"), "{changes:?}");
    assert!(mirror.is_running(), "{}", mirror.said());
    drop(owner);
    until("it ends on both sides", async || lease_of(&pair.target, "/a/lock").await.is_none()).await;
}

/// After a promotion nobody keeps leases alive but their owners, under the same IDs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_target_keeps_the_keys_whose_owners_come_over() {
    let pair = Pair::of("3.6").await;
    let (comes, stays) = (Owner::of(&pair.source, SHORT).await, Owner::of(&pair.source, SHORT).await);
    put(&pair.source, "/comes", comes.lease).await;
    put(&pair.source, "/stays", stays.lease).await;
    pair.source.etcd.put("/none", "1").await;
    let mirror = Mirror::start(&pair.source, &pair.target, RECREATE);
    has_lease(&pair.target, "/stays", stays.lease).await;
    level(&pair.source, &pair.target).await;
    let mut promote = Command::new(env!("CARGO_BIN_EXE_quorate"));
    let done = promote.args(["mirror", "promote", "--target", &pair.target.endpoints()]).status().unwrap();
    assert!(done.success());
    mirror.kill();
    let mut client = pair.target.client().await;
    until("who stays behind loses the key", async || {
        client.lease_keep_alive(comes.lease).await.unwrap();
        lease_of(&pair.target, "/stays").await.is_none()
    })
    .await;
    let left = held(&pair.target, "").await;
    assert_eq!(left.keys().collect::<Vec<_>>(), [b"/comes".as_slice(), b"/none"]);
}
