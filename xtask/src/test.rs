//! `cargo xtask test`: the tests of the whole workspace.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::setup;
use crate::workspace::{self, Workspace};

/// Runs `cargo test ARGS` in the one profile that everything shares, on the whole workspace, with the features
/// that the machine has the libraries for, unless `args` name packages.
pub(crate) fn run(workspace: &Workspace, args: &[OsString]) -> Result<ExitCode> {
    setup::ensure(workspace)?;
    let mut cargo = workspace.cargo(["test", "--release"]);
    if !names_packages(args) {
        cargo.arg("--workspace").args(workspace.features());
    }
    cargo.args(args);
    workspace::hand_over(cargo)
}

/// Whether cargo's own arguments, those before `--`, choose packages: `--workspace` would overrule them.
fn names_packages(args: &[OsString]) -> bool {
    let own = args.iter().take_while(|argument| *argument != "--");
    own.map(|argument| argument.as_encoded_bytes())
        .any(|argument| argument.starts_with(b"-p") || argument.starts_with(b"--package"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_count_only_before_the_double_dash() {
        for (args, expected) in [
            (&[][..], false),
            (&["-p", "xtask"], true),
            (&["-pxtask"], true),
            (&["--lib", "--package=xtask"], true),
            (&["--profile", "bench"], false),
            (&["--", "-p"], false),
        ] {
            let args: Vec<_> = args.iter().map(OsString::from).collect();
            assert_eq!(names_packages(&args), expected, "{args:?}");
        }
    }
}
