//! The planner against any picture that may be seen: no invariant is broken, whatever the picture; and for each
//! invariant a planner that breaks it is found by the same search.
//!
//! A picture here need not be one that can come about. The planner is total, so it must be harmless on all of them.

use std::collections::{BTreeMap, BTreeSet};

use quorate::api::EtcdCluster;
use quorate::api::cluster::BootstrapStatus;
use quorate::api::reason::Reason;
use quorate::api::replacement::{Phase, ReplacementStrategy, ReplacementVolume};
use quorate::etcd::hash::KeyHash;
use quorate::etcd::membership::Call;
use quorate::etcd::quorum::quorum;
use quorate::etcd::survey::{Answer, ListedMember, QuorumAnswer};
use quorate::etcd::{ClusterId, MemberId};
use quorate::operator::cluster::desired::Desired;
use quorate::operator::cluster::observed::{
    GuardReport, Intent, MemberPod, Observed, Record, Request, Volume, VolumeState,
};
use quorate::operator::cluster::plan::{Change, Ensure, Plan, Premise, Step, plan};
use quorate::operator::names;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

const UID: &str = "uid-of-ours";
const OTHER_UID: &str = "uid-of-another";
const CLUSTER: ClusterId = ClusterId(0xc1);
/// Pictures looked at for each rule: 10,000 take a second. `cargo verify --full` asks for more.
fn seeds() -> u64 {
    if std::env::var("QUORATE_FULL").is_ok_and(|full| full == "1") { 2_000_000 } else { 10_000 }
}

pub(crate) fn desired(annotations: &Value, spec: &Value) -> Desired {
    let mut spec = spec.clone();
    spec["tls"] = json!({"mode": "Disabled"});
    let metadata = json!({
        "name": "main", "namespace": "test", "uid": UID, "generation": 3, "annotations": annotations,
    });
    let object = json!({
        "apiVersion": "quorate.dev/v1alpha1", "kind": "EtcdCluster", "metadata": metadata, "spec": spec,
    });
    let object: EtcdCluster = serde_json::from_value(object).unwrap();
    Desired::of(&object, "quorate:test").unwrap()
}

pub(crate) fn nothing() -> Observed {
    Observed {
        record: Record::default(),
        volumes: BTreeMap::new(),
        pods: BTreeMap::new(),
        credentials: quorate::operator::cluster::credentials::Credentials::default(),
        children: BTreeMap::new(),
        missing_storage_class: None,
        missing_classes: BTreeSet::new(),
        expandable_classes: BTreeSet::new(),
        addresses: BTreeMap::new(),
        survey: BTreeMap::new(),
        hashes: None,
        requests: Vec::new(),
        nodes: Ok(BTreeMap::new()),
        now: jiff::Timestamp::UNIX_EPOCH,
    }
}

pub(crate) fn volume(name: &str, identity: Option<(ClusterId, MemberId)>) -> Volume {
    Volume {
        uid: format!("volume-{name}"),
        resource_version: "7".to_owned(),
        cluster_uid: Some(UID.to_owned()),
        owned: false,
        bound: true,
        deleting: false,
        storage_class: Some("standard".to_owned()),
        requested: "8Gi".to_owned(),
        state: if identity.is_some() { VolumeState::Member } else { VolumeState::Joining },
        started: identity.is_some(),
        identity,
        incarnation: 0,
        intent: None,
        replaces: None,
        own_size: false,
        node_selector: BTreeMap::new(),
        delete_after: None,
    }
}

pub(crate) fn pod(name: &str) -> MemberPod {
    MemberPod {
        uid: format!("pod-{name}"),
        resource_version: "9".to_owned(),
        owner_uid: Some(UID.to_owned()),
        phase: "Running".to_owned(),
        ip: Some("10.0.0.1".to_owned()),
        running: true,
        ready: true,
        ran: true,
        voter_label: true,
        ..MemberPod::default()
    }
}

/// The list of a cluster whose members have these numbers.
fn list(voters: &[u64], learners: &[u64]) -> Vec<ListedMember> {
    let row = |number: &u64, learner| ListedMember {
        id: MemberId(*number),
        name: format!("main-{number}"),
        peer_urls: vec![format!("http://main-{number}.main-peers.test.svc:2380")],
        learner,
    };
    let voters = voters.iter().map(|number| row(number, false));
    voters.chain(learners.iter().map(|number| row(number, true))).collect()
}

/// What a voter of that list answers.
pub(crate) fn answer(id: u64, members: &[ListedMember]) -> Answer {
    Answer {
        cluster_id: CLUSTER,
        member_id: MemberId(id),
        leader: Some(MemberId(0)),
        learner: false,
        raft_term: 2,
        applied_index: 100,
        revision: 50,
        db_size_bytes: 4096,
        version: "3.6.16".to_owned(),
        errors: Vec::new(),
        quorum: Some(QuorumAnswer { members: members.to_vec(), alarms: Vec::new() }),
    }
}

/// What a learner answers: of itself only, since it reads nothing with quorum.
fn learner(id: u64) -> Answer {
    Answer { learner: true, quorum: None, ..answer(id, &[]) }
}

