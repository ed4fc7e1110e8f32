//! How a cluster's certificate authorities are replaced. Pure: what the next change is, not how it is made.
//!
//! etcd reads its certificate and key at every handshake, but the authorities that it trusts only when it starts
//! (`client/pkg/transport/listener.go`: `GetCertificate` against `ClientCAs` and `RootCAs`; tried on 3.5, 3.6 and
//! 3.7). So a member cannot be taught to trust a new authority without a restart; but it need not be: the old
//! authority signs the new one's key too (the *cross certificate*), and every leaf of the new one is sent with it. Who
//! trusts only the old one, only the new one or both accepts such a leaf.
//!
//! | stage | signs | trusted, in files | leafs are sent with | left when |
//! |---|---|---|---|---|
//! | settled | A | A | – | a request, or less than 3 × `renewBefore` is left of A |
//! | overlap | B | A and B | cross certificate of B by A | `renewBefore` has passed, every leaf in a Secret is of B, and every member was *seen* to serve the one in its Secret |
//! | retiring | B | B | the same | every member was *seen* to refuse a certificate that A signed just now |
//! | settled | B | B | as they are until they are renewed | |
//!
//! In `retiring` the members are restarted one at a time (`plan/restart.rs`): one restart for each in a rotation.
//!
//! **Stored** in the Secret of the authorities itself, each stage in one write that names the resourceVersion it was
//! decided on, so a crash leaves the stage before or the stage after, never half of one:
//! `<use>-ca.crt`, `<use>-ca.key` (what signs), `<use>-ca-old.crt`, `<use>-ca-old.key`, `<use>-ca-cross.crt` (outside
//! of `settled`), with `client` and `peer` as use; `stage`, `since`, and `handled-request`.
//!
//! **Invariant: whoever holds a certificate that the cluster gave out is accepted for `renewBefore` after it was
//! replaced.** A member with the files of any stage and a process of the same or the stage before accepts the leafs of
//! all members: until every member serves a leaf of B, all of them trust A. What a process read at its start is never
//! newer than what its mounted files say, and a member's certificates and trust lie in one Secret, which the kubelet
//! exchanges as a whole: a member that serves the certificate in its Secret also reads its trust from there at its
//! next start.

use jiff::Timestamp;

use super::credentials::{Credentials, LeafState, SecretState, wanted};
use super::desired::Desired;
use crate::api::reason::Reason;

/// Where a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// There is one authority.
    Settled,
    /// Leafs are of the new one, both are trusted, since then.
    Overlap(Timestamp),
    /// Only the new one is trusted, by each member from its next start on.
    Retiring,
}

/// A step from one stage to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// `settled` → `overlap`: a new authority.
    Rotate {
        /// Why, for the event.
        why: String,
        /// The request that it answers.
        request: Option<String>,
    },
    /// `overlap` → `retiring`.
    Retire,
    /// `retiring` → `settled`: the old authority is forgotten.
    Forget,
}

impl Change {
    /// What a person may want to read.
    pub fn note(&self) -> (Reason, String) {
        match self {
            Self::Rotate { why, .. } => (
                Reason::AuthorityRotating,
                format!("new certificate authorities were made ({why}); all certificates are made anew"),
            ),
            Self::Retire => (
                Reason::AuthorityRotating,
                "all certificates are of the new authorities; members are restarted one at a time to trust only these".to_owned(),
            ),
            Self::Forget => {
                (Reason::AuthorityRotated, "every member trusts only the new certificate authorities".to_owned())
            }
        }
    }
}

/// What a member was seen to do in handshakes of this look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Presented {
    /// It serves the certificate that is in its Secret.
    pub current: bool,
    /// Whether it accepts a certificate of the old authority; `None`: not known.
    pub accepts_old: Option<bool>,
}

/// The next change, if it is time for it and everything before it is done.
pub fn due(desired: &Desired, credentials: &Credentials, members: &[String]) -> Option<Change> {
    let SecretState::Usable(authority) = &credentials.authority else { return None };
    let good = |secret: &String| matches!(credentials.leafs.get(secret), Some(LeafState::Good(_)));
    if !wanted(desired, members).iter().all(|leaf| good(&leaf.secret)) {
        return None;
    }
    let every_member = |seen: fn(&Presented) -> bool| {
        members.iter().all(|member| credentials.presented.get(member).is_some_and(seen))
    };
    let (now, before) = (credentials.looked_at, desired.lives.renew_before);
    match authority.stage {
        Stage::Settled => {
            let request = desired.rotation_request.clone().filter(|request| !request.is_empty());
            let request = request.filter(|request| authority.handled_request.as_ref() != Some(request));
            let why = match &request {
                Some(request) => Some(format!("the annotation quorate.dev/rotate-authority says {request}")),
                None => {
                    (authority.ends < now + before * 3).then(|| format!("they end at {}", authority.ends))
                }
            };
            // One that may sign no other authority cannot vouch for its successor.
            why.filter(|_| authority.may_cross).map(|why| Change::Rotate { why, request })
        }
        Stage::Overlap(since) => {
            (now >= since + before && every_member(|seen| seen.current)).then_some(Change::Retire)
        }
        Stage::Retiring => {
            every_member(|seen| seen.current && seen.accepts_old == Some(false)).then_some(Change::Forget)
        }
    }
}
