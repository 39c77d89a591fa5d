//! What lies in the report's folder.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use luthier_artifact::{Interrupted, Split, entries};
use luthier_eval::{
    Context, Duplicates, Error, Evaluation, Findings, ImageRef, Images, Likeness, REPORT_FILES, Skipped, StageTime,
    Warning, write_report,
};
use luthier_testing::Need;
use serde_json::{Value, json};

use crate::synthetic::{self, Made, evaluation, names, read};

const HOSTILE: &str = "<script>alert(\"1\")</script> & 'quotes',\n second line";

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

/// A report with something of everything, all of it named by hostile strings.
fn write_hostile(folder: &Path, evaluation: &Evaluation) {
    let files = vec![HOSTILE.to_owned(); evaluation.n];
    let stages = [StageTime {
        name: HOSTILE.into(),
        seconds: 1.0,
    }];
    let made = Made::with_everything(evaluation);
    let images = Images {
        files: &files,
        ..made.context().test
    };
    let context = Context {
        train: images,
        test: images,
        evaluated: images,
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
        date: Some(HOSTILE),
        stages: &stages,
        thumbnail: &|_, _, _| Ok(Some(b"not really a picture".to_vec())),
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
    assert_eq!(paths, REPORT_FILES.map(|name| reports.join(name)));
    let mut expected = REPORT_FILES;
    expected.sort_unstable();
    assert_eq!(names_in(&reports), expected);
}

#[test]
fn equal_contexts_give_equal_bytes() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for folder in &folders {
        synthetic::write(folder.path(), &evaluation(&names(["drum", "lute", "violin"]), 50));
    }
    for name in REPORT_FILES {
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
    context.evaluated.files = &context.evaluated.files[1..];
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
fn probabilities_of_other_images_or_classes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let evaluation = evaluation(&names(["drum", "violin"]), 20);
    let made = Made::for_report(&evaluation);
    for (others, expected) in [
        (
            synthetic::probabilities(2, 19),
            "predictions have 19 rows of probabilities, expected 20",
        ),
        (
            synthetic::probabilities(3, 20),
            "predictions have 3 classes of probabilities, expected 2",
        ),
    ] {
        let context = Context {
            probabilities: &others,
            ..made.context()
        };
        let error = write_report(folder.path(), &context).unwrap_err().to_string();
        assert_eq!(error, expected);
    }
}

#[test]
fn no_name_from_outside_becomes_markup() {
    let folder = tempfile::tempdir().unwrap();
    write_hostile(folder.path(), &evaluation(&names([HOSTILE, "\u{0}\u{ffff} ]]>"]), 40));
    let html = read(folder.path(), "report.html");
    // The page has one script, its own, at its end.
    let (before, script) = html.split_once("<script>").unwrap();
    assert!(!before.contains("<script") && !before.contains("alert(\""), "markup");
    assert!(!script.contains("alert("), "a name in the script");
    assert!(script.ends_with("</script>\n</body>\n</html>") && script.matches("</").count() == 3);
    // Class names, files, findings, skipped, stages, warnings and facts: each shows the name, escaped.
    let shown = "&#60;script&#62;alert(&#34;1&#34;)&#60;/script&#62; &#38; &#39;quotes&#39;,";
    assert!(html.matches(shown).count() > 100, "{}", html.matches(shown).count());
    let svg = read(folder.path(), "confusion_matrix.svg");
    assert!(!svg.contains("<script") && svg.contains("&#60;script&#62;"), "{svg}");
    assert!(!svg.contains(['\u{0}', '\u{ffff}']), "characters that XML forbids");
}

#[test]
fn a_name_in_a_warning_does_not_turn_the_writing() {
    let folder = tempfile::tempdir().unwrap();
    let evaluation = evaluation(&names(["drum", "violin"]), 20);
    let made = Made::for_report(&evaluation);
    let context = Context {
        warnings: &[Warning {
            title: "Classes without test images".into(),
            detail: "Nothing is known of these: lute\u{202e}, oud\n.".into(),
            files: Vec::new(),
        }],
        ..made.context()
    };
    write_report(folder.path(), &context).unwrap();
    let html = read(folder.path(), "report.html");
    let shown = r"<p>Nothing is known of these: lute\u{202e}, oud\n.</p>";
    assert!(html.contains(shown) && !html.contains('\u{202e}'));
}

#[test]
fn the_page_asks_the_network_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    write_hostile(folder.path(), &evaluation(&names(["drum", "violin"]), 20));
    let html = read(folder.path(), "report.html");
    assert!(
        html.contains("content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    );
    assert!(!html.contains("script-src 'unsafe-inline'"));
    for outside in [
        "https://",
        "@import",
        "<link",
        "<iframe",
        "<img",
        " src=",
        "fetch(",
        "XMLHttpRequest",
    ] {
        assert!(!html.contains(outside), "{outside}");
    }
    // Its own name is not an address that SVG elements are loaded from.
    assert_eq!(
        html.matches("http://").count(),
        html.matches("\"http://www.w3.org/2000/svg\"").count()
    );
    assert_eq!(
        html.matches("url(").count(),
        html.matches("url(data:image/jpeg;base64,").count()
    );
    let own = html.matches("href=\"#").count() + html.matches("href=\"../photos/").count();
    assert_eq!(html.matches("href=").count(), own);
    assert!(html.contains("url(data:image/jpeg;base64,bm90IHJlYWxseSBhIHBpY3R1cmU=)"));
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
    let n_mistakes = evaluation.n - evaluation.n_correct();
    let mistakes = csv_rows(folder.path(), "misclassified.csv");
    assert_eq!(mistakes.len(), 1 + n_mistakes);
    assert!(
        mistakes[1..]
            .iter()
            .all(|row| [0, 6, 9, 12].map(|at| row[at].as_str()) == [HOSTILE; 4])
    );
    let pairs = csv_rows(folder.path(), "confused_pairs.csv");
    assert_eq!(pairs.len(), 1 + n_mistakes);
    assert!(
        pairs[1..]
            .iter()
            .all(|row| row[4] == HOSTILE && row[..2].contains(&HOSTILE.to_owned()))
    );
    let mislabelled = csv_rows(folder.path(), "mislabelled.csv");
    assert_eq!(
        mislabelled[1],
        ["train", HOSTILE, HOSTILE, "plain", "0.010000", "0.970000"]
    );
    let duplicates = csv_rows(folder.path(), "duplicates.csv");
    assert_eq!(duplicates.len(), 1 + 2 + 3 + 2);
    assert_eq!(duplicates[1], ["1", "leakage", "true", "", "train", HOSTILE, HOSTILE]);
    assert_eq!(
        duplicates[4],
        [
            "2",
            "leakage and contradictory labels",
            "false",
            "0.998700",
            "train",
            HOSTILE,
            HOSTILE
        ]
    );
    assert_eq!(duplicates[6][1], "redundant");
    assert_eq!(csv_rows(folder.path(), "few_images.csv")[1][..3], [HOSTILE, "15", "15"]);
    let learning = csv_rows(folder.path(), "learning_curve.csv");
    assert_eq!(learning[3], ["0.5", "577.5", "0.906000", "0.019000", "0.005000"]);
    assert_eq!(learning.len(), 6);
}

#[test]
fn mistakes_are_listed_by_falling_confidence_with_the_true_classes_rank() {
    let folder = tempfile::tempdir().unwrap();
    let evaluation = evaluation(&names(["drum", "harp", "lute", "viola", "violin"]), 200);
    let probabilities = synthetic::probabilities(5, 200);
    synthetic::write(folder.path(), &evaluation);
    let rows = csv_rows(folder.path(), "misclassified.csv");
    assert!(rows.len() > 20);
    assert!(rows[1..].windows(2).all(|pair| pair[0][3] >= pair[1][3]), "{rows:?}");
    for row in &rows[1..] {
        let index: usize = row[0]["folder/".len()..][..5].parse().unwrap();
        let expected = &evaluation.rows[index];
        assert_eq!(row[1], evaluation.classes[expected.truth]);
        assert_eq!(row[2], evaluation.classes[expected.predicted]);
        let probabilities = probabilities.row(index);
        assert_eq!(row[3], format!("{:.6}", probabilities[expected.predicted]));
        assert_eq!(row[4], format!("{:.6}", probabilities[expected.truth]));
        let above = probabilities
            .iter()
            .filter(|&&p| p > probabilities[expected.truth])
            .count();
        assert_eq!(row[5], (above + 1).to_string());
    }
}

#[test]
fn the_json_report_carries_every_figure_and_prediction() {
    let folder = tempfile::tempdir().unwrap();
    let evaluation = evaluation(&names(["drum", "harp", "violin"]), 60);
    write_hostile(folder.path(), &evaluation);
    let text = read(folder.path(), "report.json");
    let report: Value = serde_json::from_str(&text).unwrap();
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
    let probabilities = synthetic::probabilities(3, 60);
    for (at, (prediction, row)) in predictions.iter().zip(&evaluation.rows).enumerate() {
        assert_eq!(prediction["image"], row.image.to_string());
        assert_eq!(prediction["true_class"], evaluation.classes[row.truth]);
        assert_eq!(prediction["predicted_class"], evaluation.classes[row.predicted]);
        assert_eq!(prediction["probabilities"], json!(probabilities.row(at).to_vec()));
    }
    let lines = text.lines().map(|line| line.trim().trim_end_matches(','));
    let of_predictions = lines.filter(|line| line.contains("\"probabilities\":["));
    let found: Vec<Value> = of_predictions.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(found, *predictions, "a line for each");
}

#[test]
fn the_json_report_names_what_was_found() {
    let folder = tempfile::tempdir().unwrap();
    let evaluation = evaluation(&names(["drum", "harp", "violin"]), 60);
    let made = Made::with_everything(&evaluation);
    write_report(folder.path(), &made.context()).unwrap();
    let report: Value = serde_json::from_str(&read(folder.path(), "report.json")).unwrap();
    let first = &report["confused_pairs"][0];
    let label = |class: &Value| evaluation.classes.iter().position(|name| class == name).unwrap();
    let (truth, predicted) = (label(&first["true_class"]), label(&first["predicted_class"]));
    let n = first["images"].as_array().unwrap().len() as u64;
    assert_eq!(n, evaluation.confusion[truth][predicted]);
    let wrong = |truth: usize, predicted: usize| {
        if truth == predicted {
            0
        } else {
            evaluation.confusion[truth][predicted]
        }
    };
    assert!((0..9).all(|pair| wrong(pair / 3, pair % 3) <= n));

    assert_eq!(report["mislabelled"][0]["file"], "folder/00004.jpg");
    assert_eq!(report["mislabelled"][0]["class"], "harp");
    assert_eq!(report["mislabelled"][0]["suggested_class"], "violin");
    let meanings: Vec<&Value> = (0..3).map(|group| &report["duplicates"][group]["meanings"]).collect();
    assert_eq!(*meanings[0], json!(["leakage"]));
    assert_eq!(*meanings[1], json!(["leakage", "contradictory_labels"]));
    assert_eq!(*meanings[2], json!(["redundant"]));
    // Rows 0 and 2 are in training too.
    let others = evaluation
        .rows
        .iter()
        .enumerate()
        .filter(|(at, _)| ![0, 2].contains(at));
    let n_correct = others.filter(|(_, row)| row.is_correct()).count();
    assert_eq!(
        report["leakage"],
        json!({ "n": 2, "accuracy_without": n_correct as f64 / 58.0 })
    );
    assert_eq!(
        report["few_images"],
        json!([]),
        "each class has 20 images in train and test"
    );
    assert_eq!(report["more_images"]["answer"], "yes");
    assert_eq!(report["variance"]["n_components"], 3);
    assert_eq!(report["stages"][1]["seconds"], 61.5);
    for (at, row) in evaluation.rows.iter().enumerate() {
        let prediction = &report["predictions"][at];
        assert_eq!(prediction["map"].as_array().unwrap().len(), 2);
        let nearest = &prediction["nearest_training_images"];
        assert_eq!(nearest.is_null(), row.is_correct());
        if !row.is_correct() {
            assert_eq!(nearest[2]["cosine"], 0.9 - 0.1 * 2.0);
            assert_eq!(nearest[2]["file"], format!("folder/{:05}.jpg", (at + 5) % 60));
        }
    }
}

#[test]
fn classes_with_few_images_are_named_with_the_interval_of_their_recall() {
    let folder = tempfile::tempdir().unwrap();
    let evaluation = evaluation(&names(["drum", "harp", "violin"]), 27);
    synthetic::write(folder.path(), &evaluation);
    let rows = csv_rows(folder.path(), "few_images.csv");
    assert_eq!(
        rows.len(),
        1 + 3,
        "nine images of each class are too few in train and test"
    );
    for (row, metrics) in rows[1..].iter().zip(&evaluation.per_class) {
        assert_eq!(row[1..3], ["9", "9"]);
        let [recall, lower, upper] = [3, 4, 5].map(|at: usize| row[at].parse::<f64>().unwrap());
        assert!(
            (recall - metrics.recall).abs() < 1e-6 && lower < recall && recall <= upper,
            "{row:?}"
        );
        assert!(upper - lower > 0.2, "{row:?}");
    }
    assert!(read(folder.path(), "report.html").contains("9 (few)"));
}

/// What the schema has to say of reports, by Python's jsonschema. `None` without Python.
fn against_schema(reports: &[Value]) -> Option<Vec<Vec<String>>> {
    const VALIDATE: &str = "
import json, sys, jsonschema
asked = json.load(sys.stdin)
validator = jsonschema.Draft202012Validator(asked['schema'])
said = [[f'{error.json_path}: {error.message}' for error in validator.iter_errors(report)] for report in asked['reports']]
json.dump(said, sys.stdout)";
    let python = Need::Python.path()?;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../schemas/report-1.schema.json");
    let mut schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    allow_no_other(&mut schema);
    // The metrics of a class are those of any, and more.
    schema["$defs"]["metrics"]
        .as_object_mut()
        .unwrap()
        .remove("unevaluatedProperties");
    let mut child = Command::new(python)
        .args(["-c", VALIDATE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let asked = json!({ "schema": schema, "reports": reports });
    serde_json::to_writer(child.stdin.take().unwrap(), &asked).unwrap();
    let said = child.wait_with_output().unwrap();
    assert!(said.status.success());
    Some(serde_json::from_slice(&said.stdout).unwrap())
}

/// Who reads reports must put up with fields that are new to them; these tests must not.
fn allow_no_other(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.values_mut().for_each(allow_no_other);
            if fields.get("properties").is_some_and(Value::is_object) {
                fields.insert("unevaluatedProperties".to_owned(), json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(allow_no_other),
        _ => {}
    }
}

#[test]
fn the_json_report_follows_its_schema() {
    let folder = tempfile::tempdir().unwrap();
    let evaluation = evaluation(&names(["drum", "harp", "violin"]), 60);
    let written = || -> Value { serde_json::from_str(&read(folder.path(), "report.json")).unwrap() };
    synthetic::write(folder.path(), &evaluation);
    let mut reports = vec![written()];
    write_hostile(folder.path(), &evaluation);
    reports.push(written());

    let damages: [fn(&mut Value); 7] = [
        |report| report["schema"] = json!("luthier-report/2"),
        |report| report["extra"] = json!(1),
        |report| report["accuracy"]["value"] = json!(92.6),
        |report| report["duplicates"][0]["meanings"] = json!([]),
        |report| report["predictions"][3]["image"] = json!("?"),
        |report| report["per_class"][0]["mood"] = json!("good"),
        |report| drop(report.as_object_mut().unwrap().remove("more_images")),
    ];
    for damage in damages {
        let mut report = written();
        damage(&mut report);
        reports.push(report);
    }
    let Some(said) = against_schema(&reports) else { return };
    assert_eq!(said[0], [""; 0], "nothing found");
    assert_eq!(said[1], [""; 0], "something of everything");
    for (number, said) in said[2..].iter().enumerate() {
        assert_eq!(said.len(), 1, "damage {number}: {said:?}");
    }
}

/// Writes a report with something of everything whose thumbnails are as large as told by their longer side, and returns how
/// often one was asked for, and the page.
fn page_with_pictures(bytes: fn(u32) -> usize, evaluation: &Evaluation) -> (usize, String) {
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<String> = (0..evaluation.n)
        .map(|row| format!("a folder of photographs/IMG_20240101_{row:06}_HDR.jpeg"))
        .collect();
    let asked = Mutex::new(Vec::new());
    let made = Made::with_everything(evaluation);
    let images = Images {
        files: &files,
        ..made.context().test
    };
    let context = Context {
        train: images,
        test: images,
        evaluated: images,
        thumbnail: &|split, file, side| {
            asked.lock().unwrap().push((split, file.to_owned()));
            Ok(Some(vec![0; bytes(side)]))
        },
        ..made.context()
    };
    write_report(folder.path(), &context).unwrap();
    let mut asked = asked.into_inner().unwrap();
    let n_asked = asked.len();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked.len(), n_asked, "a picture was made twice");
    (n_asked, read(folder.path(), "report.html"))
}

#[test]
fn copies_in_train_and_test_have_pictures_however_many_others_come_before() {
    let folder = tempfile::tempdir().unwrap();
    let evaluation = evaluation(&names(["drum", "violin"]), 400);
    let made = Made::for_report(&evaluation);
    // A hundred in one class of train, and behind them twenty in train and test.
    let group = |row: usize| {
        let other = if row < 100 { Split::Train } else { Split::Test };
        let images = [(Split::Train, row), (other, row + 200)].map(|(split, row)| ImageRef { split, row });
        Duplicates {
            images: images.to_vec(),
            likeness: Likeness::SameBytes,
        }
    };
    let findings = Findings {
        duplicates: (0..120).map(group).collect(),
        ..Findings::default()
    };
    let asked = Mutex::new(HashSet::new());
    let context = Context {
        findings: &findings,
        thumbnail: &|split, file, _| {
            asked.lock().unwrap().insert((split, file.to_owned()));
            Ok(None)
        },
        ..made.context()
    };
    write_report(folder.path(), &context).unwrap();
    let asked = asked.into_inner().unwrap();
    let is_asked = |row: usize| asked.contains(&(Split::Train, format!("folder/{row:05}.jpg")));
    let rows: Vec<usize> = (0..200).filter(|&row| is_asked(row)).collect();
    assert_eq!(rows, (0..48).chain(100..120).collect::<Vec<_>>());
}

/// Thirty classes with long names, and nearly all of 5,000 images wrong or about one in five.
fn large_evaluations() -> [Evaluation; 2] {
    let classes: Vec<String> = (0..30)
        .map(|class| format!("an instrument of kind {class:02}"))
        .collect();
    let usual = evaluation(&classes, 5_000);
    let mut hopeless = usual.clone();
    hopeless.confusion = vec![vec![0; 30]; 30];
    for (place, row) in hopeless.rows.iter_mut().enumerate() {
        row.truth = (row.truth + place / 30) % 30;
        hopeless.confusion[row.truth][row.predicted] += 1;
    }
    [usual, hopeless]
}

#[test]
fn a_page_of_5_000_images_in_30_classes_stays_below_eight_megabytes_however_many_are_wrong() {
    for evaluation in large_evaluations() {
        let n_mistakes = evaluation.n - evaluation.n_correct();
        // Photographs as JPEGs of quality 80 have 2 KB at 96 pixels and 8 KB at 240.
        let (asked, html) = page_with_pictures(|side| (u64::from(side).pow(2) / 7) as usize, &evaluation);
        println!(
            "{n_mistakes} mistakes, {asked} pictures, {:.1} MB",
            html.len() as f64 / 1e6
        );
        assert!((400..=850).contains(&asked), "{asked}");
        assert!(html.len() < 8_000_000, "{}", html.len());
        let of_suspects = 3;
        assert_eq!(html.matches("<figure>").count(), 100 + of_suspects);
        assert_eq!(
            html.matches("<li id=\"image-").count(),
            evaluation.n,
            "every image is named"
        );
        assert!(html.contains("Shown are 100; the others are listed below them"));
    }
}

#[test]
fn pictures_that_are_too_large_for_the_page_are_left_out() {
    let evaluation = evaluation(&names(["drum", "harp", "violin"]), 500);
    let (_, html) = page_with_pictures(|_| 1 << 20, &evaluation);
    assert_eq!(html.matches("url(data:").count(), 4);
    assert_eq!(
        html.matches("No preview").count(),
        100 - 1 + 3,
        "the first card and its three neighbours have them, and no suspect"
    );
    assert!(html.len() < 8_000_000);
}

#[test]
fn of_more_than_5_000_images_the_page_names_every_mistake_and_a_sample() {
    let evaluation = evaluation(&names(["drum", "harp", "violin"]), 12_000);
    let (n_correct, n_mistakes) = (evaluation.n_correct(), evaluation.n - evaluation.n_correct());
    let (_, html) = page_with_pictures(|_| 10, &evaluation);
    assert_eq!(html.matches("<li id=\"image-").count(), 5_000);
    assert_eq!(html.matches("class=\"predicted\"").count(), n_mistakes);
    let n_listed = 5_000 - n_mistakes;
    assert!(n_correct > n_listed && html.contains(&format!("Listed are {},{:03}", n_listed / 1_000, n_listed % 1_000)));
}

#[test]
fn a_perfect_model_has_no_mistakes_to_show() {
    let classes = names(["drum", "violin"]);
    let perfect = evaluation(&classes, 500)
        .rows
        .into_iter()
        .filter(luthier_eval::EvaluatedImage::is_correct);
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
    .run(Split::Test, &predictions, None, &())
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    synthetic::write(folder.path(), &evaluation);
    let html = read(folder.path(), "report.html");
    assert!(html.contains("None: every test image was recognised.") && !html.contains("Most frequent confusions"));
    let duplicates = html.split("<h3 id=\"duplicates\">").nth(1).unwrap();
    assert!(duplicates.contains("<p>None was found.</p>") && html.contains("Only test images were judged."));
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

#[test]
fn an_interruption_while_pictures_are_made_leaves_the_report_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let evaluation = evaluation(&names(["drum", "harp"]), 20);
    let made = Made::with_everything(&evaluation);
    let context = Context {
        thumbnail: &|_, _, _| Err(Interrupted),
        ..made.context()
    };
    let error = write_report(folder.path(), &context).unwrap_err();
    assert!(matches!(error, luthier_eval::Error::Interrupted(_)), "{error}");
    assert!(entries(folder.path()).unwrap().is_empty());
}
