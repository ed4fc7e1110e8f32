//! `EtcdCluster`: one etcd cluster, its members' volumes, certificates and Services.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LocalObjectReference, ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An etcd cluster. `spec: {}` gives three members with TLS, 8Gi volumes and a PodDisruptionBudget.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "quorate.dev",
    version = "v1alpha1",
    kind = "EtcdCluster",
    plural = "etcdclusters",
    shortname = "ec",
    category = "etcd",
    namespaced,
    status = "EtcdClusterStatus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct EtcdClusterSpec {
    /// Number of voting members: 1, 3, 5 or 7.
    #[serde(default = "default_replicas")]
    pub replicas: i32,
    /// etcd's version, as a minor ("3.6": the newest patch that this operator knows) or a patch ("3.6.16").
    #[serde(default = "default_version")]
    pub version: String,
    /// Where the etcd image comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSpec>,
    /// The members' volumes.
    #[serde(default)]
    pub storage: StorageSpec,
    /// Largest size of the database.
    #[serde(default = "default_quota")]
    pub quota_backend: String,
    /// Automatic compaction of old revisions.
    #[serde(default)]
    pub compaction: CompactionSpec,
    /// etcd's log level.
    #[serde(default)]
    pub log_level: LogLevel,
    /// CPU and memory of the etcd container.
    #[serde(default = "default_resources")]
    pub resources: ResourceRequirements,
    /// Where members may run.
    #[serde(default)]
    pub placement: PlacementSpec,
    /// Further fields of the members' Pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplateSpec>,
    /// How long a change may make no progress before `Stalled=True/ProgressDeadlineExceeded`.
    #[serde(default = "default_progress_deadline")]
    pub progress_deadline: String,
    /// Further etcd flags, name to value, without the leading dashes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_args: BTreeMap<String, String>,
    /// Transport security.
    #[serde(default)]
    pub tls: TlsSpec,
    /// Stops the operator from changing anything of this cluster.
    #[serde(default)]
    pub paused: bool,
}

/// Where the etcd image comes from.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ImageSpec {
    /// Repository without a tag; default `gcr.io/etcd-development/etcd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Digest (`sha256:…`) that pins the image; it must be of `version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// When the kubelet pulls the image; default `IfNotPresent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
    /// Secrets of this namespace with credentials of the registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pull_secrets: Vec<LocalObjectReference>,
}

/// When the kubelet pulls an image.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// Only when the node lacks it.
    IfNotPresent,
    /// At every start.
    Always,
    /// Never.
    Never,
}

/// The members' volumes.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StorageSpec {
    /// Size of each member's volume.
    #[serde(default = "default_storage_size")]
    pub size: String,
    /// Storage class of new volumes; default: the Kubernetes cluster's default class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,
    /// What becomes of the volumes when the EtcdCluster is deleted.
    #[serde(default)]
    pub on_delete: OnDelete,
    /// Access mode of new volumes.
    #[serde(default)]
    pub access_mode: AccessMode,
}

/// What becomes of the volumes when the EtcdCluster is deleted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnDelete {
    /// They stay, with their data.
    #[default]
    Retain,
    /// They are deleted with the EtcdCluster.
    Delete,
}

/// Access mode of a member's volume.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AccessMode {
    /// One node at a time.
    #[default]
    ReadWriteOnce,
    /// One Pod at a time; for CSI volumes only.
    ReadWriteOncePod,
}

/// Automatic compaction of old revisions.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CompactionSpec {
    /// What `retention` counts.
    #[serde(default)]
    pub mode: CompactionMode,
    /// What is kept: a duration ("1h") for Periodic, a number ("10000") for Revision.
    #[serde(default = "default_retention")]
    pub retention: String,
}

/// What `compaction.retention` counts.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CompactionMode {
    /// Time.
    #[default]
    Periodic,
    /// Revisions.
    Revision,
    /// Nothing is compacted; someone else must do it.
    Off,
}

/// etcd's log level.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What changes.
    #[default]
    Info,
    /// What is unusual.
    Warn,
    /// What failed.
    Error,
}

/// Where members may run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PlacementSpec {
    /// Whether members are spread over nodes and zones.
    #[serde(default)]
    pub spread: Spread,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that members tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
}

/// Whether members are spread over nodes and zones.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Spread {
    /// Where possible.
    #[default]
    Preferred,
    /// Two members never share a node.
    Required,
    /// As the scheduler likes.
    None,
}

