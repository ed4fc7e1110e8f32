//! Connections to single members.
//!
//! A member is dialled at its Pod's address, with its DNS name as the name that its certificate must carry, so
//! that neither DNS nor a readiness gate can blind the operator.

use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};

/// How long the TCP and TLS handshakes may take together.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// PEM files of a client; never logged, so it has no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The authority that signed the members' server certificates.
    pub authority: Vec<u8>,
    /// The client's certificate.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
}

/// Where a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `host:port` to dial.
    pub dial: String,
    /// DNS name that the certificate must carry.
    pub name: String,
}

/// A member could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No answer in time.
    #[error("no connection to {0} within 2s")]
    Deadline(String),
    /// Refused, or the handshake failed.
    #[error("cannot connect to {dial}")]
    Refused {
        /// What was dialled.
        dial: String,
        /// Why.
        source: etcd_client::Error,
    },
}

/// A client that speaks to the one member at `address`.
pub async fn connect(address: &Address, identity: Option<&ClientIdentity>) -> Result<Client, ConnectError> {
    let mut options = ConnectOptions::new().with_connect_timeout(CONNECT_DEADLINE);
    let scheme = if identity.is_some() { "https" } else { "http" };
    if let Some(identity) = identity {
        let tls = TlsOptions::new()
            .domain_name(&address.name)
            .ca_certificate(Certificate::from_pem(&identity.authority))
            .identity(Identity::from_pem(&identity.certificate, &identity.key));
        options = options.with_tls(tls);
    }
    let url = format!("{scheme}://{}", address.dial);
    match tokio::time::timeout(CONNECT_DEADLINE, Client::connect([url], Some(options))).await {
        Err(_) => Err(ConnectError::Deadline(address.dial.clone())),
        Ok(Err(source)) => Err(ConnectError::Refused { dial: address.dial.clone(), source }),
        Ok(Ok(client)) => Ok(client),
    }
}
