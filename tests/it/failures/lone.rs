//! Failures of a member that is alone in its cluster.

use std::fs;
use std::path::Path;

use quorate_guard::identity::Identity;
use rustix::process::{Resource, Rlimit, prlimit};
use tempfile::TempDir;

use super::Reports;
use super::cluster::{Cluster, Guard, Member, copy, replace};
use super::http;
use super::programs::wait_until;
use super::provoke::{
    Disk, change, database, message, run, run_first_boot, run_unguarded, scribble, segment, snapshot_index,
    unresolved, used_pages,
};
use super::writer::{Writer, frames, hard};

pub(super) fn provoke(reports: &Reports) {
    let cluster = Cluster::new(reports.minor, 1);
    let member = cluster.members[0].clone().flag("unsafe-no-fsync", true);
    refuse_command_lines(reports, &member);
    let old = end_in_passing(reports, &member);
    refuse_volumes(reports, &member, &old);
    damage_log(reports, &member, &old);
    damage_database(reports, &member, &old);
    lose_snapshots(reports, &member, &old);
    run_out_of_memory(reports, &member, &old);
    start_older_minor(reports);
    fill_disk(reports);
    break_disk(reports);
}

fn refuse_command_lines(reports: &Reports, member: &Member) {
    let with = |flag, value: &str| run(&member.clone().flag(flag, value));
    reports.take("BadFlags-unknown", &with("no-such-flag", "1"));
    reports.take("BadFlags-number", &with("snapshot-count", "many"));
    reports.take("BadFlags-boolean", &with("strict-reconfig-check", "maybe"));
    reports.take("BadFlags-verified", &with("auto-compaction-mode", "never"));
    let other = member.initial().replace("http://127.", "http://128.");
    reports.take("BadFlags-initial-cluster", &run_first_boot(&member.clone().flag("initial-cluster", other)));
    let nameless = member.clone().flag("initial-cluster", "other=http://127.0.0.1:1");
    reports.take("BadFlags-name", &run_first_boot(&nameless));
    reports.take("BadConfiguration", &run(&member.clone().variable("QUORATE_INCARNATION", "first")));
    reports.take("NameUnresolved", &unresolved());
}

/// Runs the member for the first times; returns what it has on its volume after the first one.
fn end_in_passing(reports: &Reports, member: &Member) -> TempDir {
    let guard = member.serve();
    member.put_many('a', 20);
    reports.take("VolumeInUse", &run(&member.clone().variable("QUORATE_EXPECT_STAMP", true)));
    drop(guard.stop());
    reports.take("None-stopped", &fs::read_to_string(member.message()).unwrap());
    let old = TempDir::new().unwrap();
    copy(&member.volume, old.path());
    let guard = member.serve();
    member.put_many('b', 20);
    drop(guard.kill_etcd());
    reports.take("Killed", &fs::read_to_string(member.message()).unwrap());
    old
}

/// What the guard does not start etcd on.
fn refuse_volumes(reports: &Reports, member: &Member, old: &TempDir) {
    // The guard still has the mark of what came after.
    replace(&member.volume, old.path());
    reports.take("RolledBack", &run(member));
    let member = restored(member, old);
    reports.take("ForeignVolume", &run(&member.clone().variable("QUORATE_CLUSTER_UID", "other")));
    fs::remove_file(database(&member)).unwrap();
    reports.take("DataLost-database", &run(&member));
    fs::remove_dir_all(member.data()).unwrap();
    reports.take("DataLost-all", &run(&member));
    let member = member.clone().on_another_volume();
    fs::remove_dir_all(&member.volume).unwrap();
    reports.take("VolumeUnwritable", &run(&member));
}

/// The member in a new Pod, on the volume as it was.
fn restored(member: &Member, old: &TempDir) -> Member {
    replace(&member.volume, old.path());
    member.clone().in_new_pod()
}

fn damage_log(reports: &Reports, member: &Member, old: &TempDir) {
    let member = restored(member, old);
    let segment = segment(&member);
    // In the middle of the log, a put's record: its data, then its first byte, which names a field.
    let flip = |place: fn(usize, usize) -> usize| {
        restored(&member, old);
        change(&segment, |bytes| {
            let frames = frames(bytes);
            let later = frames.windows(2).skip(frames.len() / 2);
            let put = later.max_by_key(|pair| pair[1] - pair[0]).unwrap();
            bytes[place(put[0], put[1])] ^= 0x10;
        });
    };
    flip(usize::midpoint);
    reports.take("WalDamaged-guard", &run(&member));
    reports.take("WalDamaged-byte", &run_unguarded(&member));
    flip(|begin, _| begin + 8);
    reports.take("WalDamaged-record", &run_unguarded(&member));
    restored(&member, old);
    fs::rename(&segment, segment.with_file_name("0000000000000000-0000000000000009.wal")).unwrap();
    reports.take("WalDamaged-missing", &run_unguarded(&member));
    // As after a disk that lost some of its writes: more is committed than is there.
    restored(&member, old);
    let id = |name: &str| member.stamp()[name].as_str().unwrap().parse().unwrap();
    let identity = Identity { cluster: id("clusterID"), member: id("memberID") };
    let log = Writer::default().cut(identity).snapshot(0, 0).entries(1, 1..=3).state(hard(1, 9));
    fs::remove_dir_all(segment.parent().unwrap()).unwrap();
    log.write(segment.parent().unwrap());
    reports.take("WalDamaged-commit", &run(&member));
    reports.take("LogLost-commit", &run_unguarded(&member));
}

