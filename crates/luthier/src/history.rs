//! Earlier runs of a project, as far as the cache still knows them: what each changed, what came of it, and back to one.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use luthier_artifact::{Digest, Key, Manifest, Split};
use luthier_cache::{Cache, Execution, Run};
use luthier_eval::{Evaluation, StageTime};
use luthier_extract::{DataSource, Scan, SkippedImages, decided};
use luthier_features::for_each_block;
use serde::Serialize;

use crate::engine::{OutputPaths, TestFigures};
use crate::export::{self, RowNames};
use crate::pipeline::OutputFolders;
use crate::reason::{Reason, Reasons};
use crate::results::{Evaluated, Extracted, Figures, Found, StoredLookAlikes, Trained, load, open_table};
use crate::runner::{STAGES, VIEWS};
use crate::thumbnails::{THUMBNAILS, Thumbnails};
use crate::{Error, Result};

/// An earlier run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EarlierRun {
    /// Its number in its project.
    pub number: i64,
    /// When it was last used, in seconds since 1970.
    pub time: u64,
    /// How many images it had, if the cache still knows.
    pub images: Option<usize>,
    /// How well its model does on test images; `None` if there were none, or if the cache does not know any more.
    pub test: Option<TestFigures>,
    /// How well the models of its cross-validation do on training images that they have not seen; `None` if C was given,
    /// or if the cache does not know any more.
    pub held_out: Option<TestFigures>,
    /// What was not as in the run before.
    #[serde(flatten)]
    pub changed: Reasons,
}

/// A run with what the cache knows of its stages.
pub(crate) struct PastRun {
    pub(crate) run: Run,
    executions: HashMap<String, Execution>,
}

