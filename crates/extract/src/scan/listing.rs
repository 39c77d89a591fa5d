//! The files of a data set with their classes, as each layout has them.

use std::collections::HashSet;
use std::path::{MAIN_SEPARATOR, Path, PathBuf};

use luthier_artifact::{FileStat, Split, file_names};
use rayon::prelude::*;
use regex::Regex;
use unicode_normalization::UnicodeNormalization as _;
use walkdir::DirEntry;

use super::labels::{self, LabelledFile, ListedFile};
use super::source::{DataSource, ImageFiles, Layout};
use super::walk::{FoundImages, PassedOver, Step, Walk, find_images, is_image_name, is_raw_name};
use crate::{Error, Result};

/// What was found in the folders of a data set.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) files: Vec<Listed>,
    pub(super) n_ignored: usize,
    pub(super) n_excluded: usize,
    pub(super) n_raw: usize,
    pub(super) passed_over: Vec<PassedOver>,
    /// The files whose split a table says.
    pub(super) with_split: HashSet<String>,
}

/// A file of a data set.
pub(super) struct Listed {
    pub(super) split: Split,
    pub(super) file: String,
    pub(super) class: String,
    pub(super) stat: FileStat,
    /// Why it cannot be read, if that is known already.
    pub(super) unreadable: Option<Box<str>>,
}

/// Of a file that is not there.
const NO_STAT: FileStat = FileStat {
    size: 0,
    mtime_ns: 0,
    inode: 0,
};

/// How many files are asked for their stat at once, by several threads.
const STATS_AT_ONCE: usize = 16_384;

/// The class of an image whose path alone is known: the folder that holds it.
const HOLDING_FOLDER: &str = "(?<class>[^/]+)/[^/]+$";

impl Listing {
    /// The files of a data set. Which images are for the test is known only by their digests, so that all are for
    /// training where the layout does not say it.
    pub(super) fn of(source: &DataSource) -> Result<Self> {
        let mut listing = Listing::default();
        match &source.layout {
            Layout::Split { train, test } => {
                listing.add_classes(train, Split::Train, &source.exclude)?;
                listing.add_classes(test, Split::Test, &source.exclude)?;
            }
            Layout::Classes(folder) => listing.add_classes(folder, Split::Train, &source.exclude)?,
            Layout::Table { table, folder } => listing.add_table(table, folder)?,
            Layout::Named { images, pattern } => {
                let files = listing.find(images, &source.exclude)?;
                listing.add_named(files, pattern.as_deref(), images.folder())?;
            }
            Layout::Unlabelled(images) => {
                listing.files = listing.find(images, &source.exclude)?;
                if listing.files.is_empty() {
                    return Err(Error::NoFiles {
                        path: images.folder().to_owned(),
                    });
                }
            }
        }
        Ok(listing)
    }

    /// Adds the images of a folder with a folder for each class in it.
    fn add_classes(&mut self, folder: &Path, split: Split, exclude: &[String]) -> Result<()> {
        check_folder(folder)?;
        let n_before = self.files.len();
        // Whether there are files in them.
        let mut classes: Vec<(PathBuf, bool)> = Vec::new();
        let mut images = Vec::new();
        for step in Walk::new(folder, exclude)? {
            match step? {
                Step::Folder(entry) if entry.depth() == 1 => classes.push((entry.into_path(), false)),
                Step::Folder(_) => {}
                Step::Ignored => self.n_ignored += 1,
                Step::Excluded => self.n_excluded += 1,
                Step::UnreadableImage(obstacle) if obstacle.depth >= 2 => {
                    let reason = Some(obstacle.error.to_string());
                    self.files
                        .extend(listed(folder, &obstacle.path, split, NO_STAT, reason));
                }
                Step::UnreadableImage(_) => self.n_ignored += 1,
                Step::PassedOver(found) => {
                    classes.retain(|(class, _)| *class != found.path);
                    self.pass_over(found);
                }
                Step::File(entry) => {
                    if let (Some((_, has_files)), 2..) = (classes.last_mut(), entry.depth()) {
                        *has_files = true;
                    }
                    if entry.depth() < 2 || !is_image_name(entry.path()) {
                        self.n_ignored += 1;
                        self.n_raw += usize::from(is_raw_name(entry.path()));
                        continue;
                    }
                    images.push(entry);
                    if images.len() == STATS_AT_ONCE {
                        self.add_images(folder, split, &mut images);
                    }
                }
            }
        }
        self.add_images(folder, split, &mut images);
        let has_images: HashSet<&str> = self.files[n_before..]
            .iter()
            .map(|file| first_folder(&file.file))
            .collect();
        if has_images.is_empty() {
            return Err(Error::NoImages {
                path: folder.to_owned(),
            });
        }
        let is_without_images = |(class, _): &(PathBuf, bool)| {
            let name = file_names::name_of(Path::new(class.file_name().unwrap_or_default()));
            !has_images.contains(name.as_str())
        };
        for (class, has_files) in classes.into_iter().filter(is_without_images) {
            if has_files {
                return Err(Error::ClassWithoutImages { path: class });
            }
            // A folder without any file is what is left of a class, or was never one.
            self.n_ignored += 1;
        }
        Ok(())
    }

    /// Adds images of folders of classes. On a network disk each takes a while to answer.
    fn add_images(&mut self, folder: &Path, split: Split, images: &mut Vec<DirEntry>) {
        let (n, n_before) = (images.len(), self.files.len());
        let found: Vec<Option<Listed>> = (images.par_drain(..))
            .map(|image| {
                let stat = FileStat::new(&image.metadata().ok()?);
                listed(folder, image.path(), split, stat, None)
            })
            .collect();
        self.files.extend(found.into_iter().flatten());
        // The others are gone since their folder was listed.
        self.n_ignored += n - (self.files.len() - n_before);
    }

