//! Segments: what killed processes leave, what many processes share, what is merged.

use std::fs;
use std::path::{Path, PathBuf};

use luthier_artifact::{Digest, FeatureTable};
use luthier_cache::{Cache, DryRun, Error, Remote};
use ndarray::{Array2, array};

use crate::damage::lay_out;
use crate::{DESCRIPTOR, Folder, features, files, load, put_table, record_run_of, runs};

/// The bytes of the head, and of a record before its vector.
const HEAD: usize = 16;
const RECORD: usize = 120;

fn image(n: usize) -> Digest {
    Digest::of(format!("image {n}").as_bytes())
}

fn images(n: usize) -> Vec<Digest> {
    (0..n).map(image).collect()
}

/// Stores the vectors of some images, one at a time.
fn store(cache: &Cache, places: impl IntoIterator<Item = usize>) {
    for n in places {
        let row = (image(n), vec![n as f32, 0.5, -1.0]);
        cache.store_features(&Digest::of(DESCRIPTOR), &[row]).unwrap();
    }
}

/// How many of the first images have features, all of them right.
fn count(cache: &Cache, n: usize) -> usize {
    let found = features(cache, &Digest::of(DESCRIPTOR), &images(n), 3);
    assert!((0..n).all(|n| found.get(&image(n)).is_none_or(|row| row[0] == n as f32)));
    found.len()
}

/// The segment of a process that was killed after it stored some images.
fn killed(n: usize) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Folder::new();
    let cache = folder.open();
    store(&cache, 0..n);
    let mut files = files(folder.root.path());
    files.retain(|(path, _)| path.starts_with("segments"));
    assert_eq!(files.len(), 1);
    files
}

#[test]
fn rows_are_given_once_each_in_the_order_of_the_disk_and_a_lost_one_is_named() {
    const N: usize = 40;
    let folder = Folder::new();
    // Two segments; the second process has most.
    store(&folder.open(), 0..5);
    let cache = folder.open();
    store(&cache, 5..N);
    let digests = cache.feature_digests(&Digest::of(DESCRIPTOR), &images(N)).unwrap();
    // Rows backwards, and two of them twice.
    let places: Vec<usize> = (0..N).rev().chain([7, 20]).collect();
    let vectors: Vec<Digest> = places.iter().map(|&n| digests[n].unwrap()).collect();
    let mut given = Vec::new();
    cache
        .stored_vectors(image(0), vectors.clone(), 3)
        .each(&mut |row, bytes| {
            assert_eq!(bytes[..4], (places[row] as f32).to_le_bytes());
            given.push(row);
        })
        .unwrap();
    let order: Vec<usize> = given.iter().map(|&row| places[row]).collect();
    let n_ascending = order.windows(2).filter(|pair| pair[0] <= pair[1]).count();
    assert!(
        n_ascending >= order.len() - 2,
        "one descent, between two segments: {order:?}"
    );
    given.sort_unstable();
    assert_eq!(given, (0..places.len()).collect::<Vec<_>>());

    let vectors = [&vectors[..], &[image(99)]].concat();
    let error = cache
        .stored_vectors(image(0), vectors, 3)
        .each(&mut |_, _| ())
        .unwrap_err();
    assert!(
        matches!(error, Error::Lost { digest, .. } if digest == image(99)),
        "{error}"
    );
}

#[test]
fn of_a_killed_process_all_whole_records_are_found_wherever_its_file_ends() {
    const N: usize = 3;
    let record = RECORD + 12;
    let (path, bytes) = &killed(N)[0];
    assert_eq!(bytes.len(), HEAD + N * record);
    for cut in 0..=bytes.len() {
        let folder = lay_out(&[(path.clone(), bytes[..cut].to_vec())]);
        let n_whole = cut.saturating_sub(HEAD) / record;
        assert_eq!(count(&folder.open(), N), n_whole, "cut at {cut}");
        // It was sealed, and what comes later goes elsewhere.
        let names: Vec<PathBuf> = folder.segments();
        assert!(
            names.iter().all(|path| path.extension().unwrap() == "segment"),
            "{names:?}"
        );
        assert_eq!(names.len(), usize::from(n_whole > 0), "cut at {cut}");
        store(&folder.open(), n_whole..N);
        assert_eq!(count(&folder.open(), N), N, "cut at {cut}");
    }
}

