//! What a look at Kubernetes and at the agent found.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ContainerState, Pod, Secret};
use kube::ResourceExt;
use serde_json::Value;

use crate::api::EtcdCluster;
use crate::api::cluster::TlsMode;
use crate::api::mirror::{EtcdMirror, MirrorSite, MirrorState};
use crate::mirror::agent::status::AgentStatus;
use crate::operator::names;

/// Everything that a plan is made of.
#[derive(Clone, Debug)]
pub struct Observed {
    /// EtcdClusters of sites, by the site's name.
    pub clusters: BTreeMap<String, ClusterSeen>,
    /// Secrets of this namespace that the spec names; one that is absent does not exist.
    pub secrets: BTreeMap<String, Fields>,
    /// Our children as they are, by kind and name. Others' objects of these names are here, too.
    pub children: BTreeMap<(&'static str, String), Value>,
    /// Pods of the agent.
    pub pods: BTreeMap<String, AgentPod>,
    /// What the agent answered, or why it did not; absent: there is none to ask.
    pub answer: Option<Result<AgentStatus, String>>,
    /// The other EtcdMirrors that this operator looks after.
    pub others: Vec<Pair>,
    /// When it was looked.
    pub now: Timestamp,
}

/// Fields of a Secret; never logged.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Fields(pub BTreeMap<String, Vec<u8>>);

impl std::fmt::Debug for Fields {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

impl Fields {
    /// Those of a Secret.
    pub fn of(secret: Secret) -> Self {
        let data = secret.data.unwrap_or_default();
        Self(data.into_iter().map(|(key, ByteString(value))| (key, value)).collect())
    }

    /// Whether a field is there and not empty.
    pub fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|value| !value.is_empty())
    }

    /// A field that is text.
    pub fn text(&self, key: &str) -> Option<String> {
        self.0.get(key).and_then(|value| String::from_utf8(value.clone()).ok())
    }
}

/// The EtcdCluster of a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterSeen {
    /// There is none of that name.
    Missing,
    /// It is in another namespace, and has not consented.
    NoConsent,
    /// The operator may not read it.
    Forbidden(String),
    /// It has not formed.
    Forming,
    /// It has.
    Formed(Cluster),
}

/// An EtcdCluster that has formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Names of its voters.
    pub members: Vec<String>,
    /// Whether connections are TLS.
    pub tls: bool,
    /// The applications' client Secret: its name, and what is in it if it exists. Absent: the EtcdCluster names none.
    pub client: Option<(String, Option<Fields>)>,
}

impl Cluster {
    /// What is known of an EtcdCluster without its Secret; `None`: it has not formed.
    pub fn of(object: &EtcdCluster) -> Option<Self> {
        let status = object.status.as_ref()?;
        status.cluster_id.as_ref()?;
        let name = object.name_any();
        let voters = status.members.iter().filter(|member| !member.joining);
        let secret = match object.spec.tls.mode {
            TlsMode::OperatorManaged => Some(names::client_certificate(&name)),
            TlsMode::Secrets => object.spec.tls.secrets.as_ref().and_then(|secrets| secrets.client.clone()),
            TlsMode::Disabled => None,
        };
        Some(Self {
            namespace: object.namespace().unwrap_or_default(),
            members: voters.map(|member| member.name.clone()).collect(),
            tls: object.spec.tls.mode != TlsMode::Disabled,
            client: secret.map(|secret| (secret, None)),
            name,
        })
    }
}

/// Whether an EtcdCluster lets mirrors of a namespace use it.
pub fn consents(cluster: &EtcdCluster, namespace: &str) -> bool {
    if cluster.namespace().as_deref() == Some(namespace) {
        return true;
    }
    let allowed = cluster.annotations().get(names::ALLOW_MIRRORS_FROM);
    allowed.is_some_and(|allowed| allowed.split(',').map(str::trim).any(|one| one == namespace || one == "*"))
}

