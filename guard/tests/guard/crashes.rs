//! Crashes between any two steps, and inside every step: the next start goes on to the same end.
//!
//! The steps are the product's own; etcd is played by the directories that it makes, in its order. (The real
//! program is killed at many moments in `boots` and `wipes`.)

use std::fs;
use std::path::{Path, PathBuf};

use quorate_guard::config::Config;
use quorate_guard::decide::{Decision, decide};
use quorate_guard::durable::{self, Found};
use quorate_guard::identity::{HexId, Identity};
use quorate_guard::mark::{MARK, Mark};
use quorate_guard::stamp::{Phase, STAMP, Stamp};
use quorate_guard::steps::{Step, perform, stamping, steps};
use quorate_guard::volume::{LogFound, inspect, log_directory};
use quorate_guard::wal::Summary;
use tempfile::TempDir;

use crate::planted::{config, stamp};
use crate::programs::quick_folder;
use crate::writer::{IDENTITY, Writer, hard, position};

/// The member that takes over after a wipe.
const NEW: Identity = Identity { cluster: IDENTITY.cluster, member: HexId(0xa2) };

/// A volume, an emptyDir, and the Pod that uses them.
struct Node {
    config: Config,
    _folder: TempDir,
}

/// How many steps are left until the crash, and whether it comes inside the last one.
#[derive(Clone, Copy, Debug)]
struct Crash {
    after: usize,
    inside: bool,
}

/// The node has crashed.
struct Crashed;

/// One thing that happens to the disk.
enum Happening {
    Step(Step),
    EtcdMakesDatabase,
    EtcdDraftsLog(Identity),
    EtcdPublishesLog,
    EtcdWritesEntries(Identity),
    Mark(Identity),
}

impl Node {
    fn new(config: Config) -> Self {
        let folder = quick_folder();
        let (volume, state) = (folder.path().join("volume"), folder.path().join("state"));
        fs::create_dir(&volume).unwrap();
        fs::create_dir(&state).unwrap();
        Self { config: Config { volume, state, ..config }, _folder: folder }
    }

    /// From the start of the container until etcd serves and is marked.
    fn start(&self, crash: &mut Option<Crash>) -> Result<(), Crashed> {
        let config = &self.config;
        let (volume, _) = inspect(config).unwrap();
        let decision = decide(config, &volume);
        for step in steps(&decision, config, &volume) {
            self.happen(&Happening::Step(step), crash)?;
        }
        let stamp = match decision {
            Decision::Start(stamp) | Decision::StartAfterCleaning(stamp) | Decision::Wipe(stamp) => stamp,
            Decision::Refuse(refusal) => panic!("refused: {refusal:?}"),
        };
        let identity = config.member_id.map_or(IDENTITY, |member| Identity { member, ..IDENTITY });
        let mut happenings = Vec::new();
        if stamp.phase == Phase::Fresh {
            happenings.extend(stamped(&Stamp { phase: Phase::Starting, ..stamp.clone() }));
        }
        if stamp.phase != Phase::Started {
            let ids = (Some(identity.cluster), Some(identity.member));
            happenings.extend([
                Happening::EtcdMakesDatabase,
                Happening::EtcdDraftsLog(identity),
                Happening::EtcdPublishesLog,
                Happening::EtcdWritesEntries(identity),
            ]);
            happenings.extend(stamped(&Stamp {
                phase: Phase::Started,
                cluster_id: ids.0,
                member_id: ids.1,
                ..stamp
            }));
        }
        happenings.push(Happening::Mark(identity));
        happenings.iter().try_for_each(|happening| self.happen(happening, crash))
    }

    fn happen(&self, happening: &Happening, crash: &mut Option<Crash>) -> Result<(), Crashed> {
        if let Some(Crash { after, inside }) = crash {
            if *after == 0 {
                if *inside {
                    self.happen_half(happening);
                }
                return Err(Crashed);
            }
            *after -= 1;
        }
        let member = self.config.volume.join("data/member");
        match happening {
            Happening::Step(step) => perform(step, &self.config).unwrap(),
            Happening::EtcdMakesDatabase => write_database(&member),
            Happening::EtcdDraftsLog(identity) => {
                blank_log(*identity).write(&removed(member.join("wal.tmp")));
            }
            Happening::EtcdWritesEntries(identity) => write_log(&member.join("wal"), *identity),
            Happening::EtcdPublishesLog => fs::rename(member.join("wal.tmp"), member.join("wal")).unwrap(),
            Happening::Mark(identity) => {
                durable::replace(&self.config.state, MARK, &mark(*identity)).unwrap();
            }
        }
        Ok(())
    }

