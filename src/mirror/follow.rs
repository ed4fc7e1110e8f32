//! The source: carries out what the machine wants of it, each request with a deadline, and sends back what came of it.

use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, Error, GetOptions, GetResponse, KvClient, Txn, TxnOp};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::checkpoint::{Claims, Identity, Owner, Role, parse_claims};
use super::config::{MirrorId, claims_key};
use super::connect::{Access, Connection, told};
use super::keyspace::{Keyspace, Side, Span};
use super::listen::{ANSWERS, Listener, Watch};
use super::machine::{Event, Sample, SeenSite, Watchers};
use super::resync::{Entry, Page};
use super::transaction::Stored;
use super::write::{answer_of, counted, pass};
use crate::etcd::ClusterId;

/// How long a linearizable read and a status may take: etcd itself gives up after 5 s + 2 elections.
const PROBE_DEADLINE: Duration = Duration::from_secs(8);
/// How long a page may take, over a thin line.
pub(super) const PAGE_DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of a page that are taken; one of the usual size has a sixteenth.
pub(super) const PAGE_BYTES: usize = 64 << 20;
/// Owners that are read at once: fewer than etcd takes in a transaction.
const OWNERS: usize = 64;

/// What came of a request, and what went wrong in words.
pub(super) type Came = (Event, Option<String>);

/// The source.
pub(super) struct Source {
    access: Access,
    keyspace: Keyspace,
    site: Vec<u8>,
    connection: Connection,
    turn: usize,
    /// What runs on the connection.
    running: Vec<AbortHandle>,
    watch: Option<Listener>,
    came: mpsc::Sender<Came>,
    heard: mpsc::Sender<Came>,
}

/// What a request needs; a copy of its own.
#[derive(Clone)]
pub(super) struct Line {
    access: Access,
    connection: Connection,
    turn: usize,
    wait: Duration,
}

impl Source {
    /// Also returns where answers of watches arrive: read only while the machine wants them.
    pub(super) fn new(
        access: Access,
        keyspace: Keyspace,
        id: &MirrorId,
        came: mpsc::Sender<Came>,
    ) -> (Self, mpsc::Receiver<Came>) {
        let (heard, hears) = mpsc::channel(ANSWERS);
        let source = Self {
            access,
            keyspace,
            site: id.key("site"),
            connection: Connection::default(),
            turn: 0,
            running: Vec::new(),
            watch: None,
            came,
            heard,
        };
        (source, hears)
    }

    fn line(&self, wait: Duration) -> Line {
        Line { access: self.access.clone(), connection: self.connection.clone(), turn: self.turn, wait }
    }

    fn spawn(&mut self, request: impl Future<Output = Came> + Send + 'static) {
        let came = self.came.clone();
        let task = tokio::spawn(async move {
            // Nobody listens any more when the mirror ends.
            drop(came.send(request.await).await);
        });
        self.running.retain(|task| !task.is_finished());
        self.running.push(task.abort_handle());
    }

    pub(super) fn probe(&mut self, elsewhere: bool, wait: Duration) {
        if elsewhere {
            self.hang_up();
            self.turn += 1;
            self.connection = Connection::default();
        }
        let (line, span, site) = (self.line(wait), self.keyspace.hull(Side::Source), self.site.clone());
        let first = self.keyspace.spans(Side::Source).into_iter().next().unwrap_or(span);
        self.spawn(async move { came(line.sample(first, site).await) });
    }

    pub(super) fn read(&mut self, number: u64, span: Span, keys: usize) {
        let line = self.line(Duration::ZERO);
        self.spawn(async move {
            match line.page(span, keys).await {
                Ok(page) => (Event::SourcePage(number, page), None),
                Err(problem) if too_large(&problem) => (Event::SourcePageTooLarge(number), None),
                Err(problem) => (Event::SourceSilent, Some(problem)),
            }
        });
    }

    pub(super) fn write_site(&mut self, value: Vec<u8>) {
        let (line, key) = (self.line(Duration::ZERO), self.site.clone());
        self.spawn(async move {
            match line.write_site(key, value).await {
                Ok(()) => (Event::Sited, None),
                Err(problem) => (Event::SourceSilent, Some(problem)),
            }
        });
    }

    /// How many keys the mapped part has; `None`: nobody said.
    pub(super) fn count(&self) -> impl Future<Output = Option<u64>> + use<> {
        let (line, spans) = (self.line(Duration::ZERO), self.keyspace.spans(Side::Source));
        async move {
            let client = line.client().await.ok()?;
            let mut count = 0;
            for span in spans {
                count += counted(&client, span).await.ok()?;
            }
            Some(count)
        }
    }

    pub(super) fn watch(&mut self, number: u64, from: i64, watchers: Watchers) {
        let spans = match watchers {
            Watchers::Ranges => self.keyspace.spans(Side::Source),
            Watchers::One | Watchers::Windows => vec![self.keyspace.hull(Side::Source)],
        };
        let watch = Watch { number, from, spans, windows: watchers == Watchers::Windows };
        self.watch = Some(Listener::start(self.line(Duration::ZERO), watch, self.heard.clone()));
    }

    pub(super) fn ask_for_progress(&self) {
        self.watch.iter().for_each(Listener::ask_for_progress);
    }

    pub(super) fn hang_up(&mut self) {
        self.watch = None;
        for task in self.running.drain(..) {
            task.abort();
        }
    }
}

