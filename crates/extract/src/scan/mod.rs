//! Which images there are, with their classes, and what bytes they have.
//!
//! - `source`: what a user says of the data
//! - `listing`: the files with their classes, as each layout has them; `labels` reads tables and lists
//! - `walk`: folders as they are, with what people and systems leave in them; `exclusion`: what a user leaves out
//! - `draw`: which images are kept for the test
//! - `decisions`: what people have decided about images

mod decisions;
mod draw;
mod exclusion;
mod labels;
mod listing;
mod source;
mod walk;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::SystemTime;

use luthier_artifact::{Content, Digest, Manifest, ManifestEntry, Split, file_names};
use luthier_cache::Cache;
use rayon::prelude::*;

use self::decisions::Applied;
pub use self::decisions::{Decided, DecisionLog, NewDecision, Verdict, decided, decided_classes, left_out};
use self::listing::{Listed, Listing};
pub use self::source::{DataSource, ImageFiles, Layout};
pub use self::walk::{FoundImages, PassedOver, find_images, images_below};
use crate::{Error, Observer, Result};

/// How many files are read before their digests are remembered.
const READ_AT_ONCE: usize = 16_384;

/// What a [`scan`] found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scan {
    /// The image files.
    pub manifest: Manifest,
    /// The number of other files: hidden, outside a class's folder, or without an image's
    /// extension.
    pub n_ignored: usize,
    /// The number of files and folders that the user has left out.
    pub n_excluded: usize,
    /// What people have decided about the images.
    pub decided: Decided,
    /// The files whose decided class is not the one that their folder or table says, with the decided class.
    pub relabelled: Vec<ManifestEntry>,
    /// How many of the other files are cameras' raw files, which need a raw converter.
    pub n_raw: usize,
    /// The number of files that had to be read; the digests of the others were known by their stat.
    pub n_read: usize,
    /// The folders that could not be listed, each with the reason. Their images are missing in the
    /// manifest.
    pub passed_over: Vec<PassedOver>,
}

/// Lists the image files of a data set and the digests of their bytes.
///
/// Symbolic links are followed. Files whose size, modification time and inode are those of the last
/// scan are not read, unless `rehash` is [`Rehash::Yes`].
///
/// A file that cannot be read becomes an [`Unreadable`](Content::Unreadable) entry. A folder that
/// may not be read, such as `lost+found`, and a link to a folder that holds the link are passed
/// over with a warning.
///
/// # Errors
/// [`Error::MissingFolder`], [`Error::NoImages`], [`Error::ClassWithoutImages`],
/// [`Error::SingleClass`] and [`Error::TestOnlyClasses`] if the folders do not hold a data set;
/// [`Error::File`] if a disk fails, or if one of the folders of `source` may not be read;
/// [`Error::Cache`]; [`Error::Interrupted`].
pub fn scan(source: &DataSource, cache: &Cache, rehash: Rehash, observer: &dyn Observer) -> Result<Scan> {
    let since = SystemTime::now();
    let Listing {
        files,
        n_ignored,
        n_excluded,
        n_raw,
        passed_over,
        with_split,
    } = Listing::of(source)?;
    let (mut entries, n_read) = digest(source, files, since, cache, rehash, observer)?;
    let Applied {
        decided, relabelled, ..
    } = decisions::apply(source, &mut entries)?;
    if source.is_drawn() {
        let without_split = entries.iter_mut().filter(|entry| !with_split.contains(&entry.file));
        draw::choose_test_images(without_split, source.test_fraction, source.seed);
    }
    let manifest = Manifest::new(entries);
    tell_of_similar_names(&manifest.classes);
    check_classes(source, &manifest).inspect_err(|_| {
        if let (Some(path), false) = (&source.decisions, decided.is_empty()) {
            tracing::warn!("{} was applied: {decided}", path.display());
        }
    })?;
    Ok(Scan {
        manifest,
        n_ignored,
        n_excluded,
        decided,
        relabelled,
        n_raw,
        n_read,
        passed_over,
    })
}

/// Whether files are read even if their stat says that they are unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rehash {
    /// Trust size, modification time and inode.
    No,
    /// Read every file.
    Yes,
}

