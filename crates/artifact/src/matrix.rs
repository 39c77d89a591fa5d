use std::borrow::Cow;
use std::collections::HashMap;

use ndarray::{Array1, Array2, ArrayD, ArrayView1, IxDyn};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, View};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Digest, Error, Result};

/// The only metadata entry that is written: safetensors keeps metadata in a hash map,
/// whose order would otherwise change the bytes from run to run.
const METADATA: &str = "luthier";

/// Named matrices and a description, on their way into a safetensors file.
///
/// Equal contents give equal bytes.
#[derive(Debug)]
pub struct TensorsBuilder {
    header: String,
    tensors: Vec<(String, RawTensor)>,
}

#[derive(Debug)]
struct RawTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for &RawTensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// A number with a safetensors type.
pub trait Element: Copy {
    /// Its name in safetensors.
    const DTYPE: Dtype;
    /// Appends the little-endian bytes.
    fn write(self, bytes: &mut Vec<u8>);
    /// Reads little-endian bytes of exactly this type's size.
    fn read(bytes: &[u8]) -> Self;
}

macro_rules! element {
    ($($type:ty => $dtype:ident),*) => {$(
        impl Element for $type {
            const DTYPE: Dtype = Dtype::$dtype;
            fn write(self, bytes: &mut Vec<u8>) {
                bytes.extend(self.to_le_bytes());
            }
            fn read(bytes: &[u8]) -> Self {
                <$type>::from_le_bytes(bytes.try_into().expect("chunks have the size of the type"))
            }
        }
    )*};
}
element!(f32 => F32, f64 => F64, i64 => I64, u8 => U8);

impl TensorsBuilder {
    /// A file of this format, whose metadata hold `header` as JSON.
    pub fn new(format: &'static str, header: &impl Serialize) -> Self {
        let header = serde_json::to_string(&(format, header)).expect("plain data always serialize");
        TensorsBuilder {
            header,
            tensors: Vec::new(),
        }
    }

    /// Adds a tensor. Elements are written in C order, whatever the array's strides.
    #[must_use]
    pub fn tensor<T: Element, D: ndarray::Dimension>(mut self, name: &str, array: &ndarray::ArrayRef<T, D>) -> Self {
        let mut bytes = Vec::with_capacity(array.len() * size_of::<T>());
        array.iter().for_each(|value| value.write(&mut bytes));
        self.tensors.push((
            name.to_owned(),
            RawTensor {
                dtype: T::DTYPE,
                shape: array.shape().to_vec(),
                bytes,
            },
        ));
        self
    }

    /// Adds digests as a tensor, `u8 [n, 32]`.
    #[must_use]
    pub fn digests(self, name: &str, digests: &[Digest]) -> Self {
        let byte = |(row, byte): (usize, usize)| digests[row].as_bytes()[byte];
        self.tensor(name, &Array2::from_shape_fn((digests.len(), 32), byte))
    }

    /// The bytes of the safetensors file.
    pub fn finish(self) -> Vec<u8> {
        let metadata = HashMap::from([(METADATA.to_owned(), self.header)]);
        safetensors::serialize(self.tensors.iter().map(|(name, tensor)| (name, tensor)), Some(metadata))
            .expect("shapes and lengths agree by construction")
    }
}

/// A safetensors file that [`TensorsBuilder`] wrote.
#[derive(Debug)]
pub struct Tensors<'a> {
    format: &'static str,
    header: String,
    tensors: SafeTensors<'a>,
}

impl<'a> Tensors<'a> {
    /// Opens the bytes of a file of this format.
    ///
    /// # Errors
    /// [`Error::Format`] if they are not safetensors or of another format.
    pub fn open(format: &'static str, bytes: &'a [u8]) -> Result<Self> {
        let wrong = |found: String| Error::Format {
            expected: format,
            found,
        };
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| wrong(error.to_string()))?;
        let header = metadata
            .metadata()
            .as_ref()
            .and_then(|entries| entries.get(METADATA))
            .ok_or_else(|| wrong("a safetensors file that luthier did not write".to_owned()))?
            .clone();
        let (found, _): (String, serde_json::Value) =
            serde_json::from_str(&header).map_err(|error| wrong(error.to_string()))?;
        if found != format {
            return Err(wrong(found));
        }
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| wrong(error.to_string()))?;
        Ok(Tensors {
            format,
            header,
            tensors,
        })
    }

    /// The format that bytes name, or `None` if [`TensorsBuilder`] did not write them.
    pub fn format_of(bytes: &[u8]) -> Option<String> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).ok()?;
        let header = metadata.metadata().as_ref()?.get(METADATA)?;
        let (format, _): (String, serde_json::Value) = serde_json::from_str(header).ok()?;
        Some(format)
    }

    /// The header that was given to [`TensorsBuilder::new`].
    ///
    /// # Errors
    /// [`Error::Format`] if it has other fields.
    pub fn header<T: DeserializeOwned>(&self) -> Result<T> {
        let (_, header): (String, T) =
            serde_json::from_str(&self.header).map_err(|error| self.wrong(error.to_string()))?;
        Ok(header)
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }

    /// A vector by name.
    ///
    /// # Errors
    /// [`Error::Format`] if it is missing, of another type or not one-dimensional.
    pub fn vector<T: Element>(&self, name: &str) -> Result<Array1<T>> {
        self.array(name)?
            .into_dimensionality()
            .map_err(|error| self.wrong(format!("{name}: {error}")))
    }

    /// A matrix by name.
    ///
    /// # Errors
    /// [`Error::Format`] if it is missing, of another type or not two-dimensional.
    pub fn matrix<T: Element>(&self, name: &str) -> Result<Array2<T>> {
        self.array(name)?
            .into_dimensionality()
            .map_err(|error| self.wrong(format!("{name}: {error}")))
    }

    /// Digests that [`TensorsBuilder::digests`] wrote.
    ///
    /// # Errors
    /// [`Error::Format`] if they are missing, of another type or not 32 bytes each.
    pub fn digests(&self, name: &str) -> Result<Vec<Digest>> {
        let matrix = self.matrix::<u8>(name)?;
        let digest = |row: ArrayView1<'_, u8>| row.to_vec().try_into().map(Digest::from_bytes);
        (matrix.outer_iter().map(digest).collect::<std::result::Result<_, _>>())
            .map_err(|row: Vec<u8>| self.wrong(format!("{name}: a digest of {} bytes", row.len())))
    }

    fn array<T: Element>(&self, name: &str) -> Result<ArrayD<T>> {
        let view = self
            .tensors
            .tensor(name)
            .map_err(|error| self.wrong(error.to_string()))?;
        if view.dtype() != T::DTYPE {
            return Err(self.wrong(format!("{name} of type {:?} instead of {:?}", view.dtype(), T::DTYPE)));
        }
        let values = view.data().chunks_exact(size_of::<T>()).map(T::read).collect();
        ArrayD::from_shape_vec(IxDyn(view.shape()), values).map_err(|error| self.wrong(format!("{name}: {error}")))
    }

    /// The error of this format with what was found instead.
    pub fn wrong(&self, found: String) -> Error {
        Error::Format {
            expected: self.format,
            found,
        }
    }
}
