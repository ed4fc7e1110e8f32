//! Switches the sites over: the side that follows becomes active, and the one that was active follows it.
//!
//! How far a switch has come is in the keys `site` of both sides, so whoever begins after a crash goes on from there:
//!
//! | old active side | new active side | what is next |
//! |---|---|---|
//! | active, term t | follower, term t | Verify, Fence, Drain, Compare, Promote, from the beginning |
//! | the same, with a key `fence`, and the file wants no switch | | Abort |
//! | active, term t | active, term t + 1 | the new side's writers are let in, if it has a key `fence`; Reverse |
//! | follower, term t + 1 | active, term t + 1 | done: a mirror the other way |
//! | active, term t | active, later, by a person | nothing, until the file names the new side: then Fence, List, and Reverse once a person has seen the list |
//!
//! - **Invariant (S1), one side:** no two sides are active in one term. Promote writes the new side's term, and compares what
//!   it was.
//! - **Invariant (S2), nothing is lost:** what is promoted was compared after the writers of the old side were stopped, and
//!   nothing was different. Promote compares the owner, the checkpoint and the site of that comparison: no agent has
//!   written since.
//! - **Invariant (S3), nothing is overwritten early:** the old side is written to only once its own key `site` says that it
//!   follows in the new term, in one transaction with the checkpoint from which the mirror the other way begins.
//! - **Invariant (S4), it can be taken back:** until Promote, nothing has happened but copying, and what was taken from
//!   the old side's writers is written down there. An attempt to switch begins with a word of its own in the key `switch`
//!   of the new side, and Promote compares it. Whoever takes a switch back, or begins another, takes that word away first
//!   and gives the writers back what was theirs only then: a promotion that is late changes nothing.
//!
//! The mirror the other way begins with a scan of what both sides have: nearly all is equal and is not written. What a
//! person's fence did not stop, and keys of the old side whose lease has ended since, it makes as they are at the new side.

use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, Error, GetOptions, Txn, TxnOp};

use crate::etcd::ClusterId;
use crate::mirror::checkpoint::{Area, Checkpoint, Identity, Owner, Position, Role, Scan, Site, SiteRole};
use crate::mirror::config::{Config, MirrorId, Policy};
use crate::mirror::connect::{Access, reach, told_of};
use crate::mirror::keyspace::{Fate, Side};
use crate::mirror::machine::Own;
use crate::mirror::promote::grace;
use crate::mirror::transaction::Stored;
use crate::mirror::verify::Verdict;
use crate::mirror::write::{read_own, within};

/// How long all requests of a step may take together.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often a switch is taken back anew where it is not known whether it was: a promotion can be in between once only.
const ATTEMPTS: u32 = 5;

/// A step was not done, or it is not known whether it was: the sites' records say, when they are read again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SwitchError(pub String);

/// Both sides of one mirror.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The mirror's name inside etcd.
    pub id: MirrorId,
    /// The side that was active.
    pub old: Access,
    /// The side that becomes active.
    pub new: Access,
    /// Which keys are where, seen from the new side.
    pub back: Config,
}

/// One try to switch: the word of it in the key `switch` of the new side.
#[derive(Clone, Debug)]
pub struct Attempt(String);

/// Begins an attempt; one that began before can no longer promote.
pub async fn attempt(pair: &Pair) -> Result<Attempt, SwitchError> {
    timed(async {
        let client = client(&pair.new).await?;
        let site = follower(&own(&client, &pair.new, &pair.id).await?)?;
        let (key, word) = (pair.id.key("switch"), epoch());
        let transaction =
            Txn::new().when([is(pair.id.key("site"), &site)]).and_then([TxnOp::put(key, word.clone(), None)]);
        let answer = within(client.kv_client().txn(transaction)).await.map_err(said(&pair.new))?;
        if answer.succeeded() {
            return Ok(Attempt(word));
        }
        Err(SwitchError("the sites' records have changed meanwhile".to_owned()))
    })
    .await
}

/// Keeps every attempt that has begun from promoting; `false`: one has, and nothing is taken back any more.
pub async fn take_back(pair: &Pair) -> Result<bool, SwitchError> {
    timed(async {
        for _ in 0..ATTEMPTS {
            let client = client(&pair.new).await?;
            let own = own(&client, &pair.new, &pair.id).await?;
            if own.site.as_ref().is_some_and(is_active) {
                return Ok(false);
            }
            let transaction = Txn::new()
                .when([is(pair.id.key("site"), &follower(&own)?)])
                .and_then([TxnOp::delete(pair.id.key("switch"), None)]);
            // An answer that is lost, or says no: the records say what became of it.
            if within(client.kv_client().txn(transaction)).await.is_ok_and(|answer| answer.succeeded()) {
                return Ok(true);
            }
        }
        Err(SwitchError("it is not known whether the switch was taken back".to_owned()))
    })
    .await
}

