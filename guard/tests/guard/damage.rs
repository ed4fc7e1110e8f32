//! Torn, cut and damaged logs: what a crash explains is started, all else is refused.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::cluster::{Cluster, Member, copy, replace, write_sparse};
use crate::http;
use crate::logs::read;
use crate::programs::{MINORS, on_every_minor, quick_folder};
use crate::writer::{Writer, frames, hard, position};

/// A change to the bytes of a segment.
type Change<'a> = &'a dyn Fn(&mut Vec<u8>);

/// The only segment of a member.
fn segment(member: &Member) -> PathBuf {
    member.data().join("wal/0000000000000000-0000000000000000.wal")
}

/// Segments written by real etcds (see `fixtures/README.md`), without the preallocated zeros.
pub(crate) fn fixtures() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    MINORS.map(|minor| fs::read(folder.join(format!("etcd-{minor}.wal"))).unwrap()).into()
}

/// Reads bytes as the only segment of a log.
fn read_bytes(folder: &TempDir, bytes: &[u8]) -> Result<quorate_guard::wal::Summary, String> {
    fs::write(folder.path().join("0000000000000000-0000000000000000.wal"), bytes).unwrap();
    read(folder.path())
}

#[test]
fn a_log_may_end_at_every_byte_after_its_head() {
    let folder = quick_folder();
    for bytes in fixtures() {
        let offsets = frames(&bytes);
        assert_eq!(offsets.last(), Some(&bytes.len()), "the fixture is whole");
        let (head, ends) = offsets.split_at(3);
        // An entry is written before the hard state that commits it, so every beginning of a log is a log.
        let mut last = read_bytes(&folder, &bytes[..head[2]]).unwrap();
        for (begin, end) in head[2..].iter().chain(ends).zip(ends) {
            for cut in [begin + 1, begin + 7, begin + 8, begin + 9, begin + 15, end - 8, end - 1] {
                assert_eq!(read_bytes(&folder, &bytes[..cut]), Ok(last), "cut at {cut}");
                let sector = cut / 512 * 512;
                if sector >= head[2] {
                    let mut zeroed = bytes[..sector].to_vec();
                    zeroed.resize(bytes.len() + 4096, 0);
                    assert!(read_bytes(&folder, &zeroed).is_ok(), "zeros from {sector} on");
                }
            }
            last = read_bytes(&folder, &bytes[..*end]).unwrap();
        }
    }
}

#[test]
fn every_byte_of_the_last_record_may_be_missing() {
    let folder = quick_folder();
    for bytes in fixtures() {
        let offsets = frames(&bytes);
        let begin = offsets[offsets.len() - 2];
        let before = read_bytes(&folder, &bytes[..begin]).unwrap();
        for cut in begin..bytes.len() {
            assert_eq!(read_bytes(&folder, &bytes[..cut]), Ok(before), "cut at {cut} of {}", bytes.len());
        }
    }
}

#[test]
fn sectors_that_were_never_written_are_a_torn_write() {
    let folder = quick_folder();
    let start = Writer::new().entries(1, 1..=5).state(hard(1, 5));
    let log = start.clone().large_entry(1, 6, &[7; 5000]).state(hard(1, 6));
    let (begin, bytes) = (start.last().len(), log.last());
    for sector in (begin + 8).div_ceil(512)..(begin + 5000) / 512 {
        let mut torn = bytes.to_vec();
        torn[sector * 512..(sector + 1) * 512].fill(0);
        assert_eq!(read_bytes(&folder, &torn).map(|log| log.last), Ok(position(1, 5)), "sector {sector}");
    }
}

#[test]
fn a_flipped_bit_anywhere_before_the_end_is_damage() {
    let folder = quick_folder();
    for bytes in fixtures() {
        let offsets = frames(&bytes);
        // To etcd, too, padding and (in a frame without any) the last byte of a length say nothing; and the type of a
        // record, byte 9, is not in its checksum: a hard state may pass for an entry.
        let frame = offsets.len() / 2;
        let (begin, end) = (offsets[frame], offsets[frame + 1]);
        let meaningful = begin..end - padding(&bytes, begin);
        let mut unnoticed = Vec::new();
        for (at, bit) in meaningful.flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            damaged.resize(bytes.len() + 4096, 0);
            if read_bytes(&folder, &damaged).is_ok() {
                unnoticed.push((at - begin, bit));
            }
        }
        assert!(unnoticed.iter().all(|(at, _)| [7, 9].contains(at)), "{unnoticed:?}");
    }
}

fn padding(bytes: &[u8], frame: usize) -> usize {
    let flags = bytes[frame + 7];
    if flags & 0x80 == 0 { 0 } else { usize::from(flags & 7) }
}

#[test]
fn real_etcd_agrees() {
    on_every_minor(|minor| {
        let cluster = Cluster::new(minor, 1);
        let member = cluster.members[0].clone();
        let guard = member.serve();
        member.put_many('a', 10);
        http::put(member.client, "b", &"large".repeat(1000)).unwrap();
        guard.crash();
        let whole = TempDir::new().unwrap();
        copy(&member.data(), whole.path());
        let bytes = fs::read(segment(&member)).unwrap();
        let offsets = frames(&bytes);
        let large = offsets.windows(2).rposition(|pair| pair[1] - pair[0] > 5000).unwrap();
        let (begin, end) = (offsets[large], offsets[large + 1]);
        let middle = offsets[large - 5];

        let with = |change: Change<'_>| {
            replace(&member.data(), whole.path());
            let mut changed = bytes.clone();
            change(&mut changed);
            write_sparse(&segment(&member), &changed);
            // The mark would rightly find the data below it.
            member.clone().in_new_pod()
        };
        let torn: [Change<'_>; 4] = [
            &|bytes| bytes.truncate(begin + 20),
            &|bytes| bytes.truncate(begin + 3),
            &|bytes| bytes[begin + 1024..begin + 2048].fill(0),
            &|bytes| bytes[(begin + 8).next_multiple_of(512)..end].fill(0),
        ];
        for change in torn {
            let member = with(change);
            let guard = member.serve();
            assert_eq!(http::count(member.client, 'a'), Ok(10), "etcd repaired it");
            guard.crash();
        }
        let damaged: [(Change<'_>, bool); 4] = [
            (&|bytes| flip(bytes, middle + 30..middle + 31), false),
            (&|bytes| flip(bytes, begin + 4000..begin + 4001), false),
            (&|bytes| bytes.truncate(0), false),
            // One bit in a length: etcd cuts the log there, with all that it had acknowledged after it.
            (&|bytes| bytes[middle + 5] ^= 1, true),
        ];
        for (change, etcd_starts) in damaged {
            with(change).assert_refused("WalDamaged");
            assert_eq!(member.etcd_starts_alone(), etcd_starts, "etcd {minor}");
        }
    });
}

fn flip(bytes: &mut [u8], range: Range<usize>) {
    bytes[range].iter_mut().for_each(|byte| *byte ^= 0x10);
}
