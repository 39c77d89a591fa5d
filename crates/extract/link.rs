//! Link arguments that every package with a binary, a test or a benchmark on libtorch passes from
//! its build script.
//!
//! Cargo hands `cargo::rustc-link-arg` to the targets of the package that prints it and to no
//! other, so `luthier-extract`, `luthier`, `luthier-cli` and `luthier-benches` each have a build script
//! that calls [`link_libtorch`]. Each depends on `torch-sys` directly, because that is what makes
//! cargo set `DEP_TCH_LIBTORCH_LIB`.

use std::env;
use std::path::{Path, PathBuf};

/// The folder `lib` or `include` of libtorch.
///
/// `.libtorch` in the workspace is a link. Binaries name the folder behind it, because they must
/// outlive the link.
pub(crate) fn libtorch_folder(name: &str) -> PathBuf {
    let lib = env::var_os("DEP_TCH_LIBTORCH_LIB").expect("DEP_TCH_LIBTORCH_LIB: unset, expected from torch-sys");
    let folder = Path::new(&lib).with_file_name(name);
    folder.canonicalize().unwrap_or_else(|error| {
        panic!(
            "{}: {error}\nhint: `cargo xtask setup` puts libtorch there",
            folder.display()
        )
    })
}

/// Makes the binary find libtorch at run time. What libtorch has for CUDA is loaded when it is needed.
pub(crate) fn link_libtorch() {
    let lib = libtorch_folder("lib");
    let target_os = env::var("CARGO_CFG_TARGET_OS").expect("CARGO_CFG_TARGET_OS: unset, expected from cargo");
    if target_os != "windows" {
        let folder = match env::var_os("CARGO_FEATURE_RELOCATABLE") {
            Some(_) => Path::new("$ORIGIN/../lib"),
            None => &lib,
        };
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", folder.display());
    }
}
