//! A Kubernetes apiserver by its rules: UIDs, resourceVersions, conflicts, server-side apply of one manager,
//! preconditions of deletes, finalizers of volumes, owner references. Whole requests go in, whole answers come out,
//! so the operator's real client code runs against it.

use std::collections::BTreeMap;

use quorate::operator::names;
use serde_json::{Map, Value, json};

/// Kind, namespace, name.
pub(crate) type Key = (&'static str, String, String);

/// Everything that is stored.
#[derive(Clone, Default)]
pub(crate) struct Apiserver {
    objects: BTreeMap<Key, Value>,
    /// What the operator has applied last, by object: what it no longer says is taken back.
    applied: BTreeMap<Key, Value>,
    version: u64,
}

/// A request, as far as the operator makes any.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) kind: &'static str,
    pub(crate) namespace: String,
    pub(crate) name: Option<String>,
    pub(crate) status: bool,
    pub(crate) selector: Option<(String, String)>,
    pub(crate) body: Value,
}

/// HTTP status and body.
pub(crate) type Answer = (u16, Value);

const KINDS: [(&str, &str, &str); 14] = [
    ("pods", "Pod", "v1"),
    ("persistentvolumeclaims", "PersistentVolumeClaim", "v1"),
    ("services", "Service", "v1"),
    ("configmaps", "ConfigMap", "v1"),
    ("secrets", "Secret", "v1"),
    ("poddisruptionbudgets", "PodDisruptionBudget", "policy/v1"),
    ("storageclasses", "StorageClass", "storage.k8s.io/v1"),
    ("nodes", "Node", "v1"),
    ("events", "Event", "events.k8s.io/v1"),
    ("etcdclusters", "EtcdCluster", "quorate.dev/v1alpha1"),
    ("etcdmemberreplacements", "EtcdMemberReplacement", "quorate.dev/v1alpha1"),
    ("etcdmirrors", "EtcdMirror", "quorate.dev/v1alpha1"),
    ("deployments", "Deployment", "apps/v1"),
    ("leases", "Lease", "coordination.k8s.io/v1"),
];

impl Request {
    /// Reads method, path and query.
    pub(crate) fn parse(method: &str, path: &str, query: &str, body: Value) -> Option<Self> {
        let mut parts = path.trim_start_matches('/').split('/');
        let skipped = if parts.next()? == "api" { 1 } else { 2 };
        let mut parts: Vec<&str> = parts.skip(skipped).collect();
        let mut namespace = String::new();
        if parts.first() == Some(&"namespaces") && parts.len() > 2 {
            parts[1].clone_into(&mut namespace);
            parts.drain(..2);
        }
        let (_, kind, _) = KINDS.iter().find(|(plural, ..)| *plural == parts[0])?;
        let selector =
            query.split('&').find_map(|pair| pair.strip_prefix("labelSelector=")).and_then(|text| {
                let text =
                    text.replace("%3D", "=").replace("%2F", "/").replace("%3d", "=").replace("%2f", "/");
                text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()))
            });
        Some(Self {
            method: method.to_owned(),
            kind,
            namespace,
            name: parts.get(1).map(|name| (*name).to_owned()),
            status: parts.get(2) == Some(&"status"),
            selector,
            body,
        })
    }

    pub(crate) fn is_write(&self) -> bool {
        self.method != "GET"
    }

    fn key(&self) -> Key {
        let name = self.name.clone().or_else(|| text(&self.body, "/metadata/name"));
        (self.kind, self.namespace.clone(), name.unwrap_or_default())
    }
}

/// A text in an object.
pub(crate) fn text(object: &Value, pointer: &str) -> Option<String> {
    object.pointer(pointer).and_then(Value::as_str).map(str::to_owned)
}

/// A failure as the apiserver words it.
pub(crate) fn failure(code: u16, reason: &str, message: &str) -> Answer {
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "code": code, "message": message}),
    )
}

impl Apiserver {
    /// All objects of a kind.
    pub(crate) fn all(&self, kind: &'static str) -> impl Iterator<Item = &Value> {
        let from = (kind, String::new(), String::new());
        self.objects.range(from..).take_while(move |((of, ..), _)| *of == kind).map(|(_, object)| object)
    }

