//! Moves files into the folders of the classes that people have decided on.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use luthier_artifact::{Content, Digest, ManifestEntry, Observer, Split, file_names};
use luthier_cache::{Cache, DryRun};
use luthier_extract::{Layout, left_out, scan};

use crate::pipeline::Data;
use crate::sorter::{Sorter, Transfer};
use crate::words::printable;
use crate::{Error, Result};

/// Moves each file whose decided class is not that of its folder into the folder of its class, and tells `each` from
/// where to where. Nothing is overwritten or merged: a file whose name is taken gets a number, also if the other has
/// the same bytes. So it does where a decision leaves out a file of its bytes and of that name, and would hold for it
/// there. A file that is left out by a decision, or that changes meanwhile, stays where it is. With [`DryRun::Yes`]
/// nothing is moved. The result is what was done, in a sentence for each folder of classes.
///
/// # Errors
/// [`Error::NoClassFolders`] if the classes are no folders, and those of [`scan`] and [`Sorter::put`].
pub fn relabel(
    data: &Data,
    cache: &Cache,
    dry_run: DryRun,
    observer: &dyn Observer,
    mut each: impl FnMut(&Path, &Path),
) -> Result<Vec<String>> {
    let folders: &[Split] = match data.source.layout {
        Layout::Split { .. } => &[Split::Train, Split::Test],
        Layout::Classes(_) => &[Split::Train],
        _ => return Err(Error::NoClassFolders),
    };
    let found = scan(&data.source, cache, data.rehash, observer)?;
    let left_out = left_out(&data.source)?;
    let mut done = Vec::new();
    for &split in folders {
        let folder = data.source.folder(split).to_owned();
        // A folder that has no splits in it has the images of both.
        let is_here = |entry: &&ManifestEntry| folders.len() == 1 || entry.split == split;
        let mut moved = found.relabelled.iter().filter(is_here).peekable();
        if moved.peek().is_none() {
            continue;
        }
        let classes = found.manifest.classes.clone();
        // As decisions name files.
        let prefix = match folders.len() {
            1 => String::new(),
            _ => format!("{split}/"),
        };
        let path = |file: &str| Some(folder.join(file_names::path_of(file.strip_prefix(&prefix)?)));
        let kept_free: HashSet<(Digest, PathBuf)> = (left_out.iter())
            .filter_map(|(image, file)| Some((*image, path(file)?)))
            .collect();
        let mut sorter = Sorter::new(Transfer::Move, dry_run, folder, classes)?
            .keeping_copies()
            .keeping_free(kept_free);
        for entry in moved {
            if observer.is_interrupted() {
                return Err(luthier_extract::Error::Interrupted.into());
            }
            let (from, digest) = (data.source.path(entry), digest_of(entry));
            match sorter.put(&from, &entry.class, digest) {
                Ok(to) => each(&from, &to),
                // The decision was about other bytes.
                Err(error @ Error::OtherImage { .. }) => {
                    tracing::warn!("{}: {error}", printable(&file_names::name_of(&from)));
                }
                Err(error) => return Err(error),
            }
        }
        done.push(sorter.summary());
    }
    Ok(done)
}

fn digest_of(entry: &ManifestEntry) -> Option<&Digest> {
    match &entry.content {
        Content::Digest(digest) => Some(digest),
        Content::Unreadable(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::SystemTime;

    use luthier_artifact::folder_of;
    use luthier_extract::{DataSource, DecisionLog, NewDecision, Rehash, Verdict};

    use super::*;

    /// A folder of classes, in which each file holds its own name, and decisions about images of other names.
    struct Scene {
        root: tempfile::TempDir,
        cache: Cache,
        data: Data,
    }

    impl Scene {
        fn new(files: &[&str], decisions: &[(&str, &str, Option<&str>)]) -> Self {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("decisions.jsonl");
            let mut log = DecisionLog::open(&path).unwrap();
            for (bytes, file, class) in decisions {
                let decision = NewDecision {
                    image: Digest::of(bytes.as_bytes()),
                    files: vec![(*file).to_owned()],
                    verdict: class.map_or(Verdict::Exclude, |_| Verdict::Change),
                    class: class.map(str::to_owned),
                    was: None,
                    copies: false,
                    undoes: None,
                };
                log.append(&[decision], SystemTime::UNIX_EPOCH).unwrap();
            }
            let photos = root.path().join("photos");
            let scene = Scene {
                cache: Cache::open(&root.path().join("cache")).unwrap(),
                data: Data {
                    source: DataSource {
                        decisions: Some(path),
                        test_fraction: 0.0,
                        ..DataSource::new(Layout::Classes(photos))
                    },
                    rehash: Rehash::Yes,
                    is_strict: false,
                },
                root,
            };
            for file in files {
                scene.write(file, file);
            }
            scene
        }

        fn write(&self, file: &str, bytes: &str) {
            let path = self.root.path().join("photos").join(file);
            fs::create_dir_all(folder_of(&path)).unwrap();
            fs::write(path, bytes).unwrap();
        }

        /// The files that are moved, each with where to.
        fn relabel(&self, mut each: impl FnMut()) -> Vec<(String, String)> {
            let mut moved = Vec::new();
            let name = |path: &Path| {
                let below = path.strip_prefix(self.root.path().join("photos")).unwrap();
                file_names::name_of(below)
            };
            relabel(&self.data, &self.cache, DryRun::No, &(), |from, to| {
                moved.push((name(from), name(to)));
                each();
            })
            .unwrap();
            moved
        }

        /// The files that a scan finds, with their classes.
        fn scanned(&self) -> Vec<(String, String)> {
            let found = scan(&self.data.source, &self.cache, Rehash::Yes, &()).unwrap();
            let entries = found.manifest.entries.into_iter();
            entries.map(|entry| (entry.file, entry.class)).collect()
        }
    }

    fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
        pairs.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec()
    }

    #[test]
    fn no_file_moves_to_a_name_under_which_it_was_left_out() {
        let scene = Scene::new(
            &["drum/2.jpg", "harp/1.jpg", "harp/2.jpg"],
            &[
                ("harp/1.jpg", "drum/1.jpg", None),
                ("harp/1.jpg", "harp/1.jpg", Some("drum")),
            ],
        );
        assert_eq!(scene.relabel(|| {}), pairs([("harp/1.jpg", "drum/1-2.jpg")]));
        let expected = pairs([("drum/1-2.jpg", "drum"), ("drum/2.jpg", "drum"), ("harp/2.jpg", "harp")]);
        assert_eq!(scene.scanned(), expected);
    }

    #[test]
    fn a_file_that_changes_meanwhile_stays_and_the_others_move() {
        let files = ["drum/0.jpg", "harp/1.jpg", "harp/2.jpg", "harp/3.jpg", "harp/4.jpg"];
        let change = |file| (file, file, Some("drum"));
        let scene = Scene::new(&files, &files[1..4].iter().copied().map(change).collect::<Vec<_>>());
        let moved = scene.relabel(|| scene.write("harp/2.jpg", "another image"));
        assert_eq!(
            moved,
            pairs([("harp/1.jpg", "drum/1.jpg"), ("harp/3.jpg", "drum/3.jpg")])
        );
        let stayed = ("harp/2.jpg".to_owned(), "harp".to_owned());
        assert!(scene.scanned().contains(&stayed));
    }
}
