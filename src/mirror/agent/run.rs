//! Runs an agent: reads its file again and again, and begins the engine anew whenever it says something else.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::{Txn, TxnOp, TxnOpResponse};
use jiff::Timestamp;

use super::config::{AgentConfig, RunState};
use super::heed::{Heeded, Record, agreed_term, heeded, unknown};
use super::order;
use super::status::{AgentStatus, Problem, ProblemReason, SwitchResult, Verification};
use super::tell::{self, Known};
use crate::mirror::checkpoint::Site;
use crate::mirror::config::MirrorId;
use crate::mirror::connect::{Access, reach};
use crate::mirror::run::{Board, Ended, Order, Report, run};
use crate::mirror::stop::Stop;
use crate::mirror::verify::{Verdict, verify};

/// How often the file is read again.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// How long a read of both sides' records may take.
const RECORDS_DEADLINE: Duration = Duration::from_secs(8);
/// After they spoke against the direction of the file.
pub(super) const RECORDS_AGAIN: Duration = Duration::from_secs(5);
/// After a comparison that could not be made, such as before the first sync has ended.
pub(super) const COMPARE_AGAIN: Duration = Duration::from_secs(5);

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

/// What an agent remembers.
pub(super) struct State {
    config: AgentConfig,
    /// What it says beside the engine's report.
    pub(super) known: Known,
    /// The records of a site were not there, or could not be read, when they were last looked at.
    unread: bool,
    /// The last term in which the file and the records named the same site, as this agent has seen it.
    agreed: Option<u64>,
}

impl Agent {
    /// One that has done nothing yet.
    pub fn new(config: AgentConfig, board: Board) -> Self {
        let known = Known { started_at: Some(Timestamp::now()), ..Known::default() };
        let state = State { config, known, unread: false, agreed: None };
        Self { board, state: Arc::new(Mutex::new(state)) }
    }

    /// What `/status` says.
    pub fn status(&self) -> AgentStatus {
        let report = self.board.read().clone();
        let mut state = self.state();
        state.known.resynced(report.view.as_ref().and_then(|view| view.resynced), Timestamp::now());
        state.known.synced |= report.view.as_ref().is_some_and(|view| view.synced);
        tell::status(&state.config, &report, &state.known, Instant::now())
    }

    /// Mirrors by the file until `told` resolves, or another agent has taken over.
    pub async fn run(&self, file: &Path, told: impl Future<Output = ()>) -> Ended {
        let mut told = std::pin::pin!(told);
        let mut before = None;
        loop {
            let config = {
                let mut state = self.state();
                // Of the file before, or of records that were read since.
                state.unread = false;
                state.config.clone()
            };
            tokio::select! {
                turned = self.follow(&config, before.as_ref()) => match turned {
                    Turned::Ended(ended) => return ended,
                    Turned::Again => *self.board.read() = Report::default(),
                },
                next = self.changed(file, &config) => {
                    tracing::info!(fingerprint = next.fingerprint, "the file has changed; it goes on by the new one");
                    self.take(next);
                }
                () = self.mismatched(&config) => *self.board.read() = Report::default(),
                () = &mut told => return Ended::Told,
            }
            before = Some(config);
        }
    }

