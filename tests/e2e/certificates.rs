//! Certificates that live for seconds, authorities that are replaced, auth that is turned on and off, all under load;
//! and Secrets that the user brings.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use quorate::api::EtcdCluster;
use quorate::etcd::connect::{Address, ClientIdentity, connect};
use serde_json::json;

use crate::support::{Story, eventually, full, story};

/// A request may be tried again for this long: an election takes about two seconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// A client that writes unique keys, one every 50 ms, and takes a new connection with the present client Secret every
/// ten. Stopped and read by [`Load::end`].
struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<Outcome>,
}

#[derive(Default)]
struct Outcome {
    /// Requests that no retry cured in time.
    lost: Vec<String>,
    retried: usize,
    longest: Duration,
}

impl Load {
    fn begin(story: &Story) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let eyes = Eyes { pods: story.api(), secrets: story.api(), namespace: story.namespace.clone() };
        let task = tokio::spawn(load(eyes, stop.clone(), written.clone()));
        Self { stop, written, task }
    }

    /// Stops it when it has written enough to tell; every acknowledged key must be there.
    async fn end(self, story: &Story) {
        let enough = async || (self.written.load(Ordering::Relaxed) > 50).then_some(());
        eventually("the load has written more than 50 keys", enough).await;
        self.stop.store(true, Ordering::Relaxed);
        let outcome = self.task.await.unwrap();
        let written = self.written.load(Ordering::Relaxed);
        crate::support::measured(&format!(
            "{}: {written} keys written, {} tries repeated, longest wait {:?}",
            story.namespace, outcome.retried, outcome.longest
        ));
        assert_eq!(outcome.lost, Vec::<String>::new(), "requests that no retry cured");
        assert_eq!(story.count("main-0", "load-").await, i64::try_from(written).unwrap());
    }
}

/// What the load sees of Kubernetes.
struct Eyes {
    pods: Api<Pod>,
    secrets: Api<Secret>,
    namespace: String,
}

impl Eyes {
    async fn look(&self) -> Option<(Vec<Address>, ClientIdentity)> {
        let selector = ListParams::default().labels("quorate.dev/cluster=main,quorate.dev/role=voter");
        let pods = self.pods.list(&selector).await.ok()?.items;
        let secret = self.secrets.get("main-client").await.ok()?;
        let data = secret.data?;
        let field = |name: &str| Some(data.get(name)?.0.clone());
        let identity = ClientIdentity {
            authority: field("ca.crt")?,
            certificate: field("tls.crt")?,
            key: field("tls.key")?,
        };
        let address = |pod: &Pod| {
            let ip = pod.status.as_ref()?.pod_ip.clone()?;
            let name = format!("{}.main-peers.{}.svc", pod.name_any(), self.namespace);
            Some(Address { dial: format!("{ip}:2379"), name })
        };
        Some((pods.iter().filter_map(address).collect(), identity))
    }
}

async fn load(eyes: Eyes, stop: Arc<AtomicBool>, written: Arc<AtomicUsize>) -> Outcome {
    let mut outcome = Outcome::default();
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut client = None;
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        let number = written.load(Ordering::Relaxed);
        if number.is_multiple_of(10) {
            client = None;
        }
        let begun = Instant::now();
        loop {
            let error = match attempt(&eyes, &mut client, &mut turn, number).await {
                Ok(()) => break,
                Err(error) => error,
            };
            (client, outcome.retried) = (None, outcome.retried + 1);
            if begun.elapsed() > PATIENCE {
                outcome.lost.push(format!("key {number}: {error}"));
                return outcome;
            }
            tick.tick().await;
        }
        outcome.longest = outcome.longest.max(begun.elapsed());
        written.fetch_add(1, Ordering::Relaxed);
    }
    outcome
}

/// One try, with the connection there is or a new one to the next member.
async fn attempt(
    eyes: &Eyes,
    client: &mut Option<etcd_client::Client>,
    turn: &mut usize,
    number: usize,
) -> Result<(), String> {
    if client.is_none() {
        let (addresses, identity) = eyes.look().await.ok_or("no member or no client Secret")?;
        *turn += 1;
        let address = addresses.get(*turn % addresses.len().max(1)).ok_or("no member")?;
        *client = Some(connect(address, Some(&identity)).await.map_err(|error| format!("{error:?}"))?);
    }
    let client = client.as_mut().ok_or("no connection")?;
    let put = client.put(format!("load-{number:06}"), "acknowledged", None);
    let answer = tokio::time::timeout(Duration::from_secs(2), put).await;
    answer.map_err(|_| "no answer within 2s".to_owned())?.map_err(|error| error.to_string())?;
    Ok(())
}

/// UID and number of restarts of each member's Pod.
async fn lives(story: &Story) -> BTreeMap<String, (String, i32)> {
    let selector = ListParams::default().labels("quorate.dev/cluster=main");
    let pods = story.api::<Pod>().list(&selector).await.unwrap().items;
    let restarts = |pod: &Pod| {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        statuses.into_iter().flatten().map(|status| status.restart_count).sum()
    };
    pods.iter().map(|pod| (pod.name_any(), (pod.uid().unwrap_or_default(), restarts(pod)))).collect()
}

