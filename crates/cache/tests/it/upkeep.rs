//! What `gc` and `prune-images` keep, and what `verify` finds.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use luthier_artifact::{Digest, FileStat, Key, Observer, Task};
use luthier_cache::{
    Cache, Descriptor, DryRun, Error, GcLimits, GcReport, GoneFolders, KeptFolder, LastRun, PruneReport, References,
    Reuse, RunStage,
};

use crate::{DESCRIPTOR, Folder, features, loaded, manifest, put_table, record, runs, table};

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
        cache.gc(&runs(1), DryRun::No, &()).unwrap_err(),
        Error::InUse { .. }
    ));
    drop(other_process);
    let planned = cache.gc(&runs(1), DryRun::Yes, &()).unwrap();
    assert!(folder.object(old).exists());
    assert_eq!(cache.gc(&runs(1), DryRun::No, &()).unwrap(), planned);
    assert_eq!((planned.objects, planned.executions, planned.runs), (1, 1, 1));
    assert!(!folder.object(old).exists() && folder.object(new).exists());
    assert_eq!(cache.gc(&runs(1), DryRun::No, &()).unwrap(), GcReport::default());
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
    assert_eq!(cache.gc(&runs(1), DryRun::No, &()).unwrap().features, 2);
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
    assert_eq!(cache.gc(&runs(0), DryRun::No, &()).unwrap(), GcReport::default());

    cache.record_run("/project", &[scanned], REUSE).unwrap();
    assert_eq!(cache.gc(&runs(0), DryRun::Yes, &()).unwrap().features, 2);
}

#[test]
fn gc_knows_the_images_of_a_run_by_its_tables_if_the_manifest_is_damaged() {
    let folder = Folder::new();
    let cache = folder.open();
    let digest = Digest::of(DESCRIPTOR);
    let (scanned, manifest) = scan(&cache, "harp");
    let (train, table) = (put_table(&cache, &table()).unwrap(), table());
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
    assert_eq!(cache.gc(&runs(1), DryRun::No, &()).unwrap().features, 0);
    assert_eq!(features(&cache, &digest, &table.images, 2).len(), 3);
    assert_eq!(loaded(&cache, &train), table);
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
    let report = cache.gc(&runs(1), DryRun::No, &()).unwrap();
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
    let stats = cache.stats().unwrap();
    let record = &folder.records("executions")[0];
    assert_eq!(stats.record_bytes, fs::metadata(record).unwrap().len());
    let stats = stats.descriptors;
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
            assert_eq!(cache.verify(&()).unwrap().damaged_features, 0);
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
        cache.record_run("/project", &[scanned, extracted], REUSE).unwrap();
    }
    let all = cache.gc(&GcLimits::default(), DryRun::Yes, &()).unwrap();
    assert_eq!(all, GcReport::default(), "no limit, nothing goes");
    let none = cache.gc(&runs(0), DryRun::Yes, &()).unwrap();
    let total = none.object_bytes + none.feature_bytes;
    let bytes = |bytes| GcLimits {
        bytes: Some(bytes),
        ..GcLimits::default()
    };
    assert_eq!(cache.gc(&bytes(total), DryRun::Yes, &()).unwrap(), GcReport::default());
    let less = cache.gc(&bytes(total - 1), DryRun::No, &()).unwrap();
    assert_eq!((less.features, less.runs, less.objects), (2, 1, 1));
    let counts = descriptors.map(|descriptor| features(&cache, &descriptor, &images(), 2048).len());
    assert_eq!(counts, [0, 2, 2], "the oldest went");
    assert_eq!(cache.gc(&bytes(0), DryRun::No, &()).unwrap().runs, 2);
}

/// A data folder whose files are known to the cache, with features of each.
struct Photos<'a> {
    cache: &'a Cache,
    folder: PathBuf,
}

impl<'a> Photos<'a> {
    fn new(cache: &'a Cache, folder: PathBuf, names: &[&str]) -> Self {
        let photos = Photos { cache, folder };
        for name in names {
            let path = photos.folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            let past = SystemTime::now() - Duration::from_secs(100);
            let file = fs::File::options().append(true).open(&path).unwrap();
            file.set_modified(past).unwrap();
            let known = [(*name, FileStat::of(&path).unwrap(), image(name))];
            cache
                .remember_files(&photos.folder, known.into_iter(), SystemTime::now())
                .unwrap();
            let rows = [(image(name), vec![0.5; 8])];
            cache.store_features(&Digest::of(DESCRIPTOR), &rows).unwrap();
        }
        photos
    }

