//! People decide about images, one by one, and a model that learns from it says which is next.
//!
//! A [`Session`] has all images with their features in memory. A decision is in the file of decisions before it counts.
//! [`Snapshot::judge`] trains a model on a copy of what is decided, so that decisions can go on meanwhile.

mod judge;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use luthier_artifact::Digest;
use luthier_extract::{DecisionLog, Verdict};
use ndarray::Array2;
use serde::Serialize;

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
    /// Its files, as decisions name them: of the same bytes, one or more.
    pub names: Vec<String>,
    /// Its file.
    pub path: PathBuf,
    /// The class that it has.
    pub class: Option<String>,
    /// Whether somebody has looked at the class.
    pub is_checked: bool,
}

impl SessionImage {
    /// Its first file.
    pub fn name(&self) -> &str {
        &self.names[0]
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

/// An image that should be looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Item {
    /// Its place among the session's images.
    pub image: usize,
    /// Why.
    pub why: Why,
    /// The most probable classes, the most probable first; none while there is no model.
    pub suggestions: Vec<Suggestion>,
}

impl Item {
    fn new(image: usize, why: Why, suggestions: Vec<Suggestion>) -> Self {
        Item {
            image,
            why,
            suggestions,
        }
    }
}

/// What somebody says of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is of the class that it has.
    Right,
    /// It is of this class.
    Class(String),
    /// It is left out.
    Exclude,
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
    is_excluded: bool,
    /// How often something was decided about it.
    version: u32,
    is_skipped: bool,
}

