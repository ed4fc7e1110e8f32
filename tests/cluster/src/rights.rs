//! Whether the operator has a right that it never uses.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::audit::{self, Use};
use crate::control_plane::kubectl;
use crate::state::Cluster;

const ACCOUNT: &str = "system:serviceaccount:quorate-system:quorate-operator";

/// Asked about by the admission plugin OwnerReferencesPermissionEnforcement, which the test cluster runs: without this
/// rights no child can be made there. They are no requests of the operator's, so no log has them.
const ASKED_BY_ADMISSION: [[&str; 3]; 2] = [
    ["quorate.dev", "etcdclusters/finalizers", "update"],
    ["quorate.dev", "etcdmirrors/finalizers", "update"],
];

#[derive(Deserialize)]
struct Role {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<String>,
}

/// How many rights the operator's roles give, and those that no request of its has ever needed.
pub(crate) fn unused(cluster: &Cluster, programs: &Path) -> Result<(usize, Vec<String>)> {
    let used = audit::used(cluster, ACCOUNT)?;
    let mut given = BTreeSet::new();
    for words in [
        ["clusterrole", "quorate-operator", "--namespace=quorate-system"],
        ["role", "quorate-operator", "--namespace=quorate-system"],
    ] {
        let said = kubectl(cluster, programs, &[&["get", "-o", "json"], words.as_slice()].concat())?;
        let role: Role = serde_json::from_str(&said).context("a role cannot be read")?;
        given.extend(role.rules.iter().flat_map(rights));
    }
    for [group, resource, verb] in ASKED_BY_ADMISSION.map(|right| right.map(str::to_owned)) {
        given.remove(&(group, resource, verb));
    }
    let unused = given.difference(&used).map(|(group, resource, verb)| format!("{verb} {resource}.{group}"));
    Ok((given.len(), unused.collect()))
}

fn rights(rule: &Rule) -> Vec<Use> {
    let mut rights = Vec::new();
    for group in &rule.api_groups {
        for resource in &rule.resources {
            rights.extend(rule.verbs.iter().map(|verb| (group.clone(), resource.clone(), verb.clone())));
        }
    }
    rights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_gives_every_verb_on_every_resource() {
        let words = |all: &[&str]| all.iter().map(|word| (*word).to_owned()).collect();
        let rule = Rule {
            api_groups: words(&[""]),
            resources: words(&["pods", "secrets"]),
            verbs: words(&["get", "list"]),
        };
        let said: Vec<String> =
            rights(&rule).iter().map(|(_, what, verb)| format!("{verb} {what}")).collect();
        assert_eq!(said, ["get pods", "list pods", "get secrets", "list secrets"]);
    }
}
