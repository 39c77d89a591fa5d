use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use luthier_artifact::{Cache, Content, Digest, FileStat, Manifest, ManifestEntry, Split};
use rayon::prelude::*;
use walkdir::{DirEntry, WalkDir};

use crate::{Error, Observer, Result};

/// Where the images lie.
#[derive(Clone, Debug, PartialEq)]
pub enum DataSource {
    /// A folder for each split, with a folder for each class in it.
    Split {
        /// The images to fit on.
        train: PathBuf,
        /// The images to evaluate on.
        test: PathBuf,
    },
    /// One folder with a folder for each class in it, of whose images a part is kept for the test.
    Whole {
        /// The folder.
        data: PathBuf,
        /// The part of each class that becomes the test set, between 0 and 1.
        test_fraction: f64,
        /// Another seed, another choice.
        seed: u64,
    },
}

impl DataSource {
    /// The folder that the file names of a split are relative to.
    pub fn folder(&self, split: Split) -> &Path {
        match (self, split) {
            (DataSource::Split { train, .. }, Split::Train) => train,
            (DataSource::Split { test, .. }, Split::Test) => test,
            (DataSource::Whole { data, .. }, _) => data,
        }
    }

    /// The path of a file of the manifest.
    pub fn path(&self, entry: &ManifestEntry) -> PathBuf {
        self.folder(entry.split).join(&entry.file)
    }
}

/// What a [`scan`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Scan {
    /// The image files.
    pub manifest: Manifest,
    /// Files that are hidden, lie outside a class's folder, or whose names do not end like an image's.
    pub n_ignored: usize,
    /// Files that had to be read; the digests of the others were known by their stat.
    pub n_read: usize,
}

