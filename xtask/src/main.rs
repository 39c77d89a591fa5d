//! `cargo xtask`: what cargo alone cannot do for Luthier.
//!
//! One file a subcommand; what they share is [`workspace`] (where things lie, how cargo is called) and
//! [`problem`] (errors that know the way out).

mod bench;
mod compare;
mod dist;
mod gpu_kit;
mod lint;
mod pipeline;
mod problem;
mod python;
mod scale;
mod setup;
mod test;
mod workspace;

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use workspace::Workspace;

/// Sets Luthier up, runs it, tests it, checks it and measures it.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Find or fetch libtorch and link it into the workspace
    Setup(setup::Options),
    /// Run `luthier pipeline ARGS`; without ARGS, on the bundled demo data set
    Pipeline {
        /// Arguments for `luthier pipeline`
        args: Vec<OsString>,
    },
    /// Run the tests of the whole workspace
    Test {
        /// Arguments for `cargo test`
        args: Vec<OsString>,
    },
    /// Put the Python package together, and run its tests
    Python(python::Options),
    /// Check format, clippy, documentation and which crate may reach which
    Lint,
    /// Run the benchmarks
    Bench {
        /// Arguments for `cargo bench`
        args: Vec<OsString>,
    },
    /// Measure Luthier beside PyTorch, ONNX Runtime, OpenVINO, Pillow and scikit-learn
    Compare(compare::Options),
    /// Measure what a run costs as the number of images grows
    Scale(scale::Options),
    /// Pack an archive of Luthier that runs on other machines
    Dist(dist::Options),
    /// Pack a folder that measures Luthier on a machine with an NVIDIA GPU
    GpuKit(gpu_kit::Options),
}

impl Command {
    /// The subcommands that run another program.
    const PASSING_ON: [&str; 3] = ["pipeline", "test", "bench"];

    /// Reads the command line. What follows a subcommand of [`Self::PASSING_ON`] belongs to the program behind it, as it
    /// stands: `--help` and `--` too, which clap would take for its own but for the `--` put before them.
    fn from_arguments(mut arguments: Vec<OsString>) -> Result<Self, clap::Error> {
        if arguments
            .get(1)
            .is_some_and(|name| Self::PASSING_ON.iter().any(|passing_on| name == passing_on))
        {
            arguments.insert(2, "--".into());
        }
        Self::try_parse_from(arguments)
    }
}

fn main() -> ExitCode {
    let command = Command::from_arguments(env::args_os().collect()).unwrap_or_else(|error| error.exit());
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            eprint!("{}", problem::render(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let workspace = Workspace::from_env()?;
    match command {
        Command::Setup(options) => setup::run(&workspace, &options),
        Command::Pipeline { args } => pipeline::run(&workspace, &args),
        Command::Test { args } => test::run(&workspace, &args),
        Command::Python(options) => python::run(&workspace, &options),
        Command::Lint => lint::run(&workspace),
        Command::Bench { args } => bench::run(&workspace, &args),
        Command::Compare(options) => compare::run(&workspace, &options),
        Command::Scale(options) => scale::run(&workspace, &options),
        Command::Dist(options) => dist::run(&workspace, &options),
        Command::GpuKit(options) => gpu_kit::run(&workspace, &options),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Command::command().debug_assert();
    }

    #[test]
    fn arguments_are_passed_on_as_they_stand() {
        for line in [
            &[][..],
            &["--help"],
            &["--", "--nocapture"],
            &["-p", "luthier-cli", "--", "--", "-V"],
        ] {
            let typed = ["xtask", "test"].iter().chain(line).map(OsString::from).collect();
            let Ok(Command::Test { args }) = Command::from_arguments(typed) else {
                panic!("{line:?}: not a test")
            };
            assert_eq!(args, line);
        }
    }

    #[test]
    fn own_options_take_no_unknown_arguments() {
        for line in [
            ["xtask", "setup", "--cude"],
            ["xtask", "lint", "-p"],
            ["xtask", "compare", "--round"],
        ] {
            assert!(
                Command::from_arguments(line.map(OsString::from).into()).is_err(),
                "{line:?}"
            );
        }
    }
}
