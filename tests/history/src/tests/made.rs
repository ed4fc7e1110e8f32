//! A good history, and the same one with one thing wrong: each is found by a sentence of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use expect_test::{Expect, expect};

use crate::check::{Gap, check};
use crate::history::{
    Call, End, Event, History, Listed, MemberEnd, Operation, Outcome, Revision, Stored, Swapped, Watched,
};

const PREFIX: &str = "history/";
/// Instants of the histories.
const STEP: Duration = Duration::from_millis(10);

/// A model of etcd that notes a history as it is asked.
struct Made {
    history: History,
    now: Duration,
    revision: Revision,
    state: BTreeMap<String, Stored>,
    events: Vec<Event>,
}

impl Made {
    fn new() -> Self {
        let history = History { prefix: PREFIX.to_owned(), start: 10, ..History::default() };
        Self { history, now: Duration::ZERO, revision: 10, state: BTreeMap::new(), events: Vec::new() }
    }

    fn change(&mut self, changes: &[(String, Option<&str>)]) -> Revision {
        self.revision += 1;
        let revision = self.revision;
        for (key, value) in changes {
            let value = value.map(str::to_owned);
            match value.clone() {
                Some(value) => drop(self.state.insert(key.clone(), Stored { value, revision })),
                None => drop(self.state.remove(key)),
            }
            self.events.push(Event { revision, key: key.clone(), value });
        }
        revision
    }

    fn note(&mut self, call: Call) {
        let (client, member) = ("client".to_owned(), "m0".to_owned());
        let (invoked, returned) = (self.now + STEP, self.now + 2 * STEP);
        self.now = returned;
        self.history.operations.push(Operation { client, member, invoked, returned, call });
    }

    fn put(&mut self, key: &str, value: &str) {
        let key = format!("{PREFIX}{key}");
        let revision = self.change(&[(key.clone(), Some(value))]);
        let outcome = Outcome::Acknowledged { revision, answer: () };
        self.note(Call::Put { key, value: value.to_owned(), outcome });
    }

    /// Without an acknowledgement.
    fn try_to_put(&mut self, key: &str, value: &str, done: bool, outcome: Outcome<()>) {
        let key = format!("{PREFIX}{key}");
        if done {
            self.change(&[(key.clone(), Some(value))]);
        }
        self.note(Call::Put { key, value: value.to_owned(), outcome });
    }

    fn delete(&mut self, key: &str) {
        let key = format!("{PREFIX}{key}");
        let answer = self.state.contains_key(&key);
        let revision = if answer { self.change(&[(key.clone(), None)]) } else { self.revision };
        self.note(Call::Delete { key, outcome: Outcome::Acknowledged { revision, answer } });
    }

    fn delete_unheard(&mut self, key: &str) {
        let key = format!("{PREFIX}{key}");
        self.change(&[(key.clone(), None)]);
        self.note(Call::Delete { key, outcome: Outcome::Unknown("late".to_owned()) });
    }

    fn swap(&mut self, expected: Option<&str>, value: &str) {
        let (key, witness) = (format!("{PREFIX}register"), format!("{PREFIX}witness"));
        let (expected, value) = (expected.map(str::to_owned), value.to_owned());
        let found = self.state.get(&key).map(|stored| stored.value.clone());
        let (revision, answer) = if found == expected {
            let changes = [(key.clone(), Some(value.as_str())), (witness.clone(), Some(value.as_str()))];
            (self.change(&changes), Swapped::Done)
        } else {
            (self.revision, Swapped::Held(found))
        };
        let outcome = Outcome::Acknowledged { revision, answer };
        self.note(Call::Swap { key, witness, expected, value, outcome });
    }

    fn read(&mut self, linearizable: bool) {
        let outcome = Outcome::Acknowledged { revision: self.revision, answer: self.state.clone() };
        self.note(Call::Read { linearizable, outcome });
    }

    /// Two watchers saw all of it, one as it came and one at once; two members agree.
    fn finished(mut self) -> History {
        let at = self.now + STEP;
        let mut watched = vec![Watched::Resumed { at: STEP, from: 11 }];
        let groups = self.events.chunk_by(|one, next| one.revision == next.revision);
        watched.extend(groups.map(|group| Watched::Response { at, events: group.to_vec() }));
        let resumed = Watched::Resumed { at, from: 11 };
        let whole = Watched::Response { at, events: self.events };
        self.history.watchers.insert("m0".to_owned(), watched);
        self.history.watchers.insert("m1".to_owned(), vec![resumed, whole]);
        self.history.ended = self.now + STEP;
        let listed =
            Listed { name: "m0".to_owned(), peer_urls: Vec::new(), client_urls: Vec::new(), learner: false };
        let end = MemberEnd { cluster_id: 1, hash: 7, compact_revision: 0, listed: [(1, listed)].into() };
        let members = ["m0", "m1"].map(|name| (name.to_owned(), Ok(end.clone())));
        self.history.end = Some(End { revision: self.revision, members: members.into() });
        self.history
    }
}

