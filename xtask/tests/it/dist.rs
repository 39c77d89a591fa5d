//! The archive on a machine that has nothing but glibc.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use luthier_testing::Need;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/instruments");

/// What a system with glibc has.
const GLIBC: [&str; 8] = [
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libutil.so.1",
    "libmvec.so.1",
];

/// A user who owns nothing.
const NOBODY: &str = "65534:65534";

fn ok(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {stderr}", output.status);
    output
}

#[expect(clippy::disallowed_methods, reason = "the result is sorted")]
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Copies the first `n` drawings of each of three classes.
fn copy_demo(split: &str, n: usize, to: &Path) {
    for class in ["drum", "harp", "piano"] {
        fs::create_dir_all(to.join(class)).unwrap();
        for image in entries(&Path::new(DEMO).join(split).join(class)).iter().take(n) {
            fs::copy(image, to.join(class).join(image.file_name().unwrap())).unwrap();
        }
    }
}

#[test]
fn another_user_predicts_in_a_bare_system_what_this_one_predicts() {
    let can_chroot = Command::new("chroot").args(["/", "true"]).output();
    if !can_chroot.is_ok_and(|output| output.status.success()) {
        Need::Chroot.skip();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let dist = folder.path().join("dist");
    // Packed by somebody who keeps their files for themselves.
    ok(Command::new("sh")
        .args(["-c", "umask 077 && exec \"$0\" dist --output-dir \"$1\""])
        .arg(env!("CARGO_BIN_EXE_xtask"))
        .arg(&dist));
    let archive = entries(&dist)
        .into_iter()
        .find(|path| path.extension().is_some_and(|ending| ending == "gz"))
        .unwrap();
    let listing = ok(Command::new("tar").args(["--full-time", "-tvzf"]).arg(&archive)).stdout;
    let mut times = BTreeSet::new();
    for line in String::from_utf8(listing).unwrap().lines() {
        let [mode, _owner, _size, date, time, ..] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let is_for_all = ["-rw-r--r--", "-rwxr-xr-x", "drwxr-xr-x"].contains(&mode);
        assert!(is_for_all, "{line}");
        times.insert(format!("{date} {time}"));
    }
    assert_eq!(times.len(), 1, "{times:?}");

    // The system: glibc, the archive, and photographs.
    let root = folder.path().join("root");
    fs::create_dir_all(root.join("opt/luthier")).unwrap();
    ok(Command::new("tar")
        .arg("-xzf")
        .arg(&archive)
        .arg("--strip-components=1")
        .arg("-C")
        .arg(root.join("opt/luthier")));
    let binary = root.join("opt/luthier/bin/luthier");
    let listing = ok(Command::new("ldd").arg(&binary)).stdout;
    let listing = String::from_utf8(listing).unwrap();
    for path in listing.split_whitespace().filter(|word| word.starts_with('/')) {
        let path = Path::new(path);
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_packed =
            path.starts_with(&root) || path.canonicalize().unwrap().starts_with(root.canonicalize().unwrap());
        assert!(
            is_packed || GLIBC.contains(&name),
            "{name} is neither packed nor glibc's: {listing}"
        );
        if !is_packed {
            let there = root.join(path.strip_prefix("/").unwrap());
            fs::create_dir_all(there.parent().unwrap()).unwrap();
            fs::copy(path, there).unwrap();
        }
    }
    // The loader reads there where the program lies. A container has /proc; to mount it here would need more rights.
    fs::create_dir_all(root.join("proc/self")).unwrap();
    std::os::unix::fs::symlink("/opt/luthier/bin/luthier", root.join("proc/self/exe")).unwrap();
    copy_demo("train", 8, &root.join("train"));
    copy_demo("test", 2, &root.join("photos"));

    let run = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command
            .args(arguments)
            .current_dir(&root)
            .env("HOME", folder.path().join("home"));
        command.env_remove("XDG_CACHE_HOME");
        ok(&mut command)
    };
    let weights = std::env::var("LUTHIER_TEST_WEIGHTS").unwrap_or_else(|_| "untrained".to_owned());
    run(&[
        "pipeline",
        "--data-dir",
        "train",
        "--test-fraction",
        "0",
        "--weights",
        &weights,
    ]);
    run(&["export", "--format", "bundle", "--output", "bundle"]);
    for part in ["train", "models", "features", ".luthier"] {
        fs::remove_dir_all(root.join(part)).unwrap();
    }
    let predict = [
        "predict",
        "--model-path",
        "bundle/model.safetensors",
        "photos",
        "--format",
        "json",
    ];
    let expected = run(&predict).stdout;
    assert_eq!(String::from_utf8_lossy(&expected).lines().count(), 6);
    let mut bare = Command::new("chroot");
    bare.arg(format!("--userspec={NOBODY}"))
        .arg(&root)
        .arg("/opt/luthier/bin/luthier")
        .args(predict);
    bare.env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", "/");
    let found = ok(&mut bare).stdout;
    assert_eq!(String::from_utf8_lossy(&found), String::from_utf8_lossy(&expected));
}
