//! The rules of this repository that no compiler knows (`docs/architecture.md` says why each exists).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use quorate::api::reason::Reason;

/// Files that do I/O are named by these words.
const VERBS: &[&str] = &[
    "observe", "apply", "connect", "call", "survey", "follow", "write", "verify", "run", "lead", "serve", "save", "fetch",
    "restore", "reconcile", "report", "issue",
];

/// Rooms and files that may do I/O whatever their name: the edge, and what holds the client and the clock.
const EDGE: &[&str] = &["src/main.rs", "src/cli/", "src/operator/context.rs"];

/// What only a verb may do.
const EFFECTS: &[&str] = &[
    "async ", ".await", "tokio::", "std::fs", "std::env::", "std::net", "rand::", "tracing::", "Timestamp::now",
    "Instant::now", "SystemTime::now", "kube::Client", "kube::Api",
];

/// What a room may not know, and why.
const WALLS: &[(&str, &[&str], &str)] = &[
    ("src/api/", &["crate::etcd", "crate::operator", "crate::cli", "etcd_client", "tokio", "kube::Client", "kube::Api"], "the users' contract is imported by any tool"),
    ("src/etcd/", &["crate::api", "crate::operator", "crate::cli", "kube", "k8s_openapi"], "what we know of etcd also holds outside Kubernetes"),
    ("src/operator/", &["crate::cli"], "the operator takes its settings as values"),
    ("guard/src/", &["quorate::", "kube", "k8s_openapi", "tokio", "etcd_client"], "the guard is a small static program beside etcd"),
];

struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The code: without comments, and without the tests at the end.
    fn code(&self) -> String {
        let tests = self.text.find("#[cfg(test)]").unwrap_or(self.text.len());
        let lines = self.text[..tests].lines().filter(|line| !line.trim_start().starts_with("//"));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// What the file is named by; a folder's page by the folder.
    fn name(&self) -> &str {
        let mut parts = self.path.trim_end_matches(".rs").rsplit('/');
        match parts.next() {
            Some("mod") => parts.next().unwrap_or_default(),
            name => name.unwrap_or_default(),
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file below `folder`; `target` and hidden folders are not ours.
fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                found.push(Source { path: relative(&path), text });
            }
        }
    }
    found.sort_by(|left, right| left.path.cmp(&right.path));
    assert!(!found.is_empty(), "nothing in {folder}");
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().into_owned()
}

fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn rooms_keep_to_their_walls() {
    let mut wrong = Vec::new();
    for (room, forbidden, why) in WALLS {
        for source in sources(room).iter().filter(|source| source.is_rust()) {
            let code = source.code();
            let found = forbidden.iter().filter(|word| code.contains(*word));
            wrong.extend(found.map(|word| format!("{} uses {word}: {why}", source.path)));
        }
    }
    none(&wrong);
}

