//! What a client is told that reaches exactly one process.

use std::collections::BTreeSet;

use quorate::etcd::MemberId;
use quorate::etcd::quorum::quorum;
use quorate::etcd::survey::Alarm;

use super::disk::{Kind, Member};
use super::join::added_member_id;
use super::{Error, Etcd, HEALTHY, Status};

impl Etcd {
    /// What a member says of itself; needs nobody else.
    pub(crate) fn status(&self, process: &str) -> Result<Status, Error> {
        let index = self.answering(process)?;
        let process = &self.processes[index];
        let data = &process.data;
        Ok(Status {
            cluster: data.cluster,
            member: data.member,
            leader: process.lead,
            learner: process.is_learner(),
            term: data.term,
            applied: data.store.applied,
            revision: data.store.puts + 1,
        })
    }

    /// A linearizable read; gives the store's revision.
    pub(crate) fn read(&mut self, process: &str) -> Result<u64, Error> {
        let index = self.answering_voter(process)?;
        self.read_index(index)?;
        Ok(self.processes[index].data.store.puts + 1)
    }

    /// The member list as of now, or as this process knows it.
    pub(crate) fn member_list(&mut self, process: &str, linearizable: bool) -> Result<Vec<Member>, Error> {
        let index = self.answering_voter(process)?;
        if linearizable {
            self.read_index(index)?;
        }
        Ok(self.listed(index))
    }

    /// Alarms, which etcd reads through its log.
    pub(crate) fn alarms(&mut self, process: &str) -> Result<Vec<(MemberId, Alarm)>, Error> {
        let index = self.answering_voter(process)?;
        self.propose(index, Kind::ReadAlarms)?;
        let alarms = self.processes[index].data.store.alarms.iter();
        Ok(alarms.map(|(member, raised)| (*member, (*raised).into())).collect())
    }

    /// Raises an alarm as etcd itself does.
    pub(crate) fn raise(&mut self, process: &str, member: MemberId, alarm: Alarm) -> Result<(), Error> {
        let index = self.answering_voter(process)?;
        self.propose(index, Kind::Raise(member, alarm))
    }

    /// Disarms one.
    pub(crate) fn disarm(&mut self, process: &str, member: MemberId, alarm: Alarm) -> Result<(), Error> {
        let index = self.answering_voter(process)?;
        self.propose(index, Kind::Disarm(member, alarm))
    }

    /// Writes a key; `Ok` means that a majority of voters holds it.
    pub(crate) fn put(&mut self, process: &str, key: u64) -> Result<u64, Error> {
        let index = self.answering_voter(process)?;
        self.propose(index, Kind::Put(key))?;
        Ok(self.processes[index].data.store.puts + 1)
    }

    /// The keys that a process has applied.
    pub(crate) fn keys(&self, process: &str) -> BTreeSet<u64> {
        self.get(process).map(|process| process.data.store.keys.clone()).unwrap_or_default()
    }

    /// `MemberAdd` of a learner.
    pub(crate) fn add_learner(
        &mut self,
        process: &str,
        peer_url: &str,
    ) -> Result<(MemberId, Vec<Member>), Error> {
        self.add(process, peer_url, true)
    }

    /// `MemberAdd` of a voter.
    pub(crate) fn add_voter(
        &mut self,
        process: &str,
        peer_url: &str,
    ) -> Result<(MemberId, Vec<Member>), Error> {
        self.add(process, peer_url, false)
    }

    fn add(
        &mut self,
        process: &str,
        peer_url: &str,
        learner: bool,
    ) -> Result<(MemberId, Vec<Member>), Error> {
        let index = self.answering_voter(process)?;
        let voters = self.voters(index).count();
        let started = self.voters(index).filter(|voter| !voter.name.is_empty()).count();
        let restores = started == 1 && voters == 1;
        if !learner && !restores && started < quorum(voters + 1) {
            return Err(Error::NotEnoughStarted);
        }
        if voters != 1 && self.connected_voters(index, self.healthy_since()) < quorum(voters + 1) {
            return Err(Error::Unhealthy);
        }
        let id = added_member_id(peer_url, self.now / 1000);
        let member =
            Member { id, name: String::new(), peer_url: peer_url.to_owned(), learner, published: false };
        self.propose(index, Kind::Add(member))?;
        Ok((id, self.listed(index)))
    }

    /// `MemberPromote`; the leader decides, whoever is asked.
    pub(crate) fn promote(&mut self, process: &str, id: MemberId) -> Result<Vec<Member>, Error> {
        let index = self.answering_voter(process)?;
        let leader = self.leader_of(index).ok_or(Error::Timeout)?;
        let ready = self.is_ready(leader, id).map_err(|error| {
            // A follower that forwards knows two refusals and tries others again.
            let known = matches!(error, Error::LearnerNotReady | Error::MemberNotFound);
            if index == leader || known { error } else { Error::Timeout }
        });
        ready?;
        self.propose(leader, Kind::Promote(id))?;
        Ok(self.listed(leader))
    }

