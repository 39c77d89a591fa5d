//! Images from files and from memory.

use std::path::Path;
use std::sync::Arc;

use luthier_artifact::Digest;
use luthier_cache::Cache;
use luthier_extract::{
    CachedExtractor, Embedded, Error, Extractor, FeatureKind, Framing, ImageInput, ImageSource, Observer, Pooling,
    Task, WeightsStore,
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
