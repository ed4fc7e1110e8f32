//! `EtcdCluster`: one etcd cluster, its members' volumes, certificates and Services.
//!
//! The comments on types and fields are what `kubectl explain` prints: they are written for users.

#![expect(
    unreachable_pub,
    reason = "kube's KubeSchema derive repeats each struct, as pub, inside a function"
)]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LocalObjectReference, ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;

/// What is asked for. Every field has a default: an empty spec gives three members with TLS, volumes of 8Gi and a
/// PodDisruptionBudget.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "quorate.dev",
    version = "v1alpha1",
    kind = "EtcdCluster",
    plural = "etcdclusters",
    shortname = "ec",
    category = "etcd",
    namespaced,
    doc = "An etcd cluster: its members, their volumes, certificates and Services. An empty spec gives three members with TLS, volumes of 8Gi and a PodDisruptionBudget.",
    status = "EtcdClusterStatus",
    derive = "PartialEq",
    annotation("kustomize.toolkit.fluxcd.io/substitute", "disabled"),
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether the cluster serves reads and writes with quorum"
    ),
    printcolumn(
        name = "Members",
        type_ = "string",
        json_path = ".status.ready",
        description = "Healthy members of wanted ones"
    ),
    printcolumn(
        name = "Leader",
        type_ = "string",
        json_path = ".status.leader",
        description = "Name of the leader"
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.version.resolved",
        description = "Release of etcd that new Pods run"
    ),
    printcolumn(
        name = "DB",
        type_ = "string",
        json_path = ".status.db",
        description = "Size of the largest member's database and its quota"
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.summary",
        description = "One sentence on how the cluster is"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since the EtcdCluster was created"
    ),
    printcolumn(
        name = "Revision",
        type_ = "integer",
        json_path = ".status.revision",
        priority = 1,
        description = "Revision of the store, as last written to the status"
    ),
    printcolumn(
        name = "Alarms",
        type_ = "string",
        json_path = ".status.alarms",
        priority = 1,
        description = "Alarms that etcd has raised"
    ),
    printcolumn(
        name = "Updated",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="UpToDate")].status"#,
        priority = 1,
        description = "Whether all members run the observed spec"
    ),
    printcolumn(
        name = "Paused",
        type_ = "boolean",
        json_path = ".spec.paused",
        priority = 1,
        description = "Whether the operator is told to change nothing"
    ),
    printcolumn(
        name = "Cluster ID",
        type_ = "string",
        json_path = ".status.clusterID",
        priority = 1,
        description = "etcd's cluster ID"
    ),
    validation = rules::name_leaves_room_for_children(),
    validation = rules::name_is_not_anothers_service(),
    validation = rules::version_skips_no_minor(),
    validation = rules::version_waits_for_members(),
    validation = rules::version_does_not_go_down()
)]
#[x_kube(validation = rules::quota_fits_the_volume())]
#[x_kube(validation = rules::auth_needs_certificates())]
#[serde(rename_all = "camelCase")]
pub struct EtcdClusterSpec {
    /// Number of voting members: 1, 3, 5 or 7. One of 3, two of 5 and three of 7 may fail without an outage; one
    /// member alone tolerates nothing. Default: 3. An edit takes effect at once: members join as learners, copy the
    /// data and then vote, two at a time, so that their number is never even for long; members leave one pair after the
    /// other, those that are down first and never the leader while another can. Nothing is changed while it could cost
    /// quorum.
    #[serde(default = "default_replicas")]
    #[x_kube(validation = rules::replicas_are_not_none())]
    #[x_kube(validation = rules::replicas_are_odd())]
    pub replicas: i32,
    /// Release of etcd: a minor such as "3.6", which means the newest patch that the operator knew when it was set,
    /// or a patch such as "3.6.16". Default: "3.6". The patch chosen for a minor is kept in
    /// status.version.resolved; upgrading the operator never changes it. An edit may go up by one minor, and down
    /// only while a member still runs the lower one. It applies to new Pods: the UpToDate condition is False with
    /// the reason RollOutPending until every Pod has been deleted and made again.
    #[serde(default = "default_version")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = rules::version_is_known())]
    #[x_kube(validation = rules::version_is_not_dangerous())]
    pub version: String,
    /// Where the etcd image comes from; upstream's registry where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSpec>,
    /// The members' volumes. Each member has one, of the member's name.
    #[serde(default)]
    pub storage: StorageSpec,
    /// Largest size of the database, as a whole number with Ki, Mi, Gi or Ti. Beyond it etcd refuses writes with
    /// the alarm NOSPACE. It must be at least 16Mi and smaller than storage.size; etcd advises 8Gi at most.
    /// Default: 2Gi. An edit applies to new Pods.
    #[serde(default = "default_quota")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = rules::is_size("quotaBackend"))]
    #[x_kube(validation = rules::quota_is_enough())]
    pub quota_backend: String,
    /// Automatic compaction, which drops old revisions so that the database does not grow for ever. An edit
    /// applies to new Pods.
    #[serde(default)]
    pub compaction: CompactionSpec,
    /// How much etcd logs: Debug, Info, Warn or Error. Default: Info. An edit applies to new Pods.
    #[serde(default)]
    pub log_level: LogLevel,
    /// CPU and memory of the etcd container, as in a Pod. etcd keeps the whole database mapped in memory, so give
    /// it more memory than quotaBackend. Default: requests of 100m CPU and 256Mi memory, no limits. An edit
    /// applies to new Pods.
    #[serde(default = "default_resources")]
    #[x_kube(validation = rules::resources_are_quantities())]
    #[x_kube(validation = rules::requests_fit_limits())]
    pub resources: ResourceRequirements,
    /// On which nodes members run. An edit applies to new Pods.
    #[serde(default)]
    pub placement: PlacementSpec,
    /// Further fields of the members' Pods. An edit applies to new Pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplateSpec>,
    /// How long the cluster may be without progress before the Stalled condition becomes True with the reason
    /// ProgressDeadlineExceeded, as a duration such as 15m or 1h30m, at least 1m. Default: 15m. The operator goes
    /// on trying after it. An edit takes effect at once and restarts nothing.
    #[serde(default = "default_progress_deadline")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = rules::deadline_is_a_duration())]
    pub progress_deadline: String,
    /// Further flags of etcd, name to value, without the leading dashes, such as heartbeat-interval: "200". Flags
    /// that the operator owns are refused with the field to use instead. A flag that the release does not know
    /// keeps etcd from starting. Default: none. An edit applies to new Pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = rules::flags_are_names())]
    #[x_kube(validation = rules::flags_are_not_owned())]
    pub extra_args: BTreeMap<String, String>,
    /// When the operator replaces a member by itself.
    #[serde(default)]
    pub repair: RepairSpec,
    /// What happens when nodes are emptied.
    #[serde(default)]
    pub disruption: DisruptionSpec,
    /// Encryption and authentication of connections.
    #[serde(default)]
    pub tls: TlsSpec,
    /// Whether etcd asks who a client is.
    #[serde(default)]
    pub auth: AuthSpec,
    /// Tells the operator to change nothing of this cluster: no Pod, volume or certificate is made, renewed or
    /// deleted while it is true. The members go on running and status is still reported. Default: false. An edit
    /// takes effect at once.
    #[serde(default)]
    pub paused: bool,
}