/// A cluster on record, all well.
fn cluster(voters: &[u64], learners: &[u64]) -> Observed {
    let mut observed = nothing();
    let members = list(voters, learners);
    for number in voters.iter().chain(learners) {
        let (name, id, joins) = (format!("main-{number}"), MemberId(*number), learners.contains(number));
        observed.volumes.insert(name.clone(), volume(&name, Some((CLUSTER, id))));
        observed.pods.insert(name.clone(), MemberPod { voter_label: !joins, ..pod(&name) });
        let answered = if joins { learner(*number) } else { answer(*number, &members) };
        observed.survey.insert(name.clone(), Ok(answered));
        if joins {
            observed.record.joining.insert(name.clone());
        }
        observed.record.next_serial = observed.record.next_serial.max(i32::try_from(*number).unwrap() + 1);
        observed.record.members.insert(name, id);
    }
    let budget = json!({
        "metadata": {"generation": 1},
        "spec": {"minAvailable": 3},
        "status": {"observedGeneration": 1, "expectedPods": voters.len()},
    });
    observed.children.insert(("PodDisruptionBudget", "main".to_owned()), budget);
    observed.record.cluster_id = Some(CLUSTER);
    observed.record.bootstrap = Some(bootstrap());
    observed
}

/// Three members on record, all well.
pub(crate) fn healthy() -> Observed {
    cluster(&[0, 1, 2], &[])
}

fn bootstrap() -> BootstrapStatus {
    BootstrapStatus { incarnation: 0, serials: vec![0, 1, 2], token: format!("test/main/{UID}") }
}

pub(crate) fn created<'a>(plan: &'a Plan, wanted: &str) -> Vec<&'a Value> {
    let of_kind = |ensure: &'a Ensure| {
        let Ensure::Create { kind, manifest } = ensure else { return None };
        (*kind == wanted).then_some(manifest)
    };
    plan.ensure.iter().filter_map(of_kind).collect()
}

fn name_of(manifest: &Value) -> &str {
    manifest["metadata"]["name"].as_str().unwrap()
}

fn reasons(plan: &Plan) -> Vec<Reason> {
    plan.findings.iter().map(|finding| finding.reason).collect()
}

#[test]
fn a_healthy_cluster_is_left_alone_but_for_what_it_lacks() {
    let plan = plan(&desired(&json!({}), &json!({})), &healthy());
    assert!(created(&plan, "Pod").is_empty() && created(&plan, "PersistentVolumeClaim").is_empty());
    assert_eq!(plan.step, None);
}

#[test]
fn the_first_start_is_on_record_before_any_child_exists() {
    let plan = plan(&desired(&json!({}), &json!({"replicas": 5})), &nothing());
    let record = plan.record.unwrap();
    assert_eq!(record.bootstrap.unwrap().serials, [0, 1, 2, 3, 4]);
    assert_eq!((plan.ensure.len(), plan.step), (0, None));
}

#[test]
fn serials_of_volumes_that_exist_are_never_used_again() {
    let mut observed = nothing();
    let foreign = Volume { cluster_uid: Some(OTHER_UID.to_owned()), ..volume("main-4", None) };
    observed.volumes.insert("main-4".to_owned(), foreign);
    let record = plan(&desired(&json!({}), &json!({})), &observed).record.unwrap();
    assert_eq!(record.bootstrap.unwrap().serials, [5, 6, 7]);
}

#[test]
fn an_edit_of_replicas_during_the_first_start_changes_nothing() {
    let mut observed = nothing();
    observed.record.bootstrap = Some(bootstrap());
    let plan = plan(&desired(&json!({}), &json!({"replicas": 5})), &observed);
    let volumes: Vec<&str> = created(&plan, "PersistentVolumeClaim").into_iter().map(name_of).collect();
    assert_eq!(volumes, ["main-0", "main-1", "main-2"]);
}

#[test]
fn the_cluster_is_on_record_only_when_every_volume_carries_the_same_id() {
    let desired = desired(&json!({}), &json!({}));
    let mut observed = healthy();
    observed.record = Record { bootstrap: Some(bootstrap()), ..Record::default() };
    observed.survey.clear();
    observed.volumes.get_mut("main-2").unwrap().identity = None;
    assert_eq!(plan(&desired, &observed).record, None);
    observed.volumes.get_mut("main-2").unwrap().identity = Some((CLUSTER, MemberId(2)));
    assert_eq!(plan(&desired, &observed).record.unwrap().cluster_id, Some(CLUSTER));
}

#[test]
fn all_pods_gone_are_all_made_again_at_once_also_without_quorum() {
    let mut observed = healthy();
    observed.pods.clear();
    observed.survey.clear();
    let plan = plan(&desired(&json!({}), &json!({})), &observed);
    let pods = created(&plan, "Pod");
    assert_eq!(pods.len(), 3);
    for pod in pods {
        let text = pod.to_string();
        assert!(text.contains("--initial-cluster-state=existing"), "{text}");
        assert_eq!(variable(pod, "QUORATE_EXPECT_STAMP"), Some("true"));
        assert_eq!(variable(pod, "QUORATE_CLUSTER_ID"), Some("c1"));
    }
}

