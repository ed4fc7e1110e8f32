//! Carries a plan out. Every write asks first whether this replica may still write; what takes something away
//! names the very object that it is about, so a stale premise is refused by the apiserver.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use super::credentials::{LeafState, SecretState};
use super::desired::Desired;
use super::issue::{change_authority, issue_authority, issue_leaf};
use super::manifests::metadata;
use super::observed::{MemberPod, Observed};
use super::plan::{Change, Ensure, Finding, Plan, Premise, Step, Told, Unlisted};
use crate::api::GROUP;
use crate::api::reason::Reason;
use crate::etcd::MemberId;
use crate::etcd::authorize;
use crate::etcd::membership::{Call, ChangeError, Roll};
use crate::etcd::survey::{Answer, ListedMember, Silence, chain};
use crate::operator::context::Context;
use crate::operator::names;
use crate::operator::read::read;
use crate::operator::write::{ApplyError, write};

/// What was done, for events.
#[derive(Debug, Default)]
pub struct Applied {
    /// Whether anything was written: then it is worth looking again at once.
    pub changed: bool,
    /// What a person may want to read.
    pub notes: Vec<(Reason, String)>,
    /// What etcd did not let happen.
    pub refused: Option<Finding>,
}

/// Does what the plan says, in its order.
pub async fn apply(
    context: &Context,
    desired: &Desired,
    observed: &Observed,
    plan: &Plan,
) -> Result<Applied, ApplyError> {
    let mut applied = Applied::default();
    for ensure in &plan.ensure {
        match ensure {
            Ensure::Authority => create_authority(context, desired).await?,
            Ensure::Leaf(leaf) => {
                let SecretState::Usable(authority) = &observed.credentials.authority else { continue };
                let data = issue_leaf(desired, leaf, authority, context.now())?;
                let type_ = if data.contains_key("tls.crt") { "kubernetes.io/tls" } else { "Opaque" };
                patch(context, desired, "Secret", &secret(desired, &leaf.secret, type_, &data)).await?;
                if let Some(LeafState::Renew(why)) = observed.credentials.leafs.get(&leaf.secret) {
                    applied.notes.push((
                        Reason::CertificateRenewed,
                        format!("the certificates in {} were made anew: {why}", leaf.secret),
                    ));
                }
            }
            Ensure::ChangeAuthority(change) => {
                let SecretState::Usable(authority) = &observed.credentials.authority else { continue };
                let fields = change_authority(desired, authority, change, context.now())?;
                let version = &authority.resource_version;
                merge(
                    context,
                    desired,
                    "Secret",
                    &names::authority(&desired.name),
                    &fields_patch(version, &fields),
                )
                .await?;
                applied.notes.push(change.note());
            }
            Ensure::Touch { pod, uid, certificates } => {
                let annotations = json!({names::CERTIFICATES: certificates});
                let patch = json!({"metadata": {"uid": uid, "annotations": annotations}});
                merge(context, desired, "Pod", pod, &patch).await?;
            }
            Ensure::Auth(on) => match set_auth(context, desired, observed, *on).await? {
                Ok(note) => applied.notes.push(note),
                Err(refused) => {
                    applied.refused = Some(refused);
                    continue;
                }
            },
            Ensure::Apply { kind, manifest } => patch(context, desired, kind, manifest).await?,
            Ensure::Create { kind, manifest } => create(context, desired, kind, manifest).await?,
        }
        applied.changed = true;
    }
    for told in &plan.requests {
        tell(context, &desired.namespace, told).await?;
        applied.notes.extend(told.note.clone());
        applied.changed = true;
    }
    for name in &plan.forgotten {
        let api = api(context, desired, "EtcdMemberReplacement");
        let parameters = DeleteParams::default();
        write(context, "delete", format!("EtcdMemberReplacement {name}"), api.delete(name, &parameters))
            .await?;
    }
    match &plan.step {
        None => {}
        Some(Step::DeletePod(premise)) => {
            if !still_silent(context, observed, &premise.name).await {
                applied.refused = Some(changed_meanwhile());
                return Ok(applied);
            }
            let premise = delete_pod(context, desired, observed, premise).await?;
            applied.deleted(Reason::PodDeleted, "Pod", &premise);
        }
        Some(Step::DeleteVolume(premise, evidence)) => {
            if let Some(evidence) = evidence
                && let Err(finding) = still_unlisted(context, observed, evidence).await
            {
                applied.refused = Some(finding);
                return Ok(applied);
            }
            delete(context, desired, "PersistentVolumeClaim", premise).await?;
            applied.deleted(Reason::VolumeDeleted, "PersistentVolumeClaim", premise);
        }
        Some(Step::Change(change)) => make(context, observed, change, &mut applied).await?,
    }
    Ok(applied)
}

