use luthier_artifact::Artifact;
use luthier_classify::{ChooseC, ClassifyConfig, Error, Solver};
use luthier_features::{FeaturesConfig, Keep, Projection};

use crate::{synthetic, with_threads};

const AUTO: ClassifyConfig = ClassifyConfig {
    c: ChooseC::Auto,
    folds: 4,
    seed: 7,
    solver: Solver::Faer,
};
const FEATURES: FeaturesConfig = FeaturesConfig {
    keep: Keep::Variance(0.95),
    solver: Solver::Faer,
};

#[test]
fn the_c_of_smallest_log_loss_is_chosen_and_the_table_kept() {
    let train = synthetic(3, 30, 20);
    let projection = FEATURES.run(&train).unwrap();
    let model = AUTO.run(&train, &projection).unwrap();
    let search = &model.training.c_search;
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
    .run(&train, &projection)
    .unwrap();
    assert!(fixed.training.c_search.is_empty());
    assert_eq!(fixed.head_weight, model.head_weight);
}

#[test]
fn the_order_of_rows_and_the_number_of_threads_do_not_change_the_search() {
    let train = synthetic(3, 20, 12);
    let run = |threads: usize| {
        with_threads(threads, || {
            AUTO.run(&train, &FEATURES.run(&train).unwrap()).unwrap().encode()
        })
    };
    assert!(run(1) == run(2));
    assert!(run(1) == run(5));
}

#[test]
fn a_fold_too_small_for_the_components_asked_for_keeps_what_it_can() {
    let train = synthetic(2, 6, 30);
    let config = FeaturesConfig {
        keep: Keep::Components(12),
        solver: Solver::Faer,
    };
    let model = AUTO.run(&train, &config.run(&train).unwrap()).unwrap();
    assert_eq!((model.training.n_components, model.training.c_search.len()), (12, 9));
}

#[test]
fn a_class_with_one_image_can_be_trained_but_not_cross_validated() {
    let mut train = synthetic(2, 5, 4);
    train.labels = vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let projection = Projection::fit(FEATURES, train.features()).unwrap();
    let error = AUTO.run(&train, &projection).unwrap_err();
    assert_eq!(
        error.to_string(),
        "class class-1 has 1 training images, expected at least 2"
    );
    assert!(
        ClassifyConfig {
            c: ChooseC::Fixed(1.0),
            ..AUTO
        }
        .run(&train, &projection)
        .is_ok()
    );

    train.labels = vec![0; 10];
    let error = ClassifyConfig {
        c: ChooseC::Fixed(1.0),
        ..AUTO
    }
    .run(&train, &projection)
    .unwrap_err();
    assert!(matches!(
        error,
        Error::TooFewImages {
            expected: 1,
            found: 0,
            ..
        }
    ));
}
