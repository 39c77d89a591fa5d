//! Antialiased bilinear resizing with Pillow's numbers, bit for bit.
//!
//! Other resizers differ from Pillow by a grey level here and there. That is enough to move
//! ResNet-50's features: with a difference of one level in 8 % of the values, the cosine to
//! torchvision's features fell to 0.9987. This file therefore repeats the arithmetic of Pillow's
//! `Resample.c`: two passes, coefficients of 22 bits, and rounding to 8 bits after each pass.
//!
//! All sums are sums of integers, whose order does not matter. The loops are written so that the
//! compiler vectorises them, and pulp compiles them again for the wide registers of newer
//! processors. The bits are the same on every processor.

use std::ops::Range;

use image::RgbImage;
use pulp::{Arch, Simd, WithSimd};

/// Bits after the binary point of a coefficient: 32 bits less an 8-bit value, the sign, and one bit
/// for overflow.
const PRECISION: u32 = 32 - 8 - 2;

/// The value that every sum begins with, so that cutting off the fraction rounds to the nearest.
const HALF: i32 = 1 << (PRECISION - 1);

/// How much room for coefficients is kept from image to image: that of a side of half a million pixels.
const COEFFICIENTS_KEPT: usize = 1 << 20;

/// What the width or the height of an image becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The length of the whole result.
    pub(crate) length: usize,
    /// The part of it that is wanted.
    pub(crate) window: Range<usize>,
}

impl Extent {
    pub(crate) fn whole(length: usize) -> Self {
        Extent {
            length,
            window: 0..length,
        }
    }
}

/// How a row or column of pixels becomes another: a weighted sum for each pixel of the result.
#[derive(Clone, Debug, Default)]
struct Axis {
    /// The length of the source minus that of the whole result, in pixels.
    shrinks_by: isize,
    /// How many source pixels each sum takes. The number is the same for all sums: otherwise the
    /// processor would mispredict where the loop over them ends, which costs more than the sum.
    taps: usize,
    /// The first source pixel of each sum.
    firsts: Vec<usize>,
    /// The coefficients of all sums, one after the other.
    coefficients: Vec<i32>,
}

impl Axis {
    /// Sets the sums for resizing `from` pixels to a side.
    fn set(&mut self, from: usize, to: &Extent) {
        let scale = from as f64 / to.length as f64;
        // When an image shrinks, the triangle covers all pixels that fall into one; when it grows,
        // two neighbours.
        let support = scale.max(1.0);
        let center = |place: usize| (place as f64 + 0.5) * scale;
        let covered = |place: usize| {
            let first = (center(place) - support + 0.5).max(0.0) as usize;
            let last = ((center(place) + support + 0.5) as usize).min(from);
            first..last
        };
        let taps = to.window.clone().map(|place| covered(place).len()).max().unwrap_or(0);
        self.shrinks_by = from as isize - to.length as isize;
        self.taps = taps;
        self.firsts.clear();
        self.coefficients.clear();
        // What a very long strip took is not kept for ever.
        self.coefficients.shrink_to(COEFFICIENTS_KEPT);
        for place in to.window.clone() {
            // Pillow multiplies by the reciprocal instead of dividing, and the last bit shows it.
            let weight = |pixel: usize| (1.0 - ((pixel as f64 - center(place) + 0.5) * (1.0 / support)).abs()).max(0.0);
            let sum: f64 = covered(place).map(weight).sum();
            // Pixels that are not covered have no weight.
            let first = covered(place).start.min(from - taps);
            self.firsts.push(first);
            // Weights are never negative, so that adding a half and cutting off rounds to the
            // nearest.
            self.coefficients.extend(
                (first..first + taps).map(|pixel| (weight(pixel) / sum * f64::from(1 << PRECISION) + 0.5) as i32),
            );
        }
    }

    fn len(&self) -> usize {
        self.firsts.len()
    }

