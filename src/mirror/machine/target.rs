//! The target: one request at a time, and what its answer, its refusal or its silence means.
//!
//! **Invariants:** (I2) data and the checkpoint that speaks of them are one transaction, which compares the checkpoint
//! before. (I3) it compares the owner, too. (I6) after silence nothing is sent before the checkpoint was read, and then
//! the very same transaction or none.

use super::{Asked, Command, Effect, Flight, Machine, Own, Refusal, Resynced, Stage, Stop};
use crate::mirror::checkpoint::{Checkpoint, Owner, Position, Role};
use crate::mirror::config::claims_key;
use crate::mirror::keyspace::next_key;
use crate::mirror::transaction::{Answer, Guard, LEAST_LEVEL, Lease, Node, Op, Stored, Transaction, nest};

impl Machine {
    pub(super) fn go_on_at_target(&mut self) {
        match self.stage {
            Stage::Looking | Stage::Taking | Stage::Over => {}
            Stage::Counting(_) => self.go_on_with_pages(),
            Stage::Running => {
                if self.claim_again() {
                    return;
                }
                let leases = self.compare_if_due();
                let gone = std::mem::take(&mut self.compacted);
                if gone || self.repairs() {
                    let why = match (leases, gone) {
                        (true, _) => "leases of the target were lost, or not known",
                        (false, true) => "history of the source was gone",
                        (false, false) => "others wrote to the target",
                    };
                    let (config, began) = (self.settings.config.clone(), self.counter() + 1);
                    self.scan_anew(&config, began, why);
                }
                if self.position.scan().is_some() { self.go_on_with_pages() } else { self.go_on_streaming() }
            }
        }
    }

    fn counter(&self) -> u64 {
        self.stored.as_ref().map_or(0, |(checkpoint, _)| checkpoint.counter)
    }

    /// Sends changes together with the position that the target will then have.
    pub(super) fn commit(&mut self, ops: Vec<Op>, position: Position, effect: Effect) {
        if !self.has_leases(&ops) {
            return;
        }
        let (Some((stored, previous)), Some(sample)) = (&self.stored, &self.sample) else { return };
        if !self.parked && ops.iter().any(|op| op.lease() == Lease::Parking) {
            return self.ask(Asked::Park, Command::Park);
        }
        let next = Checkpoint {
            counter: stored.counter + 1,
            position,
            source: sample.identity,
            config: self.settings.config.clone(),
            policy: self.policy,
            looked: self.foreign.clean(),
        };
        let value = next.text();
        let (owner, checkpoint) = (self.settings.id.key("owner"), self.settings.id.key("checkpoint"));
        let mut when = vec![
            Guard::Value(owner.clone(), self.owner.clone()),
            Guard::Value(checkpoint.clone(), previous.clone()),
        ];
        if let (Effect::Settled(_), Some(first), Some(last)) = (&effect, ops.first(), ops.last()) {
            when.push(Guard::Vacant(first.key().to_vec(), next_key(last.key())));
        }
        let largest = ops.iter().max_by_key(|op| op.bytes()).map(|op| (op.key().to_vec(), op.bytes()));
        let size = (ops.len(), ops.iter().map(Op::bytes).sum());
        let deletes = ops.iter().filter(|op| matches!(op, Op::Delete(_))).count();
        let mut then = nest(ops, self.limits.level);
        then.push(Node::Put { key: checkpoint.clone(), value: value.clone(), lease: Lease::None });
        let transaction =
            Transaction { when, then, otherwise: vec![Node::Get(owner), Node::Get(checkpoint)] };
        let largest = largest.unwrap_or_default();
        self.flight =
            Some(Flight { next, value, transaction: transaction.clone(), size, deletes, largest, effect });
        self.ask(Asked::Data, Command::Commit(transaction));
    }

