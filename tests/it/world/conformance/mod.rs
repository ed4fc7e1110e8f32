//! The same sequences against the rule-level etcd and against real processes of every minor: `sequences.txt` holds
//! each step with its answer, and both must give exactly that.

pub(crate) mod http;
mod modelled;
pub(crate) mod real;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use expect_test::expect_file;
use quorate::etcd::MemberId;
use quorate::etcd::identity::{bootstrap_cluster_id, bootstrap_member_id};
use quorate::etcd::version::Minor;

use self::modelled::Modelled;
use self::real::Real;
use super::etcd::{Millis, added_member_id};

const SEQUENCES: &str = include_str!("sequences.txt");
const TOKEN: &str = "test/main/uid";
/// Longer than anything takes on a busy machine with two cores.
const PATIENCE: Millis = 60_000;
/// A `soon` step must be answered so early after a start that nobody has been connected for five seconds.
const SOON: Millis = 4900;
/// A sequence in which a `soon` or `within` step came too late is tried anew so often, then left untried: on a machine
/// that busy it cannot be asked.
const TRIES: usize = 3;
/// As many sequences run at once: they mostly wait.
const AT_ONCE: usize = 8;
/// A process that neither runs nor ends.
const STUCK: &str = "neither runs nor ends";

/// What is asked of a member.
pub(super) enum Call<'a> {
    Status,
    Read,
    Keys,
    List { linearizable: bool },
    Put(u64),
    Add { peer_url: &'a str, learner: bool },
    Promote(MemberId),
    Remove(MemberId),
    Move(MemberId),
    Alarms,
    Raise(MemberId, &'a str),
    Disarm(MemberId, &'a str),
}

impl Call<'_> {
    /// How long its answer is awaited: a status needs nobody else, and what needs others etcd gives up after 7 s.
    pub(super) fn deadline(&self) -> Duration {
        if matches!(self, Self::Status) { Duration::from_secs(3) } else { Duration::from_secs(8) }
    }
}

/// What it says.
#[derive(Debug)]
pub(super) enum Reply {
    Done,
    Count(u64),
    Status { cluster: u64, member: MemberId, leader: Option<MemberId>, learner: bool },
    Members(Vec<Row>),
    Added(MemberId),
    Alarms(Vec<(MemberId, String)>),
}

/// A row of a member list.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: MemberId,
    pub(super) name: String,
    pub(super) peer_url: String,
    pub(super) learner: bool,
}

/// What sequences are run against.
pub(super) trait Subject {
    fn now(&self) -> Millis;
    /// Lets a little time pass.
    fn pass(&mut self);
    fn peer_url(&mut self, name: &str) -> String;
    /// Starts a process; if it ended at once, its last line.
    fn start(&mut self, name: &str, cluster: &[&str], new: bool) -> Result<(), String>;
    fn kill(&mut self, name: &str);
    fn pause(&mut self, name: &str);
    fn resume(&mut self, name: &str);
    /// Keeps a copy of a stopped member's disk.
    fn save(&mut self, name: &str);
    /// Puts the copy back.
    fn roll_back(&mut self, name: &str);
    fn wipe(&mut self, name: &str);
    /// Whether a process takes itself for connected to a member, or does not say.
    fn is_connected(&mut self, name: &str, member: MemberId) -> bool;
    /// The last line of a process that ended by itself.
    fn ended(&mut self, name: &str) -> Option<String>;
    fn call(&mut self, name: &str, call: &Call<'_>) -> Result<Reply, String>;
}

/// A sequence under way.
struct Run<'a> {
    subject: &'a mut dyn Subject,
    /// Every ID that a name had, newest last.
    ids: BTreeMap<String, Vec<MemberId>>,
    running: Vec<String>,
    key: u64,
    started: Millis,
    /// The second that `within` means.
    second: Millis,
    /// A `soon` or `within` step came too late.
    late: bool,
    /// Something did not come in time.
    stalled: bool,
}