    /// Prunes, and then tells which images have features.
    #[track_caller]
    fn check(&self, gone_folders: GoneFolders, names: &[&str], expected: &[bool]) -> PruneReport {
        let planned = self.cache.prune_images(DryRun::Yes, gone_folders, &()).unwrap();
        let done = self.cache.prune_images(DryRun::No, gone_folders, &()).unwrap();
        assert_eq!(done, planned);
        let images: Vec<Digest> = names.iter().map(|name| image(name)).collect();
        let found = self.cache.feature_digests(&Digest::of(DESCRIPTOR), &images).unwrap();
        let is_known: Vec<bool> = found.iter().map(Option::is_some).collect();
        assert_eq!(is_known, expected, "{names:?}");
        assert_eq!(done.features as usize, expected.iter().filter(|known| !**known).count());
        done
    }
}

/// The image in a file.
fn image(name: &str) -> Digest {
    Digest::of(format!("image {name}").as_bytes())
}

fn kept(folder: &Path, files: u64) -> Vec<KeptFolder> {
    let folder = folder.to_owned();
    vec![KeptFolder { folder, files }]
}

#[test]
fn pruning_forgets_images_that_no_last_run_had_and_no_file_holds() {
    let folder = Folder::new();
    let cache = folder.open();
    let (scanned, _) = scan(&cache, "harp");
    let extracted = extract(&cache, "harp", &[Digest::of(DESCRIPTOR)]);
    cache.record_run("/project", &[scanned, extracted], REUSE).unwrap();
    let names = ["harp/kept.jpg", "harp/gone.jpg"];
    let photos = Photos::new(&cache, folder.root.path().join("data"), &names);
    fs::remove_file(photos.folder.join(names[1])).unwrap();
    let report = photos.check(GoneFolders::Keep, &names, &[true, false]);
    assert_eq!((report.files, report.kept_folders), (1, Vec::new()));
    let of_run = cache.feature_digests(&Digest::of(DESCRIPTOR), &images()).unwrap();
    assert!(of_run.iter().all(Option::is_some));
}

#[test]
fn pruning_takes_no_unplugged_drive_for_deleted_photographs() {
    let names = ["harp/1.jpg", "lute/2.jpg"];
    // What is left of the data folder, and of the folder above it, which is the drive's.
    let cases: [fn(&Path); 4] = [
        |data| fs::remove_dir_all(data.parent().unwrap()).unwrap(),
        |data| fs::remove_dir_all(data).unwrap(),
        |data| {
            fs::remove_dir_all(data).unwrap();
            fs::create_dir(data).unwrap();
        },
        |data| {
            fs::remove_dir_all(data).unwrap();
            fs::create_dir_all(data.join("harp")).unwrap();
            fs::write(data.join(".directory"), "icon").unwrap();
        },
    ];
    for (place, unplug) in cases.into_iter().enumerate() {
        let folder = Folder::new();
        let cache = folder.open();
        let outside = tempfile::tempdir().unwrap();
        let photos = Photos::new(&cache, outside.path().join("drive/data"), &names);
        unplug(&photos.folder);
        let report = photos.check(GoneFolders::Keep, &names, &[true, true]);
        assert_eq!(
            (report.files, report.kept_folders),
            (0, kept(&photos.folder, 2)),
            "case {place}"
        );
        let report = photos.check(GoneFolders::Forget, &names, &[false, false]);
        assert_eq!((report.files, report.kept_folders), (2, Vec::new()), "case {place}");
        let report = cache.prune_images(DryRun::No, GoneFolders::Keep, &()).unwrap();
        assert_eq!(report, PruneReport::default(), "case {place}");
    }
}

#[test]
fn pruning_takes_a_deleted_class_for_deleted_photographs() {
    let folder = Folder::new();
    let cache = folder.open();
    let names = ["harp/1.jpg", "lute/2.jpg", "lute/3.jpg"];
    let outside = tempfile::tempdir().unwrap();
    let photos = Photos::new(&cache, outside.path().join("data"), &names);
    fs::remove_dir_all(photos.folder.join("lute")).unwrap();
    let report = photos.check(GoneFolders::Keep, &names, &[true, false, false]);
    assert_eq!((report.files, report.kept_folders), (2, Vec::new()));
}

