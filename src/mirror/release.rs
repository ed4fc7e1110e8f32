//! Takes the claim of a mirror that is no more out of its target: nobody else can know that it is no more.

use etcd_client::{Compare, CompareOp, Error, Txn, TxnOp};

use super::checkpoint::{Claim, Owner, Role, claims_text, parse_claims};
use super::config::{MirrorId, claims_key};
use super::connect::{Access, Connection, told};
use super::transaction::Stored;
use super::write::{read_own, within};

/// Other mirrors write the same key when they begin: so often it is tried.
const TRIES: u32 = 10;

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ReleaseError(pub String);

/// Takes it away; `None`: there is none. In the same transaction the target is taken from an agent that still runs: it
/// would else go on writing beside whoever claims the range next. Its checkpoint stays, so it may begin again.
pub async fn release(target: &Access, id: &MirrorId) -> Result<Option<Claim>, ReleaseError> {
    let failed = |error: Error| ReleaseError(told(target, 0, &error));
    let client =
        Connection::default().client(target, 0).await.map_err(|error| ReleaseError(error.to_string()))?;
    for _ in 0..TRIES {
        let own = within(read_own(&client, id)).await.map_err(failed)?;
        let Some(stored) = &own.claims else { return Ok(None) };
        let mut claims = parse_claims(&stored.value)
            .map_err(|problem| ReleaseError(format!("the key `claims` of the target: {problem}")))?;
        let Some(claim) = claims.remove(id.as_str()) else { return Ok(None) };
        let unchanged = |key: Vec<u8>, stored: &Option<Stored>| {
            let modified = stored.as_ref().map_or(0, |stored| stored.modified);
            Compare::mod_revision(key, CompareOp::Equal, modified)
        };
        let when = [unchanged(claims_key(), &own.claims), unchanged(id.key("owner"), &own.owner)];
        let mut then = vec![TxnOp::put(claims_key(), claims_text(&claims), None)];
        if own.owner.as_ref().is_some_and(writes) {
            let nobody = Owner { epoch: format!("{:032x}", rand::random::<u128>()), role: Role::Agent };
            then.push(TxnOp::put(id.key("owner"), nobody.text(), None));
        }
        let transaction = Txn::new().when(when).and_then(then);
        let answer = within(client.kv_client().txn(transaction)).await.map_err(failed)?;
        if answer.succeeded() {
            return Ok(Some(claim));
        }
    }
    Err(ReleaseError("other mirrors change their claims all the time; try again".to_owned()))
}

/// Whether it may be an agent's; a promoted target stays promoted.
fn writes(owner: &Stored) -> bool {
    Owner::parse(&owner.value).is_ok_and(|owner| owner.role == Role::Agent)
}
