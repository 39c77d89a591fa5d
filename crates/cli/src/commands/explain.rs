use crate::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use luthier::{PlannedStage, Reason, Reasons, STAGES, Status, VIEWS, input_name, short};
use luthier_artifact::Key;
use luthier_extract::PERCEPTUAL_HASH;
use serde::Serialize;

use super::{OutputFormat, PipelineArguments, open_cache, print_json};
use crate::problem::Problem;
use crate::terminal::Progress;

/// Show what a stage depends on, now and in the last run
///
/// What differs is marked, and a sentence says what it means. Before the first run, the stage is compared with the nearest
/// run of another project in the same cache.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  luthier explain features photos --variance 0.95\n  luthier explain extract -v                        name all images that changed"
)]
pub(crate) struct Arguments {
    /// Stage to explain
    #[arg(value_name = "STAGE", value_parser = PossibleValuesParser::new(STAGES.into_iter().chain([VIEWS])))]
    stage: String,
    #[command(flatten)]
    pipeline: PipelineArguments,
}

#[derive(Serialize)]
struct Explanation {
    stage: &'static str,
    status: Status,
    #[serde(flatten)]
    reasons: Reasons,
    /// Whose key the parts are compared with.
    compared_with: Option<&'static str>,
    parts: Vec<Part>,
}

#[derive(Serialize)]
struct Part {
    name: String,
    before: Option<String>,
    now: Option<String>,
    /// `None` for an input that is not made yet.
    differs: Option<bool>,
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments { stage, pipeline } = arguments;
    let cache = open_cache(&pipeline.settings)?;
    let plan = pipeline.plan(&cache, progress)?;
    let Some(planned) = plan.stages.into_iter().find(|planned| planned.name == stage) else {
        // All others are in every plan.
        let problem = Problem::usage(format!("no stage {VIEWS} here: the settings leave no choice"));
        bail!(problem.hint("--views auto chooses among views"));
    };
    let PlannedStage {
        name,
        status,
        reasons,
        key,
        previous: last,
        ..
    } = planned;
    let (before, compared_with) = match last {
        Some(key) => (Some(key), Some("last run")),
        None => match cache.nearest_key(&key)? {
            Some(nearest) => (Some(nearest), Some("nearest run")),
            None => (None, None),
        },
    };
    let explanation = Explanation {
        stage: name,
        status,
        reasons,
        compared_with,
        parts: parts(&key, before.as_ref()),
    };
    match pipeline.output.format() {
        OutputFormat::Json => print_json(&explanation)?,
        OutputFormat::Text => print(&explanation, progress)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The parts of both keys. One that `now` lacks stands where it stood before.
fn parts(now: &Key, before: Option<&Key>) -> Vec<Part> {
    let mut names: Vec<&str> = now.parts.iter().map(|part| part.name.as_str()).collect();
    let mut place = 0;
    for part in before.iter().flat_map(|key| &key.parts) {
        match names.iter().position(|name| *name == part.name) {
            Some(found) => place = found + 1,
            None => {
                names.insert(place, &part.name);
                place += 1;
            }
        }
    }
    let part = |name: &str| {
        let find = |key: &Key| key.get(name).map(str::to_owned);
        let (before, now) = (before.and_then(find), find(now));
        let is_to_come = now.is_none() && input_name(name).is_some();
        Part {
            name: name.to_owned(),
            differs: (!is_to_come).then_some(before != now),
            before,
            now,
        }
    };
    names.into_iter().map(part).collect()
}

fn print(explanation: &Explanation, progress: &Progress) -> Result<()> {
    /// How many images are named without `-v`.
    const SHOWN: usize = 12;
    let Explanation {
        stage,
        status: _,
        reasons,
        compared_with,
        parts,
    } = explanation;
    let value = |value: &Option<String>| value.as_deref().map_or_else(|| "–".to_owned(), short);
    // It sums up the other parts.
    let shown = parts
        .iter()
        .filter(|part| !["extractor", PERCEPTUAL_HASH].contains(&part.name.as_str()));
    let rows = shown.map(|part| {
        let name = input_name(&part.name).unwrap_or(&part.name);
        let (before, now) = (value(&part.before), value(&part.now));
        match (compared_with, part.differs) {
            (None, _) => [" ", name, &now, ""].map(str::to_owned),
            (_, None) => [" ", name, &before, "not known yet"].map(str::to_owned),
            (_, Some(true)) => ["*", name, &before, &now].map(str::to_owned),
            (_, Some(false)) => [" ", name, &before, &now].map(str::to_owned),
        }
    });
    let title = match compared_with {
        Some(other) => ["", stage, other, "now"],
        None => ["", stage, "now", ""],
    };
    let table: Vec<[String; 4]> = std::iter::once(title.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (names, values) = (width(1), width(2));
    for [mark, name, before, now] in &table {
        let line = format!("{mark:<1} {name:<names$}  {before:<values$}  {now}");
        outln!("{}", line.trim_end());
    }
    outln!("\n{}", sentence(explanation));
    if let Some(images) = reasons.images() {
        let most = if progress.is_verbose() { usize::MAX } else { SHOWN };
        super::status::print_images(images, most, "-v")?;
    }
    Ok(())
}

fn sentence(explanation: &Explanation) -> String {
    let Explanation {
        stage, status, reasons, ..
    } = explanation;
    match (status, reasons.0.as_slice()) {
        (Status::Stale, [Reason::Waits { .. }]) => {
            format!("{stage} {reasons}, and would run unless that gives the same result as before")
        }
        (Status::Stale, _) => format!("{stage} would run: {reasons}"),
        (Status::Restorable, _) => format!("{stage} would be restored from the cache: {reasons}"),
        _ => format!("{stage} is fresh: nothing changed since the last run"),
    }
}
