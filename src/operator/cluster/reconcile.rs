//! The loop of one EtcdCluster: look, decide, act, tell; again at once while something changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};
use serde_json::{Value, json};

use super::apply::{apply, tell};
use super::credentials::LeafState;
use super::desired::Desired;
use super::observe::{observe, requests};
use super::observed::{MemberPod, Observed, Request};
use super::plan::replacement::without_cluster;
use super::plan::{Finding, Plan, Told};
use super::status;
use crate::api::cluster::{EtcdCluster, EtcdClusterStatus};
use crate::api::condition::{READY, STALLED};
use crate::api::reason::Reason;
use crate::etcd::survey::chain;
use crate::operator::context::{Context, REQUEST_DEADLINE};
use crate::operator::failure::ReconcileError;
use crate::operator::metrics::ClusterSample;
use crate::operator::names;
use crate::operator::write::{ApplyError, Notes, publish, refusal, write};

/// A first start takes five passes; more than this many in a row means that two writers fight.
const PASSES: usize = 12;
/// Members are asked this often while all is well.
const QUIET: Duration = Duration::from_secs(5);
/// And this often while something is not.
const BUSY: Duration = Duration::from_secs(1);
/// And this often while one of a cluster that has formed starts: nothing else tells when it answers, or has the data.
const SOON: Duration = Duration::from_millis(250);
/// After this it does more than start.
const STARTING: jiff::SignedDuration = jiff::SignedDuration::from_secs(15);

enum Pass {
    Again,
    Done(Action),
}

