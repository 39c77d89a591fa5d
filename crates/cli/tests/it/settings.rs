//! Flags, environment, `luthier.toml`, and help.

use crate::{PIPELINE, Project};

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
            "error: luthier.toml: [extract] veiws is unknown, expected one of views, combine, decode, weights, device, \
             precision, batch, threads, strict\nhint: did you mean views?"
        )
    );
}

#[test]
fn every_command_has_help_with_an_example() {
    let project = Project::empty();
    let help = project.run(&["--help"]).ok().stdout;
    for command in [
        "pipeline", "extract", "train", "evaluate", "predict", "status", "explain", "cache", "weights", "init",
    ] {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
        let help = project.run(&[command, "--help"]).ok().stdout;
        assert!(help.contains("Example"), "{command}: {help}");
    }
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
