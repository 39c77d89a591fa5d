//! `cargo xtask lint`: format, clippy, documentation and the edges between crates.

mod edges;
mod one_build;
mod prose;

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::setup;
use crate::workspace::Workspace;

/// Runs every check, the failing ones included, and prints one line for each that passes.
pub(crate) fn run(workspace: &Workspace) -> Result<ExitCode> {
    setup::ensure(workspace)?;
    let mut document = workspace.cargo(["doc", "--release", "--workspace", "--no-deps"]);
    document.args(workspace.features());
    document.env("RUSTDOCFLAGS", "-D warnings");
    let passed = [
        check("format", "cargo fmt --all", || {
            output(workspace.cargo(["fmt", "--all", "--check"]))
        })?,
        check(
            "clippy",
            "mend what it names; `cargo clippy --fix --release --workspace` does some of it",
            || {
                let mut clippy = workspace.cargo(["clippy", "--release", "--workspace", "--all-targets"]);
                clippy.args(workspace.features()).args(["--", "-D", "warnings"]);
                output(clippy)
            },
        )?,
        check(
            "documentation",
            "mend what it names; `cargo doc --workspace --no-deps` shows it again",
            || output(document),
        )?,
        check(
            "crate edges",
            "move the code to a crate that may know it, see ARCHITECTURE.md",
            || edges::violations(workspace),
        )?,
        check(
            "one build",
            "let luthier-cli and xtask ask for these features too, as the workspace's Cargo.toml does for others",
            || one_build::violations(workspace),
        )?,
        check("lines of prose", "break them", || prose::violations(workspace))?,
    ];
    Ok(if passed.iter().all(|&passed| passed) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs one check, which returns what is wrong, or `None`; says whether it passed.
fn check(name: &str, mend: &str, run: impl FnOnce() -> Result<Option<String>>) -> Result<bool> {
    print!("{name}: ");
    io::stdout().flush().context("stdout: not written")?;
    let start = Instant::now();
    match run()? {
        None => {
            println!("ok ({:.1} s)", start.elapsed().as_secs_f64());
            Ok(true)
        }
        Some(findings) => {
            println!("failed\n{}\nhint: {mend}", findings.trim_end());
            Ok(false)
        }
    }
}

/// Everything `command` printed, if it failed.
fn output(mut command: Command) -> Result<Option<String>> {
    if io::stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let output = command
        .output()
        .with_context(|| format!("{}: not started", command.get_program().display()))?;
    if output.status.success() {
        return Ok(None);
    }
    Ok(Some(
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
    ))
}

/// What lies in a folder, ordered by name.
#[expect(clippy::disallowed_methods, reason = "the result is sorted")]
fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{}: not read", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// What `cargo tree` says, a package a line.
fn tree(workspace: &Workspace, args: &[&str]) -> Result<String> {
    let mut cargo = workspace.cargo(["tree", "--prefix", "none"]);
    let output = cargo.args(args).output().context("cargo tree: not started")?;
    ensure!(
        output.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
