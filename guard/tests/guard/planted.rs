//! The table of decisions, and a check of the table: a guard that is blind to one fact must fail it.
//!
//! The blind guards are wrappers around what `decide` is given; nothing in the product can be switched off.

use std::path::PathBuf;
use std::time::Duration;

use quorate_guard::config::Config;
use quorate_guard::decide::{Decision, decide};
use quorate_guard::durable::Found;
use quorate_guard::identity::{HexId, Identity};
use quorate_guard::mark::Mark;
use quorate_guard::stamp::{Phase, Stamp};
use quorate_guard::volume::{LogFound, Note, Volume};
use quorate_guard::wal::Summary;

use crate::writer::{IDENTITY, hard, position};

/// Another member of the same cluster.
const OTHER: Identity = Identity { cluster: IDENTITY.cluster, member: HexId(0xa2) };

/// What the Pod says and what is found.
#[derive(Clone)]
struct Case {
    name: &'static str,
    config: Config,
    volume: Volume,
    verdict: &'static str,
}

/// A Pod at incarnation 0 that expects nothing.
pub(crate) fn config() -> Config {
    Config {
        cluster_uid: "uid".to_owned(),
        adopt_uid: None,
        member: "main-0".to_owned(),
        incarnation: 0,
        cluster_id: None,
        member_id: None,
        expect_stamp: false,
        high_water: None,
        leader_db_bytes: None,
        keep_old_data: None,
        name: None,
        grace: Duration::from_secs(30),
        volume: PathBuf::new(),
        state: PathBuf::new(),
        command: Vec::new(),
    }
}

/// The stamp of a member in a phase.
pub(crate) fn stamp(phase: Phase) -> Stamp {
    let id = |id| (phase == Phase::Started).then_some(id);
    Stamp {
        cluster_uid: "uid".to_owned(),
        member: "main-0".to_owned(),
        incarnation: 0,
        phase,
        cluster_id: id(IDENTITY.cluster),
        member_id: id(IDENTITY.member),
    }
}

fn empty() -> Volume {
    Volume {
        stamp: Found::Nothing,
        mark: Found::Nothing,
        note: Found::Nothing,
        log: LogFound::Absent,
        database: false,
        database_bytes: 0,
        data: false,
        discarded: false,
        last_backup: 0,
        free_bytes: u64::MAX,
    }
}

fn log(identity: Identity, term: u64, last: (u64, u64)) -> Summary {
    Summary { identity, hard: hard(term, last.1), last: position(last.0, last.1) }
}

fn volume(phase: Phase) -> Volume {
    Volume { stamp: Found::Value(stamp(phase)), ..empty() }
}

/// A volume in order: stamped, its log at entry 100 of term 5.
fn healthy() -> Volume {
    let log = LogFound::Whole(log(IDENTITY, 5, (5, 100)));
    Volume { log, database: true, data: true, ..volume(Phase::Started) }
}