    /// What is on the disk if the crash comes in the middle. A rename, and the removal of one file, has none.
    fn happen_half(&self, happening: &Happening) {
        let Config { volume, state, .. } = &self.config;
        match happening {
            Happening::Step(Step::DraftStamp(_)) => fs::write(volume.join("quorate.tmp"), "{\"clus").unwrap(),
            Happening::Step(Step::Note(_)) => fs::write(state.join("wipe.tmp"), "").unwrap(),
            Happening::Step(Step::DeleteDiscarded) => {
                drop(fs::remove_dir_all(volume.join("discarded/member/wal")));
            }
            Happening::EtcdMakesDatabase => fs::create_dir_all(volume.join("data/member/snap")).unwrap(),
            Happening::EtcdDraftsLog(_) => fs::create_dir_all(volume.join("data/member/wal.tmp")).unwrap(),
            Happening::Mark(_) => fs::write(state.join("mark.tmp"), "{").unwrap(),
            // Of one write, a part: entries without the hard state.
            Happening::EtcdWritesEntries(identity) => {
                blank_log(*identity).entry(1, 1).write(&volume.join("data/member/wal"));
            }
            Happening::EtcdPublishesLog
            | Happening::Step(
                Step::RemoveMark
                | Step::TouchData
                | Step::Move { .. }
                | Step::SyncVolume
                | Step::PublishStamp,
            ) => (),
        }
    }

    fn stamp(&self) -> Stamp {
        match durable::read(&self.config.volume.join(STAMP)).unwrap() {
            Found::Value(stamp) => stamp,
            other @ (Found::Nothing | Found::Unreadable(_)) => panic!("{other:?}"),
        }
    }

    /// What must be true at the end of every way.
    fn assert_started(&self, backups: u32, way: &str) {
        let identity = self.config.member_id.map_or(IDENTITY, |member| Identity { member, ..IDENTITY });
        let ids = (Some(identity.cluster), Some(identity.member));
        let expected = Stamp {
            incarnation: self.config.incarnation,
            cluster_id: ids.0,
            member_id: ids.1,
            ..stamp(Phase::Started)
        };
        assert_eq!(self.stamp(), expected, "{way}");
        let (volume, _) = inspect(&self.config).unwrap();
        assert!(matches!(volume.log, LogFound::Whole(log) if log.identity == identity), "{way}: {volume:?}");
        assert_eq!(volume.mark, Found::Value(mark(identity)), "{way}");
        assert_eq!((volume.last_backup, volume.discarded), (backups, false), "{way}");
        if backups > 0 {
            assert!(
                self.config.volume.join("bak-1/member/snap/db").exists(),
                "{way}: the old data are kept whole"
            );
        }
    }
}

fn stamped(stamp: &Stamp) -> impl Iterator<Item = Happening> {
    stamping(stamp).into_iter().map(Happening::Step)
}

fn write_database(member: &Path) {
    fs::create_dir_all(member.join("snap")).unwrap();
    fs::write(member.join("snap/db"), "a db").unwrap();
}

fn blank_log(identity: Identity) -> Writer {
    Writer::default().cut(identity).snapshot(0, 0)
}

fn write_log(directory: &Path, identity: Identity) {
    blank_log(identity).entries(1, 1..=3).state(hard(1, 3)).write(directory);
}

/// The path of a directory that is certainly not there.
fn removed(directory: PathBuf) -> PathBuf {
    drop(fs::remove_dir_all(&directory));
    directory
}

fn mark(identity: Identity) -> Mark {
    Mark::of(&Summary { identity, hard: hard(1, 3), last: position(1, 3) })
}

/// A member that has started before.
fn old_member(node: &Node) {
    let member = node.config.volume.join("data/member");
    write_database(&member);
    write_log(&member.join("wal"), IDENTITY);
    durable::replace(&node.config.volume, STAMP, &stamp(Phase::Started)).unwrap();
}