    /// The source pixels that any sum takes.
    fn range(&self) -> Range<usize> {
        match self.firsts[..] {
            [first, .., last] => first..last + self.taps,
            [first] => first..first + self.taps,
            [] => 0..0,
        }
    }

    fn sums(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.firsts
            .iter()
            .copied()
            .zip(self.coefficients.chunks_exact(self.taps))
    }
}

/// Resizes images. Buffers are kept from image to image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resizer {
    horizontal: Axis,
    vertical: Axis,
    /// The image between the passes.
    between: Vec<u8>,
    /// A resized row whose pixels take four bytes each.
    quads: Vec<[u8; 4]>,
}

impl Resizer {
    /// Resizes an image into `resized`, RGB `u8 [height, width, 3]`, with the lengths of the two
    /// windows.
    ///
    /// # Panics
    /// If `resized` has another size, or if the image has no pixels.
    pub(crate) fn run(&mut self, image: &RgbImage, width: &Extent, height: &Extent, resized: &mut [u8]) {
        assert_eq!(
            resized.len(),
            3 * width.window.len() * height.window.len(),
            "the size of the result"
        );
        let (pixels, stride) = (image.as_raw().as_slice(), 3 * image.width() as usize);
        let Resizer {
            horizontal,
            vertical,
            between,
            quads,
        } = self;
        horizontal.set(image.width() as usize, width);
        vertical.set(image.height() as usize, height);
        let arch = Arch::new();
        // The order of the passes shows in the rounding between them. Pillow 13 compares numbers of
        // pixels, not ratios (python-pillow/Pillow#9549). Earlier versions always began with the
        // rows.
        if vertical.shrinks_by > 2 * horizontal.shrinks_by.max(0) {
            let columns = horizontal.range();
            between.resize(3 * columns.len() * vertical.len(), 0);
            arch.dispatch(ResizeColumns {
                pixels,
                stride,
                bytes: 3 * columns.start..3 * columns.end,
                top: 0,
                axis: vertical,
                resized: between,
            });
            arch.dispatch(ResizeRows {
                pixels: between,
                stride: 3 * columns.len(),
                left: columns.start,
                axis: horizontal,
                quads,
                resized,
            });
        } else {
            let rows = vertical.range();
            let line = 3 * horizontal.len();
            between.resize(line * rows.len(), 0);
            arch.dispatch(ResizeRows {
                pixels: &pixels[stride * rows.start..stride * rows.end],
                stride,
                left: 0,
                axis: horizontal,
                quads,
                resized: between,
            });
            arch.dispatch(ResizeColumns {
                pixels: between,
                stride: line,
                bytes: 0..line,
                top: rows.start,
                axis: vertical,
                resized,
            });
        }
    }
}

/// Resizes every row of `pixels`, which are `stride` bytes long and begin at column `left` of the
/// image.
struct ResizeRows<'a> {
    pixels: &'a [u8],
    stride: usize,
    left: usize,
    axis: &'a Axis,
    /// Room for a resized row, whose pixels take four bytes each.
    quads: &'a mut Vec<[u8; 4]>,
    resized: &'a mut [u8],
}

impl WithSimd for ResizeRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let ResizeRows {
            pixels,
            stride,
            left,
            axis,
            quads,
            resized,
        } = self;
        quads.resize(axis.len(), [0; 4]);
        for (row, resized) in resized.chunks_exact_mut(3 * axis.len()).enumerate() {
            let pixels = &pixels[row * stride..];
            let resized = resized.as_chunks_mut().0;
            // Each pixel is summed with the byte after it: four lanes fit a register, three do not.
            // The four sums are kept until the row is complete: otherwise the compiler would see
            // that the fourth is not used, and go back to three. After the very last pixel there is
            // no byte, so that the last row is summed the slow way.
            if pixels.len() > stride {
                for ((first, coefficients), quad) in axis.sums().zip(&mut *quads) {
                    *quad = row_sums(&pixels[3 * (first - left)..], coefficients);
                }
                for (pixel, [red, green, blue, _]) in resized.iter_mut().zip(&*quads) {
                    *pixel = [*red, *green, *blue];
                }
            } else {
                for ((first, coefficients), pixel) in axis.sums().zip(resized) {
                    *pixel = row_sums(&pixels[3 * (first - left)..], coefficients);
                }
            }
        }
    }
}

