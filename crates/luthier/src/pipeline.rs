//! The method: scan → (views) → extract → duplicates → features → classify → evaluate → suspects → neighbours.
//!
//! [`Pipeline::stages`] names the stages in order. Each function below it takes one stage through the cache. What a
//! stage does is in its crate; whether it runs is for the [`Runner`] to decide.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use luthier_artifact::{Content, Digest, ExtractorInfo, FeatureRows, ImageRows, Key, Manifest, ReadRows, Split};
use luthier_cache::Cache;
use luthier_classify::{ChooseC, Classified, ClassifyConfig, HeldOutPredictions, Model, Training};
use luthier_eval::{
    DuplicatesConfig, EvaluateConfig, Evaluation, HeldOutImages, ImageRef, LookAlikes, MapConfig, NearestImages,
    Neighbours, NeighboursConfig, Predictions, Suspect, Suspects, SuspectsConfig, TestProbabilities,
};
use luthier_extract::{
    DataSource, ExtractConfig, ExtractContext, Extraction, Rehash, Scan, SkippedImages, WeightsStore, scan,
};
use luthier_features::{FeaturesConfig, Interruptible, Moments, Projection};
use ndarray::Array2;

use crate::export::{self, RowNames};
use crate::features_folder::{digest_of, skipped_files};
use crate::moments_folder;
use crate::results::{
    Evaluated, Extracted, Figures, Found, HeldTogether, StoredLookAlikes, Trained, check_all_read, features_of, load,
    open_table,
};
use crate::runner::{Runner, StageResult, VIEWS, is_pending, pending};
use crate::views::{self, Judge, Judged, JudgedView, JudgedViews, ViewsConfig};
use crate::words::counted;
use crate::{Error, Result};

/// The configuration of all stages.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// Which features serve best; `None` if `extract` says which.
    pub views: Option<ViewsConfig>,
    /// Images → features.
    pub extract: ExtractConfig,
    /// Images → images that look the same.
    pub duplicates: DuplicatesConfig,
    /// Features → projection.
    pub features: FeaturesConfig,
    /// Projected features → model.
    pub classify: ClassifyConfig,
    /// Model → figures.
    pub evaluate: EvaluateConfig,
    /// Model → labels worth a look.
    pub suspects: SuspectsConfig,
    /// Features → nearest training images.
    pub neighbours: NeighboursConfig,
    /// Features → a map of the evaluated images.
    pub map: MapConfig,
    /// Where weights are kept.
    pub store: WeightsStore,
    /// How many threads the network uses; no result depends on it.
    pub n_threads: usize,
}

/// How a data set is read.
#[derive(Clone, Debug)]
pub struct Data {
    /// The folders.
    pub source: DataSource,
    /// Whether files are read that have not changed by their size, time and inode.
    pub rehash: Rehash,
    /// Whether an unreadable image is an error.
    pub is_strict: bool,
}

/// Where a run writes to, and what time the report says.
#[derive(Clone, Debug)]
pub(crate) struct OutputFolders {
    /// `.npy` files and `features.json`.
    pub(crate) features: PathBuf,
    /// `model.safetensors`.
    pub(crate) models: PathBuf,
    /// The report.
    pub(crate) reports: PathBuf,
    /// When the run began.
    pub(crate) now: SystemTime,
}

impl OutputFolders {
    /// `features/`, `models/` and `reports/` in a folder.
    pub(crate) fn below(out: &Path, now: SystemTime) -> Self {
        OutputFolders {
            features: out.join("features"),
            models: out.join("models"),
            reports: out.join("reports"),
            now,
        }
    }
}

/// What the features are, and how they were chosen.
struct ChosenViews {
    /// `None` while it is pending.
    extract: Option<ExtractConfig>,
    /// `None` if there was no choice.
    judged: Option<JudgedViews>,
    /// How many images lack features of a candidate, while the choice is pending.
    to_embed: Option<usize>,
    /// How many images went through the network for the choice.
    n_embedded: usize,
}

