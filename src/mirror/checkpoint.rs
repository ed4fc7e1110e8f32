//! What a mirror keeps in etcd, under `/__quorate/mirror/<id>/`: `checkpoint`, `owner` and `site`, and `claims` beside
//! the folders of all mirrors. Each value is one line of JSON.
//!
//! The checkpoint is written in the transaction that writes the data, so a target that is restored from a backup has
//! the checkpoint of its data. It ends with a sum: a checkpoint that somebody edited is nothing to go on from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::circle::Origin;
use super::config::{Config, Policy};
use super::text;
use crate::etcd::ClusterId;

/// Which history of which etcd the source is. A restore keeps the cluster's ID, and even its term; only the applied
/// index of raft falls, so all of them are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// etcd's ID of the cluster.
    #[serde(with = "hex")]
    pub cluster: ClusterId,
    /// Of raft, as of the last look.
    pub term: u64,
    /// Index of raft that was applied, as of the last look.
    pub applied: u64,
}

/// How far a mirror has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Rises with every value, so no two are alike.
    pub counter: u64,
    /// What the target holds.
    pub position: Position,
    /// Whose revisions these are.
    pub source: Identity,
    /// Which keys are where.
    pub config: Config,
    /// What the first sync may do; kept until it has ended.
    pub policy: Policy,
    /// Revision of the target up to which no write of others stands; 0: nobody has looked.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub looked: i64,
}

/// What the target holds, in mirrored keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "lowercase")]
pub enum Position {
    /// Exactly what the source held at `revision`. With an `offset`: what it held before, and the first so many
    /// changes of `revision`, in the order of their target keys.
    Stream {
        /// Of the source.
        revision: i64,
        /// 0 but in the middle of a revision that no transaction can hold.
        #[serde(default)]
        offset: usize,
    },
    /// No scan has ended yet.
    First(Scan),
    /// A scan after one that ended.
    Resync(Scan),
}

/// A scan of both sides, page by page: of keys before `cursor` the target holds what the source held at `revision`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scan {
    /// The first source key that is not done; absent: none is.
    #[serde(with = "text::key")]
    pub cursor: Option<Vec<u8>>,
    /// Of the source; 0 while nothing is done.
    pub revision: i64,
    /// Parts of the target that the mirror itself has written before. Elsewhere the rules of a first sync hold.
    pub owned: Vec<Area>,
    /// Revisions of the target in which this scan added keys that its cursor had not passed yet.
    pub written: Vec<i64>,
    /// The counter when the scan began: what a person permits is this scan and no other.
    pub began: u64,
    /// Keys that it has deleted.
    pub deleted: u64,
    /// A person has seen what it will delete.
    pub approved: bool,
}

/// Keys that a mirror has made equal to the source before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Area {
    /// Which keys are where.
    pub config: Config,
    /// Source keys before this one; absent: all.
    #[serde(with = "text::key")]
    pub below: Option<Vec<u8>>,
}

/// Who may write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// Of one run of one process; never used again.
    pub epoch: String,
    /// What it does.
    pub role: Role,
}

/// What the owner of a target does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Copies into it.
    Agent,
    /// It was promoted: nobody copies into it.
    Promoted,
}

/// What a side is in a pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Site {
    /// Rises with every switch.
    pub term: u64,
    /// What it is.
    pub role: SiteRole,
    /// The other side's cluster.
    #[serde(default)]
    pub peer: String,
    /// The site that a spec named when this was written.
    #[serde(default)]
    pub handled_active: String,
}

/// What a side is in a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SiteRole {
    /// Writes go here.
    Active,
    /// It follows.
    Follower,
}

/// What every mirror into a target has claimed, by its id.
pub type Claims = BTreeMap<String, Claim>;

/// The part of the target that one mirror writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Prefixes in the target.
    pub prefixes: Vec<String>,
    /// The cluster that it copies.
    #[serde(with = "hex")]
    pub source: ClusterId,
    /// Where the keys come from that it brings.
    #[serde(default)]
    pub origins: Vec<Origin>,
}

/// A value that is not what we write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// No JSON, or not of this form.
    #[error("it cannot be read: {0}")]
    Form(String),
    /// The sum is another one.
    #[error("its sum does not match: it was edited by hand")]
    Sum,
}

/// Between the value and its sum.
const SUM: &str = ",\"sum\":\"";
/// Hex digits of the sum: edits by hand are found by four bytes as surely as by 32.
const SUM_DIGITS: usize = 8;

impl Checkpoint {
    /// As it is stored.
    pub fn text(&self) -> Vec<u8> {
        let json = written(self);
        let body = json.strip_suffix('}').unwrap_or(&json);
        format!("{body}{SUM}{}\"}}", digest(body, SUM_DIGITS)).into_bytes()
    }

    /// What was stored.
    pub fn parse(value: &[u8]) -> Result<Self, Unreadable> {
        let text = std::str::from_utf8(value).map_err(|_| Unreadable::Form("it is not UTF-8".to_owned()))?;
        let (body, sum) = text.rsplit_once(SUM).ok_or(Unreadable::Sum)?;
        if sum.strip_suffix("\"}") != Some(&digest(body, SUM_DIGITS)) {
            return Err(Unreadable::Sum);
        }
        serde_json::from_str(&format!("{body}}}")).map_err(|error| Unreadable::Form(error.to_string()))
    }
}

