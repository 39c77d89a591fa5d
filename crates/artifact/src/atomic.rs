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

/// No living process waits this long between two writes to a file.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Where it was put.
    pub path: PathBuf,
    /// Its stat, which tells it from a file that another process has put there since.
    pub stat: FileStat,
}

/// Writes a file so that a reader, at any instant and after any crash, sees the old bytes or the
/// new ones, never a part.
///
/// Missing parent folders are made. The bytes go to a temporary file beside the file, which is
/// synced and renamed.
///
/// A new file gets the permissions that the umask leaves. A file that is replaced keeps its
/// permissions. If `path` is a symbolic link, the link stays and the file that it leads to is
/// replaced, or made if there is none; its folder must exist.
///
/// # Errors
/// [`Error::Io`] naming `path`; the old file is then untouched and no temporary file is left.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<Written> {
    write_atomically_with(path, |file| file.write_all(bytes))
}

/// [`write_atomically`] for what is too large to be built in memory first: `write` gets a buffered
/// writer.
///
/// # Errors
/// As [`write_atomically`], and whatever `write` returns.
pub fn write_atomically_with(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> Result<Written> {
    let folder = folder_of(path);
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let target = follow_links(path).map_err(Error::io(path))?;
    let folder = folder_of(&target);
    let file = temporary_for(&target).map_err(Error::io(path))?;
    let mut writer = BufWriter::with_capacity(BUFFER, file.as_file());
    write(&mut writer)
        .and_then(|()| writer.flush())
        .and_then(|()| file.as_file().sync_all())
        .map_err(Error::io(path))?;
    drop(writer);
    // Before others can reach it; a rename changes none of it.
    let metadata = file.as_file().metadata().map_err(Error::io(path))?;
    file.persist(&target).map_err(|error| Error::io(path)(error.error))?;
    sync_folder(folder).map_err(Error::io(folder))?;
    Ok(Written {
        path: path.to_owned(),
        stat: FileStat::new(&metadata),
    })
}

/// A temporary file beside the file that it will replace, with that file's permissions from the
/// start, so that private bytes are never readable by others.
///
/// # Errors
/// Whatever making the file gives.
#[cfg(unix)]
pub fn temporary_for(target: &Path) -> io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    let kept = fs::metadata(target).ok().filter(fs::Metadata::is_file);
    let mode = kept.map(|metadata| metadata.permissions().mode() & 0o777);
    let file = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .permissions(fs::Permissions::from_mode(mode.unwrap_or(0o666)))
        .tempfile_in(folder_of(target))?;
    if let Some(mode) = mode {
        // The umask may have taken some away.
        if_supported(file.as_file().set_permissions(fs::Permissions::from_mode(mode)))?;
    }
    Ok(file)
}

/// A temporary file beside the file that it will replace.
///
/// # Errors
/// Whatever making the file gives.
#[cfg(not(unix))]
pub fn temporary_for(target: &Path) -> io::Result<NamedTempFile> {
    NamedTempFile::with_prefix_in(TEMPORARY, folder_of(target))
}

/// The file that a symbolic link leads to, even if it is missing; `path` itself if it is no link.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    /// As many as Linux follows.
    const MOST_LINKS: usize = 40;
    let mut target = path.to_owned();
    for _ in 0..=MOST_LINKS {
        match fs::read_link(&target) {
            Ok(link) => target = folder_of(&target).join(link),
            Err(_) => return Ok(target),
        }
    }
    Err(io::Error::other(format!(
        "expected at most {MOST_LINKS} symbolic links, found more"
    )))
}

/// The folder that a file is in; `.` for a name alone.
pub fn folder_of(file: &Path) -> &Path {
    file.parent()
        .filter(|folder| *folder != Path::new(""))
        .unwrap_or(Path::new("."))
}

/// Makes the names in a folder durable: a file that was renamed or linked there is still there
/// after a power cut. Does nothing on a file system that cannot sync a folder, and on Windows,
/// which has no such call and needs none.
///
/// # Errors
/// Whatever the system says.
#[cfg(unix)]
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if_supported(File::open(folder).and_then(|folder| folder.sync_all()))
}

/// Does nothing: Windows has no such call and needs none.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Takes an operation for done if the file system does not know it.
///
/// Some file systems, such as those of memory cards and of Windows shares, know no permissions or
/// cannot sync a folder. They say `EPERM`, `EACCES`, `ENOTSUP`, `ENOSYS` or `EINVAL`. That is no
/// reason not to write there.
///
/// # Errors
/// Any other error.
pub fn if_supported(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput
            ) =>
        {
            Ok(())
        }
        done => done,
    }
}

