//! What keeps the cache small: `gc`, `prune-images`.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::PathBuf;

use luthier_artifact::{Digest, FileStat, images_of, remove};
use serde::Serialize;

use crate::run::{Run, RunState};
use crate::{Cache, Execution, References, Result, now};

const DAY: u64 = 24 * 60 * 60;

/// How long an interrupted run counts as a use of what it stored, where nothing else is said.
const DAYS_TO_RESUME: u64 = 30;

/// What [`Cache::gc`] keeps: what runs used that are within every limit.
///
/// A run that was begun and not finished counts beside the finished ones, for 30 days, or for the days given here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcLimits {
    /// The last so many finished runs of every project.
    pub runs: Option<usize>,
    /// Runs of the last so many days.
    pub days: Option<u64>,
    /// The runs used last, as many as leave the cache no larger than this.
    pub bytes: Option<u64>,
}

/// Whether something is only counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// Count, remove nothing.
    Yes,
    /// Remove.
    No,
}

/// What [`Cache::gc`] removed, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Artifacts.
    pub objects: usize,
    /// Their size in bytes.
    pub object_bytes: u64,
    /// Rows of features.
    pub features: u64,
    /// About how much of the index they take, in bytes.
    pub feature_bytes: u64,
    /// Executions.
    pub executions: u64,
    /// Runs of the projects' history.
    pub runs: u64,
    /// Unfinished files of dead processes, and a damaged index that was set aside.
    pub left_over_files: usize,
    /// Their size in bytes.
    pub left_over_bytes: u64,
}

/// What [`Cache::prune_images`] forgot, or would forget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Rows of features.
    pub features: u64,
    /// About how much of the index they take, in bytes.
    pub feature_bytes: u64,
    /// Files that were known by their stat and are gone.
    pub files: u64,
}

/// What runs used.
#[derive(Default)]
struct Used {
    keys: HashSet<Digest>,
    objects: HashSet<Digest>,
    /// Descriptor and image.
    features: HashSet<(Digest, Digest)>,
}

impl Used {
    fn add(&mut self, other: Used) {
        self.keys.extend(other.keys);
        self.objects.extend(other.objects);
        self.features.extend(other.features);
    }
}

impl Cache {
    /// Removes what no run used that is to be kept, and what dead processes left behind.
    ///
    /// # Errors
    /// [`Error::InUse`](crate::Error::InUse) if another process has the cache open: it may be about to name what it stored.
    /// [`Error::Io`](crate::Error::Io) or [`Error::Index`](crate::Error::Index) if something cannot be read or removed.
    pub fn gc(&self, limits: &GcLimits, dry_run: DryRun) -> Result<GcReport> {
        self.check_writable()?;
        let _alone = self.lock.exclusive()?;
        let stored: HashMap<Digest, u64> = (self.objects.list()?.into_iter())
            .map(|object| (object.digest, object.bytes))
            .collect();
        let features = self.index.feature_keys()?;
        let row_bytes = self.row_bytes(features.len())?;
        let descriptors: HashSet<Digest> = features.iter().map(|(descriptor, _)| *descriptor).collect();

        let runs = self.index.runs()?;
        let mut used = Used::default();
        let mut kept = HashSet::new();
        for run in within(&runs, limits, now()) {
            let more = self.used_by(run, &descriptors)?;
            if let Some(limit) = limits.bytes {
                let objects: u64 = (used.objects.union(&more.objects))
                    .filter_map(|object| stored.get(object))
                    .sum();
                let n_features = features
                    .iter()
                    .filter(|row| used.features.contains(row) || more.features.contains(row))
                    .count();
                if objects + n_features as u64 * row_bytes > limit {
                    break;
                }
            }
            used.add(more);
            kept.insert(run.id);
        }

        let objects: Vec<Digest> = stored
            .keys()
            .filter(|object| !used.objects.contains(object))
            .copied()
            .collect();
        let features: Vec<(Digest, Digest)> = features
            .into_iter()
            .filter(|row| !used.features.contains(row))
            .collect();
        let executions: Vec<Digest> = (self.index.execution_keys()?.into_iter())
            .filter(|key| !used.keys.contains(key))
            .collect();
        let old_runs: Vec<i64> = runs.iter().map(|run| run.id).filter(|id| !kept.contains(id)).collect();
        let left_over: Vec<PathBuf> = (self.left_over()?.into_iter())
            .chain(["", "-wal", "-shm"].map(|of_log| self.folder.join(format!("index.sqlite.damaged{of_log}"))))
            .filter(|path| path.is_file())
            .collect();
        let report = GcReport {
            objects: objects.len(),
            object_bytes: objects.iter().map(|object| stored[object]).sum(),
            features: features.len() as u64,
            feature_bytes: features.len() as u64 * row_bytes,
            executions: executions.len() as u64,
            runs: old_runs.len() as u64,
            left_over_files: left_over.len(),
            left_over_bytes: left_over
                .iter()
                .filter_map(|path| Some(fs::metadata(path).ok()?.len()))
                .sum(),
        };
        if dry_run == DryRun::No {
            // Files first: on a full disk they make the room that the index needs.
            left_over.iter().try_for_each(|path| remove(path))?;
            (objects.iter()).try_for_each(|object| remove(&self.objects.path(object)))?;
            self.index.forget_features(&features)?;
            self.index.forget_unused_vectors()?;
            self.index.forget_executions(&executions)?;
            self.index.forget_runs(&old_runs)?;
            self.shrink()?;
        }
        Ok(report)
    }

