//! Puts images into a folder for each answer, and overwrites nothing.
//!
//! A file comes to its place in one step that fails if something is there already: its own rename, or that of a complete
//! copy. What was copied leaves its old place last. So a process that is killed loses nothing, two that sort into one folder
//! do not overwrite each other, and whoever begins again goes on from there.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, FileTimes, Metadata};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use luthier_artifact::{Digest, TEMPORARY, file_names, folder_of, if_supported, remove_unfinished, sync_folder};
use luthier_cache::DryRun;
use tempfile::{NamedTempFile, TempPath};

use crate::words::counted;
use crate::{Error, Result};

/// What becomes of an image at its old place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// The image stays there.
    Copy,
    /// The image leaves it.
    Move,
}

/// Sorts images into `folder/<answer>/`.
pub struct Sorter {
    transfer: Transfer,
    dry_run: DryRun,
    /// Whether a file with the same bytes at the new place counts as the image.
    merges: bool,
    folder: PathBuf,
    answers: Vec<String>,
    /// In a plan: which file would be at a path.
    planned: HashMap<PathBuf, PathBuf>,
    /// The folders of answers that are there and tidy.
    prepared: HashSet<PathBuf>,
    /// Whether the images of a folder are sorted already.
    is_sorted: HashMap<PathBuf, bool>,
    /// What is known of the files of a name in a folder.
    taken: HashMap<PathBuf, Taken>,
    /// Where an image must not be put, by the digest of its bytes.
    kept_free: HashSet<(Digest, PathBuf)>,
    n_put: usize,
    n_there: usize,
}

/// What is known of `1.jpg`, `1-2.jpg`, `1-3.jpg` and so on: without it each of 50,000 images of one name would be compared
/// with all that were put before.
#[derive(Default)]
struct Taken {
    /// How many of these names were looked at, from the first on.
    n_seen: usize,
    /// The files among them by the digest of their bytes; the first of those with the same bytes.
    files: HashMap<Digest, PathBuf>,
}

impl Sorter {
    /// `answers` are the names of the folders.
    ///
    /// # Errors
    /// [`Error::ClassFolder`] if one of them is no name of a folder.
    pub fn new(transfer: Transfer, dry_run: DryRun, folder: PathBuf, answers: Vec<String>) -> Result<Self> {
        let is_name = |answer: &&String| Path::new(answer).file_name() == Some(OsStr::new(answer.as_str()));
        if let Some(answer) = answers.iter().find(|answer| !is_name(answer)) {
            return Err(Error::ClassFolder { class: answer.clone() });
        }
        Ok(Sorter {
            transfer,
            dry_run,
            merges: true,
            folder,
            answers,
            planned: HashMap::new(),
            prepared: HashSet::new(),
            is_sorted: HashMap::new(),
            taken: HashMap::new(),
            kept_free: HashSet::new(),
            n_put: 0,
            n_there: 0,
        })
    }

    /// The same sorter, which keeps every file: one whose bytes are there under its name gets a number too.
    #[must_use]
    pub fn keeping_copies(self) -> Self {
        Sorter { merges: false, ..self }
    }

    /// The same sorter, which puts no image where one with these bytes must not be: it gets a number there, as if the
    /// name were taken.
    #[must_use]
    pub(crate) fn keeping_free(self, kept_free: HashSet<(Digest, PathBuf)>) -> Self {
        Sorter { kept_free, ..self }
    }

    /// Whether a file lies where sorted images lie: such are not sorted again.
    pub fn passes_over(&mut self, file: &Path) -> bool {
        let folder = folder_of(file);
        if let Some(&known) = self.is_sorted.get(folder) {
            return known;
        }
        // What is not there yet may be tomorrow: only what is known for certain is remembered.
        let (Ok(own), Ok(sorted)) = (fs::canonicalize(folder), fs::canonicalize(&self.folder)) else {
            return false;
        };
        let is_sorted = self
            .answers
            .iter()
            .any(|answer| own.starts_with(sorted.join(file_names::path_of(answer))));
        self.is_sorted.insert(folder.to_owned(), is_sorted);
        is_sorted
    }