#[test]
fn a_volume_that_is_gone_is_not_replaced_by_an_empty_one() {
    let desired = desired(&json!({}), &json!({}));
    let mut observed = healthy();
    observed.volumes.remove("main-1");
    observed.pods.remove("main-1");
    let one = plan(&desired, &observed);
    assert!(created(&one, "PersistentVolumeClaim").is_empty() && created(&one, "Pod").is_empty());
    assert!(reasons(&one).contains(&Reason::VolumeMissing));
    observed.volumes.clear();
    observed.pods.clear();
    let all = plan(&desired, &observed);
    assert!(created(&all, "PersistentVolumeClaim").is_empty() && created(&all, "Pod").is_empty());
    assert!(reasons(&all).contains(&Reason::AllMembersLost));
}

#[test]
fn a_pod_that_ended_is_deleted_under_its_uid_and_resource_version() {
    let mut observed = healthy();
    let ended = MemberPod { phase: "Succeeded".to_owned(), ready: false, running: false, ..pod("main-1") };
    observed.pods.insert("main-1".to_owned(), ended);
    observed.survey.remove("main-1");
    let Some(Step::DeletePod(premise)) = plan(&desired(&json!({}), &json!({})), &observed).step else {
        panic!("the Pod stays");
    };
    assert_eq!((premise.uid.as_str(), premise.resource_version.as_str()), ("pod-main-1", "9"));
}

#[test]
fn a_foreign_volume_is_adopted_only_by_its_uid() {
    let mut observed = nothing();
    for number in 0..3 {
        let name = format!("main-{number}");
        let identity = Some((CLUSTER, MemberId(number)));
        let kept = Volume { cluster_uid: Some(OTHER_UID.to_owned()), ..volume(&name, identity) };
        observed.volumes.insert(name, kept);
    }
    let adopt = |uid: &str| plan(&desired(&json!({"quorate.dev/adopt": uid}), &json!({})), &observed);
    assert_eq!(adopt(OTHER_UID).record.unwrap().cluster_id, Some(CLUSTER));
    let wrong = adopt("uid-of-nobody");
    assert_eq!((wrong.record, wrong.ensure.len()), (None, 0));
    assert_eq!(reasons(&Plan { findings: wrong.findings, ..Plan::default() }), [Reason::NothingToAdopt]);
}

fn variable<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    let containers = pod["spec"]["containers"].as_array()?;
    let variables = containers.iter().flat_map(|container| container["env"].as_array().into_iter().flatten());
    variables.filter(|variable| variable["name"] == name).find_map(|variable| variable["value"].as_str())
}

/// A picture in which anything may be so.
fn any_picture(random: &mut StdRng) -> (Desired, Observed) {
    let annotations =
        if random.random_bool(0.2) { json!({"quorate.dev/adopt": OTHER_UID}) } else { json!({}) };
    let replicas = *[1, 3, 5, 7].choose(random).unwrap();
    let mut desired =
        desired(&annotations, &json!({"replicas": replicas, "paused": random.random_bool(0.05)}));
    desired.deleting = random.random_bool(0.05);
    let mut observed = nothing();
    let (mut voters, mut learners): (Vec<u64>, Vec<u64>) = (vec![0, 1, 2], Vec::new());
    if random.random_bool(0.9) {
        observed.record.bootstrap = Some(bootstrap());
    }
    if observed.record.bootstrap.is_some() && random.random_bool(0.8) {
        voters = (0..random.random_range(1..6)).collect();
        let first = voters.len() as u64;
        learners = (first..first + random.random_range(0..3)).collect();
        observed = cluster(&voters, &learners);
        if random.random_bool(0.5) {
            let mut observed = almost_well(random, observed);
            any_requests(random, &mut observed);
            return (desired, observed);
        }
        observed.pods.clear();
        observed.survey.clear();
        observed.volumes.clear();
    }
    let members = list(&voters, &learners);
    for number in 0..6 {
        let name = format!("main-{number}");
        if random.random_bool(0.8) {
            observed.volumes.insert(name.clone(), any_volume(random, &name, number));
        }
        if random.random_bool(0.6) {
            observed.pods.insert(name.clone(), any_pod(random, &name));
        }
        match random.random_range(0..3) {
            0 if learners.contains(&number) => drop(observed.survey.insert(name, Ok(learner(number)))),
            0 => drop(observed.survey.insert(name, Ok(answer(number, &members)))),
            1 => drop(observed.survey.insert(name, Err("no answer within 3s".to_owned()))),
            _ => {}
        }
    }
    any_requests(random, &mut observed);
    if random.random_bool(0.1) {
        observed.missing_storage_class = Some("standard".to_owned());
    }
    (desired, observed)
}

/// Replacements in any state, marks of theirs on any volume, and any hashes.
fn any_requests(random: &mut StdRng, observed: &mut Observed) {
    let phases = [Phase::Pending, Phase::Running, Phase::Complete];
    let strategies =
        [ReplacementStrategy::Auto, ReplacementStrategy::AddFirst, ReplacementStrategy::RemoveFirst];
    let volumes = [ReplacementVolume::Auto, ReplacementVolume::Keep, ReplacementVolume::New];
    for number in 0..random.random_range(0..3) {
        let member = format!("main-{}", random.random_range(0..6));
        let spec = json!({
            "clusterRef": {"name": "main"}, "member": member,
            "strategy": strategies.choose(random).unwrap(), "volume": volumes.choose(random).unwrap(),
        });
        let id = observed.record.members.get(&member).copied().unwrap_or(MemberId(99));
        let status = json!({
            "phase": phases.choose(random).unwrap(), "member": member, "memberID": id.to_string(),
            "strategy": strategies[1..].choose(random).unwrap(), "volume": volumes[1..].choose(random).unwrap(),
        });
        let object = json!({
            "apiVersion": "quorate.dev/v1alpha1", "kind": "EtcdMemberReplacement",
            "metadata": {"name": format!("ask-{number}")}, "spec": spec, "status": status,
        });
        observed.requests.push(Request::of(&serde_json::from_value(object).unwrap()));
    }
    for volume in observed.volumes.values_mut() {
        let Some((_, id)) = volume.identity else { continue };
        volume.intent = match random.random_range(0..10) {
            0 => Some(Intent::Wipe(id)),
            1 => Some(Intent::Leave(id)),
            2 => Some(Intent::Compare(id)),
            _ => None,
        };
    }
    if random.random_bool(0.2) {
        let mut hash =
            |id: &MemberId| (*id, KeyHash { hash: random.random_range(0..2), compact_revision: 0 });
        observed.hashes = Some(observed.record.members.values().map(&mut hash).collect());
    }
}

