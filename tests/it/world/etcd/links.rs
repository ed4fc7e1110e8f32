//! Who reaches whom, and since when.

use std::collections::BTreeMap;

use quorate::etcd::MemberId;

use super::{Etcd, Link, Millis, Process, REMOVED_LINE, SILENCE};

impl Etcd {
    /// Whether a message from one process reaches another.
    pub(super) fn passes(&self, from: usize, to: usize) -> bool {
        let (from, to) = (&self.processes[from], &self.processes[to]);
        let awake = |process: &Process| !process.paused && !self.is_over(process);
        awake(from) && awake(to) && (self.cuts.is_empty() || !self.is_cut(&from.id, &to.id))
    }

    /// Whether messages pass both ways, as a connection needs.
    pub(super) fn connects(&self, one: usize, other: usize) -> bool {
        self.passes(one, other) && self.passes(other, one)
    }

    pub(super) fn is_cut(&self, from: &str, to: &str) -> bool {
        self.cuts.contains(&(from.to_owned(), to.to_owned()))
    }

    fn is_over(&self, process: &Process) -> bool {
        process.ending.as_ref().is_some_and(|(when, _)| *when <= self.now)
    }

    /// The process that a process knows as a member: one end dials the other at the URL in its list, both must be of
    /// one cluster, and a removed member is turned away.
    pub(super) fn peer(&self, from: usize, member: MemberId) -> Option<usize> {
        let own = &self.processes[from];
        let dials = |one: &Process, id: MemberId, other: &Process| {
            one.list().get(&id).is_some_and(|row| row.peer_url == other.start.peer_url)
        };
        let is_peer = |other: &Process| {
            other.member() == member
                && other.order != own.order
                && other.data.cluster == own.data.cluster
                && !other.data.store.removed.contains(&own.member())
                && (dials(own, member, other) || dials(other, own.member(), own))
        };
        self.processes.iter().rposition(is_peer)
    }

    /// Who is reached has just changed.
    pub(super) fn relink(&mut self) {
        self.unlinked = true;
        self.link();
    }

    /// Looks at all connections again, if they may have changed.
    pub(super) fn link(&mut self) {
        if !std::mem::take(&mut self.unlinked) {
            return;
        }
        self.busy = true;
        for index in 0..self.processes.len() {
            if !self.processes[index].paused {
                let links = self.links_of(index);
                self.processes[index].links = links;
                if self.is_turned_away(index) {
                    let now = self.now;
                    self.processes[index].end(now, REMOVED_LINE);
                }
            }
        }
    }

    fn links_of(&self, index: usize) -> BTreeMap<MemberId, Link> {
        let own = &self.processes[index];
        let mut links = BTreeMap::new();
        for id in own.list().keys().filter(|id| **id != own.member()) {
            let peer = self.peer(index, *id).filter(|peer| self.connects(index, *peer));
            let order = peer.map(|peer| self.processes[peer].order);
            if let Some(link) = self.linked(own.links.get(id), order) {
                links.insert(*id, link);
            }
        }
        links
    }

    /// A connection now, given what it was and to whom it is.
    fn linked(&self, before: Option<&Link>, order: Option<u64>) -> Option<Link> {
        let now = self.now;
        match (before, order) {
            (None, None) => None,
            (Some(link), Some(order)) if link.order == order && !link.is_broken(now) => {
                Some(Link { broken: None, ..*link })
            }
            (_, Some(order)) => Some(Link { since: now, broken: None, order }),
            (Some(link), None) => {
                let peer = self.processes.iter().find(|process| process.order == link.order);
                // A process that is gone resets its connections; one that stands still keeps them.
                peer.map(|peer| Link { broken: link.broken.or((!peer.paused).then_some(now)), ..*link })
            }
        }
    }

    /// Whether a peer that a process dials says that it was removed (410 Gone).
    fn is_turned_away(&self, index: usize) -> bool {
        let own = &self.processes[index];
        let is_dialled = |other: &Process| {
            let dialled = own.list().values().any(|row| row.peer_url == other.start.peer_url);
            dialled && other.order != own.order
        };
        self.processes.iter().enumerate().any(|(place, other)| {
            other.data.cluster == own.data.cluster
                && other.data.store.removed.contains(&own.member())
                && is_dialled(other)
                && self.connects(index, place)
        })
    }

    /// Since when a process is connected to a member.
    pub(super) fn active_since(&self, index: usize, member: MemberId) -> Option<Millis> {
        let link = self.processes[index].links.get(&member)?;
        (!link.is_broken(self.now)).then_some(link.since)
    }

    /// How many of its voters a process has been connected to since a time, itself included.
    pub(super) fn connected_voters(&self, index: usize, since: Millis) -> usize {
        let own = &self.processes[index];
        let voters = own.list().values().filter(|member| !member.learner);
        let connected = |id: MemberId| {
            id == own.member() || self.active_since(index, id).is_some_and(|start| start < since)
        };
        voters.filter(|member| connected(member.id)).count()
    }
}

impl Link {
    fn is_broken(self, now: Millis) -> bool {
        self.broken.is_some_and(|broken| now - broken >= SILENCE)
    }
}
