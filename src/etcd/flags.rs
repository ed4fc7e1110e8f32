//! etcd's command line for a member, per minor (`reliability.md` 4.4; etcd CHANGELOG-3.6, CHANGELOG-3.7).

use std::collections::BTreeMap;

use super::version::{Minor, Version};

/// Port of clients.
pub const CLIENT_PORT: u16 = 2379;
/// Port between members.
pub const PEER_PORT: u16 = 2380;
/// Port of metrics and probes, plain HTTP.
pub const METRICS_PORT: u16 = 2381;
/// etcd's data directory inside the member's volume.
pub const DATA_DIR: &str = "/var/lib/etcd/data";
/// Where the member's certificates are mounted.
pub const TLS_DIR: &str = "/etc/quorate/tls";

/// Whether a member without data founds a cluster or joins one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitialState {
    /// It founds one with the others of `initial_cluster`.
    New,
    /// It joins the one that the others of `initial_cluster` run.
    Existing,
}

/// What etcd's command line depends on.
#[derive(Clone, Debug)]
pub struct Flags<'a> {
    /// The member's name.
    pub name: &'a str,
    /// DNS name of the member.
    pub address: &'a str,
    /// Name and DNS name of every member of the first start, this one among them.
    pub initial_cluster: &'a [(String, String)],
    /// `new` or `existing`.
    pub initial_state: InitialState,
    /// `--initial-cluster-token`.
    pub token: &'a str,
    /// Whether connections are TLS.
    pub tls: bool,
    /// etcd's release.
    pub version: Version,
    /// `--quota-backend-bytes`.
    pub quota_bytes: u64,
    /// `--auto-compaction-mode` and `--auto-compaction-retention`; `None` compacts nothing.
    pub compaction: Option<(&'a str, &'a str)>,
    /// `--log-level`.
    pub log_level: &'a str,
    /// Whether its data are compared with its peers' when it starts.
    pub checked: bool,
    /// Further flags of the user's.
    pub extra: &'a BTreeMap<String, String>,
}

/// URL of a port of a member.
pub fn url(tls: bool, address: &str, port: u16) -> String {
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{address}:{port}")
}

impl Flags<'_> {
    /// The arguments, in the order in which a person would want to read them.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = self.identity();
        arguments.extend(self.listeners());
        if self.tls {
            arguments.extend(transport_security());
        }
        arguments.extend(self.limits());
        arguments.extend(safety(self.version.minor, self.checked));
        arguments.extend(self.extra.iter().map(|(name, value)| format!("--{name}={value}")));
        arguments
    }

    fn identity(&self) -> Vec<String> {
        let peers: Vec<String> = self
            .initial_cluster
            .iter()
            .map(|(name, address)| format!("{name}={}", url(self.tls, address, PEER_PORT)))
            .collect();
        let state = match self.initial_state {
            InitialState::New => "new",
            InitialState::Existing => "existing",
        };
        vec![
            format!("--name={}", self.name),
            format!("--data-dir={DATA_DIR}"),
            format!("--initial-cluster={}", peers.join(",")),
            format!("--initial-cluster-state={state}"),
            format!("--initial-cluster-token={}", self.token),
            format!("--initial-advertise-peer-urls={}", url(self.tls, self.address, PEER_PORT)),
            format!("--advertise-client-urls={}", url(self.tls, self.address, CLIENT_PORT)),
        ]
    }

    /// `[::]` also takes IPv4 connections.
    fn listeners(&self) -> Vec<String> {
        vec![
            format!("--listen-client-urls={}", url(self.tls, "[::]", CLIENT_PORT)),
            format!("--listen-peer-urls={}", url(self.tls, "[::]", PEER_PORT)),
            format!("--listen-metrics-urls={}", url(false, "[::]", METRICS_PORT)),
        ]
    }

    fn limits(&self) -> Vec<String> {
        let mut limits = vec![
            format!("--quota-backend-bytes={}", self.quota_bytes),
            format!("--log-level={}", self.log_level),
        ];
        if let Some((mode, retention)) = self.compaction {
            limits.push(format!("--auto-compaction-mode={mode}"));
            limits.push(format!("--auto-compaction-retention={retention}"));
        }
        limits
    }
}

fn transport_security() -> Vec<String> {
    vec![
        format!("--cert-file={TLS_DIR}/server.crt"),
        format!("--key-file={TLS_DIR}/server.key"),
        format!("--trusted-ca-file={TLS_DIR}/client-ca.crt"),
        "--client-cert-auth=true".to_owned(),
        format!("--peer-cert-file={TLS_DIR}/peer.crt"),
        format!("--peer-key-file={TLS_DIR}/peer.key"),
        format!("--peer-trusted-ca-file={TLS_DIR}/peer-ca.crt"),
        "--peer-client-cert-auth=true".to_owned(),
        "--tls-min-version=TLS1.2".to_owned(),
    ]
}

/// Strict reconfiguration checks and both corruption checks; two learners where the minor allows it.
fn safety(minor: Minor, checked: bool) -> Vec<String> {
    let checks = match minor {
        Minor::V3_5 => [
            format!("--experimental-initial-corrupt-check={checked}"),
            "--experimental-compact-hash-check-enabled=true".to_owned(),
        ],
        Minor::V3_6 | Minor::V3_7 => [
            format!("--feature-gates=InitialCorruptCheck={checked},CompactHashCheck=true"),
            "--max-learners=2".to_owned(),
        ],
    };
    ["--strict-reconfig-check=true".to_owned()].into_iter().chain(checks).collect()
}

/// Whether a command line has etcd compare its data with its peers' when it starts.
pub fn is_checked(arguments: &[String]) -> bool {
    let off = ["InitialCorruptCheck=false", "initial-corrupt-check=false"];
    !arguments.iter().any(|argument| off.iter().any(|off| argument.contains(off)))
}
