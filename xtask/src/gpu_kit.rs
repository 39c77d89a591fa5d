//! `cargo xtask gpu-kit`: a folder that measures Luthier on a machine with an NVIDIA GPU and PyTorch, where nothing can be
//! built or fetched.
//!
//! What it does there is in `benches/gpu_kit/gpu_kit.py`. The programs are those of this machine: they are not linked to
//! CUDA, and load it from the libtorch that they find.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::dist::{copy, entries, libraries};
use crate::setup;
use crate::workspace::{Workspace, own_neighbour};

/// What fits through the narrowest way to such a machine that we know, in bytes.
const MOST: u64 = 60 << 20;

const SCRIPT: &str = "benches/gpu_kit/gpu_kit.py";
const DRAWINGS: &str = "fixtures/instruments";

/// What `cargo xtask gpu-kit` can be asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Folder for the folder gpu-kit [default: the target folder]
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
}

/// Builds, copies, and says how to go on.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    setup::ensure(workspace)?;
    // Without the feature heif, whose library such a machine may lack.
    workspace.build_with(&[], ["--workspace", "--bins"].into_iter())?;
    let tests = extract_tests(workspace)?;
    let output_dir = match &options.output_dir {
        Some(dir) => dir.clone(),
        None => workspace.root.join("target"),
    };
    let root = output_dir.join("gpu-kit");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| root.display().to_string())?;
    }
    let bin = root.join("bin");
    fs::create_dir_all(&bin).with_context(|| bin.display().to_string())?;
    for program in ["luthier", "luthier-compare"] {
        copy(&own_neighbour(program)?, &bin.join(program))?;
    }
    copy(&tests, &bin.join("luthier-extract-tests"))?;
    libraries::strip(&root)?;
    copy(&workspace.root.join(SCRIPT), &root.join("gpu_kit.py"))?;
    copy_folder(&workspace.root.join(DRAWINGS), &root.join("drawings"))?;

    let size = libraries::size(&root)?;
    ensure!(
        size <= MOST,
        "{}: expected {} MiB at most, found {}",
        root.display(),
        MOST >> 20,
        size >> 20
    );
    println!(
        "{}  {} MiB; needs glibc {}, an NVIDIA GPU and Python with PyTorch 2.11\nthere: python3 gpu_kit.py",
        root.display(),
        size.div_ceil(1 << 20),
        libraries::glibc_needed(&root)?
    );
    Ok(ExitCode::SUCCESS)
}

/// Builds the unit tests of `luthier-extract`, and tells where they are.
fn extract_tests(workspace: &Workspace) -> Result<PathBuf> {
    let output = workspace
        .cargo([
            "test",
            "--release",
            "--workspace",
            "--no-run",
            "--message-format",
            "json-render-diagnostics",
        ])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo test: not started")?;
    ensure!(output.status.success(), "cargo test: failed, its words are above");
    let messages = String::from_utf8_lossy(&output.stdout);
    let is_it = |message: &serde_json::Value| {
        message["target"]["name"] == "luthier_extract" && message["profile"]["test"] == true
    };
    let executable = (messages.lines())
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(is_it)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    executable.context("cargo test: expected the tests of luthier-extract, found none")
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in entries(from)? {
        let name = entry.file_name().unwrap_or(OsStr::new(""));
        match entry.is_dir() {
            true => copy_folder(&entry, &to.join(name))?,
            false => copy(&entry, &to.join(name))?,
        }
    }
    Ok(())
}
