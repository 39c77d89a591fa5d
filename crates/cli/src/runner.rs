use std::collections::HashMap;
use std::fmt;
use std::time::Instant;

use anyhow::Result;
use luthier_artifact::{Cache, Content, Digest, Execution, Key, Manifest, Output, Reuse, RunStage, Split};
use luthier_extract::Observer;
use serde::{Serialize, Serializer};

use crate::terminal::Progress;

/// The stages in the order in which they run.
pub(crate) const STAGES: [&str; 5] = ["scan", "extract", "features", "classify", "evaluate"];

/// What a stage did, or would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// Nothing: its key is that of the last run.
    Fresh,
    /// Nothing: the cache knows the result of another run with this key.
    Restored,
    /// It ran.
    Ran,
    /// It would run.
    Stale,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Status::Fresh => "fresh",
            Status::Restored => "restored",
            Status::Ran => "ran",
            Status::Stale => "stale",
        })
    }
}

/// Why a stage has the status it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Nothing changed since the last run.
    Unchanged,
    /// This project has not run before.
    FirstRun,
    /// These parts of the key changed.
    Changed(Vec<String>),
    /// The key is that of the last run, but the cache lost the result.
    Lost,
    /// A stage before it must run first; whether this one must is known only then.
    Waits(&'static str),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Unchanged => f.write_str("unchanged"),
            Reason::FirstRun => f.write_str("first run"),
            Reason::Changed(changes) => f.write_str(&changes.join(", ")),
            Reason::Lost => f.write_str("cache entry lost"),
            Reason::Waits(stage) => write!(f, "unless {stage} gives the same result"),
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One line of a run's account.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StageReport {
    pub name: &'static str,
    pub status: Status,
    pub reason: Reason,
    pub seconds: f64,
}

/// Whether stages run or are only looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Run,
    Plan,
}

/// An artifact that the cache should have and has not. The stage that makes it runs again if the run starts over.
#[derive(Debug, thiserror::Error)]
#[error("artifact {} is lost or damaged", digest.short())]
pub(crate) struct Lost {
    pub digest: Digest,
}

/// Takes stages through the cache, and keeps account.
pub(crate) struct Runner<'a> {
    pub cache: &'a Cache,
    pub progress: &'a Progress,
    mode: Mode,
    project: String,
    previous: Vec<RunStage>,
    used: Vec<Key>,
    reports: Vec<StageReport>,
    reuse: Reuse,
}

impl<'a> Runner<'a> {
    /// A runner for a project, which is known by the folder it writes to.
    pub(crate) fn new(cache: &'a Cache, progress: &'a Progress, project: String, mode: Mode) -> Result<Self> {
        let previous = cache.last_run(&project)?;
        Ok(Runner {
            cache,
            progress,
            mode,
            project,
            previous,
            used: Vec::new(),
            reports: Vec::new(),
            reuse: Reuse::default(),
        })
    }

