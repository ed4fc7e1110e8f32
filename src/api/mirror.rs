//! `EtcdMirror`: a keyspace of one etcd, kept exactly in another.
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

use super::cluster::PodMetadata;
use super::{mirror_rules, rules};

/// What is asked for: two sites and which of them is active. Everything else has a default: the whole keyspace of the
/// active site is kept in the other one.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "quorate.dev",
    version = "v1alpha1",
    kind = "EtcdMirror",
    plural = "etcdmirrors",
    shortname = "em",
    category = "etcd",
    namespaced,
    doc = "A keyspace of one etcd, kept exactly in another. Of its two sites one is active: writes go there, and the other one follows. Changing spec.active switches them over.",
    status = "EtcdMirrorStatus",
    derive = "PartialEq",
    annotation("kustomize.toolkit.fluxcd.io/substitute", "disabled"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether the target follows the source within spec.lagObjective"
    ),
    printcolumn(
        name = "State",
        type_ = "string",
        json_path = ".status.phase",
        description = "What the mirror does"
    ),
    printcolumn(
        name = "Source",
        type_ = "string",
        json_path = ".status.source",
        description = "The active site"
    ),
    printcolumn(
        name = "Target",
        type_ = "string",
        json_path = ".status.target",
        description = "The site that follows"
    ),
    printcolumn(
        name = "Lag(Rev)",
        type_ = "integer",
        json_path = ".status.lag.revisions",
        description = "Revisions by which the target is behind, as last written to the status"
    ),
    printcolumn(
        name = "Lag(Time)",
        type_ = "string",
        json_path = ".status.lag.time",
        description = "Age of the newest state of the source that the target holds, as last written to the status"
    ),
    printcolumn(
        name = "Synced",
        type_ = "string",
        json_path = ".status.synced",
        description = "Mirrored keys, or how much of a scan is done"
    ),
    printcolumn(
        name = "Verified",
        type_ = "date",
        json_path = ".status.verification.time",
        description = "Time since both sides were compared"
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.summary",
        description = "One sentence on how the mirror is"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since the EtcdMirror was created"
    ),
    printcolumn(
        name = "Checkpoint",
        type_ = "integer",
        json_path = ".status.checkpoint",
        priority = 1,
        description = "Revision of the source that the target holds, as last written to the status"
    ),
    printcolumn(
        name = "Switch",
        type_ = "string",
        json_path = ".status.switch.step",
        priority = 1,
        description = "Step of the switch of sites that is under way"
    ),
    printcolumn(
        name = "Agent",
        type_ = "string",
        json_path = ".status.agent",
        priority = 1,
        description = "Pod that copies"
    ),
    validation = mirror_rules::name_leaves_room_for_children()
)]
#[x_kube(validation = mirror_rules::active_is_a_site())]
#[x_kube(validation = mirror_rules::ignore_site_is_a_site())]
#[x_kube(validation = mirror_rules::mappings_name_both_sites())]
#[x_kube(validation = mirror_rules::mappings_are_disjoint())]
#[x_kube(validation = mirror_rules::fence_reaches_both_sites())]
#[serde(rename_all = "camelCase")]
pub struct EtcdMirrorSpec {
    /// Both sides, by name: exactly two. The names are yours, such as those of two data centres, and cannot be changed.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"], "maxItems" = 4))]
    #[x_kube(validation = mirror_rules::sites_are_two())]
    #[x_kube(validation = mirror_rules::sites_are_not_one_cluster())]
    #[x_kube(validation = mirror_rules::sites_share_no_endpoint())]
    #[x_kube(validation = mirror_rules::sites_keep_their_names())]
    pub sites: Vec<MirrorSite>,
    /// Name of the site that writes go to; the other one follows. An edit switches the sites over: both are compared,
    /// writers of the old one are kept out (see fence), the rest is copied, the new one becomes active and the old one
    /// follows it. Set back before the new one is active, it takes the switch back.
    #[schemars(length(max = 63))]
    pub active: String,
    /// The mirror's name inside etcd, where its checkpoint is kept: small letters, digits and dashes. An EtcdMirror
    /// that is created again with the same id goes on where the one before stopped. Default: default. It cannot be
    /// changed.
    #[serde(default = "default_id")]
    #[schemars(length(max = 128))]
    #[x_kube(validation = mirror_rules::id_can_be_a_key())]
    #[x_kube(validation = mirror_rules::id_stays())]
    pub id: String,
    /// Which keys are mirrored, as pairs of prefixes. Default: the whole keyspace. An edit takes effect at once, by a
    /// scan of both sides that writes differences only; what was not mirrored before gets the rules of a first sync.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic", "maxItems" = 32))]
    pub mappings: Vec<MirrorMapping>,
    /// Regular expressions of keys that are left alone on both sides: neither copied nor deleted. Each must match the
    /// whole key. Default: none. An edit takes effect as one of mappings does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic", "maxItems" = 64), inner(length(max = 4096)))]
    #[x_kube(validation = mirror_rules::patterns_are_short())]
    pub ignore: Vec<String>,
    /// Name of the site whose names of keys the patterns of ignore are matched with, whichever site is active.
    /// Default: the site that is active when the mirror begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub ignore_site: Option<String>,
    /// Running (the target follows), Paused (nothing is written; the agent still says how far it is behind) or Stopped
    /// (there is no agent). Default: Running. An edit takes effect at once; after both the mirror goes on where it
    /// was.
    #[serde(default)]
    pub state: MirrorState,
    /// What a first sync may do to the target: AddOnly (keys that the target lacks are added; it stops with the counts
    /// if others differ) or Overwrite (keys that differ are overwritten by those of the active site). Default: AddOnly.
    #[serde(default)]
    pub initial_sync: InitialSync,
    /// Whether a first sync may delete keys in the mirrored range that only the target has. false: it stops with their
    /// number. Default: false.
    #[serde(default)]
    pub prune: bool,
    /// What becomes of keys with a lease: Strip (they are copied and do not expire in the target; when it becomes
    /// active they get a minute to be kept alive), Skip (they are not copied) or Recreate (they are copied with leases of
    /// the same IDs, which the agent keeps alive for as long as those of the active site live; when the target becomes
    /// active they end unless their owners keep them alive there). Changing it compares both sides. Default: Strip.
    #[serde(default)]
    pub leases: LeasePolicy,
    /// What becomes of others' writes to the mirrored range of the target: Report (the condition Stalled names some of
    /// the keys) or Repair (besides, a scan of both sides makes them as in the source, at most one a minute). Default:
    /// Report.
    #[serde(default)]
    pub foreign_writes: ForeignWrites,
    /// When both sides are compared key by key.
    #[serde(default)]
    pub verify: VerifySpec,
    /// How far the target may be behind.
    #[serde(default)]
    pub lag_objective: LagObjective,
    /// How writers of the old site are kept from writing while sites are switched. Without it a switch is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<FenceSpec>,
    /// How fast it may be. Default: as fast as both sides can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<MirrorLimits>,
    /// The Pod that copies. It belongs near the site that follows.
    #[serde(default)]
    pub agent: AgentSpec,
}

