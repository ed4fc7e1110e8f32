//! Compares both sides at one pair of revisions, while the mirror goes on: the target as it is at one moment, and the
//! source at the revision that the checkpoint of that moment names.

use etcd_client::{Client, Error};

use super::checkpoint::{Checkpoint, Position};
use super::config::{Config, MirrorId};
use super::connect::{Access, reach, told_of};
use super::follow::{PAGE_BYTES, page_of, range};
use super::keyspace::{Keyspace, Side, Span, next_key};
use super::resync::{Compared, Counts, Differing, Entry, Nameless, Page, compare};
use super::text::shown;
use super::write::read_own;

/// Keys of a page.
const PAGE_KEYS: usize = 1024;
/// Differing keys that are named.
const NAMED: usize = 10;

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Of the source.
    pub revision: i64,
    /// Of the target.
    pub target_revision: i64,
    /// How many keys are alike, and how many not.
    pub counts: Counts,
    /// The first that are not.
    pub named: Vec<Differing>,
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct VerifyError(String);

/// Both sides, each at one revision.
pub(super) struct Both {
    /// The source.
    pub(super) source: Client,
    /// The target.
    pub(super) target: Client,
    /// Of the source.
    pub(super) revision: i64,
    /// Of the target.
    pub(super) target_revision: i64,
    /// Which keys are where.
    pub(super) keyspace: Keyspace,
    /// The same, as it was given.
    pub(super) config: Config,
    /// The mirror's parking lease.
    pub(super) parking: i64,
}

/// The same keys of both sides.
pub(super) struct Part {
    /// Of the source, in their order.
    pub(super) source: Vec<Entry>,
    /// Of the target, in theirs.
    pub(super) target: Vec<Entry>,
    /// Where the next part begins, as a key of the source; absent: there is none.
    pub(super) end: Option<Vec<u8>>,
}

/// Compares all mirrored keys.
pub async fn verify(source: &Access, target: &Access, id: &MirrorId) -> Result<Verdict, VerifyError> {
    let both = open(source, target, id).await?;
    let mut verdict = Verdict {
        revision: both.revision,
        target_revision: both.target_revision,
        counts: Counts::default(),
        named: Vec::new(),
    };
    let mut cursor: Option<Vec<u8>> = None;
    // Each turn goes on by a page, and ends with the keys.
    while let Some(place) = both.keyspace.next(cursor.as_deref()) {
        let (compared, end) = both.page(place, cursor.as_deref()).await?;
        verdict.counts.equal += compared.equal;
        verdict.counts.add(&compared.differing);
        let room = NAMED.saturating_sub(verdict.named.len());
        verdict.named.extend(compared.differing.into_iter().take(room));
        match end {
            Some(end) => cursor = Some(end),
            None => break,
        }
    }
    Ok(verdict)
}

async fn open(source: &Access, target: &Access, id: &MirrorId) -> Result<Both, VerifyError> {
    let connect = async |access: &Access| reach(access).await.map_err(|error| VerifyError(error.to_string()));
    let (source, client) = (connect(source).await?, connect(target).await?);
    let own = read_own(&client, id).await.map_err(|error| VerifyError(told_of(target, &error)))?;
    let Some(stored) = own.checkpoint else {
        return Err(VerifyError(format!("the target has no checkpoint of the mirror {:?}", id.as_str())));
    };
    let checkpoint = Checkpoint::parse(&stored.value).map_err(|problem| VerifyError(problem.to_string()))?;
    let Position::Stream { revision, offset: 0 } = checkpoint.position else {
        return Err(VerifyError(format!(
            "the mirror is in its phase {}: nothing to compare yet",
            checkpoint.position.phase()
        )));
    };
    let keyspace = checkpoint.config.keyspace().map_err(|problem| VerifyError(problem.to_string()))?;
    // The checkpoint's own revision is the newest of which it is certain that it speaks.
    Ok(Both {
        source,
        target: client,
        revision,
        target_revision: stored.modified,
        keyspace,
        config: checkpoint.config,
        parking: id.parking_lease(),
    })
}

impl Both {
    /// Compares a page, and says where the next begins.
    async fn page(
        &self,
        place: usize,
        cursor: Option<&[u8]>,
    ) -> Result<(Compared, Option<Vec<u8>>), VerifyError> {
        let Part { source, target, end } = self.part(place, cursor).await?;
        let compared = compare(&self.keyspace, (self.config.leases, self.parking), &source, &target);
        let compared = compared
            .map_err(|Nameless(key)| VerifyError(format!("the key {} has no name there", shown(&key))))?;
        Ok((compared, end))
    }

    /// The same keys of both sides, from `cursor` on in the mapping at `place`: as many as a page has.
    pub(super) async fn part(&self, place: usize, cursor: Option<&[u8]>) -> Result<Part, VerifyError> {
        let spans = self.keyspace.spans(Side::Source);
        let everything = Span { start: vec![0], end: None };
        let span = spans.get(place).map_or(everything, |span| span.from(cursor));
        let here = read(&self.source, &span, self.revision).await?;
        let mut end = bound(&here, &span);
        let part = Span { start: span.start.clone(), end: end.clone() };
        let there = self.keyspace.opposite(place, &part, Side::Source).unwrap_or(part);
        let target = read(&self.target, &there, self.target_revision).await?;
        if let (true, Some(last)) = (target.more, target.entries.last()) {
            let part = Span { start: vec![0], end: Some(next_key(&last.key)) };
            end = self.keyspace.opposite(place, &part, Side::Target).and_then(|span| span.end);
        }
        let before = |entry: &Entry| end.as_ref().is_none_or(|end| entry.key < *end);
        let source = here.entries.into_iter().filter(before).collect();
        Ok(Part { source, target: target.entries, end })
    }
}

fn bound(page: &Page, span: &Span) -> Option<Vec<u8>> {
    match page.entries.last() {
        Some(entry) if page.more => Some(next_key(&entry.key)),
        Some(_) | None => span.end.clone(),
    }
}

async fn read(client: &Client, span: &Span, revision: i64) -> Result<Page, VerifyError> {
    let mut kv = client.kv_client().max_decoding_message_size(PAGE_BYTES);
    let options = range(span, PAGE_KEYS).with_revision(revision);
    match tokio::time::timeout(super::follow::PAGE_DEADLINE, kv.get(span.start.clone(), Some(options))).await
    {
        Err(_) => Err(VerifyError("no answer in time".to_owned())),
        Ok(answer) => {
            answer.map(page_of).map_err(|error: Error| VerifyError(crate::etcd::survey::words(&error)))
        }
    }
}
