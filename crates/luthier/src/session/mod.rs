//! People decide about images, one by one, and a model that learns from it says which is next.
//!
//! A [`Session`] has all images with their features in memory. A decision is in the file of decisions before it counts.
//! [`Snapshot::judge`] trains a model on a copy of what is decided, so that decisions can go on meanwhile.

mod copies;
mod judge;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use luthier_artifact::{Digest, Split, file_names};
use luthier_eval::LookAlikeGroup;
use luthier_extract::{DecisionLog, NewDecision, Verdict};
use ndarray::Array2;
use serde::Serialize;

use self::copies::{Copies, Span};
use self::judge::{Judged, Labels, Pool};
use crate::{Error, Result};

/// How many images drawn at random count for how good the model is: it gets better.
const CHECKS: usize = 20;

/// What people do in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Give images classes.
    Label,
    /// Look at classes that images have.
    Review,
}

/// An image of a session, as it comes.
#[derive(Clone, Debug)]
pub struct SessionImage {
    /// The digest of its bytes.
    pub digest: Digest,
    /// Its files, one or more: they have the same bytes.
    pub files: Vec<SessionFile>,
    /// The class that somebody has looked at, if the image has one.
    pub checked: Option<String>,
    /// Whether somebody has said that all copies of it stay.
    pub is_kept: bool,
}

/// A file of an image.
#[derive(Clone, Debug)]
pub struct SessionFile {
    /// Its name, as decisions have it.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its split.
    pub split: Split,
    /// The class that it has.
    pub class: Option<String>,
}

impl SessionImage {
    /// The name of its first file.
    pub fn name(&self) -> &str {
        &self.files[0].name
    }
}

/// Why an image is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "is")]
pub enum Why {
    /// It looks like no image that has a class.
    Unlike,
    /// The model is torn between classes.
    Uncertain,
    /// It was drawn at random, to check the model.
    Check,
    /// What was decided about it was taken back.
    Undone,
    /// It looks the same as others.
    Copies,
    /// Another class is more probable than its own.
    Suspect {
        /// The probability of its own.
        label_probability: f64,
    },
    /// Its class is the most probable, but not by much.
    Unsure {
        /// The probability of its class.
        label_probability: f64,
    },
}

/// A class that an image may have.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Suggestion {
    /// Its place among the session's classes.
    pub class: usize,
    /// How probable it is, 0 to 1.
    pub probability: f64,
}

/// An image that should be looked at, or several that look the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Item {
    /// Its place among the session's images.
    pub image: usize,
    /// The files that look the same, two or more, of this image and others; none if it is about this image alone.
    pub copies: Vec<CopyOf>,
    /// Why.
    pub why: Why,
    /// The most probable classes, the most probable first; none while there is no model.
    pub suggestions: Vec<Suggestion>,
}

impl Item {
    fn new(image: usize, why: Why, suggestions: Vec<Suggestion>) -> Self {
        Item {
            image,
            copies: Vec::new(),
            why,
            suggestions,
        }
    }
}

/// A file, by its place among those of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CopyOf {
    /// The place of the image among the session's.
    pub image: usize,
    /// The place of the file among the image's.
    pub file: usize,
}

/// What an answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Images, each on its own.
    Images,
    /// Images that look the same: what is not left out stays.
    Copies,
}

/// What somebody says of one image, or of several alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Each is of the class that it has.
    Right,
    /// They are of this class.
    Class(String),
    /// They are left out.
    Exclude,
    /// All their files are left out but for one.
    Keep(CopyOf),
}

/// How far a session is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Progress {
    /// Images that are not left out.
    pub images: usize,
    /// Those with a class.
    pub labelled: usize,
    /// Those whose class somebody has looked at.
    pub checked: usize,
    /// Decisions of this session that stand.
    pub decided: usize,
    /// Groups of images that look the same, that nobody has decided about.
    pub copies: usize,
    /// In [`Task::Review`], the share of images with a class that models which have not seen them agree with, 0 to 1.
    pub accuracy: Option<f64>,
    /// In [`Task::Label`], how many of the images that were drawn at random the model was right about, of the last 20.
    pub n_right: usize,
    /// How many these were.
    pub n_drawn: usize,
    /// In [`Task::Label`], whether more classes would make the model better, as far as half of those there are tells.
    pub would_help: Option<bool>,
}

/// The state of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    class: Option<usize>,
    is_checked: bool,
    is_kept: bool,
    /// The places of its files that are not left out, ascending.
    files: Vec<usize>,
    /// How often something was decided about it.
    version: u32,
    is_skipped: bool,
}

/// A decision of this session.
#[derive(Clone, Debug)]
struct Done {
    /// The images decided about, and their states before.
    before: Vec<(usize, State)>,
    /// The files that it names.
    written: Vec<(Digest, Vec<String>)>,
    /// The time of its lines.
    time: String,
}

/// What a decision that was taken back is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Undone {
    Image(usize),
    Copies(usize),
}

