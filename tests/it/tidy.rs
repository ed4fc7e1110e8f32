//! The rules of this repository that no compiler checks. Each failure says which rule, where, and why it is one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use quorate::api::reason::Reason;

/// Files of these names do I/O; all others are nouns and pure, so a name answers "can this fail because of the
/// network?".
const VERBS: [&str; 23] = [
    "read",
    "observe",
    "inspect",
    "apply",
    "connect",
    "survey",
    "probe",
    "change",
    "authorize",
    "lead",
    "serve",
    "run",
    "reconcile",
    "issue",
    "follow",
    "listen",
    "look",
    "lease",
    "write",
    "verify",
    "promote",
    "release",
    "switch",
];
/// The edge of the program, and the file that holds the client and the only clock.
const EXCEPTIONS: [&str; 3] = ["src/main.rs", "src/cli/", "src/operator/context.rs"];
/// What makes code impure.
const IMPURE: [&str; 8] =
    ["async", ".await", "Timestamp::now", "Instant::now", "SystemTime::now", "env::var", "fs::", "rand::"];

/// A room of `src`, what it must not mention, and why.
const DIRECTIONS: [(&str, &[&str], &str); 4] = [
    (
        "src/api/",
        &["tokio", "etcd_client", "crate::etcd", "crate::operator", "crate::cli"],
        "the custom resources are the users' contract: any tool may import them",
    ),
    (
        "src/etcd/",
        &["kube", "k8s_openapi", "crate::api", "crate::operator", "crate::cli"],
        "what we know of etcd is also used where there is no Kubernetes",
    ),
    (
        "src/mirror/",
        &["kube", "k8s_openapi", "crate::api", "crate::operator", "crate::cli"],
        "a mirror runs on any host: whoever has two etcds need not have Kubernetes",
    ),
    ("src/operator/", &["crate::cli"], "settings come to the operator as values, so tests need no process"),
];

#[test]
fn files_named_by_nouns_are_pure() {
    let mut complaints = Vec::new();
    for (path, text) in sources("src") {
        let stem = Path::new(&path).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let excepted = EXCEPTIONS.iter().any(|exception| path.starts_with(exception));
        if excepted || VERBS.contains(&stem) || path.ends_with("/tests.rs") {
            continue;
        }
        let code = code(&text);
        for word in IMPURE.iter().filter(|word| mentions(&code, word)) {
            complaints.push(format!(
                "{path} has `{word}`: a file that does I/O is named by a verb ({})",
                VERBS.join(", ")
            ));
        }
    }
    none(&complaints);
}

#[test]
fn rooms_look_in_one_direction_only() {
    let mut complaints = Vec::new();
    for (room, forbidden, why) in DIRECTIONS {
        let files = sources(room);
        assert!(!files.is_empty(), "there is no room {room}");
        for (path, text) in files {
            let code = code(&text);
            for word in forbidden.iter().filter(|word| mentions(&code, word)) {
                complaints.push(format!("{path} uses `{word}`: {why}"));
            }
        }
    }
    none(&complaints);
}

/// So a clock that jumps changes what an agent tells, and nothing that it does: whatever is waited for or measured is
/// an `Instant`, and no time is stored in etcd. (The clock of one process alone cannot be set: no namespace has it.)
#[test]
fn only_what_an_agent_tells_knows_the_time_of_day() {
    const WORDS: [&str; 5] = ["jiff", "Timestamp", "SystemTime", "OffsetDateTime", "UNIX_EPOCH"];
    const TELLING: [&str; 4] = [
        "src/mirror/agent/change.rs",
        "src/mirror/agent/run.rs",
        "src/mirror/agent/status.rs",
        "src/mirror/agent/tell.rs",
    ];
    let knows = |text: &str| WORDS.into_iter().find(|word| mentions(&code(text), word));
    let mut complaints = Vec::new();
    for (path, text) in sources("src/mirror/") {
        match (knows(&text), TELLING.contains(&path.as_str())) {
            (Some(word), false) => complaints.push(format!(
                "{path} has `{word}`: a mirror must not depend on what time somebody thinks it is"
            )),
            (None, true) => complaints.push(format!("{path} needs no exception: it knows no time of day")),
            (Some(_), true) | (None, false) => {}
        }
    }
    none(&complaints);
}

