use serde::{Deserialize, Serialize};

/// Precision, recall and F1 of one class, or their average over classes.
///
/// All three lie in `0..=1`. A quotient without a denominator is 0, as in scikit-learn with `zero_division=0`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassMetrics {
    /// The share of the images predicted to be of the class that are.
    pub precision: f64,
    /// The share of the images of the class that are predicted to be.
    pub recall: f64,
    /// The harmonic mean of precision and recall.
    pub f1: f64,
    /// The number of images whose true class it is; for an average, of all images.
    pub support: u64,
}

/// How often each class was true, predicted, and both.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    truth: Vec<u64>,
    predicted: Vec<u64>,
    both: Vec<u64>,
}

impl Counts {
    pub(crate) fn new(n_classes: usize) -> Self {
        let zeros = vec![0; n_classes];
        Counts {
            truth: zeros.clone(),
            predicted: zeros.clone(),
            both: zeros,
        }
    }

    pub(crate) fn add(&mut self, truth: usize, predicted: usize) {
        self.truth[truth] += 1;
        self.predicted[predicted] += 1;
        self.both[truth] += u64::from(truth == predicted);
    }

    pub(crate) fn clear(&mut self) {
        let Counts { truth, predicted, both } = self;
        for counts in [truth, predicted, both] {
            counts.fill(0);
        }
    }

    pub(crate) fn n(&self) -> u64 {
        self.truth.iter().sum()
    }

    pub(crate) fn n_correct(&self) -> u64 {
        self.both.iter().sum()
    }

    /// The number of classes.
    pub(crate) fn n_classes(&self) -> usize {
        self.truth.len()
    }

    /// The metrics of a class.
    pub(crate) fn class(&self, class: usize) -> ClassMetrics {
        let (truth, predicted, both) = (self.truth[class], self.predicted[class], self.both[class]);
        ClassMetrics {
            precision: share(both, predicted),
            recall: share(both, truth),
            f1: share(2 * both, truth + predicted),
            support: truth,
        }
    }

    /// The metrics of every class, in label order.
    pub(crate) fn per_class(&self) -> impl Iterator<Item = ClassMetrics> {
        (0..self.n_classes()).map(|class| self.class(class))
    }

    /// The classes below `n_classes` that some image has or is predicted to have: scikit-learn averages over these.
    fn present(&self, n_classes: usize) -> impl Iterator<Item = usize> + Clone {
        (0..n_classes).filter(|&class| self.truth[class] + self.predicted[class] > 0)
    }

    /// The unweighted mean of F1 over the classes that are true or predicted, 0 without any.
    ///
    /// The same as scikit-learn's `f1_score(average="macro", zero_division=0)`.
    pub(crate) fn macro_f1(&self) -> f64 {
        let (mut sum, mut n) = (0.0, 0);
        for class in self.present(self.n_classes()) {
            sum += self.class(class).f1;
            n += 1;
        }
        if n == 0 { 0.0 } else { sum / f64::from(n) }
    }

    /// The unweighted mean over the classes below `n_classes` that are true or predicted; at least one must be.
    pub(crate) fn macro_average(&self, n_classes: usize) -> ClassMetrics {
        let classes: Vec<ClassMetrics> = self.present(n_classes).map(|class| self.class(class)).collect();
        average(&classes, |_| 1.0)
    }
}

/// `part / whole`, or 0 if `whole` is.
pub(crate) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The average over these classes, each with the weight that `weight` gives it.
///
/// The weights must not all be 0.
pub(crate) fn average(classes: &[ClassMetrics], weight: impl Fn(&ClassMetrics) -> f64) -> ClassMetrics {
    let total: f64 = classes.iter().map(&weight).sum();
    let mean = |metric: fn(&ClassMetrics) -> f64| {
        classes.iter().map(|class| weight(class) * metric(class)).sum::<f64>() / total
    };
    ClassMetrics {
        precision: mean(|class| class.precision),
        recall: mean(|class| class.recall),
        f1: mean(|class| class.f1),
        support: classes.iter().map(|class| class.support).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_neither_true_nor_predicted_scores_zero_and_is_left_out_of_the_macro_average() {
        let mut counts = Counts::new(3);
        counts.add(0, 0);
        counts.add(1, 1);
        assert_eq!((counts.macro_f1(), counts.macro_average(3).f1), (1.0, 1.0));
        let classes: Vec<_> = counts.per_class().collect();
        assert_eq!(
            classes[2],
            ClassMetrics {
                precision: 0.0,
                recall: 0.0,
                f1: 0.0,
                support: 0
            }
        );
        assert_eq!(average(&classes, |class| class.support as f64).f1, 1.0);
    }

    #[test]
    fn a_class_that_is_only_true_or_only_predicted_counts_as_zero() {
        let mut counts = Counts::new(4);
        counts.add(0, 0);
        counts.add(0, 0);
        counts.add(1, 2);
        assert_eq!(counts.macro_f1(), 1.0 / 3.0);
        let ClassMetrics {
            precision,
            recall,
            f1,
            support,
        } = counts.macro_average(4);
        assert_eq!([precision, recall, f1], [1.0 / 3.0; 3]);
        assert_eq!(support, 3);
    }

    #[test]
    fn clearing_forgets_every_count() {
        let mut counts = Counts::new(2);
        counts.add(0, 0);
        counts.add(1, 0);
        counts.clear();
        assert_eq!((counts.n(), counts.n_correct(), counts.macro_f1()), (0, 0, 0.0));
    }
}
