//! The folder `features/`: `.npy` files that numpy reads, and `features.json`, which says what their rows are.
//!
//! The files are replaced one by one, so that a kill, a full disk or two runs at once can leave files of different runs
//! beside each other. `features.json` is written last and has the digest of each table. Reading checks the digests.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use luthier_artifact::{
    Artifact, Content, Digest, ExtractorInfo, FeatureRows, Manifest, ManifestEntry, ReadRows, Split, Written,
    file_names, vector_digest, write_atomically, write_atomically_with,
};
use luthier_cache::StoredVectors;
use luthier_eval::Skipped;
use luthier_extract::{DataSource, Decided, PerceptualHash, SkippedImages};
use ndarray::{Array, Array1, Array2, Dimension, IxDyn, ShapeBuilder};
use npyz::WriterBuilder;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What `features.json` says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FeaturesJson {
    /// Class names in label order.
    pub classes: Vec<String>,
    /// The folders that the file names below are relative to.
    pub folders: BySplit<String>,
    /// What the rows of the `.npy` files are.
    pub rows: BySplit<Vec<NamedRow>>,
    /// How the features were made.
    pub extractor: ExtractorInfo,
    /// The images that could not be read.
    pub skipped: Vec<Skipped>,
    /// What people have decided about the images.
    #[serde(default, skip_serializing_if = "Decided::is_empty")]
    pub decided: Decided,
    /// The digests of the tables. Features that something else than Luthier made have none, and are not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digests: Option<BySplit<TableDigests>>,
}

/// What `features.json` says of images without labels.
#[derive(Debug, Serialize)]
pub(crate) struct UnlabelledJson<'a> {
    /// The folder that the file names below are relative to.
    folder: &'a str,
    /// What the rows of the `.npy` files are.
    rows: Vec<UnlabelledRow<'a>>,
    /// How the features were made.
    extractor: &'a ExtractorInfo,
    /// The images that could not be read.
    skipped: Vec<UnlabelledSkipped<'a>>,
    /// The digests of the tables.
    digests: Option<TableDigests>,
}

/// An image without a label.
#[derive(Debug, Serialize)]
struct UnlabelledRow<'a> {
    file: &'a str,
    digest: &'a Digest,
}

/// An image without a label that could not be read.
#[derive(Debug, Serialize)]
struct UnlabelledSkipped<'a> {
    file: &'a str,
    reason: &'a str,
}

/// Something of each split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BySplit<T> {
    /// What the training split has.
    pub train: T,
    /// What the test split has.
    pub test: T,
}

impl<T> BySplit<T> {
    /// What a split has.
    pub(crate) fn get(&self, split: Split) -> &T {
        match split {
            Split::Train => &self.train,
            Split::Test => &self.test,
        }
    }
}

/// The digests of the files of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TableDigests {
    /// The digest of the [`FeatureRows`]: of classes, extractor, labels, images and features.
    pub features: Digest,
    /// The digest of the digests of the perceptual hashes, row by row.
    pub hashes: Digest,
}

/// Where an image lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ImageLocation<'a> {
    /// The digest of the image's bytes.
    pub image: Digest,
    /// The split.
    pub split: Split,
    /// The path below the split's folder.
    pub file: &'a str,
    /// The class.
    pub class: &'a str,
}

impl<'a> ImageLocation<'a> {
    /// The path with its split, for example `train/harp/1.jpg`.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.split, self.file)
    }
}

/// Where the images of a manifest lie, but for those that were skipped.
pub(crate) fn places<'a>(manifest: &'a Manifest, skipped: &SkippedImages) -> Vec<ImageLocation<'a>> {
    let place = |entry: &'a ManifestEntry| match entry.content {
        Content::Digest(image) if skipped.reason(&image).is_none() => Some(ImageLocation {
            image,
            split: entry.split,
            file: &entry.file,
            class: &entry.class,
        }),
        _ => None,
    };
    manifest.entries.iter().filter_map(place).collect()
}

/// What a row of the `.npy` files is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NamedRow {
    /// The image's path below its split's folder.
    pub file: String,
    /// The class.
    pub class: String,
    /// The digest of the image's bytes.
    pub digest: Digest,
}

impl FeaturesJson {
    /// The file of an image of a split.
    pub(crate) fn file_of(&self, split: Split, image: &Digest) -> Option<String> {
        let row = self.rows.get(split).iter().find(|row| row.digest == *image)?;
        let folder = file_names::path_of(self.folders.get(split));
        Some(folder.join(file_names::path_of(&row.file)).display().to_string())
    }

