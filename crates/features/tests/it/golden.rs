//! scikit-learn's numbers: `fixtures/golden/statistics.json`, made by `statistics.py` beside it.

use luthier_features::{ComponentCount, FittedPca, FittedScaler, Pca, Solver, StandardScaler};
use ndarray::{Array1, Array2};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    tolerance: Tolerance,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Tolerance {
    scaler_relative: f64,
    ratio_absolute: f64,
    component_cosine: f64,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    x: Vec<Vec<f32>>,
    scaler_mean: Vec<f64>,
    scaler_scale: Vec<f64>,
    explained_variance: Vec<f64>,
    explained_variance_ratio: Vec<f64>,
    n_components: Vec<(f64, usize)>,
    components: Vec<Vec<f64>>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../../../fixtures/golden/statistics.json")).unwrap()
}

impl Case {
    fn x(&self) -> Array2<f32> {
        let width = self.x[0].len();
        Array2::from_shape_vec((self.x.len(), width), self.x.concat()).unwrap()
    }

    fn scaler(&self) -> FittedScaler {
        StandardScaler::fit(self.x().view()).unwrap()
    }

    fn pca(&self, n_components: ComponentCount, solver: Solver) -> FittedPca {
        Pca::new(n_components, solver)
            .fit(self.scaler().transform(self.x().view()).unwrap().view())
            .unwrap()
    }

    /// Whether an eigenvalue is far enough from its neighbours for its eigenvector to be determined.
    fn is_separated(&self, component: usize) -> bool {
        let variances = &self.explained_variance;
        let gap = |other: usize| (variances[component] - variances[other]).abs() > 1e-3 * variances[0];
        (component == 0 || gap(component - 1)) && (component + 1 == variances.len() || gap(component + 1))
    }
}

fn assert_close(name: &str, found: &Array1<f64>, expected: &[f64], tolerance: impl Fn(f64) -> f64) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (index, (found, &expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= tolerance(expected),
            "{name}[{index}]: {found}, expected {expected}"
        );
    }
}

#[test]
fn the_scaler_agrees_with_scikit_learn() {
    let Golden { tolerance, cases } = golden();
    for case in cases {
        let scaler = case.scaler();
        let relative = |expected: f64| expected.abs() * tolerance.scaler_relative;
        assert_close(
            &format!("{} mean", case.name),
            &scaler.mean,
            &case.scaler_mean,
            relative,
        );
        assert_close(
            &format!("{} scale", case.name),
            &scaler.scale,
            &case.scaler_scale,
            relative,
        );
    }
}

#[test]
fn both_solvers_explain_the_variance_that_scikit_learn_explains() {
    let Golden { tolerance, cases } = golden();
    for case in cases {
        for solver in [Solver::Faer, Solver::Smartcore] {
            let all = case.explained_variance.len();
            let pca = case.pca(ComponentCount::exact(all).unwrap(), solver);
            let name = format!("{} {solver}", case.name);
            let absolute = |_| tolerance.ratio_absolute;
            assert_close(
                &name,
                &pca.explained_variance_ratio,
                &case.explained_variance_ratio,
                absolute,
            );
            let largest = case.explained_variance[0];
            let of_largest = |_| largest * tolerance.ratio_absolute;
            assert_close(&name, &pca.explained_variance, &case.explained_variance, of_largest);
        }
    }
}

#[test]
fn both_solvers_keep_as_many_components_as_scikit_learn() {
    for case in golden().cases {
        for solver in [Solver::Faer, Solver::Smartcore] {
            let found = case.n_components.iter().map(|&(share, _)| {
                (
                    share,
                    case.pca(ComponentCount::variance(share).unwrap(), solver)
                        .n_components(),
                )
            });
            assert_eq!(found.collect::<Vec<_>>(), case.n_components, "{} {solver}", case.name);
        }
    }
}

#[test]
fn both_solvers_find_the_components_of_scikit_learn_with_their_signs() {
    let Golden { tolerance, cases } = golden();
    for case in cases {
        for solver in [Solver::Faer, Solver::Smartcore] {
            let pca = case.pca(ComponentCount::variance(0.9).unwrap(), solver);
            let mut compared = 0;
            for (index, (component, expected)) in pca.components.rows().into_iter().zip(&case.components).enumerate() {
                if case.is_separated(index) {
                    let cosine = component.dot(&Array1::from(expected.clone()));
                    assert!(
                        cosine >= 1.0 - tolerance.component_cosine,
                        "{} {solver} {index}: {cosine}",
                        case.name
                    );
                    compared += 1;
                }
            }
            assert!(
                compared > case.components.len() / 2,
                "{}: {compared} components are separated",
                case.name
            );
        }
    }
}
