//! What is known of files: the digest that a file's bytes had when the file had a stat.
//!
//! Each folder that was scanned has a folder here, `files/ab/cdef…`, named by the digest of its name.
//! In it, each batch that was learnt is a file, named by a number, which grows, and the digest of its
//! bytes:
//!
//! | part | bytes |
//! |---|---|
//! | head | [`HEAD`], length of the scanned folder's name 4, this name |
//! | each file, in the order of names | length of its name 4, its name below the folder, size 8, modification time 8, inode 8, digest 32 |
//!
//! Numbers are little-endian. A batch never changes. A later batch overrules an earlier one. So a
//! batch that does not have its digest makes all earlier ones worthless: a warning says so, and the
//! files are read again. When a folder has many batches, the process that adds one merges them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use luthier_artifact::{Digest, FileStat, Observer, entries, file_names, remove, temporary_for};

use crate::objects::{digests_below, is_gone, path_below};
use crate::upkeep::go_on;
use crate::{Error, Result};

/// The folder of what is known of files.
pub(super) const FILES: &str = "files";

const HEAD: &[u8; 16] = b"luthier files 1\n";

/// How many batches a folder may have before they are merged.
const MOST: usize = 8;

/// How often batches are looked for again, if another process merges them meanwhile.
const LISTINGS: usize = 5;

/// No name is as long.
const LONGEST: u32 = 1 << 20;

/// What is known of the files of all scanned folders.
#[derive(Debug)]
pub(super) struct KnownFiles {
    root: PathBuf,
    /// The root of a cache that can only be read, whose batches are read too.
    read_only: Option<PathBuf>,
}

/// What is known of a file below a scanned folder.
struct Entry {
    name: String,
    stat: FileStat,
    digest: Digest,
}

/// A file with a batch of entries.
struct Stored {
    number: u64,
    digest: Digest,
    path: PathBuf,
}

impl KnownFiles {
    pub(super) fn new(root: PathBuf) -> Self {
        KnownFiles { root, read_only: None }
    }

    /// Reads what another cache knows too, and changes nothing there.
    pub(super) fn read_also(&mut self, root: PathBuf) {
        self.read_only = Some(root);
    }

    /// The digests that files below a folder had when they had these stats. The files come in the order of their names.
    pub(super) fn digests<'a>(
        &self,
        folder: &str,
        files: impl ExactSizeIterator<Item = (&'a str, FileStat)> + Clone,
    ) -> Result<Vec<Option<Digest>>> {
        let n_files = files.len();
        for _ in 0..if n_files == 0 { 0 } else { LISTINGS } {
            match self.digests_once(folder, files.clone()) {
                // Another machine has merged a batch that is being read.
                Err(Error::File(luthier_artifact::Error::Io { source, .. })) if is_gone(&source) => {}
                other => return other,
            }
        }
        Ok(vec![None; n_files])
    }

    fn digests_once<'a>(
        &self,
        folder: &str,
        files: impl ExactSizeIterator<Item = (&'a str, FileStat)>,
    ) -> Result<Vec<Option<Digest>>> {
        let mut known = self.known(folder)?;
        let mut entry = known.next()?;
        let mut found = Vec::with_capacity(files.len());
        for (name, stat) in files {
            while entry.as_ref().is_some_and(|entry| entry.name.as_str() < name) {
                entry = known.next()?;
            }
            let is_same = |entry: &&Entry| entry.name == name && entry.stat == stat;
            found.push(entry.as_ref().filter(is_same).map(|entry| entry.digest));
        }
        Ok(found)
    }

    /// Remembers files below a folder.
    pub(super) fn remember<'a>(
        &self,
        folder: &str,
        files: impl Iterator<Item = (&'a str, FileStat, Digest)>,
    ) -> Result<()> {
        let mut learnt: Vec<(&str, FileStat, Digest)> = files.collect();
        learnt.sort_unstable_by_key(|(name, ..)| *name);
        let place = self.place(folder);
        let entry = |&(name, stat, digest): &(&str, FileStat, Digest)| Entry {
            name: name.to_owned(),
            stat,
            digest,
        };
        let old = loop {
            let old = stored(&place)?;
            let number = old.last().map_or(0, |last| last.number + 1);
            let mut entries = learnt.iter().map(entry);
            let written = write(&place, folder, number, || Ok(entries.next()))?;
            // What another process has written meanwhile under this number or a larger one would overrule this batch.
            let is_overruled = |batch: &Stored| batch.number >= number && written.as_ref() != Some(&batch.path);
            if written.is_none() || !stored(&place)?.iter().any(is_overruled) {
                break old;
            }
        };
        // The disk may have room for the batch, and not for all that is known.
        if old.len() >= MOST
            && let Err(error) = self.rewrite(folder, |_| true)
        {
            tracing::debug!("{error}");
        }
        Ok(())
    }

    /// The folders that were scanned.
    pub(super) fn folders(&self) -> Result<Vec<PathBuf>> {
        Ok(self
            .scanned()?
            .iter()
            .map(|folder| file_names::path_of(folder))
            .collect())
    }

