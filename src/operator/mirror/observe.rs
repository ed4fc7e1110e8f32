//! Looks at Kubernetes and asks the agent. Reads only, and reads anew: nothing here comes from a cache.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::desired::Desired;
use super::observed::{AgentPod, Cluster, ClusterSeen, Fields, Observed, Pair, consents};
use super::probe::probe;
use crate::api::EtcdCluster;
use crate::api::mirror::{EtcdMirror, MirrorSite, SecretRef};
use crate::mirror::agent::status::AgentStatus;
use crate::operator::context::Context;
use crate::operator::names;
use crate::operator::read::{ObserveError, read};

/// One look. `scope` is the namespace that this operator looks after; absent: all.
pub async fn observe(
    context: &Context,
    desired: &Desired,
    scope: Option<&str>,
) -> Result<Observed, ObserveError> {
    let (clusters, secrets, children, pods, others) = tokio::try_join!(
        clusters(context, desired),
        secrets(context, desired),
        children(context, desired),
        pods(context, desired),
        others(context, desired, scope),
    )?;
    let answer = ask(&pods).await;
    Ok(Observed { clusters, secrets, children, pods, answer, others, now: context.now() })
}

/// The Pod that runs is asked; a second one would be on its way out.
async fn ask(pods: &BTreeMap<String, AgentPod>) -> Option<Result<AgentStatus, String>> {
    let pod = pods.values().find(|pod| pod.running)?;
    Some(probe(pod.ip.as_ref()?).await)
}

async fn clusters(
    context: &Context,
    desired: &Desired,
) -> Result<BTreeMap<String, ClusterSeen>, ObserveError> {
    let mut seen = BTreeMap::new();
    for site in &desired.sites {
        if site.cluster_ref.is_some() {
            seen.insert(site.name.clone(), cluster(context, desired, site).await?);
        }
    }
    Ok(seen)
}

async fn cluster(
    context: &Context,
    desired: &Desired,
    site: &MirrorSite,
) -> Result<ClusterSeen, ObserveError> {
    let reference = site.cluster_ref.clone().unwrap_or_default();
    let namespace = reference.namespace.unwrap_or_else(|| desired.namespace.clone());
    let api: Api<EtcdCluster> = Api::namespaced(context.client.clone(), &namespace);
    let found =
        read(&format!("EtcdCluster {namespace}/{}", reference.name), api.get_opt(&reference.name)).await;
    let found = match found {
        Ok(found) => found,
        Err(ObserveError::Read { source: kube::Error::Api(status), .. }) if status.code == 403 => {
            return Ok(ClusterSeen::Forbidden(status.message.clone()));
        }
        Err(error) => return Err(error),
    };
    let Some(object) = found.filter(|object| object.metadata.deletion_timestamp.is_none()) else {
        return Ok(ClusterSeen::Missing);
    };
    if !consents(&object, &desired.namespace) {
        return Ok(ClusterSeen::NoConsent);
    }
    let Some(mut cluster) = Cluster::of(&object) else { return Ok(ClusterSeen::Forming) };
    if let Some((name, fields)) = &mut cluster.client {
        *fields = secret(context, &namespace, name).await?;
    }
    Ok(ClusterSeen::Formed(cluster))
}

async fn secret(context: &Context, namespace: &str, name: &str) -> Result<Option<Fields>, ObserveError> {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let found = read(&format!("Secret {namespace}/{name}"), api.get_opt(name)).await?;
    Ok(found.map(Fields::of))
}

/// Secrets that the spec names.
async fn secrets(context: &Context, desired: &Desired) -> Result<BTreeMap<String, Fields>, ObserveError> {
    let external = desired.sites.iter().filter_map(|site| site.external.as_ref());
    let of_sites = external.flat_map(|site| [site.tls_secret_ref.as_ref(), site.auth_secret_ref.as_ref()]);
    let roots = desired.spec.fence.iter().flat_map(|fence| &fence.root);
    let of_roots = roots.flat_map(|root| [root.tls_secret_ref.as_ref(), root.auth_secret_ref.as_ref()]);
    let names: BTreeSet<&String> =
        of_sites.chain(of_roots).flatten().map(|SecretRef { name }| name).collect();
    let mut found = BTreeMap::new();
    for name in names {
        let fields = secret(context, &desired.namespace, name).await?;
        found.extend(fields.map(|fields| (name.clone(), fields)));
    }
    Ok(found)
}

type Children = BTreeMap<(&'static str, String), Value>;

async fn children(context: &Context, desired: &Desired) -> Result<Children, ObserveError> {
    let (agent, active) = (names::agent(&desired.name), names::active(&desired.name));
    let found = tokio::try_join!(
        child::<Deployment>(context, desired, "Deployment", agent.clone()),
        child::<ConfigMap>(context, desired, "ConfigMap", agent),
        child::<ConfigMap>(context, desired, "ConfigMap", active),
    )?;
    let mut children: Children = [found.0, found.1, found.2].into_iter().flatten().collect();
    for site in desired.sites.iter().filter(|site| is_elsewhere(desired, site)) {
        let copy = names::site_secret(&desired.name, &site.name);
        children.extend(child::<Secret>(context, desired, "Secret", copy).await?);
    }
    Ok(children)
}

/// Whether its Secret is in another namespace, and has a copy in this one.
fn is_elsewhere(desired: &Desired, site: &MirrorSite) -> bool {
    let namespace = site.cluster_ref.as_ref().and_then(|cluster| cluster.namespace.as_ref());
    namespace.is_some_and(|namespace| *namespace != desired.namespace)
}

/// One child as JSON. An answer to a get carries no kind, so it is put back in for the comparison.
async fn child<K>(
    context: &Context,
    desired: &Desired,
    kind: &'static str,
    name: String,
) -> Result<Option<((&'static str, String), Value)>, ObserveError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Serialize,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), &desired.namespace);
    let found = read(&format!("{kind} {name}"), api.get_opt(&name)).await?;
    Ok(found.and_then(|object| serde_json::to_value(object).ok()).map(|json| ((kind, name), json)))
}

async fn pods(context: &Context, desired: &Desired) -> Result<BTreeMap<String, AgentPod>, ObserveError> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &desired.namespace);
    let selector = ListParams::default().labels(&format!("{}={}", names::MIRROR_UID, desired.uid));
    let list = read("Pods", api.list(&selector)).await?;
    Ok(list.items.iter().map(|pod| (pod.name_any(), AgentPod::of(pod))).collect())
}

/// Every other EtcdMirror that copies, as far as this operator looks after it.
async fn others(
    context: &Context,
    desired: &Desired,
    scope: Option<&str>,
) -> Result<Vec<Pair>, ObserveError> {
    let resource = ApiResource::erase::<EtcdMirror>(&());
    let api: Api<DynamicObject> = match scope {
        None => Api::all_with(context.client.clone(), &resource),
        Some(namespace) => Api::namespaced_with(context.client.clone(), namespace, &resource),
    };
    let list = read("EtcdMirrors", api.list(&ListParams::default())).await?;
    // One that was stored under another version of the CRD hides no other.
    let typed = list.items.into_iter().filter_map(|object| object.try_parse::<EtcdMirror>().ok());
    let others = typed.filter(|other| other.uid().as_deref() != Some(&desired.uid) && Pair::counts(other));
    Ok(others.map(|other| Pair::of(&other)).collect())
}
