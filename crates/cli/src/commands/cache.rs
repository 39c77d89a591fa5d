use crate::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use bytesize::ByteSize;
use clap::{Args, Subcommand};
use luthier_cache::{
    Cache, CacheStats, Copied, DescriptorStats, DryRun, GcLimits, GcReport, GoneFolders, PruneReport, Remote, Reuse,
    VerifyReport,
};
use serde::Serialize;

use super::{OutputArguments, OutputFormat, print_json};
use crate::problem::Problem;
use crate::settings::{CacheSettings, Settings};
use crate::terminal::Progress;
use luthier::words::counted;

#[derive(Subcommand)]
#[command(
    after_help = "Examples:\n  luthier cache stats\n  luthier cache gc --keep-runs 3 --dry-run\n  luthier cache gc --max-size 5GiB"
)]
pub(crate) enum Command {
    /// Show what the cache holds, and how much of it the last run used
    #[command(after_help = "Example:\n  luthier cache stats --cache-dir /data/.luthier --json")]
    Stats {
        /// Also count what machines share, at --cache-remote
        #[arg(long)]
        remote: bool,
        #[command(flatten)]
        arguments: Arguments,
    },
    /// Copy features to where machines share them
    ///
    /// Runs with --cache-remote do so by themselves, with what they have computed. This adds what was there before.
    #[command(after_help = "Example:\n  luthier cache push --cache-remote s3://bucket/cache")]
    Push(Arguments),
    /// Copy all features from where machines share them
    ///
    /// Runs with --cache-remote fetch what they need by themselves. This makes a cache that needs no remote.
    #[command(after_help = "Example:\n  luthier cache pull --cache-remote s3://bucket/cache")]
    Pull(Arguments),
    /// Check everything in the cache, and forget what is damaged
    ///
    /// Every entry is compared with its digest. Unfinished files of processes that died are removed, unless another
    /// process uses the cache.
    #[command(after_help = "Example:\n  luthier cache verify")]
    Verify(Arguments),
    /// Remove what recent runs did not use
    ///
    /// With several limits, only what runs within all limits used is kept. A run that had nothing to do counts as well.
    /// What an interrupted run stored is kept for 30 days, or for --keep-days. While another process uses the cache, gc
    /// stops with an error instead of waiting.
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
        /// Keep what was used last, up to about this size, such as 500MB or 2GiB
        #[arg(long, value_name = "SIZE", value_parser = bytes)]
        max_size: Option<u64>,
        /// Only say how much would be removed
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        arguments: Arguments,
    },
    /// Forget the features of images that no longer exist
    ///
    /// An image no longer exists if two things are true. The last run of every project did without it. And no file that
    /// Luthier has read, and that is unchanged since, has its bytes. If the image comes back, it goes through the network
    /// again.
    ///
    /// A data folder that is missing, or has no files now, may be on a drive that is not plugged in: what is known of its
    /// images is kept, unless --gone-folders is given.
    #[command(after_help = "Example:\n  luthier cache prune-images --dry-run")]
    PruneImages {
        /// Also forget the images of data folders that are missing or have no files now
        #[arg(long)]
        gone_folders: bool,
        /// Only say how much would be forgotten
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        arguments: Arguments,
    },
}

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    output: OutputArguments,
    #[command(flatten)]
    cache: CacheSettings,
}

impl Arguments {
    fn settings(&self) -> Settings {
        Settings {
            cache: self.cache.clone(),
            ..Settings::default()
        }
    }
}

/// Where machines share features, which must be named.
fn remote_of(arguments: &Arguments) -> Result<Remote> {
    let settings = arguments.settings();
    let url = settings.cache_remote().ok_or_else(|| {
        Problem::usage("no place is named where machines share features")
            .hint("name it with --cache-remote URL, or as cache-remote under [cache] in luthier.toml")
    })?;
    Ok(Remote::open(url)?)
}

/// What `stats` prints.
#[derive(Serialize)]
struct StatsOutput {
    #[serde(flatten)]
    stats: CacheStats,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<SharedStats>,
}

/// What machines share.
#[derive(Serialize)]
struct SharedStats {
    url: String,
    segments: usize,
    bytes: u64,
}

impl SharedStats {
    fn of(remote: &Remote) -> Result<Self> {
        let segments = remote.segments()?;
        Ok(SharedStats {
            url: remote.url().to_owned(),
            segments: segments.len(),
            bytes: segments.iter().map(|(_, bytes)| bytes).sum(),
        })
    }
}

fn describe_shared(shared: &SharedStats) -> String {
    format!(
        "remote     {:>8}  {:>10}  {}\n",
        shared.segments,
        size(shared.bytes),
        shared.url
    )
}

fn describe_copied(verb: &str, copied: &Copied) -> String {
    format!(
        "{verb} {} ({})",
        counted(copied.segments, "segment"),
        size(copied.bytes)
    )
}

