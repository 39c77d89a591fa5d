//! Antialiased bilinear resizing with Pillow's numbers, bit for bit.
//!
//! Other resizers differ from Pillow by a grey level here and there. That is enough to move ResNet-50's features: with
//! one level in 8 % of the values the cosine to torchvision's features fell to 0.9987. So the arithmetic here is that of
//! Pillow's `Resample.c`: two passes, coefficients with 22 bits, rounding to 8 bits after each pass.

use std::ops::Range;

use image::RgbImage;

/// Bits behind the binary point of a coefficient: what 32 bits leave for 8-bit values and sign.
const PRECISION: u32 = 32 - 8 - 2;

/// How a row or column of pixels becomes another: a weighted sum for each pixel of the result.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    /// The first source pixel of each sum, and where its coefficients lie.
    taps: Vec<(usize, Range<usize>)>,
    coefficients: Vec<i32>,
}

impl Axis {
    /// Resizes `from` pixels to `to`, of which only those in `window` are wanted.
    pub(crate) fn new(from: usize, to: usize, window: Range<usize>) -> Self {
        let scale = from as f64 / to as f64;
        // When shrinking, the triangle covers all pixels that fall into one; when growing, two neighbours.
        let support = scale.max(1.0);
        let mut axis = Axis { taps: Vec::with_capacity(window.len()), coefficients: Vec::new() };
        for place in window {
            let center = (place as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let last = ((center + support + 0.5) as usize).min(from);
            let weight = |pixel: usize| (1.0 - ((pixel as f64 - center + 0.5) / support).abs()).max(0.0);
            let sum: f64 = (first..last).map(weight).sum();
            let start = axis.coefficients.len();
            // Weights are never negative, so that adding a half and cutting off rounds to the nearest.
            axis.coefficients
                .extend((first..last).map(|pixel| (weight(pixel) / sum * f64::from(1 << PRECISION) + 0.5) as i32));
            axis.taps.push((first, start..axis.coefficients.len()));
        }
        axis
    }

    /// Resizes all of `from` pixels to `to`.
    pub(crate) fn whole(from: usize, to: usize) -> Self {
        Axis::new(from, to, 0..to)
    }

    fn len(&self) -> usize {
        self.taps.len()
    }

    /// The source pixels that any sum needs.
    fn range(&self) -> Range<usize> {
        let ends = self.taps.iter().map(|(first, coefficients)| first + coefficients.len());
        self.taps.first().map_or(0, |(first, _)| *first)..ends.max().unwrap_or(0)
    }

    fn sums(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.taps.iter().map(|(first, range)| (*first, &self.coefficients[range.clone()]))
    }
}

/// Resizes an image; the result is RGB, `u8 [vertical, horizontal, 3]`. `scratch` is a buffer to keep between calls.
pub(crate) fn resize(image: &RgbImage, horizontal: &Axis, vertical: &Axis, scratch: &mut Vec<u8>) -> Vec<u8> {
    let stride = 3 * image.width() as usize;
    let rows = vertical.range();
    let width = 3 * horizontal.len();
    scratch.clear();
    for row in image.as_raw()[rows.start * stride..rows.end * stride].chunks_exact(stride) {
        for (first, coefficients) in horizontal.sums() {
            let pixels = &row[3 * first..3 * (first + coefficients.len())];
            let mut sums = [1 << (PRECISION - 1); 3];
            for (pixel, &coefficient) in pixels.chunks_exact(3).zip(coefficients) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * coefficient;
                }
            }
            scratch.extend(sums.map(round));
        }
    }
    let mut resized = Vec::with_capacity(vertical.len() * width);
    let mut sums = vec![0; width];
    for (first, coefficients) in vertical.sums() {
        sums.fill(1 << (PRECISION - 1));
        let rows = scratch[(first - rows.start) * width..].chunks_exact(width);
        for (row, &coefficient) in rows.zip(coefficients) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * coefficient;
            }
        }
        resized.extend(sums.iter().map(|&sum| round(sum)));
    }
    resized
}

/// A sum as an 8-bit value. It cannot leave their range by more than rounding, since its weights sum to 1.
fn round(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}
