//! `status`: how clusters are, once or on every change.

mod look;
mod picture;
mod verdict;
mod watch;

use anyhow::Context as _;
use jiff::Timestamp;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::ApiResource;
use kube::{Resource as _, ResourceExt as _};
use serde_json::{Value, json};

use super::connect::{self, Host};
use super::problem::{Problem, Request};
use super::terminal::Color;
use super::{Exit, terminal};
use crate::api::EtcdCluster;
use look::Look;

/// Plural and group, in the words of RBAC.
pub(super) const RESOURCE: &str = "etcdclusters.quorate.dev";

/// Arguments of `status`.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Name of an EtcdCluster; without one, all of the namespace.
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Every namespace.
    #[arg(short = 'A', long, conflicts_with_all = ["name", "namespace"])]
    all_namespaces: bool,
    #[command(flatten)]
    connection: connect::Options,
    /// Form of the output.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Output,
    /// Stay and show every change, until Ctrl-C.
    #[arg(short, long)]
    watch: bool,
    /// When to use colours; NO_COLOR is honoured.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: Color,
    /// Draw with ASCII only.
    #[arg(long)]
    ascii: bool,
}

/// Form of the output.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    /// A picture, or a row a cluster.
    Table,
    /// The objects as JSON.
    Json,
    /// The objects as YAML.
    Yaml,
    /// Resource and name only.
    Name,
}

/// Objects of a page: enough for one request in nearly every Kubernetes cluster.
const PAGE: u32 = 500;
/// Pages at most: a server that never ends its list must not keep us for ever.
const PAGES: usize = 200;
/// Other clusters that a "does not exist" names.
const SUGGESTIONS: usize = 10;

/// Shows what was asked for; the exit code is that of the worst cluster shown.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<Exit> {
    let host = arguments.connection.open().await?;
    if arguments.watch {
        return watch::execute(&host, &arguments).await;
    }
    let Some(name) = &arguments.name else {
        let objects = list(&host, arguments.scope(&host)).await?;
        if objects.is_empty() && arguments.output == Output::Table {
            terminal::complain(&none(&host, arguments.all_namespaces).await);
            return Ok(Exit::Done);
        }
        return arguments.show_all(&objects);
    };
    let object = get(&host, name).await?;
    arguments.show(&object)
}

impl Arguments {
    /// The namespace to look at; `None` is all.
    fn scope<'a>(&self, host: &'a Host) -> Option<&'a str> {
        (!self.all_namespaces).then_some(host.namespace.as_str())
    }

    fn look(&self) -> Look {
        Look {
            color: self.color.wanted(),
            ascii: self.ascii,
            width: terminal::width(),
            now: Timestamp::now(),
        }
    }

    /// Shows one cluster.
    fn show(&self, object: &DynamicObject) -> anyhow::Result<Exit> {
        let cluster = understand(object)?;
        let text = match self.output {
            Output::Table => picture::picture(&cluster, &self.look()),
            Output::Json => json_text(&plain(object)?)?,
            Output::Yaml => yaml_text(&plain(object)?)?,
            Output::Name => name_text(object),
        };
        terminal::print(&text)?;
        Ok(verdict::judge(&cluster).exit())
    }

    /// Shows what a list found: a single one as a picture, more as rows.
    fn show_all(&self, objects: &[DynamicObject]) -> anyhow::Result<Exit> {
        let clusters: Vec<EtcdCluster> = objects.iter().map(understand).collect::<anyhow::Result<_>>()?;
        let text = match self.output {
            Output::Table => self.table(&clusters),
            Output::Json => json_text(&list_value(objects)?)?,
            Output::Yaml => yaml_text(&list_value(objects)?)?,
            Output::Name => objects.iter().map(name_text).collect(),
        };
        terminal::print(&text)?;
        Ok(worst(&clusters))
    }

    fn table(&self, clusters: &[EtcdCluster]) -> String {
        match clusters {
            [only] if !self.all_namespaces => picture::picture(only, &self.look()),
            clusters => picture::overview(clusters, self.all_namespaces, &self.look()),
        }
    }
}

/// A cluster in a word, a phrase and an exit code.
pub(super) fn verdict(cluster: &EtcdCluster) -> (&'static str, String, Exit) {
    let verdict = verdict::judge(cluster);
    (verdict.state.word(), verdict.phrase.clone(), verdict.exit())
}

/// The exit code of several clusters.
fn worst(clusters: &[EtcdCluster]) -> Exit {
    worst_of(clusters.iter().map(|cluster| verdict::judge(cluster).exit()))
}

