//! Looks at a site that is back after the other one was promoted without it: what it has of its own is listed, and the
//! list is kept at the promoted side before anything is written to the site that is back.

use etcd_client::{Client, GetOptions};

use super::lost::{Lost, Search};
use super::switch::{Pair, SwitchError, client, own, said};
use crate::mirror::checkpoint::Checkpoint;
use crate::mirror::connect::Access;
use crate::mirror::resync::Counts;
use crate::mirror::verify::Both;
use crate::mirror::write::within;

/// Lists what the old side of `pair`, named `site`, has that the new one, promoted in `term`, never got; and counts what
/// a mirror the other way would write. Page by page, both sides at one revision each.
pub async fn survey(pair: &Pair, site: &str, term: u64) -> Result<(Lost, Counts), SwitchError> {
    let (source, target) = (client(&pair.old).await?, client(&pair.new).await?);
    let own = own(&target, &pair.new, &pair.id).await?;
    let (Some(owner), Some(stored)) = (&own.owner, &own.checkpoint) else {
        return Err(SwitchError("the side that was promoted has lost the mirror's keys".to_owned()));
    };
    let checkpoint = Checkpoint::parse(&stored.value)
        .map_err(|problem| SwitchError(format!("the checkpoint of the promoted side: {problem}")))?;
    let keyspace = checkpoint.config.keyspace().map_err(|problem| SwitchError(problem.to_string()))?;
    let revision = head(pair, &source, &pair.old).await?;
    let target_revision = head(pair, &target, &pair.new).await?;
    let config = checkpoint.config.clone();
    let (parking, names) = (pair.id.parking_lease(), keyspace.clone());
    let both = Both { source, target, revision, target_revision, keyspace: names, config, parking };
    let begun = Lost { term, site: site.to_owned(), revision, ..Lost::default() };
    let mut search = Search::new(&keyspace, &checkpoint, owner.modified, begun);
    let mut cursor: Option<Vec<u8>> = None;
    // Each turn goes on by a page, and ends with the keys.
    while let Some(place) = keyspace.next(cursor.as_deref()) {
        let part = both.part(place, cursor.as_deref()).await;
        let part = part.map_err(|error| SwitchError(error.to_string()))?;
        search.page(&part.source, &part.target);
        match part.end {
            Some(end) => cursor = Some(end),
            None => break,
        }
    }
    Ok(search.end())
}

/// Keeps the list at the promoted side.
pub async fn keep(pair: &Pair, lost: &Lost) -> Result<(), SwitchError> {
    let client = client(&pair.new).await?;
    let put = within(client.kv_client().put(pair.id.key("lost"), lost.text(), None)).await;
    put.map(drop).map_err(said(&pair.new))
}

/// The newest revision of a side.
async fn head(pair: &Pair, client: &Client, access: &Access) -> Result<i64, SwitchError> {
    let count = GetOptions::new().with_count_only();
    let read =
        within(client.kv_client().get(pair.id.key("site"), Some(count))).await.map_err(said(access))?;
    Ok(read.header().map_or(0, etcd_client::ResponseHeader::revision))
}
