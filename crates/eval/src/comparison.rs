use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use luthier_artifact::{Digest, file_names};
use ndarray::ArrayView1;
use serde::{Deserialize, Serialize};

use crate::evaluate::log_loss;
use crate::metrics::Counts;
use crate::{ClassMetrics, Error, EvaluatedImage, Reliability, Result};

/// The schema of the reports that can be compared.
const SCHEMA: &str = "luthier-report/1";

/// A `report.json`, as far as a comparison needs it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ReportedRun {
    confidence: f64,
    classes: Vec<String>,
    #[serde(default)]
    facts: Vec<ReportedFact>,
    predictions: Vec<ReportedPrediction>,
}

/// What a report says of how it was made, for example `Views` and `squash`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct ReportedFact {
    name: String,
    value: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct ReportedPrediction {
    file: String,
    image: Digest,
    true_class: String,
    probabilities: Vec<f64>,
}

impl ReportedRun {
    /// Reads a `report.json`.
    ///
    /// # Errors
    /// [`Error::Artifact`] if the file cannot be read; [`Error::NoReport`], which names it and what was found, if it is not
    /// a report of a known schema, or contradicts itself.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(luthier_artifact::Error::io(path))?;
        ReportedRun::parse(&bytes).map_err(|found| Error::NoReport {
            path: path.to_owned(),
            expected: SCHEMA,
            found,
        })
    }

    /// A report, or what is there instead.
    fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        #[derive(Deserialize)]
        struct Header {
            schema: Option<String>,
        }
        let text = std::str::from_utf8(bytes).map_err(|error| format!("no JSON object ({error})"))?;
        let text = file_names::from_json(text);
        let header: Header = serde_json::from_str(&text).map_err(|error| format!("no JSON object ({error})"))?;
        match header.schema {
            Some(schema) if schema == SCHEMA => {}
            Some(schema) => return Err(schema),
            None => return Err("JSON without a schema".to_owned()),
        }
        let run: ReportedRun = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let is_probability = |p: &f64| (0.0..=1.0).contains(p);
        let contradicts = |prediction: &&ReportedPrediction| {
            !run.classes.contains(&prediction.true_class)
                || prediction.probabilities.len() != run.classes.len()
                || !prediction.probabilities.iter().all(is_probability)
        };
        match run.predictions.iter().find(contradicts) {
            Some(ReportedPrediction { file, true_class, .. }) => Err(format!(
                "a prediction for {file} of class {true_class} that does not fit the {} classes",
                run.classes.len()
            )),
            None => Ok(run),
        }
    }

    fn fact(&self, name: &str) -> Option<&String> {
        self.facts.iter().find(|fact| fact.name == name).map(|fact| &fact.value)
    }

    fn label(&self, class: &str) -> usize {
        let found = self.classes.iter().position(|known| known == class);
        found.expect("a report that was read knows the classes of its predictions")
    }

    fn row(&self, prediction: &ReportedPrediction) -> EvaluatedImage {
        EvaluatedImage::new(
            prediction.image,
            self.label(&prediction.true_class),
            ArrayView1::from(&prediction.probabilities),
        )
    }

    /// The predictions by image and true class: of copies the first.
    fn distinct(&self) -> BTreeMap<Labelled<'_>, &ReportedPrediction> {
        let mut distinct = BTreeMap::new();
        for prediction in &self.predictions {
            let labelled = (prediction.image, prediction.true_class.as_str());
            distinct.entry(labelled).or_insert(prediction);
        }
        distinct
    }
}

/// An image with one of the classes that it is labelled with: mostly it is labelled with one.
type Labelled<'a> = (Digest, &'a str);

