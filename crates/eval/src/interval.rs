use luthier_artifact::Observer;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal};

use crate::metrics::Counts;
use crate::{Error, Result};

/// How many resamples the bootstrap draws.
pub const BOOTSTRAP_RESAMPLES: usize = 1_000;

/// A figure and its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The figure itself.
    pub value: f64,
    /// The lower end of the interval.
    pub lower: f64,
    /// The upper end of the interval.
    pub upper: f64,
}

/// The share `hits / n` with Wilson's score interval, without continuity correction.
///
/// `n` is at least 1 and `confidence` lies between 0 and 1.
///
/// Wilson, E. B. (1927), Probable inference, the law of succession, and statistical inference;
/// the same as SciPy's `binomtest(hits, n).proportion_ci(confidence, method="wilson")`.
pub(crate) fn wilson(hits: u64, n: u64, confidence: f64) -> Estimate {
    let value = hits as f64 / n as f64;
    let total = n as f64;
    let z = normal_quantile(0.5 + 0.5 * confidence);
    let scale = 2.0 * (total + z * z);
    let center = (2.0 * total * value + z * z) / scale;
    let half_width = z / scale * (4.0 * total * value * (1.0 - value) + z * z).sqrt();
    // Exactly 0 and 1 at the ends, where rounding would leave a hair's breadth.
    let lower = if hits == 0 { 0.0 } else { center - half_width };
    let upper = if hits == n { 1.0 } else { center + half_width };
    Estimate { value, lower, upper }
}

/// Macro F1 with the percentile interval of the ordinary bootstrap.
///
/// Each of [`BOOTSTRAP_RESAMPLES`] resamples draws as many rows as there are, with replacement, and takes the macro F1 over
/// all classes; the interval reaches from the `(1 - confidence) / 2` to the `(1 + confidence) / 2` quantile of these,
/// interpolated linearly as `numpy.quantile` does.
/// Rows are drawn with ChaCha8, so that a seed gives the same interval on every machine.
/// The observer is asked before each resample.
///
/// Efron, B. and Tibshirani, R. J. (1993), An Introduction to the Bootstrap, chapter 13.
pub(crate) fn bootstrap_macro_f1(
    rows: &[(usize, usize)],
    n_classes: usize,
    confidence: f64,
    seed: u64,
    observer: &dyn Observer,
) -> Result<Estimate> {
    let mut counts = Counts::new(n_classes);
    rows.iter().for_each(|&(truth, predicted)| counts.add(truth, predicted));
    let resamples = resampled_macro_f1(rows, n_classes, seed, observer)?;
    Ok(Estimate {
        value: counts.macro_f1(),
        lower: quantile(&resamples, 0.5 - 0.5 * confidence),
        upper: quantile(&resamples, 0.5 + 0.5 * confidence),
    })
}

/// The macro F1 of every resample, in ascending order.
fn resampled_macro_f1(
    rows: &[(usize, usize)],
    n_classes: usize,
    seed: u64,
    observer: &dyn Observer,
) -> Result<Vec<f64>> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut counts = Counts::new(n_classes);
    let mut scores: Vec<f64> = (0..BOOTSTRAP_RESAMPLES)
        .map(|_| {
            Error::if_interrupted(observer)?;
            counts.clear();
            for _ in rows {
                let (truth, predicted) = rows[below(&mut generator, rows.len())];
                counts.add(truth, predicted);
            }
            Ok(counts.macro_f1())
        })
        .collect::<Result<_>>()?;
    scores.sort_unstable_by(f64::total_cmp);
    Ok(scores)
}

/// A number below `n`, from one 64-bit draw. The bias is below `n / 2^64`.
///
/// Spelled out, because a library's sampling may change from version to version, and the interval with it.
fn below(generator: &mut ChaCha8Rng, n: usize) -> usize {
    ((u128::from(generator.next_u64()) * n as u128) >> 64) as usize
}

/// The number below which a standard normal variable lies with probability `p`, for `p` between 0 and 1.
fn normal_quantile(p: f64) -> f64 {
    Normal::standard().inverse_cdf(p)
}

