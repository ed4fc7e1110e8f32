//! Grow and shrink: the only rules that change etcd's member list.
//!
//! # States
//!
//! With V voters and L learners in the list (a linearizable read of it, never the spec or Pods) and W wanted:
//!
//! | list | wanted | what is done |
//! |---|---|---|
//! | V = W, L = 0 | | nothing |
//! | V odd | W > V | a pair joins: two volumes, two learners, two Pods; when both are level, both are promoted back to back |
//! | V even | W > V | a promotion was interrupted: the one that is missing joins or is promoted |
//! | V odd | W < V | a pair leaves: labels, leadership, two removals back to back; Pods and volumes after that |
//! | V even | W < V | one leaves: the one that was exchanged (`exchange`), if there is one |
//! | | | a voter that makes way for another (`exchange`) leaves before anything is added |
//! | | | a learner that nobody wants (any more), or that will never be level, is removed before all else |
//!
//! Everything is derived from what is there, so a crash between any two acts, or an edit, is just another row: a
//! half-done add is recognised by its peer URL and finished or rolled back, and the newest spec wins. 1→5 and 7→3 pass
//! through 3 and 5. etcd 3.5 allows one learner: there the second one's Pod waits, scheduled and with its volume
//! bound, while the first is promoted.
//!
//! # What must hold (numbers of `reliability.md`)
//!
//! - I-1: a healthy voter is removed only when all are healthy; one that is down only after its process was stopped,
//!   and only while the others have quorum with it counted. A promotion starts only when the voters that are healthy
//!   afterwards exceed the new quorum.
//! - I-2: one step in a pass, none while another is planned, none while a voter is down for a reason of its own (but
//!   its own removal).
//! - I-4: nobody is promoted before its ID is on its volume and in the status.
//! - I-8: a leader leaves only after it has handed over.
//! - I-10: a removed name is never used again: numbers only rise.
//! - Evictions: the PodDisruptionBudget is raised before a promotion; a voter that leaves loses its label before, and
//!   the budget's own count is seen to follow.

use super::super::desired::Desired;
use super::super::manifests::volume as volumes;
use super::super::observed::{Intent, MemberPod, Observed, Volume, VolumeState};
use super::exchange::{Exchange, How, is_given_up, is_marked, makes_way, wanted};
use super::roster::{Roster, Seat};
use super::{Change, Ensure, Finding, Plan, Step, is_ours, owns};
use crate::api::reason::Reason;
use crate::etcd::MemberId;
use crate::etcd::hash::{Comparison, compare};
use crate::etcd::membership::Call;
use crate::etcd::quorum::quorum;
use crate::etcd::survey::Alarm;
use crate::operator::names;

/// The next safe number of voters on the way from `voters` to `wanted`: odd, and at most two away; even only where one
/// more is wanted so that another can leave.
pub(in super::super) fn next_size(voters: usize, wanted: usize) -> usize {
    let odd = voters % 2 == 1;
    match voters.cmp(&wanted) {
        std::cmp::Ordering::Equal => voters,
        std::cmp::Ordering::Less => wanted.min(voters + if odd { 2 } else { 1 }),
        std::cmp::Ordering::Greater => voters - if odd { 2 } else { 1 },
    }
}

/// Who joins: learners in the list first, then volumes that wait for a member.
pub(in super::super) struct Joiners<'a> {
    /// Names, by serial, as many as are wanted and known of.
    pub(in super::super) names: Vec<String>,
    /// How many more have to be found.
    pub(in super::super) lacking: usize,
    /// Learners that are not wanted, and why.
    pub(in super::super) unwanted: Vec<(&'a Seat<'a>, String)>,
}

impl<'a> Joiners<'a> {
    pub(in super::super) fn of(desired: &Desired, observed: &Observed, roster: &'a Roster<'a>) -> Self {
        let voters = roster.voters.len();
        let room = next_size(voters, wanted(desired, observed, roster)).saturating_sub(voters);
        let given_up = given_up(observed);
        let is_given_up = |name: &str| given_up == Some(name);
        let (mut names, mut unwanted) = (Vec::new(), Vec::new());
        for learner in &roster.learners {
            match learner.ruin() {
                Some(why) => unwanted.push((learner, why)),
                None if is_given_up(&learner.name) => {
                    unwanted.push((learner, "it did not catch up in time".to_owned()));
                }
                None if names.len() < room => names.push(learner.name.clone()),
                None => unwanted.push((learner, "nobody wants it any more".to_owned())),
            }
        }
        let mut waiting: Vec<(i32, &String)> = observed
            .volumes
            .iter()
            .filter(|(name, volume)| {
                roster.seat(name).is_none() && waits_for_a_member(desired, roster, volume)
            })
            .filter(|(name, _)| !is_given_up(name))
            .filter_map(|(name, _)| Some((names::serial(&desired.name, name)?, name)))
            .collect();
        waiting.sort_unstable();
        names.extend(waiting.into_iter().take(room - names.len()).map(|(_, name)| name.clone()));
        Self { lacking: room - names.len(), names, unwanted }
    }
}

