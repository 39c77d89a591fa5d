use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::{Duration, Instant};

use luthier_artifact::{
    Artifact, Content, Digest, ExtractorInfo, FeatureRows, ImageRows, Key, KeyBuilder, KeyPart, Manifest,
    ManifestEntry, Split, file_names, json,
};
use luthier_cache::{Cache, Descriptor, References};
use serde::{Deserialize, Serialize};

use crate::views::sizes;
use crate::{
    DataSource, Decoding, Embedded, Error, Extractor, ExtractorConfig, FeatureKind, ImageInput, ImageSource, Layout,
    Observer, PERCEPTUAL_HASH, PerceptualHash, Result, View, Views, WIDTH, WeightsSource, WeightsStore,
};

/// The most work that a killed process may lose.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// How many rows of features are combined at once.
const ROWS_AT_ONCE: usize = 1024;

/// The extract stage: manifest → feature tables, by way of the features that the cache knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtractConfig {
    /// What the features depend on.
    pub extractor: ExtractorConfig,
}

/// What features are made of, and with.
#[derive(Clone, Copy)]
pub struct ExtractContext<'a> {
    /// Where the files of the images are.
    pub source: &'a DataSource,
    /// The images.
    pub manifest: &'a Manifest,
    /// Where features are kept.
    pub cache: &'a Cache,
    /// Where weights are kept.
    pub store: &'a WeightsStore,
    /// How many threads decode and compute; no result depends on it.
    pub n_threads: usize,
    /// Told how work proceeds, and asked whether it may go on.
    pub observer: &'a dyn Observer,
}

/// The outputs of the extract stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Extraction {
    /// The features to fit on; the cache has them.
    pub train: FeatureRows,
    /// The features to evaluate on.
    pub test: FeatureRows,
    /// The distinct images of both, with their perceptual hashes.
    pub images: ImageRows,
    /// The images that could not be decoded.
    pub skipped: SkippedImages,
    /// How many images went through the network.
    pub n_embedded: usize,
    /// How many images' features came from the cache.
    pub n_reused: usize,
}

/// Images that could not be decoded, by the digest of their bytes, with the reason; ordered by
/// digest.
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
        json::encode(Self::FORMAT, self)
    }

    fn decode(bytes: &[u8]) -> luthier_artifact::Result<Self> {
        json::decode(Self::FORMAT, bytes)
    }
}

impl ExtractConfig {
    /// Changes when the same features are put into tables in another way, or other images are skipped.
    pub const VERSION: u32 = 6;

    /// The stage's key. `manifest` is the digest of the manifest.
    ///
    /// # Errors
    /// [`Error::File`] if the weights file cannot be read.
    pub fn key(&self, manifest: Digest) -> Result<Key> {
        let ExtractConfig { extractor } = self;
        let keys = extractor.keys()?;
        let mut key = Key::stage("extract", Self::VERSION);
        // The parts that all views have in common, for people to read. The views follow below.
        for part in (keys[0].parts.iter()).filter(|part| !["view", "pooling"].contains(&part.name.as_str())) {
            let name = if part.name == "version" {
                "extractor version"
            } else {
                &part.name
            };
            key = key.field(name, &part.value);
        }
        let sha256 = weights_of(&keys);
        let views: Vec<String> = extractor.views.as_slice().iter().map(View::to_string).collect();
        let descriptors = DescriptorDigests::new(&keys, &extractor.views);
        Ok(key
            .field("views", views.join(", "))
            .field("pooling", extractor.pooling)
            .field("combine", extractor.views.combination())
            // The name is in the tables, though it changes no feature.
            .field("weights name", extractor.weights_name(&sha256))
            .field("extractor", descriptors)
            .field(PERCEPTUAL_HASH, PerceptualHash::descriptor(extractor.decode))
            // What is skipped depends on these.
            .field("limits", extractor.limits)
            .field("libheif", if cfg!(feature = "heif") { "yes" } else { "no" })
            .input("manifest", manifest)
            .finish())
    }

