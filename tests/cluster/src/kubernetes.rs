//! The cluster's API, through its own kubectl.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::{run, run_with_input};
use crate::state::{Cluster, State};

/// kubectl gives up by itself before this ends it.
const REQUEST: Duration = Duration::from_secs(20);

/// How to call one cluster's kubectl.
pub(crate) struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

impl Kubectl {
    /// That of a test cluster.
    pub(crate) fn of(cluster: &Cluster, state: &State) -> Kubectl {
        Kubectl {
            program: state.bin.join("kubectl"),
            kubeconfig: cluster.kubeconfig(),
            cache: cluster.directory().join("kubectl"),
        }
    }

    /// Runs it and returns what it printed.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.command(arguments), REQUEST)
    }

    /// Runs it and reads what it printed as JSON.
    pub(crate) fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[&["get", "--output=json"], arguments].concat())?;
        serde_json::from_str(&text).context("kubectl did not print JSON")
    }

    /// Applies manifests.
    pub(crate) fn apply(&self, manifests: &[Value]) -> Result<()> {
        let text: Vec<String> = manifests.iter().map(Value::to_string).collect();
        let arguments = ["apply", "--server-side", "--force-conflicts", "--filename=-"];
        run_with_input(&mut self.command(&arguments), &text.join("\n---\n"), REQUEST).map(drop)
    }

    /// Whether the apiserver is ready.
    pub(crate) fn is_apiserver_ready(&self) -> bool {
        self.run(&["get", "--raw", "/readyz"]).is_ok()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--cache-dir").arg(&self.cache);
        command.arg("--request-timeout=10s").args(arguments);
        // A proxy would be asked for addresses that only this machine has.
        command.env_clear();
        command
    }
}

/// The nodes that are ready for Pods.
pub(crate) fn ready_nodes(nodes: &Value) -> Vec<String> {
    let none = Vec::new();
    let items = nodes.pointer("/items").and_then(Value::as_array).unwrap_or(&none);
    let is_ready = |node: &&Value| {
        let conditions = node.pointer("/status/conditions").and_then(Value::as_array).unwrap_or(&none);
        let ready = conditions.iter().any(|condition| {
            let is = |field: &str, value: &str| condition.get(field).and_then(Value::as_str) == Some(value);
            is("type", "Ready") && is("status", "True")
        });
        // A node stays tainted for a moment after it became ready.
        ready && node.pointer("/spec/taints").is_none_or(Value::is_null)
    };
    let name = |node: &Value| Some(node.pointer("/metadata/name")?.as_str()?.to_owned());
    items.iter().filter(is_ready).filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_counts_when_it_is_ready_and_not_tainted() {
        let node = |name: &str, status: &str, taints: Value| {
            json!({
                "metadata": {"name": name}, "spec": {"taints": taints},
                "status": {"conditions": [{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": status}]},
            })
        };
        let taint = json!([{"key": "node.kubernetes.io/not-ready"}]);
        let nodes = json!({"items": [node("n1", "True", Value::Null), node("n2", "False", Value::Null), node("n3", "True", taint)]});
        assert_eq!(ready_nodes(&nodes), ["n1"]);
        assert!(ready_nodes(&json!({})).is_empty());
    }
}
