//! One replica acts: it holds a Lease, and its [`Authority`] ends before the Lease does.
//!
//! The rules are client-go's leaderelection: a holder's time is judged by how long *we* have seen its Lease
//! unchanged on our own clock, never by comparing clocks; every write carries the resourceVersion that was read.
//! The identity is the Pod's name, so a restarted container goes on at once with its own lease.
//!
//! A lease is no mutual exclusion (a paused process may wake with an order in hand): what could do harm carries
//! UIDs and resourceVersions besides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::time::timeout;

use super::context::{Authority, REQUEST_DEADLINE};
use super::names;

/// How long others wait after the last renewal that they saw.
const LEASE: Duration = Duration::from_secs(15);
/// How long the holder acts after its last renewal: its writes end before anybody else's begin.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between two tries.
const RETRY: Duration = Duration::from_secs(2);
/// Name of the Lease.
const NAME: &str = "quorate-operator";

/// A candidate for the lease.
pub struct Candidate {
    leases: Api<Lease>,
    identity: String,
    authority: Arc<Authority>,
    /// The Lease as last seen, and when we first saw it so.
    seen: Option<(String, Instant)>,
}

#[derive(Debug, thiserror::Error)]
enum LeadError {
    #[error("the apiserver did not answer within {}s", REQUEST_DEADLINE.as_secs())]
    Deadline,
    #[error("the apiserver refused")]
    Refused(#[from] kube::Error),
}

impl Candidate {
    /// A candidate that does not hold the lease yet.
    pub fn new(client: Client, namespace: &str, identity: String, authority: Arc<Authority>) -> Self {
        Self { leases: Api::namespaced(client, namespace), identity, authority, seen: None }
    }

    /// Returns once the lease is held.
    pub async fn acquire(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(error = %crate::etcd::survey::chain(&error), "cannot read or take the lease");
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Renews until the lease is lost; then nothing is written any more.
    pub async fn hold(&mut self) {
        loop {
            tokio::time::sleep(RETRY).await;
            let held = match self.attempt().await {
                Ok(true) => true,
                // Somebody wrote the Lease since it was read, perhaps only a label: a second look tells who holds it.
                Ok(false) => matches!(self.attempt().await, Ok(true)),
                Err(error) => {
                    tracing::warn!(error = %crate::etcd::survey::chain(&error), "cannot renew the lease");
                    self.authority.check().is_ok()
                }
            };
            if !held {
                self.authority.revoke();
                return;
            }
        }
    }

    /// Gives the lease up, so that another replica need not wait. Call only when nothing is written any more.
    pub async fn release(&self) {
        self.authority.revoke();
        let give_up = async {
            let mut lease = self.leases.get(NAME).await?;
            let ours =
                lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()) == Some(&self.identity);
            if let Some(spec) = lease.spec.as_mut().filter(|_| ours) {
                spec.holder_identity = None;
                spec.lease_duration_seconds = Some(1);
                self.leases.replace(NAME, &parameters(), &lease).await?;
            }
            Ok::<(), kube::Error>(())
        };
        match timeout(REQUEST_DEADLINE, give_up).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %crate::etcd::survey::chain(&error), "cannot give up the lease");
            }
            Err(_) => tracing::warn!("cannot give up the lease in time"),
        }
    }

    /// Takes or renews the lease if it is free or ours. Authority counts from before the request was sent.
    async fn attempt(&mut self) -> Result<bool, LeadError> {
        let begun = Instant::now();
        let held = timeout(REQUEST_DEADLINE, self.take()).await.map_err(|_| LeadError::Deadline)??;
        if held {
            self.authority.extend(begun + RENEW_DEADLINE);
        }
        Ok(held)
    }

    async fn take(&mut self) -> Result<bool, kube::Error> {
        let Some(lease) = self.leases.get_opt(NAME).await? else {
            return written(self.leases.create(&parameters(), &self.renewed(None)).await);
        };
        if !self.is_free(&lease) {
            return Ok(false);
        }
        written(self.leases.replace(NAME, &parameters(), &self.renewed(Some(lease))).await)
    }

    fn is_free(&mut self, lease: &Lease) -> bool {
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let life = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(LEASE, Duration::from_secs);
        match &self.seen {
            Some((seen, since)) if *seen == version => since.elapsed() > life,
            Some(_) | None => {
                self.seen = Some((version, Instant::now()));
                false
            }
        }
    }

    fn renewed(&self, lease: Option<Lease>) -> Lease {
        let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
        let mut lease = lease.unwrap_or(Lease { metadata, spec: None });
        let before = lease.spec.take().unwrap_or_default();
        let now = MicroTime(jiff::Timestamp::now());
        let ours = before.holder_identity.as_deref() == Some(&self.identity);
        let acquired = before.acquire_time.filter(|_| ours).unwrap_or_else(|| now.clone());
        let transitions = before.lease_transitions.unwrap_or_default() + i32::from(!ours);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
            acquire_time: Some(acquired),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        });
        lease
    }
}

fn parameters() -> PostParams {
    PostParams { field_manager: Some(names::MANAGER.to_owned()), ..PostParams::default() }
}

/// Lost races are answers, not errors.
fn written(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
