//! Takes stages through the cache, and keeps account.
//!
//! A stage is a name, a [`Key`] and a function that makes the outputs. [`Runner::stage`] looks the key up in the cache:
//!
//! - The cache knows the key and still has all outputs: the stage does not run. Its status is [`Status::Fresh`] if the
//!   last run of this project used the same key, and [`Status::Restored`] if another run made the outputs.
//! - The cache does not know the key: the function runs, and key, outputs and time are recorded ([`Status::Ran`]). The
//!   key is compared with the key of the last run, which gives the [`Reasons`].
//!
//! With [`Purpose::Plan`] no function runs. A stage that would run gives outputs that are [pending](Outputs::get). The
//! key of a stage below then has a pending input, so that the stage waits, and its own outputs are pending too. That is
//! how the one function that names the stages, [`Pipeline::stages`](crate::Pipeline), serves runs and plans alike.
//!
//! A run is recorded in the cache before each stage that computes, and again when it is finished: what it used is in use.

use std::fmt;
use std::sync::LazyLock;
use std::time::Instant;

use luthier_artifact::{Digest, Key, Observer};
use luthier_cache::{Cache, Execution, Output, References, Reuse, RunStage};
use luthier_eval::StageTime;
use serde::Serialize;

use crate::Result;
use crate::reason::{Reason, Reasons};

/// The stages of every run in their order. Where views are to be chosen, the stage [`VIEWS`] comes before `extract`.
pub const STAGES: [&str; 9] = [
    "scan",
    "extract",
    "duplicates",
    "features",
    "classify",
    "evaluate",
    "suspects",
    "neighbours",
    "map",
];

/// The stage that chooses among views.
pub const VIEWS: &str = "views";

/// What stands for an output that a stage above has yet to make.
static PENDING: LazyLock<Digest> = LazyLock::new(|| Digest::of(b"what a stage above has yet to make"));

/// What a stage did, or would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
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
pub struct StageReport {
    /// The stage.
    pub name: &'static str,
    /// What it did.
    pub status: Status,
    /// Why.
    #[serde(flatten)]
    pub reasons: Reasons,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What came out, in a few words; empty in a plan.
    #[serde(skip)]
    pub outcome: String,
}

/// Whether stages run or are only looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Stages whose results the cache does not know run.
    Run,
    /// No stage runs.
    Plan,
}

/// Takes stages through the cache, and keeps account.
pub(crate) struct Runner<'a> {
    /// Where results are kept.
    pub(crate) cache: &'a Cache,
    /// Told how work proceeds, and asked whether it may go on.
    pub observer: &'a dyn Observer,
    purpose: Purpose,
    on_stage: &'a dyn Fn(&StageReport),
    project: String,
    previous: Vec<RunStage>,
    used: Vec<Key>,
    reports: Vec<StageReport>,
    reuse: Reuse,
}

/// What a stage made of its key.
#[derive(Default)]
pub(crate) struct StageResult {
    /// The outputs with their names.
    pub(crate) outputs: Vec<(&'static str, Digest)>,
    /// What `gc` keeps for the result.
    pub(crate) references: References,
    /// How many images went through the network, of a stage that embeds: later estimates rest on it.
    pub(crate) n_embedded: Option<usize>,
}

impl<'a> Runner<'a> {
    /// A runner for a project, which is known by the folder it writes to. `on_stage` is told of each stage that ends.
    pub(crate) fn new(
        cache: &'a Cache,
        observer: &'a dyn Observer,
        on_stage: &'a dyn Fn(&StageReport),
        project: String,
        purpose: Purpose,
    ) -> Result<Self> {
        let previous = cache.last_run(&project)?;
        Ok(Runner {
            cache,
            observer,
            purpose,
            on_stage,
            project,
            previous,
            used: Vec::new(),
            reports: Vec::new(),
            reuse: Reuse::default(),
        })
    }

    /// Whether no stage runs.
    pub(crate) fn is_plan(&self) -> bool {
        self.purpose == Purpose::Plan
    }

    /// The outputs of a stage: from the cache if it knows this key, else from `run`. In a plan the outputs of a stage that
    /// would run are pending.
    pub(crate) fn stage(
        &mut self,
        name: &'static str,
        key: Key,
        run: impl FnOnce() -> Result<Vec<(&'static str, Digest)>>,
    ) -> Result<Outputs> {
        self.stage_that_refers(name, key, || {
            Ok(StageResult {
                outputs: run()?,
                ..StageResult::default()
            })
        })
    }

    /// [`stage`](Runner::stage) for a stage whose result refers to features in the cache.
    pub(crate) fn stage_that_refers(
        &mut self,
        name: &'static str,
        key: Key,
        run: impl FnOnce() -> Result<StageResult>,
    ) -> Result<Outputs> {
        let pending = PENDING.to_string();
        if key.parts.iter().any(|part| part.value == pending) {
            self.wait(name, key)?;
            return Ok(Outputs(None));
        }
        let digest = key.digest();
        let cached = self.cache.execution(&digest)?;
        let same = self.previous_key(name) == Some(digest);
        let reasons = match (&cached, same) {
            (Some(_), true) => Reasons::default(),
            (None, true) => Reasons(vec![Reason::Lost]),
            (_, false) => self.reasons(&key)?,
        };
        let start = Instant::now();
        let (status, outputs) = match (cached, self.purpose) {
            (Some(execution), purpose) => (
                match (same, purpose) {
                    (true, _) => Status::Fresh,
                    (false, Purpose::Run) => Status::Restored,
                    (false, Purpose::Plan) => Status::Restorable,
                },
                Some(execution.outputs),
            ),
            (None, Purpose::Plan) => (Status::Stale, None),
            (None, Purpose::Run) if self.observer.is_interrupted() => {
                return Err(luthier_extract::Error::Interrupted.into());
            }
            (None, Purpose::Run) => {
                self.begin()?;
                let made = run()?;
                let outputs: Vec<Output> = (made.outputs.into_iter())
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
                    n_embedded: made.n_embedded,
                    references: made.references,
                })?;
                (Status::Ran, Some(outputs))
            }
        };
        self.put_down(name, key, status, reasons, start.elapsed().as_secs_f64());
        Ok(Outputs(outputs))
    }

