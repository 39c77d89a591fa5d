//! The assembler that the JPEG decoder's SIMD code needs on x86.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::prerequisites::is_program;
use crate::workspace::Workspace;

pub(super) enum Nasm {
    /// Not on this processor.
    NotNeeded,
    Found,
    Missing,
}

/// Looks for nasm. A decoder that was built without nasm is removed, because cargo does not notice that nasm has come.
pub(super) fn find(workspace: &Workspace) -> Result<Nasm> {
    if !cfg!(any(target_arch = "x86_64", target_arch = "x86")) {
        return Ok(Nasm::NotNeeded);
    }
    if !is_program(workspace, "nasm") {
        return Ok(Nasm::Missing);
    }
    let program = std::env::current_exe().context("this program: its path is unknown")?;
    let built = program.parent().context("this program: in no folder")?.join("build");
    if has_slow_decoder(&built) {
        workspace.clean(&["mozjpeg-sys"])?;
    }
    Ok(Nasm::Found)
}

/// Whether cargo's folder of build scripts has a mozjpeg without SIMD code.
#[expect(clippy::disallowed_methods, reason = "the order is no matter")]
fn has_slow_decoder(built: &Path) -> bool {
    let folders = fs::read_dir(built).into_iter().flatten().flatten();
    let of_mozjpeg = folders.filter(|folder| folder.file_name().to_string_lossy().starts_with("mozjpeg-sys-"));
    of_mozjpeg
        .filter_map(|folder| fs::read_to_string(folder.path().join("out/include/jconfig.h")).ok())
        .any(|config| !config.contains("#define WITH_SIMD 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoder_without_simd_is_seen() {
        let built = tempfile::tempdir().unwrap();
        assert!(!has_slow_decoder(&built.path().join("not built yet")));
        let config = built.path().join("mozjpeg-sys-1f/out/include/jconfig.h");
        fs::create_dir_all(config.parent().unwrap()).unwrap();
        for (text, is_slow) in [("#define WITH_SIMD 1\n", false), ("#define BITS_IN_JSAMPLE 8\n", true)] {
            fs::write(&config, text).unwrap();
            assert_eq!(has_slow_decoder(built.path()), is_slow);
        }
    }
}
