//! What `kubectl apply` must refuse, judged offline by the rules of the schema.

use expect_test::expect;
use quorate::etcd::version::{Minor, Version};
use serde_json::{Value, json};

use crate::bad_input_files::{Case, cases};
use crate::offline::refusals;

fn cluster(spec: &Value) -> Value {
    json!({
        "apiVersion": "quorate.dev/v1alpha1",
        "kind": "EtcdCluster",
        "metadata": {"name": "main", "namespace": "default"},
        "spec": spec,
    })
}

fn with_status(spec: &Value, status: &Value) -> Value {
    let mut object = cluster(spec);
    object.as_object_mut().unwrap().insert("status".to_owned(), status.clone());
    object
}

/// A cluster on record whose members run `versions`.
fn running(version: &str, versions: &[Option<&str>]) -> Value {
    let member = |(index, version): (usize, Option<&str>)| match version {
        Some(version) => json!({"name": format!("main-{index}"), "version": version}),
        None => json!({"name": format!("main-{index}")}),
    };
    let members: Vec<Value> = versions.iter().copied().enumerate().map(member).collect();
    with_status(&json!({"version": version}), &json!({"clusterID": "424b", "members": members}))
}

/// What a change of `spec.version` is answered; the status stays as it was, as it does at the apiserver.
fn version_change(old: &Value, version: &str) -> String {
    let new = with_status(&json!({"version": version}), old.get("status").unwrap());
    refusals(&new, Some(old)).join("\n")
}

/// The messages that answer the last document of a case.
fn judged(case: &Case) -> Vec<String> {
    let (bad, before) = case.documents.split_last().unwrap();
    if let Some(before) = before.first() {
        assert_eq!(
            refusals(before, None),
            Vec::<String>::new(),
            "{}: the object before must be good",
            case.file
        );
    }
    refusals(bad, before.first())
}

/// One mistake gives one message: two would make a person look for two.
#[test]
fn every_bad_file_is_refused_with_its_message_and_no_other() {
    let wrong: Vec<String> = cases()
        .iter()
        .map(|case| (case, judged(case)))
        .filter(|(case, found)| found.len() != 1 || !found[0].contains(&case.expect))
        .map(|(case, found)| format!("{}: expected {:?}, found {found:#?}", case.file, case.expect))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases().len() > 30, "{} files of bad input", cases().len());
}

#[test]
fn every_refusal_says_what_to_do() {
    let verbs =
        ["Use ", "use ", "Keep ", "Choose ", "Leave out ", "Copy ", "Lower ", "remove it", "delete the "];
    for case in cases() {
        for message in judged(&case) {
            assert!(verbs.iter().any(|verb| message.contains(verb)), "{}: no fix in: {message}", case.file);
        }
    }
}

#[test]
fn an_empty_spec_is_accepted() {
    assert_eq!(refusals(&cluster(&json!({})), None), Vec::<String>::new());
    assert_eq!(refusals(&cluster(&json!({})), Some(&cluster(&json!({})))), Vec::<String>::new());
}

#[test]
fn what_is_mutable_may_change() {
    let before = cluster(&json!({}));
    let changes = [
        json!({"replicas": 5}),
        json!({"version": "3.7"}),
        json!({"version": "3.6.14"}),
        json!({"storage": {"size": "16Gi"}}),
        json!({"storage": {"size": "8192Mi"}}),
        json!({"storage": {"storageClassName": "fast", "onDelete": "Delete", "accessMode": "ReadWriteOncePod"}}),
        json!({"quotaBackend": "7Gi"}),
        json!({"compaction": {"mode": "Revision", "retention": "10000"}}),
        json!({"compaction": {"mode": "Disabled"}}),
        json!({"extraArgs": {"heartbeat-interval": "200", "election-timeout": "2000", "snapshot-count": "5000"}}),
        json!({"podTemplate": {"metadata": {"labels": {"team": "a"}}, "terminationGracePeriodSeconds": 30}}),
        json!({"image": {"repository": "registry.example:5000/mirror/etcd"}}),
        json!({"paused": true, "logLevel": "Debug", "progressDeadline": "1h30m"}),
    ];
    for spec in changes {
        assert_eq!(refusals(&cluster(&spec), Some(&before)), Vec::<String>::new(), "{spec}");
    }
}

