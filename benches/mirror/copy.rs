//! How fast much is copied: an initial copy, and a history to catch up with.

use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions, SortOrder, SortTarget, Txn, TxnOp};
use futures::StreamExt;
use quorate_pair::programs::until;
use quorate_pair::{Etcd, Pair, Settings};

use crate::contender::{Agent, Contender};
use crate::{MINOR, Plan, bare};

/// Bytes of a value.
const VALUE: usize = 100;
/// Keys that are read at once.
const PAGE: usize = 10_000;
/// Puts under way while a history is made.
const WRITERS: usize = 64;
const KEYS: &str = "/bench/";

/// What is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Keys, into an empty target.
    Initial,
    /// As many revisions of one put each, into a target that has what was before them.
    CatchUp,
}

impl Load {
    pub(crate) const ALL: [Self; 2] = [Self::Initial, Self::CatchUp];
}

/// One run.
pub(crate) struct Copied {
    pub(crate) load: Load,
    pub(crate) contender: Contender,
    pub(crate) distance: Duration,
    /// Keys a second.
    pub(crate) rate: f64,
    /// The most memory that it has had, in MiB.
    pub(crate) memory: f64,
}

/// Source, target, and what the source has.
struct Bench<'a> {
    plan: &'a Plan,
    pair: Pair,
    /// The source's head when a load was ready.
    head: i64,
}

pub(crate) async fn measure(plan: &Plan, samples: &mut Vec<Copied>) {
    let settings = || Settings::of(MINOR).durable().flag("quota-backend-bytes", 8_u64 << 30);
    let pair = Pair::start(settings(), settings()).await;
    let mut bench = Bench { plan, pair, head: 0 };
    bench.fill().await;
    bench.every(Load::Initial, samples).await;
    bench.prepare_to_catch_up().await;
    bench.every(Load::CatchUp, samples).await;
}

