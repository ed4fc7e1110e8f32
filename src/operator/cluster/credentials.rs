//! Certificates as they are found in Secrets, and which of them must be made.
//!
//! Each cluster has authorities of its own, one that members trust among themselves (peer) and one for clients
//! and servers: a client's certificate never opens the peer port.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::desired::Desired;
use super::observed::{Record, Volume, VolumeState};
use super::rotation::{Presented, Stage};
use crate::etcd::connect::ClientIdentity;
use crate::operator::names;

/// Certificates begin this long before they are made, so that clocks may differ.
pub const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(10);

/// The certificates of one cluster.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The authorities.
    pub authority: SecretState<Authority>,
    /// Leafs by Secret name; one that is wanted and absent is not in here.
    pub leafs: BTreeMap<String, LeafState>,
    /// What the operator presents to members, when it is usable.
    pub operator: Option<ClientIdentity>,
    /// When the Secrets were read.
    pub looked_at: Timestamp,
    /// What the Secret of each member holds.
    pub stored: BTreeMap<String, Stored>,
    /// What each member was seen to do; asked only while the authorities are being replaced.
    pub presented: BTreeMap<String, Presented>,
    /// What is wrong with the Secrets that the user brings.
    pub problems: Vec<Problem>,
    /// The authorities of servers, as PEM, where the user brings the Secrets.
    pub trust: Option<String>,
    /// Whether etcd asks who a client is; `None`: not asked in this look.
    pub auth: Option<bool>,
}

/// What the Secret of a member holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The server certificate, as DER.
    pub server: Vec<u8>,
    /// A word that changes with what is in the Secret.
    pub version: String,
    /// When it was made.
    pub issued: Timestamp,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Credentials").field("leafs", &self.leafs).finish_non_exhaustive()
    }
}

/// A Secret: not there, unusable (and why), or read.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum SecretState<T> {
    /// There is none.
    #[default]
    Missing,
    /// It cannot be used.
    Damaged(String),
    /// It can.
    Usable(T),
}

/// A cluster's authorities with their keys; never logged, so it has no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    /// Signs servers and clients.
    pub client: Signer,
    /// Signs peers.
    pub peer: Signer,
    /// Where their replacement is.
    pub stage: Stage,
    /// The newest request for a replacement that was acted on.
    pub handled_request: Option<String>,
    /// The end of the one that ends first.
    pub ends: Timestamp,
    /// Whether both may sign another authority.
    pub may_cross: bool,
    /// The Secret as it was read: the premise of every change.
    pub resource_version: String,
}

/// One authority, and the one before it while it is being replaced; never logged, so it has no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Signer {
    /// What signs now.
    pub pair: KeyPairPem,
    /// The one before, and its certificate for the key of `pair`.
    pub old: Option<(KeyPairPem, String)>,
}

/// A certificate and its key as PEM; never logged, so it has no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPairPem {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// What a leaf Secret must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Name of the Secret.
    pub secret: String,
    /// What it is for.
    pub kind: LeafKind,
}

/// What a leaf is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeafKind {
    /// A member's server and peer certificates.
    Member(String),
    /// The operator's client certificate.
    Operator,
    /// The applications' client certificate.
    Client,
}

/// Whether a leaf can stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeafState {
    /// It is good until then.
    Good(Timestamp),
    /// It is there, but its authority is not, so it cannot be judged.
    Unjudged,
    /// It must be made again, and why.
    Renew(String),
}

/// The members that need a certificate: those on record, and those whose volume waits for them to join.
pub fn holders(desired: &Desired, record: &Record, volumes: &BTreeMap<String, Volume>) -> Vec<String> {
    let joins = |volume: &Volume| {
        volume.state == VolumeState::Joining && volume.cluster_uid.as_deref() == Some(desired.uid.as_str())
    };
    let joining = volumes.iter().filter(|(_, volume)| joins(volume)).map(|(name, _)| name.clone());
    let mut holders = record.member_names(&desired.name);
    if record.cluster_id.is_some() {
        holders.extend(joining);
        holders.sort();
        holders.dedup();
    }
    holders
}

/// The leafs that a cluster with these members needs.
pub fn wanted(desired: &Desired, members: &[String]) -> Vec<Leaf> {
    let of = |secret, kind| Leaf { secret, kind };
    let mut leafs = vec![
        of(names::operator_certificate(&desired.name), LeafKind::Operator),
        of(names::client_certificate(&desired.name), LeafKind::Client),
    ];
    leafs.extend(
        members.iter().map(|member| of(names::member_certificate(member), LeafKind::Member(member.clone()))),
    );
    leafs
}

