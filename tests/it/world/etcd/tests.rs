//! What real etcd cannot be asked quickly.

use quorate::etcd::version::Minor;

use super::{Disk, Error, Etcd, Millis, Start};

const BEGIN: Millis = 1_800_000_000_000;

fn start(name: &str, initial: &[&str], new: bool) -> Start {
    let pair = |name: &&str| ((*name).to_owned(), format!("http://{name}:2380"));
    Start {
        name: name.to_owned(),
        peer_url: format!("http://{name}:2380"),
        initial_cluster: initial.iter().map(pair).collect(),
        new,
        token: "token".to_owned(),
        max_learners: 2,
        minor: Minor::V3_6,
    }
}

fn founded(names: &[&str]) -> (Etcd, Millis) {
    let mut etcd = Etcd::default();
    for name in names {
        etcd.start(BEGIN, (*name).to_owned(), &start(name, names, true), Disk::default()).unwrap();
    }
    etcd.advance(BEGIN + 10_000);
    (etcd, BEGIN + 10_000)
}

#[test]
fn three_founders_elect_one_leader_and_serve() {
    let (mut etcd, _) = founded(&["a", "b", "c"]);
    let leaders: Vec<_> = ["a", "b", "c"].map(|name| etcd.status(name).unwrap().leader).to_vec();
    assert!(leaders[0].is_some() && leaders.iter().all(|leader| *leader == leaders[0]), "{leaders:?}");
    for (key, name) in (0..).zip(["a", "b", "c"]) {
        assert_eq!(etcd.put(name, key), Ok(key + 2));
    }
    assert_eq!(etcd.keys("b").len(), 3);
    assert_eq!(etcd.running().collect::<Vec<_>>(), ["a", "b", "c"]);
}

#[test]
fn a_learner_joins_catches_up_and_is_promoted() {
    let (mut etcd, now) = founded(&["a", "b", "c"]);
    for key in 0..500 {
        etcd.put("a", key).unwrap();
    }
    let (id, list) = etcd.add_learner("a", "http://d:2380").unwrap();
    assert_eq!(list.len(), 4);
    assert_eq!(etcd.promote("a", id), Err(Error::LearnerNotReady));
    etcd.start(now, "d".to_owned(), &start("d", &["a", "b", "c", "d"], false), Disk::default()).unwrap();
    etcd.advance(now + 300);
    assert_eq!(etcd.promote("b", id), Err(Error::LearnerNotReady));
    etcd.advance(now + 3000);
    assert_eq!(etcd.read("d"), Err(Error::NotForLearner));
    etcd.promote("b", id).unwrap();
    etcd.advance(now + 4000);
    assert_eq!(etcd.read("d"), Ok(501));
    etcd.advance(now + 10_000);
    let list = etcd.remove("d", etcd.status("a").unwrap().member).unwrap();
    assert_eq!(list.len(), 3);
}

/// Puts until one is not acknowledged; the keys that were.
fn acknowledged(etcd: &mut Etcd, process: &str, keys: std::ops::Range<u64>) -> Vec<u64> {
    keys.filter(|key| etcd.put(process, *key).is_ok()).collect()
}

fn leader<'a>(etcd: &Etcd, names: &[&'a str]) -> &'a str {
    let leads = |name: &&&str| etcd.status(name).is_ok_and(|status| status.leader == Some(status.member));
    names.iter().find(leads).unwrap()
}

fn lead(etcd: &mut Etcd, names: &[&str], name: &str) {
    let target = etcd.status(name).unwrap().member;
    etcd.move_leader(leader(etcd, names), target).unwrap();
}

#[test]
fn an_acknowledged_write_outlives_any_one_member() {
    let names = ["a", "b", "c"];
    for lost in names {
        let (mut etcd, now) = founded(&names);
        let keys = acknowledged(&mut etcd, "a", 0..20);
        assert_eq!(keys.len(), 20);
        etcd.stop(lost).unwrap();
        etcd.advance(now + 5000);
        let rest: Vec<&str> = names.into_iter().filter(|name| *name != lost).collect();
        for name in &rest {
            assert_eq!(etcd.read(name), Ok(21), "{name} without {lost}");
            assert!(keys.iter().all(|key| etcd.keys(name).contains(key)));
        }
        etcd.stop(rest[0]).unwrap();
        etcd.advance(now + 10_000);
        assert_eq!(etcd.put(rest[1], 99), Err(Error::Timeout), "no majority");
    }
}

#[test]
fn one_rolled_back_and_one_lagging_member_lose_acknowledged_writes() {
    let names = ["a", "b", "c"];
    let (mut etcd, now) = founded(&names);
    lead(&mut etcd, &names, "c");
    let old = etcd.disk("a").unwrap();
    etcd.stop("b")
        .map(|disk| etcd.start(now, "b2".to_owned(), &start("b", &names, true), disk))
        .unwrap()
        .unwrap();
    let lagging = etcd.stop("b2").unwrap();
    let keys = acknowledged(&mut etcd, "c", 0..200);
    assert_eq!((keys.len(), etcd.keys("a").len()), (200, 200));
    etcd.stop("a").unwrap();
    let third = etcd.stop("c").unwrap();
    etcd.start(now, "a2".to_owned(), &start("a", &names, true), old).unwrap();
    etcd.start(now, "b3".to_owned(), &start("b", &names, true), lagging).unwrap();
    etcd.advance(now + 10_000);
    assert!(etcd.put("a2", 1000).is_ok(), "they serve as if nothing had happened");
    assert!(keys.iter().all(|key| !etcd.keys("a2").contains(key)), "all 200 are gone");
    etcd.start(now + 10_000, "c2".to_owned(), &start("c", &names, true), third).unwrap();
    etcd.advance(now + 20_000);
    assert!(!etcd.keys("a2").contains(&0), "and stay so when the third returns");
}

