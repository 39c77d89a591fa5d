//! A libtorch folder and its version.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::problem::problem;

/// The version that `tch` 0.24 needs; every other one fails at compile time or, worse, at run time.
pub(crate) const VERSION: &str = "2.11.0";

/// The folder of a libtorch with the licences of its libraries, if setup has fetched it.
pub(crate) const LICENCES: &str = "licences";

/// What every libtorch has in its `lib` folder.
const CPU_LIBRARY: &str = if cfg!(target_os = "macos") {
    "libtorch_cpu.dylib"
} else if cfg!(windows) {
    "torch_cpu.lib"
} else {
    "libtorch_cpu.so"
};

/// What a libtorch with CUDA has as well.
const CUDA_LIBRARY: &str = if cfg!(windows) {
    "torch_cuda.lib"
} else {
    "libtorch_cuda.so"
};

/// Which parts of libtorch are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    /// The processor's, which every libtorch has.
    Cpu,
    /// CUDA's as well.
    Cuda,
}

impl Device {
    /// The name in messages and folders.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Cuda => "cuda",
        }
    }
}

/// A folder with `lib/` and `include/` of libtorch [`VERSION`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Libtorch {
    /// The folder, absolute, without links in it.
    pub(crate) dir: PathBuf,
    /// Which parts it has.
    pub(crate) device: Device,
}

impl Libtorch {
    /// The libtorch in `dir`.
    ///
    /// # Errors
    /// If `dir` has no headers, no library, or another version than [`VERSION`]; `origin` says who named it.
    pub(crate) fn open(dir: &Path, origin: &str) -> Result<Self> {
        let place = format!("{origin}: {}", dir.display());
        let hint = format!("libtorch {VERSION} is a folder with lib/ and include/; unset {origin} to have it fetched");
        let wrong = |what: String| problem(format!("{place}: {what}"), [hint.clone()]);
        let dir = dir.canonicalize().map_err(|error| wrong(error.to_string()))?;
        for file in [Path::new("include/torch"), &Path::new("lib").join(CPU_LIBRARY)] {
            if !dir.join(file).exists() {
                return Err(wrong(format!("has no {}", file.display())));
            }
        }
        match version(&dir) {
            None => Err(wrong(format!(
                "of unknown version, expected {VERSION} in its build-version or version.py"
            ))),
            Some(found) if found != VERSION => Err(wrong(format!("libtorch {VERSION} expected, {found} found"))),
            Some(_) => {
                let device = if dir.join("lib").join(CUDA_LIBRARY).exists() {
                    Device::Cuda
                } else {
                    Device::Cpu
                };
                Ok(Self { dir, device })
            }
        }
    }

    /// Whether it has the parts for `device`.
    pub(crate) fn serves(&self, device: Device) -> bool {
        device == Device::Cpu || self.device == Device::Cuda
    }
}

impl fmt::Display for Libtorch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "libtorch {VERSION} ({}): {}", self.device.name(), self.dir.display())
    }
}

/// The version of the libtorch in `dir`, without a local part such as `+cu130`.
///
/// A libtorch archive has it in `build-version`, the Python package in `version.py`.
fn version(dir: &Path) -> Option<String> {
    let read = |name| fs::read_to_string(dir.join(name)).ok();
    let full = read("build-version").or_else(|| version_in_python(&read("version.py")?))?;
    Some(full.trim().split('+').next().unwrap_or_default().to_owned())
}

/// The value of `__version__ = '…'` in a Python source.
fn version_in_python(source: &str) -> Option<String> {
    let value = source
        .lines()
        .find_map(|line| line.strip_prefix("__version__")?.trim_start().strip_prefix('='))?;
    Some(value.trim().trim_matches(['\'', '"']).to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Puts into `dir` what makes a libtorch of `version`.
    pub(crate) fn make(dir: &Path, version: &str, device: Device) {
        fs::create_dir_all(dir.join("lib")).unwrap();
        fs::create_dir_all(dir.join("include/torch")).unwrap();
        fs::write(dir.join("lib").join(CPU_LIBRARY), "").unwrap();
        fs::write(dir.join("build-version"), version).unwrap();
        if device == Device::Cuda {
            fs::write(dir.join("lib").join(CUDA_LIBRARY), "").unwrap();
        }
    }

    #[test]
    fn the_version_is_read_without_its_local_part() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text, expected) in [
            ("build-version", "2.11.0\n", Some("2.11.0")),
            ("build-version", "2.11.0+cu130", Some("2.11.0")),
            ("build-version", "2.4.1+cpu\n", Some("2.4.1")),
            (
                "version.py",
                "__all__ = ['__version__']\n__version__ = '2.11.0+cu130'\ndebug = False\n",
                Some("2.11.0"),
            ),
            ("version.py", "__version__=\"2.5.0\"\n", Some("2.5.0")),
            ("version.py", "debug = False\n", None),
            ("README", "2.11.0", None),
        ] {
            fs::write(dir.path().join(file), text).unwrap();
            assert_eq!(version(dir.path()).as_deref(), expected, "{file}: {text}");
            fs::remove_file(dir.path().join(file)).unwrap();
        }
    }

    #[test]
    fn another_version_is_refused_with_path_expectation_and_finding() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), "2.4.1", Device::Cpu);
        let error = crate::problem::render(&Libtorch::open(dir.path(), "LIBTORCH").unwrap_err());
        let path = dir.path().display();
        assert_eq!(
            error,
            format!(
                "error: LIBTORCH: {path}: libtorch 2.11.0 expected, 2.4.1 found\n\
                 hint: libtorch 2.11.0 is a folder with lib/ and include/; unset LIBTORCH to have it fetched\n"
            )
        );
    }

    #[test]
    fn a_folder_without_libraries_headers_or_version_is_refused() {
        for missing in ["include/torch", &format!("lib/{CPU_LIBRARY}"), "build-version"] {
            let dir = tempfile::tempdir().unwrap();
            make(dir.path(), VERSION, Device::Cpu);
            assert!(Libtorch::open(dir.path(), "LIBTORCH").is_ok());
            let path = dir.path().join(missing);
            if path.is_dir() {
                fs::remove_dir(path).unwrap()
            } else {
                fs::remove_file(path).unwrap()
            };
            let error = Libtorch::open(dir.path(), "LIBTORCH").unwrap_err().to_string();
            assert!(error.contains(missing), "{error}");
        }
    }
}
