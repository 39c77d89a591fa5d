use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Artifact, Digest, Error, Result};

/// Which half of the data an image belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What the model is fitted on.
    Train,
    /// What the model is evaluated on.
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Split::Train => "train",
            Split::Test => "test",
        })
    }
}

/// What a scanned file holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Bytes with this digest; whether they decode is found out later.
    Digest(Digest),
    /// The file could not be read, for this reason.
    Unreadable(String),
}

/// One image file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// The split whose folder holds the file.
    pub split: Split,
    /// The path below the split's folder, with `/` between its parts; the first of them is the class.
    pub file: String,
    /// The digest of the file's bytes, or why there is none.
    pub content: Content,
}

impl ManifestEntry {
    /// The class: the first folder below the split's folder.
    pub fn class(&self) -> &str {
        self.file.split_once('/').map_or(&self.file, |(class, _)| class)
    }
}

/// Every image file of a data set, ordered by split and file name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The class names in label order: sorted by Unicode code point.
    pub classes: Vec<String>,
    /// The files.
    pub entries: Vec<ManifestEntry>,
}

impl Manifest {
    /// A manifest of `entries` in canonical order; the classes are those that occur.
    pub fn new(mut entries: Vec<ManifestEntry>) -> Self {
        entries.sort_unstable_by(|a, b| (a.split, &a.file).cmp(&(b.split, &b.file)));
        let mut classes: Vec<&str> = entries.iter().map(ManifestEntry::class).collect();
        // Files of a class stand together.
        classes.dedup();
        classes.sort_unstable();
        classes.dedup();
        let classes = classes.into_iter().map(str::to_owned).collect();
        Manifest { classes, entries }
    }

    /// The label of a class: its place in [`classes`](Manifest::classes).
    pub fn label(&self, class: &str) -> Option<usize> {
        self.classes.binary_search_by(|name| name.as_str().cmp(class)).ok()
    }
}

impl Artifact for Manifest {
    const FORMAT: &'static str = "manifest/2";

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(&(Self::FORMAT, self)).expect("strings and digests always serialize")
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let expected = Self::FORMAT;
        let (format, manifest): (String, Manifest) = serde_json::from_slice(bytes).map_err(|error| Error::Format {
            expected,
            found: error.to_string(),
        })?;
        if format != expected {
            return Err(Error::Format {
                expected,
                found: format,
            });
        }
        Ok(manifest)
    }
}