/// A Pod of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentPod {
    /// Its UID.
    pub uid: String,
    /// Its address.
    pub ip: Option<String>,
    /// Whether its container runs, and nobody has deleted it.
    pub running: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Which file its kubelet was told of.
    pub config: Option<String>,
    /// Why no node takes it.
    pub unschedulable: Option<String>,
    /// Why its container does not start, and the kubelet's word for it.
    pub waiting: Option<(String, String)>,
    /// Its container's last end, in words.
    pub last_exit: Option<String>,
}

impl AgentPod {
    /// What a Pod says.
    pub fn of(pod: &Pod) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let container = status.container_statuses.unwrap_or_default().into_iter().next();
        let state = container.as_ref().and_then(|container| container.state.clone()).unwrap_or_default();
        let last = container.and_then(|container| container.last_state).unwrap_or_default();
        let deleting = pod.metadata.deletion_timestamp.is_some();
        let unschedulable = status.conditions.unwrap_or_default().into_iter().find(|condition| {
            condition.type_ == "PodScheduled" && condition.reason.as_deref() == Some("Unschedulable")
        });
        let waiting = state
            .waiting
            .clone()
            .map(|waiting| (waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default()));
        Self {
            uid: pod.uid().unwrap_or_default(),
            ip: status.pod_ip,
            running: state.running.is_some() && !deleting,
            deleting,
            config: pod.annotations().get(names::CONFIG).cloned(),
            unschedulable: unschedulable.map(|condition| condition.message.unwrap_or_default()),
            waiting,
            last_exit: ended(&state).or_else(|| ended(&last)),
        }
    }
}

fn ended(state: &ContainerState) -> Option<String> {
    let ended = state.terminated.as_ref()?;
    let words = ended.message.clone().unwrap_or_default();
    let words = words.trim().lines().last().unwrap_or_default().trim_end_matches('.');
    let why = ended.reason.as_deref().filter(|reason| *reason != "Error");
    let code = why.map_or_else(|| format!("with code {}", ended.exit_code), |reason| format!("({reason})"));
    Some(if words.is_empty() { format!("it ended {code}") } else { format!("it ended {code}: {words}") })
}

/// An EtcdMirror, as far as another one must know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Its name inside etcd.
    pub id: String,
    /// Both sides.
    pub sites: Vec<Place>,
    /// Name of the site that is copied from.
    pub active: String,
    /// Prefixes by the sites' names; none: the whole keyspace.
    pub mappings: Vec<BTreeMap<String, String>>,
}

/// Where a site is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the site.
    pub site: String,
    /// Namespace and name of its EtcdCluster.
    pub cluster: Option<(String, String)>,
    /// Its endpoints.
    pub endpoints: BTreeSet<String>,
    /// etcd's cluster ID, once an agent has seen it.
    pub cluster_id: Option<String>,
}

impl Pair {
    /// What there is to know of an EtcdMirror.
    pub fn of(object: &EtcdMirror) -> Self {
        let namespace = object.namespace().unwrap_or_default();
        let seen = object.status.clone().unwrap_or_default().sites;
        let id_of = |site: &str| seen.iter().find(|seen| seen.name == site)?.cluster_id.clone();
        let place = |site: &MirrorSite| Place {
            site: site.name.clone(),
            cluster: site.cluster_ref.as_ref().map(|cluster| {
                (cluster.namespace.clone().unwrap_or_else(|| namespace.clone()), cluster.name.clone())
            }),
            endpoints: site.external.iter().flat_map(|external| external.endpoints.clone()).collect(),
            cluster_id: id_of(&site.name),
        };
        Self {
            sites: object.spec.sites.iter().map(place).collect(),
            name: object.name_any(),
            created: object.creation_timestamp().map(|time| time.0),
            id: object.spec.id.clone(),
            active: object.spec.active.clone(),
            mappings: object.spec.mappings.iter().map(|mapping| mapping.prefixes.clone()).collect(),
            namespace,
        }
    }

    /// Whether an EtcdMirror copies, or will: one that is stopped stands in nobody's way.
    pub fn counts(object: &EtcdMirror) -> bool {
        object.metadata.deletion_timestamp.is_none() && object.spec.state != MirrorState::Stopped
    }
}