/// Called for every change of an EtcdCluster and its children, and again after the time that it returns.
pub async fn reconcile<K: ResourceExt>(
    object: Arc<K>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    if context.authority.check().is_err() {
        return Ok(Action::requeue(BUSY));
    }
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<EtcdCluster> = Api::namespaced(context.client.clone(), &namespace);
    for _ in 0..PASSES {
        // Read anew: what the watch told may be old, and everything below is decided on this.
        let get = tokio::time::timeout(REQUEST_DEADLINE, api.get_opt(&object.name_any())).await;
        let current = match get.map_err(|_| ReconcileError::Deadline)? {
            Ok(Some(current)) => current,
            Ok(None) => {
                context.forget(&namespace, &object.name_any());
                reject_orphans(&context, &namespace, &object.name_any()).await?;
                return Ok(Action::await_change());
            }
            Err(kube::Error::SerdeError(_)) => {
                return tell_unreadable(&context, &namespace, &object.name_any()).await;
            }
            Err(error) => return Err(ReconcileError::Get(error)),
        };
        match pass(&context, &current).await {
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

async fn pass(context: &Context, object: &EtcdCluster) -> Result<Pass, ReconcileError> {
    let before = object.status.clone().unwrap_or_default();
    let desired = match Desired::of(object, &context.guard_image) {
        Ok(desired) => desired,
        Err(error) => {
            let after = status::invalid(&before, object, &error, context.now());
            measure(context, object, &after, None);
            write_status(context, object, &before, after).await?;
            return Ok(Pass::Done(Action::await_change()));
        }
    };
    let observed = observe(context, &desired, object.status.as_ref()).await?;
    let plan = (context.planner)(&desired, &observed);
    if let Some(record) = &plan.record {
        let after = status::recorded(&before, &desired, record);
        write_status(context, object, &before, after).await?;
        publish(context, object, plan_notes(&before, &plan)).await;
        return Ok(Pass::Again);
    }
    let mut findings = plan.findings.clone();
    let applied = apply(context, &desired, &observed, &plan).await;
    // Nothing can ever be made in it again; its end is heard of.
    if applied.as_ref().is_err_and(ApplyError::namespace_ends) {
        return Ok(Pass::Done(Action::await_change()));
    }
    if let Err(error @ ApplyError::Refused { .. }) = &applied
        && !error.is_conflict()
    {
        findings.insert(0, Finding::refused(&refusal(error)));
    }
    findings.extend(applied.as_ref().ok().and_then(|applied| applied.refused.clone()));
    let after = status::status(&before, &desired, &observed, &findings, context.now());
    measure(context, object, &after, Some((&desired, &observed)));
    let quiet = after.summary.as_deref() == Some("Healthy");
    write_status(context, object, &before, after).await?;
    let applied = applied?;
    publish(context, object, applied.notes).await;
    if applied.changed {
        return Ok(Pass::Again);
    }
    Ok(Pass::Done(if desired.deleting {
        Action::await_change()
    } else {
        Action::requeue(if quiet { QUIET } else { pause(&observed) })
    }))
}

/// Until the next look while something is not well.
fn pause(observed: &Observed) -> Duration {
    let starts = |(name, pod): (&String, &MemberPod)| {
        let since = pod.running_since.filter(|since| observed.now.duration_since(*since) < STARTING);
        let answers = observed.survey.get(name).is_some_and(Result::is_ok);
        since.is_some() && !(answers && pod.ready && pod.voter_label)
    };
    let formed = observed.record.cluster_id.is_some();
    if formed && observed.pods.iter().any(starts) { SOON } else { BUSY }
}

/// Requests about a cluster that does not exist: told so, since nobody else will.
pub async fn reject_orphans(context: &Context, namespace: &str, cluster: &str) -> Result<(), ReconcileError> {
    for object in requests(context, namespace, cluster).await? {
        let request = Request::of(&object);
        let Some(status) = without_cluster(&request, context.now()) else { continue };
        let Request { name, resource_version, .. } = request;
        tell(context, namespace, &Told { name, resource_version, status, note: None }).await?;
    }
    Ok(())
}

/// An EtcdCluster that was stored under another version of its CRD may hold what this operator cannot read. That is
/// told in its status, unless the status is what cannot be read: over a record of members nothing is written.
async fn tell_unreadable(context: &Context, namespace: &str, name: &str) -> Result<Action, ReconcileError> {
    let get = tokio::time::timeout(REQUEST_DEADLINE, untyped(context, namespace).get(name)).await;
    let found = get.map_err(|_| ReconcileError::Deadline)?.map_err(ReconcileError::Get)?;
    let of = |spec: &Value| {
        let mut object = found.clone();
        if let Some(fields) = object.data.as_object_mut() {
            fields.insert("spec".to_owned(), spec.clone());
        }
        serde_json::from_value::<EtcdCluster>(serde_json::to_value(object)?)
    };
    let unreadable = |source| ReconcileError::Get(kube::Error::SerdeError(source));
    let object = of(&json!({})).map_err(unreadable)?;
    let fields = found.data.get("spec").and_then(Value::as_object).into_iter().flatten();
    let mut wrong = fields.filter_map(|(field, value)| Some((field, of(&json!({field: value})).err()?)));
    let Some((field, why)) = wrong.next() else { return Ok(Action::requeue(BUSY)) };
    let why =
        format!("spec.{field}: {why}. It may have been written for another version of Quorate; change it");
    let before = object.status.clone().unwrap_or_default();
    let after = status::invalid(&before, &object, &why, context.now());
    measure(context, &object, &after, None);
    write_status(context, &object, &before, after).await?;
    Ok(Action::await_change())
}

fn untyped(context: &Context, namespace: &str) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<EtcdCluster>(&());
    Api::namespaced_with(context.client.clone(), namespace, &resource)
}

/// Writes the status if it says something new; the resourceVersion that was read is the premise, so a second
/// operator, or an edit in between, makes this look again instead.
async fn write_status(
    context: &Context,
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
    // The answer is the whole object, whose spec may be what cannot be read.
    let api = untyped(context, &object.namespace().unwrap_or_default());
    let request = api.patch_status(&name, &parameters, &patch);
    write(context, "write the status of", format!("EtcdCluster {name}"), request).await?;
    publish(context, object, transitions(before, &after)).await;
    Ok(())
}

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

/// Tells the metrics. Without a usable spec, what it alone would say is absent.
fn measure(
    context: &Context,
    object: &EtcdCluster,
    status: &EtcdClusterStatus,
    seen: Option<(&Desired, &Observed)>,
) {
    let count = |number: i32| usize::try_from(number).unwrap_or_default();
    let margin = crate::etcd::quorum::margin(count(status.replicas), count(status.ready_replicas));
    let conditions = status.conditions.iter();
    let sample = ClusterSample {
        ready: conditions.clone().any(|condition| condition.type_ == READY && condition.status == "True"),
        known: status.replicas.into(),
        healthy: status.ready_replicas.into(),
        margin: margin.and_then(|margin| i64::try_from(margin).ok()).unwrap_or(-1),
        conditions: conditions
            .map(|condition| (condition.type_.clone(), condition.status.clone(), condition.reason.clone()))
            .collect(),
        db_size_bytes: status.members.iter().filter_map(|member| member.db_size).max(),
        db_quota_bytes: seen.and_then(|(desired, _)| i64::try_from(desired.quota_bytes).ok()),
        certificate_ends: seen
            .map(|(desired, observed)| certificate_ends(desired, observed))
            .unwrap_or_default(),
    };
    context.metrics.tell(&object.namespace().unwrap_or_default(), &object.name_any(), sample);
}

/// When the first certificate of each use ends. One that is about to be made anew has no end worth telling.
fn certificate_ends(desired: &Desired, observed: &Observed) -> BTreeMap<&'static str, i64> {
    let mut ends = BTreeMap::new();
    let (operator, client) =
        (names::operator_certificate(&desired.name), names::client_certificate(&desired.name));
    for (secret, leaf) in &observed.credentials.leafs {
        let LeafState::Good(end) = leaf else { continue };
        let usage = match secret {
            secret if *secret == operator => "operator",
            secret if *secret == client => "client",
            _ => "member",
        };
        let first = ends.entry(usage).or_insert(i64::MAX);
        *first = end.as_second().min(*first);
    }
    ends
}