/// Images, what is decided about them, and which is next.
#[derive(Debug)]
pub struct Session {
    task: Task,
    log: DecisionLog,
    images: Vec<SessionImage>,
    places: HashMap<Digest, usize>,
    pool: Arc<Pool>,
    states: Vec<State>,
    classes: Vec<String>,
    /// The images decided about, and their states before.
    history: Vec<(usize, State)>,
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
    /// Begins with images and their features, `f32 [n, d]`, distinct by digest. Decisions are written to `decisions`.
    ///
    /// # Errors
    /// [`Error::Features`] if there are fewer than two images or they all look the same;
    /// [`luthier_extract::Error::File`] if the file cannot be written to.
    pub fn new(task: Task, images: Vec<SessionImage>, features: Array2<f32>, decisions: &Path) -> Result<Self> {
        let digests: Vec<Digest> = images.iter().map(|image| image.digest).collect();
        let mut classes: Vec<String> = images.iter().filter_map(|image| image.class.clone()).collect();
        classes.sort();
        classes.dedup();
        let states = images.iter().map(|image| State {
            class: image.class.as_ref().and_then(|class| classes.binary_search(class).ok()),
            is_checked: image.is_checked,
            is_excluded: false,
            version: 0,
            is_skipped: false,
        });
        Ok(Session {
            task,
            log: DecisionLog::open(decisions)?,
            pool: Arc::new(Pool::new(features, &digests)?),
            states: states.collect(),
            places: digests
                .into_iter()
                .enumerate()
                .map(|(place, digest)| (digest, place))
                .collect(),
            images,
            classes,
            history: Vec::new(),
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

    /// The images to look at that are still open, the most useful first.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.judged.items.iter().filter(|item| self.is_open(item.image))
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
        !state.is_excluded
            && !state.is_skipped
            && match self.task {
                Task::Label => state.class.is_none(),
                Task::Review => state.class.is_some() && !state.is_checked,
            }
    }

    /// Decides about an image whose state is still `version`. The decision is on the disk when this returns.
    ///
    /// # Errors
    /// [`Error::DecidedMeanwhile`] if the state is another one by now; [`Error::NoClass`] if the image has no class that
    /// could be right; [`Error::NewClass`] in [`Task::Review`] if no image of the data has the class;
    /// [`luthier_extract::Error::File`] if the file cannot be written to. Then nothing is decided.
    pub fn decide(&mut self, image: usize, version: u32, answer: Answer, at: SystemTime) -> Result<()> {
        let before = self.states[image].clone();
        let name = self.images[image].name().to_owned();
        if before.version != version {
            return Err(Error::DecidedMeanwhile { file: name });
        }
        if let (Task::Review, Answer::Class(class)) = (self.task, &answer)
            && !self.classes.contains(class)
        {
            return Err(Error::NewClass { class: class.clone() });
        }
        let label = before.class.map(|class| self.classes[class].clone());
        let (verdict, class) = match answer {
            Answer::Right => (
                Verdict::Right,
                Some(label.ok_or(Error::NoClass { file: name.clone() })?),
            ),
            Answer::Class(class) if label.as_ref() == Some(&class) => (Verdict::Right, Some(class)),
            Answer::Class(class) => (Verdict::Change, Some(class)),
            Answer::Exclude => (Verdict::Exclude, None),
        };
        // A class holds for all files of an image; that a file is left out is said of each.
        let SessionImage { digest, names, .. } = &self.images[image];
        let names = if class.is_some() { &names[..1] } else { names };
        self.log.append(*digest, names, verdict, class.as_deref(), at)?;
        let place = class.map(|class| {
            let known = self.classes.iter().position(|known| *known == class);
            known.unwrap_or_else(|| {
                self.classes.push(class);
                self.classes.len() - 1
            })
        });
        let is_drawn = |item: &&Item| item.image == image && item.why == Why::Check;
        if let (Some(place), Some(item)) = (place, self.judged.items.iter().find(is_drawn)) {
            let is_right = item.suggestions.first().is_some_and(|best| best.class == place);
            self.checks.push((image, is_right));
        }
        let state = &mut self.states[image];
        state.version += 1;
        match place {
            Some(place) => {
                state.class = Some(place);
                state.is_checked = true;
            }
            None => state.is_excluded = true,
        }
        self.history.push((image, before));
        Ok(())
    }

    /// Asks about an image no more in this session.
    pub fn skip(&mut self, image: usize) {
        self.states[image].is_skipped = true;
    }

    /// Takes the last of the session's `decided` decisions back, and asks about its image again.
    ///
    /// # Errors
    /// [`Error::DecidedMeanwhile`] if there are more or fewer by now; [`luthier_extract::Error::File`] if the file cannot be
    /// written to. Then the decision stands.
    pub fn undo(&mut self, decided: usize, at: SystemTime) -> Result<()> {
        let Some((image, before)) = self.history.last().cloned() else {
            return Ok(());
        };
        if decided != self.history.len() {
            let file = self.images[image].name().to_owned();
            return Err(Error::DecidedMeanwhile { file });
        }
        // As many lines as the decision has.
        let is_excluded = self.states[image].is_excluded && !before.is_excluded;
        let SessionImage { digest, names, .. } = &self.images[image];
        let names = if is_excluded { names } else { &names[..1] };
        self.log.append(*digest, names, Verdict::Undo, None, at)?;
        self.history.pop();
        self.checks.retain(|(checked, _)| *checked != image);
        let version = self.states[image].version + 1;
        self.states[image] = State {
            version,
            is_skipped: false,
            ..before
        };
        self.judged.items.retain(|item| item.image != image);
        self.judged.items.insert(0, Item::new(image, Why::Undone, Vec::new()));
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
                .filter(|state| !state.is_excluded && is(state))
                .count()
        };
        let last = &self.checks[self.checks.len().saturating_sub(CHECKS)..];
        Progress {
            images: count(|_| true),
            labelled: count(|state| state.class.is_some()),
            checked: count(|state| state.is_checked),
            decided: self.history.len(),
            accuracy: self.judged.accuracy,
            n_right: last.iter().filter(|(_, is_right)| *is_right).count(),
            n_drawn: last.len(),
            would_help: self.judged.would_help,
        }
    }

    /// The files that have a class and are not left out, with their classes, in the order of the images.
    pub fn labels(&self) -> impl Iterator<Item = (&SessionImage, &str)> {
        let labelled = self.images.iter().zip(&self.states);
        labelled.filter_map(|(image, state)| Some((image, self.classes[state.label()?].as_str())))
    }

    /// A table of the files that have a class, `file,label`, as `--labels` reads it.
    pub fn table(&self) -> Vec<u8> {
        let mut table = csv::Writer::from_writer(Vec::new());
        let mut write = |fields: [&str; 2]| table.write_record(fields).expect("memory takes any record");
        write(["file", "label"]);
        for (image, class) in self.labels() {
            image.names.iter().for_each(|name| write([name, class]));
        }
        table.into_inner().expect("memory takes any record")
    }

    /// What the model takes the images without a class for, and how sure it is.
    pub fn predictions(&self) -> impl Iterator<Item = (usize, usize, f64)> {
        let predicted = self.judged.predicted.iter().enumerate();
        predicted.filter_map(|(image, predicted)| {
            let (class, probability) = (*predicted)?;
            Some((image, class, probability))
        })
    }
}

impl State {
    /// The class, of an image that is not left out.
    fn label(&self) -> Option<usize> {
        self.class.filter(|_| !self.is_excluded)
    }
}

#[cfg(test)]
mod tests {
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

