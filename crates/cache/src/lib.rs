//! The cache: content-addressed objects beside one SQLite index.
//!
//! Rules that every function here keeps:
//! - an object is whole or absent: it is written beside its place, synced and renamed;
//! - a row names an object only after the object is synced;
//! - whatever is read is checked against its digest or checksum, and what does not agree is a miss and a warning.

mod error;
mod gc;
mod index;
mod lock;
mod objects;
mod run;
mod salvage;
mod table;
mod upkeep;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use index::Index;
pub(crate) use index::is_damaged;
use lock::Lock;
use luthier_artifact::{
    Artifact, Digest, FeatureRows, FeatureTable, FileStat, Key, KeyPart, TEMPORARY, remove, vector_bytes,
};
use ndarray::{Array2, ArrayViewMut2, Axis};
use objects::Objects;
use run::Run;
pub use run::{Reuse, RunStage, RunState};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

pub use self::error::{Error, Result};
pub use self::gc::{DryRun, GcLimits, GcReport, GoneFolders, KeptFolder, PruneReport};
pub use self::table::StoredTable;
pub use self::upkeep::{CacheStats, DescriptorStats, LastRun, OutputStats, VerifyReport};

/// How many rows of features are read or written while the index is held: some megabytes.
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
#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    /// The key.
    pub key: Key,
    /// The outputs, in the order in which the stage names them.
    pub outputs: Vec<Output>,
    /// How long the stage ran, in seconds.
    pub seconds: f64,
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

/// What an earlier execution of a stage cost.
#[derive(Clone, Debug, PartialEq)]
pub struct PastExecution {
    /// The key.
    pub key: Key,
    /// How long the stage ran, in seconds.
    pub seconds: f64,
    /// How many images went through the network, where that was [recorded](Cache::record_embedded).
    pub n_embedded: Option<usize>,
}

/// The cache in one folder. Any number of processes and threads may use it at once.
///
/// A folder that can only be read is a cache all the same: what is stored then goes to a temporary folder, and ends with
/// the process, as does the knowledge of what turned out to be damaged in the folder.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    objects: Objects,
    index: Index,
    lock: Lock,
    /// What can only be read.
    below: Option<Below>,
    /// Where `objects` and `index` are, if they cannot be in the folder. Removed last.
    temporary: Option<TempDir>,
}

/// A cache that can only be read, below the one that is written.
#[derive(Debug)]
struct Below {
    objects: Objects,
    index: Index,
    /// Artifacts and vectors that are lost or damaged here, and cannot be removed.
    lost: Mutex<HashSet<Digest>>,
}

impl Below {
    /// The bytes of an artifact, unless they are lost.
    fn object(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        if self.lost().contains(digest) {
            return Ok(None);
        }
        self.objects.get(digest)
    }

