use crate::ExitCode;

use anyhow::Result;
use clap::Args;
use luthier::words::counted;
use luthier::{About, ImageChanges, Plan, PlannedStage, Status, VIEWS};

use super::{OutputFormat, PipelineArguments, open_cache, print_json};
use crate::terminal::Progress;

/// Show what `luthier pipeline` would run with the same settings, and why
///
/// Runs nothing. A stage is in one of three states. Fresh: nothing changed since the last run. Restorable: the cache has
/// its result from another run. Stale: the stage would run, or it waits for a stale stage before it; if that stage gives
/// the same result as before, the stage stays fresh. Times are estimated from earlier runs.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  luthier status photos\n  luthier status --train-dir data/train --test-dir data/test\n  luthier status -v                                name the images that changed\n  luthier status --check && echo nothing to run"
)]
pub(crate) struct Arguments {
    /// Exit with status 3 if a stage is stale
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    pipeline: PipelineArguments,
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments { check, pipeline } = arguments;
    let on_stale = if check { OnStale::Status3 } else { OnStale::Success };
    show(&pipeline, on_stale, progress)
}

/// The exit status of a plan in which a stage is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnStale {
    /// 0: the plan was shown.
    Success,
    /// 3: something would run.
    Status3,
}

/// Prints the plan.
pub(crate) fn show(arguments: &PipelineArguments, on_stale: OnStale, progress: &Progress) -> Result<ExitCode> {
    let plan = arguments.plan(&open_cache(&arguments.settings)?, progress)?;
    match arguments.output.format() {
        OutputFormat::Json => print_json(&plan)?,
        OutputFormat::Text => print(&plan, progress)?,
    }
    let would_run = plan.stages.iter().any(|stage| stage.status == Status::Stale);
    Ok(ExitCode::from(match on_stale {
        OnStale::Status3 if would_run => 3,
        _ => 0,
    }))
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
            "{:<10} {:<11} {words:<width$}  {}",
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
        Some(n) => {
            let is_choice = |stage: &PlannedStage| stage.name == VIEWS && stage.status == Status::Stale;
            let what_for = if plan.stages.iter().any(is_choice) {
                " to choose the views"
            } else {
                ""
            };
            parts.push(format!("{} to embed{what_for}", counted(n, "image")));
        }
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
