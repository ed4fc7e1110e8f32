//! `deploy/install.yaml` is the CRDs and `deploy/operator.yaml` in one file, so that one command installs all.

use std::fs;
use std::path::Path;

const HEADER: &str = "# generated from crds/ and deploy/operator.yaml by `UPDATE_EXPECT=1 cargo test --test it`, do not edit\n";

#[test]
fn install_yaml_is_the_crds_and_the_operator() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let wanted = format!("{HEADER}{}---\n{}", read("crds/etcdclusters.yaml"), read("deploy/operator.yaml"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(root.join("deploy/install.yaml"), &wanted).unwrap();
    }
    assert!(read("deploy/install.yaml") == wanted, "deploy/install.yaml is out of date: {HEADER}");
}

#[test]
fn the_operator_asks_for_no_right_by_wildcard() {
    let operator =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/operator.yaml")).unwrap();
    assert!(!operator.contains('*'), "deploy/operator.yaml contains a wildcard");
}
