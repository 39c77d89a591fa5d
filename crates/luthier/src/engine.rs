//! What can be asked of Luthier: to run the pipeline or to plan it, and each of its parts from and to folders.

use std::fs::create_dir_all;
use std::path::{Path, PathBuf};

use luthier_artifact::{Digest, FeatureTable, ImageRows, Key, Observer, Split, vector_digest};
use luthier_cache::Cache;
use luthier_classify::{ClassifyConfig, HeldOutPredictions, Model};
use luthier_eval::{DuplicatesConfig, EvaluateConfig, NeighboursConfig, SuspectsConfig, Warning};
use luthier_features::FeaturesConfig;
use ndarray::Array2;
use serde::Serialize;

use crate::estimate;
use crate::export::{self, HELD_OUT_FILE, MODEL_FILE, RowNames};
use crate::features_folder::{self, FeaturesJson, SkippedFile, places};
use crate::pipeline::{self, Data, Evaluated, Folders, Found, Made, Pipeline, Trained, load};
use crate::reason::Reasons;
use crate::runner::{Purpose, Runner, STAGES, StageReport, Status};
use crate::{Error, Result, report};

/// Runs pipelines, or parts of them, through a cache.
pub struct Engine<'a> {
    /// Where results are kept. A run opens its cache once: a cache that can only be read would forget what it has lost.
    pub cache: &'a Cache,
    /// Told how work proceeds, and asked whether it may go on.
    pub observer: &'a dyn Observer,
    /// Told of each stage that ends.
    pub on_stage: &'a dyn Fn(&StageReport),
}

/// What a run of the pipeline gave.
#[derive(Clone, Debug, Serialize)]
pub struct PipelineSummary {
    /// The stages, in order.
    pub stages: Vec<StageReport>,
    /// The images.
    pub images: ImageCounts,
    /// How well the model does on the test images.
    pub test: TestFigures,
    /// Where the files are.
    pub outputs: OutputPaths,
    /// What a reader must know before believing the figures.
    pub warnings: Vec<Warning>,
    /// The images that could not be read.
    #[serde(skip)]
    pub skipped: Vec<SkippedFile>,
}

/// How many images there are, by what became of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ImageCounts {
    /// Files.
    pub total: usize,
    /// Images that went through the network.
    pub embedded: usize,
    /// Files for which the cache had features.
    pub reused: usize,
    /// Files that could not be read.
    pub skipped: usize,
}

/// Figures on the test images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TestFigures {
    /// The share of images that are predicted rightly, 0 to 1.
    pub accuracy: f64,
    /// The mean of the classes' F1, 0 to 1.
    pub macro_f1: f64,
    /// The number of images.
    pub n: usize,
}

/// Where a run wrote to.
#[derive(Clone, Debug, Serialize)]
pub struct OutputPaths {
    /// The folder of features.
    pub features: PathBuf,
    /// The model file.
    pub model: PathBuf,
    /// The page of the report.
    pub report: PathBuf,
}

/// What an extraction gave.
#[derive(Clone, Debug, Serialize)]
pub struct ExtractSummary {
    /// The stages, in order.
    pub stages: Vec<StageReport>,
    /// The images.
    pub images: ImageCounts,
    /// The images that could not be read.
    #[serde(skip)]
    pub skipped: Vec<SkippedFile>,
}

/// What a run would do.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The stages, in order.
    pub stages: Vec<PlannedStage>,
    /// How many images would go through the network, if extract would run.
    pub to_embed: Option<usize>,
}

/// What a run would do in a stage.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedStage {
    /// The stage.
    pub name: &'static str,
    /// What it would do.
    pub status: Status,
    /// Why.
    #[serde(flatten)]
    pub reasons: Reasons,
    /// How long it would run, in seconds, if it would and earlier runs tell.
    pub estimated_seconds: Option<f64>,
    /// The key; in a stage that waits, without the inputs that are not made yet.
    #[serde(skip)]
    pub key: Key,
    /// The key that the last run used, if the cache still knows it.
    #[serde(skip)]
    pub previous: Option<Key>,
}

