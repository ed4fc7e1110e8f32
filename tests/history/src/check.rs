//! Whether a history could have come from an etcd that keeps its promises. Pure, and nearly linear: the total order
//! is not searched for, it is what the watchers saw.
//!
//! - Each acknowledged write is in the order once, at its revision; one with an unknown end at most once; one that
//!   failed never; and nothing else is below the prefix.
//! - What returned before something was invoked has the lower revision. That a serializable read or a watcher showed
//!   a revision counts too: a member applies only what is committed.
//! - Each answer is what the order, played back to the answer's revision, gives.
//! - Each watcher sees every revision once, in order, in one response.
//! - In the end all members have the same hash, the same member list, and the whole order.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use crate::history::{
    Call, Effect, End, Event, History, MemberEnd, Operation, Outcome, Revision, Stored, Swapped, Watched,
};

/// So many violations are told; after a fork every revision is one.
const TOLD: usize = 20;

/// What came of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What must not be.
    pub violations: Vec<Violation>,
    /// Acknowledged writes: a history with few of them proves little.
    pub acknowledged: usize,
    /// Writes that nobody knows the end of.
    pub unknown: usize,
    /// The longest time without an acknowledged write.
    pub longest_gap: Gap,
}

/// A time without acknowledged writes, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// The last one before, or the start.
    pub from: Duration,
    /// The first one after, or when the load was told to stop.
    pub to: Duration,
}

/// An operation, by its place in the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Which {
    /// Its index in [`History::operations`].
    pub operation: usize,
    /// What it was.
    pub words: String,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the sentences say what the fields are")]
pub enum Violation {
    #[error("{which}, acknowledged at revision {revision}, is lost: no watcher saw it")]
    Lost { which: Which, revision: Revision },
    #[error("{which}, acknowledged at revision {revision}, was seen at {seen}")]
    Moved { which: Which, revision: Revision, seen: Revision },
    #[error("{which} was done twice, at revisions {first} and {second}")]
    DoneTwice { which: Which, first: Revision, second: Revision },
    #[error("{which} was answered as not done, but was seen at revision {seen}")]
    DoneAllTheSame { which: Which, seen: Revision },
    #[error("{first} and {second} were both acknowledged at revision {revision}")]
    Shared { first: Which, second: Which, revision: Revision },
    #[error("revision {revision} changed {key}, which no operation did")]
    Unexplained { revision: Revision, key: String },
    #[error("{which} has revision {revision}, but {floor} was known before it began")]
    BackInTime { which: Which, revision: Revision, floor: Revision },
    #[error("{which} is stale: it answered with revision {revision}, but {floor} was known before it began")]
    Stale { which: Which, revision: Revision, floor: Revision },
    #[error("{which} says that {key} was {answered} at revision {revision}, but it was {replayed}")]
    Misread { which: Which, revision: Revision, key: String, answered: String, replayed: String },
    #[error("the watcher of {member} never saw revisions {from} to {to}")]
    Missed { member: String, from: Revision, to: Revision },
    #[error("the watcher of {member} saw revision {revision} again")]
    Repeated { member: String, revision: Revision },
    #[error("the watcher of {member} saw revision {revision} after {after}")]
    Reordered { member: String, revision: Revision, after: Revision },
    #[error("the watcher of {member} saw revision {revision} in parts")]
    Torn { member: String, revision: Revision },
    #[error("the watcher of {member} must have seen revision {end} in the end, but next it expects {next}")]
    Behind { member: String, next: Revision, end: Revision },
    #[error("revision {revision} is not the same at {one} and at {other}")]
    Forked { revision: Revision, one: String, other: String },
    #[error("in the end {member} did not tell what it has: {why}")]
    Silent { member: String, why: String },
    #[error("in the end {one} and {other} are in different clusters")]
    Split { one: String, other: String },
    #[error("in the end {one} and {other} have different data (HashKV, compact revision): {hashes}")]
    HashesDiffer { one: String, other: String, hashes: String },
    #[error("in the end {one} and {other} have different member lists: {lists}")]
    ListsDiffer { one: String, other: String, lists: String },
    #[error("nobody looked at the end")]
    Unfinished,
}

