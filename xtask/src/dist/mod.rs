//! `cargo xtask dist`: an archive of Luthier that runs on any Linux with a glibc that is not older.
//!
//! The binary looks for its libraries in `../lib` (feature `relocatable` of `luthier-cli`); [`libraries`] copies them
//! there and [`licences`] says whose they are.

pub(crate) mod libraries;
mod licences;

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};

use crate::problem::problem;
use crate::setup::{self, Device, Libtorch};
use crate::workspace::Workspace;

/// The cargo feature that makes the binary relocatable.
const FEATURE: &str = "luthier-cli/relocatable";

/// What goes into `share/doc/luthier`, from the root of the workspace.
const DOCUMENTS: [&str; 5] = [
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "CHANGELOG.md",
    "fixtures/instruments/NOTICE",
    "fixtures/instruments/OFL-1.1.txt",
];

/// Where shells look for completions.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/luthier"),
    ("zsh", "share/zsh/site-functions/_luthier"),
    ("fish", "share/fish/vendor_completions.d/luthier.fish"),
];

/// What tar is told so that an archive does not depend on who packs it.
const SAME_FOR_ALL: [&str; 5] = [
    "--sort=name",
    "--owner=0",
    "--group=0",
    "--numeric-owner",
    "--mode=u+rwX,go+rX,go-w",
];

const README: &str = include_str!("README.txt");

/// What `cargo xtask dist` can be asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Folder for the archive [default: dist in the target folder]
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
}

/// Builds, packs, and says what came out.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    ensure!(
        cfg!(target_os = "linux"),
        "cargo xtask dist: only Linux is known to it, found {}",
        env::consts::OS
    );
    let libtorch = setup::ensure(workspace)?;
    if libtorch.device == Device::Cuda {
        return Err(problem(
            format!("{libtorch}: expected one without CUDA, whose libraries fit into an archive"),
            ["remove .libtorch and run cargo xtask setup"],
        ));
    }
    let output_dir = match &options.output_dir {
        Some(dir) => dir.clone(),
        None => workspace.root.join("target/dist"),
    };
    let luthier = workspace.build_relocatable(FEATURE)?;
    let packed = pack(workspace, &libtorch, &luthier, &output_dir);
    // In the target folder belongs the binary that finds the libtorch of this machine.
    workspace.build_luthier()?;
    packed?;
    Ok(ExitCode::SUCCESS)
}

fn pack(workspace: &Workspace, libtorch: &Libtorch, luthier: &Path, output_dir: &Path) -> Result<()> {
    fs::create_dir_all(output_dir).with_context(|| output_dir.display().to_string())?;
    let name = format!(
        "luthier-{}-{}-{}",
        env!("CARGO_PKG_VERSION"),
        env::consts::ARCH,
        env::consts::OS
    );
    let root = output_dir.join(&name);
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| root.display().to_string())?;
    }
    for folder in ["bin", "lib", "share/man/man1", "share/doc/luthier"] {
        let folder = root.join(folder);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    let binary = root.join("bin/luthier");
    copy(luthier, &binary)?;
    libraries::copy_needed(&binary, &libtorch.dir.join("lib"), &root.join("lib"))?;
    libraries::strip(&root)?;
    // From here on the binary runs by what has been packed.
    for (shell, file) in COMPLETIONS {
        let script = output_of(Command::new(&binary).args(["completions", shell]))?;
        write(&root.join(file), &script)?;
    }
    output_of(Command::new(&binary).arg("man").arg(root.join("share/man/man1")))?;
    let documents = root.join("share/doc/luthier");
    for document in DOCUMENTS {
        let from = workspace.root.join(document);
        copy(&from, &documents.join(from.file_name().unwrap_or(OsStr::new(document))))?;
    }
    let glibc = libraries::glibc_needed(&root)?;
    write(&root.join("README.txt"), README.replace("{glibc}", &glibc).as_bytes())?;
    licences::write(workspace, FEATURE, libtorch, &root.join("lib"), &documents)?;
    let archive = output_dir.join(format!("{name}.tar.gz"));
    let unfinished = archive.with_added_extension("part");
    output_of(
        Command::new("tar")
            .args(SAME_FOR_ALL)
            .arg(modification_time(workspace))
            .arg("-czf")
            .arg(&unfinished)
            .arg("-C")
            .args([output_dir, Path::new(&name)]),
    )?;
    fs::rename(&unfinished, &archive).with_context(|| archive.display().to_string())?;
    println!(
        "{}  {} MB; unpacked {} MB; needs glibc {glibc}",
        archive.display(),
        megabytes(
            fs::metadata(&archive)
                .with_context(|| archive.display().to_string())?
                .len()
        ),
        megabytes(libraries::size(&root)?)
    );
    Ok(())
}

/// Tells tar the time of all files: `SOURCE_DATE_EPOCH`, else the commit's, else the one at which they are packed.
fn modification_time(workspace: &Workspace) -> String {
    let given = env::var("SOURCE_DATE_EPOCH").ok().filter(|given| !given.is_empty());
    let of_commit = || {
        let mut git = Command::new("git");
        git.args(["log", "-1", "--format=%ct"]).current_dir(&workspace.root);
        String::from_utf8(output_of(&mut git).ok()?).ok()
    };
    match given.or_else(of_commit) {
        Some(seconds) => format!("--mtime=@{}", seconds.trim()),
        None => "--mtime=now".to_owned(),
    }
}

fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000)
}

pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    Ok(())
}

/// The paths in a folder, in the order of their names.
#[expect(clippy::disallowed_methods, reason = "the result is sorted")]
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let place = || folder.display().to_string();
    let entries = fs::read_dir(folder).with_context(place)?;
    let mut paths = entries
        .map(|entry| Ok(entry.with_context(place)?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(path, bytes));
    written.with_context(|| path.display().to_string())
}

/// Runs a program; what it printed on stdout.
///
/// # Errors
/// If it cannot be started or fails, with what it printed on stderr.
pub(crate) fn output_of(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("{program}: not started"))?;
    ensure!(
        output.status.success(),
        "{program}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output.stdout)
}
