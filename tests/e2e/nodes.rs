//! Nodes that are emptied: members leave before they are missed.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::replace::lowest_margin;
use crate::scaling::watch;
use crate::support::{Story, identities, measured, story_alone};

/// A node under `kubectl drain`; it takes Pods again at the end, whatever happens.
struct Drained(String);

impl Drained {
    /// Drains it of members; the other Pods of this Kubernetes are not ours to evict.
    async fn of(node: &str) -> Self {
        let (node, output) = Self::try_of(node, "140s").await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        node
    }

    /// The same, whether it succeeds or not.
    async fn try_of(node: &str, timeout: &str) -> (Self, Output) {
        let node = Self(node.to_owned());
        let mut command = Command::new("kubectl");
        command
            .args(["drain", &node.0, "--pod-selector=quorate.dev/cluster=main", "--delete-emptydir-data"])
            .args(["--ignore-daemonsets", "--timeout", timeout]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        (node, output)
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let said = Command::new("kubectl").args(["uncordon", &self.0]).status();
        assert!(
            std::thread::panicking() || said.is_ok_and(|status| status.success()),
            "{} is cordoned",
            self.0
        );
    }
}

/// Names and nodes of the members.
async fn places(story: &Story) -> Vec<(String, String)> {
    let members = story.healthy().await.members;
    members.into_iter().map(|member| (member.name, member.node.unwrap())).collect()
}

#[tokio::test]
async fn with_surge_every_node_is_drained_and_no_failure_would_have_hurt() {
    story_alone("drain", async |story| {
        story.create(json!({"disruption": {"surge": true}, "placement": {"spread": "Required"}})).await;
        let before = places(story).await;
        let stop = AtomicBool::new(false);
        let drain = async {
            for (_, node) in &before {
                let drained = Drained::of(node).await;
                let now = places(story).await;
                assert!(now.iter().all(|(_, other)| other != node), "{now:?}");
                drop(drained);
            }
            stop.store(true, Ordering::Relaxed);
        };
        let (((), lowest), verdict) =
            story.under_load(async { tokio::join!(drain, lowest_margin(story, &stop)) }).await;
        assert_eq!(lowest, 1, "at some time one more failure would have cost the quorum");
        let after = places(story).await;
        assert!(after.iter().all(|(name, _)| before.iter().all(|(old, _)| old != name)), "{after:?}");
        measured(&format!(
            "all nodes of a cluster of 3 drained: lowest margin {lowest}; {}",
            verdict.summary()
        ));
    })
    .await;
}

/// Its volume is on its node, so it waits for that; meanwhile the PodDisruptionBudget lets nobody else be evicted.
#[tokio::test]
async fn without_surge_a_member_waits_for_its_node_and_no_second_one_is_evicted() {
    story_alone("evicted", async |story| {
        story.create(json!({})).await;
        let before = story.healthy().await;
        let node = |number: usize| before.members[number].node.clone().unwrap();
        let drain = async {
            let drained = Drained::of(&node(0)).await;
            story.member_health(&before.members[0].name, "Unschedulable").await;
            let (other, second) = Drained::try_of(&node(1), "8s").await;
            drop(other);
            let said = String::from_utf8_lossy(&second.stderr);
            assert!(!second.status.success() && said.contains("disruption budget"), "{said}");
            drop(drained);
            story.healthy().await
        };
        let (after, verdict) = story.under_load(drain).await;
        assert_eq!(identities(&after), identities(&before));
        measured(&format!("a node drained without surge, and back: {}", verdict.summary()));
    })
    .await;
}

#[tokio::test]
async fn one_member_leaves_its_node_and_nothing_is_lost() {
    story_alone("drain1", async |story| {
        story.create(json!({"replicas": 1, "disruption": {"surge": true}})).await;
        let before = places(story).await;
        let stop = AtomicBool::new(false);
        let drain = async {
            drop(Drained::of(&before[0].1).await);
            story.healthy().await;
            stop.store(true, Ordering::Relaxed);
        };
        let (((), (_, even)), verdict) =
            story.under_load(async { tokio::join!(drain, watch(story, &stop)) }).await;
        let after = places(story).await;
        assert!(after.len() == 1 && after[0] != before[0], "{after:?}");
        measured(&format!(
            "the node of a cluster of 1 drained: two voters for {:.2} s; {}",
            even.as_secs_f64(),
            verdict.summary()
        ));
    })
    .await;
}