/// Where the etcd image comes from; upstream's registry where absent. An edit applies to new Pods.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ImageSpec {
    /// Repository without a tag; the tag is v and the release. Default: gcr.io/etcd-development/etcd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    #[x_kube(validation = rules::repository_has_no_tag())]
    pub repository: Option<String>,
    /// Digest (sha256:…) that is pulled instead of a tag. The image must be of the release that version names:
    /// the operator chooses etcd's flags by version. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    #[x_kube(validation = rules::digest_is_sha256())]
    pub digest: Option<String>,
    /// When the kubelet pulls the image. (`kubectl explain` shows the text of the type.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
    /// Secrets in this namespace with credentials of the registry. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"], "maxItems" = 16))]
    pub pull_secrets: Vec<LocalObjectReference>,
}

/// When the kubelet pulls the image: IfNotPresent (only when the node lacks it), Always (at every start) or Never.
/// Default: IfNotPresent.
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
    /// Size of each new volume, as a whole number with Ki, Mi, Gi or Ti. It must be larger than quotaBackend:
    /// etcd's log and snapshots need space too. Default: 8Gi. It can only grow. Volumes that exist are expanded where
    /// their storage class allows it; where it does not, the condition Stalled says VolumeCannotGrow.
    #[serde(default = "default_storage_size")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = rules::is_size("storage.size"))]
    #[x_kube(validation = rules::storage_only_grows())]
    pub size: String,
    /// Storage class of new volumes. Default: the default class of the Kubernetes cluster. Volumes that exist
    /// keep theirs; one that was never bound is made anew with the edited class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub storage_class_name: Option<String>,
    /// What becomes of the volumes when the EtcdCluster is deleted, and of a member's volume when it leaves the
    /// cluster because replicas was lowered: Retain keeps them with their data, Delete deletes them. Default: Retain.
    /// An edit takes effect at once, for all volumes.
    #[serde(default)]
    pub on_delete: OnDelete,
    /// Access mode of new volumes: ReadWriteOnce (one node at a time) or ReadWriteOncePod (one Pod at a time;
    /// only CSI drivers have it). Default: ReadWriteOnce. Volumes that exist keep theirs.
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
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[x_kube(validation = rules::retention_is_a_duration())]
#[x_kube(validation = rules::retention_is_a_number())]
#[serde(rename_all = "camelCase")]
pub struct CompactionSpec {
    /// What retention counts: Periodic (time), Revision (revisions) or Disabled (nothing is compacted, so somebody else
    /// must do it before the database reaches its quota). Default: Periodic.
    #[serde(default)]
    pub mode: CompactionMode,
    /// What is kept: a duration such as 1h in mode Periodic, a number of revisions such as 10000 in mode Revision.
    /// A watch that was interrupted for longer must start from a new read. Default: 1h.
    #[serde(default = "default_retention")]
    #[schemars(length(max = 16))]
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
    Disabled,
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
    /// Whether members are spread over nodes and zones: Preferred (where possible), Required (two members never
    /// share a node; one that finds no free node waits) or None (as the scheduler likes). Default: Preferred.
    #[serde(default)]
    pub spread: Spread,
    /// Labels that a node must have. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that members tolerate, as in a Pod. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic", "maxItems" = 32))]
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

/// Further fields of the members' Pods. An edit applies to new Pods.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplateSpec {
    /// Further labels and annotations of the members' Pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<PodMetadata>,
    /// Priority class of the members' Pods. Default: the default class of the Kubernetes cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub priority_class_name: Option<String>,
    /// Seconds that a member has to hand over, flush and stop, from 30 to 3600. Default: 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::grace_is_enough())]
    pub termination_grace_period_seconds: Option<i64>,
    /// User ID and group ID of the etcd process, and group of the volume's files. Default: 65532.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::user_is_not_root())]
    pub run_as_user: Option<i64>,
}

