//! What runs again after a change, and what does not.

use std::fs;

use luthier_artifact::Digest;
use serde_json::Value;

use crate::cache::verify;
use crate::{PIPELINE, Project, Ran, assert_same, photo, results, snapshot};

/// The stages' statuses in order, for example `scan ran, extract fresh`.
fn statuses(outcome: &Value) -> String {
    let stages = outcome["stages"].as_array().unwrap().iter();
    let line = |stage: &Value| {
        format!(
            "{} {}",
            stage["name"].as_str().unwrap(),
            stage["status"].as_str().unwrap()
        )
    };
    stages.map(line).collect::<Vec<_>>().join(", ")
}

/// The stages that are not fresh, with their statuses.
fn not_fresh(outcome: &Value) -> String {
    let all = statuses(outcome);
    let not_fresh = all.split(", ").filter(|stage| !stage.ends_with(" fresh"));
    not_fresh.collect::<Vec<_>>().join(", ")
}

fn reason<'a>(outcome: &'a Value, stage: &str) -> &'a str {
    let stages = outcome["stages"].as_array().unwrap();
    stages.iter().find(|found| found["name"] == stage).unwrap()["reason"]
        .as_str()
        .unwrap()
}

fn embedded(outcome: &Value) -> u64 {
    outcome["images"]["embedded"].as_u64().unwrap()
}

const ALL_RAN: &str = "scan ran, extract ran, duplicates ran, features ran, classify ran, evaluate ran, suspects ran, \
                       neighbours ran, map ran";
const ALL_FRESH: &str = "scan fresh, extract fresh, duplicates fresh, features fresh, classify fresh, evaluate fresh, \
                         suspects fresh, neighbours fresh, map fresh";

#[test]
fn a_run_writes_everything_and_the_next_runs_nothing() {
    let project = Project::new();
    let first = project.pipeline(&[]);
    assert_eq!(statuses(&first), ALL_RAN);
    assert_eq!(reason(&first, "classify"), "first run");
    assert_eq!(
        first["images"],
        serde_json::json!({"total": 18, "embedded": 18, "reused": 0, "skipped": 0})
    );
    assert_eq!(first["test"]["n"], 6);
    for file in [
        "features/train_features.npy",
        "features/train_labels.npy",
        "features/test_features.npy",
        "features/test_labels.npy",
        "features/features.json",
        "models/model.safetensors",
        "reports/report.html",
        "reports/report.json",
        "reports/classification_report.txt",
        "reports/confusion_matrix.csv",
        "reports/confusion_matrix.svg",
        "reports/confusion_matrix.png",
        "reports/misclassified.csv",
        "reports/skipped.csv",
    ] {
        assert!(project.path(file).is_file(), "{file}");
    }
    let times = || {
        let folders = ["features", "models", "reports"];
        let files = folders.iter().flat_map(|folder| snapshot(&project.path(folder)));
        files
            .map(|(path, _)| fs::metadata(path).unwrap().modified().unwrap())
            .collect::<Vec<_>>()
    };
    let before = times();
    let second = project.pipeline(&[]);
    assert_eq!(statuses(&second), ALL_FRESH);
    assert_eq!(reason(&second, "extract"), "unchanged");
    assert_eq!(
        (embedded(&second), times()),
        (0, before),
        "nothing is embedded, no file is touched"
    );
}

#[test]
fn a_changed_image_is_embedded_alone() {
    let project = Project::new();
    project.pipeline(&[]);
    project.write("data/train/drum/0.jpg", &photo(0, 50));
    let outcome = project.pipeline(&[]);
    // The map is of test images.
    let expected = ALL_RAN.replace("map ran", "map fresh");
    assert_eq!((embedded(&outcome), statuses(&outcome)), (1, expected));
    assert_eq!(reason(&outcome, "extract"), "1 image changed");

    project.write("data/train/drum/new.jpg", &photo(0, 51));
    fs::remove_file(project.path("data/train/harp/3.jpg")).unwrap();
    let outcome = project.pipeline(&[]);
    assert_eq!(
        (embedded(&outcome), reason(&outcome, "extract")),
        (1, "1 image added, 1 removed")
    );
}