/// Further fields of the members' Pods: a curated part of a Pod's template.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplateSpec {
    /// Labels and annotations of the members' Pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<PodMetadata>,
    /// Priority class of the members' Pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// Seconds that a member has to stop; default 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub termination_grace_period_seconds: Option<i64>,
    /// User and group of the etcd process and its volume; default 65532.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_user: Option<i64>,
}

/// Labels and annotations of the members' Pods.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
pub struct PodMetadata {
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Transport security.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
pub struct TlsSpec {
    /// Who makes the certificates.
    #[serde(default)]
    pub mode: TlsMode,
}

/// Who makes the certificates.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TlsMode {
    /// The operator, with a certificate authority of this cluster's own.
    #[default]
    OperatorManaged,
    /// Nobody: plain text. Everyone who reaches the Pods can read and write everything.
    Disabled,
}

/// What the operator saw and did.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct EtcdClusterStatus {
    /// The newest generation of the spec that the operator has acted on; -1 before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Healthy voters of wanted ones, as "3/3".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// One sentence on how the cluster is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// Members that exist, for `/scale`.
    #[serde(default)]
    pub replicas: i32,
    /// Voters that are healthy.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Label selector of the members' Pods, for `/scale`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// etcd's cluster ID in lower hex, once it is recorded.
    #[serde(default, rename = "clusterID", skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<VersionStatus>,
    /// Name of the leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Raft term last seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raft_term: Option<i64>,
    /// Store revision last seen; written only with another change or when it moved by 10 %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// Database size and quota, as "212Mi/2Gi".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub db: Option<String>,
    /// Alarms that etcd has raised, as "NOSPACE main-1".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<String>,
    /// The first start of the cluster, written before its first child exists and never changed afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<BootstrapStatus>,
    /// The members.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub members: Vec<MemberStatus>,
    /// Conditions: Ready, AllMembersHealthy, UpToDate, QuorumSafe, CertificatesValid; and, only while true,
    /// Reconciling, Stalled, Paused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Versions asked for and used.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
pub struct VersionStatus {
    /// `spec.version` when `resolved` was chosen.
    pub requested: String,
    /// The patch that new Pods run; an operator upgrade never changes it by itself.
    pub resolved: String,
}

/// The first start of a cluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
pub struct BootstrapStatus {
    /// Rises when a first start whose outcome was never recorded is begun anew.
    pub incarnation: i32,
    /// Serials of the first members.
    pub serials: Vec<i32>,
    /// `--initial-cluster-token`.
    pub token: String,
}

/// One member.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Name of the member, its Pod and its volume.
    pub name: String,
    /// etcd's member ID in lower hex.
    #[serde(default, rename = "memberID", skip_serializing_if = "Option::is_none")]
    pub member_id: Option<String>,
    /// `leader`, `follower`, `learner` or `unknown`.
    #[serde(default)]
    pub role: String,
    /// `Healthy`, or what is wrong, as a reason.
    #[serde(default)]
    pub health: String,
    /// What is known of it, in a sentence, when it is not healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Node of the Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// etcd's version as the member reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Database size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub db_size: Option<i64>,
    /// Raft term of the member: with `raftIndex` the mark below which its volume counts as rolled back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raft_term: Option<i64>,
    /// Raft index that the member had applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raft_index: Option<i64>,
}

fn default_replicas() -> i32 {
    3
}
fn default_version() -> String {
    "3.6".into()
}
fn default_quota() -> String {
    "2Gi".into()
}
fn default_storage_size() -> String {
    "8Gi".into()
}
fn default_retention() -> String {
    "1h".into()
}
fn default_progress_deadline() -> String {
    "15m".into()
}
fn default_resources() -> ResourceRequirements {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    let requests = BTreeMap::from([
        ("cpu".to_owned(), Quantity("100m".into())),
        ("memory".to_owned(), Quantity("256Mi".into())),
    ]);
    ResourceRequirements { requests: Some(requests), ..ResourceRequirements::default() }
}

impl Default for StorageSpec {
    fn default() -> Self {
        Self {
            size: default_storage_size(),
            storage_class_name: None,
            on_delete: OnDelete::default(),
            access_mode: AccessMode::default(),
        }
    }
}

impl Default for CompactionSpec {
    fn default() -> Self {
        Self { mode: CompactionMode::default(), retention: default_retention() }
    }
}
