//! The cache from outside: what it keeps, what it notices, what it refuses.

mod damage;
mod segments;
mod upkeep;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use luthier_artifact::{
    Artifact, Content, Digest, ExtractorInfo, FeatureTable, FileStat, Key, Manifest, ManifestEntry, Split, Written,
    vector_digest, write_atomically,
};
use luthier_cache::{
    Cache, Descriptor, DryRun, Error, Execution, GcLimits, GoneFolders, Output, References, Reuse, RunStage,
    StoredTable,
};
use ndarray::{Array2, Axis, array, aview1};
use proptest::prelude::*;

struct Folder {
    root: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        Folder {
            root: tempfile::tempdir().unwrap(),
        }
    }

    fn open(&self) -> Cache {
        Cache::open(self.root.path()).unwrap()
    }

    /// The files below a folder of the cache, such as `runs`.
    fn records(&self, kind: &str) -> Vec<PathBuf> {
        let folder = self.root.path().join(kind);
        let paths = files(&folder).into_iter().map(|(path, _)| folder.join(path));
        paths.collect()
    }

    /// The files that hold features.
    fn segments(&self) -> Vec<PathBuf> {
        match self.root.path().join("segments") {
            folder if folder.exists() => entries(&folder),
            _ => Vec::new(),
        }
    }

    /// The bytes of all files that hold features.
    fn segment_bytes(&self) -> u64 {
        self.segments()
            .iter()
            .map(|path| fs::metadata(path).unwrap().len())
            .sum()
    }

    /// Makes every copy of a vector another one, behind the cache's back.
    fn spoil(&self, vector: &[f32]) {
        let vector: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
        for path in self.segments() {
            let mut bytes = fs::read(&path).unwrap();
            for at in 0..bytes.len() {
                if bytes[at..].starts_with(&vector) {
                    bytes[at] ^= 0x40;
                }
            }
            fs::write(path, bytes).unwrap();
        }
    }

    fn object(&self, digest: Digest) -> PathBuf {
        let hex = digest.to_string();
        self.root.path().join("objects").join(&hex[..2]).join(&hex[2..])
    }
}

fn manifest(class: &str) -> Manifest {
    let entry = |file: &str| ManifestEntry {
        split: Split::Train,
        file: format!("{class}/{file}"),
        class: class.to_owned(),
        content: Content::Digest(Digest::of(file.as_bytes())),
    };
    Manifest::new(vec![entry("b.jpg"), entry("a.jpg")])
}

/// Every file below a folder, by its path from there, with its bytes.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for folder_of_files in folders(folder) {
        for path in entries(&folder_of_files).into_iter().filter(|path| path.is_file()) {
            let bytes = fs::read(&path).unwrap();
            files.push((path.strip_prefix(folder).unwrap().to_owned(), bytes));
        }
    }
    files
}

/// A folder and those below it.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    for path in entries(folder).into_iter().filter(|path| path.is_dir()) {
        folders.extend(self::folders(&path));
    }
    folders
}

#[expect(clippy::disallowed_methods, reason = "the result is sorted")]
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
}

/// The features of those images whose features the cache has, and still has.
fn features(cache: &Cache, descriptor: &Digest, images: &[Digest], width: usize) -> HashMap<Digest, Vec<f32>> {
    let vectors = cache.feature_digests(descriptor, images).unwrap();
    let known = images
        .iter()
        .zip(vectors)
        .filter_map(|(image, vector)| Some((*image, vector?)));
    known
        .filter_map(|(image, vector)| match cache.vectors(&[vector], width) {
            Ok(rows) => Some((image, rows.row(0).to_vec())),
            Err(Error::Lost { .. }) => None,
            Err(error) => panic!("{error}"),
        })
        .collect()
}

const DESCRIPTOR: &[u8] = b"descriptor";

const STAT: FileStat = FileStat {
    size: 5,
    mtime_ns: 7,
    inode: 9,
};

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
            n_embedded: None,
            references,
        })
        .unwrap();
    stage
}

