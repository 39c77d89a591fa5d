//! The bottleneck blocks of ResNet-50 in 8-bit integers, after Jacob et al., "Quantization and Training of Neural Networks for
//! Efficient Integer-Arithmetic-Only Inference", 2018.
//!
//! Weights are `i8` with a scale for each output channel, activations `u8` with a scale for each tensor, products are summed
//! up as `i32`. The first convolution stays in fp32, and so does the sum that ends the last block, because features are
//! averages of it. Integers are summed up exactly: the features of an image depend neither on the images beside it nor on
//! the number of threads.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use tch::Tensor;

use super::bridge::{self, Activation, PackedInt8Conv, Quantum, Shape};
use super::resnet50::{Bottleneck, ConvNorm, Folded, WIDTH};
use crate::Result;

/// The share of the activations that a scale does without: the largest hundred-thousandth is clipped.
///
/// With 16 drawings, the least cosine to fp32 over 452 photographs of music10 was 0.986 for 5e-5, 0.990 for 1e-5 and 5e-6,
/// and 0.987 for none.
const CLIPPED: f64 = 1e-5;

/// The largest 8-bit number of an activation, and of a weight.
const MOST: f32 = 255.0;
const MOST_OF_WEIGHT: f32 = 127.0;

/// What one step of each activation's 8 bits stands for, in the order in which
/// [`Network::activations`](super::resnet50::Network::activations) shows them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scales(pub(crate) Vec<f32>);

impl Scales {
    /// How many activations there are.
    pub(crate) fn count(blocks: &[Bottleneck]) -> usize {
        let of_block = |block: &Bottleneck| 3 + usize::from(block.downsample.is_some());
        1 + blocks.iter().map(of_block).sum::<usize>()
    }
}

/// The largest magnitudes of each activation over several images.
#[derive(Default)]
pub(crate) struct Ranges(Vec<Largest>);

/// The largest of many values.
#[derive(Default)]
struct Largest {
    values: Vec<f32>,
    n_seen: usize,
    /// Whether a value may be negative.
    is_signed: bool,
}

impl Ranges {
    /// Looks at the activation at a place, which comes with every image.
    pub(crate) fn see(&mut self, place: usize, n_images: usize, activation: &Tensor) -> Result<()> {
        if self.0.len() <= place {
            self.0.resize_with(place + 1, Largest::default);
        }
        let activation = activation.f_permute([0, 2, 3, 1])?.f_contiguous()?;
        self.0[place].see(bridge::values(&activation), n_images);
        Ok(())
    }

    /// The scales that clip [`CLIPPED`] of the values. Rounded up to the precision of bf16, so that the last bits of what one
    /// processor and another compute in fp32 do not matter.
    pub(crate) fn scales(&self) -> Scales {
        let scale = |largest: &Largest| {
            let range = largest.values.iter().copied().fold(f32::INFINITY, f32::min).max(1e-6);
            let steps = if largest.is_signed { MOST / 2.0 } else { MOST };
            f32::from_bits((range / steps).to_bits().saturating_add(0xFFFF) & !0xFFFF)
        };
        Scales(self.0.iter().map(scale).collect())
    }
}

