use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use luthier_artifact::{Artifact, Cache, Content, Digest, ExtractorInfo, FeatureTable, Key, Manifest, Split};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::{
    DataSource, Embedded, Error, Extractor, ExtractorConfig, ImageFile, Observer, Result, View, Views, WIDTH,
    WeightsSource, WeightsStore,
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
    pub const VERSION: u32 = 2;

    /// The stage's key. `manifest` is the digest of the manifest.
    ///
    /// # Errors
    /// [`Error::Io`] if the weights file cannot be read.
    pub fn key(&self, manifest: Digest) -> Result<Key> {
        let ExtractConfig { extractor } = self;
        let keys = extractor.keys()?;
        let mut key = Key::stage("extract", Self::VERSION);
        // The parts that all views have in common, for people: which views there are is said below.
        for part in keys[0].parts.iter().filter(|part| part.name != "view") {
            let name = if part.name == "version" {
                "extractor version"
            } else {
                &part.name
            };
            key = key.field(name, &part.value);
        }
        // From the key, because hashing the weights again costs as much as all the rest of an unchanged run.
        let sha256 = keys[0].get("weights").expect("the weights are part of the key");
        let views: Vec<String> = extractor.views.as_slice().iter().map(View::to_string).collect();
        let extractors: Vec<String> = keys.iter().map(|key| key.digest().to_string()).collect();
        Ok(key
            .field("views", views.join(", "))
            .field("combine", extractor.views.combination())
            // The name is in the tables, though it changes no feature.
            .field("weights name", extractor.weights_name(sha256))
            .field("extractor", extractors.join(" "))
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
        let ExtractConfig { extractor } = self;
        let views = extractor.views.as_slice();
        let keys = extractor.keys()?;
        let expected = keys[0]
            .get("weights")
            .expect("the weights are part of the key")
            .to_owned();
        let keys: Vec<Digest> = keys.iter().map(Key::digest).collect();
        let mut images: HashMap<Digest, Rows> = distinct_images(manifest)
            .into_iter()
            .map(|(digest, entry)| {
                (
                    digest,
                    Rows {
                        entry,
                        of_views: vec![None; views.len()],
                    },
                )
            })
            .collect();
        let digests: Vec<Digest> = images.keys().copied().collect();
        for (view, key) in keys.iter().enumerate() {
            for digests in digests.chunks(LOOKUP) {
                let known = cache.features(key, digests)?.into_iter();
                for (digest, row) in known.filter(|(_, row)| row.len() == WIDTH) {
                    images
                        .get_mut(&digest)
                        .expect("the cache answers what it was asked")
                        .of_views[view] = Some(row);
                }
            }
        }
        let mut missing: Vec<ImageFile> = images
            .iter()
            .filter(|(_, rows)| !rows.missing(views).is_empty())
            .map(|(digest, rows)| ImageFile {
                path: source.path(&manifest.entries[rows.entry]),
                digest: Some(*digest),
                views: rows.missing(views),
            })
            .collect();
        let n_reused = images.len() - missing.len();
        // Files of a folder often lie together on the disk.
        missing.sort_by(|a, b| a.path.cmp(&b.path));
        let mut skipped = Vec::new();
        if !missing.is_empty() {
            let network = Extractor::load(extractor, store, n_threads, missing.len(), observer)?;
            check_weights(extractor, &expected)?;
            observer.begin("images embedded", missing.len() as u64);
            let mut commit = Commit {
                cache,
                keys: &keys,
                pending: vec![Vec::new(); keys.len()],
                since: Instant::now(),
            };
            let outcome = network.embed(&missing, observer, |place, embedded| {
                observer.advance(1);
                let ImageFile {
                    digest, views: wanted, ..
                } = &missing[place];
                let digest = digest.expect("scanned images have digests");
                match embedded {
                    Embedded::Unreadable(reason) => skipped.push((digest, reason)),
                    Embedded::Features(rows) => {
                        let known = &mut images
                            .get_mut(&digest)
                            .expect("what is missing is known by digest")
                            .of_views;
                        for (wanted, row) in wanted.iter().zip(rows) {
                            let view = views
                                .iter()
                                .position(|view| view == wanted)
                                .expect("a view of the extractor");
                            known[view] = Some(row.clone());
                            commit.pending[view].push((digest, row));
                        }
                        commit.flush_if_due()?;
                    }
                }
                Ok(())
            });
            // Also when the run ends early: what was embedded is kept.
            commit.flush()?;
            outcome?;
            observer.end();
        }
        let n_embedded = missing.len() - skipped.len();
        let features: HashMap<Digest, Vec<f32>> = images
            .into_iter()
            .filter_map(|(digest, rows)| Some((digest, rows.combine(&extractor.views)?)))
            .collect();
        skipped.sort();
        let skipped = SkippedImages(skipped);
        check_classes(source, manifest, &features, &skipped)?;
        let info = extractor.info(&expected);
        let table = |split| table(manifest, split, &features, &info, extractor.views.width());
        Ok(Extraction {
            train: table(Split::Train),
            test: table(Split::Test),
            n_embedded,
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
        let mut missing = HashSet::new();
        for key in self.extractor.keys()? {
            missing.extend(cache.without_features(&key.digest(), &images)?);
        }
        Ok(missing.len())
    }
}

/// Weights that were replaced between the making of the key and the loading must not be cached under that key.
fn check_weights(extractor: &ExtractorConfig, expected: &str) -> Result<()> {
    match &extractor.weights {
        WeightsSource::File(path) if extractor.weights.sha256()? != expected => {
            Err(Error::Changed { path: path.clone() })
        }
        _ => Ok(()),
    }
}

/// The features of an image, view by view, as far as they are known.
struct Rows {
    /// The place of the image's first entry in the manifest.
    entry: usize,
    of_views: Vec<Option<Vec<f32>>>,
}

impl Rows {
    fn missing(&self, views: &[View]) -> Vec<View> {
        let rows = views.iter().zip(&self.of_views);
        rows.filter(|(_, row)| row.is_none()).map(|(view, _)| *view).collect()
    }

    /// The row of the image, if all its views are known.
    fn combine(&self, views: &Views) -> Option<Vec<f32>> {
        let rows: Option<Vec<&[f32]>> = self.of_views.iter().map(Option::as_deref).collect();
        rows.map(|rows| views.combine(&rows))
    }
}

/// Rows on their way into the cache.
struct Commit<'a> {
    cache: &'a Cache,
    /// What the features of each view are known by.
    keys: &'a [Digest],
    /// Rows of each view, by image.
    pending: Vec<Vec<(Digest, Vec<f32>)>>,
    since: Instant,
}

impl Commit<'_> {
    fn flush_if_due(&mut self) -> Result<()> {
        if self.since.elapsed() >= COMMIT_INTERVAL {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        for (key, rows) in self.keys.iter().zip(&mut self.pending) {
            self.cache.store_features(key, rows)?;
            rows.clear();
        }
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
    width: usize,
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
    let mut matrix = Array2::zeros((rows.len(), width));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Decoding, Device, Precision};

    #[test]
    fn weights_that_were_replaced_after_the_key_was_made_are_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "before").unwrap();
        let extractor = ExtractorConfig {
            views: View::Squash.into(),
            decode: Decoding::Scaled,
            weights: WeightsSource::File(file.path().into()),
            precision: Precision::Fp32,
            device: Device::Cpu,
            batch: None,
        };
        let expected = extractor.weights.sha256().unwrap();
        check_weights(&extractor, &expected).unwrap();
        std::fs::write(&file, "after").unwrap();
        let error = check_weights(&extractor, &expected).unwrap_err();
        assert!(matches!(error, Error::Changed { path } if path == file.path()));
    }
}
