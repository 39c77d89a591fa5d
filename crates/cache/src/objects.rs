use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use luthier_artifact::{Digest, entries, remove, temporary, write_atomically};

use crate::{Error, Result};

/// Files named by the digest of their bytes: `objects/ab/cdef…`.
#[derive(Debug)]
pub(super) struct Objects {
    root: PathBuf,
}

impl Objects {
    pub(super) fn new(root: PathBuf) -> Self {
        Objects { root }
    }

    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.to_string();
        self.root.join(&hex[..2]).join(&hex[2..])
    }

    /// Stores bytes, unless they are there already, whole.
    pub(super) fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let path = self.path(&digest);
        if Digest::of_file(&path).is_ok_and(|found| found == digest) {
            return Ok(digest);
        }
        write_atomically(&path, bytes)?;
        Ok(digest)
    }

    /// The bytes with this digest, or `None` if there are none. A file that holds other bytes is
    /// removed.
    pub(super) fn get(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let path = self.path(digest);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
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
        if let Err(error) = remove(&path) {
            tracing::debug!("{error}");
        }
        Ok(None)
    }

    /// Whether a file is there, without reading it.
    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// The temporary files of writers, living or dead.
    pub(super) fn temporary(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for shard in entries(&self.root)? {
            files.extend(temporary(&shard)?);
        }
        Ok(files)
    }

    /// The size in bytes of every stored file whose name is a digest. Files with other names are left alone.
    pub(super) fn list(&self) -> Result<BTreeMap<Digest, u64>> {
        let mut files = BTreeMap::new();
        for shard in entries(&self.root)? {
            for path in entries(&shard)? {
                let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let Ok(digest) = (name(&shard) + &name(&path)).parse() else {
                    continue;
                };
                let metadata = match fs::metadata(&path) {
                    Ok(metadata) => metadata,
                    // Removed by another process since the folder was read.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(Error::io(&path)(error)),
                };
                files.insert(digest, metadata.len());
            }
        }
        Ok(files)
    }
}
