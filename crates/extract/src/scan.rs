use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use luthier_artifact::{Content, Digest, FileStat, Manifest, ManifestEntry, Split};
use luthier_cache::Cache;
use rayon::prelude::*;
use regex::Regex;
use unicode_normalization::UnicodeNormalization as _;
use walkdir::{DirEntry, WalkDir};

use crate::image::formats::{ENDINGS, RAW_ENDINGS};
use crate::labels::{self, LabelledFile};
use crate::{Error, Observer, Result};

/// How many files are read before their digests are remembered.
const READ_AT_ONCE: usize = 16_384;

/// The system's number of "too many levels of symbolic links": a link that leads to itself.
const ELOOP: i32 = if cfg!(any(target_os = "linux", target_os = "android")) {
    40
} else {
    62
};

/// Where the images are.
#[derive(Clone, Debug, PartialEq)]
pub enum DataSource {
    /// A folder for each split, with a folder for each class in it.
    Split {
        /// The images to fit on.
        train: PathBuf,
        /// The images to evaluate on.
        test: PathBuf,
    },
    /// One folder with a folder for each class in it. Some of the images are kept for the test.
    Whole {
        /// The folder.
        data: PathBuf,
        /// How probable it is that an image becomes part of the test set, between 0 and 1.
        test_fraction: f64,
        /// Another seed draws other images for the test.
        seed: u64,
    },
    /// Images wherever they lie below a folder, and a table that names them with their classes.
    Table {
        /// The CSV, TSV or JSON Lines file.
        table: PathBuf,
        /// The folder that its paths are relative to.
        folder: PathBuf,
        /// How probable it is that an image whose split the table does not say becomes part of the test set.
        test_fraction: f64,
        /// Another seed draws other images for the test.
        seed: u64,
    },
    /// Images wherever they lie below a folder, with their classes in their names.
    Named {
        /// The folder.
        data: PathBuf,
        /// A regular expression with one named group, which is the class; it is searched for in the
        /// path below the folder.
        pattern: String,
        /// How probable it is that an image becomes part of the test set, between 0 and 1.
        test_fraction: f64,
        /// Another seed draws other images for the test.
        seed: u64,
    },
}

impl DataSource {
    /// A table of labels with the images below `folder`, or, if that is not given, below the folder of the table.
    pub fn table(table: PathBuf, folder: Option<PathBuf>, test_fraction: f64, seed: u64) -> Self {
        DataSource::Table {
            folder: labels::folder_of(&table, folder.as_ref()),
            table,
            test_fraction,
            seed,
        }
    }

    /// The share of the images that is drawn for the test, and the seed; `None` if none is drawn.
    fn draw(&self) -> Option<(f64, u64)> {
        match *self {
            DataSource::Split { .. } => None,
            DataSource::Whole {
                test_fraction, seed, ..
            }
            | DataSource::Table {
                test_fraction, seed, ..
            }
            | DataSource::Named {
                test_fraction, seed, ..
            } => Some((test_fraction, seed)),
        }
    }

    /// Whether the images for the test are drawn, and not named.
    pub(crate) fn is_drawn(&self) -> bool {
        self.draw().is_some()
    }

