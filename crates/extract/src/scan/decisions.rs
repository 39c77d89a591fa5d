//! What people have decided about images: a file that only grows, one decision a line.
//!
//! A decision names its image by digest and file. Decisions about a label hold for the digest, wherever its files are;
//! that a file is left out holds for this file, so that of two copies one can stay.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use luthier_artifact::{Content, Digest, Manifest, ManifestEntry, file_names};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use unicode_normalization::UnicodeNormalization as _;

use super::source::{DataSource, Layout};
use crate::{Error, Result};

/// How many lines that cannot be used are named; of the others it is said how many there are.
const MOST_NAMED: usize = 5;

/// A decision about an image: a line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    /// The digest of the image's bytes: blake3, 64 hexadecimal digits.
    image: Digest,
    /// Its file, as [`DataSource::name`] has it.
    file: String,
    verdict: Verdict,
    /// The class, with [`Verdict::Right`] and [`Verdict::Change`].
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<String>,
    /// With [`Verdict::Change`], the class that the image had, if it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    was: Option<String>,
    /// With a class, that all copies of the image stay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    copies: bool,
    /// With [`Verdict::Undo`], the time of the decision that is taken back: that of another branch may be later.
    #[serde(skip_serializing_if = "Option::is_none")]
    undoes: Option<String>,
    /// When it was decided: RFC 3339. Later decisions about a file replace earlier ones, wherever their lines are.
    time: String,
}

/// What was decided about an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is of the class that it was said to be.
    Right,
    /// It is of another class.
    Change,
    /// The file is left out.
    Exclude,
    /// A decision about this file is taken back: the last one, unless the line says which.
    Undo,
}

/// What decisions did to the images of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// The images whose class somebody has looked at, ascending.
    pub checked: Vec<Digest>,
    /// How many files have another class than they came with.
    pub n_changed: usize,
    /// How many of the checked images had the right class.
    #[serde(default)]
    pub n_right: usize,
    /// How many of the checked images had a wrong class. Those that had none are neither right nor wrong.
    #[serde(default)]
    pub n_wrong: usize,
    /// The images of which somebody has said that all copies stay, ascending.
    #[serde(default)]
    pub kept: Vec<Digest>,
    /// How many files are left out.
    pub n_excluded: usize,
}

impl Decided {
    /// Whether nothing was decided.
    pub fn is_empty(&self) -> bool {
        *self == Decided::default()
    }
}

impl fmt::Display for Decided {
    /// For example `3 checked, 2 with another class, 1 left out`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.checked.len(), "checked"),
            (self.n_changed, "with another class"),
            (self.n_excluded, "left out"),
        ];
        let parts = parts.into_iter().filter(|(n, _)| *n > 0);
        let parts: Vec<String> = parts.map(|(n, what)| format!("{n} {what}")).collect();
        f.write_str(&parts.join(", "))
    }
}

/// What came of applying decisions.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub(super) decided: Decided,
    /// The files whose decided class is not the one that they came with, with the decided class.
    pub(super) relabelled: Vec<ManifestEntry>,
    /// The lines that cannot be used, each with the reason.
    problems: Vec<(usize, String)>,
}

/// The decisions of a file.
#[derive(Debug, Default)]
struct Decisions {
    /// What stands about each file of each image: decisions that were not taken back, the latest last.
    by_image: HashMap<Digest, BTreeMap<String, Vec<Standing>>>,
    /// The lines that cannot be used, each with the reason.
    problems: Vec<(usize, String)>,
}

/// A decision that stands, with the line that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Standing {
    verdict: Verdict,
    class: Option<String>,
    /// The class that the image had.
    was: Option<String>,
    copies: bool,
    /// The time of the decision that is taken back.
    undoes: Option<OffsetDateTime>,
    time: OffsetDateTime,
    line: usize,
}