impl Leaf {
    /// The certificate and key fields of the Secret, with the authority that must have signed each.
    pub fn pairs<'a>(&self, authority: &'a Authority) -> Vec<(&'static str, &'static str, &'a Signer)> {
        match self.kind {
            LeafKind::Member(_) => {
                vec![
                    ("server.crt", "server.key", &authority.client),
                    ("peer.crt", "peer.key", &authority.peer),
                ]
            }
            LeafKind::Operator | LeafKind::Client => vec![("tls.crt", "tls.key", &authority.client)],
        }
    }

    /// The fields that hold authorities' certificates.
    pub fn trust(&self, authority: &Authority) -> Vec<(&'static str, String)> {
        let client = authority.client.trust(authority.stage);
        match self.kind {
            LeafKind::Member(_) => {
                vec![("client-ca.crt", client), ("peer-ca.crt", authority.peer.trust(authority.stage))]
            }
            LeafKind::Operator | LeafKind::Client => vec![("ca.crt", client)],
        }
    }
}

impl Signer {
    /// The certificates to trust, as PEM.
    pub fn trust(&self, stage: Stage) -> String {
        match (stage, &self.old) {
            (Stage::Overlap(_), Some((old, _))) => format!("{}{}", self.pair.certificate, old.certificate),
            (Stage::Overlap(_), None) | (Stage::Settled | Stage::Retiring, _) => {
                self.pair.certificate.clone()
            }
        }
    }
}

/// Reads the Secret of the authorities.
pub fn authority(secret: Option<&Secret>) -> SecretState<Authority> {
    let Some(secret) = secret else { return SecretState::Missing };
    match read_authority(secret) {
        Ok(authority) => SecretState::Usable(authority),
        Err(why) => SecretState::Damaged(why),
    }
}

fn read_authority(secret: &Secret) -> Result<Authority, String> {
    let stage = match field(secret, "stage").ok().as_deref() {
        None => Stage::Settled,
        Some("retiring") => Stage::Retiring,
        Some("overlap") => {
            let since = field(secret, "since")?;
            Stage::Overlap(since.parse().map_err(|_| format!("since {since} is no time"))?)
        }
        Some(other) => return Err(format!("stage {other} is not known")),
    };
    let (client, client_ends) = signer(secret, "client", stage)?;
    let (peer, peer_ends) = signer(secret, "peer", stage)?;
    Ok(Authority {
        may_cross: may_cross(&client.pair.certificate) && may_cross(&peer.pair.certificate),
        client,
        peer,
        stage,
        handled_request: field(secret, "handled-request").ok(),
        ends: client_ends.min(peer_ends),
        resource_version: secret.metadata.resource_version.clone().unwrap_or_default(),
    })
}

/// The authority of a use, and its end.
fn signer(secret: &Secret, use_: &str, stage: Stage) -> Result<(Signer, Timestamp), String> {
    let pair = |which: &str| -> Result<(KeyPairPem, Timestamp), String> {
        let (certificate, key) = (format!("{use_}-ca{which}.crt"), format!("{use_}-ca{which}.key"));
        let pair = KeyPairPem { certificate: field(secret, &certificate)?, key: field(secret, &key)? };
        let end = check_pair(&pair, &certificate)?;
        Ok((pair, end))
    };
    let (now, ends) = pair("")?;
    let old = match stage {
        Stage::Settled => None,
        Stage::Overlap(_) | Stage::Retiring => {
            let cross = field(secret, &format!("{use_}-ca-cross.crt"))?;
            let (old, _) = pair("-old")?;
            check_signature(&cross, &old.certificate).map_err(|why| format!("{use_}-ca-cross.crt {why}"))?;
            Some((old, cross))
        }
    };
    Ok((Signer { pair: now, old }, ends))
}

/// Whether an authority may sign another one.
fn may_cross(certificate: &str) -> bool {
    let read = with_certificate(certificate, |certificate| {
        let constraints = certificate.basic_constraints().ok().flatten();
        Ok(constraints.is_some_and(|found| found.value.ca && found.value.path_len_constraint != Some(0)))
    });
    read == Ok(true)
}

