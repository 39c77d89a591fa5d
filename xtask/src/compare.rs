//! `cargo xtask compare`: Luthier beside its peers in Python, interleaved in one run.
//!
//! The measuring is done by `benches/compare`, which this builds Luthier and a Python environment for.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::problem::problem;
use crate::setup;
use crate::workspace::{self, Workspace};

/// The versions of Python for which there are wheels of everything in `requirements.txt`.
const PYTHONS: std::ops::RangeInclusive<(u32, u32)> = (3, 11)..=(3, 14);

/// The file in the environment that is written last and says what the environment was made of.
const MARKER: &str = "made-of.txt";

/// Prints the version of Python, and what of the following is missing: venv with pip, and the header that torch.compile
/// compiles against.
const PROBE: &str = "\
import importlib.util, pathlib, sys, sysconfig
print(*sys.version_info[:2])
if not all(map(importlib.util.find_spec, ['venv', 'ensurepip'])):
    print('venv')
if not pathlib.Path(sysconfig.get_path('include'), 'Python.h').is_file():
    print('Python.h')
";

/// What `cargo xtask compare` can be asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many turns each row of a table has
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: NonZeroUsize,
    /// Threads of every network, Luthier's and the peers' [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Measure only these groups
    #[arg(long, value_name = "GROUP", value_delimiter = ',')]
    only: Vec<Group>,
    /// A folder of JPEGs to measure on, instead of photos made from scikit-learn's two
    #[arg(long, value_name = "DIR")]
    photos: Option<PathBuf>,
    /// Weights of ResNet-50 with torchvision's tensor names, instead of untrained ones; the speed is the same
    #[arg(long, value_name = "FILE.safetensors")]
    weights: Option<PathBuf>,
}

/// Rows that are measured together: the keys of `GROUPS` in `benches/compare/groups.py`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Decoded images to features, beside PyTorch, ONNX Runtime and OpenVINO
    Network,
    /// The same on CUDA, where there is such a device
    Cuda,
    /// Files to pixels, beside Pillow
    Decode,
    /// Files to features, beside torchvision
    Extract,
    /// One photo in a new process, beside torchvision and scikit-learn
    Predict,
    /// Scaler and PCA, beside scikit-learn
    Project,
    /// Logistic regression, beside scikit-learn
    Regress,
    /// The choice of C by cross-validation, beside scikit-learn
    Search,
}

/// Builds, makes the Python environment unless it is there, and measures.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    setup::ensure(workspace)?;
    let python = environment(workspace)?;
    workspace.build_measuring_programs()?;
    let release = env::current_exe().context("own program file: unknown")?;
    let release = release.parent().context("own program file: in no folder")?;
    let threads = match options.threads {
        Some(threads) => threads,
        None => thread::available_parallelism().context("cores: not counted")?,
    };
    workspace::hand_over(driver(workspace, &python, release, threads, options))
}

/// The call of `compare.py` with the binaries in the folder `release`.
fn driver(workspace: &Workspace, python: &Path, release: &Path, threads: NonZeroUsize, options: &Options) -> Command {
    let mut command = Command::new(python);
    let binary = |name: &str| release.join(format!("{name}{}", env::consts::EXE_SUFFIX));
    command
        .arg(folder(workspace).join("compare.py"))
        .arg("--luthier")
        .arg(binary("luthier"))
        .arg("--luthier-compare")
        .arg(binary("luthier-compare"))
        .arg("--work")
        .arg(release.with_file_name("compare"))
        .args(["--threads", &threads.to_string()])
        .args(["--rounds", &options.rounds.to_string()]);
    for group in &options.only {
        let value = group.to_possible_value().expect("no group is skipped");
        command.args(["--only", value.get_name()]);
    }
    for (name, path) in [("--photos", &options.photos), ("--weights", &options.weights)] {
        if let Some(path) = path {
            command.arg(name).arg(path);
        }
    }
    command
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.root.join("benches/compare")
}

