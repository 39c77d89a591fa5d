//! The commands of the original project, as its README prints them.

use std::path::{Path, PathBuf};

use luthier_testing::Need;

use crate::{Project, Ran, assert_same, results};

#[test]
fn the_commands_of_the_original_work_with_their_underscores() {
    let project = Project::new();
    let run = |line: &str| project.run(&line.split(' ').collect::<Vec<_>>()).ok();
    run("extract --train_dir data/train --test_dir data/test --output_dir features/");
    run("train --feature_dir features/ --model_dir models/");
    let evaluated = run("evaluate --model_dir models/ --feature_dir features/");
    assert!(evaluated.stdout.contains("weighted avg"), "{}", evaluated.stdout);
    assert!(project.path("reports/report.html").is_file());
    std::fs::copy(project.path("data/test/harp/4.jpg"), project.path("sample.jpg")).unwrap();
    let predicted = run("predict --model_path models/model.safetensors --image_path sample.jpg");
    assert!(predicted.stdout.starts_with("sample.jpg  "), "{}", predicted.stdout);
}

#[test]
fn the_steps_one_by_one_give_the_bytes_of_the_pipeline() {
    let project = Project::new();
    project.pipeline(&["--out", "whole"]);
    project
        .run(&["extract", "--train-dir", "data/train", "--test-dir", "data/test"])
        .ok();
    project.run(&["train"]).ok();
    project.run(&["evaluate"]).ok();
    // `evaluate` knows its own time only, which the two reports list.
    let comparable = |mut files: Vec<(PathBuf, Vec<u8>)>| {
        files.retain(|(path, _)| path != Path::new("reports/report.json"));
        files
    };
    let (steps, whole) = (results(project.root.path()), results(&project.path("whole")));
    assert_same(&comparable(steps), &comparable(whole), "step by step");
}

#[test]
fn evaluate_reads_features_json_once() {
    let project = Project::new();
    project.pipeline(&[]);
    let arguments = ["evaluate", "--report-dir", "other"];
    let options = ["-qq", "-o", "trace.log", "-e", "trace=?open,?openat"];
    let ran = project.traced(&options, &arguments).output().map(Ran::of);
    let Some(ran) = ran.ok().filter(|ran| !ran.stderr.contains("strace: ")) else {
        Need::Strace.skip();
        return;
    };
    ran.ok();
    let log = project.read("trace.log");
    assert_eq!(log.matches("features/features.json").count(), 1, "{log}");
}

#[test]
fn a_feature_that_is_not_a_number_is_named_by_its_image() {
    let project = Project::new();
    project.pipeline(&[]);
    for (split, command) in [("train", "train"), ("test", "evaluate")] {
        let path = project.path(&format!("features/{split}_features.npy"));
        let mut bytes = std::fs::read(&path).unwrap();
        // The last feature of the last row.
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        let ran = project.run(&[command]);
        let (status, error) = ran.error();
        assert_eq!(status, 1);
        let index: serde_json::Value = serde_json::from_str(&project.read("features/features.json")).unwrap();
        let last = index["rows"][split].as_array().unwrap().last().unwrap();
        let named = format!(
            "data/{split}/{}: feature 2047 is NaN, expected a finite number\nhint: ",
            last["file"].as_str().unwrap()
        );
        assert!(error.contains(&named), "{error}");
    }
}

#[test]
fn features_that_do_not_fit_their_index_are_named() {
    let project = Project::new();
    let ran = project.run(&["train", "--feature-dir", "nowhere"]);
    assert_eq!(
        ran.error(),
        (
            1,
            "error: nowhere/features.json: no such file, expected what `luthier extract` writes\n\
             hint: run luthier extract --output-dir nowhere"
        )
    );
    project.pipeline(&[]);
    std::fs::copy(
        project.path("features/test_labels.npy"),
        project.path("features/train_labels.npy"),
    )
    .unwrap();
    let ran = project.run(&["train"]);
    assert_eq!(
        ran.error(),
        (
            1,
            "error: features/train_labels.npy: expected 12 rows as in features.json, found 6\nhint: run luthier extract again"
        )
    );
}
