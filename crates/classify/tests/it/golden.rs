//! scikit-learn's numbers: `fixtures/golden/statistics.json`, made by `statistics.py` beside it.

use luthier_classify::{ClassDistance, ClassWeight, Error, LogisticRegression, Solver};
use luthier_features::{ComponentCount, FeaturesConfig, StandardScaler};
use ndarray::{Array2, s};
use serde::Deserialize;

use crate::difference;

#[derive(Deserialize)]
struct Golden {
    left_out: usize,
    tolerance: Tolerance,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Tolerance {
    coefficients_relative: f64,
    probabilities_absolute: f64,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    x: Vec<Vec<f32>>,
    labels: Vec<usize>,
    logistic_regression_on_scaled: Vec<Fit>,
    balanced_logistic_regression_on_scaled: Balanced,
    distance_on_scaled: Distance,
    pipeline_probabilities: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Balanced {
    coefficients: Vec<Vec<f64>>,
    probabilities: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Distance {
    distances: Vec<f64>,
}

#[derive(Deserialize)]
struct Fit {
    c: f64,
    coefficients: Vec<Vec<f64>>,
    intercept: Vec<f64>,
    probabilities: Vec<Vec<f64>>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../../../fixtures/golden/statistics.json")).unwrap()
}

fn matrix<T: Clone>(rows: &[Vec<T>]) -> Array2<T> {
    Array2::from_shape_vec((rows.len(), rows[0].len()), rows.concat()).unwrap()
}

impl Case {
    fn n_classes(&self) -> usize {
        self.labels.iter().max().unwrap() + 1
    }
}

/// Both solvers on standardized features against scikit-learn's optimum.
#[test]
fn coefficients_and_probabilities_agree_with_scikit_learn() {
    let Golden { tolerance, cases, .. } = golden();
    for case in cases {
        let x = matrix(&case.x);
        let x = StandardScaler::fit(x.view()).unwrap().transform(x.view()).unwrap();
        for expected in &case.logistic_regression_on_scaled {
            for solver in [Solver::Faer, Solver::Smartcore] {
                let name = format!("{} {solver} C={}", case.name, expected.c);
                let regression = LogisticRegression::new(expected.c, solver).unwrap();
                let fitted = regression.fit(x.view(), &case.labels, case.n_classes()).unwrap();

                // scikit-learn has one row for two classes: the second class's against the first's.
                let coefficients = matrix(&expected.coefficients);
                let (weight, bias) = if case.n_classes() == 2 {
                    let weight = &fitted.weight.row(1) - &fitted.weight.row(0);
                    (
                        weight.insert_axis(ndarray::Axis(0)),
                        vec![fitted.bias[1] - fitted.bias[0]],
                    )
                } else {
                    (fitted.weight.clone(), fitted.bias.to_vec())
                };
                let scale = coefficients
                    .iter()
                    .fold(0.0f64, |largest, value| largest.max(value.abs()));
                let off = difference(&weight, &coefficients) / scale;
                assert!(
                    off <= tolerance.coefficients_relative,
                    "{name}: coefficients off by {off:e}"
                );
                let off = difference(&matrix(&[bias]), &matrix(std::slice::from_ref(&expected.intercept))) / scale;
                assert!(
                    off <= tolerance.coefficients_relative,
                    "{name}: intercept off by {off:e}"
                );

                let probabilities = fitted.predict_proba(x.view()).unwrap();
                let off = difference(&probabilities, &matrix(&expected.probabilities));
                assert!(
                    off <= tolerance.probabilities_absolute,
                    "{name}: probabilities off by {off:e}"
                );
            }
        }
    }
}

#[test]
fn scaler_then_components_then_regression_agree_with_scikit_learn() {
    let Golden { tolerance, cases, .. } = golden();
    for case in cases {
        let x = matrix(&case.x);
        for solver in [Solver::Faer, Solver::Smartcore] {
            let config = FeaturesConfig {
                n_components: ComponentCount::variance(0.9).unwrap(),
                whiten: false,
                solver,
            };
            let components = config.run(x.view(), &()).unwrap().transform(x.view()).unwrap();
            let regression = LogisticRegression::new(1.0, solver).unwrap();
            let fitted = regression
                .fit(components.view(), &case.labels, case.n_classes())
                .unwrap();
            let probabilities = fitted.predict_proba(components.view()).unwrap();
            let off = difference(&probabilities, &matrix(&case.pipeline_probabilities));
            assert!(
                off <= tolerance.probabilities_absolute,
                "{} {solver}: off by {off:e}",
                case.name
            );
        }
    }
}

#[test]
fn balanced_classes_agree_with_scikit_learn() {
    let Golden {
        left_out,
        tolerance,
        cases,
    } = golden();
    for case in cases {
        let x = matrix(&case.x);
        let x = StandardScaler::fit(x.view()).unwrap().transform(x.view()).unwrap();
        let (x, labels) = (x.slice(s![left_out.., ..]), &case.labels[left_out..]);
        let fit = |class_weight, solver| {
            LogisticRegression {
                class_weight,
                ..LogisticRegression::new(1.0, solver).unwrap()
            }
            .fit(x, labels, case.n_classes())
        };
        let fitted = fit(ClassWeight::Balanced, Solver::Faer).unwrap();
        let expected = &case.balanced_logistic_regression_on_scaled;
        let coefficients = matrix(&expected.coefficients);
        let weight = if case.n_classes() == 2 {
            (&fitted.weight.row(1) - &fitted.weight.row(0)).insert_axis(ndarray::Axis(0))
        } else {
            fitted.weight.clone()
        };
        let scale = coefficients
            .iter()
            .fold(0.0f64, |largest, value| largest.max(value.abs()));
        let off = difference(&weight, &coefficients) / scale;
        assert!(off <= tolerance.coefficients_relative, "{}: off by {off:e}", case.name);
        let probabilities = matrix(&expected.probabilities);
        let off = difference(&fitted.predict_proba(x).unwrap(), &probabilities);
        assert!(off <= tolerance.probabilities_absolute, "{}: off by {off:e}", case.name);

        let uniform = fit(ClassWeight::Uniform, Solver::Faer).unwrap();
        assert!(difference(&uniform.predict_proba(x).unwrap(), &probabilities) > 1e-3);
        assert!(matches!(
            fit(ClassWeight::Balanced, Solver::Smartcore),
            Err(Error::ClassWeight)
        ));
    }
}

#[test]
fn distances_to_the_nearest_class_agree_with_scikit_learn() {
    for case in golden().cases {
        let x = matrix(&case.x);
        let x = StandardScaler::fit(x.view()).unwrap().transform(x.view()).unwrap();
        let distance = ClassDistance::fit(x.view(), &case.labels, case.n_classes()).unwrap();
        let expected = &case.distance_on_scaled;
        // scikit-learn's are not divided by the root of the number of components.
        let root = (x.ncols() as f64).sqrt();
        for (found, expected) in distance.distances(x.view()).unwrap().iter().zip(&expected.distances) {
            let found = found * root;
            assert!(
                (found - expected).abs() < 1e-5 * expected,
                "{}: {found}, expected {expected}",
                case.name
            );
        }
    }
}