/// Removes the unfinished files that killed processes left in a folder that [`write_atomically`]
/// writes to.
///
/// The unfinished files of living processes look the same, so those that were written to within a
/// day stay.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read, or a file not removed.
pub fn remove_unfinished(folder: &Path) -> Result<()> {
    let now = SystemTime::now();
    for path in temporary(folder)? {
        // A file that is gone meanwhile was finished.
        let written = fs::metadata(&path).and_then(|metadata| metadata.modified());
        if written.is_ok_and(|written| written + LONGEST_PAUSE < now) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Removes a file. It is no error if the file is gone already: other processes remove files too.
///
/// # Errors
/// [`Error::Io`] if the file is there and cannot be removed.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
}

/// The temporary files in a folder, of living and of dead processes.
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

/// The paths in a folder, in no order. There are none if there is no such folder.
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

    #[cfg(unix)]
    fn mode(path: &Path) -> u32 {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[cfg(unix)]
    fn set_mode(path: &Path, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_new_file_has_the_permissions_that_the_umask_leaves() {
        const TO_WRITE: &str = "LUTHIER_TEST_TO_WRITE";
        if let Some(path) = std::env::var_os(TO_WRITE) {
            write_atomically(Path::new(&path), b"bytes").unwrap();
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        // The umask belongs to the whole process, so each case gets a process of its own.
        for (umask, expected) in [("077", 0o600), ("022", 0o644), ("002", 0o664)] {
            let path = folder.path().join(umask);
            let script = format!("umask {umask} && exec \"$0\" --exact \"$1\"");
            let name = "atomic::tests::a_new_file_has_the_permissions_that_the_umask_leaves";
            let ran = std::process::Command::new("sh")
                .args(["-c", &script])
                .arg(std::env::current_exe().unwrap())
                .arg(name)
                .env(TO_WRITE, &path)
                .output()
                .unwrap();
            assert!(ran.status.success(), "{ran:?}");
            assert_eq!(mode(&path), expected, "umask {umask}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_is_replaced_keeps_its_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.html");
        write_atomically(&path, b"old").unwrap();
        for expected in [0o600, 0o666, 0o444] {
            set_mode(&path, expected);
            write_atomically(&path, format!("{expected}").as_bytes()).unwrap();
            assert_eq!(mode(&path), expected);
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{expected}"));
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_symbolic_link_stays_and_the_file_that_it_leads_to_is_replaced() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("shared")).unwrap();
        fs::create_dir(at("reports")).unwrap();
        symlink("../shared/current.html", at("reports/report.html")).unwrap();
        symlink(at("reports/report.html"), at("shortcut.html")).unwrap();
        // The first time the link leads to no file.
        for bytes in ["first", "second"] {
            let written = write_atomically(&at("shortcut.html"), bytes.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(at("shared/current.html")).unwrap(), bytes);
            assert_eq!(written.path, at("shortcut.html"));
            assert_eq!(written.stat, FileStat::of(&at("shortcut.html")).unwrap());
            for link in ["reports/report.html", "shortcut.html"] {
                assert!(fs::symlink_metadata(at(link)).unwrap().is_symlink(), "{link}");
            }
        }
        for (name, n) in [("shared", 1), ("reports", 1), ("", 3)] {
            assert_eq!(at(name).read_dir().unwrap().count(), n, "{name}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_into_a_missing_folder_and_a_link_to_itself_are_errors() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        symlink(at("drive/report.html"), at("away.html")).unwrap();
        symlink("loop.html", at("loop.html")).unwrap();
        for name in ["away.html", "loop.html"] {
            let error = write_atomically(&at(name), b"bytes").unwrap_err().to_string();
            assert!(error.starts_with(&at(name).display().to_string()), "{error}");
            assert!(fs::symlink_metadata(at(name)).unwrap().is_symlink());
        }
        assert!(!at("drive").exists(), "the drive may come back");
    }

    #[test]
    fn what_a_file_system_does_not_know_is_no_error() {
        use io::ErrorKind::{InvalidInput, NotFound, PermissionDenied, StorageFull, Unsupported};
        for (kind, is_error) in [
            (PermissionDenied, false),
            (Unsupported, false),
            (InvalidInput, false),
            (NotFound, true),
            (StorageFull, true),
        ] {
            assert_eq!(if_supported(Err(kind.into())).is_err(), is_error, "{kind}");
        }
    }
}