/// What became better and worse from one run, the baseline, to another, the candidate.
///
/// All figures are over the images that both runs tested with the same true class, known by the digests of their bytes.
/// Copies of an image count once: a second look at the same bytes is no further evidence.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The number of images in common, at least 1.
    pub n: usize,
    /// The confidence level of the candidate's report, between 0 and 1: the verdict rests on it.
    pub confidence: f64,
    /// Better, worse, or no telling.
    pub verdict: Verdict,
    /// What the verdict comes from.
    pub mcnemar: McNemar,
    /// The share of the images whose predicted class is the true one.
    pub accuracy: Change,
    /// The unweighted mean of F1 over the classes in common that have images or predictions.
    pub macro_f1: Change,
    /// The mean negative logarithm of the true class's probability, in nats.
    pub log_loss: Change,
    /// The expected calibration error, as [`Reliability`] has it.
    pub calibration_error: Change,
    /// One entry for each class in common, in the order of the baseline's labels.
    pub per_class: Vec<ClassChange>,
    /// The images that the baseline has right and the candidate wrong, the most confident mistakes first.
    pub newly_wrong: Vec<Flip>,
    /// The images that the baseline has wrong and the candidate right, the most confident mistakes first.
    pub newly_right: Vec<Flip>,
    /// The images of both runs that are not labelled with the same classes; figures count the labels in common.
    pub relabelled: Vec<Relabelled>,
    /// What the reports say of how they were made, where it differs.
    pub facts: Vec<FactChange>,
    /// What only the baseline has.
    pub baseline: Side,
    /// What only the candidate has.
    pub candidate: Side,
}

/// A figure of both runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The baseline's.
    pub baseline: f64,
    /// The candidate's.
    pub candidate: f64,
    /// The candidate's minus the baseline's.
    pub difference: f64,
}

/// The metrics of a class in both runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassChange {
    /// The class.
    pub class: String,
    /// The number of images in common whose true class it is.
    pub support: u64,
    /// The share of the images predicted to be of the class that are.
    pub precision: Change,
    /// The share of the images of the class that are predicted to be.
    pub recall: Change,
    /// The harmonic mean of precision and recall.
    pub f1: Change,
}

impl ClassChange {
    /// Whether any of the metrics differs.
    pub fn is_changed(&self) -> bool {
        [self.precision, self.recall, self.f1]
            .iter()
            .any(|change| change.difference != 0.0)
    }
}

/// An image that one run has right and the other wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Flip {
    /// The candidate's file, the first in its report if there are copies.
    pub file: String,
    /// The digest of its bytes.
    pub image: Digest,
    /// Its true class.
    pub true_class: String,
    /// What the baseline says.
    pub baseline: Answer,
    /// What the candidate says.
    pub candidate: Answer,
}

/// The most probable class of an image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// The class.
    pub class: String,
    /// Its probability, 0 to 1.
    pub probability: f64,
}

/// An image whose true class is not the same in both runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Relabelled {
    /// The candidate's file, the first in its report if there are copies.
    pub file: String,
    /// The digest of its bytes.
    pub image: Digest,
    /// The baseline's true class, or classes if it has copies in several, in alphabetical order.
    pub baseline: Vec<String>,
    /// The candidate's.
    pub candidate: Vec<String>,
}

/// Something that two reports say of how they were made; `None` where one says nothing of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FactChange {
    /// What it is about, for example `Regularization`.
    pub name: String,
    /// What the baseline's report says.
    pub baseline: Option<String>,
    /// What the candidate's report says.
    pub candidate: Option<String>,
}

/// What a comparison leaves out of one of its runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Side {
    /// The number of images in its report.
    pub n: usize,
    /// The accuracy over all of them, as in its report.
    pub accuracy: f64,
    /// How many of them are copies of another of the same class, and count no second time.
    pub n_copies: usize,
    /// The files that the other run did not test, in order.
    pub only_here: Vec<String>,
    /// The classes that the other run does not know, in label order.
    pub classes_only_here: Vec<String>,
}

