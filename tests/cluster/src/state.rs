//! What a cluster must remember, and where it keeps things.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Clusters that may be up side by side.
const SLOTS: u8 = 8;
/// Nodes that a slot has addresses for.
pub(crate) const MOST_NODES: u8 = 9;
const ROOT: &str = "/var/lib/quorate";
const RUN: &str = "/run/quorate";

/// A cluster: its name, and the slot that its addresses come from.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Cluster {
    pub(crate) name: String,
    pub(crate) slot: u8,
    pub(crate) nodes: u8,
    /// Whether kubelets keep Kubernetes' own pause between two starts of a failing container.
    pub(crate) default_back_off: bool,
}

/// Held while a cluster is brought up or taken down. Its file goes with the cluster.
pub(crate) struct Lock {
    path: PathBuf,
    record: PathBuf,
    /// The lock lasts as long as it is open.
    _file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if !self.record.exists() {
            drop(fs::remove_file(&self.path));
        }
    }
}

impl Cluster {
    /// The cluster of that name, if anything of it exists.
    pub(crate) fn load(name: &str) -> Result<Option<Self>> {
        let path = Path::new(ROOT).join(name).join("state.json");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(
                serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?,
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// A new cluster on a free slot, on record before anything of it is started.
    pub(crate) fn create(name: &str, nodes: u8, default_back_off: bool) -> Result<Self> {
        if nodes == 0 || nodes > MOST_NODES {
            bail!("--nodes must be between 1 and {MOST_NODES}");
        }
        // Two that come up at the same time must not find the same slot free; the folder itself is the lock.
        let all = File::open(RUN)?;
        all.lock()?;
        let taken: BTreeSet<u8> = Self::all()?.into_iter().map(|cluster| cluster.slot).collect();
        let slot = (0..SLOTS).find(|slot| !taken.contains(slot));
        let slot = slot.with_context(|| format!("{SLOTS} clusters are up already; take one down first"))?;
        let cluster = Self { name: name.to_owned(), slot, nodes, default_back_off };
        fs::create_dir_all(cluster.path("log"))?;
        fs::create_dir_all(cluster.run())?;
        fs::write(cluster.path("state.draft"), serde_json::to_string(&cluster)?)?;
        fs::rename(cluster.path("state.draft"), cluster.path("state.json"))?;
        Ok(cluster)
    }

    /// Every cluster that anything exists of.
    pub(crate) fn all() -> Result<Vec<Self>> {
        let entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.map(|name| Self::load(&name)).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// A path in the cluster's folder.
    pub(crate) fn path(&self, part: &str) -> PathBuf {
        Path::new(ROOT).join(&self.name).join(part)
    }

    /// The log of one of its programs.
    pub(crate) fn log(&self, program: &str) -> PathBuf {
        self.path("log").join(format!("{program}.log"))
    }

    /// Where its sockets are.
    pub(crate) fn run(&self) -> PathBuf {
        Path::new(RUN).join(&self.name)
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    pub(crate) fn node_numbers(&self) -> std::ops::RangeInclusive<u8> {
        1..=self.nodes
    }

    /// Address of the control plane: the bridge.
    pub(crate) fn gateway(&self) -> String {
        format!("198.18.{}.1", self.slot * 16)
    }

    pub(crate) fn node_address(&self, node: u8) -> String {
        format!("198.18.{}.{}", self.slot * 16, 10 + node)
    }

    pub(crate) fn pod_network(&self, node: u8) -> String {
        format!("198.18.{}.0/24", self.slot * 16 + node)
    }

    /// All of the slot's nodes and Pods.
    pub(crate) fn slot_network(&self) -> String {
        format!("198.18.{}.0/20", self.slot * 16)
    }

    pub(crate) fn service_network(&self) -> String {
        format!("198.19.{}.0/24", self.slot)
    }

    pub(crate) fn first_service(&self) -> String {
        format!("198.19.{}.1", self.slot)
    }

    pub(crate) fn bridge(&self) -> String {
        format!("quorate{}", self.slot)
    }

    pub(crate) fn namespace(&self, node: u8) -> String {
        format!("quorate{}n{node}", self.slot)
    }

    /// The host's end of a node's cable.
    pub(crate) fn cable(&self, node: u8) -> String {
        format!("quorate{}v{node}", self.slot)
    }

    /// The node's control group; no other cluster's begins like it.
    pub(crate) fn control_group(&self, node: u8) -> String {
        format!("quorate-{}.n{node}", self.name)
    }

    /// Where a node's sockets are.
    pub(crate) fn node_run(&self, node: u8) -> PathBuf {
        self.run().join(format!("n{node}"))
    }

    pub(crate) fn container_socket(&self, node: u8) -> PathBuf {
        self.node_run(node).join("containerd.sock")
    }
}

/// One `up` or `down` of a name at a time.
pub(crate) fn lock(name: &str) -> Result<Lock> {
    if name.is_empty()
        || name.len() > 30
        || !name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-')
    {
        bail!("--name must be 1 to 30 lower-case letters, digits and hyphens");
    }
    fs::create_dir_all(RUN)?;
    let path = Path::new(RUN).join(format!(".{name}.lock"));
    let file = File::create(&path)?;
    // A file that was removed after it was opened locks nobody out.
    let is_there = || fs::metadata(&path).ok()?.ino().eq(&file.metadata().ok()?.ino()).then_some(());
    let locked = file.try_lock().is_ok() && is_there().is_some();
    if !locked {
        bail!("another command is working on the cluster {name:?}");
    }
    Ok(Lock { path, record: Path::new(ROOT).join(name).join("state.json"), _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_clusters_share_no_address() {
        let cluster =
            |slot| Cluster { name: format!("c{slot}"), slot, nodes: MOST_NODES, default_back_off: false };
        let all: Vec<String> = (0..SLOTS)
            .map(cluster)
            .flat_map(|cluster| {
                let pods = cluster.node_numbers().map(|node| cluster.pod_network(node)).collect::<Vec<_>>();
                [vec![format!("198.18.{}.0/24", cluster.slot * 16), cluster.service_network()], pods].concat()
            })
            .collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }
}
