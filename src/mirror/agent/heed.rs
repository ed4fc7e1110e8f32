//! What is to be done by the sites' records in etcd and by the file. Pure: both were read before.
//!
//! **Invariant:** the records say which site is active, and the file only what is wished. What the records of a
//! switch do not explain is left alone.
//!
//! **Invariant:** only a change of the wish asks for a switch. A file that has named the same site since before the other one
//! became active is out of date, or another Kubernetes has switched: were it obeyed, two files that differ would switch to
//! and fro for ever. That a wish has changed is known by the term in which the file and the records agreed last, or
//! because somebody has begun to switch.

use super::config::AgentConfig;
use super::status::{Problem, ProblemReason, Switch};
use crate::mirror::checkpoint::{Site, SiteRole};

/// What a site's own keys say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The key `site`.
    pub site: Site,
    /// Whether there is a key `fence`: something may be taken from writers there.
    pub fenced: bool,
    /// Whether there is a key `switch`: somebody has begun to make this site active.
    pub begun: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Heeded {
    /// To copy as this says.
    Follow(Box<AgentConfig>),
    /// To copy as before, although the file wants another site active.
    NoFence(Box<AgentConfig>),
    /// To copy as before: the file wants another site active, and has done so since before this one became active.
    NotAsked(Box<AgentConfig>),
    /// To let the writers of the active site in: a switch was begun, and is not wanted any more.
    TakeBack {
        /// As it is copied from.
        old: Box<AgentConfig>,
        /// The site that stays the follower.
        to: String,
    },
    /// To switch from the site that is active to the other one.
    Switch {
        /// As it is copied from.
        old: Box<AgentConfig>,
        /// The site that becomes active.
        to: String,
    },
    /// To end a switch whose promotion was done.
    Reverse {
        /// As it was copied from.
        old: Box<AgentConfig>,
        /// The site that is active.
        to: String,
        /// Its term.
        term: u64,
    },
    /// To tell what a site has of its own that is back after a person promoted the other one, and to let it follow when
    /// a person has seen that.
    Return {
        /// As it was copied from.
        old: Box<AgentConfig>,
        /// The site that is active.
        to: String,
        /// Its term.
        term: u64,
    },
}

/// `records` are those of the sites, in the order of the file; absent: there is none, or it cannot be read. `agreed` is the
/// last term in which they and the file named the same site.
pub fn heeded(config: &AgentConfig, records: &[Option<Record>; 2], agreed: Option<u64>) -> Heeded {
    let ([first, second], [Some(here), Some(there)]) = (&config.sites, records) else {
        return Heeded::Follow(Box::new(config.clone()));
    };
    let by = |active: &str| Box::new(AgentConfig { active: active.to_owned(), ..config.clone() });
    let Some([(active, from), (other, to)]) = direction(config, records) else {
        return match (here.site.role, there.site.role) {
            (SiteRole::Active, SiteRole::Active) if here.site.term < there.site.term => {
                promoted(config, by(&first.name), &here.site, (&second.name, &there.site))
            }
            (SiteRole::Active, SiteRole::Active) if there.site.term < here.site.term => {
                promoted(config, by(&second.name), &there.site, (&first.name, &here.site))
            }
            (SiteRole::Active | SiteRole::Follower, SiteRole::Active | SiteRole::Follower) => {
                Heeded::Follow(Box::new(config.clone()))
            }
        };
    };
    let wants = config.active == *other;
    let asked = to.begun || agreed == Some(from.site.term);
    match &config.fence {
        Some(_) if wants && asked => Heeded::Switch { old: by(active), to: other.clone() },
        Some(_) | None if from.fenced || (to.begun && !wants) => {
            Heeded::TakeBack { old: by(active), to: other.clone() }
        }
        None if wants && asked => Heeded::NoFence(by(active)),
        Some(_) | None if wants => Heeded::NotAsked(by(active)),
        Some(_) | None => Heeded::Follow(by(active)),
    }
}

/// The site that is active and the one that follows it, with their records; `None`: the records do not say the same.
fn direction<'a>(
    config: &'a AgentConfig,
    records: &'a [Option<Record>; 2],
) -> Option<[(&'a String, &'a Record); 2]> {
    let ([first, second], [Some(here), Some(there)]) = (&config.sites, records) else { return None };
    let sides = [(&first.name, here), (&second.name, there)];
    match (here.site.role, there.site.role) {
        (SiteRole::Active, SiteRole::Follower) if here.site.term == there.site.term => Some(sides),
        (SiteRole::Follower, SiteRole::Active) if here.site.term == there.site.term => {
            let [first, second] = sides;
            Some([second, first])
        }
        (SiteRole::Active | SiteRole::Follower, SiteRole::Active | SiteRole::Follower) => None,
    }
}

/// The term in which the records name the site that the file names.
pub fn agreed_term(config: &AgentConfig, records: &[Option<Record>; 2]) -> Option<u64> {
    let [(active, record), _] = direction(config, records)?;
    (config.active == *active).then_some(record.site.term)
}

