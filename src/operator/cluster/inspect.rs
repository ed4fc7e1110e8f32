//! Looks at certificates: in Secrets, and, while the authorities are being replaced, at what members make of them.

use std::collections::BTreeMap;

use futures::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;

use super::credentials::{self, Credentials, LeafKind, LeafState, SecretState};
use super::desired::Desired;
use super::issue::issue_old_client;
use super::observed::{Record, Volume};
use super::rotation::{Presented, Stage};
use crate::api::cluster::EtcdClusterStatus;
use crate::etcd::authorize::is_enabled;
use crate::etcd::connect::{Address, ClientIdentity};
use crate::etcd::probe::{Handshake, probe};
use crate::etcd::survey::chain;
use crate::operator::context::{Context, Question};
use crate::operator::names;
use crate::operator::read::{ObserveError, read};

/// Auth that is as it should be is asked for this often: somebody may have changed it by hand.
const AUTH_PAUSE: jiff::SignedDuration = jiff::SignedDuration::from_mins(5);

/// Reads all Secrets with certificates.
pub(super) async fn certificates(
    context: &Context,
    desired: &Desired,
    record: &Record,
    volumes: &BTreeMap<String, Volume>,
) -> Result<Credentials, ObserveError> {
    if !desired.tls() {
        return Ok(Credentials::default());
    }
    let members = credentials::holders(desired, record, volumes);
    if desired.secrets().is_some() {
        return brought(context, desired, &members).await;
    }
    let wanted = credentials::wanted(desired, &members);
    let mut names = vec![names::authority(&desired.name)];
    names.extend(wanted.iter().map(|leaf| leaf.secret.clone()));
    let mut secrets = secrets(context, desired, &names).await?.into_iter();
    let authority = credentials::authority(secrets.next().flatten().as_ref());
    let mut found = Credentials { authority, looked_at: context.now(), ..Credentials::default() };
    for (leaf, secret) in wanted.iter().zip(secrets) {
        let Some(secret) = secret else { continue };
        match &leaf.kind {
            LeafKind::Operator => found.operator = credentials::operator_identity(Some(&secret)),
            LeafKind::Member(member) => {
                found.stored.extend(credentials::stored(&secret).map(|stored| (member.clone(), stored)));
            }
            LeafKind::Client => {}
        }
        let state = match &found.authority {
            SecretState::Usable(authority) => {
                credentials::leaf(leaf, &secret, authority, desired.lives.renew_before, found.looked_at)
            }
            SecretState::Missing | SecretState::Damaged(_) => LeafState::Unjudged,
        };
        found.leafs.insert(leaf.secret.clone(), state);
    }
    Ok(found)
}

/// The Secrets that the user brings. A member can start as soon as those that it mounts have all their fields; whether
/// these are good is another question.
async fn brought(
    context: &Context,
    desired: &Desired,
    members: &[String],
) -> Result<Credentials, ObserveError> {
    let brought = credentials::brought(desired, members);
    let names: Vec<String> = brought.iter().map(|brought| brought.secret.to_owned()).collect();
    let secrets = secrets(context, desired, &names).await?;
    let mut found = Credentials { looked_at: context.now(), ..Credentials::default() };
    for (brought, secret) in brought.iter().zip(&secrets) {
        found.problems.extend(credentials::problems(
            brought,
            secret.as_ref(),
            desired.lives.renew_before,
            found.looked_at,
        ));
    }
    let mounted = secrets.iter().take(2).all(|secret| secret.as_ref().is_some_and(credentials::is_complete));
    if mounted {
        let leafs = members.iter().map(|member| (names::member_certificate(member), LeafState::Unjudged));
        found.leafs.extend(leafs);
    }
    // What is damaged needs no haste.
    if mounted && found.problems.is_empty() {
        let stored = credentials::brought_version(secrets.iter().take(2).flatten(), found.looked_at);
        found.stored.extend(members.iter().map(|member| (member.clone(), stored.clone())));
    }
    found.operator = credentials::operator_identity(secrets.get(2).and_then(Option::as_ref));
    found.trust = secrets.get(2).and_then(Option::as_ref).and_then(credentials::trust);
    Ok(found)
}

async fn secrets(
    context: &Context,
    desired: &Desired,
    names: &[String],
) -> Result<Vec<Option<Secret>>, ObserveError> {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &desired.namespace);
    let requests = names.iter().map(async |name| read(&format!("Secret {name}"), api.get_opt(name)).await);
    try_join_all(requests).await
}

/// Asks members what the Secrets cannot tell: what they serve and trust, and whether auth is on.
pub(super) async fn inspect(
    context: &Context,
    desired: &Desired,
    status: Option<&EtcdClusterStatus>,
    credentials: &Credentials,
    addresses: &BTreeMap<String, Address>,
) -> (BTreeMap<String, Presented>, Option<bool>) {
    tokio::join!(
        presented(context, credentials, addresses),
        auth(context, desired, status, credentials, addresses),
    )
}

async fn presented(
    context: &Context,
    credentials: &Credentials,
    addresses: &BTreeMap<String, Address>,
) -> BTreeMap<String, Presented> {
    let (SecretState::Usable(authority), Some(identity)) = (&credentials.authority, &credentials.operator)
    else {
        return BTreeMap::new();
    };
    let old = match authority.stage {
        Stage::Settled => return BTreeMap::new(),
        Stage::Overlap(_) => None,
        Stage::Retiring => match issue_old_client(authority, context.now()) {
            Ok(old) => old,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "cannot find out which authorities members trust");
                None
            }
        },
    };
    let ask = async |(name, address): (&String, &Address)| {
        let wanted = credentials.stored.get(name).map(|stored| stored.server.clone());
        let served = probe(address, identity).await;
        let current = wanted.is_some_and(|wanted| served == Handshake::Accepted(wanted));
        let accepts_old = match &old {
            Some(old) => accepts(address, old).await,
            None => None,
        };
        (name.clone(), Presented { current, accepts_old })
    };
    join_all(addresses.iter().map(ask)).await.into_iter().collect()
}

async fn accepts(address: &Address, identity: &ClientIdentity) -> Option<bool> {
    match probe(address, identity).await {
        Handshake::Accepted(_) => Some(true),
        Handshake::UnknownAuthority => Some(false),
        Handshake::Failed(_) => None,
    }
}

/// Asked while it is not as it should be, and now and then afterwards.
async fn auth(
    context: &Context,
    desired: &Desired,
    status: Option<&EtcdClusterStatus>,
    credentials: &Credentials,
    addresses: &BTreeMap<String, Address>,
) -> Option<bool> {
    let identity = credentials.operator.as_ref()?;
    let seen = status.and_then(|status| status.auth.as_deref()).map(|word| word == "Enabled");
    let wanted = desired.spec.auth.enabled;
    let never_used = !wanted && seen != Some(true);
    let settled = seen == Some(wanted);
    if never_used || (settled && !context.is_due(&desired.uid, Question::Auth, AUTH_PAUSE)) {
        return None;
    }
    for address in addresses.values() {
        match is_enabled(address, identity).await {
            Ok(enabled) => return Some(enabled),
            Err(error) => {
                tracing::debug!(error = %chain(&error), "a member does not tell whether auth is on");
            }
        }
    }
    None
}
