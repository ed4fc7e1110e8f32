//! Certificates of one cluster: an authority, one for its members, one for their clients.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

/// Files in one folder. etcd reads its certificate anew at every handshake, and the authority once.
pub struct Certificates {
    folder: PathBuf,
    addresses: Vec<IpAddr>,
    authority: Issuer<'static, KeyPair>,
}

/// What `--auth-token` takes: tokens that are signed with a key of their own, which this makes.
pub(crate) fn signed_tokens(folder: &Path, seconds: u32) -> String {
    let key = KeyPair::generate().unwrap();
    let (private, public) = (folder.join("token.key"), folder.join("token.pem"));
    fs::write(&private, key.serialize_pem()).unwrap();
    fs::write(&public, key.public_key_pem()).unwrap();
    let (private, public) = (private.display(), public.display());
    format!("jwt,priv-key={private},pub-key={public},sign-method=ES256,ttl={seconds}s")
}

impl Certificates {
    pub(crate) fn new(folder: &Path, addresses: &[IpAddr]) -> Self {
        fs::create_dir_all(folder).unwrap();
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "authority");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        fs::write(folder.join("ca.pem"), parameters.self_signed(&key).unwrap().pem()).unwrap();
        let authority = Issuer::new(parameters, key);
        let certificates = Self { folder: folder.to_owned(), addresses: addresses.to_vec(), authority };
        certificates.renew();
        certificates
    }

    /// Issues the members' and the clients' certificate in the place of what is there.
    pub fn renew(&self) {
        self.leaf("server", self.addresses.iter().copied().map(SanType::IpAddress).collect());
        self.leaf("client", Vec::new());
    }

    fn leaf(&self, name: &str, names: Vec<SanType>) {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.subject_alt_names = names;
        let key = KeyPair::generate().unwrap();
        self.write(&format!("{name}.pem"), &parameters.signed_by(&key, &self.authority).unwrap().pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.join(name), text).unwrap();
    }

    /// What a client needs: the authority, its certificate, its key.
    pub fn client(&self) -> [PathBuf; 3] {
        ["ca.pem", "client.pem", "client.key"].map(|name| self.folder.join(name))
    }

    pub(crate) fn server_flags(&self) -> [(&'static str, String); 4] {
        let file = |name: &str| self.folder.join(name).display().to_string();
        [
            ("cert-file", file("server.pem")),
            ("key-file", file("server.key")),
            ("trusted-ca-file", file("ca.pem")),
            ("client-cert-auth", "true".to_owned()),
        ]
    }
}
