//! How sure a classifier may be, judged on images that were held out: temperature and thresholds.

use luthier_features::check_finite;
use ndarray::{Array2, ArrayView2};

use crate::softmax::{argmax_rows, softmax_rows};
use crate::{Error, Result};

/// A temperature by which scores are divided before they become probabilities: above 1 for a classifier that is too
/// sure of itself, below for one that is not sure enough. The most probable class stays the same.
///
/// Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", 2017.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature(f64);

impl Temperature {
    /// The coldest and the hottest: scores with hardly an error, or without any truth, may ask for more than that.
    const LIMITS: [f64; 2] = [1e-2, 1e2];

    /// The temperature of the smallest mean log loss on held-out `scores`, `[n, k]`, with these labels; 1 if all of them
    /// are right, for then the loss falls without end as the temperature does, and nothing tells how sure is too sure.
    ///
    /// The loss is convex in β = 1/T: its derivative, the mean of `Σ p s - s[label]`, grows with β, and its root is
    /// bracketed and found by Newton's method.
    ///
    /// # Errors
    /// [`Error::Labels`] unless there is a label a row, [`Error::TooFewRows`] without rows,
    /// [`Error::LabelOutOfRange`], [`Error::Features`] if a score is infinite or not a number.
    pub fn fit(scores: ArrayView2<'_, f64>, labels: &[usize]) -> Result<Self> {
        check(scores, labels)?;
        if argmax_rows(&scores.to_owned()) == labels {
            return Ok(Temperature(1.0));
        }
        let [coldest, hottest] = Temperature::LIMITS;
        let (mut low, mut high, mut beta) = (hottest.recip(), coldest.recip(), 1.0);
        // Each step at least halves the bracket, or is Newton's and squares the error.
        for _ in 0..100 {
            let (slope, curvature) = derivatives(scores, labels, beta);
            if slope > 0.0 {
                high = beta;
            } else {
                low = beta;
            }
            let newton = beta - slope / curvature;
            let next = if newton > low && newton < high {
                newton
            } else {
                0.5 * (low + high)
            };
            let step = (next - beta).abs();
            beta = next;
            if step <= 1e-12 * beta {
                break;
            }
        }
        Ok(Temperature(beta.recip()))
    }

    /// The temperature, positive.
    pub fn value(self) -> f64 {
        self.0
    }

    /// The probabilities, `[n, k]`, that `scores`, `[n, k]`, stand for.
    pub fn probabilities(self, scores: ArrayView2<'_, f64>) -> Array2<f64> {
        softmax_rows((&scores / self.0).as_standard_layout().into_owned())
    }
}

/// First and second derivative of the mean log loss by β, where scores are multiplied by β.
fn derivatives(scores: ArrayView2<'_, f64>, labels: &[usize], beta: f64) -> (f64, f64) {
    let probabilities = Temperature(beta.recip()).probabilities(scores);
    let (mut slope, mut curvature) = (0.0, 0.0);
    for ((scores, probabilities), &label) in scores.rows().into_iter().zip(probabilities.rows()).zip(labels) {
        let mean = scores.dot(&probabilities);
        slope += mean - scores[label];
        curvature += scores
            .iter()
            .zip(probabilities)
            .map(|(score, p)| p * (score - mean).powi(2))
            .sum::<f64>();
    }
    let n = labels.len() as f64;
    (slope / n, curvature / n)
}

/// One threshold for each of several measures of the same images: the largest of a common rank such that at least this
/// `share` of the images reach all of them.
///
/// Of held-out images' probabilities and their nearness to a class these are the values below which a prediction is
/// better not made, if that share of known images is to be kept.
///
/// # Errors
/// [`Error::Share`] unless `0 < share ≤ 1`, [`Error::TooFewRows`] without values.
///
/// # Panics
/// If the measures have different lengths.
pub fn thresholds_that_keep(measures: &[&[f64]], share: f64) -> Result<Vec<f64>> {
    let is_share = share > 0.0 && share <= 1.0;
    if !is_share {
        return Err(Error::Share { found: share });
    }
    let n = measures.first().map_or(0, |values| values.len());
    if n == 0 {
        return Err(Error::TooFewRows { expected: 1, found: 0 });
    }
    let ascending: Vec<Vec<f64>> = (measures.iter())
        .map(|values| {
            let mut values = values.to_vec();
            values.sort_unstable_by(f64::total_cmp);
            values
        })
        .collect();
    // How many images have less of a measure than this one, in the measure of which it has least.
    let mut ranks = vec![n; n];
    for (values, ascending) in measures.iter().zip(&ascending) {
        for (rank, value) in ranks.iter_mut().zip(*values) {
            *rank = (*rank).min(ascending.partition_point(|other| other < value));
        }
    }
    ranks.sort_unstable_by(|a, b| b.cmp(a));
    // 0.95 · 20 is a little more than 19 in floating point, and 19 are meant.
    let kept = (share * n as f64 * (1.0 - f64::EPSILON)).ceil() as usize;
    let rank = ranks[kept.clamp(1, n) - 1];
    Ok(ascending.iter().map(|values| values[rank]).collect())
}

/// The probability of the most probable class of each row of `probabilities`, `[n, k]`: `[n]`.
pub fn confidences(probabilities: ArrayView2<'_, f64>) -> Vec<f64> {
    let rows = probabilities.rows().into_iter();
    rows.map(|row| row.iter().copied().fold(0.0, f64::max)).collect()
}

