//! Folders of every kind.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use luthier_artifact::{Content, Split, file_names};
use luthier_cache::Cache;
use luthier_extract::{
    DataSource, Error, ImageFiles, Layout, PassedOver, Rehash, Scan, find_images, images_below, scan,
};

use crate::photo;

struct Folders {
    root: tempfile::TempDir,
    cache: Cache,
}

impl Folders {
    /// A data set with these files, which all hold different bytes.
    fn new(files: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(&root.path().join("cache")).unwrap();
        let folders = Folders { root, cache };
        for (seed, file) in files.iter().enumerate() {
            folders.write(file, &photo(seed as u8));
        }
        folders
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        let path = self.path(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn path(&self, file: &str) -> std::path::PathBuf {
        self.root.path().join(file)
    }

    fn split(&self) -> DataSource {
        DataSource::new(Layout::Split {
            train: self.path("train"),
            test: self.path("test"),
        })
    }

    fn scan(&self) -> Result<Scan, Error> {
        scan(&self.split(), &self.cache, Rehash::No, &())
    }

    fn error(&self) -> String {
        self.scan()
            .unwrap_err()
            .to_string()
            .replace(&self.root.path().display().to_string(), "")
    }
}

const GOOD: [&str; 4] = [
    "train/drum/1.jpg",
    "train/harp/1.jpg",
    "test/drum/1.jpg",
    "test/harp/1.jpg",
];

fn with(more: &[&str]) -> Folders {
    Folders::new(&[&GOOD[..], more].concat())
}

fn files(scan: &Scan, split: Split) -> Vec<&str> {
    scan.manifest
        .entries
        .iter()
        .filter(|entry| entry.split == split)
        .map(|entry| entry.file.as_str())
        .collect()
}

#[test]
fn classes_are_sorted_by_code_point_and_files_by_name() {
    let scan = with(&["train/Zither/b.PNG", "train/Zither/a.JPeG", "train/čelo/deep/er/1.webp"])
        .scan()
        .unwrap();
    assert_eq!(scan.manifest.classes, ["Zither", "drum", "harp", "čelo"]);
    assert_eq!(
        files(&scan, Split::Train),
        [
            "Zither/a.JPeG",
            "Zither/b.PNG",
            "drum/1.jpg",
            "harp/1.jpg",
            "čelo/deep/er/1.webp"
        ]
    );
    assert_eq!(scan.manifest.label("harp"), Some(2));
}

#[test]
fn what_is_no_image_is_ignored_and_counted() {
    let scan = with(&[
        "train/drum/.hidden.jpg",
        "train/.git/x/1.jpg",
        "train/drum/notes.txt",
        "train/loose.jpg",
    ])
    .scan();
    let scan = scan.unwrap();
    assert_eq!(scan.manifest.entries.len(), 4);
    assert_eq!(scan.n_ignored, 4);
}

#[test]
fn folders_without_a_data_set_are_errors_that_name_them() {
    let cases: [(&[&str], &str); 6] = [
        (&[], "/train: no such folder"),
        (&["train/drum/1.jpg", "train/harp/1.jpg"], "/test: no such folder"),
        (
            &["train/readme.txt", "test/drum/1.jpg"],
            "/train: no images, expected /train/<class>/<image>.jpg (or png, webp, heic and others)",
        ),
        (
            &["train/1.jpg", "test/drum/1.jpg"],
            "/train: no images, expected /train/<class>/<image>.jpg (or png, webp, heic and others)",
        ),
        (
            &["train/drum/1.jpg", "test/drum/1.jpg"],
            "/train: found one class (drum), expected at least two folders with images",
        ),
        (
            &[
                "train/drum/1.jpg",
                "train/harp/1.jpg",
                "test/lute/1.jpg",
                "test/oud/1.jpg",
            ],
            "/train: no training images for lute, oud, which /test has",
        ),
    ];
    for (files, expected) in cases {
        assert_eq!(Folders::new(files).error(), expected, "{files:?}");
    }
}

#[test]
fn a_file_that_cannot_be_opened_is_an_entry_with_the_reason() {
    let folders = with(&[]);
    #[cfg(unix)]
    std::os::unix::fs::symlink("nowhere.jpg", folders.path("train/drum/2.jpg")).unwrap();
    let scan = folders.scan().unwrap();
    let entry = scan
        .manifest
        .entries
        .iter()
        .find(|entry| entry.file == "drum/2.jpg")
        .unwrap();
    assert!(
        matches!(&entry.content, Content::Unreadable(reason) if reason.contains("No such file")),
        "{entry:?}"
    );
}

#[test]
fn other_links_that_lead_nowhere_are_ignored() {
    let folders = with(&[]);
    #[cfg(unix)]
    for name in ["train/drum/latest", "train/drum/.#x.jpg", "train/lock"] {
        std::os::unix::fs::symlink("nowhere", folders.path(name)).unwrap();
    }
    let scan = folders.scan().unwrap();
    assert_eq!((scan.manifest.entries.len(), scan.n_ignored), (4, 3));
}

/// Links whose way through the folders never ends: to a folder above, and to themselves.
#[cfg(unix)]
fn loops(folders: &Folders) {
    for (target, link) in [
        ("..", "train/drum/up"),
        (".", "train/here"),
        ("knot", "train/drum/knot"),
        ("knot.jpg", "train/drum/knot.jpg"),
    ] {
        std::os::unix::fs::symlink(target, folders.path(link)).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn links_that_go_round_in_circles_are_named_and_passed_over() {
    let folders = with(&[]);
    loops(&folders);
    let scan = folders.scan().unwrap();
    assert_eq!(scan.manifest.classes, ["drum", "harp"]);
    assert_eq!(
        files(&scan, Split::Train),
        ["drum/1.jpg", "drum/knot.jpg", "harp/1.jpg"],
        "a link that is named like an image is an image that cannot be read"
    );
    assert!(matches!(
        &scan.manifest.entries[1].content,
        Content::Unreadable(reason) if reason.contains("Too many levels of symbolic links")
    ));
    let passed_over = ["train/drum/up", "train/here"].map(|link| PassedOver {
        path: folders.path(link),
        reason: "a link to a folder that holds it".to_owned(),
    });
    assert_eq!(scan.passed_over, passed_over);
    assert_eq!(scan.n_ignored, 1, "the link that is not named like an image");
}

#[cfg(unix)]
#[test]
fn images_below_a_folder_are_found_beside_links_that_go_round_in_circles() {
    let folders = with(&[]);
    loops(&folders);
    let train = folders.path("train");
    let names = ["drum/1.jpg", "drum/knot.jpg", "harp/1.jpg"];
    let found = find_images(&train, &[]).unwrap();
    assert_eq!(found.images, names.map(|name| train.join(name)));
    let passed_over: Vec<String> = found.passed_over.iter().map(PassedOver::to_string).collect();
    let expected = ["drum/up", "here"].map(|link| {
        format!(
            "{}: passed over: a link to a folder that holds it",
            train.join(link).display()
        )
    });
    assert_eq!(passed_over, expected);
    assert_eq!(images_below(&train).unwrap(), found.images);
}

/// Root may read every folder: then there is nothing to test here.
/// `only_a_failing_disk_and_the_first_folder_end_a_scan` tests the rule.
#[cfg(unix)]
#[test]
fn a_folder_that_may_not_be_read_is_named_and_passed_over() {
    use std::os::unix::fs::PermissionsExt;
    let folders = with(&["train/drum/private/1.jpg"]);
    let (lost, private) = (folders.path("train/lost+found"), folders.path("train/drum/private"));
    fs::create_dir(&lost).unwrap();
    for folder in [&lost, &private] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o000)).unwrap();
    }
    let may_read = fs::metadata(private.join("1.jpg")).is_ok();
    let (scan, below) = (folders.scan(), images_below(&folders.path("train")));
    for folder in [&lost, &private] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    }
    if may_read {
        eprintln!("SKIPPED: this user may read every folder");
        return;
    }
    let scan = scan.unwrap();
    assert_eq!(scan.manifest.classes, ["drum", "harp"]);
    let passed_over: Vec<_> = scan.passed_over.iter().map(|folder| &folder.path).collect();
    assert_eq!(passed_over, [&private, &lost]);
    assert_eq!(below.unwrap().len(), 2);
}