    /// Puts a file into the folder of its answer, and says where it is now.
    ///
    /// If the same bytes are there under its name, nothing more is done than to remove a file that is moved. If other bytes
    /// are there, the file gets a number: `1-2.jpg`.
    ///
    /// `read` is the digest of the bytes that the answer is about, if it is known.
    ///
    /// # Errors
    /// [`Error::OtherImage`] if the file has other bytes than those that were read, [`Error::NoFileName`], [`Error::Io`],
    /// [`Error::NotPut`] and [`Error::NotRemoved`]; the file is then still where it was.
    pub fn put(&mut self, file: &Path, answer: &str, read: Option<&Digest>) -> Result<PathBuf> {
        let Some(name) = file.file_name() else {
            return Err(Error::NoFileName { path: file.to_owned() });
        };
        let folder = self.folder.join(file_names::path_of(answer));
        if self.dry_run == DryRun::No {
            self.prepare(&folder)?;
        }
        let own = Digest::of_file(file).map_err(Error::io(file))?;
        if read.is_some_and(|read| *read != own) {
            return Err(Error::OtherImage { path: file.to_owned() });
        }
        let first = folder.join(name);
        let mut taken = self.taken.remove(&first).unwrap_or_default();
        let put = self.put_beside(&mut taken, file, name, &own, &folder);
        self.taken.insert(first, taken);
        put
    }

    /// Puts a file with these bytes into a folder, of which it is known what is there under this name.
    fn put_beside(
        &mut self,
        taken: &mut Taken,
        file: &Path,
        name: &OsStr,
        own: &Digest,
        folder: &Path,
    ) -> Result<PathBuf> {
        if let Some(target) = taken.files.get(own)
            && let Some(occupant) = self.occupant(target)
            && self.is_there(file, &occupant, target, folder)?
        {
            return Ok(target.clone());
        }
        loop {
            let target = folder.join(numbered(name, taken.n_seen + 1));
            match self.occupant(&target) {
                Some(occupant) => {
                    if self.is_there(file, &occupant, &target, folder)? {
                        return Ok(target);
                    }
                    if let Ok(other) = Digest::of_file(&occupant) {
                        taken.files.entry(other).or_insert(target);
                    }
                    taken.n_seen += 1;
                }
                None if self.kept_free.contains(&(*own, target.clone())) => taken.n_seen += 1,
                None => match self.put_new(file, &target) {
                    Ok(()) => {
                        self.n_put += 1;
                        taken.files.entry(*own).or_insert(target.clone());
                        taken.n_seen += 1;
                        return Ok(target);
                    }
                    // Somebody else has just put something there: see what.
                    Err(source) if source.kind() == ErrorKind::AlreadyExists => {}
                    Err(source) => return Err(Error::NotPut { to: target, source }),
                },
            }
        }
    }

    /// Whether `occupant`, which is at `target`, is the file itself or has the same bytes. A file that is moved then leaves
    /// its old place.
    fn is_there(&mut self, file: &Path, occupant: &Path, target: &Path, folder: &Path) -> Result<bool> {
        if is_same_entry(file, occupant) {
            self.n_there += 1;
            return Ok(true);
        }
        // A process that was killed may have left the file in both places.
        let may_merge = self.merges || is_link(file, occupant);
        if !may_merge || !has_same_bytes(file, occupant).map_err(Error::io(file))? {
            return Ok(false);
        }
        if self.transfer == Transfer::Move && self.dry_run == DryRun::No {
            let left = sync_folder(folder).and_then(|()| match is_same_through_mounts(file, occupant)? {
                true => Ok(()),
                false => leave(file, occupant),
            });
            left.map_err(|source| Error::NotRemoved {
                at: target.to_owned(),
                source,
            })?;
        }
        self.n_there += 1;
        Ok(true)
    }

