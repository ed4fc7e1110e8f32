//! What the stories share: a namespace, an installed operator, waiting with deadlines, etcd seen from outside,
//! and hands that reach into nodes.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, OnceLock};
use std::time::{Duration, Instant};

use etcd_client::Client as Etcd;
use futures::FutureExt;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use kube::api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use quorate::api::EtcdCluster;
use quorate::api::cluster::EtcdClusterStatus;
use quorate::etcd::connect::{Address, ClientIdentity, connect};
use quorate_history::check::{Verdict, check};
use quorate_history::record;
use serde_json::{Value, json};
use tokio::sync::RwLock;

/// Longest wait for anything: far above what a loaded machine of two cores needs; long stories load it more, and `cargo
/// faults` and `cargo chaos` say what they need.
fn deadline() -> Duration {
    let said = std::env::var("QUORATE_PATIENCE").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(said.unwrap_or(if full() { 900 } else { 240 }))
}

/// Whether this is a part of `cargo verify --full`: the same stories, with larger numbers.
pub(crate) fn full() -> bool {
    std::env::var("QUORATE_FULL").is_ok_and(|full| full == "1")
}

/// Tells a number that is worth reading although the story passes: `cargo verify` collects these lines.
pub(crate) fn measured(words: &str) {
    println!("measured: {words}");
}

/// A namespace of its own on the cluster of KUBECONFIG.
pub(crate) struct Story {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

/// Held by every story; alone by one that disturbs the whole Kubernetes.
static KUBERNETES: RwLock<()> = RwLock::const_new(());

/// Runs a story in a fresh namespace with Pod Security `restricted`; on failure tells what was there.
pub(crate) async fn story(name: &str, tell: impl AsyncFnOnce(&Story)) {
    let _shared = KUBERNETES.read().await;
    in_namespace(name, tell).await;
}

/// Runs a story while no other runs.
pub(crate) async fn story_alone(name: &str, tell: impl AsyncFnOnce(&Story)) {
    let _alone = KUBERNETES.write().await;
    in_namespace(name, tell).await;
}

async fn in_namespace(name: &str, tell: impl AsyncFnOnce(&Story)) {
    failures_are_told_at_once();
    install();
    let client = Client::try_default().await.expect("KUBECONFIG names a cluster; `cargo verify` starts one");
    let namespace = format!("e2e-{name}-{:04x}", rand::random::<u16>());
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    let object = json!({"metadata": {"name": namespace, "labels": labels}});
    namespaces.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    let story = Story { client, namespace: namespace.clone() };
    let outcome = AssertUnwindSafe(tell(&story)).catch_unwind().await;
    if outcome.is_err() {
        story.describe();
        story.release_claims().await;
    }
    namespaces.delete(&namespace, &DeleteParams::default()).await.unwrap();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// The harness keeps what a story says until all have ended. What one failed by is told when it fails, too.
fn failures_are_told_at_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            let said = format!("{}: {panic}\n", thread.name().unwrap_or("a task"));
            at_once(&said);
            usual(panic);
        }));
    });
}

/// Not by `eprint!`, which is what the harness keeps.
fn at_once(said: &str) {
    drop(std::io::stderr().write_all(said.as_bytes()));
}

/// Applies `deploy/install.yaml` once for all stories and waits for both replicas.
fn install() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/install.yaml");
        kubectl(&["apply", "--server-side", "--force-conflicts", "-f", file]);
        kubectl(&["wait", "--for=condition=Established", "crd/etcdclusters.quorate.dev", "--timeout=60s"]);
        kubectl(&[
            "-n",
            "quorate-system",
            "rollout",
            "status",
            "deployment/quorate-operator",
            "--timeout=150s",
        ]);
    });
}

