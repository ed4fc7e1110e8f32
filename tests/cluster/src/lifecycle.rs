//! Up, down, status.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::control_plane::{self, kubectl};
use crate::process::{find, finish, in_control_group, kill, marked, run, tail, wait};
use crate::state::{Cluster, lock};
use crate::{certificates, images, network, node, programs, storage};

/// How long nodes may take to join.
const DEADLINE: Duration = Duration::from_mins(2);

/// Brings a cluster up; one that is up already stays, one that is half up is taken down first.
pub(crate) fn up(name: &str, nodes: u8, default_back_off: bool) -> Result<Cluster> {
    let _lock = lock(name)?;
    let programs = programs::ensure()?;
    if let Some(cluster) = Cluster::load(name)? {
        if is_up(&cluster, &programs) {
            eprintln!("the cluster {name} is up already");
            return Ok(cluster);
        }
        eprintln!("what is left of the cluster {name} is taken down first");
        remove(&cluster)?;
    }
    let images = images::others(&programs)?;
    let begun = Instant::now();
    let cluster = Cluster::create(name, nodes, default_back_off)?;
    start(&cluster, &programs, &images)?;
    eprintln!("the cluster {name} of {nodes} nodes is up after {:.1} s", begun.elapsed().as_secs_f64());
    Ok(cluster)
}

fn start(cluster: &Cluster, programs: &Path, images: &[PathBuf]) -> Result<()> {
    certificates::make(cluster)?;
    network::up(cluster)?;
    // Nodes load their images while the control plane starts; each joins when it can.
    std::thread::scope(|scope| {
        let nodes: Vec<_> = cluster
            .node_numbers()
            .map(|number| scope.spawn(move || node::up(cluster, number, programs, images)))
            .collect();
        control_plane::up(cluster, programs)?;
        storage::up(cluster, programs)?;
        for node in nodes {
            node.join().map_err(|_| anyhow::anyhow!("starting a node panicked"))??;
        }
        Ok::<(), anyhow::Error>(())
    })?;
    // Its first work is this account; a scheduler that cannot listen ends at once.
    let account = ["-n", "default", "get", "serviceaccount", "default"];
    wait("the controller manager works", DEADLINE, || Ok(kubectl(cluster, programs, &account).ok()))
        .with_context(|| tail(&cluster.log("controller-manager")))?;
    if find(&cluster.name, "kube-scheduler").is_empty() {
        bail!("the scheduler has ended: {}", tail(&cluster.log("scheduler")));
    }
    wait("all nodes are ready", DEADLINE, || {
        Ok((ready_nodes(cluster, programs) == usize::from(cluster.nodes)).then_some(()))
    })
    .with_context(|| tail(&cluster.log("kubelet-n1")))
}

fn ready_nodes(cluster: &Cluster, programs: &Path) -> usize {
    let list = kubectl(cluster, programs, &["get", "nodes", "--no-headers"]).unwrap_or_default();
    list.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready")).count()
}

fn is_up(cluster: &Cluster, programs: &Path) -> bool {
    ready_nodes(cluster, programs) == usize::from(cluster.nodes)
}

/// Takes everything of a cluster away. One that does not exist is no error.
pub(crate) fn down(name: &str) -> Result<()> {
    let _lock = lock(name)?;
    match Cluster::load(name)? {
        None => eprintln!("there is no cluster {name}"),
        Some(cluster) => {
            remove(&cluster)?;
            eprintln!("the cluster {name} is gone");
        }
    }
    Ok(())
}

/// Processes first (kubelets start containers again), then what they used, the record last.
fn remove(cluster: &Cluster) -> Result<()> {
    kill(|| find(&cluster.name, ""))?;
    kill(|| in_control_group(&format!("/quorate-{}.n", cluster.name)))?;
    unmount(cluster)?;
    network::down(cluster)?;
    for hierarchy in node::hierarchies() {
        for number in cluster.node_numbers() {
            remove_control_group(&hierarchy.join(cluster.control_group(number)));
        }
    }
    for folder in [cluster.run(), cluster.path("")] {
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
    }
    Ok(())
}

fn unmount(cluster: &Cluster) -> Result<()> {
    let ours = [cluster.path(""), cluster.run().join("")];
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mut points: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    points.retain(|point| ours.iter().any(|folder| Path::new(point).starts_with(folder)));
    points.sort_unstable();
    for point in points.iter().rev() {
        run(&["umount", "-l", point])?;
    }
    Ok(())
}

/// Groups can only be removed from the leaves upwards, and only when empty; one that is gone is what we want.
fn remove_control_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_control_group(&entry.path());
        }
    }
    drop(fs::remove_dir(group));
}

/// Builds the image of this checkout and loads it into every node.
pub(crate) fn load(cluster: &Cluster) -> Result<()> {
    let programs = programs::ensure()?;
    let image = images::quorate()?;
    std::thread::scope(|scope| {
        let loads: Vec<_> = cluster
            .node_numbers()
            .map(|number| {
                let (programs, image) = (&programs, &image);
                scope.spawn(move || node::import(cluster, number, programs, image))
            })
            .collect();
        for load in loads {
            load.join().map_err(|_| anyhow::anyhow!("loading an image panicked"))??;
        }
        Ok(())
    })
}

/// Loads the images into a cluster of kind.
pub(crate) fn load_into_kind(name: &str) -> Result<()> {
    let programs = programs::ensure()?;
    let mut images = images::others(&programs)?;
    images.push(images::quorate()?);
    for image in images {
        finish(Command::new("kind").args(["load", "image-archive", "--name", name]).arg(image))?;
    }
    Ok(())
}

/// What clusters leave on a machine while they are up: processes, mounts, namespaces, links, control groups, folders.
pub(crate) fn traces() -> BTreeSet<String> {
    let names = |folder: &str| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().display().to_string()).collect::<Vec<_>>()
    };
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let groups =
        node::hierarchies().into_iter().flat_map(|hierarchy| names(&hierarchy.display().to_string()));
    let folders = [
        "/run/netns",
        "/sys/class/net",
        "/var/lib/quorate",
        "/run/quorate",
        "/run/containerd/s",
        "/var/lib/cni/results",
    ];
    let all = mounts.lines().map(str::to_owned).chain(groups).chain(folders.into_iter().flat_map(names));
    let ours = all.filter(|trace| ["quorate", "cni", "containerd"].iter().any(|word| trace.contains(word)));
    ours.chain(marked().iter().map(|pid| format!("process {pid}"))).collect()
}

/// A line for each cluster.
pub(crate) fn status() -> Result<String> {
    let clusters = Cluster::all()?;
    if clusters.is_empty() {
        return Ok("no cluster is up".to_owned());
    }
    let programs = programs::ensure()?;
    let lines = clusters.iter().map(|cluster| {
        let ready = ready_nodes(cluster, &programs);
        format!(
            "{}: {ready} of {} nodes ready; export KUBECONFIG={}",
            cluster.name,
            cluster.nodes,
            cluster.kubeconfig().display()
        )
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}