/// Further labels and annotations of the members' Pods.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
pub struct PodMetadata {
    /// Further labels of the members' Pods; not those of quorate.dev or app.kubernetes.io. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = rules::keys_are_free("labels"))]
    pub labels: BTreeMap<String, String>,
    /// Further annotations of the members' Pods; not those of quorate.dev or app.kubernetes.io. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = rules::keys_are_free("annotations"))]
    pub annotations: BTreeMap<String, String>,
}

/// Encryption and authentication of connections.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[x_kube(validation = rules::secrets_are_named())]
#[x_kube(validation = rules::secrets_are_used())]
#[serde(rename_all = "camelCase")]
pub struct TlsSpec {
    /// Who makes the certificates: OperatorManaged (the operator, with authorities of this cluster's own; clients
    /// use the Secret <name>-client), Secrets (you: tls.secrets names Secrets that the operator mounts and checks,
    /// and never writes) or Disabled (nobody: everyone who reaches the Pods can read and write everything).
    /// Default: OperatorManaged. It cannot be changed.
    #[serde(default)]
    #[x_kube(validation = rules::tls_mode_stays())]
    pub mode: TlsMode,
    /// How long the operator's certificates live, in mode OperatorManaged.
    #[serde(default)]
    pub rotation: RotationSpec,
    /// Your certificates, in mode Secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<TlsSecrets>,
}

