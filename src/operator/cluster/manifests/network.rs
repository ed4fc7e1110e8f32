//! Services, PodDisruptionBudget and the ConfigMap for applications.

use serde_json::{Value, json};

use super::super::desired::Desired;
use super::metadata;
use crate::etcd::flags::{CLIENT_PORT, METRICS_PORT, PEER_PORT, url};
use crate::etcd::quorum::quorum;
use crate::operator::names;

/// Everything of this file, as (kind, manifest).
pub fn all(
    desired: &Desired,
    voters: usize,
    serving: &[&str],
    authority: Option<&str>,
) -> Vec<(&'static str, Value)> {
    vec![
        ("Service", clients(desired)),
        ("Service", peers(desired)),
        ("PodDisruptionBudget", disruption_budget(desired, voters, serving)),
        ("ConfigMap", connection(desired, authority)),
    ]
}

/// Clients reach only voters whose identity is on record.
fn clients(desired: &Desired) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(desired, &desired.name),
        "spec": {
            "selector": {names::CLUSTER: desired.name, names::ROLE: names::VOTER},
            "ports": [{"name": "client", "port": CLIENT_PORT, "targetPort": CLIENT_PORT, "protocol": "TCP"}],
        },
    })
}

/// Members must find each other before they are ready, else none would ever be.
fn peers(desired: &Desired) -> Value {
    let port =
        |name: &str, port: u16| json!({"name": name, "port": port, "targetPort": port, "protocol": "TCP"});
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(desired, &names::peers(&desired.name)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": {names::CLUSTER: desired.name},
            "ports": [port("client", CLIENT_PORT), port("peer", PEER_PORT), port("metrics", METRICS_PORT)],
        },
    })
}

/// The annotation names the Pods that have the label: the disruption controller does not look again when a Pod loses
/// one (`updatePod` in pkg/controller/disruption knows the new labels only), but it does when the budget changes.
fn disruption_budget(desired: &Desired, voters: usize, serving: &[&str]) -> Value {
    let mut metadata = metadata(desired, &desired.name);
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.insert("annotations".to_owned(), json!({names::SERVING: serving.join(" ")}));
    }
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata,
        "spec": {
            // With surge nobody is evicted: the operator moves members itself.
            "minAvailable": if desired.spec.disruption.surge { voters } else { quorum(voters) },
            "selector": {"matchLabels": {names::CLUSTER: desired.name, names::ROLE: names::VOTER}},
            // A Pod that serves nobody protects nobody: it may be evicted.
            "unhealthyPodEvictionPolicy": "IfHealthyBudget",
        },
    })
}

fn connection(desired: &Desired, authority: Option<&str>) -> Value {
    let endpoint = url(desired.tls(), &format!("{}.{}.svc", desired.name, desired.namespace), CLIENT_PORT);
    let mut data = serde_json::Map::new();
    data.insert("endpoints".to_owned(), endpoint.clone().into());
    data.insert("ETCDCTL_ENDPOINTS".to_owned(), endpoint.into());
    if let Some(authority) = authority {
        data.insert("ca.crt".to_owned(), authority.into());
        if let Some(secret) = desired.client_secret() {
            data.insert("clientSecret".to_owned(), secret.into());
        }
    }
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(desired, &names::connection(&desired.name)),
        "data": data,
    })
}
