//! EtcdMirror: from what is asked for and what was seen to Deployment, ConfigMaps, conditions and sentences.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use expect_test::{Expect, expect};
use jiff::{SignedDuration, Timestamp};
use quorate::api::EtcdMirror;
use quorate::api::mirror::EtcdMirrorStatus;
use quorate::api::reason::Reason;
use quorate::mirror::agent::config::AgentConfig;
use quorate::mirror::agent::status::{
    AgentPhase, AgentStatus, Problem, ProblemReason, SiteSeen, Switch, SwitchStep, Verification,
};
use quorate::operator::manifest::says_all;
use quorate::operator::mirror::desired::Desired;
use quorate::operator::mirror::observed::{AgentPod, Cluster, ClusterSeen, Fields, Observed, Pair};
use quorate::operator::mirror::plan::{Ensure, Plan, plan};
use quorate::operator::mirror::status::{differs, status, thousands};
use serde_json::{Value, json};

use crate::judges::{argo, kstatus};
use crate::offline::refusals;

const NAMESPACE: &str = "team";

/// A mirror from the EtcdCluster `main` to an etcd elsewhere; `more` is merged into its spec.
fn object(more: &Value) -> EtcdMirror {
    let mut spec = json!({
        "active": "eqiad",
        "sites": [
            {"name": "eqiad", "clusterRef": {"name": "main"}},
            {"name": "codfw", "external": {
                "endpoints": ["https://etcd.codfw.example:2379"], "tlsSecretRef": {"name": "codfw-client"},
            }},
        ],
    });
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    let object = json!({
        "apiVersion": "quorate.dev/v1alpha1",
        "kind": "EtcdMirror",
        "metadata": {"name": "dc", "namespace": NAMESPACE, "uid": "uid-of-ours", "generation": 3,
            "creationTimestamp": "2026-01-02T00:00:00Z"},
        "spec": spec,
    });
    assert_eq!(refusals(&object, None), Vec::<String>::new(), "the apiserver takes what is tested");
    serde_json::from_value(object).unwrap()
}

fn desired(more: &Value) -> Desired {
    Desired::of(&object(more), "quorate:test").unwrap()
}

fn fields(keys: &[&str]) -> Fields {
    Fields(keys.iter().map(|key| ((*key).to_owned(), format!("text of {key}").into_bytes())).collect())
}

fn main_cluster(namespace: &str) -> Cluster {
    Cluster {
        namespace: namespace.to_owned(),
        name: "main".to_owned(),
        members: ["main-0", "main-1", "main-3"].map(str::to_owned).to_vec(),
        tls: true,
        client: Some(("main-client".to_owned(), Some(fields(&["ca.crt", "tls.crt", "tls.key"])))),
    }
}

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

/// All that an agent needs is there; nothing of the mirror's own is.
fn ready_to_start() -> Observed {
    Observed {
        clusters: BTreeMap::from([("eqiad".to_owned(), ClusterSeen::Formed(main_cluster(NAMESPACE)))]),
        secrets: BTreeMap::from([("codfw-client".to_owned(), fields(&["ca.crt", "tls.crt", "tls.key"]))]),
        children: BTreeMap::new(),
        pods: BTreeMap::new(),
        answer: None,
        others: Vec::new(),
        now: now(),
    }
}

fn decide(desired: &Desired, observed: &Observed) -> Plan {
    plan(desired, observed, &EtcdMirrorStatus::default())
}

/// What the apiserver would hold after the plan.
fn carried_out(observed: &Observed, plan: &Plan) -> Observed {
    let mut after = observed.clone();
    for ensure in &plan.ensure {
        if let Ensure::Apply { kind, manifest } = ensure {
            let name = manifest["metadata"]["name"].as_str().unwrap().to_owned();
            after.children.insert((*kind, name), manifest.clone());
        }
    }
    after
}

fn manifest<'a>(plan: &'a Plan, kind: &str, name: &str) -> &'a Value {
    let found = plan.ensure.iter().find_map(|ensure| match ensure {
        Ensure::Apply { kind: found, manifest } if *found == kind && manifest["metadata"]["name"] == name => {
            Some(manifest)
        }
        Ensure::Apply { .. } | Ensure::Touch { .. } => None,
    });
    found.unwrap_or_else(|| panic!("the plan has no {kind} {name}: {:?}", plan.ensure))
}

/// The Pod of an agent, as its Deployment makes it.
pub(crate) fn agent() -> Value {
    let plan = decide(&desired(&json!({})), &ready_to_start());
    manifest(&plan, "Deployment", "dc-agent").pointer("/spec/template").unwrap().clone()
}

fn file(plan: &Plan) -> AgentConfig {
    let text = manifest(plan, "ConfigMap", "dc-agent")["data"]["config.yaml"].as_str().unwrap();
    serde_saphyr::from_str(text).unwrap()
}

/// Started by that file, and answering.
fn answering(desired: &Desired, answer: AgentStatus) -> Observed {
    let first = ready_to_start();
    let plan = decide(desired, &first);
    let mut observed = carried_out(&first, &plan);
    let config = file(&plan);
    let pod = AgentPod {
        uid: "uid-of-pod".to_owned(),
        ip: Some("10.0.0.9".to_owned()),
        running: true,
        config: Some(config.digest()),
        ..AgentPod::default()
    };
    observed.pods.insert("dc-agent-1".to_owned(), pod);
    observed.answer = Some(Ok(AgentStatus { fingerprint: config.fingerprint, ..answer }));
    observed
}

