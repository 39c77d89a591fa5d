//! The whole crate against scikit-learn's golden numbers, its laws, and what its solvers owe each other.

mod golden;
mod laws;
mod moments;
mod solvers;

use ndarray::Array2;

/// Correlated columns with falling variances, the same on every machine: `[n, d]`, from a linear congruential generator.
fn synthetic(n: usize, d: usize) -> Array2<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
    };
    let factors = Array2::from_shape_simple_fn((n, 5), &mut uniform);
    let loadings = Array2::from_shape_simple_fn((5, d), &mut uniform);
    let noise = Array2::from_shape_simple_fn((n, d), &mut uniform);
    (factors.dot(&loadings) + noise * 0.3).mapv(|value| value as f32)
}