    /// Shows every file that is known, with its path.
    pub(super) fn each(&self, mut see: impl FnMut(PathBuf, Digest) -> Result<()>) -> Result<()> {
        for folder in self.scanned()? {
            let mut known = self.known(&folder)?;
            while let Some(entry) = known.next()? {
                see(path_of(&folder, &entry.name), entry.digest)?;
            }
        }
        Ok(())
    }

    /// Forgets the files that are not to be kept, and folders without files.
    pub(super) fn retain(&self, keep: impl Fn(&Path) -> bool, observer: &dyn Observer) -> Result<()> {
        for folder in self.scanned()? {
            go_on(observer)?;
            self.rewrite(&folder, |entry| keep(&path_of(&folder, &entry.name)))?;
        }
        Ok(())
    }

    /// Removes the batches that are damaged, and those before them, which they may have overruled. The result is how many
    /// are damaged.
    pub(super) fn verify(&self, observer: &dyn Observer) -> Result<u64> {
        let mut n_damaged = 0;
        for (_, place) in digests_below(&self.root)? {
            let mut before = Vec::new();
            for batch in stored(&place)? {
                go_on(observer)?;
                let is_damaged = batch.is_whole()? == Some(false);
                before.push(batch);
                if is_damaged {
                    n_damaged += 1;
                    before.drain(..).try_for_each(|batch| remove(&batch.path))?;
                }
            }
        }
        Ok(n_damaged)
    }

    /// An error if a batch is damaged: it is not known which files it named.
    pub(super) fn check(&self, observer: &dyn Observer) -> Result<()> {
        for (_, place) in digests_below(&self.root)? {
            for batch in stored(&place)? {
                go_on(observer)?;
                if batch.is_whole()? == Some(false) {
                    return Err(Error::Lost {
                        what: "batch of known files",
                        digest: batch.digest,
                    });
                }
            }
        }
        Ok(())
    }

    /// How many files are known.
    pub(super) fn count(&self) -> Result<u64> {
        let mut n_files = 0;
        self.each(|_, _| {
            n_files += 1;
            Ok(())
        })?;
        Ok(n_files)
    }

    /// Writes one batch of what is to be kept of a folder in the place of all.
    fn rewrite(&self, folder: &str, keep: impl Fn(&Entry) -> bool) -> Result<()> {
        let place = self.place(folder);
        let old = stored(&place)?;
        let (Some(last), Some(mut known)) = (old.last(), Merged::new(folder, &old)?) else {
            return Ok(());
        };
        let written = write(&place, folder, last.number, || {
            loop {
                match known.next()? {
                    Some(entry) if !keep(&entry) => {}
                    other => return Ok(other),
                }
            }
        })?;
        let mut others = old.iter().filter(|batch| written.as_ref() != Some(&batch.path));
        Ok(others.try_for_each(|batch| remove(&batch.path))?)
    }

    /// Where the batches of a folder are written.
    fn place(&self, folder: &str) -> PathBuf {
        path_below(&self.root, &Digest::of(folder.as_bytes()))
    }

    fn known(&self, folder: &str) -> Result<Merged> {
        let name = Digest::of(folder.as_bytes());
        for _ in 0..LISTINGS {
            let mut batches = Vec::new();
            for root in self.roots() {
                batches.extend(stored(&path_below(root, &name))?);
            }
            if let Some(merged) = Merged::new(folder, &batches)? {
                return Ok(merged);
            }
        }
        Ok(Merged { batches: Vec::new() })
    }

    /// The names of the folders that were scanned.
    fn scanned(&self) -> Result<BTreeSet<String>> {
        let mut scanned = BTreeSet::new();
        for root in self.roots() {
            for (_, place) in digests_below(root)? {
                for batch in stored(&place)? {
                    if batch.is_whole()? == Some(true) {
                        scanned.extend(Entries::open(&batch.path)?.map(|entries| entries.folder));
                    }
                }
            }
        }
        Ok(scanned)
    }

    fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        self.read_only.iter().chain([&self.root])
    }
}

/// The batches in a folder, in the order of their numbers.
fn stored(place: &Path) -> Result<Vec<Stored>> {
    let mut batches: Vec<Stored> = (entries(place)?.into_iter())
        .filter_map(|path| {
            let (number, digest) = path.file_name()?.to_str()?.split_once('-')?;
            Some(Stored {
                number: number.parse().ok()?,
                digest: digest.parse().ok()?,
                path,
            })
        })
        .collect();
    batches.sort_by_key(|batch| (batch.number, batch.digest));
    Ok(batches)
}

impl Stored {
    /// Whether the bytes have their digest. `None` if another process has merged them.
    fn is_whole(&self) -> Result<Option<bool>> {
        match Digest::of_file(&self.path) {
            Ok(digest) if digest == self.digest => Ok(Some(true)),
            Ok(_) => {
                tracing::warn!(
                    "{}: bytes do not match their digest; files are read again",
                    self.path.display()
                );
                Ok(Some(false))
            }
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(Error::io(&self.path)(error)),
        }
    }
}

