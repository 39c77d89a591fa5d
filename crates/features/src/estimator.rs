//! smartcore's estimator traits, so that the fitted types can stand in for smartcore's own.

use ndarray::Array2;
use smartcore::api::{Transformer, UnsupervisedEstimator};
use smartcore::error::Failed;

use crate::{FittedPca, FittedScaler, Pca, StandardScaler};

impl UnsupervisedEstimator<Array2<f64>, StandardScaler> for FittedScaler {
    fn fit(x: &Array2<f64>, _parameters: StandardScaler) -> Result<Self, Failed> {
        StandardScaler::fit(x.view()).map_err(|error| Failed::fit(&error.to_string()))
    }
}

impl Transformer<Array2<f64>> for FittedScaler {
    fn transform(&self, x: &Array2<f64>) -> Result<Array2<f64>, Failed> {
        self.transform(x.view())
            .map_err(|error| Failed::transform(&error.to_string()))
    }
}

impl UnsupervisedEstimator<Array2<f64>, Pca> for FittedPca {
    fn fit(x: &Array2<f64>, parameters: Pca) -> Result<Self, Failed> {
        parameters
            .fit(x.view())
            .map_err(|error| Failed::fit(&error.to_string()))
    }
}

impl Transformer<Array2<f64>> for FittedPca {
    fn transform(&self, x: &Array2<f64>) -> Result<Array2<f64>, Failed> {
        self.transform(x.view())
            .map_err(|error| Failed::transform(&error.to_string()))
    }
}
