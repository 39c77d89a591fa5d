use std::path::PathBuf;

use luthier_artifact::{Digest, ExtractorInfo, Key};

use crate::network::bridge;
use crate::network::lanes::Lanes;
use crate::network::resnet50::{Kernels, Network, Target, WIDTH};
use crate::{
    Decoding, Device, Error, Observer, PerceptualHash, Precision, Preprocess, Result, View, Views, WeightsSource,
    WeightsStore, decode,
};

/// Everything that the features of an image depend on, beside its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtractorConfig {
    /// The views in which the network sees an image.
    pub views: Views,
    /// How large JPEGs are decoded.
    pub decode: Decoding,
    /// The weights of the network.
    pub weights: WeightsSource,
    /// The number format of the network.
    pub precision: Precision,
    /// Where the network runs.
    pub device: Device,
    /// How many images go through the network at once; `None` for one on the CPU, and as many as
    /// fit on a GPU.
    pub batch: Option<usize>,
}

impl ExtractorConfig {
    /// Changes when the same configuration gives other features: decoding, preprocessing or the network changed.
    pub const VERSION: u32 = 2;

    /// The libtorch that this program was built for.
    pub const LIBTORCH: &str = "2.11.0";

    /// What the features of each view are known by in the cache, in the order of the views.
    ///
    /// How views are combined, and which others there are, is not part of it. The batch is: batches of another size may be
    /// computed in another order. The number of threads is not, nor is a CUDA device's number.
    ///
    /// # Errors
    /// [`Error::Io`] if the weights file cannot be read.
    pub fn keys(&self) -> Result<Vec<Key>> {
        let ExtractorConfig {
            views,
            decode,
            weights,
            precision,
            device,
            batch,
        } = self;
        let weights = weights.sha256()?;
        let batch = batch.or(device.fixed_batch());
        let key = |view: &View| {
            Key::stage("extractor", Self::VERSION)
                .field("view", view)
                .field("decode", decode)
                .field("weights", &weights)
                .field("precision", precision)
                .field("device", device.kind())
                .field("kernels", Kernels::best(*device).name())
                .field("batch", batch.map_or("auto".to_owned(), |batch| batch.to_string()))
                .field("libtorch", Self::LIBTORCH)
                .finish()
        };
        Ok(views.as_slice().iter().map(key).collect())
    }

    /// What a model records of how its features were made, by weights with this SHA-256.
    pub(crate) fn info(&self, sha256: &str) -> ExtractorInfo {
        ExtractorInfo {
            views: self.views.as_slice().iter().map(View::to_string).collect(),
            combine: self.views.combination().to_string(),
            decode: self.decode.to_string(),
            weights: self.weights_name(sha256),
            weights_sha256: sha256.to_owned(),
            precision: self.precision.to_string(),
        }
    }

    /// The name of the weights, whose digest is this: the known one if there is one, wherever the file lies.
    pub(crate) fn weights_name(&self, sha256: &str) -> String {
        WeightsSource::known(sha256)
            .unwrap_or_else(|| self.weights.clone())
            .name()
    }
}

/// An image file to embed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFile {
    /// Where it is.
    pub path: PathBuf,
    /// What its bytes must be, if they are known.
    pub digest: Option<Digest>,
    /// The views of which features are wanted; none if the perceptual hash is enough.
    pub views: Vec<View>,
}

/// What became of an image.
#[derive(Clone, Debug, PartialEq)]
pub enum Embedded {
    /// How the network and the eye see it.
    Features {
        /// The 2048 features of each view that was wanted, in that order.
        rows: Vec<Vec<f32>>,
        /// How it looks.
        hash: PerceptualHash,
    },
    /// Why it cannot be read.
    Unreadable(String),
}

/// The network with its weights, ready to embed images.
#[derive(Debug)]
pub struct Extractor {
    network: Network,
    lanes: Lanes,
    decode: Decoding,
}

