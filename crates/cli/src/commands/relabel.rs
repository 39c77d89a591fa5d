use crate::ExitCode;
use std::path::Path;

use anyhow::{Result, bail};
use clap::Args;
use luthier::words::printable;
use luthier_artifact::file_names;
use luthier_cache::DryRun;

use super::open_cache;
use crate::problem::Problem;
use crate::settings::{CacheSettings, DataSettings, SeedSettings, Settings};
use crate::terminal::Progress;

/// Move files into the folders of the classes that were decided in decisions.jsonl
///
/// Without --apply it only says what would be moved. Nothing is overwritten: a file whose name is taken gets a number, as
/// in 1-2.jpg. Files that are left out by a decision stay where they are. The pipeline gives the same results before and
/// after.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  luthier relabel photos                          says what would be moved\n  luthier relabel --train-dir data/train --test-dir data/test --apply"
)]
pub(crate) struct Arguments {
    /// Move the files
    #[arg(long)]
    apply: bool,
    #[command(flatten)]
    data: DataSettings,
    #[command(flatten)]
    seed: SeedSettings,
    #[command(flatten)]
    cache: CacheSettings,
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments {
        apply,
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
    let data = super::data(&settings)?;
    if data.source.decisions.is_none() {
        bail!(Problem::usage("no decisions.jsonl here").hint("name the file: --decisions FILE"));
    }
    let dry_run = if apply { DryRun::No } else { DryRun::Yes };
    let mut lines = Vec::new();
    let shown = |path: &Path| printable(&file_names::name_of(path));
    let told = |from: &Path, to: &Path| lines.push(format!("{}  → {}", shown(from), shown(to)));
    let done = luthier::relabel(&data, &open_cache(&settings)?, dry_run, progress, told);
    // What was done before an error, too.
    for line in lines {
        outln!("{line}");
    }
    let done = done?;
    match done.as_slice() {
        [] => outln!("every file is in the folder of its class"),
        done => outln!("{}", done.join("\n")),
    }
    if !apply && !done.is_empty() {
        progress.say("note: --apply moves them");
    }
    Ok(ExitCode::SUCCESS)
}
