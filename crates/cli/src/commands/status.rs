use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::pipeline::would_run;
use super::{configure, open_cache, project};
use crate::pipeline::{Data, Pipeline, evaluate, train};
use crate::runner::{Mode, Runner, StageReport};
use crate::settings::Settings;
use crate::terminal::Progress;

/// Shows for each stage whether `luthier pipeline` with the same settings would run it, and why. Runs nothing.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  luthier status --train-dir data/train --test-dir data/test\n  luthier status --check && echo nothing to do"
)]
pub(crate) struct Arguments {
    /// The --out of the pipeline
    #[arg(long, value_name = "DIR", default_value = ".", env = "LUTHIER_OUT")]
    out: PathBuf,
    /// Exit with status 3 if something would run
    #[arg(long)]
    check: bool,
    /// Print one JSON document on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Serialize)]
struct Plan {
    stages: Vec<StageReport>,
    /// How many images would go through the network, if extract would run.
    to_embed: Option<usize>,
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

/// Prints the plan; with `check`, the exit status tells whether it is empty.
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
    let plan = Plan {
        stages: runner.finish()?,
        to_embed,
    };
    if json {
        outln!("{}", serde_json::to_string_pretty(&plan)?);
    } else {
        for StageReport {
            name, status, reason, ..
        } in &plan.stages
        {
            outln!("{name:<9} {status:<9} {reason}");
        }
        if let Some(n) = plan.to_embed {
            outln!("{n} images to embed");
        }
    }
    let status = if check && would_run(&plan.stages) { 3 } else { 0 };
    Ok(ExitCode::from(status))
}

/// Goes through the stages until one would run; the result is the number of images to embed, if that one is extract.
pub(crate) fn walk(pipeline: &Pipeline, data: &Data, runner: &mut Runner<'_>) -> Result<Option<usize>> {
    let (found, digest) = pipeline.scan(data, runner)?;
    let Some(extracted) = pipeline.extract(data, &found.manifest, digest, runner)? else {
        return Ok(Some(pipeline.extract.count_missing(&found.manifest, runner.cache)?));
    };
    if let Some(model) = train(&pipeline.features, &pipeline.classify, extracted.train, runner)? {
        evaluate(&pipeline.evaluate, model, extracted.test, runner)?;
    }
    Ok(None)
}
