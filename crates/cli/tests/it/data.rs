//! Photographs as people have them: without classes, without a test set, with any name and of any size.

use std::fs::{self, File};

use image::codecs::jpeg::JpegEncoder;
use luthier_artifact::file_names;
use serde_json::Value;

use crate::{CLASSES, FOLDERS, Project, photo};

fn json(text: &str) -> Value {
    serde_json::from_str(&file_names::from_json(text)).unwrap()
}

/// The floating-point numbers of an .npy file, row by row.
fn rows(project: &Project, file: &str, width: usize) -> Vec<Vec<u8>> {
    let bytes = fs::read(project.path(file)).unwrap();
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[header..].chunks(4 * width).map(<[u8]>::to_vec).collect()
}

#[test]
fn images_without_classes_become_features() {
    let project = Project::new();
    project.write("heap/a.jpg", &photo(0, 0));
    project.write("heap/2024/b.jpg", &photo(1, 4));
    project.write("heap/2024/trip/broken.jpg", b"no image");
    project.write("nested/x/a.jpg", &photo(0, 0));
    project.write("nested/y/b.jpg", &photo(1, 4));

    let ran = project.run(&["extract", "heap"]).ok();
    assert!(ran.stderr.contains("3 images without classes"), "{}", ran.stderr);
    assert!(ran.stderr.contains("skipped 2024/trip/broken.jpg: "), "{}", ran.stderr);
    let found = json(&project.read("features/features.json"));
    let mut files: Vec<&str> = (found["rows"].as_array().unwrap().iter())
        .map(|row| row["file"].as_str().unwrap())
        .collect();
    let features = rows(&project, "features/features.npy", 2048);
    assert_eq!(
        (features.len(), rows(&project, "features/hashes.npy", 192).len()),
        (2, 2)
    );
    assert_eq!(found["skipped"][0]["file"], "2024/trip/broken.jpg");
    assert_eq!(
        found["folder"],
        project.path("heap").canonicalize().unwrap().to_str().unwrap()
    );

    // The features are those of the same images with classes.
    project
        .run(&[&["extract", "--output-dir", "of-both"][..], &FOLDERS].concat())
        .ok();
    let of_both = json(&project.read("of-both/features.json"));
    let place = (of_both["rows"]["train"].as_array().unwrap().iter())
        .position(|row| row["file"] == "drum/0.jpg")
        .unwrap();
    let own = files.iter().position(|&file| file == "a.jpg").unwrap();
    assert_eq!(features[own], rows(&project, "of-both/train_features.npy", 2048)[place]);

    // A folder of folders has classes unless it is said to have none.
    let ran = project.run(&["extract", "nested", "--unlabelled"]).ok();
    assert!(ran.stderr.contains("0 embedded, 2 reused"), "{}", ran.stderr);
    let nested = json(&project.read("features/features.json"));
    assert_eq!(nested["rows"].as_array().unwrap().len(), 2);
    files.sort_unstable();
    assert_eq!(files, ["2024/b.jpg", "a.jpg"]);

    // A list of files.
    project.write("list.txt", b"heap/a.jpg\nnested/y/b.jpg\n");
    let ran = project.run(&["extract", "--files", "list.txt", "--unlabelled"]).ok();
    assert!(ran.stderr.contains("2 images without classes"), "{}", ran.stderr);

    // What a file of settings says of classes does not count.
    project.write("luthier.toml", b"[data]\nclass-from = '(?<class>a)'\n");
    let ran = project.run(&["extract", "heap", "--unlabelled"]).ok();
    assert!(ran.stderr.contains("3 images without classes"), "{}", ran.stderr);
    fs::remove_file(project.path("luthier.toml")).unwrap();
    let ran = project.run(&["extract", "--unlabelled", "--train-dir", "a", "--test-dir", "b"]);
    assert_eq!(ran.status, 2, "{}", ran.stderr);

    // None of them can be read.
    project.write("broken/1.jpg", b"no image");
    let ran = project.run(&["extract", "broken"]);
    let (status, error) = ran.error();
    assert_eq!(status, 1);
    assert!(
        error.starts_with("error: broken: none of the 1 images can be read; the first, 1.jpg: not an image"),
        "{error}"
    );

    let ran = project.run(&["train"]);
    let (status, error) = ran.error();
    assert_eq!(status, 1);
    assert_eq!(
        error,
        "error: features/features.json: features of images without classes, expected some with classes\n\
         hint: name the classes when you extract: one folder per class, --labels or --class-from"
    );
}