/// What all stages gave.
pub(crate) struct Made {
    pub(crate) scan: Scan,
    /// The features that were chosen; `None` while the choice is pending.
    pub(crate) extract: Option<ExtractConfig>,
    /// How many images the choice would embed, while it is pending.
    pub(crate) views_to_embed: Option<usize>,
    pub(crate) extracted: Extracted,
    pub(crate) found: Found,
}

impl Pipeline {
    /// The method: every stage in order. Files for the user are written as soon as what they hold is there; a plan,
    /// without `outputs`, writes none.
    pub(crate) fn stages(&self, data: &Data, outputs: Option<&OutputFolders>, runner: &mut Runner<'_>) -> Result<Made> {
        let cache = runner.cache;
        let (scan, manifest) = self.scan(data, runner)?;
        self.check_evaluable(&scan)?;
        let views = self.choose_views(data, &scan, runner)?;
        let mut extracted = self.extract(views.extract.as_ref(), data, &scan, manifest, runner)?;
        // The cache had their features for `extract`, but only since this run.
        extracted.n_embedded += views.n_embedded;
        extracted.n_reused = extracted.n_reused.saturating_sub(views.n_embedded);
        runner.count_images(extracted.n_reused, extracted.n_embedded);
        let names = RowNames::extracted(cache, &data.source, (&scan, manifest), &extracted)?;
        if let Some(OutputFolders { features, .. }) = outputs {
            export::features(cache, features, &names, &extracted)?;
        }
        let file_of = |split, image: &Digest| file_of(&scan.manifest, data, split, image);

        let duplicates = duplicates(&self.duplicates, extracted.images, runner)?;
        let projection = features(&self.features, extracted.train, &file_of, runner)?;
        let trained = classify(
            &self.classify,
            extracted.train,
            projection,
            Some(&duplicates),
            &file_of,
            runner,
        )?;
        if let Some(OutputFolders { models, .. }) = outputs {
            export::model(cache, models, trained)?;
        }

        let evaluated = Evaluated {
            trained,
            train: extracted.train,
            test: extracted.test,
            duplicates: Some(duplicates),
        };
        let figures = evaluate(&self.evaluate, &evaluated, &file_of, runner)?;
        let suspects = suspects(&self.suspects, &evaluated, &figures, &scan.decided.checked, runner)?;
        let neighbours = neighbours(&self.neighbours, &evaluated, &figures, suspects, runner)?;
        let map = map(&self.map, &evaluated, &figures, runner)?;
        let found = Found {
            views: views.judged,
            data: evaluated,
            figures,
            suspects,
            neighbours,
            map,
        };
        if let Some(OutputFolders { reports, now, .. }) = outputs {
            export::report_of_run(runner, reports, &found, &names, *now)?;
        }
        drop(names);
        Ok(Made {
            scan,
            extract: views.extract,
            views_to_embed: views.to_embed,
            extracted,
            found,
        })
    }

    /// Before hours of work: something must be there to evaluate the model by.
    fn check_evaluable(&self, scan: &Scan) -> Result<()> {
        let has_test = scan.manifest.entries.iter().any(|entry| entry.split == Split::Test);
        match self.classify.c {
            ChooseC::Fixed(_) if !has_test => Err(Error::NothingToEvaluate),
            _ => Ok(()),
        }
    }

    /// Folders → manifest. Always looks at the folders; a file is read only if its stat changed.
    pub(crate) fn scan(&self, data: &Data, runner: &mut Runner<'_>) -> Result<(Scan, Digest)> {
        let start = Instant::now();
        let found = scan(&data.source, runner.cache, data.rehash, runner.observer)?;
        let digest = runner.cache.put(&found.manifest)?;
        // The folders are the input, and the manifest says all there is to know of them.
        let key = Key::stage("scan", 1).input("manifest", digest).finish();
        runner.seen("scan", key, digest, start)?;
        runner.tell(|| Ok(describe_scan(&found)))?;
        Ok((found, digest))
    }

