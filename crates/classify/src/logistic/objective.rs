use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use crate::softmax::exponentials;

/// Work is cut into blocks of this many rows, and the blocks into this many runs, whatever the number of threads, and
/// sums over runs are taken in order: results do not depend on the machine's size.
const ROWS: usize = 256;
const RUNS: usize = 8;

/// `mean log loss + λ/2 ‖weight‖²` as a function of the coefficients, `[k, p + 1]`, whose last column is the bias.
///
/// The mean is that of the rows' weights. Rows are read once an evaluation: what a block of them adds to the gradient is
/// computed while it is in the processor's cache.
pub(super) struct Objective<'a> {
    /// `[n, p]`, in C order.
    x: ArrayView2<'a, f64>,
    labels: &'a [usize],
    /// The weight of each class's rows, `[k]`; the weights of all rows add up to 1.
    weights: Vec<f64>,
    /// λ.
    penalty: f64,
    /// The mean square of each column of `x`, and 1 for the bias: `[p + 1]`.
    mean_squares: Array1<f64>,
}

/// `x · weightᵀ + bias`: a chunk a block of rows, `[k, ROWS]`, of which the last rows of the last block stay 0.
#[derive(Clone)]
pub(super) struct Scores(Vec<f64>);

impl Scores {
    /// These scores plus `step` times `change`.
    pub(super) fn moved(&self, step: f64, change: &Scores) -> Scores {
        Scores(
            self.0
                .iter()
                .zip(&change.0)
                .map(|(score, change)| score + step * change)
                .collect(),
        )
    }
}

/// The objective at a point.
pub(super) struct Evaluated {
    pub(super) scores: Scores,
    pub(super) value: f64,
    /// `[k, p + 1]`.
    pub(super) gradient: Array2<f64>,
    /// The mean over the rows of `p (1 - p)` of each class's probability `p`, `[k]`.
    pub(super) spread: Array1<f64>,
}

/// Value, first and second derivative at a point of a line.
#[derive(Clone, Copy)]
pub(super) struct Derivatives {
    pub(super) value: f64,
    pub(super) slope: f64,
    pub(super) curvature: f64,
}

/// The objective restricted to `coefficients + t · direction`, without its matrix products.
pub(super) struct Line<'a, 'x> {
    objective: &'a Objective<'x>,
    /// Scores at `t = 0`, and their change with `t`.
    scores: &'a Scores,
    change: &'a Scores,
    /// ‖weight‖² as a polynomial in `t`.
    squares: [f64; 3],
}

/// What a run of blocks adds to value, gradient and spread.
struct Sums {
    value: f64,
    gradient: Array2<f64>,
    spread: Array1<f64>,
}

impl<'a> Objective<'a> {
    /// scikit-learn's objective divided by `C Σ weight`, for `x` in C order and labels below the number of classes,
    /// whose rows have these weights.
    pub(super) fn new(x: ArrayView2<'a, f64>, labels: &'a [usize], class_weights: &[f64], c: f64) -> Self {
        let total: f64 = labels.iter().map(|&label| class_weights[label]).sum();
        // Two classes: the rows -w/2 and w/2 have half the squared norm of the one vector w that scikit-learn
        // penalizes, hence twice the penalty.
        let norms = if class_weights.len() == 2 { 2.0 } else { 1.0 };
        let weights: Vec<f64> = class_weights.iter().map(|weight| weight / total).collect();
        let mut mean_squares = Array1::zeros(x.ncols() + 1);
        for (row, &label) in x.rows().into_iter().zip(labels) {
            let weight = weights[label];
            for (sum, value) in mean_squares.iter_mut().zip(row) {
                *sum += weight * value * value;
            }
        }
        mean_squares[x.ncols()] = 1.0;
        Objective {
            x,
            labels,
            weights,
            penalty: norms / (c * total),
            mean_squares,
        }
    }

    fn n_classes(&self) -> usize {
        self.weights.len()
    }

    /// The shape of the coefficients.
    pub(super) fn dim(&self) -> (usize, usize) {
        (self.n_classes(), self.x.ncols() + 1)
    }