async fn field(story: &Story, secret: &str, name: &str) -> Vec<u8> {
    let secret: Secret = story.api().get(secret).await.unwrap();
    secret.data.and_then(|mut data| data.remove(name)).map(|value| value.0).unwrap_or_default()
}

fn seconds(renew_before: u32, leaf: u32, authority: &str) -> serde_json::Value {
    json!({"tls": {"rotation": {
        "renewBefore": format!("{renew_before}s"),
        "leafLife": format!("{leaf}s"),
        "authorityLife": authority,
    }}})
}

#[tokio::test]
async fn certificates_that_live_for_seconds_are_renewed_under_load_without_a_restart() {
    story("leafs", async |story| {
        let (renew_before, life, long) = if full() { (60, 180, 370) } else { (30, 60, 70) };
        story.create(seconds(renew_before, life, "10000h")).await;
        story.healthy().await;
        let (before, first) = (lives(story).await, field(story, "main-0-tls", "server.crt").await);
        let load = Load::begin(story);
        // Longer than any certificate of the beginning lives; in the long form longer than the next ones, too.
        let begun = Instant::now();
        let outlived = async || (begun.elapsed() > Duration::from_secs(long)).then_some(());
        eventually("the first certificates have ended", outlived).await;
        assert_ne!(field(story, "main-0-tls", "server.crt").await, first);
        load.end(story).await;
        assert_eq!(lives(story).await, before, "a Pod was restarted");
    })
    .await;
}

#[tokio::test]
async fn authorities_are_replaced_under_load_and_each_member_is_restarted_once() {
    story("authority", async |story| {
        // In the long form they end by themselves, seven minutes after the beginning; else they are asked to.
        story.create(if full() { seconds(60, 180, "600s") } else { seconds(10, 600, "10000h") }).await;
        story.healthy().await;
        let (before, old) = (lives(story).await, story.identity().await);
        let ends = story.status().await.authority.unwrap().ends;
        let load = Load::begin(story);
        if !full() {
            let request =
                Patch::Merge(json!({"metadata": {"annotations": {"quorate.dev/rotate-authority": "1"}}}));
            let api = story.api::<EtcdCluster>();
            api.patch("main", &PatchParams::default(), &request).await.unwrap();
        }
        // Every Pod that was ever seen, and how many were missing or not ready at a time.
        let mut seen = before.keys().map(|name| (name.clone(), vec![before[name].0.clone()])).collect();
        let mut away = 0;
        let replaced = async || {
            away = away.max(watch(story, &mut seen).await);
            let authority = story.status().await.authority?;
            let asked = full() || authority.handled_request.as_deref() == Some("1");
            (asked && authority.ends != ends && authority.rotation.is_none()).then_some(())
        };
        eventually("the authorities are replaced", replaced).await;
        story.healthy().await;
        load.end(story).await;
        assert!(away <= 1, "{away} members were away at once");
        for (name, uids) in &seen {
            assert_eq!(uids.len(), 2, "{name} was restarted {} times", uids.len() - 1);
        }
        assert_ne!(field(story, "main-ca", "client-ca.crt").await, old.authority);
        assert_eq!(field(story, "main-ca", "client-ca-old.key").await, Vec::<u8>::new());
        // The certificate of before has not ended, but nobody takes it any more.
        let new = story.identity().await;
        let stale = ClientIdentity { authority: new.authority, ..old };
        let address = story.addresses().await.remove("main-0").unwrap();
        let taken = match connect(&address, Some(&stale)).await {
            Ok(mut client) => client.get("load-000000", None).await.is_ok(),
            Err(_) => false,
        };
        assert!(!taken, "the old authority is still trusted");
    })
    .await;
}

/// Notes new Pods; returns how many members are away now.
async fn watch(story: &Story, seen: &mut BTreeMap<String, Vec<String>>) -> usize {
    let selector = ListParams::default().labels("quorate.dev/cluster=main");
    let pods = story.api::<Pod>().list(&selector).await.unwrap().items;
    let mut here = 0;
    for pod in &pods {
        let (uids, uid) = (seen.entry(pod.name_any()).or_default(), pod.uid().unwrap_or_default());
        if !uids.contains(&uid) {
            uids.push(uid);
        }
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        let ready =
            conditions.into_iter().flatten().any(|found| found.type_ == "Ready" && found.status == "True");
        here += usize::from(ready && pod.metadata.deletion_timestamp.is_none());
    }
    seen.len() - here
}