/// Writes a batch of the entries that `next` gives, in the order of their names. The result is its path; without entries
/// there is none.
fn write(
    place: &Path,
    folder: &str,
    number: u64,
    mut next: impl FnMut() -> Result<Option<Entry>>,
) -> Result<Option<PathBuf>> {
    let mut entry = next()?;
    if entry.is_none() {
        return Ok(None);
    }
    fs::create_dir_all(place).map_err(Error::io(place))?;
    let file = temporary_for(&place.join("batch")).map_err(Error::io(place))?;
    let mut writer = BufWriter::new(file.as_file());
    let mut put = |bytes: &[u8]| writer.write_all(bytes).map_err(Error::io(place));
    put(HEAD)?;
    put(&(folder.len() as u32).to_le_bytes())?;
    put(folder.as_bytes())?;
    while let Some(Entry { name, stat, digest }) = entry {
        let FileStat { size, mtime_ns, inode } = stat;
        put(&(name.len() as u32).to_le_bytes())?;
        put(name.as_bytes())?;
        put([size.to_le_bytes(), mtime_ns.to_le_bytes(), inode.to_le_bytes()].as_flattened())?;
        put(digest.as_bytes())?;
        entry = next()?;
    }
    writer.flush().map_err(Error::io(place))?;
    drop(writer);
    file.as_file().sync_all().map_err(Error::io(place))?;
    let digest = Digest::of_file(file.path()).map_err(Error::io(place))?;
    let path = place.join(format!("{number}-{digest}"));
    file.persist(&path).map_err(|error| Error::io(&path)(error.error))?;
    Ok(Some(path))
}

/// The entries of a folder's batches in the order of their names; of a file that several have, that of the last.
struct Merged {
    /// Each with its next entry.
    batches: Vec<(Entry, Entries)>,
}

impl Merged {
    /// `None` if another process has merged one of them.
    fn new(folder: &str, stored: &[Stored]) -> Result<Option<Self>> {
        let mut batches = Vec::new();
        for batch in stored {
            let entries = match batch.is_whole()? {
                Some(true) => Entries::open(&batch.path)?,
                // It may have said otherwise than those before it.
                Some(false) => {
                    batches.clear();
                    continue;
                }
                None => None,
            };
            let Some(mut entries) = entries else { return Ok(None) };
            if entries.folder == folder
                && let Some(first) = entries.next()?
            {
                batches.push((first, entries));
            }
        }
        Ok(Some(Merged { batches }))
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        let Some(name) = self.batches.iter().map(|(entry, _)| &entry.name).min().cloned() else {
            return Ok(None);
        };
        let mut newest = None;
        let mut place = 0;
        while let Some((entry, entries)) = self.batches.get_mut(place) {
            if entry.name != name {
                place += 1;
                continue;
            }
            match entries.next()? {
                Some(next) => {
                    newest = Some(std::mem::replace(entry, next));
                    place += 1;
                }
                None => newest = Some(self.batches.remove(place).0),
            }
        }
        Ok(newest)
    }
}

/// Reads a batch.
struct Entries {
    path: PathBuf,
    reader: BufReader<File>,
    folder: String,
}

impl Entries {
    /// `None` if another process has merged the batch.
    fn open(path: &Path) -> Result<Option<Self>> {
        let read = || {
            let mut reader = BufReader::with_capacity(1 << 16, File::open(path)?);
            let mut head = [0; HEAD.len()];
            reader.read_exact(&mut head)?;
            let folder = match head == *HEAD {
                true => read_name(&mut reader)?.unwrap_or_default(),
                // Of another version, which has another form.
                false => String::new(),
            };
            Ok(Entries {
                path: path.to_owned(),
                reader,
                folder,
            })
        };
        match read() {
            Ok(entries) => Ok(Some(entries)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(Error::io(path)(error)),
        }
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        self.read().map_err(Error::io(&self.path))
    }

    fn read(&mut self) -> io::Result<Option<Entry>> {
        let Some(name) = read_name(&mut self.reader)? else {
            return Ok(None);
        };
        let mut number = || {
            let mut bytes = [0; 8];
            self.reader.read_exact(&mut bytes).map(|()| bytes)
        };
        let stat = FileStat {
            size: u64::from_le_bytes(number()?),
            mtime_ns: i64::from_le_bytes(number()?),
            inode: u64::from_le_bytes(number()?),
        };
        let mut digest = [0; 32];
        self.reader.read_exact(&mut digest)?;
        Ok(Some(Entry {
            name,
            stat,
            digest: Digest::from_bytes(digest),
        }))
    }
}

/// A name with its length before it; `None` at the end of the file.
fn read_name(reader: &mut BufReader<File>) -> io::Result<Option<String>> {
    let mut length = [0; 4];
    match reader.read_exact(&mut length) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_le_bytes(length);
    if length > LONGEST {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut name = vec![0; length as usize];
    reader.read_exact(&mut name)?;
    String::from_utf8(name).map(Some).map_err(io::Error::other)
}

/// The path of a file, given by its folder and its name below that, which may be a path from the root.
fn path_of(folder: &str, name: &str) -> PathBuf {
    file_names::path_of(folder).join(file_names::path_of(name))
}
