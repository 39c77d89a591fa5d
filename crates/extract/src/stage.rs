use std::collections::HashMap;
use std::time::{Duration, Instant};

use luthier_artifact::{Artifact, Cache, Content, Digest, ExtractorInfo, FeatureTable, Key, Manifest, Split};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::{
    DataSource, Embedded, Error, Extractor, ExtractorConfig, ImageFile, Observer, Result, WIDTH, WeightsStore,
};

/// How much work a killed process may lose at most.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// How many rows of features are read from the cache at once.
const LOOKUP: usize = 4096;

/// The extract stage: manifest → feature tables, by way of the features that the cache knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtractConfig {
    /// What the features depend on.
    pub extractor: ExtractorConfig,
}

/// The outputs of the extract stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Extraction {
    /// The features to fit on.
    pub train: FeatureTable,
    /// The features to evaluate on.
    pub test: FeatureTable,
    /// The images that could not be decoded.
    pub skipped: SkippedImages,
    /// How many images went through the network.
    pub n_embedded: usize,
    /// How many images' features came from the cache.
    pub n_reused: usize,
}

/// Images that could not be decoded, by the digest of their bytes, with the reason; ordered by digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedImages(pub Vec<(Digest, String)>);

impl SkippedImages {
    /// Why an image was skipped, if it was.
    pub fn reason(&self, image: &Digest) -> Option<&str> {
        self.0
            .binary_search_by_key(image, |(digest, _)| *digest)
            .ok()
            .map(|place| self.0[place].1.as_str())
    }
}

impl Artifact for SkippedImages {
    const FORMAT: &'static str = "skipped-images/1";

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(&(Self::FORMAT, self)).expect("strings and digests always serialize")
    }

    fn decode(bytes: &[u8]) -> luthier_artifact::Result<Self> {
        let expected = Self::FORMAT;
        let wrong = |found: String| luthier_artifact::Error::Format { expected, found };
        let (format, skipped): (String, Self) =
            serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        if format == expected {
            Ok(skipped)
        } else {
            Err(wrong(format))
        }
    }
}

impl ExtractConfig {
    /// Changes when the same features are put into tables in another way.
    pub const VERSION: u32 = 1;

    /// The stage's key. `manifest` is the digest of the manifest.
    ///
    /// # Errors
    /// [`Error::Io`] if the weights file cannot be read.
    pub fn key(&self, manifest: Digest) -> Result<Key> {
        let ExtractConfig { extractor } = self;
        let extractor = extractor.key()?;
        let digest = extractor.digest();
        // From the key, because hashing the weights again costs as much as all the rest of an unchanged run.
        let sha256 = extractor.get("weights").expect("the weights are part of the key");
        let weights_name = self.extractor.weights_name(sha256);
        let mut key = Key::stage("extract", Self::VERSION);
        for part in extractor.parts {
            let name = if part.name == "version" {
                "extractor version"
            } else {
                &part.name
            };
            key = key.field(name, part.value);
        }
        // The name is in the tables, though it changes no feature.
        Ok(key
            .field("weights name", weights_name)
            .field("extractor", digest)
            .input("manifest", manifest)
            .finish())
    }

    /// Embeds the images that the cache does not know, and puts all features into tables.
    ///
    /// What is embedded is committed to the cache every second, so that an interrupted or killed run loses no more.
    ///
    /// # Errors
    /// Those of [`Extractor::load`] and [`Extractor::embed`], and [`Error::EmptyClass`].
    pub fn run(
        &self,
        source: &DataSource,
        manifest: &Manifest,
        cache: &Cache,
        store: &WeightsStore,
        n_threads: usize,
        observer: &dyn Observer,
    ) -> Result<Extraction> {
        let extractor = self.extractor.key()?.digest();
        let images = distinct_images(manifest);
        let mut features = HashMap::with_capacity(images.len());
        for images in images.keys().copied().collect::<Vec<_>>().chunks(LOOKUP) {
            features.extend(
                cache
                    .features(&extractor, images)?
                    .into_iter()
                    .filter(|(_, row)| row.len() == WIDTH),
            );
        }
        let n_reused = features.len();
        let mut missing: Vec<ImageFile> = images
            .into_iter()
            .filter(|(digest, _)| !features.contains_key(digest))
            .map(|(digest, entry)| ImageFile {
                path: source.path(&manifest.entries[entry]),
                digest: Some(digest),
            })
            .collect();
        // Files of a folder often lie together on the disk.
        missing.sort_by(|a, b| a.path.cmp(&b.path));
        let mut skipped = Vec::new();
        if !missing.is_empty() {
            let network = Extractor::load(&self.extractor, store, n_threads, observer)?;
            observer.begin("images embedded", missing.len() as u64);
            let mut commit = Commit {
                cache,
                extractor,
                pending: Vec::new(),
                since: Instant::now(),
            };
            let outcome = network.embed(&missing, observer, |place, embedded| {
                observer.advance(1);
                let digest = missing[place].digest.expect("scanned images have digests");
                match embedded {
                    Embedded::Unreadable(reason) => skipped.push((digest, reason)),
                    Embedded::Features(row) => {
                        features.insert(digest, row.clone());
                        commit.push(digest, row)?;
                    }
                }
                Ok(())
            });
            // Also when the run ends early: what was embedded is kept.
            commit.flush()?;
            outcome?;
            observer.end();
        }
        skipped.sort();
        let skipped = SkippedImages(skipped);
        check_classes(source, manifest, &features, &skipped)?;
        let info = self.extractor.info()?;
        let table = |split| table(manifest, split, &features, &info);
        Ok(Extraction {
            train: table(Split::Train),
            test: table(Split::Test),
            n_embedded: features.len() - n_reused,
            n_reused,
            skipped,
        })
    }

