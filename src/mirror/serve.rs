//! `/metrics`, `/livez`, `/readyz`, `/lag`; of an agent `/status`, too.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, StatusCode};
use axum::routing::get;
use tokio::net::TcpListener;

use super::agent::run::Agent;
use super::agent::status::AgentStatus;
use super::metrics;
use super::run::Board;

/// Serves until it is dropped. Ready is who copies: one that has stopped, or hears nothing, is not.
pub async fn serve(listener: TcpListener, board: Board, agent: Option<Agent>) -> std::io::Result<()> {
    let (scraped, ready, lagging) = (board.clone(), board.clone(), board);
    let mut routes = Router::new()
        .route("/metrics", get(move || async move { metrics::text(&scraped.read()) }))
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(move || async move { readiness(&ready) }))
        .route("/lag", get(move || async move { format!("{:.3}\n", lagging.read().lag_seconds) }));
    if let Some(agent) = agent {
        routes = routes.route("/status", get(move || async move { as_json(&agent.status()) }));
    }
    axum::serve(listener, routes).await
}

fn readiness(board: &Board) -> (StatusCode, String) {
    let report = board.read();
    let problem = report.stopped.as_ref().map(ToString::to_string);
    let trouble = report.source_problem.as_ref().or(report.target_problem.as_ref());
    let problem = problem.or_else(|| trouble.map(|trouble| trouble.text.clone()));
    match problem {
        None if report.view.is_some() => (StatusCode::OK, "ok".to_owned()),
        None => (StatusCode::SERVICE_UNAVAILABLE, "it has just started".to_owned()),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, problem),
    }
}

fn as_json(status: &AgentStatus) -> ([(HeaderName, &'static str); 1], String) {
    // Strings and numbers only: serde_json fails for maps whose keys are no strings.
    ([(CONTENT_TYPE, "application/json")], serde_json::to_string(status).unwrap_or_default())
}