/// Judges a finished history.
pub fn check(history: &History) -> Verdict {
    let mut violations = Vec::new();
    let order = order(history, &mut violations);
    let floors = floors(history);
    let done = match_writes(history, &order, &floors, &mut violations);
    let judged = history.operations.iter().zip(&done).zip(&floors).enumerate();
    for (index, ((operation, done), floor)) in judged {
        let which = || which(history, index);
        violations.extend(once(operation, done, which));
        violations.extend(in_time(operation, done, *floor, which));
    }
    violations.extend(same_revision(history));
    violations.extend(replay(history, &order, &done));
    match &history.end {
        Some(end) if !end.members.is_empty() => {
            violations.extend(behind(history, end));
            violations.extend(agreement(end));
        }
        Some(_) | None => violations.push(Violation::Unfinished),
    }
    let count = |wanted: fn(Effect) -> bool| {
        history.operations.iter().filter(|operation| wanted(operation.call.effect())).count()
    };
    Verdict {
        violations,
        acknowledged: count(|effect| matches!(effect, Effect::At(_))),
        unknown: count(|effect| effect == Effect::Unknown),
        longest_gap: longest_gap(history),
    }
}

fn which(history: &History, operation: usize) -> Which {
    let words = history.operations.get(operation).map(ToString::to_string).unwrap_or_default();
    Which { operation, words }
}

/// What changed below the prefix, by revision.
type Order<'h> = BTreeMap<Revision, Vec<&'h Event>>;

/// The total order: what all watchers saw, each of them without a fault and none against another.
fn order<'h>(history: &'h History, violations: &mut Vec<Violation>) -> Order<'h> {
    let mut known: BTreeMap<Revision, (&str, Vec<&Event>)> = BTreeMap::new();
    for (member, watched) in &history.watchers {
        let view = view(member, watched, history.start, violations);
        for (revision, events) in view {
            match known.entry(revision) {
                Entry::Vacant(place) => {
                    place.insert((member, events));
                }
                Entry::Occupied(there) if there.get().1 != events => {
                    let (one, other) = (there.get().0.to_owned(), member.clone());
                    violations.push(Violation::Forked { revision, one, other });
                }
                Entry::Occupied(_) => {}
            }
        }
    }
    let ours = |(revision, (_, events)): (Revision, (&str, Vec<&'h Event>))| {
        let ours: Vec<_> =
            events.into_iter().filter(|event| event.key.starts_with(&history.prefix)).collect();
        (!ours.is_empty()).then_some((revision, ours))
    };
    known.into_iter().filter_map(ours).collect()
}

/// What one watcher saw, by revision.
fn view<'h>(
    member: &str,
    watched: &'h [Watched],
    start: Revision,
    violations: &mut Vec<Violation>,
) -> BTreeMap<Revision, Vec<&'h Event>> {
    let mut view = BTreeMap::new();
    let mut compacted = Vec::new();
    let mut last = start;
    for watched in watched {
        match watched {
            Watched::Resumed { .. } => {}
            Watched::Compacted { revision, .. } => {
                compacted.push((last + 1, *revision));
                last = last.max(*revision);
            }
            Watched::Response { events, .. } => {
                for group in events.chunk_by(|one, next| one.revision == next.revision) {
                    violations.extend(take(&mut view, member, group, last));
                    last = group.iter().map(|event| event.revision).fold(last, Revision::max);
                }
            }
        }
    }
    let seen = view.keys().map(|revision| (*revision, *revision));
    let missed = holes(start, seen.chain(compacted).collect());
    violations.extend(missed.into_iter().map(|(from, to)| Violation::Missed {
        member: member.to_owned(),
        from,
        to,
    }));
    view
}