#[test]
fn every_reason_has_a_heading_in_the_manual_and_the_other_way_round() {
    let manual = read("docs/operations.md");
    let mut headings = BTreeSet::new();
    for section in manual.split("\n### ").skip(1) {
        let mut lines = section.lines();
        let heading = lines.next().unwrap_or_default();
        assert!(headings.insert(heading.to_owned()), "{heading} has two headings in docs/operations.md");
        let sentence = lines.find(|line| !line.is_empty()).unwrap_or_default();
        // `quorate explain` lists each reason with this line.
        assert!(sentence.ends_with('.'), "{heading}: the first line must be one sentence, it is: {sentence}");
    }
    let reasons: BTreeSet<String> = Reason::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(headings, reasons, "left: headings `### …` of docs/operations.md, right: Reason::ALL");
}

#[test]
fn the_list_of_all_reasons_is_complete() {
    let text = read("src/api/reason.rs");
    let (_, after) = text.split_once("pub enum Reason {").unwrap();
    let (body, _) = after.split_once("\n}").unwrap();
    let variants: BTreeSet<String> = code(body).split(',').map(|name| name.trim().to_owned()).collect();
    let listed: BTreeSet<String> = Reason::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(variants.iter().filter(|name| !name.is_empty()).cloned().collect::<BTreeSet<_>>(), listed);
}

#[test]
fn nothing_is_left_for_later_and_no_test_is_switched_off() {
    // In two parts, so that this file does not find itself.
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("#[", "ignore"), concat!("dbg", "!(")];
    complain_about(&words, "is not committed: do it, or open an issue");
}

#[test]
fn no_file_knows_the_machine_that_it_was_written_on() {
    complain_about(&[concat!("/ro", "ot/"), concat!("/ho", "me/")], "is a folder of one person's machine");
}

fn complain_about(words: &[&str], why: &str) {
    let mut complaints = Vec::new();
    for (path, text) in texts() {
        for (number, line) in text.lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(**word)) {
                complaints.push(format!("{path}:{}: `{word}` {why}", number + 1));
            }
        }
    }
    none(&complaints);
}

#[test]
fn the_readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines < 200, "README.md has {lines} lines: whoever wants more finds it in docs/");
}

#[test]
fn commands_in_the_documents_exist() {
    let mut complaints = Vec::new();
    let mut seen = 0;
    for (path, text) in texts().into_iter().filter(|(path, _)| path.ends_with(".md")) {
        for command in commands(&text) {
            seen += 1;
            if let Err(problem) = check_command(&command) {
                complaints.push(format!("{path}: `{command}`: {problem}"));
            }
        }
    }
    none(&complaints);
    assert!(seen > 10, "only {seen} commands were found in *.md");
}

/// Lines of fences marked `sh` or `console`, without prompt and comment.
fn commands(markdown: &str) -> Vec<String> {
    let mut commands = Vec::new();
    for (language, body) in fences(markdown) {
        if language == "sh" || language == "console" {
            let lines = body.lines().map(|line| line.strip_prefix("$ ").unwrap_or(line));
            let bare = lines.map(|line| line.split(" #").next().unwrap_or(line).trim());
            commands.extend(bare.filter(|line| !line.is_empty()).map(str::to_owned));
        }
    }
    commands
}

fn check_command(command: &str) -> Result<(), String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words.as_slice() {
        ["cargo", rest @ ..] => check_cargo(rest),
        ["kubectl", "quorate", rest @ ..] | ["quorate", rest @ ..] => check_quorate(rest),
        ["kubectl", rest @ ..] => check_kubectl(rest),
        _ => Ok(()),
    }
}