impl Decisions {
    /// Reads a file of decisions. Lines that cannot be used are reported when the decisions are applied.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be read.
    fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::io(path))?;
        let mut decisions = Decisions::default();
        for (place, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            match parse(line) {
                Ok((decision, time, undoes)) => {
                    let standing = Standing {
                        verdict: decision.verdict,
                        class: decision.class,
                        was: decision.was,
                        copies: decision.copies,
                        undoes,
                        time,
                        line: place + 1,
                    };
                    let about = decisions.by_image.entry(decision.image).or_default();
                    about.entry(decision.file).or_default().push(standing);
                }
                Err(problem) => decisions.problems.push((place + 1, problem)),
            }
        }
        for stack in decisions.by_image.values_mut().flat_map(BTreeMap::values_mut) {
            *stack = standing(std::mem::take(stack));
        }
        Ok(decisions)
    }

    /// Gives entries the classes that were decided, and removes those that are left out.
    fn apply(mut self, source: &DataSource, entries: &mut Vec<ManifestEntry>) -> Applied {
        let classes: HashSet<String> = entries.iter().map(|entry| entry.class.clone()).collect();
        let mut names: HashMap<Digest, Vec<String>> = HashMap::new();
        for entry in entries.iter() {
            if let Content::Digest(digest) = entry.content {
                names.entry(digest).or_default().push(source.name(entry));
            }
        }
        self.pass_over(|image, file, standing| match (names.get(image), &standing.class) {
            // What is left out may be gone.
            (None, None) => None,
            (None, Some(_)) => Some(format!("{file}: no such image, expected one with these bytes")),
            (Some(names), None) if !names.iter().any(|name| name == file) => {
                // It may be a copy that was removed since, and then the others are to stay.
                let others = names.join(", ");
                Some(format!(
                    "{file}: no such file to leave out, expected one with these bytes, as {others}"
                ))
            }
            (Some(_), Some(class)) if !classes.contains(class) => Some(format!(
                "{file}: class {class:?} is none of the data's, expected one that has images"
            )),
            _ => None,
        });
        let (mut decided, mut relabelled) = (Decided::default(), Vec::new());
        let mut checked = BTreeSet::new();
        entries.retain_mut(|entry| {
            let Content::Digest(digest) = entry.content else {
                return true;
            };
            let Some(about) = self.by_image.get(&digest) else {
                return true;
            };
            let last = about.get(&source.name(entry)).and_then(|stack| stack.last());
            if last.is_some_and(|last| last.verdict == Verdict::Exclude) {
                decided.n_excluded += 1;
                return false;
            }
            let labels = about.values().flatten().filter(|standing| standing.class.is_some());
            let label = labels.max_by_key(|standing| (standing.time, standing.line));
            if let Some((label, class)) = label.and_then(|label| Some((label, label.class.as_ref()?))) {
                if checked.insert(digest) {
                    let mut labels = about.values().flatten();
                    let is_wrong = labels.any(|label| label.was.as_ref().is_some_and(|was| was != class));
                    decided.n_wrong += usize::from(is_wrong);
                    decided.n_right += usize::from(!is_wrong && label.verdict == Verdict::Right);
                    if about.values().flatten().any(|label| label.copies) {
                        decided.kept.push(digest);
                    }
                }
                if entry.class != *class {
                    entry.class.clone_from(class);
                    relabelled.push(entry.clone());
                }
            }
            true
        });
        decided.checked = checked.into_iter().collect();
        decided.kept.sort_unstable();
        decided.n_changed = relabelled.len();
        Applied {
            decided,
            relabelled,
            problems: self.problems,
        }
    }

    /// Removes the decisions that have a problem, and keeps the problem.
    fn pass_over(&mut self, problem: impl Fn(&Digest, &str, &Standing) -> Option<String>) {
        let problems = &mut self.problems;
        for (image, about) in &mut self.by_image {
            for (file, stack) in about {
                stack.retain(|standing| match problem(image, file, standing) {
                    Some(problem) => {
                        problems.push((standing.line, problem));
                        false
                    }
                    None => true,
                });
            }
        }
        problems.sort();
    }
}

