//! ResNet-50 in 8-bit integers, after Jacob et al., "Quantization and Training of Neural Networks for Efficient
//! Integer-Arithmetic-Only Inference", 2018.
//!
//! Weights are `i8` with a scale for each output channel, activations `u8` with a scale for each tensor, products are summed
//! up as `i32`. The first convolution takes pixels as they are: their normalization is part of its weights. Only the sum
//! that ends the last block is in fp32, because features are averages of it. Integers are summed up exactly: the features
//! of an image depend neither on the images beside it nor on the number of threads.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use tch::Tensor;

use super::bridge::{self, Activation, PackedInt8Conv, Quantum, Shape};
use super::resnet50::{Bottleneck, ConvNorm, Folded, MEAN, STANDARD_DEVIATION, Target, WIDTH};
use crate::{InputSize, Pooling, Result};

/// The share of an activation's values that its scale clips: more where pixels are many and outliers stand alone, in the
/// first convolution and the first stage.
///
/// Measured with 16 drawings, as the mean cosine to fp32 over 226 photographs of music10 and the least over these and the
/// eight worst: with 1e-5 everywhere 0.9973 and 0.983, with 1e-4 in the first stage 0.9978 and 0.989, with 5e-5 there
/// 0.9976 and 0.989, with nothing clipped there 0.9971 and 0.984. With 1e-4 everywhere the mean was 0.9950, with 5e-5
/// 0.9966.
fn clipped(side: i64) -> f64 {
    if side >= 56 { 1e-4 } else { 1e-5 }
}

/// The largest 8-bit number of an activation, and of a weight.
const MOST: f32 = 255.0;
const MOST_OF_WEIGHT: f32 = 127.0;

/// A number to which none of up to 2²² can be added but as a whole one: adding and subtracting it rounds, half to even, without
/// a call of the system's library.
const HALF_TO_EVEN: f32 = 12_582_912.0;

/// What one step of each activation's 8 bits stands for, in the order in which
/// [`Network::forward_seen`](super::resnet50::Network::forward_seen) shows them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scales(pub(crate) Vec<f32>);

impl Scales {
    /// Whether each activation may be negative: the projections, which no ReLU follows.
    pub(crate) fn signs(blocks: &[Bottleneck]) -> Vec<bool> {
        let of_block = |block: &Bottleneck| {
            let projection = block.downsample.as_ref().map(|_| true);
            [false, false].into_iter().chain(projection).chain([false])
        };
        std::iter::once(false).chain(blocks.iter().flat_map(of_block)).collect()
    }
}

/// The largest magnitudes of each activation over several images.
#[derive(Default)]
pub(crate) struct Ranges(Vec<Largest>);

/// The largest of many values.
#[derive(Default)]
struct Largest {
    values: Vec<f32>,
}

impl Ranges {
    /// Looks at the activation at a place, which comes with every image.
    pub(crate) fn see(&mut self, place: usize, n_images: usize, activation: &Tensor) -> Result<()> {
        if self.0.len() <= place {
            self.0.resize_with(place + 1, Largest::default);
        }
        let activation = activation.f_permute([0, 2, 3, 1])?.f_contiguous()?;
        let share = clipped(activation.size()[1]);
        let n_kept = ((activation.numel() * n_images) as f64 * share).round().max(1.0) as usize;
        self.0[place].see(bridge::values(&activation), n_kept);
        Ok(())
    }

    /// The scales that clip the largest values. Rounded up to the precision of bf16, so that the last bits of what one
    /// processor and another compute in fp32 do not matter.
    pub(crate) fn scales(&self, signs: &[bool]) -> Scales {
        let scale = |(largest, &is_signed): (&Largest, &bool)| {
            let range = largest.values.iter().copied().fold(f32::INFINITY, f32::min).max(1e-6);
            let steps = if is_signed { MOST / 2.0 } else { MOST };
            f32::from_bits((range / steps).to_bits().saturating_add(0xFFFF) & !0xFFFF)
        };
        Scales(self.0.iter().zip(signs).map(scale).collect())
    }
}

