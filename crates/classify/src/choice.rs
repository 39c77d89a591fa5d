use std::fmt;
use std::str::FromStr;

use luthier_artifact::{Digest, FeatureTable};
use luthier_features::{FeaturesConfig, Keep, Projection, Solver};
use ndarray::Axis;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, FittedLogisticRegression, LogisticRegression, Result};

/// The candidates of [`ChooseC::Auto`].
const GRID: [f64; 9] = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4];

/// The gradient at which a candidate is judged: its log loss is then known to four digits (three for C = 1e4), far
/// below the differences between folds. Stopping much earlier would flatter large C, as it acts like a penalty.
const TOLERANCE: f64 = 1e-8;

/// Where C, the inverse strength of regularization, comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ChooseC {
    /// It is given.
    Fixed(f64),
    /// Cross-validation on the training images chooses among 1e-4, 1e-3, … 1e4.
    Auto,
}

impl fmt::Display for ChooseC {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChooseC::Fixed(c) => c.fmt(f),
            ChooseC::Auto => f.write_str("auto"),
        }
    }
}

impl FromStr for ChooseC {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.parse::<f64>() {
            _ if text == "auto" => Ok(ChooseC::Auto),
            Ok(c) if c > 0.0 && c.is_finite() => Ok(ChooseC::Fixed(c)),
            _ => Err(Error::C { found: text.to_owned() }),
        }
    }
}

/// How well one C did in cross-validation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CandidateC {
    /// The inverse strength of regularization.
    pub c: f64,
    /// The mean over the folds of the mean log loss (natural logarithm) on the images held out.
    pub log_loss: f64,
    /// The standard error of that mean.
    pub standard_error: f64,
}

/// Judges every C of the grid by stratified cross-validation on `train`.
///
/// Scaler and components are fitted anew in each fold as `config` says, so that nothing of the images held out is
/// known; a fold with fewer images than the components asked for keeps as many as it can.
///
/// # Errors
/// [`Error::Folds`] below two folds, [`Error::TooFewImages`] if a class has fewer than two images, and those of
/// the fits.
pub(crate) fn search(
    train: &FeatureTable,
    config: FeaturesConfig,
    solver: Solver,
    folds: usize,
    seed: u64,
) -> Result<Vec<CandidateC>> {
    let (fold_of, n_folds) = stratified_folds(train, folds, seed)?;
    let losses: Vec<Vec<f64>> = (0..n_folds)
        .into_par_iter()
        .map(|fold| held_out_losses(train, config, solver, &fold_of, fold))
        .collect::<Result<_>>()?;
    let n = n_folds as f64;
    let candidates = GRID.iter().enumerate().map(|(index, &c)| {
        let log_loss = losses.iter().map(|fold| fold[index]).sum::<f64>() / n;
        let variance = losses.iter().map(|fold| (fold[index] - log_loss).powi(2)).sum::<f64>() / (n - 1.0);
        CandidateC {
            c,
            log_loss,
            standard_error: (variance / n).sqrt(),
        }
    });
    Ok(candidates.collect())
}

/// The fold in which each row is held out, and the number of folds: at most the size of the smallest class.
///
/// Each class is dealt out evenly, in an order that depends on the seed and the images only, not on that of the rows.
fn stratified_folds(train: &FeatureTable, folds: usize, seed: u64) -> Result<(Vec<usize>, usize)> {
    if folds < 2 {
        return Err(Error::Folds { found: folds });
    }
    let mut classes = vec![Vec::new(); train.classes.len()];
    for (row, (&label, image)) in train.labels.iter().zip(&train.images).enumerate() {
        let draw = Digest::of(&[&seed.to_le_bytes(), image.as_bytes().as_slice()].concat());
        classes[label].push((draw, row));
    }
    let mut n_folds = folds;
    for (rows, class) in classes.iter().zip(&train.classes) {
        if rows.len() < 2 {
            return Err(Error::TooFewImages {
                class: class.clone(),
                expected: 2,
                found: rows.len(),
            });
        }
        n_folds = n_folds.min(rows.len());
    }
    let mut fold_of = vec![0; train.n_rows()];
    classes.iter_mut().for_each(|rows| rows.sort_unstable());
    // Dealing goes on where the class before ended, so that the folds are of one size as well.
    for (turn, &(_, row)) in classes.iter().flatten().enumerate() {
        fold_of[row] = turn % n_folds;
    }
    Ok((fold_of, n_folds))
}

