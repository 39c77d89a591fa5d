//! Real features of 1,806 photographs, which may not be kept in the repository: read where `LUTHIER_TEST_REFERENCE`
//! points.

use std::fs;
use std::path::Path;

use luthier_artifact::{Digest, ExtractorInfo, FeatureTable};
use luthier_classify::{ChooseC, ClassWeight, ClassifyConfig, LogisticRegression, Model, Rule, Solver, Training};
use luthier_features::{ComponentCount, FeaturesConfig};
use luthier_testing::Need;
use ndarray::{Array2, Axis, s};
use serde::Deserialize;

#[derive(Deserialize)]
struct Reference {
    results: Vec<Expected>,
}

/// A row of scikit-learn's results.
#[derive(Debug, Deserialize)]
struct Expected {
    resize: String,
    /// A share of the variance below 1, else a count.
    n_components: f64,
    kept: usize,
    #[serde(rename = "C")]
    c: f64,
    test_log_loss: f64,
    test_errors: usize,
}

struct Split {
    train: FeatureTable,
    test: FeatureTable,
}

fn read_split(folder: &Path, resize: &str) -> Split {
    let features: Array2<f32> = ndarray_npy::read_npy(folder.join(format!("music10-{resize}-features.npy"))).unwrap();
    let split = fs::read_to_string(folder.join("music10-split.tsv")).unwrap();
    let rows: Vec<Vec<&str>> = split.lines().skip(1).map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows.len(), features.nrows());
    let mut classes: Vec<String> = rows.iter().map(|row| row[1].to_owned()).collect();
    classes.sort();
    classes.dedup();
    let table = |part: &str| {
        let chosen: Vec<usize> = (0..rows.len()).filter(|&row| rows[row][2] == part).collect();
        let label = |&row: &usize| classes.iter().position(|class| class == rows[row][1]).unwrap();
        FeatureTable {
            classes: classes.clone(),
            extractor: ExtractorInfo {
                views: vec![resize.to_owned()],
                pooling: "mean".into(),
                combine: "mean".to_owned(),
                decode: "exact".to_owned(),
                weights: "reference".to_owned(),
                weights_sha256: String::new(),
                precision: "fp32".to_owned(),
            },
            labels: chosen.iter().map(label).collect(),
            images: chosen.iter().map(|&row| Digest::of(rows[row][0].as_bytes())).collect(),
            features: features.select(Axis(0), &chosen),
        }
    };
    Split {
        train: table("train"),
        test: table("test"),
    }
}

fn train(split: &Split, n_components: ComponentCount, c: ChooseC, solver: Solver) -> Model {
    let projection = FeaturesConfig {
        n_components,
        whiten: false,
        solver: Solver::Faer,
    }
    .run(split.train.features(), &())
    .unwrap();
    ClassifyConfig {
        c,
        class_weight: ClassWeight::Uniform,
        folds: 5,
        seed: 0,
        solver,
    }
    .run(&Training::from(&split.train), &projection, &())
    .unwrap()
    .model
}

/// The number of errors and the mean log loss on a table.
fn judge(model: &Model, table: &FeatureTable) -> (usize, f64) {
    let probabilities = model.predict_proba(table.features()).unwrap();
    let mut errors = 0;
    let mut loss = 0.0;
    for (row, &label) in probabilities.rows().into_iter().zip(&table.labels) {
        errors += usize::from(row.iter().any(|&p| p > row[label]));
        loss -= row[label].ln();
    }
    (errors, loss / table.n_rows() as f64)
}

