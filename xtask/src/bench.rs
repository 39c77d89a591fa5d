//! `cargo xtask bench`: the benchmarks.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::setup;
use crate::workspace::{self, Workspace};

/// Runs `cargo bench ARGS` on the benchmarks. The bench profile equals release, and the features are those of the whole
/// workspace, so that nothing below the benchmarks is built again.
pub(crate) fn run(workspace: &Workspace, args: &[OsString]) -> Result<ExitCode> {
    setup::ensure(workspace)?;
    let mut cargo = workspace.cargo(["bench", "--workspace"]);
    cargo.args(workspace.features());
    if !names_benchmarks(args) {
        cargo.args(["--bench", "*"]);
    }
    cargo.args(args);
    workspace::hand_over(cargo)
}

/// Whether cargo's own arguments, those before `--`, choose benchmarks: `*` would add all others.
fn names_benchmarks(args: &[OsString]) -> bool {
    let mut own = args.iter().take_while(|argument| *argument != "--");
    own.any(|argument| argument == "--bench" || argument.as_encoded_bytes().starts_with(b"--bench="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn benchmarks_count_only_before_the_double_dash() {
        for (args, expected) in [
            (&[][..], false),
            (&["--bench", "cache"], true),
            (&["--bench=cache"], true),
            (&["--", "--bench"], false),
        ] {
            let args: Vec<_> = args.iter().map(OsString::from).collect();
            assert_eq!(names_benchmarks(&args), expected, "{args:?}");
        }
    }
}
