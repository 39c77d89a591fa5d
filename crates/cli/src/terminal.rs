//! What the user sees while work goes on, and how the user stops it. Everything here goes to stderr.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use luthier_extract::Observer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// How often a line is printed where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes the first Ctrl-C end the run once what is done is stored, and the second end it at once.
pub(crate) fn catch_interrupts() -> Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\ninterrupted: storing what is done (again to stop at once)");
    })?;
    Ok(())
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

/// Prints the libraries' messages as `warning: …`.
pub(crate) fn show_messages(verbosity: Verbosity) {
    let level = match verbosity {
        Verbosity::Quiet => tracing::Level::ERROR,
        Verbosity::Normal => tracing::Level::WARN,
        Verbosity::Verbose => tracing::Level::DEBUG,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .event_format(Plain)
        .init();
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
    ) -> std::fmt::Result {
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

/// Progress on stderr: a bar on a terminal, a line every ten seconds elsewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    verbosity: Verbosity,
    bar: Mutex<ProgressBar>,
    lines: Mutex<Lines>,
    done: AtomicU64,
}

#[derive(Debug)]
struct Lines {
    what: String,
    total: u64,
    since: Instant,
    last: Instant,
}

impl Progress {
    pub(crate) fn new(verbosity: Verbosity) -> Self {
        let now = Instant::now();
        Progress {
            verbosity,
            bar: Mutex::new(ProgressBar::hidden()),
            lines: Mutex::new(Lines {
                what: String::new(),
                total: 0,
                since: now,
                last: now,
            }),
            done: AtomicU64::new(0),
        }
    }

    /// Whether the user wants to see everything.
    pub(crate) fn is_verbose(&self) -> bool {
        self.verbosity == Verbosity::Verbose
    }

    /// Prints a line unless the user wants quiet, without tearing the bar.
    pub(crate) fn say(&self, line: &str) {
        if self.verbosity > Verbosity::Quiet {
            self.complain(line);
        }
    }

    /// Prints a line that even who wants quiet has to see, without tearing the bar.
    pub(crate) fn complain(&self, line: &str) {
        self.bar
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .suspend(|| eprintln!("{line}"));
    }
}

impl Observer for Progress {
    fn begin(&self, what: &str, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        let now = Instant::now();
        *self.lines.lock().unwrap_or_else(PoisonError::into_inner) = Lines {
            what: what.to_owned(),
            total,
            since: now,
            last: now,
        };
        if self.verbosity == Verbosity::Quiet || total == 0 || !std::io::stderr().is_terminal() {
            return;
        }
        let count = if what.starts_with("bytes") {
            "{bytes}/{total_bytes} ({binary_bytes_per_sec}"
        } else {
            "{human_pos}/{human_len} ({per_sec}"
        };
        let style = ProgressStyle::with_template(&format!("{{bar:32}} {count}, {{eta}} left) {{msg}}"))
            .expect("the template is right");
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style);
        bar.set_message(what.to_owned());
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = bar;
    }

    fn advance(&self, units: u64) {
        let done = self.done.fetch_add(units, Ordering::Relaxed) + units;
        self.bar.lock().unwrap_or_else(PoisonError::into_inner).inc(units);
        if self.verbosity == Verbosity::Quiet || std::io::stderr().is_terminal() {
            return;
        }
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.last.elapsed() >= LINE_INTERVAL {
            lines.last = Instant::now();
            let rate = done as f64 / lines.since.elapsed().as_secs_f64();
            let left = (lines.total.saturating_sub(done)) as f64 / rate;
            eprintln!("{done}/{} {} ({rate:.1}/s, {left:.0} s left)", lines.total, lines.what);
        }
    }

    fn end(&self) {
        self.bar
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .finish_and_clear();
    }

    fn is_interrupted(&self) -> bool {
        INTERRUPTED.load(Ordering::Relaxed)
    }
}
