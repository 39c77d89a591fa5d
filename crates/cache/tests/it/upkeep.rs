//! What `gc` and `prune-images` keep, what `verify` finds, and which layouts are read.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use luthier_artifact::{Digest, FileStat, Key};
use luthier_cache::{Cache, DryRun, Error, Execution, GcReport, Keep, LastRun, Output, Reuse, RunStage};

use rusqlite::Connection;

use crate::{EXTRACTOR, Folder, features, manifest, table};

const REUSE: Reuse = Reuse {
    stages_reused: 3,
    stages_run: 2,
    images_reused: 1,
    images_embedded: 1,
};

/// The images of [`manifest`].
fn images() -> [Digest; 2] {
    [Digest::of(b"a.jpg"), Digest::of(b"b.jpg")]
}

/// Scans a data set of one class: stores its manifest and gives the stage's key.
fn scan(cache: &Cache, class: &str) -> (RunStage, Digest) {
    let digest = cache.put(&manifest(class)).unwrap();
    let key = Key::stage("scan", 1).input("manifest", digest).finish();
    let outputs = vec![Output {
        name: "scan".into(),
        digest,
    }];
    let stage = RunStage {
        stage: "scan".into(),
        key: key.digest(),
    };
    let execution = Execution {
        key,
        outputs,
        seconds: 0.0,
    };
    cache.record(&execution).unwrap();
    (stage, digest)
}

/// Embeds the images of a data set with an extractor.
fn extract(cache: &Cache, class: &str, extractors: &[Digest]) -> RunStage {
    let digest = cache.put(&manifest(class)).unwrap();
    for extractor in extractors {
        let rows = images().map(|image| (image, vec![0.5; 2048]));
        cache.store_features(extractor, &rows).unwrap();
    }
    let names: Vec<String> = extractors.iter().map(Digest::to_string).collect();
    let key = Key::stage("extract", 1)
        .field("views", "squash, crop")
        .field("extractor", names.join(" "))
        .input("manifest", digest)
        .finish();
    let stage = RunStage {
        stage: "extract".into(),
        key: key.digest(),
    };
    let execution = Execution {
        key,
        outputs: Vec::new(),
        seconds: 0.0,
    };
    cache.record(&execution).unwrap();
    stage
}

fn runs(runs: usize) -> Keep {
    Keep {
        runs: Some(runs),
        ..Keep::default()
    }
}

#[test]
fn gc_keeps_what_the_last_runs_used_and_waits_for_others_to_leave() {
    let folder = Folder::new();
    let cache = folder.open();
    let run = |class| {
        let (stage, digest) = scan(&cache, class);
        cache.record_run("/project", &[stage], REUSE).unwrap();
        digest
    };
    let (old, new) = (run("harp"), run("lute"));

    let other_process = folder.open();
    assert!(matches!(
        cache.gc(&runs(1), DryRun::No).unwrap_err(),
        Error::InUse { .. }
    ));
    drop(other_process);
    let planned = cache.gc(&runs(1), DryRun::Yes).unwrap();
    assert!(folder.object(old).exists());
    assert_eq!(cache.gc(&runs(1), DryRun::No).unwrap(), planned);
    assert_eq!((planned.objects, planned.executions, planned.runs), (1, 1, 1));
    assert!(!folder.object(old).exists() && folder.object(new).exists());
    assert_eq!(cache.gc(&runs(1), DryRun::No).unwrap(), GcReport::default());
}

#[test]
fn gc_keeps_the_features_of_every_view_and_drops_those_of_other_extractors() {
    let folder = Folder::new();
    let cache = folder.open();
    let [squash, crop, old] = [b"squash", b"crop!!", b"old..."].map(|name| Digest::of(name));
    let (scanned, _) = scan(&cache, "harp");
    extract(&cache, "harp", &[old]);
    let extracted = extract(&cache, "harp", &[squash, crop]);
    cache.record_run("/project", &[scanned, extracted], REUSE).unwrap();
    assert_eq!(cache.gc(&runs(1), DryRun::No).unwrap().features, 2);
    for (extractor, expected) in [(squash, 2), (crop, 2), (old, 0)] {
        assert_eq!(features(&cache, &extractor, &images(), 2048).len(), expected);
    }
}

#[test]
fn gc_keeps_what_an_interrupted_run_embedded_until_a_run_has_used_it() {
    let folder = Folder::new();
    let cache = folder.open();
    let extractor = Digest::of(EXTRACTOR);
    let (scanned, _) = scan(&cache, "harp");
    cache.begin_run("/project", std::slice::from_ref(&scanned)).unwrap();
    cache.begin_run("/project", std::slice::from_ref(&scanned)).unwrap();
    let rows = images().map(|image| (image, vec![0.5; 2048]));
    cache.store_features(&extractor, &rows).unwrap();
    assert_eq!(cache.stats().unwrap().runs, 1, "it was begun twice, and is one");
    assert_eq!(cache.last_run("/project").unwrap(), [], "it has not finished");
    assert_eq!(cache.gc(&runs(0), DryRun::No).unwrap(), GcReport::default());

    cache.record_run("/project", &[scanned], REUSE).unwrap();
    assert_eq!(cache.gc(&runs(0), DryRun::Yes).unwrap().features, 2);
}

