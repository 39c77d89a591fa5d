//! Ctrl-C and its relatives: the first signal ends the run in good order, the second ends it at once.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use super::{is_interactive, message};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The exit status of a run that was interrupted.
const STATUS: i32 = 130;

/// What a command does when it is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopping {
    /// It stores the images that are done, and the next run goes on from there.
    StoresWhatIsDone,
    /// There is nothing to store.
    Stops,
}

pub(super) fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Has whatever runs end in good order, as Ctrl-C does, or no longer: for programs that catch signals themselves.
pub fn set_interrupted(is_interrupted: bool) {
    INTERRUPTED.store(is_interrupted, Ordering::Relaxed);
}

/// Tells the user about the first signal, and ends the process at the second.
fn interrupt(stopping: Stopping) {
    if INTERRUPTED.swap(true, Ordering::Relaxed) {
        exit_at_once();
    }
    // A terminal shows ^C where the cursor is.
    let line_end = if is_interactive() { "\n" } else { "" };
    message(&match stopping {
        Stopping::StoresWhatIsDone => format!("{line_end}interrupted: storing what is done (again to stop at once)"),
        Stopping::Stops => format!("{line_end}interrupted: stopping (again to stop at once)"),
    });
}

/// Listens for Ctrl-C, for the end of the terminal and for `kill`.
///
/// A signal that the parent process had us ignore stays ignored: `nohup` does that to SIGHUP, and a shell without job
/// control does it to SIGINT of what it runs in the background.
#[cfg(unix)]
pub(crate) fn catch_interrupts(stopping: Stopping) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    let ignored = ignored_signals();
    let is_ignored = |signal: &i32| ignored & (1 << (signal - 1)) != 0;
    let caught = [SIGINT, SIGTERM, SIGHUP]
        .into_iter()
        .filter(|signal| !is_ignored(signal));
    let mut signals = Signals::new(caught)?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in signals.forever() {
            interrupt(stopping);
        }
    })?;
    Ok(())
}

#[cfg(not(unix))]
pub(crate) fn catch_interrupts(stopping: Stopping) -> Result<()> {
    Ok(ctrlc::set_handler(move || interrupt(stopping))?)
}

/// Without the destructors of libtorch, whose threads may still be at work.
#[cfg(unix)]
fn exit_at_once() -> ! {
    signal_hook::low_level::exit(STATUS)
}

#[cfg(not(unix))]
fn exit_at_once() -> ! {
    std::process::exit(STATUS)
}

/// The signals that this process ignores: bit n - 1 stands for signal n. What cannot be found out counts as not ignored.
///
/// `sigaction` would tell, but Rust has no safe way to call it.
#[cfg(target_os = "linux")]
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(all(unix, not(target_os = "linux")))]
fn ignored_signals() -> u64 {
    let pid = std::process::id().to_string();
    let output = std::process::Command::new("ps")
        .args(["-o", "sigignore=", "-p", &pid])
        .output();
    let mask = output.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
