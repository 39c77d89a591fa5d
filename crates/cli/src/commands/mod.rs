//! One file a verb: parse → resolve → call → print.

pub(crate) mod cache;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod evaluate;
pub(crate) mod explain;
pub(crate) mod export;
pub(crate) mod extract;
pub(crate) mod init;
pub(crate) mod label;
pub(crate) mod man;
pub(crate) mod model;
pub(crate) mod moments;
pub(crate) mod pipeline;
pub(crate) mod predict;
pub(crate) mod relabel;
pub(crate) mod review;
pub(crate) mod runs;
pub(crate) mod serve;
pub(crate) mod status;
pub(crate) mod train;
pub(crate) mod weights;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use luthier::{Data, Engine, Pipeline, Plan, StageReport, Status};
use luthier_artifact::file_names;
use luthier_cache::{Cache, Remote};
use luthier_eval::{DuplicatesConfig, MapConfig, NeighboursConfig, Skipped, SuspectsConfig};
use luthier_extract::{ImageFiles, Layout, Precision, WeightsStore};
use serde::Serialize;
use time::OffsetDateTime;

use crate::problem::Problem;
use crate::settings::{CacheSettings, DataSettings, ExtractSettings, NetworkSettings, SeedSettings, Settings};
use crate::terminal::Progress;

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

/// What `pipeline`, `status` and `explain` are told alike.
#[derive(Args)]
pub(crate) struct PipelineArguments {
    /// Folder for features/, models/ and reports/
    #[arg(long, value_name = "DIR", default_value = ".", env = "LUTHIER_OUT")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) output: OutputArguments,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

impl PipelineArguments {
    /// What `luthier pipeline` would do.
    pub(crate) fn plan(&self, cache: &Cache, progress: &Progress) -> Result<Plan> {
        let (pipeline, data) = configure(&self.settings)?;
        with_engine(cache, progress, |engine| engine.plan(&pipeline, &data, &self.out))
    }
}

/// Where `extract` left the features.
#[derive(Args)]
pub(crate) struct FeatureFolder {
    /// Folder that `luthier extract` wrote
    #[arg(
        long,
        value_name = "DIR",
        default_value = "features",
        alias = "feature_dir",
        env = "LUTHIER_FEATURE_DIR"
    )]
    pub(crate) feature_dir: PathBuf,
}

/// Where `train` leaves the model.
#[derive(Args)]
pub(crate) struct ModelFolder {
    /// Folder of model.safetensors
    #[arg(
        long,
        value_name = "DIR",
        default_value = "models",
        alias = "model_dir",
        env = "LUTHIER_MODEL_DIR"
    )]
    pub(crate) model_dir: PathBuf,
}

