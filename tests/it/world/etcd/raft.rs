//! Raft (`go.etcd.io/raft`), with whole exchanges in place of single messages.

use quorate::etcd::MemberId;
use quorate::etcd::quorum::quorum;

use super::disk::{self, Data, Entry, Kind};
use super::{ELECTION, Error, Etcd, LEASE, Leader, Millis, Progress, REMOVED, REMOVED_LINE, REQUEST, STEP};

/// A follower's answer to entries.
enum Answer {
    Matches(u64),
    Rejects { hint: u64, term: u64 },
    Panics(String),
}

impl Etcd {
    /// Lets time pass.
    pub(crate) fn advance(&mut self, now: Millis) {
        if self.stepped == 0 {
            // The first call says when the world begins.
            (self.now, self.stepped) = (now, now);
        }
        while self.now < now {
            let due = if self.busy { 0 } else { self.next_timer().unwrap_or(now) };
            let next = due.max(self.stepped + STEP).max(self.now);
            self.now = next.min(now);
            if next <= now {
                self.step();
            }
        }
        self.bury();
    }

    /// When something will happen by itself, if nobody interferes.
    fn next_timer(&self) -> Option<Millis> {
        let timers = self.processes.iter().enumerate().filter_map(|(index, process)| {
            let own = if process.paused {
                None
            } else if let Some(leader) = &process.leads {
                (leader.majority < self.stepped).then_some(leader.majority + LEASE)
            } else if self.leader_of(index).is_some() {
                None
            } else {
                process.data.store.is_voter(process.member()).then_some(process.heard + process.patience)
            };
            let ending = process.ending.as_ref().map(|(when, _)| *when);
            let publishing = process.published.filter(|_| !process.serving).map(|sent| sent + REQUEST);
            [own, ending, publishing].into_iter().flatten().min()
        });
        timers.min()
    }

    fn step(&mut self) {
        self.stepped = self.now;
        self.busy = false;
        self.bury();
        self.link();
        for index in 0..self.processes.len() {
            if self.processes[index].leads.is_some() && !self.processes[index].paused {
                self.beat(index);
            }
        }
        for index in 0..self.processes.len() {
            self.tick(index);
            self.publish(index);
            self.compact(index);
        }
        self.bury();
    }

    /// A follower whose leader is silent for too long stands for election.
    fn tick(&mut self, index: usize) {
        let process = &self.processes[index];
        let silent = self.now - process.heard >= process.patience;
        if process.paused || process.leads.is_some() || !silent {
            return;
        }
        if process.data.store.is_voter(process.member()) {
            let patience = self.patience(index);
            let now = self.now;
            let process = &mut self.processes[index];
            (process.heard, process.patience) = (now, patience);
            self.campaign(index, false);
        }
    }

    /// The lower a voter's ID, the sooner it stands: nobody is in anybody's way.
    fn patience(&self, index: usize) -> Millis {
        let process = &self.processes[index];
        let before = process.data.store.voters().take_while(|voter| voter.id < process.member());
        ELECTION + STEP * before.count() as Millis
    }

    /// A process has just been made: a founder's first entries are committed already.
    pub(super) fn began(&mut self, index: usize) {
        self.apply(index);
        let (now, process) = (self.now, &mut self.processes[index]);
        if process.data.store.removed.contains(&process.data.member) {
            process.end(now + REMOVED, REMOVED_LINE);
        }
    }

    /// Stands for election: first asks whether it could win, so that a lone member disturbs nobody, then in earnest.
    /// On a transfer it does not ask, and those who hear a leader vote all the same.
    pub(super) fn campaign(&mut self, index: usize, transfer: bool) {
        if !transfer && !self.asks_for_votes(index, true, false) {
            return;
        }
        self.busy = true;
        let data = &mut self.processes[index].data;
        let member = data.member;
        (data.term, data.vote) = (data.term + 1, Some(member));
        (self.processes[index].lead, self.processes[index].leads) = (None, None);
        if self.asks_for_votes(index, false, transfer) {
            self.lead(index);
        }
    }

    fn asks_for_votes(&mut self, index: usize, only_asks: bool, transfer: bool) -> bool {
        let data = &self.processes[index].data;
        let (own, log) = (data.member, (data.log.last_term(), data.log.last()));
        let term = data.term + u64::from(only_asks);
        let voters: Vec<MemberId> = data.store.voters().map(|voter| voter.id).collect();
        let mut granted = 1;
        for id in voters.iter().filter(|id| **id != own) {
            let Some(voter) = self.peer(index, *id).filter(|voter| self.passes(index, *voter)) else {
                continue;
            };
            let answers = self.passes(voter, index);
            if self.votes(voter, own, (term, only_asks, transfer), log) {
                granted += usize::from(answers);
            } else if answers && self.processes[voter].data.term > term {
                let term = self.processes[voter].data.term;
                self.processes[index].follow(term, None);
                return false;
            }
        }
        granted >= quorum(voters.len())
    }

