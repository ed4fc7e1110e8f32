//! What the machine must have: installed where that is possible, else named in one sentence.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::finish;

/// The oldest Go that builds Kubernetes 1.36.
const GO: (u32, u32) = (1, 26);

/// Debian's packages, each with a file that shows that it is there.
const PACKAGES: &[(&str, &[&str])] = &[
    ("gcc", &["/usr/bin/gcc"]),
    ("libc6-dev", &["/usr/include/stdio.h"]),
    ("libseccomp-dev", &["/usr/include/seccomp.h"]),
    ("protobuf-compiler", &["/usr/bin/protoc"]),
    ("libprotobuf-dev", &["/usr/include/google/protobuf/descriptor.proto"]),
    ("iptables", &["/usr/sbin/iptables", "/sbin/iptables"]),
    ("conntrack", &["/usr/sbin/conntrack"]),
    ("iproute2", &["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"]),
    ("procps", &["/usr/sbin/sysctl", "/sbin/sysctl"]),
    ("util-linux", &["/usr/bin/nsenter"]),
    // promtool, which proves the alerts.
    ("prometheus", &["/usr/bin/promtool", "/usr/local/bin/promtool"]),
    ("busybox-static", &["/bin/busybox", "/usr/bin/busybox"]),
    ("ca-certificates", &["/etc/ssl/certs/ca-certificates.crt"]),
];

/// Installs or names what is missing.
pub(crate) fn ensure() -> Result<()> {
    let user = finish(Command::new("id").arg("-u"))?;
    if user.trim() != "0" {
        bail!(
            "this makes network namespaces, mounts and control groups, so it must run as root: use sudo, or a virtual machine"
        );
    }
    check_go()?;
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(_, files)| !files.iter().any(|file| Path::new(file).exists()))
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("this machine lacks what Debian calls {list}: install it with your system's package manager");
    }
    eprintln!("installing {list} with apt-get …");
    let apt =
        |words: &[&str]| finish(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(words));
    apt(&["update"])
        .and_then(|_| apt(&[&["install", "--yes", "--no-install-recommends"], missing.as_slice()].concat()))
        .with_context(|| {
            format!("cannot install {list}: run `apt-get update && apt-get install {list}` yourself")
        })?;
    Ok(())
}

fn check_go() -> Result<()> {
    let said = Command::new("go").arg("version").output();
    let Ok(said) = said else {
        bail!("there is no `go` on the PATH: install Go {}.{} or newer from https://go.dev/dl", GO.0, GO.1)
    };
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    if go_version(&said).is_none_or(|version| version < GO) {
        bail!(
            "{} is too old: Kubernetes 1.36 is built with Go {}.{} or newer; install it from https://go.dev/dl",
            said.trim(),
            GO.0,
            GO.1
        );
    }
    Ok(())
}

/// The version in `go version go1.26.8 linux/amd64`.
fn go_version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.split(' ').nth(2)?.strip_prefix("go")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::go_version;

    #[test]
    fn the_version_of_go_is_read() {
        assert_eq!(go_version("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert!(go_version("go version go1.9 linux/amd64") < Some((1, 26)));
        assert_eq!(go_version("command not found"), None);
    }
}