#[test]
fn links_to_folders_are_followed() {
    let folders = with(&["elsewhere/1.jpg"]);
    #[cfg(unix)]
    std::os::unix::fs::symlink("../elsewhere", folders.path("train/lyre")).unwrap();
    assert_eq!(folders.scan().unwrap().manifest.classes, ["drum", "harp", "lyre"]);
}

#[test]
fn unchanged_files_are_not_read_again_unless_asked() {
    let folders = with(&[]);
    // Files that changed a moment ago might change again unseen: these did not.
    for file in GOOD {
        age(&folders.path(file));
    }
    assert_eq!(folders.scan().unwrap().n_read, 4);
    assert_eq!(folders.scan().unwrap().n_read, 0);
    // As a shell completes the names.
    let split = DataSource::new(Layout::Split {
        train: folders.path("train/"),
        test: folders.path("test/"),
    });
    assert_eq!(scan(&split, &folders.cache, Rehash::No, &()).unwrap().n_read, 0);

    // The same size and time, other bytes: only a look inside tells.
    let path = folders.path("train/drum/1.jpg");
    let (before, mut bytes) = (folders.scan().unwrap(), fs::read(&path).unwrap());
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    age(&path);
    assert_eq!(folders.scan().unwrap(), before);
    let after = scan(&folders.split(), &folders.cache, Rehash::Yes, &()).unwrap();
    assert_eq!(after.n_read, 4);
    assert_ne!(after.manifest, before.manifest);
}