/// The worst exit code.
pub(super) fn worst_of(exits: impl IntoIterator<Item = Exit>) -> Exit {
    exits.into_iter().fold(Exit::Done, |worst, exit| match (worst, exit) {
        (Exit::Unavailable, _) | (_, Exit::Unavailable) => Exit::Unavailable,
        (Exit::Degraded, _) | (_, Exit::Degraded) => Exit::Degraded,
        (worst, _) => worst,
    })
}

/// EtcdClusters as the server has them: fields of a newer version survive `-o json`.
fn api(host: &Host, namespace: Option<&str>) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<EtcdCluster>(&());
    match namespace {
        Some(namespace) => Api::namespaced_with(host.client.clone(), namespace, &resource),
        None => Api::all_with(host.client.clone(), &resource),
    }
}

/// Reads one cluster of the person's namespace.
pub(super) async fn get(host: &Host, name: &str) -> anyhow::Result<DynamicObject> {
    let request =
        Request { verb: "get", resource: RESOURCE, name: Some(name), namespace: Some(&host.namespace) };
    match host.call(request, api(host, Some(&host.namespace)).get_opt(name)).await? {
        Some(object) => Ok(object),
        None => Err(missing(host, name).await.into()),
    }
}

/// Reads all clusters of a namespace, or of all.
pub(super) async fn list(host: &Host, namespace: Option<&str>) -> Result<Vec<DynamicObject>, Problem> {
    let api = api(host, namespace);
    let request = Request { verb: "list", resource: RESOURCE, name: None, namespace };
    let mut parameters = ListParams::default().limit(PAGE);
    let mut objects = Vec::new();
    for _ in 0..PAGES {
        let page = host.call(request, api.list(&parameters)).await?;
        objects.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => break,
        }
    }
    Ok(objects)
}

/// Turns an object into our type.
pub(super) fn understand(object: &DynamicObject) -> anyhow::Result<EtcdCluster> {
    let value = serde_json::to_value(object).context("an answer of the Kubernetes API could not be kept")?;
    serde_json::from_value(value).with_context(|| {
        format!(
            "EtcdCluster {}/{} is not what this version of kubectl quorate understands; use the version of the operator",
            object.namespace().unwrap_or_default(),
            object.name_any()
        )
    })
}

/// Why a named cluster cannot be shown, with what there is instead.
async fn missing(host: &Host, name: &str) -> Problem {
    // Whoever may not list everywhere is told less; that the kind is unknown is worth telling.
    let elsewhere = match list(host, None).await {
        Ok(objects) => objects,
        Err(problem @ Problem::NotInstalled) => return problem,
        Err(_) => list(host, Some(&host.namespace)).await.unwrap_or_default(),
    };
    let hint = suggestions(&elsewhere);
    Problem::Other(format!("there is no EtcdCluster {name} in namespace {}{hint}", host.namespace))
}

/// What is said when a list is empty.
async fn none(host: &Host, all_namespaces: bool) -> String {
    if all_namespaces {
        return "There is no EtcdCluster in any namespace.".to_owned();
    }
    let elsewhere = list(host, None).await.unwrap_or_default();
    format!("There is no EtcdCluster in namespace {}{}.", host.namespace, suggestions(&elsewhere))
}

fn suggestions(objects: &[DynamicObject]) -> String {
    let names: Vec<String> = objects
        .iter()
        .take(SUGGESTIONS)
        .map(|object| format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any()))
        .collect();
    match objects.len().saturating_sub(SUGGESTIONS) {
        _ if names.is_empty() => String::new(),
        0 => format!("; there is {} (choose with -n NAMESPACE)", names.join(", ")),
        more => format!("; there is {} and {more} more (choose with -n NAMESPACE)", names.join(", ")),
    }
}

/// The object without the bookkeeping of server-side apply, as kubectl shows it.
fn plain(object: &DynamicObject) -> anyhow::Result<Value> {
    let mut object = object.clone();
    object.metadata.managed_fields = None;
    // Items of a list come without their type.
    let types = kube::core::TypeMeta {
        api_version: EtcdCluster::api_version(&()).into_owned(),
        kind: EtcdCluster::kind(&()).into_owned(),
    };
    object.types.get_or_insert(types);
    serde_json::to_value(&object).context("could not write an object as JSON")
}

fn list_value(objects: &[DynamicObject]) -> anyhow::Result<Value> {
    let items: Vec<Value> = objects.iter().map(plain).collect::<anyhow::Result<_>>()?;
    Ok(json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items}))
}

fn json_text(value: &Value) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value).context("could not write JSON")? + "\n")
}

fn yaml_text(value: &Value) -> anyhow::Result<String> {
    serde_saphyr::to_string(value).context("could not write YAML")
}

fn name_text(object: &DynamicObject) -> String {
    format!("etcdcluster.{}/{}\n", crate::api::GROUP, object.name_any())
}