    /// The folder that the file names of a split are relative to.
    pub fn folder(&self, split: Split) -> &Path {
        match (self, split) {
            (DataSource::Split { train, .. }, Split::Train) => train,
            (DataSource::Split { test, .. }, Split::Test) => test,
            (DataSource::Whole { data, .. } | DataSource::Named { data, .. }, _) => data,
            (DataSource::Table { folder, .. }, _) => folder,
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
    /// The number of other files: hidden, outside a class's folder, or without an image's
    /// extension.
    pub n_ignored: usize,
    /// How many of them are cameras' raw files, which need a raw converter.
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
    let mut listing = Listing::default();
    match source {
        DataSource::Split { train, test } => {
            list(train, Split::Train, &mut listing)?;
            list(test, Split::Test, &mut listing)?;
        }
        // Which images are for the test is known only by their digests.
        DataSource::Whole { data, .. } => list(data, Split::Train, &mut listing)?,
        DataSource::Table { table, folder, .. } => list_table(table, folder, &mut listing)?,
        DataSource::Named { data, pattern, .. } => list_named(data, pattern, &mut listing)?,
    }
    let Listing {
        files,
        n_ignored,
        n_raw,
        passed_over,
        decided,
    } = listing;
    let (mut entries, n_read) = digest(source, files, since, cache, rehash, observer)?;
    if let Some((test_fraction, seed)) = source.draw() {
        let undecided = entries.iter_mut().filter(|entry| !decided.contains(&entry.file));
        choose_test_images(undecided, test_fraction, seed);
    }
    let manifest = Manifest::new(entries);
    tell_of_similar_names(&manifest.classes);
    check_classes(source, &manifest)?;
    Ok(Scan {
        manifest,
        n_ignored,
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

/// A folder whose images are missing because the folder cannot be listed.
///
/// It may not be read, such as `lost+found`, or it is a link to a folder that holds the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// The folder or link.
    pub path: PathBuf,
    /// Why it cannot be listed, in words for a user.
    pub reason: String,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: passed over: {}", self.path.display(), self.reason)
    }
}

/// What [`find_images`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundImages {
    /// The image files, ordered by path.
    pub images: Vec<PathBuf>,
    /// The number of other files that are not hidden.
    pub n_other: usize,
    /// The folders that could not be listed.
    pub passed_over: Vec<PassedOver>,
}

/// The image files below a folder, at any depth, ordered by path; hidden ones are left out.
///
/// Folders that cannot be listed are passed over with a warning, and other files with a note.
///
/// # Errors
/// [`Error::File`] if `folder` may not be read, or if a disk fails.
pub fn images_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let FoundImages {
        images,
        n_other,
        passed_over,
    } = find_images(folder)?;
    for folder in passed_over {
        tracing::warn!("{folder}");
    }
    if n_other > 0 {
        let files = if n_other == 1 { "other file" } else { "other files" };
        tracing::info!("{}: {n_other} {files} passed over", folder.display());
    }
    Ok(images)
}

/// The same as [`images_below`], for callers that list a folder again and again: nothing is warned of.
///
/// # Errors
/// [`Error::File`] if `folder` may not be read, or if a disk fails.
pub fn find_images(folder: &Path) -> Result<FoundImages> {
    let walk = WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter();
    let (mut images, mut n_other, mut passed_over) = (Vec::new(), 0, Vec::new());
    for entry in walk.filter_entry(|entry| !is_passed_over(entry)) {
        match entry.map_err(|error| Obstacle::new(folder, error)) {
            Ok(entry) if entry.file_type().is_file() && is_image_name(entry.path()) => images.push(entry.into_path()),
            Ok(entry) => n_other += usize::from(entry.file_type().is_file()),
            Err(obstacle) => match obstacle.consequence() {
                // Reading the file will tell what is wrong with it.
                Consequence::UnreadableImage => images.push(obstacle.path),
                Consequence::Ignored => {}
                Consequence::PassedOver => passed_over.push(obstacle.into()),
                Consequence::Failed => return Err(obstacle.into()),
            },
        }
    }
    Ok(FoundImages {
        images,
        n_other,
        passed_over,
    })
}

/// Whether a file or folder below the first is never looked at: it is hidden, a system keeps it for itself, or Luthier
/// wrote it.
fn is_passed_over(entry: &DirEntry) -> bool {
    entry.depth() > 0
        && (is_hidden_name(entry.path())
            || is_of_a_system(entry.path())
            || (entry.file_type().is_dir() && is_of_luthier(entry.path())))
}

/// Names of what macOS, Windows, Linux, and the systems of network disks put beside people's files.
fn is_of_a_system(path: &Path) -> bool {
    const NAMES: [&str; 9] = [
        "__MACOSX",
        "@eaDir",
        "@Recycle",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "Thumbs.db",
        "desktop.ini",
    ];
    path.file_name()
        .is_some_and(|name| NAMES.iter().any(|known| name == *known))
}

/// Whether a folder is one that Luthier writes: its images are no data.
fn is_of_luthier(folder: &Path) -> bool {
    const WRITTEN: [(&str, &str); 3] = [
        ("features", "features.json"),
        ("models", "model.safetensors"),
        ("reports", "report.json"),
    ];
    let written = WRITTEN.iter().find(|(name, _)| folder.ends_with(name));
    written.is_some_and(|(_, file)| folder.join(file).is_file())
}

fn is_hidden_name(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Something that cannot be listed on the way through a folder.
struct Obstacle {
    path: PathBuf,
    /// How many folders below the first it is.
    depth: usize,
    /// Whether it is a link to a folder that holds the link.
    is_loop: bool,
    error: io::Error,
}

/// What is wrong with a link to a folder that holds the link.
const LOOP: &str = "a link to a folder that holds it";

/// What becomes of an [`Obstacle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consequence {
    /// It is one image that cannot be read.
    UnreadableImage,
    /// It is no image, and nothing is lost.
    Ignored,
    /// It may hold images: the user is warned.
    PassedOver,
    /// It may be a fault of the moment, after which the data set would be another: the scan ends.
    Failed,
}

impl Obstacle {
    fn new(folder: &Path, error: walkdir::Error) -> Self {
        Obstacle {
            path: error.path().unwrap_or(folder).to_owned(),
            depth: error.depth(),
            is_loop: error.loop_ancestor().is_some(),
            // A loop has no error of the system.
            error: error.into_io_error().unwrap_or_else(|| io::Error::other(LOOP)),
        }
    }