fn check_cargo(words: &[&str]) -> Result<(), String> {
    const OWN: [&str; 8] = ["bench", "build", "clippy", "doc", "fmt", "install", "run", "test"];
    let name = words.first().copied().unwrap_or_default();
    let aliases = read(".cargo/config.toml");
    let alias = aliases.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='));
    let Some(alias) = alias else {
        return if OWN.contains(&name) { Ok(()) } else { Err(format!("cargo has no `{name}`")) };
    };
    if !alias.contains("quorate-cluster") {
        return Ok(());
    }
    // What the tool is told must at least be known to it by name.
    let tool: String = sources("tests/cluster/src").into_values().map(|text| text.to_lowercase()).collect();
    let told = words.iter().skip(1).filter(|word| word.starts_with("--") || name == "cluster").take(2);
    let unknown = told.map(|word| word.trim_start_matches('-')).find(|word| !mentions(&tool, word));
    unknown.map_or(Ok(()), |word| Err(format!("the test cluster's tool does not know `{word}`")))
}

/// Asks the program itself.
fn check_quorate(words: &[&str]) -> Result<(), String> {
    let subcommand = words.first().copied().unwrap_or_default();
    let output = Command::new(env!("CARGO_BIN_EXE_quorate")).args([subcommand, "--help"]).output();
    let output = output.map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("quorate has no `{subcommand}`"));
    }
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    let own = words.iter().take_while(|word| **word != "--");
    let mut flags =
        own.filter(|word| word.starts_with("--")).map(|flag| flag.split('=').next().unwrap_or(flag));
    flags
        .find(|flag| !help.contains(*flag))
        .map_or(Ok(()), |flag| Err(format!("quorate {subcommand} has no {flag}")))
}

fn check_kubectl(words: &[&str]) -> Result<(), String> {
    const KNOWN: [&str; 18] = [
        "annotate",
        "apply",
        "create",
        "delete",
        "describe",
        "edit",
        "exec",
        "explain",
        "get",
        "label",
        "logs",
        "patch",
        "port-forward",
        "drain",
        "rollout",
        "run",
        "scale",
        "wait",
    ];
    let rest = if let ["-n", _, rest @ ..] = words { rest } else { words };
    let name = rest.first().copied().unwrap_or_default();
    if !KNOWN.contains(&name) {
        return Err(format!("kubectl has no `{name}`"));
    }
    let file = rest.iter().skip_while(|word| **word != "-f").nth(1);
    let missing = file.filter(|file| !file.contains("://") && **file != "-" && !root().join(file).exists());
    missing.map_or(Ok(()), |file| Err(format!("there is no file {file}")))
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut complaints = Vec::new();
    for (path, text) in texts().into_iter().filter(|(path, _)| path.ends_with(".md")) {
        for link in links(&text) {
            if !leads_somewhere(&path, &text, &link) {
                complaints.push(format!("{path}: nothing is at {link}"));
            }
        }
    }
    none(&complaints);
}

fn leads_somewhere(path: &str, text: &str, link: &str) -> bool {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let folder = root().join(path).parent().unwrap_or(Path::new(".")).to_owned();
    let target = folder.join(file);
    if !file.is_empty() && !target.exists() {
        return false;
    }
    let there =
        if file.is_empty() { text.to_owned() } else { fs::read_to_string(&target).unwrap_or_default() };
    anchor.is_empty()
        || there.lines().filter_map(|line| line.strip_prefix('#')).any(|heading| slug(heading) == anchor)
}

/// Relative targets of `[text](target)`, outside of fences.
fn links(markdown: &str) -> Vec<String> {
    let mut prose = markdown.to_owned();
    for (_, body) in fences(markdown) {
        prose = prose.replace(&body, "");
    }
    let targets = prose.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()));
    targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:")).collect()
}

/// The anchor that a heading gets.
fn slug(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}

