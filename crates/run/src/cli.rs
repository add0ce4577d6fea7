//! What the programs print, and their exit codes.
//!
//! The programs print through this module; progress bars, warnings of the log and clap's messages go to standard error
//! as well. A reader that closes the pipe does not stop a program; any other result that cannot be printed is an error.

use std::borrow::Cow;
use std::error::Error;
use std::io::{self, Write, stderr, stdout};
use std::iter;
use std::path::Path;
use std::process::{self, ExitCode, ExitStatus, Termination};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The command did what it was asked to do.
    Success = 0,
    /// The command failed: what it was to work on is there, but is damaged, or something went wrong.
    Failure = 1,
    /// The command line, or a settings file that it names, is wrong, or names something that is not there.
    Usage = 2,
    /// The command was asked to stop: 130 = 128 + SIGINT, as in shells, for every such request.
    Interrupted = 130,
}

impl Exit {
    /// The exit code of a command with this result. Prints the error, if there is one. A process that prints nothing leaves
    /// the exit code to the one that prints.
    pub fn of<E: AsRef<dyn Error>>(result: Result<Self, E>) -> Self {
        if is_silent() {
            return Self::Success;
        }
        let failure = match result {
            Ok(exit) => return exit.or_output_error(),
            Err(failure) => failure,
        };
        error(&message(failure.as_ref()));
        Self::of_error(failure.as_ref())
    }

    /// The exit code of a command that fails with this error.
    #[must_use]
    pub fn of_error(failure: &(dyn Error + 'static)) -> Self {
        let is_usage_error = |cause: &(dyn Error + 'static)| {
            let of_run = cause.downcast_ref::<crate::error::Error>();
            cause.is::<UsageError>() || of_run.is_some_and(crate::error::Error::is_usage_error)
        };
        if chain(failure).any(is_usage_error) {
            Self::Usage
        } else {
            Self::Failure
        }
    }

    /// This, or a failure where a result could not be printed.
    fn or_output_error(self) -> Self {
        match (self, OUTPUT_ERROR.get()) {
            (Self::Success, Some(reason)) => {
                error(&format!("cannot write to standard output: {reason}"));
                Self::Failure
            }
            _ => self,
        }
    }
}

/// An error, its cause, the cause of that, and so on.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |cause| (*cause).source())
}