fn is_active(site: &Stored) -> bool {
    Site::parse(&site.value).is_ok_and(|site| site.role == SiteRole::Active)
}

/// The key `site` of a side that follows.
fn follower(own: &Own) -> Result<Stored, SwitchError> {
    let lost = || SwitchError("the side that follows has lost its key `site`".to_owned());
    let site = own.site.clone().ok_or_else(lost)?;
    match parsed(&site)?.role {
        SiteRole::Follower => Ok(site),
        SiteRole::Active => Err(SwitchError("the side that follows is active already".to_owned())),
    }
}

/// Makes the new side active, if nothing has moved since `compared` and nobody has taken the attempt back; its new term.
pub async fn promote(
    pair: &Pair,
    attempt: &Attempt,
    compared: &Verdict,
    to: &str,
) -> Result<u64, SwitchError> {
    timed(async {
        let client = client(&pair.new).await?;
        let own = own(&client, &pair.new, &pair.id).await?;
        let (Some(owner), Some(checkpoint)) = (&own.owner, &own.checkpoint) else {
            return Err(SwitchError("the side that follows has lost the mirror's keys".to_owned()));
        };
        let site = follower(&own)?;
        let before = parsed(&site)?;
        is_as_compared(checkpoint, compared)?;
        let next = Site {
            term: before.term + 1,
            role: SiteRole::Active,
            peer: before.peer.clone(),
            handled_active: to.to_owned(),
        };
        let promoted = Owner { epoch: epoch(), role: Role::Promoted };
        let key = |name: &str| pair.id.key(name);
        let transaction = Txn::new()
            .when([
                is(key("owner"), owner),
                is(key("checkpoint"), checkpoint),
                is(key("site"), &site),
                Compare::value(key("switch"), CompareOp::Equal, attempt.0.clone()),
            ])
            .and_then([
                TxnOp::put(key("owner"), promoted.text(), None),
                TxnOp::put(key("site"), next.text(), None),
                TxnOp::delete(key("switch"), None),
            ]);
        let answer = within(client.kv_client().txn(transaction)).await.map_err(said(&pair.new))?;
        if !answer.succeeded() {
            return Err(SwitchError(
                "the side that follows was written to after it was compared, or the switch was taken back"
                    .to_owned(),
            ));
        }
        within(grace(&client, &pair.id)).await.map_err(said(&pair.new))?;
        Ok(next.term)
    })
    .await
}

/// Lets the old side follow the new one, which is active in `term`. Done already, it does nothing. `begins` is the scan
/// with which the mirror the other way begins.
pub async fn reverse(pair: &Pair, term: u64, to: &str, begins: Scan) -> Result<(), SwitchError> {
    timed(async {
        let (old, new) = (client(&pair.old).await?, client(&pair.new).await?);
        let own = own(&old, &pair.old, &pair.id).await?;
        let Some(site) = &own.site else {
            return Err(SwitchError("the side that was active has lost its key `site`".to_owned()));
        };
        let before = parsed(site)?;
        if before.role == SiteRole::Follower && before.term == term {
            return Ok(());
        }
        if before.role != SiteRole::Active || before.term >= term {
            return Err(SwitchError(format!(
                "the side that was active is of term {}, and the new one of term {term}",
                before.term
            )));
        }
        let source = identity(&new, pair).await?;
        let next = Site {
            term,
            role: SiteRole::Follower,
            peer: source.cluster.to_string(),
            handled_active: to.to_owned(),
        };
        let written = follows(pair, &own, (site, &next), source, begins);
        let answer = within(old.kv_client().txn(written)).await.map_err(said(&pair.old))?;
        if answer.succeeded() {
            return Ok(());
        }
        Err(SwitchError("the mirror's keys on the side that was active have changed meanwhile".to_owned()))
    })
    .await
}