#[test]
fn an_incremental_run_gives_the_bytes_of_a_fresh_one() {
    let project = Project::new();
    project.pipeline(&[]);
    project.write("data/train/drum/0.jpg", &photo(0, 50));
    project.write("data/test/harp/9.jpg", &photo(2, 9));
    fs::rename(
        project.path("data/train/flute/0.jpg"),
        project.path("data/train/harp/from-flute.jpg"),
    )
    .unwrap();
    project.pipeline(&[]);
    let incremental = results(project.root.path());
    for folder in ["features", "models", "reports", ".luthier"] {
        fs::remove_dir_all(project.path(folder)).unwrap();
    }
    project.pipeline(&["--threads", "1"]);
    assert_same(&incremental, &results(project.root.path()), "from scratch");
}

#[test]
fn another_test_image_trains_nothing() {
    let project = Project::new();
    project.pipeline(&[]);
    project.write("data/test/drum/9.jpg", &photo(0, 9));
    let outcome = project.pipeline(&[]);
    assert_eq!(
        not_fresh(&outcome),
        "scan ran, extract ran, duplicates ran, evaluate ran, suspects ran, neighbours ran, map ran"
    );
}

#[test]
fn a_test_image_that_looks_like_another_trains_nothing_and_a_training_image_does() {
    let project = Project::new();
    project.pipeline(&[]);
    // The same picture with other bytes: a JPEG may be followed by anything.
    let copy = [photo(0, 4), b"copy".to_vec()].concat();
    project.write("data/test/drum/copy.jpg", &copy);
    let outcome = project.pipeline(&[]);
    assert_eq!(
        not_fresh(&outcome),
        "scan ran, extract ran, duplicates ran, evaluate ran, suspects ran, neighbours ran, map ran"
    );
    let duplicates = project.read("reports/duplicates.csv");
    assert!(duplicates.contains("drum/copy.jpg"), "{duplicates}");

    let copy = [photo(0, 0), b"copy".to_vec()].concat();
    project.write("data/train/drum/copy.jpg", &copy);
    let outcome = project.pipeline(&[]);
    assert!(statuses(&outcome).contains("duplicates ran, features ran, classify ran"));
}

#[test]
fn a_setting_runs_the_stages_from_its_own_on_and_going_back_runs_nothing() {
    let project = Project::new();
    project.pipeline(&[]);

    let outcome = project.pipeline(&["--variance", "0.5"]);
    assert_eq!(
        not_fresh(&outcome),
        "features ran, classify ran, evaluate ran, suspects ran, neighbours ran"
    );
    assert_eq!(reason(&outcome, "features"), "variance 0.98 → 0.5");
    let back = project.pipeline(&[]);
    assert_eq!(
        not_fresh(&back),
        "features restored, classify restored, evaluate restored, suspects restored, neighbours restored"
    );

    let outcome = project.pipeline(&["--c", "0.01"]);
    assert_eq!(not_fresh(&outcome), "classify ran, evaluate ran, suspects ran");
    assert_eq!(reason(&outcome, "classify"), "c auto → 0.01");

    // Folds and seed do not matter while C is given; the seed does for the bootstrap.
    let outcome = project.pipeline(&["--c", "0.01", "--folds", "3"]);
    assert_eq!(statuses(&outcome), ALL_FRESH);
    let outcome = project.pipeline(&["--c", "0.01", "--seed", "7"]);
    assert_eq!(not_fresh(&outcome), "evaluate ran");
}

#[test]
fn going_back_to_an_earlier_state_of_the_folders_computes_nothing() {
    let project = Project::new();
    // Two branches of a data folder, with a commit in each.
    let kept = fs::read(project.path("data/train/drum/0.jpg")).unwrap();
    project.pipeline(&[]);
    let master = snapshot(&project.path("models"));
    project.write("data/train/drum/0.jpg", &photo(0, 50));
    project.write("data/train/harp/new.jpg", &photo(2, 51));
    project.pipeline(&[]);
    let branch = snapshot(&project.path("models"));
    assert!(branch != master);

    fs::remove_file(project.path("data/train/harp/new.jpg")).unwrap();
    project.write("data/train/drum/0.jpg", &kept);
    let back = project.pipeline(&[]);
    let restored = "extract restored, duplicates restored, features restored, classify restored, evaluate restored, \
                    suspects restored, neighbours restored";
    assert_eq!(not_fresh(&back), format!("scan ran, {restored}"));
    assert_eq!(
        (embedded(&back), snapshot(&project.path("models")) == master),
        (0, true)
    );

    project.write("data/train/drum/0.jpg", &photo(0, 50));
    project.write("data/train/harp/new.jpg", &photo(2, 51));
    let forth = project.pipeline(&[]);
    assert_eq!(not_fresh(&forth), format!("scan ran, {restored}"));
    assert_eq!(
        (embedded(&forth), snapshot(&project.path("models")) == branch),
        (0, true)
    );
}