/// McNemar's test: whether two classifiers that looked at the same images differ by more than chance.
///
/// Under the null hypothesis an image that only one of them has right is as likely to be the one's as the other's.
///
/// McNemar, Q. (1947), Note on the sampling error of the difference between correlated proportions or percentages; the same
/// as statsmodels' `mcnemar(table, exact=True)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct McNemar {
    /// The number of images that only the baseline has right.
    pub only_baseline_right: u64,
    /// The number of images that only the candidate has right.
    pub only_candidate_right: u64,
    /// The two-sided p-value by the binomial distribution, not by an approximation to it: 0 to 1.
    pub p_value: f64,
}

/// What McNemar's test says at a level of confidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The candidate is right more often.
    Better,
    /// The candidate is right less often.
    Worse,
    /// The difference is no more than chance would give.
    Chance,
}

impl McNemar {
    /// The exact test, given how many images only one of the two has right.
    pub fn exact(only_baseline_right: u64, only_candidate_right: u64) -> Self {
        let n = only_baseline_right + only_candidate_right;
        let fewer = only_baseline_right.min(only_candidate_right);
        McNemar {
            only_baseline_right,
            only_candidate_right,
            p_value: (2.0 * fair_coin_cdf(fewer, n)).min(1.0),
        }
    }

    /// What it says at this level of confidence, between 0 and 1.
    pub fn verdict(&self, confidence: f64) -> Verdict {
        if self.p_value >= 1.0 - confidence {
            Verdict::Chance
        } else if self.only_candidate_right > self.only_baseline_right {
            Verdict::Better
        } else {
            Verdict::Worse
        }
    }
}

/// The probability of at most `k` heads in `n` throws of a fair coin.
///
/// A sum of binomial coefficients: exact for small `n`, and within 1e-11 for 400,001 throws. statrs 0.19 has the same
/// function, by a continued fraction that ends too early: for 400,001 throws it is off by 2e-5.
fn fair_coin_cdf(k: u64, n: u64) -> f64 {
    /// What is taken out of a sum of binomial coefficients before it overflows, as a power of 2.
    const STEP: u64 = 500;
    let halved = |value: f64, times: u64| value * 0.5f64.powi(times as i32);
    let (mut coefficient, mut sum, mut left) = (1.0, 1.0, n);
    for i in 1..=k {
        coefficient *= (n - i + 1) as f64 / i as f64;
        sum += coefficient;
        // The sum is at most 2^n, so that what is taken out is left to be taken.
        if sum > 2f64.powi(STEP as i32) {
            (coefficient, sum, left) = (halved(coefficient, STEP), halved(sum, STEP), left - STEP);
        }
    }
    while left > STEP && sum > 0.0 {
        (sum, left) = (halved(sum, STEP), left - STEP);
    }
    halved(sum, left.min(STEP))
}

