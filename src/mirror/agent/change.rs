//! Carries out what is more than copying: a switch of the sites, taking one back, and the return of a lost site.
//!
//! Separate from [`run`](super::run) because each step changes something that the next agent must find: what a step leaves behind
//! is in [`switch`](super::switch) and in [`fence`](crate::mirror::fence). Nothing here is remembered for its own sake;
//! whatever fails, the sites' records are read again, and they say what is next.

use std::time::Duration;

use jiff::Timestamp;

use super::config::{AgentConfig, Fence};
use super::heed::{Heeded, heeded, kept_out, unfinished};
use super::lost::Lost;
use super::order::{self, writers};
use super::run::{Agent, COMPARE_AGAIN, RECORDS_AGAIN, Turned, record, records};
use super::status::{Problem, ProblemReason, Switch, SwitchResult, SwitchStep, WaitingPlan};
use super::survey::{keep, survey};
use super::switch::{Pair, SwitchError, attempt, late, promote, reverse, take_back};
use crate::mirror::authorize::{self, FenceError};
use crate::mirror::checkpoint::Scan;
use crate::mirror::machine::Mode;
use crate::mirror::resync::Counts;
use crate::mirror::run::{Ended, Order};
use crate::mirror::stop::Stop;
use crate::mirror::text::shown;
use crate::mirror::verify::{Verdict, verify};

/// How long writers may have to stand still for the rest to be copied.
const DRAIN_LIMIT: Duration = Duration::from_mins(10);
/// Keys that are named.
const NAMED: usize = 10;
/// After a switch that could not be carried out.
const SWITCH_AGAIN: Duration = Duration::from_secs(30);
/// How often a site that is back is looked at while a person has not said that it may follow: all keys are read.
const LOOK_AGAIN: Duration = Duration::from_mins(10);
/// How often a comparison of a switch is tried again.
const COMPARISONS: u32 = 12;
/// Steps that are told: of a switch that is tried again and again the last ones.
const STEPS: usize = 24;

impl Agent {
    /// Switches the sites over; if that fails, it says why, and copies on as before for a while.
    pub(super) async fn switch(&self, old: &AgentConfig, to: &str, before: Option<&AgentConfig>) -> Turned {
        let Err(mut problem) = self.steps(old, to).await else { return Turned::Again };
        let again = Heeded::Switch { old: Box::new(old.clone()), to: to.to_owned() };
        let wanted = AgentConfig { active: to.to_owned(), ..old.clone() };
        let records = records(&wanted).await;
        if heeded(&wanted, &records, self.agreed(&wanted, &records)) != again {
            // It was promoted all the same, or somebody else has switched.
            let why = problem.message;
            tracing::warn!("a step of the switch failed, and the sites' records have changed: {why}");
            return Turned::Again;
        }
        match self.let_in_again(old, to).await {
            Ok(true) => {}
            Ok(false) => return Turned::Again,
            Err(more) => {
                let message = format!(
                    "{}; and writers of {} are still kept out: {}",
                    problem.message, old.active, more.message
                );
                problem = Problem { reason: ProblemReason::WritersKeptOut, message };
            }
        }
        let (from, seconds) = (&old.active, SWITCH_AGAIN.as_secs());
        problem.message = format!(
            "The sites are not switched from {from} to {to}: {}. {from} is copied from as before, and it is tried again \
             every {seconds} s. Cure it, or write active: {from}.",
            problem.message
        );
        self.copy_for_a_while(old, problem, before).await
    }

    /// Lets the writers of the active site in: a switch from it was begun, and nobody wants it any more.
    pub(super) async fn take_back(
        &self,
        old: &AgentConfig,
        to: &str,
        before: Option<&AgentConfig>,
    ) -> Turned {
        let Err(problem) = self.let_in_again(old, to).await else { return Turned::Again };
        self.copy_for_a_while(old, kept_out(&old.active, &problem.message), before).await
    }

    /// Copies as before while something else waits for a person.
    async fn copy_for_a_while(
        &self,
        old: &AgentConfig,
        problem: Problem,
        before: Option<&AgentConfig>,
    ) -> Turned {
        tracing::error!(reason = %problem.reason, "{}", problem.message);
        {
            let mut state = self.state();
            (state.known.switching, state.known.notice) = (false, Some(problem));
        }
        tokio::select! {
            turned = self.copy(old, before) => turned,
            () = tokio::time::sleep(SWITCH_AGAIN) => Turned::Again,
        }
    }

