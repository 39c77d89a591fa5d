use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use serde::{Deserialize, Serialize};

use crate::{Artifact, Digest, Result, Tensors, TensorsBuilder};

/// How features were made: everything that changes their values.
///
/// A model carries it, and features made otherwise are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtractorInfo {
    /// The views in which the network saw an image, for example `squash` or `crop-mirror@288`.
    pub views: Vec<String>,
    /// How the last map of each channel became one number: `mean` or `gem`.
    #[serde(default = "first_pooling", skip_serializing_if = "is_first_pooling")]
    pub pooling: String,
    /// How the features of several views became one row: `mean` or `concat`.
    pub combine: String,
    /// How large JPEGs were decoded: `scaled` or `exact`.
    pub decode: String,
    /// The name of the weights, or the path they were read from.
    pub weights: String,
    /// SHA-256 of the weights file, as 64 hexadecimal digits.
    pub weights_sha256: String,
    /// The number format of the network: `fp32`, `bf16`, `fp16` or `int8`.
    pub precision: String,
}

/// The features of one split. Row `i` belongs to the image with digest `images[i]` and the class `classes[labels[i]]`.
///
/// Rows are ordered by label, then image digest, so that neither file names nor folders' order show.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureTable {
    /// Class names in label order.
    pub classes: Vec<String>,
    /// How the features were made.
    pub extractor: ExtractorInfo,
    /// One label a row, `0..classes.len()`.
    pub labels: Vec<usize>,
    /// One image digest a row.
    pub images: Vec<Digest>,
    /// `f32 [n, d]`; `d` is 2048 for ResNet-50, or a multiple of it if views stand side by side.
    pub features: Array2<f32>,
}

/// A [`FeatureTable`] with the digest of each row's features in place of the features: some hundred bytes an image
/// rather than 8 KB.
///
/// This is the artifact. The features themselves lie in the cache once, however many tables have them.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureRows {
    /// Class names in label order.
    pub classes: Vec<String>,
    /// How the features were made.
    pub extractor: ExtractorInfo,
    /// The number of features of a row, `d`.
    pub width: usize,
    /// One label a row, `0..classes.len()`.
    pub labels: Vec<usize>,
    /// One image digest a row.
    pub images: Vec<Digest>,
    /// One [`vector_digest`] a row.
    pub vectors: Vec<Digest>,
}

/// The digest by which features are stored: of their bytes, f32 little-endian.
pub fn vector_digest(features: ArrayView1<'_, f32>) -> Digest {
    Digest::of(&vector_bytes(features))
}

/// The bytes in which features are stored: f32 little-endian.
pub fn vector_bytes(features: ArrayView1<'_, f32>) -> Vec<u8> {
    features.iter().flat_map(|feature| feature.to_le_bytes()).collect()
}

/// The pooling before there was a choice: files from then do not name it, and files that need not are the same.
fn first_pooling() -> String {
    "mean".to_owned()
}

fn is_first_pooling(pooling: &str) -> bool {
    pooling == first_pooling()
}

impl ExtractorInfo {
    /// Whether features made in these two ways are the same: the name of the weights does not matter, their bytes do.
    pub fn is_same(&self, other: &Self) -> bool {
        let ExtractorInfo {
            views,
            pooling,
            combine,
            decode,
            weights: _,
            weights_sha256,
            precision,
        } = self;
        *views == other.views
            && *pooling == other.pooling
            && *combine == other.combine
            && *decode == other.decode
            && *weights_sha256 == other.weights_sha256
            && *precision == other.precision
    }

    /// The views in words: `pad`, `mean of squash, crop` or `squash, crop side by side`.
    pub fn described_views(&self) -> String {
        match (self.views.as_slice(), self.combine.as_str()) {
            ([view], _) => view.clone(),
            (views, "mean") => format!("mean of {}", views.join(", ")),
            (views, _) => format!("{} side by side", views.join(", ")),
        }
    }

    /// The first eight digits of the weights' digest, for messages.
    pub fn short_sha256(&self) -> &str {
        self.weights_sha256.get(..8).unwrap_or(&self.weights_sha256)
    }
}

