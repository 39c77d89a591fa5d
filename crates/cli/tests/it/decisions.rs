//! `decisions.jsonl`: what people say of images, as input of the pipeline.

use std::fs;

use luthier_artifact::Digest;
use serde_json::{Value, json};

#[cfg(unix)]
use crate::browser;
use crate::{FOLDERS, Project, luthier_files, photo};

/// A project with a drum among the harps.
fn swapped() -> Project {
    let project = Project::new();
    project.write("data/train/harp/9.jpg", &photo(0, 9));
    project
}

/// A line about the file below `data`.
fn decision(project: &Project, file: &str, verdict: &str, class: Option<&str>) -> Value {
    let bytes = fs::read(project.path(&format!("data/{file}"))).unwrap();
    let mut line = json!({
        "image": Digest::of(&bytes).to_string(),
        "file": file,
        "verdict": verdict,
        "time": "2026-11-27T09:30:00Z",
    });
    if let Some(class) = class {
        line["class"] = json!(class);
    }
    line
}

fn write(project: &Project, lines: &[Value]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    project.write("decisions.jsonl", text.as_bytes());
}

/// The stages that ran.
fn ran(outcome: &Value) -> Vec<&str> {
    let stages = outcome["stages"].as_array().unwrap().iter();
    stages
        .filter(|stage| stage["status"] == "ran")
        .map(|stage| stage["name"].as_str().unwrap())
        .collect()
}

/// The bytes of features and models, but for `features.json`, which names files.
fn numbers(project: &Project) -> Vec<Vec<u8>> {
    let folders = ["features", "models"].map(|folder| luthier_files(&project.path(folder)));
    let files = folders.iter().flatten().filter(|file| !file.ends_with("features.json"));
    files.map(|file| fs::read(file).unwrap()).collect()
}

#[test]
fn a_decided_class_gives_the_bytes_that_a_moved_file_gives() {
    let decided = swapped();
    decided.pipeline(&[]);
    write(
        &decided,
        &[decision(&decided, "train/harp/9.jpg", "change", Some("drum"))],
    );
    let outcome = decided.pipeline(&[]);
    assert_eq!(outcome["images"]["embedded"], 0);
    let moved = swapped();
    fs::rename(moved.path("data/train/harp/9.jpg"), moved.path("data/train/drum/9.jpg")).unwrap();
    moved.pipeline(&[]);
    assert!(numbers(&decided) == numbers(&moved));
    // Without the file, the folders say the class again.
    fs::remove_file(decided.path("decisions.jsonl")).unwrap();
    let harps = swapped();
    harps.pipeline(&[]);
    decided.pipeline(&[]);
    assert!(numbers(&decided) == numbers(&harps));
}

#[test]
fn an_image_that_is_left_out_counts_nowhere() {
    let project = Project::new();
    write(&project, &[decision(&project, "test/harp/5.jpg", "exclude", None)]);
    let ran = project.run(&crate::PIPELINE).ok();
    assert!(ran.stderr.contains("; decided: 1 left out"), "{}", ran.stderr);
    let rows = project.read("features/features.json");
    assert!(!rows.contains("harp/5.jpg"), "{rows}");
    assert_eq!(project.pipeline(&[])["images"]["total"], 17);
}

#[test]
fn what_is_right_is_never_suspected_again_and_trains_no_other_model() {
    let project = swapped();
    project.pipeline(&[]);
    let suspects = || project.read("reports/mislabelled.csv");
    assert!(suspects().contains("harp/9.jpg"), "{}", suspects());
    write(
        &project,
        &[decision(&project, "train/harp/9.jpg", "right", Some("harp"))],
    );
    assert_eq!(ran(&project.pipeline(&[])), ["suspects", "neighbours"]);
    assert!(!suspects().contains("harp/9.jpg"), "{}", suspects());
    // Nor by the parts of the pipeline, from folder to folder.
    project.run(&[&["extract"][..], &FOLDERS].concat()).ok();
    project.run(&["train"]).ok();
    project.run(&["evaluate"]).ok();
    assert!(!suspects().contains("harp/9.jpg"), "{}", suspects());
}

#[test]
fn that_all_copies_stay_is_in_features_json_by_the_next_run() {
    let project = swapped();
    let kept = || {
        let json: Value = serde_json::from_str(&project.read("features/features.json")).unwrap();
        json["decided"]["kept"].as_array().unwrap().len()
    };
    let mut right = decision(&project, "train/harp/9.jpg", "right", Some("harp"));
    write(&project, std::slice::from_ref(&right));
    project.pipeline(&[]);
    assert_eq!(kept(), 0);
    right["copies"] = json!(true);
    write(&project, &[right]);
    project.pipeline(&[]);
    assert_eq!(kept(), 1);
}

