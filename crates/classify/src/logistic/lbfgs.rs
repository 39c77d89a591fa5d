//! Limited-memory BFGS (Nocedal and Wright, "Numerical Optimization", algorithm 7.4), with two changes that a linear
//! model allows: scores are linear in the coefficients, so that a line search needs no matrix product; and the first
//! guess of the Hessian is its estimated diagonal, for principal components differ in variance by orders of magnitude.

use std::collections::VecDeque;

use luthier_artifact::Observer;
use ndarray::Array2;

use super::objective::{Evaluated, Line, Objective, dot, largest};
use crate::{Error, Result};

/// How many earlier steps shape the direction.
const HISTORY: usize = 10;

/// The share of the decrease that the slope promises which a step must have.
const DECREASE: f64 = 1e-4;

/// A step, the change of the gradient along it, and the product of both, which is positive.
struct Pair {
    step: Array2<f64>,
    change: Array2<f64>,
    product: f64,
}

/// Where the iterations ended.
pub(super) struct Minimum {
    /// `[k, p + 1]`.
    pub(super) coefficients: Array2<f64>,
    pub(super) iterations: usize,
    /// Whether another step would lower the objective by less than rounding changes it.
    ///
    /// The quadratic model of the objective promises a decrease of `-½ gradientᵀ direction`. Less than
    /// `ε (1 + |objective|)` cannot be told from 0, because each log loss is the logarithm of a sum from 1 on. On small
    /// sets of images the gradient is then of the size of its own rounding errors, some 1e-10, and may stay above the
    /// tolerance for ever.
    pub(super) is_within_rounding: bool,
}

/// Goes down to a gradient whose entries are at most `tolerance`. Ends early, with what was reached, if a step no longer
/// changes anything that floating point can tell.
///
/// # Errors
/// [`Error::Interrupted`]: the observer is asked before each iteration.
pub(super) fn minimize(
    objective: &Objective<'_>,
    start: Array2<f64>,
    tolerance: f64,
    max_iterations: usize,
    observer: &dyn Observer,
) -> Result<Minimum> {
    let mut coefficients = start;
    let mut here = objective.at(&coefficients);
    let mut history: VecDeque<Pair> = VecDeque::with_capacity(HISTORY);
    let mut iterations = 0;
    while largest(&here.gradient) > tolerance && iterations < max_iterations {
        Error::if_interrupted(observer)?;
        let mut direction = direction(&here.gradient, &history, &objective.curvature(&here.spread));
        let Some(next) = step(objective, &mut coefficients, &mut direction, &here) else {
            break;
        };
        let change = &next.gradient - &here.gradient;
        let product = dot(direction.view(), change.view());
        if product > 0.0 {
            history.truncate(HISTORY - 1);
            history.push_front(Pair {
                step: direction,
                change,
                product,
            });
        }
        here = next;
        iterations += 1;
    }
    let direction = direction(&here.gradient, &history, &objective.curvature(&here.spread));
    let decrease = -0.5 * dot(here.gradient.view(), direction.view());
    Ok(Minimum {
        coefficients,
        iterations,
        is_within_rounding: decrease <= f64::EPSILON * (1.0 + here.value.abs()),
    })
}

/// Moves the coefficients along the direction, which becomes the step, as far as is good. `None` if no length will do.
///
/// Mostly the full length is, at the price of one pass over the rows; else the line search needs another.
fn step(
    objective: &Objective<'_>,
    coefficients: &mut Array2<f64>,
    direction: &mut Array2<f64>,
    here: &Evaluated,
) -> Option<Evaluated> {
    const SLOPE: f64 = 0.5;

    let slope = dot(here.gradient.view(), direction.view());
    if slope >= 0.0 {
        return None;
    }
    let full = &*coefficients + &*direction;
    let there = objective.at(&full);
    let slope_there = dot(there.gradient.view(), direction.view());
    if there.value <= here.value + DECREASE * slope + allowance(here.value) && slope_there.abs() <= -SLOPE * slope {
        *coefficients = full;
        return Some(there);
    }
    // Not the difference of the scores, of which little but rounding errors is left near the optimum.
    let change = objective.scores(direction);
    let length = search(&objective.line(coefficients, direction, &here.scores, &change))?;
    *direction *= length;
    *coefficients += &*direction;
    Some(objective.at_scores(coefficients, here.scores.moved(length, &change)))
}

/// The quasi-Newton direction; `history` has the latest step first.
fn direction(gradient: &Array2<f64>, history: &VecDeque<Pair>, curvature: &Array2<f64>) -> Array2<f64> {
    let mut direction = -gradient;
    let mut weights = Vec::with_capacity(history.len());
    for Pair { step, change, product } in history {
        let weight = dot(step.view(), direction.view()) / product;
        direction.scaled_add(-weight, change);
        weights.push(weight);
    }
    direction /= curvature;
    if let Some(Pair { change, product, .. }) = history.front() {
        direction *= product / dot((change / curvature).view(), change.view());
    }
    for (Pair { step, change, product }, weight) in history.iter().zip(weights).rev() {
        let correction = weight - dot(change.view(), direction.view()) / product;
        direction.scaled_add(correction, step);
    }
    direction
}

/// A step length by Newton's method on the slope, which is monotone as the objective is convex, kept in a bracket.
///
/// The length has sufficient decrease and a slope of at most a tenth of the first (the strong Wolfe conditions).
/// Close to the optimum the decrease drowns in rounding errors of the value while the slope is still accurate,
/// therefore the allowance. `None` if no length will do.
fn search(line: &Line<'_, '_>) -> Option<f64> {
    const SLOPE: f64 = 0.1;
    const TRIALS: usize = 50;

    let start = line.at(0.0);
    if start.slope >= 0.0 {
        return None;
    }
    let allowance = allowance(start.value);
    let (mut low, mut high, mut length) = (0.0, f64::INFINITY, 1.0);
    for _ in 0..TRIALS {
        let here = line.at(length);
        let decreases = here.value <= start.value + DECREASE * length * start.slope + allowance;
        if decreases && here.slope.abs() <= -SLOPE * start.slope {
            return Some(length);
        }
        if decreases && here.slope < 0.0 {
            low = length;
        } else {
            high = length;
        }
        let newton = length - here.slope / here.curvature;
        length = if newton > low && newton < high.min(10.0 * length) {
            newton
        } else if high.is_finite() {
            0.5 * (low + high)
        } else {
            2.0 * length
        };
    }
    None
}

/// Rounding errors of a value.
fn allowance(value: f64) -> f64 {
    16.0 * f64::EPSILON * value.abs()
}
