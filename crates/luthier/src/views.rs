//! The stage `views`: which features of an image serve best, of those that are asked for.
//!
//! Cross-validation judges each candidate on the training images, or on a sample of them where there are many. The other
//! images then go through the network in one view only.

use std::collections::BTreeSet;

use luthier_artifact::{Artifact, Content, Digest, ImageRows, Key, KeyPart, Manifest, ManifestEntry, Split, json};
use luthier_cache::{Cache, References};
use luthier_classify::{ClassifyConfig, HeldOutFigures, Training};
use luthier_eval::DuplicatesConfig;
use luthier_extract::{ExtractConfig, ExtractContext, FeatureKind};
use luthier_features::FeaturesConfig;
use serde::{Deserialize, Serialize};

use crate::results::open_table;
use crate::{Error, Result};

/// The most images that candidates are judged by. With so many, chance moves the log loss much less than the view does. The
/// candidates then cost minutes, however many images there are.
const SAMPLE: usize = 5_000;

/// Features to choose from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewsConfig {
    /// At least one.
    pub candidates: Vec<FeatureKind>,
}

/// How well each candidate does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgedViews {
    /// By how many training images they were judged.
    pub n_images: usize,
    /// In the order in which they were asked for.
    pub candidates: Vec<JudgedView>,
    /// The place of the best: of smallest log loss.
    pub best: usize,
}

/// How well features of one kind do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgedView {
    /// The view.
    pub view: String,
    /// The pooling.
    pub pooling: String,
    /// What cross-validation says.
    #[serde(flatten)]
    pub figures: HeldOutFigures,
}

impl JudgedViews {
    /// The candidates, the best first.
    pub fn ranked(&self) -> Vec<&JudgedView> {
        let mut ranked: Vec<&JudgedView> = self.candidates.iter().collect();
        ranked.sort_by(|a, b| a.figures.log_loss.total_cmp(&b.figures.log_loss));
        ranked
    }
}

impl Artifact for JudgedViews {
    const FORMAT: &'static str = "judged-views/1";

    fn encode(&self) -> Vec<u8> {
        json::encode(Self::FORMAT, self)
    }

    fn decode(bytes: &[u8]) -> luthier_artifact::Result<Self> {
        json::decode(Self::FORMAT, bytes)
    }
}

/// What candidates are judged with, beside the images.
#[derive(Clone, Copy)]
pub(crate) struct Judge<'a> {
    /// Everything that features depend on but view and pooling.
    pub(crate) extract: &'a ExtractConfig,
    pub(crate) duplicates: &'a DuplicatesConfig,
    pub(crate) features: &'a FeaturesConfig,
    pub(crate) classify: &'a ClassifyConfig,
}

/// What the stage gave.
pub(crate) struct Judged {
    pub(crate) views: JudgedViews,
    pub(crate) n_embedded: usize,
    pub(crate) references: References,
}

impl ViewsConfig {
    /// Changes when the stage gives other results for the same inputs.
    pub const VERSION: u32 = 1;

    /// The stage's key. `sample` is the digest of the [`sample`].
    pub(crate) fn key(&self, judge: Judge<'_>, sample: Digest) -> Result<Key> {
        let ViewsConfig { candidates } = self;
        let Judge {
            extract,
            duplicates,
            features,
            classify,
        } = judge;
        let names: Vec<String> = candidates.iter().map(FeatureKind::to_string).collect();
        let mut key = Key::stage("views", Self::VERSION).field("candidates", names.join(", "));
        let of_first = extract.extractor.keys_of(candidates)?.swap_remove(0);
        let features = features.key(sample);
        let classify = classify.key(sample, sample, None);
        let settings = [
            ("extractor version", &of_first),
            ("features version", &features),
            ("classify version", &classify),
        ];
        for (version, of) in settings {
            let is_own =
                |part: &&KeyPart| !["view", "pooling"].contains(&part.name.as_str()) && !part.name.starts_with("input");
            for part in of.parts.iter().filter(is_own) {
                // Features and classify have the solver in common.
                let name = if part.name == "version" { version } else { &part.name };
                if name != "solver" || version == "classify version" {
                    key = key.field(name, &part.value);
                }
            }
        }
        let looks = duplicates.key(sample).digest();
        Ok(key.field("duplicates", looks).input("sample", sample).finish())
    }

