//! Runs an agent: reads its file again and again, and begins the engine anew whenever it says something else.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::config::{AgentConfig, Fence, RunState};
use super::order;
use super::status::{AgentStatus, Problem, ProblemReason, Switch, SwitchResult, SwitchStep, Verification};
use super::switch::{Pair, late, promote, reverse};
use super::tell::{self, Known};
use crate::mirror::checkpoint::{Site, SiteRole};
use crate::mirror::config::MirrorId;
use crate::mirror::connect::{Access, Connection};
use crate::mirror::machine::Mode;
use crate::mirror::resync::Counts;
use crate::mirror::run::{Board, Ended, Order, Report, run};
use crate::mirror::stop::Stop;
use crate::mirror::text::shown;
use crate::mirror::verify::{Verdict, verify};

/// How often the file is read again.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// How long a read of both sides' records may take.
const RECORDS_DEADLINE: Duration = Duration::from_secs(8);
/// After they spoke against the direction of the file.
const RECORDS_AGAIN: Duration = Duration::from_secs(5);
/// How long writers may have to stand still for the rest to be copied.
const DRAIN_LIMIT: Duration = Duration::from_mins(10);
/// Keys that are named.
const NAMED: usize = 10;
/// After a switch that could not be carried out.
const SWITCH_AGAIN: Duration = Duration::from_secs(30);
/// How often a comparison of a switch is tried again.
const COMPARISONS: u32 = 12;
/// After a comparison that could not be made, such as before the first sync has ended.
const COMPARE_AGAIN: Duration = Duration::from_secs(5);

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", file.display())]
pub struct InvalidFile {
    /// Which.
    pub file: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

/// Reads a file, and gives it a fingerprint if it has none.
pub fn read(file: &Path) -> Result<AgentConfig, InvalidFile> {
    let invalid = |problem: String| InvalidFile { file: file.to_owned(), problem };
    let text = std::fs::read_to_string(file).map_err(|error| invalid(error.to_string()))?;
    let config: AgentConfig = serde_saphyr::from_str(&text).map_err(|error| invalid(error.to_string()))?;
    Ok(if config.fingerprint.is_empty() { config.fingerprinted() } else { config })
}

/// An agent, as those see it who ask it.
#[derive(Clone)]
pub struct Agent {
    board: Board,
    state: Arc<Mutex<State>>,
}

struct State {
    config: AgentConfig,
    known: Known,
}

impl Agent {
    /// One that has done nothing yet.
    pub fn new(config: AgentConfig, board: Board) -> Self {
        Self { board, state: Arc::new(Mutex::new(State { config, known: Known::default() })) }
    }

    /// What `/status` says.
    pub fn status(&self) -> AgentStatus {
        let report = self.board.read().clone();
        let mut state = self.state();
        state.known.synced |= report.view.as_ref().is_some_and(|view| view.synced);
        tell::status(&state.config, &report, &state.known, Instant::now())
    }

