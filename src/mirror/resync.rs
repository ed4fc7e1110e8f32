//! The difference of a page of both sides, and what may be done about it.
//!
//! Pages are compared in the order of source keys. What the mirror wrote before is its own: it is made equal. Elsewhere
//! in the target a key that is missing is added if it is still missing then, and any other difference needs leave.

use std::collections::BTreeSet;

use super::batch::Change;
use super::checkpoint::{Area, Scan};
use super::config::{Config, Leases, Policy};
use super::keyspace::{Fate, InvalidKeyspace, Keyspace};
use super::transaction::Op;

/// A key as a page shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name on its side.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
    /// Its lease; 0: none.
    pub lease: i64,
    /// The revision of its last change.
    pub modified: i64,
}

/// Part of a range, in the order of its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// What was there.
    pub entries: Vec<Entry>,
    /// The store's revision when it was read.
    pub revision: i64,
    /// Whether the range goes on behind the last entry.
    pub more: bool,
}

/// How a key differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The target lacks it.
    Missing(Entry),
    /// The target has another value, or not the lease that it should have.
    Differing(Entry),
    /// The source lacks it.
    Extra,
}

/// A key that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differing {
    /// Its name in the source.
    pub key: Vec<u8>,
    /// Its name in the target.
    pub target: Vec<u8>,
    /// How.
    pub difference: Difference,
    /// When it was last changed in the target; 0: there is none.
    pub modified: i64,
}

/// How many keys differ, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// In both and alike.
    pub equal: u64,
    /// In the source only.
    pub missing: u64,
    /// In both, and not alike.
    pub differing: u64,
    /// In the target only.
    pub extra: u64,
}

impl Counts {
    /// Counts a page's differences.
    pub fn add(&mut self, differing: &[Differing]) {
        for key in differing {
            *match key.difference {
                Difference::Missing(_) => &mut self.missing,
                Difference::Differing(_) => &mut self.differing,
                Difference::Extra => &mut self.extra,
            } += 1;
        }
    }
}

/// A key whose name on the other side would be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nameless(pub Vec<u8>);

/// Compares what both sides have in the same span. Both in order; target names are turned back. `parking` is the lease of
/// copies that have none of their own.
pub fn compare(
    keyspace: &Keyspace,
    (leases, parking): (Leases, i64),
    source: &[Entry],
    target: &[Entry],
) -> Result<Compared, Nameless> {
    let mut source = mirrored(source, |key| keyspace.of_source(key))?.into_iter();
    let mut target = mirrored(target, |key| keyspace.of_target(key))?.into_iter();
    let mut compared = Compared::default();
    let (mut here, mut there) = (next_kept(&mut source, leases), target.next());
    loop {
        // The name in the source decides the order: it is first of `here` and second of `there`.
        let order = match (&here, &there) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((entry, _)), Some((_, name))) => entry.key.cmp(name),
        };
        match order {
            std::cmp::Ordering::Less => {
                if let Some((entry, name)) = here.take() {
                    compared.push(entry.key.clone(), name, Difference::Missing(entry.clone()), 0);
                }
                here = next_kept(&mut source, leases);
            }
            std::cmp::Ordering::Greater => {
                if let Some((entry, name)) = there.take() {
                    compared.push(name, entry.key.clone(), Difference::Extra, entry.modified);
                }
                there = target.next();
            }
            std::cmp::Ordering::Equal => {
                if let (Some((entry, name)), Some((other, _))) = (here.take(), there.take()) {
                    if entry.value == other.value && leases.of_copy(entry.lease, parking) == other.lease {
                        compared.equal += 1;
                        compared.keeps(leases, other.lease);
                    } else {
                        let difference = Difference::Differing(entry.clone());
                        compared.push(entry.key.clone(), name, difference, other.modified);
                    }
                }
                (here, there) = (next_kept(&mut source, leases), target.next());
            }
        }
    }
    Ok(compared)
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Keys that are alike.
    pub equal: u64,
    /// The others, in order.
    pub differing: Vec<Differing>,
    /// Leases of those that are alike, if leases of the target are to be those of the source.
    pub leases: BTreeSet<i64>,
}

impl Compared {
    fn keeps(&mut self, leases: Leases, lease: i64) {
        if leases == Leases::Recreate && lease != 0 {
            self.leases.insert(lease);
        }
    }

