//! What `status`, `explain` and `pipeline --dry-run` say after one change of each kind.

use std::fs;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use luthier_artifact::KeyPart;
use luthier_cache::{Cache, Execution, Output, Reuse, RunStage};
use luthier_classify::ClassifyConfig;
use luthier_eval::EvaluateConfig;
use luthier_extract::{ExtractConfig, ExtractorConfig};
use luthier_features::FeaturesConfig;
use serde_json::{Value, json};

use crate::cache::verify;
use crate::{PIPELINE, Project, STAGES, luthier_files, photo};

/// A project after its first run, with the executions of the stages in order. Nobody changes it or opens its cache: each
/// test has a copy.
static BASE: LazyLock<(Project, Vec<Execution>)> = LazyLock::new(|| {
    let project = Project::new();
    project.pipeline(&[]);
    let cache = Cache::open(&project.path(".luthier")).unwrap();
    let run = cache.last_run(&name(&project)).unwrap();
    let key = |stage| run.iter().find(|used| used.stage == stage).unwrap().key;
    let executions = STAGES.map(|stage| cache.execution(&key(stage)).unwrap().unwrap());
    (project, executions.to_vec())
});

/// The folder a project is known by in its cache.
fn name(project: &Project) -> String {
    project.path(".").canonicalize().unwrap().display().to_string()
}

/// A copy of the images and the cache of [`BASE`], where the same run was the last.
fn copy() -> Project {
    let (base, executions) = &*BASE;
    let project = Project::empty();
    for folder in ["data", ".luthier"] {
        for file in luthier_files(&base.path(folder)) {
            let to = project.path(file.strip_prefix(base.root.path()).unwrap().to_str().unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(file, to).unwrap();
        }
    }
    record_run(&project, executions);
    project
}

fn record_run(project: &Project, executions: &[Execution]) {
    let used: Vec<RunStage> = executions
        .iter()
        .map(|execution| RunStage {
            stage: execution.key.stage.clone(),
            key: execution.key.digest(),
        })
        .collect();
    let cache = Cache::open(&project.path(".luthier")).unwrap();
    cache.record_run(&name(project), &used, Reuse::default()).unwrap();
}

/// A copy of [`BASE`] with a cache that knows one run alone, which `change` makes another than it was.
fn copy_with_past(change: impl Fn(&mut Execution)) -> Project {
    let project = copy();
    for kind in ["executions", "runs", "segments"] {
        fs::remove_dir_all(project.path(&format!(".luthier/{kind}"))).unwrap();
    }
    let cache = Cache::open(&project.path(".luthier")).unwrap();
    let mut executions = BASE.1.clone();
    for execution in &mut executions {
        change(execution);
        cache.record(execution).unwrap();
    }
    record_run(&project, &executions);
    project
}

/// Sets a part of a key, or takes it away.
fn set(execution: &mut Execution, name: &str, value: Option<&str>) {
    let parts = &mut execution.key.parts;
    parts.retain(|part| part.name != name || value.is_some());
    let Some(value) = value.map(str::to_owned) else { return };
    match parts.iter_mut().find(|part| part.name == name) {
        Some(part) => part.value = value,
        None => parts.push(KeyPart {
            name: name.to_owned(),
            value,
        }),
    }
}

fn plan(project: &Project, flags: &[&str]) -> Value {
    let ran = project
        .run(&[&["status"], &PIPELINE[1..], &["--json"], flags].concat())
        .ok();
    serde_json::from_str(&ran.stdout).unwrap()
}

fn explain(project: &Project, stage: &str, flags: &[&str]) -> Value {
    let ran = project
        .run(&[&["explain", stage], &PIPELINE[1..], &["--json"], flags].concat())
        .ok();
    serde_json::from_str(&ran.stdout).unwrap()
}

/// Digests, cut short as they are for people, are not compared.
fn redact(words: &str) -> String {
    let words = words.split(' ').map(|word| match word.char_indices().nth(8) {
        Some((8, '…')) => "#",
        _ => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The plan as lines: stage, status, reason.
fn lines(plan: &Value) -> Vec<String> {
    let stages = plan["stages"].as_array().unwrap().iter();
    let text = |stage: &Value, field: &str| stage[field].as_str().unwrap().to_owned();
    stages
        .map(|stage| {
            let reason = redact(&text(stage, "reason"));
            format!("{} {}: {reason}", text(stage, "name"), text(stage, "status"))
        })
        .collect()
}

/// The parts of the key that `explain` marks. `extractor` is the digest of others.
fn marked(explained: &Value) -> Vec<&str> {
    let parts = explained["parts"].as_array().unwrap().iter();
    parts
        .filter(|part| part["differs"] == true)
        .map(|part| part["name"].as_str().unwrap())
        .filter(|name| !["extractor", "perceptual hash"].contains(name))
        .collect()
}

fn kinds(explained: &Value) -> Vec<&str> {
    let reasons = explained["reasons"].as_array().unwrap().iter();
    reasons.map(|reason| reason["kind"].as_str().unwrap()).collect()
}

/// Parts of a key: their values, or that they were not there.
type Parts<'a> = &'a [(&'a str, Option<&'a str>)];

/// What somebody does to the files of a project.
type Edit = fn(&Project);

/// What is asked after one change.
#[derive(Default)]
struct Case<'a> {
    /// Options that the last run did not have.
    flags: &'a [&'a str],
    /// What the last run had in place of the parts of this stage's key.
    past: Option<(&'a str, Parts<'a>)>,
    /// What happens to the files.
    edit: Option<Edit>,
    /// The first stage that would run; none if nothing would.
    stage: Option<&'a str>,
    /// The reason, in words.
    reason: &'a str,
    /// The kinds of reasons.
    kinds: &'a [&'a str],
    /// The parts of the key that differ.
    marked: &'a [&'a str],
    /// What of their own later stages have to say.
    later: &'a [(&'a str, &'a str)],
    /// How many images would be embedded, where that is the point.
    to_embed: Option<u64>,
}

