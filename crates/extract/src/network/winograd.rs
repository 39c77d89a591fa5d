//! 3 × 3 convolutions with a quarter of the multiplications: Winograd's minimal filtering F(4 × 4,
//! 3 × 3), as in Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015,
//! arXiv:1509.09308.
//!
//! Each tile of 6 × 6 inputs is transformed to 36 numbers for each channel. They are multiplied by
//! the 36 numbers of the transformed filter, summed over the channels, and transformed to 4 × 4
//! outputs. The sums are 36 matrix products, which oneDNN computes as one 1 × 1 convolution with 36
//! groups.
//!
//! oneDNN's direct convolutions already run at nine tenths of the processor's peak: only fewer
//! multiplications can be faster.

use std::sync::Arc;

use pulp::{Arch, Simd, WithSimd};
use tch::{Kind, Tensor};

use super::bridge::{self, Activation, PackedConv, Shape};
use crate::Result;

/// The side of a tile of inputs, and of its outputs.
const INPUTS: usize = 6;
const OUTPUTS: usize = 4;

/// The numbers of a transformed tile, for each channel.
const NUMBERS: usize = INPUTS * INPUTS;

/// The channels that are transformed together: they fill a register of 256 bits.
const LANES: usize = 8;

type Lanes = [f32; LANES];

/// A 3 × 3 convolution with stride 1, padding 1 and a ReLU after it, in single precision, channels
/// last.
#[derive(Debug)]
pub(crate) struct WinogradConv {
    products: PackedConv,
    bias: Arc<[f32]>,
    /// Height and width of input and output.
    side: usize,
}

impl WinogradConv {
    /// A convolution of inputs `[batch, in, side, side]`. `weight` is `[36, out, in]`, the result
    /// of [`transform_filters`].
    ///
    /// # Panics
    /// If the numbers of channels are not multiples of 8.
    pub(crate) fn new(weight: &[f32], bias: &[f32], side: usize, batch: usize) -> Result<Self> {
        let n_out = bias.len();
        let n_in = weight.len() / (NUMBERS * n_out);
        assert!(
            n_in.is_multiple_of(LANES) && n_out.is_multiple_of(LANES),
            "{n_in} to {n_out} channels"
        );
        let weight = Tensor::f_from_slice(weight)?.f_reshape([(NUMBERS * n_out) as i64, n_in as i64, 1, 1])?;
        let zero = Tensor::f_zeros([(NUMBERS * n_out) as i64], (Kind::Float, tch::Device::Cpu))?;
        let shape = Shape {
            stride: 1,
            padding: 0,
            groups: NUMBERS as i64,
        };
        let input = [1, (NUMBERS * n_in) as i64, 1, (batch * n_tiles(side)) as i64];
        Ok(WinogradConv {
            products: PackedConv::new(&weight, zero, shape, input)?,
            bias: bias.into(),
            side,
        })
    }

    /// The same convolution for another thread: the weight is not copied.
    pub(crate) fn share(&self) -> Self {
        WinogradConv {
            products: self.products.share(),
            bias: self.bias.clone(),
            side: self.side,
        }
    }

    /// relu(convolution of x).
    pub(crate) fn run(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.f_permute([0, 2, 3, 1])?;
        let (batch, n_in, n_out) = (x.size()[0], x.size()[3], self.bias.len() as i64);
        let tiles = batch * n_tiles(self.side) as i64;
        let transformed = bridge::filled([1, 1, tiles, NUMBERS as i64 * n_in], |transformed| {
            Arch::new().dispatch(TransformInputs {
                inputs: bridge::values(&x),
                side: self.side,
                n_channels: n_in as usize,
                transformed,
            });
        })?;
        let products = self
            .products
            .run(&transformed.f_permute([0, 3, 1, 2])?, Activation::None)?
            .f_permute([0, 2, 3, 1])?;
        let side = self.side as i64;
        let y = bridge::filled([batch, side, side, n_out], |outputs| {
            Arch::new().dispatch(TransformOutputs {
                products: bridge::values(&products),
                side: self.side,
                bias: &self.bias,
                outputs,
            });
        })?;
        Ok(y.f_permute([0, 3, 1, 2])?)
    }
}

/// The number of tiles of an image.
fn n_tiles(side: usize) -> usize {
    side.div_ceil(OUTPUTS).pow(2)
}

