//! The floors. Nothing but the transactions that a mirror sends, one after the other, from keys and values that are at
//! hand: each has 63 × 64 nested puts, and compares and puts a checkpoint. And nothing but a watch of the same history.

use std::time::Instant;

use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp, WatchOptions};

/// Nested transactions of one transaction: with the checkpoint's put, half of etcd's default limit of 128.
const GROUPS: usize = 63;
/// Puts of each: the other half.
const GROUP: usize = 64;
const CHECKPOINT: &str = "/__quorate/mirror/bare/checkpoint";

/// Writes all of it; the seconds that it took.
pub(crate) async fn write(client: &mut Client, pairs: &[(Vec<u8>, Vec<u8>)]) -> f64 {
    client.put(CHECKPOINT, "0", None).await.unwrap();
    let begun = Instant::now();
    for (number, batch) in pairs.chunks(GROUPS * GROUP).enumerate() {
        let (before, next) = (number.to_string(), (number + 1).to_string());
        let groups = batch.chunks(GROUP).map(|group| {
            let puts = group.iter().map(|(key, value)| TxnOp::put(key.clone(), value.clone(), None));
            TxnOp::txn(Txn::new().and_then(puts.collect::<Vec<_>>()))
        });
        let checkpoint = TxnOp::put(CHECKPOINT, next, None);
        let unchanged = Compare::value(CHECKPOINT, CompareOp::Equal, before);
        let transaction =
            Txn::new().when([unchanged]).and_then(groups.chain([checkpoint]).collect::<Vec<_>>());
        assert!(client.txn(transaction).await.unwrap().succeeded(), "somebody else writes the checkpoint");
    }
    begun.elapsed().as_secs_f64()
}

/// Reads as many changes from a revision on; the seconds that it took.
pub(crate) async fn watch(client: &mut Client, from: i64, changes: usize) -> f64 {
    let begun = Instant::now();
    let options = WatchOptions::new().with_all_keys().with_start_revision(from);
    let mut stream = client.watch("", Some(options)).await.unwrap();
    let mut seen = 0;
    while seen < changes {
        seen += stream.message().await.unwrap().unwrap().events().len();
    }
    begun.elapsed().as_secs_f64()
}