#[track_caller]
fn check(case: &Case<'_>) {
    let Case {
        flags,
        past,
        edit,
        stage,
        reason,
        kinds: expected_kinds,
        marked: expected_marked,
        later,
        to_embed,
    } = *case;
    let project = match past {
        None => copy(),
        Some((stage, parts)) => copy_with_past(|execution| {
            if execution.key.stage == stage {
                for (name, value) in parts {
                    set(execution, name, *value);
                }
            }
        }),
    };
    if let Some(edit) = edit {
        edit(&project);
    }
    let first = stage.map_or(STAGES.len(), |stage| {
        STAGES.iter().position(|name| *name == stage).unwrap()
    });
    let expected = STAGES.iter().enumerate().map(|(place, name)| {
        let own = later
            .iter()
            .find(|(stage, _)| stage == name)
            .map(|(_, own)| format!("{own}; "));
        match (place, stage) {
            // What changes the images is found by scan.
            (0, Some("extract")) if expected_kinds == ["images"] => format!("scan stale: {reason}"),
            // Model and test images decide what is suspected: the evaluation's confidence and seed do not matter.
            (_, Some("evaluate")) if *name == "suspects" => format!("{name} fresh: unchanged"),
            (_, Some(stage)) if place > first => format!("{name} stale: {}waits for {stage}", own.unwrap_or_default()),
            _ if place == first => format!("{name} stale: {reason}"),
            _ => format!("{name} fresh: unchanged"),
        }
    });
    let plan = plan(&project, flags);
    assert_eq!(lines(&plan), expected.collect::<Vec<_>>(), "{flags:?} {past:?}");
    if to_embed.is_some() {
        assert_eq!(plan["to_embed"].as_u64(), to_embed, "{reason}");
    }
    let explained = explain(&project, stage.unwrap_or("extract"), flags);
    assert_eq!(explained["compared_with"], "last run");
    assert_eq!(marked(&explained), expected_marked, "{reason}");
    assert_eq!(kinds(&explained), expected_kinds, "{reason}");
    let expected = if stage.is_none() { "unchanged" } else { reason };
    assert_eq!(redact(explained["reason"].as_str().unwrap()), expected);
}

