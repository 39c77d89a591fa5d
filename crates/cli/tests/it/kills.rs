//! A run that is killed, or whose disk is full, at any instant: the cache holds nothing damaged, and the next run goes on
//! from there to the bytes that an undisturbed run writes, without embedding any image again whose features were committed.
//!
//! Instants are chosen in two ways. A pipeline that begins with nothing is killed at times spread over its length, again and
//! again, until one run comes to its end. And with strace a run is killed at the entry of its first, second, third …
//! `write`, `rename` and so on, until it has no more of them, so that no step between the writing of an object and that of
//! the record that names it is left out; or that call fails as it does on a full disk. Syncs are no steps of their own,
//! because a killed process loses nothing that it wrote; nor is the opening of a file, which is empty until the next.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use luthier_cache::Cache;
use luthier_extract::{Decoding, PerceptualHash};
use luthier_testing::Need;
use serde_json::Value;

use crate::{CLASSES, PIPELINE, Project, Ran, assert_same, bitmap, results, snapshot};

/// How often a pipeline is killed at any time, unless `LUTHIER_TEST_KILLS` says otherwise; at steps there are many
/// more.
const KILLS: usize = 10;

/// Of the writes of a run every seventeenth is disturbed, and of the folders that it makes, most of them for records, every
/// fifth, unless `LUTHIER_TEST_STRIDE` says less; of other calls all are.
const STRIDE: usize = 17;
const STRIDE_OF_FOLDERS: usize = 5;

/// System calls that change files, under all their names; one that the system does not have counts for nothing.
const WRITE: &str = "?write,?writev";
const RENAME: &str = "?rename,?renameat,?renameat2";
const REMOVE: &str = "?unlink,?unlinkat";
const RESIZE: &str = "?ftruncate,?fallocate";
const MAKE_FOLDER: &str = "?mkdir,?mkdirat";

const EXTRACT: [&str; 5] = ["extract", "--train-dir", "data/train", "--test-dir", "data/test"];
const OTHER_VARIANCE: [&str; 2] = ["--variance", "0.5"];

#[test]
fn a_pipeline_killed_at_any_time_goes_on() {
    const IMAGES_OF_A_CLASS: usize = 9;
    // Slow enough to be killed after the first commit.
    let project = project(IMAGES_OF_A_CLASS).at_full_size();
    let n_images = (CLASSES.len() * IMAGES_OF_A_CLASS) as u64;
    let start = Instant::now();
    project.pipeline(&[
        "--batch",
        "1",
        "--cache-dir",
        "undisturbed/.luthier",
        "--out",
        "undisturbed",
    ]);
    let (length, expected) = (start.elapsed(), results(&project.path("undisturbed")));
    let (mut n_runs, mut n_kills) = (0, 0);
    let kills = std::env::var("LUTHIER_TEST_KILLS").map_or(KILLS, |count| count.parse().unwrap());
    while n_kills < kills {
        for n_kills_of_this in 0.. {
            let committed = inspect(&project, Expect::AllWhole, "after a kill");
            let arguments = [&PIPELINE[..], &["--batch", "1", "--json"]].concat();
            let mut command = project.command(&arguments);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            // Multiples of the golden ratio are spread evenly, wherever one stops.
            let share = (f64::from(n_runs) * 1.618_033_988_749_895).fract();
            n_runs += 1;
            // If the machine has become so slow that no run gets further than the one before, one is left alone.
            if n_kills_of_this < 12 {
                std::thread::sleep(length.mul_f64(share));
                child.kill().unwrap();
            }
            let output = child.wait_with_output().unwrap();
            if output.status.signal().is_none() {
                let outcome: Value = serde_json::from_str(&Ran::of(output).ok().stdout).unwrap();
                assert_eq!(outcome["images"]["embedded"], n_images - committed);
                break;
            }
            n_kills += 1;
        }
        assert_same(&results(project.root.path()), &expected, "after a kill");
        for folder in WRITTEN {
            fs::remove_dir_all(project.path(folder)).unwrap();
        }
    }
}