/// The message of an error with its causes, each once: some errors of libraries repeat their cause.
#[must_use]
pub fn message(error: &(dyn Error + 'static)) -> String {
    chain(error).fold(String::new(), |message, cause| {
        let cause = without_backtrace(&cause.to_string());
        match message.as_str() {
            "" => cause,
            text if text.contains(&cause) => message,
            text => format!("{text}: {cause}"),
        }
    })
}

/// The text without a backtrace, which candle's errors contain where `RUST_BACKTRACE` is set.
fn without_backtrace(text: &str) -> String {
    let is_frame = |line: &&str| {
        let number = line.trim_start().split_once(": ").map(|(number, _)| number);
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    let lines: Vec<_> = text.lines().take_while(|line| !is_frame(line)).collect();
    lines.join("\n")
}

impl From<ExitStatus> for Exit {
    /// The exit code with which a child process ended; [`Exit::Failure`] where a signal ended it.
    fn from(status: ExitStatus) -> Self {
        [Self::Success, Self::Usage, Self::Interrupted]
            .into_iter()
            .find(|exit| status.code() == Some(*exit as i32))
            .unwrap_or(Self::Failure)
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

/// An error in the command line, or in a settings file that it names: the message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// The first error of standard output, apart from a reader that closed the pipe.
static OUTPUT_ERROR: OnceLock<io::Error> = OnceLock::new();

/// Whether nothing is printed.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Prints nothing from now on, or prints again: of several processes that work together, one prints.
pub fn set_silent(silent: bool) {
    SILENT.store(silent, Ordering::SeqCst);
}

/// Whether nothing is printed.
#[must_use]
pub fn is_silent() -> bool {
    SILENT.load(Ordering::SeqCst)
}

/// Prints a line of a result to standard output. If it cannot be written, the program fails in [`Exit::of`].
pub fn line(line: &str) {
    text(&format!("{line}\n"));
}

/// Prints a result that ends with its own line break to standard output, as [`line()`].
pub fn text(text: &str) {
    if is_silent() {
        return;
    }
    let mut stdout = stdout().lock();
    let written = stdout.write_all(printable(text).as_bytes());
    keep_error(written.and_then(|()| stdout.flush()));
}

fn keep_error(written: io::Result<()>) {
    if let Err(error) = written
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        // Only the first one.
        let _ = OUTPUT_ERROR.set(error);
    }
}

/// A command line that is parsed. Otherwise prints the help that was asked for, or what is wrong, and ends the process.
pub fn parse_or_exit<T>(command_line: Result<T, clap::Error>) -> T {
    command_line.unwrap_or_else(|error| {
        if is_silent() {
            process::exit(Exit::Success as i32);
        }
        if error.use_stderr() {
            let text = error.render().to_string();
            match reword_parser_message(&text) {
                Cow::Borrowed(_) => drop(error.print()),
                Cow::Owned(text) => note(text.trim_end()),
            }
            process::exit(Exit::Usage as i32);
        }
        let printed = error.print();
        keep_error(printed);
        process::exit(Exit::Success.or_output_error() as i32)
    })
}

/// Messages of the standard library's number parsers, and what is printed instead.
const PARSER_MESSAGES: [(&str, &str); 4] = [
    (
        "number would be zero for non-zero type",
        "expected an integer of at least 1",
    ),
    (
        "number too large to fit in target type",
        "the number is too large",
    ),
    (
        "invalid digit found in string",
        "expected an integer of at least 0",
    ),
    (
        "cannot parse integer from empty string",
        "expected an integer",
    ),
];

/// A message with the words of Rust's parsers replaced, if it has any.
fn reword_parser_message(message: &str) -> Cow<'_, str> {
    let mut messages = PARSER_MESSAGES.iter();
    match messages.find(|(words, _)| message.contains(words)) {
        Some((words, meaning)) => message.replace(words, meaning).into(),
        None => message.into(),
    }
}

/// Prints a line about progress to standard error.
pub fn note(text: &str) {
    if !is_silent() {
        let _ = writeln!(stderr(), "{}", printable(text));
    }
}

/// Prints the reason why a program fails to standard error.
pub fn error(text: &str) {
    note(&format!("error: {text}"));
}

/// The text with escapes for characters that would control a terminal or change the order of the others, such as those of
/// a file's name. Line breaks and tabs stay. In JSON the escapes are valid.
#[must_use]
pub fn printable(text: &str) -> String {
    let printable = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        // Line separators and directional formatting after the controls.
        '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            format!("\\u{:04x}", u32::from(c))
        }
        c => c.to_string(),
    };
    text.chars().map(printable).collect()
}

/// A name, or a message about one, as [`printable`], on one line.
#[must_use]
pub fn one_line(text: &str) -> String {
    let line = printable(text).replace('\n', "\\n");
    line.replace('\t', "\\t")
}

/// A path as a word of a command that is printed, to be pasted into a shell.
#[must_use]
pub fn quoted(path: &Path) -> String {
    let mut text = path.display().to_string();
    if text.starts_with('-') {
        // Not a flag.
        text.insert_str(0, "./");
    }
    quoted_word(&text)
}

/// A word of a command that is printed, such as [`quoted`].
#[must_use]
pub fn quoted_word(text: &str) -> String {
    if cfg!(windows) {
        // Double quotes work in cmd and PowerShell, except for `$`, `` ` `` and `%`, and are no part of a path.
        let plain = |c: char| c.is_alphanumeric() || "-_.+:/\\".contains(c);
        return match text.chars().all(plain) {
            true => text.to_owned(),
            false => format!("\"{text}\""),
        };
    }
    // No argument has the character NUL, which cannot be quoted.
    shlex::try_quote(text).map_or_else(|_| text.to_owned(), Cow::into_owned)
}

