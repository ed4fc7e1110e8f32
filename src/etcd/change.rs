//! Asks members over gRPC: the operator's way to them.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::{AlarmAction, AlarmType, Client, Error, GetOptions, MemberAddOptions};

use super::connect::{Address, ClientIdentity, connect};
use super::hash::KeyHash;
use super::membership::{Asked, Call, ChangeError, Members, Roll};
use super::survey::{Alarm, Silence, Survey, chain, hashes, listed, survey, words};
use super::{ClusterId, MemberId};

/// Deadline of one change: etcd itself gives up after 5 s + 2 elections (`ReqTimeout`), so what has no answer by
/// then has an unknown outcome.
const DEADLINE: Duration = Duration::from_secs(8);

/// gRPC to the members' client ports.
pub struct Dialled;

impl Members for Dialled {
    fn survey(
        &self,
        members: BTreeMap<String, Address>,
        identity: Option<ClientIdentity>,
    ) -> Asked<'_, Survey> {
        Box::pin(async move { survey(members, identity.as_ref()).await })
    }

    fn roll(
        &self,
        member: Address,
        identity: Option<ClientIdentity>,
    ) -> Asked<'_, Result<Roll, ChangeError>> {
        Box::pin(within(async move {
            let mut client = client(&member, identity.as_ref()).await?;
            ask_roll(&mut client).await.map_err(|error| sorted(&error))
        }))
    }

    fn hashes(
        &self,
        members: BTreeMap<String, Address>,
        identity: Option<ClientIdentity>,
        revision: i64,
    ) -> Asked<'_, BTreeMap<String, Result<KeyHash, Silence>>> {
        Box::pin(async move { hashes(members, identity.as_ref(), revision).await })
    }

    fn change(
        &self,
        member: Address,
        identity: Option<ClientIdentity>,
        call: Call,
    ) -> Asked<'_, Result<(), ChangeError>> {
        Box::pin(within(async move {
            let mut client = client(&member, identity.as_ref()).await?;
            ask_for(&mut client, call).await.map_err(|error| sorted(&error))
        }))
    }
}

async fn within<T>(request: impl Future<Output = Result<T, ChangeError>>) -> Result<T, ChangeError> {
    match tokio::time::timeout(DEADLINE, request).await {
        Ok(answer) => answer,
        Err(_) => Err(ChangeError::Unknown(format!("none within {}s", DEADLINE.as_secs()))),
    }
}

async fn client(member: &Address, identity: Option<&ClientIdentity>) -> Result<Client, ChangeError> {
    connect(member, identity).await.map_err(|error| ChangeError::Wait(chain(&error)))
}

/// A linearizable read first, as in a survey.
async fn ask_roll(client: &mut Client) -> Result<Roll, Error> {
    client.get("\0", Some(GetOptions::new().with_count_only())).await?;
    let status = client.status().await?;
    let list = client.member_list().await?;
    Ok(Roll {
        cluster_id: ClusterId(list.header().map_or(0, etcd_client::ResponseHeader::cluster_id)),
        leader: Some(status.leader()).filter(|leader| *leader != 0).map(MemberId),
        members: listed(&list),
    })
}

async fn ask_for(client: &mut Client, call: Call) -> Result<(), Error> {
    match call {
        Call::AddLearner(url) => {
            let options = MemberAddOptions::new().with_is_learner();
            client.cluster_client().member_add(vec![url], Some(options)).await.map(drop)
        }
        Call::Promote(id) => client.member_promote(id.0).await.map(drop),
        Call::Remove(id) => client.cluster_client().member_remove(id.0).await.map(drop),
        Call::MoveLeader(id) => client.move_leader(id.0).await.map(drop),
        Call::Disarm(id, Alarm::NoSpace) => disarm(client, id, AlarmType::Nospace).await,
        Call::Disarm(id, Alarm::Corrupt) => disarm(client, id, AlarmType::Corrupt).await,
        // etcd puts this question through its log.
        Call::Nudge => client.alarm(AlarmAction::Get, AlarmType::None, None).await.map(drop),
    }
}

async fn disarm(client: &mut Client, member: MemberId, alarm: AlarmType) -> Result<(), Error> {
    let mut options = etcd_client::AlarmOptions::new();
    options.with_member(member.0);
    client.alarm(AlarmAction::Deactivate, alarm, Some(options)).await.map(drop)
}

fn sorted(error: &Error) -> ChangeError {
    ChangeError::of(words(error))
}
