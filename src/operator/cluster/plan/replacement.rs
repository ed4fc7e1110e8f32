//! EtcdMemberReplacements: which is taken up, and what is told of each.
//!
//! Pending → Running (what was resolved is written down: member, ID, order, volume) → Complete or Failed; or Pending →
//! Rejected, with the arithmetic, and nothing was touched. At most one runs; the operator's own repairs go before what
//! people ask for, and before growing and shrinking. What a running one does stands in `exchange`.

use jiff::{SignedDuration, Timestamp};

use super::super::desired::Desired;
use super::super::observed::{Observed, Request};
use super::exchange::{Exchange, How, is_another_bad, is_one_of_several};
use super::repair::is_urgent;
use super::roster::{Roster, Seat};
use super::{Finding, Plan, Told, duration_or, is_usable};
use crate::api::condition::{self, READY, RECONCILING, STALLED, Statement};
use crate::api::quantity::{format_bytes, parse_bytes};
use crate::api::reason::Reason;
use crate::api::replacement::{
    EtcdMemberReplacementStatus, Phase, ReplacementStrategy, ReplacementVolume, StepStatus,
};
use crate::etcd::quorum::quorum;

/// What a volume needs beside twice the database: the log, and a snapshot that is being received.
const SPARE_BYTES: u64 = 512 * 1024 * 1024;
/// Repairs that are over and are kept.
const KEPT: usize = 10;
/// Where the spec's own time limit cannot be read.
const TIME_LIMIT: SignedDuration = SignedDuration::from_hours(1);

pub(super) fn rule(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let roster = Roster::of(desired, observed);
    let mut busy = observed.requests.iter().any(|request| request.phase() == Phase::Running);
    let mut requests: Vec<&Request> = observed.requests.iter().filter(|request| !request.deleting).collect();
    let urgent = |request: &Request| roster.as_ref().is_some_and(|roster| is_urgent(roster, request));
    requests.sort_by_key(|request| (!urgent(request), !request.repair));
    for request in requests {
        let verdict = match request.phase() {
            Phase::Running if gives_way(desired, observed, roster.as_ref(), request) => {
                Verdict::pending("Another member needs a repair, which goes first.".to_owned())
            }
            Phase::Running if roster.as_ref().is_some_and(|roster| is_one_of_several(observed, roster)) => {
                several()
            }
            Phase::Running => progress(desired, observed, roster.as_ref(), request),
            Phase::Pending => consider(desired, observed, roster.as_ref(), request, busy),
            Phase::Complete | Phase::Rejected | Phase::Failed => continue,
        };
        busy |= verdict.phase == Phase::Running;
        let status = told(request, &verdict, observed.now);
        if status != request.status {
            plan.requests.push(Told {
                name: request.name.clone(),
                resource_version: request.resource_version.clone(),
                status,
                note: verdict.note(request),
            });
        }
    }
    forget(observed, plan);
    if let Some(exchange) = Exchange::of(observed) {
        let message = exchange.request.status.message.clone().unwrap_or_default();
        plan.findings.push(Finding::waiting(
            Reason::Replacing,
            None,
            format!("{} is being replaced ({}): {message}", exchange.name, exchange.request.name),
        ));
    }
}

/// Of the operator's own, the newest that are over are kept for people to read.
fn forget(observed: &Observed, plan: &mut Plan) {
    let over = observed.requests.iter().filter(|request| request.repair && request.phase().is_over());
    let over: Vec<&Request> = over.filter(|request| !request.deleting).collect();
    let old = over.len().saturating_sub(KEPT);
    plan.forgotten.extend(over.into_iter().take(old).map(|request| request.name.clone()));
}

/// Whether a running one goes back to wait for a repair: while nothing but a learner would be lost, or after a growth has
/// taken the new member for one of its own, so that one more would have to join first.
fn gives_way(desired: &Desired, observed: &Observed, roster: Option<&Roster>, request: &Request) -> bool {
    let (Some(roster), Some(exchange)) = (roster, Exchange::of(observed)) else { return false };
    let waits =
        |other: &Request| is_urgent(roster, other) && other.phase() == Phase::Pending && !other.deleting;
    let new = new_member(observed, roster, &exchange);
    let votes = votes(roster, &exchange, new.as_deref());
    let begun = exchange.seat(roster).is_none() || (votes && roster.voters.len() > desired.replicas);
    !is_urgent(roster, request) && observed.requests.iter().any(waits) && !begun
}

