//! Makes keys and certificates (rcgen, ring, ECDSA P-256).

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::credentials::{Authority, CLOCK_SKEW, KeyPairPem, Leaf, LeafKind, end_of};
use super::desired::Desired;
use super::rotation::Change;
use crate::etcd::connect::ClientIdentity;
use crate::operator::names;
use crate::operator::write::ApplyError;

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
    /// The authority cannot be read.
    #[error("the authority {0}")]
    Signer(String),
}

impl From<IssueError> for ApplyError {
    fn from(error: IssueError) -> Self {
        Self::Issue(Box::new(error))
    }
}

/// New authorities, as the fields of their Secret.
pub fn issue_authority(desired: &Desired, now: Timestamp) -> Result<BTreeMap<String, String>, IssueError> {
    let mut fields = BTreeMap::new();
    for use_ in ["client", "peer"] {
        let (_, pair) = new_authority(desired, use_, now)?;
        fields.insert(format!("{use_}-ca.crt"), pair.certificate);
        fields.insert(format!("{use_}-ca.key"), pair.key);
    }
    Ok(fields)
}

/// What a change makes of the fields of the authorities' Secret; `None` removes one.
pub fn change_authority(
    desired: &Desired,
    authority: &Authority,
    change: &Change,
    now: Timestamp,
) -> Result<BTreeMap<String, Option<String>>, IssueError> {
    let mut fields = BTreeMap::new();
    let mut set = |name: String, value: Option<String>| fields.insert(name, value);
    match change {
        Change::Rotate { request, .. } => {
            for (use_, signer) in [("client", &authority.client), ("peer", &authority.peer)] {
                let (parameters, new) = new_authority(desired, use_, now)?;
                let cross = cross_sign(parameters, &new, &signer.pair)?;
                set(format!("{use_}-ca.crt"), Some(new.certificate));
                set(format!("{use_}-ca.key"), Some(new.key));
                set(format!("{use_}-ca-old.crt"), Some(signer.pair.certificate.clone()));
                set(format!("{use_}-ca-old.key"), Some(signer.pair.key.clone()));
                set(format!("{use_}-ca-cross.crt"), Some(cross));
            }
            set("stage".to_owned(), Some("overlap".to_owned()));
            set("since".to_owned(), Some(now.to_string()));
            if let Some(request) = request {
                set("handled-request".to_owned(), Some(request.clone()));
            }
        }
        Change::Retire => {
            set("stage".to_owned(), Some("retiring".to_owned()));
        }
        Change::Forget => {
            for use_ in ["client", "peer"] {
                for which in ["-old.crt", "-old.key", "-cross.crt"] {
                    set(format!("{use_}-ca{which}"), None);
                }
            }
            set("stage".to_owned(), None);
            set("since".to_owned(), None);
        }
    }
    Ok(fields)
}

/// No two authorities of a cluster have the same name, or who looks for one by its name might find the other.
fn new_authority(
    desired: &Desired,
    use_: &str,
    now: Timestamp,
) -> Result<(CertificateParams, KeyPairPem), IssueError> {
    let made = now.strftime("%Y-%m-%dT%H:%M:%SZ");
    let name = format!("{}/{} {use_} CA {made}", desired.namespace, desired.name);
    let mut parameters = parameters(&name, now, now + desired.lives.authority);
    // One below it: the next authority, which it vouches for when it is replaced.
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let failed = |source| IssueError::Certificate { name: name.clone(), source };
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = parameters.self_signed(&key).map_err(failed)?;
    Ok((parameters, KeyPairPem { certificate: certificate.pem(), key: key.serialize_pem() }))
}

/// The old authority's certificate for the new one's name and key.
fn cross_sign(
    mut parameters: CertificateParams,
    new: &KeyPairPem,
    old: &KeyPairPem,
) -> Result<String, IssueError> {
    let failed = |source| IssueError::Certificate { name: "cross".to_owned(), source };
    let end = end_of(&old.certificate).map_err(IssueError::Signer)?;
    parameters.not_after = parameters.not_after.min(time_of(end));
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.use_authority_key_identifier_extension = true;
    let key = KeyPair::from_pem(&new.key).map_err(failed)?;
    let old_key = KeyPair::from_pem(&old.key).map_err(failed)?;
    let issuer = Issuer::from_ca_cert_pem(&old.certificate, old_key).map_err(failed)?;
    Ok(parameters.signed_by(&key, &issuer).map_err(failed)?.pem())
}

/// A new leaf, as the fields of its Secret.
pub fn issue_leaf(
    desired: &Desired,
    leaf: &Leaf,
    authority: &Authority,
    now: Timestamp,
) -> Result<BTreeMap<String, String>, IssueError> {
    let mut fields: BTreeMap<String, String> =
        leaf.trust(authority).into_iter().map(|(name, pem)| (name.to_owned(), pem)).collect();
    for (certificate, key, signer) in leaf.pairs(authority) {
        let name = common_name(desired, &leaf.kind);
        let mut parameters = leaf_parameters(&name, now, desired.lives.leaf, &signer.pair)?;
        // etcd dials itself and its peers with the certificates that it serves with, so these are for clients too.
        if let LeafKind::Member(member) = &leaf.kind {
            parameters.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            parameters.subject_alt_names = subject_names(desired, member, certificate == "peer.crt")
                .map_err(|source| IssueError::Certificate { name: name.clone(), source })?;
        }
        let mut issued = sign(&parameters, &name, &signer.pair)?;
        if let Some((_, cross)) = &signer.old {
            issued.certificate += cross;
        }
        fields.insert(certificate.to_owned(), issued.certificate);
        fields.insert(key.to_owned(), issued.key);
    }
    Ok(fields)
}

/// A certificate of the old client authority, good for a minute, to find out who still accepts it; it is never sent
/// anything with.
pub fn issue_old_client(authority: &Authority, now: Timestamp) -> Result<Option<ClientIdentity>, IssueError> {
    let Some((old, _)) = &authority.client.old else { return Ok(None) };
    let name = "quorate-probe";
    let parameters = leaf_parameters(name, now, SignedDuration::from_mins(1), old)?;
    let issued = sign(&parameters, name, old)?;
    Ok(Some(ClientIdentity {
        authority: authority.client.pair.certificate.clone().into_bytes(),
        certificate: issued.certificate.into_bytes(),
        key: issued.key.into_bytes(),
    }))
}

/// A leaf never outlives its authority.
fn leaf_parameters(
    name: &str,
    now: Timestamp,
    life: SignedDuration,
    signer: &KeyPairPem,
) -> Result<CertificateParams, IssueError> {
    let end = end_of(&signer.certificate).map_err(IssueError::Signer)?;
    let mut parameters = parameters(name, now, end.min(now + life));
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    parameters.use_authority_key_identifier_extension = true;
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(parameters)
}

fn sign(parameters: &CertificateParams, name: &str, signer: &KeyPairPem) -> Result<KeyPairPem, IssueError> {
    let failed = |source| IssueError::Certificate { name: name.to_owned(), source };
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

fn parameters(name: &str, now: Timestamp, end: Timestamp) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.not_before = time_of(now - CLOCK_SKEW);
    parameters.not_after = time_of(end);
    parameters
}

/// rcgen counts in the `time` crate's type; its epoch arithmetic is enough for us.
fn time_of(at: Timestamp) -> time::OffsetDateTime {
    time::OffsetDateTime::UNIX_EPOCH
        + std::time::Duration::from_secs(u64::try_from(at.as_second()).unwrap_or_default())
}
