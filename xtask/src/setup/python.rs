//! The Python that downloads and unpacks wheels.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::problem::problem;

/// Prints the folder of the Python package torch, which takes seconds to import, without importing it.
const TORCH_FOLDER: &str = "from importlib.util import find_spec; \
                            spec = find_spec('torch'); \
                            print(spec.submodule_search_locations[0] if spec else '')";

/// A Python interpreter, there or not.
pub(super) struct Python<'a> {
    program: &'a Path,
}

impl<'a> Python<'a> {
    pub(super) fn new(program: &'a Path) -> Self {
        Self { program }
    }

    /// Major and minor version, or `None` if there is no such program.
    pub(super) fn version(&self) -> Option<(u32, u32)> {
        let text = self.answer("import sys; print(*sys.version_info[:2])")?;
        let (major, minor) = text.split_once(' ')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    }

    /// Whether `python3 -m pip` runs.
    pub(super) fn has_pip(&self) -> bool {
        let mut pip = Command::new(self.program);
        pip.args(["-m", "pip", "--version"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        pip.status().is_ok_and(|status| status.success())
    }

    /// The folder of the installed package torch.
    pub(super) fn torch_folder(&self) -> Result<PathBuf> {
        let folder = self.answer(TORCH_FOLDER).filter(|folder| !folder.is_empty());
        folder.map(PathBuf::from).ok_or_else(|| {
            let message = format!("LIBTORCH_USE_PYTORCH: {}: has no package torch", self.program.display());
            problem(
                message,
                ["unset LIBTORCH_USE_PYTORCH to have libtorch fetched, or activate the environment meant"],
            )
        })
    }

    /// Runs `python3 ARGS` with a hold on `lock`, its output going to stderr: stdout is for results.
    ///
    /// The hold is an open file, passed as the input that nobody reads: should this process be killed, the lock lasts
    /// until Python has ended too, so that the next setup does not work in the same folder as the orphan.
    pub(super) fn run<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I, lock: &File) -> Result<()> {
        let lock = lock.try_clone().context("lock: not passed on")?;
        let mut command = Command::new(self.program);
        command.args(args).stdin(lock).stdout(io::stderr());
        let status = command
            .status()
            .with_context(|| format!("{}: not started", self.program.display()))?;
        ensure!(status.success(), "{}: {status}", self.program.display());
        Ok(())
    }

    fn answer(&self, code: &str) -> Option<String> {
        let output = Command::new(self.program)
            .args(["-c", code])
            .stdin(Stdio::null())
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

#[cfg(all(test, unix))]
pub(super) mod tests {
    use std::fs;

    use super::*;

    /// Makes a program of the shell script `body`.
    ///
    /// Another process writes it: a test in another thread that starts a program at this moment would inherit the file
    /// open for writing, and the system refuses to start a program that anyone is writing (ETXTBSY).
    pub(in super::super) fn script(path: &Path, body: &str) {
        let text = path.with_added_extension("sh");
        fs::write(&text, format!("#!/bin/sh\n{body}\n")).unwrap();
        let status = Command::new("install")
            .args(["-m", "755"])
            .arg(&text)
            .arg(path)
            .status()
            .unwrap();
        assert!(status.success());
        fs::remove_file(text).unwrap();
    }

    #[test]
    fn what_is_printed_is_the_answer_and_a_failure_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("python3");
        assert_eq!(Python::new(&program).version(), None);
        for (body, expected) in [
            ("echo 3 12", Some((3, 12))),
            ("echo 3 12; exit 1", None),
            ("echo Python", None),
        ] {
            script(&program, body);
            assert_eq!(Python::new(&program).version(), expected, "{body}");
        }
    }

    #[test]
    fn a_python_without_torch_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("python3");
        script(&program, "echo");
        let error = Python::new(&program).torch_folder().unwrap_err().to_string();
        assert!(error.contains("has no package torch"), "{error}");
        script(&program, "echo /site-packages/torch");
        assert_eq!(
            Python::new(&program).torch_folder().unwrap(),
            Path::new("/site-packages/torch")
        );
    }
}
