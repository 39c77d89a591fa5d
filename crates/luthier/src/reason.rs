//! Why a stage has the status it has: typed, and put into words in one place.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use luthier_artifact::{Content, Key, Manifest, ManifestEntry};
use luthier_cache::Cache;
use luthier_extract::PERCEPTUAL_HASH;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::Result;
use crate::words::counted;

/// One thing that is not as it was in the last run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    /// This project has not run before.
    FirstRun,
    /// The last run's result, or the record of it, is no longer in the cache.
    Lost,
    /// A stage above must run first; whether this one must is known only then.
    Waits {
        /// The stage above.
        stage: &'static str,
    },
    /// The images are others.
    Images(ImageChanges),
    /// A stage above gave another result.
    Input {
        /// What it gave, for example `model`.
        name: &'static str,
    },
    /// A part of the configuration; `None` where there was, or is, no such part.
    Setting {
        /// The part's name.
        name: String,
        /// Its value in the last run.
        before: Option<String>,
        /// Its value now.
        now: Option<String>,
    },
    /// One part of the configuration in place of another.
    Instead {
        /// The part of the last run.
        before: Setting,
        /// The part of this run.
        now: Setting,
    },
    /// The network has other weights.
    Weights {
        /// The weights of the last run.
        before: Weights,
        /// The weights of this run.
        now: Weights,
    },
    /// Luthier itself does something in another way.
    Version {
        /// What it does.
        of: String,
        /// The version of the last run.
        before: String,
        /// The version of this run.
        now: String,
    },
    /// The network runs on another libtorch.
    Libtorch {
        /// The version of the last run.
        before: String,
        /// The version of this run.
        now: String,
    },
}

/// A part of the configuration with its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// The part's name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// What is known of weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Weights {
    /// What they are called.
    pub name: String,
    /// The SHA-256 of their file.
    pub sha256: String,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::FirstRun => f.write_str("first run"),
            Reason::Lost => f.write_str("cache entry lost"),
            Reason::Waits { stage } => write!(f, "waits for {stage}"),
            Reason::Images(changes) => changes.fmt(f),
            Reason::Input { name } => write!(f, "{name} changed"),
            Reason::Setting { name, before, now } => match (before, now) {
                (Some(before), Some(now)) => write!(f, "{name} {} → {}", short(before), short(now)),
                (None, Some(now)) => write!(f, "{name} {} (new)", short(now)),
                (Some(before), None) => write!(f, "no {name} (was {})", short(before)),
                (None, None) => f.write_str(name),
            },
            Reason::Instead { before, now } => {
                write!(
                    f,
                    "{} {} instead of {} {}",
                    now.name, now.value, before.name, before.value
                )
            }
            Reason::Weights { before, now } if before.name == now.name => {
                write!(f, "weights {} → {}", short(&before.sha256), short(&now.sha256))
            }
            Reason::Weights { before, now } => write!(
                f,
                "weights {} {} → {} {}",
                before.name,
                short(&before.sha256),
                now.name,
                short(&now.sha256)
            ),
            Reason::Version { of, before, now } => write!(f, "luthier's {of} changed, version {before} → {now}"),
            Reason::Libtorch { before, now } => write!(f, "libtorch {before} → {now}"),
        }
    }
}

/// All that is not as it was in the last run; nothing for a stage that is fresh.
///
/// In JSON both the words, `reason`, and the list, `reasons`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reasons(pub Vec<Reason>);

