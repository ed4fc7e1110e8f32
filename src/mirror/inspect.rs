//! Asks a source how much of its history is gone. No status of etcd tells it; a watch of what is gone ends with the
//! revision up to which it is (`compact_revision` of etcd's WatchResponse).

use std::time::Duration;

use etcd_client::{Client, Error, GetOptions, WatchOptions};

use super::connect::{Access, Connection, told};
use super::keyspace::{Keyspace, Side};

/// How long all requests together may take.
const DEADLINE: Duration = Duration::from_secs(8);
/// etcd's first revision of a client is 2.
const FIRST: i64 = 2;

/// It is not known.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InspectError(String);

/// The revision up to which the source's history is gone; 0: nothing is. It asks the endpoint whose turn it is.
pub async fn discarded(
    source: &Access,
    (connection, turn): (&Connection, usize),
    keyspace: &Keyspace,
) -> Result<i64, InspectError> {
    let asked = async {
        let client =
            connection.client(source, turn).await.map_err(|error| InspectError(error.to_string()))?;
        // One key that the mirror's role may read.
        let key = keyspace.hull(Side::Source).start;
        ask(&client, key).await.map_err(|error| InspectError(told(source, turn, &error)))
    };
    let late = || InspectError(format!("no answer within {} s", DEADLINE.as_secs()));
    tokio::time::timeout(DEADLINE, asked).await.map_err(|_| late())?
}

async fn ask(client: &Client, key: Vec<u8>) -> Result<i64, Error> {
    let old = client.kv_client().get(key.clone(), Some(GetOptions::new().with_revision(FIRST))).await;
    match old {
        Ok(_) => return Ok(0),
        Err(error) if says(&error, "future revision") => return Ok(0),
        Err(error) if says(&error, "compacted") => {}
        Err(error) => return Err(error),
    }
    let options = WatchOptions::new().with_start_revision(FIRST);
    let mut watch = client.watch_client().watch(key, Some(options)).await?;
    while let Some(answer) = watch.message().await? {
        if answer.compact_revision() > 0 {
            return Ok(answer.compact_revision());
        }
    }
    Err(Error::WatchError("the watch ended without a word of the compaction".to_owned()))
}

fn says(error: &Error, words: &str) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().contains(words))
}
