//! The page.

use std::collections::HashMap;
use std::fmt::Write;

use askama::Template;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use luthier_artifact::{Split, file_names};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::chart::{self, Chart, Plot};
use super::conclusions::{
    Conclusions, ConfusedPair, DuplicateImages, FEW_TEST, FEW_TRAIN, FewImages, Image, Meaning, Mislabelled, Mistake,
    MoreImages, Nearest,
};
use super::pictures::{Pictures, Wanted};
use super::plot::shade;
use super::words::{count, counted, level, percent, printable};
use super::{Context, CrossValidated, Skipped, StageTime, Warning};
use crate::evaluate::evenly;
use crate::{BOOTSTRAP_RESAMPLES, ClassMetrics, Estimate, EvaluatedImage, Evaluation, HeldOutFigures, Result};

const STYLE: &str = include_str!("../../templates/report.css");
const SCRIPT: &str = include_str!("../../templates/report.js");

/// A page is to be mailed around: what it names of a test set or shows as a picture is limited in number.
const MAX_CARDS: usize = 100;
const MAX_IMAGES: usize = 5_000;
/// Thumbnails beside those of the cards.
const MAX_SMALL_PICTURES: usize = 300;
/// The longer sides of thumbnails, in pixels.
const CARD_SIDE: u32 = 240;
const SMALL_SIDE: u32 = 96;
/// Above this a table of all pairs of classes is no longer read, but searched.
const MAX_MATRIX_CLASSES: usize = 100;
const MAX_CONFUSIONS: usize = 10;
const MAX_LISTED: usize = 200;
const MAX_SUSPECTS: usize = 48;
const MAX_GROUPS: usize = 48;
const MAX_GROUP_IMAGES: usize = 12;

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    style: &'static str,
    picture_style: String,
    script: &'static str,
    /// As Content-Security-Policy has it: SHA-256 in base64.
    script_hash: String,
    date: Option<&'a str>,
    accuracy: Interval,
    macro_f1: Interval,
    n_correct: usize,
    n: usize,
    /// What one of the images that the figures are about is called.
    noun: &'static str,
    has_test: bool,
    held_out: Option<HeldOut>,
    n_classes: usize,
    level: String,
    n_resamples: usize,
    top_k: Vec<(usize, String)>,
    log_loss: String,
    calibration_error: String,
    uncalibrated_error: String,
    cross_validation: Option<CrossValidated<'a>>,
    warnings: Vec<WarningBox<'a>>,
    facts: &'a [(String, String)],
    /// In label order.
    names: &'a [String],
    /// The worst first.
    classes: Vec<ClassLine>,
    averages: [ClassLine; 2],
    confusions: Vec<Confusion>,
    n_pairs: usize,
    /// Empty if there are too many classes for a table.
    matrix: Vec<MatrixLine>,
    n_mistakes: usize,
    cards: Vec<Card>,
    other_mistakes: Vec<Listed>,
    right: Vec<RightImages>,
    n_right_listed: usize,
    judged_training_images: bool,
    compared_looks: bool,
    suspects: Vec<SuspectCard>,
    n_suspects: usize,
    n_suspects_in_train: usize,
    /// What people found of labels that they looked at.
    checked: Option<String>,
    n_leaked: usize,
    accuracy_without_leakage: Option<String>,
    duplicates: Vec<Kind>,
    few_images: Vec<FewLine>,
    more_images: &'a MoreImages,
    learning: Option<Plot>,
    variance: Option<Plot>,
    map: Option<Chart>,
    n_points: usize,
    reliability: Plot,
    regularization: Option<Plot>,
    stages: &'a [StageTime],
    skipped: Vec<SkippedLine<'a>>,
    n_skipped: usize,
    version: &'static str,
}

/// The figures for the training images that were held out.
struct HeldOut {
    n: usize,
    accuracy: Interval,
    macro_f1: String,
    log_loss: String,
}

impl HeldOut {
    fn of(figures: &HeldOutFigures) -> Self {
        HeldOut {
            n: figures.n,
            accuracy: Interval::of(figures.accuracy, percent),
            macro_f1: format!("{:.3}", figures.macro_f1),
            log_loss: format!("{:.3}", figures.log_loss),
        }
    }
}

/// An estimate in words, and its bounds as percentages of a scale from 0 to 1.
struct Interval {
    value: String,
    bounds: String,
    value_at: f64,
    lower_at: f64,
    width: f64,
}