#[test]
fn gc_knows_the_images_of_a_run_by_its_tables_if_the_manifest_is_damaged() {
    let folder = Folder::new();
    let cache = folder.open();
    let extractor = Digest::of(EXTRACTOR);
    let (scanned, manifest) = scan(&cache, "harp");
    let (train, table) = (cache.put_table(&table()).unwrap(), table());
    let images = table.images.iter().zip(table.features.rows());
    let rows: Vec<(Digest, Vec<f32>)> = images.map(|(image, row)| (*image, row.to_vec())).collect();
    cache.store_features(&extractor, &rows).unwrap();
    let key = Key::stage("extract", 1)
        .field("extractor", extractor)
        .input("manifest", manifest)
        .finish();
    let extracted = RunStage {
        stage: "extract".into(),
        key: key.digest(),
    };
    let outputs = vec![Output {
        name: "train".into(),
        digest: train,
    }];
    let seconds = 0.0;
    cache.record(&Execution { key, outputs, seconds }).unwrap();
    cache.record_run("/project", &[scanned, extracted], REUSE).unwrap();
    fs::write(folder.object(manifest), "damaged").unwrap();
    assert_eq!(cache.gc(&runs(1), DryRun::No).unwrap().features, 0);
    assert_eq!(features(&cache, &extractor, &table.images, 2).len(), 3);
    assert_eq!(cache.table(&train).unwrap().unwrap().load().unwrap(), table);
}

#[test]
fn verify_takes_nothing_from_a_run_that_embeds_meanwhile() {
    const N_IMAGES: usize = 3000;
    let folder = Folder::new();
    let (cache, of_run) = (folder.open(), folder.open());
    let extractor = Digest::of(EXTRACTOR);
    let images: Vec<Digest> = (0..N_IMAGES).map(|n| Digest::of(&n.to_le_bytes())).collect();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            for (n, image) in images.iter().enumerate() {
                of_run
                    .store_features(&extractor, &[(*image, vec![n as f32; 256])])
                    .unwrap();
            }
        });
        while !run.is_finished() {
            assert_eq!(cache.verify().unwrap().damaged_features, 0);
        }
    });
    assert_eq!(features(&cache, &extractor, &images, 256).len(), N_IMAGES);
}

#[test]
fn a_run_like_the_last_is_the_last_used_again() {
    let folder = Folder::new();
    let cache = folder.open();
    let (stage, _) = scan(&cache, "harp");
    cache
        .record_run("/project", std::slice::from_ref(&stage), REUSE)
        .unwrap();
    let spared = Reuse {
        stages_reused: 5,
        ..Reuse::default()
    };
    cache.record_run("/project", &[stage], spared).unwrap();
    let stats = cache.stats().unwrap();
    assert_eq!(stats.runs, 1);
    let LastRun { project, reuse, .. } = stats.last_run.unwrap();
    assert_eq!((project.as_str(), reuse), ("/project", spared));
}

#[test]
fn gc_by_size_keeps_what_was_used_last() {
    let folder = Folder::new();
    let cache = folder.open();
    let extractors = ["first", "second", "third"].map(|name| Digest::of(name.as_bytes()));
    for (n, extractor) in extractors.iter().enumerate() {
        let class = format!("class {n}");
        let (scanned, _) = scan(&cache, &class);
        let extracted = extract(&cache, &class, &[*extractor]);
        cache.record_run(&class, &[scanned, extracted], REUSE).unwrap();
    }
    let all = cache.gc(&Keep::default(), DryRun::Yes).unwrap();
    assert_eq!(all, GcReport::default(), "no limit, nothing goes");
    let none = cache.gc(&runs(0), DryRun::Yes).unwrap();
    let total = none.object_bytes + none.feature_bytes;
    let bytes = |bytes| Keep {
        bytes: Some(bytes),
        ..Keep::default()
    };
    assert_eq!(cache.gc(&bytes(total), DryRun::Yes).unwrap(), GcReport::default());
    let less = cache.gc(&bytes(total - 1), DryRun::No).unwrap();
    assert_eq!((less.features, less.runs, less.objects), (2, 1, 1));
    let counts = extractors.map(|extractor| features(&cache, &extractor, &images(), 2048).len());
    assert_eq!(counts, [0, 2, 2], "the oldest went");
    assert_eq!(cache.gc(&bytes(0), DryRun::No).unwrap().runs, 2);
}

