//! The stage `views`: which features of an image serve best, of those that are asked for.
//!
//! Cross-validation judges each candidate on the training images, or on a sample of them where there are many. The other
//! images then go through the network in one view only.

use std::collections::{BTreeSet, HashMap, HashSet};

use luthier_artifact::{
    Artifact, Content, Digest, ImageRows, Key, KeyPart, Manifest, ManifestEntry, Observer, Split, json,
};
use luthier_cache::{Cache, References};
use luthier_classify::{ClassifyConfig, HeldOutFigures, Training};
use luthier_eval::DuplicatesConfig;
use luthier_extract::{ExtractConfig, ExtractContext, FeatureKind};
use luthier_features::FeaturesConfig;
use serde::{Deserialize, Serialize};

use crate::results::open_table;
use crate::{Error, Result};

/// The most images that candidates are judged by, unless that leaves no room for all classes. With so many, chance
/// moves the log loss much less than the view does. The candidates then cost minutes, however many images there are.
const SAMPLE: usize = 5_000;

/// The parts of the stages' keys that have no say in the judgement, or that the key of `views` has in its own way.
const NOT_COPIED: [&str; 7] = [
    "views",
    "pooling",
    "combine",
    "extractor",
    "weights name",
    "folds",
    "seed",
];

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
    pub const VERSION: u32 = 2;

    /// The stage's key. `sample` is the [`sample`], of which the names of files do not matter.
    pub(crate) fn key(&self, judge: Judge<'_>, sample: &Manifest) -> Result<Key> {
        let ViewsConfig { candidates } = self;
        let Judge {
            extract,
            duplicates,
            features,
            classify,
        } = judge;
        let names: Vec<String> = candidates.iter().map(FeatureKind::to_string).collect();
        let sample = digest_of_sample(sample);
        // What these stages depend on, the judgement depends on, too. Which candidate `extract` is asked about does not
        // matter: its key differs only in parts that are not copied.
        let keys = [
            of_kind(extract, candidates[0]).key(sample)?,
            duplicates.key(sample),
            features.key(sample),
            classify.key(sample, sample, None),
        ];
        let input = sample.to_string();
        let mut key = Key::stage("views", Self::VERSION).field("candidates", names.join(", "));
        for Key { stage, parts } in &keys {
            let is_copied = |part: &&KeyPart| part.value != input && !NOT_COPIED.contains(&part.name.as_str());
            for KeyPart { name, value } in parts.iter().filter(is_copied) {
                key = match (stage.as_str(), name.as_str()) {
                    (stage, "version") => key.field(&format!("{stage} version"), value),
                    // Mostly one setting says it for both: then it is said once.
                    ("features", "solver") if features.solver == classify.solver => key,
                    ("features", "solver") => key.field("features solver", value),
                    (_, name) => key.field(name, value),
                };
            }
        }
        // A key of `classify` has them only if C is chosen. Candidates are judged by cross-validation whatever C is.
        let ClassifyConfig { folds, seed, .. } = classify;
        let key = key.field("folds", folds).field("seed", seed);
        Ok(key.input("sample", sample).finish())
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
                None => look_alikes.insert(groups_of(judge.duplicates, &extraction.images, cache, observer)?),
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

/// The training images by which candidates are judged: all, or those of the smallest digests, which are as good as
/// drawn at random. Of each class there are at least as many as folds, or all, so that no class is missing. One image more or
/// less changes a sample by one image at most.
///
/// # Errors
/// [`Error::NothingToEvaluate`] if there are none.
pub(crate) fn sample(manifest: &Manifest, folds: usize) -> Result<Manifest> {
    let train = manifest.entries.iter().filter(|entry| entry.split == Split::Train);
    let mut images: Vec<(Digest, &str)> = train
        .filter_map(|entry| Some((entry.content.digest()?, entry.class.as_str())))
        .collect();
    images.sort_unstable();
    images.dedup();
    let mut n_of_class: HashMap<&str, usize> = HashMap::new();
    let first_of_classes = images.iter().filter(|(_, class)| {
        let n = n_of_class.entry(*class).or_default();
        *n += 1;
        *n <= folds
    });
    let mut chosen: HashSet<Digest> = first_of_classes.map(|(image, _)| *image).collect();
    for (image, _) in &images {
        if chosen.len() < SAMPLE {
            chosen.insert(*image);
        }
    }
    if chosen.is_empty() {
        return Err(Error::NothingToEvaluate);
    }
    let is_chosen = |image: Digest| chosen.contains(&image);
    Ok(of_entries(manifest, |entry| {
        entry.split == Split::Train && entry.content.digest().is_some_and(is_chosen)
    }))
}

/// What the judgement depends on of a sample: the classes and digests of its images, and not the names of its files.
fn digest_of_sample(sample: &Manifest) -> Digest {
    let images = sample.entries.iter();
    let mut images: Vec<(&str, Digest)> = images
        .filter_map(|entry| Some((entry.class.as_str(), entry.content.digest()?)))
        .collect();
    images.sort_unstable();
    let mut bytes = Vec::new();
    for (class, image) in images {
        bytes.extend((class.len() as u64).to_le_bytes());
        bytes.extend(class.as_bytes());
        bytes.extend(image.as_bytes());
    }
    Digest::of(&bytes)
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
fn groups_of(
    config: &DuplicatesConfig,
    rows: &ImageRows,
    cache: &Cache,
    observer: &dyn Observer,
) -> Result<Vec<Vec<Digest>>> {
    let digest = cache.put(rows)?;
    let features = cache.stored_vectors(digest, rows.features.clone(), rows.n_features);
    let hashes = cache.stored_vectors(digest, rows.hashes.clone(), rows.n_hash_values);
    let found = config.run(rows, &features, &hashes, observer)?;
    Ok(found.groups.into_iter().map(|group| group.images).collect())
}

#[cfg(test)]
mod tests {
    use luthier_classify::{ChooseC, ClassWeight, Rule};
    use luthier_extract::{
        Decoding, Device, ExtractorConfig, Framing, Limits, PERCEPTUAL_HASH, Pooling, Precision, View, WeightsSource,
    };
    use luthier_features::{ComponentCount, Solver};

    use super::*;
    use crate::reason::tests::training_images;

    /// Everything that the key is made of.
    #[derive(Clone)]
    struct Settings {
        candidates: Vec<FeatureKind>,
        extract: ExtractConfig,
        duplicates: DuplicatesConfig,
        features: FeaturesConfig,
        classify: ClassifyConfig,
        sample: Manifest,
    }

    impl Settings {
        fn new(c: ChooseC) -> Self {
            Settings {
                candidates: vec![kind(Framing::Squash), kind(Framing::Pad)],
                extract: ExtractConfig {
                    extractor: ExtractorConfig {
                        views: Framing::Squash.into(),
                        pooling: Pooling::default(),
                        decode: Decoding::Scaled,
                        limits: Limits::default(),
                        weights: WeightsSource::Untrained,
                        precision: Precision::Fp32,
                        device: Device::Cpu,
                        batch: None,
                    },
                },
                duplicates: DuplicatesConfig::default(),
                features: FeaturesConfig {
                    n_components: ComponentCount::Variance(0.98),
                    whiten: false,
                    solver: Solver::Faer,
                },
                classify: ClassifyConfig {
                    c,
                    class_weight: ClassWeight::Uniform,
                    folds: 5,
                    seed: 0,
                    solver: Solver::Faer,
                },
                sample: training_images(&[("harp/1.jpg", "a"), ("lute/1.jpg", "b")]),
            }
        }

        fn key(&self) -> Key {
            let config = ViewsConfig {
                candidates: self.candidates.clone(),
            };
            let judge = Judge {
                extract: &self.extract,
                duplicates: &self.duplicates,
                features: &self.features,
                classify: &self.classify,
            };
            config.key(judge, &self.sample).unwrap()
        }
    }

    fn kind(framing: Framing) -> FeatureKind {
        FeatureKind {
            view: View::from(framing),
            pooling: Pooling::default(),
        }
    }

    #[test]
    fn every_field_and_the_sample_change_the_key_also_with_a_given_c() {
        type Change = fn(&mut Settings);
        let changes: [(&str, Change); 17] = [
            ("candidates", |of| of.candidates.truncate(1)),
            ("decode", |of| of.extract.extractor.decode = Decoding::Exact),
            ("limits", |of| of.extract.extractor.limits.pixels = 1),
            ("precision", |of| of.extract.extractor.precision = Precision::Bf16),
            ("batch", |of| of.extract.extractor.batch = Some(3)),
            ("largest difference", |of| of.duplicates.largest_difference = 0.2),
            ("smallest cosine", |of| of.duplicates.smallest_cosine = 0.6),
            ("components", |of| of.features.n_components = ComponentCount::Exact(7)),
            ("whiten", |of| of.features.whiten = true),
            ("features solver", |of| of.features.solver = Solver::Smartcore),
            ("classify solver", |of| of.classify.solver = Solver::Smartcore),
            ("c", |of| of.classify.c = ChooseC::Fixed(0.5)),
            ("class weight", |of| of.classify.class_weight = ClassWeight::Balanced),
            ("folds", |of| of.classify.folds = 6),
            ("seed", |of| of.classify.seed = 7),
            ("another class", |of| {
                of.sample = training_images(&[("harp/1.jpg", "a"), ("drum/1.jpg", "b")]);
            }),
            ("a copy", |of| {
                of.sample = training_images(&[("harp/1.jpg", "a"), ("harp/2.jpg", "a"), ("lute/1.jpg", "b")]);
            }),
        ];
        for c in [ChooseC::Fixed(1.0), ChooseC::Auto(Rule::SmallestLoss)] {
            let settings = Settings::new(c);
            for (name, change) in changes {
                let mut other = settings.clone();
                change(&mut other);
                assert_ne!(other.key(), settings.key(), "{name} with c {c}");
            }
            let key = settings.key();
            for part in ["libheif", PERCEPTUAL_HASH, "extract version", "duplicates version"] {
                assert!(key.get(part).is_some(), "no {part} in {key:?}");
            }
        }
    }

    #[test]
    fn neither_the_names_of_files_nor_what_is_chosen_change_the_key() {
        let settings = Settings::new(ChooseC::Auto(Rule::SmallestLoss));
        let mut other = settings.clone();
        other.sample = training_images(&[("harp/z.jpg", "a"), ("lute/0.jpg", "b")]);
        other.extract.extractor.views = Framing::Crop.into();
        other.extract.extractor.pooling = Pooling::Gem;
        assert_eq!(other.key(), settings.key());
    }

    #[test]
    fn a_sample_has_images_of_rare_classes_and_does_not_depend_on_the_order_of_files() {
        let mut files: Vec<(String, String)> = (0..SAMPLE + 100)
            .map(|n| (format!("harp/{n}.jpg"), n.to_string()))
            .collect();
        // Those of the largest digests, of which the smallest leave none.
        files.sort_by_key(|(_, bytes)| Digest::of(bytes.as_bytes()));
        for (place, (file, _)) in files.iter_mut().rev().take(7).enumerate() {
            *file = format!("lute/{place}.jpg");
        }
        let of = |files: &[(String, String)]| {
            let files: Vec<(&str, &str)> = files
                .iter()
                .map(|(file, bytes)| (file.as_str(), bytes.as_str()))
                .collect();
            sample(&training_images(&files), 5).unwrap()
        };
        let found = of(&files);
        let n_of = |class: &str| found.entries.iter().filter(|entry| entry.class == class).count();
        assert_eq!((n_of("harp"), n_of("lute")), (SAMPLE - 5, 5));
        for (place, (file, _)) in files.iter_mut().enumerate() {
            let class = file.split('/').next().unwrap();
            *file = format!("{class}/renamed {}.jpg", 9_999 - place);
        }
        assert_eq!(digest_of_sample(&of(&files)), digest_of_sample(&found));
        // Where there is room for all, all are there, whatever the folds.
        assert_eq!(of(&files[..40]).entries.len(), 40);
    }
}