/// The weighted sums of neighbouring pixels, the first of which is at the start of `pixels`. Of
/// each pixel `N` bytes are summed.
#[inline(always)]
fn row_sums<const N: usize>(pixels: &[u8], coefficients: &[i32]) -> [u8; N] {
    let mut sums = [HALF; N];
    let pixels = &pixels[..3 * (coefficients.len() - 1) + N];
    for (tap, &coefficient) in coefficients.iter().enumerate() {
        add(
            &mut sums,
            pixels[3 * tap..].first_chunk().expect("pixels follow one another"),
            coefficient,
        );
    }
    sums.map(round)
}

/// Bytes of a row that are summed together, in registers: four of 256 bits.
const LANES: usize = 32;

/// Resizes the given bytes of the rows of `pixels`, which are `stride` long and begin at row `top`
/// of the image.
struct ResizeColumns<'a> {
    pixels: &'a [u8],
    stride: usize,
    bytes: Range<usize>,
    top: usize,
    axis: &'a Axis,
    resized: &'a mut [u8],
}

impl WithSimd for ResizeColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let ResizeColumns {
            pixels,
            stride,
            bytes,
            top,
            axis,
            resized,
        } = self;
        for ((first, coefficients), resized) in axis.sums().zip(resized.chunks_exact_mut(bytes.len())) {
            let pixels = &pixels[(first - top) * stride..];
            let (blocks, rest) = resized.as_chunks_mut::<LANES>();
            for (place, block) in (bytes.start..).step_by(LANES).zip(&mut *blocks) {
                *block = column_sums(&pixels[place..], stride, coefficients);
            }
            for (place, value) in (bytes.start + LANES * blocks.len()..).zip(rest) {
                [*value] = column_sums(&pixels[place..], stride, coefficients);
            }
        }
    }
}

/// The weighted sums of neighbouring rows, which begin at `pixels` and follow every `stride` bytes.
#[inline(always)]
fn column_sums<const N: usize>(pixels: &[u8], stride: usize, coefficients: &[i32]) -> [u8; N] {
    let mut sums = [HALF; N];
    for (row, &coefficient) in pixels.chunks(stride).zip(coefficients) {
        add(
            &mut sums,
            row.first_chunk().expect("columns lie within the rows"),
            coefficient,
        );
    }
    sums.map(round)
}

/// Adds values times a coefficient.
///
/// Nothing wraps: weights sum to 1, so a sum is at most 255 in the upper 10 bits. A check of every lane
/// for it would keep the compiler from vectorising: decoding a small photo took twice as long.
#[inline(always)]
fn add<const N: usize>(sums: &mut [i32; N], values: &[u8; N], coefficient: i32) {
    for (sum, &value) in sums.iter_mut().zip(values) {
        *sum = sum.wrapping_add(i32::from(value).wrapping_mul(coefficient));
    }
}

