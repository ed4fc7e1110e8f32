//! Logs of the long-running subcommands: JSON in a Pod, text on a terminal.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Form of the log.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Lines for a person.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error at level info; RUST_LOG says otherwise.
pub(super) fn start(format: Format) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).from_env()?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let json = match format {
        Format::Auto => !std::io::stderr().is_terminal(),
        Format::Text => false,
        Format::Json => true,
    };
    let started = if json { log.json().with_span_list(false).try_init() } else { log.try_init() };
    started.map_err(|error| anyhow::anyhow!("could not start logging: {error}"))
}
