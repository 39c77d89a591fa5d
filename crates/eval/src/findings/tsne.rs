//! t-SNE in the plane (van der Maaten and Hinton, "Visualizing data using t-SNE", 2008), of up to some thousand points.
//!
//! All points push each other away, and the nearest attract each other. Forces are summed up over all pairs. For a thousand
//! points this is several times as fast as a tree that takes far points together, and it is exact. Each sum has one order,
//! whatever the number of threads: on processors with the same instructions, the same points give the same bits.
//!
//! It takes 8 n² bytes.

use std::f64::consts::SQRT_2;

use ndarray::{Array2, ArrayView1, Axis, concatenate, s};
use pulp::{Arch, Scalar, Simd, WithSimd};
use rayon::prelude::*;

/// Exaggeration and momentum are those of van der Maaten, "Accelerating t-SNE using tree-based algorithms", 2014, as in
/// scikit-learn. The paper takes 1,000 steps. On the points of the golden file, scikit-learn's maps after 750 steps are as
/// good as after 3,000.
const PHASES: [Phase; 2] = [
    Phase {
        steps: 250,
        exaggeration: EARLY_EXAGGERATION,
        momentum: 0.5,
    },
    Phase {
        steps: 500,
        exaggeration: 1.0,
        momentum: 0.8,
    },
];
const EARLY_EXAGGERATION: f32 = 12.0;
const LEAST_GAIN: f32 = 0.01;

/// The standard deviation at the start, across.
const SPREAD_AT_FIRST: f32 = 1e-4;

/// How often the start's components are improved. They need not be exact.
const ITERATIONS: usize = 30;

const GOLDEN_RATIO: f64 = 1.618_033_988_749_895;

/// How close a point's perplexity comes to the one asked for, as a logarithm.
const TOLERANCE: f64 = 1e-5;

/// How many points make a piece of work.
const BLOCK: usize = 64;

/// Where points of length 1, which are rows, lie in the plane. `perplexity` is how many neighbours count for a point, about.
pub(super) fn embed(points: &Array2<f32>, perplexity: f64) -> Vec<[f32; 2]> {
    let n = points.nrows();
    let cosines = cosines(points);
    let affinities = affinities(&cosines, perplexity);
    let mut places = principal_components(&cosines);
    // As scikit-learn does, after Belkina and others, "Automated optimized parameters for t-SNE", 2019.
    let rate = (n as f32 / EARLY_EXAGGERATION / 4.0).max(50.0);
    for phase in PHASES {
        phase.descend(&affinities, rate, &mut places);
    }
    let [across, up] = places;
    across.into_iter().zip(up).map(|(across, up)| [across, up]).collect()
}

/// Steps of gradient descent with momentum, and with a gain for each coordinate that grows while it keeps its direction.
struct Phase {
    steps: usize,
    /// How many times as much points attract each other. At first they form groups, which can still pass each other.
    exaggeration: f32,
    momentum: f32,
}

impl Phase {
    fn descend(&self, affinities: &Array2<f32>, rate: f32, places: &mut [Vec<f32>; 2]) {
        let n = affinities.nrows();
        // Anew in each phase: what was right under exaggeration throws groups apart without.
        let (mut updates, mut gains) = (vec![[0.0_f32; 2]; n], vec![[1.0_f32; 2]; n]);
        for _ in 0..self.steps {
            let gradient = gradient(affinities, self.exaggeration, places);
            for (point, slope) in gradient.iter().enumerate() {
                for axis in 0..2 {
                    let (update, gain) = (&mut updates[point][axis], &mut gains[point][axis]);
                    *gain = match *update * slope[axis] < 0.0 {
                        true => *gain + 0.2,
                        false => (*gain * 0.8).max(LEAST_GAIN),
                    };
                    *update = self.momentum * *update - rate * *gain * slope[axis];
                    places[axis][point] += *update;
                }
            }
        }
    }
}

/// Of each point and each: `[n, n]`.
fn cosines(points: &Array2<f32>) -> Array2<f32> {
    let n = points.nrows();
    let starts: Vec<usize> = (0..n).step_by(BLOCK).collect();
    let of_block = |&start: &usize| points.slice(s![start..(start + BLOCK).min(n), ..]).dot(&points.t());
    let blocks: Vec<Array2<f32>> = starts.par_iter().map(of_block).collect();
    let views: Vec<_> = blocks.iter().map(|block| block.view()).collect();
    concatenate(Axis(0), &views).expect("blocks of one width")
}

