//! `luthier compare`, and `luthier evaluate --baseline`.

use serde_json::{Value, json};

use crate::Project;

/// Writes a report of so many images of harps; those below `n_wrong` are taken for drums, with this probability.
fn write_report(project: &Project, file: &str, n: usize, n_wrong: usize, probability: f64) {
    let prediction = |image: usize| {
        let drum = if image < n_wrong { probability } else { 0.25 };
        json!({
            "file": format!("harp/{image}.jpg"),
            "image": format!("{image:064x}"),
            "true_class": "harp",
            "probabilities": [drum, 1.0 - drum],
        })
    };
    let report = json!({
        "schema": "luthier-report/1",
        "confidence": 0.95,
        "classes": ["drum", "harp"],
        "predictions": (0..n).map(prediction).collect::<Vec<_>>(),
    });
    project.write(file, report.to_string().as_bytes());
}

#[test]
fn what_changed_is_told_in_words() {
    let project = Project::empty();
    write_report(&project, "old/report.json", 8, 3, 0.75);
    write_report(&project, "new/reports/report.json", 9, 1, 0.75);
    let text = project.run(&["compare", "old", "new"]).ok().stdout;
    let expected = "\
baseline   old/report.json
candidate  new/reports/report.json

                    baseline  candidate  difference
accuracy              0.6250     0.8750     +0.2500
macro F1              0.3846     0.4667     +0.0821
log loss              0.6997     0.4250     -0.2747
calibration error     0.1250     0.1250      0.0000

Of 8 images the baseline alone has 0 right, the candidate alone 2: no more than chance would give, p = 0.5000 \
(McNemar's test, exact and two-sided, at confidence 0.95).
All figures are over the 8 images in common; accuracy is 0.6250 on all 8 of the baseline, 0.8889 on all 9 of the candidate.

class  images  precision        recall           F1               difference
harp        8  1.0000 → 1.0000  0.6250 → 0.8750  0.7692 → 0.9333     +0.1641

2 images wrong in the baseline, right in the candidate:
  harp/1.jpg: harp, was taken for drum (75.0 %)
  harp/2.jpg: harp, was taken for drum (75.0 %)

1 image only in the candidate:
  harp/8.jpg
";
    assert_eq!(text, expected);

    let json = project.run(&["compare", "old", "new", "--format", "json"]).ok().stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["schema"], &json["verdict"]),
        (&json!("luthier-comparison/1"), &json!("chance"))
    );
    assert_eq!(json["reports"]["candidate"], "new/reports/report.json");
    assert_eq!(
        json["accuracy"],
        json!({"baseline": 0.625, "candidate": 0.875, "difference": 0.25})
    );
    assert_eq!(
        json["newly_right"][1]["baseline"],
        json!({"class": "drum", "probability": 0.75})
    );
    assert_eq!(json["candidate"]["only_here"], json!(["harp/8.jpg"]));
}

#[test]
fn markdown_folds_lists_and_keeps_names_from_meaning_anything() {
    let project = Project::empty();
    write_report(&project, "old.json", 150, 0, 0.75);
    write_report(&project, "new.json", 150, 120, 0.75);
    let hostile = project
        .read("new.json")
        .replace("harp/0.jpg", "harp/!</details>`<img src=x>`\\n\\n# 0.jpg");
    project.write("new.json", hostile.replace("harp", "ha|rp").as_bytes());
    project.write("old.json", project.read("old.json").replace("harp", "ha|rp").as_bytes());
    let text = project
        .run(&["compare", "old.json", "new.json", "--format", "markdown"])
        .ok()
        .stdout;
    for part in [
        "`old.json` → `new.json`\n",
        "| accuracy | 1.0000 | 0.2000 | -0.8000 |\n",
        "the candidate is worse, p = 1.5e-36 ",
        "\n<details><summary>Classes that changed</summary>\n\n| class |",
        "\n| `ha\\|rp` | 150 | 1.0000 → 1.0000 | 1.0000 → 0.2000 |",
        "\n<details><summary>120 images right in the baseline, wrong in the candidate</summary>\n\n- ",
        "\n- ``ha|rp/!</details>`<img src=x>`\\n\\n# 0.jpg``: `ha|rp`, now taken for `drum` (75.0 %)\n",
        "\n- and 20 more, which --format json names\n\n</details>\n",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn a_run_that_is_worse_fails_where_that_is_asked_for() {
    let project = Project::empty();
    write_report(&project, "none.json", 20, 0, 0.75);
    write_report(&project, "few.json", 20, 5, 0.75);
    write_report(&project, "many.json", 20, 6, 0.75);
    let judge = |baseline: &str, candidate: &str| project.run(&["compare", baseline, candidate, "--fail-if-worse"]);
    judge("none.json", "few.json").ok();
    judge("many.json", "none.json").ok();
    project.run(&["compare", "none.json", "many.json"]).ok();
    let ran = judge("none.json", "many.json");
    assert_eq!(
        ran.error(),
        (
            1,
            "error: many.json: worse than none.json: accuracy 0.7000, which was 1.0000, p = 0.0312"
        )
    );
    assert!(ran.stdout.contains("the candidate is worse"), "{}", ran.stdout);
}

#[test]
fn what_cannot_be_compared_is_said() {
    let project = Project::empty();
    write_report(&project, "fine.json", 3, 1, 0.75);
    write_report(&project, "none.json", 0, 0, 0.75);
    project.write("folder/other.json", b"{}");
    project.write("text.json", b"{}");
    project.write("newer.json", br#"{"schema": "luthier-report/2"}"#);
    for (candidate, expected) in [
        (
            "missing.json",
            "error: missing.json: No such file or directory (os error 2)",
        ),
        (
            "folder",
            "error: folder: expected report.json or reports/report.json in this folder, found neither\n\
             hint: `luthier pipeline` and `luthier evaluate` write one",
        ),
        (
            "text.json",
            "error: text.json: expected a report.json of schema luthier-report/1, found JSON without a schema",
        ),
        (
            "newer.json",
            "error: newer.json: expected a report.json of schema luthier-report/1, found luthier-report/2",
        ),
        (
            "none.json",
            "error: fine.json, none.json: no image is in both reports with the same true class, expected at least one; \
             the baseline has 3 images, the candidate 0\n\
             hint: compare runs on the same test images; their names do not matter, their bytes and classes do",
        ),
    ] {
        assert_eq!(project.run(&["compare", "fine.json", candidate]).error(), (1, expected));
    }
}

#[test]
fn an_evaluation_is_compared_with_the_report_that_it_replaces() {
    let project = Project::new();
    project.pipeline(&["--c", "1"]);
    let same = project.run(&["evaluate", "--baseline", "reports"]).ok().stdout;
    assert!(
        same.contains("Of 6 images both have the same ones right.\n\nreport "),
        "{same}"
    );

    let before: Value = serde_json::from_str(&project.read("reports/report.json")).unwrap();
    project.run(&["train", "--c", "0.001"]).ok();
    let changed = project.run(&["evaluate", "--baseline", "reports"]).ok().stdout;
    let after: Value = serde_json::from_str(&project.read("reports/report.json")).unwrap();
    let [before, after] = [before, after].map(|report| report["log_loss"].as_f64().unwrap());
    assert!(before < after, "{before} {after}");
    let line = format!(
        "log loss              {before:.4}     {after:.4}     {:+.4}\n",
        after - before
    );
    assert!(changed.contains(&line), "{line} is not in\n{changed}");
}
