//! Metrics, as Prometheus reads them. Labels are namespaces, names and our own small enums: no keys, no UIDs.
//!
//! What is told of clusters is one [`ClusterSample`] a cluster, and of mirrors one [`MirrorSample`] a mirror, encoded at
//! the scrape: a new sample takes the place of all that was told before, so no series of a former condition or of a
//! deleted object can be left behind.
//! `docs/metrics.md` lists every metric (a test compares them).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// All metrics of the operator.
pub struct Metrics {
    registry: Registry,
    /// Reconciles that ended, by kind and result.
    pub reconciles: Family<ReconcileLabels, Counter>,
    /// How long they took.
    pub duration: Histogram,
    /// 1 while this replica holds the lease.
    pub leader: Gauge,
    clusters: Arc<Samples<ClusterSample>>,
    mirrors: Arc<Samples<MirrorSample>>,
}

/// Which reconcile.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReconcileLabels {
    /// Kind of the object.
    pub kind: String,
    /// `success` or the word of the error.
    pub result: &'static str,
}

/// What the last look at a cluster found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterSample {
    /// Whether it is Ready.
    pub ready: bool,
    /// Members on record.
    pub known: i64,
    /// Those of them that are healthy.
    pub healthy: i64,
    /// How many more voters may fail; -1: quorum is lost.
    pub margin: i64,
    /// Type, status and reason of each condition.
    pub conditions: Vec<(String, String, String)>,
    /// The largest database of a member; absent while no member answers.
    pub db_size_bytes: Option<i64>,
    /// The quota of each database; absent while the spec cannot be used.
    pub db_quota_bytes: Option<i64>,
    /// End of the first certificate to end, in seconds of the Unix epoch, by its use: `member`, `operator`, `client`.
    pub certificate_ends: BTreeMap<&'static str, i64>,
}

/// What the last look at a mirror found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MirrorSample {
    /// Whether its agent copies.
    pub up: bool,
    /// `Running`, `Paused`, `Stopped` or `Switching`.
    pub state: &'static str,
    /// Whether it is Ready.
    pub ready: bool,
    /// Revisions by which the target is behind; absent while nothing should be copied, or nobody knows.
    pub lag_revisions: Option<i64>,
    /// Age of the newest state of the source that the target holds; absent as above.
    pub lag_seconds: Option<f64>,
    /// How old it may be; absent while the spec cannot be used.
    pub lag_objective_seconds: Option<i64>,
    /// Part of the source's history that is left; absent as above.
    pub history_margin: Option<f64>,
    /// Keys that were not as they should be when both sides were last compared; absent: they were not.
    pub mismatched_keys: Option<i64>,
    /// Type, status and reason of each condition.
    pub conditions: Vec<(String, String, String)>,
}

/// Samples by namespace and name.
#[derive(Debug, Default)]
struct Samples<S>(Mutex<BTreeMap<(String, String), S>>);

type Labels = Vec<(&'static str, String)>;

/// What a series says: counts stay whole numbers in the text.
#[derive(Clone, Copy)]
enum Amount {
    Whole(i64),
    Part(f64),
}

type Series = Vec<(Labels, Amount)>;

/// A metric of each object: its name, its help, and its series.
type ObjectGauge<S> = (&'static str, &'static str, fn(&S) -> Series);

/// A kind whose objects are told of.
trait Told: Send + Sync + std::fmt::Debug + Sized + 'static {
    /// What is told of each.
    const GAUGES: &'static [ObjectGauge<Self>];
}

fn conditions(conditions: &[(String, String, String)]) -> Series {
    let labels = |(type_, status, reason): &(String, String, String)| {
        vec![("type", type_.clone()), ("status", status.clone()), ("reason", reason.clone())]
    };
    conditions.iter().map(|condition| (labels(condition), Amount::Whole(1))).collect()
}

/// A series without labels of its own; none, if nothing is known.
fn one(amount: Option<Amount>) -> Series {
    amount.into_iter().map(|amount| (vec![], amount)).collect()
}

fn truth(value: bool) -> Series {
    one(Some(Amount::Whole(i64::from(value))))
}

