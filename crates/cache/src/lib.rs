//! Keeps artifacts and features on disk, so that nothing is computed twice.
//!
//! The cache knows no stage by name, and neither images, tensors nor statistics. A stage asks for
//! the result of a key; if there is none, it runs and records what it made.
//!
//! # What is stored where
//!
//! | place in the folder | holds |
//! |---|---|
//! | `segments/….segment` | features of single images; named by the blake3 digest of its index, never changed |
//! | `segments/….open` | features that a process is adding |
//! | `segments/remote/….index` | indexes of shared segments; `gc` removes them, and they are fetched again |
//! | `objects/ab/cdef…` | artifacts, each named by the blake3 digest of its bytes |
//! | `executions/ab/cdef…` | executions, each named by the digest of its key |
//! | `runs/…/ab/cdef…` | the runs of each project, in a folder named by the digest of its name |
//! | `exports/ab/cdef…` | what files written for the user were made from, by the digest of their paths |
//! | `files/ab/cdef…/` | what is known of the files below a scanned folder |
//! | `lock` | held shared while the cache is open, exclusively to remove what is whole |
//!
//! An *execution* says what a stage made of a key. It records what it refers to: its outputs, the
//! descriptors and the lists of images. A *descriptor* is the digest of what made a vector of an
//! image, such as the network, its weights and the view. A *run* says which keys a project used; a
//! project is known by the folder that it writes to.
//!
//! # Rules that every function keeps
//!
//! - A file is whole or absent. It is written to a temporary file, synced and renamed.
//! - A record names an object only after the object is synced.
//! - Whatever is read is checked against its digest or checksum. What does not agree is a warning
//!   and a miss: the stage that makes it runs again.
//! - What was stored before a process was killed is there after it. A power cut can undo what the
//!   system had not written to the disk, and damages nothing else.
//!
//! # Many processes
//!
//! Any number of processes, threads and machines may share a cache. Each adds features to a segment
//! of its own, and every other file is written by one process and replaced whole. Each process holds
//! `lock` shared while it has the cache open. Whatever removes what is whole, such as `gc`, takes
//! `lock` exclusively, and refuses to run if another process has the cache open: that process may be
//! about to name what it has stored. What is damaged may be removed at any time. The system releases
//! a lock when its process ends, however it ends. A file system without locks is an error with a way
//! out, and so is a full disk.
//!
//! # Features
//!
//! A record of a segment says: this vector is what this descriptor made of this image. It has a
//! checksum, and the digest of the vector. The artifact `FeatureRows` names the vector of each row:
//! 72 bytes an image instead of 8 KB. Adding one image to a hundred thousand therefore writes two
//! small files. Matrices and `.npy` files are read in blocks, in the order of the disk.
//!
//! - A process adds to one segment, which it holds locked. Each batch of images is one write: from
//!   then on, a killed process has stored it. Other processes read it at once.
//! - A segment is sealed when it grows beyond 256 MiB, and when its process ends. It gets an index
//!   of its records. It is synced, and renamed to the digest of the index.
//! - The segment of a process that was killed is no longer locked. Whoever looks for features next
//!   seals it, with all whole records.
//! - A process reads the indexes of all segments at its first question. From then on it knows where
//!   every vector lies, and looks for new segments at each question.
//! - Many small segments are merged when a process opens the cache and no other has it open. `gc`
//!   writes what it keeps to new segments, and then removes the old segments.
//! - What removes a segment looks at all segments anew. Of two copies of a vector, one is removed only
//!   after the other was read.
//! - A segment that cannot be read is a warning, and holds nothing for the process. It stays where it
//!   is: the next process may be able to read it.
//!
//! If a vector is lost, the cache forgets it, and the table that was being read. The stage that
//! makes the table then runs again, and the vector is stored once more, elsewhere. `verify` writes
//! damaged segments again without what is damaged.
//!
//! # A cache that cannot be written
//!
//! A cache that can only be read is still read, with a warning. New results go to a temporary
//! folder and are gone when the process ends. The same holds for the knowledge of what is damaged
//! in the cache: the process remembers it, but cannot remove it. A run must therefore open the
//! cache once, however often it starts over. The temporary folder is a cache of its own, and all is
//! looked for in both.
//!
//! # What is known of files
//!
//! The digest of a file is remembered with its size, modification time and inode. While these three
//! are unchanged, the file is not read again below the same folder. There is one exception: a file
//! that changed less than two seconds before it was read is not remembered. It could change again
//! within one tick of the file system's clock, and its modification time would not show it.
//! `--rehash` reads every file.
//!
//! The folders that were scanned are remembered too. `prune-images` ([`Cache::prune_images`]) takes
//! a file for deleted only if its folder is there and still holds files. Otherwise the drive may
//! not be plugged in, and the features of its images are kept.
//!
//! Files written for the user are remembered in the same way, with the digest of what they were
//! made from. They are written again only if their source or the files themselves changed.
//!
//! # What is kept
//!
//! A run is recorded before each stage that computes, and again when it is finished. A run that
//! equals the last run counts as the last run, used again. `gc` ([`Cache::gc`]) keeps what the runs
//! within its limits used: their executions, the outputs, and what the executions refer to. A
//! reference to descriptors and lists of images keeps the vector of each descriptor and listed
//! image. A run that was interrupted while it embedded has recorded no descriptors yet. All vectors
//! of its images are kept. What an unfinished run stored stays for 30 days, so that the run can be
//! resumed.
//!
//! `gc`, `verify` and `prune-images` end within some seconds when the user interrupts. What they
//! removed until then was damaged or unused; nothing else is lost. `gc` and `prune-images` refuse to
//! run where a record that says what is in use is damaged: `verify` forgets it.

