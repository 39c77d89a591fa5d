use std::path::PathBuf;
use std::sync::mpsc::sync_channel;

use luthier_artifact::{Digest, ExtractorInfo, Key};
use rayon::ThreadPoolBuilder;
use rayon::prelude::*;

use crate::network::{Kernels, Network, Target, WIDTH};
use crate::{Device, Error, Observer, Precision, Preprocess, Resize, Result, WeightsSource, WeightsStore, decode};

/// Everything that the features of an image depend on, beside its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtractorConfig {
    /// How an image becomes a square.
    pub resize: Resize,
    /// The weights of the network.
    pub weights: WeightsSource,
    /// The number format of the network.
    pub precision: Precision,
    /// Where the network runs.
    pub device: Device,
    /// How many images go through the network at once.
    pub batch: usize,
}

impl ExtractorConfig {
    /// Changes when the same configuration gives other features: decoding, preprocessing or the network changed.
    pub const VERSION: u32 = 1;

    /// The libtorch that this program was built for.
    pub const LIBTORCH: &str = "2.11.0";

    /// What features in the cache are known by.
    ///
    /// The batch is part of it: batches of another size may be computed in another order. The number of threads is not:
    /// with oneDNN's kernels features are the same with any. A CUDA device's number is not either.
    ///
    /// # Errors
    /// [`Error::Io`] if the weights file cannot be read.
    pub fn key(&self) -> Result<Key> {
        let ExtractorConfig {
            resize,
            weights,
            precision,
            device,
            batch,
        } = self;
        Ok(Key::stage("extractor", Self::VERSION)
            .field("resize", resize)
            .field("weights", weights.sha256()?)
            .field("precision", precision)
            .field("device", device.kind())
            .field("kernels", Kernels::best(*device).name())
            .field("batch", batch)
            .field("libtorch", Self::LIBTORCH)
            .finish())
    }

    /// What a model records of how its features were made.
    ///
    /// # Errors
    /// [`Error::Io`] if the weights file cannot be read.
    pub fn info(&self) -> Result<ExtractorInfo> {
        let sha256 = self.weights.sha256()?;
        Ok(ExtractorInfo {
            resize: self.resize.to_string(),
            weights: self.weights_name(&sha256),
            weights_sha256: sha256,
            precision: self.precision.to_string(),
        })
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
}

/// What became of an image.
#[derive(Clone, Debug, PartialEq)]
pub enum Embedded {
    /// Its 2048 features.
    Features(Vec<f32>),
    /// Why it cannot be read.
    Unreadable(String),
}

/// The network with its weights, ready to embed images.
#[derive(Debug)]
pub struct Extractor {
    network: Network,
    resize: Resize,
    batch: usize,
    n_threads: usize,
}

impl Extractor {
    /// Loads the weights, downloading them first if need be. `n_threads` decode, and as many run the network.
    ///
    /// # Errors
    /// [`Error::Device`] if the device cannot do what is asked; those of the weights, naming their file.
    pub fn load(
        config: &ExtractorConfig,
        store: &WeightsStore,
        n_threads: usize,
        observer: &dyn Observer,
    ) -> Result<Self> {
        config.device.check(config.precision)?;
        let n_threads = n_threads.max(1);
        tch::set_num_threads(n_threads as i32);
        let parameters = config.weights.load(store, observer)?;
        let (device, precision, batch) = (config.device, config.precision, config.batch.max(1));
        let target = Target {
            kernels: Kernels::best(device),
            device,
            precision,
            batch,
        };
        tracing::debug!(
            "network on {device} in {precision}, {} kernels, batches of {batch}, {n_threads} threads",
            target.kernels.name()
        );
        let network = Network::new(&parameters, target)?;
        Ok(Extractor {
            network,
            resize: config.resize,
            batch,
            n_threads,
        })
    }

    /// Embeds image files. `done` gets each file's place in `files` and what became of it, in no particular order.
    ///
    /// Decoding runs beside the network, at most a few batches ahead, so that memory stays bounded. Every batch has
    /// the same shape: the features of an image do not depend on its neighbours.
    ///
    /// # Errors
    /// [`Error::Changed`] if a file does not hold the bytes it should, [`Error::Torch`] if the network fails,
    /// [`Error::Interrupted`], and whatever `done` returns.
    pub fn embed(
        &self,
        files: &[ImageFile],
        observer: &dyn Observer,
        mut done: impl FnMut(usize, Embedded) -> Result<()>,
    ) -> Result<()> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(self.n_threads)
            .thread_name(|n| format!("decode-{n}"))
            .build()
            .map_err(|error| Error::Io {
                path: "threads".into(),
                source: std::io::Error::other(error),
            })?;
        let (send, receive) = sync_channel(2 * self.batch);
        let resize = self.resize;
        let decode_all = move || {
            files.par_iter().enumerate().try_for_each_init(
                || (send.clone(), Preprocess::new(resize)),
                |(send, preprocess), (place, file)| {
                    // A failed send means that the receiver stopped for a reason of its own.
                    if observer.is_interrupted() {
                        None
                    } else {
                        send.send((place, read(file, preprocess))).ok()
                    }
                },
            )
        };
        std::thread::scope(|scope| {
            scope.spawn(move || pool.install(decode_all));
            let mut pixels = vec![0; self.batch * Preprocess::BYTES];
            let mut places = Vec::with_capacity(self.batch);
            for (place, image) in receive {
                match image? {
                    Image::Unreadable(reason) => done(place, Embedded::Unreadable(reason))?,
                    Image::Pixels(image) => {
                        pixels[places.len() * Preprocess::BYTES..][..Preprocess::BYTES].copy_from_slice(&image);
                        places.push(place);
                    }
                }
                if places.len() == self.batch {
                    self.run_batch(&pixels, &mut places, &mut done)?;
                }
            }
            if observer.is_interrupted() {
                return Err(Error::Interrupted);
            }
            self.run_batch(&pixels, &mut places, &mut done)
        })
    }

    fn run_batch(
        &self,
        pixels: &[u8],
        places: &mut Vec<usize>,
        done: &mut impl FnMut(usize, Embedded) -> Result<()>,
    ) -> Result<()> {
        if places.is_empty() {
            return Ok(());
        }
        let features = self.network.forward(pixels)?;
        places
            .drain(..)
            .zip(features.chunks_exact(WIDTH))
            .try_for_each(|(place, row)| done(place, Embedded::Features(row.to_vec())))
    }
}

enum Image {
    Pixels(Vec<u8>),
    Unreadable(String),
}

fn read(file: &ImageFile, preprocess: &mut Preprocess) -> Result<Image> {
    let bytes = match std::fs::read(&file.path) {
        Ok(bytes) => bytes,
        // What was scanned and cannot be read now is a fault of the moment, not a property of the image.
        Err(error) if file.digest.is_some() => return Err(Error::io(&file.path)(error)),
        // What was scanned and cannot be read now is a fault of the moment, not a property of the image.
        Err(error) if file.digest.is_some() => return Err(Error::io(&file.path)(error)),
        Err(error) => return Ok(Image::Unreadable(error.to_string())),
    };
    if file.digest.is_some_and(|digest| digest != Digest::of(&bytes)) {
        return Err(Error::Changed {
            path: file.path.clone(),
        });
    }
    Ok(match decode(&bytes) {
        Ok(image) => Image::Pixels(preprocess.run(&image)),
        Err(error) => Image::Unreadable(error.to_string()),
    })
}
