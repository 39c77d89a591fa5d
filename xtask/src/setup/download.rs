//! libtorch from the wheel of the Python package, which every mirror of the package index has.
//!
//! Tested on Linux x86-64. The wheels for Linux AArch64 and macOS ARM64 have the same layout (their listings have been
//! compared), but nothing here has been run there.

use std::env;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::find::cached;
use super::libtorch::{Device, Libtorch, VERSION};
use super::python::Python;
use crate::problem::problem;
use crate::workspace::Workspace;

/// NVIDIA's libraries that `libtorch_cpu.so` of the CUDA 13 build names as needed, on Linux.
const FOR_CPU: [&str; 2] = ["nvidia-cuda-cupti==13.0.85", "nvidia-cuda-runtime==13.0.96"];

/// What torch 2.11.0 requires of NVIDIA: its `Requires-Dist`, with `cuda-toolkit==13.0.2` resolved.
const FOR_CUDA: [&str; 15] = [
    "nvidia-cublas==13.1.0.3",
    "nvidia-cuda-cupti==13.0.85",
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cudnn-cu13==9.19.0.56",
    "nvidia-cufft==12.0.0.61",
    "nvidia-cufile==1.15.1.6",
    "nvidia-curand==10.4.0.35",
    "nvidia-cusolver==12.0.4.66",
    "nvidia-cusparse==12.6.3.3",
    "nvidia-cusparselt-cu13==0.8.0",
    "nvidia-nccl-cu13==2.28.9",
    "nvidia-nvjitlink==13.0.88",
    "nvidia-nvshmem-cu13==3.4.5",
    "nvidia-nvtx==13.0.85",
];

/// Paths in a wheel that belong to libtorch.
const KEEP: &str = "torch/include/* torch/lib/*.so* torch/lib/*.dylib *.dist-info/*LICENSE* *.dist-info/*License* *.dist-info/*NOTICE*";
/// Of NVIDIA's libraries, what the CPU parts are linked to.
const KEEP_FOR_CPU: &str = "nvidia/*/lib/libcudart.so* nvidia/*/lib/libcupti.so*";
/// NVIDIA's libraries. They find one another side by side: each has `$ORIGIN` in its run path.
const KEEP_FOR_CUDA: &str = "nvidia/*/lib/*.so*";
/// Paths in a wheel that only Python uses.
const LEAVE: &str = "torch/lib/libtorch_python* torch/lib/libshm* torch/lib/libtorch_global_deps*";
/// What the CPU parts do without. `libtorch.so` is a shell that pulls CUDA in: [`LINKER_SCRIPT`] replaces it.
const LEAVE_FOR_CPU: &str =
    "torch/lib/libtorch.so torch/lib/*_cuda* torch/lib/libcaffe2_nvrtc* torch/lib/libtorch_nvshmem*";

/// Stands in for `libtorch.so`, because torch-sys passes `-ltorch` to the linker.
const LINKER_SCRIPT: &str = "INPUT(libtorch_cpu.so)\n";

/// Unpacks, given to `python3 -c`: the standard library reads wheels, so no crate has to.
const UNPACK: &str = include_str!("unpack.py");

/// Fetches libtorch into the user's cache.
///
/// The folder appears there whole, by one rename, or not at all. Two setups at a time wait for each other, and what a
/// killed one has left behind goes when the next begins.
pub(super) fn download(workspace: &Workspace, device: Device) -> Result<Libtorch> {
    check_platform(env::consts::OS, env::consts::ARCH, device)?;
    let cache = &workspace.cache;
    fs::create_dir_all(cache).with_context(|| cache.display().to_string())?;
    let lock = lock(&cache.join("libtorch.lock"))?;
    let target = cached(workspace, device);
    if let Ok(libtorch) = Libtorch::open(&target, "the cache")
        && libtorch.serves(device)
    {
        return Ok(libtorch); // another setup has fetched it while this one waited
    }
    remove(&target)?; // damaged, or it would have been found
    let partial = Partial::new(cache)?;
    let unpacked = fetch(workspace, device, &partial, &lock)?;
    Libtorch::open(&unpacked, "the wheel")?;
    fs::rename(&unpacked, &target).with_context(|| target.display().to_string())?;
    sync(cache)?;
    Libtorch::open(&target, "the cache")
}