/// Runs kubectl; a failure fails the story with its words.
pub(crate) fn kubectl(arguments: &[&str]) -> String {
    let output = Command::new("kubectl").args(arguments).output().expect("kubectl is on the PATH");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "kubectl {arguments:?}: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// Runs the program that people have: its exit code, and what it says on standard output and standard error.
pub(crate) fn quorate(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_quorate")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Runs the test cluster's tool (`cargo cluster …`) on the cluster under test; returns what it says.
pub(crate) fn cluster_tool(arguments: &[&str]) -> String {
    let tool = std::env::var("QUORATE_CLUSTER_TOOL").expect("QUORATE_CLUSTER_TOOL is set by `cargo verify`");
    let name = std::env::var("QUORATE_CLUSTER").expect("QUORATE_CLUSTER is set by `cargo verify`");
    let output = Command::new(tool).args(arguments).args(["--name", &name]).output().expect("the tool runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cluster tool {arguments:?} failed: {said}{wrong}");
    said
}

/// Asks until there is an answer; the deadline fails the story with `what`.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tick.tick().await;
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begun.elapsed() < deadline(), "waited {}s in vain until {what}", deadline().as_secs());
    }
}

impl Story {
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates an EtcdCluster `main`.
    pub(crate) async fn create(&self, spec: Value) -> EtcdCluster {
        self.create_annotated(spec, json!({})).await
    }

    pub(crate) async fn create_annotated(&self, spec: Value, annotations: Value) -> EtcdCluster {
        self.create_as(json!({"name": "main", "annotations": annotations}), spec).await
    }

    pub(crate) async fn create_named(&self, name: &str, spec: Value) -> EtcdCluster {
        self.create_as(json!({"name": name}), spec).await
    }

    async fn create_as(&self, metadata: Value, spec: Value) -> EtcdCluster {
        let (group, kind) = ("quorate.dev/v1alpha1", "EtcdCluster");
        let object = json!({"apiVersion": group, "kind": kind, "metadata": metadata, "spec": spec});
        self.api().create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
    }

    /// Changes the spec.
    pub(crate) async fn patch(&self, spec: Value) {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.api::<EtcdCluster>().patch("main", &PatchParams::default(), &patch).await.unwrap();
    }

    pub(crate) async fn cluster(&self) -> EtcdCluster {
        self.api().get("main").await.unwrap()
    }

    pub(crate) async fn status(&self) -> EtcdClusterStatus {
        self.cluster().await.status.unwrap_or_default()
    }

    /// Waits until the newest spec is observed and everything is well.
    pub(crate) async fn healthy(&self) -> EtcdClusterStatus {
        let is_healthy = async || {
            let cluster = self.cluster().await;
            let status = cluster.status.unwrap_or_default();
            let observed = status.observed_generation == cluster.metadata.generation;
            (observed && status.summary.as_deref() == Some("Healthy")).then_some(status)
        };
        eventually("main is Healthy", is_healthy).await
    }

    /// Waits until a condition has that reason; returns its message.
    pub(crate) async fn condition(&self, type_: &str, reason: &str) -> String {
        let found = async || {
            let status = self.status().await;
            let condition = status.conditions.into_iter().find(|condition| condition.type_ == type_)?;
            (condition.reason == reason).then_some(condition.message)
        };
        eventually(&format!("{type_} has the reason {reason}"), found).await
    }

    /// Waits until a member's health has that word; returns its message.
    pub(crate) async fn member_health(&self, member: &str, word: &str) -> String {
        let found = async || {
            let status = self.status().await;
            let member = status.members.into_iter().find(|status| status.name == member)?;
            (member.health == word).then(|| member.message.unwrap_or_default())
        };
        eventually(&format!("{member} is {word}"), found).await
    }

    pub(crate) async fn pod(&self, name: &str) -> Option<Pod> {
        self.api::<Pod>().get_opt(name).await.unwrap()
    }

