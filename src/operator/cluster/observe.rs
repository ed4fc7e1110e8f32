//! Looks at Kubernetes and at etcd. Reads only, and reads anew: nothing here comes from a cache.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::desired::Desired;
use super::inspect::{certificates, inspect};
use super::observed::{Intent, MemberPod, NodeState, Nodes, Observed, Record, Request, Volume};
use crate::api::EtcdMemberReplacement;
use crate::api::cluster::EtcdClusterStatus;
use crate::api::replacement::Phase;
use crate::etcd::MemberId;
use crate::etcd::connect::Address;
use crate::etcd::flags::CLIENT_PORT;
use crate::etcd::hash::Hashes;
use crate::etcd::survey::{Alarm, Answer, Survey};
use crate::operator::context::{Context, Question, Starts};
use crate::operator::names;
use crate::operator::read::{ObserveError, read};

/// What members hold is compared so often.
const HASHES_PAUSE: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);
/// And so often while etcd says that it differs, or a member has started since.
const DOUBTED_PAUSE: jiff::SignedDuration = jiff::SignedDuration::from_secs(10);

/// One look.
pub async fn observe(
    context: &Context,
    desired: &Desired,
    status: Option<&EtcdClusterStatus>,
) -> Result<Observed, ObserveError> {
    let mut record = Record::of(status);
    let (pods, volumes, children, requests) = tokio::try_join!(
        pods(context, desired),
        volumes(context, desired),
        children(context, desired),
        requests(context, &desired.namespace, &desired.name)
    )?;
    let requests: Vec<Request> = requests.iter().map(Request::of).collect();
    let (mut credentials, (missing_storage_class, expandable_classes), missing_classes, nodes) = tokio::try_join!(
        certificates(context, desired, &record, &volumes),
        classes(context, desired, &volumes),
        missing_classes(context, &requests),
        nodes(context, desired, &pods)
    )?;
    let addresses = addresses(desired, &pods);
    let (inspection, survey) = tokio::join!(
        inspect(context, desired, status, &credentials, &addresses),
        context.etcd.survey(addresses.clone(), credentials.operator.clone()),
    );
    (credentials.presented, credentials.auth) = inspection;
    raise_marks(context, desired, &mut record, &pods, &survey);
    let mut observed = Observed {
        hashes: None,
        record,
        volumes,
        pods,
        credentials,
        children,
        missing_storage_class,
        missing_classes,
        expandable_classes,
        addresses,
        survey,
        requests,
        nodes,
        now: context.now(),
    };
    observed.hashes = hashes(context, desired, &observed).await;
    Ok(observed)
}

/// What all voters hold, as far as they were compared since they are who they are. Asked anew now and then, always while
/// somebody waits for it, and soon after one has started anew, whose disk may have changed under it: etcd 3.5 was seen to
/// compare nothing then. While not everybody answers, nobody is asked.
async fn hashes(context: &Context, desired: &Desired, observed: &Observed) -> Option<Hashes> {
    let record = &observed.record;
    let voters = record.members.iter().filter(|(name, _)| !record.joining.contains(*name));
    let voters: BTreeMap<&String, MemberId> = voters.map(|(name, id)| (name, *id)).collect();
    let of_today = |hashes: &Hashes| hashes.keys().eq(voters.values().collect::<BTreeSet<_>>());
    let starts: Starts = voters
        .iter()
        .map(|(name, id)| (*id, observed.pods.get(*name).and_then(|pod| pod.running_since)))
        .collect();
    let (known, compared) = context.hashes(&desired.uid).filter(|(hashes, _)| of_today(hashes)).unzip();
    let answers: Vec<&Answer> = observed
        .known_answers()
        .filter(|(name, answer)| voters.contains_key(name) && answer.quorum.is_some())
        .map(|(_, answer)| answer)
        .collect();
    // Another minor may hash otherwise.
    let minors: BTreeSet<_> =
        answers.iter().map(|answer| answer.version.rsplit_once('.').map(|(minor, _)| minor)).collect();
    if answers.len() < voters.len() || voters.len() < 2 || minors.len() > 1 {
        return known;
    }
    let wanted = observed.volumes.values().any(|volume| matches!(volume.intent, Some(Intent::Compare(_))));
    let doubted = observed.alarms().iter().any(|(_, alarm)| *alarm == Alarm::Corrupt);
    let restarted = compared.is_some_and(|compared| compared != starts);
    let pause = if doubted || restarted { DOUBTED_PAUSE } else { HASHES_PAUSE };
    let due = known.is_none() || context.is_due(&desired.uid, Question::Hashes, pause);
    if !wanted && !due {
        return known;
    }
    let revision = answers.iter().map(|answer| answer.revision).min()?;
    let members = observed.addresses.iter().filter(|(name, _)| voters.contains_key(name));
    let members = members.map(|(name, address)| (name.clone(), address.clone())).collect();
    let found = context.etcd.hashes(members, observed.credentials.operator.clone(), revision).await;
    let hash = |(name, id): (&&String, &MemberId)| Some((*id, *found.get(*name)?.as_ref().ok()?));
    let Some(all) = voters.iter().map(hash).collect::<Option<Hashes>>() else { return known };
    context.keep_hashes(&desired.uid, all.clone(), starts);
    Some(all)
}

