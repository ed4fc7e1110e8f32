//! A real Kubernetes without Docker, on one Linux machine, for demo and tests.
//!
//! The control plane runs as processes of the host; each node is a network namespace with its own containerd,
//! kubelet and kube-proxy. Everything is built from Go modules that `programs/` pins.
//!
//! Why it is as it is, learned the hard way:
//! - The controller manager and the scheduler are started after the apiserver is ready: before it their rights do not
//!   exist, and they end.
//! - Without `CAP_SYS_RESOURCE`: containerd `restrict_oom_score_adj`, kubelet and kube-proxy `oomScoreAdj: 0`.
//! - Control groups of version 1: kubelet `failCgroupV1: false`, `cgroupDriver: cgroupfs`, a `cgroupRoot` a node.
//! - `ip netns exec` mounts /sys anew and hides the control groups; `nsenter --net=` does not.
//! - The apiserver takes a minute to stop on SIGTERM: it gets SIGKILL.
//! - Addresses are from 198.18.0.0/15, the range that RFC 2544 keeps for benchmarks.
//! - Links are cut by iptables and slowed by `tc tbf`; netem is not in every kernel.

#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a command-line tool tells what it does")]

mod audit;
mod certificates;
mod control_plane;
mod demo;
mod faults;
mod faulty;
mod full;
mod images;
mod lifecycle;
mod network;
mod node;
mod process;
mod programs;
mod rights;
mod setup;
mod state;
mod storage;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use state::Cluster;

/// A real Kubernetes without Docker, for demo and tests.
#[derive(Parser)]
#[command(name = "cargo cluster")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Name {
    /// Name of the cluster; two may be up side by side.
    #[arg(long, default_value = "quorate")]
    name: String,
}

