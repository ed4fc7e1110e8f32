//! What an agent is told: the file of `quorate mirror --config FILE`, as YAML.
//!
//! Separate from what the engine makes of it: this is the form in which the operator, or a person with a host of their
//! own, says it. Both sites are named, and `active` says which of them is the source; a switch of sites changes that
//! one word.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bytes of a fingerprint; it is written in hex digits.
const FINGERPRINT_BYTES: usize = 8;

/// Everything that an agent needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AgentConfig {
    /// Of all but the endpoints. An agent says it in its status, so that nobody takes what it does by an earlier file
    /// for what this one asks. Absent: it is reckoned.
    #[serde(default)]
    pub fingerprint: String,
    /// Namespace of the EtcdMirror, for metrics and logs; empty outside Kubernetes.
    #[serde(default)]
    pub namespace: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// The mirror's name inside etcd.
    pub id: String,
    /// Both sides.
    pub sites: [Site; 2],
    /// Name of the site that writes go to.
    pub active: String,
    /// The last term in which etcd's records and `active` named the same site, as far as whoever writes the file knows. Only
    /// a change of `active` after that asks for a switch: see [`heed`](super::heed).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreed_term: Option<u64>,
    /// By the names of the sites: prefixes that stand for each other. Empty: the whole keyspace.
    #[serde(default)]
    pub mappings: Vec<BTreeMap<String, String>>,
    /// Regular expressions of keys that are left alone.
    #[serde(default)]
    pub ignore: Vec<String>,
    /// Name of the site by whose keys they are matched; absent: the one that is active when the mirror begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore_site: Option<String>,
    /// Whether to copy.
    #[serde(default)]
    pub state: RunState,
    /// Whether a first sync may overwrite keys of the target that differ.
    #[serde(default)]
    pub overwrite: bool,
    /// Whether a first sync may delete keys that only the target has.
    #[serde(default)]
    pub prune: bool,
    /// What becomes of keys with a lease.
    #[serde(default)]
    pub leases: LeasePolicy,
    /// What becomes of others' writes to the mirrored part of the target.
    #[serde(default)]
    pub foreign_writes: ForeignWrites,
    /// How often both sides are compared; absent: only when asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
    /// How fast it may be.
    #[serde(default)]
    pub limits: Limits,
    /// How the old side's writers are kept from writing while sites are switched; absent: a switch is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
    /// What a person asks for once.
    #[serde(default)]
    pub requests: Requests,
}

/// One side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Site {
    /// Its name.
    pub name: String,
    /// Where it is dialled, and nowhere else. An agent that runs takes a changed list over.
    pub endpoints: Vec<String>,
    /// What it is dialled with.
    #[serde(default)]
    pub credentials: Credentials,
}

/// Names of files. An agent reads them again when they change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Credentials {
    /// Authorities of the servers, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority_file: Option<String>,
    /// Client certificate, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<String>,
    /// Its key, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
    /// Name of etcd's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_file: Option<String>,
    /// Its password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<String>,
}

/// Whether to copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// It copies.
    #[default]
    Running,
    /// It looks, and writes nothing.
    Paused,
}

/// What becomes of keys with a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeasePolicy {
    /// They are copied without it.
    #[default]
    Strip,
    /// They are not copied.
    Skip,
    /// They are copied, with leases of the same IDs, which live for as long as those of the active site.
    Recreate,
}

/// What becomes of others' writes to the mirrored part of the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ForeignWrites {
    /// They are told.
    #[default]
    Report,
    /// They are told, and a scan makes the target as the source is.
    Repair,
}

/// How both sides are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Verify {
    /// Time between the beginnings of two comparisons.
    pub every_seconds: u64,
}

/// How fast it may be; absent: as fast as both sides can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Limits {
    /// Keys a second that are written to the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys_per_second: Option<u64>,
    /// Bytes a second that are written to the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
}

/// How writers are kept from writing while sites are switched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Fence {
    /// A person says that they are stopped.
    Manual,
    /// READWRITE of these roles becomes READ on the old side, and is given back on the new one.
    Roles {
        /// Names of etcd's roles.
        roles: Vec<String>,
        /// How etcd's user root dials each site, by the site's name.
        root: BTreeMap<String, Credentials>,
    },
}

/// What a person asks for once: a word that was not there before is a request. To do it again is harmless.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Requests {
    /// Compare both sides now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<String>,
    /// Scan both sides and write the differences. If a plan waits for approval, only its hash approves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resync: Option<String>,
}

impl Credentials {
    /// Those of root at the same site: what is not said of root is the mirror's, the authority and, with a password, the
    /// certificate.
    #[must_use]
    pub fn of_root(&self, root: &Self) -> Self {
        let own = self.clone();
        let root = root.clone();
        let with_own = root.certificate_file.is_none() && root.user_file.is_some();
        let (certificate_file, key_file) = if with_own {
            (own.certificate_file, own.key_file)
        } else {
            (root.certificate_file, root.key_file)
        };
        Self {
            authority_file: root.authority_file.or(own.authority_file),
            certificate_file,
            key_file,
            user_file: root.user_file,
            password_file: root.password_file,
        }
    }
}