    fn lost(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    /// Opens the cache in `folder`, which is made if it is missing.
    ///
    /// A damaged index is moved aside with a warning, and a new one begins with what is whole in it. A cache that can only
    /// be read gives what it has, with a warning that nothing is added.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be made, [`Error::Locks`] and [`Error::SharedMemory`] if its file system is not
    /// fit for a cache, [`Error::Layout`] if another version of Luthier wrote it.
    pub fn open(folder: &Path) -> Result<Self> {
        match Cache::open_writable(folder) {
            Err(error) if error.is_read_only() && folder.join("index.sqlite").is_file() => {
                Cache::open_read_only(folder, &error)
            }
            other => other,
        }
    }

    fn open_writable(folder: &Path) -> Result<Self> {
        let root = folder.join("objects");
        fs::create_dir_all(&root).map_err(Error::io(&root))?;
        let lock = Lock::shared(&folder.join("lock"))?;
        // SQLite would open the files that are there, and fail only when it needs another.
        tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempfile_in(folder)
            .map_err(Error::io(folder))?;
        // A cache never belongs into version control, and users rarely think of it.
        let ignore = folder.join(".gitignore");
        if !ignore.exists() {
            luthier_artifact::write_atomically(&ignore, b"*\n")?;
        }
        let index = Index::open(&folder.join("index.sqlite"))?;
        Ok(Cache {
            folder: folder.to_owned(),
            objects: Objects::new(root),
            index,
            lock,
            below: None,
            temporary: None,
        })
    }

    fn open_read_only(folder: &Path, cause: &Error) -> Result<Self> {
        tracing::warn!("cache cannot be written ({cause}): it is read, and nothing new is kept in it");
        let temporary = tempfile::tempdir().map_err(Error::io(&std::env::temp_dir()))?;
        let below = match Index::open_read_only(&folder.join("index.sqlite")) {
            Ok(index) => Some(Below {
                objects: Objects::new(folder.join("objects")),
                index,
                lost: Mutex::default(),
            }),
            Err(error) if error.is_damaged() => {
                tracing::warn!("{error}; taken as empty");
                None
            }
            Err(error) => return Err(error),
        };
        let above = Cache::open_writable(temporary.path())?;
        Ok(Cache {
            folder: folder.to_owned(),
            below,
            temporary: Some(temporary),
            ..above
        })
    }

    /// The folder of the cache.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Stores an artifact, unless it is stored already, whole.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn put(&self, artifact: &impl Artifact) -> Result<Digest> {
        let bytes = artifact.encode();
        if let Some(below) = &self.below {
            let digest = Digest::of(&bytes);
            if below.object(&digest)?.is_some() {
                return Ok(digest);
            }
        }
        self.objects.put(&bytes)
    }

    /// The artifact with this digest, or `None` if it is not in the cache, damaged, or of another format.
    ///
    /// # Errors
    /// [`Error::Io`] if it is there and cannot be read.
    pub fn get<A: Artifact>(&self, digest: &Digest) -> Result<Option<A>> {
        let bytes = match (self.objects.get(digest)?, &self.below) {
            (None, Some(below)) => below.object(digest)?,
            (found, _) => found,
        };
        let Some(bytes) = bytes else { return Ok(None) };
        match A::decode(&bytes) {
            Ok(artifact) => Ok(Some(artifact)),
            Err(error) => {
                tracing::warn!("{}: {error}; taken as missing", self.objects.path(digest).display());
                self.forget_object(digest)?;
                Ok(None)
            }
        }
    }

    fn forget_object(&self, digest: &Digest) -> Result<()> {
        if let Some(below) = &self.below {
            below.lost().insert(*digest);
        }
        Ok(remove(&self.objects.path(digest))?)
    }

    /// Whether an artifact is there.
    fn contains(&self, digest: &Digest) -> Result<bool> {
        let Some(below) = &self.below else {
            return Ok(self.objects.contains(digest));
        };
        // What is damaged and cannot be removed must be known to be damaged each time.
        Ok(self.objects.contains(digest) || below.object(digest)?.is_some())
    }

    /// What the cache below answers; nothing if there is none, or if it is damaged.
    fn ask_below<T: Default>(&self, ask: impl FnOnce(&Index) -> Result<T>) -> Result<T> {
        match self.below.as_ref().map(|below| ask(&below.index)) {
            None => Ok(T::default()),
            Some(Err(error)) if error.is_damaged() => {
                tracing::warn!("{error}; taken as missing");
                Ok(T::default())
            }
            Some(answer) => answer,
        }
    }

    /// What the index answers to several questions, or else the cache below, if it has not lost what it names.
    fn ask_both(&self, ask: impl Fn(&Index) -> Result<Vec<Option<Digest>>>) -> Result<Vec<Option<Digest>>> {
        let mut answers = ask(&self.index)?;
        let Some(below) = &self.below else { return Ok(answers) };
        let of_below = self.ask_below(&ask)?;
        let lost = below.lost();
        for (answer, of_below) in answers.iter_mut().zip(of_below) {
            *answer = answer.or(of_below.filter(|digest| !lost.contains(digest)));
        }
        Ok(answers)
    }

