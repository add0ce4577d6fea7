//! How the program ends.

use crate::printer;
use std::process::ExitCode;

/// Exit codes besides 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// Something could not be done.
    Failure = 1,
    /// The command line, or a file of settings that it names, is wrong.
    Usage = 2,
    /// Stopped by Ctrl-C, as shells report it (128 + SIGINT).
    Interrupted = 130,
}

/// An error in the command line or in a file of settings.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It did what it was asked to.
    Done,
    /// Ctrl-C stopped it.
    Interrupted,
}

/// Prints an error, if there is one, and says with which code to exit.
pub(crate) fn code(result: anyhow::Result<Ended>) -> ExitCode {
    let code = match result {
        Ok(Ended::Done) => return ExitCode::SUCCESS,
        Ok(Ended::Interrupted) => Code::Interrupted,
        Err(error) => {
            printer::error(&format!("{error:#}"));
            let usage = error.chain().any(|cause| {
                cause.is::<Usage>()
                    || matches!(
                        cause.downcast_ref(),
                        Some(engine::Error::BatchTooLarge { .. })
                    )
            });
            if usage { Code::Usage } else { Code::Failure }
        }
    };
    ExitCode::from(code as u8)
}