/// Places of operations in [`good`] that are spoilt.
const PUT_B: usize = 1;
const FIRST_SWAP: usize = 2;
const READ: usize = 4;
const VAIN_SWAP: usize = 6;
const VAIN_DELETE: usize = 7;
const UNHEARD_PUT: usize = 8;
const UNHEARD_DELETE: usize = 11;
const LAST_READ: usize = 12;

fn good() -> History {
    let mut made = Made::new();
    made.put("a", "one"); // 11
    made.put("b", "two"); // 12
    made.swap(None, "three"); // 13
    made.change(&[("of somebody else".to_owned(), Some("x"))]); // 14
    made.state.remove("of somebody else");
    made.delete("a"); // 15
    made.read(true);
    made.read(false);
    made.swap(Some("never"), "four");
    made.delete("a");
    made.try_to_put("c", "five", true, Outcome::Unknown("late".to_owned())); // 16
    made.try_to_put("d", "six", false, Outcome::Unknown("late".to_owned()));
    made.try_to_put("e", "seven", false, Outcome::Failed("refused".to_owned()));
    made.delete_unheard("b"); // 17
    made.read(true);
    made.swap(Some("three"), "eight"); // 18
    made.finished()
}

fn sentences(history: &History) -> String {
    let violations = check(history).violations;
    violations.iter().fold(String::new(), |text, violation| text + &violation.to_string() + "\n")
}

/// Spoils the good history and compares what is found.
fn found(spoil: impl FnOnce(&mut History), expected: &Expect) {
    let mut history = good();
    spoil(&mut history);
    assert_ne!(history, good(), "nothing was spoilt");
    expected.assert_eq(&sentences(&history));
}

/// Responses of a watcher; 0 is where it resumed.
fn watched<'h>(history: &'h mut History, member: &str) -> &'h mut Vec<Watched> {
    history.watchers.get_mut(member).unwrap()
}

/// Events of all responses of a watcher.
fn events<'h>(history: &'h mut History, member: &str) -> impl Iterator<Item = &'h mut Vec<Event>> {
    watched(history, member).iter_mut().filter_map(|watched| match watched {
        Watched::Response { events, .. } => Some(events),
        Watched::Resumed { .. } | Watched::Compacted { .. } => None,
    })
}

/// No watcher of these members saw this revision.
fn forget(history: &mut History, members: &[&str], revision: Revision) {
    for member in members {
        events(history, member).for_each(|events| events.retain(|event| event.revision != revision));
    }
}

fn member_end<'h>(history: &'h mut History, member: &str) -> &'h mut MemberEnd {
    history.end.as_mut().unwrap().members.get_mut(member).unwrap().as_mut().unwrap()
}

#[test]
fn a_good_history_has_no_violation() {
    let verdict = check(&good());
    assert_eq!(verdict.violations, []);
    assert_eq!((verdict.acknowledged, verdict.unknown), (5, 3));
}