/// One side.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[x_kube(validation = mirror_rules::site_is_one_thing())]
#[serde(rename_all = "camelCase")]
pub struct MirrorSite {
    /// Its name, such as eqiad.
    #[schemars(length(max = 63))]
    #[x_kube(validation = mirror_rules::site_name_can_be_a_file())]
    pub name: String,
    /// An EtcdCluster of this Kubernetes cluster. Exactly one of clusterRef and external is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_ref: Option<SiteClusterRef>,
    /// Any other etcd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalSite>,
}

/// Names an EtcdCluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
pub struct SiteClusterRef {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Its namespace. An EtcdCluster of another namespace must consent, by its annotation
    /// quorate.dev/allow-mirrors-from with the EtcdMirror's namespace in it, since its data can then be read from
    /// there. Default: the EtcdMirror's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
}

/// An etcd that is no EtcdCluster here.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[x_kube(validation = mirror_rules::external_has_certificates())]
#[x_kube(validation = mirror_rules::external_uses_its_certificates())]
#[serde(rename_all = "camelCase")]
pub struct ExternalSite {
    /// Its client URLs, such as https://etcd-0.codfw.example:2379. Name all members: nothing else is dialled.
    #[schemars(extend("x-kubernetes-list-type" = "atomic", "maxItems" = 16), inner(length(max = 512)))]
    #[x_kube(validation = mirror_rules::endpoints_are_there())]
    #[x_kube(validation = mirror_rules::endpoints_are_urls())]
    #[x_kube(validation = mirror_rules::endpoints_are_alike())]
    pub endpoints: Vec<String>,
    /// Secret in this namespace with ca.crt, and tls.crt and tls.key if clients need a certificate. It is needed for
    /// https. Default: none.
    #[serde(default, rename = "tlsSecretRef", skip_serializing_if = "Option::is_none")]
    pub tls_secret_ref: Option<SecretRef>,
    /// Secret in this namespace with username and password of an etcd user. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_secret_ref: Option<SecretRef>,
}