    /// Training images, or a sample of them → the features that serve best, if there is a choice.
    fn choose_views(&self, data: &Data, scan: &Scan, runner: &mut Runner<'_>) -> Result<ChosenViews> {
        let Some(config) = &self.views else {
            return Ok(ChosenViews {
                extract: Some(self.extract.clone()),
                judged: None,
                to_embed: None,
                n_embedded: 0,
            });
        };
        let cache = runner.cache;
        let sample = views::sample(&scan.manifest, self.classify.folds)?;
        let judge = Judge {
            extract: &self.extract,
            duplicates: &self.duplicates,
            features: &self.features,
            classify: &self.classify,
        };
        let mut n_embedded = 0;
        let context = self.context(data, &sample, runner);
        let key = config.key(judge, &sample)?;
        let outputs = runner.stage_that_refers(VIEWS, key, || {
            let Judged {
                views,
                n_embedded: embedded,
                references,
            } = config.run(judge, &context)?;
            n_embedded = embedded;
            Ok(StageResult {
                outputs: vec![("judged", cache.put(&views)?)],
                references,
                n_embedded: Some(n_embedded),
            })
        })?;
        let digest = outputs.get("judged");
        if is_pending(&digest) {
            let to_embed = self.extract.count_missing_of(&config.candidates, &sample, cache)?;
            return Ok(ChosenViews {
                extract: None,
                judged: None,
                to_embed: Some(to_embed),
                n_embedded: 0,
            });
        }
        let judged: JudgedViews = load(cache, &digest)?;
        runner.tell(|| Ok(describe_views(&judged)))?;
        Ok(ChosenViews {
            extract: Some(views::of_kind(&self.extract, config.candidates[judged.best])),
            judged: Some(judged),
            to_embed: None,
            n_embedded,
        })
    }

    /// What images are embedded with.
    fn context<'a>(&'a self, data: &'a Data, manifest: &'a Manifest, runner: &Runner<'a>) -> ExtractContext<'a> {
        ExtractContext {
            source: &data.source,
            manifest,
            cache: runner.cache,
            store: &self.store,
            n_threads: self.n_threads,
            observer: runner.observer,
        }
    }

    /// Manifest → features in the cache, and no tables. The result is how many images went through the network, and those
    /// that cannot be decoded.
    pub(crate) fn embed(
        &self,
        data: &Data,
        manifest: &Manifest,
        runner: &Runner<'_>,
    ) -> Result<(usize, SkippedImages)> {
        self.store.remember(&self.extract.extractor.weights);
        let kinds = self.extract.extractor.kinds();
        let context = self.context(data, manifest, runner);
        Ok(self.extract.embed(&kinds, &context)?)
    }

    /// A part of the training images → the moments of their features, how the features were made, and the images that
    /// cannot be decoded.
    pub(crate) fn moments(
        &self,
        data: &Data,
        part: &Manifest,
        runner: &Runner<'_>,
    ) -> Result<(Moments, ExtractorInfo, SkippedImages)> {
        self.store.remember(&self.extract.extractor.weights);
        let Extraction { train, skipped, .. } = self.extract.run_on_part(&self.context(data, part, runner))?;
        let rows = features_of(runner.cache, &runner.cache.put(&train)?, &train);
        let observer = runner.observer;
        let moments = match rows.n_rows() {
            0 => Moments::of_no_rows(rows.n_features()),
            _ => Moments::of(Interruptible { rows: &rows, observer }).map_err(|error| {
                let file_of = |split, image: &Digest| file_of(part, data, split, image);
                name_image(error.into(), &train, Split::Train, &file_of)
            })?,
        };
        Ok((moments, train.extractor, skipped))
    }

