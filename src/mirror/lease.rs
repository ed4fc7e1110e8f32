//! Leases: carries out what the machine wants of them, on connections of their own. So keeping them alive waits for no
//! page and for no transaction, and a side that does not answer here is not given up there.
//!
//! A request ends with what was answered in time; the machine asks for the rest again.

use std::time::Duration;

use etcd_client::{Client, Error, GetOptions, LeaseClient, LeaseGrantOptions};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::connect::{Access, Connection, told};
use super::follow::Came;
use super::keyspace::{Keyspace, Side};
use super::machine::{Event, LeaseAnswer, LeaseRequest};

/// How long the leases of a request may take together on one side: a lease lives 2 s at least, and usually far longer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Leases that are asked for at the same time.
const TOGETHER: usize = 16;
/// How long a lease lives that the source does not have any more. The deletes of its keys are on their way.
const PASSING_SECONDS: i64 = 60;

/// Both sides, as far as leases go.
pub(super) struct Lessor {
    source: Way,
    target: Way,
    /// One that the mirror may read in the source.
    key: Vec<u8>,
    running: Vec<AbortHandle>,
    came: mpsc::Sender<Came>,
}

/// The way to one side.
#[derive(Clone)]
struct Way {
    side: Side,
    access: Access,
    connection: Connection,
    turn: usize,
}

/// The side that did not answer, and why.
type Failure = (Side, String);

/// What was answered, and what was not.
type Round<T> = (Vec<T>, Option<Failure>);

impl Lessor {
    pub(super) fn new(source: Access, target: Access, keyspace: &Keyspace, came: mpsc::Sender<Came>) -> Self {
        let way = |side, access| Way { side, access, connection: Connection::default(), turn: 0 };
        Self {
            source: way(Side::Source, source),
            target: way(Side::Target, target),
            key: keyspace.hull(Side::Source).start,
            running: Vec::new(),
            came,
        }
    }

    pub(super) fn ask(&mut self, request: LeaseRequest) {
        let (source, target, key) = (self.source.clone(), self.target.clone(), self.key.clone());
        let came = self.came.clone();
        let task = tokio::spawn(async move {
            let (answer, failure) = match request {
                LeaseRequest::Grant(ids) => {
                    let (granted, failure) = grant(&source, &target, ids).await;
                    (LeaseAnswer::Granted(granted), failure)
                }
                LeaseRequest::Keep(ids) => {
                    let (kept, failure) = keep(&target, ids).await;
                    (LeaseAnswer::Kept(kept), failure)
                }
                LeaseRequest::Look(ids) => {
                    let (gone, revision, failure) = look(&source, key, ids).await;
                    (LeaseAnswer::Looked(gone, revision), failure)
                }
            };
            let (silent, problem) = failure.unzip();
            // Nobody listens any more when the mirror ends.
            drop(came.send((Event::Lease(answer, silent), problem)).await);
        });
        self.running.retain(|task| !task.is_finished());
        self.running.push(task.abort_handle());
    }

    /// The next request to this side goes to another endpoint, on a new connection.
    pub(super) fn go_elsewhere(&mut self, side: Side) {
        let way = match side {
            Side::Source => &mut self.source,
            Side::Target => &mut self.target,
        };
        way.turn += 1;
        way.connection = Connection::default();
    }

    pub(super) fn hang_up(&mut self) {
        for task in self.running.drain(..) {
            task.abort();
        }
    }
}

impl Way {
    async fn client(&self) -> Result<Client, Failure> {
        let client = self.connection.client(&self.access, self.turn).await;
        client.map_err(|error| (self.side, error.to_string()))
    }

    fn failed(&self, error: &Error) -> Failure {
        (self.side, told(&self.access, self.turn, error))
    }