mod error;
mod files;
mod gc;
mod lock;
mod objects;
mod records;
mod run;
mod segments;
mod table;
mod upkeep;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use files::{FILES, KnownFiles};
use lock::Lock;
use luthier_artifact::{Artifact, Digest, FeatureRows, FileStat, Key, KeyPart, TEMPORARY, file_names, vector_bytes};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use objects::Objects;
use records::{EXECUTIONS, Records};
pub use run::{Reuse, Run, RunStage, RunState};
use segments::Segments;
pub use segments::{Copied, Remote};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

pub use self::error::{Error, Result};
pub use self::gc::{DryRun, GcLimits, GcReport, GoneFolders, KeptFolder, PruneReport};
pub use self::table::{StoredTable, StoredVectors};
pub use self::upkeep::{CacheStats, DescriptorStats, LastRun, OutputStats, VerifyReport};

/// How many rows of features are read or written at once: some megabytes.
const ROWS_AT_ONCE: usize = 1024;

/// One output of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Its name within the stage, for example `train`.
    pub name: String,
    /// The digest of the artifact.
    pub digest: Digest,
}

/// What a stage made of a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Execution {
    /// The key.
    pub key: Key,
    /// The outputs, in the order in which the stage names them.
    pub outputs: Vec<Output>,
    /// How long the stage ran, in seconds.
    pub seconds: f64,
    /// How many images went through the network, of a stage that embeds.
    pub n_embedded: Option<usize>,
    /// What the result is made of. [`gc`](Cache::gc) keeps it as long as the execution.
    pub references: References,
}

/// What an execution refers to beyond its outputs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct References {
    /// The kinds of vectors that the result is made of.
    pub descriptors: Vec<Descriptor>,
    /// The digests of artifacts that [list the images](luthier_artifact::images_of) concerned.
    pub images: Vec<Digest>,
}

/// A kind of vector: what made a vector of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// The digest by which the cache knows the vectors of this kind.
    pub digest: Digest,
    /// What the vectors depend on, for display.
    pub parts: Vec<KeyPart>,
}

