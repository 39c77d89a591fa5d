//! Images from files and from memory.

use std::path::Path;
use std::sync::Arc;

use luthier_artifact::Digest;
use luthier_cache::Cache;
use luthier_extract::{
    CachedExtractor, Combine, Embedded, Error, Extractor, ExtractorConfig, FeatureKind, Framing, ImageFeatures,
    ImageInput, ImageSource, InputSize, Limits, Observer, Pooling, Task, View, Views, WeightsStore,
};

use crate::{config, extractor, photo};

fn input(source: ImageSource, digest: Option<Digest>) -> ImageInput {
    ImageInput {
        source,
        digest,
        kinds: vec![FeatureKind {
            view: Framing::Squash.into(),
            pooling: Pooling::Mean,
        }],
    }
}

fn file(path: &Path) -> ImageSource {
    ImageSource::File(path.to_owned())
}

/// What became of images, in their order.
fn embed(extractor: &Extractor, images: &[ImageInput]) -> Result<Vec<Embedded>, Error> {
    let mut found = Vec::new();
    extractor.embed(images, &(), |place, embedded| {
        found.push((place, embedded));
        Ok(())
    })?;
    found.sort_by_key(|(place, _)| *place);
    assert_eq!(found.len(), images.len());
    Ok(found.into_iter().map(|(_, embedded)| embedded).collect())
}

#[test]
fn bytes_in_memory_are_embedded_like_the_file_and_report_their_digest() {
    let folder = tempfile::tempdir().unwrap();
    let (path, bytes) = (folder.path().join("photo.jpg"), photo(3));
    std::fs::write(&path, &bytes).unwrap();
    let bytes: Arc<[u8]> = bytes.into();
    let images = [
        input(file(&path), None),
        input(ImageSource::Bytes(bytes.clone()), None),
        input(ImageSource::Bytes(photo(4).into()), Some(Digest::of(&photo(4)))),
    ];
    let found = embed(&extractor(&config(), 2, 3), &images).unwrap();
    assert_eq!(found[0], found[1]);
    let digests = found.iter().map(|embedded| match embedded {
        Embedded::Features { digest, rows, .. } => {
            assert_eq!(rows.len(), 1);
            *digest
        }
        Embedded::Unreadable { reason, .. } => panic!("{reason}"),
    });
    assert!(digests.eq([Digest::of(&bytes), Digest::of(&bytes), Digest::of(&photo(4))]));
}

#[test]
fn unreadable_images_report_the_digest_of_what_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.jpg");
    let images = [
        input(ImageSource::Bytes(b"a violin".as_slice().into()), None),
        input(file(&missing), None),
        input(ImageSource::Bytes(photo(1).into()), None),
    ];
    let found = embed(&extractor(&config(), 1, 3), &images).unwrap();
    assert_eq!(
        found[0],
        Embedded::Unreadable {
            digest: Some(Digest::of(b"a violin")),
            reason: "not an image: the bytes begin like no known format".to_owned(),
        }
    );
    assert!(
        matches!(&found[1], Embedded::Unreadable { digest: None, reason } if reason.contains("No such file")),
        "{:?}",
        found[1]
    );
    assert!(matches!(&found[2], Embedded::Features { .. }));
}

#[test]
fn a_file_larger_than_any_photograph_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film.jpg");
    let film = std::fs::File::create(&path).unwrap();
    // Most file systems keep the zeros without room for them.
    film.set_len(3 << 30).unwrap();
    let found = embed(&extractor(&config(), 1, 1), &[input(file(&path), None)]).unwrap();
    assert_eq!(
        found[0],
        Embedded::Unreadable {
            digest: None,
            reason: "too large: the file has more than 512 MiB".to_owned(),
        }
    );
}

#[test]
fn a_scanned_file_is_too_large_only_if_it_was_so_when_it_was_scanned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("photo.jpg");
    std::fs::write(&path, photo(1)).unwrap();
    let limits = Limits {
        file: 100,
        ..Limits::default()
    };
    let extractor = extractor(&ExtractorConfig { limits, ..config() }, 1, 1);
    let digest = Digest::of(&photo(1));
    assert_eq!(
        embed(&extractor, &[input(file(&path), Some(digest))]).unwrap()[0],
        Embedded::Unreadable {
            digest: Some(digest),
            reason: "too large: the file has more than 100 bytes".to_owned(),
        }
    );
    let replaced = embed(&extractor, &[input(file(&path), Some(Digest::of(b"small")))]).unwrap_err();
    assert!(matches!(replaced, Error::Changed { path: changed } if changed == path));
}

