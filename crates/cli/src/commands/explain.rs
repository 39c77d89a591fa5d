use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use luthier_artifact::{Cache, Key};
use serde::Serialize;

use super::{configure, open_cache, project, status};
use crate::pipeline::{Data, Pipeline};
use crate::problem::Problem;
use crate::runner::{Mode, Runner, STAGES};
use crate::settings::Settings;
use crate::terminal::Progress;

/// Prints the parts of a stage's key, now and in the last run, and marks those that differ.
#[derive(Args)]
#[command(
    after_help = "Example:\n  luthier explain features --train-dir data/train --test-dir data/test --variance 0.95"
)]
pub(crate) struct Arguments {
    /// The stage: scan, extract, features, classify or evaluate
    #[arg(value_parser = STAGES)]
    stage: String,
    /// The --out of the pipeline
    #[arg(long, value_name = "DIR", default_value = ".", env = "LUTHIER_OUT")]
    out: PathBuf,
    /// Print one JSON document on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Serialize)]
struct Explanation {
    stage: String,
    /// What the key is compared with: the last run, or the nearest recorded key.
    compared_with: Option<&'static str>,
    parts: Vec<Part>,
}

#[derive(Serialize)]
struct Part {
    name: String,
    before: Option<String>,
    now: Option<String>,
    differs: bool,
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments {
        stage,
        settings,
        out,
        json,
    } = arguments;
    let settings = settings.with_lower_layers()?;
    let (pipeline, data) = configure(&settings)?;
    let cache = open_cache(&settings)?;
    let project = project(&out)?;
    let Some(key) = current_key(&pipeline, &data, &cache, &stage, &project, progress)? else {
        bail!(
            Problem::new(format!(
                "{stage}: its inputs are not known before the stages above it have run"
            ))
            .hint("luthier status shows which stage comes first; explain that one")
        );
    };
    let last = cache.last_run(&project)?.into_iter().find(|run| run.stage == stage);
    let last = last.map(|run| cache.recorded_key(&run.key)).transpose()?.flatten();
    let (before, compared_with) = match last {
        Some(key) => (Some(key), Some("last run")),
        None => match cache.nearest_key(&key)? {
            Some(nearest) => (Some(nearest), Some("nearest other run")),
            None => (None, None),
        },
    };
    let explanation = Explanation {
        stage,
        compared_with,
        parts: parts(&key, before.as_ref()),
    };
    if json {
        outln!("{}", serde_json::to_string_pretty(&explanation)?);
    } else {
        print(&explanation)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The key that the stage would have now, if the stages before it are cached.
fn current_key(
    pipeline: &Pipeline,
    data: &Data,
    cache: &Cache,
    stage: &str,
    project: &str,
    progress: &Progress,
) -> Result<Option<Key>> {
    let mut runner = Runner::new(cache, progress, project.to_owned(), Mode::Plan)?;
    status::walk(pipeline, data, &mut runner)?;
    Ok(runner.into_keys().into_iter().find(|key| key.stage == stage))
}

fn parts(now: &Key, before: Option<&Key>) -> Vec<Part> {
    let gone = before
        .into_iter()
        .flat_map(|key| &key.parts)
        .filter(|part| now.get(&part.name).is_none());
    now.parts
        .iter()
        .chain(gone)
        .map(|part| {
            let find = |key: &Key| key.get(&part.name).map(str::to_owned);
            let (before, now) = (before.and_then(find), find(now));
            Part {
                name: part.name.clone(),
                differs: before != now,
                before,
                now,
            }
        })
        .collect()
}

fn print(explanation: &Explanation) -> Result<()> {
    let Explanation {
        stage,
        compared_with,
        parts,
    } = explanation;
    match compared_with {
        Some(other) => outln!("{stage}\n  {:<18} {:<24} now", "", other),
        None => outln!("{stage}: it has not run before"),
    }
    let show = |value: &Option<String>| match value {
        Some(value) if value.len() == 64 => format!("{}…", &value[..12]),
        Some(value) => value.clone(),
        None => "–".to_owned(),
    };
    for part in parts {
        let mark = if part.differs && compared_with.is_some() {
            '*'
        } else {
            ' '
        };
        match compared_with {
            Some(_) => outln!(
                "{mark} {:<18} {:<24} {}",
                part.name,
                show(&part.before),
                show(&part.now)
            ),
            None => outln!("  {:<18} {}", part.name, show(&part.now)),
        }
    }
    Ok(())
}