/// The cache in one folder. Any number of processes and threads may use it at once.
///
/// A folder that can only be read works too. Whatever is stored then goes to a temporary folder and
/// is gone when the process ends. So is the knowledge of what is damaged in the folder.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    objects: Objects,
    features: Segments,
    records: Records,
    files: KnownFiles,
    lock: Lock,
    /// The folder of what is written, if that is gone when the process ends. Declared last, because
    /// it must be removed last.
    temporary: Option<TempDir>,
}

impl Cache {
    /// Opens the cache in `folder`, which is made if it is missing.
    ///
    /// A cache that can only be read gives what it has, with a warning that nothing is added.
    ///
    /// # Errors
    /// [`Error::File`] if the folder cannot be made, [`Error::Locks`] if its file system has no locks.
    pub fn open(folder: &Path) -> Result<Self> {
        let has = |name: &str| folder.join(name).exists();
        match Cache::open_writable(folder) {
            Err(error) if error.is_read_only() && (has("objects") || has("segments")) => {
                Cache::open_read_only(folder, &error)
            }
            other => other,
        }
    }

    /// Opens a cache in a folder of its own, which is gone when the process ends.
    ///
    /// # Errors
    /// Those of [`open`](Cache::open).
    pub fn temporary() -> Result<Self> {
        let folder = tempfile::tempdir().map_err(Error::io(&std::env::temp_dir()))?;
        let cache = Cache::open_writable(folder.path())?;
        Ok(Cache {
            temporary: Some(folder),
            ..cache
        })
    }

    fn open_writable(folder: &Path) -> Result<Self> {
        let root = folder.join("objects");
        fs::create_dir_all(&root).map_err(Error::io(&root))?;
        let lock = Lock::shared(&folder.join("lock"))?;
        // So that a folder that cannot be written is found now.
        tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempfile_in(folder)
            .map_err(Error::io(folder))?;
        // A cache never belongs in version control, and users rarely think of it.
        let ignore = folder.join(".gitignore");
        if !ignore.exists() {
            luthier_artifact::write_atomically(&ignore, b"*\n")?;
        }
        let features = Segments::new(folder.join("segments"));
        if features.are_many_small()?
            && let Ok(_alone) = lock.exclusive()
            && let Err(error) = features.merge_small()
        {
            tracing::debug!("{error}");
        }
        Ok(Cache {
            folder: folder.to_owned(),
            objects: Objects::new(root),
            records: Records::new(folder.to_owned()),
            files: KnownFiles::new(folder.join(FILES)),
            features,
            lock,
            temporary: None,
        })
    }

    /// Opens a cache in a temporary folder, which reads that of `folder` too.
    fn open_read_only(folder: &Path, cause: &Error) -> Result<Self> {
        tracing::warn!("cache cannot be written ({cause}): it is read, and nothing new is kept in it");
        let mut cache = Cache::temporary()?;
        folder.clone_into(&mut cache.folder);
        cache.objects.read_also(folder.join("objects"));
        cache.features.read_also(folder.join("segments"));
        cache.records.read_also(folder.to_owned());
        cache.files.read_also(folder.join(FILES));
        Ok(cache)
    }

    /// Shares features with other machines. What the cache does not know is looked up there, and what it stores is pushed
    /// there when it is closed. A remote that fails is a warning, and what it has is computed here.
    #[must_use]
    pub fn with_remote(mut self, remote: Remote) -> Self {
        match &self.temporary {
            Some(temporary) if temporary.path() != self.folder.as_path() => {
                tracing::warn!("a cache that can only be read shares nothing with {}", remote.url());
            }
            _ => self.features.connect(remote),
        }
        self
    }

    /// Pushes to the remote what this process has stored, as closing the cache does.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be ended on the disk. A remote that fails is a warning.
    pub fn share(&self) -> Result<()> {
        self.features.share()
    }

    /// Pushes to the remote the segments with features that it lacks.
    ///
    /// # Errors
    /// [`Error::Remote`] if it fails. [`Error::File`] if a segment cannot be read.
    pub fn push(&self) -> Result<Copied> {
        self.check_writable()?;
        self.features.push()
    }