/// Images, what is decided about them, and which is next.
#[derive(Debug)]
pub struct Session {
    task: Task,
    log: DecisionLog,
    images: Vec<SessionImage>,
    places: HashMap<Digest, usize>,
    copies: Vec<Copies>,
    pool: Arc<Pool>,
    states: Vec<State>,
    classes: Vec<String>,
    history: Vec<Done>,
    /// What decisions that were taken back are about, the last one last: it is asked about first.
    undone: Vec<Undone>,
    /// The images drawn at random, and whether the model was right about them.
    checks: Vec<(usize, bool)>,
    judged: Judged,
}

/// What a model is trained on: the state of a session at a moment.
#[derive(Debug)]
pub struct Snapshot {
    task: Task,
    pool: Arc<Pool>,
    labels: Labels,
    batch: usize,
}

/// What came of it.
#[derive(Debug)]
pub struct Judgement(Judged);

impl Snapshot {
    /// Trains a model, and orders the images by it.
    ///
    /// # Errors
    /// Those of fitting.
    pub fn judge(&self) -> Result<Judgement> {
        self.pool.judge(self.task, &self.labels, self.batch).map(Judgement)
    }
}

impl Session {
    /// Begins with images and their features, `f32 [n, d]`, distinct by digest, and with groups of images that look the
    /// same. Decisions are written to `decisions`.
    ///
    /// # Errors
    /// [`Error::Features`] if there are fewer than two images or they all look the same;
    /// [`luthier_extract::Error::File`] if the file cannot be written to.
    pub fn new(
        task: Task,
        images: Vec<SessionImage>,
        features: Array2<f32>,
        look_alikes: &[LookAlikeGroup],
        decisions: &Path,
    ) -> Result<Self> {
        let digests: Vec<Digest> = images.iter().map(|image| image.digest).collect();
        let places: HashMap<Digest, usize> = digests.iter().copied().zip(0..).collect();
        let class = |image: &SessionImage| image.checked.clone().or_else(|| image.files[0].class.clone());
        let of_files = images
            .iter()
            .flat_map(|image| image.files.iter().filter_map(|file| file.class.clone()));
        let mut classes: Vec<String> = images.iter().filter_map(class).chain(of_files).collect();
        classes.sort();
        classes.dedup();
        let states = images.iter().map(|image| State {
            class: class(image).and_then(|class| classes.binary_search(&class).ok()),
            is_checked: image.checked.is_some(),
            is_kept: image.is_kept,
            files: (0..image.files.len()).collect(),
            version: 0,
            is_skipped: false,
        });
        Ok(Session {
            task,
            log: DecisionLog::open(decisions)?,
            pool: Arc::new(Pool::new(features, &digests)?),
            states: states.collect(),
            copies: match task {
                Task::Label => Vec::new(),
                Task::Review => copies::found(&images, &places, look_alikes),
            },
            places,
            images,
            classes,
            history: Vec::new(),
            undone: Vec::new(),
            checks: Vec::new(),
            judged: Judged::default(),
        })
    }

    /// What people do.
    pub fn task(&self) -> Task {
        self.task
    }

    /// The classes that there are, in the order in which they came up.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The images.
    pub fn images(&self) -> &[SessionImage] {
        &self.images
    }

    /// The place of an image.
    pub fn place(&self, digest: &Digest) -> Option<usize> {
        self.places.get(digest).copied()
    }

    /// The class of an image, and how often something was decided about it.
    pub fn state(&self, image: usize) -> (Option<&str>, u32) {
        let State { class, version, .. } = &self.states[image];
        (class.map(|class| self.classes[class].as_str()), *version)
    }

    /// The class of a file: that of its image, or, until somebody has looked at it, its own.
    pub fn class_of(&self, copy: CopyOf) -> Option<&str> {
        match self.states[copy.image] {
            State {
                is_checked: true,
                class,
                ..
            } => class.map(|class| self.classes[class].as_str()),
            _ => self.images[copy.image].files[copy.file].class.as_deref(),
        }
    }

    /// What is to be looked at and still open, the most useful first: what was taken back, copies with several classes,
    /// labels that are probably wrong, copies in both splits, other copies, and labels that are little certain.
    pub fn items(&self) -> impl Iterator<Item = Item> {
        let judged = &self.judged.items;
        let n_suspects = judged.partition_point(|item| !matches!(item.why, Why::Unsure { .. }));
        let (suspects, unsure) = judged.split_at(n_suspects);
        let is_new = |item: &Undone| !self.undone.contains(item);
        let is_left = move |item: &&Item| is_new(&Undone::Image(item.image)) && self.is_open(item.image);
        let copies = |span| {
            let of_span = self
                .copies
                .iter()
                .enumerate()
                .filter(move |(_, copies)| copies.span == span);
            of_span
                .filter(move |(place, _)| is_new(&Undone::Copies(*place)))
                .filter_map(|(_, copies)| self.to_compare(copies))
        };
        let undone = self.undone.iter().rev().filter_map(|undone| self.again(*undone));
        (undone.chain(copies(Span::Classes)))
            .chain(suspects.iter().filter(is_left).cloned())
            .chain(copies(Span::Splits).chain(copies(Span::Neither)))
            .chain(unsure.iter().filter(is_left).cloned())
    }

