//! How long a change takes: keys are put at a rate, and a watcher on the target looks when they come.
//!
//! The lag of a put goes from the moment at which it is sent to the source to the moment at which the watcher sees it,
//! so the put itself is in it. Puts are sent at their time, whatever became of those before.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use etcd_client::{Client, EventType, WatchOptions};
use quorate_pair::programs::until;
use quorate_pair::{Pair, Settings};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::contender::{Agent, Contender};
use crate::{MINOR, Plan};

const KEYS: &str = "/live/";
const PROBE: &str = "/probe";
const END: &str = "end";
/// Keys that are put in turn: more than are ever in one batch, so that none is left out for a later one.
const DISTINCT: u32 = 10_000;
/// After the last put it is looked for so long what still comes.
const TAIL: Duration = Duration::from_secs(3);
/// Puts are sent in steps of this.
const STEP: Duration = Duration::from_millis(1);

/// One run.
pub(crate) struct Lived {
    pub(crate) contender: Contender,
    pub(crate) distance: Duration,
    /// Puts a second.
    pub(crate) rate: u32,
    /// How many were sent.
    pub(crate) sent: usize,
    /// Milliseconds of those that arrived, in order of size.
    pub(crate) lags: Vec<f64>,
    /// The most memory that it has had, in MiB.
    pub(crate) memory: f64,
}

pub(crate) async fn measure(plan: &Plan, samples: &mut Vec<Lived>) {
    let settings = || Settings::of(MINOR).durable();
    let mut pair = Pair::start(settings(), settings()).await;
    for distance in &plan.distances {
        for (rate, length) in &plan.rates {
            for contender in [Contender::MakeMirror, Contender::Quorate] {
                let lived = run(&mut pair, contender, *distance, (*rate, *length)).await;
                println!("{}", lived.line());
                samples.push(lived);
            }
        }
    }
}

async fn run(
    pair: &mut Pair,
    contender: Contender,
    distance: Duration,
    (rate, length): (u32, Duration),
) -> Lived {
    pair.target.distance(Duration::ZERO);
    pair.source.etcd.empty().await;
    pair.target.etcd.empty().await;
    pair.target.distance(distance);
    let mut agent = Agent::start(contender, pair, None);
    follows(pair, &mut agent).await;
    let seen = tokio::spawn(seen(pair.target.client().await));
    let sent = put(&pair.source.client().await, rate, length).await;
    tokio::time::sleep(TAIL).await;
    // The watcher ends with this one.
    pair.target.client().await.put(format!("{KEYS}end"), END, None).await.unwrap();
    let seen = seen.await.unwrap();
    let mut lags: Vec<f64> = sent
        .iter()
        .filter_map(|(number, sent)| Some((*seen.get(number)? - *sent).as_secs_f64() * 1000.0))
        .collect();
    lags.sort_by(f64::total_cmp);
    Lived { contender, distance, rate, sent: sent.len(), lags, memory: agent.end().await }
}

/// Waits until a change comes through. One is enough, and more would stand in the way of what is measured.
async fn follows(pair: &Pair, agent: &mut Agent) {
    pair.source.etcd.put(PROBE, "").await;
    let mut target = pair.target.client().await;
    until("a change comes through", async || {
        agent.check();
        !target.get(PROBE, None).await.unwrap().kvs().is_empty()
    })
    .await;
}

/// Puts numbers at a rate; when each was sent.
async fn put(source: &Client, rate: u32, length: Duration) -> Vec<(u32, Instant)> {
    let mut sent = Vec::new();
    let mut puts = JoinSet::new();
    let all = rate * u32::try_from(length.as_secs()).unwrap();
    let mut step = tokio::time::interval(STEP);
    step.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let begun = Instant::now();
    for number in 0..all {
        let due = begun + Duration::from_secs(1) * number / rate;
        while Instant::now() < due {
            step.tick().await;
        }
        let mut client = source.kv_client();
        let key = format!("{KEYS}{:05}", number % DISTINCT);
        sent.push((number, Instant::now()));
        puts.spawn(async move { client.put(key, number.to_string(), None).await.unwrap() });
    }
    drop(puts.join_all().await);
    sent
}

/// When each number was seen first, until the end is.
async fn seen(mut target: Client) -> HashMap<u32, Instant> {
    let mut stream = target.watch(KEYS, Some(WatchOptions::new().with_prefix())).await.unwrap();
    let mut seen = HashMap::new();
    while let Some(answer) = stream.message().await.unwrap() {
        let now = Instant::now();
        for event in answer.events().iter().filter(|event| event.event_type() == EventType::Put) {
            let value = event.kv().unwrap().value_str().unwrap();
            if value == END {
                return seen;
            }
            seen.entry(value.parse().unwrap()).or_insert(now);
        }
    }
    seen
}

impl Lived {
    pub(crate) fn mean(&self) -> f64 {
        self.lags.iter().sum::<f64>() / f64::from(u32::try_from(self.lags.len()).unwrap())
    }

    /// The lag that so many hundredths of those that arrived are below.
    pub(crate) fn percentile(&self, hundredths: usize) -> f64 {
        let place = (self.lags.len() * hundredths / 100).min(self.lags.len().saturating_sub(1));
        self.lags.get(place).copied().unwrap_or(f64::NAN)
    }

    fn line(&self) -> String {
        let Self { contender, distance, rate, sent, lags, memory } = self;
        format!(
            "{rate} put/s at {distance:?}: {contender:?} {} of {sent} arrived, mean {:.1} ms, p50 {:.1}, p99 {:.1}, \
             {memory:.0} MiB",
            lags.len(),
            self.mean(),
            self.percentile(50),
            self.percentile(99)
        )
    }
}
