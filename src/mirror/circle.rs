//! Mirrors that copy in a circle: what one writes would come back to where it was read, older, and for ever. Pure.
//!
//! Nobody sees all mirrors. So the claim that each has in its target says where the keys come from that it brings there:
//! from its source, and from wherever others bring them into its source ([`origins`]). A mirror reads the claims of its
//! source with every look at it:
//!
//! | what is found | what is done |
//! |---|---|
//! | keys of the target would come back to where they were, or below | nothing is begun, or it stops; its claim stays as it is, and is not written if it had none |
//! | other origins than its claim in the target has | the claim is written anew, if the owner and all claims are what they were |
//! | the claims, or the owners of these mirrors, cannot be read by the user's role | as if there were none |
//!
//! | claims in the source, by the key `owner` of their mirror there | |
//! |---|---|
//! | agent, or no such key | count, whether it runs or not: that cannot be known from here. Whoever knows takes the claim away |
//! | promoted | do not count: nothing is copied there any more. So the mirror the other way begins after a switch |
//!
//! - **Invariant (R1), no circle lasts:** the last mirror of a circle to begin finds its target among its origins, and does
//!   not begin. Where several begin at once, each hands its origins on with its next look at the source, so one stops
//!   after as many looks as the circle has mirrors.
//! - **Invariant (R2), nobody else stops:** a mirror is refused only if a key of its target would come back there. The one
//!   thing that it does not know is which keys patterns leave out.

use serde::{Deserialize, Serialize};

use super::checkpoint::{Claims, hex};
use super::keyspace::Mapping;
use crate::etcd::ClusterId;

/// Mirrors one behind the other.
const MOST_HOPS: usize = 16;
/// Origins of a mirror. `claims` is one key of etcd; of more the farthest are left out.
const MOST_ORIGINS: usize = 1024;

/// Where keys of a target come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The mirrors on their way: the first one reads them where they come from, the last one writes them.
    pub path: Vec<Hop>,
    /// Keys below this prefix, where they come from,
    pub from: String,
    /// are keys below this one in the target.
    pub to: String,
}

/// A mirror on the way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hop {
    /// Its id.
    pub mirror: String,
    /// The cluster that it copies.
    #[serde(with = "hex")]
    pub source: ClusterId,
}

/// Where the keys come from that a mirror brings to its target, the nearest first. `upstream` are claims in its source.
pub fn origins(own: &Hop, mappings: &[Mapping], upstream: &Claims) -> Vec<Origin> {
    let near = |mapping: &Mapping| Origin {
        path: vec![own.clone()],
        from: mapping.source.clone(),
        to: mapping.target.clone(),
    };
    let before = upstream.values().flat_map(|claim| &claim.origins);
    let before = before.filter(|origin| origin.path.len() < MOST_HOPS);
    let far = before.flat_map(|origin| mappings.iter().filter_map(|mapping| carried(origin, mapping, own)));
    let mut all: Vec<Origin> = mappings.iter().map(near).chain(far).collect();
    all.sort_by(|one, other| (one.path.len(), one).cmp(&(other.path.len(), other)));
    all.dedup();
    all
}

/// As many of them as can be kept.
pub fn kept(mut origins: Vec<Origin>) -> Vec<Origin> {
    origins.truncate(MOST_ORIGINS);
    origins
}

/// Keys of the target that would come back to where they were there, or below.
pub fn circle(target: ClusterId, origins: Vec<Origin>) -> Option<Origin> {
    let returns = |origin: &Origin| {
        origin.path.first().is_some_and(|hop| hop.source == target)
            && (origin.from.starts_with(&origin.to) || origin.to.starts_with(&origin.from))
    };
    origins.into_iter().find(returns)
}

/// The same keys one mirror further; `None`: it does not copy them.
fn carried(origin: &Origin, mapping: &Mapping, by: &Hop) -> Option<Origin> {
    let (from, to) = match (origin.to.strip_prefix(&mapping.source), mapping.source.strip_prefix(&origin.to))
    {
        (Some(rest), _) => (origin.from.clone(), format!("{}{rest}", mapping.target)),
        (None, Some(rest)) => (format!("{}{rest}", origin.from), mapping.target.clone()),
        (None, None) => return None,
    };
    let path = origin.path.iter().chain([by]).cloned().collect();
    Some(Origin { path, from, to })
}