    /// What was taken back, if nothing was decided about it since.
    fn again(&self, undone: Undone) -> Option<Item> {
        match undone {
            Undone::Copies(place) => self.to_compare(&self.copies[place]),
            Undone::Image(image) => self.is_open(image).then(|| {
                let judged = self.judged.items.iter().find(|item| item.image == image);
                let suggestions = judged.map(|item| item.suggestions.clone()).unwrap_or_default();
                Item::new(image, Why::Undone, suggestions)
            }),
        }
    }

    /// Copies of which nobody has said which to keep.
    fn to_compare(&self, copies: &Copies) -> Option<Item> {
        let left: Vec<CopyOf> = (copies.files.iter().copied())
            .filter(|CopyOf { image, file }| self.states[*image].files.binary_search(file).is_ok())
            .collect();
        let is_new = left.iter().any(|copy| !self.states[copy.image].is_kept);
        (left.len() > 1 && is_new && !copies.is_skipped).then(|| Item {
            copies: left.clone(),
            ..Item::new(left[0].image, Why::Copies, Vec::new())
        })
    }

    /// The images of a class that look most like an image.
    pub fn nearest(&self, image: usize, class: usize, n: usize) -> Vec<usize> {
        let labels: Vec<Option<usize>> = self.states.iter().map(State::label).collect();
        self.pool.nearest(image, &labels, class, n)
    }

    /// The open images that the model is surest about, by class: for each, its images from the surest on.
    pub fn confident(&self, class: usize, least: f64) -> Vec<usize> {
        let mut found: Vec<(f64, usize)> = (self.judged.predicted.iter().enumerate())
            .filter_map(|(image, predicted)| Some((image, (*predicted)?)))
            .filter(|&(image, (of, probability))| of == class && probability >= least && self.is_open(image))
            .map(|(image, (_, probability))| (probability, image))
            .collect();
        found.sort_by(|a, b| b.0.total_cmp(&a.0));
        found.into_iter().map(|(_, image)| image).collect()
    }

    fn is_open(&self, image: usize) -> bool {
        let state = &self.states[image];
        !state.is_excluded()
            && !state.is_skipped
            && match self.task {
                Task::Label => state.class.is_none(),
                Task::Review => state.class.is_some() && !state.is_checked,
            }
    }

    /// Decides about images alike, whose states are still of these versions. The decision is on the disk when this returns.
    ///
    /// # Errors
    /// [`Error::DecidedMeanwhile`] if the state of one is another by now, or the file to keep is none of theirs;
    /// [`Error::NoClass`] if one has no class that
    /// could be right; [`Error::NewClass`] in [`Task::Review`] if no image of the data has the class;
    /// [`luthier_extract::Error::File`] if the file cannot be written to. Then nothing is decided.
    pub fn decide(&mut self, images: &[(usize, u32)], subject: Subject, answer: &Answer, at: SystemTime) -> Result<()> {
        if images.is_empty() {
            return Ok(());
        }
        if let Some(&(image, _)) = images
            .iter()
            .find(|(image, version)| self.states[*image].version != *version)
        {
            return Err(self.decided_meanwhile(image));
        }
        if let Answer::Keep(CopyOf { image, file }) = *answer
            && !(images.iter().any(|of| of.0 == image) && self.states[image].files.contains(&file))
        {
            return Err(self.decided_meanwhile(image));
        }
        let n_known = self.classes.len();
        if let Answer::Class(class) = answer
            && !self.classes.contains(class)
        {
            if self.task == Task::Review {
                return Err(Error::NewClass { class: class.clone() });
            }
            self.classes.push(class.clone());
        }
        let decided = images.iter().map(|&(image, _)| self.decided(image, subject, answer));
        let written = decided.collect::<Result<Vec<_>>>().and_then(|decided| {
            let lines = decided
                .iter()
                .map(|(line, _)| line)
                .filter(|line| !line.files.is_empty());
            let lines: Vec<NewDecision> = lines.cloned().collect();
            let time = self.log.append(&lines, at)?;
            Ok((decided, lines, time))
        });
        let (decided, lines, time) = written.inspect_err(|_| self.classes.truncate(n_known))?;
        let mut done = Done {
            before: Vec::new(),
            written: lines.into_iter().map(|line| (line.image, line.files)).collect(),
            time,
        };
        for (&(image, _), (_, state)) in images.iter().zip(decided) {
            let is_drawn = |item: &&Item| item.image == image && item.why == Why::Check;
            if let (Some(class), Some(item)) = (state.class, self.judged.items.iter().find(is_drawn))
                && !state.is_excluded()
            {
                let is_right = item.suggestions.first().is_some_and(|best| best.class == class);
                self.checks.push((image, is_right));
            }
            if state.class != self.states[image].class {
                // What a model said of it was about another class.
                self.judged.items.retain(|item| item.image != image);
            }
            done.before
                .push((image, std::mem::replace(&mut self.states[image], state)));
        }
        self.history.push(done);
        Ok(())
    }