    /// Forgets the features of images that are gone: that are neither in the last run of a project, finished or
    /// interrupted, nor the bytes of a file that is known by its stat and still there. Also forgets the stats of files that
    /// are gone.
    ///
    /// # Errors
    /// Those of [`gc`](Cache::gc).
    pub fn prune_images(&self, dry_run: DryRun) -> Result<PruneReport> {
        self.check_writable()?;
        let _alone = self.lock.exclusive()?;
        let mut images = HashSet::new();
        let mut gone = Vec::new();
        for (path, stat, digest) in self.index.files()? {
            match FileStat::of(&path) {
                Ok(found) if found == stat => drop(images.insert(digest)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => gone.push(path),
                // Another file, or one that cannot be looked at now: the next scan will tell.
                _ => {}
            }
        }
        let last = GcLimits {
            runs: Some(1),
            ..GcLimits::default()
        };
        for run in within(&self.index.runs()?, &last, now()) {
            images.extend(self.images_of(run)?);
        }
        let stored = self.index.feature_keys()?;
        let row_bytes = self.row_bytes(stored.len())?;
        let features: Vec<(Digest, Digest)> = stored
            .into_iter()
            .filter(|(_, image)| !images.contains(image))
            .collect();
        if dry_run == DryRun::No {
            self.index.forget_features(&features)?;
            self.index.forget_unused_vectors()?;
            self.index.forget_files(&gone)?;
            self.shrink()?;
        }
        Ok(PruneReport {
            features: features.len() as u64,
            feature_bytes: features.len() as u64 * row_bytes,
            files: gone.len() as u64,
        })
    }

    /// What a run used: its executions, their outputs, and what they refer to.
    fn used_by(&self, run: &Run, descriptors: &HashSet<Digest>) -> Result<Used> {
        let mut used = Used::default();
        let mut of_run = HashSet::new();
        for execution in self.executions_of(run)? {
            used.keys.insert(execution.key.digest());
            used.objects
                .extend(execution.outputs.iter().map(|output| output.digest));
            let References { descriptors, images } = execution.references;
            used.objects.extend(images);
            of_run.extend(descriptors.into_iter().map(|descriptor| descriptor.digest));
        }
        // A run that was interrupted while it embedded has not yet recorded which descriptors it uses.
        let descriptors = if of_run.is_empty() { descriptors } else { &of_run };
        let images = self.images_of(run)?;
        let rows = (descriptors.iter()).flat_map(|descriptor| images.iter().map(|image| (*descriptor, *image)));
        used.features.extend(rows);
        Ok(used)
    }

    /// The images that a run's executions refer to. Several artifacts may list the same images, and
    /// so stand in for one that is damaged.
    fn images_of(&self, run: &Run) -> Result<HashSet<Digest>> {
        let mut images = HashSet::new();
        for list in self
            .executions_of(run)?
            .iter()
            .flat_map(|execution| &execution.references.images)
        {
            images.extend(self.images_listed(list)?);
        }
        Ok(images)
    }

    /// The images that an artifact lists; none if it is gone or damaged.
    fn images_listed(&self, list: &Digest) -> Result<Vec<Digest>> {
        let Some(bytes) = self.objects.get(list)? else {
            return Ok(Vec::new());
        };
        Ok(images_of(&bytes).unwrap_or_else(|error| {
            tracing::warn!("{}: {error}; taken as missing", self.objects.path(list).display());
            Vec::new()
        }))
    }

    /// The recorded executions of a run's stages, even if their outputs are gone.
    fn executions_of(&self, run: &Run) -> Result<Vec<Execution>> {
        let found = run.stages.iter().map(|stage| self.index.execution(&stage.key));
        found.filter_map(Result::transpose).collect()
    }

    /// How much of the index one row of features takes, with its share of everything else.
    fn row_bytes(&self, n_rows: usize) -> Result<u64> {
        Ok(self.index.bytes_in_use()?.div_ceil(n_rows.max(1) as u64))
    }

    fn shrink(&self) -> Result<()> {
        match self.index.shrink() {
            // What was removed is removed; the space is used again.
            Err(error) if error.is_disk_full() => {
                tracing::warn!("{error}: the index keeps its size for now");
                Ok(())
            }
            other => other,
        }
    }
}

/// The runs within the limits but that of size, the one used last first.
fn within<'a>(runs: &'a [Run], limits: &GcLimits, now: u64) -> Vec<&'a Run> {
    let mut newest_first: Vec<&Run> = runs.iter().collect();
    newest_first.sort_by_key(|run| std::cmp::Reverse((run.time, run.id)));
    let mut n_finished: HashMap<&str, usize> = HashMap::new();
    let is_within = |run: &&'a Run| {
        let age = now.saturating_sub(run.time) / DAY;
        match run.state {
            RunState::Begun => age < limits.days.unwrap_or(DAYS_TO_RESUME),
            RunState::Finished => {
                let n = n_finished.entry(&run.project).or_default();
                *n += 1;
                limits.runs.is_none_or(|runs| *n <= runs) && limits.days.is_none_or(|days| age < days)
            }
        }
    };
    newest_first.into_iter().filter(is_within).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Reuse, RunStage};

    fn run(id: i64, project: &str, days_ago: u64, state: RunState) -> Run {
        let time = 1000 * DAY - days_ago * DAY;
        Run {
            id,
            state,
            ..Run::finished(project.to_owned(), time, Vec::<RunStage>::new(), Reuse::default())
        }
    }

    #[track_caller]
    fn check(limits: GcLimits, expected: &[i64]) {
        use RunState::{Begun, Finished};
        let runs = [
            run(1, "a", 50, Finished),
            run(2, "a", 40, Begun),
            run(3, "a", 9, Finished),
            run(4, "b", 60, Finished),
            run(5, "a", 5, Begun),
            run(6, "a", 0, Finished),
        ];
        let kept: Vec<i64> = within(&runs, &limits, 1000 * DAY)
            .into_iter()
            .map(|run| run.id)
            .collect();
        assert_eq!(kept, expected, "{limits:?}");
    }

    #[test]
    fn runs_are_counted_by_project_and_days_from_now() {
        let runs = |runs| GcLimits {
            runs: Some(runs),
            ..GcLimits::default()
        };
        let days = |days| GcLimits {
            days: Some(days),
            ..GcLimits::default()
        };
        check(GcLimits::default(), &[6, 5, 3, 1, 4]);
        check(runs(1), &[6, 5, 4]);
        check(runs(2), &[6, 5, 3, 4]);
        check(runs(0), &[5]);
        check(days(10), &[6, 5, 3]);
        check(days(1), &[6]);
        check(days(45), &[6, 5, 3, 2]);
        check(
            GcLimits {
                days: Some(10),
                ..runs(1)
            },
            &[6, 5],
        );
    }
}
