//! What this mirror says in the target's `claims`: which keys it writes there, and where they come from.
//!
//! **Invariant:** the key is of all mirrors. It is written only if it is as it was read, and by the owner.

use super::{Asked, Command, Machine, Sample, Stop};
use crate::etcd::ClusterId;
use crate::mirror::checkpoint::{Claim, Claims, claims_text, parse_claims};
use crate::mirror::circle::{Hop, Origin, circle, kept, origins};
use crate::mirror::config::claims_key;
use crate::mirror::text::shown;
use crate::mirror::transaction::{Answer, Guard, Node, Transaction};

impl Machine {
    /// Why nothing must be copied, if keys of the target would come back to it.
    pub(super) fn circle(&self, sample: &Sample) -> Option<Stop> {
        circle(ClusterId(self.own.cluster), self.origins(sample)).map(Stop::Circle)
    }

    fn origins(&self, sample: &Sample) -> Vec<Origin> {
        let hop = Hop { mirror: self.settings.id.as_str().to_owned(), source: sample.identity.cluster };
        let none = Claims::new();
        origins(&hop, &self.settings.config.mappings, sample.claims.as_ref().unwrap_or(&none))
    }

    /// The claims with ours; `None`: they need no change.
    pub(super) fn claims(&self) -> Result<Option<Vec<u8>>, Box<Stop>> {
        let Some(sample) = &self.sample else { return Ok(None) };
        let stored = self.own.claims.as_ref().map(|stored| parse_claims(&stored.value)).transpose();
        let mut claims: Claims = stored
            .map_err(|problem| Stop::Unreadable { key: shown(&claims_key()), problem: problem.to_string() })?
            .unwrap_or_default();
        let prefixes = self.settings.config.target_prefixes();
        let id = self.settings.id.as_str();
        for (other, claim) in claims.iter().filter(|(other, _)| *other != id) {
            let overlaps = |prefix: &&String| {
                prefixes.iter().any(|own| own.starts_with(prefix.as_str()) || prefix.starts_with(own))
            };
            if let Some(prefix) = claim.prefixes.iter().find(overlaps) {
                return Err(Box::new(Stop::Claimed { id: other.clone(), prefix: prefix.clone() }));
            }
        }
        let origins = kept(self.origins(sample));
        let own = Claim { prefixes, source: sample.identity.cluster, origins };
        if claims.get(id) == Some(&own) {
            return Ok(None);
        }
        claims.insert(id.to_owned(), own);
        Ok(Some(claims_text(&claims)))
    }

    /// Hands on what is new of where the keys come from; `false`: nothing is.
    pub(super) fn claim_again(&mut self) -> bool {
        if !std::mem::take(&mut self.claim_due) {
            return false;
        }
        let claims = match self.claims() {
            Ok(None) => return false,
            Ok(Some(claims)) => claims,
            Err(stop) => {
                self.stop(*stop);
                return true;
            }
        };
        let owner = self.settings.id.key("owner");
        let modified = self.own.claims.as_ref().map_or(0, |stored| stored.modified);
        let read = [Node::Get(owner.clone()), Node::Get(claims_key())];
        let put = Node::Put { key: claims_key(), value: claims, parked: false };
        let transaction = Transaction {
            when: vec![Guard::Value(owner, self.owner.clone()), Guard::Modified(claims_key(), modified)],
            then: [put].into_iter().chain(read.clone()).collect(),
            otherwise: read.to_vec(),
        };
        self.ask(Asked::Claim, Command::Commit(transaction));
        true
    }

    pub(super) fn on_claimed(&mut self, answer: &Answer) {
        let mut read = answer.read().into_iter();
        let (owner, claims) = (read.next().flatten(), read.next().flatten());
        if owner.is_none_or(|owner| owner.value != self.owner) {
            return self.ask(Asked::Own, Command::ReadOwn);
        }
        self.own.claims = claims;
        // Another mirror was faster, or it was done before and its answer lost: what is there now says which.
        self.claim_due |= !answer.succeeded;
    }
}
