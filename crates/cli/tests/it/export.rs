//! `luthier export`, by the programs that read what it writes; and `luthier model`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use image::codecs::jpeg::JpegEncoder;
use image::{ImageBuffer, ImageEncoder as _, Luma, Rgb, Rgba, RgbaImage};
use luthier_testing::Need;
use serde_json::Value;

#[cfg(unix)]
use crate::browser;
use crate::{Project, Ran, picture};

/// The probability of each class, by file.
pub(crate) type Answers = BTreeMap<String, BTreeMap<String, f64>>;

/// What Python makes of an exported file.
pub(crate) fn python(project: &Project, python: &Path, format: &str, file: &str, images: &[String]) -> Ran {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/exported.py");
    let mut command = Command::new(python);
    command
        .args([script, format, file])
        .args(images)
        .current_dir(project.root.path());
    Ran::of(command.output().unwrap())
}

/// What a line of JSON for each image says.
pub(crate) fn answers(lines: &str) -> Answers {
    let line = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        let file = value["file"].as_str().unwrap().to_owned();
        let probabilities = match &value["probabilities"] {
            Value::Object(found) => found
                .iter()
                .map(|(class, p)| (class.clone(), p.as_f64().unwrap()))
                .collect(),
            _ => (value["predictions"].as_array().unwrap().iter())
                .map(|found| {
                    (
                        found["class"].as_str().unwrap().to_owned(),
                        found["probability"].as_f64().unwrap(),
                    )
                })
                .collect(),
        };
        (file, probabilities)
    };
    lines.lines().map(line).collect()
}

/// What `predict` says of these images.
pub(crate) fn predicted(project: &Project, more: &[&str], images: &[String]) -> Answers {
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let ran = project.run(&[&["predict", "--format", "json", "--top-k", "1000"], more, &images[..]].concat());
    answers(&ran.ok().stdout)
}

/// For each image the largest difference of a probability, and whether the best class is the same.
pub(crate) fn differences(found: &Answers, expected: &Answers) -> Vec<(f64, bool)> {
    assert_eq!(found.len(), expected.len());
    let best = |of: &BTreeMap<String, f64>| of.iter().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0.clone();
    let difference = |(file, found): (&String, &BTreeMap<String, f64>)| {
        let expected = &expected[file];
        assert_eq!(found.len(), expected.len());
        let largest = found
            .iter()
            .map(|(class, p)| (p - expected[class]).abs())
            .fold(0.0, f64::max);
        (largest, best(found) == best(expected))
    };
    found.iter().map(difference).collect()
}

/// Images of which a program must know more than their pixels: one with transparency, one of 16 bits, and one that the camera
/// held on its side.
fn odd_images(project: &Project) -> [String; 3] {
    let picture = picture(60, 40, 2, 5);
    let transparent = RgbaImage::from_fn(60, 40, |x, y| {
        let Rgb([red, green, blue]) = *picture.get_pixel(x, y);
        Rgba([red, green, blue, if x < 30 { 0 } else { (4 * x) as u8 }])
    });
    let deep = ImageBuffer::<Luma<u16>, Vec<u16>>::from_fn(60, 40, |x, y| Luma([(x * y * 27) as u16]));
    fs::create_dir_all(project.path("odd")).unwrap();
    transparent.save(project.path("odd/transparent.png")).unwrap();
    deep.save(project.path("odd/deep.png")).unwrap();
    let mut jpeg = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, 90);
    // EXIF with one tag: the orientation is 6.
    let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    encoder.set_exif_metadata(exif.to_vec()).unwrap();
    encoder.encode_image(&picture).unwrap();
    project.write("odd/turned.jpg", &jpeg);
    ["odd/transparent.png", "odd/deep.png", "odd/turned.jpg"].map(str::to_owned)
}

fn images() -> Vec<String> {
    let image = |class: &str, n: usize| format!("data/test/{class}/{n}.jpg");
    ["drum", "flute", "harp"]
        .into_iter()
        .flat_map(|class| [4, 5].map(|n| image(class, n)))
        .collect()
}

