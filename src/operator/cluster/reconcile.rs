//! The loop of one EtcdCluster: look, decide, act, tell; again at once while something changed.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use super::apply::{ApplyError, apply, write};
use super::desired::Desired;
use super::observe::{ObserveError, observe};
use super::plan::{Finding, Plan};
use super::status;
use crate::api::cluster::{EtcdCluster, EtcdClusterStatus};
use crate::api::condition::{READY, STALLED};
use crate::api::reason::Reason;
use crate::etcd::survey::chain;
use crate::operator::context::{Context, REQUEST_DEADLINE};
use crate::operator::metrics::{ClusterLabels, ConditionLabels, MemberLabels};
use crate::operator::names;

/// A first start takes five passes; more than this many in a row means that two writers fight.
const PASSES: usize = 12;
/// Members are asked this often while all is well.
const QUIET: Duration = Duration::from_secs(5);
/// And this often while something is not.
const BUSY: Duration = Duration::from_secs(1);
/// First and longest pause after an error.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Why a reconcile ended early.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The EtcdCluster could not be read.
    #[error("cannot read the EtcdCluster")]
    Get(#[source] kube::Error),
    /// It could not be read in time.
    #[error("no answer within {}s when reading the EtcdCluster", REQUEST_DEADLINE.as_secs())]
    Deadline,
    /// Kubernetes could not be read.
    #[error("cannot look")]
    Observe(#[from] ObserveError),
    /// A write failed.
    #[error("cannot act")]
    Apply(#[from] ApplyError),
}

impl ReconcileError {
    /// The word in the metric.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Get(_) => "get",
            Self::Deadline => "deadline",
            Self::Observe(_) => "observe",
            Self::Apply(error) if error.is_conflict() => "conflict",
            Self::Apply(_) => "apply",
        }
    }
}

enum Pass {
    Again,
    Done(Action),
}