    pub(super) fn on_committed(&mut self, answer: &Answer) {
        match self.asked.take() {
            Some(Asked::Take) => self.on_taken(answer),
            Some(Asked::Claim) => self.on_claimed(answer),
            Some(Asked::Data) if answer.succeeded => self.landed(Some(answer), answer.revision),
            Some(Asked::Data) => {
                let mut read = answer.read().into_iter();
                let (owner, checkpoint) = (read.next().flatten(), read.next().flatten());
                self.resolve(owner.as_ref(), checkpoint.as_ref(), true);
            }
            other => self.asked = other,
        }
    }

    /// What became of the transaction under way, by what the target says of owner and checkpoint: in the answer to it,
    /// or after silence.
    fn resolve(&mut self, owner: Option<&Stored>, checkpoint: Option<&Stored>, answered: bool) {
        if let Some(stop) = self.lost(owner, checkpoint) {
            return self.stop(stop);
        }
        let Some(flight) = &self.flight else { return self.confirm(checkpoint) };
        let before = self.stored.as_ref().map(|(_, value)| value);
        match checkpoint {
            None => self.stop(Stop::CheckpointLost),
            Some(stored) if stored.value == flight.value => self.landed(None, stored.modified),
            // Whichever of both comes first is done, and the other finds another checkpoint.
            Some(stored) if Some(&stored.value) == before => {
                if self.stage != Stage::Running {
                    self.flight = None;
                    return;
                }
                // These two conditions held, so it was the third one that did not.
                if answered && matches!(flight.effect, Effect::Settled(_)) {
                    self.flight = None;
                    return self.scan.not_vacant();
                }
                let again = flight.transaction.clone();
                self.ask(Asked::Data, Command::Commit(again));
            }
            Some(_) => self.stop(Stop::CheckpointChanged),
        }
    }

    /// Why this is not the owner any more, if it is not. Whoever takes over goes on from the same checkpoint or a later
    /// one, under a name of its own: an earlier one, or the owner of before this run, is that of a target which was set
    /// back.
    fn lost(&self, owner: Option<&Stored>, checkpoint: Option<&Stored>) -> Option<Stop> {
        let Some(owner) = owner else { return Some(Stop::CheckpointLost) };
        if owner.value == self.owner {
            return None;
        }
        let counter = checkpoint.and_then(|stored| Checkpoint::parse(&stored.value).ok());
        let counter = counter.map(|checkpoint| checkpoint.counter);
        let role = Owner::parse(&owner.value).ok().map(|owner| owner.role);
        // By its revision too: whoever was pushed aside before it began may have come back.
        let former = self.own.owner.as_ref() == Some(owner);
        Some(match (role, counter) {
            (Some(Role::Promoted), _) => Stop::Promoted,
            (_, None) if former => Stop::CheckpointLost,
            (_, Some(counter)) if former || counter < self.counter() => Stop::CheckpointChanged,
            (_, Some(_) | None) => Stop::Fenced,
        })
    }

    /// The target is looked at although nothing is under way: it may have been set back while nobody wrote.
    fn confirm(&mut self, checkpoint: Option<&Stored>) {
        let Some((_, known)) = &self.stored else { return };
        match checkpoint {
            None => self.stop(Stop::CheckpointLost),
            Some(stored) if stored.value != *known => self.stop(Stop::CheckpointChanged),
            Some(_) => {}
        }
    }

    /// The transaction under way was done, at this revision of the target. `None`: its answer was lost.
    fn landed(&mut self, answer: Option<&Answer>, revision: i64) {
        let Some(flight) = self.flight.take() else { return };
        self.foreign.wrote(revision);
        self.stats.transactions += 1;
        self.stats.operations += flight.size.0 as u64;
        self.stats.bytes += flight.size.1 as u64;
        self.stats.deletes += flight.deletes as u64;
        self.tell_quiet = false;
        // What came while the transaction was under way is behind its checkpoint, and is still to be told.
        if self.waiting.is_empty() && self.assembler.known() <= flight.next.position.revision() {
            self.others = false;
        }
        let position = flight.next.position.clone();
        self.stored = Some((flight.next, flight.value));
        if self.stage != Stage::Running {
            return;
        }
        let before = std::mem::replace(&mut self.position, position);
        match flight.effect {
            Effect::Stream(done) => {
                for _ in 0..done {
                    self.done_with_first();
                }
                self.stats.split += u64::from(done == 0);
            }
            Effect::Behind(done, offset) => self.done_behind(done, offset),
            Effect::Page(done) | Effect::Settled(done) => self.done_with_page(done),
            Effect::Added(done) => {
                let all = answer.is_some_and(|answer| answer.refused_adds() == 0);
                self.done_adding(done, revision, all);
            }
            Effect::Moved => {}
        }
        if self.position.scan().is_none() {
            self.scan.forget();
            self.scan_ended(&before);
        }
    }