/// Records a run that used the features of [`DESCRIPTOR`] of these images, as rows of a table.
fn record_run_of(cache: &Cache, images: &[Digest]) {
    let table = FeatureTable {
        labels: vec![0; images.len()],
        images: images.to_vec(),
        features: Array2::zeros((images.len(), 1)),
        ..table()
    };
    let list = cache.put(&table.rows()).unwrap();
    let descriptor = Descriptor {
        digest: Digest::of(DESCRIPTOR),
        parts: Vec::new(),
    };
    let references = References {
        descriptors: vec![descriptor],
        images: vec![list],
    };
    let stage = record(
        cache,
        Key::stage("embed", 1).input("images", list).finish(),
        &[],
        references,
    );
    cache.record_run("/project", &[stage], Reuse::default()).unwrap();
}

/// Keeps so many runs of each project.
fn runs(runs: usize) -> GcLimits {
    GcLimits {
        runs: Some(runs),
        ..GcLimits::default()
    }
}

/// Stores a table as stages do: its features beside those of single images, and its rows as an artifact.
fn put_table(cache: &Cache, table: &FeatureTable) -> Result<Digest, Error> {
    cache.put_vectors(table.features())?;
    cache.put(&table.rows())
}

/// Reads a stored table, some rows at a time.
fn load(stored: StoredTable<'_>) -> Result<FeatureTable, Error> {
    let rows = stored.rows().clone();
    let mut features = Array2::zeros((rows.n_rows(), rows.width));
    for (place, block) in features.axis_chunks_iter_mut(Axis(0), 1000).enumerate() {
        stored.read(1000 * place..1000 * place + block.nrows(), block)?;
    }
    Ok(FeatureTable::new(rows, features))
}

/// The table with this digest, which is there and whole.
fn loaded(cache: &Cache, digest: &Digest) -> FeatureTable {
    load(cache.table(digest).unwrap().unwrap()).unwrap()
}

#[test]
fn features_are_kept_per_descriptor_and_image() {
    let folder = Folder::new();
    let (descriptor, image) = (Digest::of(DESCRIPTOR), Digest::of(b"image"));
    let row = vec![1.5, -0.0, f32::MAX];
    folder
        .open()
        .store_features(&descriptor, &[(image, row.clone())])
        .unwrap();
    let cache = folder.open();
    let found = cache
        .feature_digests(&descriptor, &[image, Digest::of(b"unknown")])
        .unwrap();
    let vector = vector_digest(aview1(&row));
    assert_eq!(found, [Some(vector), None]);
    let features = cache.vectors(&[vector], 3).unwrap();
    let bits = |value: &f32| value.to_bits();
    assert_eq!(
        features.iter().map(bits).collect::<Vec<_>>(),
        row.iter().map(bits).collect::<Vec<_>>()
    );
    let other = Digest::of(b"another descriptor");
    assert_eq!(cache.feature_digests(&other, &[image]).unwrap(), [None]);
}

fn table() -> FeatureTable {
    FeatureTable {
        classes: vec!["drum".into(), "harp".into()],
        extractor: ExtractorInfo {
            views: vec!["squash".into()],
            pooling: "mean".into(),
            combine: "mean".into(),
            decode: "scaled".into(),
            weights: "untrained".into(),
            weights_sha256: "00".into(),
            precision: "fp32".into(),
        },
        labels: vec![0, 0, 1],
        images: [b"a", b"b", b"c"].map(|image| Digest::of(image)).to_vec(),
        features: array![[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]],
    }
}

#[test]
fn a_table_is_read_back_whole_or_in_blocks_and_equal_rows_are_stored_once() {
    let folder = Folder::new();
    let cache = folder.open();
    let digest = put_table(&cache, &table()).unwrap();
    assert_eq!(loaded(&cache, &digest), table());
    let stored = cache.table(&digest).unwrap().unwrap();
    let mut block = Array2::zeros((2, 2));
    stored.read(1..3, block.view_mut()).unwrap();
    assert_eq!(block, array![[3.0, 4.0], [1.0, 2.0]]);
    let stored = cache.stats().unwrap().segment_bytes;
    let of_two = 16 + 2 * (120 + 8);
    assert_eq!(stored, of_two, "the head, and two records");
    assert_eq!(cache.verify(&()).unwrap().damaged_features, 0);
    assert_eq!(loaded(&cache, &digest), table(), "verify takes none away");
}

