//! Takes the right to write from roles of one side, and gives it back; see [`fence`](super::fence) for what is kept.
//!
//! Each of both can be made again at any point, and is, by whoever begins after a crash. etcd cannot change a permission
//! and a key in one transaction, so an agent that was overtaken while it fenced finds out afterwards: the record is gone,
//! and it gives back what it took.

use std::path::Path;
use std::time::Duration;

use etcd_client::{
    AuthClient, Client, Compare, CompareOp, Error, Permission, PermissionType, RoleRevokePermissionOptions,
    Txn, TxnOp,
};

use super::config::MirrorId;
use super::connect::{Access, UserName, reach, told_of};
use super::fence::{Book, Fenced, Grant, Kind, Range, Record, Taken};
use super::keyspace::Span;
use super::transaction::Stored;
use super::write::within;
use crate::etcd::authorize::is_on;

/// How long all requests may take together.
const DEADLINE: Duration = Duration::from_secs(30);
/// Users that are looked at, one request each: above it the list is somebody's mistake.
const USERS: usize = 10_000;
/// What etcd says to a user's name and password while auth is off.
const NOT_ENABLED: &str = "authentication is not enabled";

/// A side is not fenced, or not open again.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// It cannot be done so: a person is needed.
    #[error("{0}")]
    Refused(String),
    /// It was not done, or it is not known whether it was.
    #[error("{0}")]
    Failed(String),
}

/// One side and its writers.
#[derive(Clone, Debug)]
pub struct Writers {
    /// The mirror's name inside etcd.
    pub id: MirrorId,
    /// The site's name.
    pub site: String,
    /// As etcd's user root.
    pub root: Access,
    /// As the mirror itself comes.
    pub own: Access,
    /// Roles of the writers.
    pub roles: Vec<String>,
    /// Mirrored keys there.
    pub spans: Vec<Span>,
}

/// Whether [`fence`] would be refused as things are.
pub async fn permits(side: &Writers) -> Result<(), FenceError> {
    timed(async {
        let own = own_user(&side.own).await;
        let fenced = Fenced { roles: &side.roles, own: own.as_deref(), spans: &side.spans };
        book_of_closable(&open(side).await?, side, &fenced).await.map(drop)
    })
    .await
}

/// Keeps writers out: done already, it only looks whether it holds.
pub async fn fence(side: &Writers) -> Result<(), FenceError> {
    timed(async {
        let own = own_user(&side.own).await;
        let fenced = Fenced { roles: &side.roles, own: own.as_deref(), spans: &side.spans };
        let client = open(side).await?;
        let book = book_of_closable(&client, side, &fenced).await?;
        let (record, stored) = note(&client, side, book.to_take(&fenced)).await?;
        let mut auth = client.auth_client();
        for taken in &record.taken {
            set(&mut auth, taken, taken.rest()).await.map_err(failed(&side.root))?;
        }
        confirm(side, &fenced, &record, &stored).await
    })
    .await
}

/// Whether the side is fenced as it was when [`fence`] came back.
pub async fn holds(side: &Writers) -> Result<(), FenceError> {
    timed(async {
        let own = own_user(&side.own).await;
        let fenced = Fenced { roles: &side.roles, own: own.as_deref(), spans: &side.spans };
        let client = open(side).await?;
        if stored(&client, &side.root, &side.id).await?.is_none() {
            return Err(FenceError::Failed(format!("the fence of {} was taken back meanwhile", side.site)));
        }
        closed(&client, side, &fenced).await
    })
    .await
}

/// Gives back whatever was taken on a side; whether anything was. The record is deleted last.
pub async fn give_back(root: &Access, id: &MirrorId) -> Result<bool, FenceError> {
    timed(async {
        let client = connected(root).await?;
        let Some(stored) = stored(&client, root, id).await? else { return Ok(false) };
        let record = parsed(&stored)?;
        let mut auth = client.auth_client();
        for taken in &record.taken {
            set(&mut auth, taken, Some(taken.kind)).await.map_err(failed(root))?;
        }
        // With a token that knows of the changes: etcd refuses those of a JWT that do not.
        let client = connected(root).await?;
        let key = id.key("fence");
        let unchanged = Compare::value(key.clone(), CompareOp::Equal, stored.value);
        let delete = Txn::new().when([unchanged]).and_then([TxnOp::delete(key, None)]);
        let answer = within(client.kv_client().txn(delete)).await.map_err(failed(root))?;
        if answer.succeeded() {
            return Ok(true);
        }
        Err(FenceError::Failed("the record of what was taken has changed meanwhile".to_owned()))
    })
    .await
}

