use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use luthier_extract::SkippedImages;

use super::pipeline::{describe, report_skipped};
use super::{configure, note_faster_precision, open_cache, print_stage, project};
use crate::export;
use crate::features_folder::skipped_files;
use crate::pipeline::{load, with_retry};
use crate::runner::{Mode, Runner};
use crate::settings::{CacheSettings, DataSettings, ExtractSettings, NetworkSettings, SeedSettings, Settings};
use crate::terminal::Progress;

/// Turn folders of images into features: NumPy files with one row for each image
///
/// Writes features and labels of training images and test images as .npy files, and features.json, which says what the
/// rows are. An image whose features are in the cache does not go through the network again.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  luthier extract photos\n  luthier extract --train-dir data/train --test-dir data/test --output-dir features/"
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
    let (pipeline, data) = configure(&settings)?;
    let cache = open_cache(&settings)?;
    with_retry(progress, || {
        std::fs::create_dir_all(&output_dir).with_context(|| output_dir.display().to_string())?;
        let mut runner = Runner::new(&cache, progress, project(&output_dir)?, Mode::Run)?;
        let (found, digest) = pipeline.scan(&data, &mut runner)?;
        let manifest = &found.manifest;
        let extracted = pipeline
            .extract(&data, manifest, digest, &mut runner)?
            .expect("outside a plan every stage gives a result");
        let skipped = skipped_files(manifest, &load::<SkippedImages>(&cache, &extracted.skipped)?);
        let n_reused = manifest.entries.len() - skipped.len() - extracted.n_embedded;
        runner.count_images(n_reused, extracted.n_embedded);
        if let [scanned, embedded] = runner.reports() {
            print_stage(progress, scanned, &describe(&found));
            print_stage(
                progress,
                embedded,
                &format!("{} embedded, {} skipped", extracted.n_embedded, skipped.len()),
            );
        }
        report_skipped(&skipped, &output_dir.join("features.json"), data.is_strict, progress)?;
        note_faster_precision(&settings, extracted.n_embedded, progress);
        let rows = export::Rows::extracted(&cache, &data.source, (manifest, digest), &extracted)?;
        export::features(&cache, &output_dir, &rows, &extracted)?;
        runner.finish()?;
        Ok(())
    })?;
    outln!("features {}", output_dir.display());
    Ok(ExitCode::SUCCESS)
}
