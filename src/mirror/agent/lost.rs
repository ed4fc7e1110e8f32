//! What a site has of its own that is back after the other one was promoted without it: writes that the promoted one
//! never got. Pure: pages of both sides were read before.
//!
//! Of a put only the newest is known, at the revision in which the site was looked at; what it replaced, and what was put and deleted
//! again, is in nobody's keys. A delete is known by its absence: the promoted site still has the key as it was when it was
//! promoted. Keys that have had a lease are not looked for among deletes: they end by themselves after a promotion.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::mirror::checkpoint::{Checkpoint, Position, Unreadable};
use crate::mirror::config::Leases;
use crate::mirror::keyspace::{Fate, Keyspace};
use crate::mirror::resync::{Counts, Entry};
use crate::mirror::text::shown;

/// Keys that are stored by name.
const NAMED: usize = 1000;
/// Bytes of their names: the list is one key of etcd.
const NAMED_BYTES: usize = 256 << 10;
/// Bytes of the hash that are shown, as two hex digits each.
const HASH_BYTES: usize = 6;

/// The key `lost` of the promoted side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Lost {
    /// Term of the promoted side.
    pub term: u64,
    /// Name of the site that is back.
    pub site: String,
    /// Its revision at which it was looked at.
    pub revision: i64,
    /// The newest revision of it that the promoted side has wholly; 0: a scan had not ended, and keys that it had not
    /// come to are listed if they differ.
    pub since: i64,
    /// How many keys were put there.
    pub put_count: u64,
    /// How many were deleted there.
    pub delete_count: u64,
    /// Whether all of them are named here.
    pub whole: bool,
    /// The first that were put.
    pub puts: Vec<Put>,
    /// The first that were deleted.
    pub deletes: Vec<String>,
    /// Another one for every other list of puts: whoever gives it back has seen this one.
    pub hash: String,
}

/// A key that was put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Put {
    /// Its name at the site that is back.
    pub key: String,
    /// In which revision.
    pub revision: i64,
}

impl Lost {
    /// As it is stored.
    pub fn text(&self) -> Vec<u8> {
        // Structs of strings and numbers: serde_json fails only for maps whose keys are no strings.
        serde_json::to_string(self).unwrap_or_default().into_bytes()
    }

    /// What was stored.
    pub fn parse(value: &[u8]) -> Result<Self, Unreadable> {
        serde_json::from_slice(value).map_err(|error| Unreadable::Form(error.to_string()))
    }
}

/// Goes through both sides page by page.
#[derive(Debug)]
pub struct Search<'a> {
    keyspace: &'a Keyspace,
    checkpoint: &'a Checkpoint,
    /// The promoted side's revision in which it was promoted.
    promoted: i64,
    /// What a mirror from the promoted side would write.
    pub counts: Counts,
    lost: Lost,
    named_bytes: usize,
    hash: Sha256,
}

impl<'a> Search<'a> {
    /// One that has seen nothing yet. `begun` says which sites and revisions.
    pub fn new(keyspace: &'a Keyspace, checkpoint: &'a Checkpoint, promoted: i64, begun: Lost) -> Self {
        let since = checkpoint.position.whole();
        let hash = Sha256::new_with_prefix(format!("{} {} ", begun.site, begun.term));
        let lost = Lost { since, whole: true, ..begun };
        Self { keyspace, checkpoint, promoted, counts: Counts::default(), lost, named_bytes: 0, hash }
    }

    /// The same keys of the site that is back, and of the promoted one.
    pub fn page(&mut self, back: &[Entry], promoted: &[Entry]) {
        let mut there: BTreeMap<Vec<u8>, &Entry> = BTreeMap::new();
        for entry in promoted {
            if let Fate::Mirrored(name) = self.keyspace.of_target(&entry.key) {
                there.insert(name, entry);
            }
        }
        let skips = self.checkpoint.config.leases == Leases::Skip;
        for entry in back.iter().filter(|entry| !(skips && entry.lease != 0)) {
            if matches!(self.keyspace.of_source(&entry.key), Fate::Mirrored(_)) {
                let other = there.remove(&entry.key);
                self.here(entry, other);
            }
        }
        for (name, entry) in there {
            self.counts.missing += 1;
            if entry.modified <= self.promoted && self.came_to(&name).is_some() {
                self.lost.delete_count += 1;
                if self.names(&name) {
                    self.lost.deletes.push(shown(&name));
                }
            }
        }
    }

    /// What was found.
    pub fn end(self) -> (Lost, Counts) {
        let hash = self.hash.finalize();
        let hash = hash.iter().take(HASH_BYTES).fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        (Lost { hash, ..self.lost }, self.counts)
    }

    fn here(&mut self, entry: &Entry, other: Option<&Entry>) {
        let alike = other.is_some_and(|other| other.value == entry.value);
        match other {
            _ if alike => self.counts.equal += 1,
            Some(_) => self.counts.differing += 1,
            None => self.counts.extra += 1,
        }
        if entry.modified <= self.came_to(&entry.key).unwrap_or(0) {
            return;
        }
        self.hash.update(&entry.key);
        self.hash.update(entry.modified.to_be_bytes());
        if !alike {
            self.lost.put_count += 1;
            if self.names(&entry.key) {
                self.lost.puts.push(Put { key: shown(&entry.key), revision: entry.modified });
            }
        }
    }