#[test]
fn floors_are_those_of_the_operator() {
    for minor in [Minor::V3_5, Minor::V3_6, Minor::V3_7] {
        let floor = minor.floor();
        let below = Version { patch: floor.patch - 1, ..floor };
        let judged =
            |version: Version| refusals(&cluster(&json!({"version": version.to_string()})), None).join(" ");
        assert_eq!(judged(floor), "", "{floor} is the floor");
        assert_eq!(judged(minor.newest()), "");
        assert!(judged(below).contains(&format!("Use {floor} or newer")), "{below}: {}", judged(below));
    }
}

#[test]
fn the_operator_can_read_every_version_that_is_accepted() {
    for text in ["3.5", "3.6", "3.7", "3.5.33", "3.6.16", "3.7.3", "3.6.999"] {
        assert_eq!(refusals(&cluster(&json!({"version": text})), None), Vec::<String>::new(), "{text}");
        assert!(Version::resolve(text).is_ok(), "{text}");
    }
    for text in ["", "3", "3.4", "3.8", "v3.6", "3.6.", "3.6.016", "3.6.16-rc.0", "3.6.1000", "latest"] {
        assert_eq!(refusals(&cluster(&json!({"version": text})), None).len(), 1, "{text}");
    }
}

#[test]
fn a_version_goes_back_only_while_a_member_still_runs_it() {
    // 3.7 was asked for and cannot be pulled: two members never left 3.6, so the way back is open.
    let stuck = running("3.7", &[Some("3.6.16"), Some("3.6.16"), None]);
    expect![""].assert_eq(&version_change(&stuck, "3.6"));
    let upgraded = running("3.7", &[Some("3.7.3"), Some("3.7.3"), Some("3.7.3")]);
    expect![
        "version cannot go down from 3.7 to 3.6: the data may be in the newer format. Keep 3.7, or restore a backup into a new EtcdCluster."
    ]
    .assert_eq(&version_change(&upgraded, "3.6"));
    let never_formed = with_status(&json!({"version": "3.7"}), &json!({"observedGeneration": 1}));
    expect![""].assert_eq(&version_change(&never_formed, "3.5"));
}

#[test]
fn a_second_minor_waits_for_members_that_run_an_older_one() {
    let halfway = running("3.6", &[Some("3.6.16"), Some("3.5.35"), Some("3.5.35")]);
    expect![
        "version 3.7 skips 3.6 for members that still run 3.5; upgrade one minor at a time. Use 3.6 until every member runs it."
    ]
    .assert_eq(&version_change(&halfway, "3.7"));
    let done = running("3.6", &[Some("3.6.16"), Some("3.6.16"), None]);
    expect![""].assert_eq(&version_change(&done, "3.7"));
}

#[test]
fn every_flag_that_the_operator_sets_is_owned() {
    use quorate::etcd::flags::{Flags, InitialState};
    let extra = std::collections::BTreeMap::new();
    for minor in [Minor::V3_5, Minor::V3_6, Minor::V3_7] {
        let flags = Flags {
            name: "main-0",
            address: "main-0.main-peers.default.svc",
            initial_cluster: &[],
            initial_state: InitialState::New,
            token: "token",
            tls: true,
            version: minor.newest(),
            quota_bytes: 1,
            compaction: Some(("periodic", "1h")),
            log_level: "info",
            checked: true,
            extra: &extra,
        };
        for argument in flags.arguments() {
            let name = argument.trim_start_matches('-').split('=').next().unwrap().to_owned();
            let found = refusals(&cluster(&json!({"extraArgs": {name.as_str(): "x"}})), None);
            assert_eq!(found.len(), 1, "{name} may be set twice");
        }
    }
}

#[test]
fn every_owned_flag_is_named_with_what_to_do() {
    let arguments = json!({"data-dir": "/x", "quota-backend-bytes": "1", "heartbeat-interval": "200"});
    let found = refusals(&cluster(&json!({"extraArgs": arguments})), None);
    expect!["extraArgs may not set these flags. quota-backend-bytes: use spec.quotaBackend. data-dir: the operator gives every member its identity and its place, remove it."]
        .assert_eq(&found.join("\n"));
}
