//! The page.

use std::cmp::Reverse;

use askama::Template;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use luthier_artifact::Split;

use super::plot::shade;
use super::words::{count, counted, level, percent, printable};
use super::{Context, CrossValidated, Mistake, Skipped, Warning};
use crate::{BOOTSTRAP_RESAMPLES, ClassMetrics, Estimate, Evaluation};

/// A page is to be mailed around: the pictures on it are limited in number and, together, in bytes before base64.
const MAX_CARDS: usize = 200;
/// The longer side of a thumbnail, in pixels.
const THUMBNAIL_SIDE: u32 = 160;
const MAX_THUMBNAIL_BYTES: usize = 6 << 20;
/// Above this a table of all pairs of classes is no longer read, but searched.
const MAX_MATRIX_CLASSES: usize = 100;
const MAX_CONFUSIONS: usize = 10;
const MAX_LISTED: usize = 200;

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    accuracy: Interval,
    macro_f1: Interval,
    n_correct: usize,
    n: usize,
    n_classes: usize,
    level: String,
    n_resamples: usize,
    top_k: Vec<(usize, String)>,
    log_loss: String,
    calibration_error: String,
    uncalibrated_error: String,
    cross_validation: Option<&'a CrossValidated>,
    warnings: Vec<WarningBox<'a>>,
    facts: &'a [(String, String)],
    classes: Vec<ClassLine>,
    averages: [ClassLine; 2],
    confusions: Vec<Confusion>,
    /// Empty if there are too many classes for a table.
    matrix: Vec<MatrixLine>,
    n_mistakes: usize,
    cards: Vec<Card>,
    skipped: Vec<SkippedLine<'a>>,
    n_skipped: usize,
    version: &'static str,
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
    detail: &'a str,
    n_files: usize,
    files: Vec<String>,
}

struct ClassLine {
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
}

struct MatrixLine {
    name: String,
    cells: Vec<MatrixCell>,
}

struct MatrixCell {
    count: u64,
    class: &'static str,
    /// Percent of the full colour.
    shade: u32,
    description: String,
}

struct Card {
    file: String,
    /// As a data URI.
    picture: Option<String>,
    truth: String,
    predicted: String,
    predicted_probability: f64,
    true_probability: f64,
    true_rank: usize,
}

struct SkippedLine<'a> {
    split: String,
    class: String,
    file: String,
    reason: &'a str,
}

/// The report as one HTML document.
pub(super) fn page(context: &Context<'_>, mistakes: &[Mistake<'_>]) -> String {
    let evaluation = context.evaluation;
    let names: Vec<String> = evaluation.classes.iter().map(|name| printable(name)).collect();
    Page {
        accuracy: Interval::of(evaluation.accuracy, percent),
        macro_f1: Interval::of(evaluation.macro_f1, |value| format!("{value:.3}")),
        n_correct: evaluation.n_correct(),
        n: evaluation.n,
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
        uncalibrated_error: format!("{:.3}", evaluation.uncalibrated.calibration_error),
        cross_validation: context.cross_validation,
        warnings: context.warnings.iter().map(WarningBox::of).collect(),
        facts: context.facts,
        classes: names
            .iter()
            .zip(&evaluation.per_class)
            .map(|(name, metrics)| ClassLine::of(name, metrics))
            .collect(),
        averages: [
            ClassLine::of("Macro average", &evaluation.macro_average),
            ClassLine::of("Weighted average", &evaluation.weighted_average),
        ],
        confusions: confusions(evaluation, &names),
        matrix: if names.len() <= MAX_MATRIX_CLASSES {
            matrix(evaluation, &names)
        } else {
            Vec::new()
        },
        n_mistakes: mistakes.len(),
        cards: cards(context, mistakes, &names),
        skipped: context.skipped.iter().take(MAX_LISTED).map(SkippedLine::of).collect(),
        n_skipped: context.skipped.len(),
        version: env!("CARGO_PKG_VERSION"),
    }
    .render()
    .expect("numbers and strings always render")
}

impl Page<'_> {
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
            detail,
            n_files: files.len(),
            files: shown,
        }
    }
}

impl ClassLine {
    fn of(name: &str, metrics: &ClassMetrics) -> Self {
        let &ClassMetrics {
            precision,
            recall,
            f1,
            support,
        } = metrics;
        ClassLine {
            name: name.to_owned(),
            metrics: [precision, recall, f1],
            support,
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

/// The pairs of classes confused most often; of equally frequent ones, those that take more of their class.
fn confusions(evaluation: &Evaluation, names: &[String]) -> Vec<Confusion> {
    let mut pairs: Vec<(u64, u64, usize, usize)> = Vec::new();
    for (truth, counts) in evaluation.confusion.iter().enumerate() {
        let total = counts.iter().sum();
        let wrong = counts
            .iter()
            .enumerate()
            .filter(|&(predicted, &n)| predicted != truth && n > 0);
        pairs.extend(wrong.map(|(predicted, &n)| (n, total, truth, predicted)));
    }
    pairs.sort_by_key(|&(n, total, truth, predicted)| (Reverse(n), total, truth, predicted));
    pairs
        .into_iter()
        .take(MAX_CONFUSIONS)
        .map(|(n, total, truth, predicted)| Confusion {
            truth: names[truth].clone(),
            predicted: names[predicted].clone(),
            images: format!("{} of {}", count(n), count(total)),
            share: percent(n as f64 / total as f64),
        })
        .collect()
}

fn matrix(evaluation: &Evaluation, names: &[String]) -> Vec<MatrixLine> {
    let line = |(truth, counts): (usize, &Vec<u64>)| {
        let total = counts.iter().sum();
        let cell = |(predicted, &count): (usize, &u64)| MatrixCell {
            count,
            class: if truth == predicted { "hit" } else { "miss" },
            shade: (100.0 * shade(count, total)).round() as u32,
            description: format!("{} → {}: {count} of {total}", names[truth], names[predicted]),
        };
        MatrixLine {
            name: names[truth].clone(),
            cells: counts.iter().enumerate().map(cell).collect(),
        }
    };
    evaluation.confusion.iter().enumerate().map(line).collect()
}

/// The first mistakes, until there are enough or their pictures outgrow the page.
fn cards(context: &Context<'_>, mistakes: &[Mistake<'_>], names: &[String]) -> Vec<Card> {
    let mut cards = Vec::new();
    let mut room = MAX_THUMBNAIL_BYTES;
    for Mistake { file, row } in mistakes.iter().take(MAX_CARDS) {
        let thumbnail = (context.thumbnail)(Split::Test, file, THUMBNAIL_SIDE);
        let Some(left) = room.checked_sub(thumbnail.as_ref().map_or(0, Vec::len)) else {
            break;
        };
        room = left;
        cards.push(Card {
            file: printable(file),
            picture: thumbnail.map(|jpeg| format!("data:image/jpeg;base64,{}", BASE64_STANDARD.encode(jpeg))),
            truth: names[row.truth].clone(),
            predicted: names[row.predicted].clone(),
            predicted_probability: row.predicted_probability(),
            true_probability: row.true_probability(),
            true_rank: row.true_rank(),
        });
    }
    cards
}
