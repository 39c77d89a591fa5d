//! Flags, environment, `luthier.toml`, help, and what there is besides.

use std::sync::LazyLock;

use crate::{PIPELINE, Project, Ran};

#[test]
fn the_pipeline_runs_from_a_file_and_unknown_keys_are_errors() {
    let project = Project::new();
    project.run(&["init"]).ok();
    let (status, message) = (project.run(&["init"]).status, project.run(&["init"]).stderr);
    assert_eq!(
        (status, message.as_str()),
        (
            1,
            "error: luthier.toml: exists already\nhint: remove or rename it first\n"
        )
    );

    project.write(
        "luthier.toml",
        b"[data]\ntrain-dir = 'data/train'\ntest_dir = 'data/test'\n[features]\ncomponents = 4\n",
    );
    project.run(&["pipeline"]).ok();
    let explained = project.run(&["explain", "features"]).ok().stdout;
    assert!(explained.contains("components         4 "), "{explained}");

    project.write("luthier.toml", b"[extract]\nveiws = 'crop'\n");
    assert_eq!(
        project.run(&PIPELINE).error(),
        (
            2,
            "error: luthier.toml: [extract] veiws is unknown, expected one of views, size, pooling, combine, \
             decode, weights, device, precision, batch, threads, max-file-size, max-pixels, max-image-memory, strict\nhint: did you mean views?"
        )
    );
}

type Words = Vec<String>;

/// Every command, as help names it, with what `-h` prints.
static SHORT_HELP: LazyLock<Vec<(Words, String)>> = LazyLock::new(|| short_help(&Project::empty(), Words::new()));

fn help(project: &Project, command: &[String], option: &str) -> String {
    let words: Vec<&str> = command.iter().map(String::as_str).chain([option]).collect();
    project.run(&words).ok().stdout
}

/// The short help of a command, and of all commands below it.
fn short_help(project: &Project, command: Words) -> Vec<(Words, String)> {
    let help = help(project, &command, "-h");
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    // What a line has no room for goes on below, further to the right.
    let names = (listed.take_while(|line| !line.is_empty()))
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !["", "help"].contains(name));
    let below = names.flat_map(|name| short_help(project, [&command[..], &[name.to_owned()]].concat()));
    let below: Vec<(Words, String)> = below.collect();
    [(command, help)].into_iter().chain(below).collect()
}

#[test]
fn every_command_has_help_with_an_example() {
    for known in [
        &["pipeline"][..],
        &["man"],
        &["cache", "prune-images"],
        &["model", "show"],
    ] {
        assert!(SHORT_HELP.iter().any(|(command, _)| command == known), "{known:?}");
    }
    let project = Project::empty();
    for (command, short) in &SHORT_HELP[1..] {
        for help in [short, &help(&project, command, "--help")] {
            assert!(help.contains("Example"), "{command:?}: {help}");
        }
    }
}

#[test]
fn a_folder_in_the_environment_is_no_matter_to_a_part() {
    let project = Project::new();
    let part = ["extract", "data/train", "--shard", "1/2"];
    let mut command = project.command(&part);
    Ran::of(command.env("LUTHIER_OUTPUT_DIR", "elsewhere").output().unwrap()).ok();
    assert!(!project.path("elsewhere").exists());
    assert_eq!(
        project
            .run(&[&part[..], &["--output-dir", "elsewhere"]].concat())
            .error(),
        (
            2,
            "error: --output-dir with --shard, which writes nothing but the cache\nhint: leave out one of them"
        )
    );
}

#[test]
fn only_commands_that_read_images_offer_to_read_all_of_them() {
    let project = Project::empty();
    for (command, expected) in [
        (&["pipeline"][..], true),
        (&["extract"], true),
        (&["status"], true),
        (&["explain"], true),
        (&["train"], false),
        (&["evaluate"], false),
        (&["cache", "gc"], false),
        (&["cache", "verify"], false),
    ] {
        let help = project.run(&[command, &["--help"]].concat()).ok().stdout;
        assert_eq!(help.contains("--rehash"), expected, "{command:?}");
        assert!(help.contains("--cache-dir"), "{command:?}");
    }
}

#[test]
fn results_go_to_stdout_and_everything_else_to_stderr() {
    let project = Project::new();
    let ran = project.run(&[&PIPELINE[..], &["--quiet"]].concat()).ok();
    assert_eq!(ran.stderr, "");
    assert!(ran.stdout.starts_with("accuracy "), "{}", ran.stdout);
}