#[cfg(unix)]
#[test]
fn pruning_keeps_what_links_to_an_unplugged_drive_lead_to() {
    let folder = Folder::new();
    let cache = folder.open();
    let outside = tempfile::tempdir().unwrap();
    let (data, drive) = (outside.path().join("data"), outside.path().join("drive"));
    for folder in [&data, &drive] {
        fs::create_dir_all(folder).unwrap();
    }
    std::os::unix::fs::symlink(&drive, data.join("lute")).unwrap();
    let names = ["harp/1.jpg", "harp/2.jpg", "lute/3.jpg"];
    let photos = Photos::new(&cache, data, &names);
    fs::remove_file(photos.folder.join(names[1])).unwrap();
    for unplug in [
        |drive: &Path| fs::remove_file(drive.join("3.jpg")),
        |drive: &Path| fs::remove_dir(drive),
    ] {
        unplug(&drive).unwrap();
        let images: Vec<Digest> = names.iter().map(|name| image(name)).collect();
        let report = cache.prune_images(DryRun::No, GoneFolders::Keep, &()).unwrap();
        assert_eq!(report.kept_folders, kept(&photos.folder.join("lute"), 1));
        let found = cache.feature_digests(&Digest::of(DESCRIPTOR), &images).unwrap();
        assert!(found[0].is_some() && found[1].is_none() && found[2].is_some());
    }
}

#[test]
fn pruning_keeps_the_images_of_files_that_changed_or_cannot_be_looked_at() {
    let folder = Folder::new();
    let cache = folder.open();
    let outside = tempfile::tempdir().unwrap();
    let too_long = "x".repeat(300);
    let names = ["harp/touched.jpg", "harp/other.jpg"];
    let photos = Photos::new(&cache, outside.path().join("data"), &names);
    fs::write(photos.folder.join(names[0]), "perhaps the same image").unwrap();
    // The system refuses to look at a name of this length, for every user.
    let stat = FileStat::of(&photos.folder.join(names[1])).unwrap();
    let file = [(too_long.as_str(), stat, image("too long"))];
    cache
        .remember_files(&photos.folder, file.into_iter(), SystemTime::now())
        .unwrap();
    let rows = [(image("too long"), vec![0.5; 8])];
    cache.store_features(&Digest::of(DESCRIPTOR), &rows).unwrap();
    let names = [names[0], names[1], "too long"];
    let report = photos.check(GoneFolders::Keep, &names, &[true, true, true]);
    assert_eq!((report.files, report.kept_folders), (0, Vec::new()));
}

/// Says whether the user interrupts, each time that it is asked.
struct Asked<F>(F);

impl<F: Fn() -> bool + Sync> Observer for Asked<F> {
    fn task(&self, _: &str, _: u64) -> Box<dyn Task + '_> {
        Box::new(())
    }
    fn is_interrupted(&self) -> bool {
        (self.0)()
    }
}

#[test]
fn verify_gc_and_pruning_end_when_the_user_interrupts_and_lose_nothing() {
    let expected_features = 2;
    let mut n_interrupted = 0;
    for after in 0..12 {
        let folder = Folder::new();
        let cache = folder.open();
        let [used, unused] = [b"used", b"not."].map(|name| Digest::of(name));
        extract(&cache, "lute", &[unused]);
        let (scanned, list) = scan(&cache, "harp");
        let extracted = extract(&cache, "harp", &[used]);
        cache
            .record_run("/project", &[scanned.clone(), extracted], REUSE)
            .unwrap();
        let observer = || {
            let n_asked = AtomicUsize::new(0);
            Asked(move || n_asked.fetch_add(1, Ordering::Relaxed) >= after)
        };
        let outcomes = [
            cache.verify(&observer()).map(drop),
            cache.gc(&runs(1), DryRun::No, &observer()).map(drop),
            cache.prune_images(DryRun::No, GoneFolders::Keep, &observer()).map(drop),
        ];
        for outcome in outcomes {
            match outcome {
                Ok(()) => assert_ne!(after, 0, "it does not ask at all"),
                Err(Error::Interrupted) => n_interrupted += 1,
                Err(error) => panic!("{error}"),
            }
        }
        // The lock is free again, and what a run used is there.
        drop(cache);
        let cache = folder.open();
        assert!(folder.object(list).exists() && cache.execution(&scanned.key).unwrap().is_some());
        assert_eq!(features(&cache, &used, &images(), 2048).len(), expected_features);
        cache.gc(&runs(1), DryRun::No, &()).unwrap();
        assert_eq!(features(&cache, &used, &images(), 2048).len(), expected_features);
        assert_eq!(features(&cache, &unused, &images(), 2048).len(), 0);
        assert_eq!(cache.verify(&()).unwrap().damaged_features, 0);
    }
    assert!(n_interrupted >= 6, "{n_interrupted} interrupted");
}