    /// What has been done, or would be, in a sentence.
    pub fn summary(&self) -> String {
        let what = match (self.dry_run, self.transfer) {
            (DryRun::Yes, Transfer::Copy) => "would copy",
            (DryRun::Yes, Transfer::Move) => "would move",
            (DryRun::No, Transfer::Copy) => "copied",
            (DryRun::No, Transfer::Move) => "moved",
        };
        let mut summary = format!("{what} {} to {}", counted(self.n_put, "image"), self.folder.display());
        if self.n_there > 0 {
            summary += &format!(", {} there already", self.n_there);
        }
        summary
    }

    /// Makes a folder, which somebody may have moved away meanwhile, and removes what killed processes left in it.
    fn prepare(&mut self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).map_err(|source| Error::NotPut {
            to: folder.to_owned(),
            source,
        })?;
        if self.prepared.insert(folder.to_owned()) {
            remove_unfinished(folder)?;
        }
        Ok(())
    }

    /// The file that is at a path, or would be.
    fn occupant(&self, target: &Path) -> Option<PathBuf> {
        let is_there = fs::symlink_metadata(target).is_ok();
        let planned = || self.planned.get(target).cloned();
        is_there.then(|| target.to_owned()).or_else(planned)
    }

    fn put_new(&mut self, file: &Path, target: &Path) -> io::Result<()> {
        if self.dry_run == DryRun::Yes {
            File::open(file)?;
            self.planned.insert(target.to_owned(), file.to_owned());
            return Ok(());
        }
        match self.transfer {
            Transfer::Copy => copy(file, target),
            Transfer::Move => move_file(file, target),
        }
    }
}

/// Moves a file to where nothing is.
fn move_file(file: &Path, target: &Path) -> io::Result<()> {
    // A symbolic link may lead nowhere from another folder: what it leads to is copied.
    if fs::symlink_metadata(file)?.is_file() {
        match rename_to_free(file, target) {
            Ok(()) => return sync_folder(folder_of(target)),
            Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => return Err(error),
            // Another file system, or one that cannot tell: what is truly wrong will show when it is copied.
            Err(_) => {}
        }
    }
    copy(file, target)?;
    leave(file, target)
}

/// Gives a file a name that no other has.
fn rename_to_free(file: &Path, name: &Path) -> io::Result<()> {
    let mut path = TempPath::try_from_path(file)?;
    // It is no temporary file: if it keeps its name, it stays.
    path.disable_cleanup(true);
    path.persist_noclobber(name).map_err(|error| error.error)?;
    // Network file systems link and unlink instead, and the latter may fail without a word.
    match is_link(file, name) {
        true => remove(file),
        false => Ok(()),
    }
}

/// Removes a file whose bytes are at `target`.
fn leave(file: &Path, target: &Path) -> io::Result<()> {
    match has_same_bytes(file, target)? {
        true => remove(file),
        false => Err(io::Error::other("changed meanwhile: both are kept")),
    }
}

/// Removes what is at its new place, unless another who moves it was faster.
fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Copies a file, with its permissions and modification time, to where nothing is.
fn copy(file: &Path, target: &Path) -> io::Result<()> {
    let bytes = fs::read(file)?;
    let metadata = fs::metadata(file)?;
    let folder = folder_of(target);
    let mut copy = NamedTempFile::with_prefix_in(TEMPORARY, folder)?;
    copy.write_all(&bytes)?;
    if_supported(copy.as_file().set_permissions(metadata.permissions()))?;
    copy.as_file().sync_all()?;
    let copy = copy.persist_noclobber(target).map_err(|error| error.error)?;
    // Not before: by its age others would take the unfinished file for one that a killed process left.
    if_supported(copy.set_times(FileTimes::new().set_modified(metadata.modified()?)))?;
    sync_folder(folder)
}

