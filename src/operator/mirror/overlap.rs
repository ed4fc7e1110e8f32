//! Mirrors that must not run beside each other: in a circle, into one range, or from a cluster into itself.
//!
//! Only what can be seen from here: EtcdMirrors of other Kubernetes clusters are met in etcd, by the claims that the
//! engine keeps there. Where two are at odds the younger one is refused, so that one which works goes on.

use super::observed::{Pair, Place};
use crate::api::reason::Reason;

/// Why a mirror must not run, and what can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// SameCluster, ClaimOverlaps or MirrorLoop.
    pub reason: Reason,
    /// What was seen, and what a person can do.
    pub message: String,
}

/// A prefix of keys in a cluster.
#[derive(Clone, Debug, PartialEq)]
struct Range<'a> {
    place: &'a Place,
    prefix: String,
}

/// What keeps `pair` from running beside `others`.
pub fn conflict(pair: &Pair, others: &[Pair]) -> Option<Conflict> {
    same_cluster(pair).or_else(|| claimed(pair, others)).or_else(|| circle(pair, others))
}

fn same_cluster(pair: &Pair) -> Option<Conflict> {
    let [first, second] = pair.sites.as_slice() else { return None };
    is_same(first, second).then(|| Conflict {
        reason: Reason::SameCluster,
        message: format!(
            "The sites {} and {} are the same etcd cluster: it cannot follow itself. Nothing is copied. Change one of \
             them in spec.sites.",
            first.site, second.site
        ),
    })
}

/// Another one writes keys that this one writes.
fn claimed(pair: &Pair, others: &[Pair]) -> Option<Conflict> {
    let older = others.iter().filter(|other| is_older(other, pair));
    let at_odds = |other: &&Pair| {
        let theirs: Vec<(Range, Range)> = legs(other);
        legs(pair).iter().any(|(_, ours)| theirs.iter().any(|(_, theirs)| meet(ours, theirs)))
    };
    let other = older.into_iter().find(at_odds)?;
    Some(Conflict {
        reason: Reason::ClaimOverlaps,
        message: format!(
            "The EtcdMirror {}/{}, which is older, writes keys of the range that this one would write. Nothing is \
             copied. Give both disjoint prefixes in spec.mappings, or delete one of them.",
            other.namespace, other.name
        ),
    })
}

/// Following what is copied from here, through others, one comes back to where this one reads.
fn circle(pair: &Pair, others: &[Pair]) -> Option<Conflict> {
    for (source, target) in legs(pair) {
        let mut path: Vec<&Pair> = Vec::new();
        if leads_back(&source, &target, others, &mut path) && path.iter().any(|other| is_older(other, pair)) {
            let names: Vec<String> =
                path.iter().map(|other| format!("{}/{}", other.namespace, other.name)).collect();
            return Some(Conflict {
                reason: Reason::MirrorLoop,
                message: format!(
                    "Together with {} this EtcdMirror would copy in a circle: what it writes comes back to where it \
                     reads. Nothing is copied. For a pair of sites that takes turns, use one EtcdMirror and change \
                     spec.active; else give each direction prefixes of its own in spec.mappings.",
                    names.join(", ")
                ),
            });
        }
    }
    None
}

/// Whether what is at `at` reaches `goal` through others, each used once at most.
fn leads_back<'a>(goal: &Range, at: &Range, others: &'a [Pair], path: &mut Vec<&'a Pair>) -> bool {
    for other in others {
        if path.iter().any(|used| std::ptr::eq(*used, other)) {
            continue;
        }
        for (source, target) in legs(other) {
            let Some(next) = carried(at, &source, &target) else { continue };
            path.push(other);
            if meet(&next, goal) || leads_back(goal, &next, others, path) {
                return true;
            }
            path.pop();
        }
    }
    false
}

/// From where to where a mirror copies, a leg a mapping.
fn legs(pair: &Pair) -> Vec<(Range<'_>, Range<'_>)> {
    let source = pair.sites.iter().find(|place| place.site == pair.active);
    let target = pair.sites.iter().find(|place| place.site != pair.active);
    let (Some(source), Some(target)) = (source, target) else { return Vec::new() };
    if pair.mappings.is_empty() {
        let whole = |place| Range { place, prefix: String::new() };
        return vec![(whole(source), whole(target))];
    }
    let mappings = pair.mappings.iter().filter_map(|prefixes| {
        let range = |place: &'_ Place| prefixes.get(&place.site).cloned();
        Some((
            Range { place: source, prefix: range(source)? },
            Range { place: target, prefix: range(target)? },
        ))
    });
    mappings.collect()
}

/// The names that the keys of `range` get by a leg; `None`: it does not copy them.
fn carried<'a>(range: &Range, source: &Range, target: &Range<'a>) -> Option<Range<'a>> {
    if !is_same(range.place, source.place) {
        return None;
    }
    let inside = range.prefix.strip_prefix(&source.prefix);
    let whole = source.prefix.starts_with(&range.prefix).then_some("");
    let rest = inside.or(whole)?;
    Some(Range { place: target.place, prefix: format!("{}{rest}", target.prefix) })
}

