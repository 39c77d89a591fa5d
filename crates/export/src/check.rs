//! Whether an exported file answers as the model does.

use luthier::{Predictor, UNKNOWN};
use luthier_extract::{Decoding, ImageSource, Preprocess, decode, sample_images};

use crate::onnx::{self, Form, Input};
use crate::{Error, IMAGE, Result};

/// On how many images.
const N_IMAGES: usize = 4;

/// How far probabilities differ in single precision where other kernels compute the same.
const TOLERANCE: f64 = 1e-4;

/// How a file's answers differ from the model's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// On how many images.
    pub n_images: usize,
    /// The largest difference of a probability, 0 to 1.
    pub largest: f64,
}

impl Difference {
    pub(crate) fn check(self) -> Result<()> {
        match self.largest <= TOLERANCE {
            true => Ok(()),
            false => Err(Error::Differs {
                found: self.largest,
                expected: TOLERANCE,
            }),
        }
    }
}

/// Lets the model and another that should be the same answer to the same images.
pub(crate) fn model(predictor: &Predictor, other: &Predictor) -> Result<Difference> {
    Ok(difference(&answers(predictor)?, &answers(other)?))
}

/// Lets the model and the ONNX file answer to the same images.
pub(crate) fn graph(predictor: &Predictor, file: &[u8], form: Form) -> Result<Difference> {
    let extractor = predictor.extractor();
    let answer = |bytes: &&[u8]| {
        let image = decode(bytes, Decoding::Exact).map_err(|error| Error::Unreadable(error.to_string()))?;
        let found = match form {
            Form::Image => {
                let shape = [i64::from(image.height()), i64::from(image.width()), 3];
                let input = Input {
                    name: IMAGE,
                    bytes: image.as_raw(),
                    shape: &shape,
                };
                onnx::run(file, &[input])?
            }
            Form::Pixels => {
                let views = extractor.views.as_slice().iter();
                let seen: Vec<(String, Vec<u8>, [i64; 4])> = views
                    .map(|view| {
                        let mut pixels = vec![0; view.size.bytes()];
                        Preprocess::new(view.size).run(&image, view.framing, &mut pixels);
                        let side = view.size.side() as i64;
                        (view.to_string(), pixels, [1, side, side, 3])
                    })
                    .collect();
                let inputs: Vec<Input<'_>> = (seen.iter())
                    .map(|(name, bytes, shape)| Input { name, bytes, shape })
                    .collect();
                onnx::run(file, &inputs)?
            }
        };
        Ok(found.into_iter().map(f64::from).collect())
    };
    let found = images().iter().map(answer).collect::<Result<Vec<_>>>()?;
    Ok(difference(&answers(predictor)?, &found))
}

fn images() -> &'static [&'static [u8]] {
    &sample_images()[..N_IMAGES]
}

/// The probability of each class, in the order of the labels, for each image.
fn answers(predictor: &Predictor) -> Result<Vec<Vec<f64>>> {
    let classes = &predictor.model().classes;
    let sources: Vec<ImageSource> = (images().iter())
        .map(|bytes| ImageSource::Bytes((*bytes).into()))
        .collect();
    let mut answers = vec![vec![0.0; classes.len()]; sources.len()];
    predictor.predict(&sources, &(), |place, prediction| {
        let prediction = prediction.map_err(Error::Unreadable)?;
        debug_assert_ne!(prediction.answer, UNKNOWN, "nothing is asked to be unknown");
        for found in prediction.predictions {
            let label = classes.iter().position(|class| *class == found.class);
            answers[place][label.expect("a class of the model")] = found.probability;
        }
        Ok::<(), Error>(())
    })?;
    Ok(answers)
}

fn difference(expected: &[Vec<f64>], found: &[Vec<f64>]) -> Difference {
    let pairs = expected.iter().flatten().zip(found.iter().flatten());
    Difference {
        n_images: expected.len(),
        largest: pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max),
    }
}
