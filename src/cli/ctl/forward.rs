//! A port of this machine that leads to one member's client port, through the Kubernetes API.

use std::net::Ipv4Addr;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Portforwarder};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::cli::connect::Host;
use crate::cli::problem::{Problem, Request};
use crate::cli::terminal;

/// etcd's client port.
const CLIENT_PORT: u16 = 2379;
/// Connections at once. etcdctl opens one or two; more wait their turn.
const CONNECTIONS: usize = 32;

/// Forwards until it is dropped.
pub(super) struct Forward {
    /// On 127.0.0.1.
    pub(super) port: u16,
    task: JoinHandle<()>,
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Forward {
    /// Opens the first way to the member before anything connects, so that a refusal is told by its name and not as
    /// etcdctl's "deadline exceeded".
    pub(super) async fn open(host: &Host, pod: &str) -> anyhow::Result<Self> {
        let first = dial(host, pod).await?;
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("could not listen on 127.0.0.1")?;
        let port = listener.local_addr().context("could not read the port that was opened")?.port();
        let task = tokio::spawn(serve(listener, first, host.clone(), pod.to_owned()));
        Ok(Self { port, task })
    }
}

async fn dial(host: &Host, pod: &str) -> Result<Portforwarder, Problem> {
    let pods: Api<Pod> = Api::namespaced(host.client.clone(), &host.namespace);
    let request = Request {
        verb: "create",
        resource: "pods/portforward",
        name: Some(pod),
        namespace: Some(&host.namespace),
    };
    host.call(request, pods.portforward(pod, &[CLIENT_PORT])).await
}

/// Every connection gets a way of its own, the first the one that is already open.
async fn serve(listener: TcpListener, first: Portforwarder, host: Host, pod: String) {
    let mut ready = Some(first);
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        let Ok((socket, _)) = listener.accept().await else {
            terminal::complain("The local port was closed.");
            return;
        };
        let (ready, host, pod) = (ready.take(), host.clone(), pod.clone());
        connections.spawn(async move {
            let opened = match ready {
                Some(ready) => Ok(ready),
                None => dial(&host, &pod).await,
            };
            let failure = match opened {
                Ok(way) => relay(socket, way).await,
                Err(problem) => Some(problem.to_string()),
            };
            if let Some(failure) = failure {
                terminal::complain(&format!("The connection to {pod} failed: {failure}."));
            }
        });
    }
}

/// Copies both ways until one side ends; answers what the kubelet complained about.
async fn relay(mut socket: TcpStream, mut way: Portforwarder) -> Option<String> {
    let mut stream = way.take_stream(CLIENT_PORT)?;
    let complaint = way.take_error(CLIENT_PORT)?;
    let failure = tokio::select! {
        // Either side may just hang up; what that means is for etcdctl to say.
        _ = tokio::io::copy_bidirectional(&mut socket, &mut stream) => None,
        Some(complaint) = complaint => Some(complaint.trim().to_owned()),
    };
    way.abort();
    failure
}