impl Largest {
    /// Keeps the `n_kept` largest magnitudes of all that it has seen.
    fn see(&mut self, values: &[f32], n_kept: usize) {
        let threshold = match self.values.len() < n_kept {
            true => f32::NEG_INFINITY,
            false => self.values.iter().copied().fold(f32::INFINITY, f32::min),
        };
        self.values.extend(
            values
                .iter()
                .map(|value| value.abs())
                .filter(|&value| value > threshold),
        );
        if self.values.len() > n_kept {
            self.values.select_nth_unstable_by(n_kept - 1, |a, b| b.total_cmp(a));
            self.values.truncate(n_kept);
        }
    }
}

/// ResNet-50 without its top.
#[derive(Debug)]
pub(crate) struct Int8Network {
    size: InputSize,
    stem: PackedInt8Conv,
    /// Of the first convolution's output.
    of_stem: Quantum,
    blocks: Vec<Int8Block>,
}

/// How many pixels the first convolution reaches beyond the image.
const BORDER: usize = 3;

/// Of pixels.
const PIXELS: Quantum = Quantum {
    scale: 1.0,
    zero_point: 0,
};

#[derive(Debug)]
struct Int8Block {
    convs: [PackedInt8Conv; 3],
    downsample: Option<(PackedInt8Conv, Quantum)>,
    output: Quantum,
}

impl Int8Network {
    /// Quantizes folded weights, which come in the order of the plan: that of the first convolution, then of the blocks.
    pub(crate) fn new(
        (stem, plan): (&ConvNorm, &[Bottleneck]),
        mut folded: impl Iterator<Item = Folded>,
        scales: &Scales,
        Target { size, batch, .. }: Target,
    ) -> Result<Self> {
        let of_activation = |&scale: &f32| Quantum {
            scale: f64::from(scale),
            zero_point: 0,
        };
        let mut quanta = scales.0.iter().map(of_activation);
        let mut next = || quanta.next().expect("a scale for each activation");
        let mut weights = || folded.next().expect("a weight for each convolution");
        let stem = of_pixels(stem, &weights(), size, batch)?;
        let of_stem = next();
        let mut conv = |plan: &ConvNorm, x: Quantum| {
            let input = [batch as i64, plan.shape[1], plan.input_side, plan.input_side];
            let quantized = Quantized::new(plan, &weights());
            quantized.pack(plan, x, plan.shape[2] / 2, input)
        };
        let mut x = of_stem;
        let mut blocks = Vec::with_capacity(plan.len());
        for block in plan {
            let [first, second, third] = &block.convs;
            let (after_first, after_second) = (next(), next());
            let convs = [conv(first, x)?, conv(second, after_first)?, conv(third, after_second)?];
            let downsample = match &block.downsample {
                // Without a ReLU after it.
                Some(plan) => {
                    let y = Quantum {
                        zero_point: 128,
                        ..next()
                    };
                    Some((conv(plan, x)?, y))
                }
                None => None,
            };
            let output = next();
            blocks.push(Int8Block {
                convs,
                downsample,
                output,
            });
            x = output;
        }
        Ok(Int8Network {
            size,
            stem,
            of_stem,
            blocks,
        })
    }

    /// The same network for another thread: the weights are not copied.
    pub(crate) fn share(&self) -> Self {
        let share = |block: &Int8Block| Int8Block {
            convs: block.convs.each_ref().map(PackedInt8Conv::share),
            downsample: block.downsample.as_ref().map(|(conv, y)| (conv.share(), *y)),
            output: block.output,
        };
        Int8Network {
            size: self.size,
            stem: self.stem.share(),
            of_stem: self.of_stem,
            blocks: self.blocks.iter().map(share).collect(),
        }
    }

