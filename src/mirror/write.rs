//! The target: carries out what the machine wants of it, one request at a time, each with a deadline.

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, Error, GetOptions, KeyValue, LeaseGrantOptions, PutOptions, Txn, TxnOp,
    TxnOpResponse, TxnResponse,
};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::config::{MirrorId, claims_key};
use super::connect::{Access, Connection, told};
use super::follow::{Came, PAGE_BYTES, page_of, range, too_large};
use super::keyspace::{Keyspace, Side, Span};
use super::look::look;
use super::machine::{Command, Event, Own, Refusal};
use super::transaction::{Answer, Guard, Lease, Node, Outcome, Stored, Transaction};

/// Above what etcd takes until it gives up (5 s + 2 elections), so that most results are known.
const DEADLINE: Duration = Duration::from_secs(12);
/// How long a page may take.
const PAGE_DEADLINE: Duration = Duration::from_secs(30);
/// The longest that etcd grants: 285 years.
const PARKING_SECONDS: i64 = 9_000_000_000;

/// The target.
pub(super) struct Target {
    access: Access,
    id: MirrorId,
    keyspace: Keyspace,
    connection: Connection,
    turn: usize,
    running: Vec<AbortHandle>,
    came: mpsc::Sender<Came>,
}

impl Target {
    pub(super) fn new(access: Access, keyspace: Keyspace, id: MirrorId, came: mpsc::Sender<Came>) -> Self {
        Self { access, id, keyspace, connection: Connection::default(), turn: 0, running: Vec::new(), came }
    }

    /// The next request goes to another endpoint, on a new connection.
    pub(super) fn go_elsewhere(&mut self) {
        self.turn += 1;
        self.connection = Connection::default();
    }

    pub(super) fn ask(&mut self, command: Command, wait: Duration) {
        let (access, connection, turn) = (self.access.clone(), self.connection.clone(), self.turn);
        let (id, keyspace, came) = (self.id.clone(), self.keyspace.clone(), self.came.clone());
        let lost = lost(&command);
        let task = tokio::spawn(async move {
            pass(wait).await;
            let answer = match connection.client(&access, turn).await {
                Err(error) => Err(error.to_string()),
                Ok(client) => {
                    let asked = ask(client, &id, &keyspace, command);
                    match tokio::time::timeout(PAGE_DEADLINE, asked).await {
                        Ok(answer) => answer.map_err(|error| told(&access, turn, &error)),
                        Err(_) => Err(format!("no answer within {}s", PAGE_DEADLINE.as_secs())),
                    }
                }
            };
            let event = match answer {
                Ok(event) => (event, None),
                Err(problem) => (failure(lost, &problem), Some(problem)),
            };
            // Nobody listens any more when the mirror ends.
            drop(came.send(event).await);
        });
        self.running.retain(|task| !task.is_finished());
        self.running.push(task.abort_handle());
    }

    pub(super) fn hang_up(&mut self) {
        for task in self.running.drain(..) {
            task.abort();
        }
    }
}

async fn ask(client: Client, id: &MirrorId, keyspace: &Keyspace, command: Command) -> Result<Event, Error> {
    let mut kv = client.kv_client().max_decoding_message_size(PAGE_BYTES);
    match command {
        Command::ReadOwn => within(read_own(&client, id)).await.map(Event::Own),
        Command::Commit(transaction) => {
            let answer = within(kv.txn(txn(transaction, id.parking_lease()))).await?;
            Ok(Event::Committed(answer_of(&answer)))
        }
        Command::ReadTarget(number, span, keys) => {
            let answer = kv.get(span.start.clone(), Some(range(&span, keys))).await?;
            Ok(Event::TargetPage(number, page_of(answer)))
        }
        Command::CountTarget => {
            let mut count = 0;
            for span in keyspace.spans(Side::Target) {
                count += counted(&client, span).await?;
            }
            Ok(Event::TargetCount(count))
        }
        Command::Look { number, from, through } => {
            let look = look(&client, id, keyspace, (from, through)).await?;
            Ok(Event::Looked(number, look))
        }
        Command::Park => {
            let options = LeaseGrantOptions::new().with_id(id.parking_lease());
            let granted = within(client.lease_client().grant(PARKING_SECONDS, Some(options))).await;
            match granted {
                Err(Error::GRpcStatus(status)) if status.message().contains("lease already exists") => {}
                other => drop(other?),
            }
            Ok(Event::Parked)
        }
        Command::Probe { .. }
        | Command::ReadSource(..)
        | Command::Watch { .. }
        | Command::Progress
        | Command::WriteSite(_)
        | Command::Lease(_)
        | Command::Stop(_) => Err(Error::InvalidArgs("not a request to the target".to_owned())),
    }
}