#[test]
fn a_file_that_changed_a_moment_ago_is_read_again() {
    let folders = with(&[]);
    assert_eq!(folders.scan().unwrap().n_read, 4);
    assert_eq!(folders.scan().unwrap().n_read, 4);
}

fn age(path: &Path) {
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    fs::File::options()
        .append(true)
        .open(path)
        .unwrap()
        .set_modified(time)
        .unwrap();
}

#[test]
fn one_folder_is_split_by_the_images_bytes() {
    let names: Vec<String> = (0..40)
        .map(|n| format!("data/{}/{n}.jpg", if n % 4 == 0 { "drum" } else { "harp" }))
        .collect();
    let folders = Folders::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let split = |seed| {
        let source = DataSource {
            test_fraction: 0.2,
            seed,
            ..DataSource::new(Layout::Classes(folders.path("data")))
        };
        scan(&source, &folders.cache, Rehash::No, &()).unwrap()
    };
    let chosen = |scan: &Scan| {
        files(scan, Split::Test)
            .iter()
            .map(|file| (*file).to_owned())
            .collect::<Vec<_>>()
    };
    let first = split(0);
    assert!(
        (3..=16).contains(&chosen(&first).len()),
        "near a fifth of 40: {}",
        chosen(&first).len()
    );
    assert_eq!(split(0), first);
    assert_ne!(chosen(&split(1)), chosen(&first));

    // A copy goes where the original is.
    let copied = chosen(&first)[0].clone();
    let bytes = fs::read(folders.path("data").join(&copied)).unwrap();
    folders.write("data/drum/copy.jpg", &bytes);
    let with_copy = split(0);
    assert!(chosen(&with_copy).contains(&"drum/copy.jpg".to_owned()));
}

