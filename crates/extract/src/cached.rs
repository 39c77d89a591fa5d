//! The network behind a cache: an image whose features are known does not go through it.

use std::path::Path;
use std::sync::OnceLock;

use luthier_artifact::Digest;
use luthier_cache::Cache;
use ndarray::Array2;
use rayon::prelude::*;

use crate::stage::{Commit, DescriptorDigests, check_weights, weights_of};
use crate::{
    Embedded, Error, Extractor, ExtractorConfig, ImageInput, ImageSource, InputSize, Limits, Observer, Result, WIDTH,
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
    n_images: Option<usize>,
    cache: Option<(Cache, DescriptorDigests)>,
    /// The SHA-256 of the weights when the extractor was made.
    weights: String,
    /// The network for each size of the views.
    networks: Vec<(InputSize, OnceLock<Extractor>)>,
}

/// The vectors of each image whose views are all stored, and the rows of these images one after the other.
type Stored = (Vec<Option<Vec<Digest>>>, Array2<f32>);

impl CachedExtractor {
    /// Loads nothing yet, unless there is no `cache`. Threads are divided for work on `n_images` images;
    /// `None` if nobody knows how many will come.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if the weights file cannot be read, and without a cache those of
    /// [`Extractor::load`].
    pub fn new(
        config: ExtractorConfig,
        store: WeightsStore,
        n_threads: usize,
        n_images: Option<usize>,
        cache: Option<Cache>,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let (cache, weights) = match cache {
            Some(cache) => {
                let keys = config.keys()?;
                let descriptors = DescriptorDigests::new(&keys, &config.views);
                (Some((cache, descriptors)), weights_of(&keys))
            }
            None => (None, String::new()),
        };
        let sizes = config.views.sizes().into_iter();
        let extractor = CachedExtractor {
            config,
            store,
            n_threads,
            n_images,
            cache,
            weights,
            networks: sizes.map(|size| (size, OnceLock::new())).collect(),
        };
        if extractor.cache.is_none() {
            for (size, network) in &extractor.networks {
                extractor.load(*size, network, observer)?;
            }
        }
        Ok(extractor)
    }

    /// The configuration.
    pub fn config(&self) -> &ExtractorConfig {
        &self.config
    }

