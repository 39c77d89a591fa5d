//! What `gc` and `prune-images` keep, what `verify` finds, and which layouts are read.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use luthier_artifact::{Digest, FileStat, Key};
use luthier_cache::{
    Cache, Descriptor, DryRun, Error, Execution, GcLimits, GcReport, LastRun, Output, References, Reuse, RunStage,
};

use crate::{DESCRIPTOR, Folder, features, manifest, table};

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
    let key = Key::stage("look", 1).input("manifest", digest).finish();
    let references = References {
        descriptors: Vec::new(),
        images: vec![digest],
    };
    (record(cache, key, &[digest], references), digest)
}

/// Embeds the images of a data set: stores a vector of each descriptor.
fn extract(cache: &Cache, class: &str, descriptors: &[Digest]) -> RunStage {
    let digest = cache.put(&manifest(class)).unwrap();
    for descriptor in descriptors {
        let rows = images().map(|image| (image, vec![0.5; 2048]));
        cache.store_features(descriptor, &rows).unwrap();
    }
    let descriptors: Vec<Descriptor> = descriptors.iter().map(|digest| descriptor(*digest)).collect();
    let key = Key::stage("embed", 1)
        .field("descriptors", descriptors.len())
        .input("manifest", digest)
        .finish();
    let references = References {
        descriptors,
        images: Vec::new(),
    };
    record(cache, key, &[], references)
}

fn descriptor(digest: Digest) -> Descriptor {
    Descriptor {
        digest,
        parts: Key::stage("descriptor", 1).input("digest", digest).finish().parts,
    }
}

/// Records an execution whose outputs have these digests.
fn record(cache: &Cache, key: Key, outputs: &[Digest], references: References) -> RunStage {
    let output = |digest: &Digest| Output {
        name: "output".into(),
        digest: *digest,
    };
    let stage = RunStage {
        stage: key.stage.clone(),
        key: key.digest(),
    };
    cache
        .record(&Execution {
            key,
            outputs: outputs.iter().map(output).collect(),
            seconds: 0.0,
            references,
        })
        .unwrap();
    stage
}

