//! `quorate-guard install DIRECTORY`: an init container copies this program to where the etcd container finds it.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The program's name in the directory.
const PROGRAM: &str = "quorate-guard";

/// This very program, also where `/proc` gives no path that can be opened by name (an image `FROM scratch`).
const SELF: &str = "/proc/self/exe";

/// The program could not be copied.
#[derive(Debug, thiserror::Error)]
#[error("could not install the guard as {path}")]
pub struct InstallError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Copies this program into `directory`, atomically and executable for everybody.
pub fn install(directory: &Path) -> Result<(), InstallError> {
    let path = directory.join(PROGRAM);
    copy(&path).map_err(|source| InstallError { path, source })
}

/// By rename, since a program that runs cannot be overwritten and a half-copied one must not be started.
fn copy(path: &Path) -> io::Result<()> {
    let draft = path.with_extension("tmp");
    let mut target = File::create(&draft)?;
    io::copy(&mut File::open(SELF)?, &mut target)?;
    target.set_permissions(Permissions::from_mode(0o755))?;
    target.sync_all()?;
    fs::rename(&draft, path)
}
