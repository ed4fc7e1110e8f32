//! `quorate mirror` between two real etcds on loopback.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use quorate::mirror::checkpoint::{Checkpoint, Position};
use quorate::mirror::config::MirrorId;
use rustix::process::{Pid, Signal, kill_process};

use super::server::{PATIENCE, Server};

/// How often a test looks whether what it waits for has come.
const LOOK: Duration = Duration::from_millis(30);

/// A running `quorate mirror`; killed with this value.
pub(super) struct Mirror(Option<Child>);

pub(super) fn command(source: &str, target: &str, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(["mirror", "--source", source, "--target", target]).args(flags);
    command.env("RUST_LOG", "warn").stdin(Stdio::null());
    command
}

impl Mirror {
    pub(super) fn start(source: &str, target: &str, flags: &[&str]) -> Self {
        Self(Some(command(source, target, flags).spawn().unwrap()))
    }

    /// As `kill -9` does.
    fn kill(&mut self) {
        if let Some(mut child) = self.0.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Its exit code, if it has ended.
    pub(super) fn over(&mut self) -> Option<i32> {
        self.0.as_mut().and_then(|child| child.try_wait().unwrap()).and_then(|status| status.code())
    }

    /// As systemd and Kubernetes do; its exit code, and how long it took.
    pub(super) fn terminate(&mut self) -> (Option<i32>, Duration) {
        let (mut child, begun) = (self.0.take().unwrap(), Instant::now());
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        (child.wait().unwrap().code(), begun.elapsed())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Runs it to its end.
pub(super) fn ended(source: &Server, target: &Server, flags: &[&str]) -> Output {
    command(&source.url, &target.url, flags).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap()
}

pub(super) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// Waits until both sides hold the same below their prefixes.
pub(super) async fn alike(source: &Server, prefix: &str, target: &Server, other: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let (here, there) = (source.values(prefix).await, target.values(other).await);
        let renamed =
            here.into_iter().map(|(key, value)| ([other.as_bytes(), &key[prefix.len()..]].concat(), value));
        let here: std::collections::BTreeMap<_, _> = renamed.collect();
        if here == there {
            return;
        }
        assert!(Instant::now() < end, "{} keys here, {} there", here.len(), there.len());
        tokio::time::sleep(LOOK).await;
    }
}

pub(super) async fn checkpoint(target: &Server) -> Option<Checkpoint> {
    let key = MirrorId::new("default").unwrap().key("checkpoint");
    let answer = target.client().await.get(key, None).await.unwrap();
    answer.kvs().first().map(|kv| Checkpoint::parse(kv.value()).unwrap())
}

/// Waits until the checkpoint says so.
pub(super) async fn until(target: &Server, what: &str, holds: impl Fn(&Checkpoint) -> bool) -> Checkpoint {
    let end = Instant::now() + PATIENCE;
    loop {
        let checkpoint = checkpoint(target).await;
        if let Some(checkpoint) = checkpoint.clone().filter(&holds) {
            return checkpoint;
        }
        assert!(Instant::now() < end, "not {what}: {checkpoint:?}");
        tokio::time::sleep(LOOK).await;
    }
}

pub(super) async fn pair() -> (Server, Server) {
    tokio::join!(Server::start("3.6", &[]), Server::start("3.6", &[]))
}

pub(super) fn streams(checkpoint: &Checkpoint) -> bool {
    matches!(checkpoint.position, Position::Stream { .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_made_followed_and_taken_up_again_after_a_kill_and_a_compaction() {
    let (source, target) = pair().await;
    source.fill("/a/k", 5_000, 100).await;
    source.fill("/elsewhere/", 100, 10).await;
    let mut mirror = Mirror::start(&source.url, &target.url, &["--prefix", "/a/", "--target-prefix", "/b/"]);
    alike(&source, "/a/", &target, "/b/").await;
    source.put("/a/new", "1").await;
    source.delete("/a/k00001").await;
    alike(&source, "/a/", &target, "/b/").await;
    assert!(target.values("/elsewhere/").await.is_empty());
    mirror.kill();
    let before = target.held("/b/").await;
    // What is deleted in a gap without history can only be found by looking at everything.
    source.delete("/a/k00002").await;
    source.put("/a/k0000500", "changed").await;
    source.compact().await;
    let mut mirror = Mirror::start(&source.url, &target.url, &["--prefix", "/a/", "--target-prefix", "/b/"]);
    alike(&source, "/a/", &target, "/b/").await;
    until(&target, "streaming", streams).await;
    let after = target.held("/b/").await;
    let rewritten =
        after.iter().filter(|(key, held)| before.get(*key).is_some_and(|old| old.1 != held.1)).count();
    assert_eq!((rewritten, after.len()), (1, 5_001 - 200), "only what differed was written");
    source.put("/a/last", "1").await;
    alike(&source, "/a/", &target, "/b/").await;
    let (code, took) = mirror.terminate();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_any_moment_lose_and_repeat_nothing() {
    let (source, target) = pair().await;
    let writer = tokio::spawn({
        let url = source.url.clone();
        async move {
            let mut kv = etcd_client::Client::connect([url], None).await.unwrap().kv_client();
            for number in 0..6_000_u32 {
                let key = format!("/k{}", number % 97);
                if number % 7 == 0 {
                    kv.delete(key, None).await.unwrap();
                } else {
                    kv.put(key, number.to_string(), None).await.unwrap();
                }
            }
        }
    });
    let mut kills = 0;
    while !writer.is_finished() || kills < 20 {
        let mut mirror = Mirror::start(&source.url, &target.url, &[]);
        let wait = Duration::from_millis(20 + rand::random::<u64>() % 120);
        tokio::time::sleep(wait).await;
        mirror.kill();
        kills += 1;
        assert!(kills < 2_000, "the writer does not end");
    }
    writer.await.unwrap();
    let _mirror = Mirror::start(&source.url, &target.url, &[]);
    alike(&source, "", &target, "").await;
    let verdict = ended(&source, &target, &["--verify"]);
    assert_eq!(verdict.status.code(), Some(0), "{}", said(&verdict));
    println!("{kills} kills");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_prefix_beside_a_busy_one_keeps_its_place_in_the_history() {
    let (source, target) = pair().await;
    source.put("/conftool/a", "1").await;
    let mut mirror = Mirror::start(&source.url, &target.url, &["--prefix", "/conftool/"]);
    alike(&source, "/conftool/", &target, "/conftool/").await;
    // Far more than the history that the old mirror had, and all of it compacted.
    source.fill("/locks/", 3_000, 10).await;
    for _ in 0..700 {
        source.put("/locks/one", "x").await;
    }
    let head = source.compact().await;
    until(&target, "moved by progress", |checkpoint| checkpoint.position.revision() > head - 600).await;
    mirror.kill();
    let before = checkpoint(&target).await.unwrap();
    let _mirror = Mirror::start(&source.url, &target.url, &["--prefix", "/conftool/"]);
    source.put("/conftool/b", "2").await;
    alike(&source, "/conftool/", &target, "/conftool/").await;
    let after = until(&target, "streaming", streams).await;
    assert!(after.position.revision() > before.position.revision());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_target_has_of_its_own_is_not_touched_unasked() {
    let (source, target) = pair().await;
    for (key, value) in [("/a", "1"), ("/b", "1"), ("/c", "1")] {
        source.put(key, value).await;
    }
    for (key, value) in [("/b", "2"), ("/d", "1")] {
        target.put(key, value).await;
    }
    let before = target.values("").await;
    let refused = ended(&source, &target, &["--once"]);
    assert_eq!(refused.status.code(), Some(10), "{}", said(&refused));
    assert!(
        said(&refused).contains("1 differ from the source and 1 are not in the source"),
        "{}",
        said(&refused)
    );
    for key in before.keys() {
        assert_eq!(target.values("").await.get(key), before.get(key));
    }
    let dry = ended(&source, &target, &["--dry-run"]);
    assert_eq!(dry.status.code(), Some(1), "{}", said(&dry));
    let overwritten = ended(&source, &target, &["--once", "--initial-sync", "overwrite"]);
    assert_eq!(overwritten.status.code(), Some(10), "pruning was not permitted");
    let done = ended(&source, &target, &["--once", "--initial-sync", "overwrite", "--prune"]);
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    assert_eq!(source.values("").await, target.values("").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_target_is_left_alone_and_says_how_far_it_had_come() {
    let (source, target) = pair().await;
    source.fill("/k", 100, 10).await;
    let lease = source.client().await.lease_grant(600, None).await.unwrap().id();
    source.put_leased("/lock", "held", lease).await;
    assert_eq!(ended(&source, &target, &["--once"]).status.code(), Some(0));
    assert!(target.held("/lock").await.values().all(|(.., leased)| *leased), "parked");
    let mut promote = Command::new(env!("CARGO_BIN_EXE_quorate"));
    let promoted = promote.args(["mirror", "promote", "--target", &target.url]).output().unwrap();
    assert_eq!(promoted.status.code(), Some(0), "{}", said(&promoted));
    assert!(said(&promoted).contains("promoted in term 1"), "{}", said(&promoted));
    assert!(said(&promoted).contains("1 keys that had a lease"), "{}", said(&promoted));
    source.put("/k", "too late").await;
    let refused = ended(&source, &target, &["--once"]);
    assert_eq!(refused.status.code(), Some(14), "{}", said(&refused));
    assert!(!target.values("").await.contains_key(b"/k".as_slice()));
}
