//! What the Pod says: environment and command line, read once.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::identity::HexId;
use crate::wal::Position;

/// etcd's data directory in the volume.
pub const DATA: &str = "data";

/// Kubernetes' own default of `terminationGracePeriodSeconds`.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// Where the kubelet reads why a container ended.
const DEFAULT_TERMINATION_LOG: &str = "/dev/termination-log";

/// Reads one variable of the environment.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// UID of the EtcdCluster.
    pub cluster_uid: String,
    /// UID of a deleted EtcdCluster whose volumes this one adopts.
    pub adopt_uid: Option<String>,
    /// The member's name.
    pub member: String,
    /// Rises when the member is wiped in place.
    pub incarnation: u32,
    /// The expected cluster ID, once known.
    pub cluster_id: Option<HexId>,
    /// The expected member ID, once known.
    pub member_id: Option<HexId>,
    /// Whether an earlier Pod may have left data, so that they must be there.
    pub expect_stamp: bool,
    /// What the operator knows this member to have had.
    pub high_water: Option<Position>,
    /// Size of the leader's db, for the rule on free space.
    pub leader_db_bytes: Option<u64>,
    /// How long what a wiped member left is kept; for ever if nobody says.
    pub keep_old_data: Option<Duration>,
    /// The name under which peers dial the member.
    pub name: Option<OwnName>,
    /// The Pod's grace period.
    pub grace: Duration,
    /// The volume's root.
    pub volume: PathBuf,
    /// The Pod's emptyDir.
    pub state: PathBuf,
    /// etcd and its arguments.
    pub command: Vec<OsString>,
}

/// A DNS name and the address that it must resolve to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnName {
    /// The name, without a port.
    pub address: String,
    /// The Pod's address.
    pub pod_ip: IpAddr,
}

/// A variable or argument that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} {problem}")]
pub struct BadConfiguration {
    name: String,
    problem: String,
}

/// Where the termination message goes; known before anything else can fail.
pub fn termination_log(lookup: Lookup<'_>) -> PathBuf {
    path(lookup, "QUORATE_TERMINATION_LOG", DEFAULT_TERMINATION_LOG)
}

impl Config {
    /// Reads everything.
    pub fn read(lookup: Lookup<'_>, command: &[OsString]) -> Result<Self, BadConfiguration> {
        let volume = path(lookup, "QUORATE_VOLUME", "/var/lib/etcd");
        check_command(lookup, command, &volume.join(DATA))?;
        Ok(Self {
            cluster_uid: required(lookup, "QUORATE_CLUSTER_UID")?,
            adopt_uid: optional(lookup, "QUORATE_ADOPT_UID")?,
            member: required(lookup, "QUORATE_MEMBER")?,
            incarnation: required(lookup, "QUORATE_INCARNATION")?,
            cluster_id: optional(lookup, "QUORATE_CLUSTER_ID")?,
            member_id: optional(lookup, "QUORATE_MEMBER_ID")?,
            expect_stamp: required(lookup, "QUORATE_EXPECT_STAMP")?,
            high_water: high_water(lookup)?,
            leader_db_bytes: optional(lookup, "QUORATE_LEADER_DB_BYTES")?,
            keep_old_data: optional(lookup, "QUORATE_KEEP_OLD_DATA_SECONDS")?.map(Duration::from_secs),
            name: own_name(lookup)?,
            grace: optional(lookup, "QUORATE_GRACE_SECONDS")?.map_or(DEFAULT_GRACE, Duration::from_secs),
            state: path(lookup, "QUORATE_STATE", "/quorate"),
            volume,
            command: command.to_vec(),
        })
    }

    /// etcd's data directory.
    pub fn data(&self) -> PathBuf {
        self.volume.join(DATA)
    }
}

/// Everything proven about the volume is void if etcd keeps its data elsewhere.
fn check_command(lookup: Lookup<'_>, command: &[OsString], data: &Path) -> Result<(), BadConfiguration> {
    if command.is_empty() {
        return Err(bad("the command line", "has no etcd to start after `--`"));
    }
    let flags: Vec<_> = command.iter().filter_map(|argument| argument.to_str()).collect();
    let named = |flag: &str| {
        let matches = |argument: &&&str| {
            argument.starts_with('-') && argument.trim_start_matches('-').split('=').next() == Some(flag)
        };
        flags.iter().find(matches).copied()
    };
    for (flag, variable) in [("wal-dir", "ETCD_WAL_DIR"), ("config-file", "ETCD_CONFIG_FILE")] {
        if named(flag).is_some() || text(lookup, variable)?.is_some() {
            return Err(bad(
                &format!("--{flag}"),
                "must not be given: data would lie where the guard cannot check them",
            ));
        }
    }
    let given = match named("data-dir").map(|flag| flag.split_once('=')) {
        Some(Some((_, value))) => Some(value),
        Some(None) => {
            flags.iter().skip_while(|flag| flag.trim_start_matches('-') != "data-dir").nth(1).copied()
        }
        None => None,
    };
    if given.map(Path::new) == Some(data) {
        Ok(())
    } else {
        Err(bad("--data-dir", &format!("must be {}", data.display())))
    }
}

