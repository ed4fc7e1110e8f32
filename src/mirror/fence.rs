//! A fence by roles: what is taken from writers, and who could write all the same. Pure: nobody is asked.
//!
//! What was taken stands in the key `fence` of the side that it was taken on, as long as anything of it is taken:
//!
//! | `fence` | roles | what is next |
//! |---|---|---|
//! | absent | as a person made them | to fence: the record is written first |
//! | present | any of it may be taken | to fence: what is not taken yet is taken; to give back: all of it is given, and then the record is deleted |
//!
//! - **Invariant (F1), nothing is forgotten:** no permission is changed that the record does not name. It is written
//!   before the first change, and deleted after the last one.
//! - **Invariant (F2), it closes:** a side counts as fenced once etcd says, after the last change, that no user can write
//!   a mirrored key but those of the role `root` and the mirror's own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::checkpoint::Unreadable;
use super::keyspace::{OWN_KEYS, Span};
use super::text::{read, shown};

/// The role that may do everything.
const ROOT: &str = "root";

/// What a permission allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// To read.
    Read,
    /// To write.
    Write,
    /// Both.
    ReadWrite,
}

/// Keys that a permission speaks of, as etcd has it: no end is one key, `\0` as the end is "to the last key".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// The first.
    pub key: Vec<u8>,
    /// Behind the last.
    pub end: Vec<u8>,
}

/// A permission of a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// To do what.
    pub kind: Kind,
    /// With which keys.
    pub range: Range,
}

/// A permission that a role had before it was fenced.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taken {
    /// The role.
    pub role: String,
    /// What it had: to write, or both.
    pub kind: Kind,
    /// The range's key as text.
    pub key: String,
    /// Its end as text.
    pub end: String,
}

/// The key `fence`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Every permission that was, or will be, changed.
    pub taken: Vec<Taken>,
}

/// Who may do what in an etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    /// Users and their roles.
    pub users: BTreeMap<String, Vec<String>>,
    /// Roles and their permissions: those of users, and those that are asked for by name if they exist.
    pub roles: BTreeMap<String, Vec<Grant>>,
}

/// What is fenced.
#[derive(Clone, Debug)]
pub struct Fenced<'a> {
    /// Roles of the writers.
    pub roles: &'a [String],
    /// The mirror's own user, if it has one: it must go on writing.
    pub own: Option<&'a str>,
    /// Mirrored keys of that side.
    pub spans: &'a [Span],
}

impl Range {
    fn span(&self) -> Span {
        let start = if self.key.is_empty() { vec![0] } else { self.key.clone() };
        let end = match self.end.as_slice() {
            [] => Some([start.as_slice(), &[0]].concat()),
            [0] => None,
            end => Some(end.to_vec()),
        };
        Span { start, end }
    }

    /// Whether it has keys that can be mirrored ones of these spans.
    fn meets(&self, spans: &[Span]) -> bool {
        let own = Span::of_prefix(OWN_KEYS);
        spans.iter().filter_map(|span| both(span, &self.span())).any(|shared| !within(&shared, &own))
    }
}

/// What two spans have in common.
fn both(one: &Span, other: &Span) -> Option<Span> {
    let start = (&one.start).max(&other.start).clone();
    let end = match (&one.end, &other.end) {
        (Some(one), Some(other)) => Some(one.min(other).clone()),
        (end, None) | (None, end) => end.clone(),
    };
    end.as_ref().is_none_or(|end| start < *end).then_some(Span { start, end })
}

fn within(inner: &Span, outer: &Span) -> bool {
    let ends = match (&inner.end, &outer.end) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(inner), Some(outer)) => inner <= outer,
    };
    inner.start >= outer.start && ends
}

impl Grant {
    fn writes(&self, spans: &[Span]) -> bool {
        self.kind != Kind::Read && self.range.meets(spans)
    }
}

impl Taken {
    /// Its range; `None`: the record was edited.
    pub fn range(&self) -> Option<Range> {
        Some(Range { key: read(&self.key)?, end: read(&self.end)? })
    }

    /// What is left of it while the side is fenced.
    pub fn rest(&self) -> Option<Kind> {
        (self.kind == Kind::ReadWrite).then_some(Kind::Read)
    }
}

impl Record {
    /// As it is stored.
    pub fn text(&self) -> Vec<u8> {
        // Structs of strings: serde_json fails only for maps whose keys are no strings.
        serde_json::to_string(self).unwrap_or_default().into_bytes()
    }

