//! The binary as its users run it, on untrained weights and small pictures.

#[cfg(unix)]
mod browser;
mod cache;
mod compare;
mod data;
mod deciding;
mod decisions;
mod edits;
mod export;
mod faults;
#[cfg(unix)]
mod kills;
mod music10;
mod original;
mod pipeline;
mod predict;
mod runs;
#[cfg(unix)]
mod serve;
mod settings;
mod sharing;
mod status;
#[cfg(unix)]
mod terminal;
#[cfg(unix)]
mod together;
mod views;
mod weights;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use image::codecs::bmp::BmpEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, Rgb, RgbImage};
use luthier::{STAGES, VIEWS};
use serde_json::Value;

/// A folder to run in, with a home of its own, so that nothing outside matters or is touched.
struct Project {
    root: tempfile::TempDir,
    /// `LUTHIER_SIZE`: the side in pixels of the images that the network takes.
    size: Option<&'static str>,
}

/// What a run of the binary gave.
struct Ran {
    status: i32,
    stdout: String,
    stderr: String,
}

const CLASSES: [&str; 3] = ["drum", "flute", "harp"];

impl Project {
    /// Without images.
    fn empty() -> Self {
        Project {
            root: tempfile::tempdir().unwrap(),
            size: Some("64"),
        }
    }

    /// With the 224 pixels that the network takes by default. The small images of other projects are a twelfth of the work.
    fn at_full_size(self) -> Self {
        Project { size: None, ..self }
    }

    /// With four training and two test images of each class.
    fn new() -> Self {
        let project = Project::empty();
        for (class, name) in CLASSES.iter().enumerate() {
            for n in 0..4 {
                project.write(&format!("data/train/{name}/{n}.jpg"), &photo(class, n));
            }
            for n in 4..6 {
                project.write(&format!("data/test/{name}/{n}.jpg"), &photo(class, n));
            }
        }
        project
    }

    fn path(&self, file: &str) -> PathBuf {
        self.root.path().join(file)
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        let path = self.path(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_luthier"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LUTHIER_")) {
            command.env_remove(name);
        }
        command
            .args(arguments)
            .current_dir(self.root.path())
            .env("HOME", self.path("home"))
            .env_remove("XDG_CACHE_HOME")
            .env_remove("TORCH_HOME")
            .env_remove("HF_HOME")
            .env_remove("HF_HUB_CACHE")
            .env("LUTHIER_WEIGHTS", "untrained")
            .env("LUTHIER_BATCH", "2")
            .envs(self.size.map(|size| ("LUTHIER_SIZE", size)))
            .env("SOURCE_DATE_EPOCH", "0")
            .stdin(Stdio::null());
        command
    }

    /// The binary under strace.
    fn traced(&self, options: &[&str], arguments: &[&str]) -> Command {
        let mut strace = Command::new("strace");
        strace.arg("-f").args(options);
        self.wrapped(strace, arguments)
    }

    /// The binary, run by another program that takes it and its arguments as its last arguments.
    fn wrapped(&self, mut program: Command, arguments: &[&str]) -> Command {
        let luthier = self.command(arguments);
        program
            .arg(luthier.get_program())
            .args(luthier.get_args())
            .current_dir(self.root.path())
            .stdin(Stdio::null());
        for (name, value) in luthier.get_envs() {
            match value {
                Some(value) => program.env(name, value),
                None => program.env_remove(name),
            };
        }
        program
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().unwrap())
    }

    /// Runs the pipeline on the images of [`Project::new`]; the result is what `--json` prints.
    fn pipeline(&self, arguments: &[&str]) -> Value {
        let ran = self.run(&[&PIPELINE[..], &["--json"], arguments].concat()).ok();
        serde_json::from_str(&ran.stdout).unwrap()
    }
}

const PIPELINE: [&str; 5] = ["pipeline", "--train-dir", "data/train", "--test-dir", "data/test"];

/// The images of [`Project::new`].
const FOLDERS: [&str; 4] = ["--train-dir", "data/train", "--test-dir", "data/test"];

impl Ran {
    fn of(output: Output) -> Self {
        Ran {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn ok(self) -> Self {
        assert_eq!(self.status, 0, "{}{}", self.stdout, self.stderr);
        self
    }

    /// The exit status and what stderr says from `error:` on.
    fn error(&self) -> (i32, &str) {
        let start = self
            .stderr
            .find("error: ")
            .unwrap_or_else(|| panic!("no error in {}", self.stderr));
        (self.status, self.stderr[start..].trim_end())
    }
}

/// A picture that says which class it is of, if one looks closely.
fn photo(class: usize, n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 90)
        .encode_image(&picture(60, 40, class, n))
        .unwrap();
    bytes
}

/// A small picture in a file whose length does not depend on what is in it.
fn bitmap(class: usize, n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    BmpEncoder::new(&mut bytes)
        .encode(&picture(12, 8, class, n), 12, 8, ExtendedColorType::Rgb8)
        .unwrap();
    bytes
}

fn picture(width: u32, height: u32, class: usize, n: usize) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let wave = (x as usize * (class + 1) * 9 + y as usize * (3 - class) * 7 + n * 11) % 256;
        Rgb([wave as u8, (255 * class / 2) as u8, (n * 40) as u8])
    })
}

/// What a run of the pipeline wrote below `out`, without what a killed one left half written, and without times.
fn results(out: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let folders = ["features", "models", "reports"].map(|folder| out.join(folder));
    let files = folders
        .iter()
        .filter(|folder| folder.exists())
        .flat_map(|folder| snapshot(folder));
    let of_run = files.filter(|(path, _)| !path.file_name().unwrap().to_string_lossy().starts_with(".luthier-"));
    of_run
        .map(|(path, bytes)| (path.strip_prefix(out).unwrap().to_owned(), bytes))
        .map(|(path, bytes)| {
            let is_report = path.starts_with("reports") && path.file_stem().is_some_and(|stem| stem == "report");
            let bytes = if is_report { without_times(&bytes) } else { bytes };
            (path, bytes)
        })
        .collect()
}

/// The lines of a report but for those that say how long a stage took, and without how far the photographs are from it.
fn without_times(report: &[u8]) -> Vec<u8> {
    let is_time = |line: &&str| {
        let of_stage = |stage| line.starts_with(&format!("<tr><th scope=\"row\">{stage}</th><td>"));
        STAGES.into_iter().chain([VIEWS]).any(of_stage) || line.trim_start().starts_with("\"seconds\":")
    };
    let report = str::from_utf8(report).unwrap();
    report
        .split_inclusive('\n')
        .filter(|line| !is_time(line))
        .collect::<String>()
        .replace("../", "")
        .into_bytes()
}

/// That two runs wrote the same files with the same bytes.
#[track_caller]
fn assert_same(found: &[(PathBuf, Vec<u8>)], expected: &[(PathBuf, Vec<u8>)], when: &str) {
    let names = |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{when}");
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        assert!(found == expected, "{} differs: {when}", name.display());
    }
}

/// Every file below a folder with its bytes, ordered by path.
fn snapshot(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    luthier_files(folder)
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "the result is sorted")]
fn luthier_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(luthier_files(&path))
        } else {
            files.push(path)
        }
    }
    files.sort();
    files
}
