//! What the stages of Luthier exchange, as plain data.
//!
//! - [`Digest`]: the blake3 digest by which every artifact, image and configuration is known
//! - [`Artifact`]: a type with a canonical byte form; [`Manifest`], [`FeatureRows`] and [`ImageRows`] travel between crates
//! - [`Key`]: what a stage's result depends on, each part kept by name, so that a miss can be explained
//! - [`ReadRows`]: features that are read a block of rows at a time, wherever they are kept
//! - [`CrossValidationInfo`]: what the choice of C found, which the model file and the report carry
//! - [`Observer`]: what work that takes a while reports to, and what may stop it
//! - [`file_names`]: names of files as text, also those that are not UTF-8
//! - [`UnknownName`]: the error of an enum whose variants are known by name
//!
//! This crate knows nothing of the cache, images, tensors or statistics.

mod atomic;
mod digest;
mod error;
pub mod file_names;
mod image_rows;
mod images;
pub mod json;
mod key;
mod manifest;
mod matrix;
mod names;
mod observer;
mod rows;
mod stat;
mod table;
mod training;

pub use atomic::{
    TEMPORARY, Written, entries, folder_of, if_supported, remove, remove_unfinished, sync_folder, temporary,
    temporary_for, write_atomically, write_atomically_with,
};
pub use digest::Digest;
pub use error::{Error, Result};
pub use image_rows::ImageRows;
pub use images::{ListsImages, images_of};
pub use key::{Key, KeyBuilder, KeyPart};
pub use manifest::{Content, Manifest, ManifestEntry, Split};
pub use matrix::{Tensors, TensorsBuilder};
pub use names::UnknownName;
pub use observer::{Interrupted, Observer, Task, Watched};
pub use rows::{ReadError, ReadRows};
pub use stat::FileStat;
pub use table::{ExtractorInfo, FeatureRows, FeatureTable, vector_bytes, vector_digest};
pub use training::{CandidateC, CrossValidationInfo, LearningPoint, Threshold};

/// A value with one canonical byte form: equal values encode to equal bytes.
pub trait Artifact: Sized {
    /// Names the type and the version of its format, for example `manifest/2`.
    const FORMAT: &'static str;

    /// The canonical bytes.
    fn encode(&self) -> Vec<u8>;

    /// Reads what [`encode`](Artifact::encode) wrote.
    ///
    /// # Errors
    /// [`Error::Format`] if `bytes` are not of this [`FORMAT`](Artifact::FORMAT).
    fn decode(bytes: &[u8]) -> Result<Self>;

    /// The digest of the canonical bytes.
    fn digest(&self) -> Digest {
        Digest::of(&self.encode())
    }
}