fn streaming() -> AgentStatus {
    let site = |name: &str, id: &str| SiteSeen {
        name: name.to_owned(),
        cluster_id: Some(id.to_owned()),
        reachable: true,
        message: None,
    };
    AgentStatus {
        phase: AgentPhase::Streaming,
        active: Some("eqiad".to_owned()),
        term: Some(1),
        sites: vec![site("eqiad", "424b"), site("codfw", "1860")],
        checkpoint_revision: Some(3_020_127),
        source_revision: Some(3_020_127),
        lag_revisions: Some(0),
        lag_seconds: Some(0.4),
        initial_sync_done: true,
        keys: Some(1_204_331),
        ..AgentStatus::default()
    }
}

fn told(desired: &Desired, observed: &Observed) -> EtcdMirrorStatus {
    let before = EtcdMirrorStatus::default();
    status(&before, desired, observed, &plan(desired, observed, &before), now())
}

/// Conditions as a person reads them.
fn conditions(status: &EtcdMirrorStatus) -> String {
    status.conditions.iter().fold(String::new(), |mut text, condition| {
        let state = if condition.status == "True" { "" } else { "not " };
        writeln!(text, "{state}{} {}: {}", condition.type_, condition.reason, condition.message).unwrap();
        text
    })
}

fn check(desired: &Desired, observed: &Observed, expected: &Expect) {
    let status = told(desired, observed);
    let shown = format!(
        "{} | {} -> {} | {}\n{}",
        status.phase.as_deref().unwrap_or("-"),
        status.source.as_deref().unwrap_or("-"),
        status.target.as_deref().unwrap_or("-"),
        status.summary.as_deref().unwrap_or("-"),
        conditions(&status)
    );
    expected.assert_eq(&shown);
}

