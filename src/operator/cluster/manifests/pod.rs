//! A member's Pod: the guard's copy, then etcd under the guard.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::desired::Desired;
use super::{labels, owner};
use crate::api::cluster::{PodTemplateSpec, PullPolicy, Spread, TlsSecrets};
use crate::api::duration::parse_duration;
use crate::etcd::flags::{CLIENT_PORT, Flags, InitialState, METRICS_PORT, PEER_PORT, TLS_DIR};
use crate::etcd::{ClusterId, MemberId};
use crate::operator::names;

/// User and group of etcd, where the spec names none: "nonroot" of the usual distroless images.
const DEFAULT_USER: i64 = 65532;
/// A member flushes and hands leadership over within seconds; the guard needs five more to speak.
const DEFAULT_GRACE_SECONDS: i64 = 60;

/// What one Pod differs by from the others of its cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Member<'a> {
    /// Its name.
    pub name: &'a str,
    /// Names of all members of the first start.
    pub initial: &'a [String],
    /// `new` or `existing`.
    pub state: InitialState,
    /// `--initial-cluster-token`.
    pub token: &'a str,
    /// Incarnation of its data.
    pub incarnation: u32,
    /// Who it is, when that is known.
    pub identity: Option<(ClusterId, MemberId)>,
    /// Whether it has been on its volume before, so that it must find its data.
    pub has_data: bool,
    /// (term, index) below which its log counts as rolled back.
    pub high_water: Option<(u64, u64)>,
    /// Whether etcd compares its data with its peers' when it starts.
    pub checked: bool,
    /// Labels that its node must have beside those of the spec.
    pub node_selector: &'a BTreeMap<String, String>,
    /// Size of the largest voter's database, where old data may have to make room for a copy of it.
    pub database_bytes: Option<i64>,
}

/// The hash of all that the spec makes of a Pod. It says whether a Pod is up to date, so what differs between
/// members and starts is no part of it.
pub fn template_hash(desired: &Desired) -> String {
    let everywhere = Member {
        name: "",
        initial: &[],
        state: InitialState::Existing,
        token: "",
        incarnation: 0,
        identity: None,
        has_data: false,
        high_water: None,
        checked: true,
        node_selector: &BTreeMap::new(),
        database_bytes: None,
    };
    let hash = Sha256::digest(spec(desired, &everywhere).to_string());
    hash.iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// The Pod of `member`.
pub fn pod(desired: &Desired, member: &Member) -> Value {
    let user = template(desired).metadata.unwrap_or_default();
    let mut all_labels: serde_json::Map<String, Value> =
        user.labels.into_iter().map(|(key, value)| (key, value.into())).collect();
    all_labels.extend(labels(desired));
    all_labels.insert("app.kubernetes.io/component".to_owned(), "member".into());
    all_labels.insert(names::MEMBER.to_owned(), member.name.into());
    let mut annotations: serde_json::Map<String, Value> =
        user.annotations.into_iter().map(|(key, value)| (key, value.into())).collect();
    annotations.insert(names::TEMPLATE.to_owned(), template_hash(desired).into());
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": member.name,
            "namespace": desired.namespace,
            "labels": all_labels,
            "annotations": annotations,
            "ownerReferences": owner(desired),
        },
        "spec": spec(desired, member),
    })
}

/// The label that lets clients in, applied onto a Pod or taken back from it; the UID is the premise.
pub fn voter_label(desired: &Desired, member: &str, uid: &str, serves: bool) -> Value {
    let labels = if serves { json!({names::ROLE: names::VOTER}) } else { json!({}) };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": member,
            "namespace": desired.namespace,
            "uid": uid,
            "labels": labels,
        },
    })
}

fn template(desired: &Desired) -> PodTemplateSpec {
    desired.spec.pod_template.clone().unwrap_or_default()
}

