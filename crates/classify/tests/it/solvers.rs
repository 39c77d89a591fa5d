use luthier_artifact::Artifact;
use luthier_classify::{ChooseC, ClassWeight, Classifier, ClassifyConfig, LogisticRegression, Rule, Solver, Training};
use luthier_features::{ComponentCount, FeaturesConfig};
use ndarray::Array2;
use smartcore::api::{Predictor, SupervisedEstimator};

use crate::{difference, synthetic, with_threads};

#[test]
fn the_number_of_threads_does_not_change_a_byte() {
    let train = synthetic(4, 150, 90);
    let run = |threads: usize| {
        with_threads(threads, || {
            let config = FeaturesConfig {
                n_components: ComponentCount::Variance(0.98),
                whiten: false,
                solver: Solver::Faer,
            };
            let classify = ClassifyConfig {
                c: ChooseC::Auto(Rule::SmallestLoss),
                class_weight: ClassWeight::Uniform,
                folds: 5,
                seed: 0,
                solver: Solver::Faer,
            };
            classify
                .run(
                    &Training::from(&train),
                    &config.run(train.features(), &()).unwrap(),
                    &(),
                )
                .unwrap()
                .model
                .encode()
        })
    };
    let one = run(1);
    for threads in [2, 3, 8] {
        assert!(run(threads) == one, "{threads} threads");
    }
}

/// smartcore's line search and its fixed tolerances leave it short of the optimum; how far is what is asserted.
#[test]
fn the_solvers_agree() {
    for n_classes in [2, 4] {
        let train = synthetic(n_classes, 40, 15);
        let x = train.features.mapv(f64::from);
        for c in [0.01, 1.0, 100.0] {
            let fit = |solver| {
                LogisticRegression::new(c, solver)
                    .unwrap()
                    .fit(x.view(), &train.labels, n_classes)
                    .unwrap()
            };
            let (faer, smartcore) = (fit(Solver::Faer), fit(Solver::Smartcore));
            assert!(faer.converged && faer.iterations.is_some() && smartcore.iterations.is_none());
            let (ours, theirs) = (
                faer.predict_proba(x.view()).unwrap(),
                smartcore.predict_proba(x.view()).unwrap(),
            );
            let off = difference(&ours, &theirs);
            assert!(off < 1e-6, "{n_classes} classes, C = {c}: {off:e}");
            assert_eq!(faer.predict(x.view()).unwrap(), smartcore.predict(x.view()).unwrap());
        }
    }
}

/// A thousand times more precision asked for, and the coefficients move by less than 1e-6 of the largest.
#[test]
fn the_default_tolerance_reaches_the_optimum() {
    let train = synthetic(5, 60, 40);
    let x = train.features.mapv(f64::from);
    for c in [1e-3, 1.0, 1e2] {
        let regression = LogisticRegression::new(c, Solver::Faer).unwrap();
        let fit = |tolerance| {
            LogisticRegression {
                tolerance,
                ..regression
            }
            .fit(x.view(), &train.labels, train.classes.len())
            .unwrap()
        };
        let (default, tight) = (fit(regression.tolerance), fit(regression.tolerance * 1e-3));
        let largest = tight
            .weight
            .iter()
            .fold(0.0f64, |largest, value| largest.max(value.abs()));
        let off = difference(&default.weight, &tight.weight) / largest;
        assert!(
            tight.converged && off < 1e-6,
            "C = {c}: {off:e} after {:?} iterations",
            default.iterations
        );
    }
}

#[test]
fn separable_classes_with_hardly_any_penalty_still_converge() {
    let train = synthetic(3, 5, 40);
    let x = train.features.mapv(f64::from);
    let fitted = LogisticRegression::new(1e6, Solver::Faer)
        .unwrap()
        .fit(x.view(), &train.labels, 3)
        .unwrap();
    assert!(fitted.converged && fitted.predict(x.view()).unwrap() == train.labels);
    assert!(fitted.predict_proba(x.view()).unwrap().iter().all(|p| p.is_finite()));
}

#[test]
fn the_traits_of_smartcore_reach_the_same_code_with_labels_of_any_value() {
    let train = synthetic(3, 20, 8);
    let x: Array2<f64> = train.features.mapv(f64::from);
    let regression = LogisticRegression::new(1.0, Solver::Faer).unwrap();
    let names = [30, 10, 70];
    let y: Vec<u32> = train.labels.iter().map(|&label| names[label]).collect();

    assert!(Classifier::new().predict(&x).is_err());
    let found = Classifier::fit(&x, &y, regression).unwrap().predict(&x).unwrap();
    // Classes are numbered by their values: 10, 30, 70.
    let labels: Vec<usize> = train.labels.iter().map(|&label| [1, 0, 2][label]).collect();
    let expected = regression.fit(x.view(), &labels, 3).unwrap().predict(x.view()).unwrap();
    assert_eq!(
        found,
        expected
            .into_iter()
            .map(|label| [10, 30, 70][label])
            .collect::<Vec<u32>>()
    );
    assert_ne!(found, vec![found[0]; found.len()]);
}