    /// The descriptors of the vectors that an execution's tables are made of: the features of each
    /// view, in order; the rows, if several views are combined; and the perceptual hashes.
    ///
    /// # Errors
    /// [`Error::File`] if the weights file cannot be read.
    pub fn descriptors(&self) -> Result<Vec<Descriptor>> {
        let ExtractConfig { extractor } = self;
        let keys = extractor.keys()?;
        let sha256 = weights_of(&keys);
        let weights = part("weights name", extractor.weights_name(&sha256));
        let mut descriptors: Vec<Descriptor> = (keys.iter())
            .map(|key| Descriptor {
                digest: key.digest(),
                parts: key.parts.iter().chain([&weights]).cloned().collect(),
            })
            .collect();
        let of_rows = DescriptorDigests::new(&keys, &extractor.views).of_rows;
        if let [first, _, ..] = keys.as_slice() {
            let views: Vec<String> = extractor.views.as_slice().iter().map(View::to_string).collect();
            let of_all = first.parts.iter().filter(|part| part.name != "view");
            let own = [
                part("views", views.join(", ")),
                part("combine", extractor.views.combination()),
            ];
            descriptors.push(Descriptor {
                digest: of_rows,
                parts: own.iter().chain(of_all).chain([&weights]).cloned().collect(),
            });
        }
        descriptors.push(Descriptor {
            digest: PerceptualHash::descriptor(extractor.decode),
            parts: vec![part("view", PERCEPTUAL_HASH), part("decode", extractor.decode)],
        });
        Ok(descriptors)
    }

    /// What an execution that gave [`ImageRows`] with this digest refers to.
    ///
    /// # Errors
    /// Those of [`descriptors`](ExtractConfig::descriptors).
    pub fn references(&self, images: Digest) -> Result<References> {
        Ok(References {
            descriptors: self.descriptors()?,
            images: vec![images],
        })
    }

    /// Embeds the images that the cache does not know, and makes tables of all features.
    ///
    /// Features are committed to the cache every second, so that an interrupted or killed run loses
    /// no more than that.
    ///
    /// # Errors
    /// Those of [`Extractor::load`] and [`Extractor::embed`], and [`Error::EmptyClass`].
    pub fn run(&self, context: &ExtractContext<'_>) -> Result<Extraction> {
        let extraction = self.run_on_part(context)?;
        check_classes(context.source, context.manifest, &extraction.skipped)?;
        Ok(extraction)
    }

    /// [`run`](ExtractConfig::run) on a part of a data set, in which a class may have no image that can be read.
    ///
    /// # Errors
    /// Those of [`Extractor::load`] and [`Extractor::embed`].
    pub fn run_on_part(&self, context: &ExtractContext<'_>) -> Result<Extraction> {
        let &ExtractContext { manifest, cache, .. } = context;
        let ExtractConfig { extractor } = self;
        let keys = extractor.keys()?;
        let expected = weights_of(&keys);
        let descriptors = DescriptorDigests::new(&keys, &extractor.views);
        let images = distinct_images(manifest);
        let digests: Vec<Digest> = images.iter().map(|(digest, _)| *digest).collect();
        let mut vectors = cache.feature_digests(&descriptors.of_rows, &digests)?;
        let without_row: Vec<usize> = (0..digests.len()).filter(|&place| vectors[place].is_none()).collect();
        let to_make: Vec<Digest> = without_row.iter().map(|&place| digests[place]).collect();
        let kinds = Kinds::new(extractor.kinds(), &keys);
        let mut missing = vec![Vec::new(); digests.len()];
        for (&place, kinds) in without_row.iter().zip(kinds.missing(&to_make, cache)?) {
            missing[place] = kinds;
        }
        let (n_embedded, skipped) = self.embed_missing(&kinds, &missing, &images, &expected, context)?;
        descriptors.combine(&to_make, &extractor.views, cache)?;
        let made = cache.feature_digests(&descriptors.of_rows, &to_make)?;
        for (place, vector) in without_row.into_iter().zip(made) {
            vectors[place] = vector;
        }
        let features = Known {
            images: &digests,
            vectors: &vectors,
            width: extractor.views.width(),
            extractor: extractor.info(&expected),
        };
        let hashes = cache.feature_digests(&PerceptualHash::descriptor(extractor.decode), &digests)?;
        let (train, test) = (
            rows(manifest, Split::Train, &features, &skipped)?,
            rows(manifest, Split::Test, &features, &skipped)?,
        );
        Ok(Extraction {
            images: image_rows(&[&train, &test], &digests, &hashes)?,
            train,
            test,
            n_embedded,
            n_reused: digests.len() - n_embedded - skipped.0.len(),
            skipped,
        })
    }