fn spec(desired: &Desired, member: &Member) -> Value {
    let template = template(desired);
    let user = template.run_as_user.unwrap_or(DEFAULT_USER);
    let placement = &desired.spec.placement;
    let mut node_selector = placement.node_selector.clone();
    node_selector.extend(member.node_selector.clone());
    let mut spec = json!({
        "hostname": member.name,
        "subdomain": names::peers(&desired.name),
        "restartPolicy": "Always",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": grace_seconds(desired),
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [install_guard(desired)],
        "containers": [etcd(desired, member)],
        "volumes": volumes(desired, member),
        "affinity": affinity(desired),
        "nodeSelector": node_selector,
        "tolerations": placement.tolerations,
    });
    if let Some(spec) = spec.as_object_mut() {
        if let Some(class) = template.priority_class_name {
            spec.insert("priorityClassName".to_owned(), class.into());
        }
        if let Some(image) = &desired.spec.image {
            spec.insert("imagePullSecrets".to_owned(), json!(image.pull_secrets));
        }
    }
    spec
}

fn grace_seconds(desired: &Desired) -> i64 {
    template(desired).termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECONDS)
}

fn locked_down() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    })
}

/// etcd's image has no shell: the guard is copied beside it.
fn install_guard(desired: &Desired) -> Value {
    json!({
        "name": "guard",
        "image": desired.guard_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/usr/local/bin/quorate-guard", "install", "/quorate"],
        "securityContext": locked_down(),
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        "volumeMounts": [{"name": "guard", "mountPath": "/quorate"}],
    })
}

fn etcd(desired: &Desired, member: &Member) -> Value {
    let mut command =
        vec!["/quorate/quorate-guard".to_owned(), "--".to_owned(), "/usr/local/bin/etcd".to_owned()];
    command.extend(arguments(desired, member));
    let mut mounts = vec![
        json!({"name": "guard", "mountPath": "/quorate"}),
        json!({"name": "data", "mountPath": "/var/lib/etcd"}),
    ];
    if desired.tls() {
        mounts.push(json!({"name": "tls", "mountPath": TLS_DIR, "readOnly": true}));
    }
    let port = |name: &str, port: u16| json!({"name": name, "containerPort": port, "protocol": "TCP"});
    json!({
        "name": "etcd",
        "image": desired.image,
        "imagePullPolicy": pull_policy(desired),
        "command": command,
        "env": environment(desired, member),
        "ports": [port("client", CLIENT_PORT), port("peer", PEER_PORT), port("metrics", METRICS_PORT)],
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": METRICS_PORT},
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            // An election takes about two seconds: it must not empty the Service.
            "failureThreshold": 5,
        },
        "resources": desired.spec.resources,
        "securityContext": locked_down(),
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    })
}

fn pull_policy(desired: &Desired) -> &'static str {
    match desired.spec.image.as_ref().and_then(|image| image.pull_policy) {
        None | Some(PullPolicy::IfNotPresent) => "IfNotPresent",
        Some(PullPolicy::Always) => "Always",
        Some(PullPolicy::Never) => "Never",
    }
}

fn arguments(desired: &Desired, member: &Member) -> Vec<String> {
    let initial: Vec<(String, String)> =
        member.initial.iter().map(|name| (name.clone(), desired.address(name))).collect();
    Flags {
        name: member.name,
        address: &desired.address(member.name),
        initial_cluster: &initial,
        initial_state: member.state,
        token: member.token,
        tls: desired.tls(),
        version: desired.version,
        quota_bytes: desired.quota_bytes,
        compaction: desired.compaction(),
        log_level: desired.log_level(),
        checked: member.checked,
        extra: &desired.spec.extra_args,
    }
    .arguments()
}