/// The `q` quantile of ascending, non-empty `values`, interpolated linearly between neighbours.
fn quantile(values: &[f64], q: f64) -> f64 {
    let position = q * (values.len() - 1) as f64;
    let below = values[position.floor() as usize];
    let above = values[position.ceil() as usize];
    below + (above - below) * position.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every one of the n^n equally likely resamples, as (macro F1, probability) in ascending order of macro F1.
    fn exact_distribution(rows: &[(usize, usize)], n_classes: usize) -> Vec<(f64, f64)> {
        let n = rows.len();
        let n_resamples = n.pow(n as u32);
        let mut scores: Vec<f64> = (0..n_resamples)
            .map(|mut number| {
                let mut counts = Counts::new(n_classes);
                for _ in 0..n {
                    let (truth, predicted) = rows[number % n];
                    counts.add(truth, predicted);
                    number /= n;
                }
                counts.macro_f1()
            })
            .collect();
        scores.sort_unstable_by(f64::total_cmp);
        scores
            .into_iter()
            .map(|score| (score, 1.0 / n_resamples as f64))
            .collect()
    }

    const SIX: [(usize, usize); 6] = [(0, 0), (0, 0), (0, 1), (1, 1), (1, 1), (1, 0)];

    #[test]
    fn resamples_follow_the_exact_bootstrap_distribution() {
        let exact = exact_distribution(&SIX, 2);
        let mean: f64 = exact.iter().map(|(score, probability)| score * probability).sum();
        let variance: f64 = exact
            .iter()
            .map(|(score, probability)| (score - mean).powi(2) * probability)
            .sum();
        let resamples = resampled_macro_f1(&SIX, 2, 3, &()).unwrap();
        let found = resamples.iter().sum::<f64>() / resamples.len() as f64;
        let standard_error = (variance / resamples.len() as f64).sqrt();
        assert!(
            (found - mean).abs() < 4.0 * standard_error,
            "{found} instead of {mean} ± {standard_error}"
        );

        // Kolmogorov–Smirnov distance; 1.95 / sqrt(n) is exceeded once in a thousand seeds.
        let mut distance: f64 = 0.0;
        for (place, &(score, _)) in exact.iter().enumerate() {
            if exact.get(place + 1).is_none_or(|&(next, _)| next > score + 1e-9) {
                let expected = (place + 1) as f64 / exact.len() as f64;
                let below = resamples.iter().filter(|&&resample| resample < score + 1e-9).count();
                distance = distance.max((below as f64 / resamples.len() as f64 - expected).abs());
            }
        }
        assert!(distance < 1.95 / (resamples.len() as f64).sqrt(), "{distance}");
    }

    #[test]
    fn a_seed_gives_the_same_interval_on_every_machine_and_another_seed_another() {
        let rows: Vec<(usize, usize)> = (0..200)
            .map(|row| (row % 5, (row % 5 + usize::from(row % 7 == 0)) % 5))
            .collect();
        let of_seed = |seed| bootstrap_macro_f1(&rows, 5, 0.95, seed, &()).unwrap();
        let estimate = of_seed(7);
        assert_eq!(estimate, of_seed(7));
        assert_ne!(estimate, of_seed(8));
        assert!(
            estimate.lower < estimate.value && estimate.value < estimate.upper,
            "{estimate:?}"
        );
        // The generator's stream and the way rows are drawn from it are part of the result: a change needs a new VERSION.
        let mut generator = ChaCha8Rng::seed_from_u64(7);
        let drawn: Vec<usize> = (0..8).map(|_| below(&mut generator, 1_000)).collect();
        assert_eq!(drawn, [157, 167, 704, 726, 601, 359, 83, 849]);
    }

    #[test]
    fn a_higher_confidence_gives_a_wider_interval() {
        let widths: Vec<f64> = [0.5, 0.8, 0.95, 0.99]
            .iter()
            .map(|&confidence| bootstrap_macro_f1(&SIX, 2, confidence, 1, &()).unwrap())
            .map(|estimate| estimate.upper - estimate.lower)
            .collect();
        assert!(widths.is_sorted() && widths[0] < widths[3], "{widths:?}");
    }

    #[test]
    fn quantiles_are_interpolated_between_neighbours() {
        let values = [1.0, 2.0, 4.0];
        let found = [0.0, 0.25, 0.5, 0.75, 1.0].map(|q| quantile(&values, q));
        assert_eq!(found, [1.0, 1.5, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn the_normal_quantile_agrees_with_tables_and_is_odd() {
        // 0.975 and 0.995 from NIST's e-Handbook to the digits of f64; each branch of the algorithm once.
        for (p, expected) in [
            (0.5, 0.0),
            (0.975, 1.959963984540054),
            (0.995, 2.5758293035489004),
            (1e-20, -9.262340089798408),
        ] {
            assert!(
                (normal_quantile(p) - expected).abs() < 1e-13,
                "{p}: {}",
                normal_quantile(p)
            );
        }
        assert_eq!(normal_quantile(0.25), -normal_quantile(0.75));
    }
}