/// The decisions about a file that were not taken back, the latest last. Lines of two branches may have been merged in any
/// order, and a line may be there twice.
fn standing(mut lines: Vec<Standing>) -> Vec<Standing> {
    lines.sort_by_key(|line| line.time);
    lines.dedup_by(|a, b| (a.time, a.verdict, &a.class, a.undoes) == (b.time, b.verdict, &b.class, b.undoes));
    let mut stack: Vec<Standing> = Vec::new();
    for line in lines {
        match (line.verdict, line.undoes) {
            (Verdict::Undo, Some(time)) => stack.retain(|before| before.time != time),
            (Verdict::Undo, None) => drop(stack.pop()),
            _ => stack.push(line),
        }
    }
    stack
}

/// A decision, its time, and that of the decision that it takes back.
type Timed = (Decision, OffsetDateTime, Option<OffsetDateTime>);

fn parse(line: &[u8]) -> std::result::Result<Timed, String> {
    let text = std::str::from_utf8(line).map_err(|error| format!("expected UTF-8, found {error}"))?;
    let decision: Decision =
        serde_json::from_str(&file_names::from_json(text)).map_err(|error| match error.is_eof() {
            true => "cut short, expected a whole decision".to_owned(),
            false => format!("no decision: {error}"),
        })?;
    let time_of = |text: &String| {
        let time = OffsetDateTime::parse(text, &Rfc3339);
        time.map_err(|_| format!("expected a time such as 2026-11-27T09:30:00Z, found {text:?}"))
    };
    let time = time_of(&decision.time)?;
    let undoes = decision.undoes.as_ref().map(time_of).transpose()?;
    let has_class = matches!(decision.verdict, Verdict::Right | Verdict::Change);
    match (&decision.class, has_class) {
        (None, true) => Err("expected a class with this verdict, found none".to_owned()),
        (Some(class), false) => Err(format!("expected no class with this verdict, found {class:?}")),
        _ => {
            // As the names of folders are read.
            let class = decision.class.map(|class| class.nfc().collect());
            Ok((Decision { class, ..decision }, time, undoes))
        }
    }
}

/// A decision that is to be written, about files of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDecision {
    /// The digest of the image's bytes.
    pub image: Digest,
    /// Its files, as [`DataSource::name`] has them.
    pub files: Vec<String>,
    /// What was decided.
    pub verdict: Verdict,
    /// The class, with [`Verdict::Right`] and [`Verdict::Change`].
    pub class: Option<String>,
    /// With [`Verdict::Change`], the class that the image had, if it had one.
    pub was: Option<String>,
    /// With a class, that all copies of the image stay.
    pub copies: bool,
    /// With [`Verdict::Undo`], the time of the decision that is taken back, as [`DecisionLog::append`] gave it; without
    /// it, the last one is.
    pub undoes: Option<String>,
}

/// A file of decisions that grows.
#[derive(Debug)]
pub struct DecisionLog {
    path: PathBuf,
    /// The time of the last decision: a clock may be put back, and the order of decisions must stay.
    last: SystemTime,
}

impl DecisionLog {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read or written to.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = open(path).and_then(|_| fs::read(path)).map_err(Error::io(path))?;
        Ok(DecisionLog {
            path: path.to_owned(),
            last: latest(&bytes).unwrap_or(SystemTime::UNIX_EPOCH),
        })
    }

    /// Adds decisions. They are on the disk when this returns. Other processes may write to the file, too, or put another
    /// in its place. The result is the time of the decisions.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be written to, or has a decision of the last moment that a time can name. Then
    /// nothing was decided.
    pub fn append(&mut self, decisions: &[NewDecision], at: SystemTime) -> Result<String> {
        let last = at.max(self.last + Duration::from_nanos(1));
        let time = rfc3339(last).map_err(Error::io(&self.path))?;
        let mut lines = String::new();
        for decision in decisions {
            let NewDecision {
                image,
                files,
                verdict,
                class,
                was,
                copies,
                undoes,
            } = decision;
            for file in files {
                let line = Decision {
                    image: *image,
                    file: file.clone(),
                    verdict: *verdict,
                    class: class.clone(),
                    was: was.clone(),
                    copies: *copies,
                    undoes: undoes.clone(),
                    time: time.clone(),
                };
                let line = serde_json::to_string(&line).expect("words always serialize");
                lines += &file_names::to_json(line);
                lines.push('\n');
            }
        }
        write(&self.path, lines.as_bytes()).map_err(Error::io(&self.path))?;
        self.last = last;
        Ok(time)
    }
}