#[test]
fn an_empty_voter_that_votes_loses_acknowledged_writes() {
    let names = ["a", "b", "c"];
    let (mut etcd, now) = founded(&names);
    lead(&mut etcd, &names, "a");
    let lagging = etcd.stop("c").unwrap();
    let keys = acknowledged(&mut etcd, "a", 0..20);
    assert_eq!(keys.len(), 20);
    etcd.pause("a");
    etcd.stop("b").unwrap();
    etcd.start(now, "c2".to_owned(), &start("c", &names, true), lagging).unwrap();
    // Empty, it takes the ID that it had; its vote and log are forgotten.
    etcd.start(now, "b2".to_owned(), &start("b", &names, false), Disk::default()).unwrap();
    etcd.advance(now + 10_000);
    assert_eq!(leader(&etcd, &["c2", "b2"]), "c2");
    assert!(etcd.put("c2", 1000).is_ok());
    assert!(keys.iter().all(|key| !etcd.keys("c2").contains(key)));
}

#[test]
fn a_vote_is_given_once_a_term_and_kept_on_disk() {
    let names = ["a", "b", "c"];
    let (mut etcd, now) = founded(&names);
    let first = leader(&etcd, &names);
    let other = names.into_iter().find(|name| *name != first).unwrap();
    let vote = |etcd: &Etcd, name: &str| {
        let data = etcd.disk(name).unwrap().data.unwrap();
        (data.term, data.vote)
    };
    let (term, given) = vote(&etcd, other);
    assert_eq!(given, Some(etcd.status(first).unwrap().member));
    let disk = etcd.stop(other).unwrap();
    etcd.start(now, "again".to_owned(), &start(other, &names, true), disk).unwrap();
    assert_eq!(vote(&etcd, "again"), (term, given));
}

#[test]
fn a_leader_without_its_majority_steps_down_and_its_last_entries_are_replaced() {
    let names = ["a", "b", "c"];
    let (mut etcd, now) = founded(&names);
    lead(&mut etcd, &names, "a");
    for other in ["b", "c"] {
        etcd.cut("a", other);
        etcd.cut(other, "a");
    }
    assert_eq!(etcd.put("a", 1), Err(Error::Timeout));
    assert_eq!(etcd.read("a"), Err(Error::Timeout));
    etcd.advance(now + 4000);
    assert_eq!(etcd.status("a").unwrap().leader, None);
    assert!(etcd.put("b", 2).is_ok());
    for other in ["b", "c"] {
        etcd.heal("a", other);
        etcd.heal(other, "a");
    }
    etcd.advance(now + 8000);
    assert_eq!(etcd.keys("a").into_iter().collect::<Vec<_>>(), [2]);
    assert!(etcd.read("a").is_ok());
}

#[test]
fn a_cut_one_way_is_enough() {
    let names = ["a", "b", "c"];
    let (mut etcd, now) = founded(&names);
    lead(&mut etcd, &names, "a");
    etcd.cut("b", "a");
    etcd.cut("c", "a");
    etcd.advance(now + 10_000);
    assert_ne!(leader(&etcd, &names), "a", "a hears no answers");
    assert!(etcd.put("b", 1).is_ok());
}

#[test]
fn an_entry_of_unknown_outcome_may_be_committed_later() {
    let names = ["a", "b", "c"];
    let (mut etcd, now) = founded(&names);
    lead(&mut etcd, &names, "a");
    let (b, c) = (etcd.stop("b").unwrap(), etcd.stop("c").unwrap());
    assert_eq!(etcd.put("a", 1), Err(Error::Timeout));
    etcd.start(now, "b2".to_owned(), &start("b", &names, true), b).unwrap();
    etcd.start(now, "c2".to_owned(), &start("c", &names, true), c).unwrap();
    etcd.advance(now + 5000);
    assert!(etcd.keys("b2").contains(&1));
}

#[test]
fn who_lags_behind_the_log_gets_a_snapshot() {
    let (mut etcd, now) = founded(&["a"]);
    etcd.kept_entries = 20;
    let keys = acknowledged(&mut etcd, "a", 0..200);
    etcd.advance(now + 1000);
    let (id, _) = etcd.add_learner("a", "http://b:2380").unwrap();
    etcd.start(now + 1000, "b".to_owned(), &start("b", &["a", "b"], false), Disk::default()).unwrap();
    etcd.advance(now + 2000);
    assert_eq!(etcd.keys("b").len(), keys.len());
    etcd.promote("a", id).unwrap();
    assert!(etcd.put("b", 1000).is_ok());
}

#[test]
fn the_same_calls_give_the_same_world() {
    let run = || {
        let (mut etcd, mut now) = founded(&["a", "b", "c"]);
        for round in 0..50 {
            now += 1000;
            etcd.advance(now);
            drop(etcd.member_list("a", true));
            assert!(etcd.put("b", round).is_ok());
        }
        ["a", "b", "c"].map(|name| etcd.disk(name).unwrap())
    };
    assert_eq!(run(), run());
}
