//! A member's PersistentVolumeClaim: the member's record.

use serde_json::{Value, json};

use super::super::desired::Desired;
use super::super::observed::{Volume, VolumeState};
use super::{labels, owner};
use crate::api::cluster::{AccessMode, OnDelete};
use crate::etcd::{ClusterId, MemberId};
use crate::operator::names;

/// A new volume. It is created, never applied: an existing one of that name is somebody's data.
pub fn volume(desired: &Desired, member: &str, incarnation: i32) -> Value {
    let storage = &desired.spec.storage;
    let access_mode = match storage.access_mode {
        AccessMode::ReadWriteOnce => "ReadWriteOnce",
        AccessMode::ReadWriteOncePod => "ReadWriteOncePod",
    };
    let mut labels = labels(desired);
    labels.insert(names::MEMBER.to_owned(), member.into());
    let metadata = json!({
        "name": member,
        "namespace": desired.namespace,
        "labels": labels,
        "annotations": {names::STATE: VolumeState::Joining.word(), names::INCARNATION: incarnation.to_string()},
    });
    let mut spec = json!({
        "accessModes": [access_mode],
        "resources": {"requests": {"storage": storage.size}},
    });
    if let (Some(class), Some(spec)) = (&storage.storage_class_name, spec.as_object_mut()) {
        spec.insert("storageClassName".to_owned(), class.as_str().into());
    }
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})
}

/// What is known of the member, applied onto its volume; the UID is the premise. All that is ours is said every
/// time, since server-side apply takes back what its manager no longer says.
pub fn record(
    desired: &Desired,
    member: &str,
    volume: &Volume,
    identity: Option<(ClusterId, MemberId)>,
    state: VolumeState,
    size: &str,
) -> Value {
    let mut labels = labels(desired);
    labels.insert(names::MEMBER.to_owned(), member.into());
    let mut metadata = json!({
        "name": member,
        "namespace": desired.namespace,
        "uid": volume.uid,
        "labels": labels,
    });
    set_owner(desired, &mut metadata);
    if let (Some((cluster, id)), Some(metadata)) = (identity, metadata.as_object_mut()) {
        let annotations = json!({
            names::STATE: state.word(),
            names::CLUSTER_ID: cluster.to_string(),
            names::MEMBER_ID: id.to_string(),
        });
        metadata.insert("annotations".to_owned(), annotations);
    }
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": {"resources": {"requests": {"storage": size}}},
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
