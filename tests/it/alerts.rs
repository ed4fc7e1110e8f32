//! Alerts lead to the manual, and say who is meant.

use std::path::Path;
use std::process::Command;

use quorate::mirror::metrics::METRICS;
use serde_json::Value;

use crate::offline::yaml;

const MANUAL: &str = "https://github.com/quorate/quorate/blob/main/docs/operations.md#";

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

fn alerts() -> Vec<Value> {
    let groups = yaml(&read("deploy/chart/alerts.yaml"));
    let groups = groups["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// Headings of the fourth level are those of alerts.
fn headings() -> Vec<String> {
    let manual = read("docs/operations.md");
    manual.lines().filter_map(|line| line.strip_prefix("#### ")).map(str::to_owned).collect()
}

#[test]
fn every_alert_leads_to_its_heading_in_the_manual_and_the_other_way_round() {
    let headings = headings();
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        assert!(headings.iter().any(|heading| heading == name), "docs/operations.md has no `#### {name}`");
        let link = format!("{MANUAL}{}", name.to_lowercase());
        assert_eq!(alert["annotations"]["runbook_url"], link.as_str());
    }
    for heading in headings {
        assert!(
            alerts().iter().any(|alert| alert["alert"] == heading.as_str()),
            "there is no alert {heading}"
        );
    }
}

#[test]
fn every_alert_waits_has_a_severity_and_a_sentence_with_what_its_expression_keeps() {
    for alert in alerts() {
        let name = &alert["alert"];
        assert!(alert["for"].is_string(), "{name}");
        assert!(["warning", "critical"].iter().any(|word| alert["labels"]["severity"] == *word), "{name}");
        let sentence = alert["annotations"]["description"].as_str().unwrap();
        assert!(sentence.ends_with('.'), "{name}: {sentence}");
        let expression = alert["expr"].as_str().unwrap();
        // `by (cluster, pod)`: a label that is aggregated away would be empty in the sentence.
        for label in sentence.split("$labels.").skip(1).map(|rest| rest.split([' ', '}']).next().unwrap()) {
            let kept = expression
                .split("by (")
                .skip(1)
                .any(|rest| rest.split(')').next().unwrap().split(", ").any(|kept| kept == label));
            assert!(kept, "{name}: {label} is not kept by {expression}");
        }
    }
}

/// Names of ours in an expression, without what it is a part of.
fn metrics_in(expression: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (place, _) in expression.match_indices("quorate_") {
        let rest = expression.split_at(place).1;
        let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        names.push(rest.split_at(end.unwrap_or(rest.len())).0.to_owned());
    }
    names
}

/// A panel or an alert of a metric that nobody tells would be empty and silent for ever.
#[test]
fn alerts_and_dashboards_ask_for_metrics_that_exist() {
    let metrics = crate::metrics::all();
    let operators = metrics.text().unwrap();
    let known = |name: &str| {
        let agents = METRICS.iter().any(|(metric, ..)| name.strip_prefix("quorate_mirror_") == Some(metric));
        agents || operators.contains(&format!("# TYPE {} ", name.trim_end_matches("_total")))
    };
    let dashboard = yaml(&read("deploy/chart/dashboard-mirrors.json"));
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let queries = panels.flat_map(|panel| panel["targets"].as_array().unwrap()).map(|target| &target["expr"]);
    let expressions: Vec<Value> =
        alerts().iter().map(|alert| alert["expr"].clone()).chain(queries.cloned()).collect();
    let asked: Vec<String> =
        expressions.iter().flat_map(|expression| metrics_in(expression.as_str().unwrap())).collect();
    assert!(asked.len() > expressions.len() / 2, "{asked:?}");
    for name in asked {
        assert!(known(&name), "nobody tells {name}");
    }
}

/// With Prometheus' own judge: when alerts of mirrors speak, and when they are silent.
#[test]
fn alerts_of_mirrors_speak_and_are_silent_as_promised() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/alerts_of_mirrors.yaml");
    let output = Command::new("promtool").args(["test", "rules"]).arg(cases).output();
    let output = output.expect("promtool is in PATH: it is in Debian's package prometheus");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("SUCCESS"), "{said}");
}