#[test]
fn extract_killed_at_any_step_goes_on() {
    if let Some(scene) = Scene::extract() {
        for calls in [WRITE, RENAME, RESIZE] {
            scene.kill_at_every(calls, Expect::AllWhole);
        }
    }
}

#[test]
fn training_and_evaluation_killed_at_any_step_go_on() {
    if let Some(scene) = Scene::train() {
        for calls in [WRITE, RENAME, REMOVE] {
            scene.kill_at_every(calls, Expect::AllWhole);
        }
    }
}

#[test]
fn gc_killed_at_any_step_loses_nothing_that_is_in_use() {
    if let Some(scene) = Scene::gc() {
        // What is kept of segments goes to a new one.
        for calls in [REMOVE, WRITE, RENAME] {
            scene.kill_at_every(calls, Expect::ObjectsMayBeGone);
        }
    }
}

#[test]
fn verify_of_damaged_records_killed_at_any_step_loses_no_features() {
    let Some(scene) = Scene::damaged() else { return };
    let project = &scene.project;
    for place in 1.. {
        scene.restore();
        let output = scene.disturb(REMOVE, &format!("signal=SIGKILL:when={place}"));
        let step = scene.last_call();
        assert_eq!(project.pipeline(&scene.settings)["images"]["embedded"], 0, "{step}");
        assert_same(&results(project.root.path()), &scene.expected, &step);
        // It was not killed, and tells of the damage.
        if output.status.code() == Some(1) {
            assert!(place > 1, "no {REMOVE}");
            break;
        }
    }
}

#[test]
fn extract_on_a_disk_that_gets_full_at_any_step_says_so_and_goes_on() {
    if let Some(scene) = Scene::extract() {
        for calls in [WRITE, RESIZE] {
            scene.fill_at_every(calls);
        }
    }
}

#[test]
fn training_and_evaluation_on_a_disk_that_gets_full_at_any_step_say_so_and_go_on() {
    if let Some(scene) = Scene::train() {
        for calls in [WRITE, RENAME, REMOVE, MAKE_FOLDER] {
            scene.fill_at_every(calls);
        }
    }
}

/// What a run of the pipeline makes.
pub(crate) const WRITTEN: [&str; 4] = [".luthier", "features", "models", "reports"];

/// A project in a state from which the same run is begun many times.
struct Scene {
    project: Project,
    n_images: u64,
    /// How many of them have committed features from the beginning.
    n_known: u64,
    /// The run that is disturbed.
    disturbed: Vec<&'static str>,
    /// Settings of the pipeline that runs afterwards.
    settings: Vec<&'static str>,
    /// What it writes if nothing was disturbed.
    expected: Vec<(PathBuf, Vec<u8>)>,
}

impl Scene {
    /// One image is new.
    fn extract() -> Option<Self> {
        let project = project(3);
        project.pipeline(&[]);
        project.write("data/train/drum/new.bmp", &bitmap(0, 50));
        Scene::new(project, 10, &EXTRACT, &[])
    }

    /// All images are known, and everything after `extract` is stale.
    fn train() -> Option<Self> {
        let project = project(3);
        project.pipeline(&[]);
        Scene::new(project, 9, &[&PIPELINE[..], &OTHER_VARIANCE].concat(), &OTHER_VARIANCE)
    }

    /// The runs before the last one used an image and a variance that nobody needs any more.
    fn gc() -> Option<Self> {
        let project = project(3);
        project.write("data/train/drum/old.bmp", &bitmap(0, 50));
        project.pipeline(&[]);
        fs::remove_file(project.path("data/train/drum/old.bmp")).unwrap();
        project.pipeline(&OTHER_VARIANCE);
        Scene::new(project, 9, &["cache", "gc", "--keep-runs", "1"], &OTHER_VARIANCE)
    }

