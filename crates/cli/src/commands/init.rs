use std::fs::File;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::problem::Problem;
use crate::settings::TEMPLATE;
use crate::terminal::Progress;

/// Writes luthier.toml into the current folder, with every setting, its default and what it means, commented out.
#[derive(Args)]
#[command(after_help = "Example:\n  luthier init && $EDITOR luthier.toml && luthier pipeline")]
pub(crate) struct Arguments {}

pub(crate) fn run(Arguments {}: Arguments, _: &Progress) -> Result<ExitCode> {
    const FILE: &str = "luthier.toml";
    match File::create_new(FILE) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!(Problem::new(format!("{FILE}: exists already")).hint("remove or rename it first"))
        }
        other => other
            .and_then(|mut file| file.write_all(TEMPLATE.as_bytes()))
            .context(FILE)?,
    }
    outln!("{FILE}");
    Ok(ExitCode::SUCCESS)
}
