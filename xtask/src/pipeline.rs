//! `cargo xtask pipeline`: builds Luthier as needed and runs its pipeline.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::setup;
use crate::workspace::{self, Workspace};

/// The bundled data set.
const DEMO: [&str; 4] = [
    "--train-dir",
    "fixtures/instruments/train",
    "--test-dir",
    "fixtures/instruments/test",
];

/// Runs `luthier pipeline ARGS` in the current folder or, without `args`, the demo in the workspace root.
pub(crate) fn run(workspace: &Workspace, args: &[OsString]) -> Result<ExitCode> {
    setup::ensure(workspace)?;
    let mut cargo = workspace.cargo(["run", "--release", "--package", "luthier"]);
    // The first build takes minutes and shows its progress; later ones leave the terminal to Luthier.
    if env::current_exe()
        .context("own program file: unknown")?
        .with_file_name("luthier")
        .exists()
    {
        cargo.arg("--quiet");
    }
    cargo.args(["--", "pipeline"]);
    if args.is_empty() {
        // Only the demo may fall back to untrained weights, and only the child knows that this is the demo.
        cargo.args(DEMO).env("LUTHIER_DEMO", "1");
    } else {
        cargo
            .args(args)
            .current_dir(env::current_dir().context("current folder: unknown")?);
    }
    workspace::hand_over(cargo)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_demo_data_set_is_where_the_demo_looks() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for folder in [DEMO[1], DEMO[3]] {
            assert!(root.join(folder).join("violin").is_dir(), "{folder}");
        }
    }
}
