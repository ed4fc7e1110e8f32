//! What goes wrong in a data centre, done on purpose. Each can be repeated, and `heal` undoes all that was done to a
//! node's cable.

use std::path::Path;

use anyhow::{Result, bail};

use crate::control_plane;
use crate::network::inside;
use crate::node;
use crate::process::{in_control_group, kill, run};
use crate::state::Cluster;

/// Marks the rules that `heal` takes away.
const COMMENT: [&str; 4] = ["-m", "comment", "--comment", "quorate-fault"];

/// A node loses its power: kubelet, runtime and every container end at once, and its cable is dead.
pub(crate) fn kill_node(cluster: &Cluster, node: u8) -> Result<()> {
    cut(cluster, node)?;
    kill(|| node::processes(cluster, node, ""))?;
    kill(|| in_control_group(&format!("/{}/", cluster.control_group(node))))
}

/// It comes back, with its disk as it was.
pub(crate) fn restart_node(cluster: &Cluster, node: u8, programs: &Path) -> Result<()> {
    heal(cluster, node)?;
    if node::processes(cluster, node, "").is_empty() {
        node::start_containerd(cluster, node, programs)?;
        node::start_kubelet(cluster, node, programs)?;
        node::start_proxy(cluster, node, programs)?;
    }
    Ok(())
}

/// Only the kubelet is started anew.
pub(crate) fn restart_kubelet(cluster: &Cluster, node: u8, programs: &Path) -> Result<()> {
    kill(|| node::processes(cluster, node, "kubelet"))?;
    node::start_kubelet(cluster, node, programs)
}

/// Nothing goes in or out any more.
pub(crate) fn cut(cluster: &Cluster, node: u8) -> Result<()> {
    heal(cluster, node)?;
    drop_packets(cluster, node, &[])
}

/// Packets are lost, both ways.
pub(crate) fn lossy(cluster: &Cluster, node: u8, percent: u8) -> Result<()> {
    if percent > 100 {
        bail!("--percent must be between 0 and 100");
    }
    heal(cluster, node)?;
    let probability = format!("{:.2}", f64::from(percent) / 100.0);
    drop_packets(cluster, node, &["-m", "statistic", "--mode", "random", "--probability", &probability])
}

/// In the first and the last chain that a packet passes, so that Pods behind the node are hit too.
fn drop_packets(cluster: &Cluster, node: u8, matches: &[&str]) -> Result<()> {
    for place in [["raw", "PREROUTING", "-i"], ["mangle", "POSTROUTING", "-o"]] {
        let [table, chain, direction] = place;
        let words = ["iptables", "-w", "-t", table, "-I", chain, direction, "eth0"];
        inside(cluster, node, &[&words, matches, &COMMENT, &["-j", "DROP"]].concat())?;
    }
    Ok(())
}

/// Both ways become slow.
pub(crate) fn slow(cluster: &Cluster, node: u8, rate: &str) -> Result<()> {
    heal(cluster, node)?;
    let limit = ["root", "tbf", "rate", rate, "burst", "32kbit", "latency", "400ms"];
    inside(cluster, node, &[&["tc", "qdisc", "add", "dev", "eth0"], limit.as_slice()].concat())?;
    run(&[&["tc", "qdisc", "add", "dev", cluster.cable(node).as_str()], limit.as_slice()].concat())?;
    Ok(())
}

/// The cable is as new.
pub(crate) fn heal(cluster: &Cluster, node: u8) -> Result<()> {
    for table in ["raw", "mangle"] {
        let rules = inside(cluster, node, &["iptables", "-w", "-t", table, "-S"])?;
        for rule in rules.lines().filter(|rule| rule.contains("quorate-fault")) {
            let rule = rule.replacen("-A", "-D", 1).replace('"', "");
            let words: Vec<&str> = rule.split_whitespace().collect();
            inside(cluster, node, &[&["iptables", "-w", "-t", table], words.as_slice()].concat())?;
        }
    }
    if inside(cluster, node, &["tc", "qdisc", "show", "dev", "eth0"])?.contains("tbf") {
        inside(cluster, node, &["tc", "qdisc", "del", "dev", "eth0", "root"])?;
    }
    let cable = cluster.cable(node);
    if run(&["tc", "qdisc", "show", "dev", &cable])?.contains("tbf") {
        run(&["tc", "qdisc", "del", "dev", &cable, "root"])?;
    }
    Ok(())
}

/// The apiserver dies and is started anew.
pub(crate) fn restart_apiserver(cluster: &Cluster, programs: &Path) -> Result<()> {
    control_plane::stop_apiserver(cluster)?;
    control_plane::apiserver(cluster, programs)
}
