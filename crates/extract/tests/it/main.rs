//! The crate from outside: against Pillow and torchvision, on real folders, with faults.

mod golden;
mod music10;
mod scan;
mod stage;
mod weights;

use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};

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