impl Applied {
    fn deleted(&mut self, reason: Reason, kind: &str, premise: &Premise) {
        self.notes.push((reason, format!("{kind} {} was deleted: {}", premise.name, premise.why)));
        self.changed = true;
    }
}

/// Asks a member that could not read with quorum once more: one that can now keeps its Pod. Any other reason for a
/// deletion shows in the Pod itself, whose resourceVersion is the premise.
async fn still_silent(context: &Context, observed: &Observed, member: &str) -> bool {
    let reads =
        |answer: &Result<Answer, Silence>| answer.as_ref().is_ok_and(|answer| answer.quorum.is_some());
    let was_silent = observed.survey.get(member).is_some_and(|answer| !reads(answer));
    let Some(address) = observed.addresses.get(member).filter(|_| was_silent) else { return true };
    let members = BTreeMap::from([(member.to_owned(), address.clone())]);
    let answers = context.etcd.survey(members, observed.credentials.operator.clone()).await;
    !answers.get(member).is_some_and(reads)
}

/// Deletes a Pod. One that ends and starts again within every look has changed whenever it is to be deleted: then the
/// planner is asked once more, about the same look with this Pod as it is now.
async fn delete_pod(
    context: &Context,
    desired: &Desired,
    observed: &Observed,
    premise: &Premise,
) -> Result<Premise, ApplyError> {
    let conflict = match delete(context, desired, "Pod", premise).await {
        Ok(()) => return Ok(premise.clone()),
        Err(error) if error.is_conflict() => error,
        Err(error) => return Err(error),
    };
    let Some(premise) = once_more(context, desired, observed, premise).await else { return Err(conflict) };
    delete(context, desired, "Pod", &premise).await?;
    Ok(premise)
}

/// The premise for the deletion of the same Pod, if that is still right. One that has become ready is looked at anew,
/// with all others.
async fn once_more(
    context: &Context,
    desired: &Desired,
    observed: &Observed,
    premise: &Premise,
) -> Option<Premise> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &desired.namespace);
    let found = read(&format!("Pod {}", premise.name), api.get_opt(&premise.name)).await.ok()??;
    let pod = MemberPod::of(&found, context.now());
    if pod.uid != premise.uid || pod.ready {
        return None;
    }
    let mut now = observed.clone();
    now.pods.insert(premise.name.clone(), pod);
    match (context.planner)(desired, &now).step {
        Some(Step::DeletePod(again)) if again.uid == premise.uid => Some(again),
        Some(_) | None => None,
    }
}

/// Reads the member list once more: the volume's member must still be none.
async fn still_unlisted(context: &Context, observed: &Observed, evidence: &Unlisted) -> Result<(), Finding> {
    let Some(address) = observed.addresses.get(&evidence.via) else { return Err(unreachable(&evidence.via)) };
    let identity = observed.credentials.operator.clone();
    let roll = context.etcd.roll(address.clone(), identity).await.map_err(|error| refused(&error))?;
    let listed = roll
        .members
        .iter()
        .any(|member| Some(member.id) == evidence.id || member.peer_urls.contains(&evidence.peer_url));
    let same = observed.record.cluster_id == Some(roll.cluster_id);
    if same && !listed { Ok(()) } else { Err(changed_meanwhile()) }
}

/// Makes the calls of a change one after the other, if list and leader still are what it was decided on.
async fn make(
    context: &Context,
    observed: &Observed,
    change: &Change,
    applied: &mut Applied,
) -> Result<(), ApplyError> {
    let Some(address) = observed.addresses.get(&change.via) else {
        applied.refused = Some(unreachable(&change.via));
        return Ok(());
    };
    let identity = || observed.credentials.operator.clone();
    let roll = match context.etcd.roll(address.clone(), identity()).await {
        Ok(roll) => roll,
        Err(error) => {
            applied.refused = Some(refused(&error));
            return Ok(());
        }
    };
    if !is_premise(change, &roll) || !still_answer(context, observed).await {
        applied.refused = Some(changed_meanwhile());
        return Ok(());
    }
    for call in &change.calls {
        context.authority.check()?;
        if let Err(error) = context.etcd.change(address.clone(), identity(), call.clone()).await {
            applied.refused = Some(refused(&error));
            break;
        }
        applied.changed |= *call != Call::Nudge;
    }
    if applied.refused.is_none() && applied.changed {
        applied.notes.push((Reason::MembershipChanged, change.why.clone()));
    }
    Ok(())
}

