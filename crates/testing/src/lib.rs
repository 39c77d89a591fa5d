//! What the tests of Luthier need and not every machine has.
//!
//! A test that lacks something says so and passes, so that `cargo test` works on any machine. With
//! `LUTHIER_TEST_REQUIRE_ALL=1` it fails instead, unless `LUTHIER_TEST_WITHOUT` names what may be
//! missing: green then means that everything else was tested. `.ci/run` sets both.
//!
//! Only tests depend on this crate, and it depends on nothing.

use std::env;
use std::fmt;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::Command;
use std::{fs, thread};

/// Something that a test needs and that a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Trained weights of ResNet-50.
    Weights,
    /// The photographs of music10.
    Photographs,
    /// torchvision's features of these photographs, and scikit-learn's results.
    Reference,
    /// A Python with numpy, safetensors, Pillow, onnx, onnxruntime, jsonschema and moto.
    Python,
    /// The npm package onnxruntime-web.
    OnnxRuntimeWeb,
    /// strace, and the right to trace processes.
    Strace,
    /// Chromium, or a browser made from it.
    Chromium,
    /// A folder that this user may not write to.
    ReadOnlyFolder,
    /// A processor with bf16.
    Bf16,
    /// A processor with VNNI.
    Int8,
    /// A build with libheif.
    Heif,
    /// The right to change the root folder.
    Chroot,
}

impl Need {
    /// The name in `LUTHIER_TEST_WITHOUT`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Need::Weights => "weights",
            Need::Photographs => "photographs",
            Need::Reference => "reference",
            Need::Python => "python",
            Need::OnnxRuntimeWeb => "onnxruntime-web",
            Need::Strace => "strace",
            Need::Chromium => "chromium",
            Need::ReadOnlyFolder => "read-only-folder",
            Need::Bf16 => "bf16",
            Need::Int8 => "int8",
            Need::Heif => "heif",
            Need::Chroot => "chroot",
        }
    }

    /// How to get it.
    fn way(self) -> &'static str {
        match self {
            Need::Weights => "set LUTHIER_TEST_WEIGHTS to a .safetensors file",
            Need::Photographs => "set LUTHIER_TEST_DATA to the folder that holds music10",
            Need::Reference => "set LUTHIER_TEST_REFERENCE to the folder that holds music10-split.tsv",
            Need::Python => {
                "set LUTHIER_TEST_PYTHON to a Python with numpy, safetensors, Pillow, onnx, onnxruntime, jsonschema and moto"
            }
            Need::OnnxRuntimeWeb => "set LUTHIER_TEST_ONNXRUNTIME_WEB to the folder of the npm package onnxruntime-web",
            Need::Strace => "install strace, and allow tracing processes",
            Need::Chromium => "install chromium",
            Need::ReadOnlyFolder => "run as a user other than root, or install setpriv (util-linux)",
            Need::Bf16 => "run on a processor with bf16",
            Need::Int8 => "run on a processor with VNNI",
            Need::Chroot => "run as root",
            Need::Heif => "install libheif-dev and pkg-config, and test with `cargo xtask test`",
        }
    }

    /// The environment variable that says where it is.
    fn variable(self) -> Option<&'static str> {
        match self {
            Need::Weights => Some("LUTHIER_TEST_WEIGHTS"),
            Need::Photographs => Some("LUTHIER_TEST_DATA"),
            Need::Reference => Some("LUTHIER_TEST_REFERENCE"),
            Need::Python => Some("LUTHIER_TEST_PYTHON"),
            Need::OnnxRuntimeWeb => Some("LUTHIER_TEST_ONNXRUNTIME_WEB"),
            Need::Strace
            | Need::Chromium
            | Need::ReadOnlyFolder
            | Need::Bf16
            | Need::Int8
            | Need::Heif
            | Need::Chroot => None,
        }
    }

    /// Where the environment says that it is. If it does not, [`skip`](Self::skip)s.
    ///
    /// # Panics
    ///
    /// If it is required and missing, or if no variable can name it.
    #[track_caller]
    #[must_use]
    pub fn path(self) -> Option<PathBuf> {
        let variable = self.variable().expect("a need that a variable names");
        let path = env::var_os(variable).filter(|value| !value.is_empty());
        if path.is_none() {
            self.skip();
        }
        path.map(PathBuf::from)
    }

    /// Says that the running test is skipped because this is missing.
    ///
    /// # Panics
    ///
    /// If it is required.
    #[track_caller]
    pub fn skip(self) {
        let variable = |name| env::var(name).unwrap_or_default();
        let policy = Policy {
            require_all: variable("LUTHIER_TEST_REQUIRE_ALL"),
            without: variable("LUTHIER_TEST_WITHOUT"),
        };
        assert!(
            !policy.requires(self),
            "{self}\nhint: {}, or add `{}` to LUTHIER_TEST_WITHOUT",
            self.way(),
            self.name()
        );
        let thread = thread::current();
        let test = thread.name().unwrap_or("a test");
        // Not `eprintln!`: the test harness keeps to itself what that prints in a test that passes.
        writeln!(io::stderr(), "SKIPPED {test}: {self}: {}", self.way()).expect("stderr takes a line");
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: missing", self.name())
    }
}

