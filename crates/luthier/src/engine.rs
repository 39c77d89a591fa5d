//! What can be asked of Luthier: to run the pipeline or to plan it, and each of its parts from and to folders.

use std::collections::{HashMap, HashSet};
use std::fs::create_dir_all;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use luthier_artifact::{
    Artifact as _, Content, Digest, ImageRows, Key, ManifestEntry, Observer, Split, file_names, folder_of,
};
use luthier_cache::{Cache, Reuse};
use luthier_classify::{ChooseC, ClassifyConfig, HeldOutPredictions, Model};
use luthier_eval::{DuplicatesConfig, EvaluateConfig, MapConfig, NeighboursConfig, Skipped, SuspectsConfig, Warning};
use luthier_extract::{DataSource, Layout, decided_classes};
use luthier_features::{FeaturesConfig, read_all};
use ndarray::Array2;
use serde::{Serialize, Serializer};

use crate::estimate;
use crate::export::{self, HELD_OUT_FILE, MODEL_FILE, PAGE_FILE, RowNames};
use crate::features_folder::{self, FeaturesJson, ReadHashes, ReadTable, places, skipped_files};
use crate::history::{EarlierRun, PastRun};
use crate::moments_folder::{self, TakenOf};
use crate::pipeline::{self, Data, Made, OutputFolders, Pipeline};
use crate::reason::Reasons;
use crate::report;
use crate::results::{Evaluated, Extracted, Found, StoredLookAlikes, Trained, check_all_read, load, open_table};
use crate::runner::{Purpose, Runner, STAGES, StageReport, Status, VIEWS};
use crate::session::{Session, SessionFile, SessionImage, Task};
use crate::shard::Shard;
use crate::views::JudgedViews;
use crate::{Error, Result};

/// Runs pipelines, or parts of them, through a cache.
pub struct Engine<'a> {
    /// Where results are kept. A run opens its cache once: a cache that can only be read would forget what it has lost.
    pub cache: &'a Cache,
    /// Told how work proceeds, and asked whether it may go on.
    pub observer: &'a dyn Observer,
    /// Told of each stage that ends.
    pub on_stage: &'a dyn Fn(&StageReport),
    /// The time that reports say.
    pub now: SystemTime,
}

/// What a run of the pipeline gave.
#[derive(Clone, Debug, Serialize)]
pub struct PipelineSummary {
    /// The stages, in order.
    pub stages: Vec<StageReport>,
    /// The images.
    pub images: ImageCounts,
    /// How well the model does on the test images; `None` if there are none.
    pub test: Option<TestFigures>,
    /// How well the models of the cross-validation do on training images that they have not seen; `None` if C was given.
    pub held_out: Option<TestFigures>,
    /// Where the files are.
    pub outputs: OutputPaths,
    /// How the views were chosen; `None` if there was no choice.
    pub views: Option<JudgedViews>,
    /// What a reader must know before believing the figures.
    pub warnings: Vec<Warning>,
    /// The images that could not be read.
    #[serde(skip)]
    pub skipped: Vec<Skipped>,
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

impl ImageCounts {
    fn of(extracted: &Extracted, n_files: usize) -> Self {
        ImageCounts {
            total: n_files,
            embedded: extracted.n_embedded,
            reused: extracted.n_reused,
            skipped: extracted.skipped_files.len(),
        }
    }
}

/// Figures on images that were not trained on.
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
    #[serde(serialize_with = "as_name")]
    pub features: PathBuf,
    /// The model file.
    #[serde(serialize_with = "as_name")]
    pub model: PathBuf,
    /// The page of the report.
    #[serde(serialize_with = "as_name")]
    pub report: PathBuf,
}

impl OutputPaths {
    pub(crate) fn of(folders: &OutputFolders) -> Self {
        OutputPaths {
            features: folders.features.clone(),
            model: folders.models.join(MODEL_FILE),
            report: folders.reports.join(PAGE_FILE),
        }
    }
}

/// A path that is not UTF-8 has a name all the same.
fn as_name<S: Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&file_names::name_of(path))
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
    pub skipped: Vec<Skipped>,
}

/// What embedding a part of the images gave.
#[derive(Clone, Debug)]
pub struct ShardSummary {
    /// Distinct images of the part.
    pub images: usize,
    /// Those that went through the network.
    pub embedded: usize,
    /// Those that cannot be decoded.
    pub skipped: usize,
}

