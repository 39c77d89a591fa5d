//! The report's plain tables.

use std::fmt::Write;

use super::{Mistake, Skipped};
use crate::{ClassMetrics, Evaluation};

/// The layout of scikit-learn's `classification_report(..., labels=range(k), target_names=classes, digits=4)`, to the byte.
pub(super) fn classification_report(evaluation: &Evaluation) -> String {
    // Python pads to a number of code points, as Rust does.
    let longest = evaluation
        .classes
        .iter()
        .map(|class| class.chars().count())
        .max()
        .unwrap_or(0);
    let width = longest.max("weighted avg".len());
    let line = |name: &str,
                &ClassMetrics {
                    precision,
                    recall,
                    f1,
                    support,
                }: &ClassMetrics| {
        format!("{name:>width$}  {precision:>9.4} {recall:>9.4} {f1:>9.4} {support:>9}\n")
    };
    let mut text = format!(
        "{:>width$}  {:>9} {:>9} {:>9} {:>9}\n\n",
        "", "precision", "recall", "f1-score", "support"
    );
    for (class, metrics) in evaluation.classes.iter().zip(&evaluation.per_class) {
        text += &line(class, metrics);
    }
    let (accuracy, n) = (evaluation.accuracy.value, evaluation.n);
    writeln!(
        text,
        "\n{:>width$}  {:>9} {:>9} {accuracy:>9.4} {n:>9}",
        "accuracy", "", ""
    )
    .expect("a String takes every byte");
    text += &line("macro avg", &evaluation.macro_average);
    text += &line("weighted avg", &evaluation.weighted_average);
    text
}

/// One row a true class, one column a predicted class.
pub(super) fn confusion_csv(evaluation: &Evaluation) -> Vec<u8> {
    let classes = &evaluation.classes;
    let header = std::iter::once("true class".to_owned())
        .chain(classes.iter().cloned())
        .collect();
    let rows = classes.iter().zip(&evaluation.confusion).map(|(class, counts)| {
        std::iter::once(class.clone())
            .chain(counts.iter().map(u64::to_string))
            .collect()
    });
    csv(header, rows)
}

/// One row a mistake, in their order.
pub(super) fn misclassified_csv(evaluation: &Evaluation, mistakes: &[Mistake<'_>]) -> Vec<u8> {
    let header = [
        "file",
        "true class",
        "predicted class",
        "probability of the predicted class",
        "probability of the true class",
        "rank of the true class",
    ];
    let rows = mistakes.iter().map(|Mistake { file, row }| {
        vec![
            (*file).to_owned(),
            evaluation.classes[row.truth].clone(),
            evaluation.classes[row.predicted].clone(),
            format!("{:.6}", row.predicted_probability()),
            format!("{:.6}", row.true_probability()),
            row.true_rank().to_string(),
        ]
    });
    csv(header.map(str::to_owned).to_vec(), rows)
}

/// One row an image left out.
pub(super) fn skipped_csv(skipped: &[Skipped]) -> Vec<u8> {
    let header = ["split", "class", "file", "reason"].map(str::to_owned).to_vec();
    let rows = skipped.iter().map(
        |Skipped {
             split,
             file,
             class,
             reason,
         }| { vec![split.to_string(), class.clone(), file.clone(), reason.clone()] },
    );
    csv(header, rows)
}

fn csv(header: Vec<String>, rows: impl Iterator<Item = Vec<String>>) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for record in std::iter::once(header).chain(rows) {
        writer
            .write_record(record)
            .expect("records have the header's length, and a Vec takes every byte");
    }
    writer.into_inner().expect("a Vec takes every byte")
}
