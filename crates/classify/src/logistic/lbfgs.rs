//! Limited-memory BFGS (Nocedal and Wright, "Numerical Optimization", algorithm 7.4), with two changes that a linear
//! model allows: scores are linear in the coefficients, so that a line search needs no matrix product; and the first
//! guess of the Hessian is its estimated diagonal, for principal components differ in variance by orders of magnitude.

use std::collections::VecDeque;

use ndarray::Array2;

use super::objective::{Evaluation, Line, Objective, dot, largest};

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

/// The coefficients at the optimum, `[k, p + 1]`, and the number of iterations. Ends early, with what was reached, if
/// a step no longer changes anything that floating point can tell.
pub(super) fn minimize(
    objective: &Objective<'_>,
    start: Array2<f64>,
    tolerance: f64,
    max_iterations: usize,
) -> (Array2<f64>, usize) {
    let mut coefficients = start;
    let mut here = objective.at(&coefficients);
    let mut history: VecDeque<Pair> = VecDeque::with_capacity(HISTORY);
    let mut iterations = 0;
    while largest(&here.gradient) > tolerance && iterations < max_iterations {
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
    (coefficients, iterations)
}

/// Moves the coefficients along the direction, which becomes the step, as far as is good. `None` if no length will do.
///
/// Mostly the full length is, at the price of one pass over the rows; else the line search needs another.
fn step(
    objective: &Objective<'_>,
    coefficients: &mut Array2<f64>,
    direction: &mut Array2<f64>,
    here: &Evaluation,
) -> Option<Evaluation> {
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