/// What a sequence gave.
struct Transcript {
    given: Vec<String>,
    late: bool,
    stalled: bool,
}

struct Sequence {
    title: &'static str,
    minors: Vec<Minor>,
    /// Steps as they are written, with their answers.
    lines: Vec<&'static str>,
}

/// Sequences of the file: a title, an optional line with minors, steps with answers.
fn sequences() -> Vec<Sequence> {
    let sections = SEQUENCES.split("\n## ").skip(1);
    let parse = |section: &'static str| {
        let mut lines = section.lines();
        let title = lines.next().unwrap();
        let only = lines.clone().find_map(|line| line.strip_prefix("only "));
        let minors = [Minor::V3_5, Minor::V3_6, Minor::V3_7];
        let meant = |minor: &Minor| only.is_none_or(|only| only.contains(minor_text(*minor)));
        let lines = lines.filter(|line| line.starts_with("    ")).collect();
        Sequence { title, minors: minors.into_iter().filter(meant).collect(), lines }
    };
    sections.map(parse).collect()
}

/// The file again, with these answers.
fn written(transcripts: &BTreeMap<&str, Vec<String>>) -> String {
    let mut lines = Vec::new();
    let mut answers = [].iter();
    for line in SEQUENCES.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            answers = transcripts.get(title).map_or([].iter(), |transcript| transcript.iter());
        }
        match line.strip_prefix("    ") {
            Some(step) => lines.push(answers.next().cloned().unwrap_or_else(|| format!("    {step}"))),
            None => lines.push(line.to_owned()),
        }
    }
    lines.join("\n") + "\n"
}

fn minor_text(minor: Minor) -> &'static str {
    match minor {
        Minor::V3_5 => "3.5",
        Minor::V3_6 => "3.6",
        Minor::V3_7 => "3.7",
    }
}

/// Runs a sequence to its end, or to the first answer that is not `wanted`.
fn transcript(subject: &mut dyn Subject, lines: &[&str], wanted: bool) -> Transcript {
    let mut run = Run {
        subject,
        ids: BTreeMap::new(),
        running: Vec::new(),
        key: 0,
        started: 0,
        second: 0,
        late: false,
        stalled: false,
    };
    let mut given = Vec::new();
    for line in lines {
        let step = line.trim_start().split(" -> ").next().unwrap_or_default();
        let answer = run.step(step);
        let arrow = if answer.is_empty() { "" } else { " -> " };
        given.push(format!("    {step}{arrow}{answer}"));
        if run.late || (wanted && given.last().map(String::as_str) != Some(*line)) {
            break;
        }
    }
    Transcript { given, late: run.late, stalled: run.stalled }
}

/// Runs a sequence on real processes. A difference, with what was written; `Err`: the machine is too busy for it.
fn difference(folder: &Path, minor: Minor, sequence: &Sequence) -> Result<Option<String>, ()> {
    let mut difference = None;
    for _ in 0..TRIES {
        let Transcript { given, late, stalled } =
            transcript(&mut Real::new(folder, minor), &sequence.lines, true);
        if late {
            continue;
        }
        let (wanted, given) = (sequence.lines[given.len() - 1], given.last().unwrap());
        if wanted == given {
            return Ok(None);
        }
        let minor = minor_text(minor);
        difference = Some(format!("{} on {minor}:\n  written{wanted}\n  real   {given}", sequence.title));
        // An answer that did not come in time may be the machine's fault, and what follows from it.
        if !stalled {
            break;
        }
    }
    if difference.is_none() { Err(()) } else { Ok(difference) }
}

