//! temporary
use quorate::operator::run::{Config, run};
#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    tracing_subscriber::fmt().with_env_filter("info,quorate=debug").init();
    let config = Config { namespaces: vec![], listen: "127.0.0.1:18080".parse()?, lease_namespace: "default".into(), identity: "dev".into(), guard_image: "ghcr.io/quorate/quorate:v0.1.0".into() };
    run(config).await?;
    Ok(())
}
