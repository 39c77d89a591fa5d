//! The report's plain tables.

use std::fmt::Write;

use super::conclusions::{ConfusedPair, DuplicateImages, FewImages, Image, Mislabelled, Mistake};
use super::{CrossValidated, Skipped};
use crate::{ClassMetrics, Evaluation};
use luthier_artifact::file_names;

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

/// How many of the nearest training images have columns.
const N_NEAREST: usize = 3;

/// One row a mistake, in their order.
pub(super) fn misclassified_csv(evaluation: &Evaluation, mistakes: &[Mistake<'_>]) -> Vec<u8> {
    let mut header = strings([
        "file",
        "true class",
        "predicted class",
        "probability of the predicted class",
        "probability of the true class",
        "rank of the true class",
    ]);
    for place in 1..=N_NEAREST {
        header.extend([
            format!("nearest training image {place}"),
            format!("class of training image {place}"),
            format!("cosine of training image {place}"),
        ]);
    }
    let width = header.len();
    let rows = mistakes.iter().map(|mistake| {
        let Mistake { file, row, nearest, .. } = mistake;
        let mut record = vec![
            (*file).to_owned(),
            evaluation.classes[row.truth].clone(),
            evaluation.classes[row.predicted].clone(),
            format!("{:.6}", row.predicted_probability()),
            format!("{:.6}", row.true_probability()),
            row.true_rank().to_string(),
        ];
        for near in nearest.iter().take(N_NEAREST) {
            record.extend([
                near.file.to_owned(),
                near.class.to_owned(),
                format!("{:.6}", near.cosine),
            ]);
        }
        record.resize(width, String::new());
        record
    });
    csv(header, rows)
}

/// One row a file, pair by pair.
pub(super) fn confused_pairs_csv(pairs: &[ConfusedPair<'_>]) -> Vec<u8> {
    let header = [
        "true class",
        "predicted class",
        "images of the pair",
        "images of the true class",
        "file",
        "probability of the predicted class",
        "probability of the true class",
    ];
    let rows = pairs.iter().flat_map(|pair| {
        pair.images.iter().map(|image| {
            vec![
                pair.true_class.to_owned(),
                pair.predicted_class.to_owned(),
                pair.images.len().to_string(),
                pair.support.to_string(),
                image.file.to_owned(),
                format!("{:.6}", image.predicted_probability),
                format!("{:.6}", image.true_probability),
            ]
        })
    });
    csv(strings(header), rows)
}

/// One row an image whose label is probably wrong.
pub(super) fn mislabelled_csv(mislabelled: &[Mislabelled<'_>]) -> Vec<u8> {
    let header = [
        "split",
        "file",
        "label",
        "suggested label",
        "probability of the label",
        "probability of the suggested label",
    ];
    let rows = mislabelled.iter().map(|suspect| {
        let Image { split, file, class, .. } = suspect.image;
        vec![
            split.to_string(),
            file.to_owned(),
            class.to_owned(),
            suspect.suggested_class.to_owned(),
            format!("{:.6}", suspect.label_probability),
            format!("{:.6}", suspect.suggested_probability),
        ]
    });
    csv(strings(header), rows)
}

/// One row a file; files of one group are the same image.
pub(super) fn duplicates_csv(duplicates: &[DuplicateImages<'_>]) -> Vec<u8> {
    let header = ["group", "meaning", "same bytes", "cosine", "split", "class", "file"];
    let rows = duplicates.iter().zip(1..).flat_map(|(group, number)| {
        let meanings: Vec<&str> = group.meanings.iter().map(|meaning| meaning.name()).collect();
        let meaning = meanings.join(" and ");
        let cosine = group.cosine.map_or(String::new(), |cosine| format!("{cosine:.6}"));
        group.images.iter().map(move |&Image { split, file, class, .. }| {
            vec![
                number.to_string(),
                meaning.clone(),
                group.same_bytes.to_string(),
                cosine.clone(),
                split.to_string(),
                class.to_owned(),
                file.to_owned(),
            ]
        })
    });
    csv(strings(header), rows)
}

/// One row a class with few images.
pub(super) fn few_images_csv(evaluation: &Evaluation, few: &[FewImages<'_>]) -> Vec<u8> {
    let evaluated = format!("{}s", evaluation.noun());
    let header = [
        "class",
        "training images",
        &evaluated,
        "recall",
        "lower end of its interval",
        "upper end of its interval",
    ];
    let rows = few.iter().map(|class| {
        let mut record = vec![
            class.class.to_owned(),
            class.n_train.to_string(),
            class.n_test.to_string(),
        ];
        match class.recall {
            Some(recall) => {
                record.extend([recall.value, recall.lower, recall.upper].map(|value| format!("{value:.6}")))
            }
            None => record.resize(header.len(), String::new()),
        }
        record
    });
    csv(strings(header), rows)
}

/// One row a point of the learning curve, none without cross-validation.
pub(super) fn learning_curve_csv(cross_validation: Option<CrossValidated<'_>>) -> Vec<u8> {
    let header = [
        "share of the training images",
        "training images",
        "accuracy",
        "behind the last point",
        "standard error of that",
    ];
    let points = cross_validation.map_or(&[][..], |found| &found.info.learning_curve);
    let rows = points.iter().map(|point| {
        let [behind, standard_error] = point.behind;
        vec![
            point.share.to_string(),
            format!("{:.1}", point.n_train),
            format!("{:.6}", point.accuracy),
            format!("{behind:.6}"),
            format!("{standard_error:.6}"),
        ]
    });
    csv(strings(header), rows)
}

/// One row an image left out.
pub(super) fn skipped_csv(skipped: &[Skipped]) -> Vec<u8> {
    let header = strings(["split", "class", "file", "reason"]);
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

fn strings<const N: usize>(header: [&str; N]) -> Vec<String> {
    header.map(str::to_owned).to_vec()
}

fn csv(header: Vec<String>, rows: impl Iterator<Item = Vec<String>>) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for record in std::iter::once(header).chain(rows) {
        writer
            .write_record(record.iter().map(|cell| file_names::bytes_of(cell)))
            .expect("records have the header's length, and a Vec takes every byte");
    }
    writer.into_inner().expect("a Vec takes every byte")
}
