//! Every file in `deploy/examples/` would be accepted, and means what it says.

use std::path::{Path, PathBuf};

use kube::core::cel::apply_defaults;
use quorate::api::{EtcdCluster, EtcdMemberReplacement, EtcdMirror};
use serde_json::{Value, json};

use crate::offline::{refusals, schema, schema_of, yaml};

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples");
    let all = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_cluster = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("cluster");
    let files: Vec<PathBuf> = all.filter(is_cluster).collect();
    assert!(files.len() >= 5, "{files:?}");
    files
}

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples").join(name)).unwrap()
}

/// Paths in `written` that `known` lacks: misspelt fields.
fn unknown(path: &str, written: &Value, known: &Value, found: &mut Vec<String>) {
    match (written, known) {
        (Value::Object(written), Value::Object(known)) => {
            for (name, value) in written {
                match known.get(name) {
                    Some(known) => unknown(&format!("{path}.{name}"), value, known, found),
                    None => found.push(format!("{path}.{name}")),
                }
            }
        }
        (Value::Array(written), Value::Array(known)) => {
            for (value, known) in written.iter().zip(known) {
                unknown(&format!("{path}[]"), value, known, found);
            }
        }
        _ => {}
    }
}

fn misspelt(object: &Value) -> Vec<String> {
    let typed: EtcdCluster = serde_json::from_value(object.clone()).unwrap();
    let mut found = Vec::new();
    unknown("", object, &serde_json::to_value(&typed).unwrap(), &mut found);
    found
}

#[test]
fn the_replacement_is_one_and_has_no_misspelt_field() {
    let object = yaml(&read("replacement.yaml"));
    let typed: EtcdMemberReplacement = serde_json::from_value(object.clone()).unwrap();
    let mut found = Vec::new();
    unknown("", &object, &serde_json::to_value(&typed).unwrap(), &mut found);
    assert_eq!(found, Vec::<String>::new());
    assert_eq!(typed.spec.member.as_deref(), Some("main-2"));
}

#[test]
fn the_mirrors_are_accepted_and_have_no_misspelt_field() {
    for file in ["mirror.yaml", "mirror-all-fields.yaml"] {
        let object = yaml(&read(file));
        assert_eq!(refusals(&object, None), Vec::<String>::new(), "{file}");
        let typed: EtcdMirror = serde_json::from_value(object.clone()).unwrap();
        let mut found = Vec::new();
        unknown("", &object, &serde_json::to_value(&typed).unwrap(), &mut found);
        assert_eq!(found, Vec::<String>::new(), "{file}");
    }
}

#[test]
fn the_mirror_with_all_fields_has_them_all() {
    let object = yaml(&read("mirror-all-fields.yaml"));
    let schema = schema_of("EtcdMirror");
    let mut missing = Vec::new();
    absent("spec", schema.pointer("/properties/spec").unwrap(), object.get("spec").unwrap(), &mut missing);
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn every_example_is_accepted_and_has_no_misspelt_field() {
    for file in files() {
        let object = yaml(&std::fs::read_to_string(&file).unwrap());
        assert_eq!(refusals(&object, None), Vec::<String>::new(), "{}", file.display());
        assert_eq!(misspelt(&object), Vec::<String>::new(), "{}", file.display());
    }
    let wrong = json!({"apiVersion": "quorate.dev/v1alpha1", "kind": "EtcdCluster", "metadata": {"name": "a"}, "spec": {"replica": 3}});
    assert_eq!(misspelt(&wrong), [".spec.replica"], "the check itself");
}

#[test]
fn the_first_example_has_five_lines() {
    assert_eq!(read("cluster.yaml").lines().count(), 5);
}

#[test]
fn the_example_with_all_fields_asks_for_the_defaults() {
    let object = yaml(&read("cluster-all-fields.yaml"));
    let empty = json!({"apiVersion": "quorate.dev/v1alpha1", "kind": "EtcdCluster", "metadata": {"name": "a"}, "spec": {}});
    assert_eq!(object.get("spec"), apply_defaults(&schema(), &empty).get("spec"));
}

/// The same file with its fields uncommented; a comment that ends with a full stop is prose.
fn uncommented() -> String {
    let take = |line: &str| if line.ends_with('.') { line.to_owned() } else { line.replacen("# ", "", 1) };
    read("cluster-all-fields.yaml").lines().map(take).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_with_all_fields_has_them_all_and_they_are_accepted() {
    let object = yaml(&uncommented());
    assert_eq!(refusals(&object, None), Vec::<String>::new());
    assert_eq!(misspelt(&object), Vec::<String>::new());
    let mut missing = Vec::new();
    absent("spec", schema().pointer("/properties/spec").unwrap(), object.get("spec").unwrap(), &mut missing);
    // Kubernetes documents the fields of its own types.
    missing.retain(|path| !path.contains("tolerations"));
    // Secrets of the user's and certificates of the operator's exclude each other: another example has them.
    assert!(read("cluster-own-certificates.yaml").contains("    secrets:"));
    missing.retain(|path| path != "spec.tls.secrets");
    assert_eq!(missing, Vec::<String>::new());
}

/// Properties of `schema` that `value` lacks.
fn absent(path: &str, schema: &Value, value: &Value, missing: &mut Vec<String>) {
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = format!("{path}.{name}");
        match value.get(name) {
            Some(value) => absent(&path, property, value, missing),
            None => missing.push(path),
        }
    }
}