/// After the last change: the record is still there, and nobody can write.
async fn confirm(
    side: &Writers,
    fenced: &Fenced<'_>,
    record: &Record,
    value: &[u8],
) -> Result<(), FenceError> {
    let client = connected(&side.root).await?;
    match stored(&client, &side.root, &side.id).await? {
        Some(stored) if stored.value == value => closed(&client, side, fenced).await,
        // It names all that was taken here, too, or whoever wrote it fences.
        Some(_) => Err(FenceError::Failed("another agent fences the same side".to_owned())),
        None => {
            let mut auth = client.auth_client();
            for taken in &record.taken {
                set(&mut auth, taken, Some(taken.kind)).await.map_err(failed(&side.root))?;
            }
            Err(FenceError::Failed(format!("the fence of {} was taken back meanwhile", side.site)))
        }
    }
}

/// Who may do what, unless a fence would not hold.
async fn book_of_closable(client: &Client, side: &Writers, fenced: &Fenced<'_>) -> Result<Book, FenceError> {
    let book = book(client, side).await?;
    match book.refusal(fenced) {
        None => Ok(book),
        Some(why) => Err(FenceError::Refused(format!("writers cannot be kept out of {}: {why}", side.site))),
    }
}

async fn closed(client: &Client, side: &Writers, fenced: &Fenced<'_>) -> Result<(), FenceError> {
    match book(client, side).await?.writer(fenced, &[]) {
        None => Ok(()),
        Some((user, role)) => Err(FenceError::Refused(format!(
            "the user {user} can still write mirrored keys at {} by the role {role}",
            side.site
        ))),
    }
}

/// Writes down what is taken, before any of it is: the record, and its value.
async fn note(client: &Client, side: &Writers, more: Vec<Taken>) -> Result<(Record, Vec<u8>), FenceError> {
    let before = stored(client, &side.root, &side.id).await?;
    let record = before.as_ref().map(parsed).transpose()?.unwrap_or_default().with(more);
    let value = record.text();
    if before.as_ref().is_some_and(|before| before.value == value) {
        return Ok((record, value));
    }
    let key = side.id.key("fence");
    let modified = before.map_or(0, |before| before.modified);
    let unchanged = Compare::mod_revision(key.clone(), CompareOp::Equal, modified);
    let put = Txn::new().when([unchanged]).and_then([TxnOp::put(key, value.clone(), None)]);
    let answer = within(client.kv_client().txn(put)).await.map_err(failed(&side.root))?;
    if answer.succeeded() {
        return Ok((record, value));
    }
    Err(FenceError::Failed("another agent fences the same side".to_owned()))
}

async fn stored(client: &Client, root: &Access, id: &MirrorId) -> Result<Option<Stored>, FenceError> {
    let answer = within(client.kv_client().get(id.key("fence"), None)).await.map_err(failed(root))?;
    let of = |kv: &etcd_client::KeyValue| Stored { value: kv.value().to_vec(), modified: kv.mod_revision() };
    Ok(answer.kvs().first().map(of))
}

fn parsed(stored: &Stored) -> Result<Record, FenceError> {
    Record::parse(&stored.value)
        .map_err(|error| FenceError::Refused(format!("the record of what was taken from writers: {error}")))
}

/// Users and their roles, and the roles that the fence names.
async fn book(client: &Client, side: &Writers) -> Result<Book, FenceError> {
    let mut auth = client.auth_client();
    let failed = failed(&side.root);
    let mut book = Book::default();
    let users = within(auth.user_list()).await.map_err(&failed)?;
    if users.users().len() > USERS {
        let text = format!("{} has {} users: at most {USERS} are looked at", side.site, users.users().len());
        return Err(FenceError::Refused(text));
    }
    for user in users.users() {
        let roles = within(auth.user_get(user.as_str())).await.map_err(&failed)?;
        book.users.insert(user.clone(), roles.roles().to_vec());
    }
    let mut roles: Vec<String> = book.users.values().flatten().chain(&side.roles).cloned().collect();
    roles.sort();
    roles.dedup();
    for role in roles {
        if let Some(grants) = grants(&mut auth, &role).await.map_err(&failed)? {
            book.roles.insert(role, grants);
        }
    }
    Ok(book)
}

/// What a role may do; `None`: there is none of that name.
async fn grants(auth: &mut AuthClient, role: &str) -> Result<Option<Vec<Grant>>, Error> {
    match within(auth.role_get(role)).await {
        Err(Error::GRpcStatus(status)) if status.message().contains("role name not found") => Ok(None),
        Err(error) => Err(error),
        Ok(answer) => Ok(Some(answer.permissions().iter().map(grant).collect())),
    }
}