struct WarningBox<'a> {
    title: &'a str,
    detail: String,
    n_files: usize,
    files: Vec<String>,
}

struct ClassLine {
    /// The place in the order of the labels.
    label: usize,
    name: String,
    metrics: [f64; 3],
    support: u64,
}

struct Confusion {
    truth: String,
    predicted: String,
    /// How many, of how many of the true class.
    images: String,
    share: String,
    n: usize,
    files: Vec<String>,
}

struct MatrixLine {
    name: String,
    cells: Vec<MatrixCell>,
}

struct MatrixCell {
    /// True and predicted label.
    name: String,
    count: u64,
    share: String,
    class: &'static str,
    /// Percent of the full colour.
    shade: u32,
    description: String,
}

impl MatrixCell {
    /// Whether its number is read better in the light ink: orange stays bright longer than blue.
    fn is_strong(&self) -> bool {
        self.shade >= if self.class == "hit" { 75 } else { 90 }
    }
}

/// A thumbnail: the number of its style, if there is one, and what it shows.
#[derive(Template)]
#[template(
    ext = "html",
    source = r#"{% if let Some(number) = number %}<span class="photo p{{ number }}" role="img" aria-label="{{ file }}"></span>{% endif %}"#
)]
struct Picture {
    number: Option<usize>,
    file: String,
    /// The address of the file, as seen from the page.
    link: Option<String>,
}

impl Picture {
    /// The name of the file, which leads to it.
    fn name(&self) -> FileName<'_> {
        FileName(self)
    }
}

#[derive(Template)]
#[template(
    ext = "html",
    source = r#"{% if let Some(link) = self.0.link %}<a href="{{ link }}"><bdi>{{ self.0.file }}</bdi></a>{% else %}<bdi>{{ self.0.file }}</bdi>{% endif %}"#
)]
struct FileName<'a>(&'a Picture);

struct Card {
    at: usize,
    /// Of the confusion matrix.
    cell: String,
    picture: Picture,
    truth: String,
    predicted: String,
    predicted_probability: f64,
    true_probability: f64,
    true_rank: usize,
    nearest: NearestPictures,
}

/// The training images most like an image.
#[derive(Template)]
#[template(
    ext = "html",
    source = r#"<ul class="nearest" aria-label="Most similar training images">
{%- for near in self.0 %}
<li class="{{ near.kind }}">{% if near.picture.number.is_some() %}{{ near.picture|safe }}{% else %}<span class="photo"></span>{% endif %}<bdi title="{{ near.picture.file }}">{{ near.class }}</bdi> <small>{{ format!("{:.2}", near.cosine) }}</small></li>
{%- endfor %}
</ul>"#
)]
struct NearestPictures(Vec<NearestPicture>);

struct NearestPicture {
    picture: Picture,
    class: String,
    cosine: f64,
    /// Whether its class is that of the image, the other one that the card names or neither, as CSS knows it.
    kind: &'static str,
}

/// An evaluated image as a line of text.
struct Listed {
    at: usize,
    cell: String,
    picture: Picture,
    truth: String,
    predicted: String,
    probability: String,
}

/// Images of a class that were predicted rightly.
struct RightImages {
    cell: String,
    class: String,
    n: u64,
    support: u64,
    images: Vec<Listed>,
}

struct SuspectCard {
    /// What a decision needs, as JSON.
    decision: String,
    picture: Picture,
    split: Split,
    label: String,
    suggested: String,
    label_probability: String,
    suggested_probability: String,
    nearest: NearestPictures,
}

/// Duplicates that mean the same.
struct Kind {
    title: &'static str,
    meaning: &'static str,
    none: &'static str,
    n: usize,
    groups: Vec<Group>,
}

struct Group {
    likeness: String,
    images: Vec<GroupImage>,
    n_more: usize,
}

struct GroupImage {
    decision: String,
    picture: Picture,
    split: Split,
    class: String,
}

struct FewLine {
    class: String,
    n_train: usize,
    few_train: bool,
    n_test: usize,
    few_test: bool,
    recall: String,
    bounds: String,
}

struct SkippedLine<'a> {
    split: String,
    class: String,
    file: String,
    reason: &'a str,
}

