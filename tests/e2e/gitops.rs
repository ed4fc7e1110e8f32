//! EtcdClusters in Git: no difference once they are Ready, and tools that judge them right all the way.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use futures::future::join_all;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use quorate::api::{EtcdCluster, EtcdMemberReplacement};
use serde_json::{Value, json};

use crate::certificates::{brought, secret};
use crate::judges::{argo, kstatus};
use crate::support::{Story, eventually, kubectl, story};

#[tokio::test]
async fn every_example_is_in_progress_then_current_and_makes_no_noise() {
    story("examples", async |story| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples");
        let all = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let is_cluster = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("cluster");
        let files: Vec<PathBuf> = all.filter(is_cluster).collect();
        assert!(files.len() >= 5, "{files:?}");
        // One example says that they are there.
        for (name, data) in brought(&story.namespace, "own", "own") {
            story.api().create(&PostParams::default(), &secret(&name, &data)).await.unwrap();
        }
        join_all(files.iter().map(|file| example(story, file))).await;
        replacement(story, &folder.join("replacement.yaml")).await;
        alerts_name_metrics_that_exist(story).await;
    })
    .await;
}

async fn example(story: &Story, file: &Path) {
    let file = file.display().to_string();
    let said = kubectl(&["apply", "-n", &story.namespace, "-f", &file, "-o", "json"]);
    let created: Value = serde_json::from_str(&said).unwrap();
    let name = created["metadata"]["name"].as_str().unwrap();
    assert_eq!((kstatus(&created), argo(&created).0.as_str()), ("InProgress", "Progressing"), "{name}");

    let mut seen = Vec::new();
    let current = async || {
        let object = live(story, name).await;
        let verdict = (kstatus(&object), argo(&object).0);
        if seen.last() != Some(&verdict) {
            seen.push(verdict.clone());
        }
        (verdict.0 == "Current").then_some(object)
    };
    let object = eventually(&format!("{name} is Current"), current).await;
    let (last, before) = seen.split_last().unwrap();
    assert_eq!((last.0, last.1.as_str()), ("Current", "Healthy"), "{name}");
    assert!(before.iter().all(|(word, _)| *word == "InProgress"), "{name}: {seen:?}");
    assert_eq!(object["status"]["summary"], "Healthy", "{name}: current and yet {}", object["status"]);

    for _ in 0..2 {
        // Ends with 1 where something differs, which fails the story.
        assert_eq!(kubectl(&["diff", "-n", &story.namespace, "-f", &file]), "");
        let before = live(story, name).await;
        let as_argo =
            ["--server-side", "--dry-run=server", "--field-manager=argocd-controller", "-o", "json"];
        let arguments = [&["apply", "-n", &story.namespace, "-f", &file], &as_argo[..]].concat();
        let after: Value = serde_json::from_str(&kubectl(&arguments)).unwrap();
        assert_eq!(own(&after), own(&before), "{name}");
        assert_eq!(kstatus(&live(story, name).await), "Current");
    }
}

/// One that is done stays done, however often Git applies it.
async fn replacement(story: &Story, file: &Path) {
    let file = file.display().to_string();
    let apply = || kubectl(&["apply", "-n", &story.namespace, "-f", &file, "-o", "json"]);
    let created: Value = serde_json::from_str(&apply()).unwrap();
    assert_eq!(kstatus(&created), "InProgress");
    let now = async || {
        let object = story.api::<EtcdMemberReplacement>().get("main-2-disk").await.unwrap();
        serde_json::to_value(object).unwrap()
    };
    let done = async || Some(now().await).filter(|object| kstatus(object) == "Current");
    let object = eventually("the replacement is Current", done).await;
    assert_eq!(object["status"]["phase"], "Complete");
    for _ in 0..2 {
        assert_eq!(kubectl(&["diff", "-n", &story.namespace, "-f", &file]), "");
        let again: Value = serde_json::from_str(&apply()).unwrap();
        assert_eq!(again["status"], object["status"]);
    }
}

async fn live(story: &Story, name: &str) -> Value {
    serde_json::to_value(story.api::<EtcdCluster>().get(name).await.unwrap()).unwrap()
}

