//! A cluster of real etcds of one minor, on loopback.

use std::fmt::Display;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, Permission, TlsOptions};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::certificates::{Certificates, signed_tokens};
use crate::programs::{own_addresses, program, quick_folder, until};

/// A call that hangs fails after this: later than etcd itself gives up.
const DEADLINE: Duration = Duration::from_secs(10);
/// Writes after which a member with a `snapshot-count` of 10 has surely made a snapshot.
const SNAPSHOT: usize = 50;
/// Messages of tests are larger than gRPC's default of 4 MiB.
pub const MESSAGE: usize = 512 << 20;

/// What a cluster is like.
#[derive(Clone, Debug)]
pub struct Settings {
    minor: &'static str,
    members: usize,
    flags: Vec<(&'static str, String)>,
    tls: bool,
    signed: Option<u32>,
    durable: bool,
}

/// The cluster. Its processes and its folder go with it.
pub struct Etcd {
    settings: Settings,
    folder: TempDir,
    members: Vec<Member>,
    certificates: Option<Certificates>,
    login: Option<(String, String)>,
}

struct Member {
    name: String,
    minor: &'static str,
    client: SocketAddr,
    peer: SocketAddr,
    child: Option<Child>,
}

impl Settings {
    /// One member of that minor, with etcd's defaults.
    pub fn of(minor: &'static str) -> Self {
        Self { minor, members: 1, flags: Vec::new(), tls: false, signed: None, durable: false }
    }

    /// So many members.
    #[must_use]
    pub fn members(mut self, members: usize) -> Self {
        self.members = members;
        self
    }

    /// Another flag for each member, without dashes.
    #[must_use]
    pub fn flag(mut self, name: &'static str, value: impl Display) -> Self {
        self.flags.push((name, format!("{value}")));
        self
    }

    /// Clients speak TLS, with certificates of their own.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Tokens of users are signed (JWT) and end after so many seconds. One that is older than the last change of users and
    /// roles is refused, unlike etcd's simple tokens.
    #[must_use]
    pub fn signed_tokens(mut self, seconds: u32) -> Self {
        self.signed = Some(seconds);
        self
    }

    /// On the disk and synced, as etcd runs where it is needed. Otherwise it is in memory: a killed process leaves what
    /// it wrote to the kernel.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }
}

impl Etcd {
    /// Starts all members and waits until each has answered a linearizable read.
    pub async fn start(mut settings: Settings) -> Self {
        let folder = if settings.durable { TempDir::new().unwrap() } else { quick_folder() };
        if let Some(seconds) = settings.signed {
            settings = settings.flag("auth-token", signed_tokens(folder.path(), seconds));
        }
        let members: Vec<Member> =
            (0..settings.members).map(|number| Member::new(settings.minor, number)).collect();
        let addresses: Vec<_> = members.iter().map(|member| member.client.ip()).collect();
        let certificates = settings.tls.then(|| Certificates::new(&folder.path().join("tls"), &addresses));
        let mut etcd = Self { settings, folder, members, certificates, login: None };
        for number in 0..etcd.members.len() {
            etcd.spawn(number);
        }
        etcd.serves().await;
        etcd
    }

    /// How many members it has.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// Where a member listens for clients.
    pub fn address(&self, member: usize) -> SocketAddr {
        self.members[member].client
    }

    /// An address as clients write it.
    pub fn url(&self, address: SocketAddr) -> String {
        format!("{}://{address}", if self.certificates.is_some() { "https" } else { "http" })
    }

    /// PEM files for clients: the authority, a certificate, its key.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// A client of the first member.
    pub async fn client(&self) -> Client {
        self.client_of(0).await
    }

    /// A client of one member.
    pub async fn client_of(&self, member: usize) -> Client {
        let address = self.address(member);
        self.dial(address, self.login.clone()).await.unwrap()
    }

    /// A client through another address, such as a proxy's, as that user.
    pub async fn dial(
        &self,
        address: SocketAddr,
        login: Option<(String, String)>,
    ) -> Result<Client, etcd_client::Error> {
        let mut options = ConnectOptions::default().with_connect_timeout(DEADLINE).with_timeout(DEADLINE);
        if let Some(certificates) = &self.certificates {
            let [authority, certificate, key] = certificates.client().map(|file| fs::read(file).unwrap());
            let tls = TlsOptions::new()
                .ca_certificate(Certificate::from_pem(authority))
                .identity(Identity::from_pem(certificate, key));
            options = options.with_tls(tls);
        }
        if let Some((user, password)) = login {
            options = options.with_user(user, password);
        }
        Client::connect([self.url(address)], Some(options)).await
    }