#[test]
fn renaming_an_image_reruns_nothing_after_extract() {
    let project = Project::new();
    project.pipeline(&[]);
    fs::rename(
        project.path("data/test/drum/4.jpg"),
        project.path("data/test/drum/renamed.jpg"),
    )
    .unwrap();
    let outcome = project.pipeline(&[]);
    assert_eq!(not_fresh(&outcome), "scan ran, extract ran");
    assert_eq!(
        (embedded(&outcome), reason(&outcome, "extract")),
        (0, "1 image renamed")
    );
    // The report calls the image by its new name all the same.
    assert!(project.read("reports/report.json").contains("drum/renamed.jpg"));
    assert!(project.read("features/features.json").contains("drum/renamed.jpg"));
}

#[test]
fn another_label_searches_for_no_duplicates() {
    let project = Project::new();
    project.pipeline(&[]);
    fs::rename(
        project.path("data/train/drum/3.jpg"),
        project.path("data/train/harp/from-drum.jpg"),
    )
    .unwrap();
    let outcome = project.pipeline(&[]);
    assert_eq!((embedded(&outcome), reason(&outcome, "duplicates")), (0, "unchanged"));
    assert!(statuses(&outcome).contains("duplicates fresh, features ran"));
}

#[test]
fn neither_the_confidence_nor_c_nor_the_seed_nor_the_variance_searches_for_duplicates() {
    let project = Project::new();
    project.pipeline(&[]);
    for (setting, value, judges_labels) in [
        ("--confidence", "0.9", false),
        ("--seed", "7", true),
        ("--c", "0.5", true),
        ("--variance", "0.5", true),
    ] {
        let outcome = project.pipeline(&[setting, value]);
        assert_eq!(reason(&outcome, "duplicates"), "unchanged", "{setting}");
        assert_eq!(not_fresh(&outcome).contains("suspects"), judges_labels, "{setting}");
        project.pipeline(&[]);
    }
}

#[test]
fn a_lost_or_damaged_artifact_is_made_again() {
    let project = Project::new();
    project.pipeline(&[]);
    let before = results(project.root.path());
    for (path, bytes) in snapshot(&project.path(".luthier/objects")) {
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    }
    let plan = project.run(&[&PIPELINE[..], &["--dry-run"]].concat());
    assert_eq!(plan.status, 3, "{}", plan.stderr);
    fs::remove_dir_all(project.path("reports")).unwrap();
    let outcome = project.pipeline(&[]);
    assert_eq!(embedded(&outcome), 0, "features are in segments");
    assert_same(&results(project.root.path()), &before, "after the damage");

    fs::remove_dir_all(project.path(".luthier/objects")).unwrap();
    let outcome = project.pipeline(&[]);
    assert_eq!(
        (not_fresh(&outcome).as_str(), reason(&outcome, "features")),
        (
            "extract ran, duplicates ran, features ran, classify ran, evaluate ran, suspects ran, neighbours ran, map ran",
            "cache entry lost"
        )
    );
}

#[test]
fn a_run_that_changes_nothing_does_not_read_the_probabilities_of_all_classes() {
    let project = Project::new();
    project.pipeline(&[]);
    let before = results(project.root.path());
    let is_it = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains("test-probabilities/");
    let objects = snapshot(&project.path(".luthier/objects"));
    let (path, bytes) = objects.into_iter().find(|(_, bytes)| is_it(bytes)).unwrap();
    fs::write(&path, &bytes[1..]).unwrap();
    assert_eq!(statuses(&project.pipeline(&[])), ALL_FRESH);
    project.run(&["runs"]).ok();
    assert_eq!(fs::read(&path).unwrap(), bytes[1..], "nobody has seen it");
    // The report shows them.
    fs::remove_dir_all(project.path("reports")).unwrap();
    assert_eq!(not_fresh(&project.pipeline(&[])), "evaluate ran");
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_same(&results(project.root.path()), &before, "after the damage");
}