#[test]
fn two_hundred_edits_move_no_image_across_the_split() {
    let folders = Folders::new(&["data/drum/0.jpg"]);
    for n in 0..60_u8 {
        let class = if n % 2 == 0 { "drum" } else { "harp" };
        folders.write(&format!("data/{class}/first{n}.jpg"), &[b"image ", &[n][..]].concat());
    }
    let split = || {
        let source = DataSource {
            test_fraction: 0.3,
            seed: 5,
            ..DataSource::new(Layout::Classes(folders.path("data")))
        };
        let manifest = scan(&source, &folders.cache, Rehash::Yes, &()).unwrap().manifest;
        let side = |entry: &luthier_artifact::ManifestEntry| (entry.content.clone(), entry.split);
        manifest.entries.iter().map(side).collect::<Vec<_>>()
    };
    let mut sides: HashMap<luthier_artifact::Content, Split> = split().into_iter().collect();
    // splitmix64, so that the edits are the same in every run.
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((mixed ^ (mixed >> 27)) % below as u64) as usize
    };
    for n in 0..200 {
        let files = find_images(&folders.path("data"), &[]).unwrap().images;
        let file = &files[random(files.len())];
        match random(3) {
            0 => folders.write(
                &format!("data/{}/new{n}.jpg", ["drum", "harp"][random(2)]),
                format!("new {n}").as_bytes(),
            ),
            1 if files.len() > 30 => fs::remove_file(file).unwrap(),
            _ => fs::rename(file, file.with_file_name(format!("renamed{n}.jpg"))).unwrap(),
        }
        for (content, side) in split() {
            assert_eq!(*sides.entry(content).or_insert(side), side, "edit {n}");
        }
    }
}

#[test]
fn a_class_that_is_drawn_whole_and_a_draw_of_nothing_are_errors() {
    let folders = Folders::new(&["data/drum/1.jpg", "data/harp/1.jpg"]);
    let error = |test_fraction| {
        let source = DataSource {
            test_fraction,
            seed: 0,
            ..DataSource::new(Layout::Classes(folders.path("data")))
        };
        scan(&source, &folders.cache, Rehash::No, &()).unwrap_err().to_string()
    };
    assert_eq!(
        error(1.0 - 1e-9),
        "all images of drum, harp are for the test, expected some to train on"
    );
    assert_eq!(error(1e-9), "none of the 2 images is for the test, expected some");
}

#[test]
fn what_systems_and_luthier_itself_leave_among_the_images_is_passed_over_and_counted() {
    let folders = with(&[
        "train/__MACOSX/drum/._1.jpg",
        "train/@eaDir/1.jpg",
        "train/drum/@eaDir/1.jpg/thumb.jpg",
        "train/drum/Thumbs.db",
        "train/.ipynb_checkpoints/1.jpg",
        "train/lost+found/1.jpg",
        "train/reports/confusion_matrix.png",
        "train/reports/report.json",
        "train/features/features.json",
        "train/moments/3-of-64.safetensors",
    ]);
    fs::create_dir_all(folders.path("train/empty/below")).unwrap();
    let scan = folders.scan().unwrap();
    assert_eq!(scan.manifest.classes, ["drum", "harp"]);
    assert_eq!(scan.manifest.entries.len(), 4);
    assert_eq!(scan.n_ignored, 10);
    assert_eq!(find_images(&folders.path("train"), &[]).unwrap().images.len(), 2);
    // A class may have such a name if Luthier has written nothing there.
    let folders = with(&["train/reports/1.jpg"]);
    assert_eq!(folders.scan().unwrap().manifest.classes, ["drum", "harp", "reports"]);
}

#[test]
fn the_parent_of_train_and_test_is_not_taken_for_a_data_set() {
    let folders = Folders::new(&["data/train/drum/1.jpg", "data/test/drum/2.jpg"]);
    let source = DataSource {
        test_fraction: 0.5,
        seed: 0,
        ..DataSource::new(Layout::Classes(folders.path("data")))
    };
    let error = scan(&source, &folders.cache, Rehash::No, &()).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("data: found folders for training and test, expected one folder per class"),
        "{error}"
    );
    let hint = error.hint().unwrap();
    assert!(
        hint.contains("data/train --test-dir") && hint.ends_with("data/test"),
        "{hint}"
    );
}