    /// Everything at these coefficients.
    pub(super) fn at(&self, coefficients: &Array2<f64>) -> Evaluated {
        self.evaluate(coefficients, self.no_scores(), |x, n_rows, scores| {
            self.fill(coefficients, x, n_rows, scores);
        })
    }

    /// `x · weightᵀ + bias`.
    pub(super) fn scores(&self, coefficients: &Array2<f64>) -> Scores {
        let mut scores = self.no_scores();
        let blocks: Vec<_> = self.x.axis_chunks_iter(Axis(0), ROWS).collect();
        scores
            .0
            .par_chunks_mut(ROWS * self.n_classes())
            .zip(blocks)
            .for_each(|(scores, x)| {
                let slice = x.as_slice().expect("x is in C order");
                let x = MatRef::from_row_major_slice(slice, x.nrows(), x.ncols());
                self.fill(coefficients, x, x.nrows(), scores);
            });
        scores
    }

    fn no_scores(&self) -> Scores {
        Scores(vec![0.0; self.labels.len().div_ceil(ROWS) * ROWS * self.n_classes()])
    }

    /// Puts the scores of a block of rows where they belong.
    fn fill(&self, coefficients: &Array2<f64>, x: MatRef<'_, f64>, n_rows: usize, scores: &mut [f64]) {
        let slice = coefficients.as_slice().expect("coefficients are in C order");
        let (k, width) = self.dim();
        // The coefficients are the left factor, because a product copies its left factor into another order. Copying the
        // rows took three times as long as the product.
        let mut by_row = coefficients.column(width - 1).to_vec().repeat(n_rows);
        matmul(
            MatMut::from_column_major_slice_mut(&mut by_row, k, n_rows),
            Accum::Add,
            MatRef::from_row_major_slice_with_stride(slice, k, width - 1, width),
            x.transpose(),
            1.0,
            Par::Seq,
        );
        for (row, by_row) in by_row.chunks_exact(k).enumerate() {
            for (scores, &score) in scores.chunks_exact_mut(ROWS).zip(by_row) {
                scores[row] = score;
            }
        }
    }

    /// [`at`](Self::at) coefficients whose scores are known.
    pub(super) fn at_scores(&self, coefficients: &Array2<f64>, scores: Scores) -> Evaluated {
        self.evaluate(coefficients, scores, |_, _, _| ())
    }

