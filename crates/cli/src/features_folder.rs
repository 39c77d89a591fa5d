//! The folder `features/`: `.npy` files that numpy reads, and `features.json`, which says what their rows are.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use luthier_artifact::{
    Content, Digest, ExtractorInfo, FeatureTable, Manifest, Split, write_atomically, write_atomically_with,
};
use luthier_eval::Skipped;
use luthier_extract::{DataSource, SkippedImages};
use ndarray::{Array1, Array2};
use ndarray_npy::{ReadNpyExt, WriteNpyExt};
use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// `features.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Index {
    /// Class names in label order.
    pub classes: Vec<String>,
    /// The folders that the file names below are relative to.
    pub folders: Splits<PathBuf>,
    /// What the rows of the `.npy` files are.
    pub rows: Splits<Vec<IndexRow>>,
    /// How the features were made.
    pub extractor: ExtractorInfo,
    /// The images that could not be read.
    pub skipped: Vec<SkippedRow>,
}

/// Something of each split.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Splits<T> {
    pub train: T,
    pub test: T,
}

impl<T> Splits<T> {
    pub(crate) fn get(&self, split: Split) -> &T {
        match split {
            Split::Train => &self.train,
            Split::Test => &self.test,
        }
    }
}

/// A row of features.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct IndexRow {
    pub file: String,
    pub class: String,
    pub digest: Digest,
}

/// An image that could not be read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SkippedRow {
    pub split: Split,
    pub file: String,
    pub class: String,
    pub reason: String,
}

impl Index {
    /// Joins feature tables, which know images by their digest, with the manifest, which knows their files.
    pub(crate) fn new(
        source: &DataSource,
        manifest: &Manifest,
        train: &FeatureTable,
        test: &FeatureTable,
        skipped: &SkippedImages,
    ) -> Result<Self> {
        let folder = |split| std::path::absolute(source.folder(split)).context("current folder");
        Ok(Index {
            classes: manifest.classes.clone(),
            folders: Splits {
                train: folder(Split::Train)?,
                test: folder(Split::Test)?,
            },
            rows: Splits {
                train: rows(manifest, Split::Train, train),
                test: rows(manifest, Split::Test, test),
            },
            extractor: train.extractor.clone(),
            skipped: skipped_files(manifest, skipped),
        })
    }

    /// The skipped images as the report shows them.
    pub(crate) fn skipped(&self) -> Vec<Skipped> {
        let skipped = |SkippedRow {
                           split,
                           file,
                           class,
                           reason,
                       }: SkippedRow| Skipped {
            split,
            file,
            class,
            reason,
        };
        self.skipped.iter().cloned().map(skipped).collect()
    }
}

/// The files of a table's rows. Files with the same bytes in the same class are told apart by their order.
fn rows(manifest: &Manifest, split: Split, table: &FeatureTable) -> Vec<IndexRow> {
    let mut files: Vec<(usize, Digest, &str)> = (manifest.entries.iter())
        .filter(|entry| entry.split == split)
        .filter_map(|entry| match entry.content {
            Content::Digest(digest) => Some((manifest.label(&entry.class)?, digest, entry.file.as_str())),
            Content::Unreadable(_) => None,
        })
        .collect();
    files.sort_unstable();
    let mut files = files.into_iter().peekable();
    let file_of = |(&label, &digest)| {
        // Both are ordered by label and digest; files without a row were skipped.
        while files
            .next_if(|(other, image, _)| (*other, *image) < (label, digest))
            .is_some()
        {}
        let (_, _, file) = files.next().expect("every row has a file");
        IndexRow {
            file: file.to_owned(),
            class: table.classes[label].clone(),
            digest,
        }
    };
    table.labels.iter().zip(&table.images).map(file_of).collect()
}