    /// Embeds the images whose features of any of these kinds the cache does not know, each image in one go, and makes no
    /// tables. The views and the pooling of the configuration do not matter. The result is how many images went through
    /// the network, and those that could not be decoded.
    ///
    /// # Errors
    /// Those of [`Extractor::load`] and [`Extractor::embed`].
    pub fn embed(&self, kinds: &[FeatureKind], context: &ExtractContext<'_>) -> Result<(usize, SkippedImages)> {
        let keys = self.extractor.keys_of(kinds)?;
        let kinds = Kinds::new(kinds.to_vec(), &keys);
        let images = distinct_images(context.manifest);
        let digests: Vec<Digest> = images.iter().map(|(digest, _)| *digest).collect();
        let missing = kinds.missing(&digests, context.cache)?;
        self.embed_missing(&kinds, &missing, &images, &weights_of(&keys), context)
    }

    /// Embeds what is missing of each image, and makes the perceptual hashes that the cache does not know. The result is
    /// how many images went through the network, and those that could not be decoded.
    fn embed_missing(
        &self,
        kinds: &Kinds,
        missing: &[Vec<FeatureKind>],
        images: &[(Digest, usize)],
        weights: &str,
        context: &ExtractContext<'_>,
    ) -> Result<(usize, SkippedImages)> {
        let &ExtractContext {
            source,
            manifest,
            cache,
            store,
            n_threads,
            observer,
        } = context;
        let ExtractConfig { extractor } = self;
        let digests: Vec<Digest> = images.iter().map(|(digest, _)| *digest).collect();
        let hashes = cache.feature_digests(&PerceptualHash::descriptor(extractor.decode), &digests)?;
        let sizes = sizes(kinds.kinds.iter().map(|kind| kind.view));
        let (mut skipped, mut embedded) = (BTreeMap::new(), HashSet::new());
        // A pass over the images for each size: few ask for two.
        for &size in &sizes {
            let of_size = missing.iter().map(|kinds| {
                let kinds = kinds.iter().filter(|kind| kind.view.size == size);
                kinds.copied().collect::<Vec<_>>()
            });
            let mut files: Vec<ImageInput> = (of_size.enumerate())
                .filter(|(place, kinds)| !kinds.is_empty() || (hashes[*place].is_none() && size == sizes[0]))
                .filter(|(place, _)| !skipped.contains_key(&digests[*place]))
                .map(|(place, kinds)| ImageInput {
                    source: ImageSource::File(source.path(&manifest.entries[images[place].1])),
                    digest: Some(digests[place]),
                    kinds,
                })
                .collect();
            if files.is_empty() {
                continue;
            }
            // Files of a folder often lie together on the disk.
            files.sort_by(|a, b| a.source.cmp(&b.source));
            let network = Extractor::load(extractor, size, store, n_threads, Some(files.len()), observer)?;
            check_weights(extractor, weights)?;
            let at = if sizes.len() > 1 {
                format!(" at {size} pixels")
            } else {
                String::new()
            };
            let task = observer.task(&format!("images embedded{at}"), files.len() as u64);
            let mut commit = Commit::new(cache, &kinds.descriptors, extractor.decode);
            let outcome = network.embed(&files, observer, |place, found| {
                task.advance(1);
                let ImageInput {
                    digest, kinds: wanted, ..
                } = &files[place];
                let digest = digest.expect("scanned images have digests");
                match found {
                    Embedded::Unreadable { reason, .. } => {
                        skipped.insert(digest, reason);
                    }
                    Embedded::Features { rows, hash, .. } => {
                        if !rows.is_empty() {
                            embedded.insert(digest);
                        }
                        commit.push(digest, kinds.places(wanted).zip(rows), hash)?;
                    }
                }
                Ok(())
            });
            // Also when the run ends early: what was embedded is kept.
            commit.flush()?;
            outcome?;
        }
        Ok((embedded.len(), SkippedImages(skipped.into_iter().collect())))
    }