/// Names a Secret in this namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
pub struct SecretRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Prefixes that stand for each other.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
pub struct MirrorMapping {
    /// The prefix at each site, by the site's name: both must be there. An empty prefix is the whole keyspace.
    #[schemars(extend("maxProperties" = 4))]
    #[x_kube(validation = mirror_rules::prefixes_are_not_the_mirrors())]
    pub prefixes: BTreeMap<String, String>,
}

/// Whether the target follows.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MirrorState {
    /// The target follows.
    #[default]
    Running,
    /// Nothing is written.
    Paused,
    /// There is no agent.
    Stopped,
}

/// What a first sync may do to the target.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum InitialSync {
    /// Add keys that it lacks.
    #[default]
    AddOnly,
    /// Overwrite keys that differ, too.
    Overwrite,
}

/// What becomes of keys with a lease.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LeasePolicy {
    /// They are copied and do not expire in the target.
    #[default]
    Strip,
    /// They are not copied.
    Skip,
    /// They are copied, with leases of the same IDs, which live for as long as those of the active site.
    Recreate,
}

/// What becomes of others' writes to the mirrored range of the target.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ForeignWrites {
    /// They are told.
    #[default]
    Report,
    /// They are told and made good.
    Repair,
}

/// When both sides are compared.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
pub struct VerifySpec {
    /// Scheduled (every interval) or OnRequest (only by kubectl quorate mirror verify, and before a switch of sites).
    /// Default: Scheduled.
    #[serde(default)]
    pub mode: VerifyMode,
    /// Time between the beginnings of two comparisons, as a duration of at least 10s. Default: 24h.
    #[serde(default = "default_verify_interval")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = rules::is_duration("verify.interval"))]
    pub interval: String,
}

/// When both sides are compared.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum VerifyMode {
    /// Every interval.
    #[default]
    Scheduled,
    /// Only when asked.
    OnRequest,
}

/// How far the target may be behind before Ready is False and the alert EtcdReplicationLag begins to wait. An edit
/// takes effect at once and restarts nothing.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
pub struct LagObjective {
    /// Age of the newest state of the source that the target holds, as a duration of at least 10s. It grows while
    /// either side cannot be reached, and stays near zero while nothing is written. Default: 1m.
    #[serde(default = "default_lag_time")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = rules::is_duration("lagObjective.time"))]
    pub time: String,
    /// Revisions that the target lacks, those of keys that are not mirrored included. Default: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub revisions: Option<i64>,
}