/// A volume of a member that leaves for good: nobody joins on it.
fn given_up(observed: &Observed) -> Option<&str> {
    let exchange = Exchange::of(observed).filter(|exchange| exchange.how == How::Replace);
    exchange.map(|exchange| exchange.name)
}

fn waits_for_a_member(desired: &Desired, roster: &Roster, volume: &Volume) -> bool {
    let fresh = is_ours(desired, volume)
        && volume.state == VolumeState::Joining
        && volume.identity.is_none()
        && !volume.deleting;
    fresh || is_given_up(desired, roster, volume)
}

/// How many learners etcd takes at once: two since 3.6, if all members run it.
pub(in super::super) fn learners_at_once(desired: &Desired, roster: &Roster) -> usize {
    let old = roster.seats().filter_map(|seat| seat.answer).any(|answer| answer.version.starts_with("3.5."));
    if old || desired.version.minor == crate::etcd::version::Minor::V3_5 { 1 } else { 2 }
}

/// Whether the promotion of those that join is next, so that the PodDisruptionBudget must count them already.
pub(in super::super) fn is_promotion_next(desired: &Desired, observed: &Observed, roster: &Roster) -> bool {
    let joiners = Joiners::of(desired, observed, roster);
    !ready_to_vote(desired, observed, roster, &joiners).is_empty()
}

pub(super) fn rule(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let Some(roster) = Roster::of(desired, observed) else { return };
    if !roster.strangers.is_empty() || !roster.has_quorum() {
        return; // `health` tells.
    }
    let joiners = Joiners::of(desired, observed, &roster);
    if let Some((learner, why)) = joiners.unwanted.first() {
        let why = format!("the learner {} is removed: {why}", learner.name);
        change(&roster, plan, vec![Call::Remove(learner.id)], why);
        return;
    }
    if let Some((call, why)) = outlived_alarm(&roster, observed) {
        change(&roster, plan, vec![call], why);
        return;
    }
    if let Some(seat) = makes_way(desired, observed, &roster) {
        let why = format!("{} makes way for another member", seat.name);
        waiting(plan, Reason::Replacing, format!("{why}: it leaves next."));
        leave(desired, observed, &roster, &[seat], &why, plan);
        return;
    }
    match roster.voters.len().cmp(&wanted(desired, observed, &roster)) {
        std::cmp::Ordering::Less => grow(desired, observed, &roster, &joiners, plan),
        std::cmp::Ordering::Greater => shrink(desired, observed, &roster, plan),
        std::cmp::Ordering::Equal => {}
    }
}

fn change(roster: &Roster, plan: &mut Plan, calls: Vec<Call>, why: String) {
    let Some(speaker) = roster.speaker() else { return };
    let step = Step::Change(Change {
        via: speaker.name.clone(),
        calls,
        cluster_id: roster.cluster_id,
        members: roster.listed.to_vec(),
        leader: roster.leader,
        why,
    });
    plan.step.get_or_insert(step);
}

fn waiting(plan: &mut Plan, reason: Reason, message: String) {
    plan.findings.push(Finding { reason, member: None, message, stalled: false });
}