#[test]
fn a_setting_of_extract_is_named() {
    let base = Case {
        stage: Some("extract"),
        kinds: &["setting"],
        ..Case::default()
    };
    for case in [
        Case {
            flags: &["--resize", "crop"],
            reason: "views squash@64 → crop@64",
            marked: &["views"],
            ..base
        },
        Case {
            flags: &["--views", "squash,mirror"],
            reason: "views squash@64 → squash@64, mirror@64",
            marked: &["views"],
            ..base
        },
        Case {
            past: Some((
                "extract",
                &[("views", Some("squash@64, mirror@64")), ("combine", Some("concat"))],
            )),
            flags: &["--views", "squash,mirror"],
            reason: "combine concat → mean",
            marked: &["combine"],
            ..base
        },
        Case {
            flags: &["--decode", "exact"],
            reason: "decode scaled → exact",
            marked: &["decode"],
            ..base
        },
        Case {
            flags: &["--precision", "bf16"],
            reason: "precision fp32 → bf16",
            marked: &["precision"],
            ..base
        },
        Case {
            flags: &["--batch", "4"],
            reason: "batch 2 → 4",
            marked: &["batch"],
            ..base
        },
        Case {
            past: Some(("extract", &[("device", Some("cuda"))])),
            flags: &["--device", "cpu"],
            reason: "device cuda → cpu",
            marked: &["device"],
            ..base
        },
        Case {
            past: Some(("extract", &[("weights name", Some("mine"))])),
            reason: "weights name mine → untrained",
            marked: &["weights name"],
            ..base
        },
        Case {
            past: Some(("extract", &[("weights", Some(OTHER))])),
            reason: "weights # → #",
            kinds: &["weights"],
            marked: &["weights"],
            ..base
        },
        Case {
            edit: Some(|project| project.write("mine.safetensors", b"read when they are needed")),
            flags: &["--weights", "mine.safetensors"],
            reason: "weights untrained # → mine #",
            kinds: &["weights"],
            marked: &["weights", "weights name"],
            ..base
        },
    ] {
        check(&case);
    }
}

/// Some digest.
const OTHER: &str = "773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb";

/// What the key of a run with `--c 0.5` has.
const GIVEN: [(&str, Option<&str>); 3] = [("c", Some("0.5")), ("folds", None), ("seed", None)];

#[test]
fn a_setting_of_a_later_stage_is_named() {
    let features = Case {
        stage: Some("features"),
        kinds: &["setting"],
        ..Case::default()
    };
    let classify = Case {
        stage: Some("classify"),
        ..features
    };
    let evaluate = Case {
        stage: Some("evaluate"),
        ..features
    };
    for case in [
        Case {
            flags: &["--variance", "0.5"],
            reason: "variance 0.98 → 0.5",
            marked: &["variance"],
            ..features
        },
        Case {
            flags: &["--components", "3"],
            reason: "components 3 instead of variance 0.98",
            kinds: &["instead"],
            marked: &["variance", "components"],
            ..features
        },
        Case {
            past: Some(("features", &[("variance", None), ("components", Some("5"))])),
            flags: &["--components", "3"],
            reason: "components 5 → 3",
            marked: &["components"],
            ..features
        },
        Case {
            past: Some(("features", &[("variance", None), ("components", Some("5"))])),
            reason: "variance 0.98 instead of components 5",
            kinds: &["instead"],
            marked: &["variance", "components"],
            ..features
        },
        Case {
            flags: &["--solver", "smartcore"],
            reason: "solver faer → smartcore",
            marked: &["solver"],
            later: &[("classify", "solver faer → smartcore")],
            ..features
        },
        Case {
            flags: &["--whiten"],
            reason: "whiten false → true",
            marked: &["whiten"],
            ..features
        },
        Case {
            flags: &["--components", "none"],
            reason: "components none instead of variance 0.98",
            kinds: &["instead"],
            marked: &["variance", "components"],
            ..features
        },
        Case {
            flags: &["--c", "0.5"],
            reason: "c auto → 0.5",
            marked: &["c", "folds", "seed"],
            ..classify
        },
        Case {
            flags: &["--c", "auto-1se"],
            reason: "c auto → auto-1se",
            marked: &["c"],
            ..classify
        },
        Case {
            past: Some(("classify", &GIVEN)),
            reason: "c 0.5 → auto",
            marked: &["c", "folds", "seed"],
            ..classify
        },
        Case {
            past: Some(("classify", &GIVEN)),
            flags: &["--c", "2", "--folds", "3"],
            reason: "c 0.5 → 2",
            marked: &["c"],
            ..classify
        },
        Case {
            flags: &["--class-weight", "balanced"],
            reason: "class-weight uniform → balanced",
            marked: &["class-weight"],
            ..classify
        },
        Case {
            flags: &["--folds", "3"],
            reason: "folds 5 → 3",
            marked: &["folds"],
            ..classify
        },
        Case {
            flags: &["--seed", "7"],
            reason: "seed 0 → 7",
            marked: &["seed"],
            later: &[("evaluate", "seed 0 → 7")],
            ..classify
        },
        Case {
            past: Some(("evaluate", &[("seed", Some("7"))])),
            reason: "seed 7 → 0",
            marked: &["seed"],
            ..evaluate
        },
        Case {
            flags: &["--confidence", "0.9"],
            reason: "confidence 0.95 → 0.9",
            marked: &["confidence"],
            ..evaluate
        },
    ] {
        check(&case);
    }
}

