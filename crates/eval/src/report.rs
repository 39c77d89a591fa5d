mod chart;
mod conclusions;
mod html;
mod json;
mod pictures;
mod plot;
mod text;
mod words;

use std::fmt;
use std::path::Path;

use luthier_artifact::{CrossValidationInfo, Digest, Interrupted, Split, Written, file_names, write_atomically};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::{Error, Evaluation, Findings, Result};
use conclusions::Conclusions;

/// An image that could not be read and therefore had no part in training or testing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The split whose folder holds the file.
    pub split: Split,
    /// The path below the split's folder.
    pub file: String,
    /// The class of the file's folder.
    pub class: String,
    /// Why it could not be read.
    pub reason: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An image without a class is in no split, either.
        if !self.class.is_empty() {
            write!(f, "{}/", self.split)?;
        }
        write!(f, "{}: {}", file_names::printable(&self.file), self.reason)
    }
}

/// Something a reader has to know before trusting the figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// What is wrong, in a few words.
    pub title: String,
    /// What it means, in a sentence or two.
    pub detail: String,
    /// The files it is about, if any.
    pub files: Vec<String>,
}

/// What the report shows of the choice of C.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossValidated<'a> {
    /// What cross-validation on the training images found.
    pub info: &'a CrossValidationInfo,
    /// The C that was chosen.
    pub c: f64,
    /// By what scores were divided to calibrate the probabilities, positive.
    pub temperature: f64,
}

/// How much of the variance the principal components explain.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Variance<'a> {
    /// The share of the variance along each component, the kept ones first, in falling order.
    pub ratios: &'a [f64],
    /// How many were kept.
    pub n_components: usize,
}

/// How long a stage took when it ran last.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageTime {
    /// The name of the stage.
    pub name: String,
    /// Its wall-clock time in seconds.
    pub seconds: f64,
}

/// The images of a split, in the order of the rows of its table.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// Paths below the split's folder.
    pub files: &'a [String],
    /// Labels, below the number of classes.
    pub labels: &'a [usize],
    /// The digests of the files' bytes.
    pub digests: &'a [Digest],
}

/// What a report shows: an evaluation, and what the evaluation does not know.
pub struct Context<'a> {
    /// The figures.
    pub evaluation: &'a Evaluation,
    /// The probability of each class for each of the evaluation's rows, `f64 [n, k]`.
    pub probabilities: &'a Array2<f64>,
    /// What the images themselves tell.
    pub findings: &'a Findings,
    /// The training images.
    pub train: Images<'a>,
    /// The test images.
    pub test: Images<'a>,
    /// The images that were evaluated, one for each of the evaluation's rows.
    pub evaluated: Images<'a>,
    /// The row of each of these in the table of its split.
    pub evaluated_rows: &'a [usize],
    /// Whether train and test have folders of their own: decisions then name a file with its split.
    pub has_two_folders: bool,
    /// What people found of labels that they looked at.
    pub checked: CheckedLabels,
    /// The images left out.
    pub skipped: &'a [Skipped],
    /// Shown first.
    pub warnings: &'a [Warning],
    /// How the model was made, as names and values.
    pub facts: &'a [(String, String)],
    /// When the report is written, as people read it; `None` if that is not to be told.
    pub date: Option<&'a str>,
    /// How long each stage took, in their order.
    pub stages: &'a [StageTime],
    /// The variance along the principal components.
    pub variance: Variance<'a>,
    /// How C was chosen and probabilities calibrated; `None` if C was given.
    pub cross_validation: Option<CrossValidated<'a>>,
    /// Gives the thumbnail of a file of a split as the bytes of a JPEG whose longer side has at most as many pixels as
    /// asked for, or `None` if there is none. It is called from several threads. An error ends the report before a file is
    /// written.
    pub thumbnail: &'a Thumbnail<'a>,
    /// Gives the address of a file of a split as seen from the page, or `None` if it has none.
    pub link: &'a dyn Fn(Split, &str) -> Option<String>,
}