    /// `false`: the other side is active already, and nothing is taken back.
    async fn let_in_again(&self, old: &AgentConfig, to: &str) -> Result<bool, Problem> {
        let pair = pair(old, to)?;
        if self.state().known.switch.as_ref().is_some_and(|switch| switch.result.is_none()) {
            self.step("Abort");
        }
        // First: a promotion that is under way would else come after writers were let in.
        if !take_back(&pair).await? {
            return Ok(false);
        }
        let_in(old, &pair, &old.active).await?;
        Ok(true)
    }

    /// Until the new side is active, and the old one follows it.
    async fn steps(&self, old: &AgentConfig, to: &str) -> Result<(), Problem> {
        let order = order::order(old, false)?;
        let (pair, writers) = (pair(old, to)?, writers(old, &old.active)?);
        self.begin_anew(&old.active, to);
        self.step("Verify");
        // Outside of the fence: what is wrong is found before anybody has to stop.
        if let Some(writers) = &writers {
            authorize::permits(writers).await?;
        }
        let attempt = attempt(&pair).await?;
        tokio::select! {
            ended = self.mirror(order.clone()) => return Err(refused(format!("the mirror ended: {ended:?}"))),
            verdict = self.equal(&order) => drop(verdict?),
        }
        self.step("Fence");
        match (&old.fence, &writers) {
            (Some(Fence::Roles { .. }), Some(writers)) => {
                authorize::fence(writers).await?;
            }
            // A person has said that the writers are stopped.
            (Some(Fence::Manual), None) => {}
            (_, _) => return Err(refused("there is no fence".to_owned())),
        }
        self.step("Drain");
        let late = || {
            refused(format!("the target did not get what the source had within {} s", DRAIN_LIMIT.as_secs()))
        };
        tokio::time::timeout(DRAIN_LIMIT, self.drain(&order)).await.map_err(|_| late())??;
        self.step("Compare");
        let compared = self.equal(&order).await?;
        if let Some(writers) = &writers {
            authorize::holds(writers).await?;
        }
        self.step("Promote");
        let term = promote(&pair, &attempt, &compared, to).await?;
        self.state().known.recorded = Some(to.to_owned());
        self.step("Reverse");
        // Whatever comes of it: the records say what is left to do.
        drop(welcome(old, &pair, to).await);
        let lost = lost(&pair, &order, compared.revision, &old.active).await;
        reverse(&pair, term, to, Scan::new(0)).await?;
        self.finish(lost);
        Ok(())
    }

    /// What is left of a switch whose new side is active.
    pub(super) async fn end_switch(&self, old: &AgentConfig, to: &str, term: u64) -> Turned {
        match self.end_steps(old, to, term).await {
            Ok(()) => self.finish(None),
            Err(problem) => {
                tracing::error!(reason = %problem.reason, "{}", problem.message);
                self.state().known.problem = Some(problem);
                tokio::time::sleep(RECORDS_AGAIN).await;
            }
        }
        Turned::Again
    }

    /// If writers are still kept out of the new side that is told first: it keeps applications from working.
    async fn end_steps(&self, old: &AgentConfig, to: &str, term: u64) -> Result<(), Problem> {
        let waits = |problem: Problem| unfinished(to, &old.active, &problem.message);
        let pair = pair(old, to).map_err(waits)?;
        self.begin(&old.active, to);
        if !self.state().known.switch.as_ref().is_some_and(Switch::is_promoted) {
            self.step("Reverse");
        }
        let kept_out = welcome(old, &pair, to).await;
        let Err(error) = reverse(&pair, term, to, Scan::new(0)).await else { return Ok(()) };
        let unfinished = waits(error.into());
        Err(kept_out.map_or(unfinished.clone(), |Problem { reason, message }| Problem {
            reason,
            message: format!("{message} {}", unfinished.message),
        }))
    }

