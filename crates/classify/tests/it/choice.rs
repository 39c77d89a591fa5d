use luthier_artifact::{Artifact, FeatureTable};
use luthier_classify::{
    ChooseC, ClassWeight, ClassifyConfig, CrossValidationInfo, Error, Model, Rule, Solver, Training,
};
use luthier_features::{ComponentCount, FeaturesConfig};
use ndarray::{Array2, Axis, s};

use crate::{synthetic, with_threads};

const AUTO: ClassifyConfig = ClassifyConfig {
    c: ChooseC::Auto(Rule::SmallestLoss),
    class_weight: ClassWeight::Uniform,
    folds: 4,
    seed: 7,
    solver: Solver::Faer,
};
const FEATURES: FeaturesConfig = FeaturesConfig {
    n_components: ComponentCount::Variance(0.95),
    whiten: false,
    solver: Solver::Faer,
};

fn cross_validation(model: &Model) -> &CrossValidationInfo {
    model.training.cross_validation.as_ref().unwrap()
}

#[test]
fn the_c_of_smallest_log_loss_is_chosen_and_the_table_kept() {
    let train = synthetic(3, 30, 20);
    let projection = FEATURES.run(train.features(), &()).unwrap();
    let model = AUTO.run(&Training::from(&train), &projection, &()).unwrap().model;
    let search = &cross_validation(&model).candidates;
    assert_eq!(search.len(), 9);
    assert!(
        search
            .iter()
            .all(|candidate| candidate.log_loss > 0.0 && candidate.standard_error > 0.0)
    );
    let best = search
        .iter()
        .map(|candidate| candidate.log_loss)
        .fold(f64::INFINITY, f64::min);
    let chosen = search.iter().find(|candidate| candidate.c == model.training.c).unwrap();
    assert_eq!(chosen.log_loss, best);
    // Hardly any weights tell nothing, hardly any penalty is too sure: the best is in between.
    assert!(search[0].log_loss > best && search[8].log_loss > best, "{search:?}");
    assert!(
        (search[0].log_loss - 3.0f64.ln()).abs() < 0.05,
        "C = 1e-4 is close to guessing"
    );

    let fixed = ClassifyConfig {
        c: ChooseC::Fixed(model.training.c),
        ..AUTO
    }
    .run(&Training::from(&train), &projection, &())
    .unwrap()
    .model;
    assert_eq!((&fixed.training.cross_validation, &fixed.distance), (&None, &None));
    assert_eq!(fixed.classifier_weight, model.classifier_weight);
}

#[test]
fn the_order_of_rows_and_the_number_of_threads_do_not_change_the_search() {
    let train = synthetic(3, 20, 12);
    let run = |threads: usize| {
        with_threads(threads, || {
            AUTO.run(
                &Training::from(&train),
                &FEATURES.run(train.features(), &()).unwrap(),
                &(),
            )
            .map(|classified| (classified.model.encode(), classified.held_out.encode()))
            .unwrap()
        })
    };
    assert!(run(1) == run(2));
    assert!(run(1) == run(5));
}

#[test]
fn a_fold_too_small_for_the_components_asked_for_keeps_what_it_can() {
    let train = synthetic(2, 6, 30);
    let config = FeaturesConfig {
        n_components: ComponentCount::Exact(12),
        whiten: false,
        solver: Solver::Faer,
    };
    let model = AUTO
        .run(
            &Training::from(&train),
            &config.run(train.features(), &()).unwrap(),
            &(),
        )
        .unwrap()
        .model;
    assert_eq!(
        (model.training.n_components, cross_validation(&model).candidates.len()),
        (12, 9)
    );
}

#[test]
fn one_standard_error_of_loss_buys_a_smaller_c() {
    let train = synthetic(3, 30, 20);
    let projection = FEATURES.run(train.features(), &()).unwrap();
    let chosen = |rule| {
        let config = ClassifyConfig {
            c: ChooseC::Auto(rule),
            ..AUTO
        };
        config.run(&Training::from(&train), &projection, &()).unwrap().model
    };
    let (best, simplest) = (chosen(Rule::SmallestLoss), chosen(Rule::OneStandardError));
    assert_eq!(
        cross_validation(&best).candidates,
        cross_validation(&simplest).candidates
    );
    assert!(simplest.training.c < best.training.c);
}

