//! Connections to one side: one client an endpoint, and only to endpoints that were given.
//!
//! Files are read anew for every connection, so certificates and passwords that were renewed are used without a
//! restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, GetOptions, Identity, TlsOptions};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::OnceCell;

use super::keyspace::OWN_KEYS;
use crate::etcd::survey::words;

/// How long the TCP and TLS handshakes may take together, and a login after them.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// A ping this often. etcd closes connections of those who ping more often than every 5 s, or while nothing is asked.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long the answer to a ping may take.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How to reach one side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// URLs. Advertised ones are never dialled.
    pub endpoints: Vec<String>,
    /// PEM of the authority that signed the servers' certificates.
    pub authority: Option<PathBuf>,
    /// PEM of our certificate and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The name that the servers' certificates must carry, if not that of the URL.
    pub server_name: Option<String>,
    /// Name, and the file that has the password.
    pub user: Option<(UserName, PathBuf)>,
}

/// The name of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserName {
    /// As it is.
    Said(String),
    /// In this file.
    File(PathBuf),
}

/// A connection could not be made.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct ConnectError(pub String);

/// A connection that is made when it is first needed, by whoever needs it first.
#[derive(Clone, Default)]
pub struct Connection(Arc<OnceCell<Client>>);

impl Connection {
    /// The client.
    pub async fn client(&self, access: &Access, turn: usize) -> Result<Client, ConnectError> {
        self.0.get_or_try_init(async || connect(access, turn).await).await.cloned()
    }
}

/// A client of whichever endpoint is the first to answer with quorum, for what is done once: a member that is down does
/// not stand in the way of a promotion.
pub async fn reach(access: &Access) -> Result<Client, ConnectError> {
    let mut dials: FuturesUnordered<_> =
        (0..access.endpoints.len()).map(|turn| answering(access, turn)).collect();
    let mut problems = Vec::new();
    while let Some(dialled) = dials.next().await {
        match dialled {
            Ok(client) => return Ok(client),
            Err(ConnectError(problem)) => problems.push(problem),
        }
    }
    Err(ConnectError(problems.join("; ")))
}

/// A client of an endpoint that has a leader and a quorum behind it.
async fn answering(access: &Access, turn: usize) -> Result<Client, ConnectError> {
    let client = connect(access, turn).await?;
    let mut kv = client.kv_client();
    let read = kv.get(OWN_KEYS, Some(GetOptions::new().with_keys_only()));
    match tokio::time::timeout(CONNECT_DEADLINE, read).await {
        Ok(Ok(_)) => Ok(client),
        // Permissions are looked at behind the quorum.
        Ok(Err(Error::GRpcStatus(status))) if status.message().contains("permission denied") => Ok(client),
        Ok(Err(error)) => Err(ConnectError(told(access, turn, &error))),
        Err(_) => {
            let late = Error::Internal(format!("no answer within {}s", CONNECT_DEADLINE.as_secs()));
            Err(ConnectError(told(access, turn, &late)))
        }
    }
}

/// Connects to the endpoint whose turn it is.
async fn connect(access: &Access, turn: usize) -> Result<Client, ConnectError> {
    let Some(endpoint) = access.endpoints.get(turn % access.endpoints.len().max(1)) else {
        return Err(ConnectError("no endpoint was given".to_owned()));
    };
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CONNECT_DEADLINE)
        .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_TIMEOUT)
        .with_keep_alive_while_idle(false)
        .with_require_leader(true);
    if let Some((user, file)) = &access.user {
        let name = match user {
            UserName::Said(name) => name.clone(),
            UserName::File(file) => line(file).await?,
        };
        options = options.with_user(name, line(file).await?);
        options = options.with_auto_token_refresh(true);
    }
    if let Some(tls) = tls(access, endpoint).await? {
        options = options.with_tls(tls);
    }
    match tokio::time::timeout(CONNECT_DEADLINE, Client::connect([endpoint], Some(options))).await {
        Err(_) => {
            Err(ConnectError(format!("{endpoint}: no connection within {}s", CONNECT_DEADLINE.as_secs())))
        }
        Ok(Err(error)) => Err(ConnectError(format!("{endpoint}: {}", words(&error)))),
        Ok(Ok(client)) => Ok(client),
    }
}

async fn tls(access: &Access, endpoint: &str) -> Result<Option<TlsOptions>, ConnectError> {
    if !endpoint.starts_with("https://") {
        return Ok(None);
    }
    let mut tls = TlsOptions::new();
    if let Some(name) = &access.server_name {
        tls = tls.domain_name(name);
    }
    if let Some(file) = &access.authority {
        tls = tls.ca_certificate(Certificate::from_pem(read(file).await?));
    }
    if let Some((certificate, key)) = &access.certificate {
        tls = tls.identity(Identity::from_pem(read(certificate).await?, read(key).await?));
    }
    Ok(Some(tls))
}

/// What a file holds, without the end of its line.
async fn line(file: &Path) -> Result<String, ConnectError> {
    Ok(String::from_utf8_lossy(&read(file).await?).trim_end().to_owned())
}

async fn read(file: &Path) -> Result<Vec<u8>, ConnectError> {
    let shown = file.display().to_string();
    let file = file.to_owned();
    let read = tokio::task::spawn_blocking(move || std::fs::read(file)).await;
    match read {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(ConnectError(format!("{shown}: {error}"))),
        Err(error) => Err(ConnectError(format!("{shown}: {error}"))),
    }
}

/// What went wrong, in a line that names the endpoint.
pub(super) fn told(access: &Access, turn: usize, error: &Error) -> String {
    let endpoint = access.endpoints.get(turn % access.endpoints.len().max(1));
    format!("{}: {}", endpoint.map_or("", String::as_str), words(error))
}

/// What went wrong with a client that [`reach`] gave.
pub(super) fn told_of(access: &Access, error: &Error) -> String {
    format!("{}: {}", access.endpoints.join(","), words(error))
}
