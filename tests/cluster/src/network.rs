//! A bridge, and for each node a network namespace with a cable to it.

use anyhow::{Context, Result};

use crate::process::run;
use crate::state::Cluster;

/// Lays all of it.
pub(crate) fn up(cluster: &Cluster) -> Result<()> {
    let (bridge, gateway) = (cluster.bridge(), cluster.gateway());
    run(&["ip", "link", "add", &bridge, "type", "bridge"]).context("cannot make a bridge: are you root?")?;
    run(&["ip", "addr", "add", &format!("{gateway}/24"), "dev", &bridge])?;
    run(&["ip", "link", "set", &bridge, "up"])?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    for node in cluster.node_numbers() {
        let (namespace, cable) = (cluster.namespace(node), cluster.cable(node));
        run(&["ip", "netns", "add", &namespace])?;
        run(&["ip", "link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
        run(&["ip", "link", "set", &cable, "master", &bridge, "up"])?;
        inside(cluster, node, &["ip", "link", "set", "lo", "up"])?;
        inside(
            cluster,
            node,
            &["ip", "addr", "add", &format!("{}/24", cluster.node_address(node)), "dev", "eth0"],
        )?;
        inside(cluster, node, &["ip", "link", "set", "eth0", "up"])?;
        inside(cluster, node, &["ip", "route", "add", "default", "via", &gateway])?;
        inside(cluster, node, &["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        // The host reaches Pods too: tests and operators under development run there.
        run(&["ip", "route", "replace", &cluster.pod_network(node), "via", &cluster.node_address(node)])?;
    }
    for node in cluster.node_numbers() {
        for other in cluster.node_numbers().filter(|other| *other != node) {
            let (pods, through) = (cluster.pod_network(other), cluster.node_address(other));
            inside(cluster, node, &["ip", "route", "add", &pods, "via", &through])?;
        }
    }
    Ok(())
}

/// Runs a command in a node's network. (`ip netns exec` would mount /sys anew and hide the control groups.)
pub(crate) fn inside(cluster: &Cluster, node: u8, words: &[&str]) -> Result<String> {
    let namespace = format!("--net=/run/netns/{}", cluster.namespace(node));
    run(&[&["nsenter", namespace.as_str()], words].concat())
}

/// Takes away what is there. Routes go with the bridge, cables with the namespaces.
pub(crate) fn down(cluster: &Cluster) -> Result<()> {
    let namespaces = run(&["ip", "netns", "list"])?;
    for node in cluster.node_numbers() {
        let name = cluster.namespace(node);
        if namespaces.lines().any(|line| line.split(' ').next() == Some(&name)) {
            run(&["ip", "netns", "del", &name])?;
        }
    }
    let cables = cluster.node_numbers().map(|node| cluster.cable(node));
    for link in cables.chain([cluster.bridge()]) {
        // A cable is gone, as a rule: the kernel takes it with its other end, a moment later.
        if std::path::Path::new("/sys/class/net").join(&link).exists() {
            drop(run(&["ip", "link", "del", &link]));
        }
    }
    Ok(())
}
