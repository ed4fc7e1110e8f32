//! `tests/it/bad/*.yaml`: EtcdClusters and EtcdMirrors that must be refused, each with the message that refuses it.
//!
//! Separate because two suites read them: `bad_input.rs` offline, the end-to-end suite with a real apiserver.
//!
//! A file begins with `# expect: <part of the message>`. It has one document, or two with the line `# from:` above
//! the first: the object as it is and as it must not become.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// One thing that must be refused.
#[derive(Debug)]
pub(crate) struct Case {
    /// Name of the file.
    pub(crate) file: String,
    /// Part of the message.
    pub(crate) expect: String,
    /// The object that is refused, last; before it, if it is about a change, the object that exists already.
    pub(crate) documents: Vec<Value>,
}

/// All of them, in the order of their names. Panics on a file that is not of the form above: it would test
/// nothing.
pub(crate) fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/bad");
    let entries = std::fs::read_dir(&folder).expect("the folder with bad input exists");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a folder can be read").path()).collect();
    files.sort();
    files.iter().map(|file| read(file)).collect()
}

fn read(file: &Path) -> Case {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(file).expect("a file can be read");
    let expect = text.lines().next().and_then(|line| line.strip_prefix("# expect: "));
    let expect = expect.unwrap_or_else(|| panic!("{name} does not begin with `# expect: `")).to_owned();
    let documents: Vec<Value> = text
        .split("\n---\n")
        .map(|document| serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{name}: {error}")))
        .collect();
    let wanted = if text.lines().any(|line| line == "# from:") { 2 } else { 1 };
    assert_eq!(documents.len(), wanted, "{name}: two documents exactly if the first is marked by `# from:`");
    Case { file: name, expect, documents }
}
