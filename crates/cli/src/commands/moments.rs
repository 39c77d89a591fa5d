use crate::ExitCode;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use luthier::Shard;
use luthier::words::counted;

use super::{
    EmbedSettings, check_views_are_named, configure, open_cache, warn_of_skipped, with_engine, with_or_without_classes,
};
use crate::terminal::Progress;

/// Take the moments of features in parts, for more images than one machine should gather
///
/// Number, means and comoments of the training images' features are all that scaler and PCA are fitted to, and they add up.
/// Writes those of one part: 17 MB for 2,048 features, whatever the number of images. `luthier train --moments DIR` adds the
/// parts up, and trains a classifier on the features of a sample.
#[derive(Args)]
#[command(
    after_help = "Example:\n  luthier moments photos --shard 3/64 --cache-remote s3://bucket/cache --output-dir /data/moments\n  luthier train --moments /data/moments --feature-dir features"
)]
pub(crate) struct Arguments {
    /// Folder for a .safetensors file of each part
    #[arg(
        long,
        value_name = "DIR",
        default_value = "moments",
        alias = "output_dir",
        env = "LUTHIER_MOMENTS_DIR"
    )]
    output_dir: PathBuf,
    /// Take the moments of one part of the images: 3/64 is the third of 64. The parts are those of `luthier extract --shard`
    #[arg(long, value_name = "PART/OF", default_value_t = Shard::ALL, hide_default_value = true)]
    shard: Shard,
    /// Take images without classes, wherever they lie below FOLDER: none is kept for the test
    #[arg(long, conflicts_with_all = ["train_dir", "test_dir", "labels", "class_from"])]
    unlabelled: bool,
    #[command(flatten)]
    settings: EmbedSettings,
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments {
        output_dir,
        shard,
        unlabelled,
        settings,
    } = arguments;
    let settings = settings.into_settings();
    let (pipeline, mut data) = configure(&settings)?;
    check_views_are_named(&pipeline)?;
    data.source.layout = with_or_without_classes(data.source.layout, unlabelled, &data.source.exclude)?;
    let cache = open_cache(&settings)?;
    let summary = with_engine(&cache, progress, |engine| {
        engine.moments(&pipeline, &data, shard, &output_dir)
    })?;
    warn_of_skipped(&summary.skipped, None, progress);
    outln!(
        "moments {}  {}, {} skipped",
        summary.path.display(),
        counted(summary.n_rows, "row"),
        summary.skipped.len()
    );
    Ok(ExitCode::SUCCESS)
}
