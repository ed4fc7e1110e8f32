//! Clusters as the operator reports them, for tests.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::look::Look;
use crate::api::EtcdCluster;

/// When the samples are looked at: 40 days after their creation.
pub(super) fn look() -> Look {
    Look { color: false, ascii: false, width: None, now: at("2026-02-10T00:00:00Z") }
}

fn at(text: &str) -> Timestamp {
    text.parse().expect("a timestamp in a test")
}

/// A cluster with this status.
pub(super) fn cluster(name: &str, spec: Value, status: Value) -> EtcdCluster {
    serde_json::from_value(json!({
        "apiVersion": "quorate.dev/v1alpha1",
        "kind": "EtcdCluster",
        "metadata": {
            "name": name, "namespace": "default", "generation": 2, "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": spec,
        "status": status,
    }))
    .expect("an EtcdCluster in a test")
}

/// A condition that has been so for 12 minutes.
pub(super) fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({
        "type": type_, "status": status, "reason": reason, "message": message,
        "observedGeneration": 2, "lastTransitionTime": "2026-02-09T23:48:00Z",
    })
}

fn good() -> Vec<Value> {
    ["Ready", "AllMembersHealthy", "UpToDate", "QuorumSafe", "CertificatesValid"]
        .iter()
        .map(|type_| condition(type_, "True", "Healthy", ""))
        .collect()
}

/// `good()` with some replaced or added.
fn but(changes: &[Value]) -> Vec<Value> {
    let mut conditions = good();
    conditions.retain(|one| changes.iter().all(|change| change["type"] != one["type"]));
    conditions.extend(changes.iter().cloned());
    conditions
}

fn member(name: &str, role: &str, node: &str) -> Value {
    json!({
        "name": name, "memberID": "8e9e05c52164694d", "role": role, "health": "Healthy", "node": node,
        "version": "3.6.16", "dbSize": 222_298_112, "raftTerm": 12, "raftIndex": 18_300_000,
    })
}

fn down(name: &str, health: &str, message: &str) -> Value {
    json!({"name": name, "role": "unknown", "health": health, "message": message, "node": "worker-3"})
}

fn status(ready: &str, members: &[Value], conditions: &[Value]) -> Value {
    let healthy = members.iter().filter(|member| member["health"] == "Healthy").count();
    json!({
        "observedGeneration": 2, "ready": ready, "replicas": members.len(), "readyReplicas": healthy,
        "clusterID": "3f2a9c01be77d0e4", "version": {"requested": "3.6", "resolved": "3.6.16"},
        "leader": "main-1", "raftTerm": 12, "revision": 18_233_412, "db": "212Mi/2Gi",
        "members": members, "conditions": conditions,
    })
}

pub(super) fn healthy() -> EtcdCluster {
    let members = [
        member("main-0", "follower", "worker-1"),
        member("main-1", "leader", "worker-2"),
        member("main-2", "follower", "worker-3"),
    ];
    cluster("main", json!({}), status("3/3", &members, &good()))
}

pub(super) fn single() -> EtcdCluster {
    let conditions = but(&[condition(
        "QuorumSafe",
        "False",
        "OneFailureFromOutage",
        "One member: any failure is an outage.",
    )]);
    let mut status = status("1/1", &[member("main-0", "leader", "worker-1")], &conditions);
    status["leader"] = json!("main-0");
    cluster("main", json!({"replicas": 1}), status)
}

pub(super) fn degraded() -> EtcdCluster {
    let members = [
        member("main-0", "follower", "worker-1"),
        member("main-1", "leader", "worker-2"),
        down("main-2", "Unschedulable", "0/3 nodes have room"),
    ];
    let conditions = but(&[
        condition(
            "AllMembersHealthy",
            "False",
            "MemberDown",
            "main-2 is down since its node has no room for it. The operator waits for the node. Free memory on worker-3.",
        ),
        condition(
            "QuorumSafe",
            "False",
            "OneFailureFromOutage",
            "2 of 3 voters are healthy: one more failure costs quorum.",
        ),
    ]);
    let mut status = status("2/3", &members, &conditions);
    status["db"] = json!("1.7Gi/2Gi");
    cluster("main", json!({}), status)
}

