//! Kubernetes objects of a mirror as JSON: each a pure function of what is desired.

use k8s_openapi::ByteString;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::desired::Desired;
use super::observed::Fields;
use crate::api::mirror::AgentPodTemplate;
use crate::operator::manifest::says_all;
use crate::operator::names;

/// Port of an agent's `/status`, `/metrics`, `/livez` and `/readyz`.
pub const AGENT_PORT: u16 = 8080;
/// Where the agent finds its file.
const CONFIG_DIR: &str = "/etc/quorate/mirror";
/// Name of the file.
pub const CONFIG_FILE: &str = "config.yaml";
/// User and group of the agent, as of the operator.
const USER: i64 = 65532;
/// It ends within two seconds; after this it is made to.
const GRACE_SECONDS: i64 = 10;

/// A Secret that is mounted into the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Name of the volume.
    pub volume: String,
    /// Name of the Secret.
    pub secret: String,
    /// Its folder.
    pub folder: String,
}

/// The Deployment of the agent.
///
/// It says nothing of the file: an agent takes over what changes there while it runs, and a switch of sites goes on in
/// the process that began it.
pub fn deployment(desired: &Desired, mounts: &[Mount], replicas: i32) -> Value {
    let template = desired.spec.agent.pod_template.clone().unwrap_or_default();
    let user = template.metadata.clone().unwrap_or_default();
    let text = |map: std::collections::BTreeMap<String, String>| -> Map<String, Value> {
        map.into_iter().map(|(key, value)| (key, value.into())).collect()
    };
    let mut pod_labels = text(user.labels);
    pod_labels.extend(labels(desired));
    pod_labels.insert("app.kubernetes.io/component".to_owned(), "mirror-agent".into());
    sealed(json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(desired, &names::agent(&desired.name)),
        "spec": {
            "replicas": replicas,
            // Never two at once: the new one starts when the old one is gone.
            "strategy": {"type": "Recreate"},
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": {names::MIRROR: desired.name, names::MIRROR_UID: desired.uid}},
            "template": {
                "metadata": pod_metadata(&pod_labels, &text(user.annotations)),
                "spec": pod(desired, &template, mounts),
            },
        },
    }))
}

/// What is empty is not stored: said again at every look, it would be a difference for ever.
fn pod_metadata(labels: &Map<String, Value>, annotations: &Map<String, Value>) -> Value {
    if annotations.is_empty() {
        json!({"labels": labels})
    } else {
        json!({"labels": labels, "annotations": annotations})
    }
}

fn pod(desired: &Desired, template: &AgentPodTemplate, mounts: &[Mount]) -> Value {
    let file = json!({"name": "config", "configMap": {"name": names::agent(&desired.name)}});
    let secret = |mount: &Mount| json!({"name": mount.volume, "secret": {"secretName": mount.secret, "defaultMode": 0o440}});
    let volumes: Vec<Value> = std::iter::once(file).chain(mounts.iter().map(secret)).collect();
    let mut spec = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container(desired, mounts)],
        "volumes": volumes,
    });
    // As with annotations: only what is not empty.
    let optional = [
        ("nodeSelector", json!(template.node_selector)),
        ("tolerations", json!(template.tolerations)),
        ("imagePullSecrets", json!(template.image_pull_secrets)),
        ("priorityClassName", json!(template.priority_class_name)),
    ];
    let is_said = |value: &Value| !value.is_null() && *value != json!({}) && *value != json!([]);
    let said = optional.into_iter().filter(|(_, value)| is_said(value));
    if let Some(spec) = spec.as_object_mut() {
        spec.extend(said.map(|(field, value)| (field.to_owned(), value)));
    }
    spec
}

fn container(desired: &Desired, mounts: &[Mount]) -> Value {
    let config = json!({"name": "config", "mountPath": CONFIG_DIR, "readOnly": true});
    let secret = |mount: &Mount| json!({"name": mount.volume, "mountPath": mount.folder, "readOnly": true});
    let probe = |path: &str, period: u8, failures: u8| {
        json!({
            "httpGet": {"path": path, "port": AGENT_PORT},
            "periodSeconds": period,
            "timeoutSeconds": 2,
            "failureThreshold": failures,
        })
    };
    let volume_mounts: Vec<Value> = std::iter::once(config).chain(mounts.iter().map(secret)).collect();
    json!({
        "name": "agent",
        "image": desired.image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["mirror", "--config", format!("{CONFIG_DIR}/{CONFIG_FILE}")],
        "ports": [{"name": "http", "containerPort": AGENT_PORT, "protocol": "TCP"}],
        "livenessProbe": probe("/livez", 10, 3),
        "readinessProbe": probe("/readyz", 2, 1),
        "resources": desired.spec.agent.resources,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": volume_mounts,
    })
}

/// A ConfigMap of ours.
pub fn config_map(desired: &Desired, name: &str, data: &[(&str, String)]) -> Value {
    let data: Map<String, Value> =
        data.iter().map(|(key, value)| ((*key).to_owned(), value.as_str().into())).collect();
    sealed(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(desired, name),
        "data": data,
    }))
}

/// A copy of another namespace's client Secret.
pub fn secret_copy(desired: &Desired, name: &str, fields: &Fields) -> Value {
    let data: Map<String, Value> =
        fields.0.iter().map(|(key, value)| (key.clone(), json!(ByteString(value.clone())))).collect();
    sealed(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(desired, name),
        "type": "Opaque",
        "data": data,
    }))
}

/// Labels of every child; without `app.kubernetes.io/instance`, by which Argo CD may track what is its own.
fn labels(desired: &Desired) -> Map<String, Value> {
    let pairs = [
        ("app.kubernetes.io/name", "quorate"),
        ("app.kubernetes.io/managed-by", "quorate"),
        (names::MIRROR, desired.name.as_str()),
        (names::MIRROR_UID, desired.uid.as_str()),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect()
}

fn metadata(desired: &Desired, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": desired.namespace,
        "labels": labels(desired),
        "ownerReferences": [{
            "apiVersion": "quorate.dev/v1alpha1",
            "kind": "EtcdMirror",
            "name": desired.name,
            "uid": desired.uid,
            "controller": true,
            "blockOwnerDeletion": true,
        }],
    })
}

/// With the hash of all that it says: what is no longer said is a difference, too.
fn sealed(mut manifest: Value) -> Value {
    let hash = Sha256::digest(manifest.to_string());
    let hash = hash.iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    if let Some(metadata) = manifest.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("annotations".to_owned(), json!({names::TEMPLATE: hash}));
    }
    manifest
}

/// Whether `found` says all that `wanted` does. The apiserver writes amounts in its own way, so those of a container
/// count by the hash only.
pub fn is_as_wanted(wanted: &Value, found: &Value) -> bool {
    let mut wanted = wanted.clone();
    if let Some(resources) = wanted.pointer_mut("/spec/template/spec/containers/0/resources") {
        *resources = json!({});
    }
    says_all(&wanted, found)
}

/// Whether an object is this EtcdMirror's.
pub fn is_ours(desired: &Desired, object: &Value) -> bool {
    let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    owners.into_iter().flatten().any(|owner| owner["uid"] == desired.uid.as_str())
}