    /// From RGB images, `u8 [n, side, side, 3]`, to features, `[n, poolings, 2048]`.
    pub(crate) fn forward(&self, images: &[u8], poolings: &[Pooling]) -> Result<Vec<f32>> {
        let (last, blocks) = self.blocks.split_last().expect("the network has blocks");
        let stem = self
            .stem
            .run(&with_border(images, self.size)?, Activation::Relu, self.of_stem)?;
        let mut x = pooled(&stem)?;
        let mut of_x = self.of_stem;
        for block in blocks {
            let y = block.inner(&x)?;
            let shortcut = match &block.downsample {
                Some((conv, of_shortcut)) => (conv.run(&x, Activation::None, *of_shortcut)?, *of_shortcut),
                None => (x, of_x),
            };
            x = block.convs[2].run_add_relu(&y, shortcut, block.output)?;
            of_x = block.output;
        }
        let y = last.convs[2].run_to_float(&last.inner(&x)?)?;
        features(&y, &x, of_x, poolings)
    }
}

impl Int8Block {
    /// What the last convolution of the block takes.
    fn inner(&self, x: &Tensor) -> Result<Tensor> {
        let [first, second, third] = &self.convs;
        let y = first.run(x, Activation::Relu, second.input())?;
        second.run(&y, Activation::Relu, third.input())
    }
}

/// A weight in 8 bits.
struct Quantized {
    /// `[out, h, w, in]`.
    weight: Vec<i8>,
    /// Of each output channel.
    scales: Vec<f32>,
    bias: Vec<f32>,
}

impl Quantized {
    /// Each output channel has the scale of its largest weight.
    fn new(plan: &ConvNorm, folded: &Folded) -> Self {
        let [_, n_in, side] = plan.shape.map(|length| length as usize);
        let filters = folded.weight.par_chunks_exact(n_in * side * side);
        let quantized = filters.map(|filter| {
            let largest = filter.iter().fold(0.0_f32, |most, weight| most.max(weight.abs()));
            let scale = largest.max(1e-12) / MOST_OF_WEIGHT;
            (scale, diffused(filter, scale, n_in, side))
        });
        let (scales, weights): (Vec<f32>, Vec<Vec<i8>>) = quantized.unzip();
        Quantized {
            weight: weights.concat(),
            scales,
            bias: folded.bias.clone(),
        }
    }

    fn pack(&self, plan: &ConvNorm, x: Quantum, padding: i64, input: [i64; 4]) -> Result<PackedInt8Conv> {
        let [n_out, n_in, side] = plan.shape;
        let weight = Tensor::f_from_slice(&self.weight)?
            .f_reshape([n_out, side, side, n_in])?
            .f_permute([0, 3, 1, 2])?
            .f_contiguous()?;
        let shape = Shape {
            stride: plan.stride,
            padding,
            groups: 1,
        };
        let (scales, bias) = (Tensor::f_from_slice(&self.scales)?, Tensor::f_from_slice(&self.bias)?);
        PackedInt8Conv::new(&weight, scales, bias, x, shape, input)
    }
}

/// Rounds a filter `[h, w, in]` to steps of `scale`, and hands the error of each weight on to the next pixel of its channel,
/// row by row and back (Floyd and Steinberg's error diffusion, in one dimension).
///
/// The errors of a channel then add up to next to nothing, and pixels that lie side by side have similar values. With the
/// first convolution in 8 bits, the mean cosine to fp32 over 452 photographs was 0.9962 with plain rounding, and 0.9974 with
/// this, as with the first convolution in fp32.
fn diffused(filter: &[f32], scale: f32, n_in: usize, side: usize) -> Vec<i8> {
    let mut quantized = vec![0; filter.len()];
    let mut errors = vec![0.0_f32; n_in];
    for y in 0..side {
        for place in 0..side {
            let x = if y % 2 == 0 { place } else { side - 1 - place };
            let pixel = (y * side + x) * n_in..(y * side + x + 1) * n_in;
            for ((weight, quantized), error) in
                (filter[pixel.clone()].iter().zip(&mut quantized[pixel])).zip(&mut errors)
            {
                let wanted = weight / scale + *error;
                let rounded = ((wanted + HALF_TO_EVEN) - HALF_TO_EVEN).clamp(-MOST_OF_WEIGHT, MOST_OF_WEIGHT);
                *error = wanted - rounded;
                *quantized = rounded as i8;
            }
        }
    }
    quantized
}

