//! What can be typed after `mirror`, and what it means. Secrets are in files: a command line is seen by everybody.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::cli::etcdmirror;
use crate::cli::logging;
use crate::cli::problem::Problem;
use crate::mirror::config::{Config, Leases, Limits, MirrorId, Policy};
use crate::mirror::connect::{Access, UserName};
use crate::mirror::keyspace::{Mapping, Side};
use crate::mirror::machine::{Mode, Settings};
use crate::mirror::pace::Pace;

/// Flags whose meaning is in an agent's file.
const IN_THE_FILE: [&str; 27] = [
    "source",
    "source_ca",
    "source_cert",
    "source_key",
    "source_server_name",
    "source_user",
    "source_password_file",
    "target",
    "target_ca",
    "target_cert",
    "target_key",
    "target_server_name",
    "target_user",
    "target_password_file",
    "prefix",
    "target_prefix",
    "map",
    "ignore",
    "leases",
    "initial_sync",
    "prune",
    "once",
    "dry_run",
    "verify",
    "resync",
    "keys_per_second",
    "bytes_per_second",
];

/// Arguments of `mirror`.
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(in crate::cli) struct Arguments {
    #[command(subcommand)]
    pub(super) action: Option<Action>,
    /// Mirror between two sites as this file says, which is read again when it changes; it stands in place of the
    /// flags for sites and keys, and /status says how it is.
    #[arg(long, value_name = "FILE", conflicts_with_all = IN_THE_FILE)]
    pub(super) config: Option<PathBuf>,
    #[command(flatten)]
    pub(super) follow: Follow,
}

/// What can be done with a target alone, or with an EtcdMirror.
#[derive(clap::Subcommand, Debug)]
pub(super) enum Action {
    /// Make the target the active site: nothing is copied into it any more. Works whatever became of the source.
    Promote(OfTarget),
    /// Show how far the mirror into a target has come.
    Checkpoint(OfTarget),
    /// List what a site that came back after this target was promoted had of its own.
    Lost(OfTarget),
    /// Give the keys of a target free that a mirror has claimed which is no more; an agent of it that runs ends.
    Release(OfTarget),
    #[command(flatten)]
    EtcdMirror(etcdmirror::Verb),
}

/// A mirror, by its target.
#[derive(clap::Args, Debug)]
pub(super) struct OfTarget {
    #[command(flatten)]
    pub(super) target: Target,
    /// The mirror's name inside etcd.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(super) id: String,
}

/// How to reach the source.
#[derive(clap::Args, Debug)]
#[expect(clippy::struct_field_names, reason = "the names are those of the flags")]
pub(super) struct Source {
    /// URLs of the etcd to copy from, separated by commas; only these are dialled.
    #[arg(long, env = "QUORATE_MIRROR_SOURCE", value_name = "URLS", value_delimiter = ',', required = true)]
    source: Vec<String>,
    /// PEM file of the authority of the source's certificates.
    #[arg(long, env = "QUORATE_MIRROR_SOURCE_CA", value_name = "FILE")]
    source_ca: Option<PathBuf>,
    /// PEM file of our certificate for the source.
    #[arg(long, env = "QUORATE_MIRROR_SOURCE_CERT", value_name = "FILE", requires = "source_key")]
    source_cert: Option<PathBuf>,
    /// PEM file of its key.
    #[arg(long, env = "QUORATE_MIRROR_SOURCE_KEY", value_name = "FILE", requires = "source_cert")]
    source_key: Option<PathBuf>,
    /// Name that the source's certificates carry; default: that of the URL.
    #[arg(long, value_name = "NAME")]
    source_server_name: Option<String>,
    /// User of the source.
    #[arg(long, env = "QUORATE_MIRROR_SOURCE_USER", value_name = "NAME", requires = "source_password_file")]
    source_user: Option<String>,
    /// File that has the user's password.
    #[arg(long, env = "QUORATE_MIRROR_SOURCE_PASSWORD_FILE", value_name = "FILE", requires = "source_user")]
    source_password_file: Option<PathBuf>,
}

