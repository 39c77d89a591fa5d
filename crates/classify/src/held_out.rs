use luthier_artifact::{Artifact, Digest, Tensors, TensorsBuilder};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use serde::{Deserialize, Serialize};

/// What cross-validation says of training images by models that have not seen them: an artifact of the stage `classify`,
/// and the file `held_out.safetensors`.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldOutPredictions {
    /// The digest of the training images and their labels, whose rows these are.
    pub train: Digest,
    /// The rows that were held out, in ascending order; none if C was given.
    pub rows: Vec<usize>,
    /// The calibrated probability of each class, `f32 [m, k]`.
    pub probabilities: Array2<f32>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    train: Digest,
}

impl HeldOutPredictions {
    /// The predictions for `rows` of the training images, with probabilities `[m, k]`.
    pub(crate) fn new(train: Digest, rows: Vec<usize>, probabilities: ArrayView2<'_, f64>) -> Self {
        HeldOutPredictions {
            train,
            rows,
            probabilities: probabilities.mapv(|probability| probability as f32),
        }
    }

    /// No predictions, of `n_classes` classes.
    pub fn none(train: Digest, n_classes: usize) -> Self {
        Self::new(train, Vec::new(), Array2::zeros((0, n_classes)).view())
    }

    /// The share of the predictions that is right, 0 to 1, where these are the labels. Of equally probable classes the
    /// first is predicted, as in the evaluation.
    pub(crate) fn accuracy(&self, labels: &[usize]) -> f64 {
        let is_right = |(row, label): (ArrayView1<'_, f32>, &usize)| {
            let best = (1..row.len()).fold(0usize, |best, class| if row[class] > row[best] { class } else { best });
            best == *label
        };
        let predictions = self.probabilities.outer_iter().zip(labels);
        predictions.filter(|row| is_right(*row)).count() as f64 / labels.len() as f64
    }

    /// The digest of training images with these labels.
    pub fn digest_of(images: &[Digest], labels: &[usize]) -> Digest {
        let bytes = images.iter().zip(labels).flat_map(|(image, label)| {
            let label = (*label as u64).to_le_bytes();
            image.as_bytes().iter().copied().chain(label).collect::<Vec<u8>>()
        });
        Digest::of(&bytes.collect::<Vec<u8>>())
    }
}

impl Artifact for HeldOutPredictions {
    const FORMAT: &'static str = "held-out-predictions/1";

    fn encode(&self) -> Vec<u8> {
        let HeldOutPredictions {
            train,
            rows,
            probabilities,
        } = self;
        let rows: Array1<i64> = rows.iter().map(|&row| row as i64).collect();
        TensorsBuilder::new(Self::FORMAT, &Header { train: *train })
            .tensor("rows", &rows)
            .tensor("probabilities", probabilities)
            .finish()
    }

    fn decode(bytes: &[u8]) -> luthier_artifact::Result<Self> {
        let tensors = Tensors::open(Self::FORMAT, bytes)?;
        let Header { train } = tensors.header()?;
        let rows: Array1<i64> = tensors.vector("rows")?;
        let probabilities: Array2<f32> = tensors.matrix("probabilities")?;
        if rows.len() != probabilities.nrows() {
            return Err(tensors.wrong(format!(
                "{} rows of probabilities for {}",
                probabilities.nrows(),
                rows.len()
            )));
        }
        if let Some(wrong) = probabilities
            .iter()
            .find(|probability| !(0.0..=1.0).contains(*probability))
        {
            return Err(tensors.wrong(format!("a probability of {wrong}")));
        }
        let rows = (rows.iter().map(|&row| usize::try_from(row)))
            .collect::<Result<_, _>>()
            .map_err(|_| tensors.wrong("a negative row".to_owned()))?;
        Ok(HeldOutPredictions {
            train,
            rows,
            probabilities,
        })
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn decodes_what_it_encoded() {
        let train = HeldOutPredictions::digest_of(&[Digest::of(b"a"), Digest::of(b"b")], &[0, 1]);
        let some = HeldOutPredictions::new(train, vec![1], array![[0.25, 0.75]].view());
        for predictions in [some, HeldOutPredictions::none(train, 2)] {
            assert_eq!(HeldOutPredictions::decode(&predictions.encode()).unwrap(), predictions);
        }
    }

    #[test]
    fn of_equally_probable_classes_the_first_is_predicted() {
        let probabilities = array![[0.5, 0.5], [0.5, 0.5], [0.2, 0.8], [0.7, 0.3]];
        let predictions = HeldOutPredictions::new(Digest::of(b""), vec![0, 1, 2, 3], probabilities.view());
        assert_eq!(predictions.accuracy(&[0, 1, 1, 0]), 0.75);
    }

    #[test]
    fn another_label_is_another_training_set() {
        let images = [Digest::of(b"a"), Digest::of(b"b")];
        let digest = |labels: &[usize]| HeldOutPredictions::digest_of(&images, labels);
        assert_ne!(digest(&[0, 1]), digest(&[1, 1]));
    }

    #[test]
    fn what_is_no_probability_is_refused() {
        let predictions = HeldOutPredictions::new(Digest::of(b""), vec![0], array![[0.0, 1.5]].view());
        let error = HeldOutPredictions::decode(&predictions.encode()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "expected held-out-predictions/1, found a probability of 1.5"
        );
    }
}
