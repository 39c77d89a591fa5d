use crate::ExitCode;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use luthier::words::counted;
use luthier::{TrainConfig, describe_c, describe_components};
use luthier_eval::DuplicatesConfig;
use luthier_features::Solver;

use super::{FeatureFolder, ModelFolder, open_cache, with_engine};
use crate::problem::Problem;
use crate::settings::{CacheSettings, ClassifySettings, FeaturesSettings, SeedSettings, Settings};
use crate::terminal::Progress;

/// Train a model on the features that `luthier extract` wrote
///
/// Fits a scaler, PCA and logistic regression to the training features, and writes models/model.safetensors.
#[derive(Args)]
#[command(after_help = "Example:\n  luthier train --feature-dir features/ --model-dir models/ --variance 0.95")]
pub(crate) struct Arguments {
    #[command(flatten)]
    feature_folder: FeatureFolder,
    #[command(flatten)]
    model_folder: ModelFolder,
    /// Fit scaler and PCA to the moments in DIR, which `luthier moments` wrote, rather than to the features
    #[arg(long, value_name = "DIR")]
    moments: Option<PathBuf>,
    #[command(flatten)]
    features: FeaturesSettings,
    #[command(flatten)]
    classify: ClassifySettings,
    #[command(flatten)]
    seed: SeedSettings,
    #[command(flatten)]
    cache: CacheSettings,
}

pub(crate) fn run(arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    let Arguments {
        feature_folder: FeatureFolder { feature_dir },
        model_folder: ModelFolder { model_dir },
        moments,
        features,
        classify,
        seed,
        cache,
    } = arguments;
    let settings = Settings {
        features,
        classify,
        seed,
        cache,
        ..Settings::default()
    };
    let config = TrainConfig {
        duplicates: DuplicatesConfig::default(),
        features: settings.features_config()?,
        classify: settings.classify_config()?,
        moments,
    };
    if config.moments.is_some() && config.features.solver == Solver::Smartcore {
        return Err(Problem::usage("--moments with --solver smartcore, which takes rows")
            .hint("leave --solver out")
            .into());
    }
    let cache = open_cache(&settings)?;
    let (path, model) = with_engine(&cache, progress, |engine| {
        engine.train(&config, &feature_dir, &model_dir)
    })?;
    let training = &model.training;
    outln!(
        "{}, {} classes, {}, {}",
        counted(training.n_train, "image"),
        model.classes.len(),
        describe_components(training.n_components, training.explained_variance_ratio),
        describe_c(&model)
    );
    outln!("model {}", path.display());
    Ok(ExitCode::SUCCESS)
}