/// What the guard must know (`guard/src/config.rs`).
fn environment(desired: &Desired, member: &Member) -> Vec<Value> {
    let variable = |name: &str, value: String| json!({"name": name, "value": value});
    let mut environment = vec![
        variable("QUORATE_CLUSTER_UID", desired.uid.clone()),
        variable("QUORATE_MEMBER", member.name.to_owned()),
        variable("QUORATE_INCARNATION", member.incarnation.to_string()),
        variable("QUORATE_EXPECT_STAMP", member.has_data.to_string()),
        variable("QUORATE_GRACE_SECONDS", grace_seconds(desired).to_string()),
        variable("QUORATE_ADDRESS", desired.address(member.name)),
        json!({"name": "QUORATE_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}),
    ];
    if let Some((cluster, id)) = member.identity {
        environment.push(variable("QUORATE_CLUSTER_ID", cluster.to_string()));
        environment.push(variable("QUORATE_MEMBER_ID", id.to_string()));
    }
    if let Some((term, index)) = member.high_water {
        environment.push(variable("QUORATE_HIGH_WATER", format!("{term}:{index}")));
    }
    // What a member that began anew has put aside.
    if let (true, Ok(kept_for)) = (member.incarnation > 0, parse_duration(&desired.spec.repair.keep_old_data))
    {
        environment.push(variable("QUORATE_KEEP_OLD_DATA_SECONDS", kept_for.as_secs().to_string()));
    }
    if let Some(bytes) = member.database_bytes {
        environment.push(variable("QUORATE_LEADER_DB_BYTES", bytes.to_string()));
    }
    if let Some(adopt) = &desired.adopt {
        environment.push(variable("QUORATE_ADOPT_UID", adopt.clone()));
    }
    environment
}

fn volumes(desired: &Desired, member: &Member) -> Vec<Value> {
    let mut volumes = vec![
        json!({"name": "guard", "emptyDir": {"sizeLimit": "64Mi"}}),
        json!({"name": "data", "persistentVolumeClaim": {"claimName": member.name}}),
    ];
    if let Some(secrets) = desired.secrets() {
        volumes.push(brought(secrets));
    } else if desired.tls() {
        let secret = names::member_certificate(member.name);
        volumes.push(json!({"name": "tls", "secret": {"secretName": secret, "defaultMode": 0o440}}));
    }
    volumes
}

/// The user's Secrets under the names that the operator's own have.
fn brought(secrets: &TlsSecrets) -> Value {
    let source = |secret: &str, use_: &str, trust: &str| {
        let item = |key: &str, path: String| json!({"key": key, "path": path});
        let items = [
            item("tls.crt", format!("{use_}.crt")),
            item("tls.key", format!("{use_}.key")),
            item("ca.crt", format!("{trust}-ca.crt")),
        ];
        json!({"secret": {"name": secret, "items": items}})
    };
    let sources = [source(&secrets.server, "server", "client"), source(&secrets.peer, "peer", "peer")];
    json!({"name": "tls", "projected": {"defaultMode": 0o440, "sources": sources}})
}

/// Affinity, not `topologySpreadConstraints`: the scheduler leaves nodes without a zone label out of *all* soft spread
/// constraints of a Pod (kubernetes/pkg/scheduler/framework/plugins/podtopologyspread/scoring.go, `IgnoredNodes`), so
/// that on bare metal members would share nodes; and a skew of 1 lets four members share three nodes.
fn affinity(desired: &Desired) -> Value {
    let apart = |key: &str| {
        json!({
            "topologyKey": key,
            "labelSelector": {"matchLabels": {names::CLUSTER: desired.name}},
        })
    };
    let rather_apart = |key: &str, weight: u8| json!({"weight": weight, "podAffinityTerm": apart(key)});
    let (host, zone) = ("kubernetes.io/hostname", "topology.kubernetes.io/zone");
    // Zones are never required: a Kubernetes cluster of one zone must still run five members.
    let rules = match desired.spec.placement.spread {
        Spread::None => return json!({}),
        Spread::Preferred => json!({
            "preferredDuringSchedulingIgnoredDuringExecution": [rather_apart(host, 100), rather_apart(zone, 50)],
        }),
        Spread::Required => json!({
            "requiredDuringSchedulingIgnoredDuringExecution": [apart(host)],
            "preferredDuringSchedulingIgnoredDuringExecution": [rather_apart(zone, 50)],
        }),
    };
    json!({"podAntiAffinity": rules})
}