/// Opens a file of decisions, or makes it.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).open(path)
}

/// Adds lines to a file, which is opened for them: git and editors put another in the place of a file that they change, and
/// what is written to the one before is lost.
fn write(path: &Path, lines: &[u8]) -> io::Result<()> {
    let mut file = open(path)?;
    // Until the file is closed.
    file.lock()?;
    let length = file.seek(SeekFrom::End(0))?;
    let mut last = [b'\n'];
    if length > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    // A line that was cut short, by a kill or a full disk, must not take the next with it.
    let whole = match last {
        [b'\n'] => lines.to_vec(),
        _ => [b"\n", lines].concat(),
    };
    let done = file.write_all(&whole).and_then(|()| file.sync_data());
    if done.is_err() {
        file.set_len(length).ok();
    }
    done
}

/// A time as the lines have it. After the year 9999 there is none.
fn rfc3339(time: SystemTime) -> io::Result<String> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok();
    let nanos = since.and_then(|since| i128::try_from(since.as_nanos()).ok());
    let time = nanos.and_then(|nanos| OffsetDateTime::from_unix_timestamp_nanos(nanos).ok());
    let text = time.and_then(|time| time.format(&Rfc3339).ok());
    text.ok_or_else(|| io::Error::other("a decision of the year 9999, after which there can be no other"))
}

/// The latest time of the decisions in a file.
fn latest(bytes: &[u8]) -> Option<SystemTime> {
    let decisions = bytes.split(|&byte| byte == b'\n').map(|line| parse(line.trim_ascii()));
    decisions.flatten().map(|(_, time, _)| SystemTime::from(time)).max()
}

/// What a file of decisions says of images that come without classes and have these files: the class of each image that has
/// one, and `None` for those whose files are all left out. A file of decisions that is not there says nothing.
///
/// # Errors
/// [`Error::File`] if the file cannot be read.
pub fn decided_classes(path: &Path, files: &HashMap<Digest, Vec<String>>) -> Result<HashMap<Digest, Option<String>>> {
    if !path.exists() {
        return Ok(HashMap::new());
    }
    let decisions = Decisions::read(path)?;
    warn_of(path, &decisions.problems);
    let images = decisions.by_image.into_iter().filter_map(|(image, about)| {
        let is_out = |file: &String| {
            let last = about.get(file).and_then(|stack| stack.last());
            last.is_some_and(|last| last.verdict == Verdict::Exclude)
        };
        if files.get(&image)?.iter().all(is_out) {
            return Some((image, None));
        }
        let labels = about
            .into_values()
            .flatten()
            .filter(|standing| standing.class.is_some());
        let last = labels.max_by_key(|standing| (standing.time, standing.line))?;
        Some((image, last.class))
    });
    Ok(images.collect())
}

/// The files that decisions leave out, each with the digest of its image, whether or not there is such a file now:
/// there may be one again.
///
/// # Errors
/// [`Error::File`] if the file of decisions cannot be read.
pub fn left_out(source: &DataSource) -> Result<HashSet<(Digest, String)>> {
    let Some(path) = &source.decisions else {
        return Ok(HashSet::new());
    };
    let mut files = HashSet::new();
    for (image, about) in Decisions::read(path)?.by_image {
        let is_out = |stack: &[Standing]| stack.last().is_some_and(|last| last.verdict == Verdict::Exclude);
        let out = about.into_iter().filter(|(_, stack)| is_out(stack));
        files.extend(out.map(|(file, _)| (image, file)));
    }
    Ok(files)
}

