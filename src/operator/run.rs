//! Starts everything, and stops it in the order in which it must stop: reconciles first, the lease last.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service};
use kube::api::{ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::controller::{Action, Config as ControllerConfig, Controller, Error as ControllerError};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::cluster::reconcile::{reconcile, reject_orphans};
use super::context::{Authority, Clock, Context};
use super::failure::{ReconcileError, pause_after};
use super::lead::Candidate;
use super::metrics::{Metrics, ReconcileLabels};
use super::serve::serve;
use super::write::publish_mistake;
use super::{mirror, names};
use crate::api::{EtcdCluster, EtcdMemberReplacement, EtcdMirror};
use crate::etcd::change::Dialled;
use crate::etcd::survey::chain;

/// Clusters that are worked on at the same time: each waits for the network nearly all of its time.
const CONCURRENCY: u16 = 32;

/// What the operator needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Namespaces to watch; empty: all.
    pub namespaces: Vec<String>,
    /// Where `/metrics`, `/livez` and `/readyz` are served.
    pub listen: SocketAddr,
    /// Namespace of the Lease.
    pub lease_namespace: String,
    /// Identity in the Lease.
    pub identity: String,
    /// Image with the guard.
    pub guard_image: String,
}

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No kubeconfig and not in a Pod.
    #[error("cannot find a Kubernetes cluster")]
    Client(#[source] kube::Error),
    /// The address of `--listen` cannot be used.
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// Signals cannot be received.
    #[error("cannot receive signals")]
    Signals(#[source] std::io::Error),
    /// The lease was lost: the Pod's next start tries again.
    #[error("the lease was lost; nothing is written any more")]
    LeaseLost,
}

/// Runs until SIGTERM, or until the lease is lost.
pub async fn run(config: Config) -> Result<(), RunError> {
    let client = Client::try_default().await.map_err(RunError::Client)?;
    let listener =
        TcpListener::bind(config.listen).await.map_err(|error| RunError::Listen(config.listen, error))?;
    let metrics = Arc::new(Metrics::new());
    let authority = Arc::new(Authority::default());
    let stop = stop_signal()?;
    let server = tokio::spawn(serve(listener, metrics.clone(), stopped(stop.clone())));

    let mut candidate =
        Candidate::new(client.clone(), &config.lease_namespace, config.identity.clone(), authority.clone());
    tracing::info!(identity = config.identity, "waiting for the lease");
    tokio::select! {
        () = candidate.acquire() => {}
        () = stopped(stop.clone()) => return Ok(()),
    }
    tracing::info!(identity = config.identity, "holding the lease");
    metrics.leader.set(1);
    let clock: Clock = Arc::new(jiff::Timestamp::now);
    let image = config.guard_image.clone();
    let context = Arc::new(Context::new(client, Arc::new(Dialled), clock, image, metrics.clone(), authority));
    let controllers = controllers(&config, &context);
    let result = tokio::select! {
        () = controllers => Ok(()),
        () = candidate.hold() => Err(RunError::LeaseLost),
        () = stopped(stop) => Ok(()),
    };
    // Dropping the controllers above has ended every reconcile, so nothing is written after this line.
    metrics.leader.set(0);
    if result.is_ok() {
        candidate.release().await;
    }
    server.abort();
    result
}

/// Becomes true at SIGTERM or SIGINT.
fn stop_signal() -> Result<watch::Receiver<bool>, RunError> {
    use tokio::signal::unix::{SignalKind, signal};
    let (sender, receiver) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        sender.send_replace(true);
        // Keeps the channel open for those who ask later.
        sender.closed().await;
    });
    Ok(receiver)
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    if stop.wait_for(|stopped| *stopped).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The controllers of all kinds for each namespace that is watched, or for all.
async fn controllers(config: &Config, context: &Arc<Context>) {
    let runs: Vec<_> = if config.namespaces.is_empty() {
        vec![Scope::All]
    } else {
        config.namespaces.iter().cloned().map(Scope::One).collect()
    };
    let both = |scope: Scope| {
        futures::future::join(controller(scope.clone(), context.clone()), mirrors(scope, context.clone()))
    };
    futures::future::join_all(runs.into_iter().map(both)).await;
}

#[derive(Clone)]
enum Scope {
    All,
    One(String),
}

