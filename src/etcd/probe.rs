//! A handshake with a member and nothing after it: which certificate it serves, and whether it takes ours.
//!
//! In TLS 1.2, and only there, a server has judged the client's certificate when the handshake ends. etcd takes both.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::connect::{Address, ClientIdentity};

/// How long the TCP and TLS handshakes may take together.
const DEADLINE: Duration = Duration::from_secs(2);

/// How a handshake ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// The member took our certificate, and served this one (DER).
    Accepted(Vec<u8>),
    /// The member does not know the authority of our certificate.
    UnknownAuthority,
    /// Anything else: nothing was learnt.
    Failed(String),
}

/// One handshake.
pub async fn probe(address: &Address, identity: &ClientIdentity) -> Handshake {
    match tokio::time::timeout(DEADLINE, shake(address, identity)).await {
        Err(_) => Handshake::Failed(format!("no answer within {}s", DEADLINE.as_secs())),
        Ok(Ok(served)) => Handshake::Accepted(served),
        Ok(Err(error)) => failed(&error),
    }
}

fn failed(error: &std::io::Error) -> Handshake {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::AlertReceived(AlertDescription::UnknownCA)) => Handshake::UnknownAuthority,
        Some(_) | None => Handshake::Failed(error.to_string()),
    }
}

async fn shake(address: &Address, identity: &ClientIdentity) -> std::io::Result<Vec<u8>> {
    let config = config(identity).map_err(std::io::Error::other)?;
    let name = ServerName::try_from(address.name.clone()).map_err(std::io::Error::other)?;
    let tcp = TcpStream::connect(&address.dial).await?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let served = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    Ok(served.map(|leaf| leaf.to_vec()).unwrap_or_default())
}

fn config(identity: &ClientIdentity) -> Result<ClientConfig, Box<dyn std::error::Error + Send + Sync>> {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(&identity.authority) {
        roots.add(authority?)?;
    }
    let chain = CertificateDer::pem_slice_iter(&identity.certificate).collect::<Result<Vec<_>, _>>()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&identity.key)?)?;
    Ok(config)
}