/// Lets time pass. A timer of no time at all would fire at its next tick: a millisecond or two, at every transaction.
pub(super) async fn pass(wait: Duration) {
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
}

/// With the deadline of a request.
pub(super) async fn within<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match tokio::time::timeout(DEADLINE, request).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::Internal(format!("no answer within {}s", DEADLINE.as_secs()))),
    }
}

/// Counts the keys of a part of a side.
pub(super) async fn counted(client: &Client, span: Span) -> Result<u64, Error> {
    let options = GetOptions::new().with_range(span.range_end()).with_count_only();
    let answer = within(client.kv_client().get(span.start, Some(options))).await?;
    Ok(u64::try_from(answer.count()).unwrap_or(0))
}

/// The mirror's own keys, as of one moment.
pub async fn read_own(client: &Client, id: &MirrorId) -> Result<Own, Error> {
    let keys = [id.key("owner"), id.key("checkpoint"), id.key("site"), claims_key()];
    let read = keys.map(|key| TxnOp::get(key, None));
    let answer = client.kv_client().txn(Txn::new().and_then(read)).await?;
    let cluster = answer.header().map_or(0, etcd_client::ResponseHeader::cluster_id);
    let mut read = answer_of(&answer).read().into_iter();
    let mut next = || read.next().flatten();
    let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
    Ok(Own { cluster, revision, owner: next(), checkpoint: next(), site: next(), claims: next() })
}

/// What becomes of a request that has no answer.
fn lost(command: &Command) -> Event {
    if let Command::ReadTarget(number, ..) = command {
        Event::TargetPageLost(*number)
    } else if let Command::Look { number, .. } = command {
        Event::LookLost(*number)
    } else {
        Event::TargetSilent
    }
}

/// What came of a request that failed.
fn failure(lost: Event, problem: &str) -> Event {
    match (lost, refusal(problem)) {
        (Event::TargetPageLost(number), _) if too_large(problem) => Event::TargetPageTooLarge(number),
        (Event::TargetSilent, Some(refusal)) => Event::Refused(refusal),
        (lost, _) => lost,
    }
}

fn refusal(problem: &str) -> Option<Refusal> {
    const TABLE: [(&str, Refusal); 4] = [
        ("too many operations in txn request", Refusal::TooManyOperations),
        ("request is too large", Refusal::TooLarge),
        ("received message larger than max", Refusal::TooLarge),
        ("requested lease not found", Refusal::NoLease),
    ];
    TABLE.iter().find(|(words, _)| problem.contains(words)).map(|(_, refusal)| *refusal)
}

fn txn(transaction: Transaction, parking: i64) -> Txn {
    let Transaction { when, then, otherwise } = transaction;
    let ops = |nodes: Vec<Node>| nodes.into_iter().map(|node| op(node, parking)).collect::<Vec<_>>();
    let mut txn = Txn::new();
    if !when.is_empty() {
        txn = txn.when(when.into_iter().map(compare).collect::<Vec<_>>());
    }
    txn = txn.and_then(ops(then));
    if otherwise.is_empty() { txn } else { txn.or_else(ops(otherwise)) }
}

fn compare(guard: Guard) -> Compare {
    match guard {
        Guard::Value(key, value) => Compare::value(key, CompareOp::Equal, value),
        Guard::Created(key, revision) => Compare::create_revision(key, CompareOp::Equal, revision),
        Guard::Modified(key, revision) => Compare::mod_revision(key, CompareOp::Equal, revision),
        Guard::Vacant(start, end) => Compare::create_revision(start, CompareOp::Equal, 0).with_range(end),
    }
}

fn op(node: Node, parking: i64) -> TxnOp {
    match node {
        Node::Put { key, value, lease } => {
            let id = match lease {
                Lease::None => None,
                Lease::Parking => Some(parking),
                Lease::Same(id) => Some(id),
            };
            TxnOp::put(key, value, id.map(|id| PutOptions::new().with_lease(id)))
        }
        Node::Delete(key) => TxnOp::delete(key, None),
        Node::Get(key) => TxnOp::get(key, None),
        Node::Nested(nested) => TxnOp::txn(txn(nested, parking)),
    }
}

pub(super) fn answer_of(answer: &TxnResponse) -> Answer {
    let results = answer.op_responses().into_iter().map(|result| match result {
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) => Outcome::Written,
        TxnOpResponse::Get(read) => Outcome::Read(read.kvs().first().map(stored)),
        TxnOpResponse::Txn(nested) => Outcome::Nested(answer_of(&nested)),
    });
    Answer {
        revision: answer.header().map_or(0, etcd_client::ResponseHeader::revision),
        succeeded: answer.succeeded(),
        results: results.collect(),
    }
}

fn stored(kv: &KeyValue) -> Stored {
    Stored { value: kv.value().to_vec(), modified: kv.mod_revision() }
}
