//! `cargo xtask scale`: what a run costs as the number of images grows.
//!
//! For each number of images this makes so many small JPEGs, puts features into a cache as if they had been embedded
//! (a hundred thousand images would take an hour), and then runs `luthier` as its users do: once to make everything
//! else, then again and again with nothing changed, and with one image added. It prints a Markdown table of medians.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use luthier_artifact::{Digest, Key};
use luthier_benches::{features_of_rows, jpeg};
use luthier_cache::Cache;
use luthier_extract::{
    Decoding, Device, ExtractorConfig, Framing, Limits, PerceptualHash, Pooling, Precision, WeightsSource,
};
use wait4::Wait4;

/// How often each run is repeated.
const REPETITIONS: usize = 5;

/// Above this, training would need more memory than most machines have: only `luthier extract` runs.
const LARGEST_TRAINING: usize = 100_000;

const N_CLASSES: usize = 10;

/// How many images become features at once.
const CHUNK: usize = 2048;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let folder = PathBuf::from(arguments.next().context("usage: luthier-scale FOLDER COUNT...")?);
    println!("| images | run | time | memory |");
    println!("|---:|---|---:|---:|");
    for count in arguments {
        let count: usize = count.to_str().context("a count")?.parse()?;
        let folder = folder.join(count.to_string());
        measure(&Data::make(&folder, count, Looks::Photographs)?)?;
        fs::remove_dir_all(&folder)?;
        if count <= LARGEST_TRAINING {
            let run = Data::make(&folder, count, Looks::Scans)?.run("pipeline")?;
            print_row(
                count,
                "pipeline",
                "scans of one brightness, features cached, all else new",
                &[run],
            );
            fs::remove_dir_all(&folder)?;
        }
    }
    Ok(())
}

fn measure(data: &Data) -> Result<()> {
    let command = if data.count > LARGEST_TRAINING {
        "extract"
    } else {
        "pipeline"
    };
    let row = |run: &str, runs: &[Run]| print_row(data.count, command, run, runs);
    row("features cached, all else new", &[data.run(command)?]);
    // A file is trusted by its stat only once it has been at rest for two seconds.
    data.run(command)?;
    let repeat = |prepare: &dyn Fn(usize) -> Result<()>| -> Result<Vec<Run>> {
        let run = |n| {
            prepare(n)?;
            data.run(command)
        };
        (0..REPETITIONS).map(run).collect()
    };
    row("nothing changed", &repeat(&|_| Ok(()))?);
    row("one test image added", &repeat(&|n| data.add("test", n))?);
    data.run(command)?;
    row(
        "one training image added",
        &[data.add("train", 0).and_then(|()| data.run(command))?],
    );
    data.lose_files()?;
    row("what is known of files lost", &[data.run(command)?]);
    Ok(())
}

fn print_row(count: usize, command: &str, run: &str, runs: &[Run]) {
    println!("| {count} | `{command}`, {run} | {} |", Run::summary(runs));
}

/// How the images look, as far as the search for look-alikes goes.
#[derive(Clone, Copy)]
enum Looks {
    /// Of all kinds of brightness and contrast.
    Photographs,
    /// Of one brightness and contrast.
    Scans,
}

/// What a run cost.
struct Run {
    seconds: f64,
    mebibytes: f64,
}

impl Run {
    /// Median time with the spread of the runs, and the highest memory of any.
    fn summary(runs: &[Run]) -> String {
        let mut seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let memory = runs.iter().map(|run| run.mebibytes).fold(0.0, f64::max);
        let spread = match seconds.as_slice() {
            [first, .., last] => format!(" ({first:.2} to {last:.2})"),
            _ => String::new(),
        };
        format!("{:.2} s{spread} | {memory:.0} MiB", seconds[seconds.len() / 2])
    }
}

/// Folders of images, and a cache that knows their features.
struct Data {
    folder: PathBuf,
    count: usize,
    /// A small photograph.
    photo: Vec<u8>,
}