/// Asks everyone who answered at the look once more: a change counts on each of them, learners included, and what was
/// seen is as old as everything that this pass has written since.
async fn still_answer(context: &Context, observed: &Observed) -> bool {
    let answered = |name: &String| observed.survey.get(name).is_some_and(Result::is_ok);
    let members = observed.addresses.iter().filter(|(name, _)| answered(name));
    let members: BTreeMap<_, _> = members.map(|(name, address)| (name.clone(), address.clone())).collect();
    let now = context.etcd.survey(members, observed.credentials.operator.clone()).await;
    let what = |answer: &Answer| (answer.member_id, answer.quorum.is_some());
    now.iter().all(|(name, answer)| {
        let before = observed.survey.get(name).and_then(|answer| answer.as_ref().ok());
        before.map(what) == answer.as_ref().ok().map(what)
    })
}

/// Names are no part of it: a member publishes its own when it starts.
fn is_premise(change: &Change, roll: &Roll) -> bool {
    let rows = |members: &[ListedMember]| -> BTreeSet<(MemberId, bool, Vec<String>)> {
        members.iter().map(|member| (member.id, member.learner, member.peer_urls.clone())).collect()
    };
    roll.cluster_id == change.cluster_id
        && roll.leader == change.leader
        && rows(&roll.members) == rows(&change.members)
}

fn refused(error: &ChangeError) -> Finding {
    let message = match error {
        ChangeError::Wait(_) => format!("{error}. It is asked again every second."),
        ChangeError::Refused(_) => {
            format!("{error}. The member list is read again, and the change is decided anew.")
        }
        ChangeError::Unknown(_) => {
            format!("{error}. Whether the change was made is unknown: the member list is read again first.")
        }
    };
    Finding { reason: Reason::MembershipRefused, member: None, message, stalled: false }
}

fn unreachable(member: &str) -> Finding {
    refused(&ChangeError::Wait(format!("{member} is to be asked, and has no address")))
}

fn changed_meanwhile() -> Finding {
    refused(&ChangeError::Wait(
        "not asked, since members, leader or who answers have changed since the look".to_owned(),
    ))
}

async fn create_authority(context: &Context, desired: &Desired) -> Result<(), ApplyError> {
    let data = issue_authority(desired, context.now())?;
    let manifest = secret(desired, &names::authority(&desired.name), "Opaque", &data);
    create(context, desired, "Secret", &manifest).await
}

fn secret(desired: &Desired, name: &str, type_: &str, data: &BTreeMap<String, String>) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata(desired, name), "type": type_, "stringData": data})
}

fn api(context: &Context, desired: &Desired, kind: &str) -> Api<DynamicObject> {
    api_in(context, &desired.namespace, kind)
}

fn api_in(context: &Context, namespace: &str, kind: &str) -> Api<DynamicObject> {
    let (group, version) = match kind {
        "PodDisruptionBudget" => ("policy", "v1"),
        "EtcdMemberReplacement" => (GROUP, "v1alpha1"),
        _ => ("", "v1"),
    };
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    Api::namespaced_with(context.client.clone(), namespace, &resource)
}

/// The status of an EtcdMemberReplacement; the version that was read is the premise.
pub(super) async fn tell(context: &Context, namespace: &str, told: &Told) -> Result<(), ApplyError> {
    let Told { name, resource_version, status, note: _ } = told;
    let kind = "EtcdMemberReplacement";
    let patch = json!({
        "apiVersion": format!("{GROUP}/v1alpha1"),
        "kind": kind,
        "metadata": {"name": name, "resourceVersion": resource_version},
        "status": status,
    });
    let parameters = PatchParams::apply(names::MANAGER).force();
    let api = api_in(context, namespace, kind);
    let patch = Patch::Apply(patch);
    write(
        context,
        "write the status of",
        format!("{kind} {name}"),
        api.patch_status(name, &parameters, &patch),
    )
    .await?;
    Ok(())
}

