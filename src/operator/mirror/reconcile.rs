//! The loop of one EtcdMirror: look, decide, act, tell.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use super::apply::apply;
use super::desired::Desired;
use super::observe::observe;
use super::observed::Observed;
use super::plan::{Finding, plan};
use super::status;
use crate::api::condition::{INITIAL_SYNC_COMPLETE, READY, STALLED, VERIFIED};
use crate::api::mirror::{EtcdMirror, EtcdMirrorStatus, MirrorState};
use crate::api::reason::Reason;
use crate::etcd::survey::chain;
use crate::mirror::agent::status::AgentPhase;
use crate::operator::context::{Context, REQUEST_DEADLINE};
use crate::operator::failure::ReconcileError;
use crate::operator::metrics::MirrorSample;
use crate::operator::names;
use crate::operator::write::{ApplyError, Notes, publish, refusal, write};

/// A new EtcdMirror takes two passes; more than this many in a row means that two writers fight.
const PASSES: usize = 6;
/// The agent is asked this often while all is well.
const QUIET: Duration = Duration::from_secs(5);
/// And this often while it starts, or sites are switched.
const BUSY: Duration = Duration::from_secs(1);

enum Pass {
    Again,
    Done(Action),
}

/// Called for every change of an EtcdMirror and its children, and again after the time that it returns.
pub async fn reconcile<K: ResourceExt>(
    object: Arc<K>,
    context: Arc<Context>,
    scope: Option<String>,
) -> Result<Action, ReconcileError> {
    if context.authority.check().is_err() {
        return Ok(Action::requeue(BUSY));
    }
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let resource = ApiResource::erase::<EtcdMirror>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &namespace, &resource);
    for _ in 0..PASSES {
        // Read anew: what the watch told may be old, and everything below is decided on this.
        let get = tokio::time::timeout(REQUEST_DEADLINE, api.get_opt(&name)).await;
        let Some(found) = get.map_err(|_| ReconcileError::Deadline)?.map_err(ReconcileError::Get)? else {
            context.forget_mirror(&namespace, &name);
            return Ok(Action::await_change());
        };
        let current = match found.clone().try_parse::<EtcdMirror>() {
            Ok(current) => current,
            Err(error) => return tell_unreadable(&context, &found, &error.to_string()).await,
        };
        match pass(&context, &current, scope.as_deref()).await {
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

async fn pass(context: &Context, object: &EtcdMirror, scope: Option<&str>) -> Result<Pass, ReconcileError> {
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
    // What is ours goes with it, by its owner; what is in etcd stays, for one that is created again.
    if desired.deleting {
        return Ok(Pass::Done(Action::await_change()));
    }
    let observed = observe(context, &desired, scope).await?;
    let mut plan = plan(&desired, &observed, &before);
    let applied = apply(context, &desired, &plan).await;
    // Nothing can ever be made in it again; its end is heard of.
    if applied.as_ref().is_err_and(ApplyError::namespace_ends) {
        return Ok(Pass::Done(Action::await_change()));
    }
    if let Err(error @ ApplyError::Refused { .. }) = &applied
        && !error.is_conflict()
    {
        plan.findings.insert(0, Finding::refused(&refusal(error)));
    }
    let after = status::status(&before, &desired, &observed, &plan, context.now());
    measure(context, object, &after, Some((&desired, &observed)));
    let pause = pause(&after);
    write_status(context, object, &before, after).await?;
    Ok(if applied? { Pass::Again } else { Pass::Done(Action::requeue(pause)) })
}

fn pause(status: &EtcdMirrorStatus) -> Duration {
    let moves = ["Starting", "Switching"].map(Some);
    if moves.contains(&status.phase.as_deref()) { BUSY } else { QUIET }
}

/// Writes the status if it says something new; the resourceVersion that was read is the premise, so a second
/// operator, or an edit in between, makes this look again instead.
async fn write_status(
    context: &Context,
    object: &EtcdMirror,
    before: &EtcdMirrorStatus,
    after: EtcdMirrorStatus,
) -> Result<(), ReconcileError> {
    if !status::differs(before, &after, context.now()) {
        return Ok(());
    }
    patch_status(context, object, &after).await?;
    publish(context, object, transitions(before, &after)).await;
    Ok(())
}

async fn patch_status(
    context: &Context,
    object: &EtcdMirror,
    after: &EtcdMirrorStatus,
) -> Result<(), ReconcileError> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    // The answer is the whole object, whose spec may be what cannot be read.
    let resource = ApiResource::erase::<EtcdMirror>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &namespace, &resource);
    let patch = json!({
        "apiVersion": EtcdMirror::api_version(&()),
        "kind": EtcdMirror::kind(&()),
        "metadata": {"name": name, "resourceVersion": object.resource_version()},
        "status": after,
    });
    let parameters = PatchParams::apply(names::MANAGER).force();
    let patch = Patch::Apply(patch);
    let request = api.patch_status(&name, &parameters, &patch);
    write(context, "write the status of", format!("EtcdMirror {name}"), request).await?;
    Ok(())
}