/// The first convolution, of pixels with a border instead of normalized ones with zeros around them.
fn of_pixels(plan: &ConvNorm, folded: &Folded, size: InputSize, batch: usize) -> Result<PackedInt8Conv> {
    let colours = || 0..MEAN.len();
    let weight = (folded.weight.iter().zip(colours().cycle()))
        .map(|(weight, colour)| weight / (255.0 * STANDARD_DEVIATION[colour]));
    let mut quantized = Quantized::new(
        plan,
        &Folded {
            weight: weight.collect(),
            bias: folded.bias.clone(),
        },
    );
    // The normalization subtracts the mean of each colour.
    let filters = quantized
        .weight
        .chunks_exact(quantized.weight.len() / quantized.bias.len());
    for ((filter, scale), bias) in filters.zip(&quantized.scales).zip(&mut quantized.bias) {
        let sum: f64 = (filter.iter().zip(colours().cycle()))
            .map(|(&weight, colour)| f64::from(weight) * 255.0 * f64::from(MEAN[colour]))
            .sum();
        *bias = (f64::from(*bias) - f64::from(*scale) * sum) as f32;
    }
    let side = (size.side() + 2 * BORDER) as i64;
    quantized.pack(plan, PIXELS, 0, [batch as i64, plan.shape[1], side, side])
}

/// Images `u8 [n, side, side, 3]` with a border of the mean colour, which stands for zeros: `[n, 3, side + 6, side + 6]`
/// in channels-last layout.
fn with_border(images: &[u8], size: InputSize) -> Result<Tensor> {
    let mean = MEAN.map(|mean| (255.0 * mean).round() as u8);
    let row = 3 * size.side();
    let side = size.side() + 2 * BORDER;
    let n = images.len() / size.bytes();
    let bordered = bridge::filled([n as i64, side as i64, side as i64, 3], |bordered: &mut [u8]| {
        bordered.as_chunks_mut().0.fill(mean);
        let images = images.chunks_exact(size.bytes());
        for (image, bordered) in images.zip(bordered.chunks_exact_mut(3 * side * side)) {
            let rows = bordered[3 * side * BORDER..].chunks_exact_mut(3 * side);
            for (pixels, bordered) in image.chunks_exact(row).zip(rows) {
                bordered[3 * BORDER..][..row].copy_from_slice(pixels);
            }
        }
    })?;
    Ok(bordered.f_permute([0, 3, 1, 2])?)
}

/// The maximum over 3 × 3 pixels at every second pixel.
fn pooled(x: &Tensor) -> Result<Tensor> {
    let x = x.f_permute([0, 2, 3, 1])?;
    let size = x.size();
    let (n, side, n_channels) = (size[0], size[1], size[3]);
    let pooled = bridge::filled([n, side / 2, side / 2, n_channels], |pooled| {
        Arch::new().dispatch(Pool {
            inputs: bridge::values(&x),
            side: side as usize,
            n_channels: n_channels as usize,
            pooled,
        });
    })?;
    Ok(pooled.f_permute([0, 3, 1, 2])?)
}

struct Pool<'a> {
    inputs: &'a [u8],
    side: usize,
    n_channels: usize,
    pooled: &'a mut [u8],
}