impl Run<'_> {
    fn step(&mut self, step: &str) -> String {
        let words: Vec<&str> = step.split_whitespace().collect();
        match words.as_slice() {
            ["soon", rest @ ..] => {
                let answer = self.step(&rest.join(" "));
                self.late |= self.subject.now() - self.started > SOON;
                answer
            }
            ["within", rest @ ..] => {
                let answer = self.step(&rest.join(" "));
                self.late |= self.subject.now() / 1000 != self.second;
                answer
            }
            ["eventually", rest @ ..] => {
                let step = rest.join(" ");
                self.until(|run| Some(run.step(&step)).filter(|answer| answer.starts_with("ok")))
                    .unwrap_or_else(|| self.step(&step))
            }
            ["found", rest @ ..] => match split_at_of(rest) {
                (names, []) => self.found(names, names),
                (names, cluster) => self.found(names, cluster),
            },
            ["join", name, "of", cluster @ ..] => self.start(name, cluster, false),
            ["again", names @ ..] => {
                let answers: Vec<String> = names.iter().map(|name| self.start(name, &[name], true)).collect();
                answers.join(", ")
            }
            ["kill", names @ ..] => self.each(names, |run, name| {
                run.subject.kill(name);
                run.running.retain(|other| other != name);
            }),
            ["pause", name] => self.each(&[*name], |run, name| run.subject.pause(name)),
            ["resume", name] => self.each(&[*name], |run, name| run.subject.resume(name)),
            ["save", name] => self.each(&[*name], |run, name| run.subject.save(name)),
            ["roll", "back", name] => self.each(&[*name], |run, name| run.subject.roll_back(name)),
            ["wipe", name] => self.each(&[*name], |run, name| run.subject.wipe(name)),
            ["wait", seconds] => {
                let end =
                    self.subject.now() + 1000 * seconds.trim_end_matches('s').parse::<Millis>().unwrap();
                self.until(|run| (run.subject.now() >= end).then_some(()));
                String::new()
            }
            ["second"] => {
                self.until(|run| (run.subject.now() % 1000 < 300).then_some(()));
                self.second = self.subject.now() / 1000;
                String::new()
            }
            ["serve", names @ ..] => {
                self.all(names, |run, name| run.subject.call(name, &Call::Status).is_ok())
            }
            ["ended", name] => {
                let line = self.until(|run| run.subject.ended(name));
                if line.is_some() {
                    self.running.retain(|other| other != name);
                }
                line.map_or("still runs".to_owned(), |line| class_of_line(&line))
            }
            ["notice", name, other] => {
                let other = self.id(other);
                self.all(&[*name], |run, name| !run.subject.is_connected(name, other))
            }
            ["lead", name] => self.lead(name),
            ["elect", names @ ..] => self.elect(names),
            ["keys", name, "are", count] => {
                let wanted: u64 = count.parse().unwrap();
                let mut seen = None;
                let found = self.until(|run| {
                    if let Ok(Reply::Count(count)) = run.subject.call(name, &Call::Keys) {
                        seen = Some(count);
                    }
                    (seen == Some(wanted)).then_some(())
                });
                found.map_or_else(|| format!("no, {seen:?}"), |()| "yes".to_owned())
            }
            ["ids", names @ ..] => self.ids_are_computed(names),
            ["put", name, count] => self.put(name, count.parse().unwrap()),
            ["put", name] => {
                self.key += 1;
                self.ask(name, &Call::Put(self.key))
            }
            [verb, name, rest @ ..] => self.request(verb, name, rest),
            _ => panic!("not a step: {step}"),
        }
    }

    fn request(&mut self, verb: &str, name: &str, rest: &[&str]) -> String {
        let id = rest.first().map(|other| self.id(other));
        match (verb, rest) {
            ("status", []) => self.ask(name, &Call::Status),
            ("read", []) => self.ask(name, &Call::Read),
            ("list", []) => self.ask(name, &Call::List { linearizable: true }),
            ("list-own", []) => self.ask(name, &Call::List { linearizable: false }),
            ("add", [other]) => self.add(name, other, true),
            ("add-voter", [other]) => self.add(name, other, false),
            ("promote", [_]) => self.ask(name, &Call::Promote(id.unwrap())),
            ("remove", [_]) => self.ask(name, &Call::Remove(id.unwrap())),
            ("move", [_]) => self.ask(name, &Call::Move(id.unwrap())),
            ("alarms", []) => self.ask(name, &Call::Alarms),
            ("raise", [_, alarm]) => self.ask(name, &Call::Raise(id.unwrap(), alarm)),
            ("disarm", [_, alarm]) => self.ask(name, &Call::Disarm(id.unwrap(), alarm)),
            _ => panic!("not a step: {verb} {name} {rest:?}"),
        }
    }

    fn found(&mut self, names: &[&str], cluster: &[&str]) -> String {
        for name in cluster {
            let id = bootstrap_member_id(&self.subject.peer_url(name), TOKEN);
            let ids = self.ids.entry((*name).to_owned()).or_default();
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        let answers: Vec<String> = names.iter().map(|name| self.start(name, cluster, true)).collect();
        answers.join(", ")
    }

    /// What an error says; remembers that something did not come in time.
    fn refusal(&mut self, message: &str) -> String {
        let class = class_of_error(message);
        self.stalled |= class == "timeout";
        class
    }

    fn start(&mut self, name: &str, cluster: &[&str], new: bool) -> String {
        if self.running.iter().any(|other| other == name) {
            return "runs already".to_owned();
        }
        self.started = self.subject.now();
        let answer = self.subject.start(name, cluster, new);
        match answer {
            Ok(()) => {
                self.running.push(name.to_owned());
                "runs".to_owned()
            }
            Err(line) => {
                self.stalled |= line.starts_with(STUCK);
                class_of_line(&line)
            }
        }
    }

    fn each(&mut self, names: &[&str], mut action: impl FnMut(&mut Self, &str)) -> String {
        for name in names {
            action(self, name);
        }
        String::new()
    }

    /// Waits until something holds for all.
    fn all(&mut self, names: &[&str], condition: impl Fn(&mut Self, &str) -> bool) -> String {
        let held = self.until(|run| names.iter().all(|name| condition(run, name)).then_some(()));
        held.map_or("never", |()| "yes").to_owned()
    }

    /// Waits until these agree on a leader among them.
    fn elect(&mut self, names: &[&str]) -> String {
        let elected = self.until(|run| run.leader(names).map(drop));
        elected.map_or("none", |()| "one leader").to_owned()
    }

    fn leader(&mut self, names: &[&str]) -> Option<MemberId> {
        let statuses: Vec<(MemberId, Option<MemberId>)> = names
            .iter()
            .filter_map(|name| match self.subject.call(name, &Call::Status) {
                Ok(Reply::Status { member, leader, .. }) => Some((member, leader)),
                _ => None,
            })
            .collect();
        let leader = statuses.first()?.1?;
        let agree = statuses.len() == names.len() && statuses.iter().all(|(_, other)| *other == Some(leader));
        (agree && statuses.iter().any(|(member, _)| *member == leader)).then_some(leader)
    }

    /// Waits for a leader and moves leadership to `name`.
    fn lead(&mut self, name: &str) -> String {
        let wanted = self.id(name);
        let led = self.until(|run| {
            let running = run.running.clone();
            let running: Vec<&str> = running.iter().map(String::as_str).collect();
            let serving: Vec<&str> =
                running.into_iter().filter(|name| run.subject.call(name, &Call::Status).is_ok()).collect();
            let leader = run.leader(&serving)?;
            if leader != wanted {
                let leading = serving.iter().find(|name| run.id(name) == leader)?;
                drop(run.subject.call(leading, &Call::Move(wanted)));
                return None;
            }
            Some(())
        });
        led.map_or("never", |()| "yes").to_owned()
    }

    fn put(&mut self, name: &str, count: u64) -> String {
        let mut acknowledged = 0;
        for _ in 0..count {
            self.key += 1;
            match self.subject.call(name, &Call::Put(self.key)) {
                Ok(_) => acknowledged += 1,
                Err(message) => drop(self.refusal(&message)),
            }
        }
        format!("{acknowledged} acknowledged")
    }

    fn add(&mut self, name: &str, other: &str, learner: bool) -> String {
        let peer_url = self.subject.peer_url(other);
        let before = self.subject.now() / 1000;
        match self.subject.call(name, &Call::Add { peer_url: &peer_url, learner }) {
            Ok(Reply::Added(id)) => {
                let after = self.subject.now() / 1000;
                let mut computed = (before..=after).map(|second| added_member_id(&peer_url, second));
                self.ids.entry(other.to_owned()).or_default().push(id);
                if computed.any(|computed| computed == id) { "ok" } else { "ok, under an unexpected ID" }
                    .to_owned()
            }
            Ok(reply) => format!("{reply:?}"),
            Err(message) => self.refusal(&message),
        }
    }

    /// Whether founders have the IDs that are computed from names and token.
    fn ids_are_computed(&mut self, names: &[&str]) -> String {
        let (names, cluster) = split_at_of(names);
        let cluster = if cluster.is_empty() { names } else { cluster };
        let urls: Vec<String> = cluster.iter().map(|name| self.subject.peer_url(name)).collect();
        let id = bootstrap_cluster_id(urls.iter().map(|url| bootstrap_member_id(url, TOKEN)));
        for name in names {
            let own = bootstrap_member_id(&self.subject.peer_url(name), TOKEN);
            match self.subject.call(name, &Call::Status) {
                Ok(Reply::Status { cluster, member, .. }) if (cluster, member) == (id.0, own) => (),
                other => return format!("{name} says {other:?}, computed are {own} in {id}"),
            }
        }
        "as computed".to_owned()
    }

    fn ask(&mut self, name: &str, call: &Call<'_>) -> String {
        match self.subject.call(name, call) {
            Ok(Reply::Done | Reply::Count(_) | Reply::Added(_)) => "ok".to_owned(),
            Ok(Reply::Members(_)) if matches!(call, Call::Promote(_) | Call::Remove(_)) => "ok".to_owned(),
            Ok(Reply::Members(rows)) => self.describe(&rows),
            Ok(Reply::Status { member, leader, learner, .. }) => {
                let role = if learner { "learner" } else { "voter" };
                let leads = match leader {
                    None => "no leader",
                    Some(leader) if leader == member => "leads",
                    Some(_) => "follows",
                };
                format!("{role}, {leads}")
            }
            Ok(Reply::Alarms(alarms)) => {
                let mut alarms: Vec<String> =
                    alarms.iter().map(|(id, alarm)| format!("{} {alarm}", self.name(*id))).collect();
                alarms.sort();
                if alarms.is_empty() { "none".to_owned() } else { alarms.join(", ") }
            }
            Err(message) => self.refusal(&message),
        }
    }

    /// A member list: names as this sequence has them, not as etcd does, which are in brackets where they differ.
    fn describe(&mut self, rows: &[Row]) -> String {
        let known: Vec<(String, String)> = self
            .ids
            .keys()
            .cloned()
            .collect::<Vec<_>>()
            .into_iter()
            .map(|name| (self.subject.peer_url(&name), name))
            .collect();
        let mut rows: Vec<String> = rows
            .iter()
            .map(|row| {
                let name = known.iter().find(|(url, _)| *url == row.peer_url).map_or("?", |(_, name)| name);
                let newest = self.ids.get(name).and_then(|ids| ids.last()) == Some(&row.id);
                let older = if newest { "" } else { " (older ID)" };
                let named = if row.name == name { "" } else { " (unnamed)" };
                let learner = if row.learner { " (learner)" } else { "" };
                format!("{name}{older}{named}{learner}")
            })
            .collect();
        rows.sort();
        rows.join(", ")
    }

    /// The newest ID of a name; with an apostrophe the one before.
    fn id(&self, name: &str) -> MemberId {
        let back = name.matches('\'').count();
        let ids = self.ids.get(name.trim_end_matches('\''));
        ids.and_then(|ids| ids.iter().rev().nth(back)).copied().unwrap_or(MemberId(0xdead))
    }

    fn name(&self, id: MemberId) -> &str {
        self.ids.iter().find(|(_, ids)| ids.contains(&id)).map_or("?", |(name, _)| name)
    }

    fn until<T>(&mut self, mut condition: impl FnMut(&mut Self) -> Option<T>) -> Option<T> {
        let end = self.subject.now() + PATIENCE;
        loop {
            if let Some(found) = condition(self) {
                return Some(found);
            }
            if self.subject.now() > end {
                self.stalled = true;
                return None;
            }
            self.subject.pass();
        }
    }
}

