use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use luthier_artifact::{Digest, FileStat, Observer, entries, file_names, remove, write_atomically};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::objects::{digests_below, is_gone, path_below};
use crate::upkeep::go_on;
use crate::{Error, Execution, Result, Run};

/// The folders of records, one for each kind.
pub(super) const EXECUTIONS: &str = "executions";
pub(super) const EXPORTS: &str = "exports";
pub(super) const RUNS: &str = "runs";

/// Small files named by a digest: `KIND/ab/cdef…`. Each is a line with the digest of kind, name and
/// JSON, and then the JSON. A record that fails its digest is missing, with a warning.
#[derive(Debug)]
pub(super) struct Records {
    folder: PathBuf,
    /// The folder of a cache that can only be read, whose records are found too.
    read_only: Option<PathBuf>,
}

impl Records {
    pub(super) fn new(folder: PathBuf) -> Self {
        Records {
            folder,
            read_only: None,
        }
    }

    /// Finds the records of another cache too, where nothing is changed.
    pub(super) fn read_also(&mut self, folder: PathBuf) {
        self.read_only = Some(folder);
    }

    pub(super) fn execution(&self, key: &Digest) -> Result<Option<Execution>> {
        self.get(EXECUTIONS, key)
    }

    pub(super) fn record(&self, execution: &Execution) -> Result<()> {
        self.put(EXECUTIONS, &execution.key.digest(), execution)
    }

    /// Whether a file with this stat was written to a path, from this source.
    pub(super) fn is_exported(&self, path: &Path, stat: &FileStat, source: &Digest) -> Result<bool> {
        Ok(self.get(EXPORTS, &name_of_path(path))? == Some((*stat, *source)))
    }

    pub(super) fn remember_export(&self, path: &Path, stat: &FileStat, source: &Digest) -> Result<()> {
        self.put(EXPORTS, &name_of_path(path), &(stat, source))
    }

