//! The only place that writes to standard output and standard error. A reader that goes away (a
//! closed pipe) does not stop the training.

use std::io::{Write, stderr, stdout};

/// A line of a result, to standard output.
pub(crate) fn line(text: &str) {
    let _ = writeln!(stdout(), "{text}");
}

/// A result that brings its own line breaks, to standard output.
pub(crate) fn text(text: &str) {
    let _ = write!(stdout(), "{text}");
    let _ = stdout().flush();
}

/// A line about what goes on, to standard error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(stderr(), "{text}");
}

/// Why the program ends, to standard error.
pub(crate) fn error(text: &str) {
    note(&format!("error: {text}"));
}
