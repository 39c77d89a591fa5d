//! Damage anywhere in the cache is a miss: never another answer, never a panic, and never more lost than what was hit.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use luthier_artifact::{Artifact, Digest, FeatureTable, FileStat, Key, Manifest};
use luthier_cache::{Cache, Descriptor, Error, Execution, Output, References, Reuse, RunStage};
use luthier_testing::{Need, has_run_unprivileged};
use ndarray::Array2;
use tempfile::TempDir;

use crate::{DESCRIPTOR, Folder, STAT, features, load, loaded, manifest, put_table, table};

const N_IMAGES: usize = 12;
const WIDTH: usize = 2048;

/// The same numbers every time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 += 1;
        let bytes = *Digest::of(&self.0.to_le_bytes()).as_bytes().first_chunk().unwrap();
        (u64::from_le_bytes(bytes) % bound as u64) as usize
    }
}

/// What a run stores, and what it asks later. Equal to itself however often it is made.
struct Truth {
    descriptor: Digest,
    features: Vec<(Digest, Vec<f32>)>,
    manifests: [Manifest; 2],
    table: FeatureTable,
    executions: Vec<Execution>,
    runs: [Vec<RunStage>; 2],
    file: (&'static str, FileStat, Digest),
    export: PathBuf,
    /// Where the export lies.
    _outside: TempDir,
}

const PROJECT: &str = "/project";
const PHOTOS: &str = "/photos";

impl Truth {
    fn new() -> Self {
        let outside = tempfile::tempdir().unwrap();
        let export = outside.path().join("export");
        fs::write(&export, "for the user").unwrap();
        let image = |n: usize| Digest::of(format!("image {n}").as_bytes());
        let row = |n: usize| (0..WIDTH).map(|column| (n * WIDTH + column) as f32 / 7.0).collect();
        let features: Vec<(Digest, Vec<f32>)> = (0..N_IMAGES).map(|n| (image(n), row(n))).collect();
        let manifests = [manifest("harp"), manifest("lute")];
        let table = FeatureTable {
            classes: vec!["harp".into()],
            extractor: table().extractor,
            labels: vec![0; N_IMAGES],
            images: features.iter().map(|(image, _)| *image).collect(),
            features: Array2::from_shape_fn((N_IMAGES, WIDTH), |(row, column)| features[row].1[column]),
        };
        let execution = |stage: &str, setting: usize, digest: Digest| Execution {
            key: Key::stage(stage, 1).field("setting", setting).finish(),
            outputs: vec![Output {
                name: stage.to_owned(),
                digest,
            }],
            seconds: 1.5,
            n_embedded: None,
            references: References {
                descriptors: vec![Descriptor {
                    digest: Digest::of(DESCRIPTOR),
                    parts: Key::stage("descriptor", 1).finish().parts,
                }],
                images: vec![digest],
            },
        };
        let executions = vec![
            execution("scan", 1, manifests[0].digest()),
            execution("scan", 2, manifests[1].digest()),
            execution("extract", 1, table.rows().digest()),
        ];
        let stage = |execution: &Execution| RunStage {
            stage: execution.key.stage.clone(),
            key: execution.key.digest(),
        };
        let runs = [vec![stage(&executions[0])], executions[1..].iter().map(stage).collect()];
        Truth {
            descriptor: Digest::of(DESCRIPTOR),
            features,
            manifests,
            table,
            executions,
            runs,
            file: ("harp/a.jpg", STAT, image(0)),
            export,
            _outside: outside,
        }
    }

    fn store(&self, cache: &Cache) {
        self.try_store(cache).unwrap();
    }

    fn try_store(&self, cache: &Cache) -> Result<(), Error> {
        for manifest in &self.manifests {
            cache.put(manifest)?;
        }
        cache.store_features(&self.descriptor, &self.features)?;
        put_table(cache, &self.table)?;
        self.executions
            .iter()
            .try_for_each(|execution| cache.record(execution))?;
        for run in &self.runs {
            cache.record_run(PROJECT, run, Reuse::default())?;
        }
        cache.remember_files(Path::new(PHOTOS), [self.file].into_iter(), SystemTime::now())?;
        let stat = FileStat::of(&self.export).unwrap();
        cache.remember_export(&self.export, &stat, &self.table.rows().digest())
    }