    /// What was stored.
    pub fn parse(value: &[u8]) -> Result<Self, Unreadable> {
        let record: Self =
            serde_json::from_slice(value).map_err(|error| Unreadable::Form(error.to_string()))?;
        match record.taken.iter().find(|taken| taken.range().is_none()) {
            None => Ok(record),
            Some(taken) => Err(Unreadable::Form(format!("{:?} is no range of keys", taken.key))),
        }
    }

    /// With what is to be taken now. What was saved before is what a person gave: of a permission that is there twice
    /// the larger one stays.
    #[must_use]
    pub fn with(mut self, more: Vec<Taken>) -> Self {
        for new in more {
            let same = |old: &&mut Taken| (&old.role, &old.key, &old.end) == (&new.role, &new.key, &new.end);
            match self.taken.iter_mut().find(same) {
                Some(old) if old.kind == new.kind => {}
                Some(old) => old.kind = Kind::ReadWrite,
                None => self.taken.push(new),
            }
        }
        self.taken.sort();
        self
    }
}

impl Book {
    /// What a fence takes of the named roles.
    pub fn to_take(&self, fenced: &Fenced) -> Vec<Taken> {
        let of = |role: &String| {
            let grants = self.roles.get(role).map(Vec::as_slice).unwrap_or_default();
            let taken = |grant: &Grant| Taken {
                role: role.clone(),
                kind: grant.kind,
                key: shown(&grant.range.key),
                end: shown(&grant.range.end),
            };
            let writes = grants.iter().filter(|grant| grant.writes(fenced.spans));
            writes.map(taken).collect::<Vec<_>>()
        };
        fenced.roles.iter().flat_map(of).collect()
    }

    /// Why a fence of these roles would not hold; `None`: it would.
    pub fn refusal(&self, fenced: &Fenced) -> Option<String> {
        if fenced.roles.iter().any(|role| role == ROOT) {
            return Some(
                "the role root can do everything for ever: name the roles of the writers".to_owned(),
            );
        }
        if let Some(missing) = fenced.roles.iter().find(|role| !self.roles.contains_key(*role)) {
            return Some(format!("there is no role {missing}"));
        }
        let of_own = fenced.own.and_then(|own| Some((own, self.users.get(own)?)));
        if let Some((own, roles)) = of_own
            && let Some(role) = roles.iter().find(|role| fenced.roles.contains(role))
        {
            return Some(format!(
                "the mirror itself comes as {own}, who has the role {role}: it must write there later, so give it a user \
                 and a role of its own"
            ));
        }
        self.writer(fenced, fenced.roles).map(|(user, role)| {
            format!("the user {user} could still write mirrored keys by the role {role}, which the fence does not name")
        })
    }

