//! What goes to stdout and stderr, and how the user stops a run.
//!
//! Neither stream may end the work: a message that cannot be written is lost, and a reader of stdout that leaves early,
//! such as `head`, changes neither what is done nor the exit status.

mod interrupts;
mod progress;

use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};

use anyhow::{Context, Result};
use luthier_artifact::file_names;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

pub use interrupts::set_interrupted;
pub(crate) use interrupts::{Stopping, catch_interrupts};
pub(crate) use progress::Progress;

/// Writes to stdout.
///
/// # Errors
/// If it cannot be written. That nobody reads any more is no error.
pub(crate) fn print(text: fmt::Arguments<'_>) -> Result<()> {
    let text = text.to_string();
    match io::stdout().lock().write_all(file_names::shown(&text).as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.context("stdout"),
    }
}

/// Writes a line to stderr, without tearing the bar that may be there. A line that cannot be written is lost.
pub(crate) fn message(line: &str) {
    write_message(format!("{line}\n").as_bytes());
}

fn write_message(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let text = file_names::shown(&text);
    progress::without_bar(|| io::stderr().lock().write_all(text.as_bytes()).ok());
}

/// Whether stderr is a terminal that understands more than lines.
fn is_interactive() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}

/// How much is said on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verbosity {
    /// Errors only.
    Quiet,
    /// Progress, warnings and a summary.
    Normal,
    /// Also how things were decided.
    Verbose,
}

/// Prints the libraries' messages as `warning: …` and `note: …`.
pub(crate) fn show_messages(verbosity: Verbosity) {
    let level = match verbosity {
        Verbosity::Quiet => tracing::Level::ERROR,
        Verbosity::Normal => tracing::Level::INFO,
        Verbosity::Verbose => tracing::Level::DEBUG,
    };
    let wants_colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| Messages)
        .with_ansi(wants_colour && is_interactive())
        .event_format(Plain)
        .init();
}

/// Takes what `tracing` writes, a whole message at a time. It never fails: `tracing` would complain on stderr, and panic.
struct Messages;

impl Write for Messages {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        write_message(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Plain;

impl<S, N> FormatEvent<S, N> for Plain
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        let name = match *event.metadata().level() {
            tracing::Level::ERROR => "error",
            tracing::Level::WARN => "warning",
            _ => "note",
        };
        write!(writer, "{name}: ")?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