/// What the environment says about tests that cannot run.
struct Policy {
    require_all: String,
    without: String,
}

impl Policy {
    fn requires(&self, need: Need) -> bool {
        let is_exempt = self.without.split_whitespace().any(|name| name == need.name());
        !matches!(self.require_all.as_str(), "" | "0") && !is_exempt
    }
}

/// If this process may write everywhere, as root may, runs the test `name` of this binary again in a
/// process that may not, and returns true: then nothing is left to do.
///
/// False also where that cannot be arranged: the test finds out by writing, and skips.
///
/// # Panics
///
/// If the test fails there, or if there is no such test.
#[track_caller]
#[must_use]
pub fn has_run_unprivileged(name: &str) -> bool {
    let unprivileged = |program: PathBuf| {
        let mut setpriv = Command::new("setpriv");
        setpriv.arg("--bounding-set=-dac_override").arg(program);
        setpriv
    };
    let can_be_arranged = || {
        unprivileged("true".into())
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if !writes_everywhere() || !can_be_arranged() {
        return false;
    }
    let again = unprivileged(env::current_exe().expect("a test knows its program"))
        .args(["--exact", name, "--nocapture"])
        .output()
        .expect("setpriv has just run");
    let (stdout, stderr) = (
        String::from_utf8_lossy(&again.stdout),
        String::from_utf8_lossy(&again.stderr),
    );
    assert!(
        again.status.success() && stdout.contains("1 passed"),
        "{name}, unprivileged: {stdout}{stderr}"
    );
    true
}

/// Whether this process has the capability `CAP_DAC_OVERRIDE`.
fn writes_everywhere() -> bool {
    const CAP_DAC_OVERRIDE: u64 = 1 << 1;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & CAP_DAC_OVERRIDE != 0)
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::panic::catch_unwind;

    use super::*;

    fn requires(require_all: &str, without: &str, need: Need) -> bool {
        let policy = Policy {
            require_all: require_all.to_owned(),
            without: without.to_owned(),
        };
        policy.requires(need)
    }

    #[test]
    fn nothing_is_required_unless_asked_for() {
        for require_all in ["", "0"] {
            assert!(!requires(require_all, "", Need::Strace));
        }
    }

    #[test]
    fn everything_is_required_but_what_is_named() {
        assert!(requires("1", "", Need::Strace));
        assert!(requires("1", "weights photographs", Need::Strace));
        assert!(!requires("1", "weights  strace", Need::Strace));
        assert!(requires("1", "weights-strace", Need::Strace));
    }

    /// Tests and the program are of one profile. It checks what our own code computes and assumes.
    #[test]
    fn arithmetic_overflow_panics_in_tests() {
        let overflows = || black_box(u8::MAX) + black_box(1);
        assert!(catch_unwind(overflows).is_err(), "overflow-checks are off");
        let asserts = || debug_assert!(black_box(false));
        assert!(catch_unwind(asserts).is_err(), "debug-assertions are off");
    }

    /// Runs itself again, where that is needed and possible.
    #[test]
    fn an_unprivileged_test_cannot_write_everywhere() {
        if has_run_unprivileged("tests::an_unprivileged_test_cannot_write_everywhere") {
            return;
        }
        if writes_everywhere() {
            Need::ReadOnlyFolder.skip();
        }
    }

    #[test]
    fn what_a_variable_names_tells_the_variable() {
        for need in [
            Need::Weights,
            Need::Photographs,
            Need::Reference,
            Need::Python,
            Need::OnnxRuntimeWeb,
        ] {
            assert!(need.way().contains(need.variable().unwrap()), "{need}");
        }
    }
}
