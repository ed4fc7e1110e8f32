//! The planner against any picture that may be seen: no invariant is broken, whatever the picture; and for each
//! invariant a planner that breaks it is found by the same search.
//!
//! A picture here need not be one that can come about. The planner is total, so it must be harmless on all of them.

use std::collections::{BTreeMap, BTreeSet};

use quorate::api::EtcdCluster;
use quorate::api::cluster::BootstrapStatus;
use quorate::api::reason::Reason;
use quorate::etcd::survey::{Answer, ListedMember, QuorumAnswer};
use quorate::etcd::{ClusterId, MemberId};
use quorate::operator::cluster::desired::Desired;
use quorate::operator::cluster::observed::{GuardReport, MemberPod, Observed, Record, Volume};
use quorate::operator::cluster::plan::{Ensure, Plan, Premise, Step, plan};
use quorate::operator::names;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

const UID: &str = "uid-of-ours";
const OTHER_UID: &str = "uid-of-another";
const CLUSTER: ClusterId = ClusterId(0xc1);
/// Pictures looked at for each rule: 10,000 take a second.
const SEEDS: u64 = 10_000;

fn desired(annotations: &Value, spec: &Value) -> Desired {
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

fn nothing() -> Observed {
    Observed {
        record: Record::default(),
        volumes: BTreeMap::new(),
        pods: BTreeMap::new(),
        credentials: quorate::operator::cluster::credentials::Credentials::default(),
        children: BTreeMap::new(),
        missing_storage_class: None,
        survey: BTreeMap::new(),
    }
}

fn volume(name: &str, identity: Option<(ClusterId, MemberId)>) -> Volume {
    Volume {
        uid: format!("volume-{name}"),
        resource_version: "7".to_owned(),
        cluster_uid: Some(UID.to_owned()),
        owned: false,
        bound: true,
        deleting: false,
        storage_class: Some("standard".to_owned()),
        identity,
        incarnation: 0,
    }
}

fn pod(name: &str) -> MemberPod {
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

fn answer(id: u64) -> Answer {
    let members = (0..3).map(|number| ListedMember {
        id: MemberId(number),
        name: format!("main-{number}"),
        peer_urls: Vec::new(),
        learner: false,
    });
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
        quorum: Some(QuorumAnswer { members: members.collect(), alarms: Vec::new() }),
    }
}

/// Three members on record, all well.
fn healthy() -> Observed {
    let mut observed = nothing();
    for number in 0..3 {
        let (name, id) = (format!("main-{number}"), MemberId(number));
        observed.volumes.insert(name.clone(), volume(&name, Some((CLUSTER, id))));
        observed.pods.insert(name.clone(), pod(&name));
        observed.survey.insert(name.clone(), Ok(answer(number)));
        observed.record.members.insert(name, id);
    }
    observed.record.cluster_id = Some(CLUSTER);
    observed.record.bootstrap = Some(bootstrap());
    observed
}

fn bootstrap() -> BootstrapStatus {
    BootstrapStatus { incarnation: 0, serials: vec![0, 1, 2], token: format!("test/main/{UID}") }
}

fn created<'a>(plan: &'a Plan, wanted: &str) -> Vec<&'a Value> {
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
    if random.random_bool(0.9) {
        observed.record.bootstrap = Some(bootstrap());
    }
    if observed.record.bootstrap.is_some() && random.random_bool(0.6) {
        observed.record.cluster_id = Some(CLUSTER);
        observed.record.members = (0..3).map(|number| (format!("main-{number}"), MemberId(number))).collect();
    }
    for number in 0..4 {
        let name = format!("main-{number}");
        if random.random_bool(0.8) {
            observed.volumes.insert(name.clone(), any_volume(random, &name, number));
        }
        if random.random_bool(0.6) {
            observed.pods.insert(name.clone(), any_pod(random, &name));
        }
        match random.random_range(0..3) {
            0 => drop(observed.survey.insert(name, Ok(answer(number)))),
            1 => drop(observed.survey.insert(name, Err("no answer within 3s".to_owned()))),
            _ => {}
        }
    }
    if random.random_bool(0.1) {
        observed.missing_storage_class = Some("standard".to_owned());
    }
    (desired, observed)
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
    let rules: [Rule; 5] = [restraint, foundation, deletions, creations, records_on_objects];
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
    let rewritten = observed.record.cluster_id.is_some() && plan.record.is_some();
    let unproven = recorded.is_some_and(|id| {
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
            let answers = observed.survey.get(&premise.name).is_some_and(Result::is_ok);
            let ended = pod.phase == "Succeeded" || pod.phase == "Failed";
            let abandoned = observed.record.cluster_id.is_none();
            when(pod.owner_uid.as_deref() != Some(UID), "deletes another's Pod")
                .or_else(|| when((pod.ready || answers) && !ended && !abandoned, "deletes a Pod that serves"))
                .or_else(|| when(pod.uid != premise.uid, "deletes without the UID"))
                .or_else(|| when(pod.resource_version != premise.resource_version, "deletes on a stale look"))
        }
        Step::DeleteVolume(premise) => {
            let Some(volume) = observed.volumes.get(&premise.name) else {
                return Some("deletes a volume that nobody saw");
            };
            when(volume.identity.is_some(), "deletes a volume that holds a member")
                .or_else(|| when(volume.cluster_uid.as_deref() != Some(UID), "deletes another's volume"))
                .or_else(|| when(volume.uid != premise.uid, "deletes without the UID"))
        }
    }
}

fn creations(desired: &Desired, observed: &Observed, plan: &Plan) -> Option<&'static str> {
    let members = observed.record.member_names("main");
    let strange = |manifest: &&Value| !members.iter().any(|name| name == name_of(manifest));
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
            when(!volumes.is_empty() && observed.record.cluster_id.is_some(), "starts a member empty")
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
                let recorded = observed.record.cluster_id.is_some() && known;
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

#[test]
fn no_picture_makes_the_planner_break_an_invariant() {
    let mut acted = 0;
    for seed in 0..SEEDS {
        let (desired, observed) = any_picture(&mut StdRng::seed_from_u64(seed));
        let plan = plan(&desired, &observed);
        acted += usize::from(plan.step.is_some() || !created(&plan, "Pod").is_empty());
        let rule = broken(&desired, &observed, &plan);
        assert_eq!(rule, None, "seed {seed}:\n{observed:#?}\n{plan:#?}");
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
    let step =
        volume.map(|(name, volume)| Step::DeleteVolume(premise(name, &volume.uid, &volume.resource_version)));
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
    if let Some(Step::DeletePod(premise) | Step::DeleteVolume(premise)) = &mut plan.step {
        change(premise);
    }
    plan
}

const BUGS: [(&str, Bug); 20] = [
    ("acts while paused or deleted", |_, observed, plan| create(plan, "Pod", named(observed.volumes.keys()))),
    ("a pass that stores a record does something else", |_, observed, plan| {
        create(plan, "Pod", named(observed.volumes.keys()))
    }),
    ("founds a cluster that exists", |_, _, plan| rewritten(plan, "state=existing", "state=new")),
    ("rewrites the record of a cluster", |_, _, _| Plan {
        record: Some(Record::default()),
        ..Plan::default()
    }),
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
        step: Some(Step::DeleteVolume(premise("main-9", "volume-main-9", "7"))),
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
        let found = (0..SEEDS).any(|seed| {
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