#[test]
fn a_deleted_output_is_written_again_without_running_a_stage() {
    let project = Project::new();
    project.pipeline(&[]);
    let model = fs::read(project.path("models/model.safetensors")).unwrap();
    fs::remove_dir_all(project.path("models")).unwrap();
    project.write("features/test_labels.npy", b"overwritten by somebody");
    let outcome = project.pipeline(&[]);
    assert_eq!(statuses(&outcome), ALL_FRESH);
    assert_eq!(fs::read(project.path("models/model.safetensors")).unwrap(), model);
    assert!(
        fs::read(project.path("features/test_labels.npy"))
            .unwrap()
            .starts_with(b"\x93NUMPY")
    );
}

#[test]
fn one_folder_is_split_by_the_pipeline() {
    let project = Project::new();
    for class in crate::CLASSES {
        for n in 0..2 {
            let name = format!("data/train/{class}/more{n}.jpg");
            project.write(&name, &photo(0, 100 + n + class.len() * 10));
        }
    }
    let ran = project
        .run(&[
            "pipeline",
            "--data-dir",
            "data/train",
            "--test-fraction",
            "0.34",
            "--json",
        ])
        .ok();
    let outcome: Value = serde_json::from_str(&ran.stdout).unwrap();
    let n = outcome["test"]["n"].as_u64().unwrap();
    assert_eq!(outcome["images"]["total"], 18);
    assert!((1..=12).contains(&n), "near a third of 18: {n}");
}

#[test]
fn the_cache_counts_verifies_and_shrinks() {
    let project = Project::new();
    project.pipeline(&[]);
    project.pipeline(&["--variance", "0.5"]);
    let json = |arguments: &[&str]| -> Value {
        serde_json::from_str(&project.run(&[&["cache"], arguments, &["--json"]].concat()).ok().stdout).unwrap()
    };
    assert_eq!(json(&["stats"])["features"], 2 * 18);
    assert_eq!(verify(&project, false)["damaged_objects"], 0);
    // The older run's projection, model, evaluation, suspects and neighbours, and the thumbnails of its report.
    assert_eq!(json(&["gc", "--keep-runs", "1", "--dry-run"])["executions"], 6);
    assert_eq!(json(&["gc", "--keep-runs", "1"])["executions"], 6);
    assert_eq!(json(&["gc", "--keep-runs", "1"])["objects"], 0);
    assert_eq!(statuses(&project.pipeline(&["--variance", "0.5"])), ALL_FRESH);
    let outcome = project.pipeline(&[]);
    assert_eq!(
        not_fresh(&outcome),
        "features ran, classify ran, evaluate ran, suspects ran, neighbours ran"
    );

    let (path, bytes) = snapshot(&project.path(".luthier/objects")).remove(0);
    fs::write(path, &bytes[1..]).unwrap();
    assert_eq!(verify(&project, true)["damaged_objects"], 1);
    assert_eq!(verify(&project, false)["damaged_objects"], 0);
}

/// Other instructions sum up in another order, so that the last bits differ.
#[test]
fn features_are_of_the_instructions_that_compute_them() {
    let project = Project::new();
    project.pipeline(&[]);
    let embedded = |limit: Option<&str>| {
        let mut command = project.command(&[&PIPELINE[..], &["--json"]].concat());
        command
            .env_remove("ONEDNN_MAX_CPU_ISA")
            .envs(limit.map(|limit| ("ONEDNN_MAX_CPU_ISA", limit)));
        let ran = Ran::of(command.output().unwrap()).ok();
        serde_json::from_str::<Value>(&ran.stdout).unwrap()["images"]["embedded"].clone()
    };
    assert_eq!([None, Some("SSE41"), Some("SSE41"), None].map(embedded), [0, 18, 0, 0]);
}

/// Decoding a large photograph takes longer than all else that a page says of it.
#[test]
fn a_report_that_is_written_again_takes_its_pictures_from_the_cache() {
    let project = Project::new();
    project.pipeline(&[]);
    let pictures = || -> Vec<Digest> {
        let page = project.read("reports/report.html");
        let styles = page
            .lines()
            .filter(|line| line.contains("{background-image:url(data:image/jpeg"));
        styles.map(|style| Digest::of(style.as_bytes())).collect()
    };
    project.run(&["evaluate"]).ok();
    let before = pictures();
    assert!(before.len() >= 6, "{}", before.len());
    project.run(&["cache", "gc", "--keep-runs", "1"]).ok();
    fs::remove_dir_all(project.path("data")).unwrap();
    fs::remove_dir_all(project.path("reports")).unwrap();
    project.run(&["evaluate"]).ok();
    assert_eq!(pictures(), before);
}
