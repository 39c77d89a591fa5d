//! `cargo xtask python`: the Python package, put together in the target folder and tested.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};

use crate::problem::problem;
use crate::setup;
use crate::workspace::{self, Workspace, own_neighbour};

/// What the tests import.
const NEEDED: &str = "numpy pandas PIL pytest sklearn";

/// What can be asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Test with Ray, Spark and Daft too, which must be installed
    #[arg(long)]
    engines: bool,
    /// Arguments for pytest
    #[arg(last = true)]
    args: Vec<OsString>,
}

/// Builds the package, and runs its tests in `LUTHIER_TEST_PYTHON`, or `python3`.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    setup::ensure(workspace)?;
    let package = assemble(workspace)?;
    let python = env::var_os("LUTHIER_TEST_PYTHON").unwrap_or_else(|| "python3".into());
    let python = || {
        let mut command = Command::new(&python);
        let paths = env::var_os("PYTHONPATH").unwrap_or_default();
        let paths = std::iter::once(package.clone()).chain(env::split_paths(&paths));
        let paths = env::join_paths(paths).context("PYTHONPATH: a folder has a colon in its name")?;
        command.env("PYTHONPATH", paths);
        Ok::<_, anyhow::Error>(command)
    };
    let imports = |modules: &str| {
        let program = format!(
            "import importlib.util as u, sys; sys.exit(any(u.find_spec(name) is None for name in '{modules}'.split()))"
        );
        let status = python()?.args(["-c", &program]).stderr(Stdio::null()).status();
        Ok::<_, anyhow::Error>(status.context("python3: not started")?.success())
    };
    if !imports(NEEDED)? {
        return Err(problem(
            format!("{}: expected {NEEDED}", python()?.get_program().display()),
            ["pip install numpy pandas pillow pytest scikit-learn, or set LUTHIER_TEST_PYTHON"],
        ));
    }
    let mut tests = python()?;
    tests
        .args(["-m", "pytest", "-q", "-p", "no:cacheprovider"])
        .args(&options.args);
    tests
        .arg(workspace.root.join("python/tests"))
        .current_dir(&workspace.root);
    // Without PyTorch, the libtorch of this workspace.
    if !imports("torch")? && env::var_os("LUTHIER_LIBTORCH").is_none() {
        tests.env("LUTHIER_LIBTORCH", workspace.libtorch_link());
    }
    if options.engines && env::var_os("LUTHIER_TEST_ENGINES").is_none() {
        tests.env("LUTHIER_TEST_ENGINES", "1");
    }
    workspace::hand_over(tests)
}

/// Puts the package together as `pip install` would, and gives the folder that it is in.
fn assemble(workspace: &Workspace) -> Result<PathBuf> {
    workspace.build_with(workspace.features(), ["--workspace", "--lib"].into_iter())?;
    let from = workspace.root.join("python/luthier");
    let root = workspace.root.join("target/python-package");
    let to = root.join("luthier");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| root.display().to_string())?;
    }
    fs::create_dir_all(&to).with_context(|| to.display().to_string())?;
    for file in crate::dist::entries(&from)? {
        if let (true, Some(name)) = (file.is_file(), file.file_name()) {
            fs::copy(&file, to.join(name)).with_context(|| file.display().to_string())?;
        }
    }
    let library = own_neighbour("libluthier_native.so")?;
    fs::copy(&library, to.join("luthier_native.abi3.so")).with_context(|| library.display().to_string())?;
    Ok(root)
}