impl Data {
    fn make(folder: &Path, count: usize, looks: Looks) -> Result<Self> {
        let data = Data {
            folder: folder.to_owned(),
            count,
            photo: jpeg(96, 96, 1),
        };
        // Of a measurement that was ended.
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        for split in ["train", "test"] {
            for class in 0..N_CLASSES {
                fs::create_dir_all(folder.join(split).join(format!("class-{class}")))?;
            }
        }
        let cache = Cache::open(&folder.join(".luthier"))?;
        let (key, hash_key) = (extractor()?.digest(), PerceptualHash::descriptor(Decoding::Scaled));
        for first in (0..count).step_by(CHUNK) {
            let places = first..count.min(first + CHUNK);
            let rows = features_of_rows(places.clone(), N_CLASSES);
            let (mut features, mut hashes) = (Vec::new(), Vec::new());
            for place in places {
                let bytes = data.photo(place);
                fs::write(data.path(place), &bytes)?;
                let (image, row) = (Digest::of(&bytes), rows.row(place - first));
                // All files look the same; what the cache knows of them does not.
                let [brightness, contrast] = match looks {
                    Looks::Photographs => [0, 1].map(|byte| f32::from(image.as_bytes()[byte])),
                    Looks::Scans => [215.0, 25.0],
                };
                let hash = row.iter().map(move |value| (brightness + contrast * value).min(255.0));
                hashes.push((image, hash.take(PerceptualHash::WIDTH).collect()));
                features.push((image, row.to_vec()));
            }
            cache.store_features(&key, &features)?;
            cache.store_features(&hash_key, &hashes)?;
            eprint!("\r{} of {count} images made", count.min(first + CHUNK));
            std::io::stderr().flush()?;
        }
        eprintln!();
        Ok(data)
    }

    /// Every tenth image of a class is for the test.
    fn path(&self, place: usize) -> PathBuf {
        let split = if (place / N_CLASSES) % 10 == 9 { "test" } else { "train" };
        let class = format!("class-{}", place % N_CLASSES);
        self.folder.join(split).join(class).join(format!("{place:08}.jpg"))
    }

    /// The photograph with a comment that makes its bytes its own, of 1 to 5 KB.
    fn photo(&self, place: usize) -> Vec<u8> {
        let comment = format!("image {place:012} {}", ".".repeat(place * 37 % 3000));
        let length = (comment.len() as u16 + 2).to_be_bytes();
        let (start, rest) = self.photo.split_at(2);
        [start, &[0xFF, 0xFE], &length, comment.as_bytes(), rest].concat()
    }

    fn add(&self, split: &str, n: usize) -> Result<()> {
        let path = self.folder.join(split).join("class-0").join(format!("new-{n}.jpg"));
        let photo = jpeg(96, 96, 1000 + n as u32 + if split == "test" { 100 } else { 0 });
        Ok(fs::write(path, photo)?)
    }

    /// Removes from the cache all that it knows of files and runs: the results of stages and the features stay.
    fn lose_files(&self) -> Result<()> {
        for records in ["files", "runs", "exports"] {
            fs::remove_dir_all(self.folder.join(".luthier").join(records))?;
        }
        Ok(())
    }

    fn run(&self, command: &str) -> Result<Run> {
        let luthier = std::env::current_exe()?.with_file_name("luthier");
        let log = self.folder.join("log.txt");
        let start = Instant::now();
        let mut command = Command::new(luthier)
            .arg(command)
            .args(["--train-dir", "train", "--test-dir", "test", "--weights", "untrained"])
            // The default scale of C is no subject here.
            .args(if command == "pipeline" {
                &["--c", "0.01", "--variance", "0.9"][..]
            } else {
                &[]
            })
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let ended = command.wait4()?;
        let seconds = start.elapsed().as_secs_f64();
        ensure!(ended.status.success(), "{}", fs::read_to_string(&log)?);
        Ok(Run {
            seconds,
            mebibytes: ended.rusage.maxrss as f64 / f64::from(1 << 20),
        })
    }
}

/// What `luthier` knows features by that it makes with these arguments.
fn extractor() -> Result<Key> {
    let config = ExtractorConfig {
        views: Framing::Squash.into(),
        pooling: Pooling::default(),
        decode: Decoding::Scaled,
        limits: Limits::default(),
        weights: WeightsSource::Untrained,
        precision: Precision::Fp32,
        device: Device::Cpu,
        batch: None,
    };
    let [key] = config.keys()?.try_into().ok().context("one view has one key")?;
    Ok(key)
}
