//! Certificates over time, with real keys and a clock of the test's own: who accepts whom in every stage of a
//! replacement of the authorities, when the next stage comes, and who is restarted.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use quorate::api::EtcdCluster;
use quorate::api::cluster::BootstrapStatus;
use quorate::etcd::survey::{Answer, ListedMember};
use quorate::etcd::{ClusterId, MemberId};
use quorate::operator::cluster::credentials::{
    self, Authority, Credentials, Leaf, LeafState, SecretState, brought, problems,
};
use quorate::operator::cluster::desired::Desired;
use quorate::operator::cluster::issue::{change_authority, issue_authority, issue_leaf, issue_old_client};
use quorate::operator::cluster::observed::{MemberPod, Observed, Volume};
use quorate::operator::cluster::plan::{Ensure, Step, plan};
use quorate::operator::cluster::rotation::{Change, Presented, Stage, due};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};

use crate::plan::answer;

const MEMBERS: [&str; 3] = ["main-0", "main-1", "main-2"];

fn desired(annotations: &Value, spec: &Value) -> Desired {
    let object = json!({
        "apiVersion": "quorate.dev/v1alpha1",
        "kind": "EtcdCluster",
        "metadata": {"name": "main", "namespace": "test", "uid": "uid", "annotations": annotations},
        "spec": spec,
    });
    let object: EtcdCluster = serde_json::from_value(object).unwrap();
    Desired::of(&object, "quorate:test").unwrap()
}

fn hours(count: i64) -> SignedDuration {
    SignedDuration::from_hours(count)
}

fn start() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

fn secret(fields: &BTreeMap<String, String>) -> Secret {
    let data = fields.iter().map(|(name, value)| (name.clone(), ByteString(value.clone().into_bytes())));
    Secret { data: Some(data.collect()), ..Secret::default() }
}

/// The Secrets of a cluster, as the operator's writes leave them.
struct Secrets {
    desired: Desired,
    now: Timestamp,
    authority: BTreeMap<String, String>,
    leafs: BTreeMap<String, BTreeMap<String, String>>,
}

impl Secrets {
    fn new(annotations: &Value, spec: &Value) -> Self {
        let desired = desired(annotations, spec);
        let authority = issue_authority(&desired, start()).unwrap();
        let mut secrets = Self { desired, now: start(), authority, leafs: BTreeMap::new() };
        secrets.renew();
        secrets
    }

    fn members() -> Vec<String> {
        MEMBERS.iter().map(|name| (*name).to_owned()).collect()
    }

    fn read(&self) -> Authority {
        match credentials::authority(Some(&secret(&self.authority))) {
            SecretState::Usable(authority) => authority,
            SecretState::Damaged(why) => panic!("the authorities' Secret is damaged: {why}"),
            SecretState::Missing => panic!("there is no Secret of the authorities"),
        }
    }

    fn judge(&self, leaf: &Leaf) -> Option<LeafState> {
        let fields = self.leafs.get(&leaf.secret)?;
        let before = self.desired.lives.renew_before;
        Some(credentials::leaf(leaf, &secret(fields), &self.read(), before, self.now))
    }

    /// Makes every leaf that must be made; how many there were.
    fn renew(&mut self) -> usize {
        let authority = self.read();
        let mut made = 0;
        for leaf in credentials::wanted(&self.desired, &Self::members()) {
            if !matches!(self.judge(&leaf), Some(LeafState::Good(_))) {
                let fields = issue_leaf(&self.desired, &leaf, &authority, self.now).unwrap();
                self.leafs.insert(leaf.secret.clone(), fields);
                made += 1;
            }
        }
        made
    }

    fn change(&mut self, change: &Change) {
        let fields = change_authority(&self.desired, &self.read(), change, self.now).unwrap();
        for (name, value) in fields {
            match value {
                Some(value) => drop(self.authority.insert(name, value)),
                None => drop(self.authority.remove(&name)),
            }
        }
    }

    fn credentials(&self, seen: Presented) -> Credentials {
        let wanted = credentials::wanted(&self.desired, &Self::members());
        let judged = wanted.iter().filter_map(|leaf| Some((leaf.secret.clone(), self.judge(leaf)?)));
        Credentials {
            authority: SecretState::Usable(self.read()),
            leafs: judged.collect(),
            looked_at: self.now,
            presented: Self::members().into_iter().map(|member| (member, seen)).collect(),
            ..Credentials::default()
        }
    }