fn came(sample: Result<Sample, String>) -> Came {
    match sample {
        Ok(sample) => (Event::Sample(sample), None),
        Err(problem) => (Event::SourceSilent, Some(problem)),
    }
}

impl Line {
    pub(super) async fn client(&self) -> Result<Client, String> {
        pass(self.wait).await;
        self.connection.client(&self.access, self.turn).await.map_err(|error| error.to_string())
    }

    pub(super) fn told(&self, error: &Error) -> String {
        told(&self.access, self.turn, error)
    }

    pub(super) async fn within<T>(
        &self,
        deadline: Duration,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, String> {
        let Ok(answer) = tokio::time::timeout(deadline, request).await else {
            let late = Error::Internal(format!("no answer within {}s", deadline.as_secs()));
            return Err(self.told(&late));
        };
        answer.map_err(|error| self.told(&error))
    }

    /// A linearizable read first: then the status that follows on the same connection is as new as that.
    async fn sample(&self, first: Span, site: Vec<u8>) -> Result<Sample, String> {
        let mut client = self.client().await?;
        let mut kv = client.kv_client();
        let end = first.range_end();
        let options = GetOptions::new().with_range(end).with_limit(1).with_keys_only();
        let read = self.within(PROBE_DEADLINE, kv.get(first.start, Some(options))).await?;
        let (site, claims) = tokio::join!(self.site(kv.clone(), site), self.claims(kv));
        let (site, claims) = (site?, claims?);
        let status = self.within(PROBE_DEADLINE, client.status()).await?;
        let header = read.header().ok_or("an answer without a header")?;
        let identity = Identity {
            cluster: ClusterId(header.cluster_id()),
            term: status.raft_term(),
            applied: status.raft_applied_index(),
        };
        Ok(Sample { identity, head: header.revision(), site, claims, version: status.version().to_owned() })
    }

    async fn site(&self, mut kv: KvClient, key: Vec<u8>) -> Result<SeenSite, String> {
        let read = permitted(self.within(PROBE_DEADLINE, kv.get(key, None)).await)?;
        let value = |read: GetResponse| read.kvs().first().map(|kv| kv.value().to_vec());
        Ok(read.map_or(SeenSite::Unreadable, |read| value(read).map_or(SeenSite::Absent, SeenSite::Value)))
    }

    /// Claims of mirrors into the source, but for those that were promoted: they copy nothing any more. What cannot be
    /// read, or is of a newer release, is not known.
    async fn claims(&self, mut kv: KvClient) -> Result<Option<Claims>, String> {
        let read = permitted(self.within(PROBE_DEADLINE, kv.get(claims_key(), None)).await)?;
        let Some(read) = read else { return Ok(None) };
        let Some(stored) = read.kvs().first() else { return Ok(Some(Claims::new())) };
        let Ok(mut claims) = parse_claims(stored.value()) else { return Ok(None) };
        let ids: Vec<MirrorId> = claims.keys().filter_map(|id| MirrorId::new(id).ok()).collect();
        for ids in ids.chunks(OWNERS) {
            let owners = ids.iter().map(|id| TxnOp::get(id.key("owner"), None));
            let owners = Txn::new().and_then(owners.collect::<Vec<_>>());
            let Some(owners) = permitted(self.within(PROBE_DEADLINE, kv.txn(owners)).await)? else {
                return Ok(None);
            };
            let owners = answer_of(&owners).read();
            for (id, _) in ids.iter().zip(owners).filter(|(_, owner)| owner.as_ref().is_some_and(promoted)) {
                claims.remove(id.as_str());
            }
        }
        Ok(Some(claims))
    }

    /// Written only if there is none: whoever was first has decided.
    async fn write_site(&self, key: Vec<u8>, value: Vec<u8>) -> Result<(), String> {
        let client = self.client().await?;
        let absent = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
        let transaction = Txn::new().when([absent]).and_then([TxnOp::put(key, value, None)]);
        self.within(PROBE_DEADLINE, client.kv_client().txn(transaction)).await.map(drop)
    }

    async fn page(&self, span: Span, keys: usize) -> Result<Page, String> {
        let client = self.client().await?;
        let mut kv = client.kv_client().max_decoding_message_size(PAGE_BYTES);
        self.within(PAGE_DEADLINE, kv.get(span.start.clone(), Some(range(&span, keys)))).await.map(page_of)
    }
}

/// An answer; `None`: the user's role has no right to it.
fn permitted<T>(answer: Result<T, String>) -> Result<Option<T>, String> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(problem) if problem.contains("permission denied") => Ok(None),
        Err(problem) => Err(problem),
    }
}

fn promoted(owner: &Stored) -> bool {
    Owner::parse(&owner.value).is_ok_and(|owner| owner.role == Role::Promoted)
}

/// A read of part of a side, linearizable.
pub(super) fn range(span: &Span, keys: usize) -> GetOptions {
    GetOptions::new().with_range(span.range_end()).with_limit(i64::try_from(keys).unwrap_or(i64::MAX))
}

pub(super) fn page_of(mut answer: GetResponse) -> Page {
    let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
    let more = answer.more();
    let entries = answer.take_kvs().into_iter().map(|kv| {
        let (lease, modified) = (kv.lease(), kv.mod_revision());
        let (key, value) = kv.into_key_value();
        Entry { key, value, lease, modified }
    });
    Page { entries: entries.collect(), revision, more }
}

/// tonic's words for an answer above the limit; its code is that of a compaction.
pub(super) fn too_large(problem: &str) -> bool {
    problem.contains("message length too large")
}