fn meet(one: &Range, other: &Range) -> bool {
    is_same(one.place, other.place)
        && (one.prefix.starts_with(&other.prefix) || other.prefix.starts_with(&one.prefix))
}

/// Cluster IDs are proof; without them it is the same if it is found in the same way.
fn is_same(one: &Place, other: &Place) -> bool {
    if let (Some(one), Some(other)) = (&one.cluster_id, &other.cluster_id) {
        return one == other;
    }
    let named = one.cluster.is_some() && one.cluster == other.cluster;
    named || one.endpoints.intersection(&other.endpoints).next().is_some()
}

fn is_older(one: &Pair, other: &Pair) -> bool {
    (one.created, &one.namespace, &one.name) < (other.created, &other.namespace, &other.name)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use jiff::Timestamp;

    use super::*;

    fn place(cluster: &str) -> Place {
        let (cluster, endpoints) = match cluster.strip_prefix("http") {
            Some(_) => (None, BTreeSet::from([cluster.to_owned()])),
            None => (Some(("team".to_owned(), cluster.to_owned())), BTreeSet::new()),
        };
        Place { site: String::new(), cluster, endpoints, cluster_id: None }
    }

    /// A mirror made in second `age`, from one cluster to another, of mappings such as `/a/=/b/`.
    fn pair(age: i64, from: &str, to: &str, mappings: &[&str]) -> Pair {
        let mapping = |text: &&str| {
            let (source, target) = text.split_once('=').unwrap();
            BTreeMap::from([("a".to_owned(), source.to_owned()), ("b".to_owned(), target.to_owned())])
        };
        Pair {
            namespace: "team".to_owned(),
            name: format!("m{age}"),
            created: Timestamp::from_second(age).ok(),
            id: "default".to_owned(),
            sites: vec![
                Place { site: "a".to_owned(), ..place(from) },
                Place { site: "b".to_owned(), ..place(to) },
            ],
            active: "a".to_owned(),
            mappings: mappings.iter().map(mapping).collect(),
        }
    }

    fn found(pair: &Pair, others: &[Pair]) -> Option<Reason> {
        conflict(pair, others).map(|conflict| conflict.reason)
    }

    #[test]
    fn a_cluster_does_not_follow_itself_by_whatever_name() {
        assert_eq!(found(&pair(1, "main", "main", &[]), &[]), Some(Reason::SameCluster));
        assert_eq!(found(&pair(1, "http://x:1", "http://x:1", &[]), &[]), Some(Reason::SameCluster));
        let mut seen = pair(1, "main", "http://x:1", &[]);
        assert_eq!(found(&seen, &[]), None);
        for site in &mut seen.sites {
            site.cluster_id = Some("424b".to_owned());
        }
        assert_eq!(found(&seen, &[]), Some(Reason::SameCluster));
    }

    #[test]
    fn of_two_that_write_one_range_the_younger_is_refused() {
        let (old, new) = (pair(1, "x", "t", &["/a/=/a/"]), pair(2, "y", "t", &["/b/=/a/b/"]));
        assert_eq!(found(&new, std::slice::from_ref(&old)), Some(Reason::ClaimOverlaps));
        assert_eq!(found(&old, &[new]), None);
        let beside = pair(2, "y", "t", &["/b/=/b/"]);
        assert_eq!(found(&beside, &[old]), None, "fan-in of disjoint ranges");
    }

    #[test]
    fn both_directions_at_once_are_a_circle_unless_their_ranges_are_apart() {
        let there = pair(1, "x", "y", &[]);
        assert_eq!(found(&pair(2, "y", "x", &[]), std::slice::from_ref(&there)), Some(Reason::MirrorLoop));
        // /a/k of y is /b/k in x and comes back as /b/k, which goes no further.
        assert_eq!(found(&pair(2, "y", "x", &["/a/=/b/"]), std::slice::from_ref(&there)), None);
        assert_eq!(
            found(&pair(2, "y", "x", &["/a/=/a/b/"]), std::slice::from_ref(&there)),
            Some(Reason::MirrorLoop)
        );
        let (there, back) = (pair(1, "x", "y", &["/a/=/a/"]), pair(2, "y", "x", &["/b/=/b/"]));
        assert_eq!(found(&back, &[there]), None);
    }

    #[test]
    fn a_chain_is_no_circle_until_it_is_closed() {
        let chain = [pair(1, "x", "y", &["/=/"]), pair(2, "y", "z", &["/a/=/b/"])];
        assert_eq!(found(&chain[1], &chain[..1]), None);
        assert_eq!(found(&pair(3, "z", "x", &["/b/=/a/"]), &chain), Some(Reason::MirrorLoop));
        assert_eq!(found(&pair(3, "z", "x", &["/b/=/c/"]), &chain), None);
        assert_eq!(
            found(&chain[0], &[chain[1].clone(), pair(3, "z", "x", &["/b/=/a/"])]),
            None,
            "the oldest goes on"
        );
    }

    #[test]
    fn a_mirror_whose_active_site_changed_copies_the_other_way() {
        let mut switched = pair(2, "y", "x", &[]);
        switched.active = "b".to_owned();
        let there = pair(1, "x", "y", &[]);
        assert_eq!(found(&switched, &[there]), Some(Reason::ClaimOverlaps));
    }
}