/// Downloads the wheels and unpacks what is needed of them; returns the folder.
fn fetch(workspace: &Workspace, device: Device, partial: &Partial, lock: &File) -> Result<PathBuf> {
    let python = Python::new(&workspace.python);
    let (wheels, unpacked) = (partial.dir.join("wheels"), partial.dir.join("libtorch"));
    let torch = format!("torch=={VERSION}");
    let linux = cfg!(target_os = "linux");
    let (nvidia, keep, leave): (&[&str], _, _) = match device {
        Device::Cpu if !linux => (&[], KEEP.to_owned(), LEAVE.to_owned()),
        Device::Cpu => (
            &FOR_CPU,
            format!("{KEEP} {KEEP_FOR_CPU}"),
            format!("{LEAVE} {LEAVE_FOR_CPU}"),
        ),
        Device::Cuda => (&FOR_CUDA, format!("{KEEP} {KEEP_FOR_CUDA}"), LEAVE.to_owned()),
    };
    eprintln!(
        "libtorch {VERSION} ({}): downloading the wheel of {torch}, once for all workspaces",
        device.name()
    );
    let pip = [
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
    ];
    let args = pip
        .iter()
        .map(AsRef::as_ref)
        .chain([wheels.as_os_str(), torch.as_ref()]);
    python
        .run(args.chain(nvidia.iter().map(AsRef::as_ref)), lock)
        .map_err(|error| {
            let hints = [
                "pip's own words are above: look at the network, the proxy and pip's settings, and run it again"
                    .to_owned(),
                format!("or set LIBTORCH to the folder of a libtorch {VERSION} obtained by other means"),
            ];
            problem(
                format!("{torch}: not downloaded, and nothing is left behind: {error:#}"),
                hints,
            )
        })?;
    eprintln!("libtorch {VERSION} ({}): unpacking", device.name());
    let folders = [wheels.as_os_str(), unpacked.as_os_str()];
    let args = ["-c", UNPACK].map(AsRef::as_ref).into_iter().chain(folders);
    python
        .run(args.chain([keep.as_ref(), leave.as_ref()]), lock)
        .context("wheels: not unpacked")?;
    if linux && device == Device::Cpu {
        write(&unpacked.join("lib/libtorch.so"), LINKER_SCRIPT)?;
    }
    write(&unpacked.join("build-version"), VERSION)?;
    sync(&unpacked)?;
    Ok(unpacked)
}

/// # Errors
/// If there is no wheel with a libtorch for this machine.
fn check_platform(os: &str, arch: &str, device: Device) -> Result<()> {
    match (os, arch, device) {
        ("linux", "x86_64" | "aarch64", _) | ("macos", "aarch64", Device::Cpu) => Ok(()),
        _ => Err(problem(
            format!(
                "{os} {arch}: no libtorch {VERSION} ({}) can be fetched for it",
                device.name()
            ),
            ["set LIBTORCH to the folder of one, with lib/ and include/ in it"],
        )),
    }
}

/// Takes the lock on the cache, and says so if that takes long. The lock goes when the last process that holds it ends.
fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => eprintln!("{}: waiting for another setup", path.display()),
        Err(TryLockError::Error(error)) => return Err(error).with_context(|| path.display().to_string()),
    }
    file.lock().with_context(|| path.display().to_string())?;
    Ok(file)
}

/// A folder that goes when the work on it ends, well or badly. Only the holder of the lock has one.
struct Partial {
    dir: PathBuf,
}

impl Partial {
    fn new(cache: &Path) -> Result<Self> {
        let dir = cache.join("libtorch.partial");
        remove(&dir)?; // a killed setup's
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self { dir })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.dir) {
            eprintln!("warning: {error:#}");
        }
    }
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).with_context(|| dir.display().to_string()),
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| path.display().to_string())
}

/// Makes the entries of the folder outlast a power failure.
fn sync(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .with_context(|| dir.display().to_string())
}

#[cfg(all(test, unix))]
mod tests {
    use std::process::Command;
    use std::thread;

    use super::super::python::tests::script;
    use super::super::{link, provide};
    use super::*;

    /// A workspace, a cache, and a `python3` whose `pip download` takes the wheels from a folder.
    struct Machine {
        folder: tempfile::TempDir,
        workspace: Workspace,
    }

    /// Copies `wheels/` to the folder after `--dest`. What is not pip goes to the Python of the system.
    const PIP: &str = r#"case "$*" in
        "-m pip --version") ;;
        "-m pip download"*)
            echo download >> "$here/log"
            while [ "$1" != --dest ]; do shift; done
            mkdir -p "$2" && cp "$here"/wheels/* "$2" ;;
        *) exec python3 "$@" ;;
    esac"#;

    /// As [`PIP`], but killed when one wheel is there by half.
    const DYING_PIP: &str = r#"case "$*" in
        "-m pip --version") ;;
        "-m pip download"*)
            while [ "$1" != --dest ]; do shift; done
            mkdir -p "$2" && echo half > "$2/torch.whl"
            kill -9 $$ ;;
        *) exec python3 "$@" ;;
    esac"#;

    /// As [`PIP`], but what it has downloaded is cut off.
    const TRUNCATING_PIP: &str = r#"case "$*" in
        "-m pip --version") ;;
        "-m pip download"*)
            while [ "$1" != --dest ]; do shift; done
            mkdir -p "$2" && for wheel in "$here"/wheels/*; do head -c 300 "$wheel" > "$2/${wheel##*/}"; done ;;
        *) exec python3 "$@" ;;
    esac"#;

    const WHEELS: &str = r"