pub(crate) fn run(command: Command, progress: &Progress) -> Result<ExitCode> {
    let open = |arguments: &Arguments| Cache::open(&arguments.settings().cache_dir());
    match command {
        Command::Stats { remote, arguments } => {
            let remote = remote.then(|| remote_of(&arguments)).transpose()?;
            let shared = remote.as_ref().map(SharedStats::of).transpose()?;
            let stats = StatsOutput {
                stats: open(&arguments)?.stats()?,
                remote: shared,
            };
            print(&arguments, &stats, |StatsOutput { stats, remote }| {
                describe_stats(stats) + &remote.as_ref().map(describe_shared).unwrap_or_default()
            })
        }
        Command::Push(arguments) => {
            let remote = remote_of(&arguments)?;
            let copied = open(&arguments)?.with_remote(remote).push()?;
            print(&arguments, &copied, |copied| describe_copied("pushed", copied))
        }
        Command::Pull(arguments) => {
            let remote = remote_of(&arguments)?;
            let copied = open(&arguments)?.with_remote(remote).pull()?;
            print(&arguments, &copied, |copied| describe_copied("pulled", copied))
        }
        Command::Verify(arguments) => {
            let report = open(&arguments)?.verify(progress)?;
            print(&arguments, &report, describe_check)?;
            Ok(ExitCode::from(u8::from(is_damaged(&report))))
        }
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
            let mode = mode(dry_run);
            let report = open(&arguments)?.gc(&limits, mode, progress)?;
            print(&arguments, &report, |report| describe_gc(report, mode))
        }
        Command::PruneImages {
            arguments,
            gone_folders,
            dry_run,
        } => {
            let mode = mode(dry_run);
            let gone_folders = if gone_folders {
                GoneFolders::Forget
            } else {
                GoneFolders::Keep
            };
            let report = open(&arguments)?.prune_images(mode, gone_folders, progress)?;
            print(&arguments, &report, |report| describe_pruning(report, mode))
        }
    }
}

fn mode(dry_run: bool) -> DryRun {
    if dry_run { DryRun::Yes } else { DryRun::No }
}

fn print<T: Serialize>(arguments: &Arguments, value: &T, describe: impl FnOnce(&T) -> String) -> Result<ExitCode> {
    match arguments.output.format() {
        OutputFormat::Json => print_json(value)?,
        OutputFormat::Text => outln!("{}", describe(value).trim_end()),
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
    text += &format!("segments   {:>8}  {:>10}\n", stats.segments, size(stats.segment_bytes));
    text += &format!(
        "records              {:>10}  {}, {}, {}\n",
        size(stats.record_bytes),
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
        "pooling",
        "decode",
        "precision",
        "device",
    ]
    .map(|name| {
        let part = descriptor.parts.iter().find(|part| part.name == name)?;
        Some(match name {
            "pooling" => format!("{} pooling", part.value),
            _ => part.value.clone(),
        })
    });
    values.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn is_damaged(report: &VerifyReport) -> bool {
    let VerifyReport {
        objects: _,
        features: _,
        damaged_objects,
        damaged_features,
        forgotten_executions,
        damaged_records,
        left_over_files: _,
    } = report;
    let n_damaged = *damaged_objects as u64 + damaged_features + forgotten_executions + damaged_records;
    n_damaged > 0
}

fn describe_check(report: &VerifyReport) -> String {
    let mut text = format!(
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
        Some(n) => text += &format!("{} of processes that died removed\n", counted(n, "unfinished file")),
        None => text += "unfinished files kept: another luthier process uses this cache\n",
    }
    text
}

fn describe_gc(report: &GcReport, mode: DryRun) -> String {
    let mut text = format!(
        "{} {} ({}), features of {} ({}), {}, {}\n",
        match mode {
            DryRun::Yes => "would remove",
            DryRun::No => "removed",
        },
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
            counted(report.left_over_files, "unfinished file"),
            size(report.left_over_bytes)
        );
    }
    text
}

fn describe_pruning(report: &PruneReport, mode: DryRun) -> String {
    let mut text = format!(
        "{} features of {} ({}) and {} no longer there\n",
        match mode {
            DryRun::Yes => "would forget",
            DryRun::No => "forgot",
        },
        counted(report.features, "image"),
        size(report.feature_bytes),
        counted(report.files, "file")
    );
    for kept in &report.kept_folders {
        text += &format!(
            "kept {}: folder {} has no files now; is its drive plugged in? (--gone-folders forgets it)\n",
            counted(kept.files, "file"),
            kept.folder.display()
        );
    }
    text
}

/// A number of bytes for people.
fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// Reads 500, 500MB or 1.5GiB: K, M, G and T are powers of 1000, with an i of 1024.
fn bytes(text: &str) -> std::result::Result<u64, String> {
    let size = text.parse::<ByteSize>().map(|size| size.as_u64());
    size.map_err(|_| format!("expected a size such as 500MB or 2GiB, found {text}"))
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
