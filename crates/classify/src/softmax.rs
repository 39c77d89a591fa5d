use std::iter::repeat;

use ndarray::Array2;
use pulp::Arch;

/// Turns scores into probabilities in place.
///
/// The largest score is subtracted first, so that no exponential overflows.
pub(crate) fn softmax(scores: &mut [f64]) {
    shifted_softmax(scores);
}

/// Turns scores into probabilities in place, and gives minus the natural logarithm of that of `label`.
///
/// From the scores, so that a probability that rounds to 0 still has a finite loss, and from their differences, so
/// that a loss close to 0 is not lost in the rounding errors of large scores.
pub(crate) fn softmax_loss(scores: &mut [f64], label: usize) -> f64 {
    let score = scores[label];
    let (largest, log_sum) = shifted_softmax(scores);
    (largest - score) + log_sum
}

/// [`softmax`], with the largest score, and the logarithm of the sum of the exponentials of the scores less that.
fn shifted_softmax(scores: &mut [f64]) -> (f64, f64) {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    exponentials(scores, repeat(largest));
    for score in scores.iter() {
        sum += *score;
    }
    for score in scores.iter_mut() {
        *score /= sum;
    }
    (largest, sum.ln())
}

/// exp(score − largest) of each score, in place.
///
/// Matrix products leave the processor's wide registers in use. Until they are cleared, Intel's processors run the
/// system's `exp` many times slower: a small choice of C spent two thirds of its time there. The subtraction uses wide
/// registers, so that the compiler clears them before the first `exp`.
pub(crate) fn exponentials(scores: &mut [f64], largest: impl Iterator<Item = f64>) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (score, largest) in scores.iter_mut().zip(largest) {
                *score -= largest;
            }
            for score in scores.iter_mut() {
                *score = score.exp();
            }
        },
    );
}

/// [`softmax`] of each row of `scores`, `[n, k]`.
pub(crate) fn softmax_rows(mut scores: Array2<f64>) -> Array2<f64> {
    for mut row in scores.rows_mut() {
        softmax(row.as_slice_mut().expect("a row of a new matrix is contiguous"));
    }
    scores
}

/// The place of the largest probability in each row, the first of them if there are several.
pub(crate) fn argmax_rows(probabilities: &Array2<f64>) -> Vec<usize> {
    let largest = |row: ndarray::ArrayView1<'_, f64>| {
        row.iter()
            .enumerate()
            .fold(0, |best, (class, &value)| if value > row[best] { class } else { best })
    };
    probabilities.rows().into_iter().map(largest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_any_size_have_finite_probabilities() {
        let mut scores = [1e6, -1e6, 1e6 - 2.0f64.ln()];
        let loss = softmax_loss(&mut scores.clone(), 1);
        assert!((loss - 2e6 - 1.5f64.ln()).abs() < 1e-9);
        let loss = softmax_loss(&mut scores, 0);
        assert!((loss - 1.5f64.ln()).abs() < 1e-9);
        assert!((scores[0] - 2.0 / 3.0).abs() < 1e-9 && scores[1] == 0.0 && (scores[2] - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_tie_goes_to_the_first_class() {
        assert_eq!(argmax_rows(&ndarray::array![[0.2, 0.4, 0.4], [0.5, 0.5, 0.0]]), [1, 0]);
    }
}