    /// Embeds what is missing of the candidates' features, and judges each by cross-validation on the sample.
    pub(crate) fn run(&self, judge: Judge<'_>, context: &ExtractContext<'_>) -> Result<Judged> {
        let ViewsConfig { candidates } = self;
        let (cache, observer) = (context.cache, context.observer);
        let (n_embedded, skipped) = judge.extract.embed(candidates, context)?;
        let is_readable =
            |content: &Content| matches!(content, Content::Digest(image) if skipped.reason(image).is_none());
        let readable = of_entries(context.manifest, |entry| is_readable(&entry.content));
        let context = ExtractContext {
            manifest: &readable,
            ..*context
        };
        let mut look_alikes: Option<Vec<Vec<Digest>>> = None;
        let mut references = References::default();
        let mut n_images = 0;
        let mut judged = Vec::with_capacity(candidates.len());
        for kind in candidates {
            let config = of_kind(judge.extract, *kind);
            let extraction = config.run(&context)?;
            let images = cache.put(&extraction.images)?;
            let References { descriptors, images } = config.references(images)?;
            references.descriptors.extend(descriptors);
            references.images.extend(images);
            let groups = match &look_alikes {
                Some(groups) => groups,
                None => look_alikes.insert(groups_of(judge.duplicates, &extraction.images, cache)?),
            };
            let train = cache.put(&extraction.train)?;
            let table = open_table(cache, &train)?;
            n_images = table.rows().images.len();
            let training = Training::new(table.rows(), &table).with_look_alikes(groups);
            judged.push(JudgedView {
                view: kind.view.to_string(),
                pooling: kind.pooling.to_string(),
                figures: judge.classify.judge(&training, *judge.features, observer)?,
            });
        }
        let by_loss =
            |a: &(usize, &JudgedView), b: &(usize, &JudgedView)| a.1.figures.log_loss.total_cmp(&b.1.figures.log_loss);
        let best = judged.iter().enumerate().min_by(by_loss);
        let best = best.expect("there is a candidate").0;
        Ok(Judged {
            views: JudgedViews {
                n_images,
                candidates: judged,
                best,
            },
            n_embedded,
            references,
        })
    }
}

/// The configuration with features of this kind.
pub(crate) fn of_kind(extract: &ExtractConfig, FeatureKind { view, pooling }: FeatureKind) -> ExtractConfig {
    let mut extract = extract.clone();
    extract.extractor.views = view.into();
    extract.extractor.pooling = pooling;
    extract
}

/// The training images by which candidates are judged: all, or those of the smallest digests, which are as good as drawn at
/// random. One image more or less changes a sample by one image at most.
///
/// # Errors
/// [`Error::NothingToEvaluate`] if there are none.
pub(crate) fn sample(manifest: &Manifest) -> Result<Manifest> {
    let digest = |content: &Content| match content {
        Content::Digest(digest) => Some(*digest),
        Content::Unreadable(_) => None,
    };
    let train = manifest.entries.iter().filter(|entry| entry.split == Split::Train);
    let images: BTreeSet<Digest> = train.filter_map(|entry| digest(&entry.content)).collect();
    let last = images.iter().take(SAMPLE).next_back().ok_or(Error::NothingToEvaluate)?;
    Ok(of_entries(manifest, |entry| {
        entry.split == Split::Train && digest(&entry.content).is_some_and(|image| image <= *last)
    }))
}

/// A manifest of some of its entries.
fn of_entries(manifest: &Manifest, is_chosen: impl Fn(&ManifestEntry) -> bool) -> Manifest {
    let entries: Vec<_> = (manifest.entries.iter().filter(|entry| is_chosen(entry)))
        .cloned()
        .collect();
    let classes: BTreeSet<&String> = entries.iter().map(|entry| &entry.class).collect();
    Manifest {
        classes: (manifest.classes.iter().filter(|class| classes.contains(class)))
            .cloned()
            .collect(),
        entries,
    }
}

/// The groups of images that look the same.
fn groups_of(config: &DuplicatesConfig, rows: &ImageRows, cache: &Cache) -> Result<Vec<Vec<Digest>>> {
    let digest = cache.put(rows)?;
    let features = cache.stored_vectors(digest, rows.features.clone(), rows.n_features);
    let hashes = cache.stored_vectors(digest, rows.hashes.clone(), rows.n_hash_values);
    let found = config.run(rows, &features, &hashes)?;
    Ok(found.groups.into_iter().map(|group| group.images).collect())
}