#[test]
fn a_name_with_an_accent_is_one_class_however_a_system_writes_it() {
    let (composed, decomposed) = ("caf\u{e9}", "cafe\u{301}");
    let folders = with(&[&format!("train/{composed}/1.jpg"), &format!("train/{decomposed}/2.jpg")]);
    let manifest = folders.scan().unwrap().manifest;
    assert_eq!(manifest.classes, [composed, "drum", "harp"]);
    let of_class = manifest.entries.iter().filter(|entry| entry.class == composed);
    let files: Vec<&str> = of_class.map(|entry| entry.file.as_str()).collect();
    // The files keep their names, so that they are found.
    assert_eq!(files, [format!("{decomposed}/2.jpg"), format!("{composed}/1.jpg")]);
}

/// The same images as [`GOOD`], in one folder.
fn flat() -> Folders {
    let folders = with(&[]);
    for (place, file) in GOOD.iter().enumerate() {
        let bytes = fs::read(folders.path(file)).unwrap();
        folders.write(&format!("flat/{}_{place}.jpg", file.split('/').nth(1).unwrap()), &bytes);
    }
    folders
}

/// Split, class and content of each image, without names.
fn labelled(scan: &Scan) -> Vec<(Split, String, Content)> {
    let image = |entry: &luthier_artifact::ManifestEntry| (entry.split, entry.class.clone(), entry.content.clone());
    let mut images: Vec<_> = scan.manifest.entries.iter().map(image).collect();
    images.sort_by_key(|image| format!("{image:?}"));
    images
}

#[test]
fn a_table_labels_images_as_folders_do() {
    let folders = flat();
    let rows = GOOD.iter().enumerate().map(|(place, file)| {
        let mut parts = file.split('/');
        let (split, class) = (parts.next().unwrap(), parts.next().unwrap());
        format!("{class}_{place}.jpg,{class},{split}\n")
    });
    folders.write(
        "flat/labels.csv",
        format!("file,label,split\n{}", rows.collect::<String>()).as_bytes(),
    );
    let source = DataSource::new(Layout::table(folders.path("flat/labels.csv"), None));
    for path in find_images(&folders.path("flat"), &[]).unwrap().images {
        age(&path);
    }
    let found = scan(&source, &folders.cache, Rehash::No, &()).unwrap();
    assert_eq!(labelled(&found), labelled(&folders.scan().unwrap()));
    assert_eq!(found.manifest.entries[0].file, "drum_0.jpg");

    // Another cell, a file that is missing, a folder, and what is not in the table.
    fs::create_dir(folders.path("flat/album.jpg")).unwrap();
    let table = fs::read_to_string(folders.path("flat/labels.csv")).unwrap();
    let table = table.replacen(
        "drum_0.jpg,drum,train",
        "drum_0.jpg,harp,train\ngone.jpg,drum,train\nalbum.jpg,drum,train",
        1,
    );
    folders.write("flat/labels.csv", table.as_bytes());
    let found = scan(&source, &folders.cache, Rehash::No, &()).unwrap();
    let entry = |file: &str| found.manifest.entries.iter().find(|entry| entry.file == file).unwrap();
    assert_eq!(entry("drum_0.jpg").class, "harp");
    let reason = |file: &str| match &entry(file).content {
        Content::Unreadable(reason) => reason.clone(),
        Content::Digest(_) => panic!("there is no such file"),
    };
    let gone = reason("gone.jpg");
    assert!(gone.contains("(line 3 of ") && gone.ends_with("labels.csv)"), "{gone}");
    let album = reason("album.jpg");
    assert!(album.starts_with("not a file (line 4 of "), "{album}");
    assert_eq!(found.n_read, 0, "no file was read again");
}