#[test]
fn what_changes_no_result_is_no_change() {
    for flags in [&[][..], &["--threads", "1"], &["--combine", "concat"], &["--rehash"]] {
        check(&Case {
            flags,
            ..Case::default()
        });
    }
    for edit in [
        |project: &Project| {
            let file = fs::File::options()
                .write(true)
                .open(project.path("data/train/drum/0.jpg"));
            let an_hour_ago = SystemTime::now() - Duration::from_secs(3600);
            file.unwrap().set_modified(an_hour_ago).unwrap();
        },
        |project: &Project| project.write("data/train/drum/notes.txt", b"other files are counted"),
    ] {
        check(&Case {
            edit: Some(edit),
            ..Case::default()
        });
    }
}

fn rename(project: &Project, from: &str, to: &str) {
    fs::create_dir_all(project.path(to).parent().unwrap()).unwrap();
    fs::rename(project.path(from), project.path(to)).unwrap();
}

fn remove(project: &Project, file: &str) {
    fs::remove_file(project.path(file)).unwrap();
}

#[test]
fn a_change_of_the_images_is_named_and_counted() {
    let cases: [(Edit, &str, u64); 11] = [
        (
            |project| project.write("data/train/drum/9.jpg", &photo(0, 9)),
            "1 image added",
            1,
        ),
        (
            |project| project.write("data/train/drum/also-0.jpg", &photo(0, 0)),
            "1 image added",
            0,
        ),
        (
            |project| project.write("data/test/drum/4.jpg", &photo(0, 9)),
            "1 image changed",
            1,
        ),
        (|project| remove(project, "data/train/harp/3.jpg"), "1 image removed", 0),
        (
            |project| rename(project, "data/train/harp/3.jpg", "data/train/harp/b.jpg"),
            "1 image renamed",
            0,
        ),
        (
            |project| rename(project, "data/train/harp/3.jpg", "data/train/harp/sub/3.jpg"),
            "1 image renamed",
            0,
        ),
        (
            |project| rename(project, "data/train/harp/3.jpg", "data/train/flute/b.jpg"),
            "1 image moved",
            0,
        ),
        (
            |project| rename(project, "data/train/harp/3.jpg", "data/test/harp/3.jpg"),
            "1 image moved",
            0,
        ),
        (
            |project| rename(project, "data/train/harp/3.jpg", "data/train/harp/0.jpg"),
            "1 image changed, 1 removed",
            0,
        ),
        (
            // Two names for one image: which of them is gone does not matter, that one is.
            |project| {
                project.write("data/train/harp/copy.jpg", &photo(2, 3));
                rename(project, "data/train/harp/3.jpg", "data/train/flute/3b.jpg");
            },
            "1 image added, 1 renamed",
            0,
        ),
        (
            |project| {
                for n in 10..13 {
                    project.write(&format!("data/train/drum/{n}.jpg"), &photo(0, n));
                }
                project.write("data/train/drum/0.jpg", &photo(0, 20));
                remove(project, "data/test/harp/4.jpg");
                remove(project, "data/train/harp/1.jpg");
                rename(project, "data/train/flute/0.jpg", "data/train/flute/zero.jpg");
            },
            "3 images added, 1 changed, 2 removed, 1 renamed",
            4,
        ),
    ];
    for (edit, reason, to_embed) in cases {
        check(&Case {
            edit: Some(edit),
            stage: Some("extract"),
            reason,
            kinds: &["images"],
            marked: &["manifest"],
            to_embed: Some(to_embed),
            ..Case::default()
        });
    }
}