    fn consequence(&self) -> Consequence {
        if self.depth == 0 {
            return Consequence::Failed;
        }
        if is_hidden_name(&self.path) || is_of_a_system(&self.path) {
            return Consequence::Ignored;
        }
        let leads_nowhere = self.error.kind() == ErrorKind::NotFound || self.error.raw_os_error() == Some(ELOOP);
        let may_not_be_read = self.error.kind() == ErrorKind::PermissionDenied;
        if (leads_nowhere || may_not_be_read) && is_image_name(&self.path) && !self.path.is_dir() {
            Consequence::UnreadableImage
        } else if leads_nowhere {
            Consequence::Ignored
        } else if may_not_be_read || self.is_loop {
            Consequence::PassedOver
        } else {
            Consequence::Failed
        }
    }
}

impl From<Obstacle> for PassedOver {
    fn from(Obstacle { path, error, .. }: Obstacle) -> Self {
        PassedOver {
            path,
            reason: error.to_string(),
        }
    }
}

impl From<Obstacle> for Error {
    fn from(Obstacle { path, error, .. }: Obstacle) -> Self {
        Error::io(&path)(error)
    }
}

/// Whether a file's name ends like an image's, in upper or lower case.
pub(crate) fn is_image_name(path: &Path) -> bool {
    has_ending(path, &ENDINGS)
}

/// Whether a file's name ends like that of a camera's raw file.
fn is_raw_name(path: &Path) -> bool {
    has_ending(path, &RAW_ENDINGS)
}

fn has_ending(path: &Path, known: &[&str]) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    ending.is_some_and(|ending| known.contains(&ending.as_str()))
}

struct Listed {
    split: Split,
    file: String,
    class: String,
    stat: FileStat,
    /// Why it cannot be read, if that is known already.
    unreadable: Option<Box<str>>,
}

/// What was found in the folders of a data set.
#[derive(Default)]
struct Listing {
    files: Vec<Listed>,
    n_ignored: usize,
    n_raw: usize,
    passed_over: Vec<PassedOver>,
    /// The files whose split a table says.
    decided: HashSet<String>,
}

fn check_folder(folder: &Path) -> Result<()> {
    match folder.is_dir() {
        true => Ok(()),
        false => Err(Error::MissingFolder {
            path: folder.to_owned(),
        }),
    }
}

/// Adds what is below `folder` to a listing.
fn list(folder: &Path, split: Split, listing: &mut Listing) -> Result<()> {
    check_folder(folder)?;
    let Listing {
        files,
        n_ignored,
        n_raw,
        passed_over,
        ..
    } = listing;
    let n_before = files.len();
    let (mut classes, mut has_files) = (Vec::new(), HashSet::new());
    let mut walk = WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter();
    while let Some(entry) = walk.next() {
        let entry = match entry.map_err(|error| Obstacle::new(folder, error)) {
            Ok(entry) => entry,
            Err(obstacle) => {
                match obstacle.consequence() {
                    Consequence::UnreadableImage if obstacle.depth >= 2 => {
                        let reason = Some(obstacle.error.to_string());
                        files.extend(listed(folder, &obstacle.path, split, NO_STAT, reason));
                    }
                    Consequence::UnreadableImage | Consequence::Ignored => *n_ignored += 1,
                    Consequence::PassedOver => {
                        classes.retain(|class| *class != obstacle.path);
                        let folder = PassedOver::from(obstacle);
                        tracing::warn!("{folder}");
                        passed_over.push(folder);
                    }
                    Consequence::Failed => return Err(obstacle.into()),
                }
                continue;
            }
        };
        let is_passed_over = is_passed_over(&entry);
        if entry.depth() == 1 && entry.file_type().is_dir() && !is_passed_over {
            classes.push(entry.path().to_owned());
        }
        if is_passed_over {
            *n_ignored += 1;
            if entry.file_type().is_dir() {
                walk.skip_current_dir();
            }
            continue;
        }
        if !entry.file_type().is_file() {
            continue;
        }
        if let (Some(class), 2..) = (classes.last(), entry.depth()) {
            has_files.insert(class.clone());
        }
        if entry.depth() < 2 || !is_image_name(entry.path()) {
            *n_ignored += 1;
            *n_raw += usize::from(is_raw_name(entry.path()));
            continue;
        }
        match entry.metadata() {
            Ok(metadata) => files.extend(listed(folder, entry.path(), split, FileStat::new(&metadata), None)),
            // The file is gone since the folder was listed.
            Err(_) => *n_ignored += 1,
        }
    }
    let has_images: HashSet<&str> = files[n_before..].iter().map(|file| first_folder(&file.file)).collect();
    if has_images.is_empty() {
        return Err(Error::NoImages {
            path: folder.to_owned(),
        });
    }
    let is_without_images = |class: &PathBuf| {
        let name = class.file_name().unwrap_or_default().to_string_lossy();
        !has_images.contains(name.as_ref())
    };
    for class in classes.into_iter().filter(is_without_images) {
        if has_files.contains(&class) {
            return Err(Error::ClassWithoutImages { path: class });
        }
        // A folder without any file is what is left of a class, or was never one.
        *n_ignored += 1;
    }
    Ok(())
}

