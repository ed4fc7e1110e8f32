//! `cargo bench --bench ready`: from `kubectl apply` to three healthy voters, against a plain parallel StatefulSet of
//! the same etcd (`floor-statefulset.yaml`), run by run in turn on the same cluster.
//!
//! Measures on the cluster that KUBECONFIG names, with Quorate installed in it, or starts one of its own. Each run has
//! a namespace of its own, and begins when nothing of the run before is left. Writes the table to docs/benchmarks.md.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench that cannot go on panics, and tells what it does"
)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use quorate::api::EtcdCluster;

/// Runs of each side.
const RUNS: usize = 5;
/// The budget of the design.
const BUDGET: f64 = 1.25;
/// Longest wait for one side to be ready, or to be gone.
const DEADLINE: Duration = Duration::from_mins(3);
/// How often to look: the grain of the results.
const LOOK: Duration = Duration::from_millis(50);
const FLOOR: &str = "benches/floor-statefulset.yaml";
const OURS: &str = "deploy/examples/cluster.yaml";
const RESULTS: &str = "docs/benchmarks.md";
const CLUSTER: &str = "bench";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let named = std::env::var_os("KUBECONFIG");
    let own = named.is_none().then_some(Own);
    let kubeconfig = named.map_or_else(start, PathBuf::from);
    let options = kube::config::KubeConfigOptions::default();
    let file = kube::config::Kubeconfig::read_from(&kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(file, &options).await.unwrap();
    let bench =
        Bench { client: Client::try_from(config).unwrap(), kubectl: kubectl(own.is_some()), kubeconfig };
    bench.install();
    let runs = bench.runs().await;
    drop(own);
    let table = table(&runs);
    println!("{table}");
    write_section("ready", &table);
}

/// A cluster of our own is taken down, also when the bench fails.
struct Own;

impl Drop for Own {
    fn drop(&mut self) {
        tool(&["down", "--name", CLUSTER]);
    }
}

struct Bench {
    client: Client,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

impl Bench {
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

    /// Pairs of seconds: the floor's and ours. The first pair warms caches and is not counted.
    async fn runs(&self) -> Vec<(f64, f64)> {
        let mut runs = Vec::new();
        for number in 0..=RUNS {
            let floor = self.run(FLOOR, &format!("floor-{number}")).await;
            let ours = self.run(OURS, &format!("quorate-{number}")).await;
            let counted = if number == 0 { " (to warm up, not counted)" } else { "" };
            println!("StatefulSet {floor:.2} s, Quorate {ours:.2} s{counted}");
            if number > 0 {
                runs.push((floor, ours));
            }
        }
        runs
    }

    async fn run(&self, manifest: &str, namespace: &str) -> f64 {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let object = serde_json::from_value(serde_json::json!({"metadata": {"name": namespace}})).unwrap();
        namespaces.create(&PostParams::default(), &object).await.unwrap();
        let begun = Instant::now();
        self.kubectl(&["-n", namespace, "apply", "-f", manifest]);
        until(async || {
            if manifest == FLOOR {
                self.floor_is_ready(namespace).await
            } else {
                self.ours_is_ready(namespace).await
            }
        })
        .await;
        let seconds = begun.elapsed().as_secs_f64();
        namespaces.delete(namespace, &DeleteParams::default()).await.unwrap();
        until(async || self.nothing_is_left(namespace).await).await;
        seconds
    }

    /// All three are ready: `/readyz` of each answers, for which etcd does a linearizable read.
    async fn floor_is_ready(&self, namespace: &str) -> bool {
        let set = Api::<StatefulSet>::namespaced(self.client.clone(), namespace).get("e").await.unwrap();
        set.status.and_then(|status| status.ready_replicas) == Some(3)
    }

    /// All three answered a linearizable read of the operator's, their Pods are ready, and clients reach them through
    /// the Service.
    async fn ours_is_ready(&self, namespace: &str) -> bool {
        let cluster =
            Api::<EtcdCluster>::namespaced(self.client.clone(), namespace).get("main").await.unwrap();
        let status = cluster.status.unwrap_or_default();
        let selector = ListParams::default().labels("quorate.dev/role=voter");
        status.summary.as_deref() == Some("Healthy")
            && status.ready.as_deref() == Some("3/3")
            && Api::<Pod>::namespaced(self.client.clone(), namespace)
                .list(&selector)
                .await
                .unwrap()
                .items
                .len()
                == 3
    }

    async fn nothing_is_left(&self, namespace: &str) -> bool {
        let volumes =
            Api::<PersistentVolume>::all(self.client.clone()).list(&ListParams::default()).await.unwrap();
        let is_bound_here = |volume: &PersistentVolume| {
            let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            claim.is_some_and(|claim| claim.namespace.as_deref() == Some(namespace))
        };
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        !volumes.items.iter().any(is_bound_here) && namespaces.get_opt(namespace).await.unwrap().is_none()
    }

    fn kubectl(&self, arguments: &[&str]) {
        let mut command = Command::new(&self.kubectl);
        let output = command.args(arguments).env("KUBECONFIG", &self.kubeconfig).output().unwrap();
        assert!(
            output.status.success(),
            "kubectl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    let mut tick = tokio::time::interval(LOOK);
    while !condition().await {
        assert!(begun.elapsed() < DEADLINE, "waited {} s in vain", DEADLINE.as_secs());
        tick.tick().await;
    }
}

/// A cluster of its own, with Kubernetes' own settings wherever the tests use quicker ones.
fn start() -> PathBuf {
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

fn table(runs: &[(f64, f64)]) -> String {
    let mut text = String::from("| run | StatefulSet, s | Quorate, s | ratio |\n|---|---|---|---|\n");
    for (number, (floor, ours)) in runs.iter().enumerate() {
        writeln!(text, "| {} | {floor:.2} | {ours:.2} | {:.2} |", number + 1, ours / floor).unwrap();
    }
    let side = |of: fn(&(f64, f64)) -> f64| {
        let mut all: Vec<f64> = runs.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        let at = |index: usize| *all.get(index).unwrap();
        (at(all.len() / 2), at(0), at(all.len() - 1))
    };
    let (floor, ours) = (side(|run| run.0), side(|run| run.1));
    let ratio = ours.0 / floor.0;
    writeln!(text, "| **median** | **{:.2}** | **{:.2}** | **{ratio:.2}** |", floor.0, ours.0).unwrap();
    writeln!(text, "| least to most | {:.2}–{:.2} | {:.2}–{:.2} | |", floor.1, floor.2, ours.1, ours.2)
        .unwrap();
    let verdict = if ratio <= BUDGET { "kept" } else { "missed" };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let day = jiff::Timestamp::now().strftime("%F");
    write!(text, "\nBudget: a ratio of {BUDGET}, {verdict}. Measured on {day}, {cores} cores.").unwrap();
    text
}

/// Replaces what stands between `<!-- name -->` and `<!-- /name -->`.
fn write_section(name: &str, table: &str) {
    let text = std::fs::read_to_string(RESULTS).unwrap();
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = text.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(&end).unwrap();
    std::fs::write(RESULTS, format!("{before}{begin}\n{table}\n\n{end}{after}")).unwrap();
}