fn grow(desired: &Desired, observed: &Observed, roster: &Roster, joiners: &Joiners, plan: &mut Plan) {
    let voters = roster.voters.len();
    let under_way = voters.is_multiple_of(2);
    // At an even number one more voter is a repair; everything else waits until all are well.
    let safe = if under_way { roster.healthy() + 1 > quorum(voters + 1) } else { roster.all_healthy() };
    if !safe {
        let healthy = roster.healthy();
        waiting(
            plan,
            Reason::Scaling,
            format!(
                "{voters} of {} voters: growth waits, since only {healthy} of the {voters} voters are healthy. It goes on by itself when all are.",
                desired.replicas
            ),
        );
        return;
    }
    new_volumes(desired, observed, joiners, plan);
    let limit = learners_at_once(desired, roster);
    let new: Vec<String> = joiners
        .names
        .iter()
        .filter(|name| roster.seat(name).is_none())
        .filter(|name| observed.volumes.get(*name).is_some_and(|volume| volume.identity.is_none()))
        .map(|name| desired.peer_url(name))
        .take(limit.saturating_sub(roster.learners.len()))
        .collect();
    // A pair is added whole, so that the first one's Pod knows the second one.
    let pair_is_known = joiners.lacking == 0 || limit == 1;
    if !new.is_empty() && pair_is_known {
        let calls = new.into_iter().map(Call::AddLearner).collect();
        change(
            roster,
            plan,
            calls,
            format!(
                "{voters} of {} voters: {} join as learners",
                desired.replicas,
                joiners.names.join(" and ")
            ),
        );
        return;
    }
    let ready = ready_to_vote(desired, observed, roster, joiners);
    if !ready.is_empty()
        && is_marked(observed, roster)
        && budget_covers(desired, observed, voters + ready.len())
    {
        let calls = ready.into_iter().map(Call::Promote).collect();
        change(
            roster,
            plan,
            calls,
            format!("{} have the data and vote from now on", joiners.names.join(" and ")),
        );
        return;
    }
    if let Some(silent) = roster.learners.iter().find(|seat| is_silent(observed, seat)) {
        change(roster, plan, vec![Call::Nudge], format!("{} waits for an entry", silent.name));
    }
    let progress: Vec<String> = joiners.names.iter().map(|name| progress(observed, roster, name)).collect();
    waiting(
        plan,
        Reason::Scaling,
        format!("{voters} of {} voters: {}.", desired.replicas, progress.join("; ")),
    );
}

/// Volumes for those who are still to be found: a volume is the first thing that a member has.
fn new_volumes(desired: &Desired, observed: &Observed, joiners: &Joiners, plan: &mut Plan) {
    let first = observed.record.next_serial;
    let mut exchange = Exchange::of(observed).filter(|exchange| !exchange.has_volume(observed));
    for serial in (first..).take(joiners.lacking) {
        let name = names::member(&desired.name, serial);
        let special = exchange.take().map_or_else(volumes::Special::default, |exchange| special(&exchange));
        plan.ensure.push(Ensure::Create {
            kind: "PersistentVolumeClaim",
            manifest: volumes::volume(desired, &name, 0, &special),
        });
    }
}

fn special<'a>(exchange: &Exchange<'a>) -> volumes::Special<'a> {
    let spec = &exchange.request.spec;
    volumes::Special {
        replaces: Some(exchange.id),
        storage: spec.storage.as_ref(),
        node_selector: spec
            .placement
            .as_ref()
            .map(|placement| placement.node_selector.clone())
            .unwrap_or_default(),
    }
}

/// etcd lets the next one join only when all voters have been connected for five seconds (`HealthInterval`); a learner
/// that has been for so long when it is promoted makes nobody wait.
const CONNECTED: jiff::SignedDuration = jiff::SignedDuration::from_secs(6);

/// A learner that serves does so within a second.
const SILENT: jiff::SignedDuration = jiff::SignedDuration::from_secs(2);

/// Learners that are promoted next: all that join, or, where etcd takes one learner at a time, the first, once the
/// other's Pod is on a node and its volume bound, and etcd would take the other one at once.
fn ready_to_vote(
    desired: &Desired,
    observed: &Observed,
    roster: &Roster,
    joiners: &Joiners,
) -> Vec<MemberId> {
    let level = |name: &String| {
        let learner = roster.learners.iter().find(|seat| seat.name == *name)?;
        roster.is_level(observed, learner).then_some(learner.id)
    };
    let settled = |name: &String| {
        let on_a_node = observed.pods.get(name).is_some_and(|pod| pod.node.is_some() && !pod.deleting);
        let volume = observed.volumes.get(name);
        // A volume that begins anew has its place, and its Pod must know the new member ID.
        volume.is_some_and(|volume| volume.bound && (on_a_node || volume.incarnation > 0))
    };
    let connected = |name: &String| {
        let since = observed.pods.get(name).and_then(|pod| pod.running_since);
        since.is_some_and(|since| since + CONNECTED <= observed.now)
    };
    let one_at_a_time = learners_at_once(desired, roster) == 1;
    let ready: Option<Vec<MemberId>> = match joiners.names.as_slice() {
        _ if joiners.lacking > 0 => None,
        [first, second] if one_at_a_time && settled(second) && connected(first) => {
            level(first).map(|id| vec![id])
        }
        [_, _] if one_at_a_time => None,
        names => names.iter().map(level).collect(),
    };
    ready.unwrap_or_default()
}