/// `1.jpg`, `1-2.jpg`, `1-3.jpg` and so on.
fn numbered(name: &OsStr, number: usize) -> OsString {
    if number == 1 {
        return name.to_owned();
    }
    let name = Path::new(name);
    let mut numbered = name.file_stem().unwrap_or_default().to_owned();
    numbered.push(format!("-{number}"));
    if let Some(extension) = name.extension() {
        numbered.push(".");
        numbered.push(extension);
    }
    numbered
}

/// Whether two paths lead to one file: removing the one could remove the other.
fn is_same_entry(a: &Path, b: &Path) -> bool {
    let same_path = matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b);
    let same_inode = || matches!((fs::metadata(a), fs::metadata(b)), (Ok(a), Ok(b)) if is_same_only_link(&a, &b));
    same_path || same_inode()
}

/// Whether two paths of one name lead to one file through two mounts: what is made in the folder of the one then shows in
/// that of the other.
fn is_same_through_mounts(a: &Path, b: &Path) -> io::Result<bool> {
    if a.file_name() != b.file_name() {
        return Ok(false);
    }
    let probe = NamedTempFile::with_prefix_in(TEMPORARY, folder_of(b))?;
    let name = probe.path().file_name().unwrap_or_default();
    Ok(fs::symlink_metadata(folder_of(a).join(name)).is_ok())
}

/// Whether two paths are two names of one file.
fn is_link(a: &Path, b: &Path) -> bool {
    let metadata = (fs::symlink_metadata(a), fs::symlink_metadata(b));
    matches!(metadata, (Ok(a), Ok(b)) if is_same_file(&a, &b))
}

/// Two names of a file with one link are one name, whatever they look like: file systems may ignore case.
#[cfg(unix)]
fn is_same_only_link(a: &Metadata, b: &Metadata) -> bool {
    is_same_file(a, b) && std::os::unix::fs::MetadataExt::nlink(a) == 1
}

#[cfg(not(unix))]
fn is_same_only_link(_: &Metadata, _: &Metadata) -> bool {
    false
}

