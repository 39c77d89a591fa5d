//! Figures agree with `fixtures/golden/metrics.json`, which scikit-learn, SciPy, statsmodels and numpy computed.

use luthier_artifact::{Digest, Split};
use luthier_eval::{ClassMetrics, EvaluateConfig, Evaluation, McNemar, Predictions};
use ndarray::Array2;
use serde::Deserialize;

use crate::synthetic::{self, read};

#[derive(Deserialize)]
struct Golden {
    tolerance: f64,
    cases: Vec<Case>,
    wilson: Vec<Wilson>,
    mcnemar: Vec<Test>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    classes: Vec<String>,
    truth: Vec<usize>,
    probabilities: Vec<Vec<f64>>,
    classification_report: String,
    per_class: Vec<(f64, f64, f64, u64)>,
    macro_average: [f64; 3],
    weighted_average: [f64; 3],
    macro_f1: f64,
    log_loss: f64,
    top_k: Vec<(usize, f64)>,
    calibration_error: f64,
    confusion: Vec<Vec<u64>>,
}

#[derive(Deserialize)]
struct Wilson {
    hits: usize,
    n: usize,
    confidence: f64,
    lower: f64,
    upper: f64,
}

#[derive(Deserialize)]
struct Test {
    only_baseline_right: u64,
    only_candidate_right: u64,
    p_value: f64,
}

fn golden() -> Golden {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/golden/metrics.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn evaluate(classes: &[String], truth: &[usize], probabilities: &Array2<f64>, confidence: f64) -> Evaluation {
    let images: Vec<Digest> = (0..truth.len()).map(|row| Digest::of(&row.to_le_bytes())).collect();
    let predictions = Predictions {
        classes,
        images: &images,
        truth,
        probabilities: probabilities.view(),
        uncalibrated: probabilities.view(),
    };
    EvaluateConfig { confidence, seed: 0 }
        .run(Split::Test, &predictions, None, &())
        .unwrap()
}

impl Case {
    fn evaluate(&self) -> Evaluation {
        let shape = (self.truth.len(), self.classes.len());
        let probabilities = Array2::from_shape_vec(shape, self.probabilities.concat()).unwrap();
        evaluate(&self.classes, &self.truth, &probabilities, 0.95)
    }
}

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() <= tolerance * expected.abs().max(1.0),
            "{what}: {found}, expected {expected}"
        );
    }
}

#[test]
fn metrics_agree_with_scikit_learn() {
    let Golden { tolerance, cases, .. } = golden();
    for case in cases {
        let found = case.evaluate();
        let numbers = |metrics: &ClassMetrics| [metrics.precision, metrics.recall, metrics.f1];
        assert_eq!(found.confusion, case.confusion, "{}", case.name);
        for (class, &(precision, recall, f1, support)) in found.per_class.iter().zip(&case.per_class) {
            assert_close(&numbers(class), &[precision, recall, f1], tolerance, &case.name);
            assert_eq!(class.support, support);
        }
        assert_close(
            &numbers(&found.macro_average),
            &case.macro_average,
            tolerance,
            &case.name,
        );
        assert_close(
            &numbers(&found.weighted_average),
            &case.weighted_average,
            tolerance,
            &case.name,
        );
        assert_close(&[found.macro_f1.value], &[case.macro_f1], tolerance, &case.name);
        assert_close(&[found.log_loss], &[case.log_loss], tolerance, &case.name);
        let (found_k, found_top): (Vec<_>, Vec<_>) = found.top_k.iter().copied().unzip();
        let (expected_k, expected_top): (Vec<_>, Vec<_>) = case.top_k.iter().copied().unzip();
        assert_eq!(found_k, expected_k, "{}", case.name);
        assert_close(&found_top, &expected_top, tolerance, &case.name);
    }
}

#[test]
fn the_calibration_error_is_numpys() {
    let Golden { tolerance, cases, .. } = golden();
    for case in cases {
        let found = case.evaluate().reliability.calibration_error;
        assert_close(&[found], &[case.calibration_error], tolerance, &case.name);
    }
}

#[test]
fn mcnemars_test_is_statsmodels() {
    for test in golden().mcnemar {
        let Test {
            only_baseline_right,
            only_candidate_right,
            p_value,
        } = test;
        let found = McNemar::exact(only_baseline_right, only_candidate_right).p_value;
        // A part of the value, which may be tiny: sums of up to 100,000 terms differ in their last digits.
        assert!(
            (found / p_value - 1.0).abs() < 1e-10,
            "{only_baseline_right} and {only_candidate_right}: {found}, expected {p_value}"
        );
    }
}

#[test]
fn the_classification_report_is_scikit_learns_to_the_byte() {
    for case in golden().cases {
        let folder = tempfile::tempdir().unwrap();
        synthetic::write(folder.path(), &case.evaluate());
        assert_eq!(
            read(folder.path(), "classification_report.txt"),
            case.classification_report,
            "{}",
            case.name
        );
    }
}

#[test]
fn the_accuracys_interval_is_scipys() {
    let classes = ["a".to_owned(), "b".to_owned()];
    let Golden { tolerance, wilson, .. } = golden();
    for Wilson {
        hits,
        n,
        confidence,
        lower,
        upper,
    } in wilson
    {
        let truth: Vec<usize> = (0..n).map(|row| usize::from(row >= hits)).collect();
        let probabilities = Array2::from_shape_fn((n, 2), |(_, class)| [1.0, 0.0][class]);
        let found = evaluate(&classes, &truth, &probabilities, confidence).accuracy;
        assert_close(
            &[found.lower, found.upper],
            &[lower, upper],
            tolerance,
            &format!("{hits} of {n} at {confidence}"),
        );
    }
}

/// The three classes without test images would pull the mean down to nine twelfths.
#[test]
fn classes_without_test_images_do_not_lower_macro_f1_or_its_interval() {
    let case = golden()
        .cases
        .into_iter()
        .find(|case| case.name == "untested classes")
        .unwrap();
    let evaluation = case.evaluate();
    let found = evaluation.macro_f1;
    assert!((found.value - case.macro_f1).abs() < 1e-12, "{found:?}");
    assert!(found.value > 0.85 && found.lower > 0.75, "{found:?}");
    assert!(found.lower < found.value && found.value < found.upper, "{found:?}");
    assert_eq!(evaluation.macro_average.f1, found.value);
    // The classes are still listed.
    assert_eq!(evaluation.per_class.len(), 12);
    assert_eq!(evaluation.per_class[11].support, 0);
}

#[test]
fn the_bootstrap_interval_surrounds_macro_f1_on_ordinary_data() {
    let evaluation = golden().cases[0].evaluate();
    let found = evaluation.macro_f1;
    assert_eq!(found.value, evaluation.macro_average.f1);
    assert!(found.lower < found.value && found.value < found.upper, "{found:?}");
    // About two standard errors of a share of one half to either side, on 160 images.
    assert!((0.08..0.25).contains(&(found.upper - found.lower)), "{found:?}");
}