    /// Waits until each running member has answered a linearizable read.
    pub async fn serves(&self) {
        for (number, member) in self.members.iter().enumerate().filter(|(_, member)| member.child.is_some()) {
            let what = format!("{} serves", member.name);
            until(&what, async || {
                let Ok(mut client) = self.dial(member.client, self.login.clone()).await else {
                    self.still_runs(number);
                    return false;
                };
                let options = GetOptions::new().with_count_only();
                client.get("x", Some(options)).await.is_ok()
            })
            .await;
        }
    }

    fn still_runs(&self, number: usize) {
        let id = self.members[number].child.as_ref().unwrap().id();
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        assert!(!stat.is_empty() && !stat.contains(") Z "), "etcd has ended: {}", self.log(number));
    }

    /// What a member has logged.
    pub fn log(&self, member: usize) -> String {
        let log = fs::read(self.log_file(member)).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The process of a running member.
    pub fn process(&self, member: usize) -> u32 {
        self.members[member].child.as_ref().unwrap().id()
    }

    /// Ends a member as a crash does.
    pub fn kill(&mut self, member: usize) {
        self.members[member].kill();
    }

    /// Starts a member again on what it has; it serves some time later.
    pub fn spawn(&mut self, member: usize) {
        let mut command = self.command(member);
        self.members[member].child = Some(command.spawn().unwrap());
    }

    /// Kills all members and starts them again.
    pub async fn restart(&mut self) {
        self.stop();
        self.go_on().await;
    }

    /// Kills all members and starts them again with another flag.
    pub async fn restart_with(&mut self, flag: &'static str, value: impl Display) {
        self.settings.flags.retain(|(name, _)| *name != flag);
        self.settings.flags.push((flag, format!("{value}")));
        self.restart().await;
    }

    /// Kills a member and starts it again as another minor.
    pub async fn upgrade(&mut self, member: usize, minor: &'static str) {
        self.kill(member);
        self.members[member].minor = minor;
        self.spawn(member);
        self.serves().await;
    }

    /// Waits until the whole cluster is of that minor, and has a snapshot of its own: etcd 3.7 cannot read what 3.5 left
    /// in the log (`unmarshal should never fail`), so with a low `snapshot-count` a few writes come between two upgrades.
    pub async fn is_all(&self, minor: &str) {
        let words = format!("\"msg\":\"cluster version is updated\",\"cluster-version\":\"{minor}\"");
        let is_said = async || (0..self.size()).any(|member| self.log(member).contains(&words));
        until(&format!("the cluster is of {minor}"), is_said).await;
        let mut client = self.client().await;
        for _ in 0..SNAPSHOT {
            client.put("/upgraded", minor, None).await.unwrap();
        }
    }

    /// Stands still, with all connections open.
    pub fn pause(&self, member: usize) {
        self.signal(member, Signal::STOP);
    }

    /// Goes on.
    pub fn resume(&self, member: usize) {
        self.signal(member, Signal::CONT);
    }

    /// Keeps a copy of all data, taken while nobody runs.
    pub async fn keep(&mut self, name: &str) {
        self.stop();
        for number in 0..self.members.len() {
            copy(&self.data(number), &self.folder.path().join(name).join(number.to_string()));
        }
        self.go_on().await;
    }

    /// Puts the copy of that name in the place of the data, as a disk that is set back.
    pub async fn put_back(&mut self, name: &str) {
        self.stop();
        for number in 0..self.members.len() {
            copy(&self.folder.path().join(name).join(number.to_string()), &self.data(number));
        }
        self.go_on().await;
    }

    /// Takes a snapshot into the file of that name.
    pub fn snapshot(&self, name: &str) {
        let file = self.folder.path().join(name);
        self.ctl(&["snapshot", "save", file.to_str().unwrap()]).unwrap();
    }

    /// Makes the cluster anew of a snapshot, under the same names and addresses, so with the same IDs; further flags
    /// are those of `etcdutl snapshot restore`.
    pub async fn restore(&mut self, name: &str, flags: &[&str]) {
        self.stop();
        for (number, member) in self.members.iter().enumerate() {
            drop(fs::remove_dir_all(self.data(number)));
            let mut command = Command::new(program(member.minor, "etcdutl"));
            command.args(["snapshot", "restore"]).arg(self.folder.path().join(name));
            command.arg("--data-dir").arg(self.data(number)).args(["--name", &member.name]);
            command.args(["--initial-cluster", &self.initial_cluster()]);
            command.args(["--initial-advertise-peer-urls", &member.peer_url()]).args(flags);
            succeed(&mut command).unwrap();
        }
        self.go_on().await;
    }

    /// Makes an empty cluster in its place, at the same addresses: the same names and token have the same IDs.
    pub async fn empty(&mut self) {
        self.stop();
        for number in 0..self.members.len() {
            fs::remove_dir_all(self.data(number)).unwrap();
        }
        self.login = None;
        self.go_on().await;
    }

    /// Turns authentication on; clients of this value are root from now on.
    pub async fn enable_auth(&mut self) {
        let mut client = self.client().await;
        client.user_add("root", "secret", None).await.unwrap();
        client.role_add("root").await.unwrap();
        client.user_grant_role("root", "root").await.unwrap();
        client.auth_enable().await.unwrap();
        self.login = Some(("root".to_owned(), "secret".to_owned()));
    }

    /// A user with a role of the same name that has these permissions.
    pub async fn user(&self, name: &str, password: &str, permissions: Vec<Permission>) {
        let mut client = self.client().await;
        client.user_add(name, password, None).await.unwrap();
        client.role_add(name).await.unwrap();
        for permission in permissions {
            client.role_grant_permission(name, permission).await.unwrap();
        }
        client.user_grant_role(name, name).await.unwrap();
    }

    /// A client of the first member as that user, whose password is the name.
    pub async fn client_as(&self, user: &str) -> Client {
        let login = Some((user.to_owned(), user.to_owned()));
        self.dial(self.address(0), login).await.unwrap()
    }

    /// What a role may do: number of the kind, key and range end, as etcd has them.
    pub async fn permissions(&self, role: &str) -> Vec<(i32, Vec<u8>, Vec<u8>)> {
        let role = self.client().await.role_get(role).await.unwrap();
        let of = |permission: &Permission| {
            (permission.get_type(), permission.key().to_vec(), permission.range_end().to_vec())
        };
        role.permissions().iter().map(of).collect()
    }

    /// Asks the first member through etcdctl; the error is what it says.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(program(self.settings.minor, "etcdctl"));
        command.args(["--endpoints", &self.url(self.address(0)), "--command-timeout=10s"]);
        if let Some(certificates) = &self.certificates {
            let [authority, certificate, key] = certificates.client();
            command.arg("--cacert").arg(authority).arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        if let Some((user, password)) = &self.login {
            command.args(["--user", &format!("{user}:{password}")]);
        }
        succeed(command.args(arguments))
    }

    fn stop(&mut self) {
        self.members.iter_mut().for_each(Member::kill);
    }

    async fn go_on(&mut self) {
        for number in 0..self.members.len() {
            self.spawn(number);
        }
        self.serves().await;
    }

    fn signal(&self, member: usize, signal: Signal) {
        kill_process(Pid::from_child(self.members[member].child.as_ref().unwrap()), signal).unwrap();
    }

    fn data(&self, member: usize) -> PathBuf {
        self.folder.path().join(&self.members[member].name)
    }

    fn log_file(&self, member: usize) -> PathBuf {
        self.data(member).with_extension("log")
    }

    fn initial_cluster(&self) -> String {
        let all = self.members.iter().map(|member| format!("{}={}", member.name, member.peer_url()));
        all.collect::<Vec<_>>().join(",")
    }

    fn command(&self, number: usize) -> Command {
        let member = &self.members[number];
        let client = self.url(member.client);
        let mut flags = vec![
            ("advertise-client-urls", client.clone()),
            ("data-dir", self.data(number).display().to_string()),
            ("initial-advertise-peer-urls", member.peer_url()),
            ("initial-cluster", self.initial_cluster()),
            ("listen-client-urls", client),
            ("listen-peer-urls", member.peer_url()),
            ("name", member.name.clone()),
        ];
        if let Some(certificates) = &self.certificates {
            flags.extend(certificates.server_flags());
        }
        if !self.settings.durable {
            flags.push(("unsafe-no-fsync", "true".to_owned()));
        }
        flags.extend(self.settings.flags.iter().cloned());
        let log = File::options().create(true).append(true).open(self.log_file(number)).unwrap();
        let mut command = Command::new(program(member.minor, "etcd"));
        command.args(flags.iter().map(|(flag, value)| format!("--{flag}={value}")));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command
    }
}

impl Member {
    fn new(minor: &'static str, number: usize) -> Self {
        let [client, peer] = own_addresses();
        Self { name: format!("m{number}"), minor, client, peer, child: None }
    }

    fn peer_url(&self) -> String {
        format!("http://{}", self.peer)
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

fn succeed(command: &mut Command) -> Result<String, String> {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if status.success() { Ok(text(stdout)) } else { Err(text(stderr)) }
}

/// Copies a directory in the place of another, without the zeros that etcd preallocates.
fn copy(from: &Path, to: &Path) {
    drop(fs::remove_dir_all(to));
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let mut command = Command::new("cp");
    succeed(command.args(["--archive", "--sparse=always"]).arg(from).arg(to)).unwrap();
}
