//! Makes keys and certificates (rcgen, ring, ECDSA P-256).

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::credentials::{Authority, KeyPairPem, Leaf, LeafKind};
use super::desired::Desired;
use crate::operator::names;

/// Life of an authority: it is rotated with an overlap, never by surprise.
const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(24 * 3650);
/// Life of a leaf.
const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(24 * 365);
/// Certificates begin this long ago, so that clocks may differ.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(10);

/// A certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// rcgen refused.
    #[error("cannot make the certificate {name}")]
    Certificate {
        /// Common name.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// A time out of range.
    #[error("cannot reckon a certificate's life")]
    Time(#[source] jiff::Error),
}

/// New authorities, as the fields of their Secret.
pub fn issue_authority(desired: &Desired, now: Timestamp) -> Result<BTreeMap<String, String>, IssueError> {
    let mut fields = BTreeMap::new();
    for use_ in ["client", "peer"] {
        let name = format!("{}/{} {use_} CA", desired.namespace, desired.name);
        let mut parameters = parameters(&name, AUTHORITY_LIFE, now);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let failed = |source| IssueError::Certificate { name: name.clone(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = parameters.self_signed(&key).map_err(failed)?;
        fields.insert(format!("{use_}-ca.crt"), certificate.pem());
        fields.insert(format!("{use_}-ca.key"), key.serialize_pem());
    }
    Ok(fields)
}

/// A new leaf, as the fields of its Secret.
pub fn issue_leaf(
    desired: &Desired,
    leaf: &Leaf,
    authority: &Authority,
    now: Timestamp,
) -> Result<BTreeMap<String, String>, IssueError> {
    let mut fields: BTreeMap<String, String> =
        leaf.trust(authority).into_iter().map(|(name, pem)| (name.to_owned(), pem.to_owned())).collect();
    for (certificate, key, signer) in leaf.pairs(authority) {
        let issued = issue(desired, &leaf.kind, certificate == "peer.crt", signer, now)?;
        fields.insert(certificate.to_owned(), issued.certificate);
        fields.insert(key.to_owned(), issued.key);
    }
    Ok(fields)
}

fn issue(
    desired: &Desired,
    kind: &LeafKind,
    peer: bool,
    signer: &KeyPairPem,
    now: Timestamp,
) -> Result<KeyPairPem, IssueError> {
    let name = common_name(desired, kind);
    let failed = |source| IssueError::Certificate { name: name.clone(), source };
    let mut parameters = parameters(&name, LEAF_LIFE, now);
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    parameters.use_authority_key_identifier_extension = true;
    // etcd dials itself and its peers with the certificates that it serves with, so these are for clients too.
    parameters.extended_key_usages = match kind {
        LeafKind::Member(_) => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        LeafKind::Operator | LeafKind::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    if let LeafKind::Member(member) = kind {
        parameters.subject_alt_names = subject_names(desired, member, peer).map_err(failed)?;
    }
    let key = KeyPair::generate().map_err(failed)?;
    let signer_key = KeyPair::from_pem(&signer.key).map_err(failed)?;
    let issuer = Issuer::from_ca_cert_pem(&signer.certificate, signer_key).map_err(failed)?;
    let certificate = parameters.signed_by(&key, &issuer).map_err(failed)?;
    Ok(KeyPairPem { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// etcd's users are common names: only the operator is `root`, so that auth can never blind it.
fn common_name(desired: &Desired, kind: &LeafKind) -> String {
    match kind {
        LeafKind::Member(member) => member.clone(),
        LeafKind::Operator => "root".to_owned(),
        LeafKind::Client => names::client_certificate(&desired.name),
    }
}

/// A peer's certificate names only the member: etcd looks each name up and compares the dialler's address.
/// A server's names everything that a client can dial.
fn subject_names(desired: &Desired, member: &str, peer: bool) -> Result<Vec<SanType>, rcgen::Error> {
    let own = desired.address(member);
    let mut dns = vec![own.clone(), format!("{own}.cluster.local")];
    let mut subjects = Vec::new();
    if !peer {
        let (cluster, namespace) = (&desired.name, &desired.namespace);
        let peers = names::peers(cluster);
        dns.extend([format!("{member}.{peers}.{namespace}"), format!("{member}.{peers}"), member.to_owned()]);
        for service in [cluster, &peers] {
            dns.extend([
                service.clone(),
                format!("{service}.{namespace}"),
                format!("{service}.{namespace}.svc"),
                format!("{service}.{namespace}.svc.cluster.local"),
            ]);
        }
        dns.push("localhost".to_owned());
        subjects.push(SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()));
        subjects.push(SanType::IpAddress(std::net::Ipv6Addr::LOCALHOST.into()));
    }
    for name in dns {
        subjects.push(SanType::DnsName(name.try_into()?));
    }
    Ok(subjects)
}

fn parameters(name: &str, life: SignedDuration, now: Timestamp) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.not_before = time_of(now - CLOCK_SKEW);
    parameters.not_after = time_of(now + life);
    parameters
}

/// rcgen counts in the `time` crate's type; its epoch arithmetic is enough for us.
fn time_of(at: Timestamp) -> time::OffsetDateTime {
    time::OffsetDateTime::UNIX_EPOCH
        + std::time::Duration::from_secs(u64::try_from(at.as_second()).unwrap_or_default())
}