    fn push(&mut self, key: Vec<u8>, target: Vec<u8>, difference: Difference, modified: i64) {
        self.differing.push(Differing { key, target, difference, modified });
    }
}

/// Mirrored entries with their other names.
fn mirrored(entries: &[Entry], fate: impl Fn(&[u8]) -> Fate) -> Result<Vec<(&Entry, Vec<u8>)>, Nameless> {
    let mut mirrored = Vec::with_capacity(entries.len());
    for entry in entries {
        match fate(&entry.key) {
            Fate::Mirrored(name) => mirrored.push((entry, name)),
            Fate::Nameless => return Err(Nameless(entry.key.clone())),
            Fate::Ignored | Fate::Own | Fate::Outside => {}
        }
    }
    Ok(mirrored)
}

fn next_kept<'a>(
    source: &mut impl Iterator<Item = (&'a Entry, Vec<u8>)>,
    leases: Leases,
) -> Option<(&'a Entry, Vec<u8>)> {
    source.find(|(entry, _)| entry.lease == 0 || leases != Leases::Skip)
}

/// Parts of the target that are the mirror's own, ready to be asked.
#[derive(Clone, Debug)]
pub struct Owned {
    areas: Vec<(Keyspace, Option<Vec<u8>>)>,
    /// Revisions of the target that are transactions of the scan.
    written: Vec<i64>,
}

impl Owned {
    /// Compiles areas.
    pub fn new(scan: &Scan) -> Result<Self, InvalidKeyspace> {
        let compiled = scan.owned.iter().map(|area| Ok((area.config.keyspace()?, area.below.clone())));
        Ok(Self { areas: compiled.collect::<Result<_, _>>()?, written: scan.written.clone() })
    }

    /// Whether the mirror has written this key of the target, or has seen that it was as in the source.
    pub fn has(&self, target: &[u8], modified: i64) -> bool {
        self.written.contains(&modified)
            || self.areas.iter().any(|(keyspace, below)| match keyspace.of_target(target) {
                Fate::Mirrored(source) => below.as_ref().is_none_or(|below| source < *below),
                Fate::Ignored | Fate::Own | Fate::Outside | Fate::Nameless => false,
            })
    }
}

/// What to do about a key; `None`: that needs leave which was not given.
pub fn remedy(differing: &Differing, owned: &Owned, policy: Policy, leases: Leases) -> Option<Op> {
    let key = differing.target.clone();
    let own = owned.has(&key, differing.modified);
    match &differing.difference {
        Difference::Missing(entry) if own => Some(put(key, entry, leases)),
        Difference::Missing(entry) => {
            Some(Op::Add { key, value: entry.value.clone(), lease: leases.of(entry.lease) })
        }
        Difference::Differing(entry) => (own || policy.overwrite).then(|| put(key, entry, leases)),
        Difference::Extra => (own || policy.prune).then_some(Op::Delete(key)),
    }
}

fn put(key: Vec<u8>, entry: &Entry, leases: Leases) -> Op {
    Op::Put { key, value: entry.value.clone(), lease: leases.of(entry.lease) }
}

/// What is the mirror's own when a scan begins again, or another begins: all that was, and what this one has done.
pub fn owned_after(scan: &Scan, config: &Config) -> Vec<Area> {
    let mut areas = scan.owned.clone();
    let Some(cursor) = &scan.cursor else { return areas };
    let same = areas.iter_mut().find(|area| area.config == *config);
    match same {
        Some(Area { below: None, .. }) => {}
        Some(Area { below: Some(below), .. }) => {
            if cursor > below {
                below.clone_from(cursor);
            }
        }
        None => areas.push(Area { config: config.clone(), below: Some(cursor.clone()) }),
    }
    areas
}