#[test]
fn unfinished_files_of_dead_processes_are_removed_by_who_is_alone() {
    let folder = Folder::new();
    let cache = folder.open();
    let object = folder.object(scan(&cache, "harp").1);
    let left_over = [
        folder.root.path().join(".luthier-unfinished-abc"),
        object.with_file_name(".luthier-unfinished-def"),
        folder.root.path().join("segments/.luthier-unfinished-ghi"),
        folder.records("executions")[0].with_file_name(".luthier-unfinished-jkl"),
    ];
    fs::create_dir_all(folder.root.path().join("segments")).unwrap();
    for path in &left_over {
        fs::write(path, "half").unwrap();
    }
    let other_process = folder.open();
    assert_eq!(cache.verify(&()).unwrap().left_over_files, None);
    assert!(left_over.iter().all(|path| path.exists()), "they may be the other's");
    drop(other_process);
    assert_eq!(
        cache
            .gc(&GcLimits::default(), DryRun::Yes, &())
            .unwrap()
            .left_over_files,
        4
    );
    assert_eq!(cache.verify(&()).unwrap().left_over_files, Some(4));
    assert!(left_over.iter().all(|path| !path.exists()) && object.exists());
}

#[test]
fn gc_after_one_that_was_killed_before_it_removed_loses_nothing() {
    let folder = Folder::new();
    let [used, unused] = [b"used", b"not."].map(|name| Digest::of(name));
    {
        let cache = folder.open();
        extract(&cache, "lute", &[unused]);
        let (scanned, _) = scan(&cache, "harp");
        let extracted = extract(&cache, "harp", &[used]);
        cache.record_run("/project", &[scanned, extracted], REUSE).unwrap();
    }
    let before: Vec<(PathBuf, Vec<u8>)> = folder
        .segments()
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    folder.open().gc(&runs(1), DryRun::No, &()).unwrap();
    for n_gcs in 0..3 {
        // What it has made is there, and what it has made that of.
        before.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
        let cache = folder.open();
        cache.gc(&runs(1), DryRun::No, &()).unwrap();
        assert_eq!(features(&cache, &used, &images(), 2048).len(), 2, "{n_gcs}");
        assert_eq!(features(&cache, &unused, &images(), 2048).len(), 0, "{n_gcs}");
        assert_eq!(folder.segments().len(), 1, "{n_gcs}");
    }
}

#[test]
fn without_the_records_of_runs_nothing_is_taken_for_unused() {
    let folder = Folder::new();
    let descriptor = Digest::of(DESCRIPTOR);
    {
        let cache = folder.open();
        let (scanned, _) = scan(&cache, "harp");
        let extracted = extract(&cache, "harp", &[descriptor]);
        cache.record_run("/project", &[scanned, extracted], REUSE).unwrap();
    }
    let cache = folder.open();
    let record = folder.records("runs").pop().unwrap();
    fs::write(record, "damaged").unwrap();
    let refused = cache.gc(&runs(1), DryRun::No, &());
    assert!(matches!(refused, Err(Error::Lost { .. })), "{refused:?}");
    cache.verify(&()).unwrap();
    // And where the stages that a run used are not known.
    let stage = RunStage {
        stage: "extract".to_owned(),
        key: Digest::of(b"a key of which nothing is recorded"),
    };
    cache.record_run("/project", &[stage], REUSE).unwrap();
    let refused = cache.gc(&runs(1), DryRun::No, &());
    assert!(matches!(refused, Err(Error::NothingRecorded { .. })), "{refused:?}");
    fs::remove_dir_all(folder.root.path().join("runs")).unwrap();
    for refused in [
        cache.gc(&runs(1), DryRun::No, &()).map(drop),
        cache.prune_images(DryRun::No, GoneFolders::Forget, &()).map(drop),
    ] {
        assert!(matches!(refused, Err(Error::NothingRecorded { .. })), "{refused:?}");
    }
    assert_eq!(features(&cache, &descriptor, &images(), 2048).len(), 2);
    assert_eq!(cache.gc(&runs(0), DryRun::No, &()).unwrap().features, 2);
}