/// Whether a learner that has run for a while does not answer: it may wait for an entry ([`Call::Nudge`]).
fn is_silent(observed: &Observed, learner: &Seat) -> bool {
    let since = learner.pod.filter(|pod| !pod.deleting).and_then(|pod| pod.running_since);
    learner.answer.is_none() && since.is_some_and(|since| since + SILENT <= observed.now)
}

/// Whether the PodDisruptionBudget in force keeps a quorum of that many voters.
fn budget_covers(desired: &Desired, observed: &Observed, voters: usize) -> bool {
    let budget = observed.children.get(&("PodDisruptionBudget", desired.name.clone()));
    let kept = budget.and_then(|budget| budget.pointer("/spec/minAvailable")?.as_u64());
    kept.is_some_and(|kept| usize::try_from(kept).is_ok_and(|kept| kept >= quorum(voters)))
}

fn progress(observed: &Observed, roster: &Roster, name: &str) -> String {
    let Some(learner) = roster.learners.iter().find(|seat| seat.name == name) else {
        return format!("{name} joins next");
    };
    match (roster.lag(learner), observed.pods.get(name)) {
        (Some(lag), _) => format!("{name} is a learner and lacks {lag} entries"),
        (None, Some(_)) => format!("{name} is a learner and starts"),
        (None, None) => format!("{name} is a learner; its Pod is made"),
    }
}

/// Voters that leave next: those that are down first, one at a time; else as many as make a safe size, the newest
/// first and never the leader while another can.
pub(in super::super) fn leaving<'a>(
    desired: &Desired,
    observed: &Observed,
    roster: &'a Roster<'a>,
) -> Vec<&'a Seat<'a>> {
    if let Some(seat) = makes_way(desired, observed, roster) {
        return vec![seat];
    }
    let voters = roster.voters.len();
    let count = voters.saturating_sub(next_size(voters, desired.replicas));
    if voters <= desired.replicas {
        return Vec::new();
    }
    let newest_first = || roster.voters.iter().rev();
    if let Some(down) = newest_first().find(|seat| seat.is_down()) {
        return vec![down];
    }
    if !roster.all_healthy() {
        return Vec::new();
    }
    // Whoever makes way anyway goes before those who are well, and the leader last.
    let replaced = Exchange::of(observed).map(|exchange| exchange.id);
    let mut order: Vec<&Seat> = newest_first().collect();
    order.sort_by_key(|seat| (Some(seat.id) != replaced, Some(seat.id) == roster.leader));
    order.into_iter().take(count).collect()
}

fn shrink(desired: &Desired, observed: &Observed, roster: &Roster, plan: &mut Plan) {
    let (voters, wanted) = (roster.voters.len(), desired.replicas);
    let leaving = leaving(desired, observed, roster);
    let names: Vec<&str> = leaving.iter().map(|seat| seat.name.as_str()).collect();
    let names = names.join(" and ");
    if leaving.is_empty() {
        let healthy = roster.healthy();
        waiting(
            plan,
            Reason::Scaling,
            format!(
                "{voters} voters, {wanted} are wanted: nobody leaves, since only {healthy} of them answer, though all their Pods are ready. It goes on by itself when all answer."
            ),
        );
        return;
    }
    waiting(plan, Reason::Scaling, format!("{voters} voters, {wanted} are wanted: {names} leave next."));
    leave(desired, observed, roster, &leaving, &format!("{names} leave: {wanted} voters are wanted"), plan);
}

/// Labels off, leadership away, and out of the list; one whose volume is used again is stopped before.
fn leave(
    desired: &Desired,
    observed: &Observed,
    roster: &Roster,
    leaving: &[&Seat],
    why: &str,
    plan: &mut Plan,
) {
    let leader_is_lost = leaving.iter().any(|seat| !seat.healthy && Some(seat.id) == roster.leader);
    if leaving.iter().any(|seat| still_runs(desired, observed, seat, plan))
        || roster.leader.is_none()
        || leader_is_lost
    {
        return;
    }
    if !labels_are_off(desired, observed, roster, leaving) {
        return;
    }
    if leaving.iter().any(|seat| Some(seat.id) == roster.leader) {
        let heir =
            roster.voters.iter().find(|seat| seat.healthy && !leaving.iter().any(|left| left.id == seat.id));
        if let Some(heir) = heir {
            change(
                roster,
                plan,
                vec![Call::MoveLeader(heir.id)],
                format!("{} leads from now on: {why}", heir.name),
            );
        }
        return;
    }
    if leaving.iter().any(|seat| still_uses_its_volume(desired, observed, roster, seat, plan)) {
        return;
    }
    let calls = leaving.iter().map(|seat| Call::Remove(seat.id)).collect();
    change(roster, plan, calls, why.to_owned());
}

