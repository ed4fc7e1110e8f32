//! A node: containerd, kubelet and kube-proxy in a network namespace and a mount namespace of its own.
//!
//! **Invariant:** whatever the node or its Pods mount is seen by nobody else, and is gone with the node's last process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::images::PAUSE;
use crate::process::{find, finish, start, tail, wait};
use crate::state::Cluster;

/// Folders at paths that containerd, its shims, the kubelet and network plugins insist on: each node has its own.
const FIXED: [&str; 5] =
    ["/run/containerd", "/run/netns", "/var/lib/cni", "/var/lib/kubelet", "/var/log/containers"];

/// Puts each first of two folders in the second's place, then becomes the program after the dashes.
const OWN_FOLDERS: &str = "while [ \"$1\" != -- ]; do mkdir -p \"$1\" \"$2\"; mount --bind \"$1\" \"$2\"; shift 2; done; shift; exec \"$@\"";

/// Starts a node with `images` loaded. It joins by itself.
pub(crate) fn up(cluster: &Cluster, node: u8, programs: &Path, images: &[PathBuf]) -> Result<()> {
    let folder = cluster.path(&format!("n{node}"));
    for part in ["cni", "pods", "manifests"] {
        fs::create_dir_all(folder.join(part))?;
    }
    fs::create_dir_all(cluster.node_run(node))?;
    fs::write(folder.join("cni/10-quorate.conflist"), cni(cluster, node).to_string())?;
    fs::write(folder.join("containerd.toml"), containerd(cluster, node, programs))?;
    fs::write(folder.join("kubelet.yaml"), kubelet(cluster, node).to_string())?;
    fs::write(folder.join("proxy.yaml"), proxy(cluster, node).to_string())?;
    make_control_groups(cluster, node)?;
    start_containerd(cluster, node, programs)?;
    for image in images {
        import(cluster, node, programs, image)?;
    }
    start_kubelet(cluster, node, programs)?;
    start_proxy(cluster, node, programs)
}

/// Starts containerd, in a mount namespace that begins with it, and waits for its socket.
pub(crate) fn start_containerd(cluster: &Cluster, node: u8, programs: &Path) -> Result<()> {
    let socket = cluster.container_socket(node);
    if socket.exists() {
        fs::remove_file(&socket)?;
    }
    let log = cluster.log(&format!("containerd-n{node}"));
    let configuration = cluster.path(&format!("n{node}/containerd.toml"));
    let mut command = inside(cluster, node, programs);
    command.args(["unshare", "--mount", "--propagation", "private", "sh", "-ec", OWN_FOLDERS, "sh"]);
    for path in FIXED {
        command.arg(cluster.path(&format!("n{node}/host{path}"))).arg(path);
    }
    command.arg("--").arg(programs.join("containerd")).arg("-c").arg(configuration);
    start(&cluster.name, &log, &mut command)?;
    wait("containerd listens", Duration::from_secs(30), || Ok(socket.exists().then_some(())))
        .with_context(|| tail(&log))
}

/// Starts the kubelet, where it sees containerd's mounts and containerd its.
pub(crate) fn start_kubelet(cluster: &Cluster, node: u8, programs: &Path) -> Result<()> {
    let folder = cluster.path(&format!("n{node}"));
    let containerd = processes(cluster, node, "containerd");
    let containerd = containerd.first().context("containerd has ended")?;
    let mut command = inside(cluster, node, programs);
    command
        .args(["nsenter", &format!("--mount=/proc/{containerd}/ns/mnt")])
        .arg(programs.join("kubelet"))
        .arg(format!("--config={}", folder.join("kubelet.yaml").display()))
        .arg(format!("--kubeconfig={}", cluster.path(&format!("pki/n{node}.kubeconfig")).display()))
        .arg(format!("--root-dir={}", folder.join("kubelet").display()))
        .arg(format!("--cert-dir={}", folder.join("certificates").display()))
        .arg(format!("--hostname-override=n{node}"))
        .arg(format!("--node-ip={}", cluster.node_address(node)));
    start(&cluster.name, &cluster.log(&format!("kubelet-n{node}")), &mut command)
}

/// Starts kube-proxy.
pub(crate) fn start_proxy(cluster: &Cluster, node: u8, programs: &Path) -> Result<()> {
    let configuration = format!("--config={}", cluster.path(&format!("n{node}/proxy.yaml")).display());
    let log = cluster.log(&format!("proxy-n{node}"));
    let mut command = inside(cluster, node, programs);
    start(&cluster.name, &log, command.arg(programs.join("kube-proxy")).arg(configuration))
}

