//! What every reconcile may use: the client, the clock, the right to write, the metrics, and marks seen.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::Client;
use kube::runtime::events::{Recorder, Reporter};

use super::cluster::desired::Desired;
use super::cluster::observed::Observed;
use super::cluster::plan::{Plan, plan};
use super::metrics::Metrics;
use crate::etcd::MemberId;
use crate::etcd::hash::Hashes;
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
    /// Reconciles that failed in a row, by EtcdCluster UID.
    failures: Mutex<HashMap<String, Failures>>,
    /// When a question that is only asked now and then was asked last, by EtcdCluster UID and question.
    asked: Mutex<HashMap<(String, Question), jiff::Timestamp>>,
    /// What voters held when they were last compared, by EtcdCluster UID.
    hashes: Mutex<HashMap<String, (Hashes, Starts)>>,
    /// UIDs by kind, namespace and name, so that what is kept by UID can be forgotten when only a name is left.
    uids: Mutex<HashMap<(String, String, String), String>>,
}

/// Reconciles of one EtcdCluster that failed in a row.
#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    count: u32,
    /// No event brings it back before, unless the spec was changed.
    until: Option<Instant>,
    /// The generation that failed.
    generation: Option<i64>,
}

/// Since when the etcd of each voter has run.
pub type Starts = BTreeMap<MemberId, Option<jiff::Timestamp>>;

/// A question that is only asked now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    /// Whether auth is on.
    Auth,
    /// Whether members hold the same.
    Hashes,
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
            uids: Mutex::default(),
            asked: Mutex::default(),
            hashes: Mutex::default(),
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

    /// An object is worked on. What is remembered of an earlier one of its name is forgotten.
    pub fn meet(&self, kind: &str, namespace: &str, name: &str, uid: &str) {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        let earlier = lock(&self.uids).insert(key, uid.to_owned());
        if let Some(earlier) = earlier.filter(|earlier| earlier != uid) {
            self.forget_uid(&earlier);
        }
    }

    /// How many reconciles of a cluster failed in a row.
    pub fn failures(&self, uid: &str) -> u32 {
        lock(&self.failures).get(uid).map_or(0, |failures| failures.count)
    }

    /// Another one failed, of that generation; no event brings it back within `pause`.
    pub fn failed(&self, uid: &str, generation: Option<i64>, pause: Duration) {
        let count = self.failures(uid).saturating_add(1);
        let failures = Failures { count, until: Instant::now().checked_add(pause), generation };
        lock(&self.failures).insert(uid.to_owned(), failures);
    }

    /// What is left of the pause after a failure. A new generation ends it: somebody may have cured the cause.
    pub fn pause_left(&self, uid: &str, generation: Option<i64>) -> Option<Duration> {
        let failures = lock(&self.failures).get(uid).copied()?;
        let left = failures.until?.checked_duration_since(Instant::now())?;
        (failures.generation == generation && !left.is_zero()).then_some(left)
    }

    /// Whether a question about a cluster that is asked once in `pause` is to be asked now; if so, it counts as asked.
    pub fn is_due(&self, cluster_uid: &str, question: Question, pause: jiff::SignedDuration) -> bool {
        let (mut asked, now) = (lock(&self.asked), self.now());
        let key = (cluster_uid.to_owned(), question);
        let due = asked.get(&key).is_none_or(|last| now.duration_since(*last) >= pause);
        if due {
            asked.insert(key, now);
        }
        due
    }

    /// What voters held when they were last compared, and since when each had run.
    pub fn hashes(&self, cluster_uid: &str) -> Option<(Hashes, Starts)> {
        lock(&self.hashes).get(cluster_uid).cloned()
    }

    /// They were compared again.
    pub fn keep_hashes(&self, cluster_uid: &str, hashes: Hashes, starts: Starts) {
        lock(&self.hashes).insert(cluster_uid.to_owned(), (hashes, starts));
    }

    /// A reconcile did not fail.
    pub fn succeeded(&self, uid: &str) {
        lock(&self.failures).remove(uid);
    }

    /// Forgets a cluster that is gone, with its metrics.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.metrics.forget(namespace, name);
        self.forget_name("EtcdCluster", namespace, name);
    }

    /// Forgets a mirror that is gone, with its metrics.
    pub fn forget_mirror(&self, namespace: &str, name: &str) {
        self.metrics.forget_mirror(namespace, name);
        self.forget_name("EtcdMirror", namespace, name);
    }

    fn forget_name(&self, kind: &str, namespace: &str, name: &str) {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        let uid = lock(&self.uids).remove(&key);
        if let Some(uid) = uid {
            self.forget_uid(&uid);
        }
    }

    fn forget_uid(&self, uid: &str) {
        self.succeeded(uid);
        lock(&self.asked).retain(|(cluster, _), _| cluster != uid);
        lock(&self.hashes).remove(uid);
        lock(&self.marks).retain(|(cluster, _), _| cluster != uid);
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