impl std::fmt::Display for Origin {
    /// Such as `"one" from a into b and "two" from b into c`.
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, hop) in self.path.iter().enumerate() {
            let between = match index {
                0 => "",
                _ if index + 1 == self.path.len() => " and ",
                _ => ", ",
            };
            // In a circle the last one leads to where the first one began.
            let next = self.path.get(index + 1).or(self.path.first());
            let into = next.map_or(hop.source, |next| next.source);
            write!(to, "{between}{:?} from {} into {into}", hop.mirror, hop.source)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::mirror::checkpoint::Claim;

    /// A mirror such as `a>b /x/=/y/ /z/`; its id is where it goes.
    struct Made {
        id: String,
        source: ClusterId,
        target: ClusterId,
        mappings: Vec<Mapping>,
    }

    fn cluster(name: &str) -> ClusterId {
        ClusterId(name.bytes().next().unwrap().into())
    }

    fn made(text: &str) -> Made {
        let mut words = text.split(' ');
        let id = words.next().unwrap();
        let (source, target) = id.split_once('>').unwrap();
        let mapping = |word: &str| {
            let (source, target) = word.split_once('=').unwrap_or((word, word));
            Mapping { source: source.to_owned(), target: target.to_owned() }
        };
        Made {
            id: id.to_owned(),
            source: cluster(source),
            target: cluster(target),
            mappings: words.map(mapping).collect(),
        }
    }

    /// Mirrors that begin one after the other, each when those before have nothing new to say; those that stop.
    fn stopped(mirrors: &[&str]) -> Vec<String> {
        let mut world = World::default();
        for text in mirrors {
            world.runs.push(made(text));
            world.settle();
        }
        world.stopped
    }

    #[derive(Default)]
    struct World {
        claims: BTreeMap<ClusterId, Claims>,
        runs: Vec<Made>,
        stopped: Vec<String>,
    }

    impl World {
        /// All look at their sources, in turns, until nothing is new.
        fn settle(&mut self) {
            for _ in 0..20 {
                let before = self.claims.clone();
                for index in 0..self.runs.len() {
                    self.look(index);
                }
                if self.claims == before {
                    return;
                }
            }
            panic!("origins change for ever: {:?}", self.claims);
        }

        fn look(&mut self, index: usize) {
            let Made { id, source, target, mappings } = &self.runs[index];
            let hop = Hop { mirror: id.clone(), source: *source };
            let origins = origins(&hop, mappings, self.claims.entry(*source).or_default());
            if self.stopped.contains(id) {
            } else if circle(*target, origins.clone()).is_some() {
                self.stopped.push(id.clone());
            } else {
                let claim = Claim { prefixes: Vec::new(), source: *source, origins };
                self.claims.entry(*target).or_default().insert(id.clone(), claim);
            }
        }
    }

    #[test]
    fn the_last_mirror_of_a_circle_is_refused_and_no_other() {
        assert_eq!(stopped(&["a>b /k/", "b>a /k/"]), ["b>a"]);
        assert_eq!(stopped(&["a>b /k/", "b>c /k/", "c>a /k/"]), ["c>a"]);
        assert_eq!(stopped(&["c>a /k/", "b>c /k/", "a>b /k/"]), ["a>b"]);
        assert_eq!(stopped(&["a>b /k/", "c>d /k/", "b>c /", "d>a /k/x"]), ["d>a"]);
    }

    #[test]
    fn of_mirrors_that_begin_at_once_one_at_least_stops() {
        for mirrors in [["a>b /k/", "b>c /k/", "c>a /k/"], ["c>a /k/", "b>c /k/", "a>b /k/"]] {
            let mut world = World { runs: mirrors.map(made).into(), ..World::default() };
            world.settle();
            assert!((1..3).contains(&world.stopped.len()), "{:?}", world.stopped);
        }
    }

    #[test]
    fn chains_trees_and_ranges_apart_are_no_circles() {
        for mirrors in [
            &["a>b /k/", "b>c /k/", "c>d /k/"][..],
            &["a>b /k/", "b>a /l/"],
            &["a>b /x/", "b>c /y/", "c>a /z/"],
            // Only /x/ comes from a, and it is not what goes back.
            &["a>b /x/", "b>c /", "c>a /y/"],
            &["a>c /x/", "b>c /y/", "c>d /"],
        ] {
            assert!(stopped(mirrors).is_empty(), "{mirrors:?}");
        }
    }

    #[test]
    fn names_that_change_on_the_way_are_followed() {
        assert_eq!(stopped(&["a>b /a/=/b/", "b>a /b/=/a/"]), ["b>a"]);
        // /a/k comes back as /b/k, which goes no further.
        assert!(stopped(&["a>b /", "b>a /a/=/b/"]).is_empty());
        assert_eq!(stopped(&["a>b /", "b>a /a/=/a/b/"]), ["b>a"], "deeper and deeper");
        assert_eq!(stopped(&["a>b /", "b>a /a/b/=/a/"]), ["b>a"]);
        // Exchanged once, and back the second time.
        assert_eq!(stopped(&["a>b /", "b>a /a/=/b/ /b/=/a/"]), ["b>a"]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let hop = Hop { mirror: "m".to_owned(), source: ClusterId(1) };
        let origin = |hops| Origin { path: vec![hop.clone(); hops], from: String::new(), to: String::new() };
        let claim = Claim { prefixes: Vec::new(), source: ClusterId(1), origins: vec![origin(MOST_HOPS)] };
        let upstream = Claims::from([("far".to_owned(), claim)]);
        let mapping = |number: usize| {
            let prefix = format!("/{number:05}/");
            Mapping { source: prefix.clone(), target: prefix }
        };
        let mappings: Vec<Mapping> = (0..2 * MOST_ORIGINS).map(mapping).collect();
        let all = origins(&hop, &mappings, &upstream);
        assert!(all.iter().all(|origin| origin.path.len() == 1), "a way too long went on");
        assert_eq!(kept(all).len(), MOST_ORIGINS);
    }

    #[test]
    fn a_circle_is_told_by_its_mirrors_and_clusters() {
        let hop = |mirror: &str, source| Hop { mirror: mirror.to_owned(), source: ClusterId(source) };
        let path = vec![hop("one", 0xa), hop("two", 0xb), hop("three", 0xc)];
        let origin = Origin { path, from: String::new(), to: String::new() };
        assert_eq!(
            origin.to_string(),
            r#""one" from a into b, "two" from b into c and "three" from c into a"#
        );
    }
}