/// Transforms filters `[out, 3, 3, in]` to `[36, out, in]`: G·g·Gᵀ of each filter g, in double
/// precision.
pub(crate) fn transform_filters(filters: &[f32], n_in: usize) -> Vec<f32> {
    const G: [[f64; 3]; INPUTS] = [
        [1.0 / 4.0, 0.0, 0.0],
        [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
        [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
        [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
        [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
        [0.0, 0.0, 1.0],
    ];
    let n_out = filters.len() / (9 * n_in);
    let mut transformed = vec![0.0; NUMBERS * n_out * n_in];
    for (output, filter) in filters.chunks_exact(9 * n_in).enumerate() {
        for input in 0..n_in {
            let g = |y: usize, x: usize| f64::from(filter[(3 * y + x) * n_in + input]);
            let rows = G.map(|row| [0, 1, 2].map(|x| row[0] * g(0, x) + row[1] * g(1, x) + row[2] * g(2, x)));
            for (y, row) in rows.iter().enumerate() {
                for (x, column) in G.iter().enumerate() {
                    let number = row[0] * column[0] + row[1] * column[1] + row[2] * column[2];
                    transformed[((INPUTS * y + x) * n_out + output) * n_in + input] = number as f32;
                }
            }
        }
    }
    transformed
}

/// Transforms images `[n, side, side, channels]` to `[n, tiles, 36, channels]`: Bᵀ·d·B of each tile
/// d.
struct TransformInputs<'a> {
    inputs: &'a [f32],
    side: usize,
    n_channels: usize,
    transformed: &'a mut [f32],
}

impl WithSimd for TransformInputs<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let TransformInputs {
            inputs,
            side,
            n_channels,
            transformed,
        } = self;
        let n_across = side.div_ceil(OUTPUTS);
        let images = inputs.chunks_exact(side * side * n_channels);
        for (image, transformed) in images.zip(transformed.chunks_exact_mut(n_tiles(side) * NUMBERS * n_channels)) {
            for (tile, numbers) in transformed.chunks_exact_mut(NUMBERS * n_channels).enumerate() {
                // The tile begins one pixel above and to the left of its outputs.
                let (top, left) = (OUTPUTS * (tile / n_across), OUTPUTS * (tile % n_across));
                for channel in (0..n_channels).step_by(LANES) {
                    let mut d = [[[0.0; LANES]; INPUTS]; INPUTS];
                    for (y, row) in d.iter_mut().enumerate() {
                        for (x, value) in row.iter_mut().enumerate() {
                            let (y, x) = (top + y, left + x);
                            if (1..=side).contains(&y) && (1..=side).contains(&x) {
                                let at = ((y - 1) * side + x - 1) * n_channels + channel;
                                *value = *image[at..]
                                    .first_chunk()
                                    .expect("channels come in multiples of the lanes");
                            }
                        }
                    }
                    for row in &mut d {
                        transform_input(row);
                    }
                    for x in 0..INPUTS {
                        let mut column = [[0.0; LANES]; INPUTS];
                        for (value, row) in column.iter_mut().zip(&d) {
                            *value = row[x];
                        }
                        transform_input(&mut column);
                        for (y, value) in column.iter().enumerate() {
                            numbers[(INPUTS * y + x) * n_channels + channel..][..LANES].copy_from_slice(value);
                        }
                    }
                }
            }
        }
    }
}

/// Bᵀ·d of a column d, in its place.
#[inline(always)]
#[expect(
    clippy::needless_range_loop,
    reason = "a lane of six arrays at once, which iterators cannot say"
)]
fn transform_input(t: &mut [Lanes; INPUTS]) {
    for lane in 0..LANES {
        let (d0, d1, d2) = (t[0][lane], t[1][lane], t[2][lane]);
        let (d3, d4, d5) = (t[3][lane], t[4][lane], t[5][lane]);
        let (even, odd) = (d4 - 4.0 * d2, d3 - 4.0 * d1);
        let (even2, odd2) = (d4 - d2, 2.0 * (d3 - d1));
        t[0][lane] = 4.0 * d0 - 5.0 * d2 + d4;
        t[1][lane] = even + odd;
        t[2][lane] = even - odd;
        t[3][lane] = even2 + odd2;
        t[4][lane] = even2 - odd2;
        t[5][lane] = 4.0 * d1 - 5.0 * d3 + d5;
    }
}