impl Told for ClusterSample {
    const GAUGES: &'static [ObjectGauge<Self>] = &[
        ("cluster_ready", "1 while the cluster is Ready.", |sample| truth(sample.ready)),
        ("cluster_members", "Members on record (known) and healthy ones.", |sample| {
            let of = |state: &str, count| (vec![("state", state.to_owned())], Amount::Whole(count));
            vec![of("known", sample.known), of("healthy", sample.healthy)]
        }),
        ("cluster_quorum_margin", "How many more voters may fail; -1: quorum is lost.", |sample| {
            one(Some(Amount::Whole(sample.margin)))
        }),
        ("cluster_condition", "1 for each condition as it is.", |sample| conditions(&sample.conditions)),
        ("cluster_db_bytes", "Size of the largest database of a member, and the quota of each.", |sample| {
            let known = [("size", sample.db_size_bytes), ("quota", sample.db_quota_bytes)];
            let known = known.into_iter().filter_map(|(type_, bytes)| Some((type_, bytes?)));
            known.map(|(type_, bytes)| (vec![("type", type_.to_owned())], Amount::Whole(bytes))).collect()
        }),
        (
            "cluster_cert_expiry_timestamp_seconds",
            "End of the first certificate to end, by its use.",
            |sample| {
                let ends = sample.certificate_ends.iter();
                ends.map(|(usage, end)| (vec![("use", (*usage).to_owned())], Amount::Whole(*end))).collect()
            },
        ),
    ];
}

impl Told for MirrorSample {
    const GAUGES: &'static [ObjectGauge<Self>] = &[
        ("mirror_up", "1 while the mirror's agent copies.", |sample| truth(sample.up)),
        ("mirror_state", "1 for the state that the mirror is to be in.", |sample| {
            vec![(vec![("state", sample.state.to_owned())], Amount::Whole(1))]
        }),
        ("mirror_ready", "1 while the mirror is Ready.", |sample| truth(sample.ready)),
        ("mirror_lag_revisions", "Revisions by which the target is behind.", |sample| {
            one(sample.lag_revisions.map(Amount::Whole))
        }),
        ("mirror_lag_seconds", "Age of the newest state of the source that the target holds.", |sample| {
            one(sample.lag_seconds.map(Amount::Part))
        }),
        ("mirror_lag_objective_seconds", "How old that state may be.", |sample| {
            one(sample.lag_objective_seconds.map(Amount::Whole))
        }),
        (
            "mirror_history_margin_ratio",
            "Part of the source's history that is left behind the checkpoint.",
            |sample| one(sample.history_margin.map(Amount::Part)),
        ),
        ("mirror_mismatched_keys", "Keys that differed when both sides were last compared.", |sample| {
            one(sample.mismatched_keys.map(Amount::Whole))
        }),
        ("mirror_condition", "1 for each condition as it is.", |sample| conditions(&sample.conditions)),
    ];
}

impl Metrics {
    /// Registers everything under `quorate_`.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("quorate");
        let reconciles = Family::default();
        registry.register("reconcile", "Reconciles that ended", reconciles.clone());
        let duration = Histogram::new([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]);
        registry.register("reconcile_duration_seconds", "How long reconciles took", duration.clone());
        let leader = Gauge::default();
        registry.register("leader", "1 while this replica holds the lease", leader.clone());
        let build: Family<Vec<(&'static str, &'static str)>, Gauge> = Family::default();
        build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION"))]).set(1);
        registry.register("build_info", "The operator's version", build);
        let (clusters, mirrors) = (Arc::new(Samples::default()), Arc::new(Samples::default()));
        registry.register_collector(Box::new(clusters.clone()));
        registry.register_collector(Box::new(mirrors.clone()));
        Self { registry, reconciles, duration, leader, clusters, mirrors }
    }

    /// Tells of a cluster; all that was told of it before is forgotten.
    pub fn tell(&self, namespace: &str, name: &str, sample: ClusterSample) {
        self.clusters.lock().insert((namespace.to_owned(), name.to_owned()), sample);
    }

    /// A cluster that is gone leaves no series.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.clusters.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Tells of a mirror; all that was told of it before is forgotten.
    pub fn tell_mirror(&self, namespace: &str, name: &str, sample: MirrorSample) {
        self.mirrors.lock().insert((namespace.to_owned(), name.to_owned()), sample);
    }

    /// A mirror that is gone leaves no series.
    pub fn forget_mirror(&self, namespace: &str, name: &str) {
        self.mirrors.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// The text that a scrape gets.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl<S> Samples<S> {
    /// A panic elsewhere leaves the map whole: each change is one step.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Told> Collector for Samples<S> {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let objects = self.lock();
        for (metric, help, series) in S::GAUGES {
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Gauge)?;
            for ((namespace, name), sample) in &*objects {
                for (labels, amount) in series(sample) {
                    let own = [("namespace", namespace.clone()), ("name", name.clone())];
                    let labels: Labels = own.into_iter().chain(labels).collect();
                    let encoder = family.encode_family(&labels)?;
                    match amount {
                        Amount::Whole(number) => ConstGauge::new(number).encode(encoder)?,
                        Amount::Part(number) => ConstGauge::new(number).encode(encoder)?,
                    }
                }
            }
        }
        Ok(())
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