    /// Copies from the remote the segments with features that are lacking here.
    ///
    /// # Errors
    /// [`Error::Remote`] if it fails. [`Error::File`] if a segment cannot be written.
    pub fn pull(&self) -> Result<Copied> {
        self.check_writable()?;
        self.features.pull()
    }

    /// The folder of the cache.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Stores an artifact, unless it is stored already, whole.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written.
    pub fn put(&self, artifact: &impl Artifact) -> Result<Digest> {
        self.objects.put(&artifact.encode())
    }

    /// The artifact with this digest, or `None` if it is missing, damaged or of another format.
    ///
    /// # Errors
    /// [`Error::File`] if it is there and cannot be read.
    pub fn get<A: Artifact>(&self, digest: &Digest) -> Result<Option<A>> {
        let Some(bytes) = self.objects.get(digest)? else {
            return Ok(None);
        };
        match A::decode(&bytes) {
            Ok(artifact) => Ok(Some(artifact)),
            Err(error) => {
                tracing::warn!("{}: {error}; taken as missing", self.objects.path(digest).display());
                self.objects.forget(digest)?;
                Ok(None)
            }
        }
    }

    /// What this key gave before, if all its outputs are still there.
    ///
    /// # Errors
    /// [`Error::File`] if a record cannot be read.
    pub fn execution(&self, key: &Digest) -> Result<Option<Execution>> {
        let is_there = |output: &Output| self.objects.contains(&output.digest);
        let execution = self.records.execution(key)?;
        Ok(execution.filter(|execution| execution.outputs.iter().all(is_there)))
    }

    /// The parts of a key that was recorded before, even if its outputs are gone.
    ///
    /// # Errors
    /// [`Error::File`] if a record cannot be read.
    pub fn recorded_key(&self, key: &Digest) -> Result<Option<Key>> {
        Ok(self.records.execution(key)?.map(|execution| execution.key))
    }

    /// The recorded key of the same stage that differs from `key` in the fewest parts. This is
    /// `key` itself if it is recorded.
    ///
    /// # Errors
    /// [`Error::File`] if a record cannot be read.
    pub fn nearest_key(&self, key: &Key) -> Result<Option<Key>> {
        let keys = self
            .executions_of(&key.stage)?
            .into_iter()
            .map(|execution| execution.key);
        Ok(keys.min_by_key(|other| (key.differences(other).len(), other.digest())))
    }

    /// The recorded executions of a stage, even if their outputs are gone, in the order in which runs last used them.
    ///
    /// # Errors
    /// [`Error::File`] if a record cannot be read.
    pub fn history(&self, stage: &str) -> Result<Vec<Execution>> {
        let mut past = self.executions_of(stage)?;
        let mut runs = self.records.runs()?;
        runs.sort_by_key(|run| (run.time, run.id));
        let stages =
            (runs.iter().enumerate()).flat_map(|(age, run)| run.stages.iter().map(move |stage| (stage.key, age)));
        let last_use: HashMap<Digest, usize> = stages.collect();
        past.sort_by_key(|execution| last_use.get(&execution.key.digest()).copied());
        Ok(past)
    }

    fn executions_of(&self, stage: &str) -> Result<Vec<Execution>> {
        let mut executions: Vec<Execution> = self.records.all(EXECUTIONS)?;
        executions.retain(|execution| execution.key.stage == stage);
        Ok(executions)
    }

    /// Records what a stage made of a key. The outputs must have been [`put`](Cache::put) before.
    ///
    /// # Errors
    /// [`Error::File`] if a record cannot be read or written.
    pub fn record(&self, execution: &Execution) -> Result<()> {
        self.records.record(execution)
    }