    fn due(&self, seen: Presented) -> Option<Change> {
        due(&self.desired, &self.credentials(seen), &Self::members())
    }

    /// What a member's files hold now.
    fn files(&self) -> BTreeMap<String, String> {
        self.leafs["main-0-tls"].clone()
    }
}

fn seen(current: bool, accepts_old: Option<bool>) -> Presented {
    Presented { current, accepts_old }
}

/// Whether somebody who trusts `trust` accepts a client with this chain, as etcd's server does.
fn accepts(trust: &str, chain: &str, now: Timestamp) -> bool {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(trust.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let chain: Vec<CertificateDer<'_>> =
        CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
    let (leaf, rest) = chain.split_first().unwrap();
    let now = std::time::Duration::from_secs(now.as_second().try_into().unwrap());
    verifier.verify_client_cert(leaf, rest, UnixTime::since_unix_epoch(now)).is_ok()
}

#[test]
fn in_every_stage_everyone_accepts_everyone_whose_files_or_process_are_one_stage_behind() {
    let mut secrets = Secrets::new(&json!({"quorate.dev/rotate-authority": "1"}), &json!({}));
    // What lies in files and what a process read at its start may each be of an earlier moment than the Secret.
    let mut moments = vec![secrets.files()];
    let rotate = secrets.due(seen(false, None)).unwrap();
    secrets.change(&rotate);
    secrets.renew();
    moments.push(secrets.files());
    secrets.now += hours(24 * 30);
    secrets.change(&Change::Retire);
    secrets.renew();
    moments.push(secrets.files());
    secrets.change(&Change::Forget);
    secrets.renew();
    moments.push(secrets.files());
    for (at, pair) in moments.windows(2).enumerate() {
        let now = secrets.now;
        for (one, other) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            for (trust, leaf) in [("client-ca.crt", "server.crt"), ("peer-ca.crt", "peer.crt")] {
                // Files of the overlap trust everybody; before `retiring` every member serves the new leafs.
                let accepted = accepts(&pair[one][trust], &pair[other][leaf], now);
                assert!(accepted, "{at}: who trusts the {trust} of {one} refuses the {leaf} of {other}");
            }
        }
    }
    // A process that never restarted, against files of the end, and the other way round for the leafs of the overlap.
    assert!(accepts(&moments[0]["peer-ca.crt"], &moments[2]["peer.crt"], secrets.now));
    assert!(accepts(&moments[2]["peer-ca.crt"], &moments[1]["peer.crt"], secrets.now));
    // And what the whole is for.
    assert!(!accepts(&moments[2]["client-ca.crt"], &moments[0]["server.crt"], secrets.now));
    assert!(!accepts(&moments[2]["client-ca.crt"], &moments[2]["peer.crt"], secrets.now));
}

#[test]
fn each_stage_waits_for_what_must_be_seen() {
    let mut secrets = Secrets::new(&json!({"quorate.dev/rotate-authority": "why not"}), &json!({}));
    let current = seen(true, None);
    let Some(Change::Rotate { request, .. }) = secrets.due(current) else { panic!("nothing is due") };
    assert_eq!(request.as_deref(), Some("why not"));
    secrets.change(&secrets.due(current).unwrap());
    secrets.now += hours(24 * 31);
    assert_eq!(secrets.due(current), None, "leafs of the old authority are still in Secrets");
    assert_eq!(secrets.renew(), 5);
    assert_eq!(secrets.due(seen(false, None)), None, "no member was seen to serve the new leafs");
    secrets.now -= hours(24 * 2);
    assert_eq!(secrets.due(current), None, "applications had no time to take the new client certificate");
    secrets.now += hours(24 * 2);
    assert_eq!(secrets.due(current), Some(Change::Retire));
    secrets.change(&Change::Retire);
    secrets.renew();
    for not_yet in [seen(true, Some(true)), seen(true, None), seen(false, Some(false))] {
        assert_eq!(secrets.due(not_yet), None, "{not_yet:?} is not enough to forget the old authority");
    }
    let done = seen(true, Some(false));
    assert_eq!(secrets.due(done), Some(Change::Forget));
    secrets.change(&Change::Forget);
    assert_eq!(secrets.renew(), 0, "nothing more is made anew");
    assert_eq!(secrets.read().handled_request.as_deref(), Some("why not"));
    assert_eq!(secrets.due(done), None, "the same request is not handled twice");
    assert!(!secrets.authority.keys().any(|name| name.contains("old") || name.contains("cross")));
}

