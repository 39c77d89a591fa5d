//! 3 × 3 convolutions with a quarter of the multiplications: Winograd's minimal filtering F(m × n,
//! 3 × 3), as in Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015,
//! arXiv:1509.09308.
//!
//! Each tile of (m + 2) × (n + 2) inputs is transformed to as many numbers for each channel. They are
//! multiplied by the numbers of the transformed filter, summed over the channels, and transformed to
//! m × n outputs. The sums are a matrix product for each number, which oneDNN computes as one 1 × 1
//! convolution with a group for each.
//!
//! oneDNN's direct convolutions already run at nine tenths of the processor's peak: only fewer
//! multiplications can be faster.

use std::marker::PhantomData;
use std::sync::Arc;

use pulp::{Arch, Simd, WithSimd};
use tch::{Kind, Tensor};

use super::bridge::{self, Activation, PackedConv, Shape};
use crate::Result;

/// A 3 × 3 convolution with stride 1, padding 1 and a ReLU after it, in single precision, channels
/// last.
#[derive(Debug)]
pub(crate) struct WinogradConv {
    products: PackedConv,
    bias: Arc<[f32]>,
    /// Height and width of input and output.
    side: usize,
}

/// A divisor of every number of channels: so many fill the widest registers.
const CHANNELS: usize = 16;

impl WinogradConv {
    /// A convolution of inputs `[batch, in, side, side]`. `weight` is `[numbers of a tile, out, in]`,
    /// the result of [`transform_filters`] for this side.
    ///
    /// # Panics
    /// If the numbers of channels are not multiples of 16.
    pub(crate) fn new(weight: &[f32], bias: &[f32], side: usize, batch: usize) -> Result<Self> {
        let tiles = Tiles::of(side);
        let (numbers, n_out) = (tiles.n_numbers(), bias.len());
        let n_in = weight.len() / (numbers * n_out);
        assert!(
            n_in.is_multiple_of(CHANNELS) && n_out.is_multiple_of(CHANNELS),
            "{n_in} to {n_out} channels"
        );
        let weight = Tensor::f_from_slice(weight)?.f_reshape([(numbers * n_out) as i64, n_in as i64, 1, 1])?;
        let zero = Tensor::f_zeros([(numbers * n_out) as i64], (Kind::Float, tch::Device::Cpu))?;
        let shape = Shape {
            stride: 1,
            padding: 0,
            groups: numbers as i64,
        };
        let input = [1, (numbers * n_in) as i64, 1, (batch * tiles.n(side)) as i64];
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
        match Tiles::of(self.side) {
            Tiles::FourByTwo => self.run_in::<Four, Two>(x),
            Tiles::Four => self.run_in::<Four, Four>(x),
            Tiles::Five => self.run_in::<Five, Five>(x),
        }
    }

    /// The same in tiles of the outputs of `V`, from top to bottom, by those of `H`.
    fn run_in<V: Filtering, H: Filtering>(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.f_permute([0, 2, 3, 1])?;
        let (batch, n_in, n_out) = (x.size()[0], x.size()[3], self.bias.len() as i64);
        let tiles = Tiles::of(self.side);
        let shape = [1, 1, batch * tiles.n(self.side) as i64, tiles.n_numbers() as i64 * n_in];
        let transformed = bridge::filled(shape, |transformed| {
            Arch::new().dispatch(TransformInputs {
                inputs: bridge::values(&x),
                side: self.side,
                n_channels: n_in as usize,
                transformed,
                tile: Tile::<V, H>::NEW,
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
                tile: Tile::<V, H>::NEW,
            });
        })?;
        Ok(y.f_permute([0, 3, 1, 2])?)
    }
}

/// How images are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tiles {
    /// Of 4 × 2 outputs: larger ones have so many weights that reading these takes longer than
    /// multiplying, where few tiles share them.
    FourByTwo,
    /// Of 4 × 4 outputs.
    Four,
    /// Of 5 × 5 outputs, where these cover the image with fewer numbers. They are half as precise.
    Five,
}

impl Tiles {
    /// The fastest for images of this side.
    fn of(side: usize) -> Self {
        let n_numbers = |tiles: Tiles| tiles.n(side) * tiles.n_numbers();
        if side <= 9 {
            Tiles::FourByTwo
        } else if n_numbers(Tiles::Five) < n_numbers(Tiles::Four) {
            Tiles::Five
        } else {
            Tiles::Four
        }
    }