    /// Manifest → features of both splits. Only images that the cache does not know go through the network.
    ///
    /// `config` is `None` while the views are to be chosen.
    pub(crate) fn extract(
        &self,
        config: Option<&ExtractConfig>,
        data: &Data,
        scan: &Scan,
        manifest: Digest,
        runner: &mut Runner<'_>,
    ) -> Result<Extracted> {
        let mut n_embedded = 0;
        let cache = runner.cache;
        let key = match config {
            Some(config) => {
                if !runner.is_plan() {
                    self.store.remember(&config.extractor.weights);
                }
                config.key(manifest)?
            }
            None => Key::stage("extract", ExtractConfig::VERSION)
                .input("manifest", manifest)
                .input(VIEWS, pending())
                .finish(),
        };
        let context = self.context(data, &scan.manifest, runner);
        let outputs = runner.stage_that_refers("extract", key, || {
            let config = config.expect("a stage does not run while an input is pending");
            let extraction = config.run(&context)?;
            n_embedded = extraction.n_embedded;
            let images = cache.put(&extraction.images)?;
            let outputs = vec![
                ("train", cache.put(&extraction.train)?),
                ("test", cache.put(&extraction.test)?),
                ("images", images),
                ("skipped", cache.put(&extraction.skipped)?),
            ];
            Ok(StageResult {
                outputs,
                references: config.references(images)?,
                n_embedded: Some(n_embedded),
            })
        })?;
        let mut extracted = Extracted {
            train: outputs.get("train"),
            test: outputs.get("test"),
            images: outputs.get("images"),
            skipped: outputs.get("skipped"),
            skipped_files: Vec::new(),
            skipped_images: SkippedImages::default(),
            n_embedded,
            n_reused: 0,
        };
        if runner.is_plan() {
            return Ok(extracted);
        }
        extracted.skipped_images = load(cache, &extracted.skipped)?;
        extracted.skipped_files = skipped_files(&scan.manifest, &extracted.skipped_images);
        extracted.n_reused = (scan.manifest.entries.len()).saturating_sub(extracted.skipped_files.len() + n_embedded);
        runner.count_images(extracted.n_reused, n_embedded);
        runner.tell(|| Ok(extracted.describe()))?;
        if data.is_strict {
            check_all_read(&extracted.skipped_files)?;
        }
        Ok(extracted)
    }
}

/// The images → groups of images that look the same, whatever their labels.
pub(crate) fn duplicates(
    config: &DuplicatesConfig,
    images: Digest,
    runner: &mut Runner<'_>,
) -> Result<StoredLookAlikes> {
    let (cache, observer) = (runner.cache, runner.observer);
    let outputs = runner.stage("duplicates", config.key(images), || {
        let rows: ImageRows = load(cache, &images)?;
        let features = cache.stored_vectors(images, rows.features.clone(), rows.n_features);
        let hashes = cache.stored_vectors(images, rows.hashes.clone(), rows.n_hash_values);
        Ok(vec![(
            "look-alikes",
            cache.put(&config.run(&rows, &features, &hashes, observer)?)?,
        )])
    })?;
    let digest = outputs.get("look-alikes");
    let found: LookAlikes = match is_pending(&digest) {
        true => LookAlikes::default(),
        false => load(cache, &digest)?,
    };
    runner.tell(|| {
        Ok(match found.groups.len() {
            0 => "no images look the same".to_owned(),
            n => format!("{} of look-alikes", counted(n, "group")),
        })
    })?;
    Ok(StoredLookAlikes { digest, found })
}

/// Names the file of an image of a split, for errors.
pub(crate) type FileOf<'a> = &'a dyn Fn(Split, &Digest) -> Option<String>;

/// Training features → projection.
pub(crate) fn features(
    config: &FeaturesConfig,
    train: Digest,
    file_of: FileOf<'_>,
    runner: &mut Runner<'_>,
) -> Result<Digest> {
    let (cache, observer) = (runner.cache, runner.observer);
    let outputs = runner.stage("features", config.key(train), || {
        let table = open_table(cache, &train)?;
        let projection = config.run(&table, observer);
        let projection = projection.map_err(|error| name_image(error.into(), table.rows(), Split::Train, file_of))?;
        Ok(vec![("projection", cache.put(&projection)?)])
    })?;
    let projection = outputs.get("projection");
    tell_components(&projection, runner)?;
    Ok(projection)
}

