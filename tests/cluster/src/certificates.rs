//! Certificates and kubeconfigs of the test cluster.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;

use crate::state::Cluster;

/// A certificate to be made: file, common name, group, names and addresses.
#[derive(Default)]
struct Leaf<'a> {
    file: &'a str,
    common_name: &'a str,
    group: Option<&'a str>,
    names: &'a [&'a str],
    addresses: &'a [String],
}

/// Writes everything that the control plane and the nodes need.
pub(crate) fn make(cluster: &Cluster) -> Result<()> {
    fs::create_dir_all(cluster.path("pki"))?;
    let key = KeyPair::generate()?;
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, format!("{} test authority", cluster.name));
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    write(cluster, "ca.crt", &authority.self_signed(&key)?.pem())?;
    let issuer = Issuer::from_params(&authority, &key);

    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ];
    let addresses = [cluster.gateway(), cluster.first_service(), "127.0.0.1".to_owned()];
    let apiserver = Leaf {
        file: "apiserver",
        common_name: "kube-apiserver",
        names: &names,
        addresses: &addresses,
        ..Leaf::default()
    };
    issue(cluster, &issuer, &apiserver)?;
    issue(
        cluster,
        &issuer,
        &Leaf { file: "admin", common_name: "admin", group: Some("system:masters"), ..Leaf::default() },
    )?;
    for (file, common_name) in [
        ("controller-manager", "system:kube-controller-manager"),
        ("scheduler", "system:kube-scheduler"),
        ("proxy", "system:kube-proxy"),
        // Any key pair will do for the tokens of service accounts.
        ("service-accounts", "service-accounts"),
    ] {
        issue(cluster, &issuer, &Leaf { file, common_name, ..Leaf::default() })?;
    }
    for node in cluster.node_numbers() {
        let name = format!("n{node}");
        let common_name = format!("system:node:{name}");
        let addresses = [cluster.node_address(node)];
        let names = [name.as_str()];
        let leaf = Leaf {
            file: &name,
            common_name: &common_name,
            group: Some("system:nodes"),
            names: &names,
            addresses: &addresses,
        };
        issue(cluster, &issuer, &leaf)?;
    }
    fs::copy(cluster.path("pki/admin.kubeconfig"), cluster.kubeconfig())?;
    Ok(())
}

fn write(cluster: &Cluster, name: &str, text: &str) -> Result<()> {
    let path = cluster.path("pki").join(name);
    let mut file = fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

fn issue(cluster: &Cluster, issuer: &Issuer<&KeyPair>, leaf: &Leaf) -> Result<()> {
    let Leaf { file, common_name, group, names, addresses } = leaf;
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, *common_name);
    if let Some(group) = group {
        parameters.distinguished_name.push(DnType::OrganizationName, *group);
    }
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    parameters.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    for name in *names {
        parameters.subject_alt_names.push(SanType::DnsName((*name).try_into()?));
    }
    for address in *addresses {
        parameters.subject_alt_names.push(SanType::IpAddress(address.parse::<IpAddr>()?));
    }
    let key = KeyPair::generate()?;
    write(cluster, &format!("{file}.crt"), &parameters.signed_by(&key, issuer)?.pem())?;
    write(cluster, &format!("{file}.key"), &key.serialize_pem())?;
    write(cluster, &format!("{file}.pub"), &key.public_key_pem())?;
    write(cluster, &format!("{file}.kubeconfig"), &kubeconfig(cluster, file)?)
}

/// JSON is YAML.
fn kubeconfig(cluster: &Cluster, file: &str) -> Result<String> {
    let data =
        |name: &str| -> Result<String> { Ok(STANDARD.encode(fs::read(cluster.path("pki").join(name))?)) };
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster.name, "cluster": {
            "server": format!("https://{}:6443", cluster.gateway()),
            "certificate-authority-data": data("ca.crt")?,
        }}],
        "users": [{"name": file, "user": {
            "client-certificate-data": data(&format!("{file}.crt"))?,
            "client-key-data": data(&format!("{file}.key"))?,
        }}],
        "contexts": [{"name": cluster.name, "context": {"cluster": cluster.name, "user": file}}],
        "current-context": cluster.name,
    });
    Ok(kubeconfig.to_string())
}
