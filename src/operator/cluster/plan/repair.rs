//! Which member the operator replaces by itself.
//!
//! **Rules** (design.md 4, `reliability.md` 4.2):
//! - Data that are proven to be lost, damaged or older than they were are given up at once: the volume works, so it is
//!   wiped in place. A volume that is gone, or is another's, is replaced by a new one.
//! - A member that is merely down is replaced after `spec.repair.unhealthyAfter`, with a new volume, if the kubelet
//!   calls it down too, all other voters are healthy, and `maxPerHour` allows. Slowness, want of memory, a full disk,
//!   a spec that cannot run and a path that only the operator lacks are no reasons.
//! - A healthy member whose volume is being deleted, or whose node is being emptied ([`surge`]), is exchanged, the new
//!   member first.
//! - Two members with bad data at once have a common cause that a machine does not know: a person decides.
//! - Never without a quorum of healthy voters beside the member; one at a time. A request that is not over counts.

use jiff::SignedDuration;
use serde_json::json;

use super::super::desired::Desired;
use super::super::manifests::{labels, owner};
use super::super::observed::{GuardReport, Observed, Request};
use super::roster::{Roster, Seat};
use super::{Ensure, Finding, Plan, duration_or, is_ours, is_usable, surge};
use crate::api::cluster::RepairMode;
use crate::api::reason::Reason;
use crate::api::replacement::{Phase, ReplacementStrategy, ReplacementVolume};
use crate::etcd::MemberId;
use crate::etcd::failure::Remedy;
use crate::etcd::hash::{Comparison, compare};
use crate::etcd::quorum::quorum;
use crate::etcd::survey::{Alarm, QuorumAnswer};
use crate::operator::names;

/// Where the spec's own cannot be read.
const UNHEALTHY_AFTER: SignedDuration = SignedDuration::from_mins(10);
/// A repair that came to nothing is tried again after this.
const AGAIN: SignedDuration = SignedDuration::from_mins(10);
/// A kubelet that lives ends a Pod in time, give or take this.
const OVERDUE: SignedDuration = SignedDuration::from_secs(30);
/// Longest part of etcd's words that goes into a message.
const LONGEST_WHY: usize = 300;
/// Repairs of merely silent members are counted over this time.
const COUNTED: SignedDuration = SignedDuration::from_hours(1);

/// What is to be done about a member, and why.
struct Diagnosis<'a> {
    seat: &'a Seat<'a>,
    strategy: ReplacementStrategy,
    volume: ReplacementVolume,
    /// Proven by the volume or the guard; else it is merely down.
    proven: bool,
    why: String,
}

pub(super) fn rule(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let Some(roster) = Roster::of(desired, observed) else { return };
    if !roster.has_quorum() || !roster.strangers.is_empty() {
        return; // `health` tells.
    }
    let mut found: Vec<Diagnosis> =
        roster.voters.iter().filter_map(|seat| diagnose(desired, observed, seat)).collect();
    // Bad data first, who is merely down next, and who is well last.
    found.sort_by_key(|one| (one.seat.healthy, !one.proven));
    let bad =
        found.iter().filter(|one| one.proven && one.strategy == ReplacementStrategy::RemoveFirst).count();
    if bad > 1 {
        let what: Vec<String> = found
            .iter()
            .filter(|one| one.proven)
            .map(|one| format!("{}: {}", one.seat.name, one.why))
            .collect();
        // Before what is wrong with each of them.
        plan.findings.insert(0, refusal(format!(
            "Two members or more have bad data at once, which has a common cause: {}. None of them is repaired. Look at their storage; then ask for each replacement with kubectl quorate replace.",
            what.join("; ")
        )));
        return;
    }
    if observed.hashes.as_ref().map(compare) == Some(Comparison::NoMajority) {
        plan.findings.insert(0, refusal("The members' data differ, and no majority of them holds the same (etcd's HashKV at one revision). Nothing is changed: whose data are right only you can tell. Compare them with kubectl quorate ctl, and take a snapshot of each.".to_owned()));
        return;
    }
    let Some(next) = found.first() else { return };
    let of_it = |request: &Request| request.spec.member_id == Some(next.seat.id.to_string());
    let unfinished = observed.requests.iter().filter(|request| request.repair && !request.phase().is_over());
    // An exchange of one who is well waits for those who are not.
    if unfinished.clone().any(|request| of_it(request) || is_urgent(&roster, request)) {
        if unfinished.clone().any(of_it) {
            unstall(plan, next.seat);
        }
        return;
    }
    if let Some(finding) = obstacle(desired, observed, &roster, next) {
        // Where the operator may not, what is wrong with the member is the news; else why it does not.
        let place = if desired.spec.repair.mode == RepairMode::Manual { plan.findings.len() } else { 0 };
        plan.findings.insert(place, finding);
        return;
    }
    unstall(plan, next.seat);
    plan.ensure
        .push(Ensure::Create { kind: "EtcdMemberReplacement", manifest: request(desired, observed, next) });
}