/// An EtcdMirror that was stored under another version of its CRD may hold what this operator cannot read. That is
/// told in its status; nothing that is kept there is needed again.
async fn tell_unreadable(
    context: &Context,
    found: &DynamicObject,
    why: &str,
) -> Result<Action, ReconcileError> {
    let empty = json!({"apiVersion": EtcdMirror::api_version(&()), "kind": EtcdMirror::kind(&()),
        "metadata": found.metadata, "spec": {"active": "", "sites": []}});
    let unreadable = |source| ReconcileError::Get(kube::Error::SerdeError(source));
    let object: EtcdMirror = serde_json::from_value(empty).map_err(unreadable)?;
    let why = format!(
        "spec cannot be read: {why}. It may have been written for another version of Quorate; change it."
    );
    let before = found.data.get("status").cloned().unwrap_or_default();
    let before: EtcdMirrorStatus = serde_json::from_value(before).unwrap_or_default();
    let after = status::invalid(&before, &object, &why, context.now());
    measure(context, &object, &after, None);
    write_status(context, &object, &before, after).await?;
    Ok(Action::await_change())
}

/// Events for what changed between two statuses.
fn transitions(before: &EtcdMirrorStatus, after: &EtcdMirrorStatus) -> Notes {
    let of = |status: &EtcdMirrorStatus, type_: &str| {
        let found = status.conditions.iter().find(|condition| condition.type_ == type_);
        found.map(|found| (found.status.clone(), found.reason.clone(), found.message.clone()))
    };
    let mut notes = Notes::new();
    for type_ in [READY, STALLED, INITIAL_SYNC_COMPLETE, VERIFIED] {
        let (was, is) = (of(before, type_), of(after, type_));
        let word = |state: &Option<(String, String, String)>| {
            state.as_ref().map(|(status, reason, _)| (status.clone(), reason.clone()))
        };
        // Ready repeats what Stalled says.
        let repeats =
            type_ == STALLED && is.as_ref().map(|is| &is.1) == of(after, READY).as_ref().map(|is| &is.1);
        if let (Some((_, reason, message)), true) = (&is, word(&was) != word(&is) && !repeats) {
            notes.extend(Reason::parse(reason).map(|reason| (reason, message.clone())));
        }
    }
    if let (Some(was), Some(is)) = (&before.source, &after.source)
        && was != is
    {
        notes.push((Reason::Switched, format!("{is} is active, and {was} follows it")));
    }
    if let Some(resync) = after.last_resync.as_ref().filter(|_| before.last_resync != after.last_resync) {
        let (puts, deletes) = (resync.puts, resync.deletes);
        notes.push((Reason::Resynced, format!("{}: {puts} keys put, {deletes} deleted", resync.reason)));
    }
    notes
}

/// Tells the metrics. While the mirror is told to stand still, or its sites are being switched, it has no lag to tell.
fn measure(
    context: &Context,
    object: &EtcdMirror,
    status: &EtcdMirrorStatus,
    seen: Option<(&Desired, &Observed)>,
) {
    let answer = seen.and_then(|(_, observed)| observed.answer.as_ref()?.as_ref().ok());
    let switching = answer.is_some_and(|answer| answer.phase == AgentPhase::Switching);
    let state = match object.spec.state {
        MirrorState::Running if switching => "Switching",
        MirrorState::Running => "Running",
        MirrorState::Paused => "Paused",
        MirrorState::Stopped => "Stopped",
    };
    let running = answer.filter(|_| state == "Running");
    let conditions = status.conditions.iter();
    let sample = MirrorSample {
        up: answer.is_some_and(|answer| answer.phase.copies()),
        state,
        ready: conditions.clone().any(|condition| condition.type_ == READY && condition.status == "True"),
        lag_revisions: running.and_then(|answer| answer.lag_revisions),
        lag_seconds: running.and_then(|answer| answer.lag_seconds),
        lag_objective_seconds: seen
            .and_then(|(desired, _)| i64::try_from(desired.lag_objective.as_secs()).ok()),
        history_margin: running.and_then(|answer| answer.history_margin),
        mismatched_keys: answer
            .and_then(|answer| i64::try_from(answer.verification.as_ref()?.mismatched()).ok()),
        conditions: conditions
            .map(|condition| (condition.type_.clone(), condition.status.clone(), condition.reason.clone()))
            .collect(),
    };
    context.metrics.tell_mirror(&object.namespace().unwrap_or_default(), &object.name_any(), sample);
}
