use std::fs;

use luthier_artifact::{Artifact, TensorsBuilder};
use luthier_classify::{
    ChooseC, ClassWeight, ClassifyConfig, Error, LogisticRegression, Model, Rule, Solver, Training,
};
use luthier_features::{ComponentCount, FeaturesConfig, Projection};
use ndarray::{Array1, Array2};
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};

use crate::{difference, synthetic};

const CONFIG: ClassifyConfig = ClassifyConfig {
    c: ChooseC::Fixed(1.0),
    class_weight: ClassWeight::Uniform,
    folds: 5,
    seed: 0,
    solver: Solver::Faer,
};

fn features(n_components: ComponentCount) -> FeaturesConfig {
    FeaturesConfig {
        n_components,
        whiten: false,
        solver: Solver::Faer,
    }
}

fn model() -> Model {
    let train = synthetic(3, 20, 12);
    CONFIG
        .run(
            &Training::from(&train),
            &features(ComponentCount::Exact(5)).run(train.features(), &()).unwrap(),
            &(),
        )
        .unwrap()
        .model
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn the_folded_head_equals_scaler_then_components_then_classifier(
        n_classes in 2usize..5, per_class in 4usize..20, d in 3usize..20, log_c in -3.0f64..3.0,
        scale in 0.01f32..1000.0, offset in -100.0f32..100.0,
    ) {
        let mut train = synthetic(n_classes, per_class, d);
        train.features.mapv_inplace(|value| value * scale + offset);
        let c = 10f64.powf(log_c);
        let projection = features(ComponentCount::Variance(0.95)).run(train.features(), &()).unwrap();
        let model = ClassifyConfig { c: ChooseC::Fixed(c), ..CONFIG }.run(&Training::from(&train), &projection, &()).unwrap().model;

        let components = projection.transform(train.features()).unwrap();
        let regression = LogisticRegression::new(c, Solver::Faer).unwrap();
        let fitted = regression.fit(components.view(), &train.labels, n_classes).unwrap();
        let expected = fitted.predict_proba(components.view()).unwrap();
        let found = model.predict_proba(train.features()).unwrap();
        // What is left is the rounding of weights and intercepts to f32, which grows with the scores.
        let largest = model.head_weight.mapv(f32::abs).dot(&train.features.mapv(f32::abs).t());
        let tolerance = 2.0 * f64::from(f32::EPSILON) * f64::from(largest.iter().copied().fold(1.0, f32::max));
        prop_assert!(difference(&found, &expected) < tolerance, "{:e}", difference(&found, &expected));
    }

    #[test]
    fn a_model_decodes_from_its_bytes(n_classes in 2usize..5, per_class in 4usize..9, c in 0.001f64..100.0) {
        let train = synthetic(n_classes, per_class, 6);
        let projection = features(ComponentCount::Variance(0.9)).run(train.features(), &()).unwrap();
        for c in [ChooseC::Fixed(c), ChooseC::Auto(Rule::SmallestLoss)] {
        let model = ClassifyConfig { c, ..CONFIG }.run(&Training::from(&train), &projection, &()).unwrap().model;
        prop_assert_eq!(Model::decode(&model.encode()).unwrap(), model);
        }
    }
}

#[test]
fn the_file_has_the_documented_tensors() {
    let bytes = model().encode();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut found: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.shape().to_vec()))
        .collect();
    found.sort();
    let expected: [(&str, &[usize]); 10] = [
        ("classifier.bias", &[3]),
        ("classifier.weight", &[3, 5]),
        ("head.bias", &[3]),
        ("head.weight", &[3, 12]),
        ("pca.components", &[5, 12]),
        ("pca.mean", &[12]),
        ("pca.variance_ratios", &[12]),
        ("scaler.mean", &[12]),
        ("scaler.scale", &[12]),
        ("temperature", &[1]),
    ];
    assert_eq!(found, expected.map(|(name, shape)| (name.to_owned(), shape.to_vec())));
    for (name, view) in file.tensors() {
        let expected = if name == "pca.variance_ratios" {
            Dtype::F64
        } else {
            Dtype::F32
        };
        assert_eq!(view.dtype(), expected, "{name}");
    }
}

#[test]
fn a_model_loads_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, model().encode()).unwrap();
    assert_eq!(Model::load(&path).unwrap(), model());
}

#[test]
fn a_file_that_is_no_model_is_named_with_what_was_expected_and_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let load = || Model::load(&path).unwrap_err().to_string();
    assert!(matches!(Model::load(&path), Err(Error::Read(_))) && load().starts_with(&path.display().to_string()));

    let refused = |bytes: Vec<u8>, found: &str| {
        fs::write(&path, bytes).unwrap();
        assert_eq!(load(), format!("{}: expected model/3, found {found}", path.display()));
    };
    let projection = features(ComponentCount::Exact(5))
        .run(synthetic(3, 20, 12).features(), &())
        .unwrap();
    refused(projection.encode(), Projection::FORMAT);
    refused(
        Model {
            head_weight: Array2::zeros((3, 11)),
            ..model()
        }
        .encode(),
        "head.weight of shape [3, 11] instead of [3, 12]",
    );
    refused(
        Model {
            classes: vec!["one".into()],
            ..model()
        }
        .encode(),
        "classifier.weight of shape [3, 5] instead of [1, 5]",
    );
    refused(
        Model {
            head_bias: Array1::from_elem(3, f32::NAN),
            ..model()
        }
        .encode(),
        "NaN in head.bias",
    );
    let foreign = TensorsBuilder::new(Model::FORMAT, &"header").finish();
    fs::write(&path, foreign).unwrap();
    assert!(
        load().starts_with(&format!("{}: expected model/3, found invalid type", path.display())),
        "{}",
        load()
    );
}

#[test]
fn a_truncated_file_is_refused_at_any_length() {
    let bytes = model().encode();
    for length in 0..bytes.len() {
        assert!(Model::decode(&bytes[..length]).is_err(), "{length}");
    }
}

#[test]
fn features_that_do_not_fit_the_model_are_errors() {
    let error = model().predict_proba(Array2::zeros((1, 11)).view()).unwrap_err();
    assert_eq!(error.to_string(), "features have 11 columns, expected 12");
    let error = model()
        .predict_proba(Array2::from_elem((1, 12), f32::NAN).view())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "feature at row 0, column 0 is NaN, expected a finite number"
    );
}

#[test]
fn the_head_is_the_classifier_divided_by_the_temperature() {
    let train = synthetic(3, 30, 20);
    let projection = features(ComponentCount::Variance(0.95))
        .run(train.features(), &())
        .unwrap();
    let config = ClassifyConfig {
        c: ChooseC::Auto(Rule::SmallestLoss),
        ..CONFIG
    };
    let model = config.run(&Training::from(&train), &projection, &()).unwrap().model;
    assert!((model.temperature - 1.0).abs() > 0.01, "{}", model.temperature);

    let z = projection.transform(train.features()).unwrap();
    let own = z.dot(&model.classifier_weight.mapv(f64::from).t()) + model.classifier_bias.mapv(f64::from);
    let expected = own / f64::from(model.temperature);
    assert!(difference(&model.scores(train.features()).unwrap(), &expected) < 1e-4);
}