#[test]
fn music10_has_the_errors_and_the_log_loss_of_scikit_learn() {
    let Some(folder) = Need::Reference.path() else { return };
    let json = fs::read_to_string(folder.join("music10-scikit-learn.json")).unwrap();
    let Reference { results } = serde_json::from_str(&json).unwrap();
    assert_eq!(results.len(), 8);
    let mut failures = Vec::new();
    for expected in results {
        let split = read_split(&folder, &expected.resize);
        let n_components = if expected.n_components < 1.0 {
            ComponentCount::variance(expected.n_components).unwrap()
        } else {
            ComponentCount::exact(expected.n_components as usize).unwrap()
        };
        let start = std::time::Instant::now();
        let model = train(&split, n_components, ChooseC::Fixed(expected.c), Solver::Faer);
        let seconds = start.elapsed().as_secs_f64();
        let (errors, loss) = judge(&model, &split.test);
        let off = (loss - expected.test_log_loss).abs();
        println!(
            "{} {n_components} C={}: {errors} errors, log loss {loss:.6}, off by {off:.1e}, {:?} iterations, {seconds:.2} s",
            expected.resize, expected.c, model.training.iterations
        );
        assert!(model.training.converged);
        if errors != expected.test_errors || off > 1e-4 || model.training.n_components != expected.kept {
            failures.push(format!(
                "{expected:?}: {errors} errors, log loss {loss}, {} kept",
                model.training.n_components
            ));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// At a size that smartcore finishes in seconds: the test half's 362 rows and 40 components.
#[test]
fn the_solvers_give_the_same_predictions_on_music10() {
    let Some(folder) = Need::Reference.path() else { return };
    let split = read_split(&folder, "squash");
    let features = FeaturesConfig {
        n_components: ComponentCount::Exact(40),
        whiten: false,
        solver: Solver::Faer,
    };
    let projection = features.run(split.test.features(), &()).unwrap();
    let (fitted_on, all) = (
        projection.transform(split.test.features()).unwrap(),
        projection.transform(split.train.features()).unwrap(),
    );
    let predict = |solver| {
        let regression = LogisticRegression::new(1.0, solver).unwrap();
        let fitted = regression
            .fit(fitted_on.view(), &split.test.labels, split.test.classes.len())
            .unwrap();
        (fitted.predict(all.view()).unwrap(), fitted.gradient_norm)
    };
    let ((ours, _), (theirs, gradient_norm)) = (predict(Solver::Faer), predict(Solver::Smartcore));
    let different = ours.iter().zip(&theirs).filter(|(a, b)| a != b).count();
    assert_eq!(
        different,
        0,
        "of {} predictions; smartcore stopped at a gradient of {gradient_norm:e}",
        ours.len()
    );
}

/// The components of both solvers, at a size that smartcore finishes in seconds: 362 rows and 200 columns.
#[test]
fn the_solvers_find_the_same_components_of_music10() {
    let Some(folder) = Need::Reference.path() else { return };
    let mut table = read_split(&folder, "squash").test;
    table.features = table.features.slice(s![.., ..200]).to_owned();
    let project = |solver| {
        let projection = FeaturesConfig {
            n_components: ComponentCount::Variance(0.98),
            whiten: false,
            solver,
        }
        .run(table.features(), &())
        .unwrap();
        projection.transform(table.features()).unwrap()
    };
    assert!(crate::difference(&project(Solver::Faer), &project(Solver::Smartcore)) < 1e-6);
}

/// Prints how long the regression alone takes at several tolerances, for a look at figures too noisy to assert.
#[test]
#[ignore = "a measurement"]
fn time_of_the_regression_on_music10() {
    let Some(folder) = Need::Reference.path() else { return };
    let split = read_split(&folder, "squash");
    for n_components in [ComponentCount::Exact(98), ComponentCount::Variance(0.98)] {
        let projection = FeaturesConfig {
            n_components,
            whiten: false,
            solver: Solver::Faer,
        }
        .run(split.train.features(), &())
        .unwrap();
        let components = projection.transform(split.train.features()).unwrap();
        for c in [0.01, 1.0, 1e4] {
            for tolerance in [1e-4, 1e-6, 1e-10] {
                let start = std::time::Instant::now();
                let regression = LogisticRegression {
                    tolerance,
                    ..LogisticRegression::new(c, Solver::Faer).unwrap()
                };
                let fitted = regression.fit(components.view(), &split.train.labels, 10).unwrap();
                println!(
                    "{n_components} C={c} {tolerance:e}: {:?} iterations, gradient {:.1e}, {:.2?}",
                    fitted.iterations,
                    fitted.gradient_norm,
                    start.elapsed()
                );
            }
        }
    }
}

/// Prints the table of the cross-validation and how long it takes.
#[test]
#[ignore = "a measurement"]
fn the_choice_of_c_on_music10() {
    let Some(folder) = Need::Reference.path() else { return };
    let split = read_split(&folder, "squash");
    let start = std::time::Instant::now();
    let model = train(
        &split,
        ComponentCount::Variance(0.98),
        ChooseC::Auto(Rule::SmallestLoss),
        Solver::Faer,
    );
    println!("{:.1?}: {:#?}", start.elapsed(), model.training);
}