    /// Records that a run has begun to compute, with the keys of the stages that it has reached. If
    /// the run is interrupted, `gc` keeps what it has stored.
    ///
    /// # Errors
    /// [`Error::File`] if a record cannot be read or written.
    pub fn begin_run(&self, project: &str, stages: &[RunStage]) -> Result<()> {
        self.records.change_runs(project, |runs| {
            runs.retain(|run| run.state == RunState::Finished || !run.is_part_of(stages));
            runs.push(Run::begun(project.to_owned(), now(), stages.to_vec()));
        })
    }

    /// Records a finished run of a project, with the keys of its stages and what the cache spared
    /// it. A run with the same keys as the last run counts as the last run, used again.
    ///
    /// # Errors
    /// [`Error::File`] if a record cannot be read or written.
    pub fn record_run(&self, project: &str, stages: &[RunStage], reuse: Reuse) -> Result<()> {
        self.records.change_runs(project, |runs| {
            // The run has finished what these runs began.
            runs.retain(|run| run.state == RunState::Finished || !run.is_part_of(stages));
            let run = Run::finished(project.to_owned(), now(), stages.to_vec(), reuse);
            match runs.iter_mut().rfind(|run| run.state == RunState::Finished) {
                Some(last) if last.stages.len() == stages.len() && last.is_part_of(stages) => {
                    *last = Run { id: last.id, ..run };
                }
                _ => runs.push(run),
            }
        })
    }

    /// The finished runs of a project that the cache still knows, the oldest first.
    ///
    /// # Errors
    /// [`Error::File`] if a record cannot be read.
    pub fn finished_runs(&self, project: &str) -> Result<Vec<Run>> {
        let mut runs = self.records.runs_of(project)?;
        runs.retain(|run| run.state == RunState::Finished);
        Ok(runs)
    }

    /// The keys of a project's last finished run; empty if there was none.
    ///
    /// # Errors
    /// [`Error::File`] if a record cannot be read.
    pub fn last_run(&self, project: &str) -> Result<Vec<RunStage>> {
        let last = self.finished_runs(project)?.pop();
        Ok(last.map(|run| run.stages).unwrap_or_default())
    }

    /// The digests that the files' bytes had when the files had these stats, in the order of
    /// `files`.
    ///
    /// `files` are paths below `folder`, in order. `folder` is absolute.
    ///
    /// # Errors
    /// [`Error::File`] if a record cannot be read.
    pub fn file_digests<'a>(
        &self,
        folder: &Path,
        files: impl ExactSizeIterator<Item = (&'a str, FileStat)> + Clone,
    ) -> Result<Vec<Option<Digest>>> {
        self.files.digests(&file_names::name_of(folder), files)
    }

    /// Remembers the digests of files below `folder`, the folder that is scanned. A file need not
    /// be read again while its stat stays the same.
    ///
    /// `since` is when the stats were taken. A file that changed in the two seconds before is left
    /// out: it could have changed again under the same stat.
    ///
    /// # Errors
    /// [`Error::File`] if a record cannot be read or written.
    pub fn remember_files<'a>(
        &self,
        folder: &Path,
        files: impl Iterator<Item = (&'a str, FileStat, Digest)>,
        since: SystemTime,
    ) -> Result<()> {
        let settled = files.filter(|(_, stat, _)| stat.is_settled(since));
        self.files.remember(&file_names::name_of(folder), settled)
    }

    /// The digests of the vectors of one kind of these images, as far as the cache knows them, in
    /// the order of `images`. `descriptor` is the digest of a [`Descriptor`].
    ///
    /// # Errors
    /// [`Error::File`] if a segment cannot be read.
    pub fn feature_digests(&self, descriptor: &Digest, images: &[Digest]) -> Result<Vec<Option<Digest>>> {
        self.features.digests(descriptor, images)
    }

    /// Stores the vectors of one kind of some images. From then on a killed process has stored them.
    ///
    /// # Errors
    /// [`Error::File`] if they cannot be written.
    pub fn store_features(&self, descriptor: &Digest, rows: &[(Digest, Vec<f32>)]) -> Result<()> {
        self.features.store(descriptor, rows)
    }

