//! `replace`: asks for a member's replacement, and shows how it goes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{Api, PostParams};
use kube::core::ObjectMeta;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Resource as _, ResourceExt as _};

use super::connect::{self, Host};
use super::problem::{Problem, Request};
use super::{Exit, terminal};
use crate::api::EtcdMemberReplacement;
use crate::api::duration::parse_duration;
use crate::api::replacement::{
    ClusterRef, EtcdMemberReplacementSpec, EtcdMemberReplacementStatus, Phase, ReplacementPlacement,
    ReplacementStorage, ReplacementStrategy, ReplacementVolume,
};

/// Plural and group, in the words of RBAC.
const RESOURCE: &str = "etcdmemberreplacements.quorate.dev";
/// Label by which Kubernetes knows a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Label by which Kubernetes knows a node.
const NODE: &str = "kubernetes.io/hostname";

/// Arguments of `replace`.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Name of the EtcdCluster.
    #[arg(value_name = "CLUSTER")]
    cluster: String,
    /// Name of the member that makes way, such as main-2.
    #[arg(value_name = "MEMBER", required_unless_present = "on_node", conflicts_with = "on_node")]
    member: Option<String>,
    /// The member on this node makes way.
    #[arg(long, value_name = "NODE")]
    on_node: Option<String>,
    /// The new member runs on this node.
    #[arg(long, value_name = "NODE", conflicts_with = "to_zone")]
    to_node: Option<String>,
    /// The new member runs in this zone.
    #[arg(long, value_name = "ZONE")]
    to_zone: Option<String>,
    /// Storage class of the new member's volume.
    #[arg(long, value_name = "CLASS")]
    storage_class: Option<String>,
    /// Size of the new member's volume; it may be smaller than the cluster's.
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,
    /// Who goes first.
    #[arg(long, value_name = "ORDER", default_value = "auto")]
    strategy: Strategy,
    /// Put the old data aside and use the volume again.
    #[arg(long, conflicts_with_all = ["to_node", "to_zone", "storage_class", "size"])]
    keep_volume: bool,
    /// Only let the Kubernetes API check the request.
    #[arg(long)]
    dry_run: bool,
    /// Show the steps until it is done, for at most so long.
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "1h", value_parser = duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    connection: connect::Options,
}

/// Who goes first.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Strategy {
    /// The new member, if the old one is healthy.
    Auto,
    /// The new member.
    AddFirst,
    /// The old member.
    RemoveFirst,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

/// Creates the request; with `--wait` stays until it is over.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<Exit> {
    let host = arguments.connection.open().await?;
    let api: Api<EtcdMemberReplacement> = Api::namespaced(host.client.clone(), &host.namespace);
    let request =
        Request { verb: "create", resource: RESOURCE, name: None, namespace: Some(&host.namespace) };
    let parameters = PostParams { dry_run: arguments.dry_run, field_manager: Some("quorate-cli".to_owned()) };
    let created = host.call(request, api.create(&parameters, &arguments.object())).await?;
    let name = created.name_any();
    if arguments.dry_run {
        let spec = serde_saphyr::to_string(&created.spec).context("could not write the request as YAML")?;
        terminal::print(&format!("# It would be asked for:\n{spec}"))?;
        return Ok(Exit::Done);
    }
    terminal::print(&format!("etcdmemberreplacement.quorate.dev/{name} created\n"))?;
    let Some(longest) = arguments.wait else {
        terminal::print(&format!("See how it goes with: kubectl get emr {name} --watch\n"))?;
        return Ok(Exit::Done);
    };
    follow(&host, api, &name, longest).await
}

impl Arguments {
    fn object(&self) -> EtcdMemberReplacement {
        let who = self.member.as_ref().or(self.on_node.as_ref()).map_or("member", |name| name.as_str());
        let mut object = EtcdMemberReplacement::new("", self.spec());
        object.metadata = ObjectMeta { generate_name: Some(format!("{who}-")), ..ObjectMeta::default() };
        object
    }

    fn spec(&self) -> EtcdMemberReplacementSpec {
        let label = |key: &str, value: &String| BTreeMap::from([(key.to_owned(), value.clone())]);
        let node = self.to_node.as_ref().map(|node| label(NODE, node));
        let place = node.or_else(|| self.to_zone.as_ref().map(|zone| label(ZONE, zone)));
        let storage =
            ReplacementStorage { storage_class_name: self.storage_class.clone(), size: self.size.clone() };
        EtcdMemberReplacementSpec {
            cluster_ref: ClusterRef { name: self.cluster.clone() },
            member: self.member.clone(),
            member_id: None,
            node: self.on_node.clone(),
            strategy: match self.strategy {
                Strategy::Auto => ReplacementStrategy::Auto,
                Strategy::AddFirst => ReplacementStrategy::AddFirst,
                Strategy::RemoveFirst => ReplacementStrategy::RemoveFirst,
            },
            volume: if self.keep_volume { ReplacementVolume::Keep } else { ReplacementVolume::Auto },
            storage: Some(storage).filter(|storage| *storage != ReplacementStorage::default()),
            placement: place.map(|node_selector| ReplacementPlacement { node_selector }),
            time_limit: "1h".to_owned(),
        }
    }
}

/// Prints every change until it is over.
async fn follow(
    host: &Host,
    api: Api<EtcdMemberReplacement>,
    name: &str,
    longest: Duration,
) -> anyhow::Result<Exit> {
    let mut last = String::new();
    let mut changes = watcher::watch_object(api, name).default_backoff().boxed();
    let watched = async {
        while let Some(object) = changes.try_next().await? {
            let Some(object) = object else { return Ok(None) };
            let status = object.status.unwrap_or_default();
            let line = line(&status);
            if line != last {
                terminal::print(&line)?;
                last = line;
            }
            if let Some(phase) = status.phase.filter(|phase| phase.is_over()) {
                return Ok(Some(phase));
            }
        }
        anyhow::Ok(None)
    };
    match tokio::time::timeout(longest, watched).await {
        Err(_) => {
            let more = format!("not done within {} s; it goes on: kubectl get emr {name}", longest.as_secs());
            terminal::complain(&more);
            Ok(Exit::Timeout)
        }
        Ok(ended) => match ended? {
            Some(Phase::Complete) => Ok(Exit::Done),
            Some(_) => Ok(Exit::Unavailable),
            None => {
                let kind = EtcdMemberReplacement::kind(&());
                let what = format!("the {kind} {}/{name} was deleted", host.namespace);
                Err(Problem::Other(what).into())
            }
        },
    }
}

fn line(status: &EtcdMemberReplacementStatus) -> String {
    let phase = status.phase.unwrap_or_default();
    let step = status.step.as_deref().unwrap_or("-");
    let message = status.message.as_deref().unwrap_or("The operator has not looked at it yet.");
    format!("{:<10} {step:<10} {message}\n", format!("{phase:?}"))
}
