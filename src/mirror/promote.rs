//! Promotes a target: from then on it is written to directly, and no agent writes into it any more.

use etcd_client::{
    Client, Compare, CompareOp, Error, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, Txn, TxnOp,
};

use super::authorize::give_back;
use super::checkpoint::{Checkpoint, Owner, Role, Site, SiteRole};
use super::config::MirrorId;
use super::connect::{Access, reach, told_of};
use super::machine::Own;
use super::write::read_own;

/// How long keys that had a lease in the source live on after a promotion, unless somebody keeps them: stale locks and
/// heartbeats would else stay for ever.
const GRACE_SECONDS: i64 = 60;
/// Keys that get the grace lease in one transaction: below etcd's default limit.
const BATCH: usize = 60;

/// What a promotion did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// The new term.
    pub term: u64,
    /// Of the target.
    pub revision: i64,
    /// How far it had come; absent if it cannot be read.
    pub checkpoint: Option<Checkpoint>,
    /// Keys that end in a minute.
    pub leased: usize,
    /// Whether writers that an earlier switch kept out of the target were let in; or why they were not.
    pub let_in: Result<bool, String>,
}

/// Why it was not done, or not wholly.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PromoteError(pub String);

/// Takes the target, whoever owns it, and reads the checkpoint in the same transaction. Done already, it only ends what
/// may be left of it.
pub async fn promote(target: &Access, id: &MirrorId) -> Result<Promoted, PromoteError> {
    let client = reach(target).await.map_err(|error| PromoteError(error.to_string()))?;
    let failed = |error: Error| PromoteError(told_of(target, &error));
    let own = read_own(&client, id).await.map_err(failed)?;
    if own.checkpoint.is_none() {
        return Err(PromoteError(format!(
            "the target has no checkpoint of the mirror {:?}: is it the target?",
            id.as_str()
        )));
    }
    let (term, revision, checkpoint) = match done(&own) {
        Some(done) => done,
        None => take(&client, id, &own).await.map_err(failed)?,
    };
    let leased = grace(&client, id).await.map_err(failed)?;
    let let_in = give_back(target, id).await.map_err(|error| error.to_string());
    Ok(Promoted { term, revision, checkpoint, leased, let_in })
}

/// The promotion that was done before.
fn done(own: &Own) -> Option<(u64, i64, Option<Checkpoint>)> {
    let owner = own.owner.as_ref()?;
    let promoted = Owner::parse(&owner.value).is_ok_and(|owner| owner.role == Role::Promoted);
    let site = Site::parse(&own.site.as_ref()?.value).ok()?;
    let checkpoint = own.checkpoint.as_ref().and_then(|stored| Checkpoint::parse(&stored.value).ok());
    (promoted && site.role == SiteRole::Active).then_some((site.term, owner.modified, checkpoint))
}

async fn take(client: &Client, id: &MirrorId, own: &Own) -> Result<(u64, i64, Option<Checkpoint>), Error> {
    let site = own.site.as_ref().and_then(|stored| Site::parse(&stored.value).ok());
    let term = site.as_ref().map_or(0, |site| site.term) + 1;
    let owner = Owner { epoch: format!("{:032x}", rand::random::<u128>()), role: Role::Promoted };
    let peer = site.as_ref().map_or(String::new(), |site| site.peer.clone());
    let handled_active = site.map_or(String::new(), |site| site.handled_active);
    let site = Site { term, role: SiteRole::Active, peer, handled_active };
    let transaction = Txn::new().and_then([
        TxnOp::put(id.key("owner"), owner.text(), None),
        TxnOp::put(id.key("site"), site.text(), None),
        TxnOp::get(id.key("checkpoint"), None),
    ]);
    let answer = client.kv_client().txn(transaction).await?;
    let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
    let read = answer.op_responses().into_iter().find_map(|result| match result {
        etcd_client::TxnOpResponse::Get(read) => read.kvs().first().map(|kv| kv.value().to_vec()),
        etcd_client::TxnOpResponse::Put(_)
        | etcd_client::TxnOpResponse::Delete(_)
        | etcd_client::TxnOpResponse::Txn(_) => None,
    });
    Ok((term, revision, read.and_then(|value| Checkpoint::parse(&value).ok())))
}

/// Gives every parked key a lease that ends.
pub(super) async fn grace(client: &Client, id: &MirrorId) -> Result<usize, Error> {
    let mut leases = client.lease_client();
    let options = LeaseTimeToLiveOptions::new().with_keys();
    let parked = leases.time_to_live(id.parking_lease(), Some(options)).await?;
    if parked.keys().is_empty() {
        return Ok(0);
    }
    let lease = leases.grant(GRACE_SECONDS, Some(LeaseGrantOptions::new())).await?.id();
    for keys in parked.keys().chunks(BATCH) {
        // Whoever has deleted a key meanwhile, or has put it anew, is left alone.
        let kept = keys.iter().map(|key| {
            let options = PutOptions::new().with_ignore_value().with_lease(lease);
            let still = Compare::lease(key.clone(), CompareOp::Equal, id.parking_lease());
            TxnOp::txn(Txn::new().when([still]).and_then([TxnOp::put(key.clone(), "", Some(options))]))
        });
        client.kv_client().txn(Txn::new().and_then(kept.collect::<Vec<_>>())).await?;
    }
    Ok(parked.keys().len())
}
