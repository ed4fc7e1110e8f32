//! A quiet cluster costs nothing: the apiserver's audit log shows no write of the operator's but the lease, and etcd's
//! own log does not grow.

use std::time::Duration;

use etcd_client::{AlarmAction, AlarmOptions, AlarmType};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::ListParams;
use quorate::api::EtcdCluster;
use serde_json::json;

use crate::operator::{Operator, writes};
use crate::support::{Story, eventually, full, measured, story, story_alone};

/// The budget of the design.
const MEMORY_MIB: f64 = 64.0;

#[tokio::test]
async fn clusters_that_are_well_cost_no_writes() {
    story_alone("quiet", async |story| {
        let (clusters, window) = if full() { (10, 300) } else { (2, 70) };
        story.create(json!({})).await;
        for number in 1..clusters {
            let replicas = if number % 2 == 0 { 3 } else { 1 };
            story.create_named(&format!("quiet-{number}"), json!({"replicas": replicas})).await;
        }
        all_healthy(story, clusters).await;
        let namespaces: Api<Namespace> = Api::all(story.client.clone());
        let others_are_gone = async || {
            let list = namespaces.list(&ListParams::default()).await.unwrap().items;
            list.iter().all(|namespace| namespace.metadata.deletion_timestamp.is_none()).then_some(())
        };
        eventually("the namespaces of other stories are gone", others_are_gone).await;
        let operator = Operator::find(&story.client).await;
        let (since, cpu, entries) = (Timestamp::now(), operator.cpu_seconds(), entries(story).await);
        // Nothing is waited for: this is how long is looked.
        tokio::time::sleep(Duration::from_secs(window)).await;
        let found = writes(since);
        for write in &found {
            println!("{} {} {} {} {}", write.time, write.verb, write.resource, write.object, write.code);
        }
        assert!(found.is_empty(), "{} writes while nothing happened, see above", found.len());
        assert_eq!(self::entries(story).await, entries, "looking at a cluster makes its log grow");
        all_healthy(story, clusters).await;
        let (memory, cpu) = (operator.memory_mib(), operator.cpu_seconds() - cpu);
        #[expect(clippy::cast_precision_loss, reason = "a few seconds")]
        let share = cpu / window as f64 * 100.0;
        measured(&format!(
            "{clusters} quiet clusters for {window} s: 0 writes but the lease; operator {memory:.1} MiB, {share:.1} % of a core"
        ));
        assert!(memory < MEMORY_MIB, "the operator takes {memory:.1} MiB");
    })
    .await;
}

/// How many entries the log of `main` has.
async fn entries(story: &Story) -> u64 {
    story.etcd("main-0").await.status().await.unwrap().raft_index()
}

/// Alarms are asked for only while there is one.
#[tokio::test]
async fn an_alarm_is_told_and_so_is_its_end() {
    story("alarm", async |story| {
        story.create(json!({"replicas": 1})).await;
        story.healthy().await;
        let mut etcd = story.etcd("main-0").await;
        let member = etcd.status().await.unwrap().header().unwrap().member_id();
        let mut of = AlarmOptions::new();
        of.with_member(member);
        etcd.alarm(AlarmAction::Activate, AlarmType::Nospace, Some(of.clone())).await.unwrap();
        story.condition("Ready", "NoSpaceAlarm").await;
        assert_eq!(story.status().await.alarms, ["NOSPACE main-0"]);
        etcd.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(of)).await.unwrap();
        assert!(story.healthy().await.alarms.is_empty());
    })
    .await;
}

async fn all_healthy(story: &Story, clusters: usize) {
    let healthy = async || {
        let list = story.api::<EtcdCluster>().list(&ListParams::default()).await.unwrap();
        let summary = |cluster: &EtcdCluster| cluster.status.as_ref()?.summary.clone();
        let well = list.items.iter().filter(|cluster| summary(cluster).as_deref() == Some("Healthy"));
        (well.count() == clusters).then_some(())
    };
    eventually("all clusters are Healthy", healthy).await;
}
