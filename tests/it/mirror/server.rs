//! A real etcd of one member on loopback, and what tests ask of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use etcd_client::{
    Client, CompactionOptions, ConnectOptions, DeleteOptions, GetOptions, PutOptions, Txn, TxnOp,
};
use tempfile::TempDir;

use crate::world::conformance::real::{own_addresses, programs};

/// Longer than anything takes on a busy machine with two cores.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

pub(super) struct Server {
    pub(super) url: String,
    pub(super) address: std::net::SocketAddr,
    peer: std::net::SocketAddr,
    minor: &'static str,
    flags: Vec<String>,
    folder: TempDir,
    child: Option<Child>,
}

/// A key of an etcd: its value, its last revision, whether it has a lease.
pub(super) type Held = BTreeMap<Vec<u8>, (Vec<u8>, i64, bool)>;

impl Server {
    pub(super) async fn start(minor: &'static str, flags: &[&str]) -> Self {
        let (address, peer) = own_addresses();
        // In memory, since every member preallocates 128 MB of log.
        let memory = Path::new("/dev/shm");
        let folder = if memory.exists() { TempDir::new_in(memory) } else { TempDir::new() };
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let url = format!("http://{address}");
        let mut server = Self { url, address, peer, minor, flags, folder: folder.unwrap(), child: None };
        server.run().await;
        server
    }

    async fn run(&mut self) {
        let program = programs().join(format!("etcd-{}", self.minor)).join("etcd");
        let (client, peer) = (format!("http://{}", self.address), format!("http://{}", self.peer));
        let log = File::create(self.folder.path().join("log")).unwrap();
        let mut command = Command::new(program);
        command
            .args(["--name=m", "--unsafe-no-fsync", "--log-level=error"])
            .arg(format!("--data-dir={}", self.folder.path().join("data").display()))
            .args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .arg(format!("--initial-cluster=m={peer}"))
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(command.spawn().unwrap());
        let end = Instant::now() + PATIENCE;
        while self.client().await.get("x", None).await.is_err() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap();
            assert!(Instant::now() < end, "etcd does not answer: {log}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Copies its data as they are after a clean end, and starts it again.
    pub(super) async fn save(&mut self) {
        self.kill();
        self.copy("data", "saved");
        self.run().await;
    }

    /// Puts back what was saved, as a restored disk does.
    pub(super) async fn roll_back(&mut self) {
        self.kill();
        fs::remove_dir_all(self.folder.path().join("data")).unwrap();
        self.copy("saved", "data");
        self.run().await;
    }

    fn copy(&self, from: &str, to: &str) {
        let (from, to) = (self.folder.path().join(from), self.folder.path().join(to));
        let done = Command::new("cp").arg("-a").arg("--sparse=always").args([from, to]).status().unwrap();
        assert!(done.success());
    }

    pub(super) async fn client(&self) -> Client {
        let options = ConnectOptions::new().with_connect_timeout(Duration::from_secs(5));
        Client::connect([&self.url], Some(options)).await.unwrap()
    }

    pub(super) async fn put(&self, key: &str, value: &str) -> i64 {
        let answer = self.client().await.put(key, value, None).await.unwrap();
        answer.header().unwrap().revision()
    }

    pub(super) async fn put_leased(&self, key: &str, value: &str, lease: i64) {
        let options = PutOptions::new().with_lease(lease);
        self.client().await.put(key, value, Some(options)).await.unwrap();
    }

    pub(super) async fn delete(&self, prefix: &str) {
        let options = DeleteOptions::new().with_prefix();
        self.client().await.delete(prefix, Some(options)).await.unwrap();
    }

    /// Keys `<prefix>0` … with values of so many bytes, a hundred in a transaction.
    pub(super) async fn fill(&self, prefix: &str, count: usize, bytes: usize) {
        let mut client = self.client().await.kv_client();
        let numbers: Vec<usize> = (0..count).collect();
        for chunk in numbers.chunks(100) {
            let put = |number: &usize| {
                let value = format!("{number:0bytes$}");
                TxnOp::put(format!("{prefix}{number:07}"), value, None)
            };
            client.txn(Txn::new().and_then(chunk.iter().map(put).collect::<Vec<_>>())).await.unwrap();
        }
    }

    pub(super) async fn head(&self) -> i64 {
        self.client().await.get("x", None).await.unwrap().header().unwrap().revision()
    }

    pub(super) async fn compact(&self) -> i64 {
        let head = self.head().await;
        let compacted = self.client().await.compact(head, Some(CompactionOptions::new())).await;
        if let Err(error) = compacted {
            assert!(error.to_string().contains("has been compacted"), "{error}");
        }
        head
    }

    /// All keys below a prefix but those of mirrors.
    pub(super) async fn held(&self, prefix: &str) -> Held {
        let mut kv = self.client().await.kv_client().max_decoding_message_size(1 << 30);
        let options = if prefix.is_empty() {
            GetOptions::new().with_all_keys()
        } else {
            GetOptions::new().with_prefix()
        };
        let mut answer = kv.get(prefix, Some(options)).await.unwrap();
        let kept = answer.take_kvs().into_iter().filter(|kv| !kv.key().starts_with(b"/__quorate/"));
        kept.map(|kv| (kv.key().to_vec(), (kv.value().to_vec(), kv.mod_revision(), kv.lease() != 0)))
            .collect()
    }

    /// The same without revisions.
    pub(super) async fn values(&self, prefix: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let held = self.held(prefix).await;
        held.into_iter().map(|(key, (value, ..))| (key, value)).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