/// The report as one HTML document.
pub(super) fn page(context: &Context<'_>, conclusions: &Conclusions<'_>) -> Result<String> {
    let evaluation = context.evaluation;
    let names: Vec<String> = evaluation.classes.iter().map(|name| printable(name)).collect();
    let mistakes = &conclusions.mistakes;
    let named = evaluation.sample(MAX_IMAGES);
    let is_right = |row: &usize| evaluation.rows[*row].is_correct();
    let right: Vec<usize> = named.iter().copied().filter(is_right).collect();
    let pictures = Pictures::make(context, &wanted(context, conclusions, &right))?;
    let show = Show {
        context,
        names: &names,
        pictures: &pictures,
    };

    let page = Page {
        style: STYLE,
        picture_style: pictures.css(),
        script: SCRIPT,
        script_hash: BASE64_STANDARD.encode(Sha256::digest(SCRIPT)),
        date: context.date,
        accuracy: Interval::of(evaluation.accuracy, percent),
        macro_f1: Interval::of(evaluation.macro_f1, |value| format!("{value:.3}")),
        n_correct: evaluation.n_correct(),
        n: evaluation.n,
        noun: evaluation.noun(),
        has_test: evaluation.split == Split::Test,
        held_out: evaluation.held_out.as_ref().map(HeldOut::of),
        n_classes: names.len(),
        level: level(evaluation.confidence),
        n_resamples: BOOTSTRAP_RESAMPLES,
        // The first of them is the accuracy once more.
        top_k: evaluation
            .top_k
            .iter()
            .skip(1)
            .map(|&(k, accuracy)| (k, percent(accuracy)))
            .collect(),
        log_loss: format!("{:.3}", evaluation.log_loss),
        calibration_error: format!("{:.3}", evaluation.reliability.calibration_error),
        uncalibrated_error: {
            let before = evaluation.uncalibrated.as_ref().unwrap_or(&evaluation.reliability);
            format!("{:.3}", before.calibration_error)
        },
        cross_validation: context.cross_validation,
        warnings: context.warnings.iter().map(WarningBox::of).collect(),
        facts: context.facts,
        names: &names,
        classes: class_lines(evaluation, &names),
        averages: [
            ClassLine::of(0, "Macro average", &evaluation.macro_average),
            ClassLine::of(0, "Weighted average", &evaluation.weighted_average),
        ],
        confusions: (conclusions.confused_pairs.iter())
            .take(MAX_CONFUSIONS)
            .map(Confusion::of)
            .collect(),
        n_pairs: conclusions.confused_pairs.len(),
        matrix: if names.len() <= MAX_MATRIX_CLASSES {
            matrix(evaluation, &names)
        } else {
            Vec::new()
        },
        n_mistakes: mistakes.len(),
        cards: (mistakes.iter().take(MAX_CARDS)).map(|one| show.card(one)).collect(),
        other_mistakes: (mistakes.iter().take(MAX_IMAGES).skip(MAX_CARDS))
            .map(|mistake| show.listed(mistake.at))
            .collect(),
        right: show.right(&right),
        n_right_listed: right.len(),
        judged_training_images: context.findings.judged_training_images,
        compared_looks: context.findings.compared_looks,
        suspects: (conclusions.mislabelled.iter().take(MAX_SUSPECTS))
            .map(|suspect| show.suspect(suspect))
            .collect(),
        n_suspects: conclusions.mislabelled.len(),
        n_suspects_in_train: (conclusions.mislabelled.iter())
            .filter(|suspect| suspect.image.split == Split::Train)
            .count(),
        checked: context.checked.describe(),
        n_leaked: conclusions.leakage.n,
        accuracy_without_leakage: conclusions.leakage.accuracy_without.map(percent),
        duplicates: Meaning::ALL
            .map(|meaning| show.kind(meaning, &conclusions.duplicates))
            .into(),
        few_images: conclusions.few_images.iter().map(FewLine::of).collect(),
        more_images: &conclusions.more_images,
        learning: context
            .cross_validation
            .and_then(|found| chart::learning(&found.info.learning_curve)),
        variance: chart::variance(context.variance),
        n_points: named
            .iter()
            .filter(|&&row| context.findings.map.place(&evaluation.rows[row].image).is_some())
            .count(),
        map: chart::map(evaluation, &context.findings.map, &named),
        reliability: chart::reliability(evaluation),
        regularization: context.cross_validation.and_then(chart::regularization),
        stages: context.stages,
        skipped: context.skipped.iter().take(MAX_LISTED).map(SkippedLine::of).collect(),
        n_skipped: context.skipped.len(),
        version: env!("CARGO_PKG_VERSION"),
    }
    .render();
    Ok(page.expect("numbers and strings always render"))
}