    fn load<'a>(
        &self,
        size: InputSize,
        network: &'a OnceLock<Extractor>,
        observer: &dyn Observer,
    ) -> Result<&'a Extractor> {
        if let Some(network) = network.get() {
            return Ok(network);
        }
        let (store, n_threads, n_images) = (&self.store, self.n_threads, self.n_images);
        let loaded = Extractor::load(&self.config, size, store, n_threads, n_images, observer)?;
        if self.cache.is_some() {
            check_weights(&self.config, &self.weights)?;
        }
        Ok(network.get_or_init(|| loaded))
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
            for (place, known) in self.known(images, observer)?.into_iter().enumerate() {
                if observer.is_interrupted() {
                    return Err(Error::Interrupted);
                }
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

    /// Shares what was computed with other machines, if the cache has a remote.
    ///
    /// # Errors
    /// [`Error::Cache`] if the cache fails.
    pub fn share(&self) -> Result<()> {
        match &self.cache {
            Some((cache, _)) => Ok(cache.share()?),
            None => Ok(()),
        }
    }

    /// What the cache knows of these images. A cache that fails knows nothing.
    fn known(&self, images: &[ImageSource], observer: &dyn Observer) -> Result<Vec<Option<ImageFeatures>>> {
        let Some((cache, descriptors)) = &self.cache else {
            return Ok(vec![None; images.len()]);
        };
        let limits = self.config.limits;
        let digests: Vec<Option<Digest>> = (images.par_iter())
            .map(|image| match image {
                _ if observer.is_interrupted() => Err(Error::Interrupted),
                ImageSource::File(path) => Ok(digest_of(path, &limits)),
                ImageSource::Bytes(bytes) => Ok(Some(Digest::of(bytes))),
            })
            .collect::<Result<_>>()?;
        let read: Vec<Digest> = digests.iter().flatten().copied().collect();
        // What is damaged the cache forgets, so that the second answer is without it.
        let found = Self::stored(cache, descriptors, &read);
        let found = found.or_else(|_| Self::stored(cache, descriptors, &read));
        let (vectors, rows) = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!("{error}: images are computed again");
                return Ok(vec![None; images.len()]);
            }
        };
        let (mut rows, mut vectors) = (rows.outer_iter(), vectors.into_iter());
        let known = digests.into_iter().map(|digest| {
            let digest = digest?;
            let n_views = vectors.next()??.len();
            let rows = rows.by_ref().take(n_views).map(|row| row.to_vec()).collect();
            Some(ImageFeatures::Rows { digest, rows })
        });
        Ok(known.collect())
    }

    /// What is stored of these images.
    fn stored(cache: &Cache, descriptors: &DescriptorDigests, images: &[Digest]) -> luthier_cache::Result<Stored> {
        let of_views = descriptors
            .of_views
            .iter()
            .map(|descriptor| cache.feature_digests(descriptor, images));
        let of_views = of_views.collect::<luthier_cache::Result<Vec<_>>>()?;
        let of_image = |place: usize| of_views.iter().map(|vectors| vectors[place]).collect();
        let vectors: Vec<Option<Vec<Digest>>> = (0..images.len()).map(of_image).collect();
        let wanted: Vec<Digest> = vectors.iter().flatten().flatten().copied().collect();
        let rows = cache.vectors(&wanted, WIDTH)?;
        Ok((vectors, rows))
    }

    /// An image as it is read for each size of views: what gives its bytes only once, such as a pipe, is read now.
    fn to_read(&self, image: &ImageSource) -> ImageSource {
        let ImageSource::File(path) = image else {
            return image.clone();
        };
        let is_read_twice = self.networks.len() > 1;
        if !is_read_twice || path.metadata().is_ok_and(|found| found.is_file()) {
            return image.clone();
        }
        // What is wrong with another, reading it again will tell.
        std::fs::read(path).map_or_else(|_| image.clone(), |bytes| ImageSource::Bytes(bytes.into()))
    }

    /// Takes the images at these places through the network.
    fn embed(
        &self,
        images: &[ImageSource],
        places: &[usize],
        observer: &dyn Observer,
        mut done: impl FnMut(usize, ImageFeatures) -> Result<()>,
    ) -> Result<()> {
        let kinds = self.config.kinds();
        let sources: Vec<ImageSource> = places.iter().map(|&place| self.to_read(&images[place])).collect();
        let cache = self.cache.as_ref();
        let mut commit =
            cache.map(|(cache, descriptors)| Commit::new(cache, &descriptors.of_views, self.config.decode));
        // Of each image the digest, once it is known, and the features of each view, as far as they are.
        let mut found: Vec<(Option<Digest>, Vec<Vec<f32>>)> = vec![(None, vec![Vec::new(); kinds.len()]); places.len()];
        let mut waiting: Vec<usize> = (0..places.len()).collect();
        let mut outcome = Ok(());
        for (pass, (size, network)) in self.networks.iter().enumerate() {
            let of_size: Vec<usize> = (0..kinds.len())
                .filter(|&kind| kinds[kind].view.size == *size)
                .collect();
            let inputs: Vec<ImageInput> = (waiting.iter())
                .map(|&place| ImageInput {
                    source: sources[place].clone(),
                    digest: None,
                    kinds: of_size.iter().map(|&kind| kinds[kind]).collect(),
                })
                .collect();
            let is_last = pass + 1 == self.networks.len();
            let mut readable = Vec::new();
            let network = self.load(*size, network, observer)?;
            outcome = network.embed(&inputs, observer, |input, embedded| {
                let place = waiting[input];
                let (digest, rows, hash) = match embedded {
                    Embedded::Unreadable { reason, .. } => {
                        return done(places[place], ImageFeatures::Unreadable { reason });
                    }
                    Embedded::Features { digest, rows, hash } => (digest, rows, hash),
                };
                if found[place].0.is_some_and(|before| before != digest) {
                    let reason = "changed while it was being read".to_owned();
                    return done(places[place], ImageFeatures::Unreadable { reason });
                }
                let kept = commit.as_mut();
                let rows_of_kinds = of_size.iter().copied().zip(rows.iter().cloned());
                let kept = kept.map(|commit| commit.push(digest, rows_of_kinds, hash));
                // An answer does not depend on whether its features can be kept.
                if let Some(Err(error)) = kept {
                    tracing::warn!("{error}: features are not kept");
                    commit = None;
                }
                let (known, of_image) = &mut found[place];
                *known = Some(digest);
                for (&kind, row) in of_size.iter().zip(rows) {
                    of_image[kind] = row;
                }
                readable.push(place);
                if is_last {
                    let rows = std::mem::take(of_image);
                    return done(places[place], ImageFeatures::Rows { digest, rows });
                }
                Ok(())
            });
            if outcome.is_err() {
                break;
            }
            waiting = readable;
        }
        // Also when the run ends early: what was embedded is kept.
        if let Some(Err(error)) = commit.as_mut().map(Commit::flush) {
            tracing::warn!("{error}: features are not kept");
        }
        outcome
    }
}

/// The digest of a file that can be read twice and is no larger than a photograph may be. What is wrong with another,
/// reading it will tell.
fn digest_of(path: &Path, limits: &Limits) -> Option<Digest> {
    let metadata = path.metadata().ok()?;
    let is_photograph = metadata.is_file() && limits.check_file(metadata.len()).is_ok();
    is_photograph.then(|| Digest::of_file(path).ok()).flatten()
}