/// Whether a repair is about a member that is not well.
pub(super) fn is_urgent(roster: &Roster, request: &Request) -> bool {
    let id: Option<MemberId> = request.spec.member_id.as_ref().and_then(|id| id.parse().ok());
    let well = roster.voters.iter().any(|seat| Some(seat.id) == id && seat.healthy);
    request.repair && request.spec.strategy == ReplacementStrategy::RemoveFirst && !well
}

/// What is being repaired needs no person.
fn unstall(plan: &mut Plan, seat: &Seat) {
    for finding in
        plan.findings.iter_mut().filter(|finding| finding.member.as_deref() == Some(seat.name.as_str()))
    {
        finding.stalled = false;
    }
}

fn refusal(message: String) -> Finding {
    Finding::stalled(Reason::RepairRefused, None, message)
}

/// Why it is not repaired now.
fn obstacle(desired: &Desired, observed: &Observed, roster: &Roster, found: &Diagnosis) -> Option<Finding> {
    let (name, voters, beside) = (&found.seat.name, roster.voters.len(), roster.healthy_beside(found.seat));
    if desired.spec.repair.mode == RepairMode::Manual {
        return Some(refusal(format!(
            "{name} needs a repair ({}), and spec.repair.mode is Manual. Ask for it with kubectl quorate replace {} {name}.",
            found.why, desired.name
        )));
    }
    let first = found.strategy == ReplacementStrategy::AddFirst;
    if first && !roster.all_healthy() {
        return Some(refusal(format!(
            "{name} needs to be exchanged ({}): it waits until all {voters} voters are healthy.",
            found.why
        )));
    }
    if !first && beside < quorum(voters) {
        return Some(refusal(format!(
            "{name} needs a repair ({}), but without it {beside} of {voters} voters would be healthy; quorum is {}. Bring the others back first.",
            found.why,
            quorum(voters)
        )));
    }
    if let Some(failed) = failed_lately(observed, found.seat) {
        let said = failed.status.message.clone().unwrap_or_default();
        return Some(refusal(format!(
            "{name} needs a repair ({}), and {} came to nothing: {said} It is tried again after {} minutes.",
            found.why,
            failed.name,
            AGAIN.as_mins()
        )));
    }
    if found.proven {
        return None;
    }
    if beside + 1 < voters {
        return Some(refusal(format!(
            "{name} is down ({}), and so is another of the {voters} voters: whoever is merely down is replaced only while all others are healthy.",
            found.why
        )));
    }
    let recent = observed
        .requests
        .iter()
        .filter(|request| request.counted && observed.now.duration_since(request.created) < COUNTED);
    let (recent, most) = (recent.count(), desired.spec.repair.max_per_hour);
    if i32::try_from(recent).unwrap_or(i32::MAX) >= most {
        return Some(refusal(format!(
            "{name} is down ({}), but {recent} members were replaced for that within an hour, and spec.repair.maxPerHour is {most}. Look for a common cause; then wait, raise it, or ask with kubectl quorate replace {} {name}.",
            found.why, desired.name
        )));
    }
    None
}

/// A repair of this member that came to nothing just now: what was wrong with it has hardly changed.
fn failed_lately<'a>(observed: &'a Observed, seat: &Seat) -> Option<&'a Request> {
    let id = seat.id.to_string();
    observed.requests.iter().rev().find(|request| {
        let of_it = request.repair && request.spec.member_id.as_ref() == Some(&id);
        request.phase() == Phase::Failed && of_it && observed.now.duration_since(request.created) < AGAIN
    })
}

/// Whether a member still needs the repair that was asked for: one that was to leave last may have failed meanwhile.
pub(super) fn is_needed(desired: &Desired, observed: &Observed, seat: &Seat, request: &Request) -> bool {
    diagnose(desired, observed, seat).is_some_and(|found| found.strategy == request.spec.strategy)
}

