//! What must hold after every transaction of a mirror: I1 to I7 of `src/mirror/mod.rs`.

use std::collections::BTreeMap;

use quorate::mirror::checkpoint::{Checkpoint, Position};
use quorate::mirror::config::{Config, Leases, MirrorId};
use quorate::mirror::keyspace::{Fate, Keyspace, OWN_KEYS};
use quorate::mirror::resync::Owned;

use super::etcd::{Etcd, parking};
use super::pair::Pair;

/// Keys by their names in the source.
type State = BTreeMap<Vec<u8>, (Vec<u8>, i64)>;

/// Judges what the last transaction made of `before`.
pub(super) fn transaction(pair: &mut Pair, before: &Etcd) -> Result<(), String> {
    let id = MirrorId::new("default").unwrap();
    let key = id.key("checkpoint");
    let at = usize::try_from(pair.target.revision).unwrap();
    let changed = pair.target.history[at].clone();
    let data: Vec<&[u8]> =
        changed.iter().map(|change| change.key.as_slice()).filter(|key| !key.starts_with(OWN_KEYS)).collect();
    let wrote = changed.iter().any(|change| change.key == key);
    if !data.is_empty() && !wrote {
        return Err(format!("I2 one step: {} keys without a checkpoint", data.len()));
    }
    if !wrote {
        return Ok(());
    }
    let parse = |etcd: &Etcd| etcd.stored(&key).map(|stored| Checkpoint::parse(&stored.value).unwrap());
    let (old, new) = (parse(before), parse(&pair.target).unwrap());
    if let Some(old) = &old {
        counter(old, &new)?;
        forward(old, &new)?;
    }
    pair.divided += u64::from(matches!(new.position, Position::Stream { offset: 1.., .. }));
    let keyspace = new.config.keyspace().unwrap();
    own_keys_only(pair, &keyspace, &data, old.as_ref())?;
    exact(pair, &keyspace, &new)
}

/// Each value follows the one before: nothing was done twice, nobody came between.
fn counter(old: &Checkpoint, new: &Checkpoint) -> Result<(), String> {
    if new.counter == old.counter + 1 {
        return Ok(());
    }
    Err(format!("I6 once: checkpoint {} after {}", new.counter, old.counter))
}

fn forward(old: &Checkpoint, new: &Checkpoint) -> Result<(), String> {
    // A person has permitted to begin anew from a source that was set back.
    if new.source.applied < old.source.applied {
        return Ok(());
    }
    match (&old.position, &new.position) {
        (Position::Stream { revision: old, .. }, Position::Stream { revision: new, .. }) if new < old => {
            Err(format!("I5 forward: revision {new} after {old}"))
        }
        _ => Ok(()),
    }
}

fn own_keys_only(
    pair: &mut Pair,
    keyspace: &Keyspace,
    data: &[&[u8]],
    old: Option<&Checkpoint>,
) -> Result<(), String> {
    for key in data {
        let shown = key.escape_ascii();
        let Fate::Mirrored(source) = keyspace.of_target(key) else {
            return Err(format!("I7 its own: {shown} is not mirrored"));
        };
        if !pair.foreign.contains(*key) {
            continue;
        }
        // Where the mirror had been before this transaction, somebody may have made it since.
        let passed = match old.map(|old| &old.position) {
            None => false,
            Some(Position::Stream { .. } | Position::Resync(_)) => true,
            Some(Position::First(scan)) => {
                scan.cursor.as_ref().is_some_and(|cursor| source < *cursor)
                    || Owned::new(scan).unwrap().has(key, 0)
            }
        };
        if !passed && !pair.policy.overwrite && !pair.policy.prune {
            return Err(format!("I7 its own: {shown} was there before and nobody gave leave"));
        }
        pair.foreign.remove(*key);
    }
    Ok(())
}

fn exact(pair: &Pair, keyspace: &Keyspace, new: &Checkpoint) -> Result<(), String> {
    let held = target(&pair.target, keyspace, pair);
    let sources = || pair.before.iter().chain([&pair.source]);
    // What went with a lease of the target is missed until it is written again: by the end it must be.
    let stays = |key: &[u8]| match keyspace.of_source(key) {
        Fate::Mirrored(target) => !pair.target.lapsed.contains(&target),
        Fate::Ignored | Fate::Own | Fate::Outside | Fate::Nameless => true,
    };
    let at = |etcd: &Etcd, revision| {
        let mut state = source(etcd, revision, keyspace, &new.config, pair);
        state.retain(|key, _| stays(key));
        state
    };
    match &new.position {
        Position::Stream { revision, offset: 0 } => {
            if sources().any(|etcd| at(etcd, *revision) == held) {
                return Ok(());
            }
            let want = at(&pair.source, *revision);
            Err(format!("I1 exact: at {revision} {}", difference(&want, &held)))
        }
        Position::Stream { revision, .. } => {
            let either = |etcd: &Etcd| {
                let (one, other) = (at(etcd, revision - 1), at(etcd, *revision));
                held.iter().all(|(key, value)| one.get(key) == Some(value) || other.get(key) == Some(value))
            };
            if sources().any(either) { Ok(()) } else { Err(format!("I4 whole: at {revision}, in part")) }
        }
        Position::First(scan) | Position::Resync(scan) => {
            let Some(cursor) = &scan.cursor else { return Ok(()) };
            let done = |state: &State| -> State {
                state.range(..cursor.clone()).map(|(key, value)| (key.clone(), value.clone())).collect()
            };
            let held = done(&held);
            // A revision that had to be divided is done in part, and its checkpoint does not say so.
            let divided = pair.limits.level < 128;
            if divided || sources().any(|etcd| done(&at(etcd, scan.revision)) == held) {
                return Ok(());
            }
            let want = done(&at(&pair.source, scan.revision));
            Err(format!(
                "I1 exact: scan at {} before {}: {}",
                scan.revision,
                cursor.escape_ascii(),
                difference(&want, &held)
            ))
        }
    }
}

