//! What lies in the report's folder.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use luthier_artifact::Split;
use luthier_eval::{
    CandidateC, Context, CrossValidated, Error, Evaluation, Images, Skipped, Threshold, Warning, write_report,
};
use serde_json::Value;

use crate::synthetic::{self, Made, evaluation, names, read};

const HOSTILE: &str = "<script>alert(\"1\")</script> & 'quotes',\n second line";

const FILES: [&str; 8] = [
    "report.html",
    "report.json",
    "classification_report.txt",
    "confusion_matrix.csv",
    "confusion_matrix.png",
    "confusion_matrix.svg",
    "misclassified.csv",
    "skipped.csv",
];

#[expect(clippy::disallowed_methods, reason = "the names are sorted")]
fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = folder
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

/// A context with something of everything, all of it named by hostile strings.
fn write_hostile(folder: &Path, evaluation: &Evaluation) {
    let files = vec![HOSTILE.to_owned(); evaluation.n];
    let made = Made::for_report(evaluation);
    let images = Images {
        files: &files,
        ..made.context().test
    };
    let context = Context {
        train: images,
        test: images,
        skipped: &[Skipped {
            split: Split::Train,
            file: HOSTILE.into(),
            class: HOSTILE.into(),
            reason: HOSTILE.into(),
        }],
        warnings: &[Warning {
            title: HOSTILE.into(),
            detail: HOSTILE.into(),
            files: vec![HOSTILE.into()],
        }],
        facts: &[(HOSTILE.into(), HOSTILE.into())],
        cross_validation: Some(&CrossValidated {
            folds: 5,
            n_held_out: 90,
            candidates: vec![
                CandidateC {
                    c: 0.01,
                    log_loss: 0.4,
                    standard_error: 0.02,
                },
                CandidateC {
                    c: 0.1,
                    log_loss: 0.6,
                    standard_error: 0.05,
                },
            ],
            c: 0.01,
            temperature: 1.25,
            thresholds: vec![Threshold {
                share: 0.95,
                probability: 0.7,
                distance: None,
            }],
            learning_curve: Vec::new(),
        }),
        thumbnail: &|_, _, _| Some(b"not really a picture".to_vec()),
        ..made.context()
    };
    write_report(folder, &context).unwrap();
}

fn csv_rows(folder: &Path, name: &str) -> Vec<Vec<String>> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .from_path(folder.join(name))
        .unwrap();
    reader
        .records()
        .map(|record| record.unwrap().iter().map(str::to_owned).collect())
        .collect()
}

/// Width and height from the header of a PNG.
fn png_size(folder: &Path) -> (u32, u32) {
    let bytes = std::fs::read(folder.join("confusion_matrix.png")).unwrap();
    assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

#[test]
fn every_file_is_written_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let evaluation = evaluation(&names(["drum", "violin"]), 20);
    let reports = folder.path().join("reports");
    let made = Made::for_report(&evaluation);
    let written = write_report(&reports, &made.context()).unwrap();
    let paths: Vec<PathBuf> = written.into_iter().map(|file| file.path).collect();
    assert_eq!(paths, FILES.map(|name| reports.join(name)));
    let mut expected = FILES;
    expected.sort_unstable();
    assert_eq!(names_in(&reports), expected);
}

#[test]
fn equal_contexts_give_equal_bytes() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for folder in &folders {
        synthetic::write(folder.path(), &evaluation(&names(["drum", "lute", "violin"]), 50));
    }
    for name in FILES {
        let [one, other] = [0, 1].map(|which: usize| std::fs::read(folders[which].path().join(name)).unwrap());
        assert_eq!(one, other, "{name}");
    }
}

#[test]
fn a_missing_file_name_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let evaluation = evaluation(&names(["drum", "violin"]), 20);
    let made = Made::for_report(&evaluation);
    let mut context = made.context();
    context.test.files = &context.test.files[1..];
    let error = write_report(folder.path(), &context).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Files {
                expected: 20,
                found: 19
            }
        ),
        "{error}"
    );
    assert_eq!(names_in(folder.path()), [""; 0]);
}

#[test]
fn no_name_from_outside_becomes_markup() {
    let folder = tempfile::tempdir().unwrap();
    write_hostile(folder.path(), &evaluation(&names([HOSTILE, "\u{0}\u{ffff} ]]>"]), 20));
    let html = read(folder.path(), "report.html");
    assert!(!html.contains("<script") && !html.contains("alert(\""), "markup");
    // Class names, files, skipped, warnings and facts: each shows the name, escaped.
    assert!(
        html.matches("&#60;script&#62;alert(&#34;1&#34;)&#60;/script&#62; &#38; &#39;quotes&#39;,")
            .count()
            > 10
    );
    let svg = read(folder.path(), "confusion_matrix.svg");
    assert!(!svg.contains("<script") && svg.contains("&#60;script&#62;"), "{svg}");
    assert!(!svg.contains(['\u{0}', '\u{ffff}']), "characters that XML forbids");
}