    /// Deletes a Pod and waits until that very Pod is gone.
    pub(crate) async fn delete_pod(&self, name: &str) {
        let pod = self.pod(name).await.unwrap();
        self.api::<Pod>().delete(name, &DeleteParams::default()).await.unwrap();
        let gone = async || (self.pod(name).await.and_then(|now| now.uid()) != pod.uid()).then_some(());
        eventually(&format!("the old Pod {name} is gone"), gone).await;
    }

    /// Waits until a member's Pod is Ready. After a [`Story::delete_pod`] the status may still be the one from before it.
    pub(crate) async fn pod_ready(&self, name: &str) {
        let is_ready = async || {
            let conditions = self.pod(name).await?.status?.conditions?;
            conditions
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True")
                .then_some(())
        };
        eventually(&format!("the Pod {name} is Ready"), is_ready).await;
    }

    /// The folder on the host that holds a member's volume.
    pub(crate) async fn volume(&self, member: &str) -> PathBuf {
        let claim: PersistentVolumeClaim = self.api().get(member).await.unwrap();
        let volume = claim.spec.and_then(|spec| spec.volume_name).expect("the volume is bound");
        let volume: PersistentVolume = Api::all(self.client.clone()).get(&volume).await.unwrap();
        let spec = volume.spec.unwrap();
        let path = spec.host_path.map(|source| source.path).or(spec.local.map(|source| source.path));
        PathBuf::from(path.expect("the volume is a folder of this machine"))
    }

    /// Names and addresses of the members' Pods that have one.
    pub(crate) async fn addresses(&self) -> BTreeMap<String, Address> {
        self.addresses_of("main").await
    }

    pub(crate) async fn addresses_of(&self, cluster: &str) -> BTreeMap<String, Address> {
        let selector = ListParams::default().labels(&format!("quorate.dev/cluster={cluster}"));
        let pods: Vec<Pod> = self.api::<Pod>().list(&selector).await.unwrap().items;
        let address = |pod: &Pod| {
            let ip = pod.status.as_ref()?.pod_ip.clone()?;
            let name = format!("{}.{cluster}-peers.{}.svc", pod.name_any(), self.namespace);
            Some((pod.name_any(), Address { dial: format!("{ip}:2379"), name }))
        };
        pods.iter().filter_map(address).collect()
    }

    /// The certificate that applications get.
    pub(crate) async fn identity(&self) -> ClientIdentity {
        self.identity_of("main").await
    }

    pub(crate) async fn identity_of(&self, cluster: &str) -> ClientIdentity {
        let secret: Secret = self.api().get(&format!("{cluster}-client")).await.unwrap();
        let data = secret.data.unwrap();
        let field = |name: &str| data.get(name).expect("the client Secret is whole").0.clone();
        ClientIdentity { authority: field("ca.crt"), certificate: field("tls.crt"), key: field("tls.key") }
    }

    /// Lets clients write, read and watch while something happens, and judges all that they saw by etcd's promises. To
    /// be called on a cluster that serves, of certificates of its own.
    pub(crate) async fn under_load<T>(&self, happens: impl Future<Output = T>) -> (T, Verdict) {
        self.under_load_of(record::Settings::default(), happens).await
    }

    pub(crate) async fn under_load_of<T>(
        &self,
        settings: record::Settings,
        happens: impl Future<Output = T>,
    ) -> (T, Verdict) {
        let identity = Some(self.identity().await);
        let stop = AtomicBool::new(false);
        let addresses = async || self.addresses().await;
        let load = record::run(addresses, identity.clone(), settings, &stop);
        let happens = async {
            let outcome = happens.await;
            stop.store(true, Ordering::Relaxed);
            outcome
        };
        let (history, outcome) = tokio::join!(load, happens);
        let history = record::finish(history, addresses, identity, Duration::from_mins(1)).await;
        let verdict = check(&history);
        if !verdict.violations.is_empty() {
            let file = std::env::temp_dir().join(format!("{}.json", self.namespace));
            record::keep(&history, &file).unwrap();
            panic!("{verdict}\nthe history is in {}", file.display());
        }
        assert!(verdict.acknowledged > 100, "{verdict}");
        (outcome, verdict)
    }

