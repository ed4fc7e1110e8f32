//! What a person asked for, parsed once: spec → [`Desired`].

use std::time::Duration;

use jiff::SignedDuration;
use kube::ResourceExt;

use crate::api::cluster::{CompactionMode, EtcdCluster, EtcdClusterSpec, LogLevel, TlsMode, TlsSecrets};
use crate::api::duration::parse_duration;
use crate::api::quantity::parse_bytes;
use crate::etcd::flags::{PEER_PORT, url};
use crate::etcd::version::Version;
use crate::operator::names;

/// Upstream's repository of etcd images.
pub const ETCD_REPOSITORY: &str = "gcr.io/etcd-development/etcd";

/// An EtcdCluster that can be acted on.
#[derive(Clone, Debug)]
pub struct Desired {
    /// Namespace of the EtcdCluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: every child carries it.
    pub uid: String,
    /// Its generation.
    pub generation: i64,
    /// The spec as it was written.
    pub spec: EtcdClusterSpec,
    /// Voters wanted.
    pub replicas: usize,
    /// The release that new Pods run.
    pub version: Version,
    /// The image that new Pods run.
    pub image: String,
    /// `--quota-backend-bytes`.
    pub quota_bytes: u64,
    /// Time without progress before the cluster is called stalled.
    pub progress_deadline: Duration,
    /// UID of an earlier EtcdCluster whose volumes are taken over.
    pub adopt: Option<String>,
    /// How long certificates live.
    pub lives: Lives,
    /// Value of the annotation that asks for new authorities.
    pub rotation_request: Option<String>,
    /// Whether the EtcdCluster is being deleted.
    pub deleting: bool,
    /// Image with the guard.
    pub guard_image: String,
}

/// No certificate lives longer: far beyond anybody's need, and no sum with it is out of range.
const LONGEST: SignedDuration = SignedDuration::from_hours(24 * 365 * 300);

/// How long certificates live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lives {
    /// A leaf is renewed this long before its end.
    pub renew_before: SignedDuration,
    /// Life of a leaf.
    pub leaf: SignedDuration,
    /// Life of an authority.
    pub authority: SignedDuration,
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
    /// Parses `object`. A version that was resolved before stays as it is while `spec.version` does.
    pub fn of(object: &EtcdCluster, guard_image: &str) -> Result<Self, InvalidSpec> {
        let spec = object.spec.clone();
        let invalid =
            |field, error: &dyn std::error::Error| InvalidSpec { field, message: error.to_string() };
        let version = resolved_version(object).map_err(|error| invalid("version", &error))?;
        let quota_bytes =
            parse_bytes(&spec.quota_backend).map_err(|error| invalid("quotaBackend", &error))?;
        let progress_deadline =
            parse_duration(&spec.progress_deadline).map_err(|error| invalid("progressDeadline", &error))?;
        let lives = lives(&spec).map_err(|error| invalid("tls.rotation", &error))?;
        let replicas = match spec.replicas {
            count @ (1 | 3 | 5 | 7) => usize::try_from(count).unwrap_or_default(),
            count => {
                let message = format!("{count} is not possible. Use 1, 3, 5 or 7.");
                return Err(InvalidSpec { field: "replicas", message });
            }
        };
        Ok(Self {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or_default(),
            replicas,
            image: image(&spec, version),
            version,
            quota_bytes,
            progress_deadline,
            adopt: object.annotations().get(names::ADOPT).cloned(),
            lives,
            rotation_request: object.annotations().get(names::ROTATE_AUTHORITY).cloned(),
            deleting: object.metadata.deletion_timestamp.is_some(),
            guard_image: guard_image.to_owned(),
            spec,
        })
    }

    /// Whether connections are TLS.
    pub fn tls(&self) -> bool {
        match self.spec.tls.mode {
            TlsMode::OperatorManaged | TlsMode::Secrets => true,
            TlsMode::Disabled => false,
        }
    }

    /// The Secrets that the user brings, in mode Secrets.
    pub fn secrets(&self) -> Option<&TlsSecrets> {
        match self.spec.tls.mode {
            TlsMode::Secrets => self.spec.tls.secrets.as_ref(),
            TlsMode::OperatorManaged | TlsMode::Disabled => None,
        }
    }

    /// Secret with the applications' client certificate, if there is one.
    pub fn client_secret(&self) -> Option<String> {
        match self.spec.tls.mode {
            TlsMode::OperatorManaged => Some(names::client_certificate(&self.name)),
            TlsMode::Secrets => self.secrets().and_then(|secrets| secrets.client.clone()),
            TlsMode::Disabled => None,
        }
    }

    /// URL under which a member's peers know it.
    pub fn peer_url(&self, member: &str) -> String {
        url(self.tls(), &self.address(member), PEER_PORT)
    }

    /// The member of ours whom these peer URLs name: the member list says so even of one that never started.
    pub fn member_of(&self, peer_urls: &[String]) -> Option<String> {
        let [peer_url] = peer_urls else { return None };
        let name = peer_url.split("://").nth(1)?.split('.').next()?;
        names::serial(&self.name, name)?;
        (self.peer_url(name) == *peer_url).then(|| name.to_owned())
    }

    /// DNS name of a member.
    pub fn address(&self, member: &str) -> String {
        names::address(&self.namespace, &self.name, member)
    }

    /// `--auto-compaction-mode` and its retention.
    pub fn compaction(&self) -> Option<(&str, &str)> {
        let retention = self.spec.compaction.retention.as_str();
        match self.spec.compaction.mode {
            CompactionMode::Periodic => Some(("periodic", retention)),
            CompactionMode::Revision => Some(("revision", retention)),
            CompactionMode::Disabled => None,
        }
    }

    /// `--log-level`.
    pub fn log_level(&self) -> &'static str {
        match self.spec.log_level {
            LogLevel::Debug => "debug",
            LogLevel::Info => "info",
            LogLevel::Warn => "warn",
            LogLevel::Error => "error",
        }
    }
}

fn lives(spec: &EtcdClusterSpec) -> Result<Lives, crate::api::duration::InvalidDuration> {
    let rotation = &spec.tls.rotation;
    let of = |text: &str| {
        parse_duration(text).map(|life| SignedDuration::try_from(life).unwrap_or(LONGEST).min(LONGEST))
    };
    Ok(Lives {
        renew_before: of(&rotation.renew_before)?,
        leaf: of(&rotation.leaf_life)?,
        authority: of(&rotation.authority_life)?,
    })
}

fn resolved_version(object: &EtcdCluster) -> Result<Version, crate::etcd::version::InvalidVersion> {
    let latched = object.status.as_ref().and_then(|status| status.version.as_ref());
    match latched {
        Some(latched) if latched.requested == object.spec.version => Version::resolve(&latched.resolved),
        Some(_) | None => Version::resolve(&object.spec.version),
    }
}

fn image(spec: &EtcdClusterSpec, version: Version) -> String {
    let image = spec.image.clone().unwrap_or_default();
    let repository = image.repository.unwrap_or_else(|| ETCD_REPOSITORY.to_owned());
    match image.digest {
        Some(digest) => format!("{repository}@{digest}"),
        None => format!("{repository}:v{version}"),
    }
}