/// Adds the events of one revision in one response.
fn take<'h>(
    view: &mut BTreeMap<Revision, Vec<&'h Event>>,
    member: &str,
    group: &'h [Event],
    last: Revision,
) -> Option<Violation> {
    let revision = group.first()?.revision;
    let member = member.to_owned();
    let known = view.get(&revision).map_or(0, Vec::len);
    let there = view.entry(revision).or_default();
    let mut again = false;
    for event in group {
        // A transaction changes a key once.
        let repeated = there.contains(&event);
        again |= repeated;
        if !repeated {
            there.push(event);
        }
    }
    match (again, known) {
        (true, _) => Some(Violation::Repeated { member, revision }),
        (false, 1..) => Some(Violation::Torn { member, revision }),
        (false, 0) => (revision <= last).then_some(Violation::Reordered { member, revision, after: last }),
    }
}

/// What is not covered between the start and the end of the last range.
fn holes(start: Revision, mut covered: Vec<(Revision, Revision)>) -> Vec<(Revision, Revision)> {
    covered.sort_unstable();
    let mut holes = Vec::new();
    let mut next = start + 1;
    for (from, to) in covered {
        if from > next {
            holes.push((next, from - 1));
        }
        next = next.max(to + 1);
    }
    holes
}

/// For each operation the highest revision that was known to anybody before it was invoked.
fn floors(history: &History) -> Vec<Revision> {
    let answered = history
        .operations
        .iter()
        .filter_map(|operation| Some((operation.returned, operation.call.revision()?)));
    let watched = history.watchers.values().flatten().filter_map(|watched| match watched {
        Watched::Response { at, events } => Some((*at, events.iter().map(|event| event.revision).max()?)),
        Watched::Resumed { .. } | Watched::Compacted { .. } => None,
    });
    let mut known: Vec<(Duration, Revision)> = answered.chain(watched).collect();
    known.sort_unstable();
    let mut known = known.into_iter().peekable();
    let mut invoked: Vec<(usize, Duration)> =
        history.operations.iter().map(|operation| operation.invoked).enumerate().collect();
    invoked.sort_unstable_by_key(|(_, invoked)| *invoked);
    let mut floor = history.start;
    let mut floors: Vec<(usize, Revision)> = Vec::with_capacity(invoked.len());
    for (operation, invoked) in invoked {
        while let Some((_, revision)) = known.next_if(|(returned, _)| *returned < invoked) {
            floor = floor.max(revision);
        }
        floors.push((operation, floor));
    }
    floors.sort_unstable();
    floors.into_iter().map(|(_, floor)| floor).collect()
}

/// For each operation the revisions at which the order has it. A delete has no value to know it by: one with an
/// unknown end is only counted.
fn match_writes(
    history: &History,
    order: &Order<'_>,
    floors: &[Revision],
    violations: &mut Vec<Violation>,
) -> Vec<Vec<Revision>> {
    let mut by_value = HashMap::new();
    let mut by_revision = HashMap::new();
    for (index, operation) in history.operations.iter().enumerate() {
        match &operation.call {
            Call::Put { value, .. } | Call::Swap { value, .. } => {
                by_value.insert(value.as_str(), index);
            }
            Call::Delete { .. } => {
                if let Effect::At(revision) = operation.call.effect() {
                    by_revision.insert(revision, index);
                }
            }
            Call::Read { .. } => {}
        }
    }
    let mut done = vec![Vec::new(); history.operations.len()];
    let mut deletes = unknown_deletes(history, floors);
    for (revision, events) in order {
        let Some(event) = events.first() else { continue };
        let author = match &event.value {
            Some(value) => by_value.get(value.as_str()),
            None => by_revision.get(revision),
        };
        let author =
            author.filter(|index| history.operations.get(**index).is_some_and(|by| did(&by.call, events)));
        if let Some(place) = author.and_then(|index| done.get_mut(*index)) {
            place.push(*revision);
        } else if !(is_delete(events)
            && deletes.get_mut(event.key.as_str()).is_some_and(|left| left.take(*revision)))
        {
            violations.push(Violation::Unexplained { revision: *revision, key: event.key.clone() });
        }
    }
    done
}

