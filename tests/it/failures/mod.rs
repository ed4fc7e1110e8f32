//! Failures of real etcds: each is provoked, reported by the real guard, kept as it was reported, and sorted.
//!
//! `tests/fixtures/failures/<minor>/<Failure>[-<how>].json` is the guard's termination message, to the byte.
//! `UPDATE_EXPECT=1` writes these files; without it the same is provoked again, and what is reported must be sorted
//! as the fixture of that name is. Nothing in them is written by hand.

#[expect(dead_code, reason = "shared with the guard's own tests, which use the rest")]
#[path = "../../../guard/tests/guard/cluster.rs"]
mod cluster;
#[path = "../../../guard/tests/guard/http.rs"]
mod http;
mod lone;
#[expect(dead_code, reason = "shared with the guard's own tests, which use the rest")]
#[path = "../../../guard/tests/guard/programs.rs"]
mod programs;
mod provoke;
mod trio;
#[expect(dead_code, reason = "shared with the guard's own tests, which use the rest")]
#[path = "../../../guard/tests/guard/writer.rs"]
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use quorate::etcd::failure::{Exit, Failure, Remedy};
use quorate::operator::cluster::observed::GuardReport;

use self::programs::{MINORS, on_every_minor};

/// What no fixture shows, and why.
const UNPROVOKED: [(&str, &str); 1] =
    [("Unknown", "what was provoked is known; lines that are not are made up by the test below")];

/// What one minor does not do.
const UNPROVOKED_ON: [(&str, &str, &str); 3] = [
    ("3.5", "PeersDiffer", "does not compare on this path"),
    ("3.5", "NoSnapshotToSend", "its raft sends an append without an entry instead"),
    ("3.7", "VersionRefused", "there is no newer minor"),
];

/// What one minor's guards reported, by the name of the fixture.
struct Reports {
    minor: &'static str,
    taken: Mutex<BTreeMap<String, String>>,
}

impl Reports {
    /// Takes a report that must be sorted as its name says.
    fn take(&self, name: &str, message: &str) {
        let minor = self.minor;
        assert_eq!(sorted(message), failure_named(name), "{minor}/{name}: {message}");
        let mut taken = self.taken.lock().unwrap();
        assert!(taken.insert(name.to_owned(), message.to_owned()).is_none(), "{name} is taken twice");
    }

    /// Writes the fixtures, or sees that there are as many as there should be.
    fn compare(self) {
        let (folder, taken) = (folder().join(self.minor), self.taken.into_inner().unwrap());
        if env::var_os("UPDATE_EXPECT").is_some() {
            drop(fs::remove_dir_all(&folder));
            fs::create_dir_all(&folder).unwrap();
            for (name, message) in &taken {
                fs::write(folder.join(format!("{name}.json")), message).unwrap();
            }
        }
        let fixtures: BTreeSet<String> = fixtures(self.minor).into_keys().collect();
        let taken: BTreeSet<String> = taken.into_keys().collect();
        assert_eq!(fixtures, taken, "left: fixtures of {}; right: what was provoked", self.minor);
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/failures")
}

/// A minor's fixtures by name.
fn fixtures(minor: &str) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder().join(minor)).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap())
        })
        .collect()
}

/// The failure that a fixture is of.
fn failure_named(fixture: &str) -> &str {
    fixture.split('-').next().unwrap_or(fixture)
}

/// The failure's name as the operator would read it; `None` if it is none.
fn sorted(message: &str) -> &'static str {
    failure(message).map_or("None", |failure| failure.name())
}

fn failure(message: &str) -> Option<Failure> {
    let report: GuardReport = serde_json::from_str(message).unwrap();
    let GuardReport { exit, signal, cause, message, lines, .. } = &report;
    Failure::of(&Exit {
        exit: *exit,
        signal: *signal,
        cause: cause.as_deref(),
        sentence: message.as_deref(),
        lines,
        out_of_memory: false,
    })
}

#[test]
fn what_real_etcds_end_with_is_sorted() {
    on_every_minor(|minor| {
        let reports = Reports { minor, taken: Mutex::default() };
        thread::scope(|scope| {
            let provoked = [scope.spawn(|| lone::provoke(&reports)), scope.spawn(|| trio::provoke(&reports))];
            for provoked in provoked {
                assert!(provoked.join().is_ok(), "failed on etcd {minor}; its panic is above");
            }
        });
        reports.compare();
    });
}

#[test]
fn every_fixture_is_sorted_as_its_name_says() {
    for minor in MINORS {
        for (name, message) in fixtures(minor) {
            assert_eq!(sorted(&message), failure_named(&name), "{minor}/{name}: {message}");
        }
    }
}

#[test]
fn every_failure_was_seen_on_every_minor_or_there_is_a_reason() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/etcd/failure.rs")).unwrap();
    let (_, after) = text.split_once("pub enum Failure {\n").unwrap();
    let (body, _) = after.split_once("\n}").unwrap();
    let declared: BTreeSet<&str> = body
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(|letter: char| letter.is_ascii_uppercase()))
        .map(|line| line.trim_end_matches([',', '{', ' ']))
        .collect();
    for minor in MINORS {
        let fixtures = fixtures(minor);
        let seen = fixtures.keys().map(|name| failure_named(name)).filter(|name| *name != "None");
        let on_minor = UNPROVOKED_ON.iter().filter(|(on, ..)| *on == minor).map(|(_, name, _)| *name);
        let unprovoked: BTreeSet<&str> = UNPROVOKED.iter().map(|(name, _)| *name).chain(on_minor).collect();
        let seen: BTreeSet<&str> = seen.collect();
        assert_eq!(seen.intersection(&unprovoked).count(), 0, "{minor}: {seen:?} and {unprovoked:?}");
        assert_eq!(&seen | &unprovoked, declared, "etcd {minor}");
    }
}

