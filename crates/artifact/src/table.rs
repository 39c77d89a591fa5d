use ndarray::{Array1, Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use crate::{Artifact, Digest, Result, Tensors, TensorsBuilder};

/// How features were made: everything that changes their values.
///
/// A model carries it, and features made otherwise are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtractorInfo {
    /// The views in which the network saw an image: `squash`, `crop`, `mirror` or `crop-mirror`.
    pub views: Vec<String>,
    /// How the features of several views became one row: `mean` or `concat`.
    pub combine: String,
    /// How large JPEGs were decoded: `scaled` or `exact`.
    pub decode: String,
    /// The name of the weights, or the path they were read from.
    pub weights: String,
    /// SHA-256 of the weights file, as 64 hexadecimal digits.
    pub weights_sha256: String,
    /// The number format of the network: `fp32`, `bf16` or `fp16`.
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

impl ExtractorInfo {
    /// Whether features made in these two ways are the same: the name of the weights does not matter, their bytes do.
    pub fn is_same(&self, other: &Self) -> bool {
        let ExtractorInfo {
            views,
            combine,
            decode,
            weights: _,
            weights_sha256,
            precision,
        } = self;
        *views == other.views
            && *combine == other.combine
            && *decode == other.decode
            && *weights_sha256 == other.weights_sha256
            && *precision == other.precision
    }

    /// The first eight digits of the weights' digest, for messages.
    pub fn short_sha256(&self) -> &str {
        self.weights_sha256.get(..8).unwrap_or(&self.weights_sha256)
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    classes: Vec<String>,
    extractor: ExtractorInfo,
}

impl FeatureTable {
    /// The number of rows.
    pub fn n_rows(&self) -> usize {
        self.labels.len()
    }

    /// The features, `f32 [n, d]`.
    pub fn features(&self) -> ArrayView2<'_, f32> {
        self.features.view()
    }
}

impl Artifact for FeatureTable {
    const FORMAT: &'static str = "feature-table/2";

    fn encode(&self) -> Vec<u8> {
        let header = Header {
            classes: self.classes.clone(),
            extractor: self.extractor.clone(),
        };
        let labels: Array1<i64> = self.labels.iter().map(|&label| label as i64).collect();
        let images = Array2::from_shape_fn((self.images.len(), 32), |(row, byte)| self.images[row].as_bytes()[byte]);
        TensorsBuilder::new(Self::FORMAT, &header)
            .tensor("features", &self.features)
            .tensor("images", &images)
            .tensor("labels", &labels)
            .finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let tensors = Tensors::open(Self::FORMAT, bytes)?;
        let Header { classes, extractor } = tensors.header()?;
        let features: Array2<f32> = tensors.matrix("features")?;
        let labels: Vec<usize> = tensors
            .vector::<i64>("labels")?
            .iter()
            .map(|&label| label as usize)
            .collect();
        let images: Vec<Digest> = tensors
            .matrix::<u8>("images")?
            .outer_iter()
            .map(|row| row.to_vec().try_into().map(Digest::from_bytes))
            .collect::<std::result::Result<_, _>>()
            .map_err(|row: Vec<u8>| tensors.wrong(format!("an image digest of {} bytes", row.len())))?;
        let n = features.nrows();
        if labels.len() != n || images.len() != n {
            return Err(tensors.wrong(format!(
                "{n} rows, {} labels and {} digests",
                labels.len(),
                images.len()
            )));
        }
        if let Some(label) = labels.iter().find(|&&label| label >= classes.len()) {
            return Err(tensors.wrong(format!("label {label} among {} classes", classes.len())));
        }
        Ok(FeatureTable {
            classes,
            extractor,
            labels,
            images,
            features,
        })
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    fn example() -> FeatureTable {
        FeatureTable {
            classes: vec!["drum".into(), "violin".into()],
            extractor: ExtractorInfo {
                views: vec!["squash".into()],
                combine: "mean".into(),
                decode: "scaled".into(),
                weights: "untrained".into(),
                weights_sha256: "00".into(),
                precision: "fp32".into(),
            },
            labels: vec![0, 1],
            images: vec![Digest::of(b"a"), Digest::of(b"b")],
            features: array![[1.0, 2.0, 3.0], [4.0, 5.0, -0.0]],
        }
    }

    #[test]
    fn decodes_what_it_encoded_and_always_to_the_same_bytes() {
        let bytes = example().encode();
        assert_eq!(FeatureTable::decode(&bytes).unwrap(), example());
        assert_eq!(example().encode(), bytes);
    }

    #[test]
    fn refuses_labels_outside_the_classes() {
        let mut table = example();
        table.labels[1] = 2;
        let error = FeatureTable::decode(&table.encode()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "expected feature-table/2, found label 2 among 2 classes"
        );
    }

    #[test]
    fn refuses_truncated_bytes() {
        let bytes = example().encode();
        for length in 0..bytes.len() {
            assert!(FeatureTable::decode(&bytes[..length]).is_err());
        }
    }
}
