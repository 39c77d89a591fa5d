//! Scaling features and projecting them onto their principal components, with scikit-learn's numbers.
//!
//! - [`StandardScaler`] → [`FittedScaler`]: zero mean and unit variance a column
//! - [`Pca`] → [`FittedPca`]: the components that [`ComponentCount`] asks for, by either [`Solver`]
//! - [`FeaturesConfig`] → [`Projection`]: the stage `features`, which is the one after the other
//!
//! - [`ReadRows`](luthier_artifact::ReadRows): what they are fitted to, in memory or not; where there are at least as many rows as features, all is
//!   estimated from [`Moments`], taken in one pass over them
//!
//! Results are `f64`, and the same bytes for any number of threads. Fitted types also implement smartcore's
//! `UnsupervisedEstimator` and `Transformer`.
//!
//! This crate knows matrices only: no images, no tensors, no files.

mod columns;
mod error;
mod estimator;
pub mod linalg;
mod moments;
mod pca;
mod rows;
mod scaler;
mod stage;

pub use error::{Error, Result};
pub use moments::Moments;
pub use pca::{ComponentCount, FittedPca, Pca, Solver};
pub use rows::{Interruptible, Subset, check_finite, for_each_block, read_all};
pub use scaler::{FittedScaler, StandardScaler};
pub use stage::{FeaturesConfig, Projection};