    /// Of each record of an execution, a run or an export, half is left.
    fn damaged() -> Option<Self> {
        let project = project(3);
        project.pipeline(&[]);
        for kind in ["executions", "exports", "runs"] {
            for (path, bytes) in snapshot(&project.path(".luthier").join(kind)) {
                fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
            }
        }
        Scene::new(project, 9, &["cache", "verify"], &[])
    }

    /// `None` where strace cannot do its work.
    fn new(project: Project, n_images: u64, disturbed: &[&'static str], settings: &[&'static str]) -> Option<Self> {
        let probe = Command::new("strace")
            .args(["-f", "-o", "/dev/null", "-e", "inject=?write:signal=SIGKILL", "echo"])
            .stdout(Stdio::null())
            .output();
        if !probe.is_ok_and(|probe| probe.status.signal() == Some(9)) {
            Need::Strace.skip();
            return None;
        }
        fs::create_dir(project.path("before")).unwrap();
        for folder in WRITTEN {
            fs::rename(project.path(folder), project.path("before").join(folder)).unwrap();
        }
        let mut scene = Scene {
            project,
            n_images,
            n_known: n_images - u64::from(disturbed == EXTRACT),
            disturbed: disturbed.to_vec(),
            settings: settings.to_vec(),
            expected: Vec::new(),
        };
        scene.restore();
        scene.project.pipeline(&scene.settings);
        scene.expected = results(scene.project.root.path());
        Some(scene)
    }

    fn restore(&self) {
        for folder in WRITTEN {
            let path = self.project.path(folder);
            if path.exists() {
                fs::remove_dir_all(&path).unwrap();
            }
            duplicate(&self.project.path("before").join(folder), &path);
        }
    }

    /// Kills a run at the entry of each of these calls, or of as many as [`stride_of`] says.
    fn kill_at_every(&self, calls: &str, expect: Expect) {
        let mut n_kills = 0;
        for place in (1..).step_by(stride_of(calls)) {
            self.restore();
            let output = self.disturb(calls, &format!("signal=SIGKILL:when={place}"));
            if output.status.success() {
                break;
            }
            let step = self.last_call();
            assert_eq!(output.status.signal(), Some(9), "{step}: {}", Ran::of(output).stderr);
            self.go_on(expect, &step);
            n_kills += 1;
        }
        assert!(n_kills > 0, "no {calls} in a run of {:?}", self.disturbed);
    }

    /// Lets each of these calls fail, each in a run of its own.
    fn fill_at_every(&self, calls: &str) {
        let mut n_failures = 0;
        for place in (1..).step_by(stride_of(calls)) {
            self.restore();
            // One call fails and not the next: what the error is must still reach stderr.
            let output = self.disturb(calls, &format!("error=ENOSPC:when={place}"));
            let Some(step) = self.failed_call() else { break };
            let ran = Ran::of(output);
            if ran.status != 0 {
                let (status, error) = ran.error();
                assert_eq!(status, 1, "{step}: {error}");
                let names = |parts: &[&str]| parts.iter().any(|part| error.contains(part));
                assert!(
                    names(&[".luthier", "features", "models", "reports", "stdout", "error: .: "]),
                    "{step}: {error}"
                );
                assert!(names(&["No space left on device"]), "{step}: {error}");
            }
            assert!(!ran.stderr.contains("panicked"), "{step}: {}", ran.stderr);
            self.go_on(Expect::AllWhole, &step);
            n_failures += 1;
        }
        assert!(n_failures > 0, "no {calls} in a run of {:?}", self.disturbed);
    }

    /// Runs under strace, which writes down the calls that it tampers with.
    fn disturb(&self, calls: &str, how: &str) -> Output {
        let (traced, how) = (format!("trace={calls}"), format!("inject={calls}:{how}"));
        let options = ["-y", "-qq", "-s", "0", "-o", "trace.log", "-e", &traced, "-e", &how];
        let arguments = [&self.disturbed[..], &["--quiet"]].concat();
        self.project.traced(&options, &arguments).output().unwrap()
    }