/// The thumbnails that the page would like to show, the most important first.
fn wanted<'a>(context: &Context<'a>, conclusions: &Conclusions<'a>, right: &[usize]) -> Vec<Wanted<'a>> {
    let small = |split: Split, file: &'a str| Wanted {
        split,
        file,
        side: SMALL_SIDE,
    };
    let of_cards = (conclusions.mistakes.iter().take(MAX_CARDS)).flat_map(|mistake| {
        let own = Wanted {
            split: context.evaluation.split,
            file: mistake.file,
            side: CARD_SIDE,
        };
        let nearest = mistake.nearest.iter().map(|near| small(Split::Train, near.file));
        std::iter::once(own).chain(nearest)
    });
    let suspects = (conclusions.mislabelled.iter().take(MAX_SUSPECTS)).flat_map(|suspect| {
        let own = Wanted {
            split: suspect.image.split,
            file: suspect.image.file,
            side: CARD_SIDE,
        };
        let nearest = suspect.nearest.iter().map(|near| small(Split::Train, near.file));
        std::iter::once(own).chain(nearest)
    });
    let groups =
        (Meaning::ALL.into_iter()).flat_map(|meaning| groups_of(meaning, &conclusions.duplicates).take(MAX_GROUPS));
    // Two of each group are enough to see what it is about.
    let duplicates = groups.flat_map(|group| group.images.iter().take(2).copied());
    let others: Vec<Wanted<'a>> = duplicates
        .map(|Image { split, file, .. }| small(split, file))
        .take(MAX_SMALL_PICTURES)
        .collect();
    let room = MAX_SMALL_PICTURES - others.len();
    let right = evenly(right, room).map(|&row| small(context.evaluation.split, &context.evaluated.files[row]));
    (of_cards.chain(suspects))
        .chain(others.iter().copied())
        .chain(right)
        .collect()
}

/// The groups that mean this.
fn groups_of<'s, 'a>(
    meaning: Meaning,
    duplicates: &'s [DuplicateImages<'a>],
) -> impl Iterator<Item = &'s DuplicateImages<'a>> {
    duplicates.iter().filter(move |group| group.meanings.contains(&meaning))
}

/// What is needed to show an image.
struct Show<'a> {
    context: &'a Context<'a>,
    names: &'a [String],
    pictures: &'a Pictures<'a>,
}

