use crate::{Artifact, Content, Digest, Error, FeatureRows, ImageRows, Manifest, Result, Tensors};

/// An artifact that lists images by the digests of their bytes.
pub trait ListsImages: Artifact {
    /// The images, in the order of the artifact. An image may be listed more than once.
    fn images(self) -> Vec<Digest>;
}

impl ListsImages for Manifest {
    /// The files that could be read.
    fn images(self) -> Vec<Digest> {
        let digest = |content| match content {
            Content::Digest(digest) => Some(digest),
            Content::Unreadable(_) => None,
        };
        (self.entries.into_iter())
            .filter_map(|entry| digest(entry.content))
            .collect()
    }
}

impl ListsImages for FeatureRows {
    fn images(self) -> Vec<Digest> {
        self.images
    }
}

impl ListsImages for ImageRows {
    fn images(self) -> Vec<Digest> {
        self.images
    }
}

/// The images that an artifact lists, whichever artifact it is.
///
/// This is for a reader that knows an artifact only by its digest. It looks at the format that the
/// bytes name.
///
/// # Errors
/// [`Error::Format`] if the bytes are damaged, or are an artifact that lists no images.
pub fn images_of(bytes: &[u8]) -> Result<Vec<Digest>> {
    fn read<A: ListsImages>(bytes: &[u8]) -> Result<Vec<Digest>> {
        Ok(A::decode(bytes)?.images())
    }
    match Tensors::format_of(bytes).as_deref() {
        Some(Manifest::FORMAT) => read::<Manifest>(bytes),
        Some(FeatureRows::FORMAT) => read::<FeatureRows>(bytes),
        Some(ImageRows::FORMAT) => read::<ImageRows>(bytes),
        other => Err(Error::Format {
            expected: "an artifact that lists images",
            found: other.unwrap_or("bytes without a format").to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array1;

    use super::*;
    use crate::{ExtractorInfo, ManifestEntry, Split, TensorsBuilder};

    #[test]
    fn every_artifact_that_lists_images_is_recognized_by_its_format() {
        let [a, b] = [b"a", b"b"].map(|name| Digest::of(name));
        let entry = |file: &str, content| ManifestEntry {
            split: Split::Train,
            file: file.to_owned(),
            class: "harp".to_owned(),
            content,
        };
        let manifest = Manifest::new(vec![
            entry("harp/1.jpg", Content::Digest(a)),
            entry("harp/2.jpg", Content::Unreadable("no permission".into())),
            entry("harp/3.jpg", Content::Digest(b)),
        ]);
        let rows = FeatureRows {
            classes: vec!["harp".into()],
            extractor: ExtractorInfo::example(),
            width: 2,
            labels: vec![0, 0],
            images: vec![b, a],
            vectors: vec![a, a],
        };
        assert_eq!(images_of(&manifest.encode()).unwrap(), [a, b]);
        assert_eq!(images_of(&rows.encode()).unwrap(), [b, a]);
        let mut distinct = [a, b];
        distinct.sort_unstable();
        let images = ImageRows::new(&[(&rows, &[a, a])], 192);
        assert_eq!(images_of(&images.encode()).unwrap(), distinct);
    }

    #[test]
    fn other_bytes_are_refused_with_what_was_found() {
        let other = TensorsBuilder::new("weights/7", &()).tensor("bias", &Array1::from(vec![1.0_f32]));
        for (bytes, found) in [
            (other.finish(), "weights/7"),
            (b"{}".to_vec(), "bytes without a format"),
        ] {
            let error = images_of(&bytes).unwrap_err().to_string();
            assert_eq!(error, format!("expected an artifact that lists images, found {found}"));
        }
    }
}