impl WithSimd for Pool<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Pool {
            inputs,
            side,
            n_channels,
            pooled,
        } = self;
        let (half, row) = (side / 2, side * n_channels);
        // The maxima of three rows: long runs of bytes. Of these, the maxima of three pixels.
        let mut of_rows = vec![0; row];
        let images = inputs.chunks_exact(side * row);
        for (image, pooled) in images.zip(pooled.chunks_exact_mut(half * half * n_channels)) {
            for (y, pooled) in pooled.chunks_exact_mut(half * n_channels).enumerate() {
                let [above, middle, below] =
                    [(2 * y).saturating_sub(1), 2 * y, 2 * y + 1].map(|y| &image[y * row..][..row]);
                for (((of_rows, &above), &middle), &below) in of_rows.iter_mut().zip(above).zip(middle).zip(below) {
                    *of_rows = above.max(middle).max(below);
                }
                for (x, pooled) in pooled.chunks_exact_mut(n_channels).enumerate() {
                    let [left, middle, right] =
                        [(2 * x).saturating_sub(1), 2 * x, 2 * x + 1].map(|x| &of_rows[x * n_channels..][..n_channels]);
                    for (((pooled, &left), &middle), &right) in pooled.iter_mut().zip(left).zip(middle).zip(right) {
                        *pooled = left.max(middle).max(right);
                    }
                }
            }
        }
    }
}

/// What relu(y + shortcut) is pooled to, `[n, poolings, 2048]`: `y` is `f32`, the shortcut `u8`, both `[n, 2048, h, w]`.
fn features(y: &Tensor, shortcut: &Tensor, of_shortcut: Quantum, poolings: &[Pooling]) -> Result<Vec<f32>> {
    let (y, shortcut) = (y.f_permute([0, 2, 3, 1])?, shortcut.f_permute([0, 2, 3, 1])?);
    let size = y.size();
    let image = (size[1] * size[2]) as usize * WIDTH;
    let mut features = vec![0.0; size[0] as usize * poolings.len() * WIDTH];
    let images = bridge::values(&y).chunks_exact(image);
    let images = images.zip(bridge::values(&shortcut).chunks_exact(image));
    for ((y, shortcut), features) in images.zip(features.chunks_exact_mut(poolings.len() * WIDTH)) {
        for (&pooling, features) in poolings.iter().zip(features.chunks_exact_mut(WIDTH)) {
            Arch::new().dispatch(Pooled {
                y,
                shortcut,
                scale: of_shortcut.scale as f32,
                pooling,
                features,
            });
        }
    }
    Ok(features)
}

/// Pools the maps of an image.
struct Pooled<'a> {
    y: &'a [f32],
    shortcut: &'a [u8],
    scale: f32,
    pooling: Pooling,
    features: &'a mut [f32],
}

impl WithSimd for Pooled<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        match self.pooling {
            Pooling::Mean => {
                self.averages(|x| x);
            }
            Pooling::Gem => {
                let averages = self.averages(|x| x * x * x);
                averages.iter_mut().for_each(|average| *average = average.cbrt());
            }
        }
    }
}

impl<'a> Pooled<'a> {
    /// The averages over all pixels of what `power` makes of the sums.
    #[inline(always)]
    fn averages(self, power: impl Fn(f32) -> f32) -> &'a mut [f32] {
        let Pooled {
            y,
            shortcut,
            scale,
            pooling: _,
            features,
        } = self;
        let n_pixels = y.len() / WIDTH;
        for (y, shortcut) in y.chunks_exact(WIDTH).zip(shortcut.chunks_exact(WIDTH)) {
            for ((feature, y), &shortcut) in features.iter_mut().zip(y).zip(shortcut) {
                *feature += power((y + f32::from(shortcut) * scale).max(0.0));
            }
        }
        features.iter_mut().for_each(|feature| *feature /= n_pixels as f32);
        features
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_clips_the_largest_values_of_all_images() {
        let mut largest = Largest::default();
        // 1 to 200,000, in two images: the two largest are clipped to the smaller of them.
        for half in [0, 1] {
            let values: Vec<f32> = (1..=100_000).map(|n| (2 * n - half) as f32).collect();
            largest.see(&values, 2);
        }
        largest.values.sort_by(f32::total_cmp);
        assert_eq!(largest.values, [199_999.0, 200_000.0]);
        let scales = Ranges(vec![largest]).scales(&[false]);
        let scale = scales.0[0];
        assert!(
            (199_999.0 / 255.0..199_999.0 / 255.0 * 1.01).contains(&scale),
            "{scale}"
        );
        assert_eq!(scale.to_bits() & 0xFFFF, 0);
    }