fn several() -> Verdict {
    Verdict::pending("Another member has bad data, too: a person decides which is replaced first.".to_owned())
}

/// The status of a request whose EtcdCluster does not exist; `None` where it is over. A repair goes with its EtcdCluster.
pub(in super::super) fn without_cluster(
    request: &Request,
    now: Timestamp,
) -> Option<EtcdMemberReplacementStatus> {
    let message = format!("There is no EtcdCluster {} in this namespace.", request.spec.cluster_ref.name);
    let verdict = match request.phase() {
        Phase::Pending => Verdict::rejected(&message),
        Phase::Running => Verdict::new(Phase::Failed, "Done", format!("{message} It was deleted meanwhile.")),
        Phase::Complete | Phase::Rejected | Phase::Failed => return None,
    };
    (!request.deleting && !request.repair).then(|| told(request, &verdict, now))
}

/// What there is to tell of a request.
struct Verdict {
    phase: Phase,
    step: &'static str,
    message: String,
    /// What was resolved, on acceptance.
    resolved: Option<Resolved>,
    new_member: Option<String>,
    progress: Option<String>,
    /// Another volume, after the time limit.
    volume: Option<ReplacementVolume>,
    /// Another order, when the old member has failed meanwhile.
    strategy: Option<ReplacementStrategy>,
}

struct Resolved {
    member: String,
    id: String,
    strategy: ReplacementStrategy,
    volume: ReplacementVolume,
}

impl Verdict {
    fn new(phase: Phase, step: &'static str, message: String) -> Self {
        Self {
            phase,
            step,
            message,
            resolved: None,
            new_member: None,
            progress: None,
            volume: None,
            strategy: None,
        }
    }

    fn pending(message: String) -> Self {
        Self::new(Phase::Pending, "Waiting", message)
    }

    fn rejected(message: &str) -> Self {
        Self::new(Phase::Rejected, "Preflight", format!("{message} Nothing was touched."))
    }

    /// An event, when the phase changes.
    fn note(&self, request: &Request) -> Option<(Reason, String)> {
        (self.phase != request.phase() || request.status.phase.is_none())
            .then(|| (reason(self.phase), format!("{}: {}", request.name, self.message)))
            .filter(|(reason, _)| *reason != Reason::ReplacementPending)
    }
}

fn reason(phase: Phase) -> Reason {
    match phase {
        Phase::Pending => Reason::ReplacementPending,
        Phase::Running => Reason::Replacing,
        Phase::Complete => Reason::Replaced,
        Phase::Rejected => Reason::ReplacementRejected,
        Phase::Failed => Reason::ReplacementFailed,
    }
}

/// The status that says so.
fn told(request: &Request, verdict: &Verdict, now: Timestamp) -> EtcdMemberReplacementStatus {
    let mut status = request.status.clone();
    status.observed_generation = Some(request.generation);
    status.phase = Some(verdict.phase);
    if let Some(resolved) = &verdict.resolved {
        status.member = Some(resolved.member.clone());
        status.member_id = Some(resolved.id.clone());
        status.strategy = Some(resolved.strategy);
        status.volume = Some(resolved.volume);
        status.started_at = Some(now.to_string());
    }
    status.volume = verdict.volume.or(status.volume);
    status.strategy = verdict.strategy.or(status.strategy);
    if verdict.new_member.is_some() {
        status.new_member.clone_from(&verdict.new_member);
    }
    status.progress.clone_from(&verdict.progress);
    if status.step.as_deref() != Some(verdict.step) {
        if let Some(last) = status.steps.last_mut() {
            last.finished_at = Some(now.to_string());
        }
        // A step that comes again after another volume was taken goes on under its name.
        status.steps.retain(|step| step.name != verdict.step);
        status.steps.push(StepStatus {
            name: verdict.step.to_owned(),
            started_at: now.to_string(),
            finished_at: None,
        });
        status.step = Some(verdict.step.to_owned());
    }
    status.message = Some(verdict.message.clone());
    if verdict.phase.is_over() && status.finished_at.is_none() {
        status.finished_at = Some(now.to_string());
        if let Some(last) = status.steps.last_mut() {
            last.finished_at = Some(now.to_string());
        }
    }
    status.conditions =
        condition::set(&request.status.conditions, &statements(verdict), request.generation, now);
    status
}

