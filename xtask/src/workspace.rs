//! Where things lie, what the environment says, and how cargo is called.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};

use crate::problem::problem;

/// The name of the link to libtorch in the workspace, the same as in `.cargo/config.toml`.
const LIBTORCH_LINK: &str = ".libtorch";

/// The workspace and what the user's environment says, read once.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    /// The folder of the root `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// The user's cache for Luthier: libtorch is kept there, for all workspaces.
    pub(crate) cache: PathBuf,
    /// `LIBTORCH`, if the user and not `.cargo/config.toml` has set it.
    pub(crate) libtorch: Option<PathBuf>,
    /// Whether `LIBTORCH_USE_PYTORCH` asks for the libtorch of the Python package.
    pub(crate) use_pytorch: bool,
    /// The Python that downloads and unpacks.
    pub(crate) python: PathBuf,
    /// The C++ compiler, as the `cc` crate chooses it: `CXX`, else `c++`.
    pub(crate) cxx: OsString,
    /// The folders of `PATH`.
    pub(crate) path: Vec<PathBuf>,
    cargo: OsString,
}

impl Workspace {
    /// Builds `luthier`, and tells where it is.
    pub(crate) fn build_luthier(&self) -> Result<PathBuf> {
        let luthier = own_neighbour("luthier")?;
        // The first build takes minutes and shows its progress; later ones leave the terminal to Luthier.
        let quiet = luthier.exists().then_some("--quiet");
        self.build(["--bin", "luthier"].into_iter().chain(quiet))?;
        Ok(luthier)
    }

    /// Builds `luthier` and the programs that measure it.
    pub(crate) fn build_measuring_programs(&self) -> Result<()> {
        let programs = ["--bin", "luthier", "--bin", "luthier-compare", "--bin", "luthier-scale"];
        self.build(["--workspace"].into_iter().chain(programs))
    }

    /// Builds `luthier` with this feature and no other, and tells where it is.
    pub(crate) fn build_relocatable(&self, feature: &str) -> Result<PathBuf> {
        self.build_with(&["--features", feature], ["--bin", "luthier"].into_iter())?;
        own_neighbour("luthier")
    }

    fn build<'a>(&self, args: impl Iterator<Item = &'a str>) -> Result<()> {
        self.build_with(self.features(), args)
    }

    /// Builds with these features of cargo's command line, and no others.
    pub(crate) fn build_with<'a>(&self, features: &[&str], args: impl Iterator<Item = &'a str>) -> Result<()> {
        let status = self
            .cargo(["build", "--release"].into_iter().chain(args))
            .args(features)
            .stdout(io::stderr())
            .status();
        ensure!(
            status.context("cargo build: not started")?.success(),
            "cargo build: failed, its words are above"
        );
        Ok(())
    }

    /// Removes what was built of these packages.
    pub(crate) fn clean(&self, packages: &[&str]) -> Result<()> {
        let packages = packages.iter().flat_map(|package| ["--package", package]);
        let status = self.cargo(["clean", "--release", "--quiet"]).args(packages).status();
        ensure!(
            status.context("cargo clean: not started")?.success(),
            "cargo clean: failed, its words are above"
        );
        Ok(())
    }

    /// Reads the environment of a process started by `cargo xtask`.
    pub(crate) fn from_env() -> Result<Self> {
        let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
            .ok_or_else(|| problem("CARGO_MANIFEST_DIR: unset", ["start this program as `cargo xtask`"]))?;
        let root = Path::new(&manifest_dir)
            .parent()
            .context("CARGO_MANIFEST_DIR: has no parent folder")?
            .to_owned();
        let libtorch = non_empty("LIBTORCH")
            .map(PathBuf::from)
            .filter(|dir| !is_own_link(&root, dir));
        let cache = match (non_empty("XDG_CACHE_HOME"), env::home_dir()) {
            (Some(cache), _) => PathBuf::from(cache),
            (None, Some(home)) => home.join(".cache"),
            (None, None) => {
                return Err(problem(
                    "HOME: unset",
                    ["set HOME, or XDG_CACHE_HOME to a folder for caches"],
                ));
            }
        };
        Ok(Self {
            libtorch,
            cache: cache.join("luthier"),
            use_pytorch: non_empty("LIBTORCH_USE_PYTORCH").is_some(),
            python: "python3".into(),
            cxx: non_empty("CXX").unwrap_or_else(|| "c++".into()),
            path: env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect(),
            cargo: non_empty("CARGO").unwrap_or_else(|| "cargo".into()),
            root,
        })
    }

    /// Arguments to cargo that turn on the features for which the machine has the library.
    pub(crate) fn features(&self) -> &'static [&'static str] {
        match self.libheif() {
            Some(_) => &["--features", "heif"],
            None => &[],
        }
    }

    /// The version of libheif, if pkg-config finds one that Luthier can use.
    pub(crate) fn libheif(&self) -> Option<String> {
        let pkg_config = |question| Command::new("pkg-config").args([question, "libheif"]).output().ok();
        let is_recent = pkg_config("--atleast-version=1.13")?.status.success();
        let version = String::from_utf8(pkg_config("--modversion")?.stdout).ok()?;
        is_recent.then(|| version.trim().to_owned())
    }

    /// The link that `.cargo/config.toml` names as `LIBTORCH`.
    pub(crate) fn libtorch_link(&self) -> PathBuf {
        self.root.join(LIBTORCH_LINK)
    }

    /// A call of cargo in the workspace root, in the environment of a call by hand.
    ///
    /// Build scripts depend on environment variables, so a difference here would build packages anew at every change
    /// between `cargo xtask test` and `cargo test`: ring for what cargo tells this program about its own package, and
    /// torch-sys, which takes minutes, for `LIBTORCH`. The former goes, the latter passes unchanged.
    pub(crate) fn cargo<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Command {
        let mut command = Command::new(&self.cargo);
        command.args(args).current_dir(&self.root);
        for (name, _) in env::vars_os().filter(|(name, _)| is_about_own_package(name)) {
            command.env_remove(name);
        }
        command
    }

    #[cfg(test)]
    pub(crate) fn at(root: &Path, cache: &Path, python: &Path) -> Self {
        Self {
            root: root.to_owned(),
            cache: cache.to_owned(),
            libtorch: None,
            use_pytorch: false,
            python: python.to_owned(),
            cxx: "c++".into(),
            path: env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect(),
            cargo: "cargo".into(),
        }
    }
}

