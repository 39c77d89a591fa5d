use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::NamedTempFile;

use crate::{Error, FileStat, Result};

/// The names of temporary files begin with this, in the cache and wherever else Luthier writes.
pub const TEMPORARY: &str = ".luthier-unfinished-";

/// Bytes that are written at once.
const BUFFER: usize = 1 << 18;

/// No process takes a day between two writes to a file.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Where it was put.
    pub path: PathBuf,
    /// What tells it from a file that another process put there since.
    pub stat: FileStat,
}

/// Writes a file so that a reader, at any instant and after any crash, sees the old bytes or the new ones, never a part.
///
/// Missing parent folders are made. The bytes go to a temporary file beside `path`, which is synced and renamed.
///
/// # Errors
/// [`Error::Io`] naming `path`; the old file is then untouched and no temporary file is left.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<Written> {
    write_atomically_with(path, |file| file.write_all(bytes))
}

/// [`write_atomically`] for what is too large to be built in memory first: `write` gets a buffered writer.
///
/// # Errors
/// As [`write_atomically`], and whatever `write` returns.
pub fn write_atomically_with(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> Result<Written> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let file = NamedTempFile::with_prefix_in(TEMPORARY, folder).map_err(Error::io(path))?;
    let mut writer = BufWriter::with_capacity(BUFFER, file.as_file());
    write(&mut writer)
        .and_then(|()| writer.flush())
        .and_then(|()| file.as_file().sync_all())
        .map_err(Error::io(path))?;
    drop(writer);
    share(file.as_file()).map_err(Error::io(path))?;
    // Before others can reach it; a rename changes none of it.
    let metadata = file.as_file().metadata().map_err(Error::io(path))?;
    file.persist(path).map_err(|error| Error::io(path)(error.error))?;
    // The rename itself is durable only once the folder is. Windows has no such call and needs none.
    #[cfg(unix)]
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io(folder))?;
    Ok(Written {
        path: path.to_owned(),
        stat: FileStat::new(&metadata),
    })
}

/// Removes what killed processes left unfinished in a folder that [`write_atomically`] writes to.
///
/// The unfinished files of living processes look the same; those that were written to within a day stay.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read, or a file not removed.
pub fn remove_unfinished(folder: &Path) -> Result<()> {
    let now = SystemTime::now();
    for path in temporary(folder)? {
        // One that is gone meanwhile is finished.
        let written = fs::metadata(&path).and_then(|metadata| metadata.modified());
        if written.is_ok_and(|written| written + LONGEST_PAUSE < now) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Temporary files are private; what stays has the permissions of an ordinary file.
#[cfg(unix)]
fn share(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn share(_: &File) -> std::io::Result<()> {
    Ok(())
}

/// Removes a file. A file that is gone already is no error: other processes remove files too.
///
/// # Errors
/// [`Error::Io`] if the file is there and cannot be removed.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
}

/// The temporary files in a folder, of living and dead processes.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read.
pub fn temporary(folder: &Path) -> Result<Vec<PathBuf>> {
    let is_temporary = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(TEMPORARY) && path.is_file()
    };
    Ok(entries(folder)?.into_iter().filter(is_temporary).collect())
}

/// What is in a folder, in no order; nothing if there is no such folder.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read.
#[expect(
    clippy::disallowed_methods,
    reason = "callers sort what they show, or only count and remove"
)]
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(Error::io(folder)(error)),
    };
    listing
        .map(|entry| entry.map(|entry| entry.path()).map_err(Error::io(folder)))
        .collect()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "files are only counted")]
mod tests {
    use super::*;

    #[test]
    fn replaces_a_file_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/folder/file.txt");
        write_atomically(&path, b"old").unwrap();
        let written = write_atomically(&path, b"new").unwrap();
        assert_eq!(written.stat, FileStat::of(&path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(path.parent().unwrap().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_failure_names_the_file_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        let error = write_atomically(&path, b"bytes").unwrap_err().to_string();
        assert!(error.starts_with(&path.display().to_string()), "{error}");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }
}