fn split_at_of<'a, 'b>(words: &'a [&'b str]) -> (&'a [&'b str], &'a [&'b str]) {
    match words.iter().position(|word| *word == "of") {
        Some(place) => (&words[..place], &words[place + 1..]),
        None => (words, &[]),
    }
}

/// What a message of etcd's says, without its prefix; whatever has no answer in time is a timeout.
fn class_of_error(message: &str) -> String {
    let slow = ["timed out", "deadline exceeded", "os error 11", "timeout"];
    if slow.iter().any(|part| message.contains(part)) {
        return "timeout".to_owned();
    }
    if message.to_lowercase().contains("connection refused") {
        return "connection refused".to_owned();
    }
    message.trim_start_matches("etcdserver: ").to_owned()
}

/// What a last line says, without IDs and addresses.
fn class_of_line(line: &str) -> String {
    const CLASSES: [&str; 10] = [
        "has already been bootstrapped",
        "member count is unequal",
        "PeerURLs: no match found for existing member",
        "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs",
        "is out of range [lastIndex(",
        "conflict with committed entry",
        "the member has been permanently removed from the cluster",
        "membership: too many learner members in cluster",
        "couldn't find local name",
        "has duplicate url",
    ];
    let class = CLASSES.iter().find(|class| line.contains(**class));
    class.map_or_else(|| format!("ended: {line}"), |class| format!("ended: {class}"))
}

