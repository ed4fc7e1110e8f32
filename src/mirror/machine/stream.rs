//! Changes as they come: batches of whole revisions, and a checkpoint that moves although nothing of ours has changed.
//!
//! That was the incident which this is for: nothing changed below the mirrored prefix, others wrote elsewhere, and the
//! stored revision fell out of the source's history.

use super::{Effect, Link, Machine, Mode, Stop};
use crate::mirror::batch::gather;
use crate::mirror::checkpoint::Position;
use crate::mirror::config::QUIET_REVISIONS;

impl Machine {
    pub(super) fn go_on_streaming(&mut self) {
        let Position::Stream { revision, offset } = self.position else { return };
        let Some(first) = self.waiting.front() else { return self.go_on_quietly(revision, offset) };
        if offset > 0 && first.revision != revision {
            // The rest of a revision that was begun does not come any more.
            self.compacted = true;
            self.link = Link::Down;
            return self.go_on_at_target();
        }
        let leases = self.settings.config.leases;
        let batch = gather(&self.waiting, offset, &self.keyspace, leases, &self.limits);
        // With nothing left to wait for, what is known is done.
        let all = batch.done == self.waiting.len();
        let revision = if all { batch.revision.max(self.assembler.known()) } else { batch.revision };
        let position = Position::Stream { revision, offset: batch.offset };
        self.commit(batch.ops, position, Effect::Stream(batch.done));
    }

    /// Nothing of ours has changed.
    fn go_on_quietly(&mut self, revision: i64, offset: usize) {
        let known = self.assembler.known();
        if offset > 0 || self.link == Link::Down {
            return;
        }
        let reached = self.goal.is_some_and(|goal| known >= goal);
        let stored = self.stored.as_ref().map_or(revision, |(stored, _)| stored.position.revision());
        let far = known - stored >= QUIET_REVISIONS;
        if known > stored && (far || self.tell_quiet || reached) {
            return self.commit(Vec::new(), Position::Stream { revision: known, offset: 0 }, Effect::Moved);
        }
        // Known, and not worth a write: after a crash it is learned again.
        self.position = Position::Stream { revision: known.max(revision), offset: 0 };
        if reached && self.settings.mode == Mode::Once {
            self.stop(Stop::Done);
        }
    }
}
