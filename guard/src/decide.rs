//! Whether etcd may be started on what is there: a pure function of what the Pod says and what was found.

use crate::config::Config;
use crate::durable::Found;
use crate::identity::{HexId, Identity};
use crate::mark::Mark;
use crate::refusal::{Cause, Refusal};
use crate::stamp::{Phase, Stamp};
use crate::volume::{LogFound, Volume};
use crate::wal::{Position, Summary};

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Start etcd; the volume gets this stamp.
    Start(Stamp),
    /// A first boot failed before there was a log: remove what it left, and start.
    StartAfterCleaning(Stamp),
    /// The data are of a member that was removed: put them aside, and start as a new one.
    Wipe(Stamp),
    /// Do not start.
    Refuse(Refusal),
}

/// Decides. `Wipe` comes before every question about the data, since lost and damaged data are what it is for.
pub fn decide(config: &Config, volume: &Volume) -> Decision {
    let stamp = match &volume.stamp {
        Found::Value(stamp) => stamp,
        Found::Nothing => return decide_unstamped(config, volume),
        Found::Unreadable(problem) => {
            return refuse(Cause::DataLost, format!("the stamp on the volume is damaged: {problem}"));
        }
    };
    if let Some(refusal) = check_owner(config, stamp) {
        return Decision::Refuse(refusal);
    }
    if config.incarnation > stamp.incarnation {
        decide_new_incarnation(config, volume, stamp)
    } else {
        decide_same_incarnation(config, volume, stamp)
    }
}

/// A volume without a stamp is new, or has lost it, or is not ours.
fn decide_unstamped(config: &Config, volume: &Volume) -> Decision {
    if let Some(reason) = reason_for_data(config, volume, None) {
        refuse(Cause::DataLost, format!("the volume has no stamp, but {reason}"))
    } else if volume.data {
        refuse(Cause::ForeignVolume, "the volume has data in it, but no stamp says whose they are")
    } else {
        Decision::Start(new_stamp(config))
    }
}

fn check_owner(config: &Config, stamp: &Stamp) -> Option<Refusal> {
    let Stamp { cluster_uid, member, incarnation, phase: _, cluster_id: _, member_id: _ } = stamp;
    let foreign = |sentence| Some(Refusal::new(Cause::ForeignVolume, sentence));
    if *cluster_uid != config.cluster_uid && Some(cluster_uid) != config.adopt_uid.as_ref() {
        foreign(format!(
            "the volume belongs to the EtcdCluster with UID {cluster_uid}, not {}",
            config.cluster_uid
        ))
    } else if *member != config.member {
        foreign(format!("the volume belongs to the member {member}, not {}", config.member))
    } else if *incarnation > config.incarnation {
        foreign(format!(
            "the volume is at incarnation {incarnation}, this Pod is an older one ({})",
            config.incarnation
        ))
    } else {
        None
    }
}

fn decide_new_incarnation(config: &Config, volume: &Volume, stamp: &Stamp) -> Decision {
    let (on_disk, blank) = match volume.log {
        LogFound::Whole(summary) => (Some(summary.identity.member), summary.is_blank()),
        LogFound::Absent => (None, true),
        LogFound::Empty | LogFound::Damaged(_) => (None, false),
    };
    let old = stamp.member_id.or(on_disk);
    let never_started = stamp.phase != Phase::Started && blank;
    match config.member_id {
        Some(new) if Some(new) != old => Decision::Wipe(new_stamp(config)),
        None if never_started && reason_for_data(config, volume, Some(stamp)).is_none() => {
            Decision::StartAfterCleaning(new_stamp(config))
        }
        Some(_) | None => refuse(
            Cause::ForeignVolume,
            format!(
                "the volume is at incarnation {}, the Pod at {}, but no new member ID allows to put the old data aside",
                stamp.incarnation, config.incarnation
            ),
        ),
    }
}

fn decide_same_incarnation(config: &Config, volume: &Volume, stamp: &Stamp) -> Decision {
    match &volume.log {
        LogFound::Whole(summary) => decide_with_log(config, volume, stamp, summary),
        LogFound::Damaged(problem) => refuse(Cause::WalDamaged, problem.clone()),
        LogFound::Empty => refuse(Cause::DataLost, "the log's directory is there, but no segment of the log"),
        LogFound::Absent => decide_without_log(config, volume, stamp, "there is no log"),
    }
}

fn decide_without_log(config: &Config, volume: &Volume, stamp: &Stamp, seen: &str) -> Decision {
    match reason_for_data(config, volume, Some(stamp)) {
        Some(reason) => refuse(Cause::DataLost, format!("{seen}, but {reason}")),
        None => {
            Decision::StartAfterCleaning(Stamp { cluster_uid: config.cluster_uid.clone(), ..stamp.clone() })
        }
    }
}

