use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use luthier_artifact::DryRun;
use serde::Serialize;

use super::open_cache;
use crate::settings::{CacheSettings, Settings};
use crate::terminal::Progress;

#[derive(Subcommand)]
#[command(after_help = "Example:\n  luthier cache gc --keep-runs 3 --dry-run")]
pub(crate) enum Command {
    /// Count what is stored
    Stats(Arguments),
    /// Read everything against its digest, and forget what is damaged
    Verify(Arguments),
    /// Remove what the last runs of every project did not use
    Gc {
        #[command(flatten)]
        arguments: Arguments,
        /// How many runs of every project to keep
        #[arg(long, value_name = "N", default_value_t = 10)]
        keep_runs: usize,
        /// Only count what would go
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    cache: CacheSettings,
    /// Print one JSON document on stdout
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(command: Command, _: &Progress) -> Result<ExitCode> {
    let open = |arguments: &Arguments| {
        open_cache(
            &Settings {
                cache: arguments.cache.clone(),
                ..Settings::default()
            }
            .with_lower_layers()?,
        )
    };
    match command {
        Command::Stats(arguments) => {
            let stats = open(&arguments)?.stats()?;
            print(&arguments, &stats, || {
                format!(
                    "{} artifacts, {}\n{} images' features, {} executions, {} known files, {} runs in an index of {}",
                    stats.objects,
                    mebibytes(stats.object_bytes),
                    stats.features,
                    stats.executions,
                    stats.files,
                    stats.runs,
                    mebibytes(stats.index_bytes)
                )
            })
        }
        Command::Verify(arguments) => {
            let report = open(&arguments)?.verify()?;
            print(&arguments, &report, || {
                format!(
                    "{} artifacts read, {} damaged and removed\n{} images' features read, {} damaged and removed\n\
                     {} executions without their results forgotten",
                    report.objects,
                    report.damaged_objects,
                    report.features,
                    report.damaged_features,
                    report.forgotten_executions
                )
            })
        }
        Command::Gc {
            arguments,
            keep_runs,
            dry_run,
        } => {
            let mode = if dry_run { DryRun::Yes } else { DryRun::No };
            let report = open(&arguments)?.gc(keep_runs, mode)?;
            print(&arguments, &report, || {
                format!(
                    "{} {} artifacts ({}), {} images' features, {} executions, {} runs",
                    if dry_run { "would remove" } else { "removed" },
                    report.objects,
                    mebibytes(report.object_bytes),
                    report.features,
                    report.executions,
                    report.runs
                )
            })
        }
    }
}

fn print(arguments: &Arguments, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<ExitCode> {
    if arguments.json {
        outln!("{}", serde_json::to_string_pretty(value)?);
    } else {
        outln!("{}", text());
    }
    Ok(ExitCode::SUCCESS)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