#[test]
fn the_page_asks_the_network_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    write_hostile(folder.path(), &evaluation(&names(["drum", "violin"]), 20));
    let html = read(folder.path(), "report.html");
    assert!(html.contains("content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\""));
    for outside in [
        "http://", "https://", "url(", "@import", "<link", "<iframe", "src=\"/", "href=",
    ] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert!(html.contains("src=\"data:image/jpeg;base64,bm90IHJlYWxseSBhIHBpY3R1cmU=\""));
}

#[test]
fn csv_files_read_back_to_the_names_they_were_given() {
    let folder = tempfile::tempdir().unwrap();
    let classes = names([HOSTILE, "plain"]);
    let evaluation = evaluation(&classes, 30);
    write_hostile(folder.path(), &evaluation);
    assert_eq!(
        csv_rows(folder.path(), "skipped.csv")[1],
        ["train", HOSTILE, HOSTILE, HOSTILE]
    );
    let confusion = csv_rows(folder.path(), "confusion_matrix.csv");
    assert_eq!(confusion[0], ["true class", HOSTILE, "plain"]);
    for (row, (class, counts)) in confusion[1..].iter().zip(classes.iter().zip(&evaluation.confusion)) {
        assert_eq!(row[0], *class);
        assert_eq!(row[1..], counts.iter().map(u64::to_string).collect::<Vec<_>>());
    }
    let mistakes = csv_rows(folder.path(), "misclassified.csv");
    assert_eq!(mistakes.len(), 1 + evaluation.n - evaluation.n_correct());
    assert!(mistakes[1..].iter().all(|row| row[0] == HOSTILE));
}

#[test]
fn mistakes_are_listed_by_falling_confidence_with_the_true_classes_rank() {
    let folder = tempfile::tempdir().unwrap();
    let evaluation = evaluation(&names(["drum", "harp", "lute", "viola", "violin"]), 200);
    synthetic::write(folder.path(), &evaluation);
    let rows = csv_rows(folder.path(), "misclassified.csv");
    assert!(rows.len() > 20);
    assert!(rows[1..].windows(2).all(|pair| pair[0][3] >= pair[1][3]), "{rows:?}");
    for row in &rows[1..] {
        let index: usize = row[0]["folder/".len()..][..5].parse().unwrap();
        let expected = &evaluation.rows[index];
        assert_eq!(row[1], evaluation.classes[expected.truth]);
        assert_eq!(row[2], evaluation.classes[expected.predicted]);
        assert_eq!(row[3], format!("{:.6}", expected.probabilities[expected.predicted]));
        assert_eq!(row[4], format!("{:.6}", expected.probabilities[expected.truth]));
        let above = expected
            .probabilities
            .iter()
            .filter(|&&p| p > expected.probabilities[expected.truth])
            .count();
        assert_eq!(row[5], (above + 1).to_string());
    }
}

#[test]
fn the_json_report_carries_every_figure_and_prediction() {
    let folder = tempfile::tempdir().unwrap();
    let evaluation = evaluation(&names(["drum", "harp", "violin"]), 60);
    write_hostile(folder.path(), &evaluation);
    let report: Value = serde_json::from_str(&read(folder.path(), "report.json")).unwrap();
    assert_eq!(report["schema"], "luthier-report/1");
    assert_eq!(report["n"], 60);
    assert_eq!(report["accuracy"]["value"], evaluation.accuracy.value);
    assert_eq!(report["macro_f1"]["upper"], evaluation.macro_f1.upper);
    assert_eq!(report["log_loss"], evaluation.log_loss);
    assert_eq!(report["top_k"][1]["k"], 2);
    assert_eq!(report["top_k"][1]["accuracy"], evaluation.top_k[1].1);
    assert_eq!(report["per_class"][2]["class"], "violin");
    assert_eq!(report["per_class"][2]["recall"], evaluation.per_class[2].recall);
    assert_eq!(report["confusion"][1][1], evaluation.confusion[1][1]);
    assert_eq!(report["warnings"][0]["title"], HOSTILE);
    assert_eq!(report["facts"][0]["name"], HOSTILE);
    assert_eq!(report["skipped"][0]["split"], "train");
    let predictions = report["predictions"].as_array().unwrap();
    assert_eq!(predictions.len(), 60);
    for (prediction, row) in predictions.iter().zip(&evaluation.rows) {
        assert_eq!(prediction["image"], row.image.to_string());
        assert_eq!(prediction["true_class"], evaluation.classes[row.truth]);
        assert_eq!(prediction["predicted_class"], evaluation.classes[row.predicted]);
        assert_eq!(prediction["probabilities"][2], row.probabilities[2]);
    }
}

