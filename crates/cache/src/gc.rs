//! What keeps the cache small: `gc` and `prune-images`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use luthier_artifact::{Digest, FileStat, Observer, entries, images_of, remove};
use serde::Serialize;

use crate::records::EXECUTIONS;
use crate::run::{Run, RunState};
use crate::segments::StoredFeature;
use crate::upkeep::go_on;
use crate::{Cache, Error, Execution, References, Result, now};

const DAY: u64 = 24 * 60 * 60;

/// How long an interrupted run keeps what it stored, unless the limits say otherwise.
const DAYS_TO_RESUME: u64 = 30;

/// What [`Cache::gc`] keeps: what was used by the runs that are within every limit.
///
/// An unfinished run counts beside the finished ones, for 30 days, or for the days given here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcLimits {
    /// This many finished runs of every project, the last ones.
    pub runs: Option<usize>,
    /// The runs of this many days.
    pub days: Option<u64>,
    /// The runs that were used last, as many as leave the cache no larger than this many bytes.
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

/// What [`Cache::prune_images`] does with the files of a folder that holds no file now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoneFolders {
    /// Keep what is known of them: their drive may not be plugged in.
    Keep,
    /// Forget them as if they had been deleted one by one.
    Forget,
}

/// What [`Cache::gc`] removed, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Artifacts.
    pub objects: usize,
    /// Their size in bytes.
    pub object_bytes: u64,
    /// Features of images.
    pub features: u64,
    /// What they take on the disk, in bytes.
    pub feature_bytes: u64,
    /// Executions.
    pub executions: u64,
    /// Runs of the projects' history.
    pub runs: u64,
    /// Unfinished files of dead processes.
    pub left_over_files: usize,
    /// Their size in bytes.
    pub left_over_bytes: u64,
}

/// What [`Cache::prune_images`] forgot, or would forget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Features of images.
    pub features: u64,
    /// What they take on the disk, in bytes.
    pub feature_bytes: u64,
    /// Files that were known by their stat and are gone.
    pub files: u64,
    /// The folders that hold no file now, and whose files are therefore not taken for gone.
    pub kept_folders: Vec<KeptFolder>,
}

/// A folder that is missing, cannot be read or holds no file, with files that are not taken for
/// gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeptFolder {
    /// The folder that was scanned, or a link below it that leads nowhere.
    pub folder: PathBuf,
    /// How many files were known below it.
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
    fn has(&self, feature: &StoredFeature) -> bool {
        self.features.contains(&(feature.descriptor, feature.image))
    }

    fn add(&mut self, other: Used) {
        self.keys.extend(other.keys);
        self.objects.extend(other.objects);
        self.features.extend(other.features);
    }
}