/// Reads the files whose digests are not known by their stat. Stats were taken after `since`. The
/// result is an entry for each file, and how many files were read.
fn digest(
    source: &DataSource,
    mut files: Vec<Listed>,
    since: SystemTime,
    cache: &Cache,
    rehash: Rehash,
    observer: &dyn Observer,
) -> Result<(Vec<ManifestEntry>, usize)> {
    files.sort_unstable_by(|a, b| (a.split, &a.file).cmp(&(b.split, &b.file)));
    let n_train = files.partition_point(|file| file.split == Split::Train);
    let splits = [(Split::Train, &files[..n_train]), (Split::Test, &files[n_train..])];
    let mut contents: Vec<Option<Content>> = Vec::with_capacity(files.len());
    for (split, files) in splits {
        let folder = absolute(source, split)?;
        let known = match rehash {
            Rehash::No => cache.file_digests(&folder, files.iter().map(|file| (file.file.as_str(), file.stat)))?,
            Rehash::Yes => vec![None; files.len()],
        };
        contents.extend(files.iter().zip(known).map(|(file, known)| match &file.unreadable {
            Some(reason) => Some(Content::Unreadable(reason.to_string())),
            None => known.map(Content::Digest),
        }));
    }
    let unknown: Vec<usize> = (0..files.len()).filter(|&place| contents[place].is_none()).collect();
    let task = observer.task("files read", unknown.len() as u64);
    // Digests are remembered after each batch, so that the next scan after an interrupt goes on
    // from there.
    for batch in unknown.chunks(READ_AT_ONCE) {
        let read: Vec<Content> = (batch.par_iter())
            .map(|&place| {
                if observer.is_interrupted() {
                    return Err(Error::Interrupted);
                }
                task.advance(1);
                let path = source
                    .folder(files[place].split)
                    .join(file_names::path_of(&files[place].file));
                Ok(Digest::of_file(&path).map_or_else(|error| Content::Unreadable(error.to_string()), Content::Digest))
            })
            .collect::<Result<_>>()?;
        for split in [Split::Train, Split::Test] {
            let learnt = batch.iter().zip(&read).filter_map(|(&place, content)| match content {
                Content::Digest(digest) if files[place].split == split => {
                    Some((files[place].file.as_str(), files[place].stat, *digest))
                }
                _ => None,
            });
            cache.remember_files(&absolute(source, split)?, learnt, since)?;
        }
        for (&place, content) in batch.iter().zip(read) {
            contents[place] = Some(content);
        }
    }
    drop(task);
    let n_read = unknown.len();
    let entries = files
        .into_iter()
        .zip(contents)
        .map(|(Listed { split, file, class, .. }, content)| ManifestEntry {
            split,
            file,
            class,
            content: content.expect("what was not known has been read"),
        })
        .collect();
    Ok((entries, n_read))
}

/// The cache knows files by their full path, so that a relative path means the same file from any
/// folder.
fn absolute(source: &DataSource, split: Split) -> Result<PathBuf> {
    let folder = source.folder(split);
    let absolute = std::path::absolute(folder).map_err(Error::io(folder))?;
    // Without a separator at its end.
    Ok(absolute.components().collect())
}

/// Warns of classes that differ only in upper and lower case.
fn tell_of_similar_names(classes: &[String]) {
    let mut seen: HashMap<String, &str> = HashMap::new();
    for class in classes {
        if let Some(other) = seen.insert(class.to_lowercase(), class) {
            tracing::warn!("{other} and {class} are two classes: their names differ in upper and lower case only");
        }
    }
}

fn check_classes(source: &DataSource, manifest: &Manifest) -> Result<()> {
    let train = manifest.entries.iter().filter(|entry| entry.split == Split::Train);
    let in_train: HashSet<&str> = train.map(|entry| entry.class.as_str()).collect();
    let is_test_only = |class: &&String| !in_train.contains(class.as_str());
    let test_only: Vec<String> = manifest.classes.iter().filter(is_test_only).cloned().collect();
    if let Layout::Unlabelled(_) = source.layout {
        return Ok(());
    }
    if let Layout::Classes(folder) = &source.layout {
        let is_split =
            |class: &String| ["train", "test", "val", "valid", "validation"].contains(&class.to_lowercase().as_str());
        if manifest.classes.len() > 1 && manifest.classes.iter().all(is_split) {
            return Err(Error::ParentOfSplits { path: folder.clone() });
        }
    }
    if source.is_drawn() {
        if !test_only.is_empty() {
            return Err(Error::AllForTest { classes: test_only });
        }
        let is_none_for_test = manifest.entries.iter().all(|entry| entry.split == Split::Train);
        if source.test_fraction > 0.0 && is_none_for_test {
            return Err(Error::NoneForTest {
                n_images: manifest.entries.len(),
            });
        }
    }
    if !test_only.is_empty() {
        return Err(Error::TestOnlyClasses {
            train: source.folder(Split::Train).to_owned(),
            test: source.folder(Split::Test).to_owned(),
            classes: test_only,
        });
    }
    if let [class] = manifest.classes.as_slice() {
        return Err(Error::SingleClass {
            path: source.folder(Split::Train).to_owned(),
            class: class.clone(),
        });
    }
    Ok(())
}