    /// Joins feature tables, which know images by their digest, with the manifest, which knows their files.
    pub(crate) fn new(
        source: &DataSource,
        manifest: &Manifest,
        [train, test]: [&FeatureRows; 2],
        digests: BySplit<TableDigests>,
        skipped: &SkippedImages,
        decided: &Decided,
    ) -> Result<Self> {
        let folder = |split| {
            let folder = source.folder(split);
            let path = std::path::absolute(folder).map_err(Error::io(folder))?;
            Ok::<String, Error>(file_names::name_of(&path))
        };
        Ok(FeaturesJson {
            classes: manifest.classes.clone(),
            folders: BySplit {
                train: folder(Split::Train)?,
                test: folder(Split::Test)?,
            },
            rows: BySplit {
                train: rows(manifest, Split::Train, train),
                test: rows(manifest, Split::Test, test),
            },
            extractor: train.extractor.clone(),
            skipped: skipped_files(manifest, skipped),
            decided: decided.clone(),
            digests: Some(digests),
        })
    }

    /// The same of images without labels, which are all in the training split.
    pub(crate) fn unlabelled(&self) -> UnlabelledJson<'_> {
        UnlabelledJson {
            folder: &self.folders.train,
            rows: (self.rows.train.iter())
                .map(|NamedRow { file, digest, .. }| UnlabelledRow { file, digest })
                .collect(),
            extractor: &self.extractor,
            skipped: (self.skipped.iter())
                .map(|Skipped { file, reason, .. }| UnlabelledSkipped { file, reason })
                .collect(),
            digests: self.digests.as_ref().map(|digests| digests.train),
        }
    }

    /// Where the images of the rows lie.
    pub(crate) fn places(&self) -> Vec<ImageLocation<'_>> {
        let rows = |split| self.rows.get(split).iter().map(move |row| (split, row));
        rows(Split::Train)
            .chain(rows(Split::Test))
            .map(|(split, row)| ImageLocation {
                image: row.digest,
                split,
                file: &row.file,
                class: &row.class,
            })
            .collect()
    }
}

/// The files of a table's rows. Files with the same bytes in the same class are told apart by their order.
fn rows(manifest: &Manifest, split: Split, table: &FeatureRows) -> Vec<NamedRow> {
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
        NamedRow {
            file: file.to_owned(),
            class: table.classes[label].clone(),
            digest,
        }
    };
    table.labels.iter().zip(&table.images).map(file_of).collect()
}

