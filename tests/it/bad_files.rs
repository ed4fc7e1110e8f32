//! `tests/it/bad/*.yaml`: EtcdClusters that must be refused, each with the message that refuses it.
//!
//! Separate because two tests read them: `bad_input.rs` offline, the end-to-end suite with a real apiserver
//! (`#[path = "../it/bad_files.rs"] mod bad_files;`).
//!
//! A file begins with one or more lines `# expect: <part of the message>`. If it is about a change, the line
//! `# from:` and the object as it was follow, then `---`, then the object as it should not become.

use std::path::{Path, PathBuf};

/// One thing that must be refused.
#[derive(Debug)]
pub struct Case {
    /// Name of the file, for the test's output.
    pub name: String,
    /// Parts of the message; all must be found.
    pub expect: Vec<String>,
    /// The object that exists before, as YAML.
    pub from: Option<String>,
    /// The object that is refused, as YAML.
    pub to: String,
}

/// All of them, in the order of their names. Panics on a file that is not of the form above: it would test
/// nothing.
pub fn all() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/bad");
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.collect();
    files.sort();
    let cases: Vec<Case> = files.iter().map(|file| read(file)).collect();
    assert!(!cases.is_empty(), "no file in {}", folder.display());
    cases
}

fn read(file: &Path) -> Case {
    let text = std::fs::read_to_string(file).unwrap();
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    let expect: Vec<String> =
        text.lines().filter_map(|line| line.strip_prefix("# expect: ")).map(str::to_owned).collect();
    assert!(!expect.is_empty(), "{name} expects no message");
    let documents: Vec<String> = text.split("\n---\n").map(str::to_owned).collect();
    let is_change = text.lines().any(|line| line == "# from:");
    match (is_change, documents.as_slice()) {
        (true, [from, to]) => Case { name, expect, from: Some(from.clone()), to: to.clone() },
        (false, [to]) => Case { name, expect, from: None, to: to.clone() },
        _ => panic!("{name}: a change has two documents and the line `# from:`, anything else has one document"),
    }
}
