//! What a cluster holds, and everything that changes in it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use etcd_client::{EventType, GetOptions, SortOrder, SortTarget, Txn, TxnOp, WatchOptions};
use tokio::task::JoinHandle;

use crate::etcd::{Etcd, MESSAGE};
use crate::programs::until;

/// Keys that are read at once.
const PAGE: i64 = 10_000;
/// Puts in one transaction, and their bytes: within etcd's default limits.
const PUTS: usize = 128;
const BYTES: usize = 1_000_000;

/// What is held under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its value.
    pub value: Vec<u8>,
    /// The revision in which it was written.
    pub modified: i64,
    /// Its lease, or 0.
    pub lease: i64,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The revision that it is a part of.
    pub revision: i64,
    /// Its key.
    pub key: Vec<u8>,
    /// The new value; none: it was deleted.
    pub value: Option<Vec<u8>>,
}

/// Remembers all changes of a cluster from its begin on, in order.
pub struct Recorder {
    /// The newest revision when it began.
    begun: i64,
    changes: Arc<Mutex<Vec<Change>>>,
    task: JoinHandle<()>,
}

impl Etcd {
    /// Writes one key; the revision.
    pub async fn put(&self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> i64 {
        self.client().await.put(key, value, None).await.unwrap().header().unwrap().revision()
    }

    /// Deletes one key.
    pub async fn delete(&self, key: impl Into<Vec<u8>>) {
        self.client().await.delete(key, None).await.unwrap();
    }

    /// Writes `<prefix>00000…` with values of that size, many in a transaction.
    pub async fn fill(&self, prefix: &str, keys: usize, size: usize) {
        let mut client = self.client().await;
        let numbers: Vec<usize> = (0..keys).collect();
        for some in numbers.chunks(PUTS.min(BYTES / size.max(1)).max(1)) {
            let put = |number: &usize| {
                let mut value = format!("{number} ").into_bytes();
                value.resize(size.max(value.len()), b'v');
                TxnOp::put(format!("{prefix}{number:05}"), value, None)
            };
            client.txn(Txn::new().and_then(some.iter().map(put).collect::<Vec<_>>())).await.unwrap();
        }
    }

    /// The newest revision. While a leader is elected it waits.
    pub async fn head(&self) -> i64 {
        let mut head = None;
        until("the newest revision is known", async || {
            let options = GetOptions::new().with_count_only();
            let answer = self.client().await.get("x", Some(options)).await;
            head = answer.ok().map(|answer| answer.header().unwrap().revision());
            head.is_some()
        })
        .await;
        head.unwrap()
    }

    /// Discards all history up to now; the newest revision.
    pub async fn compact(&self) -> i64 {
        let head = self.head().await;
        self.client().await.compact(head, None).await.unwrap();
        head
    }

    /// All keys below a prefix; the empty one: all.
    pub async fn held(&self, prefix: &str) -> BTreeMap<Vec<u8>, Held> {
        let mut kv = self.client().await.kv_client().max_decoding_message_size(MESSAGE);
        let mut held = BTreeMap::new();
        let whole = GetOptions::new().with_sort(SortTarget::Key, SortOrder::Ascend).with_limit(PAGE);
        let mut next = if prefix.is_empty() { vec![0] } else { prefix.as_bytes().to_vec() };
        let options =
            if prefix.is_empty() { whole.with_from_key() } else { whole.with_range(end_of(prefix)) };
        loop {
            let mut answer = kv.get(next, Some(options.clone())).await.unwrap();
            let more = answer.more();
            for kv in answer.take_kvs() {
                let (modified, lease) = (kv.mod_revision(), kv.lease());
                let (key, value) = kv.into_key_value();
                held.insert(key, Held { value, modified, lease });
            }
            if !more {
                return held;
            }
            next = held.last_key_value().unwrap().0.clone();
            next.push(0);
        }
    }

    /// Records all that changes from now on.
    pub async fn record(&self) -> Recorder {
        let head = self.head().await;
        let mut client = self.client().await.watch_client().max_decoding_message_size(MESSAGE);
        let options = WatchOptions::new().with_all_keys().with_start_revision(head + 1);
        let mut stream = client.watch("", Some(options)).await.unwrap();
        let changes = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn({
            let changes = changes.clone();
            async move {
                // It ends with the cluster.
                while let Ok(Some(answer)) = stream.message().await {
                    assert!(!answer.canceled(), "the recorder was cancelled: {}", answer.cancel_reason());
                    changes.lock().unwrap().extend(answer.events().iter().map(|event| {
                        let kv = event.kv().unwrap();
                        let put = event.event_type() == EventType::Put;
                        let value = put.then(|| kv.value().to_vec());
                        Change { revision: kv.mod_revision(), key: kv.key().to_vec(), value }
                    }));
                }
            }
        });
        Recorder { begun: head, changes, task }
    }
}

impl Recorder {
    /// Everything up to now.
    pub async fn all(&self, etcd: &Etcd) -> Vec<Change> {
        let head = etcd.head().await;
        until("all changes are recorded", async || {
            assert!(!self.task.is_finished(), "the recorder has ended");
            let changes = self.changes.lock().unwrap();
            changes.last().map_or(self.begun, |change| change.revision) >= head
        })
        .await;
        self.changes.lock().unwrap().clone()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The first key after all those with this prefix.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    end
}