/// What the thresholds promise, on images from where the training images came from, with more images than features and
/// with fewer, where folds keep fewer components than the model.
#[test]
fn thresholds_keep_about_the_share_they_promise() {
    for (per_class, d, tolerance) in [(400, 12, 0.05), (100, 400, 0.1)] {
        let mut all = synthetic(3, per_class, d);
        // Correlated like those of a network: a few directions have most of the variance.
        let mixing = synthetic(2, d / 2, d).features;
        all.features = (0..d).fold(Array2::zeros(all.features.dim()), |sum: Array2<f32>, factor| {
            let column = all.features.slice(s![.., factor..=factor]).to_owned() / (1.0 + factor as f32).sqrt();
            sum + column.dot(&mixing.slice(s![factor..=factor, ..]))
        });
        // Images lie class by class: every other one is kept for the test.
        let half = |first: usize| {
            let rows: Vec<usize> = (first..all.n_rows()).step_by(2).collect();
            let mut half = all.clone();
            half.features = all.features.select(Axis(0), &rows);
            half.labels = rows.iter().map(|&row| all.labels[row]).collect();
            half.images = rows.iter().map(|&row| all.images[row]).collect();
            half
        };
        let (train, test) = (half(0), half(1));
        let projection = FEATURES.run(train.features(), &()).unwrap();
        let model = AUTO.run(&Training::from(&train), &projection, &()).unwrap().model;
        let probabilities = model.predict_proba(test.features()).unwrap();
        let distances = model.distances(test.features()).unwrap().unwrap();
        let thresholds = &cross_validation(&model).thresholds;
        let shares: Vec<f64> = thresholds.iter().map(|threshold| threshold.share).collect();
        assert_eq!(shares, [0.9, 0.95, 0.99]);
        for threshold in thresholds {
            let kept = probabilities
                .rows()
                .into_iter()
                .zip(&distances)
                .filter(|(row, distance)| {
                    row.iter().any(|&p| p >= threshold.probability) && **distance <= threshold.distance.unwrap()
                });
            let kept = kept.count() as f64 / test.n_rows() as f64;
            assert!(
                (kept - threshold.share).abs() < tolerance,
                "{d} features, {threshold:?} keeps {kept}"
            );
        }
    }
}

#[test]
fn a_class_with_one_image_is_never_held_out() {
    let mut train = synthetic(2, 5, 4);
    train.labels = vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let projection = FEATURES.run(train.features(), &()).unwrap();
    let run = |train: &FeatureTable, c| ClassifyConfig { c, ..AUTO }.run(&Training::from(train), &projection, &());
    let model = run(&train, AUTO.c).unwrap().model;
    assert_eq!(cross_validation(&model).n_held_out, 9);

    train.labels = vec![0; 10];
    let error = run(&train, ChooseC::Fixed(1.0)).unwrap_err();
    assert!(matches!(
        error,
        Error::TooFewImages {
            expected: 1,
            found: 0,
            ..
        }
    ));

    train.labels = vec![0, 1];
    train.features = train.features.select(Axis(0), &[0, 1]);
    train.images.truncate(2);
    let error = run(&train, AUTO.c).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no class has two different training images, expected such classes to hold images out"
    );
}

#[test]
fn look_alikes_are_no_judges_of_each_other() {
    // Each image twice, the second time a hair different and under another digest, and labels that are chance: whoever
    // has seen the look-alike knows the label.
    let mut train = synthetic(2, 40, 30);
    for row in (0..80).step_by(2) {
        let copy = train.features.row(row).mapv(|value| value + 1e-4);
        train.features.row_mut(row + 1).assign(&copy);
    }
    let labels: Vec<usize> = (0..80u64)
        .map(|row| usize::from(train.images[(row / 2) as usize].as_bytes()[0] > 127))
        .collect();
    let mut order: Vec<usize> = (0..80).collect();
    order.sort_by_key(|&row| labels[row]);
    train.features = train.features.select(Axis(0), &order);
    train.images = order.iter().map(|&row| train.images[row]).collect();
    train.labels = order.iter().map(|&row| labels[row]).collect();
    let place = |row: usize| order.iter().position(|&other| other == row).unwrap();
    let pairs: Vec<_> = (0..80)
        .step_by(2)
        .map(|row| vec![train.images[place(row)], train.images[place(row + 1)]])
        .collect();

    let projection = FEATURES.run(train.features(), &()).unwrap();
    let best = |training: &Training<'_, _>| {
        let model = AUTO.run(training, &projection, &()).unwrap().model;
        let search = &cross_validation(&model).candidates;
        let accuracy = cross_validation(&model).learning_curve.last().unwrap().accuracy;
        (
            search
                .iter()
                .map(|candidate| candidate.log_loss)
                .fold(f64::INFINITY, f64::min),
            accuracy,
        )
    };
    let (apart, accuracy_apart) = best(&Training::from(&train));
    let (together, accuracy_together) = best(&Training::from(&train).with_look_alikes(&pairs));
    // Guessing costs ln 2 = 0.69.
    assert!(
        apart < 0.5 && together > 0.6,
        "log loss {apart} with, {together} without look-alikes in training"
    );
    assert!(
        accuracy_apart > accuracy_together + 0.15,
        "accuracy {accuracy_apart}, {accuracy_together}"
    );
}
