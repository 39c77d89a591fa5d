//! The network behind a cache: an image whose features are known does not go through it.

use std::sync::OnceLock;
use std::time::Instant;

use luthier_artifact::Digest;
use luthier_cache::Cache;
use rayon::prelude::*;

use crate::stage::{Commit, DescriptorDigests};
use crate::{
    Embedded, Extractor, ExtractorConfig, ImageInput, ImageSource, Observer, PerceptualHash, Result, WIDTH,
    WeightsStore,
};

/// How many images are looked up at once.
const IMAGES_AT_ONCE: usize = 1024;

/// The features of an image, or why there are none.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageFeatures {
    /// The features of each view, in the order of the extractor's views.
    Rows {
        /// The digest of the bytes that were read.
        digest: Digest,
        /// 2048 numbers a view.
        rows: Vec<Vec<f32>>,
    },
    /// The image cannot be read or decoded.
    Unreadable {
        /// Why, in words for a user.
        reason: String,
    },
}

/// An extractor with a cache. The network is loaded when the first image comes that the cache does not know.
#[derive(Debug)]
pub struct CachedExtractor {
    config: ExtractorConfig,
    store: WeightsStore,
    n_threads: usize,
    n_images: usize,
    cache: Option<(Cache, DescriptorDigests)>,
    network: OnceLock<Extractor>,
}

impl CachedExtractor {
    /// Loads nothing yet, unless there is no `cache`. Threads are divided for work on `n_images` images.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if the weights file cannot be read, and without a cache those of
    /// [`Extractor::load`].
    pub fn new(
        config: ExtractorConfig,
        store: WeightsStore,
        n_threads: usize,
        n_images: usize,
        cache: Option<Cache>,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let cache = match cache {
            Some(cache) => {
                let descriptors = DescriptorDigests::new(&config.keys()?, &config.views);
                Some((cache, descriptors))
            }
            None => None,
        };
        let extractor = CachedExtractor {
            config,
            store,
            n_threads,
            n_images,
            cache,
            network: OnceLock::new(),
        };
        if extractor.cache.is_none() {
            extractor.network(observer)?;
        }
        Ok(extractor)
    }

    fn network(&self, observer: &dyn Observer) -> Result<&Extractor> {
        if let Some(network) = self.network.get() {
            return Ok(network);
        }
        let network = Extractor::load(&self.config, &self.store, self.n_threads, self.n_images, observer)?;
        Ok(self.network.get_or_init(|| network))
    }

    /// The features of images. `done` gets the place of each image in `images` and its features, in no particular order.
    /// What the network computes is kept in the cache.
    ///
    /// # Errors
    /// Those of [`Extractor::load`] and [`Extractor::embed`], and whatever `done` returns.
    pub fn features(
        &self,
        images: &[ImageSource],
        observer: &dyn Observer,
        mut done: impl FnMut(usize, ImageFeatures) -> Result<()>,
    ) -> Result<()> {
        for (chunk, images) in images.chunks(IMAGES_AT_ONCE).enumerate() {
            let first = chunk * IMAGES_AT_ONCE;
            let mut unknown = Vec::new();
            for (place, known) in self.known(images)?.into_iter().enumerate() {
                match known {
                    Some(features) => done(first + place, features)?,
                    None => unknown.push(place),
                }
            }
            if !unknown.is_empty() {
                self.embed(images, &unknown, observer, |place, features| {
                    done(first + place, features)
                })?;
            }
        }
        Ok(())
    }

    /// What the cache knows of these images.
    fn known(&self, images: &[ImageSource]) -> Result<Vec<Option<ImageFeatures>>> {
        let Some((cache, descriptors)) = &self.cache else {
            return Ok(vec![None; images.len()]);
        };
        // A file that cannot be read has no digest: reading it again will tell why.
        let digests: Vec<Option<Digest>> = (images.par_iter())
            .map(|image| match image {
                ImageSource::File(path) => Digest::of_file(path).ok(),
                ImageSource::Bytes(bytes) => Some(Digest::of(bytes)),
            })
            .collect();
        let read: Vec<Digest> = digests.iter().flatten().copied().collect();
        let mut of_views = Vec::new();
        for descriptor in &descriptors.of_views {
            of_views.push(cache.feature_digests(descriptor, &read)?);
        }
        let mut next = 0;
        let mut known = Vec::with_capacity(images.len());
        for digest in digests {
            let Some(digest) = digest else {
                known.push(None);
                continue;
            };
            let vectors: Option<Vec<Digest>> = of_views.iter().map(|vectors| vectors[next]).collect();
            next += 1;
            // What is damaged is computed again.
            let rows = vectors.and_then(|vectors| cache.vectors(&vectors, WIDTH).ok());
            known.push(rows.map(|rows| ImageFeatures::Rows {
                digest,
                rows: rows.outer_iter().map(|row| row.to_vec()).collect(),
            }));
        }
        Ok(known)
    }

    /// Takes the images at these places through the network.
    fn embed(
        &self,
        images: &[ImageSource],
        places: &[usize],
        observer: &dyn Observer,
        mut done: impl FnMut(usize, ImageFeatures) -> Result<()>,
    ) -> Result<()> {
        let inputs: Vec<ImageInput> = (places.iter())
            .map(|&place| ImageInput {
                source: images[place].clone(),
                digest: None,
                views: self.config.views.as_slice().to_vec(),
            })
            .collect();
        let network = self.network(observer)?;
        let mut commit = (self.cache.as_ref()).map(|(cache, descriptors)| Commit {
            cache,
            of_views: &descriptors.of_views,
            of_hashes: PerceptualHash::descriptor(self.config.decode),
            pending: vec![Vec::new(); descriptors.of_views.len()],
            pending_hashes: Vec::new(),
            since: Instant::now(),
        });
        let outcome = network.embed(&inputs, observer, |place, embedded| {
            let features = match embedded {
                Embedded::Unreadable { reason, .. } => ImageFeatures::Unreadable { reason },
                Embedded::Features { digest, rows, hash } => {
                    if let Some(commit) = &mut commit {
                        commit.pending_hashes.push((digest, hash.0));
                        for (pending, row) in commit.pending.iter_mut().zip(&rows) {
                            pending.push((digest, row.clone()));
                        }
                        commit.flush_if_due()?;
                    }
                    ImageFeatures::Rows { digest, rows }
                }
            };
            done(places[place], features)
        });
        // Also when the run ends early: what was embedded is kept.
        if let Some(commit) = &mut commit {
            commit.flush()?;
        }
        outcome
    }
}
