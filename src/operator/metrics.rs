//! Metrics, as Prometheus reads them. Labels are namespaces, names and our own small enums: no keys, no UIDs.
//!
//! What is told of clusters is one [`ClusterSample`] a cluster, encoded at the scrape: a new sample takes the place
//! of all that was told before, so no series of a former condition or of a deleted cluster can be left behind.
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
    clusters: Arc<Clusters>,
}

/// Which reconcile.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReconcileLabels {
    /// Kind of the object.
    pub kind: &'static str,
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

/// Samples by namespace and name.
#[derive(Debug, Default)]
struct Clusters(Mutex<BTreeMap<(String, String), ClusterSample>>);

type Labels = Vec<(&'static str, String)>;

/// A metric of each cluster: its name, its help, and its series.
type ClusterGauge = (&'static str, &'static str, fn(&ClusterSample) -> Vec<(Labels, i64)>);

const CLUSTER_GAUGES: [ClusterGauge; 6] = [
    ("cluster_ready", "1 while the cluster is Ready.", |sample| vec![(vec![], i64::from(sample.ready))]),
    ("cluster_members", "Members on record (known) and healthy ones.", |sample| {
        let of = |state: &str, count| (vec![("state", state.to_owned())], count);
        vec![of("known", sample.known), of("healthy", sample.healthy)]
    }),
    ("cluster_quorum_margin", "How many more voters may fail; -1: quorum is lost.", |sample| {
        vec![(vec![], sample.margin)]
    }),
    ("cluster_condition", "1 for each condition as it is.", |sample| {
        let labels = |(type_, status, reason): &(String, String, String)| {
            vec![("type", type_.clone()), ("status", status.clone()), ("reason", reason.clone())]
        };
        sample.conditions.iter().map(|condition| (labels(condition), 1)).collect()
    }),
    ("cluster_db_bytes", "Size of the largest database of a member, and the quota of each.", |sample| {
        let known = [("size", sample.db_size_bytes), ("quota", sample.db_quota_bytes)];
        let known = known.into_iter().filter_map(|(type_, bytes)| Some((type_, bytes?)));
        known.map(|(type_, bytes)| (vec![("type", type_.to_owned())], bytes)).collect()
    }),
    ("cluster_cert_expiry_timestamp_seconds", "End of the first certificate to end, by its use.", |sample| {
        let ends = sample.certificate_ends.iter();
        ends.map(|(usage, end)| (vec![("use", (*usage).to_owned())], *end)).collect()
    }),
];

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
        let clusters = Arc::new(Clusters::default());
        registry.register_collector(Box::new(clusters.clone()));
        Self { registry, reconciles, duration, leader, clusters }
    }

    /// Tells of a cluster; all that was told of it before is forgotten.
    pub fn tell(&self, namespace: &str, name: &str, sample: ClusterSample) {
        self.clusters.lock().insert((namespace.to_owned(), name.to_owned()), sample);
    }

    /// A cluster that is gone leaves no series.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.clusters.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// The text that a scrape gets.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Clusters {
    /// A panic elsewhere leaves the map whole: each change is one step.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), ClusterSample>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Clusters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let clusters = self.lock();
        for (metric, help, series) in CLUSTER_GAUGES {
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Gauge)?;
            for ((namespace, name), sample) in &*clusters {
                for (labels, value) in series(sample) {
                    let own = [("namespace", namespace.clone()), ("name", name.clone())];
                    let labels: Labels = own.into_iter().chain(labels).collect();
                    ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
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