/// Moments of features that were taken elsewhere → projection.
pub(crate) fn features_of_moments(
    config: &FeaturesConfig,
    moments: Moments,
    runner: &mut Runner<'_>,
) -> Result<Digest> {
    let cache = runner.cache;
    let outputs = runner.stage("features", config.key(moments_folder::digest_of(&moments)), || {
        let projection = Projection::of_moments(*config, moments)?;
        Ok(vec![("projection", cache.put(&projection)?)])
    })?;
    let projection = outputs.get("projection");
    tell_components(&projection, runner)?;
    Ok(projection)
}

fn tell_components(projection: &Digest, runner: &mut Runner<'_>) -> Result<()> {
    let cache = runner.cache;
    runner.tell(|| {
        let pca = load::<Projection>(cache, projection)?.pca;
        Ok(describe_components(
            pca.n_components(),
            pca.explained_variance_ratio.sum(),
        ))
    })
}

/// Training features, projected → model. Cross-validation holds out images that look alike together.
pub(crate) fn classify(
    config: &ClassifyConfig,
    train: Digest,
    projection: Digest,
    duplicates: Option<&StoredLookAlikes>,
    file_of: FileOf<'_>,
    runner: &mut Runner<'_>,
) -> Result<Trained> {
    let (cache, observer) = (runner.cache, runner.observer);
    let together = match duplicates {
        Some(duplicates) => duplicates.in_training(cache, &train)?,
        None => HeldTogether::default(),
    };
    let outputs = runner.stage("classify", config.key(train, projection, together.digest), || {
        let (table, projection) = (open_table(cache, &train)?, load::<Projection>(cache, &projection)?);
        let training = Training::new(table.rows(), &table).with_look_alikes(&together.groups);
        let classified = config.run(&training, &projection, observer);
        let Classified { model, held_out } =
            classified.map_err(|error| name_image(error.into(), table.rows(), Split::Train, file_of))?;
        Ok(vec![("model", cache.put(&model)?), ("held-out", cache.put(&held_out)?)])
    })?;
    let trained = Trained {
        model: outputs.get("model"),
        held_out: outputs.get("held-out"),
    };
    runner.tell(|| Ok(describe_c(&load(cache, &trained.model)?)))?;
    Ok(trained)
}

/// Model and test features → figures.
pub(crate) fn evaluate(
    config: &EvaluateConfig,
    data: &Evaluated,
    file_of: FileOf<'_>,
    runner: &mut Runner<'_>,
) -> Result<Figures> {
    let (cache, observer) = (runner.cache, runner.observer);
    let Trained { model, held_out } = data.trained;
    let outputs = runner.stage("evaluate", config.key(model, held_out, data.test), || {
        let model = load::<Model>(cache, &model)?;
        let held_out = HeldOut::load(cache, data)?;
        let test = open_table(cache, &data.test)?;
        check_match(&model, test.rows())?;
        let (evaluation, probabilities) = if test.rows().images.is_empty() {
            let Some(held_out) = &held_out else {
                return Err(Error::NothingToEvaluate);
            };
            let evaluation = config.run(Split::Train, &held_out.predictions(&model), None, observer)?;
            (evaluation, Array2::zeros((0, model.classes.len())))
        } else {
            let rows = test.rows();
            let scores = model.scores(Interruptible { rows: &test, observer });
            let scores = scores.map_err(|error| name_image(error.into(), rows, Split::Test, file_of))?;
            let [probabilities, uncalibrated] = model.probabilities(scores);
            let predictions = Predictions {
                classes: &model.classes,
                images: &rows.images,
                truth: &rows.labels,
                probabilities: probabilities.view(),
                uncalibrated: uncalibrated.view(),
            };
            let held_out = held_out.as_ref().map(|held_out| held_out.predictions(&model));
            let evaluation = config.run(Split::Test, &predictions, held_out.as_ref(), observer)?;
            (evaluation, probabilities)
        };
        Ok(vec![
            ("evaluation", cache.put(&evaluation)?),
            ("test-probabilities", cache.put(&TestProbabilities(probabilities))?),
        ])
    })?;
    let digest = outputs.get("evaluation");
    let evaluation: Option<Evaluation> = match is_pending(&digest) {
        true => None,
        false => Some(load(cache, &digest)?),
    };
    let rows = match &evaluation {
        Some(evaluation) => data.evaluated_rows(evaluation, cache)?,
        None => Vec::new(),
    };
    let figures = Figures {
        digest,
        test_probabilities: outputs.get("test-probabilities"),
        evaluation,
        rows,
    };
    runner.tell(|| {
        let Evaluation { accuracy, split, .. } = figures.evaluation();
        let of = if *split == Split::Train { ", held out" } else { "" };
        Ok(format!("accuracy {:.4}{of}", accuracy.value))
    })?;
    Ok(figures)
}