fn diagnose<'a>(desired: &Desired, observed: &Observed, seat: &'a Seat<'a>) -> Option<Diagnosis<'a>> {
    let of = |strategy, volume, proven, why: String| Some(Diagnosis { seat, strategy, volume, proven, why });
    let name = &seat.name;
    let (remove, add) = (ReplacementStrategy::RemoveFirst, ReplacementStrategy::AddFirst);
    let volume = observed.volumes.get(name);
    let usable = volume.is_some_and(|volume| is_usable(desired, volume));
    let kept = |wanted| if usable { wanted } else { ReplacementVolume::New };
    if let Some(why) = differs(observed, seat) {
        return of(remove, kept(ReplacementVolume::Keep), true, why);
    }
    if seat.healthy {
        let goes = volume.is_some_and(|volume| volume.deleting);
        let why = goes.then(|| format!("its volume {name} is being deleted"));
        let why = why.or_else(|| surge::must_move(desired, observed, seat))?;
        return of(add, ReplacementVolume::New, true, why);
    }
    // While its Pod runs it may still answer again.
    let stopped = seat.pod.is_none_or(|pod| !pod.running);
    match volume {
        None if stopped => {
            return of(remove, ReplacementVolume::New, true, format!("its volume {name} is gone"));
        }
        Some(volume) if stopped && !is_ours(desired, volume) => {
            let why = format!("the volume {name} in its place is not its own");
            return of(remove, ReplacementVolume::New, true, why);
        }
        Some(volume) if stopped && volume.deleting => {
            return of(remove, ReplacementVolume::New, true, format!("its volume {name} is being deleted"));
        }
        None | Some(_) => {}
    }
    if let Some((volume, why)) = proven(seat) {
        return of(remove, kept(volume), true, why);
    }
    let since = *observed.record.unhealthy_since.get(name)?;
    // What a Pod that was made anew dies of is not known yet.
    let made = seat.pod.filter(|pod| !pod.deleting).and_then(|pod| pod.created);
    let since = made.map_or(since, |made| since.max(made));
    let down_for = observed.now.duration_since(since);
    let patience = duration_or(&desired.spec.repair.unhealthy_after, UNHEALTHY_AFTER);
    (seat.is_down() && down_for >= patience && is_merely_down(observed, seat)).then_some(())?;
    of(remove, ReplacementVolume::New, false, format!("it has been down since {since}"))
}

/// Whether the member's data are proven to be of no use, while the volume works.
pub(super) fn has_bad_data(seat: &Seat) -> bool {
    !seat.healthy && proven(seat).is_some_and(|(volume, _)| volume == ReplacementVolume::Keep)
}

/// What the guard or etcd itself proved, and what becomes of the volume.
fn proven(seat: &Seat) -> Option<(ReplacementVolume, String)> {
    let pod = seat.pod?;
    let failure = pod.failure()?;
    let volume = match failure.remedy() {
        Remedy::Wipe => ReplacementVolume::Keep,
        Remedy::Replace => ReplacementVolume::New,
        Remedy::Wait | Remedy::Ask => return None,
    };
    let sentence = pod.last_exit.as_ref().map(GuardReport::sentence).unwrap_or_default();
    let short: String = sentence.trim_end_matches('.').chars().take(LONGEST_WHY).collect();
    Some((volume, format!("{}: {short}", failure.name())))
}

/// Whether a strict majority holds something else than this member. An alarm that names nobody says that etcd could
/// not tell: then a person decides.
fn differs(observed: &Observed, seat: &Seat) -> Option<String> {
    let hashes = observed.hashes.as_ref()?;
    let Comparison::Differ(minority) = compare(hashes) else { return None };
    let nobodys = |alarms: &QuorumAnswer| alarms.alarms.contains(&(MemberId(0), Alarm::Corrupt));
    let unclear = observed.known_answers().any(|(_, answer)| answer.quorum.as_ref().is_some_and(nobodys));
    (minority.contains(&seat.id) && !unclear).then(|| {
        let (all, others) = (hashes.len(), hashes.len() - minority.len());
        format!("its data differ from those of {others} of {all} members, which hold the same (HashKV)")
    })
}

/// Whether nothing is known but that it is down. What etcd or the guard says, what the spec asks for, and what passes
/// by itself is no reason to give up a volume; nor is a Pod that is just being made anew.
fn is_merely_down(observed: &Observed, seat: &Seat) -> bool {
    let Some(pod) = seat.pod else { return false };
    if pod.deleting {
        // Its kubelet, too, is gone.
        return pod.ends_by.is_some_and(|at| observed.now.duration_since(at) > OVERDUE);
    }
    let spoke = pod.failure().is_some() && pod.ended_recently;
    !spoke && pod.waiting.as_deref().is_none_or(|waiting| !waiting.contains("Image"))
}

fn request(desired: &Desired, observed: &Observed, found: &Diagnosis) -> serde_json::Value {
    let name = &found.seat.name;
    let incarnation = found.seat.volume.map_or(0, |volume| volume.incarnation);
    let taken = |number: &u32| {
        let wanted = format!("{name}-r{number}");
        observed.requests.iter().any(|request| request.name == wanted)
    };
    let most = u32::try_from(observed.requests.len()).unwrap_or_default();
    let number = (incarnation + 1..=incarnation + 1 + most).find(|number| !taken(number)).unwrap_or_default();
    let mut labels = labels(desired);
    labels.insert(names::CREATED_BY.to_owned(), names::REPAIR.into());
    labels.insert(names::MEMBER.to_owned(), name.as_str().into());
    json!({
        "apiVersion": "quorate.dev/v1alpha1",
        "kind": "EtcdMemberReplacement",
        "metadata": {
            "name": format!("{name}-r{number}"),
            "namespace": desired.namespace,
            "labels": labels,
            "annotations": {names::WHY: found.why, names::COUNTED: (!found.proven).to_string()},
            "ownerReferences": owner(desired),
        },
        "spec": {
            "clusterRef": {"name": desired.name},
            // The ID, not the name: it can be nobody else's.
            "memberID": found.seat.id.to_string(),
            "strategy": found.strategy,
            "volume": found.volume,
        },
    })
}