fn damage_database(reports: &Reports, member: &Member, old: &TempDir) {
    let damaged = |how: &dyn Fn(&mut Vec<u8>)| {
        let member = restored(member, old);
        change(&database(&member), how);
        run(&member)
    };
    reports.take("DatabaseDamaged-heads", &damaged(&|bytes| scribble(bytes, 0..2)));
    reports.take(
        "DatabaseDamaged-pages",
        &damaged(&|bytes| {
            let used = used_pages(bytes);
            scribble(bytes, 2..used);
        }),
    );
    reports.take("DatabaseDamaged-cut", &damaged(&|bytes| bytes.truncate(100)));
    reports.take("DatabaseUnreadable", &damaged(&|bytes| bytes.truncate(2 * 4096)));
}

/// The log begins with a snapshot: without a database as new as that, nothing can be made of it.
fn lose_snapshots(reports: &Reports, member: &Member, old: &TempDir) {
    let member = restored(member, old).flag("snapshot-count", 5);
    let guard = member.serve();
    member.put_many('s', 20);
    wait_until("there is a snapshot", || snapshot_index(&member).is_some());
    drop(guard.stop());
    let snapped = TempDir::new().unwrap();
    copy(&member.volume, snapped.path());
    let index = snapshot_index(&member).unwrap();
    let received = database(&member).with_file_name(format!("{index}.snap.db"));
    let old_database = old.path().join("data/member/snap/db");

    fs::remove_file(database(&member)).unwrap();
    reports.take("SnapshotMissing", &run_unguarded(&member));
    restored(&member, &snapped);
    fs::rename(database(&member), &received).unwrap();
    reports.take("DatabaseMissing", &run_unguarded(&member));
    restored(&member, &snapped);
    fs::copy(&old_database, database(&member)).unwrap();
    reports.take("SnapshotMissing-guard", &run(&member));
    restored(&member, &snapped);
    fs::copy(&old_database, database(&member)).unwrap();
    fs::copy(&old_database, &received).unwrap();
    reports.take("DatabaseBehind", &run(&member));
}

/// Writes until etcd has ended of it: on a busy machine a write fails for want of time, too.
fn end_by_writing(member: &Member, guard: &Guard, value: &str) {
    wait_until("etcd ends of what is written", || {
        drop(http::put(member.client, "large", value));
        !guard.is_running()
    });
}

/// A limit instead of a cgroup: what the kernel kills says nothing. Without Go's collector, which crashes in words of
/// its own where it gets no memory (3.7).
fn run_out_of_memory(reports: &Reports, member: &Member, old: &TempDir) {
    let member = restored(member, old).variable("GOGC", "off");
    let guard = member.serve();
    let used = Some(1 << 20);
    prlimit(Some(guard.etcd()), Resource::As, Rlimit { current: used, maximum: used }).unwrap();
    let value = "x".repeat(1_000_000);
    end_by_writing(&member, &guard, &value);
    reports.take("OutOfMemory", &message(&member, guard));
}

/// Data that a newer minor has written.
fn start_older_minor(reports: &Reports) {
    let newer = match reports.minor {
        "3.5" => "3.6",
        "3.6" => "3.7",
        _ => return,
    };
    let cluster = Cluster::new(newer, 1);
    let mut member = cluster.members[0].clone().flag("unsafe-no-fsync", true);
    let guard = member.serve();
    let version = format!("\"cluster-version\":\"{newer}\"");
    wait_until("the cluster has its version", || guard.log().contains(&version));
    let mut joiner = cluster.spare(1);
    let url = format!("http://{}", joiner.peer);
    cluster.ctl_until_accepted(0, &["member", "add", &joiner.name, "--learner", "--peer-urls", &url]);
    joiner.minor = reports.minor;
    let both = format!("{},{}", member.initial(), joiner.initial());
    let joiner = joiner.flag("initial-cluster", both).flag("initial-cluster-state", "existing");
    reports.take("VersionRefused-join", &run_first_boot(&joiner));
    drop(guard.stop());
    member.minor = reports.minor;
    reports.take("VersionRefused", &run(&member));
}

fn on_disk(member: &Member, volume: &Path) -> Member {
    let mut member = member.clone().flag("unsafe-no-fsync", true);
    volume.clone_into(&mut member.volume);
    member
}

/// Mebibytes with room for two segments of the log and a little more: etcd preallocates the next one behind its own
/// start, and where there is no room for it, other writes of that moment fail as well.
const SMALL_DISK: u32 = 130;

fn fill_disk(reports: &Reports) {
    let disk = Disk::mount(SMALL_DISK);
    let cluster = Cluster::new(reports.minor, 1);
    let member = on_disk(&cluster.members[0], &disk.path());
    let guard = member.serve();
    await_next_segment(&disk);
    disk.fill();
    let value = "x".repeat(1_000_000);
    end_by_writing(&member, &guard, &value);
    reports.take("DiskFull", &message(&member, guard));
}

/// Waits until the segment after the first one has its room, so that none is given back once the disk is full.
fn await_next_segment(disk: &Disk) {
    let next = disk.path().join("data/member/wal/0.tmp");
    wait_until("the next segment is preallocated", || {
        fs::metadata(&next).is_ok_and(|segment| segment.len() == 64_000_000)
    });
}

fn break_disk(reports: &Reports) {
    let mut disk = Disk::mount(SMALL_DISK);
    let cluster = Cluster::new(reports.minor, 1);
    let member = on_disk(&cluster.members[0], &disk.path());
    drop(member.serve().stop());
    disk.make_read_only();
    reports.take("DiskBroken", &run(&member));
    let other = member.in_new_pod().variable("QUORATE_INCARNATION", 1).variable("QUORATE_MEMBER_ID", "1");
    reports.take("DiskBroken-guard", &run(&other));
}