/// Mirrored keys of the old side that were put after this revision of it. Deletes leave nothing to be found.
pub async fn late(pair: &Pair, config: &Config, since: i64) -> Result<Vec<Vec<u8>>, SwitchError> {
    let keyspace = config.keyspace().map_err(|error| SwitchError(error.to_string()))?;
    timed(async {
        let client = client(&pair.old).await?;
        let mut keys = Vec::new();
        for span in keyspace.spans(Side::Source) {
            let options = GetOptions::new()
                .with_range(span.range_end())
                .with_keys_only()
                .with_min_mod_revision(since + 1);
            let found =
                within(client.kv_client().get(span.start, Some(options))).await.map_err(said(&pair.old))?;
            keys.extend(found.kvs().iter().map(|kv| kv.key().to_vec()));
        }
        keys.retain(|key| matches!(keyspace.of_source(key), Fate::Mirrored(_)));
        Ok(keys)
    })
    .await
}

/// The old side's keys from then on.
fn follows(pair: &Pair, own: &Own, (site, next): (&Stored, &Site), source: Identity, begins: Scan) -> Txn {
    let before = own.checkpoint.as_ref().and_then(|stored| Checkpoint::parse(&stored.value).ok());
    let counter = before.map_or(0, |checkpoint| checkpoint.counter) + 1;
    let owned = vec![Area { config: pair.back.clone(), below: None }];
    let checkpoint = Checkpoint {
        counter,
        position: Position::Resync(Scan { owned, began: counter, ..begins }),
        source,
        config: pair.back.clone(),
        policy: Policy::default(),
        // What the switch itself writes there is nobody's.
        looked: 0,
    };
    let owner = Owner { epoch: epoch(), role: Role::Agent };
    let key = |name: &str| pair.id.key(name);
    let unchanged = |name: &str, stored: &Option<Stored>| {
        let modified = stored.as_ref().map_or(0, |stored| stored.modified);
        Compare::mod_revision(key(name), CompareOp::Equal, modified)
    };
    Txn::new()
        .when([
            is(key("site"), site),
            unchanged("owner", &own.owner),
            unchanged("checkpoint", &own.checkpoint),
        ])
        .and_then([
            TxnOp::put(key("site"), next.text(), None),
            TxnOp::put(key("owner"), owner.text(), None),
            TxnOp::put(key("checkpoint"), checkpoint.text(), None),
        ])
}

/// Whether the checkpoint is the one of the comparison.
fn is_as_compared(checkpoint: &Stored, compared: &Verdict) -> Result<(), SwitchError> {
    let position = Checkpoint::parse(&checkpoint.value).map(|checkpoint| checkpoint.position);
    let same =
        matches!(position, Ok(Position::Stream { revision, offset: 0 }) if revision == compared.revision);
    if same && checkpoint.modified == compared.target_revision {
        return Ok(());
    }
    Err(SwitchError("the side that follows was written to after it was compared".to_owned()))
}

/// Who the new source is: a linearizable read first, so what its member says of itself is as new as that.
async fn identity(client: &Client, pair: &Pair) -> Result<Identity, SwitchError> {
    let read = within(client.kv_client().get(pair.id.key("site"), None)).await.map_err(said(&pair.new))?;
    let status = within(client.clone().status()).await.map_err(said(&pair.new))?;
    let cluster = read.header().map_or(0, etcd_client::ResponseHeader::cluster_id);
    Ok(Identity {
        cluster: ClusterId(cluster),
        term: status.raft_term(),
        applied: status.raft_applied_index(),
    })
}

pub(super) async fn client(access: &Access) -> Result<Client, SwitchError> {
    reach(access).await.map_err(|error| SwitchError(error.to_string()))
}

pub(super) async fn own(client: &Client, access: &Access, id: &MirrorId) -> Result<Own, SwitchError> {
    within(read_own(client, id)).await.map_err(said(access))
}

async fn timed<T>(step: impl Future<Output = Result<T, SwitchError>>) -> Result<T, SwitchError> {
    let late = || SwitchError(format!("no answer within {} s", DEADLINE.as_secs()));
    tokio::time::timeout(DEADLINE, step).await.map_err(|_| late())?
}

pub(super) fn said(access: &Access) -> impl Fn(Error) -> SwitchError {
    |error| SwitchError(told_of(access, &error))
}

fn parsed(site: &Stored) -> Result<Site, SwitchError> {
    Site::parse(&site.value).map_err(|error| SwitchError(format!("the key `site` of one side: {error}")))
}

fn is(key: Vec<u8>, stored: &Stored) -> Compare {
    Compare::value(key, CompareOp::Equal, stored.value.clone())
}

/// Of one run of one process; never used again.
fn epoch() -> String {
    format!("{:032x}", rand::random::<u128>())
}
