//! The incident of seed 004, and what it took to live with it.
//!
//! There, a mirror of a quiet prefix fell out of the source's history, because others wrote a thousand times outside of
//! it; its reload wiped the target; and a change of the prefix needed a freeze of all writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Client, EventType, WatchOptions};
use quorate::mirror::checkpoint::Position;
use quorate_pair::{Settings, Side};
use tokio::task::{JoinHandle, JoinSet};

use super::judge::judge;
use super::{Mirror, alike, checkpoint, held, level, pass};

const PREFIX: &str = "/conftool/";
const LOCKS: &str = "/spicerack/locks/etcd";
const OTHERS: &str = "/test/";
const IGNORE: [&str; 2] = ["--ignore", "/spicerack/locks/etcd(/.*)?"];
/// Between the data centres.
const DISTANCE: Duration = Duration::from_millis(30);
/// Writes a second outside of the prefix, and for how long: from the incident's to what broke the old mirror.
const ANTAGONISTS: [(u32, Duration); 3] =
    [(25, Duration::from_secs(3)), (100, Duration::from_secs(3)), (700, Duration::from_secs(12))];
/// A change inside the prefix comes this often while the antagonist is at its worst.
const PROBES: Duration = Duration::from_millis(50);
/// 99 of 100 changes are there after this.
const LAG: Duration = Duration::from_millis(200);
/// Every second, all history is discarded.
const COMPACTION: Duration = Duration::from_secs(1);
/// What the old mirror's source remembered.
const HISTORY: i64 = 1000;

/// Two that write and discard history until they are told to end.
struct Antagonist {
    stop: Arc<AtomicBool>,
    /// Writes a second.
    rate: Arc<AtomicU32>,
    tasks: [JoinHandle<u32>; 2],
}

impl Antagonist {
    fn start(client: &Client, rate: u32) -> Self {
        let (stop, rate) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(rate)));
        let writes = tokio::spawn(write(client.clone(), stop.clone(), rate.clone()));
        let compactions = tokio::spawn(compact(client.clone(), stop.clone()));
        Self { stop, rate, tasks: [writes, compactions] }
    }

    /// How often it wrote, and how often history was discarded.
    async fn end(self) -> [u32; 2] {
        self.stop.store(true, Ordering::Relaxed);
        let [writes, compactions] = self.tasks;
        [writes.await.unwrap(), compactions.await.unwrap()]
    }
}

/// Half of it is locks, taken and given back; half is others' data. No write waits for another.
async fn write(client: Client, stop: Arc<AtomicBool>, rate: Arc<AtomicU32>) -> u32 {
    let (mut number, mut writes, mut due) = (0_u32, JoinSet::new(), Instant::now());
    while !stop.load(Ordering::Relaxed) {
        due += Duration::from_secs(1) / rate.load(Ordering::Relaxed);
        tokio::time::sleep_until(due.into()).await;
        let (mut kv, lock) = (client.kv_client(), format!("{LOCKS}/{}", number % 7));
        let turn = number % 4;
        let other = format!("{OTHERS}{}", number % 1000);
        writes.spawn(async move {
            match turn {
                0 => drop(kv.put(lock, "held", None).await.unwrap()),
                2 => drop(kv.delete(lock, None).await.unwrap()),
                _ => drop(kv.put(other, due.elapsed().as_nanos().to_string(), None).await.unwrap()),
            }
        });
        while writes.try_join_next().is_some() {}
        number += 1;
    }
    drop(writes.join_all().await);
    number
}

async fn compact(mut client: Client, stop: Arc<AtomicBool>) -> u32 {
    let (mut times, mut clock) = (0, tokio::time::interval(COMPACTION));
    while !stop.load(Ordering::Relaxed) {
        clock.tick().await;
        let head = client.put("/head", "", None).await.unwrap().header().unwrap().revision();
        client.compact(head, None).await.unwrap();
        times += 1;
    }
    times
}

/// When each value of a key was seen.
struct Seen {
    task: JoinHandle<()>,
    values: Arc<std::sync::Mutex<BTreeMap<String, Instant>>>,
}

