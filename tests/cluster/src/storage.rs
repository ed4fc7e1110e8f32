//! Volumes: folders of the host under one roof, so that tests can wipe, damage and exchange them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::control_plane::{apply, kubectl};
use crate::images::BUSYBOX;
use crate::process::start;
use crate::state::Cluster;

/// Starts the provisioner and makes the default storage class `standard`.
pub(crate) fn up(cluster: &Cluster, programs: &Path) -> Result<()> {
    let folder = cluster.path("provisioner");
    fs::create_dir_all(&folder)?;
    let configuration = serde_json::json!({
        "nodePathMap": [{"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": [cluster.path("volumes")]}],
    });
    let files = [
        ("config.json", configuration.to_string()),
        ("setup", "#!/bin/sh\nset -eu\nmkdir -m 0777 -p \"$VOL_DIR\"\n".to_owned()),
        ("teardown", "#!/bin/sh\nset -eu\nrm -rf \"$VOL_DIR\"\n".to_owned()),
        ("helperPod.yaml", HELPER.replace("BUSYBOX", BUSYBOX)),
    ];
    let mut words: Vec<String> = [
        "-n",
        "local-path-storage",
        "create",
        "configmap",
        "local-path-config",
        "--dry-run=client",
        "-o",
        "yaml",
    ]
    .map(str::to_owned)
    .into();
    for (name, text) in files {
        fs::write(folder.join(name), text)?;
        words.push(format!("--from-file={}", folder.join(name).display()));
    }
    apply(cluster, programs, "storage.yaml", STORAGE)?;
    let config_map = kubectl(cluster, programs, &words.iter().map(String::as_str).collect::<Vec<_>>())?;
    apply(cluster, programs, "provisioner.yaml", &config_map)?;
    let mut command = Command::new(programs.join("local-path-provisioner"));
    command.env("POD_NAMESPACE", "local-path-storage").arg("start");
    for (flag, value) in [
        ("config", folder.join("config.json").display().to_string()),
        ("kubeconfig", cluster.kubeconfig().display().to_string()),
        ("service-account-name", "default".to_owned()),
        ("provisioner-name", "rancher.io/local-path".to_owned()),
        ("helper-image", BUSYBOX.to_owned()),
        ("configmap-name", "local-path-config".to_owned()),
        ("helper-pod-file", folder.join("helperPod.yaml").display().to_string()),
        // Each volume waits for a Pod of its own to have made its folder; with the 4 of the default they queue for minutes.
        ("worker-threads", "16".to_owned()),
    ] {
        command.args([format!("--{flag}"), value]);
    }
    start(&cluster.name, &cluster.log("provisioner"), &mut command)
}

const STORAGE: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: local-path-storage}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: standard, annotations: {storageclass.kubernetes.io/is-default-class: \"true\"}}
provisioner: rancher.io/local-path
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

const HELPER: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: helper-pod}
spec:
  priorityClassName: system-node-critical
  tolerations: [{operator: Exists}]
  containers: [{name: helper-pod, image: BUSYBOX, imagePullPolicy: IfNotPresent}]
";
