//! What etcd keeps: the log, and the store that the log makes.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use quorate::etcd::survey::Alarm;
use quorate::etcd::{ClusterId, MemberId};

use super::Error;

/// What a volume holds of etcd's data directory. Moves with the volume; a clone put back is a rolled-back volume,
/// `Disk::default()` a wiped one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Disk {
    /// `None`: no write-ahead log, so etcd would take its flags for the truth.
    pub(crate) data: Option<Data>,
}

/// A write-ahead log and its database.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Data {
    pub(crate) cluster: ClusterId,
    pub(crate) member: MemberId,
    pub(crate) term: u64,
    pub(crate) vote: Option<MemberId>,
    pub(crate) commit: u64,
    pub(crate) log: Log,
    pub(crate) store: Store,
}

/// The log after what a snapshot holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Log {
    base: u64,
    base_term: u64,
    entries: Vec<Entry>,
}

/// One entry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) term: u64,
    pub(crate) kind: Kind,
}

/// What an entry does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// A new leader's first entry, or a refused change of membership.
    Empty,
    /// Writes a key.
    Put(u64),
    Add(Member),
    Promote(MemberId),
    Remove(MemberId),
    /// A started member says its name and its client URLs.
    Publish(MemberId, String),
    Raise(MemberId, Alarm),
    Disarm(MemberId, Alarm),
    /// Reads alarms: etcd does that through the log too.
    ReadAlarms,
}

/// One row of the member list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Member {
    pub(crate) id: MemberId,
    /// Empty until the member has published it; those of a bootstrap have theirs at once.
    pub(crate) name: String,
    pub(crate) peer_url: String,
    pub(crate) learner: bool,
    /// Whether its client URLs are known, which is so once it has served.
    pub(crate) published: bool,
}

/// A member list.
pub(crate) type Members = BTreeMap<MemberId, Member>;

/// What was applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Store {
    pub(crate) applied: u64,
    pub(crate) applied_term: u64,
    pub(crate) members: Members,
    pub(crate) removed: BTreeSet<MemberId>,
    pub(crate) keys: BTreeSet<u64>,
    /// Puts so far; etcd's revision is one more.
    pub(crate) puts: u64,
    pub(crate) alarms: BTreeSet<(MemberId, Raised)>,
}

/// An alarm that can be ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Raised {
    NoSpace,
    Corrupt,
}

impl From<Alarm> for Raised {
    fn from(alarm: Alarm) -> Self {
        match alarm {
            Alarm::NoSpace => Self::NoSpace,
            Alarm::Corrupt => Self::Corrupt,
        }
    }
}

impl From<Raised> for Alarm {
    fn from(raised: Raised) -> Self {
        match raised {
            Raised::NoSpace => Self::NoSpace,
            Raised::Corrupt => Self::Corrupt,
        }
    }
}

impl Log {
    /// A log that begins after a snapshot.
    pub(crate) fn after(base: u64, base_term: u64) -> Self {
        Self { base, base_term, entries: Vec::new() }
    }

    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    pub(crate) fn last(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    /// Term of an entry; `None`: it is not there, or no longer.
    pub(crate) fn term(&self, index: u64) -> Option<u64> {
        if index == self.base {
            return Some(self.base_term);
        }
        self.at(index).map(|entry| entry.term)
    }

    pub(crate) fn last_term(&self) -> u64 {
        self.entries.last().map_or(self.base_term, |entry| entry.term)
    }

    pub(crate) fn at(&self, index: u64) -> Option<&Entry> {
        let place = usize::try_from(index.checked_sub(self.base + 1)?).ok()?;
        self.entries.get(place)
    }

    /// At most `limit` entries from `index` on.
    pub(crate) fn from(&self, index: u64, limit: usize) -> Vec<Entry> {
        let start = usize::try_from(index.saturating_sub(self.base + 1)).unwrap_or(usize::MAX);
        self.entries.iter().skip(start).take(limit).cloned().collect()
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Puts entries after `previous`; what was there is dropped.
    pub(crate) fn replace_after(&mut self, previous: u64, entries: impl Iterator<Item = Entry>) {
        let kept = usize::try_from(previous.saturating_sub(self.base)).unwrap_or(usize::MAX);
        self.entries.truncate(kept);
        self.entries.extend(entries);
    }

    /// Forgets entries up to `index`, which a snapshot holds.
    pub(crate) fn compact(&mut self, index: u64) {
        let Some(term) = self.term(index) else { return };
        let dropped = usize::try_from(index - self.base).unwrap_or(0);
        self.entries.drain(..dropped);
        (self.base, self.base_term) = (index, term);
    }

    /// The newest entry at or before `index` whose term is at most `term` (raft's `findConflictByTerm`).
    pub(crate) fn newest_up_to(&self, index: u64, term: u64) -> (u64, u64) {
        let mut index = index;
        while index > self.base {
            match self.term(index) {
                Some(own) if own > term => index -= 1,
                found => return (index, found.unwrap_or(0)),
            }
        }
        (self.base, self.base_term)
    }
}

impl Data {
    /// A founder's log: one entry for every member, all committed (raft's `Bootstrap`).
    pub(crate) fn founder(cluster: ClusterId, member: MemberId, members: Members) -> Self {
        let mut data = Self::joiner(cluster, member);
        data.term = 1;
        for member in members.into_values() {
            data.log.push(Entry { term: 1, kind: Kind::Add(member) });
        }
        data.commit = data.log.last();
        data
    }

    /// A joiner knows nothing.
    pub(crate) fn joiner(cluster: ClusterId, member: MemberId) -> Self {
        let (log, store) = (Log::default(), Store::default());
        Self { cluster, member, term: 0, vote: None, commit: 0, log, store }
    }

    /// Whether a log that ends like this holds all that this one holds (raft's `isUpToDate`).
    pub(crate) fn grants(&self, last_term: u64, last: u64) -> bool {
        (last_term, last) >= (self.log.last_term(), self.log.last())
    }
}

impl Store {
    pub(crate) fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| !member.learner)
    }