#[test]
fn onnx_runtime_answers_as_predict_does_whatever_the_views() {
    let Some(interpreter) = Need::Python.path() else { return };
    let project = Project::new().at_full_size();
    let images: Vec<String> = images().into_iter().chain(odd_images(&project)).collect();
    for settings in [
        &["--views", "crop", "--pooling", "gem"][..],
        &["--views", "pad,squash@96,mirror", "--combine", "concat"],
        &["--views", "crop-mirror,pad-mirror"],
    ] {
        project.pipeline(settings);
        let expected = predicted(&project, &[], &images);
        for format in ["onnx", "onnx-pixels"] {
            let ran = project
                .run(&["export", "--format", format, "--output", "model.onnx", "--json"])
                .ok();
            let outcome: Value = serde_json::from_str(&ran.stdout).unwrap();
            assert!(outcome["largest_difference"].as_f64().unwrap() <= 1e-4, "{outcome}");
            let found = answers(
                &python(&project, &interpreter, format, "model.onnx", &images)
                    .ok()
                    .stdout,
            );
            for (difference, is_same) in differences(&found, &expected) {
                assert!(difference <= 1e-3 && is_same, "{settings:?}, {format}: {difference}");
            }
        }
    }
}

/// Serves a folder over HTTP until it is dropped.
struct StaticServer(std::process::Child);

impl StaticServer {
    fn start(python: &Path, folder: &Path) -> (Self, String) {
        let mut command = Command::new(python);
        command
            .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"])
            .arg(folder);
        let mut server = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        // Serving HTTP on 127.0.0.1 port 43210 (http://127.0.0.1:43210/) ...
        let address = line.split(['(', ')']).nth(1).unwrap().to_owned();
        (StaticServer(server), address)
    }
}