/// The settings that `train` needs.
#[derive(Clone, Debug)]
pub struct TrainConfig {
    /// How look-alikes are found.
    pub duplicates: DuplicatesConfig,
    /// How features are scaled and projected.
    pub features: FeaturesConfig,
    /// How the model is fitted.
    pub classify: ClassifyConfig,
}

/// The settings that `evaluate` needs.
#[derive(Clone, Debug)]
pub struct JudgeConfig {
    /// How look-alikes are found.
    pub duplicates: DuplicatesConfig,
    /// How figures are made.
    pub evaluate: EvaluateConfig,
    /// How labels are judged.
    pub suspects: SuspectsConfig,
    /// How nearest images are found.
    pub neighbours: NeighboursConfig,
}

impl Engine<'_> {
    /// Runs the pipeline, each stage only if something it depends on changed, and writes `features/`, `models/` and
    /// `reports/` below `out`.
    ///
    /// # Errors
    /// Those of the stages.
    pub fn run(&self, pipeline: &Pipeline, data: &Data, out: &Path) -> Result<PipelineSummary> {
        make_folder(out)?;
        let folders = Folders::below(out);
        retry(|| {
            let mut runner = self.runner(out, Purpose::Run)?;
            let made = pipeline.stages(data, Some(&folders), &mut runner)?;
            self.summarize(made, data, &folders, runner)
        })
    }

    fn summarize(&self, made: Made, data: &Data, folders: &Folders, runner: Runner<'_>) -> Result<PipelineSummary> {
        const RUNS: &str = "outside a plan every stage gives files";
        let Made {
            scan,
            extracted,
            found,
            page,
            model: model_path,
            manifest,
        } = made;
        let model: Model = load(self.cache, &found.data.trained.model)?;
        let evaluation = found.figures.evaluation();
        let warnings = report::warnings(&model, places(&scan.manifest, &extracted.skipped_images), || {
            // The names of the rows are made only if they are needed.
            let findings = found.findings(self.cache)?;
            if findings.duplicates.iter().any(report::is_leaked_look) {
                let manifest = (&scan.manifest, manifest);
                let names = RowNames::extracted(self.cache, &data.source, manifest, &extracted)?;
                Ok(report::leaked_looks(&findings, &*(names.json)()?))
            } else {
                Ok(Vec::new())
            }
        })?;
        Ok(PipelineSummary {
            images: ImageCounts {
                total: scan.manifest.entries.len(),
                embedded: extracted.n_embedded,
                reused: extracted.n_reused,
                skipped: extracted.skipped_files.len(),
            },
            test: TestFigures {
                accuracy: evaluation.accuracy.value,
                macro_f1: evaluation.macro_f1.value,
                n: evaluation.n,
            },
            outputs: OutputPaths {
                features: folders.features.clone(),
                model: model_path.expect(RUNS),
                report: page.expect(RUNS),
            },
            warnings,
            skipped: extracted.skipped_files,
            stages: runner.finish()?,
        })
    }

    /// Says what [`run`](Engine::run) would do. Runs nothing, and writes no files for the user.
    ///
    /// # Errors
    /// Those of scanning and of the cache.
    pub fn plan(&self, pipeline: &Pipeline, data: &Data, out: &Path) -> Result<Plan> {
        let mut runner = self.runner(out, Purpose::Plan)?;
        let Made { scan, .. } = pipeline.stages(data, None, &mut runner)?;
        let previous: Vec<Option<Key>> = STAGES
            .iter()
            .map(|stage| runner.previous(stage))
            .collect::<Result<_>>()?;
        let planned = runner.into_plan();
        let extract = planned.iter().find(|(report, _)| report.name == "extract");
        let to_embed = match extract {
            Some((report, _)) if report.status == Status::Stale => {
                Some(pipeline.extract.count_missing(&scan.manifest, self.cache)?)
            }
            _ => None,
        };
        let stages = planned.into_iter().zip(previous).map(|((report, key), previous)| {
            let StageReport {
                name, status, reasons, ..
            } = report;
            let estimated_seconds = match (status, name) {
                // It has just been done: the next time it reads only what changes until then.
                (_, "scan") => None,
                (Status::Stale, "extract") => estimate::seconds(self.cache, &key, to_embed)?,
                (Status::Stale, _) => estimate::seconds(self.cache, &key, None)?,
                _ => None,
            };
            Ok(PlannedStage {
                name,
                status,
                reasons,
                estimated_seconds,
                key,
                previous,
            })
        });
        Ok(Plan {
            stages: stages.collect::<Result<_>>()?,
            to_embed,
        })
    }

    /// Scans and extracts, and writes the features to a folder.
    ///
    /// # Errors
    /// Those of the stages.
    pub fn extract(&self, pipeline: &Pipeline, data: &Data, folder: &Path) -> Result<ExtractSummary> {
        make_folder(folder)?;
        retry(|| {
            let mut runner = self.runner(folder, Purpose::Run)?;
            let (scan, manifest) = pipeline.scan(data, &mut runner)?;
            let extracted = pipeline.extract(data, &scan, manifest, &mut runner)?;
            let names = RowNames::extracted(self.cache, &data.source, (&scan.manifest, manifest), &extracted)?;
            export::features(self.cache, folder, &names, &extracted)?;
            drop(names);
            Ok(ExtractSummary {
                images: ImageCounts {
                    total: scan.manifest.entries.len(),
                    embedded: extracted.n_embedded,
                    reused: extracted.n_reused,
                    skipped: extracted.skipped_files.len(),
                },
                skipped: extracted.skipped_files,
                stages: runner.finish()?,
            })
        })
    }

    /// Trains on a folder of features, and writes the model to a folder. The result is the path of the model, and the
    /// model.
    ///
    /// # Errors
    /// [`Error::NoFeatures`], [`Error::FeaturesFile`] and [`Error::MixedFeatures`] if the features cannot be used, and
    /// those of the stages.
    pub fn train(&self, config: &TrainConfig, features: &Path, models: &Path) -> Result<(PathBuf, Model)> {
        let features = FeaturesFolder::read(features)?;
        make_folder(models)?;
        retry(|| {
            let train = self.cache.put_table(&features.train)?;
            let mut runner = self.runner(models, Purpose::Run)?;
            let look_alikes = features.look_alikes(&config.duplicates, &mut runner)?;
            let file_of = |split, image: &Digest| features.json.file_of(split, image);
            let projection = pipeline::features(&config.features, train, &file_of, &mut runner)?;
            let trained = pipeline::classify(&config.classify, train, projection, look_alikes, &mut runner)?;
            let path = export::model(self.cache, models, trained)?;
            runner.finish()?;
            Ok((path, load(self.cache, &trained.model)?))
        })
    }

    /// Judges the model of a folder by a folder of features, and writes the report to a folder. The result is the path of
    /// the report's page.
    ///
    /// # Errors
    /// [`Error::OtherExtractor`] and [`Error::OtherClasses`] if model and features do not fit, those of
    /// [`train`](Engine::train), and those of the stages.
    pub fn evaluate(&self, config: &JudgeConfig, models: &Path, features: &Path, reports: &Path) -> Result<PathBuf> {
        let model = Model::load(&models.join(MODEL_FILE))?;
        let features = FeaturesFolder::read(features)?;
        let held_out = read_held_out(&models.join(HELD_OUT_FILE), &model, &features.train)?;
        make_folder(reports)?;
        retry(|| {
            let mut runner = self.runner(reports, Purpose::Run)?;
            let data = Evaluated {
                trained: Trained {
                    model: self.cache.put(&model)?,
                    held_out: self.cache.put(&held_out)?,
                },
                train: self.cache.put_table(&features.train)?,
                test: self.cache.put_table(&features.test)?,
                look_alikes: features.look_alikes(&config.duplicates, &mut runner)?,
            };
            let file_of = |split, image: &Digest| features.json.file_of(split, image);
            let figures = pipeline::evaluate(&config.evaluate, &data, &file_of, &mut runner)?;
            let suspects = pipeline::suspects(&config.suspects, &data, &figures, &mut runner)?;
            let neighbours = pipeline::neighbours(&config.neighbours, &data, &figures, &mut runner)?;
            let found = Found {
                data,
                figures,
                suspects,
                neighbours,
            };
            let names = RowNames::read(&features.json, features.digest);
            let page = export::report(self.cache, reports, &found, &names, &runner.times()?)?;
            runner.finish()?;
            Ok(page)
        })
    }

    fn runner(&self, folder: &Path, purpose: Purpose) -> Result<Runner<'_>> {
        Runner::new(self.cache, self.observer, self.on_stage, project(folder)?, purpose)
    }
}

