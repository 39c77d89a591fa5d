use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::{Args, Subcommand};
use luthier_cache::{
    CacheStats, DescriptorStats, DryRun, GcLimits, GcReport, GoneFolders, PruneReport, Reuse, VerifyReport,
};
use serde::Serialize;

use super::open_cache;
use crate::settings::{CacheSettings, Settings};
use crate::terminal::Progress;
use crate::words::counted;

#[derive(Subcommand)]
#[command(
    after_help = "Examples:\n  luthier cache stats\n  luthier cache gc --keep-runs 3 --dry-run\n  luthier cache gc --max-size 5GiB"
)]
pub(crate) enum Command {
    /// Say what is stored, and what it spared the last run
    #[command(after_help = "Example:\n  luthier cache stats --cache-dir /data/.luthier --json")]
    Stats(Arguments),
    /// Read everything against its digest, and forget what is damaged
    ///
    /// Also lets SQLite check the index, which is made anew of what is whole if it is damaged, and removes what dead
    /// processes left unfinished, unless another process uses the cache.
    #[command(after_help = "Example:\n  luthier cache verify")]
    Verify(Arguments),
    /// Remove what recent runs did not use
    ///
    /// With several limits, a run must be within all of them for what it used to stay. A run with nothing to do is a use
    /// like any other. What an interrupted run stored stays for 30 days, or for --keep-days. While another process uses
    /// the cache, gc refuses: it does not wait.
    #[command(
        after_help = "Examples:\n  luthier cache gc --dry-run\n  luthier cache gc --keep-days 30\n  luthier cache gc --keep-runs 5 --max-size 2GiB"
    )]
    Gc {
        /// Keep what the last N runs of every project used [default: 10, without another limit]
        #[arg(long, value_name = "N")]
        keep_runs: Option<usize>,
        /// Keep what the runs of the last N days used
        #[arg(long, value_name = "N")]
        keep_days: Option<u64>,
        /// Keep what was used last, up to about this size: 500MB, 2GiB
        #[arg(long, value_name = "SIZE", value_parser = bytes)]
        max_size: Option<u64>,
        /// Only count what would go
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        arguments: Arguments,
    },
    /// Forget the features of images that are gone
    ///
    /// An image is gone if the last run of no project had it, and no file that Luthier has read and that is still
    /// unchanged in its place holds its bytes. Should it come back, it goes through the network again.
    #[command(after_help = "Example:\n  luthier cache prune-images --dry-run")]
    PruneImages {
        /// Only count what would be forgotten
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        arguments: Arguments,
    },
}

#[derive(Args)]
pub(crate) struct Arguments {
    /// Print one JSON document on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cache: CacheSettings,
}

pub(crate) fn run(command: Command, progress: &Progress) -> Result<ExitCode> {
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
        Command::Stats(arguments) => print(&arguments, &open(&arguments)?.stats()?, describe_stats),
        Command::Verify(arguments) => print(&arguments, &open(&arguments)?.verify(progress)?, describe_check),
        Command::Gc {
            arguments,
            keep_runs,
            keep_days,
            max_size,
            dry_run,
        } => {
            let is_limited = keep_runs.is_some() || keep_days.is_some() || max_size.is_some();
            let limits = GcLimits {
                runs: if is_limited { keep_runs } else { Some(10) },
                days: keep_days,
                bytes: max_size,
            };
            let report = open(&arguments)?.gc(&limits, mode(dry_run), progress)?;
            print(&arguments, &report, |report| describe_gc(report, dry_run))
        }
        Command::PruneImages { arguments, dry_run } => {
            let report = open(&arguments)?.prune_images(mode(dry_run), GoneFolders::Keep, progress)?;
            print(&arguments, &report, |report| describe_pruning(report, dry_run))
        }
    }
}

fn mode(dry_run: bool) -> DryRun {
    if dry_run { DryRun::Yes } else { DryRun::No }
}

fn print<T: Serialize>(arguments: &Arguments, value: &T, describe: impl FnOnce(&T) -> String) -> Result<ExitCode> {
    if arguments.json {
        outln!("{}", serde_json::to_string_pretty(value)?);
    } else {
        outln!("{}", describe(value).trim_end());
    }
    Ok(ExitCode::SUCCESS)
}

fn describe_stats(stats: &CacheStats) -> String {
    let mut text = format!("artifacts  {:>8}  {:>10}\n", stats.objects, size(stats.object_bytes));
    for output in &stats.outputs {
        let name = match (&output.stage, &output.output) {
            (Some(stage), Some(output)) if stage == output => stage.clone(),
            (Some(stage), Some(output)) => format!("{stage}: {output}"),
            _ => "others".to_owned(),
        };
        text += &format!("           {:>8}  {:>10}  {name}\n", output.objects, size(output.bytes));
    }
    text += &format!("features   {:>8}  {:>10}\n", stats.features, size(stats.feature_bytes));
    for descriptor in &stats.descriptors {
        let name = describe_descriptor(descriptor);
        text += &format!(
            "           {:>8}  {:>10}  {name}\n",
            descriptor.images,
            size(descriptor.bytes)
        );
    }
    text += &format!(
        "index                {:>10}  features among it; {}, {}, {}\n",
        size(stats.index_bytes),
        counted(stats.executions, "execution"),
        counted(stats.files, "known file"),
        counted(stats.runs, "run")
    );
    if let Some(last) = &stats.last_run {
        let Reuse {
            stages_reused,
            stages_run,
            images_reused,
            images_embedded,
        } = last.reuse;
        text += &format!(
            "last run   {stages_reused} of {} stages and {images_reused} of {} images from the cache, {} ({})\n",
            stages_reused + stages_run,
            images_reused + images_embedded,
            ago(last.time),
            last.project
        );
    }
    text
}