impl Show<'_> {
    fn picture(&self, split: Split, file: &str) -> Picture {
        Picture {
            number: self.pictures.number(split, file),
            file: printable(file),
            link: (self.context.link)(split, file),
        }
    }

    /// Training images, of which those of `class` speak for it, and those of `other` against it.
    fn nearest(&self, nearest: &[Nearest<'_>], class: &str, other: &str) -> NearestPictures {
        let pictures = nearest.iter().map(|near| NearestPicture {
            picture: self.picture(Split::Train, near.file),
            class: printable(near.class),
            cosine: near.cosine,
            kind: match near.class {
                near if near == class => "hit",
                near if near == other => "miss",
                _ => "other",
            },
        });
        NearestPictures(pictures.collect())
    }

    fn card(&self, Mistake { at, file, row, nearest }: &Mistake<'_>) -> Card {
        let classes = &self.context.evaluation.classes;
        Card {
            at: *at,
            cell: cell(row.truth, row.predicted),
            picture: self.picture(self.context.evaluation.split, file),
            truth: self.names[row.truth].clone(),
            predicted: self.names[row.predicted].clone(),
            predicted_probability: row.predicted_probability(),
            true_probability: row.true_probability(),
            true_rank: row.true_rank(),
            nearest: self.nearest(nearest, &classes[row.truth], &classes[row.predicted]),
        }
    }

    fn listed(&self, at: usize) -> Listed {
        let row: &EvaluatedImage = &self.context.evaluation.rows[at];
        Listed {
            at,
            cell: cell(row.truth, row.predicted),
            picture: self.picture(self.context.evaluation.split, &self.context.evaluated.files[at]),
            truth: self.names[row.truth].clone(),
            predicted: self.names[row.predicted].clone(),
            probability: percent(row.predicted_probability()),
        }
    }

    /// These rows by class, in label order.
    fn right(&self, rows: &[usize]) -> Vec<RightImages> {
        let evaluation = self.context.evaluation;
        let mut by_class: HashMap<usize, Vec<Listed>> = HashMap::new();
        for &row in rows {
            let truth = evaluation.rows[row].truth;
            by_class.entry(truth).or_default().push(self.listed(row));
        }
        let classes = (0..evaluation.classes.len()).filter_map(|class| {
            Some(RightImages {
                cell: cell(class, class),
                class: self.names[class].clone(),
                n: evaluation.confusion[class][class],
                support: evaluation.per_class[class].support,
                images: by_class.remove(&class)?,
            })
        });
        classes.collect()
    }

    fn suspect(&self, suspect: &Mislabelled<'_>) -> SuspectCard {
        let Image { split, file, class, .. } = suspect.image;
        SuspectCard {
            decision: self.decision(&suspect.image, Some(suspect.suggested_class)),
            picture: self.picture(split, file),
            split,
            label: printable(class),
            suggested: printable(suspect.suggested_class),
            label_probability: percent(suspect.label_probability),
            suggested_probability: percent(suspect.suggested_probability),
            nearest: self.nearest(&suspect.nearest, class, suspect.suggested_class),
        }
    }

    /// What `decisions.jsonl` has to name of an image, with its class and another that it may be of.
    fn decision(&self, image: &Image<'_>, suggested: Option<&str>) -> String {
        let file = match self.context.has_two_folders {
            true => format!("{}/{}", image.split, image.file),
            false => image.file.to_owned(),
        };
        let about = json!({
            "image": image.digest.to_string(),
            "file": file,
            "class": image.class,
            "suggested": suggested,
        });
        file_names::to_json(about.to_string())
    }

    fn kind(&self, meaning: Meaning, duplicates: &[DuplicateImages<'_>]) -> Kind {
        let of_kind: Vec<_> = groups_of(meaning, duplicates).collect();
        let group = |group: &&DuplicateImages<'_>| Group {
            likeness: match group.cosine {
                None => "the same file".to_owned(),
                Some(cosine) => format!("look the same, cosine {cosine:.4}"),
            },
            images: (group.images.iter().take(MAX_GROUP_IMAGES))
                .map(|image @ &Image { split, file, class, .. }| GroupImage {
                    decision: self.decision(image, None),
                    picture: self.picture(split, file),
                    split,
                    class: printable(class),
                })
                .collect(),
            n_more: group.images.len().saturating_sub(MAX_GROUP_IMAGES),
        };
        let (title, meaning, none) = match meaning {
            Meaning::Leakage => (
                "In train and test",
                "The model has seen these test images: the figures are too good.",
                "No image was found in train and test.",
            ),
            Meaning::ContradictoryLabels => (
                "In two classes",
                "At most one of the labels is right.",
                "No image was found in two classes.",
            ),
            Meaning::Redundant => (
                "Twice in one class",
                "They count twice, and teach and tell nothing more than once.",
                "No image was found twice in one class of one split.",
            ),
        };
        Kind {
            title,
            meaning,
            none,
            n: of_kind.len(),
            groups: of_kind.iter().take(MAX_GROUPS).map(group).collect(),
        }
    }
}

/// The name of a cell of the confusion matrix.
fn cell(truth: usize, predicted: usize) -> String {
    format!("{truth}-{predicted}")
}

impl Page<'_> {
    fn has_no_duplicates(&self) -> bool {
        self.duplicates.iter().all(|kind| kind.n == 0)
    }

    fn has_neighbours(&self) -> bool {
        self.cards.iter().any(|card| !card.nearest.0.is_empty())
    }

    /// The time of a stage in percent of the longest.
    fn share_of_slowest(&self, stage: &StageTime) -> String {
        let longest = self.stages.iter().map(|stage| stage.seconds).fold(0.0, f64::max);
        format!("{:.1}", 100.0 * stage.seconds / longest.max(f64::MIN_POSITIVE))
    }

    /// The side of a cell of the matrix, in rem: smaller for many classes, but wide enough for the largest count.
    fn cell_side(&self) -> f64 {
        let largest = self
            .matrix
            .iter()
            .flat_map(|line| &line.cells)
            .map(|cell| cell.count)
            .max()
            .unwrap_or(0);
        let side = match self.n_classes {
            ..=12 => 2.75,
            13..=30 => 2.0,
            _ => 1.5,
        };
        f64::max(side, 0.5 * largest.to_string().len() as f64 + 0.4)
    }
}

