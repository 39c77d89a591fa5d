use std::path::{Path, PathBuf};
use std::{fmt, io, io::ErrorKind};

use walkdir::{DirEntry, WalkDir};

use super::exclusion::Exclusion;
use crate::image::formats::{ENDINGS, RAW_ENDINGS};
use crate::{Error, Result};

/// The system's number of "too many levels of symbolic links": a link that leads to itself.
const ELOOP: i32 = if cfg!(any(target_os = "linux", target_os = "android")) {
    40
} else {
    62
};

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundImages {
    /// The image files, ordered by path.
    pub images: Vec<PathBuf>,
    /// The number of other files that are not hidden.
    pub n_other: usize,
    /// The number of files and folders that the user has left out.
    pub n_excluded: usize,
    /// The folders that could not be listed.
    pub passed_over: Vec<PassedOver>,
}

/// The image files below a folder, at any depth, ordered by path; hidden ones are left out.
///
/// Folders that cannot be listed are passed over with a warning, and other files with a note.
///
/// # Errors
/// Those of [`find_images`].
pub fn images_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let FoundImages {
        images,
        n_other,
        n_excluded,
        passed_over,
    } = find_images(folder, &[])?;
    for folder in passed_over {
        tracing::warn!("{folder}");
    }
    for (n, what) in [(n_other, "other file"), (n_excluded, "excluded file or folder")] {
        if n > 0 {
            tracing::info!(
                "{}: {n} {what}{} passed over",
                folder.display(),
                if n == 1 { "" } else { "s" }
            );
        }
    }
    Ok(images)
}

/// The same as [`images_below`], for callers that list a folder again and again: nothing is warned of. `exclude` are
/// globs in the syntax of `.gitignore`, which come on top of `.luthierignore` files.
///
/// # Errors
/// [`Error::File`] if `folder` may not be read, or if a disk fails; [`Error::Exclude`] if a glob is none.
pub fn find_images(folder: &Path, exclude: &[String]) -> Result<FoundImages> {
    let mut found = FoundImages::default();
    for step in Walk::new(folder, exclude)? {
        match step? {
            Step::File(entry) if is_image_name(entry.path()) => found.images.push(entry.into_path()),
            Step::File(_) => found.n_other += 1,
            Step::Excluded => found.n_excluded += 1,
            Step::Folder(_) | Step::Ignored => {}
            // Reading the file will tell what is wrong with it.
            Step::UnreadableImage(obstacle) => found.images.push(obstacle.path),
            Step::PassedOver(folder) => found.passed_over.push(folder),
        }
    }
    Ok(found)
}

/// What a [`Walk`] comes upon.
pub(super) enum Step {
    File(DirEntry),
    Folder(DirEntry),
    /// A file or folder that is never looked at.
    Ignored,
    /// A file or folder that the user has left out.
    Excluded,
    /// An image that cannot be read.
    UnreadableImage(Obstacle),
    /// A folder that cannot be listed.
    PassedOver(PassedOver),
}

/// A walk through a folder, in the order of names. It follows links, and does not enter what is left out.
pub(super) struct Walk {
    folder: PathBuf,
    entries: walkdir::IntoIter,
    exclusion: Exclusion,
}

impl Walk {
    pub(super) fn new(folder: &Path, exclude: &[String]) -> Result<Self> {
        Walk::to_depth(usize::MAX, folder, exclude)
    }

    /// A walk that enters no folder below the first.
    pub(super) fn shallow(folder: &Path, exclude: &[String]) -> Result<Self> {
        Walk::to_depth(1, folder, exclude)
    }

    fn to_depth(depth: usize, folder: &Path, exclude: &[String]) -> Result<Self> {
        // By name: within a folder the rest of the path is the same, and comparing all of it is faster than parsing it.
        let by_path = |a: &DirEntry, b: &DirEntry| a.path().as_os_str().cmp(b.path().as_os_str());
        let walk = WalkDir::new(folder).follow_links(true).sort_by(by_path);
        Ok(Walk {
            folder: folder.to_owned(),
            entries: walk.max_depth(depth).into_iter(),
            exclusion: Exclusion::new(folder, exclude)?,
        })
    }

    fn step(&mut self, entry: walkdir::Result<DirEntry>) -> Result<Step> {
        let entry = match entry.map_err(|error| Obstacle::new(&self.folder, error)) {
            Ok(entry) => entry,
            Err(obstacle) => {
                if obstacle.depth > 0 && self.exclusion.excludes(&obstacle.path, obstacle.path.is_dir())? {
                    return Ok(Step::Excluded);
                }
                return match obstacle.consequence() {
                    Consequence::UnreadableImage => Ok(Step::UnreadableImage(obstacle)),
                    Consequence::Ignored => Ok(Step::Ignored),
                    Consequence::PassedOver => Ok(Step::PassedOver(obstacle.into())),
                    Consequence::Failed => Err(obstacle.into()),
                };
            }
        };
        let is_dir = entry.file_type().is_dir();
        if entry.depth() == 0 {
            return Ok(Step::Folder(entry));
        }
        let left_out = if is_never_looked_at(&entry) {
            Some(Step::Ignored)
        } else {
            (self.exclusion.excludes(entry.path(), is_dir)?).then_some(Step::Excluded)
        };
        match left_out {
            Some(step) => {
                if is_dir {
                    self.entries.skip_current_dir();
                }
                Ok(step)
            }
            None if is_dir => Ok(Step::Folder(entry)),
            None if entry.file_type().is_file() => Ok(Step::File(entry)),
            // A socket, a pipe, a device.
            None => Ok(Step::Ignored),
        }
    }
}

impl Iterator for Walk {
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.entries.next()?;
        Some(self.step(entry))
    }
}

/// Whether a file or folder is never looked at: it is hidden, a system keeps it for itself, or Luthier wrote it.
fn is_never_looked_at(entry: &DirEntry) -> bool {
    is_hidden_name(entry.path())
        || is_of_a_system(entry.path())
        || (entry.file_type().is_dir() && is_of_luthier(entry.path()))
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
    written.is_some_and(|(_, file)| folder.join(file).is_file()) || is_of_moments(folder)
}

/// Whether a folder has the moments of parts of images.
#[expect(
    clippy::disallowed_methods,
    reason = "it is asked whether there is one, not which is the first"
)]
fn is_of_moments(folder: &Path) -> bool {
    let is_part = |name: &str| name.ends_with(".safetensors") && name.contains("-of-");
    let entries = folder.ends_with("moments").then(|| folder.read_dir().ok()).flatten();
    entries.is_some_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_str().is_some_and(is_part)))
    })
}

fn is_hidden_name(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Something that cannot be listed on the way through a folder.
pub(super) struct Obstacle {
    pub(super) path: PathBuf,
    /// How many folders below the first it is.
    pub(super) depth: usize,
    /// Whether it is a link to a folder that holds the link.
    is_loop: bool,
    pub(super) error: io::Error,
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
pub(super) fn is_raw_name(path: &Path) -> bool {
    has_ending(path, &RAW_ENDINGS)
}

fn has_ending(path: &Path, known: &[&str]) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    ending.is_some_and(|ending| known.contains(&ending.as_str()))
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