#[test]
fn authorities_are_replaced_before_their_end_and_leafs_renewed_before_theirs() {
    let mut secrets = Secrets::new(&json!({}), &json!({}));
    secrets.now += hours(24 * 334);
    assert_eq!(secrets.renew(), 0);
    secrets.now += hours(24 * 2);
    assert_eq!(secrets.renew(), 5, "30 days before their end leafs are made anew");
    assert_eq!(secrets.due(seen(true, None)), None);
    secrets.now = start() + hours(24 * (3650 - 89));
    assert_eq!(secrets.renew(), 5);
    // Leafs that end with their authority are not made anew again and again.
    assert_eq!(secrets.renew(), 0);
    secrets.now += hours(24 * 60);
    assert_eq!(secrets.renew(), 0);
    assert!(matches!(secrets.due(seen(true, None)), Some(Change::Rotate { request: None, .. })));
}

#[test]
fn every_leaf_is_of_the_next_authority_after_a_second_replacement_too() {
    let mut secrets = Secrets::new(&json!({"quorate.dev/rotate-authority": "1"}), &json!({}));
    for request in ["1", "2"] {
        secrets.desired.rotation_request = Some(request.to_owned());
        let before = secrets.files();
        secrets.change(&secrets.due(seen(true, None)).unwrap());
        secrets.renew();
        let after = secrets.files();
        assert!(accepts(&before["client-ca.crt"], &after["server.crt"], secrets.now));
        assert!(accepts(&after["client-ca.crt"], &before["server.crt"], secrets.now));
        secrets.now += hours(24 * 31);
        secrets.change(&Change::Retire);
        secrets.change(&Change::Forget);
        secrets.renew();
    }
}

#[test]
fn the_probe_is_accepted_by_who_trusts_the_old_authority_only() {
    let mut secrets = Secrets::new(&json!({"quorate.dev/rotate-authority": "1"}), &json!({}));
    let old = secrets.files();
    secrets.change(&secrets.due(seen(true, None)).unwrap());
    secrets.renew();
    let probe = issue_old_client(&secrets.read(), secrets.now).unwrap().unwrap();
    let chain = String::from_utf8(probe.certificate).unwrap();
    assert!(accepts(&old["client-ca.crt"], &chain, secrets.now));
    assert!(accepts(&secrets.files()["client-ca.crt"], &chain, secrets.now));
    secrets.change(&Change::Retire);
    secrets.renew();
    assert!(!accepts(&secrets.files()["client-ca.crt"], &chain, secrets.now));
}

#[test]
fn a_secret_of_the_authorities_that_makes_no_sense_is_damaged_and_says_why() {
    let mut secrets = Secrets::new(&json!({"quorate.dev/rotate-authority": "1"}), &json!({}));
    secrets.change(&secrets.due(seen(true, None)).unwrap());
    let why = |name: &str, value: Option<&str>| {
        let mut fields = secrets.authority.clone();
        fields.remove(name);
        fields.extend(value.map(|value| (name.to_owned(), value.to_owned())));
        match credentials::authority(Some(&secret(&fields))) {
            SecretState::Damaged(why) => why,
            SecretState::Usable(_) | SecretState::Missing => panic!("{name} is not missed"),
        }
    };
    assert_eq!(why("stage", Some("nonsense")), "stage nonsense is not known");
    assert_eq!(why("since", Some("yesterday")), "since yesterday is no time");
    assert_eq!(why("peer-ca-cross.crt", None), "peer-ca-cross.crt is missing");
    let foreign = secrets.authority["client-ca.crt"].clone();
    assert_eq!(
        why("peer-ca-cross.crt", Some(&foreign)),
        "peer-ca-cross.crt is not signed by the cluster's authority"
    );
}