    #[test]
    fn pooling_takes_the_largest_of_nine_pixels() {
        let (n, side, n_channels) = (2, 8, 3);
        // In no order.
        let value = |place: usize| (place * 7919 % 251) as u8;
        let at =
            |image: usize, y: usize, x: usize, channel: usize| ((image * side + y) * side + x) * n_channels + channel;
        let values: Vec<u8> = (0..n * side * side * n_channels).map(value).collect();
        let size = [n, side, side, n_channels].map(|length| length as i64);
        let x = Tensor::from_slice(&values).reshape(size).permute([0, 3, 1, 2]);
        let y = pooled(&x).unwrap().permute([0, 2, 3, 1]);
        let around = |place: usize| (2 * place).saturating_sub(1)..2 * place + 2;
        let mut expected = Vec::new();
        for (image, y) in (0..n).flat_map(|image| (0..side / 2).map(move |y| (image, y))) {
            for (x, channel) in (0..side / 2).flat_map(|x| (0..n_channels).map(move |channel| (x, channel))) {
                let pixels = around(y).flat_map(|y| around(x).map(move |x| value(at(image, y, x, channel))));
                expected.push(pixels.max().unwrap());
            }
        }
        assert_eq!(bridge::values::<u8>(&y), expected);
    }

    #[test]
    fn errors_of_rounding_are_handed_on_from_pixel_to_pixel() {
        // Two channels, 2 × 2 pixels, of which the lower row goes back.
        let filter = [0.4, 1.0, 0.4, 1.0, 0.4, 1.0, 0.4, 1.0];
        let quantized = diffused(&filter, 1.0, 2, 2);
        let first: Vec<i8> = quantized.iter().step_by(2).copied().collect();
        // 0.4 → 0; 0.8 → 1; at the right of the lower row 0.2 → 0, at its left 0.6 → 1.
        assert_eq!(first, [0, 1, 1, 0]);
        assert!(quantized.iter().skip(1).step_by(2).all(|&weight| weight == 1));
    }

    #[test]
    fn the_border_has_the_mean_colour() {
        let size = InputSize::default();
        let image: Vec<u8> = (0..size.bytes()).map(|byte| (byte % 251) as u8).collect();
        let bordered = with_border(&[image.clone(), image.clone()].concat(), size).unwrap();
        let bordered = bordered.permute([0, 2, 3, 1]);
        assert_eq!(bordered.size(), [2, 230, 230, 3]);
        let values = bridge::values::<u8>(&bordered);
        assert_eq!(values[..6], [124, 116, 104, 124, 116, 104]);
        let second = &values[3 * 230 * 230..];
        assert_eq!(second[3 * (3 * 230 + 3)..][..3 * 224], image[..3 * 224]);
        assert_eq!(second[3 * (226 * 230 + 3)..][..3 * 224], image[3 * 223 * 224..]);
    }

    #[test]
    fn features_are_of_the_sum_without_what_is_negative() {
        let mut y = vec![0.0_f32; 2 * WIDTH];
        (y[0], y[WIDTH]) = (1.0, -8.0);
        let mut shortcut = vec![0_u8; 2 * WIDTH];
        (shortcut[0], shortcut[WIDTH]) = (4, 4);
        let tensor = |tensor: Tensor| tensor.reshape([1, 1, 2, WIDTH as i64]).permute([0, 3, 1, 2]);
        let of_shortcut = Quantum {
            scale: 0.5,
            zero_point: 0,
        };
        let (y, shortcut) = (Tensor::from_slice(&y), Tensor::from_slice(&shortcut));
        let found = features(&tensor(y), &tensor(shortcut), of_shortcut, &Pooling::ALL).unwrap();
        // 3 and nothing: 3 / 2, and the cube root of 27 / 2.
        assert_eq!(found[..2], [1.5, 0.0]);
        assert_eq!(found[WIDTH..][..2], [13.5_f32.cbrt(), 0.0]);
    }
}
