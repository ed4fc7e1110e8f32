//! Mirroring itself: until it is told to stop, or has done what it was asked for.

use std::io::IsTerminal as _;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::arguments::{Follow, Meant};
use super::stopped;
use crate::cli::problem::Problem;
use crate::cli::{Exit, logging, terminal};
use crate::mirror::agent::run::{self as agent, Agent};
use crate::mirror::machine::View;
use crate::mirror::resync::Difference;
use crate::mirror::run::{Board, Ended, Order, Report, Trouble, run};
use crate::mirror::serve::serve;
use crate::mirror::text::shown;
use crate::mirror::verify::verify;

/// Where an agent answers: its Pod is asked by its own address.
const AGENT_ADDRESS: (Ipv6Addr, u16) = (Ipv6Addr::UNSPECIFIED, 8080);
/// How often the line on a terminal is written anew.
const REDRAW: Duration = Duration::from_millis(200);

/// By a file, until it is told to stop or another agent has taken over.
pub(super) async fn by_file(file: &Path, arguments: &Follow) -> anyhow::Result<Exit> {
    let config = agent::read(file).map_err(|error| Problem::Usage(error.to_string()))?;
    logging::start(arguments.log_format)?;
    let board = Board::default();
    let agent = Agent::new(config, board.clone());
    let address = arguments.listen.unwrap_or_else(|| AGENT_ADDRESS.into());
    listen(address, board, Some(agent.clone())).await?;
    match agent.run(file, asked_to_end()?).await {
        Ended::Told => Ok(Exit::Done),
        Ended::Stopped(stop) => Ok(stopped(&stop)),
    }
}

async fn listen(address: SocketAddr, board: Board, agent: Option<Agent>) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
    tokio::spawn(serve(listener, board, agent));
    Ok(())
}

pub(super) async fn execute(arguments: Follow) -> anyhow::Result<Exit> {
    let (address, format, compare) = (arguments.listen, arguments.log_format, arguments.verify);
    let meant = arguments.meant()?;
    if compare {
        let verdict = verify(&meant.source, &meant.target, &meant.settings.id).await?;
        return told(&verdict);
    }
    logging::start(format)?;
    let board = Board::default();
    if let Some(address) = address {
        listen(address, board.clone(), None).await?;
    }
    let line = std::io::stderr().is_terminal().then(|| tokio::spawn(draw(board.clone())));
    let Meant { settings, source, target, pace } = meant;
    let order = Order { settings, source, target, pace };
    let ended = run(order, board, asked_to_end()?).await;
    if let Some(line) = line {
        line.abort();
        terminal::complain("");
    }
    match ended.map_err(|error| Problem::Usage(error.to_string()))? {
        Ended::Told => Ok(Exit::Done),
        Ended::Stopped(stop) => Ok(stopped(&stop)),
    }
}

/// SIGTERM and SIGINT.
fn asked_to_end() -> anyhow::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// One line that changes, as long as somebody looks.
async fn draw(board: Board) {
    let mut clock = tokio::time::interval(REDRAW);
    loop {
        clock.tick().await;
        let line = line(&board.read());
        let drawn = std::io::Write::write_all(&mut std::io::stderr(), format!("\r\x1b[K{line}").as_bytes());
        if drawn.is_err() {
            return;
        }
    }
}

fn line(report: &Report) -> String {
    let problem = |side: &str, problem: &Option<Trouble>| {
        problem.as_ref().map(|trouble| format!("  {side}: {}", trouble.text))
    };
    let problems = [problem("source", &report.source_problem), problem("target", &report.target_problem)];
    let problems: String = problems.into_iter().flatten().collect();
    match (&report.stopped, &report.view) {
        (Some(stop), _) => format!("stopped, {}: {stop}", stop.reason()),
        (None, None) => format!("connecting{problems}"),
        (None, Some(view)) => format!("{}{problems}", state(view, report.lag, report.source_keys)),
    }
}

/// A bar of how much of a scan is done, once the source's keys were counted.
fn progress(done: u64, total: Option<u64>) -> String {
    const WIDTH: u64 = 20;
    let Some(total) = total.map(|total| total.max(done).max(1)) else { return String::new() };
    let full = usize::try_from(done * WIDTH / total).unwrap_or_default();
    let rest = usize::try_from(WIDTH).unwrap_or_default().saturating_sub(full);
    format!(" [{}{}] {} %", "#".repeat(full), "-".repeat(rest), done * 100 / total)
}

fn state(view: &View, lag: Option<Duration>, keys: Option<u64>) -> String {
    let View { phase, revision, head, counts, stats, .. } = view;
    match *phase {
        "stream" => {
            let behind = (head - revision).max(0);
            let lag = lag.map_or("unknown".to_owned(), |lag| format!("{:.1} s", lag.as_secs_f64()));
            format!(
                "following: revision {revision}, {behind} behind, lag {lag}, {} changes",
                stats.operations
            )
        }
        "first" | "resync" | "counting" => format!(
            "{phase}{}: {} keys alike, {} missing, {} differing, {} only in the target",
            progress(counts.equal + counts.missing + counts.differing, keys),
            counts.equal,
            counts.missing,
            counts.differing,
            counts.extra
        ),
        other => other.to_owned(),
    }
}

/// What a comparison found.
fn told(verdict: &crate::mirror::verify::Verdict) -> anyhow::Result<Exit> {
    let counts = verdict.counts;
    let mut text = format!(
        "source at revision {}, target at revision {}: {} keys alike, {} missing, {} differing, {} only in the target\n",
        verdict.revision,
        verdict.target_revision,
        counts.equal,
        counts.missing,
        counts.differing,
        counts.extra
    );
    for key in &verdict.named {
        let how = match key.difference {
            Difference::Missing(_) => "is missing in the target",
            Difference::Differing(_) => "differs",
            Difference::Extra => "is only in the target",
        };
        text.push_str(&format!("{} {how}\n", shown(&key.key)));
    }
    terminal::print(&text)?;
    let alike = counts.missing + counts.differing + counts.extra == 0;
    Ok(if alike { Exit::Done } else { Exit::Degraded })
}
