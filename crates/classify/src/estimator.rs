use ndarray::Array2;
use smartcore::api::{Predictor, SupervisedEstimator};
use smartcore::error::Failed;

use crate::{FittedLogisticRegression, LogisticRegression};

/// Logistic regression as a smartcore estimator, with labels of any value.
#[derive(Clone, Debug)]
pub struct Classifier {
    /// What is fitted, and the label of each of its classes: smartcore's traits ask for an estimator before that.
    fitted: Option<(FittedLogisticRegression, Vec<u32>)>,
}

impl SupervisedEstimator<Array2<f64>, Vec<u32>, LogisticRegression> for Classifier {
    fn new() -> Self {
        Classifier { fitted: None }
    }

    fn fit(x: &Array2<f64>, y: &Vec<u32>, parameters: LogisticRegression) -> Result<Self, Failed> {
        let mut classes = y.clone();
        classes.sort_unstable();
        classes.dedup();
        let labels: Vec<usize> = y
            .iter()
            .map(|label| classes.partition_point(|class| class < label))
            .collect();
        let fitted = parameters
            .fit(x.view(), &labels, classes.len())
            .map_err(|e| Failed::fit(&e.to_string()))?;
        Ok(Classifier {
            fitted: Some((fitted, classes)),
        })
    }
}

impl Predictor<Array2<f64>, Vec<u32>> for Classifier {
    fn predict(&self, x: &Array2<f64>) -> Result<Vec<u32>, Failed> {
        let (fitted, classes) = self
            .fitted
            .as_ref()
            .ok_or_else(|| Failed::predict("classifier is not fitted"))?;
        let labels = fitted.predict(x.view()).map_err(|e| Failed::predict(&e.to_string()))?;
        Ok(labels.into_iter().map(|label| classes[label]).collect())
    }
}
