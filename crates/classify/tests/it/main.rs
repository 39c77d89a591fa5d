//! The whole crate against scikit-learn's golden numbers, its laws, what its solvers owe each other, and real features.

mod choice;
mod golden;
mod interrupt;
mod model;
mod music10;
mod odd;
mod solvers;

use luthier_artifact::{Digest, ExtractorInfo, FeatureTable};
use ndarray::Array2;

/// Classes of `per_class` overlapping rows in `d` correlated columns, the same on every machine.
fn synthetic(n_classes: usize, per_class: usize, d: usize) -> FeatureTable {
    let mut state = 1u64;
    let mut uniform = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
    };
    let n = n_classes * per_class;
    let labels: Vec<usize> = (0..n).map(|row| row / per_class).collect();
    let centres = Array2::from_shape_simple_fn((n_classes, d), &mut uniform);
    let noise = Array2::from_shape_simple_fn((n, d), &mut uniform);
    let mixing = Array2::from_shape_simple_fn((d, d), &mut uniform);
    let mut features = noise.dot(&mixing);
    for (mut row, &label) in features.rows_mut().into_iter().zip(&labels) {
        row += &centres.row(label);
    }
    FeatureTable {
        classes: (0..n_classes).map(|class| format!("class-{class}")).collect(),
        extractor: ExtractorInfo {
            views: vec!["squash".into()],
            pooling: "mean".into(),
            combine: "mean".into(),
            decode: "scaled".into(),
            weights: "untrained".into(),
            weights_sha256: "00".into(),
            precision: "fp32".into(),
        },
        images: (0..n).map(|row| Digest::of(&row.to_le_bytes())).collect(),
        features: features.mapv(|value| value as f32),
        labels,
    }
}

/// The result of `work` in a pool of this many threads.
fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap()
        .install(work)
}

/// The largest magnitude of a difference between the entries of `a` and `b`.
fn difference(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    assert_eq!(a.dim(), b.dim());
    a.iter().zip(b).fold(0.0, |largest, (a, b)| largest.max((a - b).abs()))
}