import sys, zipfile
for name, files in {
    'torch-2.11.0-cp312-cp312-manylinux_2_28_x86_64.whl': [
        'torch/__init__.py', 'torch/include/torch/', 'torch/include/torch/extension.h', 'torch/include/ATen/ATen.h',
        'torch/lib/libtorch.so', 'torch/lib/libtorch_cpu.so', 'torch/lib/libtorch_cpu.dylib', 'torch/lib/libc10.so',
        'torch/lib/libc10_cuda.so', 'torch/lib/libgomp.so.1', 'torch/lib/libtorch_cuda.so', 'torch/lib/libtorch_python.so',
        'torch/lib/libtorch_nvshmem.so', 'torch/lib/libcaffe2_nvrtc.so', 'torch/lib/libtorch_cuda_linalg.so',
    ],
    'nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.whl': [
        'nvidia/cu13/lib/libcudart.so.13', 'nvidia/cu13/lib/libcudart_static.a', 'nvidia/cu13/include/cuda.h',
    ],
    'nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl': [
        'nvidia/cu13/lib/libcupti.so.13', 'nvidia/cu13/lib/libnvperf_host.so',
    ],
}.items():
    with zipfile.ZipFile(sys.argv[1] + '/' + name, 'w') as wheel:
        for file in files:
            wheel.writestr(file, file)