fn is_delete(events: &[&Event]) -> bool {
    matches!(events, [event] if event.value.is_none())
}

/// Whether these events are what the call does, all of it and nothing else.
fn did(call: &Call, events: &[&Event]) -> bool {
    let put =
        |event: &Event, key: &str, value: &str| event.key == key && event.value.as_deref() == Some(value);
    match (call, events) {
        (Call::Put { key, value, .. }, [event]) => put(event, key, value),
        (Call::Delete { key, .. }, [event]) => event.key == *key && event.value.is_none(),
        (Call::Swap { key, witness, value, .. }, [one, other]) => {
            put(one, key, value) && put(other, witness, value)
        }
        (Call::Put { .. } | Call::Delete { .. } | Call::Swap { .. } | Call::Read { .. }, _) => false,
    }
}

/// Deletes of one key with an unknown end, by the revision that each must be above.
struct Left {
    floors: Vec<Revision>,
    taken: usize,
}

impl Left {
    /// Uses one of them for this revision; they are asked for in rising order, so it need not be said which.
    fn take(&mut self, revision: Revision) -> bool {
        let fits = self.floors.partition_point(|floor| *floor < revision) > self.taken;
        self.taken += usize::from(fits);
        fits
    }
}

fn unknown_deletes<'h>(history: &'h History, floors: &[Revision]) -> HashMap<&'h str, Left> {
    let mut left: HashMap<&str, Left> = HashMap::new();
    for (operation, floor) in history.operations.iter().zip(floors) {
        if let Call::Delete { key, outcome: Outcome::Unknown(_) } = &operation.call {
            let of_key = left.entry(key).or_insert(Left { floors: Vec::new(), taken: 0 });
            of_key.floors.push(*floor);
        }
    }
    for left in left.values_mut() {
        left.floors.sort_unstable();
    }
    left
}

/// An acknowledged write is done once, an unknown one at most once, any other never.
fn once(operation: &Operation, done: &[Revision], which: impl Fn() -> Which) -> Option<Violation> {
    match (operation.call.effect(), done) {
        (Effect::None, [seen, ..]) => Some(Violation::DoneAllTheSame { which: which(), seen: *seen }),
        (Effect::At(_) | Effect::Unknown, [first, second, ..]) => {
            Some(Violation::DoneTwice { which: which(), first: *first, second: *second })
        }
        (Effect::At(revision), []) => Some(Violation::Lost { which: which(), revision }),
        (Effect::At(revision), [seen]) => {
            (*seen != revision).then(|| Violation::Moved { which: which(), revision, seen: *seen })
        }
        (Effect::None, []) | (Effect::Unknown, [] | [_]) => None,
    }
}

/// Real time: a write makes a revision above all that were known before, a read shows none below.
fn in_time(
    operation: &Operation,
    done: &[Revision],
    floor: Revision,
    which: impl Fn() -> Which,
) -> Option<Violation> {
    let made = match operation.call.effect() {
        Effect::At(revision) => Some(revision),
        Effect::Unknown => done.first().copied(),
        Effect::None => None,
    };
    if let Some(revision) = made {
        return (revision <= floor).then(|| Violation::BackInTime { which: which(), revision, floor });
    }
    let may_be_old = matches!(operation.call, Call::Read { linearizable: false, .. });
    let revision = operation.call.revision().filter(|_| !may_be_old)?;
    (revision < floor).then(|| Violation::Stale { which: which(), revision, floor })
}