#[test]
fn what_is_damaged_in_the_middle_takes_nothing_else_with_it() {
    const N: usize = 5;
    let record = RECORD + 12;
    let (path, bytes) = &killed(N)[0];
    for byte in HEAD + record..HEAD + 2 * record {
        let mut bytes = bytes.clone();
        bytes[byte] ^= 0x11;
        let folder = lay_out(&[(path.clone(), bytes)]);
        assert_eq!(count(&folder.open(), N), N - 1, "byte {byte}");
    }
}

#[test]
fn a_segment_without_its_index_is_read_record_by_record() {
    const N: usize = 4;
    let folder = Folder::new();
    store(&folder.open(), 0..N);
    let path = &folder.segments()[0];
    let mut bytes = fs::read(path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(path, &bytes).unwrap();
    let cache = folder.open();
    assert_eq!(count(&cache, N), N);
    // It is written again, whole.
    assert_eq!(cache.verify(&()).unwrap().damaged_features, 0);
    bytes[last] ^= 1;
    assert!(fs::read(&folder.segments()[0]).unwrap() == bytes);
    assert_eq!((count(&cache, N), count(&folder.open(), N)), (N, N));
}

#[test]
fn what_a_process_stores_others_find_at_once_and_when_it_has_ended() {
    let folder = Folder::new();
    let (first, second) = (folder.open(), folder.open());
    assert_eq!(count(&second, 6), 0);
    store(&first, 0..3);
    assert_eq!(count(&second, 6), 3);
    store(&second, 3..6);
    assert_eq!((count(&first, 6), folder.segments().len()), (6, 2));
    // Its segment gets another name.
    drop(first);
    assert_eq!(count(&second, 6), 6);
    drop(second);
    assert_eq!(count(&folder.open(), 6), 6);
}

#[test]
fn many_small_segments_become_one_when_nobody_else_is_there() {
    const N: usize = 70;
    let folder = Folder::new();
    let table = array![[7.0f32, 8.0]];
    folder.open().put_vectors(table.view()).unwrap();
    let witness = folder.open();
    for n in 0..N {
        store(&folder.open(), [n]);
    }
    assert_eq!(folder.segments().len(), N + 1);
    drop(witness);
    let cache = folder.open();
    assert_eq!(folder.segments().len(), 1);
    assert_eq!(count(&cache, N), N);
    // What tables alone have stays, until nothing names it.
    let vector = luthier_artifact::vector_digest(table.row(0));
    assert_eq!(cache.vectors(&[vector], 2).unwrap(), table);
    cache.gc(&runs(0), DryRun::No, &()).unwrap();
    assert_eq!((folder.segments().len(), count(&cache, N)), (0, 0));
}

#[test]
fn gc_loses_nothing_that_another_has_stored_and_sealed_since() {
    const N: usize = 3;
    let folder = Folder::new();
    let (remover, other) = (folder.open(), folder.open());
    store(&other, 0..N);
    record_run_of(&other, &images(N));
    assert_eq!(count(&remover, N), N);
    // Its segment gets another name, and nobody reads it.
    drop(other);
    remover.gc(&runs(1), DryRun::No, &()).unwrap();
    assert_eq!((count(&folder.open(), N), count(&remover, N)), (N, N));
}

#[test]
fn gc_and_merging_keep_the_whole_one_of_two_copies() {
    // The segments have other names each time, so that the damaged one is the first of them, or the second.
    for (n, n_others) in [
        (0, 0),
        (1, 0),
        (2, 0),
        (3, 0),
        (4, 0),
        (5, 0),
        (0, 70),
        (1, 70),
        (2, 70),
        (3, 70),
    ] {
        let folder = Folder::new();
        store(&folder.open(), [n, n + 1]);
        folder.spoil(&[n as f32, 0.5, -1.0]);
        let witness = folder.open();
        store(&folder.open(), [n]);
        for other in 0..n_others {
            store(&folder.open(), [100 + other]);
        }
        record_run_of(&witness, &[image(n), image(n + 1)]);
        drop(witness);
        let cache = folder.open();
        let n_merged = if n_others == 0 { 2 } else { 1 };
        assert_eq!(folder.segments().len(), n_merged, "image {n}, {n_others} others");
        cache.gc(&runs(1), DryRun::No, &()).unwrap();
        assert_eq!(folder.segments().len(), 1, "image {n}, {n_others} others");
        assert_eq!(count(&folder.open(), n + 2), 2, "image {n}, {n_others} others");
    }
}

#[test]
fn what_a_process_has_stored_it_finds_after_it_has_written_damaged_segments_again() {
    let folder = Folder::new();
    store(&folder.open(), [0]);
    let cache = folder.open();
    store(&cache, [1]);
    folder.spoil(&[0.0, 0.5, -1.0]);
    assert_eq!(cache.verify(&()).unwrap().damaged_features, 1);
    store(&cache, [2]);
    assert_eq!((count(&cache, 3), count(&folder.open(), 3)), (2, 2));
}

#[test]
fn a_segment_that_cannot_be_read_is_left_alone_and_the_others_are_read() {
    const N: usize = 70;
    let folder = Folder::new();
    let witness = folder.open();
    for n in 0..N {
        store(&folder.open(), [n]);
    }
    // Whoever opens it may, and reading fails.
    let unreadable = folder.root.path().join("segments").join("x.segment");
    fs::create_dir(&unreadable).unwrap();
    assert_eq!(count(&witness, N), N);
    record_run_of(&witness, &images(N - 1));
    drop(witness);
    let cache = folder.open();
    assert_eq!((folder.segments().len(), count(&cache, N)), (2, N), "merged");
    let error = cache.verify(&()).unwrap_err().to_string();
    assert!(error.contains("x.segment: "), "{error}");
    cache.gc(&runs(1), DryRun::No, &()).unwrap();
    assert_eq!((folder.segments().len(), count(&cache, N)), (2, N - 1));
    assert!(unreadable.is_dir());
}

/// Eight writers, each of which opens the cache again and again.
#[test]
fn eight_at_once_lose_nothing_and_contradict_nobody() {
    const N: usize = 400;
    let folder = Folder::new();
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let folder = &folder;
            scope.spawn(move || {
                for round in 0..5 {
                    let cache = folder.open();
                    let places = (round * N / 5..(round + 1) * N / 5).filter(|n| n % 8 == worker);
                    store(&cache, places);
                    assert!(count(&cache, N) > 0);
                }
            });
        }
    });
    let cache = folder.open();
    assert_eq!(count(&cache, N), N);
    assert_eq!(cache.verify(&()).unwrap().damaged_features, 0);
}