impl Comparison {
    /// Compares two runs.
    ///
    /// # Errors
    /// [`Error::NothingInCommon`] if no image is in both with the same true class.
    pub fn of(baseline: &ReportedRun, candidate: &ReportedRun) -> Result<Self> {
        let (before, after) = (baseline.distinct(), candidate.distinct());
        let common: Vec<[&ReportedPrediction; 2]> = (before.iter())
            .filter_map(|(labelled, &old)| Some([old, *after.get(labelled)?]))
            .collect();
        if common.is_empty() {
            return Err(Error::NothingInCommon {
                baseline: before.len(),
                candidate: after.len(),
            });
        }
        let classes: Vec<&str> = (baseline.classes.iter().map(String::as_str))
            .filter(|&class| candidate.classes.iter().any(|other| other == class))
            .collect();
        let old = Measured::of(baseline, common.iter().map(|pair| pair[0]), &classes);
        let new = Measured::of(candidate, common.iter().map(|pair| pair[1]), &classes);
        let change = |figure: fn(&Measured) -> f64| Change::new(figure(&old), figure(&new));

        let (mut newly_wrong, mut newly_right) = (Vec::new(), Vec::new());
        for ((&[_, prediction], old), new) in common.iter().zip(&old.rows).zip(&new.rows) {
            let flips = match (old.is_correct(), new.is_correct()) {
                (true, false) => &mut newly_wrong,
                (false, true) => &mut newly_right,
                _ => continue,
            };
            flips.push(Flip {
                file: prediction.file.clone(),
                image: prediction.image,
                true_class: prediction.true_class.clone(),
                baseline: Answer::new(baseline, old),
                candidate: Answer::new(candidate, new),
            });
        }
        most_confident_first(&mut newly_wrong, |flip| flip.candidate.probability);
        most_confident_first(&mut newly_right, |flip| flip.baseline.probability);
        let mcnemar = McNemar::exact(newly_wrong.len() as u64, newly_right.len() as u64);
        let names = baseline.facts.iter().map(|fact| &fact.name);
        let new_names = candidate.facts.iter().map(|fact| &fact.name);
        let facts = names
            .chain(new_names.filter(|name| baseline.fact(name).is_none()))
            .map(|name| FactChange {
                name: name.clone(),
                baseline: baseline.fact(name).cloned(),
                candidate: candidate.fact(name).cloned(),
            });
        Ok(Comparison {
            facts: facts.filter(|fact| fact.baseline != fact.candidate).collect(),
            n: common.len(),
            confidence: candidate.confidence,
            verdict: mcnemar.verdict(candidate.confidence),
            mcnemar,
            accuracy: change(|run| run.accuracy),
            macro_f1: change(|run| run.macro_f1),
            log_loss: change(|run| log_loss(&run.rows)),
            calibration_error: change(|run| run.calibration_error),
            per_class: (classes.iter().zip(old.per_class.iter().zip(&new.per_class)))
                .map(|(&class, (old, new))| ClassChange {
                    class: class.to_owned(),
                    support: new.support,
                    precision: Change::new(old.precision, new.precision),
                    recall: Change::new(old.recall, new.recall),
                    f1: Change::new(old.f1, new.f1),
                })
                .collect(),
            newly_wrong,
            newly_right,
            relabelled: relabelled(&before, &after),
            baseline: Side::of(baseline, candidate),
            candidate: Side::of(candidate, baseline),
        })
    }
}

impl Change {
    fn new(baseline: f64, candidate: f64) -> Self {
        Change {
            baseline,
            candidate,
            difference: candidate - baseline,
        }
    }
}

impl Answer {
    fn new(run: &ReportedRun, row: &EvaluatedImage) -> Self {
        Answer {
            class: run.classes[row.predicted].clone(),
            probability: row.predicted_probability(),
        }
    }
}

impl Side {
    fn of(run: &ReportedRun, other: &ReportedRun) -> Self {
        let tested: BTreeSet<Digest> = other.predictions.iter().map(|prediction| prediction.image).collect();
        let is_right = |prediction: &&ReportedPrediction| run.row(prediction).is_correct();
        let n = run.predictions.len();
        let mut only_here: Vec<String> = (run.predictions.iter())
            .filter(|prediction| !tested.contains(&prediction.image))
            .map(|prediction| prediction.file.clone())
            .collect();
        only_here.sort_unstable();
        Side {
            n,
            accuracy: run.predictions.iter().filter(is_right).count() as f64 / n as f64,
            n_copies: n - run.distinct().len(),
            only_here,
            classes_only_here: (run.classes.iter())
                .filter(|&class| !other.classes.contains(class))
                .cloned()
                .collect(),
        }
    }
}

/// The figures of a run over some of its predictions.
struct Measured {
    rows: Vec<EvaluatedImage>,
    accuracy: f64,
    calibration_error: f64,
    macro_f1: f64,
    per_class: Vec<ClassMetrics>,
}