/// Two acknowledged writes cannot have made one revision.
fn same_revision(history: &History) -> Vec<Violation> {
    let mut made = HashMap::new();
    let mut violations = Vec::new();
    for (index, operation) in history.operations.iter().enumerate() {
        if let Effect::At(revision) = operation.call.effect()
            && let Some(earlier) = made.insert(revision, index)
        {
            let (first, second) = (which(history, earlier), which(history, index));
            violations.push(Violation::Shared { first, second, revision });
        }
    }
    violations
}

/// The state below the prefix.
type State<'h> = BTreeMap<&'h str, Stored>;

/// Plays the order back and compares each answer with it.
fn replay(history: &History, order: &Order<'_>, done: &[Vec<Revision>]) -> Vec<Violation> {
    let questions = history.operations.iter().zip(done).enumerate();
    let mut questions: Vec<(Revision, usize)> = questions
        .filter_map(|(index, (operation, done))| Some((state_told(&operation.call, done)?, index)))
        .collect();
    questions.sort_unstable();
    let mut state = State::new();
    let mut order = order.iter().peekable();
    let mut violations = Vec::new();
    for (revision, index) in questions {
        while let Some((_, events)) = order.next_if(|(next, _)| **next <= revision) {
            apply(&mut state, events);
        }
        let Some(operation) = history.operations.get(index) else { continue };
        if let Some((key, answered, replayed)) = difference(&operation.call, &state) {
            violations.push(Violation::Misread {
                which: which(history, index),
                revision,
                key,
                answered,
                replayed,
            });
        }
    }
    violations
}

fn apply<'h>(state: &mut State<'h>, events: &[&'h Event]) {
    for event in events {
        match &event.value {
            Some(value) => {
                state.insert(event.key.as_str(), Stored { value: value.clone(), revision: event.revision })
            }
            None => state.remove(event.key.as_str()),
        };
    }
}

/// The revision whose state a call tells of: a write that was done tells of the one before it.
fn state_told(call: &Call, done: &[Revision]) -> Option<Revision> {
    match call.effect() {
        Effect::At(revision) => Some(revision - 1),
        Effect::None => call.revision(),
        Effect::Unknown => done.first().map(|revision| revision - 1),
    }
}

/// The first key for which a call tells another state: the key, what is told, what is.
fn difference(call: &Call, state: &State<'_>) -> Option<(String, String, String)> {
    let held = |key: &str| state.get(key).map(|stored| stored.value.as_str());
    match call {
        Call::Put { .. } => None,
        Call::Delete { key, outcome } => {
            let Outcome::Acknowledged { answer: deleted, .. } = outcome else { return None };
            let told = if *deleted { "there" } else { "absent" };
            (*deleted != held(key).is_some()).then(|| (key.clone(), told.to_owned(), shown(held(key))))
        }
        Call::Swap { key, expected, outcome, .. } => {
            let told = match outcome {
                Outcome::Acknowledged { answer: Swapped::Held(found), .. } if found == expected => {
                    return Some((key.clone(), "not what was expected".to_owned(), shown(held(key))));
                }
                Outcome::Acknowledged { answer: Swapped::Held(found), .. } => found,
                // One of unknown end is asked about only if it was done.
                Outcome::Acknowledged { answer: Swapped::Done, .. } | Outcome::Unknown(_) => expected,
                Outcome::Failed(_) => return None,
            };
            let told = told.as_deref();
            (told != held(key)).then(|| (key.clone(), shown(told), shown(held(key))))
        }
        Call::Read { outcome, .. } => {
            let Outcome::Acknowledged { answer, .. } = outcome else { return None };
            let mut keys = state.keys().copied().chain(answer.keys().map(String::as_str));
            let key = keys.find(|key| state.get(key) != answer.get(*key))?;
            let words = |stored: Option<&Stored>| match stored {
                Some(stored) => format!("{} of revision {}", stored.value, stored.revision),
                None => shown(None),
            };
            Some((key.to_owned(), words(answer.get(key)), words(state.get(key))))
        }
    }
}