#[test]
fn another_luthier_and_another_libtorch_are_named() {
    let version = |stage: &str, version: u32| format!("luthier's {stage} changed, version 0 → {version}");
    for (stage, part, reason, kind) in [
        (
            "extract",
            "version",
            version("extract stage", ExtractConfig::VERSION),
            "version",
        ),
        (
            "extract",
            "extractor version",
            version("extractor", ExtractorConfig::VERSION),
            "version",
        ),
        (
            "features",
            "version",
            version("features stage", FeaturesConfig::VERSION),
            "version",
        ),
        (
            "classify",
            "version",
            version("classify stage", ClassifyConfig::VERSION),
            "version",
        ),
        (
            "evaluate",
            "version",
            version("evaluate stage", EvaluateConfig::VERSION),
            "version",
        ),
        (
            "extract",
            "libtorch",
            format!("libtorch 0 → {}", ExtractorConfig::LIBTORCH),
            "libtorch",
        ),
    ] {
        check(&Case {
            past: Some((stage, &[(part, Some("0"))])),
            stage: Some(stage),
            reason: &reason,
            kinds: &[kind],
            marked: &[part],
            ..Case::default()
        });
    }
    // A setting that an older version did not have comes with the new version.
    check(&Case {
        past: Some(("extract", &[("version", Some("0")), ("decode", None)])),
        stage: Some("extract"),
        reason: &version("extract stage", ExtractConfig::VERSION),
        kinds: &["version"],
        marked: &["version", "decode"],
        ..Case::default()
    });
}

#[test]
fn another_result_of_a_stage_above_is_named_beside_settings() {
    for (stage, parts, flags, reason, kinds, marked) in [
        (
            "features",
            &[("train", Some(OTHER))][..],
            &[][..],
            "training features changed",
            &["input"][..],
            &["train"][..],
        ),
        (
            "features",
            &[("train", Some(OTHER))],
            &["--variance", "0.5"],
            "variance 0.98 → 0.5; training features changed",
            &["setting", "input"],
            &["variance", "train"],
        ),
        (
            "classify",
            &[("projection", Some(OTHER))],
            &["--c", "2"],
            "c auto → 2; projection changed",
            &["setting", "input"],
            &["c", "folds", "seed", "projection"],
        ),
        (
            "evaluate",
            &[("model", Some(OTHER)), ("test", Some(OTHER))],
            &[],
            "model changed; test features changed",
            &["input", "input"],
            &["model", "test"],
        ),
        (
            // The manifest of the last run is not in the cache.
            "extract",
            &[("manifest", Some(OTHER))],
            &[],
            "images changed",
            &["input"],
            &["manifest"],
        ),
    ] {
        check(&Case {
            past: Some((stage, parts)),
            flags,
            stage: Some(stage),
            reason,
            kinds,
            marked,
            ..Case::default()
        });
    }
}

fn object(project: &Project, output: &Output) -> std::path::PathBuf {
    let hex = output.digest.to_string();
    project.path(".luthier/objects").join(&hex[..2]).join(&hex[2..])
}

