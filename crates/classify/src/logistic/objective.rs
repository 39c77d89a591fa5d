use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use crate::softmax::{softmax, softmax_loss};

/// Work is cut into blocks of this many rows or columns, whatever the number of threads, and sums over blocks are
/// taken in order: results do not depend on the machine's size.
const ROWS: usize = 128;
const COLUMNS: usize = 64;

/// `mean log loss + λ/2 ‖weight‖²` as a function of the coefficients, `[p + 1, k]`, whose last row is the bias.
pub(super) struct Objective<'a> {
    /// `[n, p]`, in C order.
    x: ArrayView2<'a, f64>,
    labels: &'a [usize],
    n_classes: usize,
    /// λ.
    penalty: f64,
    /// The mean square of each column of `x`, and 1 for the bias: `[p + 1]`.
    mean_squares: Array1<f64>,
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
    /// Scores at `t = 0`, and their change with `t`: `[n, k]`.
    scores: &'a Array2<f64>,
    change: &'a Array2<f64>,
    /// ‖weight‖² as a polynomial in `t`.
    squares: [f64; 3],
}

impl<'a> Objective<'a> {
    /// scikit-learn's objective divided by `C n`, for `x` in C order and labels below `n_classes`.
    pub(super) fn new(x: ArrayView2<'a, f64>, labels: &'a [usize], n_classes: usize, c: f64) -> Self {
        let n = x.nrows() as f64;
        // Two classes: the rows -w/2 and w/2 have half the squared norm of the one vector w that scikit-learn
        // penalizes, hence twice the penalty.
        let norms = if n_classes == 2 { 2.0 } else { 1.0 };
        let mut mean_squares = Array1::ones(x.ncols() + 1);
        mean_squares
            .slice_mut(s![..x.ncols()])
            .assign(&x.map_axis(Axis(0), |column| column.dot(&column) / n));
        Objective {
            x,
            labels,
            n_classes,
            penalty: norms / (c * n),
            mean_squares,
        }
    }

    /// The shape of the coefficients.
    pub(super) fn dim(&self) -> (usize, usize) {
        (self.x.ncols() + 1, self.n_classes)
    }

    /// `x · weight + bias`, `[n, k]`.
    pub(super) fn scores(&self, coefficients: &Array2<f64>) -> Array2<f64> {
        let (weight, bias) = coefficients.view().split_at(Axis(0), self.x.ncols());
        let mut scores = Array2::zeros((self.x.nrows(), self.n_classes));
        let blocks: Vec<_> = scores
            .axis_chunks_iter_mut(Axis(0), ROWS)
            .zip(self.x.axis_chunks_iter(Axis(0), ROWS))
            .collect();
        blocks.into_par_iter().for_each(|(mut scores, x)| {
            scores += &bias;
            general_mat_mul(1.0, &x, &weight, 1.0, &mut scores);
        });
        scores
    }

    /// The gradient, `[p + 1, k]`, where the scores are `scores`, and the mean over the rows of `p (1 - p)` of each
    /// class's probability `p`, `[k]`.
    pub(super) fn gradient(&self, coefficients: &Array2<f64>, scores: &Array2<f64>) -> (Array2<f64>, Array1<f64>) {
        let n = self.x.nrows() as f64;
        let mut residuals = scores.clone();
        let mut spread = Array1::zeros(self.n_classes);
        for (mut row, &label) in residuals.rows_mut().into_iter().zip(self.labels) {
            softmax(row.as_slice_mut().expect("rows of a matrix in C order are contiguous"));
            spread.zip_mut_with(&row, |sum: &mut f64, &p| *sum += p * (1.0 - p) / n);
            row[label] -= 1.0;
        }

        let (n_columns, p) = (self.n_classes, self.x.ncols());
        let mut gradient = Array2::zeros((p + 1, n_columns));
        let (mut weight, mut bias) = gradient.view_mut().split_at(Axis(0), p);
        let blocks: Vec<_> = weight
            .axis_chunks_iter_mut(Axis(0), COLUMNS)
            .zip(self.x.axis_chunks_iter(Axis(1), COLUMNS))
            .collect();
        blocks
            .into_par_iter()
            .for_each(|(mut gradient, x)| general_mat_mul(1.0 / n, &x.t(), &residuals, 0.0, &mut gradient));
        bias.row_mut(0).assign(&(residuals.sum_axis(Axis(0)) / n));
        weight.scaled_add(self.penalty, &coefficients.slice(s![..p, ..]));
        (gradient, spread)
    }

