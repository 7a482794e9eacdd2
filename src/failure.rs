//! Errors become one line and an exit code.

use std::process::ExitCode;

use sphinx_convert::error::ConvertError;
use sphinx_quant::error::{one_line, printable};
use sphinx_quant::{ErrorKind, QuantError};
use sphinx_runtime::RuntimeError;
use sphinx_targets::TargetError;

use crate::output::note;

/// A failure that a command itself found, with the meaning that decides the exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    kind: ErrorKind,
    message: String,
}

impl Failure {
    /// The command line asks for something that makes no sense.
    pub fn usage(message: impl Into<String>) -> anyhow::Error {
        Failure { kind: ErrorKind::Usage, message: message.into() }.into()
    }

    /// A verification did not hold.
    pub fn verify(message: impl Into<String>) -> anyhow::Error {
        Failure { kind: ErrorKind::Verify, message: message.into() }.into()
    }

    /// An input is invalid.
    pub fn invalid(message: impl Into<String>) -> anyhow::Error {
        Failure { kind: ErrorKind::Invalid, message: message.into() }.into()
    }

    /// A read or write failed.
    pub fn io(path: &std::path::Path, error: &std::io::Error) -> anyhow::Error {
        let message = format!("{}: {error} — check the path, its permissions and the free space", path.display());
        Failure { kind: ErrorKind::Io, message }.into()
    }
}

/// What `error` means; anything that no crate of ours classified is a bug of ours.
fn kind(error: &anyhow::Error) -> ErrorKind {
    for cause in error.chain() {
        if let Some(e) = cause.downcast_ref::<Failure>() {
            return e.kind;
        } else if let Some(e) = cause.downcast_ref::<RuntimeError>() {
            return e.kind();
        } else if let Some(e) = cause.downcast_ref::<ConvertError>() {
            return e.kind();
        } else if let Some(e) = cause.downcast_ref::<QuantError>() {
            return e.kind();
        } else if let Some(e) = cause.downcast_ref::<TargetError>() {
            return e.kind();
        } else if let Some(e) = cause.downcast_ref::<std::io::Error>() {
            return if e.kind() == std::io::ErrorKind::BrokenPipe { ErrorKind::Interrupted } else { ErrorKind::Io };
        }
    }
    ErrorKind::Internal
}

/// The exit code of the contract.
fn code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Internal => 1,
        ErrorKind::Usage => 2,
        ErrorKind::Invalid => 3,
        ErrorKind::Io => 4,
        ErrorKind::Budget => 5,
        ErrorKind::Verify => 6,
        ErrorKind::Interrupted => 130,
    }
}

/// Prints `error` on one line of standard error and gives its exit code.
pub fn report(error: &anyhow::Error, json: bool) -> ExitCode {
    let kind = kind(error);
    let code = code(kind);
    if reader_left(error) {
        return ExitCode::SUCCESS;
    }
    let text = line(error);
    if json {
        note!("{}", serde_json::json!({ "error": text, "kind": format!("{kind:?}").to_lowercase(), "code": code }));
    } else {
        note!("error: {text}");
    }
    ExitCode::from(code)
}

/// Whether nobody reads standard output any more: `sphinx inspect … | head` is no failure.
pub fn reader_left(error: &anyhow::Error) -> bool {
    error.chain().any(|c| c.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe))
}

/// `error` and its causes in one printable line. A name out of a file may hold anything; the terminal does not see it.
pub fn line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text += if text.is_empty() { "" } else { ": " };
            text += &cause;
        }
    }
    one_line(&text)
}

/// Prints help, or what is wrong with the command line in one line.
pub fn usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if !error.use_stderr() || error.kind() == DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    let json = std::env::args_os().any(|a| a == "--json-errors");
    report(&Failure::usage(usage_line(&error.render().to_string())), json)
}

/// The message of an error of clap's, in one line: `what — what to do`.
fn usage_line(rendered: &str) -> String {
    let told = rendered.split("\nUsage:").next().unwrap_or_default().split("\nFor more information").next().unwrap_or_default();
    let told = told.trim_start_matches("error: ").split("\n\n").map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
    let mut parts: Vec<String> = told.filter(|part| !part.is_empty()).collect();
    if parts.len() < 2 {
        parts.push("try --help".into());
    }
    parts.join(" — ")
}

/// Makes a panic, which is a bug of ours, one line of standard error; `RUST_BACKTRACE` still gives the whole story.
pub fn announce_panics() {
    let whole = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|v| v != "0") {
            whole(info);
        }
        let place = info.location().map_or(String::new(), |l| format!(" at {}:{}", l.file(), l.line()));
        let payload = info.payload();
        let what = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let what = what.unwrap_or("no message");
        note!("error: a bug in this program{place}: {} — please report it", one_line(what));
    }));
}

/// The exit code after a panic.
pub fn panicked() -> ExitCode {
    ExitCode::from(code(ErrorKind::Internal))
}

/// A path, safe to print in a line.
pub fn shown(path: &std::path::Path) -> String {
    printable(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once_and_in_one_line() {
        let io = || std::io::Error::other("no\u{1b}[31m luck");
        let error = anyhow::Error::new(io()).context("reading \"a\nb\"");
        assert_eq!(line(&error), "reading \"a\\nb\": no\\u{1b}[31m luck");
        let error = anyhow::Error::new(ConvertError::io("x".as_ref(), io()));
        assert_eq!(line(&error), "x: no\\u{1b}[31m luck — check the path, its permissions and the free space");
    }

    #[test]
    fn errors_of_the_command_line_fit_one_line() {
        use clap::Parser;
        let line = |args: &[&str]| {
            let error = crate::arguments::Cli::try_parse_from([&["sphinx"], args].concat()).expect_err("a wrong command line");
            usage_line(&error.render().to_string())
        };
        assert_eq!(line(&["run", "x.gguf"]), "the following required arguments were not provided: --prompt <TEXT> — try --help");
        assert_eq!(line(&["frobnicate"]), "unrecognized subcommand 'frobnicate' — try --help");
        let kv = line(&["run", "x.gguf", "-p", "x", "--kv", "f17"]);
        assert!(kv.contains("[possible values: f32, f16") && kv.contains(" — tip: a similar value exists: 'f16'"), "{kv}");
    }

    #[test]
    fn the_first_error_of_ours_decides() {
        let inner = QuantError::Internal("x".into());
        assert_eq!(kind(&anyhow::Error::new(inner).context("while y")), ErrorKind::Internal);
        assert_eq!(kind(&Failure::usage("x").context("y")), ErrorKind::Usage);
        assert_eq!(kind(&anyhow::Error::new(std::io::Error::other("x"))), ErrorKind::Io);
        assert_eq!(kind(&anyhow::anyhow!("x")), ErrorKind::Internal);
    }
}
