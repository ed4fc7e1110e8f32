//! What a person sees: standard output that survives a reader who leaves, colours, the terminal's width.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Context as _;

/// When to use colours.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    /// Whether standard output gets colours.
    pub(super) fn wanted(self) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
                is_terminal() && !refused && !dumb
            }
        }
    }
}

/// Whether a person looks at standard output directly.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Columns of the terminal; `None` when there is none, and lines are then as long as they are.
pub(super) fn width() -> Option<usize> {
    terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0))
}

/// The reader of our output left (`| head`): not a failure, but a reason to stop.
#[derive(thiserror::Error, Debug)]
#[error("nobody reads the output")]
struct ReaderLeft;

/// Writes to standard output at once.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderLeft.into()),
        written => written.context("could not write to standard output"),
    }
}

/// Whether the error is only that nobody reads our output any more.
pub(super) fn reader_left(error: &anyhow::Error) -> bool {
    error.is::<ReaderLeft>()
}

/// Writes lines to standard error; if even that is closed there is nobody left to tell.
pub(super) fn complain(text: &str) {
    let mut output = io::stderr().lock();
    let written = writeln!(output, "{text}");
    drop(written);
}
