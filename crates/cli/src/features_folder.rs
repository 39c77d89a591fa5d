//! The folder `features/`: `.npy` files that numpy reads, and `features.json`, which says what their rows are.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use luthier_artifact::{
    Content, Digest, ExtractorInfo, FeatureRows, FeatureTable, Manifest, ManifestEntry, Split, Written, class_of,
    write_atomically, write_atomically_with,
};
use luthier_cache::StoredTable;
use luthier_eval::Skipped;
use luthier_extract::{DataSource, PerceptualHash, SkippedImages};
use ndarray::{Array, Array1, Array2, Dimension, IxDyn, ShapeBuilder};
use npyz::WriterBuilder;
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

/// Where an image lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place<'a> {
    pub image: Digest,
    pub split: Split,
    pub file: &'a str,
}

impl<'a> Place<'a> {
    /// The class: the first folder of the path.
    pub(crate) fn class(&self) -> &'a str {
        class_of(self.file)
    }
}

/// Where the images of a manifest lie, but for those that were skipped.
pub(crate) fn places<'a>(manifest: &'a Manifest, skipped: &SkippedImages) -> Vec<Place<'a>> {
    let place = |entry: &'a ManifestEntry| match entry.content {
        Content::Digest(image) if skipped.reason(&image).is_none() => Some(Place {
            image,
            split: entry.split,
            file: &entry.file,
        }),
        _ => None,
    };
    manifest.entries.iter().filter_map(place).collect()
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
    /// The file of an image of a split.
    pub(crate) fn file_of(&self, split: Split, image: &Digest) -> Option<String> {
        let row = self.rows.get(split).iter().find(|row| row.digest == *image)?;
        Some(self.folders.get(split).join(&row.file).display().to_string())
    }

    /// Joins feature tables, which know images by their digest, with the manifest, which knows their files.
    pub(crate) fn new(
        source: &DataSource,
        manifest: &Manifest,
        train: &FeatureRows,
        test: &FeatureRows,
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

    /// Where the images of the rows lie.
    pub(crate) fn places(&self) -> Vec<Place<'_>> {
        let rows = |split| self.rows.get(split).iter().map(move |row| (split, row));
        rows(Split::Train)
            .chain(rows(Split::Test))
            .map(|(split, row)| Place {
                image: row.digest,
                split,
                file: &row.file,
            })
            .collect()
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
fn rows(manifest: &Manifest, split: Split, table: &FeatureRows) -> Vec<IndexRow> {
    let mut files: Vec<(usize, Digest, &str)> = (manifest.entries.iter())
        .filter(|entry| entry.split == split)
        .filter_map(|entry| match entry.content {
            Content::Digest(digest) => Some((manifest.label(entry.class())?, digest, entry.file.as_str())),
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
            class: entry.class().to_owned(),
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

/// The path of the perceptual hashes of a split.
pub(crate) fn hashes_path(folder: &Path, split: Split) -> PathBuf {
    folder.join(format!("{split}_hashes.npy"))
}

/// The path of the index.
pub(crate) fn index_path(folder: &Path) -> PathBuf {
    folder.join("features.json")
}

/// Writes the `.npy` files of a split: `f32 [n, 2048]` and `i64 [n]`, in C order.
pub(crate) fn write_table(folder: &Path, split: Split, table: &StoredTable<'_>) -> Result<Vec<Written>> {
    let (features, labels) = npy_paths(folder, split);
    let features = write_features(&features, table)?;
    let rows = table.rows();
    let labels = write_atomically_with(&labels, |file| {
        file.write_all(&npy_header::<i64>(&[rows.n_rows() as u64])?)?;
        let mut labels = rows.labels.iter();
        labels.try_for_each(|&label| file.write_all(&(label as i64).to_le_bytes()))
    })?;
    Ok(vec![features, labels])
}

/// Writes the features of a table, or perceptual hashes: `f32 [n, width]` in C order.
pub(crate) fn write_features(path: &Path, table: &StoredTable<'_>) -> Result<Written> {
    /// How many rows are in memory at once.
    const ROWS_AT_ONCE: usize = 4096;
    let rows = table.rows();
    let shape = [rows.n_rows() as u64, rows.width as u64];
    let mut read_error = None;
    let written = write_atomically_with(path, |file| {
        file.write_all(&npy_header::<f32>(&shape)?)?;
        let mut bytes = Vec::new();
        for start in (0..rows.n_rows()).step_by(ROWS_AT_ONCE) {
            match table.features(start..rows.n_rows().min(start + ROWS_AT_ONCE)) {
                Ok(block) => {
                    bytes.clear();
                    block
                        .iter()
                        .for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
                    file.write_all(&bytes)?;
                }
                Err(error) => {
                    read_error = Some(error);
                    return Err(io::Error::other("features lost"));
                }
            }
        }
        Ok(())
    });
    // What could not be read is not the file's fault.
    match read_error {
        Some(error) => Err(error.into()),
        None => Ok(written?),
    }
}

/// What stands before the little-endian elements of an array in C order.
fn npy_header<T: npyz::AutoSerialize>(shape: &[u64]) -> io::Result<Vec<u8>> {
    let mut header = Vec::new();
    npyz::WriteOptions::<T>::new()
        .default_dtype()
        .shape(shape)
        .writer(&mut header)
        .begin_nd()?;
    Ok(header)
}

/// Writes `features.json`.
pub(crate) fn write_index(folder: &Path, index: &Index) -> Result<Written> {
    let mut json = serde_json::to_vec_pretty(index)?;
    json.push(b'\n');
    Ok(write_atomically(&index_path(folder), &json)?)
}

/// Reads `features.json`; with it comes the digest of its bytes.
///
/// # Errors
/// A [`Problem`] if the file is not there, or not of this form.
pub(crate) fn read_index(folder: &Path) -> Result<(Index, Digest)> {
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
    let index = serde_json::from_slice(&text)
        .with_context(|| format!("{}: expected what `luthier extract` writes", path.display()))?;
    Ok((index, Digest::of(&text)))
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
    check_length(&features_path, rows.len(), features.nrows())?;
    check_length(&labels_path, rows.len(), labels.len())?;
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

/// Reads the perceptual hashes of a split, if they are there: features that something else than `luthier extract` made have
/// none.
///
/// # Errors
/// A [`Problem`] that names the file, what was expected and what was found.
pub(crate) fn read_hashes(folder: &Path, split: Split, table: &FeatureTable) -> Result<Option<FeatureTable>> {
    let path = hashes_path(folder, split);
    if !path.exists() {
        return Ok(None);
    }
    let hashes: Array2<f32> = read_npy(&path, &format!("f32 [n, {}]", PerceptualHash::WIDTH))?;
    check_length(&path, table.n_rows(), hashes.nrows())?;
    if hashes.ncols() != PerceptualHash::WIDTH || hashes.iter().any(|value| !(0.0..=255.0).contains(value)) {
        bail!(
            Problem::new(format!(
                "{}: expected {} numbers from 0 to 255 a row, found others",
                path.display(),
                PerceptualHash::WIDTH
            ))
            .hint("run luthier extract again, or remove the file")
        );
    }
    Ok(Some(FeatureTable {
        extractor: PerceptualHash::info(&table.extractor.decode),
        classes: table.classes.clone(),
        labels: table.labels.clone(),
        images: table.images.clone(),
        features: hashes,
    }))
}

fn check_length(path: &Path, expected: usize, found: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    bail!(
        Problem::new(format!(
            "{}: expected {expected} rows as in features.json, found {found}",
            path.display(),
        ))
        .hint("run luthier extract again")
    )
}

fn read_npy<T: npyz::AutoSerialize + npyz::Deserialize, D: Dimension>(
    path: &Path,
    expected: &str,
) -> Result<Array<T, D>> {
    let read = || -> Result<Array<T, D>> {
        let npy = npyz::NpyFile::new(io::BufReader::new(File::open(path)?))?;
        let shape: Vec<usize> = npy.shape().iter().map(|&length| length as usize).collect();
        let is_fortran = npy.order() == npyz::Order::Fortran;
        let found = format!("{} {shape:?}", npy.dtype().descr());
        let values = npy
            .try_data::<T>()
            .map_err(|_| Problem::new(found.clone()))?
            .collect::<io::Result<Vec<T>>>()?;
        let array = Array::from_shape_vec(IxDyn(&shape).set_f(is_fortran), values)?;
        array.into_dimensionality().map_err(|_| Problem::new(found).into())
    };
    read().with_context(|| format!("{}: expected {expected}", path.display()))
}