/// How much points want to lie together: symmetric, `[n, n]`, with the sum 1.
///
/// Of each point, the nearest `3 * perplexity` others count, as in the paper of 2014.
fn affinities(cosines: &Array2<f32>, perplexity: f64) -> Array2<f32> {
    let n = cosines.nrows();
    let shares: Vec<Vec<(usize, f64)>> = (0..n)
        .into_par_iter()
        .map(|point| shares(point, cosines.row(point), perplexity))
        .collect();
    let mut affinities = Array2::zeros((n, n));
    for (point, shares) in shares.into_iter().enumerate() {
        for (other, share) in shares {
            let half = (share / (2 * n) as f64) as f32;
            affinities[[point, other]] += half;
            affinities[[other, point]] += half;
        }
    }
    affinities
}

/// The nearest others of a point, each with the probability that the point picks it. Probabilities are those of a normal
/// distribution around the point. It is as wide as it takes for their entropy to be that of `perplexity` equal ones.
fn shares(point: usize, cosines: ArrayView1<'_, f32>, perplexity: f64) -> Vec<(usize, f64)> {
    let others = nearest(point, cosines, (3.0 * perplexity) as usize);
    // The squares of distances between points of length 1.
    let squares: Vec<f64> = others
        .iter()
        .map(|&other| (2.0 - 2.0 * f64::from(cosines[other])).max(0.0))
        .collect();
    let least = squares.first().copied().unwrap_or(0.0);
    let mut shares = vec![0.0; others.len()];
    let (mut low, mut high, mut precision) = (0.0, f64::INFINITY, 1.0);
    for _ in 0..100 {
        for (share, square) in shares.iter_mut().zip(&squares) {
            *share = (-precision * (square - least)).exp();
        }
        let sum: f64 = shares.iter().sum();
        shares.iter_mut().for_each(|share| *share /= sum);
        let mean: f64 = shares
            .iter()
            .zip(&squares)
            .map(|(share, square)| share * (square - least))
            .sum();
        let excess = sum.ln() + precision * mean - perplexity.ln();
        if excess.abs() <= TOLERANCE {
            break;
        }
        if excess > 0.0 {
            low = precision;
            precision = if high.is_finite() {
                (low + high) / 2.0
            } else {
                2.0 * precision
            };
        } else {
            high = precision;
            precision = (low + high) / 2.0;
        }
    }
    others.into_iter().zip(shares).collect()
}

/// The `n` nearest others of a point, the nearest first.
fn nearest(point: usize, cosines: ArrayView1<'_, f32>, n: usize) -> Vec<usize> {
    let mut others: Vec<usize> = (0..cosines.len()).filter(|&other| other != point).collect();
    let nearer = |a: &usize, b: &usize| cosines[*b].total_cmp(&cosines[*a]).then(a.cmp(b));
    if n < others.len() {
        others.select_nth_unstable_by(n, nearer);
        others.truncate(n);
    }
    others.sort_unstable_by(nearer);
    others
}

/// The first two principal components, small: points that begin there keep the large shape of the data (Kobak and Berens,
/// "The art of using t-SNE for single-cell transcriptomics", 2019). Found by subspace iteration.
fn principal_components(cosines: &Array2<f32>) -> [Vec<f32>; 2] {
    let n = cosines.nrows();
    // Any start will do in which no component is missing: the fractions of multiples of two irrational numbers.
    let mut basis = Array2::from_shape_fn((n, 2), |(point, axis)| {
        (((point + 1) as f64 * [SQRT_2, GOLDEN_RATIO][axis]).fract() - 0.5) as f32
    });
    let mut lengths = [0.0_f32; 2];
    for _ in 0..ITERATIONS {
        // Between these two, the matrix is that of points around their mean.
        center(&mut basis);
        basis = cosines.dot(&basis);
        center(&mut basis);
        for (axis, length) in lengths.iter_mut().enumerate() {
            if axis == 1 {
                let along = basis.column(0).dot(&basis.column(1));
                let first = basis.column(0).to_owned();
                basis.column_mut(1).scaled_add(-along, &first);
            }
            *length = basis.column(axis).dot(&basis.column(axis)).sqrt();
            if *length > 0.0 {
                basis.column_mut(axis).mapv_inplace(|value| value / *length);
            }
        }
    }
    let first = lengths[0].max(f32::MIN_POSITIVE);
    [0, 1].map(|axis| {
        let column = basis.column(axis);
        // The same side up each time: an eigenvector has no sign.
        let largest = column
            .iter()
            .copied()
            .fold(0.0_f32, |a, b| if b.abs() > a.abs() { b } else { a });
        let spread = SPREAD_AT_FIRST * (n as f32).sqrt() * (lengths[axis] / first).sqrt();
        column.iter().map(|value| value * spread.copysign(largest)).collect()
    })
}