impl Reasons {
    /// What changed from one key of a stage to another. An input that `now` lacks is not known yet, and is passed over.
    pub fn between(cache: &Cache, before: &Key, now: &Key) -> Result<Self> {
        let mut reasons = Vec::new();
        let mut came_or_went = Vec::new();
        let (mut summary, mut beside) = (None, Vec::new());
        for (name, earlier, later) in now.differences(before) {
            let setting = || Reason::Setting {
                name: name.to_owned(),
                before: earlier.map(str::to_owned),
                now: later.map(str::to_owned),
            };
            match (name, earlier, later) {
                (_, _, None) if input_name(name).is_some() => {}
                _ if let Some(name) = input_name(name).filter(|_| is_beside(&now.stage, name)) => {
                    beside.push(Reason::Input { name });
                }
                ("manifest", Some(earlier), Some(later)) => reasons.push(images(cache, earlier, later)?),
                _ if let Some(name) = input_name(name) => reasons.push(Reason::Input { name }),
                ("extractor" | PERCEPTUAL_HASH, ..) => summary = Some(setting()),
                // Said beside the digest, unless that is the same.
                ("weights name", ..) if before.get("weights") != now.get("weights") => {}
                ("weights", Some(_), Some(_)) => reasons.push(Reason::Weights {
                    before: Weights::of(before),
                    now: Weights::of(now),
                }),
                ("version", Some(earlier), Some(later)) => reasons.push(Reason::Version {
                    of: format!("{} stage", now.stage),
                    before: earlier.to_owned(),
                    now: later.to_owned(),
                }),
                ("extractor version", Some(earlier), Some(later)) => reasons.push(Reason::Version {
                    of: "extractor".to_owned(),
                    before: earlier.to_owned(),
                    now: later.to_owned(),
                }),
                ("libtorch", Some(earlier), Some(later)) => reasons.push(Reason::Libtorch {
                    before: earlier.to_owned(),
                    now: later.to_owned(),
                }),
                (_, Some(_), Some(_)) => reasons.push(setting()),
                _ => came_or_went.push(setting()),
            }
        }
        if let Some(instead) = instead(before, now) {
            came_or_went.clear();
            reasons.insert(0, instead);
        }
        // `--c auto` brings the folds with it, and another version of a stage its new settings.
        let is_explained = |reason: &Reason| matches!(reason, Reason::Setting { .. } | Reason::Version { .. });
        if !reasons.iter().any(is_explained) {
            reasons.append(&mut came_or_went);
        }
        if reasons.is_empty() {
            reasons.append(&mut beside);
        }
        // It sums up the other parts.
        if reasons.is_empty() {
            reasons.extend(summary);
        }
        Ok(Reasons(reasons))
    }

    /// What happened to the images, if that is among the reasons.
    pub fn images(&self) -> Option<&ImageChanges> {
        self.0.iter().find_map(|reason| match reason {
            Reason::Images(changes) => Some(changes),
            _ => None,
        })
    }
}

impl fmt::Display for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("unchanged");
        }
        // The words of one reason may have commas.
        let words: Vec<String> = self.0.iter().map(Reason::to_string).collect();
        f.write_str(&words.join("; "))
    }
}

impl Serialize for Reasons {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Reasons", 2)?;
        fields.serialize_field("reason", &self.to_string())?;
        fields.serialize_field("reasons", &self.0)?;
        fields.end()
    }
}

impl Weights {
    fn of(key: &Key) -> Self {
        let get = |name| key.get(name).unwrap_or_default().to_owned();
        Weights {
            name: get("weights name"),
            sha256: get("weights"),
        }
    }
}

/// What the part of a key that is the digest of an input stands for.
pub fn input_name(part: &str) -> Option<&'static str> {
    match part {
        "manifest" => Some("images"),
        "train" => Some("training features"),
        "test" => Some("test features"),
        "projection" => Some("projection"),
        "model" => Some("model"),
        "held-out" => Some("held-out predictions"),
        "look-alikes" => Some("look-alikes"),
        "images" => Some("distinct images"),
        "asked" => Some("mistakes or suspects"),
        // Of runs before the map named its images.
        "evaluated" => Some("features"),
        "mapped" => Some("mapped images"),
        "checked" => Some("checked labels"),
        "sample" => Some("sample of training images"),
        _ => None,
    }
}

/// Whether an input need not be said beside others: it changes with them, but for exceptions.
fn is_beside(stage: &str, part: &str) -> bool {
    match stage {
        "evaluate" | "suspects" => part == "held-out",
        "neighbours" => part == "mistakes or suspects",
        "classify" => part == "look-alikes",
        _ => false,
    }
}

/// Digests within a value are cut short, for people.
pub fn short(value: &str) -> String {
    let is_digest = |word: &&str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let words: Vec<String> = value
        .split(' ')
        .map(|word| match Some(word).filter(is_digest) {
            Some(digest) => format!("{}…", &digest[..8]),
            None => word.to_owned(),
        })
        .collect();
    words.join(" ")
}

/// A variance to keep in place of a number of components, or the other way round.
fn instead(before: &Key, now: &Key) -> Option<Reason> {
    let kept = |key: &Key| {
        ["variance", "components"].into_iter().find_map(|name| {
            Some(Setting {
                name: name.to_owned(),
                value: key.get(name)?.to_owned(),
            })
        })
    };
    let (before, now) = (kept(before)?, kept(now)?);
    (before.name != now.name).then_some(Reason::Instead { before, now })
}

