//! Streams that nobody reads, and signals.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::{PIPELINE, Project, Ran, assert_same, luthier_files, results};

/// A child that nobody listens to on one of its streams.
struct Unheard {
    stdout: bool,
    stderr: bool,
}

impl Unheard {
    fn run(&self, mut command: Command) -> Ran {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if self.stdout {
            drop(child.stdout.take());
        }
        if self.stderr {
            drop(child.stderr.take());
        }
        Ran::of(child.wait_with_output().unwrap())
    }
}

const NO_STDERR: Unheard = Unheard {
    stdout: false,
    stderr: true,
};

const NO_STDOUT: Unheard = Unheard {
    stdout: true,
    stderr: false,
};

#[test]
fn a_run_whose_messages_cannot_be_written_has_its_results() {
    let project = Project::new();
    project.pipeline(&["--out", "heard"]);
    let arguments = |out| [&PIPELINE[..], &["-v", "--cache-dir", out, "--out", out]].concat();
    NO_STDERR.run(project.command(&arguments("unheard"))).ok();
    let mut outs = vec!["unheard"];
    if Path::new("/dev/full").exists() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = project.command(&arguments("full"));
        Ran::of(command.stderr(full).output().unwrap()).ok();
        outs.push("full");
    }
    let expected = results(&project.path("heard"));
    for out in outs {
        assert_same(&results(&project.path(out)), &expected, out);
    }
}

#[test]
fn an_error_that_cannot_be_written_keeps_its_exit_status() {
    let project = Project::empty();
    let status = |arguments: &[&str]| NO_STDERR.run(project.command(arguments)).status;
    assert_eq!(status(&["train"]), 1);
    assert_eq!(status(&["pipeline"]), 2);
    assert_eq!(status(&["pipeline", "--folds", "1"]), 2);
}

#[test]
fn images_are_sorted_to_the_end_though_nobody_reads_where_they_go() {
    let project = Project::new();
    project.pipeline(&[]);
    for format in ["table", "json", "csv"] {
        let sorted = format!("sorted-{format}");
        let arguments = ["predict", "data/test", "--format", format, "--copy-to", &sorted];
        NO_STDOUT.run(project.command(&arguments)).ok();
        assert_eq!(luthier_files(&project.path(&sorted)).len(), 6, "{format}");
    }
    NO_STDOUT
        .run(project.command(&["predict", "data/test", "--move-to", "moved"]))
        .ok();
    assert_eq!(luthier_files(&project.path("moved")).len(), 6);
    assert_eq!(luthier_files(&project.path("data/test")).len(), 0);
}

#[test]
fn a_reader_that_leaves_early_does_not_change_the_exit_status() {
    let project = Project::new();
    project.pipeline(&[]);
    let run = |arguments: &[&str]| NO_STDOUT.run(project.command(arguments));
    for quiet_end in [
        &["predict", "data/test"][..],
        &["predict", "data/test", "--json"],
        &["cache", "stats"],
        &["--help"],
        &["completions", "bash"],
    ] {
        let ran = run(quiet_end).ok();
        assert_eq!(ran.stderr, "", "{quiet_end:?}");
    }
    let stale = [&["status"], &PIPELINE[1..], &["--variance", "0.5", "--check"]].concat();
    assert_eq!(run(&stale).status, 3);
    let dry_run = [&PIPELINE[..], &["--variance", "0.5", "--dry-run"]].concat();
    assert_eq!(run(&dry_run).status, 3);
}

#[test]
fn a_full_disk_under_stdout_is_an_error() {
    if !Path::new("/dev/full").exists() {
        return;
    }
    let project = Project::new();
    project.pipeline(&[]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut command = project.command(&["predict", "data/test"]);
    let ran = Ran::of(command.stdout(full).output().unwrap());
    let (status, message) = ran.error();
    assert_eq!(status, 1);
    assert!(message.starts_with("error: stdout: No space left"), "{message}");
}

#[test]
fn messages_in_a_file_have_no_escapes() {
    let project = Project::new();
    let ran = project.run(&[&PIPELINE[..], &["-v"]].concat()).ok();
    assert!(ran.stderr.contains("note: network on cpu"), "{}", ran.stderr);
    assert!(!ran.stderr.contains('\u{1b}'), "{:?}", ran.stderr);
}

/// Luthier under a shell that has it ignore signals.
fn ignoring(project: &Project, signals: &str, arguments: &[&str]) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("trap '' {signals}; exec \"$0\" \"$@\"")]);
    project.wrapped(shell, arguments)
}

/// Starts a command, sends it signals once stderr says something, and waits for its end.
fn signalled(mut command: Command, after: &str, signals: &[&str]) -> Ran {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains(after) {
        assert!(stderr.read_line(&mut said).unwrap() > 0, "ended after: {said}");
    }
    for signal in signals {
        kill(&child, signal);
    }
    stderr.read_to_string(&mut said).unwrap();
    let mut ran = Ran::of(child.wait_with_output().unwrap());
    ran.stderr = said;
    ran
}

fn kill(child: &Child, signal: &str) {
    let killed = Command::new("sh")
        .args(["-c", &format!("kill -{signal} {}", child.id())])
        .status();
    assert!(killed.unwrap().success());
}

#[test]
fn a_signal_that_the_parent_had_us_ignore_stays_ignored() {
    let project = Project::new();
    let command = ignoring(&project, "HUP INT", &PIPELINE);
    let ran = signalled(command, "scan ", &["HUP", "INT", "HUP"]).ok();
    assert!(!ran.stderr.contains("interrupted"), "{}", ran.stderr);
    assert!(project.path("reports/report.html").is_file());
}

#[test]
fn one_signal_ends_a_pipeline_in_good_order() {
    for signal in ["TERM", "HUP"] {
        let project = Project::new();
        // What is not ignored is caught, also beside what is.
        let command = ignoring(&project, "INT", &PIPELINE);
        let ran = signalled(command, "scan ", &["INT", signal]);
        assert_eq!(ran.status, 130, "{}", ran.stderr);
        let end = "interrupted: storing what is done (again to stop at once)\n";
        assert!(ran.stderr.contains(end), "{}", ran.stderr);
        assert!(!ran.stderr.contains("\n\n"), "{}", ran.stderr);
        assert!(ran.stderr.ends_with("error: interrupted\n"), "{}", ran.stderr);
    }
}

#[test]
fn a_command_that_stores_nothing_does_not_promise_to() {
    let project = Project::new();
    project.pipeline(&[]);
    std::fs::create_dir(project.path("in")).unwrap();
    let watch = project.command(&["predict", "--watch", "in"]);
    let ran = signalled(watch, "watching in", &["TERM"]).ok();
    assert!(
        ran.stderr.contains("\ninterrupted: stopping (again to stop at once)\n"),
        "{}",
        ran.stderr
    );
}