/// kstatus: InProgress, then Current, or Failed.
fn statements(verdict: &Verdict) -> Vec<Statement> {
    let say = |type_, status| Statement {
        type_,
        status,
        reason: reason(verdict.phase),
        message: verdict.message.clone(),
    };
    match verdict.phase {
        Phase::Pending | Phase::Running => vec![say(READY, false), say(RECONCILING, true)],
        Phase::Complete => vec![say(READY, true)],
        Phase::Rejected | Phase::Failed => vec![say(READY, false), say(STALLED, true)],
    }
}

/// Whether one that waits is taken up now.
fn consider(
    desired: &Desired,
    observed: &Observed,
    roster: Option<&Roster>,
    request: &Request,
    busy: bool,
) -> Verdict {
    if desired.deleting {
        return Verdict::rejected(&format!("The EtcdCluster {} is being deleted.", desired.name));
    }
    if desired.spec.paused {
        return Verdict::pending("spec.paused of the EtcdCluster is true.".to_owned());
    }
    let Some(roster) = roster.filter(|roster| roster.has_quorum() && roster.strangers.is_empty()) else {
        return Verdict::pending(format!(
            "{} has no quorum, or members that are unknown: nobody is replaced until it serves.",
            desired.name
        ));
    };
    let seat = match named(observed, roster, request) {
        Ok(seat) => seat,
        Err(why) => return Verdict::rejected(&why),
    };
    if busy {
        return Verdict::pending(
            "Another replacement of this cluster runs; this one waits for its turn.".to_owned(),
        );
    }
    let settled = roster.voters.len() == desired.replicas && roster.learners.is_empty();
    if !settled && !request.repair {
        return Verdict::pending(format!(
            "{} of {} voters, and {} that join: it waits until that is done.",
            roster.voters.len(),
            desired.replicas,
            roster.learners.len()
        ));
    }
    if request.repair && !request.counted && !seat.healthy && is_another_bad(roster, seat) {
        return several();
    }
    if request.repair && !super::repair::is_needed(desired, observed, seat, request) {
        // Not healthy: such as one whose volume was being deleted while it was, and whose Pod ends now.
        let why = if seat.healthy {
            "is well again."
        } else {
            "is no longer as it was when this was asked for, and does not answer: it is judged anew."
        };
        return Verdict::rejected(&format!("{} {why}", seat.name));
    }
    // A repair waits for what a person would be told to bring about.
    let refused = |why: String| if request.repair { Verdict::pending(why) } else { Verdict::rejected(&why) };
    preflight(desired, observed, roster, request, seat).unwrap_or_else(refused)
}

/// The one member that a request is about.
fn named<'r>(observed: &Observed, roster: &'r Roster<'r>, request: &Request) -> Result<&'r Seat<'r>, String> {
    let spec = &request.spec;
    let known = || roster.seats().map(|seat| seat.name.as_str()).collect::<Vec<_>>().join(", ");
    let found: Vec<&Seat> = match (&spec.member, &spec.member_id, &spec.node) {
        (Some(name), _, _) => roster.seats().filter(|seat| seat.name == *name).collect(),
        (_, Some(id), _) => roster.seats().filter(|seat| id.parse() == Ok(seat.id)).collect(),
        (_, _, Some(node)) => {
            let on_it =
                |seat: &&Seat| observed.pods.get(&seat.name).and_then(|pod| pod.node.as_ref()) == Some(node);
            roster.seats().filter(on_it).collect()
        }
        (None, None, None) => Vec::new(),
    };
    let what =
        [&spec.member, &spec.member_id, &spec.node].into_iter().flatten().next().cloned().unwrap_or_default();
    match found.as_slice() {
        [seat] if roster.learners.iter().any(|learner| learner.id == seat.id) => {
            Err(format!("{} has only begun to join and does not vote yet.", seat.name))
        }
        [seat] => Ok(seat),
        [] => Err(format!("{what} is no member, or no node of one. The members are {}.", known())),
        several => {
            let names: Vec<&str> = several.iter().map(|seat| seat.name.as_str()).collect();
            Err(format!("{what} runs more than one member: {}. Name one of them.", names.join(", ")))
        }
    }
}