fn shown(value: Option<&str>) -> String {
    value.unwrap_or("absent").to_owned()
}

/// Watchers of members that are there in the end, but did not see all.
fn behind(history: &History, end: &End) -> Vec<Violation> {
    let answered = end.members.iter().filter(|(_, answer)| answer.is_ok());
    let behind = answered.filter_map(|(member, _)| {
        let next = history.next_revision(member);
        (next <= end.revision).then(|| Violation::Behind { member: member.clone(), next, end: end.revision })
    });
    behind.collect()
}

/// What the members differ in.
pub(crate) fn agreement(end: &End) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut first: Option<(&String, &MemberEnd)> = None;
    for (member, answer) in &end.members {
        match answer {
            Err(why) => violations.push(Violation::Silent { member: member.clone(), why: why.clone() }),
            Ok(answer) => match first {
                None => first = Some((member, answer)),
                Some(first) => violations.extend(disagreement(first, (member, answer))),
            },
        }
    }
    violations
}

fn disagreement(first: (&String, &MemberEnd), second: (&String, &MemberEnd)) -> Vec<Violation> {
    let ((one, left), (other, right)) = (first, second);
    let names = || (one.clone(), other.clone());
    let mut violations = Vec::new();
    if left.cluster_id != right.cluster_id {
        let (one, other) = names();
        violations.push(Violation::Split { one, other });
    }
    let hashes = [left, right].map(|end| (end.hash, end.compact_revision));
    if hashes[0] != hashes[1] {
        let (one, other) = names();
        violations.push(Violation::HashesDiffer { one, other, hashes: format!("{hashes:?}") });
    }
    if left.listed != right.listed {
        let (one, other) = names();
        let lists = format!("{:?} and {:?}", left.listed, right.listed);
        violations.push(Violation::ListsDiffer { one, other, lists });
    }
    violations
}

fn longest_gap(history: &History) -> Gap {
    let writes =
        history.operations.iter().filter(|operation| matches!(operation.call.effect(), Effect::At(_)));
    let mut times: Vec<Duration> = writes.map(|operation| operation.returned).collect();
    times.push(history.ended);
    times.sort_unstable();
    let mut longest = Gap::default();
    let mut from = Duration::ZERO;
    for to in times {
        let gap = Gap { from, to };
        if gap.length() > longest.length() {
            longest = gap;
        }
        from = to;
    }
    longest
}

impl Gap {
    /// How long it is.
    pub fn length(&self) -> Duration {
        self.to.saturating_sub(self.from)
    }
}

impl Verdict {
    /// One line of numbers.
    pub fn summary(&self) -> String {
        format!(
            "{} writes acknowledged, {} with an unknown end, {} violations; longest gap of writes {:.2} s, from {:.1} s on",
            self.acknowledged,
            self.unknown,
            self.violations.len(),
            self.longest_gap.length().as_secs_f64(),
            self.longest_gap.from.as_secs_f64(),
        )
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.summary())?;
        for violation in self.violations.iter().take(TOLD) {
            write!(out, "\n{violation}")?;
        }
        match self.violations.len().saturating_sub(TOLD) {
            0 => Ok(()),
            more => write!(out, "\nand {more} more"),
        }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "operation {} ({})", self.operation, self.words)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.call {
            Call::Put { key, value, .. } => write!(out, "put {key}={value}")?,
            Call::Delete { key, .. } => write!(out, "delete {key}")?,
            Call::Swap { key, value, expected, .. } => {
                write!(out, "swap {key} from {} to {value}", shown(expected.as_deref()))?;
            }
            Call::Read { linearizable: true, .. } => write!(out, "linearizable read")?,
            Call::Read { linearizable: false, .. } => write!(out, "serializable read")?,
        }
        write!(out, " at {}, {:.3} s", self.member, self.invoked.as_secs_f64())
    }
}