impl Drop for StaticServer {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn the_example_page_answers_in_a_browser_as_predict_does() {
    let (Some(python), Some(package)) = (Need::Python.path(), Need::OnnxRuntimeWeb.path()) else {
        return;
    };
    let project = Project::new();
    project.pipeline(&[]);
    fs::create_dir_all(project.path("page/node_modules")).unwrap();
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/browser/index.html");
    fs::copy(page, project.path("page/index.html")).unwrap();
    std::os::unix::fs::symlink(package, project.path("page/node_modules/onnxruntime-web")).unwrap();
    project
        .run(&["export", "--format", "onnx", "--output", "page/model.onnx"])
        .ok();
    let card = project.run(&["model", "show", "--json"]).ok().stdout;
    project.write("page/model.json", card.as_bytes());
    let (_server, address) = StaticServer::start(&python, &project.path("page"));
    for file in ["data/test/harp/5.jpg", odd_images(&project)[0].as_str()] {
        let Some(found) = browser::answer_of_example(&address, &project.path(file)) else {
            return;
        };
        let expected = predicted(&project, &[], &[file.to_owned()])
            .into_values()
            .next()
            .unwrap();
        let (class, percent) = found.strip_suffix(" %").unwrap().split_once(", ").unwrap();
        let best = expected.iter().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
        assert_eq!(class, best.0);
        // Chromium may decode a JPEG a little otherwise.
        let difference = (percent.parse::<f64>().unwrap() / 100.0 - best.1).abs();
        assert!(difference < 0.01, "{file}: {found}, expected {best:?}");
    }
}

#[test]
fn what_torchvision_cannot_hold_is_said_and_nothing_written() {
    let project = Project::new();
    project.pipeline(&[]);
    let ran = project.run(&["export", "--format", "torchvision"]).ok();
    assert!(ran.stdout.contains("models/resnet50.safetensors"), "{}", ran.stdout);
    assert!(ran.stdout.contains("answers as predict does"), "{}", ran.stdout);
    project.pipeline(&["--pooling", "gem"]);
    let ran = project.run(&["export", "--format", "torchvision", "--output", "other.safetensors"]);
    assert_eq!(
        ran.error(),
        (
            1,
            "error: models/model.safetensors: gem pooling, which torchvision's resnet50 cannot hold\nhint: use --format onnx, \
             or train with one view and --pooling mean"
        )
    );
    assert!(!project.path("other.safetensors").exists());
    let model = fs::read(project.path("models/model.safetensors")).unwrap();
    let ran = project.run(&[
        "export",
        "--format",
        "onnx",
        "--output",
        "models/../models/model.safetensors",
    ]);
    let (status, message) = ran.error();
    assert!(status == 1 && message.contains("is what is exported"), "{message}");
    assert_eq!(fs::read(project.path("models/model.safetensors")).unwrap(), model);
    let ran = project.run(&["export", "--format", "onnx", "--output", "nowhere/model.onnx"]);
    assert_eq!(ran.status, 1);
    assert!(ran.error().1.contains("nowhere/model.onnx"), "{}", ran.stderr);
}

#[test]
fn a_model_finds_its_weights_where_they_were_and_beside_it_and_takes_them_along() {
    let project = Project::new();
    project.pipeline(&[]);
    // A file of weights that no name is known for.
    fs::create_dir(project.path("elsewhere")).unwrap();
    let made = [
        "export",
        "--format",
        "torchvision",
        "--output",
        "elsewhere/net.safetensors",
    ];
    project.run(&made).ok();
    let weights = ["--weights", "elsewhere/net.safetensors"];
    project.pipeline(&weights);
    // Without a cache the network must be loaded.
    fs::remove_dir_all(project.path(".luthier")).unwrap();
    let predict = |more: &[&str], home: &str| {
        let images = ["data/test/harp/4.jpg", "data/test/drum/5.jpg", "--format", "json"];
        let arguments = [&["predict"], more, &images[..]].concat();
        let mut command = project.command(&arguments);
        command.env_remove("LUTHIER_WEIGHTS").env("HOME", project.path(home));
        Ran::of(command.output().unwrap())
    };
    let expected = predict(&weights, "home").ok().stdout;
    assert_eq!(predict(&[], "home").ok().stdout, expected, "where they were");
    let ran = predict(&[], "other-home");
    let (status, error) = ran.error();
    let start = "error: models/model.safetensors: trained with weights net (";
    let end = "…), whose file was not found\nhint: put their file beside the model, or pass it with --weights FILE";
    assert!(
        status == 1 && error.starts_with(start) && error.ends_with(end),
        "{error}"
    );
    let bundle = ["export", "--format", "bundle", "--output", "bundle"];
    let ran = Ran::of(project.command(&bundle).env_remove("LUTHIER_WEIGHTS").output().unwrap()).ok();
    assert!(ran.stdout.contains("by more than 0.0e0 on"), "{}", ran.stdout);
    let of_bundle = ["--model-path", "bundle/model.safetensors"];
    assert_eq!(predict(&of_bundle, "other-home").ok().stdout, expected, "beside it");
    let ran = Ran::of(project.command(&bundle).env_remove("LUTHIER_WEIGHTS").output().unwrap());
    assert_eq!(
        ran.error(),
        (
            1,
            "error: bundle: is there already, expected a folder that is new\nhint: remove it, or name another with --output"
        )
    );
    // Where the weights were is another file now: not theirs.
    fs::rename(
        project.path("bundle/weights.safetensors"),
        project.path("models/any.safetensors"),
    )
    .unwrap();
    project.write("elsewhere/net.safetensors", b"others");
    assert_eq!(predict(&[], "home").ok().stdout, expected, "beside it, by its bytes");
    assert_eq!(predict(&of_bundle, "home").status, 1);
}

#[test]
fn a_model_shows_what_it_is() {
    let project = Project::new().at_full_size();
    project.pipeline(&["--views", "pad", "--pooling", "gem"]);
    let text = project.run(&["model", "show"]).ok().stdout;
    for part in [
        "classes     3: drum, flute, harp",
        "trained on  12 images",
        "that were held out",
        "images      pad, gem pooling, large JPEGs decoded scaled",
        "network     untrained",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let card: Value = serde_json::from_str(&project.run(&["model", "show", "--json"]).ok().stdout).unwrap();
    assert_eq!(card["classes"].as_array().unwrap().len(), 3);
    assert_eq!(card["extractor"]["pooling"], "gem");
}