impl AgentConfig {
    /// The same, with its fingerprint: another one for every change of what is asked. Members come and go without one.
    #[must_use]
    pub fn fingerprinted(self) -> Self {
        let mut asked = self.clone();
        asked.fingerprint.clear();
        // Not asked, but known.
        asked.agreed_term = None;
        for site in &mut asked.sites {
            site.endpoints.clear();
        }
        Self { fingerprint: digest(&asked), ..self }
    }

    /// Of everything, endpoints included: another one for every change of the file.
    pub fn digest(&self) -> String {
        digest(self)
    }
}

fn digest(config: &AgentConfig) -> String {
    // Structs of strings and numbers: serde_json fails only for maps whose keys are no strings.
    let text = serde_json::to_string(config).unwrap_or_default();
    let hash = Sha256::digest(text.as_bytes());
    hash.iter().take(FINGERPRINT_BYTES).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn site(name: &str) -> Site {
        let file = |file: &str| Some(format!("/etc/quorate/sites/{name}/tls/{file}"));
        let credentials = Credentials {
            authority_file: file("ca.crt"),
            certificate_file: file("tls.crt"),
            key_file: file("tls.key"),
            ..Credentials::default()
        };
        Site { name: name.to_owned(), endpoints: vec![format!("https://{name}.example:2379")], credentials }
    }

    fn config() -> AgentConfig {
        let minimal = r#"{"fingerprint": "", "id": "default", "sites": [
            {"name": "a", "endpoints": []}, {"name": "b", "endpoints": []}], "active": "a"}"#;
        let config: AgentConfig = serde_json::from_str(minimal).unwrap();
        AgentConfig { sites: [site("eqiad"), site("codfw")], active: "eqiad".to_owned(), ..config }
    }

    #[test]
    fn the_file_can_be_read_by_a_person() {
        let fence = Fence::Roles {
            roles: vec!["writers".to_owned()],
            root: BTreeMap::from([("eqiad".to_owned(), Credentials::default())]),
        };
        let mapping =
            BTreeMap::from([("eqiad".to_owned(), "/a/".to_owned()), ("codfw".to_owned(), "/b/".to_owned())]);
        let config = AgentConfig {
            mappings: vec![mapping],
            ignore: vec!["/locks(/.*)?".to_owned()],
            verify: Some(Verify { every_seconds: 3600 }),
            fence: Some(fence),
            ..config().fingerprinted()
        };
        let text = serde_saphyr::to_string(&config).unwrap();
        expect![[r#"
            fingerprint: 16e4c3020199def7
            namespace: ""
            name: ""
            id: default
            sites:
            - name: eqiad
              endpoints:
              - https://eqiad.example:2379
              credentials:
                authorityFile: /etc/quorate/sites/eqiad/tls/ca.crt
                certificateFile: /etc/quorate/sites/eqiad/tls/tls.crt
                keyFile: /etc/quorate/sites/eqiad/tls/tls.key
            - name: codfw
              endpoints:
              - https://codfw.example:2379
              credentials:
                authorityFile: /etc/quorate/sites/codfw/tls/ca.crt
                certificateFile: /etc/quorate/sites/codfw/tls/tls.crt
                keyFile: /etc/quorate/sites/codfw/tls/tls.key
            active: eqiad
            mappings:
            - codfw: /b/
              eqiad: /a/
            ignore:
            - /locks(/.*)?
            state: Running
            overwrite: false
            prune: false
            leases: Strip
            foreignWrites: Report
            verify:
              everySeconds: 3600
            limits: {}
            fence:
              Roles:
                roles:
                - writers
                root:
                  eqiad: {}
            requests: {}
        "#]]
        .assert_eq(&text);
        assert_eq!(serde_saphyr::from_str::<AgentConfig>(&text).unwrap(), config);
    }

    #[test]
    fn everything_but_endpoints_is_another_fingerprint() {
        let before = config().fingerprinted();
        let mut moved = before.clone();
        moved.sites[0].endpoints.push("https://another.example:2379".to_owned());
        assert_eq!(moved.clone().fingerprinted().fingerprint, before.fingerprint);
        assert_ne!(moved.digest(), before.digest());
        let switched = AgentConfig { active: "codfw".to_owned(), ..before.clone() };
        let paused = AgentConfig { state: RunState::Paused, ..before.clone() };
        for changed in [switched, paused] {
            assert_ne!(changed.fingerprinted().fingerprint, before.fingerprint);
        }
    }

    #[test]
    fn a_misspelt_field_is_refused() {
        let text = serde_json::to_string(&config()).unwrap().replace("\"active\"", "\"activ\"");
        assert!(serde_json::from_str::<AgentConfig>(&text).is_err());
    }
}
