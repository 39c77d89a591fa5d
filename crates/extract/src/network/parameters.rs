use std::collections::HashMap;
use std::fs;
use std::path::Path;

use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use tch::{Kind, Tensor};

use super::checkpoint::{self, StoredTensor};
use super::sha256::sha256_of;
use crate::{Error, Result};

/// Name and shape of a parameter of the network, as torchvision has them.
#[derive(Clone, Debug)]
pub(crate) struct ParameterShape {
    pub(crate) name: String,
    pub(crate) shape: Vec<i64>,
}

/// The parameters of a network in single precision, by name.
pub(crate) struct Parameters(Vec<(String, Vec<f32>)>);

impl Parameters {
    /// The values of the parameter with this name, in C order.
    ///
    /// # Panics
    /// If the network has no parameter of this name.
    pub(crate) fn get(&self, name: &str) -> &[f32] {
        let (_, values) = self
            .0
            .iter()
            .find(|(known, _)| known == name)
            .expect("every parameter was checked at load");
        values
    }

    /// Reads the parameters with these shapes from a safetensors file or a PyTorch checkpoint. `sha256` is what the file
    /// must have, if given.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be read, [`Error::WeightsDigest`] if it has another
    /// SHA-256, and [`Error::Weights`] if it is neither or has other tensors.
    pub(crate) fn read(path: &Path, shapes: &[ParameterShape], sha256: Option<&str>) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::io(path))?;
        // The digest takes as long as all else: it is computed beside it.
        let (found, parameters) = rayon::join(
            || sha256.map(|_| sha256_of(&bytes)),
            || Parameters::parse(path, &bytes, shapes),
        );
        match (sha256, found) {
            (Some(expected), Some(found)) if found != expected => Err(Error::WeightsDigest {
                path: path.to_owned(),
                expected: expected.to_owned(),
                found,
            }),
            _ => parameters,
        }
    }

    fn parse(path: &Path, bytes: &[u8], expected: &[ParameterShape]) -> Result<Self> {
        let wrong = |found: String| Error::Weights {
            path: path.to_owned(),
            found,
        };
        let file = TensorFile::open(bytes).map_err(wrong)?;
        let missing: Vec<_> = expected
            .iter()
            .map(|known| &known.name)
            .filter(|name| file.get(name).is_none())
            .collect();
        if let Some(first) = missing.first() {
            return Err(wrong(format!(
                "{} tensors missing, the first is {first}",
                missing.len()
            )));
        }
        // A deeper network has all the tensors of ResNet-50, and more.
        let is_expected = |name: &str| {
            expected.iter().any(|known| known.name == name)
                || name.starts_with("fc.")
                || name.ends_with("num_batches_tracked")
        };
        if let Some(name) = file.names().into_iter().filter(|name| !is_expected(name)).min() {
            return Err(wrong(format!("{name}, which ResNet-50 lacks")));
        }
        let read = |ParameterShape { name, shape }: &ParameterShape| {
            let (dtype, found, bytes) = file.get(name).expect("no tensor is missing");
            if found.iter().map(|&length| length as i64).ne(shape.iter().copied()) {
                return Err(wrong(format!("{name} of shape {found:?} instead of {shape:?}")));
            }
            let values = match dtype {
                Dtype::F32 => (bytes.as_chunks().0.iter())
                    .map(|bytes| f32::from_le_bytes(*bytes))
                    .collect(),
                Dtype::F16 => widened(bytes, Kind::Half)?,
                Dtype::BF16 => widened(bytes, Kind::BFloat16)?,
                other => return Err(wrong(format!("{name} of type {other:?} instead of F32, F16 or BF16"))),
            };
            if !values.iter().all(|value| value.is_finite()) {
                return Err(wrong(format!("{name} with values that are not finite")));
            }
            Ok((name.clone(), values))
        };
        expected.par_iter().map(read).collect::<Result<_>>().map(Parameters)
    }

    /// Parameters without training: the same numbers on every machine.
    ///
    /// The weights of convolutions are uniform with a variance of 2 / fan-in (He et al., 2015,
    /// arXiv:1502.01852). Batch norms are the identity, except that the last of each block halves:
    /// otherwise sixteen residual sums would overflow fp16. There is only integer arithmetic, one
    /// multiplication and one conversion, so that the bits are the same everywhere.
    pub(crate) fn untrained(shapes: &[ParameterShape]) -> Self {
        let mut state = 0_u64;
        let mut uniform = || {
            // splitmix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
            // 2014.
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            // The upper 24 bits, as an odd multiple of 2⁻²⁴ in (−1, 1).
            (((z ^ (z >> 31)) >> 40) as f32 * 2.0 + 1.0) / 16_777_216.0 - 1.0
        };
        let make = |ParameterShape { name, shape }: &ParameterShape| {
            let n: i64 = shape.iter().product();
            let values: Vec<f32> = match name.rsplit('.').next() {
                Some("weight") if shape.len() == 4 => {
                    let bound = (6.0 / (n / shape[0]) as f32).sqrt();
                    (0..n).map(|_| bound * uniform()).collect()
                }
                Some("weight") if name.contains("bn3") => vec![0.5; n as usize],
                Some("weight" | "running_var") => vec![1.0; n as usize],
                _ => vec![0.0; n as usize],
            };
            (name.clone(), values)
        };
        Parameters(shapes.iter().map(make).collect())
    }

    /// SHA-256 of the recipe of [`untrained`](Self::untrained), which stands for these parameters
    /// in keys.
    pub(crate) fn untrained_sha256() -> String {
        /// Names what `untrained` does: a change there needs a change here.
        const RECIPE: &str =
            "ResNet-50, He uniform (fan in), splitmix64 seeded 0, last batch norm of a block 0.5, version 1";
        sha256_of(RECIPE.as_bytes())
    }
}

/// A file of tensors, of one of two formats.
enum TensorFile<'a> {
    Safetensors(SafeTensors<'a>),
    Checkpoint(HashMap<String, StoredTensor>),
}

impl<'a> TensorFile<'a> {
    /// The first bytes tell the format. An error says what was found.
    fn open(bytes: &'a [u8]) -> std::result::Result<Self, String> {
        if checkpoint::is_checkpoint(bytes) {
            Ok(TensorFile::Checkpoint(checkpoint::read(bytes)?))
        } else {
            let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
            Ok(TensorFile::Safetensors(file))
        }
    }

    fn names(&self) -> Vec<&str> {
        match self {
            TensorFile::Safetensors(file) => file.names(),
            TensorFile::Checkpoint(tensors) => tensors.keys().map(String::as_str).collect(),
        }
    }

    /// The type, shape and little-endian bytes of a tensor.
    fn get(&self, name: &str) -> Option<(Dtype, Vec<usize>, &[u8])> {
        match self {
            TensorFile::Safetensors(file) => {
                let view = file.tensor(name).ok()?;
                Some((view.dtype(), view.shape().to_vec(), view.data()))
            }
            TensorFile::Checkpoint(tensors) => {
                let StoredTensor { dtype, shape, bytes } = tensors.get(name)?;
                Some((*dtype, shape.clone(), bytes))
            }
        }
    }
}

/// Values of a 16-bit format in single precision.
fn widened(bytes: &[u8], kind: Kind) -> Result<Vec<f32>> {
    let values = Tensor::f_from_data_size(bytes, &[(bytes.len() / 2) as i64], kind)?;
    Ok(values.f_to_kind(Kind::Float)?.try_into()?)
}
