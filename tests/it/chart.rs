//! The Helm chart is the one source of what is installed: `deploy/install.yaml` is the CRDs and the chart rendered with
//! its defaults. Helm is built with the programs of the test cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use quorate::api::schema::all_crds;
use quorate::operator::cluster::plan::plan;
use serde_json::{Value, json};

use crate::offline::yaml;
use crate::plan::{created, desired, healthy};

const HEADER: &str =
    "# generated from crds/ and deploy/chart by `UPDATE_EXPECT=1 cargo test --test it chart`, do not edit\n";
/// The first line of what Helm renders.
const RENDERED: &str = "---\n# Source: ";
const POD_MONITOR: &str = "--api-versions=monitoring.coreos.com/v1/PodMonitor";
const RULE: &str = "--api-versions=monitoring.coreos.com/v1/PrometheusRule";

fn path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Compares a committed file with what it should be, or writes it.
fn generated(file: &str, wanted: &str) {
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::create_dir_all(path(file).parent().unwrap()).unwrap();
        fs::write(path(file), wanted).unwrap();
    }
    assert!(read(file) == wanted, "{file} is out of date: {HEADER}");
}

fn helm(arguments: &[&str]) -> Result<String, String> {
    let Some(folder) = std::env::var_os("QUORATE_BIN") else {
        panic!(
            "QUORATE_BIN is not set: run `export QUORATE_BIN=$(cargo cluster programs)`, then this test again"
        );
    };
    let output = Command::new(Path::new(&folder).join("helm")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn template(arguments: &[&str]) -> Result<String, String> {
    let chart = path("deploy/chart").display().to_string();
    helm(&[&["template", "quorate", chart.as_str(), "--namespace", "quorate-system"], arguments].concat())
}

/// The objects that Helm renders, by kind and name.
fn objects(arguments: &[&str]) -> BTreeMap<String, Value> {
    let text = template(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
    documents(&text)
}

fn documents(text: &str) -> BTreeMap<String, Value> {
    let is_object = |part: &&str| part.lines().any(|line| line.starts_with("kind: "));
    let parts = text.split("---\n").filter(is_object);
    let named = parts.map(|part| {
        let object = yaml(part);
        let word = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let name = format!("{} {} {}", word("/kind"), word("/metadata/namespace"), word("/metadata/name"));
        (name.replace("  ", " "), object)
    });
    named.collect()
}

#[test]
fn the_charts_definitions_are_the_committed_ones() {
    for definition in all_crds() {
        let name = format!("{}.yaml", definition.spec.names.plural);
        let text = read(&format!("crds/{name}"));
        assert!(!text.contains("{{"), "{name} has what Helm takes for a template");
        let body = text.split_once('\n').unwrap().1;
        assert_eq!(body.matches("\n  annotations:\n").count(), 1, "{name}");
        let keep = "\n  annotations:\n    {{- if .Values.crds.keep }}\n    helm.sh/resource-policy: keep\n    {{- end }}\n";
        let body = body.replacen("\n  annotations:\n", keep, 1);
        let wanted = format!(
            "{{{{- /* {} */}}}}\n{{{{- if .Values.crds.enabled }}}}\n{body}{{{{- end }}}}\n",
            HEADER.trim_start_matches("# ").trim_end()
        );
        generated(&format!("deploy/chart/templates/crds/{name}"), &wanted);
    }
}

/// Two tests generate a part of `install.yaml` each.
static INSTALL: Mutex<()> = Mutex::new(());

/// Needs no Helm, so that a changed definition is generated without it.
#[test]
fn install_yaml_begins_with_the_definitions() {
    let _alone = INSTALL.lock();
    let before = read("deploy/install.yaml");
    let (_, operator) = before.split_once(RENDERED).expect("install.yaml ends with what Helm rendered");
    generated("deploy/install.yaml", &format!("{}{RENDERED}{operator}", definitions()));
}

#[test]
fn install_yaml_ends_with_the_chart_as_it_is_by_default() {
    let operator = template(&["--set=crds.enabled=false,createNamespace=true"]).unwrap();
    assert!(operator.starts_with(RENDERED), "{operator}");
    let _alone = INSTALL.lock();
    let before = read("deploy/install.yaml");
    let (definitions, _) = before.split_once(RENDERED).expect("install.yaml begins with definitions");
    generated("deploy/install.yaml", &format!("{definitions}{operator}"));
}

fn definitions() -> String {
    let names = all_crds().into_iter().map(|definition| definition.spec.names.plural);
    let texts = names.map(|name| read(&format!("crds/{name}.yaml")).split_once('\n').unwrap().1.to_owned());
    HEADER.to_owned() + &texts.collect::<Vec<_>>().join("---\n")
}

#[test]
fn the_definitions_are_kept_unless_told_otherwise() {
    let name = "CustomResourceDefinition etcdclusters.quorate.dev";
    let mut kept = objects(&[]).remove(name).unwrap();
    let annotations = kept["metadata"]["annotations"].as_object_mut().unwrap();
    assert_eq!(annotations.remove("helm.sh/resource-policy"), Some(json!("keep")));
    assert_eq!(kept, yaml(&read("crds/etcdclusters.yaml")), "the rest is what is committed");
    assert_eq!(objects(&["--set=crds.keep=false"]).remove(name).unwrap(), kept);
    assert!(!objects(&["--set=crds.enabled=false"]).contains_key(name));
}

#[test]
fn helm_finds_no_fault() {
    let chart = path("deploy/chart").display().to_string();
    let said = helm(&["lint", "--strict", &chart]).unwrap();
    assert!(said.contains("0 chart(s) failed"), "{said}");
    let version = format!("\nversion: {}\nappVersion: v{0}\n", env!("CARGO_PKG_VERSION"));
    assert!(read("deploy/chart/Chart.yaml").contains(&version), "Chart.yaml lacks {version}");
}

#[test]
fn a_value_that_cannot_be_meant_is_refused() {
    for wrong in [
        "replicas=3",
        "replicaCount=many",
        "image.pullPolicy=Sometimes",
        "watchNamespaces=team-a",
        "watchNamespaces={Team_A}",
        "crds.keep=perhaps",
        "monitoring.podMonitor=Off",
        "monitoring.alert=Enabled",
        "networkPolicy.enabled=maybe",
        "resources.request.cpu=1",
    ] {
        let refused = template(&["--set", wrong]);
        assert!(refused.as_ref().is_err_and(|said| said.contains("schema")), "{wrong}: {refused:?}");
    }
}

/// Every value that is documented does something.
#[test]
fn every_value_is_heard() {
    let plain = template(&[]).unwrap();
    let values = [
        "replicaCount=1",
        "image.repository=registry.example/quorate",
        "image.tag=v9",
        "image.pullPolicy=Always",
        "image.pullSecrets[0].name=registry-credentials",
        "watchNamespaces={team-a}",
        "crds.enabled=false",
        "crds.keep=false",
        "aggregateRoles=false",
        "createNamespace=true",
        "resources.requests.cpu=2",
        "priorityClassName=system-cluster-critical",
        "nodeSelector.disk=ssd",
        "tolerations[0].key=dedicated",
        "networkPolicy.enabled=true",
        "networkPolicy.enabled=true,networkPolicy.from[0].namespaceSelector.matchLabels.name=monitoring",
        "monitoring.podMonitor=Enabled",
        "monitoring.alerts=Enabled",
        "monitoring.dashboards=Enabled",
        "monitoring.alerts=Enabled,monitoring.labels.release=prometheus",
    ];
    let mut seen = BTreeSet::from([plain]);
    for value in values {
        assert!(seen.insert(template(&["--set", value]).unwrap()), "{value} changes nothing");
    }
    let documented = yaml(&read("deploy/chart/values.yaml"));
    for (name, value) in documented.as_object().unwrap() {
        let fields = value
            .as_object()
            .filter(|_| ["image", "crds", "networkPolicy", "monitoring"].contains(&name.as_str()));
        let names = fields.map_or_else(
            || vec![name.clone()],
            |fields| fields.keys().map(|field| format!("{name}.{field}")).collect(),
        );
        for name in names {
            assert!(values.iter().any(|value| value.contains(&name)), "{name} is not tried");
        }
    }
}

#[test]
fn one_image_brings_operator_and_guard() {
    let deployment = objects(&["--set=image.repository=registry.example/q,image.tag=v9"])
        .remove("Deployment quorate-system quorate-operator")
        .unwrap();
    let container = deployment.pointer("/spec/template/spec/containers/0").unwrap();
    assert_eq!(container["image"], "registry.example/q:v9");
    assert_eq!(container["env"][0], json!({"name": "QUORATE_IMAGE", "value": "registry.example/q:v9"}));
}

#[test]
fn an_operator_of_certain_namespaces_has_its_rights_only_there() {
    let all = objects(&[]);
    let some = objects(&["--set=watchNamespaces={team-a,team-b}"]);
    let everywhere = all["ClusterRole quorate-operator"]["rules"].as_array().unwrap();
    let beyond = &some["ClusterRole quorate-operator-quorate-system"]["rules"];
    assert_eq!(
        *beyond,
        json!([
            {"apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]},
        ])
    );
    assert!(!some.contains_key("ClusterRole quorate-operator"), "rights everywhere");
    for namespace in ["team-a", "team-b"] {
        let role = &some[&format!("Role {namespace} quorate-operator-clusters")]["rules"];
        let both: Vec<&Value> = role.as_array().unwrap().iter().chain(beyond.as_array().unwrap()).collect();
        assert_eq!(both, everywhere.iter().collect::<Vec<_>>(), "in {namespace} it may do something else");
        let binding = &some[&format!("RoleBinding {namespace} quorate-operator-clusters")];
        assert_eq!(binding["subjects"][0]["namespace"], "quorate-system");
        assert_eq!(binding["roleRef"]["kind"], "Role");
    }
    let environment = some["Deployment quorate-system quorate-operator"]
        .pointer("/spec/template/spec/containers/0/env")
        .unwrap();
    assert!(
        environment
            .as_array()
            .unwrap()
            .contains(&json!({"name": "QUORATE_WATCH_NAMESPACES", "value": "team-a,team-b"}))
    );
}

#[test]
fn the_operator_asks_for_no_right_by_wildcard() {
    for (name, object) in objects(&[]).into_iter().filter(|(name, _)| name.contains("Role ")) {
        assert!(!object["rules"].to_string().contains('*'), "{name}: {}", object["rules"]);
    }
}

#[test]
fn monitoring_is_made_only_where_its_kinds_exist() {
    let made = |arguments: &[&str]| -> Vec<String> {
        let of_prometheus = |object: &Value| object["apiVersion"] == "monitoring.coreos.com/v1";
        let objects = objects(arguments).into_iter().filter(|(_, object)| of_prometheus(object));
        objects.map(|(name, _)| name.replace(" quorate-system ", " ")).collect()
    };
    let monitors = ["PodMonitor quorate-etcd", "PodMonitor quorate-mirror", "PodMonitor quorate-operator"];
    let rule = ["PrometheusRule quorate"];
    assert!(made(&[]).is_empty());
    assert_eq!(made(&[POD_MONITOR]), monitors);
    assert_eq!(made(&[RULE]), rule);
    assert_eq!(made(&[POD_MONITOR, RULE]), [&monitors[..], &rule[..]].concat());
    assert_eq!(
        made(&["--set=monitoring.podMonitor=Enabled,monitoring.alerts=Enabled"]),
        [&monitors[..], &rule[..]].concat()
    );
    assert!(
        made(&[POD_MONITOR, RULE, "--set=monitoring.podMonitor=Disabled,monitoring.alerts=Disabled"])
            .is_empty()
    );
    let rules = &objects(&[RULE])["PrometheusRule quorate-system quorate"]["spec"];
    assert_eq!(*rules, yaml(&read("deploy/chart/alerts.yaml")));
}

#[test]
fn dashboards_are_whole_where_grafana_finds_them() {
    let name = "ConfigMap quorate-system quorate-dashboards";
    assert!(!objects(&[]).contains_key(name));
    assert!(!objects(&[POD_MONITOR, "--set=monitoring.dashboards=Disabled"]).contains_key(name));
    for arguments in [&[POD_MONITOR][..], &["--set=monitoring.dashboards=Enabled"]] {
        let dashboards = objects(arguments).remove(name).unwrap();
        assert_eq!(dashboards["metadata"]["labels"]["grafana_dashboard"], "1");
        let rendered = dashboards["data"]["quorate-mirrors.json"].as_str().unwrap();
        assert_eq!(yaml(rendered), yaml(&read("deploy/chart/dashboard-mirrors.json")));
    }
}

/// By the same labels and ports that the operator gives to members, and the chart to the operator.
#[test]
fn what_is_scraped_is_there() {
    let all = objects(&[POD_MONITOR]);
    let deployment = all["Deployment quorate-system quorate-operator"].pointer("/spec/template").unwrap();
    let operator = &all["PodMonitor quorate-system quorate-operator"]["spec"];
    assert_eq!(operator["selector"]["matchLabels"], deployment["metadata"]["labels"]);
    let ports = deployment.pointer("/spec/containers/0/ports/0/name").unwrap();
    assert_eq!(operator["podMetricsEndpoints"][0]["port"], *ports);

    let mut observed = healthy();
    observed.pods.clear();
    let plan = plan(&desired(&json!({}), &json!({})), &observed);
    let pod = created(&plan, "Pod")[0];
    let etcd = &all["PodMonitor quorate-system quorate-etcd"]["spec"];
    for (label, value) in etcd["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(pod["metadata"]["labels"][label], *value, "{label}");
    }
    let ports = pod.pointer("/spec/containers/0/ports").unwrap().as_array().unwrap();
    assert!(ports.iter().any(|port| port["name"] == etcd["podMetricsEndpoints"][0]["port"]));

    let agent = crate::mirror_plan::agent();
    let mirror = &all["PodMonitor quorate-system quorate-mirror"]["spec"];
    for (label, value) in mirror["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(agent["metadata"]["labels"][label], *value, "{label}");
    }
    let port = agent.pointer("/spec/containers/0/ports/0/name").unwrap();
    assert_eq!(mirror["podMetricsEndpoints"][0]["port"], *port);
}