pub(super) fn quorum_lost() -> EtcdCluster {
    let members = [
        member("main-0", "unknown", "worker-1"),
        down("main-1", "DataLost", "the volume is empty"),
        down("main-2", "MemberDown", "dial tcp 10.0.3.7:2379: i/o timeout"),
    ];
    let message = "1 of 3 voters answers (main-0), 2 are needed. Nothing is changed automatically. Bring back the node of main-2.";
    let conditions = but(&[
        condition("Ready", "False", "QuorumLost", message),
        condition("AllMembersHealthy", "False", "DataLost", "main-1's volume lost its data."),
        condition("QuorumSafe", "False", "QuorumLost", message),
    ]);
    let mut status = status("1/3", &members, &conditions);
    status["leader"] = Value::Null;
    status["alarms"] = json!(["NOSPACE main-0"]);
    cluster("main", json!({}), status)
}

pub(super) fn stalled() -> EtcdCluster {
    let message = "The volumes of main-0, main-1 and main-2 hold no data any more. Nothing is started empty. Restore a backup into a new EtcdCluster.";
    let members = [
        down("main-0", "DataLost", "the volume is empty"),
        down("main-1", "DataLost", "the volume is empty"),
        down("main-2", "DataLost", "the volume is empty"),
    ];
    let conditions = but(&[
        condition("Ready", "False", "DataLost", message),
        condition("AllMembersHealthy", "False", "DataLost", message),
        condition("QuorumSafe", "False", "DataLost", message),
        condition("Stalled", "True", "DataLost", message),
    ]);
    let mut status = status("0/3", &members, &conditions);
    for field in ["leader", "raftTerm", "revision", "db"] {
        status[field] = Value::Null;
    }
    cluster("main", json!({}), status)
}

pub(super) fn bootstrapping() -> EtcdCluster {
    let members = [
        json!({"name": "main-0", "role": "unknown", "health": "Bootstrapping", "node": "worker-1"}),
        json!({"name": "main-1", "role": "unknown", "health": "Bootstrapping", "message": "pulling the image", "node": "worker-2"}),
        json!({"name": "main-2", "role": "unknown", "health": "Bootstrapping", "message": "waiting for a node"}),
    ];
    let message = "Three members start for the first time: main-1 pulls its image, main-2 waits for a node.";
    let conditions = [
        condition("Ready", "False", "Bootstrapping", message),
        condition("UpToDate", "True", "Healthy", ""),
        condition("CertificatesValid", "True", "Healthy", ""),
        condition("Reconciling", "True", "Bootstrapping", message),
    ];
    let mut status = status("0/3", &members, &conditions);
    for field in ["clusterID", "leader", "raftTerm", "revision", "db"] {
        status[field] = Value::Null;
    }
    cluster("main", json!({}), status)
}

pub(super) fn paused() -> EtcdCluster {
    let mut cluster = healthy();
    cluster.spec.paused = true;
    let status = cluster.status.as_mut().expect("a status");
    let paused = condition(
        "Paused",
        "True",
        "PausedByUser",
        "spec.paused is true: the operator looks on but changes nothing. Set it to false to go on.",
    );
    status.conditions.push(serde_json::from_value(paused).expect("a condition"));
    cluster
}

pub(super) fn just_created() -> EtcdCluster {
    cluster("main", json!({}), json!({"observedGeneration": -1}))
}

/// A newer spec that the operator has not seen, a learner, and hostile text.
pub(super) fn odd() -> EtcdCluster {
    let members = [
        member("main-0", "leader", "worker-1"),
        json!({"name": "main-3", "role": "learner", "health": "Joining", "message": "\u{1b}[2Jcatching up\n64 %", "version": "3.6.16", "dbSize": -1}),
    ];
    let conditions = but(&[
        condition("UpToDate", "False", "RollOutPending", "resources changed; they apply to new Pods"),
        condition("FromTheFuture", "False", "NewThing", ""),
    ]);
    let mut status = status("1/1", &members, &conditions);
    status["observedGeneration"] = json!(1);
    status["db"] = json!("plenty");
    cluster("main", json!({}), status)
}
