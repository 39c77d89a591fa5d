use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use luthier::words::counted;
use luthier::{ImageCounts, OutputPaths, PipelineSummary, TestFigures};

use super::{configure, note_faster_precision, open_cache, warn_of_skipped, with_engine};
use crate::settings::Settings;
use crate::terminal::Progress;

/// Runs scan → extract → features → classify → evaluate, each stage only if something it depends on changed, and
/// writes features/, models/ and reports/.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  luthier pipeline --train-dir data/train --test-dir data/test\n  luthier pipeline --data-dir photos --test-fraction 0.2 --variance 0.95\n  luthier pipeline --dry-run"
)]
pub(crate) struct Arguments {
    /// Folder for features/, models/ and reports/
    #[arg(long, value_name = "DIR", default_value = ".", env = "LUTHIER_OUT")]
    out: PathBuf,
    /// Say what would run and about how long, and run nothing; exit status 3 if something would, restoring not counted
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON document on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments {
        settings,
        out,
        dry_run,
        json,
    } = arguments;
    let settings = settings.with_lower_layers()?;
    let (pipeline, data) = configure(&settings)?;
    if dry_run {
        return super::status::show(&settings, &pipeline, &data, &out, json, true, progress);
    }
    let cache = open_cache(&settings)?;
    let summary = with_engine(&cache, progress, |engine| engine.run(&pipeline, &data, &out))?;
    warn_of_skipped(&summary.skipped, "skipped.csv", progress);
    let PipelineSummary {
        test: TestFigures { accuracy, macro_f1, n },
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
        progress.say(&format!("warning: {}: {}", warning.title, warning.detail));
    }
    if json {
        outln!("{}", serde_json::to_string_pretty(&summary)?);
        return Ok(ExitCode::SUCCESS);
    }
    outln!(
        "accuracy {accuracy:.4}, macro F1 {macro_f1:.4} on {}",
        counted(n, "test image")
    );
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