impl Extractor {
    /// Loads the weights, downloading them first if need be, and divides `n_threads` for work on `n_images` images.
    ///
    /// # Errors
    /// [`Error::Device`] if the device cannot do what is asked; those of the weights, naming their file.
    pub fn load(
        config: &ExtractorConfig,
        store: &WeightsStore,
        n_threads: usize,
        n_images: usize,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let &ExtractorConfig {
            device,
            precision,
            decode,
            ..
        } = config;
        device.check(precision)?;
        bridge::keep_freed_memory();
        let parameters = config.weights.load(store, observer)?;
        let batch = match config.batch {
            Some(batch) => batch.max(1),
            None => device.batch(precision)?,
        };
        let lanes = Lanes::new(device, n_threads, n_images, config.views.as_slice().len(), batch);
        let kernels = Kernels::best(device);
        let why = match (config.batch, device) {
            (Some(_), _) => "as asked for",
            (None, Device::Cpu) => "which keeps its activations in the cache",
            (None, _) => "which its memory holds",
        };
        tracing::debug!(
            "network on {device} in {precision} with {} kernels; {lanes}, {why}",
            kernels.name()
        );
        // Weights are packed for the number of threads that will use them.
        tch::set_num_threads(lanes.threads_each() as i32);
        let target = Target {
            kernels,
            device,
            precision,
            batch,
        };
        Ok(Extractor {
            network: Network::new(&parameters, target)?,
            lanes,
            decode,
        })
    }

    /// Embeds image files. `done` gets each file's place in `files` and what became of it, in no particular order.
    ///
    /// Every lane decodes and embeds a batch at a time, so that memory does not grow with the number of files.
    ///
    /// # Errors
    /// [`Error::Changed`] if a file does not hold the bytes it should, [`Error::Torch`] if the network fails,
    /// [`Error::Interrupted`], and whatever `done` returns.
    pub fn embed(
        &self,
        files: &[ImageFile],
        observer: &dyn Observer,
        done: impl FnMut(usize, Embedded) -> Result<()>,
    ) -> Result<()> {
        let decoding = self.decode;
        let read = |place: usize, preprocess: &mut Preprocess| read(&files[place], decoding, preprocess);
        self.lanes.run(files.len(), read, &self.network, observer, done)
    }

    /// Embeds images that are decoded already: RGB `u8 [n, 224, 224, 3]`; the result is `f32 [n, 2048]` in C order.
    ///
    /// # Errors
    /// [`Error::Torch`] if the network fails.
    pub fn embed_pixels(&self, images: &[u8]) -> Result<Vec<f32>> {
        let n_images = images.len() / Preprocess::BYTES;
        let mut features = vec![0.0; n_images * WIDTH];
        let read = |place: usize, _: &mut Preprocess| {
            let pixels = images[place * Preprocess::BYTES..][..Preprocess::BYTES].to_vec();
            let hash = PerceptualHash(Vec::new());
            Ok(Image::Views { pixels, hash })
        };
        self.lanes.run(n_images, read, &self.network, &(), |place, embedded| {
            if let Embedded::Features { rows, .. } = embedded {
                features[place * WIDTH..][..WIDTH].copy_from_slice(&rows[0]);
            }
            Ok(())
        })?;
        Ok(features)
    }
}

/// An image on its way to the network.
pub(crate) enum Image {
    Views {
        /// RGB of its views, `u8 [views, 224, 224, 3]`.
        pixels: Vec<u8>,
        hash: PerceptualHash,
    },
    /// Why it cannot be read.
    Unreadable(String),
}

fn read(file: &ImageFile, decoding: Decoding, preprocess: &mut Preprocess) -> Result<Image> {
    let bytes = match std::fs::read(&file.path) {
        Ok(bytes) => bytes,
        // What was scanned and cannot be read now is a fault of the moment, not a property of the image.
        Err(error) if file.digest.is_some() => return Err(Error::io(&file.path)(error)),
        Err(error) => return Ok(Image::Unreadable(error.to_string())),
    };
    if file.digest.is_some_and(|digest| digest != Digest::of(&bytes)) {
        return Err(Error::Changed {
            path: file.path.clone(),
        });
    }
    let image = match decode(&bytes, decoding) {
        Ok(image) => image,
        Err(error) => return Ok(Image::Unreadable(error.to_string())),
    };
    let mut pixels = vec![0; file.views.len() * Preprocess::BYTES];
    for (&view, pixels) in file.views.iter().zip(pixels.chunks_exact_mut(Preprocess::BYTES)) {
        preprocess.run(&image, view, pixels);
    }
    let hash = PerceptualHash::of(&image);
    Ok(Image::Views { pixels, hash })
}