    /// Asks what a run asks. Every answer is the stored one or none; the result counts those that are none.
    fn count_misses(&self, cache: &Cache, place: &str) -> usize {
        let mut n_misses = 0;
        let mut check = |is_miss: bool, is_right: bool, what: &str| {
            assert!(is_miss || is_right, "{place}: {what}");
            n_misses += usize::from(is_miss);
        };
        for manifest in &self.manifests {
            let found: Option<Manifest> = cache.get(&manifest.digest()).unwrap();
            check(found.is_none(), found.as_ref() == Some(manifest), "manifest");
        }
        let other: Option<Manifest> = cache.get(&Digest::of(b"another")).unwrap();
        assert_eq!(other, None, "{place}");
        let found = match cache.table(&self.table.rows().digest()).unwrap().map(load) {
            Some(Err(Error::Lost { .. })) | None => None,
            Some(table) => Some(table.unwrap()),
        };
        check(found.is_none(), found.as_ref() == Some(&self.table), "table");
        let images: Vec<Digest> = self.features.iter().map(|(image, _)| *image).collect();
        let found = features(cache, &self.descriptor, &images, WIDTH);
        for (image, row) in &self.features {
            let found = found.get(image);
            check(found.is_none(), found == Some(row), "features");
        }
        let of_another = cache.feature_digests(&Digest::of(b"another"), &images).unwrap();
        assert!(of_another.iter().all(Option::is_none), "{place}");
        for execution in &self.executions {
            let found = cache.execution(&execution.key.digest()).unwrap();
            let is_right = found.as_ref().is_some_and(|found| {
                (&found.key, &found.outputs, &found.references)
                    == (&execution.key, &execution.outputs, &execution.references)
            });
            check(found.is_none(), is_right, "execution");
        }
        let last = cache.last_run(PROJECT).unwrap();
        check(
            last.is_empty() || last == self.runs[0],
            last == self.runs[1],
            "last run",
        );
        let (path, stat, digest) = &self.file;
        let later = FileStat { mtime_ns: 8, ..*stat };
        let find = |stat| {
            cache
                .file_digests(Path::new(PHOTOS), [(*path, stat)].into_iter())
                .unwrap()[0]
        };
        check(find(*stat).is_none(), find(*stat) == Some(*digest), "file");
        assert_eq!(find(later), None, "{place}");
        check(
            !cache.is_exported(&self.export, &self.table.rows().digest()).unwrap(),
            true,
            "export",
        );
        for other in [Digest::of(b"another"), Digest::from_bytes([0; 32])] {
            assert!(!cache.is_exported(&self.export, &other).unwrap(), "{place}: export");
        }
        n_misses
    }
}

/// A cache's files: `closed` after its process ended, or as a killed one left them.
fn stored(truth: &Truth, closed: bool) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Folder::new();
    let cache = folder.open();
    truth.store(&cache);
    if closed {
        drop(cache);
    }
    crate::files(folder.root.path())
}

/// The files that are not below a folder of the cache.
fn without(files: &[(PathBuf, Vec<u8>)], name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let others = files.iter().filter(|(path, _)| !path.starts_with(name));
    others.cloned().collect()
}

