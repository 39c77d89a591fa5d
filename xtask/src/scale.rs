//! `cargo xtask scale`: what a run costs as the number of images grows. The measuring is done by `benches/scale`.

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::setup;
use crate::workspace::{self, Workspace};

/// What `cargo xtask scale` can be asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many images; a million take 25 GB of disk
    #[arg(default_values_t = [10_000, 100_000])]
    images: Vec<usize>,
    /// A folder for images and caches, which are removed in the end
    #[arg(long, value_name = "DIR", default_value_os_t = env::temp_dir().join("luthier-scale"))]
    dir: PathBuf,
}

/// Builds, and measures.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    setup::ensure(workspace)?;
    workspace.build_measuring_programs()?;
    let program = workspace::own_neighbour("luthier-scale")?;
    let mut command = Command::new(program);
    command
        .arg(&options.dir)
        .args(options.images.iter().map(ToString::to_string));
    workspace::hand_over(command)
}