/// The images of a manifest that could not be read or decoded.
pub(crate) fn skipped_files(manifest: &Manifest, skipped: &SkippedImages) -> Vec<Skipped> {
    let entries = manifest.entries.iter().filter_map(|entry| {
        let reason = match &entry.content {
            Content::Unreadable(reason) => reason.as_str(),
            Content::Digest(digest) => skipped.reason(digest)?,
        };
        Some(Skipped {
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

/// The path of the perceptual hashes of a split.
pub(crate) fn hashes_path(folder: &Path, split: Split) -> PathBuf {
    folder.join(format!("{split}_hashes.npy"))
}

/// The features of images without labels.
pub(crate) const FEATURES_FILE: &str = "features.npy";

/// The perceptual hashes of images without labels.
pub(crate) const HASHES_FILE: &str = "hashes.npy";

/// The path of `features.json`.
pub(crate) fn json_path(folder: &Path) -> PathBuf {
    folder.join("features.json")
}

/// Writes the `.npy` files of a split: `f32 [n, d]` and `i64 [n]`, in C order.
pub(crate) fn write_table(
    folder: &Path,
    split: Split,
    labels: &[usize],
    features: &StoredVectors<'_>,
) -> Result<Vec<Written>> {
    let (features_path, labels_path) = npy_paths(folder, split);
    let features = write_rows(&features_path, features)?;
    let labels = write_atomically_with(&labels_path, |file| {
        file.write_all(&npy_header::<i64>(&[labels.len() as u64])?)?;
        labels
            .iter()
            .try_for_each(|&label| file.write_all(&(label as i64).to_le_bytes()))
    })?;
    Ok(vec![features, labels])
}

/// Writes features or perceptual hashes: `f32 [n, d]` in C order. Each row is put to its place as it comes off the disk.
pub(crate) fn write_rows(path: &Path, rows: &StoredVectors<'_>) -> Result<Written> {
    let shape = [rows.n_rows() as u64, rows.n_features() as u64];
    let mut read_error = None;
    let written = write_atomically_with(path, |file| {
        let header = npy_header::<f32>(&shape)?;
        file.write_all(&header)?;
        file.flush()?;
        let (mut file, n_row_bytes) = (*file.get_ref(), size_of::<f32>() * rows.n_features());
        let mut done = Ok(());
        let read = rows.each(&mut |row, bytes| {
            if done.is_ok() {
                let place = header.len() + row * n_row_bytes;
                done = file
                    .seek(SeekFrom::Start(place as u64))
                    .and_then(|_| file.write_all(bytes));
            }
        });
        if let Err(error) = read {
            read_error = Some(error);
            return Err(io::Error::other("features lost"));
        }
        done
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
pub(crate) fn write_json(folder: &Path, json: &impl Serialize) -> Result<Written> {
    let text = serde_json::to_string_pretty(json).expect("plain data always serialize");
    Ok(write_atomically(
        &json_path(folder),
        (file_names::to_json(text) + "\n").as_bytes(),
    )?)
}

/// Reads `features.json`; with it comes the digest of its bytes.
///
/// # Errors
/// [`Error::NoFeatures`] if there is no such file, [`Error::UnlabelledFeatures`] if it describes features without labels,
/// [`Error::FeaturesFile`] if it describes none.
pub(crate) fn read_json(folder: &Path) -> Result<(FeaturesJson, Digest)> {
    let path = json_path(folder);
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NoFeatures { path }),
        other => other.map_err(Error::io(&path))?,
    };
    let wrong = |found: String| Error::FeaturesFile {
        path: path.clone(),
        expected: "a description of features, as `luthier extract` writes it".to_owned(),
        found,
    };
    let json: FeaturesJson = (std::str::from_utf8(&text).map_err(|error| error.to_string()))
        .and_then(|text| serde_json::from_str(&file_names::from_json(text)).map_err(|error| error.to_string()))
        .map_err(|error| match is_unlabelled(&text) {
            true => Error::UnlabelledFeatures { path: path.clone() },
            false => wrong(error),
        })?;
    json.check().map_err(wrong)?;
    Ok((json, Digest::of(&text)))
}

/// Whether a description is of images without labels.
fn is_unlabelled(text: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Names {
        classes: Option<serde::de::IgnoredAny>,
        folder: Option<serde::de::IgnoredAny>,
    }
    let names = serde_json::from_slice(text).ok();
    names.is_some_and(|Names { classes, folder }| classes.is_none() && folder.is_some())
}

impl FeaturesJson {
    /// What is wrong with a description, for example one that another program wrote.
    fn check(&self) -> std::result::Result<(), String> {
        if self.classes.len() < 2 {
            return Err(format!("{} classes instead of two or more", self.classes.len()));
        }
        let mut known = HashSet::new();
        if let Some(class) = self.classes.iter().find(|class| !known.insert(class.as_str())) {
            return Err(format!("class {class:?} twice"));
        }
        for split in [Split::Train, Split::Test] {
            for (row, NamedRow { class, file, .. }) in self.rows.get(split).iter().enumerate() {
                if !known.contains(class.as_str()) {
                    return Err(format!(
                        "class {class:?} of {split} row {row} ({file}), which is not among the classes"
                    ));
                }
            }
        }
        Ok(())
    }

    /// The label of each class.
    pub(crate) fn labels(&self) -> HashMap<&str, usize> {
        let labels = self.classes.iter().enumerate();
        labels.map(|(label, class)| (class.as_str(), label)).collect()
    }
}

/// The features of a split as they were read, `f32 [n, d]`, with what is known of each row.
#[derive(Debug)]
pub(crate) struct ReadTable {
    pub rows: FeatureRows,
    pub features: Array2<f32>,
}

/// The perceptual hashes of a split as they were read, `f32 [n, 192]`, with the digest of each row.
#[derive(Debug)]
pub(crate) struct ReadHashes {
    pub vectors: Vec<Digest>,
    pub hashes: Array2<f32>,
}

/// Reads the features of a split, and checks that they are those that `features.json` describes.
///
/// # Errors
/// [`Error::FeaturesFile`] if a file has other rows than expected, [`Error::MixedFeatures`] if another run wrote it.
pub(crate) fn read_table(folder: &Path, split: Split, json: &FeaturesJson) -> Result<ReadTable> {
    let (features_path, labels_path) = npy_paths(folder, split);
    let features: Array2<f32> = read_npy(&features_path, "f32 [n, 2048]")?;
    let labels: Array1<i64> = read_npy(&labels_path, "i64 [n]")?;
    let named = json.rows.get(split);
    check_length(&features_path, named.len(), features.nrows())?;
    check_length(&labels_path, named.len(), labels.len())?;
    let label = |(row, &label): (usize, &i64)| -> Result<usize> {
        usize::try_from(label)
            .ok()
            .filter(|&label| json.classes.get(label) == Some(&named[row].class))
            .ok_or_else(|| Error::FeaturesFile {
                path: labels_path.clone(),
                expected: format!("the label of {} in row {row}", named[row].class),
                found: label.to_string(),
            })
    };
    let rows = FeatureRows {
        classes: json.classes.clone(),
        extractor: json.extractor.clone(),
        width: features.ncols(),
        labels: labels.iter().enumerate().map(label).collect::<Result<_>>()?,
        images: named.iter().map(|row| row.digest).collect(),
        vectors: features.outer_iter().map(vector_digest).collect(),
    };
    match &json.digests {
        Some(digests) if digests.get(split).features != rows.digest() => {
            Err(Error::MixedFeatures { path: features_path })
        }
        _ => Ok(ReadTable { rows, features }),
    }
}

/// Reads the perceptual hashes of a split, if they are there: features that something else than `luthier extract` made
/// have none.
///
/// # Errors
/// [`Error::FeaturesFile`] if the file has other rows than expected, [`Error::MixedFeatures`] if another run wrote it.
pub(crate) fn read_hashes(folder: &Path, split: Split, json: &FeaturesJson) -> Result<Option<ReadHashes>> {
    let path = hashes_path(folder, split);
    if !path.exists() {
        return Ok(None);
    }
    let hashes: Array2<f32> = read_npy(&path, &format!("f32 [n, {}]", PerceptualHash::WIDTH))?;
    check_length(&path, json.rows.get(split).len(), hashes.nrows())?;
    if hashes.ncols() != PerceptualHash::WIDTH || hashes.iter().any(|value| !(0.0..=255.0).contains(value)) {
        return Err(Error::FeaturesFile {
            path,
            expected: format!("{} numbers from 0 to 255 a row", PerceptualHash::WIDTH),
            found: "others".to_owned(),
        });
    }
    let vectors: Vec<Digest> = hashes.outer_iter().map(vector_digest).collect();
    match &json.digests {
        Some(digests) if digests.get(split).hashes != digest_of(&vectors) => Err(Error::MixedFeatures { path }),
        _ => Ok(Some(ReadHashes { vectors, hashes })),
    }
}

/// The digest of digests, one after the other.
pub(crate) fn digest_of(digests: &[Digest]) -> Digest {
    let bytes: Vec<u8> = digests.iter().flat_map(|digest| *digest.as_bytes()).collect();
    Digest::of(&bytes)
}

fn check_length(path: &Path, expected: usize, found: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::FeaturesFile {
        path: path.to_owned(),
        expected: format!("{expected} rows as in features.json"),
        found: found.to_string(),
    })
}

fn read_npy<T: npyz::AutoSerialize + npyz::Deserialize, D: Dimension>(
    path: &Path,
    expected: &str,
) -> Result<Array<T, D>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let wrong = |found: String| Error::FeaturesFile {
        path: path.to_owned(),
        expected: expected.to_owned(),
        found,
    };
    let npy = npyz::NpyFile::new(io::BufReader::new(file)).map_err(|error| wrong(error.to_string()))?;
    let shape: Vec<usize> = npy.shape().iter().map(|&length| length as usize).collect();
    let is_fortran = npy.order() == npyz::Order::Fortran;
    let found = format!("{} {shape:?}", npy.dtype().descr());
    let values = npy.try_data::<T>().map_err(|_| wrong(found.clone()))?;
    let values = values
        .collect::<io::Result<Vec<T>>>()
        .map_err(|error| wrong(error.to_string()))?;
    Array::from_shape_vec(IxDyn(&shape).set_f(is_fortran), values)
        .and_then(Array::into_dimensionality)
        .map_err(|_| wrong(found))
}