/// A cluster of which one or two things are not as they should be.
fn almost_well(random: &mut StdRng, mut observed: Observed) -> Observed {
    for _ in 0..random.random_range(0..3) {
        let name = format!("main-{}", random.random_range(0..7));
        match random.random_range(0..12) {
            0 => drop(observed.survey.insert(name, Err("no answer within 3s".to_owned()))),
            1 => drop(observed.pods.remove(&name)),
            2 => drop(observed.volumes.remove(&name)),
            3 => drop(observed.volumes.insert(name.clone(), volume(&name, None))),
            4 => drop(observed.record.members.remove(&name)),
            5 => observed.record.joining.clear(),
            6 => observed.children.clear(),
            7 => {
                let retired =
                    Volume { state: VolumeState::Retired, ..volume(&name, Some((CLUSTER, MemberId(77)))) };
                observed.volumes.insert(name, retired);
                observed.record.next_serial = 7;
            }
            8 => {
                let stranger = ListedMember {
                    peer_urls: vec!["http://elsewhere:2380".to_owned()],
                    ..list(&[99], &[]).remove(0)
                };
                for answer in observed.survey.values_mut().flatten() {
                    answer.quorum.iter_mut().for_each(|quorum| quorum.members.push(stranger.clone()));
                }
            }
            9 => {
                let leader = Some(MemberId(random.random_range(0..6)));
                observed.survey.values_mut().flatten().for_each(|answer| answer.leader = leader);
            }
            10 => {
                if let Some(Ok(answer)) = observed.survey.get_mut(&name) {
                    answer.applied_index = 0;
                }
                observed
                    .survey
                    .values_mut()
                    .flatten()
                    .filter(|answer| !answer.learner)
                    .for_each(|answer| answer.applied_index += 5000);
            }
            _ => {
                if let Some(pod) = observed.pods.get_mut(&name) {
                    pod.voter_label = !pod.voter_label;
                }
            }
        }
    }
    observed
}

fn any_volume(random: &mut StdRng, name: &str, number: u64) -> Volume {
    let cluster = if random.random_bool(0.9) { CLUSTER } else { ClusterId(0xbad) };
    let identity = random.random_bool(0.6).then_some((cluster, MemberId(number)));
    let owner = [Some(UID), Some(UID), Some(UID), Some(OTHER_UID), None].choose(random).unwrap();
    Volume {
        cluster_uid: owner.map(str::to_owned),
        bound: random.random_bool(0.8),
        deleting: random.random_bool(0.1),
        ..volume(name, identity)
    }
}

fn any_pod(random: &mut StdRng, name: &str) -> MemberPod {
    let causes = ["DataLost", "RolledBack", "VolumeInUse"];
    let report = GuardReport {
        cause: random.random_bool(0.5).then(|| (*causes.choose(random).unwrap()).to_owned()),
        ..GuardReport::default()
    };
    let owner = [UID, UID, UID, OTHER_UID].choose(random).unwrap();
    MemberPod {
        owner_uid: Some((*owner).to_owned()),
        phase: (*["Pending", "Running", "Running", "Succeeded", "Failed"].choose(random).unwrap()).to_owned(),
        deleting: random.random_bool(0.1),
        ready: random.random_bool(0.4),
        running: random.random_bool(0.6),
        voter_label: random.random_bool(0.5),
        last_exit: random.random_bool(0.3).then_some(report),
        ..pod(name)
    }
}

/// Which invariant of its kind is broken, if one is.
type Rule = fn(&Desired, &Observed, &Plan) -> Option<&'static str>;

/// The first invariant that a plan breaks.
fn broken(desired: &Desired, observed: &Observed, plan: &Plan) -> Option<&'static str> {
    let rules: [Rule; 6] = [restraint, foundation, deletions, creations, records_on_objects, membership];
    rules.iter().find_map(|rule| rule(desired, observed, plan))
}

fn when(broken: bool, rule: &'static str) -> Option<&'static str> {
    broken.then_some(rule)
}

fn is_usable(desired: &Desired, volume: &Volume) -> bool {
    let owner = volume.cluster_uid.as_deref();
    owner == Some(UID) || (owner.is_some() && owner == desired.adopt.as_deref())
}

fn restraint(desired: &Desired, _: &Observed, plan: &Plan) -> Option<&'static str> {
    let acts = plan.record.is_some() || !plan.ensure.is_empty() || plan.step.is_some();
    let others = !plan.ensure.is_empty() || plan.step.is_some();
    when((desired.deleting || desired.spec.paused) && acts, "acts while paused or deleted")
        .or_else(|| when(plan.record.is_some() && others, "a pass that stores a record does something else"))
}