    pub(crate) fn get(&self, kind: &'static str, name: &str) -> Option<&Value> {
        self.all(kind).find(|object| object["metadata"]["name"] == name)
    }

    /// Does what a request asks for.
    pub(crate) fn answer(&mut self, request: &Request, now: &str) -> Answer {
        let key = request.key();
        match (request.method.as_str(), &request.name) {
            ("GET", Some(_)) => self.objects.get(&key).map_or_else(not_found, |object| (200, object.clone())),
            ("GET", None) => (200, self.list(request)),
            ("POST", _) if request.kind == "Event" => (201, request.body.clone()),
            ("POST", _) => self.create(key, request.body.clone(), now),
            ("PATCH", _) if request.kind == "Event" => (200, request.body.clone()),
            ("PATCH", _) if request.status => self.apply_status(&key, &request.body),
            ("PATCH", _) => self.apply(key, &request.body, now),
            ("DELETE", _) => self.delete(&key, &request.body, now),
            _ => failure(405, "MethodNotAllowed", "no such method"),
        }
    }

    fn list(&self, request: &Request) -> Value {
        let selected = |object: &&Value| {
            request.selector.as_ref().is_none_or(|(key, value)| object["metadata"]["labels"][key] == **value)
        };
        let items: Vec<&Value> = self.all(request.kind).filter(selected).collect();
        let version =
            KINDS.iter().find(|(_, kind, _)| *kind == request.kind).map_or("v1", |(.., version)| version);
        json!({"apiVersion": version, "kind": format!("{}List", request.kind), "metadata": {"resourceVersion": self.version.to_string()}, "items": items})
    }

    fn next_version(&mut self) -> Value {
        self.version += 1;
        self.version.to_string().into()
    }

    /// Creates an object.
    pub(crate) fn create(&mut self, key: Key, mut object: Value, now: &str) -> Answer {
        if self.objects.contains_key(&key) {
            return failure(409, "AlreadyExists", &format!("{} {} already exists", key.0, key.2));
        }
        let version = self.next_version();
        let api = KINDS.iter().find(|(_, kind, _)| *kind == key.0).map_or("v1", |(.., version)| version);
        object["apiVersion"] = api.into();
        object["kind"] = key.0.into();
        object["metadata"]["name"] = key.2.clone().into();
        object["metadata"]["namespace"] = key.1.clone().into();
        object["metadata"]["uid"] = format!("{}-{}-{}", key.0.to_lowercase(), key.2, self.version).into();
        object["metadata"]["resourceVersion"] = version;
        object["metadata"]["generation"] = 1.into();
        object["metadata"]["creationTimestamp"] = now.into();
        if key.0 == "PersistentVolumeClaim" {
            object["status"] = json!({"phase": "Pending"});
            if object["spec"]["storageClassName"].is_null() {
                object["spec"]["storageClassName"] = "standard".into();
            }
        }
        self.objects.insert(key, object.clone());
        (201, object)
    }

    /// Changes an object if that makes a difference; says whether it did.
    pub(crate) fn change(&mut self, key: &Key, change: impl FnOnce(&mut Value)) -> bool {
        let Some(object) = self.objects.get(key) else { return false };
        let mut new = object.clone();
        change(&mut new);
        if new == *object {
            return false;
        }
        if new["spec"] != object["spec"] {
            let generation = object["metadata"]["generation"].as_i64().unwrap_or_default() + 1;
            new["metadata"]["generation"] = generation.into();
        }
        new["metadata"]["resourceVersion"] = self.next_version();
        self.objects.insert(key.clone(), new);
        true
    }

    fn apply_status(&mut self, key: &Key, body: &Value) -> Answer {
        let Some(object) = self.objects.get(key) else { return not_found() };
        if let Some(answer) = conflict(object, &body["metadata"]) {
            return answer;
        }
        self.change(key, |object| object["status"] = body["status"].clone());
        (200, self.objects[key].clone())
    }

