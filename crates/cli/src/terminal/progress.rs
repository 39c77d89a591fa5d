//! Progress on stderr: a bar on a terminal, a line every ten seconds elsewhere.

use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use luthier_extract::{Observer, Task};

use super::{Verbosity, interrupts, is_interactive, message};
use luthier::About;

/// How often a line is printed where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Narrower terminals get no bar and no rate.
const ROOMY: u16 = 72;

/// The bar that is on the terminal: there is one at most.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn bar() -> MutexGuard<'static, Option<ProgressBar>> {
    BAR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does something while the bar, if there is one, is not on the terminal.
pub(super) fn without_bar<T>(work: impl FnOnce() -> T) -> T {
    // Clones are the same bar. The lock is not held meanwhile.
    let shown = bar().clone();
    match shown {
        Some(bar) => bar.suspend(work),
        None => work(),
    }
}

/// Shows how work proceeds, as much of it as the user wants to see.
#[derive(Debug)]
pub(crate) struct Progress {
    verbosity: Verbosity,
}

impl Progress {
    pub(crate) fn new(verbosity: Verbosity) -> Self {
        Progress { verbosity }
    }

    /// Whether the user wants to see everything.
    pub(crate) fn is_verbose(&self) -> bool {
        self.verbosity == Verbosity::Verbose
    }

    /// Prints a line unless the user wants quiet.
    pub(crate) fn say(&self, line: &str) {
        if self.verbosity > Verbosity::Quiet {
            message(line);
        }
    }

    /// Prints a line that the user has to see even with `--quiet`.
    pub(crate) fn complain(&self, line: &str) {
        message(line);
    }
}

impl Observer for Progress {
    fn task(&self, what: &str, total: u64) -> Box<dyn Task + '_> {
        if self.verbosity == Verbosity::Quiet {
            Box::new(())
        } else if is_interactive() {
            Box::new(Bar::show(&Work::new(what, total)))
        } else {
            Box::new(Lines::new(Work::new(what, total)))
        }
    }

    fn is_interrupted(&self) -> bool {
        interrupts::is_interrupted()
    }
}

/// What is to be done.
struct Work {
    what: String,
    total: Option<u64>,
    is_bytes: bool,
}

impl Work {
    fn new(what: &str, total: u64) -> Self {
        let of_bytes = what.strip_prefix("bytes of ");
        Work {
            what: of_bytes.unwrap_or(what).to_owned(),
            total: (total > 0).then_some(total),
            is_bytes: of_bytes.is_some(),
        }
    }

    /// The template of a bar on a terminal of this many columns. The name comes last, because it can be cut off.
    fn template(&self, columns: u16) -> String {
        let (done, total, rate) = if self.is_bytes {
            ("{bytes}", "{total_bytes}", "{binary_bytes_per_sec}")
        } else {
            ("{human_pos}", "{human_len}", "{rate}")
        };
        match (self.total, columns < ROOMY) {
            (None, _) => format!("{done} ({rate}) {{wide_msg}}"),
            (Some(_), true) => format!("{done}/{total} ({{eta}} left) {{wide_msg}}"),
            (Some(_), false) => format!("{{bar:24}} {done}/{total} ({rate}, {{eta}} left) {{wide_msg}}"),
        }
    }

    /// How far the work is after some seconds, in a line.
    fn line(&self, done: u64, seconds: f64) -> String {
        let count = |n: u64| match self.is_bytes {
            true => BinaryBytes(n).to_string(),
            false => HumanCount(n).to_string(),
        };
        let per_second = done as f64 / seconds;
        let mut rate = match self.is_bytes {
            true => format!("{}/s", BinaryBytes(per_second as u64)),
            false => rate(per_second),
        };
        let mut line = count(done);
        if let Some(total) = self.total {
            let left = total.saturating_sub(done) as f64 / per_second;
            let _ = write!(line, "/{}", count(total));
            let _ = write!(rate, ", {} left", About(left));
        }
        let of = if self.is_bytes { " of" } else { "" };
        format!("{line}{of} {} ({rate})", self.what)
    }
}

/// Units a second, with as many digits as tell something.
fn rate(per_second: f64) -> String {
    match per_second {
        per_second if per_second < 1.0 => format!("{per_second:.2}/s"),
        per_second if per_second < 10.0 => format!("{per_second:.1}/s"),
        per_second => format!("{}/s", HumanCount(per_second.round() as u64)),
    }
}

/// Work shown by a bar, which goes when the work ends.
struct Bar(ProgressBar);

impl Bar {
    fn show(work: &Work) -> Self {
        let (_, columns) = console::Term::stderr().size();
        let style = ProgressStyle::with_template(&work.template(columns))
            .expect("the template is right")
            .with_key("rate", |state: &ProgressState, text: &mut dyn std::fmt::Write| {
                let _ = text.write_str(&rate(state.per_sec()));
            });
        let new = ProgressBar::with_draw_target(work.total, ProgressDrawTarget::stderr())
            .with_style(style)
            .with_message(work.what.clone());
        *bar() = Some(new.clone());
        Bar(new)
    }
}

impl Task for Bar {
    fn advance(&self, units: u64) {
        self.0.inc(units);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // In this order: a message in between must not stand beside the bar.
        self.0.finish_and_clear();
        *bar() = None;
    }
}

/// Work shown by lines.
struct Lines {
    work: Work,
    since: Instant,
    state: Mutex<LinesState>,
}

struct LinesState {
    done: u64,
    printed: Instant,
}

impl Lines {
    fn new(work: Work) -> Self {
        let since = Instant::now();
        Lines {
            work,
            since,
            state: Mutex::new(LinesState {
                done: 0,
                printed: since,
            }),
        }
    }
}

impl Task for Lines {
    fn advance(&self, units: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.done += units;
        if state.printed.elapsed() >= LINE_INTERVAL {
            state.printed = Instant::now();
            message(&self.work.line(state.done, self.since.elapsed().as_secs_f64()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_how_far_the_work_is() {
        let images = Work::new("images embedded", 26_715);
        assert_eq!(
            images.line(12_000, 10.0),
            "12,000/26,715 images embedded (1,200/s, about 12 s left)"
        );
        let unknown = Work::new("images", 0);
        assert_eq!(unknown.line(3, 10.0), "3 images (0.30/s)");
        let download = Work::new("bytes of resnet50-imagenet1k-v1", 102_469_840);
        assert_eq!(
            download.line(3 << 20, 2.0),
            "3.00 MiB/97.72 MiB of resnet50-imagenet1k-v1 (1.50 MiB/s, about 63 s left)"
        );
    }

    #[test]
    fn rates_have_as_many_digits_as_tell_something() {
        let rates = [0.0, 0.254, 3.12, 26.7, 26_715.26].map(rate);
        assert_eq!(rates, ["0.00/s", "0.25/s", "3.1/s", "27/s", "26,715/s"]);
    }

    #[test]
    fn a_narrow_terminal_gets_no_bar() {
        let work = Work::new("images embedded", 400);
        assert!(work.template(80).contains("{bar:24}"));
        assert_eq!(work.template(50), "{human_pos}/{human_len} ({eta} left) {wide_msg}");
    }
}
