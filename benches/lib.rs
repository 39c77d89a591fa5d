//! Inputs of the benchmarks, the same at every run.

use std::ops::Range;

use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, Rgb, RgbImage};
use mozjpeg::{ColorSpace, Compress};
use ndarray::Array2;

/// How a JPEG stores its colours.
#[derive(Clone, Copy, Debug)]
pub enum Sampling {
    /// For each pixel, 4:4:4.
    Full,
    /// For each two by two pixels, 4:2:0, as cameras do.
    Half,
    /// None.
    Grey,
}

/// A baseline JPEG like [`jpeg`], with its colours stored in this way.
pub fn sampled_jpeg(width: u32, height: u32, sampling: Sampling) -> Vec<u8> {
    let image = photograph(width, height, 0);
    let (space, pixels) = match sampling {
        Sampling::Grey => (
            ColorSpace::JCS_GRAYSCALE,
            DynamicImage::from(image).into_luma8().into_raw(),
        ),
        Sampling::Full | Sampling::Half => (ColorSpace::JCS_RGB, image.into_raw()),
    };
    let mut encoder = Compress::new(space);
    encoder.set_fastest_defaults();
    encoder.set_size(width as usize, height as usize);
    encoder.set_quality(90.0);
    match sampling {
        Sampling::Full => encoder.set_chroma_sampling_pixel_sizes((1, 1), (1, 1)),
        Sampling::Half => encoder.set_chroma_sampling_pixel_sizes((2, 2), (2, 2)),
        Sampling::Grey => {}
    }
    let mut encoder = encoder
        .start_compress(Vec::new())
        .expect("memory takes what is written");
    encoder.write_scanlines(&pixels).expect("all lines are there");
    encoder.finish().expect("memory takes what is written")
}

/// A JPEG with the fine and coarse structure of a photograph: gradients, edges and grain.
pub fn jpeg(width: u32, height: u32, seed: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 90)
        .encode_image(&photograph(width, height, seed))
        .expect("memory takes what is written");
    bytes
}

fn photograph(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let grain = hash(x.wrapping_mul(7919) ^ y.wrapping_mul(104_729) ^ seed) % 24;
        let edge = if (x / 37 + y / 29) % 5 == 0 { 60 } else { 0 };
        let shade = |part: u32| (x * part / width * 3 + y * 90 / height + edge + grain).min(255) as u8;
        Rgb([shade(40), shade(25), shade(55)])
    })
}

/// Features `f32 [n, 2048]` of `classes` classes, correlated like those of a network, and their labels.
pub fn features(n: usize, classes: usize) -> (Array2<f32>, Vec<usize>) {
    let labels = (0..n).map(|row| row % classes).collect();
    (features_of_rows(0..n, classes), labels)
}

/// Some rows of such features; row `i` is of class `i % classes`.
pub fn features_of_rows(rows: Range<usize>, classes: usize) -> Array2<f32> {
    const FACTORS: usize = 256;
    let noise = |row: usize, column: usize, salt: u32| {
        let bits = hash((row as u32).wrapping_mul(2_654_435_761) ^ (column as u32).wrapping_mul(40_503) ^ salt);
        bits as f32 / u32::MAX as f32 - 0.5
    };
    let loadings = Array2::from_shape_fn((FACTORS, 2048), |(factor, column)| {
        noise(factor, column, 1) / (1.0 + factor as f32).sqrt()
    });
    let scores = Array2::from_shape_fn((rows.len(), FACTORS), |(place, factor)| {
        let row = rows.start + place;
        noise(row, factor, 2) + if factor % classes == row % classes { 0.7 } else { 0.0 }
    });
    let mut x = scores.dot(&loadings);
    // Behind the last ReLU nothing is negative.
    x.indexed_iter_mut().for_each(|((place, column), value)| {
        *value = (*value + 0.1 * noise(rows.start + place, column, 3)).max(0.0);
    });
    x
}

/// The finalizer of MurmurHash3: every bit of the input changes every bit of the result half of the time.
fn hash(mut bits: u32) -> u32 {
    bits = (bits ^ (bits >> 16)).wrapping_mul(0x85EB_CA6B);
    bits = (bits ^ (bits >> 13)).wrapping_mul(0xC2B2_AE35);
    bits ^ (bits >> 16)
}