fn own_name(lookup: Lookup<'_>) -> Result<Option<OwnName>, BadConfiguration> {
    match (optional(lookup, "QUORATE_ADDRESS")?, optional(lookup, "QUORATE_POD_IP")?) {
        (Some(address), Some(pod_ip)) => Ok(Some(OwnName { address, pod_ip })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(bad("QUORATE_POD_IP", "is missing, but QUORATE_ADDRESS is given")),
        (None, Some(_)) => Err(bad("QUORATE_ADDRESS", "is missing, but QUORATE_POD_IP is given")),
    }
}

fn high_water(lookup: Lookup<'_>) -> Result<Option<Position>, BadConfiguration> {
    const NAME: &str = "QUORATE_HIGH_WATER";
    let Some(given) = text(lookup, NAME)? else { return Ok(None) };
    let number = |digits: &str| digits.parse::<u64>().ok();
    given
        .split_once(':')
        .and_then(|(term, index)| Some(Position { term: number(term)?, index: number(index)? }))
        .map(Some)
        .ok_or_else(|| bad(NAME, &format!("is `{given}`, not `<term>:<index>`")))
}

fn required<T: FromStr<Err: Display>>(lookup: Lookup<'_>, name: &str) -> Result<T, BadConfiguration> {
    optional(lookup, name)?.ok_or_else(|| bad(name, "is missing"))
}

fn optional<T: FromStr<Err: Display>>(lookup: Lookup<'_>, name: &str) -> Result<Option<T>, BadConfiguration> {
    let parse = |given: String| given.parse().map_err(|error| bad(name, &format!("is `{given}`: {error}")));
    text(lookup, name)?.map(parse).transpose()
}

/// An empty variable is an absent one: manifests cannot always leave one out.
fn text(lookup: Lookup<'_>, name: &str) -> Result<Option<String>, BadConfiguration> {
    match lookup(name).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(given)) => Ok(Some(given).filter(|given| !given.is_empty())),
        Some(Err(_)) => Err(bad(name, "is not UTF-8")),
    }
}

fn path(lookup: Lookup<'_>, name: &str, default: &str) -> PathBuf {
    lookup(name).filter(|given| given != OsStr::new("")).map_or_else(|| PathBuf::from(default), PathBuf::from)
}

fn bad(name: &str, problem: &str) -> BadConfiguration {
    BadConfiguration { name: name.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPLETE: [(&str, &str); 4] = [
        ("QUORATE_CLUSTER_UID", "u"),
        ("QUORATE_MEMBER", "main-0"),
        ("QUORATE_INCARNATION", "0"),
        ("QUORATE_EXPECT_STAMP", "false"),
    ];

    fn read(given: &[(&str, &str)], command: &[&str]) -> Result<Config, String> {
        let lookup = |name: &str| {
            let found = given.iter().chain(&COMPLETE).find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let command: Vec<_> = command.iter().map(OsString::from).collect();
        Config::read(&lookup, &command).map_err(|error| error.to_string())
    }

    #[test]
    fn four_variables_are_enough() {
        let config = read(&[], &["etcd", "--data-dir=/var/lib/etcd/data"]).unwrap();
        assert_eq!(config.volume, Path::new("/var/lib/etcd"));
        assert_eq!(config.state, Path::new("/quorate"));
        assert_eq!((config.high_water, config.name, config.grace), (None, None, DEFAULT_GRACE));
    }

    #[test]
    fn a_bad_value_is_named() {
        let command = ["etcd", "--data-dir", "/var/lib/etcd/data"];
        let cases = [
            (("QUORATE_CLUSTER_UID", ""), "QUORATE_CLUSTER_UID is missing"),
            (("QUORATE_INCARNATION", "-1"), "QUORATE_INCARNATION is `-1`: invalid digit found in string"),
            (
                ("QUORATE_EXPECT_STAMP", "yes"),
                "QUORATE_EXPECT_STAMP is `yes`: provided string was not `true` or `false`",
            ),
            (("QUORATE_HIGH_WATER", "7"), "QUORATE_HIGH_WATER is `7`, not `<term>:<index>`"),
            (
                ("QUORATE_MEMBER_ID", "0x1"),
                "QUORATE_MEMBER_ID is `0x1`: `0x1` is not an ID of 1 to 16 hexadecimal digits",
            ),
            (("QUORATE_ADDRESS", "main-0.x"), "QUORATE_POD_IP is missing, but QUORATE_ADDRESS is given"),
        ];
        for (change, sentence) in cases {
            assert_eq!(read(&[change], &command).map(drop), Err(sentence.to_owned()));
        }
    }

    #[test]
    fn etcd_must_keep_its_data_where_they_are_checked() {
        assert!(read(&[], &["etcd", "-data-dir", "/var/lib/etcd/data"]).is_ok());
        for command in [
            vec![],
            vec!["etcd"],
            vec!["etcd", "--data-dir=/tmp"],
            vec!["etcd", "--data-dir=/var/lib/etcd/data", "--wal-dir=/tmp"],
            vec!["etcd", "--data-dir=/var/lib/etcd/data", "--config-file", "x"],
        ] {
            assert!(read(&[], &command).is_err(), "{command:?}");
        }
        assert!(read(&[("ETCD_WAL_DIR", "/tmp")], &["etcd", "--data-dir=/var/lib/etcd/data"]).is_err());
    }
}