/// How to reach the target.
#[derive(clap::Args, Debug)]
#[expect(clippy::struct_field_names, reason = "the names are those of the flags")]
pub(super) struct Target {
    /// URLs of the etcd to copy to, separated by commas; only these are dialled.
    #[arg(long, env = "QUORATE_MIRROR_TARGET", value_name = "URLS", value_delimiter = ',', required = true)]
    target: Vec<String>,
    /// PEM file of the authority of the target's certificates.
    #[arg(long, env = "QUORATE_MIRROR_TARGET_CA", value_name = "FILE")]
    target_ca: Option<PathBuf>,
    /// PEM file of our certificate for the target.
    #[arg(long, env = "QUORATE_MIRROR_TARGET_CERT", value_name = "FILE", requires = "target_key")]
    target_cert: Option<PathBuf>,
    /// PEM file of its key.
    #[arg(long, env = "QUORATE_MIRROR_TARGET_KEY", value_name = "FILE", requires = "target_cert")]
    target_key: Option<PathBuf>,
    /// Name that the target's certificates carry; default: that of the URL.
    #[arg(long, value_name = "NAME")]
    target_server_name: Option<String>,
    /// User of the target.
    #[arg(long, env = "QUORATE_MIRROR_TARGET_USER", value_name = "NAME", requires = "target_password_file")]
    target_user: Option<String>,
    /// File that has the user's password.
    #[arg(long, env = "QUORATE_MIRROR_TARGET_PASSWORD_FILE", value_name = "FILE", requires = "target_user")]
    target_password_file: Option<PathBuf>,
}