fn images(cache: &Cache, before: &str, now: &str) -> Result<Reason> {
    let load = |digest: &str| -> Result<Option<Manifest>> {
        let digest = digest.parse().ok();
        Ok(digest.map(|digest| cache.get(&digest)).transpose()?.flatten())
    };
    let changes = match (load(before)?, load(now)?) {
        (Some(before), Some(now)) => ImageChanges::between(&before, &now),
        _ => ImageChanges::default(),
    };
    Ok(if changes.files.is_empty() {
        // Which ones, the cache does not know any more.
        Reason::Input { name: "images" }
    } else {
        Reason::Images(changes)
    })
}

/// What became of an image from one manifest to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// The file is new.
    Added,
    /// The file holds other bytes.
    Changed,
    /// The file is gone.
    Removed,
    /// The file has another name in the same folder of a class.
    Renamed,
    /// The file is in another class, or the image is in the other split.
    Moved,
}

impl Fate {
    const ALL: [Fate; 5] = [Fate::Added, Fate::Changed, Fate::Removed, Fate::Renamed, Fate::Moved];
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fate::Added => "added",
            Fate::Changed => "changed",
            Fate::Removed => "removed",
            Fate::Renamed => "renamed",
            Fate::Moved => "moved",
        })
    }
}

/// One image that is not as it was. Files are named with their split, for example `train/harp/1.jpg`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ImageChange {
    /// What became of it.
    pub change: Fate,
    /// The file.
    pub file: String,
    /// What a renamed or moved file was called before.
    pub from: Option<String>,
    /// The class.
    #[serde(skip)]
    pub class: String,
    /// The class of a renamed or moved file before.
    #[serde(skip)]
    pub from_class: Option<String>,
}

impl ImageChange {
    /// The classes of a file that was renamed or moved: before, and now.
    fn classes(&self) -> Option<(&str, &str)> {
        Some((self.from_class.as_deref()?, &self.class))
    }
}

impl fmt::Display for ImageChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ImageChange {
            change,
            file,
            from,
            class,
            from_class,
        } = self;
        match from {
            Some(from) if from == file => {
                let before = from_class.as_deref().unwrap_or_default();
                write!(f, "{change:<8} {file}: {before} → {class}")
            }
            Some(from) => write!(f, "{change:<8} {from} → {file}"),
            None => write!(f, "{change:<8} {file}"),
        }
    }
}

/// A class that has another name, and otherwise the same images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RenamedClass {
    /// The name that the class had.
    pub from: String,
    /// The name that it has.
    pub to: String,
}

/// The images that were added, changed, removed, renamed and moved from one manifest to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageChanges {
    /// Ordered by what happened, then by file.
    pub files: Vec<ImageChange>,
    /// Classes that have another name. Their images are among the files that moved.
    pub renamed_classes: Vec<RenamedClass>,
}

impl ImageChanges {
    fn between(before: &Manifest, now: &Manifest) -> Self {
        let mut files = Vec::new();
        let mut note = |change, entry: &ManifestEntry, from: Option<&ManifestEntry>| {
            files.push(ImageChange {
                change,
                file: name(entry),
                from: from.map(name),
                class: entry.class.clone(),
                from_class: from.map(|from| from.class.clone()),
            });
        };
        let mut gone: HashMap<&Content, Vec<&ManifestEntry>> = HashMap::new();
        let mut new = Vec::new();
        // Both are in the same order: a million files are compared in one sweep.
        let (mut earlier, mut later) = (before.entries.iter().peekable(), now.entries.iter().peekable());
        loop {
            match compare(earlier.peek(), later.peek()) {
                None => break,
                Some(Ordering::Less) => {
                    let entry = earlier.next().expect("it was peeked at");
                    gone.entry(&entry.content).or_default().push(entry);
                }
                Some(Ordering::Greater) => new.extend(later.next()),
                Some(Ordering::Equal) => {
                    if let (Some(before), Some(entry)) = (earlier.next(), later.next()) {
                        if before.content != entry.content {
                            note(Fate::Changed, entry, None);
                        } else if before.class != entry.class {
                            note(Fate::Moved, entry, Some(before));
                        }
                    }
                }
            }
        }
        // A new file with the bytes of one that is gone is that one: first of all one of the same class.
        new.retain(
            |entry| match take(&mut gone, entry, |before| is_neighbour(before, entry)) {
                Some(from) => {
                    note(Fate::Renamed, entry, Some(from));
                    false
                }
                None => true,
            },
        );
        for entry in new {
            match take(&mut gone, entry, |_| true) {
                Some(from) => note(Fate::Moved, entry, Some(from)),
                None => note(Fate::Added, entry, None),
            }
        }
        for entry in gone.into_values().flatten() {
            note(Fate::Removed, entry, None);
        }
        files.sort();
        let renamed_classes = renamed_classes(before, now, &files);
        ImageChanges { files, renamed_classes }
    }

