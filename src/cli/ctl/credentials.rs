//! The client certificate, from its Secret into files that only this user can read.

use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use tempfile::TempDir;

use crate::cli::connect::Host;
use crate::cli::problem::{Problem, Request};

/// Keys of the Secret, and what etcdctl calls them.
const FILES: [(&str, &str); 3] =
    [("ca.crt", "ETCDCTL_CACERT"), ("tls.crt", "ETCDCTL_CERT"), ("tls.key", "ETCDCTL_KEY")];

/// Files with a client certificate; deleted when dropped.
#[derive(Debug)]
pub(super) struct Credentials {
    folder: TempDir,
}

impl Credentials {
    /// Reads the Secret of applications of `cluster`.
    pub(super) async fn fetch(host: &Host, cluster: &str, name: &str) -> anyhow::Result<Self> {
        let secrets: Api<Secret> = Api::namespaced(host.client.clone(), &host.namespace);
        let request =
            Request { verb: "get", resource: "secrets", name: Some(name), namespace: Some(&host.namespace) };
        let Some(secret) = host.call(request, secrets.get_opt(name)).await? else {
            return Err(Problem::Other(format!(
                "the Secret {name} with the client certificate does not exist in namespace {} (yet); see \
                 `kubectl quorate status {cluster} -n {0}`",
                host.namespace
            ))
            .into());
        };
        Self::store(&secret, name)
    }

    fn store(secret: &Secret, name: &str) -> anyhow::Result<Self> {
        let private = std::fs::Permissions::from_mode(0o700);
        let folder = tempfile::Builder::new()
            .prefix("quorate-ctl-")
            .permissions(private)
            .tempdir()
            .context("could not make a private folder for the client certificate")?;
        for (key, _) in FILES {
            let value = secret.data.as_ref().and_then(|data| data.get(key));
            let Some(ByteString(value)) = value.filter(|ByteString(value)| !value.is_empty()) else {
                return Err(Problem::Other(format!(
                    "the Secret {name} has no {key}; delete the Secret and the operator makes it again"
                ))
                .into());
            };
            write_private(&folder.path().join(key), value)
                .with_context(|| format!("could not store {key} for etcdctl"))?;
        }
        Ok(Self { folder })
    }

    /// What tells etcdctl where the files are.
    pub(super) fn environment(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        FILES.iter().map(|(key, variable)| (*variable, self.folder.path().join(key)))
    }
}

fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(keys: &[&str]) -> Secret {
        let data = keys.iter().map(|key| ((*key).to_owned(), ByteString(b"PEM".to_vec()))).collect();
        Secret { data: Some(data), ..Secret::default() }
    }

    #[test]
    fn files_are_private_and_go_with_the_value() {
        let credentials =
            Credentials::store(&secret(&["ca.crt", "tls.crt", "tls.key"]), "main-client").unwrap();
        let folder = credentials.folder.path().to_owned();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        for (_, path) in credentials.environment() {
            assert_eq!(mode(&path), 0o600);
            assert_eq!(std::fs::read(&path).unwrap(), b"PEM");
        }
        drop(credentials);
        assert!(!folder.exists());
    }

    #[test]
    fn an_incomplete_secret_is_named() {
        let error = Credentials::store(&secret(&["ca.crt", "tls.crt"]), "main-client").unwrap_err();
        assert!(error.to_string().contains("the Secret main-client has no tls.key"), "{error}");
    }
}