    /// The file's next content that can be read.
    async fn changed(&self, file: &Path, config: &AgentConfig) -> AgentConfig {
        let mut clock = tokio::time::interval(READ_AGAIN);
        let mut said = None;
        loop {
            clock.tick().await;
            match read(file) {
                Ok(next) if self.says_more(config, &next) => return next,
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

    /// What a file knows of the records changes nothing for an agent that does what it wishes.
    fn says_more(&self, config: &AgentConfig, next: &AgentConfig) -> bool {
        let same_wish = AgentConfig { agreed_term: config.agreed_term, ..next.clone() };
        same_wish != *config || (next != config && self.state().known.recorded.is_some())
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, config: AgentConfig) {
        let said = self.status();
        *self.board.read() = Report::default();
        let mut state = self.state();
        state.agreed = said.agreed_term(&state.config.active).or(state.agreed);
        let known = &mut state.known;
        (known.problem, known.notice, known.recorded, known.plan) = (None, None, None, None);
        // Whether a switch that was under way is over, the records will say.
        known.switching = false;
        state.config = config;
    }

    /// What etcd's records say of the sites counts: a word in a file alone exchanges no source and target.
    async fn heed_records(&self, config: &AgentConfig) -> Heeded {
        let records = records(config).await;
        let heeded = heeded(config, &records, self.agreed(config, &records));
        let mut state = self.state();
        state.unread = records.iter().any(Option::is_none);
        let unread = state.unread;
        let known = &mut state.known;
        // What is tried again and again is told until it is done, or there is something else to do.
        match &heeded {
            Heeded::Return { .. } => {}
            Heeded::Reverse { .. } => known.plan = None,
            Heeded::Follow(_)
            | Heeded::NoFence(_)
            | Heeded::NotAsked(_)
            | Heeded::TakeBack { .. }
            | Heeded::Switch { .. } => {
                (known.problem, known.plan) = (unknown(config, &records, known.switch.as_ref()), None);
            }
        }
        match &heeded {
            Heeded::Follow(config) => {
                (known.recorded, known.notice) = (None, None);
                if !unread {
                    settle(known, &config.active);
                }
            }
            Heeded::NoFence(old) | Heeded::NotAsked(old) => {
                known.recorded = Some(old.active.clone());
                let asked = matches!(heeded, Heeded::NoFence(_));
                known.notice = Some(if asked { no_fence(config, old) } else { not_asked(config, old) });
            }
            Heeded::TakeBack { old, .. } | Heeded::Switch { old, .. } => {
                known.recorded = Some(old.active.clone());
            }
            Heeded::Reverse { to, .. } | Heeded::Return { to, .. } => known.recorded = Some(to.clone()),
        }
        heeded
    }

    /// The last term in which the file and the records named the same site, by these records or as it was known before.
    pub(super) fn agreed(&self, config: &AgentConfig, records: &[Option<Record>; 2]) -> Option<u64> {
        let mut state = self.state();
        state.agreed = agreed_term(config, records).or(state.agreed);
        state.agreed.or(config.agreed_term)
    }

    /// Resolves when the sites' records say what to do instead of copying: those that could not be read before, or against
    /// which the engine has stopped.
    async fn mismatched(&self, config: &AgentConfig) {
        let mut clock = tokio::time::interval(RECORDS_AGAIN);
        loop {
            clock.tick().await;
            let stopped = matches!(self.board.read().stopped, Some(Stop::Site(_) | Stop::Promoted));
            if stopped || self.state().unread {
                let records = records(config).await;
                if heeded(config, &records, self.agreed(config, &records))
                    != Heeded::Follow(Box::new(config.clone()))
                {
                    return;
                }
                let mut state = self.state();
                state.unread = records.iter().any(Option::is_none);
                state.known.problem = unknown(config, &records, state.known.switch.as_ref());
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
            Heeded::Follow(config) | Heeded::NoFence(config) | Heeded::NotAsked(config) => {
                self.copy(&config, before).await
            }
            Heeded::TakeBack { old, to } => self.take_back(&old, &to, before).await,
            Heeded::Switch { old, to } => self.switch(&old, &to, before).await,
            Heeded::Return { old, to, term } => self.bring_back(&old, &to, term).await,
            Heeded::Reverse { old, to, term } => self.end_switch(&old, &to, term).await,
        }
    }

    /// Copies, and compares both sides now and then.
    pub(super) async fn copy(&self, config: &AgentConfig, before: Option<&AgentConfig>) -> Turned {
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

    pub(super) fn note(&self, verdict: &Verdict) {
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

    pub(super) async fn mirror(&self, order: Order) -> Ended {
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

/// The file wants a switch, and says too little for one.
fn no_fence(config: &AgentConfig, old: &AgentConfig) -> Problem {
    let message = format!(
        "etcd's own records say that {} is active, and the file says {}. Nothing says how writers are kept out of {} while \
         the sites are switched, so it is copied from as before. Set fence, or write active: {}.",
        old.active, config.active, old.active, old.active
    );
    Problem { reason: ProblemReason::FenceMissing, message }
}

/// The file names a site that is not active, and nobody has asked for a switch since the other one became active.
fn not_asked(config: &AgentConfig, old: &AgentConfig) -> Problem {
    let message = format!(
        "etcd's own records say that {} is active, and the file has said {} since before that. Only a change of active asks \
         for a switch, so {} is copied from as before. Write active: {}; if {} is to be active, write that once it follows.",
        old.active, config.active, old.active, old.active, config.active
    );
    Problem { reason: ProblemReason::ActiveMismatch, message }
}

/// A switch that was under way is over: another agent may have ended it, or it was taken back.
fn settle(known: &mut Known, active: &str) {
    known.switching = false;
    if let Some(switch) = known.switch.as_mut().filter(|switch| switch.result.is_none()) {
        let done = switch.to == active;
        let result = if done { SwitchResult::Done } else { SwitchResult::Aborted };
        switch.end(Timestamp::now(), result);
    }
}

/// Why an agent does not go on as it did.
pub(super) enum Turned {
    /// It is over.
    Ended(Ended),
    /// The sites' records have changed, or may have.
    Again,
}

/// What both sides' own keys say, in the order of the file; `None`: there are none, or they cannot be read.
pub(super) async fn records(config: &AgentConfig) -> [Option<Record>; 2] {
    let Ok(order) = order::order(config, false) else { return [None, None] };
    let (source, target) =
        tokio::join!(record(&order.source, &order.settings.id), record(&order.target, &order.settings.id));
    let [first, _] = &config.sites;
    if config.active == first.name { [source, target] } else { [target, source] }
}

/// What one side's own keys say, within a few seconds.
pub(super) async fn record(access: &Access, id: &MirrorId) -> Option<Record> {
    let read = async {
        let client = reach(access).await.ok()?;
        let keys = ["site", "fence", "switch"].map(|name| TxnOp::get(id.key(name), None));
        let answer = client.kv_client().txn(Txn::new().and_then(keys)).await.ok()?;
        let values = answer.op_responses().into_iter().map(|result| match result {
            TxnOpResponse::Get(read) => read.kvs().first().map(|kv| kv.value().to_vec()),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
        });
        let values: Vec<Option<Vec<u8>>> = values.collect();
        let [site, fence, switch] = values.try_into().ok()?;
        Some(Record { site: Site::parse(&site?).ok()?, fenced: fence.is_some(), begun: switch.is_some() })
    };
    tokio::time::timeout(RECORDS_DEADLINE, read).await.ok().flatten()
}
