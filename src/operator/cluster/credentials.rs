//! Certificates as they are found in Secrets, and which of them must be made.
//!
//! Each cluster has authorities of its own, one that members trust among themselves (peer) and one for clients
//! and servers: a client's certificate never opens the peer port.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::desired::Desired;
use super::observed::{Record, Volume, VolumeState};
use crate::etcd::connect::ClientIdentity;
use crate::operator::names;

/// A leaf is renewed this long before its end: long enough to be noticed, short enough to be rare.
pub const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(24 * 30);

/// The certificates of one cluster.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The authorities.
    pub authority: SecretState<Authority>,
    /// Leafs by Secret name; one that is wanted and absent is not in here.
    pub leafs: BTreeMap<String, LeafState>,
    /// What the operator presents to members, when it is usable.
    pub operator: Option<ClientIdentity>,
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

/// PEM of a cluster's authorities with their keys; never logged, so it has no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    /// Signs servers and clients.
    pub client: KeyPairPem,
    /// Signs peers.
    pub peer: KeyPairPem,
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
    pub fn pairs<'a>(&self, authority: &'a Authority) -> Vec<(&'static str, &'static str, &'a KeyPairPem)> {
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
    pub fn trust<'a>(&self, authority: &'a Authority) -> Vec<(&'static str, &'a str)> {
        let (client, peer) = (authority.client.certificate.as_str(), authority.peer.certificate.as_str());
        match self.kind {
            LeafKind::Member(_) => vec![("client-ca.crt", client), ("peer-ca.crt", peer)],
            LeafKind::Operator | LeafKind::Client => vec![("ca.crt", client)],
        }
    }
}

/// Reads the Secret of the authorities.
pub fn authority(secret: Option<&Secret>) -> SecretState<Authority> {
    let Some(secret) = secret else { return SecretState::Missing };
    let pair = |certificate: &str, key: &str| -> Result<KeyPairPem, String> {
        let pair = KeyPairPem { certificate: field(secret, certificate)?, key: field(secret, key)? };
        check_pair(&pair, certificate)?;
        Ok(pair)
    };
    let read = pair("client-ca.crt", "client-ca.key")
        .and_then(|client| Ok(Authority { client, peer: pair("peer-ca.crt", "peer-ca.key")? }));
    match read {
        Ok(authority) => SecretState::Usable(authority),
        Err(why) => SecretState::Damaged(why),
    }
}

/// Judges a leaf's Secret against the authorities.
pub fn leaf(leaf: &Leaf, secret: &Secret, authority: &Authority, now: Timestamp) -> LeafState {
    let judged = leaf.pairs(authority).into_iter().map(|(certificate, key, signer)| {
        let pair = KeyPairPem { certificate: field(secret, certificate)?, key: field(secret, key)? };
        let end = check_pair(&pair, certificate)?;
        check_signature(&pair.certificate, &signer.certificate)
            .map_err(|why| format!("{certificate} {why}"))?;
        Ok(end)
    });
    let ends: Result<Vec<Timestamp>, String> = judged.collect();
    let trust_differs =
        leaf.trust(authority).into_iter().any(|(name, pem)| field(secret, name).as_deref() != Ok(pem));
    match ends {
        Err(why) => LeafState::Renew(why),
        Ok(_) if trust_differs => LeafState::Renew("trusts another authority".to_owned()),
        Ok(ends) => match ends.into_iter().min() {
            Some(end) if end > now + RENEW_BEFORE => LeafState::Good(end),
            Some(end) => LeafState::Renew(format!("ends at {end}")),
            None => LeafState::Renew("is empty".to_owned()),
        },
    }
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
