//! What happens between mirror and etcd: cuts, lost answers, connections that only look alive, members that are gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quorate_pair::{Pair, Settings, Side};
use tokio::task::JoinHandle;

use super::judge::judge;
use super::{Mirror, alike, level, pass};

/// A connection on which nothing comes any more is given up within this.
const NOTICED: Duration = Duration::from_secs(20);

/// Somebody who changes the source all the time.
struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<u32>,
}

impl Writer {
    async fn start(source: &Side) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut client, stopped) = (source.client().await, stop.clone());
        let task = tokio::spawn(async move {
            let mut number = 0;
            let mut clock = tokio::time::interval(Duration::from_millis(5));
            while !stopped.load(Ordering::Relaxed) {
                clock.tick().await;
                let key = format!("/k{}", number * 7 % 97);
                // A source that elects a leader takes nothing for a moment.
                drop(if number % 5 == 0 {
                    client.delete(key, None).await.map(drop)
                } else {
                    client.put(key, number.to_string(), None).await.map(drop)
                });
                number += 1;
            }
            number
        });
        Self { stop, task }
    }

    async fn end(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// A mirror of the whole keyspace under load while something is done to the links; then both sides are level, and the
/// target was right at every checkpoint.
async fn under_load(pair: &mut Pair, act: impl AsyncFnOnce(&mut Pair)) {
    let recorded = [pair.source.etcd.record().await, pair.target.etcd.record().await];
    let mut mirror = Mirror::start(&pair.source, &pair.target, &[]);
    let writer = Writer::start(&pair.source).await;
    level(&pair.source, &pair.target).await;
    act(pair).await;
    let writes = writer.end().await;
    level(&pair.source, &pair.target).await;
    alike(&pair.source, "", &pair.target, "").await;
    assert!(mirror.is_running(), "{}", mirror.said());
    assert!(mirror.metric("resyncs_total").await == 0.0, "{}", mirror.said());
    let histories = (recorded[0].all(&pair.source.etcd).await, recorded[1].all(&pair.target.etcd).await);
    let verdict = judge(&histories.0, &histories.1, |key| Some(key.to_vec()), |_| true);
    println!("measured: {writes} writes, {verdict:?}");
    assert!(verdict.exact > 5, "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_all_the_time_lose_nothing() {
    let mut pair = Pair::of("3.6").await;
    under_load(&mut pair, async |pair| {
        pair.source.distance(Duration::from_millis(5));
        pair.target.distance(Duration::from_millis(5));
        for number in 0..30 {
            pass(Duration::from_millis(230)).await;
            let side = if number % 2 == 0 { &pair.target } else { &pair.source };
            side.cut();
        }
    })
    .await;
}

/// Case 6: the target does what it is asked, and the answer is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost_is_no_second_transaction() {
    let mut pair = Pair::of("3.6").await;
    under_load(&mut pair, async |pair| {
        for _ in 0..15 {
            pair.target.change(|link| link.to_client.held = true);
            pass(Duration::from_millis(200)).await;
            pair.target.cut();
            pair.target.change(|link| link.to_client.held = false);
            level(&pair.source, &pair.target).await;
        }
    })
    .await;
}

/// Case 6: the leader stands still and goes on with what it had been asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stands_still_for_a_while_does_not_do_things_twice() {
    let mut pair = Pair::start(Settings::of("3.6"), Settings::of("3.6").members(3)).await;
    // The recorder listens to the first member, so that one is never stopped.
    under_load(&mut pair, async |pair| {
        for _ in 0..3 {
            let leader = leader(&pair.target).await;
            if leader == 0 {
                let mut client = pair.target.client().await;
                let other = pair.target.etcd.client_of(1).await.status().await.unwrap();
                client.move_leader(other.header().unwrap().member_id()).await.unwrap();
                continue;
            }
            pair.target.etcd.pause(leader);
            pass(Duration::from_secs(3)).await;
            pair.target.etcd.resume(leader);
            level(&pair.source, &pair.target).await;
        }
    })
    .await;
}

/// The member that leads.
async fn leader(side: &Side) -> usize {
    let leader = side.client().await.status().await.unwrap().leader();
    for member in 0..side.etcd.size() {
        let status = side.etcd.client_of(member).await.status().await.unwrap();
        if status.header().unwrap().member_id() == leader {
            return member;
        }
    }
    panic!("nobody leads");
}

/// Case 24.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_only_look_alive_are_given_up() {
    let mut pair = Pair::of("3.6").await;
    under_load(&mut pair, async |pair| {
        for side in [&pair.source, &pair.target] {
            side.forget();
            let begun = Instant::now();
            // What was on its way may still have come.
            pass(Duration::from_millis(500)).await;
            level(&pair.source, &pair.target).await;
            println!("measured: level again after {:?}", begun.elapsed());
            assert!(begun.elapsed() < NOTICED, "{:?}", begun.elapsed());
        }
        // Both at once, and for longer than anybody waits for an answer.
        pair.source.hold(true);
        pair.target.hold(true);
        pass(NOTICED).await;
        pair.source.hold(false);
        pair.target.hold(false);
    })
    .await;
}

/// Case 25: one of three members is behind a wall, then another one is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_endpoints_that_cannot_be_reached_does_not_matter() {
    let three = || Settings::of("3.6").members(3);
    let mut pair = Pair::start(three(), three()).await;
    under_load(&mut pair, async |pair| {
        for member in 0..3 {
            for side in [&pair.source, &pair.target] {
                side.proxies[member].hold(true);
            }
            let begun = Instant::now();
            level(&pair.source, &pair.target).await;
            println!("measured: level after {:?} without member {member}", begun.elapsed());
            assert!(begun.elapsed() < NOTICED, "{:?}", begun.elapsed());
            for side in [&pair.source, &pair.target] {
                side.proxies[member].hold(false);
            }
        }
        // The recorder listens to the first member.
        for member in [1, 2] {
            pair.source.etcd.kill(member);
            pair.target.etcd.kill(member);
            level(&pair.source, &pair.target).await;
            pair.source.etcd.spawn(member);
            pair.target.etcd.spawn(member);
            pair.source.etcd.serves().await;
            pair.target.etcd.serves().await;
        }
    })
    .await;
}