    /// The outputs of a tile from top to bottom and from left to right.
    fn outputs(self) -> [usize; 2] {
        match self {
            Tiles::FourByTwo => [Four::M, Two::M],
            Tiles::Four => [Four::M; 2],
            Tiles::Five => [Five::M; 2],
        }
    }

    /// The number of tiles of an image.
    fn n(self, side: usize) -> usize {
        self.outputs().map(|m| side.div_ceil(m)).iter().product()
    }

    /// The numbers of a transformed tile, for each channel.
    fn n_numbers(self) -> usize {
        self.outputs().map(|m| m + 2).iter().product()
    }

    /// Along the sides of a tile.
    fn matrices(self) -> [&'static Matrices; 2] {
        match self {
            Tiles::FourByTwo => [&Four::MATRICES, &Two::MATRICES],
            Tiles::Four => [&Four::MATRICES; 2],
            Tiles::Five => [&Five::MATRICES; 2],
        }
    }
}

/// F(m, 3) along one side of a tile.
trait Filtering {
    /// The number of outputs, of `M + 2` inputs.
    const M: usize;
    const MATRICES: Matrices;
}

struct Two;
struct Four;
struct Five;

impl Filtering for Two {
    const M: usize = 2;
    const MATRICES: Matrices = Matrices::new(&[0.0, 1.0, -1.0]);
}

impl Filtering for Four {
    const M: usize = 4;
    const MATRICES: Matrices = Matrices::new(&[0.0, 1.0, -1.0, 2.0, -2.0]);
}

impl Filtering for Five {
    const M: usize = 5;
    const MATRICES: Matrices = Matrices::new(&[0.0, 1.0, -1.0, 0.5, -0.5, 2.0]);
}

/// The most inputs of a [`Filtering`].
const MOST: usize = 7;

type Matrix = [[f32; MOST]; MOST];

/// Aᵀ·((G·g) ⊙ (Bᵀ·d)) are m outputs of m + 2 inputs d and the three factors g of a filter. What is
/// left of each matrix is zero.
struct Matrices {
    /// Bᵀ, `[m + 2, m + 2]`.
    inputs: Matrix,
    /// G, `[m + 2, 3]`.
    factors: [[f64; 3]; MOST],
    /// Aᵀ, `[m, m + 2]`.
    outputs: Matrix,
}

impl Matrices {
    /// By the algorithm of Cook and Toom for m + 1 points and infinity. The outputs are the
    /// transpose of a product of polynomials: both are evaluated at the points, multiplied there, and
    /// the product is interpolated (Blahut, "Fast Algorithms for Signal Processing", 2010, chapter 5).
    const fn new(points: &[f64]) -> Self {
        let n = points.len() + 1;
        let mut matrices = Matrices {
            inputs: [[0.0; MOST]; MOST],
            factors: [[0.0; 3]; MOST],
            outputs: [[0.0; MOST]; MOST],
        };
        let mut i = 0;
        while i < n {
            // Π (x − p) over the other points, by its coefficients; at the point itself, its value.
            let mut polynomial = [0.0; MOST];
            polynomial[0] = 1.0;
            let (mut degree, mut value) = (0, 1.0);
            let mut other = 0;
            while other < points.len() {
                if other != i {
                    let mut k = degree + 1;
                    while k > 0 {
                        polynomial[k] = polynomial[k - 1] - points[other] * polynomial[k];
                        k -= 1;
                    }
                    polynomial[0] *= -points[other];
                    degree += 1;
                    if i < points.len() {
                        value *= points[i] - points[other];
                    }
                }
                other += 1;
            }
            let mut power = 1.0;
            let mut k = 0;
            while k < n {
                matrices.inputs[i][k] = polynomial[k] as f32;
                if i < points.len() {
                    if k < 3 {
                        matrices.factors[i][k] = power / value;
                    }
                    if k + 2 < n {
                        matrices.outputs[k][i] = power as f32;
                    }
                    power *= points[i];
                }
                k += 1;
            }
            i += 1;
        }
        matrices.factors[n - 1][2] = 1.0;
        matrices.outputs[n - 3][n - 1] = 1.0;
        matrices
    }
}