    /// How many distinct images of a manifest the cache has no features for.
    ///
    /// # Errors
    /// [`Error::File`] if the weights file cannot be read, [`Error::Cache`] if the cache fails.
    pub fn count_missing(&self, manifest: &Manifest, cache: &Cache) -> Result<usize> {
        let keys = self.extractor.keys()?;
        let descriptors = DescriptorDigests::new(&keys, &self.extractor.views);
        let images: Vec<Digest> = (distinct_images(manifest).into_iter())
            .map(|(digest, _)| digest)
            .collect();
        let rows = cache.feature_digests(&descriptors.of_rows, &images)?;
        let without_row: Vec<Digest> = (images.into_iter().zip(rows))
            .filter_map(|(image, row)| row.is_none().then_some(image))
            .collect();
        Kinds::new(self.extractor.kinds(), &keys).count_missing(&without_row, cache)
    }

    /// How many distinct images of a manifest lack features of one of these kinds.
    ///
    /// # Errors
    /// Those of [`count_missing`](ExtractConfig::count_missing).
    pub fn count_missing_of(&self, kinds: &[FeatureKind], manifest: &Manifest, cache: &Cache) -> Result<usize> {
        let images: Vec<Digest> = (distinct_images(manifest).into_iter())
            .map(|(digest, _)| digest)
            .collect();
        Kinds::new(kinds.to_vec(), &self.extractor.keys_of(kinds)?).count_missing(&images, cache)
    }
}

/// The SHA-256 of the weights, from the key of any features: hashing the weights again costs as much as the rest of an
/// unchanged run.
pub(crate) fn weights_of(keys: &[Key]) -> String {
    let weights = keys[0].get("weights");
    weights.expect("the weights are part of the key").to_owned()
}

/// Kinds of features with the descriptors under which the cache knows them.
struct Kinds {
    kinds: Vec<FeatureKind>,
    descriptors: Vec<Digest>,
}

impl Kinds {
    /// `keys` are those of the kinds, in their order.
    fn new(kinds: Vec<FeatureKind>, keys: &[Key]) -> Self {
        Kinds {
            kinds,
            descriptors: keys.iter().map(Key::digest).collect(),
        }
    }

    /// The kinds of each image's features that the cache does not know.
    fn missing(&self, images: &[Digest], cache: &Cache) -> Result<Vec<Vec<FeatureKind>>> {
        let mut missing = vec![Vec::new(); images.len()];
        for (descriptor, kind) in self.descriptors.iter().zip(&self.kinds) {
            let known = cache.feature_digests(descriptor, images)?;
            for (missing, known) in missing.iter_mut().zip(known) {
                if known.is_none() {
                    missing.push(*kind);
                }
            }
        }
        Ok(missing)
    }

    fn count_missing(&self, images: &[Digest], cache: &Cache) -> Result<usize> {
        let missing = self.missing(images, cache)?;
        Ok(missing.iter().filter(|kinds| !kinds.is_empty()).count())
    }

    /// The place of each of these kinds among all.
    fn places(&self, kinds: &[FeatureKind]) -> impl Iterator<Item = usize> {
        let place = |wanted| self.kinds.iter().position(|kind| kind == wanted);
        kinds
            .iter()
            .map(move |wanted| place(wanted).expect("nothing else was asked for"))
    }
}

fn part(name: &str, value: impl fmt::Display) -> KeyPart {
    KeyPart {
        name: name.to_owned(),
        value: value.to_string(),
    }
}