    /// The runs of all projects.
    pub(super) fn runs(&self) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        for project in self.projects()? {
            runs.extend(self.all(&project)?);
        }
        Ok(runs)
    }

    /// The runs of a project, oldest first.
    pub(super) fn runs_of(&self, project: &str) -> Result<Vec<Run>> {
        let mut runs: Vec<Run> = self.all(&kind_of_runs(project))?;
        runs.sort_by_key(|run| run.id);
        Ok(runs)
    }

    /// The kind of record of each project's runs.
    pub(super) fn projects(&self) -> Result<BTreeSet<String>> {
        let mut projects = BTreeSet::new();
        for folder in self.folders() {
            let names = entries(&folder.join(RUNS))?.into_iter();
            projects.extend(names.filter_map(|path| Some(format!("{RUNS}/{}", path.file_name()?.to_str()?))));
        }
        Ok(projects)
    }

    /// Lets `change` rewrite the runs of a project, given oldest first. A run with the number 0 is stored as the newest.
    pub(super) fn change_runs(&self, project: &str, change: impl FnOnce(&mut Vec<Run>)) -> Result<()> {
        let kind = kind_of_runs(project);
        let before = self.runs_of(project)?;
        let mut after = before.clone();
        change(&mut after);
        let newest = after.iter().map(|run| run.id).max().unwrap_or_default();
        for run in after.iter_mut().filter(|run| run.id == 0) {
            run.id = newest + 1;
        }
        // First what is new: a process that is killed in between leaves too much.
        for run in after.iter().filter(|run| !before.contains(run)) {
            self.put(&kind, &run.name(), run)?;
        }
        let kept: HashSet<Digest> = after.iter().map(Run::name).collect();
        let mut gone = before.iter().map(Run::name).filter(|name| !kept.contains(name));
        gone.try_for_each(|name| self.forget(&kind, &name))
    }

    /// An error if a record of a run or an execution is damaged, or of another version: it is not known what it used.
    pub(super) fn check_use(&self, observer: &dyn Observer) -> Result<()> {
        let lost = |what, damaged: Vec<Digest>| match damaged.first() {
            Some(&digest) => Err(Error::Lost { what, digest }),
            None => Ok(()),
        };
        for project in self.projects()? {
            lost("record of a run", self.damaged::<Run>(&project, observer)?)?;
        }
        lost(
            "record of an execution",
            self.damaged::<Execution>(EXECUTIONS, observer)?,
        )
    }

    /// Forgets damaged records of runs and of files written for the user, and counts them.
    pub(super) fn verify(&self, observer: &dyn Observer) -> Result<u64> {
        let exports = self.damaged::<(FileStat, Digest)>(EXPORTS, observer)?;
        let mut n_damaged = self.forget_all(EXPORTS, &exports)?;
        for project in self.projects()? {
            n_damaged += self.forget_all(&project, &self.damaged::<Run>(&project, observer)?)?;
        }
        Ok(n_damaged)
    }

    fn forget_all(&self, kind: &str, names: &[Digest]) -> Result<u64> {
        names.iter().try_for_each(|name| self.forget(kind, name))?;
        Ok(names.len() as u64)
    }

    pub(super) fn forget_run(&self, run: &Run) -> Result<()> {
        self.forget(&kind_of_runs(&run.project), &run.name())
    }

    /// The record with this name. `None` if there is none, or if another version has written it.
    fn get<T: DeserializeOwned>(&self, kind: &str, name: &Digest) -> Result<Option<T>> {
        Ok(self
            .json(kind, name)?
            .and_then(|json| serde_json::from_slice(&json).ok()))
    }

    /// All records of a kind, in the order of their names.
    pub(super) fn all<T: DeserializeOwned>(&self, kind: &str) -> Result<Vec<T>> {
        let found = self.names(kind)?.into_iter().map(|name| self.get(kind, &name));
        found.filter_map(Result::transpose).collect()
    }

    /// The names of all records of a kind, also of those that are damaged.
    pub(super) fn names(&self, kind: &str) -> Result<BTreeSet<Digest>> {
        let mut names = BTreeSet::new();
        for folder in self.folders() {
            names.extend(digests_below(&folder.join(kind))?.into_iter().map(|(name, _)| name));
        }
        Ok(names)
    }

    fn put(&self, kind: &str, name: &Digest, value: &impl Serialize) -> Result<()> {
        let json = serde_json::to_vec(value).expect("plain data always serialize");
        let path = path_below(&self.folder.join(kind), name);
        let bytes = [digest_of(kind, name, &json).to_string().as_bytes(), b"\n", &json].concat();
        write_atomically(&path, &bytes)?;
        Ok(())
    }

    pub(super) fn forget(&self, kind: &str, name: &Digest) -> Result<()> {
        Ok(remove(&path_below(&self.folder.join(kind), name))?)
    }

    /// The names of the records of a kind that are damaged, or of another version.
    fn damaged<T: DeserializeOwned>(&self, kind: &str, observer: &dyn Observer) -> Result<Vec<Digest>> {
        let mut damaged = Vec::new();
        for name in self.names(kind)? {
            go_on(observer)?;
            // Another process may have removed it.
            if self.get::<T>(kind, &name)?.is_none() && path_below(&self.folder.join(kind), &name).exists() {
                damaged.push(name);
            }
        }
        Ok(damaged)
    }

    fn folders(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.folder).chain(&self.read_only)
    }

    /// The JSON of a record, if there is a whole one.
    fn json(&self, kind: &str, name: &Digest) -> Result<Option<Vec<u8>>> {
        for folder in self.folders() {
            let path = path_below(&folder.join(kind), name);
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(Error::io(&path)(error)),
            };
            let line = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
            let (line, json) = bytes.split_at(line);
            let json = json.get(1..).unwrap_or_default();
            if line == digest_of(kind, name, json).to_string().as_bytes() {
                return Ok(Some(json.to_vec()));
            }
            tracing::warn!("{}: record fails its checksum; taken as missing", path.display());
        }
        Ok(None)
    }
}

/// The digest of kind, name and JSON, of which the kind alone has no fixed length.
fn digest_of(kind: &str, name: &Digest, json: &[u8]) -> Digest {
    Digest::of(&[kind.as_bytes(), b"\n", name.as_bytes(), json].concat())
}

/// The kind of record of a project's runs.
fn kind_of_runs(project: &str) -> String {
    format!("{RUNS}/{}", Digest::of(project.as_bytes()))
}

/// The name of the record of a file.
fn name_of_path(path: &Path) -> Digest {
    Digest::of(file_names::name_of(path).as_bytes())
}
