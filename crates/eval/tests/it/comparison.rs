//! Reports are read back and compared.

use luthier_artifact::Digest;
use luthier_eval::{ClassChange, Comparison, Error, ReportedRun, Verdict};
use serde_json::{Value, json};

use crate::synthetic::{self, evaluation, names};

/// A prediction: the image, its true class, and the probability of each class.
type Prediction<'a> = (&'a str, &'a str, &'a [f64]);

const SURE: &[f64] = &[0.9, 0.1];
const UNSURE: &[f64] = &[0.6, 0.4];
const OTHER: &[f64] = &[0.2, 0.8];

fn report(classes: &[&str], predictions: &[Prediction<'_>]) -> Value {
    let prediction = |&(image, true_class, probabilities): &Prediction<'_>| {
        json!({
            "file": format!("{true_class}/{image}.jpg"),
            // A copy is another name for the same bytes.
            "image": Digest::of(image.trim_end_matches(" copy").as_bytes()),
            "true_class": true_class,
            "probabilities": probabilities,
        })
    };
    json!({
        "schema": "luthier-report/1",
        "confidence": 0.95,
        "classes": classes,
        "predictions": predictions.iter().map(prediction).collect::<Vec<_>>(),
    })
}

fn read(bytes: &[u8]) -> Result<ReportedRun, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    std::fs::write(&path, bytes).unwrap();
    ReportedRun::read(&path)
}

fn compare(baseline: &Value, candidate: &Value) -> Result<Comparison, Error> {
    let [baseline, candidate] = [baseline, candidate].map(|report| read(report.to_string().as_bytes()).unwrap());
    Comparison::of(&baseline, &candidate)
}

const TWO: &[&str] = &["drum", "harp"];

#[test]
fn figures_over_the_same_images_are_those_of_the_reports() {
    let evaluation = evaluation(&names(["drum", "harp", "violin"]), 300);
    let folder = tempfile::tempdir().unwrap();
    synthetic::write(folder.path(), &evaluation);
    let run = ReportedRun::read(&folder.path().join("report.json")).unwrap();
    let found = Comparison::of(&run, &run).unwrap();
    assert_eq!(found.n, 300);
    for (change, expected) in [
        (found.accuracy, evaluation.accuracy.value),
        (found.macro_f1, evaluation.macro_f1.value),
        (found.log_loss, evaluation.log_loss),
        (found.calibration_error, evaluation.reliability.calibration_error),
    ] {
        assert!(
            (change.candidate - expected).abs() < 1e-12,
            "{change:?}, expected {expected}"
        );
        assert_eq!((change.baseline, change.difference), (change.candidate, 0.0));
    }
    for (class, expected) in found.per_class.iter().zip(&evaluation.per_class) {
        let metrics = [class.precision, class.recall, class.f1].map(|change| change.candidate);
        assert_eq!(metrics, [expected.precision, expected.recall, expected.f1]);
        assert_eq!((class.support, class.is_changed()), (expected.support, false));
    }
    assert_eq!((found.verdict, found.mcnemar.p_value), (Verdict::Chance, 1.0));
    assert_eq!(found.candidate.accuracy, evaluation.accuracy.value);
}

#[test]
fn images_that_flip_are_matched_by_their_bytes_and_the_most_confident_mistake_comes_first() {
    let baseline = report(
        TWO,
        &[
            ("a", "drum", SURE),
            ("b", "drum", UNSURE),
            ("c", "harp", SURE),
            ("d", "drum", SURE),
        ],
    );
    let mut candidate = report(
        TWO,
        &[
            ("d", "drum", SURE),
            ("c", "harp", OTHER),
            ("b", "drum", OTHER),
            ("a", "drum", &[0.3, 0.7]),
        ],
    );
    candidate["predictions"][2]["file"] = json!("drum/renamed.jpg");
    let found = compare(&baseline, &candidate).unwrap();
    let files: Vec<&str> = found.newly_wrong.iter().map(|flip| flip.file.as_str()).collect();
    assert_eq!(files, ["drum/renamed.jpg", "drum/a.jpg"]);
    let flip = &found.newly_wrong[0];
    assert_eq!(
        (flip.true_class.as_str(), flip.baseline.class.as_str()),
        ("drum", "drum")
    );
    assert_eq!(
        (flip.candidate.class.as_str(), flip.candidate.probability),
        ("harp", 0.8)
    );
    assert_eq!(found.newly_right.len(), 1);
    assert_eq!(found.newly_right[0].file, "harp/c.jpg");
    assert_eq!(
        (found.mcnemar.only_baseline_right, found.mcnemar.only_candidate_right),
        (2, 1)
    );
    assert_eq!((found.accuracy.baseline, found.accuracy.candidate), (0.75, 0.5));
}

#[test]
fn a_difference_beyond_chance_is_told_from_one_within() {
    let run = |n_wrong: usize| {
        let images: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let probabilities = |n| if n < n_wrong { OTHER } else { SURE };
        let predictions = images
            .iter()
            .enumerate()
            .map(|(n, image)| (image.as_str(), "drum", probabilities(n)));
        report(TWO, &predictions.collect::<Vec<_>>())
    };
    for (before, after, verdict, p_value) in [
        (0, 5, Verdict::Chance, 0.0625),
        (0, 6, Verdict::Worse, 0.03125),
        (6, 0, Verdict::Better, 0.03125),
        (9, 9, Verdict::Chance, 1.0),
    ] {
        let found = compare(&run(before), &run(after)).unwrap();
        assert_eq!((found.verdict, found.mcnemar.p_value), (verdict, p_value));
    }
}

