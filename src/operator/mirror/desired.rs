//! What a person asked for, parsed once: spec → [`Desired`].

use std::time::Duration;

use kube::ResourceExt;

use super::observed::Pair;
use crate::api::duration::parse_duration;
use crate::api::mirror::{EtcdMirror, EtcdMirrorSpec, MirrorSite, VerifyMode};
use crate::mirror::agent::config::Requests;
use crate::operator::names;

/// An EtcdMirror that can be acted on.
#[derive(Clone, Debug)]
pub struct Desired {
    /// Namespace of the EtcdMirror.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: every child carries it.
    pub uid: String,
    /// Its generation.
    pub generation: i64,
    /// As other EtcdMirrors must know it.
    pub pair: Pair,
    /// The spec as it was written.
    pub spec: EtcdMirrorSpec,
    /// Both sides, in the order of the spec.
    pub sites: [MirrorSite; 2],
    /// How often both sides are compared.
    pub verify_every: Option<Duration>,
    /// How old the state of the target may be.
    pub lag_objective: Duration,
    /// What a person asked for once.
    pub requests: Requests,
    /// The last term in which etcd's records and `active` named the same site, by the status.
    pub agreed_term: Option<u64>,
    /// Whether the EtcdMirror is being deleted.
    pub deleting: bool,
    /// Image of the agent: the operator's own.
    pub image: String,
}

/// A field that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("spec.{field}: {message}")]
pub struct InvalidSpec {
    /// Path below `spec`.
    pub field: &'static str,
    /// What is wrong, and the fix.
    pub message: String,
}

impl Desired {
    /// Parses `object`. What the schema does not let through is refused here too: an object may be older than it.
    pub fn of(object: &EtcdMirror, image: &str) -> Result<Self, InvalidSpec> {
        let spec = object.spec.clone();
        let invalid = |field, message: String| InvalidSpec { field, message };
        let sites: [MirrorSite; 2] = spec.sites.clone().try_into().map_err(|sites: Vec<MirrorSite>| {
            invalid("sites", format!("there are {} sites. Use exactly two.", sites.len()))
        })?;
        if !sites.iter().any(|site| site.name == spec.active) {
            let message = format!("{} is no name in sites. Use one of them.", spec.active);
            return Err(invalid("active", message));
        }
        let interval = parse_duration(&spec.verify.interval)
            .map_err(|error| invalid("verify.interval", error.to_string()))?;
        let lag_objective = parse_duration(&spec.lag_objective.time)
            .map_err(|error| invalid("lagObjective.time", error.to_string()))?;
        let asked = |annotation: &str| object.annotations().get(annotation).cloned();
        Ok(Self {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or_default(),
            pair: Pair::of(object),
            sites,
            verify_every: match spec.verify.mode {
                VerifyMode::Scheduled => Some(interval),
                VerifyMode::OnRequest => None,
            },
            lag_objective,
            agreed_term: object
                .status
                .as_ref()
                .and_then(|status| status.agreed_term)
                .and_then(|term| u64::try_from(term).ok()),
            requests: Requests { verify: asked(names::VERIFY), resync: asked(names::RESYNC) },
            deleting: object.metadata.deletion_timestamp.is_some(),
            image: image.to_owned(),
            spec,
        })
    }

    /// The other one of the two sites.
    pub fn other(&self, site: &str) -> &MirrorSite {
        let [first, second] = &self.sites;
        if first.name == site { second } else { first }
    }
}
