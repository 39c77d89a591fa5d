use serde::{Deserialize, Serialize};

/// The number of bins, as Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", 2017, have it.
const BINS: usize = 15;

/// Whether predictions are right as often as their probabilities say.
///
/// Predictions are put into 15 bins of equal width by the probability of the most probable class: Naeini, Cooper and
/// Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reliability {
    /// The expected calibration error, 0 to 1: by how much probability and share of right predictions differ in a bin, on
    /// average over the images.
    pub calibration_error: f64,
    /// The bins with images in them, by ascending probability.
    pub bins: Vec<ReliabilityBin>,
}

/// Predictions of about the same probability.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReliabilityBin {
    /// The number of images, at least 1.
    pub n: usize,
    /// The mean probability of their predicted classes.
    pub probability: f64,
    /// The share of them that are predicted rightly.
    pub accuracy: f64,
}

impl Reliability {
    /// The reliability of predictions, at least one: of each the probability of the predicted class, and whether it is
    /// right.
    pub(crate) fn of(predictions: impl Iterator<Item = (f64, bool)>) -> Self {
        let mut sums = [(0usize, 0.0, 0usize); BINS];
        for (probability, is_correct) in predictions {
            // A bin takes in its upper end, as with Guo and others.
            let bin = ((probability * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
            let (n, sum, right) = &mut sums[bin];
            *n += 1;
            *sum += probability;
            *right += usize::from(is_correct);
        }
        let bins: Vec<ReliabilityBin> = (sums.into_iter())
            .filter(|&(n, ..)| n > 0)
            .map(|(n, sum, right)| ReliabilityBin {
                n,
                probability: sum / n as f64,
                accuracy: right as f64 / n as f64,
            })
            .collect();
        let gaps = bins
            .iter()
            .map(|bin| bin.n as f64 * (bin.probability - bin.accuracy).abs());
        Reliability {
            calibration_error: gaps.sum::<f64>() / bins.iter().map(|bin| bin.n).sum::<usize>() as f64,
            bins,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calibration_error_is_the_mean_gap_over_the_bins() {
        // Of the two in the bin from 11/15 to 12/15 one is right, and so is the one at 0.6, the upper end of its bin.
        let found = Reliability::of([(0.8, true), (0.75, false), (0.6, true)].into_iter());
        assert!((found.calibration_error - (0.8 + 0.75 - 1.0 + 1.0 - 0.6) / 3.0).abs() < 1e-12);
        let bin = |n, probability, accuracy| ReliabilityBin {
            n,
            probability,
            accuracy,
        };
        assert_eq!(found.bins, [bin(1, 0.6, 1.0), bin(2, 0.775, 0.5)]);
    }
}