/// Judges a leaf's Secret against the authorities.
pub fn leaf(
    leaf: &Leaf,
    secret: &Secret,
    authority: &Authority,
    renew_before: SignedDuration,
    now: Timestamp,
) -> LeafState {
    let judged = leaf.pairs(authority).into_iter().map(|(certificate, key, signer)| {
        let pair = KeyPairPem { certificate: field(secret, certificate)?, key: field(secret, key)? };
        let end = check_pair(&pair, certificate)?;
        check_signature(&pair.certificate, &signer.pair.certificate)
            .map_err(|why| format!("{certificate} {why}"))?;
        Ok(end)
    });
    let ends: Result<Vec<Timestamp>, String> = judged.collect();
    let trust_differs =
        leaf.trust(authority).into_iter().any(|(name, pem)| field(secret, name).as_ref() != Ok(&pem));
    match ends {
        Err(why) => LeafState::Renew(why),
        Ok(_) if trust_differs => LeafState::Renew("the trusted authorities have changed".to_owned()),
        Ok(ends) => match ends.into_iter().min() {
            // One that lives as long as its authority gets no better by being made anew.
            Some(end) if end > now + renew_before || end >= authority.ends => LeafState::Good(end),
            Some(end) => LeafState::Renew(format!("it ends at {end}")),
            None => LeafState::Renew("it is empty".to_owned()),
        },
    }
}

/// What a member's Secret holds, if it can be read.
pub fn stored(secret: &Secret) -> Option<Stored> {
    let certificate = field(secret, "server.crt").ok()?;
    let version = version(std::iter::once(secret));
    let begin = with_certificate(&certificate, |certificate| {
        Timestamp::from_second(certificate.validity().not_before.timestamp())
            .map_err(|error| error.to_string())
    });
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).ok()?;
    Some(Stored { server: pem.contents, version, issued: begin.ok()? + CLOCK_SKEW })
}

/// What the Secrets hold that the user brings for members; when they were changed is not known.
pub fn brought_version<'a>(secrets: impl Iterator<Item = &'a Secret>, now: Timestamp) -> Stored {
    Stored { server: Vec::new(), version: version(secrets), issued: now }
}

/// A word that changes with what is in Secrets.
fn version<'a>(secrets: impl Iterator<Item = &'a Secret>) -> String {
    let mut hash = Sha256::new();
    for (name, value) in secrets.flat_map(|secret| secret.data.iter().flatten()) {
        hash.update(name);
        hash.update(&value.0);
    }
    hash.finalize().iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// Something wrong with a Secret that the user brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Name of the Secret.
    pub secret: String,
    /// The field and what is wrong with it.
    pub what: String,
    /// When the certificate ends, if that is what is wrong.
    pub ends: Option<Timestamp>,
}

/// A Secret that the user brings: with which name it is spelt in `tls.secrets`, and what it must allow.
#[derive(Clone, Debug)]
pub struct Brought<'a> {
    /// Name of the Secret.
    pub secret: &'a str,
    /// DNS names that its certificate must carry.
    pub names: Vec<String>,
    /// What a name with a star must begin with, if there is no name of each member: etcd then looks up the name of
    /// the address that calls (`client/pkg/transport/listener_tls.go`), and that ends with the cluster's domain.
    pub reverse: Option<String>,
    /// The common name that it must have.
    pub common_name: Option<&'static str>,
}

/// What the user must bring for a cluster with these members.
pub fn brought<'a>(desired: &'a Desired, members: &[String]) -> Vec<Brought<'a>> {
    let Some(secrets) = desired.secrets() else { return Vec::new() };
    let addresses: Vec<String> = members.iter().map(|member| desired.address(member)).collect();
    let of = |secret, names: &[String], common_name| Brought {
        secret,
        names: names.to_vec(),
        reverse: None,
        common_name,
    };
    let reverse = format!("*.{}.{}.svc.", names::peers(&desired.name), desired.namespace);
    let mut all = vec![
        of(secrets.server.as_str(), &addresses, None),
        Brought { reverse: Some(reverse), ..of(secrets.peer.as_str(), &addresses, None) },
        of(secrets.operator.as_str(), &[], desired.spec.auth.enabled.then_some("root")),
    ];
    all.extend(secrets.client.iter().map(|client| of(client.as_str(), &[], None)));
    all
}

/// Whether a Secret has all fields that are mounted.
pub fn is_complete(secret: &Secret) -> bool {
    ["tls.crt", "tls.key", "ca.crt"].iter().all(|name| field(secret, name).is_ok())
}

/// The authorities in a Secret, as PEM.
pub fn trust(secret: &Secret) -> Option<String> {
    field(secret, "ca.crt").ok()
}

/// Checks a Secret that the user brings.
pub fn problems(
    brought: &Brought,
    secret: Option<&Secret>,
    renew_before: SignedDuration,
    now: Timestamp,
) -> Vec<Problem> {
    let problem = |what: String, ends| Problem { secret: brought.secret.to_owned(), what, ends };
    let Some(secret) = secret else { return vec![problem("does not exist".to_owned(), None)] };
    match check_brought(brought, secret) {
        Err(what) => vec![problem(what, None)],
        Ok(end) if end <= now => vec![problem(format!("tls.crt ended at {end}"), Some(end))],
        Ok(end) if end <= now + renew_before => vec![problem(format!("tls.crt ends at {end}"), Some(end))],
        Ok(_) => Vec::new(),
    }
}

