//! What needs the target only: to look at a checkpoint, and to promote.

use super::arguments::{OfTarget, mirror_id};
use crate::cli::problem::Problem;
use crate::cli::{Exit, terminal};
use crate::mirror::checkpoint::{Checkpoint, Position};
use crate::mirror::connect::Connection;
use crate::mirror::promote;
use crate::mirror::write::read_own;

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
    Ok(if whole { Exit::Done } else { Exit::Degraded })
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