fn foundation(desired: &Desired, observed: &Observed, plan: &Plan) -> Option<&'static str> {
    let known = observed.record.cluster_id.is_some()
        || observed.record.member_names("main").iter().any(|name| {
            let volume = observed.volumes.get(name).filter(|volume| is_usable(desired, volume));
            volume.is_some_and(|volume| volume.identity.is_some())
        });
    let founds = created(plan, "Pod").iter().any(|pod| pod.to_string().contains("cluster-state=new"));
    let recorded = plan.record.as_ref().and_then(|record| record.cluster_id);
    let rewritten = plan.record.as_ref().is_some_and(|record| {
        observed.record.cluster_id.is_some() && record.cluster_id != observed.record.cluster_id
    });
    let unproven = recorded.filter(|_| observed.record.cluster_id.is_none()).is_some_and(|id| {
        let carries = |volume: &&Volume| volume.identity.is_some_and(|(cluster, _)| cluster == id);
        observed.volumes.values().filter(carries).count() == 0
    });
    when(known && founds, "founds a cluster that exists")
        .or_else(|| when(rewritten, "rewrites the record of a cluster"))
        .or_else(|| when(unproven, "records a cluster that no volume carries"))
}

fn deletions(_: &Desired, observed: &Observed, plan: &Plan) -> Option<&'static str> {
    match plan.step.as_ref()? {
        Step::DeletePod(premise) => {
            let Some(pod) = observed.pods.get(&premise.name) else { return Some("deletes a Pod unseen") };
            let listed = any_list(observed);
            let votes = listed.is_empty()
                || listed.iter().any(|member| member.name == premise.name && !member.learner);
            let answers = votes && observed.survey.get(&premise.name).is_some_and(Result::is_ok);
            let asked_for = observed.requests.iter().any(|request| {
                let id = listed
                    .iter()
                    .find(|member| member.name == premise.name)
                    .map(|member| member.id.to_string());
                let status = &request.status;
                let first = status.strategy == Some(ReplacementStrategy::RemoveFirst);
                request.phase() == Phase::Running && first && id.is_some() && status.member_id == id
            });
            let ended = pod.phase == "Succeeded" || pod.phase == "Failed";
            let abandoned = observed.record.cluster_id.is_none();
            when(pod.owner_uid.as_deref() != Some(UID), "deletes another's Pod")
                .or_else(|| {
                    let serves = votes && pod.ready || answers;
                    when(serves && !ended && !abandoned && !asked_for, "deletes a Pod that serves")
                })
                .or_else(|| when(pod.uid != premise.uid, "deletes without the UID"))
                .or_else(|| when(pod.resource_version != premise.resource_version, "deletes on a stale look"))
        }
        Step::Change(_) => None,
        Step::DeleteVolume(premise, unlisted) => {
            let Some(volume) = observed.volumes.get(&premise.name) else {
                return Some("deletes a volume that nobody saw");
            };
            let listed = any_list(observed);
            let member = listed.iter().any(|member| {
                member.name == premise.name || volume.identity.is_some_and(|(_, id)| id == member.id)
            });
            let unproven = unlisted.as_ref().is_none_or(|unlisted| unlisted.peer_url.is_empty());
            when(member && volume.identity.is_some(), "deletes a volume that holds a member")
                .or_else(|| when(volume.identity.is_some() && unproven, "deletes a volume without evidence"))
                .or_else(|| when(volume.cluster_uid.as_deref() != Some(UID), "deletes another's volume"))
                .or_else(|| when(volume.uid != premise.uid, "deletes without the UID"))
        }
    }
}

fn creations(desired: &Desired, observed: &Observed, plan: &Plan) -> Option<&'static str> {
    let members = observed.record.member_names("main");
    let strange = |manifest: &&Value| {
        let new = names::serial("main", name_of(manifest))
            .is_some_and(|serial| serial >= observed.record.next_serial);
        let waiting = observed
            .volumes
            .get(name_of(manifest))
            .is_some_and(|volume| volume.state == VolumeState::Joining);
        let joins = observed.record.cluster_id.is_some() && (new || waiting);
        !joins && !members.iter().any(|name| name == name_of(manifest))
    };
    let volumes = created(plan, "PersistentVolumeClaim");
    let pods = created(plan, "Pod");
    let unfounded = |pod: &&Value| {
        let volume = observed.volumes.get(name_of(pod));
        !volume.is_some_and(|volume| is_usable(desired, volume) && !volume.deleting)
    };
    let trusting = |pod: &&Value| {
        let known = observed.volumes.get(name_of(pod)).is_some_and(|volume| volume.identity.is_some());
        known && variable(pod, "QUORATE_EXPECT_STAMP") != Some("true")
    };
    when(volumes.iter().chain(&pods).any(strange), "makes something that is no member's")
        .or_else(|| {
            let used = |volume: &&Value| observed.record.members.contains_key(name_of(volume));
            when(observed.record.cluster_id.is_some() && volumes.iter().any(used), "starts a member empty")
        })
        .or_else(|| when(pods.iter().any(unfounded), "puts a Pod on a volume that is not ours to use"))
        .or_else(|| {
            when(pods.iter().any(|pod| observed.pods.contains_key(name_of(pod))), "makes a Pod twice")
        })
        .or_else(|| when(pods.iter().any(trusting), "lets a member start on less than its record"))
}

