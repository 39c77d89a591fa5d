//! Data that nobody would choose to train on.

use luthier_artifact::FeatureTable;
use luthier_classify::{
    ChooseC, ClassDistance, ClassWeight, ClassifyConfig, CrossValidation, Error, LogisticRegression, Model, Result,
    Rule, Solver, Training, thresholds_that_keep,
};
use luthier_features::{ComponentCount, FeaturesConfig};
use ndarray::{Array2, Axis, concatenate};

use crate::synthetic;

const FEATURES: FeaturesConfig = FeaturesConfig {
    n_components: ComponentCount::Variance(0.95),
    whiten: false,
    solver: Solver::Faer,
};

fn train(table: &FeatureTable, c: ChooseC, features: FeaturesConfig) -> Result<Model> {
    let config = ClassifyConfig {
        c,
        class_weight: ClassWeight::Uniform,
        folds: 5,
        seed: 0,
        solver: Solver::Faer,
    };
    Ok(config
        .run(&Training::from(table), &features.run(table.features(), &())?, &())?
        .model)
}

/// The share of the table's rows that are predicted rightly.
fn accuracy(model: &Model, table: &FeatureTable) -> f64 {
    let probabilities = model.predict_proba(table.features()).unwrap();
    let right = probabilities.rows().into_iter().zip(&table.labels);
    right
        .filter(|(row, label)| row.iter().all(|&p| p <= row[**label]))
        .count() as f64
        / table.n_rows() as f64
}

#[test]
fn two_images_a_class_are_enough_to_choose_c() {
    let table = synthetic(5, 2, 40);
    let model = train(&table, ChooseC::Auto(Rule::SmallestLoss), FEATURES).unwrap();
    assert!(model.training.converged, "{:?}", model.training);
    assert_eq!(accuracy(&model, &table), 1.0);
}

#[test]
fn a_thousand_classes_are_told_apart() {
    let mut table = synthetic(1000, 2, 12);
    // Centres farther apart than the noise around them.
    for (mut row, &label) in table.features.rows_mut().into_iter().zip(&table.labels) {
        row *= 0.05;
        for (column, value) in row.iter_mut().enumerate() {
            *value += f32::from(u8::try_from((label >> (column % 10)) & 1).unwrap());
        }
    }
    let model = train(&table, ChooseC::Fixed(10.0), FEATURES).unwrap();
    assert!(
        model.training.converged && accuracy(&model, &table) > 0.9,
        "{}",
        accuracy(&model, &table)
    );
}

#[test]
fn a_class_a_thousand_times_rarer_is_found_if_classes_count_the_same() {
    let table = synthetic(2, 2000, 6);
    // All of the first class, two of the second.
    let rows: Vec<usize> = (0..2002).collect();
    let x = table.features.select(Axis(0), &rows).mapv(f64::from);
    let fit = |class_weight| {
        let regression = LogisticRegression {
            class_weight,
            ..LogisticRegression::new(1.0, Solver::Faer).unwrap()
        };
        let fitted = regression.fit(x.view(), &table.labels[..2002], 2).unwrap();
        assert!(fitted.converged);
        let all = fitted.predict(table.features.mapv(f64::from).view()).unwrap();
        all[2000..].iter().filter(|&&label| label == 1).count()
    };
    let (uniform, balanced) = (fit(ClassWeight::Uniform), fit(ClassWeight::Balanced));
    assert!(
        uniform < 100 && balanced > 800,
        "{uniform} and {balanced} of 2,000 found"
    );
}

#[test]
fn constant_features_and_repeated_rows_change_no_prediction() {
    let table = synthetic(3, 20, 10);
    let expected = train(&table, ChooseC::Fixed(1.0), FEATURES).unwrap();
    let expected = expected.predict_proba(table.features()).unwrap();

    let mut padded = table.clone();
    padded.features = concatenate![Axis(1), table.features, Array2::from_elem((60, 3), 7.7)];
    let found = train(&padded, ChooseC::Fixed(1.0), FEATURES).unwrap();
    let found = found.predict_proba(padded.features()).unwrap();
    assert!(crate::difference(&found, &expected) < 1e-5);

    // Every row twice at half the C is the same sum of losses and penalty.
    let mut twice = table.clone();
    twice.features = concatenate![Axis(0), table.features, table.features];
    twice.labels = [table.labels.as_slice(), &table.labels].concat();
    twice.images = [table.images.as_slice(), &table.images].concat();
    let found = train(&twice, ChooseC::Fixed(0.5), FEATURES).unwrap();
    let found = found.predict_proba(table.features()).unwrap();
    assert!(crate::difference(&found, &expected) < 1e-5);
}

#[test]
fn two_components_make_a_model() {
    let table = synthetic(3, 30, 10);
    let features = FeaturesConfig {
        n_components: ComponentCount::Exact(2),
        ..FEATURES
    };
    let model = train(&table, ChooseC::Auto(Rule::SmallestLoss), features).unwrap();
    assert_eq!(model.training.n_components, 2);
    assert!(accuracy(&model, &table) > 0.4);
}

#[test]
fn a_feature_that_is_not_a_number_is_named_by_row_and_column() {
    let mut table = synthetic(3, 30, 10);
    table.features[[67, 4]] = f32::NAN;
    let error = train(&table, ChooseC::Fixed(1.0), FEATURES).unwrap_err();
    assert_eq!(
        error.to_string(),
        "feature at row 67, column 4 is NaN, expected a finite number"
    );
}

#[test]
fn images_unlike_any_class_are_farther_than_nearly_all_that_were_held_out() {
    let table = synthetic(4, 80, 20);
    let cross_validation = CrossValidation {
        features: FEATURES,
        solver: Solver::Faer,
        class_weight: ClassWeight::Uniform,
        folds: 5,
        seed: 0,
    };
    let held_out = cross_validation.run(&Training::from(&table), &[1.0], &()).unwrap();
    let held_out = held_out.distances.unwrap();
    let negated: Vec<f64> = held_out.iter().map(|distance| -distance).collect();
    let threshold = -thresholds_that_keep(&[&negated], 0.99).unwrap()[0];

    let projection = FEATURES.run(table.features(), &()).unwrap();
    let z = projection.transform(table.features()).unwrap();
    let distance = ClassDistance::fit(z.view(), &table.labels, 4).unwrap();
    // What was fitted to is nearer than what was held out.
    let near = distance.distances(z.view()).unwrap();
    assert!(near.iter().sum::<f64>() < held_out.iter().sum());
    assert!(near.iter().filter(|&&near| near > threshold).count() <= 3);
    let strange = Array2::from_shape_fn(
        (50, 20),
        |(row, column)| if (row + column) % 2 == 0 { 4.0f32 } else { -4.0 },
    );
    let far = distance
        .distances(projection.transform(strange.view()).unwrap().view())
        .unwrap();
    assert!(far.iter().all(|&far| far > threshold), "{threshold}: {far:?}");
}

#[test]
fn classes_of_equal_images_have_no_distance() {
    // The mean of three times 0.1 is not 0.1 in floating point.
    let x = ndarray::array![[0.1, 2.0], [0.1, 2.0], [0.1, 2.0], [3.0, 4.0]];
    assert!(matches!(
        ClassDistance::fit(x.view(), &[0, 0, 0, 1], 2),
        Err(Error::NoSpread)
    ));
}