/// Fails if the weights were replaced after the key was made: their features must not be cached
/// under that key.
pub(crate) fn check_weights(extractor: &ExtractorConfig, expected: &str) -> Result<()> {
    match &extractor.weights {
        WeightsSource::File(path) if extractor.weights.sha256()? != expected => {
            Err(Error::Changed { path: path.clone() })
        }
        _ => Ok(()),
    }
}

/// The digests of the descriptors that rows are made of.
#[derive(Debug)]
pub(crate) struct DescriptorDigests {
    /// The features of each view.
    pub(crate) of_views: Vec<Digest>,
    /// The rows: the features of the only view, or of several views combined.
    of_rows: Digest,
}

impl DescriptorDigests {
    /// `keys` are the keys of the views, in their order.
    pub(crate) fn new(keys: &[Key], views: &Views) -> Self {
        let of_views: Vec<Digest> = keys.iter().map(Key::digest).collect();
        let of_rows = match of_views.as_slice() {
            [only] => *only,
            several => {
                let key = Key::stage("combine", 1).field("combine", views.combination());
                let place =
                    |key: KeyBuilder, (place, view): (usize, &Digest)| key.input(&format!("view {place}"), *view);
                several.iter().enumerate().fold(key, place).finish().digest()
            }
        };
        DescriptorDigests { of_views, of_rows }
    }

    /// Combines the features of several views to rows. A single view's features are the row
    /// already.
    fn combine(&self, images: &[Digest], views: &Views, cache: &Cache) -> Result<()> {
        if self.of_views == [self.of_rows] {
            return Ok(());
        }
        for images in images.chunks(ROWS_AT_ONCE) {
            let of_views: Vec<Vec<Option<Digest>>> = (self.of_views.iter())
                .map(|descriptor| cache.feature_digests(descriptor, images))
                .collect::<luthier_cache::Result<_>>()?;
            // An image that was skipped has no features.
            let places: Vec<usize> = (0..images.len())
                .filter(|&place| of_views.iter().all(|digests| digests[place].is_some()))
                .collect();
            let mut blocks = Vec::new();
            for digests in &of_views {
                let digests: Vec<Digest> = places.iter().filter_map(|&place| digests[place]).collect();
                blocks.push(cache.vectors(&digests, WIDTH)?);
            }
            let rows: Vec<(Digest, Vec<f32>)> = (places.iter().enumerate())
                .map(|(row, &place)| {
                    let of_views: Vec<_> = blocks.iter().map(|block| block.row(row)).collect();
                    let of_views: Vec<&[f32]> = (of_views.iter())
                        .map(|row| row.to_slice().expect("blocks are in standard layout"))
                        .collect();
                    (images[place], views.combine(&of_views))
                })
                .collect();
            cache.store_features(&self.of_rows, &rows)?;
        }
        Ok(())
    }
}

impl fmt::Display for DescriptorDigests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digests = self.of_views.clone();
        digests.push(self.of_rows);
        digests.dedup();
        let digests: Vec<String> = digests.iter().map(Digest::to_string).collect();
        f.write_str(&digests.join(" "))
    }
}

/// Rows on their way into the cache.
pub(crate) struct Commit<'a> {
    cache: &'a Cache,
    /// The descriptor of each kind of features.
    of_kinds: &'a [Digest],
    /// The descriptor of perceptual hashes.
    of_hashes: Digest,
    /// Rows of each kind, by image.
    pending: Vec<Vec<(Digest, Vec<f32>)>>,
    /// Perceptual hashes, by image.
    pending_hashes: Vec<(Digest, Vec<f32>)>,
    since: Instant,
}

impl<'a> Commit<'a> {
    pub(crate) fn new(cache: &'a Cache, of_kinds: &'a [Digest], decode: Decoding) -> Self {
        Commit {
            cache,
            of_kinds,
            of_hashes: PerceptualHash::descriptor(decode),
            pending: vec![Vec::new(); of_kinds.len()],
            pending_hashes: Vec::new(),
            since: Instant::now(),
        }
    }

