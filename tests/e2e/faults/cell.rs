//! One fault, done to one cluster under load, and what comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use etcd_client::{AlarmAction, AlarmOptions, AlarmType};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use quorate::api::cluster::{EtcdClusterStatus, MemberStatus};
use quorate::api::replacement::Phase;
use quorate::api::{EtcdCluster, EtcdMemberReplacement};
use quorate::etcd::quorum::quorum;
use quorate::etcd::survey::survey;
use quorate_history::check::Verdict;
use serde_json::json;

use super::harm::{self, Damage, FullDisk, Kept, Link};
use super::{Expected, Fault};
use crate::operator::Spared;
use crate::support::{Story, cluster_tool, copy, eventually, identities, kubectl};

/// How long a link stays bad.
const BAD_LINK: Duration = Duration::from_secs(30);
/// A refusal must hold for so long.
const REFUSAL_HOLDS: Duration = Duration::from_secs(8);
/// Clients go on for so long when all is well again.
const AFTERWARDS: Duration = Duration::from_secs(3);
/// Writes that are acknowledged while one lags, or between a copy and its return.
const BETWEEN: usize = 200;
/// Writes that the two others acknowledge while one is frozen.
const WRITTEN_BESIDE_FROZEN: usize = 50;
/// So much older is a volume that a virtual machine's snapshot brings back.
const SNAPSHOT_AGE: usize = 10_000;

/// What came of it.
pub(crate) struct Told {
    /// From the end of the fault until the cluster was as expected.
    pub(crate) took: Duration,
    /// `None`: its clients had nothing to go on with.
    pub(crate) verdict: Option<Verdict>,
}

/// A cluster that is well, and who of it is to be harmed.
struct Scene<'a> {
    story: &'a Story,
    fault: Fault,
    expected: Expected,
    before: EtcdClusterStatus,
    target: String,
    /// Keys of this scene begin so.
    prefix: String,
    /// Whether all operators are killed -9 every second meanwhile.
    operators_die: bool,
}

/// What was done, and how it is undone.
struct Struck {
    harmed: Vec<String>,
    /// When it was over.
    at: Instant,
    undo: Undo,
}

enum Undo {
    Nothing,
    PutBack(Vec<Kept>),
    SwapBack(String, String),
    Disk(FullDisk),
    RestartNode(String),
    EndOperator(Child),
}

/// Does it to the cluster of a story, which is Healthy before, and after if that can be.
pub(crate) async fn cell(story: &Story, fault: Fault, operators_die: bool) -> Told {
    let happens = happens(story, fault, 1, operators_die);
    if fault.ends_clients() {
        return Told { took: happens.await, verdict: None };
    }
    let clients = async {
        let took = happens.await;
        // A history that ends with the fault says nothing of the time after it.
        tokio::time::sleep(AFTERWARDS).await;
        took
    };
    let (took, verdict) = story.under_load(clients).await;
    Told { took, verdict: Some(verdict) }
}

/// The same without a load, to the member of that turn; returns how long it took until all was as expected.
pub(crate) async fn happens(story: &Story, fault: Fault, turn: usize, operators_die: bool) -> Duration {
    let patience = if fault.is_alone() { "20s" } else { "10m" };
    story.patch(json!({"repair": {"unhealthyAfter": patience}})).await;
    let before = story.healthy().await;
    let size = before.members.len();
    let expected = fault.expected(size).expect("the fault makes sense at this size");
    let leads = |member: &&MemberStatus| member.role == "leader";
    // A node that takes two members along is another fault: who is merely down waits for all others.
    let lives_alone =
        |member: &&MemberStatus| before.members.iter().filter(|other| other.node == member.node).count() == 1;
    let is_candidate = |member: &&MemberStatus| {
        (fault != Fault::LeaderKilled || leads(member)) && (!fault.is_alone() || lives_alone(member))
    };
    let candidates: Vec<&MemberStatus> = before.members.iter().filter(is_candidate).collect();
    let target = candidates.get(turn % candidates.len().max(1)).expect("there is such a member").name.clone();
    let prefix = format!("{:08x}-", rand::random::<u32>());
    Scene { story, fault, expected, before, target, prefix, operators_die }.play().await
}

