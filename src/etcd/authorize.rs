//! Turns etcd's auth on and off.
//!
//! Users are the common names of certificates. `AuthEnable` is the last of several calls, each of which can be made
//! again: until it is made nobody is asked for anything, so a crash in between is harmless, and what was made before
//! it is found by the next attempt. What exists and is not empty is somebody's and stays as it is.

use std::time::Duration;

use etcd_client::{Client, Permission, UserAddOptions};

use super::connect::{Address, ClientIdentity, ConnectError, connect};

/// How long all calls may take together.
const DEADLINE: Duration = Duration::from_secs(5);
/// The user, and the role, that may do everything.
const ROOT: &str = "root";
/// A user that is never made.
const STRANGER: &str = "quorate-asks-whether-auth-is-on";
/// What etcd answers without auth (`api/v3rpc/rpctypes/error.go`, `ErrGRPCAuthNotEnabled`).
const NOT_ENABLED: &str = "etcdserver: authentication is not enabled";
/// What it answers to a stranger with auth (`ErrGRPCAuthFailed`).
const UNKNOWN_USER: &str = "etcdserver: authentication failed, invalid user ID or password";

/// Auth could not be asked for, turned on or turned off; whether it was done is unknown.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No connection.
    #[error("no member was reached")]
    Connect(#[from] ConnectError),
    /// etcd refused.
    #[error("etcd refused to {what}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: etcd_client::Error,
    },
    /// No answer.
    #[error("no answer within {}s", DEADLINE.as_secs())]
    Deadline,
}

/// Whether auth is on. etcd's own question for it goes through the log of raft, and our client does not have it; so a
/// user that does not exist asks for a token: without auth nobody gets one, with auth this one does not. With auth
/// the member logs a warning with the name, which therefore says what it is for.
pub async fn is_enabled(address: &Address, identity: &ClientIdentity) -> Result<bool, AuthError> {
    let asked = async {
        let client = connect(address, Some(identity)).await?;
        is_on(&client).await.map_err(refused("tell whether auth is on"))
    };
    tokio::time::timeout(DEADLINE, asked).await.map_err(|_| AuthError::Deadline)?
}

/// The same, of whoever a client speaks to.
pub async fn is_on(client: &Client) -> Result<bool, etcd_client::Error> {
    match client.auth_client().authenticate(STRANGER.to_owned(), String::new()).await {
        Ok(_) => Ok(true),
        Err(etcd_client::Error::GRpcStatus(status)) if status.message() == NOT_ENABLED => Ok(false),
        Err(etcd_client::Error::GRpcStatus(status)) if status.message() == UNKNOWN_USER => Ok(true),
        Err(error) => Err(error),
    }
}

/// Turns auth on. `user` may read and write every key, if nobody has said otherwise before.
pub async fn turn_on(address: &Address, identity: &ClientIdentity, user: &str) -> Result<(), AuthError> {
    let done = async {
        let mut client = connect(address, Some(identity)).await?;
        ensure_user(&mut client, ROOT, ROOT).await?;
        ensure_role(&mut client, user).await?;
        ensure_user(&mut client, user, user).await?;
        client.auth_enable().await.map(|_| ()).map_err(refused("turn auth on"))
    };
    tokio::time::timeout(DEADLINE, done).await.map_err(|_| AuthError::Deadline)?
}

/// Turns auth off. Users and roles stay.
pub async fn turn_off(address: &Address, identity: &ClientIdentity) -> Result<(), AuthError> {
    let done = async {
        let mut client = connect(address, Some(identity)).await?;
        client.auth_disable().await.map(|_| ()).map_err(refused("turn auth off"))
    };
    tokio::time::timeout(DEADLINE, done).await.map_err(|_| AuthError::Deadline)?
}

/// A role for every key, unless there is one of that name with any permission.
async fn ensure_role(client: &mut Client, role: &str) -> Result<(), AuthError> {
    let roles = client.role_list().await.map_err(refused("list roles"))?;
    if !roles.roles().iter().any(|known| known == role) {
        client.role_add(role).await.map_err(refused("make a role"))?;
    }
    let known = client.role_get(role).await.map_err(refused("show a role"))?;
    if known.permissions().is_empty() {
        let everything = Permission::read_write(vec![0]).with_all_keys();
        client.role_grant_permission(role, everything).await.map_err(refused("grant a permission"))?;
    }
    Ok(())
}

/// A user without a password, who can only come with a certificate; root always has its role.
async fn ensure_user(client: &mut Client, user: &str, role: &str) -> Result<(), AuthError> {
    let users = client.user_list().await.map_err(refused("list users"))?;
    if !users.users().iter().any(|known| known == user) {
        let options = UserAddOptions::new().with_no_pwd();
        client.user_add(user, "", Some(options)).await.map_err(refused("make a user"))?;
    }
    let known = client.user_get(user).await.map_err(refused("show a user"))?;
    let roles = known.roles();
    if roles.is_empty() || (role == ROOT && !roles.iter().any(|known| known == ROOT)) {
        client.user_grant_role(user, role).await.map_err(refused("grant a role"))?;
    }
    Ok(())
}

fn refused(what: &'static str) -> impl Fn(etcd_client::Error) -> AuthError {
    move |source| AuthError::Refused { what, source }
}