/// Who makes the certificates.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TlsMode {
    /// The operator, with certificate authorities of this cluster's own.
    #[default]
    OperatorManaged,
    /// The user, in Secrets that the spec names.
    Secrets,
    /// Nobody: plain text. Everyone who reaches the Pods can read and write everything.
    Disabled,
}

/// How long the operator's certificates live, as durations such as 720h. Members take renewed certificates without a
/// restart. An edit takes effect when the next certificate is made. A Kubernetes node may need two minutes to hand a
/// renewed certificate to its Pods, so lives below some minutes are for tests.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[x_kube(validation = rules::rotation_is_of_durations())]
#[x_kube(validation = rules::rotation_leaves_time())]
#[serde(rename_all = "camelCase")]
pub struct RotationSpec {
    /// How long before its end a certificate is renewed, at least 10s. It is also the time that applications have to
    /// take up a renewed client certificate: the one before it, and its authority, are accepted for at least as
    /// long. Default: 720h.
    #[serde(default = "default_renew_before")]
    #[schemars(length(max = 16))]
    pub renew_before: String,
    /// Life of the certificates of members, of the operator and of applications: at least twice renewBefore.
    /// Default: 8760h.
    #[serde(default = "default_leaf_life")]
    #[schemars(length(max = 16))]
    pub leaf_life: String,
    /// Life of the authorities: at least four times renewBefore and at least leafLife. Three times renewBefore before
    /// their end, or when the annotation quorate.dev/rotate-authority is set to a new value, they are replaced:
    /// first all certificates, renewBefore later the trust in the old ones, for which members are restarted one at a
    /// time. Default: 87600h.
    #[serde(default = "default_authority_life")]
    #[schemars(length(max = 16))]
    pub authority_life: String,
}

/// Names of Secrets in this namespace, in mode Secrets. Each has the keys tls.crt, tls.key and ca.crt, as those of
/// cert-manager do. Members take a changed certificate without a restart, but a changed ca.crt only when they start:
/// change it to old and new certificates together first, and delete the Pods one at a time. An edit of a name applies
/// to new Pods.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct TlsSecrets {
    /// Certificate that members serve clients with, for servers and for clients, with the names
    /// *.<name>-peers.<namespace>.svc, <name>.<namespace>.svc and localhost; ca.crt holds the authorities of clients.
    #[schemars(length(min = 1, max = 253))]
    pub server: String,
    /// Certificate that members use among themselves, for servers and for clients, with the names
    /// *.<name>-peers.<namespace>.svc and, because members look up who calls, the same with the domain of the
    /// Kubernetes cluster, *.<name>-peers.<namespace>.svc.cluster.local; ca.crt holds the authorities of members.
    /// Whoever has a certificate of theirs can become a member, so they should sign nothing else.
    #[schemars(length(min = 1, max = 253))]
    pub peer: String,
    /// Client certificate of the operator; ca.crt holds the authorities of servers. With auth its common name must
    /// be root.
    #[schemars(length(min = 1, max = 253))]
    pub operator: String,
    /// Client certificate of applications, which kubectl quorate ctl uses. Members do not need it. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub client: Option<String>,
}

