//! `cargo xtask pipeline`: builds Luthier as needed and runs its pipeline.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::setup;
use crate::workspace::{self, Workspace};

/// The bundled data set.
const DEMO: [&str; 4] = [
    "--train-dir",
    "fixtures/instruments/train",
    "--test-dir",
    "fixtures/instruments/test",
];

/// The weights that `luthier pipeline` takes unless it is told otherwise.
const WEIGHTS: &str = "resnet50-imagenet1k-v1";

/// How long a failed download is not tried again: a network that does not answer costs seconds.
const PATIENCE: Duration = Duration::from_hours(24);

/// Runs `luthier pipeline ARGS` in the current folder or, without `args`, the demo in the workspace root.
pub(crate) fn run(workspace: &Workspace, args: &[OsString]) -> Result<ExitCode> {
    setup::ensure(workspace)?;
    let luthier = workspace.build_luthier()?;
    let mut pipeline = Command::new(&luthier);
    pipeline.arg("pipeline").args(args);
    if args.is_empty() {
        pipeline.args(DEMO).current_dir(&workspace.root);
        if !weights_are_chosen(&workspace.root, env::var_os("LUTHIER_WEIGHTS")) {
            let marker = Marker::beside(&luthier, env::var_os("LUTHIER_WEIGHTS_MIRROR"));
            if let Some(why) = missing_weights(&luthier, &marker)? {
                eprintln!(
                    "\n!! {why}\n!! The demo goes on with UNTRAINED weights: it shows how Luthier works, but its \
                     accuracy is worth nothing.\n!! For trained ones: luthier weights fetch {WEIGHTS}, or set \
                     LUTHIER_WEIGHTS=FILE.safetensors\n"
                );
                pipeline.args(["--weights", "untrained"]);
            }
        }
    }
    workspace::hand_over(pipeline)
}

/// Whether the user has chosen weights, which the demo then takes as they are.
fn weights_are_chosen(root: &Path, variable: Option<OsString>) -> bool {
    let names_weights = |settings: String| settings.lines().any(|line| line.trim_start().starts_with("weights"));
    variable.is_some_and(|value| !value.is_empty())
        || fs::read_to_string(root.join("luthier.toml")).is_ok_and(names_weights)
}

/// Downloads the weights unless they are here. If they cannot be had, says why; the demo must run without a network.
fn missing_weights(luthier: &Path, marker: &Marker) -> Result<Option<&'static str>> {
    let succeeds = |action: &str, stderr: Stdio| -> Result<bool> {
        let mut weights = Command::new(luthier);
        weights.args(["weights", action, WEIGHTS]);
        let status = weights.stdout(Stdio::null()).stderr(stderr).status();
        Ok(status
            .with_context(|| format!("{}: not started", luthier.display()))?
            .success())
    };
    if succeeds("path", Stdio::null())? {
        return Ok(None);
    }
    if marker.is_recent() {
        return Ok(Some("The trained weights could not be downloaded within the last day."));
    }
    if succeeds("fetch", Stdio::inherit())? {
        return Ok(None);
    }
    marker.write()?;
    Ok(Some("The trained weights cannot be downloaded, see above."))
}

/// A file that tells of a failed download: its age says when, its content from which mirror.
struct Marker {
    path: PathBuf,
    mirror: OsString,
}

impl Marker {
    /// In the target folder of the program `luthier`.
    fn beside(luthier: &Path, mirror: Option<OsString>) -> Self {
        let release = luthier.parent().unwrap_or(Path::new("."));
        Marker {
            path: release.with_file_name("demo-without-weights"),
            mirror: mirror.unwrap_or_default(),
        }
    }

    fn is_recent(&self) -> bool {
        let age = fs::metadata(&self.path)
            .and_then(|file| file.modified())
            .map(|modified| modified.elapsed().unwrap_or_default());
        age.is_ok_and(|age| age < PATIENCE)
            && fs::read(&self.path).is_ok_and(|mirror| mirror == self.mirror.as_encoded_bytes())
    }

    fn write(&self) -> Result<()> {
        fs::write(&self.path, self.mirror.as_encoded_bytes())
            .with_context(|| format!("{}: not written", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn the_demo_data_set_is_where_the_demo_looks() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for folder in [DEMO[1], DEMO[3]] {
            assert!(root.join(folder).join("violin").is_dir(), "{folder}");
        }
    }

    #[test]
    fn weights_are_chosen_by_the_environment_or_by_luthier_toml() {
        let root = tempfile::tempdir().unwrap();
        let settings = root.path().join("luthier.toml");
        assert!(!weights_are_chosen(root.path(), None));
        assert!(!weights_are_chosen(root.path(), Some("".into())));
        assert!(weights_are_chosen(root.path(), Some("untrained".into())));
        fs::write(&settings, "# weights = \"untrained\"\nvariance = 0.95\n").unwrap();
        assert!(!weights_are_chosen(root.path(), None));
        fs::write(&settings, "weights = \"untrained\"\n").unwrap();
        assert!(weights_are_chosen(root.path(), None));
    }

    /// A program in place of Luthier: `weights path` fails, `weights fetch` counts its calls and fails while there is no
    /// file `online`.
    #[cfg(unix)]
    fn luthier(target: &Path) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = target.join("release/luthier");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let script = "#!/bin/sh\ncd \"${0%/*}\"\n[ $2 = fetch ] && echo >> fetches && [ -e online ]\n";
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    #[cfg(unix)]
    fn a_failed_download_is_tried_again_after_a_day_or_from_another_mirror() {
        let target = tempfile::tempdir().unwrap();
        let luthier = luthier(target.path());
        let fetches = || {
            fs::read_to_string(luthier.with_file_name("fetches"))
                .unwrap()
                .lines()
                .count()
        };
        let official = Marker::beside(&luthier, None);

        let first = missing_weights(&luthier, &official).unwrap();
        assert_eq!(
            (first, fetches()),
            (Some("The trained weights cannot be downloaded, see above."), 1)
        );
        let second = missing_weights(&luthier, &official).unwrap();
        let expected = "The trained weights could not be downloaded within the last day.";
        assert_eq!((second, fetches()), (Some(expected), 1));

        let mirror = Marker::beside(&luthier, Some("https://mirror.example".into()));
        assert!(missing_weights(&luthier, &mirror).unwrap().is_some());
        assert_eq!(fetches(), 2);

        fs::File::options()
            .write(true)
            .open(&mirror.path)
            .unwrap()
            .set_modified(SystemTime::now() - PATIENCE)
            .unwrap();
        fs::write(luthier.with_file_name("online"), "").unwrap();
        assert_eq!((missing_weights(&luthier, &mirror).unwrap(), fetches()), (None, 3));
    }
}