/// Adds the files that a table names.
fn list_table(table: &Path, folder: &Path, listing: &mut Listing) -> Result<()> {
    check_folder(folder)?;
    for LabelledFile {
        line,
        file,
        class,
        split,
    } in labels::read(table, folder)?
    {
        let path = folder.join(&file);
        let (stat, unreadable) = match path.metadata() {
            Ok(metadata) => (FileStat::new(&metadata), None),
            Err(error) => (NO_STAT, Some(format!("{error} (line {line} of {})", table.display()))),
        };
        if split.is_some() {
            listing.decided.insert(file.clone());
        }
        listing.files.push(Listed {
            split: split.unwrap_or(Split::Train),
            file,
            class: class.nfc().collect(),
            stat,
            unreadable: unreadable.map(String::into_boxed_str),
        });
    }
    if listing.files.is_empty() {
        return Err(Error::Labels {
            path: table.to_owned(),
            line: 1,
            problem: "no rows".to_owned(),
        });
    }
    Ok(())
}

/// Adds the image files below a folder whose names a pattern fits.
fn list_named(folder: &Path, pattern: &str, listing: &mut Listing) -> Result<()> {
    let wrong = |problem: String| Error::ClassPattern {
        pattern: pattern.to_owned(),
        problem,
    };
    let regex = Regex::new(pattern).map_err(|error| wrong(error.to_string()))?;
    let groups: Vec<&str> = regex.capture_names().flatten().collect();
    let &[group] = groups.as_slice() else {
        return Err(wrong(format!("{} named groups, expected one", groups.len())));
    };
    check_folder(folder)?;
    let FoundImages {
        images,
        n_other,
        passed_over,
    } = find_images(folder)?;
    listing.n_ignored += n_other;
    for folder in passed_over {
        tracing::warn!("{folder}");
        listing.passed_over.push(folder);
    }
    let mut other_names = Vec::new();
    for path in &images {
        let stat = path.metadata().map_or(NO_STAT, |metadata| FileStat::new(&metadata));
        let Some(mut file) = listed(folder, path, Split::Train, stat, None) else {
            continue;
        };
        match regex.captures(&file.file).and_then(|found| found.name(group)) {
            Some(class) if !class.is_empty() => {
                file.class = class.as_str().nfc().collect();
                listing.files.push(file);
            }
            _ => other_names.push(file.file),
        }
    }
    if listing.files.is_empty() {
        return Err(wrong(match other_names.first() {
            Some(name) => format!("it fits no file, for example not {name}"),
            None => format!("{} has no images", folder.display()),
        }));
    }
    if let Some(name) = other_names.first() {
        tracing::warn!(
            "--class-from fits {} files not, the first is {name}: passed over",
            other_names.len()
        );
        listing.n_ignored += other_names.len();
    }
    Ok(())
}

/// Of a file that is not there.
const NO_STAT: FileStat = FileStat {
    size: 0,
    mtime_ns: 0,
    inode: 0,
};