/// Language and body of each fence.
fn fences(markdown: &str) -> Vec<(String, String)> {
    let mut fences = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in markdown.lines() {
        match (line.trim_start().strip_prefix("```"), open.take()) {
            (Some(language), None) => open = Some((language.trim().to_owned(), String::new())),
            (Some(_), Some(fence)) => fences.push(fence),
            (None, Some((language, body))) => open = Some((language, format!("{body}{line}\n"))),
            (None, None) => {}
        }
    }
    fences
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// Rust files under a folder, by path from the root.
fn sources(folder: &str) -> BTreeMap<String, String> {
    texts().into_iter().filter(|(path, _)| path.starts_with(folder) && path.ends_with(".rs")).collect()
}

/// Every text of the repository, by path from the root; what is built, downloaded or generated by other tools apart.
fn texts() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && name != "target" && name != ".git" {
                folders.push(entry.path());
            }
            // What is not text is nobody's prose.
            if let (true, Ok(text)) = (kind.is_file() && !is_lock(&name), fs::read_to_string(entry.path())) {
                let path = entry.path();
                found.insert(path.strip_prefix(root()).unwrap().to_string_lossy().into_owned(), text);
            }
        }
    }
    found
}

/// `.git` is a file in a linked work tree.
fn is_lock(name: &str) -> bool {
    matches!(name, "Cargo.lock" | "go.sum" | ".git")
}

/// The code of a file: without comments, and without the tests at its end.
fn code(text: &str) -> String {
    let product = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let lines = product.lines().map(|line| line.split("//").next().unwrap_or(line));
    lines.fold(String::new(), |code, line| code + line + "\n")
}

/// Whether code has a word that is no part of a longer one. A path such as `crate::etcd` is also found in
/// `use crate::{api, etcd}`.
fn mentions(code: &str, word: &str) -> bool {
    let is_letter = |letter: char| letter.is_alphanumeric() || letter == '_';
    let alone = |text: &str, word: &str| {
        text.match_indices(word).any(|(at, _)| {
            let before = text.get(..at).and_then(|before| before.chars().next_back());
            let after = text.get(at + word.len()..).and_then(|after| after.chars().next());
            let starts = word.starts_with(is_letter) && before.is_some_and(is_letter);
            let ends = word.ends_with(is_letter) && after.is_some_and(is_letter);
            !starts && !ends
        })
    };
    let grouped = |path: &str| {
        let groups = code.split("crate::{").skip(1).map(|rest| rest.split(';').next().unwrap_or(rest));
        groups.into_iter().any(|group| alone(group, path))
    };
    alone(code, word) || word.strip_prefix("crate::").is_some_and(grouped)
}

#[test]
fn a_word_in_a_comment_a_test_or_a_longer_word_is_not_code() {
    let file =
        "//! async\nfn asynchronous() {} // .await\n\n#[cfg(test)]\nmod tests {\n    async fn x() {}\n}\n";
    assert!(!mentions(&code(file), "async") && !mentions(&code(file), ".await"));
    assert!(mentions(&code("pub async fn x() {}"), "async"));
    assert!(mentions("x().await?", ".await"));
    assert!(!mentions("use kubernetes::x;", "kube") && mentions("use kube::Api;", "kube"));
    assert!(mentions("use crate::{api::x, operator::y};", "crate::operator"));
    assert!(!mentions("use crate::{api::x};\nlet operator = 1;", "crate::operator"));
}

#[test]
fn a_command_that_does_not_exist_is_found() {
    for good in
        ["cargo test --workspace", "quorate status main --watch", "kubectl quorate crds", "make coffee"]
    {
        assert_eq!(check_command(good), Ok(()), "{good}");
    }
    for bad in [
        "cargo demonstrate",
        "quorate statsu",
        "kubectl quorate status --wach",
        "kubectl aply",
        "kubectl apply -f no/file.yaml",
        "cargo cluster explode",
    ] {
        assert!(check_command(bad).is_err(), "{bad}");
    }
    assert_eq!(commands("```sh\n$ a b   # why\n\n```\n```yaml\nc: d\n```\n"), ["a b"]);
}

#[test]
fn a_link_is_read_with_its_anchor() {
    let text = "# One\n\n## Kept `volumes`, all\n[a](#kept-volumes-all) [b](https://x.example) [c](c.md#d)\n```\n[e](f)\n```\n";
    assert_eq!(links(text), ["#kept-volumes-all", "c.md#d"]);
    assert!(leads_somewhere("README.md", text, "#kept-volumes-all"));
    assert!(
        !leads_somewhere("README.md", text, "#nowhere")
            && !leads_somewhere("README.md", text, "no/such/file.md")
    );
}
