//! What every reconcile may use: the client, the clock, the right to write, the metrics, and marks seen.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::Client;
use kube::runtime::events::{Recorder, Reporter};

use super::cluster::desired::Desired;
use super::cluster::observed::Observed;
use super::cluster::plan::{Plan, plan};
use super::metrics::Metrics;
use crate::etcd::membership::Members;

/// Deadline of one request to the apiserver: far above a healthy answer, below the life of a lease.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// Shared by all reconciles of this process.
pub struct Context {
    /// Speaks to the apiserver.
    pub client: Client,
    /// The way to etcd's members.
    pub etcd: Arc<dyn Members>,
    /// Publishes events.
    pub recorder: Recorder,
    /// Image with the guard: the operator's own.
    pub guard_image: String,
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    /// What decides: [`plan`], or in tests a worse one.
    pub planner: Planner,
    /// The right to write.
    pub authority: Arc<Authority>,
    clock: Clock,
    /// Highest (term, index) surveyed, by EtcdCluster UID and member. Kept here between two writes of the
    /// status, which are rare by design.
    marks: Mutex<HashMap<(String, String), (u64, u64)>>,
    /// Passes that failed in a row, by EtcdCluster UID.
    failures: Mutex<HashMap<String, u32>>,
    /// When a question that is only asked now and then was asked last, by EtcdCluster UID.
    asked: Mutex<HashMap<String, Instant>>,
}

/// Desired + Observed → Plan.
pub type Planner = fn(&Desired, &Observed) -> Plan;

/// What tells the time: the machine's clock, or a simulated one.
pub type Clock = Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>;

/// The right to write: held for as long as the lease was renewed, and not a moment longer.
#[derive(Debug, Default)]
pub struct Authority {
    until: Mutex<Option<Instant>>,
}

/// The lease is not ours (any more).
#[derive(Debug, thiserror::Error)]
#[error("this replica does not hold the lease: nothing is written")]
pub struct NoAuthority;

impl Context {
    /// A context with empty memory.
    pub fn new(
        client: Client,
        etcd: Arc<dyn Members>,
        clock: Clock,
        guard_image: String,
        metrics: Arc<Metrics>,
        authority: Arc<Authority>,
    ) -> Self {
        let reporter = Reporter { controller: "quorate".to_owned(), instance: None };
        let recorder = Recorder::new(client.clone(), reporter);
        Self {
            client,
            etcd,
            recorder,
            guard_image,
            metrics,
            planner: plan,
            authority,
            clock,
            marks: Mutex::default(),
            failures: Mutex::default(),
            asked: Mutex::default(),
        }
    }

    /// The only clock.
    pub fn now(&self) -> jiff::Timestamp {
        (self.clock)()
    }

    /// Raises the mark of a member; returns the highest ever seen by this process.
    pub fn raise_mark(&self, cluster_uid: &str, member: &str, mark: (u64, u64)) -> (u64, u64) {
        let mut marks = lock(&self.marks);
        let known = marks.entry((cluster_uid.to_owned(), member.to_owned())).or_default();
        *known = (*known).max(mark);
        *known
    }

    /// Counts a failed pass; returns how many failed in a row before it.
    pub fn failed(&self, cluster_uid: &str) -> u32 {
        let mut failures = lock(&self.failures);
        let count = failures.entry(cluster_uid.to_owned()).or_default();
        *count += 1;
        *count - 1
    }

    /// A pass did not fail.
    pub fn succeeded(&self, cluster_uid: &str) {
        lock(&self.failures).remove(cluster_uid);
    }

    /// Whether a question about a cluster that is asked once in `pause` is to be asked now; if so, it counts as asked.
    pub fn is_due(&self, cluster_uid: &str, pause: Duration) -> bool {
        let mut asked = lock(&self.asked);
        let due = asked.get(cluster_uid).is_none_or(|last| last.elapsed() >= pause);
        if due {
            asked.insert(cluster_uid.to_owned(), Instant::now());
        }
        due
    }

    /// Forgets a cluster that is gone.
    pub fn forget(&self, cluster_uid: &str) {
        lock(&self.asked).remove(cluster_uid);
        self.succeeded(cluster_uid);
        let mut marks = lock(&self.marks);
        marks.retain(|(uid, _), _| uid != cluster_uid);
    }
}

impl Authority {
    /// Extends the right until `until`.
    pub fn extend(&self, until: Instant) {
        *lock(&self.until) = Some(until);
    }

    /// Gives it up at once.
    pub fn revoke(&self) {
        *lock(&self.until) = None;
    }

    /// Asked before every write.
    pub fn check(&self) -> Result<(), NoAuthority> {
        let until = *lock(&self.until);
        if until.is_some_and(|until| Instant::now() < until) { Ok(()) } else { Err(NoAuthority) }
    }
}

/// A panic elsewhere leaves these values whole: each is changed in one step.
fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
