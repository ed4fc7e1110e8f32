//! The connection to the Kubernetes API: options of every reading command, and calls with a deadline.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use kube::config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError};

use super::problem::{Problem, Request, classify};
use crate::api::duration::parse_duration;

/// Options that say which Kubernetes cluster and namespace.
#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// Namespace; default: the kubeconfig context's, else `default`.
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Context of the kubeconfig.
    #[arg(long, value_name = "CONTEXT")]
    context: Option<String>,
    /// Kubeconfig file; default: what KUBECONFIG names, else ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// How long to wait for an answer of the Kubernetes API.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = positive)]
    timeout: Duration,
}

/// The Kubernetes cluster that the person means.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) client: kube::Client,
    /// Where unqualified names are looked for.
    pub(super) namespace: String,
    /// Of the API server, for messages.
    pub(super) address: String,
    /// For each request.
    pub(super) timeout: Duration,
}

impl Options {
    /// Reads the kubeconfig; no request is sent yet.
    pub(super) async fn open(&self) -> anyhow::Result<Host> {
        let mut config = self.config().await?;
        // One deadline, that of `Host::call`, so that a timeout is always reported as such.
        config.connect_timeout = None;
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let address = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = kube::Client::try_from(config).context("the kubeconfig cannot be used")?;
        Ok(Host { client, namespace, address, timeout: self.timeout })
    }

    async fn config(&self) -> Result<Config, Problem> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        if let Some(file) = &self.kubeconfig {
            let kubeconfig = Kubeconfig::read_from(file).map_err(|error| unusable(&error))?;
            return Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| unusable(&error));
        }
        match Config::from_kubeconfig(&options).await {
            Ok(config) => Ok(config),
            // Inside a Pod there is no file but a service account.
            Err(KubeconfigError::ReadConfig(..) | KubeconfigError::FindPath) if self.context.is_none() => {
                Config::incluster().map_err(|_| {
                    Problem::Usage("no kubeconfig was found; set KUBECONFIG or give --kubeconfig FILE".to_owned())
                })
            }
            Err(error) => Err(unusable(&error)),
        }
    }
}

fn unusable(error: &KubeconfigError) -> Problem {
    #[expect(clippy::wildcard_enum_match_arm, reason = "kube's enum depends on its features")]
    Problem::Usage(match error {
        KubeconfigError::LoadContext(name) if name.is_empty() => no_context(),
        KubeconfigError::CurrentContextNotSet => no_context(),
        KubeconfigError::LoadContext(name) => {
            format!("the kubeconfig has no context {name}; see `kubectl config get-contexts`")
        }
        KubeconfigError::ReadConfig(source, file) => {
            format!("the kubeconfig {} cannot be read: {source}", file.display())
        }
        // The lines after the first quote the file, and tokens with it.
        other => {
            let text = other.to_string();
            format!("the kubeconfig cannot be used: {}", text.lines().next().unwrap_or_default())
        }
    })
}

fn no_context() -> String {
    "the kubeconfig has no current context; give --context, or set one with `kubectl config use-context`".to_owned()
}

impl Host {
    /// Sends one request with the deadline and says what its failure means.
    pub(super) async fn call<T>(
        &self,
        request: Request<'_>,
        sent: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Problem> {
        match tokio::time::timeout(self.timeout, sent).await {
            Ok(answer) => answer.map_err(|error| classify(error, &request, &self.address)),
            Err(_) => Err(self.late()),
        }
    }

    /// The deadline passed.
    pub(super) fn late(&self) -> Problem {
        Problem::Timeout { address: self.address.clone(), seconds: self.timeout.as_secs_f64() }
    }
}

fn positive(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("it must be longer than zero".to_owned()),
        parsed => parsed.map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_a_duration_above_zero() {
        assert_eq!(positive("1m30s"), Ok(Duration::from_secs(90)));
        for wrong in ["", "10", "soon", "0s", "-3s"] {
            assert!(positive(wrong).is_err(), "{wrong} was taken");
        }
    }
}