/// Lines as etcd prints them, but of faults that no rule knows.
#[test]
fn an_unknown_line_is_reported_and_not_guessed() {
    let unknown = |exit: i32, lines: &[&str]| {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        match Failure::of(&Exit { exit: Some(exit), lines: &lines, ..Exit::default() }) {
            Some(Failure::Unknown { line }) => line,
            other => panic!("{other:?}"),
        }
    };
    let zap = r#"{"level":"fatal","ts":"2026-11-21T03:05:14.968288Z","caller":"etcdmain/etcd.go:183","msg":"discovery failed","error":"the moon is full"}"#;
    assert_eq!(unknown(1, &[zap]).as_deref(), Some(zap));
    let panic = "panic: runtime error: invalid memory address or nil pointer dereference";
    let signal = "[signal SIGSEGV: segmentation violation code=0x1 addr=0x0 pc=0x4d2a21]";
    assert_eq!(unknown(2, &[zap, panic, signal]).as_deref(), Some(panic));
    assert_eq!(unknown(2, &[signal]).as_deref(), Some(signal));
    assert_eq!(unknown(2, &[]), None, "it said nothing");

    let cause = Exit { cause: Some("VolumeHaunted"), sentence: Some("it moans"), ..Exit::default() };
    let line = Some("VolumeHaunted: it moans".to_owned());
    assert_eq!(Failure::of(&cause), Some(Failure::Unknown { line }));
}

/// Both shapes in which etcd speaks, taken from the fixtures: zap's JSON and Go's own text.
#[test]
fn one_line_of_either_shape_is_enough() {
    for minor in MINORS {
        let message = &fixtures(minor)["LogLost-heartbeat"];
        let report: GuardReport = serde_json::from_str(message).unwrap();
        let (json, text): (Vec<_>, Vec<_>) = report.lines.iter().partition(|line| line.starts_with('{'));
        assert!(!json.is_empty() && text.iter().any(|line| line.starts_with("panic: ")), "{message}");
        for line in json.into_iter().chain(text) {
            let alone = [line.clone()];
            let exit = Exit { exit: Some(2), lines: &alone, ..Exit::default() };
            assert_eq!(Failure::of(&exit), Some(Failure::LogLost), "{line}");
        }
    }
}

#[test]
fn an_end_that_was_asked_for_is_no_failure() {
    let ended = |exit, signal| Failure::of(&Exit { exit, signal, ..Exit::default() });
    for (exit, signal) in [(Some(0), None), (Some(143), None), (None, Some(15)), (Some(130), None)] {
        assert_eq!(ended(exit, signal), None, "{exit:?} {signal:?}");
    }
    assert_eq!(ended(None, None), None, "nothing was reported");
    assert_eq!(ended(Some(137), None), Some(Failure::Killed { signal: 9 }), "the guard went with its etcd");
    let starved = Exit { exit: Some(137), out_of_memory: true, ..Exit::default() };
    assert_eq!(Failure::of(&starved), Some(Failure::OutOfMemory));
    // Whatever was said before, a member that did as it was told has not failed.
    let message = &fixtures("3.6")["PeersUnreachable"];
    let lines = serde_json::from_str::<GuardReport>(message).unwrap().lines;
    assert_eq!(Failure::of(&Exit { signal: Some(15), lines: &lines, ..Exit::default() }), None);
}

/// A log that the disk does not give is damaged to the guard, too; but on the same disk it would be so again.
#[test]
fn a_refusal_for_the_disks_sake_is_a_broken_disk() {
    let damage = quorate_guard::tail::TailError::Damaged {
        segment: "0000000000000000-0000000000000000.wal".to_owned(),
        offset: 0,
        problem: quorate_guard::wal::Problem::Io(std::io::Error::from_raw_os_error(5)),
    };
    let sentence = quorate_guard::log::chain(&damage);
    let cause = quorate_guard::refusal::Cause::WalDamaged.to_string();
    let exit = Exit { exit: Some(78), cause: Some(&cause), sentence: Some(&sentence), ..Exit::default() };
    assert_eq!(Failure::of(&exit), Some(Failure::DiskBroken), "{sentence}");
}

#[test]
fn only_a_proven_fault_of_this_members_data_is_wiped() {
    let remedies = |remedy| {
        let all = MINORS.into_iter().flat_map(fixtures);
        let failures = all.filter_map(|(_, message)| failure(&message));
        let names = failures.filter(|failure| failure.remedy() == remedy).map(|failure| failure.name());
        names.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" ")
    };
    expect_test::expect!["AlreadyBootstrapped DataLost DatabaseBehind DatabaseDamaged DatabaseMissing LogLost RolledBack SnapshotMissing WalDamaged"].assert_eq(&remedies(Remedy::Wipe));
    expect_test::expect!["DatabaseUnreadable DiskBroken ForeignVolume"].assert_eq(&remedies(Remedy::Replace));
    expect_test::expect![
        "JoinStale Killed MemberRemoved NameUnresolved OutOfMemory PeersUnreachable VolumeInUse"
    ]
    .assert_eq(&remedies(Remedy::Wait));
    expect_test::expect![
        "BadConfiguration BadFlags DiskFull NoSnapshotToSend PeersDiffer VersionRefused VolumeUnwritable"
    ]
    .assert_eq(&remedies(Remedy::Ask));
}