/// The Python of the environment with the peers, which is made in the user's cache unless one of the same requirements
/// and the same version of Python is there.
///
/// The marker is removed first and written last: an environment that is half made has none. Two at a time wait for each
/// other.
fn environment(workspace: &Workspace) -> Result<PathBuf> {
    let requirements = folder(workspace).join("requirements.txt");
    let wanted = fs::read_to_string(&requirements).with_context(|| requirements.display().to_string())?;
    let (major, minor) = check_python(&workspace.python)?;
    let made_of = format!("Python {major}.{minor}\n{wanted}");

    let cache = &workspace.cache;
    fs::create_dir_all(cache).with_context(|| cache.display().to_string())?;
    let lock = cache.join("compare-venv.lock");
    let lock = File::create(&lock)
        .and_then(|file| file.lock().map(|()| file))
        .with_context(|| lock.display().to_string())?;

    let target = cache.join("compare-venv");
    let python = target.join(if cfg!(windows) {
        "Scripts/python.exe"
    } else {
        "bin/python"
    });
    let marker = target.join(MARKER);
    if fs::read_to_string(&marker).is_ok_and(|found| found == made_of) && python.is_file() {
        return Ok(python);
    }
    eprintln!(
        "{}: making the Python environment with the peers, once (3 GB to download, 6 GB on disk)",
        target.display()
    );
    match fs::remove_file(&marker) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| marker.display().to_string());
        }
        _ => {}
    }
    call(
        &workspace.python,
        ["-m", "venv", "--clear"]
            .map(OsStr::new)
            .into_iter()
            .chain([target.as_os_str()]),
        &lock,
    )
    .map_err(|error| {
        let hint = "its own words are above; on Debian and Ubuntu: apt-get install python3-venv";
        problem(format!("{}: not made: {error:#}", target.display()), [hint])
    })?;
    let pip = ["-m", "pip", "install", "--disable-pip-version-check", "--requirement"].map(OsStr::new);
    call(&python, pip.into_iter().chain([requirements.as_os_str()]), &lock).map_err(|error| {
        let hint = "pip's own words are above: look at the network, the proxy, pip's settings and the room on the disk, \
                    and run it again";
        problem(format!("{}: not installed: {error:#}", requirements.display()), [hint])
    })?;
    fs::write(&marker, made_of).with_context(|| marker.display().to_string())?;
    Ok(python)
}

/// The version of Python, if it has all that is needed of it.
fn check_python(python: &Path) -> Result<(u32, u32)> {
    let program = python.display();
    let (first, last) = (PYTHONS.start(), PYTHONS.end());
    let expected = format!("expected Python {}.{} to {}.{}", first.0, first.1, last.0, last.1);
    let hints = [
        "Debian, Ubuntu: apt-get install python3 python3-venv python3-dev",
        "Fedora: dnf install python3 python3-pip python3-devel",
        "macOS: brew install python",
    ];
    let Some((version, missing)) = probe(python) else {
        return Err(problem(format!("{program}: {expected}, found none"), hints));
    };
    if !PYTHONS.contains(&version) {
        return Err(problem(
            format!("{program}: {expected}, found {}.{}", version.0, version.1),
            hints,
        ));
    }
    if !missing.is_empty() {
        return Err(problem(
            format!(
                "{program}: expected venv, pip and Python.h, found no {}",
                missing.join(" and no ")
            ),
            hints,
        ));
    }
    Ok(version)
}

/// What [`PROBE`] prints, or `None` if there is no such Python.
fn probe(python: &Path) -> Option<((u32, u32), Vec<String>)> {
    let output = Command::new(python)
        .args(["-c", PROBE])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout)
        .ok()
        .filter(|_| output.status.success())?;
    let mut lines = text.lines();
    let (major, minor) = lines.next()?.split_once(' ')?;
    let version = (major.parse().ok()?, minor.parse().ok()?);
    Some((version, lines.map(str::to_owned).collect()))
}