/// Transforms filters `[out, 3, 3, in]` for images of this side to `[numbers of a tile, out, in]`:
/// G·g·Gᵀ of each filter g, in double precision.
pub(crate) fn transform_filters(filters: &[f32], n_in: usize, side: usize) -> Vec<f32> {
    let tiles = Tiles::of(side);
    let [vertical, horizontal] = tiles.matrices();
    let [height, width] = tiles.outputs().map(|m| m + 2);
    let n_out = filters.len() / (9 * n_in);
    let mut transformed = vec![0.0; height * width * n_out * n_in];
    for (output, filter) in filters.chunks_exact(9 * n_in).enumerate() {
        for input in 0..n_in {
            let g = |y: usize, x: usize| f64::from(filter[(3 * y + x) * n_in + input]);
            for (y, row) in vertical.factors[..height].iter().enumerate() {
                let row = [0, 1, 2].map(|x| row[0] * g(0, x) + row[1] * g(1, x) + row[2] * g(2, x));
                for (x, column) in horizontal.factors[..width].iter().enumerate() {
                    let number = row[0] * column[0] + row[1] * column[1] + row[2] * column[2];
                    transformed[((width * y + x) * n_out + output) * n_in + input] = number as f32;
                }
            }
        }
    }
    transformed
}

/// A tile of the outputs of `V`, from top to bottom, by those of `H`.
struct Tile<V, H>(PhantomData<(V, H)>);

impl<V: Filtering, H: Filtering> Tile<V, H> {
    const NEW: Self = Tile(PhantomData);

    /// The numbers of a transformed tile, for each channel.
    fn n_numbers(&self) -> usize {
        (V::M + 2) * (H::M + 2)
    }

    /// The uppermost and leftmost outputs of the tiles of an image.
    fn places(&self, side: usize) -> impl Iterator<Item = (usize, usize)> + use<V, H> {
        let tops = (0..side).step_by(V::M);
        tops.flat_map(move |top| (0..side).step_by(H::M).map(move |left| (top, left)))
    }
}

/// Transforms images `[n, side, side, channels]` to `[n, tiles, numbers, channels]`: Bᵀ·d·B of each
/// tile d.
struct TransformInputs<'a, V, H> {
    inputs: &'a [f32],
    side: usize,
    n_channels: usize,
    transformed: &'a mut [f32],
    tile: Tile<V, H>,
}

impl<V: Filtering, H: Filtering> WithSimd for TransformInputs<'_, V, H> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let TransformInputs {
            inputs,
            side,
            n_channels,
            transformed,
            tile,
        } = self;
        let zero = simd.splat_f32s(0.0);
        let images = inputs.chunks_exact(side * side * n_channels);
        let places = images.flat_map(|image| tile.places(side).map(move |place| (image, place)));
        let tiles = transformed.chunks_exact_mut(tile.n_numbers() * n_channels);
        for (numbers, (image, (top, left))) in tiles.zip(places) {
            let (image, numbers) = (S::as_simd_f32s(image).0, S::as_mut_simd_f32s(numbers).0);
            let n_registers = n_channels / S::F32_LANES;
            for register in 0..n_registers {
                // Columns of the tile's rows, transformed.
                let mut columns = [[zero; MOST]; MOST];
                for y in 0..V::M + 2 {
                    let mut d = [zero; MOST];
                    for (x, d) in d.iter_mut().enumerate().take(H::M + 2) {
                        // The tile begins one pixel above and to the left of its outputs.
                        let (y, x) = (top + y, left + x);
                        if (1..=side).contains(&y) && (1..=side).contains(&x) {
                            *d = image[((y - 1) * side + x - 1) * n_registers + register];
                        }
                    }
                    let row = product(simd, &H::MATRICES.inputs, &d);
                    for (column, value) in columns.iter_mut().zip(row) {
                        column[y] = value;
                    }
                }
                for (x, column) in columns.iter().enumerate().take(H::M + 2) {
                    let column = product(simd, &V::MATRICES.inputs, column);
                    for (y, &number) in column.iter().enumerate().take(V::M + 2) {
                        numbers[((H::M + 2) * y + x) * n_registers + register] = number;
                    }
                }
            }
        }
    }
}

/// Transforms products `[n, tiles, numbers, channels]` to images `[n, side, side, channels]`:
/// relu(Aᵀ·m·A + bias) of each tile m.
struct TransformOutputs<'a, V, H> {
    products: &'a [f32],
    side: usize,
    bias: &'a [f32],
    outputs: &'a mut [f32],
    tile: Tile<V, H>,
}