    /// What is written about an image, and its state then.
    fn decided(&self, image: usize, subject: Subject, answer: &Answer) -> Result<(NewDecision, State)> {
        let SessionImage { digest, files, .. } = &self.images[image];
        let before = &self.states[image];
        let mut state = State {
            version: before.version + 1,
            ..before.clone()
        };
        let kept = match answer {
            Answer::Right => {
                let file = || self.images[image].name().to_owned();
                state.class = Some(before.class.ok_or_else(|| Error::NoClass { file: file() })?);
                None
            }
            Answer::Class(class) => {
                state.class = self.classes.iter().position(|known| known == class);
                None
            }
            Answer::Exclude => Some(Vec::new()),
            Answer::Keep(kept) if kept.image == image => Some(vec![kept.file]),
            Answer::Keep(_) => Some(Vec::new()),
        };
        let (verdict, class, of_files) = match kept {
            Some(kept) => {
                let left_out = before
                    .files
                    .iter()
                    .copied()
                    .filter(|file| !kept.contains(file))
                    .collect();
                // Of files in several classes, the one that stays says which.
                if let ([kept], false) = (&kept[..], before.is_checked) {
                    state.class = (files[*kept].class.as_ref())
                        .and_then(|class| self.classes.iter().position(|known| known == class));
                }
                state.files = kept;
                (Verdict::Exclude, None, left_out)
            }
            None => {
                state.is_checked = true;
                state.is_kept |= subject == Subject::Copies;
                let verdict = match state.class == before.class {
                    true => Verdict::Right,
                    false => Verdict::Change,
                };
                // A class holds for all files of an image; that a file is left out is said of each.
                let class = state.class.map(|class| self.classes[class].clone());
                (verdict, class, vec![before.files.first().copied().unwrap_or(0)])
            }
        };
        let line = NewDecision {
            image: *digest,
            files: of_files
                .into_iter()
                .map(|file: usize| files[file].name.clone())
                .collect(),
            was: (verdict == Verdict::Change)
                .then(|| before.class.map(|was| self.classes[was].clone()))
                .flatten(),
            copies: class.is_some() && subject == Subject::Copies,
            undoes: None,
            verdict,
            class,
        };
        Ok((line, state))
    }

    fn decided_meanwhile(&self, image: usize) -> Error {
        let file = self.images[image].name().to_owned();
        Error::DecidedMeanwhile { file }
    }

    /// Asks no more in this session about an image, or about the copies of which it is the first.
    pub fn skip(&mut self, image: usize, is_copies: bool) {
        match self
            .copies
            .iter_mut()
            .find(|copies| is_copies && copies.files.iter().any(|copy| copy.image == image))
        {
            Some(copies) => copies.is_skipped = true,
            None => self.states[image].is_skipped = true,
        }
    }

    /// Takes the last of the session's `decided` decisions back, and asks about its image again.
    ///
    /// # Errors
    /// [`Error::DecidedMeanwhile`] if there are more or fewer by now; [`luthier_extract::Error::File`] if the file cannot be
    /// written to. Then the decision stands.
    pub fn undo(&mut self, decided: usize, at: SystemTime) -> Result<()> {
        let Some(Done { before, written, time }) = self.history.last() else {
            return Ok(());
        };
        if decided != self.history.len() {
            return Err(self.decided_meanwhile(before[0].0));
        }
        let lines: Vec<NewDecision> = (written.iter())
            .map(|(image, files)| NewDecision {
                image: *image,
                files: files.clone(),
                verdict: Verdict::Undo,
                class: None,
                was: None,
                copies: false,
                undoes: Some(time.clone()),
            })
            .collect();
        self.log.append(&lines, at)?;
        let Some(Done { before, .. }) = self.history.pop() else {
            return Ok(());
        };
        let images: Vec<usize> = before.iter().map(|(image, _)| *image).collect();
        for (image, before) in before {
            self.checks.retain(|(checked, _)| *checked != image);
            self.states[image] = State {
                version: self.states[image].version + 1,
                is_skipped: false,
                ..before
            };
        }
        let are_copies = |copies: &Copies| {
            self.to_compare(copies)
                .is_some_and(|item| copies::are_of(&item.copies, &images))
        };
        let undone = match (self.copies.iter().position(are_copies), &images[..]) {
            (Some(place), _) => Some(Undone::Copies(place)),
            (None, [image]) => Some(Undone::Image(*image)),
            // Many that were confirmed at once: a model says which of them to ask about.
            _ => None,
        };
        self.undone.retain(|before| Some(*before) != undone);
        self.undone.extend(undone);
        Ok(())
    }

    /// What a model is to be trained on now, to ask in batches of so many.
    pub fn snapshot(&self, batch: usize) -> Snapshot {
        Snapshot {
            task: self.task,
            pool: self.pool.clone(),
            labels: Labels {
                labels: self.states.iter().map(State::label).collect(),
                open: (0..self.images.len()).map(|image| self.is_open(image)).collect(),
                n_classes: self.classes.len(),
            },
            batch,
        }
    }

