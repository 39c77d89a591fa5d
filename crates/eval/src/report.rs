mod html;
mod json;
mod plot;
mod text;
mod words;

use std::path::Path;

use luthier_artifact::{Split, Written, write_atomically};
use serde::Serialize;

use crate::{Error, Evaluation, Result, Row};

/// An image that could not be read and therefore had no part in training or testing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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

/// What a report shows: an evaluation, and what the evaluation does not know.
pub struct Context<'a> {
    /// The figures.
    pub evaluation: &'a Evaluation,
    /// The file of each of the evaluation's rows, in the same order: paths below the test folder.
    pub files: &'a [String],
    /// The images left out.
    pub skipped: &'a [Skipped],
    /// Shown first.
    pub warnings: &'a [Warning],
    /// How the model was made, as names and values.
    pub facts: &'a [(String, String)],
    /// Gives the thumbnail of a file among `files` as the bytes of a JPEG, or `None` if there is none.
    pub thumbnail: &'a dyn Fn(&str) -> Option<Vec<u8>>,
}

/// Renders `report.html`, `report.json`, `classification_report.txt`, `confusion_matrix.csv`, `.png` and `.svg`,
/// `misclassified.csv` and `skipped.csv` into `dir`, and returns them in this order.
///
/// All is rendered before the first file is written, and each file is replaced in one step.
/// Equal contexts give equal bytes on one machine. The page needs neither network nor other files.
///
/// # Errors
/// [`Error::Files`] if there is not one file name for each row, [`Error::Plot`] if the matrix cannot be drawn,
/// [`Error::Artifact`] if a file cannot be written.
pub fn write_report(dir: &Path, context: &Context<'_>) -> Result<Vec<Written>> {
    let evaluation = context.evaluation;
    if context.files.len() != evaluation.rows.len() {
        return Err(Error::Files {
            expected: evaluation.rows.len(),
            found: context.files.len(),
        });
    }
    let mistakes = mistakes(context);
    let svg = plot::confusion_svg(evaluation);
    let rendered = [
        ("report.html", html::page(context, &mistakes).into_bytes()),
        ("report.json", json::report(context)),
        (
            "classification_report.txt",
            text::classification_report(evaluation).into_bytes(),
        ),
        ("confusion_matrix.csv", text::confusion_csv(evaluation)),
        ("confusion_matrix.png", plot::png(&svg)?),
        ("confusion_matrix.svg", svg.into_bytes()),
        ("misclassified.csv", text::misclassified_csv(evaluation, &mistakes)),
        ("skipped.csv", text::skipped_csv(context.skipped)),
    ];
    rendered
        .into_iter()
        .map(|(name, bytes)| Ok(write_atomically(&dir.join(name), &bytes)?))
        .collect()
}

/// A test image whose predicted class is not the true one.
struct Mistake<'a> {
    file: &'a str,
    row: &'a Row,
}

/// The mistakes, the most confident first; equally confident ones by file.
fn mistakes<'a>(context: &Context<'a>) -> Vec<Mistake<'a>> {
    let mut mistakes: Vec<Mistake<'a>> = context
        .files
        .iter()
        .zip(&context.evaluation.rows)
        .filter(|(_, row)| !row.is_correct())
        .map(|(file, row)| Mistake { file, row })
        .collect();
    mistakes.sort_by(|a, b| {
        b.row
            .predicted_probability()
            .total_cmp(&a.row.predicted_probability())
            .then_with(|| a.file.cmp(b.file))
    });
    mistakes
}