/// Server-side apply: we say what is ours, and take it back from whoever changed it.
async fn patch(
    context: &Context,
    desired: &Desired,
    kind: &'static str,
    manifest: &Value,
) -> Result<(), ApplyError> {
    let name = name_of(manifest);
    let parameters = PatchParams::apply(names::MANAGER).force();
    let api = api(context, desired, kind);
    write(context, "apply", format!("{kind} {name}"), api.patch(&name, &parameters, &Patch::Apply(manifest)))
        .await?;
    Ok(())
}

/// The change of a Secret's fields, under the version that it was decided on; `None` removes a field.
fn fields_patch(version: &str, fields: &BTreeMap<String, Option<String>>) -> Value {
    let removed = fields.iter().filter(|(_, value)| value.is_none());
    let data: serde_json::Map<String, Value> = removed.map(|(name, _)| (name.clone(), Value::Null)).collect();
    let set: serde_json::Map<String, Value> =
        fields.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?.into()))).collect();
    json!({"metadata": {"resourceVersion": version}, "data": data, "stringData": set})
}

/// Merge patch: what it does not say stays; UID or resourceVersion in it are its premise.
async fn merge(
    context: &Context,
    desired: &Desired,
    kind: &'static str,
    name: &str,
    patch: &Value,
) -> Result<(), ApplyError> {
    let parameters = PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
    let api = api(context, desired, kind);
    write(context, "change", format!("{kind} {name}"), api.patch(name, &parameters, &Patch::Merge(patch)))
        .await?;
    Ok(())
}

/// Asks any member that serves; what etcd says against it is told, and it is asked again.
async fn set_auth(
    context: &Context,
    desired: &Desired,
    observed: &Observed,
    on: bool,
) -> Result<Result<(Reason, String), Finding>, ApplyError> {
    context.authority.check()?;
    let serves = |name: &String| {
        let answer = observed.survey.get(name).and_then(|answer| answer.as_ref().ok());
        answer.is_some_and(|answer| answer.quorum.is_some())
    };
    let address = observed.addresses.iter().find(|(name, _)| serves(name)).map(|(_, address)| address);
    let pending =
        |message: String| Finding { reason: Reason::AuthPending, member: None, message, stalled: false };
    let (Some(address), Some(identity)) = (address, &observed.credentials.operator) else {
        return Ok(Err(pending("No member serves that could be told of spec.auth.".to_owned())));
    };
    let user = names::client_certificate(&desired.name);
    let (done, note) = if on {
        let note = format!(
            "auth is on: a client's user is the common name of its certificate; {user} may use every key"
        );
        (authorize::turn_on(address, identity, &user).await, (Reason::AuthEnabled, note))
    } else {
        let note = "auth is off: every client with a certificate may do everything".to_owned();
        (authorize::turn_off(address, identity).await, (Reason::AuthDisabled, note))
    };
    Ok(match done {
        Ok(()) => Ok(note),
        Err(error) => Err(pending(format!(
            "spec.auth.enabled is {on}, but etcd's auth was not changed: {}. It is tried again.",
            chain(&error)
        ))),
    })
}

/// Creation: an object of that name that exists already is somebody's, and stays as it is.
async fn create(
    context: &Context,
    desired: &Desired,
    kind: &'static str,
    manifest: &Value,
) -> Result<(), ApplyError> {
    let name = name_of(manifest);
    let bug = |source| ApplyError::Refused {
        verb: "create",
        what: format!("{kind} {name}"),
        source: kube::Error::SerdeError(source),
    };
    let object: DynamicObject = serde_json::from_value(manifest.clone()).map_err(bug)?;
    let parameters = PostParams { field_manager: Some(names::MANAGER.to_owned()), ..PostParams::default() };
    let api = api(context, desired, kind);
    match write(context, "create", format!("{kind} {name}"), api.create(&parameters, &object)).await {
        Err(error) if error.is_conflict() => Ok(()),
        done => done.map(|_| ()),
    }
}

async fn delete(
    context: &Context,
    desired: &Desired,
    kind: &'static str,
    premise: &Premise,
) -> Result<(), ApplyError> {
    let preconditions = Preconditions {
        uid: Some(premise.uid.clone()),
        resource_version: Some(premise.resource_version.clone()),
    };
    let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    let api = api(context, desired, kind);
    write(context, "delete", format!("{kind} {}", premise.name), api.delete(&premise.name, &parameters))
        .await?;
    Ok(())
}

fn name_of(manifest: &Value) -> String {
    manifest.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned()
}