impl Measured {
    /// Of `predictions`, whose true classes are among `classes`, at least one.
    fn of<'a>(run: &ReportedRun, predictions: impl Iterator<Item = &'a ReportedPrediction>, classes: &[&str]) -> Self {
        let rows: Vec<EvaluatedImage> = predictions.map(|prediction| run.row(prediction)).collect();
        // A class that the other run does not know is none of those that are measured: all such have one place behind them.
        let place = |class: &String| classes.iter().position(|known| known == class).unwrap_or(classes.len());
        let places: Vec<usize> = run.classes.iter().map(place).collect();
        let mut counts = Counts::new(classes.len() + 1);
        rows.iter()
            .for_each(|row| counts.add(places[row.truth], places[row.predicted]));
        let outcomes = rows.iter().map(|row| (row.predicted_probability(), row.is_correct()));
        Measured {
            accuracy: rows.iter().filter(|row| row.is_correct()).count() as f64 / rows.len() as f64,
            calibration_error: Reliability::of(outcomes).calibration_error,
            macro_f1: counts.macro_average(classes.len()).f1,
            per_class: counts.per_class().take(classes.len()).collect(),
            rows,
        }
    }
}

/// The images of both runs whose true classes differ, ordered by file.
fn relabelled(
    before: &BTreeMap<Labelled<'_>, &ReportedPrediction>,
    after: &BTreeMap<Labelled<'_>, &ReportedPrediction>,
) -> Vec<Relabelled> {
    let (before, after) = (by_image(before), by_image(after));
    let mut relabelled: Vec<Relabelled> = (after.into_iter())
        .filter_map(|(image, new)| {
            let old = before.get(&image)?;
            let classes = |predictions: &[&ReportedPrediction]| -> Vec<String> {
                predictions
                    .iter()
                    .map(|prediction| prediction.true_class.clone())
                    .collect()
            };
            let (baseline, candidate) = (classes(old), classes(&new));
            (baseline != candidate).then(|| Relabelled {
                file: new[0].file.clone(),
                image,
                baseline,
                candidate,
            })
        })
        .collect();
    relabelled.sort_by(|a, b| a.file.cmp(&b.file));
    relabelled
}

/// The predictions of each image, ordered by class.
fn by_image<'a>(
    distinct: &BTreeMap<Labelled<'_>, &'a ReportedPrediction>,
) -> BTreeMap<Digest, Vec<&'a ReportedPrediction>> {
    let mut images = BTreeMap::<Digest, Vec<&ReportedPrediction>>::new();
    for (&(image, _), &prediction) in distinct {
        images.entry(image).or_default().push(prediction);
    }
    images
}

fn most_confident_first(flips: &mut [Flip], probability: fn(&Flip) -> f64) {
    flips.sort_by(|a, b| {
        let falling = probability(b).total_cmp(&probability(a));
        falling.then_with(|| a.file.cmp(&b.file))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_that_overflow_give_the_same_as_those_that_do_not() {
        // By symmetry, and with an odd number, at most half of the throws is half of all cases.
        for n in [1, 501, 1_023, 1_025, 5_001, 400_001] {
            let half = fair_coin_cdf(n / 2, n);
            assert!((half - 0.5).abs() < 1e-11, "{n}: {half}");
        }
        assert_eq!(fair_coin_cdf(0, 1_000), 2f64.powi(-1_000));
        assert_eq!(fair_coin_cdf(0, 1_000_000), 0.0);
        assert_eq!(fair_coin_cdf(2, 3), 0.875);
    }

    #[test]
    fn the_verdict_goes_by_the_level_and_the_side() {
        // Eight to one: p = 0.039.
        let verdicts = |baseline, candidate| {
            [0.95, 0.99].map(|confidence| McNemar::exact(baseline, candidate).verdict(confidence))
        };
        assert_eq!(verdicts(1, 8), [Verdict::Better, Verdict::Chance]);
        assert_eq!(verdicts(8, 1), [Verdict::Worse, Verdict::Chance]);
        assert_eq!(verdicts(0, 0), [Verdict::Chance; 2]);
    }
}