fn mark(identity: Identity, term: u64, last: (u64, u64)) -> Found<Mark> {
    Found::Value(Mark::of(&log(identity, term, last)))
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |name, config, volume, verdict| cases.push(Case { name, config, volume, verdict });
    let expecting = || Config { expect_stamp: true, ..config() };
    let knowing = |term, index| Config { high_water: Some(position(term, index)), ..config() };
    let raised = |member| Config { incarnation: 1, member_id: member, ..config() };
    let marked = |mark| Volume { mark, ..healthy() };

    case("a new volume", config(), empty(), "Start");
    case("a volume that should not be new", expecting(), empty(), "DataLost");
    case("a volume of a member that has had entries", knowing(1, 1), empty(), "DataLost");
    case(
        "emptied under this Pod",
        config(),
        Volume { mark: mark(IDENTITY, 1, (1, 1)), ..empty() },
        "DataLost",
    );
    case(
        "an unreadable mark is a mark",
        config(),
        Volume { mark: Found::Unreadable(String::new()), ..empty() },
        "DataLost",
    );
    case("data without a stamp", config(), Volume { stamp: Found::Nothing, ..healthy() }, "ForeignVolume");
    case(
        "a damaged stamp",
        config(),
        Volume { stamp: Found::Unreadable(String::new()), ..healthy() },
        "DataLost",
    );

    case("claimed, never started", config(), volume(Phase::Fresh), "StartAfterCleaning");
    case(
        "a log on a volume never started on",
        config(),
        Volume { stamp: Found::Value(stamp(Phase::Fresh)), ..healthy() },
        "ForeignVolume",
    );
    case(
        "a failed first boot",
        config(),
        Volume { database: true, data: true, ..volume(Phase::Starting) },
        "StartAfterCleaning",
    );
    case("a failed first boot, but more is expected", expecting(), volume(Phase::Starting), "DataLost");
    case(
        "a first boot of which a mark is left",
        config(),
        Volume { mark: mark(IDENTITY, 1, (1, 1)), ..volume(Phase::Starting) },
        "DataLost",
    );
    case(
        "a first boot that came as far as a log",
        config(),
        Volume { stamp: Found::Value(stamp(Phase::Starting)), ..healthy() },
        "Start",
    );
    let blank = |phase| {
        let log = LogFound::Whole(Summary { identity: IDENTITY, hard: hard(0, 0), last: position(0, 0) });
        Volume { log, stamp: Found::Value(stamp(phase)), ..healthy() }
    };
    case("a first boot as far as a blank log", config(), blank(Phase::Starting), "StartAfterCleaning");
    case("a blank log, but more is expected", expecting(), blank(Phase::Starting), "DataLost");
    case("a blank log of a member that has started", config(), blank(Phase::Started), "DataLost");
    case("a blank log on a volume never started on", config(), blank(Phase::Fresh), "ForeignVolume");
    case(
        "a bootstrap that starts over a blank log",
        raised(None),
        blank(Phase::Starting),
        "StartAfterCleaning",
    );
    case(
        "an emptied log's directory",
        config(),
        Volume { log: LogFound::Empty, ..volume(Phase::Starting) },
        "DataLost",
    );

    case("in order", expecting(), healthy(), "Start");
    case("no log", config(), volume(Phase::Started), "DataLost");
    case("no db", config(), Volume { database: false, ..healthy() }, "DataLost");
    case(
        "a damaged log",
        config(),
        Volume { log: LogFound::Damaged("a bad record".to_owned()), ..healthy() },
        "WalDamaged",
    );

    case(
        "another cluster's volume",
        Config { cluster_uid: "other".to_owned(), ..config() },
        healthy(),
        "ForeignVolume",
    );
    case(
        "an adopted volume",
        Config { cluster_uid: "other".to_owned(), adopt_uid: Some("uid".to_owned()), ..config() },
        healthy(),
        "Start",
    );
    case(
        "another member's volume",
        Config { member: "main-1".to_owned(), ..config() },
        healthy(),
        "ForeignVolume",
    );
    case(
        "another member's data, by the stamp",
        config(),
        Volume { log: LogFound::Whole(log(OTHER, 5, (5, 100))), ..healthy() },
        "ForeignVolume",
    );
    case(
        "another member's data, by the Pod",
        Config { member_id: Some(OTHER.member), ..config() },
        Volume { stamp: Found::Value(stamp(Phase::Starting)), ..healthy() },
        "ForeignVolume",
    );
    case(
        "another member's data, by the mark",
        config(),
        Volume { stamp: Found::Value(stamp(Phase::Starting)), ..marked(mark(OTHER, 5, (5, 100))) },
        "ForeignVolume",
    );

    case("at its mark", config(), marked(mark(IDENTITY, 5, (5, 100))), "Start");
    case("an entry below its mark", config(), marked(mark(IDENTITY, 5, (5, 101))), "RolledBack");
    case("a vote below its mark", config(), marked(mark(IDENTITY, 6, (5, 100))), "RolledBack");
    case("a leader of a later term cut its end off", config(), marked(mark(IDENTITY, 4, (4, 120))), "Start");
    case("at what the operator knows", knowing(5, 100), healthy(), "Start");
    case("an entry below what the operator knows", knowing(5, 101), healthy(), "RolledBack");
    case("a term below what the operator knows", knowing(6, 100), healthy(), "RolledBack");
    case(
        "old entries, but a new vote",
        knowing(4, 101),
        Volume { log: LogFound::Whole(log(IDENTITY, 5, (4, 100))), ..healthy() },
        "RolledBack",
    );
    case("the operator knew an end that was cut off", knowing(4, 120), healthy(), "Start");

    case(
        "an older Pod than the volume",
        config(),
        Volume { stamp: Found::Value(Stamp { incarnation: 1, ..stamp(Phase::Started) }), ..healthy() },
        "ForeignVolume",
    );
    case("told to wipe", raised(Some(OTHER.member)), healthy(), "Wipe");
    case("told to wipe, all lost but the stamp", raised(Some(OTHER.member)), volume(Phase::Started), "Wipe");
    case(
        "told to wipe a damaged log",
        raised(Some(OTHER.member)),
        Volume { log: LogFound::Damaged("a bad record".to_owned()), ..healthy() },
        "Wipe",
    );
    case("told to wipe itself", raised(Some(IDENTITY.member)), healthy(), "ForeignVolume");
    case(
        "told to wipe itself before the stamp knew",
        raised(Some(IDENTITY.member)),
        Volume { stamp: Found::Value(stamp(Phase::Starting)), ..healthy() },
        "ForeignVolume",
    );
    case("told to wipe for no member", raised(None), healthy(), "ForeignVolume");
    case("a bootstrap that starts over", raised(None), volume(Phase::Starting), "StartAfterCleaning");
    let wiped = |phase| Volume {
        stamp: Found::Value(Stamp { incarnation: 1, ..stamp(phase) }),
        note: Found::Value(Note { incarnation: 1 }),
        ..empty()
    };
    let wiping =
        || Config { expect_stamp: true, high_water: Some(position(5, 100)), ..raised(Some(OTHER.member)) };
    case("wiped by this Pod, no log yet", wiping(), wiped(Phase::Starting), "StartAfterCleaning");
    case("wiped by this Pod, then lost", wiping(), wiped(Phase::Started), "DataLost");
    case(
        "wiped by an earlier Pod, then lost",
        wiping(),
        Volume { note: Found::Nothing, ..wiped(Phase::Starting) },
        "DataLost",
    );
    cases
}