#[test]
fn pruning_forgets_images_that_no_last_run_had_and_no_file_holds() {
    let folder = Folder::new();
    let cache = folder.open();
    let extractor = Digest::of(EXTRACTOR);
    let (scanned, _) = scan(&cache, "harp");
    let extracted = extract(&cache, "harp", &[extractor]);
    cache.record_run("/project", &[scanned, extracted], REUSE).unwrap();
    let (kept, gone) = (Digest::of(b"still a file"), Digest::of(b"no file any more"));
    let file = |name: &str, digest| {
        let path: PathBuf = folder.root.path().join(name);
        fs::write(&path, "").unwrap();
        let past = std::time::SystemTime::now() - std::time::Duration::from_secs(100);
        fs::File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .set_modified(past)
            .unwrap();
        let stat = FileStat::of(&path).unwrap();
        let file = [(name, stat, digest)].into_iter();
        cache
            .remember_files(folder.root.path(), file, SystemTime::now())
            .unwrap();
        cache.store_features(&extractor, &[(digest, vec![0.5; 2048])]).unwrap();
        path
    };
    file("kept.jpg", kept);
    fs::remove_file(file("gone.jpg", gone)).unwrap();
    let planned = cache.prune_images(DryRun::Yes).unwrap();
    assert_eq!(cache.prune_images(DryRun::No).unwrap(), planned);
    assert_eq!((planned.features, planned.files), (1, 1));
    let [a, b] = images();
    let found = cache.feature_digests(&extractor, &[a, b, kept, gone]).unwrap();
    let is_known: Vec<bool> = found.iter().map(Option::is_some).collect();
    assert_eq!(is_known, [true, true, true, false]);
}

#[test]
fn unfinished_files_of_dead_processes_are_removed_by_who_is_alone() {
    let folder = Folder::new();
    let cache = folder.open();
    let object = folder.object(cache.put(&manifest("harp")).unwrap());
    let left_over = [
        folder.root.path().join(".luthier-unfinished-abc"),
        object.with_file_name(".luthier-unfinished-def"),
        folder.root.path().join("index.sqlite.new"),
    ];
    for path in &left_over {
        fs::write(path, "half").unwrap();
    }
    let other_process = folder.open();
    assert_eq!(cache.verify().unwrap().left_over_files, None);
    assert!(left_over.iter().all(|path| path.exists()), "they may be the other's");
    drop(other_process);
    assert_eq!(cache.gc(&Keep::default(), DryRun::Yes).unwrap().left_over_files, 3);
    assert_eq!(cache.verify().unwrap().left_over_files, Some(3));
    assert!(left_over.iter().all(|path| !path.exists()) && object.exists());
}

#[test]
fn a_cache_of_a_newer_layout_is_refused() {
    let folder = Folder::new();
    drop(folder.open());
    folder.tamper("PRAGMA user_version = 99; PRAGMA application_id = 1280660579;");
    let error = Cache::open(folder.root.path()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Layout {
                expected: 2,
                found: 99,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_cache_of_layout_1_keeps_its_features_and_runs() {
    let folder = Folder::new();
    let cache = folder.open();
    let extractor = Digest::of(EXTRACTOR);
    let (scanned, _) = scan(&cache, "harp");
    extract(&cache, "harp", &[extractor]);
    drop(cache);
    folder.tamper(&format!(
        "DROP TABLE run;
         DROP TABLE export;
         DROP TABLE feature;
         DROP TABLE vector;
         ALTER TABLE execution DROP COLUMN embedded;
         CREATE TABLE feature (
             extractor BLOB NOT NULL, image BLOB NOT NULL, vector BLOB NOT NULL, checksum BLOB NOT NULL,
             UNIQUE (extractor, image)
         );
         CREATE TABLE run (id INTEGER PRIMARY KEY AUTOINCREMENT, project TEXT NOT NULL, time INTEGER NOT NULL);
         CREATE TABLE run_stage (
             run   INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
             stage TEXT NOT NULL,
             key   BLOB NOT NULL,
             PRIMARY KEY (run, stage)
         ) WITHOUT ROWID;
         CREATE TABLE export (path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, source BLOB NOT NULL) WITHOUT ROWID;
         INSERT INTO run VALUES (7, '/project', 1700000000);
         INSERT INTO run_stage VALUES (7, 'scan', x'{}');
         PRAGMA application_id = 0;
         PRAGMA user_version = 1;",
        scanned.key
    ));
    let connection = Connection::open(folder.root.path().join("index.sqlite")).unwrap();
    for (place, image) in images().iter().enumerate() {
        let vector: Vec<u8> = [0.5_f32.to_le_bytes(); 2048].concat();
        let part = |bytes: &[u8]| [&(bytes.len() as u64).to_le_bytes(), bytes].concat();
        let sum = Digest::of(&[part(extractor.as_bytes()), part(image.as_bytes()), part(&vector)].concat());
        // The second one is damaged.
        let sum = &sum.as_bytes()[..16 - place];
        connection
            .execute(
                "INSERT INTO feature VALUES (?, ?, ?, ?)",
                rusqlite::params![extractor.as_bytes(), image.as_bytes(), vector, sum],
            )
            .unwrap();
    }
    drop(connection);
    let cache = folder.open();
    assert_eq!(features(&cache, &extractor, &images(), 2048).len(), 1);
    assert_eq!(cache.last_run("/project").unwrap(), [scanned]);
    assert_eq!(cache.stats().unwrap().last_run.unwrap().time, 1_700_000_000);
    assert_eq!(cache.verify().unwrap().damaged_records, 0);
    drop(cache);
    assert!(!folder.root.path().join("index.sqlite.damaged").exists());
    assert_eq!(features(&folder.open(), &extractor, &images(), 2048).len(), 1);
}
