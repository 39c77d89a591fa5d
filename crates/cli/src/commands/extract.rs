use crate::ExitCode;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use luthier::words::counted;
use luthier::{Engine, Shard};

use super::{
    EmbedSettings, check_views_are_named, configure, note_faster_precision, open_cache, warn_of_skipped, with_engine,
    with_or_without_classes,
};
use crate::problem::Problem;
use crate::terminal::Progress;

/// Turn folders of images into features: NumPy files with one row for each image
///
/// Writes features and labels of training images and test images as .npy files, and features.json, which says what the
/// rows are; of images without classes, one .npy file. An image whose features are in the cache does not go through the
/// network again.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  luthier extract photos\n  luthier extract --unlabelled photos\n  luthier extract --train-dir data/train --test-dir data/test --output-dir features/\n  luthier extract photos --shard 3/64 --cache-remote s3://bucket/cache"
)]
pub(crate) struct Arguments {
    /// Folder for the .npy files and features.json
    #[arg(
        long,
        value_name = "DIR",
        default_value = "features",
        alias = "output_dir",
        env = "LUTHIER_OUTPUT_DIR"
    )]
    output_dir: PathBuf,
    /// Take images without classes, wherever they lie below FOLDER
    ///
    /// Writes features.npy, hashes.npy and features.json, which names the images. This is the default where images lie in
    /// FOLDER itself, or it has fewer than two folders.
    #[arg(long, conflicts_with_all = ["train_dir", "test_dir", "labels", "class_from"])]
    unlabelled: bool,
    /// Embed one part of the images alone: 3/64 is the third of 64
    ///
    /// For several machines or processes, each of which takes a part, with one cache or one --cache-remote. The digest of an
    /// image says which part has it. Nothing is written but the cache: a run on all images, without --shard, finds all
    /// features there.
    #[arg(long, value_name = "PART/OF")]
    shard: Option<Shard>,
    #[command(flatten)]
    settings: EmbedSettings,
}

/// Refuses a folder beside `--shard`, which writes nothing into it. Clap would refuse one in the environment, too.
///
/// # Errors
/// A [`Problem`] if both are typed.
pub(crate) fn check(matches: &ArgMatches) -> Result<()> {
    let is_typed = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
    if is_typed("shard") && is_typed("output_dir") {
        bail!(
            Problem::usage("--output-dir with --shard, which writes nothing but the cache")
                .hint("leave out one of them")
        );
    }
    Ok(())
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments {
        output_dir,
        unlabelled,
        shard,
        settings,
    } = arguments;
    let settings = settings.into_settings();
    let (pipeline, mut data) = configure(&settings)?;
    check_views_are_named(&pipeline)?;
    data.source.layout = with_or_without_classes(data.source.layout, unlabelled, &data.source.exclude)?;
    let cache = open_cache(&settings)?;
    if let Some(shard) = shard {
        let embed = |engine: &Engine<'_>| engine.embed_shard(&pipeline, &data, shard, &output_dir);
        let summary = with_engine(&cache, progress, embed)?;
        note_faster_precision(&settings, summary.embedded, progress);
        // Where this machine's cache is gone with it, the push is all that comes of it.
        if settings.cache_remote().is_some() {
            cache.push()?;
        }
        let reused = summary.images - summary.embedded - summary.skipped;
        outln!(
            "shard {shard}  {}: {} embedded, {reused} reused, {} skipped",
            counted(summary.images, "image"),
            summary.embedded,
            summary.skipped
        );
        return Ok(ExitCode::SUCCESS);
    }
    let summary = with_engine(&cache, progress, |engine| engine.extract(&pipeline, &data, &output_dir))?;
    warn_of_skipped(&summary.skipped, Some(&output_dir.join("features.json")), progress);
    note_faster_precision(&settings, summary.images.embedded, progress);
    outln!("features {}", output_dir.display());
    Ok(ExitCode::SUCCESS)
}