    pub(crate) fn is_voter(&self, id: MemberId) -> bool {
        self.members.get(&id).is_some_and(|member| !member.learner)
    }

    /// Applies one entry; a refusal changes nothing but the index.
    pub(crate) fn apply(&mut self, index: u64, entry: &Entry, max_learners: usize) -> Result<(), Error> {
        (self.applied, self.applied_term) = (index, entry.term);
        match &entry.kind {
            Kind::Empty | Kind::ReadAlarms => Ok(()),
            Kind::Put(key) => self.put(*key),
            Kind::Add(_) | Kind::Promote(_) | Kind::Remove(_) => {
                self.validate(&entry.kind, max_learners)?;
                change(&mut self.members, &entry.kind);
                if let Kind::Remove(id) = &entry.kind {
                    self.removed.insert(*id);
                }
                Ok(())
            }
            Kind::Publish(..) => {
                change(&mut self.members, &entry.kind);
                Ok(())
            }
            Kind::Raise(member, alarm) => {
                self.alarms.insert((*member, (*alarm).into()));
                Ok(())
            }
            Kind::Disarm(member, alarm) => {
                self.alarms.remove(&(*member, (*alarm).into()));
                Ok(())
            }
        }
    }

    fn put(&mut self, key: u64) -> Result<(), Error> {
        let alarmed = |raised| self.alarms.iter().any(|(_, other)| *other == raised);
        if alarmed(Raised::Corrupt) {
            return Err(Error::Corrupt);
        }
        if alarmed(Raised::NoSpace) {
            return Err(Error::NoSpace);
        }
        self.keys.insert(key);
        self.puts += 1;
        Ok(())
    }

    /// `ValidateConfigurationChange` of cluster.go.
    fn validate(&self, kind: &Kind, max_learners: usize) -> Result<(), Error> {
        match kind {
            Kind::Add(member) => {
                let learners = self.members.values().filter(|member| member.learner).count();
                if self.removed.contains(&member.id) {
                    Err(Error::MemberNotFound)
                } else if self.members.contains_key(&member.id) {
                    Err(Error::MemberExists)
                } else if self.members.values().any(|other| other.peer_url == member.peer_url) {
                    Err(Error::PeerUrlExists)
                } else if member.learner && learners >= max_learners {
                    Err(Error::TooManyLearners)
                } else {
                    Ok(())
                }
            }
            Kind::Promote(id) => match self.members.get(id) {
                None => Err(Error::MemberNotFound),
                Some(member) if !member.learner => Err(Error::NotLearner),
                Some(_) => Ok(()),
            },
            Kind::Remove(id) if !self.members.contains_key(id) => Err(Error::MemberNotFound),
            _ => Ok(()),
        }
    }
}

/// What an entry that was found valid does to a member list.
pub(crate) fn change(members: &mut Members, kind: &Kind) {
    match kind {
        Kind::Add(member) => drop(members.insert(member.id, member.clone())),
        Kind::Remove(id) => drop(members.remove(id)),
        Kind::Promote(id) => {
            if let Some(member) = members.get_mut(id) {
                member.learner = false;
            }
        }
        Kind::Publish(id, name) => {
            if let Some(member) = members.get_mut(id) {
                (member.name, member.published) = (name.clone(), true);
            }
        }
        Kind::Empty | Kind::Put(_) | Kind::Raise(..) | Kind::Disarm(..) | Kind::ReadAlarms => (),
    }
}

impl Data {
    /// Applies what is committed. Returns each entry's index, term, kind and outcome.
    pub(crate) fn apply(&mut self, max_learners: usize) -> Vec<(u64, Entry, Result<(), Error>)> {
        let mut applied = Vec::new();
        while self.store.applied < self.commit {
            let index = self.store.applied + 1;
            let Some(entry) = self.log.at(index).cloned() else { break };
            let outcome = self.store.apply(index, &entry, max_learners);
            applied.push((index, entry, outcome));
        }
        applied
    }

    /// Takes another's store for its own: what raft calls a snapshot.
    pub(crate) fn restore(&mut self, store: Store) {
        self.log = Log::after(store.applied, store.applied_term);
        self.commit = store.applied;
        drop(mem::replace(&mut self.store, store));
    }
}