    /// How many images moved, but for those of renamed classes.
    fn n_moved(&self) -> usize {
        let of_class = |file: &&ImageChange| match (file.classes(), file.change) {
            (Some((from, to)), Fate::Moved) => {
                (self.renamed_classes.iter()).any(|class| class.from == from && class.to == to)
            }
            _ => false,
        };
        self.count(Fate::Moved) - self.files.iter().filter(of_class).count()
    }

    fn count(&self, fate: Fate) -> usize {
        self.files.iter().filter(|file| file.change == fate).count()
    }
}

/// The classes that are gone, each of whose images moved to one class that is new.
fn renamed_classes(before: &Manifest, now: &Manifest, files: &[ImageChange]) -> Vec<RenamedClass> {
    let mut targets: BTreeMap<&str, Option<&str>> = BTreeMap::new();
    for (from, to) in files
        .iter()
        .filter(|file| file.change == Fate::Moved)
        .filter_map(ImageChange::classes)
    {
        let target = targets.entry(from).or_insert(Some(to));
        if *target != Some(to) {
            *target = None;
        }
    }
    let is_class = |manifest: &Manifest, class: &str| manifest.label(class).is_some();
    let renamed = targets.into_iter().filter_map(|(from, to)| Some((from, to?)));
    renamed
        .filter(|(from, to)| !is_class(now, from) && !is_class(before, to))
        .map(|(from, to)| RenamedClass {
            from: from.to_owned(),
            to: to.to_owned(),
        })
        .collect()
}

/// A file's name with its split.
fn name(entry: &ManifestEntry) -> String {
    format!("{}/{}", entry.split, entry.file)
}

/// Which of the next entries of two manifests comes first; a manifest that has ended comes last.
fn compare(earlier: Option<&&ManifestEntry>, later: Option<&&ManifestEntry>) -> Option<Ordering> {
    match (earlier, later) {
        (None, None) => None,
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (Some(earlier), Some(later)) => Some((earlier.split, &earlier.file).cmp(&(later.split, &later.file))),
    }
}

fn is_neighbour(entry: &ManifestEntry, other: &ManifestEntry) -> bool {
    (entry.split, &entry.class) == (other.split, &other.class)
}

/// Takes out a file with the same bytes as `entry`. That files cannot be read for the same reason does not make them one.
fn take<'a>(
    gone: &mut HashMap<&Content, Vec<&'a ManifestEntry>>,
    entry: &ManifestEntry,
    is_wanted: impl Fn(&ManifestEntry) -> bool,
) -> Option<&'a ManifestEntry> {
    let Content::Digest(_) = entry.content else { return None };
    let candidates = gone.get_mut(&entry.content)?;
    let place = candidates.iter().position(|before| is_wanted(before))?;
    Some(candidates.remove(place))
}

impl fmt::Display for ImageChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = (self.renamed_classes.iter())
            .map(|RenamedClass { from, to }| format!("class {from} is now {to}"))
            .collect();
        // The noun stands once.
        let mut noun = Some("image");
        for fate in Fate::ALL {
            let count = match fate {
                Fate::Moved => self.n_moved(),
                fate => self.count(fate),
            };
            if count > 0 {
                let count = noun.take().map_or(count.to_string(), |noun| counted(count, noun));
                parts.push(format!("{count} {fate}"));
            }
        }
        f.write_str(&parts.join(", "))
    }
}

impl Serialize for ImageChanges {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("ImageChanges", Fate::ALL.len() + 2)?;
        fields.serialize_field("added", &self.count(Fate::Added))?;
        fields.serialize_field("changed", &self.count(Fate::Changed))?;
        fields.serialize_field("removed", &self.count(Fate::Removed))?;
        fields.serialize_field("renamed", &self.count(Fate::Renamed))?;
        fields.serialize_field("moved", &self.count(Fate::Moved))?;
        fields.serialize_field("renamed_classes", &self.renamed_classes)?;
        fields.serialize_field("files", &self.files)?;
        fields.end()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use luthier_artifact::{Digest, Split};

