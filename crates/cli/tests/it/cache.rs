//! What becomes of a run when its cache is damaged, full, read-only, without locks or lost in part; and what
//! `luthier cache` says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use luthier_testing::{Need, has_run_unprivileged};
use serde_json::{Value, json};

use crate::{PIPELINE, Project, Ran, luthier_files, photo, results, snapshot};

/// The folders of a cache that hold neither artifacts nor features.
const RECORDS: [&str; 4] = ["executions", "exports", "files", "runs"];

/// The folders of a cache.
const FOLDERS: [&str; 6] = ["executions", "exports", "files", "objects", "runs", "segments"];

/// A project whose images are an hour old: its cache knows them by their stats from the first run on.
fn project_at_rest() -> Project {
    let project = Project::new();
    let an_hour_ago = SystemTime::now() - Duration::from_secs(60 * 60);
    for path in luthier_files(&project.path("data")) {
        let file = File::options().append(true).open(path).unwrap();
        file.set_modified(an_hour_ago).unwrap();
    }
    project
}

/// What the user gets, but for the times in it.
fn outputs(project: &Project) -> Vec<(PathBuf, Vec<u8>)> {
    results(project.root.path())
}

fn cache(project: &Project, arguments: &[&str]) -> Value {
    let ran = project.run(&[&["cache"], arguments, &["--json"]].concat()).ok();
    serde_json::from_str(&ran.stdout).unwrap()
}

