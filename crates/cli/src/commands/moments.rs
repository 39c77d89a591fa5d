use crate::ExitCode;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use luthier::Shard;
use luthier::words::counted;
use luthier_extract::Layout;

use super::{check_views_are_named, configure, open_cache, with_engine};
use crate::settings::{CacheSettings, DataSettings, ExtractSettings, NetworkSettings, SeedSettings, Settings};
use crate::terminal::Progress;

/// Take the moments of features in parts, for more images than one machine should gather
///
/// Number, means and comoments of the training images' features are all that scaler and PCA are fitted to, and they add up.
/// Writes those of one part, 17 MB whatever the number of images. `luthier train --moments DIR` adds the parts up, and
/// trains a classifier on the features of a sample.
#[derive(Args)]
#[command(
    after_help = "Example:\n  luthier moments photos --shard 3/64 --cache-remote s3://bucket/cache --output-dir moments\n  luthier train --moments moments --feature-dir sample"
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
    #[command(flatten)]
    data: DataSettings,
    #[command(flatten)]
    extract: ExtractSettings,
    #[command(flatten)]
    network: NetworkSettings,
    #[command(flatten)]
    seed: SeedSettings,
    #[command(flatten)]
    cache: CacheSettings,
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments {
        output_dir,
        shard,
        data,
        extract,
        network,
        seed,
        cache,
    } = arguments;
    let settings = Settings {
        data,
        extract,
        network,
        seed,
        cache,
        ..Settings::default()
    };
    let (pipeline, mut data) = configure(&settings)?;
    check_views_are_named(&pipeline)?;
    if let Layout::Classes(folder) = &data.source.layout
        && folder.is_dir()
    {
        data.source.layout = Layout::of_folder(folder.clone(), &data.source.exclude)?;
    }
    let cache = open_cache(&settings)?;
    let summary = with_engine(&cache, progress, |engine| {
        engine.moments(&pipeline, &data, shard, &output_dir)
    })?;
    outln!(
        "moments {}  {}, {} skipped",
        summary.path.display(),
        counted(summary.n_rows, "row"),
        summary.skipped
    );
    Ok(ExitCode::SUCCESS)
}
