//! What happens between mirror and etcd: cuts, lost answers, connections that only look alive, members that are gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quorate_pair::programs::until;
use quorate_pair::{Pair, Settings, Side};
use tokio::task::JoinHandle;

use super::judge::judge;
use super::{Mirror, alike, full, held, level, pass};

/// A connection on which nothing comes any more is given up within this.
const NOTICED: Duration = Duration::from_secs(20);
/// What is so late comes after the mirror has given it up and has done it again.
const LATE: Duration = Duration::from_secs(16);
/// As long as nobody writes: etcd closes connections that are pinged more often than it likes.
const SILENCE: [Duration; 2] = [Duration::from_secs(30), Duration::from_hours(1)];

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

/// Waits until a write of this moment has arrived. The load alone would not do: its last write may wait for a source that
/// elects a leader, and while nothing is new both sides are level.
async fn a_write_arrives(pair: &Pair) {
    let mut client = pair.source.client().await;
    until("the source takes a write", async || client.put("/arrives", "", None).await.is_ok()).await;
    level(&pair.source, &pair.target).await;
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
            a_write_arrives(pair).await;
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
            a_write_arrives(pair).await;
        }
    })
    .await;
}

/// Case 6: the leader dies with a transaction that it has not told anybody of, or whose answer is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_dies_in_the_middle_of_a_transaction_takes_nothing_along() {
    let mut pair = Pair::start(Settings::of("3.6"), Settings::of("3.6").members(3)).await;
    // The recorder listens to the first member, so that one is never killed, nor used by the mirror.
    pair.target.proxies[0].change(|link| link.refused = true);
    under_load(&mut pair, async |pair| {
        for (member, answers_are_lost) in [(1, false), (2, true), (1, false)] {
            // A mirror whose leader changes may go elsewhere: there is only one way.
            let other_way = &pair.target.proxies[3 - member];
            other_way.change(|link| link.refused = true);
            other_way.cut();
            lead(&pair.target, member).await;
            let others: Vec<usize> = (0..3).filter(|other| *other != member).collect();
            let sent = pair.target.proxies[member].traffic().to_server;
            if answers_are_lost {
                pair.target.proxies[member].change(|link| link.to_client.held = true);
            } else {
                for other in &others {
                    pair.target.etcd.pause(*other);
                }
            }
            until("a transaction is under way", async || {
                pair.target.proxies[member].traffic().to_server > sent
            })
            .await;
            pair.target.etcd.kill(member);
            other_way.change(|link| link.refused = false);
            if answers_are_lost {
                pair.target.proxies[member].change(|link| link.to_client.held = false);
            } else {
                for other in &others {
                    pair.target.etcd.resume(*other);
                }
            }
            a_write_arrives(pair).await;
            pair.target.etcd.spawn(member);
            pair.target.etcd.serves().await;
        }
    })
    .await;
}

/// Makes that member the leader.
async fn lead(side: &Side, member: usize) {
    let id = side.etcd.client_of(member).await.status().await.unwrap().header().unwrap().member_id();
    until("it leads", async || {
        let leads = leader(side).await;
        if leads != member {
            // Refused while another one is elected.
            drop(side.etcd.client_of(leads).await.move_leader(id).await);
        }
        leads == member
    })
    .await;
}

/// Case 6: a transaction is so late that the mirror has done it again by then, elsewhere, and more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_comes_after_its_own_repetition_changes_nothing() {
    let pair = Pair::start(Settings::of("3.6"), Settings::of("3.6").members(3)).await;
    let recorded = [pair.source.etcd.record().await, pair.target.etcd.record().await];
    let mirror = Mirror::start(&pair.source, &pair.target, &[]);
    let mut came = false;
    // Once in ten seconds the mirror asks something else, and that may be what is late.
    for _ in 0..3 {
        came = came || comes_late(&pair).await;
    }
    assert!(came, "nothing was late");
    assert!(mirror.metric("resyncs_total").await == 0.0);
    let histories = (recorded[0].all(&pair.source.etcd).await, recorded[1].all(&pair.target.etcd).await);
    judge(&histories.0, &histories.1, |key| Some(key.to_vec()), |_| true);
}

/// Whether a transaction came late, and changed nothing.
async fn comes_late(pair: &Pair) -> bool {
    let sent = || pair.target.proxies.iter().map(|proxy| proxy.traffic().to_server).collect::<Vec<_>>();
    let before = sent();
    pair.source.etcd.put("/k", "before").await;
    level(&pair.source, &pair.target).await;
    let member = sent().iter().zip(before).position(|(now, before)| *now > before).unwrap();
    let begun = Instant::now();
    pair.target.proxies[member].change(|link| link.to_server.delay = LATE);
    for value in ["late", "after it"] {
        pair.source.etcd.put("/k", value).await;
        level(&pair.source, &pair.target).await;
    }
    println!("measured: done again after {:?}, and comes after {LATE:?}", begun.elapsed());
    assert!(begun.elapsed() < LATE, "it is too late to be late: {:?}", begun.elapsed());
    let (revision, applied) = (pair.target.etcd.head().await, applied(&pair.target).await);
    let has_come = async || self::applied(&pair.target).await > applied;
    until("it comes", async || has_come().await || begun.elapsed() > LATE + NOTICED / 2).await;
    assert_eq!(pair.target.etcd.head().await, revision, "it changed something");
    assert_eq!(held(&pair.target, "/k").await[b"/k".as_slice()].value, b"after it");
    pair.target.distance(Duration::ZERO);
    has_come().await
}

/// What raft has decided so far, be it of any effect or not.
async fn applied(side: &Side) -> u64 {
    side.client().await.status().await.unwrap().raft_applied_index()
}

/// The member that leads.
async fn leader(side: &Side) -> usize {
    let mut found = None;
    until("somebody leads", async || {
        let leader = side.client().await.status().await.unwrap().leader();
        for member in 0..side.etcd.size() {
            let status = side.etcd.client_of(member).await.status().await.unwrap();
            found = found.or((status.header().unwrap().member_id() == leader).then_some(member));
        }
        found.is_some()
    })
    .await;
    found.unwrap()
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
            a_write_arrives(pair).await;
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

/// Case 24: nobody writes for long, and nobody hangs up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_on_which_nothing_is_said_for_long_stay_and_work() {
    let pair = Pair::of("3.6").await;
    pair.source.etcd.fill("/k", 100, 10).await;
    let mut mirror = Mirror::start(&pair.source, &pair.target, &[]);
    level(&pair.source, &pair.target).await;
    let watches = mirror.metric("watches_total").await;
    let connections = || [&pair.source, &pair.target].map(|side| side.traffic().connections);
    let before = connections();
    pass(SILENCE[usize::from(full())]).await;
    assert_eq!(connections(), before, "somebody hung up: {}", mirror.said());
    assert!(mirror.metric("watches_total").await.total_cmp(&watches).is_eq(), "{}", mirror.said());
    let begun = Instant::now();
    pair.source.etcd.put("/k", "after it").await;
    level(&pair.source, &pair.target).await;
    println!("measured: {:?} after a silence of {:?}", begun.elapsed(), SILENCE[usize::from(full())]);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(mirror.is_running() && !mirror.said().contains("GOAWAY"), "{}", mirror.said());
    assert_eq!(connections(), before);
    alike(&pair.source, "", &pair.target, "").await;
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
            a_write_arrives(pair).await;
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
            a_write_arrives(pair).await;
            pair.source.etcd.spawn(member);
            pair.target.etcd.spawn(member);
            pair.source.etcd.serves().await;
            pair.target.etcd.serves().await;
        }
    })
    .await;
}