impl Scope {
    fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        match self {
            Self::All => Api::all(client.clone()),
            Self::One(namespace) => Api::namespaced(client.clone(), namespace),
        }
    }
}

impl Scope {
    fn namespace(&self) -> Option<&str> {
        match self {
            Self::All => None,
            Self::One(namespace) => Some(namespace),
        }
    }

    fn replacements(&self, client: &Client) -> Api<DynamicObject> {
        let resource = ApiResource::erase::<EtcdMemberReplacement>(&());
        match self {
            Self::All => Api::all_with(client.clone(), &resource),
            Self::One(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        }
    }
}

/// A watch only says "look there", so nothing but metadata is watched: what is decided is decided on what `observe`
/// reads anew, one object that cannot be read (stored under another version of the CRD) hides no other, and no copy
/// of any object is kept.
///
/// What is waiting is bounded by the number of clusters: kube keeps one entry a cluster, and one reconcile at a time.
async fn controller(scope: Scope, context: Arc<Context>) {
    let client = &context.client;
    let ours = watcher::Config::default().labels(names::CLUSTER);
    let clusters = Controller::new(scope.api::<Seen<EtcdCluster>>(client), watcher::Config::default())
        .with_config(ControllerConfig::default().concurrency(CONCURRENCY))
        .trigger_backoff(WatchPause)
        .watches(scope.api::<Seen<Pod>>(client), ours.clone(), |pod| named(&pod))
        .watches(scope.api::<Seen<PersistentVolumeClaim>>(client), ours.clone(), |claim| named(&claim))
        .watches(scope.api::<Seen<Service>>(client), ours.clone(), |service| named(&service))
        .watches_with(
            scope.replacements(client),
            ApiResource::erase::<EtcdMemberReplacement>(&()),
            watcher::Config::default(),
            |request: DynamicObject| replaced(&request),
        )
        .watches(scope.api::<Seen<ConfigMap>>(client), ours, |config| named(&config));
    clusters
        .run(
            |object, context| measured(object.clone(), context.clone(), reconcile(object, context)),
            |object, error, context| backed_off(&object, error, &context),
            context.clone(),
        )
        .for_each(async |result| match result {
            Ok(_) => {}
            // It was deleted: kube knows it no more, so this is where that is heard of.
            Err(ControllerError::ObjectNotFound(gone)) => {
                let namespace = gone.namespace.unwrap_or_default();
                context.forget(&namespace, &gone.name);
                if let Err(error) = reject_orphans(&context, &namespace, &gone.name).await {
                    tracing::warn!(error = %chain(&error), "cannot tell a replacement that its cluster does not exist");
                }
            }
            Err(error) => tracing::warn!(error = %chain(&error), "reconcile ended with an error"),
        })
        .await;
}

/// As [`controller`], of EtcdMirrors. Agents and EtcdClusters are asked every few seconds anyway; what is watched is what
/// should be answered at once: an edit, and an agent that came or went.
async fn mirrors(scope: Scope, context: Arc<Context>) {
    let client = &context.client;
    let ours = watcher::Config::default().labels(names::MIRROR);
    let mirrors = Controller::new(scope.api::<Seen<EtcdMirror>>(client), watcher::Config::default())
        .with_config(ControllerConfig::default().concurrency(CONCURRENCY))
        .trigger_backoff(WatchPause)
        .watches(scope.api::<Seen<Pod>>(client), ours.clone(), |pod| mirrored(&pod))
        .watches(scope.api::<Seen<Deployment>>(client), ours.clone(), |agent| mirrored(&agent))
        .watches(scope.api::<Seen<ConfigMap>>(client), ours, |config| mirrored(&config));
    let namespace = scope.namespace().map(str::to_owned);
    mirrors
        .run(
            move |object, context| {
                let work = mirror::reconcile::reconcile(object.clone(), context.clone(), namespace.clone());
                measured(object, context, work)
            },
            |object, error, context| backed_off(&object, error, &context),
            context.clone(),
        )
        .for_each(async |result| match result {
            Ok(_) => {}
            Err(ControllerError::ObjectNotFound(gone)) => {
                context.forget_mirror(&gone.namespace.unwrap_or_default(), &gone.name);
            }
            Err(error) => tracing::warn!(error = %chain(&error), "reconcile ended with an error"),
        })
        .await;
}

/// The pause after a watch has failed.
///
/// kube merges all watches into one stream, and an error of one pauses them all. Its own pauses grow to 30 s, and a
/// restart of the apiserver ends every watch two or three times (refused, not authorized yet, its history gone): the
/// operator was seen to be blind for four minutes. Two replicas that ask twice a second load no apiserver.
struct WatchPause;

/// Longest pause.
const WATCH_PAUSE: Duration = Duration::from_millis(500);

impl Iterator for WatchPause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(WATCH_PAUSE.mul_f64(0.5 + 0.5 * rand::random::<f64>()))
    }
}

