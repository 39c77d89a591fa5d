use crate::ExitCode;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use luthier::JudgeConfig;
use luthier_eval::{DuplicatesConfig, MapConfig, NeighboursConfig, ReportedRun, SuspectsConfig};

use super::compare::{Compared, find_report};
use super::{FeatureFolder, ModelFolder, open_cache, with_engine};
use crate::settings::{CacheSettings, EvaluateSettings, SeedSettings, Settings};
use crate::terminal::Progress;

/// Evaluate a model on the test features that `luthier extract` wrote
///
/// Prints the classification report, and writes reports/ with a page, figures and tables.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  luthier evaluate --model-dir models/ --feature-dir features/\n  luthier evaluate --baseline reports/             compare with the report that is replaced"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model_folder: ModelFolder,
    #[command(flatten)]
    feature_folder: FeatureFolder,
    /// Folder for the report
    #[arg(
        long,
        value_name = "DIR",
        default_value = "reports",
        alias = "report_dir",
        env = "LUTHIER_REPORT_DIR"
    )]
    report_dir: PathBuf,
    /// Also compare with this earlier report: a report.json, or its folder
    #[arg(long, value_name = "FILE|DIR")]
    baseline: Option<PathBuf>,
    #[command(flatten)]
    evaluate: EvaluateSettings,
    #[command(flatten)]
    seed: SeedSettings,
    #[command(flatten)]
    cache: CacheSettings,
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments {
        model_folder: ModelFolder { model_dir },
        feature_folder: FeatureFolder { feature_dir },
        report_dir,
        baseline,
        evaluate,
        seed,
        cache,
    } = arguments;
    let settings = Settings {
        evaluate,
        seed,
        cache,
        ..Settings::default()
    };
    let config = JudgeConfig {
        duplicates: DuplicatesConfig::default(),
        evaluate: settings.evaluate_config(),
        suspects: SuspectsConfig::default(),
        neighbours: NeighboursConfig::default(),
        map: MapConfig::default(),
    };
    // Before anything is written: the baseline may be the report that is about to be replaced.
    let baseline = baseline.map(|path| find_report(&path)).transpose()?;
    let before = baseline.as_deref().map(ReportedRun::read).transpose()?;
    let cache = open_cache(&settings)?;
    let page = with_engine(&cache, progress, |engine| {
        engine.evaluate(&config, &model_dir, &feature_dir, &report_dir)
    })?;
    let text = page.with_file_name("classification_report.txt");
    out!(
        "{}",
        std::fs::read_to_string(&text).with_context(|| text.display().to_string())?
    );
    if let (Some(baseline), Some(before)) = (&baseline, &before) {
        let report = page.with_file_name("report.json");
        let after = ReportedRun::read(&report)?;
        out!("\n{}\n", Compared::new(baseline, before, &report, &after)?.text());
    }
    outln!("report {}", page.display());
    Ok(ExitCode::SUCCESS)
}
