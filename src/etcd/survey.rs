//! Asks every member what it is and what it sees.
//!
//! **Invariant:** a survey never fails as a whole; "did not answer" is a value, never a zero.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::{AlarmAction, AlarmType, Client, GetOptions};
use futures::future::join_all;

use super::connect::{Address, ClientIdentity, connect};
use super::hash::KeyHash;
use super::{ClusterId, MemberId};

/// How long one member may take for all questions: far above a healthy answer (milliseconds), below the five
/// seconds between two surveys.
const DEADLINE: Duration = Duration::from_secs(3);

/// How long one member may take for its hash: a database of 8 GiB is read in that time from a slow disk.
const HASH_DEADLINE: Duration = Duration::from_secs(30);

/// What one member answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The cluster it is in.
    pub cluster_id: ClusterId,
    /// Its own ID.
    pub member_id: MemberId,
    /// The leader that it follows; `None`: it sees none.
    pub leader: Option<MemberId>,
    /// Whether it is a learner.
    pub learner: bool,
    /// Its raft term.
    pub raft_term: u64,
    /// The raft index that it has applied.
    pub applied_index: u64,
    /// Its store's revision.
    pub revision: i64,
    /// Size of its database file in bytes.
    pub db_size_bytes: i64,
    /// Its release.
    pub version: String,
    /// Errors that it reports of itself.
    pub errors: Vec<String>,
    /// Answers that need a leader and quorum; `None`: it could not give them.
    pub quorum: Option<QuorumAnswer>,
}

/// What a member knows after a linearizable read, so as of now.
#[derive(Clone, Debug, PartialEq)]
pub struct QuorumAnswer {
    /// The member list.
    pub members: Vec<ListedMember>,
    /// Alarms, by member.
    pub alarms: Vec<(MemberId, Alarm)>,
}

/// One row of the member list.
#[derive(Clone, Debug, PartialEq)]
pub struct ListedMember {
    /// Its ID.
    pub id: MemberId,
    /// Its name; empty until it has started once.
    pub name: String,
    /// Its peer URLs.
    pub peer_urls: Vec<String>,
    /// Whether it is a learner.
    pub learner: bool,
}

/// An alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// The database is full.
    NoSpace,
    /// Data differ between members.
    Corrupt,
}

/// Why there is no answer, as a chain of causes in one line.
pub type Silence = String;

/// The answer, or the silence, of each member that was asked, by name.
pub type Survey = BTreeMap<String, Result<Answer, Silence>>;

/// Asks all members at once.
pub async fn survey(members: BTreeMap<String, Address>, identity: Option<&ClientIdentity>) -> Survey {
    let questions = members.into_iter().map(async |(name, address)| {
        let answer = match tokio::time::timeout(DEADLINE, ask(&address, identity)).await {
            Err(_) => Err(format!("no answer within {}s", DEADLINE.as_secs())),
            Ok(answer) => answer,
        };
        (name, answer)
    });
    join_all(questions).await.into_iter().collect()
}

async fn ask(address: &Address, identity: Option<&ClientIdentity>) -> Result<Answer, Silence> {
    let mut client = connect(address, identity).await.map_err(|error| chain(&error))?;
    let status = client.status().await.map_err(|error| words(&error))?;
    let header = status.header().ok_or("a status without a header")?;
    Ok(Answer {
        cluster_id: ClusterId(header.cluster_id()),
        member_id: MemberId(header.member_id()),
        leader: Some(status.leader()).filter(|leader| *leader != 0).map(MemberId),
        learner: status.is_learner(),
        raft_term: status.raft_term(),
        applied_index: status.raft_applied_index(),
        revision: header.revision(),
        db_size_bytes: status.db_size(),
        version: status.version().to_owned(),
        errors: status.errors().to_vec(),
        quorum: if status.is_learner() { None } else { ask_quorum(&mut client).await.ok() },
    })
}

/// Asks all of them for their hash at a revision that all have.
pub async fn hashes(
    members: BTreeMap<String, Address>,
    identity: Option<&ClientIdentity>,
    revision: i64,
) -> BTreeMap<String, Result<KeyHash, Silence>> {
    let questions = members.into_iter().map(async |(name, address)| {
        let answer = match tokio::time::timeout(HASH_DEADLINE, ask_hash(&address, identity, revision)).await {
            Err(_) => Err(format!("no hash within {}s", HASH_DEADLINE.as_secs())),
            Ok(answer) => answer,
        };
        (name, answer)
    });
    join_all(questions).await.into_iter().collect()
}

async fn ask_hash(
    address: &Address,
    identity: Option<&ClientIdentity>,
    revision: i64,
) -> Result<KeyHash, Silence> {
    let mut client = connect(address, identity).await.map_err(|error| chain(&error))?;
    let answer = client.hash_kv(revision).await.map_err(|error| words(&error))?;
    Ok(KeyHash { hash: answer.hash(), compact_revision: answer.compact_version() })
}

/// A linearizable read first: etcd-client asks for a serializable member list, which on the same connection is
/// at least as new as the read before it (the linearizable list of etcd 3.5+ is the same two steps).
async fn ask_quorum(client: &mut Client) -> Result<QuorumAnswer, etcd_client::Error> {
    client.get("\0", Some(GetOptions::new().with_count_only())).await?;
    let list = client.member_list().await?;
    let members = listed(&list);
    // etcd puts every question for alarms through its log, so a quiet cluster's log would grow by each look. The
    // status knows them too, and after the read above it is as new as that.
    if !client.status().await?.errors().iter().any(|error| error.contains("alarm:")) {
        return Ok(QuorumAnswer { members, alarms: Vec::new() });
    }
    let alarms = client.alarm(AlarmAction::Get, AlarmType::None, None).await?;
    let alarms = alarms
        .alarms()
        .iter()
        .filter_map(|alarm| match alarm.alarm() {
            AlarmType::None => None,
            AlarmType::Nospace => Some((MemberId(alarm.member_id()), Alarm::NoSpace)),
            AlarmType::Corrupt => Some((MemberId(alarm.member_id()), Alarm::Corrupt)),
        })
        .collect();
    Ok(QuorumAnswer { members, alarms })
}

/// The rows of a member list.
pub(super) fn listed(list: &etcd_client::MemberListResponse) -> Vec<ListedMember> {
    let row = |member: &etcd_client::Member| ListedMember {
        id: MemberId(member.id()),
        name: member.name().to_owned(),
        peer_urls: member.peer_urls().to_vec(),
        learner: member.is_learner(),
    };
    list.members().iter().map(row).collect()
}

/// What etcd said, or the way to it. A gRPC status would show its code as prose and its causes as structures.
pub(crate) fn words(error: &etcd_client::Error) -> String {
    if let etcd_client::Error::GRpcStatus(status) = error {
        return with_causes(status.message().to_owned(), status);
    }
    chain(error)
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    with_causes(error.to_string(), error)
}

fn with_causes(mut text: String, error: &dyn std::error::Error) -> String {
    let mut cause = error.source();
    while let Some(source) = cause {
        let source_text = source.to_string();
        if !text.contains(&source_text) {
            text = format!("{text}: {source_text}");
        }
        cause = source.source();
    }
    text
}