    fn votes(
        &mut self,
        index: usize,
        candidate: MemberId,
        (term, only_asks, transfer): (u64, bool, bool),
        (last_term, last): (u64, u64),
    ) -> bool {
        let now = self.now;
        let process = &mut self.processes[index];
        let hears = process.leads.is_some() || (process.lead.is_some() && now - process.heard < ELECTION);
        if term < process.data.term || (term > process.data.term && hears && !transfer) {
            return false;
        }
        let ahead = term > process.data.term;
        if ahead && !only_asks {
            process.follow(term, None);
        }
        let free = process.data.vote == Some(candidate)
            || (process.data.vote.is_none() && process.lead.is_none())
            || (only_asks && ahead);
        let granted = free && process.data.grants(last_term, last);
        if granted && !only_asks {
            process.data.vote = Some(candidate);
            process.heard = now;
        }
        granted
    }

    fn lead(&mut self, index: usize) {
        let now = self.now;
        let process = &mut self.processes[index];
        let last = process.data.log.last();
        let fresh = Progress { next: last + 1, matched: 0 };
        let progress = process.data.store.members.keys().map(|id| (*id, fresh)).collect();
        process.leads = Some(Leader { progress, pending_change: last, majority: now });
        process.lead = Some(process.member());
        process.data.log.push(Entry { term: process.data.term, kind: Kind::Empty });
        self.beat(index);
    }

    /// One heartbeat: entries for those who lag, and the question whether a majority still answers.
    fn beat(&mut self, index: usize) {
        let limit = self.entries_per_step;
        let answered = self.exchange_with_all(index, limit);
        let (now, patience) = (self.now, self.patience(index));
        let process = &mut self.processes[index];
        let voters = process.data.store.voters().count();
        let own = usize::from(process.data.store.is_voter(process.data.member));
        let Some(leader) = &mut process.leads else { return };
        if answered + own >= quorum(voters) {
            leader.majority = now;
        } else if now - leader.majority >= LEASE {
            let term = process.data.term;
            process.follow(term, None);
            (process.heard, process.patience) = (now, patience);
            self.busy = true;
            return;
        }
        if self.commit(index) {
            self.exchange_with_all(index, 0);
        }
    }

    /// Returns how many voters answered.
    pub(super) fn exchange_with_all(&mut self, index: usize, limit: usize) -> usize {
        let Some(leader) = &self.processes[index].leads else { return 0 };
        let own = self.processes[index].member();
        let ids: Vec<MemberId> = leader.progress.keys().copied().filter(|id| *id != own).collect();
        let mut voters = 0;
        for id in ids {
            let answered = self.exchange(index, id, limit);
            voters += usize::from(answered && self.processes[index].data.store.is_voter(id));
        }
        voters
    }

    /// A leader's heartbeat and entries to one member. Returns whether it answered.
    pub(super) fn exchange(&mut self, leader: usize, id: MemberId, limit: usize) -> bool {
        let Some(follower) = self.peer(leader, id).filter(|follower| self.passes(leader, *follower)) else {
            return false;
        };
        let answers = self.passes(follower, leader);
        let (term, own) = (self.processes[leader].data.term, self.processes[leader].member());
        let theirs = self.processes[follower].data.term;
        let Some(Leader { progress, .. }) = &self.processes[leader].leads else { return false };
        let Some(mut known) = progress.get(&id).copied() else { return false };
        if theirs > term {
            if answers {
                self.processes[leader].follow(theirs, None);
                self.processes[leader].heard = self.now;
                self.busy = true;
            }
            return false;
        }
        let (heard, patience) = (self.now, self.patience(follower));
        let process = &mut self.processes[follower];
        self.busy |= process.lead != Some(own) || term > theirs;
        process.follow(term, Some(own));
        (process.heard, process.patience) = (heard, patience);

        let beaten = known.matched.min(self.processes[leader].data.commit);
        if let Err(panic) = self.processes[follower].data.commit_to(beaten) {
            self.panic(follower, panic);
            return false;
        }
        self.catch_up(leader, follower, &mut known, limit);
        self.apply(follower);
        if answers {
            if let Some(Leader { progress, .. }) = &mut self.processes[leader].leads {
                progress.insert(id, known);
            }
        }
        answers
    }

