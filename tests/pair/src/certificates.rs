//! Certificates of one cluster: an authority, one for its members, one for their clients.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

/// Files in one folder, which etcd reads anew at every handshake.
pub struct Certificates {
    folder: PathBuf,
    addresses: Vec<IpAddr>,
}

impl Certificates {
    pub(crate) fn new(folder: &Path, addresses: &[IpAddr]) -> Self {
        fs::create_dir_all(folder).unwrap();
        let certificates = Self { folder: folder.to_owned(), addresses: addresses.to_vec() };
        certificates.issue();
        certificates
    }

    /// Issues everything, the authority too, in the place of what is there.
    pub fn issue(&self) {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "authority");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        self.write("ca.pem", &parameters.self_signed(&key).unwrap().pem());
        let issuer = Issuer::new(parameters, key);
        self.leaf("server", &issuer, self.addresses.iter().copied().map(SanType::IpAddress).collect());
        self.leaf("client", &issuer, Vec::new());
    }

    fn leaf(&self, name: &str, issuer: &Issuer<'_, KeyPair>, names: Vec<SanType>) {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.subject_alt_names = names;
        let key = KeyPair::generate().unwrap();
        self.write(&format!("{name}.pem"), &parameters.signed_by(&key, issuer).unwrap().pem());
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