#[test]
fn a_table_that_is_stored_already_is_not_written_again() {
    let folder = Folder::new();
    let cache = folder.open();
    let digest = put_table(&cache, &table()).unwrap();
    let stored = folder.segment_bytes();
    assert_eq!(put_table(&cache, &table()).unwrap(), digest);
    assert_eq!(folder.segment_bytes(), stored);

    let spoil = || folder.spoil(&[3.0, 4.0]);
    let cut = || {
        let path = &folder.segments()[0];
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
    };
    let remove = || folder.segments().iter().for_each(|path| fs::remove_file(path).unwrap());
    for damage in [&spoil as &dyn Fn(), &cut, &remove] {
        damage();
        let before = folder.segment_bytes();
        assert_eq!(put_table(&cache, &table()).unwrap(), digest);
        assert!(folder.segment_bytes() > before);
        assert_eq!(loaded(&cache, &digest), table());
    }
}

#[test]
fn an_execution_without_its_outputs_is_a_miss_but_its_key_is_remembered() {
    let folder = Folder::new();
    let cache = folder.open();
    let key = Key::stage("features", 1).field("variance", 0.98).finish();
    let digest = cache.put(&manifest("harp")).unwrap();
    record(&cache, key.clone(), &[digest], References::default());
    assert_eq!(
        cache.execution(&key.digest()).unwrap().unwrap().outputs[0].digest,
        digest
    );
    fs::remove_file(folder.object(digest)).unwrap();
    assert_eq!(cache.execution(&key.digest()).unwrap(), None);
    assert_eq!(cache.recorded_key(&key.digest()).unwrap(), Some(key.clone()));

    let other = Key::stage("features", 1).field("variance", 0.5).finish();
    assert_eq!(cache.nearest_key(&other).unwrap(), Some(key.clone()));
    assert_eq!(cache.nearest_key(&key).unwrap(), Some(key));
}

#[test]
fn the_history_of_a_stage_is_in_the_order_in_which_runs_used_it_last() {
    let folder = Folder::new();
    let cache = folder.open();
    let key = |stage: &str, variance: f64| Key::stage(stage, 1).field("variance", variance).finish();
    let record = |key: Key, seconds, n_embedded| {
        cache
            .record(&Execution {
                key,
                outputs: Vec::new(),
                seconds,
                n_embedded,
                references: References::default(),
            })
            .unwrap();
    };
    let run = |variance: f64| {
        let used = RunStage {
            stage: "features".into(),
            key: key("features", variance).digest(),
        };
        cache.record_run("/project", &[used], Reuse::default()).unwrap();
    };
    for (variance, seconds, n_embedded) in [(0.1, 1.0, None), (0.2, 2.0, Some(7)), (0.3, 3.0, None)] {
        record(key("features", variance), seconds, n_embedded);
    }
    record(key("classify", 0.1), 9.0, None);
    run(0.1);
    run(0.2);
    run(0.1);
    let history = cache.history("features").unwrap();
    let found: Vec<_> = history.iter().map(|past| (past.seconds, past.n_embedded)).collect();
    assert_eq!(found, [(3.0, None), (2.0, Some(7)), (1.0, None)]);
    assert_eq!(history[2].key, key("features", 0.1));
}

#[test]
fn another_stat_is_another_file() {
    let folder = Folder::new();
    let cache = folder.open();
    let root = Path::new("/");
    let remembered = [("a.jpg", STAT, Digest::of(b"a"))];
    cache
        .remember_files(root, remembered.into_iter(), SystemTime::now())
        .unwrap();
    for other in [
        FileStat { size: 6, ..STAT },
        FileStat { mtime_ns: 8, ..STAT },
        FileStat { inode: 8, ..STAT },
    ] {
        let found = cache.file_digests(root, [("a.jpg", other)].into_iter()).unwrap();
        assert_eq!(found, [None], "{other:?}");
    }
}

