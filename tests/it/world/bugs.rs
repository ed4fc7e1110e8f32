//! Planners that break an invariant, made out of the good one: wrappers around what it sees or what it decides. The
//! search must find each, or the invariant guards nothing. Each names the class of bug in other operators that it
//! stands for (`reliability.md` 2).

use quorate::etcd::MemberId;
use std::cell::RefCell;

use quorate::api::replacement::ReplacementStrategy;
use quorate::etcd::membership::Call;
use quorate::operator::cluster::desired::Desired;
use quorate::operator::cluster::manifests::pod::voter_label;
use quorate::operator::cluster::observed::Observed;
use quorate::operator::cluster::plan::{Change, Ensure, Plan, Premise, Step, plan};
use quorate::operator::context::Planner;
use quorate::operator::names;
use serde_json::json;

use super::search;

/// Seeds among which each must be found.
const SEEDS: u64 = 4_000;

struct Bug {
    rule: &'static str,
    class: &'static str,
    what: &'static str,
    planner: Planner,
}

fn premise(name: &str, uid: &str, version: &str) -> Premise {
    Premise {
        name: name.to_owned(),
        uid: uid.to_owned(),
        resource_version: version.to_owned(),
        why: "a bug".to_owned(),
    }
}

fn change(observed: &Observed, calls: Vec<Call>) -> Option<Step> {
    let (via, answer) = observed.known_answers().find(|(_, answer)| answer.quorum.is_some())?;
    Some(Step::Change(Change {
        via: via.clone(),
        calls,
        cluster_id: answer.cluster_id,
        members: answer.quorum.clone()?.members,
        leader: answer.leader,
        why: "a bug".to_owned(),
    }))
}

fn learners(observed: &Observed) -> Vec<MemberId> {
    let listed = observed.listed().unwrap_or_default();
    listed.iter().filter(|member| member.learner).map(|member| member.id).collect()
}

/// Whatever happens to Pods makes it delete one more (a StatefulSet's rolling update that asks nobody).
fn rolls_without_looking(desired: &Desired, observed: &Observed) -> Plan {
    let good = plan(desired, observed);
    let troubled = observed.pods.values().any(|pod| !pod.ready);
    let next = observed.pods.iter().find(|(_, pod)| troubled && pod.ready && !pod.deleting);
    let step = next.map(|(name, pod)| Step::DeletePod(premise(name, &pod.uid, &pod.resource_version)));
    Plan { step: step.or(good.step), record: None, ..good }
}

fn believes_the_silent(desired: &Desired, observed: &Observed) -> Plan {
    let mut seen = observed.clone();
    let good = observed
        .known_answers()
        .find(|(_, answer)| answer.quorum.is_some())
        .map(|(_, answer)| answer.clone());
    for (name, id) in &observed.record.members {
        let silent = !seen.survey.get(name).is_some_and(Result::is_ok);
        if let (true, Some(good)) = (silent, &good) {
            let mut answer = good.clone();
            answer.member_id = *id;
            seen.survey.insert(name.clone(), Ok(answer));
            if let Some(pod) = seen.pods.get_mut(name) {
                pod.deleting = false;
            }
        }
    }
    plan(desired, &seen)
}

fn removes_the_leader(desired: &Desired, observed: &Observed) -> Plan {
    let mut good = plan(desired, observed);
    if let Some(Step::Change(change)) = &mut good.step
        && let (Some(Call::Remove(id)), Some(leader)) = (change.calls.first_mut(), change.leader)
        && change.members.iter().any(|member| member.id == *id && !member.learner)
    {
        *id = leader;
    }
    good
}

fn promotes_at_once(desired: &Desired, observed: &Observed) -> Plan {
    let good = plan(desired, observed);
    let step = learners(observed).first().and_then(|id| change(observed, vec![Call::Promote(*id)]));
    if good.record.is_some() || step.is_none() { good } else { Plan { step, ensure: Vec::new(), ..good } }
}