/// What Git is compared with: all but the bookkeeping, and the status, which goes on.
fn own(object: &Value) -> Value {
    let mut metadata = object["metadata"].clone();
    for field in ["managedFields", "resourceVersion", "generation"] {
        metadata.as_object_mut().unwrap().remove(field);
    }
    json!({"metadata": metadata, "spec": object["spec"]})
}

/// A renamed metric would silence its alert.
async fn alerts_name_metrics_that_exist(story: &Story) {
    let leases: Api<Lease> = Api::namespaced(story.client.clone(), "quorate-system");
    let holder = leases.get("quorate-operator").await.unwrap().spec.unwrap().holder_identity.unwrap();
    let scrape = |namespace: &str, pod: &str, port: u16| {
        kubectl(&["get", "--raw", &format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/metrics")])
    };
    let served = scrape("quorate-system", &holder, 8080) + &scrape(&story.namespace, "main-0", 2381);
    let served: BTreeSet<&str> =
        // A metric of mirrors is described where there is no mirror.
        served.lines().filter_map(|line| line.trim_start_matches("# TYPE ").split(['{', ' ']).next()).collect();
    let rules = include_str!("../../deploy/chart/alerts.yaml");
    let is_of_a_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let prefixes = ["etcd_", "quorate_", "grpc_server_"];
    let words: BTreeSet<&str> = rules.split(|letter| !is_of_a_name(letter)).collect();
    let named: Vec<&&str> =
        words.iter().filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix))).collect();
    assert!(named.len() > 15, "{named:?}");
    let missing: Vec<_> = named.into_iter().filter(|name| !served.contains(**name)).collect();
    assert!(missing.is_empty(), "nobody serves {missing:?}");
}

#[tokio::test]
async fn a_member_that_finds_no_node_is_failed_until_the_spec_is_corrected() {
    story("failed", async |story| {
        let nowhere = json!({"replicas": 1, "placement": {"nodeSelector": {"quorate.dev/no-such": "node"}}});
        story.create(nowhere).await;
        let verdict = async |wanted: &str| {
            let found = async || Some(live(story, "main").await).filter(|object| kstatus(object) == wanted);
            eventually(&format!("kstatus says {wanted}"), found).await
        };
        let failed = verdict("Failed").await;
        let (word, message) = argo(&failed);
        assert!(word == "Degraded" && message.starts_with("main-0 finds no node: "), "{word}: {message}");
        story.patch(json!({"placement": {"nodeSelector": null}})).await;
        let current = verdict("Current").await;
        assert_eq!(argo(&current).0, "Healthy");
    })
    .await;
}

/// Argo CD may track what is its own by a label that many a chart sets, and prunes what has no owner and is not in Git.
#[tokio::test]
async fn no_child_looks_like_a_part_of_the_application_that_brought_the_cluster() {
    story("tracked", async |story| {
        story
            .create_annotated(json!({"replicas": 1}), json!({"argocd.argoproj.io/tracking-id": "main:x"}))
            .await;
        let label = "app.kubernetes.io/instance";
        kubectl(&["label", "-n", &story.namespace, "etcdcluster", "main", &format!("{label}=main")]);
        story.healthy().await;
        let kinds = "pods,persistentvolumeclaims,services,secrets,configmaps,poddisruptionbudgets";
        let said =
            kubectl(&["get", kinds, "-n", &story.namespace, "-l", "quorate.dev/cluster=main", "-o", "json"]);
        let children: Value = serde_json::from_str(&said).unwrap();
        let children = children["items"].as_array().unwrap();
        assert!(children.len() >= 8, "{} children", children.len());
        for child in children {
            let metadata = &child["metadata"];
            assert!(metadata["labels"].get(label).is_none(), "{} {}", child["kind"], metadata["name"]);
            assert!(metadata["annotations"].get("argocd.argoproj.io/tracking-id").is_none(), "{metadata}");
        }
        assert_eq!(
            story.cluster().await.labels().get(label).map(String::as_str),
            Some("main"),
            "not ours to change"
        );
    })
    .await;
}
