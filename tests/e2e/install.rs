//! The operator as it is installed, and the command line on a real cluster.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::support::{eventually, quorate, story};

#[tokio::test]
async fn a_new_object_is_in_progress_before_the_operator_has_seen_it() {
    story("minus-one", async |story| {
        let created = story.create(json!({"paused": true})).await;
        assert_eq!(created.status.and_then(|status| status.observed_generation), Some(-1));
    })
    .await;
}

#[tokio::test]
async fn status_shows_the_picture_and_ctl_reads_and_writes() {
    story("cli", async |story| {
        let (code, _, said) = quorate(&["status", "-n", &story.namespace, "main"]);
        assert!(code == Some(2) && said.contains("main"), "{code:?} {said}");
        story.create(json!({})).await;
        story.healthy().await;
        let (code, said, errors) = quorate(&["status", "-n", &story.namespace, "main"]);
        assert_eq!(code, Some(0), "{said}{errors}");
        assert!(said.contains("3/3 voters healthy") && said.contains("main-2"), "{said}");
        let put = quorate(&["ctl", "-n", &story.namespace, "main", "--", "put", "hello", "world"]);
        assert_eq!((put.0, put.1.trim()), (Some(0), "OK"), "{}", put.2);
        let get =
            quorate(&["ctl", "-n", &story.namespace, "main", "--", "get", "hello", "--print-value-only"]);
        assert_eq!((get.0, get.1.trim()), (Some(0), "world"), "{}", get.2);
        story.patch(json!({"paused": true})).await;
        story.delete_pod("main-1").await;
        story.member_health("main-1", "MemberDown").await;
        let (code, said, _) = quorate(&["status", "-n", &story.namespace, "main"]);
        assert!(code == Some(1) && said.contains("2/3"), "{code:?} {said}");
    })
    .await;
}

#[tokio::test]
async fn the_standby_takes_over_when_the_holder_of_the_lease_is_deleted() {
    story("lease", async |story| {
        let pods: Api<Pod> = Api::namespaced(story.client.clone(), "quorate-system");
        let leases: Api<Lease> = Api::namespaced(story.client.clone(), "quorate-system");
        let holder = async || {
            let lease = leases.get_opt("quorate-operator").await.unwrap()?;
            lease.spec?.holder_identity.filter(|holder| !holder.is_empty())
        };
        let first = eventually("somebody holds the lease", holder).await;
        let operators = ListParams::default().labels("app.kubernetes.io/component=operator");
        let ready = async || {
            let list = pods.list(&operators).await.unwrap();
            let ready = list.items.iter().filter(|pod| {
                let conditions =
                    pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
                conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
            });
            (ready.count() >= 2).then_some(())
        };
        eventually("both replicas are ready, the standby too", ready).await;
        pods.delete(&first, &DeleteParams::default()).await.unwrap();
        let another = async || holder().await.filter(|holder| *holder != first);
        eventually("another replica holds the lease", another).await;
        story.create(json!({"replicas": 1})).await;
        story.healthy().await;
    })
    .await;
}

#[tokio::test]
async fn children_carry_the_clusters_uid_and_the_peer_port_is_closed_to_clients() {
    story("children", async |story| {
        let cluster = story.create(json!({"replicas": 1})).await;
        story.healthy().await;
        let pods = story.api::<Pod>().list(&ListParams::default()).await.unwrap().items;
        let uid = cluster.uid().unwrap();
        assert!(pods.iter().all(|pod| pod.owner_references().iter().any(|owner| owner.uid == uid)));
        let peer = format!("--endpoints=https://main-0.main-peers.{}.svc:2380", story.namespace);
        let arguments = [
            "/usr/local/bin/etcdctl",
            &peer,
            "--cacert=/tls/ca.crt",
            "--cert=/tls/tls.crt",
            "--key=/tls/tls.key",
            "--command-timeout=3s",
            "get",
            "x",
        ];
        let (code, said) = story.run_in_pod(&arguments).await;
        assert_ne!(code, 0, "a client's certificate opened the peer port: {said}");
    })
    .await;
}
