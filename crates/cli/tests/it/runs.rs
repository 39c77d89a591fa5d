//! Earlier runs: listed, and brought back.

use std::fs;

use serde_json::Value;

use crate::{FOLDERS, Project, photo, snapshot};

fn runs(project: &Project) -> Vec<Value> {
    let ran = project.run(&["runs", "--json"]).ok();
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn runs_are_listed_with_what_each_changed_and_what_came_of_it() {
    let project = Project::new();
    let none = project.run(&["runs"]).ok();
    assert!(
        none.stderr.starts_with("no run of `luthier pipeline` wrote to ."),
        "{}",
        none.stderr
    );
    let first = project.pipeline(&[]);
    project.pipeline(&["--variance", "0.5"]);
    // Unchanged, this is the same run.
    project.pipeline(&["--variance", "0.5"]);
    project.write("data/train/drum/9.jpg", &photo(0, 9));
    project.pipeline(&["--c", "1"]);
    // What does not make a model and a report is none of them.
    project.write("data/train/drum/10.jpg", &photo(0, 10));
    project
        .run(&[&["extract", "--output-dir", "."][..], &FOLDERS].concat())
        .ok();

    let found = runs(&project);
    let changes: Vec<&str> = found.iter().map(|run| run["reason"].as_str().unwrap()).collect();
    assert_eq!(
        changes,
        [
            "1 image added; variance 0.5 → 0.98; c auto → 1",
            "variance 0.98 → 0.5",
            "first run"
        ]
    );
    let images: Vec<u64> = found.iter().map(|run| run["images"].as_u64().unwrap()).collect();
    assert_eq!(images, [19, 18, 18]);
    assert_eq!(found[2]["test"]["accuracy"], first["test"]["accuracy"]);
    assert_eq!(found[2]["held_out"], first["held_out"]);
    assert!(found[0]["held_out"].is_null());
    let text = project.run(&["runs"]).ok().stdout;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(
        lines[0].ends_with("what changed") && lines[3].ends_with("  first run"),
        "{text}"
    );
    assert!(lines[1].contains("    –  1 image added"), "{text}");
}

#[test]
fn an_earlier_run_comes_back_as_it_was() {
    let project = Project::new();
    // Without the times, the report is the same.
    let state = |project: &Project| {
        let folders = ["features", "models"].map(|folder| snapshot(&project.path(folder)));
        (folders, project.read("reports/misclassified.csv"))
    };
    project.pipeline(&[]);
    let before = state(&project);
    project.pipeline(&["--variance", "0.5"]);
    let middle = state(&project);
    fs::remove_file(project.path("data/test/drum/4.jpg")).unwrap();
    project.pipeline(&[]);
    assert!(before != middle && middle != state(&project));

    let found = runs(&project);
    for (place, expected) in [(2, &before), (1, &middle)] {
        let number = found[place]["number"].to_string();
        let ran = project
            .run(&[&["runs", "--restore", &number][..], &FOLDERS].concat())
            .ok();
        assert!(
            ran.stdout.starts_with(&format!("run {number} is back\n")),
            "{}",
            ran.stdout
        );
        assert!(state(&project) == *expected, "run {number}");
    }
    // It is the last run now.
    assert_eq!(runs(&project)[0]["reason"], "variance 0.98 → 0.5");
    let ran = project.run(&[&["runs", "--restore", "77"][..], &FOLDERS].concat());
    let (status, message) = ran.error();
    assert_eq!(status, 1);
    assert!(message.contains("no run 77, expected one of 5 from"), "{message}");

    project.run(&["cache", "gc", "--keep-runs", "1"]).ok();
    assert_eq!(runs(&project).len(), 1);
}
