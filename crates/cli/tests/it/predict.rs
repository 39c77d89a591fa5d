//! `luthier predict`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use luthier_testing::Need;
use serde_json::Value;

use crate::{Project, Ran, photo, snapshot};

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
fn features_that_the_cache_knows_are_not_computed_again_and_others_are_kept_in_it() {
    let project = trained();
    project.write("new/1.jpg", &photo(1, 90));
    project.write("new/broken.jpg", b"text");
    let run = |image: &str, more: &[&str]| project.run(&[&["predict", image, "--format", "csv", "-v"], more].concat());
    let loads_network = |ran: &Ran| ran.stderr.contains("network on cpu");
    let without = run("data", &["--cache-dir", "elsewhere"]);
    assert!(loads_network(&without) && project.path("elsewhere/objects").is_dir());
    let known = run("data", &[]).ok();
    assert!(!loads_network(&known), "{}", known.stderr);
    assert_eq!(known.stdout, without.stdout);

    let first = run("new/1.jpg", &[]).ok();
    assert!(loads_network(&first));
    let second = run("new/1.jpg", &[]).ok();
    assert!(!loads_network(&second), "{}", second.stderr);
    assert_eq!(second.stdout, first.stdout);
    // What cannot be read is told beside what is known.
    let folder = run("new", &[]);
    assert!(folder.stderr.contains("broken.jpg: not an image"), "{}", folder.stderr);
    assert_eq!(folder.status, 1);
    // The pipeline finds it too.
    project.write("data/train/drum/new.jpg", &photo(1, 90));
    assert_eq!(project.pipeline(&[])["images"]["embedded"], 0);
}

#[test]
fn where_there_is_no_cache_none_is_made_and_one_that_cannot_be_used_is_left() {
    let project = trained();
    std::fs::remove_dir_all(project.path(".luthier")).unwrap();
    project.run(&["predict", "data/test/harp/5.jpg"]).ok();
    assert!(!project.path(".luthier").exists());
}

#[test]
fn the_model_says_which_weights_it_needs_whatever_is_trained_with_next() {
    let project = trained();
    project.write("luthier.toml", b"[extract]\nweights = 'resnet50-imagenet1k-a1'\n");
    let mut command = project.command(&["predict", "data/test/harp/5.jpg"]);
    Ran::of(command.env_remove("LUTHIER_WEIGHTS").output().unwrap()).ok();
}

