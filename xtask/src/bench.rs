//! `cargo xtask bench`: the benchmarks.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::setup;
use crate::workspace::{self, Workspace};

/// Runs `cargo bench ARGS` on the benchmarks; the bench profile equals release, so torch-sys is not built again.
pub(crate) fn run(workspace: &Workspace, args: &[OsString]) -> Result<ExitCode> {
    setup::ensure(workspace)?;
    let mut cargo = workspace.cargo(["bench", "--package", "luthier-benches"]);
    cargo.args(args);
    workspace::hand_over(cargo)
}