fn center(columns: &mut Array2<f32>) {
    let mean = columns.mean_axis(Axis(0)).expect("there are rows");
    *columns -= &mean;
}

/// The slope of the divergence between how much points want to lie together and how close they are, for each point.
fn gradient(affinities: &Array2<f32>, exaggeration: f32, places: &[Vec<f32>; 2]) -> Vec<[f32; 2]> {
    let arch = Arch::new();
    let forces: Vec<Forces> = affinities
        .as_slice()
        .expect("in standard order")
        .par_chunks_exact(affinities.ncols())
        .with_min_len(BLOCK)
        .enumerate()
        .map(|(point, affinities)| {
            arch.dispatch(Sums {
                affinities,
                places,
                point,
            })
        })
        .collect();
    // Each point's closeness to itself is 1.
    let closeness: f32 = forces.iter().map(|forces| forces.closeness - 1.0).sum();
    let slope = |forces: &Forces| {
        [0, 1]
            .map(|axis| 4.0 * (exaggeration * forces.pull[axis] - forces.push[axis] / closeness.max(f32::MIN_POSITIVE)))
    };
    forces.iter().map(slope).collect()
}

/// What all others do to a point.
struct Forces {
    pull: [f32; 2],
    push: [f32; 2],
    /// The sum of 1 / (1 + d²).
    closeness: f32,
}

struct Sums<'a> {
    affinities: &'a [f32],
    places: &'a [Vec<f32>; 2],
    point: usize,
}

impl WithSimd for Sums<'_> {
    type Output = Forces;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Forces {
        let [across, up] = self.places;
        let place = [across[self.point], up[self.point]];
        let (affinities, last_affinities) = S::as_simd_f32s(self.affinities);
        let (across, last_across) = S::as_simd_f32s(across);
        let (up, last_up) = S::as_simd_f32s(up);
        let sums = sums_of(simd, place, affinities, [across, up]).map(|sum| simd.reduce_sum_f32s(sum));
        let last = sums_of(Scalar, place, last_affinities, [last_across, last_up]);
        let [pull_x, pull_y, push_x, push_y, closeness] = [0, 1, 2, 3, 4].map(|sum| sums[sum] + last[sum]);
        Forces {
            pull: [pull_x, pull_y],
            push: [push_x, push_y],
            closeness,
        }
    }
}