fn records_on_objects(desired: &Desired, observed: &Observed, plan: &Plan) -> Option<&'static str> {
    plan.ensure.iter().find_map(|ensure| {
        let Ensure::Apply { kind, manifest } = ensure else { return None };
        let name = name_of(manifest);
        match *kind {
            "Pod" => {
                let voter = manifest["metadata"]["labels"][names::ROLE] == names::VOTER;
                let known = observed.volumes.get(name).is_some_and(|volume| volume.identity.is_some());
                let joins = any_list(observed).iter().any(|member| member.name == name && member.learner);
                let recorded = observed.record.cluster_id.is_some() && known && !joins;
                when(voter && !recorded, "lets clients in before there is a record")
            }
            "PersistentVolumeClaim" => {
                let ours = observed.volumes.get(name).is_some_and(|volume| is_usable(desired, volume));
                when(!ours, "writes on another's volume")
            }
            _ => None,
        }
    })
}

/// The member list as anybody on record knows it.
fn any_list(observed: &Observed) -> Vec<ListedMember> {
    observed.listed().unwrap_or_default().to_vec()
}

/// Changes of the member list against the arithmetic of `reliability.md` I-1, I-2, I-4 and I-8.
fn membership(_: &Desired, observed: &Observed, plan: &Plan) -> Option<&'static str> {
    let Step::Change(change) = plan.step.as_ref()? else { return None };
    let mut members = any_list(observed);
    let mut healthy: BTreeSet<MemberId> = observed
        .known_answers()
        .filter(|(_, answer)| answer.quorum.is_some())
        .map(|(_, answer)| answer.member_id)
        .collect();
    let ours =
        |member: &ListedMember| member.peer_urls.iter().all(|url| url.contains(".main-peers.test.svc"));
    let was_whole = members.iter().all(|member| member.learner || healthy.contains(&member.id));
    when(change.members != members, "changes the list on another premise")
        .or_else(|| when(!members.iter().all(ours), "changes the list while a stranger is in it"))
        .or_else(|| {
            change
                .calls
                .iter()
                .find_map(|call| one_call(observed, call, &mut members, &mut healthy, was_whole))
        })
}

fn one_call(
    observed: &Observed,
    call: &Call,
    members: &mut Vec<ListedMember>,
    healthy: &mut BTreeSet<MemberId>,
    was_whole: bool,
) -> Option<&'static str> {
    let voters = |members: &[ListedMember]| -> Vec<MemberId> {
        members.iter().filter(|member| !member.learner).map(|member| member.id).collect()
    };
    let alive = |members: &[ListedMember], healthy: &BTreeSet<MemberId>| {
        voters(members).iter().filter(|id| healthy.contains(id)).count()
    };
    let leader = observed.known_answers().find_map(|(_, answer)| answer.leader);
    match call {
        Call::AddLearner(url) => {
            let learners = members.iter().filter(|member| member.learner).count();
            let listed = members.iter().any(|member| member.peer_urls.contains(url));
            members.push(ListedMember {
                peer_urls: vec![url.clone()],
                learner: true,
                ..list(&[1000], &[]).remove(0)
            });
            when(learners >= 2, "adds a third learner")
                .or_else(|| when(listed, "adds a member twice"))
                .or_else(|| when(!was_whole && voters(members).len() % 2 == 1, "grows while a voter is down"))
        }
        Call::Promote(id) => {
            let member = members.iter_mut().find(|member| member.id == *id)?;
            let noted = observed
                .volumes
                .get(&member.name)
                .is_some_and(|volume| volume.identity == Some((CLUSTER, *id)));
            let recorded = observed.record.members.get(&member.name) == Some(id);
            let level = observed
                .survey
                .get(&member.name)
                .is_some_and(|answer| answer.as_ref().is_ok_and(|answer| answer.applied_index > 0));
            member.learner = false;
            if level {
                healthy.insert(*id);
            }
            when(!noted || !recorded, "promotes who is not on record")
                .or_else(|| when(!level, "promotes who lacks the data"))
                .or_else(|| {
                    when(alive(members, healthy) < quorum(voters(members).len()), "promotes away its quorum")
                })
        }
        Call::Remove(id) => {
            let was_voter = voters(members).contains(id);
            members.retain(|member| member.id != *id);
            let others_down = members.iter().any(|member| !member.learner && !healthy.contains(&member.id));
            when(was_voter && voters(members).is_empty(), "removes the last voter")
                .or_else(|| when(was_voter && leader == Some(*id), "removes the leader"))
                .or_else(|| {
                    when(
                        was_voter && healthy.contains(id) && others_down,
                        "removes a voter while another is down",
                    )
                })
                .or_else(|| {
                    when(alive(members, healthy) < quorum(voters(members).len()), "removes away its quorum")
                })
        }
        Call::MoveLeader(id) => when(!healthy.contains(id), "makes a silent member lead"),
        Call::Nudge => None,
        Call::Disarm(id, _) => {
            when(members.iter().any(|member| member.id == *id), "disarms a member's alarm")
        }
    }
}