/// Changes that matter to a scan that has come to `cursor`: those of later keys are found by later pages.
pub fn behind(changes: &[Change], cursor: Option<&[u8]>) -> Vec<Change> {
    let Some(cursor) = cursor else { return Vec::new() };
    changes.iter().filter(|change| change.key.as_slice() < cursor).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::keyspace::Side;

    fn entries(keys: &[(&str, &str)]) -> Vec<Entry> {
        let entry = |(key, value): &(&str, &str)| Entry {
            key: (*key).into(),
            value: (*value).into(),
            lease: 0,
            modified: 1,
        };
        keys.iter().map(entry).collect()
    }

    fn compared(source: &[(&str, &str)], target: &[(&str, &str)], patterns: &[&str]) -> String {
        let ignore = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        let config = Config { ignore, ignore_at: Side::Source, ..Config::whole() };
        let keyspace = config.keyspace().unwrap();
        let compared = compare(&keyspace, (Leases::Strip, 1), &entries(source), &entries(target)).unwrap();
        let shown = compared.differing.iter().map(|key| {
            let sign = match key.difference {
                Difference::Missing(_) => '+',
                Difference::Differing(_) => '~',
                Difference::Extra => '-',
            };
            format!("{sign}{}", String::from_utf8_lossy(&key.key))
        });
        format!("{} equal {}", compared.equal, shown.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn pages_are_merged() {
        let source = [("a", "1"), ("c", "1"), ("d", "1")];
        let target = [("b", "1"), ("c", "2"), ("d", "1"), ("e", "1")];
        assert_eq!(compared(&source, &target, &[]), "1 equal +a -b ~c -e");
        assert_eq!(compared(&source, &target, &["[abe]"]), "1 equal ~c");
        assert_eq!(compared(&[], &target, &[]), "0 equal -b -c -d -e");
        assert_eq!(compared(&source, &[], &[]), "0 equal +a +c +d");
    }

    #[test]
    fn only_what_the_mirror_wrote_is_changed_unasked() {
        let config = Config::whole();
        let area = Area { config: config.clone(), below: Some(b"m".to_vec()) };
        let scan = Scan { owned: vec![area], written: vec![77], ..Scan::new(1) };
        let owned = Owned::new(&scan).unwrap();
        let entry = Entry { key: b"k".to_vec(), value: b"v".to_vec(), lease: 0, modified: 1 };
        let differing = |key: &str, difference: Difference| Differing {
            key: key.into(),
            target: key.into(),
            difference,
            modified: if key == "z" { 77 } else { 5 },
        };
        let ask = |key: &str, difference: Difference, policy: Policy| {
            remedy(&differing(key, difference), &owned, policy, Leases::Strip)
        };
        let careful = Policy::default();
        assert!(matches!(ask("k", Difference::Extra, careful), Some(Op::Delete(_))));
        assert!(matches!(ask("k", Difference::Differing(entry.clone()), careful), Some(Op::Put { .. })));
        assert!(matches!(ask("k", Difference::Missing(entry.clone()), careful), Some(Op::Put { .. })));
        assert!(matches!(ask("x", Difference::Missing(entry.clone()), careful), Some(Op::Add { .. })));
        assert!(
            matches!(ask("z", Difference::Extra, careful), Some(Op::Delete(_))),
            "written by the scan itself"
        );
        assert_eq!(ask("x", Difference::Extra, Policy { overwrite: true, prune: false }), None);
        assert_eq!(
            ask("x", Difference::Differing(entry.clone()), Policy { overwrite: false, prune: true }),
            None
        );
        assert!(ask("x", Difference::Differing(entry), Policy { overwrite: true, prune: false }).is_some());
        assert!(ask("x", Difference::Extra, Policy { overwrite: false, prune: true }).is_some());
    }

    #[test]
    fn a_scan_that_begins_again_keeps_what_it_has_done() {
        let config = Config::whole();
        let scan = |cursor: Option<&str>, owned: Vec<Area>| Scan {
            cursor: cursor.map(Into::into),
            owned,
            ..Scan::new(1)
        };
        assert_eq!(owned_after(&scan(None, Vec::new()), &config), []);
        let once = owned_after(&scan(Some("m"), Vec::new()), &config);
        assert_eq!(once, [Area { config: config.clone(), below: Some(b"m".to_vec()) }]);
        assert_eq!(owned_after(&scan(Some("c"), once.clone()), &config), once, "less than before");
        let all = vec![Area { config: config.clone(), below: None }];
        assert_eq!(owned_after(&scan(Some("c"), all.clone()), &config), all);
    }

    #[test]
    fn changes_above_the_cursor_wait_for_their_page() {
        let change = |key: &str| Change { key: key.into(), value: None, lease: 0 };
        let changes = [change("a"), change("c"), change("m")];
        assert_eq!(behind(&changes, Some(b"c\0")), [change("a"), change("c")]);
        assert_eq!(behind(&changes, Some(b"c")), [change("a")]);
        assert_eq!(behind(&changes, None), []);
    }
}