/// The command that resumes a run.
#[must_use]
pub fn resume_command(run: &Path) -> String {
    format!("cargo run -p trainer -- --resume {}", quoted(run))
}

/// A number with four digits that count, and no more than needed.
#[must_use]
pub fn four_digits(number: f64) -> f64 {
    format!("{number:.3e}").parse().unwrap_or(number)
}

/// A number of things: `1 thread`, `2 threads`.
#[must_use]
pub fn count(number: usize, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt;

    /// An error with a cause.
    #[derive(Debug)]
    struct Context(Box<dyn Error>);

    impl fmt::Display for Context {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("cannot start")
        }
    }

    impl Error for Context {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(self.0.as_ref())
        }
    }

    impl AsRef<dyn Error> for Context {
        fn as_ref(&self) -> &(dyn Error + 'static) {
            self
        }
    }

    #[test]
    fn learning_rates_are_short() {
        for (rate, text) in [(0.01, "0.01"), (7.0 / 1200.0, "0.005833"), (0.0, "0")] {
            assert_eq!(four_digits(rate).to_string(), text);
        }
    }

    #[test]
    fn exit_code_2_is_for_usage_errors_and_those_they_cause() {
        let result = |cause: Box<dyn Error>| Exit::of(Err(Context(cause)));
        let usage = UsageError("--epochs 0".to_owned());
        assert_eq!(result(Box::new(Context(usage.into()))), Exit::Usage);
        assert_eq!(result("disk full".into()), Exit::Failure);
        assert_eq!(
            Exit::of(Ok::<_, Context>(Exit::Interrupted)),
            Exit::Interrupted
        );
    }

    #[cfg(unix)]
    #[test]
    fn paths_are_quoted_for_the_shell() {
        for path in [
            "runs/a",
            "my runs/a",
            "it's",
            "$HOME/`id`",
            "\"a\"",
            "-r/a",
            "a;b & c",
            "\u{e9} \u{e9}",
            "!x",
        ] {
            let quoted = quoted(Path::new(path));
            let words = shlex::split(&quoted).unwrap();
            assert_eq!(words.len(), 1, "{quoted}");
            assert_eq!(words[0].trim_start_matches("./"), path, "{quoted}");
        }
        assert_eq!(quoted(Path::new("runs/a-1_2.x")), "runs/a-1_2.x");
    }

    #[test]
    fn control_characters_are_escaped() {
        for (text, expected) in [
            ("a\tb\nc \u{e9}", "a\tb\nc \u{e9}"),
            ("\x1b[2J\r", "\\u001b[2J\\u000d"),
            ("\u{9b}\u{202e}", "\\u009b\\u202e"),
        ] {
            assert_eq!(printable(text), expected);
        }
        assert_eq!(one_line("a\tb\nc\r"), "a\\tb\\nc\\u000d");
    }

    #[test]
    fn each_reason_is_given_once() {
        let context = |cause: &str| Context(cause.into());
        assert_eq!(message(&context("disk full")), "cannot start: disk full");
        assert_eq!(
            message(&context("cannot start: no file")),
            "cannot start: cannot start: no file"
        );
        // What libraries do whose errors contain their cause.
        let repeated = UsageError("disk full: out of space".to_owned());
        #[derive(Debug, thiserror::Error)]
        #[error("cannot write: {0}")]
        struct Repeating(#[source] UsageError);
        assert_eq!(
            message(&Repeating(repeated)),
            "cannot write: disk full: out of space"
        );
    }

    #[test]
    fn backtraces_are_no_part_of_a_message() {
        let backtrace = std::backtrace::Backtrace::force_capture();
        let error = UsageError(format!("no memory\n{backtrace}"));
        assert_eq!(message(&error), "no memory");
        assert_eq!(
            message(&UsageError("line 1\nline 2: 3".to_owned())),
            "line 1\nline 2: 3"
        );
    }
}
