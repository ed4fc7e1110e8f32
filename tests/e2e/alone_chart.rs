//! The Helm chart on a real apiserver: everything that it can render is accepted, and an operator that it installs for
//! one namespace looks after that one only. By its name among the first, as one of the two runs alone.

use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::process::{Command, Stdio};

use futures::FutureExt;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use quorate::api::EtcdCluster;
use serde_json::{Value, json};

use crate::support::{Story, eventually, identities, kubectl, story, story_alone};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/chart");

/// Runs Helm, which is among the programs of the test cluster; a failure fails the story with its words.
fn helm(arguments: &[&str]) -> String {
    let output = Command::new("helm").args(arguments).output().expect("helm is on the PATH");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "helm {arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn dry_run(manifests: &str) -> String {
    let mut kubectl = Command::new("kubectl");
    kubectl.args(["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"]);
    let mut child =
        kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("kubectl is on the PATH");
    child.stdin.take().unwrap().write_all(manifests.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "refused: {said}");
    said
}

#[tokio::test]
async fn everything_that_the_chart_renders_is_accepted() {
    story("rendered", async |story| {
        let namespace = story.namespace.as_str();
        let render = |settings: &[&str]| helm(&[&["template", "quorate", CHART, "-n", namespace], settings].concat());
        let watched = format!("--set=watchNamespaces={{{namespace}}}");
        let all = [
            watched.as_str(),
            "--set=networkPolicy.enabled=true,networkPolicy.from[0].podSelector.matchLabels.app=prometheus",
            "--set=priorityClassName=system-cluster-critical,nodeSelector.disk=ssd,tolerations[0].operator=Exists",
            "--set=image.pullSecrets[0].name=registry-credentials,image.tag=v9",
        ];
        for settings in [&[][..], &all[..]] {
            let said = dry_run(&render(settings));
            assert!(said.contains("deployment.apps/quorate-operator"), "{said}");
            assert_eq!(said.contains("networkpolicy"), !settings.is_empty(), "{said}");
        }
    })
    .await;
}

/// The default operator is stopped for that time, since a namespace has one operator.
#[tokio::test]
async fn an_operator_installed_by_helm_for_one_namespace_looks_after_that_one_only() {
    story_alone("chart", async |story| {
        let other = format!("{}-other", story.namespace);
        scale_default_operator(story, 0).await;
        let outcome = AssertUnwindSafe(installed(story, &other)).catch_unwind().await;
        scale_default_operator(story, 2).await;
        let namespaces: Api<Namespace> = Api::all(story.client.clone());
        let deleted = namespaces.delete(&other, &DeleteParams::default()).await;
        kubectl(&["delete", "--ignore-not-found", "-f", MONITORING]);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        assert!(deleted.is_ok(), "{deleted:?}");
        // What the one operator made the other goes on with.
        story.delete_pod("main-0").await;
        story.healthy().await;
    })
    .await;
}

/// The two kinds of the Prometheus Operator that the chart asks for, with any content.
const MONITORING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/monitoring.yaml");

async fn scale_default_operator(story: &Story, replicas: usize) {
    let count = format!("--replicas={replicas}");
    kubectl(&["-n", "quorate-system", "scale", "deployment/quorate-operator", &count]);
    let pods: Api<Pod> = Api::namespaced(story.client.clone(), "quorate-system");
    let operators = ListParams::default().labels("app.kubernetes.io/component=operator");
    let ready = async || {
        let list = pods.list(&operators).await.unwrap().items;
        let ready = list.iter().filter(|pod| {
            let status = pod.status.clone().unwrap_or_default();
            status.container_statuses.unwrap_or_default().iter().any(|container| container.ready)
        });
        (list.len() == replicas && ready.count() == replicas).then_some(())
    };
    eventually(&format!("the default operator has {replicas} replicas"), ready).await;
}

async fn installed(story: &Story, other: &str) {
    let namespace = story.namespace.as_str();
    kubectl(&["apply", "-f", MONITORING]);
    kubectl(&["wait", "--for=condition=Established", "-f", MONITORING, "--timeout=60s"]);
    let watched = format!("--set=watchNamespaces={{{namespace}}},crds.enabled=false,aggregateRoles=false");
    helm(&[
        "install",
        "quorate",
        CHART,
        "-n",
        namespace,
        &watched,
        "--set=replicaCount=1",
        "--wait",
        "--timeout=150s",
    ]);
    for kind in ["podmonitors/quorate-etcd", "podmonitors/quorate-operator", "prometheusrules/quorate"] {
        kubectl(&["get", "-n", namespace, kind]);
    }

    let object = json!({"metadata": {"name": other}});
    let namespaces: Api<Namespace> = Api::all(story.client.clone());
    namespaces.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    let unwatched: Api<EtcdCluster> = Api::namespaced(story.client.clone(), other);
    let object = json!({"apiVersion": "quorate.dev/v1alpha1", "kind": "EtcdCluster", "metadata": {"name": "main"}, "spec": {}});
    unwatched.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    // While its volume is unbound the operator reads the storage class, which is in no namespace.
    story.create(json!({"replicas": 1})).await;
    let before = identities(&story.healthy().await);
    let status = unwatched.get("main").await.unwrap().status.unwrap_or_default();
    assert_eq!(status.observed_generation, Some(-1), "a namespace that is not watched was looked after");

    let may = |words: &[&str]| {
        let account = format!("--as=system:serviceaccount:{namespace}:quorate-operator");
        let said = Command::new("kubectl").args(["auth", "can-i", &account]).args(words).output().unwrap();
        String::from_utf8_lossy(&said.stdout).trim() == "yes"
    };
    assert!(may(&["create", "pods", "-n", namespace]) && may(&["get", "storageclasses"]));
    assert!(!may(&["list", "secrets", "-n", namespace]), "Secrets can be listed");
    assert!(
        !may(&["list", "pods", "-n", other]) && !may(&["list", "etcdclusters.quorate.dev", "-A"]),
        "rights elsewhere"
    );

    helm(&[
        "upgrade",
        "quorate",
        CHART,
        "-n",
        namespace,
        "--reuse-values",
        "--set=networkPolicy.enabled=true",
        "--wait",
        "--timeout=150s",
    ]);
    assert_eq!(identities(&story.healthy().await), before, "an upgrade changed the cluster");
    let pod = story.pod("main-0").await.unwrap().uid();
    helm(&["uninstall", "quorate", "-n", namespace, "--wait", "--timeout=150s"]);
    assert_eq!(story.pod("main-0").await.unwrap().uid(), pod, "a member went with the operator");
    story.write("without-operator-", 10).await;
    let definition: Value =
        serde_json::from_str(&kubectl(&["get", "crd", "etcdclusters.quorate.dev", "-o", "json"])).unwrap();
    assert!(
        definition["metadata"].get("deletionTimestamp").is_none(),
        "the definitions went with the operator"
    );
}
