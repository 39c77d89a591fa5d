//! The user ends the work while it goes on.

use std::sync::atomic::{AtomicU64, Ordering};

use luthier_artifact::{Digest, ImageRows, Observer, Split, Task};
use luthier_eval::{
    BOOTSTRAP_RESAMPLES, DuplicatesConfig, Error, EvaluateConfig, ImageRef, NearestImages, NeighboursConfig,
    Predictions, Result,
};
use ndarray::Array2;

/// Interrupts when it is asked for the time after `left`.
struct Impatient {
    left: AtomicU64,
}

impl Observer for Impatient {
    fn task(&self, _: &str, _: u64) -> Box<dyn Task + '_> {
        Box::new(())
    }

    fn is_interrupted(&self) -> bool {
        let ask = |left: u64| left.checked_sub(1);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, ask)
            .is_err()
    }
}

/// Work ends wherever it is interrupted, and asks at least so many times.
#[track_caller]
fn check(fewest: usize, work: impl Fn(&dyn Observer) -> Result<()>) {
    let after = |left: u64| Impatient {
        left: AtomicU64::new(left),
    };
    let patient = after(u64::MAX);
    work(&patient).unwrap();
    let n_asked = u64::MAX - patient.left.into_inner();
    assert!(n_asked >= fewest as u64, "{n_asked}");
    for left in [0, n_asked / 2, n_asked - 1] {
        let error = work(&after(left)).unwrap_err();
        assert!(
            matches!(error, Error::Interrupted(_)),
            "after {left} of {n_asked}: {error}"
        );
    }
}

/// Rows of numbers from 0 to 255 that look random.
fn rows(n: usize, width: usize) -> Array2<f32> {
    Array2::from_shape_fn((n, width), |(row, column)| {
        let digest = Digest::of(&[row.to_le_bytes(), column.to_le_bytes()].concat());
        f32::from(digest.as_bytes()[0])
    })
}

fn digests(n: usize) -> Vec<Digest> {
    (0..n).map(|row| Digest::of(&row.to_le_bytes())).collect()
}

#[test]
fn a_search_for_duplicates_is_interrupted_between_two_images_and_between_two_pairs() {
    const N: usize = 100;
    // Each with a copy.
    let hashes = rows(N, 192);
    let hashes = Array2::from_shape_fn((2 * N, 192), |(row, column)| hashes[[row / 2, column]]);
    let features = Array2::from_elem((2 * N, 4), 1.0f32);
    let images = ImageRows {
        images: digests(2 * N),
        features: digests(2 * N),
        n_features: 4,
        hashes: digests(2 * N),
        n_hash_values: 192,
    };
    check(3 * N, |observer| {
        let found = DuplicatesConfig::default().run(&images, &features.view(), &hashes.view(), observer)?;
        assert_eq!(found.groups.len(), N);
        Ok(())
    });
}

#[test]
fn a_search_for_neighbours_is_interrupted_between_two_blocks() {
    let (train, test) = (rows(5_000, 4), rows(10, 4));
    let asked: Vec<ImageRef> = (0..10)
        .map(|row| ImageRef {
            split: Split::Test,
            row,
        })
        .collect();
    check(3, |observer| {
        let config = NeighboursConfig::default();
        let found = config.run(&train.view(), &test.view(), &asked, NearestImages::default(), observer)?;
        assert_eq!(found.0.len(), 10);
        Ok(())
    });
}

#[test]
fn an_evaluation_is_interrupted_between_two_resamples() {
    let probabilities = Array2::from_elem((6, 2), 0.5);
    let predictions = Predictions {
        classes: &["drum", "violin"].map(str::to_owned),
        images: &digests(6),
        truth: &[0, 1, 0, 1, 0, 1],
        probabilities: probabilities.view(),
        uncalibrated: probabilities.view(),
    };
    let config = EvaluateConfig {
        confidence: 0.95,
        seed: 0,
    };
    check(BOOTSTRAP_RESAMPLES, |observer| {
        config.run(Split::Test, &predictions, None, observer).map(drop)
    });
}
