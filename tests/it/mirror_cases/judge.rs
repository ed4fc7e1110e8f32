//! Holds what happened in the target against what happened in the source: invariants I1, I2, I5 and I7, at every revision
//! of the target.

use std::collections::{BTreeMap, BTreeSet};

use quorate::mirror::checkpoint::{Checkpoint, Position};
use quorate_pair::Change;

/// Keys of one side under the target's names.
type Keys = BTreeMap<Vec<u8>, Vec<u8>>;

/// What was judged, so that a test can see that there was something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Checkpoints at which both sides were compared.
    pub(super) exact: usize,
    /// Changes of mirrored keys in the target.
    pub(super) changes: usize,
    /// Checkpoints of scans.
    pub(super) scans: usize,
}

/// Judges recordings of a source and a target that had nothing in the mirrored part when they began. `name` gives the
/// target's name of a source key that is mirrored, `ours` says whether a target key may be the mirror's.
pub(super) fn judge(
    source: &[Change],
    target: &[Change],
    name: impl Fn(&[u8]) -> Option<Vec<u8>>,
    ours: impl Fn(&[u8]) -> bool,
) -> Verdict {
    let mut judge = Judge::default();
    let mut source = source.iter().peekable();
    for revision in target.chunk_by(|one, other| one.revision == other.revision) {
        let at = revision[0].revision;
        let (own, data): (Vec<_>, Vec<_>) =
            revision.iter().partition(|change| change.key.starts_with(b"/__quorate/"));
        let checkpoint = own.iter().find(|change| change.key.ends_with(b"/checkpoint"));
        let Some(checkpoint) = checkpoint.and_then(|change| change.value.as_ref()) else {
            assert!(data.is_empty(), "I2: revision {at} of the target has data and no checkpoint: {data:?}");
            continue;
        };
        for change in data {
            assert!(ours(&change.key), "I7: revision {at} of the target changes {:?}", shown(&change.key));
            judge.verdict.changes += 1;
            judge.target(&change.key, change.value.clone());
        }
        let checkpoint = Checkpoint::parse(checkpoint).unwrap();
        let Position::Stream { revision, offset } = checkpoint.position else {
            judge.verdict.scans += 1;
            continue;
        };
        assert!(revision >= judge.reached, "I5: {revision} after {} at {at} of the target", judge.reached);
        judge.reached = revision;
        while let Some(change) = source.next_if(|change| change.revision <= revision) {
            if let Some(key) = name(&change.key) {
                judge.source(&key, change.value.clone());
            }
        }
        if offset == 0 {
            judge.compare(at, revision);
        }
    }
    judge.verdict
}

/// What concerns one mirror in the recording of a side that several mirrors use: keys of this prefix, and its own.
pub(super) fn only(changes: &[Change], id: &str, prefix: &str) -> Vec<Change> {
    let own = format!("/__quorate/mirror/{id}/");
    let concerns =
        |change: &&Change| [prefix, &own].iter().any(|front| change.key.starts_with(front.as_bytes()));
    changes.iter().filter(concerns).cloned().collect()
}

/// Changes that wrote what was there already. A delete of what was not there is none, to etcd.
pub(super) fn needless(changes: &[Change]) -> usize {
    let mut held = Keys::new();
    let mut needless = 0;
    for change in changes.iter().filter(|change| !change.key.starts_with(b"/__quorate/")) {
        needless += usize::from(change.value.is_some() && held.get(&change.key) == change.value.as_ref());
        set(&mut held, &change.key, change.value.clone());
    }
    needless
}

#[derive(Default)]
struct Judge {
    source: Keys,
    target: Keys,
    /// Keys that are not alike.
    differing: BTreeSet<Vec<u8>>,
    reached: i64,
    verdict: Verdict,
}

impl Judge {
    fn source(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        set(&mut self.source, key, value);
        self.look(key);
    }

    fn target(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        set(&mut self.target, key, value);
        self.look(key);
    }

    fn look(&mut self, key: &[u8]) {
        if self.source.get(key) == self.target.get(key) {
            self.differing.remove(key);
        } else {
            self.differing.insert(key.to_vec());
        }
    }