    use super::*;

    fn manifest(files: &[(&str, Content)]) -> Manifest {
        let entry = |(file, content): &(&str, Content)| ManifestEntry {
            split: Split::Train,
            file: format!("harp/{file}"),
            class: "harp".to_owned(),
            content: content.clone(),
        };
        Manifest::new(files.iter().map(entry).collect())
    }

    #[test]
    fn files_are_the_same_image_by_their_bytes_not_by_the_reason_why_they_cannot_be_read() {
        let image = || Content::Digest(Digest::of(b"image"));
        let unreadable = || Content::Unreadable("permission denied".to_owned());
        let before = manifest(&[("a.jpg", image()), ("b.jpg", unreadable()), ("c.jpg", unreadable())]);
        let now = manifest(&[("a2.jpg", image()), ("b.jpg", image()), ("d.jpg", unreadable())]);
        assert_eq!(
            ImageChanges::between(&before, &now).to_string(),
            "1 image added, 1 changed, 1 removed, 1 renamed"
        );
    }

    /// Training images by their files, in folders of classes, and their bytes.
    pub(crate) fn training_images(files: &[(&str, &str)]) -> Manifest {
        let entry = |(file, bytes): &(&str, &str)| ManifestEntry {
            split: Split::Train,
            file: (*file).to_owned(),
            class: file.split('/').next().unwrap().to_owned(),
            content: Content::Digest(Digest::of(bytes.as_bytes())),
        };
        Manifest::new(files.iter().map(entry).collect())
    }

    #[test]
    fn a_class_whose_images_all_moved_to_a_new_class_has_another_name() {
        let before = training_images(&[
            ("drum/1.jpg", "a"),
            ("drum/2.jpg", "b"),
            ("harp/1.jpg", "c"),
            ("harp/2.jpg", "d"),
        ]);
        let check = |now: &[(&str, &str)], expected: &str| {
            assert_eq!(
                ImageChanges::between(&before, &training_images(now)).to_string(),
                expected
            );
        };
        check(
            &[
                ("drum kit/1.jpg", "a"),
                ("drum kit/2.jpg", "b"),
                ("harp/1.jpg", "c"),
                ("harp/2.jpg", "d"),
            ],
            "class drum is now drum kit",
        );
        check(
            &[
                ("drum kit/1.jpg", "a"),
                ("drum kit/2.jpg", "b"),
                ("harp/1.jpg", "c"),
                ("drum kit/3.jpg", "d"),
            ],
            "class drum is now drum kit, 1 image moved",
        );
        // Merged into a class that was there, and split in two.
        check(
            &[
                ("harp/3.jpg", "a"),
                ("harp/4.jpg", "b"),
                ("harp/1.jpg", "c"),
                ("harp/2.jpg", "d"),
            ],
            "2 images moved",
        );
        check(
            &[
                ("bongo/1.jpg", "a"),
                ("conga/2.jpg", "b"),
                ("harp/1.jpg", "c"),
                ("harp/2.jpg", "d"),
            ],
            "2 images moved",
        );
    }

    #[test]
    fn another_label_of_a_file_that_stays_is_told_by_its_classes() {
        let of_class = |class: &str| {
            let mut manifest = training_images(&[("1.jpg", "a"), ("2.jpg", "b")]);
            manifest.entries[0].class = class.to_owned();
            manifest.entries[1].class = "drum".to_owned();
            Manifest::new(manifest.entries)
        };
        let changes = ImageChanges::between(&of_class("harp"), &of_class("drum"));
        assert_eq!(changes.to_string(), "1 image moved");
        assert_eq!(changes.files[0].to_string(), "moved    train/1.jpg: harp → drum");
    }

    #[test]
    fn only_digests_are_cut_short() {
        let digest = Digest::of(b"image").to_string();
        let short_digest = format!("{}…", &digest[..8]);
        assert_eq!(
            short(&format!("{digest} {digest}")),
            format!("{short_digest} {short_digest}")
        );
        let name = "a-long-name-of-weights-".repeat(3)[..64].to_owned();
        assert_eq!(short(&name), name);
    }
}
