//! `/metrics`, `/livez`, `/readyz`, `/lag`.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use super::metrics;
use super::run::Board;

/// Serves until it is dropped. Ready is who copies: one that has stopped, or hears nothing, is not.
pub async fn serve(listener: TcpListener, board: Board) -> std::io::Result<()> {
    let (scraped, ready, lagging) = (board.clone(), board.clone(), board);
    let routes = Router::new()
        .route("/metrics", get(move || async move { metrics::text(&scraped.read()) }))
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(move || async move { readiness(&ready) }))
        .route("/lag", get(move || async move { format!("{:.3}\n", lagging.read().lag_seconds) }));
    axum::serve(listener, routes).await
}

fn readiness(board: &Board) -> (StatusCode, String) {
    let report = board.read();
    let problem = report.stopped.as_ref().map(ToString::to_string);
    let problem = problem.or_else(|| report.source_problem.clone()).or_else(|| report.target_problem.clone());
    match problem {
        None if report.view.is_some() => (StatusCode::OK, "ok".to_owned()),
        None => (StatusCode::SERVICE_UNAVAILABLE, "it has just started".to_owned()),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, problem),
    }
}