impl PastRun {
    /// The whole runs of a project, the oldest first. Not those of single stages, which stand between: what they made did
    /// not go into the model and the report that were there then.
    pub(crate) fn all(cache: &Cache, project: &str) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for mut run in cache.finished_runs(project)? {
            // A record also has the stages before it that a run did not use, after its own.
            let place = |name: &str| run.stages.iter().position(|stage| stage.stage == name);
            if place(VIEWS) > place("extract") {
                run.stages.retain(|stage| stage.stage != VIEWS);
            }
            let mut executions = HashMap::new();
            for stage in &run.stages {
                if let Some(execution) = cache.execution(&stage.key)? {
                    executions.insert(stage.stage.clone(), execution);
                }
            }
            let run = PastRun { run, executions };
            found.extend(run.is_whole().then_some(run));
        }
        Ok(found)
    }

    /// Whether every stage has taken what the stages before it made.
    fn is_whole(&self) -> bool {
        let follows = |stage: &str, part: &str, before: &str, output: &str| {
            let taken = self.executions.get(stage).and_then(|execution| execution.key.get(part));
            taken.is_some() && taken == self.output(before, output).map(|digest| digest.to_string()).as_deref()
        };
        follows("extract", "manifest", "scan", "scan")
            && follows("features", "train", "extract", "train")
            && follows("classify", "train", "extract", "train")
            && follows("classify", "projection", "features", "projection")
            && follows("evaluate", "model", "classify", "model")
            && follows("evaluate", "test", "extract", "test")
            && follows("suspects", "model", "classify", "model")
            && follows("neighbours", "train", "extract", "train")
    }

    fn output(&self, stage: &str, output: &str) -> Option<Digest> {
        let outputs = &self.executions.get(stage)?.outputs;
        Some(outputs.iter().find(|found| found.name == output)?.digest)
    }

    fn key(&self, stage: &str) -> Option<&Key> {
        self.executions.get(stage).map(|execution| &execution.key)
    }

    /// What it says of itself. `before` is the run before it.
    pub(crate) fn describe(&self, before: Option<&PastRun>, cache: &Cache) -> Result<EarlierRun> {
        let evaluation: Option<Evaluation> = match self.output("evaluate", "evaluation") {
            Some(digest) => cache.get(&digest)?,
            None => None,
        };
        let manifest: Option<Manifest> = match self.output("scan", "scan") {
            Some(digest) => cache.get(&digest)?,
            None => None,
        };
        let (test, held_out) = evaluation.as_ref().map_or((None, None), TestFigures::both);
        Ok(EarlierRun {
            number: self.run.id,
            time: self.run.time,
            images: manifest.map(|manifest| manifest.entries.len()),
            test,
            held_out,
            changed: self.changes(before, cache)?,
        })
    }

    /// What its user changed, and what luthier did: not what followed from it, stage after stage.
    fn changes(&self, before: Option<&PastRun>, cache: &Cache) -> Result<Reasons> {
        let Some(before) = before else {
            return Ok(Reasons(vec![Reason::FirstRun]));
        };
        let mut reasons: Vec<Reason> = Vec::new();
        for stage in [VIEWS].iter().chain(&STAGES) {
            let (Some(earlier), Some(now)) = (before.key(stage), self.key(stage)) else {
                continue;
            };
            for reason in Reasons::between(cache, earlier, now)?.0 {
                let follows = match &reason {
                    Reason::Input { name } => !["images", "checked labels"].contains(name),
                    // What was judged, and what looked alike in it.
                    Reason::Setting { name, .. } => {
                        *stage == VIEWS && ["sample", "duplicates"].contains(&name.as_str())
                    }
                    _ => false,
                };
                // The manifest is a part of two keys, and a seed of several.
                if !follows && !reasons.contains(&reason) {
                    reasons.push(reason);
                }
            }
        }
        Ok(Reasons(reasons))
    }

    /// Writes its features, its model and its report again, as it wrote them. `source` says where the images are.
    ///
    /// # Errors
    /// [`Error::RunIsGone`] if the cache lacks some of it.
    pub(crate) fn restore(&self, cache: &Cache, source: &DataSource, out: &Path) -> Result<OutputPaths> {
        let restored = self.write(cache, source, out);
        restored.map_err(|error| match error.is_loss() {
            true => Error::RunIsGone { number: self.run.id },
            false => error,
        })
    }

    fn write(&self, cache: &Cache, source: &DataSource, out: &Path) -> Result<OutputPaths> {
        let gone = || Error::RunIsGone { number: self.run.id };
        let output = |stage, name| self.output(stage, name).ok_or_else(gone);
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(self.run.time);
        let outputs = OutputFolders::below(out, time);
        let manifest = output("scan", "scan")?;
        let mut scan = Scan {
            manifest: load(cache, &manifest)?,
            ..Scan::default()
        };
        scan.decided = decided(source, &scan.manifest)?;
        let skipped = output("extract", "skipped")?;
        let extracted = Extracted {
            train: output("extract", "train")?,
            test: output("extract", "test")?,
            images: output("extract", "images")?,
            skipped_images: load::<SkippedImages>(cache, &skipped)?,
            skipped,
            skipped_files: Vec::new(),
            n_embedded: 0,
            n_reused: 0,
        };
        let trained = Trained {
            model: output("classify", "model")?,
            held_out: output("classify", "held-out")?,
        };
        let look_alikes = output("duplicates", "look-alikes")?;
        let views = self.output(VIEWS, "judged");
        let data = Evaluated {
            trained,
            train: extracted.train,
            test: extracted.test,
            duplicates: Some(StoredLookAlikes {
                digest: look_alikes,
                found: load(cache, &look_alikes)?,
            }),
        };
        let digest = output("evaluate", "evaluation")?;
        let evaluation: Evaluation = load(cache, &digest)?;
        let found = Found {
            views: views.map(|digest| load(cache, &digest)).transpose()?,
            figures: Figures {
                digest,
                test_probabilities: output("evaluate", "test-probabilities")?,
                rows: data.evaluated_rows(&evaluation, cache)?,
                evaluation: Some(evaluation),
            },
            data,
            suspects: output("suspects", "suspects")?,
            neighbours: output("neighbours", "neighbours")?,
            map: output("map", "map")?,
        };
        // Before a file is replaced: neither features nor probabilities may be lost.
        for table in [&extracted.train, &extracted.test] {
            for_each_block(&open_table(cache, table)?, |_, _| Ok(()))?;
        }
        found.probabilities(cache)?;
        let names = RowNames::extracted(cache, source, (&scan, manifest), &extracted)?;
        export::features(cache, &outputs.features, &names, &extracted)?;
        export::model(cache, &outputs.models, trained)?;
        let shown = self.executions.get(THUMBNAILS).map(|execution| execution.key.clone());
        let thumbnails = Thumbnails::after(cache, shown, &());
        export::report(
            cache,
            &outputs.reports,
            &found,
            &names,
            &self.times(),
            time,
            &thumbnails,
        )?;
        Ok(OutputPaths::of(&outputs))
    }

    fn times(&self) -> Vec<StageTime> {
        let stages = self.run.stages.iter().filter(|stage| stage.stage != THUMBNAILS);
        let executions = stages.filter_map(|stage| self.executions.get(&stage.stage));
        let time = |execution: &Execution| StageTime {
            name: execution.key.stage.clone(),
            seconds: execution.seconds,
        };
        executions.map(time).collect()
    }
}

impl TestFigures {
    /// Those on test images, and those on training images that were held out.
    pub(crate) fn both(evaluation: &Evaluation) -> (Option<Self>, Option<Self>) {
        let figures = TestFigures {
            accuracy: evaluation.accuracy.value,
            macro_f1: evaluation.macro_f1.value,
            n: evaluation.n,
        };
        match evaluation.split {
            Split::Train => (None, Some(figures)),
            Split::Test => {
                let held_out = evaluation.held_out.map(|held_out| TestFigures {
                    accuracy: held_out.accuracy.value,
                    macro_f1: held_out.macro_f1,
                    n: held_out.n,
                });
                (Some(figures), held_out)
            }
        }
    }
}