    /// Takes an image's rows, each with the place of its kind, and its perceptual hash. A second after the last time, all
    /// that was taken is committed.
    pub(crate) fn push(
        &mut self,
        image: Digest,
        rows: impl Iterator<Item = (usize, Vec<f32>)>,
        PerceptualHash(hash): PerceptualHash,
    ) -> Result<()> {
        self.pending_hashes.push((image, hash));
        for (kind, row) in rows {
            self.pending[kind].push((image, row));
        }
        if self.since.elapsed() >= COMMIT_INTERVAL {
            self.flush()?;
        }
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> Result<()> {
        for (descriptor, rows) in self.of_kinds.iter().zip(&mut self.pending) {
            self.cache.store_features(descriptor, rows)?;
            rows.clear();
        }
        self.cache.store_features(&self.of_hashes, &self.pending_hashes)?;
        self.pending_hashes.clear();
        self.since = Instant::now();
        Ok(())
    }
}

/// The images of a manifest ordered by digest, each with the place of its first entry.
fn distinct_images(manifest: &Manifest) -> Vec<(Digest, usize)> {
    let mut images: Vec<(Digest, usize)> = (manifest.entries.iter().enumerate())
        .filter_map(|(place, entry)| Some((entry.content.digest()?, place)))
        .collect();
    images.sort_unstable();
    images.dedup_by_key(|(digest, _)| *digest);
    images
}

/// The digests of images' features, or of their perceptual hashes.
struct Known<'a> {
    /// In order.
    images: &'a [Digest],
    /// The vector of each image; `None` if it could not be embedded.
    vectors: &'a [Option<Digest>],
    /// The number of values of each vector.
    width: usize,
    extractor: ExtractorInfo,
}

impl Known<'_> {
    fn vector(&self, image: &Digest) -> Option<Digest> {
        self.images
            .binary_search(image)
            .ok()
            .and_then(|place| self.vectors[place])
    }
}

fn rows(manifest: &Manifest, split: Split, known: &Known<'_>, skipped: &SkippedImages) -> Result<FeatureRows> {
    let mut rows: Vec<(usize, Digest)> = (manifest.entries.iter())
        .filter(|entry| entry.split == split)
        .filter_map(|entry| match entry.content {
            Content::Digest(digest) if skipped.reason(&digest).is_none() => Some((label(manifest, entry), digest)),
            _ => None,
        })
        .collect();
    rows.sort_unstable();
    // Another process may have found damaged features meanwhile, and forgotten them.
    let vector = |(_, digest): &(usize, Digest)| {
        let (what, digest) = ("features of image", *digest);
        known.vector(&digest).ok_or(luthier_cache::Error::Lost { what, digest })
    };
    let vectors = rows.iter().map(vector).collect::<luthier_cache::Result<_>>()?;
    let (labels, images) = rows.into_iter().unzip();
    Ok(FeatureRows {
        classes: manifest.classes.clone(),
        extractor: known.extractor.clone(),
        width: known.width,
        labels,
        images,
        vectors,
    })
}

/// The distinct images of tables with their perceptual hashes. `images` are ascending, and `hashes`
/// belong to them.
fn image_rows(tables: &[&FeatureRows], images: &[Digest], hashes: &[Option<Digest>]) -> Result<ImageRows> {
    let hash = |image: &Digest| {
        let place = images.binary_search(image).ok();
        let (what, digest) = ("perceptual hash of image", *image);
        place
            .and_then(|place| hashes[place])
            .ok_or(luthier_cache::Error::Lost { what, digest })
    };
    let of_tables: Vec<Vec<Digest>> = (tables.iter())
        .map(|table| table.images.iter().map(hash).collect::<luthier_cache::Result<_>>())
        .collect::<luthier_cache::Result<_>>()?;
    let tables: Vec<(&FeatureRows, &[Digest])> = (tables.iter().zip(&of_tables))
        .map(|(table, hashes)| (*table, hashes.as_slice()))
        .collect();
    Ok(ImageRows::new(&tables, PerceptualHash::WIDTH))
}