/// The sums over other points of their pull and push, across and up, and of their closeness.
#[inline(always)]
fn sums_of<S: Simd>(simd: S, place: [f32; 2], affinities: &[S::f32s], others: [&[S::f32s]; 2]) -> [S::f32s; 5] {
    let ([x, y], one) = (place.map(|at| simd.splat_f32s(at)), simd.splat_f32s(1.0));
    let mut sums = [simd.splat_f32s(0.0); 5];
    let [across, up] = others;
    for ((&affinity, &across), &up) in affinities.iter().zip(across).zip(up) {
        let (dx, dy) = (simd.sub_f32s(x, across), simd.sub_f32s(y, up));
        let square = simd.mul_add_f32s(dx, dx, simd.mul_f32s(dy, dy));
        let closeness = simd.div_f32s(one, simd.add_f32s(one, square));
        let (pull, push) = (simd.mul_f32s(affinity, closeness), simd.mul_f32s(closeness, closeness));
        sums = [
            simd.mul_add_f32s(pull, dx, sums[0]),
            simd.mul_add_f32s(pull, dy, sums[1]),
            simd.mul_add_f32s(push, dx, sums[2]),
            simd.mul_add_f32s(push, dy, sums[3]),
            simd.add_f32s(closeness, sums[4]),
        ];
    }
    sums
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// What scikit-learn says of some points; see `fixtures/golden/tsne.py`.
    #[derive(Deserialize)]
    struct Golden {
        perplexity: f64,
        /// Of length 1.
        points: Vec<Vec<f32>>,
        affinities: Vec<Vec<f32>>,
        places: Vec<[f32; 2]>,
        gradient: Vec<[f32; 2]>,
        /// Where its maps begin if asked for principal components.
        components: Vec<[f32; 2]>,
        /// Of its maps of the points that begin at random, ascending.
        divergences: Vec<f64>,
        tolerance: f32,
    }

    fn golden() -> (Golden, Array2<f32>) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/golden/tsne.json");
        let golden: Golden = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let size = (golden.points.len(), golden.points[0].len());
        let points = Array2::from_shape_fn(size, |(point, feature)| golden.points[point][feature]);
        (golden, points)
    }

    #[test]
    fn affinities_and_their_gradient_are_those_of_scikit_learn() {
        let (golden, points) = golden();
        let found = affinities(&cosines(&points), golden.perplexity);
        for ((point, other), found) in found.indexed_iter() {
            let expected = golden.affinities[point][other];
            assert!(
                (found - expected).abs() <= golden.tolerance * expected.max(1e-4),
                "{found} {expected}"
            );
        }
        let places = [0, 1].map(|axis| golden.places.iter().map(|place| place[axis]).collect());
        let largest = golden.gradient.iter().flatten().fold(0.0_f32, |a, b| a.max(b.abs()));
        for (found, expected) in gradient(&found, 1.0, &places).iter().zip(&golden.gradient) {
            for axis in 0..2 {
                let difference = (found[axis] - expected[axis]).abs();
                assert!(difference <= golden.tolerance * largest, "{found:?} {expected:?}");
            }
        }
    }

    #[test]
    fn a_map_begins_with_the_principal_components() {
        let (golden, points) = golden();
        let found = principal_components(&cosines(&points));
        for (axis, found) in found.iter().enumerate() {
            for (found, expected) in found.iter().zip(&golden.components) {
                let difference = (found - expected[axis]).abs();
                assert!(difference <= 0.01 * SPREAD_AT_FIRST, "{found} {expected:?}");
            }
        }
    }

    #[test]
    fn maps_are_as_good_as_those_of_scikit_learn() {
        let (golden, points) = golden();
        let n = points.nrows();
        // Where the last bits differ, maps do: each order of the points has its own.
        let mut divergences: Vec<f64> = (0..9)
            .map(|turn| {
                let at = |point: usize| (point + 7 * turn) % n;
                let turned = Array2::from_shape_fn(points.dim(), |(point, feature)| points[[at(point), feature]]);
                let places = embed(&turned, golden.perplexity);
                divergence(&places, |a, b| f64::from(golden.affinities[at(a)][at(b)]))
            })
            .collect();
        divergences.sort_by(f64::total_cmp);
        let (found, expected) = (
            divergences[divergences.len() / 2],
            golden.divergences[golden.divergences.len() / 2],
        );
        assert!(found <= 1.02 * expected, "{divergences:?} {:?}", golden.divergences);
    }

    /// Of how close points lie from how much they want to lie together.
    fn divergence(places: &[[f32; 2]], affinity: impl Fn(usize, usize) -> f64) -> f64 {
        let closeness = |a: usize, b: usize| {
            let [dx, dy] = [0, 1].map(|axis| f64::from(places[a][axis] - places[b][axis]));
            1.0 / (1.0 + dx * dx + dy * dy)
        };
        let n = places.len();
        let pairs = || (0..n).flat_map(|a| (0..n).map(move |b| (a, b))).filter(|(a, b)| a != b);
        let sum: f64 = pairs().map(|(a, b)| closeness(a, b)).sum();
        pairs()
            .map(|(a, b)| (affinity(a, b), closeness(a, b) / sum))
            .filter(|&(wanted, _)| wanted > 0.0)
            .map(|(wanted, found)| wanted * (wanted / found).ln())
            .sum()
    }
}