    fn calls(&self) -> Vec<String> {
        let log = self.project.read("trace.log");
        let calls = log.lines().filter_map(|line| line.split_once(' '));
        calls.map(|(_, call)| call.trim().to_owned()).collect()
    }

    fn last_call(&self) -> String {
        let mut calls = self.calls().into_iter().filter(|call| !call.starts_with("+++"));
        calls.next_back().unwrap_or_default()
    }

    fn failed_call(&self) -> Option<String> {
        self.calls().into_iter().find(|call| call.ends_with("(INJECTED)"))
    }

    /// Looks at what a disturbed run left, and lets the next one finish.
    fn go_on(&self, expect: Expect, step: &str) {
        let committed = inspect(&self.project, expect, step);
        assert!(committed >= self.n_known, "{committed} images left: {step}");
        let outcome = self.project.pipeline(&self.settings);
        let expected = self.n_images.saturating_sub(committed);
        assert_eq!(outcome["images"]["embedded"], expected, "{step}");
        assert_same(&results(self.project.root.path()), &self.expected, step);
    }
}

/// How many calls further the next disturbance is.
fn stride_of(calls: &str) -> usize {
    let stride = match calls {
        WRITE => STRIDE,
        MAKE_FOLDER => STRIDE_OF_FOLDERS,
        _ => 1,
    };
    std::env::var("LUTHIER_TEST_STRIDE").map_or(stride, |most| stride.min(most.parse().unwrap()))
}

/// What must be true of a cache that a process has left without closing it.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Expect {
    /// Every object and record is whole, and the objects that a record names are there.
    AllWhole,
    /// Of a record, the objects may be gone.
    ObjectsMayBeGone,
}

/// Checks a copy of the cache; the result is how many images' features are committed.
pub(crate) fn inspect(project: &Project, expect: Expect, when: &str) -> u64 {
    let folder = project.path(".luthier");
    let copy = tempfile::tempdir_in(project.root.path()).unwrap();
    if folder.exists() {
        duplicate(&folder, copy.path());
    }
    let cache = Cache::open(copy.path()).unwrap();
    let hashes = PerceptualHash::descriptor(Decoding::Scaled);
    let networks = cache
        .stats()
        .unwrap()
        .descriptors
        .into_iter()
        .filter(|stats| stats.descriptor != hashes);
    let committed = networks.map(|stats| stats.images).sum();
    let found = cache.verify(&()).unwrap();
    assert_eq!(
        (found.damaged_objects, found.damaged_features, found.damaged_records),
        (0, 0, 0),
        "{when}"
    );
    if expect == Expect::AllWhole {
        assert_eq!(found.forgotten_executions, 0, "{when}");
    }
    committed
}

/// Copies a folder, so that files keep modification time and inode, which tell whether they are still as they were
/// written: all but open segments are only ever replaced, and are linked.
pub(crate) fn duplicate(folder: &Path, copy: &Path) {
    fs::create_dir_all(copy).unwrap();
    for path in crate::luthier_files(folder) {
        let twin = copy.join(path.strip_prefix(folder).unwrap());
        fs::create_dir_all(twin.parent().unwrap()).unwrap();
        if path.extension().is_some_and(|extension| extension == "open") {
            fs::copy(path, twin).unwrap();
        } else {
            fs::hard_link(path, twin).unwrap();
        }
    }
}

/// A project with `n` small images of each class.
pub(crate) fn project(n: usize) -> Project {
    let project = Project::empty();
    for (class, name) in CLASSES.iter().enumerate() {
        for place in 0..n {
            let split = if place % 3 == 2 { "test" } else { "train" };
            project.write(&format!("data/{split}/{name}/{place}.bmp"), &bitmap(class, place));
        }
    }
    project
}