#[derive(Args)]
struct Node {
    /// Number of the node.
    node: u8,
    #[command(flatten)]
    name: Name,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a cluster up.
    Up {
        #[command(flatten)]
        name: Name,
        /// Number of nodes.
        #[arg(long, default_value_t = 3)]
        nodes: u8,
        /// Keep Kubernetes' own pauses between starts of a failing container, instead of one second.
        #[arg(long)]
        default_back_off: bool,
    },
    /// Take a cluster down, and everything of it away.
    Down(Name),
    /// Show which clusters are up.
    Status,
    /// Install or name what the machine lacks.
    Setup,
    /// Build all programs and print the folder that they are in.
    Programs,
    /// Build the image of this checkout and load it into every node.
    Load {
        #[command(flatten)]
        name: Name,
        /// Load all images into this cluster of kind instead.
        #[arg(long)]
        kind: Option<String>,
    },
    /// A node loses its power.
    KillNode(Node),
    /// It comes back.
    RestartNode(Node),
    /// A kubelet is killed and started anew.
    RestartKubelet(Node),
    /// A node's cable is cut.
    Cut(Node),
    /// A node's cable is as new.
    Heal(Node),
    /// A node's cable becomes slow.
    Slow {
        #[command(flatten)]
        node: Node,
        /// Bits a second, as tc writes them.
        #[arg(long, default_value = "1mbit")]
        rate: String,
    },
    /// A node's cable loses packets.
    Lossy {
        #[command(flatten)]
        node: Node,
        /// How many of a hundred.
        #[arg(long, default_value_t = 20)]
        percent: u8,
    },
    /// Make and remove the cluster's volumes; started by `up`.
    #[command(hide = true)]
    Provision {
        #[command(flatten)]
        name: Name,
        /// Folder of the programs.
        #[arg(long)]
        programs: PathBuf,
    },
    /// The apiserver is killed.
    StopApiserver(Name),
    /// It is started.
    StartApiserver(Name),
    /// The apiserver is killed and started anew.
    RestartApiserver(Name),
    /// Tell who wrote what, from the apiserver's audit log.
    Audit {
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        options: audit::Options,
    },
    /// Tell which of its rights the operator has never used.
    Rights(Name),
    /// Show Quorate on a cluster of its own.
    Demo(demo::Options),
    /// Run every check.
    Verify(verify::Options),
    /// Search the simulated world for a schedule that breaks an invariant, with new seeds, for so long.
    Explore {
        /// How long.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
    },
    /// Do every fault to every kind of cluster, and write what comes of it into docs/fault-matrix.md.
    Faults(faulty::Matrix),
    /// Do faults by lot to clusters under load.
    Chaos(faulty::Chaos),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Status => println!("{}", lifecycle::status()?),
        Command::Setup => setup::ensure()?,
        Command::Programs => println!("{}", programs::ensure()?.display()),
        Command::Up { name, nodes, default_back_off } => {
            setup::ensure()?;
            let cluster = lifecycle::up(&name.name, nodes, default_back_off)?;
            println!("export KUBECONFIG={}", cluster.kubeconfig().display());
        }
        Command::Down(name) => lifecycle::down(&name.name)?,
        Command::Load { kind: Some(kind), .. } => lifecycle::load_into_kind(&kind)?,
        Command::Load { name, kind: None } => lifecycle::load(&existing(&name)?)?,
        Command::KillNode(node) => faults::kill_node(&existing(&node.name)?, node.node)?,
        Command::RestartNode(node) => {
            faults::restart_node(&existing(&node.name)?, node.node, &programs::ensure()?)?;
        }
        Command::RestartKubelet(node) => {
            faults::restart_kubelet(&existing(&node.name)?, node.node, &programs::ensure()?)?;
        }
        Command::Cut(node) => faults::cut(&existing(&node.name)?, node.node)?,
        Command::Heal(node) => faults::heal(&existing(&node.name)?, node.node)?,
        Command::Slow { node, rate } => faults::slow(&existing(&node.name)?, node.node, &rate)?,
        Command::Lossy { node, percent } => faults::lossy(&existing(&node.name)?, node.node, percent)?,
        Command::Provision { name, programs } => storage::provision(&existing(&name)?, &programs),
        Command::StopApiserver(name) => control_plane::stop_apiserver(&existing(&name)?)?,
        Command::StartApiserver(name) => control_plane::apiserver(&existing(&name)?, &programs::ensure()?)?,
        Command::RestartApiserver(name) => {
            faults::restart_apiserver(&existing(&name)?, &programs::ensure()?)?;
        }
        Command::Audit { name, options } => {
            for line in audit::lines(&existing(&name)?, &options)? {
                println!("{line}");
            }
        }
        Command::Rights(name) => {
            let (given, unused) = rights::unused(&existing(&name)?, &programs::ensure()?)?;
            println!("{given} rights, {} of them never used", unused.len());
            for right in unused {
                println!("{right}");
            }
        }
        Command::Demo(options) => demo::run(&options)?,
        Command::Verify(options) => verify::run(&options)?,
        Command::Explore { minutes } => explore(minutes)?,
        Command::Faults(options) => faulty::matrix(&options)?,
        Command::Chaos(options) => faulty::chaos(&options)?,
    }
    Ok(())
}

/// The same test as in `cargo verify`, which takes the time from the environment.
fn explore(minutes: u64) -> Result<()> {
    let words = ["test", "--locked", "--test", "it", "world::search::no_schedule", "--", "--nocapture"];
    let status = process::cargo()
        .args(words)
        .env("QUORATE_EXPLORE_MINUTES", minutes.to_string())
        .current_dir(programs::checkout()?)
        .status()?;
    if !status.success() {
        anyhow::bail!("a schedule breaks an invariant: it is printed above, as short as it gets");
    }
    Ok(())
}

fn existing(name: &Name) -> Result<Cluster> {
    let name = &name.name;
    Cluster::load(name)?
        .with_context(|| format!("there is no cluster {name}; `cargo cluster up --name {name}` makes one"))
}