/// A folder of features, as it was read.
struct FeaturesFolder {
    json: FeaturesJson,
    /// The digest of `features.json`.
    digest: Digest,
    train: FeatureTable,
    test: FeatureTable,
    /// The perceptual hashes of both splits, `f32 [n, 192]` each.
    hashes: Option<[Array2<f32>; 2]>,
}

impl FeaturesFolder {
    fn read(folder: &Path) -> Result<Self> {
        let (json, digest) = features_folder::read_json(folder)?;
        let [train, test] = [Split::Train, Split::Test].map(|split| features_folder::read_table(folder, split, &json));
        let (train, test) = (train?, test?);
        let hashes = [Split::Train, Split::Test].map(|split| features_folder::read_hashes(folder, split, &json));
        let hashes = match hashes {
            [Err(error), _] | [_, Err(error)] => return Err(error),
            [Ok(Some(train)), Ok(Some(test))] => Some([train, test]),
            _ => None,
        };
        Ok(FeaturesFolder {
            json,
            digest,
            train,
            test,
            hashes,
        })
    }

    /// Finds the images that look the same, if there are perceptual hashes.
    fn look_alikes(&self, config: &DuplicatesConfig, runner: &mut Runner<'_>) -> Result<Option<Digest>> {
        let Some(hashes) = &self.hashes else { return Ok(None) };
        for hashes in hashes {
            runner.cache.put_vectors(hashes.view())?;
        }
        for table in [&self.train, &self.test] {
            runner.cache.put_vectors(table.features())?;
        }
        let digests = hashes
            .each_ref()
            .map(|hashes| hashes.outer_iter().map(vector_digest).collect::<Vec<_>>());
        let (train, test) = (self.train.rows(), self.test.rows());
        let images = ImageRows::new(&[(&train, &digests[0]), (&test, &digests[1])], hashes[0].ncols());
        let images = runner.cache.put(&images)?;
        pipeline::duplicates(config, images, runner).map(Some)
    }
}