/// EtcdMemberReplacements of a cluster, the oldest first.
pub(super) async fn requests(
    context: &Context,
    namespace: &str,
    cluster: &str,
) -> Result<Vec<EtcdMemberReplacement>, ObserveError> {
    let resource = ApiResource::erase::<EtcdMemberReplacement>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, &resource);
    let list = read("EtcdMemberReplacements", api.list(&ListParams::default())).await?;
    // One that was stored under another version of the CRD hides no other.
    let typed = list.items.into_iter().filter_map(|object| object.try_parse::<EtcdMemberReplacement>().ok());
    let mut found: Vec<_> = typed.filter(|request| request.spec.cluster_ref.name == cluster).collect();
    found.sort_by_key(|request| (request.creation_timestamp(), request.name_any()));
    Ok(found)
}

/// Storage classes that requests which wait ask for, and that do not exist.
async fn missing_classes(context: &Context, requests: &[Request]) -> Result<BTreeSet<String>, ObserveError> {
    let waiting = requests.iter().filter(|request| request.phase() == Phase::Pending);
    let names = waiting.filter_map(|request| request.spec.storage.as_ref()?.storage_class_name.clone());
    let names: BTreeSet<String> = names.collect();
    let api: Api<StorageClass> = Api::all(context.client.clone());
    let mut missing = BTreeSet::new();
    for name in names {
        if read(&format!("StorageClass {name}"), api.get_opt(&name)).await?.is_none() {
            missing.insert(name);
        }
    }
    Ok(missing)
}

async fn pods(context: &Context, desired: &Desired) -> Result<BTreeMap<String, MemberPod>, ObserveError> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &desired.namespace);
    let selector = ListParams::default().labels(&format!("{}={}", names::CLUSTER, desired.name));
    let list = read("Pods", api.list(&selector)).await?;
    let now = context.now();
    Ok(list
        .items
        .iter()
        .filter(|pod| is_member_name(desired, *pod))
        .map(|pod| (pod.name_any(), MemberPod::of(pod, now)))
        .collect())
}

