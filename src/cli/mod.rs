//! What was typed, turned into what it means: the only reader of arguments and environment.
//!
//! Separate because every other room takes its settings as values, so tests can run it without a process.
//! **Invariant:** nothing here decides about an etcd cluster; the words it prints come from `status`.

mod connect;
mod crds;
mod ctl;
mod etcdmirror;
mod explain;
mod health;
mod logging;
mod mirror;
mod operator;
mod problem;
mod replace;
mod status;
mod terminal;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use problem::Problem;

/// Exit codes, as the help of every subcommand shows them.
const EXIT_CODES: &str = "\
Exit codes: 0 healthy or done, 1 degraded, 2 unavailable or failed, 3 wrong usage, 4 forbidden, 5 timed out.";

/// Quorate runs etcd clusters on Kubernetes.
#[derive(Parser, Debug)]
#[command(name = "quorate", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
enum Command {
    /// Show how etcd clusters are, and what to do about it.
    #[command(after_help = EXIT_CODES)]
    Status(status::Arguments),
    /// Run etcdctl against a cluster, through a forwarded port and with the cluster's client certificate.
    #[command(after_help = "The exit code is etcdctl's own once etcdctl runs. ".to_owned() + EXIT_CODES)]
    Ctl(ctl::Arguments),
    /// Say in a line whether clusters are healthy, or any etcd's members.
    #[command(after_help = EXIT_CODES)]
    Health(health::Arguments),
    /// Replace a member: for another disk, node or zone, or because its data are bad.
    #[command(after_help = EXIT_CODES)]
    Replace(replace::Arguments),
    /// Print the custom resource definitions, for `kubectl apply --server-side -f -`.
    Crds(crds::Arguments),
    /// Keep a keyspace of one etcd exactly in another, on any host; or see to an EtcdMirror.
    #[command(after_help = mirror::EXIT_CODES)]
    Mirror(Box<mirror::Arguments>),
    /// Explain a reason that a condition, an event or `status` shows.
    Explain(explain::Arguments),
    /// Run the operator (inside Kubernetes).
    Operator(operator::Arguments),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// Healthy, or done.
    Done,
    /// Serving, with something wrong.
    Degraded,
    /// Not serving, or the command failed.
    Unavailable,
    /// The command line or its input was wrong.
    Usage,
    /// Kubernetes refused it.
    Forbidden,
    /// No answer in time.
    Timeout,
    /// What the program that we ran for the person ended with.
    Program(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Degraded => 1,
            Exit::Unavailable => 2,
            Exit::Usage => 3,
            Exit::Forbidden => 4,
            Exit::Timeout => 5,
            Exit::Program(code) => code,
        })
    }
}

/// Runs the program with the arguments of this process, the program's own name first.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let arguments = match parse(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // If the answer cannot even be printed, nobody is left to be told.
            let printed = error.print();
            drop(printed);
            return usage(&error).into();
        }
    };
    match run(arguments) {
        Ok(exit) => exit.into(),
        // The reader of our output left (`| head`): nobody is there to be told, and nothing failed.
        Err(error) if terminal::reader_left(&error) => Exit::Done.into(),
        Err(error) => {
            terminal::complain(&problem::sentences(&error));
            problem::exit(&error).into()
        }
    }
}

fn parse(arguments: Vec<OsString>) -> Result<Arguments, clap::Error> {
    let called = arguments.first().and_then(|program| Path::new(program).file_name());
    let shown =
        if called.is_some_and(|name| name == "kubectl-quorate") { "kubectl quorate" } else { "quorate" };
    let matches = Arguments::command().bin_name(shown).try_get_matches_from(arguments)?;
    Arguments::from_arg_matches(&matches)
}

/// Help and version are what was asked for; the rest of clap's answers is wrong usage.
fn usage(error: &clap::Error) -> Exit {
    if error.use_stderr() { Exit::Usage } else { Exit::Done }
}

fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    // Two providers in one program would make rustls panic at the first handshake; this names the one.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return Err(Problem::Other("a TLS provider was installed before ring".into()).into());
    }
    let runtime = tokio::runtime::Runtime::new().context("could not start the asynchronous runtime")?;
    runtime.block_on(async {
        match arguments.command {
            Command::Status(arguments) => status::execute(arguments).await,
            Command::Ctl(arguments) => ctl::execute(arguments).await,
            Command::Health(arguments) => health::execute(arguments).await,
            Command::Replace(arguments) => replace::execute(arguments).await,
            Command::Crds(arguments) => crds::execute(&arguments),
            Command::Mirror(arguments) => mirror::execute(*arguments).await,
            Command::Explain(arguments) => explain::execute(&arguments),
            Command::Operator(arguments) => operator::execute(arguments).await,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Arguments, clap::Error> {
        parse(line.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn as_a_plugin_the_usage_names_kubectl() {
        let plugin = parsed("/usr/local/bin/kubectl-quorate status --nonsense").unwrap_err().to_string();
        assert!(plugin.contains("Usage: kubectl quorate status"), "{plugin}");
        let plain = parsed("quorate status --nonsense").unwrap_err().to_string();
        assert!(plain.contains("Usage: quorate status"), "{plain}");
    }

    #[test]
    fn everything_after_two_dashes_is_etcdctls() {
        let arguments = parsed("quorate ctl main -n prod -- get --prefix / -w json").unwrap();
        let Command::Ctl(ctl) = arguments.command else { panic!("another command") };
        assert_eq!(ctl.rest, ["get", "--prefix", "/", "-w", "json"]);
    }

    #[test]
    fn a_name_and_all_namespaces_exclude_each_other() {
        assert!(parsed("quorate status main -A").is_err());
        assert!(parsed("quorate status -n prod -A").is_err());
        assert!(parsed("quorate status -A").is_ok());
    }

    #[test]
    fn wrong_usage_is_not_mistaken_for_unavailable() {
        assert_eq!(usage(&parsed("quorate statsu").unwrap_err()), Exit::Usage);
        assert_eq!(usage(&parsed("quorate --help").unwrap_err()), Exit::Done);
        assert_eq!(usage(&parsed("quorate status --timeout soon").unwrap_err()), Exit::Usage);
    }
}
