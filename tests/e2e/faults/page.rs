//! `docs/fault-matrix.md`: what came of each fault, a row each, written as soon as it is there. The page is also the
//! memory: a cell that stands in it is not run again.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::matrix::{COLUMNS, Column};
use super::{FAULTS, Fault};

const HEAD: &str = "\
# The fault matrix

What each fault does to a cluster: written by `cargo faults`, a cell as soon as it is done; do not edit. Every cell is a
cluster of its own under a load of some 50 writes a second, and the history of every write, read and watch is judged by
etcd's promises (`tests/history`). A cell tells what came of it, the seconds from the fault until as many members as
before voted (or until the refusal was said), the longest time without an acknowledged write, how many acknowledged
writes were lost and of how many, and the commit; a `+` behind it: the checkout differed from it.

- *healthy again*: the same members, by their IDs; nobody was replaced.
- *replaced*: who was harmed left etcd's member list, and a member with a new ID has joined.
- *refused*: a condition says why, nobody was removed and no volume was deleted; where the harm can be undone it was, and
  the same members were healthy again with every acknowledged write.
- –: the fault makes no sense at that size. Empty: not run yet.

The faults and what is expected of them are the table in `tests/e2e/faults/mod.rs`. All on 2 cores.

";
/// What a cell begins with that must be run again.
const FAILED: &str = "**failed**";

/// Texts of cells by the fault's words and the column's.
pub(super) struct Page {
    path: PathBuf,
    cells: BTreeMap<(&'static str, &'static str), String>,
}

impl Page {
    pub(super) fn read() -> Self {
        let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/fault-matrix.md"));
        let text = fs::read_to_string(&path).unwrap_or_default();
        Self { path, cells: cells(&text) }
    }

    pub(super) fn is_done(&self, fault: Fault, column: &Column) -> bool {
        let text = self.cells.get(&(fault.words(), column.words));
        text.is_some_and(|text| !text.is_empty() && !text.starts_with(FAILED))
    }

    pub(super) fn write(&mut self, fault: Fault, column: &Column, outcome: Result<String, String>) {
        let text = outcome.unwrap_or_else(|why| format!("{FAILED}: {}", in_a_cell(&why)));
        self.cells.insert((fault.words(), column.words), text);
        let draft = self.path.with_extension("draft");
        fs::write(&draft, format!("{HEAD}{}", table(&self.cells))).unwrap();
        fs::rename(&draft, &self.path).unwrap();
    }
}

/// One line, without what would end the cell.
fn in_a_cell(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default().replace('|', "\\|");
    line.chars().take(300).collect()
}

fn table(cells: &BTreeMap<(&'static str, &'static str), String>) -> String {
    let columns = || COLUMNS.iter().map(|column| column.words);
    let mut text = format!("| fault | {} |\n", columns().collect::<Vec<_>>().join(" | "));
    text += &format!("|---|{}\n", columns().map(|_| "---|").collect::<String>());
    for fault in FAULTS {
        text += &format!("| {} |", fault.words());
        for column in COLUMNS {
            let cell = match (fault.expected(column.size), cells.get(&(fault.words(), column.words))) {
                (None, _) => "–",
                (Some(_), cell) => cell.map(String::as_str).unwrap_or_default(),
            };
            text += &format!(" {cell} |");
        }
        text += "\n";
    }
    text
}

/// What [`table`] wrote.
fn cells(text: &str) -> BTreeMap<(&'static str, &'static str), String> {
    let mut found = BTreeMap::new();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let mut columns = Vec::new();
    for row in rows {
        let mut parts = row.split(" | ").map(str::trim);
        let first = parts.next().unwrap_or_default();
        if first == "fault" {
            columns = parts.map(|words| COLUMNS.iter().find(|column| column.words == words)).collect();
            continue;
        }
        let Some(fault) = FAULTS.iter().find(|fault| fault.words() == first) else { continue };
        for (column, cell) in columns.iter().zip(parts) {
            if let (Some(column), false) = (column, cell.is_empty() || cell == "–") {
                found.insert((fault.words(), column.words), cell.to_owned());
            }
        }
    }
    found
}

#[test]
fn a_page_that_was_written_is_read_as_it_was() {
    let mut written = BTreeMap::new();
    for (number, fault) in FAULTS.iter().enumerate() {
        for column in COLUMNS.iter().filter(|column| fault.expected(column.size).is_some()) {
            if number % 3 > 0 {
                written.insert((fault.words(), column.words), format!("replaced; {number} s"));
            }
        }
    }
    assert!(written.len() > 50, "{}", written.len());
    let failed = format!("{FAILED}: {}", in_a_cell("a | b\nc"));
    written.insert((Fault::VolumeWiped.words(), COLUMNS[0].words), failed);
    assert_eq!(cells(&format!("{HEAD}{}", table(&written))), written);
}
