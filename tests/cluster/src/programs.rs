//! Kubernetes, containerd, etcd and the rest, built from the Go modules under `programs/`.
//!
//! Each module is built once, into a folder whose name is the hash of all that it is made from. It is built beside
//! and moved into place under a lock, so a half-built one is never used.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::process::finish;

/// A Go module of `programs/`, and what is built from it.
struct Module {
    /// Its folder, and the folder of `bin` that its programs appear in where that is not `bin` itself.
    name: &'static str,
    /// Whether its programs have a folder of their own.
    apart: bool,
    packages: &'static [&'static str],
    /// Flags of `go build`.
    flags: &'static [&'static str],
    /// Whether it needs C.
    c: bool,
}

const SMALL: &[&str] = &["-ldflags", "-s -w"];
/// kubectl and the kubelet complain about a binary that does not know its version.
const KUBERNETES: &[&str] = &[
    "-ldflags",
    "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36",
];
/// Without the seccomp tag runc starts no Pod that asks for RuntimeDefault.
const RUNC: &[&str] = &["-tags", "seccomp", "-ldflags", "-s -w"];

/// What fails soonest comes first.
const MODULES: &[Module] = &[
    Module {
        name: "runc",
        apart: false,
        packages: &["github.com/opencontainers/runc"],
        flags: RUNC,
        c: true,
    },
    Module {
        name: "cni",
        apart: true,
        packages: &[
            "github.com/containernetworking/plugins/plugins/ipam/host-local",
            "github.com/containernetworking/plugins/plugins/main/ptp",
            "github.com/containernetworking/plugins/plugins/main/loopback",
            "github.com/containernetworking/plugins/plugins/meta/portmap",
        ],
        flags: SMALL,
        c: false,
    },
    etcd("etcd-3.5"),
    etcd("etcd-3.6"),
    etcd("etcd-3.7"),
    Module {
        name: "containerd",
        apart: false,
        packages: &[
            "github.com/containerd/containerd/v2/cmd/containerd",
            "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            "github.com/containerd/containerd/v2/cmd/ctr",
        ],
        flags: SMALL,
        c: false,
    },
    Module {
        name: "kubernetes",
        apart: false,
        packages: &[
            "k8s.io/kubernetes/cmd/kube-apiserver",
            "k8s.io/kubernetes/cmd/kube-controller-manager",
            "k8s.io/kubernetes/cmd/kube-scheduler",
            "k8s.io/kubernetes/cmd/kube-proxy",
            "k8s.io/kubernetes/cmd/kubelet",
            "k8s.io/kubernetes/cmd/kubectl",
        ],
        flags: KUBERNETES,
        c: false,
    },
    // Behind Kubernetes, whose libraries it shares: Go has built most of it already.
    Module { name: "helm", apart: false, packages: &["helm.sh/helm/v4/cmd/helm"], flags: SMALL, c: false },
    Module { name: "coredns", apart: false, packages: &["."], flags: SMALL, c: false },
];

const fn etcd(name: &'static str) -> Module {
    Module {
        name,
        apart: true,
        packages: &["go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/etcdctl/v3", "go.etcd.io/etcd/etcdutl/v3"],
        flags: SMALL,
        c: false,
    }
}

/// Where everything that can be made again is kept, outside the checkout.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("QUORATE_CACHE") {
        return Ok(path.into());
    }
    let home = std::env::var_os("HOME")
        .context("neither QUORATE_CACHE nor HOME is set: where is the cache to be?")?;
    Ok(Path::new(&home).join(".cache/quorate"))
}

/// The checkout that this tool was built in.
pub(crate) fn checkout() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    here.canonicalize().with_context(|| format!("the checkout {} is gone", here.display()))
}

/// Builds what is missing; returns the folder with all programs.
pub(crate) fn ensure() -> Result<PathBuf> {
    let cache = cache()?;
    fs::create_dir_all(cache.join("programs"))?;
    let lock = File::create(cache.join("programs/.lock"))?;
    lock.lock().context("cannot lock the cache")?;
    let go = finish(Command::new("go").arg("version"))?;
    let built: Vec<PathBuf> =
        MODULES.iter().map(|module| build(&cache, module, &go)).collect::<Result<_>>()?;
    view(&cache, &built)
}

/// The folder of a module's programs.
fn build(cache: &Path, module: &Module, go: &str) -> Result<PathBuf> {
    let source = checkout()?.join("tests/cluster/programs").join(module.name);
    let key = key(&source, module, go)?;
    let folder = cache.join("programs").join(format!("{}-{key}", module.name));
    if folder.exists() {
        return Ok(folder);
    }
    let begun = Instant::now();
    let unfinished = folder.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    fs::create_dir_all(&unfinished)?;
    eprintln!("building {} …", module.name);
    let mut build = Command::new("go");
    build
        .current_dir(&source)
        .envs([("CGO_ENABLED", if module.c { "1" } else { "0" }), ("GOFLAGS", "-mod=mod"), ("GOWORK", "off")])
        .args(["build", "-trimpath"])
        .args(module.flags)
        // The slash makes it a folder: a single program would become a file of that name.
        .arg("-o")
        .arg(format!("{}/", unfinished.display()))
        .args(module.packages);
    finish(&mut build)?;
    let server = unfinished.join("server");
    if server.exists() {
        fs::rename(server, unfinished.join("etcd"))?;
    }
    fs::rename(&unfinished, &folder)?;
    eprintln!("built {} in {:.0} s", module.name, begun.elapsed().as_secs_f64());
    Ok(folder)
}

/// A hash of everything that the programs are made from.
fn key(source: &Path, module: &Module, go: &str) -> Result<String> {
    let mut hash = Sha256::new();
    let mut files: Vec<PathBuf> = fs::read_dir(source)?.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        hash.update(file.file_name().map(|name| name.as_encoded_bytes().to_vec()).unwrap_or_default());
        hash.update(fs::read(&file)?);
    }
    hash.update(format!("{:?} {:?} {} {go}", module.packages, module.flags, module.c));
    Ok(short(hash))
}

/// The first half of a hash, as a name.
pub(crate) fn short(hash: Sha256) -> String {
    hex(&hash.finalize()).chars().take(16).collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// One folder with links to all programs, put in place at once.
fn view(cache: &Path, built: &[PathBuf]) -> Result<PathBuf> {
    let mut hash = Sha256::new();
    for folder in built {
        hash.update(folder.as_os_str().as_encoded_bytes());
    }
    let view = cache.join(format!("bin-{}", short(hash)));
    if view.exists() {
        return Ok(view);
    }
    let unfinished = view.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    for (module, folder) in MODULES.iter().zip(built) {
        let place = if module.apart { unfinished.join(module.name) } else { unfinished.clone() };
        fs::create_dir_all(&place)?;
        for program in fs::read_dir(folder)?.flatten() {
            symlink(program.path(), place.join(program.file_name()))?;
        }
    }
    fs::rename(&unfinished, &view)?;
    Ok(view)
}
