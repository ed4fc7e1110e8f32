//! etcd's log: passed through unchanged, and its last fatal lines kept.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// The kubelet keeps 4096 bytes of a termination message; five cut lines fit.
const KEPT_LINES: usize = 5;

/// Enough for etcd's message and error; a stack trace after them says nothing that a rule could match.
const KEPT_BYTES: usize = 600;

/// A longer line is passed through in pieces of this size.
const PIECE_BYTES: u64 = 64 * 1024;

/// What etcd's log has said that matters later.
#[derive(Debug, Default)]
pub struct Lines {
    /// The last lines that say why etcd ended.
    kept: VecDeque<String>,
    snapshot: Option<Instant>,
    published: bool,
}

impl Lines {
    /// Keeps a line if it says why etcd ends, and notes how its start goes.
    pub fn note(&mut self, line: &[u8]) {
        let cut = line.get(..KEPT_BYTES).unwrap_or(line);
        let text = String::from_utf8_lossy(cut);
        let text = text.trim_end();
        if !self.published {
            self.published = text.contains("published local member to cluster through raft");
            if text.contains("applied snapshot") {
                self.snapshot = Some(Instant::now());
            }
        }
        if is_last_word(text) {
            self.kept.push_back(text.to_owned());
            while self.kept.len() > KEPT_LINES {
                self.kept.pop_front();
            }
        }
    }

    /// Since when etcd has held a snapshot of another member's and has not said that it published its own name, without
    /// which it serves nobody.
    pub fn unpublished_since(&self) -> Option<Instant> {
        self.snapshot.filter(|_| !self.published)
    }

    /// Whether etcd has published its own name.
    pub fn has_published(&self) -> bool {
        self.published
    }

    /// The last lines that say why etcd ended, oldest first.
    pub fn kept(&self) -> Vec<String> {
        self.kept.iter().cloned().collect()
    }
}

/// Whether etcd refuses its own command line: no second try can end otherwise. Seen alike on 3.5, 3.6 and 3.7; the
/// beginnings are all that Go's package `flag` has.
pub fn refuses_flags(line: &str) -> bool {
    const BEGINNINGS: [&str; 5] = [
        "invalid value ",
        "invalid boolean value ",
        "flag provided but not defined: ",
        "flag needs an argument: ",
        "bad flag syntax: ",
    ];
    BEGINNINGS.iter().any(|beginning| line.starts_with(beginning))
        || line.contains("\"msg\":\"failed to verify flags\"")
}

/// zap's fatal and panic levels, Go's own panics and crashes (a signal within its runtime has a line of another shape:
/// seen on 3.7, whose collector does not see that it got no memory), flags that etcd does not take, and the two lines with
/// which a removed member ends with exit code 0.
fn is_last_word(line: &str) -> bool {
    const BEGINNINGS: [&str; 5] = ["panic: ", "fatal error: ", "[signal ", "SIGSEGV: ", "SIGBUS: "];
    const PARTS: [&str; 4] = [
        "\"level\":\"fatal\"",
        "\"level\":\"panic\"",
        "the member has been permanently removed from the cluster",
        "data-dir used by this member must be removed",
    ];
    refuses_flags(line)
        || BEGINNINGS.iter().any(|beginning| line.starts_with(beginning))
        || PARTS.iter().any(|part| line.contains(part))
}

/// Copies line by line until the writer of `source` is gone. A sink that fails takes nothing more, but the source
/// is still read: etcd must not block on it.
pub fn pump(source: impl Read, mut sink: impl Write, lines: &Arc<Mutex<Lines>>) {
    let mut source = BufReader::new(source);
    let mut piece = Vec::new();
    let mut at_line_start = true;
    loop {
        piece.clear();
        match source.by_ref().take(PIECE_BYTES).read_until(b'\n', &mut piece) {
            Ok(0) | Err(_) => return,
            Ok(_) => (),
        }
        drop(sink.write_all(&piece));
        if at_line_start {
            lines.lock().unwrap_or_else(PoisonError::into_inner).note(&piece);
        }
        at_line_start = piece.ends_with(b"\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_five_fatal_lines_are_kept_and_cut() {
        let endless = format!("panic: {}", "x".repeat(10_000));
        let log = (0..9).fold(format!("{endless}\n"), |log, number| {
            format!("{log}{{\"level\":\"info\"}}\n{{\"level\":\"fatal\",\"msg\":\"{number}\"}}\n")
        });
        let lines = Arc::new(Mutex::new(Lines::default()));
        let mut copy = Vec::new();
        pump(log.as_bytes(), &mut copy, &lines);
        assert_eq!(copy, log.as_bytes(), "the log is passed through unchanged");
        let expected: Vec<_> =
            (4..9).map(|number| format!("{{\"level\":\"fatal\",\"msg\":\"{number}\"}}")).collect();
        assert_eq!(lines.lock().unwrap().kept(), expected);

        lines.lock().unwrap().note(endless.as_bytes());
        assert_eq!(lines.lock().unwrap().kept()[4].len(), KEPT_BYTES);
    }

    #[test]
    fn every_way_to_refuse_a_command_line_is_a_last_word() {
        let said = [
            "invalid value \"many\" for flag -snapshot-count: parse error",
            "invalid boolean value \"maybe\" for -strict-reconfig-check: parse error",
            "flag provided but not defined: -no-such-flag",
            "flag needs an argument: -name",
            "bad flag syntax: ---name",
            r#"{"level":"warn","msg":"failed to verify flags","error":"unknown auto-compaction-mode \"never\""}"#,
        ];
        let mut lines = Lines::default();
        for line in said {
            assert!(refuses_flags(line), "{line}");
            lines.note(line.as_bytes());
        }
        lines.note(b"Usage:");
        assert_eq!(lines.kept(), said[1..]);
    }

    #[test]
    fn a_crash_within_the_runtime_is_a_last_word() {
        let mut lines = Lines::default();
        for line in
            ["SIGSEGV: segmentation violation", "PC=0x43799d m=7 sigcode=1 addr=0x0", "goroutine 0 [idle]:"]
        {
            lines.note(line.as_bytes());
        }
        assert_eq!(lines.kept(), ["SIGSEGV: segmentation violation"]);
    }

    #[test]
    fn a_line_longer_than_a_piece_is_noted_once_and_passed_whole() {
        let log = format!("{}panic: not at a line's start\nend without a newline", "y".repeat(70_000));
        let lines = Arc::new(Mutex::new(Lines::default()));
        let mut copy = Vec::new();
        pump(log.as_bytes(), &mut copy, &lines);
        assert_eq!(copy, log.as_bytes());
        assert_eq!(lines.lock().unwrap().kept(), Vec::<String>::new());
    }
}