/// In memory where the system has such a folder: what a disk does is not asked here, and thousands of syncs cost minutes.
pub(super) fn lay_out(files: &[(PathBuf, Vec<u8>)]) -> Folder {
    let folder = Folder {
        root: tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap(),
    };
    for (path, bytes) in files {
        let path = folder.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

/// A run over damaged files: finds right answers or none, stores what it did not find, and then all is well again. The
/// result is how many answers it did not find.
fn check(truth: &Truth, files: &[(PathBuf, Vec<u8>)], place: &str, look: impl FnOnce(&Folder, &Cache)) -> usize {
    let folder = lay_out(files);
    let cache = Cache::open(folder.root.path()).unwrap_or_else(|error| panic!("{place}: {error}"));
    let n_misses = truth.count_misses(&cache, place);
    look(&folder, &cache);
    truth
        .try_store(&cache)
        .unwrap_or_else(|error| panic!("{place}: {error}"));
    assert_eq!(truth.count_misses(&cache, place), 0, "{place}: stored again");
    drop(cache);
    assert_eq!(truth.count_misses(&folder.open(), place), 0, "{place}: opened again");
    n_misses
}

fn check_flip(truth: &Truth, files: &[(PathBuf, Vec<u8>)], (file, byte, mask): (usize, usize, u8)) -> usize {
    let mut files = files.to_vec();
    files[file].1[byte] ^= mask;
    let path = &files[file].0;
    let place = format!("{} byte {byte} ^ {mask:#04x}", path.display());
    let n_misses = check(truth, &files, &place, |folder, cache| {
        if path.starts_with("objects") {
            assert!(!folder.root.path().join(path).exists(), "{place}: still there");
        }
        if byte.is_multiple_of(4) {
            cache.verify(&()).unwrap_or_else(|error| panic!("{place}: {error}"));
            cache.stats().unwrap_or_else(|error| panic!("{place}: {error}"));
            truth.count_misses(cache, &place);
        }
    });
    // With a vector goes the table that it is in, and with a table or a manifest the execution that made it.
    let most = match path.iter().next().unwrap().to_str().unwrap() {
        "segments" => 3,
        "objects" => 2,
        _ => 1,
    };
    assert!(n_misses <= most, "{place}: {n_misses} misses");
    n_misses
}

#[test]
fn every_flipped_byte_is_a_miss_and_the_next_run_mends_it() {
    let truth = Truth::new();
    let mut random = Random(0);
    let (mut n_flips, n_misses) = (0, AtomicUsize::new(0));
    for closed in [true, false] {
        let files = stored(&truth, closed);
        let mut flips = Vec::new();
        for (file, (path, bytes)) in files.iter().enumerate().filter(|(_, (_, bytes))| !bytes.is_empty()) {
            let (head, n_random) = match bytes.len() {
                // All of the first record but its vector.
                _ if path.starts_with("segments") => (136, 500),
                1000.. if path.starts_with("objects") => (8, 40),
                length if closed => (length, 0),
                _ => (0, 20),
            };
            let others: Vec<usize> = (0..n_random).map(|_| random.below(bytes.len())).collect();
            let index = match path.extension() {
                Some(extension) if extension == "segment" => bytes.len() - (8 + 32 + 80 * N_IMAGES + 16),
                _ => bytes.len(),
            };
            for byte in (0..head).chain(others).chain((index..bytes.len()).step_by(3)) {
                flips.push((file, byte, 1 + random.below(255) as u8));
            }
        }
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some(flip) = flips.get(next.fetch_add(1, Ordering::Relaxed)) {
                        n_misses.fetch_add(check_flip(&truth, &files, *flip), Ordering::Relaxed);
                    }
                });
            }
        });
        n_flips += flips.len();
    }
    let n_misses = n_misses.into_inner();
    println!("{n_flips} flips, {n_misses} misses");
    assert!(n_flips >= 2000, "{n_flips} flips");
    // A flip where nothing is read misses nothing: in the index of a segment, or in its records beside the index.
    assert!(n_misses > n_flips / 2, "{n_misses} misses of {n_flips} flips");
}

#[test]
fn a_record_that_was_cut_or_has_anothers_place_is_a_miss() {
    let truth = Truth::new();
    let files = stored(&truth, true);
    let is_record = |path: &Path| {
        ["executions", "runs", "exports", "files"]
            .iter()
            .any(|kind| path.starts_with(kind))
    };
    let records: Vec<usize> = (0..files.len()).filter(|&file| is_record(&files[file].0)).collect();
    assert_eq!(records.len(), 3 + 2 + 1 + 1);
    let mut n_misses = 0;
    for &record in &records {
        let (path, bytes) = &files[record];
        let cuts = [0, 1, bytes.len() / 2, bytes.len() - 1].map(|cut| bytes[..cut].to_vec());
        let others = records.iter().filter(|&&other| other != record);
        for damaged in cuts.into_iter().chain(others.map(|&other| files[other].1.clone())) {
            let place = format!("{} with {} bytes", path.display(), damaged.len());
            let mut files = files.clone();
            files[record].1 = damaged;
            let n = check(&truth, &files, &place, |_, _| ());
            assert!(n <= 1, "{place}: {n} misses");
            n_misses += n;
        }
    }
    assert_eq!(n_misses, 6 * (4 + 6), "nobody asks for the first of the two runs");
}

#[test]
fn a_lost_folder_costs_its_own_answers_alone() {
    let truth = Truth::new();
    let files = stored(&truth, true);
    for (name, n_misses) in [
        ("executions", 3),
        ("runs", 1),
        ("exports", 1),
        ("files", 1),
        // The three artifacts, and what the executions made.
        ("objects", 6),
        ("segments", N_IMAGES + 2),
    ] {
        let found = check(&truth, &without(&files, name), name, |_, _| ());
        assert_eq!(found, n_misses, "{name}");
    }
}

/// Takes the right to write to a folder and those below it, until it is dropped.
struct ReadOnly<'a>(&'a Path);

impl<'a> ReadOnly<'a> {
    /// `None` if this process may write there all the same.
    fn new(folder: &'a Path) -> Option<Self> {
        let read_only = ReadOnly(folder);
        read_only.set(true);
        let may_write = fs::write(folder.join("probe"), "").is_ok();
        if may_write {
            Need::ReadOnlyFolder.skip();
        }
        (!may_write).then_some(read_only)
    }

