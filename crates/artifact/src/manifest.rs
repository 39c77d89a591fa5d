use std::fmt;

use ndarray::Array1;
use serde::{Deserialize, Serialize};

use crate::{Artifact, Digest, Result, Tensors, TensorsBuilder};

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

impl Content {
    /// The digest of the bytes, if they could be read.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Content::Digest(digest) => Some(*digest),
            Content::Unreadable(_) => None,
        }
    }
}

/// One image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestEntry {
    /// The split whose folder holds the file.
    pub split: Split,
    /// The path below the split's folder, with `/` between its parts.
    pub file: String,
    /// The class.
    pub class: String,
    /// The digest of the file's bytes, or why there is none.
    pub content: Content,
}

/// Every image file of a data set, ordered by split and file name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
        let mut classes: Vec<&str> = entries.iter().map(|entry| entry.class.as_str()).collect();
        // Files of a class mostly stand together.
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

#[derive(Serialize, Deserialize)]
struct Header {
    classes: Vec<String>,
    n_train: usize,
    /// Entries without a digest, by their place, with the reason.
    unreadable: Vec<(usize, String)>,
}

/// Tensors rather than JSON, because a run on many images reads and writes several manifests.
impl Artifact for Manifest {
    const FORMAT: &'static str = "manifest/3";

    fn encode(&self) -> Vec<u8> {
        let Manifest { classes, entries } = self;
        let unreadable = (entries.iter().enumerate()).filter_map(|(place, entry)| match &entry.content {
            Content::Unreadable(reason) => Some((place, reason.clone())),
            Content::Digest(_) => None,
        });
        let header = Header {
            classes: classes.clone(),
            n_train: entries.partition_point(|entry| entry.split == Split::Train),
            unreadable: unreadable.collect(),
        };
        let label = |entry: &ManifestEntry| self.label(&entry.class).expect("every class is listed") as i64;
        let mut files: Vec<u8> = Vec::with_capacity(entries.iter().map(|entry| entry.file.len()).sum());
        let mut ends = Vec::with_capacity(entries.len());
        let mut digests = Vec::with_capacity(32 * entries.len());
        for ManifestEntry { file, content, .. } in entries {
            files.extend(file.as_bytes());
            ends.push(files.len() as i64);
            digests.extend(match content {
                Content::Digest(digest) => *digest.as_bytes(),
                Content::Unreadable(_) => [0; 32],
            });
        }
        // A statement for each, so that what has become a tensor is freed: of a million images each takes up to 32 MB.
        let tensors = TensorsBuilder::new(Self::FORMAT, &header);
        let tensors = tensors.tensor("digests", &Array1::from(digests));
        let tensors = tensors.tensor("ends", &Array1::from(ends));
        let tensors = tensors.tensor("files", &Array1::from(files));
        let tensors = tensors.tensor("labels", &entries.iter().map(label).collect::<Array1<i64>>());
        tensors.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let tensors = Tensors::open(Self::FORMAT, bytes)?;
        let Header {
            classes,
            n_train,
            unreadable,
        } = tensors.header()?;
        let (digests, ends) = (tensors.vector::<u8>("digests")?, tensors.vector::<i64>("ends")?);
        let files = String::from_utf8(tensors.vector("files")?.to_vec())
            .map_err(|error| tensors.wrong(format!("file names: {error}")))?;
        let labels = tensors.vector::<i64>("labels")?;
        if digests.len() != 32 * ends.len() || n_train > ends.len() || labels.len() != ends.len() {
            let found = format!(
                "{} files, {n_train} for training, {} labels, {} bytes of digests",
                ends.len(),
                labels.len(),
                digests.len()
            );
            return Err(tensors.wrong(found));
        }
        let mut start = 0;
        let mut entries = Vec::with_capacity(ends.len());
        for (place, (&end, digest)) in ends.iter().zip(digests.exact_chunks(32)).enumerate() {
            let end = end as usize;
            let file = files.get(start..end);
            let digest = std::array::from_fn(|byte| digest[byte]);
            let class = usize::try_from(labels[place]).ok().and_then(|label| classes.get(label));
            entries.push(ManifestEntry {
                split: if place < n_train { Split::Train } else { Split::Test },
                file: file
                    .ok_or_else(|| tensors.wrong(format!("a file name from {start} to {end}")))?
                    .to_owned(),
                class: class
                    .ok_or_else(|| tensors.wrong(format!("label {} among {} classes", labels[place], classes.len())))?
                    .clone(),
                content: Content::Digest(Digest::from_bytes(digest)),
            });
            start = end;
        }
        for (place, reason) in unreadable {
            let entry = entries.get_mut(place);
            entry.ok_or_else(|| tensors.wrong(format!("no file {place}")))?.content = Content::Unreadable(reason);
        }
        Ok(Manifest { classes, entries })
    }
}
