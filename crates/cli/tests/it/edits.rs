//! Edits of a data set in any order: what an incremental run writes is what a run from scratch writes, byte for byte, and
//! it embeds exactly the images whose bytes no run before has embedded.
//!
//! All files carry modification times of long ago, each its own, so that digests are remembered by stat from the first
//! run on: the stat must tell every edit but the swap of bytes under an unchanged stat, for which there is `--rehash`.
//! The edits are the same in every run of the tests. `LUTHIER_TEST_EDITS=N` makes N sequences of them in place of 2.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{RngSeed, TestRunner};
use serde_json::Value;

use crate::{CLASSES, PIPELINE, Project, Ran, assert_same, bitmap, luthier_files, results};

const SEQUENCES: u32 = 2;

#[derive(Clone, Debug)]
enum Edit {
    Add(Folder, u8),
    /// Other bytes in place: same size, another modification time.
    Change(Index, u8),
    /// Other bytes by way of a new file that is renamed to the old name: same size and modification time.
    Replace(Index, u8),
    Rename(Index),
    Move(Index, Folder),
    Duplicate(Index, Folder),
    Delete(Index),
    Touch(Index),
    SwapNames(Index, Index),
    /// Size, modification time and inode stay.
    SwapBytes(Index, Index),
    DamageOrRepair(Index),
    OtherVariance,
    OtherResize,
}

/// A class's folder in one of the splits.
#[derive(Clone, Debug)]
struct Folder(String);