    /// Adds the files that a table names.
    fn add_table(&mut self, table: &Path, folder: &Path) -> Result<()> {
        check_folder(folder)?;
        for LabelledFile {
            line,
            file,
            class,
            split,
        } in labels::read(table, folder)?
        {
            if split.is_some() {
                self.with_split.insert(file.clone());
            }
            let mut listed = named(table, folder, line, file);
            listed.split = split.unwrap_or(Split::Train);
            listed.class = class.nfc().collect();
            self.files.push(listed);
        }
        if self.files.is_empty() {
            return Err(Error::Labels {
                path: table.to_owned(),
                line: 1,
                problem: "no rows".to_owned(),
            });
        }
        Ok(())
    }

    /// Finds images whose places say nothing of their classes.
    fn find(&mut self, images: &ImageFiles, exclude: &[String]) -> Result<Vec<Listed>> {
        check_folder(images.folder())?;
        match images {
            ImageFiles::Listed { list, folder } => {
                let files = labels::read_list(list, folder)?.into_iter();
                Ok(files
                    .map(|ListedFile { line, file }| named(list, folder, line, file))
                    .collect())
            }
            ImageFiles::Below(folder) => {
                let FoundImages {
                    images,
                    n_other,
                    n_excluded,
                    passed_over,
                } = find_images(folder, exclude)?;
                self.n_ignored += n_other;
                self.n_excluded += n_excluded;
                passed_over.into_iter().for_each(|folder| self.pass_over(folder));
                let stat = |path: &Path| path.metadata().map_or(NO_STAT, |metadata| FileStat::new(&metadata));
                let file = |path: &PathBuf| listed(folder, path, Split::Train, stat(path), None);
                Ok(images
                    .par_iter()
                    .filter_map(file)
                    .map(|file| Listed {
                        class: String::new(),
                        ..file
                    })
                    .collect())
            }
        }
    }

    /// Adds the files whose paths a pattern fits.
    fn add_named(&mut self, files: Vec<Listed>, pattern: Option<&str>, folder: &Path) -> Result<()> {
        let wrong = |problem: String| match pattern {
            Some(pattern) => Error::ClassPattern {
                pattern: pattern.to_owned(),
                problem,
            },
            None => Error::NoFolders { problem },
        };
        let regex = Regex::new(pattern.unwrap_or(HOLDING_FOLDER)).map_err(|error| wrong(error.to_string()))?;
        let groups: Vec<&str> = regex.capture_names().flatten().collect();
        let &[group] = groups.as_slice() else {
            return Err(wrong(format!("{} named groups, expected one", groups.len())));
        };
        let mut other_names = Vec::new();
        for mut file in files {
            match regex.captures(&file.file).and_then(|found| found.name(group)) {
                Some(class) if !class.is_empty() => {
                    file.class = class.as_str().nfc().collect();
                    self.files.push(file);
                }
                _ => other_names.push(file.file),
            }
        }
        if self.files.is_empty() {
            return Err(wrong(match other_names.first() {
                Some(name) => format!("it fits no file, for example not {name}"),
                None => format!("{} has no images", folder.display()),
            }));
        }
        if let Some(name) = other_names.first() {
            let n = other_names.len();
            match pattern {
                Some(_) => tracing::warn!("--class-from does not fit {n} files, the first is {name}: passed over"),
                None => {
                    tracing::warn!("{n} files are in no folder, which would be their class: passed over, first {name}")
                }
            }
            self.n_ignored += other_names.len();
        }
        Ok(())
    }

    fn pass_over(&mut self, folder: PassedOver) {
        tracing::warn!("{folder}");
        self.passed_over.push(folder);
    }
}

fn check_folder(folder: &Path) -> Result<()> {
    match folder.is_dir() {
        true => Ok(()),
        false => Err(Error::MissingFolder {
            path: folder.to_owned(),
        }),
    }
}

/// A file that was found below a folder.
fn listed(folder: &Path, path: &Path, split: Split, stat: FileStat, unreadable: Option<String>) -> Option<Listed> {
    let relative = path.strip_prefix(folder).ok()?;
    let file = match MAIN_SEPARATOR {
        '/' => file_names::name_of(relative),
        other => file_names::name_of(relative).replace(other, "/"),
    };
    Some(Listed {
        split,
        class: first_folder(&file).nfc().collect(),
        file,
        stat,
        unreadable: unreadable.map(String::into_boxed_str),
    })
}

/// A file that a line of a table or list names, without a class.
fn named(table: &Path, folder: &Path, line: usize, file: String) -> Listed {
    let unreadable = |reason: &str| (NO_STAT, Some(format!("{reason} (line {line} of {})", table.display())));
    let (stat, unreadable) = match folder.join(file_names::path_of(&file)).metadata() {
        Ok(metadata) if metadata.is_file() => (FileStat::new(&metadata), None),
        // A folder; or a socket, a pipe, a device, of which some never end.
        Ok(_) => unreadable("not a file"),
        Err(error) => unreadable(&error.to_string()),
    };
    Listed {
        split: Split::Train,
        file,
        class: String::new(),
        stat,
        unreadable: unreadable.map(String::into_boxed_str),
    }
}

/// The first folder of a path. It is the class of a file in a folder with a folder for each class. macOS and others write
/// accents in different ways: the class has the composed form (Unicode's NFC), whichever its folder has.
fn first_folder(file: &str) -> &str {
    file.split_once('/').map_or(file, |(folder, _)| folder)
}