    /// Finds where two logs agree and sends what follows.
    fn catch_up(&mut self, leader: usize, follower: usize, known: &mut Progress, limit: usize) {
        loop {
            let (ours, commit) = (&self.processes[leader].data.log, self.processes[leader].data.commit);
            let previous = known.next - 1;
            if previous < ours.base() {
                return self.snapshot(leader, follower, known);
            }
            // A follower that has committed more than its leader has: nothing can be sent to it.
            let Some(term) = ours.term(previous) else { return };
            let entries = ours.from(known.next, limit);
            let sent = entries.len();
            let lagged = self.processes[follower].data.commit;
            let answer = self.processes[follower].data.append((previous, term), entries, commit);
            self.busy |= sent > 0 || self.processes[follower].data.commit > lagged;
            match answer {
                Answer::Matches(index) => {
                    known.matched = known.matched.max(index);
                    known.next = known.next.max(index + 1);
                    return;
                }
                Answer::Rejects { hint, term } => {
                    let (hint, _) = self.processes[leader].data.log.newest_up_to(hint, term);
                    let next = previous.min(hint + 1).max(known.matched + 1);
                    if next == known.next {
                        return;
                    }
                    known.next = next;
                }
                Answer::Panics(line) => return self.panic(follower, line),
            }
        }
    }

    fn snapshot(&mut self, leader: usize, follower: usize, known: &mut Progress) {
        let store = self.processes[leader].data.store.clone();
        let process = &mut self.processes[follower];
        if store.applied > process.data.commit && store.members.contains_key(&process.member()) {
            process.data.restore(store);
            process.listed = None;
            (self.unlinked, self.busy) = (true, true);
        }
        known.matched = known.matched.max(self.processes[follower].data.commit);
        known.next = known.matched + 1;
    }

    fn panic(&mut self, index: usize, line: String) {
        let now = self.now;
        self.processes[index].end(now, format!("panic: {line}"));
        self.busy = true;
    }

    /// Commits what a majority of voters holds, if it is of this term. Returns whether that is more than before.
    pub(super) fn commit(&mut self, index: usize) -> bool {
        let process = &mut self.processes[index];
        let Some(leader) = &process.leads else { return false };
        let (own, last) = (process.data.member, process.data.log.last());
        let holds = |id: MemberId| {
            if id == own { last } else { leader.progress.get(&id).map_or(0, |progress| progress.matched) }
        };
        let mut held: Vec<u64> = process.data.store.voters().map(|voter| holds(voter.id)).collect();
        held.sort_unstable_by(|one, other| other.cmp(one));
        let majority = held.get(quorum(held.len()) - 1).copied().unwrap_or(0).min(last);
        let current = process.data.log.term(majority) == Some(process.data.term);
        if majority <= process.data.commit || !current {
            return false;
        }
        process.data.commit = majority;
        self.busy = true;
        self.apply(index);
        true
    }

    /// Applies what is committed, and does what follows from it.
    pub(super) fn apply(&mut self, index: usize) {
        let now = self.now;
        let process = &mut self.processes[index];
        let applied = process.data.apply(process.start.max_learners);
        for (place, entry, outcome) in applied {
            if process.awaited == Some((place, entry.term)) {
                (process.awaited, process.outcome) = (None, Some(outcome));
            }
            if outcome.is_err() {
                continue;
            }
            if let Some(listed) = &mut process.listed {
                disk::change(listed, &entry.kind);
            }
            match &entry.kind {
                Kind::Add(member) => {
                    let fresh = Progress { next: process.data.log.last(), matched: 0 };
                    if let Some(leader) = &mut process.leads {
                        leader.progress.insert(member.id, fresh);
                    }
                    self.unlinked = true;
                }
                Kind::Remove(id) => {
                    if let Some(leader) = &mut process.leads {
                        leader.progress.remove(id);
                    }
                    if *id == process.data.member {
                        process.end(now + REMOVED, REMOVED_LINE);
                    }
                    self.unlinked = true;
                }
                Kind::Publish(id, _) => {
                    process.serving |= *id == process.data.member && process.published.is_some()
                }
                _ => (),
            }
        }
        if process.listed.as_ref() == Some(&process.data.store.members) {
            process.listed = None;
        }
    }

    /// A started process tells its name, and asks again if that was lost.
    fn publish(&mut self, index: usize) {
        let process = &self.processes[index];
        let waits = process.published.is_some_and(|sent| self.now - sent < REQUEST);
        if process.serving || waits || process.paused || self.leader_of(index).is_none() {
            return;
        }
        let publish = Kind::Publish(process.member(), process.start.name.clone());
        self.processes[index].published = Some(self.now);
        self.busy = true;
        // Lost, it is sent again after a while.
        let (Ok(_) | Err(_)) = self.submit(index, publish);
    }

    /// The leader that a process follows and can speak to, or itself.
    pub(super) fn leader_of(&self, index: usize) -> Option<usize> {
        let process = &self.processes[index];
        if process.leads.is_some() {
            return Some(index);
        }
        let leader = self.peer(index, process.lead?)?;
        let leads = self.processes[leader].leads.is_some() && self.connects(index, leader);
        (leads && self.processes[leader].data.term == process.data.term).then_some(leader)
    }