/// Whether etcd asks who a client is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct AuthSpec {
    /// Whether etcd's users and roles decide who may read and write what. A client's user is the common name of its
    /// certificate. When it is turned on, the operator makes the user root (itself) and, if they do not exist, the
    /// user and the role <name>-client, which may read and write every key, for the certificate in the Secret
    /// <name>-client; it never changes them afterwards. Other users are yours to make. Turned off, everyone with a
    /// certificate may do everything again; users and roles stay. Default: false. An edit takes effect at once and
    /// restarts nothing.
    #[serde(default)]
    pub enabled: bool,
}

/// When the operator replaces a member by itself. Each repair is an EtcdMemberReplacement with the label
/// quorate.dev/created-by: repair. None begins without a quorum of healthy voters beside the member, or while another
/// replacement runs. An edit takes effect at once.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RepairSpec {
    /// Auto (the operator repairs) or Manual (it only says what it would do). Default: Auto.
    #[serde(default)]
    pub mode: RepairMode,
    /// How long a member may be down, with nothing known to be wrong with its data, before it is replaced, as a
    /// duration of at least 10s. Data that are proven to be lost, damaged or older than they were are repaired at
    /// once. Default: 10m.
    #[serde(default = "default_unhealthy_after")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = rules::is_duration("repair.unhealthyAfter"))]
    pub unhealthy_after: String,
    /// How many members that were merely down may be replaced within an hour; 0 replaces none. Default: 3.
    #[serde(default = "default_max_per_hour")]
    #[schemars(range(min = 0, max = 100))]
    pub max_per_hour: i32,
    /// How long what a replaced member left is kept, as a duration of at least 10s: its volume (the annotation
    /// quorate.dev/delete-after says until when; remove it to keep the volume for good), or, where it began anew on its
    /// volume, the folder bak-N there. A volume goes only while all members are healthy. Default: 24h. An edit
    /// applies to the next replacement.
    #[serde(default = "default_keep_old_data")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = rules::is_duration("repair.keepOldData"))]
    pub keep_old_data: String,
}

/// What happens when nodes are emptied (kubectl drain, an upgrade of nodes).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
pub struct DisruptionSpec {
    /// false: the PodDisruptionBudget lets one member at a time be evicted, as long as the others have quorum; one
    /// whose volume is bound to its node waits for that node. true: it lets nobody be evicted. Instead, a member
    /// whose node is cordoned, or no longer fits spec.placement, is exchanged for one on another node, which votes
    /// before the old one leaves; kubectl drain waits for that. It needs room for one member more. Default: false.
    /// An edit takes effect at once.
    #[serde(default)]
    pub surge: bool,
}

/// Whether the operator repairs.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RepairMode {
    /// It repairs.
    #[default]
    Auto,
    /// It says what it would do.
    Manual,
}

