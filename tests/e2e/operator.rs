//! The operator at work, seen from outside: its process, its metrics, its writes.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, ResourceExt};

use crate::support::{cluster_tool, eventually, kill_in_pod, kubectl, processes};

const NAMESPACE: &str = "quorate-system";
const ACCOUNT: &str = "system:serviceaccount:quorate-system:quorate-operator";
/// The unit of times in /proc, the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// The replica that holds the lease.
pub(crate) struct Operator {
    client: Client,
    pod: String,
    process: PathBuf,
}

/// A write to the apiserver.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) time: String,
    pub(crate) verb: String,
    pub(crate) resource: String,
    /// Namespace and name.
    pub(crate) object: String,
    pub(crate) code: String,
}

impl Operator {
    /// Waits until there is one.
    pub(crate) async fn find(client: &Client) -> Self {
        let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
        let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
        let found = async || {
            let pod = leases.get("quorate-operator").await.ok()?.spec?.holder_identity?;
            let uid = pods.get_opt(&pod).await.ok()??.uid()?;
            let process = processes(&uid, "quorate operator").pop()?;
            Some(Self { client: client.clone(), pod, process })
        };
        eventually("an operator holds the lease", found).await
    }

    /// Its Pod is deleted; another one takes over.
    pub(crate) async fn replace(self) -> Self {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        pods.delete(&self.pod, &DeleteParams::default()).await.unwrap();
        let next = async || {
            let found = Self::find(&self.client).await;
            (found.pod != self.pod).then_some(found)
        };
        eventually("another operator holds the lease", next).await
    }

    /// What it keeps in memory, in MiB.
    pub(crate) fn memory_mib(&self) -> f64 {
        let status = fs::read_to_string(self.process.join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }

    /// The time that it has had a processor, in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(self.process.join("stat")).unwrap();
        // Behind the name, which may have blanks: the 14th and 15th field of all, in user mode and in the kernel.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks = fields.split(' ').skip(11).take(2).map(|field| field.parse::<f64>().unwrap());
        ticks.sum::<f64>() / TICKS_PER_SECOND
    }

    /// Its metrics, by name and labels as they are written.
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}:8080/proxy/metrics", self.pod);
        let text = kubectl(&["get", "--raw", &path]);
        let series = text.lines().filter(|line| !line.starts_with('#'));
        series
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
            .collect()
    }
}

/// What the operator has written since then, but for its lease.
pub(crate) fn writes(since: Timestamp) -> Vec<Write> {
    let said = cluster_tool(&["audit", "--user", ACCOUNT, "--since", &since.to_string()]);
    let all = said.lines().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let word = |number: usize| (*words.get(number).unwrap()).to_owned();
        Write { time: word(0), verb: word(1), resource: word(2), object: word(3), code: word(4) }
    });
    all.filter(|write| write.resource != "leases").collect()
}

/// How many spare the operators that are killed again and again.
static SPARING: AtomicUsize = AtomicUsize::new(0);

/// Kills every operator again and again, unless somebody spares them; returns how many.
pub(crate) async fn kill_operators(life: Duration, stop: &AtomicBool) -> usize {
    let mut tick = tokio::time::interval(life);
    let mut killed = 0;
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        if SPARING.load(Ordering::Relaxed) == 0 {
            killed += kill_operators_once().await;
        }
    }
    killed
}

/// Lets operators live for as long as this is held.
pub(crate) struct Spared;

impl Spared {
    pub(crate) fn from_now_on() -> Self {
        SPARING.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Spared {
    fn drop(&mut self) {
        SPARING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Kills -9 every operator that runs; returns how many.
pub(crate) async fn kill_operators_once() -> usize {
    let client = Client::try_default().await.unwrap();
    let api: Api<Pod> = Api::namespaced(client, NAMESPACE);
    let selector = ListParams::default().labels("app.kubernetes.io/component=operator");
    let Ok(pods) = api.list(&selector).await else { return 0 };
    let uids = pods.items.iter().filter_map(ResourceExt::uid);
    uids.map(|uid| kill_in_pod(&uid, "quorate operator")).sum()
}
