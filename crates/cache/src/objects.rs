use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use luthier_artifact::{Digest, entries, remove, write_atomically};

use crate::{Error, Result};

/// Files named by the digest of their bytes: `objects/ab/cdef…`.
#[derive(Debug)]
pub(super) struct Objects {
    root: PathBuf,
    /// The root of the files of a cache that can only be read.
    read_only: Option<PathBuf>,
    /// The files there that are forgotten.
    lost: Mutex<HashSet<PathBuf>>,
}

impl Objects {
    pub(super) fn new(root: PathBuf) -> Self {
        Objects {
            root,
            read_only: None,
            lost: Mutex::default(),
        }
    }

    /// Finds the files below another root too, where nothing is changed.
    pub(super) fn read_also(&mut self, root: PathBuf) {
        self.read_only = Some(root);
    }

    /// Where bytes are stored.
    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        path_below(&self.root, digest)
    }

    fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.root).chain(&self.read_only)
    }

    /// Where bytes may be.
    fn paths(&self, digest: &Digest) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = self.roots().map(|root| path_below(root, digest)).collect();
        let lost = self.lost();
        paths.retain(|path| !lost.contains(path));
        paths
    }

    fn lost(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores bytes, unless they are there already, whole.
    pub(super) fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let is_whole = |path: &PathBuf| Digest::of_file(path).is_ok_and(|found| found == digest);
        if !self.paths(&digest).iter().any(is_whole) {
            write_atomically(&self.path(&digest), bytes)?;
        }
        Ok(digest)
    }

    /// The bytes with this digest, or `None` if there are none. A file that holds other bytes is
    /// forgotten.
    pub(super) fn get(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        for path in self.paths(digest) {
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(Error::io(&path)(error)),
            };
            if Digest::of(&bytes) == *digest {
                return Ok(Some(bytes));
            }
            tracing::warn!(
                "{}: bytes do not match their digest; forgotten, to be computed again",
                path.display()
            );
            // If the file cannot be removed, it is still a miss.
            if let Err(error) = self.forget_file(path) {
                tracing::debug!("{error}");
            }
        }
        Ok(None)
    }

    /// Forgets the bytes with this digest.
    pub(super) fn forget(&self, digest: &Digest) -> Result<()> {
        self.paths(digest)
            .into_iter()
            .try_for_each(|path| self.forget_file(path))
    }

    /// Removes a file, or remembers that it cannot be used.
    fn forget_file(&self, path: PathBuf) -> Result<()> {
        match path.starts_with(&self.root) {
            true => Ok(remove(&path)?),
            false => {
                self.lost().insert(path);
                Ok(())
            }
        }
    }

    /// Whether a file is there, without reading it.
    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.paths(digest).iter().any(|path| path.is_file())
    }

    /// The size in bytes of every stored file whose name is a digest. Files with other names are left alone.
    pub(super) fn list(&self) -> Result<BTreeMap<Digest, u64>> {
        let mut files = BTreeMap::new();
        for root in self.roots() {
            for (digest, path) in digests_below(root)? {
                match fs::metadata(&path) {
                    Ok(metadata) => files.insert(digest, metadata.len()),
                    // Removed by another process since the folder was read.
                    Err(error) if is_gone(&error) => None,
                    Err(error) => return Err(Error::io(&path)(error)),
                };
            }
        }
        Ok(files)
    }
}

/// Where something with this name is: `ab/cdef…`.
pub(super) fn path_below(root: &Path, name: &Digest) -> PathBuf {
    let hex = name.to_string();
    root.join(&hex[..2]).join(&hex[2..])
}

/// Whether a file was removed by another process, here or on another machine.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle
    )
}

/// All that has a digest for its name, in no order. What has another name is left out.
pub(super) fn digests_below(root: &Path) -> Result<Vec<(Digest, PathBuf)>> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for shard in entries(root)? {
        for path in entries(&shard)? {
            found.extend((name(&shard) + &name(&path)).parse().ok().map(|digest| (digest, path)));
        }
    }
    Ok(found)
}