#[test]
fn other_bytes_than_the_digest_says_are_an_error_from_files_and_from_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("photo.jpg");
    std::fs::write(&path, photo(1)).unwrap();
    let digest = Some(Digest::of(&photo(2)));
    let extractor = extractor(&config(), 1, 1);
    let from_file = embed(&extractor, &[input(file(&path), digest)]).unwrap_err();
    assert!(matches!(from_file, Error::Changed { path: changed } if changed == path));
    let from_memory = embed(&extractor, &[input(ImageSource::Bytes(photo(1).into()), digest)]).unwrap_err();
    assert_eq!(
        from_memory.to_string(),
        format!(
            "image in memory: expected digest {}, found {}",
            Digest::of(&photo(2)),
            Digest::of(&photo(1))
        )
    );
    // A file that was there when it was scanned is a fault of the moment, not an unreadable image.
    let gone = embed(&extractor, &[input(file(&folder.path().join("gone.jpg")), digest)]).unwrap_err();
    assert!(matches!(gone, Error::File(_)), "{gone}");
}

/// A user who has interrupted already.
struct Gone;

impl Observer for Gone {
    fn task(&self, _: &str, _: u64) -> Box<dyn Task + '_> {
        Box::new(())
    }
    fn is_interrupted(&self) -> bool {
        true
    }
}

#[test]
fn an_interrupt_ends_work_on_images_that_are_all_in_the_cache_too() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path()).unwrap();
    let store = WeightsStore::new("unused".into(), None);
    let extractor = CachedExtractor::new(config(), store, 1, Some(1), Some(cache), &()).unwrap();
    let images = [ImageSource::Bytes(photo(1).into())];
    let mut seen = Vec::new();
    for _ in 0..2 {
        extractor
            .features(&images, &(), |_, features| {
                seen.push(features);
                Ok(())
            })
            .unwrap();
    }
    assert_eq!(seen[0], seen[1]);
    let interrupted = extractor.features(&images, &Gone, |_, _| panic!("nobody wants it"));
    assert!(matches!(interrupted, Err(Error::Interrupted)), "{interrupted:?}");
}

/// Without a cache, for views of two sizes: images are read twice.
fn of_two_sizes() -> CachedExtractor {
    let view = |size| View {
        framing: Framing::Squash,
        size: InputSize::new(size).unwrap(),
    };
    let config = ExtractorConfig {
        views: Views::new([64, 96].map(view).to_vec(), Combine::Mean).unwrap(),
        ..config()
    };
    let store = WeightsStore::new("unused".into(), None);
    CachedExtractor::new(config, store, 1, Some(4), None, &()).unwrap()
}

/// What is known of images; `done` is told of each.
fn features(extractor: &CachedExtractor, images: &[ImageSource], done: impl Fn(usize)) -> Vec<Option<ImageFeatures>> {
    let mut found = vec![None; images.len()];
    extractor
        .features(images, &(), |place, features| {
            done(place);
            found[place] = Some(features);
            Ok(())
        })
        .unwrap();
    found
}

#[test]
fn a_file_that_changes_while_views_of_two_sizes_are_made_costs_no_other_image() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["good", "gone", "changed", "text"].map(|name| folder.path().join(format!("{name}.jpg")));
    for (seed, path) in paths.iter().take(3).enumerate() {
        std::fs::write(path, photo(seed as u8)).unwrap();
    }
    std::fs::write(&paths[3], "a violin").unwrap();
    // What is no image is known after the images before it were read once.
    let found = features(&of_two_sizes(), &paths.clone().map(ImageSource::File), |place| {
        if place == 3 {
            std::fs::remove_file(&paths[1]).unwrap();
            std::fs::write(&paths[2], photo(9)).unwrap();
        }
    });
    let reason = |place: usize| match &found[place] {
        Some(ImageFeatures::Unreadable { reason }) => reason.as_str(),
        other => panic!("{other:?}"),
    };
    let views = match &found[0] {
        Some(ImageFeatures::Rows { rows, .. }) => rows.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(views, 2);
    assert!(reason(1).contains("No such file"), "{}", reason(1));
    assert_eq!(reason(2), "changed while it was being read");
}

#[cfg(unix)]
#[test]
fn a_pipe_is_read_once_for_views_of_two_sizes() {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;

    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&photo(1)).unwrap();
    drop(writer);
    let images = [
        ImageSource::File(format!("/dev/fd/{}", reader.as_raw_fd()).into()),
        ImageSource::Bytes(photo(1).into()),
    ];
    let found = features(&of_two_sizes(), &images, |_| {});
    assert!(matches!(found[0], Some(ImageFeatures::Rows { .. })), "{found:?}");
    assert_eq!(found[0], found[1]);
}
