//! Weights that have to be downloaded, without a network.

use std::net::TcpListener;

use crate::{PIPELINE, Project, Ran};

/// Runs the pipeline with the default weights and a mirror that nobody serves.
fn run_offline(project: &Project) -> Ran {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mirror = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let mut command = project.command(&PIPELINE);
    command
        .env_remove("LUTHIER_WEIGHTS")
        .env("LUTHIER_WEIGHTS_MIRROR", mirror);
    Ran::of(command.output().unwrap())
}

#[test]
fn a_missing_download_is_an_error_that_names_the_ways_out() {
    let ran = run_offline(&Project::new());
    let (status, error) = ran.error();
    assert_eq!(status, 1);
    assert!(error.contains("/timm/resnet50.tv_in1k/resolve/"), "{error}");
    for way in [
        "luthier weights fetch resnet50-imagenet1k-v1",
        "--weights FILE.safetensors",
        "--weights untrained",
    ] {
        assert!(error.contains(way), "{error}");
    }
}

#[test]
fn the_report_says_that_the_weights_are_untrained() {
    let project = Project::new();
    project.pipeline(&["--weights", "untrained"]);
    for report in ["reports/report.json", "reports/report.html"] {
        assert!(
            project.read(report).contains("The weights are untrained"),
            "{report} does not say so"
        );
    }
}

#[test]
fn known_weights_are_listed_and_their_place_is_told() {
    let project = Project::empty();
    let list = project.run(&["weights", "list"]).ok().stdout;
    assert!(list.starts_with("resnet50-imagenet1k-v1   not downloaded"), "{list}");
    assert!(list.contains("\nuntrained "), "{list}");
    let ran = project.run(&["weights", "path", "resnet50-imagenet1k-v1"]);
    assert!(
        ran.error()
            .1
            .ends_with("hint: run luthier weights fetch resnet50-imagenet1k-v1"),
        "{}",
        ran.stderr
    );
}
