//! `cargo demo`: from nothing to a running etcd cluster, with every step and its time told.

use std::fmt::Display;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{finish, wait};
use crate::programs::{cache, checkout};
use crate::state::Cluster;
use crate::{images, lifecycle, programs, setup};

/// What `cargo demo` may be told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Use kind and Docker instead of the built-in test cluster.
    #[arg(long, conflicts_with = "here")]
    kind: bool,
    /// Use the cluster that KUBECONFIG names; the images must be there already.
    #[arg(long)]
    here: bool,
}

const NAME: &str = "demo";
/// From `kubectl apply` to Ready.
const DEADLINE: Duration = Duration::from_mins(3);

/// Where the demo runs.
struct Place {
    kubectl: PathBuf,
    /// `None`: what KUBECONFIG, or kubectl's own default, says.
    kubeconfig: Option<PathBuf>,
    /// Folder with etcdctl.
    etcdctl: Option<PathBuf>,
}

/// Runs the demo.
pub(crate) fn run(options: &Options) -> Result<()> {
    let total = Instant::now();
    println!(
        "This will show Quorate: a Kubernetes, the operator in it, and a three-member etcd cluster from five lines of YAML."
    );
    let place = if options.here {
        println!(
            "It uses the cluster that KUBECONFIG names and makes the namespace quorate-system and the EtcdCluster main in it."
        );
        Place { kubectl: "kubectl".into(), kubeconfig: None, etcdctl: None }
    } else if options.kind {
        println!("It uses kind and Docker: the kind cluster quorate-demo is made if it does not exist.");
        timed("kind cluster with images", kind)?
    } else {
        println!(
            "It installs missing Debian packages, builds the programs of a three-node Kubernetes (once; about 10 minutes on two cores), starts it under /var/lib/quorate/{NAME} and leaves it running. Ctrl-C at any time; `cargo cluster down --name {NAME}` removes it."
        );
        built_in()?
    };
    place.show()?;
    println!("\nTotal: {:.0} s", total.elapsed().as_secs_f64());
    place.how_to_go_on(options)
}

fn built_in() -> Result<Place> {
    timed("packages", setup::ensure)?;
    let programs = timed("programs of the test cluster", programs::ensure)?;
    let cluster = timed("a Kubernetes of three nodes", || lifecycle::up(NAME, 3, true))?;
    timed("Quorate's image, built and loaded", || lifecycle::load(&cluster))?;
    Ok(Place::built_in(&cluster, &programs))
}

fn kind() -> Result<Place> {
    for program in ["docker", "kind", "kubectl"] {
        finish(Command::new(program).arg("version")).with_context(|| {
            format!("`cargo demo --kind` needs a working {program}; without it use `cargo demo`")
        })?;
    }
    let clusters = finish(Command::new("kind").args(["get", "clusters"]))?;
    if !clusters.lines().any(|name| name == "quorate-demo") {
        finish(Command::new("kind").args(["create", "cluster", "--name", "quorate-demo"]))?;
    }
    lifecycle::load_into_kind("quorate-demo")?;
    Ok(Place { kubectl: "kubectl".into(), kubeconfig: None, etcdctl: None })
}

/// The demo's part on a cluster that is up: what `cargo verify` runs too.
pub(crate) fn show(cluster: &Cluster, programs: &Path) -> Result<()> {
    Place::built_in(cluster, programs).show()
}

impl Place {
    fn built_in(cluster: &Cluster, programs: &Path) -> Self {
        Self {
            kubectl: programs.join("kubectl"),
            kubeconfig: Some(cluster.kubeconfig()),
            etcdctl: Some(programs.join("etcd-3.6")),
        }
    }

