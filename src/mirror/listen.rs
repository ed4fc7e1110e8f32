//! Watches of the source: what they say, in its order, to the machine, which reads no faster than it can write.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::{WatchOptions, WatchResponse};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::assembler::{Canceled, Event as WatchEvent, Response};
use super::batch::Change;
use super::follow::{Came, Line};
use super::keyspace::Span;
use super::machine::Event;
use super::windows::{Sizes, Taken, Windows};

/// How long etcd may take to answer the first word of a watch.
const WATCH_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of an answer of a watch. etcd sends what came before `created` in one piece, however large.
pub(super) const WATCH_BYTES: usize = 1 << 30;

/// Answers of one watch that wait for whoever reads them; the rest waits in the connection's window, and at the source.
pub(super) const ANSWERS: usize = 4;

/// What is to be watched.
pub(super) struct Watch {
    /// Tells its answers from those of others.
    pub number: u64,
    /// First revision.
    pub from: i64,
    /// A watcher each.
    pub spans: Vec<Span>,
    /// What lies far behind may be read through windows.
    pub windows: bool,
}

/// A watch that runs until it ends, or this is dropped. It says last that it has ended, and why if it knows.
pub(super) struct Listener {
    task: AbortHandle,
    ask: mpsc::Sender<()>,
}

impl Listener {
    pub(super) fn start(line: Line, watch: Watch, heard: mpsc::Sender<Came>) -> Self {
        let (ask, asked) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            let ended = if watch.windows {
                line.catch_up(&watch, asked, &heard).await
            } else {
                line.listen(&watch, asked, &heard).await
            };
            let denied = ended.as_ref().is_err_and(|problem| problem.contains("permission denied"));
            let ending = if denied { Event::WatchDenied } else { Event::WatchEnded };
            drop(heard.send((ending(watch.number), ended.err())).await);
        });
        Self { task: task.abort_handle(), ask }
    }

    /// How far is it? One question that waits is as good as two.
    pub(super) fn ask_for_progress(&self) {
        let waits = self.ask.try_send(()).is_err();
        tracing::trace!(waits, "progress is asked for");
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Line {
    /// One stream, as it is. Until it ends, or nobody hears.
    async fn listen(
        &self,
        watch: &Watch,
        mut asked: mpsc::Receiver<()>,
        heard: &mpsc::Sender<Came>,
    ) -> Result<(), String> {
        let client = self.client().await?;
        let mut watches = client.watch_client().max_decoding_message_size(WATCH_BYTES);
        let Some((first, others)) = watch.spans.split_first() else { return Ok(()) };
        let opened = watches.watch(first.start.clone(), Some(options(first, watch.from)));
        let mut stream = self.within(WATCH_DEADLINE, opened).await?;
        for span in others {
            let opened = stream.watch(span.start.clone(), Some(options(span, watch.from)));
            self.within(WATCH_DEADLINE, opened).await?;
        }
        loop {
            let Ok(room) = heard.reserve().await else { return Ok(()) };
            let message = tokio::select! {
                message = stream.message() => message,
                Some(()) = asked.recv() => {
                    stream.request_progress().await.map_err(|error| self.told(&error))?;
                    continue;
                }
            };
            let Some(message) = message.map_err(|error| self.told(&error))? else { return Ok(()) };
            let response = response_of(message);
            if let Some(Canceled { compacted: 0, reason }) = &response.canceled
                && !reason.contains("compacted")
            {
                return Err(format!("the source ended the watch: {reason}"));
            }
            room.send((Event::Watched(watch.number, response), None));
        }
    }

    /// One stream, or several while much lies ahead. Until one of them ends, or nobody hears.
    async fn catch_up(
        &self,
        watch: &Watch,
        mut asked: mpsc::Receiver<()>,
        heard: &mpsc::Sender<Came>,
    ) -> Result<(), String> {
        let (say, mut said) = mpsc::channel(ANSWERS);
        let start = |(number, from)| {
            let window = Watch { number, from, spans: watch.spans.clone(), windows: false };
            (number, Listener::start(self.clone(), window, say.clone()))
        };
        let mut windows = Windows::new(watch.from, Sizes::default());
        let mut listeners = BTreeMap::from([start((0, watch.from))]);
        loop {
            let (event, problem) = tokio::select! {
                Some(said) = said.recv() => said,
                Some(()) = asked.recv() => {
                    let created = windows.created().filter_map(|number| listeners.get(&number));
                    created.for_each(Listener::ask_for_progress);
                    continue;
                }
            };
            let Event::Watched(number, response) = event else {
                // One that was closed may have ended just before.
                if let Event::WatchEnded(number) | Event::WatchDenied(number) = event
                    && !listeners.contains_key(&number)
                {
                    continue;
                }
                return problem.map_or(Ok(()), Err);
            };
            let Taken { ready, open, close } = windows.take(number, response);
            listeners.retain(|number, _| !close.contains(number));
            if !open.is_empty() {
                tracing::debug!(opened = open.len(), "history is read through further windows");
            }
            listeners.extend(open.into_iter().map(start));
            for response in ready {
                if heard.send((Event::Watched(watch.number, response), None)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

fn options(span: &Span, from: i64) -> WatchOptions {
    let options = WatchOptions::new().with_range(span.range_end()).with_start_revision(from);
    options.with_progress_notify().with_fragment()
}

/// etcd-client's answer has no accessor for `fragment`.
fn response_of(answer: WatchResponse) -> Response {
    let answer = answer.0;
    let canceled = answer
        .canceled
        .then(|| Canceled { compacted: answer.compact_revision, reason: answer.cancel_reason.clone() });
    let events = answer.events.into_iter().filter_map(|event| {
        let kv = event.kv?;
        // DELETE is 1; a kind that is not known yet would have to be a put of some sort.
        let value = (event.r#type != 1).then_some(kv.value);
        let change = Change { key: kv.key, value, lease: kv.lease };
        Some(WatchEvent { revision: kv.mod_revision, change })
    });
    let header = answer.header.unwrap_or_default();
    Response {
        watcher: answer.watch_id,
        head: header.revision,
        cluster: header.cluster_id,
        created: answer.created,
        canceled,
        fragment: answer.fragment,
        events: events.collect(),
    }
}
