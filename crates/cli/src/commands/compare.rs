mod render;

use crate::ExitCode;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use luthier_eval::{Comparison, Error, ReportedRun, Verdict};
use serde::Serialize;

use self::render::p_value;
use super::print_json;
use crate::problem::Problem;
use crate::terminal::Progress;

/// Compare two reports, and say whether a difference is more than chance
///
/// Shows what became better and what became worse: figures, classes and single images. Images are matched by their bytes, whatever their names. All figures are over the images that both runs tested.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  luthier compare old/reports reports\n  luthier compare main.json reports/report.json --format markdown > comment.md\n  luthier compare main.json reports/report.json --fail-if-worse"
)]
pub(crate) struct Arguments {
    /// Run to compare with: a report.json, its folder, or the --out of a pipeline
    #[arg(value_name = "BASELINE")]
    baseline: PathBuf,
    /// Run to judge, named in the same ways
    #[arg(value_name = "CANDIDATE")]
    candidate: PathBuf,
    /// What to print: text, Markdown (for a pull request) or JSON (one document)
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    format: Format,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Exit with status 1 if the candidate is worse by more than chance
    ///
    /// The confidence level is the one of the candidate's report.
    #[arg(long, alias = "fail_if_worse")]
    fail_if_worse: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Markdown,
    Json,
}

/// Changes when a field of the JSON document changes its name or meaning, not when one is added.
const SCHEMA: &str = "luthier-comparison/1";

/// A comparison, and the files it is of.
#[derive(Serialize)]
pub(crate) struct Compared {
    schema: &'static str,
    reports: Reports,
    #[serde(flatten)]
    comparison: Comparison,
}

#[derive(Serialize)]
struct Reports {
    baseline: String,
    candidate: String,
}

pub(crate) fn run(arguments: Arguments, _: &Progress) -> Result<ExitCode> {
    let Arguments {
        baseline,
        candidate,
        format,
        json,
        fail_if_worse,
    } = arguments;
    let format = if json { Format::Json } else { format };
    let (baseline, candidate) = (find_report(&baseline)?, find_report(&candidate)?);
    let (before, after) = (ReportedRun::read(&baseline)?, ReportedRun::read(&candidate)?);
    let compared = Compared::new(&baseline, &before, &candidate, &after)?;
    match format {
        Format::Text => out!("{}", compared.text()),
        Format::Markdown => out!("{}", compared.markdown()),
        Format::Json => print_json(&compared)?,
    }
    if fail_if_worse && compared.comparison.verdict == Verdict::Worse {
        bail!(Problem::new(format!(
            "{}: worse than {}: accuracy {:.4}, which was {:.4}, p = {}",
            candidate.display(),
            baseline.display(),
            compared.comparison.accuracy.candidate,
            compared.comparison.accuracy.baseline,
            p_value(compared.comparison.mcnemar.p_value),
        )));
    }
    Ok(ExitCode::SUCCESS)
}

/// The `report.json` that a path stands for.
pub(crate) fn find_report(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let places = [path.join("report.json"), path.join("reports/report.json")];
    match places.into_iter().find(|place| place.exists()) {
        Some(report) => Ok(report),
        None => bail!(
            Problem::new(format!(
                "{}: expected report.json or reports/report.json in this folder, found neither",
                path.display()
            ))
            .hint("`luthier pipeline` and `luthier evaluate` write one")
        ),
    }
}

impl Compared {
    pub(crate) fn new(baseline: &Path, before: &ReportedRun, candidate: &Path, after: &ReportedRun) -> Result<Self> {
        let reports = Reports {
            baseline: baseline.display().to_string(),
            candidate: candidate.display().to_string(),
        };
        let comparison = Comparison::of(before, after).map_err(|error| match error {
            Error::NothingInCommon { .. } => {
                Problem::new(format!("{}, {}: {error}", reports.baseline, reports.candidate))
                    .hint("compare runs on the same test images; their names do not matter, their bytes and classes do")
                    .into()
            }
            error => anyhow::Error::from(error),
        })?;
        Ok(Compared {
            schema: SCHEMA,
            reports,
            comparison,
        })
    }
}
