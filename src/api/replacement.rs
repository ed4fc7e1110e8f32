//! `EtcdMemberReplacement`: one member makes way for another, once.
//!
//! The comments on types and fields are what `kubectl explain` prints: they are written for users.

#![expect(
    unreachable_pub,
    reason = "kube's KubeSchema derive repeats each struct, as pub, inside a function"
)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;

/// What is asked for. It cannot be changed: make another EtcdMemberReplacement, or delete this one. Deleted before the
/// old member has left, nothing remains of it; afterwards the new member still joins.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "quorate.dev",
    version = "v1alpha1",
    kind = "EtcdMemberReplacement",
    plural = "etcdmemberreplacements",
    shortname = "emr",
    category = "etcd",
    namespaced,
    doc = "One member of an etcd cluster makes way for another, once. The operator's own repairs are such objects too.",
    status = "EtcdMemberReplacementStatus",
    derive = "PartialEq",
    annotation("kustomize.toolkit.fluxcd.io/substitute", "disabled"),
    printcolumn(
        name = "Cluster",
        type_ = "string",
        json_path = ".spec.clusterRef.name",
        description = "The EtcdCluster"
    ),
    printcolumn(
        name = "Member",
        type_ = "string",
        json_path = ".status.member",
        description = "The member that is replaced"
    ),
    printcolumn(
        name = "New",
        type_ = "string",
        json_path = ".status.newMember",
        description = "The member that takes its place"
    ),
    printcolumn(
        name = "Step",
        type_ = "string",
        json_path = ".status.step",
        description = "What is being done"
    ),
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "Pending, Running, Complete, Rejected or Failed"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since the EtcdMemberReplacement was created"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        priority = 1,
        description = "What was seen, and what is done next"
    ),
    validation = rules::replacement_stays()
)]
#[x_kube(validation = rules::one_member_is_named())]
#[x_kube(validation = rules::kept_volumes_are_removed_first())]
#[x_kube(validation = rules::kept_volumes_stay_as_they_are())]
#[serde(rename_all = "camelCase")]
pub struct EtcdMemberReplacementSpec {
    /// The EtcdCluster in this namespace.
    pub cluster_ref: ClusterRef,
    /// Name of the member that is replaced, such as main-2. Exactly one of member, memberID and node is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub member: Option<String>,
    /// etcd's ID of the member that is replaced, in hexadecimal digits.
    #[serde(default, rename = "memberID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = rules::is_hexadecimal("memberID"))]
    pub member_id: Option<String>,
    /// Node whose member is replaced. It must run exactly one of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub node: Option<String>,
    /// In which order: AddFirst (the new member votes before the old one leaves; the old one must be healthy),
    /// RemoveFirst (the old one leaves first; the others must have quorum without it) or Auto (AddFirst for a member
    /// that is healthy and whose volume is not kept, else RemoveFirst). Default: Auto.
    #[serde(default)]
    pub strategy: ReplacementStrategy,
    /// What becomes of the volume: New (the new member has one of its own, and a new name), Keep (the old data are put
    /// aside and the new member uses the same volume and name) or Auto (Keep where the data are known to be bad and
    /// the volume works, else New). Default: Auto.
    #[serde(default)]
    pub volume: ReplacementVolume,
    /// The new member's volume, where it differs from the cluster's: the only way to a smaller one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<ReplacementStorage>,
    /// Where the new member runs, where that differs from the cluster's placement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<ReplacementPlacement>,
    /// How long it may take, as a duration such as 1h. After it a new member that does not vote yet is taken back if
    /// the old one is still there; if the old one has left already, it is tried again with a new volume. Default: 1h.
    #[serde(default = "default_time_limit")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = rules::is_duration("timeLimit"))]
    pub time_limit: String,
}

/// Names an EtcdCluster in the same namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
pub struct ClusterRef {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// Who goes first.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ReplacementStrategy {
    /// AddFirst where it is possible.
    #[default]
    Auto,
    /// The new member votes before the old one leaves.
    AddFirst,
    /// The old member leaves first.
    RemoveFirst,
}

/// What becomes of the volume.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ReplacementVolume {
    /// Kept where its data are bad and it works.
    #[default]
    Auto,
    /// Its data are put aside, and it is used again.
    Keep,
    /// The new member has one of its own.
    New,
}

/// The new member's volume, where it differs from the cluster's.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ReplacementStorage {
    /// Its storage class. Default: that of the cluster's spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// Its size, as a whole number with Ki, Mi, Gi or Ti. Default: that of the cluster's spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = rules::is_size("storage.size"))]
    pub size: Option<String>,
}

/// Where the new member runs.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ReplacementPlacement {
    /// Labels that its node must have, beside those of the cluster's placement. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub node_selector: BTreeMap<String, String>,
}

/// What the operator saw and did. Written by the operator only.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct EtcdMemberReplacementStatus {
    /// The generation that was looked at; -1 before the first look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pending (it waits for its turn), Running, Complete, Rejected (nothing was touched) or Failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Name of the member that is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// etcd's ID of the member that is replaced.
    #[serde(default, rename = "memberID", skip_serializing_if = "Option::is_none")]
    pub member_id: Option<String>,
    /// AddFirst or RemoveFirst, as chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<ReplacementStrategy>,
    /// Keep or New, as chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<ReplacementVolume>,
    /// Name of the member that takes its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_member: Option<String>,
    /// What is being done: Preflight, Stop, RemoveOld, AddLearner, CatchUp, Promote, or Done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// How much of the data the new member has, such as "64%".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// What was seen, and what is done next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When the operator began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it ended, well or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// The steps so far.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"], "maxItems" = 16))]
    pub steps: Vec<StepStatus>,
    /// Ready (it is complete) and, only while true, Reconciling (it waits or runs) and Stalled (it was rejected or
    /// failed).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// One step.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// Its name.
    pub name: String,
    /// When it began.
    pub started_at: String,
    /// When the next one began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}

/// Where a replacement is in its life.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Phase {
    /// It waits for its turn.
    #[default]
    Pending,
    /// It is being done.
    Running,
    /// The new member votes, and the old one is gone.
    Complete,
    /// It cannot be done; nothing was touched.
    Rejected,
    /// It was begun and could not be finished.
    Failed,
}

impl Phase {
    /// Whether nothing more will be done about it.
    pub fn is_over(self) -> bool {
        match self {
            Self::Pending | Self::Running => false,
            Self::Complete | Self::Rejected | Self::Failed => true,
        }
    }
}

fn default_time_limit() -> String {
    "1h".into()
}