/// How writers of the old site are kept from writing while sites are switched.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[x_kube(validation = mirror_rules::fence_names_roles())]
#[x_kube(validation = mirror_rules::fence_uses_its_roles())]
pub struct FenceSpec {
    /// Roles (READWRITE permissions of the named roles become READ at the old site before the last keys are copied, and
    /// come back when it is active again; it is refused where auth is off or another role may still write) or Manual (you say that writers are stopped
    /// whenever you change active). Default: Roles.
    #[serde(default)]
    pub mode: FenceMode,
    /// Names of the etcd roles of the writers, in mode Roles. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set", "maxItems" = 32), inner(length(min = 1, max = 128)))]
    pub roles: Vec<String>,
    /// How etcd's user root is reached at each site, in mode Roles: one entry for each. At a site with clusterRef the
    /// agent always comes as root then, since the Secret of its clients is the applications'. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["site"], "maxItems" = 4))]
    pub root: Vec<RootAccess>,
}

/// How writers are kept from writing.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FenceMode {
    /// By etcd's roles.
    #[default]
    Roles,
    /// By a person.
    Manual,
}

/// How etcd's user root is reached at a site.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[x_kube(validation = mirror_rules::root_has_a_secret())]
#[serde(rename_all = "camelCase")]
pub struct RootAccess {
    /// Name of the site.
    #[schemars(length(min = 1, max = 63))]
    pub site: String,
    /// Secret in this namespace with ca.crt, and a tls.crt of the common name root with its tls.key. Default: none.
    #[serde(default, rename = "tlsSecretRef", skip_serializing_if = "Option::is_none")]
    pub tls_secret_ref: Option<SecretRef>,
    /// Secret in this namespace with username and password of root. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_secret_ref: Option<SecretRef>,
}

/// How fast it may be.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct MirrorLimits {
    /// Keys a second that are written to the target. Default: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub keys_per_second: Option<i64>,
    /// Bytes a second that are written to the target. Default: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 1_000_000_000_000_i64))]
    pub bytes_per_second: Option<i64>,
}

/// The Pod that copies. An edit restarts it; it goes on where it was.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AgentSpec {
    /// CPU and memory of its container, as in a Pod. Default: requests of 50m CPU and 64Mi memory, a limit of 256Mi
    /// memory.
    #[serde(default = "default_agent_resources")]
    #[x_kube(validation = rules::resources_are_quantities())]
    #[x_kube(validation = rules::requests_fit_limits())]
    pub resources: ResourceRequirements,
    /// Further fields of its Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<AgentPodTemplate>,
}

/// Further fields of the agent's Pod.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct AgentPodTemplate {
    /// Further labels and annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<PodMetadata>,
    /// Labels that its node must have. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that it tolerates, as in a Pod. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic", "maxItems" = 32))]
    pub tolerations: Vec<Toleration>,
    /// Its priority class. Default: the default class of the Kubernetes cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub priority_class_name: Option<String>,
    /// Secrets in this namespace with credentials of the registry of the operator's image, which it runs. Default:
    /// none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"], "maxItems" = 16))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
}

/// What the operator saw and did. Written by the operator only. Numbers that move by themselves are written at most
/// every ten seconds: live ones are in metrics.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct EtcdMirrorStatus {
    /// The newest generation of the spec that the operator has acted on; -1 before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One sentence on how the mirror is: the worst that there is to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// What the mirror does: Starting, InitialSync, Streaming, Resyncing, Switching, Waiting (for a site that does
    /// not answer), Paused, Stopped or Stalled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Name of the site that is active by etcd's own records. During a switch it stays the old one until the new one
    /// is promoted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Name of the site that follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Number of switches so far, as etcd has it on record; 1 before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<i64>,
    /// The last term in which etcd's records and spec.active named the same site. Only a change of spec.active after that
    /// asks for a switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreed_term: Option<i64>,
    /// Revision of the source that the target holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<i64>,
    /// How far the target is behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<LagStatus>,
    /// Mirrored keys, such as "1,204,331 keys", or how much of a scan is done, such as "88 %".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synced: Option<String>,
    /// The last scan that wrote differences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_resync: Option<ResyncStatus>,
    /// What would be written, and waits until its hash is given to kubectl quorate mirror resync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanStatus>,
    /// The last comparison of both sides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationStatus>,
    /// The switch of sites that is under way, or the last one.
    #[serde(default, rename = "switch", skip_serializing_if = "Option::is_none")]
    pub switch: Option<SwitchStatus>,
    /// Both sites as last seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"], "maxItems" = 4))]
    pub sites: Vec<SiteStatus>,
    /// Pod that copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// When the numbers of this status were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_at: Option<String>,
    /// What holds for the mirror. Ready (the target follows within lagObjective; absent while Paused or Stopped),
    /// InitialSyncComplete, InSync (the lag is within lagObjective), SourceReachable, TargetReachable and Verified.
    /// Only while true: HistoryRisk (the source may compact what is still needed), Reconciling (work is in progress),
    /// Stalled (a person is needed) and Paused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// How far the target is behind.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