fn deletes_a_members_volume(desired: &Desired, observed: &Observed) -> Plan {
    let good = plan(desired, observed);
    let down = observed.record.members.keys().find(|name| !observed.pods.contains_key(*name));
    let volume = down.and_then(|name| Some((name, observed.volumes.get(name)?)));
    let step = volume
        .map(|(name, volume)| Step::DeleteVolume(premise(name, &volume.uid, &volume.resource_version), None));
    Plan { step: step.or(good.step), ..good }
}

/// Takes every etcd that ends for one that has lost its data (an operator that replaces whatever crash-loops).
fn gives_up_whoever_ends(desired: &Desired, observed: &Observed) -> Plan {
    let mut seen = observed.clone();
    for report in seen.pods.values_mut().filter_map(|pod| pod.last_exit.as_mut()) {
        if report.cause.is_none() && report.exit == Some(1) {
            report.cause = Some("DataLost".to_owned());
        }
    }
    plan(desired, &seen)
}

fn founds_again(desired: &Desired, observed: &Observed) -> Plan {
    rewritten(plan(desired, observed), "cluster-state=existing", "cluster-state=new")
}

fn uses_names_again(desired: &Desired, observed: &Observed) -> Plan {
    let mut seen = observed.clone();
    let taken = |serial: &i32| {
        let name = names::member(&desired.name, *serial);
        observed.volumes.contains_key(&name) || observed.pods.contains_key(&name)
    };
    let free = (0..1000).find(|serial| !taken(serial)).unwrap_or_default();
    let mut good = plan(desired, &seen);
    if good.record.is_some() {
        return good;
    }
    seen.record.next_serial = free;
    let again = plan(desired, &seen);
    if again.record.is_some() {
        // The good planner would put the number right first: this one just goes on.
        for item in &mut good.ensure {
            if let Ensure::Create { kind: "PersistentVolumeClaim", manifest } = item {
                manifest["metadata"]["name"] = names::member(&desired.name, free).into();
            }
        }
        return good;
    }
    again
}

fn lets_clients_in_to_learners(desired: &Desired, observed: &Observed) -> Plan {
    let mut good = plan(desired, observed);
    for (name, pod) in observed.pods.iter().filter(|(name, _)| observed.record.joining.contains(*name)) {
        good.ensure.push(Ensure::Apply { kind: "Pod", manifest: voter_label(desired, name, &pod.uid, true) });
    }
    good
}

fn lets_clients_in_early(desired: &Desired, observed: &Observed) -> Plan {
    let mut good = plan(desired, observed);
    if good.record.is_some() {
        return good;
    }
    for (name, pod) in &observed.pods {
        good.ensure.push(Ensure::Apply { kind: "Pod", manifest: voter_label(desired, name, &pod.uid, true) });
    }
    good
}

fn forgets_half_done_adds(desired: &Desired, observed: &Observed) -> Plan {
    let good = plan(desired, observed);
    match &good.step {
        Some(Step::Change(change))
            if change
                .calls
                .iter()
                .any(|call| matches!(call, Call::Remove(id) if learners(observed).contains(id))) =>
        {
            Plan { step: None, ..good }
        }
        _ => good,
    }
}

fn waits_for_the_roll_out(desired: &Desired, observed: &Observed) -> Plan {
    let unfinished = observed.pods.values().any(|pod| !pod.running) && observed.record.cluster_id.is_some();
    if unfinished { Plan::default() } else { plan(desired, observed) }
}

fn writes_without_need(desired: &Desired, observed: &Observed) -> Plan {
    let mut good = plan(desired, observed);
    if good.record.is_none() && observed.record.cluster_id.is_some() {
        let manifest = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": desired.name, "namespace": desired.namespace, "annotations": {"seen": observed.pods.len().to_string()}}});
        good.ensure.push(Ensure::Apply { kind: "Service", manifest });
    }
    good
}

fn takes_pods_for_members(desired: &Desired, observed: &Observed) -> Plan {
    let mut seen = desired.clone();
    let pods = observed.pods.values().filter(|pod| pod.ready).count();
    if observed.record.cluster_id.is_some() && pods > 0 && pods < desired.replicas {
        seen.replicas = if pods >= 3 { 3 } else { 1 };
    }
    plan(&seen, observed)
}

