//! Moves files into the folders of the classes that people have decided on.

use std::path::{Path, PathBuf};

use luthier_artifact::{Content, Digest, ManifestEntry, Observer, Split};
use luthier_cache::{Cache, DryRun};
use luthier_extract::{Layout, scan};

use crate::pipeline::Data;
use crate::sorter::{Sorter, Transfer};
use crate::{Error, Result};

/// Moves each file whose decided class is not that of its folder into the folder of its class, and tells `each` from where to
/// where. Nothing is overwritten or merged: a file whose name is taken gets a number, also if the other has the same bytes. A
/// file that is left out by a decision stays where it is. With [`DryRun::Yes`] nothing is moved. The result is what was done, in a sentence for each folder of classes.
///
/// # Errors
/// [`Error::NoClassFolders`] if the classes are no folders, and those of [`scan`] and [`Sorter::put`].
pub fn relabel(
    data: &Data,
    cache: &Cache,
    dry_run: DryRun,
    observer: &dyn Observer,
    mut each: impl FnMut(&Path, &Path),
) -> Result<Vec<String>> {
    let folders: &[Split] = match data.source.layout {
        Layout::Split { .. } => &[Split::Train, Split::Test],
        Layout::Classes(_) => &[Split::Train],
        _ => return Err(Error::NoClassFolders),
    };
    let found = scan(&data.source, cache, data.rehash, observer)?;
    let mut done = Vec::new();
    for &split in folders {
        let folder = data.source.folder(split).to_owned();
        // A folder that has no splits in it has the images of both.
        let is_here = |entry: &&ManifestEntry| folders.len() == 1 || entry.split == split;
        let mut moved = found.relabelled.iter().filter(is_here).peekable();
        if moved.peek().is_none() {
            continue;
        }
        let classes = found.manifest.classes.clone();
        let mut sorter = Sorter::new(Transfer::Move, dry_run, folder, classes)?.keeping_copies();
        for entry in moved {
            if observer.is_interrupted() {
                return Err(luthier_extract::Error::Interrupted.into());
            }
            let (from, digest) = (data.source.path(entry), digest_of(entry));
            let to: PathBuf = sorter.put(&from, &entry.class, digest)?;
            each(&from, &to);
        }
        done.push(sorter.summary());
    }
    Ok(done)
}

fn digest_of(entry: &ManifestEntry) -> Option<&Digest> {
    match &entry.content {
        Content::Digest(digest) => Some(digest),
        Content::Unreadable(_) => None,
    }
}