fn grant(permission: &Permission) -> Grant {
    let range = Range { key: permission.key().to_vec(), end: permission.range_end().to_vec() };
    // Numbers of etcd's own definition; what is not known yet is taken for the most that there is.
    let kind = match permission.get_type() {
        0 => Kind::Read,
        1 => Kind::Write,
        _ => Kind::ReadWrite,
    };
    Grant { kind, range }
}

/// Makes a permission what it should be; `None`: none. Where the role is gone there is nothing to be changed.
async fn set(auth: &mut AuthClient, taken: &Taken, to: Option<Kind>) -> Result<(), Error> {
    let role = taken.role.as_str();
    let Some(range) = taken.range() else { return Ok(()) };
    let Some(found) = at(auth, role, &range).await? else { return Ok(()) };
    if found.iter().copied().eq(to) {
        return Ok(());
    }
    let Some(kind) = to else { return revoke(auth, role, &range).await };
    give(auth, role, &range, kind).await?;
    // etcd looks for the permission to replace by its first key only: where a role has two that begin with the same one
    // it adds a third, and the old one stays in force.
    if at(auth, role, &range).await?.is_some_and(|found| !found.iter().copied().eq(to)) {
        revoke(auth, role, &range).await?;
        give(auth, role, &range, kind).await?;
    }
    Ok(())
}

/// What a role may do with exactly this range.
async fn at(auth: &mut AuthClient, role: &str, range: &Range) -> Result<Option<Vec<Kind>>, Error> {
    let found = grants(auth, role).await?;
    let same = |grants: Vec<Grant>| {
        grants.into_iter().filter(|grant| grant.range == *range).map(|grant| grant.kind).collect()
    };
    Ok(found.map(same))
}

async fn give(auth: &mut AuthClient, role: &str, range: &Range, kind: Kind) -> Result<(), Error> {
    let kind = match kind {
        Kind::Read => PermissionType::Read,
        Kind::Write => PermissionType::Write,
        Kind::ReadWrite => PermissionType::Readwrite,
    };
    let permission = Permission::new(kind, range.key.clone()).with_range_end(range.end.clone());
    within(auth.role_grant_permission(role, permission)).await.map(drop)
}

async fn revoke(auth: &mut AuthClient, role: &str, range: &Range) -> Result<(), Error> {
    let options = RoleRevokePermissionOptions::new().with_range_end(range.end.clone());
    within(auth.role_revoke_permission(role, range.key.clone(), Some(options))).await.map(drop)
}

/// A connection as root, to a side where that means something.
async fn open(side: &Writers) -> Result<Client, FenceError> {
    let off = || FenceError::Refused(format!("auth is off at {}, so anybody can write there", side.site));
    let client = match connected(&side.root).await {
        Err(FenceError::Failed(why)) if why.contains(NOT_ENABLED) => return Err(off()),
        client => client?,
    };
    if within(is_on(&client)).await.map_err(failed(&side.root))? { Ok(client) } else { Err(off()) }
}

async fn connected(root: &Access) -> Result<Client, FenceError> {
    reach(root).await.map_err(|error| FenceError::Failed(error.to_string()))
}

/// The name by which etcd knows the mirror itself: that of its password, or of its certificate.
async fn own_user(access: &Access) -> Option<String> {
    match (&access.user, &access.certificate) {
        (Some((UserName::Said(name), _)), _) => Some(name.clone()),
        (Some((UserName::File(file), _)), _) => {
            let text = String::from_utf8(contents(file).await?).ok()?;
            Some(text.trim_end().to_owned())
        }
        (None, Some((certificate, _))) => common_name(&contents(certificate).await?),
        (None, None) => None,
    }
}

async fn contents(file: &Path) -> Option<Vec<u8>> {
    let file = file.to_owned();
    tokio::task::spawn_blocking(move || std::fs::read(file)).await.ok()?.ok()
}

fn common_name(pem: &[u8]) -> Option<String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}

async fn timed<T>(step: impl Future<Output = Result<T, FenceError>>) -> Result<T, FenceError> {
    let late = || FenceError::Failed(format!("no answer within {} s", DEADLINE.as_secs()));
    tokio::time::timeout(DEADLINE, step).await.map_err(|_| late())?
}

/// etcd says `permission denied` to whoever is not root.
fn failed(root: &Access) -> impl Fn(Error) -> FenceError {
    |error| {
        let text = told_of(root, &error);
        if text.contains("permission denied") {
            return FenceError::Refused(format!("{text}: the user that fence.root names is not root"));
        }
        FenceError::Failed(text)
    }
}