/// The program of this name that cargo puts beside this one.
pub(crate) fn own_neighbour(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("own program file: unknown")?;
    Ok(own.with_file_name(format!("{name}{}", env::consts::EXE_SUFFIX)))
}

/// Replaces this process by `command`, so that its exit status and the terminal's signals need no passing on.
#[cfg(unix)]
pub(crate) fn hand_over(mut command: Command) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt as _;
    let error = command.exec();
    Err(error).with_context(|| format!("{}: not started", command.get_program().display()))
}

/// Runs `command` and takes over its exit status.
#[cfg(not(unix))]
pub(crate) fn hand_over(mut command: Command) -> Result<ExitCode> {
    let status = command
        .status()
        .with_context(|| format!("{}: not started", command.get_program().display()))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

fn non_empty(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// Whether the variable `name` is one by which cargo describes the package that it runs.
fn is_about_own_package(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b"CARGO_MANIFEST_") || name.starts_with(b"CARGO_PKG_")
}

/// Whether `dir` is the value that `.cargo/config.toml` gives `LIBTORCH`, and thus not the user's choice.
fn is_own_link(root: &Path, dir: &Path) -> bool {
    let canonical = |path: &Path| path.canonicalize().ok();
    dir.file_name() == Some(OsStr::new(LIBTORCH_LINK))
        && dir
            .parent()
            .is_some_and(|parent| parent == root || canonical(parent) == canonical(root))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cargo sets these for this test as it does for `cargo xtask`.
    #[test]
    fn a_child_hears_nothing_of_this_package() {
        assert!(env::var_os("CARGO_MANIFEST_DIR").is_some() && env::var_os("CARGO_PKG_NAME").is_some());
        let workspace = Workspace::at(Path::new("."), Path::new("."), Path::new("python3"));
        let removed = |name: &str| {
            let command = workspace.cargo(["version"]);
            command
                .get_envs()
                .any(|(variable, value)| variable == name && value.is_none())
        };
        assert!(removed("CARGO_MANIFEST_DIR") && removed("CARGO_PKG_NAME"));
        assert!(!removed("LIBTORCH") && !removed("PATH"));
    }

    #[test]
    fn the_value_set_by_the_cargo_configuration_is_not_the_users_choice() {
        let root = tempfile::tempdir().unwrap();
        assert!(is_own_link(root.path(), &root.path().join(".libtorch")));
        assert!(is_own_link(root.path(), &root.path().join(".").join(".libtorch")));
        assert!(!is_own_link(root.path(), Path::new("/opt/libtorch")));
        assert!(!is_own_link(root.path(), Path::new("/opt/.libtorch")));
    }
}