/// What `cache verify` reports, which says by its status whether anything was damaged.
pub(crate) fn verify(project: &Project, is_damaged: bool) -> Value {
    let ran = project.run(&["cache", "verify", "--json"]);
    assert_eq!(ran.status, i32::from(is_damaged), "{}{}", ran.stdout, ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

/// Puts a folder's files back, in place: files of the same name stay the same files.
fn restore(folder: &Path, files: &[(PathBuf, Vec<u8>)]) {
    for (path, _) in snapshot(folder) {
        if files.iter().all(|(known, _)| *known != path) {
            fs::remove_file(path).unwrap();
        }
    }
    for (path, bytes) in files {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Flips bytes in all kinds of files of a cache of which a run needs everything and makes nothing. The same, many more
/// times and place by place, is tested where the cache is made; here the whole program is.
#[test]
fn a_flipped_byte_changes_no_result() {
    let n_flips: usize = match std::env::var("LUTHIER_TEST_FLIPS") {
        Ok(number) => number.parse().expect("LUTHIER_TEST_FLIPS is a number"),
        Err(_) => 50,
    };
    let project = project_at_rest();
    project.pipeline(&[]);
    let test = project.pipeline(&[])["test"].clone();
    let expected = outputs(&project);
    let folder = project.path(".luthier");
    let mut stored = snapshot(&folder);
    let mut seed = 1_u64;
    let mut below = |bound: usize| {
        // Knuth's multiplier; the high bits are the good ones.
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % bound
    };
    let mut n_recomputed = 0;
    for flip in 0..n_flips {
        // One kind after the other, for there are many files of some; every second time around, the head of a file.
        let kind = folder.join(FOLDERS[flip % FOLDERS.len()]);
        let of_kind: Vec<usize> = (0..stored.len())
            .filter(|&file| stored[file].0.starts_with(&kind))
            .collect();
        assert!(!of_kind.is_empty(), "{}", kind.display());
        let file = of_kind[below(of_kind.len())];
        let length = stored[file].1.len();
        let is_of_head = (flip / FOLDERS.len()).is_multiple_of(2);
        let byte = below(if is_of_head { length.min(100) } else { length });
        let mask = 1 + below(255) as u8;
        let place = format!("{} byte {byte} ^ {mask:#04x}", stored[file].0.display());
        let mut damaged = stored.clone();
        damaged[file].1[byte] ^= mask;
        restore(&folder, &damaged);

        let ran = project.run(&[&PIPELINE[..], &["--json"]].concat());
        assert_eq!(ran.status, 0, "{place}: {}", ran.stderr);
        let outcome: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(outcome["test"], test, "{place}");
        assert!(outputs(&project) == expected, "{place}: other files");
        n_recomputed += usize::from(ran.stderr.contains(" ran "));
        if ran.stderr.contains("warning: .luthier") || ran.stderr.contains(" ran ") {
            // Files that were written again are others, and the cache of before does not know them.
            project.pipeline(&[]);
            stored = snapshot(&folder);
        }
    }
    println!("{n_flips} flips, {n_recomputed} runs computed something again");
    assert!(n_recomputed > 0, "no flip hit anything");
}

#[test]
fn stats_say_what_is_stored_and_what_the_last_run_was_spared() {
    let project = Project::new();
    project.pipeline(&[]);
    let stats = cache(&project, &["stats"]);
    // An image has features and a perceptual hash.
    assert_eq!(stats["features"], 2 * 18);
    assert_eq!(stats["feature_bytes"], 18 * (2048 + 192) * 4);
    assert_eq!(
        stats["last_run"]["reuse"],
        json!({"stages_reused": 0, "stages_run": 9, "images_reused": 0, "images_embedded": 18})
    );
    let text = project.run(&["cache", "stats"]).ok().stdout;
    assert!(text.contains(", 1 run\n"), "{text}");
    let parts = |extractor: &Value| -> BTreeMap<String, String> {
        let text = |part: &Value, field: &str| part[field].as_str().unwrap().to_owned();
        let parts = extractor["parts"].as_array().unwrap().iter();
        parts.map(|part| (text(part, "name"), text(part, "value"))).collect()
    };
    let extractors = stats["descriptors"].as_array().unwrap().iter();
    let (hashes, networks): (Vec<_>, Vec<_>) =
        (extractors.map(parts)).partition(|parts| parts["view"] == "perceptual hash");
    assert_eq!((hashes.len(), networks.len()), (1, 1));
    let parts = &networks[0];
    assert_eq!(
        ["view", "weights name", "precision"].map(|name| parts[name].as_str()),
        ["squash@64", "untrained", "fp32"]
    );
    project.write("data/train/drum/new.jpg", &photo(0, 51));
    project.pipeline(&[]);
    let reuse = &cache(&project, &["stats"])["last_run"]["reuse"];
    assert_eq!(
        (&reuse["images_embedded"], &reuse["images_reused"]),
        (&json!(1), &json!(18))
    );
    project.pipeline(&[]);
    let stats = cache(&project, &["stats"]);
    assert_eq!(stats["runs"], 2, "a run with nothing to do is the last one, used again");
    assert_eq!(stats["last_run"]["reuse"]["stages_reused"], 9);
    let text = project.run(&["cache", "stats"]).ok().stdout;
    assert!(
        text.contains("9 of 9 stages and 19 of 19 images from the cache"),
        "{text}"
    );
    assert!(text.contains("untrained, squash@64, scaled, fp32, cpu"), "{text}");
}

#[test]
fn gc_and_prune_images_keep_what_is_in_use() {
    let project = Project::new();
    project.pipeline(&["--views", "squash,crop"]);
    project.pipeline(&[]);
    fs::remove_file(project.path("data/train/harp/3.jpg")).unwrap();
    project.pipeline(&[]);
    let expected = outputs(&project);

    let planned = cache(&project, &["prune-images", "--dry-run"]);
    assert_eq!(
        planned["features"], 4,
        "the image that is gone, in both views, their mean and its hash"
    );
    assert_eq!(cache(&project, &["prune-images"]), planned);
    let planned = cache(&project, &["gc", "--keep-runs", "1", "--dry-run"]);
    assert_eq!((&planned["runs"], &planned["features"]), (&json!(2), &json!(2 * 17)));
    assert_eq!(cache(&project, &["gc", "--keep-runs", "1"]), planned);
    assert_eq!(
        cache(&project, &["gc", "--max-size", "1TiB", "--keep-days", "1"])["objects"],
        0
    );
    let stages = project.pipeline(&[])["stages"].clone();
    assert!(
        stages
            .as_array()
            .unwrap()
            .iter()
            .all(|stage| stage["status"] == "fresh"),
        "{stages}"
    );

    let all = cache(&project, &["gc", "--max-size", "0"]);
    assert_eq!(all["features"], 2 * 17);
    assert_eq!(cache(&project, &["stats"])["objects"], 0);
    assert_eq!(project.pipeline(&[])["images"]["embedded"], 17);
    assert!(outputs(&project) == expected);
}

#[test]
fn gc_keeps_the_stages_that_a_run_finished_before_it_failed() {
    let project = Project::new();
    let failed = project.run(&[&PIPELINE[..], &["--components", "500"]].concat());
    assert_eq!(failed.status, 1, "{}", failed.stderr);
    assert_eq!(cache(&project, &["gc", "--keep-runs", "0"])["objects"], 0);
    let outcome = project.pipeline(&[]);
    let stage = &outcome["stages"][1];
    assert_eq!(
        (&stage["name"], &stage["status"]),
        (&json!("extract"), &json!("restored"))
    );
    assert_eq!(outcome["images"]["reused"], 18);
}

#[test]
fn verify_forgets_what_is_damaged_and_the_next_run_makes_it_again() {
    let project = Project::new();
    project.pipeline(&[]);
    let expected = outputs(&project);
    assert_eq!(verify(&project, false)["damaged_objects"], 0);
    let objects = snapshot(&project.path(".luthier/objects"));
    for (path, bytes) in &objects {
        fs::write(path, &bytes[1..]).unwrap();
    }
    project.write(".luthier/.luthier-unfinished-half", b"of a process that was killed");
    let report = verify(&project, true);
    assert_eq!(report["damaged_objects"], objects.len());
    assert_eq!(
        (&report["forgotten_executions"], &report["left_over_files"]),
        (&json!(10), &json!(1))
    );
    assert_eq!(project.pipeline(&[])["images"]["reused"], 18);
    assert!(outputs(&project) == expected);
}

#[test]
fn what_killed_runs_left_in_output_folders_is_removed_when_it_can_be_no_living_ones() {
    let project = Project::new();
    project.pipeline(&[]);
    let expected = outputs(&project);
    let two_days_ago = SystemTime::now() - Duration::from_secs(2 * 24 * 60 * 60);
    for folder in ["features", "models", "reports"] {
        for name in ["old", "new"] {
            project.write(&format!("{folder}/.luthier-unfinished-{name}"), b"half");
        }
        let old = File::options()
            .append(true)
            .open(project.path(&format!("{folder}/.luthier-unfinished-old")));
        old.unwrap().set_modified(two_days_ago).unwrap();
    }
    project.pipeline(&[]);
    for folder in ["features", "models", "reports"] {
        let is_there = |name: &str| project.path(&format!("{folder}/.luthier-unfinished-{name}")).exists();
        assert_eq!((is_there("old"), is_there("new")), (false, true), "{folder}");
        fs::remove_file(project.path(&format!("{folder}/.luthier-unfinished-new"))).unwrap();
    }
    assert!(outputs(&project) == expected);
}

#[test]
fn a_cache_without_its_records_gives_the_same_results_and_embeds_nothing() {
    let project = project_at_rest();
    project.pipeline(&[]);
    let expected = outputs(&project);
    for lost in RECORDS.chunks(1).chain([&RECORDS[..]]) {
        for kind in lost {
            fs::remove_dir_all(project.path(&format!(".luthier/{kind}"))).unwrap();
        }
        let outcome = project.pipeline(&[]);
        assert_eq!(
            outcome["images"],
            json!({"total": 18, "embedded": 0, "reused": 18, "skipped": 0}),
            "{lost:?}"
        );
        assert!(outputs(&project) == expected, "{lost:?}");
    }
}

#[test]
fn gc_refuses_where_the_records_of_runs_were_lost() {
    let project = Project::new();
    project.pipeline(&[]);
    fs::remove_dir_all(project.path(".luthier/runs")).unwrap();
    let ran = project.run(&["cache", "gc"]);
    let (status, error) = ran.error();
    assert_eq!(status, 1);
    assert!(error.contains("\nhint: the records of runs were lost"), "{error}");
    project.pipeline(&[]);
    assert_eq!(cache(&project, &["gc"])["features"], 0);
}

/// Makes a folder read-only, also for a superuser if `chattr` can, and writable again in the end.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn new(folder: &Path) -> Option<Self> {
        let read_only = ReadOnly(folder.to_owned());
        read_only.set("a-w", "+i");
        fs::write(folder.join("probe"), "").is_err().then_some(read_only)
    }

    fn set(&self, mode: &str, attribute: &str) {
        // One of the two is enough, and either may be refused.
        for (program, argument) in [("chmod", mode), ("chattr", attribute)] {
            Command::new(program).arg("-R").arg(argument).arg(&self.0).output().ok();
        }
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        self.set("u+w", "-i");
        // What is immutable cannot be made writable either.
        self.set("u+w", "-i");
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_read_and_everything_else_is_done() {
    if has_run_unprivileged("cache::a_cache_that_cannot_be_written_is_read_and_everything_else_is_done") {
        return;
    }
    let project = Project::new();
    project.pipeline(&[]);
    let before = snapshot(&project.path(".luthier"));
    let Some(read_only) = ReadOnly::new(&project.path(".luthier")) else {
        Need::ReadOnlyFolder.skip();
        return;
    };
    project.write("data/train/drum/new.jpg", &photo(0, 51));
    for _ in 0..2 {
        let ran = project.run(&[&PIPELINE[..], &["--json"]].concat()).ok();
        assert_eq!(
            ran.stderr.matches("warning: cache cannot be written").count(),
            1,
            "{}",
            ran.stderr
        );
        let outcome: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(
            outcome["images"],
            json!({"total": 19, "embedded": 1, "reused": 18, "skipped": 0}),
            "nothing is remembered"
        );
    }
    assert_eq!(cache(&project, &["stats"])["features"], 2 * 18);
    let ran = project.run(&["cache", "gc"]);
    let (status, error) = ran.error();
    assert_eq!(status, 1);
    assert!(
        error.starts_with("error: .luthier: expected a cache that can be written"),
        "{error}"
    );
    assert!(snapshot(&project.path(".luthier")) == before);
    drop(read_only);

    let incremental = outputs(&project);
    assert_eq!(project.pipeline(&[])["images"]["embedded"], 1);
    assert!(outputs(&project) == incremental);
}

#[test]
fn what_is_damaged_in_a_cache_that_cannot_be_written_is_made_again_in_the_same_run() {
    if has_run_unprivileged("cache::what_is_damaged_in_a_cache_that_cannot_be_written_is_made_again_in_the_same_run") {
        return;
    }
    const OTHER_VARIANCE: [&str; 2] = ["--variance", "0.5"];
    let project = Project::new();
    project.pipeline(&[&OTHER_VARIANCE[..], &["--cache-dir", "another"]].concat());
    let expected = outputs(&project);
    project.pipeline(&[]);
    let rows = fs::read(project.path("features/train_features.npy")).unwrap();
    let segments = luthier_files(&project.path(".luthier/segments"));
    let segment = &segments[0];
    let mut bytes = fs::read(segment).unwrap();
    let part_of_last_row = &rows[rows.len() - 64..];
    let place = bytes.windows(64).position(|part| part == part_of_last_row).unwrap();
    bytes[place] ^= 1;
    fs::write(segment, &bytes).unwrap();
    let Some(_read_only) = ReadOnly::new(&project.path(".luthier")) else {
        Need::ReadOnlyFolder.skip();
        return;
    };
    let outcome = project.pipeline(&OTHER_VARIANCE);
    assert_eq!(outcome["images"]["embedded"], 1);
    assert!(outputs(&project) == expected);
}

#[test]
fn a_cache_that_cannot_be_written_gives_its_features_without_its_records() {
    if has_run_unprivileged("cache::a_cache_that_cannot_be_written_gives_its_features_without_its_records") {
        return;
    }
    let project = project_at_rest();
    project.pipeline(&[]);
    let expected = outputs(&project);
    let folders = RECORDS.map(|kind| project.path(&format!(".luthier/{kind}")));
    let spoil = |folder: &PathBuf| {
        for path in luthier_files(folder) {
            fs::write(path, [0x55u8; 9000]).unwrap();
        }
    };
    let remove = |folder: &PathBuf| fs::remove_dir_all(folder).unwrap();
    for damage in [&spoil as &dyn Fn(&PathBuf), &remove] {
        folders.iter().for_each(damage);
        let Some(_read_only) = ReadOnly::new(&project.path(".luthier")) else {
            Need::ReadOnlyFolder.skip();
            return;
        };
        let outcome = project.pipeline(&[]);
        assert_eq!(
            outcome["images"],
            json!({"total": 18, "embedded": 0, "reused": 18, "skipped": 0})
        );
        assert!(outputs(&project) == expected);
    }
}

/// Runs the pipeline while the system answers a call with an error. `None` where that cannot be arranged. The pipeline
/// is quiet, so that what it writes goes to files.
fn run_with_fault(project: &Project, call: &str, fault: &str) -> Option<Ran> {
    let tampered = format!("trace={call}");
    let how = format!("inject={call}:{fault}");
    let options = ["-o", "/dev/null", "-e", &tampered, "-e", &how];
    let mut traced = project.traced(&options, &[&PIPELINE[..], &["--quiet"]].concat());
    let ran = Ran::of(traced.output().ok()?);
    if ran.stderr.contains("strace: ") {
        return None;
    }
    Some(ran)
}

#[test]
fn a_file_system_without_locks_is_named() {
    let project = Project::new();
    for fault in ["error=EOPNOTSUPP", "error=ENOLCK"] {
        let Some(ran) = run_with_fault(&project, "flock", fault) else {
            Need::Strace.skip();
            return;
        };
        let (status, error) = ran.error();
        assert_eq!(status, 1);
        assert!(error.starts_with("error: .luthier/"), "{fault}: {error}");
        assert!(
            error.contains("hint: put the cache on a local disk with --cache-dir"),
            "{fault}: {error}"
        );
    }
}

#[test]
fn a_full_disk_is_named_and_nothing_is_lost() {
    let project = Project::new();
    project.pipeline(&[]);
    let expected = outputs(&project);
    let mut n_errors = 0;
    // Of the writes a single one fails: what the error is must still be written.
    for (call, when) in [
        ("write", "2"),
        ("write", "20"),
        ("write", "40"),
        ("?rename,?renameat,?renameat2", "5+"),
        ("fsync", "9+"),
    ] {
        for folder in ["features", "models", "reports", ".luthier"] {
            fs::remove_dir_all(project.path(folder)).ok();
        }
        let Some(ran) = run_with_fault(&project, call, &format!("error=ENOSPC:when={when}")) else {
            Need::Strace.skip();
            return;
        };
        if ran.status == 0 {
            continue;
        }
        n_errors += 1;
        let (status, error) = ran.error();
        assert_eq!(status, 1, "{call} {when}: {}", ran.stderr);
        assert!(error.contains("\nhint: "), "{call} {when}: {error}");
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    }
    assert!(n_errors >= 3, "{n_errors}");
    project.pipeline(&[]);
    assert!(outputs(&project) == expected);
}