#[test]
fn a_lost_cache_entry_is_named_whatever_else_changed() {
    for execution in BASE.1.iter().skip(1) {
        let project = copy();
        fs::remove_file(object(&project, &execution.outputs[0])).unwrap();
        let stage = execution.key.stage.as_str();
        let explained = explain(&project, stage, &[]);
        assert_eq!(
            (&explained["status"], &explained["reason"], &explained["reasons"]),
            (&json!("stale"), &json!("cache entry lost"), &json!([{"kind": "lost"}]))
        );
        assert_eq!(marked(&explained), [""; 0]);
    }
    // `verify` forgets the execution with its lost object.
    let project = copy();
    fs::remove_file(object(&project, &BASE.1[3].outputs[0])).unwrap();
    verify(&project, true);
    assert_eq!(
        lines(&plan(&project, &["--variance", "0.5"]))[3],
        "features stale: cache entry lost"
    );
}

#[test]
fn a_stage_that_waits_says_what_changed_of_its_own() {
    let project = copy();
    project.write("data/train/drum/9.jpg", &photo(0, 9));
    let explained = explain(&project, "classify", &["--c", "0.5"]);
    assert_eq!(explained["status"], "stale");
    assert_eq!(explained["reason"], "c auto → 0.5; waits for extract");
    assert_eq!(
        explained["reasons"],
        json!([
            {"kind": "setting", "name": "c", "before": "auto", "now": "0.5"},
            {"kind": "waits", "stage": "extract"}
        ])
    );
    assert_eq!(marked(&explained), ["c", "folds", "seed"]);
    let parts = explained["parts"].as_array().unwrap();
    let to_come: Vec<&Value> = parts.iter().filter(|part| part["differs"].is_null()).collect();
    assert_eq!(
        to_come.iter().map(|part| &part["name"]).collect::<Vec<_>>(),
        ["train", "projection"]
    );
    assert!(
        to_come
            .iter()
            .all(|part| part["now"].is_null() && part["before"].is_string())
    );
}

#[test]
fn images_are_listed_with_what_became_of_them() {
    let project = copy();
    project.write("data/test/drum/9.jpg", &photo(0, 9));
    rename(&project, "data/train/harp/3.jpg", "data/train/flute/b.jpg");
    assert_eq!(
        explain(&project, "scan", &[])["reasons"],
        json!([{
            "kind": "images",
            "added": 1,
            "changed": 0,
            "removed": 0,
            "renamed": 0,
            "moved": 1,
            "renamed_classes": [],
            "files": [
                {"change": "added", "file": "test/drum/9.jpg", "from": null},
                {"change": "moved", "file": "train/flute/b.jpg", "from": "train/harp/3.jpg"},
            ],
        }])
    );
    for n in 10..40 {
        project.write(&format!("data/train/drum/{n}.jpg"), &photo(0, n));
    }
    let listed = |arguments: &[&str]| {
        let ran = project.run(&[arguments, &PIPELINE[1..]].concat()).ok();
        let files = ran.stdout.lines().filter(|line| line.starts_with("  added  "));
        let last = ran.stdout.lines().last().unwrap().to_owned();
        (files.count(), last)
    };
    let moved = "  moved    train/harp/3.jpg → train/flute/b.jpg";
    assert_eq!(
        listed(&["explain", "extract"]),
        (12, "  … and 20 more (-v names all)".into())
    );
    assert_eq!(listed(&["explain", "extract", "-v"]), (31, moved.into()));
    assert_eq!(listed(&["status"]).0, 0);
    assert_eq!(
        listed(&["status", "-v"]),
        (24, "  … and 8 more (--json names all)".into())
    );
}