fn preflight(
    desired: &Desired,
    observed: &Observed,
    roster: &Roster,
    request: &Request,
    seat: &Seat,
) -> Result<Verdict, String> {
    let name = &seat.name;
    let (strategy, mut volume) = resolve(request, seat);
    if request.repair && !has_usable_volume(desired, observed, name) {
        volume = ReplacementVolume::New;
    }
    let (voters, beside) = (roster.voters.len(), roster.healthy_beside(seat));
    if strategy == ReplacementStrategy::AddFirst {
        if !seat.healthy {
            return Err(format!(
                "AddFirst is for a healthy member, and {name} is not. Use strategy RemoveFirst or Auto."
            ));
        }
        if !roster.all_healthy() {
            return Err(format!(
                "AddFirst adds a voter, which needs all voters to be healthy: {} of {voters} are.",
                roster.healthy()
            ));
        }
    } else if seat.healthy && !roster.all_healthy() {
        return Err(format!(
            "{name} is healthy, and {} of {voters} voters are: nobody who is well leaves while another is not.",
            roster.healthy()
        ));
    } else if beside < quorum(voters) {
        return Err(format!(
            "Without {name} {beside} of {voters} voters would be healthy; quorum is {}. Bring the others back first.",
            quorum(voters)
        ));
    }
    if volume == ReplacementVolume::Keep && !has_usable_volume(desired, observed, name) {
        return Err(format!(
            "The volume {name} cannot be kept: it is gone, is being deleted, or is another's."
        ));
    }
    storage(observed, roster, request)?;
    let how = match (strategy, volume) {
        (ReplacementStrategy::AddFirst, _) => "another member joins, then it leaves",
        (_, ReplacementVolume::Keep) => "it leaves, its data are put aside, and it joins anew on its volume",
        _ => "it leaves, then another joins with a new volume",
    };
    let why = request.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let mut verdict = Verdict::new(
        Phase::Running,
        "Preflight",
        format!("{name} is replaced{why}: {how}. {beside} of the {} other voters are healthy.", voters - 1),
    );
    verdict.resolved = Some(Resolved { member: name.clone(), id: seat.id.to_string(), strategy, volume });
    Ok(verdict)
}

/// Order and volume, where the request leaves them open.
fn resolve(request: &Request, seat: &Seat) -> (ReplacementStrategy, ReplacementVolume) {
    let spec = &request.spec;
    let strategy = match spec.strategy {
        ReplacementStrategy::Auto if seat.healthy && spec.volume != ReplacementVolume::Keep => {
            ReplacementStrategy::AddFirst
        }
        ReplacementStrategy::Auto => ReplacementStrategy::RemoveFirst,
        given @ (ReplacementStrategy::AddFirst | ReplacementStrategy::RemoveFirst) => given,
    };
    let can_be_kept = super::repair::has_bad_data(seat)
        && spec.storage.is_none()
        && spec.placement.is_none()
        && strategy == ReplacementStrategy::RemoveFirst;
    let volume = match spec.volume {
        ReplacementVolume::Auto if can_be_kept => ReplacementVolume::Keep,
        ReplacementVolume::Auto => ReplacementVolume::New,
        given @ (ReplacementVolume::Keep | ReplacementVolume::New) => given,
    };
    (strategy, volume)
}