    /// Proposes an entry through a process, and waits until that process has applied it.
    pub(super) fn propose(&mut self, asked: usize, kind: Kind) -> Result<(), Error> {
        let leader = self.submit(asked, kind)?;
        if asked != leader && self.processes[asked].outcome.is_none() {
            let id = self.processes[asked].member();
            self.exchange(leader, id, usize::MAX);
        }
        let waiting = &mut self.processes[asked];
        waiting.awaited = None;
        waiting.outcome.take().unwrap_or(Err(Error::Timeout))
    }

    /// Hands an entry to the leader, which appends it and sends it to those who are level. Returns the leader.
    fn submit(&mut self, asked: usize, kind: Kind) -> Result<usize, Error> {
        let leader = self.leader_of(asked).ok_or(Error::Timeout)?;
        let process = &mut self.processes[leader];
        let index = process.data.log.last() + 1;
        let applied = process.data.store.applied;
        let Some(state) = &mut process.leads else { return Err(Error::Timeout) };
        if !state.progress.contains_key(&process.data.member) {
            // A leader that was removed drops proposals.
            return Err(Error::Timeout);
        }
        let changes = matches!(kind, Kind::Add(_) | Kind::Promote(_) | Kind::Remove(_));
        // One change at a time: another one becomes an empty entry, and nobody is told.
        let refused = changes && state.pending_change > applied;
        if changes && !refused {
            state.pending_change = index;
        }
        let term = process.data.term;
        process.data.log.push(Entry { term, kind: if refused { Kind::Empty } else { kind } });
        let waiting = &mut self.processes[asked];
        (waiting.awaited, waiting.outcome) = ((!refused).then_some((index, term)), None);
        self.busy = true;
        self.replicate(leader);
        Ok(leader)
    }

    /// Sends a new entry to those who have all before it; if that is no majority, voters are brought level.
    fn replicate(&mut self, index: usize) {
        let last = self.processes[index].data.log.last();
        let Some(leader) = &self.processes[index].leads else { return };
        let own = self.processes[index].member();
        let others = leader.progress.iter().filter(|(id, _)| **id != own);
        let (level, lagging): (Vec<_>, Vec<_>) = others.partition(|(_, known)| known.matched + 1 >= last);
        let level: Vec<MemberId> = level.into_iter().map(|(id, _)| *id).collect();
        let lagging: Vec<MemberId> = lagging.into_iter().map(|(id, _)| *id).collect();
        for id in &level {
            self.exchange(index, *id, usize::MAX);
        }
        self.commit(index);
        for id in lagging {
            let data = &self.processes[index].data;
            if data.commit < last && data.store.is_voter(id) {
                self.exchange(index, id, usize::MAX);
                self.commit(index);
            }
        }
        for id in level {
            self.exchange(index, id, 0);
        }
    }

    fn compact(&mut self, index: usize) {
        let kept = self.kept_entries;
        let data = &mut self.processes[index].data;
        if data.store.applied.saturating_sub(data.log.base()) > 2 * kept {
            data.log.compact(data.store.applied - kept);
        }
    }
}

impl Data {
    fn commit_to(&mut self, index: u64) -> Result<(), String> {
        let last = self.log.last();
        if index > self.commit && index > last {
            return Err(format!(
                "tocommit({index}) is out of range [lastIndex({last})]. Was the raft log corrupted, truncated, or lost?"
            ));
        }
        self.commit = self.commit.max(index);
        Ok(())
    }

    /// `handleAppendEntries` of raft.go.
    fn append(&mut self, (previous, term): (u64, u64), entries: Vec<Entry>, commit: u64) -> Answer {
        if previous < self.commit {
            return Answer::Matches(self.commit);
        }
        if self.log.term(previous) != Some(term) {
            let (hint, term) = self.log.newest_up_to(previous.min(self.log.last()), term);
            return Answer::Rejects { hint, term };
        }
        let last = previous + entries.len() as u64;
        let indices = previous + 1..;
        let conflict = indices
            .zip(&entries)
            .find(|(index, entry)| self.log.term(*index) != Some(entry.term))
            .map(|(index, _)| index);
        if let Some(index) = conflict {
            if index <= self.commit {
                return Answer::Panics(format!(
                    "entry {index} conflict with committed entry [committed({})]",
                    self.commit
                ));
            }
            let known = usize::try_from(index - previous - 1).unwrap_or(0);
            self.log.replace_after(index - 1, entries.into_iter().skip(known));
        }
        match self.commit_to(commit.min(last)) {
            Ok(()) => Answer::Matches(last),
            Err(panic) => Answer::Panics(panic),
        }
    }
}