fn check(scores: ArrayView2<'_, f64>, labels: &[usize]) -> Result<()> {
    let (rows, n_classes) = scores.dim();
    if labels.len() != rows {
        return Err(Error::Labels {
            rows,
            labels: labels.len(),
        });
    }
    if rows == 0 {
        return Err(Error::TooFewRows { expected: 1, found: 0 });
    }
    if let Some((row, &label)) = labels.iter().enumerate().find(|&(_, &label)| label >= n_classes) {
        return Err(Error::LabelOutOfRange { row, label, n_classes });
    }
    Ok(check_finite(scores, 0)?)
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    /// Scores, and labels drawn from the probabilities they stand for.
    fn drawn(n: usize) -> (Array2<f64>, Vec<usize>) {
        let mut state = 1u64;
        let mut uniform = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1u64 << 24) as f64
        };
        let scores = Array2::from_shape_simple_fn((n, 4), || 6.0 * uniform());
        let labels = softmax_rows(scores.clone())
            .rows()
            .into_iter()
            .map(|row| {
                let mut left = uniform();
                row.iter()
                    .position(|p| {
                        left -= p;
                        left < 0.0
                    })
                    .unwrap_or(3)
            })
            .collect();
        (scores, labels)
    }

    #[test]
    fn scores_that_are_too_large_are_divided_by_how_much_too_large_they_are() {
        let (scores, labels) = drawn(20_000);
        for factor in [0.25, 1.0, 3.0] {
            let temperature = Temperature::fit((&scores * factor).view(), &labels).unwrap();
            assert!(
                (temperature.value() / factor - 1.0).abs() < 0.03,
                "{factor}: {temperature:?}"
            );
        }
    }

    #[test]
    fn the_temperature_is_where_the_loss_has_no_slope() {
        let (scores, labels) = drawn(300);
        let temperature = Temperature::fit((&scores * 2.0).view(), &labels).unwrap();
        let (slope, curvature) = derivatives((&scores * 2.0).view(), &labels, temperature.value().recip());
        assert!(slope.abs() < 1e-12 && curvature > 0.0, "{slope:e}, {curvature}");
    }

    #[test]
    fn scores_without_an_error_are_left_alone_and_without_truth_stop_at_the_limit() {
        let scores = array![[1.0, 0.0], [0.0, 1.0]];
        let [_, hottest] = Temperature::LIMITS;
        let right = Temperature::fit(scores.view(), &[0, 1]).unwrap().value();
        assert_eq!(right, 1.0);
        let wrong = Temperature::fit(scores.view(), &[1, 0]).unwrap().value();
        assert!((wrong / hottest - 1.0).abs() < 1e-6, "{wrong}");
        let none = Temperature::fit(Array2::zeros((2, 2)).view(), &[0, 1]).unwrap().value();
        assert!(none.is_finite(), "{none}");
    }

    #[test]
    fn a_threshold_keeps_the_share_asked_for_and_no_more_than_it_must() {
        let values: Vec<f64> = (1..=20).map(|value| f64::from(value) / 20.0).collect();
        for (share, kept) in [(0.9, 18), (0.95, 19), (0.99, 20), (1.0, 20), (0.01, 1)] {
            let threshold = thresholds_that_keep(&[&values], share).unwrap()[0];
            assert_eq!(
                values.iter().filter(|&&value| value >= threshold).count(),
                kept,
                "{share}"
            );
        }
        assert_eq!(
            thresholds_that_keep(&[&values], 0.0).unwrap_err().to_string(),
            "share to keep is 0, expected more than 0 and at most 1"
        );
        assert!(thresholds_that_keep(&[&values], f64::NAN).is_err());
        assert_eq!(
            thresholds_that_keep(&[&[]], 0.9).unwrap_err().to_string(),
            "0 rows, expected at least 1"
        );
    }

    #[test]
    fn thresholds_of_several_measures_keep_the_share_together() {
        // Where the one is large the other is small: each alone would have to keep 15 of 20.
        let up: Vec<f64> = (0..20).map(f64::from).collect();
        let down: Vec<f64> = up.iter().map(|value| 100.0 - value).collect();
        let thresholds = thresholds_that_keep(&[&up, &down], 0.5).unwrap();
        assert_eq!(thresholds, [5.0, 86.0]);
        let kept = up.iter().zip(&down).filter(|(up, down)| **up >= 5.0 && **down >= 86.0);
        assert_eq!(kept.count(), 10);
    }

    #[test]
    fn labels_that_do_not_fit_the_scores_are_errors() {
        let scores = array![[1.0, 0.0], [0.0, 1.0]];
        assert!(matches!(
            Temperature::fit(scores.view(), &[0]),
            Err(Error::Labels { rows: 2, labels: 1 })
        ));
        assert!(matches!(
            Temperature::fit(scores.view(), &[0, 2]),
            Err(Error::LabelOutOfRange {
                row: 1,
                label: 2,
                n_classes: 2
            })
        ));
        assert!(matches!(
            Temperature::fit(array![[f64::NAN, 0.0]].view(), &[0]),
            Err(Error::Features(luthier_features::Error::NotFinite {
                row: 0,
                column: 0,
                ..
            }))
        ));
    }
}
