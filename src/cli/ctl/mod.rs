//! `ctl`: etcdctl against a cluster that only Pods can reach.
//!
//! The private key goes from the Secret into a file that only this user can read, and is deleted at the end; it is
//! never an argument, which every user of this machine could see.

mod credentials;
mod forward;

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use rustix::process::{Pid, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::connect::{self, Host};
use super::problem::{Problem, Request};
use super::{Exit, status};
use crate::api::cluster::TlsMode;
use credentials::Credentials;
use forward::Forward;

/// Arguments of `ctl`.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Name of the EtcdCluster.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    connection: connect::Options,
    /// The etcdctl to run; default: the one in PATH.
    #[arg(long, env = "ETCDCTL", value_name = "FILE", default_value = "etcdctl")]
    etcdctl: PathBuf,
    /// What etcdctl is to do, after `--`, such as: -- endpoint status -w table
    #[arg(last = true, required = true, value_name = "ETCDCTL ARGUMENTS")]
    pub(super) rest: Vec<OsString>,
}

/// Flags that say where the cluster is: that is what `ctl` is for, and etcdctl refuses them beside its environment.
/// (`--cluster` would dial the members' own addresses, which only Pods can reach.)
const OWNED: [&str; 7] =
    ["--cluster", "--endpoints", "--cacert", "--cert", "--key", "--insecure-transport", "--discovery-srv"];

/// What etcdctl may take after Ctrl-C to give back a lock or a lease, before it is killed.
const FAREWELL: Duration = Duration::from_secs(10);

/// Runs etcdctl and ends as it does.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<Exit> {
    refuse_owned(&arguments.rest)?;
    let host = arguments.connection.open().await?;
    let cluster = status::understand(&status::get(&host, &arguments.name).await?)?;
    let credentials = match cluster.spec.tls.mode {
        TlsMode::OperatorManaged => {
            let secret = format!("{}-client", arguments.name);
            Some(Credentials::fetch(&host, &arguments.name, &secret).await?)
        }
        TlsMode::Secrets => {
            let secret = cluster.spec.tls.secrets.as_ref().and_then(|secrets| secrets.client.as_ref());
            let secret = secret.context(
                "spec.tls.secrets.client names no Secret with a client certificate; add one to the EtcdCluster",
            )?;
            Some(Credentials::fetch(&host, &arguments.name, secret).await?)
        }
        TlsMode::Disabled => None,
    };
    let pod = ready_member(&host, &arguments.name).await?;
    // Watched from here on, so that no signal ends us before the key's file is deleted.
    let signals = Signals::watch()?;
    let forward = Forward::open(&host, &pod).await?;
    let mut command = Command::new(&arguments.etcdctl);
    command.args(&arguments.rest).kill_on_drop(true);
    match &credentials {
        Some(credentials) => {
            command.env("ETCDCTL_ENDPOINTS", format!("https://127.0.0.1:{}", forward.port));
            command.envs(credentials.environment());
        }
        None => {
            command.env("ETCDCTL_ENDPOINTS", format!("http://127.0.0.1:{}", forward.port));
        }
    }
    let child = command.spawn().map_err(|error| not_started(&arguments.etcdctl, error))?;
    let ended = signals.attend(child).await?;
    Ok(Exit::Program(code(ended)))
}

fn refuse_owned(arguments: &[OsString]) -> Result<(), Problem> {
    let given = arguments.iter().filter_map(|argument| argument.to_str());
    let names = given.map(|argument| argument.split_once('=').map_or(argument, |(name, _)| name));
    match names.into_iter().find(|name| OWNED.contains(name)) {
        Some(name) => Err(Problem::Usage(format!(
            "leave out {name}: `kubectl quorate ctl` itself tells etcdctl which member to ask, through a forwarded \
             port, and with which certificate"
        ))),
        None => Ok(()),
    }
}