";

    impl Machine {
        fn new(python: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path().canonicalize().unwrap();
            for name in ["workspace", "wheels"] {
                fs::create_dir(root.join(name)).unwrap();
            }
            let wheels = Command::new("python3")
                .args(["-c", WHEELS])
                .arg(root.join("wheels"))
                .status()
                .expect("python3 on PATH, which makes the wheels of this test");
            assert!(wheels.success());
            let workspace = Workspace::at(&root.join("workspace"), &root.join("cache"), &root.join("python"));
            let machine = Self { folder, workspace };
            machine.set_python(python);
            machine
        }

        fn set_python(&self, body: &str) {
            script(
                &self.workspace.python,
                &format!("here='{}'\n{body}", self.folder.path().display()),
            );
        }

        fn downloads(&self) -> usize {
            fs::read_to_string(self.folder.path().join("log")).map_or(0, |log| log.lines().count())
        }
    }

    #[expect(clippy::disallowed_methods, reason = "sorted below")]
    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_what_libtorch_needs_is_unpacked() {
        for (device, libraries) in [
            (
                Device::Cpu,
                &[
                    "libc10.so",
                    "libcudart.so.13",
                    "libcupti.so.13",
                    "libgomp.so.1",
                    "libtorch.so",
                    "libtorch_cpu.dylib",
                    "libtorch_cpu.so",
                ][..],
            ),
            (
                Device::Cuda,
                &[
                    "libc10.so",
                    "libc10_cuda.so",
                    "libcaffe2_nvrtc.so",
                    "libcudart.so.13",
                    "libcupti.so.13",
                    "libgomp.so.1",
                    "libnvperf_host.so",
                    "libtorch.so",
                    "libtorch_cpu.dylib",
                    "libtorch_cpu.so",
                    "libtorch_cuda.so",
                    "libtorch_cuda_linalg.so",
                    "libtorch_nvshmem.so",
                ][..],
            ),
        ] {
            let machine = Machine::new(PIP);
            let libtorch = download(&machine.workspace, device).unwrap();
            assert_eq!(libtorch.device, device);
            assert_eq!(names(&libtorch.dir.join("lib")), libraries);
            assert_eq!(names(&libtorch.dir), ["build-version", "include", "lib"]);
            assert_eq!(names(&libtorch.dir.join("include")), ["ATen", "torch"]);
            let shell = fs::read_to_string(libtorch.dir.join("lib/libtorch.so")).unwrap();
            assert_eq!(
                shell,
                if device == Device::Cpu {
                    LINKER_SCRIPT
                } else {
                    "torch/lib/libtorch.so"
                }
            );
            assert_eq!(
                names(&machine.workspace.cache),
                [&format!("libtorch-2.11.0-{}", device.name()), "libtorch.lock"]
            );
        }
    }

    #[test]
    fn a_download_that_dies_leaves_no_libtorch_behind() {
        for python in [DYING_PIP, TRUNCATING_PIP] {
            let machine = Machine::new(python);
            let error = provide(&machine.workspace, Device::Cpu).unwrap_err();
            assert!(
                format!("{error:#}").contains("not downloaded") == (python == DYING_PIP),
                "{error:#}"
            );
            assert_eq!(names(&machine.workspace.cache), ["libtorch.lock"]);
            assert_eq!(names(&machine.workspace.root), [""; 0]);
            machine.set_python(PIP);
            provide(&machine.workspace, Device::Cpu).unwrap();
        }
    }

    #[test]
    fn what_a_killed_setup_left_goes_with_the_next() {
        let machine = Machine::new(PIP);
        let partial = machine.workspace.cache.join("libtorch.partial");
        fs::create_dir_all(partial.join("libtorch/lib")).unwrap();
        fs::write(partial.join("libtorch/lib/libstale.so"), "").unwrap();
        let (libtorch, _) = provide(&machine.workspace, Device::Cpu).unwrap();
        assert!(!partial.exists());
        assert!(!names(&libtorch.dir.join("lib")).contains(&"libstale.so".to_owned()));
    }

    #[test]
    fn a_damaged_libtorch_in_the_cache_is_fetched_again() {
        let machine = Machine::new(PIP);
        let (libtorch, _) = provide(&machine.workspace, Device::Cpu).unwrap();
        fs::remove_file(libtorch.dir.join("build-version")).unwrap();
        assert_eq!(provide(&machine.workspace, Device::Cpu).unwrap().0, libtorch);
        assert_eq!(machine.downloads(), 2);
    }

    #[test]
    fn the_second_setup_does_nothing() {
        let machine = Machine::new(PIP);
        let (libtorch, relinked) = provide(&machine.workspace, Device::Cpu).unwrap();
        assert!(relinked && link::leads_to(&machine.workspace, &libtorch));
        machine.set_python("exit 1");
        assert_eq!(provide(&machine.workspace, Device::Cpu).unwrap(), (libtorch, false));
        assert_eq!(machine.downloads(), 1);
    }

    #[test]
    fn another_workspace_downloads_nothing() {
        let machine = Machine::new(PIP);
        let (libtorch, _) = provide(&machine.workspace, Device::Cpu).unwrap();
        let mut other = machine.workspace.clone();
        other.root = machine.folder.path().join("wheels");
        assert_eq!(provide(&other, Device::Cpu).unwrap(), (libtorch, true));
        assert_eq!(machine.downloads(), 1);
    }

    #[test]
    fn setups_at_one_time_download_once() {
        let machine = Machine::new(PIP);
        thread::scope(|scope| {
            let setups: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| provide(&machine.workspace, Device::Cpu)))
                .collect();
            for setup in setups {
                setup.join().unwrap().unwrap();
            }
        });
        assert_eq!(machine.downloads(), 1);
    }

    #[test]
    fn a_download_that_outlives_its_setup_keeps_the_lock() {
        let machine = Machine::new("exec 3<&0; sleep 1 &"); // ends at once and leaves a child
        fs::create_dir(&machine.workspace.cache).unwrap();
        let path = machine.workspace.cache.join("libtorch.lock");
        let held = lock(&path).unwrap();
        Python::new(&machine.workspace.python).run(["download"], &held).unwrap();
        drop(held);
        let next = File::create(&path).unwrap();
        assert!(matches!(next.try_lock(), Err(TryLockError::WouldBlock)));
        next.lock().unwrap();
    }

    #[test]
    fn a_link_is_replaced_and_a_folder_is_not() {
        let machine = Machine::new(PIP);
        let link = machine.workspace.libtorch_link();
        std::os::unix::fs::symlink("/nowhere", &link).unwrap();
        let (libtorch, relinked) = provide(&machine.workspace, Device::Cpu).unwrap();
        assert!(relinked && link::leads_to(&machine.workspace, &libtorch));
        assert_eq!(names(&machine.workspace.root), [".libtorch"]);
        fs::remove_file(&link).unwrap();
        fs::create_dir(&link).unwrap();
        let error = provide(&machine.workspace, Device::Cpu).unwrap_err().to_string();
        assert!(
            error.contains("a link expected, found a file or folder of another making"),
            "{error}"
        );
    }

    #[test]
    fn machines_without_a_wheel_are_told_of_libtorch() {
        for (os, arch, device, expected) in [
            ("linux", "x86_64", Device::Cuda, true),
            ("linux", "aarch64", Device::Cpu, true),
            ("macos", "aarch64", Device::Cpu, true),
            ("macos", "aarch64", Device::Cuda, false),
            ("macos", "x86_64", Device::Cpu, false),
            ("windows", "x86_64", Device::Cpu, false),
        ] {
            let result = check_platform(os, arch, device);
            assert_eq!(result.is_ok(), expected, "{os} {arch}");
            if let Err(error) = result {
                assert!(crate::problem::render(&error).contains("hint: set LIBTORCH"));
            }
        }
    }
}
