//! Bad input: each gets one clear error, or a named skip.

use std::fs;

use crate::{PIPELINE, Project, luthier_files, photo};

#[track_caller]
fn check(project: &Project, arguments: &[&str], status: i32, expected: &str) {
    assert_eq!(project.run(arguments).error(), (status, expected));
}

const A_FOLDER_PER_CLASS: &str = "hint: a data folder holds one folder of images per class";

#[test]
fn a_missing_folder() {
    let project = Project::empty();
    check(
        &project,
        &PIPELINE,
        1,
        &format!("error: data/train: no such folder\n{A_FOLDER_PER_CLASS}"),
    );
    let hint = "hint: pass a FOLDER, or --train-dir DIR --test-dir DIR, or --labels FILE, or write them into luthier.toml (`luthier init`)";
    check(&project, &["pipeline"], 2, &format!("error: no images named\n{hint}"));
}

#[test]
fn an_empty_folder_and_a_single_class() {
    let project = Project::empty();
    fs::create_dir_all(project.path("data/train/drum")).unwrap();
    fs::create_dir_all(project.path("data/test/drum")).unwrap();
    let expected =
        "error: data/train: no images, expected data/train/<class>/<image>.jpg (or png, webp, heic and others)";
    let hint = format!(
        "{A_FOLDER_PER_CLASS}; otherwise name the classes with --labels TABLE or --class-from PATTERN, or do without: \
         luthier extract --unlabelled"
    );
    check(&project, &PIPELINE, 1, &format!("{expected}\n{hint}"));
    project.write("data/train/drum/1.jpg", &photo(0, 1));
    project.write("data/test/drum/2.jpg", &photo(0, 2));
    let expected = "error: data/train: found one class (drum), expected at least two folders with images";
    check(&project, &PIPELINE, 1, &format!("{expected}\n{hint}"));
}

#[test]
fn a_class_with_nothing_but_other_files_and_what_is_passed_over() {
    let project = Project::new();
    project.write("data/train/drum/notes.txt", b"not counted as an image");
    let ran = project.run(&PIPELINE).ok();
    assert!(
        ran.stderr.contains("12 train, 6 test; 1 other file ignored"),
        "{}",
        ran.stderr
    );
    project.write("data/train/lute/1.CR2", b"from a camera");
    check(
        &project,
        &PIPELINE,
        1,
        "error: data/train/lute: no images of this class, expected .jpg, .png, .webp, .heic or other image files\n\
         hint: add images (cameras' raw files must be exported as JPEG or TIFF), or remove the folder",
    );
}

#[test]
fn a_broken_image_among_those_drawn_for_the_test_stops_nothing() {
    let project = Project::empty();
    for class in 0..2 {
        for n in 0..12 {
            project.write(&format!("data/{class}/{n}.jpg"), &photo(class, n));
        }
    }
    for n in 0..5 {
        let path = format!("data/0/{n}.jpg");
        let whole = fs::read(project.path(&path)).unwrap();
        project.write(&path, &whole[..200]);
        project
            .run(&["pipeline", "--data-dir", "data", "--test-fraction", "0.3"])
            .ok();
        project.write(&path, &whole);
    }
}

#[test]
fn a_class_that_only_the_test_set_has() {
    let project = Project::new();
    project.write("data/test/lute/1.jpg", &photo(1, 77));
    check(
        &project,
        &PIPELINE,
        1,
        "error: data/train: no training images for lute, which data/test has\n\
         hint: add training images for these classes, or remove their test folders",
    );
}

#[test]
fn unreadable_images_are_skipped_by_name_or_with_strict_an_error() {
    let project = Project::new();
    project.write("data/train/drum/text.jpg", b"a text file");
    project.write("data/train/harp/short.jpg", &photo(2, 60)[..400]);
    project.write("data/test/flute/empty.png", b"");
    let ran = project.run(&PIPELINE).ok();
    for line in [
        "warning: skipped train/drum/text.jpg: not an image: the bytes begin like no known format",
        "warning: skipped train/harp/short.jpg: damaged JPEG: cut short, its end marker is missing",
        "warning: skipped test/flute/empty.png: empty file",
    ] {
        assert!(ran.stderr.contains(line), "{}", ran.stderr);
    }
    assert!(ran.stdout.contains("3 images skipped, listed in"), "{}", ran.stdout);
    let skipped = project.read("reports/skipped.csv");
    assert!(
        skipped.contains("drum/text.jpg") && skipped.lines().count() == 4,
        "{skipped}"
    );
    assert!(project.read("reports/report.html").contains("short.jpg"));

    check(
        &project,
        &[&PIPELINE[..], &["--strict"]].concat(),
        1,
        "error: 3 images cannot be read; the first: train/drum/text.jpg: not an image: the bytes begin like no known \
         format\nhint: replace or remove them, or run without --strict to skip them",
    );
}