/// Both sites are active, `to` in the later term: a switch that was not ended, or a promotion by hand. The latter leaves
/// the word of the last switch as it was; what the old side has of its own since then is nobody's to overwrite unasked.
fn promoted(config: &AgentConfig, old: Box<AgentConfig>, before: &Site, (to, now): (&str, &Site)) -> Heeded {
    if now.handled_active == to && before.term + 1 == now.term {
        return Heeded::Reverse { old, to: to.to_owned(), term: now.term };
    }
    if config.active == to && config.fence.is_some() {
        return Heeded::Return { old, to: to.to_owned(), term: now.term };
    }
    Heeded::Follow(Box::new(config.clone()))
}

/// What a person must know while the records of one site are not known: nothing can be ended then. `switch` is what the
/// agent knows of the last one.
pub fn unknown(
    config: &AgentConfig,
    records: &[Option<Record>; 2],
    switch: Option<&Switch>,
) -> Option<Problem> {
    let [first, second] = &config.sites;
    let (active, other, record) = match records {
        [Some(record), None] => (&first.name, &second.name, record),
        [None, Some(record)] => (&second.name, &first.name, record),
        [Some(_), Some(_)] | [None, None] => return None,
    };
    if record.site.role != SiteRole::Active {
        return None;
    }
    if record.fenced {
        let why = format!(
            "a switch has taken their permissions, and nothing is known of {other}, which may have become active since"
        );
        return Some(kept_out(active, &why));
    }
    let promoted = switch.is_some_and(|switch| switch.is_promoted() && switch.to == *active);
    promoted.then(|| unfinished(active, other, "it does not answer"))
}

/// Writers of the active site are kept out.
pub(super) fn kept_out(active: &str, why: &str) -> Problem {
    let message = format!(
        "Writers of {active} are still kept out: {why}. It is tried again and again. Cure it; or grant by hand what \
         the key fence of {active} names, and delete it."
    );
    Problem { reason: ProblemReason::WritersKeptOut, message }
}