/// Whether two names are of one file, as hard links are.
#[cfg(unix)]
fn is_same_file(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn is_same_file(_: &Metadata, _: &Metadata) -> bool {
    false
}

/// Whether two files hold the same bytes; one at the target that cannot be read does not.
fn has_same_bytes(file: &Path, target: &Path) -> io::Result<bool> {
    let size = fs::metadata(file)?.len();
    if fs::metadata(target).map_or(0, |metadata| metadata.len()) != size {
        return Ok(false);
    }
    let bytes = fs::read(file)?;
    Ok(fs::read(target).is_ok_and(|found| found == bytes))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use luthier_extract::images_below;

    use super::*;

    fn sorter(transfer: Transfer, dry_run: DryRun, folder: &Path) -> Sorter {
        Sorter::new(
            transfer,
            dry_run,
            folder.to_owned(),
            vec!["drum".to_owned(), "harp".to_owned()],
        )
        .unwrap()
    }

    fn write(file: &Path, bytes: &str) -> PathBuf {
        fs::create_dir_all(folder_of(file)).unwrap();
        fs::write(file, bytes).unwrap();
        file.to_owned()
    }

    /// The images below a folder, with their bytes.
    fn tree(folder: &Path) -> Vec<(String, String)> {
        let images = images_below(folder).unwrap().into_iter();
        images
            .map(|image| {
                let name = image.strip_prefix(folder).unwrap().display().to_string();
                (name, fs::read_to_string(image).unwrap())
            })
            .collect()
    }

    #[track_caller]
    fn check(folder: &Path, expected: &[(&str, &str)]) {
        let found = tree(folder);
        let found: Vec<(&str, &str)> = found
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_str()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn images_of_one_name_get_numbers_and_the_same_bytes_stay_one_file() {
        let root = tempfile::tempdir().unwrap();
        let (old, new) = (root.path().join("old"), root.path().join("new"));
        let files: Vec<PathBuf> = [
            ("a/1.jpg", "one"),
            ("b/1.jpg", "two"),
            ("c/1.jpg", "one"),
            ("d/1.jpg", "three"),
        ]
        .map(|(name, bytes)| write(&old.join(name), bytes))
        .into();
        // What is in the way is not always an image.
        fs::create_dir_all(new.join("drum/1-3.jpg")).unwrap();
        for run in ["first", "second"] {
            let mut plan = sorter(Transfer::Copy, DryRun::Yes, &new);
            let mut act = sorter(Transfer::Copy, DryRun::No, &new);
            let planned: Vec<PathBuf> = files.iter().map(|file| plan.put(file, "drum", None).unwrap()).collect();
            let done: Vec<PathBuf> = files.iter().map(|file| act.put(file, "drum", None).unwrap()).collect();
            assert_eq!(planned, done, "{run}");
            let names = ["1.jpg", "1-2.jpg", "1.jpg", "1-4.jpg"].map(|name| new.join("drum").join(name));
            assert_eq!(done, names, "{run}");
            assert_eq!((plan.n_put, plan.n_there), (act.n_put, act.n_there), "{run}");
            assert_eq!(act.n_put, if run == "first" { 3 } else { 0 });
        }
        check(
            &new,
            &[
                ("drum/1-2.jpg", "two"),
                ("drum/1-4.jpg", "three"),
                ("drum/1.jpg", "one"),
            ],
        );
        assert_eq!(tree(&old).len(), 4);
    }

    #[test]
    fn an_image_that_was_replaced_since_it_was_read_stays() {
        let root = tempfile::tempdir().unwrap();
        let file = write(&root.path().join("1.jpg"), "two");
        let mut sorter = sorter(Transfer::Move, DryRun::No, &root.path().join("new"));
        let error = sorter.put(&file, "drum", Some(&Digest::of(b"one"))).unwrap_err();
        assert!(matches!(error, Error::OtherImage { path } if path == file));
        assert!(file.exists());
        sorter.put(&file, "drum", Some(&Digest::of(b"two"))).unwrap();
        check(root.path(), &[("new/drum/1.jpg", "two")]);
    }

    #[test]
    fn a_plan_touches_nothing() {
        let root = tempfile::tempdir().unwrap();
        let file = write(&root.path().join("1.jpg"), "one");
        let mut plan = sorter(Transfer::Move, DryRun::Yes, &root.path().join("new"));
        plan.put(&file, "harp", None).unwrap();
        check(root.path(), &[("1.jpg", "one")]);
        assert!(!root.path().join("new").exists());
        assert!(
            plan.summary().starts_with("would move 1 image to "),
            "{}",
            plan.summary()
        );
    }

    /// Moves one file and checks that nothing of it is lost.
    #[track_caller]
    fn check_move(file: &Path, folder: &Path) {
        let bytes = fs::read_to_string(file).unwrap();
        let mtime = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        File::open(file).unwrap().set_modified(mtime).unwrap();
        let target = sorter(Transfer::Move, DryRun::No, folder)
            .put(file, "harp", None)
            .unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), bytes);
        assert_eq!(fs::metadata(&target).unwrap().modified().unwrap(), mtime);
        assert!(fs::symlink_metadata(file).is_err(), "it is still there");
    }

    #[test]
    fn what_is_moved_leaves_its_old_place_and_keeps_its_time() {
        let root = tempfile::tempdir().unwrap();
        let file = write(&root.path().join("1.jpg"), "one");
        check_move(&file, &root.path().join("new"));
        check(root.path(), &[("new/harp/1.jpg", "one")]);
    }

    #[cfg(unix)]
    #[test]
    fn of_a_symbolic_link_what_it_leads_to_is_copied() {
        let root = tempfile::tempdir().unwrap();
        write(&root.path().join("photos/1.jpg"), "one");
        let link = root.path().join("2.jpg");
        std::os::unix::fs::symlink("photos/1.jpg", &link).unwrap();
        check_move(&link, &root.path().join("new"));
        check(root.path(), &[("new/harp/2.jpg", "one"), ("photos/1.jpg", "one")]);
    }

    /// Needs a second file system in /dev/shm; says so where it is skipped.
    #[cfg(unix)]
    #[test]
    fn files_move_to_another_file_system() {
        use std::os::unix::fs::MetadataExt;
        let root = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir_in("/dev/shm").ok();
        let device = |folder: &Path| fs::metadata(folder).unwrap().dev();
        let Some(other) = other.filter(|other| device(other.path()) != device(root.path())) else {
            eprintln!("SKIPPED: /dev/shm is no other file system");
            return;
        };
        let file = write(&root.path().join("1.jpg"), "one");
        check_move(&file, other.path());
        check(other.path(), &[("harp/1.jpg", "one")]);
    }

    #[test]
    fn a_move_that_was_cut_off_is_finished() {
        let root = tempfile::tempdir().unwrap();
        let file = write(&root.path().join("1.jpg"), "one");
        let target = root.path().join("new/drum/1.jpg");
        fs::create_dir_all(folder_of(&target)).unwrap();
        fs::hard_link(&file, &target).unwrap();
        let mut sorter = sorter(Transfer::Move, DryRun::No, &root.path().join("new"));
        assert_eq!(sorter.put(&file, "drum", None).unwrap(), target);
        check(root.path(), &[("new/drum/1.jpg", "one")]);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_is_at_its_place_stays() {
        let root = tempfile::tempdir().unwrap();
        let new = root.path().join("new");
        let file = write(&new.join("drum/1.jpg"), "one");
        std::os::unix::fs::symlink("new", root.path().join("same")).unwrap();
        let through_link = root.path().join("same/drum/1.jpg");
        for path in [&file, &through_link] {
            assert_eq!(
                sorter(Transfer::Move, DryRun::No, &new)
                    .put(path, "drum", None)
                    .unwrap(),
                file
            );
            check(&new, &[("drum/1.jpg", "one")]);
        }
        // What only leads to a file of the same name is left as well.
        let link = root.path().join("1.jpg");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        sorter(Transfer::Move, DryRun::No, &new)
            .put(&link, "drum", None)
            .unwrap();
        check(&new, &[("drum/1.jpg", "one")]);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_leaves_its_place_only_if_its_bytes_are_elsewhere() {
        let root = tempfile::tempdir().unwrap();
        let file = write(&root.path().join("old/1.jpg"), "newer");
        let target = write(&root.path().join("new/1.jpg"), "older");
        let error = leave(&file, &target).unwrap_err();
        assert_eq!(error.to_string(), "changed meanwhile: both are kept");
        check(root.path(), &[("new/1.jpg", "older"), ("old/1.jpg", "newer")]);
        // As the same folder is through another mount.
        std::os::unix::fs::symlink("old", root.path().join("mount")).unwrap();
        let through_mount = root.path().join("mount/1.jpg");
        assert!(is_same_through_mounts(&through_mount, &file).unwrap());
        assert!(!is_same_through_mounts(&target, &file).unwrap());
        assert!(!is_same_through_mounts(&root.path().join("mount/2.jpg"), &file).unwrap());
        write(&target, "newer");
        leave(&file, &target).unwrap();
        check(root.path(), &[("new/1.jpg", "newer")]);
    }

    #[test]
    fn those_who_sort_at_once_overwrite_nothing() {
        let root = tempfile::tempdir().unwrap();
        let new = root.path().join("new");
        let n_threads = 8;
        let names: Vec<PathBuf> = (0..20).map(|n| format!("{n}.jpg").into()).collect();
        std::thread::scope(|scope| {
            for thread in 0..n_threads {
                let (new, names) = (&new, &names);
                let old = root.path().join(thread.to_string());
                let transfer = if thread % 2 == 0 {
                    Transfer::Move
                } else {
                    Transfer::Copy
                };
                scope.spawn(move || {
                    let mut sorter = sorter(transfer, DryRun::No, new);
                    for name in names {
                        let file = write(&old.join(name), &format!("{thread} {}", name.display()));
                        sorter.put(&file, "drum", None).unwrap();
                    }
                });
            }
        });
        let mut found: Vec<String> = tree(&new).into_iter().map(|(_, bytes)| bytes).collect();
        let expected = |thread| names.iter().map(move |name| format!("{thread} {}", name.display()));
        let mut expected: Vec<String> = (0..n_threads).flat_map(expected).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn those_who_move_the_same_images_at_once_lose_none() {
        let root = tempfile::tempdir().unwrap();
        let new = root.path().join("new");
        let files: Vec<PathBuf> = (0..200)
            .map(|n| write(&root.path().join(format!("old/{n}.jpg")), &n.to_string()))
            .collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let (new, files) = (&new, &files);
                scope.spawn(move || {
                    let mut sorter = sorter(Transfer::Move, DryRun::No, new);
                    for file in files {
                        // One that another has moved meanwhile is not there any more.
                        if let Err(error) = sorter.put(file, "drum", None) {
                            assert!(error.to_string().contains("No such file"), "{error}");
                        }
                    }
                });
            }
        });
        assert_eq!(tree(&root.path().join("old")), []);
        let mut found: Vec<String> = tree(&new).into_iter().map(|(_, bytes)| bytes).collect();
        found.sort_by_key(|bytes| bytes.parse::<usize>().unwrap());
        assert_eq!(found, (0..200).map(|n| n.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named_and_the_image_stays() {
        let root = tempfile::tempdir().unwrap();
        let file = write(&root.path().join("1.jpg"), "one");
        write(&root.path().join("new/drum"), "a file");
        let error = sorter(Transfer::Move, DryRun::No, &root.path().join("new"))
            .put(&file, "drum", None)
            .unwrap_err();
        let folder = root.path().join("new/drum");
        assert!(
            error
                .to_string()
                .starts_with(&format!("not put to {}: ", folder.display())),
            "{error}"
        );
        assert!(file.exists());
    }

    #[test]
    fn images_in_the_folders_of_answers_are_sorted_and_others_are_not() {
        let root = tempfile::tempdir().unwrap();
        let mut sorter = sorter(Transfer::Copy, DryRun::No, &root.path().join("new"));
        for (file, is_sorted) in [
            ("new/drum/1.jpg", true),
            ("new/drum/deeper/1.jpg", true),
            ("new/drums/1.jpg", false),
            ("new/1.jpg", false),
            ("drum/1.jpg", false),
        ] {
            let file = root.path().join(file);
            assert!(!sorter.passes_over(&file), "what is not there is not sorted");
            write(&file, "one");
            assert_eq!(sorter.passes_over(&file), is_sorted, "{}", file.display());
        }
    }

    #[test]
    fn thousands_of_images_of_one_name_are_each_compared_with_few() {
        let root = tempfile::tempdir().unwrap();
        let mut sorter = sorter(Transfer::Copy, DryRun::No, &root.path().join("new"));
        let n = 500;
        for number in 0..n {
            let file = write(&root.path().join(format!("{number}/front.jpg")), &number.to_string());
            sorter.put(&file, "harp", None).unwrap();
        }
        // The names that were looked at: none twice.
        let taken = &sorter.taken[&root.path().join("new/harp/front.jpg")];
        assert_eq!((taken.n_seen, taken.files.len()), (n, n));
        let again = root.path().join("250/front.jpg");
        let target = root.path().join("new/harp/front-251.jpg");
        assert_eq!(sorter.put(&again, "harp", None).unwrap(), target);
    }

    #[test]
    fn a_class_that_leads_out_of_the_folder_is_refused() {
        for class in ["..", "a/b", "/a", "", "a/"] {
            let answers = vec!["drum".to_owned(), class.to_owned()];
            let refused = Sorter::new(Transfer::Copy, DryRun::Yes, "new".into(), answers).err();
            let expected = format!("class {class:?}: expected a name that a folder can have");
            assert_eq!(refused.map(|error| error.to_string()), Some(expected));
        }
    }
}
