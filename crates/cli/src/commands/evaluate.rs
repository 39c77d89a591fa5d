use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use luthier_artifact::{Artifact, Digest, FeatureTable, Split};
use luthier_classify::{HeldOutPredictions, Model};
use luthier_eval::{Inputs, ReportedRun};

use super::compare::{Compared, find_report};
use super::{open_cache, print_stage, project};
use crate::pipeline::with_retry;
use crate::runner::{Mode, Runner};
use crate::settings::{CacheSettings, EvaluateSettings, SeedSettings, Settings};
use crate::terminal::Progress;
use crate::{export, features_folder, pipeline};

/// Evaluate a model on the test features that `luthier extract` wrote
///
/// Prints the classification report, and writes reports/ with a page, figures and tables.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  luthier evaluate --model-dir models/ --feature-dir features/\n  luthier evaluate --baseline reports/             compare with the report that is replaced"
)]
pub(crate) struct Arguments {
    /// Folder with the model.safetensors that `luthier train` wrote
    #[arg(
        long,
        value_name = "DIR",
        default_value = "models",
        alias = "model_dir",
        env = "LUTHIER_MODEL_DIR"
    )]
    model_dir: PathBuf,
    /// Folder that `luthier extract` wrote
    #[arg(
        long,
        value_name = "DIR",
        default_value = "features",
        alias = "feature_dir",
        env = "LUTHIER_FEATURE_DIR"
    )]
    feature_dir: PathBuf,
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
        model_dir,
        feature_dir,
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
    let config = settings.evaluate_config();
    // Before anything is written: it may be the report that is about to be replaced.
    let baseline = baseline.map(|path| find_report(&path)).transpose()?;
    let before = baseline.as_deref().map(ReportedRun::read).transpose()?;
    let model = Model::load(&model_dir.join(export::MODEL_FILE))?;
    let (index, index_digest) = features_folder::read_index(&feature_dir)?;
    let [train, test] =
        [Split::Train, Split::Test].map(|split| features_folder::read_table(&feature_dir, split, &index));
    let (train, test) = (train?, test?);
    let hashes = (
        features_folder::read_hashes(&feature_dir, Split::Train, &train)?,
        features_folder::read_hashes(&feature_dir, Split::Test, &test)?,
    );
    let held_out = read_held_out(&model_dir.join(export::HELD_OUT_FILE), &model, &train, progress)?;
    let cache = open_cache(&settings)?;
    let page = with_retry(progress, || {
        std::fs::create_dir_all(&report_dir).with_context(|| report_dir.display().to_string())?;
        let hashes = match &hashes {
            (Some(train), Some(test)) => Some([cache.put_table(train)?, cache.put_table(test)?]),
            _ => None,
        };
        let inputs = Inputs {
            model: cache.put(&model)?,
            held_out: cache.put(&held_out)?,
            train: cache.put_table(&train)?,
            test: cache.put_table(&test)?,
            hashes,
        };
        let mut runner = Runner::new(&cache, progress, project(&report_dir)?, Mode::Run)?;
        let file_of = |image: &Digest| index.file_of(Split::Test, image);
        let evaluated = pipeline::evaluate(&config, &inputs, &file_of, &mut runner)?
            .expect("outside a plan every stage gives a result");
        let page = export::report(
            &cache,
            &report_dir,
            evaluated,
            inputs.model,
            &export::Rows::read(&index, index_digest),
            &runner.times()?,
        )?;
        for report in runner.finish()? {
            print_stage(progress, &report, "");
        }
        Ok(page)
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

/// What cross-validation's models say of these training images: nothing if the file is not there, or is about others.
fn read_held_out(path: &Path, model: &Model, train: &FeatureTable, progress: &Progress) -> Result<HeldOutPredictions> {
    let expected = HeldOutPredictions::digest_of(&train.images, &train.labels);
    let none = HeldOutPredictions::none(expected, model.classes.len());
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(none),
        other => other.with_context(|| path.display().to_string())?,
    };
    let found = HeldOutPredictions::decode(&bytes).with_context(|| path.display().to_string())?;
    let fits = found.probabilities.ncols() == model.classes.len() && found.rows.iter().all(|&row| row < train.n_rows());
    if found.train == expected && fits {
        return Ok(found);
    }
    progress.say(&format!(
        "warning: {} is about other training images: the labels of these are not judged",
        path.display()
    ));
    Ok(none)
}