impl<V: Filtering, H: Filtering> WithSimd for TransformOutputs<'_, V, H> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let TransformOutputs {
            products,
            side,
            bias,
            outputs,
            tile,
        } = self;
        let zero = simd.splat_f32s(0.0);
        let n_channels = bias.len();
        let n_registers = n_channels / S::F32_LANES;
        let bias = S::as_simd_f32s(bias).0;
        let of_image = tile.places(side).count() * tile.n_numbers() * n_channels;
        let images = outputs.chunks_exact_mut(side * side * n_channels);
        for (image, products) in images.zip(products.chunks_exact(of_image)) {
            let image = S::as_mut_simd_f32s(image).0;
            let tiles = products.chunks_exact(tile.n_numbers() * n_channels);
            for ((top, left), numbers) in tile.places(side).zip(tiles) {
                let numbers = S::as_simd_f32s(numbers).0;
                for (register, &bias) in bias.iter().enumerate() {
                    let mut columns = [[zero; MOST]; MOST];
                    for y in 0..V::M + 2 {
                        let mut m = [zero; MOST];
                        for (x, m) in m.iter_mut().enumerate().take(H::M + 2) {
                            *m = numbers[((H::M + 2) * y + x) * n_registers + register];
                        }
                        let row = product(simd, &H::MATRICES.outputs, &m);
                        for (column, value) in columns.iter_mut().zip(row) {
                            column[y] = value;
                        }
                    }
                    for (x, column) in columns.iter().enumerate().take(H::M.min(side - left)) {
                        let column = product(simd, &V::MATRICES.outputs, column);
                        for (y, &value) in column.iter().enumerate().take(V::M.min(side - top)) {
                            let at = ((top + y) * side + left + x) * n_registers + register;
                            image[at] = simd.max_f32s(simd.add_f32s(value, bias), zero);
                        }
                    }
                }
            }
        }
    }
}

/// matrix · x. The compiler knows the matrix, and leaves out what is zero.
#[inline(always)]
fn product<S: Simd>(simd: S, matrix: &Matrix, x: &[S::f32s; MOST]) -> [S::f32s; MOST] {
    // Adding to −0 changes nothing.
    let mut sums = [simd.splat_f32s(-0.0); MOST];
    for (sum, row) in sums.iter_mut().zip(matrix) {
        for (&factor, &x) in row.iter().zip(x) {
            if factor != 0.0 {
                *sum = simd.add_f32s(*sum, simd.mul_f32s(simd.splat_f32s(factor), x));
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of Lavin and Gray, section 4.3.
    #[test]
    fn matrices_are_those_of_the_paper() {
        let Matrices {
            inputs,
            factors,
            outputs,
        } = Four::MATRICES;
        let expected = [
            [4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
            [0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
            [0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
            [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
            [0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
            [0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
        ];
        assert_eq!(inputs.map(|row| row[..6].to_vec())[..6], expected);
        let expected = [
            [1.0 / 4.0, 0.0, 0.0],
            [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
            [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
            [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
            [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
            [0.0, 0.0, 1.0],
        ];
        assert_eq!(factors[..6], expected);
        let expected = [
            [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
            [0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
            [0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
            [0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
        ];
        assert_eq!(outputs.map(|row| row[..6].to_vec())[..4], expected);
    }

    #[test]
    fn each_image_has_the_tiles_that_are_fastest() {
        let sides = [7, 9, 14, 18, 28, 36, 56];
        let tiles = sides.map(Tiles::of);
        use Tiles::{Five, Four, FourByTwo};
        assert_eq!(tiles, [FourByTwo, FourByTwo, Five, Five, Four, Four, Four]);
    }

    #[test]
    fn equals_the_plain_convolution() {
        tch::manual_seed(0);
        let cpu = (Kind::Float, tch::Device::Cpu);
        for (batch, side, n_in, n_out) in [(1, 4, 16, 16), (2, 7, 32, 48), (3, 14, 64, 32), (1, 57, 16, 32)] {
            let x = Tensor::randn([batch, n_in, side, side], cpu);
            let weight = Tensor::randn([n_out, n_in, 3, 3], cpu);
            let bias = Tensor::randn([n_out], cpu);
            let expected = x.conv2d(&weight, Some(&bias), [1], [1], [1], 1).relu();

            let values = |tensor: &Tensor| Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap();
            let filters = transform_filters(&values(&weight.permute([0, 2, 3, 1])), n_in as usize, side as usize);
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