/// Arguments of mirroring itself.
#[derive(clap::Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(super) struct Follow {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    target: Target,
    /// Mirror keys that begin so; default: all.
    #[arg(long, value_name = "PREFIX", conflicts_with = "map")]
    prefix: Option<String>,
    /// Front of their names in the target; default: the same as in the source.
    #[arg(long, value_name = "PREFIX", requires = "prefix")]
    target_prefix: Option<String>,
    /// Several of them: SOURCE=TARGET, or one word for both; may be repeated.
    #[arg(long, value_name = "PREFIX=PREFIX")]
    map: Vec<String>,
    /// Leave keys alone whose whole name matches this regular expression; may be repeated.
    #[arg(long, value_name = "REGEX")]
    ignore: Vec<String>,
    /// Which name of a key the patterns are matched with.
    #[arg(long, value_name = "SIDE", default_value = "source")]
    ignore_at: IgnoreAt,
    /// The mirror's name inside etcd: several mirrors into one target have different ones.
    #[arg(long, value_name = "NAME", default_value = "default")]
    id: String,
    /// What becomes of keys with a lease: copied without it, or not copied.
    #[arg(long, value_name = "POLICY", default_value = "strip")]
    leases: LeasePolicy,
    /// What the first sync does with keys of the target that differ.
    #[arg(long, value_name = "POLICY")]
    initial_sync: Option<InitialSync>,
    /// Let the first sync delete keys of the target that the source does not have.
    #[arg(long)]
    prune: bool,
    /// End when the target has what the source has now.
    #[arg(long, conflicts_with = "dry_run")]
    once: bool,
    /// Only count what a scan of both sides would do.
    #[arg(long)]
    dry_run: bool,
    /// Only compare both sides at the checkpoint; a mirror may go on meanwhile.
    #[arg(long, conflicts_with_all = ["once", "dry_run", "resync"])]
    pub(super) verify: bool,
    /// Scan both sides once; with the PLAN of a message, also where that needs leave.
    #[arg(long, value_name = "PLAN", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    resync: Option<String>,
    /// Write at most so many keys a second.
    #[arg(long, value_name = "KEYS", value_parser = clap::value_parser!(u64).range(1..))]
    keys_per_second: Option<u64>,
    /// Write at most so many bytes a second.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    bytes_per_second: Option<u64>,
    /// Address of /metrics, /livez, /readyz and /lag.
    #[arg(long, env = "QUORATE_MIRROR_LISTEN", value_name = "ADDRESS")]
    pub(super) listen: Option<SocketAddr>,
    /// Form of the log.
    #[arg(long, env = "QUORATE_LOG_FORMAT", value_name = "FORMAT", default_value = "auto")]
    pub(super) log_format: logging::Format,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum IgnoreAt {
    Source,
    Target,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum LeasePolicy {
    Strip,
    Skip,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum InitialSync {
    /// Stop, and say how many.
    Fail,
    /// Overwrite them.
    Overwrite,
}

impl Source {
    fn access(self) -> Access {
        Access {
            endpoints: self.source,
            authority: self.source_ca,
            certificate: self.source_cert.zip(self.source_key),
            server_name: self.source_server_name,
            user: self.source_user.map(UserName::Said).zip(self.source_password_file),
        }
    }
}

impl Target {
    pub(super) fn access(self) -> Result<Access, Problem> {
        checked(
            "--target",
            Access {
                endpoints: self.target,
                authority: self.target_ca,
                certificate: self.target_cert.zip(self.target_key),
                server_name: self.target_server_name,
                user: self.target_user.map(UserName::Said).zip(self.target_password_file),
            },
        )
    }
}

/// What was typed, as what it means.
pub(super) struct Meant {
    pub(super) settings: Settings,
    pub(super) source: Access,
    pub(super) target: Access,
    pub(super) pace: Pace,
}

impl Follow {
    pub(super) fn meant(self) -> Result<Meant, Problem> {
        let config = Config {
            mappings: mappings(self.prefix, self.target_prefix, &self.map),
            ignore: self.ignore,
            ignore_at: match self.ignore_at {
                IgnoreAt::Source => Side::Source,
                IgnoreAt::Target => Side::Target,
            },
            leases: match self.leases {
                LeasePolicy::Strip => Leases::Strip,
                LeasePolicy::Skip => Leases::Skip,
            },
        };
        let overwrite = matches!(self.initial_sync, Some(InitialSync::Overwrite));
        let said = self.initial_sync.is_some() || self.prune;
        let config = config.in_order();
        config.keyspace().map_err(|error| Problem::Usage(error.to_string()))?;
        let settings = Settings {
            id: mirror_id(&self.id)?,
            config,
            policy: said.then_some(Policy { overwrite, prune: self.prune }),
            limits: Limits::default().paced(self.keys_per_second),
            epoch: String::new(),
            resync: self.resync.is_some(),
            approved: self.resync.filter(|plan| !plan.is_empty()),
            mode: match (self.once, self.dry_run) {
                (_, true) => Mode::DryRun,
                (true, false) => Mode::Once,
                (false, false) => Mode::Follow,
            },
            ran: false,
            active: None,
        };
        let pace = Pace { keys: self.keys_per_second, bytes: self.bytes_per_second };
        let source = checked("--source", self.source.access())?;
        Ok(Meant { settings, source, target: self.target.access()?, pace })
    }
}

pub(super) fn mirror_id(id: &str) -> Result<MirrorId, Problem> {
    MirrorId::new(id).map_err(|error| Problem::Usage(error.to_string()))
}

fn mappings(prefix: Option<String>, target_prefix: Option<String>, map: &[String]) -> Vec<Mapping> {
    if map.is_empty() {
        let source = prefix.unwrap_or_default();
        let target = target_prefix.unwrap_or_else(|| source.clone());
        return vec![Mapping { source, target }];
    }
    let mapping = |text: &String| {
        let (source, target) = text.split_once('=').unwrap_or((text, text));
        Mapping { source: source.to_owned(), target: target.to_owned() }
    };
    map.iter().map(mapping).collect()
}

fn checked(flag: &str, access: Access) -> Result<Access, Problem> {
    let good = |url: &&String| url.starts_with("http://") || url.starts_with("https://");
    if let Some(bad) = access.endpoints.iter().find(|url| !good(url)) {
        return Err(Problem::Usage(format!(
            "{flag} {bad:?} is no URL: it begins with http:// or https://, as in https://etcd.example:2379"
        )));
    }
    let plain = access.endpoints.iter().find(|url| url.starts_with("http://"));
    if let (Some(plain), true) = (plain, access.authority.is_some() || access.certificate.is_some()) {
        return Err(Problem::Usage(format!(
            "{flag} {plain} is not encrypted, and certificates were given for it; write https://, or leave them out"
        )));
    }
    Ok(access)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        mirror: Arguments,
    }

    fn meant(line: &str) -> Result<Meant, String> {
        let words = ["mirror", "--source", "http://a:1", "--target", "http://b:1"].into_iter();
        let line =
            Line::try_parse_from(words.chain(line.split_whitespace())).map_err(|error| error.to_string())?;
        line.mirror.follow.meant().map_err(|problem| problem.to_string())
    }

    #[test]
    fn nothing_said_is_the_whole_keyspace() {
        let meant = meant("").unwrap();
        assert_eq!(meant.settings.config, Config::whole());
        assert_eq!((meant.settings.policy, meant.settings.mode), (None, Mode::Follow));
    }

    #[test]
    fn prefixes_and_maps_are_mappings() {
        let mappings = |line: &str| {
            let mappings = meant(line).unwrap().settings.config.mappings;
            let shown = mappings.iter().map(|mapping| format!("{}>{}", mapping.source, mapping.target));
            shown.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(mappings("--prefix /a/"), "/a/>/a/");
        assert_eq!(mappings("--prefix /a/ --target-prefix /b/"), "/a/>/b/");
        assert_eq!(mappings("--map /c/=/d/ --map /a/"), "/a/>/a/ /c/>/d/");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_to_do() {
        for (line, word) in [
            ("--map /a --map /ab", "overlap"),
            ("--ignore a(", "unclosed group"),
            ("--id A", "--id"),
            ("--source-ca x", "not encrypted"),
            ("--target-user root", "--target-password-file"),
            ("--target-prefix /b/", "--prefix"),
            ("--once --dry-run", "cannot be used with"),
        ] {
            let problem = meant(line).err().unwrap_or_default();
            assert!(problem.contains(word), "{line}: {problem}");
        }
        let line = Line::try_parse_from(["mirror", "--source", "a:1", "--target", "http://b:1"]).unwrap();
        assert!(line.mirror.follow.meant().err().unwrap().to_string().contains("is no URL"));
    }

    #[test]
    fn a_file_stands_in_place_of_flags() {
        let parsed = |line: &str| Line::try_parse_from(line.split_whitespace());
        let line = parsed("mirror --config a.yaml --listen 127.0.0.1:1").unwrap().mirror;
        assert_eq!(line.config, Some(PathBuf::from("a.yaml")));
        assert!(line.follow.listen.is_some());
        for both in ["--source http://a:1 --target http://b:1", "--prune", "--ignore a", "--source-ca x"] {
            assert!(parsed(&format!("mirror --config a.yaml {both}")).is_err(), "{both}");
        }
        assert!(parsed("mirror --source http://a:1").is_err(), "without a file both sides are needed");
    }

    #[test]
    fn a_plan_is_part_of_its_flag() {
        let of =
            |line: &str| meant(line).map(|meant| (meant.settings.resync, meant.settings.approved)).unwrap();
        assert_eq!(of("--resync"), (true, None));
        assert_eq!(of("--resync=abc"), (true, Some("abc".to_owned())));
    }
}
