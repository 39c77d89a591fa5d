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

/// A cache's files: `closed` after its process ended, or as a killed one left them, with the last writes in SQLite's log.
fn stored(truth: &Truth, closed: bool) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Folder::new();
    let cache = folder.open();
    truth.store(&cache);
    if closed {
        drop(cache);
    }
    crate::files(folder.root.path())
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

/// A run over damaged files: finds right answers or none, stores what it did not find, and then all is well again.
fn check_flip(truth: &Truth, files: &[(PathBuf, Vec<u8>)], (file, byte, mask): (usize, usize, u8)) -> Outcome {
    let mut files = files.to_vec();
    let (path, bytes) = &mut files[file];
    bytes[byte] ^= mask;
    let place = format!("{} byte {byte} ^ {mask:#04x}", path.display());
    let object = path.starts_with("objects").then(|| path.clone());
    let folder = lay_out(&files);
    let cache = Cache::open(folder.root.path()).unwrap_or_else(|error| panic!("{place}: {error}"));
    let n_misses = truth.count_misses(&cache, &place);
    if let Some(object) = object {
        assert!(!folder.root.path().join(object).exists(), "{place}: still there");
    }
    if byte.is_multiple_of(4) {
        cache.verify(&()).unwrap_or_else(|error| panic!("{place}: {error}"));
        cache.stats().unwrap_or_else(|error| panic!("{place}: {error}"));
        truth.count_misses(&cache, &place);
    }
    truth
        .try_store(&cache)
        .unwrap_or_else(|error| panic!("{place}: {error}"));
    // A flip can hide a record from SQLite without its notice, or have it write one record over another. `verify` mends the
    // one and does not see the other, which is only missing.
    let is_hidden = truth.count_misses(&cache, &place) > 0;
    if is_hidden {
        cache.verify(&()).unwrap_or_else(|error| panic!("{place}: {error}"));
        truth.store(&cache);
        assert_eq!(truth.count_misses(&cache, &place), 0, "{place}: stored again");
    }
    drop(cache);
    assert_eq!(truth.count_misses(&folder.open(), &place), 0, "{place}: opened again");
    Outcome { n_misses, is_hidden }
}

#[derive(Clone, Copy)]
struct Outcome {
    n_misses: usize,
    is_hidden: bool,
}

#[test]
fn every_flipped_byte_is_a_miss_and_the_next_run_mends_it() {
    let truth = Truth::new();
    let mut random = Random(0);
    let mut n_flips = 0;
    for closed in [true, false] {
        let files = stored(&truth, closed);
        let mut flips = Vec::new();
        for (file, (path, bytes)) in files.iter().enumerate() {
            let name = path.file_name().unwrap().to_string_lossy();
            let (head, n_random) = match &*name {
                "index.sqlite" => (100, if closed { 500 } else { 100 }),
                "index.sqlite-wal" => (56, 500),
                // All of the first record but its vector, and all of the index.
                _ if name.ends_with("segment") || name.ends_with("open") => (136, 500),
                "index.sqlite-shm" => (136, 60),
                _ if bytes.len() < 1000 => (if closed { bytes.len() } else { 0 }, 0),
                _ => (8, 40),
            };
            let places = (0..head.min(bytes.len())).collect::<Vec<_>>();
            let others = (0..n_random).map(|_| random.below(bytes.len()));
            let others: Vec<usize> = others.collect();
            let index = if name.ends_with("segment") {
                bytes.len() - (8 + 32 + 80 * N_IMAGES + 16)
            } else {
                bytes.len()
            };
            for byte in places.into_iter().chain(others).chain((index..bytes.len()).step_by(3)) {
                flips.push((file, byte, 1 + random.below(255) as u8));
            }
        }
        let next = AtomicUsize::new(0);
        let (n_misses, n_hidden) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some(flip) = flips.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let outcome = check_flip(&truth, &files, *flip);
                        n_misses.fetch_add(outcome.n_misses, Ordering::Relaxed);
                        n_hidden.fetch_add(usize::from(outcome.is_hidden), Ordering::Relaxed);
                    }
                });
            }
        });
        n_flips += flips.len();
        let per_flip = n_misses.into_inner() as f64 / flips.len() as f64;
        let n_hidden = n_hidden.into_inner();
        println!(
            "closed: {closed}: {} flips, {per_flip:.2} misses each, {n_hidden} rows hidden",
            flips.len()
        );
        // A flip in a vector is a miss of an image and of the table. One in SQLite's log loses all that was written after
        // it, as if the power had failed.
        let expected = if closed { 0.1..3.0 } else { 0.1..12.0 };
        assert!(
            expected.contains(&per_flip),
            "{per_flip} misses a flip, closed: {closed}"
        );
        assert!(
            n_hidden < flips.len() / 50,
            "{n_hidden} of {}, closed: {closed}",
            flips.len()
        );
    }
    assert!(n_flips >= 2000, "{n_flips} flips");
}