/// A switch whose new side is active has not ended.
pub(super) fn unfinished(active: &str, old: &str, why: &str) -> Problem {
    let message = format!(
        "{active} is active, and {old} does not follow it yet: {why}. What is written to {active} is nowhere else until \
         then. It is tried again and again. Cure it."
    );
    Problem { reason: ProblemReason::SwitchUnfinished, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::agent::config::Fence;
    use crate::mirror::agent::status::{SwitchResult, SwitchStep};

    fn config(active: &str, fence: Option<Fence>) -> AgentConfig {
        let text = r#"{"fingerprint": "f", "id": "default", "active": "", "sites": [
            {"name": "a", "endpoints": ["http://a:1"]}, {"name": "b", "endpoints": ["http://b:1"]}]}"#;
        let config: AgentConfig = serde_json::from_str(text).unwrap();
        AgentConfig { active: active.to_owned(), fence, ..config }
    }

    fn record(role: SiteRole, term: u64, handled: &str) -> Record {
        let site = Site { term, role, peer: String::new(), handled_active: handled.to_owned() };
        Record { site, fenced: false, begun: false }
    }

    const MANUAL: Option<Fence> = Some(Fence::Manual);

    #[test]
    fn the_records_say_what_is_copied_and_the_file_what_is_wished() {
        let old = || Box::new(config("a", MANUAL));
        let (active, follower) = (record(SiteRole::Active, 1, "a"), record(SiteRole::Follower, 1, "a"));
        let records = [Some(active.clone()), Some(follower)];
        assert_eq!(heeded(&config("a", MANUAL), &records, Some(1)), Heeded::Follow(old()));
        assert_eq!(
            heeded(&config("b", None), &records, Some(1)),
            Heeded::NoFence(Box::new(config("a", None)))
        );
        let switch = Heeded::Switch { old: old(), to: "b".to_owned() };
        assert_eq!(heeded(&config("b", MANUAL), &records, Some(1)), switch);
        // Whatever the file says by then: what was promoted by a switch is ended.
        let promoted = [Some(active), Some(record(SiteRole::Active, 2, "b"))];
        for wished in ["a", "b"] {
            let reverse = Heeded::Reverse { old: old(), to: "b".to_owned(), term: 2 };
            assert_eq!(heeded(&config(wished, MANUAL), &promoted, None), reverse);
        }
    }

    #[test]
    fn a_file_that_has_not_changed_since_the_sites_were_switched_asks_for_nothing() {
        let (active, follower) = (record(SiteRole::Active, 2, "b"), record(SiteRole::Follower, 2, "b"));
        let records = [Some(follower.clone()), Some(active.clone())];
        let as_before = |fence| Heeded::NotAsked(Box::new(config("b", fence)));
        for agreed in [None, Some(1)] {
            for fence in [None, MANUAL] {
                assert_eq!(heeded(&config("a", fence.clone()), &records, agreed), as_before(fence));
            }
        }
        let switch = Heeded::Switch { old: Box::new(config("b", MANUAL)), to: "a".to_owned() };
        assert_eq!(heeded(&config("a", MANUAL), &records, Some(2)), switch);
        // Begun by an agent that is no more, whose memory is lost.
        let begun = [Some(Record { begun: true, ..follower }), Some(active)];
        assert_eq!(heeded(&config("a", MANUAL), &begun, None), switch);
        let back = Heeded::TakeBack { old: Box::new(config("b", MANUAL)), to: "a".to_owned() };
        assert_eq!(heeded(&config("b", MANUAL), &begun, Some(2)), back);
    }

    #[test]
    fn a_term_is_agreed_on_where_both_records_and_the_file_say_the_same() {
        let of = |active: SiteRole, other: SiteRole, term| {
            let records = [Some(record(active, 2, "a")), Some(record(other, term, "a"))];
            ["a", "b"].map(|wished| agreed_term(&config(wished, None), &records))
        };
        assert_eq!(of(SiteRole::Active, SiteRole::Follower, 2), [Some(2), None]);
        assert_eq!(of(SiteRole::Active, SiteRole::Follower, 1), [None, None]);
        assert_eq!(of(SiteRole::Active, SiteRole::Active, 3), [None, None]);
        assert_eq!(agreed_term(&config("a", None), &[Some(record(SiteRole::Active, 2, "a")), None]), None);
    }

    #[test]
    fn what_was_taken_for_a_switch_that_nobody_wants_any_more_is_given_back() {
        let fenced = Record { fenced: true, ..record(SiteRole::Active, 3, "a") };
        let follower = record(SiteRole::Follower, 3, "a");
        let records = [Some(fenced.clone()), Some(follower.clone())];
        let back = |fence| Heeded::TakeBack { old: Box::new(config("a", fence)), to: "b".to_owned() };
        assert_eq!(heeded(&config("a", MANUAL), &records, Some(1)), back(MANUAL));
        assert_eq!(heeded(&config("b", None), &records, Some(1)), back(None));
        assert!(matches!(heeded(&config("b", MANUAL), &records, Some(3)), Heeded::Switch { .. }));
        assert_eq!(heeded(&config("b", MANUAL), &records, Some(2)), back(MANUAL));
        // The side that follows stays fenced.
        let follows = [Some(Record { fenced: false, ..fenced }), Some(Record { fenced: true, ..follower })];
        assert!(matches!(heeded(&config("a", MANUAL), &follows, None), Heeded::Follow(_)));
    }

    #[test]
    fn what_somebody_promoted_by_hand_is_not_turned_into_a_mirror_the_other_way() {
        for term in [2, 4] {
            let forced = [Some(record(SiteRole::Active, 1, "a")), Some(record(SiteRole::Active, term, "a"))];
            for (wished, fence) in [("a", MANUAL), ("b", None)] {
                let file = config(wished, fence);
                let follow = Heeded::Follow(Box::new(file.clone()));
                assert_eq!(heeded(&file, &forced, None), follow, "the engine refuses it");
            }
            let back = Heeded::Return { old: Box::new(config("a", MANUAL)), to: "b".to_owned(), term };
            assert_eq!(heeded(&config("b", MANUAL), &forced, None), back);
        }
    }

    #[test]
    fn without_records_the_file_counts() {
        for records in [[None, None], [Some(record(SiteRole::Active, 1, "a")), None]] {
            let file = config("b", MANUAL);
            assert_eq!(heeded(&file, &records, Some(1)), Heeded::Follow(Box::new(file.clone())));
        }
    }

    #[test]
    fn what_nobody_can_end_while_a_site_is_silent_is_told() {
        let known = |role, fenced| Some(Record { fenced, ..record(role, 2, "b") });
        let step = SwitchStep { name: "Reverse".to_owned(), ..SwitchStep::default() };
        let switch = Switch { to: "b".to_owned(), steps: vec![step], ..Switch::default() };
        let done = Switch { result: Some(SwitchResult::Done), ..switch.clone() };
        let other = Switch { to: "a".to_owned(), ..switch.clone() };
        let reason = |records: [Option<Record>; 2], switch| {
            unknown(&config("b", MANUAL), &records, switch).map(|problem| problem.reason)
        };
        let active = |fenced| [None, known(SiteRole::Active, fenced)];
        assert_eq!(reason(active(false), Some(&switch)), Some(ProblemReason::SwitchUnfinished));
        assert_eq!(reason(active(true), Some(&switch)), Some(ProblemReason::WritersKeptOut));
        assert_eq!(reason([known(SiteRole::Active, true), None], None), Some(ProblemReason::WritersKeptOut));
        for switch in [None, Some(&done), Some(&other)] {
            assert_eq!(reason(active(false), switch), None, "a follower that is silent, and nothing else");
        }
        assert_eq!(reason([None, known(SiteRole::Follower, true)], Some(&switch)), None);
        assert_eq!(reason([None, None], Some(&switch)), None);
    }
}