/// A member whose first boot failed.
fn failed_boot(node: &Node) {
    write_database(&node.config.volume.join("data/member"));
    durable::replace(&node.config.volume, STAMP, &stamp(Phase::Starting)).unwrap();
}

/// A Pod that wipes, and still carries what was known of the old member.
fn wiping() -> Config {
    Config {
        incarnation: 1,
        member_id: Some(NEW.member),
        expect_stamp: true,
        high_water: Some(position(9, 900)),
        leader_db_bytes: Some(0),
        ..config()
    }
}

type Scenario = (&'static str, Config, fn(&Node), u32);

fn scenarios() -> Vec<Scenario> {
    let discarding = Config { leader_db_bytes: Some(u64::MAX), ..wiping() };
    let lose_log: fn(&Node) = |node| {
        old_member(node);
        fs::remove_dir_all(log_directory(&node.config)).unwrap();
    };
    let damage_log: fn(&Node) = |node| {
        old_member(node);
        let segment = log_directory(&node.config).join("0000000000000000-0000000000000000.wal");
        fs::write(segment, "no log").unwrap();
        durable::replace(&node.config.state, MARK, &mark(IDENTITY)).unwrap();
    };
    vec![
        ("a first boot", config(), |_| (), 0),
        ("a first boot that failed before", config(), failed_boot, 0),
        ("a bootstrap that starts over", Config { incarnation: 1, ..config() }, failed_boot, 0),
        ("a restart", Config { expect_stamp: true, ..config() }, old_member, 0),
        ("a wipe", wiping(), old_member, 1),
        ("a wipe of what is left", wiping(), lose_log, 1),
        ("a wipe of a damaged log that this Pod had marked", wiping(), damage_log, 1),
        ("a wipe without space to keep the data", discarding, old_member, 0),
    ]
}

#[test]
fn whatever_crashes_interrupt_it_a_start_ends_the_same() {
    for (name, config, prepare, backups) in scenarios() {
        let steps = steps_of(&config, prepare);
        let crashes = || (0..steps).flat_map(|after| [false, true].map(|inside| Crash { after, inside }));
        for first in crashes() {
            let node = Node::new(config.clone());
            prepare(&node);
            assert!(node.start(&mut Some(first)).is_err(), "{name}: {first:?} is within the start");
            // The second one may come after the end of a start that had less to do.
            let second = Crash { after: first.after / 2, inside: !first.inside };
            drop(node.start(&mut Some(second)));
            let way = format!("{name}, {first:?}, {second:?}");
            assert!(node.start(&mut None).is_ok());
            node.assert_started(backups, &way);
            assert!(node.start(&mut None).is_ok());
            node.assert_started(backups, &way);
        }
    }
}

/// How many steps an undisturbed start takes.
fn steps_of(config: &Config, prepare: fn(&Node)) -> usize {
    let node = Node::new(config.clone());
    prepare(&node);
    let mut endless = Some(Crash { after: usize::MAX, inside: false });
    assert!(node.start(&mut endless).is_ok());
    usize::MAX - endless.unwrap().after
}

/// What a crashed node had not synced may be gone, in any order: so a stamp that tells of a change must not be
/// published before the change is on disk.
#[test]
fn no_stamp_is_published_before_what_it_tells_of_is_on_disk() {
    for (name, config, prepare, _) in scenarios() {
        let node = Node::new(config);
        prepare(&node);
        let (volume, _) = inspect(&node.config).unwrap();
        let steps = steps(&decide(&node.config, &volume), &node.config, &volume);
        let mut unsynced = false;
        for step in &steps {
            match step {
                Step::Move { .. } | Step::DeleteDiscarded => unsynced = true,
                Step::SyncVolume => unsynced = false,
                Step::PublishStamp => assert!(!unsynced, "{name}: {steps:?}"),
                Step::Note(_) | Step::RemoveMark | Step::TouchData | Step::DraftStamp(_) => (),
            }
        }
        if let Some(last) = steps.last() {
            assert_eq!(*last, Step::SyncVolume, "{name}: {steps:?}");
        }
    }
}
