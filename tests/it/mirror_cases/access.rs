//! Who is let in: tokens that end, passwords and certificates that change.

use std::fs;
use std::time::Duration;

use etcd_client::Permission;
use quorate_pair::programs::PATIENCE;
use quorate_pair::{Etcd, Pair, Settings};
use tempfile::NamedTempFile;
use tokio::time::timeout;

use super::judge::judge;
use super::{Mirror, alike, level, pass};

/// Points of a new beginning at which a user is added: it is over after some thirty chunks.
const POINTS: u64 = 16;

/// A user of the mirror on one side, with no more than it needs, and the file that has its password.
pub(super) async fn user(etcd: &mut Etcd, permissions: Vec<Permission>) -> NamedTempFile {
    etcd.user("mirror", "first", permissions).await;
    etcd.enable_auth().await;
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), "first\n").unwrap();
    file
}

/// Flags of a mirror of `/a/` with a user on both sides.
pub(super) fn flags(source: &NamedTempFile, target: &NamedTempFile) -> [String; 5] {
    [
        "--prefix=/a/".to_owned(),
        "--source-user=mirror".to_owned(),
        format!("--source-password-file={}", source.path().display()),
        "--target-user=mirror".to_owned(),
        format!("--target-password-file={}", target.path().display()),
    ]
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
    let flags = flags(&source_password, &target_password);
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

/// Case 22: every new user ends the signed tokens that there are, and comes at every point of a new beginning: while the
/// mirror looks at the source, opens its watch, reads and writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signed_tokens_that_end_at_any_point_are_asked_for_anew() {
    let settings = || Settings::of("3.6").signed_tokens(2).flag("bcrypt-cost", 4);
    let mut pair = Pair::start(settings(), settings()).await;
    let recorded = [pair.source.etcd.record().await, pair.target.etcd.record().await];
    pair.source.etcd.fill("/a/k", 100, 10).await;
    let permissions =
        || ["/a/", "/__quorate/mirror/"].map(|prefix| Permission::read_write(prefix).with_prefix());
    let source_password = user(&mut pair.source.etcd, permissions().to_vec()).await;
    let target_password = user(&mut pair.target.etcd, permissions().to_vec()).await;
    let flags = flags(&source_password, &target_password);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut mirror = Mirror::start(&pair.source, &pair.target, &flags);
    level(&pair.source, &pair.target).await;
    let trap = pair.trap();
    for point in 0..POINTS {
        trap.set(point * 2);
        pair.source.cut();
        pair.source.etcd.put("/a/k00001", point.to_string()).await;
        timeout(PATIENCE, trap.sprung()).await.unwrap();
        for side in [&pair.source, &pair.target] {
            side.etcd.user(&format!("other{point}"), "x", Vec::new()).await;
        }
        trap.open();
        level(&pair.source, &pair.target).await;
    }
    let said = mirror.said();
    let refused = said.lines().filter(|line| line.contains("auth")).count();
    let watches = said.lines().filter(|line| line.contains("ended the watch")).count();
    println!("measured: tokens refused {refused} times, {watches} times at the opening of a watch");
    assert!(refused > 0, "no token was refused: {said}");
    assert!(mirror.is_running());
    assert!(mirror.metric("resyncs_total").await == 0.0);
    alike(&pair.source, "/a/", &pair.target, "/a/").await;
    let histories = (recorded[0].all(&pair.source.etcd).await, recorded[1].all(&pair.target.etcd).await);
    let mine = |key: &[u8]| key.starts_with(b"/a/");
    judge(&histories.0, &histories.1, |key| mine(key).then(|| key.to_vec()), mine);
}

/// Case 23.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_under_a_running_mirror() {
    let settings = || Settings::of("3.6").tls();
    let pair = Pair::start(settings(), settings()).await;
    let recorded = [pair.source.etcd.record().await, pair.target.etcd.record().await];
    pair.source.etcd.fill("/k", 100, 10).await;
    let mut mirror = Mirror::start(&pair.source, &pair.target, &[]);
    level(&pair.source, &pair.target).await;
    for side in [&pair.source, &pair.target] {
        side.etcd.certificates().unwrap().renew();
        pair.source.etcd.put("/before-the-cut", "1").await;
        level(&pair.source, &pair.target).await;
        for number in 0..20 {
            if number == 10 {
                side.cut();
            }
            pair.source.etcd.put("/around-the-cut", number.to_string()).await;
        }
        level(&pair.source, &pair.target).await;
    }
    assert!(mirror.is_running());
    assert!(mirror.metric("resyncs_total").await == 0.0);
    alike(&pair.source, "", &pair.target, "").await;
    let histories = (recorded[0].all(&pair.source.etcd).await, recorded[1].all(&pair.target.etcd).await);
    judge(&histories.0, &histories.1, |key| Some(key.to_vec()), |_| true);
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