    /// Tells what a site has of its own that is back after a person promoted the other one, and lets it follow once a person has
    /// seen that. It merges nothing.
    pub(super) async fn bring_back(&self, old: &AgentConfig, to: &str, term: u64) -> Turned {
        let (problem, again) = match self.come_back(old, to, term).await {
            Ok(None) => return Turned::Again,
            Ok(Some(problem)) => (problem, LOOK_AGAIN),
            Err(problem) => (problem, SWITCH_AGAIN),
        };
        tracing::warn!(reason = %problem.reason, "{}", problem.message);
        {
            let mut state = self.state();
            (state.known.switching, state.known.problem) = (false, Some(problem));
        }
        tokio::time::sleep(again).await;
        Turned::Again
    }

    /// What a person must see first; `None`: they have, and it follows.
    async fn come_back(&self, old: &AgentConfig, to: &str, term: u64) -> Result<Option<Problem>, Problem> {
        let pair = pair(old, to)?;
        let order = order::order(old, false)?;
        self.begin_anew(&old.active, to);
        self.step("Fence");
        if let Some(writers) = writers(old, &old.active)? {
            authorize::fence(&writers).await?;
        }
        if let Some(problem) = welcome(old, &pair, to).await {
            return Err(problem);
        }
        self.step("List");
        let (found, counts) = survey(&pair, &old.active, term).await?;
        keep(&pair, &found).await?;
        if old.requests.resync.as_ref() != Some(&found.hash) {
            let Counts { missing, differing, extra, .. } = counts;
            let plan = WaitingPlan {
                hash: found.hash.clone(),
                adds: missing,
                overwrites: differing,
                deletes: extra,
            };
            self.state().known.plan = Some(plan);
            return Ok(Some(returned(&found, to)));
        }
        self.step("Reverse");
        let late = lost(&pair, &order, found.revision, &old.active).await;
        let begins = Scan { approved: true, ..Scan::new(0) };
        reverse(&pair, term, to, begins).await?;
        let told = told(&found, to);
        self.finish(Some(late.map_or(told.clone(), |late| format!("{told}. {late}"))));
        Ok(None)
    }

    /// Until the target has what the source has now.
    async fn drain(&self, order: &Order) -> Result<(), Problem> {
        let mut order = order.clone();
        order.settings.mode = Mode::Once;
        match self.mirror(order).await {
            Ended::Stopped(Stop::Done) => Ok(()),
            Ended::Stopped(stop) => Err(refused(stop.to_string())),
            Ended::Told => Err(refused("it was told to end".to_owned())),
        }
    }

    /// Compares both sides; tries again for a while where that is not possible yet.
    async fn equal(&self, order: &Order) -> Result<Verdict, Problem> {
        let mut tries = 0;
        loop {
            match verify(&order.source, &order.target, &order.settings.id).await {
                Ok(verdict) => {
                    self.note(&verdict);
                    let Counts { missing, differing, extra, .. } = verdict.counts;
                    return if missing + differing + extra == 0 {
                        Ok(verdict)
                    } else {
                        Err(refused(format!(
                            "the side that follows lacks {missing} keys, has {extra} of its own, and {differing} differ"
                        )))
                    };
                }
                Err(error) if tries == COMPARISONS => return Err(refused(error.to_string())),
                Err(_) => tokio::time::sleep(COMPARE_AGAIN).await,
            }
            tries += 1;
        }
    }

    /// A switch that goes on, or another one.
    fn begin(&self, from: &str, to: &str) {
        let switch = self.state().known.switch.clone();
        match switch {
            Some(switch) if switch.to == to && switch.result.is_none() => self.state().known.switching = true,
            Some(_) | None => self.begin_anew(from, to),
        }
    }

    fn begin_anew(&self, from: &str, to: &str) {
        let mut state = self.state();
        (state.known.switching, state.known.notice) = (true, None);
        let switch = Switch { from: from.to_owned(), to: to.to_owned(), ..Switch::default() };
        state.known.switch = Some(switch);
    }

    /// Ends the step that is under way, and begins another.
    fn step(&self, name: &str) {
        tracing::info!(step = name, "the sites are switched");
        let mut state = self.state();
        let Some(switch) = &mut state.known.switch else { return };
        let now = Timestamp::now();
        switch.end_step(now);
        switch.steps.push(SwitchStep { name: name.to_owned(), started_at: now, finished_at: None });
        let old = switch.steps.len().saturating_sub(STEPS);
        switch.steps.drain(..old);
    }