/// Before a volume is wiped, nobody may be on it: its Pod is stopped while its member can still come back, and seen to be
/// gone, or, where all others are well, its etcd to have ended (decision 26). The volume begins anew when the Pod is gone
/// (`exchange`). The mark on the volume comes first. In a shrink to one, the one who stays cannot decide alone before the
/// other is removed: there it runs until then.
fn still_uses_its_volume(
    desired: &Desired,
    observed: &Observed,
    roster: &Roster,
    seat: &Seat,
    plan: &mut Plan,
) -> bool {
    let wiped = Exchange::of(observed).is_some_and(|it| it.id == seat.id && it.how == How::Wipe);
    if !wiped || roster.healthy_beside(seat) < quorum(roster.voters.len()) {
        return false;
    }
    let marked = seat.intent() == Some(Intent::Wipe(seat.id));
    if let Some(pod) = own_pod(desired, observed, seat).filter(|_| marked) {
        let why = "its member makes way, and its volume is used again: it is stopped before it is removed";
        plan.step.get_or_insert(Step::DeletePod(pod.premise(&seat.name, why.to_owned())));
    }
    let others_are_well = roster.healthy_beside(seat) + 1 == roster.voters.len();
    let has_ended = |pod: &MemberPod| pod.deleting && !pod.running;
    !marked || seat.pod.is_some_and(|pod| !(others_are_well && has_ended(pod)))
}

/// The Pod that the member runs in, and stays in; one of its name may be another EtcdCluster's.
fn own_pod<'a>(desired: &Desired, observed: &'a Observed, seat: &Seat) -> Option<&'a MemberPod> {
    let is_own = |pod: &&MemberPod| owns(desired, pod) && !pod.deleting;
    observed.pods.get(&seat.name).filter(is_own)
}

/// A member that does not answer but may come back is stopped before it is removed: what flaps would be counted
/// twice. Its Pod is on its way out already, or is deleted now.
fn still_runs(desired: &Desired, observed: &Observed, seat: &Seat, plan: &mut Plan) -> bool {
    if seat.healthy {
        return false;
    }
    let Some(pod) = own_pod(desired, observed, seat) else { return false };
    let why = "it does not answer, and it leaves the cluster: it is stopped before it is removed".to_owned();
    plan.step.get_or_insert(Step::DeletePod(pod.premise(&seat.name, why)));
    true
}

/// Whether those that leave serve no clients any more, and the PodDisruptionBudget counts only those that stay.
fn labels_are_off(desired: &Desired, observed: &Observed, roster: &Roster, leaving: &[&Seat]) -> bool {
    let labelled = |seat: &&Seat| seat.pod.is_some_and(|pod| pod.voter_label);
    // One that is ending gets no clients, and may be ending for ever on a node that is lost.
    let ends = |seat: &&Seat| seat.pod.is_some_and(|pod| pod.deleting);
    if leaving.iter().any(|seat| labelled(seat) && !ends(seat)) {
        return false;
    }
    let staying = roster.voters.iter().filter(labelled).count();
    let Some(budget) = observed.children.get(&("PodDisruptionBudget", desired.name.clone())) else {
        return false;
    };
    let number = |pointer: &str| budget.pointer(pointer).and_then(serde_json::Value::as_u64);
    let counted = number("/status/expectedPods").and_then(|count| usize::try_from(count).ok());
    let current = number("/status/observedGeneration") == number("/metadata/generation");
    current && counted == Some(staying)
}

/// Alarms outlive their member. NOSPACE of one that has left is disarmed, and CORRUPT when all who are left are known to
/// hold the same: writes are refused until then, so it waits for nobody who joins.
fn outlived_alarm(roster: &Roster, observed: &Observed) -> Option<(Call, String)> {
    let quorum = observed.known_answers().find_map(|(_, answer)| answer.quorum.as_ref())?;
    let equal = observed.hashes.as_ref().map(compare) == Some(Comparison::Equal);
    let (id, alarm) = quorum.alarms.iter().find(|(id, alarm)| {
        let harmless = match alarm {
            Alarm::NoSpace => true,
            Alarm::Corrupt => equal,
        };
        harmless && id.0 != 0 && !roster.lists(*id)
    })?;
    Some((Call::Disarm(*id, *alarm), format!("the alarm of {id}, which is no member any more, is disarmed")))
}
