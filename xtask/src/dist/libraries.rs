//! The shared libraries that a binary needs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{copy, entries, output_of};

/// What belongs to glibc: the system has it, and must have it to match its loader.
const GLIBC: [&str; 10] = [
    "linux-vdso",
    "ld-linux",
    "libc.",
    "libm.",
    "libmvec.",
    "libdl.",
    "libpthread.",
    "libresolv.",
    "librt.",
    "libutil.",
];

/// How a symbol's version begins that glibc must have.
const GLIBC_SYMBOL: &[u8] = b"GLIBC_2.";

/// Copies the libraries that `binary` needs, but for glibc's, from `from` or from the system's folders.
pub(crate) fn copy_needed(binary: &Path, from: &Path, to: &Path) -> Result<()> {
    let listing = output_of(Command::new("ldd").arg(binary).env("LD_LIBRARY_PATH", from))?;
    for (name, path) in needed(&String::from_utf8_lossy(&listing))? {
        copy(&path, &to.join(name))?;
    }
    Ok(())
}

/// Name and path of each library in a listing of `ldd`, but for glibc's.
fn needed(listing: &str) -> Result<BTreeMap<String, PathBuf>> {
    let mut libraries = BTreeMap::new();
    for line in listing.lines().map(str::trim) {
        // `libname.so.1 => /path/to/libname.so.1 (0x…)`, and the loader as `/lib64/ld-linux… (0x…)`.
        let Some((name, path)) = line.split_once(" => ") else {
            continue;
        };
        if GLIBC.iter().any(|start| name.starts_with(start)) {
            continue;
        }
        match path.rsplit_once(" (") {
            Some((path, _)) => libraries.insert(name.to_owned(), path.into()),
            None => bail!("{name}: {path}"),
        };
    }
    Ok(libraries)
}

/// Removes from binary and libraries what only debuggers read.
pub(crate) fn strip(root: &Path) -> Result<()> {
    for file in binaries(root)? {
        output_of(Command::new("strip").arg("--strip-unneeded").arg(&file))?;
    }
    Ok(())
}

/// The newest version of glibc that binary or libraries ask for, such as `2.35`.
pub(crate) fn glibc_needed(root: &Path) -> Result<String> {
    let mut newest = 0;
    for file in binaries(root)? {
        let bytes = fs::read(&file).with_context(|| file.display().to_string())?;
        newest = newest.max(newest_glibc(&bytes));
    }
    Ok(format!("2.{newest}"))
}

/// The largest `n` of `GLIBC_2.n` in these bytes.
fn newest_glibc(bytes: &[u8]) -> u32 {
    let starts = bytes.windows(GLIBC_SYMBOL.len()).enumerate();
    let minors = starts
        .filter(|(_, window)| *window == GLIBC_SYMBOL)
        .filter_map(|(at, _)| {
            let rest = &bytes[at + GLIBC_SYMBOL.len()..];
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            str::from_utf8(&rest[..digits]).ok()?.parse().ok()
        });
    minors.max().unwrap_or(0)
}

fn binaries(root: &Path) -> Result<Vec<PathBuf>> {
    let folders = ["bin", "lib"].map(|name| root.join(name));
    let found = folders
        .iter()
        .filter(|folder| folder.exists())
        .map(|folder| files(folder));
    Ok(found.collect::<Result<Vec<_>>>()?.concat())
}

/// The files in a folder and below.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in entries(folder)? {
        match path.is_dir() {
            true => found.extend(files(&path)?),
            false => found.push(path),
        }
    }
    Ok(found)
}

/// The size of all files in a folder and below, in bytes.
pub(crate) fn size(folder: &Path) -> Result<u64> {
    let sizes = files(folder)?.into_iter().map(|file| {
        let metadata = fs::metadata(&file).with_context(|| file.display().to_string())?;
        Ok(metadata.len())
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_everything_but_glibc() {
        let listing = "\tlinux-vdso.so.1 (0x00007f4c590ee000)\n\
             \tlibstdc++.so.6 => /lib/x86_64-linux-gnu/libstdc++.so.6 (0x00007f4c56e00000)\n\
             \tlibtorch_cpu.so => /opt/torch lib/libtorch_cpu.so (0x00007f4c41600000)\n\
             \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f4c4141e000)\n\
             \t/lib64/ld-linux-x86-64.so.2 (0x00007f4c590f0000)\n";
        let expected = [
            ("libstdc++.so.6", "/lib/x86_64-linux-gnu/libstdc++.so.6"),
            ("libtorch_cpu.so", "/opt/torch lib/libtorch_cpu.so"),
        ];
        let expected = expected.map(|(name, path)| (name.to_owned(), PathBuf::from(path)));
        assert_eq!(needed(listing).unwrap(), BTreeMap::from(expected));
        let error = needed("\tlibtorch_cpu.so => not found\n").unwrap_err();
        assert_eq!(error.to_string(), "libtorch_cpu.so: not found");
    }

    #[test]
    fn the_newest_glibc_counts() {
        assert_eq!(newest_glibc(b"..GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.4\0GLIBC_PRIVATE"), 34);
        assert_eq!(newest_glibc(b"GLIBC_2."), 0);
    }
}