    /// A user, and a role of theirs that is none of `but`, who can write a mirrored key.
    pub fn writer(&self, fenced: &Fenced, but: &[String]) -> Option<(&str, &str)> {
        let others = self.users.iter().filter(|(user, roles)| {
            Some(user.as_str()) != fenced.own && !roles.iter().any(|role| role == ROOT)
        });
        others.into_iter().find_map(|(user, roles)| {
            let writes = |role: &&String| {
                let grants = self.roles.get(*role).map(Vec::as_slice).unwrap_or_default();
                !but.contains(role) && grants.iter().any(|grant| grant.writes(fenced.spans))
            };
            roles.iter().find(writes).map(|role| (user.as_str(), role.as_str()))
        })
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn grant(kind: Kind, key: &str, end: &str) -> Grant {
        Grant { kind, range: Range { key: key.into(), end: end.into() } }
    }

    fn book(roles: &[(&str, Vec<Grant>)]) -> Book {
        let roles: BTreeMap<_, _> =
            roles.iter().map(|(role, grants)| ((*role).to_owned(), grants.clone())).collect();
        let users = roles.keys().map(|role| (format!("user-{role}"), vec![role.clone()]));
        Book { users: users.collect(), roles }
    }

    fn refused(book: &Book, own: Option<&str>, prefixes: &[&str]) -> String {
        let roles = ["writers".to_owned()];
        let spans: Vec<Span> = prefixes.iter().map(|prefix| Span::of_prefix(prefix.as_bytes())).collect();
        let refusal = book.refusal(&Fenced { roles: &roles, own, spans: &spans });
        refusal.unwrap_or_else(|| "it holds".to_owned())
    }

    #[test]
    fn a_fence_is_refused_where_somebody_else_can_write() {
        use Kind::{Read, ReadWrite, Write};
        let writers = ("writers", vec![grant(ReadWrite, "/a/", "/a0")]);
        let with = |other: &str, grants: Vec<Grant>| book(&[writers.clone(), (other, grants)]);
        let holds = "it holds";
        assert_eq!(refused(&book(std::slice::from_ref(&writers)), None, &["/a/"]), holds);
        for (grants, prefixes, refusal) in [
            (vec![grant(Read, "", "\0")], &["/a/"], holds),
            (vec![grant(Write, "/b/", "/b0")], &["/a/"], holds),
            (vec![grant(ReadWrite, "/a", "")], &["/a/"], holds),
            (vec![grant(ReadWrite, "/__quorate/mirror/", "/__quorate/mirror0")], &[""], holds),
            (vec![grant(ReadWrite, "/a/k", "")], &["/a/"], "user-other"),
            (vec![grant(Write, "/a/k", "/a/l")], &["/a/"], "user-other"),
            (vec![grant(ReadWrite, "/__", "\0")], &["/a/"], "user-other"),
            (vec![grant(ReadWrite, "\0", "\0")], &[""], "user-other"),
            (vec![grant(Write, "/__quorate/", "/__quorate0")], &[""], "user-other"),
        ] {
            let said = refused(&with("other", grants.clone()), None, prefixes);
            assert!(said.contains(refusal), "{grants:?} in {prefixes:?}: {said}");
        }
        assert_eq!(refused(&with("root", vec![grant(ReadWrite, "\0", "\0")]), None, &["/a/"]), holds);
        let mirror = with("mirror", vec![grant(ReadWrite, "\0", "\0")]);
        assert_eq!(refused(&mirror, Some("user-mirror"), &["/a/"]), holds);
        assert!(refused(&mirror, Some("user-writers"), &["/a/"]).contains("of its own"));
        assert!(refused(&book(&[]), None, &["/a/"]).contains("no role writers"));
    }

    #[test]
    fn what_is_taken_is_what_can_write_mirrored_keys() {
        let grants = vec![
            grant(Kind::Read, "/a/", "/a0"),
            grant(Kind::ReadWrite, "/a/\u{1}", ""),
            grant(Kind::Write, "/a/w", "/a/x"),
            grant(Kind::ReadWrite, "/other/", "/other0"),
        ];
        let (roles, spans) = (["writers".to_owned()], [Span::of_prefix(b"/a/")]);
        let fenced = Fenced { roles: &roles, own: None, spans: &spans };
        let record = Record::default().with(book(&[("writers", grants)]).to_take(&fenced));
        expect![[r#"{"taken":[{"role":"writers","kind":"write","key":"/a/w","end":"/a/x"},{"role":"writers","kind":"readwrite","key":"/a/%01","end":""}]}"#]]
            .assert_eq(&String::from_utf8(record.text()).unwrap());
        assert_eq!(Record::parse(&record.text()), Ok(record.clone()));
        let rests: Vec<Option<Kind>> = record.taken.iter().map(Taken::rest).collect();
        assert_eq!(rests, [None, Some(Kind::Read)]);
        assert!(Record::parse(br#"{"taken":[{"role":"w","kind":"write","key":"%","end":""}]}"#).is_err());
    }

    #[test]
    fn a_fence_that_is_gone_on_with_keeps_what_was_saved() {
        let taken = |kind: Kind, key: &str| Taken {
            role: "w".to_owned(),
            kind,
            key: key.to_owned(),
            end: String::new(),
        };
        let saved = Record { taken: vec![taken(Kind::ReadWrite, "/a"), taken(Kind::Write, "/b")] };
        assert_eq!(saved.clone().with(Vec::new()), saved.clone().with(vec![taken(Kind::Write, "/a")]));
        let more = saved.clone().with(vec![taken(Kind::ReadWrite, "/b"), taken(Kind::Write, "/c")]);
        let kinds: Vec<(Kind, &str)> =
            more.taken.iter().map(|taken| (taken.kind, taken.key.as_str())).collect();
        assert_eq!(kinds, [(Kind::Write, "/c"), (Kind::ReadWrite, "/a"), (Kind::ReadWrite, "/b")]);
    }
}
