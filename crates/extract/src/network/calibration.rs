//! The scales of activations in int8, measured in fp32 on images that ship with the program.
//!
//! The images are never the user's: the features of an image must not depend on any other image. The images are drawings
//! of many kinds, from the demo data set. The user's own photographs would be a little better. In an earlier measurement,
//! with 64 photographs of music10, the mean cosine to fp32 there was 0.9970 instead of 0.9963.

use super::int8::{Ranges, Scales};
use super::parameters::Parameters;
use super::resnet50::{Kernels, Network, Target, bottlenecks};
use crate::{Decoding, Device, Framing, InputSize, Pooling, Precision, Preprocess, Result, decode};

/// Changes when other scales come out for the same weights: in a key, it stands for them.
pub(crate) const VERSION: u32 = 1;

macro_rules! drawing {
    ($path:literal) => {
        include_bytes!(concat!("../../../../fixtures/instruments/", $path))
    };
}

/// Drawn at random from the demo data set; `fixtures/instruments/manifest.tsv` has their sources and licences.
const IMAGES: [&[u8]; 16] = [
    drawing!("test/bell/fonts-symbola--1f514.jpg"),
    drawing!("test/drum/fontsource-noto-emoji--1fa98.jpg"),
    drawing!("test/drum/iconify-json-twemoji--drum.jpg"),
    drawing!("test/piano/iconify-json-lucide--piano.jpg"),
    drawing!("train/accordion/iconify-json-fluent-emoji-flat--accordion.jpg"),
    drawing!("train/bell/iconify-json-dinkie-icons--bell.jpg"),
    drawing!("train/flute/fontsource-noto-emoji--1fa88.jpg"),
    drawing!("train/flute/iconify-json-game-icons--flute.jpg"),
    drawing!("train/guitar/iconify-json-twemoji--guitar.jpg"),
    drawing!("train/guitar/iconify-json-whh--guitar.jpg"),
    drawing!("train/harp/iconify-json-game-icons--lyre.jpg"),
    drawing!("train/piano/iconify-json-mdi--piano.jpg"),
    drawing!("train/piano/openclipart-png--piano_geraint_luff_01.jpg"),
    drawing!("train/piano/openclipart-png--piano_keys_jonathan_diet_01.jpg"),
    drawing!("train/trumpet/iconify-json-game-icons--trumpet.jpg"),
    drawing!("train/violin/iconify-json-fluent-emoji-high-contrast--violin.jpg"),
];

/// A few images that are at hand everywhere: encoded drawings of many kinds.
pub fn sample_images() -> &'static [&'static [u8]] {
    &IMAGES
}

/// The first `n` of these images as the network sees them, `u8 [n, side, side, 3]`.
pub(crate) fn pixels(size: InputSize, n: usize) -> Vec<u8> {
    let mut preprocess = Preprocess::new(size);
    let mut pixels = vec![0; n * size.bytes()];
    for (image, pixels) in IMAGES.iter().zip(pixels.chunks_exact_mut(size.bytes())) {
        let image = decode(image, Decoding::Exact).expect("a drawing that the program brings along is an image");
        preprocess.run(&image, Framing::Squash, pixels);
    }
    pixels
}

/// Measures the scales for these weights: a second of work. They serve images of any size.
pub(crate) fn scales(parameters: &Parameters) -> Result<Scales> {
    let size = InputSize::default();
    let target = Target {
        kernels: Kernels::best(Device::Cpu),
        device: Device::Cpu,
        precision: Precision::Fp32,
        size,
        batch: 1,
    };
    let network = Network::new(parameters, target, None)?;
    let mut ranges = Ranges::default();
    for image in pixels(size, IMAGES.len()).chunks_exact(size.bytes()) {
        let mut place = 0;
        network.forward_seen(image, &[Pooling::Mean], &mut |activation| {
            ranges.see(place, IMAGES.len(), activation)?;
            place += 1;
            Ok(())
        })?;
    }
    Ok(ranges.scales(&Scales::signs(&bottlenecks(size))))
}
