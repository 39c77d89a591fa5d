use crate::ExitCode;
use std::fs::File;
use std::io::{ErrorKind, Write};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::problem::Problem;
use crate::settings::TEMPLATE;
use crate::terminal::Progress;

/// Write luthier.toml with every setting, commented out
///
/// The file is written into the current folder. It says what each setting means and what its default is.
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
