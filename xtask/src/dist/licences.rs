//! The licences of what an archive holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{copy, entries, output_of, write as write_file};
use crate::problem::problem;
use crate::setup::{LICENCES, Libtorch};
use crate::workspace::Workspace;

/// The package that an archive is made of.
const ROOT: &str = "luthier-cli";

/// How cargo is asked for the packages of this system. What follows is a feature.
const METADATA: [&str; 6] = [
    "metadata",
    "--format-version=1",
    "--locked",
    "--filter-platform",
    PLATFORM,
    "--features",
];

/// The system that archives are for, as rustc names it.
const PLATFORM: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-gnu"
} else {
    "x86_64-unknown-linux-gnu"
};

/// How the files begin in which crates have licences.
const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"];

/// The libraries that come with the compiler, by the start of their names, and where Debian, Fedora and Arch keep their
/// licences, in a file or a folder.
const OF_COMPILER: [(&str, &[&str]); 2] = [
    (
        "libstdc++",
        &[
            "/usr/share/doc/libstdc++6/copyright",
            "/usr/share/licenses/libstdc++",
            "/usr/share/licenses/gcc-libs",
            "/usr/share/licenses/libgcc",
        ],
    ),
    (
        "libgcc_s",
        &[
            "/usr/share/doc/libgcc-s1/copyright",
            "/usr/share/licenses/libgcc",
            "/usr/share/licenses/gcc-libs",
        ],
    ),
];

/// Writes `crates.txt` and a folder `libraries` with what the shared libraries' authors ask to be passed on.
pub(super) fn write(
    workspace: &Workspace,
    feature: &str,
    libtorch: &Libtorch,
    lib: &Path,
    documents: &Path,
) -> Result<()> {
    write_file(
        &documents.join("crates.txt"),
        licences_of_crates(workspace, feature)?.as_bytes(),
    )?;
    let folder = documents.join("libraries");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let of_libtorch = libtorch.dir.join(LICENCES);
    let files = listed(&of_libtorch).unwrap_or_default();
    if files.is_empty() {
        return Err(problem(
            format!("{}: no licences, which an archive must pass on", of_libtorch.display()),
            ["put them there; or remove the folder of this libtorch, and cargo xtask setup fetches it with them"],
        ));
    }
    for name in files {
        copy(&of_libtorch.join(&name), &folder.join(&name))?;
    }
    for (library, places) in OF_COMPILER {
        if listed(lib)?.iter().any(|name| name.starts_with(library)) {
            let places: Vec<&Path> = places.iter().map(Path::new).collect();
            copy_first(library, &places, &folder)?;
        }
    }
    Ok(())
}

/// Copies the licences of `library` from the first of `places` that has any: a file, or the files of a folder.
fn copy_first(library: &str, places: &[&Path], folder: &Path) -> Result<()> {
    for place in places {
        let mut files = match place.is_dir() {
            true => entries(place)?,
            false => vec![place.to_path_buf()],
        };
        files.retain(|file| file.is_file());
        for file in &files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            copy(file, &folder.join(format!("{library}-{name}")))?;
        }
        if !files.is_empty() {
            return Ok(());
        }
    }
    let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    Err(problem(
        format!(
            "{library}: no licence, which an archive must pass on: none of {}",
            places.join(", ")
        ),
        ["put GCC's licences there: COPYING3 and COPYING.RUNTIME of its sources"],
    ))
}

/// The names in a folder, in their order.
fn listed(folder: &Path) -> Result<Vec<String>> {
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(entries(folder)?.iter().map(name).collect())
}

/// Each crate with its licence, then each text with the crates that it is of.
fn licences_of_crates(workspace: &Workspace, feature: &str) -> Result<String> {
    let metadata = output_of(&mut workspace.cargo(METADATA.iter().chain([&feature])))?;
    let metadata: Value = serde_json::from_slice(&metadata).context("cargo metadata")?;
    let rustc = output_of(Command::new("rustc").args(["--print", "sysroot"]))?;
    let sysroot = String::from_utf8_lossy(&rustc).trim().to_owned();
    let packages = linked_packages(&metadata)?;
    let mut text = "Luthier holds these Rust crates, under these licences:\n\n".to_owned();
    let mut by_text: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in &packages {
        let field = |name: &str| package[name].as_str().unwrap_or("unknown");
        let crate_name = format!("{} {}", field("name"), field("version"));
        writeln!(text, "{crate_name}: {}", field("license")).expect("a String takes every write");
        let folder = Path::new(field("manifest_path")).parent().unwrap_or(Path::new("."));
        let is_licence = |name: &String| NAMES.iter().any(|start| name.to_uppercase().starts_with(start));
        for file in listed(folder)?.into_iter().filter(is_licence) {
            // A folder of licences says no more than the files beside it.
            if let Ok(licence) = fs::read_to_string(folder.join(&file)) {
                by_text.entry(licence).or_default().insert(crate_name.clone());
            }
        }
    }
    let standard_library = Path::new(&sysroot).join("share/doc/rust");
    for file in listed(&standard_library).unwrap_or_default() {
        if file.starts_with("LICENSE") || file.starts_with("COPYRIGHT") {
            let licence = fs::read_to_string(standard_library.join(&file)).unwrap_or_default();
            by_text
                .entry(licence)
                .or_default()
                .insert("Rust's standard library".to_owned());
        }
    }
    for (licence, crates) in by_text {
        let crates = crates.into_iter().collect::<Vec<_>>().join(", ");
        write!(text, "\n{}\n{crates}\n\n{}\n", "=".repeat(80), licence.trim_end()).expect("a String takes every write");
    }
    Ok(text)
}

