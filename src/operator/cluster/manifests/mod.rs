//! Kubernetes objects as JSON: each a pure function of what is desired.

pub mod network;
pub mod pod;
pub mod volume;

use serde_json::{Value, json};

use super::desired::Desired;
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

/// Whether `observed` already says all that `wanted` says. What `wanted` is silent on (defaults, other people's
/// fields) does not matter. Lists are compared item by item.
pub fn says_all(wanted: &Value, observed: &Value) -> bool {
    match (wanted, observed) {
        (Value::Object(wanted), Value::Object(observed)) => {
            wanted.iter().all(|(key, value)| observed.get(key).is_some_and(|found| says_all(value, found)))
        }
        (Value::Array(wanted), Value::Array(observed)) => {
            wanted.len() == observed.len()
                && wanted.iter().zip(observed).all(|(left, right)| says_all(left, right))
        }
        (wanted, observed) => wanted == observed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_of_the_apiserver_are_no_difference_but_a_changed_value_is() {
        let wanted = json!({"spec": {"ports": [{"port": 1}]}});
        assert!(says_all(
            &wanted,
            &json!({"spec": {"ports": [{"port": 1, "protocol": "TCP"}], "type": "ClusterIP"}})
        ));
        assert!(!says_all(&wanted, &json!({"spec": {"ports": [{"port": 2}]}})));
        assert!(!says_all(&wanted, &json!({"spec": {"ports": [{"port": 1}, {"port": 2}]}})));
        assert!(!says_all(&wanted, &json!({})));
    }
}