    /// Asks for each, some at the same time, for as long as a request may take.
    async fn each<I, T, F>(&self, items: Vec<I>, ask: impl Fn(LeaseClient, I) -> F) -> Round<T>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let client = match self.client().await {
            Ok(client) => client,
            Err(failure) => return (Vec::new(), Some(failure)),
        };
        let (mut answers, mut failure) = (Vec::new(), None);
        let asked = futures::stream::iter(items).map(|item| ask(client.lease_client(), item));
        let mut asked = asked.buffer_unordered(TOGETHER);
        let all = async {
            while let Some(answer) = asked.next().await {
                match answer {
                    Ok(answer) => answers.push(answer),
                    Err(error) => failure = Some(self.failed(&error)),
                }
            }
        };
        if tokio::time::timeout(DEADLINE, all).await.is_err() {
            failure = Some(self.failed(&late()));
        }
        (answers, failure)
    }

    /// A linearizable read: what is asked on this connection after it is as new as that. The revision.
    async fn read(&self, key: Vec<u8>) -> Result<i64, Failure> {
        let client = self.client().await?;
        let mut kv = client.kv_client();
        let read = kv.get(key, Some(GetOptions::new().with_keys_only()));
        match tokio::time::timeout(DEADLINE, read).await {
            Err(_) => Err(self.failed(&late())),
            Ok(Err(error)) => Err(self.failed(&error)),
            Ok(Ok(answer)) => Ok(answer.header().map_or(0, etcd_client::ResponseHeader::revision)),
        }
    }
}

fn late() -> Error {
    Error::Internal(format!("leases: no answer within {}s", DEADLINE.as_secs()))
}

/// Makes leases in the target that live as long as those of the source. One that is there already is as good.
async fn grant(source: &Way, target: &Way, ids: Vec<i64>) -> Round<(i64, i64)> {
    let lives = |mut leases: LeaseClient, id| async move {
        let seconds = life(&mut leases, id).await?;
        Ok((id, if seconds > 0 { seconds } else { PASSING_SECONDS }))
    };
    let (lives, unknown) = source.each(ids, lives).await;
    let grant = |mut leases: LeaseClient, (id, seconds)| async move {
        match leases.grant(seconds, Some(LeaseGrantOptions::new().with_id(id))).await {
            Ok(granted) => Ok((id, granted.ttl())),
            Err(error) if says(&error, "lease already exists") && renew(&mut leases, id).await? => {
                Ok((id, life(&mut leases, id).await?))
            }
            Err(error) => Err(error),
        }
    };
    let (granted, failure) = target.each(lives, grant).await;
    (granted, failure.or(unknown))
}

/// Keeps leases of the target alive.
async fn keep(target: &Way, ids: Vec<(i64, i64)>) -> Round<(i64, i64)> {
    let keep = |mut leases: LeaseClient, (id, seconds)| async move {
        let seconds = match (renew(&mut leases, id).await?, seconds) {
            (false, _) => 0,
            (true, 0) => life(&mut leases, id).await?,
            (true, seconds) => seconds,
        };
        Ok((id, seconds))
    };
    let (kept, failure) = target.each(ids, keep).await;
    let ended = kept.iter().filter(|(_, seconds)| *seconds == 0).count();
    if ended > 0 {
        tracing::info!("{ended} leases that were kept alive in the target have ended there");
    }
    (kept, failure)
}

/// Which of these the source does not have, and a revision that it had no earlier than that. A lease of which the leader
/// knows nothing is gone, and its keys with it, in the revision of a read after that or before; if it is the leader: a
/// member that answers a linearizable read knows who that is.
async fn look(source: &Way, key: Vec<u8>, ids: Vec<i64>) -> (Vec<i64>, i64, Option<Failure>) {
    if let Err(failure) = source.read(key.clone()).await {
        return (Vec::new(), 0, Some(failure));
    }
    let look = |mut leases: LeaseClient, id| async move { Ok((id, life(&mut leases, id).await?)) };
    let (lives, failure) = source.each(ids, look).await;
    match source.read(key).await {
        Ok(revision) => {
            let gone = lives.iter().filter(|(_, seconds)| *seconds == 0).map(|(id, _)| *id);
            (gone.collect(), revision, failure)
        }
        Err(failure) => (Vec::new(), 0, Some(failure)),
    }
}

/// Begins the life of a lease anew; `false`: there is none.
async fn renew(leases: &mut LeaseClient, id: i64) -> Result<bool, Error> {
    match leases.keep_alive(id).await {
        Ok(_) => Ok(true),
        Err(error) if says(&error, "lease not found") => Ok(false),
        Err(error) => Err(error),
    }
}

/// How long a lease lives from its last renewal on; 0: there is none. One that has ended, and whose keys are still
/// there, is one.
async fn life(leases: &mut LeaseClient, id: i64) -> Result<i64, Error> {
    Ok(leases.time_to_live(id, None).await?.granted_ttl().max(0))
}

/// Whether etcd, or its client, says so.
fn says(error: &Error, words: &str) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().contains(words))
        || matches!(error, Error::LeaseKeepAliveError(message) if message.contains(words))
}