fn decide_with_log(config: &Config, volume: &Volume, stamp: &Stamp, log: &Summary) -> Decision {
    if stamp.phase == Phase::Fresh {
        let sentence =
            format!("etcd was never started on this volume, but there is a log of {}", log.identity);
        return refuse(Cause::ForeignVolume, sentence);
    }
    let mut expected = expected_ids(config, volume, stamp);
    if let Some(sentence) = expected.find_map(|(who, expected)| expected.mismatch(who, log.identity)) {
        return refuse(Cause::ForeignVolume, sentence);
    }
    if log.is_blank() {
        return decide_without_log(config, volume, stamp, "the log is blank");
    }
    if !volume.database {
        return refuse(Cause::DataLost, "the log is there, but the db is missing");
    }
    let below = match volume.mark {
        Found::Value(mark) => below_mark(log, mark),
        Found::Nothing | Found::Unreadable(_) => None,
    };
    let high_water = config.high_water.filter(|_| !was_wiped_by_this_pod(config, volume));
    if let Some(sentence) =
        below.or_else(|| high_water.and_then(|high_water| below_high_water(log, high_water)))
    {
        return refuse(Cause::RolledBack, sentence);
    }
    Decision::Start(Stamp {
        cluster_uid: config.cluster_uid.clone(),
        phase: Phase::Started,
        cluster_id: Some(log.identity.cluster),
        member_id: Some(log.identity.member),
        ..stamp.clone()
    })
}

/// Why data must be there, or `None` if the member may never have had any.
fn reason_for_data(config: &Config, volume: &Volume, stamp: Option<&Stamp>) -> Option<String> {
    if stamp.is_some_and(|stamp| stamp.phase == Phase::Started) {
        Some("its stamp says that this member has started before".to_owned())
    } else if volume.mark != Found::Nothing {
        Some("this Pod has had a log on it before".to_owned())
    } else if was_wiped_by_this_pod(config, volume) {
        None
    } else if let Some(Position { term, index }) = config.high_water {
        Some(format!("this member is known to have had entry {index} of term {term}"))
    } else if config.expect_stamp {
        Some("an earlier Pod of this member has used it".to_owned())
    } else {
        None
    }
}

/// A Pod that was told to wipe has seen for itself what earlier Pods left: what it was told about that no longer
/// holds for the new member, whom only the stamp and the mark describe.
fn was_wiped_by_this_pod(config: &Config, volume: &Volume) -> bool {
    matches!(&volume.note, Found::Value(note) if note.incarnation == config.incarnation)
}

/// IDs that the log's must equal, as far as they are known.
#[derive(Clone, Copy)]
struct Expected {
    cluster: Option<HexId>,
    member: Option<HexId>,
}

fn expected_ids(
    config: &Config,
    volume: &Volume,
    stamp: &Stamp,
) -> impl Iterator<Item = (&'static str, Expected)> {
    let mark = match volume.mark {
        Found::Value(mark) => Some(mark.identity()),
        Found::Nothing | Found::Unreadable(_) => None,
    };
    [
        ("the Pod", Expected { cluster: config.cluster_id, member: config.member_id }),
        ("the stamp", Expected { cluster: stamp.cluster_id, member: stamp.member_id }),
        ("the Pod's mark", Expected { cluster: mark.map(|id| id.cluster), member: mark.map(|id| id.member) }),
    ]
    .into_iter()
}

impl Expected {
    fn mismatch(self, who: &str, found: Identity) -> Option<String> {
        if let Some(cluster) = self.cluster.filter(|cluster| *cluster != found.cluster) {
            Some(format!("the data are of {found}, but {who} says cluster {cluster}"))
        } else {
            let member = self.member.filter(|member| *member != found.member)?;
            Some(format!("the data are of {found}, but {who} says member {member}"))
        }
    }
}

/// The IDs of a log that etcd has just made, against what the Pod expects.
pub fn check_new_log(config: &Config, found: Identity) -> Option<Refusal> {
    let expected = Expected { cluster: config.cluster_id, member: config.member_id };
    expected.mismatch("the Pod", found).map(|sentence| Refusal::new(Cause::ForeignVolume, sentence))
}

fn below_mark(log: &Summary, mark: Mark) -> Option<String> {
    let now = Mark::of(log);
    (now.order() < mark.order()).then(|| {
        format!(
            "the log ends at entry {} of term {} (hard state {}), but this Pod has had entry {} of term {} (hard state {})",
            now.index, now.term, now.hard_term, mark.index, mark.term, mark.hard_term
        )
    })
}

/// The operator's mark is a term that the member had seen and an index that it had. A lower index is right only if
/// a leader of a later term has since replaced the end of the log, which never touches committed entries.
fn below_high_water(log: &Summary, mark: Position) -> Option<String> {
    let replaced = log.last.term > mark.term;
    let below = log.hard.term < mark.term || (log.last.index < mark.index && !replaced);
    below.then(|| {
        format!(
            "the log ends at entry {} of term {} (hard state {}), but this member is known to have had entry {} of term {}",
            log.last.index, log.last.term, log.hard.term, mark.index, mark.term
        )
    })
}

fn new_stamp(config: &Config) -> Stamp {
    Stamp {
        cluster_uid: config.cluster_uid.clone(),
        member: config.member.clone(),
        incarnation: config.incarnation,
        phase: Phase::Fresh,
        cluster_id: None,
        member_id: None,
    }
}

fn refuse(cause: Cause, sentence: impl Into<String>) -> Decision {
    Decision::Refuse(Refusal::new(cause, sentence))
}
