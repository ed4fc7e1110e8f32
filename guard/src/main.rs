//! The edge: environment and arguments in, exit code out.

use std::env;
use std::path::Path;
use std::process::ExitCode;

use quorate_guard::guard::{self, Ending};
use quorate_guard::{install, log};

/// `EX_USAGE` of sysexits: called in a way that is neither of the two below.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [verb, directory] if verb == "install" => match install::install(Path::new(directory)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                log::error(&log::chain(&error));
                ExitCode::FAILURE
            }
        },
        [dashes, command @ ..] if dashes == "--" => end(guard::run(&|name| env::var_os(name), command)),
        _ => {
            log::error("usage: quorate-guard -- etcd ARGUMENT…, or: quorate-guard install DIRECTORY");
            ExitCode::from(USAGE)
        }
    }
}

/// Ends as etcd ended. A signal is raised again, so that whoever waits sees the same; process 1 of a container
/// cannot be ended by its own signal and gives the shell's number instead.
fn end(ending: Ending) -> ExitCode {
    match ending {
        Ending::Exit(code) => ExitCode::from(code),
        Ending::Signal(signal) => {
            if std::process::id() != 1
                && let Err(error) = signal_hook::low_level::emulate_default_handler(signal)
            {
                log::error(&format!("could not end by signal {signal}: {error}"));
            }
            ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX))
        }
    }
}