#[test]
fn a_kind_never_reaches_into_another_kind() {
    let kinds: BTreeSet<String> = std::fs::read_dir(root().join("src/operator"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert!(kinds.contains("cluster"));
    let mut wrong = Vec::new();
    for kind in &kinds {
        for source in sources(&format!("src/operator/{kind}")) {
            let others = kinds.iter().filter(|other| *other != kind);
            let reached = others.filter(|other| source.code().contains(&format!("operator::{other}")));
            wrong.extend(reached.map(|other| format!("{} reaches into {other}: kinds meet in the apiserver", source.path)));
        }
    }
    none(&wrong);
}

#[test]
fn nouns_are_pure_and_verbs_do_io() {
    let mut wrong = Vec::new();
    for source in sources("src").iter().filter(|source| source.is_rust()) {
        let at_the_edge = EDGE.iter().any(|edge| source.path.starts_with(edge));
        if at_the_edge || VERBS.contains(&source.name()) {
            continue;
        }
        let code = source.code();
        let found = EFFECTS.iter().filter(|effect| code.contains(*effect));
        wrong.extend(found.map(|effect| format!("{} is named by a noun, but has {effect}", source.path)));
    }
    none(&wrong);
}

#[test]
fn every_file_says_what_it_is() {
    let folders = ["src", "guard", "tests"];
    let files = folders.iter().flat_map(|folder| sources(folder)).filter(Source::is_rust);
    let silent = files.filter(|source| !source.text.starts_with("//!")).map(|source| format!("{} has no //!", source.path));
    none(&silent.collect::<Vec<_>>());
}

/// Headings of the third level in the manual: reasons, and nothing else.
fn headings() -> Vec<String> {
    let manual = std::fs::read_to_string(root().join("docs/operations.md")).unwrap();
    manual.lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_owned).collect()
}

#[test]
fn the_manual_has_a_section_for_every_reason_and_no_other() {
    let told: BTreeSet<String> = headings().into_iter().collect();
    let known: BTreeSet<String> = Reason::ALL.iter().map(ToString::to_string).collect();
    let missing: Vec<&String> = known.difference(&told).collect();
    let extra: Vec<&String> = told.difference(&known).collect();
    assert!(missing.is_empty() && extra.is_empty(), "docs/operations.md lacks {missing:?} and has {extra:?} too many");
    assert_eq!(headings().len(), known.len(), "a section stands twice");
}

#[test]
fn the_list_of_all_reasons_is_whole() {
    let text = std::fs::read_to_string(root().join("src/api/reason.rs")).unwrap();
    let declared = words_of_enum(&text, "Reason");
    let listed: BTreeSet<String> = Reason::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(declared, listed);
    assert_eq!(Reason::ALL.len(), listed.len(), "one stands twice");
}

/// The guard's causes reach conditions under the same word.
#[test]
fn every_cause_of_the_guard_is_a_reason() {
    let text = std::fs::read_to_string(root().join("guard/src/refusal.rs")).unwrap();
    let causes = words_of_enum(&text, "Cause");
    assert!(causes.len() >= 8, "{causes:?}");
    let unknown: Vec<&String> = causes.iter().filter(|cause| Reason::parse(cause).is_none()).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// Variants of an enum without fields.
fn words_of_enum(text: &str, name: &str) -> BTreeSet<String> {
    let body = text.split(&format!("pub enum {name} {{")).nth(1).unwrap();
    let body = body.split("\n}").next().unwrap();
    body.lines().filter_map(|line| line.trim().strip_suffix(',')).map(str::to_owned).collect()
}

#[test]
fn nothing_is_left_for_later() {
    // Put together, so that this file does not find itself.
    let left = [["TO", "DO"], ["FIX", "ME"], ["dbg", "!("], ["todo", "!("], ["unimplemented", "!("], ["#[ig", "nore"], ["#[should", "_panic"]]
        .map(|parts| parts.concat());
    let mut wrong = Vec::new();
    for source in ["src", "guard", "tests", "docs", "deploy"].iter().flat_map(|folder| sources(folder)) {
        let found = left.iter().filter(|word| source.text.contains(word.as_str()));
        wrong.extend(found.map(|word| format!("{} has {word}", source.path)));
    }
    none(&wrong);
}

#[test]
fn no_file_names_somebodys_machine() {
    let homes = [["/ro", "ot/"], ["/ho", "me/"], ["/Us", "ers/"], ["/wo", "rk/"]].map(|parts| parts.concat());
    let mut wrong = Vec::new();
    for source in sources(".") {
        let found = homes.iter().filter(|home| source.text.contains(home.as_str()));
        wrong.extend(found.map(|home| format!("{} has {home}", source.path)));
    }
    none(&wrong);
}

#[test]
fn generated_files_say_so() {
    let generated = sources("crds").into_iter().chain(sources("deploy").into_iter().filter(|source| source.path.ends_with("install.yaml")));
    let silent = generated.filter(|source| !source.text.starts_with("# generated by ")).map(|source| source.path);
    none(&silent.collect::<Vec<_>>());
}

fn documents() -> Vec<Source> {
    let mut found = sources("docs");
    found.retain(|source| source.path.ends_with(".md"));
    if let Ok(text) = std::fs::read_to_string(root().join("README.md")) {
        found.push(Source { path: "README.md".to_owned(), text });
    }
    found
}

/// Targets of Markdown links that are files of ours.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://") && !target.starts_with('#') && !target.contains(' '))
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut wrong = Vec::new();
    for document in documents() {
        let folder = root().join(&document.path).parent().unwrap().to_owned();
        for link in links(&document.text) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = folder.join(file);
            if !target.exists() {
                wrong.push(format!("{}: {link} does not exist", document.path));
            } else if !anchor.is_empty() && !anchors(&target).contains(anchor) {
                wrong.push(format!("{}: {link} has no such heading", document.path));
            }
        }
    }
    none(&wrong);
}

/// Anchors that a forge makes of headings.
fn anchors(file: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |letter: &char| letter.is_alphanumeric() || *letter == '-' || *letter == ' ' || *letter == '_';
    headings.map(|heading| heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

/// A code map that names files which have moved misleads more than none.
#[test]
fn files_that_documents_name_exist() {
    let tops = ["src/", "guard/", "tests/", "docs/", "deploy/", "crds/"];
    let mut wrong = Vec::new();
    for document in documents() {
        let quoted = document.text.split('`').skip(1).step_by(2);
        let named = quoted.filter(|word| tops.iter().any(|top| word.starts_with(top)) && !word.contains([' ', '*', '<', '{']));
        let missing = named.filter(|word| !PathBuf::from(root()).join(word).exists());
        wrong.extend(missing.map(|word| format!("{}: {word} does not exist", document.path)));
    }
    none(&wrong);
}

/// `I-3` in a comment stands for a paragraph of `docs/architecture.md`.
#[test]
fn invariants_that_the_code_names_are_written_down() {
    let page = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let mut wrong = Vec::new();
    for source in ["src", "tests"].iter().flat_map(|folder| sources(folder)).filter(Source::is_rust) {
        for rest in source.text.split(" I-").skip(1) {
            let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
            if !number.is_empty() && !page.contains(&format!("**Invariant I-{number}:**")) {
                wrong.push(format!("{} speaks of I-{number}", source.path));
            }
        }
    }
    none(&wrong);
}

#[test]
fn the_readme_is_short() {
    if let Ok(text) = std::fs::read_to_string(root().join("README.md")) {
        assert!(text.lines().count() < 200, "{} lines", text.lines().count());
    }
}