    fn apply(&mut self, key: Key, body: &Value, now: &str) -> Answer {
        let Some(object) = self.objects.get(&key) else {
            if !body["metadata"]["uid"].is_null() {
                return failure(409, "Conflict", "uid mismatch: no existing object was found");
            }
            self.applied.insert(key.clone(), body.clone());
            return self.create(key, body.clone(), now);
        };
        if let Some(answer) = conflict(object, &body["metadata"]) {
            return answer;
        }
        let before = self.applied.insert(key.clone(), body.clone()).unwrap_or_default();
        self.change(&key, |object| {
            take_back(object, &before, body);
            merge(object, body);
        });
        (200, self.objects[&key].clone())
    }

    fn delete(&mut self, key: &Key, options: &Value, now: &str) -> Answer {
        let Some(object) = self.objects.get(key) else { return not_found() };
        if let Some(answer) = conflict(object, &options["preconditions"]) {
            return answer;
        }
        let answer = object.clone();
        self.mark_deleted(key, now);
        (200, answer)
    }

    /// Deletes: at once, or, where a kubelet or a finalizer has a say, marks it.
    pub(crate) fn mark_deleted(&mut self, key: &Key, now: &str) {
        if key.0 == "Pod" || key.0 == "PersistentVolumeClaim" {
            self.change(key, |object| {
                if object["metadata"]["deletionTimestamp"].is_null() {
                    object["metadata"]["deletionTimestamp"] = now.into();
                }
            });
        } else {
            self.remove(key);
        }
    }

    /// It is gone.
    pub(crate) fn remove(&mut self, key: &Key) {
        self.objects.remove(key);
        self.applied.remove(key);
    }

    /// Children whose owner is gone.
    pub(crate) fn orphans(&self) -> Vec<Key> {
        let owners: Vec<&Value> = self.all("EtcdCluster").map(|object| &object["metadata"]["uid"]).collect();
        let lost = |object: &Value| {
            let references = object["metadata"]["ownerReferences"].as_array();
            references
                .is_some_and(|references| references.iter().any(|owner| !owners.contains(&&owner["uid"])))
        };
        self.objects.iter().filter(|(_, object)| lost(object)).map(|(key, _)| key.clone()).collect()
    }
}

fn not_found() -> Answer {
    failure(404, "NotFound", "not found")
}

/// UID and resourceVersion, where the caller names them, must be the object's.
fn conflict(object: &Value, named: &Value) -> Option<Answer> {
    let differs = ["uid", "resourceVersion"].iter().any(|field| {
        !named[field].is_null() && named[field] != "" && named[field] != object["metadata"][field]
    });
    differs.then(|| {
        failure(
            409,
            "Conflict",
            "the object has been modified; please apply your changes to the latest version",
        )
    })
}

fn merge(object: &mut Value, body: &Value) {
    match (object, body) {
        (Value::Object(object), Value::Object(body)) => {
            for (key, value) in body {
                merge(object.entry(key).or_insert(Value::Null), value);
            }
        }
        (object, body) => *object = body.clone(),
    }
}

/// Removes what `before` said and `after` does not.
fn take_back(object: &mut Value, before: &Value, after: &Value) {
    let nothing = Map::new();
    let (Some(object), Some(before)) = (object.as_object_mut(), before.as_object()) else { return };
    let after = after.as_object().unwrap_or(&nothing);
    for (key, value) in before {
        match after.get(key) {
            None if value.is_object() => {
                if let Some(inner) = object.get_mut(key) {
                    take_back(inner, value, &Value::Null);
                }
            }
            None => drop(object.remove(key)),
            Some(after) => {
                if let Some(inner) = object.get_mut(key) {
                    take_back(inner, value, after);
                }
            }
        }
    }
}

/// Name and UID of an object.
pub(crate) fn identity(object: &Value) -> (String, String) {
    let field = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (field("name"), field("uid"))
}

/// Whether clients are sent to a Pod by the Service.
pub(crate) fn has_voter_label(pod: &Value) -> bool {
    pod["metadata"]["labels"][names::ROLE] == names::VOTER
}
