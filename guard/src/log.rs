//! The guard's own lines, in the shape of etcd's: one JSON object a line on standard error.

use std::error::Error;
use std::io::{self, Write};

/// Something changed.
pub fn info(message: &str) {
    write("info", message);
}

/// The guard does something else because of this.
pub fn warn(message: &str) {
    write("warn", message);
}

/// A person must act.
pub fn error(message: &str) {
    write("error", message);
}

/// An error with everything that led to it.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

/// A log that cannot be written is no reason to stop a database: the line is lost.
fn write(level: &str, message: &str) {
    let line = serde_json::json!({"level": level, "caller": "quorate-guard", "msg": message});
    drop(writeln!(io::stderr(), "{line}"));
}