fn label(manifest: &Manifest, entry: &ManifestEntry) -> usize {
    manifest.label(&entry.class).expect("every class of an entry is listed")
}

/// Every class needs a readable image in each split where it has images at all. The test split of
/// A test split that was drawn is an exception: it was drawn before anybody knew which images can be
/// decoded, so that the report tells of classes without test images.
fn check_classes(source: &DataSource, manifest: &Manifest, skipped: &SkippedImages) -> Result<()> {
    let reason = |entry: &ManifestEntry| match &entry.content {
        Content::Unreadable(reason) => Some(reason.clone()),
        Content::Digest(digest) => skipped.reason(digest).map(str::to_owned),
    };
    let mut of_class: BTreeMap<(Split, &str), Vec<&ManifestEntry>> = BTreeMap::new();
    for entry in &manifest.entries {
        of_class.entry((entry.split, &entry.class)).or_default().push(entry);
    }
    for entries in of_class.into_values() {
        let first = entries[0];
        let is_drawn = source.is_drawn() && first.split == Split::Test;
        if is_drawn || entries.iter().any(|entry| reason(entry).is_none()) {
            continue;
        }
        let (n_images, file) = (entries.len(), file_names::shown(&first.file).into_owned());
        let reason = reason(first).expect("none of them can be read");
        return Err(match &source.layout {
            Layout::Unlabelled(images) => Error::NoneReadable {
                path: images.folder().to_owned(),
                n_images,
                file,
                reason,
            },
            _ => Error::EmptyClass {
                class: first.class.clone(),
                split: first.split,
                n_images,
                file,
                reason,
            },
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Decoding, Device, Framing, Limits, Pooling, Precision};

    #[test]
    fn descriptors_are_those_of_the_views_then_of_the_rows_then_of_the_hashes() {
        let descriptors = |views: Views| {
            let extractor = ExtractorConfig {
                views,
                pooling: Pooling::default(),
                decode: Decoding::Scaled,
                limits: Limits::default(),
                weights: WeightsSource::Untrained,
                precision: Precision::Fp32,
                device: Device::Cpu,
                batch: None,
            };
            let key = ExtractConfig {
                extractor: extractor.clone(),
            }
            .key(Digest::of(b"manifest"))
            .unwrap();
            let descriptors = ExtractConfig { extractor }.descriptors().unwrap();
            let digests: Vec<String> = descriptors.iter().map(|found| found.digest.to_string()).collect();
            // Another build may read what this one skips.
            let libheif = if cfg!(feature = "heif") { "yes" } else { "no" };
            assert_eq!(key.get("libheif"), Some(libheif));
            // The key names the same, without parts.
            let of_key = format!(
                "{} {}",
                key.get("extractor").unwrap(),
                key.get(PERCEPTUAL_HASH).unwrap()
            );
            assert_eq!(digests.join(" "), of_key);
            let shown = |found: &Descriptor| {
                let of_view = |part: &&KeyPart| ["view", "views", "combine"].contains(&part.name.as_str());
                let parts = found.parts.iter().filter(of_view);
                parts.map(|part| part.value.clone()).collect::<Vec<_>>().join(" by ")
            };
            descriptors.iter().map(shown).collect::<Vec<_>>()
        };
        assert_eq!(descriptors(Framing::Squash.into()), ["squash", "perceptual hash"]);
        let both = Views::new(
            [Framing::Crop, Framing::Mirror].map(View::from).to_vec(),
            crate::Combine::Mean,
        )
        .unwrap();
        assert_eq!(
            descriptors(both),
            ["crop", "mirror", "crop, mirror by mean", "perceptual hash"]
        );
    }

    #[test]
    fn weights_that_were_replaced_after_the_key_was_made_are_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "before").unwrap();
        let extractor = ExtractorConfig {
            views: Framing::Squash.into(),
            pooling: Pooling::default(),
            decode: Decoding::Scaled,
            limits: Limits::default(),
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