    /// `isLearnerReady` and `IsReadyToPromoteMember`.
    fn is_ready(&self, leader: usize, id: MemberId) -> Result<(), Error> {
        let process = &self.processes[leader];
        let Some(state) = &process.leads else { return Err(Error::NotLeader) };
        let own = process.data.log.last();
        let known = state.progress.get(&id).ok_or(Error::MemberNotFound)?;
        let matched = if id == process.member() { own } else { known.matched };
        if matched * 10 < own * 9 {
            return Err(Error::LearnerNotReady);
        }
        let voters = self.voters(leader).count();
        let started = self.voters(leader).filter(|voter| !voter.name.is_empty()).count();
        if started + 1 < quorum(voters + 1) { Err(Error::NotEnoughStarted) } else { Ok(()) }
    }

    /// `MemberRemove`.
    pub(crate) fn remove(&mut self, process: &str, id: MemberId) -> Result<Vec<Member>, Error> {
        let index = self.answering_voter(process)?;
        self.may_remove(index, id)?;
        self.propose(index, Kind::Remove(id))?;
        Ok(self.listed(index))
    }

    /// `mayRemoveMember`.
    fn may_remove(&self, index: usize, id: MemberId) -> Result<(), Error> {
        let process = &self.processes[index];
        if process.list().get(&id).is_some_and(|member| member.learner) {
            return Ok(());
        }
        let others = || self.voters(index).filter(|voter| voter.id != id);
        if others().filter(|voter| !voter.name.is_empty()).count() < quorum(others().count()) {
            return Err(Error::NotEnoughStarted);
        }
        if id != process.member() && self.active_since(index, id).is_none() {
            return Ok(());
        }
        let active = self.connected_voters(index, self.healthy_since());
        if active < 1 + quorum(self.voters(index).count() - 1) {
            return Err(Error::Unhealthy);
        }
        Ok(())
    }

    /// `MoveLeader`.
    pub(crate) fn move_leader(&mut self, process: &str, to: MemberId) -> Result<(), Error> {
        let index = self.answering_voter(process)?;
        if self.processes[index].leads.is_none() {
            return Err(Error::NotLeader);
        }
        if self.processes[index].list().get(&to).is_none_or(|member| member.learner) {
            return Err(Error::BadTransferee);
        }
        if self.processes[index].member() == to {
            return Ok(());
        }
        self.exchange(index, to, usize::MAX);
        let target = self.peer(index, to).filter(|target| self.connects(index, *target));
        let target = target.ok_or(Error::TransferTimeout)?;
        let last = |place: usize| self.processes[place].data.log.last();
        if self.processes[index].leads.is_some() && last(target) == last(index) {
            self.campaign(target, true);
        }
        if self.processes[target].leads.is_some() { Ok(()) } else { Err(Error::TransferTimeout) }
    }

    /// A leader makes sure that it still leads; the one who asks then applies what the leader had committed.
    fn read_index(&mut self, index: usize) -> Result<(), Error> {
        let leader = self.leader_of(index).ok_or(Error::Timeout)?;
        let data = &self.processes[leader].data;
        let (voters, own) = (data.store.voters().count(), data.store.is_voter(data.member));
        let current = data.log.term(data.commit) == Some(data.term);
        if voters > 1 && (!current || self.exchange_with_all(leader, 0) + usize::from(own) < quorum(voters)) {
            return Err(Error::Timeout);
        }
        let committed = self.processes[leader].data.commit;
        if self.processes[index].data.store.applied < committed {
            let id = self.processes[index].member();
            self.exchange(leader, id, usize::MAX);
        }
        if self.processes[index].data.store.applied < committed { Err(Error::Timeout) } else { Ok(()) }
    }

    fn voters(&self, index: usize) -> impl Iterator<Item = &Member> {
        self.processes[index].list().values().filter(|member| !member.learner)
    }

    fn listed(&self, index: usize) -> Vec<Member> {
        self.processes[index].list().values().cloned().collect()
    }

    fn healthy_since(&self) -> u64 {
        self.now.saturating_sub(HEALTHY)
    }

    fn answering(&self, process: &str) -> Result<usize, Error> {
        let index = self.index(process).ok_or(Error::Refused)?;
        let process = &self.processes[index];
        if process.ending.as_ref().is_some_and(|(when, _)| *when <= self.now) {
            return Err(Error::Refused);
        }
        if process.paused || !process.serving { Err(Error::Timeout) } else { Ok(index) }
    }

    fn answering_voter(&self, process: &str) -> Result<usize, Error> {
        let index = self.answering(process)?;
        if self.processes[index].is_learner() { Err(Error::NotForLearner) } else { Ok(index) }
    }
}