/// Three members on record that serve, in the last stage of a replacement.
fn retiring(secrets: &Secrets, accept_old: [bool; 3]) -> Observed {
    let mut observed = crate::plan::nothing();
    observed.record.cluster_id = Some(ClusterId(1));
    observed.record.bootstrap = Some(BootstrapStatus::default());
    observed.record.next_serial = 3;
    observed.credentials = secrets.credentials(seen(true, Some(false)));
    let list = MEMBERS.iter().zip(0..).map(|(name, id)| ListedMember {
        id: MemberId(id),
        name: (*name).to_owned(),
        peer_urls: vec![secrets.desired.peer_url(name)],
        learner: false,
    });
    let list: Vec<ListedMember> = list.collect();
    for ((name, id), accepts_old) in MEMBERS.iter().zip(0..).zip(accept_old) {
        let name = (*name).to_owned();
        observed.credentials.presented.insert(name.clone(), seen(true, Some(accepts_old)));
        observed.record.members.insert(name.clone(), MemberId(id));
        let answer = Answer { cluster_id: ClusterId(1), ..answer(id, &list) };
        observed.survey.insert(name.clone(), Ok(answer));
        let pod = MemberPod {
            uid: format!("pod-{name}"),
            resource_version: "9".to_owned(),
            owner_uid: Some("uid".to_owned()),
            phase: "Running".to_owned(),
            running: true,
            ready: true,
            ran: true,
            voter_label: true,
            ..MemberPod::default()
        };
        observed.pods.insert(name.clone(), pod);
        let identity = Some((ClusterId(1), MemberId(id)));
        let volume = Volume { cluster_uid: Some("uid".to_owned()), ..crate::plan::volume(&name, identity) };
        observed.volumes.insert(name, volume);
    }
    settle(secrets, &mut observed);
    observed
}

/// Lets everything exist that the planner would make first.
fn settle(secrets: &Secrets, observed: &mut Observed) {
    for ensure in plan(&secrets.desired, observed).ensure {
        if let Ensure::Apply { kind, manifest } = ensure {
            let name = manifest["metadata"]["name"].as_str().unwrap().to_owned();
            observed.children.insert((kind, name), manifest);
        }
    }
}

fn in_retiring() -> Secrets {
    let mut secrets = Secrets::new(&json!({"quorate.dev/rotate-authority": "1"}), &json!({}));
    secrets.change(&secrets.due(seen(true, None)).unwrap());
    secrets.renew();
    secrets.now += hours(24 * 31);
    secrets.change(&Change::Retire);
    secrets.renew();
    assert_eq!(secrets.read().stage, Stage::Retiring);
    secrets
}

fn restarted(secrets: &Secrets, observed: &Observed) -> Option<String> {
    match plan(&secrets.desired, observed).step {
        Some(Step::DeletePod(premise)) => Some(premise.name),
        Some(Step::Change(change)) => Some(format!("{} hands over", change.via)),
        Some(Step::DeleteVolume(..)) | None => None,
    }
}

#[test]
fn members_that_trust_the_old_authority_are_restarted_one_at_a_time_the_leader_last() {
    let secrets = in_retiring();
    let next = |accept_old| restarted(&secrets, &retiring(&secrets, accept_old));
    assert_eq!(next([true, true, true]).as_deref(), Some("main-1"));
    assert_eq!(next([true, false, true]).as_deref(), Some("main-2"));
    assert_eq!(next([true, false, false]).as_deref(), Some("main-0 hands over"));
    assert_eq!(next([false, false, false]), None);
}

#[test]
fn nobody_is_restarted_while_anything_is_not_well() {
    let secrets = in_retiring();
    let mut found = 0;
    for seed in 0..2000 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut observed = retiring(&secrets, [random.random(), random.random(), random.random()]);
        let before = restarted(&secrets, &observed);
        let name = MEMBERS[random.random_range(0..3)].to_owned();
        let pod = observed.pods.get_mut(&name).unwrap();
        match random.random_range(0..9) {
            0 => pod.ready = false,
            1 => pod.deleting = true,
            2 => pod.voter_label = false,
            3 => drop(observed.survey.insert(name, Err("no answer within 3s".to_owned()))),
            4 => drop(observed.survey.remove(&name)),
            5 => drop(observed.pods.remove(&name)),
            6 => observed.survey.get_mut(&name).unwrap().as_mut().unwrap().quorum = None,
            7 => drop(observed.record.members.remove(&name)),
            _ => observed.credentials.leafs.clear(),
        }
        assert_eq!(restarted(&secrets, &observed), None, "seed {seed}");
        found += usize::from(before.is_some());
    }
    assert!(found > 1000, "only {found} pictures had a member to restart");
}