#[test]
fn a_flag_beats_the_file_one_setting_at_a_time() {
    let project = Project::new();
    project.write(
        "luthier.toml",
        b"[data]\ntrain-dir = 'data/train'\ntest-dir = 'nowhere'\n[features]\ncomponents = 4\n",
    );
    project.run(&["pipeline", "--test-dir", "data/test"]).ok();
    let explained = project.run(&["explain", "features", "--test-dir", "data/test"]).ok();
    assert!(
        explained.stdout.contains("components         4 "),
        "{}",
        explained.stdout
    );
    let mut from_environment = project.command(&["status", "--check"]);
    from_environment.env("LUTHIER_TEST_DIR", "data/test");
    Ran::of(from_environment.output().unwrap()).ok();
    // A folder that is divided takes the place of both.
    let whole = project.run(&["status", "data/train", "--json"]).ok();
    assert!(whole.stdout.contains("\"stages\""), "{}", whole.stdout);
}

#[test]
fn unknown_variables_are_errors_as_unknown_keys_are() {
    let project = Project::new();
    let run = |name: &str, value: &str, arguments: &[&str]| {
        let mut command = project.command(arguments);
        Ran::of(command.env(name, value).output().unwrap())
    };
    assert_eq!(
        run("LUTHIER_VARIENCE", "0.9", &PIPELINE).error(),
        (
            2,
            "error: environment: LUTHIER_VARIENCE is unknown, expected LUTHIER_ and the name of a setting\n\
             hint: did you mean LUTHIER_VARIANCE?"
        )
    );
    for (name, value) in [
        ("LUTHIER_OUT", "out"),
        ("LUTHIER_MODEL_PATH", "x"),
        ("LUTHIER_TEST_DATA", "x"),
        ("LUTHIER_TEST_WITHOUT", "bf16"),
        ("LUTHIER_WEIGHTS_MIRROR", "http://127.0.0.1:9"),
        ("LUTHIER_SEED", ""),
    ] {
        run(name, value, &["status", "data/train"]).ok();
    }
    // What has no settings does not look.
    run("LUTHIER_VARIENCE", "0.9", &["weights", "list"]).ok();
    run("LUTHIER_VARIENCE", "0.9", &["pipeline", "--help"]).ok();
}

#[test]
fn values_that_cannot_be_meant_are_refused_before_anything_runs() {
    let project = Project::empty();
    for (option, value, expected) in [
        (
            "--variance",
            "98",
            "expected a share between 0 and 1, found 98: did you mean 0.98?",
        ),
        (
            "--variance",
            "98%",
            "expected a share between 0 and 1, found 98%: did you mean 0.98?",
        ),
        ("--confidence", "-1", "expected a share between 0 and 1, found -1"),
        (
            "--test-fraction",
            "20",
            "expected a share between 0 and 1, found 20: did you mean 0.2?",
        ),
        ("--c", "-1", "expected a positive number, auto or auto-1se"),
        ("--threads", "0", "expected a whole number from 1 on, found 0"),
        ("--batch", "0", "expected a whole number from 1 on, found 0"),
        ("--folds", "1", "expected a whole number from 2 on, found 1"),
        ("--seed", "-1", "expected a whole number from 0 on, found -1"),
        ("--weights", "resnet", "--weights: resnet: expected a .safetensors file"),
    ] {
        let ran = project.run(&["pipeline", "photos", option, value]);
        let (status, message) = ran.error();
        assert_eq!(status, 2, "{option} {value}");
        assert!(message.contains(expected), "{option} {value}: {message}");
        assert!(!project.path(".luthier").exists());
    }
    for (option, value, expected) in [
        (
            "--min-confidence",
            "50%",
            "expected a number from 0 to 1, found 50%: did you mean 0.5?",
        ),
        (
            "--keep-known",
            "0.95",
            "expected a percentage: 90, 95 or 99, found 0.95: did you mean 95?",
        ),
    ] {
        let ran = project.run(&["predict", "a.jpg", option, value]);
        let (status, message) = ran.error();
        assert_eq!(status, 2, "{option} {value}");
        assert!(message.contains(expected), "{option} {value}: {message}");
    }
}

#[test]
fn a_folder_may_be_named_without_an_option() {
    let project = Project::new();
    let named = |arguments: &[&str]| project.run(arguments).ok().stdout;
    named(&["extract", "data/train"]);
    named(&["pipeline", "data/train"]);
    assert!(named(&["status", "data/train", "--check"]).contains("nothing to run"));
    let explained = named(&["explain", "scan", "data/train"]);
    assert!(explained.contains("scan is fresh"), "{explained}");
    assert_eq!(
        project.run(&["pipeline", "data/train", "data/test"]).error(),
        (
            2,
            "error: 2 folders named, expected one\n\
             hint: for training images and test images: --train-dir data/train --test-dir data/test"
        )
    );
    let both = project.run(&["pipeline", "data/train", "--train-dir", "data/train"]);
    assert!(both.error().1.contains("cannot be used with"), "{}", both.stderr);
}