/// Whether a key of the target is as somebody else has made it.
fn beside(pair: &Pair, target: &[u8]) -> bool {
    pair.foreign.contains(target) || pair.meddled.contains(target)
}

/// Mirrored keys of the source at a revision.
fn source(etcd: &Etcd, revision: i64, keyspace: &Keyspace, config: &Config, pair: &Pair) -> State {
    let kept = etcd.state_at(revision).into_iter().filter(|(key, (_, lease))| {
        let Fate::Mirrored(target) = keyspace.of_source(key) else { return false };
        !beside(pair, &target) && (*lease == 0 || config.leases != Leases::Skip)
    });
    kept.map(|(key, (value, lease))| (key, (value, config.leases.of_copy(lease, parking())))).collect()
}

/// Mirrored keys of the target, by their names in the source.
fn target(etcd: &Etcd, keyspace: &Keyspace, pair: &Pair) -> State {
    let kept = etcd.keys.iter().filter(|(key, _)| !beside(pair, key));
    let named = kept.filter_map(|(key, value)| match keyspace.of_target(key) {
        Fate::Mirrored(source) => Some((source, (value.bytes.clone(), value.lease))),
        Fate::Ignored | Fate::Own | Fate::Outside | Fate::Nameless => None,
    });
    named.collect()
}

fn difference(want: &State, held: &State) -> String {
    let keys = want.keys().chain(held.keys());
    let differing = keys.filter(|key| want.get(*key) != held.get(*key));
    let shown = differing.take(4).map(|key| {
        let value = |state: &State| {
            state
                .get(key)
                .map_or("-".to_owned(), |(value, lease)| format!("{}*{lease}", value.escape_ascii()))
        };
        format!("{} should be {} and is {}", key.escape_ascii(), value(want), value(held))
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn checkpoint(pair: &Pair) -> Option<Checkpoint> {
    let stored = pair.target.stored(&MirrorId::new("default").unwrap().key("checkpoint"));
    stored.map(|stored| Checkpoint::parse(&stored.value).unwrap())
}

/// Whether no mirror has come to this key of the target yet, and it is not there.
pub(super) fn untouched(pair: &Pair, key: &[u8]) -> bool {
    let position = checkpoint(pair).map(|checkpoint| checkpoint.position);
    let keyspace = pair.config.keyspace().unwrap();
    let Fate::Mirrored(source) = keyspace.of_target(key) else { return false };
    let before = match position {
        None => true,
        Some(Position::First(scan)) => {
            scan.cursor.is_none_or(|cursor| source >= cursor) && scan.owned.is_empty()
        }
        Some(Position::Resync(_) | Position::Stream { .. }) => false,
    };
    before && !pair.target.keys.contains_key(key)
}

/// The source's applied index as the checkpoint has it.
pub(super) fn applied(pair: &Pair) -> Option<u64> {
    checkpoint(pair).map(|checkpoint| checkpoint.source.applied)
}

/// Whether the first sync is over.
pub(super) fn streams(pair: &Pair) -> bool {
    checkpoint(pair).is_some_and(|checkpoint| matches!(checkpoint.position, Position::Stream { .. }))
}

/// Whether it is over under the configuration of today.
pub(super) fn follows(pair: &Pair) -> bool {
    streams(pair) && checkpoint(pair).is_some_and(|checkpoint| checkpoint.config == pair.config)
}

/// In the end both sides must be alike, whoever has meddled.
pub(super) fn end(pair: &mut Pair) -> Result<(), String> {
    let meddled = std::mem::take(&mut pair.meddled);
    let alike = alike(pair);
    pair.meddled = meddled;
    alike
}

fn alike(pair: &Pair) -> Result<(), String> {
    let keyspace = pair.config.keyspace().unwrap();
    let want = source(&pair.source, pair.source.revision, &keyspace, &pair.config, pair);
    let held = target(&pair.target, &keyspace, pair);
    if want == held { Ok(()) } else { Err(format!("end: {}", difference(&want, &held))) }
}