/// How many labels people have looked at and judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckedLabels {
    /// Those that they found right.
    pub right: usize,
    /// Those that they found wrong.
    pub wrong: usize,
}

impl CheckedLabels {
    /// For example `31 of 40 that people looked at were wrong (78 %)`; `None` if they have looked at none.
    fn describe(&self) -> Option<String> {
        let CheckedLabels { right, wrong } = *self;
        let n = right + wrong;
        let share = (n > 0).then(|| words::percent(wrong as f64 / n as f64))?;
        Some(format!(
            "{} of {} that people looked at were wrong ({share})",
            words::count(wrong),
            words::count(n)
        ))
    }
}

/// Makes thumbnails.
pub type Thumbnail<'a> = dyn Fn(Split, &str, u32) -> std::result::Result<Option<Vec<u8>>, Interrupted> + Sync + 'a;

/// The files of a report, in the order in which they are written.
pub const REPORT_FILES: [&str; 13] = [
    "report.html",
    "report.json",
    "classification_report.txt",
    "confusion_matrix.csv",
    "confusion_matrix.png",
    "confusion_matrix.svg",
    "misclassified.csv",
    "confused_pairs.csv",
    "mislabelled.csv",
    "duplicates.csv",
    "few_images.csv",
    "learning_curve.csv",
    "skipped.csv",
];

/// Renders the page `report.html`, all its figures as `report.json`, and its tables and the confusion matrix as files of their
/// own, into `dir`, and returns the files: [`REPORT_FILES`].
///
/// All is rendered before the first file is written, and each file is replaced in one step.
/// Equal contexts give equal bytes on one machine. The page needs neither network nor other files.
///
/// # Errors
/// [`Error::Files`] and [`Error::Shape`] if there is not one file name, or not one row of probabilities, for each row,
/// [`Error::Plot`] if the matrix cannot be drawn, [`Error::Artifact`] if a file cannot be written,
/// [`Error::Interrupted`] if a thumbnail says so.
pub fn write_report(dir: &Path, context: &Context<'_>) -> Result<Vec<Written>> {
    let evaluation = context.evaluation;
    if context.evaluated.files.len() != evaluation.rows.len() {
        return Err(Error::Files {
            expected: evaluation.rows.len(),
            found: context.evaluated.files.len(),
        });
    }
    let (n_rows, n_classes) = context.probabilities.dim();
    for (what, expected, found) in [
        ("rows of probabilities", evaluation.rows.len(), n_rows),
        ("classes of probabilities", evaluation.classes.len(), n_classes),
    ] {
        if found != expected {
            return Err(Error::Shape { what, expected, found });
        }
    }
    let conclusions = Conclusions::of(context);
    let svg = plot::confusion_svg(evaluation);
    let rendered = [
        ("report.html", html::page(context, &conclusions)?.into_bytes()),
        ("report.json", json::report(context, &conclusions)),
        (
            "classification_report.txt",
            file_names::bytes_of(&text::classification_report(evaluation)).into_owned(),
        ),
        ("confusion_matrix.csv", text::confusion_csv(evaluation)),
        ("confusion_matrix.png", plot::png(&svg)?),
        ("confusion_matrix.svg", svg.into_bytes()),
        (
            "misclassified.csv",
            text::misclassified_csv(evaluation, &conclusions.mistakes),
        ),
        (
            "confused_pairs.csv",
            text::confused_pairs_csv(&conclusions.confused_pairs),
        ),
        ("mislabelled.csv", text::mislabelled_csv(&conclusions.mislabelled)),
        ("duplicates.csv", text::duplicates_csv(&conclusions.duplicates)),
        (
            "few_images.csv",
            text::few_images_csv(evaluation, &conclusions.few_images),
        ),
        ("learning_curve.csv", text::learning_curve_csv(context.cross_validation)),
        ("skipped.csv", text::skipped_csv(context.skipped)),
    ];
    rendered
        .into_iter()
        .map(|(name, bytes)| Ok(write_atomically(&dir.join(name), &bytes)?))
        .collect()
}
