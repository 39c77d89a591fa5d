//! What the cache holds, and whether it is sound: `stats`, `verify`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use luthier_artifact::{Digest, KeyPart, Observer, TEMPORARY, entries, remove, temporary};
use serde::Serialize;
use tempfile::TempDir;

use crate::files::FILES;
use crate::records::{EXECUTIONS, EXPORTS, RUNS};
use crate::segments::Segments;
use crate::{Cache, Descriptor, Error, Execution, Result, Reuse, RunState};

/// What the cache holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CacheStats {
    /// Stored artifacts.
    pub objects: usize,
    /// Their size in bytes.
    pub object_bytes: u64,
    /// The artifacts by the stage that made them; one that several made counts for each.
    pub outputs: Vec<OutputStats>,
    /// Images with stored features, counted once per descriptor.
    pub features: u64,
    /// The size of these features in bytes.
    pub feature_bytes: u64,
    /// The features by descriptor.
    pub descriptors: Vec<DescriptorStats>,
    /// The files that hold features.
    pub segments: usize,
    /// Their size in bytes.
    pub segment_bytes: u64,
    /// Recorded executions of stages.
    pub executions: u64,
    /// Files whose digest is known by their stat.
    pub files: u64,
    /// Recorded runs.
    pub runs: u64,
    /// The size in bytes of what is known of executions, runs and files, also those written for the user.
    pub record_bytes: u64,
    /// The last finished run.
    pub last_run: Option<LastRun>,
}

/// The artifacts of one output of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OutputStats {
    /// The stage; `None` for artifacts that no recorded execution names.
    pub stage: Option<String>,
    /// The output's name.
    pub output: Option<String>,
    /// How many there are.
    pub objects: usize,
    /// Their size in bytes.
    pub bytes: u64,
}

/// The features of one descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DescriptorStats {
    /// The descriptor's digest.
    pub descriptor: Digest,
    /// What the features depend on. Empty if no recorded execution refers to the descriptor.
    pub parts: Vec<KeyPart>,
    /// How many images.
    pub images: u64,
    /// The size of their features in bytes.
    pub bytes: u64,
}

/// The run that was the last to finish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastRun {
    /// The folder that it wrote to.
    pub project: String,
    /// When it finished, in seconds since 1970.
    pub time: u64,
    /// What the cache spared it.
    pub reuse: Reuse,
}

/// What [`Cache::verify`] found and forgot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Artifacts that were read.
    pub objects: usize,
    /// Rows of features that were read.
    pub features: u64,
    /// Artifacts that did not match their digest, now removed.
    pub damaged_objects: usize,
    /// Rows of features that failed their checksum, now removed.
    pub damaged_features: u64,
    /// Executions whose record or outputs were damaged or gone, now forgotten.
    pub forgotten_executions: u64,
    /// Other records that failed their digest, now removed: runs, exports, files known by their stat.
    pub damaged_records: u64,
    /// Files that dead processes left behind, now removed. `None` if other processes use the cache:
    /// the files may then be theirs.
    pub left_over_files: Option<usize>,
}

impl Cache {
    /// Counts what is stored. If the cache can only be read, this is what is in its folder, and what this process has
    /// added to it for itself.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read.
    pub fn stats(&self) -> Result<CacheStats> {
        let stored = self.objects.list()?;
        let executions: Vec<Execution> = self.records.all(EXECUTIONS)?;
        let descriptors = descriptors(&self.features, &executions)?;
        let (segments, segment_bytes) = self.features.size()?;
        let runs = self.records.runs()?;
        let folders: BTreeSet<&Path> = [self.folder()]
            .into_iter()
            .chain(self.temporary.as_ref().map(TempDir::path))
            .collect();
        let mut record_bytes = 0;
        for folder in folders {
            for kind in [EXECUTIONS, RUNS, EXPORTS, FILES] {
                let sizes = files_below(folder.join(kind))?.into_iter().map(fs::metadata);
                record_bytes += sizes.filter_map(|metadata| Some(metadata.ok()?.len())).sum::<u64>();
            }
        }
        let last_run = (runs.iter().filter(|run| run.state == RunState::Finished)).max_by_key(|run| (run.time, run.id));
        Ok(CacheStats {
            objects: stored.len(),
            object_bytes: stored.values().sum(),
            outputs: outputs(&stored, &executions),
            features: descriptors.iter().map(|descriptor| descriptor.images).sum(),
            feature_bytes: descriptors.iter().map(|descriptor| descriptor.bytes).sum(),
            descriptors,
            segments,
            segment_bytes,
            executions: executions.len() as u64,
            files: self.files.count()?,
            runs: runs.len() as u64,
            record_bytes,
            last_run: last_run.map(|run| LastRun {
                project: run.project.clone(),
                time: run.time,
                reuse: run.reuse,
            }),
        })
    }

