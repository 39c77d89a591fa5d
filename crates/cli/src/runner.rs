use std::fmt;
use std::time::Instant;

use anyhow::Result;
use luthier_artifact::{Digest, Key};
use luthier_cache::{Cache, Execution, Output, References, Reuse, RunStage};
use luthier_eval::StageTime;
use luthier_extract::Observer;
use serde::Serialize;

use crate::reason::{Reason, Reasons};
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
    /// Nothing would run: the cache knows the result of another run with this key.
    Restorable,
    /// It would run, or waits for a stage that would.
    Stale,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Status::Fresh => "fresh",
            Status::Restored => "restored",
            Status::Ran => "ran",
            Status::Restorable => "restorable",
            Status::Stale => "stale",
        })
    }
}

/// One line of a run's account.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StageReport {
    pub name: &'static str,
    pub status: Status,
    #[serde(flatten)]
    pub reasons: Reasons,
    pub seconds: f64,
}

/// Whether stages run or are only looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Run,
    Plan,
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
        self.stage_that_refers(name, key, || Ok((run()?, References::default())))
    }

    /// [`stage`](Runner::stage) for a stage whose result refers to features in the cache.
    pub(crate) fn stage_that_refers(
        &mut self,
        name: &'static str,
        key: Key,
        run: impl FnOnce() -> Result<(Vec<(&'static str, Digest)>, References)>,
    ) -> Result<Option<Outputs>> {
        let digest = key.digest();
        let cached = self.cache.execution(&digest)?;
        let same = self.previous_key(name) == Some(digest);
        let reasons = match (&cached, same) {
            (Some(_), true) => Reasons::default(),
            (None, true) => Reasons(vec![Reason::Lost]),
            (_, false) => self.reasons(&key)?,
        };
        let start = Instant::now();
        let (status, outputs) = match (cached, self.mode) {
            (Some(execution), mode) => (
                match (same, mode) {
                    (true, _) => Status::Fresh,
                    (false, Mode::Run) => Status::Restored,
                    (false, Mode::Plan) => Status::Restorable,
                },
                Some(execution.outputs),
            ),
            (None, Mode::Plan) => (Status::Stale, None),
            // The statistics do not look whether they are interrupted: at least the next stage does not begin.
            (None, Mode::Run) if self.progress.is_interrupted() => {
                return Err(luthier_extract::Error::Interrupted.into());
            }
            (None, Mode::Run) => {
                self.begin()?;
                let (outputs, references) = run()?;
                let outputs: Vec<Output> = (outputs.into_iter())
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
                    references,
                })?;
                (Status::Ran, Some(outputs))
            }
        };
        self.used.push(key);
        self.reports.push(StageReport {
            name,
            status,
            reasons,
            seconds: start.elapsed().as_secs_f64(),
        });
        Ok(outputs.map(Outputs))
    }

    /// Puts down how many images the stage that has just ended embedded, if it ran: later estimates rest on it.
    pub(crate) fn embedded(&self, n_images: usize) -> Result<()> {
        if let (Some(report), Some(key)) = (self.reports.last(), self.used.last())
            && report.status == Status::Ran
        {
            self.cache.record_embedded(&key.digest(), n_images)?;
        }
        Ok(())
    }

    /// Puts down a stage that always runs, because only by running it is known what it gives.
    pub(crate) fn seen(&mut self, name: &'static str, key: Key, output: Digest, start: Instant) -> Result<()> {
        let digest = key.digest();
        let is_recorded = self.cache.execution(&digest)?.is_some();
        let (status, reasons) = match (self.previous_key(name) == Some(digest), self.mode) {
            (true, _) => (Status::Fresh, Reasons::default()),
            (false, Mode::Run) => (Status::Ran, self.reasons(&key)?),
            (false, Mode::Plan) if is_recorded => (Status::Restorable, self.reasons(&key)?),
            (false, Mode::Plan) => (Status::Stale, self.reasons(&key)?),
        };
        let seconds = start.elapsed().as_secs_f64();
        if self.mode == Mode::Run && !is_recorded {
            let outputs = vec![Output {
                name: name.to_owned(),
                digest: output,
            }];
            self.cache.record(&Execution {
                key: key.clone(),
                outputs,
                seconds,
                references: References {
                    descriptors: Vec::new(),
                    images: vec![output],
                },
            })?;
        }
        self.used.push(key);
        self.reports.push(StageReport {
            name,
            status,
            reasons,
            seconds,
        });
        Ok(())
    }

    /// Puts down a stage of a plan that waits for one above it. Its key lacks the inputs that are not made yet.
    pub(crate) fn waits(&mut self, name: &'static str, key: Key) -> Result<()> {
        // Not for scan, which has been done by looking, nor for one that waits itself.
        let is_awaited = |report: &&StageReport| report.status == Status::Stale && report.name != STAGES[0];
        let awaited = self.reports.iter().find(is_awaited);
        let stage = awaited.expect("a stage waits only for one that would run").name;
        let mut reasons = match self.previous(name)? {
            Some(previous) => Reasons::between(self.cache, &previous, &key)?,
            None => Reasons::default(),
        };
        reasons.0.push(Reason::Waits { stage });
        self.used.push(key);
        self.reports.push(StageReport {
            name,
            status: Status::Stale,
            reasons,
            seconds: 0.0,
        });
        Ok(())
    }

    /// Puts down for how many images the cache spared the network, and for how many it did not.
    pub(crate) fn count_images(&mut self, reused: usize, embedded: usize) {
        self.reuse.images_reused = reused;
        self.reuse.images_embedded = embedded;
    }

    /// Tells the cache, before a stage runs, that what it has stored and stores from now on is in use.
    fn begin(&self) -> Result<()> {
        Ok(self.cache.begin_run(&self.project, &self.stages())?)
    }

    /// The stages that were reached.
    fn stages(&self) -> Vec<RunStage> {
        let stage = |key: &Key| RunStage {
            stage: key.stage.clone(),
            key: key.digest(),
        };
        self.used.iter().map(stage).collect()
    }

    /// How long the stages so far took when they ran, now or at another time.
    pub(crate) fn times(&self) -> Result<Vec<StageTime>> {
        let times = self.used.iter().map(|key| {
            let execution = self.cache.execution(&key.digest())?;
            Ok(execution.map(|execution| StageTime {
                name: key.stage.clone(),
                seconds: execution.seconds,
            }))
        });
        times.filter_map(Result::transpose).collect()
    }

    /// The account so far.
    pub(crate) fn reports(&self) -> &[StageReport] {
        &self.reports
    }

    /// Ends a plan: each stage with its key.
    pub(crate) fn into_plan(self) -> Vec<(StageReport, Key)> {
        self.reports.into_iter().zip(self.used).collect()
    }

    /// Ends a run: it becomes the one that the next is compared with.
    pub(crate) fn finish(self) -> Result<Vec<StageReport>> {
        // A run of some of the stages leaves what is known of the others.
        let mut stages = self.stages();
        let others = (self.previous.iter()).filter(|before| self.used.iter().all(|key| key.stage != before.stage));
        stages.extend(others.cloned());
        let ran = self.reports.iter().filter(|report| report.status == Status::Ran);
        let stages_run = ran.count();
        let reuse = Reuse {
            stages_run,
            stages_reused: self.reports.len() - stages_run,
            ..self.reuse
        };
        self.cache.record_run(&self.project, &stages, reuse)?;
        Ok(self.reports)
    }

    /// The key that the last run of this project used for a stage.
    fn previous_key(&self, stage: &str) -> Option<Digest> {
        self.previous
            .iter()
            .find(|before| before.stage == stage)
            .map(|before| before.key)
    }

    /// The parts of the key that the last run of this project used for a stage, if the cache still knows them.
    pub(crate) fn previous(&self, stage: &str) -> Result<Option<Key>> {
        match self.previous_key(stage) {
            Some(key) => Ok(self.cache.recorded_key(&key)?),
            None => Ok(None),
        }
    }

    /// Why a stage with this key does not just have the status of the last run.
    fn reasons(&self, key: &Key) -> Result<Reasons> {
        match self.previous(&key.stage)? {
            Some(previous) => Reasons::between(self.cache, &previous, key),
            None if self.previous_key(&key.stage).is_some() => Ok(Reasons(vec![Reason::Lost])),
            None => Ok(Reasons(vec![Reason::FirstRun])),
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
