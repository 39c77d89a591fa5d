//! `luthier predict`.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::{Project, Ran};

fn trained() -> Project {
    let project = Project::new();
    project.pipeline(&[]);
    project
}

#[test]
fn images_folders_and_lists_are_predicted_in_order() {
    let project = trained();
    let images = ["data/test/harp/5.jpg", "data/test/drum/4.jpg", "data/test/flute/4.jpg"];
    let files = |ran: Ran| -> Vec<String> {
        let file = |line: &str| {
            serde_json::from_str::<Value>(line).unwrap()["file"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        ran.stdout.lines().map(file).collect()
    };
    let arguments = [&["predict", "--format", "json", "--image-path"], &images[..]].concat();
    assert_eq!(files(project.run(&arguments).ok()), images);

    let ran = project
        .run(&["predict", "--format", "json", "--image-path", "data/test/drum"])
        .ok();
    assert_eq!(files(ran), ["data/test/drum/4.jpg", "data/test/drum/5.jpg"]);

    let mut child = project
        .command(&["predict", "--format", "json", "--image-path", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(images.join("\n").as_bytes())
        .unwrap();
    assert_eq!(files(Ran::of(child.wait_with_output().unwrap()).ok()), images);
}

#[test]
fn every_format_says_the_same() {
    let project = trained();
    let run = |format: &str| {
        project
            .run(&[
                "predict",
                "--top-k",
                "2",
                "--format",
                format,
                "--image-path",
                "data/test/drum/4.jpg",
            ])
            .ok()
            .stdout
    };
    let json: Value = serde_json::from_str(&run("json")).unwrap();
    let best = &json["predictions"][0];
    let (class, probability) = (best["class"].as_str().unwrap(), best["probability"].as_f64().unwrap());
    assert!((0.0..=1.0).contains(&probability));
    assert_eq!(json["predictions"].as_array().unwrap().len(), 2);
    assert!(run("table").starts_with(&format!("data/test/drum/4.jpg  {class} {:.1} %  ", 100.0 * probability)));
    let csv = run("csv");
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("file,answer,rank,class,probability,distance,error"));
    assert_eq!(
        lines.next(),
        Some(format!("data/test/drum/4.jpg,{class},1,{class},{probability},,").as_str())
    );
    assert_eq!(lines.count(), 1);
}

#[test]
fn what_is_not_sure_enough_is_unknown() {
    let project = trained();
    // So small a C is never sure of anything.
    project.pipeline(&["--c", "0.001"]);
    let predict = |more: &[&str]| {
        let image = ["predict", "--image-path", "data/test/drum/4.jpg"];
        project.run(&[&image[..], more].concat())
    };
    let json = |more: &[&str]| -> Value {
        serde_json::from_str(&predict(&[more, &["--format", "json"]].concat()).ok().stdout).unwrap()
    };
    let known = json(&["--min-confidence", "0"]);
    assert_eq!(known["answer"], known["predictions"][0]["class"]);
    let unknown = json(&["--min-confidence", "1"]);
    assert_eq!(unknown["answer"], "unknown");
    assert_eq!(
        unknown["predictions"], known["predictions"],
        "what it might be is told all the same"
    );
    let table = predict(&["--min-confidence", "1"]).ok().stdout;
    assert!(table.starts_with("data/test/drum/4.jpg  unknown ("), "{table}");
    assert_eq!(predict(&["--min-confidence", "1.5"]).error().0, 2);
}

#[test]
fn thresholds_of_the_model_tell_unknown_images() {
    let project = trained();
    let predict = |image: &str, percent: &str| {
        project.run(&[
            "predict",
            "--image-path",
            image,
            "--keep-known",
            percent,
            "--format",
            "json",
        ])
    };
    let answer = |image: &str| -> Value { serde_json::from_str(&predict(image, "99").ok().stdout).unwrap() };
    let distance = |answer: &Value| answer["distance"].as_f64().unwrap();
    let known = answer("data/train/drum/0.jpg");
    assert_eq!(known["answer"], "drum");
    // Stripes are like nothing in training.
    let stripes = image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([((x / 2 + y) % 2 * 255) as u8, 0, 255]));
    stripes.save(project.path("stripes.png")).unwrap();
    let strange = answer("stripes.png");
    assert_eq!(strange["answer"], "unknown", "{strange}");
    assert!(distance(&strange) > distance(&known));

    let ran = predict("stripes.png", "80");
    let (status, error) = ran.error();
    assert_eq!(status, 2);
    assert!(
        error.contains("--keep-known is 80, expected one of 90, 95, 99"),
        "{error}"
    );
    project.pipeline(&["--c", "1"]);
    let ran = predict("stripes.png", "95");
    let (status, error) = ran.error();
    assert_eq!(status, 1);
    assert!(
        error.contains("trained with a given C") && error.contains("train again with --c auto"),
        "{error}"
    );
}

#[test]
fn a_bad_image_is_reported_and_the_others_are_predicted() {
    let project = trained();
    project.write("bad.jpg", b"text");
    let ran = project.run(&[
        "predict",
        "--image-path",
        "bad.jpg",
        "data/test/drum/4.jpg",
        "missing.jpg",
    ]);
    assert_eq!(ran.status, 1);
    assert!(
        ran.stdout.starts_with("data/test/drum/4.jpg  ") && ran.stdout.lines().count() == 1,
        "{}",
        ran.stdout
    );
    assert!(ran.stderr.contains("error: bad.jpg: not an image"), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("error: missing.jpg: No such file"),
        "{}",
        ran.stderr
    );
}

#[test]
fn other_weights_than_the_models_are_refused() {
    let project = trained();
    project.write("other.safetensors", b"weights of another network");
    let ran = project.run(&[
        "predict",
        "--weights",
        "other.safetensors",
        "--image-path",
        "data/test/drum/4.jpg",
    ]);
    let (status, error) = ran.error();
    assert_eq!(status, 1);
    assert!(
        error.starts_with("error: models/model.safetensors: trained with weights "),
        "{error}"
    );
    assert!(
        error.ends_with("…\nhint: pass --weights untrained, or train again"),
        "{error}"
    );
}

#[test]
fn what_is_no_model_is_named() {
    let project = trained();
    for (bytes, part) in [
        (&b"text"[..], "expected model/3"),
        (
            &std::fs::read(project.path("models/model.safetensors")).unwrap()[..5000],
            "model/3",
        ),
    ] {
        project.write("model.safetensors", bytes);
        let ran = project.run(&[
            "predict",
            "--model-path",
            "model.safetensors",
            "--image-path",
            "data/test/drum/4.jpg",
        ]);
        let (status, error) = ran.error();
        assert_eq!(status, 1);
        assert!(
            error.starts_with("error: model.safetensors: ") && error.contains(part),
            "{error}"
        );
    }
}

/// Needs a Python with numpy and safetensors in `LUTHIER_TEST_PYTHON`; says so where it is skipped.
#[test]
fn fifteen_lines_of_numpy_give_the_same_probabilities() {
    let Some(python) = std::env::var_os("LUTHIER_TEST_PYTHON") else {
        eprintln!("SKIPPED: LUTHIER_TEST_PYTHON is not set");
        return;
    };
    let project = trained();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/predict.py");
    let numpy = std::process::Command::new(python)
        .args([script, "features", "models/model.safetensors"])
        .current_dir(project.root.path())
        .output()
        .unwrap();
    let numpy = Ran::of(numpy).ok().stdout;
    let ran = project
        .run(&[
            "predict",
            "--format",
            "json",
            "--top-k",
            "3",
            "--image-path",
            "data/test",
        ])
        .ok();
    let mut compared = 0;
    for line in ran.stdout.lines() {
        let ours: Value = serde_json::from_str(line).unwrap();
        let file = ours["file"].as_str().unwrap().strip_prefix("data/test/").unwrap();
        let theirs = numpy.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let theirs = theirs.into_iter().find(|row| row["file"] == file).unwrap();
        for best in ours["predictions"].as_array().unwrap() {
            let expected = theirs["probabilities"][best["class"].as_str().unwrap()]
                .as_f64()
                .unwrap();
            let found = best["probability"].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-5, "{file}: {found}, {expected}");
            compared += 1;
        }
    }
    assert_eq!(compared, 18);
}

#[test]
fn a_model_is_used_with_the_views_it_was_trained_on() {
    let project = Project::new();
    project.pipeline(&[]);
    let report = project.pipeline(&["--views", "squash,crop-mirror", "--combine", "concat"]);
    // Squashed features are known, and the other view is seen alone.
    assert_eq!(report["images"]["embedded"], 18);
    let header = project.run(&[
        "explain",
        "extract",
        "--train-dir",
        "data/train",
        "--test-dir",
        "data/test",
    ]);
    assert!(header.stdout.contains("squash, crop-mirror"), "{}", header.stdout);

    let image = ["predict", "--format", "json", "--image-path", "data/test/harp/5.jpg"];
    let of_both: Value = serde_json::from_str(&project.run(&image).ok().stdout).unwrap();
    project.pipeline(&["--views", "squash,crop-mirror"]);
    let of_mean: Value = serde_json::from_str(&project.run(&image).ok().stdout).unwrap();
    assert_ne!(of_both["predictions"], of_mean["predictions"]);
}
