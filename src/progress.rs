//! Progress on standard error: bars on a terminal, nothing in a pipe.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sphinx_convert::Progress;

use crate::output::note;

/// Sends warnings, and with `-v` what the libraries log, to standard error.
pub fn start_logging(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("SPHINX_LOG").unwrap_or_else(|_| level.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .log_internal_errors(false)
        .init();
}

/// A byte counter with speed and remaining time, and the memory this process holds.
pub struct Bar {
    bar: Mutex<Option<ProgressBar>>,
    shown: bool,
}

impl Bar {
    /// A bar that shows itself only on a terminal and unless it is switched off.
    pub fn new(off: bool) -> Bar {
        Bar { bar: Mutex::new(None), shown: wanted(off) }
    }

    fn with(&self, f: impl FnOnce(&ProgressBar)) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(|e| e.into_inner()).as_ref() {
            f(bar);
        }
    }
}

/// Whether bars are shown at all: on a terminal, unless they are switched off.
fn wanted(off: bool) -> bool {
    !off && std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

fn target(shown: bool) -> ProgressDrawTarget {
    if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

/// A bar that counts `total` things, with the remaining time.
pub fn counter(what: &str, total: u64, off: bool) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {bar:24} {percent:>3} %  {pos} of {len}  ETA {eta}");
    let bar = ProgressBar::with_draw_target(Some(total), target(wanted(off)));
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_prefix(what.to_owned())
}

impl Progress for Bar {
    fn begin(&self, what: &str, total_bytes: u64) {
        let target = target(self.shown);
        let style = ProgressStyle::with_template(
            "{prefix} {bar:24} {percent:>3} %  {bytes:>10} of {total_bytes}  {binary_bytes_per_sec}  ETA {eta}  {msg}",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(total_bytes), target).with_style(style).with_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        *self.bar.lock().unwrap_or_else(|e| e.into_inner()) = Some(bar);
    }

    fn tensor(&self, name: &str, from: &str, to: &str) {
        let memory = sphinx_runtime::Memory::now()
            .map_or(String::new(), |m| format!("  memory {}", crate::table::bytes(m.anonymous_bytes + m.mapped_bytes)));
        self.with(|bar| bar.set_message(format!("{name} {from}→{to}{memory}")));
    }

    fn advance(&self, bytes: u64) {
        self.with(|bar| bar.inc(bytes));
    }

    fn warn(&self, message: &str) {
        let guard = self.bar.lock().unwrap_or_else(|e| e.into_inner());
        match guard.as_ref() {
            Some(bar) => bar.suspend(|| note!("warning: {message}")),
            None => note!("warning: {message}"),
        }
    }

    fn end(&self) {
        self.with(|bar| bar.finish_and_clear());
    }
}