/// A cache that shares segments in `folder`.
fn sharing(folder: &Folder, shared: &Path) -> Cache {
    folder
        .open()
        .with_remote(Remote::open(shared.to_str().unwrap()).unwrap())
}

#[test]
fn what_one_machine_has_stored_another_finds_and_keeps() {
    let shared = tempfile::tempdir().unwrap();
    let url = url::Url::from_file_path(shared.path().join("of machines")).unwrap();
    let path = shared.path().join("of machines");
    let (here, there, elsewhere) = (Folder::new(), Folder::new(), Folder::new());
    {
        let cache = here.open().with_remote(Remote::open(url.as_str()).unwrap());
        assert_eq!(count(&cache, 40), 0, "nobody has pushed yet");
        store(&cache, 0..20);
        assert!(!path.exists());
    }
    let remote = Remote::open(url.as_str()).unwrap();
    let pushed = remote.segments().unwrap();
    assert_eq!(pushed.len(), 1);

    {
        let cache = sharing(&there, &path);
        assert_eq!((count(&cache, 40), there.segment_bytes() > 0), (20, true));
        // Another machine pushes meanwhile.
        store(&sharing(&elsewhere, &path), 20..30);
        assert_eq!(count(&cache, 40), 20, "it was looked at once");
    }
    assert_eq!(
        remote.segments().unwrap().len(),
        2,
        "what it has fetched is not pushed again"
    );
    assert_eq!(count(&there.open(), 40), 20, "it was kept");
    let cache = sharing(&there, &path);
    assert_eq!(cache.stats().unwrap().features, 20);
    assert_eq!((cache.pull().unwrap().segments, cache.pull().unwrap().segments), (1, 0));
    assert_eq!(
        (count(&there.open(), 40), cache.verify(&()).unwrap().damaged_features),
        (30, 0)
    );

    // What was there before the remote is pushed when it is asked for.
    let before = Folder::new();
    store(&before.open(), 28..32);
    let cache = sharing(&before, &path);
    assert_eq!((cache.push().unwrap().segments, cache.push().unwrap().segments), (1, 0));
    drop(cache);
    assert_eq!(count(&sharing(&Folder::new(), &path), 40), 32);
}

