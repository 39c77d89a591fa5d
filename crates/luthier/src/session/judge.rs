//! Which images people should look at next: by a model that learns from what they have decided.

use luthier_artifact::Digest;
use luthier_classify::{LogisticRegression, Solver};
use luthier_features::{ComponentCount, Pca};
use ndarray::{Array1, Array2, ArrayView1, Axis, Zip};

use super::{Item, Suggestion, Task, Why};
use crate::Result;

/// How many labels there must be before a model says what is next: until then, images that look like no other.
const FIRST: usize = 10;

/// How many of the least certain images are looked through for ones that differ, for each that is asked about.
///
/// On music10, with 150 answers in batches of ten, 3 gave an accuracy of 0.921 on the other images; 1, which asks about the
/// least certain whatever they look like, 0.922; 5, 0.91.
const LEAST_CERTAIN: usize = 3;

/// The inverse strength of the regularization, for rows of length 1. 10 to 100 label equally well; less finds wrong labels
/// better, because the model follows single labels less.
const C: f64 = 10.0;
const C_OF_REVIEW: f64 = 3.0;

/// How exactly the models are fitted: the largest gradient. Answers do not change any more.
const TOLERANCE: f64 = 1e-3;

const FOLDS: usize = 5;

/// Below so many labels, nothing is said of the accuracy.
const ENOUGH: usize = 30;

/// By how much more labels must have helped for it to be said that more would.
const GAIN: f64 = 0.01;

/// How many classes are suggested.
const SUGGESTED: usize = 5;

/// How many images more than a batch are chosen: they are asked about while the next model is on its way.
const SPARE: usize = 5;

/// The most images that are ordered.
const MOST: usize = 500;

/// What is known of all images, and does not change.
#[derive(Debug)]
pub(super) struct Pool {
    /// Which fold an image is held out with: by its digest.
    folds: Vec<usize>,
    /// A number of each image that is as good as random, and stays.
    draws: Vec<u64>,
    /// The features, centred, brought to length 1, and rotated to their principal components, `[n, p]`.
    pub(super) x: Array2<f64>,
}

/// What is decided at a moment.
#[derive(Clone, Debug)]
pub(super) struct Labels {
    /// The class of each image that has one and is not left out.
    pub(super) labels: Vec<Option<usize>>,
    /// The images that may be asked about.
    pub(super) open: Vec<bool>,
    pub(super) n_classes: usize,
}

/// What the model says.
#[derive(Debug, Default)]
pub(super) struct Judged {
    /// The images to look at, in order.
    pub(super) items: Vec<Item>,
    /// The share of labelled images that models which have not seen them are right about.
    pub(super) accuracy: Option<f64>,
    /// Whether models with all labels are right more often than models with half of them.
    pub(super) would_help: Option<bool>,
    /// The most probable class of each open image and its probability, where there is a model.
    pub(super) predicted: Vec<Option<(usize, f64)>>,
}

impl Pool {
    /// Of features `[n, d]`.
    pub(super) fn new(mut features: Array2<f32>, digests: &[Digest]) -> Result<Self> {
        if let Some(mean) = features.mean_axis(Axis(0)) {
            features -= &mean;
        }
        luthier_eval::normalize(&mut features);
        let pca = Pca::new(ComponentCount::variance(0.98)?, Solver::Faer).fit(features.view())?;
        Ok(Pool {
            x: pca.transform(features.mapv(f64::from).view())?,
            draws: digests.iter().map(draw).collect(),
            folds: digests
                .iter()
                .map(|digest| usize::from(digest.as_bytes()[0]) % FOLDS)
                .collect(),
        })
    }

    fn distance(&self, a: usize, b: usize) -> f64 {
        Zip::from(self.x.row(a))
            .and(self.x.row(b))
            .fold(0.0, |sum, a, b| sum + (a - b) * (a - b))
    }

    /// `n` of the candidates: after the first, always the one that is farthest from those before it, and from `known`
    /// (Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985).
    fn diverse(&self, candidates: &[usize], n: usize, known: &[usize]) -> Vec<usize> {
        let mut distances = vec![f64::INFINITY; candidates.len()];
        let near = |distances: &mut [f64], row: usize| {
            for (distance, &candidate) in distances.iter_mut().zip(candidates) {
                *distance = distance.min(self.distance(candidate, row));
            }
        };
        known.iter().for_each(|&row| near(&mut distances, row));
        let mut chosen = Vec::new();
        while chosen.len() < n.min(candidates.len()) {
            // The first of those that are equally far.
            let farthest = (0..candidates.len()).max_by(|&a, &b| distances[a].total_cmp(&distances[b]).then(b.cmp(&a)));
            let Some(farthest) = farthest else { break };
            chosen.push(candidates[farthest]);
            near(&mut distances, candidates[farthest]);
            distances[farthest] = f64::NEG_INFINITY;
        }
        chosen
    }