    fn finish(&self, lost: Option<String>) {
        let mut state = self.state();
        state.known.switching = false;
        let Some(switch) = &mut state.known.switch else { return };
        switch.end(Timestamp::now(), SwitchResult::Done);
        switch.lost = lost;
    }
}

/// Lets the writers of a site in, if anything was taken from them.
async fn let_in(config: &AgentConfig, pair: &Pair, site: &str) -> Result<(), Problem> {
    let access = if site == config.active { &pair.old } else { &pair.new };
    let fenced = record(access, &pair.id).await.map(|record| record.fenced);
    if fenced == Some(false) {
        return Ok(());
    }
    match writers(config, site)? {
        Some(writers) => {
            if authorize::give_back(&writers.root, &pair.id).await? {
                tracing::info!("writers of {site} have their permissions again");
            }
            Ok(())
        }
        // If something was taken there, the records say so when they can be read again.
        None if fenced.is_none() => Ok(()),
        None => {
            let message = format!(
                "permissions of writers of {site} were taken by a switch, and the file does not say any more how root \
                 gives them back: write fence with its roles and root again"
            );
            Err(Problem { reason: ProblemReason::FenceRefused, message })
        }
    }
}

/// The same at a side that has become active; what is in the way, if they are still kept out. The records say so for as
/// long as it is not done.
async fn welcome(config: &AgentConfig, pair: &Pair, site: &str) -> Option<Problem> {
    let problem = let_in(config, pair, site).await.err()?;
    let problem = kept_out(site, &problem.message);
    tracing::error!(reason = %problem.reason, "{}", problem.message);
    Some(problem)
}

fn refused(message: String) -> Problem {
    Problem { reason: ProblemReason::SwitchRefused, message }
}

impl From<SwitchError> for Problem {
    fn from(SwitchError(message): SwitchError) -> Self {
        refused(message)
    }
}

impl From<FenceError> for Problem {
    fn from(error: FenceError) -> Self {
        match error {
            FenceError::Refused(message) => Self { reason: ProblemReason::FenceRefused, message },
            FenceError::Failed(message) => refused(message),
        }
    }
}

/// What a person must know before a site that is back may follow.
fn returned(lost: &Lost, to: &str) -> Problem {
    let site = &lost.site;
    let message = format!(
        "{site} is back, and {to} was promoted without it. {}. Nothing is copied. Take over what is needed from {site}; \
         then let it be made as {to} is: kubectl quorate mirror resync --approve with the hash of status.plan.",
        told(lost, to)
    );
    Problem { reason: ProblemReason::SiteReturned, message }
}

/// What was lost, in a sentence.
fn told(lost: &Lost, to: &str) -> String {
    let Lost { site, put_count, delete_count, puts, deletes, since, .. } = lost;
    let names = puts.iter().map(|put| put.key.as_str()).chain(deletes.iter().map(String::as_str));
    let names: Vec<&str> = names.take(NAMED).collect();
    let named = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
    let scan = if *since == 0 { "; a scan had not ended, so what differs is listed, too" } else { "" };
    format!(
        "{put_count} keys were put at {site} that {to} never got, and {delete_count} deleted{named}; which values they \
         replaced before is not known{scan}. quorate mirror lost shows the list that is kept at {to}"
    )
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
        Err(SwitchError(error)) => {
            Some(format!("it is not known what was written at {old} after the last copy: {error}"))
        }
    }
}

/// Both sides, as a switch needs them.
fn pair(old: &AgentConfig, to: &str) -> Result<Pair, Problem> {
    let renames = old
        .mappings
        .iter()
        .any(|prefixes| prefixes.values().any(|one| prefixes.values().any(|other| one != other)));
    if renames && !old.ignore.is_empty() && old.ignore_site.is_none() {
        return Err(refused(
            "the mappings rename keys, and nothing says by whose names the patterns of ignore are matched: set ignoreSite"
                .to_owned(),
        ));
    }
    let there = order::order(old, false)?;
    let new = AgentConfig { active: to.to_owned(), ..old.clone() };
    let back = order::order(&new, false)?;
    Ok(Pair { id: there.settings.id, old: there.source, new: there.target, back: back.settings.config })
}
