use crate::ExitCode;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

/// Print the manual page, or write the manual pages of all commands into a folder
#[derive(Args)]
#[command(after_help = "Examples:
  luthier man | man -l -
  luthier man ~/.local/share/man/man1 && man luthier-pipeline")]
pub(crate) struct Arguments {
    /// Folder for luthier.1 and a page for each command
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// `cli` is the command line that is described.
pub(crate) fn run(Arguments { folder }: &Arguments, cli: clap::Command) -> Result<ExitCode> {
    match folder {
        Some(folder) => {
            let place = || folder.display().to_string();
            std::fs::create_dir_all(folder).with_context(place)?;
            clap_mangen::generate_to(cli, folder).with_context(place)?;
            outln!("{}", folder.display());
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(cli).render(&mut page)?;
            out!("{}", String::from_utf8(page)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}