#[test]
fn copies_count_once_and_images_of_one_run_are_named() {
    let baseline = report(
        TWO,
        &[
            ("a", "drum", SURE),
            ("a copy", "drum", SURE),
            ("b", "harp", OTHER),
            ("old", "harp", OTHER),
        ],
    );
    let candidate = report(
        TWO,
        &[
            ("a", "drum", OTHER),
            ("a copy", "drum", OTHER),
            ("b", "harp", OTHER),
            ("new", "harp", SURE),
        ],
    );
    let found = compare(&baseline, &candidate).unwrap();
    assert_eq!(
        (found.n, found.newly_wrong.len(), found.newly_wrong[0].file.as_str()),
        (2, 1, "drum/a.jpg")
    );
    assert_eq!(
        (found.baseline.n, found.baseline.n_copies, found.baseline.accuracy),
        (4, 1, 1.0)
    );
    assert_eq!(found.baseline.only_here, ["harp/old.jpg"]);
    assert_eq!((found.candidate.n, found.candidate.n_copies), (4, 1));
    assert_eq!(found.candidate.only_here, ["harp/new.jpg"]);
    assert_eq!(found.accuracy.baseline, 1.0);
}

#[test]
fn an_image_that_was_relabelled_is_named_and_not_judged() {
    let baseline = report(TWO, &[("a", "drum", SURE), ("moved", "drum", SURE)]);
    let candidate = report(TWO, &[("a", "drum", SURE), ("moved", "harp", SURE)]);
    let found = compare(&baseline, &candidate).unwrap();
    assert_eq!((found.n, found.newly_wrong.len()), (1, 0));
    let moved = &found.relabelled[0];
    assert_eq!(
        (moved.file.as_str(), &moved.baseline[..], &moved.candidate[..]),
        ("harp/moved.jpg", &["drum".to_owned()][..], &["harp".to_owned()][..])
    );
    assert!(found.candidate.only_here.is_empty());
}

#[test]
fn classes_in_common_are_compared_and_the_others_named() {
    let baseline = report(
        &["drum", "gong", "harp"],
        &[("a", "drum", &[0.1, 0.8, 0.1]), ("b", "harp", &[0.1, 0.1, 0.8])],
    );
    let candidate = report(
        &["drum", "harp", "lute"],
        &[
            ("a", "drum", &[0.8, 0.1, 0.1]),
            ("b", "harp", &[0.1, 0.2, 0.7]),
            ("c", "lute", &[0.1, 0.2, 0.7]),
        ],
    );
    let found = compare(&baseline, &candidate).unwrap();
    let classes: Vec<&str> = found.per_class.iter().map(|class| class.class.as_str()).collect();
    assert_eq!(classes, TWO);
    assert_eq!(found.baseline.classes_only_here, ["gong"]);
    assert_eq!(found.candidate.classes_only_here, ["lute"]);
    // What is taken for a class that only one run knows is wrong, and takes no precision from the others.
    let metrics = |class: &ClassChange| (class.precision.baseline, class.recall.baseline, class.recall.candidate);
    assert_eq!(metrics(&found.per_class[0]), (0.0, 0.0, 1.0));
    assert_eq!(metrics(&found.per_class[1]), (1.0, 1.0, 0.0));
    assert_eq!((found.macro_f1.baseline, found.macro_f1.candidate), (0.5, 0.5));
    assert_eq!(found.candidate.only_here, ["lute/c.jpg"]);
}

#[test]
fn runs_without_an_image_in_common_are_refused() {
    let error = compare(
        &report(TWO, &[("a", "drum", SURE), ("b", "drum", SURE)]),
        &report(TWO, &[("c", "drum", SURE), ("b", "harp", SURE), ("d", "drum", SURE)]),
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "no image is in both reports with the same true class, expected at least one; the baseline has 2 images, \
         the candidate 3"
    );
}

#[test]
fn what_is_no_report_of_this_schema_is_refused_with_what_was_found() {
    let fine = report(TWO, &[("a", "drum", SURE)]);
    let with = |field: &str, value: Value| {
        let mut report = fine.clone();
        report[field] = value;
        report.to_string()
    };
    let mut lost = fine.clone();
    lost.as_object_mut().unwrap().remove("predictions");
    for (bytes, part) in [
        (
            "text".to_owned(),
            "found no JSON object (expected ident at line 1 column 2)",
        ),
        ("{}".to_owned(), "found JSON without a schema"),
        (
            with("schema", json!("luthier-report/2")),
            "expected a report.json of schema luthier-report/1, found luthier-report/2",
        ),
        (lost.to_string(), "found missing field `predictions`"),
        (
            with("classes", json!(["harp", "lute"])),
            "a prediction for drum/a.jpg of class drum that does not fit the 2 classes",
        ),
        (with("classes", json!(["drum"])), "does not fit the 1 classes"),
    ] {
        let message = read(bytes.as_bytes()).unwrap_err().to_string();
        assert!(message.contains("report.json: ") && message.contains(part), "{message}");
    }
    assert!(read(fine.to_string().as_bytes()).is_ok());
}
