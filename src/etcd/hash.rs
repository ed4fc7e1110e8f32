//! What members hold, compared: etcd's HashKV at one revision.
//!
//! Separate from the survey because it reads the whole database: asked for once an hour, and when somebody may differ.
//! etcd's own checks tell that *somebody* differs (one changed value stopped a healthy member when tried), and skip
//! silently when not everybody answers; only a strict majority of equal hashes says who is wrong.

use std::collections::{BTreeMap, BTreeSet};

use super::MemberId;

/// One member's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash {
    /// Over all keys and their history between the two revisions.
    pub hash: u32,
    /// What was compacted before: only hashes over the same history can be compared.
    pub compact_revision: i64,
}

/// What all voters hold, by their IDs.
pub type Hashes = BTreeMap<MemberId, KeyHash>;

/// What hashes say of those who gave them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// All hold the same.
    Equal,
    /// A strict majority holds the same; these hold something else.
    Differ(BTreeSet<MemberId>),
    /// They differ, and no strict majority holds the same.
    NoMajority,
    /// They are over different histories: asked for again later.
    Incomparable,
}

/// Compares.
pub fn compare(hashes: &Hashes) -> Comparison {
    let histories: BTreeSet<i64> = hashes.values().map(|hash| hash.compact_revision).collect();
    if histories.len() > 1 {
        return Comparison::Incomparable;
    }
    let mut groups: BTreeMap<u32, BTreeSet<MemberId>> = BTreeMap::new();
    for (id, hash) in hashes {
        groups.entry(hash.hash).or_default().insert(*id);
    }
    if groups.len() <= 1 {
        return Comparison::Equal;
    }
    let majority = groups.values().find(|group| group.len() * 2 > hashes.len());
    majority.map_or(Comparison::NoMajority, |majority| {
        Comparison::Differ(hashes.keys().filter(|id| !majority.contains(id)).copied().collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(hashes: &[(u64, u32, i64)]) -> Comparison {
        let row = |(id, hash, compact_revision): &(u64, u32, i64)| {
            (MemberId(*id), KeyHash { hash: *hash, compact_revision: *compact_revision })
        };
        compare(&hashes.iter().map(row).collect())
    }

    #[test]
    fn only_a_strict_majority_says_who_is_wrong() {
        assert_eq!(of(&[(1, 7, 0), (2, 7, 0), (3, 7, 0)]), Comparison::Equal);
        assert_eq!(of(&[(1, 7, 0), (2, 8, 0), (3, 7, 0)]), Comparison::Differ([MemberId(2)].into()));
        assert_eq!(of(&[(1, 7, 0), (2, 8, 0)]), Comparison::NoMajority);
        assert_eq!(of(&[(1, 7, 0), (2, 8, 0), (3, 9, 0)]), Comparison::NoMajority);
        let two_of_five = [(1, 7, 0), (2, 8, 0), (3, 7, 0), (4, 9, 0), (5, 7, 0)];
        assert_eq!(of(&two_of_five), Comparison::Differ([MemberId(2), MemberId(4)].into()));
    }

    #[test]
    fn hashes_over_different_histories_are_not_compared() {
        assert_eq!(of(&[(1, 7, 0), (2, 8, 5), (3, 7, 0)]), Comparison::Incomparable);
    }
}