#[test]
fn a_remote_that_lies_or_is_gone_is_never_believed() {
    let n = 20;
    let (here, shared) = (Folder::new(), tempfile::tempdir().unwrap());
    store(&sharing(&here, shared.path()), 0..n);
    let segment = crate::files(shared.path()).pop().unwrap();
    let path = shared.path().join(&segment.0);
    for byte in (0..segment.1.len()).step_by(7) {
        let mut bytes = segment.1.clone();
        bytes[byte] ^= 0x24;
        fs::write(&path, bytes).unwrap();
        let there = Folder::new();
        let cache = sharing(&there, shared.path());
        let n_found = count(&cache, n);
        assert!(n_found + 1 >= n || n_found == 0, "byte {byte}: {n_found}");
        store(&cache, 0..n);
        assert_eq!(count(&cache, n), n, "byte {byte}");
        drop(cache);
        assert_eq!(count(&there.open(), n), n, "byte {byte}");
        // It pushed what the other could not give, or not, and is cleared away for the next.
        crate::files(shared.path())
            .into_iter()
            .filter(|(other, _)| *other != segment.0)
            .for_each(|(other, _)| {
                fs::remove_file(shared.path().join(other)).unwrap();
            });
    }
    for cut in [0, 1, segment.1.len() / 2, segment.1.len() - 1] {
        fs::write(&path, &segment.1[..cut]).unwrap();
        assert_eq!(count(&sharing(&Folder::new(), shared.path()), n), 0, "cut at {cut}");
    }
    // It goes in the middle.
    fs::write(&path, &segment.1).unwrap();
    let there = Folder::new();
    let cache = sharing(&there, shared.path());
    let descriptor = Digest::of(DESCRIPTOR);
    // Of few images, only their vectors are fetched.
    let vectors: Vec<Digest> = (cache.feature_digests(&descriptor, &images(3)).unwrap().into_iter())
        .map(Option::unwrap)
        .collect();
    assert_eq!(cache.vectors(&vectors[..1], 3).unwrap().row(0)[0], 0.0);
    assert_eq!(there.segments().len(), 2, "its own, and the folder of indexes");
    fs::remove_file(&path).unwrap();
    assert!(matches!(cache.vectors(&vectors, 3), Err(Error::Lost { .. })));
    let known = cache.feature_digests(&descriptor, &images(n)).unwrap();
    assert_eq!(known.iter().flatten().count(), 1, "what was fetched was kept");
    store(&cache, 1..n);
    assert_eq!(count(&cache, n), n);
}

#[test]
fn of_a_segment_that_lies_only_its_own_features_are_lost() {
    let (shared, there) = (Folder::new(), Folder::new());
    // Two machines, of whose features so few are asked for that each is fetched alone.
    store(&sharing(&Folder::new(), shared.root.path()), 0..20);
    store(&sharing(&Folder::new(), shared.root.path()), 20..40);
    shared.spoil(&[0.0, 0.5, -1.0]);
    let cache = sharing(&there, shared.root.path());
    let descriptor = Digest::of(DESCRIPTOR);
    let digests = |images: &[Digest]| cache.feature_digests(&descriptor, images).unwrap();
    let vectors: Vec<Digest> = digests(&[image(0), image(20), image(21)])
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(vectors.len(), 3);
    assert!(matches!(cache.vectors(&vectors[..2], 3), Err(Error::Lost { digest, .. }) if digest == vectors[0]));
    assert_eq!(
        digests(&images(40)).iter().flatten().count(),
        20,
        "the whole segment is forgotten"
    );
    // The other one is still fetched.
    assert_eq!(
        cache.vectors(&vectors[1..], 3).unwrap().column(0).to_vec(),
        [20.0, 21.0]
    );
    assert_eq!(cache.stats().unwrap().features, 2);
}

#[test]
fn gc_removes_the_indexes_of_the_remote_and_they_are_fetched_again() {
    let (shared, there) = (tempfile::tempdir().unwrap(), Folder::new());
    store(&sharing(&Folder::new(), shared.path()), 0..20);
    let indexes = there.root.path().join("segments/remote");
    let cache = sharing(&there, shared.path());
    let find = || cache.feature_digests(&Digest::of(DESCRIPTOR), &[image(0)]).unwrap();
    for _ in 0..2 {
        assert!(find()[0].is_some());
        assert_eq!(crate::entries(&indexes).len(), 1);
        let left_over = indexes.join(".luthier-unfinished-abc");
        fs::write(&left_over, "half").unwrap();
        assert_eq!(cache.gc(&runs(0), DryRun::Yes, &()).unwrap().left_over_files, 1);
        assert_eq!(cache.verify(&()).unwrap().left_over_files, Some(1));
        fs::write(&left_over, "half").unwrap();
        cache.gc(&runs(0), DryRun::No, &()).unwrap();
        assert!(crate::entries(&indexes).is_empty());
    }
}