/// A sum as an 8-bit value. The weights sum to 1, so that only rounding can leave the range.
#[inline(always)]
fn round(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use proptest::prelude::*;

    use super::*;

    /// The same by definition: each pass weighs every source pixel for every pixel of the result.
    fn reference(image: &RgbImage, width: &Extent, height: &Extent) -> Vec<u8> {
        let weights = |from: usize, to: &Extent, place: usize| -> Vec<i64> {
            let scale = from as f64 / to.length as f64;
            let (center, support) = ((place as f64 + 0.5) * scale, scale.max(1.0));
            let first = (center - support + 0.5).max(0.0) as usize;
            let last = ((center + support + 0.5) as usize).min(from);
            let mut weights = vec![0.0; from];
            for (pixel, weight) in weights.iter_mut().enumerate().take(last).skip(first) {
                *weight = (1.0 - ((pixel as f64 - center + 0.5) * (1.0 / support)).abs()).max(0.0);
            }
            let sum: f64 = weights[first..last].iter().sum();
            let fixed = |weight: f64| (weight / sum * f64::from(1 << 22)).round() as i64;
            weights.into_iter().map(fixed).collect()
        };
        let sum = |weights: &[i64], value: &dyn Fn(usize) -> u8| {
            let products = weights
                .iter()
                .enumerate()
                .map(|(pixel, weight)| weight * i64::from(value(pixel)));
            ((products.sum::<i64>() + (1 << 21)) >> 22).clamp(0, 255) as u8
        };
        let across = |image: &RgbImage| {
            let mut resized = RgbImage::new(width.window.len() as u32, image.height());
            for (x, place) in width.window.clone().enumerate() {
                let weights = weights(image.width() as usize, width, place);
                for y in 0..image.height() {
                    let value = |channel: usize| sum(&weights, &|pixel| image.get_pixel(pixel as u32, y)[channel]);
                    resized.put_pixel(x as u32, y, Rgb([value(0), value(1), value(2)]));
                }
            }
            resized
        };
        let down = |image: &RgbImage| {
            let mut resized = RgbImage::new(image.width(), height.window.len() as u32);
            for (y, place) in height.window.clone().enumerate() {
                let weights = weights(image.height() as usize, height, place);
                for x in 0..image.width() {
                    let value = |channel: usize| sum(&weights, &|pixel| image.get_pixel(x, pixel as u32)[channel]);
                    resized.put_pixel(x, y as u32, Rgb([value(0), value(1), value(2)]));
                }
            }
            resized
        };
        let shrinks_by = |from: u32, to: &Extent| i64::from(from) - to.length as i64;
        let columns_first = shrinks_by(image.height(), height) > 2 * shrinks_by(image.width(), width).max(0);
        if columns_first {
            across(&down(image))
        } else {
            down(&across(image))
        }
        .into_raw()
    }

    #[test]
    fn the_room_that_a_long_strip_took_is_given_back() {
        let (mut resizer, whole) = (Resizer::default(), Extent::whole(224));
        for height in [1_000_000, 300] {
            resizer.run(&RgbImage::new(1, height), &whole, &whole, &mut vec![0; 3 * 224 * 224]);
        }
        assert!(resizer.vertical.coefficients.capacity() <= COEFFICIENTS_KEPT);
    }

    prop_compose! {
        fn side()(length in 1..70usize)(start in 0..length, end in 1..=length, length in Just(length)) -> Extent {
            Extent { length, window: start.min(end - 1)..end }
        }
    }

    proptest! {
        #[test]
        fn vector_code_equals_the_definition(
            (from_width, from_height) in (1..150u32, 1..150u32), width in side(), height in side(), seed: u32,
        ) {
            // A multiplicative hash: noise, black and white.
            let noise = |x: u32, y: u32, channel: u32| {
                let hash = (x * 71 + y * 1013 + channel * 7 + seed % 9973).wrapping_mul(2_654_435_761) >> 16;
                if hash.is_multiple_of(3) { 255 * (hash / 3 % 2) as u8 } else { (hash / 3) as u8 }
            };
            let image = RgbImage::from_fn(from_width, from_height, |x, y| Rgb([0, 1, 2].map(|c| noise(x, y, c))));
            let mut resized = vec![0; 3 * width.window.len() * height.window.len()];
            let mut resizer = Resizer::default();
            resizer.run(&image, &width, &height, &mut resized);
            prop_assert_eq!(&resized, &reference(&image, &width, &height));
            // Buffers left by another image do not show.
            resizer.run(&RgbImage::new(99, 98), &Extent::whole(97), &Extent::whole(96), &mut vec![0; 3 * 97 * 96]);
            let again = &mut vec![7; resized.len()];
            resizer.run(&image, &width, &height, again);
            prop_assert_eq!(&resized, &*again);
        }
    }
}