    fn show(&self) -> Result<()> {
        let file = |path: &str| -> Result<String> { Ok(checkout()?.join(path).display().to_string()) };
        timed("operator installed", || {
            self.kubectl(&[
                "apply",
                "--server-side",
                "--force-conflicts",
                "-f",
                &file("deploy/install.yaml")?,
            ])?;
            self.kubectl(&[
                "wait",
                "--for=condition=Established",
                "crd/etcdclusters.quorate.dev",
                "--timeout=60s",
            ])?;
            self.kubectl(&[
                "-n",
                "quorate-system",
                "rollout",
                "status",
                "deployment/quorate-operator",
                "--timeout=150s",
            ])
        })?;
        println!("\n$ kubectl apply -f deploy/examples/cluster.yaml");
        timed("kubectl apply → Ready", || {
            self.kubectl(&["apply", "-f", &file("deploy/examples/cluster.yaml")?])?;
            self.ready()
        })?;
        println!("\n$ quorate status main\n{}", self.status()?);
        Ok(())
    }

    /// Prints each change of the status until the cluster is Ready.
    fn ready(&self) -> Result<()> {
        let mut last = String::new();
        let outcome = wait("the EtcdCluster main is Ready", DEADLINE, || {
            let path = "jsonpath={.status.ready} {.status.summary}|{.status.conditions[?(@.type==\"Ready\")].status}";
            let said = self.kubectl(&["get", "etcdcluster", "main", "-o", path])?;
            let (line, ready) = said.split_once('|').unwrap_or((&said, ""));
            if line.trim() != last.trim() && !line.trim().is_empty() {
                println!("  main: {}", line.trim());
                line.clone_into(&mut last);
            }
            Ok((ready == "True" && line.ends_with("Healthy")).then_some(()))
        });
        outcome.with_context(|| {
            let logs = self.kubectl(&[
                "-n",
                "quorate-system",
                "logs",
                "-l",
                "app.kubernetes.io/component=operator",
                "--tail=10",
            ]);
            let events = self.kubectl(&["get", "events"]);
            format!(
                "look at the operator's log and at events:\n{}\n{}",
                logs.unwrap_or_default(),
                events.unwrap_or_default()
            )
        })
    }

    fn status(&self) -> Result<String> {
        let mut command = Command::new(images::build("quorate")?);
        command.args(["status", "main"]);
        if let Some(kubeconfig) = &self.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        finish(&mut command)
    }

    fn kubectl(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.kubectl);
        command.args(words);
        if let Some(kubeconfig) = &self.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        let said = finish(&mut command)?;
        if said.contains("error:") {
            bail!("kubectl {words:?}: {said}")
        }
        Ok(said)
    }

    fn how_to_go_on(&self, options: &Options) -> Result<()> {
        println!("\nGo on:");
        if let Some(kubeconfig) = &self.kubeconfig {
            println!("  export KUBECONFIG={}", kubeconfig.display());
        }
        let programs = self.etcdctl.iter().flat_map(|etcdctl| [etcdctl.parent().unwrap_or(etcdctl), etcdctl]);
        let folders: Vec<_> = programs.map(|folder| folder.display().to_string()).collect();
        println!(
            "  export PATH={}:$PATH",
            [&[plugin()?.display().to_string()], folders.as_slice()].concat().join(":")
        );
        println!("  kubectl get etcdclusters");
        println!(
            "  kubectl quorate status main --watch      # and, in another terminal: kubectl delete pod main-1"
        );
        println!("  kubectl quorate ctl main -- put hello world");
        println!("  kubectl quorate ctl main -- get hello");
        println!("Clean up:");
        match (options.kind, options.here) {
            (true, _) => println!("  kind delete cluster --name quorate-demo"),
            (_, true) => println!("  kubectl delete etcdcluster main; kubectl delete -f deploy/install.yaml"),
            _ => println!("  cargo cluster down --name {NAME}"),
        }
        Ok(())
    }
}

/// A folder with the program under the name by which kubectl finds it.
fn plugin() -> Result<PathBuf> {
    let folder = cache()?.join("plugin");
    fs::create_dir_all(&folder)?;
    let link = folder.join("kubectl-quorate");
    if link.is_symlink() {
        fs::remove_file(&link)?;
    }
    symlink(images::build("quorate")?, &link)?;
    Ok(folder)
}

/// Does one step and tells how long it took.
fn timed<T>(step: impl Display, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let outcome = work()?;
    println!("  {step}: {:.1} s", begun.elapsed().as_secs_f64());
    Ok(outcome)
}
