//! Runs an agent: reads its file again and again, and begins the engine anew whenever it says something else.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::config::{AgentConfig, RunState};
use super::order;
use super::status::{AgentStatus, Problem, ProblemReason, Verification};
use super::tell::{self, Known};
use crate::mirror::checkpoint::{Site, SiteRole};
use crate::mirror::config::MirrorId;
use crate::mirror::connect::{Access, Connection};
use crate::mirror::run::{Board, Ended, Order, Report, run};
use crate::mirror::stop::Stop;
use crate::mirror::verify::verify;

/// How often the file is read again.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// How long a read of both sides' records may take.
const RECORDS_DEADLINE: Duration = Duration::from_secs(8);
/// After they spoke against the direction of the file.
const RECORDS_AGAIN: Duration = Duration::from_secs(5);
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
                ended = self.follow(&config, before.as_ref()) => return ended,
                next = changed(file, &config) => {
                    tracing::info!(fingerprint = next.fingerprint, "the file has changed; it goes on by the new one");
                    self.take(next);
                }
                () = self.mismatched() => *self.board.read() = Report::default(),
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
        state.config = config;
    }

    /// What etcd's records say of the sites counts: a word in a file alone exchanges no source and target.
    async fn heed_records(&self, config: &AgentConfig) -> AgentConfig {
        let recorded = match active_by_records(config).await {
            Some(active) if active != config.active => active,
            Some(_) | None => return config.clone(),
        };
        let message = format!(
            "etcd's own records say that {recorded} is active, and the file says {}. This release does not switch sites \
             over: {recorded} is copied from as before. Write active: {recorded}.",
            config.active
        );
        tracing::error!(reason = %ProblemReason::ActiveMismatch, "{message}");
        let mut state = self.state();
        state.known.notice = Some(Problem { reason: ProblemReason::ActiveMismatch, message });
        state.known.recorded = Some(recorded);
        state.known.carried_out(config)
    }

    /// Resolves when the engine has stopped since the sites' records speak against it.
    async fn mismatched(&self) {
        let mut clock = tokio::time::interval(READ_AGAIN);
        while !matches!(self.board.read().stopped, Some(Stop::Site(_))) {
            clock.tick().await;
        }
        tokio::time::sleep(RECORDS_AGAIN).await;
    }

    /// By one file; does not end while it cannot or must not copy.
    async fn follow(&self, config: &AgentConfig, before: Option<&AgentConfig>) -> Ended {
        let is_new = |of: fn(&AgentConfig) -> &Option<String>| {
            of(config).is_some() && before.is_none_or(|before| of(before) != of(config))
        };
        let config = &self.heed_records(config).await;
        let order = match order::order(config, is_new(|config| &config.requests.resync)) {
            Ok(order) => order,
            Err(problem) => {
                tracing::error!(reason = %problem.reason, "{}", problem.message);
                self.state().known.problem = Some(problem);
                return std::future::pending().await;
            }
        };
        if config.state == RunState::Paused {
            tracing::info!("paused: nothing is copied");
            return std::future::pending().await;
        }
        let every = config.verify.map(|verify| Duration::from_secs(verify.every_seconds));
        let first = if is_new(|config| &config.requests.verify) { Some(Duration::ZERO) } else { every };
        let (source, target) = (order.source.clone(), order.target.clone());
        let compare = self.compare(&source, &target, order.settings.id.clone(), first, every);
        tokio::select! {
            ended = self.mirror(order) => ended,
            () = compare => std::future::pending().await,
        }
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

    /// Compares both sides now and then. Ends when nobody wants it any more.
    async fn compare(
        &self,
        source: &Access,
        target: &Access,
        id: MirrorId,
        first: Option<Duration>,
        every: Option<Duration>,
    ) {
        let mut next = first;
        while let Some(wait) = next {
            tokio::time::sleep(wait).await;
            next = match verify(source, target, &id).await {
                Ok(verdict) => {
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
                    every
                }
                Err(error) => {
                    tracing::info!("both sides were not compared: {error}");
                    Some(COMPARE_AGAIN)
                }
            };
        }
        std::future::pending::<()>().await;
    }
}

/// The site that both sides' records call active; `None`: they name none, or cannot be read.
async fn active_by_records(config: &AgentConfig) -> Option<String> {
    let order = order::order(config, false).ok()?;
    let (source, target) = order::sites(config).ok()?;
    let (here, there) =
        tokio::join!(record(&order.source, &order.settings.id), record(&order.target, &order.settings.id));
    let (here, there) = (here?, there?);
    match (here.role, there.role) {
        _ if here.term != there.term => None,
        (SiteRole::Active, SiteRole::Follower) => Some(source.name.clone()),
        (SiteRole::Follower, SiteRole::Active) => Some(target.name.clone()),
        (SiteRole::Active, SiteRole::Active) | (SiteRole::Follower, SiteRole::Follower) => None,
    }
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