fn runs(runs: usize) -> GcLimits {
    GcLimits {
        runs: Some(runs),
        ..GcLimits::default()
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
fn gc_keeps_the_features_of_every_descriptor_and_drops_those_of_others() {
    let folder = Folder::new();
    let cache = folder.open();
    let [squash, crop, old] = [b"squash", b"crop!!", b"old..."].map(|name| Digest::of(name));
    let (scanned, _) = scan(&cache, "harp");
    extract(&cache, "harp", &[old]);
    let extracted = extract(&cache, "harp", &[squash, crop]);
    cache.record_run("/project", &[scanned, extracted], REUSE).unwrap();
    assert_eq!(cache.gc(&runs(1), DryRun::No).unwrap().features, 2);
    for (descriptor, expected) in [(squash, 2), (crop, 2), (old, 0)] {
        assert_eq!(features(&cache, &descriptor, &images(), 2048).len(), expected);
    }
}

#[test]
fn gc_keeps_what_an_interrupted_run_embedded_until_a_run_has_used_it() {
    let folder = Folder::new();
    let cache = folder.open();
    let descriptor = Digest::of(DESCRIPTOR);
    let (scanned, _) = scan(&cache, "harp");
    cache.begin_run("/project", std::slice::from_ref(&scanned)).unwrap();
    cache.begin_run("/project", std::slice::from_ref(&scanned)).unwrap();
    let rows = images().map(|image| (image, vec![0.5; 2048]));
    cache.store_features(&descriptor, &rows).unwrap();
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
    let digest = Digest::of(DESCRIPTOR);
    let (scanned, manifest) = scan(&cache, "harp");
    let (train, table) = (cache.put_table(&table()).unwrap(), table());
    let images = table.images.iter().zip(table.features.rows());
    let rows: Vec<(Digest, Vec<f32>)> = images.map(|(image, row)| (*image, row.to_vec())).collect();
    cache.store_features(&digest, &rows).unwrap();
    let key = Key::stage("embed", 1).input("manifest", manifest).finish();
    let references = References {
        descriptors: vec![descriptor(digest)],
        images: vec![train],
    };
    let extracted = record(&cache, key, &[train], references);
    cache.record_run("/project", &[scanned, extracted], REUSE).unwrap();
    fs::write(folder.object(manifest), "damaged").unwrap();
    assert_eq!(cache.gc(&runs(1), DryRun::No).unwrap().features, 0);
    assert_eq!(features(&cache, &digest, &table.images, 2).len(), 3);
    assert_eq!(cache.table(&train).unwrap().unwrap().load().unwrap(), table);
}

#[test]
fn gc_follows_the_references_of_a_stage_that_no_one_has_heard_of() {
    let folder = Folder::new();
    let cache = folder.open();
    let [used, unused] = [b"used", b"not."].map(|name| Digest::of(name));
    for digest in [used, unused] {
        let rows = images().map(|image| (image, vec![0.5; 8]));
        cache.store_features(&digest, &rows).unwrap();
    }
    let (list, not_listed) = (manifest("harp"), manifest("lute"));
    let (list, not_listed) = (cache.put(&list).unwrap(), cache.put(&not_listed).unwrap());
    let references = References {
        descriptors: vec![descriptor(used)],
        images: vec![list],
    };
    // The list is no output: only the reference keeps it.
    let stage = record(&cache, Key::stage("dream", 1).finish(), &[], references);
    cache.record_run("/project", &[stage], REUSE).unwrap();
    let report = cache.gc(&runs(1), DryRun::No).unwrap();
    assert_eq!((report.features, report.objects, report.executions), (2, 1, 0));
    assert!(folder.object(list).exists() && !folder.object(not_listed).exists());
    assert_eq!(features(&cache, &used, &images(), 8).len(), 2);
    assert_eq!(features(&cache, &unused, &images(), 8).len(), 0);
}

#[test]
fn stats_show_descriptors_by_the_parts_that_executions_recorded() {
    let folder = Folder::new();
    let cache = folder.open();
    let [known, unknown] = [b"known..", b"unknown"].map(|name| Digest::of(name));
    extract(&cache, "harp", &[known]);
    cache
        .store_features(&unknown, &[(Digest::of(b"image"), vec![0.5; 8])])
        .unwrap();
    let stats = cache.stats().unwrap().descriptors;
    let shown: Vec<_> = stats
        .iter()
        .map(|stats| (stats.descriptor, stats.images, stats.bytes))
        .collect();
    assert_eq!(shown, [(known, 2, 2 * 2048 * 4), (unknown, 1, 8 * 4)]);
    assert_eq!(
        (&stats[0].parts, &stats[1].parts),
        (&descriptor(known).parts, &Vec::new())
    );
}

#[test]
fn verify_takes_nothing_from_a_run_that_embeds_meanwhile() {
    const N_IMAGES: usize = 3000;
    let folder = Folder::new();
    let (cache, of_run) = (folder.open(), folder.open());
    let descriptor = Digest::of(DESCRIPTOR);
    let images: Vec<Digest> = (0..N_IMAGES).map(|n| Digest::of(&n.to_le_bytes())).collect();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            for (n, image) in images.iter().enumerate() {
                of_run
                    .store_features(&descriptor, &[(*image, vec![n as f32; 256])])
                    .unwrap();
            }
        });
        while !run.is_finished() {
            assert_eq!(cache.verify().unwrap().damaged_features, 0);
        }
    });
    assert_eq!(features(&cache, &descriptor, &images, 256).len(), N_IMAGES);
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
    let descriptors = ["first", "second", "third"].map(|name| Digest::of(name.as_bytes()));
    for (n, descriptor) in descriptors.iter().enumerate() {
        let class = format!("class {n}");
        let (scanned, _) = scan(&cache, &class);
        let extracted = extract(&cache, &class, &[*descriptor]);
        cache.record_run(&class, &[scanned, extracted], REUSE).unwrap();
    }
    let all = cache.gc(&GcLimits::default(), DryRun::Yes).unwrap();
    assert_eq!(all, GcReport::default(), "no limit, nothing goes");
    let none = cache.gc(&runs(0), DryRun::Yes).unwrap();
    let total = none.object_bytes + none.feature_bytes;
    let bytes = |bytes| GcLimits {
        bytes: Some(bytes),
        ..GcLimits::default()
    };
    assert_eq!(cache.gc(&bytes(total), DryRun::Yes).unwrap(), GcReport::default());
    let less = cache.gc(&bytes(total - 1), DryRun::No).unwrap();
    assert_eq!((less.features, less.runs, less.objects), (2, 1, 1));
    let counts = descriptors.map(|descriptor| features(&cache, &descriptor, &images(), 2048).len());
    assert_eq!(counts, [0, 2, 2], "the oldest went");
    assert_eq!(cache.gc(&bytes(0), DryRun::No).unwrap().runs, 2);
}

#[test]
fn pruning_forgets_images_that_no_last_run_had_and_no_file_holds() {
    let folder = Folder::new();
    let cache = folder.open();
    let descriptor = Digest::of(DESCRIPTOR);
    let (scanned, _) = scan(&cache, "harp");
    let extracted = extract(&cache, "harp", &[descriptor]);
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
        cache.store_features(&descriptor, &[(digest, vec![0.5; 2048])]).unwrap();
        path
    };
    file("kept.jpg", kept);
    fs::remove_file(file("gone.jpg", gone)).unwrap();
    let planned = cache.prune_images(DryRun::Yes).unwrap();
    assert_eq!(cache.prune_images(DryRun::No).unwrap(), planned);
    assert_eq!((planned.features, planned.files), (1, 1));
    let [a, b] = images();
    let found = cache.feature_digests(&descriptor, &[a, b, kept, gone]).unwrap();
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
    assert_eq!(cache.gc(&GcLimits::default(), DryRun::Yes).unwrap().left_over_files, 3);
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
fn a_cache_of_layout_1_is_refused_and_left_alone() {
    let folder = Folder::new();
    drop(folder.open());
    folder.tamper("DROP TABLE vector; PRAGMA user_version = 1; PRAGMA application_id = 0;");
    let before = fs::read(folder.root.path().join("index.sqlite")).unwrap();
    let error = Cache::open(folder.root.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("index.sqlite: cache has layout 1, this luthier reads layout 2"),
        "{error}"
    );
    assert!(fs::read(folder.root.path().join("index.sqlite")).unwrap() == before);
    assert!(!folder.root.path().join("index.sqlite.damaged").exists());
}