#[test]
fn lines_that_cannot_be_used_are_named_and_the_rest_counts() {
    let project = swapped();
    let change = decision(&project, "train/harp/9.jpg", "change", Some("drum"));
    let mut unknown = decision(&project, "train/harp/1.jpg", "change", Some("viola"));
    write(&project, &[change.clone(), unknown.clone()]);
    let text = project.read("decisions.jsonl") + "{\"image\": \"";
    project.write("decisions.jsonl", text.as_bytes());
    let ran = project.run(&crate::PIPELINE).ok();
    for said in [
        "decisions.jsonl:2: train/harp/1.jpg: class \"viola\" is none of the data's",
        "decisions.jsonl:3: cut short, expected a whole decision; passed over",
    ] {
        assert!(ran.stderr.contains(said), "{said} in {}", ran.stderr);
    }
    assert!(
        ran.stderr.contains("; decided: 1 checked, 1 with another class"),
        "{}",
        ran.stderr
    );
    // A file that is named must be there.
    let ran = project.run(&[&crate::PIPELINE[..], &["--decisions", "other.jsonl"]].concat());
    assert_eq!(ran.status, 1);
    assert!(ran.error().1.starts_with("error: other.jsonl: "), "{}", ran.stderr);
    unknown["image"] = json!("0".repeat(64));
    write(&project, &[unknown]);
    let ran = project.run(&crate::PIPELINE).ok();
    assert!(
        ran.stderr.contains("no such image, expected one with these bytes"),
        "{}",
        ran.stderr
    );
}

#[cfg(unix)]
#[test]
fn what_is_decided_in_the_report_is_what_the_next_run_follows() {
    let project = swapped();
    project.write("data/train/drum/9.jpg", &photo(0, 9));
    project.pipeline(&[]);
    let page = project.path("reports/report.html");
    let Some(saved) = browser::decide(&page, "harp/9.jpg", "change") else {
        return;
    };
    project.write("decisions.jsonl", saved.as_bytes());
    let ran = project.run(&crate::PIPELINE).ok();
    assert!(
        ran.stderr.contains("; decided: 1 checked, 1 with another class"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.is_empty() || !ran.stderr.contains("passed over"),
        "{}",
        ran.stderr
    );
    assert!(!project.read("reports/mislabelled.csv").contains("harp/9.jpg"));
    assert!(
        project
            .read("reports/report.html")
            .contains("1 checked, 1 with another class")
    );
}

#[test]
fn files_move_to_the_folders_of_their_decided_classes_when_asked() {
    let project = swapped();
    // The name is taken there, by a copy.
    project.write("data/train/drum/9.jpg", &photo(0, 9));
    write(
        &project,
        &[decision(&project, "train/harp/9.jpg", "change", Some("drum"))],
    );
    project.pipeline(&[]);
    let before = numbers(&project);
    let plan = project.run(&[&["relabel"][..], &FOLDERS].concat()).ok();
    let line = "data/train/harp/9.jpg  → data/train/drum/9-2.jpg\n";
    assert_eq!(plan.stdout, format!("{line}would move 1 image to data/train\n"));
    assert!(plan.stderr.contains("note: --apply moves them"), "{}", plan.stderr);
    assert!(project.path("data/train/harp/9.jpg").exists());
    let done = project.run(&[&["relabel", "--apply"][..], &FOLDERS].concat()).ok();
    assert_eq!(done.stdout, format!("{line}moved 1 image to data/train\n"));
    assert!(!project.path("data/train/harp/9.jpg").exists());
    assert_eq!(fs::read(project.path("data/train/drum/9-2.jpg")).unwrap(), photo(0, 9));
    assert_eq!(fs::read(project.path("data/train/drum/9.jpg")).unwrap(), photo(0, 9));
    // All is as before, with the decision and without it.
    project.pipeline(&[]);
    assert!(numbers(&project) == before);
    fs::remove_file(project.path("decisions.jsonl")).unwrap();
    project.pipeline(&[]);
    assert!(numbers(&project) == before);
    let ran = project.run(&[&["relabel"][..], &FOLDERS].concat());
    assert_eq!(
        ran.error(),
        (
            2,
            "error: no decisions.jsonl here\nhint: name the file: --decisions FILE"
        )
    );
}