/// The mean log loss on the rows of `fold` of models fitted to the others, one for each C of the grid.
fn held_out_losses(
    train: &FeatureTable,
    config: FeaturesConfig,
    solver: Solver,
    fold_of: &[usize],
    fold: usize,
) -> Result<Vec<f64>> {
    let (held_out, fitted): (Vec<usize>, Vec<usize>) = (0..train.n_rows()).partition(|&row| fold_of[row] == fold);
    let labels_of = |rows: &[usize]| rows.iter().map(|&row| train.labels[row]).collect::<Vec<_>>();

    let x = train.features.select(Axis(0), &fitted);
    let keep = match config.keep {
        Keep::Components(count) => Keep::Components(count.min(x.nrows()).min(x.ncols())),
        share @ Keep::Variance(_) => share,
    };
    let projection = Projection::fit(FeaturesConfig { keep, ..config }, x.view())?;
    let (z, labels) = (projection.transform(x.view())?, labels_of(&fitted));
    let z_held_out = projection.transform(train.features.select(Axis(0), &held_out).view())?;
    let labels_held_out = labels_of(&held_out);

    let mut warm: Option<FittedLogisticRegression> = None;
    GRID.iter()
        .map(|&c| {
            let regression = LogisticRegression {
                tolerance: TOLERANCE,
                ..LogisticRegression::new(c, solver)?
            };
            let fitted = regression.fit_from(z.view(), &labels, train.classes.len(), warm.as_ref())?;
            let loss = fitted.log_loss(z_held_out.view(), &labels_held_out)?;
            tracing::debug!(fold, c, loss, iterations = fitted.iterations, "cross-validation");
            warm = Some(fitted);
            Ok(loss)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use luthier_artifact::ExtractorInfo;
    use ndarray::Array2;

    use super::*;

    fn table(sizes: &[usize]) -> FeatureTable {
        let labels: Vec<usize> = sizes
            .iter()
            .enumerate()
            .flat_map(|(label, &size)| vec![label; size])
            .collect();
        let info = |text: &str| text.to_owned();
        FeatureTable {
            classes: (0..sizes.len()).map(|class| format!("class-{class}")).collect(),
            extractor: ExtractorInfo {
                views: vec![info("squash")],
                combine: info("mean"),
                decode: info("scaled"),
                weights: info("untrained"),
                weights_sha256: info("00"),
                precision: info("fp32"),
            },
            images: (0..labels.len()).map(|row| Digest::of(&row.to_le_bytes())).collect(),
            features: Array2::zeros((labels.len(), 1)),
            labels,
        }
    }

    #[test]
    fn folds_share_out_every_class_and_all_images_evenly() {
        let train = table(&[23, 7, 11]);
        let (fold_of, n_folds) = stratified_folds(&train, 5, 1).unwrap();
        assert_eq!(n_folds, 5);
        let sizes = |label: Option<usize>| {
            let mut sizes = [0usize; 5];
            for (&fold, &of) in fold_of.iter().zip(&train.labels) {
                sizes[fold] += usize::from(label.is_none_or(|label| label == of));
            }
            sizes.iter().max().unwrap() - sizes.iter().min().unwrap()
        };
        for group in [None, Some(0), Some(1), Some(2)] {
            assert!(sizes(group) <= 1, "{group:?}");
        }
    }

    #[test]
    fn folds_follow_the_image_and_the_seed_but_not_the_order_of_rows() {
        let train = table(&[20, 20]);
        let (folds, _) = stratified_folds(&train, 4, 1).unwrap();
        let mut swapped = train.clone();
        swapped.images.swap(3, 9);
        let (mut expected, found) = (folds.clone(), stratified_folds(&swapped, 4, 1).unwrap().0);
        expected.swap(3, 9);
        assert_eq!(found, expected);
        assert_ne!(stratified_folds(&train, 4, 2).unwrap().0, folds);
    }

    #[test]
    fn folds_are_no_more_than_the_smallest_class_has_images() {
        assert_eq!(stratified_folds(&table(&[9, 3]), 5, 1).unwrap().1, 3);
        assert_eq!(
            stratified_folds(&table(&[9, 1]), 5, 1).unwrap_err().to_string(),
            "class class-1 has 1 training images, expected at least 2"
        );
        assert!(matches!(
            stratified_folds(&table(&[9, 9]), 1, 1),
            Err(Error::Folds { found: 1 })
        ));
    }

    #[test]
    fn c_reads_back_what_it_prints_and_refuses_the_rest() {
        for text in ["auto", "1", "0.01"] {
            assert_eq!(text.parse::<ChooseC>().unwrap().to_string(), text);
        }
        for text in ["0", "-1", "inf", "nan", "", "Auto"] {
            let error = text.parse::<ChooseC>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("C is {text}, expected a positive number or auto")
            );
        }
    }
}
