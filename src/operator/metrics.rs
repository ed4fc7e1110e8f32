//! Metrics, as Prometheus reads them. Labels are namespaces, names and our own small enums: no keys, no UIDs.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// All metrics of the operator.
pub struct Metrics {
    registry: Registry,
    /// Reconciles that ended, by kind and result.
    pub reconciles: Family<ReconcileLabels, Counter>,
    /// How long they took.
    pub duration: Histogram,
    /// 1 while a cluster is Ready.
    pub ready: Family<ClusterLabels, Gauge>,
    /// Members on record and healthy ones.
    pub members: Family<MemberLabels, Gauge>,
    /// How many more voters may fail; -1: quorum is lost.
    pub margin: Family<ClusterLabels, Gauge>,
    /// 1 for each condition that is as labelled.
    pub conditions: Family<ConditionLabels, Gauge>,
    /// 1 while this replica holds the lease.
    pub leader: Gauge,
}

/// Which reconcile.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReconcileLabels {
    /// Kind of the object.
    pub kind: &'static str,
    /// `success` or the word of the error.
    pub result: &'static str,
}

/// Which cluster.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ClusterLabels {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Which members of which cluster.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct MemberLabels {
    /// The cluster's namespace.
    pub namespace: String,
    /// The cluster's name.
    pub name: String,
    /// `healthy` or `known`.
    pub state: &'static str,
}

/// Which condition of which cluster.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ConditionLabels {
    /// The cluster's namespace.
    pub namespace: String,
    /// The cluster's name.
    pub name: String,
    /// Type of the condition.
    pub r#type: String,
    /// `True` or `False`.
    pub status: String,
    /// Its reason.
    pub reason: String,
}

impl Metrics {
    /// Registers everything under `quorate_`.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("quorate");
        let reconciles = Family::default();
        registry.register("reconcile", "Reconciles that ended", reconciles.clone());
        let duration = Histogram::new([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]);
        registry.register("reconcile_duration_seconds", "How long reconciles took", duration.clone());
        let ready = Family::default();
        registry.register("cluster_ready", "1 while the cluster is Ready", ready.clone());
        let members = Family::default();
        registry.register("cluster_members", "Members known and healthy", members.clone());
        let margin = Family::default();
        registry.register(
            "cluster_quorum_margin",
            "How many more voters may fail; -1: quorum is lost",
            margin.clone(),
        );
        let conditions = Family::default();
        registry.register("cluster_condition", "1 for each condition as it is", conditions.clone());
        let leader = Gauge::default();
        registry.register("leader", "1 while this replica holds the lease", leader.clone());
        let build: Family<Vec<(&'static str, &'static str)>, Gauge> = Family::default();
        build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION"))]).set(1);
        registry.register("build_info", "The operator's version", build);
        Self { registry, reconciles, duration, ready, members, margin, conditions, leader }
    }

    /// The text that a scrape gets.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
