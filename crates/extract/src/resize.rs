//! Antialiased bilinear resizing with Pillow's numbers, bit for bit.
//!
//! Other resizers differ from Pillow by a grey level here and there. That is enough to move ResNet-50's features: with
//! one level in 8 % of the values the cosine to torchvision's features fell to 0.9987. So the arithmetic here is that of
//! Pillow's `Resample.c`: two passes, coefficients with 22 bits, rounding to 8 bits after each pass.

use std::ops::Range;

use image::RgbImage;

/// Bits behind the binary point of a coefficient: what 32 bits leave for 8-bit values and sign.
const PRECISION: u32 = 32 - 8 - 2;

/// What sums begin with, so that cutting off rounds to the nearest.
const HALF: i32 = 1 << (PRECISION - 1);

/// How a row or column of pixels becomes another: a weighted sum for each pixel of the result.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    /// By how many pixels the whole result is shorter than its source; negative if it is longer.
    shrinks_by: isize,
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
        let shrinks_by = from as isize - to as isize;
        let mut axis = Axis {
            shrinks_by,
            taps: Vec::with_capacity(window.len()),
            coefficients: Vec::new(),
        };
        for place in window {
            let center = (place as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let last = ((center + support + 0.5) as usize).min(from);
            // Times the reciprocal, not divided: as Pillow does it, down to the last bit.
            let weight = |pixel: usize| (1.0 - ((pixel as f64 - center + 0.5) * (1.0 / support)).abs()).max(0.0);
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
        self.taps
            .iter()
            .map(|(first, range)| (*first, &self.coefficients[range.clone()]))
    }
}

/// Resizes an image; the result is RGB, `u8 [vertical, horizontal, 3]`. `scratch` is a buffer to keep between calls.
pub(crate) fn resize(image: &RgbImage, horizontal: &Axis, vertical: &Axis, scratch: &mut Vec<u8>) -> Vec<u8> {
    let (pixels, width) = (image.as_raw(), image.width() as usize);
    let mut resized = Vec::with_capacity(3 * horizontal.len() * vertical.len());
    // The order shows in the rounding between the passes. This is Pillow 13's, which goes by pixels, not by ratios
    // (python-pillow/Pillow#9549); earlier ones always began with the rows.
    if vertical.shrinks_by > 2 * horizontal.shrinks_by.max(0) {
        let columns = horizontal.range();
        resize_columns(pixels, width, columns.clone(), 0, vertical, scratch);
        resize_rows(scratch, columns.len(), columns.start, horizontal, &mut resized);
    } else {
        let rows = vertical.range();
        resize_rows(
            &pixels[3 * width * rows.start..3 * width * rows.end],
            width,
            0,
            horizontal,
            scratch,
        );
        resize_columns(
            scratch,
            horizontal.len(),
            0..horizontal.len(),
            rows.start,
            vertical,
            &mut resized,
        );
    }
    resized
}

/// Resizes every row of `pixels`, which are `width` long and begin at column `left` of the image.
fn resize_rows(pixels: &[u8], width: usize, left: usize, axis: &Axis, resized: &mut Vec<u8>) {
    resized.clear();
    for row in pixels.chunks_exact(3 * width) {
        for (first, coefficients) in axis.sums() {
            let mut sums = [HALF; 3];
            for (pixel, &coefficient) in row[3 * (first - left)..].chunks_exact(3).zip(coefficients) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * coefficient;
                }
            }
            resized.extend(sums.map(round));
        }
    }
}

/// Resizes the given columns of `pixels`, whose rows are `width` long and begin at row `top` of the image.
fn resize_columns(pixels: &[u8], width: usize, columns: Range<usize>, top: usize, axis: &Axis, resized: &mut Vec<u8>) {
    resized.clear();
    let mut sums = vec![HALF; 3 * columns.len()];
    for (first, coefficients) in axis.sums() {
        sums.fill(HALF);
        for (row, &coefficient) in pixels.chunks_exact(3 * width).skip(first - top).zip(coefficients) {
            for (sum, &value) in sums.iter_mut().zip(&row[3 * columns.start..3 * columns.end]) {
                *sum += i32::from(value) * coefficient;
            }
        }
        resized.extend(sums.iter().map(|&sum| round(sum)));
    }
}

/// A sum as an 8-bit value. It cannot leave their range by more than rounding, since its weights sum to 1.
fn round(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}