#[test]
fn no_picture_makes_the_planner_break_an_invariant() {
    let mut acted = 0;
    for seed in 0..seeds() {
        let (desired, observed) = any_picture(&mut StdRng::seed_from_u64(seed));
        let plan = plan(&desired, &observed);
        acted += usize::from(plan.step.is_some() || !created(&plan, "Pod").is_empty());
        let rule = broken(&desired, &observed, &plan);
        assert_eq!(rule, None, "seed {seed}: {desired:#?}\n{observed:#?}\n{plan:#?}");
    }
    assert!(acted > 1000, "only {acted} plans did anything: the search looks at too little");
}

/// What a bad planner would do, made out of what the good one does.
type Bug = fn(&Desired, &Observed, Plan) -> Plan;

/// The Pod or the volume that a bad step would take.
fn premise(name: &str, uid: &str, resource_version: &str) -> Premise {
    let (name, uid) = (name.to_owned(), uid.to_owned());
    Premise { name, uid, resource_version: resource_version.to_owned(), why: String::new() }
}

fn delete_pod(observed: &Observed, plan: Plan, wanted: impl Fn(&MemberPod) -> bool) -> Plan {
    let pod = observed.pods.iter().find(|(_, pod)| wanted(pod));
    let step = pod.map(|(name, pod)| Step::DeletePod(premise(name, &pod.uid, &pod.resource_version)));
    Plan { step, ..plan }
}

fn delete_volume(observed: &Observed, plan: Plan, wanted: impl Fn(&Volume) -> bool) -> Plan {
    let volume = observed.volumes.iter().find(|(_, volume)| wanted(volume));
    let step = volume
        .map(|(name, volume)| Step::DeleteVolume(premise(name, &volume.uid, &volume.resource_version), None));
    Plan { step, ..plan }
}

fn named<'a>(names: impl IntoIterator<Item = &'a String>) -> Vec<Value> {
    names.into_iter().map(|name| json!({"metadata": {"name": name}})).collect()
}

fn create(mut plan: Plan, kind: &'static str, manifests: Vec<Value>) -> Plan {
    plan.ensure.extend(manifests.into_iter().map(|manifest| Ensure::Create { kind, manifest }));
    plan
}

fn apply(mut plan: Plan, kind: &'static str, manifests: Vec<Value>) -> Plan {
    plan.ensure.extend(manifests.into_iter().map(|manifest| Ensure::Apply { kind, manifest }));
    plan
}

fn rewritten(mut plan: Plan, from: &str, to: &str) -> Plan {
    for ensure in &mut plan.ensure {
        if let Ensure::Create { manifest, .. } = ensure {
            *manifest = serde_json::from_str(&manifest.to_string().replace(from, to)).unwrap();
        }
    }
    plan
}

fn stale(mut plan: Plan, change: fn(&mut Premise)) -> Plan {
    if let Some(Step::DeletePod(premise) | Step::DeleteVolume(premise, _)) = &mut plan.step {
        change(premise);
    }
    plan
}

/// A change of the list of a bad planner: a good premise, and whatever calls.
fn change(observed: &Observed, plan: Plan, calls: Vec<Call>) -> Plan {
    let change = Change {
        via: "main-0".to_owned(),
        calls,
        cluster_id: CLUSTER,
        members: any_list(observed),
        leader: None,
        why: String::new(),
    };
    Plan { step: Some(Step::Change(change)), ..plan }
}

fn listed(observed: &Observed, wanted: impl Fn(&ListedMember) -> bool) -> Vec<MemberId> {
    any_list(observed).into_iter().filter(|member| wanted(member)).map(|member| member.id).collect()
}

fn remove(observed: &Observed, plan: Plan, count: usize) -> Plan {
    let voters = listed(observed, |member| !member.learner);
    change(observed, plan, voters.into_iter().rev().take(count).map(Call::Remove).collect())
}

fn promote(observed: &Observed, plan: Plan) -> Plan {
    let learners = listed(observed, |member| member.learner);
    change(observed, plan, learners.into_iter().map(Call::Promote).collect())
}

fn add(observed: &Observed, plan: Plan, number: u64) -> Plan {
    let url = list(&[number], &[]).remove(0).peer_urls.remove(0);
    change(observed, plan, vec![Call::AddLearner(url)])
}