    /// The most typical image of the candidates: the one nearest to the direction of their mean.
    fn most_typical(&self, candidates: &[usize]) -> Option<usize> {
        let mean = self.x.select(Axis(0), candidates).mean_axis(Axis(0))?;
        candidates.iter().copied().max_by(|&a, &b| {
            let along = |row: usize| self.x.row(row).dot(&mean);
            along(a).total_cmp(&along(b))
        })
    }

    /// The probability of each class for `rows`, `[m, k]`, by a model of the rows that are labelled. Of a class without
    /// labels it is 0. `None` if there are fewer than two classes.
    fn probabilities(
        &self,
        labelled: &[usize],
        labels: &Labels,
        rows: &[usize],
        c: f64,
    ) -> Result<Option<Array2<f64>>> {
        let of = |&row: &usize| labels.labels[row].expect("it is labelled");
        let mut present: Vec<usize> = labelled.iter().map(of).collect();
        present.sort_unstable();
        present.dedup();
        if present.len() < 2 {
            return Ok(None);
        }
        let places: Vec<usize> = labelled
            .iter()
            .map(|row| present.partition_point(|&class| class < of(row)))
            .collect();
        let regression = LogisticRegression {
            tolerance: TOLERANCE,
            ..LogisticRegression::new(c, Solver::Faer)?
        };
        let x = self.x.select(Axis(0), labelled);
        let model = regression.fit(x.view(), &places, present.len())?;
        let found = model.predict_proba(self.x.select(Axis(0), rows).view())?;
        let mut all = Array2::zeros((rows.len(), labels.n_classes));
        for (place, &class) in present.iter().enumerate() {
            all.column_mut(class).assign(&found.column(place));
        }
        Ok(Some(all))
    }

    /// The probabilities of labelled images by models that have not seen them.
    fn held_out(&self, labelled: &[usize], labels: &Labels, c: f64) -> Result<Vec<(usize, Array1<f64>)>> {
        let mut found = Vec::new();
        for fold in 0..FOLDS {
            let (held_out, seen): (Vec<usize>, Vec<usize>) = labelled.iter().partition(|&&row| self.folds[row] == fold);
            if let Some(probabilities) = self.probabilities(&seen, labels, &held_out, c)? {
                found.extend(
                    held_out
                        .into_iter()
                        .zip(probabilities.outer_iter().map(|row| row.to_owned())),
                );
            }
        }
        Ok(found)
    }

    /// Orders the images, for batches of so many.
    pub(super) fn judge(&self, task: Task, labels: &Labels, batch: usize) -> Result<Judged> {
        match task {
            Task::Label => self.next_to_label(labels, batch),
            Task::Review => self.worth_a_look(labels),
        }
    }

    fn next_to_label(&self, labels: &Labels, batch: usize) -> Result<Judged> {
        let n = labels.labels.len();
        let labelled: Vec<usize> = (0..n).filter(|&row| labels.labels[row].is_some()).collect();
        let open: Vec<usize> = (0..n).filter(|&row| labels.open[row]).collect();
        let mut judged = Judged {
            predicted: vec![None; n],
            ..Judged::default()
        };
        let probabilities = match labelled.len() {
            0..FIRST => None,
            _ => self.probabilities(&labelled, labels, &open, C)?,
        };
        let Some(probabilities) = probabilities else {
            let first = self.most_typical(&open).filter(|_| labelled.is_empty());
            // Of many that have one class, the first will do: each is compared with all others.
            let known: Vec<usize> = first.iter().chain(&labelled).copied().take(MOST).collect();
            let n = batch.max(FIRST) + SPARE - first.iter().len();
            let others = self.diverse(&open, n, &known);
            let rows = first
                .into_iter()
                .chain(others.into_iter().filter(|row| Some(*row) != first));
            judged.items = rows.map(|row| Item::new(row, Why::Unlike, Vec::new())).collect();
            return Ok(judged);
        };
        let mut margins: Vec<(usize, f64)> = Vec::new();
        for (place, (&row, probabilities)) in open.iter().zip(probabilities.outer_iter()).enumerate() {
            let best = suggestions(probabilities, 2);
            judged.predicted[row] = best.first().map(|best| (best.class, best.probability));
            margins.push((place, best[0].probability - best[1].probability));
        }
        margins.sort_by(|a, b| a.1.total_cmp(&b.1));
        let least: Vec<usize> = margins
            .iter()
            .take(batch * LEAST_CERTAIN)
            .map(|&(place, _)| open[place])
            .collect();
        let first = least.first().copied();
        let known: Vec<usize> = first.into_iter().collect();
        let mut rows = known.clone();
        let others: Vec<usize> = least.iter().copied().filter(|row| Some(*row) != first).collect();
        rows.extend(self.diverse(&others, batch + SPARE - rows.len(), &known));
        judged.items = (rows.into_iter())
            .map(|row| {
                let place = open.partition_point(|&other| other < row);
                Item::new(row, Why::Uncertain, suggestions(probabilities.row(place), SUGGESTED))
            })
            .collect();
        // In the middle of the batch, one that says how good the model is.
        let chosen: Vec<usize> = judged.items.iter().map(|item| item.image).collect();
        let others = open.iter().enumerate().filter(|(_, row)| !chosen.contains(row));
        if let Some((place, &row)) = others.min_by_key(|(_, row)| self.draws[**row]) {
            let item = Item::new(row, Why::Check, suggestions(probabilities.row(place), SUGGESTED));
            judged.items.insert((batch / 2).min(judged.items.len()), item);
        }
        // The labelled images are harder than others: the model has asked about what it was not sure of. Models with all
        // and with half of the labels can be compared all the same.
        let half: Vec<usize> = labelled
            .iter()
            .copied()
            .filter(|&row| self.draws[row].is_multiple_of(2))
            .collect();
        judged.would_help = match (self.accuracy(&labelled, labels)?, self.accuracy(&half, labels)?) {
            (Some(of_all), Some(of_half)) => Some(of_all - of_half > GAIN),
            _ => None,
        };
        Ok(judged)
    }

