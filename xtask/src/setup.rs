//! `cargo xtask setup`: finds or fetches libtorch and links it into the workspace.
//!
//! In this order: `LIBTORCH`, `LIBTORCH_USE_PYTORCH`, what is linked already, the user's cache, a download.
//! Whatever is found must be of the version that `tch` needs before anything is linked.

mod download;
mod find;
mod libtorch;
mod link;
mod nasm;
mod prerequisites;
mod python;

use std::process::ExitCode;

use anyhow::Result;
pub(crate) use libtorch::{Device, LICENCES, Libtorch};

use self::nasm::Nasm;
use crate::workspace::Workspace;

/// Packages that carry the path of libtorch: see `crates/extract/link.rs`.
const LINKED_PACKAGES: [&str; 4] = ["luthier-extract", "luthier", "luthier-cli", "luthier-benches"];

/// What `cargo xtask setup` can be asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Have the CUDA parts as well (Linux; 2.2 GB to download, 3.4 GB on disk)
    ///
    /// Without it, a libtorch that is linked already stays. To go back from CUDA, remove `.libtorch`, run setup, and
    /// build again.
    #[arg(long)]
    cuda: bool,
}

/// Sets up, and says where libtorch lies.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let libtorch = link_to(workspace, if options.cuda { Device::Cuda } else { Device::Cpu })?;
    println!("{libtorch}");
    match workspace.libheif() {
        Some(version) => println!("libheif {version}: HEIC and AVIF files are read (--features heif)"),
        None => println!(
            "no libheif 1.13 that pkg-config finds: HEIC and AVIF files are skipped, and named; to read them, apt \
             install libheif-dev pkg-config (Fedora: dnf install libheif-devel pkgconf-pkg-config; macOS: brew install \
             libheif pkg-config), then run this again"
        ),
    }
    match nasm::find(workspace)? {
        Nasm::Missing => println!(
            "no nasm: JPEGs take half as long again to decode; to mend that, apt install nasm (Fedora: dnf install \
             nasm; macOS: brew install nasm), then run this again"
        ),
        Nasm::Found => println!("nasm: the JPEG decoder is built with SIMD code"),
        Nasm::NotNeeded => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Sets up if that has not been done, in silence if it has; the libtorch that is linked.
pub(crate) fn ensure(workspace: &Workspace) -> Result<Libtorch> {
    link_to(workspace, Device::Cpu)
}

fn link_to(workspace: &Workspace, device: Device) -> Result<Libtorch> {
    let (libtorch, relinked) = provide(workspace, device)?;
    if relinked {
        // Cargo does not see where a link leads, so the packages with libtorch's path in them would keep the old one.
        // torch-sys can stay: it depends on the headers alone, and they are of one version.
        workspace.clean(&LINKED_PACKAGES)?;
    }
    Ok(libtorch)
}

/// Finds or fetches libtorch and links it; says whether the link is new.
fn provide(workspace: &Workspace, device: Device) -> Result<(Libtorch, bool)> {
    let found = find::find(workspace, device)?;
    if let Some(libtorch) = found.as_ref().filter(|libtorch| link::leads_to(workspace, libtorch)) {
        return Ok((libtorch.clone(), false));
    }
    // Everything that is missing, named at once, before minutes go by.
    prerequisites::check(workspace, found.is_none())?;
    let libtorch = match found {
        Some(libtorch) => libtorch,
        None => download::download(workspace, device)?,
    };
    link::replace(workspace, &libtorch)?;
    Ok((libtorch, true))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// A package that is missing would keep the path of a libtorch that has gone.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "the result is sorted")]
    fn every_package_that_carries_the_path_of_libtorch_is_known() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let crates = fs::read_dir(root.join("crates"))
            .unwrap()
            .map(|folder| folder.unwrap().path());
        let mut linked: Vec<String> = crates
            .chain([root.join("benches")])
            .filter(|folder| {
                fs::read_to_string(folder.join("build.rs")).is_ok_and(|build| build.contains("link_libtorch"))
            })
            .map(|folder| {
                let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
                let name = manifest.lines().find_map(|line| line.strip_prefix("name = "));
                name.unwrap().trim_matches('"').to_owned()
            })
            .collect();
        linked.sort();
        let mut known = LINKED_PACKAGES;
        known.sort_unstable();
        assert_eq!(linked, known);
    }
}