/// Called for every change of an EtcdCluster and its children, and again after the time that it returns.
pub async fn reconcile(object: Arc<EtcdCluster>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    if context.authority.check().is_err() {
        return Ok(Action::requeue(BUSY));
    }
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<EtcdCluster> = Api::namespaced(context.client.clone(), &namespace);
    for _ in 0..PASSES {
        // Read anew: what the watch told may be old, and everything below is decided on this.
        let get = tokio::time::timeout(REQUEST_DEADLINE, api.get_opt(&object.name_any())).await;
        let Some(current) = get.map_err(|_| ReconcileError::Deadline)?.map_err(ReconcileError::Get)? else {
            forget(&context, &object);
            return Ok(Action::await_change());
        };
        match pass(&context, &api, &current).await {
            Ok(Pass::Again) => {}
            Ok(Pass::Done(action)) => return Ok(action),
            Err(ReconcileError::Apply(error)) if error.is_conflict() => {
                tracing::debug!(error = %chain(&error), "somebody else was faster, looking again");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Action::requeue(BUSY))
}

async fn pass(
    context: &Context,
    api: &Api<EtcdCluster>,
    object: &EtcdCluster,
) -> Result<Pass, ReconcileError> {
    let before = object.status.clone().unwrap_or_default();
    let desired = match Desired::of(object, &context.guard_image) {
        Ok(desired) => desired,
        Err(error) => {
            let after = status::invalid(&before, object, &error, context.now());
            write_status(context, api, object, &before, after).await?;
            return Ok(Pass::Done(Action::await_change()));
        }
    };
    let observed = observe(context, &desired, object.status.as_ref()).await?;
    let plan = (context.planner)(&desired, &observed);
    if let Some(record) = &plan.record {
        let after = status::recorded(&before, &desired, record);
        write_status(context, api, object, &before, after).await?;
        publish(context, object, plan_notes(&before, &plan)).await;
        return Ok(Pass::Again);
    }
    let mut findings = plan.findings.clone();
    let applied = apply(context, &desired, &observed, &plan).await;
    if applied.as_ref().is_err_and(ApplyError::namespace_ends) {
        return Ok(Pass::Done(Action::requeue(QUIET)));
    }
    if let Err(error @ ApplyError::Refused { .. }) = &applied
        && !error.is_conflict()
    {
        findings.insert(0, Finding::refused(&chain(error)));
    }
    findings.extend(applied.as_ref().ok().and_then(|applied| applied.refused.clone()));
    let after = status::status(&before, &desired, &observed, &findings, context.now());
    measure(context, object, &after);
    let quiet = after.summary.as_deref() == Some("Healthy");
    write_status(context, api, object, &before, after).await?;
    let applied = applied?;
    publish(context, object, applied.notes).await;
    if applied.changed {
        return Ok(Pass::Again);
    }
    Ok(Pass::Done(if desired.deleting {
        Action::await_change()
    } else {
        Action::requeue(if quiet { QUIET } else { BUSY })
    }))
}

/// Writes the status if it says something new; the resourceVersion that was read is the premise, so a second
/// operator, or an edit in between, makes this look again instead.
async fn write_status(
    context: &Context,
    api: &Api<EtcdCluster>,
    object: &EtcdCluster,
    before: &EtcdClusterStatus,
    after: EtcdClusterStatus,
) -> Result<(), ReconcileError> {
    if !status::differs(before, &after) {
        return Ok(());
    }
    let name = object.name_any();
    let patch = json!({
        "apiVersion": EtcdCluster::api_version(&()),
        "kind": EtcdCluster::kind(&()),
        "metadata": {"name": name, "resourceVersion": object.resource_version()},
        "status": after,
    });
    let parameters = PatchParams::apply(names::MANAGER).force();
    let patch = Patch::Apply(patch);
    let request = api.patch_status(&name, &parameters, &patch);
    write(context, "write the status of", format!("EtcdCluster {name}"), request).await?;
    publish(context, object, transitions(before, &after)).await;
    Ok(())
}

type Notes = Vec<(Reason, String)>;

fn plan_notes(before: &EtcdClusterStatus, plan: &Plan) -> Notes {
    let mut notes: Notes =
        plan.findings.iter().map(|finding| (finding.reason, finding.message.clone())).collect();
    let Some(record) = &plan.record else { return notes };
    if let Some(id) = record.cluster_id.filter(|_| before.cluster_id.is_none()) {
        let members: Vec<&str> = record.members.keys().map(String::as_str).collect();
        let reason = if before.bootstrap.is_none() { Reason::VolumesAdopted } else { Reason::Bootstrapped };
        notes.push((
            reason,
            format!("etcd cluster {id} with the members {} is on record", members.join(", ")),
        ));
    }
    notes
}

/// Events for what changed between two statuses.
fn transitions(before: &EtcdClusterStatus, after: &EtcdClusterStatus) -> Notes {
    let of =
        |status: &EtcdClusterStatus, type_: &str| {
            status.conditions.iter().find(|condition| condition.type_ == type_).map(|condition| {
                (condition.status.clone(), condition.reason.clone(), condition.message.clone())
            })
        };
    let mut notes = Notes::new();
    for type_ in [READY, STALLED] {
        let (was, is) = (of(before, type_), of(after, type_));
        let word = |state: &Option<(String, String, String)>| {
            state.as_ref().map(|(status, reason, _)| (status.clone(), reason.clone()))
        };
        if let (Some((_, reason, message)), true) = (&is, word(&was) != word(&is)) {
            notes.extend(Reason::parse(reason).map(|reason| (reason, message.clone())));
        }
    }
    if let (Some(was), Some(is)) = (&before.leader, &after.leader)
        && was != is
    {
        notes.push((
            Reason::LeaderChanged,
            format!("leader {was} -> {is} (term {})", after.raft_term.unwrap_or_default()),
        ));
    }
    notes
}

/// Events are for people: one that cannot be published is logged, and nothing else suffers.
async fn publish(context: &Context, object: &EtcdCluster, notes: Notes) {
    for (reason, note) in notes {
        tracing::info!(%reason, note, "event");
        let event = Event {
            type_: if reason.is_good_news() { EventType::Normal } else { EventType::Warning },
            reason: reason.to_string(),
            note: Some(note.chars().take(1000).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        let reference = object.object_ref(&());
        let request = context.recorder.publish(&event, &reference);
        if let Err(error) = write(context, "publish an event of", object.name_any(), request).await {
            tracing::warn!(error = %chain(&error), "cannot publish an event");
        }
    }
}

fn labels(object: &EtcdCluster) -> ClusterLabels {
    ClusterLabels { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
}

fn measure(context: &Context, object: &EtcdCluster, status: &EtcdClusterStatus) {
    let metrics = &context.metrics;
    let cluster = labels(object);
    let ready =
        status.conditions.iter().any(|condition| condition.type_ == READY && condition.status == "True");
    metrics.ready.get_or_create(&cluster).set(i64::from(ready));
    for (state, count) in [("healthy", status.ready_replicas), ("known", status.replicas)] {
        let member = MemberLabels { namespace: cluster.namespace.clone(), name: cluster.name.clone(), state };
        metrics.members.get_or_create(&member).set(i64::from(count));
    }
    let count = |number: i32| usize::try_from(number).unwrap_or_default();
    let margin = crate::etcd::quorum::margin(count(status.replicas), count(status.ready_replicas));
    metrics
        .margin
        .get_or_create(&cluster)
        .set(margin.and_then(|margin| i64::try_from(margin).ok()).unwrap_or(-1));
    forget_conditions(context, object.status.as_ref(), &cluster);
    for condition in &status.conditions {
        metrics.conditions.get_or_create(&condition_labels(&cluster, condition)).set(1);
    }
}

fn condition_labels(
    cluster: &ClusterLabels,
    condition: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition,
) -> ConditionLabels {
    ConditionLabels {
        namespace: cluster.namespace.clone(),
        name: cluster.name.clone(),
        r#type: condition.type_.clone(),
        status: condition.status.clone(),
        reason: condition.reason.clone(),
    }
}

fn forget_conditions(context: &Context, status: Option<&EtcdClusterStatus>, cluster: &ClusterLabels) {
    for condition in status.iter().flat_map(|status| &status.conditions) {
        context.metrics.conditions.remove(&condition_labels(cluster, condition));
    }
}

/// A cluster that is gone leaves no metrics and no marks.
fn forget(context: &Context, object: &EtcdCluster) {
    let cluster = labels(object);
    forget_conditions(context, object.status.as_ref(), &cluster);
    for state in ["healthy", "known"] {
        context.metrics.members.remove(&MemberLabels {
            namespace: cluster.namespace.clone(),
            name: cluster.name.clone(),
            state,
        });
    }
    context.metrics.ready.remove(&cluster);
    context.metrics.margin.remove(&cluster);
    context.forget(&object.uid().unwrap_or_default());
}

/// After an error: at once for a lost race, else later and later, never all at the same moment.
pub fn pause_after(error: &ReconcileError, failures: u32, jitter: f64) -> Duration {
    if matches!(error, ReconcileError::Apply(error) if error.is_conflict()) {
        return Duration::ZERO;
    }
    let (first, longest) = BACK_OFF;
    first.saturating_mul(1 << failures.min(10)).min(longest).mul_f64(0.5 + jitter / 2.0)
}
