use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use luthier_artifact::{Digest, ExtractorInfo, Key};

use crate::network::batches::Prepared;
use crate::network::device;
use crate::network::gpu::Gpu;
use crate::network::lanes::Lanes;
use crate::network::resnet50::{self, Kernels, Network, Target, WIDTH};
use crate::network::{bridge, calibration};
use crate::stage::check_weights;
use crate::{
    Decoding, Device, Error, FeatureKind, InputSize, Limits, Observer, PerceptualHash, Pooling, Precision, Preprocess,
    Result, View, Views, WeightsSource, WeightsStore, decode_within,
};

/// The network and how it sees images: everything that features depend on beside an image's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtractorConfig {
    /// The views in which the network sees an image.
    pub views: Views,
    /// How the network's last maps become features.
    pub pooling: Pooling,
    /// How large JPEGs are decoded.
    pub decode: Decoding,
    /// How much an image may cost; one that costs more is skipped.
    pub limits: Limits,
    /// The weights of the network.
    pub weights: WeightsSource,
    /// The number format of the network.
    pub precision: Precision,
    /// Where the network runs.
    pub device: Device,
    /// How many images go through the network at once. `None` is 1 on the CPU (in int8, 8), 128 on CUDA, and 32 on Apple's
    /// GPU.
    pub batch: Option<usize>,
}

impl ExtractorConfig {
    /// Changes when the same configuration gives other features, because decoding, preprocessing or
    /// the network changed.
    pub const VERSION: u32 = 4;

    /// Changes when GPUs give other features.
    pub const GPU_VERSION: u32 = 2;

    /// The libtorch that this program was built for.
    pub const LIBTORCH: &str = "2.11.0";

    /// The features of each view, in the order of the views.
    pub fn kinds(&self) -> Vec<FeatureKind> {
        let kind = |&view| FeatureKind {
            view,
            pooling: self.pooling,
        };
        self.views.as_slice().iter().map(kind).collect()
    }

    /// The keys of [`kinds`](ExtractorConfig::kinds).
    ///
    /// # Errors
    /// [`Error::File`] if the weights file cannot be read.
    pub fn keys(&self) -> Result<Vec<Key>> {
        self.keys_of(&self.kinds())
    }

    /// The key of features of each of these kinds. Its digest is their *descriptor*: the cache knows
    /// the features of an image by descriptor and image.
    ///
    /// A key leaves out the limits, the other views and how they are combined, the number of threads, and the
    /// number of a CUDA device. It contains the batch, but in int8: batches of another size may be
    /// computed in another order. The pooling is in it unless it is the mean, so that features from before there was a
    /// choice stay known.
    ///
    /// # Errors
    /// [`Error::File`] if the weights file cannot be read.
    pub fn keys_of(&self, kinds: &[FeatureKind]) -> Result<Vec<Key>> {
        let ExtractorConfig {
            views: _,
            pooling: _,
            decode,
            limits: _,
            weights,
            precision,
            device,
            batch,
        } = self;
        let weights = weights.sha256()?;
        // Sums of integers do not depend on their order.
        let batch = match precision {
            Precision::Int8 => "any".to_owned(),
            _ => batch.unwrap_or(device.batch(*precision)).to_string(),
        };
        // Parts of their own, so that those of the CPU's floating point stay.
        let is_gpu = *device != Device::Cpu;
        let key = |&FeatureKind { view, pooling }: &FeatureKind| {
            let mut key = Key::stage("extractor", Self::VERSION)
                .field("view", view)
                .field("decode", decode)
                .field("weights", &weights)
                .field("precision", precision)
                .field("device", device.kind())
                .field("kernels", Kernels::best(*device).name())
                .field("batch", &batch)
                .field("libtorch", Self::LIBTORCH);
            if pooling != Pooling::default() {
                key = key.field("pooling", pooling);
            }
            key = match is_gpu {
                true => key.field("gpu version", Self::GPU_VERSION),
                false => key.field("instructions", device::instructions()),
            };
            match precision {
                Precision::Int8 => (key.field("calibration", calibration::VERSION))
                    .field("threads of a layer", 1)
                    .finish(),
                _ => key.finish(),
            }
        };
        Ok(kinds.iter().map(key).collect())
    }