/// A descriptor by what distinguishes it; digests are shortened.
fn describe_descriptor(descriptor: &DescriptorStats) -> String {
    if descriptor.parts.is_empty() {
        return format!("descriptor {}", descriptor.descriptor.short());
    }
    let values = [
        "weights name",
        "view",
        "combine",
        "views",
        "decode",
        "precision",
        "device",
    ]
    .map(|name| {
        let part = descriptor.parts.iter().find(|part| part.name == name);
        part.map(|part| part.value.as_str())
    });
    values.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn describe_check(report: &VerifyReport) -> String {
    let mut text = String::new();
    if let Some(complaint) = &report.damaged_index {
        text += &format!("index damaged and made anew: {complaint}\n");
    }
    text += &format!(
        "{} read, {} damaged and removed\nfeatures of {} read, {} damaged and removed\n\
         {} without results and {} forgotten\n",
        counted(report.objects, "artifact"),
        report.damaged_objects,
        counted(report.features, "image"),
        report.damaged_features,
        counted(report.forgotten_executions, "execution"),
        counted(report.damaged_records, "damaged record")
    );
    match report.left_over_files {
        Some(n) => text += &format!("{} of dead processes removed\n", counted(n, "unfinished file")),
        None => text += "unfinished files left alone: another luthier process uses this cache\n",
    }
    text
}

fn describe_gc(report: &GcReport, dry_run: bool) -> String {
    let mut text = format!(
        "{} {} ({}), features of {} ({}), {}, {}\n",
        if dry_run { "would remove" } else { "removed" },
        counted(report.objects, "artifact"),
        size(report.object_bytes),
        counted(report.features, "image"),
        size(report.feature_bytes),
        counted(report.executions, "execution"),
        counted(report.runs, "run")
    );
    if report.left_over_files > 0 {
        text += &format!(
            "and {} ({})\n",
            counted(report.left_over_files, "unfinished or damaged file"),
            size(report.left_over_bytes)
        );
    }
    text
}

fn describe_pruning(report: &PruneReport, dry_run: bool) -> String {
    let mut text = format!(
        "{} features of {} ({}) and {} no longer there\n",
        if dry_run { "would forget" } else { "forgot" },
        counted(report.features, "image"),
        size(report.feature_bytes),
        counted(report.files, "file")
    );
    for kept in &report.kept_folders {
        text += &format!(
            "kept {}: folder {} has no files now; is its drive plugged in?\n",
            counted(kept.files, "file"),
            kept.folder.display()
        );
    }
    text
}

const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

/// A number of bytes for people.
fn size(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// Reads 500, 500MB or 1.5GiB: K, M, G and T are powers of 1000, with an i of 1024.
fn bytes(text: &str) -> std::result::Result<u64, String> {
    let expected = || format!("expected a size such as 500MB or 2GiB, found {text}");
    let split = text
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| expected())?;
    let unit = unit.trim().to_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let (prefix, base) = match unit.strip_suffix('i') {
        Some(prefix) if !prefix.is_empty() => (prefix, 1024_f64),
        _ => (unit, 1000.0),
    };
    let power = ["", "k", "m", "g", "t"]
        .iter()
        .position(|known| *known == prefix)
        .ok_or_else(expected)?;
    Ok((number * base.powi(power as i32)) as u64)
}

fn ago(time: u64) -> String {
    let age = SystemTime::now()
        .duration_since(UNIX_EPOCH + Duration::from_secs(time))
        .map_or(0, |age| age.as_secs());
    match age {
        0..60 => "just now".to_owned(),
        60..3600 => format!("{} min ago", age / 60),
        3600..86_400 => format!("{} h ago", age / 3600),
        _ => format!("{} ago", counted(age / 86_400, "day")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, expected) in [
            ("0", 0),
            ("500", 500),
            ("500b", 500),
            ("2k", 2000),
            ("500MB", 500_000_000),
            ("1.5 GiB", 3 << 29),
            ("2gi", 2 << 30),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "GiB", "-1", "2 parsecs", "1.2.3", "5i"] {
            let error = bytes(text).unwrap_err();
            assert_eq!(error, format!("expected a size such as 500MB or 2GiB, found {text}"));
        }
        assert_eq!(
            [size(0), size(1023), size(1536), size(5 << 30)],
            ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
        );
    }
}