    /// Reads everything against its digest or checksum, and forgets what does not agree.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] if nothing can be forgotten, [`Error::File`] if something
    /// cannot be read at all. [`Error::Interrupted`] soon after the observer says so;
    /// what was found damaged until then may be forgotten already, and nothing else is.
    pub fn verify(&self, observer: &dyn Observer) -> Result<VerifyReport> {
        self.check_writable()?;
        let mut report = VerifyReport::default();
        for object in self.objects.list()?.keys() {
            go_on(observer)?;
            report.objects += 1;
            report.damaged_objects += usize::from(self.objects.get(object)?.is_none());
        }
        let verified = self.features.verify(observer)?;
        (report.features, report.damaged_features) = (verified.n_features, verified.n_damaged);
        for key in self.records.names(EXECUTIONS)? {
            go_on(observer)?;
            if self.execution(&key)?.is_none() {
                self.records.forget(EXECUTIONS, &key)?;
                report.forgotten_executions += 1;
            }
        }
        report.damaged_records = self.records.verify(observer)? + self.files.verify(observer)?;
        report.left_over_files = match self.lock.exclusive() {
            Ok(_alone) => {
                let left_over = self.left_over()?;
                left_over.iter().try_for_each(|path| remove(path))?;
                Some(left_over.len())
            }
            Err(Error::InUse { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(report)
    }

    pub(super) fn check_writable(&self) -> Result<()> {
        match &self.temporary {
            Some(_) => Err(Error::ReadOnly {
                path: self.folder.clone(),
            }),
            None => Ok(()),
        }
    }

    /// The unfinished files of dead processes. Those of living processes look the same, so the
    /// caller must hold the lock exclusively.
    pub(super) fn left_over(&self) -> Result<Vec<PathBuf>> {
        let is_temporary = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default();
            name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes())
        };
        let mut files = temporary(&self.folder)?;
        for folder in ["objects", "segments", EXECUTIONS, RUNS, EXPORTS, FILES] {
            files.extend(files_below(self.folder.join(folder))?.into_iter().filter(is_temporary));
        }
        Ok(files)
    }
}

/// The files below a folder, in no order. Links are not followed.
fn files_below(folder: PathBuf) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder]);
    while let Some(folder) = folders.pop() {
        for path in entries(&folder)? {
            match path.is_dir() && !path.is_symlink() {
                true => folders.push(path),
                false => files.push(path),
            }
        }
    }
    Ok(files)
}

/// Ends work that the user interrupted.
pub(super) fn go_on(observer: &dyn Observer) -> Result<()> {
    match observer.is_interrupted() {
        true => Err(Error::Interrupted),
        false => Ok(()),
    }
}

fn outputs(stored: &BTreeMap<Digest, u64>, executions: &[Execution]) -> Vec<OutputStats> {
    let mut named: BTreeMap<(Option<&str>, Option<&str>), HashSet<Digest>> = BTreeMap::new();
    let mut others: HashSet<Digest> = stored.keys().copied().collect();
    for execution in executions {
        for output in execution
            .outputs
            .iter()
            .filter(|output| stored.contains_key(&output.digest))
        {
            let name = (Some(execution.key.stage.as_str()), Some(output.name.as_str()));
            named.entry(name).or_default().insert(output.digest);
            others.remove(&output.digest);
        }
    }
    if !others.is_empty() {
        named.insert((None, None), others);
    }
    let stats = named.into_iter().map(|((stage, output), digests)| OutputStats {
        stage: stage.map(str::to_owned),
        output: output.map(str::to_owned),
        objects: digests.len(),
        bytes: digests.iter().map(|digest| stored[digest]).sum(),
    });
    stats.collect()
}

/// What is stored of each descriptor, most images first.
fn descriptors(features: &Segments, executions: &[Execution]) -> Result<Vec<DescriptorStats>> {
    let recorded = executions
        .iter()
        .flat_map(|execution| &execution.references.descriptors);
    let known: HashMap<Digest, &[KeyPart]> = recorded
        .map(|Descriptor { digest, parts }| (*digest, parts.as_slice()))
        .collect();
    let mut counted: HashMap<Digest, (u64, u64)> = HashMap::new();
    for feature in features.features()? {
        let (images, bytes) = counted.entry(feature.descriptor).or_default();
        *images += 1;
        *bytes += feature.n_bytes;
    }
    let mut stats: Vec<DescriptorStats> = (counted.into_iter())
        .map(|(descriptor, (images, bytes))| DescriptorStats {
            descriptor,
            parts: known.get(&descriptor).copied().unwrap_or_default().to_vec(),
            images,
            bytes,
        })
        .collect();
    stats.sort_by_key(|stats| (std::cmp::Reverse(stats.images), stats.descriptor));
    Ok(stats)
}
