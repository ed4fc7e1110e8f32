//! The `quorate` program: parses what was typed, runs one subcommand, says how it ended.

use std::process::ExitCode;

fn main() -> ExitCode {
    quorate::cli::main(std::env::args_os().collect())
}