fn verdict(config: &Config, volume: &Volume) -> String {
    match decide(config, volume) {
        Decision::Start(_) => "Start".to_owned(),
        Decision::StartAfterCleaning(_) => "StartAfterCleaning".to_owned(),
        Decision::Wipe(_) => "Wipe".to_owned(),
        Decision::Refuse(refusal) => {
            assert!(!refusal.sentence.is_empty());
            refusal.cause.to_string()
        }
    }
}

#[test]
fn every_case_is_decided_as_the_table_says() {
    for Case { name, config, volume, verdict: expected } in cases() {
        assert_eq!(verdict(&config, &volume), expected, "{name}");
    }
}

#[test]
fn a_guard_that_is_blind_to_one_fact_fails_the_table() {
    type Blind = fn(&mut Config, &mut Volume);
    let blind: [(&str, Blind); 12] = [
        ("the expected stamp", |config, _| config.expect_stamp = false),
        ("the operator's high-water mark", |config, _| config.high_water = None),
        ("the emptyDir's mark", |_, volume| volume.mark = Found::Nothing),
        ("the note of a wipe", |_, volume| volume.note = Found::Nothing),
        ("the stamp", |_, volume| volume.stamp = Found::Nothing),
        ("the stamp's phase", |_, volume| change_stamp(volume, |stamp| stamp.phase = Phase::Starting)),
        ("the stamp's IDs", |_, volume| change_stamp(volume, |stamp| stamp.member_id = None)),
        ("the stamp's incarnation", |config, volume| {
            change_stamp(volume, |stamp| stamp.incarnation = config.incarnation);
        }),
        ("the expected member ID", |config, _| config.member_id = None),
        ("the db", |_, volume| volume.database = true),
        ("damage", |_, volume| {
            if let LogFound::Damaged(_) = volume.log {
                volume.log = LogFound::Whole(log(IDENTITY, 5, (5, 100)));
            }
        }),
        ("a log's emptied directory", |_, volume| {
            if volume.log == LogFound::Empty {
                volume.log = LogFound::Absent;
            }
        }),
    ];
    for (fact, blind) in blind {
        let wrong = cases().into_iter().any(|Case { mut config, mut volume, verdict: expected, .. }| {
            blind(&mut config, &mut volume);
            verdict(&config, &volume) != expected
        });
        assert!(wrong, "no case needs {fact}");
    }
}

fn change_stamp(volume: &mut Volume, change: impl FnOnce(&mut Stamp)) {
    if let Found::Value(stamp) = &mut volume.stamp {
        change(stamp);
    }
}
