//! Much to do and little memory: scans of many keys, scans beside heavy writes, a target that is slow for long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etcd_client::Client;
use quorate_pair::programs::{until, until_within};
use quorate_pair::{Pair, Settings, Side};
use tokio::task::JoinHandle;

use super::judge::{judge, needless};
use super::{MEMORY, Mirror, alike, checkpoint, ended, full, held, level, pass, patience};

/// Somebody who writes large values to one key until it is told to end.
struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<u32>,
}

impl Writer {
    fn start(
        mut client: Client,
        pause: Duration,
        key: impl Fn(u32) -> String + Send + 'static,
        size: usize,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (mut number, mut clock) = (0, tokio::time::interval(pause));
            while !stopped.load(Ordering::Relaxed) {
                clock.tick().await;
                let mut value = number.to_string().into_bytes();
                value.resize(size, b'v');
                client.put(key(number), value, None).await.unwrap();
                number += 1;
            }
            number
        });
        Self { stop, task }
    }

    /// How often it wrote.
    async fn end(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// Case 36.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_writes_what_differs_and_nothing_else() {
    let keys: u32 = if full() { 1_000_000 } else { 100_000 };
    let start = || Side::start(Settings::of("3.6"));
    let (source, target) = tokio::join!(start(), start());
    source.etcd.fill("/k", keys as usize, 100).await;
    let begun = Instant::now();
    assert_eq!(ended(&source, &target, &["--once"]).await.code, Some(0));
    println!("measured: {keys} keys copied, {}", rate(keys, begun));
    for changed in [0_u32, 1] {
        if changed == 1 {
            target.etcd.put("/k00777", "not of the mirror").await;
        }
        let before = held(&target, "").await;
        let begun = Instant::now();
        let mirror = Mirror::start(&source, &target, &["--resync"]);
        until_within(patience(), "the scan has ended", async || {
            let compared = mirror.metric("compared_keys").await;
            compared >= f64::from(keys - changed)
                && checkpoint(&target).await.is_some_and(|checkpoint| checkpoint.position.scan().is_none())
        })
        .await;
        let (rate, peak) = (rate(keys, begun), mirror.peak());
        println!("measured: {keys} keys compared, {changed} of them changed, {rate}, {peak} MiB at most");
        assert!(peak < MEMORY, "{peak} MiB");
        let after = held(&target, "").await;
        let written = after.iter().filter(|(key, held)| before.get(*key) != Some(held)).count();
        assert_eq!((written, after.len()), (changed as usize, keys as usize));
    }
}

fn rate(keys: u32, begun: Instant) -> String {
    let seconds = begun.elapsed().as_secs_f64();
    format!("{seconds:.1} s, {:.0} keys/s", f64::from(keys) / seconds)
}

/// Case 19: nothing is kept of what changes beside a scan, but what waits to be read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_beside_heavy_writes_keeps_nothing_of_them() {
    let pair = Pair::of("3.6").await;
    let recorded = [pair.source.etcd.record().await, pair.target.etcd.record().await];
    pair.source.etcd.fill("/k", 20_000, 100).await;
    assert_eq!(ended(&pair.source, &pair.target, &["--once"]).await.code, Some(0));
    // All of it is other than before, and nobody knows since when.
    pair.source.etcd.fill("/k", 20_000, 500).await;
    // A recorder that lags would lose what is discarded.
    drop(recorded[0].all(&pair.source.etcd).await);
    pair.source.etcd.compact().await;
    pair.target.change(|link| link.to_server.bytes_per_second = Some(1_200_000));
    let mirror = Mirror::start(&pair.source, &pair.target, &[]);
    until("it scans", async || {
        checkpoint(&pair.target).await.is_some_and(|checkpoint| checkpoint.position.scan().is_some())
    })
    .await;
    let begun = Instant::now();
    // One after all others, so that the scan comes to it last.
    let client = pair.source.client().await;
    let writer = Writer::start(client, Duration::from_millis(5), |_| "/last".to_owned(), 200_000);
    until("the scan has ended", async || {
        checkpoint(&pair.target).await.is_some_and(|checkpoint| checkpoint.position.scan().is_none())
    })
    .await;
    let (writes, seconds) = (writer.end().await, begun.elapsed().as_secs_f64());
    let peak = mirror.peak();
    println!("measured: a scan of {seconds:.1} s beside {writes} writes of 200 kB, {peak} MiB at most");
    assert!(writes > 200, "{writes} writes of 200 kB are not much");
    pair.target.distance(Duration::ZERO);
    level(&pair.source, &pair.target).await;
    assert!(peak < MEMORY, "{peak} MiB");
    alike(&pair.source, "", &pair.target, "").await;
    let histories = [recorded[0].all(&pair.source.etcd).await, recorded[1].all(&pair.target.etcd).await];
    judge(&histories[0], &histories[1], |key| Some(key.to_vec()), |_| true);
    assert_eq!(needless(&histories[1]), 0);
}

/// Case 35: a target that takes half of what comes, half a second late, for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_target_slows_the_mirror_and_not_its_memory() {
    let length = Duration::from_secs(if full() { 600 } else { 20 });
    let pair = Pair::of("3.6").await;
    pair.source.etcd.put("/first", "1").await;
    let mirror = Mirror::start(&pair.source, &pair.target, &[]);
    level(&pair.source, &pair.target).await;
    pair.target.distance(Duration::from_millis(500));
    pair.target.change(|link| link.to_server.bytes_per_second = Some(500_000));
    // A megabyte a second.
    let client = pair.source.client().await;
    let writer =
        Writer::start(client, Duration::from_millis(50), |number| format!("/k{}", number % 500), 50_000);
    let mut memory = Vec::new();
    for _ in 0..4 {
        pass(length / 4).await;
        memory.push(mirror.resident());
    }
    let (behind, old) = (mirror.metric("lag_revisions").await, mirror.metric("lag_seconds").await);
    let (writes, peak) = (writer.end().await, mirror.peak());
    pair.target.distance(Duration::ZERO);
    let begun = Instant::now();
    level(&pair.source, &pair.target).await;
    println!(
        "measured: {writes} writes in {length:?}, then {behind} revisions and {old:.0} s behind, {memory:?} MiB on the \
         way and {peak} MiB at most; level {:.1} s later",
        begun.elapsed().as_secs_f64()
    );
    assert!(behind > f64::from(writes) / 4.0 && old > length.as_secs_f64() / 4.0, "the target was not slow");
    assert!(peak < MEMORY, "{peak} MiB");
    assert!(mirror.metric("resyncs_total").await == 0.0);
    alike(&pair.source, "", &pair.target, "").await;
}