#[test]
fn files_are_found_whatever_lies_beside_them() {
    let folder = Folder::new();
    let cache = folder.open();
    let digest = |file: &str| Digest::of(file.as_bytes());
    // In the order of bytes, in which a hyphen comes before the separator and a zero right after it.
    let files = ["a-b/1.jpg", "a/1.jpg", "a/2.jpg", "a0/1.jpg", "b/\u{e9}.jpg"];
    for root in ["/data", "/data/a", "/data-old", "/data0"] {
        let known = files.iter().map(|file| (*file, STAT, digest(file)));
        cache.remember_files(Path::new(root), known, SystemTime::now()).unwrap();
    }
    let asked = [
        "a-b/0.jpg",
        "a-b/1.jpg",
        "a/1.jpg",
        "a/3.jpg",
        "b/\u{e9}.jpg",
        "c/1.jpg",
    ];
    let found = cache.file_digests(Path::new("/data"), asked.into_iter().map(|file| (file, STAT)));
    let expected = asked.map(|file| files.contains(&file).then(|| digest(file)));
    assert_eq!(found.unwrap(), expected);
}

/// The digest that a file has in these tests.
fn digest_of_file(root: &str, file: &str, stat: FileStat) -> Digest {
    Digest::of(format!("{root} {file} {stat:?}").as_bytes())
}

fn remember(cache: &Cache, root: &str, files: &[String], stat: FileStat) {
    let known = files
        .iter()
        .map(|file| (file.as_str(), stat, digest_of_file(root, file, stat)));
    cache.remember_files(Path::new(root), known, SystemTime::now()).unwrap();
}

/// How many of the files are known by this stat, all of them with the right digest.
fn n_known(cache: &Cache, root: &str, files: &[String], stat: FileStat) -> usize {
    let asked = files.iter().map(|file| (file.as_str(), stat));
    let found = cache.file_digests(Path::new(root), asked).unwrap();
    for (file, found) in files.iter().zip(&found) {
        assert!(
            found.is_none_or(|found| found == digest_of_file(root, file, stat)),
            "{root} {file}"
        );
    }
    found.iter().flatten().count()
}

#[test]
fn what_many_batches_say_of_a_folder_is_found_there_alone_and_kept_in_few_files() {
    let folder = Folder::new();
    let cache = folder.open();
    let mut files: Vec<String> = (0..300).map(|n| format!("{}/{:02}.jpg", n % 3, n / 3)).collect();
    let (first, later) = (files[..1].to_vec(), FileStat { mtime_ns: 8, ..STAT });
    for (n, batch) in files.chunks(3).enumerate() {
        remember(&cache, "/photos", batch, STAT);
        if n == 50 {
            remember(&cache, "/photos", &first, later);
        }
    }
    let of_photos = folder.records("files");
    assert!(of_photos.len() < 10, "{of_photos:?}");
    remember(&cache, "/other", &first, STAT);
    files.sort();
    let second = folder.open();
    assert_eq!(n_known(&second, "/photos", &files, later), 1);
    assert!(n_known(&second, "/photos", &files, STAT) >= files.len() - 1);
    assert_eq!(n_known(&second, "/other", &files, STAT), 1);

    // What lies in another's place is not taken for its own.
    let mut of_other = folder.records("files");
    of_other.retain(|path| !of_photos.contains(path));
    for path in &of_photos {
        fs::copy(path, of_other[0].with_file_name(path.file_name().unwrap())).unwrap();
    }
    assert_eq!(n_known(&folder.open(), "/other", &files, STAT), 1);
}

