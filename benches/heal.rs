//! `cargo bench --bench heal [-- runs]`: from harm to a member until all voters are healthy again, against what
//! Kubernetes and etcd need for the same anyway, in turn on the same two clusters: an empty one and one of 100 MiB.
//!
//! Measures on the cluster that KUBECONFIG names, with Quorate installed in it, or starts one of its own. Its nodes must
//! be this machine, since volumes are harmed and processes killed by hand. Writes the table to docs/benchmarks.md.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench that cannot go on panics, and tells what it does"
)]

mod shared;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use etcd_client::{Client as Etcd, Txn, TxnOp};
use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use quorate::api::cluster::{EtcdClusterStatus, MemberStatus};
use quorate::api::{EtcdCluster, EtcdMemberReplacement};
use quorate::etcd::connect::{Address, ClientIdentity, connect};
use serde_json::{Value, json};
use shared::{Bench, Spread, until};

/// Runs of each act, where no argument says how many.
const RUNS: usize = 3;
/// Sizes of the clusters, in MiB.
const SIZES: [usize; 2] = [0, 100];
/// Values of one KiB that are written in one transaction. So 100 MiB are more transactions than etcd keeps for those
/// who lag behind: who joins gets a snapshot.
const VALUES: usize = 8;
/// Transactions at a time.
const WRITERS: usize = 32;
/// Pause between the writes of one client that uses the cluster all the time.
const IN_USE: Duration = Duration::from_millis(100);
/// So long all has to be well before the next act. etcd adds nobody while another has been connected for less than five
/// seconds, and a kubelet that is busy with another change of a Pod comes to its deletion a second later.
const SETTLED: Duration = Duration::from_secs(6);
/// Transactions that the older copy lacks, and that the halved log loses half of.
const AFTER: usize = 25;

/// What is done to a member, in the order of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Restarted,
    RolledBack,
    Halved,
    Wiped,
    Damaged,
    Joined,
    Gone,
}

impl Act {
    const ALL: [Self; 7] = [
        Self::Restarted,
        Self::RolledBack,
        Self::Halved,
        Self::Wiped,
        Self::Damaged,
        Self::Joined,
        Self::Gone,
    ];

    fn words(self) -> &'static str {
        match self {
            Self::Restarted => "floor A: its Pod deleted, until Ready",
            Self::RolledBack => "an older copy in the place of the data",
            Self::Halved => "the log cut in half",
            Self::Wiped => "the volume wiped",
            Self::Damaged => "random bytes over the database's first 64 KiB",
            Self::Joined => "floor B: a new member, from MemberAdd to its vote",
            Self::Gone => "Pod and volume deleted",
        }
    }

    /// What it is measured against, and how many times that long it may take.
    fn budget(self) -> Option<(Self, f64)> {
        match self {
            Self::Restarted | Self::Joined => None,
            Self::RolledBack | Self::Halved | Self::Wiped | Self::Damaged => Some((Self::Restarted, 2.0)),
            Self::Gone => Some((Self::Joined, 1.5)),
        }
    }
}

/// How long an act took on the cluster of that size.
struct Sample {
    size: usize,
    act: Act,
    seconds: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let runs = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(RUNS);
    let load = shared::load();
    let (bench, own) = Bench::start().await;
    let samples = measure(&bench, runs).await;
    drop(own);
    let table = table(&samples, runs, &load);
    println!("{table}");
    shared::write_section("heal", &table);
}

async fn measure(bench: &Bench, runs: usize) -> Vec<Sample> {
    let mut patients = Vec::new();
    for size in SIZES {
        patients.push(Patient::create(bench, size).await);
    }
    let mut samples = Vec::new();
    let acts = async {
        for _ in 0..runs {
            for patient in &patients {
                patient.run(&mut samples).await;
            }
        }
    };
    let uses = futures::future::select_all(patients.iter().map(|patient| Box::pin(patient.used())));
    tokio::select! {
        () = acts => {}
        _ = uses => unreachable!("a client goes on for ever"),
    }
    for patient in &patients {
        bench.kubectl(&["delete", "namespace", &patient.namespace]);
    }
    samples
}

