//! The termination message: how the container ended, as the operator reads it from the Pod's status.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::identity::HexId;
use crate::refusal::{Cause, Refusal};
use crate::wal::Summary;

/// The kubelet cuts longer messages, which would leave no JSON.
pub const MAX_MESSAGE_BYTES: usize = 4096;

/// What is reported. Numbers of the log are absent when there is none.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The exit code, if the end was one.
    pub exit: Option<i32>,
    /// The signal, if that was the end.
    pub signal: Option<i32>,
    /// The guard's own cause.
    pub cause: Option<Cause>,
    /// A sentence for a person.
    pub message: String,
    /// etcd's last fatal lines.
    pub lines: Vec<String>,
    /// Seconds that etcd ran.
    pub ran_for: f64,
    /// The highest term seen.
    pub hard_term: Option<u64>,
    /// The last entry's term.
    pub term: Option<u64>,
    /// The last entry's index.
    pub index: Option<u64>,
    /// The cluster's ID.
    #[serde(rename = "clusterID")]
    pub cluster_id: Option<HexId>,
    /// The member's ID.
    #[serde(rename = "memberID")]
    pub member_id: Option<HexId>,
    /// Whether a log was ever seen on the volume: only then may the member have voted.
    pub etcd_ran: bool,
}

impl Report {
    /// Adds a refusal.
    #[must_use]
    pub fn with_refusal(self, refusal: &Refusal) -> Self {
        Self { cause: Some(refusal.cause), message: refusal.sentence.clone(), ..self }
    }

    /// Adds what the log says.
    #[must_use]
    pub fn with_log(self, log: Option<Summary>) -> Self {
        Self {
            hard_term: log.map(|log| log.hard.term),
            term: log.map(|log| log.last.term),
            index: log.map(|log| log.last.index),
            cluster_id: log.map(|log| log.identity.cluster),
            member_id: log.map(|log| log.identity.member),
            ..self
        }
    }

    /// Adds how long etcd ran, to the millisecond.
    #[must_use]
    pub fn with_time(self, ran_for: Duration) -> Self {
        Self { ran_for: (ran_for.as_secs_f64() * 1000.0).round() / 1000.0, ..self }
    }

    /// The message: always whole JSON, never longer than the kubelet keeps. The oldest lines go first, then the
    /// last one and the sentence are halved.
    pub fn render(&self) -> String {
        let mut report = self.clone();
        loop {
            let text = serde_json::to_string(&report).unwrap_or_default();
            if text.len() <= MAX_MESSAGE_BYTES {
                return text;
            }
            if report.lines.len() > 1 {
                report.lines.remove(0);
            } else {
                report.lines.iter_mut().for_each(halve);
                halve(&mut report.message);
            }
        }
    }

    /// Writes the message in place: the kubelet mounts one file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, self.render())
    }
}

fn halve(text: &mut String) {
    text.truncate(text.floor_char_boundary(text.len() / 2));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_whole_json_and_short_whatever_the_lines_are() {
        for text in ["\u{1}", "\"", "é", "x"] {
            let lines = vec![text.repeat(600), text.repeat(5000), format!("{}end", text.repeat(9000))];
            let report = Report { lines, message: text.repeat(9000), ..Report::default() };
            let rendered = report.render();
            assert!(rendered.len() <= MAX_MESSAGE_BYTES, "{}", rendered.len());
            let read: serde_json::Value = serde_json::from_str(&rendered).unwrap();
            assert!(read["lines"][0].as_str().unwrap().starts_with(text));
        }
    }

    #[test]
    fn the_message_has_the_agreed_fields() {
        let report = Report { exit: Some(2), lines: vec!["panic: x".to_owned()], ..Report::default() }
            .with_refusal(&Refusal::new(Cause::DataLost, "a sentence"))
            .with_time(Duration::from_micros(1_234_567));
        let expected = "{\"exit\":2,\"signal\":null,\"cause\":\"DataLost\",\"message\":\"a sentence\",\"lines\":[\"panic: x\"],\
            \"ranFor\":1.235,\"hardTerm\":null,\"term\":null,\"index\":null,\"clusterID\":null,\"memberID\":null,\"etcdRan\":false}";
        assert_eq!(report.render(), expected);
    }
}