    /// What this key gave before, if all its outputs are still there.
    ///
    /// # Errors
    /// [`Error::Index`] if the index fails.
    pub fn execution(&self, key: &Digest) -> Result<Option<Execution>> {
        let Some(execution) = self.recorded(key)? else {
            return Ok(None);
        };
        for output in &execution.outputs {
            if !self.contains(&output.digest)? {
                return Ok(None);
            }
        }
        Ok(Some(execution))
    }

    fn recorded(&self, key: &Digest) -> Result<Option<Execution>> {
        match self.index.execution(key)? {
            None => self.ask_below(|index| index.execution(key)),
            found => Ok(found),
        }
    }

    /// The parts of a key that was recorded before, even if its outputs are gone.
    ///
    /// # Errors
    /// [`Error::Index`] if the index fails.
    pub fn recorded_key(&self, key: &Digest) -> Result<Option<Key>> {
        Ok(self.recorded(key)?.map(|execution| execution.key))
    }

    /// Among all recorded keys of the same stage, the one that differs from `key` in the fewest parts: `key` itself if it
    /// is recorded.
    ///
    /// # Errors
    /// [`Error::Index`] if the index fails.
    pub fn nearest_key(&self, key: &Key) -> Result<Option<Key>> {
        let mut recorded = self.index.executions_of(&key.stage)?;
        recorded.extend(self.ask_below(|index| index.executions_of(&key.stage))?);
        let keys = recorded.into_iter().map(|execution| execution.key);
        Ok(keys.min_by_key(|other| (key.differences(other).len(), other.digest())))
    }

    /// What the recorded executions of a stage cost, in the order in which runs last used them.
    ///
    /// # Errors
    /// [`Error::Index`] if the index fails.
    pub fn history(&self, stage: &str) -> Result<Vec<PastExecution>> {
        let mut past = self.ask_below(|index| index.costs(stage))?;
        past.extend(self.index.costs(stage)?);
        let mut runs = self.ask_below(Index::runs)?;
        runs.extend(self.index.runs()?);
        let stages =
            (runs.iter().enumerate()).flat_map(|(age, run)| run.stages.iter().map(move |stage| (stage.key, age)));
        let last_use: HashMap<Digest, usize> = stages.collect();
        past.sort_by_key(|execution| last_use.get(&execution.key.digest()).copied());
        Ok(past)
    }

    /// Records what a stage made of a key. The outputs must have been [`put`](Cache::put) before.
    ///
    /// # Errors
    /// [`Error::Index`] if the index fails.
    pub fn record(&self, execution: &Execution) -> Result<()> {
        self.index.record(execution)
    }

    /// Records how many images the execution with this key took through the network.
    ///
    /// # Errors
    /// [`Error::Index`] if the index fails.
    pub fn record_embedded(&self, key: &Digest, n_images: usize) -> Result<()> {
        self.index.record_embedded(key, n_images)
    }

    /// Puts down that a run has begun to compute, with the keys of the stages that it has reached: what it stores must not
    /// be taken for unused if it is interrupted.
    ///
    /// # Errors
    /// [`Error::Index`] if the index fails.
    pub fn begin_run(&self, project: &str, stages: &[RunStage]) -> Result<()> {
        self.index.change_runs(project, |runs| {
            runs.retain(|run| run.state == RunState::Finished || !run.is_part_of(stages));
            runs.push(Run::begun(project.to_owned(), now(), stages.to_vec()));
        })
    }