/// Writes a report whose thumbnails all have this size, and returns how often one was asked for, and the page.
fn thumbnails_of(bytes: usize, evaluation: &Evaluation) -> (usize, String) {
    let folder = tempfile::tempdir().unwrap();
    let asked = AtomicUsize::new(0);
    let made = Made::for_report(evaluation);
    let context = Context {
        thumbnail: &|_, _, _| {
            asked.fetch_add(1, Ordering::Relaxed);
            Some(vec![0; bytes])
        },
        ..made.context()
    };
    write_report(folder.path(), &context).unwrap();
    (asked.into_inner(), read(folder.path(), "report.html"))
}

#[test]
fn the_page_shows_at_most_200_mistakes_and_says_how_many_it_leaves_out() {
    let evaluation = evaluation(&names(["drum", "harp", "violin"]), 2_000);
    let n_mistakes = evaluation.n - evaluation.n_correct();
    assert!(n_mistakes > 200);
    let (asked, html) = thumbnails_of(10, &evaluation);
    assert_eq!(asked, 200);
    assert_eq!(html.matches("<figure>").count(), 200);
    assert!(html.contains(&format!("the other {} are in misclassified.csv", n_mistakes - 200)));
}

#[test]
fn pictures_stay_within_six_mebibytes() {
    let evaluation = evaluation(&names(["drum", "harp", "violin"]), 500);
    let n_mistakes = evaluation.n - evaluation.n_correct();
    let (_, html) = thumbnails_of(1 << 20, &evaluation);
    assert_eq!(html.matches("<figure>").count(), 6);
    assert!(html.contains(&format!("Shown are 6; the other {}", n_mistakes - 6)));
    assert!(html.len() < 9 << 20);
}

#[test]
fn a_perfect_model_has_no_mistakes_to_show() {
    let classes = names(["drum", "violin"]);
    let perfect = evaluation(&classes, 500)
        .rows
        .into_iter()
        .filter(luthier_eval::Row::is_correct);
    let (images, truth): (Vec<_>, Vec<_>) = perfect.map(|row| (row.image, row.truth)).unzip();
    let probabilities = ndarray::Array2::from_shape_fn((truth.len(), 2), |(row, class)| f64::from(truth[row] == class));
    let predictions = luthier_eval::Predictions {
        classes: &classes,
        images: &images,
        truth: &truth,
        probabilities: probabilities.view(),
        uncalibrated: probabilities.view(),
    };
    let evaluation = luthier_eval::EvaluateConfig {
        confidence: 0.95,
        seed: 0,
    }
    .run(&predictions)
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    synthetic::write(folder.path(), &evaluation);
    let html = read(folder.path(), "report.html");
    assert!(html.contains("None: every test image was recognised.") && !html.contains("Most frequent confusions"));
    assert_eq!(csv_rows(folder.path(), "misclassified.csv").len(), 1);
}

#[test]
fn the_plot_has_a_label_a_row_and_a_column_and_a_number_a_cell() {
    let folder = tempfile::tempdir().unwrap();
    let evaluation = evaluation(&names(["drum", "Flügelhorn", "балалайка"]), 300);
    synthetic::write(folder.path(), &evaluation);
    let svg = read(folder.path(), "confusion_matrix.svg");
    for class in &evaluation.classes {
        assert_eq!(svg.matches(&format!(">{class}<title>")).count(), 2, "{class}");
    }
    for count in evaluation.confusion.iter().flatten().filter(|&&count| count > 0) {
        assert!(svg.contains(&format!(">{count}</text>")), "{count}");
    }
    let (width, height) = png_size(folder.path());
    assert!(svg.contains(&format!("width=\"{}\"", width / 2)), "{width} × {height}");
}

#[test]
fn labels_reach_the_pixels_with_the_bundled_font() {
    // The two plots differ in one class name only: without a font their pixels would be equal.
    let [one, other] = ["drum", "harp"].map(|name| {
        let folder = tempfile::tempdir().unwrap();
        synthetic::write(folder.path(), &evaluation(&names([name, "violin"]), 40));
        std::fs::read(folder.path().join("confusion_matrix.png")).unwrap()
    });
    assert_ne!(one, other);
}

#[test]
fn a_thousand_classes_give_a_plot_of_bounded_size_and_a_page_without_the_table() {
    let classes: Vec<String> = (0..1_000).map(|class| format!("class {class:04}")).collect();
    let folder = tempfile::tempdir().unwrap();
    synthetic::write(folder.path(), &evaluation(&classes, 2_000));
    let (width, height) = png_size(folder.path());
    assert!(width.max(height) == 6_000, "{width} × {height}");
    let html = read(folder.path(), "report.html");
    assert!(html.contains("With 1,000 classes it is too large for this page") && html.len() < 2 << 20);
}