#[test]
fn a_new_mirror_gets_its_file_its_agent_and_its_active_site() {
    let plan = decide(&desired(&json!({})), &ready_to_start());
    expect!["[apply ConfigMap dc-active, apply ConfigMap dc-agent, apply Deployment dc-agent]"]
        .assert_eq(&format!("{:?}", plan.ensure));
    assert_eq!(plan.findings, []);
    let text = manifest(&plan, "ConfigMap", "dc-agent")["data"]["config.yaml"].as_str().unwrap();
    expect![[r#"
        fingerprint: 276b40181e98d674
        namespace: team
        name: dc
        id: default
        sites:
        - name: eqiad
          endpoints:
          - https://main-0.main-peers.team.svc:2379
          - https://main-1.main-peers.team.svc:2379
          - https://main-3.main-peers.team.svc:2379
          credentials:
            authorityFile: /etc/quorate/site/eqiad/tls/ca.crt
            certificateFile: /etc/quorate/site/eqiad/tls/tls.crt
            keyFile: /etc/quorate/site/eqiad/tls/tls.key
        - name: codfw
          endpoints:
          - https://etcd.codfw.example:2379
          credentials:
            authorityFile: /etc/quorate/site/codfw/tls/ca.crt
            certificateFile: /etc/quorate/site/codfw/tls/tls.crt
            keyFile: /etc/quorate/site/codfw/tls/tls.key
        active: eqiad
        mappings: []
        ignore: []
        state: Running
        overwrite: false
        prune: false
        leases: Strip
        foreignWrites: Report
        verify:
          everySeconds: 86400
        limits: {}
        requests: {}
    "#]]
    .assert_eq(text);
    expect![[r#"
        {
          "ETCDCTL_ENDPOINTS": "https://main.team.svc:2379",
          "ca.crt": "text of ca.crt",
          "clientSecret": "main-client",
          "endpoints": "https://main.team.svc:2379",
          "site": "eqiad"
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&manifest(&plan, "ConfigMap", "dc-active")["data"]).unwrap());
}

#[test]
fn the_agent_is_one_restricted_pod_of_the_operators_image() {
    let more = json!({"agent": {"podTemplate": {
        "nodeSelector": {"topology.kubernetes.io/zone": "a"}, "priorityClassName": "high",
        "metadata": {"labels": {"team": "storage"}},
    }}});
    let plan = decide(&desired(&more), &ready_to_start());
    let text = serde_json::to_string_pretty(&manifest(&plan, "Deployment", "dc-agent")["spec"]).unwrap();
    expect![[r#"
        {
          "replicas": 1,
          "revisionHistoryLimit": 1,
          "selector": {
            "matchLabels": {
              "quorate.dev/mirror": "dc",
              "quorate.dev/mirror-uid": "uid-of-ours"
            }
          },
          "strategy": {
            "type": "Recreate"
          },
          "template": {
            "metadata": {
              "labels": {
                "app.kubernetes.io/component": "mirror-agent",
                "app.kubernetes.io/managed-by": "quorate",
                "app.kubernetes.io/name": "quorate",
                "quorate.dev/mirror": "dc",
                "quorate.dev/mirror-uid": "uid-of-ours",
                "team": "storage"
              }
            },
            "spec": {
              "automountServiceAccountToken": false,
              "containers": [
                {
                  "args": [
                    "mirror",
                    "--config",
                    "/etc/quorate/mirror/config.yaml"
                  ],
                  "image": "quorate:test",
                  "imagePullPolicy": "IfNotPresent",
                  "livenessProbe": {
                    "failureThreshold": 3,
                    "httpGet": {
                      "path": "/livez",
                      "port": 8080
                    },
                    "periodSeconds": 10,
                    "timeoutSeconds": 2
                  },
                  "name": "agent",
                  "ports": [
                    {
                      "containerPort": 8080,
                      "name": "http",
                      "protocol": "TCP"
                    }
                  ],
                  "readinessProbe": {
                    "failureThreshold": 1,
                    "httpGet": {
                      "path": "/readyz",
                      "port": 8080
                    },
                    "periodSeconds": 2,
                    "timeoutSeconds": 2
                  },
                  "resources": {
                    "limits": {
                      "memory": "256Mi"
                    },
                    "requests": {
                      "cpu": "50m",
                      "memory": "64Mi"
                    }
                  },
                  "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": {
                      "drop": [
                        "ALL"
                      ]
                    },
                    "readOnlyRootFilesystem": true
                  },
                  "terminationMessagePolicy": "FallbackToLogsOnError",
                  "volumeMounts": [
                    {
                      "mountPath": "/etc/quorate/mirror",
                      "name": "config",
                      "readOnly": true
                    },
                    {
                      "mountPath": "/etc/quorate/site/eqiad/tls",
                      "name": "site-eqiad-tls",
                      "readOnly": true
                    },
                    {
                      "mountPath": "/etc/quorate/site/codfw/tls",
                      "name": "site-codfw-tls",
                      "readOnly": true
                    }
                  ]
                }
              ],
              "enableServiceLinks": false,
              "nodeSelector": {
                "topology.kubernetes.io/zone": "a"
              },
              "priorityClassName": "high",
              "securityContext": {
                "fsGroup": 65532,
                "runAsGroup": 65532,
                "runAsNonRoot": true,
                "runAsUser": 65532,
                "seccompProfile": {
                  "type": "RuntimeDefault"
                }
              },
              "terminationGracePeriodSeconds": 10,
              "volumes": [
                {
                  "configMap": {
                    "name": "dc-agent"
                  },
                  "name": "config"
                },
                {
                  "name": "site-eqiad-tls",
                  "secret": {
                    "defaultMode": 288,
                    "secretName": "main-client"
                  }
                },
                {
                  "name": "site-codfw-tls",
                  "secret": {
                    "defaultMode": 288,
                    "secretName": "codfw-client"
                  }
                }
              ]
            }
          }
        }"#]]
    .assert_eq(&text);
}

#[test]
fn what_is_as_it_should_be_is_not_written_again() {
    let desired = desired(&json!({}));
    let first = decide(&desired, &ready_to_start());
    let second = decide(&desired, &carried_out(&ready_to_start(), &first));
    assert_eq!(second.ensure, []);
    assert_eq!(second.fingerprint, first.fingerprint);
}

/// Server-side apply takes back what is no longer said, but only if it is sent at all.
#[test]
fn what_is_no_longer_asked_for_is_a_difference() {
    let with = json!({"agent": {"podTemplate": {"nodeSelector": {"disk": "ssd"}}}});
    let observed = carried_out(&ready_to_start(), &decide(&desired(&with), &ready_to_start()));
    let without = decide(&desired(&json!({})), &observed);
    let agent = manifest(&without, "Deployment", "dc-agent");
    assert_eq!(agent["spec"]["template"]["spec"].get("nodeSelector"), None);
    assert!(!says_all(agent, &observed.children[&("Deployment", "dc-agent".to_owned())]));
}

/// As the apiserver stores it: typed, without what is empty, with amounts in its own writing.
#[test]
fn what_the_apiserver_makes_of_the_agent_is_no_difference_but_an_edit_by_hand_is() {
    let desired = desired(&json!({"agent": {"resources": {"requests": {"cpu": "0.1"}, "limits": {}}}}));
    let mut observed = carried_out(&ready_to_start(), &decide(&desired, &ready_to_start()));
    let key = ("Deployment", "dc-agent".to_owned());
    let typed: k8s_openapi::api::apps::v1::Deployment =
        serde_json::from_value(observed.children[&key].clone()).unwrap();
    let mut stored = serde_json::to_value(typed).unwrap();
    stored["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}});
    stored["spec"]["progressDeadlineSeconds"] = 600.into();
    let text = stored["spec"].to_string();
    assert!(!text.contains("[]") && !text.contains(":{}"), "the apiserver would not store: {text}");
    observed.children.insert(key.clone(), stored.clone());
    assert_eq!(decide(&desired, &observed).ensure, []);
    for (pointer, by_hand) in [
        ("/spec/replicas", json!(2)),
        ("/spec/strategy/type", json!("RollingUpdate")),
        ("/spec/template/spec/containers/0/image", json!("other")),
    ] {
        let mut edited = stored.clone();
        *edited.pointer_mut(pointer).unwrap() = by_hand;
        observed.children.insert(key.clone(), edited);
        expect!["[apply Deployment dc-agent]"]
            .assert_eq(&format!("{:?}", decide(&desired, &observed).ensure));
    }
}

#[test]
fn an_edit_is_another_file_and_a_changed_member_list_is_none_to_wait_for() {
    let observed = answering(&desired(&json!({})), streaming());
    let fingerprint = |plan: &Plan| plan.fingerprint.clone().unwrap();
    let before = fingerprint(&decide(&desired(&json!({})), &observed));
    for edit in [
        json!({"active": "codfw"}),
        json!({"state": "Paused"}),
        json!({"ignore": ["/locks/.*"]}),
        json!({"prune": true}),
        json!({"verify": {"interval": "1h"}}),
    ] {
        assert_ne!(fingerprint(&decide(&desired(&edit), &observed)), before, "{edit}");
    }
    for edit in [json!({"lagObjective": {"time": "5m"}}), json!({"agent": {"resources": {}}})] {
        assert_eq!(fingerprint(&decide(&desired(&edit), &observed)), before, "{edit}");
    }
    let mut grown = observed;
    let mut cluster = main_cluster(NAMESPACE);
    cluster.members.push("main-4".to_owned());
    grown.clusters.insert("eqiad".to_owned(), ClusterSeen::Formed(cluster));
    let plan = decide(&desired(&json!({})), &grown);
    assert_eq!(fingerprint(&plan), before);
    // The kubelet is told to look at once, or it would hand the new file over a minute later.
    expect!["[apply ConfigMap dc-agent, touch dc-agent-1]"].assert_eq(&format!("{:?}", plan.ensure));
}

#[test]
fn requests_reach_the_agent() {
    let mut asked = object(&json!({}));
    asked.metadata.annotations = Some(BTreeMap::from([
        ("quorate.dev/verify".to_owned(), "2026-01-02".to_owned()),
        ("quorate.dev/resync".to_owned(), "b3a1".to_owned()),
    ]));
    let desired = Desired::of(&asked, "quorate:test").unwrap();
    let requests = file(&decide(&desired, &ready_to_start())).requests;
    assert_eq!((requests.verify.as_deref(), requests.resync.as_deref()), (Some("2026-01-02"), Some("b3a1")));
}

#[test]
fn a_paused_mirror_keeps_its_agent_and_a_stopped_one_does_not() {
    let observed = answering(&desired(&json!({})), streaming());
    let paused = decide(&desired(&json!({"state": "Paused"})), &observed);
    assert_eq!(format!("{:?}", paused.ensure), "[apply ConfigMap dc-agent, touch dc-agent-1]");
    let stopped = decide(&desired(&json!({"state": "Stopped"})), &observed);
    assert_eq!(manifest(&stopped, "Deployment", "dc-agent")["spec"]["replicas"], 0);
    let mut gone = carried_out(&observed, &stopped);
    (gone.pods, gone.answer) = (BTreeMap::new(), None);
    assert_eq!(decide(&desired(&json!({"state": "Stopped"})), &gone).ensure, []);
}

#[test]
fn a_cluster_of_another_namespace_is_used_with_its_consent_by_a_copy_of_its_secret() {
    let elsewhere = json!({"sites": [
        {"name": "eqiad", "clusterRef": {"name": "main", "namespace": "storage"}},
        {"name": "codfw", "external": {
            "endpoints": ["https://etcd.codfw.example:2379"], "tlsSecretRef": {"name": "codfw-client"},
        }},
    ]});
    let desired = desired(&elsewhere);
    let mut observed = ready_to_start();
    observed.clusters.insert("eqiad".to_owned(), ClusterSeen::NoConsent);
    let refused = decide(&desired, &observed);
    assert!(refused.ensure.is_empty(), "{:?}", refused.ensure);
    expect!["The EtcdCluster storage/main of the site eqiad is in another namespace, and has not consented: no agent runs. Whoever owns it consents with kubectl -n storage annotate etcdcluster main quorate.dev/allow-mirrors-from=team."]
        .assert_eq(&refused.findings[0].message);

    observed.clusters.insert("eqiad".to_owned(), ClusterSeen::Formed(main_cluster("storage")));
    let plan = decide(&desired, &observed);
    let copy = manifest(&plan, "Secret", "dc-agent-eqiad");
    assert_eq!(copy["metadata"]["namespace"], NAMESPACE);
    assert_eq!(copy["data"].as_object().unwrap().len(), 3);
    assert!(!format!("{plan:?}").contains("data"), "a plan that is logged shows no key");
    assert_eq!(file(&plan).sites[0].endpoints[0], "https://main-0.main-peers.storage.svc:2379");

    // The consent is taken back: the agent goes.
    let mut running = carried_out(&observed, &plan);
    running.clusters.insert("eqiad".to_owned(), ClusterSeen::NoConsent);
    let stopped = decide(&desired, &running);
    assert_eq!(manifest(&stopped, "Deployment", "dc-agent")["spec"]["replicas"], 0);
}

#[test]
fn consent_names_namespaces() {
    use quorate::operator::mirror::observed::consents;
    let cluster = |allowed: Option<&str>| {
        let annotations = allowed.map(|allowed| json!({"quorate.dev/allow-mirrors-from": allowed}));
        let object = json!({
            "apiVersion": "quorate.dev/v1alpha1", "kind": "EtcdCluster", "spec": {},
            "metadata": {"name": "main", "namespace": "storage", "annotations": annotations.unwrap_or(json!({}))},
        });
        serde_json::from_value(object).unwrap()
    };
    assert!(consents(&cluster(None), "storage") && !consents(&cluster(None), "team"));
    assert!(consents(&cluster(Some("a, team")), "team") && consents(&cluster(Some("*")), "team"));
    assert!(!consents(&cluster(Some("teams,tea")), "team") && !consents(&cluster(Some("")), "team"));
}

#[test]
fn what_an_agent_needs_and_is_missing_is_named_and_an_agent_that_runs_is_left_alone() {
    let desired = desired(&json!({}));
    let mut observed = answering(&desired, streaming());
    observed.secrets.clear();
    let plan = decide(&desired, &observed);
    assert_eq!(plan.ensure, []);
    check(
        &desired,
        &observed,
        &expect![[r#"
        Stalled | eqiad -> codfw | SecretDamaged: The Secret codfw-client of the site codfw does not exist.
        not Ready SecretDamaged: The Secret codfw-client of the site codfw does not exist. It is looked for every few seconds. Create it, or correct its name in spec.
        Stalled SecretDamaged: The Secret codfw-client of the site codfw does not exist. It is looked for every few seconds. Create it, or correct its name in spec.
    "#]],
    );
    observed.clusters.clear();
    observed.secrets.insert("codfw-client".to_owned(), fields(&["tls.crt", "tls.key"]));
    let said: Vec<String> =
        decide(&desired, &observed).findings.into_iter().map(|finding| finding.message).collect();
    expect![[r#"
        The EtcdCluster team/main of the site eqiad does not exist. It is looked for every few seconds. Create it, or correct spec.sites.
        The Secret codfw-client of the site codfw has no ca.crt, the authorities of the servers. It is read every few seconds. Add what is missing."#]].assert_eq(&said.join("\n"));
}

#[test]
fn others_objects_are_left_alone() {
    let desired = desired(&json!({}));
    let mut observed = ready_to_start();
    let foreign = json!({"metadata": {"name": "dc-active"}, "data": {"endpoints": "mine"}});
    observed.children.insert(("ConfigMap", "dc-active".to_owned()), foreign);
    let plan = decide(&desired, &observed);
    expect!["[apply ConfigMap dc-agent, apply Deployment dc-agent]"].assert_eq(&format!("{:?}", plan.ensure));
    assert_eq!(plan.findings[0].reason, Reason::NameTaken);
}

#[test]
fn a_mirror_that_would_close_a_circle_has_no_agent() {
    let desired = desired(&json!({}));
    let mut observed = ready_to_start();
    let mut back = object(&json!({"active": "codfw"}));
    back.metadata.name = Some("back".to_owned());
    back.metadata.creation_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    observed.others.push(Pair::of(&back));
    check(
        &desired,
        &observed,
        &expect![[r#"
        Stalled | eqiad -> codfw | MirrorLoop: Together with team/back this EtcdMirror would copy in a circle: what it writes comes back to where it reads.
        not Ready MirrorLoop: Together with team/back this EtcdMirror would copy in a circle: what it writes comes back to where it reads. Nothing is copied. For a pair of sites that takes turns, use one EtcdMirror and change spec.active; else give each direction prefixes of its own in spec.mappings.
        Stalled MirrorLoop: Together with team/back this EtcdMirror would copy in a circle: what it writes comes back to where it reads. Nothing is copied. For a pair of sites that takes turns, use one EtcdMirror and change spec.active; else give each direction prefixes of its own in spec.mappings.
    "#]],
    );
    assert!(
        !decide(&desired, &observed).ensure.iter().any(|ensure| format!("{ensure:?}").contains("Deployment"))
    );
}

#[test]
fn a_fence_of_roles_mounts_roots_secrets() {
    let fence = json!({"fence": {"roles": ["writers"], "root": [
        {"site": "eqiad", "tlsSecretRef": {"name": "main-root"}},
        {"site": "codfw", "authSecretRef": {"name": "codfw-root"}},
    ]}});
    let mut observed = ready_to_start();
    let waits = decide(&desired(&fence), &observed);
    assert_eq!(waits.findings[0].reason, Reason::SecretDamaged);
    observed.secrets.insert("main-root".to_owned(), fields(&["ca.crt", "tls.crt", "tls.key"]));
    observed.secrets.insert("codfw-root".to_owned(), fields(&["username", "password"]));
    let plan = decide(&desired(&fence), &observed);
    let config = file(&plan);
    expect![[r#"
        Roles:
          roles:
          - writers
          root:
            codfw:
              userFile: /etc/quorate/fence/codfw/auth/username
              passwordFile: /etc/quorate/fence/codfw/auth/password
            eqiad:
              authorityFile: /etc/quorate/fence/eqiad/tls/ca.crt
              certificateFile: /etc/quorate/fence/eqiad/tls/tls.crt
              keyFile: /etc/quorate/fence/eqiad/tls/tls.key
    "#]]
    .assert_eq(&serde_saphyr::to_string(&config.fence).unwrap());
    // An EtcdCluster's clients' Secret is the applications', whose role is taken.
    let certificates = config.sites.iter().map(|site| site.credentials.certificate_file.as_deref());
    assert_eq!(
        certificates.collect::<Vec<_>>(),
        [Some("/etc/quorate/fence/eqiad/tls/tls.crt"), Some("/etc/quorate/site/codfw/tls/tls.crt")]
    );
    let volumes = manifest(&plan, "Deployment", "dc-agent").pointer("/spec/template/spec/volumes").unwrap();
    let secrets: Vec<&str> = volumes
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|volume| volume["secret"]["secretName"].as_str())
        .collect();
    assert_eq!(secrets, ["main-client", "codfw-client", "main-root", "codfw-root"]);
}

#[test]
fn a_mirror_that_follows_says_so() {
    let desired = desired(&json!({}));
    let observed = answering(&desired, streaming());
    check(
        &desired,
        &observed,
        &expect![[r#"
        Streaming | eqiad -> codfw | Healthy
        Ready Healthy: The target follows within spec.lagObjective (1m).
        InitialSyncComplete InitialSyncDone: The target was equal to the source once; what is copied since are changes.
        InSync Healthy: The lag is within 1m.
        SourceReachable Healthy: eqiad answers with quorum.
        TargetReachable Healthy: codfw answers with quorum.
        not Verified NeverVerified: Both sides were not compared yet. Ask with: kubectl quorate mirror verify.
    "#]],
    );
    let status = told(&desired, &observed);
    let shown = (status.synced.as_deref(), status.lag.as_ref().and_then(|lag| lag.time.as_deref()));
    assert_eq!(shown, (Some("1,204,331 keys"), Some("0s")));
}

#[test]
fn what_the_agent_reports_becomes_conditions() {
    let desired = desired(&json!({}));
    let problem = |reason, message: &str| Some(Problem { reason, message: message.to_owned() });
    let stopped = AgentStatus {
        phase: AgentPhase::Stopped,
        problem: problem(ProblemReason::SourceRewound, "The source is at revision 700, and was at 1000."),
        ..streaming()
    };
    check(
        &desired,
        &answering(&desired, stopped),
        &expect![[r#"
        Stalled | eqiad -> codfw | SourceRewound: The source is at revision 700, and was at 1000.
        not Ready SourceRewound: The source is at revision 700, and was at 1000.
        InitialSyncComplete InitialSyncDone: The target was equal to the source once; what is copied since are changes.
        InSync Healthy: The lag is within 1m.
        SourceReachable Healthy: eqiad answers with quorum.
        TargetReachable Healthy: codfw answers with quorum.
        not Verified NeverVerified: Both sides were not compared yet. Ask with: kubectl quorate mirror verify.
        Stalled SourceRewound: The source is at revision 700, and was at 1000.
    "#]],
    );
    let mut sites = streaming().sites;
    sites[1].reachable = false;
    sites[1].message = Some("https://etcd.codfw.example:2379: connection refused".to_owned());
    let cut = AgentStatus {
        phase: AgentPhase::Stopped,
        problem: problem(ProblemReason::TargetUnreachable, "No endpoint of codfw answers."),
        sites,
        lag_seconds: Some(90.0),
        ..streaming()
    };
    check(
        &desired,
        &answering(&desired, cut),
        &expect![[r#"
        Waiting | eqiad -> codfw | TargetUnreachable: No endpoint of codfw answers.
        not Ready TargetUnreachable: No endpoint of codfw answers.
        InitialSyncComplete InitialSyncDone: The target was equal to the source once; what is copied since are changes.
        not InSync LagHigh: The lag is above 1m.
        SourceReachable Healthy: eqiad answers with quorum.
        not TargetReachable TargetUnreachable: codfw does not answer with quorum: https://etcd.codfw.example:2379: connection refused.
        not Verified NeverVerified: Both sides were not compared yet. Ask with: kubectl quorate mirror verify.
        Reconciling TargetUnreachable: No endpoint of codfw answers.
    "#]],
    );
    let late = AgentStatus {
        lag_seconds: Some(372.0),
        lag_revisions: Some(48_211),
        history_margin: Some(0.2),
        verification: Some(Verification {
            time: now(),
            keys: 9,
            missing: 1,
            different: 2,
            ..Verification::default()
        }),
        ..streaming()
    };
    check(
        &desired,
        &answering(&desired, late),
        &expect![[r#"
        Streaming | eqiad -> codfw | LagHigh: The target follows, further behind than spec.lagObjective (1m).
        not Ready LagHigh: The target follows, further behind than spec.lagObjective (1m). The agent goes on. See status.lag, and how busy both sides and the network between them are.
        InitialSyncComplete InitialSyncDone: The target was equal to the source once; what is copied since are changes.
        not InSync LagHigh: The lag is above 1m.
        SourceReachable Healthy: eqiad answers with quorum.
        TargetReachable Healthy: codfw answers with quorum.
        not Verified MismatchFound: When both sides were last compared the target lacked 1 keys, had 0 of its own, and 2 differed. Nothing is repaired by itself. Find out who writes to the target; then: kubectl quorate mirror resync.
        HistoryRisk HistoryAtRisk: More than half of the source's history behind the checkpoint is gone: after the next compactions a scan of both sides will be needed. Let the source keep more (spec.compaction of an EtcdCluster), or cure the lag.
        Reconciling LagHigh: The target follows, further behind than spec.lagObjective (1m). The agent goes on. See status.lag, and how busy both sides and the network between them are.
    "#]],
    );
}

/// An agent that dies in the middle of a switch knows nothing of its steps when it is back.
#[test]
fn the_steps_of_a_switch_survive_the_agent_that_took_them() {
    let desired = desired(&json!({"active": "codfw", "fence": {"mode": "Manual"}}));
    let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
    let step =
        |name: &str, second| SwitchStep { name: name.to_owned(), started_at: at(second), finished_at: None };
    let answer = |started: i64, to: &str, steps: Vec<SwitchStep>| AgentStatus {
        started_at: Some(at(started)),
        switch: Some(Switch { from: "eqiad".to_owned(), to: to.to_owned(), steps, ..Switch::default() }),
        ..streaming()
    };
    let names = |status: &EtcdMirrorStatus| -> Vec<String> {
        status.switch.iter().flat_map(|switch| &switch.steps).map(|step| step.name.clone()).collect()
    };
    let observed = answering(&desired, answer(-9, "codfw", vec![step("Verify", 0), step("Fence", 5)]));
    let first = told(&desired, &observed);
    let again = |before: &EtcdMirrorStatus, answer: AgentStatus| {
        let observed = answering(&desired, answer);
        status(before, &desired, &observed, &plan(&desired, &observed, before), observed.now)
    };
    // The same agent once more.
    let same =
        again(&first, answer(-9, "codfw", vec![step("Verify", 0), step("Fence", 5), step("Drain", 6)]));
    assert_eq!(names(&same), ["Verify", "Fence", "Drain"]);
    let next = again(&same, answer(10, "codfw", vec![step("Verify", 20)]));
    assert_eq!(names(&next), ["Verify", "Fence", "Drain", "Verify"]);
    // It was refused, and is tried again.
    let tried = again(&next, answer(10, "codfw", vec![step("Verify", 50)]));
    assert_eq!(names(&tried), ["Verify", "Fence", "Drain", "Verify"]);
    let back = again(&next, answer(80, "eqiad", vec![step("Verify", 90)]));
    assert_eq!(names(&back), ["Verify"], "the steps of another switch");
}

/// Only the switch stands still; what copies goes on being ready.
#[test]
fn a_switch_that_is_refused_does_not_stop_the_copying() {
    let desired = desired(&json!({"active": "codfw"}));
    let missing = Problem {
        reason: ProblemReason::FenceMissing,
        message: "spec.active is codfw, and nothing keeps writers out of eqiad.".to_owned(),
    };
    let observed = answering(&desired, AgentStatus { problem: Some(missing), ..streaming() });
    check(
        &desired,
        &observed,
        &expect![[r#"
        Streaming | eqiad -> codfw | FenceMissing: spec.active is codfw, and nothing keeps writers out of eqiad.
        Ready Healthy: The target follows within spec.lagObjective (1m).
        InitialSyncComplete InitialSyncDone: The target was equal to the source once; what is copied since are changes.
        InSync Healthy: The lag is within 1m.
        SourceReachable Healthy: eqiad answers with quorum.
        TargetReachable Healthy: codfw answers with quorum.
        not Verified NeverVerified: Both sides were not compared yet. Ask with: kubectl quorate mirror verify.
        Stalled FenceMissing: spec.active is codfw, and nothing keeps writers out of eqiad.
    "#]],
    );
}

/// What is left of a switch after its promotion: alerts are not silent as they are during one.
#[test]
fn a_promoted_switch_that_does_not_end_is_told() {
    let desired = desired(&json!({"active": "codfw", "fence": {"mode": "Manual"}}));
    let with = |phase, reason, message: &str| {
        let problem = Some(Problem { reason, message: message.to_owned() });
        let answer = AgentStatus { phase, problem, active: Some("codfw".to_owned()), ..streaming() };
        conditions(&told(&desired, &answering(&desired, answer)))
    };
    let told = [
        with(AgentPhase::Stopped, ProblemReason::SwitchUnfinished, "eqiad does not follow it yet."),
        with(AgentPhase::Streaming, ProblemReason::WritersKeptOut, "Writers of codfw are still kept out."),
    ];
    expect![[r#"
        not Ready SwitchUnfinished: eqiad does not follow it yet.
        InitialSyncComplete InitialSyncDone: The target was equal to the source once; what is copied since are changes.
        InSync Healthy: The lag is within 1m.
        SourceReachable Healthy: codfw answers with quorum.
        TargetReachable Healthy: eqiad answers with quorum.
        not Verified NeverVerified: Both sides were not compared yet. Ask with: kubectl quorate mirror verify.
        Stalled SwitchUnfinished: eqiad does not follow it yet.

        Ready Healthy: The target follows within spec.lagObjective (1m).
        InitialSyncComplete InitialSyncDone: The target was equal to the source once; what is copied since are changes.
        InSync Healthy: The lag is within 1m.
        SourceReachable Healthy: codfw answers with quorum.
        TargetReachable Healthy: eqiad answers with quorum.
        not Verified NeverVerified: Both sides were not compared yet. Ask with: kubectl quorate mirror verify.
        Stalled WritersKeptOut: Writers of codfw are still kept out.
    "#]]
    .assert_eq(&told.join("\n"));
}

#[test]
fn an_agent_of_an_earlier_file_speaks_for_nobody() {
    let desired = desired(&json!({}));
    let mut observed = answering(&desired, streaming());
    if let Some(Ok(answer)) = &mut observed.answer {
        answer.fingerprint = "of-yesterday".to_owned();
    }
    let status = told(&desired, &observed);
    assert_eq!(status.phase.as_deref(), Some("Starting"));
    let said = "not Ready AgentStarting: The agent is told of the changed spec.";
    assert!(conditions(&status).contains(said), "{}", conditions(&status));
    // Its kubelet is told again and again, but not at every look.
    let touched = |observed: &Observed| match decide(&desired, observed).ensure.as_slice() {
        [Ensure::Touch { file, .. }] => Some(file.clone()),
        [] => None,
        other => panic!("{other:?}"),
    };
    let file = touched(&observed).unwrap();
    observed.pods.get_mut("dc-agent-1").unwrap().config = Some(file.clone());
    assert_eq!(touched(&observed), None);
    observed.now += SignedDuration::from_secs(10);
    assert_ne!(touched(&observed).unwrap(), file);
    // What it knows of etcd's records is true all the same.
    assert_eq!((status.source.as_deref(), status.checkpoint), (Some("eqiad"), Some(3_020_127)));
}

#[test]
fn an_agent_that_is_silent_is_told_apart_from_one_that_starts() {
    let desired = desired(&json!({}));
    let mut observed = answering(&desired, streaming());
    observed.answer = Some(Err("no answer from 10.0.0.9:8080 within 2 s".to_owned()));
    check(
        &desired,
        &observed,
        &expect![[r#"
        Starting | eqiad -> codfw | AgentDown: The agent does not answer the operator: no answer from 10.0.0.9:8080 within 2 s.
        not Ready AgentDown: The agent does not answer the operator: no answer from 10.0.0.9:8080 within 2 s. It may copy all the same; it is asked again every few seconds. Look at its log, and at NetworkPolicies between the operator and its port 8080.
        Reconciling AgentDown: The agent does not answer the operator: no answer from 10.0.0.9:8080 within 2 s. It may copy all the same; it is asked again every few seconds. Look at its log, and at NetworkPolicies between the operator and its port 8080.
    "#]],
    );
    let pod = observed.pods.get_mut("dc-agent-1").unwrap();
    pod.running = false;
    pod.waiting = Some(("CrashLoopBackOff".to_owned(), String::new()));
    pod.last_exit = Some("it ended with code 1: Error: the file cannot be read".to_owned());
    observed.answer = None;
    check(
        &desired,
        &observed,
        &expect![[r#"
        Starting | eqiad -> codfw | AgentDown: The agent does not stay up: it ended with code 1: Error: the file cannot be read.
        not Ready AgentDown: The agent does not stay up: it ended with code 1: Error: the file cannot be read. It is started again, later and later. See: kubectl logs dc-agent-1 --previous.
        Reconciling AgentDown: The agent does not stay up: it ended with code 1: Error: the file cannot be read. It is started again, later and later. See: kubectl logs dc-agent-1 --previous.
    "#]],
    );
}

/// The ConfigMap that applications read follows what is, not what is wished for.
#[test]
fn the_active_site_is_the_one_of_etcds_records() {
    let switching = desired(&json!({"active": "codfw", "fence": {"mode": "Manual"}}));
    let site = |observed: &Observed, before: &EtcdMirrorStatus| {
        let plan = plan(&switching, &Observed { children: BTreeMap::new(), ..observed.clone() }, before);
        manifest(&plan, "ConfigMap", "dc-active")["data"]["site"].as_str().unwrap().to_owned()
    };
    let fresh = EtcdMirrorStatus::default();
    let known =
        EtcdMirrorStatus { source: Some("eqiad".to_owned()), term: Some(1), ..EtcdMirrorStatus::default() };
    let of = |active: &str| AgentStatus { active: Some(active.to_owned()), ..streaming() };
    assert_eq!(site(&answering(&switching, of("eqiad")), &fresh), "eqiad");
    assert_eq!(site(&answering(&switching, of("codfw")), &known), "codfw");
    let mut silent = answering(&switching, of("eqiad"));
    silent.answer = Some(Err("no answer".to_owned()));
    assert_eq!(site(&silent, &known), "eqiad", "as it was last told");
    assert_eq!(site(&silent, &fresh), "codfw", "nobody has ever told");
}

#[test]
fn numbers_alone_are_written_every_ten_seconds() {
    let desired = desired(&json!({}));
    let at = |seconds: i64, answer: AgentStatus, before: &EtcdMirrorStatus| {
        let observed = answering(&desired, answer);
        let now = now() + SignedDuration::from_secs(seconds);
        let after = status(before, &desired, &observed, &plan(&desired, &observed, before), now);
        (differs(before, &after, now), after)
    };
    let (first, before) = at(0, streaming(), &EtcdMirrorStatus::default());
    assert!(first);
    let moved = AgentStatus { checkpoint_revision: Some(3_020_200), lag_revisions: Some(7), ..streaming() };
    assert!(!at(9, moved.clone(), &before).0, "too soon");
    assert!(at(10, moved, &before).0);
    assert!(!at(3600, streaming(), &before).0, "a quiet mirror costs no write");
    let blink = AgentStatus { lag_seconds: Some(1.6), ..streaming() };
    assert!(!at(3600, blink, &before).0, "the source is looked at once a second");
    let stopped = AgentStatus {
        problem: Some(Problem { reason: ProblemReason::TargetNoSpace, message: "codfw is full.".to_owned() }),
        ..streaming()
    };
    assert!(at(1, stopped, &before).0, "what a person must know is told at once");
}

#[test]
fn tools_judge_a_mirror_rightly() {
    let judged = |more: &Value, answer: AgentStatus| {
        let desired = desired(more);
        let mut object = object(more);
        object.status = Some(told(&desired, &answering(&desired, answer)));
        let object = serde_json::to_value(&object).unwrap();
        (kstatus(&object), argo(&object).0)
    };
    let owned = |(word, shown): (&'static str, &str)| (word, shown.to_owned());
    assert_eq!(judged(&json!({}), streaming()), owned(("Current", "Healthy")));
    let filling = AgentStatus { phase: AgentPhase::InitialSync, ..AgentStatus::default() };
    assert_eq!(judged(&json!({}), filling), owned(("InProgress", "Progressing")));
    let differs = Problem { reason: ProblemReason::TargetDiffers, message: "3 keys differ.".to_owned() };
    let stopped = AgentStatus { problem: Some(differs), ..AgentStatus::default() };
    assert_eq!(judged(&json!({}), stopped), owned(("Failed", "Degraded")));
    let paused = AgentStatus { phase: AgentPhase::Paused, ..streaming() };
    assert_eq!(judged(&json!({"state": "Paused"}), paused), owned(("Current", "Suspended")));
}

#[test]
fn every_word_of_the_agent_is_a_reason_of_the_api() {
    for reason in ProblemReason::ALL {
        assert!(Reason::parse(&reason.to_string()).is_some(), "api::reason lacks {reason}");
    }
}

#[test]
fn large_numbers_are_grouped() {
    let texts: Vec<String> = [0, 999, 1000, 1_204_331].into_iter().map(thousands).collect();
    assert_eq!(texts, ["0", "999", "1,000", "1,204,331"]);
}