    /// What a model records of how its features were made. `sha256` is that of the weights.
    pub(crate) fn info(&self, sha256: &str) -> ExtractorInfo {
        ExtractorInfo {
            views: self.views.as_slice().iter().map(View::to_string).collect(),
            pooling: self.pooling.to_string(),
            combine: self.views.combination().to_string(),
            decode: self.decode.to_string(),
            weights: self.weights_name(sha256),
            weights_sha256: sha256.to_owned(),
            precision: self.precision.to_string(),
        }
    }

    /// The name of the weights, whose SHA-256 is `sha256`. Known weights keep their name, wherever
    /// the file is.
    pub(crate) fn weights_name(&self, sha256: &str) -> String {
        WeightsSource::known(sha256)
            .unwrap_or_else(|| self.weights.clone())
            .name()
    }
}

/// An image to embed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInput {
    /// Where its bytes are, in any format that [`decode`](crate::decode) knows.
    pub source: ImageSource,
    /// The digest that the bytes must have, if it is known.
    pub digest: Option<Digest>,
    /// Which features are wanted, of views of the extractor's size; none if the perceptual hash is
    /// enough.
    pub kinds: Vec<FeatureKind>,
}

/// Where the bytes of an image are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImageSource {
    /// In a file.
    File(PathBuf),
    /// In memory.
    Bytes(Arc<[u8]>),
}

impl fmt::Display for ImageSource {
    /// The path of the file, or `image in memory`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageSource::File(path) => path.display().fmt(f),
            ImageSource::Bytes(_) => f.write_str("image in memory"),
        }
    }
}

/// What became of an image.
#[derive(Clone, Debug, PartialEq)]
pub enum Embedded {
    /// The image was decoded and went through the network.
    Features {
        /// The digest of the bytes that were read.
        digest: Digest,
        /// The 2048 features of each kind that was wanted, in that order.
        rows: Vec<Vec<f32>>,
        /// How the image looks at its coarsest.
        hash: PerceptualHash,
    },
    /// The image cannot be read or decoded.
    Unreadable {
        /// The digest of the bytes that were read; `None` if the file could not be read.
        digest: Option<Digest>,
        /// Why, in words for a user.
        reason: String,
    },
}

/// The network with its weights, ready to embed images.
#[derive(Debug)]
pub struct Extractor {
    network: Network,
    workers: Workers,
    /// The pooling of images that come as pixels: they do not say which features are wanted.
    pooling: Pooling,
    decode: Decoding,
    limits: Limits,
}

/// The threads that take images through the network.
#[derive(Debug)]
enum Workers {
    Cpu(Lanes),
    Gpu(Gpu),
}

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Workers::Cpu(lanes) => lanes.fmt(f),
            Workers::Gpu(gpu) => gpu.fmt(f),
        }
    }
}

