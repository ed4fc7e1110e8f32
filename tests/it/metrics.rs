//! The text that Prometheus scrapes: names, labels, and that what is gone leaves nothing behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use expect_test::expect;
use quorate::mirror::metrics::METRICS;
use quorate::operator::metrics::{ClusterSample, Metrics, MirrorSample, ReconcileLabels};

fn sample() -> ClusterSample {
    let condition =
        |type_: &str, status: &str, reason: &str| (type_.to_owned(), status.to_owned(), reason.to_owned());
    ClusterSample {
        ready: true,
        known: 3,
        healthy: 2,
        margin: 0,
        conditions: vec![
            condition("Ready", "True", "Healthy"),
            condition("QuorumSafe", "False", "OneFailureFromOutage"),
        ],
        db_size_bytes: Some(20_480),
        db_quota_bytes: Some(2_147_483_648),
        certificate_ends: BTreeMap::from([
            ("client", 1_800_000_000),
            ("member", 1_800_000_001),
            ("operator", 1_800_000_002),
        ]),
    }
}

fn mirror() -> MirrorSample {
    MirrorSample {
        up: true,
        state: "Running",
        ready: true,
        lag_revisions: Some(7),
        lag_seconds: Some(0.5),
        lag_objective_seconds: Some(60),
        history_margin: Some(0.75),
        mismatched_keys: Some(0),
        conditions: vec![("Ready".to_owned(), "True".to_owned(), "Healthy".to_owned())],
    }
}

/// Metrics with a series of everything.
pub(crate) fn all() -> Metrics {
    let metrics = Metrics::new();
    metrics.leader.set(1);
    metrics.duration.observe(0.2);
    metrics
        .reconciles
        .get_or_create(&ReconcileLabels { kind: "EtcdCluster".to_owned(), result: "success" })
        .inc();
    metrics.tell("team", "main", sample());
    metrics.tell_mirror("team", "dc", mirror());
    metrics
}

