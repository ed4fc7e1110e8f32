//! etcd, apiserver, controller manager, scheduler and DNS, as processes of the host.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{find, kill, run, start, tail, wait};
use crate::state::Cluster;

/// A cold disk and two cores: the apiserver has never needed half of this.
const DEADLINE: Duration = Duration::from_secs(90);

/// Starts all of it.
pub(crate) fn up(cluster: &Cluster, programs: &Path) -> Result<()> {
    etcd(cluster, programs)?;
    apiserver(cluster, programs)?;
    // Before the apiserver is ready their rights do not exist, and they would end.
    for program in ["controller-manager", "scheduler"] {
        let mut command = Command::new(programs.join(format!("kube-{program}")));
        let kubeconfig = cluster.path(&format!("pki/{program}.kubeconfig"));
        for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
            command.arg(format!("--{flag}={}", kubeconfig.display()));
        }
        command.args(["--leader-elect=false", &format!("--bind-address={}", cluster.gateway())]);
        if program == "controller-manager" {
            command
                .arg(format!("--root-ca-file={}", cluster.path("pki/ca.crt").display()))
                .arg(format!(
                    "--service-account-private-key-file={}",
                    cluster.path("pki/service-accounts.key").display()
                ))
                .args(["--use-service-account-credentials", "--node-monitor-grace-period=20s"]);
        }
        start(&cluster.name, &cluster.log(program), &mut command)?;
    }
    dns(cluster, programs)
}

fn etcd(cluster: &Cluster, programs: &Path) -> Result<()> {
    let url = |port: u16| format!("http://{}:{port}", cluster.gateway());
    let mut command = Command::new(programs.join("etcd-3.6/etcd"));
    command
        .arg(format!("--data-dir={}", cluster.path("etcd").display()))
        .arg(format!("--listen-client-urls={}", url(2379)))
        .arg(format!("--advertise-client-urls={}", url(2379)))
        .arg(format!("--listen-peer-urls={}", url(2380)))
        .arg(format!("--initial-advertise-peer-urls={}", url(2380)))
        .arg(format!("--initial-cluster=default={}", url(2380)))
        .arg("--unsafe-no-fsync");
    start(&cluster.name, &cluster.log("etcd"), &mut command)
}

/// Starts the apiserver and waits until it is ready.
pub(crate) fn apiserver(cluster: &Cluster, programs: &Path) -> Result<()> {
    let pki = |name: &str| cluster.path("pki").join(name).display().to_string();
    let policy = cluster.path("audit.yaml");
    fs::write(&policy, AUDIT_POLICY)?;
    let mut command = Command::new(programs.join("kube-apiserver"));
    for (flag, value) in [
        ("etcd-servers", format!("http://{}:2379", cluster.gateway())),
        ("advertise-address", cluster.gateway()),
        ("bind-address", cluster.gateway()),
        ("secure-port", "6443".to_owned()),
        ("service-cluster-ip-range", cluster.service_network()),
        ("client-ca-file", pki("ca.crt")),
        ("tls-cert-file", pki("apiserver.crt")),
        ("tls-private-key-file", pki("apiserver.key")),
        ("service-account-key-file", pki("service-accounts.pub")),
        ("service-account-signing-key-file", pki("service-accounts.key")),
        ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
        ("kubelet-client-certificate", pki("admin.crt")),
        ("kubelet-client-key", pki("admin.key")),
        ("kubelet-preferred-address-types", "InternalIP".to_owned()),
        ("authorization-mode", "Node,RBAC".to_owned()),
        // The second one as on OpenShift: it asks for rights that nothing else asks for.
        ("enable-admission-plugins", "NodeRestriction,OwnerReferencesPermissionEnforcement".to_owned()),
        ("allow-privileged", "true".to_owned()),
        ("audit-policy-file", policy.display().to_string()),
        ("audit-log-path", cluster.path("log/audit.log").display().to_string()),
    ] {
        command.arg(format!("--{flag}={value}"));
    }
    start(&cluster.name, &cluster.log("apiserver"), &mut command)?;
    wait("the apiserver is ready", DEADLINE, || {
        Ok(kubectl(cluster, programs, &["get", "--raw", "/readyz"]).ok())
    })
    .with_context(|| tail(&cluster.log("apiserver")))?;
    Ok(())
}

/// SIGKILL: on SIGTERM the apiserver takes a minute.
pub(crate) fn stop_apiserver(cluster: &Cluster) -> Result<()> {
    kill(|| find(&cluster.name, "kube-apiserver"))
}

/// Who wrote what, and what the operator read, without contents.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    verbs: [create, update, patch, delete, deletecollection]
  - level: Metadata
    users: [\"system:serviceaccount:quorate-system:quorate-operator\"]
  - level: None
";

/// Only the plugins that are built in; nothing is cached for long, since Pods come and go.
fn dns(cluster: &Cluster, programs: &Path) -> Result<()> {
    let file = cluster.path("Corefile");
    let text = COREFILE
        .replace("GATEWAY", &cluster.gateway())
        .replace("KUBECONFIG", &cluster.kubeconfig().display().to_string())
        .replace("CONTEXT", &cluster.name);
    fs::write(&file, text)?;
    start(
        &cluster.name,
        &cluster.log("coredns"),
        Command::new(programs.join("coredns")).arg("-conf").arg(&file),
    )
}

const COREFILE: &str = "\
.:53 {
  bind GATEWAY
  errors
  kubernetes cluster.local in-addr.arpa {
    kubeconfig KUBECONFIG CONTEXT
    ttl 5
  }
  cache 5 {
    denial 1
    disable success cluster.local
    disable denial cluster.local
  }
}
";

/// kubectl on this cluster.
pub(crate) fn kubectl(cluster: &Cluster, programs: &Path, words: &[&str]) -> Result<String> {
    let program = programs.join("kubectl").display().to_string();
    let kubeconfig = format!("--kubeconfig={}", cluster.kubeconfig().display());
    run(&[&[program.as_str(), kubeconfig.as_str(), "--request-timeout=10s"], words].concat())
}

/// Applies manifests.
pub(crate) fn apply(cluster: &Cluster, programs: &Path, name: &str, manifests: &str) -> Result<()> {
    let file = cluster.path(name);
    fs::write(&file, manifests)?;
    kubectl(
        cluster,
        programs,
        &["apply", "--server-side", "--force-conflicts", "-f", &file.display().to_string()],
    )?;
    Ok(())
}