    /// The outputs of a stage: from the cache if it knows this key, else from `run`.
    ///
    /// `None` if the stage would have to run and this is only a plan.
    pub(crate) fn stage(
        &mut self,
        name: &'static str,
        key: Key,
        run: impl FnOnce() -> Result<Vec<(&'static str, Digest)>>,
    ) -> Result<Option<Outputs>> {
        let digest = key.digest();
        let cached = self.cache.execution(&digest)?;
        let same = self.previous_key(name) == Some(digest);
        let reason = match (&cached, same) {
            (Some(_), true) => Reason::Unchanged,
            (None, true) => Reason::Lost,
            (_, false) => self.reason(&key)?,
        };
        let start = Instant::now();
        let (status, outputs) = match (cached, self.mode) {
            (Some(execution), _) => (
                if same { Status::Fresh } else { Status::Restored },
                Some(execution.outputs),
            ),
            (None, Mode::Plan) => (Status::Stale, None),
            // The statistics do not look whether they are interrupted: at least the next stage does not begin.
            (None, Mode::Run) if self.progress.is_interrupted() => {
                return Err(luthier_extract::Error::Interrupted.into());
            }
            (None, Mode::Run) => {
                self.begin()?;
                let outputs: Vec<Output> = run()?
                    .into_iter()
                    .map(|(name, digest)| Output {
                        name: name.to_owned(),
                        digest,
                    })
                    .collect();
                let seconds = start.elapsed().as_secs_f64();
                self.cache.record(&Execution {
                    key: key.clone(),
                    outputs: outputs.clone(),
                    seconds,
                })?;
                (Status::Ran, Some(outputs))
            }
        };
        self.used.push(key);
        self.reports.push(StageReport {
            name,
            status,
            reason,
            seconds: start.elapsed().as_secs_f64(),
        });
        Ok(outputs.map(Outputs))
    }

    /// Puts down a stage that always runs, because only by running it is known what it gives.
    pub(crate) fn seen(&mut self, name: &'static str, key: Key, output: Digest, start: Instant) -> Result<()> {
        let digest = key.digest();
        let (status, reason) = match self.previous_key(name) == Some(digest) {
            true => (Status::Fresh, Reason::Unchanged),
            false => (Status::Ran, self.reason(&key)?),
        };
        let seconds = start.elapsed().as_secs_f64();
        if self.cache.execution(&digest)?.is_none() {
            let outputs = vec![Output {
                name: name.to_owned(),
                digest: output,
            }];
            self.cache.record(&Execution {
                key: key.clone(),
                outputs,
                seconds,
            })?;
        }
        self.used.push(key);
        self.reports.push(StageReport {
            name,
            status,
            reason,
            seconds,
        });
        Ok(())
    }

    /// Puts down for how many images the cache spared the network, and for how many it did not.
    pub(crate) fn count_images(&mut self, reused: usize, embedded: usize) {
        self.reuse.images_reused = reused;
        self.reuse.images_embedded = embedded;
    }

    /// Tells the cache, before the first stage runs, that what it stores from now on is in use.
    fn begin(&self) -> Result<()> {
        if self
            .reports
            .iter()
            .all(|report| report.status != Status::Ran || report.name == STAGES[0])
        {
            self.cache.begin_run(&self.project, &self.stages())?;
        }
        Ok(())
    }

    /// The stages that were reached.
    fn stages(&self) -> Vec<RunStage> {
        let stage = |key: &Key| RunStage {
            stage: key.stage.clone(),
            key: key.digest(),
        };
        self.used.iter().map(stage).collect()
    }

    /// The account so far.
    pub(crate) fn reports(&self) -> &[StageReport] {
        &self.reports
    }

    /// The keys of the stages that were reached.
    pub(crate) fn into_keys(self) -> Vec<Key> {
        self.used
    }

    /// Ends a run: it becomes the one that the next is compared with. In a plan, the stages that were not reached
    /// are put down as waiting.
    pub(crate) fn finish(mut self) -> Result<Vec<StageReport>> {
        if self.mode == Mode::Run {
            // A run of some of the stages leaves what is known of the others.
            let mut stages = self.stages();
            let others = (self.previous.iter()).filter(|before| self.used.iter().all(|key| key.stage != before.stage));
            stages.extend(others.cloned());
            let stages_run = self
                .reports
                .iter()
                .filter(|report| report.status == Status::Ran)
                .count();
            let reuse = Reuse {
                stages_run,
                stages_reused: self.reports.len() - stages_run,
                ..self.reuse
            };
            self.cache.record_run(&self.project, &stages, reuse)?;
        } else if let Some(stale) = self.reports.iter().find(|report| report.status == Status::Stale) {
            let stale = stale.name;
            let reached = self.reports.len();
            let waiting = |&name| StageReport {
                name,
                status: Status::Stale,
                reason: Reason::Waits(stale),
                seconds: 0.0,
            };
            self.reports.extend(STAGES[reached..].iter().map(waiting));
        }
        Ok(self.reports)
    }

    /// The key that the last run of this project used for a stage.
    fn previous_key(&self, stage: &str) -> Option<Digest> {
        self.previous
            .iter()
            .find(|before| before.stage == stage)
            .map(|before| before.key)
    }

    fn reason(&self, key: &Key) -> Result<Reason> {
        let Some(previous) = self.previous_key(&key.stage) else {
            return Ok(Reason::FirstRun);
        };
        let Some(previous) = self.cache.recorded_key(&previous)? else {
            return Ok(Reason::FirstRun);
        };
        let mut changes = Vec::new();
        for (name, before, now) in key.differences(&previous) {
            changes.push(match (name, before, now) {
                // It sums up the other parts.
                ("extractor", ..) => continue,
                ("manifest", Some(before), Some(now)) => self.describe_images(before, now)?,
                _ => describe(name, before, now),
            });
        }
        Ok(Reason::Changed(changes))
    }

    /// What happened to the images between two manifests.
    fn describe_images(&self, before: &str, now: &str) -> Result<String> {
        let load = |digest: &str| -> Result<Option<Manifest>> {
            Ok(digest
                .parse()
                .ok()
                .map(|digest| self.cache.get(&digest))
                .transpose()?
                .flatten())
        };
        let (Some(before), Some(now)) = (load(before)?, load(now)?) else {
            return Ok("images changed".to_owned());
        };
        Ok(ImageChanges::between(&before, &now).to_string())
    }
}

/// A changed part of a key in words: digests are named, not shown.
pub(crate) fn describe(name: &str, before: Option<&str>, now: Option<&str>) -> String {
    let short = |value: &str| {
        if value.len() == 64 {
            format!("{}…", &value[..8])
        } else {
            value.to_owned()
        }
    };
    match (before, now) {
        (Some(before), Some(now)) => format!("{name} {} → {}", short(before), short(now)),
        (None, Some(now)) => format!("{name} {}", short(now)),
        (Some(before), None) => format!("no {name} (was {})", short(before)),
        (None, None) => name.to_owned(),
    }
}

/// How many images were added, changed, removed and moved from one manifest to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ImageChanges {
    added: usize,
    changed: usize,
    removed: usize,
    moved: usize,
}

