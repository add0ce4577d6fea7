//! The only place that writes to standard output and standard error.

use std::io::{Write, stderr, stdout};

/// A result, to standard output.
pub(crate) fn line(text: &str) {
    let _ = writeln!(stdout(), "{text}");
}

/// What goes on, to standard error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(stderr(), "{text}");
}
