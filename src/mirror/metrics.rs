//! Metrics of a mirror, as Prometheus reads them: one report, encoded at the scrape.

use super::run::Report;

/// Name, kind, what it says, and its value in a report; `None`: it is not known yet.
type Metric = (&'static str, &'static str, &'static str, fn(&Report) -> Option<f64>);

/// All of them, under `quorate_mirror_`.
pub const METRICS: [Metric; 20] = [
    ("source_revision", "gauge", "Newest revision of the source that was seen.", |report| {
        view(report, |view| view.head)
    }),
    ("applied_revision", "gauge", "Revision of the source that the target has.", |report| {
        view(report, |view| view.revision)
    }),
    ("lag_revisions", "gauge", "Revisions of the source that the target does not have.", |report| {
        view(report, |view| (view.head - view.revision).max(0))
    }),
    ("lag_seconds", "gauge", "Age of the newest state of the source that the target has.", |report| {
        Some(report.lag_seconds)
    }),
    ("exact", "gauge", "1 while the target is what the source was at one revision.", |report| {
        view(report, |view| i64::from(view.exact))
    }),
    (
        "history_margin_ratio",
        "gauge",
        "Part of the source's history that is left behind the checkpoint; 0: a scan is needed.",
        super::run::Report::history_margin,
    ),
    ("source_up", "gauge", "1 while the source answers.", |report| {
        Some(one(report.source_problem.is_none()))
    }),
    ("target_up", "gauge", "1 while the target answers.", |report| {
        Some(one(report.target_problem.is_none()))
    }),
    ("stopped", "gauge", "1 while it has stopped by itself.", |report| Some(one(report.stopped.is_some()))),
    ("transactions_total", "counter", "Transactions to the target.", |report| {
        stat(report, |stats| stats.transactions)
    }),
    ("operations_total", "counter", "Changes in them.", |report| stat(report, |stats| stats.operations)),
    ("bytes_total", "counter", "Bytes of them.", |report| stat(report, |stats| stats.bytes)),
    ("ignored_events_total", "counter", "Changes of ignored keys.", |report| {
        stat(report, |stats| stats.ignored)
    }),
    ("stale_events_total", "counter", "Changes that came again.", |report| stat(report, |stats| stats.stale)),
    ("split_revisions_total", "counter", "Transactions that held a part of a revision.", |report| {
        stat(report, |stats| stats.split)
    }),
    ("resyncs_total", "counter", "Scans after the first sync.", |report| stat(report, |stats| stats.scans)),
    ("watches_total", "counter", "Watches that were opened.", |report| stat(report, |stats| stats.watches)),
    ("foreign_writes_total", "counter", "Others' changes of mirrored keys in the target.", |report| {
        stat(report, |stats| stats.foreign)
    }),
    ("kept_leases", "gauge", "Leases of the target that are kept alive.", |report| {
        view(report, |view| i64::try_from(view.leases).unwrap_or(i64::MAX))
    }),
    ("compared_keys", "gauge", "Keys that were alike in this scan.", |report| {
        view(report, |view| i64::try_from(view.counts.equal).unwrap_or(i64::MAX))
    }),
];

/// The text of a scrape.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for (name, kind, help, value) in METRICS {
        if let Some(value) = value(report) {
            text.push_str(&format!(
                "# HELP quorate_mirror_{name} {help}\n# TYPE quorate_mirror_{name} {kind}\nquorate_mirror_{name} {value}\n"
            ));
        }
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float, and revisions are far below 2^53")]
fn view(report: &Report, number: fn(&super::machine::View) -> i64) -> Option<f64> {
    report.view.as_ref().map(|view| number(view) as f64)
}

#[expect(clippy::cast_precision_loss, reason = "a counter is a float")]
fn stat(report: &Report, number: fn(&super::machine::Stats) -> u64) -> Option<f64> {
    report.view.as_ref().map(|view| number(&view.stats) as f64)
}

fn one(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_scrape() {
        let text = text(&Report { lag_seconds: 1.5, ..Report::default() });
        assert!(
            text.contains("# TYPE quorate_mirror_lag_seconds gauge\nquorate_mirror_lag_seconds 1.5\n"),
            "{text}"
        );
        assert!(text.contains("quorate_mirror_source_up 1\n"));
        assert!(!text.contains("applied_revision"), "what is not known is not told");
    }
}