impl Interval {
    fn of(Estimate { value, lower, upper }: Estimate, words: impl Fn(f64) -> String) -> Self {
        Interval {
            value: words(value),
            bounds: format!("{} – {}", words(lower), words(upper)),
            value_at: 100.0 * value,
            lower_at: 100.0 * lower,
            width: 100.0 * (upper - lower),
        }
    }
}

impl<'a> WarningBox<'a> {
    fn of(Warning { title, detail, files }: &'a Warning) -> Self {
        let shown = files.iter().take(MAX_LISTED).map(|file| printable(file)).collect();
        WarningBox {
            title,
            // A class named within a sentence cannot stand in an element of its own: what turns the writing is escaped.
            detail: file_names::printable(detail),
            n_files: files.len(),
            files: shown,
        }
    }
}

/// The classes, the one with the lowest F1 first; classes without images last.
fn class_lines(evaluation: &Evaluation, names: &[String]) -> Vec<ClassLine> {
    let lines = names.iter().zip(&evaluation.per_class).enumerate();
    let mut lines: Vec<ClassLine> = lines
        .map(|(label, (name, metrics))| ClassLine::of(label, name, metrics))
        .collect();
    lines.sort_by(|a, b| {
        let is_empty = |line: &ClassLine| line.support == 0;
        let [_, _, f1] = a.metrics;
        let [_, _, other] = b.metrics;
        is_empty(a).cmp(&is_empty(b)).then(f1.total_cmp(&other))
    });
    lines
}

impl ClassLine {
    fn of(label: usize, name: &str, metrics: &ClassMetrics) -> Self {
        let &ClassMetrics {
            precision,
            recall,
            f1,
            support,
        } = metrics;
        ClassLine {
            label,
            name: name.to_owned(),
            metrics: [precision, recall, f1],
            support,
        }
    }
}

impl Confusion {
    fn of(pair: &ConfusedPair<'_>) -> Self {
        let (n, support) = (pair.images.len(), pair.support);
        let shown = pair.images.iter().take(MAX_LISTED);
        Confusion {
            truth: printable(pair.true_class),
            predicted: printable(pair.predicted_class),
            images: format!("{} of {}", count(n), count(support)),
            share: percent(n as f64 / support as f64),
            n,
            files: shown.map(|image| printable(image.file)).collect(),
        }
    }
}

impl FewLine {
    fn of(few: &FewImages<'_>) -> Self {
        FewLine {
            class: printable(few.class),
            n_train: few.n_train,
            few_train: few.n_train < FEW_TRAIN,
            n_test: few.n_test,
            few_test: few.n_test < FEW_TEST,
            recall: few
                .recall
                .map_or("not known".to_owned(), |recall| format!("{:.3}", recall.value)),
            bounds: few.recall.map_or(String::new(), |recall| {
                format!("{:.2} – {:.2}", recall.lower, recall.upper)
            }),
        }
    }
}

impl<'a> SkippedLine<'a> {
    fn of(
        Skipped {
            split,
            file,
            class,
            reason,
        }: &'a Skipped,
    ) -> Self {
        SkippedLine {
            split: split.to_string(),
            class: printable(class),
            file: printable(file),
            reason,
        }
    }
}

fn matrix(evaluation: &Evaluation, names: &[String]) -> Vec<MatrixLine> {
    let line = |(truth, counts): (usize, &Vec<u64>)| {
        let total = counts.iter().sum();
        let cell = |(predicted, &count): (usize, &u64)| {
            let share = 100.0 * count as f64 / u64::max(total, 1) as f64;
            let mut description = if truth == predicted {
                format!("{} recognised", names[truth])
            } else {
                format!("{} taken for {}", names[truth], names[predicted])
            };
            write!(description, ": {count} of {total}").expect("a String takes every byte");
            MatrixCell {
                name: cell(truth, predicted),
                count,
                share: if share < 0.5 {
                    "<1".to_owned()
                } else {
                    format!("{share:.0}")
                },
                class: if truth == predicted { "hit" } else { "miss" },
                shade: (100.0 * shade(count, total)).round() as u32,
                description,
            }
        };
        MatrixLine {
            name: names[truth].clone(),
            cells: counts.iter().enumerate().map(cell).collect(),
        }
    };
    evaluation.confusion.iter().enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_cannot_end_its_element() {
        assert!(!SCRIPT.contains("</") && !SCRIPT.contains("<!--"), "see the script");
    }
}