/// What the operator saw and did. Written by the operator only.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct EtcdClusterStatus {
    /// The newest generation of the spec that the operator has acted on; -1 before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Healthy members of wanted ones, such as "3/3".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// One sentence on how the cluster is: the worst that there is to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// Number of members that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Number of voting members that are healthy.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Label selector of the members' Pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// etcd's cluster ID in hexadecimal digits, once the cluster is on record. It never changes.
    #[serde(default, rename = "clusterID", skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Release of etcd that was asked for, and the one that is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<VersionStatus>,
    /// Name of the leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Term of the leader. It rises with every election.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raft_term: Option<i64>,
    /// Revision of the store. It is written only together with another change or when it moved by a tenth: live
    /// numbers are in etcd's metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// Size of the largest member's database and its quota, such as "212Mi/2Gi".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub db: Option<String>,
    /// Alarms that etcd has raised, such as "NOSPACE main-1".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub alarms: Vec<String>,
    /// The first start of the cluster, written before its first Pod exists and used unchanged until the cluster is
    /// on record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<BootstrapStatus>,
    /// Number of the next member that joins. It only rises, so that no two members ever have the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_serial: Option<i32>,
    /// The members.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"], "maxItems" = 64))]
    pub members: Vec<MemberStatus>,
    /// Whether etcd asks who a client is, as last seen: Enabled or Disabled. Absent while spec.auth was never used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<String>,
    /// The certificate authorities, in tls.mode OperatorManaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<AuthorityStatus>,
    /// What holds for the cluster. Always there: Ready (it serves with quorum), AllMembersHealthy, UpToDate (all
    /// members run the observed spec), QuorumSafe (one more member may fail) and, with TLS, CertificatesValid.
    /// Only while true: Reconciling (work is in progress), Stalled (a person is needed), Paused and
    /// ForeignVolumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Release of etcd that was asked for, and the one that is used.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
pub struct VersionStatus {
    /// spec.version when resolved was chosen.
    pub requested: String,
    /// The release that new Pods run. Upgrading the operator never changes it.
    pub resolved: String,
}

/// The certificate authorities.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct AuthorityStatus {
    /// When the authorities that sign now end.
    pub ends: String,
    /// How they are being replaced: Overlap (all certificates are of the new ones, the old ones are still trusted) or
    /// Retiring (members are restarted one at a time to trust only the new ones). Absent while they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<String>,
    /// The newest value of the annotation quorate.dev/rotate-authority that was acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handled_request: Option<String>,
}

/// The first start of the cluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
pub struct BootstrapStatus {
    /// How often a first start that could not go on was begun anew.
    pub incarnation: i32,
    /// Numbers of the first members: 0 stands for the member <name>-0.
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub serials: Vec<i32>,
    /// Token that makes this cluster's IDs differ from every other cluster's.
    pub token: String,
}

/// One member.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Name of the member, of its Pod and of its volume.
    pub name: String,
    /// etcd's member ID in hexadecimal digits.
    #[serde(default, rename = "memberID", skip_serializing_if = "Option::is_none")]
    pub member_id: Option<String>,
    /// leader, follower, learner or unknown.
    #[serde(default)]
    pub role: String,
    /// Whether it is joining as a learner: it copies the data, and does not vote yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub joining: bool,
    /// Healthy, or a reason that says what is wrong.
    #[serde(default)]
    pub health: String,
    /// Since when it has not been healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy_since: Option<String>,
    /// What is known of it, in a sentence, while it is not healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Node on which its Pod runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Release of etcd that the member reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Size of its database in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub db_size: Option<i64>,
    /// Raft term that the member had reached. With raftIndex it is the mark below which its volume counts as
    /// rolled back.
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
fn default_renew_before() -> String {
    "720h".into()
}
fn default_leaf_life() -> String {
    "8760h".into()
}
fn default_authority_life() -> String {
    "87600h".into()
}
fn default_unhealthy_after() -> String {
    "10m".into()
}
fn default_max_per_hour() -> i32 {
    3
}
fn default_keep_old_data() -> String {
    "24h".into()
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

impl Default for RotationSpec {
    fn default() -> Self {
        Self {
            renew_before: default_renew_before(),
            leaf_life: default_leaf_life(),
            authority_life: default_authority_life(),
        }
    }
}

impl Default for RepairSpec {
    fn default() -> Self {
        Self {
            mode: RepairMode::default(),
            unhealthy_after: default_unhealthy_after(),
            max_per_hour: default_max_per_hour(),
            keep_old_data: default_keep_old_data(),
        }
    }
}

impl Default for CompactionSpec {
    fn default() -> Self {
        Self { mode: CompactionMode::default(), retention: default_retention() }
    }
}