#[test]
fn a_lost_write_is_found() {
    // Revision 16 became what nobody acknowledged.
    let lose = |history: &mut History| {
        let mut lost = history.operations[UNHEARD_PUT].clone();
        let (key, value) = (format!("{PREFIX}f"), "nine".to_owned());
        lost.call = Call::Put { key, value, outcome: Outcome::Acknowledged { revision: 16, answer: () } };
        history.operations.push(lost);
    };
    found(
        lose,
        &expect![[r#"
        operation 14 (put history/f=nine at m0, 0.170 s), acknowledged at revision 16, is lost: no watcher saw it
    "#]],
    );
}

#[test]
fn a_write_that_no_watcher_was_told_of_is_found() {
    found(
        |history| forget(history, &["m0", "m1"], 12),
        &expect![[r#"
        the watcher of m0 never saw revisions 12 to 12
        the watcher of m1 never saw revisions 12 to 12
        operation 1 (put history/b=two at m0, 0.030 s), acknowledged at revision 12, is lost: no watcher saw it
        operation 4 (linearizable read at m0, 0.090 s) says that history/b was two of revision 12 at revision 15, but it was absent
        operation 5 (serializable read at m0, 0.110 s) says that history/b was two of revision 12 at revision 15, but it was absent
    "#]],
    );
}

#[test]
fn a_write_at_another_revision_than_its_answer_says_is_found() {
    let move_it = |history: &mut History| {
        let Call::Put { outcome, .. } = &mut history.operations[PUT_B].call else { panic!() };
        *outcome = Outcome::Acknowledged { revision: 14, answer: () };
    };
    found(
        move_it,
        &expect![[r#"
        operation 1 (put history/b=two at m0, 0.030 s), acknowledged at revision 14, was seen at 12
        operation 2 (swap history/register from absent to three at m0, 0.050 s) has revision 13, but 14 was known before it began
    "#]],
    );
}

#[test]
fn a_write_that_is_done_twice_is_found() {
    let repeat = |history: &mut History| {
        for member in ["m0", "m1"] {
            let event = Event { revision: 19, key: format!("{PREFIX}c"), value: Some("five".to_owned()) };
            events(history, member).last().unwrap().push(event);
        }
    };
    found(
        repeat,
        &expect![[r#"
        operation 8 (put history/c=five at m0, 0.170 s) was done twice, at revisions 16 and 19
    "#]],
    );
}

#[test]
fn a_failed_write_that_is_done_is_found() {
    let fail = |history: &mut History| {
        let Call::Put { outcome, .. } = &mut history.operations[UNHEARD_PUT].call else { panic!() };
        *outcome = Outcome::Failed("refused".to_owned());
    };
    found(
        fail,
        &expect![[r#"
        operation 8 (put history/c=five at m0, 0.170 s) was answered as not done, but was seen at revision 16
    "#]],
    );
}

#[test]
fn a_failed_delete_that_is_done_is_found() {
    let fail = |history: &mut History| {
        let Call::Delete { outcome, .. } = &mut history.operations[UNHEARD_DELETE].call else { panic!() };
        *outcome = Outcome::Failed("refused".to_owned());
    };
    found(
        fail,
        &expect![[r#"
        revision 17 changed history/b, which no operation did
    "#]],
    );
}

#[test]
fn one_delete_of_unknown_end_does_not_explain_two() {
    let again = |history: &mut History| {
        for member in ["m0", "m1"] {
            for (revision, value) in [(19, Some("ten".to_owned())), (20, None)] {
                let event = Event { revision, key: format!("{PREFIX}b"), value };
                events(history, member).last().unwrap().push(event);
            }
        }
    };
    found(
        again,
        &expect![[r#"
        revision 19 changed history/b, which no operation did
        revision 20 changed history/b, which no operation did
    "#]],
    );
}

#[test]
fn two_writes_acknowledged_at_one_revision_are_found() {
    let share = |history: &mut History| {
        let mut second = history.operations[3].clone();
        second.client = "other".to_owned();
        history.operations.push(second);
    };
    found(
        share,
        &expect![[r#"
        operation 3 (delete history/a at m0, 0.070 s), acknowledged at revision 15, is lost: no watcher saw it
        operation 3 (delete history/a at m0, 0.070 s) and operation 14 (delete history/a at m0, 0.070 s) were both acknowledged at revision 15
    "#]],
    );
}

#[test]
fn a_write_below_what_was_known_before_is_found() {
    let delay = |history: &mut History| {
        let late = history.operations[FIRST_SWAP].returned + Duration::from_millis(1);
        history.operations[PUT_B].invoked = late;
        history.operations[PUT_B].returned = late;
    };
    found(
        delay,
        &expect![[r#"
        operation 1 (put history/b=two at m0, 0.061 s) has revision 12, but 13 was known before it began
    "#]],
    );
}

#[test]
fn a_write_of_unknown_end_that_was_done_before_it_began_is_found() {
    let delay = |history: &mut History| {
        history.operations[UNHEARD_PUT].invoked = history.latest() + STEP;
    };
    found(
        delay,
        &expect![[r#"
        operation 8 (put history/c=five at m0, 0.300 s) has revision 16, but 18 was known before it began
    "#]],
    );
}

#[test]
fn a_stale_read_is_found_unless_it_may_be_stale() {
    let old = |history: &mut History, linearizable: bool| {
        let stored = |value: &str, revision| Stored { value: value.to_owned(), revision };
        let answer = [("a", stored("one", 11)), ("b", stored("two", 12))];
        let answer = answer.map(|(key, stored)| (format!("{PREFIX}{key}"), stored)).into();
        let outcome = Outcome::Acknowledged { revision: 12, answer };
        history.operations[READ].call = Call::Read { linearizable, outcome };
    };
    found(
        |history| old(history, true),
        &expect![[r#"
        operation 4 (linearizable read at m0, 0.090 s) is stale: it answered with revision 12, but 15 was known before it began
    "#]],
    );
    found(|history| old(history, false), &expect![""]);
}

#[test]
fn a_read_below_what_a_watcher_showed_is_found() {
    let early = |history: &mut History| {
        let before = history.operations[READ].invoked.saturating_sub(Duration::from_millis(1));
        let Watched::Response { at, .. } = watched(history, "m0").last_mut().unwrap() else { panic!() };
        *at = before;
    };
    found(
        early,
        &expect![[r#"
        revision 17 changed history/b, which no operation did
        operation 4 (linearizable read at m0, 0.090 s) is stale: it answered with revision 15, but 18 was known before it began
        operation 6 (swap history/register from never to four at m0, 0.130 s) is stale: it answered with revision 15, but 18 was known before it began
        operation 7 (delete history/a at m0, 0.150 s) is stale: it answered with revision 15, but 18 was known before it began
        operation 8 (put history/c=five at m0, 0.170 s) has revision 16, but 18 was known before it began
        operation 12 (linearizable read at m0, 0.250 s) is stale: it answered with revision 17, but 18 was known before it began
        operation 13 (swap history/register from three to eight at m0, 0.270 s) has revision 18, but 18 was known before it began
    "#]],
    );
}

#[test]
fn a_read_of_what_is_not_there_is_found() {
    let misread = |history: &mut History| {
        let Call::Read { outcome: Outcome::Acknowledged { answer, .. }, .. } =
            &mut history.operations[LAST_READ].call
        else {
            panic!()
        };
        answer.get_mut(&format!("{PREFIX}c")).unwrap().value = "other".to_owned();
    };
    found(
        misread,
        &expect![[r#"
        operation 12 (linearizable read at m0, 0.250 s) says that history/c was other of revision 16 at revision 17, but it was five of revision 16
    "#]],
    );
}

#[test]
fn a_swap_that_succeeded_against_the_replay_is_found() {
    let expect_other = |history: &mut History| {
        let Call::Swap { expected, .. } = &mut history.operations[FIRST_SWAP].call else { panic!() };
        *expected = Some("zero".to_owned());
    };
    found(
        expect_other,
        &expect![[r#"
        operation 2 (swap history/register from zero to three at m0, 0.050 s) says that history/register was zero at revision 12, but it was absent
    "#]],
    );
}

#[test]
fn a_swap_that_failed_against_the_replay_is_found() {
    let expect_right = |history: &mut History| {
        let Call::Swap { expected, .. } = &mut history.operations[VAIN_SWAP].call else { panic!() };
        *expected = Some("three".to_owned());
    };
    found(
        expect_right,
        &expect![[r#"
        operation 6 (swap history/register from three to four at m0, 0.130 s) says that history/register was not what was expected at revision 15, but it was three
    "#]],
    );
}

#[test]
fn a_delete_that_did_not_see_its_key_is_found() {
    let there = |history: &mut History| {
        let Call::Delete { key, .. } = &mut history.operations[VAIN_DELETE].call else { panic!() };
        *key = format!("{PREFIX}b");
    };
    found(
        there,
        &expect![[r#"
        operation 7 (delete history/b at m0, 0.150 s) says that history/b was absent at revision 15, but it was two
    "#]],
    );
}

#[test]
fn a_change_that_nobody_made_is_found() {
    let invade = |history: &mut History| {
        for member in ["m0", "m1"] {
            let all = events(history, member).flatten();
            for event in all.filter(|event| event.revision == 14) {
                event.key = format!("{PREFIX}z");
            }
        }
    };
    found(
        invade,
        &expect![[r#"
        revision 14 changed history/z, which no operation did
        operation 4 (linearizable read at m0, 0.090 s) says that history/z was absent at revision 15, but it was x of revision 14
        operation 5 (serializable read at m0, 0.110 s) says that history/z was absent at revision 15, but it was x of revision 14
        operation 12 (linearizable read at m0, 0.250 s) says that history/z was absent at revision 17, but it was x of revision 14
    "#]],
    );
}

#[test]
fn a_repeated_event_is_found() {
    let repeat = |history: &mut History| {
        let watched = watched(history, "m0");
        watched.insert(3, watched[2].clone());
    };
    found(
        repeat,
        &expect![[r#"
        the watcher of m0 saw revision 12 again
    "#]],
    );
}

#[test]
fn reordered_events_are_found() {
    found(
        |history| watched(history, "m0").swap(2, 3),
        &expect![[r#"
        the watcher of m0 saw revision 12 after 13
    "#]],
    );
}

#[test]
fn a_revision_in_parts_is_found() {
    let tear = |history: &mut History| {
        let watched = watched(history, "m0");
        let Watched::Response { at, events } = &mut watched[3] else { panic!() };
        let second = Watched::Response { at: *at, events: events.split_off(1) };
        watched.insert(4, second);
    };
    found(
        tear,
        &expect![[r#"
        the watcher of m0 saw revision 13 in parts
    "#]],
    );
}

#[test]
fn a_gap_in_a_watch_is_found() {
    found(
        |history| forget(history, &["m1"], 14),
        &expect![[r#"
        the watcher of m1 never saw revisions 14 to 14
    "#]],
    );
}

#[test]
fn a_gap_that_was_compacted_is_none() {
    let compact = |history: &mut History| {
        forget(history, &["m1"], 11);
        forget(history, &["m1"], 12);
        watched(history, "m1").insert(1, Watched::Compacted { at: STEP, revision: 12 });
    };
    found(compact, &expect![""]);
    let and_more = |history: &mut History| {
        compact(history);
        forget(history, &["m1"], 13);
    };
    found(
        and_more,
        &expect![[r#"
        the watcher of m1 never saw revisions 13 to 13
    "#]],
    );
}

#[test]
fn a_watcher_that_does_not_catch_up_is_found() {
    found(
        |history| forget(history, &["m1"], 18),
        &expect![[r#"
        the watcher of m1 must have seen revision 18 in the end, but next it expects 18
    "#]],
    );
}

#[test]
fn forked_members_are_found() {
    let fork = |history: &mut History| {
        let all = events(history, "m1").flatten();
        for event in all.filter(|event| event.revision == 12) {
            event.value = Some("else".to_owned());
        }
    };
    found(
        fork,
        &expect![[r#"
        revision 12 is not the same at m0 and at m1
    "#]],
    );
}

#[test]
fn members_that_differ_in_the_end_are_found() {
    found(
        |history| member_end(history, "m1").hash = 8,
        &expect![[r#"
        in the end m0 and m1 have different data (HashKV, compact revision): [(7, 0), (8, 0)]
    "#]],
    );
    found(
        |history| member_end(history, "m1").cluster_id = 2,
        &expect![[r#"
        in the end m0 and m1 are in different clusters
    "#]],
    );
    found(
        |history| member_end(history, "m1").listed.clear(),
        &expect![[r#"
        in the end m0 and m1 have different member lists: {1: Listed { name: "m0", peer_urls: [], client_urls: [], learner: false }} and {}
    "#]],
    );
    let silence = |history: &mut History| {
        let members = &mut history.end.as_mut().unwrap().members;
        members.insert("m1".to_owned(), Err("no answer".to_owned()));
    };
    found(
        silence,
        &expect![[r#"
        in the end m1 did not tell what it has: no answer
    "#]],
    );
    found(
        |history| history.end = None,
        &expect![[r#"
        nobody looked at the end
    "#]],
    );
}

#[test]
fn the_longest_gap_is_between_acknowledged_writes() {
    let mut history = good();
    // From the delete at 80 ms to the last swap at 280 ms; what was not acknowledged does not count.
    let longest_gap = Gap { from: 8 * STEP, to: 28 * STEP };
    assert_eq!(check(&history).longest_gap, longest_gap);
    // Writes that never come back are a gap too.
    history.ended = Duration::from_secs(9);
    assert_eq!(check(&history).longest_gap, Gap { from: 28 * STEP, to: history.ended });
}

#[test]
fn a_long_history_takes_no_longer_than_a_sort() {
    let mut made = Made::new();
    for number in 0..50_000 {
        let key = format!("key{}", number % 10);
        match number % 5 {
            0 => made.delete(&key),
            1 => made.read(number % 2 == 0),
            _ => made.put(&key, &format!("value{number}")),
        }
    }
    let history = made.finished();
    let begun = std::time::Instant::now();
    assert_eq!(check(&history).violations, []);
    // A comparison of all with all takes minutes.
    assert!(begun.elapsed() < Duration::from_secs(20), "took {:?}", begun.elapsed());
}
