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
    // Features that somebody changed have no digests: otherwise they are those of another run.
    let path = project.path("features/features.json");
    let mut json: serde_json::Value = serde_json::from_str(&project.read("features/features.json")).unwrap();
    json.as_object_mut().unwrap().remove("digests");
    std::fs::write(&path, json.to_string()).unwrap();
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

#[test]
fn with_a_given_c_training_needs_no_test_features() {
    let project = Project::new();
    project.pipeline(&["--c", "1"]);
    let model = std::fs::read(project.path("models/model.safetensors")).unwrap();
    for file in ["test_features.npy", "test_labels.npy", "test_hashes.npy"] {
        std::fs::remove_file(project.path(&format!("features/{file}"))).unwrap();
    }
    project.run(&["train", "--c", "1"]).ok();
    assert_eq!(std::fs::read(project.path("models/model.safetensors")).unwrap(), model);
}

#[test]
fn rows_of_one_run_are_not_trained_with_the_labels_of_another() {
    let project = Project::new();
    project.pipeline(&[]);
    let before = std::fs::read(project.path("features/features.json")).unwrap();
    // The same number of images, in another order. A run that was killed has not written features.json.
    project.write("data/train/drum/0.jpg", &crate::photo(0, 50));
    project.pipeline(&[]);
    std::fs::write(project.path("features/features.json"), before).unwrap();
    for command in ["train", "evaluate"] {
        let ran = project.run(&[command]);
        let (status, error) = ran.error();
        assert_eq!(status, 1);
        assert!(
            error.contains(
                "features/train_features.npy: expected the rows that features.json describes, found rows of another run"
            ),
            "{error}"
        );
    }
}

#[test]
fn features_from_elsewhere_may_have_classes_in_any_order_and_are_checked() {
    let project = Project::new();
    project.pipeline(&[]);
    let json: serde_json::Value = serde_json::from_str(&project.read("features/features.json")).unwrap();
    let write = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json = json.clone();
        json.as_object_mut().unwrap().remove("digests");
        change(&mut json);
        std::fs::write(project.path("features/features.json"), json.to_string()).unwrap();
    };
    // Names that are not in order: the labels in the .npy files are places in this list.
    let renamed = json.to_string().replace("\"drum\"", "\"zither\"");
    write(&|json| {
        *json = serde_json::from_str(&renamed).unwrap();
        json.as_object_mut().unwrap().remove("digests");
    });
    project.run(&["train"]).ok();
    project.run(&["evaluate"]).ok();
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &str); 3] = [
        (|json| json["classes"][1] = "drum".into(), "class \"drum\" twice"),
        (
            |json| json["rows"]["test"][0]["class"] = "lute".into(),
            "class \"lute\" of test row 0",
        ),
        (
            |json| json["classes"] = serde_json::json!(["drum"]),
            "1 classes instead of two or more",
        ),
    ];
    for (change, found) in cases {
        write(&change);
        let ran = project.run(&["train"]);
        let (status, error) = ran.error();
        assert_eq!(status, 1);
        assert!(
            error.contains("features/features.json: expected a description of features") && error.contains(found),
            "{error}"
        );
    }
}
