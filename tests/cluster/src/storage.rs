//! Volumes: folders of the host under one roof, so that tests can wipe, damage and exchange them.
//!
//! The usual provisioner of such volumes (rancher/local-path-provisioner) starts a Pod to make each folder and another one
//! to remove it: 5 to 22 s a volume on a busy machine of two cores, and two of every three Pods that it started. So this
//! program does it itself, in the way of all provisioners (kubernetes-sigs/sig-storage-lib-external-provisioner): a claim
//! for which the scheduler has chosen a node gets a volume there, and a volume whose claim is gone is removed.

#![expect(clippy::indexing_slicing, reason = "what a JSON value lacks is null")]

use std::fs;
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::control_plane::{apply, kubectl};
use crate::process::start;
use crate::state::Cluster;

const PROVISIONER: &str = "quorate.dev/test-folders";
/// Pause after a watch has ended.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest watch: what has failed is tried again when the next one begins.
const WATCH: &str = "--request-timeout=20s";

/// Starts the provisioner and makes the default storage class `standard`.
pub(crate) fn up(cluster: &Cluster, programs: &Path) -> Result<()> {
    apply(cluster, programs, "storage.yaml", &STORAGE.replace("PROVISIONER", PROVISIONER))?;
    // By this name even when a build has put another file in this program's place.
    let mut command = Command::new("/proc/self/exe");
    command.args(["provision", "--name", &cluster.name, "--programs"]).arg(programs);
    start(&cluster.name, &cluster.log("provisioner"), &mut command)
}

/// Makes and removes volumes until it is killed.
pub(crate) fn provision(cluster: &Cluster, programs: &Path) {
    std::thread::scope(|scope| {
        scope.spawn(|| follow(cluster, programs, "persistentvolumeclaims", make));
        scope.spawn(|| follow(cluster, programs, "persistentvolumes", remove));
    });
}

/// Does it for every object of that kind, when one changes and now and then. What fails is tried again then.
fn follow(
    cluster: &Cluster,
    programs: &Path,
    kind: &str,
    each: impl Fn(&Cluster, &Path, &Value) -> Result<()>,
) -> ! {
    loop {
        if let Err(error) = watch(cluster, programs, kind, &each) {
            eprintln!("{kind}: {error:#}");
        }
        std::thread::sleep(PAUSE);
    }
}

fn watch(
    cluster: &Cluster,
    programs: &Path,
    kind: &str,
    each: impl Fn(&Cluster, &Path, &Value) -> Result<()>,
) -> Result<()> {
    let mut child = Command::new(programs.join("kubectl"))
        .arg(format!("--kubeconfig={}", cluster.kubeconfig().display()))
        .args(["get", kind, "--all-namespaces", "--watch", "--output=json", WATCH])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(child.stdout.take().context("a piped child has an output")?);
    let mut objects = serde_json::Deserializer::from_reader(output).into_iter::<Value>();
    let ended = objects.try_for_each(|object| {
        let object = object?;
        if let Err(error) = each(cluster, programs, &object) {
            eprintln!("{kind} {}: {error:#}", object["metadata"]["name"]);
        }
        Ok(())
    });
    drop(child.kill());
    child.wait()?;
    ended
}

/// A folder and a volume for a claim that waits for them.
fn make(cluster: &Cluster, programs: &Path, claim: &Value) -> Result<()> {
    let Some((folder, volume)) = volume_for(claim, &cluster.path("volumes")) else { return Ok(()) };
    fs::create_dir_all(&folder)?;
    // Members run as a user of their own.
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
    apply(cluster, programs, "volume.json", &volume.to_string())
}