    fn compare(&mut self, at: i64, revision: i64) {
        let differing: Vec<_> = self.differing.iter().take(5).map(|key| shown(key)).collect();
        let number = self.differing.len();
        assert!(
            differing.is_empty(),
            "I1: at revision {at} of the target, which says that it is revision {revision} of the source, {number} \
             keys differ, such as {differing:?}"
        );
        self.verdict.exact += 1;
    }
}

fn set(keys: &mut Keys, key: &[u8], value: Option<Vec<u8>>) {
    match value {
        Some(value) => drop(keys.insert(key.to_vec(), value)),
        None => drop(keys.remove(key)),
    }
}

fn shown(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

/// What the judge must not let pass.
mod planted {
    use std::panic::catch_unwind;

    use quorate::etcd::ClusterId;
    use quorate::mirror::checkpoint::Identity;
    use quorate::mirror::config::{Config, Policy};

    use super::*;

    fn change(revision: i64, key: &str, value: Option<&str>) -> Change {
        let value = value.map(|value| value.as_bytes().to_vec());
        Change { revision, key: key.as_bytes().to_vec(), value }
    }

    fn checkpoint(at: i64, revision: i64) -> Change {
        let source = Identity { cluster: ClusterId(1), term: 2, applied: 3 };
        let position = Position::Stream { revision, offset: 0 };
        let policy = Policy::default();
        let config = Config::whole();
        let checkpoint = Checkpoint { counter: 1, position, source, config, policy, looked: 0 };
        let key = b"/__quorate/mirror/default/checkpoint".to_vec();
        Change { revision: at, key, value: Some(checkpoint.text()) }
    }

    fn verdict(target: &[Change]) -> Result<Verdict, String> {
        let source = [change(2, "a", Some("1")), change(3, "b", Some("1")), change(4, "a", None)];
        let judged = catch_unwind(|| judge(&source, target, |key| Some(key.to_vec()), |key| key != b"own"));
        judged.map_err(|panic| {
            panic.downcast::<String>().map_or_else(|_| String::new(), |text| text[..2].to_owned())
        })
    }

    #[test]
    fn what_is_written_again_is_counted() {
        let put = |at, value| change(at, "/a/k", Some(value));
        let once = [put(5, "1"), put(6, "2"), put(7, "1"), change(8, "/a/k", None), put(9, "1")];
        assert_eq!(needless(&once), 0);
        assert_eq!(needless(&[&once[..], &[put(10, "1"), checkpoint(11, 3), checkpoint(12, 3)]].concat()), 1);
    }

    #[test]
    fn what_others_do_is_not_judged() {
        let changes =
            [change(5, "/a/k", None), change(5, "/ab", None), checkpoint(5, 3), change(6, "/b/k", None)];
        assert_eq!(only(&changes, "default", "/a/"), [changes[0].clone(), changes[2].clone()]);
        assert_eq!(only(&changes, "other", "/b/"), changes[3..]);
    }

    #[test]
    fn the_judge_finds_what_is_wrong() {
        let (a, b, gone) = (change(5, "a", Some("1")), change(6, "b", Some("1")), change(7, "a", None));
        let good = [a.clone(), checkpoint(5, 2), b.clone(), checkpoint(6, 3), gone.clone(), checkpoint(7, 4)];
        assert_eq!(verdict(&good), Ok(Verdict { exact: 3, changes: 3, scans: 0 }));
        let ahead = [a.clone(), checkpoint(5, 3)];
        let behind = [a.clone(), checkpoint(5, 2), b, checkpoint(6, 4)];
        let apart = [a.clone(), checkpoint(6, 2)];
        let back = [a.clone(), checkpoint(5, 2), checkpoint(8, 1)];
        let foreign = [a, change(5, "own", Some("1")), checkpoint(5, 2)];
        for (wrong, invariant) in
            [(&ahead[..], "I1"), (&behind, "I1"), (&apart, "I2"), (&back, "I5"), (&foreign, "I7")]
        {
            assert_eq!(verdict(wrong), Err(invariant.to_owned()));
        }
    }
}