impl Cache {
    /// Removes what no kept run used, and what dead processes left behind.
    ///
    /// # Errors
    /// [`Error::NothingRecorded`] if there are features, and no run with an execution is known that could
    /// have used them: their records were lost. To keep 0 runs removes them all the same.
    /// [`Error::Lost`] if the record of a run or an execution is damaged; [`verify`](Cache::verify) forgets it.
    /// [`Error::InUse`] if another process has the cache open: it may be about to name what it stored.
    /// [`Error::File`] if something cannot be read or removed. [`Error::Interrupted`] soon after the
    /// observer says so; then only a part of what no kept run used is removed.
    pub fn gc(&self, limits: &GcLimits, dry_run: DryRun, observer: &dyn Observer) -> Result<GcReport> {
        self.check_writable()?;
        let _alone = self.lock.exclusive()?;
        let stored = self.objects.list()?;
        let features = self.features.features()?;
        let descriptors: HashSet<Digest> = features.iter().map(|feature| feature.descriptor).collect();

        let runs = self.records.runs()?;
        if limits.runs != Some(0) {
            self.records.check_use(observer)?;
            let has_executions = |run| Ok::<_, Error>(!self.executions_in(run)?.is_empty());
            let is_known = runs
                .iter()
                .try_fold(false, |known, run| Ok::<_, Error>(known || has_executions(run)?))?;
            if !is_known && !features.is_empty() {
                return Err(Error::NothingRecorded {
                    path: self.folder.clone(),
                });
            }
        }
        let mut used = Used::default();
        let mut kept = HashSet::new();
        for run in within(&runs, limits, now()) {
            go_on(observer)?;
            let more = self.used_by(run, &descriptors)?;
            if let Some(limit) = limits.bytes {
                let objects: u64 = (used.objects.union(&more.objects))
                    .filter_map(|object| stored.get(object))
                    .sum();
                let is_used = |feature: &&StoredFeature| used.has(feature) || more.has(feature);
                let features: u64 = (features.iter().filter(is_used))
                    .map(|feature| feature.stored_bytes)
                    .sum();
                if objects + features > limit {
                    break;
                }
            }
            used.add(more);
            kept.insert((&run.project, run.name()));
        }

        let objects: Vec<Digest> = stored
            .keys()
            .filter(|object| !used.objects.contains(object))
            .copied()
            .collect();
        let unused: Vec<StoredFeature> = features.into_iter().filter(|feature| !used.has(feature)).collect();
        let executions: Vec<Digest> = (self.records.names(EXECUTIONS)?.into_iter())
            .filter(|key| !used.keys.contains(key))
            .collect();
        let old_runs: Vec<&Run> = runs
            .iter()
            .filter(|run| !kept.contains(&(&run.project, run.name())))
            .collect();
        let left_over = self.left_over()?;
        let report = GcReport {
            objects: objects.len(),
            object_bytes: objects.iter().map(|object| stored[object]).sum(),
            features: unused.len() as u64,
            feature_bytes: unused.iter().map(|feature| feature.stored_bytes).sum(),
            executions: executions.len() as u64,
            runs: old_runs.len() as u64,
            left_over_files: left_over.len(),
            left_over_bytes: left_over
                .iter()
                .filter_map(|path| Some(fs::metadata(path).ok()?.len()))
                .sum(),
        };
        if dry_run == DryRun::No {
            left_over.iter().try_for_each(|path| remove(path))?;
            for object in &objects {
                go_on(observer)?;
                remove(&self.objects.path(object))?;
            }
            self.features.retain(&|feature| used.has(feature), observer)?;
            for key in &executions {
                go_on(observer)?;
                self.records.forget(EXECUTIONS, key)?;
            }
            old_runs.into_iter().try_for_each(|run| self.records.forget_run(run))?;
        }
        Ok(report)
    }

    /// Forgets the features of images that are gone, and the stats of files that are gone.
    ///
    /// An image is kept if the last run of a project had it, finished or interrupted, or if a file
    /// that is known by its stat may still hold it. A file is gone only if it is missing from a
    /// folder that is there. These are not gone:
    /// - a file that has changed or cannot be looked at: the next scan will tell what it holds;
    /// - the files of a scanned folder that is missing, cannot be read, or holds no file at all. An
    ///   unplugged drive leaves an empty folder behind, or none. Hidden files do not count;
    /// - the files below a link that leads nowhere, or to a folder without files.
    ///
    /// The report names such folders. [`GoneFolders::Forget`] takes their files for gone.
    ///
    /// # Errors
    /// Those of [`gc`](Cache::gc), and [`Error::Lost`] if a part of what is known of files is damaged.
    pub fn prune_images(
        &self,
        dry_run: DryRun,
        gone_folders: GoneFolders,
        observer: &dyn Observer,
    ) -> Result<PruneReport> {
        self.check_writable()?;
        let _alone = self.lock.exclusive()?;
        self.files.check(observer)?;
        self.records.check_use(observer)?;
        let mut images = HashSet::new();
        let mut gone: HashSet<PathBuf> = HashSet::new();
        let mut folders = DataFolders::new(self.files.folders()?);
        let mut kept: BTreeMap<PathBuf, u64> = BTreeMap::new();
        self.files.each(|path, digest| {
            go_on(observer)?;
            if is_missing(&path) {
                match folders.without_files(&path) {
                    Some(folder) if gone_folders == GoneFolders::Keep => *kept.entry(folder).or_default() += 1,
                    _ => {
                        gone.insert(path);
                        return Ok(());
                    }
                }
            }
            images.insert(digest);
            Ok(())
        })?;
        let last = GcLimits {
            runs: Some(1),
            ..GcLimits::default()
        };
        for run in within(&self.records.runs()?, &last, now()) {
            images.extend(self.images_of(run)?);
        }
        let mut features = self.features.features()?;
        if images.is_empty() && gone.is_empty() && !features.is_empty() {
            return Err(Error::NothingRecorded {
                path: self.folder.clone(),
            });
        }
        features.retain(|feature| !images.contains(&feature.image));
        if dry_run == DryRun::No {
            self.features
                .retain(&|feature| images.contains(&feature.image), observer)?;
            self.files.retain(|path| !gone.contains(path), observer)?;
        }
        Ok(PruneReport {
            features: features.len() as u64,
            feature_bytes: features.iter().map(|feature| feature.stored_bytes).sum(),
            files: gone.len() as u64,
            kept_folders: (kept.into_iter())
                .map(|(folder, files)| KeptFolder { folder, files })
                .collect(),
        })
    }