#[test]
fn a_missing_model_is_an_error_that_says_how_to_train_one() {
    let project = Project::new();
    for command in [
        &["predict", "data/test/harp/5.jpg"][..],
        &["serve", "--listen", "127.0.0.1:0"],
        &["export", "--format", "onnx"],
        &["model", "show"],
    ] {
        let ran = project.run(command);
        let expected = "error: models/model.safetensors: No such file or directory (os error 2)\n\
                        hint: train a model with luthier pipeline or luthier train, or say where it is";
        assert_eq!(ran.error(), (1, expected), "{command:?}");
    }
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
    let project = Project::new().at_full_size();
    project.pipeline(&[]);
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

#[test]
fn fifteen_lines_of_numpy_give_the_same_probabilities() {
    let Some(python) = Need::Python.path() else { return };
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
    let project = Project::new().at_full_size();
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

/// A run that reads and prints while the test looks on.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    fn new(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Running {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn say(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Waits for a line of JSON.
    fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}, {}", self.stderr()))
    }

    fn stderr(&mut self) -> String {
        let mut stderr = String::new();
        self.child.stderr.as_mut().unwrap().read_to_string(&mut stderr).unwrap();
        stderr
    }

    /// Waits for the end; what is left of stdout must be nothing.
    fn end(mut self) -> (i32, String) {
        drop(self.stdin.take());
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        let stderr = self.stderr();
        (self.child.wait().unwrap().code().unwrap_or(-1), stderr)
    }

    #[cfg(unix)]
    fn interrupt(&self) {
        let kill = Command::new("kill")
            .args(["-INT", &self.child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
    }
}

/// Runs with bytes on standard input.
fn piped(project: &Project, arguments: &[&str], bytes: &[u8]) -> Ran {
    let mut command = project.command(&[&["predict", "--image-path", "-"], arguments].concat());
    let piped = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    Ran::of(child.wait_with_output().unwrap())
}

/// The first column of a table.
fn files_of(ran: &Ran) -> Vec<&str> {
    let first = |line| str::split(line, "  ").next().unwrap();
    ran.stdout.lines().map(first).collect()
}

#[test]
fn patterns_stand_for_what_a_shell_takes_them_for() {
    let project = trained();
    project.write("data/test/.hidden/1.jpg", &photo(0, 0));
    let predict = |pattern: &str| project.run(&["predict", "--image-path", pattern]);
    let ran = predict("data/test/*/4.jpg").ok();
    let fours = ["data/test/drum/4.jpg", "data/test/flute/4.jpg", "data/test/harp/4.jpg"];
    assert_eq!(files_of(&ran), fours);
    assert_eq!(files_of(&predict("data/**/4.jpg").ok()), fours);
    assert_eq!(
        files_of(&predict("data/test/[df]*").ok())[1..3],
        ["data/test/drum/5.jpg", fours[1]]
    );
    assert_eq!(files_of(&predict("data/test/**").ok()).len(), 6);
    // What exists is no pattern.
    project.write("[1].jpg", &photo(0, 0));
    project.write("1.jpg", b"text");
    assert_eq!(files_of(&predict("[1].jpg").ok()), ["[1].jpg"]);
    let error = "error: data/*.jpg: no file matches\nhint: ** stands for folders at any depth: 'photos/**/*.jpg'";
    assert_eq!(predict("data/*.jpg").error(), (1, error));
    assert_eq!(predict("data/***/4.jpg").error().0, 2);
}

#[test]
fn standard_input_is_an_image_or_a_list() {
    let project = trained();
    let image = "data/test/drum/4.jpg";
    let by_name = project.run(&["predict", "--image-path", image]).ok().stdout;
    let bytes = std::fs::read(project.path(image)).unwrap();
    let by_bytes = piped(&project, &[], &bytes).ok().stdout;
    assert_eq!(by_bytes, by_name.replacen(image, "-", 1));
    let ran = piped(&project, &[], b"data/test/drum/4.jpg\0data/test/harp/5.jpg\0").ok();
    assert_eq!(files_of(&ran), [image, "data/test/harp/5.jpg"]);
    assert_eq!(piped(&project, &[], b"").ok().stdout, "");
    let ran = piped(&project, &["--copy-to", "sorted"], &bytes);
    assert_eq!(ran.error().0, 2);
    assert!(
        ran.stderr.contains("standard input is an image, which has no name"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_path_on_standard_input_is_answered_before_the_next_comes() {
    let project = trained();
    let mut running = Running::new(project.command(&["predict", "--format", "json", "--image-path", "-"]));
    for image in ["data/test/harp/5.jpg", "data/test/drum/4.jpg"] {
        running.say(&format!("{image}\n"));
        assert_eq!(running.hear()["file"], image);
    }
    assert_eq!(running.end(), (0, String::new()));
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_the_wait_for_standard_input() {
    let project = trained();
    let mut running = Running::new(project.command(&["predict", "--format", "json", "--image-path", "-"]));
    running.say("data/test/harp/5.jpg\n");
    running.hear();
    running.interrupt();
    let mut rest = String::new();
    running.stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(running.child.wait().unwrap().code(), Some(130));
}

#[test]
fn whoever_has_read_enough_hears_no_complaint() {
    let project = trained();
    let mut running = Running::new(project.command(&["predict", "--format", "json", "--image-path", "-"]));
    running.say("data/test/harp/5.jpg\n");
    running.hear();
    let Running {
        mut child,
        stdin,
        stdout,
    } = running;
    drop(stdout);
    stdin.unwrap().write_all(b"data/test/harp/4.jpg\n").unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn names_do_not_break_lines() {
    let project = trained();
    project.write("a\n\u{1b}[31m.jpg", &photo(0, 4));
    project.write("b\nc.jpg", b"text");
    let ran = project.run(&["predict", "--image-path", "a\n\u{1b}[31m.jpg", "b\nc.jpg"]);
    assert_eq!(files_of(&ran), ["a\\n\\u{1b}[31m.jpg"]);
    assert!(ran.stderr.contains("error: b\\nc.jpg: not an image"), "{}", ran.stderr);
}

#[test]
fn a_class_that_is_named_unknown_is_not_taken_for_the_answer() {
    let project = Project::empty();
    for n in 0..4 {
        for (class, name) in ["drum", "unknown"].iter().enumerate() {
            project.write(&format!("data/train/{name}/{n}.jpg"), &photo(class, n));
            project.write(&format!("data/test/{name}/{n}.jpg"), &photo(class, n));
        }
    }
    project.pipeline(&["--c", "1"]);
    let predict =
        |more: &[&str]| project.run(&[&["predict", "--image-path", "data/test/unknown/0.jpg"], more].concat());
    predict(&[]).ok();
    assert_eq!(
        predict(&["--min-confidence", "0.5"]).error(),
        (
            1,
            "error: models/model.safetensors: has a class unknown, expected none of that name: it could not be told from the \
             answer unknown\nhint: rename its folder and train again, or leave out --min-confidence and --keep-known"
        )
    );
}

/// The answer to each image, as JSON.
fn answers(ran: &Ran) -> Vec<Value> {
    ran.stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The bytes of the images below a folder, in order.
fn bytes_below(project: &Project, folder: &str) -> Vec<Vec<u8>> {
    let mut bytes: Vec<Vec<u8>> = snapshot(&project.path(folder))
        .into_iter()
        .map(|(_, bytes)| bytes)
        .collect();
    bytes.sort();
    bytes
}

#[test]
fn images_are_copied_to_a_folder_for_each_answer() {
    let project = trained();
    project.write("in/bad.jpg", b"text");
    for (class, name) in ["drum", "flute", "harp"].iter().enumerate() {
        project.write(&format!("in/{name}/photo.jpg"), &photo(class, 0));
    }
    // What only looks as if it belonged to the folder below.
    project.write("in/drum/copy.jpg", &photo(0, 1));
    let before = snapshot(&project.path("in"));
    let sort = |more: &[&str]| {
        let sort = [
            "predict",
            "--format",
            "json",
            "--image-path",
            "in",
            "--copy-to",
            "in/sorted",
        ];
        project.run(&[&sort[..], more].concat())
    };
    let planned = sort(&["--dry-run"]);
    assert_eq!(snapshot(&project.path("in")), before);
    assert!(
        planned.stderr.ends_with("would copy 4 images to in/sorted\n"),
        "{}",
        planned.stderr
    );
    let done = sort(&[]);
    assert_eq!((planned.status, done.status), (1, 1));
    assert_eq!(planned.stdout, done.stdout);
    assert!(
        done.stderr.ends_with("copied 4 images to in/sorted\n"),
        "{}",
        done.stderr
    );
    let mut expected = before.clone();
    for answer in answers(&done) {
        let file = answer["file"].as_str().unwrap();
        let Some(to) = answer["to"].as_str() else {
            assert_eq!((file, answer["error"].is_string()), ("in/bad.jpg", true));
            continue;
        };
        let name = to.strip_prefix("in/sorted/").unwrap();
        assert!(
            name.starts_with(&format!("{}/", answer["answer"].as_str().unwrap())),
            "{answer}"
        );
        expected.push((project.path(to), std::fs::read(project.path(file)).unwrap()));
    }
    expected.sort();
    assert_eq!(snapshot(&project.path("in")), expected);

    project.write("empty/text.txt", b"text");
    let none = project
        .run(&["predict", "--image-path", "empty", "--move-to", "sorted"])
        .ok();
    assert_eq!(
        (none.stdout.as_str(), none.stderr.as_str()),
        (
            "",
            "note: empty: 1 other file passed over\nwarning: empty: no images in this folder\nmoved 0 images to sorted\n"
        )
    );

    let again = sort(&[]);
    assert_eq!(answers(&again), answers(&done));
    assert!(
        again.stderr.starts_with("note: passed over 4 images sorted before\n"),
        "{}",
        again.stderr
    );
    assert!(
        again
            .stderr
            .ends_with("copied 0 images to in/sorted, 4 there already\n"),
        "{}",
        again.stderr
    );
    assert_eq!(snapshot(&project.path("in")), expected);
}

#[test]
fn where_an_image_goes_is_in_every_format() {
    let project = trained();
    let sort = |format: &str, more: &[&str]| {
        let images = [
            "predict",
            "--image-path",
            "data/test/drum/4.jpg",
            "--min-confidence",
            "1",
            "--format",
            format,
        ];
        project.run(&[&images[..], &["--move-to", "new", "--dry-run"], more].concat())
    };
    let table = sort("table", &[]).ok().stdout;
    assert!(
        table.starts_with("data/test/drum/4.jpg  unknown (") && table.ends_with(" → new/unknown/4.jpg\n"),
        "{table}"
    );
    let csv = sort("csv", &["--top-k", "1"]).ok().stdout;
    assert!(
        csv.starts_with("file,answer,rank,class,probability,distance,error,to\ndata/test/drum/4.jpg,unknown,1,"),
        "{csv}"
    );
    assert!(csv.ends_with(",,,new/unknown/4.jpg\n"), "{csv}");
    assert_eq!(sort("table", &["--copy-to", "new"]).status, 2);
    let ran = project.run(&["predict", "--image-path", "data/test", "--dry-run"]);
    assert_eq!(
        ran.error(),
        (
            2,
            "error: --dry-run: expected --copy-to or --move-to with it, found neither"
        )
    );
}

#[test]
fn an_image_that_cannot_be_put_away_stays_and_the_others_go() {
    let project = trained();
    project.write("in/0.jpg", &photo(0, 0));
    project.write("in/1.jpg", &photo(1, 0));
    // A file where a folder has to be.
    project.write("sorted/drum", b"text");
    let ran = project.run(&[
        "predict",
        "--format",
        "json",
        "--image-path",
        "in",
        "--move-to",
        "sorted",
    ]);
    assert_eq!(ran.status, 1);
    let [stays, goes] = &answers(&ran)[..] else {
        panic!("{}", ran.stdout)
    };
    assert_eq!(
        (stays["answer"].as_str(), goes["answer"].as_str()),
        (Some("drum"), Some("flute"))
    );
    assert!(
        stays["error"].as_str().unwrap().starts_with("not put to sorted/drum: "),
        "{stays}"
    );
    assert!(
        ran.stderr.contains("error: in/0.jpg: not put to sorted/drum: "),
        "{}",
        ran.stderr
    );
    assert_eq!(goes["to"], "sorted/flute/1.jpg");
    assert!(project.path("in/0.jpg").exists() && !project.path("in/1.jpg").exists());
}

#[cfg(unix)]
#[test]
fn sorting_killed_at_any_step_loses_nothing_and_goes_on() {
    use std::os::unix::process::ExitStatusExt;
    let probe = Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .stderr(Stdio::null())
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        Need::Strace.skip();
        return;
    }
    let project = trained();
    let images = || {
        for n in 0..2 {
            project.write(&format!("in/{n}/photo.jpg"), &photo(0, n));
        }
    };
    // Mostly another file system, to which files are copied.
    let elsewhere = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let elsewhere = elsewhere.path().join("sorted").into_os_string().into_string().unwrap();
    let renames = "?rename,?renameat,?renameat2";
    for (how, sorted, calls) in [
        ("--move-to", "sorted", renames),
        ("--move-to", &elsewhere, renames),
        ("--move-to", &elsewhere, "?unlink,?unlinkat"),
        ("--copy-to", "sorted", renames),
    ] {
        let sort = ["predict", "--format", "json", "--image-path", "in", how, sorted];
        for place in 1.. {
            images();
            let expected = bytes_below(&project, "in");
            let inject = format!("inject={calls}:signal=SIGKILL:when={place}");
            let killed = project
                .traced(&["-qq", "-o", "/dev/null", "-e", &inject], &sort)
                .output()
                .unwrap();
            let was_killed = killed.status.signal().is_some();
            let mut found = [bytes_below(&project, "in"), bytes_below_if(&project, sorted)].concat();
            found.retain(|bytes| expected.contains(bytes));
            found.sort();
            found.dedup();
            assert_eq!(found, expected, "{how} killed at {calls} {place}");
            project.run(&sort).ok();
            // What was left unfinished is hidden, and goes after a day.
            let mut found = bytes_below_if(&project, sorted);
            found.retain(|bytes| expected.contains(bytes));
            found.dedup();
            assert_eq!(found, expected, "{how} after {calls} {place}");
            assert_eq!(
                bytes_below(&project, "in").len(),
                if how == "--move-to" { 0 } else { 2 }
            );
            for folder in ["in", sorted] {
                std::fs::remove_dir_all(project.path(folder)).unwrap();
            }
            if !was_killed {
                assert!(place > 2, "{how} has no {calls}");
                break;
            }
        }
    }
}

#[cfg(unix)]
fn bytes_below_if(project: &Project, folder: &str) -> Vec<Vec<u8>> {
    if project.path(folder).exists() {
        bytes_below(project, folder)
    } else {
        Vec::new()
    }
}

#[cfg(unix)]
#[test]
fn a_watched_folder_is_sorted_as_images_arrive() {
    let project = trained();
    project.write("in/first.jpg", &photo(0, 0));
    let watch = ["predict", "--format", "json", "--watch", "in", "--move-to", "in/sorted"];
    let mut running = Running::new(project.command(&watch));
    let first = running.hear();
    assert_eq!(
        (first["file"].as_str(), first["to"].as_str()),
        (Some("in/first.jpg"), Some("in/sorted/drum/first.jpg"))
    );

    // Written slowly: its parts are no image.
    let bytes = photo(1, 1);
    let mut slow = File::create(project.path("in/slow.jpg")).unwrap();
    slow.write_all(&bytes[..100]).unwrap();
    slow.sync_all().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    // Complete at once, in a new folder.
    project.write("new/moved.jpg", &photo(2, 2));
    std::fs::rename(project.path("new"), project.path("in/new")).unwrap();
    assert_eq!(running.hear()["to"], "in/sorted/harp/moved.jpg");
    slow.write_all(&bytes[100..]).unwrap();
    drop(slow);
    let slow = running.hear();
    assert_eq!(
        (slow["file"].as_str(), slow["to"].as_str()),
        (Some("in/slow.jpg"), Some("in/sorted/flute/slow.jpg"))
    );
    assert_eq!(std::fs::read(project.path("in/sorted/flute/slow.jpg")).unwrap(), bytes);

    running.interrupt();
    let (status, stderr) = running.end();
    assert_eq!(status, 0, "{stderr}");
    assert!(stderr.ends_with("moved 3 images to in/sorted\n"), "{stderr}");
    assert_eq!(
        files_in(&project, "in"),
        [
            "sorted/drum/first.jpg",
            "sorted/flute/slow.jpg",
            "sorted/harp/moved.jpg"
        ]
    );
}

#[cfg(unix)]
fn files_in(project: &Project, folder: &str) -> Vec<String> {
    let root = project.path(folder);
    let name = |path: std::path::PathBuf| path.strip_prefix(&root).unwrap().display().to_string();
    snapshot(&root).into_iter().map(|(path, _)| name(path)).collect()
}

#[cfg(unix)]
#[test]
fn a_folder_is_watched_where_the_system_tells_of_no_changes() {
    let project = trained();
    project.write("in/first.jpg", &photo(0, 0));
    let silent = "inject=?inotify_init,?inotify_init1:error=EMFILE";
    let watch = ["predict", "--format", "json", "--watch", "in"];
    let traced = project.traced(&["-qq", "-o", "/dev/null", "-e", silent], &watch);
    let probe = Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .stderr(Stdio::null())
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        Need::Strace.skip();
        return;
    }
    let mut running = Running::new(traced);
    assert_eq!(running.hear()["file"], "in/first.jpg");
    project.write("in/second.jpg", &photo(1, 0));
    assert_eq!(running.hear()["file"], "in/second.jpg");
    // Strace would not pass an interrupt on.
    std::fs::remove_dir_all(project.path("in")).unwrap();
    let (status, stderr) = running.end();
    assert_eq!(status, 1, "{stderr}");
    assert!(
        stderr.contains("warning: in: the system does not tell of changes (Too many open files"),
        "{stderr}"
    );
}

#[test]
fn a_table_of_labels_gives_the_bytes_that_folders_give() {
    let project = Project::new();
    project.pipeline(&["--out", "folders"]);
    let mut table = String::from("image;class;split\r\n");
    for (file, bytes) in snapshot(&project.path("data")) {
        let file = file
            .strip_prefix(project.path("data"))
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let mut parts = file.split('/');
        let (split, class) = (parts.next().unwrap(), parts.next().unwrap());
        let name = file.replace('/', "-");
        project.write(&format!("flat/{name}"), &bytes);
        table += &format!("{name};{class};{split}\r\n");
    }
    project.write("flat/labels.csv", table.as_bytes());
    let run = || -> Value {
        let ran = project.run(&[
            "pipeline",
            "--labels",
            "flat/labels.csv",
            "--weights",
            "untrained",
            "--out",
            "table",
            "--json",
        ]);
        serde_json::from_str(&ran.ok().stdout).unwrap()
    };
    let outcome = run();
    assert_eq!(outcome["images"]["embedded"], 0, "the same images");
    for file in [
        "features/train_features.npy",
        "features/train_labels.npy",
        "features/test_features.npy",
        "features/test_labels.npy",
        "models/model.safetensors",
    ] {
        let [folders, table] = ["folders", "table"].map(|out| std::fs::read(project.path(out).join(file)).unwrap());
        assert!(folders == table, "{file}");
    }
    // Another cell is what another folder would be.
    project.write(
        "flat/labels.csv",
        table
            .replacen("train-drum-0.jpg;drum", "train-drum-0.jpg;harp", 1)
            .as_bytes(),
    );
    let outcome = run();
    assert_eq!(outcome["images"]["embedded"], 0);
    assert_eq!(outcome["stages"][0]["name"], "scan");
    assert_eq!(outcome["stages"][1]["reason"], "1 image moved");
}