/// Lists the image files of a data set and the digests of their bytes.
///
/// Symbolic links are followed. Files whose size, modification time and inode are those of the last scan are not read,
/// unless `rehash`.
///
/// # Errors
/// [`Error::MissingFolder`], [`Error::NoImages`], [`Error::SingleClass`] and [`Error::TestOnlyClasses`] if the folders do
/// not hold a data set; [`Error::Io`] if a folder cannot be listed. A file that cannot be read is no error but an
/// [`Unreadable`](Content::Unreadable) entry.
pub fn scan(source: &DataSource, cache: &Cache, rehash: Rehash, observer: &dyn Observer) -> Result<Scan> {
    let mut files = Vec::new();
    let mut n_ignored = 0;
    match source {
        DataSource::Split { train, test } => {
            n_ignored += list(train, Split::Train, &mut files)?;
            n_ignored += list(test, Split::Test, &mut files)?;
        }
        // Which of them are for the test is known only by their digests.
        DataSource::Whole { data, .. } => n_ignored += list(data, Split::Train, &mut files)?,
    }
    let (mut entries, n_read) = digest(source, files, cache, rehash, observer)?;
    if let DataSource::Whole {
        test_fraction, seed, ..
    } = source
    {
        choose_test_images(&mut entries, *test_fraction, *seed);
    }
    let manifest = Manifest::new(entries);
    check_classes(source, &manifest)?;
    Ok(Scan {
        manifest,
        n_ignored,
        n_read,
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

/// The image files below a folder, at any depth, ordered by path; hidden ones are left out.
///
/// # Errors
/// [`Error::Io`] if a folder cannot be listed.
pub fn images_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let walk = WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter();
    let mut images = Vec::new();
    for entry in walk.filter_entry(|entry| !is_hidden(entry)) {
        let entry = match entry {
            Ok(entry) => entry,
            // The reader of the path will say that it leads nowhere.
            Err(error) if is_dangling_image(&error) => {
                images.extend(error.path().map(Path::to_owned));
                continue;
            }
            Err(error) if is_dangling(&error) => continue,
            Err(error) => return Err(walk_error(folder, error)),
        };
        if entry.file_type().is_file() && is_image_name(entry.path()) {
            images.push(entry.into_path());
        }
    }
    Ok(images)
}

fn is_hidden(entry: &DirEntry) -> bool {
    entry.depth() > 0 && entry.file_name().to_string_lossy().starts_with('.')
}

fn walk_error(folder: &Path, error: walkdir::Error) -> Error {
    Error::Io {
        path: error.path().unwrap_or(folder).to_owned(),
        source: error.into(),
    }
}

/// Whether a file's name ends like an image's: jpg, jpeg, png, gif, bmp, webp, tif or tiff, in any case.
pub(crate) fn is_image_name(path: &Path) -> bool {
    const ENDINGS: [&str; 8] = ["jpg", "jpeg", "png", "gif", "bmp", "webp", "tif", "tiff"];
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}

struct Listed {
    split: Split,
    class: String,
    file: String,
    stat: FileStat,
    /// Why it cannot be read, if that is known already.
    unreadable: Option<String>,
}

/// Appends the image files below `folder`; the result is how many other files were passed over.
fn list(folder: &Path, split: Split, files: &mut Vec<Listed>) -> Result<usize> {
    if !folder.is_dir() {
        return Err(Error::MissingFolder {
            path: folder.to_owned(),
        });
    }
    let n_before = files.len();
    let mut n_ignored = 0;
    let mut classes = Vec::new();
    let mut walk = WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter();
    while let Some(entry) = walk.next() {
        let entry = match entry {
            Ok(entry) => entry,
            // A link that leads nowhere is one bad image, not the end.
            Err(error) if is_dangling_image(&error) => {
                let path = error.path().expect("a missing target has a path");
                files.extend(listed(
                    folder,
                    path,
                    split,
                    FileStat {
                        size: 0,
                        mtime_ns: 0,
                        inode: 0,
                    },
                    Some(error.to_string()),
                ));
                continue;
            }
            Err(error) if is_dangling(&error) => {
                n_ignored += 1;
                continue;
            }
            Err(error) => return Err(walk_error(folder, error)),
        };
        if entry.depth() == 1 && entry.file_type().is_dir() && !is_hidden(&entry) {
            classes.push(entry.path().to_owned());
        }
        if is_hidden(&entry) {
            n_ignored += 1;
            if entry.file_type().is_dir() {
                walk.skip_current_dir();
            }
            continue;
        }
        if !entry.file_type().is_file() {
            continue;
        }
        if entry.depth() < 2 || !is_image_name(entry.path()) {
            n_ignored += 1;
            continue;
        }
        match entry.metadata() {
            Ok(metadata) => files.extend(listed(folder, entry.path(), split, FileStat::new(&metadata), None)),
            // Gone since the folder was listed.
            Err(_) => n_ignored += 1,
        }
    }
    let has_images: HashSet<&str> = files[n_before..].iter().map(|file| file.class.as_str()).collect();
    if has_images.is_empty() {
        return Err(Error::NoImages {
            path: folder.to_owned(),
        });
    }
    let is_empty = |class: &PathBuf| {
        let name = class.file_name().unwrap_or_default().to_string_lossy();
        !has_images.contains(name.as_ref())
    };
    if let Some(path) = classes.into_iter().find(is_empty) {
        return Err(Error::ClassWithoutImages { path });
    }
    Ok(n_ignored)
}

fn is_dangling(error: &walkdir::Error) -> bool {
    let is_missing = error
        .io_error()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    is_missing && error.depth() > 0
}

fn is_dangling_image(error: &walkdir::Error) -> bool {
    let is_image = |path: &Path| {
        is_image_name(path)
            && !path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
    };
    is_dangling(error) && error.path().is_some_and(is_image) && error.depth() >= 2
}

fn listed(folder: &Path, path: &Path, split: Split, stat: FileStat, unreadable: Option<String>) -> Option<Listed> {
    let parts: Vec<_> = path
        .strip_prefix(folder)
        .ok()?
        .iter()
        .map(|part| part.to_string_lossy())
        .collect();
    let is_unicode = path.to_str().is_some();
    let unreadable = unreadable.or_else(|| (!is_unicode).then(|| "file name is not UTF-8".to_owned()));
    Some(Listed {
        split,
        class: parts.first()?.to_string(),
        file: parts.join("/"),
        stat,
        unreadable,
    })
}

/// Reads the files whose digests are not known by their stat.
fn digest(
    source: &DataSource,
    files: Vec<Listed>,
    cache: &Cache,
    rehash: Rehash,
    observer: &dyn Observer,
) -> Result<(Vec<ManifestEntry>, usize)> {
    // The index knows files by their full path, so that a relative one means the same file from anywhere.
    let absolute = |split| std::path::absolute(source.folder(split)).map_err(Error::io(source.folder(split)));
    let (train, test) = (absolute(Split::Train)?, absolute(Split::Test)?);
    let path = |file: &Listed| match file.split {
        Split::Train => train.join(&file.file),
        Split::Test => test.join(&file.file),
    };
    let stats: Vec<(PathBuf, FileStat)> = files.iter().map(|file| (path(file), file.stat)).collect();
    let known = match rehash {
        Rehash::No => cache.file_digests(&stats)?,
        Rehash::Yes => vec![None; files.len()],
    };
    let is_unknown = |(file, known): (&Listed, &Option<Digest>)| known.is_none() && file.unreadable.is_none();
    let n_read = files.iter().zip(&known).filter(|pair| is_unknown(*pair)).count();
    observer.begin("files read", n_read as u64);
    let contents: Vec<Content> = (&files, &known, &stats)
        .into_par_iter()
        .map(|(file, known, (path, _))| {
            if let Some(reason) = &file.unreadable {
                return Ok(Content::Unreadable(reason.clone()));
            }
            if let Some(digest) = known {
                return Ok(Content::Digest(*digest));
            }
            if observer.is_interrupted() {
                return Err(Error::Interrupted);
            }
            observer.advance(1);
            Ok(Digest::of_file(path).map_or_else(|error| Content::Unreadable(error.to_string()), Content::Digest))
        })
        .collect::<Result<_>>()?;
    observer.end();
    let learnt: Vec<_> = (known.iter().zip(&contents).zip(stats))
        .filter_map(|((known, content), (path, stat))| match (known, content) {
            (None, Content::Digest(digest)) => Some((path, stat, *digest)),
            _ => None,
        })
        .collect();
    cache.remember_files(&learnt)?;
    let entries = files
        .into_iter()
        .zip(contents)
        .map(|(Listed { split, class, file, .. }, content)| ManifestEntry {
            split,
            class,
            file,
            content,
        })
        .collect();
    Ok((entries, n_read))
}

/// Moves a part of each class to the test split.
///
/// Images are ordered by the digest of seed and bytes and the first ones are taken: the choice does not depend on names
/// or order, the same bytes in a class never come into both splits, and an added image moves at most one other.
fn choose_test_images(entries: &mut [ManifestEntry], test_fraction: f64, seed: u64) {
    let mut by_class: BTreeMap<&str, Vec<(Digest, Digest)>> = BTreeMap::new();
    for entry in entries.iter() {
        if let Content::Digest(digest) = entry.content {
            let order = Digest::of(&[&seed.to_le_bytes(), &digest.as_bytes()[..]].concat());
            by_class.entry(&entry.class).or_default().push((order, digest));
        }
    }
    let mut chosen = HashSet::new();
    for (class, mut images) in by_class {
        images.sort_unstable();
        images.dedup();
        // Both splits get at least one image of every class that has two.
        let most = images.len().saturating_sub(1);
        let n_test = ((images.len() as f64 * test_fraction).round() as usize).clamp(most.min(1), most);
        chosen.extend(images[..n_test].iter().map(|(_, digest)| (class.to_owned(), *digest)));
    }
    for entry in entries {
        if let Content::Digest(digest) = entry.content
            && chosen.contains(&(entry.class.clone(), digest))
        {
            entry.split = Split::Test;
        }
    }
}

fn check_classes(source: &DataSource, manifest: &Manifest) -> Result<()> {
    let has = |class: &str, split| {
        manifest
            .entries
            .iter()
            .any(|entry| entry.split == split && entry.class == class)
    };
    let test_only: Vec<String> = manifest
        .classes
        .iter()
        .filter(|class| !has(class, Split::Train))
        .cloned()
        .collect();
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