/// Runs `program ARGS` with its output on stderr: stdout is for results.
///
/// The program has the lock for the input that it does not read: should this process be killed, the lock lasts until the
/// program has ended too.
fn call<'a>(program: &Path, args: impl IntoIterator<Item = &'a OsStr>, lock: &File) -> Result<()> {
    let lock = lock.try_clone().context("lock: not passed on")?;
    let status = Command::new(program)
        .args(args)
        .stdin(lock)
        .stdout(io::stderr())
        .status();
    let status = status.with_context(|| format!("{}: not started", program.display()))?;
    ensure!(status.success(), "{}: {status}", program.display());
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::problem::render;

    #[derive(clap::Parser)]
    struct CommandLine {
        #[command(flatten)]
        options: Options,
    }

    fn options(line: &[&str]) -> Options {
        CommandLine::parse_from(["compare"].iter().chain(line)).options
    }

    /// A workspace with requirements and a Python that notes what it is asked for and makes environments of itself.
    struct Machine {
        folder: tempfile::TempDir,
        workspace: Workspace,
    }

    /// Answers the probe, and fails at what `fails` names: `venv`, `pip` or nothing.
    const PYTHON: &str = r#"
case "$1 $2" in
    -c*) echo "$version"; [ -z "$lacks" ] || echo "$lacks";;
    "-m venv")
        [ "$fails" != venv ] || exit 1
        rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && echo venv >> "$log";;
    "-m pip") [ "$fails" != pip ] || exit 1; echo pip >> "$log";;
