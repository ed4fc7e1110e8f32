//! What GitOps tools make of every status that the operator writes.

use jiff::Timestamp;
use quorate::api::EtcdCluster;
use quorate::api::cluster::EtcdClusterStatus;
use quorate::operator::cluster::desired::Desired;
use quorate::operator::cluster::observed::Observed;
use quorate::operator::cluster::plan::plan;
use quorate::operator::cluster::status::{recorded, status};
use serde_json::{Value, json};

use crate::judges::{argo, kstatus};
use crate::plan::{healthy, nothing, pod};

fn object(spec: &Value, deleting: bool) -> EtcdCluster {
    let mut metadata = json!({"name": "main", "namespace": "test", "uid": "uid-of-ours", "generation": 3});
    if deleting {
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    }
    let mut spec = spec.clone();
    spec["tls"] = json!({"mode": "Disabled"});
    let object = json!({
        "apiVersion": "quorate.dev/v1alpha1", "kind": "EtcdCluster", "metadata": metadata, "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

/// What the operator would write of that picture, `minutes` after it began to look.
fn told(spec: &Value, observed: &Observed, minutes: i64) -> Value {
    let mut object = object(spec, false);
    let desired = Desired::of(&object, "quorate:test").unwrap();
    let findings = plan(&desired, observed).findings;
    let begin = Timestamp::UNIX_EPOCH;
    let first = status(&EtcdClusterStatus::default(), &desired, observed, &findings, begin);
    let now = begin + jiff::Span::new().minutes(minutes);
    object.status = Some(status(&first, &desired, observed, &findings, now));
    serde_json::to_value(&object).unwrap()
}

fn judged(object: &Value) -> (&'static str, String) {
    (kstatus(object), argo(object).0)
}

#[test]
fn an_object_that_nobody_has_seen_is_in_progress() {
    let mut new = serde_json::to_value(object(&json!({}), false)).unwrap();
    assert_eq!(argo(&new), ("Progressing".to_owned(), "Waiting for the operator".to_owned()));
    new["status"] = json!({"observedGeneration": -1});
    assert_eq!(judged(&new), ("InProgress", "Progressing".to_owned()));
}

#[test]
fn an_edit_is_in_progress_until_the_operator_has_seen_it() {
    let mut edited = told(&json!({}), &healthy(), 0);
    assert_eq!(judged(&edited), ("Current", "Healthy".to_owned()));
    edited["metadata"]["generation"] = 4.into();
    assert_eq!(judged(&edited), ("InProgress", "Progressing".to_owned()));
}

/// Between the two there may be seconds: a tool that waits must not go on.
#[test]
fn a_record_that_is_written_ahead_of_an_act_is_in_progress() {
    let mut object = object(&json!({}), false);
    let desired = Desired::of(&object, "quorate:test").unwrap();
    let finished = told(&json!({}), &healthy(), 0);
    let finished: EtcdClusterStatus = serde_json::from_value(finished["status"].clone()).unwrap();
    let edited = EtcdClusterStatus { observed_generation: Some(2), ..finished };
    for before in [EtcdClusterStatus::default(), edited] {
        object.status = Some(recorded(&before, &desired, &healthy().record));
        let object = serde_json::to_value(&object).unwrap();
        assert_eq!(judged(&object), ("InProgress", "Progressing".to_owned()), "{}", object["status"]);
    }
}

#[test]
fn a_first_start_is_in_progress_and_fails_after_its_deadline() {
    assert_eq!(judged(&told(&json!({}), &nothing(), 1)), ("InProgress", "Progressing".to_owned()));
    assert_eq!(judged(&told(&json!({}), &nothing(), 16)), ("Failed", "Degraded".to_owned()));
}

#[test]
fn a_member_that_finds_no_node_is_a_failure_with_the_operators_sentence() {
    let mut observed = healthy();
    observed.survey.remove("main-2");
    let waits = quorate::operator::cluster::observed::MemberPod {
        phase: "Pending".to_owned(),
        ready: false,
        running: false,
        ran: false,
        unschedulable: Some("0/3 nodes are available".to_owned()),
        ..pod("main-2")
    };
    observed.pods.insert("main-2".to_owned(), waits);
    let object = told(&json!({}), &observed, 0);
    assert_eq!(judged(&object), ("Failed", "Degraded".to_owned()));
    let message = argo(&object).1;
    assert!(message.starts_with("main-2 finds no node: 0/3 nodes are available."), "{message}");
}

#[test]
fn a_member_that_is_down_is_in_progress_and_a_pause_is_no_failure() {
    let mut observed = healthy();
    observed.survey.insert("main-2".to_owned(), Err("connection refused".to_owned()));
    assert_eq!(judged(&told(&json!({}), &observed, 0)), ("InProgress", "Progressing".to_owned()));
    let (verdict, shown) = judged(&told(&json!({"paused": true}), &healthy(), 0));
    assert_eq!((verdict, shown.as_str()), ("Current", "Suspended"));
}

#[test]
fn a_spec_that_cannot_be_used_is_a_failure_that_was_seen() {
    let mut object = object(&json!({"version": "3.4.1"}), false);
    let error = Desired::of(&object, "quorate:test").unwrap_err();
    let before = EtcdClusterStatus::default();
    let status = quorate::operator::cluster::status::invalid(&before, &object, &error, Timestamp::UNIX_EPOCH);
    object.status = Some(status);
    assert_eq!(judged(&serde_json::to_value(&object).unwrap()), ("Failed", "Degraded".to_owned()));
}

#[test]
fn what_argo_cd_and_flux_are_pointed_at_exists() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = 0;
    for file in ["argocd/applications.yaml", "flux/kustomizations.yaml", "flux/operator/release.yaml"] {
        let text = std::fs::read_to_string(root.join("deploy").join(file)).unwrap();
        for part in text.split("\n---\n") {
            let object = crate::offline::yaml(part);
            let folder = ["/spec/source/path", "/spec/path", "/spec/chart/spec/chart"];
            for folder in folder.iter().filter_map(|pointer| object.pointer(pointer)?.as_str()) {
                assert!(root.join(folder).is_dir(), "{file}: there is no {folder}");
                folders += 1;
            }
        }
    }
    assert_eq!(folders, 5);
}

/// kstatus' own rules, as its tests have them.
#[test]
fn kstatus_is_ported_whole() {
    let of = |status: Value| kstatus(&json!({"metadata": {"generation": 1}, "status": status}));
    let with = |conditions: &[(&str, &str)]| {
        let conditions: Vec<Value> =
            conditions.iter().map(|(type_, status)| json!({"type": type_, "status": status})).collect();
        of(json!({"observedGeneration": 1, "conditions": conditions}))
    };
    assert_eq!(kstatus(&json!({"metadata": {}})), "Current", "nothing is known of it");
    assert_eq!(of(json!({})), "Current", "what is not observed by generation is not judged by it");
    assert_eq!(of(json!({"observedGeneration": 2})), "InProgress");
    assert_eq!(with(&[("Reconciling", "True"), ("Stalled", "True")]), "InProgress");
    assert_eq!(with(&[("Stalled", "True"), ("Reconciling", "True")]), "Failed");
    assert_eq!(with(&[("Reconciling", "False"), ("Stalled", "False"), ("Ready", "True")]), "Current");
    assert_eq!((with(&[("Ready", "False")]), with(&[("Ready", "Unknown")])), ("InProgress", "InProgress"));
    let deleted = json!({"metadata": {"generation": 1, "deletionTimestamp": "2026-01-01T00:00:00Z"}});
    assert_eq!(kstatus(&deleted), "Terminating");
}
