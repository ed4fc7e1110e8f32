//! Reading logs: those of real etcds, and written ones for what seldom happens.

use std::fs;
use std::path::Path;

use quorate_guard::identity::{HexId, Identity};
use quorate_guard::log::chain;
use quorate_guard::tail::Tail;
use quorate_guard::wal::Summary;
use tempfile::TempDir;

use crate::cluster::{Cluster, Member};
use crate::http;
use crate::programs::{on_every_minor, wait_until};
use crate::writer::{IDENTITY, Writer, hard, position};

/// Reads a whole log that nobody writes.
pub(crate) fn read(directory: &Path) -> Result<Summary, String> {
    let mut tail = Tail::new(directory.to_owned());
    tail.read_all().map_err(|error| chain(&error))?;
    Ok(tail.log().summary().unwrap())
}

fn read_written(log: &Writer) -> Result<Summary, String> {
    let folder = TempDir::new().unwrap();
    log.write(folder.path());
    read(folder.path())
}

fn segments(member: &Member) -> Vec<String> {
    let entries = fs::read_dir(member.data().join("wal")).unwrap().map(|entry| entry.unwrap().path());
    let segments = entries.filter(|path| path.extension().is_some_and(|extension| extension == "wal"));
    let mut names: Vec<_> = segments.map(|path| path.display().to_string()).collect();
    names.sort();
    names
}

#[test]
fn a_log_says_what_its_etcd_says_also_with_many_segments_and_after_a_purge() {
    on_every_minor(|minor| {
        let cluster = Cluster::new(minor, 1);
        let member = cluster.members[0].clone().flag("snapshot-count", 20);
        let guard = member.serve();
        let directory = member.data().join("wal");
        let mut followed = Tail::new(directory.clone());
        let compare = |followed: &mut Tail| {
            let said = http::status(member.client).unwrap();
            wait_until("all is written", || {
                followed.advance().unwrap();
                followed.log().summary().is_some_and(|log| log.last.index >= said.raft_index)
            });
            let log = followed.log().summary().unwrap();
            let identity = Identity { cluster: HexId(said.cluster_id), member: HexId(said.member_id) };
            assert_eq!((log.identity, log.last), (identity, position(said.raft_term, said.raft_index)));
            assert_eq!(log.hard.term, said.raft_term);
        };
        compare(&mut followed);
        member.put_many('a', 50);
        compare(&mut followed);
        let large = "v".repeat(1_000_000);
        for number in 0..70 {
            http::put(member.client, &format!("large{number}"), &large).unwrap();
            // In between as well, so that it meets the change of segments while it happens.
            followed.advance().unwrap();
        }
        // So many that a snapshot covers the first segment.
        member.put_many('b', 30);
        compare(&mut followed);
        let report = guard.stop().report;
        followed.advance().unwrap();
        let whole = read(&directory).unwrap();
        assert_eq!(Some(whole), followed.log().summary(), "followed bit by bit, and read at once");
        assert_eq!(
            (report["term"].as_u64(), report["index"].as_u64()),
            (Some(whole.last.term), Some(whole.last.index))
        );
        assert_eq!(segments(&member).len(), 2);

        let purging = member.clone().flag("max-wals", 1);
        let guard = purging.serve();
        wait_until("the first segment is purged", || segments(&purging).len() == 1);
        drop(guard.stop());
        let purged = read(&directory).unwrap();
        assert!(purged.last > whole.last && purged.hard.term > whole.hard.term, "{purged:?}");
        assert_eq!(purged.identity, whole.identity);
    });
}

#[test]
fn a_member_that_received_a_snapshot_has_a_gap_in_its_log_and_is_whole() {
    for (minor, flag) in [
        ("3.5", "experimental-snapshot-catchup-entries"),
        ("3.6", "snapshot-catchup-entries"),
        ("3.7", "snapshot-catchup-entries"),
    ] {
        let mut cluster = Cluster::new(minor, 3);
        cluster.members = cluster
            .members
            .into_iter()
            .map(|member| member.flag("snapshot-count", 20).flag(flag, 5))
            .collect();
        let mut guards = cluster.start();
        let late = cluster.members[2].clone();
        drop(guards.pop().unwrap().stop());
        let before = read(&late.data().join("wal")).unwrap();
        cluster.members[0].put_many('a', 100);
        let guard = late.serve();
        wait_until("it has received a snapshot", || guard.log().contains("applied snapshot"));
        cluster.members[0].put_many('b', 3);
        let said = http::status(late.client).unwrap();
        drop(guard.stop());
        let log = read(&late.data().join("wal")).unwrap();
        assert!(
            log.last.index >= said.raft_index && log.last.index > before.last.index + 100,
            "{log:?} {before:?}"
        );
        drop(late.serve());
    }
}

