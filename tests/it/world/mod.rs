//! The world: a simulated apiserver, kubelets, volumes and etcd, in which the *real* `reconcile` runs (observe, plan,
//! apply, status, byte for byte as in production), while everything that can go wrong does, at any request.
//!
//! - [`etcd`]: etcd by its rules, quorum counted for real; [`conformance`] holds it against real etcd processes
//! - [`apiserver`]: Kubernetes' API by its rules
//! - [`kubelet`]: nodes, scheduling, containers, the real decision of the real guard, PodDisruptionBudget counts
//! - [`operator`]: the operator's ways to both, with a gate in front of every request: there it is held, crashes, or
//!   loses a reply
//! - [`invariants`]: what must hold after every single effect
//! - [`story`]: what happens, as lines that a person can read and write (`tests/scenarios/*.txt`)
//! - [`search`]: stories made up from a seed; a story that breaks an invariant is shortened and printed
//! - [`bugs`]: planners that break an invariant; the search must find each
//!
//! Time is the world's own: nothing here waits.

pub(crate) mod apiserver;
mod bugs;
pub(crate) mod conformance;
mod etcd;
mod invariants;
mod kubelet;
mod operator;
mod search;
mod story;

use std::collections::{BTreeMap, BTreeSet};

use apiserver::Apiserver;
use etcd::{Etcd, Millis};
use invariants::Witness;
use kubelet::{Container, Disk};
use serde_json::{Value, json};

pub(crate) const NAMESPACE: &str = "test";
pub(crate) const CLUSTER: &str = "main";
/// The world begins soon after 1970: no date matters in it.
const BEGINNING: Millis = 100_000;

/// All there is.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) now: Millis,
    pub(crate) api: Apiserver,
    pub(crate) etcd: Etcd,
    /// Nodes, and whether they run.
    pub(crate) nodes: BTreeMap<String, bool>,
    /// What lies on volumes, by the claim's UID.
    pub(crate) disks: BTreeMap<String, Disk>,
    /// What the kubelets know, by the Pod's UID.
    pub(crate) containers: BTreeMap<String, Container>,
    /// Whether time has passed within the pass under way, so that it acts on what was true some time ago.
    pub(crate) stale: bool,
    /// What the disruption controller has counted.
    pub(crate) counted: kubelet::Counted,
    /// How long a look waits for a member that runs and has no quorum.
    pub(crate) unanswered: Millis,
    /// Members that the operator cannot reach.
    pub(crate) unreachable: BTreeSet<String>,
    /// By how many milliseconds an operator's clock is wrong.
    pub(crate) skews: BTreeMap<&'static str, i64>,
    /// Copies of disks, by the claim's UID.
    pub(crate) saved: BTreeMap<String, Disk>,
    /// Requests that people made.
    pub(crate) asked: u32,
    /// Keys whose write was acknowledged to a client.
    pub(crate) acknowledged: BTreeSet<u64>,
    pub(crate) next_key: u64,
    pub(crate) next_address: u32,
    pub(crate) witness: Witness,
    /// What was done, for whoever reads a failure.
    pub(crate) journal: Vec<String>,
    /// The first invariant that was broken.
    pub(crate) violation: Option<String>,
}

impl World {
    pub(crate) fn new() -> Self {
        let nodes = (1..=4).map(|number| (format!("n{number}"), true)).collect();
        let mut world = Self {
            now: BEGINNING,
            api: Apiserver::default(),
            etcd: Etcd::default(),
            nodes,
            disks: BTreeMap::new(),
            containers: BTreeMap::new(),
            stale: false,
            counted: kubelet::Counted::default(),
            unanswered: 0,
            unreachable: BTreeSet::new(),
            skews: BTreeMap::new(),
            saved: BTreeMap::new(),
            asked: 0,
            acknowledged: BTreeSet::new(),
            next_key: 0,
            next_address: 1,
            witness: Witness::default(),
            journal: Vec::new(),
            violation: None,
        };
        let class = json!({"provisioner": "world", "allowVolumeExpansion": true});
        let now = world.clock();
        world.api.create(("StorageClass", String::new(), "standard".to_owned()), class, &now);
        for name in world.nodes.keys() {
            world.api.create(
                ("Node", String::new(), name.clone()),
                json!({"metadata": {}, "spec": {}}),
                &now,
            );
        }
        world
    }

    pub(crate) fn timestamp(&self) -> jiff::Timestamp {
        jiff::Timestamp::from_millisecond(i64::try_from(self.now).unwrap()).unwrap()
    }

    /// What an operator's clock shows.
    pub(crate) fn timestamp_of(&self, operator: &str) -> jiff::Timestamp {
        let skew = self.skews.get(operator).copied().unwrap_or_default();
        self.timestamp() + jiff::SignedDuration::from_millis(skew)
    }

    pub(crate) fn clock(&self) -> String {
        jiff::Timestamp::from_second(i64::try_from(self.now / 1000).unwrap()).unwrap().to_string()
    }

    pub(crate) fn note(&mut self, what: &str) {
        let passed = std::time::Duration::from_millis(self.now - BEGINNING);
        self.journal.push(format!("{:8.1}  {what}", passed.as_secs_f64()));
    }

    /// The first one counts: what follows a broken invariant proves nothing.
    pub(crate) fn violate(&mut self, rule: &str, what: &str) {
        if self.violation.is_none() {
            self.violation = Some(format!("{rule}: {what}"));
            self.note(&format!("VIOLATED {rule}: {what}"));
        }
    }

    pub(crate) fn cluster(&self) -> Option<&Value> {
        self.api.get("EtcdCluster", CLUSTER)
    }

    /// The Pod of that name, and its UID.
    pub(crate) fn pod(&self, name: &str) -> Option<(&Value, String)> {
        let pod = self.api.get("Pod", name)?;
        Some((pod, apiserver::identity(pod).1))
    }

    /// A client puts a key through the Service, which knows ready Pods with the voter label only.
    pub(crate) fn put(&mut self) -> bool {
        let Some(uid) = self.cluster().map(|cluster| apiserver::identity(cluster).1) else { return false };
        // An earlier EtcdCluster's Pods may still be ending.
        let of_ours = |pod: &&Value| pod["metadata"]["labels"]["quorate.dev/cluster-uid"] == *uid;
        let served: Vec<String> = self
            .api
            .all("Pod")
            .filter(|pod| apiserver::has_voter_label(pod) && kubelet::is_ready(pod) && of_ours(pod))
            .map(|pod| apiserver::identity(pod).1)
            .collect();
        self.next_key += 1;
        let key = self.next_key;
        for process in served {
            if self.etcd.put(&process, key).is_ok() {
                self.acknowledged.insert(key);
                invariants::acknowledged(self, &process);
                return true;
            }
        }
        false
    }
}
