//! What the benches share: the cluster that they measure on, waiting, and their part of docs/benchmarks.md.

mod results;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kube::Client;

pub(crate) use self::results::{Spread, load, measured, write_section};

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_mins(3);
/// How often to look: the grain of the results.
const LOOK: Duration = Duration::from_millis(50);
const CLUSTER: &str = "bench";

/// A Kubernetes with Quorate in it.
pub(crate) struct Bench {
    pub(crate) client: Client,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

/// A cluster of our own is taken down, also when the bench fails.
pub(crate) struct Own;

impl Drop for Own {
    fn drop(&mut self) {
        tool(&["down", "--name", CLUSTER]);
    }
}

impl Bench {
    /// The cluster that KUBECONFIG names, or one of its own.
    pub(crate) async fn start() -> (Self, Option<Own>) {
        let named = std::env::var_os("KUBECONFIG");
        let own = named.is_none().then_some(Own);
        let kubeconfig = named.map_or_else(up, PathBuf::from);
        let options = kube::config::KubeConfigOptions::default();
        let file = kube::config::Kubeconfig::read_from(&kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(file, &options).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let bench = Self { client, kubectl: kubectl(own.is_some()), kubeconfig };
        bench.install();
        (bench, own)
    }

    fn install(&self) {
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "deploy/install.yaml"]);
        self.kubectl(&[
            "-n",
            "quorate-system",
            "rollout",
            "status",
            "deployment/quorate-operator",
            "--timeout=150s",
        ]);
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) {
        let mut command = Command::new(&self.kubectl);
        let output = command.args(arguments).env("KUBECONFIG", &self.kubeconfig).output().unwrap();
        assert!(
            output.status.success(),
            "kubectl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    let mut tick = tokio::time::interval(LOOK);
    while !condition().await {
        assert!(begun.elapsed() < DEADLINE, "waited {} s in vain until {what}", DEADLINE.as_secs());
        tick.tick().await;
    }
}

/// A cluster of its own, with Kubernetes' own settings wherever the tests use quicker ones.
fn up() -> PathBuf {
    let said = tool(&["up", "--name", CLUSTER, "--default-back-off"]);
    tool(&["load", "--name", CLUSTER]);
    let kubeconfig = said.lines().find_map(|line| line.strip_prefix("export KUBECONFIG=")).unwrap();
    PathBuf::from(kubeconfig)
}

fn kubectl(own: bool) -> PathBuf {
    if own { Path::new(tool(&["programs"]).trim()).join("kubectl") } else { PathBuf::from("kubectl") }
}

fn tool(arguments: &[&str]) -> String {
    let output = Command::new("cargo").arg("cluster").args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "cargo cluster {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
