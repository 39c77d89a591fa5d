//! The link `.libtorch` in the workspace, which `.cargo/config.toml` names as `LIBTORCH`.

use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::Path;
use std::process;

use anyhow::{Context as _, Result};

use super::libtorch::Libtorch;
use crate::problem::problem;
use crate::workspace::Workspace;

/// Whether the link is there and leads to `libtorch`.
pub(super) fn leads_to(workspace: &Workspace, libtorch: &Libtorch) -> bool {
    workspace
        .libtorch_link()
        .canonicalize()
        .is_ok_and(|dir| dir == libtorch.dir)
}

/// Makes the link lead to `libtorch`; at no instant is it missing or half made.
pub(super) fn replace(workspace: &Workspace, libtorch: &Libtorch) -> Result<()> {
    let link = workspace.libtorch_link();
    if link.symlink_metadata().is_ok_and(|metadata| !metadata.is_symlink()) {
        let message = format!(
            "{}: a link expected, found a file or folder of another making",
            link.display()
        );
        return Err(problem(
            message,
            ["remove it, or name it in LIBTORCH and move it out of the workspace"],
        ));
    }
    // A random name, of the kind that std gives its hash maps: another setup may be at the same place.
    let temporary = link.with_added_extension(format!("{:016x}", RandomState::new().hash_one(process::id())));
    let replaced = symlink(&libtorch.dir, &temporary).and_then(|()| fs::rename(&temporary, &link));
    replaced.with_context(|| format!("{}: not linked to {}", link.display(), libtorch.dir.display()))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_dir(target, link)
}