/// The exit code that a shell would see.
fn code(ended: ExitStatus) -> u8 {
    const SIGNALLED: i32 = 128;
    let code = ended.code().or_else(|| ended.signal().map(|signal| SIGNALLED + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

fn not_started(etcdctl: &Path, error: std::io::Error) -> anyhow::Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        let shown = etcdctl.display();
        return Problem::Other(format!(
            "there is no {shown} on this machine: unpack it from a release of etcd 3.5 or newer \
             (https://github.com/etcd-io/etcd/releases) into a directory of PATH, or name it with --etcdctl FILE"
        ))
        .into();
    }
    anyhow::Error::from(error).context(format!("could not run {}", etcdctl.display()))
}

/// A member's Pod that answers clients.
async fn ready_member(host: &Host, cluster: &str) -> anyhow::Result<String> {
    let selector = format!("quorate.dev/cluster={cluster},quorate.dev/role=voter");
    let pods: Api<Pod> = Api::namespaced(host.client.clone(), &host.namespace);
    let request = Request { verb: "list", resource: "pods", name: None, namespace: Some(&host.namespace) };
    let found = host.call(request, pods.list(&ListParams::default().labels(&selector))).await?;
    let ready = found.items.iter().find(|pod| is_ready(pod));
    ready.map(ResourceExt::name_any).ok_or_else(|| {
        let seen: Vec<String> = found.items.iter().map(ResourceExt::name_any).collect();
        let seen =
            if seen.is_empty() { "it has none yet".to_owned() } else { format!("seen: {}", seen.join(", ")) };
        Problem::Other(format!(
            "no voting member of {cluster} is ready ({seen}); see `kubectl quorate status {cluster} -n {}`",
            host.namespace
        ))
        .into()
    })
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions
        .is_some_and(|conditions| conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True"));
    ready && pod.metadata.deletion_timestamp.is_none()
}

/// The signals that would otherwise end us at once.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn watch() -> anyhow::Result<Self> {
        let watch = |kind| signal(kind).context("could not watch for signals");
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
            hangup: watch(SignalKind::hangup())?,
        })
    }

    /// Waits for the child and hands on what we are told. Ctrl-C in a terminal reaches it from there too, which
    /// changes nothing for it.
    async fn attend(mut self, mut child: Child) -> anyhow::Result<ExitStatus> {
        let lost = "could not wait for etcdctl";
        let told = tokio::select! {
            ended = child.wait() => return ended.context(lost),
            _ = self.interrupt.recv() => rustix::process::Signal::INT,
            _ = self.terminate.recv() => rustix::process::Signal::TERM,
            _ = self.hangup.recv() => rustix::process::Signal::HUP,
        };
        if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            // It has not been waited for, so the number is still its own, even if it has just ended.
            kill_process(id, told).context("could not pass the signal on to etcdctl")?;
        }
        if let Ok(ended) = tokio::time::timeout(FAREWELL, child.wait()).await {
            return ended.context(lost);
        }
        child.start_kill().context("could not stop etcdctl")?;
        child.wait().await.context(lost)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn flags_that_ctl_sets_itself_are_refused() {
        for line in ["get / --endpoints=http://x", "get / --endpoints http://x", "--key /tmp/k get /"] {
            assert!(matches!(refuse_owned(&words(line)), Err(Problem::Usage(_))), "{line}");
        }
        for line in ["get --keys-only --prefix /", "get --endpoints-are-not-a-flag", "put --key-like x"] {
            assert!(refuse_owned(&words(line)).is_ok(), "{line}");
        }
    }

    #[test]
    fn the_exit_code_is_the_programs() {
        assert_eq!(code(ExitStatus::from_raw(4 << 8)), 4);
        assert_eq!(code(ExitStatus::from_raw(9)), 137);
    }

    #[test]
    fn a_missing_etcdctl_says_where_to_get_it() {
        let error = not_started(Path::new("etcdctl"), std::io::Error::from(std::io::ErrorKind::NotFound));
        expect!["there is no etcdctl on this machine: unpack it from a release of etcd 3.5 or newer (https://github.com/etcd-io/etcd/releases) into a directory of PATH, or name it with --etcdctl FILE"].assert_eq(&error.to_string());
    }

    #[test]
    fn only_a_ready_pod_that_stays_is_chosen() {
        let pod = |status: &str, deleted: bool| -> Pod {
            let deletion = deleted.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "main-0", "deletionTimestamp": deletion},
                "status": {"conditions": [{"type": "Ready", "status": status}]},
            }))
            .unwrap()
        };
        assert!(is_ready(&pod("True", false)));
        assert!(!is_ready(&pod("False", false)));
        assert!(!is_ready(&pod("True", true)));
        assert!(!is_ready(&Pod::default()));
    }
}
