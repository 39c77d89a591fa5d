use crate::ExitCode;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use luthier::{EarlierRun, TestFigures};
use time::OffsetDateTime;
use time::macros::format_description;

use super::{OutputArguments, OutputFormat, open_cache, print_json, with_engine};
use crate::settings::{CacheSettings, DataSettings, SeedSettings, Settings};
use crate::terminal::Progress;

/// List earlier runs of the pipeline, with what each changed and what came of it; or go back to one
///
/// The last run comes first. The cache knows as many as `luthier cache gc` has left. `--restore N` writes the features, the
/// model and the report of run N again, and moves or changes no photograph: the next `luthier pipeline` is about what is
/// in the folders then.
#[derive(Args)]
#[command(after_help = "Examples:
  luthier runs
  luthier runs --restore 3
  luthier runs --out other --json")]
pub(crate) struct Arguments {
    /// Go back to the run of this number
    #[arg(long, value_name = "N")]
    restore: Option<i64>,
    /// Folder of features/, models/ and reports/, as `luthier pipeline` was told
    #[arg(long, value_name = "DIR", default_value = ".", env = "LUTHIER_OUT")]
    out: PathBuf,
    #[command(flatten)]
    output: OutputArguments,
    #[command(flatten)]
    data: DataSettings,
    #[command(flatten)]
    seed: SeedSettings,
    #[command(flatten)]
    cache: CacheSettings,
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments {
        restore,
        out,
        output,
        data,
        seed,
        cache,
    } = arguments;
    let settings = Settings {
        data,
        seed,
        cache,
        ..Settings::default()
    };
    let cache = open_cache(&settings)?;
    if let Some(number) = restore {
        let source = settings.data_source()?;
        let outputs = with_engine(&cache, progress, |engine| engine.restore(&source, number, &out))?;
        match output.format() {
            OutputFormat::Json => print_json(&outputs)?,
            OutputFormat::Text => outln!(
                "run {number} is back\nmodel {}\nreport {}",
                outputs.model.display(),
                outputs.report.display()
            ),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut runs = with_engine(&cache, progress, |engine| engine.runs(&out))?;
    runs.reverse();
    match output.format() {
        OutputFormat::Json => print_json(&runs)?,
        OutputFormat::Text if runs.is_empty() => {
            let out = out.display();
            progress.say(&format!(
                "no run of `luthier pipeline` wrote to {out}, as far as this cache knows"
            ));
        }
        OutputFormat::Text => print(&runs)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print(runs: &[EarlierRun]) -> Result<()> {
    let figure = |figures: Option<TestFigures>, of: fn(TestFigures) -> f64| match figures {
        Some(figures) => format!("{:.4}", of(figures)),
        None => "–".to_owned(),
    };
    let row = |run: &EarlierRun| {
        [
            run.number.to_string(),
            when(run.time),
            run.images.map_or_else(|| "–".to_owned(), |n| n.to_string()),
            figure(run.test, |test| test.accuracy),
            figure(run.test, |test| test.macro_f1),
            figure(run.held_out, |held_out| held_out.accuracy),
        ]
    };
    let titles = ["run", "used", "images", "accuracy", "macro F1", "held out"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(titles).chain(runs.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let changes = std::iter::once("what changed".to_owned()).chain(runs.iter().map(|run| run.changed.to_string()));
    for (row, changed) in rows.iter().zip(changes) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:>width$}"));
        outln!("{}  {changed}", cells.collect::<Vec<String>>().join("  "));
    }
    Ok(())
}

/// The day and time, in UTC.
fn when(seconds: u64) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]");
    let time = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.and_then(|time| time.format(format).ok())
        .unwrap_or_else(|| "–".to_owned())
}
