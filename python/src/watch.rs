//! Work beside the interpreter, which Ctrl-C ends.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Mutex, MutexGuard, OnceLock, TryLockError};
use std::thread;
use std::time::Duration;

use luthier_artifact::{Observer, Task};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::Error;

/// The process that first did some work.
static PROCESS: OnceLock<u32> = OnceLock::new();

/// How often Python is asked whether somebody has pressed Ctrl-C.
const ASK: Duration = Duration::from_millis(50);

/// Whether work is to end.
#[derive(Default)]
pub(crate) struct Flag(AtomicBool);

impl Flag {
    pub(crate) fn set(&self, is_interrupted: bool) {
        self.0.store(is_interrupted, Ordering::Relaxed);
    }
}

/// Waits for another thread that uses the same, unless the flag is set meanwhile.
pub(crate) fn wait_for<'a, T>(mutex: &'a Mutex<T>, flag: &Flag) -> Option<MutexGuard<'a, T>> {
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if flag.is_interrupted() => return None,
            Err(TryLockError::WouldBlock) => thread::sleep(ASK / 10),
        }
    }
}

impl Observer for Flag {
    fn task(&self, _: &str, _: u64) -> Box<dyn Task + '_> {
        Box::new(())
    }

    fn is_interrupted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Does something on another thread, without the interpreter. `interrupt` is told when Python has an exception to raise,
/// such as `KeyboardInterrupt`: then the work is to end, and the exception is raised.
pub(crate) fn until_interrupted<T: Send>(
    py: Python<'_>,
    interrupt: impl Fn(bool) + Sync,
    work: impl FnOnce() -> T + Send,
) -> PyResult<T> {
    // Threads do not live on in the child of a fork, and what waits for them would wait for ever.
    if *PROCESS.get_or_init(process::id) != process::id() {
        return Err(Error::new_err(
            "used before this process was forked: start processes with the method spawn or forkserver",
        ));
    }
    interrupt(false);
    py.detach(|| {
        thread::scope(|scope| {
            let (done, wait) = sync_channel::<()>(0);
            let worker = scope.spawn(move || {
                let _done = done;
                work()
            });
            let mut exception = None;
            // The channel closes when the work ends, also by a panic.
            while let Err(RecvTimeoutError::Timeout) = wait.recv_timeout(ASK) {
                if exception.is_none() {
                    exception = match Python::try_attach(|py| py.check_signals()) {
                        Some(Ok(())) => continue,
                        Some(Err(exception)) => Some(exception),
                        // The interpreter ends.
                        None => Some(PyRuntimeError::new_err("interrupted")),
                    };
                    interrupt(true);
                }
            }
            let result = worker.join();
            interrupt(false);
            match (exception, result) {
                (Some(exception), _) => Err(exception),
                (None, result) => result.map_err(|_| PyRuntimeError::new_err("luthier has panicked: see stderr")),
            }
        })
    })
}