    /// The largest magnitude in the gradient.
    pub(super) fn gradient_norm(&self, coefficients: &Array2<f64>) -> f64 {
        largest(&self.gradient(coefficients, &self.scores(coefficients)).0)
    }

    /// An estimate of the diagonal of the Hessian, `[p + 1, k]`, positive: exact for columns that have the same
    /// distribution in likely and unlikely rows.
    pub(super) fn curvature(&self, spread: &Array1<f64>) -> Array2<f64> {
        // Classes that are told apart for certain have no spread left: the floor keeps the bias's estimate positive.
        let floor = f64::EPSILON;
        Array2::from_shape_fn(self.dim(), |(row, class)| {
            let penalty = if row < self.x.ncols() { self.penalty } else { 0.0 };
            self.mean_squares[row] * spread[class].max(floor) + penalty.max(floor)
        })
    }

    /// The objective along a direction, from the scores at its start and their change along it.
    pub(super) fn line<'b>(
        &'b self,
        coefficients: &Array2<f64>,
        direction: &Array2<f64>,
        scores: &'b Array2<f64>,
        change: &'b Array2<f64>,
    ) -> Line<'b, 'a> {
        let weight = s![..self.x.ncols(), ..];
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

impl Line<'_, '_> {
    /// Value and derivatives at `t`.
    pub(super) fn at(&self, t: f64) -> Derivatives {
        let Objective { labels, penalty, .. } = self.objective;
        let n = labels.len();
        let blocks: Vec<(f64, f64, f64)> = (0..n.div_ceil(ROWS))
            .into_par_iter()
            .map(|block| {
                let mut probabilities = vec![0.0; self.objective.n_classes];
                let (mut value, mut slope, mut curvature) = (0.0, 0.0, 0.0);
                for row in block * ROWS..n.min((block + 1) * ROWS) {
                    let (scores, change) = (self.scores.row(row), self.change.row(row));
                    for ((score, start), step) in probabilities.iter_mut().zip(scores).zip(change) {
                        *score = start + t * step;
                    }
                    let label = labels[row];
                    value += softmax_loss(&mut probabilities, label);
                    let mean: f64 = probabilities.iter().zip(change).map(|(p, step)| p * step).sum();
                    slope += mean - change[label];
                    curvature += probabilities
                        .iter()
                        .zip(change)
                        .map(|(p, step)| p * (step - mean).powi(2))
                        .sum::<f64>();
                }
                (value, slope, curvature)
            })
            .collect();
        let (value, slope, curvature) = blocks
            .into_iter()
            .fold((0.0, 0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
        let n = n as f64;
        let [constant, linear, quadratic] = self.squares;
        Derivatives {
            value: value / n + 0.5 * penalty * (constant + t * (linear + t * quadratic)),
            slope: slope / n + 0.5 * penalty * (linear + 2.0 * t * quadratic),
            curvature: curvature / n + penalty * quadratic,
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
            let x = Array2::from_shape_fn((9, 4), |(row, column)| ((row * 7 + column * 3) % 5) as f64 - 1.5);
            let labels: Vec<usize> = (0..9).map(|row| row % n_classes).collect();
            let objective = Objective::new(x.view(), &labels, n_classes, 0.7);
            let coefficients =
                Array2::from_shape_fn(objective.dim(), |(row, class)| 0.3 * row as f64 - 0.2 * class as f64);
            let direction = Array2::from_shape_fn(objective.dim(), |(row, class)| {
                (row as f64 - 1.7) * (class as f64 + 0.4)
            });

            let (scores, change) = (objective.scores(&coefficients), objective.scores(&direction));
            let line = objective.line(&coefficients, &direction, &scores, &change);
            let h = 1e-5;
            let (before, here, after) = (line.at(-h), line.at(0.0), line.at(h));
            assert!(((after.value - before.value) / (2.0 * h) - here.slope).abs() < 1e-8);
            assert!(((after.slope - before.slope) / (2.0 * h) - here.curvature).abs() < 1e-8);

            let (gradient, _) = objective.gradient(&coefficients, &scores);
            assert!((dot(gradient.view(), direction.view()) - here.slope).abs() < 1e-12);
        }
    }
}