#[test]
fn the_model_answers_as_written() {
    let mut differences = Vec::new();
    let mut transcripts = BTreeMap::new();
    for sequence in sequences() {
        for minor in &sequence.minors {
            let answers = transcript(&mut Modelled::new(*minor), &sequence.lines, false).given;
            let first = transcripts.entry(sequence.title).or_insert_with(|| answers.clone());
            if *first != answers {
                differences.push(format!("{} on {}: {answers:#?}", sequence.title, minor_text(*minor)));
            }
        }
    }
    assert!(differences.is_empty(), "the minors differ: {}", differences.join("\n"));
    expect_file!["sequences.txt"].assert_eq(&written(&transcripts));
}

#[test]
fn real_etcd_answers_as_written() {
    let folder = real::programs();
    let expected = sequences();
    let mut work: Vec<(usize, Minor)> = Vec::new();
    for (index, sequence) in expected.iter().enumerate() {
        work.extend(sequence.minors.iter().map(|minor| (index, *minor)));
    }
    // Those that may have to be tried again begin first.
    work.sort_by_key(|(index, _)| expected[*index].lines.iter().any(|line| line.contains(" soon ")));
    let work = Mutex::new(work);
    let (differences, untried) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some((index, minor)) = work.lock().unwrap().pop() else { break };
                    match difference(&folder, minor, &expected[index]) {
                        Ok(found) => differences.lock().unwrap().extend(found),
                        Err(()) => untried.lock().unwrap().push((expected[index].title, minor_text(minor))),
                    }
                }
            });
        }
    });
    let (differences, untried) = (differences.into_inner().unwrap(), untried.into_inner().unwrap());
    eprintln!("not tried, for the machine is too busy: {untried:?}");
    assert!(differences.is_empty(), "\n{}\n", differences.join("\n"));
}