#[test]
fn status_and_a_dry_run_tell_what_would_run_from_what_would_be_restored() {
    let project = Project::new();
    let dry_run = [&PIPELINE[..], &["--dry-run"]].concat();
    let ran = project.run(&dry_run);
    assert_eq!(ran.status, 3);
    assert_eq!(
        ran.stdout,
        "scan       stale       first run\n\
         extract    stale       first run\n\
         duplicates stale       waits for extract\n\
         features   stale       waits for extract\n\
         classify   stale       waits for extract\n\
         evaluate   stale       waits for extract\n\
         suspects   stale       waits for extract\n\
         neighbours stale       waits for extract\n\
         map        stale       waits for extract\n\
         \n\
         9 stages to run, 18 images to embed\n"
    );
    assert!(!project.path("models").exists());
    // Looking leaves nothing behind that the next look would take for a run.
    assert_eq!(project.run(&dry_run).stdout, ran.stdout);

    let project = copy();
    let status = [&["status"], &PIPELINE[1..], &["--check"]].concat();
    let ran = project.run(&status).ok();
    assert_eq!(ran.stdout.matches("fresh       unchanged\n").count(), STAGES.len());
    assert!(ran.stdout.ends_with("\n\nnothing to run\n"), "{}", ran.stdout);

    project.pipeline(&["--variance", "0.5"]);
    let ran = project.run(&status).ok();
    assert_eq!(
        ran.stdout,
        "scan       fresh       unchanged\n\
         extract    fresh       unchanged\n\
         duplicates fresh       unchanged\n\
         features   restorable  variance 0.5 → 0.98\n\
         classify   restorable  projection changed\n\
         evaluate   restorable  model changed\n\
         suspects   restorable  model changed\n\
         neighbours restorable  mistakes or suspects changed\n\
         map        fresh       unchanged\n\
         \n\
         nothing to run, 5 stages to restore from the cache\n"
    );
    let ran = project.run(&[&status[..], &["--components", "3"]].concat());
    assert_eq!(ran.status, 3);
    assert_eq!(
        ran.stdout,
        "scan       fresh       unchanged\n\
         extract    fresh       unchanged\n\
         duplicates fresh       unchanged\n\
         features   stale       components 3 instead of variance 0.5  under 1 s\n\
         classify   stale       waits for features                    under 1 s\n\
         evaluate   stale       waits for features                    under 1 s\n\
         suspects   stale       waits for features                    under 1 s\n\
         neighbours stale       waits for features                    under 1 s\n\
         map        stale       waits for features                    under 1 s\n\
         \n\
         6 stages to run, under 1 s in all\n"
    );
    // One way of restoring the images is to restore the images.
    let before = fs::read(project.path("data/train/drum/0.jpg")).unwrap();
    project.write("data/train/drum/0.jpg", &photo(0, 9));
    project.pipeline(&[]);
    project.write("data/train/drum/0.jpg", &before);
    let ran = project.run(&status).ok();
    assert_eq!(
        ran.stdout.matches("restorable  1 image changed\n").count(),
        2,
        "{}",
        ran.stdout
    );
}

#[test]
fn times_are_judged_by_earlier_runs_that_compare() {
    let project = copy_with_past(|execution| {
        execution.n_embedded = (execution.key.stage == "extract").then_some(18);
        execution.seconds = match execution.key.stage.as_str() {
            "extract" => 36.0,
            "features" => 5.0,
            "classify" => 120.0,
            _ => 0.25,
        }
    });
    let cache = Cache::open(&project.path(".luthier")).unwrap();
    // Somebody else's run came later: of two that compare, the later one counts. Times of runs are whole seconds.
    std::thread::sleep(Duration::from_secs(1));
    let mut later = BASE.1[3].clone();
    set(&mut later, "variance", Some("0.9"));
    later.seconds = 7.0;
    cache.record(&later).unwrap();
    let used = RunStage {
        stage: "features".to_owned(),
        key: later.key.digest(),
    };
    cache.record_run("another project", &[used], Reuse::default()).unwrap();
    drop(cache);
    let estimates = |flags: &[&str]| -> Vec<Option<f64>> {
        let plan = plan(&project, flags);
        let stages = plan["stages"].as_array().unwrap().iter();
        stages.map(|stage| stage["estimated_seconds"].as_f64()).collect()
    };
    assert_eq!(estimates(&[]), [None; 9]);
    // This cache knows no features: all 18 images go through the network.
    let (features, classify, others) = (Some(7.0), Some(120.0), Some(0.25));
    let all = |extract, features, classify| {
        [
            None, extract, others, features, classify, others, others, others, others,
        ]
    };
    project.write("data/train/drum/9.jpg", &photo(0, 9));
    assert_eq!(estimates(&[]), all(Some(38.0), features, classify));
    assert_eq!(
        estimates(&["--precision", "bf16", "--solver", "smartcore"]),
        all(None, None, None)
    );
    assert_eq!(estimates(&["--c", "1"]), all(Some(38.0), features, None));
    let ran = project.run(&[&PIPELINE[..], &["--dry-run"]].concat());
    assert_eq!(
        ran.stdout,
        "scan       stale       1 image added\n\
         extract    stale       1 image added      about 38 s\n\
         duplicates stale       waits for extract  under 1 s\n\
         features   stale       waits for extract  about 7 s\n\
         classify   stale       waits for extract  about 2 min\n\
         evaluate   stale       waits for extract  under 1 s\n\
         suspects   stale       waits for extract  under 1 s\n\
         neighbours stale       waits for extract  under 1 s\n\
         map        stale       waits for extract  under 1 s\n\
         \n\
         9 stages to run, 19 images to embed, about 3 min in all\n"
    );
    assert_eq!(ran.status, 3);
}