/// The nodes of the Pods. Whoever installed the operator may keep them from it: then nobody is moved off them.
async fn nodes(
    context: &Context,
    desired: &Desired,
    pods: &BTreeMap<String, MemberPod>,
) -> Result<Nodes, ObserveError> {
    let mut found = BTreeMap::new();
    if !desired.spec.disruption.surge {
        return Ok(Ok(found));
    }
    let api: Api<Node> = Api::all(context.client.clone());
    let names: BTreeSet<&String> = pods.values().filter_map(|pod| pod.node.as_ref()).collect();
    for name in names {
        match read(&format!("Node {name}"), api.get_opt(name)).await {
            Ok(node) => found.extend(node.map(|node| (name.clone(), NodeState::of(&node)))),
            Err(ObserveError::Read { source: kube::Error::Api(status), .. }) if status.code == 403 => {
                return Ok(Err(status.message.clone()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Ok(found))
}

/// Volumes are found by name, not by label: one without our labels in a member's place must be seen too.
async fn volumes(context: &Context, desired: &Desired) -> Result<BTreeMap<String, Volume>, ObserveError> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &desired.namespace);
    let list = read("PersistentVolumeClaims", api.list(&ListParams::default())).await?;
    Ok(list
        .items
        .iter()
        .filter(|claim| is_member_name(desired, *claim))
        .map(|claim| (claim.name_any(), Volume::of(claim)))
        .collect())
}

fn is_member_name<K: ResourceExt>(desired: &Desired, object: &K) -> bool {
    names::serial(&desired.name, &object.name_any()).is_some()
}

async fn children(
    context: &Context,
    desired: &Desired,
) -> Result<BTreeMap<(&'static str, String), Value>, ObserveError> {
    let found = tokio::try_join!(
        child::<Service>(context, desired, "Service", desired.name.clone()),
        child::<Service>(context, desired, "Service", names::peers(&desired.name)),
        child::<PodDisruptionBudget>(context, desired, "PodDisruptionBudget", desired.name.clone()),
        child::<ConfigMap>(context, desired, "ConfigMap", names::connection(&desired.name)),
    )?;
    let found = [found.0, found.1, found.2, found.3];
    Ok(found.into_iter().flatten().collect())
}

type Child = ((&'static str, String), Value);

/// One child as JSON. A list item carries no kind, so it is put back in for the comparison.
async fn child<K>(
    context: &Context,
    desired: &Desired,
    kind: &'static str,
    name: String,
) -> Result<Option<Child>, ObserveError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Serialize,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), &desired.namespace);
    let found = read(&format!("{kind} {name}"), api.get_opt(&name)).await?;
    let json = found.and_then(|object| serde_json::to_value(object).ok());
    Ok(json.map(|json| ((kind, name), json)))
}

/// A class that does not exist, and those that let volumes grow. Asked only while a volume is unbound or should
/// grow, so that a quiet cluster needs no right to read storage classes.
async fn classes(
    context: &Context,
    desired: &Desired,
    volumes: &BTreeMap<String, Volume>,
) -> Result<(Option<String>, BTreeSet<String>), ObserveError> {
    let (mut missing, mut expandable) = (None, BTreeSet::new());
    let of_interest = |volume: &&Volume| !volume.bound || volume.is_smaller_than(desired);
    let names = volumes.values().filter(of_interest).filter_map(|volume| volume.storage_class.clone());
    let names: BTreeSet<String> = names.filter(|class| !class.is_empty()).collect();
    let api: Api<StorageClass> = Api::all(context.client.clone());
    for name in names {
        match read(&format!("StorageClass {name}"), api.get_opt(&name)).await? {
            None => missing = Some(name),
            Some(class) if class.allow_volume_expansion == Some(true) => drop(expandable.insert(name)),
            Some(_) => {}
        }
    }
    Ok((missing, expandable))
}

pub(super) fn addresses(desired: &Desired, pods: &BTreeMap<String, MemberPod>) -> BTreeMap<String, Address> {
    let address = |name: &String, pod: &MemberPod| {
        let ip = pod.ip.clone().filter(|_| pod.running)?;
        let dial =
            if ip.contains(':') { format!("[{ip}]:{CLIENT_PORT}") } else { format!("{ip}:{CLIENT_PORT}") };
        Some((name.clone(), Address { dial, name: desired.address(name) }))
    };
    pods.iter()
        .filter(|(_, pod)| pod.owner_uid.as_deref() == Some(desired.uid.as_str()))
        .filter_map(|(name, pod)| address(name, pod))
        .collect()
}

/// Marks come from the status, from what members answer, and from a guard's last words.
fn raise_marks(
    context: &Context,
    desired: &Desired,
    record: &mut Record,
    pods: &BTreeMap<String, MemberPod>,
    answers: &Survey,
) {
    for name in record.members.keys() {
        let stored = record.high_water.get(name).copied().unwrap_or_default();
        let mut highest = context.raise_mark(&desired.uid, name, stored);
        if let Some(Ok(answer)) = answers.get(name) {
            highest = context.raise_mark(&desired.uid, name, (answer.raft_term, answer.applied_index));
        }
        let words = pods.get(name).and_then(|pod| pod.last_exit.as_ref());
        // A refusal tells of a volume that is not trusted.
        if let Some((term, index)) =
            words.filter(|words| words.cause.is_none()).and_then(|words| words.term.zip(words.index))
        {
            highest = context.raise_mark(&desired.uid, name, (term, index));
        }
        if highest != (0, 0) {
            record.high_water.insert(name.clone(), highest);
        }
    }
}
