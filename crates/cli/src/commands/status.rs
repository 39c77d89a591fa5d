use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use luthier_artifact::{Digest, Key};
use luthier_cache::Cache;
use serde::Serialize;

use super::{configure, open_cache, project};
use crate::estimate::{self, About};
use crate::pipeline::{Data, Extracted, Pipeline, Trained, evaluate, inputs, train};
use crate::reason::{ImageChanges, Reasons};
use crate::runner::{Mode, Runner, StageReport, Status};
use crate::settings::Settings;
use crate::terminal::Progress;
use crate::words::counted;

/// Shows for each stage whether `luthier pipeline` with the same settings would run it, and why. Runs nothing.
///
/// A stage is fresh (nothing changed since the last run), restorable (the cache has its result from another run), or
/// stale: it would run, or it waits for a stage that would, and runs unless that gives the same result as before. Times
/// are judged by earlier runs.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  luthier status --train-dir data/train --test-dir data/test\n  luthier status -v                                name the images that changed\n  luthier status --check && echo nothing to run"
)]
pub(crate) struct Arguments {
    /// The --out of the pipeline
    #[arg(long, value_name = "DIR", default_value = ".", env = "LUTHIER_OUT")]
    out: PathBuf,
    /// Exit with status 3 if a stage is stale; one that is restorable does not run, and does not count
    #[arg(long)]
    check: bool,
    /// Print one JSON document on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

/// What a run would do.
#[derive(Serialize)]
struct Plan {
    stages: Vec<PlannedStage>,
    /// How many images would go through the network, if extract would run.
    to_embed: Option<usize>,
}

#[derive(Serialize)]
struct PlannedStage {
    name: &'static str,
    status: Status,
    #[serde(flatten)]
    reasons: Reasons,
    /// How long it would run, if it would and earlier runs tell.
    estimated_seconds: Option<f64>,
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments {
        settings,
        out,
        check,
        json,
    } = arguments;
    let settings = settings.with_lower_layers()?;
    let (pipeline, data) = configure(&settings)?;
    show(&settings, &pipeline, &data, &out, json, check, progress)
}

/// Prints the plan; with `check`, the exit status tells whether something would run.
pub(crate) fn show(
    settings: &Settings,
    pipeline: &Pipeline,
    data: &Data,
    out: &Path,
    json: bool,
    check: bool,
    progress: &Progress,
) -> Result<ExitCode> {
    let cache = open_cache(settings)?;
    let mut runner = Runner::new(&cache, progress, project(out)?, Mode::Plan)?;
    let to_embed = walk(pipeline, data, &mut runner)?;
    let stages = runner.into_plan().into_iter();
    let plan = Plan {
        stages: stages
            .map(|(report, key)| PlannedStage::new(&cache, report, &key, to_embed))
            .collect::<Result<_>>()?,
        to_embed,
    };
    if json {
        outln!("{}", serde_json::to_string_pretty(&plan)?);
    } else {
        print(&plan, progress)?;
    }
    let would_run = plan.stages.iter().any(|stage| stage.status == Status::Stale);
    Ok(ExitCode::from(if check && would_run { 3 } else { 0 }))
}

/// Goes through all stages; one that waits for another is put down with what is known of its key. The result is the
/// number of images to embed, if extract would run.
pub(crate) fn walk(pipeline: &Pipeline, data: &Data, runner: &mut Runner<'_>) -> Result<Option<usize>> {
    let (found, digest) = pipeline.scan(data, runner)?;
    let extracted = pipeline.extract(data, &found.manifest, digest, runner)?;
    let to_embed = match &extracted {
        Some(_) => None,
        None => Some(pipeline.extract.count_missing(&found.manifest, runner.cache)?),
    };
    if let Some(extracted) = &extracted
        && let Some(trained) = train(
            &pipeline.features,
            &pipeline.classify,
            extracted.train,
            &|_| None,
            runner,
        )?
    {
        evaluate(&pipeline.evaluate, &inputs(extracted, trained), &|_| None, runner)?;
    }
    let to_come = Digest::of(b"what a stage above has yet to make");
    let extracted = extracted.unwrap_or(Extracted {
        train: to_come,
        test: to_come,
        hashes: [to_come; 2],
        skipped: to_come,
        n_embedded: 0,
    });
    let trained = Trained {
        model: to_come,
        held_out: to_come,
    };
    let keys = [
        ("features", pipeline.features.key(extracted.train)),
        ("classify", pipeline.classify.key(extracted.train, to_come, None)),
        ("evaluate", pipeline.evaluate.key(&inputs(&extracted, trained))),
    ];
    for (name, mut key) in keys {
        if runner.reports().iter().all(|report| report.name != name) {
            key.parts.retain(|part| part.value != to_come.to_string());
            runner.waits(name, key)?;
        }
    }
    Ok(to_embed)
}

impl PlannedStage {
    fn new(cache: &Cache, report: StageReport, key: &Key, to_embed: Option<usize>) -> Result<Self> {
        let StageReport {
            name,
            status,
            reasons,
            seconds: _,
        } = report;
        let estimated_seconds = match (status, name) {
            // It has just been done: the next time it reads only what changes until then.
            (_, "scan") => None,
            (Status::Stale, "extract") => estimate::seconds(cache, key, to_embed)?,
            (Status::Stale, _) => estimate::seconds(cache, key, None)?,
            _ => None,
        };
        Ok(PlannedStage {
            name,
            status,
            reasons,
            estimated_seconds,
        })
    }
}

fn print(plan: &Plan, progress: &Progress) -> Result<()> {
    /// How many images `-v` names.
    const SHOWN: usize = 24;
    /// A longer line of reasons does not push the times of the others to the right.
    const WIDEST: usize = 60;
    let words: Vec<String> = plan.stages.iter().map(|stage| stage.reasons.to_string()).collect();
    let widths = words.iter().map(|words| words.chars().count());
    let width = widths.filter(|width| *width <= WIDEST).max().unwrap_or(WIDEST);
    let mut images = None;
    for (stage, words) in plan.stages.iter().zip(&words) {
        let time = stage.estimated_seconds.map(|seconds| About(seconds).to_string());
        let line = format!(
            "{:<9} {:<11} {words:<width$}  {}",
            stage.name,
            stage.status,
            time.unwrap_or_default()
        );
        outln!("{}", line.trim_end());
        images = images.or(stage.reasons.images());
    }
    outln!("\n{}", summary(plan));
    if let (Some(images), true) = (images, progress.is_verbose()) {
        outln!();
        print_images(images, SHOWN, "--json")?;
    }
    Ok(())
}

/// Names up to `most` of the images that are not as they were, counts the rest, and says which option names all.
pub(crate) fn print_images(images: &ImageChanges, most: usize, option: &str) -> Result<()> {
    for file in images.files.iter().take(most) {
        outln!("  {file}");
    }
    match images.files.len().saturating_sub(most) {
        0 => {}
        more => outln!("  … and {more} more ({option} names all)"),
    }
    Ok(())
}

/// The plan in a line.
fn summary(plan: &Plan) -> String {
    let count = |status| plan.stages.iter().filter(|stage| stage.status == status).count();
    let (to_run, to_restore) = (count(Status::Stale), count(Status::Restorable));
    let mut parts = vec![match to_run {
        0 => "nothing to run".to_owned(),
        _ => format!("{} to run", counted(to_run, "stage")),
    }];
    if to_restore > 0 {
        parts.push(format!("{} to restore from the cache", counted(to_restore, "stage")));
    }
    match plan.to_embed {
        None => {}
        Some(0) => parts.push("no image to embed".to_owned()),
        Some(n) => parts.push(format!("{} to embed", counted(n, "image"))),
    }
    let stale = plan
        .stages
        .iter()
        .filter(|stage| stage.status == Status::Stale && stage.name != "scan");
    let times: Option<Vec<f64>> = stale.map(|stage| stage.estimated_seconds).collect();
    if let Some(times) = times.filter(|times| !times.is_empty()) {
        parts.push(format!("{} in all", About(times.iter().sum())));
    }
    parts.join(", ")
}