    /// Records a finished run of a project with the keys of its stages, and what the cache spared it. A run with the keys of
    /// the last one is the last one, used again.
    ///
    /// # Errors
    /// [`Error::Index`] if the index fails.
    pub fn record_run(&self, project: &str, stages: &[RunStage], reuse: Reuse) -> Result<()> {
        self.index.change_runs(project, |runs| {
            // It has done what was begun.
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

    /// The keys of a project's last finished run; empty if there was none.
    ///
    /// # Errors
    /// [`Error::Index`] if the index fails.
    pub fn last_run(&self, project: &str) -> Result<Vec<RunStage>> {
        let last = |runs: Vec<Run>| {
            runs.into_iter()
                .rfind(|run| run.project == project && run.state == RunState::Finished)
        };
        let run = match last(self.index.runs()?) {
            None => last(self.ask_below(Index::runs)?),
            found => found,
        };
        Ok(run.map(|run| run.stages).unwrap_or_default())
    }

    /// The digests of files' bytes as they were read when the files had these stats; the same order.
    ///
    /// `files` are paths below `folder`, which is absolute; they must be in order.
    ///
    /// # Errors
    /// [`Error::Index`] if the index fails.
    pub fn file_digests<'a>(
        &self,
        folder: &Path,
        files: impl ExactSizeIterator<Item = (&'a str, FileStat)> + Clone,
    ) -> Result<Vec<Option<Digest>>> {
        let Some(folder) = folder.to_str() else {
            return Ok(vec![None; files.len()]);
        };
        self.ask_both(|index| index.file_digests(folder, files.clone()))
    }

    /// Remembers what files below `folder` held, so that they need not be read again while their stats stay.
    ///
    /// A file changed within the two seconds before `since`, when its stat was taken, is left out: it could have changed again
    /// under the same stat.
    ///
    /// # Errors
    /// [`Error::Index`] if the index fails.
    pub fn remember_files<'a>(
        &self,
        folder: &Path,
        files: impl Iterator<Item = (&'a str, FileStat, Digest)> + Clone,
        since: SystemTime,
    ) -> Result<()> {
        let settled = files.filter(|(_, stat, _)| stat.is_settled(since));
        match folder.to_str() {
            Some(folder) if settled.clone().next().is_some() => self.index.remember_files(folder, settled),
            _ => Ok(()),
        }
    }

    /// The digests of the vectors of one kind of these images, as far as the cache knows them, in
    /// the order of `images`. `descriptor` is the digest of a [`Descriptor`].
    ///
    /// # Errors
    /// [`Error::Index`] if the index fails.
    pub fn feature_digests(&self, descriptor: &Digest, images: &[Digest]) -> Result<Vec<Option<Digest>>> {
        self.ask_both(|index| index.feature_digests(descriptor, images))
    }

    /// Stores the vectors of one kind of some images, in one transaction.
    ///
    /// # Errors
    /// [`Error::Index`] if the index fails; then none of them is stored.
    pub fn store_features(&self, descriptor: &Digest, rows: &[(Digest, Vec<f32>)]) -> Result<()> {
        self.index.store_features(descriptor, rows)
    }

    /// Features by their digests, `f32 [n, width]`.
    ///
    /// # Errors
    /// [`Error::Lost`] if one of them is gone or damaged; it is then forgotten, so that it will be computed again.
    /// [`Error::Index`] if the index fails.
    pub fn vectors(&self, vectors: &[Digest], width: usize) -> Result<Array2<f32>> {
        let mut features = Array2::zeros((vectors.len(), width));
        self.read_vectors(vectors, features.view_mut())?;
        Ok(features)
    }

    fn read_vectors(&self, vectors: &[Digest], mut into: ArrayViewMut2<'_, f32>) -> Result<()> {
        let mut lost = self.index.read_vectors(vectors, into.view_mut())?;
        if self.below.is_some() {
            let wanted: Vec<Digest> = lost.iter().map(|&place| vectors[place]).collect();
            let mut found = Array2::zeros((wanted.len(), into.ncols()));
            let below = self.ask_below(|index| index.read_vectors(&wanted, found.view_mut()).map(Some))?;
            let still_lost = below.unwrap_or_else(|| (0..wanted.len()).collect());
            for (row, &place) in lost.iter().enumerate() {
                into.row_mut(place).assign(&found.row(row));
            }
            lost = still_lost.into_iter().map(|row| lost[row]).collect();
        }
        let Some(&first) = lost.first() else { return Ok(()) };
        tracing::warn!(
            "{} of {} cached feature vectors lost or damaged; to be computed again",
            lost.len(),
            vectors.len()
        );
        let lost: Vec<Digest> = lost.into_iter().map(|place| vectors[place]).collect();
        if let Some(below) = &self.below {
            below.lost().extend(&lost);
        }
        self.index.forget_vectors(&lost)?;
        Err(Error::Lost {
            what: "feature vector",
            digest: vectors[first],
        })
    }

    /// Stores a table: its rows as an artifact, its features beside those of single images. What is
    /// stored already, whole, is not written again.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Index`] if it cannot be written.
    pub fn put_table(&self, table: &FeatureTable) -> Result<Digest> {
        for rows in table.features().axis_chunks_iter(Axis(0), ROWS_AT_ONCE) {
            let vectors: Vec<Vec<u8>> = rows.outer_iter().map(vector_bytes).collect();
            let unstored = self.index.unstored(&vectors)?;
            let mut unstored: Vec<&Vec<u8>> = unstored.into_iter().map(|place| &vectors[place]).collect();
            if self.below.is_some() && !unstored.is_empty() {
                let asked: Vec<Vec<u8>> = unstored.iter().copied().cloned().collect();
                let lacking = self.ask_below(|index| index.unstored(&asked).map(Some))?;
                if let Some(lacking) = lacking {
                    unstored = lacking.into_iter().map(|place| unstored[place]).collect();
                }
            }
            self.index.store_vectors(&unstored)?;
        }
        self.put(&table.rows())
    }

    /// The table with this digest, its features still unread, or `None` if it is not in the cache.
    ///
    /// # Errors
    /// [`Error::Io`] if it is there and cannot be read.
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
    /// [`Error::Index`] if the index fails.
    pub fn is_exported(&self, path: &Path, source: &Digest) -> Result<bool> {
        let Ok(stat) = FileStat::of(path) else { return Ok(false) };
        let exported = match self.index.export(path)? {
            None => self.ask_below(|index| index.export(path))?,
            found => found,
        };
        Ok(exported == Some((stat, *source)))
    }

    /// Remembers that the file with this stat was written to `path` from `source`. Another process may have put its own
    /// file there since.
    ///
    /// # Errors
    /// [`Error::Index`] if the index fails.
    pub fn remember_export(&self, path: &Path, stat: &FileStat, source: &Digest) -> Result<()> {
        self.index.remember_export(path, stat, source)
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use luthier_artifact::ExtractorInfo;
    use ndarray::array;

    use super::*;

    #[test]
    fn a_cache_that_cannot_be_written_stores_only_what_the_folder_lacks() {
        let mut table = FeatureTable {
            classes: vec!["harp".into()],
            extractor: ExtractorInfo {
                views: vec!["squash".into()],
                combine: "mean".into(),
                decode: "scaled".into(),
                weights: "untrained".into(),
                weights_sha256: "00".into(),
                precision: "fp32".into(),
            },
            labels: vec![0, 0],
            images: [b"a", b"b"].map(|image| Digest::of(image)).to_vec(),
            features: array![[1.0, 2.0], [3.0, 4.0]],
        };
        let folder = tempfile::tempdir().unwrap();
        let digest = Cache::open(folder.path()).unwrap().put_table(&table).unwrap();
        // As root, every folder can be written.
        let cause = Error::ReadOnly {
            path: folder.path().to_owned(),
        };
        let cache = Cache::open_read_only(folder.path(), &cause).unwrap();
        let stored = || {
            (
                cache.index.count("vector").unwrap(),
                cache.objects.list().unwrap().len(),
            )
        };
        assert_eq!(cache.put_table(&table).unwrap(), digest);
        assert_eq!(stored(), (0, 0));
        assert_eq!(cache.table(&digest).unwrap().unwrap().load().unwrap(), table);

        table.features[[1, 0]] = 5.0;
        let digest = cache.put_table(&table).unwrap();
        assert_eq!(stored(), (1, 1), "one row and the list of rows");
        assert_eq!(cache.table(&digest).unwrap().unwrap().load().unwrap(), table);
    }
}
