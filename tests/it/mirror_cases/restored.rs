//! Sides that are not what they were: set back, restored, emptied, another version; and keys of the mirror that somebody
//! has edited. Nothing is deleted or overwritten by guess.

use quorate::mirror::config::MirrorId;
use quorate_pair::programs::until;
use quorate_pair::{Pair, Settings};

use super::judge::judge;
use super::{Mirror, alike, checkpoint, ended, held, level};

/// What `--resync=` takes, out of what a mirror says.
fn plan(said: &str) -> String {
    let (_, after) = said.split_once("--resync=").unwrap_or_else(|| panic!("no plan: {said}"));
    after.chars().take_while(char::is_ascii_alphanumeric).collect()
}

/// Cases 15 and 16: whatever became of the source, a mirror that finds less there than it has copied stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_was_set_back_is_not_copied_unasked() {
    for how in ["set back", "restored", "restored above the checkpoint", "restored with a bump", "emptied"] {
        let mut pair = Pair::of("3.6").await;
        pair.source.etcd.fill("/k", 200, 10).await;
        pair.source.etcd.keep("copy").await;
        pair.source.etcd.snapshot("snapshot");
        for number in 0..100 {
            pair.source.etcd.put("/only-copy", number.to_string()).await;
        }
        let mirror = Mirror::start(&pair.source, &pair.target, &[]);
        level(&pair.source, &pair.target).await;
        mirror.kill();
        match how {
            "set back" => pair.source.etcd.put_back("copy").await,
            "emptied" => pair.source.etcd.empty().await,
            "restored with a bump" => {
                let flags = ["--bump-revision", "1000000", "--mark-compacted"];
                pair.source.etcd.restore("snapshot", &flags).await;
            }
            _ => pair.source.etcd.restore("snapshot", &[]).await,
        }
        if how == "restored above the checkpoint" {
            // Fewer entries of raft than before, more revisions than the checkpoint's.
            for _ in 0..2 {
                pair.source.etcd.fill("/again", 50, 10).await;
            }
            let mut client = pair.source.client().await;
            for _ in 0..60 {
                client.put("/again", "x", None).await.unwrap();
            }
        }
        let before = held(&pair.target, "").await;
        let refused = ended(&pair.source, &pair.target, &["--once"]).await;
        assert_eq!(refused.code, Some(11), "{how}: {}", refused.said);
        assert_eq!(held(&pair.target, "").await, before, "{how}: the target was changed");
        // A person has looked, and wants it.
        let permitted = format!("--resync={}", plan(&refused.said));
        let done = ended(&pair.source, &pair.target, &["--once", &permitted]).await;
        assert_eq!(done.code, Some(0), "{how}: {}", done.said);
        alike(&pair.source, "", &pair.target, "").await;
    }
}

/// The same, seen by a mirror that runs all the while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_set_back_under_a_running_mirror_stops_it() {
    let mut pair = Pair::of("3.6").await;
    pair.source.etcd.fill("/k", 200, 10).await;
    pair.source.etcd.keep("copy").await;
    pair.source.etcd.fill("/later", 200, 10).await;
    let mut mirror = Mirror::start(&pair.source, &pair.target, &[]);
    level(&pair.source, &pair.target).await;
    let before = held(&pair.target, "").await;
    pair.source.etcd.put_back("copy").await;
    pair.source.etcd.put("/new", "1").await;
    mirror.says("SourceRewound").await;
    assert_eq!(held(&pair.target, "").await, before, "the target was changed");
}

/// Case 17: the checkpoint comes back with its data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_set_back_gets_what_it_lost_with_and_without_a_running_mirror() {
    let mut pair = Pair::of("3.6").await;
    pair.source.etcd.fill("/k", 200, 10).await;
    assert_eq!(ended(&pair.source, &pair.target, &["--once"]).await.code, Some(0));
    pair.target.etcd.keep("copy").await;
    for compacted in [false, true] {
        pair.source.etcd.fill("/k", 100, 20).await;
        pair.source.etcd.delete("/k00150").await;
        let mirror = Mirror::start(&pair.source, &pair.target, &[]);
        level(&pair.source, &pair.target).await;
        if compacted {
            pair.source.etcd.compact().await;
            mirror.kill();
            pair.target.etcd.put_back("copy").await;
            let _mirror = Mirror::start(&pair.source, &pair.target, &[]);
            level(&pair.source, &pair.target).await;
        } else {
            pair.target.etcd.put_back("copy").await;
            level(&pair.source, &pair.target).await;
        }
        alike(&pair.source, "", &pair.target, "").await;
    }
}