    /// Goes on with what a model says.
    pub fn follow(&mut self, judgement: Judgement) {
        self.judged = judgement.0;
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let count = |is: fn(&State) -> bool| {
            self.states
                .iter()
                .filter(|state| !state.is_excluded() && is(state))
                .count()
        };
        let last = &self.checks[self.checks.len().saturating_sub(CHECKS)..];
        Progress {
            images: count(|_| true),
            labelled: count(|state| state.class.is_some()),
            checked: count(|state| state.is_checked),
            decided: self.history.len(),
            copies: self
                .copies
                .iter()
                .filter(|copies| self.to_compare(copies).is_some())
                .count(),
            accuracy: self.judged.accuracy,
            n_right: last.iter().filter(|(_, is_right)| *is_right).count(),
            n_drawn: last.len(),
            would_help: self.judged.would_help,
        }
    }

    /// The images that have a class and are not left out, with their classes, in order.
    pub fn labels(&self) -> impl Iterator<Item = (&SessionImage, &str)> {
        let labelled = self.images.iter().zip(&self.states);
        labelled.filter_map(|(image, state)| Some((image, self.classes[state.label()?].as_str())))
    }

    /// A table of the files that have a class, `file,label`, as `--labels` reads it.
    pub fn labels_table(&self) -> Vec<u8> {
        let mut table = csv::Writer::from_writer(Vec::new());
        let mut write = |file: &[u8], label: &str| {
            let fields = [file, label.as_bytes()];
            table.write_record(fields).expect("memory takes any record");
        };
        write(b"file", "label");
        for (image, class) in self.labels() {
            let files = image.files.iter();
            files.for_each(|file| write(&file_names::bytes_of(&file.name), class));
        }
        table.into_inner().expect("memory takes any record")
    }

    /// A table of the files that nobody has given a class, with what the model takes them for: `file,class,probability`, the
    /// probability being that of the class.
    pub fn predictions_table(&self) -> Vec<u8> {
        let mut table = csv::Writer::from_writer(Vec::new());
        let mut write = |file: &[u8], class: &str, probability: &str| {
            let fields = [file, class.as_bytes(), probability.as_bytes()];
            table.write_record(fields).expect("memory takes any record");
        };
        write(b"file", "class", "probability");
        let predicted = self.judged.predicted.iter().enumerate();
        for (image, predicted) in predicted.filter(|(image, _)| self.is_open(*image)) {
            if let Some((class, probability)) = predicted {
                let probability = probability.to_string();
                let files = self.images[image].files.iter();
                let class = &self.classes[*class];
                files.for_each(|file| write(&file_names::bytes_of(&file.name), class, &probability));
            }
        }
        table.into_inner().expect("memory takes any record")
    }
}

impl State {
    /// Whether all its files are left out.
    fn is_excluded(&self) -> bool {
        self.files.is_empty()
    }

    /// The class, of an image that is not left out.
    fn label(&self) -> Option<usize> {
        self.class.filter(|_| !self.is_excluded())
    }
}

#[cfg(test)]
mod tests {
    use luthier_cache::Cache;
    use luthier_extract::{DataSource, Layout, Rehash, scan};
    use luthier_testing::Need;
    use ndarray::Axis;

    use super::*;

    /// Features and classes of music10's photographs, as a reference has them: with `n` fewer, drawn by the seed.
    fn music10(seed: u64, n: usize) -> Option<(Vec<String>, Array2<f32>)> {
        let folder = Need::Reference.path()?;
        let table = std::fs::read_to_string(folder.join("music10-split.tsv")).unwrap();
        let classes: Vec<String> = (table.lines().skip(1))
            .map(|line| line.split('\t').nth(1).unwrap().to_owned())
            .collect();
        let file = std::fs::File::open(folder.join("music10-squash-features.npy")).unwrap();
        let npy = npyz::NpyFile::new(std::io::BufReader::new(file)).unwrap();
        let values = npy.into_vec::<f32>().unwrap();
        let features = Array2::from_shape_vec((classes.len(), values.len() / classes.len()), values).unwrap();
        let mut rows: Vec<usize> = (0..classes.len()).collect();
        rows.sort_by_key(|row| Digest::of(format!("{seed} {row}").as_bytes()));
        rows.truncate(classes.len() - n);
        rows.sort_unstable();
        let chosen = rows.iter().map(|&row| classes[row].clone()).collect();
        Some((chosen, features.select(Axis(0), &rows)))
    }

    fn file(name: &str, class: &Option<String>) -> SessionFile {
        SessionFile {
            name: name.to_owned(),
            path: PathBuf::new(),
            split: Split::Train,
            class: class.clone(),
        }
    }

    fn session(task: Task, given: &[Option<String>], features: Array2<f32>, folder: &Path) -> Session {
        let images = given.iter().enumerate().map(|(row, class)| SessionImage {
            digest: Digest::of(format!("image {row}").as_bytes()),
            files: vec![file(&format!("{row}.jpg"), class)],
            checked: None,
            is_kept: false,
        });
        let images = images.collect();
        Session::new(task, images, features, &[], &folder.join("decisions.jsonl")).unwrap()
    }

