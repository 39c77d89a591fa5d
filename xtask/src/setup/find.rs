//! Which libtorch is used, if none has to be fetched.

use std::path::PathBuf;

use anyhow::Result;

use super::libtorch::{Device, Libtorch, VERSION};
use super::python::Python;
use crate::problem::problem;
use crate::workspace::Workspace;

/// The libtorch named by the user, else the one linked already, else the one for `device` in the user's cache: whoever
/// removes the link to a libtorch with CUDA wants one without.
///
/// # Errors
/// If what the user named is not a libtorch of the right version. What Luthier itself has put somewhere is passed
/// over instead when something is wrong with it, and fetched anew.
pub(super) fn find(workspace: &Workspace, device: Device) -> Result<Option<Libtorch>> {
    if let Some(dir) = &workspace.libtorch {
        if dir.is_relative() {
            let message = format!(
                "LIBTORCH: {}: an absolute path expected, a relative one found",
                dir.display()
            );
            return Err(problem(
                message,
                ["each build script runs in another folder: name it from the root"],
            ));
        }
        return named_by_the_user(Libtorch::open(dir, "LIBTORCH")?, device, "LIBTORCH").map(Some);
    }
    if workspace.use_pytorch {
        let variable = "LIBTORCH_USE_PYTORCH";
        let dir = Python::new(&workspace.python).torch_folder()?;
        return named_by_the_user(Libtorch::open(&dir, variable)?, device, variable).map(Some);
    }
    let candidates = [workspace.libtorch_link(), cached(workspace, device)];
    Ok(candidates
        .iter()
        .filter_map(|dir| Libtorch::open(dir, "the cache").ok())
        .find(|libtorch| libtorch.serves(device)))
}

/// Where the libtorch for `device` lies in the user's cache.
pub(super) fn cached(workspace: &Workspace, device: Device) -> PathBuf {
    workspace.cache.join(format!("libtorch-{VERSION}-{}", device.name()))
}

fn named_by_the_user(libtorch: Libtorch, device: Device, variable: &str) -> Result<Libtorch> {
    if libtorch.serves(device) {
        return Ok(libtorch);
    }
    let message = format!(
        "{variable}: {}: a libtorch with CUDA expected, one without found",
        libtorch.dir.display()
    );
    Err(problem(message, [format!("unset {variable} to have it fetched")]))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::libtorch::tests::make;
    #[cfg(unix)]
    use super::super::python::tests::script;
    use super::*;

    struct Places {
        folder: tempfile::TempDir,
        workspace: Workspace,
    }

    impl Places {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path().canonicalize().unwrap();
            fs::create_dir(root.join("workspace")).unwrap();
            let workspace = Workspace::at(&root.join("workspace"), &root.join("cache"), &root.join("python3"));
            Self { folder, workspace }
        }

        fn make(&self, name: &str, version: &str, device: Device) -> PathBuf {
            let dir = self.folder.path().canonicalize().unwrap().join(name);
            make(&dir, version, device);
            dir
        }

        #[track_caller]
        fn check(&self, device: Device, expected: Option<&Path>) {
            let found = find(&self.workspace, device).unwrap();
            assert_eq!(found.map(|libtorch| libtorch.dir).as_deref(), expected);
        }
    }

    #[cfg(unix)]
    #[test]
    fn the_users_folder_comes_before_pytorch_the_link_and_the_cache() {
        let mut places = Places::new();
        places.check(Device::Cpu, None);
        let cuda = places.make("cache/libtorch-2.11.0-cuda", VERSION, Device::Cuda);
        places.check(Device::Cuda, Some(&cuda));
        let link = places.workspace.libtorch_link();
        std::os::unix::fs::symlink(&cuda, &link).unwrap();
        places.check(Device::Cpu, Some(&cuda));
        // The way back from CUDA.
        fs::remove_file(&link).unwrap();
        places.check(Device::Cpu, None);
        let cpu = places.make("cache/libtorch-2.11.0-cpu", VERSION, Device::Cpu);
        places.check(Device::Cpu, Some(&cpu));
        let linked = places.make("linked", VERSION, Device::Cpu);
        std::os::unix::fs::symlink(&linked, &link).unwrap();
        places.check(Device::Cpu, Some(&linked));
        places.check(Device::Cuda, Some(&cuda));
        let pytorch = places.make("site-packages/torch", VERSION, Device::Cpu);
        script(&places.workspace.python, &format!("echo {}", pytorch.display()));
        places.workspace.use_pytorch = true;
        places.check(Device::Cpu, Some(&pytorch));
        let own = places.make("own", VERSION, Device::Cpu);
        places.workspace.libtorch = Some(own.clone());
        places.check(Device::Cpu, Some(&own));
    }

    #[test]
    fn what_the_user_named_is_never_passed_over() {
        let mut places = Places::new();
        places.make("cache/libtorch-2.11.0-cpu", VERSION, Device::Cpu);
        places.workspace.libtorch = Some(places.make("own", "2.4.1", Device::Cpu));
        let error = find(&places.workspace, Device::Cpu).unwrap_err().to_string();
        assert!(error.ends_with("libtorch 2.11.0 expected, 2.4.1 found"), "{error}");
        places.workspace.libtorch = Some(places.make("other", VERSION, Device::Cpu));
        let error = find(&places.workspace, Device::Cuda).unwrap_err().to_string();
        assert!(
            error.ends_with("a libtorch with CUDA expected, one without found"),
            "{error}"
        );
        places.workspace.libtorch = Some("libtorch".into());
        let error = find(&places.workspace, Device::Cpu).unwrap_err().to_string();
        assert!(
            error.ends_with("an absolute path expected, a relative one found"),
            "{error}"
        );
    }

    #[test]
    fn a_damaged_folder_in_the_cache_is_passed_over() {
        let places = Places::new();
        let cpu = places.make("cache/libtorch-2.11.0-cpu", VERSION, Device::Cpu);
        places.check(Device::Cpu, Some(&cpu));
        fs::remove_dir_all(cpu.join("lib")).unwrap();
        places.check(Device::Cpu, None);
    }
}