#[test]
fn json_and_format_json_are_the_same() {
    let project = Project::new();
    project.pipeline(&[]);
    let data = &PIPELINE[1..];
    for command in [
        [&["status"], data].concat(),
        [&["explain", "extract"], data].concat(),
        vec!["cache", "stats"],
        vec!["predict", "data/test/harp"],
        vec!["compare", "reports", "reports"],
        [&["pipeline"], data].concat(),
    ] {
        let of = |options: &[&str]| project.run(&[&command[..], options].concat()).ok().stdout;
        let (json, format) = (of(&["--json"]), of(&["--format", "json"]));
        assert!(json.starts_with('{') && format.starts_with('{'), "{command:?}: {json}");
        // A pipeline says how long it took.
        if command[0] != "pipeline" {
            assert_eq!(json, format, "{command:?}");
        }
    }
}

#[test]
fn extract_names_the_file_that_lists_what_it_skipped() {
    let project = Project::new();
    for n in 0..7 {
        project.write(&format!("data/test/drum/broken{n}.jpg"), b"no image");
    }
    let ran = project
        .run(&["extract", "--train-dir", "data/train", "--test-dir", "data/test"])
        .ok();
    let lines = "warning: skipped 7 images, the first is test/drum/broken0.jpg: not an image: the bytes begin like no known \
                 format\nwarning: features/features.json lists all\n";
    assert!(ran.stderr.contains(lines), "{}", ran.stderr);
    assert!(project.read("features/features.json").contains("broken6.jpg"));

    let ran = project.run(&PIPELINE).ok();
    let line = "warning: ./reports/skipped.csv lists all\n";
    assert!(ran.stderr.contains(line), "{}", ran.stderr);
    assert!(project.read("reports/skipped.csv").contains("broken6.jpg"));
}

#[test]
fn each_command_lists_the_options_that_it_uses() {
    let project = Project::empty();
    for (command, used, unused) in [
        (
            "extract",
            &["--views", "--weights", "--seed", "--strict"][..],
            &["--variance", "--c ", "--confidence"][..],
        ),
        (
            "train",
            &["--variance", "--c ", "--folds", "--seed"],
            &["--train-dir", "--views", "--weights", "--confidence"],
        ),
        (
            "evaluate",
            &["--confidence", "--seed"],
            &["--train-dir", "--variance", "--c ", "--weights"],
        ),
        (
            "predict",
            &["--weights", "--device", "--batch", "--cache-dir"],
            &["--views", "--train-dir", "--seed", "--variance"],
        ),
        ("compare", &["--fail-if-worse"], &["--cache-dir", "--seed"]),
        ("init", &[], &["--cache-dir", "--seed"]),
    ] {
        let help = project.run(&[command, "-h"]).ok().stdout;
        for option in used {
            assert!(help.contains(option), "{command} {option}: {help}");
        }
        for option in unused {
            assert!(!help.contains(option), "{command} {option}: {help}");
        }
    }
}

#[test]
fn the_version_names_commit_and_libtorch() {
    let project = Project::empty();
    let version = project.run(&["--version"]).ok().stdout;
    let (name, rest) = version.trim_end().split_at("luthier ".len());
    assert_eq!(name, "luthier ");
    assert!(rest.starts_with(env!("CARGO_PKG_VERSION")), "{version}");
    // Without git there is no commit.
    let commit = rest.split_once('(').map(|(_, rest)| rest.split_once(')').unwrap().0);
    if let Some((hash, date)) = commit.map(|commit| commit.split_once(' ').unwrap()) {
        assert!(
            hash.len() >= 9 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()),
            "{version}"
        );
        assert_eq!(date.len(), "2026-11-25".len(), "{version}");
    }
    let (_, libtorch) = version.trim_end().rsplit_once(" libtorch ").expect(&version);
    assert_eq!(libtorch.split('.').count(), 3, "{version}");
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let project = Project::empty();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = project.run(&["completions", shell]).ok().stdout;
        assert!(script.contains("pipeline") && script.contains("variance"), "{shell}");
    }
    assert!(project.run(&["man"]).ok().stdout.contains(".TH luthier 1"));
    project.run(&["man", "pages"]).ok();
    let page = project.read("pages/luthier-predict.1");
    assert!(page.contains("\\-\\-keep\\-known"), "{page}");
    assert!(project.path("pages/luthier-cache-gc.1").is_file());
}

/// Shows every change of a help text to whoever reviews it. `cargo insta review`, or INSTA_UPDATE=always, accepts.
#[test]
fn help_reads_well() {
    let text = |command: &[String], option: &str, help: &str| {
        let words = ["luthier"].into_iter().chain(command.iter().map(String::as_str));
        let name = words.chain([option]).collect::<Vec<_>>().join(" ");
        format!("$ {name}\n{help}\n")
    };
    let short: String = (SHORT_HELP.iter())
        .map(|(command, help)| text(command, "-h", help))
        .collect();
    insta::assert_snapshot!("short_help", short);
    let project = Project::empty();
    let longest = [&["pipeline"][..], &["predict"], &["cache", "gc"]];
    let long = longest.map(|command| {
        let command: Words = command.iter().map(|&word| word.to_owned()).collect();
        text(&command, "--help", &help(&project, &command, "--help"))
    });
    insta::assert_snapshot!("long_help", long.concat());
}