    /// Up to which revision the promoted side has a key; `None`: a scan had not come to it.
    fn came_to(&self, key: &[u8]) -> Option<i64> {
        match &self.checkpoint.position {
            Position::Stream { .. } => Some(self.lost.since),
            Position::First(scan) | Position::Resync(scan) => {
                scan.cursor.as_ref().is_some_and(|cursor| key < cursor.as_slice()).then_some(scan.revision)
            }
        }
    }

    /// Whether there is room for another name.
    fn names(&mut self, key: &[u8]) -> bool {
        self.named_bytes += shown(key).len();
        let named = self.lost.puts.len() + self.lost.deletes.len();
        let fits = named < NAMED && self.named_bytes <= NAMED_BYTES;
        self.lost.whole &= fits;
        fits
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::etcd::ClusterId;
    use crate::mirror::checkpoint::{Identity, Scan};
    use crate::mirror::config::{Config, Policy};

    fn checkpoint(position: Position) -> Checkpoint {
        let source = Identity { cluster: ClusterId(1), term: 1, applied: 1 };
        let config = Config::whole();
        Checkpoint { counter: 1, position, source, config, policy: Policy::default(), looked: 0 }
    }

    fn entry(key: &str, value: &str, modified: i64) -> Entry {
        Entry { key: key.into(), value: value.into(), lease: 0, modified }
    }

    fn searched(position: Position, back: &[Entry], promoted: &[Entry]) -> (Lost, Counts) {
        let checkpoint = checkpoint(position);
        let keyspace = checkpoint.config.keyspace().unwrap();
        let begun = Lost { term: 2, site: "a".to_owned(), revision: 99, ..Lost::default() };
        let mut search = Search::new(&keyspace, &checkpoint, 50, begun);
        search.page(back, promoted);
        search.end()
    }

    #[test]
    fn what_was_written_after_the_checkpoint_is_lost_and_nothing_else() {
        let back = [
            entry("/as it was", "1", 5),
            entry("/changed at the new one", "1", 10),
            entry("/lost", "2", 11),
            entry("/lost and alike", "x", 12),
            entry("/only there", "1", 13),
            entry("/__quorate/mirror/default/site", "1", 14),
        ];
        let promoted = [
            entry("/as it was", "1", 20),
            entry("/changed at the new one", "2", 60),
            entry("/deleted there", "1", 50),
            entry("/lost", "1", 21),
            entry("/lost and alike", "x", 61),
            entry("/new", "1", 51),
        ];
        let (lost, counts) = searched(Position::Stream { revision: 10, offset: 0 }, &back, &promoted);
        expect![[r#"{"term":2,"site":"a","revision":99,"since":10,"putCount":2,"deleteCount":1,"whole":true,"puts":[{"key":"/lost","revision":11},{"key":"/only%20there","revision":13}],"deletes":["/deleted%20there"],"hash":""}"#]]
            .assert_eq(&String::from_utf8(Lost { hash: String::new(), ..lost.clone() }.text()).unwrap());
        assert_eq!(Lost::parse(&lost.text()), Ok(lost));
        assert_eq!((counts.equal, counts.differing, counts.extra, counts.missing), (2, 2, 1, 2));
    }

    #[test]
    fn the_hash_is_of_what_was_put_there_whatever_becomes_of_the_other_side() {
        let stream = || Position::Stream { revision: 10, offset: 0 };
        let hash = |back: &[Entry], promoted: &[Entry]| searched(stream(), back, promoted).0.hash;
        let put = entry("/k", "1", 11);
        let seen = hash(std::slice::from_ref(&put), &[]);
        assert_eq!(hash(std::slice::from_ref(&put), &[entry("/k", "1", 70), entry("/l", "1", 2)]), seen);
        assert_ne!(hash(&[entry("/k", "1", 12)], &[]), seen);
        assert_ne!(hash(&[put, entry("/l", "1", 12)], &[]), seen);
    }

    #[test]
    fn where_a_scan_had_not_come_to_all_that_differs_is_listed() {
        let scan = Scan { cursor: Some(b"/m".to_vec()), revision: 10, ..Scan::new(1) };
        let back = [entry("/a", "1", 3), entry("/b", "1", 11), entry("/x", "1", 3), entry("/y", "1", 3)];
        let promoted = [entry("/a", "2", 60), entry("/c", "1", 3), entry("/x", "1", 3), entry("/z", "1", 3)];
        let (lost, _) = searched(Position::Resync(scan), &back, &promoted);
        let puts: Vec<&str> = lost.puts.iter().map(|put| put.key.as_str()).collect();
        assert_eq!((puts, lost.deletes, lost.since), (vec!["/b", "/y"], vec!["/c".to_owned()], 0));
    }

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let back: Vec<Entry> = (0..NAMED + 5).map(|n| entry(&format!("/k{n:05}"), "1", 20)).collect();
        let (lost, _) = searched(Position::Stream { revision: 10, offset: 0 }, &back, &[]);
        assert_eq!((lost.puts.len(), lost.put_count, lost.whole), (NAMED, back.len() as u64, false));
        assert!(lost.text().len() < 1 << 20);
    }
}