    /// What the model takes the others for: rows and classes.
    fn predictions(session: &Session) -> Vec<(usize, String)> {
        let table = String::from_utf8(session.predictions_table()).unwrap();
        let rows = table.lines().skip(1).map(|line| {
            let (row, rest) = line.split_once(".jpg,").unwrap();
            (row.parse().unwrap(), rest.split_once(',').unwrap().0.to_owned())
        });
        rows.collect()
    }

    /// Answers in batches of ten by the truth, with a model trained between them, `n` times.
    fn answer(session: &mut Session, truth: &[String], n: usize) {
        let mut n_answered = 0;
        while n_answered < n {
            let judgement = session.snapshot(10).judge().unwrap();
            session.follow(judgement);
            let images: Vec<usize> = session.items().map(|item| item.image).take(10).collect();
            assert!(!images.is_empty(), "after {n_answered} answers");
            for image in images {
                let (_, version) = session.state(image);
                let answer = Answer::Class(truth[image].clone());
                session
                    .decide(&[(image, version)], Subject::Images, &answer, SystemTime::UNIX_EPOCH)
                    .unwrap();
                n_answered += 1;
            }
        }
    }

    /// Without classes to begin with, 150 answers label the other photographs.
    #[test]
    fn few_labels_are_enough_for_the_rest() {
        let mut accuracies = [Vec::new(), Vec::new()];
        for seed in 0..3 {
            let Some((truth, features)) = music10(seed, 100) else {
                return;
            };
            let folder = tempfile::tempdir().unwrap();
            for (is_random, accuracies) in accuracies.iter_mut().enumerate() {
                let mut given = vec![None; truth.len()];
                if is_random == 1 {
                    let mut rows: Vec<usize> = (0..truth.len()).collect();
                    rows.sort_by_key(|row| Digest::of(format!("random {seed} {row}").as_bytes()));
                    rows[..150]
                        .iter()
                        .for_each(|&row| given[row] = Some(truth[row].clone()));
                }
                let mut session = session(Task::Label, &given, features.clone(), folder.path());
                answer(&mut session, &truth, if is_random == 1 { 0 } else { 150 });
                let start = std::time::Instant::now();
                let judgement = session.snapshot(10).judge().unwrap();
                println!("trained in {:?}", start.elapsed());
                session.follow(judgement);
                let rest: Vec<bool> = (predictions(&session).iter())
                    .map(|(row, class)| *class == truth[*row])
                    .collect();
                assert_eq!(rest.len(), truth.len() - 150);
                accuracies.push(rest.iter().filter(|&&right| right).count() as f64 / rest.len() as f64);
            }
        }
        let [chosen, random] = accuracies.map(|found| found.iter().sum::<f64>() / found.len() as f64);
        println!("accuracy on the rest: {chosen:.4}, with labels drawn at random {random:.4}");
        assert!(chosen >= 0.91 && chosen > random + 0.02, "{chosen}, {random}");
    }

    /// Of 90 labels that are swapped at random, how many are right again after 100 and after 150 answers.
    #[test]
    fn answers_remove_swapped_labels() {
        let mut removed = [Vec::new(), Vec::new()];
        for seed in 0..3 {
            let Some((truth, features)) = music10(seed, 0) else {
                return;
            };
            let mut classes = truth.clone();
            classes.dedup();
            let mut given: Vec<Option<String>> = truth.iter().cloned().map(Some).collect();
            let mut rows: Vec<usize> = (0..truth.len()).collect();
            rows.sort_by_key(|row| Digest::of(format!("swap {seed} {row}").as_bytes()));
            for &row in &rows[..90] {
                let others: Vec<&String> = classes.iter().filter(|class| **class != truth[row]).collect();
                given[row] = Some(others[row % others.len()].clone());
            }
            let folder = tempfile::tempdir().unwrap();
            let mut session = session(Task::Review, &given, features, folder.path());
            for (n, removed) in [100, 50].into_iter().zip(&mut removed) {
                answer(&mut session, &truth, n);
                let left = rows[..90]
                    .iter()
                    .filter(|&&row| session.state(row).0 != Some(&truth[row]));
                removed.push(90 - left.count());
            }
        }
        println!(
            "of 90 swapped labels, {:?} are mended after 100 answers, {:?} after 150",
            removed[0], removed[1]
        );
        let mean = |found: &[usize]| found.iter().sum::<usize>() as f64 / found.len() as f64;
        assert!(mean(&removed[0]) >= 76.0 && mean(&removed[1]) >= 85.0, "{removed:?}");
    }

    /// How long people wait for a model at 20,000 images.
    #[test]
    #[ignore = "takes minutes, and checks nothing"]
    fn twenty_thousand_images() {
        let n = 20_000;
        let class = |row: usize| row % 30;
        let value = |(row, column): (usize, usize)| {
            let noise = |seed: usize| Digest::of(format!("{seed} {column}").as_bytes()).as_bytes()[0];
            let own = (row * 2_654_435_761 + column * 40_503) % 1_021;
            f32::from(noise(class(row))) / 64.0 + f32::from(noise(100 + row % 997)) / 64.0 + own as f32 / 256.0
        };
        let features = Array2::from_shape_fn((n, 2048), value);
        let folder = tempfile::tempdir().unwrap();
        let all: Vec<Option<String>> = (0..n).map(|row| Some(format!("class {}", class(row)))).collect();
        for (task, n_given) in [(Task::Label, 500), (Task::Review, n)] {
            let given: Vec<Option<String>> = (all.iter().enumerate())
                .map(|(row, class)| class.clone().filter(|_| row < n_given))
                .collect();
            let start = std::time::Instant::now();
            let session = session(task, &given, features.clone(), folder.path());
            println!("{task:?} begins in {:?}: {:?}", start.elapsed(), session.pool.x.dim());
            let start = std::time::Instant::now();
            session.snapshot(10).judge().unwrap();
            println!("a model in {:?}", start.elapsed());
        }
    }