impl Largest {
    /// Keeps as many as are clipped of `n_images` times as many values.
    fn see(&mut self, values: &[f32], n_images: usize) {
        let n_kept = ((values.len() * n_images) as f64 * CLIPPED).round().max(1.0) as usize;
        let threshold = match self.values.len() < n_kept {
            true => f32::NEG_INFINITY,
            false => self.values.iter().copied().fold(f32::INFINITY, f32::min),
        };
        self.n_seen += values.len();
        self.is_signed |= values.iter().any(|&value| value < 0.0);
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

/// The blocks after the first convolution and its pooling.
#[derive(Debug)]
pub(crate) struct Int8Blocks {
    /// Of the pooled output of the first convolution.
    input: Quantum,
    blocks: Vec<Int8Block>,
}

#[derive(Debug)]
struct Int8Block {
    convs: [PackedInt8Conv; 3],
    downsample: Option<(PackedInt8Conv, Quantum)>,
    output: Quantum,
}

impl Int8Blocks {
    /// Quantizes folded weights, which come in the order of the plan.
    pub(crate) fn new(
        plan: &[Bottleneck],
        folded: impl Iterator<Item = Folded>,
        scales: &Scales,
        batch: usize,
    ) -> Result<Self> {
        let of_activation = |&scale: &f32| Quantum {
            scale: f64::from(scale),
            zero_point: 0,
        };
        let mut quanta = scales.0.iter().map(of_activation);
        let mut next = || quanta.next().expect("a scale for each activation");
        let mut folded = folded;
        let mut conv = |plan: &ConvNorm, x: Quantum| {
            let folded = folded.next().expect("a weight for each convolution");
            quantized(plan, &folded, x, batch)
        };
        let input = next();
        let mut x = input;
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
        Ok(Int8Blocks { input, blocks })
    }

    /// The same blocks for another thread: the weights are not copied.
    pub(crate) fn share(&self) -> Self {
        let share = |block: &Int8Block| Int8Block {
            convs: block.convs.each_ref().map(PackedInt8Conv::share),
            downsample: block.downsample.as_ref().map(|(conv, y)| (conv.share(), *y)),
            output: block.output,
        };
        Int8Blocks {
            input: self.input,
            blocks: self.blocks.iter().map(share).collect(),
        }
    }

    /// From the first convolution's output, `f32 [n, 64, 112, 112]` in channels-last layout, to features, `n · 2048`.
    pub(crate) fn forward(&self, stem: &Tensor) -> Result<Vec<f32>> {
        let (last, blocks) = self.blocks.split_last().expect("the network has blocks");
        let mut x = pooled(stem, self.input)?;
        let mut of_x = self.input;
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
        averages(&y, &x, of_x)
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

/// Quantizes a convolution: each output channel has the scale of its largest weight.
fn quantized(plan: &ConvNorm, folded: &Folded, x: Quantum, batch: usize) -> Result<PackedInt8Conv> {
    let [n_out, n_in, side] = plan.shape;
    let filters = folded.weight.par_chunks_exact((n_in * side * side) as usize);
    let quantized = filters.map(|filter| {
        let largest = filter.iter().fold(0.0_f32, |most, weight| most.max(weight.abs()));
        let scale = largest.max(1e-8) / MOST_OF_WEIGHT;
        let weight = |weight: &f32| (weight / scale).round_ties_even() as i8;
        (scale, filter.iter().map(weight).collect::<Vec<i8>>())
    });
    let (scales, weights): (Vec<f32>, Vec<Vec<i8>>) = quantized.unzip();
    let weight = Tensor::f_from_slice(&weights.concat())?
        .f_reshape([n_out, side, side, n_in])?
        .f_permute([0, 3, 1, 2])?
        .f_contiguous()?;
    let shape = Shape {
        stride: plan.stride,
        padding: side / 2,
        groups: 1,
    };
    PackedInt8Conv::new(
        &weight,
        Tensor::f_from_slice(&scales)?,
        Tensor::f_from_slice(&folded.bias)?,
        x,
        shape,
        [batch as i64, n_in, plan.input_side, plan.input_side],
    )
}

/// The maximum over 3 × 3 pixels at every second pixel, in 8 bits. No value is negative.
fn pooled(x: &Tensor, y: Quantum) -> Result<Tensor> {
    let x = x.f_permute([0, 2, 3, 1])?;
    let size = x.size();
    let (n, side, n_channels) = (size[0], size[1], size[3]);
    let pooled = bridge::filled([n, side / 2, side / 2, n_channels], |pooled| {
        Arch::new().dispatch(Pool {
            inputs: bridge::values(&x),
            side: side as usize,
            n_channels: n_channels as usize,
            steps: (1.0 / y.scale) as f32,
            pooled,
        });
    })?;
    Ok(pooled.f_permute([0, 3, 1, 2])?)
}

struct Pool<'a> {
    inputs: &'a [f32],
    side: usize,
    n_channels: usize,
    /// 1 / scale.
    steps: f32,
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
            steps,
            pooled,
        } = self;
        let half = side / 2;
        let mut largest = vec![0.0_f32; n_channels];
        let images = inputs.chunks_exact(side * side * n_channels);
        for (image, pooled) in images.zip(pooled.chunks_exact_mut(half * half * n_channels)) {
            for (place, pooled) in pooled.chunks_exact_mut(n_channels).enumerate() {
                let (top, left) = (2 * (place / half), 2 * (place % half));
                largest.fill(0.0);
                for y in top.saturating_sub(1)..top + 2 {
                    for x in left.saturating_sub(1)..left + 2 {
                        let pixel = &image[(y * side + x) * n_channels..][..n_channels];
                        for (largest, &value) in largest.iter_mut().zip(pixel) {
                            *largest = if value > *largest { value } else { *largest };
                        }
                    }
                }
                for (pooled, value) in pooled.iter_mut().zip(&largest) {
                    *pooled = (value * steps + 0.5).min(MOST) as u8;
                }
            }
        }
    }
}

/// The average over all pixels of relu(y + shortcut): `y` is `f32`, the shortcut `u8`, both `[n, 2048, h, w]`.
fn averages(y: &Tensor, shortcut: &Tensor, of_shortcut: Quantum) -> Result<Vec<f32>> {
    let (y, shortcut) = (y.f_permute([0, 2, 3, 1])?, shortcut.f_permute([0, 2, 3, 1])?);
    let size = y.size();
    let mut features = vec![0.0; size[0] as usize * WIDTH];
    Arch::new().dispatch(Average {
        y: bridge::values(&y),
        shortcut: bridge::values(&shortcut),
        scale: of_shortcut.scale as f32,
        n_pixels: (size[1] * size[2]) as usize,
        features: &mut features,
    });
    Ok(features)
}

struct Average<'a> {
    y: &'a [f32],
    shortcut: &'a [u8],
    scale: f32,
    n_pixels: usize,
    features: &'a mut [f32],
}