impl Extractor {
    /// Loads the weights, downloading them first if need be, for views of this size, and divides
    /// `n_threads` for work on `n_images` images; `None` if nobody knows how many will come.
    ///
    /// # Errors
    /// [`Error::Device`] and [`Error::Precision`] if the device cannot do what is asked;
    /// [`Error::Weights`], [`Error::WeightsDigest`], [`Error::Download`], [`Error::DownloadDigest`]
    /// or [`Error::File`] if the weights cannot be had; [`Error::Torch`] if the network does not fit
    /// into memory; [`Error::Interrupted`].
    pub fn load(
        config: &ExtractorConfig,
        size: InputSize,
        store: &WeightsStore,
        n_threads: usize,
        n_images: Option<usize>,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let &ExtractorConfig {
            pooling,
            device,
            precision,
            decode,
            limits,
            ..
        } = config;
        device.check(precision)?;
        bridge::keep_freed_memory();
        let sha256 = match precision {
            Precision::Int8 => config.weights.sha256()?,
            _ => String::new(),
        };
        let parameters = store.load(&config.weights, &resnet50::parameter_shapes(), observer)?;
        let batch = config.batch.unwrap_or(device.batch(precision)).max(1);
        // A batch costs the same however full it is, and in int8 its size changes no feature.
        let most = n_images.unwrap_or(usize::MAX);
        let batch = match (precision, config.batch) {
            (Precision::Int8, None) => batch.min(most.div_ceil(n_threads.max(1))).max(1),
            _ => batch,
        };
        let scales = match precision {
            Precision::Int8 => {
                let measure = || {
                    let scales = calibration::scales(&parameters)?;
                    // Not of other weights than they are kept for.
                    check_weights(config, &sha256)?;
                    Ok(scales)
                };
                Some(store.scales(&sha256, measure)?)
            }
            _ => None,
        };
        let kernels = Kernels::best(device);
        let n_views = config.views.of_size(size).count().max(1);
        let build = |batch| {
            let target = Target {
                kernels,
                device,
                precision,
                size,
                batch,
            };
            let workers = match device {
                Device::Cpu => {
                    let lanes = Lanes::new(n_threads, most, n_views, batch, precision);
                    // Weights are packed for the number of threads that will use them.
                    tch::set_num_threads(lanes.threads_each() as i32);
                    Workers::Cpu(lanes)
                }
                Device::Cuda(_) | Device::Mps => Workers::Gpu(Gpu::new(n_threads, most, batch)?),
            };
            Ok::<_, Error>((Network::new(&parameters, target, scales.as_ref())?, workers))
        };
        let is_bulk = device == Device::Cpu
            && precision != Precision::Int8
            && config.batch.is_none()
            && n_images.is_some_and(|n| n >= BULK.max(8 * BULK_BATCH * n_threads));
        let (network, workers) = if is_bulk {
            in_bulk(size, batch, build)?
        } else {
            build(batch)?
        };
        tracing::debug!(
            "network on {device} in {precision} with {} kernels; {workers}",
            kernels.name()
        );
        Ok(Extractor {
            network,
            workers,
            pooling,
            decode,
            limits,
        })
    }

    /// Embeds images. `done` gets the place of each image in `images` and what became of it, in no
    /// particular order.
    ///
    /// Images are decoded and embedded batch by batch, so that memory does not grow with the number
    /// of images.
    ///
    /// # Errors
    /// [`Error::Changed`] or [`Error::OtherBytes`] if bytes do not have the digest that they
    /// should, [`Error::File`] if a file whose digest is known cannot be read, [`Error::Torch`] if
    /// the network fails, [`Error::Interrupted`], and whatever `done` returns.
    pub fn embed(
        &self,
        images: &[ImageInput],
        observer: &dyn Observer,
        mut done: impl FnMut(usize, Embedded) -> Result<()>,
    ) -> Result<()> {
        let (decoding, limits, size) = (self.decode, self.limits, self.network.size());
        let read =
            |place: usize, preprocess: &mut Preprocess| read(&images[place], decoding, &limits, size, preprocess);
        let is_wanted = |pooling: &Pooling| {
            let mut kinds = images.iter().flat_map(|image| &image.kinds);
            kinds.any(|kind| kind.pooling == *pooling)
        };
        let poolings: Vec<Pooling> = Pooling::ALL.into_iter().filter(is_wanted).collect();
        let done = |place: usize, seen: Seen, rows: Vec<Vec<f32>>| {
            let embedded = match seen {
                Seen::Readable { digest, hash } => Embedded::Features {
                    digest,
                    rows: wanted(&images[place].kinds, &poolings, rows),
                    hash,
                },
                Seen::Unreadable { digest, reason } => Embedded::Unreadable { digest, reason },
            };
            done(place, embedded)
        };
        self.run(images.len(), read, &poolings, observer, done)
    }

