//! One file a verb: parse → resolve → call → print.

pub(crate) mod cache;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod evaluate;
pub(crate) mod explain;
pub(crate) mod extract;
pub(crate) mod init;
pub(crate) mod man;
pub(crate) mod pipeline;
pub(crate) mod predict;
pub(crate) mod status;
pub(crate) mod train;
pub(crate) mod weights;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use luthier_cache::Cache;
use luthier_classify::{Model, TrainingInfo};
use luthier_extract::WeightsStore;

use crate::pipeline::{Data, Pipeline};
use crate::runner::{StageReport, Status};
use crate::settings::Settings;
use crate::terminal::Progress;
use crate::words::counted;

/// How a command prints its result.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct OutputArguments {
    /// Print one JSON document on stdout
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// The same as --json, for those who know it from `predict` and `compare`
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = OutputFormat::Text, hide = true)]
    format: OutputFormat,
}

/// What a result is printed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people.
    Text,
    /// One JSON document.
    Json,
}

impl OutputArguments {
    pub(crate) fn format(self) -> OutputFormat {
        if self.json { OutputFormat::Json } else { self.format }
    }
}

/// Where downloaded weights are kept: the user's cache folder, shared by all projects.
pub(crate) fn weights_store() -> Result<WeightsStore> {
    let folders = directories::BaseDirs::new().context("no home directory: set HOME")?;
    let mirror = std::env::var("LUTHIER_WEIGHTS_MIRROR")
        .ok()
        .filter(|mirror| !mirror.is_empty());
    Ok(WeightsStore::new(folders.cache_dir().join("luthier/weights"), mirror))
}

/// The configuration of all stages, and of the data, from the settings.
pub(crate) fn configure(settings: &Settings) -> Result<(Pipeline, Data)> {
    let data = Data {
        source: settings.data_source()?,
        rehash: settings.rehash(),
        is_strict: settings.is_strict(),
    };
    let pipeline = Pipeline {
        extract: settings.extract_config(settings.weights()?)?,
        features: settings.features_config()?,
        classify: settings.classify_config()?,
        evaluate: settings.evaluate_config(),
        store: weights_store()?,
        n_threads: settings.n_threads(),
    };
    Ok((pipeline, data))
}

/// Opens the cache that the settings name.
pub(crate) fn open_cache(settings: &Settings) -> Result<Cache> {
    Ok(Cache::open(&settings.cache_dir())?)
}

/// A project is known by the folder it writes to.
pub(crate) fn project(folder: &Path) -> Result<String> {
    let path = std::path::absolute(folder).with_context(|| folder.display().to_string())?;
    // `.` and `..` stay in an absolute path: the same folder must have one name.
    let path: PathBuf = path.canonicalize().unwrap_or(path);
    Ok(path.display().to_string())
}

/// Prints a stage's line: name, status, what came out, how long it took, why.
pub(crate) fn print_stage(progress: &Progress, report: &StageReport, outcome: &str) {
    let StageReport {
        name,
        status,
        reasons,
        seconds,
    } = report;
    let mut line = format!("{name:<9} {status:<9} {outcome}");
    if *status == Status::Ran {
        line = format!("{line:<62} {seconds:>7.1} s");
    }
    if !reasons.0.is_empty() {
        line = format!("{line}  ({reasons})");
    }
    progress.say(line.trim_end());
}

/// How many components a model has, in a few words.
pub(crate) fn describe_components(model: &Model) -> String {
    let TrainingInfo {
        n_components,
        explained_variance_ratio,
        ..
    } = &model.training;
    format!(
        "{}, {:.1} % of the variance",
        counted(*n_components, "component"),
        100.0 * explained_variance_ratio
    )
}

/// A model's C and where it comes from, in a few words.
pub(crate) fn describe_c(model: &Model) -> String {
    let TrainingInfo {
        c, cross_validation, ..
    } = &model.training;
    match cross_validation {
        Some(found) => format!("C = {c}, by {}-fold cross-validation", found.folds),
        None => format!("C = {c}, as given"),
    }
}

/// Says once that a faster number format is at hand, when enough images were embedded for it to matter.
pub(crate) fn note_faster_precision(settings: &Settings, n_embedded: usize, progress: &Progress) {
    const ENOUGH: usize = 100;
    if let (true, Some(precision)) = (n_embedded >= ENOUGH, settings.faster_precision()) {
        progress.say(&format!(
            "note: this device has {precision} in hardware, which is up to twice as fast: --precision auto"
        ));
    }
}