#[test]
fn a_later_entry_replaces_all_from_its_index_on() {
    let log = Writer::new().entries(1, 1..=9).state(hard(1, 4)).entries(2, 6..=7).state(hard(2, 5));
    assert_eq!(
        read_written(&log),
        Ok(Summary { identity: IDENTITY, hard: hard(2, 5), last: position(2, 7) })
    );
}

#[test]
fn a_snapshot_counts_once_it_is_committed() {
    let received = Writer::new().entries(1, 1..=3).state(hard(1, 3)).snapshot(2, 500);
    assert_eq!(
        read_written(&received).map(|log| log.last),
        Ok(position(1, 3)),
        "it crashed before it took it over"
    );
    let taken_over = received.clone().state(hard(2, 500));
    assert_eq!(read_written(&taken_over).map(|log| log.last), Ok(position(2, 500)));
    let went_on = taken_over.entries(2, 501..=502).state(hard(2, 502));
    assert_eq!(read_written(&went_on).map(|log| log.last), Ok(position(2, 502)));
    let went_on_without = received.entries(2, 4..=5).state(hard(2, 5));
    assert_eq!(read_written(&went_on_without).map(|log| log.last), Ok(position(2, 5)));
}

#[test]
fn segments_form_one_chain() {
    let log =
        Writer::new().entries(1, 1..=5).state(hard(1, 5)).cut(IDENTITY).entries(1, 6..=9).state(hard(1, 9));
    let log = log.cut(IDENTITY).state(hard(1, 9)).entry(1, 10).state(hard(1, 10));
    assert_eq!(read_written(&log).map(|log| log.last), Ok(position(1, 10)));
    assert_eq!(
        read_written(&log.clone().purge()).map(|log| log.last),
        Ok(position(1, 10)),
        "older ones may be purged"
    );

    let folder = TempDir::new().unwrap();
    log.write(folder.path());
    fs::remove_file(folder.path().join("0000000000000001-0000000000000064.wal")).unwrap();
    let missing = "segment 0000000000000002-00000000000000c8.wal is damaged at byte 0: segment 1 is missing";
    assert_eq!(read(folder.path()), Err(missing.to_owned()));

    let other = Writer::new().entries(1, 1..=5).state(hard(1, 4));
    other.write(folder.path());
    fs::rename(
        folder.path().join("0000000000000000-0000000000000000.wal"),
        folder.path().join("0000000000000001-0000000000000064.wal"),
    )
    .unwrap();
    let chain = "segment 0000000000000002-00000000000000c8.wal is damaged at byte 0: \
        the checksum chain is broken: what came before is incomplete or was changed";
    assert_eq!(read(folder.path()), Err(chain.to_owned()));
}

#[test]
fn whole_records_that_contradict_each_other_are_damage() {
    let other = Identity { cluster: HexId(0xc1), member: HexId(0xa2) };
    let start = || Writer::new().entries(1, 1..=3).state(hard(1, 3));
    for (log, problem) in [
        (start().cut(other), "its metadata differ from those before"),
        (start().entry(1, 5), "entry 5 follows entry 3"),
        (start().state(hard(1, 4)), "entries are committed up to 4, but the last one is 3"),
        (start().record(9, b"x"), "the record is of the unknown type 9"),
        (start().record(2, &[0x18]), "there is no valid record"),
    ] {
        let error = read_written(&log).unwrap_err();
        assert!(error.ends_with(problem), "{error}");
    }
}

#[test]
fn a_segment_without_metadata_is_damage_even_if_it_is_the_last() {
    let folder = TempDir::new().unwrap();
    Writer::new().entries(1, 1..=3).cut(IDENTITY).write(folder.path());
    for content in [vec![], vec![0; 4096]] {
        fs::write(folder.path().join("0000000000000001-0000000000000064.wal"), content).unwrap();
        let error = read(folder.path()).unwrap_err();
        assert!(error.ends_with("damaged at byte 0: it has no metadata"), "{error}");
    }
}