/// What commands are told that embed images and train nothing.
#[derive(Args)]
pub(crate) struct EmbedSettings {
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

impl EmbedSettings {
    pub(crate) fn into_settings(self) -> Settings {
        let EmbedSettings {
            data,
            extract,
            network,
            seed,
            cache,
        } = self;
        Settings {
            data,
            extract,
            network,
            seed,
            cache,
            ..Settings::default()
        }
    }
}

/// Where downloaded weights are kept: the user's cache folder, shared by all projects.
///
/// # Errors
/// If the user has no home folder.
pub fn weights_store() -> Result<WeightsStore> {
    let folders = directories::BaseDirs::new().context("no home directory: set HOME")?;
    let mirror = std::env::var("LUTHIER_WEIGHTS_MIRROR")
        .ok()
        .filter(|mirror| !mirror.is_empty());
    // As PyTorch and huggingface_hub find them.
    let folder = |variable: &str| {
        std::env::var_os(variable)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    let caches = folder("XDG_CACHE_HOME").unwrap_or_else(|| folders.home_dir().join(".cache"));
    let torch_home = folder("TORCH_HOME").unwrap_or_else(|| caches.join("torch"));
    let hugging_face = folder("HF_HUB_CACHE")
        .or_else(|| Some(folder("HF_HOME")?.join("hub")))
        .unwrap_or_else(|| caches.join("huggingface/hub"));
    let store = WeightsStore::new(folders.cache_dir().join("luthier/weights"), mirror);
    Ok(store.with_caches(torch_home, hugging_face))
}

/// How the data are read, from the settings.
pub(crate) fn data(settings: &Settings) -> Result<Data> {
    Ok(Data {
        source: settings.data_source()?,
        rehash: settings.rehash(),
        is_strict: settings.is_strict(),
    })
}

/// The configuration of all stages, and of the data, from the settings.
pub(crate) fn configure(settings: &Settings) -> Result<(Pipeline, Data)> {
    let data = data(settings)?;
    let pipeline = Pipeline {
        views: settings.views_config()?,
        extract: settings.extract_config(settings.weights()?)?,
        features: settings.features_config()?,
        classify: settings.classify_config()?,
        duplicates: DuplicatesConfig::default(),
        evaluate: settings.evaluate_config(),
        suspects: SuspectsConfig::default(),
        neighbours: NeighboursConfig::default(),
        map: MapConfig::default(),
        store: weights_store()?,
        n_threads: settings.n_threads(),
    };
    Ok((pipeline, data))
}

/// Refuses a choice of views where nothing is trained that could tell which is best.
pub(crate) fn check_views_are_named(pipeline: &Pipeline) -> Result<()> {
    match pipeline.views {
        None => Ok(()),
        Some(_) => Err(Problem::usage("--views auto without training")
            .hint("`luthier pipeline --views auto` says which view is best: name it, with --views and --pooling")
            .into()),
    }
}

/// A layout as `extract` takes it: a folder without folders of classes has images without classes.
pub(crate) fn with_or_without_classes(layout: Layout, is_unlabelled: bool, exclude: &[String]) -> Result<Layout> {
    Ok(match layout {
        Layout::Classes(folder) if !is_unlabelled && folder.is_dir() => Layout::of_folder(folder, exclude)?,
        layout if !is_unlabelled => layout,
        layout => without_classes(layout).ok_or_else(|| {
            Problem::usage("--unlabelled with a folder to train on and one for the test").hint("name one FOLDER")
        })?,
    })
}

/// The same images, whatever the settings say of their classes. `None` if they are in two folders.
pub(crate) fn without_classes(layout: Layout) -> Option<Layout> {
    match layout {
        Layout::Classes(folder) | Layout::Table { folder, .. } => Some(Layout::Unlabelled(ImageFiles::Below(folder))),
        Layout::Named { images, .. } | Layout::Unlabelled(images) => Some(Layout::Unlabelled(images)),
        Layout::Split { .. } => None,
    }
}

/// Opens the cache that the settings name.
pub(crate) fn open_cache(settings: &Settings) -> Result<Cache> {
    connect(Cache::open(&settings.cache_dir())?, settings)
}

/// Shares features with other machines, if the settings say where.
fn connect(cache: Cache, settings: &Settings) -> Result<Cache> {
    match settings.cache_remote() {
        Some(url) => Ok(cache.with_remote(Remote::open(url)?)),
        None => Ok(cache),
    }
}

/// Does something with an engine that prints each stage as it ends.
pub(crate) fn with_engine<T>(
    cache: &Cache,
    progress: &Progress,
    work: impl FnOnce(&Engine<'_>) -> luthier::Result<T>,
) -> Result<T> {
    let on_stage = |report: &StageReport| print_stage(progress, report);
    let engine = Engine {
        cache,
        observer: progress,
        on_stage: &on_stage,
        now: now(),
    };
    Ok(work(&engine)?)
}

/// The time, or the time that `SOURCE_DATE_EPOCH` gives, so that a report can be made again to the byte.
fn now() -> SystemTime {
    let given = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|seconds| seconds.parse().ok());
    let time = given.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.map_or_else(SystemTime::now, SystemTime::from)
}

/// Prints a stage's line: name, status, what came out, how long it took, why.
fn print_stage(progress: &Progress, report: &StageReport) {
    let StageReport {
        name,
        status,
        reasons,
        seconds,
        outcome,
    } = report;
    let mut line = format!("{name:<10} {status:<9} {outcome}");
    if *status == Status::Ran {
        line = format!("{line:<62} {seconds:>7.1} s");
    }
    if !reasons.0.is_empty() {
        line = format!("{line}  ({reasons})");
    }
    progress.say(line.trim_end());
}

/// Prints a value as JSON, with file names as Python has them.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    outln!("{}", file_names::to_json(serde_json::to_string_pretty(value)?));
    Ok(())
}

/// Names the skipped images, or, of many, how many there are for each of the most frequent reasons; and the file that
/// lists all of them, if there is one.
pub(crate) fn warn_of_skipped(skipped: &[Skipped], list: Option<&Path>, progress: &Progress) {
    const SHOWN: usize = 5;
    if skipped.len() <= SHOWN {
        skipped
            .iter()
            .for_each(|file| progress.say(&format!("warning: skipped {file}")));
        return;
    }
    let mut by_reason: BTreeMap<&str, Vec<&Skipped>> = BTreeMap::new();
    skipped
        .iter()
        .for_each(|file| by_reason.entry(&file.reason).or_default().push(file));
    let mut groups: Vec<Vec<&Skipped>> = by_reason.into_values().collect();
    groups.sort_by_key(|files| Reverse(files.len()));
    let mut n_shown = 0;
    for files in groups.iter().take(SHOWN) {
        n_shown += files.len();
        progress.say(&match files.as_slice() {
            [file] => format!("warning: skipped {file}"),
            files => format!("warning: skipped {} images, the first is {}", files.len(), files[0]),
        });
    }
    let more = match skipped.len() - n_shown {
        0 => None,
        n => Some(format!("skipped {n} more")),
    };
    let list = list.map(|list| format!("{} lists all", list.display()));
    let parts: Vec<String> = more.into_iter().chain(list).collect();
    if !parts.is_empty() {
        progress.say(&format!("warning: {}", parts.join(": ")));
    }
}

/// Says once that a faster number format is at hand, when enough images were embedded for it to matter.
pub(crate) fn note_faster_precision(settings: &Settings, n_embedded: usize, progress: &Progress) {
    const ENOUGH: usize = 100;
    if let (true, Some(precision)) = (n_embedded >= ENOUGH, settings.faster_precision()) {
        let gain = match precision {
            Precision::Int8 => "up to four times as fast, and as accurate",
            _ => "up to twice as fast",
        };
        progress.say(&format!(
            "note: this device has {precision} in hardware, which is {gain}: --precision auto"
        ));
    }
}