impl ImageChanges {
    fn between(before: &Manifest, now: &Manifest) -> Self {
        let files = |manifest: &Manifest| -> HashMap<(Split, String), Content> {
            manifest
                .entries
                .iter()
                .map(|entry| ((entry.split, entry.file.clone()), entry.content.clone()))
                .collect()
        };
        let (earlier, later) = (files(before), files(now));
        let mut changes = ImageChanges::default();
        // How many files with these bytes are gone: a new file with the same bytes is one of them, moved.
        let mut gone: HashMap<&Content, usize> = HashMap::new();
        for (name, content) in &earlier {
            match later.get(name) {
                None => {
                    changes.removed += 1;
                    *gone.entry(content).or_default() += 1;
                }
                Some(other) if other != content => changes.changed += 1,
                Some(_) => {}
            }
        }
        for (name, content) in &later {
            if earlier.contains_key(name) {
                continue;
            }
            match gone.get_mut(content).filter(|left| **left > 0) {
                Some(left) => {
                    *left -= 1;
                    changes.removed -= 1;
                    changes.moved += 1;
                }
                None => changes.added += 1,
            }
        }
        changes
    }
}

impl fmt::Display for ImageChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ImageChanges {
            added,
            changed,
            removed,
            moved,
        } = *self;
        let parts: Vec<String> = [
            (added, "added"),
            (changed, "changed"),
            (removed, "removed"),
            (moved, "moved or renamed"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
        if parts.is_empty() {
            f.write_str("classes changed")
        } else {
            write!(f, "images: {}", parts.join(", "))
        }
    }
}

/// The outputs of a stage.
pub(crate) struct Outputs(Vec<Output>);

impl Outputs {
    /// The digest of an output. Stages name their outputs themselves, so that a missing one is a mistake in the code.
    pub(crate) fn get(&self, name: &str) -> Digest {
        self.0
            .iter()
            .find(|output| output.name == name)
            .map(|output| output.digest)
            .expect("the stage has this output")
    }
}
