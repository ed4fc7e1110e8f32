//! A member's PersistentVolumeClaim: the member's record.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::desired::Desired;
use super::super::observed::{Intent, Volume, VolumeState};
use super::{labels, owner};
use crate::api::cluster::{AccessMode, OnDelete};
use crate::api::replacement::ReplacementStorage;
use crate::etcd::{ClusterId, MemberId};
use crate::operator::names;

/// What a new volume has of its own.
#[derive(Default)]
pub struct Special<'a> {
    /// The member that its member is to replace.
    pub replaces: Option<MemberId>,
    /// Where it differs from the cluster's.
    pub storage: Option<&'a ReplacementStorage>,
    /// Further labels that its member's node must have.
    pub node_selector: BTreeMap<String, String>,
}

/// A new volume. It is created, never applied: an existing one of that name is somebody's data.
pub fn volume(desired: &Desired, member: &str, incarnation: i32, special: &Special) -> Value {
    let storage = &desired.spec.storage;
    let access_mode = match storage.access_mode {
        AccessMode::ReadWriteOnce => "ReadWriteOnce",
        AccessMode::ReadWriteOncePod => "ReadWriteOncePod",
    };
    let mut labels = labels(desired);
    labels.insert(names::MEMBER.to_owned(), member.into());
    let own_size = special.storage.and_then(|storage| storage.size.as_ref());
    let own_class = special.storage.and_then(|storage| storage.storage_class_name.as_ref());
    let mut annotations = BTreeMap::from([
        (names::STATE, VolumeState::Joining.word().to_owned()),
        (names::INCARNATION, incarnation.to_string()),
    ]);
    if let Some(id) = special.replaces {
        annotations.insert(names::REPLACES, id.to_string());
    }
    if let Some(size) = own_size {
        annotations.insert(names::SIZE, size.clone());
    }
    if !special.node_selector.is_empty() {
        annotations.insert(names::NODE_SELECTOR, json!(special.node_selector).to_string());
    }
    let metadata = json!({
        "name": member,
        "namespace": desired.namespace,
        "labels": labels,
        "annotations": annotations,
    });
    let mut spec = json!({
        "accessModes": [access_mode],
        "resources": {"requests": {"storage": own_size.unwrap_or(&storage.size)}},
    });
    let class = own_class.or(storage.storage_class_name.as_ref());
    if let (Some(class), Some(spec)) = (class, spec.as_object_mut()) {
        spec.insert("storageClassName".to_owned(), class.as_str().into());
    }
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})
}

/// What is put on record on a volume.
pub struct Known {
    /// Cluster and member.
    pub identity: Option<(ClusterId, MemberId)>,
    /// Whether etcd has run on it.
    pub started: bool,
    /// Where its member is in its life.
    pub state: VolumeState,
    /// The size that is asked for.
    pub size: String,
    /// Incarnation of its data.
    pub incarnation: u32,
    /// What is meant to become of it.
    pub intent: Option<Intent>,
    /// When it is deleted.
    pub delete_after: Option<Timestamp>,
}

impl Known {
    /// What is on the volume already.
    pub fn of(volume: &Volume) -> Self {
        Self {
            identity: volume.identity,
            started: volume.started,
            state: volume.state,
            size: volume.requested.clone(),
            incarnation: volume.incarnation,
            intent: volume.intent,
            delete_after: volume.delete_after,
        }
    }
}

/// What is known of the member, applied onto its volume; the UID is the premise. All that is ours is said every
/// time, since server-side apply takes back what its manager no longer says.
pub fn record(desired: &Desired, member: &str, volume: &Volume, known: &Known) -> Value {
    let mut labels = labels(desired);
    labels.insert(names::MEMBER.to_owned(), member.into());
    let mut annotations = BTreeMap::from([
        (names::STATE, known.state.word().to_owned()),
        (names::INCARNATION, known.incarnation.to_string()),
        (names::STARTED, known.started.to_string()),
    ]);
    if let Some((cluster, id)) = known.identity {
        annotations.insert(names::CLUSTER_ID, cluster.to_string());
        annotations.insert(names::MEMBER_ID, id.to_string());
    }
    if let Some(intent) = known.intent {
        annotations.insert(names::INTENT, intent.to_string());
    }
    if let Some(at) = known.delete_after {
        annotations.insert(names::DELETE_AFTER, at.to_string());
    }
    let mut metadata = json!({
        "name": member,
        "namespace": desired.namespace,
        "uid": volume.uid,
        "labels": labels,
        "annotations": annotations,
    });
    set_owner(desired, &mut metadata);
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": {"resources": {"requests": {"storage": known.size}}},
    })
}

/// Whether the volume should go with its EtcdCluster.
pub fn is_owned(desired: &Desired) -> bool {
    desired.spec.storage.on_delete == OnDelete::Delete
}

/// Volumes outlive the EtcdCluster unless `onDelete: Delete`; the owner reference is what makes them go.
fn set_owner(desired: &Desired, metadata: &mut Value) {
    if let (true, Some(metadata)) = (is_owned(desired), metadata.as_object_mut()) {
        metadata.insert("ownerReferences".to_owned(), owner(desired));
    }
}