/// The packages that [`ROOT`] links, without those of the workspace, in the order of their names.
fn linked_packages(metadata: &Value) -> Result<Vec<&Value>> {
    let list = |value: &'static str| metadata[value].as_array().context("cargo metadata: no packages");
    let packages: HashMap<&str, &Value> = (list("packages")?.iter())
        .filter_map(|package| Some((package["id"].as_str()?, package)))
        .collect();
    let nodes = metadata["resolve"]["nodes"].as_array();
    let nodes: HashMap<&str, &Value> = (nodes.context("cargo metadata: no graph")?.iter())
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let root = packages.iter().find(|(_, package)| package["name"] == ROOT);
    let mut open = vec![*root.with_context(|| format!("cargo metadata: no {ROOT}"))?.0];
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let dependencies = nodes[id]["deps"].as_array().into_iter().flatten();
        let is_linked = |dependency: &&Value| {
            let kinds = dependency["dep_kinds"].as_array();
            kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
        };
        open.extend(
            dependencies
                .filter(is_linked)
                .filter_map(|dependency| dependency["pkg"].as_str()),
        );
    }
    // Packages of the workspace have no source.
    let mut linked: Vec<&Value> = (seen.iter())
        .map(|id| packages[id])
        .filter(|package| !package["source"].is_null())
        .collect();
    linked.sort_by_key(|package| (package["name"].to_string(), package["version"].to_string()));
    Ok(linked)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::problem::render;

    #[test]
    fn licences_of_the_compilers_libraries_are_a_file_or_a_folder() {
        let root = tempfile::tempdir().unwrap();
        let [file, folder, to] = ["copyright", "libgcc", "to"].map(|name| root.path().join(name));
        fs::create_dir_all(folder.join("empty")).unwrap();
        fs::create_dir(&to).unwrap();
        let places = [file.as_path(), folder.as_path()];
        let error = render(&copy_first("libgcc_s", &places, &to).unwrap_err());
        let expected = format!("none of {}, {}\nhint: put ", file.display(), folder.display());
        assert!(error.contains(&expected), "{error}");
        for name in ["COPYING3", "COPYING.RUNTIME"] {
            fs::write(folder.join(name), name).unwrap();
        }
        copy_first("libgcc_s", &places, &to).unwrap();
        assert_eq!(listed(&to).unwrap(), ["libgcc_s-COPYING.RUNTIME", "libgcc_s-COPYING3"]);
        fs::write(&file, "GPL").unwrap();
        copy_first("libstdc++", &places, &to).unwrap();
        assert_eq!(listed(&to).unwrap().last().unwrap(), "libstdc++-copyright");
        assert_eq!(listed(&to).unwrap().len(), 3);
    }

    #[test]
    fn what_only_tests_or_build_scripts_use_is_not_linked() {
        let package =
            |name: &str, source: Value| json!({"id": name, "name": name, "version": "1.0.0", "source": source});
        let needs = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [
                package(ROOT, Value::Null), package("luthier", Value::Null), package("zip", json!("registry")),
                package("anyhow", json!("registry")), package("insta", json!("registry")), package("cc", json!("registry")),
            ],
            "resolve": {"nodes": [
                {"id": ROOT, "deps": [needs("luthier", Value::Null), needs("insta", json!("dev")), needs("cc", json!("build"))]},
                {"id": "luthier", "deps": [needs("zip", Value::Null), needs("anyhow", Value::Null)]},
                {"id": "zip", "deps": [needs("anyhow", Value::Null)]},
                {"id": "anyhow", "deps": []}, {"id": "insta", "deps": []}, {"id": "cc", "deps": []},
            ]}
        });
        let linked: Vec<&str> = (linked_packages(&metadata).unwrap().iter())
            .map(|package| package["name"].as_str().unwrap())
            .collect();
        assert_eq!(linked, ["anyhow", "zip"]);
    }
}