const BUGS: [(&str, Bug); 35] = [
    ("acts while paused or deleted", |_, observed, plan| create(plan, "Pod", named(observed.volumes.keys()))),
    ("a pass that stores a record does something else", |_, observed, plan| {
        create(plan, "Pod", named(observed.volumes.keys()))
    }),
    ("founds a cluster that exists", |_, _, plan| rewritten(plan, "state=existing", "state=new")),
    ("records a cluster that no volume carries", |_, _, _| {
        let record = Record { cluster_id: Some(ClusterId(0xdead)), ..Record::default() };
        Plan { record: Some(record), ..Plan::default() }
    }),
    ("deletes a Pod unseen", |_, _, plan| Plan {
        step: Some(Step::DeletePod(premise("main-9", "pod-main-9", "9"))),
        ..plan
    }),
    ("deletes another's Pod", |_, observed, plan| {
        delete_pod(observed, plan, |pod| pod.owner_uid.as_deref() != Some(UID))
    }),
    ("deletes a Pod that serves", |_, observed, plan| delete_pod(observed, plan, |pod| pod.ready)),
    ("deletes without the UID", |_, _, plan| stale(plan, |premise| premise.uid.clear())),
    ("deletes on a stale look", |_, _, plan| stale(plan, |premise| premise.resource_version.clear())),
    ("deletes a volume that holds a member", |_, observed, plan| {
        delete_volume(observed, plan, |volume| volume.identity.is_some())
    }),
    ("deletes a volume without evidence", |_, observed, plan| {
        delete_volume(observed, plan, |volume| volume.identity.is_some_and(|(_, id)| id == MemberId(77)))
    }),
    ("changes the list on another premise", |_, _, mut plan| {
        if let Some(Step::Change(change)) = &mut plan.step {
            change.members.clear();
        }
        plan
    }),
    ("changes the list while a stranger is in it", |_, observed, plan| add(observed, plan, 50)),
    ("adds a third learner", |_, observed, plan| add(observed, plan, 50)),
    ("adds a member twice", |_, observed, plan| add(observed, plan, 0)),
    ("grows while a voter is down", |_, observed, plan| add(observed, plan, 50)),
    ("promotes who is not on record", |_, observed, plan| promote(observed, plan)),
    ("promotes who lacks the data", |_, observed, plan| promote(observed, plan)),
    ("promotes away its quorum", |_, observed, plan| promote(observed, plan)),
    ("removes the leader", |_, observed, plan| remove(observed, plan, 7)),
    ("removes a voter while another is down", |_, observed, plan| remove(observed, plan, 1)),
    ("removes away its quorum", |_, observed, plan| {
        let healthy = |member: &ListedMember| observed.survey.get(&member.name).is_some_and(Result::is_ok);
        let down = listed(observed, |member| !member.learner && !healthy(member));
        change(observed, plan, down.into_iter().take(1).map(Call::Remove).collect())
    }),
    ("removes the last voter", |_, observed, plan| remove(observed, plan, 7)),
    ("makes a silent member lead", |_, observed, plan| {
        change(observed, plan, vec![Call::MoveLeader(MemberId(6))])
    }),
    ("disarms a member's alarm", |_, observed, plan| {
        change(observed, plan, vec![Call::Disarm(MemberId(0), quorate::etcd::survey::Alarm::NoSpace)])
    }),
    ("rewrites the record of a cluster", |_, _, _| Plan {
        record: Some(Record::default()),
        ..Plan::default()
    }),
    ("deletes another's volume", |_, observed, plan| {
        let is_anothers = |volume: &Volume| volume.cluster_uid.as_deref() != Some(UID);
        delete_volume(observed, plan, |volume| is_anothers(volume) && volume.identity.is_none())
    }),
    ("makes something that is no member's", |_, observed, plan| {
        create(plan, "Pod", named(observed.volumes.keys()))
    }),
    ("starts a member empty", |_, observed, plan| {
        create(plan, "PersistentVolumeClaim", named(observed.record.members.keys()))
    }),
    ("puts a Pod on a volume that is not ours to use", |_, observed, plan| {
        create(plan, "Pod", named(observed.record.members.keys()))
    }),
    ("lets a member start on less than its record", |_, _, plan| {
        rewritten(plan, "QUORATE_EXPECT_STAMP", "QUORATE_FORGOTTEN")
    }),
    ("lets clients in before there is a record", |_, observed, plan| {
        let voter = json!({names::ROLE: names::VOTER});
        let metadata = observed.pods.keys().map(|name| json!({"metadata": {"name": name, "labels": voter}}));
        apply(plan, "Pod", metadata.collect())
    }),
    ("deletes a volume that nobody saw", |_, _, plan| Plan {
        step: Some(Step::DeleteVolume(premise("main-9", "volume-main-9", "7"), None)),
        ..plan
    }),
    ("makes a Pod twice", |desired, observed, plan| {
        let usable = |name: &&String| {
            let volume = observed.volumes.get(*name);
            volume.is_some_and(|volume| is_usable(desired, volume) && !volume.deleting)
        };
        create(plan, "Pod", named(observed.record.members.keys().filter(usable)))
    }),
    ("writes on another's volume", |_, observed, plan| {
        apply(plan, "PersistentVolumeClaim", named(observed.volumes.keys()))
    }),
];

#[test]
fn a_planner_that_breaks_an_invariant_is_found() {
    for (rule, bug) in BUGS {
        let found = (0..seeds()).any(|seed| {
            let (desired, observed) = any_picture(&mut StdRng::seed_from_u64(seed));
            let bad = bug(&desired, &observed, plan(&desired, &observed));
            broken(&desired, &observed, &bad) == Some(rule)
        });
        assert!(found, "the search is blind to a planner that {rule}");
    }
}

#[test]
fn every_invariant_has_a_planner_that_breaks_it() {
    let rules: BTreeSet<&str> = BUGS.iter().map(|(rule, _)| *rule).collect();
    let source = include_str!("plan.rs");
    let (_, checks) = source.split_once("fn restraint(").unwrap();
    let (checks, _) = checks.split_once("\n#[test]").unwrap();
    let named: BTreeSet<&str> =
        checks.split('"').skip(1).step_by(2).filter(|text| text.contains(' ')).collect();
    assert_eq!(named, rules, "left: invariants that are checked, right: those with a planted bug");
}
