use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::{configure, note_faster_precision, open_cache, warn_of_skipped, with_engine};
use crate::settings::Settings;
use crate::terminal::Progress;

/// Writes the features of train and test images as .npy files, with labels, and features.json, which says what the
/// rows are. Images whose features are cached are not embedded again.
#[derive(Args)]
#[command(
    after_help = "Example:\n  luthier extract --train-dir data/train --test-dir data/test --output-dir features/"
)]
pub(crate) struct Arguments {
    /// Folder for the .npy files
    #[arg(
        long,
        value_name = "DIR",
        default_value = "features",
        alias = "output_dir",
        env = "LUTHIER_OUTPUT_DIR"
    )]
    output_dir: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments { settings, output_dir } = arguments;
    let settings = settings.with_lower_layers()?;
    let (pipeline, data) = configure(&settings)?;
    let cache = open_cache(&settings)?;
    let summary = with_engine(&cache, progress, |engine| engine.extract(&pipeline, &data, &output_dir))?;
    warn_of_skipped(&summary.skipped, "features.json", progress);
    note_faster_precision(&settings, summary.images.embedded, progress);
    outln!("features {}", output_dir.display());
    Ok(ExitCode::SUCCESS)
}