/// Whether the new volume can be had and holds the data.
fn storage(observed: &Observed, roster: &Roster, request: &Request) -> Result<(), String> {
    let Some(storage) = &request.spec.storage else { return Ok(()) };
    if let Some(class) =
        storage.storage_class_name.as_ref().filter(|class| observed.missing_classes.contains(*class))
    {
        return Err(format!("The storage class {class} of spec.storage.storageClassName does not exist."));
    }
    let Some(size) = &storage.size else { return Ok(()) };
    let bytes = parse_bytes(size).map_err(|error| format!("spec.storage.size: {error}."))?;
    let largest =
        roster.voters.iter().filter_map(|seat| seat.answer).map(|answer| answer.db_size_bytes).max();
    let needed = u64::try_from(largest.unwrap_or_default()).unwrap_or_default() * 2 + SPARE_BYTES;
    if bytes < needed {
        return Err(format!(
            "spec.storage.size {size} is too small: twice the database and room for the log are {}.",
            format_bytes(needed)
        ));
    }
    Ok(())
}

/// Where a running one is.
fn progress(desired: &Desired, observed: &Observed, roster: Option<&Roster>, request: &Request) -> Verdict {
    let step = request.status.step.clone().unwrap_or_default();
    let (Some(roster), Some(exchange)) = (roster, Exchange::of(observed)) else {
        return Verdict::new(
            Phase::Running,
            known_step(&step),
            "The cluster has no quorum: it waits.".to_owned(),
        );
    };
    let new = new_member(observed, roster, &exchange);
    let mut verdict = at(desired, observed, roster, &exchange, new.as_deref());
    verdict.new_member = new;
    if let Some(volume) =
        failed_meanwhile(desired, observed, roster, &exchange).filter(|_| verdict.phase == Phase::Running)
    {
        verdict.strategy = Some(ReplacementStrategy::RemoveFirst);
        verdict.volume = Some(volume);
        verdict.message = format!("{} has failed meanwhile: it leaves first.", exchange.name);
        return verdict;
    }
    if verdict.phase == Phase::Running
        && exchange.how == How::Wipe
        && !has_usable_volume(desired, observed, exchange.name)
    {
        verdict.volume = Some(ReplacementVolume::New);
        verdict.message = format!("the volume {} is gone or going: a new one is made.", exchange.name);
    } else if verdict.phase == Phase::Running && overdue(observed, request) {
        late(roster, &exchange, &mut verdict);
    }
    verdict
}

const STEPS: [&str; 7] = ["Preflight", "Stop", "RemoveOld", "AddLearner", "CatchUp", "Promote", "Done"];

/// Whether a member that was to leave last has lost its data, so that it leaves first; and what becomes of its volume.
fn failed_meanwhile(
    desired: &Desired,
    observed: &Observed,
    roster: &Roster,
    exchange: &Exchange,
) -> Option<ReplacementVolume> {
    let old = exchange.seat(roster).filter(|old| exchange.how == How::AddFirst && old.is_down())?;
    if !has_usable_volume(desired, observed, exchange.name) {
        return Some(ReplacementVolume::New);
    }
    let asked = &exchange.request.spec;
    let keeps = asked.storage.is_none() && asked.placement.is_none();
    let bad = super::repair::has_bad_data(old);
    bad.then_some(if keeps { ReplacementVolume::Keep } else { ReplacementVolume::New })
}

/// Whether the member's volume can be used again.
fn has_usable_volume(desired: &Desired, observed: &Observed, name: &str) -> bool {
    observed.volumes.get(name).is_some_and(|volume| is_usable(desired, volume))
}

fn known_step(word: &str) -> &'static str {
    STEPS.into_iter().find(|step| *step == word).unwrap_or("Preflight")
}

fn new_member(observed: &Observed, roster: &Roster, exchange: &Exchange) -> Option<String> {
    if exchange.how == How::Wipe {
        return roster
            .seats()
            .find(|seat| seat.name == exchange.name && seat.id != exchange.id)
            .map(|seat| seat.name.clone());
    }
    let made_for_it = |volume: &super::super::observed::Volume| volume.replaces == Some(exchange.id);
    let mut names =
        observed.volumes.iter().filter(|(_, volume)| made_for_it(volume)).map(|(name, _)| name.clone());
    names.find(|name| roster.seat(name).is_some()).or_else(|| exchange.request.status.new_member.clone())
}

