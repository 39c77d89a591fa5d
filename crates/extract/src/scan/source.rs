use std::path::{Path, PathBuf};

use luthier_artifact::{ManifestEntry, Split, file_names};

use super::labels;
use super::walk::{Step, Walk, is_image_name};
use crate::Result;

/// Where the images are, which of them count, and which are kept for the test.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSource {
    /// How files and classes are found.
    pub layout: Layout,
    /// Files and folders that are left out: globs in the syntax of `.gitignore`, relative to the data folders. They come
    /// on top of the `.luthierignore` files in these folders.
    pub exclude: Vec<String>,
    /// The file of what people have decided about the images, if there is one.
    pub decisions: Option<PathBuf>,
    /// How probable it is that an image becomes part of the test set, from 0 to below 1, where the layout does not say
    /// which images do.
    pub test_fraction: f64,
    /// Another seed draws other images for the test.
    pub seed: u64,
}

/// How files and classes are found.
#[derive(Clone, Debug, PartialEq)]
pub enum Layout {
    /// A folder for each split, with a folder for each class in it.
    Split {
        /// The images to fit on.
        train: PathBuf,
        /// The images to evaluate on.
        test: PathBuf,
    },
    /// One folder with a folder for each class in it.
    Classes(PathBuf),
    /// A table names the images with their classes.
    Table {
        /// The CSV, TSV or JSON Lines file.
        table: PathBuf,
        /// The folder that its paths are relative to.
        folder: PathBuf,
    },
    /// The class of an image is part of its path.
    Named {
        /// The images.
        images: ImageFiles,
        /// A regular expression with one named group, which is the class; it is searched for in the path below the
        /// folder. Without it, the class is the folder that holds the image.
        pattern: Option<String>,
    },
    /// No image has a class: all are in the training split, with the class `""`.
    Unlabelled(ImageFiles),
}

/// Images whose places say nothing of their classes.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageFiles {
    /// All that lie below a folder, at any depth.
    Below(PathBuf),
    /// Those that a text file names, one path a line.
    Listed {
        /// The text file.
        list: PathBuf,
        /// The folder that its paths are relative to.
        folder: PathBuf,
    },
}

impl ImageFiles {
    /// A list with the images below `folder`, or, if that is not given, below the folder of the list.
    pub fn listed(list: PathBuf, folder: Option<PathBuf>) -> Self {
        ImageFiles::Listed {
            folder: labels::folder_of(&list, folder),
            list,
        }
    }

    /// The folder that the file names are relative to.
    pub fn folder(&self) -> &Path {
        match self {
            ImageFiles::Below(folder) | ImageFiles::Listed { folder, .. } => folder,
        }
    }
}

impl Layout {
    /// A folder as it looks without what `exclude` leaves out: with a folder for each class in it, or without labels. It has no labels if images lie in it, or
    /// if it has fewer than two folders.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if the folder cannot be listed, [`Error::Exclude`](crate::Error::Exclude) if a
    /// glob is none.
    pub fn of_folder(folder: PathBuf, exclude: &[String]) -> Result<Self> {
        let (mut n_folders, mut has_images) = (0, false);
        for step in Walk::shallow(&folder, exclude)? {
            match step? {
                Step::Folder(entry) => n_folders += usize::from(entry.depth() == 1),
                Step::File(entry) => has_images |= is_image_name(entry.path()),
                Step::Ignored | Step::Excluded | Step::UnreadableImage(_) | Step::PassedOver(_) => {}
            }
        }
        Ok(match has_images || n_folders < 2 {
            true => Layout::Unlabelled(ImageFiles::Below(folder)),
            false => Layout::Classes(folder),
        })
    }

    /// A table of labels with the images below `folder`, or, if that is not given, below the folder of the table.
    pub fn table(table: PathBuf, folder: Option<PathBuf>) -> Self {
        Layout::Table {
            folder: labels::folder_of(&table, folder),
            table,
        }
    }
}

impl DataSource {
    /// Images of which a fifth is kept for the test, with seed 0, unless the layout says which.
    pub fn new(layout: Layout) -> Self {
        DataSource {
            layout,
            exclude: Vec::new(),
            decisions: None,
            test_fraction: 0.2,
            seed: 0,
        }
    }

    /// Whether the images for the test are drawn, and not named.
    pub(crate) fn is_drawn(&self) -> bool {
        match self.layout {
            Layout::Split { .. } | Layout::Unlabelled(_) => false,
            Layout::Classes(_) | Layout::Table { .. } | Layout::Named { .. } => true,
        }
    }

    /// The folder that the file names of a split are relative to.
    pub fn folder(&self, split: Split) -> &Path {
        match (&self.layout, split) {
            (Layout::Split { train, .. }, Split::Train) => train,
            (Layout::Split { test, .. }, Split::Test) => test,
            (Layout::Classes(folder) | Layout::Table { folder, .. }, _) => folder,
            (Layout::Named { images, .. } | Layout::Unlabelled(images), _) => images.folder(),
        }
    }

    /// A file of the manifest as decisions name it: below its folder, and where there are two folders, with the split
    /// before it.
    pub fn name(&self, entry: &ManifestEntry) -> String {
        match self.layout {
            Layout::Split { .. } => format!("{}/{}", entry.split, entry.file),
            _ => entry.file.clone(),
        }
    }

    /// The path of a file of the manifest.
    pub fn path(&self, entry: &ManifestEntry) -> PathBuf {
        self.folder(entry.split).join(file_names::path_of(&entry.file))
    }
}
