use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Artifact, Digest, FeatureRows, Result, Tensors, TensorsBuilder};

/// The distinct images of both splits, without labels, file names or split: what can be known of an image by looking at
/// its bytes alone. Row `i` is the image with digest `images[i]`.
///
/// Moving an image to another class or split leaves this table as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRows {
    /// The number of features of an image.
    pub n_features: usize,
    /// The number of values of a perceptual hash.
    pub n_hash_values: usize,
    /// The digests of the images' bytes, ascending, each once.
    pub images: Vec<Digest>,
    /// The [`vector_digest`](crate::vector_digest) of each image's features.
    pub features: Vec<Digest>,
    /// The [`vector_digest`](crate::vector_digest) of each image's perceptual hash.
    pub hashes: Vec<Digest>,
}

impl ImageRows {
    /// The distinct images of tables. `hashes` has the digest of each row's perceptual hash, table by table.
    pub fn new(tables: &[(&FeatureRows, &[Digest])], n_hash_values: usize) -> Self {
        let rows = tables.iter().flat_map(|(table, hashes)| {
            let vectors = table.vectors.iter().zip(*hashes);
            table.images.iter().zip(vectors)
        });
        let distinct: BTreeMap<Digest, (Digest, Digest)> = rows
            .map(|(image, (features, hash))| (*image, (*features, *hash)))
            .collect();
        let (images, vectors): (Vec<Digest>, Vec<(Digest, Digest)>) = distinct.into_iter().unzip();
        let (features, hashes) = vectors.into_iter().unzip();
        ImageRows {
            n_features: tables.first().map_or(0, |(table, _)| table.width),
            n_hash_values,
            images,
            features,
            hashes,
        }
    }

    /// The digest of an image's perceptual hash, if the image is among these.
    pub fn hash_of(&self, image: &Digest) -> Option<Digest> {
        self.images.binary_search(image).ok().map(|row| self.hashes[row])
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    n_features: usize,
    n_hash_values: usize,
}

impl Artifact for ImageRows {
    const FORMAT: &'static str = "image-rows/1";

    fn encode(&self) -> Vec<u8> {
        let ImageRows {
            n_features,
            n_hash_values,
            images,
            features,
            hashes,
        } = self;
        let header = Header {
            n_features: *n_features,
            n_hash_values: *n_hash_values,
        };
        TensorsBuilder::new(Self::FORMAT, &header)
            .digests("images", images)
            .digests("features", features)
            .digests("hashes", hashes)
            .finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let tensors = Tensors::open(Self::FORMAT, bytes)?;
        let Header {
            n_features,
            n_hash_values,
        } = tensors.header()?;
        let (images, features) = (tensors.digests("images")?, tensors.digests("features")?);
        let hashes = tensors.digests("hashes")?;
        let n = images.len();
        if features.len() != n || hashes.len() != n {
            let found = format!("{n} images, {} features and {} hashes", features.len(), hashes.len());
            return Err(tensors.wrong(found));
        }
        if let Some(row) = images.windows(2).position(|pair| pair[0] >= pair[1]) {
            return Err(tensors.wrong(format!("images out of order at row {row}")));
        }
        Ok(ImageRows {
            n_features,
            n_hash_values,
            images,
            features,
            hashes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ExtractorInfo;

    fn digests(names: &[&str]) -> Vec<Digest> {
        names.iter().map(|name| Digest::of(name.as_bytes())).collect()
    }

    fn table(labels: &[usize], images: &[&str]) -> FeatureRows {
        FeatureRows {
            classes: vec!["drum".into(), "violin".into()],
            extractor: ExtractorInfo::example(),
            width: 4,
            labels: labels.to_vec(),
            images: digests(images),
            vectors: digests(images),
        }
    }

    #[test]
    fn labels_and_splits_do_not_show() {
        let hashes = [digests(&["a", "b"]), digests(&["c"])];
        let before = ImageRows::new(
            &[
                (&table(&[0, 1], &["a", "b"]), &hashes[0]),
                (&table(&[0], &["c"]), &hashes[1]),
            ],
            192,
        );
        let hashes = [digests(&["c", "b"]), digests(&["a", "c"])];
        let after = ImageRows::new(
            &[
                (&table(&[1, 0], &["c", "b"]), &hashes[0]),
                (&table(&[1, 1], &["a", "c"]), &hashes[1]),
            ],
            192,
        );
        assert_eq!(before.encode(), after.encode());
        assert_eq!(before.images.len(), 3);
    }

    #[test]
    fn decodes_what_it_encoded_and_refuses_another_order() {
        let mut rows = ImageRows::new(&[(&table(&[0, 1], &["a", "b"]), &digests(&["x", "y"]))], 192);
        assert_eq!(ImageRows::decode(&rows.encode()).unwrap(), rows);
        let (first, hash) = (rows.images[0], rows.hashes[0]);
        assert_eq!(
            (rows.hash_of(&first), rows.hash_of(&Digest::of(b"c"))),
            (Some(hash), None)
        );
        rows.images.reverse();
        let error = ImageRows::decode(&rows.encode()).unwrap_err().to_string();
        assert_eq!(error, "expected image-rows/1, found images out of order at row 0");
    }
}
