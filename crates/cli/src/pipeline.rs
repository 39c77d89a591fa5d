//! The method: scan → extract → features → classify → evaluate.
//!
//! Each function here takes one or two stages through the cache. What a stage does is in its crate; when it runs is
//! decided by the [`Runner`].

use std::time::Instant;

use anyhow::{Result, bail};
use luthier_artifact::{Artifact, Digest, ExtractorInfo, FeatureRows, Key, Manifest};
use luthier_cache::{Cache, StoredTable};
use luthier_classify::{Classified, ClassifyConfig, HeldOutPredictions, Model, Training};
use luthier_eval::{EvaluateConfig, Inputs, Inspection, Predictions};
use luthier_extract::{DataSource, ExtractConfig, Rehash, Scan, WeightsStore, scan};
use luthier_features::{FeaturesConfig, Projection};

use crate::problem::{Problem, cache_error};
use crate::runner::{Runner, STAGES};
use crate::terminal::Progress;

/// The configuration of all stages.
#[derive(Clone, Debug)]
pub(crate) struct Pipeline {
    pub extract: ExtractConfig,
    pub features: FeaturesConfig,
    pub classify: ClassifyConfig,
    pub evaluate: EvaluateConfig,
    pub store: WeightsStore,
    pub n_threads: usize,
}

/// Features of both splits, by digest.
#[derive(Clone, Debug)]
pub(crate) struct Extracted {
    pub train: Digest,
    pub test: Digest,
    /// The perceptual hashes of both splits.
    pub hashes: [Digest; 2],
    pub skipped: Digest,
    /// How many images went through the network just now.
    pub n_embedded: usize,
}

/// How a data set is read.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    pub source: DataSource,
    pub rehash: Rehash,
    /// An unreadable image is an error.
    pub is_strict: bool,
}

impl Pipeline {
    /// Folders → manifest. Always looks at the folders; a file is read only if its stat changed.
    pub(crate) fn scan(&self, data: &Data, runner: &mut Runner<'_>) -> Result<(Scan, Digest)> {
        let start = Instant::now();
        let found = scan(&data.source, runner.cache, data.rehash, runner.progress)?;
        let digest = runner.cache.put(&found.manifest)?;
        // The folders are the input, and the manifest says all there is to know of them.
        let key = Key::stage("scan", 1).input("manifest", digest).finish();
        runner.seen("scan", key, digest, start)?;
        Ok((found, digest))
    }

    /// Manifest → features of both splits. Only images that the cache does not know go through the network.
    pub(crate) fn extract(
        &self,
        data: &Data,
        manifest: &Manifest,
        digest: Digest,
        runner: &mut Runner<'_>,
    ) -> Result<Option<Extracted>> {
        let mut n_embedded = 0;
        let (cache, progress) = (runner.cache, runner.progress);
        let outputs = runner.stage("extract", self.extract.key(digest)?, || {
            let extraction = self
                .extract
                .run(&data.source, manifest, cache, &self.store, self.n_threads, progress)?;
            n_embedded = extraction.n_embedded;
            Ok(vec![
                ("train", cache.put(&extraction.train)?),
                ("test", cache.put(&extraction.test)?),
                ("train hashes", cache.put(&extraction.train_hashes)?),
                ("test hashes", cache.put(&extraction.test_hashes)?),
                ("skipped", cache.put(&extraction.skipped)?),
            ])
        })?;
        runner.embedded(n_embedded)?;
        Ok(outputs.map(|outputs| Extracted {
            train: outputs.get("train"),
            test: outputs.get("test"),
            hashes: ["train hashes", "test hashes"].map(|name| outputs.get(name)),
            skipped: outputs.get("skipped"),
            n_embedded,
        }))
    }
}

/// A model, and what cross-validation's models say of training images that they have not seen, by digest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trained {
    pub model: Digest,
    pub held_out: Digest,
}

/// Training features → projection → model. `file_of` names the file of an image, for errors.
pub(crate) fn train(
    features: &FeaturesConfig,
    classify: &ClassifyConfig,
    train: Digest,
    file_of: &dyn Fn(&Digest) -> Option<String>,
    runner: &mut Runner<'_>,
) -> Result<Option<Trained>> {
    let (cache, progress) = (runner.cache, runner.progress);
    let projection = runner.stage("features", features.key(train), || {
        let table = open_table(cache, &train)?;
        let projection = features.run(&table, progress);
        let projection = projection.map_err(|error| name_image(error.into(), table.rows(), file_of))?;
        Ok(vec![("projection", cache.put(&projection)?)])
    })?;
    let Some(projection) = projection.map(|outputs| outputs.get("projection")) else {
        return Ok(None);
    };
    let trained = runner.stage("classify", classify.key(train, projection, None), || {
        let (table, projection) = (open_table(cache, &train)?, load::<Projection>(cache, &projection)?);
        let training = Training::new(table.rows(), &table);
        let Classified { model, held_out } = classify.run(&training, &projection, progress)?;
        Ok(vec![("model", cache.put(&model)?), ("held-out", cache.put(&held_out)?)])
    })?;
    Ok(trained.map(|outputs| Trained {
        model: outputs.get("model"),
        held_out: outputs.get("held-out"),
    }))
}

/// What the evaluate stage is given.
pub(crate) fn inputs(extracted: &Extracted, trained: Trained) -> Inputs {
    Inputs {
        model: trained.model,
        held_out: trained.held_out,
        train: extracted.train,
        test: extracted.test,
        hashes: Some(extracted.hashes),
    }
}