    /// Takes `n` images through the network: see [`Lanes::run`].
    fn run<T: Send>(
        &self,
        n: usize,
        read: impl Fn(usize, &mut Preprocess) -> Result<Prepared<T>> + Sync,
        poolings: &[Pooling],
        observer: &dyn Observer,
        done: impl FnMut(usize, T, Vec<Vec<f32>>) -> Result<()>,
    ) -> Result<()> {
        match &self.workers {
            Workers::Cpu(lanes) => lanes.run(n, read, &self.network, poolings, observer, done),
            Workers::Gpu(gpu) => gpu.run(n, read, self.network.on_gpu(poolings), observer, done),
        }
    }

    /// Embeds images that are decoded already: RGB `u8 [n, side, side, 3]`; the result is `f32 [n,
    /// 2048]` in C order.
    ///
    /// # Errors
    /// [`Error::Torch`] if the network fails.
    pub fn embed_pixels(&self, images: &[u8]) -> Result<Vec<f32>> {
        let n_bytes = self.network.size().bytes();
        let n_images = images.len() / n_bytes;
        let mut features = vec![0.0; n_images * WIDTH];
        let read = |place: usize, _: &mut Preprocess| {
            let views = images[place * n_bytes..][..n_bytes].to_vec();
            Ok(Prepared { views, about: () })
        };
        let done = |place: usize, (), rows: Vec<Vec<f32>>| {
            features[place * WIDTH..][..WIDTH].copy_from_slice(&rows[0]);
            Ok(())
        };
        self.run(n_images, read, &[self.pooling], &(), done)?;
        Ok(features)
    }
}

/// Does something with an extractor in a program that uses libtorch itself: afterwards, new threads of the program have as
/// many threads for an operator as before.
pub fn keep_torch_threads<T>(work: impl FnOnce() -> T) -> T {
    let before = tch::get_num_threads();
    let result = work();
    tch::set_num_threads(before);
    result
}

/// From how many images on it pays to take several at once, if each thread gets some batches.
const BULK: usize = 256;

/// How many images are taken at once then.
const BULK_BATCH: usize = 4;

/// A network that takes several images at once on the CPU, if it gives the features that `build(batch)` gives, bit for bit;
/// else that one.
///
/// Batches of 4 read each weight once for four images. The key still says batch 1, because the features are the same:
/// oneDNN adds up the products of an output in the same order however many outputs it computes side by side. It does not
/// promise that, so it is tried.
fn in_bulk(
    size: InputSize,
    batch: usize,
    build: impl Fn(usize) -> Result<(Network, Workers)>,
) -> Result<(Network, Workers)> {
    let pixels = calibration::pixels(size, BULK_BATCH);
    let features = |network: &Network, batch: usize| {
        let batches = pixels.chunks_exact(batch * size.bytes());
        let features: Result<Vec<_>> = batches.map(|batch| network.forward(batch, &[Pooling::Mean])).collect();
        Ok::<_, Error>(features?.concat())
    };
    // One network after the other is in memory.
    let expected = features(&build(batch)?.0, batch)?;
    let (network, workers) = build(BULK_BATCH)?;
    if features(&network, BULK_BATCH)? == expected {
        return Ok((network, workers));
    }
    tracing::debug!("batches of {BULK_BATCH} give other features than batches of {batch} here");
    build(batch)
}

/// The views that features of these kinds need, each once, in the order in which they first occur.
fn views_of(kinds: &[FeatureKind]) -> Vec<View> {
    let mut views = Vec::new();
    for kind in kinds {
        if !views.contains(&kind.view) {
            views.push(kind.view);
        }
    }
    views
}

/// Of the features of each view by each pooling those of the kinds that are wanted.
fn wanted(kinds: &[FeatureKind], poolings: &[Pooling], rows: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    if rows.len() == kinds.len() && poolings.len() == 1 {
        return rows;
    }
    let views = views_of(kinds);
    let row = |kind: &FeatureKind| {
        let view = views.iter().position(|view| *view == kind.view);
        let pooling = poolings.iter().position(|pooling| *pooling == kind.pooling);
        let place = view.zip(pooling).map(|(view, pooling)| view * poolings.len() + pooling);
        rows[place.expect("all that is wanted was made")].clone()
    };
    kinds.iter().map(row).collect()
}

