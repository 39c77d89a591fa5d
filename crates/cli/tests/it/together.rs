//! Several processes on one cache: runs at once, from nothing or from a part, into one folder or each into its own, all end
//! well with the bytes of a run alone; `gc` among them refuses or does its work, and disturbs nobody; and whoever interrupts
//! a run can go on from what it stored.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use luthier_cache::Cache;
use serde_json::Value;

use crate::kills::{Expect, WRITTEN, duplicate, inspect, project};
use crate::{CLASSES, PIPELINE, Project, Ran, assert_same, results};

fn start(project: &Project, more: &[&str]) -> Child {
    let mut command = project.command(&[&PIPELINE[..], &["--threads", "1", "--json"], more].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn end(child: Child) -> Value {
    let ran = Ran::of(child.wait_with_output().unwrap()).ok();
    serde_json::from_str(&ran.stdout).unwrap()
}

fn remove(project: &Project, folders: &[&str]) {
    for path in folders
        .iter()
        .map(|folder| project.path(folder))
        .filter(|path| path.exists())
    {
        fs::remove_dir_all(path).unwrap();
    }
}

#[test]
fn any_number_of_runs_share_a_cache() {
    let project = project(4);
    let n_images = 4 * CLASSES.len() as u64;
    // A part: one training image of each class, in another place, is known.
    for (split, file) in [("train", "0.bmp"), ("test", "2.bmp")] {
        for class in CLASSES {
            let bytes = fs::read(project.path(&format!("data/{split}/{class}/{file}"))).unwrap();
            project.write(&format!("few/{split}/{class}/{file}"), &bytes);
        }
    }
    let few = [
        "pipeline",
        "--train-dir",
        "few/train",
        "--test-dir",
        "few/test",
        "--out",
        "few-out",
        "--cache-dir",
        "part",
        // Of one training image a class cross-validation can hold out none.
        "--c",
        "1",
    ];
    project.run(&few).ok();
    project.pipeline(&["--out", "alone", "--cache-dir", "alone-cache"]);
    let expected = results(&project.path("alone"));

    let outs: Vec<String> = (0..8).map(|place| format!("out{place}")).collect();
    for (n_runs, is_part, is_one_folder) in [
        (2, false, true),
        (2, false, false),
        (2, true, true),
        (2, true, false),
        (8, false, true),
        (8, true, false),
    ] {
        let case = format!("{n_runs} runs, cache with a part: {is_part}, into one folder: {is_one_folder}");
        remove(&project, &WRITTEN);
        remove(&project, &outs.iter().map(String::as_str).collect::<Vec<_>>());
        if is_part {
            duplicate(&project.path("part"), &project.path(".luthier"));
        }
        let outs: Vec<&str> = outs[..n_runs]
            .iter()
            .map(|out| if is_one_folder { "." } else { out })
            .collect();
        let runs: Vec<Child> = outs.iter().map(|out| start(&project, &["--out", out])).collect();
        runs.into_iter().for_each(|run| drop(end(run)));
        for out in outs {
            assert_same(&results(&project.path(out)), &expected, &case);
        }
        assert_eq!(inspect(&project, Expect::AllWhole, &case), n_images, "{case}");
    }
}

#[test]
fn gc_refuses_while_a_run_has_the_cache_open_and_disturbs_none() {
    let project = project(4);
    project.pipeline(&["--out", "alone", "--cache-dir", "alone-cache"]);
    let expected = results(&project.path("alone"));

    let gc = || project.run(&["cache", "gc", "--keep-runs", "1"]);
    let refusal =
        "error: .luthier/lock: another luthier process uses this cache\nhint: wait until it ends, then try again";
    let cache = Cache::open(&project.path(".luthier")).unwrap();
    assert_eq!(gc().error(), (1, refusal));
    drop(cache);
    gc().ok();

    for round in 0..3 {
        remove(&project, &WRITTEN);
        let mut run = start(&project, &[]);
        while run.try_wait().unwrap().is_none() {
            let ran = gc();
            assert!(
                ran.status == 0 || ran.error() == (1, refusal),
                "round {round}: {}",
                ran.stderr
            );
        }
        end(run);
        assert_same(&results(project.root.path()), &expected, "after gc");
        gc().ok();
        assert_eq!(
            project.pipeline(&[])["images"]["reused"],
            12,
            "what the run made is in use"
        );
    }
}

#[test]
fn an_interrupted_run_goes_on() {
    const IMAGES_OF_A_CLASS: usize = 12;
    let project = project(IMAGES_OF_A_CLASS).at_full_size();
    let n_images = (IMAGES_OF_A_CLASS * CLASSES.len()) as u64;
    let begin = Instant::now();
    end(start(
        &project,
        &["--batch", "1", "--out", "alone", "--cache-dir", "alone-cache"],
    ));
    let (length, expected) = (begin.elapsed(), results(&project.path("alone")));

    for (signal, share) in [("INT", 0.0), ("TERM", 0.3), ("INT", 0.6), ("TERM", 0.8)] {
        remove(&project, &WRITTEN);
        let mut run = start(&project, &["--batch", "1"]);
        // The first line comes when the run is under way: before, the signal would end it as any process.
        let mut stderr = BufReader::new(run.stderr.take().unwrap());
        let mut said = String::new();
        stderr.read_line(&mut said).unwrap();
        assert!(said.starts_with("scan"), "{said}");
        std::thread::sleep(length.mul_f64(share));
        let kill = format!("kill -{signal} {}", run.id());
        let sent = Command::new("sh")
            .args(["-c", &kill])
            .stderr(Stdio::null())
            .status()
            .unwrap();
        stderr.read_to_string(&mut said).unwrap();
        let status = run.wait().unwrap().code();
        assert!(
            status == Some(0) || sent.success() && status == Some(130) && said.contains("error: interrupted"),
            "SIG{signal}: {status:?}, {said}"
        );
        let committed = inspect(&project, Expect::AllWhole, signal);
        let outcome = end(start(&project, &["--batch", "1"]));
        assert_eq!(outcome["images"]["embedded"], n_images - committed, "SIG{signal}");
        assert_same(&results(project.root.path()), &expected, "after an interruption");
    }
}
