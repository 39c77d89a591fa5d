use crate::ExitCode;

use anyhow::Result;
use clap::Args;
use luthier::words::{counted, printable};
use luthier::{ImageCounts, OutputPaths, PipelineSummary, TestFigures};

use super::status::{OnStale, show};
use super::{
    OutputFormat, PipelineArguments, configure, note_faster_precision, open_cache, print_json, warn_of_skipped,
    with_engine,
};
use crate::terminal::Progress;

/// Train a model on folders of images and evaluate it: all stages, but only what changed
///
/// The stages are scan, extract, duplicates, features, classify, evaluate, suspects, neighbours and map. A stage runs only if
/// something that it depends on changed. Writes features/, models/ and reports/.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  luthier pipeline photos\n  luthier pipeline --train-dir data/train --test-dir data/test\n  luthier pipeline photos --test-fraction 0.25 --variance 0.95\n  luthier pipeline --dry-run"
)]
pub(crate) struct Arguments {
    /// Only say what would run, and for about how long
    ///
    /// The exit status is 3 if a stage would run. A stage that would be restored from the cache does not count.
    #[arg(long, alias = "dry_run")]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pipeline: PipelineArguments,
}

/// Runs the pipeline.
pub(crate) fn summarize(arguments: &Arguments, progress: &Progress) -> Result<PipelineSummary> {
    let PipelineArguments { out, settings, .. } = &arguments.pipeline;
    let (pipeline, data) = configure(settings)?;
    let cache = open_cache(settings)?;
    with_engine(&cache, progress, |engine| engine.run(&pipeline, &data, out))
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    if arguments.dry_run {
        return show(&arguments.pipeline, OnStale::Status3, progress);
    }
    let summary = summarize(&arguments, progress)?;
    let PipelineArguments { out, output, settings } = arguments.pipeline;
    warn_of_skipped(&summary.skipped, Some(&out.join("reports/skipped.csv")), progress);
    let PipelineSummary {
        test,
        held_out,
        images: ImageCounts { embedded, skipped, .. },
        outputs: OutputPaths {
            features,
            model,
            report,
        },
        warnings,
        ..
    } = &summary;
    note_faster_precision(&settings, *embedded, progress);
    for warning in warnings {
        progress.say(&format!("warning: {}: {}", warning.title, printable(&warning.detail)));
    }
    if output.format() == OutputFormat::Json {
        print_json(&summary)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (figures, noun) in [(test, "test image"), (held_out, "held-out training image")] {
        if let Some(TestFigures { accuracy, macro_f1, n }) = figures {
            outln!("accuracy {accuracy:.4}, macro F1 {macro_f1:.4} on {}", counted(n, noun));
        }
    }
    if *skipped > 0 {
        outln!(
            "{} skipped, listed in {}",
            counted(skipped, "image"),
            report.with_file_name("skipped.csv").display()
        );
    }
    outln!("report   {}", report.display());
    outln!("model    {}", model.display());
    outln!("features {}", features.display());
    Ok(ExitCode::SUCCESS)
}