impl WithSimd for Average<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Average {
            y,
            shortcut,
            scale,
            n_pixels,
            features,
        } = self;
        let images = y
            .chunks_exact(n_pixels * WIDTH)
            .zip(shortcut.chunks_exact(n_pixels * WIDTH));
        for ((y, shortcut), features) in images.zip(features.chunks_exact_mut(WIDTH)) {
            for (y, shortcut) in y.chunks_exact(WIDTH).zip(shortcut.chunks_exact(WIDTH)) {
                for ((feature, y), &shortcut) in features.iter_mut().zip(y).zip(shortcut) {
                    *feature += (y + f32::from(shortcut) * scale).max(0.0);
                }
            }
            features.iter_mut().for_each(|feature| *feature /= n_pixels as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_clips_the_largest_hundred_thousandth_of_all_images() {
        let mut largest = Largest::default();
        // 1 to 200,000, in two images: the two largest are clipped to the smaller of them.
        for half in [0, 1] {
            let values: Vec<f32> = (1..=100_000).map(|n| (2 * n - half) as f32).collect();
            largest.see(&values, 2);
        }
        largest.values.sort_by(f32::total_cmp);
        assert_eq!(largest.values, [199_999.0, 200_000.0]);
        let scales = Ranges(vec![largest]).scales();
        let scale = scales.0[0];
        assert!(
            (199_999.0 / 255.0..199_999.0 / 255.0 * 1.01).contains(&scale),
            "{scale}"
        );
        assert_eq!(scale.to_bits() & 0xFFFF, 0);
    }

    #[test]
    fn pooling_takes_the_largest_of_nine_pixels_and_rounds() {
        let x = Tensor::from_slice(&(0..16).map(|n| n as f32 / 10.0).collect::<Vec<f32>>())
            .reshape([1, 4, 4, 1])
            .permute([0, 3, 1, 2]);
        let quantum = Quantum {
            scale: 0.1,
            zero_point: 0,
        };
        let y = pooled(&x, quantum).unwrap().permute([0, 2, 3, 1]);
        assert_eq!(bridge::values::<u8>(&y), [5, 7, 13, 15]);
        let coarse = Quantum {
            scale: 0.004,
            zero_point: 0,
        };
        let y = pooled(&x, coarse).unwrap().permute([0, 2, 3, 1]);
        assert_eq!(
            bridge::values::<u8>(&y),
            [125, 175, 255, 255],
            "what is larger is clipped"
        );
    }

    #[test]
    fn averages_are_of_the_sum_without_what_is_negative() {
        let mut y = vec![0.0_f32; 2 * WIDTH];
        (y[0], y[WIDTH]) = (1.0, -8.0);
        let mut shortcut = vec![0_u8; 2 * WIDTH];
        (shortcut[0], shortcut[WIDTH]) = (4, 4);
        let tensor = |tensor: Tensor| tensor.reshape([1, 1, 2, WIDTH as i64]).permute([0, 3, 1, 2]);
        let of_shortcut = Quantum {
            scale: 0.5,
            zero_point: 0,
        };
        let found = averages(
            &tensor(Tensor::from_slice(&y)),
            &tensor(Tensor::from_slice(&shortcut)),
            of_shortcut,
        );
        assert_eq!(found.unwrap()[..2], [1.5, 0.0]);
    }
}