    /// The objective where `fill` gives the scores of a block from its rows and their number.
    fn evaluate(
        &self,
        coefficients: &Array2<f64>,
        mut scores: Scores,
        fill: impl Fn(MatRef<'_, f64>, usize, &mut [f64]) + Sync,
    ) -> Evaluated {
        let (k, width) = self.dim();
        let (n, p) = self.x.dim();
        let x = self.x.as_slice().expect("x is in C order");
        let blocks_a_run = n.div_ceil(ROWS).div_ceil(RUNS);
        let runs: Vec<Sums> = scores
            .0
            .par_chunks_mut(blocks_a_run * ROWS * k)
            .enumerate()
            .map(|(run, scores)| {
                let mut sums = Sums {
                    value: 0.0,
                    gradient: Array2::zeros((k, width)),
                    spread: Array1::zeros(k),
                };
                let mut residuals = vec![0.0; ROWS * k];
                for (block, scores) in scores.chunks_mut(ROWS * k).enumerate() {
                    let first = (run * blocks_a_run + block) * ROWS;
                    let labels = &self.labels[first..n.min(first + ROWS)];
                    let n_rows = labels.len();
                    let x = MatRef::from_row_major_slice(&x[first * p..(first + n_rows) * p], n_rows, p);
                    fill(x, n_rows, scores);
                    residuals.copy_from_slice(scores);
                    self.add(x, labels, &mut residuals, &mut sums);
                }
                sums
            })
            .collect();
        let Sums {
            mut value,
            mut gradient,
            spread,
        } = runs
            .into_iter()
            .reduce(|mut a, b| {
                a.gradient += &b.gradient;
                a.spread += &b.spread;
                a.value += b.value;
                a
            })
            .expect("there is a row a class");
        let weight = coefficients.slice(s![.., ..p]);
        value += 0.5 * self.penalty * dot(weight, weight);
        gradient.slice_mut(s![.., ..p]).scaled_add(self.penalty, &weight);
        Evaluated {
            scores,
            value,
            gradient,
            spread,
        }
    }

    /// Adds what a block of rows has to add; its scores become residuals.
    fn add(&self, x: MatRef<'_, f64>, labels: &[usize], scores: &mut [f64], sums: &mut Sums) {
        let (k, width) = self.dim();
        let n_rows = labels.len();
        sums.value += block_softmax(scores, labels, |row, loss| self.weights[labels[row]] * loss);
        let weights: Vec<f64> = labels.iter().map(|&label| self.weights[label]).collect();
        for (class, probabilities) in scores.chunks_exact_mut(ROWS).enumerate() {
            for (p, weight) in probabilities.iter_mut().zip(&weights) {
                sums.spread[class] += weight * *p * (1.0 - *p);
                *p *= weight;
            }
        }
        for (row, &label) in labels.iter().enumerate() {
            scores[label * ROWS + row] -= weights[row];
        }
        for (class, residuals) in scores.chunks_exact(ROWS).enumerate() {
            sums.gradient[[class, width - 1]] += residuals[..n_rows].iter().sum::<f64>();
        }
        let gradient = sums.gradient.as_slice_mut().expect("a new array is in C order");
        matmul(
            MatMut::from_column_major_slice_with_stride_mut(gradient, width - 1, k, width),
            Accum::Add,
            x.transpose(),
            MatRef::from_column_major_slice_with_stride(scores, n_rows, k, ROWS),
            1.0,
            Par::Seq,
        );
    }

    /// An estimate of the diagonal of the Hessian, `[k, p + 1]`, positive: exact for columns that have the same
    /// distribution in likely and unlikely rows.
    pub(super) fn curvature(&self, spread: &Array1<f64>) -> Array2<f64> {
        // Classes that are told apart for certain have no spread left: the floor keeps the bias's estimate positive.
        let floor = f64::EPSILON;
        Array2::from_shape_fn(self.dim(), |(class, column)| {
            let penalty = if column < self.x.ncols() { self.penalty } else { 0.0 };
            self.mean_squares[column] * spread[class].max(floor) + penalty.max(floor)
        })
    }

    /// The objective along a direction, from the scores at its start and their change along it.
    pub(super) fn line<'b>(
        &'b self,
        coefficients: &Array2<f64>,
        direction: &Array2<f64>,
        scores: &'b Scores,
        change: &'b Scores,
    ) -> Line<'b, 'a> {
        let weight = s![.., ..self.x.ncols()];
        let (start, step) = (coefficients.slice(weight), direction.slice(weight));
        let squares = [dot(start, start), 2.0 * dot(start, step), dot(step, step)];
        Line {
            objective: self,
            scores,
            change,
            squares,
        }
    }
}

/// Turns the scores of a block, `[k, ROWS]`, into probabilities, and sums what `of_loss` makes of each row and its loss:
/// minus the natural logarithm of its label's probability.
///
/// See [`softmax_loss`](crate::softmax::softmax_loss), which does the same for a row.
fn block_softmax(scores: &mut [f64], labels: &[usize], of_loss: impl Fn(usize, f64) -> f64) -> f64 {
    let (mut largest, mut sums) = ([f64::NEG_INFINITY; ROWS], [0.0; ROWS]);
    for scores in scores.chunks_exact(ROWS) {
        largest
            .iter_mut()
            .zip(scores)
            .for_each(|(largest, &score)| *largest = largest.max(score));
    }
    let mut losses = [0.0; ROWS];
    for (row, &label) in labels.iter().enumerate() {
        losses[row] = largest[row] - scores[label * ROWS + row];
    }
    for scores in scores.chunks_exact_mut(ROWS) {
        exponentials(scores, largest.iter().copied());
        sums.iter_mut().zip(&*scores).for_each(|(sum, score)| *sum += score);
    }
    let factors = sums.map(f64::recip);
    for scores in scores.chunks_exact_mut(ROWS) {
        scores
            .iter_mut()
            .zip(&factors)
            .for_each(|(score, factor)| *score *= factor);
    }
    (0..labels.len())
        .map(|row| of_loss(row, losses[row] + sums[row].ln()))
        .sum()
}