/// Case 32, while it runs and while it does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_somebody_edited_is_nothing_to_go_on_from() {
    let pair = Pair::of("3.6").await;
    let key = MirrorId::new("default").unwrap().key("checkpoint");
    pair.source.etcd.fill("/k", 200, 10).await;
    assert_eq!(ended(&pair.source, &pair.target, &["--once"]).await.code, Some(0));
    let good = checkpoint(&pair.target).await.unwrap().text();
    let text = String::from_utf8(good.clone()).unwrap();
    let revision = checkpoint(&pair.target).await.unwrap().position.revision();
    let with =
        |other: i64| text.replace(&format!("\"revision\":{revision}"), &format!("\"revision\":{other}"));
    for edited in [with(revision - 1), with(revision + 1_000), "garbage".to_owned(), String::new()] {
        pair.target.etcd.put(key.clone(), edited.clone()).await;
        let before = held(&pair.target, "").await;
        let refused = ended(&pair.source, &pair.target, &["--once"]).await;
        assert_eq!(refused.code, Some(16), "{edited}: {}", refused.said);
        assert_eq!(held(&pair.target, "").await, before);
        pair.target.etcd.put(key.clone(), good.clone()).await;
        // Its former value is good again, whatever its own revision is now.
        pair.source.etcd.put("/k00001", edited.clone()).await;
        let mut mirror = Mirror::start(&pair.source, &pair.target, &[]);
        level(&pair.source, &pair.target).await;
        let running = checkpoint(&pair.target).await.unwrap().text();
        pair.target.etcd.put(key.clone(), "garbage").await;
        pair.source.etcd.put("/meanwhile", edited.clone()).await;
        mirror.says("Checkpoint").await;
        let meanwhile = held(&pair.target, "/meanwhile").await.into_values().next();
        assert_ne!(meanwhile.map(|held| held.value), Some(edited.into_bytes()), "it was built on");
        // Cured, it goes on without a restart.
        pair.target.etcd.put(key.clone(), running).await;
        level(&pair.source, &pair.target).await;
        mirror.kill();
        pair.target.etcd.put(key.clone(), good.clone()).await;
    }
}

/// Case 33: a target that somebody emptied, the mirror's keys included, is not filled in silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_loses_everything_under_a_running_mirror_stops_it() {
    let pair = Pair::of("3.6").await;
    pair.source.etcd.fill("/k", 200, 10).await;
    let mut mirror = Mirror::start(&pair.source, &pair.target, &[]);
    level(&pair.source, &pair.target).await;
    let everything = etcd_client::DeleteOptions::new().with_all_keys();
    pair.target.client().await.delete("", Some(everything)).await.unwrap();
    pair.source.etcd.put("/k00001", "new").await;
    until("it has seen that", async || !mirror.is_running() || mirror.said().contains("stopped")).await;
    assert!(held(&pair.target, "").await.is_empty(), "something was written into the emptied target");
    assert!(mirror.said().contains("CheckpointLost"), "it says why in other words: {}", mirror.said());
}

/// Case 34.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_are_upgraded_under_a_running_mirror() {
    let three = || Settings::of("3.5").members(3).flag("snapshot-count", 10);
    let mut pair = Pair::start(three(), three()).await;
    pair.source.etcd.fill("/k/", 500, 10).await;
    let mirror = Mirror::start(&pair.source, &pair.target, &["--prefix", "/k/"]);
    level(&pair.source, &pair.target).await;
    for minor in ["3.6", "3.7"] {
        for member in 0..3 {
            pair.source.etcd.upgrade(member, minor).await;
            pair.source.etcd.put(format!("/k/{minor}"), member.to_string()).await;
            level(&pair.source, &pair.target).await;
            pair.target.etcd.upgrade(member, minor).await;
            pair.source.etcd.put(format!("/k/{minor}"), format!("{member} target")).await;
            level(&pair.source, &pair.target).await;
        }
        pair.source.etcd.is_all(minor).await;
        // A key of the target's own, outside of what is mirrored.
        pair.target.etcd.is_all(minor).await;
    }
    alike(&pair.source, "/k/", &pair.target, "/k/").await;
    assert!(mirror.metric("resyncs_total").await == 0.0);
}

/// Case 34: etcd before 3.4.25 and 3.5.8 sends progress that is ahead of its events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_too_old_for_its_progress_is_named_and_not_believed() {
    let pair = Pair::of("3.6").await;
    let version: &'static str =
        pair.source.client().await.status().await.unwrap().version().to_owned().leak();
    assert_eq!(version.len(), 6, "{version}");
    pair.source.proxies[0].rewrite(version, "3.4.24");
    let recorded = [pair.source.etcd.record().await, pair.target.etcd.record().await];
    let mut mirror = Mirror::start(&pair.source, &pair.target, &["--prefix", "/a/"]);
    mirror.says("3.4.24").await;
    pair.source.etcd.put("/a/1", "1").await;
    alike(&pair.source, "/a/", &pair.target, "/a/").await;
    let reached = checkpoint(&pair.target).await.unwrap().position.revision();
    for _ in 0..1_200 {
        pair.source.client().await.put("/elsewhere", "x", None).await.unwrap();
    }
    super::pass(std::time::Duration::from_secs(3)).await;
    let now = checkpoint(&pair.target).await.unwrap().position.revision();
    assert_eq!(now, reached, "the checkpoint was moved by progress");
    let histories = (recorded[0].all(&pair.source.etcd).await, recorded[1].all(&pair.target.etcd).await);
    let mine = |key: &[u8]| key.starts_with(b"/a/");
    judge(&histories.0, &histories.1, |key| mine(key).then(|| key.to_vec()), mine);
}