#[test]
fn a_class_without_a_readable_image() {
    let project = Project::new();
    for n in 0..4 {
        project.write(&format!("data/train/harp/{n}.jpg"), b"text");
    }
    check(
        &project,
        &PIPELINE,
        1,
        "error: class harp: none of its 4 train images can be read; the first, harp/0.jpg: not an image: the bytes begin \
         like no known format\nhint: replace these images; or remove them if the class has others; or remove the class's \
         folder",
    );
}

#[test]
fn weights_that_are_none() {
    let project = Project::new();
    project.write("weights.safetensors", b"certainly not");
    let ran = project.run(&[&PIPELINE[..], &["--weights", "weights.safetensors"]].concat());
    let (status, error) = ran.error();
    assert_eq!(status, 1);
    let expected =
        "error: weights.safetensors: expected the tensors of ResNet-50 in a .safetensors or .pth file, found ";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn leakage_and_contradictions_are_in_the_report() {
    let project = Project::new();
    project.write("data/test/drum/leaked.jpg", &photo(0, 0));
    project.write("data/train/harp/also-a-flute.jpg", &photo(1, 0));
    project.run(&PIPELINE).ok();
    let report = project.read("reports/report.json");
    for part in [
        "The same images in train and test",
        "train/drum/0.jpg = test/drum/leaked.jpg",
        "1 test image seen in training",
        "1 image with more than one label",
        "The same images in two classes",
        "The weights are untrained",
    ] {
        assert!(report.contains(part), "{part}");
    }
}

#[cfg(unix)]
#[test]
fn names_move_no_cursor() {
    let project = Project::new();
    project.write("data/train/drum/\u{1b}[2J.jpg", b"no image");
    project.write("data/train/lute\u{202e}/1.jpg", &photo(1, 70));
    let ran = project.run(&PIPELINE).ok();
    for line in [
        "warning: skipped train/drum/\\u{1b}[2J.jpg: not an image",
        "warning: Classes without test images: Nothing is known of how well these are recognised: lute\\u{202e}.",
    ] {
        assert!(ran.stderr.contains(line), "{}", ran.stderr);
    }
    assert!(!ran.stderr.contains(['\u{1b}', '\u{202e}']), "{}", ran.stderr);
    let shown = project.run(&["model", "show"]).ok().stdout;
    assert!(
        shown.contains("classes     4: drum, flute, harp, lute\\u{202e}\n"),
        "{shown}"
    );
}

#[test]
fn too_many_components_and_other_impossible_settings() {
    let project = Project::new();
    let with = |more: &[&'static str]| [&PIPELINE[..], more].concat();
    let (status, error) = (
        project.run(&with(&["--components", "500"])).status,
        project.run(&with(&["--components", "500"])),
    );
    assert_eq!(status, 1);
    assert!(error.error().1.contains("500"), "{}", error.stderr);
    for (arguments, part) in [
        (["--variance", "1.5"], "1.5"),
        (["--c", "-1"], "-1"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--precision", "fp16"], "no fp16 on the CPU"),
    ] {
        let ran = project.run(&with(&arguments));
        assert_ne!(ran.status, 0, "{arguments:?}");
        assert!(ran.stderr.contains(part), "{arguments:?}: {}", ran.stderr);
    }
}

#[test]
fn records_that_are_none_are_taken_as_missing() {
    let project = Project::new();
    project.pipeline(&[]);
    for path in luthier_files(&project.path(".luthier/executions")) {
        fs::write(path, "a text file that somebody put here").unwrap();
    }
    let ran = project.run(&PIPELINE).ok();
    assert!(
        ran.stderr.contains(": record fails its checksum; taken as missing"),
        "{}",
        ran.stderr
    );
}