#[test]
fn an_index_without_its_head_keeps_all_features() {
    let truth = Truth::new();
    for closed in [true, false] {
        let mut files = stored(&truth, closed);
        for (path, bytes) in &mut files {
            if path.ends_with("index.sqlite") {
                let head = bytes.len().min(4096);
                bytes[..head].fill(0x55);
            }
        }
        let folder = lay_out(&files);
        let images: Vec<Digest> = truth.features.iter().map(|(image, _)| *image).collect();
        let found = features(&folder.open(), &truth.descriptor, &images, WIDTH);
        assert_eq!(found.len(), N_IMAGES, "closed: {closed}");
        // In the other case the log holds another copy of the head, and SQLite reads that.
        assert_eq!(folder.root.path().join("index.sqlite.damaged").exists(), closed);
    }
}

#[test]
fn a_truncated_index_keeps_what_is_before_the_cut() {
    let truth = Truth::new();
    let files = stored(&truth, true);
    let index = files
        .iter()
        .position(|(path, _)| path.ends_with("index.sqlite"))
        .unwrap();
    let length = files[index].1.len();
    for cut in [
        0,
        1,
        99,
        100,
        4095,
        4096,
        length / 3,
        length / 2,
        length - 4096,
        length - 1,
    ] {
        let mut files = files.clone();
        files[index].1.truncate(cut);
        let folder = lay_out(&files);
        let place = format!("cut at {cut} of {length}");
        let n_misses = truth.count_misses(&folder.open(), &place);
        // Without its last page an index lacks what was written last, and SQLite refuses the small tables.
        assert!(cut < length - 4096 || n_misses < 10, "{place}: {n_misses} misses");
        truth.store(&folder.open());
        assert_eq!(truth.count_misses(&folder.open(), &place), 0, "{place}");
    }
}

#[test]
fn while_another_process_has_a_damaged_index_open_it_stays_where_it_is() {
    let truth = Truth::new();
    let folder = lay_out(&stored(&truth, true));
    let (finder, other) = (folder.open(), folder.open());

    // Some process scribbles over the pages of records, of which SQLite keeps no copy yet.
    let index = folder.root.path().join("index.sqlite");
    let mut bytes = fs::read(&index).unwrap();
    for page in bytes.chunks_mut(4096).skip(1) {
        page[..8].fill(0xff);
    }
    fs::write(&index, bytes).unwrap();
    let images: Vec<Digest> = truth.features.iter().map(|(image, _)| *image).collect();
    let damaged = folder.root.path().join("index.sqlite.damaged");
    for cache in [&finder, &other] {
        assert!(truth.count_misses(cache, "damaged") > 0);
        assert_eq!(features(cache, &truth.descriptor, &images, WIDTH).len(), N_IMAGES);
        truth.store(cache);
        assert_eq!(truth.count_misses(cache, "stored again"), 0);
        assert!(!damaged.exists());
    }
    drop((finder, other));
    let cache = folder.open();
    assert!(truth.count_misses(&cache, "alone") > 0 && damaged.exists());
    truth.store(&cache);
    drop(cache);
    assert_eq!(truth.count_misses(&folder.open(), "mended"), 0);
}

#[test]
fn an_index_of_another_form_is_set_aside_and_one_that_a_user_has_added_to_is_not() {
    let truth = Truth::new();
    let files = stored(&truth, true);
    for (sql, n_misses, is_set_aside) in [
        // A layout that stands in one place alone. 0 is that of an index that is being made, which is ended.
        ("PRAGMA user_version = 0", 0, false),
        ("PRAGMA user_version = 1", 0, true),
        ("PRAGMA user_version = 3", 0, true),
        ("PRAGMA user_version = 99", 0, true),
        ("PRAGMA user_version = -1", 0, true),
        // No unique key. Nothing would fail here; the same file would only be stored again and again.
        (
            "CREATE TABLE other AS SELECT * FROM record; DROP TABLE record; ALTER TABLE other RENAME TO record;",
            0,
            true,
        ),
        ("DROP TABLE record", 6, true),
        ("ALTER TABLE record RENAME COLUMN value TO bytes", 6, true),
        ("CREATE INDEX by_size ON record (length(value))", 0, false),
        (
            "CREATE VIEW sizes AS SELECT kind, sum(length(value)) FROM record GROUP BY kind",
            0,
            false,
        ),
        ("CREATE TABLE notes (text)", 0, false),
        ("ALTER TABLE record ADD COLUMN note TEXT", 0, false),
        ("ANALYZE", 0, false),
        // The same table, defined by another text.
        (
            "PRAGMA writable_schema = ON;
             UPDATE sqlite_schema SET sql = replace(sql, '  ', ' ') WHERE name = 'record';
             PRAGMA writable_schema = OFF",
            0,
            false,
        ),
    ] {
        let folder = lay_out(&files);
        folder.tamper(sql);
        let cache = folder.open();
        assert_eq!(truth.count_misses(&cache, sql), n_misses, "{sql}");
        truth.store(&cache);
        drop(cache);
        let aside = folder.root.path().join("index.sqlite.damaged");
        assert_eq!(aside.exists(), is_set_aside, "{sql}");
    }
}