    /// Two classes that lie apart, in a plane.
    fn plain(n: usize) -> (Vec<Option<String>>, Array2<f32>) {
        let given = (0..n).map(|row| Some(["drum", "harp"][row % 2].to_owned())).collect();
        let value = |(row, column): (usize, usize)| {
            let side = if row % 2 == 0 { 4.0 } else { -4.0 };
            let noise = ((row * 31 + column * 17) % 13) as f32 / 13.0;
            if column == 0 { side + noise } else { noise }
        };
        (given, Array2::from_shape_fn((n, 4), value))
    }

    #[test]
    fn a_decision_counts_until_it_is_taken_back_and_a_second_window_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (mut given, features) = plain(40);
        given[3] = Some("drum".to_owned());
        let mut session = session(Task::Review, &given, features, folder.path());
        let judgement = session.snapshot(10).judge().unwrap();
        session.follow(judgement);
        let first = session.items().next().unwrap();
        assert_eq!(first.image, 3, "the label that is swapped");
        assert!(matches!(first.why, Why::Suspect { .. }), "{:?}", first.why);
        let at = SystemTime::UNIX_EPOCH;
        session
            .decide(&[(3, 0)], Subject::Images, &Answer::Class("harp".to_owned()), at)
            .unwrap();
        let error = session
            .decide(&[(3, 0)], Subject::Images, &Answer::Exclude, at)
            .unwrap_err();
        assert_eq!(error.to_string(), "3.jpg: decided about meanwhile, in another window");
        assert!(session.items().all(|item| item.image != 3));
        assert_eq!(session.progress().checked, 1);
        session
            .decide(&[(7, 0)], Subject::Images, &Answer::Exclude, at)
            .unwrap();
        let error = session.undo(1, at).unwrap_err();
        assert_eq!(error.to_string(), "7.jpg: decided about meanwhile, in another window");
        session.undo(2, at).unwrap();
        session.undo(1, at).unwrap();
        session.undo(0, at).unwrap();
        let error = session
            .decide(&[(3, 2)], Subject::Images, &Answer::Class("lute".to_owned()), at)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"class "lute" is none of the data's, expected one that has images"#
        );
        assert_eq!(session.state(3), (Some("drum"), 2));
        assert_eq!(session.items().next().unwrap().image, 3);
        let lines: Vec<serde_json::Value> = std::fs::read_to_string(folder.path().join("decisions.jsonl"))
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let verdicts: Vec<&str> = lines.iter().filter_map(|line| line["verdict"].as_str()).collect();
        assert_eq!(verdicts, ["change", "exclude", "undo", "undo"]);
        for (undo, decision) in [(2, 1), (3, 0)] {
            assert_eq!(lines[undo]["undoes"], lines[decision]["time"]);
        }
        session.skip(3, false);
        assert!(session.items().all(|item| item.image != 3));
    }

    /// Of forty images, two have the same bytes as others in another class, and two look like others.
    #[test]
    fn of_copies_one_stays_or_all_and_they_come_with_the_worst_first() {
        let folder = tempfile::tempdir().unwrap();
        let decisions = folder.path().join("decisions.jsonl");
        let (given, features) = plain(40);
        let mut images: Vec<SessionImage> = (given.iter().enumerate())
            .map(|(row, class)| SessionImage {
                digest: Digest::of(&[row as u8]),
                files: vec![file(&format!("{row}.jpg"), class)],
                checked: None,
                is_kept: false,
            })
            .collect();
        images[4].files.push(file("4 again.jpg", &Some("drum".to_owned())));
        images[6].files.push(file("6 as a harp.jpg", &Some("harp".to_owned())));
        images[9].files[0].split = Split::Test;
        let alike = LookAlikeGroup {
            images: vec![images[9].digest, images[7].digest],
            cosine: 0.9,
        };
        let mut session = Session::new(Task::Review, images, features, &[alike], &decisions).unwrap();
        let copies = |session: &Session| {
            let items = session.items().filter(|item| !item.copies.is_empty());
            items
                .map(|item| item.copies.iter().map(|copy| (copy.image, copy.file)).collect())
                .collect::<Vec<Vec<_>>>()
        };
        let [six, seven, four] = [vec![(6, 0), (6, 1)], vec![(7, 0), (9, 0)], vec![(4, 0), (4, 1)]];
        assert_eq!(copies(&session), [six.clone(), seven.clone(), four.clone()]);
        let at = SystemTime::UNIX_EPOCH;
        let keep = |image, file| Answer::Keep(CopyOf { image, file });

        session.decide(&[(6, 0)], Subject::Copies, &keep(6, 1), at).unwrap();
        assert_eq!(session.state(6).0, Some("harp"));
        let error = session.decide(&[(6, 1)], Subject::Copies, &keep(6, 0), at).unwrap_err();
        assert!(matches!(error, Error::DecidedMeanwhile { .. }), "{error}");
        session
            .decide(&[(7, 0), (9, 0)], Subject::Copies, &keep(7, 0), at)
            .unwrap();
        assert!(session.labels().all(|(image, _)| image.name() != "9.jpg"));
        session.decide(&[(4, 0)], Subject::Copies, &Answer::Right, at).unwrap();
        assert_eq!((copies(&session), session.progress().copies), (Vec::new(), 0));
        let lines = std::fs::read_to_string(&decisions).unwrap();
        let said_of = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            format!(
                "{} {}",
                line["verdict"].as_str().unwrap(),
                line["file"].as_str().unwrap()
            )
        };
        let said: Vec<String> = lines.lines().map(said_of).collect();
        assert_eq!(said, ["exclude 6.jpg", "exclude 9.jpg", "right 4.jpg"]);

        session.undo(3, at).unwrap();
        // Of an image that is left out, both files are.
        session
            .decide(&[(4, 2)], Subject::Images, &Answer::Exclude, at)
            .unwrap();
        session.undo(3, at).unwrap();
        let lines = std::fs::read_to_string(&decisions).unwrap();
        let last: Vec<String> = lines.lines().skip(4).map(said_of).collect();
        let both = ["exclude 4.jpg", "exclude 4 again.jpg", "undo 4.jpg", "undo 4 again.jpg"];
        assert_eq!(last, both);
        session.undo(2, at).unwrap();
        // The last one comes first.
        assert_eq!(copies(&session), [seven.clone(), four.clone()]);
        session.skip(7, true);
        assert_eq!(copies(&session), [four]);
        session.undo(1, at).unwrap();
        assert_eq!(session.state(6), (Some("drum"), 2));
        assert_eq!(copies(&session)[0], six);
        assert!(
            session
                .items()
                .all(|item| !item.copies.contains(&CopyOf { image: 7, file: 0 }))
        );
    }

    #[cfg(unix)]
    #[test]
    fn the_table_of_labels_names_files_whatever_their_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let photos = folder.path().join("photos");
        std::fs::create_dir(&photos).unwrap();
        let (given, features) = plain(4);
        let mut names = [&b"caf\xE9.jpg"[..], b" 1.jpg", b"2.jpg", b"\"3\", 4.jpg"].map(file_names::name_of_bytes);
        let images = names.iter().zip(&given).map(|(name, class)| {
            std::fs::write(photos.join(file_names::path_of(name)), name).unwrap();
            SessionImage {
                digest: Digest::of(name.as_bytes()),
                files: vec![file(name, class)],
                checked: None,
                is_kept: false,
            }
        });
        let decisions = folder.path().join("decisions.jsonl");
        let session = Session::new(Task::Review, images.collect(), features, &[], &decisions).unwrap();
        let table = folder.path().join("labels.csv");
        std::fs::write(&table, session.labels_table()).unwrap();
        let source = DataSource {
            test_fraction: 0.0,
            ..DataSource::new(Layout::table(table, Some(photos)))
        };
        let cache = Cache::open(&folder.path().join("cache")).unwrap();
        let found = scan(&source, &cache, Rehash::No, &()).unwrap();
        let found: Vec<String> = found.manifest.entries.into_iter().map(|entry| entry.file).collect();
        names.sort();
        assert_eq!(found, names);
    }

    #[test]
    fn images_without_classes_get_new_ones_and_an_image_without_one_cannot_be_right() {
        let folder = tempfile::tempdir().unwrap();
        let (truth, features) = plain(40);
        let mut session = session(Task::Label, &vec![None; 40], features, folder.path());
        let judgement = session.snapshot(10).judge().unwrap();
        session.follow(judgement);
        let images: Vec<usize> = session.items().map(|item| item.image).collect();
        assert_eq!(images.len(), 15);
        let mut distinct = images.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 15);
        let at = SystemTime::UNIX_EPOCH;
        let error = session
            .decide(&[(images[0], 0)], Subject::Images, &Answer::Right, at)
            .unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("has no class yet, expected one to be named"),
            "{error}"
        );
        for &image in &images {
            session
                .decide(
                    &[(image, 0)],
                    Subject::Images,
                    &Answer::Class(truth[image].clone().unwrap()),
                    at,
                )
                .unwrap();
        }
        assert_eq!(session.labels().count(), 15);
        let judgement = session.snapshot(10).judge().unwrap();
        session.follow(judgement);
        let predicted = predictions(&session);
        assert!(predicted.iter().all(|(row, class)| Some(class) == truth[*row].as_ref()));
        let drums = session.classes().iter().position(|class| class == "drum").unwrap();
        assert!(session.confident(drums, 0.9).len() > 5);
    }
}
