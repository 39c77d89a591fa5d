use std::ops::Range;

use luthier_artifact::{Digest, FeatureRows, ReadError, ReadRows};
use ndarray::ArrayViewMut2;

use crate::{Cache, Error, ROWS_AT_ONCE, Result};

/// A table whose features are read from the cache in blocks of rows.
#[derive(Debug)]
pub struct StoredTable<'a> {
    pub(crate) cache: &'a Cache,
    pub(crate) digest: Digest,
    pub(crate) rows: FeatureRows,
}

impl StoredTable<'_> {
    /// What is known without reading the features.
    pub fn rows(&self) -> &FeatureRows {
        &self.rows
    }

    /// Reads the features of some rows into `into`, `[range.len(), width]`.
    ///
    /// # Errors
    /// [`Error::Lost`] if one of them is gone or damaged. The cache then forgets the table too, so
    /// that the stage that makes it runs again. [`Error::File`] if the folder of segments cannot be read.
    pub fn read(&self, range: Range<usize>, into: ArrayViewMut2<'_, f32>) -> Result<()> {
        read(self.cache, &self.digest, &self.rows.vectors, range, into)
    }
}

impl ReadRows for StoredTable<'_> {
    type Feature = f32;

    fn n_rows(&self) -> usize {
        self.rows.n_rows()
    }

    fn n_features(&self) -> usize {
        self.rows.width
    }

    fn read(&self, start: usize, block: ArrayViewMut2<'_, f32>) -> std::result::Result<(), ReadError> {
        Ok(StoredTable::read(self, start..start + block.nrows(), block)?)
    }
}

/// Vectors of the cache, by their digests. They are read in blocks of rows.
#[derive(Debug)]
pub struct StoredVectors<'a> {
    cache: &'a Cache,
    owner: Digest,
    vectors: Vec<Digest>,
    width: usize,
}

impl Cache {
    /// The vectors with these digests, each of `width` numbers, still unread. `owner` is the artifact that names them: the
    /// cache forgets the artifact if one of its vectors turns out to be lost.
    pub fn stored_vectors(&self, owner: Digest, vectors: Vec<Digest>, width: usize) -> StoredVectors<'_> {
        StoredVectors {
            cache: self,
            owner,
            vectors,
            width,
        }
    }
}

impl StoredVectors<'_> {
    /// Gives `take` every row once, in the order in which they lie on the disk: its place, and its little-endian bytes. One
    /// pass over the disk, where blocks of rows would be a pass each.
    ///
    /// # Errors
    /// Those of [`StoredTable::read`].
    pub fn each(&self, take: &mut dyn FnMut(usize, &[u8])) -> Result<()> {
        let read = self.cache.each_vector(&self.vectors, self.width, take);
        read.inspect_err(|error| forget(self.cache, &self.owner, &self.vectors, self.width, error))
    }
}

impl ReadRows for StoredVectors<'_> {
    type Feature = f32;

    fn n_rows(&self) -> usize {
        self.vectors.len()
    }

    fn n_features(&self) -> usize {
        self.width
    }

    fn read(&self, start: usize, block: ArrayViewMut2<'_, f32>) -> std::result::Result<(), ReadError> {
        let range = start..start + block.nrows();
        Ok(read(self.cache, &self.owner, &self.vectors, range, block)?)
    }
}

/// Reads some of the vectors that an artifact names.
fn read(
    cache: &Cache,
    owner: &Digest,
    vectors: &[Digest],
    range: Range<usize>,
    into: ArrayViewMut2<'_, f32>,
) -> Result<()> {
    let width = into.ncols();
    let read = cache.read_vectors(&vectors[range], into);
    read.inspect_err(|error| forget(cache, owner, vectors, width, error))
}

/// If a vector is lost, the artifact that names it is forgotten, and all others that are lost.
fn forget(cache: &Cache, owner: &Digest, vectors: &[Digest], width: usize, error: &Error) {
    if matches!(error, Error::Lost { .. }) {
        let forgotten = cache.objects.forget(owner).and_then(|()| {
            let mut blocks = vectors.chunks(ROWS_AT_ONCE);
            blocks.try_for_each(|block| cache.forget_lost(block, width))
        });
        if let Err(error) = forgotten {
            tracing::warn!("{error}");
        }
    }
}