/// Pids of the node's own processes whose program has that name; all of them for "". (Those in Pods have networks of
/// their own.)
pub(crate) fn processes(cluster: &Cluster, node: u8, program: &str) -> Vec<u32> {
    let number = |path: &str| fs::metadata(path).map(|data| data.ino()).ok();
    let network = number(&format!("/run/netns/{}", cluster.namespace(node)));
    let mut pids = find(&cluster.name, program);
    pids.retain(|pid| network.is_some() && number(&format!("/proc/{pid}/ns/net")) == network);
    pids
}

/// The words for a program in the node's network, with our runtime first on the PATH.
fn inside(cluster: &Cluster, node: u8, programs: &Path) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("nsenter");
    command
        .env("PATH", format!("{}:{path}", programs.display()))
        .arg(format!("--net=/run/netns/{}", cluster.namespace(node)));
    command
}

/// Loads an image; one of that name is replaced. containerd is not always ready for an import at once.
pub(crate) fn import(cluster: &Cluster, node: u8, programs: &Path, image: &Path) -> Result<()> {
    let mut tries = 0;
    wait("the image is imported", Duration::from_mins(2), || {
        let mut command = Command::new(programs.join("ctr"));
        command
            .arg("-a")
            .arg(cluster.container_socket(node))
            .args(["-n", "k8s.io", "images", "import"])
            .arg(image);
        tries += 1;
        match finish(&mut command) {
            Ok(_) => Ok(Some(())),
            Err(error) if tries >= 5 => Err(error),
            Err(_) => Ok(None),
        }
    })
}

/// Version 1 wants a group in every hierarchy, version 2 in the one that there is. A new cpuset has no processors
/// until it is given some.
fn make_control_groups(cluster: &Cluster, node: u8) -> Result<()> {
    for hierarchy in hierarchies() {
        let group = hierarchy.join(cluster.control_group(node));
        fs::create_dir_all(&group)?;
        if hierarchy.ends_with("cpuset") {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                fs::write(group.join(file), fs::read(hierarchy.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// The roots of the control groups.
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| !path.is_symlink() && path.join("cgroup.procs").exists())
        .collect()
}

/// Point to point, not a bridge: Service traffic within a node passes iptables without br_netfilter.
fn cni(cluster: &Cluster, node: u8) -> Value {
    json!({"cniVersion": "1.0.0", "name": "quorate", "plugins": [
        {"type": "ptp", "ipMasq": false, "ipam": {
            "type": "host-local",
            "dataDir": cluster.node_run(node).join("addresses"),
            "ranges": [[{"subnet": cluster.pod_network(node)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]})
}

/// NRI has one socket for the whole machine, so only one node could have it.
/// Without CAP_SYS_RESOURCE scores may only be raised: `restrict_oom_score_adj`.
fn containerd(cluster: &Cluster, node: u8, programs: &Path) -> String {
    format!(
        "version = 3
root = \"{folder}/containerd\"
state = \"{run}/containerd\"
[grpc]
  address = \"{socket}\"
[plugins.'io.containerd.nri.v1.nri']
  disable = true
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [\"{programs}/cni\"]
    conf_dir = \"{folder}/cni\"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = \"io.containerd.runc.v2\"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = \"{programs}/runc\"
      SystemdCgroup = false
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = \"{PAUSE}\"
",
        folder = cluster.path(&format!("n{node}")).display(),
        run = cluster.node_run(node).display(),
        socket = cluster.container_socket(node).display(),
        programs = programs.display(),
    )
}

fn kubelet(cluster: &Cluster, node: u8) -> Value {
    let folder = cluster.path(&format!("n{node}"));
    let mut configuration = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", cluster.control_group(node)),
        "failCgroupV1": false,
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "address": cluster.node_address(node),
        "containerRuntimeEndpoint": format!("unix://{}", cluster.container_socket(node).display()),
        "authentication": {
            "anonymous": {"enabled": false},
            "x509": {"clientCAFile": cluster.path("pki/ca.crt")},
            "webhook": {"enabled": true},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDNS": [cluster.gateway()],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "podLogsDir": folder.join("pods"),
        "volumePluginDir": folder.join("plugins"),
        "staticPodPath": folder.join("manifests"),
        "tlsCertFile": cluster.path(&format!("pki/n{node}.crt")),
        "tlsPrivateKeyFile": cluster.path(&format!("pki/n{node}.key")),
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "4s",
        "syncFrequency": "10s",
    });
    if let (false, Some(fields)) = (cluster.default_back_off, configuration.as_object_mut()) {
        fields.insert("featureGates".to_owned(), json!({"KubeletCrashLoopBackOffMax": true}));
        fields.insert("crashLoopBackOff".to_owned(), json!({"maxContainerRestartPeriod": "1s"}));
    }
    configuration
}

fn proxy(cluster: &Cluster, node: u8) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": cluster.path("pki/proxy.kubeconfig")},
        "clusterCIDR": cluster.slot_network(),
        "hostnameOverride": format!("n{node}"),
        "conntrack": {"maxPerCore": 0, "min": 0},
        "oomScoreAdj": 0,
    })
}