/// What taking the moments of a part gave.
#[derive(Clone, Debug)]
pub struct MomentsSummary {
    /// The file.
    pub path: PathBuf,
    /// How many rows they are of, one for each file of a training image.
    pub n_rows: usize,
    /// The training images of the part that could not be decoded, and all that could not be read.
    pub skipped: Vec<Skipped>,
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
    /// A folder of [moments](Engine::moments) that scaler and components are fitted to; `None` for the training features.
    pub moments: Option<PathBuf>,
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
    /// How the map is drawn.
    pub map: MapConfig,
}

impl Engine<'_> {
    /// Runs the pipeline, each stage only if something it depends on changed, and writes `features/`, `models/` and
    /// `reports/` below `out`.
    ///
    /// # Errors
    /// Those of the stages.
    pub fn run(&self, pipeline: &Pipeline, data: &Data, out: &Path) -> Result<PipelineSummary> {
        make_folder(out)?;
        let outputs = OutputFolders::below(out, self.now);
        retry(|| {
            let mut runner = self.runner(out, Purpose::Run)?;
            let made = pipeline.stages(data, Some(&outputs), &mut runner)?;
            self.summarize(made, &outputs, runner)
        })
    }

    fn summarize(&self, made: Made, outputs: &OutputFolders, runner: Runner<'_>) -> Result<PipelineSummary> {
        let Made {
            scan, extracted, found, ..
        } = made;
        let model: Model = load(self.cache, &found.data.trained.model)?;
        let evaluation = found.figures.evaluation();
        let images = places(&scan.manifest, &extracted.skipped_images);
        let (test, held_out) = TestFigures::both(evaluation);
        Ok(PipelineSummary {
            images: ImageCounts::of(&extracted, scan.manifest.entries.len()),
            test,
            held_out,
            outputs: OutputPaths::of(outputs),
            views: found.views,
            warnings: report::warnings(&model, images, found.data.look_alikes()),
            skipped: extracted.skipped_files,
            stages: runner.finish()?,
        })
    }

    /// Says what [`run`](Engine::run) would do. Runs nothing, and writes no files for the user.
    ///
    /// # Errors
    /// Those of scanning and of the cache.
    pub fn plan(&self, pipeline: &Pipeline, data: &Data, out: &Path) -> Result<Plan> {
        retry(|| self.plan_once(pipeline, data, out))
    }

    fn plan_once(&self, pipeline: &Pipeline, data: &Data, out: &Path) -> Result<Plan> {
        let mut runner = self.runner(out, Purpose::Plan)?;
        let Made {
            scan,
            extract: config,
            views_to_embed,
            ..
        } = pipeline.stages(data, None, &mut runner)?;
        let planned = runner.into_plan()?;
        let extract = planned.iter().find(|(report, ..)| report.name == "extract");
        let to_embed = match (extract, &config) {
            (Some((report, ..)), Some(config)) if report.status == Status::Stale => {
                Some(config.count_missing(&scan.manifest, self.cache)?)
            }
            _ => views_to_embed,
        };
        let stages = planned.into_iter().map(|(report, key, previous)| {
            let StageReport {
                name, status, reasons, ..
            } = report;
            let estimated_seconds = match (status, name) {
                // It has just been done: the next time it reads only what changes until then.
                (_, "scan") => None,
                // How much there is to embed is known only when the views are.
                (Status::Stale, "extract") if views_to_embed.is_some() => None,
                (Status::Stale, "extract" | VIEWS) => estimate::seconds(self.cache, &key, to_embed)?,
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

    /// The runs of the pipeline that wrote to `out`, the oldest first, as far as the cache still knows them.
    ///
    /// # Errors
    /// Those of the cache.
    pub fn runs(&self, out: &Path) -> Result<Vec<EarlierRun>> {
        let runs = PastRun::all(self.cache, &project(out)?)?;
        let before = std::iter::once(None).chain(runs.iter().map(Some));
        let described = runs
            .iter()
            .zip(before)
            .map(|(run, before)| run.describe(before, self.cache));
        described.collect()
    }

    /// Goes back to an earlier run: its features, its model and its report are written below `out` again. Now it is the
    /// last run. `source` says where the images are; the report shows those that are still there.
    ///
    /// # Errors
    /// [`Error::NoSuchRun`] if the cache knows no run of this number that wrote to `out`, [`Error::RunIsGone`] if it has lost some of its results.
    pub fn restore(&self, source: &DataSource, number: i64, out: &Path) -> Result<OutputPaths> {
        let project = project(out)?;
        let runs = PastRun::all(self.cache, &project)?;
        let Some(run) = runs.iter().find(|run| run.run.id == number) else {
            let known = runs.iter().map(|run| run.run.id).collect();
            return Err(Error::NoSuchRun { number, known });
        };
        let outputs = run.restore(self.cache, source, out)?;
        self.cache.record_run(&project, &run.run.stages, Reuse::default())?;
        Ok(outputs)
    }

    /// Scans and extracts, and writes the features to a folder: of each split, or, of a data set without labels, of all
    /// images. Views are not chosen, but taken as the extract stage has them.
    ///
    /// # Errors
    /// Those of the stages.
    pub fn extract(&self, pipeline: &Pipeline, data: &Data, folder: &Path) -> Result<ExtractSummary> {
        make_folder(folder)?;
        retry(|| {
            let mut runner = self.runner(folder, Purpose::Run)?;
            let (scan, manifest) = pipeline.scan(data, &mut runner)?;
            let extracted = pipeline.extract(Some(&pipeline.extract), data, &scan, manifest, &mut runner)?;
            let names = RowNames::extracted(self.cache, &data.source, (&scan, manifest), &extracted)?;
            match data.source.layout {
                Layout::Unlabelled(_) => export::unlabelled_features(self.cache, folder, &names, &extracted)?,
                _ => export::features(self.cache, folder, &names, &extracted)?,
            }
            drop(names);
            Ok(ExtractSummary {
                images: ImageCounts::of(&extracted, scan.manifest.entries.len()),
                skipped: extracted.skipped_files,
                stages: runner.finish()?,
            })
        })
    }

    /// Scans, and embeds the images of one part into the cache. Nothing else is written: a run on all images finds their
    /// features. `folder` is where that run will write to.
    ///
    /// # Errors
    /// Those of the stages.
    pub fn embed_shard(&self, pipeline: &Pipeline, data: &Data, shard: Shard, folder: &Path) -> Result<ShardSummary> {
        retry(|| {
            let mut runner = self.runner(folder, Purpose::Run)?;
            let (scan, _) = pipeline.scan(data, &mut runner)?;
            let images = shard.of(&scan.manifest);
            let distinct: HashSet<Digest> = images
                .entries
                .iter()
                .filter_map(|entry| entry.content.digest())
                .collect();
            runner.begin()?;
            let (embedded, skipped) = pipeline.embed(data, &images, &runner)?;
            runner.finish()?;
            Ok(ShardSummary {
                images: distinct.len(),
                embedded,
                skipped: skipped.0.len(),
            })
        })
    }

    /// Scans, embeds the training images of one part, and writes the moments of their features to a folder, in a file of
    /// the part's own.
    ///
    /// # Errors
    /// Those of the stages.
    pub fn moments(&self, pipeline: &Pipeline, data: &Data, shard: Shard, folder: &Path) -> Result<MomentsSummary> {
        make_folder(folder)?;
        retry(|| {
            let mut runner = self.runner(folder, Purpose::Run)?;
            let (scan, images) = pipeline.scan(data, &mut runner)?;
            let mut part = shard.of(&scan.manifest);
            part.entries.retain(|entry| entry.split == Split::Train);
            runner.begin()?;
            let (moments, extractor, skipped) = pipeline.moments(data, &part, &runner)?;
            runner.finish()?;
            // Which part has a file that cannot be read, nobody knows: all of them speak of it.
            let is_unreadable =
                |entry: &&ManifestEntry| entry.content.digest().is_none() && entry.split == Split::Train;
            part.entries
                .extend(scan.manifest.entries.iter().filter(is_unreadable).cloned());
            let skipped = skipped_files(&part, &skipped);
            if data.is_strict {
                check_all_read(&skipped)?;
            }
            let of = TakenOf {
                images,
                extractor: &extractor,
            };
            Ok(MomentsSummary {
                path: moments_folder::write(folder, shard, of, &moments)?,
                n_rows: moments.n_rows(),
                skipped,
            })
        })
    }

    /// Embeds the images and begins a session about them. Decisions are read from the file `decisions` and written to it.
    /// With the session come the files that could not be read.
    ///
    /// # Errors
    /// Those of the stages and of [`Session::new`].
    pub fn session(
        &self,
        pipeline: &Pipeline,
        data: &Data,
        task: Task,
        decisions: &Path,
    ) -> Result<(Session, Vec<Skipped>)> {
        let (images, features, look_alikes, skipped) = retry(|| {
            let mut runner = self.runner(folder_of(decisions), Purpose::Run)?;
            let (scan, manifest) = pipeline.scan(data, &mut runner)?;
            let extracted = pipeline.extract(Some(&pipeline.extract), data, &scan, manifest, &mut runner)?;
            let look_alikes = match task {
                Task::Label => Vec::new(),
                Task::Review => {
                    pipeline::duplicates(&pipeline.duplicates, extracted.images, &mut runner)?
                        .found
                        .groups
                }
            };
            let mut files: HashMap<Digest, Vec<&ManifestEntry>> = HashMap::new();
            for entry in &scan.manifest.entries {
                if let Content::Digest(digest) = entry.content {
                    files.entry(digest).or_default().push(entry);
                }
            }
            let name = |entry: &&ManifestEntry| data.source.name(entry);
            let names = |entries: &Vec<&ManifestEntry>| entries.iter().map(name).collect::<Vec<String>>();
            let of_unlabelled = match data.source.layout {
                Layout::Unlabelled(_) => {
                    let names = files.iter().map(|(digest, entries)| (*digest, names(entries)));
                    decided_classes(decisions, &names.collect())?
                }
                _ => HashMap::new(),
            };
            let (mut images, mut features, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
            for digest in [extracted.train, extracted.test] {
                let table = open_table(self.cache, &digest)?;
                let rows = read_all(&table)?;
                for (image, row) in table.rows().images.iter().zip(rows.outer_iter()) {
                    let decided = of_unlabelled.get(image);
                    let (Some(entries), true) = (files.get(image), decided != Some(&None) && seen.insert(*image))
                    else {
                        continue;
                    };
                    let class = |entry: &ManifestEntry| Some(entry.class.clone()).filter(|class| !class.is_empty());
                    let is_checked = scan.decided.checked.binary_search(image).is_ok();
                    let file = |entry: &&ManifestEntry| SessionFile {
                        name: name(entry),
                        path: data.source.path(entry),
                        split: entry.split,
                        class: class(entry),
                    };
                    features.extend(row);
                    images.push(SessionImage {
                        digest: *image,
                        files: entries.iter().map(file).collect(),
                        is_kept: scan.decided.kept.binary_search(image).is_ok(),
                        checked: (decided.cloned().flatten()).or_else(|| class(entries[0]).filter(|_| is_checked)),
                    });
                }
            }
            runner.finish()?;
            let width = features.len() / images.len().max(1);
            let features = Array2::from_shape_vec((images.len(), width), features);
            let features = features.expect("every row has the same width");
            Ok((images, features, look_alikes, extracted.skipped_files))
        })?;
        Ok((Session::new(task, images, features, &look_alikes, decisions)?, skipped))
    }

    /// Trains on a folder of features, and writes the model to a folder. The result is the path of the model, and the
    /// model.
    ///
    /// # Errors
    /// [`Error::NoFeatures`], [`Error::FeaturesFile`] and [`Error::MixedFeatures`] if the features cannot be used,
    /// [`Error::Moments`] if the moments cannot, and those of the stages.
    pub fn train(&self, config: &TrainConfig, features: &Path, models: &Path) -> Result<(PathBuf, Model)> {
        let folder = FeaturesFolder::open(features)?;
        let train = folder.table(Split::Train)?;
        // Look-alikes matter to cross-validation alone, and may be test images.
        let looks = match config.classify.c {
            ChooseC::Auto(_) => folder.hashes()?,
            ChooseC::Fixed(_) => None,
        };
        let looks = match looks {
            Some(hashes) => Some((folder.table(Split::Test)?, hashes)),
            None => None,
        };
        let moments = match &config.moments {
            Some(moments) => Some(moments_folder::read(moments, &train.rows.extractor)?),
            None => None,
        };
        make_folder(models)?;
        retry(|| {
            let mut runner = self.runner(models, Purpose::Run)?;
            let stored = self.store(&train)?;
            let duplicates = match &looks {
                Some((test, hashes)) => {
                    self.cache.put_vectors(test.features.view())?;
                    Some(find_duplicates(
                        &config.duplicates,
                        [&train, test],
                        hashes,
                        &mut runner,
                    )?)
                }
                None => None,
            };
            let file_of = |split, image: &Digest| folder.json.file_of(split, image);
            let projection = match &moments {
                Some(moments) => pipeline::features_of_moments(&config.features, moments.clone(), &mut runner)?,
                None => pipeline::features(&config.features, stored, &file_of, &mut runner)?,
            };
            let trained = pipeline::classify(
                &config.classify,
                stored,
                projection,
                duplicates.as_ref(),
                &file_of,
                &mut runner,
            )?;
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
        let folder = FeaturesFolder::open(features)?;
        let (train, test) = (folder.table(Split::Train)?, folder.table(Split::Test)?);
        let hashes = folder.hashes()?;
        let held_out = read_held_out(&models.join(HELD_OUT_FILE), &model, &train)?;
        make_folder(reports)?;
        retry(|| {
            let mut runner = self.runner(reports, Purpose::Run)?;
            let trained = Trained {
                model: self.cache.put(&model)?,
                held_out: self.cache.put(&held_out)?,
            };
            let stored = (self.store(&train)?, self.store(&test)?);
            let duplicates = match &hashes {
                Some(hashes) => Some(find_duplicates(
                    &config.duplicates,
                    [&train, &test],
                    hashes,
                    &mut runner,
                )?),
                None => None,
            };
            let data = Evaluated {
                trained,
                train: stored.0,
                test: stored.1,
                duplicates,
            };
            let file_of = |split, image: &Digest| folder.json.file_of(split, image);
            let figures = pipeline::evaluate(&config.evaluate, &data, &file_of, &mut runner)?;
            let suspects = pipeline::suspects(
                &config.suspects,
                &data,
                &figures,
                &folder.json.decided.checked,
                &mut runner,
            )?;
            let neighbours = pipeline::neighbours(&config.neighbours, &data, &figures, suspects, &mut runner)?;
            let map = pipeline::map(&config.map, &data, &figures, &mut runner)?;
            let found = Found {
                views: None,
                data,
                figures,
                suspects,
                neighbours,
                map,
            };
            let names = RowNames::read(&folder.json, folder.digest);
            let page = export::report_of_run(&mut runner, reports, &found, &names, self.now)?;
            runner.finish()?;
            Ok(page)
        })
    }

    /// Stores a table that was read: its features, and its rows as an artifact.
    fn store(&self, table: &ReadTable) -> Result<Digest> {
        self.cache.put_vectors(table.features.view())?;
        Ok(self.cache.put(&table.rows)?)
    }

    fn runner(&self, folder: &Path, purpose: Purpose) -> Result<Runner<'_>> {
        Runner::new(self.cache, self.observer, self.on_stage, project(folder)?, purpose)
    }
}

/// A folder of features.
struct FeaturesFolder<'a> {
    path: &'a Path,
    json: FeaturesJson,
    /// The digest of `features.json`.
    digest: Digest,
}

impl<'a> FeaturesFolder<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let (json, digest) = features_folder::read_json(path)?;
        Ok(FeaturesFolder { path, json, digest })
    }

    fn table(&self, split: Split) -> Result<ReadTable> {
        features_folder::read_table(self.path, split, &self.json)
    }

    /// The perceptual hashes of both splits, if they are there.
    fn hashes(&self) -> Result<Option<[ReadHashes; 2]>> {
        let read = |split| features_folder::read_hashes(self.path, split, &self.json);
        let (train, test) = (read(Split::Train)?, read(Split::Test)?);
        Ok(train.zip(test).map(<[ReadHashes; 2]>::from))
    }
}

/// Finds the images of both splits that look the same. The cache has their features.
fn find_duplicates(
    config: &DuplicatesConfig,
    [train, test]: [&ReadTable; 2],
    hashes: &[ReadHashes; 2],
    runner: &mut Runner<'_>,
) -> Result<StoredLookAlikes> {
    for ReadHashes { hashes, .. } in hashes {
        runner.cache.put_vectors(hashes.view())?;
    }
    let [of_train, of_test] = hashes;
    let tables = [(&train.rows, &*of_train.vectors), (&test.rows, &*of_test.vectors)];
    let images = runner.cache.put(&ImageRows::new(&tables, of_train.hashes.ncols()))?;
    pipeline::duplicates(config, images, runner)
}

/// What cross-validation's models say of these training images: nothing if the file is not there, or is about others.
fn read_held_out(path: &Path, model: &Model, train: &ReadTable) -> Result<HeldOutPredictions> {
    let train = &train.rows;
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
    Ok(file_names::name_of(&path))
}
