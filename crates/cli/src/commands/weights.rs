use crate::ExitCode;

use anyhow::{Result, bail};
use clap::Subcommand;
use luthier_extract::{NamedWeights, WeightsSource};

use super::weights_store;
use crate::problem::Problem;
use crate::terminal::Progress;

#[derive(Subcommand)]
#[command(after_help = "Examples:\n  luthier weights list\n  luthier weights fetch resnet50-imagenet1k-v1")]
pub(crate) enum Command {
    /// List the weights that Luthier knows, and say which of them are downloaded
    #[command(after_help = "Example:\n  luthier weights list")]
    List,
    /// Download weights into your cache folder, and check their SHA-256
    #[command(after_help = "Example:\n  luthier weights fetch resnet50-imagenet1k-v1")]
    Fetch {
        /// A name that `luthier weights list` prints
        name: String,
    },
    /// Print the path of weights that are downloaded
    #[command(after_help = "Example:\n  cp \"$(luthier weights path resnet50-imagenet1k-v1)\" backup/")]
    Path {
        /// A name that `luthier weights list` prints
        name: String,
    },
}

pub(crate) fn run(command: Command, progress: &Progress) -> Result<ExitCode> {
    let store = weights_store()?;
    match command {
        Command::List => {
            for weights in &NamedWeights::ALL {
                let here = if store.has(weights) {
                    "downloaded"
                } else {
                    "not downloaded"
                };
                outln!("{:<24} {:<17} {}", weights.name, here, weights.description);
            }
            outln!(
                "{:<24} {:<17} random numbers, the same on every machine, for tests and a look around",
                "untrained",
                "built in"
            );
        }
        Command::Fetch { name } => outln!("{}", store.fetch(named(&name)?, progress)?.display()),
        Command::Path { name } => {
            let weights = named(&name)?;
            if !store.has(weights) {
                bail!(
                    Problem::new(format!("{}: not downloaded yet", store.path(weights).display()))
                        .hint(format!("run luthier weights fetch {name}"))
                );
            }
            outln!("{}", store.path(weights).display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn named(name: &str) -> Result<&'static NamedWeights> {
    match WeightsSource::parse(name)? {
        WeightsSource::Named(weights) => Ok(weights),
        _ => bail!(Problem::usage(format!(
            "{name} needs no download, expected a name that `luthier weights list` prints"
        ))),
    }
}
