//! `operator`: the settings of the operator, from arguments and the Pod's environment.

use std::net::SocketAddr;

use anyhow::Context as _;

use super::{Exit, logging};
use crate::operator::run::{Config, run};

/// Arguments of `operator`.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Namespaces to look after, separated by commas; default: all.
    #[arg(long, env = "QUORATE_WATCH_NAMESPACES", value_name = "NAMESPACES", value_delimiter = ',')]
    namespaces: Vec<String>,
    /// Address of /metrics, /livez and /readyz.
    #[arg(long, env = "QUORATE_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Namespace of the lease that makes one replica active; default: the namespace of the credentials.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    lease_namespace: Option<String>,
    /// Name of this replica in the lease; default: the host's name.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    identity: Option<String>,
    /// This program's own image, for the init container that brings the guard into members.
    #[arg(long, env = "QUORATE_IMAGE", value_name = "IMAGE")]
    image: String,
    /// Form of the log.
    #[arg(long, env = "QUORATE_LOG_FORMAT", value_name = "FORMAT", default_value = "auto")]
    log_format: logging::Format,
}

/// Runs the operator until it is told to stop, or loses its lease.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<Exit> {
    let Arguments { namespaces, listen, lease_namespace, identity, image, log_format } = arguments;
    logging::start(log_format)?;
    let lease_namespace = match lease_namespace {
        Some(namespace) => namespace,
        None => kube::Config::infer().await.context("cannot find a Kubernetes cluster")?.default_namespace,
    };
    let identity = match identity {
        Some(identity) => identity,
        None => host_name()?,
    };
    // An empty variable means "all", as in `env: {value: ""}` of a manifest.
    let namespaces = namespaces.into_iter().filter(|namespace| !namespace.is_empty()).collect();
    run(Config { namespaces, listen, lease_namespace, identity, guard_image: image }).await?;
    Ok(Exit::Done)
}

/// Of the Pod or machine that this runs on.
fn host_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("could not read the host's name")?;
    Ok(name.trim().to_owned())
}