    /// Features by their digests, `f32 [n, width]`.
    ///
    /// # Errors
    /// [`Error::Lost`] if a vector is gone or damaged. The cache then forgets it, so that it is
    /// computed again. [`Error::File`] if no segment can be read.
    pub fn vectors(&self, vectors: &[Digest], width: usize) -> Result<Array2<f32>> {
        let mut features = Array2::zeros((vectors.len(), width));
        self.read_vectors(vectors, features.view_mut())?;
        Ok(features)
    }

    fn read_vectors(&self, vectors: &[Digest], mut into: ArrayViewMut2<'_, f32>) -> Result<()> {
        self.each_vector(vectors, into.ncols(), &mut |place, bytes| {
            for (value, bytes) in into.row_mut(place).iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        })
    }

    /// Gives `take` each of these vectors once, in the order in which they lie on the disk: its place, and its `width`
    /// numbers as little-endian bytes.
    fn each_vector(&self, vectors: &[Digest], width: usize, take: &mut dyn FnMut(usize, &[u8])) -> Result<()> {
        let lost = self.features.read(vectors, 4 * width, take)?;
        let Some(&first) = lost.first() else { return Ok(()) };
        tracing::warn!(
            "{} of {} cached feature vectors lost or damaged; to be computed again",
            lost.len(),
            vectors.len()
        );
        Err(Error::Lost {
            what: "feature vector",
            digest: vectors[first],
        })
    }

    /// Reads vectors for no other reason than to forget all that are lost or damaged: a stage that runs again makes all of
    /// them, and not one block at a time.
    pub(crate) fn forget_lost(&self, vectors: &[Digest], width: usize) -> Result<()> {
        self.features.read(vectors, 4 * width, |_, _| ()).map(drop)
    }

    /// Stores vectors, `f32 [n, d]`, by their digests. Vectors that are stored already, and whole, are not written again.
    ///
    /// # Errors
    /// [`Error::File`] if they cannot be written.
    pub fn put_vectors(&self, vectors: ArrayView2<'_, f32>) -> Result<()> {
        for rows in vectors.axis_chunks_iter(Axis(0), ROWS_AT_ONCE) {
            let vectors: Vec<Vec<u8>> = rows.outer_iter().map(vector_bytes).collect();
            let digests: Vec<Digest> = vectors.iter().map(|vector| Digest::of(vector)).collect();
            let mut unstored = self.features.read(&digests, 4 * rows.ncols(), |_, _| ())?;
            unstored.sort_unstable_by_key(|&place| digests[place]);
            unstored.dedup_by_key(|place| digests[*place]);
            let unstored: Vec<&Vec<u8>> = unstored.into_iter().map(|place| &vectors[place]).collect();
            self.features.store_loose(&unstored)?;
        }
        Ok(())
    }

    /// The table with this digest, its features still unread, or `None` if it is not in the cache.
    ///
    /// # Errors
    /// [`Error::File`] if it is there and cannot be read.
    pub fn table(&self, digest: &Digest) -> Result<Option<StoredTable<'_>>> {
        let rows = self.get::<FeatureRows>(digest)?;
        Ok(rows.map(|rows| StoredTable {
            cache: self,
            digest: *digest,
            rows,
        }))
    }

    /// Whether the file at `path` is still as it was written from `source`.
    ///
    /// # Errors
    /// [`Error::File`] if a record cannot be read.
    pub fn is_exported(&self, path: &Path, source: &Digest) -> Result<bool> {
        let Ok(stat) = FileStat::of(path) else { return Ok(false) };
        self.records.is_exported(path, &stat, source)
    }

    /// Remembers that the file with this stat was written to `path` from `source`. Another process
    /// may have written its own file to `path` since.
    ///
    /// # Errors
    /// [`Error::File`] if a record cannot be read or written.
    pub fn remember_export(&self, path: &Path, stat: &FileStat, source: &Digest) -> Result<()> {
        self.records.remember_export(path, stat, source)
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
