//! Looks at revisions of the target that the mirror did not make: whether somebody changed mirrored keys in them.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::{Client, Error, WatchOptions};
use tokio::time::MissedTickBehavior;

use super::assembler::STREAM;
use super::config::MirrorId;
use super::keyspace::{Fate, Keyspace, Side, Span, next_key};
use super::listen::WATCH_BYTES;
use super::machine::{KEYS, Look, progress_is_exact};

/// etcd answers a question for progress only while all watchers have everything, so it is asked again and again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Changes of mirrored keys in one revision: how many, and one of them.
type Changes = BTreeMap<i64, (u64, Vec<u8>)>;

/// Looks at the revisions `from..=through`. The caller sets the deadline.
pub(super) async fn look(
    client: &Client,
    id: &MirrorId,
    keyspace: &Keyspace,
    (from, through): (i64, i64),
) -> Result<Look, Error> {
    let unknown = Look { unknown: true, ..Look::default() };
    if !progress_is_exact(client.maintenance_client().status().await?.version()) {
        return Ok(unknown);
    }
    let checkpoint = id.key("checkpoint");
    let own = Span { start: checkpoint.clone(), end: Some(next_key(&checkpoint)) };
    let spans: Vec<Span> = keyspace.spans(Side::Target).into_iter().chain([own]).collect();
    let mut watches = client.watch_client().max_decoding_message_size(WATCH_BYTES);
    let options = |span: &Span| {
        WatchOptions::new().with_range(span.range_end()).with_start_revision(from).with_fragment()
    };
    let Some((first, others)) = spans.split_first() else { return Ok(Look::default()) };
    let mut stream = watches.watch(first.start.clone(), Some(options(first))).await?;
    for span in others {
        stream.watch(span.start.clone(), Some(options(span))).await?;
    }
    let mut clock = tokio::time::interval(ASK_AGAIN);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut created, mut changes, mut ours) = (0, Changes::new(), Vec::new());
    loop {
        let message = tokio::select! {
            message = stream.message() => message?,
            _ = clock.tick(), if created == spans.len() => {
                stream.request_progress().await?;
                continue;
            }
        };
        let Some(message) = message else {
            return Err(Error::Internal("the watch has ended".to_owned()));
        };
        if message.canceled() {
            let gone = message.compact_revision() > 0 || message.cancel_reason().contains("compacted");
            return if gone { Ok(unknown) } else { Err(Error::Internal(message.cancel_reason().to_owned())) };
        }
        created += usize::from(message.created());
        let head = message.header().map_or(0, etcd_client::ResponseHeader::revision);
        if message.watch_id() == STREAM && head >= through {
            return Ok(found(changes, &ours));
        }
        for kv in message.events().iter().filter_map(etcd_client::Event::kv) {
            let revision = kv.mod_revision();
            if kv.key() == checkpoint {
                ours.push(revision);
            } else if revision <= through && matches!(keyspace.of_target(kv.key()), Fate::Mirrored(_)) {
                changes.entry(revision).or_insert_with(|| (0, kv.key().to_vec())).0 += 1;
            }
        }
    }
}

fn found(mut changes: Changes, ours: &[i64]) -> Look {
    for revision in ours {
        changes.remove(revision);
    }
    let names = changes.values().take(KEYS).map(|(_, key)| key.clone());
    Look {
        writes: changes.values().map(|(count, _)| count).sum(),
        first: changes.keys().next().copied(),
        keys: names.collect(),
        unknown: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_with_a_checkpoint_is_ours() {
        let changes = [(4, (2, b"a".to_vec())), (5, (1, b"b".to_vec())), (7, (3, b"c".to_vec()))];
        let look = found(changes.into_iter().collect(), &[4, 6]);
        assert_eq!(
            look,
            Look { writes: 4, first: Some(5), keys: vec![b"b".to_vec(), b"c".to_vec()], unknown: false }
        );
        assert_eq!(found(Changes::new(), &[3]), Look::default());
    }
}