#[test]
fn a_run_records_how_many_images_it_embedded() {
    let project = copy();
    project.write("data/train/drum/9.jpg", &photo(0, 9));
    project.pipeline(&[]);
    let cache = Cache::open(&project.path(".luthier")).unwrap();
    let embedded: Vec<_> = cache.history("extract").unwrap();
    assert_eq!(
        embedded.iter().map(|past| past.n_embedded).collect::<Vec<_>>(),
        [Some(18), Some(1)]
    );
}

#[test]
fn explain_shows_the_parts_of_a_key_beside_those_of_the_nearest_earlier_run() {
    let text = |project: &Project, stage: &str, flags: &[&str]| {
        let ran = project.run(&[&["explain", stage], &PIPELINE[1..], flags].concat()).ok();
        ran.stdout.lines().map(redact).collect::<Vec<_>>()
    };
    let project = copy();
    let (version, evaluate) = (FeaturesConfig::VERSION, EvaluateConfig::VERSION);
    assert_eq!(
        text(&project, "features", &["--variance", "0.5"]),
        [
            "  features           last run   now",
            &format!("  version            {version:<10} {version}"),
            "* variance           0.98       0.5",
            "  whiten             false      false",
            "  solver             faer       faer",
            "  training features  #  #",
            "",
            "features would run: variance 0.98 → 0.5",
        ]
    );
    assert_eq!(
        text(&project, "evaluate", &["--variance", "0.5"]),
        [
            "  evaluate              last run   now",
            &format!("  version               {evaluate:<10} {evaluate}"),
            "  confidence            0.95       0.95",
            "  seed                  0          0",
            "  model                 #  not known yet",
            "  held-out predictions  #  not known yet",
            "  test features         #  #",
            "",
            "evaluate waits for features, and would run unless that gives the same result as before",
        ]
    );
    assert_eq!(
        text(&project, "evaluate", &[]).last().unwrap(),
        "evaluate is fresh: nothing changed since the last run"
    );
    // A project that has not run, in a cache that knows another.
    let other = ["--out", "other"];
    let explained = text(&project, "classify", &[&other[..], &["--c", "2"]].concat());
    assert_eq!(explained[0], "  classify           nearest run  now");
    assert_eq!(explained[2], "* c                  auto         2");
    assert_eq!(explained.last().unwrap(), "classify would run: first run");
    let explained = text(&project, "classify", &other);
    assert_eq!(
        explained.last().unwrap(),
        "classify would be restored from the cache: first run"
    );
    assert!(explained.iter().all(|line| !line.starts_with('*')), "{explained:?}");
    // Nothing to compare with.
    let explained = text(&Project::new(), "classify", &[]);
    assert_eq!(explained[0], "  classify      now");
}
