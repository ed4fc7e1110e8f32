//! Images of one layer, made without Docker: nothing is pulled, they are loaded under the names of the manifests.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::process::{cargo, finish};
use crate::programs::{cache, checkout, hex, short};

/// The container that holds a Pod's network.
pub(crate) const PAUSE: &str = "local/pause:1";
const QUORATE: &str = "ghcr.io/quorate/quorate:v0.1.0";

/// What an image is made of.
struct Image<'a> {
    name: &'a str,
    entrypoint: &'a [&'a str],
    /// Where a file comes from, and its path in the image.
    files: Vec<(PathBuf, &'a str)>,
    /// Names in the image that are links to another.
    links: &'a [(&'a str, &'a str)],
}

/// The images that do not come from this checkout's code.
pub(crate) fn others(programs: &Path) -> Result<Vec<PathBuf>> {
    let wait_for_ever =
        ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done"];
    let mut images = vec![image(&Image {
        name: PAUSE,
        entrypoint: &wait_for_ever,
        files: vec![(PathBuf::from("/bin/busybox"), "bin/busybox")],
        links: &[("bin/sleep", "busybox")],
    })?];
    for (minor, release) in [("3.5", "v3.5.35"), ("3.6", "v3.6.16"), ("3.7", "v3.7.3")] {
        let folder = programs.join(format!("etcd-{minor}"));
        let files = [
            ("etcd", "usr/local/bin/etcd"),
            ("etcdctl", "usr/local/bin/etcdctl"),
            ("etcdutl", "usr/local/bin/etcdutl"),
        ];
        images.push(image(&Image {
            name: &format!("gcr.io/etcd-development/etcd:{release}"),
            entrypoint: &["/usr/local/bin/etcd"],
            files: files.into_iter().map(|(program, path)| (folder.join(program), path)).collect(),
            links: &[],
        })?);
    }
    Ok(images)
}

/// The image of this checkout: builds it first.
pub(crate) fn quorate() -> Result<PathBuf> {
    image(&Image {
        name: QUORATE,
        entrypoint: &["/usr/local/bin/quorate"],
        files: vec![
            (build("quorate")?, "usr/local/bin/quorate"),
            (build("quorate-guard")?, "usr/local/bin/quorate-guard"),
        ],
        links: &[],
    })
}

/// Builds a program of the workspace and returns where it is. The whole workspace with its tests is built, so that
/// features are those of the tests and nothing is compiled twice.
pub(crate) fn build(program: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command.current_dir(checkout()?);
    command.args([
        "build",
        "--locked",
        "--workspace",
        "--bins",
        "--tests",
        "--message-format=json-render-diagnostics",
    ]);
    let messages = finish(&mut command)?;
    let is_wanted = |message: &serde_json::Value| {
        let text = |path: &str| message.pointer(path).and_then(serde_json::Value::as_str);
        let test = message.pointer("/profile/test").and_then(serde_json::Value::as_bool);
        text("/target/name") == Some(program) && text("/target/kind/0") == Some("bin") && test == Some(false)
    };
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(is_wanted)
        .and_then(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)))
        .with_context(|| format!("cargo built no program {program}"))
}

/// Writes the image unless it is there; its file's name is the hash of what it is made of.
fn image(image: &Image) -> Result<PathBuf> {
    let folder = cache()?.join("images");
    fs::create_dir_all(&folder)?;
    let mut hash = Sha256::new();
    hash.update(format!("{} {:?} {:?}", image.name, image.entrypoint, image.links));
    for (from, to) in &image.files {
        hash.update(to);
        hash.update(digest(from)?);
    }
    let name = short(hash);
    let file = folder.join(format!("{name}.tar"));
    if !file.exists() {
        let unfinished = folder.join(format!("{name}.{}.unfinished", std::process::id()));
        write(image, &unfinished)?;
        fs::rename(&unfinished, &file)?;
    }
    Ok(file)
}

fn digest(path: &Path) -> Result<String> {
    let mut file =
        BufReader::new(File::open(path).with_context(|| format!("cannot read {}", path.display()))?);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(buffer.get(..count).unwrap_or_default());
    }
}

/// A docker archive: manifest, configuration, one layer.
fn write(image: &Image, archive: &Path) -> Result<()> {
    let layer = archive.with_extension("layer");
    let mut builder = tar::Builder::new(File::create(&layer)?);
    for directory in ["tmp", "bin", "usr", "usr/local", "usr/local/bin"] {
        let mode = if directory == "tmp" { 0o1777 } else { 0o755 };
        entry(&mut builder, directory, tar::EntryType::Directory, mode, 0, std::io::empty())?;
    }
    for (from, to) in &image.files {
        let file = File::open(from)?;
        let length = file.metadata()?.len();
        entry(&mut builder, to, tar::EntryType::Regular, 0o755, length, file)?;
    }
    for (name, target) in image.links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mtime(0);
        builder.append_link(&mut header, name, target)?;
    }
    builder.into_inner()?.flush()?;
    let layer_digest = digest(&layer)?;
    let configuration = json!({
        "architecture": architecture()?,
        "os": "linux",
        "config": {"Entrypoint": image.entrypoint, "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
    })
    .to_string();
    let configuration_name = format!("{}.json", hex(&Sha256::digest(&configuration)));
    let layer_name = format!("{layer_digest}/layer.tar");
    let manifest =
        json!([{"Config": configuration_name, "RepoTags": [image.name], "Layers": [layer_name]}]).to_string();
    let mut builder = tar::Builder::new(File::create(archive)?);
    for (name, text) in [(configuration_name.as_str(), &configuration), ("manifest.json", &manifest)] {
        entry(&mut builder, name, tar::EntryType::Regular, 0o644, text.len() as u64, text.as_bytes())?;
    }
    let file = File::open(&layer)?;
    let length = file.metadata()?.len();
    entry(&mut builder, &layer_name, tar::EntryType::Regular, 0o644, length, file)?;
    builder.into_inner()?.flush()?;
    fs::remove_file(layer)?;
    Ok(())
}

fn entry<W: Write>(
    builder: &mut tar::Builder<W>,
    name: &str,
    kind: tar::EntryType,
    mode: u32,
    size: u64,
    data: impl Read,
) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    builder.append_data(&mut header, name, data)?;
    Ok(())
}

/// As Go and image registries call it.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => {
            bail!("{other} is not an architecture that the test cluster was tried on; use amd64 or arm64")
        }
    }
}
