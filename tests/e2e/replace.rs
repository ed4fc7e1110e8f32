//! EtcdMemberReplacements as people ask for them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, PostParams};
use quorate::api::EtcdMemberReplacement;
use quorate::api::replacement::{EtcdMemberReplacementStatus, Phase};
use quorate::etcd::quorum::margin;
use serde_json::{Value, json};

use crate::support::{Story, eventually, measured, quorate, story};

pub(crate) async fn ask(
    story: &Story,
    name: &str,
    spec: Value,
) -> Result<EtcdMemberReplacement, kube::Error> {
    ask_as(story, json!({"name": name}), spec).await
}

async fn ask_as(
    story: &Story,
    metadata: Value,
    mut spec: Value,
) -> Result<EtcdMemberReplacement, kube::Error> {
    if spec["clusterRef"].is_null() {
        spec["clusterRef"] = json!({"name": "main"});
    }
    let object = json!({
        "apiVersion": "quorate.dev/v1alpha1", "kind": "EtcdMemberReplacement",
        "metadata": metadata, "spec": spec,
    });
    story.api().create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await
}

pub(crate) async fn becomes(story: &Story, name: &str, phase: Phase) -> EtcdMemberReplacementStatus {
    let found = async || {
        let status = story.api::<EtcdMemberReplacement>().get(name).await.unwrap().status?;
        (status.phase == Some(phase)).then_some(status)
    };
    eventually(&format!("{name} is {phase:?}"), found).await
}

/// What `kubectl apply` says to it.
async fn refusal(story: &Story, spec: Value) -> String {
    ask(story, "refused", spec).await.expect_err("it was taken").to_string()
}

/// So many looks are judged together, at least,
const LOOKS: usize = 3;
/// and so far apart are the first and the last of them.
const LOOKS_TIME: Duration = Duration::from_secs(4);

/// The lowest number of failures that the cluster could bear, by etcd's own list, until told to stop.
pub(crate) async fn lowest_margin(story: &Story, stop: &std::sync::atomic::AtomicBool) -> usize {
    let identity = story.identity().await;
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let (mut lowest, mut looks) = (usize::MAX, VecDeque::new());
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        tick.tick().await;
        let begun = Instant::now();
        let survey = quorate::etcd::survey::survey(story.addresses().await, Some(&identity)).await;
        let answers = || survey.values().flatten();
        let Some(list) = answers().find_map(|answer| answer.quorum.as_ref()) else { continue };
        let voters: Vec<_> =
            list.members.iter().filter(|member| !member.learner).map(|member| member.id).collect();
        let healthy =
            answers().filter(|answer| answer.quorum.is_some() && voters.contains(&answer.member_id)).count();
        looks.push_back((begun, margin(voters.len(), healthy).unwrap_or_default()));
        // Answers of one look are not of one moment: who has just begun to vote may have answered as a learner, who has
        // just left may have been counted by another. And on a busy machine a member answers late. So what counts is what
        // three looks and four seconds have seen: no member that is gone comes back within them.
        let enough = |from: usize| {
            let first = looks.get(from).is_some_and(|(first, _)| begun.duration_since(*first) >= LOOKS_TIME);
            first && looks.len() - from >= LOOKS
        };
        let (judged, spare) = (enough(0), enough(1));
        if spare {
            looks.pop_front();
        }
        if judged {
            lowest = looks.iter().map(|(_, margin)| *margin).max().unwrap_or_default().min(lowest);
        }
    }
    lowest
}