fn folder() -> impl Strategy<Value = Folder> {
    let class = || prop::sample::select(CLASSES.to_vec());
    prop_oneof![
        6 => class().prop_map(|class| Folder(format!("data/train/{class}"))),
        3 => class().prop_map(|class| Folder(format!("data/test/{class}"))),
        // A class that comes and goes.
        1 => Just(Folder("data/train/lute".to_owned())),
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    let file = any::<Index>;
    // Few enough to meet again: the same picture is then in two places, or comes back.
    let picture = || 0..24_u8;
    prop_oneof![
        4 => (folder(), picture()).prop_map(|(folder, picture)| Edit::Add(folder, picture)),
        3 => (file(), picture()).prop_map(|(file, picture)| Edit::Change(file, picture)),
        2 => (file(), picture()).prop_map(|(file, picture)| Edit::Replace(file, picture)),
        2 => file().prop_map(Edit::Rename),
        3 => (file(), folder()).prop_map(|(file, folder)| Edit::Move(file, folder)),
        2 => (file(), folder()).prop_map(|(file, folder)| Edit::Duplicate(file, folder)),
        3 => file().prop_map(Edit::Delete),
        1 => file().prop_map(Edit::Touch),
        2 => (file(), file()).prop_map(|(a, b)| Edit::SwapNames(a, b)),
        2 => (file(), file()).prop_map(|(a, b)| Edit::SwapBytes(a, b)),
        3 => file().prop_map(Edit::DamageOrRepair),
        1 => Just(Edit::OtherVariance),
        1 => Just(Edit::OtherResize),
    ]
}

#[test]
fn an_incremental_run_gives_what_a_run_from_scratch_gives() {
    let sequences = std::env::var("LUTHIER_TEST_EDITS").map_or(SEQUENCES, |number| {
        number.parse().expect("LUTHIER_TEST_EDITS is a number of sequences")
    });
    let config = ProptestConfig {
        cases: sequences,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        max_shrink_iters: 20,
        ..ProptestConfig::default()
    };
    // Mostly one edit between two runs, sometimes a whole evening's.
    let step = prop_oneof![3 => vec(edit(), 1), 1 => vec(edit(), 2..8)];
    let outcome = TestRunner::new(config).run(&vec(step, 9..=11), |steps| {
        let mut photos = Photos::new();
        photos.compare(&[]);
        for edits in &steps {
            for edit in edits {
                photos.apply(edit);
            }
            photos.compare(edits);
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// A data set under edits.
struct Photos {
    project: Project,
    /// How many modification times were given so far.
    clock: u64,
    must_rehash: bool,
    variance: &'static str,
    resize: &'static str,
    /// Images that were embedded, with the way of resizing.
    embedded: HashSet<(&'static str, Vec<u8>)>,
}

impl Photos {
    fn new() -> Self {
        let mut photos = Photos {
            project: Project::empty(),
            clock: 0,
            must_rehash: false,
            variance: "0.98",
            resize: "squash",
            embedded: HashSet::new(),
        };
        for (class, name) in CLASSES.iter().enumerate() {
            for (n, split) in ["train", "train", "test"].iter().enumerate() {
                photos.write(Path::new(&format!("data/{split}/{name}/{n}.bmp")), &bitmap(class, n));
            }
        }
        photos
    }

    fn apply(&mut self, edit: &Edit) {
        match edit {
            Edit::Add(Folder(folder), picture) => {
                let path = self.new_name(Path::new(folder));
                self.write(&path, &any_picture(*picture));
            }
            Edit::Change(file, picture) => self.write(&self.file(file), &any_picture(*picture)),
            Edit::Replace(file, picture) => {
                let (path, fresh) = (self.file(file), self.project.path("fresh"));
                let time = modified(&path);
                fs::write(&fresh, any_picture(*picture)).unwrap();
                set_modified(&fresh, time);
                fs::rename(fresh, path).unwrap();
            }
            Edit::Rename(file) => {
                let path = self.file(file);
                self.rename(&path, path.parent().unwrap());
            }
            // A folder without images is an error, which is tested elsewhere; it would hide all that comes after.
            Edit::Move(file, _) | Edit::Delete(file) if self.is_last_of_its_folder(file) => {}
            Edit::Move(file, Folder(folder)) => self.rename(&self.file(file), Path::new(folder)),
            Edit::Delete(file) => fs::remove_file(self.file(file)).unwrap(),
            Edit::Duplicate(file, Folder(folder)) => {
                let bytes = fs::read(self.file(file)).unwrap();
                let path = self.new_name(Path::new(folder));
                self.write(&path, &bytes);
            }
            Edit::Touch(file) => {
                let path = self.file(file);
                self.write(&path, &fs::read(&path).unwrap());
            }
            Edit::SwapNames(a, b) => {
                let (a, b, aside) = (self.file(a), self.file(b), self.project.path("aside"));
                set_modified(&b, modified(&a));
                fs::rename(&a, &aside).unwrap();
                if a != b {
                    fs::rename(&b, &a).unwrap();
                }
                fs::rename(&aside, &b).unwrap();
            }
            Edit::SwapBytes(a, b) => {
                let paths = [self.file(a), self.file(b)];
                let bytes = paths.each_ref().map(|path| fs::read(path).unwrap());
                for (path, bytes) in paths.iter().zip(bytes.iter().rev()) {
                    let time = modified(path);
                    fs::write(path, bytes).unwrap();
                    set_modified(path, time);
                }
                self.must_rehash = true;
            }
            Edit::DamageOrRepair(file) => {
                let path = self.file(file);
                let mut bytes = fs::read(&path).unwrap();
                bytes[0] ^= 0x20;
                self.write(&path, &bytes);
            }
            Edit::OtherVariance => self.variance = if self.variance == "0.98" { "0.6" } else { "0.98" },
            Edit::OtherResize => self.resize = if self.resize == "squash" { "crop" } else { "squash" },
        }
    }

    /// Runs the pipeline on what is there, and beside it from scratch.
    fn compare(&mut self, edits: &[Edit]) {
        for folder in ["scratch", "scratch-cache"] {
            if self.project.path(folder).exists() {
                fs::remove_dir_all(self.project.path(folder)).unwrap();
            }
        }
        let scratch = self.start(&["--out", "scratch", "--cache-dir", "scratch-cache", "--threads", "1"]);
        let rehash: &[&str] = if self.must_rehash { &["--rehash"] } else { &[] };
        let incremental = Ran::of(self.start(rehash).wait_with_output().unwrap());
        let scratch = Ran::of(scratch.wait_with_output().unwrap());
        self.must_rehash = false;

        let missing = self.not_embedded();
        if scratch.status != 0 {
            assert_eq!(incremental.error(), scratch.error(), "after {edits:?}");
            // This is known only when all others have been embedded.
            if scratch.error().1.contains("none of its") {
                self.embedded.extend(missing);
            }
            return;
        }
        let outcome: Value = serde_json::from_str(&incremental.ok().stdout).unwrap();
        assert_eq!(outcome["images"]["embedded"], missing.len(), "after {edits:?}");
        self.embedded.extend(missing);
        let (found, expected) = (
            results(self.project.root.path()),
            results(&self.project.path("scratch")),
        );
        assert_same(&found, &expected, &format!("after {edits:?}"));
    }

    fn start(&self, more: &[&str]) -> Child {
        let settings = [
            "--json",
            "--batch",
            "1",
            "--variance",
            self.variance,
            "--resize",
            self.resize,
        ];
        let mut command = self.project.command(&[&PIPELINE[..], &settings, more].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The distinct readable images that no run has embedded with these settings.
    fn not_embedded(&self) -> HashSet<(&'static str, Vec<u8>)> {
        let files = self.files().into_iter();
        let images: HashSet<_> = files.map(|path| (self.resize, fs::read(path).unwrap())).collect();
        let readable = images.into_iter().filter(|(_, bytes)| bytes.starts_with(b"BM"));
        readable.filter(|image| !self.embedded.contains(image)).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        luthier_files(&self.project.path("data"))
    }

    fn file(&self, index: &Index) -> PathBuf {
        index.get(&self.files()).clone()
    }

    fn is_last_of_its_folder(&self, index: &Index) -> bool {
        let folder = self.file(index).parent().unwrap().to_owned();
        self.files().iter().filter(|file| file.starts_with(&folder)).count() == 1
    }

    fn new_name(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.bmp", self.clock))
    }

    fn write(&mut self, path: &Path, bytes: &[u8]) {
        let path = self.project.path(path.to_str().unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        self.tick(&path);
    }

    fn rename(&mut self, path: &Path, folder: &Path) {
        let folder = self.project.path(folder.to_str().unwrap());
        fs::create_dir_all(&folder).unwrap();
        let renamed = self.new_name(&folder);
        fs::rename(path, &renamed).unwrap();
        self.clock += 1;
    }

    fn tick(&mut self, path: &Path) {
        const LONG_AGO: Duration = Duration::from_secs(1_500_000_000);
        self.clock += 1;
        set_modified(
            path,
            SystemTime::UNIX_EPOCH + LONG_AGO + Duration::from_secs(self.clock),
        );
    }
}

fn any_picture(n: u8) -> Vec<u8> {
    bitmap(usize::from(n % 3), usize::from(n / 3))
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

fn set_modified(path: &Path, time: SystemTime) {
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(time)
        .unwrap();
}