#[test]
fn a_damaged_batch_revives_nothing_that_it_overruled() {
    let folder = Folder::new();
    let cache = folder.open();
    let root = Path::new("/photos");
    let remember = |bytes: &[u8]| {
        let learnt = [("a.jpg", STAT, Digest::of(bytes))];
        cache
            .remember_files(root, learnt.into_iter(), SystemTime::now())
            .unwrap();
    };
    let ask = || cache.file_digests(root, [("a.jpg", STAT)].into_iter()).unwrap()[0];
    remember(b"old");
    // As with --rehash, after the bytes changed and the stat did not.
    remember(b"new");
    assert_eq!(ask(), Some(Digest::of(b"new")));
    let batches = folder.records("files");
    let is_newest = |path: &&PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("1-");
    fs::write(batches.iter().find(is_newest).unwrap(), "damaged").unwrap();
    assert_eq!(ask(), None);
    // The files that it named may still be there.
    let refused = cache.prune_images(DryRun::No, GoneFolders::Forget, &());
    assert!(matches!(refused, Err(Error::Lost { .. })), "{refused:?}");
    assert_eq!(cache.verify(&()).unwrap().damaged_records, 1);
    assert_eq!(ask(), None);
    remember(b"newer");
    assert_eq!(ask(), Some(Digest::of(b"newer")));
}

#[test]
fn who_remembers_and_asks_at_once_is_never_told_a_wrong_digest() {
    const ROUNDS: usize = 200;
    let folder = Folder::new();
    let files: Vec<String> = (0..2 * ROUNDS).map(|n| format!("{n:03}.jpg")).collect();
    std::thread::scope(|scope| {
        for own in files.chunks(ROUNDS) {
            let (cache, files) = (folder.open(), &files);
            scope.spawn(move || {
                for file in own.chunks(1) {
                    remember(&cache, "/photos", file, STAT);
                    n_known(&cache, "/photos", files, STAT);
                }
            });
        }
    });
    assert_eq!(n_known(&folder.open(), "/photos", &files, STAT), files.len());
}

#[test]
fn a_file_that_another_run_wrote_is_not_taken_for_ones_own() {
    let folder = Folder::new();
    let cache = folder.open();
    let path = folder.root.path().join("report.html");
    let [ours, theirs] = [b"our source", b"their....."].map(|source| Digest::of(source));
    let Written { stat, .. } = write_atomically(&path, b"ours").unwrap();
    let Written { stat: of_theirs, .. } = write_atomically(&path, b"them").unwrap();
    cache.remember_export(&path, &stat, &ours).unwrap();
    assert!(
        !cache.is_exported(&path, &ours).unwrap(),
        "it holds what the other run wrote"
    );
    cache.remember_export(&path, &of_theirs, &theirs).unwrap();
    assert!(cache.is_exported(&path, &theirs).unwrap());
}

#[test]
fn the_cache_keeps_itself_out_of_version_control() {
    let folder = Folder::new();
    drop(folder.open());
    assert_eq!(
        fs::read_to_string(folder.root.path().join(".gitignore")).unwrap(),
        "*\n"
    );
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = Folder::new();
    let path = folder.root.path().join("file");
    fs::write(&path, b"in the way").unwrap();
    let error = Cache::open(&path).unwrap_err().to_string();
    assert!(error.starts_with(Path::new(&path).to_str().unwrap()), "{error}");
}

proptest! {
    #[test]
    fn a_manifest_does_not_depend_on_the_order_of_its_files(mut names in prop::collection::vec("[a-c]/[a-d\u{e9}]{0,3}[ayz]", 1..20), seed: u64) {
        names.sort();
        names.dedup();
        let entry = |file: &String| ManifestEntry {
            split: if file.len().is_multiple_of(2) { Split::Train } else { Split::Test },
            file: file.clone(),
            class: file.split('/').next().unwrap_or_default().to_owned(),
            content: match file.ends_with('z') {
                true => Content::Unreadable(format!("cannot read {file}")),
                false => Content::Digest(Digest::of(file.as_bytes())),
            },
        };
        let entries: Vec<_> = names.iter().map(entry).collect();
        let mut shuffled = entries.clone();
        shuffled.sort_by_key(|entry| Digest::of(format!("{seed}{}", entry.file).as_bytes()));
        let (one, other) = (Manifest::new(entries), Manifest::new(shuffled));
        prop_assert_eq!(one.digest(), other.digest());
        let bytes = one.encode();
        prop_assert!((0..bytes.len()).all(|length| Manifest::decode(&bytes[..length]).is_err()));
        prop_assert_eq!(Manifest::decode(&bytes).unwrap(), one);
    }
}
