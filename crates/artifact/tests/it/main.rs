//! The cache from outside: what it keeps, what it notices, what it refuses.

mod damage;
mod upkeep;

use std::fs;
use std::path::{Path, PathBuf};

use luthier_artifact::{
    Artifact, Cache, Content, Digest, Execution, FileStat, Key, Manifest, ManifestEntry, Output, Split,
};
use proptest::prelude::*;
use rusqlite::Connection;

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

    /// Changes the index behind the cache's back.
    fn tamper(&self, sql: &str) {
        Connection::open(self.root.path().join("index.sqlite"))
            .unwrap()
            .execute_batch(sql)
            .unwrap();
    }

    fn object(&self, digest: Digest) -> PathBuf {
        let hex = digest.to_string();
        self.root.path().join("objects").join(&hex[..2]).join(&hex[2..])
    }
}

fn manifest(class: &str) -> Manifest {
    let entry = |file: &str| ManifestEntry {
        split: Split::Train,
        class: class.to_owned(),
        file: format!("{class}/{file}"),
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

const EXTRACTOR: &[u8] = b"extractor";

#[test]
fn an_artifact_is_read_back_by_its_digest() {
    let folder = Folder::new();
    let digest = folder.open().put(&manifest("harp")).unwrap();
    assert_eq!(folder.open().get::<Manifest>(&digest).unwrap(), Some(manifest("harp")));
    assert_eq!(folder.open().get::<Manifest>(&Digest::of(b"other")).unwrap(), None);
}

#[test]
fn every_flipped_byte_of_an_object_is_a_miss() {
    let folder = Folder::new();
    let cache = folder.open();
    let digest = cache.put(&manifest("harp")).unwrap();
    let path = folder.object(digest);
    let whole = fs::read(&path).unwrap();
    for place in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x10;
        fs::write(&path, damaged).unwrap();
        assert_eq!(cache.get::<Manifest>(&digest).unwrap(), None, "byte {place}");
        assert!(!path.exists(), "the damaged file is gone");
        cache.put(&manifest("harp")).unwrap();
    }
    assert_eq!(cache.get::<Manifest>(&digest).unwrap(), Some(manifest("harp")));
}

#[test]
fn features_are_kept_per_extractor_and_image() {
    let folder = Folder::new();
    let (extractor, image) = (Digest::of(EXTRACTOR), Digest::of(b"image"));
    folder
        .open()
        .store_features(&extractor, &[(image, vec![1.5, -0.0, f32::MAX])])
        .unwrap();
    let cache = folder.open();
    let found = cache.features(&extractor, &[image, Digest::of(b"unknown")]).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        found[&image].iter().map(|value| value.to_bits()).collect::<Vec<_>>(),
        [1.5_f32.to_bits(), (-0.0_f32).to_bits(), f32::MAX.to_bits()]
    );
    assert!(
        cache
            .features(&Digest::of(b"another extractor"), &[image])
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        cache
            .without_features(&extractor, &[image, Digest::of(b"unknown")])
            .unwrap(),
        [Digest::of(b"unknown")]
    );
}

#[test]
fn damaged_rows_are_misses_and_verify_forgets_them() {
    let folder = Folder::new();
    let cache = folder.open();
    let (extractor, image) = (Digest::of(EXTRACTOR), Digest::of(b"image"));
    cache.store_features(&extractor, &[(image, vec![1.0, 2.0])]).unwrap();
    let key = Key::stage("features", 1).field("variance", 0.98).finish();
    let outputs = vec![Output {
        name: "projection".into(),
        digest: cache.put(&manifest("harp")).unwrap(),
    }];
    cache
        .record(&Execution {
            key: key.clone(),
            outputs,
            seconds: 1.0,
        })
        .unwrap();
    let stat = FileStat {
        size: 5,
        mtime_ns: 7,
        inode: 9,
    };
    cache.remember_files(&[("/a.jpg".into(), stat, image)]).unwrap();
    assert_eq!(cache.file_digests(&[("/a.jpg".into(), stat)]).unwrap(), [Some(image)]);

    folder.tamper("UPDATE feature SET vector = x'0000803f00000041'");
    folder.tamper("UPDATE execution SET outputs = replace(outputs, 'projection', 'rejection')");
    folder.tamper("UPDATE file SET digest = zeroblob(32)");
    assert!(cache.features(&extractor, &[image]).unwrap().is_empty());
    assert_eq!(cache.execution(&key.digest()).unwrap(), None);
    assert_eq!(cache.file_digests(&[("/a.jpg".into(), stat)]).unwrap(), [None]);

    let report = cache.verify().unwrap();
    assert_eq!(
        (
            report.damaged_features,
            report.forgotten_executions,
            report.damaged_objects
        ),
        (1, 1, 0)
    );
    let report = cache.verify().unwrap();
    assert_eq!(
        (report.features, report.damaged_features, report.forgotten_executions),
        (0, 0, 0)
    );
}

#[test]
fn an_execution_without_its_outputs_is_a_miss_but_its_key_is_remembered() {
    let folder = Folder::new();
    let cache = folder.open();
    let key = Key::stage("features", 1).field("variance", 0.98).finish();
    let digest = cache.put(&manifest("harp")).unwrap();
    let outputs = vec![Output {
        name: "projection".into(),
        digest,
    }];
    cache
        .record(&Execution {
            key: key.clone(),
            outputs,
            seconds: 1.0,
        })
        .unwrap();
    assert_eq!(
        cache.execution(&key.digest()).unwrap().unwrap().outputs[0].digest,
        digest
    );
    fs::remove_file(folder.object(digest)).unwrap();
    assert_eq!(cache.execution(&key.digest()).unwrap(), None);
    assert_eq!(cache.recorded_key(&key.digest()).unwrap(), Some(key.clone()));

    let other = Key::stage("features", 1).field("variance", 0.5).finish();
    assert_eq!(cache.nearest_key(&other).unwrap(), Some(key));
}

#[test]
fn another_stat_is_another_file() {
    let folder = Folder::new();
    let cache = folder.open();
    let stat = FileStat {
        size: 5,
        mtime_ns: 7,
        inode: 9,
    };
    cache
        .remember_files(&[("/a.jpg".into(), stat, Digest::of(b"a"))])
        .unwrap();
    for other in [
        FileStat { size: 6, ..stat },
        FileStat { mtime_ns: 8, ..stat },
        FileStat { inode: 8, ..stat },
    ] {
        assert_eq!(
            cache.file_digests(&[("/a.jpg".into(), other)]).unwrap(),
            [None],
            "{other:?}"
        );
    }
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
    fn a_manifest_does_not_depend_on_the_order_of_its_files(mut names in prop::collection::vec("[a-c]/[a-z]{1,4}", 1..20), seed: u64) {
        names.sort();
        names.dedup();
        let entry = |file: &String| ManifestEntry {
            split: if file.len().is_multiple_of(2) { Split::Train } else { Split::Test },
            class: file[..1].to_owned(),
            file: file.clone(),
            content: Content::Digest(Digest::of(file.as_bytes())),
        };
        let entries: Vec<_> = names.iter().map(entry).collect();
        let mut shuffled = entries.clone();
        shuffled.sort_by_key(|entry| Digest::of(format!("{seed}{}", entry.file).as_bytes()));
        let (one, other) = (Manifest::new(entries), Manifest::new(shuffled));
        prop_assert_eq!(one.digest(), other.digest());
        prop_assert_eq!(Manifest::decode(&one.encode()).unwrap(), one);
    }
}
