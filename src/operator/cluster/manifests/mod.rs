//! Kubernetes objects as JSON: each a pure function of what is desired.

pub mod network;
pub mod pod;
pub mod volume;

use serde_json::{Value, json};

use super::desired::Desired;
pub use crate::operator::manifest::says_all;
use crate::operator::names;

/// Labels of every child. Not among them: `app.kubernetes.io/instance`, by which Argo CD may track what is its own. A
/// volume has no owner, so an application of the cluster's name would take it for its own and prune it.
pub fn labels(desired: &Desired) -> serde_json::Map<String, Value> {
    let pairs = [
        ("app.kubernetes.io/name", "etcd"),
        ("app.kubernetes.io/managed-by", "quorate"),
        (names::CLUSTER, desired.name.as_str()),
        (names::CLUSTER_UID, desired.uid.as_str()),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect()
}

/// The reference that makes a child go with its EtcdCluster.
pub fn owner(desired: &Desired) -> Value {
    json!([{
        "apiVersion": "quorate.dev/v1alpha1",
        "kind": "EtcdCluster",
        "name": desired.name,
        "uid": desired.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

/// Metadata of a child that goes with its EtcdCluster.
pub fn metadata(desired: &Desired, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": desired.namespace,
        "labels": labels(desired),
        "ownerReferences": owner(desired),
    })
}
