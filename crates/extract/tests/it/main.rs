//! The crate from outside: against Pillow and torchvision, on real folders, with faults.

mod formats;
mod golden;
mod inputs;
mod lanes;
mod music10;
#[cfg(target_arch = "x86_64")]
mod precision;
mod scan;
mod stage;
mod weights;

use std::path::{Path, PathBuf};

use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};
use luthier_extract::{
    Decoding, Device, Embedded, Extractor, ExtractorConfig, FeatureKind, Framing, ImageInput, ImageSource, InputSize,
    Limits, Pooling, Precision, WeightsSource, WeightsStore,
};

/// A small JPEG; another one for every seed.
fn photo(seed: u8) -> Vec<u8> {
    let image = RgbImage::from_fn(48, 32, |x, y| {
        Rgb([(5 * x) as u8 ^ seed, (7 * y) as u8, seed.wrapping_mul(37)])
    });
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 90)
        .encode_image(&image)
        .unwrap();
    bytes
}

/// Untrained weights on the CPU, one view, in fp32.
fn config() -> ExtractorConfig {
    ExtractorConfig {
        views: Framing::Squash.into(),
        pooling: Pooling::default(),
        decode: Decoding::Exact,
        limits: Limits::default(),
        weights: WeightsSource::Untrained,
        precision: Precision::Fp32,
        device: Device::Cpu,
        batch: None,
    }
}

/// Loads an extractor of views of the usual size, whose threads are divided for `n_images` images.
fn extractor(config: &ExtractorConfig, n_threads: usize, n_images: usize) -> Extractor {
    // Where the scales of int8 stay from one run of the tests to the next.
    let store = WeightsStore::new(Path::new(env!("CARGO_TARGET_TMPDIR")).join("weights"), None);
    Extractor::load(config, InputSize::default(), &store, n_threads, Some(n_images), &()).unwrap()
}

/// The features of images in one view by mean pooling, `f32 [n, 2048]`.
fn embed(extractor: &Extractor, framing: Framing, paths: &[impl AsRef<Path>]) -> Vec<Vec<f32>> {
    let pooling = Pooling::default();
    let view = framing.into();
    embed_kind(extractor, FeatureKind { view, pooling }, paths)
}

/// The features of images of one kind, `f32 [n, 2048]`.
fn embed_kind(extractor: &Extractor, kind: FeatureKind, paths: &[impl AsRef<Path>]) -> Vec<Vec<f32>> {
    let image = |path: &PathBuf| ImageInput {
        source: ImageSource::File(path.clone()),
        digest: None,
        kinds: vec![kind],
    };
    let paths: Vec<PathBuf> = paths.iter().map(|path| path.as_ref().to_owned()).collect();
    let images: Vec<ImageInput> = paths.iter().map(image).collect();
    let mut features = vec![Vec::new(); images.len()];
    extractor
        .embed(&images, &(), |place, embedded| {
            let Embedded::Features { mut rows, .. } = embedded else {
                panic!("{}: {embedded:?}", paths[place].display())
            };
            features[place] = rows.remove(0);
            Ok(())
        })
        .unwrap();
    features
}