/// Transforms products `[n, tiles, 36, channels]` to images `[n, side, side, channels]`:
/// relu(Aᵀ·m·A + bias) of each tile m.
struct TransformOutputs<'a> {
    products: &'a [f32],
    side: usize,
    bias: &'a [f32],
    outputs: &'a mut [f32],
}

impl WithSimd for TransformOutputs<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let TransformOutputs {
            products,
            side,
            bias,
            outputs,
        } = self;
        let n_channels = bias.len();
        let n_across = side.div_ceil(OUTPUTS);
        let images = outputs.chunks_exact_mut(side * side * n_channels);
        for (image, products) in images.zip(products.chunks_exact(n_tiles(side) * NUMBERS * n_channels)) {
            for (tile, numbers) in products.chunks_exact(NUMBERS * n_channels).enumerate() {
                let (top, left) = (OUTPUTS * (tile / n_across), OUTPUTS * (tile % n_across));
                for (channel, bias) in (0..).step_by(LANES).zip(bias.as_chunks::<LANES>().0) {
                    let mut rows = [[[0.0; LANES]; OUTPUTS]; INPUTS];
                    for (y, row) in rows.iter_mut().enumerate() {
                        let mut m = [[0.0; LANES]; INPUTS];
                        for (x, number) in m.iter_mut().enumerate() {
                            let numbers = &numbers[(INPUTS * y + x) * n_channels + channel..];
                            *number = *numbers.first_chunk().expect("channels come in multiples of the lanes");
                        }
                        transform_output(&m, row);
                    }
                    for x in 0..OUTPUTS.min(side - left) {
                        let mut m = [[0.0; LANES]; INPUTS];
                        for (number, row) in m.iter_mut().zip(&rows) {
                            *number = row[x];
                        }
                        let mut column = [[0.0; LANES]; OUTPUTS];
                        transform_output(&m, &mut column);
                        for (y, value) in column.iter().enumerate().take(side - top) {
                            let at = ((top + y) * side + left + x) * n_channels + channel;
                            for ((output, value), bias) in image[at..][..LANES].iter_mut().zip(value).zip(bias) {
                                *output = (value + bias).max(0.0);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Aᵀ·m of a column m.
#[inline(always)]
fn transform_output(m: &[Lanes; INPUTS], y: &mut [Lanes; OUTPUTS]) {
    let [m0, m1, m2, m3, m4, m5] = m;
    for lane in 0..LANES {
        let (sum, difference) = (m1[lane] + m2[lane], m1[lane] - m2[lane]);
        let (sum2, difference2) = (m3[lane] + m4[lane], m3[lane] - m4[lane]);
        y[0][lane] = m0[lane] + sum + sum2;
        y[1][lane] = difference + 2.0 * difference2;
        y[2][lane] = sum + 4.0 * sum2;
        y[3][lane] = difference + 8.0 * difference2 + m5[lane];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_plain_convolution() {
        tch::manual_seed(0);
        let cpu = (Kind::Float, tch::Device::Cpu);
        for (batch, side, n_in, n_out) in [(1, 4, 8, 8), (2, 7, 16, 24), (3, 14, 64, 32), (1, 57, 8, 16)] {
            let x = Tensor::randn([batch, n_in, side, side], cpu);
            let weight = Tensor::randn([n_out, n_in, 3, 3], cpu);
            let bias = Tensor::randn([n_out], cpu);
            let expected = x.conv2d(&weight, Some(&bias), [1], [1], [1], 1).relu();

            let values = |tensor: &Tensor| Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap();
            let filters = transform_filters(&values(&weight.permute([0, 2, 3, 1])), n_in as usize);
            let conv = WinogradConv::new(&filters, &values(&bias), side as usize, batch as usize).unwrap();
            let channels_last = x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
            let found = conv.run(&channels_last).unwrap();
            assert_eq!(found.size(), expected.size());
            let error = (&found - &expected).abs().max().double_value(&[]);
            let scale = expected.abs().max().double_value(&[]);
            assert!(error <= 1e-5 * scale, "{batch} × {n_in} × {side}: {error} of {scale}");
        }
    }
}
