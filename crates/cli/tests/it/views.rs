//! Views of several sizes, and the choice among views.

use std::fs;

use serde_json::{Value, json};

use crate::{PIPELINE, Project, photo, results, without_times};

/// What `predict` says of an image. Without the cache the network sees it.
fn predictions(project: &Project, cache: &str) -> String {
    let image = "data/test/harp/5.jpg";
    let arguments = ["predict", image, "--format", "json", "--cache-dir", cache];
    project.run(&arguments).ok().stdout
}

#[test]
fn views_of_two_sizes_side_by_side_are_seen_by_the_pipeline_and_by_predict_alike() {
    let project = Project::new().at_full_size();
    let settings = ["--views", "pad,squash@96", "--pooling", "gem", "--combine", "concat"];
    let outcome = project.pipeline(&settings);
    assert_eq!(outcome["images"]["embedded"], 18);
    let features: Value = serde_json::from_str(&project.read("features/features.json")).unwrap();
    assert_eq!(features["extractor"]["views"], json!(["pad", "squash@96"]));
    assert_eq!(features["extractor"]["pooling"], "gem");
    assert_eq!(predictions(&project, ".luthier"), predictions(&project, "empty cache"));
    // The size of a view is its own, and --size that of the others.
    let same = project.pipeline(&[&settings[2..], &["--views", "pad@224,squash", "--size", "96"]].concat());
    assert!(
        same["stages"]
            .as_array()
            .unwrap()
            .iter()
            .all(|stage| stage["status"] == "fresh")
    );
}

#[test]
fn auto_judges_candidates_once_and_takes_the_best_everywhere() {
    let project = Project::new().at_full_size();
    let auto = ["--views", "auto,squash,pad"];
    let stage = |outcome: &Value, name: &str| {
        let stages = outcome["stages"].as_array().unwrap().iter();
        let status = |stage: &Value| stage["status"].as_str().unwrap().to_owned();
        stages.clone().find(|stage| stage["name"] == name).map(status)
    };

    let plan = project.run(&[&PIPELINE[..], &auto, &["--dry-run"]].concat());
    assert_eq!(plan.status, 3);
    assert!(plan.stdout.contains("waits for views"), "{}", plan.stdout);
    assert!(
        plan.stdout.contains("12 images to embed to choose the views"),
        "{}",
        plan.stdout
    );

    let outcome = project.pipeline(&auto);
    let judged = &outcome["views"];
    assert_eq!(judged["n_images"], 12, "the training images");
    let candidates = judged["candidates"].as_array().unwrap();
    let losses: Vec<f64> = candidates
        .iter()
        .map(|found| found["log_loss"].as_f64().unwrap())
        .collect();
    assert_eq!(losses.len(), 4);
    let best = &candidates[judged["best"].as_u64().unwrap() as usize];
    assert!(
        losses.iter().all(|loss| best["log_loss"].as_f64().unwrap() <= *loss),
        "{judged}"
    );
    let names: Vec<&str> = candidates.iter().map(|found| found["view"].as_str().unwrap()).collect();
    assert_eq!(names, ["squash", "squash", "pad", "pad"]);
    // The choice embedded the training images, and `extract` the others.
    assert_eq!(outcome["images"]["embedded"], 18);
    assert_eq!(outcome["images"]["reused"], 0);
    let report = project.read("reports/report.html");
    assert!(report.contains("by cross-validation on 12 training images: "));

    // Naming what was chosen gives the same model.
    let (view, pooling) = (best["view"].as_str().unwrap(), best["pooling"].as_str().unwrap());
    let named = project.pipeline(&["--views", view, "--pooling", pooling, "--out", "named"]);
    assert_eq!(named["views"], Value::Null);
    assert_eq!(named["images"]["embedded"], 0);
    let models = |out: &str| results(&project.path(out).join("models"));
    assert_eq!(models("named"), models("."));

    // Nothing changed, and something that has no say in it.
    let again = project.pipeline(&auto);
    assert_eq!(stage(&again, "views").unwrap(), "fresh");
    assert_eq!(again["views"], *judged);
    let other = project.pipeline(&[&auto[..], &["--confidence", "0.9"]].concat());
    assert_eq!(stage(&other, "views").unwrap(), "fresh");
    let renamed = project.path("data/train/drum/renamed.jpg");
    fs::rename(project.path("data/train/drum/0.jpg"), renamed).unwrap();
    let renamed = project.pipeline(&auto);
    assert_eq!(stage(&renamed, "views").unwrap(), "fresh");
    assert_eq!(renamed["images"]["reused"], 18);

    // One more photograph, seen in both views.
    project.write("data/train/harp/new.jpg", &photo(2, 77));
    let plan = project.run(&[&PIPELINE[..], &auto, &["--dry-run"]].concat());
    assert!(
        plan.stdout.contains("1 image to embed to choose the views"),
        "{}",
        plan.stdout
    );
    assert!(
        plan.stdout.contains("sample of training images changed"),
        "{}",
        plan.stdout
    );
    let grown = project.pipeline(&auto);
    assert_eq!(stage(&grown, "views").unwrap(), "ran");
    assert_eq!(grown["views"]["n_images"], 13);
    assert_eq!(grown["images"]["embedded"], 1);
    assert_eq!(grown["images"]["reused"], 18);
    // As from scratch.
    project.pipeline(&[&auto[..], &["--cache-dir", "fresh", "--out", "fresh"]].concat());
    assert_eq!(models("fresh"), models("."));
    let page = |out: &str| without_times(project.read(&format!("{out}/reports/report.html")).as_bytes());
    assert!(page("fresh") == page("."));
}

#[test]
fn a_class_that_cannot_be_held_out_is_told_of_once_whatever_the_candidates() {
    let project = Project::new();
    project.write("data/train/lute/0.jpg", &photo(1, 9));
    let ran = project
        .run(&[&PIPELINE[..], &["--views", "auto,squash,pad"]].concat())
        .ok();
    let warning = "warning: class lute has one training image, which cross-validation cannot hold out";
    assert_eq!(ran.stderr.matches(warning).count(), 1, "{}", ran.stderr);
}

#[test]
fn a_stage_that_is_not_there_and_a_choice_without_training_are_explained() {
    let project = Project::new();
    let explain = |more: &[&str]| project.run(&[&["explain", "views"], &PIPELINE[1..], more].concat());
    assert_eq!(
        explain(&[]).error(),
        (
            2,
            "error: no stage views here: the settings leave no choice\nhint: --views auto chooses among views"
        )
    );
    let ran = explain(&["--views", "auto"]).ok();
    assert!(ran.stdout.contains("candidates"), "{}", ran.stdout);
    let extract = project.run(&[&["extract"], &PIPELINE[1..], &["--views", "auto"]].concat());
    assert_eq!(
        extract.error(),
        (
            2,
            "error: --views auto without training\nhint: `luthier pipeline --views auto` says which view is best: \
             name it, with --views and --pooling"
        )
    );
}