#[test]
fn a_pod_older_than_its_certificates_is_told_of_them_once() {
    let mut secrets = Secrets::new(&json!({}), &json!({}));
    secrets.now += hours(24 * 336);
    secrets.renew();
    let mut observed = retiring(&secrets, [false; 3]);
    let stored = credentials::stored(&secret(&secrets.leafs["main-1-tls"])).unwrap();
    observed.credentials.stored.insert("main-1".to_owned(), stored.clone());
    observed.pods.get_mut("main-1").unwrap().created = Some(start());
    let touches = |observed: &Observed| {
        let plan = plan(&secrets.desired, observed);
        plan.ensure.iter().filter(|ensure| matches!(ensure, Ensure::Touch { .. })).count()
    };
    assert_eq!(touches(&observed), 1);
    observed.pods.get_mut("main-1").unwrap().certificates = Some(stored.version);
    assert_eq!(touches(&observed), 0);
    let pod = observed.pods.get_mut("main-1").unwrap();
    (pod.certificates, pod.created) = (None, Some(secrets.now + hours(1)));
    assert_eq!(touches(&observed), 0, "a Pod that is younger has mounted them");
}

/// A certificate and its key.
fn generated(names: &[&str]) -> (String, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[test]
fn secrets_that_the_user_brings_are_checked_field_by_field() {
    let spec = json!({
        "tls": {"mode": "Secrets", "secrets": {"server": "s", "peer": "p", "operator": "o"}},
        "auth": {"enabled": true},
    });
    let desired = desired(&json!({}), &spec);
    let made = Secrets::new(&json!({}), &json!({}));
    // What our own authorities make serves as what a user would bring.
    let (member, authority) = (made.files(), &made.authority);
    let bring = |certificate: &str, key: &str, trust: &str| {
        BTreeMap::from([
            ("tls.crt".to_owned(), certificate.to_owned()),
            ("tls.key".to_owned(), key.to_owned()),
            ("ca.crt".to_owned(), trust.to_owned()),
        ])
    };
    let good = bring(&member["server.crt"], &member["server.key"], &authority["client-ca.crt"]);
    let wanted = brought(&desired, &["main-0".to_owned()]);
    let said = |which: usize, fields: &BTreeMap<String, String>, now| {
        let found = problems(&wanted[which], Some(&secret(fields)), hours(24 * 30), now);
        found.into_iter().map(|problem| problem.what).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(said(0, &good, start()), "");
    assert_eq!(problems(&wanted[0], None, hours(1), start())[0].what, "does not exist");
    let mut broken = good.clone();
    broken.insert("tls.key".to_owned(), member["peer.key"].clone());
    assert_eq!(said(0, &broken, start()), "tls.crt does not belong to its key");
    broken.remove("tls.key");
    assert_eq!(said(0, &broken, start()), "tls.key is missing");
    let leaf_for_trust = bring(&member["server.crt"], &member["server.key"], &member["peer.crt"]);
    assert_eq!(said(0, &leaf_for_trust, start()), "ca.crt is no authority");
    assert!(said(0, &good, start() + hours(24 * 340)).starts_with("tls.crt ends at "));
    assert!(said(0, &good, start() + hours(24 * 366)).starts_with("tls.crt ended at "));
    assert_eq!(said(2, &good, start()), "tls.crt has the common name main-0, and auth needs root");
    let others = brought(&desired, &["main-7".to_owned()]);
    let found = problems(&others[0], Some(&secret(&good)), hours(1), start());
    assert_eq!(found[0].what, "tls.crt lacks the DNS name main-7.main-peers.test.svc");
    let lone = generated(&["*.main-peers.test.svc"]);
    let fields = bring(&lone.0, &lone.1, &authority["peer-ca.crt"]);
    assert_eq!(said(0, &fields, start()), "");
    assert!(
        said(1, &fields, start()).contains("*.main-peers.test.svc.cluster.local"),
        "who calls is not known"
    );
    let both = generated(&["*.main-peers.test.svc", "*.main-peers.test.svc.cluster.local"]);
    assert_eq!(said(1, &bring(&both.0, &both.1, &authority["peer-ca.crt"]), start()), "");
    assert_eq!(brought(&desired, &[]).len(), 3);
    assert!(matches!(&wanted[2].common_name, Some("root")));
}