/// A cluster of three whose members are harmed: always a follower, so that no election is measured.
struct Patient<'a> {
    bench: &'a Bench,
    namespace: String,
    size: usize,
}

impl<'a> Patient<'a> {
    async fn create(bench: &'a Bench, size: usize) -> Self {
        let patient = Self { bench, namespace: format!("heal-{size}"), size };
        let namespaces: Api<Namespace> = Api::all(bench.client.clone());
        let object = json!({"metadata": {"name": patient.namespace}});
        namespaces.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
        patient.ask("EtcdCluster", "main", json!({})).await;
        patient.well().await;
        patient.write("fill", size * 1024 / VALUES).await;
        println!("A cluster of {size} MiB is up");
        patient
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.bench.client.clone(), &self.namespace)
    }

    async fn ask(&self, kind: &str, name: &str, spec: Value) {
        let object = json!({"apiVersion": "quorate.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
        let how = PostParams::default();
        if kind == "EtcdCluster" {
            let object = serde_json::from_value(object).unwrap();
            self.api::<EtcdCluster>().create(&how, &object).await.unwrap();
        } else {
            let object = serde_json::from_value(object).unwrap();
            self.api::<EtcdMemberReplacement>().create(&how, &object).await.unwrap();
        }
    }

    /// Each act once. Before older data and before half a log stands a restart: the guard has then seen how far the
    /// log had come, as it has of any volume that is not seconds old.
    async fn run(&self, samples: &mut Vec<Sample>) {
        let member = self.member("follower").await.name;
        let older = self.copy(&member).await;
        for act in [
            Act::Restarted,
            Act::RolledBack,
            Act::Restarted,
            Act::Halved,
            Act::Wiped,
            Act::Damaged,
            Act::Gone,
            Act::Joined,
        ] {
            let seconds = match act {
                Act::Restarted => {
                    self.write("after", AFTER).await;
                    self.restarted(&member).await
                }
                Act::RolledBack | Act::Halved | Act::Wiped | Act::Damaged => {
                    self.healed(&member, |volume| harm(act, volume, &older)).await
                }
                Act::Gone => self.replaced(&member).await,
                Act::Joined => self.joined().await,
            };
            println!("{} MiB, {}: {seconds:.2} s", self.size, act.words());
            samples.push(Sample { size: self.size, act, seconds });
            self.well().await;
        }
    }

    async fn restarted(&self, member: &str) -> f64 {
        let pods = self.api::<Pod>();
        let old = pods.get(member).await.unwrap().uid();
        let begun = Instant::now();
        pods.delete(member, &DeleteParams::default()).await.unwrap();
        until("its Pod is ready", async || {
            let pod = pods.get_opt(member).await.unwrap();
            pod.is_some_and(|pod| pod.uid() != old && is_ready(&pod))
        })
        .await;
        begun.elapsed().as_secs_f64()
    }

    /// Harms the volume and kills etcd with its guard, as a loss of power does.
    async fn healed(&self, member: &str, harm: impl FnOnce(&Path)) -> f64 {
        let (volume, pod) = (self.volume(member).await, self.api::<Pod>().get(member).await.unwrap());
        let processes = processes(&pod.uid().unwrap());
        let old = self.status().await;
        let begun = Instant::now();
        harm(&volume);
        // One that the harm has ended already is none to kill, and `kill` says so; the others get the signal.
        let ended = Command::new("kill").arg("-9").args(&processes).output();
        assert!(ended.is_ok(), "{ended:?}");
        self.without(member, &old).await;
        begun.elapsed().as_secs_f64()
    }

    async fn replaced(&self, member: &str) -> f64 {
        let old = self.status().await;
        let begun = Instant::now();
        let how = DeleteParams::default();
        drop(self.api::<PersistentVolumeClaim>().delete(member, &how).await.unwrap());
        drop(self.api::<Pod>().delete(member, &how).await.unwrap());
        self.without(member, &old).await;
        begun.elapsed().as_secs_f64()
    }

    /// Seen in etcd's own list.
    async fn joined(&self) -> f64 {
        let member = self.member("follower").await.name;
        let mut etcd = self.etcd().await;
        let listed = etcd.member_list().await.unwrap();
        let old: Vec<u64> = listed.members().iter().map(etcd_client::Member::id).collect();
        let name = format!("join-{member}");
        let spec = json!({"clusterRef": {"name": "main"}, "member": member, "strategy": "AddFirst"});
        self.ask("EtcdMemberReplacement", &name, spec).await;
        let mut added = None;
        until("a new member votes", async || {
            let listed = etcd.member_list().await.unwrap();
            let Some(new) = listed.members().iter().find(|member| !old.contains(&member.id())) else {
                return false;
            };
            added.get_or_insert_with(Instant::now);
            !new.is_learner()
        })
        .await;
        added.unwrap().elapsed().as_secs_f64()
    }

    /// Until three healthy voters are there, without the one that was harmed: a healed member has another ID.
    async fn without(&self, member: &str, old: &EtcdClusterStatus) {
        let id = |status: &MemberStatus| status.member_id.clone();
        let harmed = old.members.iter().find(|status| status.name == member).and_then(id);
        until("the member is healed", async || {
            let status = self.status().await;
            is_well(&status) && status.members.iter().all(|member| member.member_id != harmed)
        })
        .await;
    }

    /// Three healthy voters, and nothing more to do, for a while.
    async fn well(&self) {
        let mut since = Instant::now();
        until("all is well", async || {
            let requests =
                self.api::<EtcdMemberReplacement>().list(&ListParams::default()).await.unwrap().items;
            let over = |request: &EtcdMemberReplacement| {
                let phase = request.status.as_ref().and_then(|status| status.phase);
                phase.unwrap_or_default().is_over()
            };
            if !requests.iter().all(over) || !is_well(&self.status().await) {
                since = Instant::now();
            }
            since.elapsed() >= SETTLED
        })
        .await;
    }

    async fn status(&self) -> EtcdClusterStatus {
        self.api::<EtcdCluster>().get("main").await.unwrap().status.unwrap_or_default()
    }

    async fn member(&self, role: &str) -> MemberStatus {
        let mut found = None;
        until("somebody has that role", async || {
            found = self.status().await.members.into_iter().find(|member| member.role == role);
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// The folder on this machine that holds a member's volume.
    async fn volume(&self, member: &str) -> PathBuf {
        let claim: PersistentVolumeClaim = self.api().get(member).await.unwrap();
        let name = claim.spec.and_then(|spec| spec.volume_name).unwrap();
        let volume: PersistentVolume = Api::all(self.bench.client.clone()).get(&name).await.unwrap();
        let spec = volume.spec.unwrap();
        let path = spec.host_path.map(|source| source.path).or(spec.local.map(|source| source.path));
        PathBuf::from(path.unwrap())
    }

    /// A copy of a member's data, beside its volume: it takes their place by a rename.
    async fn copy(&self, member: &str) -> PathBuf {
        let volume = self.volume(member).await;
        let older = volume.with_extension("older");
        let status = Command::new("cp").arg("-a").arg(volume.join("data/member")).arg(&older).status();
        assert!(status.unwrap().success());
        older
    }

    /// A client of the leader.
    async fn etcd(&self) -> Etcd {
        let member = self.member("leader").await.name;
        let secret: Secret = self.api().get("main-client").await.unwrap();
        let data = secret.data.unwrap();
        let field = |name: &str| data.get(name).unwrap().0.clone();
        let identity = ClientIdentity {
            authority: field("ca.crt"),
            certificate: field("tls.crt"),
            key: field("tls.key"),
        };
        let pod = self.api::<Pod>().get(&member).await.unwrap();
        let ip = pod.status.and_then(|status| status.pod_ip).unwrap();
        let name = format!("{member}.main-peers.{}.svc", self.namespace);
        connect(&Address { dial: format!("{ip}:2379"), name }, Some(&identity)).await.unwrap()
    }

    /// Goes on for ever.
    async fn used(&self) {
        let mut tick = tokio::time::interval(IN_USE);
        loop {
            let mut etcd = self.etcd().await;
            while etcd.put("in use", "yes", None).await.is_ok() {
                tick.tick().await;
            }
        }
    }

    async fn write(&self, prefix: &str, transactions: usize) {
        let etcd = self.etcd().await;
        let write = |number: usize| {
            let mut etcd = etcd.clone();
            let put = |value| TxnOp::put(format!("{prefix}-{number}-{value}"), [b'q'; 1024], None);
            let puts: Vec<TxnOp> = (0..VALUES).map(put).collect();
            async move { etcd.txn(Txn::new().and_then(puts)).await.unwrap().succeeded() }
        };
        let written = futures::stream::iter((0..transactions).map(write)).buffer_unordered(WRITERS).count();
        assert_eq!(written.await, transactions);
    }
}

fn is_well(status: &EtcdClusterStatus) -> bool {
    let whole = status.ready.as_deref() == Some("3/3") && status.members.len() == 3;
    whole && status.summary.as_deref() == Some("Healthy")
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn harm(act: Act, volume: &Path, older: &Path) {
    let data = volume.join("data/member");
    match act {
        Act::RolledBack => {
            fs::remove_dir_all(&data).unwrap();
            fs::rename(older, &data).unwrap();
        }
        Act::Halved => {
            let segments = fs::read_dir(data.join("wal")).unwrap().flatten().map(|entry| entry.path());
            let last =
                segments.filter(|path| path.extension().is_some_and(|end| end == "wal")).max().unwrap();
            // etcd makes its segments larger than what is in them.
            let bytes = fs::read(&last).unwrap();
            let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
            fs::File::options().write(true).open(&last).unwrap().set_len(written as u64 / 2).unwrap();
        }
        Act::Wiped => {
            for path in fs::read_dir(volume).unwrap().flatten().map(|entry| entry.path()) {
                if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
            }
        }
        Act::Damaged => {
            let mut bytes = vec![0; 65536];
            rand::fill(bytes.as_mut_slice());
            let file = fs::File::options().write(true).open(data.join("snap/db")).unwrap();
            file.write_all_at(&bytes, 0).unwrap();
        }
        Act::Restarted | Act::Joined | Act::Gone => unreachable!("{act:?} harms no volume"),
    }
}

/// The numbers of etcd's and the guard's processes in a Pod: found by their cgroup, so none of another Pod is hit.
fn processes(pod_uid: &str) -> Vec<String> {
    let is_wanted = |path: &PathBuf| {
        let cgroup = fs::read_to_string(path.join("cgroup")).unwrap_or_default();
        let command = fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        cgroup.contains(pod_uid) && command.contains("etcd")
    };
    let found = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).filter(is_wanted);
    found.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

fn table(samples: &[Sample], runs: usize, load: &str) -> String {
    let mut text = String::from(
        "| cluster | what is done to a member | median, s | least to most, s | ratio to floor | budget |\n|---|---|---|---|---|---|\n",
    );
    let mut missed = Vec::new();
    for size in SIZES {
        let of = |act| {
            let same = samples.iter().filter(|sample| sample.size == size && sample.act == act);
            Spread::of(same.map(|sample| sample.seconds))
        };
        for act in Act::ALL {
            let Spread { median, least, most } = of(act);
            write!(text, "| {size} MiB | {} | {median:.2} | {least:.2}–{most:.2} |", act.words()).unwrap();
            if let Some((floor, budget)) = act.budget() {
                let ratio = median / of(floor).median;
                writeln!(text, " {ratio:.2} | {budget} |").unwrap();
                if ratio > budget {
                    missed.push(format!("{} at {size} MiB", act.words()));
                }
            } else {
                text.push_str(" | |\n");
            }
        }
    }
    let missed = if missed.is_empty() { "none".to_owned() } else { missed.join(", ") };
    write!(text, "\nBudgets missed: {missed}. {runs} runs. {}", shared::measured(load)).unwrap();
    text
}