/// The series of mirrors, without help and type.
fn of_mirrors(metrics: &Metrics) -> String {
    let text = metrics.text().unwrap();
    let lines = text.lines().filter(|line| line.starts_with("quorate_mirror"));
    lines.fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn a_mirror_is_told_in_these_series_and_what_nobody_knows_is_absent() {
    let metrics = all();
    expect![[r#"
        quorate_mirror_up{namespace="team",name="dc"} 1
        quorate_mirror_state{namespace="team",name="dc",state="Running"} 1
        quorate_mirror_ready{namespace="team",name="dc"} 1
        quorate_mirror_lag_revisions{namespace="team",name="dc"} 7
        quorate_mirror_lag_seconds{namespace="team",name="dc"} 0.5
        quorate_mirror_lag_objective_seconds{namespace="team",name="dc"} 60
        quorate_mirror_history_margin_ratio{namespace="team",name="dc"} 0.75
        quorate_mirror_mismatched_keys{namespace="team",name="dc"} 0
        quorate_mirror_condition{namespace="team",name="dc",type="Ready",status="True",reason="Healthy"} 1
    "#]]
    .assert_eq(&of_mirrors(&metrics));
    let paused = MirrorSample { state: "Paused", lag_objective_seconds: Some(60), ..MirrorSample::default() };
    metrics.tell_mirror("team", "dc", paused);
    expect![[r#"
        quorate_mirror_up{namespace="team",name="dc"} 0
        quorate_mirror_state{namespace="team",name="dc",state="Paused"} 1
        quorate_mirror_ready{namespace="team",name="dc"} 0
        quorate_mirror_lag_objective_seconds{namespace="team",name="dc"} 60
    "#]]
    .assert_eq(&of_mirrors(&metrics));
    metrics.forget_mirror("team", "dc");
    assert_eq!(of_mirrors(&metrics), "");
}

/// The series of clusters, without help and type.
fn of_clusters(metrics: &Metrics) -> String {
    let text = metrics.text().unwrap();
    let lines = text.lines().filter(|line| line.starts_with("quorate_cluster"));
    lines.fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn a_cluster_is_told_in_these_series() {
    expect![[r#"
        quorate_cluster_ready{namespace="team",name="main"} 1
        quorate_cluster_members{namespace="team",name="main",state="known"} 3
        quorate_cluster_members{namespace="team",name="main",state="healthy"} 2
        quorate_cluster_quorum_margin{namespace="team",name="main"} 0
        quorate_cluster_condition{namespace="team",name="main",type="Ready",status="True",reason="Healthy"} 1
        quorate_cluster_condition{namespace="team",name="main",type="QuorumSafe",status="False",reason="OneFailureFromOutage"} 1
        quorate_cluster_db_bytes{namespace="team",name="main",type="size"} 20480
        quorate_cluster_db_bytes{namespace="team",name="main",type="quota"} 2147483648
        quorate_cluster_cert_expiry_timestamp_seconds{namespace="team",name="main",use="client"} 1800000000
        quorate_cluster_cert_expiry_timestamp_seconds{namespace="team",name="main",use="member"} 1800000001
        quorate_cluster_cert_expiry_timestamp_seconds{namespace="team",name="main",use="operator"} 1800000002
    "#]].assert_eq(&of_clusters(&all()));
}

#[test]
fn a_new_look_takes_the_place_of_all_that_was_told_before() {
    let metrics = all();
    let lost = ClusterSample {
        margin: -1,
        conditions: vec![("Ready".to_owned(), "False".to_owned(), "QuorumLost".to_owned())],
        ..ClusterSample::default()
    };
    metrics.tell("team", "main", lost);
    expect![[r#"
        quorate_cluster_ready{namespace="team",name="main"} 0
        quorate_cluster_members{namespace="team",name="main",state="known"} 0
        quorate_cluster_members{namespace="team",name="main",state="healthy"} 0
        quorate_cluster_quorum_margin{namespace="team",name="main"} -1
        quorate_cluster_condition{namespace="team",name="main",type="Ready",status="False",reason="QuorumLost"} 1
    "#]].assert_eq(&of_clusters(&metrics));
}

#[test]
fn a_deleted_cluster_leaves_no_series_and_the_others_stay() {
    let metrics = all();
    let before = of_clusters(&metrics);
    metrics.tell("team", "other", sample());
    metrics.tell("another-team", "main", sample());
    metrics.forget("team", "other");
    metrics.forget("another-team", "main");
    assert_eq!(of_clusters(&metrics), before);
    metrics.forget("team", "main");
    assert_eq!(of_clusters(&metrics), "");
}

/// Of the operator, and of an agent.
fn document() -> [String; 2] {
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let (operator, agent) = document.split_once("## Of a mirror's agent").unwrap();
    [operator, agent].map(str::to_owned)
}

#[test]
fn the_document_lists_every_metric_of_an_agent_with_its_type() {
    let [_, document] = document();
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `quorate_mirror_"));
    let listed: Vec<(String, String)> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split(" | ").collect();
            (cells[0].trim_matches('`').to_owned(), cells[1].to_owned())
        })
        .collect();
    let told: Vec<_> =
        METRICS.iter().map(|(name, kind, ..)| ((*name).to_owned(), (*kind).to_owned())).collect();
    assert_eq!(listed, told, "left: the second table of docs/metrics.md, right: what is told");
}

#[test]
fn the_document_lists_every_metric_with_its_type_and_labels() {
    let [document, _] = document();
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `quorate_")).map(|row| {
        let cells: Vec<&str> = row.split(" | ").collect();
        let labels = cells[2].split(", ").map(|label| label.trim_matches('`').to_owned());
        let labels: BTreeSet<String> = labels.filter(|label| label != "none").collect();
        (format!("quorate_{}", cells[0].trim_matches('`')), (cells[1].to_owned(), labels))
    });
    let listed: BTreeMap<String, (String, BTreeSet<String>)> = rows.collect();
    let text = all().text().unwrap();
    let mut told = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let full = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        told.insert(full, (kind.to_owned(), labels(&text, name)));
    }
    assert_eq!(listed, told, "left: the table of docs/metrics.md, right: what is told");
}

/// Labels of a metric's series; `le` is a histogram's own.
fn labels(text: &str, name: &str) -> BTreeSet<String> {
    let series = text.lines().filter(|line| line.starts_with(name));
    let inside = series.filter_map(|line| Some(line.split_once('{')?.1.split_once('}')?.0));
    let pairs = inside.flat_map(|labels| labels.split("\","));
    let names = pairs.filter_map(|pair| Some(pair.split_once('=')?.0.to_owned()));
    names.filter(|label| label != "le").collect()
}