/// The images of a manifest that could not be read or decoded.
pub(crate) fn skipped_files(manifest: &Manifest, skipped: &SkippedImages) -> Vec<SkippedRow> {
    let entries = manifest.entries.iter().filter_map(|entry| {
        let reason = match &entry.content {
            Content::Unreadable(reason) => reason.as_str(),
            Content::Digest(digest) => skipped.reason(digest)?,
        };
        Some(SkippedRow {
            split: entry.split,
            file: entry.file.clone(),
            class: entry.class.clone(),
            reason: reason.to_owned(),
        })
    });
    entries.collect()
}

/// The paths of the files of a split.
pub(crate) fn npy_paths(folder: &Path, split: Split) -> (PathBuf, PathBuf) {
    (
        folder.join(format!("{split}_features.npy")),
        folder.join(format!("{split}_labels.npy")),
    )
}

/// The path of the index.
pub(crate) fn index_path(folder: &Path) -> PathBuf {
    folder.join("features.json")
}

/// Writes the `.npy` files of a split: `f32 [n, 2048]` and `i64 [n]`, in C order.
pub(crate) fn write_table(folder: &Path, split: Split, table: &FeatureTable) -> Result<()> {
    let (features, labels) = npy_paths(folder, split);
    write_atomically_with(&features, |file| {
        table.features.write_npy(file).map_err(io::Error::other)
    })?;
    let values: Array1<i64> = table.labels.iter().map(|&label| label as i64).collect();
    write_atomically_with(&labels, |file| values.write_npy(file).map_err(io::Error::other))?;
    Ok(())
}

/// Writes `features.json`.
pub(crate) fn write_index(folder: &Path, index: &Index) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(index)?;
    json.push(b'\n');
    Ok(write_atomically(&index_path(folder), &json)?)
}

/// Reads `features.json`.
///
/// # Errors
/// A [`Problem`] if the file is not there, or not of this form.
pub(crate) fn read_index(folder: &Path) -> Result<Index> {
    let path = index_path(folder);
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!(
                Problem::new(format!(
                    "{}: no such file, expected what `luthier extract` writes",
                    path.display()
                ))
                .hint(format!("run luthier extract --output-dir {}", folder.display()))
            )
        }
        other => other.with_context(|| path.display().to_string())?,
    };
    serde_json::from_slice(&text).with_context(|| format!("{}: expected what `luthier extract` writes", path.display()))
}

/// Reads the features of a split, and checks that they belong to the index.
///
/// # Errors
/// A [`Problem`] that names the file, what was expected and what was found.
pub(crate) fn read_table(folder: &Path, split: Split, index: &Index) -> Result<FeatureTable> {
    let (features_path, labels_path) = npy_paths(folder, split);
    let features: Array2<f32> = read_npy(&features_path, "f32 [n, 2048]")?;
    let labels: Array1<i64> = read_npy(&labels_path, "i64 [n]")?;
    let rows = index.rows.get(split);
    for (path, found) in [(&features_path, features.nrows()), (&labels_path, labels.len())] {
        if found != rows.len() {
            bail!(
                Problem::new(format!(
                    "{}: expected {} rows as in features.json, found {found}",
                    path.display(),
                    rows.len()
                ))
                .hint("run luthier extract again")
            );
        }
    }
    let label = |(row, &label): (usize, &i64)| -> Result<usize> {
        match usize::try_from(label)
            .ok()
            .filter(|&label| index.classes.get(label) == Some(&rows[row].class))
        {
            Some(label) => Ok(label),
            None => bail!(Problem::new(format!(
                "{}: expected the label of {} in row {row}, found {label}",
                labels_path.display(),
                rows[row].class
            ))),
        }
    };
    Ok(FeatureTable {
        classes: index.classes.clone(),
        extractor: index.extractor.clone(),
        labels: labels.iter().enumerate().map(label).collect::<Result<_>>()?,
        images: rows.iter().map(|row| row.digest).collect(),
        features,
    })
}

fn read_npy<A: ndarray_npy::ReadableElement, D: ndarray::Dimension>(
    path: &Path,
    expected: &str,
) -> Result<ndarray::Array<A, D>> {
    let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    ndarray::Array::read_npy(io::BufReader::new(file))
        .with_context(|| format!("{}: expected {expected}", path.display()))
}