/// What people have decided, by now, of the images of a manifest: which they have looked at. The classes in the manifest
/// stay as they are.
///
/// # Errors
/// [`Error::File`] if the file of decisions cannot be read.
pub fn decided(source: &DataSource, manifest: &Manifest) -> Result<Decided> {
    match &source.decisions {
        Some(path) => Ok(Decisions::read(path)?
            .apply(source, &mut manifest.entries.clone())
            .decided),
        None => Ok(Decided::default()),
    }
}

fn warn_of(path: &Path, problems: &[(usize, String)]) {
    for (line, problem) in problems.iter().take(MOST_NAMED) {
        tracing::warn!("{}:{line}: {problem}; passed over", path.display());
    }
    if problems.len() > MOST_NAMED {
        let n = problems.len() - MOST_NAMED;
        tracing::warn!("{}: {n} more lines passed over", path.display());
    }
}

/// Applies the file of decisions of a data set, if there is one. Lines that cannot be used are warned of.
///
/// # Errors
/// [`Error::File`] if the file cannot be read, [`Error::AllExcluded`] if it leaves out every image.
pub(super) fn apply(source: &DataSource, entries: &mut Vec<ManifestEntry>) -> Result<Applied> {
    // Images without classes cannot get some.
    let (Some(path), false) = (&source.decisions, matches!(source.layout, Layout::Unlabelled(_))) else {
        return Ok(Applied::default());
    };
    let had_images = !entries.is_empty();
    let applied = Decisions::read(path)?.apply(source, entries);
    if had_images && entries.is_empty() {
        return Err(Error::AllExcluded { path: path.clone() });
    }
    warn_of(path, &applied.problems);
    Ok(applied)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use luthier_artifact::Split;

    use super::*;

    fn source() -> DataSource {
        DataSource::new(Layout::Split {
            train: PathBuf::from("train"),
            test: PathBuf::from("test"),
        })
    }

    fn entry(split: Split, file: &str, bytes: &str) -> ManifestEntry {
        ManifestEntry {
            split,
            file: file.to_owned(),
            class: file.split('/').next().unwrap().to_owned(),
            content: Content::Digest(Digest::of(bytes.as_bytes())),
        }
    }

    fn line(bytes: &str, file: &str, verdict: &str, class: Option<&str>, second: u32) -> String {
        let class = class.map_or(String::new(), |class| format!(r#""class":"{class}","#));
        let image = Digest::of(bytes.as_bytes());
        format!(
            r#"{{"image":"{image}","file":"{file}","verdict":"{verdict}",{class}"time":"2026-11-27T09:30:{second:02}Z"}}"#
        )
    }

    /// Applies lines to four images; the files with their classes, what was decided, and the problems.
    fn applied(lines: &[String]) -> (Vec<String>, Decided, Vec<String>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), lines.join("\n")).unwrap();
        let mut entries = vec![
            entry(Split::Train, "harp/1.jpg", "a"),
            entry(Split::Train, "harp/2.jpg", "b"),
            entry(Split::Train, "drum/1.jpg", "b"),
            entry(Split::Test, "drum/2.jpg", "c"),
        ];
        let Applied { decided, problems, .. } = Decisions::read(file.path()).unwrap().apply(&source(), &mut entries);
        let files = Manifest::new(entries).entries;
        let shown = |entry: &ManifestEntry| format!("{}/{} {}", entry.split, entry.file, entry.class);
        let problems = problems.into_iter().map(|(line, problem)| format!("{line}: {problem}"));
        (files.iter().map(shown).collect(), decided, problems.collect())
    }

    #[test]
    fn the_last_decision_about_a_file_stands_wherever_its_line_is() {
        let (files, decided, problems) = applied(&[
            line("a", "train/harp/1.jpg", "change", Some("drum"), 3),
            line("a", "train/harp/1.jpg", "right", Some("harp"), 1),
            line("c", "test/drum/2.jpg", "right", Some("drum"), 1),
        ]);
        assert_eq!(files[1], "train/harp/1.jpg drum");
        assert!(problems.is_empty(), "{problems:?}");
        let mut checked = ["a", "c"].map(|bytes| Digest::of(bytes.as_bytes()));
        checked.sort();
        let expected = Decided {
            checked: checked.to_vec(),
            n_changed: 1,
            n_right: 1,
            ..Decided::default()
        };
        assert_eq!(decided, expected);
    }

    #[test]
    fn labels_that_were_found_wrong_are_counted_also_once_the_file_was_moved() {
        let was = |line: String| line.replace(r#""time""#, r#""was":"drum","time""#);
        let (_, decided, _) = applied(&[
            was(line("a", "train/harp/1.jpg", "change", Some("harp"), 1)),
            line("b", "train/harp/2.jpg", "change", Some("harp"), 1),
            line("c", "test/drum/2.jpg", "right", Some("drum"), 1),
        ]);
        assert_eq!((decided.n_right, decided.n_wrong, decided.checked.len()), (1, 1, 3));
    }

    #[test]
    fn of_two_copies_one_is_left_out_and_a_label_holds_for_both() {
        let (files, decided, _) = applied(&[line("b", "train/drum/1.jpg", "exclude", None, 1)]);
        assert_eq!(
            files,
            ["train/harp/1.jpg harp", "train/harp/2.jpg harp", "test/drum/2.jpg drum"]
        );
        assert_eq!(decided.n_excluded, 1);
        let (files, decided, _) = applied(&[line("b", "train/drum/1.jpg", "change", Some("harp"), 1)]);
        assert_eq!(files[0], "train/drum/1.jpg harp");
        assert_eq!((decided.n_changed, decided.checked.len()), (1, 1));
    }

    #[test]
    fn a_label_holds_for_a_file_that_was_moved_and_a_copy_that_is_gone_takes_no_other_with_it() {
        let (files, ..) = applied(&[line("c", "test/harp/old.jpg", "change", Some("harp"), 1)]);
        assert_eq!(files[3], "test/drum/2.jpg harp");
        let (files, decided, problems) = applied(&[line("c", "test/harp/old.jpg", "exclude", None, 1)]);
        assert_eq!((files.len(), decided.n_excluded), (4, 0));
        assert_eq!(
            problems,
            ["1: test/harp/old.jpg: no such file to leave out, expected one with these bytes, as test/drum/2.jpg"]
        );
    }

    #[test]
    fn a_label_outlasts_a_later_decision_that_cannot_be_used_or_leaves_a_copy_out() {
        let label = line("b", "train/harp/2.jpg", "change", Some("drum"), 1);
        let (files, ..) = applied(&[label.clone(), line("b", "train/harp/2.jpg", "change", Some("viola"), 2)]);
        assert_eq!(files[2], "train/harp/2.jpg drum");
        let (files, decided, _) = applied(&[label, line("b", "train/harp/2.jpg", "exclude", None, 2)]);
        assert_eq!((files.len(), decided.n_excluded, decided.checked.len()), (3, 1, 1));
    }

    #[test]
    fn a_line_that_is_there_twice_is_one_decision() {
        let change = line("a", "train/harp/1.jpg", "change", Some("drum"), 1);
        let undo = line("a", "train/harp/1.jpg", "undo", None, 2);
        assert_eq!(applied(&[change.clone(), change, undo]).1, Decided::default());
    }

    #[test]
    fn undo_takes_back_one_decision_after_the_other() {
        let change = line("a", "train/harp/1.jpg", "change", Some("drum"), 1);
        let exclude = line("a", "train/harp/1.jpg", "exclude", None, 2);
        let undo = |second| line("a", "train/harp/1.jpg", "undo", None, second);
        let mut lines = vec![change, exclude];
        assert_eq!(applied(&lines).0.len(), 3);
        lines.push(undo(3));
        assert_eq!(applied(&lines).0[1], "train/harp/1.jpg drum");
        lines.push(undo(4));
        assert_eq!(applied(&lines).1, Decided::default());
        // There is nothing left to take back.
        lines.push(undo(5));
        assert_eq!(applied(&lines).1, Decided::default());
    }

    #[test]
    fn undo_takes_back_the_decision_that_it_names_also_if_another_branch_has_a_later_one() {
        let change = line("a", "train/harp/1.jpg", "change", Some("drum"), 1);
        let exclude = line("a", "train/harp/1.jpg", "exclude", None, 2);
        let undo = line("a", "train/harp/1.jpg", "undo", None, 3);
        let of = |second| undo.replace(r#""time""#, &format!(r#""undoes":"2026-11-27T09:30:{second}Z","time""#));
        let (files, decided, _) = applied(&[change.clone(), of("01"), exclude.clone()]);
        assert_eq!((files.len(), decided.n_excluded, decided.n_changed), (3, 1, 0));
        let (files, ..) = applied(&[change.clone(), exclude.clone(), of("02")]);
        assert_eq!(files[1], "train/harp/1.jpg drum");
        // There is none of this time.
        assert_eq!(applied(&[change.clone(), exclude, of("03")]).0.len(), 3);
        let (.., problems) = applied(&[change, of("?")]);
        assert!(problems[0].starts_with("2: expected a time such as"), "{problems:?}");
    }

    #[test]
    fn what_cannot_be_used_is_said_and_the_rest_counts() {
        let whole = line("a", "train/harp/1.jpg", "change", Some("drum"), 1);
        let (files, decided, problems) = applied(&[
            whole.clone(),
            "not JSON".to_owned(),
            line("c", "test/drum/2.jpg", "change", Some("violin"), 1),
            line("z", "train/harp/9.jpg", "right", Some("harp"), 1),
            line("c", "test/drum/2.jpg", "change", None, 1),
            whole.replace("2026-11-27T09", "yesterday"),
            whole.replace("verdict", "verdikt"),
            whole[..60].to_owned(),
        ]);
        assert_eq!(files[1], "train/harp/1.jpg drum");
        assert_eq!((decided.n_changed, decided.n_excluded), (1, 0));
        let starts = [
            "2: no decision: expected ident",
            "3: test/drum/2.jpg: class \"violin\" is none of the data's, expected one that has images",
            "4: train/harp/9.jpg: no such image, expected one with these bytes",
            "5: expected a class with this verdict, found none",
            "6: expected a time such as 2026-11-27T09:30:00Z, found",
            "7: no decision: unknown field `verdikt`",
            "8: cut short, expected a whole decision",
        ];
        assert_eq!(problems.len(), starts.len(), "{problems:?}");
        for (problem, start) in problems.iter().zip(starts) {
            assert!(problem.starts_with(start), "{problem}");
        }
    }

    #[test]
    fn a_log_grows_by_whole_lines_also_after_one_that_was_cut_short_and_when_the_clock_is_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decisions.jsonl");
        fs::write(&path, br#"{"image":"ab"#).unwrap();
        let [image, other] = ["a", "b"].map(|bytes| Digest::of(bytes.as_bytes()));
        let files = ["1.jpg", "copy of 1.jpg"].map(str::to_owned);
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let mut log = DecisionLog::open(&path).unwrap();
        // Another process writes, too.
        let mut second = DecisionLog::open(&path).unwrap();
        let decision = |image, files: &[String], verdict, class: Option<&str>| NewDecision {
            image,
            files: files.to_vec(),
            verdict,
            class: class.map(str::to_owned),
            was: None,
            copies: false,
            undoes: None,
        };
        let change = |class| [decision(image, &files[..1], Verdict::Change, Some(class))];
        log.append(&change("harp"), at(9)).unwrap();
        second
            .append(&[decision(other, &files, Verdict::Exclude, None)], at(9))
            .unwrap();
        log.append(&change("lute"), at(3)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 5);
        let of = |names: &[String]| HashMap::from([(image, files[..1].to_vec()), (other, names.to_vec())]);
        let found = decided_classes(&path, &of(&files)).unwrap();
        assert_eq!(found, HashMap::from([(image, Some("lute".to_owned())), (other, None)]));
        // A copy that nobody left out stays.
        let more = [&files[..], &["2.jpg".to_owned()]].concat();
        assert_eq!(decided_classes(&path, &of(&more)).unwrap().len(), 1);
        log.append(&[decision(image, &files[..1], Verdict::Undo, None)], at(3))
            .unwrap();
        let found = decided_classes(&path, &of(&files)).unwrap();
        assert_eq!(found[&image].as_deref(), Some("harp"));
        assert!(
            decided_classes(&folder.path().join("none"), &of(&files))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_decision_counts_in_a_log_that_was_opened_anew_after_the_clock_was_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decisions.jsonl");
        let image = Digest::of(b"a");
        let files = ["1.jpg".to_owned()];
        let of_image = HashMap::from([(image, files.to_vec())]);
        for (class, second) in [("harp", 9), ("lute", 3), ("drum", 6)] {
            let decision = NewDecision {
                image,
                files: files.to_vec(),
                verdict: Verdict::Change,
                class: Some(class.to_owned()),
                was: None,
                copies: false,
                undoes: None,
            };
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            DecisionLog::open(&path).unwrap().append(&[decision], at).unwrap();
            let found = decided_classes(&path, &of_image).unwrap();
            assert_eq!(found[&image].as_deref(), Some(class));
        }
    }

    fn exclusion(file: &str) -> [NewDecision; 1] {
        [NewDecision {
            image: Digest::of(b"a"),
            files: vec![file.to_owned()],
            verdict: Verdict::Exclude,
            class: None,
            was: None,
            copies: false,
            undoes: None,
        }]
    }

    #[test]
    fn a_log_writes_to_the_file_that_has_its_name_by_then() {
        let folder = tempfile::tempdir().unwrap();
        let [path, other] = ["decisions.jsonl", "other"].map(|name| folder.path().join(name));
        let mut log = DecisionLog::open(&path).unwrap();
        log.append(&exclusion("1.jpg"), SystemTime::UNIX_EPOCH).unwrap();
        // As git and editors do.
        fs::copy(&path, &other).unwrap();
        fs::rename(&other, &path).unwrap();
        log.append(&exclusion("2.jpg"), SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn after_the_last_moment_that_a_time_can_name_nothing_is_decided() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decisions.jsonl");
        for last in ["9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59-23:00"] {
            let decision = line("a", "1.jpg", "exclude", None, 0);
            let decision = decision.replace("2026-11-27T09:30:00Z", last);
            fs::write(&path, &decision).unwrap();
            let mut log = DecisionLog::open(&path).unwrap();
            let error = log.append(&exclusion("2.jpg"), SystemTime::now()).unwrap_err();
            assert!(error.to_string().ends_with("there can be no other"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), decision);
        }
    }

    #[test]
    fn what_is_left_out_is_known_also_where_no_such_file_is_there() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines = [
            line("a", "train/harp/gone.jpg", "exclude", None, 1),
            line("a", "train/harp/1.jpg", "exclude", None, 1),
            line("a", "train/harp/1.jpg", "undo", None, 2),
            line("b", "train/harp/2.jpg", "right", Some("harp"), 1),
        ];
        fs::write(file.path(), lines.join("\n")).unwrap();
        let source = DataSource {
            decisions: Some(file.path().to_owned()),
            ..source()
        };
        let expected = HashSet::from([(Digest::of(b"a"), "train/harp/gone.jpg".to_owned())]);
        assert_eq!(left_out(&source).unwrap(), expected);
    }
}