#[test]
fn without_a_test_set_cross_validation_gives_the_figures() {
    let project = Project::empty();
    for (class, name) in CLASSES.iter().enumerate() {
        for n in 0..6 {
            project.write(&format!("photos/{name}/{n}.jpg"), &photo(class, n));
        }
    }
    let pipeline =
        |arguments: &[&str]| project.run(&[&["pipeline", "photos", "--test-fraction", "0"], arguments].concat());
    let summary = json(&pipeline(&["--json"]).ok().stdout);
    assert_eq!(summary["test"], Value::Null);
    assert_eq!(summary["held_out"]["n"], 18);
    let report = json(&project.read("reports/report.json"));
    assert_eq!((&report["split"], &report["n"]), (&"train".into(), &18.into()));
    assert_eq!(report["held_out"], Value::Null);
    assert_eq!(report["accuracy"]["value"], summary["held_out"]["accuracy"]);
    for prediction in report["predictions"].as_array().unwrap() {
        let file = prediction["file"].as_str().unwrap();
        assert!(file.starts_with(prediction["true_class"].as_str().unwrap()), "{file}");
        let probabilities = prediction["probabilities"].as_array().unwrap().iter();
        let sum: f64 = probabilities.map(|probability| probability.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        let nearest = prediction["nearest_training_images"].as_array();
        let mut names = nearest.into_iter().flatten().map(|near| near["file"].as_str().unwrap());
        assert!(names.all(|near| near != file), "{file} is near itself");
    }
    let page = project.read("reports/report.html");
    assert!(page.contains("accuracy on 18 held-out images") && page.contains("There is no test set."));
    assert!(!page.contains("Classes without test images"));

    // Step by step it is the same, and the next run does nothing.
    let pages = project.read("reports/classification_report.txt");
    project.run(&["evaluate", "--report-dir", "again"]).ok();
    assert_eq!(project.read("again/classification_report.txt"), pages);
    let ran = pipeline(&[]).ok();
    assert_eq!(ran.stderr.matches(" fresh ").count(), 9, "{}", ran.stderr);
    assert!(ran.stdout.contains("on 18 held-out training images"), "{}", ran.stdout);

    let ran = pipeline(&["--c", "1"]);
    assert_eq!(
        ran.error(),
        (
            1,
            "error: nothing to evaluate the model by: there are no test images, and with a given C none are held out\n\
             hint: leave --c out, so that cross-validation holds images out; or keep some for the test"
        )
    );
}

#[test]
fn beside_a_test_set_the_report_shows_the_figures_of_cross_validation() {
    let project = Project::new();
    let summary = project.pipeline(&[]);
    assert_eq!(
        (&summary["test"]["n"], &summary["held_out"]["n"]),
        (&6.into(), &12.into())
    );
    let report = json(&project.read("reports/report.json"));
    assert_eq!(report["held_out"]["accuracy"]["value"], summary["held_out"]["accuracy"]);
    let card = json(&project.run(&["model", "show", "--json"]).ok().stdout);
    assert_eq!(card["held_out"]["accuracy"], summary["held_out"]["accuracy"]);
    let page = project.read("reports/report.html");
    assert!(page.contains("Accuracy, 12 held-out training images"));
    assert_eq!(project.pipeline(&["--c", "1"])["held_out"], Value::Null);
}

#[test]
fn an_image_beyond_a_limit_is_skipped_until_the_limit_is_lifted() {
    let project = Project::new();
    let embedded = |arguments: &[&str]| project.pipeline(arguments)["images"]["embedded"].as_u64().unwrap();
    let mut large = Vec::new();
    JpegEncoder::new(&mut large)
        .encode_image(&crate::picture(90, 40, 0, 9))
        .unwrap();
    project.write("data/train/drum/large.jpg", &large);
    for (limit, reason) in [
        (["--max-pixels", "3000"], "too large: 90 × 40 pixels, more than 3000"),
        (
            ["--max-image-memory", "10KB"],
            "too large: 90 × 40 pixels take more than 10000 bytes",
        ),
    ] {
        project.pipeline(&limit);
        let skipped = project.read("reports/skipped.csv");
        assert!(skipped.contains(reason), "{skipped}");
    }
    assert_eq!(embedded(&[]), 1);
    assert!(!project.read("reports/skipped.csv").contains("large"));

    let ran = project.run(&[
        "predict",
        "data/train/drum/large.jpg",
        "--max-file-size",
        "100B",
        "--json",
    ]);
    assert_eq!(ran.status, 1);
    assert!(
        ran.stdout.contains("too large: the file has more than 100 bytes"),
        "{}",
        ran.stdout
    );
}

#[test]
fn what_is_left_out_is_counted() {
    let project = Project::new();
    project.write("data/train/drum/thumbs/0.jpg", &photo(0, 20));
    project.write("data/train/drum/old.gif", b"GIF89a");
    let arguments = [&crate::PIPELINE[..], &["--exclude", "*.gif,thumbs/"]].concat();
    let ran = project.run(&arguments).ok();
    assert!(ran.stderr.contains("12 train, 6 test; 2 excluded"), "{}", ran.stderr);
    project.write("luthier.toml", b"[data]\nexclude = [\"*.gif\", \"thumbs/\"]\n");
    let ran = project.run(&crate::PIPELINE).ok();
    assert!(ran.stderr.contains("2 excluded"), "{}", ran.stderr);
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_are_not_utf8_come_back_unchanged() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let project = Project::new();
    let name = |bytes: &'static [u8]| project.path("data/train/drum").join(OsStr::from_bytes(bytes));
    fs::write(name(b"caf\xE9.jpg"), photo(0, 30)).unwrap();
    fs::write(name(b"br\xF6ken.jpg"), "no image").unwrap();
    let ran = project.run(&crate::PIPELINE).ok();
    assert!(ran.stderr.contains("drum/br\u{FFFD}ken.jpg: "), "{}", ran.stderr);
    let features = project.read("features/features.json");
    assert!(features.contains(r#""drum/caf\udce9.jpg""#) && features.contains(r#""drum/br\udcf6ken.jpg""#));
    let skipped = fs::read(project.path("reports/skipped.csv")).unwrap();
    assert!(
        skipped
            .windows(14)
            .any(|bytes| bytes == b"drum/br\xF6ken.jpg".get(..14).unwrap())
    );

    // What was written is read again, and names the file.
    project.run(&["train"]).ok();
    project.run(&["evaluate"]).ok();

    // What is remembered of a file, once it is at rest, is not taken for that of a file that is gone. Nor is that of a file
    // that a list names by its whole path.
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let age = |path: &std::path::Path| {
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_modified(hour_ago)
            .unwrap()
    };
    age(&name(b"caf\xE9.jpg"));
    age(&project.path("data/train/harp/0.jpg"));
    project.run(&crate::PIPELINE).ok();
    let path = project.path("data/train/harp/0.jpg");
    project.write("lists/list.txt", path.to_str().unwrap().as_bytes());
    project
        .run(&["extract", "--unlabelled", "--files", "lists/list.txt"])
        .ok();
    let ran = project.run(&["cache", "prune-images", "--dry-run"]).ok();
    assert!(ran.stdout.contains("0 files no longer there"), "{}", ran.stdout);
    fs::remove_file(&path).unwrap();
    let ran = project.run(&["cache", "prune-images", "--dry-run"]).ok();
    assert!(ran.stdout.contains("1 file no longer there"), "{}", ran.stdout);

    let predict = |format: &str| {
        let mut command = project.command(&["predict", "--format", format]);
        command.arg(name(b"caf\xE9.jpg"));
        command.output().unwrap().stdout
    };
    let line = String::from_utf8(predict("json")).unwrap();
    assert!(line.contains(r#"data/train/drum/caf\udce9.jpg""#), "{line}");
    assert!(predict("csv").windows(8).any(|bytes| bytes == b"caf\xE9.jpg"));
    assert!(String::from_utf8(predict("table")).unwrap().contains("caf\u{FFFD}.jpg"));

    // In the name of a folder, too: of a class, of the data, of the results.
    let moved = project.path("").join(OsStr::from_bytes(b"d\xE9pot"));
    fs::rename(project.path("data"), &moved).unwrap();
    fs::rename(
        moved.join("train/drum"),
        moved.join("train").join(OsStr::from_bytes(b"tamb\xF9r")),
    )
    .unwrap();
    fs::rename(
        moved.join("test/drum"),
        moved.join("test").join(OsStr::from_bytes(b"tamb\xF9r")),
    )
    .unwrap();
    let mut command = project.command(&["pipeline", "--json", "--train-dir"]);
    command
        .arg(moved.join("train"))
        .arg("--test-dir")
        .arg(moved.join("test"));
    command
        .arg("--out")
        .arg(project.path("").join(OsStr::from_bytes(b"\xE9t\xE9")));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary = String::from_utf8(output.stdout).unwrap();
    assert!(summary.contains(r"\udce9t\udce9/models/model.safetensors"), "{summary}");
}