    fn session(task: Task, given: &[Option<String>], features: Array2<f32>, folder: &Path) -> Session {
        let images = given.iter().enumerate().map(|(row, class)| SessionImage {
            digest: Digest::of(format!("image {row}").as_bytes()),
            names: vec![format!("{row}.jpg"), format!("copy of {row}.jpg")],
            path: PathBuf::new(),
            class: class.clone(),
            is_checked: false,
        });
        Session::new(task, images.collect(), features, &folder.join("decisions.jsonl")).unwrap()
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
                session.decide(image, version, answer, SystemTime::UNIX_EPOCH).unwrap();
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
                let rest: Vec<bool> = (session.predictions())
                    .map(|(image, class, _)| session.classes()[class] == truth[image])
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
        let first = session.items().next().unwrap().clone();
        assert_eq!(first.image, 3, "the label that is swapped");
        assert!(matches!(first.why, Why::Suspect { .. }), "{:?}", first.why);
        let at = SystemTime::UNIX_EPOCH;
        session.decide(3, 0, Answer::Class("harp".to_owned()), at).unwrap();
        let error = session.decide(3, 0, Answer::Exclude, at).unwrap_err();
        assert_eq!(error.to_string(), "3.jpg: decided about meanwhile, in another window");
        assert!(session.items().all(|item| item.image != 3));
        assert_eq!(session.progress().checked, 1);
        session.decide(7, 0, Answer::Exclude, at).unwrap();
        let error = session.undo(1, at).unwrap_err();
        assert_eq!(error.to_string(), "7.jpg: decided about meanwhile, in another window");
        session.undo(2, at).unwrap();
        session.undo(1, at).unwrap();
        session.undo(0, at).unwrap();
        let error = session.decide(3, 2, Answer::Class("lute".to_owned()), at).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"class "lute" is none of the data's, expected one that has images"#
        );
        assert_eq!(session.state(3), (Some("drum"), 2));
        assert_eq!(session.items().next().unwrap().image, 3);
        let verdicts: Vec<String> = std::fs::read_to_string(folder.path().join("decisions.jsonl"))
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["verdict"].to_string())
            .collect();
        // Of an image that is left out, both files are.
        let expected = ["change", "exclude", "exclude", "undo", "undo", "undo"];
        assert_eq!(verdicts, expected.map(|verdict| format!("\"{verdict}\"")));
        session.skip(3);
        assert!(session.items().all(|item| item.image != 3));
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
        let error = session.decide(images[0], 0, Answer::Right, at).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("has no class yet, expected one to be named"),
            "{error}"
        );
        for &image in &images {
            session
                .decide(image, 0, Answer::Class(truth[image].clone().unwrap()), at)
                .unwrap();
        }
        assert_eq!(session.labels().count(), 15);
        let judgement = session.snapshot(10).judge().unwrap();
        session.follow(judgement);
        for (image, class, _) in session.predictions() {
            assert_eq!(Some(&session.classes()[class]), truth[image].as_ref());
        }
        let drums = session.classes().iter().position(|class| class == "drum").unwrap();
        assert!(session.confident(drums, 0.9).len() > 5);
    }
}
