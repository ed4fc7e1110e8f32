//! Every command of the README that needs neither Docker nor a folder of the reader's runs, in its order. What begins
//! with `cargo` is what runs this (`cargo verify`, with `cargo demo` in it), or builds this checkout once more.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::support::{Story, kubectl, story};

const NOT_HERE: [&str; 3] = ["cargo ", "docker ", "ln "];

#[tokio::test]
async fn the_commands_of_the_readme_do_what_it_says() {
    story("readme", async |story| {
        let folder = tempfile::tempdir().unwrap();
        prepare(story, folder.path());
        let readme = include_str!("../../README.md");
        let mut ran = 0;
        for command in
            commands(readme).filter(|command| !NOT_HERE.iter().any(|tool| command.starts_with(tool)))
        {
            run(folder.path(), command);
            if command.ends_with("cluster.yaml") {
                story.healthy().await;
            }
            ran += 1;
        }
        assert!(ran >= 8, "only {ran} commands were found");
    })
    .await;
}

/// A KUBECONFIG whose namespace is the story's, and a PATH with quorate under both of its names.
fn prepare(story: &Story, folder: &Path) {
    let config = folder.join("kubeconfig");
    fs::write(&config, kubectl(&["config", "view", "--raw", "--flatten"])).unwrap();
    let config = config.display().to_string();
    kubectl(&[
        "--kubeconfig",
        &config,
        "config",
        "set-context",
        "--current",
        "--namespace",
        &story.namespace,
    ]);
    for name in ["quorate", "kubectl-quorate"] {
        symlink(env!("CARGO_BIN_EXE_quorate"), folder.join(name)).unwrap();
    }
}

fn run(folder: &Path, command: &str) {
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let mut shell = Command::new("sh");
    shell.args(["-ec", command]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = shell.env("PATH", path).env("KUBECONFIG", folder.join("kubeconfig")).output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "$ {command}\n{said}");
    assert!(!said.trim().is_empty(), "`{command}` says nothing");
}

/// Lines of the fences marked `sh`.
fn commands(markdown: &str) -> impl Iterator<Item = &str> {
    let fences = markdown.split("\n```sh\n").skip(1).filter_map(|rest| rest.split_once("\n```"));
    fences.flat_map(|(body, _)| body.lines()).filter(|line| !line.is_empty())
}