impl Scan {
    /// One that has done nothing yet.
    pub fn new(began: u64) -> Self {
        Self {
            cursor: None,
            revision: 0,
            owned: Vec::new(),
            written: Vec::new(),
            began,
            deleted: 0,
            approved: false,
        }
    }
}

impl Position {
    /// The scan that is under way.
    pub fn scan(&self) -> Option<&Scan> {
        match self {
            Self::First(scan) | Self::Resync(scan) => Some(scan),
            Self::Stream { .. } => None,
        }
    }

    /// The revision that it speaks of.
    pub fn revision(&self) -> i64 {
        match self {
            Self::Stream { revision, .. } => *revision,
            Self::First(scan) | Self::Resync(scan) => scan.revision,
        }
    }

    /// The last revision that the target has wholly; 0: a scan is under way, and it is like none.
    pub fn whole(&self) -> i64 {
        match self {
            Self::Stream { revision, offset: 0 } => *revision,
            Self::Stream { revision, .. } => *revision - 1,
            Self::First(_) | Self::Resync(_) => 0,
        }
    }

    /// The last revision whose changes are not needed any more.
    pub fn known(&self) -> i64 {
        self.scan().map_or_else(|| self.whole(), |scan| scan.revision)
    }

    /// As people read it.
    pub fn phase(&self) -> &'static str {
        match self {
            Self::Stream { .. } => "stream",
            Self::First(_) => "first",
            Self::Resync(_) => "resync",
        }
    }
}

macro_rules! one_line {
    ($type:ty) => {
        impl $type {
            /// As it is stored.
            pub fn text(&self) -> Vec<u8> {
                written(self).into_bytes()
            }

            /// What was stored.
            pub fn parse(value: &[u8]) -> Result<Self, Unreadable> {
                serde_json::from_slice(value).map_err(|error| Unreadable::Form(error.to_string()))
            }
        }
    };
}
one_line!(Owner);
one_line!(Site);

/// Claims as they are stored.
pub fn claims_text(claims: &Claims) -> Vec<u8> {
    written(claims).into_bytes()
}

/// Claims that were stored.
pub fn parse_claims(value: &[u8]) -> Result<Claims, Unreadable> {
    serde_json::from_slice(value).map_err(|error| Unreadable::Form(error.to_string()))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(revision: &i64) -> bool {
    *revision == 0
}

fn written(value: &impl Serialize) -> String {
    // Structs of strings and numbers: serde_json fails only for maps whose keys are no strings.
    serde_json::to_string(value).unwrap_or_default()
}

/// The first hex digits of SHA-256.
pub(super) fn digest(text: &str, digits: usize) -> String {
    let hash = Sha256::digest(text.as_bytes());
    let bytes = hash.iter().take(digits / 2);
    bytes.fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// IDs of clusters as etcdctl prints them.
pub(super) mod hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::etcd::ClusterId;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    pub(in super::super) fn serialize<S: Serializer>(id: &ClusterId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ClusterId, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn checkpoint(position: Position) -> Checkpoint {
        let source = Identity { cluster: ClusterId(0x6ff7_ad02_6669_1698), term: 3, applied: 156 };
        let config = Config::whole();
        Checkpoint { counter: 7, position, source, config, policy: Policy::default(), looked: 0 }
    }

    #[test]
    fn a_checkpoint_is_a_line_that_a_person_can_read() {
        let text = checkpoint(Position::Stream { revision: 3_020_127, offset: 0 }).text();
        expect![[r#"{"counter":7,"position":{"phase":"stream","revision":3020127,"offset":0},"source":{"cluster":"6ff7ad0266691698","term":3,"applied":156},"config":{"mappings":[{"source":"","target":""}],"ignore":[],"ignoreAt":"source","leases":"strip"},"policy":{"overwrite":false,"prune":false},"sum":"e3233a65"}"#]]
            .assert_eq(&String::from_utf8(text).unwrap());
    }

    #[test]
    fn every_checkpoint_comes_back() {
        let area = Area { config: Config::whole(), below: None };
        let cursor = Some(b"/a\xff".to_vec());
        let scan = Scan { cursor, revision: 9, owned: vec![area], written: vec![4], ..Scan::new(3) };
        for position in [
            Position::Stream { revision: 1, offset: 2 },
            Position::First(scan.clone()),
            Position::Resync(Scan { cursor: None, ..scan }),
        ] {
            let checkpoint = Checkpoint { looked: 77, ..checkpoint(position) };
            assert_eq!(Checkpoint::parse(&checkpoint.text()), Ok(checkpoint));
        }
    }

    #[test]
    fn an_edited_checkpoint_is_found() {
        let text =
            String::from_utf8(checkpoint(Position::Stream { revision: 12, offset: 0 }).text()).unwrap();
        let edited = text.replace("\"revision\":12", "\"revision\":11");
        assert_eq!(Checkpoint::parse(edited.as_bytes()), Err(Unreadable::Sum));
        for garbage in ["", "{}", "12", "\u{fffd}", &text[1..], &text[..text.len() - 3]] {
            assert!(Checkpoint::parse(garbage.as_bytes()).is_err(), "{garbage}");
        }
    }

    #[test]
    fn a_site_that_lacks_what_is_optional_is_read() {
        let site = Site::parse(br#"{"term":2,"role":"active"}"#).unwrap();
        assert_eq!((site.term, site.role, site.peer.as_str()), (2, SiteRole::Active, ""));
        assert!(Owner::parse(br#"{"epoch":"a","role":"king"}"#).is_err());
    }
}
