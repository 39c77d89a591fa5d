//! Links this package's targets to libtorch, and says which version of what is built.

#[path = "../extract/link.rs"]
mod link;

use std::path::Path;
use std::process::Command;

fn main() {
    link::link_libtorch();
    println!("cargo::rustc-env=LUTHIER_BUILD_VERSION={}", version());
}

/// For example `0.1.0 (1a2b3c4d5 2026-11-25) libtorch 2.11.0`. What is not known is left out.
fn version() -> String {
    let mut version = env!("CARGO_PKG_VERSION").to_owned();
    if let Some(commit) = git(&["log", "-1", "--format=%h %cs", "--abbrev=9"]) {
        version += &format!(" ({commit})");
        // Git writes this file whenever HEAD changes: it is committed, checked out or reset.
        if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
            && Path::new(&log).exists()
        {
            println!("cargo::rerun-if-changed={log}");
        }
    }
    if let Some(libtorch) = libtorch() {
        version += &format!(" libtorch {libtorch}");
    }
    version
}

/// What git answers here, if there is git and this is a repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let answer = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !answer.trim().is_empty()).then(|| answer.trim().to_owned())
}

/// The version of libtorch, from its headers.
fn libtorch() -> Option<String> {
    let include = link::libtorch_folder("include");
    // Newer versions have it in the first file, older ones in the second.
    let headers = ["torch/headeronly/version.h", "torch/csrc/api/include/torch/version.h"];
    headers.into_iter().find_map(|header| {
        let text = std::fs::read_to_string(include.join(header)).ok()?;
        let number = |name: &str| {
            let start = format!("#define TORCH_VERSION_{name} ");
            let number = text.lines().find_map(|line| line.strip_prefix(&start))?;
            Some(number.trim().to_owned())
        };
        Some([number("MAJOR")?, number("MINOR")?, number("PATCH")?].join("."))
    })
}
