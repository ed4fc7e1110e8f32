//! `/metrics`, `/livez`, `/readyz`.

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use super::metrics::Metrics;

/// Serves until `stop` resolves. A standby replica is ready: it is ready to take over.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let scrape = move || async move { metrics.text().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR) };
    let routes = Router::new()
        .route("/metrics", get(scrape))
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(async || "ok"));
    axum::serve(listener, routes).with_graceful_shutdown(stop).await
}