impl Backoff for WatchPause {
    fn reset(&mut self) {}
}

/// The cluster that a replacement is about. Its spec is read as it comes: one that cannot be parsed hides no other.
fn replaced(request: &DynamicObject) -> Option<ObjectRef<Seen<EtcdCluster>>> {
    let cluster = request.data.pointer("/spec/clusterRef/name")?.as_str()?;
    Some(ObjectRef::new(cluster).within(&request.namespace()?))
}

/// An object as it is watched.
type Seen<K> = PartialObjectMeta<K>;

fn named<K: ResourceExt>(child: &K) -> Option<ObjectRef<Seen<EtcdCluster>>> {
    let cluster = child.labels().get(names::CLUSTER)?;
    Some(ObjectRef::new(cluster).within(&child.namespace()?))
}

fn mirrored<K: ResourceExt>(child: &K) -> Option<ObjectRef<Seen<EtcdMirror>>> {
    let mirror = child.labels().get(names::MIRROR)?;
    Some(ObjectRef::new(mirror).within(&child.namespace()?))
}

/// One reconcile: its back-off kept, its time taken, its panic contained.
async fn measured<K: Resource<DynamicType = ()>>(
    object: Arc<Seen<K>>,
    context: Arc<Context>,
    work: impl Future<Output = Result<Action, ReconcileError>>,
) -> Result<Action, ReconcileError> {
    let begun = Instant::now();
    let uid = object.uid().unwrap_or_default();
    let kind = K::kind(&());
    context.meet(&kind, &object.namespace().unwrap_or_default(), &object.name_any(), &uid);
    if let Some(left) = context.pause_left(&uid, object.metadata.generation) {
        return Ok(Action::requeue(left));
    }
    let result = contained(work).await;
    match &result {
        Ok(_) => context.succeeded(&uid),
        Err(ReconcileError::Panic(what)) => publish_mistake(&context, &*object, what).await,
        Err(_) => {}
    }
    let word = result.as_ref().map_or_else(ReconcileError::word, |_| "success");
    context.metrics.duration.observe(begun.elapsed().as_secs_f64());
    context
        .metrics
        .reconciles
        .get_or_create(&ReconcileLabels { kind: kind.into_owned(), result: word })
        .inc();
    result
}

/// Makes an error of a panic. kube unwraps the result of a reconcile's task, so a panic would end the process, and
/// with it the work on every other cluster, again and again.
async fn contained(
    reconcile: impl Future<Output = Result<Action, ReconcileError>>,
) -> Result<Action, ReconcileError> {
    AssertUnwindSafe(reconcile).catch_unwind().await.unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<&str>().map(|words| (*words).to_owned());
        let words = words.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(ReconcileError::Panic(words.unwrap_or_else(|| "without words".to_owned())))
    })
}

fn backed_off<K: Resource<DynamicType = ()>>(
    object: &Seen<K>,
    error: &ReconcileError,
    context: &Context,
) -> Action {
    let uid = object.uid().unwrap_or_default();
    let pause = pause_after(error, context.failures(&uid), rand::random::<f64>());
    let pause = pause.max(Duration::from_millis(10));
    context.failed(
        &uid,
        object.metadata.generation,
        if error.wakes_itself() { pause } else { Duration::ZERO },
    );
    Action::requeue(pause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_reconcile_is_an_error_of_that_reconcile() {
        let empty: Vec<u8> = Vec::new();
        let panics = async { Ok(Action::requeue(Duration::from_secs(u64::from(empty[1])))) };
        let error = contained(panics).await.unwrap_err();
        assert_eq!(error.word(), "panic");
        assert!(error.to_string().contains("index out of bounds"), "{error}");
        assert!(contained(async { Ok(Action::await_change()) }).await.is_ok());
    }
}