/// Where the folder is to be, and the volume that says so; `None`: the claim waits for nothing of ours.
fn volume_for(claim: &Value, roof: &Path) -> Option<(PathBuf, Value)> {
    let (metadata, spec) = (&claim["metadata"], &claim["spec"]);
    let annotation = |name: &str| metadata["annotations"][name].as_str();
    let is_ours = annotation("volume.kubernetes.io/storage-provisioner") == Some(PROVISIONER);
    if !is_ours || !spec["volumeName"].is_null() || !metadata["deletionTimestamp"].is_null() {
        return None;
    }
    let node = annotation("volume.kubernetes.io/selected-node")?;
    let (namespace, name, uid) =
        (metadata["namespace"].as_str()?, metadata["name"].as_str()?, metadata["uid"].as_str()?);
    let folder = roof.join(format!("pvc-{uid}_{namespace}_{name}"));
    let on_node = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [node]});
    let volume = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": format!("pvc-{uid}"),
            "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER},
        },
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "volumeMode": "Filesystem",
            "storageClassName": spec["storageClassName"],
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": name, "uid": uid},
            "hostPath": {"path": folder, "type": "DirectoryOrCreate"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on_node]}]}},
        },
    });
    Some((folder, volume))
}

/// A volume whose claim is gone, and its folder.
fn remove(cluster: &Cluster, programs: &Path, volume: &Value) -> Result<()> {
    let Some(folder) = folder_to_remove(volume) else { return Ok(()) };
    if folder.parent() != Some(&cluster.path("volumes")) {
        bail!("{} is no folder of ours", folder.display());
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let name = volume["metadata"]["name"].as_str().context("a volume has a name")?;
    kubectl(cluster, programs, &["delete", "--raw", &format!("/api/v1/persistentvolumes/{name}")])?;
    Ok(())
}

fn folder_to_remove(volume: &Value) -> Option<PathBuf> {
    let (metadata, spec) = (&volume["metadata"], &volume["spec"]);
    let is_ours = metadata["annotations"]["pv.kubernetes.io/provisioned-by"] == PROVISIONER;
    let is_over = volume["status"]["phase"] == "Released" && metadata["deletionTimestamp"].is_null();
    let may_go = spec["persistentVolumeReclaimPolicy"] == "Delete";
    (is_ours && is_over && may_go).then(|| spec["hostPath"]["path"].as_str().map(PathBuf::from))?
}

const STORAGE: &str = "\
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: standard, annotations: {storageclass.kubernetes.io/is-default-class: \"true\"}}
provisioner: PROVISIONER
volumeBindingMode: WaitForFirstConsumer
reclaimPolicy: Delete
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: test-kubelet-api}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: 'system:kubelet-api-admin'}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: admin}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: test-proxy}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: 'system:node-proxier'}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: 'system:kube-proxy'}]
";

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::{PROVISIONER, folder_to_remove, volume_for};

    fn claim() -> Value {
        json!({
            "metadata": {"namespace": "shop", "name": "main-0", "uid": "u", "annotations": {
                "volume.kubernetes.io/storage-provisioner": PROVISIONER,
                "volume.kubernetes.io/selected-node": "n1",
            }},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "8Gi"}}},
        })
    }

    #[test]
    fn a_claim_gets_a_volume_once_it_has_a_node() {
        let roof = Path::new("/volumes");
        let (folder, volume) = volume_for(&claim(), roof).unwrap();
        assert_eq!(folder, roof.join("pvc-u_shop_main-0"));
        assert_eq!(volume["spec"]["capacity"]["storage"], "8Gi");
        let mut waits = claim();
        waits["metadata"]["annotations"]["volume.kubernetes.io/selected-node"] = Value::Null;
        assert_eq!(volume_for(&waits, roof), None);
        let mut bound = claim();
        bound["spec"]["volumeName"] = json!("pvc-u");
        assert_eq!(volume_for(&bound, roof), None);
    }

    #[test]
    fn a_volume_is_removed_when_its_claim_is_gone_and_it_need_not_be_kept() {
        let (folder, mut volume) = volume_for(&claim(), Path::new("/volumes")).unwrap();
        volume["status"]["phase"] = json!("Bound");
        assert_eq!(folder_to_remove(&volume), None);
        volume["status"]["phase"] = json!("Released");
        assert_eq!(folder_to_remove(&volume), Some(folder));
        volume["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain");
        assert_eq!(folder_to_remove(&volume), None);
    }
}