    /// A client of one member.
    pub(crate) async fn etcd(&self, member: &str) -> Etcd {
        let address = self.addresses().await.remove(member).expect("the member has an address");
        connect(&address, Some(&self.identity().await)).await.expect("the member takes connections")
    }

    /// Writes `count` keys `<prefix><number>` through any member that takes them; returns when all are acknowledged.
    pub(crate) async fn write(&self, prefix: &str, count: usize) {
        self.write_to("main", prefix, count).await;
    }

    pub(crate) async fn write_to(&self, cluster: &str, prefix: &str, count: usize) {
        let identity = self.identity_of(cluster).await;
        let mut written = 0;
        let mut next = async || {
            for address in self.addresses_of(cluster).await.values() {
                let Ok(mut etcd) = connect(address, Some(&identity)).await else { continue };
                while written < count {
                    let put = etcd.put(format!("{prefix}{written}"), "acknowledged", None);
                    match tokio::time::timeout(Duration::from_secs(2), put).await {
                        Ok(Ok(_)) => written += 1,
                        Ok(Err(_)) | Err(_) => break,
                    }
                }
            }
            (written == count).then_some(())
        };
        eventually("all writes are acknowledged", &mut next).await;
    }

    /// Writes `count` keys `<prefix><number>`, many at a time.
    pub(crate) async fn write_at_once(&self, prefix: &str, count: usize) {
        let writers = 50;
        let all = (0..writers).map(async |writer| {
            let share = count / writers + usize::from(writer < count % writers);
            self.write(&format!("{prefix}{writer}-"), share).await;
        });
        futures::future::join_all(all).await;
    }

    /// How many keys with that prefix a linearizable read finds, as soon as there is a leader for it.
    pub(crate) async fn count(&self, member: &str, prefix: &str) -> i64 {
        let identity = self.identity().await;
        let count = async || {
            let address = self.addresses().await.remove(member)?;
            let mut etcd = connect(&address, Some(&identity)).await.ok()?;
            let options = etcd_client::GetOptions::new().with_prefix().with_count_only();
            Some(etcd.get(prefix, Some(options)).await.ok()?.count())
        };
        eventually(&format!("{member} counts the keys"), count).await
    }

    /// Runs one command of etcd's image in a Pod of its own, with the client Secret mounted; its exit code and words.
    pub(crate) async fn run_in_pod(&self, command: &[&str]) -> (i32, String) {
        self.run_in_pod_of("gcr.io/etcd-development/etcd:v3.6.16", "main", command).await
    }