/// What is known of an image before it goes through the network.
#[derive(Debug, PartialEq)]
enum Seen {
    Readable { digest: Digest, hash: PerceptualHash },
    Unreadable { digest: Option<Digest>, reason: String },
}

fn read(
    image: &ImageInput,
    decoding: Decoding,
    limits: &Limits,
    size: InputSize,
    preprocess: &mut Preprocess,
) -> Result<Prepared<Seen>> {
    let ImageInput {
        source,
        digest: expected,
        kinds,
    } = image;
    let unreadable = |digest, reason| {
        Ok(Prepared {
            views: Vec::new(),
            about: Seen::Unreadable { digest, reason },
        })
    };
    let read;
    let bytes: &[u8] = match source {
        ImageSource::Bytes(bytes) => bytes,
        ImageSource::File(path) => {
            // Asked before the file is read: a film under the name of a photograph may be larger than the memory.
            let size = path.metadata().map_or(0, |found| found.len());
            if let Err(too_large) = limits.check_file(size) {
                // It may have come after the scan, in place of the image that was scanned.
                if let Some(expected) = *expected
                    && Digest::of_file(path).map_err(Error::io(path))? != expected
                {
                    return Err(Error::Changed { path: path.clone() });
                }
                return unreadable(*expected, too_large.to_string());
            }
            match std::fs::read(path) {
                Ok(bytes) => {
                    read = bytes;
                    &read
                }
                // A file that was scanned and cannot be read now is a fault of the moment, not a
                // property of the image.
                Err(error) if expected.is_some() => return Err(Error::io(path)(error)),
                Err(error) => return unreadable(None, error.to_string()),
            }
        }
    };
    let digest = Digest::of(bytes);
    if let Some(expected) = *expected
        && expected != digest
    {
        return Err(match source {
            ImageSource::File(path) => Error::Changed { path: path.clone() },
            ImageSource::Bytes(_) => Error::OtherBytes {
                expected,
                found: digest,
            },
        });
    }
    let image = match decode_within(bytes, decoding, limits) {
        Ok(image) => image,
        Err(error) => return unreadable(Some(digest), error.to_string()),
    };
    let views = views_of(kinds);
    let mut pixels = vec![0; views.len() * size.bytes()];
    for (&view, pixels) in views.iter().zip(pixels.chunks_exact_mut(size.bytes())) {
        preprocess.run(&image, view.framing, pixels);
    }
    let hash = PerceptualHash::of(&image);
    Ok(Prepared {
        views: pixels,
        about: Seen::Readable { digest, hash },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::parameters::Parameters;

    /// Kernels that add up otherwise stand for a library that adds up otherwise in larger batches.
    #[test]
    fn images_are_taken_at_once_only_where_that_changes_no_bit() {
        let parameters = Parameters::untrained(&resnet50::parameter_shapes());
        let size = InputSize::new(64).unwrap();
        let build = |in_bulk: Kernels| {
            let parameters = &parameters;
            move |batch: usize| {
                let target = Target {
                    kernels: if batch == 1 { Kernels::OneDnn } else { in_bulk },
                    device: Device::Cpu,
                    precision: Precision::Fp32,
                    size,
                    batch,
                };
                Ok((
                    Network::new(parameters, target, None)?,
                    Workers::Cpu(Lanes::new(1, 1000, 1, batch, Precision::Fp32)),
                ))
            }
        };
        for (kernels, batch) in [(Kernels::OneDnn, 4), (Kernels::Plain, 1)] {
            let (_, workers) = in_bulk(size, 1, build(kernels)).unwrap();
            let found = workers.to_string();
            assert!(
                found.ends_with(&format!("images a batch: {batch}")),
                "{kernels:?}: {found}"
            );
        }
    }
}