esac
"#;

    impl Machine {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path();
            fs::create_dir_all(root.join("benches/compare")).unwrap();
            let workspace = Workspace::at(root, &root.join("cache"), &root.join("python3"));
            let machine = Self { folder, workspace };
            machine.require("torch==2.11.0\n");
            machine.set_python("3 12", "", "");
            machine
        }

        fn require(&self, requirements: &str) {
            fs::write(
                self.folder.path().join("benches/compare/requirements.txt"),
                requirements,
            )
            .unwrap();
        }

        fn set_python(&self, version: &str, lacks: &str, fails: &str) {
            let log = self.folder.path().join("log");
            let text = self.folder.path().join("python3.sh");
            let settings = format!(
                "version='{version}'\nlacks='{lacks}'\nfails={fails}\nlog='{}'\n",
                log.display()
            );
            fs::write(&text, format!("#!/bin/sh\n{settings}{PYTHON}")).unwrap();
            // Another process writes it: see `script` in setup/python.rs.
            let status = Command::new("install")
                .args(["-m", "755"])
                .args([&text, &self.workspace.python])
                .status();
            assert!(status.unwrap().success());
        }

        /// What has been done so far.
        fn log(&self) -> String {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            log.split_whitespace().collect::<Vec<_>>().join(" ")
        }

        fn error(&self) -> String {
            render(&environment(&self.workspace).unwrap_err())
        }
    }

    #[test]
    fn an_environment_is_made_once() {
        let machine = Machine::new();
        let python = environment(&machine.workspace).unwrap();
        assert!(python.starts_with(&machine.workspace.cache) && python.is_file());
        assert_eq!(environment(&machine.workspace).unwrap(), python);
        assert_eq!(machine.log(), "venv pip");
    }

    #[test]
    fn other_requirements_or_another_python_make_another_environment() {
        let machine = Machine::new();
        environment(&machine.workspace).unwrap();
        machine.require("torch==2.12.0\n");
        environment(&machine.workspace).unwrap();
        assert_eq!(machine.log(), "venv pip venv pip");
        machine.set_python("3 13", "", "");
        environment(&machine.workspace).unwrap();
        assert_eq!(machine.log(), "venv pip venv pip venv pip");
    }

    #[test]
    fn a_half_made_environment_is_not_taken_for_a_whole_one() {
        let machine = Machine::new();
        environment(&machine.workspace).unwrap();
        machine.require("torch==2.12.0\n");
        machine.set_python("3 12", "", "pip");
        assert!(machine.error().contains("hint: pip's own words are above"));
        // What the failure left is neither of the new requirements nor, with them taken back, of the old.
        machine.require("torch==2.11.0\n");
        machine.set_python("3 12", "", "");
        environment(&machine.workspace).unwrap();
        assert_eq!(machine.log(), "venv pip venv venv pip");
    }

    #[test]
    fn an_environment_whose_python_has_gone_is_made_again() {
        let machine = Machine::new();
        fs::remove_file(environment(&machine.workspace).unwrap()).unwrap();
        environment(&machine.workspace).unwrap();
        assert_eq!(machine.log(), "venv pip venv pip");
    }

    #[test]
    fn what_python_lacks_is_named_before_anything_is_made() {
        let machine = Machine::new();
        for (version, lacks, expected) in [
            ("3 10", "", "expected Python 3.11 to 3.14, found 3.10"),
            ("3 15", "", "expected Python 3.11 to 3.14, found 3.15"),
            ("?", "", "expected Python 3.11 to 3.14, found none"),
            ("3 12", "venv", "found no venv"),
            ("3 12", "venv\nPython.h", "found no venv and no Python.h"),
        ] {
            machine.set_python(version, lacks, "");
            let error = machine.error();
            assert!(error.contains(expected) && error.contains("python3-venv"), "{error}");
        }
        fs::remove_file(&machine.workspace.python).unwrap();
        assert!(machine.error().contains("found none"));
        assert!(!machine.workspace.cache.exists());
    }

    #[test]
    fn a_failing_venv_says_which_package_brings_it() {
        let machine = Machine::new();
        machine.set_python("3 12", "", "venv");
        assert!(machine.error().contains("apt-get install python3-venv"));
    }

    #[test]
    fn options_are_passed_on() {
        let workspace = Workspace::at(Path::new("/luthier"), Path::new("/cache"), Path::new("python3"));
        let arguments = |line: &[&str]| {
            let release = Path::new("/luthier/target/release");
            let command = driver(
                &workspace,
                Path::new("python"),
                release,
                NonZeroUsize::MIN,
                &options(line),
            );
            let arguments: Vec<_> = command.get_args().map(|argument| argument.to_str().unwrap()).collect();
            arguments.join(" ")
        };
        let always = "/luthier/benches/compare/compare.py --luthier /luthier/target/release/luthier \
                      --luthier-compare /luthier/target/release/luthier-compare --work /luthier/target/compare --threads 1";
        assert_eq!(arguments(&[]), format!("{always} --rounds 5"));
        assert_eq!(
            arguments(&[
                "--rounds=2",
                "--only",
                "network,decode",
                "--photos",
                "a",
                "--weights",
                "b"
            ]),
            format!("{always} --rounds 2 --only network --only decode --photos a --weights b")
        );
    }

    #[test]
    fn nothing_is_measured_in_no_rounds_or_of_no_group() {
        for line in [["--rounds", "0"], ["--threads", "0"], ["--only", "netwrok"]] {
            assert!(
                CommandLine::try_parse_from(["compare"].iter().chain(&line)).is_err(),
                "{line:?}"
            );
        }
    }

    #[test]
    fn the_groups_are_those_of_the_driver() {
        let driver = include_str!("../../benches/compare/groups.py");
        let table = driver.split_once("\nGROUPS").unwrap().1.split_once('}').unwrap().0;
        let found: Vec<_> = table.split('"').skip(1).step_by(2).collect();
        let expected: Vec<_> = Group::value_variants()
            .iter()
            .map(|group| group.to_possible_value().unwrap().get_name().to_owned())
            .collect();
        assert_eq!(found, expected);
    }
}