#[tokio::test]
async fn every_member_is_exchanged_for_a_new_one_under_load() {
    story("exchange", async |story| {
        story.create(json!({})).await;
        let before = story.healthy().await;
        let stop = std::sync::atomic::AtomicBool::new(false);
        let exchange = async {
            for member in ["main-0", "main-1", "main-2"] {
                let name = format!("new-{member}");
                ask(story, &name, json!({"member": member})).await.unwrap();
                let status = becomes(story, &name, Phase::Complete).await;
                let steps: Vec<&str> = status.steps.iter().map(|step| step.name.as_str()).collect();
                assert!(steps.starts_with(&["Preflight", "AddLearner", "CatchUp"]), "{steps:?}");
                story.healthy().await;
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        };
        let (((), lowest), verdict) =
            story.under_load(async { tokio::join!(exchange, lowest_margin(story, &stop)) }).await;
        let after = story.healthy().await;
        let names: Vec<&str> = after.members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["main-3", "main-4", "main-5"]);
        assert_eq!(before.cluster_id, after.cluster_id);
        assert!(lowest >= 1, "for a moment no failure would have been borne");
        measured(&format!(
            "every member exchanged, the new one first: lowest margin {lowest}; {}",
            verdict.summary()
        ));
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_the_arithmetic_and_nothing_is_touched() {
    story("refused", async |story| {
        let said = refusal(story, json!({"member": "main-0", "node": "n1"})).await;
        assert!(said.contains("exactly one of member, memberID and node"), "{said}");
        let said =
            refusal(story, json!({"member": "main-0", "volume": "Keep", "strategy": "AddFirst"})).await;
        assert!(said.contains("contradict each other"), "{said}");
        ask(story, "nowhere", json!({"member": "main-0"})).await.unwrap();
        let status = becomes(story, "nowhere", Phase::Rejected).await;
        assert!(status.message.unwrap().contains("no EtcdCluster main"));

        story.create(json!({})).await;
        let before = story.healthy().await;
        let cases = [
            ("unknown", json!({"member": "main-9"}), "main-9 is no member"),
            ("class", json!({"member": "main-0", "storage": {"storageClassName": "gold"}}), "gold"),
            ("small", json!({"member": "main-0", "storage": {"size": "64Mi"}}), "too small"),
            ("node", json!({"node": "n9"}), "n9 is no member"),
        ];
        for (name, spec, words) in cases {
            ask(story, name, spec).await.unwrap();
            let status = becomes(story, name, Phase::Rejected).await;
            let said = status.message.unwrap();
            assert!(said.contains(words) && said.contains("Nothing was touched"), "{name}: {said}");
        }
        // One of three is stopped: whoever else leaves first would take the quorum along.
        let pod = story.pod("main-1").await.unwrap().uid().unwrap();
        crate::support::signal_in_pod(&pod, "/usr/local/bin/etcd", "-STOP");
        story.member_health("main-1", "MemberDown").await;
        ask(story, "quorum", json!({"member": "main-0", "strategy": "RemoveFirst"})).await.unwrap();
        let said = becomes(story, "quorum", Phase::Rejected).await.message.unwrap();
        assert!(said.contains("2 of 3 voters are"), "{said}");
        crate::support::signal_in_pod(&pod, "/usr/local/bin/etcd", "-CONT");
        let after = story.healthy().await;
        assert_eq!(crate::support::identities(&after), crate::support::identities(&before));
        let edit = json!({"spec": {"member": "main-2"}});
        let patch = kube::api::Patch::Merge(edit);
        let api = story.api::<EtcdMemberReplacement>();
        let said =
            api.patch("quorum", &kube::api::PatchParams::default(), &patch).await.unwrap_err().to_string();
        assert!(said.contains("cannot change"), "{said}");
    })
    .await;
}

#[tokio::test]
async fn of_the_repairs_that_are_over_the_newest_ten_are_kept() {
    story("ten", async |story| {
        story.create(json!({"replicas": 1})).await;
        story.healthy().await;
        let labels = json!({"quorate.dev/created-by": "repair"});
        for number in 0..12 {
            let metadata = json!({"name": format!("old-{number:02}"), "labels": labels});
            ask_as(story, metadata, json!({"member": "main-9"})).await.unwrap();
        }
        let kept = async || {
            let all = story.api::<EtcdMemberReplacement>().list(&ListParams::default()).await.unwrap().items;
            let over = all
                .iter()
                .all(|one| one.status.as_ref().is_some_and(|status| status.phase == Some(Phase::Rejected)));
            (over && all.len() <= 10).then_some(all)
        };
        let kept = eventually("the oldest are gone", kept).await;
        let names: Vec<String> = kept.iter().map(ResourceExt::name_any).collect();
        assert!(names.len() == 10 && names.iter().all(|name| name.as_str() >= "old-02"), "{names:?}");
    })
    .await;
}

#[tokio::test]
async fn one_that_cannot_go_on_goes_back() {
    story("back", async |story| {
        story.create(json!({})).await;
        let before = story.healthy().await;
        let nowhere = json!({"nodeSelector": {"quorate.dev/no-such": "node"}});
        ask(story, "late", json!({"member": "main-0", "placement": nowhere, "timeLimit": "15s"}))
            .await
            .unwrap();
        // A second one waits, and is taken back by its deletion.
        becomes(story, "late", Phase::Running).await;
        ask(story, "second", json!({"member": "main-1"})).await.unwrap();
        becomes(story, "second", Phase::Pending).await;
        story.api::<EtcdMemberReplacement>().delete("second", &DeleteParams::default()).await.unwrap();
        let said = becomes(story, "late", Phase::Failed).await.message.unwrap();
        assert!(said.contains("Not done within 15s"), "{said}");
        let after = story.healthy().await;
        assert_eq!(crate::support::identities(&after), crate::support::identities(&before));

        ask(
            story,
            "deleted",
            json!({"member": "main-0", "placement": {"nodeSelector": {"quorate.dev/no-such": "node"}}}),
        )
        .await
        .unwrap();
        becomes(story, "deleted", Phase::Running).await;
        let learner = async || (story.status().await.members.len() == 4).then_some(());
        eventually("a learner has joined", learner).await;
        story.api::<EtcdMemberReplacement>().delete("deleted", &DeleteParams::default()).await.unwrap();
        let back = async || (story.status().await.members.len() == 3).then_some(());
        eventually("the learner was taken back", back).await;
        let after = story.healthy().await;
        assert_eq!(crate::support::identities(&after), crate::support::identities(&before));
    })
    .await;
}

#[tokio::test]
async fn the_command_line_replaces_a_member_and_keeps_its_volume() {
    story("cli-replace", async |story| {
        story.create(json!({})).await;
        let before = story.healthy().await;
        let (code, said, errors) =
            quorate(&["replace", "-n", &story.namespace, "main", "main-1", "--dry-run"]);
        assert!(code == Some(0) && said.contains("member: main-1"), "{code:?} {said}{errors}");
        let all = story.api::<EtcdMemberReplacement>();
        assert!(all.list(&ListParams::default()).await.unwrap().items.is_empty());
        let namespace = story.namespace.clone();
        let words = ["replace", "-n", &namespace, "main", "main-1", "--keep-volume", "--wait", "2m"]
            .map(str::to_owned);
        let run = move || quorate(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let (ran, verdict) =
            story.under_load(async { tokio::task::spawn_blocking(run).await.unwrap() }).await;
        let (code, said, errors) = ran;
        assert!(code == Some(0) && said.contains("Complete"), "{code:?} {said}{errors}");
        let after = story.healthy().await;
        let id = |status: &quorate::api::EtcdClusterStatus| status.members[1].member_id.clone();
        assert_eq!(after.members[1].name, "main-1");
        assert_ne!(id(&before), id(&after));
        assert!(story.volume("main-1").await.join("bak-1").exists(), "the old data are not aside");
        measured(&format!("a healthy member begun anew on its volume: {}", verdict.summary()));
    })
    .await;
}