impl Scene<'_> {
    async fn play(&self) -> Duration {
        let requests = self.requests().await;
        self.story.write(&self.prefix, 100).await;
        let struck = self.strike().await;
        let took = match self.expected {
            Expected::Stays | Expected::Replaced | Expected::Whole => {
                self.is_well(&struck).await;
                struck.at.elapsed()
            }
            Expected::Refused { condition, health } => {
                let took = self.is_refused(&struck, condition, health).await;
                if self.fault == Fault::AllVolumesGone {
                    return took; // Nothing is left to be put back.
                }
                took
            }
        };
        if self.expected == Expected::Replaced && self.fault != Fault::CreatedAgain {
            let new = self.requests_beside(&requests).await;
            let phases: Vec<_> =
                new.iter().map(|request| request.status.clone().unwrap_or_default().phase).collect();
            // A claim that is deleted before its Pod is that of a healthy member for a moment: what was asked for then
            // comes to nothing.
            let moment = self.fault == Fault::PodAndClaimDeleted && phases.len() == 2;
            let expected = if moment { &[Phase::Rejected, Phase::Complete][..] } else { &[Phase::Complete] };
            assert_eq!(phases, expected.iter().copied().map(Some).collect::<Vec<_>>(), "{new:?}");
        }
        let refused = matches!(self.expected, Expected::Refused { .. });
        self.undo(struck.undo).await;
        if refused {
            self.well_with(&struck.harmed).await;
        }
        let member = self.story.healthy().await.members[0].name.clone();
        let expected = 100 + self.written_between();
        let found = usize::try_from(self.story.count(&member, &self.prefix).await).unwrap();
        assert_eq!(found, expected, "acknowledged keys are lost");
        took
    }

    /// UIDs of the replacements there are; of those that are over the operator keeps only the newest ten.
    async fn requests(&self) -> BTreeSet<Option<String>> {
        self.requests_beside(&BTreeSet::new()).await.iter().map(ResourceExt::uid).collect()
    }

    /// Replacements that have come since then.
    async fn requests_beside(&self, before: &BTreeSet<Option<String>>) -> Vec<EtcdMemberReplacement> {
        let mut new =
            self.story.api::<EtcdMemberReplacement>().list(&ListParams::default()).await.unwrap().items;
        new.retain(|request| !before.contains(&request.uid()));
        new
    }

    /// How many keys [`strike`](Self::strike) writes.
    fn written_between(&self) -> usize {
        let all = [
            (Fault::RolledBack, SNAPSHOT_AGE),
            (Fault::RolledBackBesideOneThatLags, BETWEEN),
            (Fault::FrozenWhileTheOthersWrote, WRITTEN_BESIDE_FROZEN),
        ];
        all.iter().find(|(fault, _)| *fault == self.fault).map_or(0, |(_, count)| *count)
    }

    async fn strike(&self) -> Struck {
        let (story, target) = (self.story, self.target.as_str());
        let harmed = vec![target.to_owned()];
        let undo = match self.fault {
            Fault::MemberKilled | Fault::LeaderKilled => {
                self.kill(&harmed).await;
                Undo::Nothing
            }
            Fault::AllKilled => {
                self.kill(&self.names()).await;
                Undo::Nothing
            }
            Fault::Stopped15Seconds => self.stop(Duration::from_secs(15)).await,
            Fault::Stopped2Minutes => self.stop(Duration::from_mins(2)).await,
            Fault::VolumeWiped => self.damage(Damage::Wiped).await,
            Fault::WalGone => self.damage(Damage::WalGone).await,
            Fault::DatabaseGone => self.damage(Damage::DatabaseGone).await,
            Fault::DatabaseDamaged => self.damage(Damage::DatabaseDamaged).await,
            Fault::DatabaseBegun => self.damage(Damage::DatabaseBegun).await,
            Fault::DatabaseUnused => self.damage(Damage::DatabaseUnused).await,
            Fault::WalDamaged => self.damage(Damage::WalDamaged).await,
            Fault::WalTorn => self.damage(Damage::WalTorn).await,
            Fault::ValueChanged => self.damage(Damage::ValueChanged).await,
            Fault::RolledBack => self.roll_back().await,
            Fault::RolledBackBesideOneThatLags => self.roll_back_beside_one_that_lags().await,
            Fault::HealthyRestartedBesideChangedValue => {
                harm::change_value_unnoticed(story, target).await;
                harm::kill(story, self.other(0)).await;
                Undo::Nothing
            }
            Fault::AlarmOfRemoved => self.raise_alarm().await,
            Fault::VolumesSwapped => {
                let other = self.other(0).to_owned();
                harm::swap(story, target, &other).await;
                let harmed = vec![target.to_owned(), other.clone()];
                let undo = Undo::SwapBack(target.to_owned(), other);
                return Struck { harmed, at: Instant::now(), undo };
            }
            Fault::ForeignVolume => {
                let other = self.another_clusters_volume().await;
                let undo = self.damage(Damage::Foreign(other.clone())).await;
                std::fs::remove_dir_all(&other).unwrap();
                undo
            }
            Fault::ClaimDeleted => {
                self.delete_claim(target).await;
                Undo::Nothing
            }
            Fault::PodAndClaimDeleted => {
                self.delete_claim(target).await;
                story.delete_pod(target).await;
                Undo::Nothing
            }
            Fault::ClaimStuck => {
                self.hold_claim(target, true).await;
                self.delete_claim(target).await;
                story.delete_pod(target).await;
                Undo::Nothing
            }
            Fault::DiskFull => self.fill_disk().await,
            Fault::CutFromPeers => {
                self.bad_link(async |link| link.cut(&harm::peers_of(story, target).await)).await
            }
            Fault::CutFromOperator => {
                self.bad_link(async |link| link.cut(&harm::operators(story).await)).await
            }
            Fault::CutFromBoth => {
                let both = async |link: &Link| {
                    link.cut(&harm::peers_of(story, target).await);
                    link.cut(&harm::operators(story).await);
                };
                self.bad_link(both).await
            }
            Fault::Lossy => self.bad_link(async |link| link.lose()).await,
            Fault::Slow => self.bad_link(async |link| link.slow()).await,
            Fault::WrongCertificate => self.spoil_certificate(false).await,
            Fault::ExpiredCertificate => self.spoil_certificate(true).await,
            Fault::MostWiped => return self.wipe(self.names().len() / 2 + 1).await,
            Fault::TwoOfFiveWiped => return self.wipe(2).await,
            Fault::FrozenWhileTheOthersWrote => return self.freeze_and_wipe_the_others().await,
            Fault::AllVolumesGone => {
                for name in self.names() {
                    self.delete_claim(&name).await;
                }
                let all = ListParams::default().labels("quorate.dev/cluster=main");
                story.api::<Pod>().delete_collection(&DeleteParams::default(), &all).await.unwrap();
                return Struck { harmed: self.names(), at: Instant::now(), undo: Undo::Nothing };
            }
            Fault::TwoOperators => {
                let second = self.second_operator();
                harm::damage(story, target, &Damage::Wiped, false).await;
                Undo::EndOperator(second)
            }
            Fault::CreatedAgain => self.create_again().await,
            Fault::NodeKilled | Fault::NodeBackAfterRepair => self.kill_node().await,
        };
        Struck { harmed, at: Instant::now(), undo }
    }

    fn names(&self) -> Vec<String> {
        self.before.members.iter().map(|member| member.name.clone()).collect()
    }

    /// The members beside the target, in their order.
    fn other(&self, number: usize) -> &str {
        let mut others = self.before.members.iter().filter(|member| member.name != self.target);
        &others.nth(number).expect("there are others").name
    }

    /// Kills, and waits until the kubelet has started them again.
    async fn kill(&self, members: &[String]) {
        let mut before = BTreeMap::new();
        for member in members {
            before.insert(member, harm::restarts(self.story, member).await);
            harm::kill(self.story, member).await;
        }
        self.restarted(before).await;
    }

    async fn restarted(&self, before: BTreeMap<&String, Option<(Option<String>, i32)>>) {
        let again = async || {
            for (member, before) in &before {
                let now = harm::restarts(self.story, member).await;
                if now.is_none() || now == *before {
                    return None;
                }
            }
            Some(())
        };
        eventually("the containers were started again", again).await;
    }

    async fn stop(&self, time: Duration) -> Undo {
        harm::freeze(self.story, &self.target).await;
        tokio::time::sleep(time).await;
        harm::thaw(self.story, &self.target).await;
        Undo::Nothing
    }

    /// Harms the target's volume; where nobody can make up for that, what was there is kept.
    async fn damage(&self, damage: Damage) -> Undo {
        let keep = matches!(self.expected, Expected::Refused { .. });
        let before = harm::restarts(self.story, &self.target).await;
        let kept = harm::damage(self.story, &self.target, &damage, keep).await;
        self.restarted(BTreeMap::from([(&self.target, before)])).await;
        kept.map_or(Undo::Nothing, |kept| Undo::PutBack(vec![kept]))
    }

    async fn copy_of_data(&self) -> PathBuf {
        let older = temporary();
        harm::freeze(self.story, &self.target).await;
        copy(&self.story.volume(&self.target).await.join("data/member"), &older);
        harm::thaw(self.story, &self.target).await;
        older
    }

    async fn roll_back(&self) -> Undo {
        let older = self.copy_of_data().await;
        self.story.write_at_once(&format!("{}later-", self.prefix), SNAPSHOT_AGE).await;
        let undo = self.damage(Damage::RolledBack(older.clone())).await;
        std::fs::remove_dir_all(&older).unwrap();
        undo
    }

    /// While one member hears nothing the others acknowledge writes; then one of those forgets them, and the one that
    /// never had them is back: the two must not make a leader of their own.
    async fn roll_back_beside_one_that_lags(&self) -> Undo {
        let lagging = self.other(0).to_owned();
        let older = self.copy_of_data().await;
        let link = Link::of(self.story, &lagging).await;
        link.cut(&harm::peers_of(self.story, &lagging).await);
        self.story.write(&format!("{}later-", self.prefix), BETWEEN).await;
        let whole = self.other(1).to_owned();
        harm::freeze(self.story, &whole).await;
        harm::damage(self.story, &self.target, &Damage::RolledBack(older.clone()), false).await;
        link.heal();
        std::fs::remove_dir_all(&older).unwrap();
        // Time for an election that must not be won.
        tokio::time::sleep(Duration::from_secs(5)).await;
        harm::thaw(self.story, &whole).await;
        Undo::Nothing
    }

    async fn raise_alarm(&self) -> Undo {
        let id = self.before.members.iter().find(|member| member.name == self.target);
        let id = id.and_then(|member| u64::from_str_radix(member.member_id.as_ref()?, 16).ok()).unwrap();
        harm::damage(self.story, &self.target, &Damage::Wiped, false).await;
        // If it led, there is no leader for a moment.
        let raised = async || {
            let mut options = AlarmOptions::new();
            options.with_member(id);
            let mut etcd = self.story.etcd(self.other(0)).await;
            etcd.alarm(AlarmAction::Activate, AlarmType::Nospace, Some(options)).await.ok()
        };
        drop(eventually("the alarm is raised", raised).await);
        Undo::Nothing
    }

    /// A copy of the volume of a cluster of its own.
    async fn another_clusters_volume(&self) -> PathBuf {
        let api = self.story.api::<EtcdCluster>();
        let name = format!("other-{:04x}", rand::random::<u16>());
        self.story.create_named(&name, json!({"replicas": 1, "version": self.minor()})).await;
        let healthy = async || {
            let status = api.get(&name).await.unwrap().status?;
            (status.summary.as_deref() == Some("Healthy")).then_some(())
        };
        eventually("another cluster is Healthy", healthy).await;
        let member = format!("{name}-0");
        let other = temporary();
        let volume = self.story.volume(&member).await;
        harm::freeze(self.story, &member).await;
        copy(&volume, &other);
        harm::thaw(self.story, &member).await;
        api.delete(&name, &DeleteParams::default()).await.unwrap();
        other
    }

    fn minor(&self) -> String {
        let version = self.before.version.as_ref().expect("the version is known");
        version.requested.clone()
    }

    async fn delete_claim(&self, member: &str) {
        let claims = self.story.api::<PersistentVolumeClaim>();
        drop(claims.delete(member, &DeleteParams::default()).await.unwrap());
    }

    /// Somebody's finalizer on a claim.
    async fn hold_claim(&self, member: &str, held: bool) {
        let claims = self.story.api::<PersistentVolumeClaim>();
        let Ok(claim) = claims.get(member).await else { return };
        let mut finalizers = claim.finalizers().to_vec();
        finalizers.retain(|finalizer| finalizer != "example.com/hold");
        if held {
            finalizers.push("example.com/hold".to_owned());
        }
        let patch = Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
        claims.patch(member, &PatchParams::default(), &patch).await.unwrap();
    }

    /// The disk is full until the status says so.
    async fn fill_disk(&self) -> Undo {
        let full = FullDisk::under(self.story, &self.target).await;
        let said = async || {
            let status = self.story.status().await;
            let member = status.members.into_iter().find(|member| member.name == self.target)?;
            member.message.filter(|message| message.contains("no space left on device"))
        };
        eventually("the status says that the disk is full", said).await;
        full.free();
        Undo::Disk(full)
    }

    async fn bad_link(&self, spoil: impl AsyncFnOnce(&Link)) -> Undo {
        let link = Link::of(self.story, &self.target).await;
        spoil(&link).await;
        tokio::time::sleep(BAD_LINK).await;
        let status = self.story.status().await;
        let is_cut = matches!(self.fault, Fault::CutFromPeers | Fault::CutFromBoth | Fault::CutFromOperator);
        let healthy =
            status.members.iter().find(|member| member.name == self.target).map(|member| &member.health);
        // Who dies every second waits for no answer that long.
        let noticed = self.operators_die || healthy.is_none_or(|health| health != "Healthy");
        assert!(!is_cut || noticed, "nobody has noticed the cut");
        link.heal();
        Undo::Nothing
    }

    /// Puts a certificate into a member's Secret that its clients do not believe; the operator makes it anew.
    async fn spoil_certificate(&self, expired: bool) -> Undo {
        let secrets: Api<Secret> = self.story.api();
        let name = format!("{}-tls", self.target);
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let mut authority = parameters.self_signed(&key).unwrap();
        if expired {
            parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(2020, 1, 2);
            let ca = secrets.get("main-ca").await.unwrap().data.unwrap();
            let text = |name: &str| String::from_utf8(ca[name].0.clone()).unwrap();
            let signer = rcgen::KeyPair::from_pem(&text("client-ca.key")).unwrap();
            let issuer = rcgen::Issuer::from_ca_cert_pem(&text("client-ca.crt"), signer).unwrap();
            authority = parameters.signed_by(&key, &issuer).unwrap();
        }
        let wrong = authority.pem();
        let patch = json!({"stringData": {"server.crt": wrong, "server.key": key.serialize_pem()}});
        secrets.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        let mended = async || {
            let secret = secrets.get(&name).await.ok()?;
            let now: ByteString = secret.data?.remove("server.crt")?;
            (now.0 != wrong.as_bytes()).then_some(())
        };
        eventually("the certificate was made anew", mended).await;
        Undo::Nothing
    }

    async fn wipe(&self, count: usize) -> Struck {
        let harmed: Vec<String> = self.names().into_iter().take(count).collect();
        let mut kept = Vec::new();
        // All stand still before the first is wiped: else the others could begin to repair it.
        for member in &harmed {
            harm::freeze(self.story, member).await;
        }
        for member in &harmed {
            kept.extend(harm::damage(self.story, member, &Damage::Wiped, true).await);
        }
        Struck { harmed, at: Instant::now(), undo: Undo::PutBack(kept) }
    }

    async fn freeze_and_wipe_the_others(&self) -> Struck {
        harm::freeze(self.story, &self.target).await;
        self.story.write(&format!("{}later-", self.prefix), WRITTEN_BESIDE_FROZEN).await;
        let harmed = vec![self.other(0).to_owned(), self.other(1).to_owned()];
        let mut kept = Vec::new();
        for member in &harmed {
            harm::freeze(self.story, member).await;
        }
        for member in &harmed {
            kept.extend(harm::damage(self.story, member, &Damage::Wiped, true).await);
        }
        harm::thaw(self.story, &self.target).await;
        Struck { harmed, at: Instant::now(), undo: Undo::PutBack(kept) }
    }

    /// Another operator that holds a lease of its own, so that nothing keeps the two apart.
    fn second_operator(&self) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(["operator", "--listen", "127.0.0.1:0", "--identity", "second"]);
        command.args(["--namespace", &self.story.namespace, "--lease-namespace", &self.story.namespace]);
        command.args(["--image", guard_image().as_str()]).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    async fn create_again(&self) -> Undo {
        let uid = self.story.cluster().await.uid().unwrap();
        let spec = self.story.cluster().await.spec;
        if self.expected == Expected::Replaced {
            harm::damage(self.story, &self.target, &Damage::Wiped, false).await;
        }
        self.story.api::<EtcdCluster>().delete("main", &DeleteParams::default()).await.unwrap();
        let gone = async || {
            let all = ListParams::default().labels("quorate.dev/cluster=main");
            self.story.api::<Pod>().list(&all).await.unwrap().items.is_empty().then_some(())
        };
        eventually("the cluster's Pods are gone", gone).await;
        let spec = serde_json::to_value(spec).unwrap();
        self.story.create_annotated(spec, json!({"quorate.dev/adopt": uid})).await;
        Undo::Nothing
    }

    async fn kill_node(&self) -> Undo {
        let member = self.before.members.iter().find(|member| member.name == self.target);
        let node = member.and_then(|member| member.node.clone()).expect("the member has a node");
        tool("kill-node", &node).await;
        Undo::RestartNode(node)
    }

    async fn is_well(&self, struck: &Struck) {
        let _spared = if self.fault.is_alone() { self.operators_may_live().await } else { None };
        let replaced: &[String] = if self.expected == Expected::Stays { &[] } else { &struck.harmed };
        self.well_with(replaced).await;
    }

    /// Waits until all is well, with the members of before but for those.
    async fn well_with(&self, harmed: &[String]) {
        let well = async || {
            let now = self.whole().await?;
            let there = |id: &Option<String>| now.members.iter().any(|member| member.member_id == *id);
            let as_wanted = self.before.members.iter().all(|member| {
                let is_harmed = harmed.contains(&member.name);
                match self.expected {
                    Expected::Replaced if is_harmed => !there(&member.member_id),
                    // What was put back for one member can make a quorum before the kubelet has started the next
                    // one again, which is then repaired by what it said last.
                    Expected::Whole | Expected::Refused { .. } if is_harmed => true,
                    Expected::Replaced | Expected::Whole | Expected::Stays | Expected::Refused { .. } => {
                        there(&member.member_id)
                    }
                }
            });
            as_wanted.then_some(now)
        };
        let now = eventually(&format!("it is well after: {}", self.fault.words()), well).await;
        assert_eq!(now.cluster_id, self.before.cluster_id);
        if matches!(self.expected, Expected::Refused { .. }) {
            let (before, now) = (ids(&self.before), ids(&now));
            assert!(before.intersection(&now).count() >= quorum(before.len()), "{now:?} of {before:?}");
        }
        if self.expected == Expected::Replaced {
            let again = now.members.iter().any(|member| harmed.contains(&member.name));
            assert_eq!(again, !self.fault.needs_volume(), "{:?}", now.members);
        }
    }

    /// Whether the operator says that all is well, and every member says so too.
    async fn whole(&self) -> Option<EtcdClusterStatus> {
        let (size, status) = (self.before.members.len(), self.story.status().await);
        let said = status.summary.as_deref() == Some("Healthy") && status.members.len() == size;
        (said && status.ready == Some(format!("{size}/{size}"))).then_some(())?;
        let answers = survey(self.story.addresses().await, Some(&self.story.identity().await)).await;
        let voters = |answer: &quorate::etcd::survey::Answer| {
            let quorum = answer.quorum.as_ref()?;
            (quorum.alarms.is_empty()).then(|| quorum.members.iter().filter(|member| !member.learner).count())
        };
        let well = answers.values().filter(|answer| answer.as_ref().ok().and_then(voters) == Some(size));
        (well.count() == size).then_some(status)
    }

    /// Waits until it is said, and sees that it stays so and nothing is taken away.
    async fn is_refused(&self, struck: &Struck, (type_, reason): (&str, &str), health: &str) -> Duration {
        let spared = self.operators_may_live().await;
        self.story.condition(type_, reason).await;
        for member in &struck.harmed {
            self.story.member_health(member, health).await;
        }
        drop(spared);
        let took = struck.at.elapsed();
        let (claims, requests) = (self.claims().await, self.requests().await);
        let stays = |status: &EtcdClusterStatus| {
            let condition = status.conditions.iter().find(|condition| condition.type_ == type_);
            let now = condition.map(|condition| condition.reason.as_str());
            assert_eq!(now, Some(reason), "it is no longer refused: {status:?}");
        };
        self.nobody_is_removed(stays).await;
        assert_eq!(self.claims().await, claims, "volumes came or went");
        let new = self.requests_beside(&requests).await;
        assert!(new.is_empty(), "{new:?}");
        took
    }

    /// To see that a cluster has no leader, or that a node is silent, takes three seconds, which an operator that dies
    /// every second never has: it does no harm meanwhile, and what it must do when it may live.
    async fn operators_may_live(&self) -> Option<Spared> {
        if !self.operators_die {
            return None;
        }
        self.nobody_is_removed(|_| {}).await;
        Some(Spared::from_now_on())
    }

    /// For as long as a refusal must hold, all members keep their places, and `and` finds nothing wrong.
    async fn nobody_is_removed(&self, and: impl Fn(&EtcdClusterStatus)) {
        let begun = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        while begun.elapsed() < REFUSAL_HOLDS {
            tick.tick().await;
            let status = self.story.status().await;
            assert_eq!(identities(&status), identities(&self.before));
            and(&status);
        }
    }

    /// Claims of the cluster with their UIDs.
    async fn claims(&self) -> Vec<(String, Option<String>)> {
        let all = ListParams::default().labels("quorate.dev/cluster=main");
        let claims = self.story.api::<PersistentVolumeClaim>().list(&all).await.unwrap().items;
        claims.into_iter().map(|claim| (claim.name_any(), claim.uid())).collect()
    }

    async fn undo(&self, undo: Undo) {
        match undo {
            Undo::Nothing => {}
            Undo::PutBack(kept) => kept.iter().for_each(Kept::put_back),
            Undo::SwapBack(one, other) => {
                let (first, second) = (self.story.volume(&one).await, self.story.volume(&other).await);
                harm::exchange(&first, &second);
            }
            Undo::Disk(full) => {
                let before = harm::restarts(self.story, &self.target).await;
                full.take_away(self.story, &self.target).await;
                self.restarted(BTreeMap::from([(&self.target, before)])).await;
                self.well_with(&[]).await;
            }
            Undo::RestartNode(node) => self.restart_node(&node).await,
            Undo::EndOperator(mut child) => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
        if self.fault == Fault::ClaimStuck {
            self.hold_claim(&self.target, false).await;
        }
    }

    /// The node comes back; the member that was replaced does not.
    async fn restart_node(&self, node: &str) {
        tool("restart-node", node).await;
        let ready = async || {
            let node: Node = Api::all(self.story.client.clone()).get(node).await.ok()?;
            let conditions = node.status?.conditions?;
            conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True").then_some(())
        };
        eventually("the node is ready again", ready).await;
        if self.expected == Expected::Replaced {
            let gone = async || self.story.pod(&self.target).await.is_none().then_some(());
            eventually("the Pod of the member that was replaced is gone", gone).await;
        }
        self.well_with(std::slice::from_ref(&self.target)).await;
    }
}

fn ids(status: &EtcdClusterStatus) -> BTreeSet<&Option<String>> {
    status.members.iter().map(|member| &member.member_id).collect()
}

/// The test cluster's tool at a node, without holding up the load.
async fn tool(command: &'static str, node: &str) {
    let number = node.trim_start_matches('n').to_owned();
    tokio::task::spawn_blocking(move || cluster_tool(&[command, &number])).await.unwrap();
}

/// The image that the installed operator brings guards from.
fn guard_image() -> String {
    let path = "-o=jsonpath={.spec.template.spec.containers[0].image}";
    kubectl(&["-n", "quorate-system", "get", "deployment", "quorate-operator", path])
}

fn temporary() -> PathBuf {
    std::env::temp_dir().join(format!("quorate-older-{:08x}", rand::random::<u32>()))
}