    fn accuracy(&self, labelled: &[usize], labels: &Labels) -> Result<Option<f64>> {
        if labelled.len() < ENOUGH {
            return Ok(None);
        }
        let held_out = self.held_out(labelled, labels, C)?;
        let is_right = |(row, probabilities): &&(usize, Array1<f64>)| {
            Some(suggestions(probabilities.view(), 1)[0].class) == labels.labels[*row]
        };
        Ok(Some(
            held_out.iter().filter(is_right).count() as f64 / labelled.len() as f64,
        ))
    }

    fn worth_a_look(&self, labels: &Labels) -> Result<Judged> {
        let n = labels.labels.len();
        let labelled: Vec<usize> = (0..n).filter(|&row| labels.labels[row].is_some()).collect();
        let held_out = self.held_out(&labelled, labels, C_OF_REVIEW)?;
        let mut judged = Judged {
            predicted: vec![None; n],
            ..Judged::default()
        };
        let mut n_right = 0;
        let mut found = Vec::new();
        for (row, probabilities) in &held_out {
            let label = labels.labels[*row].expect("it is labelled");
            let best = suggestions(probabilities.view(), SUGGESTED);
            n_right += usize::from(best[0].class == label);
            judged.predicted[*row] = Some((best[0].class, best[0].probability));
            let other = best.iter().find(|suggestion| suggestion.class != label);
            if let (true, Some(other)) = (labels.open[*row], other) {
                let of_label = probabilities[label];
                let why = match other.probability > of_label {
                    true => Why::Suspect {
                        label_probability: of_label,
                    },
                    false => Why::Unsure {
                        label_probability: of_label,
                    },
                };
                found.push((other.probability - of_label, Item::new(*row, why, best)));
            }
        }
        found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.image.cmp(&b.1.image)));
        judged.items = found.into_iter().take(MOST).map(|(_, item)| item).collect();
        judged.accuracy = (labelled.len() >= ENOUGH).then(|| n_right as f64 / held_out.len().max(1) as f64);
        Ok(judged)
    }

    /// The images of a class that look most like an image, the nearest first.
    pub(super) fn nearest(&self, row: usize, labels: &[Option<usize>], class: usize, n: usize) -> Vec<usize> {
        let mut rows: Vec<(f64, usize)> = (0..labels.len())
            .filter(|&other| other != row && labels[other] == Some(class))
            .map(|other| (self.distance(row, other), other))
            .collect();
        rows.sort_by(|a, b| a.0.total_cmp(&b.0));
        rows.into_iter().take(n).map(|(_, other)| other).collect()
    }
}

/// The second eight bytes of a digest: the first say which fold an image is in.
fn draw(digest: &Digest) -> u64 {
    let bytes = digest.as_bytes()[8..16].try_into().expect("eight bytes");
    u64::from_le_bytes(bytes)
}

/// The most probable classes, the most probable first.
fn suggestions(probabilities: ArrayView1<'_, f64>, n: usize) -> Vec<Suggestion> {
    let mut all: Vec<Suggestion> = (probabilities.iter().enumerate())
        .map(|(class, &probability)| Suggestion { class, probability })
        .collect();
    all.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    all.truncate(n);
    all
}