/// Model, held-out predictions and figures → labels worth a look. `checked` are the images whose label somebody has looked
/// at: they are no suspects.
pub(crate) fn suspects(
    config: &SuspectsConfig,
    data: &Evaluated,
    figures: &Figures,
    checked: &[Digest],
    runner: &mut Runner<'_>,
) -> Result<Digest> {
    let cache = runner.cache;
    let Trained { model, held_out } = data.trained;
    let of_checked = (!checked.is_empty()).then(|| digest_of(checked));
    let outputs = runner.stage("suspects", config.key(model, held_out, data.test, of_checked), || {
        let (train, test): (FeatureRows, FeatureRows) = (load(cache, &data.train)?, load(cache, &data.test)?);
        let held_out: HeldOutPredictions = load(cache, &held_out)?;
        let held_out = HeldOutImages {
            labels: &train.labels,
            rows: &held_out.rows,
            probabilities: held_out.probabilities.view(),
        };
        let checked: HashSet<&Digest> = checked.iter().collect();
        let TestProbabilities(of_test) = load(cache, &figures.test_probabilities)?;
        let mut found = config.run(&held_out, figures.evaluation(), of_test.view());
        found.suspects.retain(|Suspect { image, .. }| {
            let rows = match image.split {
                Split::Train => &train,
                Split::Test => &test,
            };
            !checked.contains(&rows.images[image.row])
        });
        Ok(vec![("suspects", cache.put(&found)?)])
    })?;
    let suspects = outputs.get("suspects");
    runner.tell(|| {
        let n = load::<Suspects>(cache, &suspects)?.suspects.len();
        Ok(format!("{} worth a look", counted(n, "label")))
    })?;
    Ok(suspects)
}

/// Features of both splits → the training images nearest to the mistakes and to the suspects.
pub(crate) fn neighbours(
    config: &NeighboursConfig,
    data: &Evaluated,
    figures: &Figures,
    suspects: Digest,
    runner: &mut Runner<'_>,
) -> Result<Digest> {
    let (cache, observer) = (runner.cache, runner.observer);
    let asked = match &figures.evaluation {
        Some(evaluation) if !is_pending(&suspects) => {
            Some(config.asked(evaluation, &figures.rows, &load(cache, &suspects)?))
        }
        _ => None,
    };
    let digest = asked
        .as_ref()
        .map_or_else(pending, |asked| NeighboursConfig::digest_of(asked));
    let asked = asked.unwrap_or_default();
    let key = config.key(data.train, data.test, digest);
    let before = runner.previous("neighbours")?;
    let outputs = runner.stage("neighbours", key.clone(), || {
        let (train, test) = (open_table(cache, &data.train)?, open_table(cache, &data.test)?);
        let known = match &before {
            Some(before) => known_neighbours(before, &key, test.rows(), &asked, cache)?,
            None => NearestImages::default(),
        };
        Ok(vec![(
            "neighbours",
            cache.put(&config.run(&train, &test, &asked, known, observer)?)?,
        )])
    })?;
    runner.tell(|| Ok(format!("neighbours of {}", counted(asked.len(), "image"))))?;
    Ok(outputs.get("neighbours"))
}