impl FeatureTable {
    /// The table of these rows with their features, `f32 [n, d]`.
    pub fn new(rows: FeatureRows, features: Array2<f32>) -> Self {
        let FeatureRows {
            classes,
            extractor,
            labels,
            images,
            ..
        } = rows;
        FeatureTable {
            classes,
            extractor,
            labels,
            images,
            features,
        }
    }

    /// The number of rows.
    pub fn n_rows(&self) -> usize {
        self.labels.len()
    }

    /// The features, `f32 [n, d]`.
    pub fn features(&self) -> ArrayView2<'_, f32> {
        self.features.view()
    }

    /// The rows without their features.
    pub fn rows(&self) -> FeatureRows {
        FeatureRows {
            classes: self.classes.clone(),
            extractor: self.extractor.clone(),
            width: self.features.ncols(),
            labels: self.labels.clone(),
            images: self.images.clone(),
            vectors: self.features.outer_iter().map(vector_digest).collect(),
        }
    }
}

impl FeatureRows {
    /// The number of rows.
    pub fn n_rows(&self) -> usize {
        self.labels.len()
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    classes: Vec<String>,
    extractor: ExtractorInfo,
    width: usize,
}

impl Artifact for FeatureRows {
    const FORMAT: &'static str = "feature-rows/1";

    fn encode(&self) -> Vec<u8> {
        let header = Header {
            classes: self.classes.clone(),
            extractor: self.extractor.clone(),
            width: self.width,
        };
        let labels: Array1<i64> = self.labels.iter().map(|&label| label as i64).collect();
        TensorsBuilder::new(Self::FORMAT, &header)
            .digests("images", &self.images)
            .tensor("labels", &labels)
            .digests("vectors", &self.vectors)
            .finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let tensors = Tensors::open(Self::FORMAT, bytes)?;
        let Header {
            classes,
            extractor,
            width,
        } = tensors.header()?;
        let (images, vectors) = (tensors.digests("images")?, tensors.digests("vectors")?);
        let labels: Vec<usize> = tensors
            .vector::<i64>("labels")?
            .iter()
            .map(|&label| label as usize)
            .collect();
        let n = labels.len();
        if images.len() != n || vectors.len() != n {
            return Err(tensors.wrong(format!(
                "{n} labels, {} images and {} vectors",
                images.len(),
                vectors.len()
            )));
        }
        if let Some(label) = labels.iter().find(|&&label| label >= classes.len()) {
            return Err(tensors.wrong(format!("label {label} among {} classes", classes.len())));
        }
        Ok(FeatureRows {
            classes,
            extractor,
            width,
            labels,
            images,
            vectors,
        })
    }
}

#[cfg(test)]
impl ExtractorInfo {
    /// Some extractor.
    pub(crate) fn example() -> Self {
        ExtractorInfo {
            views: vec!["squash".into()],
            pooling: first_pooling(),
            combine: "mean".into(),
            decode: "scaled".into(),
            weights: "untrained".into(),
            weights_sha256: "00".into(),
            precision: "fp32".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    fn example() -> FeatureTable {
        FeatureTable {
            classes: vec!["drum".into(), "violin".into()],
            extractor: ExtractorInfo::example(),
            labels: vec![0, 1],
            images: vec![Digest::of(b"a"), Digest::of(b"b")],
            features: array![[1.0, 2.0, 3.0], [4.0, 5.0, -0.0]],
        }
    }

    #[test]
    fn decodes_what_it_encoded_and_always_to_the_same_bytes() {
        let bytes = example().rows().encode();
        assert_eq!(FeatureRows::decode(&bytes).unwrap(), example().rows());
        assert_eq!(example().rows().encode(), bytes);
    }

    #[test]
    fn another_feature_is_another_table() {
        let mut other = example();
        other.features[[1, 2]] = 0.0;
        assert_ne!(
            other.rows().digest(),
            example().rows().digest(),
            "even zero for minus zero"
        );
    }

    #[test]
    fn refuses_labels_outside_the_classes() {
        let mut rows = example().rows();
        rows.labels[1] = 2;
        let error = FeatureRows::decode(&rows.encode()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "expected feature-rows/1, found label 2 among 2 classes"
        );
    }

    #[test]
    fn refuses_truncated_bytes() {
        let bytes = example().rows().encode();
        for length in 0..bytes.len() {
            assert!(FeatureRows::decode(&bytes[..length]).is_err());
        }
    }
}
