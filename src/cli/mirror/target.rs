//! What needs the target only: to look at a checkpoint or a list, to promote, and to take a claim away.

use super::arguments::{OfTarget, mirror_id};
use crate::cli::problem::Problem;
use crate::cli::{Exit, terminal};
use crate::mirror::agent::lost::Lost;
use crate::mirror::checkpoint::{Checkpoint, Position};
use crate::mirror::connect::Connection;
use crate::mirror::write::read_own;
use crate::mirror::{promote, release};

pub(super) async fn promote(of: OfTarget) -> anyhow::Result<Exit> {
    let (id, access) = (mirror_id(&of.id)?, of.target.access()?);
    let done = promote::promote(&access, &id).await?;
    let had = done.checkpoint.as_ref().map_or("an unknown revision".to_owned(), |checkpoint| {
        format!("revision {} of {}", checkpoint.position.revision(), checkpoint.source.cluster)
    });
    terminal::print(&format!(
        "promoted in term {} at revision {} of the target, which has {had} of the source\n",
        done.term, done.revision
    ))?;
    let whole =
        done.checkpoint.is_some_and(|checkpoint| matches!(checkpoint.position, Position::Stream { .. }));
    if !whole {
        terminal::complain("a scan had not ended: the target holds a mix of old and new keys");
    }
    if done.leased > 0 {
        terminal::print(&format!(
            "{} keys that had a lease in the source end in 60 s, unless their owners put them again\n",
            done.leased
        ))?;
    }
    match &done.let_in {
        Ok(false) => {}
        Ok(true) => {
            terminal::print("writers that an earlier switch kept out have their permissions again\n")?;
        }
        Err(why) => terminal::complain(&format!(
            "writers may still be kept out by an earlier switch: {why}; do it again with --target-user root"
        )),
    }
    Ok(if whole && done.let_in.is_ok() { Exit::Done } else { Exit::Degraded })
}

pub(super) async fn release(of: OfTarget) -> anyhow::Result<Exit> {
    let (id, access) = (mirror_id(&of.id)?, of.target.access()?);
    let text = match release::release(&access, &id).await? {
        Some(claim) => format!(
            "the mirror {:?} from {} claims {:?} no more, and no agent of it writes there\n",
            id.as_str(),
            claim.source,
            claim.prefixes
        ),
        None => format!("the mirror {:?} has no claim in this target\n", id.as_str()),
    };
    terminal::print(&text)?;
    Ok(Exit::Done)
}

pub(super) async fn lost(of: OfTarget) -> anyhow::Result<Exit> {
    let (id, access) = (mirror_id(&of.id)?, of.target.access()?);
    let client = Connection::default().client(&access, 0).await?;
    let answer = client.kv_client().get(id.key("lost"), None).await.map_err(|error| {
        Problem::Other(format!("the target does not answer: {}", crate::etcd::survey::words(&error)))
    })?;
    let Some(kv) = answer.kvs().first() else {
        terminal::print("no list: no site has come back since this one was promoted\n")?;
        return Ok(Exit::Done);
    };
    let lost = Lost::parse(kv.value())
        .map_err(|problem| Problem::Other(format!("the list is not as an agent wrote it: {problem}")))?;
    terminal::print(&listed(&lost))?;
    Ok(Exit::Done)
}

/// A line a key.
fn listed(lost: &Lost) -> String {
    let mut text = format!(
        "{} at revision {}, looked at in term {}: {} keys put and {} deleted that this side never got\n",
        lost.site, lost.revision, lost.term, lost.put_count, lost.delete_count
    );
    for put in &lost.puts {
        text.push_str(&format!("put {} (revision {})\n", put.key, put.revision));
    }
    for key in &lost.deletes {
        text.push_str(&format!("deleted {key}\n"));
    }
    if !lost.whole {
        text.push_str("the list is cut here\n");
    }
    text
}

pub(super) async fn checkpoint(of: OfTarget) -> anyhow::Result<Exit> {
    let (id, access) = (mirror_id(&of.id)?, of.target.access()?);
    let client = Connection::default().client(&access, 0).await?;
    let own = read_own(&client, &id).await.map_err(|error| {
        Problem::Other(format!("the target does not answer: {}", crate::etcd::survey::words(&error)))
    })?;
    let Some(stored) = own.checkpoint else {
        return Err(
            Problem::Other(format!("the target has no checkpoint of the mirror {:?}", id.as_str())).into()
        );
    };
    let checkpoint = Checkpoint::parse(&stored.value).map_err(|problem| {
        Problem::Other(format!("the checkpoint is not as a mirror wrote it: {problem}"))
    })?;
    terminal::print(&format!("{}\n", serde_json::to_string_pretty(&checkpoint)?))?;
    Ok(Exit::Done)
}
