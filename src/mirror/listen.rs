//! Watches of the source: what they say, in its order, to the machine, which reads no faster than it can write.

use std::time::Duration;

use etcd_client::{Client, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc;

use super::assembler::{Canceled, Event as WatchEvent, Response};
use super::batch::Change;
use super::follow::{Came, Line};
use super::keyspace::Span;
use super::machine::Event;
use super::windows::{Sizes, Windows};

/// How long etcd may take to answer the first word of a watch.
const WATCH_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of an answer of a watch. etcd sends what came before `created` in one piece, however large.
pub(super) const WATCH_BYTES: usize = 1 << 30;

/// Who hears what a watch says, and asks for its progress.
pub(super) struct Hearer {
    /// Of the watch.
    pub number: u64,
    /// Wishes for progress.
    pub asked: mpsc::Receiver<()>,
    /// Where answers go.
    pub heard: mpsc::Sender<Came>,
}

impl Line {
    /// A watcher each, as it is. Until the watch ends, or nobody hears.
    pub(super) async fn listen(
        &self,
        spans: Vec<Span>,
        from: i64,
        hearer: &mut Hearer,
    ) -> Result<(), String> {
        let client = self.client().await?;
        let mut stream = self.open(&client, spans.iter().map(|span| (span, from))).await?;
        loop {
            // What nobody takes waits in the connection's window, and at the source.
            let Ok(room) = hearer.heard.reserve().await else { return Ok(()) };
            let message = tokio::select! {
                message = stream.message() => message,
                Some(()) = hearer.asked.recv() => {
                    stream.request_progress().await.map_err(|error| self.told(&error))?;
                    continue;
                }
            };
            let Some(message) = message.map_err(|error| self.told(&error))? else { return Ok(()) };
            room.send((Event::Watched(hearer.number, checked(response_of(message))?), None));
        }
    }

    /// The same of one span; what lies far behind is read through windows.
    pub(super) async fn catch_up(&self, span: &Span, from: i64, hearer: &mut Hearer) -> Result<(), String> {
        let client = self.client().await?;
        let mut windows = Windows::one(from, Sizes::default());
        loop {
            let stream = self.open(&client, windows.starts().map(|from| (span, from))).await?;
            let Some(next) = self.hear(stream, span, windows, hearer).await? else { return Ok(()) };
            let watchers = next.starts().count();
            tracing::debug!(watchers, from = next.starts().next(), "the watch goes on with another stream");
            windows = next;
        }
    }

    /// Until the watch ends, or nobody hears, or other windows are better than these.
    async fn hear(
        &self,
        mut stream: WatchStream,
        span: &Span,
        mut windows: Windows,
        hearer: &mut Hearer,
    ) -> Result<Option<Windows>, String> {
        loop {
            tokio::select! {
                message = stream.message() => {
                    let Some(message) = message.map_err(|error| self.told(&error))? else { return Ok(None) };
                    let taken = windows.take(response_of(message));
                    for from in taken.open {
                        let opened = stream.watch(span.start.clone(), Some(options(span, from)));
                        self.within(WATCH_DEADLINE, opened).await?;
                    }
                    for watcher in taken.close {
                        self.within(WATCH_DEADLINE, stream.cancel(watcher)).await?;
                    }
                    for response in taken.ready {
                        let event = Event::Watched(hearer.number, checked(response)?);
                        if hearer.heard.send((event, None)).await.is_err() {
                            return Ok(None);
                        }
                    }
                }
                Some(()) = hearer.asked.recv() => {
                    if windows.may_ask() {
                        self.within(WATCH_DEADLINE, stream.request_progress()).await?;
                    }
                }
            }
            if let Some(next) = windows.successor() {
                return Ok(Some(next));
            }
        }
    }

    /// A stream with these watchers.
    async fn open<'a>(
        &self,
        client: &Client,
        watchers: impl Iterator<Item = (&'a Span, i64)>,
    ) -> Result<WatchStream, String> {
        let mut client = client.watch_client().max_decoding_message_size(WATCH_BYTES);
        let mut watchers = watchers.map(|(span, from)| (span.start.clone(), Some(options(span, from))));
        let (start, first) = watchers.next().ok_or("nothing is to be watched")?;
        let mut stream = self.within(WATCH_DEADLINE, client.watch(start, first)).await?;
        for (start, options) in watchers {
            self.within(WATCH_DEADLINE, stream.watch(start, options)).await?;
        }
        Ok(stream)
    }
}

fn options(span: &Span, from: i64) -> WatchOptions {
    let options = WatchOptions::new().with_range(span.range_end()).with_start_revision(from);
    options.with_progress_notify().with_fragment()
}

/// A watch that was ended for another reason than a compaction is a problem of the source.
fn checked(response: Response) -> Result<Response, String> {
    match &response.canceled {
        Some(Canceled { compacted: 0, reason }) if !reason.contains("compacted") => {
            Err(format!("the source ended the watch: {reason}"))
        }
        Some(_) | None => Ok(response),
    }
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
