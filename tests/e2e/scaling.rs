//! Members join and leave while clients write and operators die.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etcd_client::Client as Etcd;
use serde_json::json;

use crate::operator::kill_operators;
use crate::support::{Story, eventually, full, measured, story, story_alone};
use quorate::etcd::connect::connect;

/// An operator lives so long.
const LIFE: Duration = Duration::from_secs(2);
/// A client gives up one member, and asks another, after so long.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a writer of unique keys saw.
#[derive(Default)]
struct Written {
    acknowledged: Vec<u64>,
    longest_gap: Duration,
}

/// Puts one key after the other, each at whatever member takes it, until told to stop.
async fn write(story: &Story, stop: &AtomicBool) -> Written {
    let identity = story.identity().await;
    let mut written = Written::default();
    let mut last = Instant::now();
    let mut etcd: Option<Etcd> = None;
    for key in 0_u64.. {
        while !stop.load(Ordering::Relaxed) {
            if etcd.is_none() {
                let mut addresses: Vec<_> = story.addresses().await.into_values().collect();
                let start = usize::try_from(key).unwrap_or_default() % addresses.len().max(1);
                addresses.rotate_left(start);
                for address in addresses {
                    etcd = connect(&address, Some(&identity)).await.ok();
                    if etcd.is_some() {
                        break;
                    }
                }
            }
            let Some(client) = &mut etcd else { continue };
            let put = client.put(format!("unique/{key}"), key.to_string(), None);
            if let Ok(Ok(_)) = tokio::time::timeout(PATIENCE, put).await {
                written.acknowledged.push(key);
                written.longest_gap = written.longest_gap.max(last.elapsed());
                last = Instant::now();
                break;
            }
            etcd = None;
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
        tokio::task::yield_now().await;
    }
    written
}

/// Looks at the member list all the time: (most learners at once, longest time with an even number of voters).
pub(crate) async fn watch(story: &Story, stop: &AtomicBool) -> (usize, Duration) {
    let identity = story.identity().await;
    let (mut learners, mut longest, mut even) = (0, Duration::ZERO, None::<Instant>);
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        let survey = quorate::etcd::survey::survey(story.addresses().await, Some(&identity)).await;
        let Some(quorum) = survey.into_values().flatten().find_map(|answer| answer.quorum) else { continue };
        let voters = quorum.members.iter().filter(|member| !member.learner).count();
        learners = learners.max(quorum.members.len() - voters);
        if voters % 2 == 0 {
            longest = longest.max(even.get_or_insert_with(Instant::now).elapsed());
        } else {
            even = None;
        }
    }
    (learners, longest)
}

/// Waits until that many vote, nobody else is there, and all is well.
async fn reaches(story: &Story, members: i32) {
    story.patch(json!({"replicas": members})).await;
    let done = async || {
        let cluster = story.cluster().await;
        let status = cluster.status.unwrap_or_default();
        let observed = status.observed_generation == cluster.metadata.generation;
        let whole = status.ready.as_deref() == Some(format!("{members}/{members}").as_str());
        (observed && whole && status.summary.as_deref() == Some("Healthy")).then_some(())
    };
    eventually(&format!("{members} members are healthy"), done).await;
}

async fn scales(sizes: &[i32], version: &str, kill: bool) {
    let name = format!("scale{}", sizes.len());
    let tell = async |story: &Story| {
        let (first, rest) = sizes.split_first().expect("a story has sizes");
        story.create(json!({"replicas": first, "version": version})).await;
        story.healthy().await;
        let stop = AtomicBool::new(false);
        let killer = async || if kill { kill_operators(LIFE, &stop).await } else { 0 };
        let path = async {
            let mut times = Vec::new();
            for size in rest {
                let begun = Instant::now();
                reaches(story, *size).await;
                times.push(format!("{size} after {:.1} s", begun.elapsed().as_secs_f64()));
            }
            stop.store(true, Ordering::Relaxed);
            times
        };
        let (times, written, killed, (learners, even)) =
            tokio::join!(path, write(story, &stop), killer(), watch(story, &stop));
        let last = *sizes.last().expect("a story has sizes");
        let found = story.status().await.members;
        assert_eq!(found.len(), usize::try_from(last).unwrap(), "{found:?}");
        let member = found[0].name.clone();
        let listed = story.etcd(&member).await.member_list().await.unwrap();
        assert!(listed.members().iter().all(|member| !member.is_learner()), "a learner is left");
        assert_eq!(listed.members().len(), found.len());
        let mut etcd = story.etcd(&member).await;
        let options = etcd_client::GetOptions::new().with_prefix().with_keys_only();
        let keys = etcd.get("unique/", Some(options)).await.unwrap();
        let there: std::collections::BTreeSet<u64> = keys
            .kvs()
            .iter()
            .filter_map(|pair| pair.key_str().ok()?.strip_prefix("unique/")?.parse().ok())
            .collect();
        let lost: Vec<_> = written.acknowledged.iter().filter(|key| !there.contains(*key)).collect();
        assert!(lost.is_empty(), "{} acknowledged keys are lost: {lost:?}", lost.len());
        assert!(written.acknowledged.len() > 100, "only {} keys were written", written.acknowledged.len());
        assert!(!kill || killed > 5, "operators were killed {killed} times only");
        assert!(learners <= 2, "{learners} learners at once");
        println!(
            "measured: {sizes:?} {version}: {}; {} keys acknowledged, all there; longest gap of writes {:.2} s; operators killed {killed} times; at most {learners} learners; an even number of voters for {:.2} s at most",
            times.join(", "),
            written.acknowledged.len(),
            written.longest_gap.as_secs_f64(),
            even.as_secs_f64(),
        );
    };
    // All stories share the operators: what they do while these die is no measure of theirs.
    if kill { story_alone(&name, tell).await } else { story(&name, tell).await }
}

#[tokio::test]
async fn three_five_three_five_while_operators_die() {
    scales(&[3, 5, 3, 5], "3.6", true).await;
}

#[tokio::test]
async fn three_five_three_undisturbed() {
    scales(&[3, 5, 3], "3.7", false).await;
}

#[tokio::test]
async fn one_three_one_where_etcd_takes_one_learner_at_a_time() {
    scales(&[1, 3, 1], "3.5", false).await;
}

/// Who gets the data as a snapshot of more than 5,000 entries waits, in etcd, for one more entry before it serves.
#[tokio::test]
async fn members_join_where_nobody_writes() {
    story("idle", async |story| {
        story.create(json!({"replicas": 1, "extraArgs": {"snapshot-count": "100"}})).await;
        story.healthy().await;
        story.write("key-", 6500).await;
        let begun = Instant::now();
        reaches(story, 3).await;
        measured(&format!(
            "1→3 where nobody writes, the data as a snapshot: {:.1} s",
            begun.elapsed().as_secs_f64()
        ));
        for member in ["main-1", "main-2"] {
            assert_eq!(story.count(member, "key-").await, 6500);
        }
    })
    .await;
}

#[tokio::test]
async fn one_to_five_and_back_and_seven() {
    if full() {
        scales(&[1, 3, 5, 3, 1], "3.6", true).await;
        scales(&[3, 7, 3], "3.6", true).await;
    } else {
        scales(&[3, 1], "3.6", false).await;
    }
}