/// What the run before found of images that are asked about now: nothing if it had other training images.
fn known_neighbours(
    before: &Key,
    now: &Key,
    test: &FeatureRows,
    asked: &[ImageRef],
    cache: &Cache,
) -> Result<NearestImages> {
    let is_input = |name: &str| ["test", "asked"].contains(&name);
    let is_same = now.differences(before).iter().all(|(name, ..)| is_input(name));
    let (execution, table) = (cache.execution(&before.digest())?, before.get("test"));
    let (true, Some(execution), Some(Ok(table))) = (is_same, execution, table.map(str::parse::<Digest>)) else {
        return Ok(NearestImages::default());
    };
    let found = execution
        .outputs
        .first()
        .map(|output| cache.get(&output.digest))
        .transpose()?;
    let (Some(Some(NearestImages(found))), Some(table)) = (found, cache.get::<FeatureRows>(&table)?) else {
        return Ok(NearestImages::default());
    };
    // Test images have other rows now, and copies have several.
    let (mut of_train, mut of_test) = (HashMap::new(), HashMap::new());
    for Neighbours { image, nearest } in found {
        match image.split {
            Split::Train => of_train.insert(image.row, nearest),
            Split::Test => of_test.insert(table.vectors[image.row], nearest),
        };
    }
    let known = asked.iter().filter_map(|&image| {
        let nearest = match image.split {
            Split::Train => of_train.get(&image.row),
            Split::Test => of_test.get(&test.vectors[image.row]),
        };
        nearest.cloned().map(|nearest| Neighbours { image, nearest })
    });
    Ok(NearestImages(known.collect()))
}

/// Features of the evaluated images → a map of them.
pub(crate) fn map(config: &MapConfig, data: &Evaluated, figures: &Figures, runner: &mut Runner<'_>) -> Result<Digest> {
    let cache = runner.cache;
    let (mut table, mut images, mut at, mut mapped) = (pending(), Vec::new(), Vec::new(), pending());
    if let Some(evaluation) = &figures.evaluation {
        table = data.evaluated(evaluation);
        let rows: FeatureRows = load(cache, &table)?;
        for (image, row) in config.images(evaluation) {
            images.push(image);
            at.push(figures.rows[row]);
        }
        let digests = at.iter().flat_map(|&row| [rows.images[row], rows.vectors[row]]);
        mapped = digest_of(&digests.collect::<Vec<_>>());
    }
    let n = images.len();
    let outputs = runner.stage("map", config.key(mapped), || {
        let table = open_table(cache, &table)?;
        Ok(vec![("map", cache.put(&config.run(&table, images, &at)?)?)])
    })?;
    runner.tell(|| Ok(format!("{} in a plane", counted(n, "image"))))?;
    Ok(outputs.get("map"))
}

/// What cross-validation's models say of the training images that they have not seen, with what is true.
struct HeldOut {
    images: Vec<Digest>,
    truth: Vec<usize>,
    probabilities: Array2<f64>,
}

impl HeldOut {
    /// `None` if no image was held out.
    fn load(cache: &Cache, data: &Evaluated) -> Result<Option<Self>> {
        let HeldOutPredictions {
            rows, probabilities, ..
        } = load(cache, &data.trained.held_out)?;
        if rows.is_empty() {
            return Ok(None);
        }
        let train: FeatureRows = load(cache, &data.train)?;
        Ok(Some(HeldOut {
            images: rows.iter().map(|&row| train.images[row]).collect(),
            truth: rows.iter().map(|&row| train.labels[row]).collect(),
            probabilities: probabilities.mapv(f64::from),
        }))
    }

    fn predictions<'a>(&'a self, model: &'a Model) -> Predictions<'a> {
        Predictions {
            classes: &model.classes,
            images: &self.images,
            truth: &self.truth,
            probabilities: self.probabilities.view(),
            // What they were before is not kept.
            uncalibrated: self.probabilities.view(),
        }
    }
}