#[tokio::test]
async fn auth_is_turned_on_and_off_under_load() {
    story("auth", async |story| {
        story.create(json!({})).await;
        story.healthy().await;
        let before = lives(story).await;
        let load = Load::begin(story);
        story.patch(json!({"auth": {"enabled": true}})).await;
        auth_is(story, "Enabled").await;
        // Applications may use every key, but not decide who may.
        let mut application = story.etcd("main-1").await;
        application.put("by-the-application", "x", None).await.unwrap();
        assert!(application.role_add("more").await.is_err(), "an application is root");
        // A member's certificate is nobody.
        let stranger = ClientIdentity {
            authority: field(story, "main-1-tls", "client-ca.crt").await,
            certificate: field(story, "main-1-tls", "server.crt").await,
            key: field(story, "main-1-tls", "server.key").await,
        };
        let address = story.addresses().await.remove("main-1").unwrap();
        let mut stranger = connect(&address, Some(&stranger)).await.unwrap();
        let refused = stranger.get("by-the-application", None).await.unwrap_err().to_string();
        assert!(refused.contains("permission denied"), "{refused}");
        // The operator still sees everything, and brings a member back.
        story.delete_pod("main-2").await;
        story.pod_ready("main-2").await;
        story.healthy().await;
        story.patch(json!({"auth": {"enabled": false}})).await;
        auth_is(story, "Disabled").await;
        stranger.get("by-the-application", None).await.unwrap();
        load.end(story).await;
        let mut after = lives(story).await;
        after.insert("main-2".to_owned(), before["main-2"].clone());
        assert_eq!(after, before, "a Pod was restarted");
    })
    .await;
}

async fn auth_is(story: &Story, word: &str) {
    let found = async || (story.status().await.auth.as_deref() == Some(word)).then_some(());
    eventually(&format!("auth is {word}"), found).await;
}

#[tokio::test]
async fn secrets_of_the_user_are_mounted_checked_and_never_written() {
    story("brought", async |story| {
        let secrets = brought(&story.namespace, "main", "mine");
        let api = story.api::<Secret>();
        for (name, data) in secrets.iter().filter(|(name, _)| *name != "mine-peer") {
            api.create(&PostParams::default(), &secret(name, data)).await.unwrap();
        }
        let names = json!({"server": "mine-server", "peer": "mine-peer", "operator": "mine-operator"});
        story.create(json!({"tls": {"mode": "Secrets", "secrets": names}})).await;
        let said = story.condition("CertificatesValid", "SecretDamaged").await;
        assert!(said.contains("mine-peer") && said.contains("does not exist"), "{said}");
        api.create(&PostParams::default(), &secret("mine-peer", &secrets["mine-peer"])).await.unwrap();
        story.healthy().await;

        let replace = async |data: &BTreeMap<String, String>| {
            let patch = Patch::Merge(json!({"stringData": data}));
            api.patch("mine-server", &PatchParams::default(), &patch).await.unwrap();
        };
        let mut damaged = secrets["mine-server"].clone();
        damaged.insert("tls.key".to_owned(), secrets["mine-peer"]["tls.key"].clone());
        replace(&damaged).await;
        let said = story.condition("CertificatesValid", "SecretDamaged").await;
        assert!(
            said.contains("mine-server") && said.contains("tls.crt does not belong to its key"),
            "{said}"
        );
        replace(&secrets["mine-server"]).await;
        story.healthy().await;
        let managers = api.get("mine-server").await.unwrap().metadata.managed_fields.unwrap_or_default();
        assert!(managers.iter().all(|entry| entry.manager.as_deref() != Some("quorate")), "it was written");
        assert!(api.get_opt("main-ca").await.unwrap().is_none(), "the operator made an authority of its own");
    })
    .await;
}

pub(crate) fn secret(name: &str, data: &BTreeMap<String, String>) -> Secret {
    let data = data.iter().map(|(key, value)| (key.clone(), ByteString(value.clone().into_bytes())));
    Secret {
        metadata: kube::api::ObjectMeta { name: Some(name.to_owned()), ..Default::default() },
        data: Some(data.collect()),
        ..Secret::default()
    }
}

/// What a user would let cert-manager make for a cluster: PREFIX-server and so on.
pub(crate) fn brought(
    namespace: &str,
    cluster: &str,
    prefix: &str,
) -> BTreeMap<String, BTreeMap<String, String>> {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };
    let authority = |name: &str| {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        (parameters.self_signed(&key).unwrap().pem(), Issuer::new(parameters, key))
    };
    let leaf = |(trust, issuer): &(String, Issuer<'_, KeyPair>), name: &str, dns: &[String]| {
        let mut parameters = CertificateParams::new(dns.to_vec()).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        BTreeMap::from([
            ("tls.crt".to_owned(), parameters.signed_by(&key, issuer).unwrap().pem()),
            ("tls.key".to_owned(), key.serialize_pem()),
            ("ca.crt".to_owned(), trust.clone()),
        ])
    };
    let (clients, peers) = (authority("clients"), authority("peers"));
    let members = format!("*.{cluster}-peers.{namespace}.svc");
    let service = format!("{cluster}.{namespace}.svc");
    let all = vec![members.clone(), service, "localhost".to_owned()];
    let own = vec![format!("{members}.cluster.local"), members];
    BTreeMap::from([
        (format!("{prefix}-server"), leaf(&clients, "server", &all)),
        (format!("{prefix}-peer"), leaf(&peers, "peer", &own)),
        (format!("{prefix}-operator"), leaf(&clients, "root", &[])),
        (format!("{prefix}-client"), leaf(&clients, "client", &[])),
    ])
}