/// What was found out about a model, by digest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evaluated {
    pub evaluation: Digest,
    pub findings: Digest,
}

/// Model and features → evaluation and findings. `file_of` names the file of a test image, for errors.
pub(crate) fn evaluate(
    evaluate: &EvaluateConfig,
    inputs: &Inputs,
    file_of: &dyn Fn(&Digest) -> Option<String>,
    runner: &mut Runner<'_>,
) -> Result<Option<Evaluated>> {
    let cache = runner.cache;
    let evaluated = runner.stage("evaluate", evaluate.key(inputs), || {
        let (model, held_out) = (load::<Model>(cache, &inputs.model)?, load(cache, &inputs.held_out)?);
        let (train, test) = (open_table(cache, &inputs.train)?, open_table(cache, &inputs.test)?);
        let rows = test.rows();
        check_match(&model, rows)?;
        let HeldOutPredictions {
            rows: held_out,
            probabilities: of_held_out,
            ..
        } = held_out;
        let scores = model.scores(&test);
        let scores = scores.map_err(|error| name_image(error.into(), rows, file_of))?;
        let [probabilities, uncalibrated] = model.probabilities(scores);
        let evaluation = evaluate.run(&Predictions {
            classes: &model.classes,
            images: &rows.images,
            truth: &rows.labels,
            probabilities: probabilities.view(),
            uncalibrated: uncalibrated.view(),
        })?;
        let hashes = inputs
            .hashes
            .map(|digests| digests.map(|digest| open_table(cache, &digest)));
        let hashes = hashes
            .map(|[train, test]| Ok::<_, anyhow::Error>([train?, test?]))
            .transpose()?;
        let findings = Inspection {
            evaluation: &evaluation,
            train: &train,
            test: &test,
            hashes: hashes.as_ref().map(|[train, test]| [train, test]),
            held_out: &held_out,
            probabilities: of_held_out.view(),
            components: model.project(&test, 2)?.view(),
        }
        .run()?;
        Ok(vec![
            ("evaluation", cache.put(&evaluation)?),
            ("findings", cache.put(&findings)?),
        ])
    })?;
    Ok(evaluated.map(|outputs| Evaluated {
        evaluation: outputs.get("evaluation"),
        findings: outputs.get("findings"),
    }))
}

/// Puts the image's file in place of the row in an error about a feature that is not finite.
fn name_image(error: anyhow::Error, rows: &FeatureRows, file_of: &dyn Fn(&Digest) -> Option<String>) -> anyhow::Error {
    use luthier_features::Error::NotFinite;
    let of_features = match error.downcast_ref() {
        Some(luthier_classify::Error::Features(error)) => Some(error),
        _ => error.downcast_ref(),
    };
    let Some(&NotFinite { row, column, value }) = of_features else {
        return error;
    };
    let image = &rows.images[row];
    let name = file_of(image).unwrap_or_else(|| image.to_string());
    Problem::new(format!("{name}: feature {column} is {value}, expected a finite number"))
        .hint("extract with --precision fp32, whose numbers are larger than those of fp16; or mend the .npy file")
        .into()
}

/// Loads an artifact that a stage before made.
pub(crate) fn load<A: Artifact>(cache: &Cache, digest: &Digest) -> Result<A> {
    Ok(cache.get(digest)?.ok_or_else(|| lost(digest))?)
}

/// The rows of a table that a stage before made; their features are read when they are asked for.
pub(crate) fn open_table<'a>(cache: &'a Cache, digest: &Digest) -> Result<StoredTable<'a>> {
    Ok(cache.table(digest)?.ok_or_else(|| lost(digest))?)
}

fn lost(digest: &Digest) -> luthier_cache::Error {
    luthier_cache::Error::Lost {
        what: "artifact",
        digest: *digest,
    }
}

fn is_lost(error: &anyhow::Error) -> bool {
    matches!(cache_error(error), Some(luthier_cache::Error::Lost { .. }))
}

/// Starts over when the cache turns out to have lost an artifact: the stage that makes it then runs. Each time at least
/// one stage more is whole. `run` must not open the cache anew: one that can only be read would forget what it has lost.
pub(crate) fn with_retry<T>(progress: &Progress, mut run: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in STAGES {
        match run() {
            Err(error) if is_lost(&error) => progress.say(&format!("{error}: starting over")),
            other => return other,
        }
    }
    run()
}

/// A model judges only features made as its own were, of the same classes.
fn check_match(model: &Model, test: &FeatureRows) -> Result<()> {
    if !model.extractor.is_same(&test.extractor) {
        bail!(
            Problem::new(format!(
                "model was trained on features of {}, found features of {}",
                describe(&model.extractor),
                describe(&test.extractor)
            ))
            .hint("extract and train again with the same settings")
        );
    }
    if model.classes != test.classes {
        bail!(
            Problem::new(format!(
                "model knows the classes {:?}, features have {:?}",
                model.classes, test.classes
            ))
            .hint("train again on these features")
        );
    }
    Ok(())
}

fn describe(extractor: &ExtractorInfo) -> String {
    let ExtractorInfo {
        views,
        combine,
        decode,
        weights,
        weights_sha256: _,
        precision,
    } = extractor;
    let views = views.join(", ");
    format!(
        "{weights} ({}…), {combine} of {views}, decoded {decode}, {precision}",
        extractor.short_sha256()
    )
}