pub struct LagStatus {
    /// Revisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revisions: Option<i64>,
    /// Age of the newest state of the source that the target holds, such as "0s" or "6m12s".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
}

/// A scan that wrote differences.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
pub struct ResyncStatus {
    /// Why.
    pub reason: String,
    /// Keys put.
    pub puts: i64,
    /// Keys deleted.
    pub deletes: i64,
    /// When it ended.
    pub time: String,
}

/// What would be written.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
pub struct PlanStatus {
    /// Approves this plan and no other.
    pub hash: String,
    /// Keys that the target lacks.
    pub adds: i64,
    /// Keys that differ.
    pub overwrites: i64,
    /// Keys that only the target has.
    pub deletes: i64,
}

/// A comparison of both sides.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
pub struct VerificationStatus {
    /// When it ended.
    pub time: String,
    /// Revision of the source.
    pub revision: i64,
    /// Keys compared.
    pub keys: i64,
    /// Keys that the target lacks.
    pub missing: i64,
    /// Keys that only the target has.
    pub extra: i64,
    /// Keys that differ.
    pub different: i64,
}

/// A switch of sites.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SwitchStatus {
    /// The site that was active.
    pub from: String,
    /// The site that becomes active.
    pub to: String,
    /// The step that is under way, or Done or Aborted.
    pub step: String,
    /// The steps so far.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic", "maxItems" = 32))]
    pub steps: Vec<SwitchStepStatus>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// Writes of the old site that the new one may lack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
}

/// One step of a switch.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SwitchStepStatus {
    /// Its name.
    pub name: String,
    /// When it began.
    pub started_at: String,
    /// When the next one began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}

/// One site.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SiteStatus {
    /// Its name.
    pub name: String,
    /// etcd's cluster ID in hexadecimal digits.
    #[serde(default, rename = "clusterID", skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Whether it answered the agent with quorum.
    #[serde(default)]
    pub reachable: bool,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

fn default_id() -> String {
    "default".into()
}
fn default_verify_interval() -> String {
    "24h".into()
}
fn default_lag_time() -> String {
    "1m".into()
}
fn default_agent_resources() -> ResourceRequirements {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    let amounts = |cpu: Option<&str>, memory: &str| {
        let cpu = cpu.map(|cpu| ("cpu".to_owned(), Quantity(cpu.into())));
        cpu.into_iter().chain([("memory".to_owned(), Quantity(memory.into()))]).collect()
    };
    ResourceRequirements {
        requests: Some(amounts(Some("50m"), "64Mi")),
        limits: Some(amounts(None, "256Mi")),
        ..ResourceRequirements::default()
    }
}

impl Default for VerifySpec {
    fn default() -> Self {
        Self { mode: VerifyMode::default(), interval: default_verify_interval() }
    }
}

impl Default for LagObjective {
    fn default() -> Self {
        Self { time: default_lag_time(), revisions: None }
    }
}

impl Default for AgentSpec {
    fn default() -> Self {
        Self { resources: default_agent_resources(), pod_template: None }
    }
}