/// Puts the image's file in place of the row in an error about a feature that is not finite.
fn name_image(error: Error, rows: &FeatureRows, split: Split, file_of: FileOf<'_>) -> Error {
    use luthier_features::Error::NotFinite;
    match error {
        Error::Features(NotFinite { row, column, value })
        | Error::Classify(luthier_classify::Error::Features(NotFinite { row, column, value })) => {
            let image = &rows.images[row];
            Error::NotFinite {
                image: file_of(split, image).unwrap_or_else(|| image.to_string()),
                feature: column,
                value,
            }
        }
        other => other,
    }
}

/// The file of an image of a split.
fn file_of(manifest: &Manifest, data: &Data, split: Split, image: &Digest) -> Option<String> {
    let mut entries = manifest.entries.iter();
    let entry = entries.find(|entry| entry.split == split && entry.content == Content::Digest(*image))?;
    Some(data.source.path(entry).display().to_string())
}

/// A model judges only features made as its own were, of the same classes.
pub(crate) fn check_match(model: &Model, test: &FeatureRows) -> Result<()> {
    if !model.extractor.is_same(&test.extractor) {
        return Err(Error::OtherExtractor {
            expected: describe_extractor(&model.extractor),
            found: describe_extractor(&test.extractor),
        });
    }
    if model.classes != test.classes {
        return Err(Error::OtherClasses {
            expected: model.classes.clone(),
            found: test.classes.clone(),
        });
    }
    Ok(())
}

pub(crate) fn describe_extractor(extractor: &ExtractorInfo) -> String {
    let ExtractorInfo {
        views,
        pooling,
        combine,
        decode,
        weights,
        weights_sha256: _,
        precision,
    } = extractor;
    let views = views.join(", ");
    format!(
        "{weights} ({}…), {combine} of {views} with {pooling} pooling, decoded {decode}, {precision}",
        extractor.short_sha256()
    )
}

/// What was found, in a line.
fn describe_scan(found: &Scan) -> String {
    let Scan {
        manifest,
        n_ignored,
        n_excluded,
        decided,
        n_raw,
        ..
    } = found;
    let count = |split| manifest.entries.iter().filter(|entry| entry.split == split).count();
    let ignored = if *n_ignored > 0 {
        let raw = match n_raw {
            0 => String::new(),
            n => format!(", {n} of them camera raw: export those as JPEG"),
        };
        format!("; {} ignored{raw}", counted(n_ignored, "other file"))
    } else {
        String::new()
    };
    let excluded = match n_excluded {
        0 => String::new(),
        n => format!("; {n} excluded"),
    };
    let labels = match manifest.classes.as_slice() {
        [none] if none.is_empty() => "without classes".to_owned(),
        classes => format!(
            "in {} classes: {} train, {} test",
            classes.len(),
            count(Split::Train),
            count(Split::Test)
        ),
    };
    let decided = match decided.is_empty() {
        true => String::new(),
        false => format!("; decided: {decided}"),
    };
    format!("{} images {labels}{ignored}{excluded}{decided}", manifest.entries.len())
}

/// Which view does best, and how well the others do, in a line.
pub(crate) fn describe_views(judged: &JudgedViews) -> String {
    let name = |view: &JudgedView| format!("{} with {} pooling", view.view, view.pooling);
    let ranked = judged.ranked();
    let (best, rest) = ranked.split_first().expect("there is a candidate");
    let rest: Vec<String> = (rest.iter())
        .map(|view| format!("{} {:.3}", name(view), view.figures.log_loss))
        .collect();
    let found = format!("{}, log loss {:.3}", name(best), best.figures.log_loss);
    match rest.as_slice() {
        [] => found,
        rest => format!("{found}; {}", rest.join(", ")),
    }
}

/// A model's C and where it comes from, in a few words.
pub fn describe_c(model: &Model) -> String {
    let c = model.training.c;
    match &model.training.cross_validation {
        Some(found) => format!("C = {c}, by {}-fold cross-validation", found.folds),
        None => format!("C = {c}, as given"),
    }
}

/// How many components there are, in a few words.
pub fn describe_components(n: usize, explained_variance_ratio: f64) -> String {
    format!(
        "{}, {:.1} % of the variance",
        counted(n, "component"),
        100.0 * explained_variance_ratio
    )
}