    fn set(&self, is_read_only: bool) {
        for path in crate::folders(self.0) {
            let mut permissions = fs::metadata(&path).unwrap().permissions();
            permissions.set_readonly(is_read_only);
            fs::set_permissions(&path, permissions).unwrap();
        }
    }
}

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[test]
fn a_folder_that_may_only_be_read_is_read_and_nothing_is_added() {
    if has_run_unprivileged("damage::a_folder_that_may_only_be_read_is_read_and_nothing_is_added") {
        return;
    }
    let truth = Truth::new();
    let closed = stored(&truth, true);
    let damaged = |place: &str| {
        let mut files = closed.clone();
        for (_, bytes) in files.iter_mut().filter(|(path, _)| path.starts_with(place)) {
            bytes.fill(0x55);
        }
        files
    };
    for (what, files, n_misses) in [
        ("whole", closed.clone(), 0),
        ("of a killed process", stored(&truth, false), 0),
        ("without executions", without(&closed, "executions"), 3),
        ("without runs", without(&closed, "runs"), 1),
        ("damaged executions", damaged("executions"), 3),
        // Each of the three artifacts is the output of an execution.
        ("damaged artifacts", damaged("objects"), 6),
    ] {
        let folder = lay_out(&files);
        let Some(_read_only) = ReadOnly::new(folder.root.path()) else {
            return;
        };
        let before = crate::files(folder.root.path());
        let cache = folder.open();
        assert_eq!(truth.count_misses(&cache, what), n_misses, "{what}");
        truth.store(&cache);
        assert_eq!(truth.count_misses(&cache, what), 0, "{what}: stored again");
        let image = Digest::of(b"new");
        cache.store_features(&truth.descriptor, &[(image, vec![1.0])]).unwrap();
        assert_eq!(features(&cache, &truth.descriptor, &[image], 1).len(), 1, "{what}");
        drop(cache);
        assert!(before == crate::files(folder.root.path()), "{what}");
    }
}

#[test]
fn a_cache_that_cannot_be_written_stores_only_what_the_folder_lacks() {
    if has_run_unprivileged("damage::a_cache_that_cannot_be_written_stores_only_what_the_folder_lacks") {
        return;
    }
    let truth = Truth::new();
    let folder = lay_out(&stored(&truth, true));
    let Some(_read_only) = ReadOnly::new(folder.root.path()) else {
        return;
    };
    let cache = folder.open();
    let stored = || {
        let stats = cache.stats().unwrap();
        (stats.segments, stats.objects)
    };
    let (n_segments, n_objects) = stored();
    let digest = put_table(&cache, &truth.table).unwrap();
    assert_eq!(stored(), (n_segments, n_objects));
    assert_eq!(loaded(&cache, &digest), truth.table);

    let mut table = truth.table.clone();
    table.features[[1, 0]] = 5.0;
    let digest = put_table(&cache, &table).unwrap();
    let expected = (n_segments + 1, n_objects + 1);
    assert_eq!(stored(), expected, "one segment and the list of rows");
    assert_eq!(loaded(&cache, &digest), table);
    let refused = cache.verify(&()).unwrap_err();
    assert!(matches!(refused, Error::ReadOnly { .. }), "{refused}");
}

#[test]
fn damaged_records_are_misses_and_verify_forgets_and_counts_them() {
    let truth = Truth::new();
    let files = stored(&truth, true);
    // What verify counts: features, executions, other records.
    for (kind, n_misses, counted) in [
        ("executions", 3, (0, 3, 0)),
        ("runs", 1, (0, 0, 2)),
        ("exports", 1, (0, 0, 1)),
        ("files", 1, (0, 0, 1)),
        // With a vector go the table, and the execution that made the table.
        ("segments", 3, (1, 1, 0)),
    ] {
        let folder = lay_out(&files);
        match kind {
            "segments" => folder.spoil(&truth.features[0].1),
            _ => folder
                .records(kind)
                .iter()
                .for_each(|path| fs::write(path, [0x55_u8; 200]).unwrap()),
        }
        let cache = folder.open();
        assert_eq!(truth.count_misses(&cache, kind), n_misses, "{kind}");
        let verify = || {
            let report = cache.verify(&()).unwrap();
            assert_eq!(report.damaged_objects, 0, "{kind}");
            let counted = (
                report.damaged_features,
                report.forgotten_executions,
                report.damaged_records,
            );
            (counted, report.features)
        };
        let n_features = N_IMAGES as u64;
        assert_eq!(verify(), (counted, n_features), "{kind}");
        assert_eq!(verify(), ((0, 0, 0), n_features - counted.0), "{kind}: again");
        assert!(kind == "segments" || folder.records(kind).is_empty(), "{kind}");
    }
}