#[test]
fn what_was_pushed_is_not_pushed_again_at_the_end() {
    const N: usize = 3;
    let (shared, (path, bytes)) = (tempfile::tempdir().unwrap(), killed(N).remove(0));
    let folder = lay_out(&[(path, bytes)]);
    let cache = sharing(&folder, shared.path());
    // The segment of a dead process is ended, too.
    assert_eq!(count(&cache, N), N);
    store(&cache, N..N + 1);
    assert_eq!(cache.push().unwrap().segments, 2);
    let pushed = files(shared.path());
    assert_eq!(pushed.len(), 2);
    for (path, _) in pushed {
        fs::remove_file(shared.path().join(path)).unwrap();
    }
    drop(cache);
    assert!(files(shared.path()).is_empty());
}

#[test]
fn a_remote_that_is_none_is_named_without_its_credentials() {
    for (url, shown, reason) in [
        ("ftp://machine/folder", "ftp://machine/folder", "ftp"),
        (
            "ftp://me:secret@machine/folder?signature=secret",
            "ftp://machine/folder",
            "ftp",
        ),
        ("s3://", "s3://", "unable to recognise"),
        ("http s://x", "http s://x", ""),
    ] {
        match Remote::open(url) {
            Err(error @ Error::RemoteUrl { .. }) => {
                let error = error.to_string();
                assert!(error.starts_with(&format!("cache remote {shown}: ")), "{url}: {error}");
                assert!(
                    error.to_lowercase().contains(reason) && !error.contains("secret"),
                    "{url}: {error}"
                );
            }
            Err(error) => panic!("{url}: {error}"),
            Ok(_) => assert_eq!(reason, "", "{url}"),
        }
    }
    // Nobody listens there.
    let cache = Folder::new().open();
    let cache = cache.with_remote(Remote::open("http://127.0.0.1:9/cache").unwrap());
    assert_eq!(count(&cache, 3), 0);
    store(&cache, 0..3);
    assert_eq!(count(&cache, 3), 3);
}

#[test]
fn a_table_that_lost_rows_is_forgotten_with_all_of_them_at_once() {
    const N: usize = 3000;
    let images = images(N);
    let table = FeatureTable {
        labels: vec![0; N],
        images: images.clone(),
        features: Array2::from_shape_fn((N, 3), |(row, column)| [row as f32, 0.5, -1.0][column]),
        classes: vec!["drum".into()],
        ..crate::table()
    };
    let spoil = |folder: &Folder| {
        let lost = [7, 1500, 2999];
        lost.iter().for_each(|&n| folder.spoil(&[n as f32, 0.5, -1.0]));
        lost.len()
    };
    let remove = |folder: &Folder| {
        folder.segments().iter().for_each(|path| fs::remove_file(path).unwrap());
        N
    };
    for damage in [&spoil as &dyn Fn(&Folder) -> usize, &remove] {
        let folder = Folder::new();
        let cache = folder.open();
        store(&cache, 0..N);
        let digest = put_table(&cache, &table).unwrap();
        let n_lost = damage(&folder);
        let error = load(cache.table(&digest).unwrap().unwrap()).unwrap_err();
        assert!(matches!(error, Error::Lost { .. }), "{error}");
        assert!(cache.table(&digest).unwrap().is_none());
        let known = cache.feature_digests(&Digest::of(DESCRIPTOR), &images).unwrap();
        assert_eq!(known.iter().filter(|vector| vector.is_none()).count(), n_lost);
    }
}

/// As many as their owner's umask says may read them.
#[cfg(unix)]
#[test]
fn segments_may_be_read_by_whom_other_files_may_be() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let cache = folder.open();
    let object = folder.object(cache.put(&crate::manifest("harp")).unwrap());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    store(&cache, 0..1);
    assert_eq!(mode(&folder.segments()[0]), mode(&object));
    drop(cache);
    assert_eq!(mode(&folder.segments()[0]), mode(&object));
}