impl Seen {
    async fn start(target: &Side, key: &str) -> Self {
        let mut stream = target.client().await.watch(key, Some(WatchOptions::new())).await.unwrap();
        let values = Arc::new(std::sync::Mutex::new(BTreeMap::new()));
        let task = tokio::spawn({
            let values = values.clone();
            async move {
                while let Ok(Some(answer)) = stream.message().await {
                    let now = Instant::now();
                    for event in answer.events().iter().filter(|event| event.event_type() == EventType::Put) {
                        let value = event.kv().unwrap().value_str().unwrap().to_owned();
                        values.lock().unwrap().insert(value, now);
                    }
                }
            }
        });
        Self { task, values }
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Changes a key of the prefix for so long; the 99th percentile of how long a change took, on each target.
async fn probe(source: &Side, targets: [&Side; 2], length: Duration) -> [Duration; 2] {
    let key = format!("{PREFIX}probe");
    let seen = [Seen::start(targets[0], &key).await, Seen::start(targets[1], &key).await];
    let mut client = source.client().await;
    let (begun, mut sent, mut clock) = (Instant::now(), Vec::new(), tokio::time::interval(PROBES));
    while begun.elapsed() < length {
        clock.tick().await;
        let value = sent.len().to_string();
        sent.push((value.clone(), Instant::now()));
        client.put(key.clone(), value, None).await.unwrap();
    }
    for target in targets {
        level(source, target).await;
    }
    pass(Duration::from_millis(200)).await;
    seen.map(|seen| {
        let values = seen.values.lock().unwrap();
        // One that was overwritten before it was sent came with its successor.
        let came = |at: usize| sent[at..].iter().find_map(|(value, _)| values.get(value));
        let lags = sent.iter().enumerate().map(|(at, (_, sent))| *came(at).unwrap() - *sent);
        let mut lags: Vec<Duration> = lags.collect();
        lags.sort();
        lags[lags.len() * 99 / 100]
    })
}

/// What a mirror must not have done while others wrote.
async fn undisturbed(mirror: &mut Mirror) {
    assert!(mirror.is_running(), "it ended: {}", mirror.said());
    for counter in ["resyncs_total", "stopped"] {
        let value = mirror.metric(counter).await;
        assert!(value == 0.0, "{counter} is {value}");
    }
}

/// Locks of the other side's own, which no mirror may touch.
async fn own_locks(target: &Side) -> Vec<u8> {
    let key = format!("{LOCKS}/own").into_bytes();
    target.etcd.put(key.clone(), "ours").await;
    key
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_incident_of_004_does_not_happen_again() {
    let start = || Side::start(Settings::of("3.6"));
    let (source, narrow, whole) = tokio::join!(start(), start(), start());
    let recorded = [source.etcd.record().await, narrow.etcd.record().await];
    source.etcd.fill(PREFIX, 500, 100).await;
    source.etcd.fill(OTHERS, 500, 100).await;
    let lock = own_locks(&whole).await;
    for target in [&narrow, &whole] {
        target.distance(DISTANCE);
    }
    let mut mirrors = [
        Mirror::start(&source, &narrow, &["--prefix", PREFIX]),
        Mirror::start(&source, &whole, &[IGNORE[0], IGNORE[1], "--initial-sync", "fail"]),
    ];
    alike(&source, PREFIX, &narrow, PREFIX).await;
    alike(&source, PREFIX, &whole, PREFIX).await;
    let before = held(&narrow, PREFIX).await;

    let antagonist = Antagonist::start(&source.client().await, 1);
    for (rate, length) in ANTAGONISTS {
        antagonist.rate.store(rate, Ordering::Relaxed);
        if rate < 700 {
            pass(length).await;
            continue;
        }
        let lags = probe(&source, [&narrow, &whole], length).await;
        println!(
            "measured: 99 of 100 changes took less than {lags:?} at {rate} writes a second and {DISTANCE:?}"
        );
        assert!(lags.iter().all(|lag| *lag < LAG), "{lags:?}");
    }
    let [writes, compactions] = antagonist.end().await;
    println!("measured: {writes} writes outside of the prefix, history discarded {compactions} times");
    assert!(writes > 5_000 && compactions > 10);
    for mirror in &mut mirrors {
        undisturbed(mirror).await;
    }
    // The place in the history moved on without a change in the prefix.
    let head = source.etcd.head().await;
    for target in [&narrow, &whole] {
        let reached = level_within(target, head - HISTORY).await;
        assert!(reached > head - HISTORY, "{reached} of {head}");
    }
    let after = held(&narrow, PREFIX).await;
    let rewritten = before.iter().filter(|(key, held)| after.get(*key) != Some(held)).count();
    assert_eq!(rewritten, 0, "keys that nobody changed");
    for (key, held) in whole.etcd.held(LOCKS).await {
        assert_eq!((key, held.value), (lock.clone(), b"ours".to_vec()), "an ignored key was copied");
    }
    let verdict = judge(
        &recorded[0].all(&source.etcd).await,
        &recorded[1].all(&narrow.etcd).await,
        |key| key.starts_with(PREFIX.as_bytes()).then(|| key.to_vec()),
        |key| key.starts_with(PREFIX.as_bytes()),
    );
    println!("measured: {verdict:?}");
    assert!(verdict.exact > 100, "{verdict:?}");
}

/// The checkpoint's revision, as soon as it is above that one.
async fn level_within(target: &Side, revision: i64) -> i64 {
    let mut reached = 0;
    quorate_pair::programs::until("the checkpoint has moved on", async || {
        reached = checkpoint(target).await.unwrap().position.revision();
        reached > revision
    })
    .await;
    reached
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_was_down_for_the_whole_gap_writes_only_what_differs() {
    let start = || Side::start(Settings::of("3.6"));
    let (source, target) = tokio::join!(start(), start());
    source.etcd.fill(PREFIX, 2_000, 100).await;
    source.etcd.fill(OTHERS, 500, 100).await;
    source.etcd.put(format!("{LOCKS}/1"), "held").await;
    let lock = own_locks(&target).await;
    target.distance(DISTANCE);
    let mirror = Mirror::start(&source, &target, &IGNORE);
    level(&source, &target).await;
    mirror.kill();
    for number in 0..100 {
        source.etcd.delete(format!("{PREFIX}{number:05}")).await;
    }
    for number in 100..150 {
        source.etcd.put(format!("{PREFIX}{number:05}"), "changed").await;
    }
    source.etcd.fill("/conftool/new", 30, 100).await;
    source.etcd.fill(&format!("{LOCKS}/"), 3_000, 10).await;
    source.etcd.compact().await;

    let recorded = target.etcd.record().await;
    let mirror = Mirror::start(&source, &target, &IGNORE);
    level(&source, &target).await;
    assert!(mirror.metric("resyncs_total").await >= 1.0, "nothing had to be compared: {}", mirror.said());
    let mut changes = recorded.all(&target.etcd).await;
    changes.retain(|change| !change.key.starts_with(b"/__quorate/"));
    let deletes = changes.iter().filter(|change| change.value.is_none()).count();
    assert_eq!((deletes, changes.len()), (100, 180), "deletes, and all changes, of the target");
    alike(&source, PREFIX, &target, PREFIX).await;
    alike(&source, OTHERS, &target, OTHERS).await;
    let locks = target.etcd.held(LOCKS).await;
    assert_eq!(locks.into_keys().collect::<Vec<_>>(), [lock], "ignored keys");
}

/// `/conftool` becomes `/` while everybody writes: one edit, then a scan that leaves alone what is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_prefix_is_changed_without_a_freeze_of_writes() {
    let start = || Side::start(Settings::of("3.6"));
    let (source, target) = tokio::join!(start(), start());
    source.etcd.fill(PREFIX, 2_000, 100).await;
    source.etcd.fill(OTHERS, 1_000, 100).await;
    target.distance(DISTANCE);
    let mirror = Mirror::start(&source, &target, &["--prefix", PREFIX, IGNORE[0], IGNORE[1]]);
    level(&source, &target).await;
    let antagonist = Antagonist::start(&source.client().await, 200);
    let before = held(&target, PREFIX).await;
    assert_eq!(mirror.terminate().await.code, Some(0));
    let recorded = target.etcd.record().await;

    let mut mirror = Mirror::start(&source, &target, &IGNORE);
    let streams = async || {
        let position = checkpoint(&target).await.unwrap().position;
        matches!(position, Position::Stream { .. }) && !held(&target, OTHERS).await.is_empty()
    };
    quorate_pair::programs::until("the whole keyspace is there", streams).await;
    pass(COMPACTION).await;
    assert!(mirror.is_running(), "{}", mirror.said());
    let [writes, compactions] = antagonist.end().await;
    println!("measured: {writes} writes meanwhile, history discarded {compactions} times");
    assert!(writes > 200 && compactions > 1);
    source.etcd.put(format!("{OTHERS}last"), "1").await;
    level(&source, &target).await;
    alike(&source, PREFIX, &target, PREFIX).await;
    alike(&source, OTHERS, &target, OTHERS).await;
    let after = held(&target, PREFIX).await;
    assert_eq!(before, after, "what was there was written again");
    let deletes = recorded.all(&target.etcd).await.into_iter().filter(|change| change.value.is_none());
    assert_eq!(deletes.count(), 0, "something was wiped");
    assert!(target.etcd.held(LOCKS).await.is_empty(), "an ignored key was copied");
}