#[test]
fn names_label_images_where_a_pattern_finds_the_class() {
    let folders = flat();
    folders.write("flat/cover.jpg", &photo(99));
    let named = |pattern: &str, seed| {
        let source = DataSource {
            test_fraction: 0.3,
            seed,
            ..DataSource::new(Layout::Named {
                images: ImageFiles::Below(folders.path("flat")),
                pattern: Some(pattern.to_owned()),
            })
        };
        scan(&source, &folders.cache, Rehash::No, &())
    };
    // Of four images a draw may leave a class nothing to train on.
    let found = (0..20)
        .find_map(|seed| named(r"(?<class>[a-z]+)_\d", seed).ok())
        .unwrap();
    assert_eq!(found.manifest.classes, ["drum", "harp"]);
    assert_eq!((found.manifest.entries.len(), found.n_ignored), (4, 1));
    for (pattern, expected) in [
        (r"([a-z]+)_\d", "0 named groups, expected one"),
        (r"(?<class>[a-z]+)-\d", "it fits no file, for example not cover.jpg"),
        (r"(?<class>", "regex parse error"),
    ] {
        let error = named(pattern, 0).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("--class-from {pattern}: ")) && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn what_a_user_leaves_out_is_no_data_and_is_counted() {
    let folders = Folders::new(&[
        "data/drum/1.jpg",
        "data/drum/2.gif",
        "data/drum/keep.gif",
        "data/drum/thumbs/1.jpg",
        "data/harp/1.jpg",
        "data/harp/raw/1.jpg",
        "data/harp/raw/best.jpg",
        "data/raw/1.jpg",
    ]);
    let scanned = |exclude: &[&str]| {
        let source = DataSource {
            exclude: exclude.iter().map(|&glob| glob.to_owned()).collect(),
            test_fraction: 0.0,
            ..DataSource::new(Layout::Classes(folders.path("data")))
        };
        scan(&source, &folders.cache, Rehash::No, &())
    };
    let left = |exclude: &[&str]| {
        let found = scanned(exclude).unwrap();
        let names: Vec<String> = files(&found, Split::Train)
            .iter()
            .map(|&file| file.to_owned())
            .collect();
        (names.join(" "), found.n_excluded)
    };
    let expected = "drum/1.jpg drum/keep.gif harp/1.jpg";
    assert_eq!(
        left(&["*.gif", "!keep.gif", "thumbs/", "raw"]),
        (expected.to_owned(), 4),
        "a folder counts once"
    );
    // The same in files: the nearer one has the last word, and the command the very last.
    folders.write(
        "data/.luthierignore",
        b"# small ones\n*.gif\n!keep.gif\nthumbs/\n/raw/\n",
    );
    folders.write("data/harp/.luthierignore", b"raw/*\n!raw/best.jpg\n");
    let with_best = format!("{expected} harp/raw/best.jpg");
    assert_eq!(left(&[]), (with_best, 4));
    assert_eq!(left(&["best.jpg", "keep.gif"]).0, "drum/1.jpg harp/1.jpg");
    // Whoever lists a folder leaves out the same.
    let listed = find_images(&folders.path("data"), &[]).unwrap();
    assert_eq!((listed.images.len(), listed.n_excluded), (4, 4));

    let error = scanned(&["a{b"]).unwrap_err().to_string();
    assert!(error.starts_with("--exclude: "), "{error}");
    for wrong in [&b"a{b\n"[..], b"caf\xE9\n"] {
        folders.write("data/.luthierignore", wrong);
        let error = scanned(&[]).unwrap_err().to_string();
        assert!(error.contains("data/.luthierignore: "), "{error}");
    }
}

#[test]
fn a_list_of_files_takes_their_classes_from_their_folders_or_from_a_pattern() {
    let folders = flat();
    folders.write(
        "list.txt",
        b"train/drum/1.jpg\ntrain/harp/1.jpg\ntest/harp/1.jpg\ngone/1.jpg\n",
    );
    let listed = |pattern: Option<&str>| {
        let source = DataSource {
            test_fraction: 0.0,
            ..DataSource::new(Layout::Named {
                images: ImageFiles::listed(folders.path("list.txt"), None),
                pattern: pattern.map(str::to_owned),
            })
        };
        scan(&source, &folders.cache, Rehash::No, &())
    };
    let found = listed(None).unwrap();
    assert_eq!(found.manifest.classes, ["drum", "gone", "harp"]);
    let Content::Unreadable(reason) = &found.manifest.entries[0].content else {
        panic!("there is no such file")
    };
    assert!(reason.contains("(line 4 of "), "{reason}");
    assert_eq!(
        listed(Some("^(?<side>train|test)/")).unwrap().manifest.classes,
        ["test", "train"]
    );

    folders.write("list.txt", b"drum_0.jpg\n");
    let error = listed(None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a list of files without classes: it fits no file, for example not drum_0.jpg"
    );
    folders.write("list.txt", b"\n");
    let error = listed(None).unwrap_err().to_string();
    assert!(error.ends_with("list.txt:1: no file is named"), "{error}");
}

#[test]
fn images_without_labels_are_all_in_one_split_and_have_no_class() {
    let folders = Folders::new(&[
        "heap/a.jpg",
        "heap/2024/b.jpg",
        "heap/2024/trip/c.png",
        "heap/notes.txt",
    ]);
    let source = DataSource::new(Layout::Unlabelled(ImageFiles::Below(folders.path("heap"))));
    let found = scan(&source, &folders.cache, Rehash::No, &()).unwrap();
    assert_eq!(files(&found, Split::Train), ["2024/b.jpg", "2024/trip/c.png", "a.jpg"]);
    assert_eq!((found.manifest.classes, found.n_ignored), (vec![String::new()], 1));

    let empty = DataSource::new(Layout::Unlabelled(ImageFiles::Below(folders.path("cache"))));
    let error = scan(&empty, &folders.cache, Rehash::No, &()).unwrap_err().to_string();
    assert!(
        error.ends_with("cache: no images in this folder or below it"),
        "{error}"
    );
}

#[test]
fn a_folder_looks_labelled_if_it_has_two_folders_and_no_image_of_its_own() {
    let folders = Folders::new(&[
        "labelled/drum/1.jpg",
        "labelled/harp/1.jpg",
        "labelled/readme.txt",
        "labelled/.git/1.jpg",
        "flat/1.jpg",
        "nested/2024/1.jpg",
        "mixed/a/1.jpg",
        "mixed/b/1.jpg",
        "mixed/1.jpg",
    ]);
    for (folder, is_labelled) in [("labelled", true), ("flat", false), ("nested", false), ("mixed", false)] {
        let layout = Layout::of_folder(folders.path(folder), &[]).unwrap();
        assert_eq!(matches!(layout, Layout::Classes(_)), is_labelled, "{folder}");
    }
    // What is left out does not count.
    let layout = Layout::of_folder(folders.path("mixed"), &["/1.jpg".to_owned()]).unwrap();
    assert!(matches!(layout, Layout::Classes(_)));
    let layout = Layout::of_folder(folders.path("labelled"), &["harp/".to_owned()]).unwrap();
    assert!(matches!(layout, Layout::Unlabelled(_)));
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_are_not_utf8_are_read_like_others() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let folders = with(&[]);
    let class = folders.path("train").join(OsStr::from_bytes(b"caf\xE9"));
    fs::create_dir(&class).unwrap();
    fs::write(class.join(OsStr::from_bytes(b"\xE9t\xE9.jpg")), photo(50)).unwrap();
    let found = folders.scan().unwrap();
    let read = found
        .manifest
        .entries
        .iter()
        .find(|entry| entry.file.starts_with("caf"));
    let read = read.unwrap();
    assert_eq!(*file_names::bytes_of(&read.file), *b"caf\xE9/\xE9t\xE9.jpg");
    assert_eq!(*file_names::bytes_of(&read.class), *b"caf\xE9");
    assert!(matches!(read.content, Content::Digest(_)), "{:?}", read.content);
    assert_eq!(
        fs::read(folders.split().path(read)).unwrap(),
        photo(50),
        "its path leads to it"
    );
    // A list of files names it by its bytes.
    folders.write("list.txt", b"train/caf\xE9/\xE9t\xE9.jpg\ntrain/drum/1.jpg\n");
    let source = DataSource {
        test_fraction: 0.0,
        ..DataSource::new(Layout::Named {
            images: ImageFiles::listed(folders.path("list.txt"), None),
            pattern: None,
        })
    };
    let listed = scan(&source, &folders.cache, Rehash::No, &()).unwrap();
    let of_list = listed
        .manifest
        .entries
        .iter()
        .find(|entry| entry.class == read.class)
        .unwrap();
    assert_eq!(of_list.content, read.content);
}