    /// What a run used: its executions, their outputs, and what they refer to.
    fn used_by(&self, run: &Run, descriptors: &HashSet<Digest>) -> Result<Used> {
        let mut used = Used::default();
        let mut of_run = HashSet::new();
        for execution in self.executions_in(run)? {
            used.keys.insert(execution.key.digest());
            used.objects
                .extend(execution.outputs.iter().map(|output| output.digest));
            let References { descriptors, images } = execution.references;
            used.objects.extend(images);
            of_run.extend(descriptors.into_iter().map(|descriptor| descriptor.digest));
        }
        // A run that was interrupted while it embedded has not recorded its descriptors yet.
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
            .executions_in(run)?
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
    fn executions_in(&self, run: &Run) -> Result<Vec<Execution>> {
        let found = run.stages.iter().map(|stage| self.records.execution(&stage.key));
        found.filter_map(Result::transpose).collect()
    }
}

/// Whether nothing is at a path. Whatever cannot be looked at may be there.
fn is_missing(path: &Path) -> bool {
    let missing = |kind| matches!(kind, ErrorKind::NotFound | ErrorKind::NotADirectory);
    FileStat::of(path).is_err_and(|error| missing(error.kind()))
}

/// The folders that were scanned.
struct DataFolders {
    scanned: Vec<PathBuf>,
    /// What [`holds_a_file`] said of a folder.
    holds_a_file: HashMap<PathBuf, bool>,
}

impl DataFolders {
    fn new(scanned: Vec<PathBuf>) -> Self {
        DataFolders {
            scanned,
            holds_a_file: HashMap::new(),
        }
    }

    /// Where a missing file was, if that place holds no file now: a folder that was scanned, or a
    /// link below it.
    fn without_files(&mut self, path: &Path) -> Option<PathBuf> {
        let above: Vec<&Path> = path.ancestors().collect();
        let is_scanned = |folder: &&Path| self.scanned.iter().any(|scanned| scanned == folder);
        let mut places: Vec<&Path> = above.iter().copied().filter(is_scanned).collect();
        // The name of the file may be a path from the root, which a list has.
        let data_folder = *places.first().or(above.get(1))?;
        if places.is_empty() {
            places.push(data_folder);
        }
        let is_link = |place: &&Path| fs::symlink_metadata(place).is_ok_and(|metadata| metadata.is_symlink());
        places.extend(
            above
                .into_iter()
                .take_while(|place| *place != data_folder)
                .filter(is_link),
        );
        let place = places
            .into_iter()
            .find(|place| !*(self.holds_a_file.entry(place.to_path_buf())).or_insert_with(|| holds_a_file(place)))?;
        Some(place.to_owned())
    }
}

/// Whether a folder holds a file that is not hidden, at any depth. What is missing or cannot be
/// read holds none.
fn holds_a_file(folder: &Path) -> bool {
    let is_hidden = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .as_encoded_bytes()
            .starts_with(b".")
    };
    let holds = |path: &PathBuf| match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => holds_a_file(path),
        Ok(_) => true,
        Err(_) => false,
    };
    entries(folder).is_ok_and(|paths| paths.iter().filter(|path| !is_hidden(path)).any(holds))
}

/// The runs within all limits except the limit of size. The run that was used last comes first.
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