/// What cross-validation's models say of these training images: nothing if the file is not there, or is about others.
fn read_held_out(path: &Path, model: &Model, train: &FeatureTable) -> Result<HeldOutPredictions> {
    use luthier_artifact::Artifact as _;
    let expected = HeldOutPredictions::digest_of(&train.images, &train.labels);
    let none = HeldOutPredictions::none(expected, model.classes.len());
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(none),
        other => other.map_err(Error::io(path))?,
    };
    let found = HeldOutPredictions::decode(&bytes).map_err(|source| luthier_classify::Error::File {
        path: path.to_owned(),
        source,
    })?;
    let fits = found.probabilities.ncols() == model.classes.len() && found.rows.iter().all(|&row| row < train.n_rows());
    if found.train == expected && fits {
        return Ok(found);
    }
    tracing::warn!(
        "{} is about other training images: the labels of these are not judged",
        path.display()
    );
    Ok(none)
}

/// Starts over when the cache turns out to have lost an artifact: the stage that makes it then runs. Each time at least
/// one stage more is whole. `run` must not open the cache anew: a cache that can only be read would forget what it has
/// lost.
fn retry<T>(mut run: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in STAGES {
        match run() {
            Err(error) if error.is_loss() => tracing::warn!("{error}: starting over"),
            other => return other,
        }
    }
    run()
}

fn make_folder(folder: &Path) -> Result<()> {
    create_dir_all(folder).map_err(Error::io(folder))
}

/// A project is known by the folder it writes to.
fn project(folder: &Path) -> Result<String> {
    let path = std::path::absolute(folder).map_err(Error::io(folder))?;
    // `.` and `..` stay in an absolute path: the same folder must have one name.
    let path: PathBuf = path.canonicalize().unwrap_or(path);
    Ok(path.display().to_string())
}