/// Whether the new member votes already; one that was wiped has the name of the old one.
fn votes(roster: &Roster, exchange: &Exchange, new: Option<&str>) -> bool {
    new.is_some_and(|new| roster.voters.iter().any(|seat| seat.name == new && seat.id != exchange.id))
}

fn at(
    desired: &Desired,
    observed: &Observed,
    roster: &Roster,
    exchange: &Exchange,
    new: Option<&str>,
) -> Verdict {
    let old = exchange.seat(roster);
    let votes = votes(roster, exchange, new);
    let voters = roster.voters.len();
    let whole = voters >= desired.replicas;
    let name = exchange.name;
    let running = |step, message: String| Verdict::new(Phase::Running, step, message);
    // A growth waits until all are well, and nobody else is repaired while this one runs.
    if old.is_none() && !votes && !whole && !voters.is_multiple_of(2) {
        let message = format!(
            "{name} has left; {} voters are wanted, and those who are missing join as the cluster grows.",
            desired.replicas
        );
        return Verdict::new(Phase::Complete, "Done", message);
    }
    if old.is_none() && (votes || whole) {
        let message = match new.filter(|_| votes) {
            None => format!("{name} has left; nobody takes its place, since fewer are wanted now."),
            Some(new) if new == name => {
                format!("{name} was removed, has joined anew on its volume, and votes.")
            }
            Some(new) => format!("{name} has left; its place is taken by {new}."),
        };
        return Verdict::new(Phase::Complete, "Done", message);
    }
    if let Some(old) = old.filter(|_| exchange.how != How::AddFirst || votes) {
        let beside = roster.healthy_beside(old);
        let needed = quorum(roster.voters.len());
        if !old.healthy && !old.is_down() {
            return running(
                "RemoveOld",
                format!("{name} stays for now: its Pod is ready, and only the operator does not reach it."),
            );
        }
        if beside < needed {
            return running(
                "RemoveOld",
                format!("{name} stays for now: without it {beside} voters are healthy, quorum is {needed}."),
            );
        }
        if exchange.how == How::Wipe && observed.pods.contains_key(name) {
            return running(
                "Stop",
                format!("{name} is stopped before it is removed, since its volume is used again."),
            );
        }
        return running("RemoveOld", format!("{name} leaves the member list."));
    }
    let learner = new.and_then(|new| roster.learners.iter().find(|seat| seat.name == new));
    let Some(learner) = learner else {
        return running(
            "AddLearner",
            format!("another member is made ready to join in the place of {name}."),
        );
    };
    let newest =
        roster.voters.iter().filter_map(|seat| Some(seat.answer?.applied_index)).max().unwrap_or_default();
    let has = learner.answer.map_or(0, |answer| answer.applied_index);
    let percent = has.saturating_mul(100).checked_div(newest).unwrap_or_default().min(100);
    // In steps of ten: each is a write.
    let rough = percent / 10 * 10;
    let mut verdict = running("CatchUp", format!("{} copies the data ({rough}%).", learner.name));
    verdict.progress = Some(format!("{rough}%"));
    verdict
}

fn overdue(observed: &Observed, request: &Request) -> bool {
    let limit = duration_or(&request.spec.time_limit, TIME_LIMIT);
    let begun: Option<Timestamp> = request.status.started_at.as_ref().and_then(|at| at.parse().ok());
    begun.is_some_and(|begun| observed.now.duration_since(begun) > limit)
}

/// After the time limit: back while that is possible, else on with another volume.
fn late(roster: &Roster, exchange: &Exchange, verdict: &mut Verdict) {
    let limit = &exchange.request.spec.time_limit;
    if exchange.seat(roster).is_some() {
        verdict.phase = Phase::Failed;
        verdict.message = format!(
            "Not done within {limit}: {} Whatever had joined is taken back; {} stays.",
            verdict.message, exchange.name
        );
    } else if exchange.how == How::Wipe {
        verdict.volume = Some(ReplacementVolume::New);
        verdict.message = format!(
            "Not done within {limit}: {} It is tried again with a new volume; the old one is kept.",
            verdict.message
        );
    } else {
        verdict.message = format!("Longer than {limit}: {} It is tried on.", verdict.message);
    }
}
