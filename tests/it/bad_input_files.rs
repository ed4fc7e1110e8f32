//! The files of bad input, read by the offline tests and by the stories on a real apiserver alike.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// One bad input.
pub struct Case {
    /// Name of the file.
    pub file: String,
    /// What the refusal must contain.
    pub expect: String,
    /// The last document is the bad one; those before it exist already.
    pub documents: Vec<Value>,
}

/// Every file under `tests/it/bad`, in order. Its first line is `# expect: <part of the message>`.
pub fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/bad");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect();
    files.sort();
    files.iter().map(|path| case(path)).collect()
}

fn case(path: &Path) -> Case {
    let file = path.file_name().unwrap().to_string_lossy().into_owned();
    let text = fs::read_to_string(path).unwrap();
    let expect = text.lines().next().and_then(|line| line.strip_prefix("# expect: "));
    let expect = expect.unwrap_or_else(|| panic!("{file} does not begin with `# expect: `")).trim().to_owned();
    let documents = text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect();
    Case { file, expect, documents }
}
