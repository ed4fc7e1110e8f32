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

mod shared;

use std::fmt::Write as _;
use std::time::Instant;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use quorate::api::EtcdCluster;
use shared::{Bench, Spread, until};

/// Runs of each side.
const RUNS: usize = 5;
/// The budget of the design.
const BUDGET: f64 = 1.25;
const FLOOR: &str = "benches/floor-statefulset.yaml";
const OURS: &str = "deploy/examples/cluster.yaml";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let load = shared::load();
    let (bench, own) = Bench::start().await;
    let runs = bench.runs().await;
    drop(own);
    let table = table(&runs, &load);
    println!("{table}");
    shared::write_section("ready", &table);
}

impl Bench {
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
        until("the cluster is ready", async || {
            if manifest == FLOOR {
                self.floor_is_ready(namespace).await
            } else {
                self.ours_is_ready(namespace).await
            }
        })
        .await;
        let seconds = begun.elapsed().as_secs_f64();
        namespaces.delete(namespace, &DeleteParams::default()).await.unwrap();
        until("nothing is left", async || self.nothing_is_left(namespace).await).await;
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
}

fn table(runs: &[(f64, f64)], load: &str) -> String {
    let mut text = String::from("| run | StatefulSet, s | Quorate, s | ratio |\n|---|---|---|---|\n");
    for (number, (floor, ours)) in runs.iter().enumerate() {
        writeln!(text, "| {} | {floor:.2} | {ours:.2} | {:.2} |", number + 1, ours / floor).unwrap();
    }
    let side = |of: fn(&(f64, f64)) -> f64| Spread::of(runs.iter().map(of));
    let (floor, ours) = (side(|run| run.0), side(|run| run.1));
    let ratio = ours.median / floor.median;
    writeln!(text, "| **median** | **{:.2}** | **{:.2}** | **{ratio:.2}** |", floor.median, ours.median)
        .unwrap();
    let (least, most) = (floor.least, floor.most);
    writeln!(text, "| least to most | {least:.2}–{most:.2} | {:.2}–{:.2} | |", ours.least, ours.most)
        .unwrap();
    let verdict = if ratio <= BUDGET { "kept" } else { "missed" };
    write!(text, "\nBudget: a ratio of {BUDGET}, {verdict}. {}", shared::measured(load)).unwrap();
    text
}