fn rewritten(mut plan: Plan, from: &str, to: &str) -> Plan {
    for item in &mut plan.ensure {
        if let Ensure::Create { kind: "Pod", manifest } = item {
            let text = manifest.to_string().replace(from, to);
            *manifest = serde_json::from_str(&text).unwrap();
        }
    }
    plan
}

fn expects_no_data(desired: &Desired, observed: &Observed) -> Plan {
    let mut seen = observed.clone();
    seen.record.high_water.clear();
    let expects = |yes: bool| format!(r#""name":"QUORATE_EXPECT_STAMP","value":"{yes}""#);
    rewritten(plan(desired, &seen), &expects(true), &expects(false))
}

/// A deletion is tried once more, by the name, whoever has it by now.
fn deletes_by_name_alone(desired: &Desired, observed: &Observed) -> Plan {
    thread_local! {
        static LAST: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
    }
    let good = plan(desired, observed);
    if let Some(Step::DeletePod(premise)) = &good.step {
        LAST.set(Some((desired.uid.clone(), premise.name.clone())));
        return good;
    }
    let again = LAST.take().filter(|(uid, name)| *uid == desired.uid && observed.pods.contains_key(name));
    let Some((_, name)) = again.filter(|_| good.record.is_none() && good.step.is_none()) else { return good };
    Plan { step: Some(Step::DeletePod(premise(&name, "", ""))), ..good }
}

fn decides_on_the_look_before(desired: &Desired, observed: &Observed) -> Plan {
    thread_local! {
        static LAST: RefCell<Option<(String, Observed)>> = const { RefCell::new(None) };
    }
    let last = LAST.with(|last| last.borrow_mut().replace((desired.uid.clone(), observed.clone())));
    let last = last.filter(|(uid, _)| *uid == desired.uid && observed.record.cluster_id.is_some());
    plan(desired, last.as_ref().map_or(observed, |(_, last)| last))
}

fn exchanges_who_is_down_the_new_one_first(desired: &Desired, observed: &Observed) -> Plan {
    let mut seen = observed.clone();
    for request in seen.requests.iter_mut().filter(|request| request.status.strategy.is_some()) {
        request.status.strategy = Some(ReplacementStrategy::AddFirst);
    }
    plan(desired, &seen)
}

/// What was asked for once is taken for done.
fn believes_that_volumes_have_grown(desired: &Desired, observed: &Observed) -> Plan {
    let mut seen = observed.clone();
    for volume in seen.volumes.values_mut() {
        volume.requested.clone_from(&desired.spec.storage.size);
    }
    plan(desired, &seen)
}

fn leaves_pods_of_who_left(desired: &Desired, observed: &Observed) -> Plan {
    let mut good = plan(desired, observed);
    let member = |name: &String| observed.record.members.contains_key(name);
    if matches!(&good.step, Some(Step::DeletePod(premise)) if !member(&premise.name)) {
        good.step = None;
    }
    good
}

fn keeps_dead_voters(desired: &Desired, observed: &Observed) -> Plan {
    let mut good = plan(desired, observed);
    let answers = |id: MemberId| observed.known_answers().any(|(_, answer)| answer.member_id == id);
    let dead = |call: &Call| matches!(call, Call::Remove(id) if !answers(*id));
    if matches!(&good.step, Some(Step::Change(change)) if change.calls.iter().any(dead)) {
        good.step = None;
    }
    good
}

fn acts_on_edits_only(desired: &Desired, observed: &Observed) -> Plan {
    thread_local! {
        static LAST: RefCell<Option<(String, usize)>> = const { RefCell::new(None) };
    }
    let now = (desired.uid.clone(), desired.replicas);
    let last = LAST.with(|last| last.borrow_mut().replace(now.clone()));
    let mut seen = desired.clone();
    let voters = observed.record.members.len() - observed.record.joining.len();
    if last == Some(now) && observed.record.cluster_id.is_some() {
        seen.replicas = voters;
    }
    plan(&seen, observed)
}

fn repairs_only_while_all_are_well(desired: &Desired, observed: &Observed) -> Plan {
    let mut good = plan(desired, observed);
    let healthy = observed.known_answers().filter(|(_, answer)| answer.quorum.is_some()).count();
    if healthy < observed.record.voters(&desired.name) && matches!(good.step, Some(Step::Change(_))) {
        good.step = None;
    }
    good
}

const BUGS: [Bug; 23] = [
    Bug {
        rule: "I-1 quorum",
        class: "D3",
        what: "rolls Pods while another is down",
        planner: rolls_without_looking,
    },
    Bug {
        rule: "I-2 restraint",
        class: "D4",
        what: "takes a silent voter for a healthy one",
        planner: believes_the_silent,
    },
    Bug {
        rule: "I-3 volumes",
        class: "A1",
        what: "deletes the volume of a member whose Pod is gone",
        planner: deletes_a_members_volume,
    },
    Bug {
        rule: "I-4 no amnesia",
        class: "D6",
        what: "promotes who is not on record",
        planner: promotes_at_once,
    },
    Bug {
        rule: "I-5 one bootstrap",
        class: "D5",
        what: "founds a cluster that exists",
        planner: founds_again,
    },
    Bug { rule: "I-8 leader", class: "D", what: "removes the leader", planner: removes_the_leader },
    Bug { rule: "I-10 names", class: "A5", what: "uses a number again", planner: uses_names_again },
    Bug {
        rule: "I-12 truth",
        class: "E",
        what: "lets clients in to learners",
        planner: lets_clients_in_to_learners,
    },
    Bug {
        rule: "I-12 record first",
        class: "B",
        what: "lets clients in before there is a record",
        planner: lets_clients_in_early,
    },
    Bug { rule: "ESR", class: "B2", what: "forgets half-done adds", planner: forgets_half_done_adds },
    Bug {
        rule: "ESR",
        class: "E",
        what: "waits for a roll-out that cannot end",
        planner: waits_for_the_roll_out,
    },
    Bug { rule: "ESR", class: "I-14", what: "writes without need", planner: writes_without_need },
    Bug {
        rule: "ESR",
        class: "D1",
        what: "takes ready Pods for the wanted size",
        planner: takes_pods_for_members,
    },
    Bug {
        rule: "I-4 no amnesia",
        class: "D6",
        what: "starts who lost its data empty",
        planner: expects_no_data,
    },
    Bug {
        rule: "I-2 restraint",
        class: "A2",
        what: "deletes a Pod by its name alone",
        planner: deletes_by_name_alone,
    },
    Bug {
        rule: "I-2 restraint",
        class: "I-13",
        what: "decides on the look before",
        planner: decides_on_the_look_before,
    },
    Bug {
        rule: "ESR",
        class: "B",
        what: "waits for one with bad data to be well first",
        planner: exchanges_who_is_down_the_new_one_first,
    },
    Bug {
        rule: "ESR",
        class: "B1",
        what: "takes a growth that was asked for for done",
        planner: believes_that_volumes_have_grown,
    },
    Bug {
        rule: "ESR",
        class: "B3",
        what: "leaves the Pods of who has left",
        planner: leaves_pods_of_who_left,
    },
    Bug { rule: "ESR", class: "B4", what: "keeps dead voters", planner: keeps_dead_voters },
    Bug { rule: "ESR", class: "C", what: "acts on edits only", planner: acts_on_edits_only },
    Bug {
        rule: "ESR",
        class: "D7",
        what: "repairs only while all are well",
        planner: repairs_only_while_all_are_well,
    },
    Bug {
        rule: "I-2 patience",
        class: "D",
        what: "takes whoever ends for one who lost its data",
        planner: gives_up_whoever_ends,
    },
];

#[test]
fn every_planted_bug_is_found() {
    let mut blind = Vec::new();
    println!("{:<18} {:<5} {:<48} found", "invariant", "class", "a planner that …");
    for bug in BUGS {
        let found = search::first(0..SEEDS, bug.planner, bug.rule);
        let text = found.map_or_else(|| "NOT FOUND".to_owned(), |seed| format!("seed {seed}"));
        println!("{:<18} {:<5} {:<48} {text}", bug.rule, bug.class, bug.what);
        if found.is_none() {
            blind.push(bug.what);
        }
    }
    assert!(blind.is_empty(), "the search is blind to a planner that {}", blind.join("; that "));
}
