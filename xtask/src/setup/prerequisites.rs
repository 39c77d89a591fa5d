//! What setup and the build need from the machine, checked in one go.

use std::path::Path;

use anyhow::Result;

use super::python::Python;
use crate::problem::problem;
use crate::workspace::Workspace;

/// The versions of Python for which there is a wheel of the pinned torch.
const PYTHONS: std::ops::RangeInclusive<(u32, u32)> = (3, 10)..=(3, 14);

/// Something the machine lacks, and the packages that bring it.
struct Missing {
    what: String,
    debian: &'static str,
    fedora: &'static str,
    macos: &'static str,
}

/// Checks for a C++ compiler and, if libtorch has to be downloaded, for Python and pip.
///
/// # Errors
/// One error that names everything that is missing, and how to get it.
pub(super) fn check(workspace: &Workspace, downloads: bool) -> Result<()> {
    let mut missing = Vec::new();
    let compiler = workspace.cxx.to_string_lossy();
    // `CXX` may hold arguments, or a wrapper before the compiler.
    if !compiler
        .split_whitespace()
        .next()
        .is_some_and(|program| is_program(workspace, program))
    {
        missing.push(Missing {
            what: format!("a C++ compiler ({compiler}, or another named by CXX), to build torch-sys"),
            debian: "g++",
            fedora: "gcc-c++",
            macos: "xcode-select --install",
        });
    }
    if downloads {
        missing.extend(missing_for_download(&Python::new(&workspace.python), workspace));
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(report(&missing, downloads))
    }
}

fn missing_for_download(python: &Python<'_>, workspace: &Workspace) -> Option<Missing> {
    let program = workspace.python.display();
    let (first, last) = (PYTHONS.start(), PYTHONS.end());
    let what = match python.version() {
        Some(version) if PYTHONS.contains(&version) && python.has_pip() => return None,
        Some(version) if PYTHONS.contains(&version) => format!("pip ({program} -m pip), to download libtorch"),
        Some((major, minor)) => format!(
            "Python {}.{} to {}.{} ({program}) with pip, to download libtorch: {major}.{minor} found",
            first.0, first.1, last.0, last.1
        ),
        None => format!(
            "Python {}.{} to {}.{} ({program}) with pip, to download libtorch: none found",
            first.0, first.1, last.0, last.1
        ),
    };
    Some(Missing {
        what,
        debian: "python3 python3-pip",
        fedora: "python3 python3-pip",
        macos: "brew install python",
    })
}

fn report(missing: &[Missing], downloads: bool) -> anyhow::Error {
    let list: Vec<_> = missing.iter().map(|missing| format!("\n  {}", missing.what)).collect();
    let packages =
        |of: fn(&Missing) -> &'static str, separator| missing.iter().map(of).collect::<Vec<_>>().join(separator);
    let mut hints = vec![
        format!(
            "Debian, Ubuntu: apt-get install {}",
            packages(|missing| missing.debian, " ")
        ),
        format!("Fedora: dnf install {}", packages(|missing| missing.fedora, " ")),
        format!("macOS: {}", packages(|missing| missing.macos, "; ")),
    ];
    if downloads {
        hints.push("with LIBTORCH set to a libtorch folder, neither Python nor pip is needed".to_owned());
    }
    problem(format!("missing on this machine:{}", list.concat()), hints)
}

/// Whether `name` is a file, or one in a folder of `PATH`.
pub(super) fn is_program(workspace: &Workspace, name: &str) -> bool {
    if Path::new(name).components().count() > 1 {
        return Path::new(name).is_file();
    }
    workspace
        .path
        .iter()
        .any(|folder| folder.join(name).is_file() || folder.join(format!("{name}.exe")).is_file())
}

#[cfg(all(test, unix))]
mod tests {
    use super::super::python::tests::script;
    use super::*;
    use crate::problem::render;

    /// A workspace whose `PATH` holds nothing but `programs`, shell scripts by name and body.
    fn machine(folder: &Path, programs: &[(&str, &str)]) -> Workspace {
        for (name, body) in programs {
            script(&folder.join(name), body);
        }
        let mut workspace = Workspace::at(folder, folder, &folder.join("python3"));
        workspace.path = vec![folder.to_owned()];
        workspace
    }

    const PYTHON: &str = "case $1 in -c) echo 3 12;; esac";
    const PYTHON_WITHOUT_PIP: &str = "case $1 in -c) echo 3 12;; *) exit 1;; esac";
    const OLD_PYTHON: &str = "case $1 in -c) echo 3 9;; esac";

    #[test]
    fn everything_missing_is_named_in_one_error_with_its_packages() {
        let folder = tempfile::tempdir().unwrap();
        let workspace = machine(folder.path(), &[]);
        let python = workspace.python.display();
        assert_eq!(
            render(&check(&workspace, true).unwrap_err()),
            format!(
                "error: missing on this machine:
  a C++ compiler (c++, or another named by CXX), to build torch-sys
  Python 3.10 to 3.14 ({python}) with pip, to download libtorch: none found
hint: Debian, Ubuntu: apt-get install g++ python3 python3-pip
hint: Fedora: dnf install gcc-c++ python3 python3-pip
hint: macOS: xcode-select --install; brew install python
hint: with LIBTORCH set to a libtorch folder, neither Python nor pip is needed
"
            )
        );
    }

    #[test]
    fn only_what_is_missing_is_named() {
        for (programs, downloads, expected) in [
            (&[("c++", ""), ("python3", PYTHON)][..], true, None),
            (&[("c++", "")][..], false, None),
            (&[("c++", ""), ("python3", PYTHON_WITHOUT_PIP)][..], true, Some("pip (")),
            (&[("c++", ""), ("python3", OLD_PYTHON)][..], true, Some("3.9 found")),
            (&[("python3", PYTHON)][..], true, Some("a C++ compiler")),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let found = check(&machine(folder.path(), programs), downloads)
                .err()
                .map(|error| error.to_string());
            match (&found, expected) {
                (None, None) => {}
                (Some(found), Some(expected)) => {
                    assert!(found.contains(expected) && found.lines().count() == 2, "{found}");
                }
                _ => panic!("{programs:?}: {found:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn a_compiler_named_by_cxx_counts_with_its_arguments() {
        let folder = tempfile::tempdir().unwrap();
        let mut workspace = machine(folder.path(), &[("clang++", "")]);
        workspace.cxx = "clang++ -stdlib=libc++".into();
        check(&workspace, false).unwrap();
    }
}