    /// The target is exact again; `before` is where it was.
    fn scan_ended(&mut self, before: &Position) {
        if before.scan().is_some() {
            self.foreign.scan_ends();
        }
        if matches!(before, Position::Resync(_)) {
            self.resynced = Some(self.since_scan());
        }
    }

    fn since_scan(&self) -> Resynced {
        let (why, before) = self.scanning;
        Resynced {
            number: self.stats.scans,
            why,
            operations: self.stats.operations - before.operations,
            deletes: self.stats.deletes - before.deletes,
        }
    }

    pub(super) fn on_refused(&mut self, refusal: Refusal) {
        let asked = self.asked.take();
        let flight = self.flight.take();
        match (refusal, asked) {
            (Refusal::TooManyOperations, Some(Asked::Data)) if self.limits.level / 2 >= LEAST_LEVEL => {
                self.limits.level /= 2;
            }
            (Refusal::TooManyOperations, _) => self.stop(Stop::TooFewOperations),
            (Refusal::TooLarge, Some(Asked::Take | Asked::Claim)) => {
                self.stop(Stop::ValueTooLarge { key: claims_key(), bytes: 0 });
            }
            (Refusal::TooLarge, _) => self.shrink(flight),
            (Refusal::NoLease, _) => self.on_no_lease(flight.as_ref()),
        }
    }

    fn shrink(&mut self, flight: Option<Flight>) {
        let Some(flight) = flight else { return };
        if flight.size.0 <= 1 {
            let (key, bytes) = flight.largest;
            return self.stop(Stop::ValueTooLarge { key, bytes });
        }
        self.limits.bytes = (flight.size.1 / 2).max(1).min(self.limits.bytes);
        self.limits.hard_bytes = self.limits.bytes;
    }

    pub(super) fn on_target_silent(&mut self) {
        match self.asked.take() {
            // Read what is known, and go on from there.
            Some(Asked::Own | Asked::Take | Asked::Data) => self.ask(Asked::Own, Command::ReadOwn),
            Some(Asked::Claim) => self.claim_due = true,
            // Asked for again by whatever needs it.
            Some(Asked::Count | Asked::Park) | None => {}
        }
    }

    pub(super) fn on_own(&mut self, own: Own) {
        if self.asked != Some(Asked::Own) {
            return;
        }
        self.asked = None;
        match self.stage {
            Stage::Looking => self.look(own),
            Stage::Taking => {
                let ours = own.owner.as_ref().is_some_and(|owner| owner.value == self.owner);
                let checkpoint = own.checkpoint.clone().filter(|_| ours);
                let parsed =
                    checkpoint.and_then(|stored| Some((Checkpoint::parse(&stored.value).ok()?, stored)));
                self.own.claims.clone_from(&own.claims);
                if let Some((checkpoint, stored)) = parsed {
                    return self.run_from(checkpoint, stored, own.revision);
                }
                self.look_again();
                self.look(own);
            }
            Stage::Running | Stage::Counting(_) => {
                self.foreign.saw(own.revision);
                self.resolve(own.owner.as_ref(), own.checkpoint.as_ref(), false);
            }
            Stage::Over => {}
        }
    }

    pub(super) fn on_parked(&mut self) {
        if self.asked == Some(Asked::Park) {
            self.asked = None;
            self.parked = true;
        }
    }

    pub(super) fn on_target_count(&mut self, count: u64) {
        if self.asked == Some(Asked::Count) {
            self.asked = None;
            self.scan.target_keys = Some(count);
        }
    }
}
