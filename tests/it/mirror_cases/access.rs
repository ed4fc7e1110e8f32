//! Who is let in: tokens that end, passwords and certificates that change.

use std::fs;
use std::time::Duration;

use etcd_client::Permission;
use quorate_pair::{Etcd, Pair, Settings};
use tempfile::NamedTempFile;

use super::{Mirror, alike, level, pass};

/// A user of the mirror on one side, with no more than it needs, and the file that has its password.
async fn user(etcd: &mut Etcd, permissions: Vec<Permission>) -> NamedTempFile {
    etcd.user("mirror", "first", permissions).await;
    etcd.enable_auth().await;
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), "first\n").unwrap();
    file
}

/// Case 22: tokens that end after two seconds, users that come, and a password that changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_end_and_passwords_change_without_an_end_of_the_mirror() {
    let settings = || Settings::of("3.6").flag("auth-token-ttl", 2);
    let mut pair = Pair::start(settings(), settings()).await;
    pair.source.etcd.fill("/a/k", 100, 10).await;
    let read = |prefix: &str| Permission::read(prefix).with_prefix();
    let write = |prefix: &str| Permission::read_write(prefix).with_prefix();
    let source_password = user(&mut pair.source.etcd, vec![read("/a/"), read("/__quorate/mirror/")]).await;
    let target_password = user(&mut pair.target.etcd, vec![write("/a/"), write("/__quorate/mirror/")]).await;
    let flags = [
        "--prefix=/a/".to_owned(),
        "--source-user=mirror".to_owned(),
        format!("--source-password-file={}", source_password.path().display()),
        "--target-user=mirror".to_owned(),
        format!("--target-password-file={}", target_password.path().display()),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut mirror = Mirror::start(&pair.source, &pair.target, &flags);
    alike(&pair.source, "/a/", &pair.target, "/a/").await;
    for number in 0..3 {
        pass(Duration::from_secs(3)).await;
        pair.source.etcd.user(&format!("other{number}"), "x", Vec::new()).await;
        pair.target.etcd.user(&format!("other{number}"), "x", Vec::new()).await;
        pair.source.etcd.put("/a/after", number.to_string()).await;
        alike(&pair.source, "/a/", &pair.target, "/a/").await;
    }
    for (side, file) in [(&pair.source, &source_password), (&pair.target, &target_password)] {
        side.client().await.user_change_password("mirror", "second").await.unwrap();
        fs::write(file.path(), "second\n").unwrap();
        side.cut();
        pair.source.etcd.put("/a/after", format!("{:?}", file.path())).await;
        alike(&pair.source, "/a/", &pair.target, "/a/").await;
    }
    assert!(mirror.is_running());
    assert!(mirror.metric("resyncs_total").await == 0.0);
}

/// Case 23.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_under_a_running_mirror() {
    let settings = || Settings::of("3.6").tls();
    let pair = Pair::start(settings(), settings()).await;
    pair.source.etcd.fill("/k", 100, 10).await;
    let mut mirror = Mirror::start(&pair.source, &pair.target, &[]);
    level(&pair.source, &pair.target).await;
    for side in [&pair.source, &pair.target] {
        side.etcd.certificates().unwrap().renew();
        pair.source.etcd.put("/before-the-cut", "1").await;
        level(&pair.source, &pair.target).await;
        side.cut();
        pair.source.etcd.put("/after-the-cut", "1").await;
        level(&pair.source, &pair.target).await;
    }
    assert!(mirror.is_running());
    assert!(mirror.metric("resyncs_total").await == 0.0);
    alike(&pair.source, "", &pair.target, "").await;
}

/// Case 23: an authority that the server's certificate is not of, or a user that does not exist, is said and waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_authority_is_said_and_can_be_cured() {
    let settings = || Settings::of("3.6").tls();
    let pair = Pair::start(settings(), settings()).await;
    pair.source.etcd.fill("/k", 100, 10).await;
    let [authority, ..] = pair.source.etcd.certificates().unwrap().client();
    let good = fs::read(&authority).unwrap();
    let [other, ..] = pair.target.etcd.certificates().unwrap().client();
    fs::write(&authority, fs::read(other).unwrap()).unwrap();
    let mut mirror = Mirror::start(&pair.source, &pair.target, &[]);
    mirror.says("no answer").await;
    assert!(mirror.is_running(), "it ended of it: {}", mirror.said());
    println!("{}", mirror.said());
    fs::write(&authority, good).unwrap();
    level(&pair.source, &pair.target).await;
}