#[test]
fn a_statement_that_fails_for_another_reason_than_damage_leaves_the_index_as_it_is() {
    let truth = Truth::new();
    for (failure, reason) in [
        ("RAISE(FAIL, 'constraint violation')", "constraint violation"),
        ("no_such_function(1)", "no_such_function"),
        ("zeroblob(2000000000)", "too big"),
    ] {
        let folder = lay_out(&stored(&truth, true));
        folder.tamper(&format!(
            "CREATE TRIGGER refuse BEFORE INSERT ON record WHEN new.kind = 'export' BEGIN SELECT {failure}; END"
        ));
        let cache = folder.open();
        let error = truth.try_store(&cache).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert!(!folder.root.path().join("index.sqlite.damaged").exists(), "{reason}");
        assert_eq!(truth.count_misses(&cache, reason), 0);
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
    let (closed, killed) = (stored(&truth, true), stored(&truth, false));
    let without = |files: &[(PathBuf, Vec<u8>)], name: &str| {
        let others = files.iter().filter(|(path, _)| !path.ends_with(name));
        others.cloned().collect::<Vec<_>>()
    };
    let damaged = |place: &str| {
        let mut files = closed.clone();
        for (path, bytes) in &mut files {
            if path.starts_with(place) {
                let head = bytes.len().min(4096);
                bytes[..head].fill(0x55);
            }
        }
        files
    };
    // The index alone has three executions, the last run, a file and an export. Each of the three artifacts is the
    // output of an execution.
    for (what, files, n_misses) in [
        ("whole", closed.clone(), 0),
        ("all records in the log", killed.clone(), 0),
        ("without that log", without(&killed, "index.sqlite-wal"), 6),
        ("without its index", without(&closed, "index.sqlite"), 6),
        ("damaged index", damaged("index.sqlite"), 6),
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
fn an_index_of_another_layout_that_can_only_be_read_is_named_by_its_own_path() {
    if has_run_unprivileged("damage::an_index_of_another_layout_that_can_only_be_read_is_named_by_its_own_path") {
        return;
    }
    let folder = lay_out(&stored(&Truth::new(), true));
    let application = 0x4c55_5400 + 99;
    folder.tamper(&format!(
        "PRAGMA user_version = 99; PRAGMA application_id = {application}"
    ));
    let Some(_read_only) = ReadOnly::new(folder.root.path()) else {
        return;
    };
    let error = Cache::open(folder.root.path()).unwrap_err();
    assert!(matches!(error, Error::Layout { found: 99, .. }), "{error}");
    let index = folder.root.path().join("index.sqlite");
    assert!(
        error.to_string().starts_with(&format!("{}: ", index.display())),
        "{error}"
    );
}

#[test]
fn damaged_rows_are_misses_and_verify_forgets_and_counts_them() {
    let truth = Truth::new();
    let files = stored(&truth, true);
    // What verify counts: features, executions, other records.
    for (sql, n_misses, counted) in [
        (
            "UPDATE record SET value = zeroblob(56) WHERE key = x'0000000000000002'",
            1,
            (0, 0, 1),
        ),
        // Another number.
        (
            "UPDATE record SET key = x'0000000000000009' WHERE key = x'0000000000000001'",
            0,
            (0, 0, 1),
        ),
        (
            "UPDATE record SET value = zeroblob(56) WHERE kind = 'export'",
            1,
            (0, 0, 1),
        ),
        (
            "UPDATE record SET value = zeroblob(56) WHERE kind = 'file'",
            1,
            (0, 0, 1),
        ),
        (
            "UPDATE record SET key = CAST('/photos/harp/b.jpg' AS BLOB) WHERE kind = 'file'",
            1,
            (0, 0, 1),
        ),
        // What is right of one kind is not of another, and nobody asks for a kind that there is not.
        ("UPDATE record SET kind = 'other' WHERE kind = 'file'", 1, (0, 0, 1)),
        ("UPDATE record SET kind = 'file' WHERE kind = 'export'", 1, (0, 0, 1)),
        (
            "UPDATE record SET value = CAST(replace(CAST(value AS TEXT), 'extract', 'rejects') AS BLOB)
             WHERE kind = 'execution' AND CAST(value AS TEXT) LIKE '%extract%'",
            1,
            (0, 1, 0),
        ),
        // No statement, but a vector: with it go the table, and the execution that made the table.
        ("", 3, (1, 1, 0)),
    ] {
        let folder = lay_out(&files);
        match sql {
            "" => folder.spoil(&truth.features[0].1),
            sql => folder.tamper(sql),
        }
        let cache = folder.open();
        assert_eq!(truth.count_misses(&cache, sql), n_misses, "{sql}");
        let verify = || {
            let report = cache.verify(&()).unwrap();
            assert_eq!(report.damaged_objects, 0, "{sql}");
            let counted = (
                report.damaged_features,
                report.forgotten_executions,
                report.damaged_records,
            );
            (counted, report.features)
        };
        let n_features = N_IMAGES as u64;
        assert_eq!(verify(), (counted, n_features), "{sql}");
        assert_eq!(verify(), ((0, 0, 0), n_features - counted.0), "{sql}: again");
    }
}