    /// Mirrors by the file until `told` resolves, or another agent has taken over.
    pub async fn run(&self, file: &Path, told: impl Future<Output = ()>) -> Ended {
        let mut told = std::pin::pin!(told);
        let mut before = None;
        loop {
            let config = self.state().config.clone();
            tokio::select! {
                turned = self.follow(&config, before.as_ref()) => match turned {
                    Turned::Ended(ended) => return ended,
                    Turned::Again => *self.board.read() = Report::default(),
                },
                next = changed(file, &config) => {
                    tracing::info!(fingerprint = next.fingerprint, "the file has changed; it goes on by the new one");
                    self.take(next);
                }
                () = self.mismatched(&config) => *self.board.read() = Report::default(),
                () = &mut told => return Ended::Told,
            }
            before = Some(config);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, config: AgentConfig) {
        *self.board.read() = Report::default();
        let mut state = self.state();
        (state.known.problem, state.known.notice, state.known.recorded) = (None, None, None);
        if std::mem::take(&mut state.known.switching)
            && let Some(switch) = &mut state.known.switch
        {
            // Unless the promotion was done: then the records say so, and it is ended.
            (switch.finished_at, switch.result) = (Some(Timestamp::now()), Some(SwitchResult::Aborted));
        }
        state.config = config;
    }

    /// What etcd's records say of the sites counts: a word in a file alone exchanges no source and target.
    async fn heed_records(&self, config: &AgentConfig) -> Heeded {
        let heeded = heeded(config, &records(config).await);
        let mut state = self.state();
        match &heeded {
            Heeded::Follow(_) => (state.known.recorded, state.known.notice) = (None, None),
            Heeded::NoFence(old) => {
                state.known.recorded = Some(old.active.clone());
                state.known.notice = Some(Problem {
                    reason: ProblemReason::FenceMissing,
                    message: format!(
                        "etcd's own records say that {} is active, and the file says {}. Nothing says how writers are \
                         kept out of {} while the sites are switched, so it is copied from as before. Set fence, or write \
                         active: {}.",
                        old.active, config.active, old.active, old.active
                    ),
                });
            }
            Heeded::Switch { old, .. } | Heeded::Reverse { old, .. } => {
                state.known.recorded = Some(old.active.clone());
            }
        }
        heeded
    }

    /// Resolves when the engine has stopped since the sites' records speak against it, and they say what to do instead.
    async fn mismatched(&self, config: &AgentConfig) {
        let mut clock = tokio::time::interval(RECORDS_AGAIN);
        loop {
            clock.tick().await;
            let stopped = matches!(self.board.read().stopped, Some(Stop::Site(_) | Stop::Promoted));
            if stopped && heeded(config, &records(config).await) != Heeded::Follow(Box::new(config.clone())) {
                return;
            }
        }
    }

    /// By one file; does not end while it cannot or must not copy.
    async fn follow(&self, config: &AgentConfig, before: Option<&AgentConfig>) -> Turned {
        if let Err(problem) = order::order(config, false) {
            tracing::error!(reason = %problem.reason, "{}", problem.message);
            self.state().known.problem = Some(problem);
            return std::future::pending().await;
        }
        if config.state == RunState::Paused {
            tracing::info!("paused: nothing is copied");
            return std::future::pending().await;
        }
        match self.heed_records(config).await {
            Heeded::Follow(config) | Heeded::NoFence(config) => self.copy(&config, before).await,
            Heeded::Switch { old, to } => self.switch(&old, &to, before).await,
            Heeded::Reverse { old, to, term } => self.end_switch(&old, &to, term).await,
        }
    }

    /// Copies, and compares both sides now and then.
    async fn copy(&self, config: &AgentConfig, before: Option<&AgentConfig>) -> Turned {
        let is_new = |of: fn(&AgentConfig) -> &Option<String>| {
            of(config).is_some() && before.is_none_or(|before| of(before) != of(config))
        };
        // It was found good before.
        let Ok(order) = order::order(config, is_new(|config| &config.requests.resync)) else {
            return std::future::pending().await;
        };
        let every = config.verify.map(|verify| Duration::from_secs(verify.every_seconds));
        let first = if is_new(|config| &config.requests.verify) { Some(Duration::ZERO) } else { every };
        let (source, target) = (order.source.clone(), order.target.clone());
        let compare = self.compare(&source, &target, order.settings.id.clone(), first, every);
        tokio::select! {
            ended = self.mirror(order) => Turned::Ended(ended),
            never = compare => match never {},
        }
    }

    /// Switches the sites over; if that fails, it says why, and copies on as before for a while.
    async fn switch(&self, old: &AgentConfig, to: &str, before: Option<&AgentConfig>) -> Turned {
        let Err(problem) = self.steps(old, to).await else { return Turned::Again };
        let again = Heeded::Switch { old: Box::new(old.clone()), to: to.to_owned() };
        let wanted = AgentConfig { active: to.to_owned(), ..old.clone() };
        if heeded(&wanted, &records(&wanted).await) != again {
            // It was promoted all the same, or somebody else has switched.
            tracing::warn!("a step of the switch failed, and the sites' records have changed: {problem}");
            return Turned::Again;
        }
        self.refuse(&old.active, to, &problem);
        tokio::select! {
            turned = self.copy(old, before) => turned,
            () = tokio::time::sleep(SWITCH_AGAIN) => Turned::Again,
        }
    }

    fn refuse(&self, from: &str, to: &str, why: &str) {
        tracing::error!("the sites were not switched: {why}");
        let seconds = SWITCH_AGAIN.as_secs();
        let mut state = self.state();
        state.known.switching = false;
        if let Some(switch) = &mut state.known.switch {
            // The next try is another switch: its steps are not added to these.
            let now = Timestamp::now();
            end_step(switch, now);
            (switch.finished_at, switch.result) = (Some(now), Some(SwitchResult::Aborted));
        }
        state.known.notice = Some(Problem {
            reason: ProblemReason::SwitchRefused,
            message: format!(
                "The sites are not switched from {from} to {to}: {why}. {from} is copied from as before, and it is tried \
                 again every {seconds} s. Cure it, or write active: {from}."
            ),
        });
    }

    /// Until the new side is active, and the old one follows it.
    async fn steps(&self, old: &AgentConfig, to: &str) -> Result<(), String> {
        let order = order::order(old, false).map_err(|problem| problem.message)?;
        let pair = pair(old, to)?;
        self.begin(&old.active, to);
        self.step("Verify");
        // Outside of the fence: what is wrong is found before anybody has to stop.
        tokio::select! {
            ended = self.mirror(order.clone()) => return Err(format!("the mirror ended: {ended:?}")),
            verdict = self.equal(&order) => drop(verdict?),
        }
        self.step("Fence");
        match &old.fence {
            // A person has said that the writers are stopped.
            Some(Fence::Manual) => {}
            Some(Fence::Roles { .. }) => return Err("roles are not taken from writers by this release: stop the writers, and set fence.mode: Manual".to_owned()),
            None => return Err("there is no fence".to_owned()),
        }
        self.step("Drain");
        let late =
            || format!("the target did not get what the source had within {} s", DRAIN_LIMIT.as_secs());
        tokio::time::timeout(DRAIN_LIMIT, self.drain(&order)).await.map_err(|_| late())??;
        self.step("Compare");
        let compared = self.equal(&order).await?;
        self.step("Promote");
        let term = promote(&pair, &compared, to).await.map_err(|error| error.to_string())?;
        self.state().known.recorded = Some(to.to_owned());
        self.step("Reverse");
        let lost = lost(&pair, &order, compared.revision, &old.active).await;
        reverse(&pair, term, to).await.map_err(|error| error.to_string())?;
        self.finish(lost);
        Ok(())
    }

    /// What is left of a switch whose new side is active.
    async fn end_switch(&self, old: &AgentConfig, to: &str, term: u64) -> Turned {
        let done = match pair(old, to) {
            Ok(pair) => {
                self.begin(&old.active, to);
                self.step("Reverse");
                reverse(&pair, term, to).await.map_err(|error| error.to_string())
            }
            Err(why) => Err(why),
        };
        match done {
            Ok(()) => self.finish(None),
            Err(why) => {
                tracing::error!("{to} is active, and {} does not follow it yet: {why}", old.active);
                tokio::time::sleep(RECORDS_AGAIN).await;
            }
        }
        Turned::Again
    }

    /// Until the target has what the source has now.
    async fn drain(&self, order: &Order) -> Result<(), String> {
        let mut order = order.clone();
        order.settings.mode = Mode::Once;
        match self.mirror(order).await {
            Ended::Stopped(Stop::Done) => Ok(()),
            Ended::Stopped(stop) => Err(stop.to_string()),
            Ended::Told => Err("it was told to end".to_owned()),
        }
    }

    /// Compares both sides; tries again for a while where that is not possible yet.
    async fn equal(&self, order: &Order) -> Result<Verdict, String> {
        let mut tries = 0;
        loop {
            match verify(&order.source, &order.target, &order.settings.id).await {
                Ok(verdict) => {
                    self.note(&verdict);
                    let Counts { missing, differing, extra, .. } = verdict.counts;
                    return if missing + differing + extra == 0 {
                        Ok(verdict)
                    } else {
                        Err(format!(
                            "the side that follows lacks {missing} keys, has {extra} of its own, and {differing} differ"
                        ))
                    };
                }
                Err(error) if tries == COMPARISONS => return Err(error.to_string()),
                Err(_) => tokio::time::sleep(COMPARE_AGAIN).await,
            }
            tries += 1;
        }
    }

    fn begin(&self, from: &str, to: &str) {
        let mut state = self.state();
        (state.known.switching, state.known.notice) = (true, None);
        let goes_on =
            state.known.switch.as_ref().is_some_and(|switch| switch.to == to && switch.result.is_none());
        if !goes_on {
            let switch = Switch { from: from.to_owned(), to: to.to_owned(), ..Switch::default() };
            state.known.switch = Some(switch);
        }
    }

    /// Ends the step that is under way, and begins another.
    fn step(&self, name: &str) {
        tracing::info!(step = name, "the sites are switched");
        let mut state = self.state();
        let Some(switch) = &mut state.known.switch else { return };
        let now = Timestamp::now();
        end_step(switch, now);
        switch.steps.push(SwitchStep { name: name.to_owned(), started_at: now, finished_at: None });
    }

    fn finish(&self, lost: Option<String>) {
        let mut state = self.state();
        state.known.switching = false;
        let Some(switch) = &mut state.known.switch else { return };
        let now = Timestamp::now();
        end_step(switch, now);
        (switch.finished_at, switch.result, switch.lost) = (Some(now), Some(SwitchResult::Done), lost);
    }

    fn note(&self, verdict: &Verdict) {
        let counts = verdict.counts;
        tracing::info!(?counts, revision = verdict.revision, "both sides were compared");
        self.state().known.verification = Some(Verification {
            time: Timestamp::now(),
            revision: verdict.revision,
            keys: counts.equal + counts.missing + counts.differing,
            missing: counts.missing,
            extra: counts.extra,
            different: counts.differing,
        });
    }

    async fn mirror(&self, order: Order) -> Ended {
        match run(order, self.board.clone(), std::future::pending()).await {
            Ok(ended) => ended,
            // It was found good when the order was made.
            Err(error) => {
                tracing::error!("{error}");
                std::future::pending().await
            }
        }
    }

    /// Compares both sides now and then. Copying ends with it, so it does not end when nobody wants it any more.
    async fn compare(
        &self,
        source: &Access,
        target: &Access,
        id: MirrorId,
        first: Option<Duration>,
        every: Option<Duration>,
    ) -> Infallible {
        let mut next = first;
        while let Some(wait) = next {
            tokio::time::sleep(wait).await;
            next = match verify(source, target, &id).await {
                Ok(verdict) => {
                    self.note(&verdict);
                    every
                }
                Err(error) => {
                    tracing::info!("both sides were not compared: {error}");
                    Some(COMPARE_AGAIN)
                }
            };
        }
        std::future::pending().await
    }
}

fn end_step(switch: &mut Switch, now: Timestamp) {
    if let Some(last) = switch.steps.last_mut() {
        last.finished_at.get_or_insert(now);
    }
}

/// Why an agent does not go on as it did.
enum Turned {
    /// It is over.
    Ended(Ended),
    /// The sites' records have changed, or may have.
    Again,
}

/// Writes of the old side that came after the last copy, in a sentence.
async fn lost(pair: &Pair, order: &Order, since: i64, old: &str) -> Option<String> {
    match late(pair, &order.settings.config, since).await {
        Ok(keys) if keys.is_empty() => None,
        Ok(keys) => {
            let named: Vec<String> = keys.iter().take(NAMED).map(|key| shown(key)).collect();
            Some(format!(
                "{} keys were written at {old} after the last copy, although its writers were said to be stopped: {}. They \
                 are made as they are at the new side",
                keys.len(),
                named.join(", ")
            ))
        }
        Err(error) => Some(format!("it is not known what was written at {old} after the last copy: {error}")),
    }
}

/// Both sides, as a switch needs them.
fn pair(old: &AgentConfig, to: &str) -> Result<Pair, String> {
    let renames = old
        .mappings
        .iter()
        .any(|prefixes| prefixes.values().any(|one| prefixes.values().any(|other| one != other)));
    if renames && !old.ignore.is_empty() && old.ignore_site.is_none() {
        return Err("the mappings rename keys, and nothing says by whose names the patterns of ignore are matched: set ignoreSite".to_owned());
    }
    let there = order::order(old, false).map_err(|problem| problem.message)?;
    let new = AgentConfig { active: to.to_owned(), ..old.clone() };
    let back = order::order(&new, false).map_err(|problem| problem.message)?;
    Ok(Pair { id: there.settings.id, old: there.source, new: there.target, back: back.settings.config })
}

/// What is to be done by the sites' records and the file.
#[derive(Clone, Debug, PartialEq)]
enum Heeded {
    /// To copy as this says.
    Follow(Box<AgentConfig>),
    /// To copy as before, although the file wants another site active.
    NoFence(Box<AgentConfig>),
    /// To switch from the site that is active to the other one.
    Switch { old: Box<AgentConfig>, to: String },
    /// To end a switch whose promotion was done.
    Reverse { old: Box<AgentConfig>, to: String, term: u64 },
}

/// Pure: `records` are those of the sites, in the order of the file.
fn heeded(config: &AgentConfig, records: &[Option<Site>; 2]) -> Heeded {
    let by = |active: &str| Box::new(AgentConfig { active: active.to_owned(), ..config.clone() });
    let follow = || Heeded::Follow(Box::new(config.clone()));
    let ([first, second], [Some(here), Some(there)]) = (&config.sites, records) else { return follow() };
    let (active, other) = match (here.role, there.role) {
        (SiteRole::Active, SiteRole::Follower) if here.term == there.term => (first, second),
        (SiteRole::Follower, SiteRole::Active) if here.term == there.term => (second, first),
        // A promotion by hand leaves the word of the last switch as it was: what the old side has of its own since then
        // is nobody's to overwrite.
        (SiteRole::Active, SiteRole::Active)
            if here.term + 1 == there.term && there.handled_active == second.name =>
        {
            return Heeded::Reverse { old: by(&first.name), to: second.name.clone(), term: there.term };
        }
        (SiteRole::Active, SiteRole::Active)
            if there.term + 1 == here.term && here.handled_active == first.name =>
        {
            return Heeded::Reverse { old: by(&second.name), to: first.name.clone(), term: here.term };
        }
        (SiteRole::Active | SiteRole::Follower, SiteRole::Active | SiteRole::Follower) => return follow(),
    };
    match (&config.fence, config.active == other.name) {
        (_, false) => Heeded::Follow(by(&active.name)),
        (None, true) => Heeded::NoFence(by(&active.name)),
        (Some(_), true) => Heeded::Switch { old: by(&active.name), to: other.name.clone() },
    }
}

/// The keys `site` of both sides, in the order of the file; `None`: there is none, or it cannot be read.
async fn records(config: &AgentConfig) -> [Option<Site>; 2] {
    let Ok(order) = order::order(config, false) else { return [None, None] };
    let (source, target) =
        tokio::join!(record(&order.source, &order.settings.id), record(&order.target, &order.settings.id));
    let [first, _] = &config.sites;
    if config.active == first.name { [source, target] } else { [target, source] }
}

/// What one side's key `site` says, within a few seconds.
async fn record(access: &Access, id: &MirrorId) -> Option<Site> {
    let read = async {
        let client = Connection::default().client(access, 0).await.ok()?;
        let answer = client.kv_client().get(id.key("site"), None).await.ok()?;
        answer.kvs().first().and_then(|kv| Site::parse(kv.value()).ok())
    };
    tokio::time::timeout(RECORDS_DEADLINE, read).await.ok().flatten()
}

/// The file's next content that can be read.
async fn changed(file: &Path, config: &AgentConfig) -> AgentConfig {
    let mut clock = tokio::time::interval(READ_AGAIN);
    let mut said = None;
    loop {
        clock.tick().await;
        match read(file) {
            Ok(next) if next != *config => return next,
            Ok(_) => said = None,
            Err(error) => {
                let error = error.to_string();
                if said.as_ref() != Some(&error) {
                    tracing::warn!("{error}; it goes on by what it has read before");
                    said = Some(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(active: &str, fence: Option<Fence>) -> AgentConfig {
        let text = r#"{"fingerprint": "f", "id": "default", "active": "", "sites": [
            {"name": "a", "endpoints": ["http://a:1"]}, {"name": "b", "endpoints": ["http://b:1"]}]}"#;
        let config: AgentConfig = serde_json::from_str(text).unwrap();
        AgentConfig { active: active.to_owned(), fence, ..config }
    }

    fn site(role: SiteRole, term: u64, handled: &str) -> Site {
        Site { term, role, peer: String::new(), handled_active: handled.to_owned() }
    }

    #[test]
    fn the_records_say_what_is_copied_and_the_file_what_is_wished() {
        let manual = || Some(Fence::Manual);
        let old = || Box::new(config("a", manual()));
        let (active, follower) =
            (Some(site(SiteRole::Active, 1, "a")), Some(site(SiteRole::Follower, 1, "a")));
        let records = [active.clone(), follower];
        assert_eq!(heeded(&config("a", manual()), &records), Heeded::Follow(old()));
        assert_eq!(heeded(&config("b", None), &records), Heeded::NoFence(Box::new(config("a", None))));
        let switch = Heeded::Switch { old: old(), to: "b".to_owned() };
        assert_eq!(heeded(&config("b", manual()), &records), switch);
        // Whatever the file says by then: what was promoted by a switch is ended.
        let promoted = [active.clone(), Some(site(SiteRole::Active, 2, "b"))];
        for wished in ["a", "b"] {
            let reverse = Heeded::Reverse { old: old(), to: "b".to_owned(), term: 2 };
            assert_eq!(heeded(&config(wished, manual()), &promoted), reverse);
        }
    }

    #[test]
    fn what_somebody_promoted_by_hand_is_not_turned_into_a_mirror_the_other_way() {
        let forced = [Some(site(SiteRole::Active, 1, "a")), Some(site(SiteRole::Active, 2, "a"))];
        for wished in ["a", "b"] {
            let file = config(wished, Some(Fence::Manual));
            assert_eq!(
                heeded(&file, &forced),
                Heeded::Follow(Box::new(file.clone())),
                "the engine refuses it"
            );
        }
    }

    #[test]
    fn without_records_the_file_counts() {
        for records in [[None, None], [Some(site(SiteRole::Active, 1, "a")), None]] {
            let file = config("b", Some(Fence::Manual));
            assert_eq!(heeded(&file, &records), Heeded::Follow(Box::new(file.clone())));
        }
    }
}