fn check_brought(brought: &Brought, secret: &Secret) -> Result<Timestamp, String> {
    let pair = KeyPairPem { certificate: field(secret, "tls.crt")?, key: field(secret, "tls.key")? };
    let end = check_pair(&pair, "tls.crt")?;
    with_certificate(&field(secret, "ca.crt")?, |authority| {
        if authority.is_ca() { Ok(()) } else { Err("is no authority".to_owned()) }
    })
    .map_err(|why| format!("ca.crt {why}"))?;
    with_certificate(&pair.certificate, |certificate| {
        let names = dns_names(certificate);
        if let Some(missing) = brought.names.iter().find(|name| !names.iter().any(|own| covers(own, name))) {
            return Err(format!("lacks the DNS name {missing}"));
        }
        if let Some(reverse) = &brought.reverse
            && !brought.names.iter().all(|name| names.contains(name))
            && !names.iter().any(|own| own.starts_with(reverse.as_str()))
        {
            return Err(format!(
                "lacks the DNS name {reverse}cluster.local (with your cluster's domain), by which a member that calls is known, or a name for each member"
            ));
        }
        let common_name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        match brought.common_name {
            Some(wanted) if common_name != Some(wanted) => Err(format!(
                "has the common name {}, and auth needs {wanted}",
                common_name.unwrap_or("(none)")
            )),
            Some(_) | None => Ok(()),
        }
    })
    .map_err(|why| format!("tls.crt {why}"))?;
    Ok(end)
}

fn dns_names(certificate: &X509Certificate) -> Vec<String> {
    let extension = certificate.subject_alternative_name().ok().flatten();
    let names = extension.iter().flat_map(|extension| &extension.value.general_names);
    let dns = |name: &GeneralName| {
        if let GeneralName::DNSName(name) = name { Some((*name).to_owned()) } else { None }
    };
    names.filter_map(dns).collect()
}

/// Whether a name in a certificate stands for `name`: the same, or with a star for its first label.
fn covers(own: &str, name: &str) -> bool {
    let rest = name.split_once('.').map(|(_, rest)| rest);
    own == name || own.strip_prefix("*.").is_some_and(|own| Some(own) == rest)
}

/// What the operator presents to members.
pub fn operator_identity(secret: Option<&Secret>) -> Option<ClientIdentity> {
    let secret = secret?;
    Some(ClientIdentity {
        authority: field(secret, "ca.crt").ok()?.into_bytes(),
        certificate: field(secret, "tls.crt").ok()?.into_bytes(),
        key: field(secret, "tls.key").ok()?.into_bytes(),
    })
}

fn field(secret: &Secret, name: &str) -> Result<String, String> {
    let bytes =
        secret.data.as_ref().and_then(|data| data.get(name)).ok_or_else(|| format!("{name} is missing"))?;
    String::from_utf8(bytes.0.clone()).map_err(|_| format!("{name} is no text"))
}

/// The end of a certificate's life.
pub fn end_of(certificate: &str) -> Result<Timestamp, String> {
    with_certificate(certificate, |certificate| {
        Timestamp::from_second(certificate.validity().not_after.timestamp())
            .map_err(|error| error.to_string())
    })
}

/// The end of the certificate's life, if it is a certificate and the key is its key.
fn check_pair(pair: &KeyPairPem, name: &str) -> Result<Timestamp, String> {
    let key =
        rcgen::KeyPair::from_pem(&pair.key).map_err(|_| format!("the key of {name} is not a private key"))?;
    with_certificate(&pair.certificate, |certificate| {
        let public: &[u8] = &certificate.public_key().subject_public_key.data;
        if public != rcgen::PublicKeyData::der_bytes(&key) {
            return Err("does not belong to its key".to_owned());
        }
        Timestamp::from_second(certificate.validity().not_after.timestamp())
            .map_err(|error| error.to_string())
    })
    .map_err(|why| format!("{name} {why}"))
}

fn check_signature(certificate: &str, signer: &str) -> Result<(), String> {
    with_certificate(signer, |signer| {
        with_certificate(certificate, |certificate| {
            certificate
                .verify_signature(Some(signer.public_key()))
                .map_err(|_| "is not signed by the cluster's authority".to_owned())
        })
    })
}

fn with_certificate<T>(
    pem: &str,
    read: impl FnOnce(&X509Certificate) -> Result<T, String>,
) -> Result<T, String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| "is not PEM".to_owned())?;
    let (_, certificate) =
        X509Certificate::from_der(&pem.contents).map_err(|_| "is not a certificate".to_owned())?;
    read(&certificate)
}