    fn put_down(&mut self, name: &'static str, key: Key, status: Status, reasons: Reasons, seconds: f64) {
        self.used.push(key);
        self.reports.push(StageReport {
            name,
            status,
            reasons,
            seconds,
            outcome: String::new(),
        });
    }

    /// Says what came out of the stage that has just ended, and tells the caller of it. A plan tells of nothing.
    pub(crate) fn tell(&mut self, outcome: impl FnOnce() -> Result<String>) -> Result<()> {
        if !self.is_plan()
            && let Some(report) = self.reports.last_mut()
        {
            report.outcome = outcome()?;
            (self.on_stage)(report);
        }
        Ok(())
    }

    /// Records a stage that always runs, because only running it tells what it gives.
    pub(crate) fn seen(&mut self, name: &'static str, key: Key, output: Digest, start: Instant) -> Result<()> {
        let digest = key.digest();
        let is_recorded = self.cache.execution(&digest)?.is_some();
        let (status, reasons) = match (self.previous_key(name) == Some(digest), self.purpose) {
            (true, _) => (Status::Fresh, Reasons::default()),
            (false, Purpose::Run) => (Status::Ran, self.reasons(&key)?),
            (false, Purpose::Plan) if is_recorded => (Status::Restorable, self.reasons(&key)?),
            (false, Purpose::Plan) => (Status::Stale, self.reasons(&key)?),
        };
        let seconds = start.elapsed().as_secs_f64();
        if self.purpose == Purpose::Run && !is_recorded {
            let outputs = vec![Output {
                name: name.to_owned(),
                digest: output,
            }];
            self.cache.record(&Execution {
                key: key.clone(),
                outputs,
                seconds,
                n_embedded: None,
                references: References {
                    descriptors: Vec::new(),
                    images: vec![output],
                },
            })?;
        }
        self.put_down(name, key, status, reasons, seconds);
        Ok(())
    }

    /// Records a stage of a plan that waits for a stage above. Its key lacks the inputs that are not made yet.
    fn wait(&mut self, name: &'static str, mut key: Key) -> Result<()> {
        let pending = PENDING.to_string();
        key.parts.retain(|part| part.value != pending);
        // Not for scan, which has been done by looking, nor for a stage that waits itself.
        let is_awaited = |report: &&StageReport| report.status == Status::Stale && report.name != STAGES[0];
        let awaited = self.reports.iter().find(is_awaited);
        let stage = awaited.expect("a stage waits only for one that would run").name;
        let mut reasons = match self.previous(name)? {
            Some(mut previous) => {
                // What is not known yet is not taken for gone.
                previous.parts.retain(|part| key.get(&part.name).is_some());
                Reasons::between(self.cache, &previous, &key)?
            }
            None => Reasons::default(),
        };
        reasons.0.push(Reason::Waits { stage });
        self.put_down(name, key, Status::Stale, reasons, 0.0);
        Ok(())
    }

    /// Records for how many images the cache spared the network, and for how many it did not.
    pub(crate) fn count_images(&mut self, reused: usize, embedded: usize) {
        self.reuse.images_reused = reused;
        self.reuse.images_embedded = embedded;
    }

    /// Tells the cache, before a stage runs, that what it has stored and stores from now on is in use.
    pub(crate) fn begin(&self) -> Result<()> {
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

    /// Records what the run used beside its stages, so that `gc` keeps it.
    pub(crate) fn uses(&mut self, key: Key) {
        self.used.push(key);
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

    /// Ends a plan: each stage with its key and that of the last run.
    pub(crate) fn into_plan(self) -> Result<Vec<(StageReport, Key, Option<Key>)>> {
        let previous = self.reports.iter().map(|report| self.previous(report.name));
        let previous: Vec<Option<Key>> = previous.collect::<Result<_>>()?;
        let stages = self.reports.into_iter().zip(self.used).zip(previous);
        Ok(stages
            .map(|((report, key), previous)| (report, key, previous))
            .collect())
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

/// The outputs of a stage; none in a plan if the stage would have to run.
pub(crate) struct Outputs(Option<Vec<Output>>);

impl Outputs {
    /// The digest of an output, or the one that stands for what is not made yet. Stages name their outputs themselves, so
    /// that a missing output is a mistake in the code.
    pub(crate) fn get(&self, name: &str) -> Digest {
        let Some(outputs) = &self.0 else { return *PENDING };
        let output = outputs.iter().find(|output| output.name == name);
        output.expect("the stage has this output").digest
    }
}

/// Whether this stands for an output that a stage above has yet to make.
pub(crate) fn is_pending(digest: &Digest) -> bool {
    *digest == *PENDING
}

/// What stands for an input that is not known before a stage above has run.
pub(crate) fn pending() -> Digest {
    *PENDING
}