    /// How many distinct images of a manifest the cache has no features for.
    ///
    /// # Errors
    /// [`Error::Io`] if the weights file cannot be read, [`Error::Cache`] if the cache fails.
    pub fn count_missing(&self, manifest: &Manifest, cache: &Cache) -> Result<usize> {
        let images: Vec<Digest> = distinct_images(manifest).into_keys().collect();
        Ok(images.len() - cache.count_features(&self.extractor.key()?.digest(), &images)?)
    }
}

/// Rows on their way into the cache.
struct Commit<'a> {
    cache: &'a Cache,
    extractor: Digest,
    pending: Vec<(Digest, Vec<f32>)>,
    since: Instant,
}

impl Commit<'_> {
    fn push(&mut self, image: Digest, row: Vec<f32>) -> Result<()> {
        self.pending.push((image, row));
        if self.since.elapsed() >= COMMIT_INTERVAL {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.cache.store_features(&self.extractor, &self.pending)?;
        self.pending.clear();
        self.since = Instant::now();
        Ok(())
    }
}

/// The images of a manifest by digest, each with the place of its first entry.
fn distinct_images(manifest: &Manifest) -> HashMap<Digest, usize> {
    let mut images = HashMap::with_capacity(manifest.entries.len());
    for (place, entry) in manifest.entries.iter().enumerate() {
        if let Content::Digest(digest) = entry.content {
            images.entry(digest).or_insert(place);
        }
    }
    images
}

fn table(
    manifest: &Manifest,
    split: Split,
    features: &HashMap<Digest, Vec<f32>>,
    extractor: &ExtractorInfo,
) -> FeatureTable {
    let mut rows: Vec<(usize, Digest)> = (manifest.entries.iter())
        .filter(|entry| entry.split == split)
        .filter_map(|entry| match entry.content {
            Content::Digest(digest) if features.contains_key(&digest) => Some((
                manifest.label(&entry.class).expect("every class of an entry is listed"),
                digest,
            )),
            _ => None,
        })
        .collect();
    rows.sort_unstable();
    let mut matrix = Array2::zeros((rows.len(), WIDTH));
    for (mut row, (_, digest)) in matrix.outer_iter_mut().zip(&rows) {
        row.assign(&ndarray::aview1(&features[digest]));
    }
    let (labels, images) = rows.into_iter().unzip();
    FeatureTable {
        classes: manifest.classes.clone(),
        extractor: extractor.clone(),
        labels,
        images,
        features: matrix,
    }
}

/// Every class needs a readable image in each split where it has images at all. If the split was drawn, before anybody
/// knew what decodes, a class without test images is for the report to tell.
fn check_classes(
    source: &DataSource,
    manifest: &Manifest,
    features: &HashMap<Digest, Vec<f32>>,
    skipped: &SkippedImages,
) -> Result<()> {
    let splits: &[Split] = match source {
        DataSource::Split { .. } => &[Split::Train, Split::Test],
        DataSource::Whole { .. } => &[Split::Train],
    };
    for &split in splits {
        for class in &manifest.classes {
            let entries: Vec<_> = manifest
                .entries
                .iter()
                .filter(|entry| entry.split == split && entry.class == *class)
                .collect();
            let is_readable =
                |content: &Content| matches!(content, Content::Digest(digest) if features.contains_key(digest));
            if entries.is_empty() || entries.iter().any(|entry| is_readable(&entry.content)) {
                continue;
            }
            let reason = match &entries[0].content {
                Content::Unreadable(reason) => reason,
                Content::Digest(digest) => skipped.reason(digest).expect("an image is embedded or skipped"),
            };
            return Err(Error::EmptyClass {
                class: class.clone(),
                split,
                n_images: entries.len(),
                file: entries[0].file.clone(),
                reason: reason.to_owned(),
            });
        }
    }
    Ok(())
}