impl Bench<'_> {
    /// At every distance, run by run, in turn.
    async fn every(&mut self, load: Load, samples: &mut Vec<Copied>) {
        for distance in self.plan.distances.clone() {
            for run in 0..self.plan.runs {
                let all = [Contender::MakeMirror, Contender::Bare, Contender::Quorate];
                // It has nothing to do with the target, nor with its distance.
                let watch = (load == Load::CatchUp && distance.is_zero()).then_some(Contender::Watch);
                for contender in all.into_iter().skip(usize::from(run > 0)).chain(watch) {
                    let (rate, memory) = self.run(load, contender, distance).await;
                    println!("{load:?} at {distance:?}: {contender:?} {rate:.0} keys/s, {memory:.0} MiB");
                    samples.push(Copied { load, contender, distance, rate, memory });
                }
            }
        }
    }

    async fn run(&mut self, load: Load, contender: Contender, distance: Duration) -> (f64, f64) {
        let target = &mut self.pair.target;
        target.distance(Duration::ZERO);
        match load {
            Load::Initial => target.etcd.empty().await,
            Load::CatchUp => target.etcd.put_back("before").await,
        }
        target.distance(distance);
        match contender {
            Contender::Bare => (self.bare().await, 0.0),
            Contender::Watch => (self.watch().await, 0.0),
            Contender::MakeMirror => self.make_mirror(load).await,
            Contender::Quorate => self.quorate().await,
        }
    }

    async fn bare(&self) -> f64 {
        let pairs = all(&self.pair.source.etcd).await;
        let proxy = self.pair.target.proxies[0].address();
        let mut client = self.pair.target.etcd.dial(proxy, None).await.unwrap();
        let seconds = bare::write(&mut client, &pairs).await;
        self.compare().await;
        rate(pairs.len(), seconds)
    }

    async fn watch(&self) -> f64 {
        let mut client = self.pair.source.client().await;
        rate(self.plan.keys, bare::watch(&mut client, self.head + 1, self.plan.keys).await)
    }

    /// Until it is done or time is up. Each of its writes is a revision of the target.
    async fn make_mirror(&self, load: Load) -> (f64, f64) {
        let mut target = self.pair.target.client().await;
        let first = revision(&mut target).await;
        let after = (load == Load::CatchUp).then_some(self.head);
        let begun = Instant::now();
        let mut agent = Agent::start(Contender::MakeMirror, &self.pair, after);
        let keys = i64::try_from(self.plan.keys).unwrap();
        let mut written = 0;
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        while written < keys && begun.elapsed() < self.plan.patience {
            tick.tick().await;
            agent.check();
            written = revision(&mut target).await - first;
        }
        let seconds = begun.elapsed().as_secs_f64();
        (rate(usize::try_from(written).unwrap(), seconds), agent.end().await)
    }

    /// From the start of the process until the target has all of it.
    async fn quorate(&self) -> (f64, f64) {
        let begun = Instant::now();
        let mut agent = Agent::start(Contender::Quorate, &self.pair, None);
        self.arrived(&mut agent).await;
        let seconds = begun.elapsed().as_secs_f64();
        self.compare().await;
        (rate(self.plan.keys, seconds), agent.end().await)
    }

    /// Waits until the last key has the source's value. Who copies in order writes it last, who does not is found by
    /// the comparison.
    async fn arrived(&self, agent: &mut Agent) {
        let last = key(self.plan.keys - 1);
        let mut source = self.pair.source.client().await;
        let wanted = source.get(last.clone(), None).await.unwrap().kvs()[0].value().to_vec();
        let mut target = self.pair.target.client().await;
        until("the target has all keys", async || {
            agent.check();
            let answer = target.get(last.clone(), None).await.unwrap();
            answer.kvs().first().is_some_and(|kv| kv.value() == wanted)
        })
        .await;
    }

    /// Fails unless both sides have the same.
    async fn compare(&self) {
        let (source, target) = (all(&self.pair.source.etcd).await, all(&self.pair.target.etcd).await);
        assert_eq!(source.len(), self.plan.keys, "keys of the source");
        assert!(source == target, "the target has {} keys, and not those of the source", target.len());
    }

    async fn fill(&mut self) {
        let mut source = self.pair.source.client().await;
        let numbers: Vec<usize> = (0..self.plan.keys).collect();
        for some in numbers.chunks(128) {
            let puts = some.iter().map(|number| TxnOp::put(key(*number), value(*number, 0), None));
            source.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.unwrap();
        }
        self.head = revision(&mut source).await;
    }

    /// Copies what there is, keeps the target as it is then, and writes every key of the source once more.
    async fn prepare_to_catch_up(&mut self) {
        self.run(Load::Initial, Contender::Quorate, Duration::ZERO).await;
        self.pair.target.etcd.keep("before").await;
        let source = self.pair.source.client().await;
        let puts = futures::stream::iter(0..self.plan.keys).map(|number| {
            let mut client = source.kv_client();
            async move { client.put(key(number), value(number, 1), None).await.unwrap() }
        });
        puts.buffered(WRITERS).for_each(async |_| ()).await;
        // The last key is in the last revision, whatever was overtaken.
        let last = self.plan.keys - 1;
        self.pair.source.etcd.put(key(last), value(last, 2)).await;
    }
}

fn rate(keys: usize, seconds: f64) -> f64 {
    f64::from(u32::try_from(keys).unwrap()) / seconds
}

fn key(number: usize) -> Vec<u8> {
    format!("{KEYS}{number:07}").into_bytes()
}

/// Of the usual size, and another for each key and time.
fn value(number: usize, time: u8) -> Vec<u8> {
    let mut value = format!("{number} {time} ").into_bytes();
    value.resize(VALUE, b'v');
    value
}

async fn revision(client: &mut Client) -> i64 {
    client.status().await.unwrap().header().unwrap().revision()
}

/// All keys with their values, in order.
async fn all(etcd: &Etcd) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut client = etcd.client().await;
    let end = format!("{KEYS}~");
    let (mut pairs, mut next) = (Vec::<(Vec<u8>, Vec<u8>)>::new(), KEYS.as_bytes().to_vec());
    loop {
        let options = GetOptions::new().with_range(end.clone()).with_limit(i64::try_from(PAGE).unwrap());
        let options = options.with_sort(SortTarget::Key, SortOrder::Ascend);
        let mut answer = client.get(next.clone(), Some(options)).await.unwrap();
        pairs.extend(answer.take_kvs().into_iter().map(etcd_client::KeyValue::into_key_value));
        if !answer.more() {
            return pairs;
        }
        next = pairs.last().unwrap().0.clone();
        next.push(0);
    }
}