impl Line<'_, '_> {
    /// Value and derivatives at `t`.
    pub(super) fn at(&self, t: f64) -> Derivatives {
        let Objective {
            labels,
            weights,
            penalty,
            ..
        } = self.objective;
        let chunk = ROWS * weights.len();
        let blocks: Vec<(f64, f64, f64)> = self
            .scores
            .0
            .par_chunks(chunk)
            .zip(self.change.0.par_chunks(chunk))
            .zip(labels.par_chunks(ROWS))
            .map(|((scores, change), labels)| {
                let mut probabilities: Vec<f64> = scores
                    .iter()
                    .zip(change)
                    .map(|(start, step)| start + t * step)
                    .collect();
                let value = block_softmax(&mut probabilities, labels, |row, loss| weights[labels[row]] * loss);
                let (mut means, mut squares) = ([0.0; ROWS], [0.0; ROWS]);
                for (probabilities, change) in probabilities.chunks_exact(ROWS).zip(change.chunks_exact(ROWS)) {
                    means
                        .iter_mut()
                        .zip(probabilities)
                        .zip(change)
                        .for_each(|((mean, p), step)| *mean += p * step);
                }
                for (probabilities, change) in probabilities.chunks_exact(ROWS).zip(change.chunks_exact(ROWS)) {
                    for (((square, mean), p), step) in squares.iter_mut().zip(&means).zip(probabilities).zip(change) {
                        *square += p * (step - mean) * (step - mean);
                    }
                }
                let (mut slope, mut curvature) = (0.0, 0.0);
                for (row, &label) in labels.iter().enumerate() {
                    slope += weights[label] * (means[row] - change[label * ROWS + row]);
                    curvature += weights[label] * squares[row];
                }
                (value, slope, curvature)
            })
            .collect();
        let (value, slope, curvature) = blocks
            .into_iter()
            .fold((0.0, 0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
        let [constant, linear, quadratic] = self.squares;
        Derivatives {
            value: value + 0.5 * penalty * (constant + t * (linear + t * quadratic)),
            slope: slope + 0.5 * penalty * (linear + 2.0 * t * quadratic),
            curvature: curvature + penalty * quadratic,
        }
    }
}

/// The sum of the products of the entries.
pub(super) fn dot(a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The largest magnitude of an entry.
pub(super) fn largest(a: &Array2<f64>) -> f64 {
    a.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each derivative against the difference quotient of the one before.
    #[test]
    fn derivatives_agree_with_differences() {
        for n_classes in [2, 3] {
            let x = Array2::from_shape_fn((ROWS + 9, 4), |(row, column)| ((row * 7 + column * 3) % 5) as f64 - 1.5);
            let labels: Vec<usize> = (0..ROWS + 9).map(|row| row % n_classes).collect();
            let weights: Vec<f64> = (0..n_classes).map(|class| 1.0 + class as f64).collect();
            let objective = Objective::new(x.view(), &labels, &weights, 0.7);
            let coefficients = Array2::from_shape_fn(objective.dim(), |(class, column)| {
                0.3 * column as f64 - 0.2 * class as f64
            });
            let direction = Array2::from_shape_fn(objective.dim(), |(class, column)| {
                (column as f64 - 1.7) * (class as f64 + 0.4)
            });

            let here = objective.at(&coefficients);
            let change = objective.scores(&direction);
            let line = objective.line(&coefficients, &direction, &here.scores, &change);
            let h = 1e-5;
            let (before, at, after) = (line.at(-h), line.at(0.0), line.at(h));
            assert!((at.value - here.value).abs() < 1e-14);
            assert!(((after.value - before.value) / (2.0 * h) - at.slope).abs() < 1e-8);
            assert!(((after.slope - before.slope) / (2.0 * h) - at.curvature).abs() < 1e-8);
            assert!((dot(here.gradient.view(), direction.view()) - at.slope).abs() < 1e-12);
        }
    }
}