fn listed(folder: &Path, path: &Path, split: Split, stat: FileStat, unreadable: Option<String>) -> Option<Listed> {
    let relative = path.strip_prefix(folder).ok()?;
    let unreadable = unreadable.or_else(|| path.to_str().is_none().then(|| "file name is not UTF-8".to_owned()));
    let mut file = String::with_capacity(relative.as_os_str().len());
    for (place, part) in relative.iter().enumerate() {
        if place > 0 {
            file.push('/');
        }
        file.push_str(&part.to_string_lossy());
    }
    Some(Listed {
        split,
        class: class_of(&file),
        file,
        stat,
        unreadable: unreadable.map(String::into_boxed_str),
    })
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
                let path = source.folder(files[place].split).join(&files[place].file);
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

/// The index knows files by their full path, so that a relative path means the same file from any
/// folder.
fn absolute(source: &DataSource, split: Split) -> Result<PathBuf> {
    std::path::absolute(source.folder(split)).map_err(Error::io(source.folder(split)))
}

/// Moves to the test split every image that is drawn for it.
///
/// Whether an image is drawn depends on its bytes and the seed alone. So it stays on its side for ever, whatever is added,
/// removed or renamed, and copies stay together. The share of a class that is drawn is near `test_fraction`, not exact.
fn choose_test_images<'a>(entries: impl Iterator<Item = &'a mut ManifestEntry>, test_fraction: f64, seed: u64) {
    for entry in entries {
        if let Content::Digest(digest) = &entry.content
            && is_drawn(digest, test_fraction, seed)
        {
            entry.split = Split::Test;
        }
    }
}

/// Whether the digest of the seed and the image, as a number from 0 to 1, is below `test_fraction`.
fn is_drawn(image: &Digest, test_fraction: f64, seed: u64) -> bool {
    let drawn = Digest::of(&[&seed.to_le_bytes(), &image.as_bytes()[..]].concat());
    let first = *drawn.as_bytes().first_chunk().expect("a digest has 32 bytes");
    // 53 bits, as a number in double precision has.
    ((u64::from_be_bytes(first) >> 11) as f64) < test_fraction * (1_u64 << 53) as f64
}

/// The class of a file, given by its path below the split's folder: the first folder. macOS and others write accents in
/// different ways: the class has the composed form (Unicode's NFC), whichever its folder has.
fn class_of(file: &str) -> String {
    first_folder(file).nfc().collect()
}

fn first_folder(file: &str) -> &str {
    file.split_once('/').map_or(file, |(folder, _)| folder)
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
    if let DataSource::Whole { data, .. } = source {
        let is_split =
            |class: &String| ["train", "test", "val", "valid", "validation"].contains(&class.to_lowercase().as_str());
        if manifest.classes.len() > 1 && manifest.classes.iter().all(is_split) {
            return Err(Error::ParentOfSplits { path: data.clone() });
        }
    }
    if source.is_drawn() {
        if !test_only.is_empty() {
            return Err(Error::AllForTest { classes: test_only });
        }
        if manifest.entries.iter().all(|entry| entry.split == Split::Train) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failing_disk_and_the_first_folder_end_a_scan() {
        let denied = || io::Error::from(ErrorKind::PermissionDenied);
        let failing = || io::Error::other("input/output error");
        let missing = || io::Error::from(ErrorKind::NotFound);
        for (path, depth, is_loop, error, expected) in [
            ("data", 0, false, denied(), Consequence::Failed),
            ("data/lost+found", 1, false, denied(), Consequence::Ignored),
            ("data/private", 1, false, denied(), Consequence::PassedOver),
            ("data/drum/private", 2, false, denied(), Consequence::PassedOver),
            (
                "data/drum/private.jpg",
                2,
                false,
                denied(),
                Consequence::UnreadableImage,
            ),
            ("data/.Trash", 1, false, denied(), Consequence::Ignored),
            ("data/drum/up", 2, true, io::Error::other(LOOP), Consequence::PassedOver),
            ("data/drum/.up", 2, true, io::Error::other(LOOP), Consequence::Ignored),
            (
                "data/drum/self.jpg",
                2,
                false,
                io::Error::from_raw_os_error(ELOOP),
                Consequence::UnreadableImage,
            ),
            (
                "data/drum/self",
                2,
                false,
                io::Error::from_raw_os_error(ELOOP),
                Consequence::Ignored,
            ),
            ("data/drum/gone.jpg", 2, false, missing(), Consequence::UnreadableImage),
            ("data/drum/gone", 2, false, missing(), Consequence::Ignored),
            ("data/drum", 1, false, failing(), Consequence::Failed),
            ("data/drum/1.jpg", 2, false, failing(), Consequence::Failed),
        ] {
            let obstacle = Obstacle {
                path: path.into(),
                depth,
                is_loop,
                error,
            };
            assert_eq!(obstacle.consequence(), expected, "{path}: {}", obstacle.error);
        }
    }
}
