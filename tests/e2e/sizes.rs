//! Five lines give a cluster that serves: of 1, 3 and 5 members, of each minor.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;

use crate::support::{Story, story};

async fn serves(story: &Story, members: i32, version: &str) {
    let mut spec = json!({"version": version});
    if members != 3 {
        spec["replicas"] = members.into();
    }
    story.create(spec).await;
    let status = story.healthy().await;
    assert_eq!(
        (status.ready.as_deref(), status.replicas),
        (Some(format!("{members}/{members}").as_str()), members)
    );
    assert!(
        status.members.iter().all(|member| member
            .version
            .as_deref()
            .unwrap_or_default()
            .starts_with(version)),
        "{:?}",
        status.members
    );

    let used: BTreeSet<_> = status.members.iter().filter_map(|member| member.node.as_deref()).collect();
    let nodes =
        Api::<Node>::all(story.client.clone()).list(&ListParams::default()).await.unwrap().items.len();
    assert_eq!(used.len(), nodes.min(status.members.len()), "members share nodes: {:?}", status.members);

    let (code, said) = story.etcdctl(&["put", "hello", "world"]).await;
    assert_eq!((code, said.trim()), (0, "OK"));
    let (code, said) = story.etcdctl(&["get", "hello"]).await;
    assert_eq!((code, said.trim()), (0, "hello\nworld"));
    let listed = story.etcd("main-0").await.member_list().await.unwrap();
    let voters = listed.members().iter().filter(|member| !member.is_learner()).count();
    assert_eq!((voters, listed.members().len()), (usize::try_from(members).unwrap(), voters));
}

async fn refuses_strangers(story: &Story) {
    let plain = format!("--endpoints=http://main.{}.svc:2379", story.namespace);
    let (code, said) =
        story.run_in_pod(&["/usr/local/bin/etcdctl", &plain, "--command-timeout=3s", "get", "hello"]).await;
    assert_ne!(code, 0, "plain text was answered: {said}");
    let anonymous = format!("--endpoints=https://main.{}.svc:2379", story.namespace);
    let arguments = [
        "/usr/local/bin/etcdctl",
        &anonymous,
        "--cacert=/tls/ca.crt",
        "--command-timeout=3s",
        "get",
        "hello",
    ];
    let (code, said) = story.run_in_pod(&arguments).await;
    assert_ne!(code, 0, "a client without a certificate was answered: {said}");
}

#[tokio::test]
async fn one_member_of_3_5_serves() {
    story("one", async |story| serves(story, 1, "3.5").await).await;
}

#[tokio::test]
async fn three_members_of_3_6_serve_and_refuse_strangers() {
    story("three", async |story| {
        serves(story, 3, "3.6").await;
        refuses_strangers(story).await;
    })
    .await;
}

#[tokio::test]
async fn five_members_of_3_7_serve() {
    story("five", async |story| serves(story, 5, "3.7").await).await;
}

#[tokio::test]
async fn three_members_serve_in_plain_text_when_asked_to() {
    story("plain", async |story| {
        story.create(json!({"tls": {"mode": "Disabled"}})).await;
        story.healthy().await;
        let addresses = story.addresses().await;
        let mut etcd = quorate::etcd::connect::connect(&addresses["main-0"], None).await.unwrap();
        etcd.put("hello", "world", None).await.unwrap();
        assert_eq!(etcd.get("hello", None).await.unwrap().kvs()[0].value_str().unwrap(), "world");
    })
    .await;
}