    /// The same of any image, with the client Secret of a cluster.
    pub(crate) async fn run_in_pod_of(&self, image: &str, cluster: &str, command: &[&str]) -> (i32, String) {
        let name = format!("run-{:06x}", rand::random::<u32>() & 0xff_ffff);
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "run",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": command,
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "tls", "mountPath": "/tls"}],
                }],
                "volumes": [{"name": "tls", "secret": {"secretName": format!("{cluster}-client"), "defaultMode": 0o440}}],
            },
        });
        self.api::<Pod>()
            .create(&PostParams::default(), &serde_json::from_value(pod).unwrap())
            .await
            .unwrap();
        let ended = async || {
            let status = self.pod(&name).await?.status?;
            let state = status.container_statuses?.first()?.state.clone()?;
            Some(state.terminated?.exit_code)
        };
        let code = eventually("the command has ended", ended).await;
        (code, self.api::<Pod>().logs(&name, &LogParams::default()).await.unwrap())
    }

    /// etcdctl in a Pod, through the Service, with the client Secret.
    pub(crate) async fn etcdctl(&self, arguments: &[&str]) -> (i32, String) {
        let endpoint = format!("--endpoints=https://main.{}.svc:2379", self.namespace);
        let mut command = vec![
            "/usr/local/bin/etcdctl",
            &endpoint,
            // A Service follows its Pods a moment later, and more on a machine that is busy.
            "--dial-timeout=20s",
            "--command-timeout=40s",
            "--cacert=/tls/ca.crt",
            "--cert=/tls/tls.crt",
            "--key=/tls/tls.key",
        ];
        command.extend(arguments);
        self.run_in_pod(&command).await
    }

    /// Takes away what a story that failed in the middle may hold claims with: its namespace would never go.
    async fn release_claims(&self) {
        let claims = self.api::<PersistentVolumeClaim>();
        let none = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        for claim in claims.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default() {
            drop(claims.patch(&claim.name_any(), &PatchParams::default(), &none).await);
        }
    }

    fn describe(&self) {
        let namespace = self.namespace.as_str();
        let questions = [
            vec!["-n", namespace, "get", "etcdclusters,etcdmemberreplacements,pods", "-o", "wide"],
            vec!["-n", namespace, "get", "pvc", "-o", "wide"],
            vec!["-n", namespace, "get", "etcdclusters", "-o", "yaml"],
            vec!["-n", namespace, "get", "events"],
            vec!["-n", "quorate-system", "logs", "-l", "app.kubernetes.io/component=operator", "--tail=40"],
        ];
        for (number, arguments) in questions.iter().enumerate() {
            let output = Command::new("kubectl").args(arguments).output();
            let said =
                output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
            let said = format!("$ kubectl {}\n{said}", arguments.join(" "));
            if number == 0 {
                at_once(&said);
            } else {
                eprintln!("{said}");
            }
        }
    }
}

/// Identities of a cluster: its ID and those of its members.
pub(crate) fn identities(status: &EtcdClusterStatus) -> (Option<String>, Vec<(String, Option<String>)>) {
    let members =
        status.members.iter().map(|member| (member.name.clone(), member.member_id.clone())).collect();
    (status.cluster_id.clone(), members)
}

/// Sends a signal, such as -STOP, to every process of a Pod whose command line begins with `what`.
pub(crate) fn signal_in_pod(pod_uid: &str, what: &str, signal: &str) {
    let begins = |path: &PathBuf| {
        fs::read_to_string(path.join("cmdline")).is_ok_and(|command| command.starts_with(what))
    };
    let found: Vec<_> = processes(pod_uid, what).into_iter().filter(begins).collect();
    assert!(!found.is_empty(), "no process {what} was found");
    for process in found {
        let pid = process.file_name().expect("a process has a number");
        assert!(Command::new("kill").arg(signal).arg(pid).status().unwrap().success());
    }
}

/// Kills -9 every process of a Pod whose command line contains `what`. Processes are found by their cgroup, so none
/// of another Pod, or of another cluster on this machine, is ever hit.
pub(crate) fn kill_in_pod(pod_uid: &str, what: &str) -> usize {
    let killed = processes(pod_uid, what).into_iter().filter(|process| {
        let pid = process.file_name().expect("a process has a number");
        Command::new("kill").arg("-9").arg(pid).status().unwrap().success()
    });
    killed.count()
}

/// The folders in /proc of a Pod's processes whose command line contains `what`.
pub(crate) fn processes(pod_uid: &str, what: &str) -> Vec<PathBuf> {
    let is_wanted = |path: &PathBuf| {
        let cgroup = fs::read_to_string(path.join("cgroup")).unwrap_or_default();
        let command = fs::read_to_string(path.join("cmdline")).unwrap_or_default().replace('\0', " ");
        cgroup.contains(pod_uid) && command.contains(what)
    };
    fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).filter(is_wanted).collect()
}

/// Copies a folder with everything in it, owners and modes too.
pub(crate) fn copy(from: &std::path::Path, to: &std::path::Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "cannot copy {} to {}", from.display(), to.display());
}
